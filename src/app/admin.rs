//! The admin socket: a unix socket that answers HTTP with JSON. A shell.
//!
//! Invariant: who may open the socket may do everything; each order is noted with the peer's uid. No answer holds a
//! token, a password or a claim's nonce. `desk` does the work, this file is routes and the socket.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path as UrlPath, Query, State, connect_info::Connected},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use serde::Deserialize;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{
    desk::{Desk, DeskError},
    orders::{Order, Refusal, RenderOrder, ResolveOrder},
};
use crate::provision::{Event, executor::OperationError};

/// The largest order: a thousand selectors and more.
const BODY_LIMIT: usize = 1 << 20;

/// Owner and group may use the socket.
const SOCKET_MODE: u32 = 0o660;

/// The group that may use it, where the system has it.
const GROUP: &str = "bootflip";

/// Why the socket is not there.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// A server answers on it.
    #[error(
        "another server answers on the admin socket {path}; stop it, or set admin.socket to another path"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("{path} is there and is no socket; remove it, or set admin.socket to another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot make the admin socket {path}")]
    Make {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The open socket; removed when dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // the next start removes what is left
    }
}

/// Makes the socket. One that a dead server left behind is replaced.
pub async fn bind(path: &Path) -> Result<Socket, AdminError> {
    let failed = |source| AdminError::Make { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(AdminError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(AdminError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(failed)?;
        }
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
    {
        tracing::warn!(file = %path.display(), %error, "the admin socket stays with this user's group");
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(Socket { path: path.to_owned(), listener: Some(listener) })
}

impl Socket {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Answers until `stop`; requests under way are finished.
    ///
    /// # Errors
    /// The socket broke.
    pub async fn run(mut self, desk: Arc<Desk>, stop: CancellationToken) -> io::Result<()> {
        let Some(listener) = self.listener.take() else { return Ok(()) };
        let app = routes(desk).into_make_service_with_connect_info::<Peer>();
        axum::serve(listener, app).with_graceful_shutdown(stop.cancelled_owned()).await
    }
}

/// Who is at the other end.
#[derive(Debug, Clone, Copy)]
struct Peer(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|peer| peer.uid()))
    }
}

impl Peer {
    /// Such as `uid 1000 (alice)`.
    fn label(self) -> String {
        let Some(uid) = self.0 else { return "an unknown user".to_owned() };
        match nix::unistd::User::from_uid(uid.into()) {
            Ok(Some(user)) => format!("uid {uid} ({})", user.name),
            Ok(None) | Err(_) => format!("uid {uid}"),
        }
    }
}

type At = State<Arc<Desk>>;
type From = ConnectInfo<Peer>;

fn routes(desk: Arc<Desk>) -> Router {
    Router::new()
        .route("/v1/health", get(async |State(desk): At| Json(desk.health())))
        .route("/v1/jobs", get(jobs).post(deploy))
        .route("/v1/jobs/{id}", get(job))
        .route("/v1/jobs/{id}/log", get(log))
        .route("/v1/jobs/{id}/cancel", post(cancel))
        .route("/v1/jobs/{id}/finish", post(finish))
        .route("/v1/jobs/{id}/retry", post(retry))
        .route("/v1/jobs/{id}/resolve", post(resolve))
        .route("/v1/plan", post(plan))
        .route("/v1/vms", get(vms))
        .route("/v1/vms/{name}", get(vm))
        .route("/v1/render", post(render))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is no such path".to_owned()))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(desk)
}

async fn jobs(State(desk): At) -> Result<Response, DeskError> {
    let jobs = desk.jobs().await?;
    Ok(Json(serde_json::json!({ "jobs": jobs })).into_response())
}

async fn job(State(desk): At, UrlPath(id): UrlPath<String>) -> Result<Response, DeskError> {
    Ok(Json(desk.job(&id).await?).into_response())
}

async fn log(State(desk): At, UrlPath(id): UrlPath<String>) -> Result<Response, DeskError> {
    Ok(desk.log(&id).await?.into_response())
}

async fn plan(
    State(desk): At,
    ConnectInfo(peer): From,
    Json(order): Json<Order>,
) -> Result<Response, DeskError> {
    Ok(Json(desk.plan(&order, &peer.label()).await?).into_response())
}

async fn deploy(
    State(desk): At,
    ConnectInfo(peer): From,
    Json(order): Json<Order>,
) -> Result<Response, DeskError> {
    let asked_by = peer.label();
    tracing::info!(asked_by, selectors = ?order.selectors, profile = order.profile, reinstall = order.reinstall, "deploy ordered");
    Ok(Json(desk.deploy(&order, &asked_by).await?).into_response())
}

async fn operate(desk: &Desk, peer: Peer, id: &str, event: Event) -> Result<Response, DeskError> {
    tracing::info!(job = id, asked_by = peer.label(), ?event, "job operated");
    Ok(Json(desk.operate(id, event).await?).into_response())
}

async fn cancel(
    State(desk): At,
    ConnectInfo(peer): From,
    UrlPath(id): UrlPath<String>,
) -> Result<Response, DeskError> {
    operate(&desk, peer, &id, Event::Cancel).await
}

async fn finish(
    State(desk): At,
    ConnectInfo(peer): From,
    UrlPath(id): UrlPath<String>,
) -> Result<Response, DeskError> {
    operate(&desk, peer, &id, Event::Finish).await
}

async fn retry(
    State(desk): At,
    ConnectInfo(peer): From,
    UrlPath(id): UrlPath<String>,
) -> Result<Response, DeskError> {
    operate(&desk, peer, &id, Event::Retry).await
}

async fn resolve(
    State(desk): At,
    ConnectInfo(peer): From,
    UrlPath(id): UrlPath<String>,
    Json(order): Json<ResolveOrder>,
) -> Result<Response, DeskError> {
    operate(&desk, peer, &id, Event::Resolve(order.resolution)).await
}

/// `GET /v1/vms?all=true` shows templates, snapshots and control domains too.
#[derive(Debug, Deserialize)]
struct Which {
    #[serde(default)]
    all: bool,
}

async fn vms(State(desk): At, Query(which): Query<Which>) -> Result<Response, DeskError> {
    let (mut vms, pools_away) = desk.vms().await;
    vms.retain(|vm| which.all || vm.kind == "guest");
    Ok(Json(serde_json::json!({ "vms": vms, "pools_away": pools_away })).into_response())
}

async fn vm(State(desk): At, UrlPath(name): UrlPath<String>) -> Result<Response, DeskError> {
    Ok(Json(desk.vm(&name).await?).into_response())
}

async fn render(State(desk): At, Json(order): Json<RenderOrder>) -> Result<Response, DeskError> {
    Ok(desk.render(&order).await?.into_response())
}

fn refuse(status: StatusCode, error: String) -> Response {
    (status, Json(Refusal { error })).into_response()
}

impl IntoResponse for DeskError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Operation(OperationError::NoSuchJob(_)) | Self::NoSuchVm(_) => StatusCode::NOT_FOUND,
            Self::Operation(OperationError::NotNow { .. }) => StatusCode::CONFLICT,
            Self::Operation(OperationError::Store(_)) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Operation(OperationError::NoSuchPool(_)) | Self::Preview(_) | Self::Empty => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::Pool { .. } => StatusCode::BAD_GATEWAY,
            Self::Log { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refuse(status, super::chain(&self))
    }
}

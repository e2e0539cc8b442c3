//! Asks the server by its API: over its unix socket, or over the network with a token.

use std::{io, path::Path, time::Duration};

use axum::body::{Body, to_bytes};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{
    Ended, Stop,
    remote::{Remote, RemoteError, Wire},
};
use crate::app::{orders::Problem, views::JobView};

/// The largest answer: the jobs of some years.
const ANSWER_LIMIT: usize = 256 << 20;

/// A way to the server.
#[derive(Debug, Clone)]
pub(super) struct Link {
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Socket(std::path::PathBuf),
    Remote(Remote),
}

impl std::fmt::Display for Way {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "{}", path.display()),
            Self::Remote(remote) => write!(f, "{remote}"),
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    /// No server, or no right to use its socket.
    #[error(
        "no server answers on {place}: {source}; start `bootflip serve`, or say with -c FILE or --server URL which one is meant"
    )]
    Away {
        /// Where.
        place: String,
        /// Why.
        source: io::Error,
    },
    /// Not the server that was meant, or nothing that its certificate could be held against.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The connection broke.
    #[error("the server on {place} broke the connection: {detail}")]
    Broken {
        /// Where.
        place: String,
        /// How.
        detail: String,
    },
    /// The server says no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The server's words.
        message: String,
    },
    /// Not what this version expects.
    #[error("the server's answer is not understood ({0}); are server and command of one version?")]
    Strange(String),
}

impl LinkError {
    /// It may be otherwise soon: the server is starting again.
    pub(super) const fn is_passing(&self) -> bool {
        matches!(self, Self::Away { .. } | Self::Broken { .. } | Self::Remote(RemoteError::Away { .. }))
    }
}

impl From<LinkError> for Stop {
    fn from(error: LinkError) -> Self {
        let ended = match &error {
            LinkError::Refused { status, .. } if *status == StatusCode::CONFLICT => Ended::Refused,
            LinkError::Refused { status, .. } if status.is_client_error() => Ended::Usage,
            LinkError::Away { .. }
            | LinkError::Remote(_)
            | LinkError::Broken { .. }
            | LinkError::Refused { .. }
            | LinkError::Strange(_) => Ended::Failed,
        };
        Self::new(ended, crate::app::chain(&error))
    }
}

#[derive(serde::Deserialize)]
struct JobList {
    jobs: Vec<JobView>,
    next: Option<String>,
}

impl Link {
    /// The server with this socket.
    pub(super) fn new(socket: &Path) -> Self {
        Self { way: Way::Socket(socket.to_owned()) }
    }

    /// A server over the network.
    pub(super) const fn remote(remote: Remote) -> Self {
        Self { way: Way::Remote(remote) }
    }

    /// Whether a server answers on the socket; one over the network is taken at its word.
    pub(super) async fn answers(&self) -> bool {
        match &self.way {
            Way::Socket(path) => UnixStream::connect(path).await.is_ok(),
            Way::Remote(_) => true,
        }
    }

    /// All jobs, oldest first.
    pub(super) async fn jobs(&self) -> Result<Vec<JobView>, LinkError> {
        let mut page: JobList = self.get("/api/v1/jobs?limit=1000").await?;
        let mut jobs = page.jobs;
        while let Some(cursor) = page.next {
            page = self.get(&format!("/api/v1/jobs?limit=1000&cursor={cursor}")).await?;
            jobs.append(&mut page.jobs);
        }
        Ok(jobs)
    }

    /// GET.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, LinkError> {
        parse(&self.send(Method::GET, path, Vec::new()).await?)
    }

    /// GET, answered by text.
    pub(super) async fn get_text(&self, path: &str) -> Result<String, LinkError> {
        let body = self.send(Method::GET, path, Vec::new()).await?;
        Ok(String::from_utf8_lossy(&body).into_owned())
    }

    /// DELETE.
    pub(super) async fn delete(&self, path: &str) -> Result<(), LinkError> {
        self.send(Method::DELETE, path, Vec::new()).await.map(drop)
    }

    /// POST with a JSON body, answered by JSON.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, LinkError> {
        parse(&self.post_for_text(path, order).await?)
    }

    /// POST with a JSON body, answered by text.
    pub(super) async fn post_for_text(
        &self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<Vec<u8>, LinkError> {
        let body = serde_json::to_vec(order).map_err(|error| LinkError::Strange(error.to_string()))?;
        self.send(Method::POST, path, body).await
    }

    /// POST that is sent again while the server starts; for orders that may be given twice.
    pub(super) async fn post_patiently<T: DeserializeOwned>(
        &self,
        path: &str,
        order: &impl Serialize,
    ) -> Result<T, LinkError> {
        let mut tries = 0;
        loop {
            match self.post(path, order).await {
                Err(error) if error.is_passing() && tries < PATIENCE => {
                    tries += 1;
                    tokio::time::sleep(BETWEEN_TRIES).await;
                }
                other => return other,
            }
        }
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Vec<u8>, LinkError> {
        let place = self.way.to_string();
        let broken = |detail: &dyn std::fmt::Display| LinkError::Broken {
            place: place.clone(),
            detail: detail.to_string(),
        };
        let away = |source| LinkError::Away { place: place.clone(), source };
        let stream: Box<dyn Wire> = match &self.way {
            Way::Socket(socket) => Box::new(UnixStream::connect(socket).await.map_err(away)?),
            Way::Remote(remote) => remote.connect().await?,
        };
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(&error))?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path);
        request = match &self.way {
            Way::Socket(_) => request.header(header::HOST, "bootflip"),
            Way::Remote(remote) => request
                .header(header::HOST, remote.authority())
                .header(header::AUTHORIZATION, remote.authorization()?),
        };
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body))
            .map_err(|error| LinkError::Strange(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body =
            to_bytes(Body::new(answer.into_body()), ANSWER_LIMIT).await.map_err(|error| broken(&error))?;
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let message = match serde_json::from_slice::<Problem>(&body) {
            Ok(problem) => problem.detail,
            Err(_) => format!("{status}: {}", String::from_utf8_lossy(&body)),
        };
        Err(LinkError::Refused { status, message })
    }
}

/// Tries while the server starts, and the pause between two.
const PATIENCE: u32 = 40;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, LinkError> {
    serde_json::from_slice(body).map_err(|error| LinkError::Strange(error.to_string()))
}

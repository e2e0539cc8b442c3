//! The control API: HTTP on loopback or on a unix socket, by which a script sees the calls and the VMs as they
//! really are, plans faults, and plays the people and guests of the pool. JSON in and out; what cannot be done is
//! refused with 400 and a sentence.

mod forms;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value as Json_, json};
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

use super::{
    SimError,
    shared::{SharedFaults, SharedPool},
};
use crate::{
    sim::pool::{Pool, VmTruth},
    xen::Failure,
};

/// What `GET /` answers.
const HELP: &str = "\
GET  /calls        the calls so far; ?since=N leaves out the first N, ?method=VM.start only those, ?vm=NAME too
GET  /vms          every VM as it really is
GET  /faults       planned and fired faults by name
POST /faults       {\"name\": \"lost\", \"method\": \"VM.start\", \"vm\": \"vm-001\", \"nth\": 1, \"count\": 1, \"kind\": \"lose-after\"}
                   kinds: lose-before, lose-after, {\"fail\": [\"CODE\", \"param\"]}, {\"delay-ms\": 500}, hang, hold,
                   hold-reply, expire-sessions, {\"coordinator-restart\": {\"lose_seconds\": 300}},
                   {\"not-coordinator\": \"127.0.0.2\"}, {\"person\": ACT}
POST /release      {\"name\": \"lost\"}: calls go on that are held under this name
POST /person       {\"vm\": \"vm-001\", \"act\": ACT}
                   acts: start, shutdown, hard-shutdown, reboot, hard-reboot, pause, unpause, migrate, destroy,
                   remove-claim, {\"clone\": NAME}, {\"rename\": NAME}, {\"set-type\": \"hvm\"}, {\"set-policy\": \"\"},
                   {\"set-order\": \"dc\"}, {\"set-bootloader\": \"pygrub\"}, {\"set-after-reboot\": \"destroy\"},
                   {\"remove-key\": KEY}, {\"set-template\": true}
POST /guest        {\"vm\": \"vm-001\", \"act\": \"power-off\"}
                   acts: power-off, reboot, crash, {\"agent\": \"10.0.0.9\"}, {\"installed\": true}
POST /coordinator  {\"restart\": {\"lose_seconds\": 300}}, {\"move\": \"127.0.0.2\"}, \"expire-sessions\", \"lose-events\"
";

/// Where the control API listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ControlPlace {
    /// This port of 127.0.0.1; 0: any that is free.
    Port(u16),
    /// A unix socket, for its owner alone.
    Socket(PathBuf),
}

impl FromStr for ControlPlace {
    type Err = String;

    /// A number is a port, everything else a path.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err("a port, or the path of a unix socket".to_owned());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return text.parse().map(Self::Port).map_err(|_| "a port is at most 65535".to_owned());
        }
        Ok(Self::Socket(text.into()))
    }
}

/// A control API that listens. Dropping it removes its unix socket.
#[derive(Debug)]
pub struct Control {
    /// Such as `http://127.0.0.1:40124`, or `unix:PATH`.
    pub url: String,
    socket: Option<PathBuf>,
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(path) = &self.socket {
            // It may be gone already, and then all is well.
            drop(std::fs::remove_file(path));
        }
    }
}

/// What the handlers work on.
#[derive(Debug, Clone)]
pub(super) struct Desk {
    pub(super) pool: SharedPool,
    pub(super) faults: SharedFaults,
}

/// Opens the listener and serves until `stop`.
pub(super) async fn open(
    place: &ControlPlace,
    desk: Desk,
    stop: CancellationToken,
) -> Result<Control, SimError> {
    match place {
        ControlPlace::Port(port) => {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
            let failed = |source| SimError::Listen { address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let url = format!("http://{}", listener.local_addr().map_err(failed)?);
            tokio::spawn(async move {
                axum::serve(listener, router(desk)).with_graceful_shutdown(stop.cancelled_owned()).await
            });
            Ok(Control { url, socket: None })
        }
        ControlPlace::Socket(path) => {
            let listener =
                bind_socket(path).map_err(|source| SimError::Socket { path: path.clone(), source })?;
            tokio::spawn(async move {
                axum::serve(listener, router(desk)).with_graceful_shutdown(stop.cancelled_owned()).await
            });
            Ok(Control { url: format!("unix:{}", path.display()), socket: Some(path.clone()) })
        }
    }
}

fn bind_socket(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn router(desk: Desk) -> Router {
    Router::new()
        .route("/", get(|| async { HELP }))
        .route("/calls", get(calls))
        .route("/vms", get(vms))
        .route("/faults", get(tally).post(add_fault))
        .route("/release", post(release))
        .route("/person", post(person))
        .route("/guest", post(guest))
        .route("/coordinator", post(coordinator))
        .fallback(|uri: Uri| async move {
            (StatusCode::NOT_FOUND, format!("there is no {}; GET / lists what there is\n", uri.path()))
        })
        .with_state(desk)
}

/// Why a request is refused; the text is the answer.
struct Refused(String);

impl Refused {
    fn new(text: impl fmt::Display) -> Self {
        Self(text.to_string())
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (StatusCode::BAD_REQUEST, self.0 + "\n").into_response()
    }
}

type Answer = Result<Json<Json_>, Refused>;

fn done() -> Answer {
    Ok(Json(json!({ "done": true })))
}

/// Reads a body as JSON, whatever its content type: curl sends another one by itself.
fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(Refused::new)
}

/// The uuid and truth of the VM that a person means by its uuid or name label.
fn find(pool: &Pool, named: &str) -> Result<VmTruth, Refused> {
    if let Some(truth) = pool.truth(named) {
        return Ok(truth);
    }
    let mut found =
        pool.uuids().into_iter().filter_map(|uuid| pool.truth(&uuid)).filter(|truth| truth.name == named);
    match (found.next(), found.next()) {
        (Some(truth), None) => Ok(truth),
        (Some(_), Some(_)) => Err(Refused(format!("several VMs are called {named}; say the uuid"))),
        (None, _) => Err(Refused(format!("no VM has the uuid or name {named}"))),
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CallFilter {
    #[serde(default)]
    since: usize,
    method: Option<String>,
    vm: Option<String>,
}

async fn calls(
    State(desk): State<Desk>,
    query: Result<Query<CallFilter>, axum::extract::rejection::QueryRejection>,
) -> Answer {
    let Query(filter) = query.map_err(|refused| Refused::new(refused.body_text()))?;
    desk.pool.locked(|pool, _| {
        let vm = filter.vm.as_deref().map(|named| find(pool, named)).transpose()?;
        let log = pool.log();
        let wanted = log.iter().skip(filter.since).filter(|call| {
            let plain = call.method.strip_prefix("Async.").unwrap_or(&call.method);
            filter.method.as_deref().is_none_or(|method| method == plain || method == call.method)
                && vm.as_ref().is_none_or(|vm| call.vm.as_ref() == Some(&vm.uuid))
        });
        let calls: Vec<Json_> = wanted.map(forms::call).collect();
        Ok(Json(json!({ "total": log.len(), "calls": calls })))
    })
}

async fn vms(State(desk): State<Desk>) -> Answer {
    let truths: Vec<VmTruth> =
        desk.pool.locked(|pool, _| pool.uuids().iter().filter_map(|uuid| pool.truth(uuid)).collect());
    Ok(Json(Json_::Array(truths.iter().map(forms::truth).collect())))
}

async fn tally(State(desk): State<Desk>) -> Answer {
    let tally = desk.faults.with(|plan| plan.tally());
    Ok(Json(Json_::Array(tally.iter().map(forms::tally).collect())))
}

async fn add_fault(State(desk): State<Desk>, body: Bytes) -> Answer {
    let fault = read::<forms::NewFault>(&body)?.into_fault().map_err(Refused)?;
    desk.faults.with(|plan| plan.add(fault));
    done()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Name {
    name: String,
}

async fn release(State(desk): State<Desk>, body: Bytes) -> Answer {
    let Name { name } = read(&body)?;
    if !desk.faults.with(|plan| plan.tally().iter().any(|tally| tally.name == name)) {
        return Err(Refused(format!("no fault is called {name}")));
    }
    desk.faults.release(&name);
    done()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnVm<A> {
    vm: String,
    act: A,
}

async fn person(State(desk): State<Desk>, body: Bytes) -> Answer {
    let OnVm { vm, act } = read::<OnVm<forms::Act>>(&body)?;
    desk.pool.with(|pool, now| {
        let truth = find(pool, &vm)?;
        let act = act.into_act(&truth.hvm_boot_params);
        let uuid = pool.person(now, &truth.uuid, &act).map_err(|failure: Failure| Refused::new(failure))?;
        Ok(Json(json!({ "done": true, "vm": uuid })))
    })
}

async fn guest(State(desk): State<Desk>, body: Bytes) -> Answer {
    let OnVm { vm, act } = read::<OnVm<forms::Guest>>(&body)?;
    desk.pool.with(|pool, now| {
        let truth = find(pool, &vm)?;
        let act = match act.into_act() {
            Ok(act) => act,
            Err(found) => {
                pool.set_bootable(&truth.uuid, found);
                return done();
            }
        };
        let domain =
            truth.domain.ok_or_else(|| Refused(format!("{vm} has no guest: it is {}", truth.power_state)))?;
        if pool.guest(now, &truth.uuid, domain.domid, act) {
            done()
        } else {
            Err(Refused(format!("the guest of {vm} cannot do that now")))
        }
    })
}

async fn coordinator(State(desk): State<Desk>, body: Bytes) -> Answer {
    let act = read::<forms::Coordinator>(&body)?;
    desk.pool.with(|pool, now| match act {
        forms::Coordinator::Restart { lose_seconds } => {
            pool.restart_coordinator(now, std::time::Duration::from_secs(lose_seconds));
            done()
        }
        forms::Coordinator::Move(address) if pool.move_coordinator(now, &address) => done(),
        forms::Coordinator::Move(address) => Err(Refused(format!("no member has the address {address}"))),
        forms::Coordinator::ExpireSessions => {
            pool.expire_sessions();
            done()
        }
        forms::Coordinator::LoseEvents => {
            pool.lose_events();
            done()
        }
    })
}

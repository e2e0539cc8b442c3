//! The socket half of the simulated pool: XML-RPC over HTTP/1.1 as xapi serves it, for every member of the pool.
//!
//! Any POST path is XML-RPC. Members listen on one port at different loopback addresses, because HOST_IS_SLAVE
//! names an address and no port. The pool lives in [`SharedPool`]; a driver lets due things happen by the real
//! clock and hands domains that began to run to the body that plays guests. Invariant: nobody holds the pool's lock
//! while waiting for anything.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Body;
use hyper::{
    Method as HttpMethod, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    faults::{Fault, FaultKind, FaultPlan, Tally},
    pool::{DomainStart, Pool, TaskState},
};
use crate::{
    clock::{Clock, SystemClock, Timestamp},
    xen::{Failure, Method, Value, codec},
};

/// Xapi's `http_limit_max_rpc_size`, bytes.
const BODY_LIMIT: usize = 300 << 10;
/// Xapi gathers events this long before it answers event.from.
const EVENT_BATCH: Duration = Duration::from_millis(50);
/// The longest that event.from waits, whatever the caller asks for.
const EVENT_LIMIT: Duration = Duration::from_secs(300);
/// How many starts may wait for the body that plays guests; more are dropped.
const STARTS_LIMIT: usize = 8192;
/// The driver looks at the pool at least this often.
const DRIVER_LIMIT: Duration = Duration::from_secs(3600);
/// How often a port is sought that is free at every member's address.
const PORT_TRIES: u32 = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;

/// How the simulated pool is served.
#[derive(Debug)]
pub struct SimOptions {
    /// One listener each; as in the host records.
    pub addresses: Vec<Ipv4Addr>,
    /// The port; 0: any that is free.
    pub port: u16,
    /// Bind to this device, such as `lo`, so that nothing leaves it.
    pub device: Option<String>,
    /// How long a wrong password is answered late; xapi takes five seconds.
    pub login_delay: Duration,
    /// What goes wrong.
    pub faults: FaultPlan,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            addresses: vec![Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)],
            port: 0,
            device: None,
            login_delay: Duration::from_secs(5),
            faults: FaultPlan::default(),
        }
    }
}

/// The simulated pool cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    /// A listener cannot be opened.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// No address was given.
    #[error("the simulated pool has no address to listen on")]
    NoAddress,
}

/// The pool, shared between the listeners, the driver, guests and people.
#[derive(Debug, Clone)]
pub struct SharedPool {
    pool: Arc<Mutex<Pool>>,
    driver: Arc<Notify>,
    revision: watch::Sender<u64>,
}

impl SharedPool {
    fn new(pool: Pool) -> Self {
        let revision = watch::Sender::new(pool.revision());
        Self { pool: Arc::new(Mutex::new(pool)), driver: Arc::default(), revision }
    }

    /// Does something with the pool at the present instant; the driver and waiting calls see what came of it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Pool, Timestamp) -> T) -> T {
        let answer = self.locked(act);
        self.driver.notify_one();
        answer
    }

    fn locked<T>(&self, act: impl FnOnce(&mut Pool, Timestamp) -> T) -> T {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = act(&mut pool, SystemClock.now());
        let revision = pool.revision();
        drop(pool);
        self.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        answer
    }

    /// Waits until `check` finds what it looks for.
    async fn wait_for<T>(&self, mut check: impl FnMut(&mut Pool, Timestamp) -> Option<T>) -> T {
        let mut revision = self.revision.subscribe();
        loop {
            revision.mark_unchanged();
            if let Some(found) = self.locked(&mut check) {
                return found;
            }
            if revision.changed().await.is_err() {
                std::future::pending::<()>().await; // the sender lives as long as `self`
            }
        }
    }
}

/// A served pool. Dropping it closes the listeners.
#[derive(Debug)]
pub struct SimServer {
    /// Where the first member listens, at first the coordinator.
    pub address: SocketAddr,
    /// Where every member listens.
    pub members: Vec<SocketAddr>,
    /// The pool.
    pub pool: SharedPool,
    /// Domains that began to run; the body that plays guests takes them.
    pub starts: mpsc::Receiver<DomainStart>,
    faults: SharedFaults,
    stop: CancellationToken,
}

impl SimServer {
    /// Opens the listeners and starts the driver. Needs a tokio runtime.
    pub fn start(pool: Pool, options: SimOptions) -> Result<Self, SimError> {
        let listeners = listen(&options)?;
        let members: Vec<SocketAddr> = listeners.iter().map(|(address, _)| *address).collect();
        let address = *members.first().ok_or(SimError::NoAddress)?;
        let pool = SharedPool::new(pool);
        let faults = SharedFaults::new(options.faults);
        let stop = CancellationToken::new();
        for (address, listener) in listeners {
            let member = Member {
                address: address.ip(),
                pool: pool.clone(),
                faults: faults.clone(),
                login_delay: options.login_delay,
            };
            tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, member, stop.clone())));
        }
        let (sender, starts) = mpsc::channel(STARTS_LIMIT);
        tokio::spawn(stop.clone().run_until_cancelled_owned(drive(pool.clone(), sender)));
        Ok(Self { address, members, pool, starts, faults, stop })
    }

    /// Such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Plans another fault; calls count for it from now on.
    pub fn add_fault(&self, fault: Fault) {
        self.faults.with(|plan| plan.add(fault));
    }

    /// Lets the calls go on that are held under this name.
    pub fn release(&self, name: &str) {
        self.faults.release(name);
    }

    /// Planned and fired faults by name.
    pub fn tally(&self) -> Vec<Tally> {
        self.faults.with(|plan| plan.tally())
    }

    /// Waits until the fault of this name has fired that often.
    pub async fn fired(&self, name: &str, times: u32) {
        let reached =
            |plan: &FaultPlan| plan.tally().iter().any(|tally| tally.name == name && tally.fired >= times);
        self.faults.wait_for(reached).await;
    }
}

impl Drop for SimServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// The fault plan, shared between the listeners and whoever watches it.
#[derive(Debug, Clone)]
struct SharedFaults {
    plan: Arc<Mutex<FaultPlan>>,
    changed: watch::Sender<()>,
}

impl SharedFaults {
    fn new(plan: FaultPlan) -> Self {
        Self { plan: Arc::new(Mutex::new(plan)), changed: watch::Sender::new(()) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut FaultPlan) -> T) -> T {
        act(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn decide(&self, now: Timestamp, method: &str, vm: Option<&(String, String)>) -> Option<Fault> {
        let hit = self.with(|plan| plan.decide(now, method, vm));
        if hit.is_some() {
            self.changed.send_replace(());
        }
        hit
    }

    fn release(&self, name: &str) {
        self.with(|plan| plan.release(name));
        self.changed.send_replace(());
    }

    async fn wait_for(&self, check: impl Fn(&FaultPlan) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.with(|plan| check(plan)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// One member of the pool as its listener knows it.
#[derive(Debug, Clone)]
struct Member {
    address: IpAddr,
    pool: SharedPool,
    faults: SharedFaults,
    login_delay: Duration,
}

/// The connection closes without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a planned fault closes the connection")]
struct Closed;

impl Member {
    /// One HTTP request.
    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
        if request.method() != HttpMethod::POST {
            return Ok(page(StatusCode::NOT_FOUND));
        }
        if !request.headers().contains_key(CONTENT_LENGTH) {
            return Ok(page(StatusCode::INTERNAL_SERVER_ERROR)); // xapi cannot read a chunked body
        }
        let Ok(body) = axum::body::to_bytes(Body::new(request.into_body()), BODY_LIMIT).await else {
            return Ok(page(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let Ok((method, params)) = codec::decode_call(&body) else {
            return Ok(page(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let answer = self.answer(&method, &params).await?;
        let body = match &answer {
            Ok(value) => codec::encode_success(value),
            Err(failure) => codec::encode_failure(failure),
        };
        debug!(%method, member = %self.address, refused = answer.err().map(|failure| failure.code), "simulated call");
        let mut response = Response::new(Body::from(body));
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/xml"));
        Ok(response)
    }

    /// One call, with the fault that hits it.
    async fn answer(&self, method: &str, params: &[Value]) -> Result<Result<Value, Failure>, Closed> {
        let coordinator = self.pool.locked(|pool, _| pool.coordinator().to_owned());
        if coordinator != self.address.to_string() {
            return Ok(Err(Failure::new("HOST_IS_SLAVE", &[&coordinator])));
        }
        let (vm, now) = self.pool.locked(|pool, now| (pool.vm_of(params), now));
        let Some(fault) = self.faults.decide(now, method, vm.as_ref()) else {
            return self.carry_out(method, params).await;
        };
        debug!(fault = fault.name, %method, "planned fault");
        match fault.kind {
            FaultKind::LoseBefore => return Err(Closed),
            FaultKind::LoseAfter => {
                drop(self.carry_out(method, params).await?);
                return Err(Closed);
            }
            FaultKind::Fail(failure) => return Ok(Err(failure)),
            FaultKind::Delay(span) => sleep(span).await,
            FaultKind::Hang => std::future::pending::<()>().await,
            FaultKind::Hold => self.faults.wait_for(|plan| plan.is_released(&fault.name)).await,
            FaultKind::HoldReply => {
                let answer = self.carry_out(method, params).await;
                self.faults.wait_for(|plan| plan.is_released(&fault.name)).await;
                return answer;
            }
            FaultKind::ExpireSessions => self.pool.with(|pool, _| pool.expire_sessions()),
            FaultKind::CoordinatorRestart { lose } => {
                self.pool.with(|pool, now| pool.restart_coordinator(now, lose))
            }
            FaultKind::NotCoordinator { address } => {
                self.pool.with(|pool, now| pool.move_coordinator(now, &address));
                return Ok(Err(Failure::new("HOST_IS_SLAVE", &[&address])));
            }
            FaultKind::Person(act) => {
                if let Some((uuid, _)) = vm {
                    // What the person is told does not matter to the call.
                    drop(self.pool.with(|pool, now| pool.person(now, &uuid, &act)));
                }
            }
        }
        self.carry_out(method, params).await
    }

    /// One call, done by the pool; waits where xapi waits.
    async fn carry_out(&self, method: &str, params: &[Value]) -> Result<Result<Value, Failure>, Closed> {
        if Pool::is_slow(method) {
            return self.finish(method, params).await;
        }
        if method == Method::EventFrom.name() {
            self.wait_for_events(params).await;
        }
        let answer = self.pool.with(|pool, now| pool.call(now, method, params));
        if answer.as_ref().is_err_and(|failure| failure.is("SESSION_AUTHENTICATION_FAILED")) {
            sleep(self.login_delay).await;
        }
        Ok(answer)
    }

    /// A slow message without `Async.`: begun as a task, answered when that ends.
    async fn finish(&self, method: &str, params: &[Value]) -> Result<Result<Value, Failure>, Closed> {
        let begun = self.pool.with(|pool, now| pool.call(now, &format!("Async.{method}"), params));
        let task = match begun {
            Ok(task) => task,
            Err(failure) => return Ok(Err(failure)),
        };
        let task = task.as_str().unwrap_or_default();
        let ended = |pool: &mut Pool, now| match pool.take_task(now, task) {
            TaskState::Pending => None,
            TaskState::Ended(outcome) => Some(Ok(outcome.map(|()| Value::void()))),
            TaskState::Gone => Some(Err(Closed)), // the toolstack restarted under the call
        };
        self.pool.wait_for(ended).await
    }

    /// Waits until event.from has something to say, or its time is over.
    async fn wait_for_events(&self, params: &[Value]) {
        let Some(Value::Double(seconds)) = params.get(3) else { return }; // the pool refuses it
        let asked = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
        let session = params.first().and_then(Value::as_str).unwrap_or_default();
        let subscription = params.get(1..).unwrap_or_default();
        let ready =
            |pool: &mut Pool, _| (!pool.has_session(session) || pool.has_events(subscription)).then_some(());
        if timeout(asked.min(EVENT_LIMIT), self.pool.wait_for(ready)).await.is_ok() {
            sleep(EVENT_BATCH).await;
        }
    }
}

/// Lets due things happen by the real clock, and hands out the domains that began to run.
async fn drive(pool: SharedPool, starts: mpsc::Sender<DomainStart>) {
    loop {
        let (begun, due, now) = pool.locked(|pool, now| {
            pool.advance(now);
            (pool.take_starts(), pool.next_due(), now)
        });
        for start in begun {
            // Where nobody plays guests, domains still start and stop.
            if let Err(error) = starts.try_send(start) {
                debug!(%error, "a domain without a guest");
            }
        }
        let pause = due.map_or(DRIVER_LIMIT, |due| due.since(now).min(DRIVER_LIMIT));
        tokio::select! {
            () = tokio::time::sleep_until(Instant::now() + pause) => {}
            () = pool.driver.notified() => {}
        }
    }
}

async fn accept(listener: TcpListener, member: Member, stop: CancellationToken) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(stop.clone().run_until_cancelled_owned(converse(stream, member.clone())));
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                sleep(EVENT_BATCH).await;
            }
        }
    }
}

/// One connection, kept alive as long as the client wants.
async fn converse(stream: TcpStream, member: Member) {
    let service = service_fn(|request| member.serve(request));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

/// Listeners on one port at every address.
fn listen(options: &SimOptions) -> Result<Vec<(SocketAddr, TcpListener)>, SimError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_once(options) {
            Err(SimError::Listen { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse
                    && options.port == 0
                    && tries < PORT_TRIES => {}
            outcome => return outcome,
        }
    }
}

fn listen_once(options: &SimOptions) -> Result<Vec<(SocketAddr, TcpListener)>, SimError> {
    let mut port = options.port;
    let mut listeners = Vec::new();
    for address in &options.addresses {
        let address = SocketAddr::from((*address, port));
        let failed = |source| SimError::Listen { address, source };
        let listener = open(address, options.device.as_deref()).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        port = bound.port();
        listeners.push((bound, listener));
    }
    Ok(listeners)
}

fn open(address: SocketAddr, device: Option<&str>) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What xapi answers to what is no call: HTML.
fn page(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("<html><body><h1>{status}</h1></body></html>")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/html"));
    response
}

//! The boot HTTP shell: accept loop, limits, files and the sink.
//!
//! Invariants: a client has ten seconds for its request's head and thirty for each piece of its body; the number of
//! connections is bounded, in all and per address; an answer file leaves only after the sink has made its fetch
//! durable.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderName, Method, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use futures_util::StreamExt;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncSeekExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::{io::ReaderStream, sync::CancellationToken};
use tower_service::Service;
use tracing::{debug, error, info, warn};

use super::{NOT_FOUND, Part, REPORT_LIMIT, RETRY_AFTER, Route, report_status};
use crate::{
    boot::{
        Answer, Armed, Ask, Gate,
        render::{IPXE_REFUSAL, Templates, Urls, answer_name},
        root::{OpenRootError, RelativePath, Root},
        sink::{Report, ReportAnswer, Seen, Sign, Sink},
    },
    config::HttpConfig,
    machine::MacAddr,
    secret::TokenHash,
};

/// For a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// For the next piece of a report's body.
const BODY_STALL: Duration = Duration::from_secs(30);
/// For unacknowledged bytes, before the kernel drops the connection: a client that was switched off.
const SEND_STALL: Duration = Duration::from_secs(60);
/// For requests in flight when the server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// After an error of accept (no descriptors left).
const PAUSE: Duration = Duration::from_millis(100);
/// Connections at once.
const CONNECTIONS: usize = 4096;
/// Connections at once from one address.
const CONNECTIONS_PER_ADDRESS: usize = 256;
/// Bytes read from a file at once; small chunks cost a thread hop each.
const CHUNK: usize = 1 << 20;
/// Bytes of a request's head.
const HEAD_LIMIT: usize = 64 * 1024;
/// Connections that wait for accept.
const BACKLOG: i32 = 1024;

/// What the boot HTTP server needs of the rest of the program.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The boot gate.
    pub gate: Gate,
    /// Where signs and reports go.
    pub sink: Arc<dyn Sink>,
    /// What is rendered.
    pub templates: Arc<Templates>,
}

/// Why the service cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be had.
    #[error(
        "cannot listen for boot HTTP on {address}; is the port taken, and is the address one of this machine's?"
    )]
    Listen {
        /// The configured address.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// The folder of boot files could not be opened.
    #[error(transparent)]
    Root(#[from] OpenRootError),
}

/// A bound server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    state: AppState,
}

#[derive(Debug, Clone)]
struct AppState {
    shared: Shared,
    root: Root,
    urls: Urls,
}

/// Binds the listener and opens the folder of boot files.
pub fn bind(config: &HttpConfig, shared: Shared) -> Result<Server, BindError> {
    let root = Root::open(&config.root)?;
    let at = |source| BindError::Listen { address: config.listen, source };
    let (listener, address) = listen(config).map_err(at)?;
    let public = match config.public_url.strip_suffix(":0") {
        Some(host) if config.listen.port() == 0 => format!("{host}:{}", address.port()),
        Some(_) | None => config.public_url.clone(),
    };
    info!(%address, url = %public, "boot HTTP listens");
    Ok(Server { listener, address, state: AppState { shared, root, urls: Urls::new(&public) } })
}

fn listen(config: &HttpConfig) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if let Some(device) = &config.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&config.listen.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Server {
    /// Where it listens.
    pub const fn bound(&self) -> SocketAddr {
        self.address
    }

    /// The URLs that clients are told; a port 0 in `public_url` is the bound one.
    pub const fn urls(&self) -> &Urls {
        &self.state.urls
    }

    /// Serves until `stop`; requests in flight then have ten seconds.
    pub async fn run(self, stop: CancellationToken) {
        let router = Router::new().fallback(serve).with_state(self.state);
        let seats = Seats::default();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => match seats.take(peer.ip()) {
                        Some(seat) => {
                            connections.spawn(connection(stream, peer.ip(), router.clone(), stop.clone(), seat));
                        }
                        None => debug!(%peer, "too many connections"),
                    },
                    Err(error) => {
                        warn!(%error, "boot HTTP cannot accept; it tries again");
                        tokio::time::sleep(PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        let drained = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            connections.shutdown().await;
        }
    }
}

/// Who holds connections; a [`Seat`] gives its place back when dropped.
#[derive(Debug, Clone, Default)]
struct Seats(Arc<Mutex<HashMap<IpAddr, usize>>>);

#[derive(Debug)]
struct Seat {
    seats: Seats,
    address: IpAddr,
}

impl Seats {
    fn take(&self, address: IpAddr) -> Option<Seat> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.entry(address).or_default();
        if all >= CONNECTIONS || *own >= CONNECTIONS_PER_ADDRESS {
            return None;
        }
        *own += 1;
        Some(Seat { seats: self.clone(), address })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.address) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.address);
            }
        }
    }
}

/// The peer as the socket says it.
#[derive(Debug, Clone, Copy)]
struct Peer(IpAddr);

async fn connection(stream: TcpStream, peer: IpAddr, router: Router, stop: CancellationToken, seat: Seat) {
    if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(SEND_STALL)) {
        debug!(%peer, %error, "no send time-out");
    }
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        let mut router = router.clone();
        async move { Service::call(&mut router, request.map(Body::new)).await }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(HEAD_LIMIT);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended early");
    }
    drop(seat);
}

async fn serve(State(state): State<AppState>, request: Request) -> Result<Response, Infallible> {
    let (parts, body) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
    let Some(route) = Route::parse(parts.uri.path()) else { return Ok(not_found()) };
    let head = parts.method == Method::HEAD;
    let reads = head || parts.method == Method::GET;
    Ok(match route {
        Route::Report { token, stage } => state.report(&token, stage, &parts, body, peer).await,
        Route::Script(_) | Route::File { .. } | Route::Answer { .. } if !reads => wrong_method("GET, HEAD"),
        Route::Script(mac) => state.script(mac, head, peer),
        Route::File { token, path } => state.file(&token, path, &parts, peer).await,
        Route::Answer { token, name } => state.answer(&token, &name, head, peer).await,
    })
}

impl AppState {
    fn tell(&self, mac: MacAddr, sign: Sign, peer: Option<IpAddr>) {
        if let Some(address) = peer {
            self.shared.gate.met(mac, address);
        }
        self.shared.sink.seen(Seen { mac, sign, peer });
    }

    fn script(&self, mac: MacAddr, head: bool, peer: Option<IpAddr>) -> Response {
        let (script, sign) = match self.shared.gate.answer(Ask::Netboot { mac }) {
            Answer::Unknown => return not_found(),
            Answer::Refused(_) => (IPXE_REFUSAL.to_owned(), Sign::NetbootRefused),
            Answer::Boot(armed) => match self.shared.templates.ipxe_script(&armed, &self.urls) {
                Ok(script) => (script, Sign::Script),
                Err(problem) => return broken(&armed, &problem.to_string()),
            },
        };
        if !head {
            self.tell(mac, sign, peer);
        }
        text(script, head)
    }

    async fn file(&self, token: &str, path: RelativePath, parts: &Parts, peer: Option<IpAddr>) -> Response {
        let Answer::Boot(armed) = self.shared.gate.answer(Ask::File { token }) else { return not_found() };
        let Some(sign) = armed.file_sign(&path) else { return not_found() };
        let root = self.root.clone();
        let name = path.clone();
        let opened = tokio::task::spawn_blocking(move || root.open_file(&name)).await;
        let published = match opened.map_err(io::Error::other).flatten() {
            Ok(published) => published,
            Err(error) => {
                let root = self.root.path().display();
                error!(job = %armed.job, file = path.as_str(), %root, %error, "a boot file cannot be opened");
                return not_found();
            }
        };
        let header = |name: HeaderName| parts.headers.get(name).and_then(|value| value.to_str().ok());
        // Files have no validator of ours, so that a conditional range is answered with the whole file.
        let wanted = header(header::RANGE).filter(|_| !parts.headers.contains_key(header::IF_RANGE));
        let length = published.length;
        let (status, first, count) = match Part::parse(wanted, length) {
            Part::Whole => (StatusCode::OK, 0, length),
            Part::Range { first, length } => (StatusCode::PARTIAL_CONTENT, first, length),
            Part::Unsatisfiable => {
                let headers = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
                return (StatusCode::RANGE_NOT_SATISFIABLE, headers).into_response();
            }
        };
        let body = if parts.method == Method::HEAD {
            Body::empty()
        } else {
            self.tell(armed.mac, sign, peer);
            let mut file = tokio::fs::File::from_std(published.file);
            if let Err(error) = file.seek(io::SeekFrom::Start(first)).await {
                error!(job = %armed.job, file = path.as_str(), %error, "a boot file cannot be read");
                return not_found();
            }
            file.set_max_buf_size(CHUNK);
            Body::from_stream(ReaderStream::with_capacity(file.take(count), CHUNK))
        };
        let mut headers = vec![
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (header::CONTENT_LENGTH, count.to_string()),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
        ];
        if status == StatusCode::PARTIAL_CONTENT {
            headers.push((header::CONTENT_RANGE, format!("bytes {first}-{}/{length}", first + count - 1)));
        }
        with_headers(status, headers, body)
    }

    async fn answer(&self, token: &str, name: &str, head: bool, peer: Option<IpAddr>) -> Response {
        let Answer::Boot(armed) = self.shared.gate.answer(Ask::AnswerFile { token }) else {
            return not_found();
        };
        if answer_name(&armed.files) != Some(name) {
            return not_found();
        }
        if !head {
            match self.shared.sink.answer_fetched(TokenHash::of(token), peer).await {
                Ok(true) => {}
                Ok(false) => return not_found(),
                Err(_) => return later(),
            }
        }
        match self.shared.templates.render_answer(&armed, &self.urls) {
            Ok(Some(answer)) => text(answer, head),
            Ok(None) => not_found(),
            Err(problem) => broken(&armed, &problem.to_string()),
        }
    }

    async fn report(
        &self,
        token: &str,
        stage: String,
        parts: &Parts,
        body: Body,
        peer: Option<IpAddr>,
    ) -> Response {
        let by_get = match parts.method {
            Method::GET => true,
            Method::POST => false,
            _ => return wrong_method("POST"),
        };
        let body = if by_get {
            parts.uri.query().unwrap_or_default().as_bytes().to_vec()
        } else {
            match read_body(parts, body).await {
                Ok(body) => body,
                Err(refusal) => return refusal.into_response(),
            }
        };
        let report = Report { token: TokenHash::of(token), stage, body, peer, by_get };
        let answer = self.shared.sink.report(report).await;
        match answer {
            ReportAnswer::Unknown => not_found(),
            ReportAnswer::WrongMethod => wrong_method("POST"),
            ReportAnswer::Later => later(),
            ReportAnswer::Accepted | ReportAnswer::Already | ReportAnswer::Closed => {
                StatusCode::from_u16(report_status(answer))
                    .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
                    .into_response()
            }
        }
    }
}

/// The body of a report, or the status that refuses it.
async fn read_body(parts: &Parts, body: Body) -> Result<Vec<u8>, StatusCode> {
    let announced = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| length > REPORT_LIMIT as u64)
    {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut pieces = body.into_data_stream();
    let mut body = Vec::new();
    loop {
        match tokio::time::timeout(BODY_STALL, pieces.next()).await {
            Ok(Some(Ok(piece))) if body.len() + piece.len() <= REPORT_LIMIT => body.extend_from_slice(&piece),
            Ok(Some(Ok(_))) => return Err(StatusCode::PAYLOAD_TOO_LARGE),
            Ok(Some(Err(_))) => return Err(StatusCode::BAD_REQUEST),
            Ok(None) => return Ok(body),
            Err(_) => return Err(StatusCode::REQUEST_TIMEOUT),
        }
    }
}

fn not_found() -> Response {
    (StatusCode::NOT_FOUND, NOT_FOUND).into_response()
}

fn later() -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, RETRY_AFTER)]).into_response()
}

fn wrong_method(allowed: &'static str) -> Response {
    (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, allowed)]).into_response()
}

/// What was checked before the job began does not render now: a fault of ours or of a changed template.
fn broken(armed: &Armed, problem: &str) -> Response {
    error!(job = %armed.job, vm = %armed.vm_name, %problem, "what this machine needs cannot be rendered");
    StatusCode::INTERNAL_SERVER_ERROR.into_response()
}

fn text(content: String, head: bool) -> Response {
    let headers = vec![
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::CONTENT_LENGTH, content.len().to_string()),
        (header::CACHE_CONTROL, "no-store".to_owned()),
    ];
    with_headers(StatusCode::OK, headers, if head { Body::empty() } else { Body::from(content) })
}

fn with_headers(status: StatusCode, headers: Vec<(HeaderName, String)>, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    for (name, value) in headers {
        match value.parse() {
            Ok(value) => drop(response.headers_mut().insert(name, value)),
            Err(_) => debug!(%name, "a header value of ours does not parse"),
        }
    }
    response
}

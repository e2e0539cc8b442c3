//! The boot HTTP shell: sockets, accept loop and limits. `server/routes` answers, `server/reply` is what leaves and
//! the access log, `server/wire` moves files, `server/seats` counts connections, `server/renders` keeps renderings,
//! `server/lanes` has the threads.
//!
//! Invariants: every wait for a client has an end ([`Limits`]); the number of connections is bounded, in all and per
//! address, and a stalled client never keeps out one that asks; an answer file leaves only after the sink has made its
//! fetch durable.

mod lanes;
mod renders;
mod reply;
mod routes;
mod seats;
mod wire;

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioTimer;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::{
    lanes::Lanes,
    renders::Renders,
    routes::{Line, Routes},
    seats::{Room, Seats},
    wire::{Outlet, Wire},
};
use crate::{
    boot::{
        Gate,
        render::{Templates, Urls},
        root::{OpenRootError, Root},
        sink::Sink,
        vouch::Vouch,
    },
    config::HttpConfig,
};

/// For requests in flight when the server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// After an error of accept (no descriptors left).
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's head.
const HEAD_LIMIT: usize = 16 * 1024;
/// Lines of a request's head.
const HEADERS_LIMIT: usize = 100;
/// Connections that wait for accept.
const BACKLOG: i32 = 1024;

/// What a client may take of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a request's head, from the connection's beginning or the end of the answer before.
    pub head: Duration,
    /// For the next piece of a report's body.
    pub body_stall: Duration,
    /// For a client that takes nothing of its answer, or acknowledges nothing.
    pub send_stall: Duration,
    /// Connections at once, in all.
    pub connections: usize,
    /// Connections at once, from one address.
    pub connections_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            body_stall: Duration::from_secs(30),
            send_stall: Duration::from_secs(60),
            connections: 2000,
            connections_per_address: 64,
        }
    }
}

/// What the boot HTTP server needs of the rest of the program.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The boot gate.
    pub gate: Gate,
    /// Where signs and reports go.
    pub sink: Arc<dyn Sink>,
    /// What is rendered.
    pub templates: Arc<Templates>,
    /// Where installers are told to log to.
    pub log: Option<SocketAddrV4>,
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
    /// No threads to serve with.
    #[error("cannot start the threads of boot HTTP")]
    Threads(#[source] io::Error),
    /// The folder of boot files could not be opened.
    #[error(transparent)]
    Root(#[from] OpenRootError),
}

/// A bound server.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    lanes: Lanes,
    address: SocketAddr,
    shared: Shared,
    files: Vouch,
    urls: Urls,
    limits: Limits,
}

/// Binds the listener and opens the folder of boot files.
pub fn bind(config: &HttpConfig, shared: Shared) -> Result<Server, BindError> {
    let files = Vouch::new(Root::open(&config.root)?);
    let at = |source| BindError::Listen { address: config.listen, source };
    let (listener, address) = listen(config).map_err(at)?;
    let public = match config.public_url.strip_suffix(":0") {
        Some(host) if config.listen.port() == 0 => format!("{host}:{}", address.port()),
        Some(_) | None => config.public_url.clone(),
    };
    info!(%address, url = %public, "boot HTTP listens");
    let urls = Urls::new(&public).with_log(shared.log);
    let lanes = Lanes::open().map_err(BindError::Threads)?;
    Ok(Server { listener, lanes, address, shared, files, urls, limits: Limits::default() })
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
        &self.urls
    }

    /// The folder of boot files, with what is known of them.
    pub const fn files(&self) -> &Vouch {
        &self.files
    }

    /// The same server with other limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Serves until `stop`; requests in flight then have ten seconds.
    pub async fn run(self, stop: CancellationToken) {
        let limits = self.limits;
        let routes = Arc::new(Routes {
            gate: self.shared.gate,
            sink: self.shared.sink,
            renders: Renders::new(self.shared.templates),
            files: self.files,
            urls: self.urls,
            body_stall: limits.body_stall,
        });
        let seats = Seats::new(Room { for_one: limits.connections_per_address, in_all: limits.connections });
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, peer)) => match seats.take(peer.ip()) {
                        Some(seat) => {
                            let line = Line { peer: peer.ip(), seat: Arc::new(seat), outlet: Outlet::default() };
                            let routes = Arc::clone(&routes);
                            let connection = connection(stream.into_std(), line, routes, limits, stop.clone());
                            self.lanes.spawn(&mut connections, connection);
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

async fn connection(
    stream: io::Result<std::net::TcpStream>,
    line: Line,
    routes: Arc<Routes>,
    limits: Limits,
    stop: CancellationToken,
) {
    let (peer, leave) = (line.peer, line.seat.leave());
    // The lane's own events from here on.
    let stream = match stream.and_then(TcpStream::from_std) {
        Ok(stream) => stream,
        Err(error) => return warn!(%peer, %error, "boot HTTP cannot take the connection"),
    };
    // Without no-delay the end of a small answer waits for the client's acknowledgement of its head.
    let set = stream.set_nodelay(true);
    let set = set.and_then(|()| SockRef::from(&stream).set_tcp_user_timeout(Some(limits.send_stall)));
    if let Err(error) = set {
        debug!(%peer, %error, "the connection has not all of its options");
    }
    let wire = Wire::new(stream, line.outlet.clone(), limits.send_stall);
    let service = hyper::service::service_fn(move |request| {
        let (routes, line) = (Arc::clone(&routes), line.clone());
        async move { routes::serve(&routes, line, request).await }
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head);
    // A client that has said all that it has to say still gets its answer.
    http.half_close(true);
    http.max_buf_size(HEAD_LIMIT).max_headers(HEADERS_LIMIT).writev(true);
    let mut connection = std::pin::pin!(http.serve_connection(wire, service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = leave.cancelled() => return debug!(%peer, "an idle connection made room"),
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "connection ended early");
    }
}

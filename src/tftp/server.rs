//! The TFTP shell: sockets, the transfer engines behind [`Engine`], and what they give out behind [`Library`].
//!
//! Invariants: a reply leaves from the address that was asked; an engine that ends is started again; names come from
//! the published files and from what is rendered, and from nowhere else.
//! `own` is the engine of the house, over the pure `sessions`; `shelf` finds what a name stands for; `content` reads
//! files in pieces; `socket` is the own engine's wire; `async_tftp` is the other engine.

mod async_tftp;
mod content;
mod own;
mod shelf;
mod socket;

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::shelf::Shelf;
pub use self::{
    async_tftp::AsyncTftp,
    content::{Content, OpenFile},
    own::Own,
};
use super::{
    packet::ErrorCode,
    sessions::{Denial, Ended},
    transfer::Rollover,
};
use crate::{
    boot::{
        Gate,
        render::{Templates, Urls},
        root::{OpenRootError, Root},
        sink::Sink,
    },
    config::{TftpConfig, TftpEngine},
};

/// Before an engine that ended is started again: first, and at most.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why a file is not given out. Counted by label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Nothing of that name, or not for this client.
    NotFound,
    /// The file is not what the manifest beside it says.
    Withdrawn,
    /// The disk failed, or a template.
    Failed,
}

impl Refusal {
    /// A stable name for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Withdrawn => "withdrawn",
            Self::Failed => "failed",
        }
    }

    /// What the client is told.
    pub const fn denial(self) -> Denial {
        match self {
            Self::NotFound => Denial { code: ErrorCode::NotFound, text: "File not found" },
            Self::Withdrawn => {
                Denial { code: ErrorCode::Undefined, text: "withdrawn: the file is not what SHA256SUMS says" }
            }
            Self::Failed => Denial { code: ErrorCode::Undefined, text: "the server cannot read this now" },
        }
    }
}

/// What a transfer engine asks for every read request, and tells of every transfer.
pub trait Library: Send + Sync + fmt::Debug {
    /// The content of a name as the client sent it.
    fn open<'a>(&'a self, peer: IpAddr, name: &'a [u8]) -> BoxFuture<'a, Result<Content, Refusal>>;

    /// A transfer is over. Never blocks.
    fn ended(&self, ended: Ended);
}

/// A TFTP implementation: serves one socket until that fails, or until `stop`.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Serves. After `stop` no request is taken, transfers may come to their end, and then it is over.
    fn serve(
        &self,
        socket: UdpSocket,
        library: Arc<dyn Library>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, io::Result<()>>;
}

/// How an engine is to behave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The largest block, in bytes; what fits a frame of the interface bounds it too.
    pub block_size: u16,
    /// The largest window, in blocks.
    pub window: u16,
    /// What follows block 65,535.
    pub rollover: Rollover,
    /// Files leave from the port that was asked.
    pub single_port: bool,
    /// The networks that are answered; none: all.
    pub clients: Vec<Ipv4Net>,
    /// Transfers of one address.
    pub per_client: usize,
    /// Transfers in all.
    pub in_all: usize,
    /// The device that sockets are bound to.
    pub device: Option<String>,
}

/// The engine that the configuration names.
pub fn engine(config: &TftpConfig) -> Arc<dyn Engine> {
    let settings = Settings {
        block_size: config.block_size,
        window: config.window,
        rollover: config.rollover,
        single_port: config.single_port,
        clients: config.clients.clone(),
        per_client: config.transfers_per_client.into(),
        in_all: config.transfers.into(),
        device: config.device.clone(),
    };
    match config.engine {
        TftpEngine::Own => Arc::new(Own(settings)),
        TftpEngine::AsyncTftp => Arc::new(AsyncTftp(settings)),
    }
}

/// What the TFTP server needs of the rest of the program.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The boot gate.
    pub gate: Gate,
    /// Where signs go.
    pub sink: Arc<dyn Sink>,
    /// What is rendered.
    pub templates: Arc<Templates>,
    /// The URLs that stand in kernel arguments.
    pub urls: Urls,
    /// Where kernels and initrds are: the HTTP root.
    pub files: PathBuf,
}

/// Why the service cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// A socket could not be had.
    #[error(
        "cannot listen for TFTP on {address}; is the port taken, and is the address one of this machine's?"
    )]
    Listen {
        /// The configured address.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
    /// A folder of published files could not be opened.
    #[error(transparent)]
    Root(#[from] OpenRootError),
}

/// A bound server.
#[derive(Debug)]
pub struct Server {
    sockets: Vec<(UdpSocket, SocketAddr)>,
    shelf: Arc<dyn Library>,
    engine: Arc<dyn Engine>,
}

/// Binds one socket per address and opens the folders of files.
pub fn bind(config: &TftpConfig, shared: Shared, engine: Arc<dyn Engine>) -> Result<Server, BindError> {
    let published = Root::open(&config.root)?;
    let files = Root::open(&shared.files)?;
    let mut sockets = Vec::new();
    for address in &config.listen {
        let at = |source| BindError::Listen { address: *address, source };
        let (socket, bound) = listen(*address, config.device.as_deref()).map_err(at)?;
        info!(address = %bound, "TFTP listens");
        sockets.push((socket, bound));
    }
    Ok(Server { sockets, shelf: Arc::new(Shelf::new(shared, published, files)), engine })
}

fn listen(address: SocketAddrV4, device: Option<&str>) -> io::Result<(UdpSocket, SocketAddr)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    let bound = socket.local_addr()?;
    Ok((socket, bound))
}

impl Server {
    /// Where it listens, in the order of the configuration.
    pub fn bound(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|(_, address)| *address).collect()
    }

    /// Serves until `stop`, and then until the engines have ended their transfers, which they do within seconds.
    pub async fn run(self, stop: CancellationToken) {
        let mut engines = JoinSet::new();
        for (socket, address) in self.sockets {
            let (shelf, engine) = (Arc::clone(&self.shelf), Arc::clone(&self.engine));
            engines.spawn(supervise(socket, address, shelf, engine, stop.clone()));
        }
        while engines.join_next().await.is_some() {}
    }
}

/// Keeps an engine running on a socket, with a growing pause between starts.
async fn supervise(
    socket: UdpSocket,
    address: SocketAddr,
    shelf: Arc<dyn Library>,
    engine: Arc<dyn Engine>,
    stop: CancellationToken,
) {
    let mut pause = RESTART.0;
    while !stop.is_cancelled() {
        let started = tokio::time::Instant::now();
        let mut running = JoinSet::new(); // aborts the engine when dropped, and contains its panics
        match socket.try_clone() {
            Ok(socket) => drop(running.spawn(engine.serve(socket, Arc::clone(&shelf), stop.clone()))),
            Err(error) => warn!(%address, %error, "TFTP has no descriptor for its socket"),
        }
        if let Some(ended) = running.join_next().await
            && let Err(error) = ended.unwrap_or_else(|error| Err(io::Error::other(error)))
        {
            warn!(%address, %error, "TFTP ended and starts again");
        }
        if started.elapsed() > RESTART.1 {
            pause = RESTART.0; // it ran well for a while
        }
        let _ = tokio::time::timeout(pause, stop.cancelled()).await; // either will do
        pause = (pause * 2).min(RESTART.1);
    }
}

//! The TFTP shell: sockets, the transfer engine behind [`Engine`], and the files behind [`Library`].
//!
//! Invariants: one engine per address, since a reply must leave from the address that was asked; an engine that ends
//! is started again; a transfer reads from memory, so that a slow disk stalls no other transfer. The engine opens one
//! file at a time: opening is one look at the disk, and a read only when the file is not in memory yet.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Read},
    net::{IpAddr, SocketAddr, SocketAddrV4, UdpSocket},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use async_tftp::{
    packet,
    server::{Handler, TftpServerBuilder},
};
use futures_util::future::BoxFuture;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{FILE_LIMIT, Wanted};
use crate::{
    boot::{
        Answer, Ask, Gate,
        render::{PXELINUX_REFUSAL, Templates, Urls},
        root::{OpenRootError, RelativePath, Root},
        sink::{Seen, Sign, Sink},
    },
    config::TftpConfig,
    machine::MacAddr,
};

/// Between two sendings of a block.
const RESEND: Duration = Duration::from_secs(1);
/// Sendings before a client counts as gone: a probe that was broken off is forgotten after six seconds.
const RESENDS: u32 = 5;
/// What fits into an Ethernet frame behind IP, UDP and TFTP headers; larger blocks fragment, and old ROMs cannot
/// put fragments together.
const BLOCK_LIMIT: u16 = 1468;
/// Blocks in flight (RFC 7440): bounds what one small request makes us send.
const WINDOW_LIMIT: u16 = 32;
/// What is kept of files in memory, in bytes.
const MEMORY_LIMIT: u64 = 256 << 20;
/// Before an engine that ended is started again: first, and at most.
const RESTART: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why a file is not given out. Counted by label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Nothing of that name, or not for this client.
    NotFound,
    /// Larger than [`FILE_LIMIT`].
    TooLarge,
    /// The disk failed, or a template.
    Failed,
}

impl Refusal {
    /// A stable name for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::TooLarge => "too_large",
            Self::Failed => "failed",
        }
    }
}

/// What a transfer engine asks for every read request.
pub trait Library: Send + Sync + fmt::Debug {
    /// The content of a name as the client sent it.
    fn open<'a>(&'a self, peer: IpAddr, name: &'a [u8]) -> BoxFuture<'a, Result<Arc<[u8]>, Refusal>>;
}

/// A TFTP implementation: serves one socket until that fails.
pub trait Engine: Send + Sync + fmt::Debug {
    /// Serves; returns what ended it.
    fn serve(&self, socket: UdpSocket, library: Arc<dyn Library>) -> BoxFuture<'static, io::Error>;
}

/// The engine of the crate `async-tftp`.
#[derive(Debug, Clone, Copy, Default)]
pub struct AsyncTftp;

impl Engine for AsyncTftp {
    fn serve(&self, socket: UdpSocket, library: Arc<dyn Library>) -> BoxFuture<'static, io::Error> {
        Box::pin(async move {
            let built = TftpServerBuilder::with_handler(Adapter(library))
                .timeout(RESEND)
                .max_send_retries(RESENDS)
                .block_size_limit(BLOCK_LIMIT)
                .window_size_limit(WINDOW_LIMIT)
                .std_socket(socket);
            let ended = async { built?.build().await?.serve().await };
            match ended.await {
                Ok(()) => io::Error::other("the engine ended by itself"),
                Err(error) => io::Error::other(error),
            }
        })
    }
}

struct Adapter(Arc<dyn Library>);

impl Handler for Adapter {
    type Reader = Reader;
    type Writer = Vec<u8>; // never opened

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(Self::Reader, Option<u64>), packet::Error> {
        match self.0.open(client.ip(), path.as_os_str().as_encoded_bytes()).await {
            Ok(content) => {
                let length = u64::try_from(content.len()).ok();
                Ok((Reader { content, position: 0 }, length))
            }
            Err(refusal) => {
                debug!(peer = %client, file = %path.display(), refusal = refusal.label(), "TFTP file refused");
                Err(packet::Error::FileNotFound)
            }
        }
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
        _size: Option<u64>,
    ) -> Result<Self::Writer, packet::Error> {
        debug!(peer = %client, file = %path.display(), "TFTP write refused");
        Err(packet::Error::IllegalOperation)
    }
}

/// Reads from memory.
struct Reader {
    content: Arc<[u8]>,
    position: usize,
}

impl futures_io::AsyncRead for Reader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let rest = self.content.get(self.position..).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.position += length;
        Poll::Ready(Ok(length))
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
    Ok(Server {
        sockets,
        shelf: Arc::new(Shelf { shared, published, files, memory: Memory::default() }),
        engine,
    })
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

    /// Serves until `stop`, which cuts transfers short: a boot loader asks again.
    pub async fn run(self, stop: CancellationToken) {
        let mut engines = JoinSet::new();
        for (socket, address) in self.sockets {
            engines.spawn(supervise(socket, address, Arc::clone(&self.shelf), Arc::clone(&self.engine)));
        }
        stop.cancelled().await;
        engines.shutdown().await;
    }
}

/// Keeps an engine running on a socket, with a growing pause between starts.
async fn supervise(socket: UdpSocket, address: SocketAddr, shelf: Arc<dyn Library>, engine: Arc<dyn Engine>) {
    let mut pause = RESTART.0;
    loop {
        let started = tokio::time::Instant::now();
        let mut running = JoinSet::new(); // aborts the engine when dropped, and contains its panics
        match socket.try_clone() {
            Ok(socket) => drop(running.spawn(engine.serve(socket, Arc::clone(&shelf)))),
            Err(error) => warn!(%address, %error, "TFTP has no descriptor for its socket"),
        }
        if let Some(ended) = running.join_next().await {
            let error = ended.unwrap_or_else(io::Error::other);
            warn!(%address, %error, "TFTP ended and starts again");
        }
        if started.elapsed() > RESTART.1 {
            pause = RESTART.0; // it ran well for a while
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RESTART.1);
    }
}

/// The files, rendered and published.
#[derive(Debug)]
struct Shelf {
    shared: Shared,
    published: Root,
    files: Root,
    memory: Memory,
}

impl Library for Shelf {
    fn open<'a>(&'a self, peer: IpAddr, name: &'a [u8]) -> BoxFuture<'a, Result<Arc<[u8]>, Refusal>> {
        Box::pin(async move {
            match Wanted::parse(name).ok_or(Refusal::NotFound)? {
                Wanted::Configuration(name) => {
                    let mac = self.shared.gate.configured(&name, peer).ok_or(Refusal::NotFound)?;
                    self.configuration(mac, peer)
                }
                Wanted::File { token, path } => self.file(&token, path, peer).await,
                Wanted::Published(path) => {
                    let content = self.memory.read(&self.published, path).await?;
                    if let Some(mac) = self.shared.gate.who(peer) {
                        self.tell(mac, Sign::Loader, peer);
                    }
                    Ok(content)
                }
            }
        })
    }
}

impl Shelf {
    fn tell(&self, mac: MacAddr, sign: Sign, peer: IpAddr) {
        self.shared.gate.met(mac, peer);
        self.shared.sink.seen(Seen { mac, sign, peer: Some(peer) });
    }

    fn configuration(&self, mac: MacAddr, peer: IpAddr) -> Result<Arc<[u8]>, Refusal> {
        let (text, sign) = match self.shared.gate.answer(Ask::Netboot { mac }) {
            Answer::Unknown => return Err(Refusal::NotFound),
            Answer::Refused(_) => (PXELINUX_REFUSAL.to_owned(), Sign::NetbootRefused),
            Answer::Boot(armed) => {
                let rendered = self.shared.templates.pxelinux_config(&armed, &self.shared.urls);
                let text = rendered.map_err(|problem| {
                    error!(job = %armed.job, vm = %armed.vm_name, %problem, "what this machine needs cannot be rendered");
                    Refusal::Failed
                })?;
                (text, Sign::Script)
            }
        };
        self.tell(mac, sign, peer);
        Ok(text.into_bytes().into())
    }

    async fn file(&self, token: &str, path: RelativePath, peer: IpAddr) -> Result<Arc<[u8]>, Refusal> {
        let Answer::Boot(armed) = self.shared.gate.answer(Ask::File { token }) else {
            return Err(Refusal::NotFound);
        };
        let sign = armed.file_sign(&path).ok_or(Refusal::NotFound)?;
        let content = self.memory.read(&self.files, path).await?;
        self.tell(armed.mac, sign, peer);
        Ok(content)
    }
}

/// Files in memory, as long as they are what the disk has.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<Mutex<Cached>>);

#[derive(Debug, Default)]
struct Cached {
    files: HashMap<(PathBuf, RelativePath), CachedFile>,
    bytes: u64,
    reads: u64,
}

struct CachedFile {
    content: Arc<[u8]>,
    length: u64,
    modified: Option<SystemTime>,
    /// The number of the read that last used it.
    used: u64,
}

impl fmt::Debug for CachedFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFile").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Memory {
    async fn read(&self, root: &Root, path: RelativePath) -> Result<Arc<[u8]>, Refusal> {
        let (memory, root) = (self.clone(), root.clone());
        let read = tokio::task::spawn_blocking(move || memory.read_now(&root, path)).await;
        read.unwrap_or(Err(Refusal::Failed))
    }

    fn read_now(&self, root: &Root, path: RelativePath) -> Result<Arc<[u8]>, Refusal> {
        let mut published = root.open_file(&path).map_err(|error| {
            debug!(file = path.as_str(), %error, "TFTP file not opened");
            Refusal::NotFound
        })?;
        let key = (root.path().to_owned(), path);
        let (length, modified) = (published.length, published.modified);
        if let Some(content) = self.lock().find(&key, length, modified) {
            return Ok(content);
        }
        if length > FILE_LIMIT {
            warn!(file = key.1.as_str(), length, limit = FILE_LIMIT, "too large for TFTP; boot it by HTTP");
            return Err(Refusal::TooLarge);
        }
        let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        if let Err(error) = published.file.by_ref().take(FILE_LIMIT).read_to_end(&mut content) {
            warn!(file = key.1.as_str(), %error, "TFTP file cannot be read");
            return Err(Refusal::Failed);
        }
        let content: Arc<[u8]> = content.into();
        self.lock().keep(key, Arc::clone(&content), length, modified);
        Ok(content)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cached {
    fn find(
        &mut self,
        key: &(PathBuf, RelativePath),
        length: u64,
        modified: Option<SystemTime>,
    ) -> Option<Arc<[u8]>> {
        self.reads += 1;
        let file = self.files.get_mut(key)?;
        file.used = self.reads;
        (file.length == length && file.modified == modified && modified.is_some())
            .then(|| Arc::clone(&file.content))
    }

    /// Keeps a file, and lets those go that were not asked for the longest.
    fn keep(
        &mut self,
        key: (PathBuf, RelativePath),
        content: Arc<[u8]>,
        length: u64,
        modified: Option<SystemTime>,
    ) {
        self.drop_file(&key);
        while self.bytes + length > MEMORY_LIMIT {
            let oldest = self.files.iter().min_by_key(|(_, file)| file.used).map(|(key, _)| key.clone());
            match oldest {
                Some(oldest) => self.drop_file(&oldest),
                None => break,
            }
        }
        self.bytes += length;
        self.files.insert(key, CachedFile { content, length, modified, used: self.reads });
    }

    fn drop_file(&mut self, key: &(PathBuf, RelativePath)) {
        if let Some(file) = self.files.remove(key) {
            self.bytes -= file.length;
        }
    }
}

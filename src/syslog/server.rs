//! The socket and the files of the syslog receiver: `DIR/MAC.log`, and the one before it as `MAC.log.1`. A shell.
//!
//! Invariant: a slow disk delays lines and nothing else; what the kernel cannot hold meanwhile is lost, as UDP has it.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Write},
    net::{SocketAddr, SocketAddrV4},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Counts, Intake, Message, parse};
use crate::{
    boot::{
        Gate,
        sink::{Noted, Notice, Sink},
    },
    clock::Clock,
    config::SyslogConfig,
    machine::MacAddr,
};

/// Bytes of a datagram that are read.
const DATAGRAM: usize = 8192;
/// Datagrams that are filed in one go.
const BATCH: usize = 256;

/// What the receiver needs of the rest of the program.
#[derive(Debug, Clone)]
pub struct Shared {
    /// Who has which address.
    pub gate: Gate,
    /// Where lines are noted, beside their file.
    pub sink: Arc<dyn Sink>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Where the files are.
    pub folder: PathBuf,
}

/// Why the receiver cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be had.
    #[error(
        "cannot listen for syslog on {address}; is the port taken, and is the address one of this machine's?"
    )]
    Listen {
        /// The configured address.
        address: SocketAddrV4,
        /// Why.
        source: io::Error,
    },
}

/// Where what came of all datagrams can be read.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Counts>>);

impl Board {
    /// As it is now.
    pub fn read(&self) -> Counts {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A bound receiver.
#[derive(Debug)]
pub struct Server {
    socket: UdpSocket,
    address: SocketAddrV4,
    shared: Shared,
    file_size: u64,
    board: Board,
}

/// Binds the socket. The folder is made with the first line.
pub fn bind(config: &SyslogConfig, shared: Shared) -> Result<Server, BindError> {
    let (socket, address) =
        listen(config).map_err(|source| BindError::Listen { address: config.listen, source })?;
    info!(%address, folder = %shared.folder.display(), "syslog listens");
    let file_size = u64::from(config.file_size);
    Ok(Server { socket, address, shared, file_size, board: Board::default() })
}

fn listen(config: &SyslogConfig) -> io::Result<(UdpSocket, SocketAddrV4)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    if let Some(device) = &config.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&config.listen.into())?;
    let socket = UdpSocket::from_std(socket.into())?;
    let port = socket.local_addr()?.port();
    Ok((socket, SocketAddrV4::new(*config.listen.ip(), port)))
}

impl Server {
    /// Where it listens.
    pub const fn bound(&self) -> SocketAddrV4 {
        self.address
    }

    /// What came of all datagrams.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Files what comes until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut intake = Intake::new(self.shared.clock.now());
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return,
                received = self.socket.recv_from(&mut buffer) => received,
            };
            let mut lines: BTreeMap<MacAddr, String> = BTreeMap::new();
            let mut received = first;
            for _ in 0..BATCH {
                match received {
                    Ok((length, peer)) => {
                        self.take(&mut intake, buffer.get(..length).unwrap_or_default(), peer, &mut lines)
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => {
                        debug!(%error, "syslog could not read");
                        break;
                    }
                }
                received = self.socket.try_recv_from(&mut buffer);
            }
            *self.board.0.lock().unwrap_or_else(PoisonError::into_inner) = intake.counts();
            self.file(lines).await;
        }
    }

    fn take(
        &self,
        intake: &mut Intake,
        datagram: &[u8],
        peer: SocketAddr,
        lines: &mut BTreeMap<MacAddr, String>,
    ) {
        match intake.take(self.shared.gate.who(peer.ip()), datagram, self.shared.clock.now()) {
            Ok((mac, line)) => {
                lines.entry(mac).or_default().push_str(&line);
                if let Some(Message { severity, text }) = parse(datagram) {
                    let what = Notice::Line { severity, text };
                    self.shared.sink.noted(Noted { mac, peer: Some(peer.ip()), what });
                }
            }
            Err(dropped) => debug!(%peer, ?dropped, "a syslog message is dropped"),
        }
    }

    async fn file(&self, lines: BTreeMap<MacAddr, String>) {
        if lines.is_empty() {
            return;
        }
        let (folder, size) = (self.shared.folder.clone(), self.file_size);
        let filed = tokio::task::spawn_blocking(move || {
            lines.iter().try_for_each(|(mac, lines)| append(&folder, *mac, lines, size))
        });
        match filed.await.map_err(io::Error::other).flatten() {
            Ok(()) => {}
            Err(error) => {
                warn!(%error, folder = %self.shared.folder.display(), "lines of an installer could not be filed")
            }
        }
    }
}

/// The file of a machine's lines.
pub fn file_of(folder: &Path, mac: MacAddr) -> PathBuf {
    folder.join(format!("{mac}.log"))
}

/// The one before it.
pub fn earlier_file_of(folder: &Path, mac: MacAddr) -> PathBuf {
    folder.join(format!("{mac}.log.1"))
}

fn append(folder: &Path, mac: MacAddr, lines: &str, size: u64) -> io::Result<()> {
    let path = file_of(folder, mac);
    let length = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(_) => {
            fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
            0
        }
    };
    if length > 0 && length.saturating_add(lines.len() as u64) > size {
        fs::rename(&path, earlier_file_of(folder, mac))?;
    }
    fs::OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?.write_all(lines.as_bytes())
}

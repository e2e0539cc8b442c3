//! The DHCP shell: the sockets of one interface and the loop that answers what comes in there.
//!
//! Invariant: the loop that answers packets never waits for the store or for a socket to send. Leases are written by
//! a task of their own, many in one commit; an ACK that needs a new lease leaves when its commit has returned, and
//! meanwhile every other client is served from memory. `sockets` has the sockets, `writing` that task.

mod sockets;
mod writing;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{net::UdpSocket, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Action, Fullness, Neighbour, Reply, Request, Service, Settings, notice};
use crate::{
    boot::{
        Ask, Gate,
        sink::{Noted, Notice, Seen, Sink},
    },
    clock::Clock,
    config::{DhcpInterface, DhcpMode},
    machine::MacAddr,
    metrics::DhcpDid,
    store::{Store, StoreError},
};
pub use sockets::Bound;
use sockets::{PortError, Sockets};
use writing::{OUTCOMES_WAITING, WRITES_WAITING, Write, Written};

/// The largest datagram that is looked at; Ethernet carries no larger DHCP message.
const DATAGRAM_LIMIT: usize = 2048;
/// Packets that are taken in a row before outcomes of commits and the other sockets are looked at.
const PACKETS_TOGETHER: usize = 64;
/// How long the last writes may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// After an error of a socket (its interface is down), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked whether the interface went away and came back.
const LOOK: Duration = Duration::from_secs(5);

/// What a DHCP server needs of the rest of the program.
#[derive(Debug, Clone)]
pub struct Shared {
    /// The boot gate.
    pub gate: Gate,
    /// Where signs go.
    pub sink: Arc<dyn Sink>,
    /// Where leases are kept.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// What clients are told to boot.
#[derive(Debug, Clone, Default)]
pub struct BootServices {
    /// Base of the boot script's URL; `None`: no boot HTTP.
    pub url: Option<String>,
    /// The loader for BIOS ROMs by TFTP; `None`: no TFTP.
    pub loader: Option<String>,
}

/// Why the service cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The socket could not be had.
    #[error(
        "cannot listen for DHCP on {interface} port {port}; is another DHCP server running there, and may this user bind that port?"
    )]
    Socket {
        /// The device.
        interface: String,
        /// The UDP port.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The leases could not be read.
    #[error("cannot read the leases for {interface}")]
    Leases {
        /// The device.
        interface: String,
        /// Why.
        source: StoreError,
    },
}

/// What a person should know of one interface's DHCP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Status {
    /// The device.
    pub interface: String,
    /// `proxy` or `server`.
    pub mode: String,
    /// Clients without an address are sent frames; `false`: broadcasts.
    pub sends_frames: bool,
    /// Other DHCP servers that were heard.
    pub neighbours: Vec<Neighbour>,
    /// Pools of which nine tenths are taken.
    pub nearly_full: Vec<Fullness>,
}

/// The status of a server that runs, and how often it did what.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Status>>, Arc<Mutex<BTreeMap<DhcpDid, u64>>>);

impl Board {
    /// How it is now.
    pub fn read(&self) -> Status {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What was done so far, and how often.
    pub fn tally(&self) -> Vec<(DhcpDid, u64)> {
        let tally = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        tally.iter().map(|(did, times)| (*did, *times)).collect()
    }

    fn count(&self, did: DhcpDid) {
        let mut tally = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        let times = tally.entry(did).or_insert(0);
        *times = times.saturating_add(1);
    }

    fn write(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// A bound server of one interface.
#[derive(Debug)]
pub struct Server {
    service: Service,
    shared: Shared,
    interface: DhcpInterface,
    sockets: Sockets,
    bound: Bound,
    board: Board,
}

/// Binds the sockets of an interface and reads its leases.
pub async fn bind(interface: DhcpInterface, boot: BootServices, shared: Shared) -> Result<Server, BindError> {
    let name = || interface.interface.clone();
    let is_proxy = interface.mode == DhcpMode::Proxy;
    let opened = Sockets::open(&interface, is_proxy);
    let (sockets, bound) =
        opened.map_err(|PortError { port, source }| BindError::Socket { interface: name(), port, source })?;
    let leases = if is_proxy {
        Vec::new()
    } else {
        let read = writing::read(&*shared.store).await;
        read.map_err(|source| BindError::Leases { interface: name(), source })?
    };
    let settings = Settings {
        address: interface.address,
        mode: interface.mode.clone(),
        relays: interface.relays.clone(),
        boot_url: boot.url,
        loader: boot.loader,
        loaders: interface.loaders.clone(),
        pxelinux: interface.pxelinux.clone(),
    };
    let service = Service::new(settings, leases);
    info!(interface = %interface.interface, server = %bound.server, "DHCP listens");
    let board = Board::default();
    board.write(|status| {
        status.interface = interface.interface.clone();
        status.mode = if is_proxy { "proxy" } else { "server" }.to_owned();
        status.sends_frames = sockets.sends_frames();
    });
    Ok(Server { service, shared, interface, sockets, bound, board })
}

/// Which port a packet came to.
#[derive(Debug, Clone, Copy)]
enum Port {
    Server,
    Proxy,
}

impl Server {
    /// Where it listens: the interface's address with the ports that were bound.
    pub const fn bound(&self) -> Bound {
        self.bound
    }

    /// Where its status can be read while it runs.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Serves until `stop`; then the last lease writes get five seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let (writes, queue) = mpsc::channel(WRITES_WAITING);
        let (outcomes, mut written) = mpsc::channel(OUTCOMES_WAITING);
        let mut writer = tokio::spawn(writing::write(Arc::clone(&self.shared.store), queue, outcomes));
        let mut overheard = Vec::new();
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            // In this order: ACKs that are due come before new work.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(outcome) = written.recv() => self.written(&outcome, &writes),
                ready = self.sockets.server.readable() => self.read(ready, Port::Server, &writes).await,
                ready = readable(self.sockets.proxy.as_ref()) => self.read(ready, Port::Proxy, &writes).await,
                from = self.sockets.overhear(&mut overheard) => match from {
                    Ok(from) => {
                        let actions = self.service.overhear(&overheard, from, self.shared.clock.now());
                        self.act(actions, None, &writes);
                    }
                    Err(error) => self.pause(&error).await,
                },
                _ = look.tick() => self.reopen(),
            }
        }
        drop(writes);
        drop(written);
        if tokio::time::timeout(DRAIN, &mut writer).await.is_err() {
            warn!(interface = %self.interface.interface, "the last leases were not stored in time");
            writer.abort();
        }
    }

    async fn pause(&self, error: &io::Error) {
        debug!(interface = %self.interface.interface, %error, "DHCP cannot receive");
        tokio::time::sleep(PAUSE).await;
    }

    /// A device that was removed and made again is another one, and our sockets stay with the old one.
    fn reopen(&mut self) {
        if !self.sockets.is_stale() {
            return;
        }
        let interface = DhcpInterface {
            server_port: self.bound.server.port(),
            proxy_port: self.bound.proxy.map_or(self.interface.proxy_port, |proxy| proxy.port()),
            ..self.interface.clone()
        };
        match Sockets::open(&interface, self.bound.proxy.is_some()) {
            Ok((sockets, _)) => {
                info!(interface = %interface.interface, "the interface is a new one; DHCP listens there again");
                self.board.write(|status| status.sends_frames = sockets.sends_frames());
                self.sockets = sockets;
            }
            Err(PortError { port, source }) => {
                debug!(interface = %interface.interface, port, error = %source, "DHCP cannot listen yet");
            }
        }
    }

    fn written(&mut self, outcome: &Written, writes: &mpsc::Sender<Write>) {
        for lease in &outcome.leases {
            if outcome.stored {
                let actions = self.service.committed(lease);
                if actions.iter().any(|action| matches!(action, Action::Send(_))) {
                    self.note(lease.mac, None, Notice::Leased(lease.address));
                }
                self.act(actions, Some(lease.mac), writes);
            } else {
                self.service.not_committed(lease);
            }
        }
    }

    /// Takes what waits at a port, up to a number.
    async fn read(&mut self, ready: io::Result<()>, port: Port, writes: &mpsc::Sender<Write>) {
        if let Err(error) = ready {
            return self.pause(&error).await;
        }
        let mut packet = [0; DATAGRAM_LIMIT];
        for _ in 0..PACKETS_TOGETHER {
            let socket = match port {
                Port::Server => Some(&self.sockets.server),
                Port::Proxy => self.sockets.proxy.as_ref(),
            };
            let Some(socket) = socket else { return };
            match socket.try_recv_from(&mut packet) {
                Ok((length, SocketAddr::V4(from))) => {
                    self.packet(packet.get(..length).unwrap_or_default(), port, from, writes);
                }
                Ok((_, SocketAddr::V6(_))) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return self.pause(&error).await,
            }
        }
    }

    fn packet(&mut self, bytes: &[u8], port: Port, from: SocketAddrV4, writes: &mpsc::Sender<Write>) {
        let request = match Request::parse(bytes) {
            Ok(request) => request,
            Err(refusal) => {
                self.board.count(DhcpDid::Refused(refusal.label()));
                debug!(peer = %from, refusal = refusal.label(), "not a DHCP request");
                return;
            }
        };
        debug!(mac = %request.mac, xid = request.xid, message = ?request.message, client = ?request.client, ?port, peer = %from, "DHCP packet");
        let answer = self.shared.gate.answer(Ask::Netboot { mac: request.mac });
        let actions = match port {
            Port::Server => self.service.handle(&request, &answer, self.shared.clock.now()),
            Port::Proxy => self.service.handle_boot_server(&request, &answer, from),
        };
        self.note(request.mac, Some(from), Notice::Packet(notice::packet(&request, &actions)));
        self.act(actions, Some(request.mac), writes);
    }

    fn note(&self, mac: MacAddr, from: Option<SocketAddrV4>, what: Notice) {
        let peer = from.map(|from| *from.ip()).filter(|address| !address.is_unspecified());
        self.shared.sink.noted(Noted { mac, peer: peer.map(IpAddr::V4), what });
    }

    /// `mac`: the client that the actions are about, where they are about one.
    fn act(&mut self, actions: Vec<Action>, mac: Option<MacAddr>, writes: &mpsc::Sender<Write>) {
        let mac = mac.unwrap_or(super::frame::EVERYBODY);
        let interface = &self.interface.interface;
        let mut address = None;
        for action in actions {
            match action {
                Action::Send(reply) => {
                    self.board.count(DhcpDid::Replied(reply.kind.label()));
                    send(&self.sockets, &reply, mac);
                }
                Action::Commit(lease) => {
                    if writes.try_send(Write::Put(lease)).is_err() {
                        debug!(%mac, "too many leases wait for the store; the client must ask again");
                        self.service.not_committed(&lease);
                    }
                }
                Action::Forget(address) => {
                    if writes.try_send(Write::Remove(address)).is_err() {
                        debug!(%mac, "too many leases wait for the store; this one stays in it until it ends");
                    }
                }
                Action::Tell(sign) => self.shared.sink.seen(Seen { mac, sign, peer: address }),
                Action::Met(met) => {
                    address = Some(IpAddr::V4(met));
                    self.shared.gate.met(mac, IpAddr::V4(met));
                }
                Action::Hint(hint) => info!(%mac, %interface, "{hint}"),
                Action::Fullness(fullness) => show_fullness(&self.board, interface, fullness),
                Action::Neighbour(neighbour) => {
                    let all = self.service.neighbours().to_vec();
                    self.board.write(|status| status.neighbours = all);
                    show_neighbour(interface, &neighbour);
                }
                Action::Ignore(why) => {
                    self.board.count(DhcpDid::Ignored(why.label()));
                    debug!(%mac, why = why.label(), "DHCP packet ignored");
                }
            }
        }
    }
}

fn send(sockets: &Sockets, reply: &Reply, mac: MacAddr) {
    match sockets.send(reply.to, &reply.bytes) {
        Ok(()) => debug!(%mac, kind = reply.kind.label(), to = ?reply.to, "DHCP reply"),
        Err(error) => debug!(%mac, kind = reply.kind.label(), to = ?reply.to, %error, "DHCP reply not sent"),
    }
}

fn show_fullness(board: &Board, interface: &str, fullness: Fullness) {
    let Fullness { range: (first, last), taken, size, alarm } = fullness;
    if alarm {
        warn!(%interface, %first, %last, taken, size, "nine tenths of the addresses are taken: widen the range or shorten the lease");
    } else {
        info!(%interface, %first, %last, taken, size, "there are addresses again");
    }
    board.write(|status| {
        let others = status.nearly_full.iter().filter(|other| other.range != fullness.range).copied();
        let all: BTreeMap<_, _> =
            others.chain(alarm.then_some(fullness)).map(|full| (full.range, full)).collect();
        status.nearly_full = all.into_values().collect();
    });
}

fn show_neighbour(interface: &str, neighbour: &Neighbour) {
    let Neighbour { server, leases, boots, in_the_way, since: _, last: _ } = neighbour;
    if *in_the_way {
        warn!(%interface, %server, leases, boots, "another DHCP server answers on this network: machines may boot from it instead");
    } else {
        info!(%interface, %server, leases, boots, "the DHCP server beside us");
    }
}

async fn readable(socket: Option<&UdpSocket>) -> io::Result<()> {
    match socket {
        Some(socket) => socket.readable().await,
        None => std::future::pending().await,
    }
}

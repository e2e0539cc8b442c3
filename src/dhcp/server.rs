//! The DHCP shell: one socket per interface (and one for the boot server port in proxy mode), bound to its device.
//!
//! Invariant: the loop that answers packets never waits for the store. Leases are written by a task of their own,
//! many in one commit; an ACK that needs a new lease leaves when its commit has returned, and meanwhile every other
//! client is served from memory.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Action, Destination, Lease, Reply, Request, SERVER_PORT, Service, Settings};
use crate::{
    boot::{
        Ask, Gate,
        sink::{Seen, Sink},
    },
    clock::Clock,
    config::{DhcpInterface, DhcpMode},
    machine::MacAddr,
    store::{Batch, Store, StoreError},
};

/// Where leases are in the store.
const LEASES: &str = "leases/";
/// The largest datagram that is looked at; Ethernet carries no larger DHCP message.
const DATAGRAM_LIMIT: usize = 2048;
/// Lease writes that may wait for the store; beyond it clients get no answer and ask again.
const WRITES_WAITING: usize = 1024;
/// Lease writes in one commit.
const WRITES_TOGETHER: usize = 128;
/// How long the last writes may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// After an error of a socket (its interface is down), so that the loop does not spin.
const PAUSE: Duration = Duration::from_millis(200);

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

/// Where a server listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The DHCP port.
    pub server: SocketAddrV4,
    /// The boot server port, in proxy mode.
    pub proxy: Option<SocketAddrV4>,
}

/// A bound server of one interface.
#[derive(Debug)]
pub struct Server {
    service: Service,
    shared: Shared,
    interface: DhcpInterface,
    socket: UdpSocket,
    proxy: Option<UdpSocket>,
    bound: Bound,
}

/// Binds the sockets of an interface and reads its leases.
pub async fn bind(interface: DhcpInterface, boot: BootServices, shared: Shared) -> Result<Server, BindError> {
    let (socket, server) = listen(&interface, interface.server_port)?;
    let mut bound = Bound { server, proxy: None };
    let (mut proxy, mut leases) = (None, Vec::new());
    match interface.mode {
        DhcpMode::Proxy => {
            let (socket, address) = listen(&interface, interface.proxy_port)?;
            bound.proxy = Some(address);
            proxy = Some(socket);
        }
        DhcpMode::Server(_) => {
            let read = read_leases(&*shared.store).await;
            leases =
                read.map_err(|source| BindError::Leases { interface: interface.interface.clone(), source })?;
        }
    }
    let settings = Settings {
        address: interface.address,
        mode: interface.mode.clone(),
        boot_url: boot.url,
        loader: boot.loader,
    };
    let service = Service::new(settings, leases);
    info!(interface = %interface.interface, server = %bound.server, "DHCP listens");
    Ok(Server { service, shared, interface, socket, proxy, bound })
}

fn listen(interface: &DhcpInterface, port: u16) -> Result<(UdpSocket, SocketAddrV4), BindError> {
    let at = |source| BindError::Socket { interface: interface.interface.clone(), port, source };
    let open = || -> io::Result<(UdpSocket, SocketAddrV4)> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_reuse_address(true)?;
        socket.set_broadcast(true)?;
        // Before bind, so that two interfaces can have port 67 each; unprivileged since Linux 5.7.
        socket.bind_device(Some(interface.interface.as_bytes()))?;
        socket.set_nonblocking(true)?;
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into())?;
        let port = socket.local_addr()?.as_socket_ipv4().map_or(port, |bound| bound.port());
        Ok((UdpSocket::from_std(socket.into())?, SocketAddrV4::new(interface.address, port)))
    };
    open().map_err(at)
}

async fn read_leases(store: &dyn Store) -> Result<Vec<Lease>, StoreError> {
    let entries = store.list(LEASES).await?;
    let mut leases = Vec::with_capacity(entries.len());
    for entry in entries {
        match serde_json::from_slice(&entry.value) {
            Ok(lease) => leases.push(lease),
            // A lease is no reason to stay down: the client keeps its address or gets another one.
            Err(error) => warn!(key = %entry.key, %error, "a stored lease does not parse and is not used"),
        }
    }
    Ok(leases)
}

impl Server {
    /// Where it listens: the interface's address with the ports that were bound.
    pub const fn bound(&self) -> Bound {
        self.bound
    }

    /// Serves until `stop`; then the last lease writes get five seconds.
    pub async fn run(mut self, stop: CancellationToken) {
        let (writes, queue) = mpsc::channel(WRITES_WAITING);
        let (outcomes, mut written) = mpsc::channel(WRITES_WAITING);
        let mut writer = tokio::spawn(write_leases(Arc::clone(&self.shared.store), queue, outcomes));
        let (mut packet, mut proxy_packet) = ([0; DATAGRAM_LIMIT], [0; DATAGRAM_LIMIT]);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                Some((lease, stored)) = written.recv() => {
                    let actions = if stored {
                        self.service.committed(&lease)
                    } else {
                        self.service.not_committed(&lease);
                        Vec::new()
                    };
                    self.act(actions, lease.mac, &writes).await;
                }
                received = self.socket.recv_from(&mut packet) => match received {
                    Ok((length, from)) => {
                        self.packet(packet.get(..length).unwrap_or_default(), from, &writes).await;
                    }
                    Err(error) => self.pause(&error).await,
                },
                received = receive(self.proxy.as_ref(), &mut proxy_packet) => match received {
                    Ok((length, from)) => {
                        self.proxy_packet(proxy_packet.get(..length).unwrap_or_default(), from, &writes).await;
                    }
                    Err(error) => self.pause(&error).await,
                },
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

    async fn packet(&mut self, bytes: &[u8], from: SocketAddr, writes: &mpsc::Sender<Write>) {
        match Request::parse(bytes) {
            Ok(request) => {
                debug!(mac = %request.mac, xid = request.xid, message = ?request.message, client = ?request.client, peer = %from, "DHCP packet");
                let answer = self.shared.gate.answer(Ask::Netboot { mac: request.mac });
                let actions = self.service.handle(&request, &answer, self.shared.clock.now());
                self.act(actions, request.mac, writes).await;
            }
            Err(refusal) => debug!(peer = %from, refusal = refusal.label(), "not a DHCP request"),
        }
    }

    async fn proxy_packet(&mut self, bytes: &[u8], from: SocketAddr, writes: &mpsc::Sender<Write>) {
        let SocketAddr::V4(from) = from else { return };
        match Request::parse(bytes) {
            Ok(request) => {
                let answer = self.shared.gate.answer(Ask::Netboot { mac: request.mac });
                let actions = self.service.handle_boot_server(&request, &answer, from);
                self.act(actions, request.mac, writes).await;
            }
            Err(refusal) => debug!(peer = %from, refusal = refusal.label(), "not a boot server request"),
        }
    }

    async fn act(&mut self, actions: Vec<Action>, mac: MacAddr, writes: &mpsc::Sender<Write>) {
        let mut address = None;
        for action in actions {
            match action {
                Action::Send(reply) => self.send(&reply, mac).await,
                Action::Commit(lease) => {
                    if writes.try_send(Write::Put(lease)).is_err() {
                        debug!(%mac, "too many leases wait for the store; the client must ask again");
                        self.service.not_committed(&lease);
                    }
                }
                Action::Forget(mac) => {
                    if writes.try_send(Write::Remove(mac)).is_err() {
                        debug!(%mac, "too many leases wait for the store; this one stays in it until it ends");
                    }
                }
                Action::Tell(sign) => self.shared.sink.seen(Seen { mac, sign, peer: address }),
                Action::Met(met) => {
                    address = Some(IpAddr::V4(met));
                    self.shared.gate.met(mac, IpAddr::V4(met));
                }
                Action::Ignore(why) => debug!(%mac, why = why.label(), "DHCP packet ignored"),
            }
        }
    }

    async fn send(&self, reply: &Reply, mac: MacAddr) {
        let client_port = self.interface.client_port;
        let to = match reply.to {
            Destination::Broadcast => {
                SocketAddrV4::new(broadcast_address(&self.interface.interface), client_port)
            }
            Destination::Client(address) => SocketAddrV4::new(address, client_port),
            Destination::Relay(address) => SocketAddrV4::new(address, self.relay_port()),
            Destination::Unicast(to) => to,
        };
        // The answer to the boot server port leaves from it: a client may look at the source port.
        let from_proxy = matches!(reply.to, Destination::Unicast(_));
        let socket = self.proxy.as_ref().filter(|_| from_proxy).unwrap_or(&self.socket);
        match socket.send_to(&reply.bytes, to).await {
            Ok(_) => debug!(%mac, kind = reply.kind.label(), %to, "DHCP reply"),
            Err(error) => debug!(%mac, kind = reply.kind.label(), %to, %error, "DHCP reply not sent"),
        }
    }

    /// Relays listen where servers do; a test's relay where the test's server does.
    const fn relay_port(&self) -> u16 {
        if self.interface.server_port == 0 { SERVER_PORT } else { self.interface.server_port }
    }
}

/// The limited broadcast; on loopback its own, which leaves from 127.0.0.1 instead of a foreign interface's address.
fn broadcast_address(interface: &str) -> Ipv4Addr {
    if interface == "lo" { Ipv4Addr::new(127, 255, 255, 255) } else { Ipv4Addr::BROADCAST }
}

async fn receive(socket: Option<&UdpSocket>, packet: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
    match socket {
        Some(socket) => socket.recv_from(packet).await,
        None => std::future::pending().await,
    }
}

/// A change of the stored leases.
#[derive(Debug, Clone, Copy)]
enum Write {
    Put(Lease),
    Remove(MacAddr),
}

/// Writes leases in the order in which they were handed over, as many as wait in one commit.
async fn write_leases(
    store: Arc<dyn Store>,
    mut queue: mpsc::Receiver<Write>,
    outcomes: mpsc::Sender<(Lease, bool)>,
) {
    let mut together = Vec::new();
    while queue.recv_many(&mut together, WRITES_TOGETHER).await > 0 {
        let batch = together.iter().fold(Batch::new(), |batch, write| match write {
            Write::Put(lease) => match serde_json::to_vec(lease) {
                Ok(value) => batch.put(key(lease.mac), value),
                Err(_) => batch, // a lease is two strings and a number
            },
            Write::Remove(mac) => batch.delete(key(*mac)),
        });
        let stored = match store.commit(batch).await {
            Ok(_) => true,
            Err(error) => {
                warn!(%error, "leases could not be stored; new clients get no address until they can");
                false
            }
        };
        for write in together.drain(..) {
            match write {
                // The receiver is gone only when the server stops.
                Write::Put(lease) => drop(outcomes.send((lease, stored)).await),
                Write::Remove(_) => {}
            }
        }
    }
}

fn key(mac: MacAddr) -> String {
    format!("{LEASES}{mac}")
}

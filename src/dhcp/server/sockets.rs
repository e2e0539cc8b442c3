//! The sockets of one interface: what comes in there and nowhere else, and what leaves from our address there.
//!
//! Requests are read from a UDP socket that is bound to the device. Replies to who has an address leave from it with
//! our address as their source, also where the device has several. Clients without an address, and everybody, are
//! sent frames through a packet socket (`CAP_NET_RAW`); where we may have none, and on loopback, everything for them
//! is broadcast. The packet socket also hears what other servers tell clients; without it, a socket on the
//! broadcast address does, which takes nothing away from a DHCP client of this machine.

use std::{
    io::{self, IoSlice},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
};

use nix::{
    libc,
    sys::socket::{ControlMessage, LinkAddr, MsgFlags, SockaddrIn, recvfrom, sendmsg, sendto},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{io::unix::AsyncFd, net::UdpSocket};

use super::super::{
    Destination, SERVER_PORT,
    frame::{EVERYBODY, datagram, frame},
};
use crate::{config::DhcpInterface, machine::MacAddr};

/// Room for what arrives while a commit or another packet is looked at: some 5,000 packets.
const RECEIVE_BUFFER: usize = 4 << 20;
/// What is looked at of a frame; Ethernet carries no larger DHCP message.
const FRAME_LIMIT: usize = 2048;
const LOOPBACK: &str = "lo";

/// The sockets of one interface.
#[derive(Debug)]
pub(super) struct Sockets {
    /// The DHCP port.
    pub(super) server: UdpSocket,
    /// The boot server port, in proxy mode.
    pub(super) proxy: Option<UdpSocket>,
    /// Frames to clients, and what others send them.
    frames: Option<Frames>,
    /// What others send to everybody, where there are no frames.
    broadcasts: Option<UdpSocket>,
    interface: DhcpInterface,
    /// The device's number, while it is the device that we are bound to.
    index: u32,
}

/// A packet socket on the device.
#[derive(Debug)]
struct Frames {
    socket: AsyncFd<Socket>,
    card: MacAddr,
    address: LinkAddr,
}

/// Where the sockets are bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The DHCP port.
    pub server: SocketAddrV4,
    /// The boot server port, in proxy mode.
    pub proxy: Option<SocketAddrV4>,
}

/// A port that could not be bound.
#[derive(Debug)]
pub(super) struct PortError {
    pub(super) port: u16,
    pub(super) source: io::Error,
}

impl Sockets {
    /// Binds them.
    pub(super) fn open(interface: &DhcpInterface, is_proxy: bool) -> Result<(Self, Bound), PortError> {
        let bind = |port| {
            let socket = listen(interface, Ipv4Addr::UNSPECIFIED, port);
            socket.map_err(|source| PortError { port, source })
        };
        let (server, address) = bind(interface.server_port)?;
        let mut bound = Bound { server: address, proxy: None };
        let mut proxy = None;
        if is_proxy {
            let (socket, address) = bind(interface.proxy_port)?;
            bound.proxy = Some(address);
            proxy = Some(socket);
        }
        let index = index_of(interface);
        let (mut frames, mut broadcasts) = (None, None);
        if interface.interface != LOOPBACK {
            match Frames::open(interface) {
                Ok(opened) => frames = Some(opened),
                Err(error) => {
                    let interface = &interface.interface;
                    tracing::info!(%interface, %error, "no packet socket (CAP_NET_RAW): clients without an address are answered by broadcast");
                }
            }
            if frames.is_none() {
                broadcasts = listen(interface, Ipv4Addr::BROADCAST, interface.client_port)
                    .ok()
                    .map(|(socket, _)| socket);
            }
        }
        Ok((Self { server, proxy, frames, broadcasts, interface: interface.clone(), index }, bound))
    }

    /// The device went away, and another of its name may be there now.
    pub(super) fn is_stale(&self) -> bool {
        let index = index_of(&self.interface);
        index != 0 && index != self.index
    }

    /// Clients without an address are sent frames of our own.
    pub(super) const fn sends_frames(&self) -> bool {
        self.frames.is_some()
    }

    /// Sends a reply. Never waits: what the network does not take now, the client asks for again.
    pub(super) fn send(&self, to: Destination, bytes: &[u8]) -> io::Result<()> {
        let client_port = self.interface.client_port;
        match to {
            Destination::Broadcast => self.send_to_card(EVERYBODY, Ipv4Addr::BROADCAST, bytes),
            Destination::Card(mac, address) => self.send_to_card(mac, address, bytes),
            Destination::Client(address) => {
                self.send_from(&self.server, SocketAddrV4::new(address, client_port), bytes)
            }
            Destination::Relay(address) => {
                self.send_from(&self.server, SocketAddrV4::new(address, self.relay_port()), bytes)
            }
            // The answer to the boot server port leaves from it: a client may look at the source port.
            Destination::Unicast(to) => {
                self.send_from(self.proxy.as_ref().unwrap_or(&self.server), to, bytes)
            }
        }
    }

    fn send_to_card(&self, mac: MacAddr, address: Ipv4Addr, bytes: &[u8]) -> io::Result<()> {
        let client_port = self.interface.client_port;
        let Some(frames) = &self.frames else {
            let everybody = broadcast_address(&self.interface.interface);
            return self.send_from(&self.server, SocketAddrV4::new(everybody, client_port), bytes);
        };
        let from = SocketAddrV4::new(self.interface.address, self.interface.server_port);
        frames.send(mac, (from, SocketAddrV4::new(address, client_port)), bytes)
    }

    /// From our address on this device, whatever else the device and this machine have.
    fn send_from(&self, socket: &UdpSocket, to: SocketAddrV4, bytes: &[u8]) -> io::Result<()> {
        let source = libc::in_pktinfo {
            ipi_ifindex: i32::try_from(self.index).unwrap_or_default(),
            ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(self.interface.address.octets()) },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let address = SockaddrIn::from(to);
        let parts = [IoSlice::new(bytes)];
        let from = [ControlMessage::Ipv4PacketInfo(&source)];
        let sent = sendmsg(socket.as_raw_fd(), &parts, &from, MsgFlags::MSG_DONTWAIT, Some(&address));
        sent.map(drop).map_err(io::Error::from)
    }

    /// Relays listen where servers do; a test's relay where the test's server does.
    const fn relay_port(&self) -> u16 {
        if self.interface.server_port == 0 { SERVER_PORT } else { self.interface.server_port }
    }

    /// The next reply of another server to a client that we can hear, with who sent it. Does not end without one.
    pub(super) async fn overhear(&self, buffer: &mut Vec<u8>) -> io::Result<Ipv4Addr> {
        if let Some(frames) = &self.frames {
            return frames.overhear(buffer).await;
        }
        let Some(broadcasts) = &self.broadcasts else { return std::future::pending().await };
        buffer.resize(FRAME_LIMIT, 0);
        let (length, from) = broadcasts.recv_from(buffer).await?;
        buffer.truncate(length);
        match from {
            SocketAddr::V4(from) => Ok(*from.ip()),
            SocketAddr::V6(_) => Ok(Ipv4Addr::UNSPECIFIED),
        }
    }
}

impl Frames {
    #[expect(deprecated, reason = "its successor is unsafe, and a Socket keeps one descriptor as that asks")]
    fn open(interface: &DhcpInterface) -> io::Result<Self> {
        let (address, card) = card_of(&interface.interface)?;
        // Of a packet's protocols, IP: what we send ourselves is then not heard again.
        let protocol = i32::from(u16::try_from(libc::ETH_P_IP).unwrap_or_default().to_be());
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(protocol)))?;
        socket.attach_filter(&to_port(interface.client_port))?;
        socket.set_nonblocking(true)?;
        nix::sys::socket::bind(socket.as_raw_fd(), &address)?;
        Ok(Self { socket: AsyncFd::new(socket)?, card, address })
    }

    fn send(&self, mac: MacAddr, ends: (SocketAddrV4, SocketAddrV4), bytes: &[u8]) -> io::Result<()> {
        let Some(frame) = frame((self.card, mac), ends, bytes) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let fd = self.socket.get_ref().as_raw_fd();
        sendto(fd, &frame, &self.address, MsgFlags::MSG_DONTWAIT).map(drop).map_err(io::Error::from)
    }

    async fn overhear(&self, buffer: &mut Vec<u8>) -> io::Result<Ipv4Addr> {
        loop {
            let mut ready = self.socket.readable().await?;
            buffer.resize(FRAME_LIMIT, 0);
            let received = ready.try_io(|socket| {
                recvfrom::<LinkAddr>(socket.get_ref().as_raw_fd(), buffer).map_err(io::Error::from)
            });
            let Ok(received) = received else { continue };
            let (length, from) = received?;
            buffer.truncate(length);
            // Before it was bound the socket heard every device.
            let is_ours = from.is_some_and(|from| from.ifindex() == self.address.ifindex());
            let Some((from, _, payload)) = datagram(buffer).filter(|_| is_ours) else { continue };
            let (from, payload) = (*from.ip(), payload.to_vec());
            *buffer = payload;
            return Ok(from);
        }
    }
}

fn listen(interface: &DhcpInterface, at: Ipv4Addr, port: u16) -> io::Result<(UdpSocket, SocketAddrV4)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_address(true)?;
    socket.set_broadcast(true)?;
    // Before bind, so that two interfaces can have port 67 each; unprivileged since Linux 5.7.
    socket.bind_device(Some(interface.interface.as_bytes()))?;
    socket.set_nonblocking(true)?;
    // The kernel gives what it may; a smaller one only loses more of a flood.
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    socket.bind(&SocketAddrV4::new(at, port).into())?;
    let port = socket.local_addr()?.as_socket_ipv4().map_or(port, |bound| bound.port());
    Ok((UdpSocket::from_std(socket.into())?, SocketAddrV4::new(interface.address, port)))
}

/// The device's number, 0 when there is none.
fn index_of(interface: &DhcpInterface) -> u32 {
    nix::net::if_::if_nametoindex(interface.interface.as_str()).unwrap_or_default()
}

/// The device's link address, as the kernel tells it.
fn card_of(interface: &str) -> io::Result<(LinkAddr, MacAddr)> {
    let found = nix::ifaddrs::getifaddrs()?.find_map(|entry| {
        let link =
            entry.address.as_ref().filter(|_| entry.interface_name == interface)?.as_link_addr().copied()?;
        (link.halen() == 6).then(|| link.addr().map(|octets| (link, MacAddr::new(octets))))?
    });
    found.ok_or_else(|| io::Error::new(io::ErrorKind::Unsupported, "the device has no Ethernet address"))
}

/// The limited broadcast; on loopback its own, which leaves from 127.0.0.1 instead of a foreign interface's address.
fn broadcast_address(interface: &str) -> Ipv4Addr {
    if interface == LOOPBACK { Ipv4Addr::new(127, 255, 255, 255) } else { Ipv4Addr::BROADCAST }
}

/// A classic BPF program that takes Ethernet frames with a first or only UDP fragment to a port, and nothing else:
/// the socket costs nothing for the rest of the traffic.
fn to_port(port: u16) -> [SockFilter; 11] {
    const LOAD_HALF: u16 = 0x28;
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF_AT_X: u16 = 0x48;
    const HEADER_LENGTH_TO_X: u16 = 0xb1;
    const JUMP_EQUAL: u16 = 0x15;
    const JUMP_SET: u16 = 0x45;
    const RETURN: u16 = 0x06;
    let filter = |code, yes, no, value| SockFilter::new(code, yes, no, value);
    [
        filter(LOAD_HALF, 0, 0, 12),
        filter(JUMP_EQUAL, 0, 8, 0x0800),
        filter(LOAD_BYTE, 0, 0, 23),
        filter(JUMP_EQUAL, 0, 6, 17),
        filter(LOAD_HALF, 0, 0, 20),
        filter(JUMP_SET, 4, 0, 0x1fff),
        filter(HEADER_LENGTH_TO_X, 0, 0, 14),
        filter(LOAD_HALF_AT_X, 0, 0, 16),
        filter(JUMP_EQUAL, 0, 1, u32::from(port)),
        filter(RETURN, 0, 0, u32::MAX),
        filter(RETURN, 0, 0, 0),
    ]
}

//! The sockets of the own engine: requests with the address that they were sent to, acknowledgements in batches, and
//! windows in one call (UDP_SEGMENT). A shell.
//!
//! Invariant: nothing here waits for longer than [`FULL_PAUSE`]; what cannot be sent is dropped, as the network may
//! drop it too, and the transfer's timer sends it again.

use std::{
    collections::HashMap,
    io::{self, IoSlice, IoSliceMut},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};

use bytes::Bytes;
use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, recvmsg, sendmmsg,
        sendmsg, setsockopt, sockopt,
    },
};
use socket2::{Domain, Protocol, Socket, Type};
use tracing::debug;

use super::super::{
    packet::{DATA_HEADER, data_header},
    sessions::{Arrival, LISTENER, Port},
    transfer::Moment,
};

/// Acknowledgements and errors of clients fit into it; requests too. Bytes.
const PACKET: usize = 1536;
/// Packets that are taken from a socket in one call, and datagrams that are sent in one.
const BATCH: usize = 32;
/// What the kernel may hold of packets that we have not read or that the network has not taken, in bytes.
const BUFFER: usize = 2 << 20;
/// How long a full socket is waited for.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// The most that the kernel cuts into datagrams in one call: datagrams (UDP_MAX_SEGMENTS), and bytes.
const SEGMENTS: (usize, usize) = (64, 65_000);
/// IP, UDP and TFTP headers of a full block, in bytes.
const HEADERS: u32 = 32;
/// What a frame holds where the kernel does not say, in bytes.
const USUAL_MTU: u32 = 1500;
/// For how long an interface's frame size is believed.
const MTU_AGE: Duration = Duration::from_secs(10);

/// One DATA packet: its number, and its content in one or two parts.
#[derive(Debug)]
struct Single {
    peer: SockaddrIn,
    header: [u8; DATA_HEADER],
    parts: [Bytes; 2],
}

/// The sockets.
#[derive(Debug)]
pub(super) struct Wire {
    sockets: Vec<UdpSocket>,
    /// The listener has every address of this machine: answers name theirs.
    any: bool,
    /// Cleared when the kernel refuses UDP_SEGMENT.
    segments: bool,
    block_size: u16,
    frames: HashMap<u32, (u32, Moment)>,
    headers: Option<MultiHeaders<SockaddrIn>>,
    send_headers: Option<MultiHeaders<SockaddrIn>>,
    packets: Vec<u8>,
    singles: Vec<(Port, Single)>,
}

/// Where a part of a transfer goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub(super) port: Port,
    /// Our address to send from; unspecified: the socket's own.
    pub(super) local: Ipv4Addr,
    pub(super) peer: SocketAddrV4,
}

impl Wire {
    /// Takes the listener, and binds `senders` sockets beside it, on its address and device.
    pub(super) fn new(
        listener: UdpSocket,
        senders: u8,
        device: Option<&str>,
        block_size: u16,
    ) -> io::Result<Self> {
        let SocketAddr::V4(address) = listener.local_addr()? else {
            return Err(io::Error::from(io::ErrorKind::Unsupported));
        };
        setsockopt(&listener, sockopt::Ipv4PacketInfo, &true)?;
        let mut sockets = vec![listener];
        for _ in 0..senders {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
            if let Some(device) = device {
                socket.bind_device(Some(device.as_bytes()))?;
            }
            socket.bind(&SocketAddrV4::new(*address.ip(), 0).into())?;
            sockets.push(socket.into());
        }
        for socket in &sockets {
            socket.set_nonblocking(true)?;
            roomy(socket);
        }
        Ok(Self {
            sockets,
            any: address.ip().is_unspecified(),
            segments: true,
            block_size,
            frames: HashMap::new(),
            headers: Some(MultiHeaders::preallocate(BATCH, None)),
            send_headers: Some(MultiHeaders::preallocate(BATCH, None)),
            packets: vec![0; BATCH * PACKET],
            singles: Vec::with_capacity(BATCH),
        })
    }

    /// The sockets, to wait for; the place in the list is the [`Port`].
    pub(super) fn sockets(&self) -> impl Iterator<Item = (Port, BorrowedFd<'_>)> {
        (0..=u8::MAX).map(Port).zip(self.sockets.iter().map(AsFd::as_fd))
    }

    /// Hands a batch of waiting packets to `take`. `false`: there are no more.
    pub(super) fn receive(
        &mut self,
        port: Port,
        now: Moment,
        take: impl FnMut(&Arrival, &[u8]),
    ) -> io::Result<bool> {
        if port == LISTENER { self.receive_requests(now, take) } else { self.receive_batch(port, take) }
    }

    /// One at a time: each tells to which of our addresses it was sent.
    fn receive_requests(&mut self, now: Moment, mut take: impl FnMut(&Arrival, &[u8])) -> io::Result<bool> {
        let mut control = cmsg_space!(libc::in_pktinfo);
        for _ in 0..BATCH {
            let Some(socket) = self.sockets.first() else { return Ok(false) };
            let room = self.packets.get_mut(..PACKET).unwrap_or_default();
            let mut slices = [IoSliceMut::new(room)];
            let received = recvmsg::<SockaddrIn>(
                socket.as_raw_fd(),
                &mut slices,
                Some(&mut control),
                MsgFlags::MSG_DONTWAIT,
            );
            let message = match received {
                Ok(message) => message,
                Err(Errno::EAGAIN) => return Ok(false),
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let info = message.cmsgs().ok().into_iter().flatten().find_map(|control| {
                if let ControlMessageOwned::Ipv4PacketInfo(info) = control { Some(info) } else { None }
            });
            let (peer, length) = (message.address.map(SocketAddrV4::from), message.bytes);
            let address = |raw: libc::in_addr| Ipv4Addr::from(u32::from_be(raw.s_addr));
            let to = info.map(|info| (address(info.ipi_addr), address(info.ipi_spec_dst)));
            let interface = info.map(|info| u32::try_from(info.ipi_ifindex).unwrap_or_default());
            // A request to all of a network is to be ignored (RFC 1123 §4.2.3.5).
            // What came before the kernel was asked for addresses has no own one.
            let to_all = to.is_some_and(|(sent_to, own)| sent_to != own && !own.is_unspecified());
            let Some(peer) = peer.filter(|_| !to_all) else { continue };
            let local = to.filter(|_| self.any).map_or(Ipv4Addr::UNSPECIFIED, |(sent_to, _)| sent_to);
            let block_size = self.fitting(interface.unwrap_or_default(), now);
            let arrival = Arrival { port: LISTENER, peer, local, block_size };
            take(&arrival, self.packets.get(..length).unwrap_or_default());
        }
        Ok(true)
    }

    fn receive_batch(&mut self, port: Port, mut take: impl FnMut(&Arrival, &[u8])) -> io::Result<bool> {
        let Some(socket) = self.sockets.get(usize::from(port.0)) else { return Ok(false) };
        let Some(mut headers) = self.headers.take() else { return Ok(false) };
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            self.packets.chunks_exact_mut(PACKET).map(|room| [IoSliceMut::new(room)]).collect();
        let flags = MsgFlags::MSG_DONTWAIT;
        let result = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None);
        let more = match result {
            Ok(messages) => {
                let mut count = 0;
                for message in messages {
                    count += 1;
                    let Some(peer) = message.address.map(SocketAddrV4::from) else { continue };
                    let arrival =
                        Arrival { port, peer, local: Ipv4Addr::UNSPECIFIED, block_size: self.block_size };
                    take(&arrival, message.iovs().next().unwrap_or_default());
                }
                Ok(count == BATCH)
            }
            Err(Errno::EAGAIN) => Ok(false),
            Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Ok(true),
            Err(error) => Err(error.into()),
        };
        self.headers = Some(headers);
        more
    }

    /// The largest block that fits a frame of an interface, in bytes.
    fn fitting(&mut self, interface: u32, now: Moment) -> u16 {
        let known = self.frames.get(&interface).filter(|(_, read)| now.saturating_sub(*read) < MTU_AGE);
        let mtu = known.map(|(mtu, _)| *mtu).unwrap_or_else(|| {
            let mtu = frame_size(interface).unwrap_or(USUAL_MTU);
            self.frames.insert(interface, (mtu, now));
            mtu
        });
        u16::try_from(mtu.saturating_sub(HEADERS)).unwrap_or(u16::MAX).min(self.block_size)
    }

    /// Sends one packet.
    pub(super) fn send(&mut self, way: &Way, packet: &[u8]) {
        self.send_parts(way, &[IoSlice::new(packet)], None);
    }

    /// Sends blocks: the numbers of those in `parts`, each of `size` bytes but the last.
    pub(super) fn send_blocks(&mut self, way: &Way, numbers: &[u16], size: usize, parts: &[Bytes]) {
        if let ([number], true) = (numbers, way.local.is_unspecified() && parts.len() <= 2) {
            let mut parts = parts.iter().cloned();
            let parts = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()];
            let single = Single { peer: way.peer.into(), header: data_header(*number), parts };
            self.singles.push((way.port, single));
            return;
        }
        let headers: Vec<[u8; DATA_HEADER]> = numbers.iter().map(|number| data_header(*number)).collect();
        let mut rest = Cut { parts, at: 0 };
        let whole = size + DATA_HEADER;
        let together = if self.segments { (SEGMENTS.1 / whole).clamp(1, SEGMENTS.0) } else { 1 };
        let mut slices = Vec::with_capacity(headers.len() * 2 + parts.len());
        for group in headers.chunks(together) {
            slices.clear();
            let mut ends = Vec::with_capacity(group.len());
            for header in group {
                slices.push(IoSlice::new(header));
                rest.take(size, &mut slices);
                ends.push(slices.len());
            }
            let segment = (group.len() > 1).then(|| u16::try_from(whole).unwrap_or_default());
            if self.send_parts(way, &slices, segment) {
                continue;
            }
            let mut begin = 0;
            for end in ends {
                self.send_parts(way, slices.get(begin..end).unwrap_or_default(), None);
                begin = end;
            }
        }
    }

    /// `false`: refused because of `segment`.
    fn send_parts(&mut self, way: &Way, parts: &[IoSlice<'_>], segment: Option<u16>) -> bool {
        let Some(socket) = self.sockets.get(usize::from(way.port.0)) else { return true };
        let peer = SockaddrIn::from(way.peer);
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: u32::from(way.local).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let mut controls = Vec::with_capacity(2);
        if !way.local.is_unspecified() {
            controls.push(ControlMessage::Ipv4PacketInfo(&info));
        }
        if let Some(segment) = &segment {
            controls.push(ControlMessage::UdpGsoSegments(segment));
        }
        for _ in 0..2 {
            match sendmsg(socket.as_raw_fd(), parts, &controls, MsgFlags::MSG_DONTWAIT, Some(&peer)) {
                Ok(_) => return true,
                Err(Errno::EAGAIN | Errno::ENOBUFS) => wait_for_room(socket),
                Err(Errno::EINVAL | Errno::EIO | Errno::EOPNOTSUPP | Errno::EMSGSIZE)
                    if segment.is_some() =>
                {
                    return false;
                }
                Err(error) => {
                    debug!(peer = %way.peer, %error, "TFTP packet not sent");
                    return true;
                }
            }
        }
        true
    }

    /// Sends the blocks that go alone, in as few calls as may be.
    pub(super) fn flush(&mut self) {
        if self.singles.is_empty() {
            return;
        }
        let mut singles = std::mem::take(&mut self.singles);
        let mut rest = singles.as_slice();
        while let Some((port, _)) = rest.first() {
            let same = rest.iter().take(BATCH).take_while(|(other, _)| other == port).count();
            let (batch, later) = rest.split_at(same);
            self.send_singles(*port, batch);
            rest = later;
        }
        singles.clear();
        self.singles = singles;
    }

    fn send_singles(&mut self, port: Port, batch: &[(Port, Single)]) {
        let Some(socket) = self.sockets.get(usize::from(port.0)) else { return };
        let slices: Vec<[IoSlice<'_>; 3]> = batch
            .iter()
            .map(|(_, Single { header, parts: [first, second], .. })| {
                [IoSlice::new(header), IoSlice::new(first), IoSlice::new(second)]
            })
            .collect();
        let peers: Vec<Option<SockaddrIn>> = batch.iter().map(|(_, single)| Some(single.peer)).collect();
        let Some(mut headers) = self.send_headers.take() else { return };
        let (mut done, mut full) = (0, false);
        while let (Some(slices), Some(peers)) = (slices.get(done..), peers.get(done..))
            && !slices.is_empty()
        {
            let flags = MsgFlags::MSG_DONTWAIT;
            let result = sendmmsg(socket.as_raw_fd(), &mut headers, slices, peers, [], flags);
            match result.map(Iterator::count) {
                Ok(sent) => done += sent.max(1),
                Err(Errno::EAGAIN | Errno::ENOBUFS) if !full => {
                    full = true;
                    wait_for_room(socket);
                }
                Err(error) => {
                    debug!(%error, "TFTP block not sent");
                    done += 1;
                }
            }
        }
        self.send_headers = Some(headers);
    }
}

/// Content in parts, cut into blocks.
struct Cut<'a> {
    parts: &'a [Bytes],
    at: usize,
}

impl<'a> Cut<'a> {
    /// Adds the next `length` bytes, or what is left.
    fn take(&mut self, mut length: usize, slices: &mut Vec<IoSlice<'a>>) {
        while let Some((part, later)) = self.parts.split_first()
            && length > 0
        {
            let rest = part.get(self.at..).unwrap_or_default();
            let now = rest.get(..length.min(rest.len())).unwrap_or_default();
            slices.push(IoSlice::new(now));
            length -= now.len();
            self.at += now.len();
            if self.at == part.len() {
                (self.parts, self.at) = (later, 0);
            }
        }
    }
}

/// Room for the acknowledgements of all clients at once, and for their windows; as much as the kernel allows.
fn roomy(socket: &UdpSocket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::RcvBuf, &BUFFER); // the default is there
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = setsockopt(socket, sockopt::SndBuf, &BUFFER);
    }
}

fn wait_for_room(socket: &UdpSocket) {
    let mut ready = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    let pause = PollTimeout::try_from(FULL_PAUSE).unwrap_or(PollTimeout::ZERO);
    if let Err(error) = poll(&mut ready, pause) {
        debug!(%error, "cannot wait for a socket");
    }
}

/// What a frame of this interface holds, in bytes.
fn frame_size(interface: u32) -> Option<u32> {
    let name = nix::net::if_::if_indextoname(interface).ok()?;
    std::fs::read_to_string(format!("/sys/class/net/{}/mtu", name.to_str().ok()?)).ok()?.trim().parse().ok()
}

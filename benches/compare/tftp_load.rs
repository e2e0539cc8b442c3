//! Many TFTP clients on one thread: the same for every server.
//!
//! A client is what RFC 1350, 2347, 2348 and 7440 make of one: it asks for a block size and a window, takes what the
//! server grants (none granted: window 1), acknowledges the last block of a window, and the last one in order at once
//! when a block is missing or comes twice. What is lost is lost here, by a seed: blocks and acknowledgements alike,
//! requests never. Each block's first word tells whether it is the one that it says to be.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::UdpSocket};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg};

/// Before a client says its last word again, as most firmware does (4 to 5 s).
const PATIENCE: Duration = Duration::from_secs(4);
/// How often it does.
const TRIES: u32 = 6;
/// Packets taken from a socket at once; one more than a window lets the socket run empty in one call.
const BATCH: usize = 33;
/// Room for the largest packet: a block within an Ethernet frame.
const ROOM: usize = 1500;
/// For what a window of several clients may hold.
const SOCKET_BUFFER: usize = 1 << 20;

/// What is fetched, from where, by whom.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The server, at its port for requests.
    pub(crate) server: SocketAddrV4,
    /// Where the first client is; each has an address of its own, as machines do.
    pub(crate) from: Ipv4Addr,
    /// The file's name.
    pub(crate) file: String,
    /// Its length; it holds [`word`] after word.
    pub(crate) length: u64,
    /// How many clients fetch it at once.
    pub(crate) clients: usize,
    /// The block size that they ask for.
    pub(crate) block: usize,
    /// The window that they ask for.
    pub(crate) window: u64,
    /// What is lost.
    pub(crate) loss: Option<Loss>,
    /// When those that are not done have failed.
    pub(crate) limit: Duration,
}

/// Packets that are lost, each way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss {
    /// Which ones.
    pub(crate) seed: u64,
    /// How many of a thousand.
    pub(crate) per_mille: u64,
}

/// What became of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fetched {
    /// Bytes of files, whole or not.
    pub(crate) bytes: u64,
    /// Clients that have their file.
    pub(crate) whole: usize,
    /// The smallest window that a server granted.
    pub(crate) window: u64,
    /// What the first client that failed met.
    pub(crate) failure: Option<String>,
}

/// The content of the fetched file at word `at`.
pub(crate) const fn word(at: u32) -> [u8; 4] {
    at.wrapping_mul(0x9e37_79b1).to_le_bytes()
}

/// Runs the clients until each is done.
pub(crate) fn fetch(load: &Load) -> io::Result<Fetched> {
    let mut crowd = Crowd::new(load)?;
    let mut events = Events::with_capacity(load.clients.max(16));
    let begun = Instant::now();
    let mut looked = begun;
    while crowd.busy > 0 && begun.elapsed() < load.limit {
        match crowd.poll.poll(&mut events, Some(Duration::from_millis(20))) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &events {
            crowd.readable(event.token().0)?;
        }
        let now = Instant::now();
        if now - looked >= Duration::from_millis(20) {
            looked = now;
            crowd.late(now);
        }
    }
    Ok(crowd.result())
}

struct Crowd<'a> {
    load: &'a Load,
    poll: Poll,
    clients: Vec<Client>,
    busy: usize,
    luck: u64,
    headers: MultiHeaders<SockaddrIn>,
    room: Vec<u8>,
}

impl<'a> Crowd<'a> {
    fn new(load: &'a Load) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(load.clients);
        for (number, from) in (0..load.clients).zip(u32::from(load.from)..) {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            socket.set_recv_buffer_size(SOCKET_BUFFER)?;
            socket.set_nonblocking(true)?;
            socket.bind(&SocketAddrV4::new(Ipv4Addr::from(from), 0).into())?;
            let mut socket = UdpSocket::from_std(socket.into());
            poll.registry().register(&mut socket, Token(number), Interest::READABLE)?;
            let client = Client::new(socket);
            client.socket.send_to(&request(load), load.server.into())?;
            clients.push(client);
        }
        Ok(Self {
            load,
            poll,
            busy: clients.len(),
            clients,
            luck: load.loss.map_or(1, |loss| loss.seed | 1),
            headers: MultiHeaders::preallocate(BATCH, None),
            room: vec![0; BATCH * ROOM],
        })
    }

    /// Takes what a client's socket has, until it is empty.
    fn readable(&mut self, number: usize) -> io::Result<()> {
        let Some(client) = self.clients.get_mut(number) else { return Ok(()) };
        // A client that works in lock step has one packet, or one and a repeat.
        let batch = BATCH.min(usize::try_from(client.window).unwrap_or(BATCH) + 1);
        while client.outcome.is_none() {
            let mut pieces: Vec<[io::IoSliceMut<'_>; 1]> =
                self.room.chunks_mut(ROOM).take(batch).map(|piece| [io::IoSliceMut::new(piece)]).collect();
            let taken = recvmmsg(
                client.socket.as_raw_fd(),
                &mut self.headers,
                &mut pieces,
                MsgFlags::MSG_DONTWAIT,
                None,
            );
            let packets: Vec<(usize, Option<SockaddrIn>)> = match taken {
                Ok(packets) => packets.map(|packet| (packet.bytes, packet.address)).collect(),
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::ECONNREFUSED) => {
                    client.fail("the server's port is closed");
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            let whole = packets.len() == batch;
            for ((length, from), packet) in packets.into_iter().zip(self.room.chunks(ROOM)) {
                if lost(self.load.loss, &mut self.luck, packet) {
                    continue;
                }
                let peer = from.map(|from| SocketAddr::from((from.ip(), from.port())));
                if client.take(packet.get(..length).unwrap_or_default(), peer, self.load)
                    && !lost(self.load.loss, &mut self.luck, &ACK.to_be_bytes())
                {
                    client.acknowledge();
                }
                if client.outcome.is_some() {
                    break;
                }
            }
            if !whole {
                break;
            }
        }
        if client.outcome.is_some() {
            self.busy -= 1;
            self.poll.registry().deregister(&mut client.socket)?;
        }
        Ok(())
    }

    /// Lets those speak again that wait for long.
    fn late(&mut self, now: Instant) {
        for client in self.clients.iter_mut().filter(|client| client.outcome.is_none() && now >= client.until)
        {
            client.until = now + PATIENCE;
            client.tries += 1;
            if client.tries > TRIES {
                client.fail("the server is silent");
                self.busy -= 1;
            } else if client.peer.is_none() {
                let _ = client.socket.send_to(&request(self.load), self.load.server.into());
            } else {
                client.acknowledge();
            }
        }
    }

    fn result(self) -> Fetched {
        let mut result = Fetched { window: self.load.window, ..Fetched::default() };
        for client in &self.clients {
            result.bytes += client.bytes;
            result.window = result.window.min(client.window);
            match &client.outcome {
                Some(Ok(())) => result.whole += 1,
                Some(Err(failure)) => {
                    result.failure = Some(result.failure.unwrap_or_else(|| failure.clone()))
                }
                None => {
                    // Said once: a server that goes on sending would disturb whoever is measured next.
                    let _ = client.socket.send(b"\0\x05\0\0out of time\0");
                    result.failure = Some(result.failure.unwrap_or_else(|| "out of time".to_owned()));
                }
            }
        }
        result
    }
}

/// Whether a packet is lost. Only blocks and acknowledgements are.
fn lost(loss: Option<Loss>, luck: &mut u64, packet: &[u8]) -> bool {
    let Some(loss) = loss else { return false };
    let may = packet.starts_with(&DATA.to_be_bytes()) || packet.starts_with(&ACK.to_be_bytes());
    // xorshift64
    *luck ^= *luck << 13;
    *luck ^= *luck >> 7;
    *luck ^= *luck << 17;
    may && (*luck >> 11) % 1000 < loss.per_mille
}

fn request(load: &Load) -> Vec<u8> {
    let mut request = RRQ.to_be_bytes().to_vec();
    let (block, window) = (load.block.to_string(), load.window.to_string());
    let mut words = vec![load.file.as_str(), "octet", "blksize", &block];
    if load.window > 1 {
        words.extend(["windowsize", &window]);
    }
    for word in words {
        request.extend(word.as_bytes());
        request.push(0);
    }
    request
}

#[derive(Debug)]
struct Client {
    socket: UdpSocket,
    peer: Option<SocketAddr>,
    block: usize,
    window: u64,
    /// Blocks that came in order.
    blocks: u64,
    /// Of them, not acknowledged.
    unsaid: u64,
    /// A missing block was told of.
    gap: bool,
    bytes: u64,
    until: Instant,
    tries: u32,
    outcome: Option<Result<(), String>>,
}

impl Client {
    fn new(socket: UdpSocket) -> Self {
        Self {
            socket,
            peer: None,
            block: 512,
            window: 1,
            blocks: 0,
            unsaid: 0,
            gap: false,
            bytes: 0,
            until: Instant::now() + PATIENCE,
            tries: 0,
            outcome: None,
        }
    }

    fn fail(&mut self, why: &str) {
        self.outcome = Some(Err(why.to_owned()));
    }

    fn acknowledge(&mut self) {
        let [high, low] = ((self.blocks & 0xffff) as u16).to_be_bytes();
        let [zero, ack] = ACK.to_be_bytes();
        // Lost where the server has gone, as on any network.
        let _ = self.socket.send(&[zero, ack, high, low]);
        self.unsaid = 0;
        self.until = Instant::now() + PATIENCE;
    }

    /// Takes a packet; true: acknowledge.
    fn take(&mut self, packet: &[u8], from: Option<SocketAddr>, load: &Load) -> bool {
        if self.peer.is_none() {
            let Some(from) = from else { return false };
            if let Err(error) = self.socket.connect(from) {
                self.fail(&error.to_string());
                return false;
            }
            self.peer = Some(from);
        }
        self.tries = 0;
        match packet {
            [0, OACK_LOW, rest @ ..] => self.agree(rest),
            [0, DATA_LOW, high, low, data @ ..] => self.data(u16::from_be_bytes([*high, *low]), data, load),
            [0, ERROR_LOW, _, code, text @ ..] => {
                let text = String::from_utf8_lossy(text).trim_end_matches('\0').to_owned();
                self.fail(&format!("TFTP error {code}: {text}"));
                false
            }
            _ => {
                self.fail("no TFTP packet");
                false
            }
        }
    }

    fn agree(&mut self, rest: &[u8]) -> bool {
        let words: Vec<String> = rest
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).to_ascii_lowercase())
            .collect();
        for pair in words.chunks_exact(2) {
            match (pair.first().map(String::as_str), pair.get(1).and_then(|value| value.parse::<u64>().ok()))
            {
                (Some("blksize"), Some(size)) => self.block = usize::try_from(size).unwrap_or(self.block),
                (Some("windowsize"), Some(size)) => self.window = size,
                (_, _) => {}
            }
        }
        self.blocks == 0
    }

    fn data(&mut self, number: u16, data: &[u8], load: &Load) -> bool {
        let ahead = number.wrapping_sub((self.blocks & 0xffff) as u16);
        if ahead != 1 {
            // The last block again: the acknowledgement was lost. One from before it: its window is still coming.
            let missing = (2..0x8000).contains(&ahead) && !self.gap;
            self.gap |= missing;
            return ahead == 0 || missing;
        }
        let at = self.blocks * self.block as u64;
        let right = data.len() < 4 || data.starts_with(&word((at / 4) as u32));
        if !right || data.len() > self.block {
            self.fail("a block with the wrong content");
            return false;
        }
        self.gap = false;
        self.blocks += 1;
        self.unsaid += 1;
        self.bytes += data.len() as u64;
        let last = data.len() < self.block;
        if last {
            let whole = self.bytes == load.length;
            self.outcome = Some(if whole { Ok(()) } else { Err(format!("{} bytes came", self.bytes)) });
            // Never lost: the server would wait for a client that has gone.
            self.acknowledge();
            return false;
        }
        self.unsaid >= self.window
    }
}

const RRQ: u16 = 1;
const DATA: u16 = 3;
const ACK: u16 = 4;
const DATA_LOW: u8 = 3;
const ERROR_LOW: u8 = 5;
const OACK_LOW: u8 = 6;

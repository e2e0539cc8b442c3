//! Many HTTP clients on one thread: the same for every server. Connections are kept.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

/// Where the first client is.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(127, 0, 2, 1);
/// A head and a small body.
const ROOM: usize = 64 << 10;
/// Bytes that a client takes at once where it throws them away.
const GULP: usize = 4 << 20;
/// Turns of one client before the next one's.
const TURNS: usize = 16;

/// What is fetched, from where, by whom.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The server.
    pub(crate) server: SocketAddrV4,
    /// What is asked for.
    pub(crate) path: String,
    /// How many clients ask at once.
    pub(crate) clients: usize,
    /// When they stop.
    pub(crate) until: Until,
    /// Bodies stay in the kernel (MSG_TRUNC), as they would on the way to a network card; or they are copied.
    pub(crate) discard: bool,
}

/// When a load is over.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    /// Each client has had one answer.
    Once,
    /// This much time is over.
    Over(Duration),
}

/// What became of it.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Answered {
    /// Bytes of bodies.
    pub(crate) bytes: u64,
    /// Whole answers with status 200.
    pub(crate) answers: u64,
}

/// Runs the clients.
pub(crate) fn fetch(load: &Load) -> io::Result<Answered> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(load.clients.max(16));
    let mut clients = Vec::with_capacity(load.clients);
    for number in 0..load.clients {
        clients.push(Client::connect(load, &poll, number)?);
    }
    let mut room = vec![0; if load.discard { GULP } else { ROOM }];
    let mut total = Answered::default();
    let mut busy = clients.len();
    // Those that had their turns and may have more to read: the poll tells of news only.
    let mut waiting: Vec<usize> = Vec::new();
    let begun = Instant::now();
    while busy > 0 {
        let patience = if waiting.is_empty() { Duration::from_secs(10) } else { Duration::ZERO };
        poll.poll(&mut events, Some(patience))?;
        if waiting.is_empty() && events.is_empty() {
            return Err(io::Error::other("the server is silent"));
        }
        let mut ready = std::mem::take(&mut waiting);
        for event in &events {
            let number = event.token().0;
            if !ready.contains(&number) {
                ready.push(number);
            }
        }
        for number in ready {
            let Some(client) = clients.get_mut(number).filter(|client| !client.done) else { continue };
            match client.turn(load, &mut room, &mut total)? {
                Turn::Empty => {}
                Turn::More => waiting.push(number),
                Turn::Done => busy -= 1,
            }
        }
        if let Until::Over(time) = load.until
            && begun.elapsed() >= time
        {
            break;
        }
    }
    Ok(total)
}

/// What a client's turn came to.
enum Turn {
    /// Its socket is empty.
    Empty,
    /// It is not.
    More,
    /// It has what it wanted.
    Done,
}

struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    asked: bool,
    /// The head so far, and the body that came with it.
    head: Vec<u8>,
    /// Of the body; `None`: the head is not whole.
    left: Option<u64>,
    done: bool,
}

impl Client {
    fn connect(load: &Load, poll: &Poll, number: usize) -> io::Result<Self> {
        // Each client has an address of its own, as machines do.
        let from =
            Ipv4Addr::from(u32::from(CLIENTS).saturating_add(u32::try_from(number).unwrap_or_default()));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddrV4::new(from, 0).into())?;
        socket.connect(&load.server.into())?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        let mut stream = TcpStream::from_std(socket.into());
        poll.registry().register(&mut stream, Token(number), Interest::READABLE)?;
        let request = format!("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", load.path, load.server).into_bytes();
        // Both fit: the socket's buffer is empty.
        stream.write_all(&request)?;
        Ok(Self { stream, request, asked: true, head: Vec::new(), left: None, done: false })
    }

    fn turn(&mut self, load: &Load, room: &mut [u8], total: &mut Answered) -> io::Result<Turn> {
        for _ in 0..TURNS {
            if !self.asked {
                self.stream.write_all(&self.request)?;
                self.asked = true;
            }
            let taken = match self.left {
                Some(_) if load.discard => {
                    recv(self.stream.as_raw_fd(), room, MsgFlags::MSG_TRUNC).map_err(io::Error::from)
                }
                Some(_) => self.stream.read(room),
                None => self.stream.read(room.get_mut(..ROOM).unwrap_or_default()),
            };
            let taken = match taken {
                Ok(0) => return Err(io::Error::other("the server closed a connection")),
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Turn::Empty),
                Err(error) => return Err(error),
            };
            self.take(room.get(..taken).unwrap_or_default(), total)?;
            if self.left == Some(0) {
                self.left = None;
                self.asked = false;
                total.answers += 1;
                if matches!(load.until, Until::Once) {
                    self.done = true;
                    return Ok(Turn::Done);
                }
            }
        }
        Ok(Turn::More)
    }

    fn take(&mut self, piece: &[u8], total: &mut Answered) -> io::Result<()> {
        let body = match self.left {
            Some(_) => piece.len(),
            None => {
                self.head.extend_from_slice(piece);
                let Some(end) = self.head.windows(4).position(|four| four == b"\r\n\r\n") else {
                    return Ok(());
                };
                self.left = Some(length(self.head.get(..end).unwrap_or_default())?);
                let body = self.head.len() - end - 4;
                self.head.clear();
                body
            }
        };
        let left = self.left.and_then(|left| left.checked_sub(body as u64));
        self.left = Some(left.ok_or_else(|| io::Error::other("more came than was announced"))?);
        total.bytes += body as u64;
        Ok(())
    }
}

/// The length of the body that a head announces.
fn length(head: &[u8]) -> io::Result<u64> {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    if !text.starts_with("http/1.1 200") {
        return Err(io::Error::other(text.lines().next().unwrap_or_default().to_owned()));
    }
    let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.ok_or_else(|| io::Error::other("no content-length"))
}

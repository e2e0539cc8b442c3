//! All transfers of one server: which packet belongs to which, who may begin one, and what is answered to the rest.
//! Pure: packets and time in, [`Action`]s and the next deadline out.
//!
//! Invariants: an ERROR is never answered; one address has at most [`Limits::per_client`] transfers, all together
//! [`Limits::in_all`]; what nobody has acknowledged yet makes room for newer requests, so that forged requests shut
//! nobody out; what is kept for each address is bounded.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use super::{
    packet::{Asked, ErrorCode, Mode, Packet, Request, error},
    transfer::{Finish, Flight, Moment, Rollover, Step, Terms, Transfer},
};

/// For how long late packets of a transfer that is over are told from those of strangers.
const AFTERGLOW: Duration = Duration::from_secs(10);
/// How many transfers that are over are remembered.
const AFTERGLOW_LIMIT: usize = 2048;
/// Requests that nobody has followed up yet, for each transfer that may be at work. They are small, and a client that has
/// begun must not give way to a flood before its first acknowledgement is here.
const WAITING: usize = 16;
/// Between two ERRORs to strangers of one address.
const STRANGER_PAUSE: Duration = Duration::from_secs(1);
/// Addresses that share one such pause: bounds what is remembered.
const STRANGER_SLOTS: usize = 1024;
/// In single-port mode a request that repeats the one under way was doubled by the network, unless the client has
/// not got further for so long.
const REPEAT_PAUSE: Duration = Duration::from_secs(1);
/// Entries of the heap of timers for each possible transfer, before those that no longer count are taken out.
const TIMERS_PER_TRANSFER: usize = 4;
/// TFTP's own port (RFC 1350 §4): no client sends from it, and two servers could talk for ever.
const TFTP_PORT: u16 = 69;

/// Which of the server's sockets: 0 takes requests, the others send files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(pub u8);

/// The socket that takes requests.
pub const LISTENER: Port = Port(0);

/// How the server is to behave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest window, in blocks.
    pub window: u16,
    /// What follows block 65,535.
    pub rollover: Rollover,
    /// Transfers of one address.
    pub per_client: usize,
    /// Transfers in all.
    pub in_all: usize,
    /// Sockets that send files; 0: the listener does (single-port mode).
    pub senders: u8,
}

/// A datagram's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The socket that it came to.
    pub port: Port,
    /// Who sent it.
    pub peer: SocketAddrV4,
    /// Our address that it was sent to; unspecified: the socket's own.
    pub local: Ipv4Addr,
    /// The largest block that fits a frame on that way, in bytes.
    pub block_size: u16,
}

/// Names a transfer for as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id {
    /// The socket that serves it.
    pub port: Port,
    /// The client.
    pub peer: SocketAddrV4,
    serial: u64,
}

/// How a transfer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As the transfer itself says.
    Finished(Finish),
    /// The client sent an ERROR; firmware that only wanted to know the size does (code 8 or 0).
    Aborted {
        /// Its code.
        code: u16,
        /// Its text.
        text: String,
    },
    /// The client began anew from the same port.
    Replaced,
    /// The file could not be read any more.
    ReadFailed,
    /// The server stopped.
    Stopped,
}

impl Outcome {
    /// A stable name for counters and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Finished(Finish::Complete) => "complete",
            Self::Finished(Finish::Unconfirmed) => "unconfirmed",
            Self::Finished(Finish::Lost) => "lost",
            Self::Finished(Finish::Unanswered) => "unanswered",
            Self::Aborted { .. } => "aborted",
            Self::Replaced => "replaced",
            Self::ReadFailed => "read_failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A transfer that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The client.
    pub peer: SocketAddrV4,
    /// The name as sent.
    pub file: Vec<u8>,
    /// What has arrived for certain, in bytes.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: Outcome,
}

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Find the content of this name, and call [`Sessions::opened`].
    Open {
        /// For which transfer.
        id: Id,
        /// The name as sent.
        file: Vec<u8>,
    },
    /// Send part of a transfer.
    Send {
        /// Which transfer.
        id: Id,
        /// Which part.
        flight: Flight,
    },
    /// Send this packet.
    Reply {
        /// From this socket.
        port: Port,
        /// From this address of ours; unspecified: the socket's own.
        local: Ipv4Addr,
        /// To this client.
        peer: SocketAddrV4,
        /// The packet.
        packet: Vec<u8>,
    },
    /// Tell that a transfer is over.
    Tell(Ended),
}

/// A request that was refused: what the client is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denial {
    /// RFC 1350 §5.
    pub code: ErrorCode,
    /// For a person who reads a screen.
    pub text: &'static str,
}

const READ_ONLY: Denial = Denial { code: ErrorCode::Access, text: "this server only gives files out" };
const NETASCII: Denial =
    Denial { code: ErrorCode::Illegal, text: "netascii is not served; use octet (binary)" };
const MAIL: Denial = Denial { code: ErrorCode::Illegal, text: "mail is not served; use octet (binary)" };
const UNKNOWN: Denial = Denial { code: ErrorCode::UnknownTransfer, text: "unknown transfer" };
const READ_FAILED: Denial = Denial { code: ErrorCode::Undefined, text: "the file cannot be read" };
const STOPPING: Denial = Denial { code: ErrorCode::Undefined, text: "the server is stopping" };

/// A transfer with what it sends; `C` is the shell's own.
#[derive(Debug)]
struct Session<C> {
    serial: u64,
    local: Ipv4Addr,
    terms: Terms,
    asked: Asked,
    file: Vec<u8>,
    began: Moment,
    /// `None` while the file is being opened.
    running: Option<(Transfer, C)>,
    /// The moment of its one entry in the heap that counts.
    scheduled: Option<Moment>,
}

impl<C> Session<C> {
    fn is_half_open(&self) -> bool {
        self.running.as_ref().is_none_or(|(transfer, _)| !transfer.is_answered())
    }
}

type Key = (Port, SocketAddrV4);

/// The transfers of one server.
#[derive(Debug)]
pub struct Sessions<C> {
    limits: Limits,
    live: HashMap<Key, Session<C>>,
    per_client: HashMap<Ipv4Addr, usize>,
    /// Of the live ones, those that were answered.
    answered: usize,
    timers: BinaryHeap<Reverse<(Moment, Id)>>,
    /// By age; entries of transfers that were answered or are over stay until they are met.
    half_open: VecDeque<Id>,
    /// Those that are over, by age.
    over: VecDeque<(Moment, Key)>,
    over_since: HashMap<Key, Moment>,
    strangers: Vec<Option<Moment>>,
    serial: u64,
    accepting: bool,
}

impl<C> Sessions<C> {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            live: HashMap::new(),
            per_client: HashMap::new(),
            answered: 0,
            timers: BinaryHeap::new(),
            half_open: VecDeque::new(),
            over: VecDeque::new(),
            over_since: HashMap::new(),
            strangers: vec![None; STRANGER_SLOTS],
            serial: 0,
            accepting: true,
        }
    }

    /// A datagram.
    pub fn receive(&mut self, now: Moment, at: &Arrival, bytes: &[u8], actions: &mut Vec<Action>) {
        let (from, port) = (at.peer.ip(), at.peer.port());
        if port == 0
            || port == TFTP_PORT
            || from.is_unspecified()
            || from.is_multicast()
            || from.is_broadcast()
        {
            return;
        }
        match Packet::parse(bytes) {
            Some(Packet::Acknowledge(number)) => self.acknowledge(now, at, number, actions),
            Some(Packet::Read(request)) => self.read(now, at, &request, actions),
            Some(Packet::Write(_)) if at.port == LISTENER && self.accepting => {
                actions.push(self.denial(at, READ_ONLY));
            }
            Some(Packet::Error { code, message }) => {
                if let Some(session) = self.live.get(&(at.port, at.peer)) {
                    let id = Id { port: at.port, peer: at.peer, serial: session.serial };
                    let text = String::from_utf8_lossy(message).into_owned();
                    self.end(now, id, Outcome::Aborted { code, text }, actions);
                }
            }
            Some(Packet::Data | Packet::Options) => self.stranger(now, at, actions),
            Some(Packet::Write(_)) | None => {}
        }
    }

    fn acknowledge(&mut self, now: Moment, at: &Arrival, number: u16, actions: &mut Vec<Action>) {
        let Some(session) = self.live.get_mut(&(at.port, at.peer)) else {
            return self.stranger(now, at, actions);
        };
        let id = Id { port: at.port, peer: at.peer, serial: session.serial };
        let Some((transfer, _)) = &mut session.running else { return };
        let before = transfer.is_answered();
        let step = transfer.acknowledge(number, now);
        if !before && transfer.is_answered() {
            self.answered += 1;
            // More came back at once than there is room for: the client asks again.
            if self.answered > self.limits.in_all {
                self.remove(id);
                return;
            }
        }
        self.take(now, id, step, actions);
    }

    fn read(&mut self, now: Moment, at: &Arrival, request: &Request<'_>, actions: &mut Vec<Action>) {
        if at.port != LISTENER || !self.accepting {
            return;
        }
        match request.mode {
            Mode::Octet => {}
            Mode::Netascii => return actions.push(self.denial(at, NETASCII)),
            Mode::Mail => return actions.push(self.denial(at, MAIL)),
            Mode::Other => return,
        }
        let Some(port) = self.port_for(now, at.peer, request, actions) else { return };
        if !self.make_room(*at.peer.ip()) {
            return;
        }
        self.serial += 1;
        let id = Id { port, peer: at.peer, serial: self.serial };
        let terms =
            Terms { block_size: at.block_size, window: self.limits.window, rollover: self.limits.rollover };
        let session = Session {
            serial: id.serial,
            local: at.local,
            terms,
            asked: request.asked,
            file: request.file.to_vec(),
            began: now,
            running: None,
            scheduled: None,
        };
        self.live.insert((port, at.peer), session);
        self.over_since.remove(&(port, at.peer));
        *self.per_client.entry(*at.peer.ip()).or_default() += 1;
        self.half_open.push_back(id);
        actions.push(Action::Open { id, file: request.file.to_vec() });
    }

    /// Which socket serves a request. A request that comes again gets another one, as RFC 1350 §4 wants it: the
    /// client takes one of the answers and turns the other down.
    fn port_for(
        &mut self,
        now: Moment,
        peer: SocketAddrV4,
        request: &Request<'_>,
        actions: &mut Vec<Action>,
    ) -> Option<Port> {
        if self.limits.senders == 0 {
            return self.single_port(now, peer, request, actions).then_some(LISTENER);
        }
        let free = (1..=self.limits.senders).map(Port).filter(|port| !self.live.contains_key(&(*port, peer)));
        // A port that it has just used would mix up late packets: the longest unused one.
        free.min_by_key(|port| (self.over_since.get(&(*port, peer)).copied(), *port))
    }

    /// Whether a request may begin a transfer although all of them share one port.
    fn single_port(
        &mut self,
        now: Moment,
        peer: SocketAddrV4,
        request: &Request<'_>,
        actions: &mut Vec<Action>,
    ) -> bool {
        let Some(session) = self.live.get(&(LISTENER, peer)) else { return true };
        let same = session.file == request.file && session.asked == request.asked;
        let idle = session.running.as_ref().map_or(Duration::ZERO, |(transfer, _)| transfer.idle(now));
        if same && idle < REPEAT_PAUSE {
            return false;
        }
        let id = Id { port: LISTENER, peer, serial: session.serial };
        self.end(now, id, Outcome::Replaced, actions);
        true
    }

    /// Whether there is room for one more of this address; what nobody has answered yet makes some.
    fn make_room(&mut self, client: Ipv4Addr) -> bool {
        let waiting = self.limits.in_all.saturating_mul(WAITING);
        if self.half_open.len() > waiting.saturating_mul(2) {
            let live = &self.live;
            self.half_open.retain(|id| is_half_open(live, id));
        }
        if self.per_client.get(&client).is_some_and(|count| *count >= self.limits.per_client) {
            return self.give_way(|id| *id.peer.ip() == client);
        }
        if self.answered >= self.limits.in_all {
            return false;
        }
        self.live.len() - self.answered < waiting || self.give_way(|_| true)
    }

    /// Drops the oldest transfer of these that was never answered.
    fn give_way(&mut self, of: impl Fn(&Id) -> bool) -> bool {
        let live = &self.live;
        let oldest = self.half_open.iter().position(|id| of(id) && is_half_open(live, id));
        let Some(id) = oldest.and_then(|at| self.half_open.remove(at)) else { return false };
        self.remove(id).is_some()
    }

    /// The content of a transfer was found, with its length in bytes; or it was not.
    pub fn opened(
        &mut self,
        now: Moment,
        id: Id,
        content: Result<(C, u64), Denial>,
        actions: &mut Vec<Action>,
    ) {
        let Some(session) =
            self.live.get_mut(&(id.port, id.peer)).filter(|session| session.serial == id.serial)
        else {
            return; // it gave way
        };
        match content {
            Ok((content, length)) => {
                let (transfer, flight) = Transfer::begin(&session.asked, &session.terms, length, now);
                session.running = Some((transfer, content));
                self.schedule(id);
                actions.push(Action::Send { id, flight });
            }
            Err(denial) => {
                actions.push(reply(id.port, session.local, id.peer, denial));
                self.remove(id);
                self.remember(now, id);
            }
        }
    }

    /// The content of a transfer cannot be read any more.
    pub fn read_failed(&mut self, now: Moment, id: Id, actions: &mut Vec<Action>) {
        if let Some(session) = self.session(id) {
            actions.push(reply(id.port, session.local, id.peer, READ_FAILED));
            self.end(now, id, Outcome::ReadFailed, actions);
        }
    }

    /// Time has passed.
    pub fn expire(&mut self, now: Moment, actions: &mut Vec<Action>) {
        while let Some(Reverse((moment, id))) =
            self.timers.peek().copied().filter(|Reverse((at, _))| *at <= now)
        {
            self.timers.pop();
            let Some(session) = self
                .live
                .get_mut(&(id.port, id.peer))
                .filter(|session| session.serial == id.serial && session.scheduled == Some(moment))
            else {
                continue;
            };
            session.scheduled = None;
            let Some((transfer, _)) = &mut session.running else { continue };
            let step = transfer.expire(now);
            self.take(now, id, step, actions);
            self.schedule(id);
        }
        self.forget(now);
    }

    /// When [`expire`](Self::expire) is to be called.
    pub fn deadline(&self) -> Option<Moment> {
        self.timers.peek().map(|Reverse((moment, _))| *moment)
    }

    /// Takes no more requests.
    pub fn close(&mut self) {
        self.accepting = false;
    }

    /// Ends all transfers, and tells the clients.
    pub fn stop(&mut self, now: Moment, actions: &mut Vec<Action>) {
        self.close();
        let all: Vec<Id> = self
            .live
            .iter()
            .map(|((port, peer), session)| Id { port: *port, peer: *peer, serial: session.serial })
            .collect();
        for id in all {
            if let Some(session) = self.session(id) {
                actions.push(reply(id.port, session.local, id.peer, STOPPING));
            }
            self.end(now, id, Outcome::Stopped, actions);
        }
    }

    /// A running transfer, what it sends, and the address of ours that it sends from.
    pub fn running(&self, id: Id) -> Option<(&Transfer, &C, Ipv4Addr)> {
        let session = self.session(id)?;
        session.running.as_ref().map(|(transfer, content)| (transfer, content, session.local))
    }

    /// How many transfers there are.
    pub fn len(&self) -> usize {
        self.live.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    fn session(&self, id: Id) -> Option<&Session<C>> {
        self.live.get(&(id.port, id.peer)).filter(|session| session.serial == id.serial)
    }

    fn take(&mut self, now: Moment, id: Id, step: Step, actions: &mut Vec<Action>) {
        match step {
            Step::Wait => {}
            Step::Send(flight) => {
                self.schedule(id);
                actions.push(Action::Send { id, flight });
            }
            Step::Done(finish) => self.end(now, id, Outcome::Finished(finish), actions),
        }
    }

    /// Sees to it that the heap wakes us by the transfer's deadline. One that moved away needs no new entry: the old
    /// one wakes us too soon, and makes it.
    fn schedule(&mut self, id: Id) {
        let Some(session) =
            self.live.get_mut(&(id.port, id.peer)).filter(|session| session.serial == id.serial)
        else {
            return;
        };
        let Some((transfer, _)) = &session.running else { return };
        let deadline = transfer.deadline();
        if session.scheduled.is_none_or(|scheduled| deadline < scheduled) {
            session.scheduled = Some(deadline);
            self.timers.push(Reverse((deadline, id)));
        }
        if self.timers.len() > self.limits.in_all.saturating_mul(TIMERS_PER_TRANSFER) {
            let live = &self.live;
            self.timers.retain(|Reverse((moment, id))| {
                live.get(&(id.port, id.peer))
                    .is_some_and(|session| session.serial == id.serial && session.scheduled == Some(*moment))
            });
        }
    }

    /// A request that the shell has no room for: the client asks again.
    pub fn abandon(&mut self, id: Id) {
        self.remove(id);
    }

    fn end(&mut self, now: Moment, id: Id, outcome: Outcome, actions: &mut Vec<Action>) {
        let Some(session) = self.remove(id) else { return };
        self.remember(now, id);
        let Some((transfer, _)) = session.running else { return };
        let bytes = transfer.bytes_arrived();
        let took = now.saturating_sub(session.began);
        actions.push(Action::Tell(Ended { peer: id.peer, file: session.file, bytes, took, outcome }));
    }

    fn remove(&mut self, id: Id) -> Option<Session<C>> {
        self.session(id)?;
        if let Some(count) = self.per_client.get_mut(id.peer.ip()) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.per_client.remove(id.peer.ip());
            }
        }
        let session = self.live.remove(&(id.port, id.peer))?;
        if !session.is_half_open() {
            self.answered = self.answered.saturating_sub(1);
        }
        Some(session)
    }

    fn remember(&mut self, now: Moment, id: Id) {
        self.over.push_back((now, (id.port, id.peer)));
        self.over_since.insert((id.port, id.peer), now);
        self.forget(now);
    }

    fn forget(&mut self, now: Moment) {
        while let Some((since, key)) = self.over.front().copied()
            && (now.saturating_sub(since) > AFTERGLOW || self.over.len() > AFTERGLOW_LIMIT)
        {
            self.over.pop_front();
            if self.over_since.get(&key) == Some(&since) {
                self.over_since.remove(&key);
            }
        }
    }

    /// A packet of no transfer that we know: at most one ERROR in a while, lest two servers talk for ever.
    fn stranger(&mut self, now: Moment, at: &Arrival, actions: &mut Vec<Action>) {
        let key = (at.port, at.peer);
        if self.live.contains_key(&key) || self.over_since.contains_key(&key) || !self.accepting {
            return;
        }
        let slot = usize::try_from(at.peer.ip().to_bits()).unwrap_or_default() % STRANGER_SLOTS;
        let Some(last) = self.strangers.get_mut(slot) else { return };
        if last.is_none_or(|last| now.saturating_sub(last) >= STRANGER_PAUSE) {
            *last = Some(now);
            actions.push(reply(at.port, at.local, at.peer, UNKNOWN));
        }
    }

    fn denial(&self, at: &Arrival, denial: Denial) -> Action {
        let port = if self.limits.senders == 0 { LISTENER } else { Port(1) };
        reply(port, at.local, at.peer, denial)
    }
}

fn is_half_open<C>(live: &HashMap<Key, Session<C>>, id: &Id) -> bool {
    live.get(&(id.port, id.peer)).is_some_and(|session| session.serial == id.serial && session.is_half_open())
}

fn reply(port: Port, local: Ipv4Addr, peer: SocketAddrV4, denial: Denial) -> Action {
    Action::Reply { port, local, peer, packet: error(denial.code, denial.text) }
}

#[cfg(test)]
mod tests;

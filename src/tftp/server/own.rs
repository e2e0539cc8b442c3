//! The own engine: one thread with an epoll loop drives the pure [`Sessions`] over a few sockets. A shell.
//!
//! One port per transfer is what a client sees: several clients share a socket, since a transfer is known by both
//! ends, and no client has two transfers on one. So packets of many clients come and go in one call.
//!
//! Invariant: the loop never waits for the disk. Names are looked up by the library's own tasks, pieces of files are
//! read by a second thread, and the loop sends from memory.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, UdpSocket},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ipnet::Ipv4Net;
use nix::sys::{
    epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
    eventfd::{EfdFlags, EventFd},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{
    Engine, Library, Settings,
    content::{Content, Missing},
    socket::{Way, Wire},
};
use crate::tftp::{
    sessions::{Action, Denial, Id, Limits, Port, Sessions},
    transfer::{Flight, Moment},
};

/// Sockets that send files; as many transfers may one client port have at once.
const SENDERS: u8 = 4;
/// Names that are looked up at the same time.
const LOOKUPS: usize = 16;
/// Pieces of files that wait to be read.
const LOADS: usize = 1024;
/// For how long transfers go on after the server was told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Marks the event that the loop was sent something.
const WAKE: u64 = u64::MAX;

/// bootflip's own engine.
#[derive(Debug, Clone)]
pub struct Own(pub Settings);

impl Engine for Own {
    fn serve(
        &self,
        socket: UdpSocket,
        library: Arc<dyn Library>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, io::Result<()>> {
        let settings = self.0.clone();
        Box::pin(serve(settings, socket, library, stop))
    }
}

async fn serve(
    settings: Settings,
    socket: UdpSocket,
    library: Arc<dyn Library>,
    stop: CancellationToken,
) -> io::Result<()> {
    let senders = if settings.single_port { 0 } else { SENDERS };
    let limits = Limits {
        window: settings.window,
        rollover: settings.rollover,
        per_client: settings.per_client,
        in_all: settings.in_all,
        senders,
    };
    let inbox = Arc::new(Inbox::new()?);
    let guard = CutWhenDropped(Arc::clone(&inbox));
    let (opens, requests) = mpsc::channel(settings.in_all.max(1));
    let (loads, wanted) = sync_channel(LOADS);
    let (end, mut ended) = oneshot::channel();
    let reader = Arc::clone(&inbox);
    thread("tftp-read", move || read_pieces(&wanted, &reader))?;
    let (own_inbox, own_library) = (Arc::clone(&inbox), Arc::clone(&library));
    let engine = move || {
        Loop {
            wire: Wire::new(socket, senders, settings.device.as_deref(), settings.block_size)?,
            sessions: Sessions::new(limits),
            inbox: own_inbox,
            opens,
            loads,
            parked: HashMap::new(),
            library: own_library,
            clients: settings.clients,
            began: Instant::now(),
            actions: Vec::new(),
            drained_by: None,
        }
        .run()
    };
    // The loop's buffers stay on its thread, so it is made there.
    thread("tftp", move || drop(end.send(engine())))?;
    let result = tokio::select! {
        result = &mut ended => result,
        () = look_up(requests, &library, &inbox) => ended.await,
        () = stop.cancelled() => {
            inbox.put(Event::Stop);
            ended.await
        }
    };
    drop(guard);
    result.unwrap_or_else(|_| Err(io::Error::other("the TFTP thread panicked")))
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

/// Looks names up, a few at a time, until the loop is gone.
async fn look_up(
    mut requests: mpsc::Receiver<(Id, Vec<u8>)>,
    library: &Arc<dyn Library>,
    inbox: &Arc<Inbox>,
) {
    let mut running = JoinSet::new();
    while let Some((id, file)) = requests.recv().await {
        while running.len() >= LOOKUPS {
            running.join_next().await;
        }
        let (library, inbox) = (Arc::clone(library), Arc::clone(inbox));
        running.spawn(async move {
            let content = library.open(IpAddr::V4(*id.peer.ip()), &file).await;
            inbox.put(Event::Opened(id, content.map_err(|refusal| refusal.denial())));
        });
        while running.try_join_next().is_some() {}
    }
}

/// A piece to read.
struct Load {
    content: Content,
    index: u64,
    /// Who waits for it; `None`: it is read ahead.
    waiting: Option<Id>,
}

/// Reads pieces of files until the loop is gone.
fn read_pieces(wanted: &Receiver<Load>, inbox: &Inbox) {
    while let Ok(Load { content, index, waiting }) = wanted.recv() {
        let read = content.load(index);
        match waiting {
            Some(id) => inbox.put(Event::Loaded(id, read)),
            None => drop(read), // kept by the file's pieces, or tried again when it is needed
        }
    }
}

enum Event {
    Opened(Id, Result<Content, Denial>),
    Loaded(Id, io::Result<Bytes>),
    /// Take no more requests, and end when the transfers have.
    Stop,
    /// End at once.
    Cut,
}

/// What other threads tell the loop.
struct Inbox {
    events: Mutex<VecDeque<Event>>,
    wake: EventFd,
}

impl Inbox {
    fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { events: Mutex::default(), wake })
    }

    fn put(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        // It fails only when the loop has been woken 2^64 times and did not look.
        let _ = self.wake.write(1);
    }

    fn take(&self) -> VecDeque<Event> {
        let _ = self.wake.read(); // empty when somebody took all before
        std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct CutWhenDropped(Arc<Inbox>);

impl Drop for CutWhenDropped {
    fn drop(&mut self) {
        self.0.put(Event::Cut);
    }
}

struct Loop {
    wire: Wire,
    sessions: Sessions<Content>,
    inbox: Arc<Inbox>,
    opens: mpsc::Sender<(Id, Vec<u8>)>,
    loads: SyncSender<Load>,
    /// Transfers that wait for a piece, with what they want to send.
    parked: HashMap<Id, Flight>,
    library: Arc<dyn Library>,
    /// The networks that are answered; none: all.
    clients: Vec<Ipv4Net>,
    began: Instant,
    actions: Vec<Action>,
    /// Once we are told to stop: by when the last transfer is cut.
    drained_by: Option<Moment>,
}

impl Loop {
    fn run(mut self) -> io::Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for (port, socket) in self.wire.sockets() {
            epoll.add(socket, EpollEvent::new(EpollFlags::EPOLLIN, port.0.into()))?;
        }
        epoll.add(&self.inbox.wake, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let mut events = [EpollEvent::empty(); 16];
        loop {
            let ready = match epoll.wait(&mut events, self.pause()) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in events.iter().take(ready) {
                match u8::try_from(event.data()) {
                    Ok(port) => self.receive(Port(port))?,
                    Err(_) => {
                        if self.hear() {
                            return Ok(());
                        }
                    }
                }
            }
            let now = self.now();
            self.sessions.expire(now, &mut self.actions);
            if self.drained_by.is_some_and(|by| now >= by) {
                self.sessions.stop(now, &mut self.actions);
            }
            self.act();
            if self.drained_by.is_some() && self.sessions.is_empty() {
                return Ok(());
            }
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// How long nothing is to be done, should nothing arrive.
    fn pause(&self) -> EpollTimeout {
        let next = [self.sessions.deadline(), self.drained_by].into_iter().flatten().min();
        let Some(next) = next else { return EpollTimeout::NONE };
        // Rounded up: waking too soon means waking twice.
        let pause = next.saturating_sub(self.now()) + Duration::from_micros(999);
        EpollTimeout::try_from(pause).unwrap_or(EpollTimeout::MAX)
    }

    fn receive(&mut self, port: Port) -> io::Result<()> {
        loop {
            let now = self.now();
            let Self { wire, sessions, actions, clients, .. } = self;
            let more = wire.receive(port, now, |arrival, bytes| {
                let peer = arrival.peer.ip();
                if clients.is_empty() || clients.iter().any(|network| network.contains(peer)) {
                    sessions.receive(now, arrival, bytes, actions);
                }
            })?;
            self.act();
            if !more {
                return Ok(());
            }
        }
    }

    /// Takes what other threads told. `true`: end at once.
    fn hear(&mut self) -> bool {
        for event in self.inbox.take() {
            let now = self.now();
            match event {
                Event::Opened(id, content) => {
                    let content = content.map(|content| {
                        let length = content.length();
                        (content, length)
                    });
                    self.sessions.opened(now, id, content, &mut self.actions);
                }
                Event::Loaded(id, Ok(_)) => {
                    if let Some(flight) = self.parked.remove(&id) {
                        self.actions.push(Action::Send { id, flight });
                    }
                }
                Event::Loaded(id, Err(error)) => {
                    debug!(peer = %id.peer, %error, "TFTP file cannot be read");
                    self.parked.remove(&id);
                    self.sessions.read_failed(now, id, &mut self.actions);
                }
                Event::Stop => {
                    self.sessions.close();
                    self.drained_by = Some(now + DRAIN);
                }
                Event::Cut => return true,
            }
        }
        false
    }

    fn act(&mut self) {
        let mut actions = std::mem::take(&mut self.actions);
        for action in actions.drain(..) {
            match action {
                Action::Open { id, file } => {
                    if self.opens.try_send((id, file)).is_err() {
                        self.sessions.abandon(id);
                    }
                }
                Action::Send { id, flight } => self.transmit(id, flight),
                Action::Reply { port, local, peer, packet } => {
                    self.wire.send(&Way { port, local, peer }, &packet);
                }
                Action::Tell(ended) => self.library.ended(ended),
            }
        }
        self.actions = actions;
        self.wire.flush();
    }

    fn transmit(&mut self, id: Id, flight: Flight) {
        let Some((transfer, content, local)) = self.sessions.running(id) else { return };
        let way = Way { port: id.port, local, peer: id.peer };
        let (first, count) = match flight {
            Flight::Options => return self.wire.send(&way, &transfer.granted().packet()),
            Flight::Blocks { first, count } => (first, count),
        };
        let (offset, length) = transfer.span(first, count);
        let mut parts = Vec::with_capacity(4);
        let load = |index, waiting| Load { content: content.clone(), index, waiting };
        if let Err(Missing(index)) = content.gather(offset, length, &mut parts) {
            // Where too many wait already, the transfer's timer asks again.
            if !self.parked.contains_key(&id) && self.loads.try_send(load(index, Some(id))).is_ok() {
                self.parked.insert(id, flight);
            }
            return;
        }
        let size = usize::from(transfer.block_size());
        if count == 1 {
            self.wire.send_blocks(&way, &[transfer.number(first)], size, &parts);
        } else {
            let numbers: Vec<u16> =
                (first..first + u64::from(count)).map(|block| transfer.number(block)).collect();
            self.wire.send_blocks(&way, &numbers, size, &parts);
        }
        if let Some(index) = content.ahead(offset, length) {
            let _ = self.loads.try_send(load(index, None)); // else it is read when it is needed
        }
    }
}

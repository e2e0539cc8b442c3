//! What is sent back: text from memory, or part of a file; and the access log, an event for each request once its
//! answer has left or its client has gone.

use std::{
    fs::File,
    future::Future,
    io::{self, IoSliceMut},
    net::IpAddr,
    os::unix::fs::FileExt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use hyper::body::{Body, Buf, Bytes, Frame, SizeHint};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::{task::JoinHandle, time::Instant};
use tracing::info;

use super::{
    seats::Seat,
    wire::{Outlet, Span, WINDOW, placeholder},
};
use crate::{
    boot::{
        going::Going,
        sink::{Protocol, Sink, Transfer},
    },
    machine::MacAddr,
};

/// `f_type` of tmpfs in statfs(2): its files are always in memory.
const TMPFS: u64 = 0x0102_1994;

/// One request, for the access log; told when the last piece of its answer is gone.
#[derive(Debug)]
pub(super) struct Access {
    pub(super) begun: Instant,
    pub(super) peer: IpAddr,
    pub(super) method: String,
    /// Without tokens.
    pub(super) path: String,
    pub(super) mac: Option<MacAddr>,
    pub(super) job: Option<String>,
    pub(super) status: u16,
    /// Bytes of body that are to leave.
    pub(super) length: u64,
    pub(super) sent: AtomicU64,
    /// Of a file: for whoever looks while it leaves.
    pub(super) going: Option<Arc<Going>>,
    pub(super) seat: Arc<Seat>,
    pub(super) sink: Arc<dyn Sink>,
}

impl Drop for Access {
    fn drop(&mut self) {
        self.seat.end();
        let bytes = self.sent.load(Ordering::Relaxed);
        let outcome = match self.status {
            _ if bytes < self.length => "broken-off",
            200..300 => "sent",
            304 => "not-modified",
            _ => "refused",
        };
        let took = self.begun.elapsed();
        let seconds = took.as_secs_f64();
        // What is nobody's is in the log alone.
        if self.mac.is_some() {
            self.sink.transferred(Transfer {
                protocol: Protocol::Http,
                mac: self.mac,
                job: self.job.clone(),
                peer: self.peer,
                file: self.path.clone(),
                bytes,
                took,
                outcome,
            });
        }
        let (mac, job) = (self.mac.map(tracing::field::display), self.job.as_deref());
        info!(
            target: "bootflip::access",
            peer = %self.peer, mac, job, method = %self.method, path = %self.path, status = self.status, bytes,
            seconds, outcome, "boot HTTP"
        );
    }
}

/// What a body is made of.
#[derive(Debug)]
pub(super) enum Content {
    /// Nothing: errors without words, HEAD, 304.
    Empty,
    /// From memory.
    Text(Bytes),
    /// From a file.
    Part(Part),
}

/// Bytes of a file.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: Arc<File>,
    pub(super) first: u64,
    pub(super) length: u64,
    pub(super) cached: Cached,
    pub(super) warming: Option<JoinHandle<io::Result<()>>>,
}

/// Whether the page cache has a file's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cached {
    /// Always: the file system is in memory.
    Always,
    /// To be asked for each window.
    Perhaps,
    /// Cannot be known; reading may block.
    Unknown,
}

impl Cached {
    /// Asks the file system once.
    pub(super) fn of(file: &File) -> Self {
        match resident(file, 0) {
            Err(Errno::OPNOTSUPP) => match rustix::fs::fstatfs(file) {
                Ok(about) if u64::try_from(about.f_type) == Ok(TMPFS) => Self::Always,
                Ok(_) | Err(_) => Self::Unknown,
            },
            Ok(_) | Err(_) => Self::Perhaps,
        }
    }
}

/// Whether the byte at this offset can be read without waiting for a disk.
fn resident(file: &File, at: u64) -> Result<bool, Errno> {
    let mut byte = [0];
    match rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(error) => Err(error),
    }
}

impl Part {
    /// The next window, queued for the wire once the page cache has it: sendfile would wait for the disk, and with it
    /// every other client of this thread.
    fn poll_window(&mut self, context: &mut Context<'_>, outlet: &Outlet) -> Poll<Option<io::Result<usize>>> {
        let length = usize::try_from(self.length).unwrap_or(usize::MAX).min(WINDOW);
        if length == 0 {
            return Poll::Ready(None);
        }
        if self.warming.is_none() && !self.is_warm(length) {
            let (file, first) = (Arc::clone(&self.file), self.first);
            self.warming = Some(tokio::task::spawn_blocking(move || warm(&file, first, length)));
        }
        if let Some(warming) = &mut self.warming {
            let warmed = ready!(Pin::new(warming).poll(context)).map_err(io::Error::other).flatten();
            self.warming = None;
            if let Err(error) = warmed {
                return Poll::Ready(Some(Err(error)));
            }
        }
        outlet.push(Span { file: Arc::clone(&self.file), first: self.first, length });
        let moved = u64::try_from(length).unwrap_or(u64::MAX);
        self.first += moved;
        self.length -= moved;
        Poll::Ready(Some(Ok(length)))
    }

    /// The kernel reads files in order and ahead: a window whose ends are there is there.
    fn is_warm(&self, length: usize) -> bool {
        let last = self.first + u64::try_from(length).unwrap_or(1) - 1;
        match self.cached {
            Cached::Always => true,
            Cached::Unknown => false,
            Cached::Perhaps => [self.first, last].iter().all(|at| resident(&self.file, *at).unwrap_or(false)),
        }
    }
}

/// Bytes of a piece that is only read to be in the page cache; every client of a slow disk has one.
const WARMED_AT_ONCE: usize = 1 << 16;

/// Reads a window into the page cache. Blocks for as long as the disk does.
fn warm(file: &File, first: u64, length: usize) -> io::Result<()> {
    let mut piece = vec![0; WARMED_AT_ONCE];
    let mut done = 0;
    while done < length {
        let at = first + u64::try_from(done).unwrap_or(u64::MAX);
        match file.read_at(&mut piece, at) {
            Ok(0) => return Ok(()), // cut short: sendfile finds out
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct Reply {
    content: Content,
    access: Arc<Access>,
    outlet: Outlet,
}

impl Reply {
    pub(super) fn new(content: Content, access: Access, outlet: Outlet) -> Self {
        Self { content, access: Arc::new(access), outlet }
    }

    /// Bytes that are still to leave.
    fn rest(&self) -> u64 {
        match &self.content {
            Content::Empty => 0,
            Content::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Content::Part(part) => part.length,
        }
    }
}

impl Body for Reply {
    type Data = Piece;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, io::Error>>> {
        let Self { content, access, outlet } = &mut *self;
        let bytes = match content {
            Content::Empty => return Poll::Ready(None),
            Content::Text(text) if text.is_empty() => return Poll::Ready(None),
            Content::Text(text) => PieceBytes::Text(std::mem::take(text)),
            Content::Part(part) => match ready!(part.poll_window(context, outlet)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(left)) => PieceBytes::Window { left, outlet: outlet.clone() },
            },
        };
        Poll::Ready(Some(Ok(Frame::data(Piece { bytes, access: Arc::clone(access) }))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest())
    }
}

/// A piece of a body in hyper's queue.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: PieceBytes,
    access: Arc<Access>,
}

#[derive(Debug)]
enum PieceBytes {
    Text(Bytes),
    /// Of a file; the wire sends them itself.
    Window {
        left: usize,
        outlet: Outlet,
    },
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        match &self.bytes {
            PieceBytes::Text(text) => text.len(),
            PieceBytes::Window { left, .. } => *left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match &self.bytes {
            PieceBytes::Text(text) => text,
            PieceBytes::Window { left, .. } => placeholder(*left),
        }
    }

    fn advance(&mut self, count: usize) {
        match &mut self.bytes {
            PieceBytes::Text(text) => text.advance(count),
            PieceBytes::Window { left, outlet } => {
                *left -= count;
                outlet.settle(count);
            }
        }
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.access.sent.fetch_add(count, Ordering::Relaxed);
        if let Some(going) = &self.access.going {
            going.add(count);
        }
    }
}

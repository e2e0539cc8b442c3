//! A client's connection below hyper: bytes of files go from the page cache to the socket by sendfile(2).
//!
//! hyper frames every message. Where the bytes of a file belong it has placeholders in its queue: slices of
//! [`PLACEHOLDER`], which it hands on without looking at them. [`Wire`] knows them by their address and sends as many
//! bytes of the file that is next in the [`Outlet`].
//!
//! Invariant: a placeholder never leaves. Should hyper ever copy one, its bytes would be counted as written without
//! having been sent; [`Outlet::settle`] notices that before anything leaves, and the connection breaks.
//! A client that takes nothing for [`SEND_STALL`](super::Limits) is gone.

use std::{
    collections::VecDeque,
    fs::File,
    future::Future,
    io::{self, IoSlice},
    os::fd::AsFd,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, Sleep},
};

/// Bytes of a file that are queued at once: what is read ahead for a client, and the longest single sendfile.
pub(super) const WINDOW: usize = 4 << 20;
/// What stands in hyper's queue for bytes of a file. Zeroes that are never read, and take no memory.
static PLACEHOLDER: [u8; WINDOW] = [0; WINDOW];

/// So many bytes of placeholder, at most [`WINDOW`].
pub(super) fn placeholder(length: usize) -> &'static [u8] {
    PLACEHOLDER.get(..length).unwrap_or(&PLACEHOLDER)
}

fn is_placeholder(slice: &[u8]) -> bool {
    PLACEHOLDER.as_ptr_range().contains(&slice.as_ptr())
}

/// Bytes of a file that are to be sent.
#[derive(Debug)]
pub(super) struct Span {
    pub(super) file: Arc<File>,
    pub(super) first: u64,
    pub(super) length: usize,
}

/// What a connection has to send of files, in the order of its placeholders.
#[derive(Debug, Clone, Default)]
pub(super) struct Outlet(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    spans: VecDeque<Span>,
    /// Bytes sent whose placeholders hyper still has.
    unsettled: usize,
    broken: bool,
}

impl Outlet {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a span; its placeholder must be queued next.
    pub(super) fn push(&self, span: Span) {
        self.queue().spans.push_back(span);
    }

    /// hyper counts these bytes of placeholder as written.
    pub(super) fn settle(&self, count: usize) {
        let mut queue = self.queue();
        match queue.unsettled.checked_sub(count) {
            Some(rest) => queue.unsettled = rest,
            None => queue.broken = true,
        }
    }

    fn is_broken(&self) -> bool {
        self.queue().broken
    }

    /// Sends bytes of the next span, at most `limit`. Reads what is in the page cache (`reply` has seen to that).
    fn send(&self, stream: impl AsFd, limit: usize) -> io::Result<usize> {
        let mut queue = self.queue();
        let Some(span) = queue.spans.front_mut() else { return Err(io::ErrorKind::InvalidData.into()) };
        let mut first = span.first;
        let sent = rustix::fs::sendfile(stream, &*span.file, Some(&mut first), limit.min(span.length))?;
        if sent == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into()); // somebody has cut the file short
        }
        span.first = first;
        span.length -= sent;
        if span.length == 0 {
            queue.spans.pop_front();
        }
        queue.unsettled += sent;
        Ok(sent)
    }
}

/// A client's connection.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TokioIo<TcpStream>,
    outlet: Outlet,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Wire {
    /// `patience`: for how long a client may take nothing.
    pub(super) fn new(stream: TcpStream, outlet: Outlet, patience: Duration) -> Self {
        Self { stream: TokioIo::new(stream), outlet, patience, stalled: None }
    }

    fn poll_send(&self, context: &mut Context<'_>, limit: usize) -> Poll<io::Result<usize>> {
        let stream = self.stream.inner();
        loop {
            ready!(stream.poll_write_ready(context))?;
            match stream.try_io(Interest::WRITABLE, || self.outlet.send(stream, limit)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                done => return Poll::Ready(done),
            }
        }
    }

    fn poll_pieces(&mut self, context: &mut Context<'_>, pieces: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.outlet.is_broken() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let plain = pieces.iter().take_while(|piece| !is_placeholder(piece)).count();
        match pieces.get(..plain) {
            Some(plain) if !plain.is_empty() => {
                Pin::new(&mut self.stream).poll_write_vectored(context, plain)
            }
            Some(_) | None => match pieces.first() {
                Some(placeholder) => self.poll_send(context, placeholder.len()),
                None => Poll::Ready(Ok(0)),
            },
        }
    }

    /// A client that takes nothing for too long makes an error of it.
    fn watch<T>(&mut self, context: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled =
            self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + patience)));
        match stalled.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl Write for Wire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_pieces(context, pieces);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    fn outlet(text: &str) -> Outlet {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let outlet = Outlet::default();
        outlet.push(Span { file: Arc::new(file), first: 2, length: 6 });
        outlet
    }

    #[test]
    fn placeholders_are_told_by_their_address_and_nothing_else_is_taken_for_one() {
        assert!(is_placeholder(placeholder(1)) && is_placeholder(placeholder(WINDOW)));
        assert!(is_placeholder(&placeholder(10)[3..]), "what is left of one");
        let copied = placeholder(10).to_vec();
        assert!(!is_placeholder(&[0; 10]) && !is_placeholder(&copied));
        assert_eq!(placeholder(WINDOW + 1).len(), WINDOW);
    }

    #[test]
    fn a_part_of_a_file_leaves_for_its_placeholder() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let outlet = outlet("abcdefghij");
        assert_eq!(outlet.send(&ours, 4).unwrap(), 4);
        outlet.settle(4);
        assert_eq!(outlet.send(&ours, 100).unwrap(), 2, "no more than the span");
        outlet.settle(2);
        assert!(!outlet.is_broken());
        assert!(outlet.send(&ours, 1).is_err(), "nothing is left to send");
        drop(ours);
        let mut got = String::new();
        theirs.read_to_string(&mut got).unwrap();
        assert_eq!(got, "cdefgh");
    }

    #[test]
    fn a_placeholder_that_was_copied_breaks_the_connection_before_it_leaves() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let outlet = outlet("abcdefghij");
        assert_eq!(outlet.send(&ours, 4).unwrap(), 4);
        outlet.settle(5);
        assert!(outlet.is_broken());
    }

    #[test]
    fn a_file_that_was_cut_short_is_an_error() {
        let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(outlet("ab").send(&ours, 4).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

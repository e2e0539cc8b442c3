//! How long a client may take: for the body of a request, and to take what it is sent.
//!
//! Invariant: a client that stands still gives its connection back, whatever it stands still at. A stream of events
//! says every 15 s that it lives, so one that is not read stands still too.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, extract::Request};
use hyper::body::{Body as HttpBody, Bytes, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Sleep,
};
use tokio_io_timeout::TimeoutStream;

/// How long a request's body may take, whole: the largest is 2 MiB.
const BODY_TIME: Duration = Duration::from_secs(20);

/// How long a client may take nothing of what it is sent.
const WRITE_TIME: Duration = Duration::from_secs(30);

/// A connection that ends when its client takes nothing.
pub(super) fn impatient<S: AsyncRead + AsyncWrite>(stream: S) -> Pin<Box<TimeoutStream<S>>> {
    for_so_long(stream, WRITE_TIME)
}

fn for_so_long<S: AsyncRead + AsyncWrite>(stream: S, time: Duration) -> Pin<Box<TimeoutStream<S>>> {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(time));
    Box::pin(stream)
}

/// Gives a request's body its time; for `map_request`.
pub(super) async fn body_in_time(request: Request) -> Request {
    if request.body().is_end_stream() {
        return request;
    }
    request.map(|inner| within(inner, BODY_TIME))
}

fn within(inner: Body, time: Duration) -> Body {
    Body::new(Timed { inner, until: Box::pin(tokio::time::sleep(time)) })
}

/// A body that has to be there in time.
#[derive(Debug)]
struct Timed {
    inner: Body,
    until: Pin<Box<Sleep>>,
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.until.as_mut().poll(context).is_ready() {
            let late = io::Error::new(io::ErrorKind::TimedOut, "the request's body took too long");
            return Poll::Ready(Some(Err(axum::Error::new(late))));
        }
        Pin::new(&mut self.inner).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use futures_util::stream;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    const SHORT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn body_that_trickles_is_given_up() {
        let trickle = stream::unfold((), async |()| {
            tokio::time::sleep(SHORT / 10).await;
            Some((Ok::<_, io::Error>(Bytes::from_static(b"a")), ()))
        });
        let error = to_bytes(within(Body::from_stream(trickle), SHORT), usize::MAX).await.unwrap_err();
        assert!(error.to_string().contains("took too long"), "{error}");
        let request = body_in_time(Request::new(Body::from("whole"))).await;
        assert_eq!(to_bytes(request.into_body(), 9).await.unwrap(), "whole");
    }

    #[tokio::test]
    async fn client_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = duplex(4);
        let error = for_so_long(ours, SHORT).write_all(b"more than fits").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}

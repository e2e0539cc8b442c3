//! Accepts connections of the admin listeners and answers them. A shell.
//!
//! Invariant: a connection cannot wait for ever to say what it wants, and there are never more than [`CONNECTIONS`].

use std::{io, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{socket::Socket, who::Peer};
use crate::app::{desk::Desk, door};

/// Connections at the same time, of each listener.
const CONNECTIONS: usize = 256;

/// How long a request's head may take; so long a kept connection may be idle, too.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// The largest head of a request, in bytes.
const HEAD_LIMIT: usize = 32 * 1024;

/// The pause after the system gave no connection: it has no file numbers left.
const PAUSE: Duration = Duration::from_millis(100);

/// The open admin listeners.
#[derive(Debug)]
pub struct Served {
    /// The unix socket.
    pub socket: Socket,
}

/// Answers until `stop`; requests under way are finished, streams end.
pub async fn serve(mut served: Served, desk: Arc<Desk>, stop: CancellationToken) {
    let app = super::routes(desk);
    if let Some(listener) = served.socket.take() {
        on_socket(listener, app, stop).await;
    }
}

async fn on_socket(listener: UnixListener, app: Router, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &room) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, seat)) => {
                let peer = Peer::Socket(peer_of(&stream));
                let (app, stop) = (app.clone(), stop.clone());
                connections.spawn(async move {
                    answer(stream, peer, app, stop).await;
                    drop(seat);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin socket gives no connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &UnixListener,
    room: &Arc<Semaphore>,
) -> io::Result<(UnixStream, tokio::sync::OwnedSemaphorePermit)> {
    let seat = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, seat))
}

fn peer_of(stream: &UnixStream) -> Result<crate::access::Caller, String> {
    match stream.peer_cred() {
        Ok(peer) => door::of_socket(peer.uid(), peer.gid()),
        Err(_) => Err("an unknown user".to_owned()),
    }
}

/// Answers one connection.
async fn answer<S>(stream: S, peer: Peer, app: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let app = app.layer(Extension(peer));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "an admin connection ended badly");
    }
}

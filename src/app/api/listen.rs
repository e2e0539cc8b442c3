//! Accepts connections of the admin listeners and answers them. A shell.
//!
//! Invariants: a connection cannot wait for ever to say what it wants, to take its answer, nor for its handshake; each
//! listener has its own [`CONNECTIONS`], so that who crowds the one keeps nobody out of the other, and one address has
//! [`OF_ONE_ADDRESS`] of them at most. Nothing is shared with boot HTTP.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{Extension, Router, middleware};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    patience::{body_in_time, impatient},
    socket::{self, Socket, SocketError},
    tls::{self, Acceptor, TlsError},
    who::Peer,
};
use crate::{
    access::session::Transport,
    app::{desk::Desk, door},
    config::{Config, RemoteConfig},
};

/// Connections at the same time, of each listener.
const CONNECTIONS: usize = 256;

/// Of these, so many from one address; a proxy on this machine has all.
const OF_ONE_ADDRESS: usize = 64;

/// How long a request's head may take; so long a kept connection may be idle, too.
const HEAD_TIME: Duration = Duration::from_secs(30);

/// How long a handshake may take.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// The largest head of a request, in bytes.
const HEAD_LIMIT: usize = 32 * 1024;

/// The pause after the system gave no connection: it has no file numbers left.
const PAUSE: Duration = Duration::from_millis(100);

/// How often sessions and kept answers that are over are forgotten.
const TIDY: Duration = Duration::from_secs(600);

/// Why an admin listener is not there.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The TCP listener.
    #[error("cannot listen on {address} for the admin API; is the port taken?")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// Its certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The bound admin listeners; nothing is answered before [`serve`].
#[derive(Debug)]
pub struct Listeners {
    socket: Socket,
    remote: Option<Remote>,
}

/// The TCP listener.
#[derive(Debug)]
struct Remote {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Acceptor>,
}

/// Binds what the configuration has.
pub async fn bind(config: &Config) -> Result<Listeners, AdminError> {
    let socket = socket::bind(&config.admin.socket).await?;
    let remote = match &config.admin.remote {
        Some(remote) => Some(bind_remote(remote, &config.state_dir).await?),
        None => None,
    };
    Ok(Listeners { socket, remote })
}

/// Whether the TCP listener could be had; for `bootflip check`.
pub async fn probe(config: &RemoteConfig) -> Result<(), AdminError> {
    let address = config.listen;
    TcpListener::bind(address).await.map(drop).map_err(|source| AdminError::Listen { address, source })
}

async fn bind_remote(config: &RemoteConfig, state_dir: &Path) -> Result<Remote, AdminError> {
    let at = |source| AdminError::Listen { address: config.listen, source };
    let tls = tls::acceptor(config, state_dir)?;
    let listener = TcpListener::bind(config.listen).await.map_err(at)?;
    let address = listener.local_addr().map_err(at)?;
    let sha256 = tls.as_ref().map_or("none", |tls| tls.sha256.as_str());
    tracing::info!(%address, certificate = sha256, "the admin API listens");
    Ok(Remote { listener, address, tls })
}

impl Listeners {
    /// Where the unix socket is.
    pub fn socket(&self) -> &Path {
        self.socket.path()
    }

    /// Where the TCP listener is, and its certificate's SHA-256.
    pub fn remote(&self) -> Option<serde_json::Value> {
        let remote = self.remote.as_ref()?;
        let sha256 = remote.tls.as_ref().map(|tls| tls.sha256.as_str());
        Some(serde_json::json!({ "address": remote.address, "sha256": sha256 }))
    }
}

/// Answers until `stop`; requests under way are finished, streams end.
pub async fn serve(mut listeners: Listeners, desk: Arc<Desk>, stop: CancellationToken) {
    let app = super::routes(Arc::clone(&desk));
    let on_socket = async {
        if let Some(listener) = listeners.socket.take() {
            accept(SocketDoor(listener), &app, &stop).await;
        }
    };
    let on_remote = async {
        match listeners.remote {
            Some(remote) => accept(remote, &app, &stop).await,
            None => stop.cancelled().await,
        }
    };
    tokio::join!(on_socket, on_remote, tidy(&desk, &stop));
}

async fn tidy(desk: &Desk, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(TIDY)).await.is_some() {
        if let Err(error) = desk.door.accounts().tidy(desk.clock.now()).await {
            tracing::warn!(%error, "sessions that are over cannot be forgotten");
        }
    }
}

/// A listener of either kind.
trait Accept {
    type Stream: Send + 'static;

    async fn next(&self) -> io::Result<Self::Stream>;

    /// The address that the connection counts for; `None`: it is not counted.
    fn address(_: &Self::Stream) -> Option<IpAddr> {
        None
    }

    /// The work of one connection.
    fn connection(
        &self,
        stream: Self::Stream,
        app: Router,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static;
}

struct SocketDoor(UnixListener);

impl Accept for SocketDoor {
    type Stream = UnixStream;

    async fn next(&self) -> io::Result<UnixStream> {
        self.0.accept().await.map(|(stream, _)| stream)
    }

    fn connection(
        &self,
        stream: UnixStream,
        app: Router,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let caller = match stream.peer_cred() {
            Ok(peer) => door::of_socket(peer.uid(), peer.gid()),
            Err(_) => Err("an unknown user".to_owned()),
        };
        answer(stream, Peer::Socket(caller), app, stop)
    }
}

impl Accept for Remote {
    type Stream = (TcpStream, SocketAddr);

    async fn next(&self) -> io::Result<(TcpStream, SocketAddr)> {
        self.listener.accept().await
    }

    fn address((_, from): &Self::Stream) -> Option<IpAddr> {
        Some(from.ip().to_canonical()).filter(|address| !address.is_loopback())
    }

    fn connection(
        &self,
        (stream, from): (TcpStream, SocketAddr),
        app: Router,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let tls = self.tls.clone();
        async move {
            let _ = stream.set_nodelay(true); // only slower without
            let Some(tls) = tls else {
                return answer(stream, Peer::Remote(from, Transport::Plain), app, stop).await;
            };
            match timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
                Ok(Ok(stream)) => answer(stream, Peer::Remote(from, Transport::Tls), app, stop).await,
                Ok(Err(error)) => tracing::debug!(peer = %from, %error, "no handshake"),
                Err(_) => tracing::debug!(peer = %from, "a handshake took too long"),
            }
        }
    }
}

/// Connections of each address.
#[derive(Debug, Clone, Default)]
struct Crowd(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Crowd {
    fn change(&self, address: IpAddr, change: impl FnOnce(&mut usize) -> bool) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(address).or_default();
        let done = change(count);
        if *count == 0 {
            all.remove(&address);
        }
        done
    }

    /// A place for one more; `None`: this address has its share.
    fn enter(&self, address: IpAddr) -> Option<Entered> {
        let fits = self.change(address, |count| {
            let fits = *count < OF_ONE_ADDRESS;
            *count += usize::from(fits);
            fits
        });
        fits.then(|| Entered { crowd: self.clone(), address })
    }
}

/// Leaves the crowd when dropped.
#[derive(Debug)]
struct Entered {
    crowd: Crowd,
    address: IpAddr,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.crowd.change(self.address, |count| {
            *count = count.saturating_sub(1);
            true
        });
    }
}

async fn accept<L: Accept>(listener: L, app: &Router, stop: &CancellationToken) {
    let crowd = Crowd::default();
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = seated(&listener, &room) => accepted,
        };
        match accepted {
            Ok((stream, seat)) => {
                let entered = match L::address(&stream).map(|address| crowd.enter(address)) {
                    Some(None) => continue, // dropped: the address has its share
                    Some(entered) => entered,
                    None => None,
                };
                let connection = listener.connection(stream, app.clone(), stop.clone());
                connections.spawn(async move {
                    connection.await;
                    drop((seat, entered));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "an admin listener gives no connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

async fn seated<L: Accept>(
    listener: &L,
    room: &Arc<Semaphore>,
) -> io::Result<(L::Stream, OwnedSemaphorePermit)> {
    let seat = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    Ok((listener.next().await?, seat))
}

/// Answers one connection.
async fn answer<S>(stream: S, peer: Peer, app: Router, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let app = app.layer(Extension(peer)).layer(middleware::map_request(body_in_time));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_LIMIT)
        .serve_connection(TokioIo::new(impatient(stream)), TowerToHyperService::new(app));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_its_share_and_keeps_nobody_else_out() {
        let (crowd, one, other) =
            (Crowd::default(), IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut held: Vec<Entered> = (0..OF_ONE_ADDRESS).map(|_| crowd.enter(one).unwrap()).collect();
        assert!(crowd.enter(one).is_none());
        assert!(crowd.enter(other).is_some());
        held.pop();
        assert!(crowd.enter(one).is_some());
        held.clear();
        assert!(crowd.0.lock().unwrap().is_empty(), "nothing is remembered of who is gone");
    }
}

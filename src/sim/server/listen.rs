//! Listeners on loopback, one port at every member's address, and the connections that they take.

use std::{net::SocketAddr, time::Duration};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{SimError, SimOptions, member::Member, tls::Acceptor, wire};

/// How often a port is sought that is free at every member's address.
const PORT_TRIES: u32 = 32;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 512;
/// For a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After an error of accept (no descriptors left).
const PAUSE: Duration = Duration::from_millis(50);

/// A member's listener.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) listener: TcpListener,
    /// `None`: clear text.
    pub(super) acceptor: Option<Acceptor>,
}

/// Takes connections until it is stopped, and with it the connections.
pub(super) async fn accept(door: Door, member: Member, stop: CancellationToken) {
    loop {
        match door.listener.accept().await {
            Ok((stream, _)) => {
                let conversation = welcome(stream, door.acceptor.clone(), member.clone());
                tokio::spawn(stop.clone().run_until_cancelled_owned(conversation));
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                sleep(PAUSE).await;
            }
        }
    }
}

async fn welcome(stream: TcpStream, acceptor: Option<Acceptor>, member: Member) {
    let Some(acceptor) = acceptor else { return converse(stream, member).await };
    match timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, member).await,
        Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
        Err(error) => debug!(%error, "TLS handshake not ended in time"),
    }
}

/// One connection, kept alive as long as the client wants.
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, member: Member) {
    let service = service_fn(|request| wire::serve(&member, request));
    if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "connection ended");
    }
}

/// Listeners on one port at every address.
pub(super) fn listen(options: &SimOptions) -> Result<Vec<(SocketAddr, TcpListener)>, SimError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match listen_once(options) {
            Err(SimError::Listen { source, .. })
                if source.kind() == std::io::ErrorKind::AddrInUse
                    && options.port == 0
                    && tries < PORT_TRIES => {}
            outcome => return outcome,
        }
    }
}

fn listen_once(options: &SimOptions) -> Result<Vec<(SocketAddr, TcpListener)>, SimError> {
    let mut port = options.port;
    let mut listeners = Vec::new();
    for address in &options.addresses {
        let address = SocketAddr::from((*address, port));
        let failed = |source| SimError::Listen { address, source };
        let listener = open(address, options.device.as_deref()).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        port = bound.port();
        listeners.push((bound, listener));
    }
    Ok(listeners)
}

fn open(address: SocketAddr, device: Option<&str>) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind_device(device.map(str::as_bytes))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

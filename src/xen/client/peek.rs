//! Looks at the certificate of a server that nobody trusts yet: a TLS handshake, and nothing after it.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    sync::Arc,
    time::Duration,
};

use rustls::{ClientConnection, Error};
use rustls_pki_types::ServerName;
use tokio::time::timeout;

use crate::xen::{
    endpoint::Endpoint,
    tls::{self, Judge},
};

/// Why no certificate was seen.
#[derive(Debug, thiserror::Error)]
pub enum PeekError {
    /// Not `https://HOST`, `https://HOST:PORT`, `HOST` or `HOST:PORT`.
    #[error("`{0}` is not the address of a pool: write https://HOST or https://HOST:PORT")]
    Address(String),
    /// No connection, or none that lasted.
    #[error("{at} cannot be reached: {detail}")]
    Away {
        /// Host and port.
        at: String,
        /// What came of it.
        detail: String,
    },
    /// It speaks TLS, or ends the talk, and there is no version or cipher that both sides have.
    #[error("{at} and bootflip have no TLS in common: {detail}")]
    NothingInCommon {
        /// Host and port.
        at: String,
        /// The TLS library's words.
        detail: String,
    },
}

/// A server's certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Where, as it stands in a URL: without the port where it is 443.
    pub authority: String,
    /// The leaf, in DER. The server proved that it holds its key.
    pub leaf: Vec<u8>,
}

/// Shakes hands with the server at this URL, and leaves. No request, name or password is sent.
///
/// # Errors
/// No server, or none that speaks the TLS that is safe today.
pub async fn peek(url: &str) -> Result<Shown, PeekError> {
    let bad = || PeekError::Address(url.chars().filter(|shown| !shown.is_control()).take(64).collect());
    let text = url.strip_prefix("https://").unwrap_or(url);
    let endpoint = Endpoint::parse(text.strip_suffix('/').unwrap_or(text), HTTPS).ok_or_else(bad)?;
    let (at, name) = (endpoint.to_string(), endpoint.host.trim_matches(['[', ']']).to_owned());
    let name = ServerName::try_from(name).map_err(|_| bad())?;
    let to = at.clone();
    let handshake = tokio::task::spawn_blocking(move || shake_hands(&to, name));
    let late = || PeekError::Away { at: at.clone(), detail: format!("no answer in {DEADLINE:?}") };
    let done = timeout(DEADLINE, handshake).await.map_err(|_| late())?.map_err(|_| late())?;
    let leaf = done.map_err(|error| classed(&at, &error))?;
    let authority = if endpoint.port == HTTPS { endpoint.host.clone() } else { at };
    Ok(Shown { authority, leaf })
}

fn shake_hands(at: &str, name: ServerName<'static>) -> io::Result<Vec<u8>> {
    let config = tls::client_config(Judge::Anyone).map_err(io::Error::other)?;
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
    let address = at.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("the name has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, STALL)?;
    stream.set_read_timeout(Some(STALL))?;
    stream.set_write_timeout(Some(STALL))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut stream)?;
    }
    let leaf = tls.peer_certificates().and_then(<[_]>::first).map(|leaf| leaf.to_vec());
    tls.send_close_notify();
    // The certificate is seen; whether the farewell arrives does not matter.
    let _ = tls.complete_io(&mut stream);
    leaf.ok_or_else(|| io::Error::other("it showed no certificate"))
}

/// A server that ends the talk at our first words has nothing that we offer: old stunnel does it without a word.
fn classed(at: &str, error: &io::Error) -> PeekError {
    let tls = error.get_ref().and_then(|held| held.downcast_ref::<Error>());
    let (at, detail) = (at.to_owned(), error.to_string());
    let is_end = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    let is_tls = matches!(
        tls,
        Some(
            Error::AlertReceived(_)
                | Error::PeerIncompatible(_)
                | Error::PeerMisbehaved(_)
                | Error::InvalidCertificate(_)
        )
    );
    if is_end || is_tls { PeekError::NothingInCommon { at, detail } } else { PeekError::Away { at, detail } }
}

const HTTPS: u16 = 443;
/// Between two bytes, and for the connection.
const STALL: Duration = Duration::from_secs(5);
/// For everything.
const DEADLINE: Duration = Duration::from_secs(15);

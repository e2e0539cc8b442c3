//! A server over the network: `--server URL --token-file FILE`.
//!
//! Invariants: a token is read from a file that nobody else can read, never from an argument or the environment, where
//! `ps` would show it; it goes to the server that was named, over TLS that was checked, or to this machine itself.

use std::{
    fmt, fs, io,
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use hyper::header::HeaderValue;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;

use super::{Ended, Stop};
use crate::secret::Secret;

/// Which server; without these the one of this machine's configuration.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "A server over the network")]
pub(super) struct RemoteArgs {
    /// Ask this server by its admin listener, such as https://boot.example:8443.
    #[arg(long, global = true, value_name = "URL", env = SERVER)]
    server: Option<String>,
    /// The file that holds the token (mode 0600).
    #[arg(long, global = true, value_name = "FILE", env = "BOOTFLIP_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// What the server's certificate hangs on, in PEM; a certificate that signs itself, too. Default: the system's CAs.
    #[arg(long, global = true, value_name = "FILE", env = "BOOTFLIP_CA_FILE")]
    ca_file: Option<PathBuf>,
}

impl RemoteArgs {
    /// Whether a server over the network is meant.
    pub(super) const fn is_given(&self) -> bool {
        self.server.is_some()
    }

    /// Whether the command line names it. (What the environment says does not hold for commands without a server.)
    pub(super) fn is_explicit(&self) -> bool {
        self.is_given() && self.server != std::env::var(SERVER).ok()
    }

    /// The server that is meant.
    pub(super) fn remote(&self) -> Result<Option<Remote>, Stop> {
        let Some(server) = &self.server else { return Ok(None) };
        let usage = |text: String| Stop::new(Ended::Usage, text);
        let (tls, authority) = endpoint(server).map_err(usage)?;
        let Some(file) = &self.token_file else {
            return Err(usage(
                "--server needs --token-file: `bootflip token add` on the server makes one".into(),
            ));
        };
        let token = token(file).map_err(usage)?;
        let connector = match tls {
            true => Some(connector(self.ca_file.as_deref()).map_err(usage)?),
            false => None,
        };
        Ok(Some(Remote { authority, connector, token }))
    }
}

/// The variable that says the same as `--server`.
const SERVER: &str = "BOOTFLIP_SERVER";

/// Scheme and authority of a server's URL; without TLS only loopback.
fn endpoint(server: &str) -> Result<(bool, String), String> {
    let server = server.strip_suffix('/').unwrap_or(server);
    let (tls, authority) = match server.split_once("://") {
        Some(("https", authority)) => (true, authority),
        Some(("http", authority)) => (false, authority),
        Some(_) | None => return Err(format!("{server} is no address of a server; write https://HOST:PORT")),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']' | '_');
    if authority.is_empty() || !authority.chars().all(plain) {
        return Err(format!(
            "{server} is no address of a server; write https://HOST:PORT and nothing behind it"
        ));
    }
    let host = host(authority);
    let own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !tls && !own {
        return Err(format!("a token does not go to {host} unencrypted; write https://"));
    }
    let authority = if has_port(authority) {
        authority.to_owned()
    } else {
        format!("{authority}:{}", if tls { 443 } else { 80 })
    };
    Ok((tls, authority))
}

fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']') && port.parse::<u16>().is_ok())
}

fn host(authority: &str) -> &str {
    let host = if has_port(authority) {
        authority.rsplit_once(':').map_or(authority, |(host, _)| host)
    } else {
        authority
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Rights that the token's file may not give.
const TOO_WIDE: u32 = 0o077;

fn token(file: &Path) -> Result<Secret, String> {
    let failed = |error: io::Error| format!("cannot read the token in {}: {error}", file.display());
    let mode = fs::metadata(file).map_err(failed)?.permissions().mode() & 0o7777;
    if mode & TOO_WIDE != 0 {
        let path = file.display();
        return Err(format!(
            "{path} holds a token and is open to others (mode {mode:04o}); chmod 600 {path}"
        ));
    }
    let text = fs::read_to_string(file).map_err(failed)?;
    let token = text.trim();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("{} does not hold one token and nothing else", file.display()));
    }
    Ok(Secret::new(token.to_owned()))
}

fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let failed = |detail: &dyn fmt::Display| format!("cannot use {}: {detail}", file.display());
            let pem = fs::read(file).map_err(|error| failed(&error))?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
            if roots.is_empty() {
                return Err(failed(&"it holds no certificate"));
            }
        }
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
    }
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// A server, and the token for it.
#[derive(Clone)]
pub(super) struct Remote {
    authority: String,
    connector: Option<TlsConnector>,
    token: Secret,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("authority", &self.authority).finish_non_exhaustive()
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.connector.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

/// Why a server over the network is not asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    /// It does not answer.
    #[error("no server answers at {server}")]
    Away {
        /// Which.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// Its certificate, or no TLS at all.
    #[error("the server at {server} is not trusted; --ca-file names what its certificate hangs on")]
    Untrusted {
        /// Which.
        server: String,
        /// Why.
        source: io::Error,
    },
    /// It cannot be named in TLS.
    #[error("{0} is no name that a certificate could have")]
    Name(String),
}

/// A connection, encrypted or not.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Wire for S {}

impl Remote {
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// The header that shows the token.
    pub(super) fn authorization(&self) -> Result<HeaderValue, RemoteError> {
        let value = HeaderValue::from_str(&format!("Bearer {}", self.token.expose()));
        let mut value = value.map_err(|_| RemoteError::Name(self.authority.clone()))?;
        value.set_sensitive(true);
        Ok(value)
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Wire>, RemoteError> {
        let server = self.to_string();
        let stream = TcpStream::connect(&self.authority).await;
        let stream = stream.map_err(|source| RemoteError::Away { server: server.clone(), source })?;
        let Some(connector) = &self.connector else { return Ok(Box::new(stream)) };
        let host = host(&self.authority);
        let name = ServerName::try_from(host.to_owned()).map_err(|_| RemoteError::Name(host.to_owned()))?;
        let secured = connector.connect(name, stream).await;
        Ok(Box::new(secured.map_err(|source| RemoteError::Untrusted { server, source })?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_goes_over_tls_or_to_this_machine() {
        let cases = [
            ("https://boot.example", Some((true, "boot.example:443"))),
            ("https://boot.example:8443/", Some((true, "boot.example:8443"))),
            ("https://[2001:db8::1]:8443", Some((true, "[2001:db8::1]:8443"))),
            ("https://[2001:db8::1]", Some((true, "[2001:db8::1]:443"))),
            ("http://127.0.0.1:8080", Some((false, "127.0.0.1:8080"))),
            ("http://localhost", Some((false, "localhost:80"))),
            ("http://[::1]:8080", Some((false, "[::1]:8080"))),
            ("http://boot.example:8080", None),
            ("https://boot.example/api", None),
            ("https://user@boot.example", None),
            ("https://", None),
            ("boot.example:8443", None),
            ("ftp://boot.example", None),
        ];
        for (server, expected) in cases {
            let found = endpoint(server).ok();
            assert_eq!(found, expected.map(|(tls, authority)| (tls, authority.to_owned())), "{server}");
        }
    }

    #[test]
    fn token_file_is_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        for (text, mode, good) in [
            ("bft_1\n", 0o600, true),
            ("bft_1", 0o400, true),
            ("bft_1", 0o640, false),
            ("", 0o600, false),
            ("a b", 0o600, false),
        ] {
            let _ = fs::remove_file(&file);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let read = token(&file);
            assert_eq!(read.is_ok(), good, "{text:?} {mode:o}");
            assert!(read.err().is_none_or(|error| !error.contains("bft_1")));
        }
        assert!(token(&folder.path().join("none")).is_err());
    }
}

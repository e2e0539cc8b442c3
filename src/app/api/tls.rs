//! The certificate of the admin listener: files of one's own, or one that signs itself. A shell.
//!
//! Invariant: a key that others can read is refused, and one that we make is 0600 from its first byte.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertificateParams, DnType, KeyPair};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::{
    config::{RemoteConfig, RemoteTls},
    secret::hex,
};

/// Beneath `server.state_dir`.
const CERTIFICATE: &str = "admin-tls.crt";
const KEY: &str = "admin-tls.key";

/// Rights that the key's file may not give: any to others, and writing to the group.
const TOO_WIDE: u32 = 0o027;

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file.
    #[error("cannot use {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key that others can read.
    #[error(
        "{path} holds the key of the admin listener and is open to others (mode {mode:04o}); chmod 600 {path}"
    )]
    TooWide {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// What stands in a file.
    #[error("{path} is not what it should be: {detail}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// None can be made.
    #[error("cannot make a certificate: {0}")]
    Make(rcgen::Error),
    /// Certificate and key do not go together.
    #[error("the admin listener's certificate cannot be used: {0}")]
    Use(rustls::Error),
}

/// The server's side of TLS.
#[derive(Clone)]
pub(super) struct Acceptor {
    acceptor: TlsAcceptor,
    /// SHA-256 of the certificate in hex, for who sees it for the first time.
    pub(super) sha256: String,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").field("sha256", &self.sha256).finish_non_exhaustive()
    }
}

impl Acceptor {
    /// The handshake.
    pub(super) async fn accept<S>(&self, stream: S) -> io::Result<tokio_rustls::server::TlsStream<S>>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

/// What the configuration says; `None`: no TLS.
pub(super) fn acceptor(config: &RemoteConfig, state_dir: &Path) -> Result<Option<Acceptor>, TlsError> {
    let (certificate, key) = match &config.tls {
        RemoteTls::Off => return Ok(None),
        RemoteTls::Files { certificate, key } => (certificate.clone(), key.clone()),
        RemoteTls::Generated => generated(config, state_dir)?,
    };
    of_files(&certificate, &key).map(Some)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

fn of_files(certificate: &Path, key: &Path) -> Result<Acceptor, TlsError> {
    let content = |path: &Path, detail: String| TlsError::Content { path: path.to_owned(), detail };
    let metadata = fs::metadata(key).map_err(|source| TlsError::File { path: key.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & TOO_WIDE != 0 {
        return Err(TlsError::TooWide { path: key.to_owned(), mode });
    }
    let chain = CertificateDer::pem_slice_iter(&read(certificate)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| content(certificate, error.to_string()))?;
    let Some(own) = chain.first() else {
        return Err(content(certificate, "it holds no certificate in PEM".to_owned()));
    };
    let sha256 = hex(&Sha256::digest(own));
    // The error of a key's parser may not quote it, but is not told either.
    let private = PrivateKeyDer::from_pem_slice(&read(key)?)
        .map_err(|_| content(key, "it holds no private key in PEM".to_owned()))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(TlsError::Use)?;
    Ok(Acceptor { acceptor: TlsAcceptor::from(Arc::new(config)), sha256 })
}

/// The files of a certificate that signs itself; made when there are none.
fn generated(config: &RemoteConfig, state_dir: &Path) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (state_dir.join(CERTIFICATE), state_dir.join(KEY));
    if certificate.exists() && key.exists() {
        return Ok((certificate, key));
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
    names.extend(host.filter(|name| name != "localhost" && !name.is_empty()));
    if !config.listen.ip().is_unspecified() && !config.listen.ip().is_loopback() {
        names.push(config.listen.ip().to_string());
    }
    let pair = KeyPair::generate().map_err(TlsError::Make)?;
    let mut params = CertificateParams::new(names).map_err(TlsError::Make)?;
    params.distinguished_name.push(DnType::CommonName, "bootflip");
    let made = params.self_signed(&pair).map_err(TlsError::Make)?;
    // The key first: a crash in between leaves a pair that is made anew.
    write(&key, pair.serialize_pem().as_bytes(), 0o600)?;
    write(&certificate, made.pem().as_bytes(), 0o644)?;
    tracing::info!(file = %certificate.display(), "a certificate for the admin listener was made");
    Ok((certificate, key))
}

fn write(path: &Path, text: &[u8], mode: u32) -> Result<(), TlsError> {
    let half = path.with_extension("new");
    let written = (|| {
        let _ = fs::remove_file(&half); // what a crash left behind
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(mode).open(&half)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&half, path)
    })();
    written.map_err(|source| TlsError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(tls: RemoteTls) -> RemoteConfig {
        RemoteConfig { listen: "192.0.2.1:8443".parse().unwrap(), tls }
    }

    #[test]
    fn generated_certificate_stays_the_same_and_its_key_is_ours_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = acceptor(&config(RemoteTls::Generated), folder.path()).unwrap().unwrap();
        let again = acceptor(&config(RemoteTls::Generated), folder.path()).unwrap().unwrap();
        assert_eq!(first.sha256, again.sha256);
        let key = folder.path().join(KEY);
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = acceptor(&config(RemoteTls::Generated), folder.path());
        assert!(matches!(refused, Err(TlsError::TooWide { mode: 0o644, .. })));
    }

    #[test]
    fn files_that_do_not_go_together_are_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&one, &other] {
            acceptor(&config(RemoteTls::Generated), folder.path()).unwrap();
        }
        let files = |certificate: &Path, key: &Path| {
            let tls = RemoteTls::Files { certificate: certificate.to_owned(), key: key.to_owned() };
            acceptor(&config(tls), Path::new("/none"))
        };
        let (certificate, key) = (one.path().join(CERTIFICATE), one.path().join(KEY));
        assert!(files(&certificate, &key).unwrap().is_some());
        assert!(matches!(files(&certificate, &other.path().join(KEY)), Err(TlsError::Use(_))));
        assert!(matches!(files(&key, &key), Err(TlsError::Content { .. })));
        assert!(matches!(files(&certificate, &one.path().join("none")), Err(TlsError::File { .. })));
        assert!(acceptor(&config(RemoteTls::Off), Path::new("/none")).unwrap().is_none());
    }
}

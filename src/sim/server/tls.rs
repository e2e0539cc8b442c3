//! HTTPS as XenServer 8 and XCP-ng 8.2 offer it: TLS 1.2, ECDHE-RSA with AES-GCM, a self-signed certificate of 2048
//! bits with the member's address for a name. Each member has its own, made at start.
//!
//! XenServer 7.2 to 7.6, and 6.5 and older, offer cipher suites that the TLS library here does not have; a pool that
//! plays one of them speaks what 8.2 does.

use std::{net::IpAddr, sync::Arc};

use rcgen::{CertificateParams, DnType, KeyPair, PKCS_RSA_SHA256, RsaKeySize, SanType};
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs, aws_lc_rs::cipher_suite},
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    version::TLS12,
};
use sha2::{Digest, Sha256};
use tokio_rustls::TlsAcceptor;

use super::SimError;

/// A member's certificate as clients know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate in PEM; a client may take it for a CA's.
    pub pem: String,
    /// SHA-256 of its DER form.
    pub sha256: [u8; 32],
}

/// The server's side of TLS for one member.
#[derive(Clone)]
pub(super) struct Acceptor(TlsAcceptor);

impl Acceptor {
    pub(super) async fn accept(
        &self,
        stream: tokio::net::TcpStream,
    ) -> std::io::Result<tokio_rustls::server::TlsStream<tokio::net::TcpStream>> {
        self.0.accept(stream).await
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor").finish_non_exhaustive()
    }
}

/// A key and a certificate for this address.
pub(super) fn acceptor(address: IpAddr) -> Result<(Acceptor, Certificate), SimError> {
    let key =
        KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).map_err(SimError::Certificate)?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, address.to_string());
    params.subject_alt_names.push(SanType::IpAddress(address));
    let made = params.self_signed(&key).map_err(SimError::Certificate)?;
    let provider = CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
            cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        ],
        ..aws_lc_rs::default_provider()
    };
    let private = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS12])
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![made.der().clone()], private))
        .map_err(SimError::Tls)?;
    let certificate = Certificate { pem: made.pem(), sha256: Sha256::digest(made.der()).into() };
    Ok((Acceptor(TlsAcceptor::from(Arc::new(config))), certificate))
}

//! How a pool's certificate is judged: by a CA, by pins, or not at all. Pure: the CA's text is given.
//!
//! Invariant: every judge checks the handshake's signature with the provider, so that a server must hold the key
//! of the certificate it shows. A pin that does not match is kept for as long as the client lives.

use std::sync::{Arc, OnceLock};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::secret::hex;

/// The first certificate that no pin fits, in words.
pub(super) type Mismatch = Arc<OnceLock<String>>;

/// What a certificate is held against.
pub(super) enum Judge {
    /// The certificates of a CA file.
    Roots(RootCertStore),
    /// SHA-256 of the leaf, one of these.
    Pins(Vec<[u8; 32]>, Mismatch),
    /// Nothing.
    Anyone,
}

/// The certificates of a CA file in PEM; `Err` says what is wrong with it.
pub(super) fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut store = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        store.add(certificate).map_err(|error| error.to_string())?;
    }
    if store.is_empty() { Err("it holds no certificate".to_owned()) } else { Ok(store) }
}

/// The client's side of TLS 1.2 and 1.3.
pub(super) fn client_config(judge: Judge) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let verifier = match judge {
        Judge::Roots(roots) => return Ok(config.with_root_certificates(roots).with_no_client_auth()),
        Judge::Pins(pins, mismatch) => LeafVerifier { provider, pins: Some((pins, mismatch)) },
        Judge::Anyone => LeafVerifier { provider, pins: None },
    };
    let config = config.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
    Ok(config.with_no_client_auth())
}

/// Looks at nothing but the leaf: XenServer's certificates are self-signed, often without a name that fits.
#[derive(Debug)]
struct LeafVerifier {
    provider: Arc<CryptoProvider>,
    /// `None`: any leaf will do.
    pins: Option<(Vec<[u8; 32]>, Mismatch)>,
}

impl ServerCertVerifier for LeafVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some((pins, mismatch)) = &self.pins else { return Ok(ServerCertVerified::assertion()) };
        let shown: [u8; 32] = Sha256::digest(leaf).into();
        if pins.iter().any(|pin| pin.ct_eq(&shown).into()) {
            return Ok(ServerCertVerified::assertion());
        }
        mismatch
            .get_or_init(|| format!("the certificate of {} has SHA-256 {}", server.to_str(), hex(&shown)));
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, leaf, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

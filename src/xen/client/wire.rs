//! One request and its answer over HTTP(S), under the pool's TLS rule: the other half of the client's shell.

use std::{error::Error, io, time::Duration};

use tracing::error;

use super::{CallError, Endpoint, Failure, Mismatch, Value, codec};

/// The way to a pool's members.
pub(super) struct Wire {
    pub(super) pool: String,
    scheme: &'static str,
    http: reqwest::Client,
    /// Set once, when a certificate fitted no pin: nothing more is sent until a restart.
    mismatch: Mismatch,
}

/// What became of one request.
pub(super) enum PostError {
    /// No connection: the request was surely not sent.
    NotSent(String),
    /// The certificate is not trusted: nothing was sent.
    Untrusted(String),
    /// Sent, or maybe sent, and no whole answer came.
    NoAnswer(String),
    /// An answer came that is not XenAPI's.
    Unreadable(String),
}

impl Wire {
    pub(super) fn new(
        pool: &str,
        scheme: &'static str,
        config: rustls::ClientConfig,
        mismatch: Mismatch,
    ) -> Result<Self, reqwest::Error> {
        Ok(Self { pool: pool.to_owned(), scheme, http: http(config, scheme)?, mismatch })
    }

    /// Whether anything may still be sent to this pool.
    pub(super) fn trusted(&self) -> Result<(), CallError> {
        self.mismatch
            .get()
            .map_or(Ok(()), |mismatch| Err(CallError::Untrusted { detail: self.unpinned(mismatch) }))
    }

    fn unpinned(&self, mismatch: &str) -> String {
        format!(
            "pool {}: {mismatch}, which is none of its pins; the password was not sent. If the certificate was renewed \
             on purpose, put the new SHA-256 into the configuration and restart bootflip",
            self.pool
        )
    }

    /// One request to one member, and its answer.
    pub(super) async fn post(
        &self,
        at: &Endpoint,
        body: String,
    ) -> Result<Result<Value, Failure>, PostError> {
        let request =
            self.http.post(format!("{}://{at}/", self.scheme)).header("content-type", "text/xml").body(body);
        let response = request.send().await.map_err(|error| self.send_error(at, error))?;
        let status = response.status();
        if !status.is_success() {
            return Err(PostError::Unreadable(format!("HTTP {}", status.as_u16())));
        }
        let body = read(response).await?;
        let decoded = if body.len() < SMALL_BODY {
            codec::decode_reply(&body)
        } else {
            let decoding = tokio::task::spawn_blocking(move || codec::decode_reply(&body)).await;
            decoding.map_err(|_| PostError::Unreadable("reading it was broken off".to_owned()))?
        };
        decoded.map_err(|error| PostError::Unreadable(error.to_string()))
    }

    fn send_error(&self, at: &Endpoint, error: reqwest::Error) -> PostError {
        if let Some(mismatch) = self.mismatch.get() {
            error!(pool = %self.pool, peer = %at, %mismatch, "the certificate fits no pin; no more calls to this pool");
            return PostError::Untrusted(self.unpinned(mismatch));
        }
        let connecting = error.is_connect() || error.is_builder();
        let error = error.without_url();
        let detail = chain(&error);
        match tls_error(&error) {
            Some(rustls::Error::InvalidCertificate(_)) => PostError::Untrusted(format!(
                "pool {}: the certificate of {at} is not trusted ({detail}); the password was not sent. Give its CA as \
                 pool.{}.tls.ca, or its SHA-256 as a pin",
                self.pool, self.pool
            )),
            Some(_) if connecting => PostError::NotSent(format!(
                "{detail}. Servers before 8.0 may offer no TLS that is safe today; then only plain_http reaches them"
            )),
            None if connecting => PostError::NotSent(detail),
            Some(_) | None => PostError::NoAnswer(detail),
        }
    }
}

fn http(config: rustls::ClientConfig, scheme: &str) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .https_only(scheme == "https")
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .user_agent("bootflip")
        .connect_timeout(CONNECT_DEADLINE)
        // xapi closes idle connections; a request that races with that would have an unknown outcome.
        .pool_idle_timeout(IDLE_CONNECTION)
        .build()
}

async fn read(mut response: reqwest::Response) -> Result<Vec<u8>, PostError> {
    let too_big = || PostError::Unreadable(format!("more than {} bytes", codec::MAX_BYTES));
    let announced =
        response.content_length().map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
    if announced > codec::MAX_BYTES {
        return Err(too_big());
    }
    let mut body = Vec::with_capacity(announced.min(SMALL_BODY));
    while let Some(chunk) =
        response.chunk().await.map_err(|error| PostError::NoAnswer(chain(&error.without_url())))?
    {
        if body.len().saturating_add(chunk.len()) > codec::MAX_BYTES {
            return Err(too_big());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// The error and its sources, in one line: reqwest alone says only that it could not send.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.ends_with(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        source = inner.source();
    }
    text
}

/// The TLS library's own error. It hides inside `io::Error`s, whose `source` skips what they hold.
fn tls_error(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next = error.source();
    while let Some(inner) = next {
        if let Some(found) = inner.downcast_ref() {
            return Some(found);
        }
        let held = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = held.map(|held| held as &(dyn Error + 'static)).or_else(|| inner.source());
    }
    None
}

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const IDLE_CONNECTION: Duration = Duration::from_secs(20);
/// In bytes: a body under this is decoded in place, in well under a millisecond.
const SMALL_BODY: usize = 128 << 10;

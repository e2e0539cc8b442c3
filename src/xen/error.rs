//! What can go wrong with a call, and what it means for the caller.

use std::fmt;

/// The pool's own refusal: a code and its parameters, all kept (XenAPI `ErrorDescription`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Such as `VM_BAD_POWER_STATE`.
    pub code: String,
    /// The parameters, in order; their number differs between releases.
    pub params: Vec<String>,
}

impl Failure {
    /// A failure with these words.
    pub fn new(code: &str, params: &[&str]) -> Self {
        Self { code: code.to_owned(), params: params.iter().map(|&p| p.to_owned()).collect() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if self.params.is_empty() { Ok(()) } else { write!(f, " [{}]", self.params.join(", ")) }
    }
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The pool answered with a failure: it did nothing, or says what it did.
    #[error("{method}: {failure}")]
    Failed {
        /// The message sent.
        method: &'static str,
        /// The pool's words.
        failure: Failure,
    },
    /// The request may have been sent and no answer came: whether it had its effect must be looked up.
    #[error("{method}: no answer ({detail}); its outcome is unknown")]
    Unknown {
        /// The message sent.
        method: &'static str,
        /// What broke.
        detail: String,
    },
    /// The request was surely not sent: no connection, no session, or the toolstack is starting.
    #[error("the pool cannot be reached: {detail}")]
    Unreachable {
        /// What was tried and what came of it.
        detail: String,
    },
    /// The pool's certificate or a redirect is not what the configuration trusts; nothing was sent, and nothing
    /// more will be until an operator acts.
    #[error("{detail}")]
    Untrusted {
        /// Which check, and what to do.
        detail: String,
    },
    /// Login refused: wrong password, or no role. Not retried by itself.
    #[error("the pool refused the login: {failure}")]
    LoginRefused {
        /// The pool's words.
        failure: Failure,
    },
    /// The answer is not what XenAPI sends for this message.
    #[error("{method}: the answer cannot be read: {detail}")]
    Protocol {
        /// The message sent.
        method: &'static str,
        /// What was wrong, without the body.
        detail: String,
    },
}

/// What a caller does about a [`CallError`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Try again soon (1..30 s).
    Retry,
    /// Try again, but it may take minutes (host full, pool starting).
    SlowRetry,
    /// It will not get better by itself.
    Permanent,
    /// The session is gone (the transport already tried once).
    Relogin,
    /// Another member is the coordinator (the transport already followed).
    Redirect,
    /// Look at the pool before deciding anything: the call may have had its effect.
    Observe,
}

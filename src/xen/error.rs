//! What can go wrong with a call, and what it means for the caller. Pure.
//!
//! Invariant: an outcome that may have happened is never classed as one to repeat blindly. Codes are matched by
//! name only, never by the number of their parameters, which differs between releases. The table is in `codes`.

mod codes;

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

    /// Whether this is the failure with that code.
    pub fn is(&self, code: &str) -> bool {
        self.code == code
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
    #[error("the pool refused the login, see user and password_file: {failure}")]
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

impl CallError {
    /// What a caller does about it.
    pub fn class(&self) -> Class {
        match self {
            Self::Failed { failure, .. } => Class::of(failure),
            // An answer that cannot be read says nothing about the effect.
            Self::Unknown { .. } | Self::Protocol { .. } => Class::Observe,
            Self::Unreachable { .. } => Class::SlowRetry,
            Self::Untrusted { .. } | Self::LoginRefused { .. } => Class::Permanent,
        }
    }

    /// The pool's own words, when it answered.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Failed { failure, .. } | Self::LoginRefused { failure } => Some(failure),
            Self::Unknown { .. }
            | Self::Unreachable { .. }
            | Self::Untrusted { .. }
            | Self::Protocol { .. } => None,
        }
    }

    /// Whether the pool answered with this code.
    pub fn is(&self, code: &str) -> bool {
        self.failure().is_some_and(|failure| failure.is(code))
    }
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

impl Class {
    /// What a pool's failure means. A code that nobody has thought about will not get better by itself.
    pub fn of(failure: &Failure) -> Self {
        // A catch-all; but a bootloader that found nothing to boot finds nothing the second time either.
        if bootloader_message(failure).is_some() {
            return Self::Permanent;
        }
        Self::known(&failure.code).unwrap_or(Self::Permanent)
    }

    /// The class of an error code by the table or a rule; `None`: it is in neither.
    pub fn known(code: &str) -> Option<Self> {
        codes::known(code)
    }

    /// Every code of the table, with its class.
    pub fn table() -> impl Iterator<Item = (&'static str, Self)> {
        codes::all()
    }
}

/// What the bootloader said, when a PV start failed for it: BOOTLOADER_FAILED [vm, message], or its twins by which
/// xapi says the same as INTERNAL_ERROR or UNKNOWN_BOOTLOADER [vm, name]. The start will not succeed when
/// repeated; the disk or the PV settings need a person.
pub fn bootloader_message(failure: &Failure) -> Option<String> {
    const TWINS: [&str; 3] =
        ["Bootloader.Bad_error", "Bootloader.Unknown_bootloader", "there is no bootable device"];
    match failure.code.as_str() {
        "BOOTLOADER_FAILED" => Some(failure.params.get(1..).unwrap_or_default().join(" ")),
        "UNKNOWN_BOOTLOADER" => {
            Some(format!("unknown bootloader {}", failure.params.get(1..).unwrap_or_default().join(" ")))
        }
        "INTERNAL_ERROR" => {
            let message = failure.params.join(" ");
            TWINS.iter().any(|twin| message.contains(twin)).then_some(message)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;

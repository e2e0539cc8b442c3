//! Requests that may be sent twice: what `Idempotency-Key` means (IETF draft-ietf-httpapi-idempotency-key-header).
//!
//! Invariant: one key of one caller stands for one request. The same request again gets the first one's answer; a
//! different request under the same key is refused.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{clock::Timestamp, secret::hex};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// How long a request may be under way; one that is older was cut off by a crash, and may be made again.
pub const UNDER_WAY: Duration = Duration::from_secs(600);

/// The longest key, in bytes.
pub const KEY_LIMIT: usize = 255;

/// The largest answer that is kept, in bytes; a value of the store holds a mebibyte.
pub const ANSWER_LIMIT: usize = 512 * 1024;

/// What is kept of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// SHA-256 of method, path and body.
    pub request: String,
    /// When it came.
    pub at: Timestamp,
    /// Its answer; `None`: under way.
    pub answer: Option<KeptAnswer>,
}

/// The answer as it is given again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptAnswer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: String,
    /// The body; `None`: it was too large to be kept.
    pub body: Option<String>,
}

/// What is to be done with a request that has a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Carry it out.
    New,
    /// Give this answer.
    Again(KeptAnswer),
    /// The first one is under way.
    UnderWay,
    /// The key stands for another request.
    Other,
}

/// Where a key is kept, by who uses it; the key itself may be long, and anything.
pub fn place(caller: &str, key: &str) -> String {
    hex(&Sha256::digest(format!("{}:{caller}{key}", caller.len())))
}

/// What tells one request from another.
pub fn fingerprint(method: &str, path: &str, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{method} {path}\n"));
    hash.update(body);
    hex(&hash.finalize())
}

/// What is wrong with a key.
pub fn key_problem(key: &str) -> Option<String> {
    let visible = key.bytes().all(|byte| (0x21..=0x7e).contains(&byte));
    (key.is_empty() || key.len() > KEY_LIMIT || !visible)
        .then(|| format!("an Idempotency-Key is 1 to {KEY_LIMIT} visible ASCII characters"))
}

/// Compares a request with what is kept under its key.
pub fn judge(kept: Option<&Kept>, request: &str, now: Timestamp) -> Verdict {
    let Some(kept) = kept.filter(|kept| now.since(kept.at) < KEPT) else { return Verdict::New };
    if kept.request != request {
        return Verdict::Other;
    }
    match &kept.answer {
        Some(answer) => Verdict::Again(answer.clone()),
        None if now.since(kept.at) < UNDER_WAY => Verdict::UnderWay,
        None => Verdict::New,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_stands_for_one_request_for_a_day() {
        let at = |seconds: u64| Timestamp::from_millis(seconds * 1000);
        let answer =
            KeptAnswer { status: 200, content_type: "application/json".into(), body: Some("{}".into()) };
        let done = Kept { request: "a".into(), at: at(0), answer: Some(answer.clone()) };
        let begun = Kept { answer: None, ..done.clone() };
        let cases = [
            (None, "a", 0, Verdict::New),
            (Some(&done), "a", 10, Verdict::Again(answer)),
            (Some(&done), "b", 10, Verdict::Other),
            (Some(&done), "b", 86_400, Verdict::New),
            (Some(&begun), "a", 599, Verdict::UnderWay),
            (Some(&begun), "b", 599, Verdict::Other),
            (Some(&begun), "a", 600, Verdict::New),
        ];
        for (kept, request, now, verdict) in cases {
            assert_eq!(judge(kept, request, at(now)), verdict, "{kept:?} {request} at {now}");
        }
    }

    #[test]
    fn callers_do_not_share_keys() {
        let places = [place("ci", "1"), place("ci1", ""), place("c", "i1"), place("other", "1")];
        for (i, a) in places.iter().enumerate() {
            assert!(places.iter().skip(i + 1).all(|b| a != b));
        }
        assert_ne!(fingerprint("POST", "/a", b"b"), fingerprint("POST", "/ab", b""));
    }

    #[test]
    fn keys_are_visible_text() {
        for key in ["1", "5f0c3c8e-0c7e-4e55", &"x".repeat(255)] {
            assert_eq!(key_problem(key), None, "{key}");
        }
        for key in ["", "a b", "é", "a\n", &"x".repeat(256)] {
            assert!(key_problem(key).is_some(), "{key}");
        }
    }
}

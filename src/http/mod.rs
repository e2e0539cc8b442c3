//! Boot HTTP: script, boot files, answer file and reports. The decisions are here and pure; `server` has the sockets.
//!
//! Invariants: every route asks the boot gate (or, for reports, the sink); whatever misses, for whatever reason, gets
//! the same 404; no header of a client is believed for anything but ranges and conditions (`conditional`); and no log
//! shows a token.

pub mod conditional;
pub mod server;
#[cfg(test)]
mod tests;

use crate::{
    boot::{root::RelativePath, sink::ReportAnswer},
    machine::MacAddr,
};

/// The body of every 404.
pub const NOT_FOUND: &str = "not found\n";
/// The largest body of a report.
pub const REPORT_LIMIT: usize = 64 * 1024;
/// Seconds that a client should wait when the store is away.
pub const RETRY_AFTER: &str = "5";
/// Bytes of a path that a log shows.
const LOGGED_PATH: usize = 200;
/// So many hexadecimal digits and escapes in a row could be part of a token.
const TOKEN_LIKE: usize = 20;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/b/<mac>`: the boot script.
    Script(MacAddr),
    /// `/f/<render token>/<path>`: a kernel or initrd.
    File {
        /// As presented.
        token: String,
        /// Which file.
        path: RelativePath,
    },
    /// `/a/<render token>/<name>`: the answer file.
    Answer {
        /// As presented.
        token: String,
        /// As presented.
        name: String,
    },
    /// `/r/<report or booted token>/<stage>`: a report.
    Report {
        /// As presented.
        token: String,
        /// One to 32 lower-case letters, digits, `-` and `_`.
        stage: String,
    },
}

impl Route {
    /// The route of a request's path, still percent-encoded; `None`: 404.
    pub fn parse(path: &str) -> Option<Self> {
        let (kind, rest) = path.strip_prefix('/')?.split_once('/')?;
        match kind {
            "b" => decode(rest)?.parse().ok().map(Self::Script),
            "f" => {
                let (token, path) = rest.split_once('/')?;
                Some(Self::File { token: token_text(token)?, path: RelativePath::parse(&decode(path)?)? })
            }
            "a" => {
                let (token, name) = rest.split_once('/')?;
                Some(Self::Answer { token: token_text(token)?, name: decode(name)? })
            }
            "r" => {
                let (token, stage) = rest.split_once('/')?;
                let named =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
                let fits = (1..=32).contains(&stage.len()) && stage.bytes().all(named);
                fits.then_some(Self::Report { token: token_text(token)?, stage: stage.to_owned() })
            }
            _ => None,
        }
    }
}

/// A token is 64 hex digits; anything else need not be hashed to be wrong.
fn token_text(token: &str) -> Option<String> {
    let fits = token.len() == 64 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| token.to_owned())
}

/// Percent-decodes once; `None`: a broken escape, or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits =
            std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

/// A path as a log may have it: whatever stands where a token belongs, and whatever looks like one, is an asterisk;
/// at most [`LOGGED_PATH`] bytes.
pub fn masked(path: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    if let ["", "f" | "a" | "r", token, ..] = parts.as_mut_slice() {
        *token = "*";
    }
    let parts = parts.into_iter().map(|part| if token_like(part) { "*" } else { part });
    let mut shown = parts.collect::<Vec<_>>().join("/");
    if shown.len() > LOGGED_PATH {
        let end = (0..=LOGGED_PATH).rev().find(|at| shown.is_char_boundary(*at)).unwrap_or_default();
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// Read with and without its escapes: an encoded token opens nothing and is one all the same, and iPXE encodes the
/// colons of a MAC.
fn token_like(part: &str) -> bool {
    let hidden = |run: &str| run.len() >= TOKEN_LIKE;
    let digits = |text: &str| text.split(|letter: char| !letter.is_ascii_hexdigit()).any(hidden);
    digits(part)
        || match decode(part) {
            Some(decoded) => digits(&decoded),
            None => part.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '%').any(hidden),
        }
}

/// The status code of a report's answer.
pub const fn report_status(answer: ReportAnswer) -> u16 {
    match answer {
        ReportAnswer::Accepted => 201,
        ReportAnswer::Already => 200,
        ReportAnswer::Closed => 410,
        ReportAnswer::Unknown => 404,
        ReportAnswer::WrongMethod => 405,
        ReportAnswer::Later => 503,
    }
}

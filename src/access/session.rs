//! Sessions of browsers: a cookie of 256 random bits, made for a token, and never good for longer than that token.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    secret::{Secret, TokenHash, hex},
};

/// The cookie's name. Behind TLS it gets the prefix `__Host-`, which browsers then hold to Secure, Path=/ and no
/// Domain (RFC 6265bis §4.1.3).
const COOKIE: &str = "bootflip";

/// How long a session lasts after the login.
pub const LASTS: Duration = Duration::from_secs(12 * 3600);

/// What is kept of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// SHA-256 of the token that logged in; revoked, the session is over.
    pub token: TokenHash,
    /// Since when.
    pub created: Timestamp,
    /// Good until then.
    pub expires: Timestamp,
}

impl SessionRecord {
    /// Whether it is still good, as far as the session goes.
    pub fn is_good(&self, now: Timestamp) -> bool {
        now < self.expires
    }
}

/// Whether the browser came by TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// HTTPS.
    Tls,
    /// Plain HTTP: this machine's loopback, or a proxy that ends TLS.
    Plain,
}

impl Transport {
    /// The cookie's name.
    pub const fn cookie(self) -> &'static str {
        match self {
            Self::Tls => "__Host-bootflip",
            Self::Plain => COOKIE,
        }
    }

    /// A `Set-Cookie` header for this value; an empty one ends the session in the browser. `https`: the browser came by
    /// TLS, to us or to a proxy in front.
    pub fn set_cookie(self, value: &Secret, https: bool) -> Secret {
        let (name, value) = (self.cookie(), value.expose());
        let secure = if https { "; Secure" } else { "" };
        let age = if value.is_empty() { 0 } else { LASTS.as_secs() };
        Secret::new(format!("{name}={value}; Path=/; Max-Age={age}; HttpOnly; SameSite=Strict{secure}"))
    }

    /// The session's cookie in a `Cookie` header.
    pub fn of_header(self, header: &str) -> Option<&str> {
        let pairs = header.split(';').filter_map(|pair| pair.trim().split_once('='));
        let mut own = pairs.filter(|(name, value)| *name == self.cookie() && !value.is_empty());
        own.next().map(|(_, value)| value)
    }
}

/// A cookie's value of these random bytes.
pub fn text(random: [u8; 32]) -> Secret {
    Secret::new(hex(&random))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookie_is_kept_from_scripts_and_other_sites() {
        let value = Secret::new("abc".into());
        let plain = "bootflip=abc; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict";
        assert_eq!(Transport::Plain.set_cookie(&value, false).expose(), plain);
        assert_eq!(
            Transport::Plain.set_cookie(&value, true).expose(),
            format!("{plain}; Secure"),
            "behind a proxy"
        );
        let tls = "__Host-bootflip=abc; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict; Secure";
        assert_eq!(Transport::Tls.set_cookie(&value, true).expose(), tls);
        assert!(Transport::Tls.set_cookie(&Secret::new(String::new()), true).expose().contains("Max-Age=0"));
    }

    #[test]
    fn own_cookie_is_found_among_others() {
        let cases = [
            ("bootflip=abc", Some("abc")),
            ("a=b; bootflip=abc; c=d", Some("abc")),
            ("xbootflip=abc", None),
            ("bootflip=", None),
            ("bootflip", None),
            ("", None),
        ];
        for (header, value) in cases {
            assert_eq!(Transport::Plain.of_header(header), value, "{header:?}");
        }
        assert_eq!(Transport::Tls.of_header("bootflip=abc"), None);
    }
}

//! Secrets and tokens. A [`Secret`] cannot be printed; a [`Token`] is derived from the server's key, and only
//! its hash ([`TokenHash`]) is ever stored.

use std::{borrow::Cow, fmt};

use hmac::{Hmac, Mac};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Text that must not reach a log, an error or a store: it has no `Display` and its `Debug` hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps the text.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The server's own key, from which every job's tokens are derived, so that the store never holds a token.
#[derive(Clone)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// The key with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The token of one use in one attempt of one job.
    pub fn token(&self, job: &str, attempt: u32, usage: TokenUse) -> Token {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes a key of any length");
        mac.update(format!("bootflip token v1\0{job}\0{attempt}\0{}", usage.label()).as_bytes());
        Token(hex(&mac.finalize().into_bytes()))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenKey(…)")
    }
}

/// What a token lets its holder do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenUse {
    /// Fetch the boot files and the answer file.
    Render,
    /// Report the installer's stages and completion.
    Report,
    /// Report that the installed system runs; valid only in Verifying.
    Booted,
}

impl TokenUse {
    /// The name in derivation and in logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Render => "render",
            Self::Report => "report",
            Self::Booted => "booted",
        }
    }
}

/// Digits of a token, and of whatever looks like one.
const TOKEN_DIGITS: usize = 64;

/// A text that a machine sent, as it may be kept and shown: installers print the kernel's arguments, and with them the
/// URLs of their attempt. Every run of 64 hexadecimal digits and more becomes `***`; so do checksums.
pub fn masked(text: &str) -> Cow<'_, str> {
    let (mut out, mut rest, mut found) = (String::new(), text, false);
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, from) = rest.split_at(start);
        let (run, behind) = from.split_at(from.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(from.len()));
        found |= run.len() >= TOKEN_DIGITS;
        out.push_str(before);
        out.push_str(if run.len() >= TOKEN_DIGITS { "***" } else { run });
        rest = behind;
    }
    out.push_str(rest);
    if found { Cow::Owned(out) } else { Cow::Borrowed(text) }
}

/// 256 bits in lower-case hex, as it stands in a URL.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The 64 hex digits, for the file or script that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored of it.
    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// SHA-256 of a token's text.
#[derive(Clone, Copy, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenHash([u8; 32]);

impl TokenHash {
    /// The hash of what a client presented, whatever it is.
    pub fn of(presented: &str) -> Self {
        Self(Sha256::digest(presented.as_bytes()).into())
    }
}

impl PartialEq for TokenHash {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenHash {}

impl std::hash::Hash for TokenHash {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl From<TokenHash> for String {
    fn from(hash: TokenHash) -> Self {
        hex(&hash.0)
    }
}

impl TryFrom<String> for TokenHash {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let digit = |at: usize| text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let bytes: Option<Vec<u8>> = (0..32).map(|i| digit(i * 2)).collect();
        let bytes = bytes.filter(|_| text.len() == 64).and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| "a token's hash is 64 hex digits".to_owned())
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_use_and_attempt_has_a_token_of_its_own() {
        let key = TokenKey::new([7; 32]);
        let tokens = [
            key.token("j", 1, TokenUse::Render),
            key.token("j", 1, TokenUse::Report),
            key.token("j", 1, TokenUse::Booted),
            key.token("j", 2, TokenUse::Render),
            key.token("k", 1, TokenUse::Render),
        ];
        for (i, a) in tokens.iter().enumerate() {
            assert_eq!(a.expose().len(), 64);
            assert!(tokens.iter().skip(i + 1).all(|b| a.hash() != b.hash()));
        }
        assert_eq!(tokens[0].hash(), key.token("j", 1, TokenUse::Render).hash());
    }

    #[test]
    fn tokens_in_texts_of_machines_are_masked() {
        let token = TokenKey::new([7; 32]).token("j", 1, TokenUse::Render);
        let token = token.expose();
        for (text, shown) in [
            (format!("url=http://h/a/{token}/preseed log_host=h"), "url=http://h/a/***/preseed log_host=h"),
            (format!("http%3A%2F%2Fh%2Fa%2F{token}%2Fx"), "http%3A%2F%2Fh%2Fa%***%2Fx"),
            (token.to_owned(), "***"),
            (format!("ä{}ö", &token[..63]), &*format!("ä{}ö", &token[..63])),
            ("deadbeef and nothing else".to_owned(), "deadbeef and nothing else"),
            (String::new(), ""),
        ] {
            assert_eq!(masked(&text), shown);
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let token = TokenKey::new([7; 32]).token("j", 1, TokenUse::Render);
        let printed = format!("{:?} {token:?}", Secret::new("hunter2".into()));
        assert!(!printed.contains("hunter2") && !printed.contains(token.expose()));
    }

    #[test]
    fn a_hash_survives_json() {
        let hash = TokenHash::of("x");
        let text = serde_json::to_string(&hash).unwrap();
        assert_eq!(serde_json::from_str::<TokenHash>(&text).unwrap(), hash);
        assert!(serde_json::from_str::<TokenHash>("\"ab\"").is_err());
    }
}

//! API tokens: `bft_` and 256 random bits in hex, shown once when made. What is kept is a [`TokenRecord`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Scope;
use crate::{
    clock::Timestamp,
    secret::{Secret, TokenHash, hex},
};

/// What every token begins with, so that a token that strays into a file or a chat can be searched for.
pub const PREFIX: &str = "bft_";

/// How often the last use is written down at most: it costs a commit.
pub const USE_NOTED: Duration = Duration::from_secs(60);

/// The longest name, in characters.
pub const NAME_LIMIT: usize = 64;

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// One token has it at a time.
    pub name: String,
    /// SHA-256 of its text.
    pub hash: TokenHash,
    /// What it may do.
    pub scope: Scope,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Good until then; `None`: for ever.
    pub expires: Option<Timestamp>,
    /// When it was last used, to about a minute.
    pub last_used: Option<Timestamp>,
}

impl TokenRecord {
    /// Whether it is still good.
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether a use now is to be written down.
    pub fn use_is_news(&self, now: Timestamp) -> bool {
        self.last_used.is_none_or(|last| now.since(last) >= USE_NOTED)
    }
}

/// A token's text of these random bytes.
pub fn text(random: [u8; 32]) -> Secret {
    Secret::new(format!("{PREFIX}{}", hex(&random)))
}

/// The token in an `Authorization` header (RFC 6750 §2.1); the scheme's case does not matter (RFC 9110 §11.1).
pub fn of_header(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()).filter(|token| !token.is_empty())
}

/// What is wrong with a token's name; it stands in logs, tables and URLs.
pub fn name_problem(name: &str) -> Option<String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = !name.is_empty() && name.len() <= NAME_LIMIT && name.chars().all(plain);
    (!fits || name.starts_with('.')).then(|| {
        format!(
            "a token's name is 1 to {NAME_LIMIT} of the characters A-Z a-z 0-9 - _ . and begins with no dot"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_found_in_its_header() {
        let cases = [
            ("Bearer bft_1", Some("bft_1")),
            ("bearer  bft_1 ", Some("bft_1")),
            ("Bearer ", None),
            ("Bearer", None),
            ("Basic bft_1", None),
            ("", None),
        ];
        for (header, token) in cases {
            assert_eq!(of_header(header), token, "{header:?}");
        }
    }

    #[test]
    fn token_ends_when_it_expires() {
        let at = Timestamp::from_millis;
        let record = |expires| TokenRecord {
            name: "ci".into(),
            hash: TokenHash::of("x"),
            scope: Scope::Read,
            created: at(0),
            created_by: "uid 0 (root)".into(),
            expires,
            last_used: Some(at(0)),
        };
        assert!(record(Some(at(10))).is_good(at(9)) && !record(Some(at(10))).is_good(at(10)));
        assert!(record(None).is_good(at(u64::MAX)));
        assert!(!record(None).use_is_news(at(59_999)) && record(None).use_is_news(at(60_000)));
    }

    #[test]
    fn names_are_plain_words() {
        for name in ["ci", "alice.laptop", "A-1_b"] {
            assert_eq!(name_problem(name), None, "{name}");
        }
        for name in ["", ".", "..", "a b", "a/b", "a\n", "é", &"x".repeat(65)] {
            assert!(name_problem(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_tokens_text_is_searchable_and_long() {
        let token = text([0xab; 32]);
        assert_eq!(token.expose(), format!("bft_{}", "ab".repeat(32)));
    }
}

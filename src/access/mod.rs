//! Who may do what: scopes, tokens, sessions of browsers, the lockout of addresses that guess, the rule about a
//! request's origin, repeated requests, and the audit log's chain. Pure: random bytes and the time are handed in.
//!
//! Invariant: nothing here or in the store holds a token or a cookie, only their SHA-256. What asks for a scope is
//! `app::api` (routers, never handlers); what keeps these records is `store::accounts`.

pub mod audit;
pub mod lockout;
pub mod origin;
pub mod repeats;
pub mod session;
pub mod token;

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a caller may do; each holds what stands before it.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    clap::ValueEnum,
    utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Look at everything but secrets.
    Read,
    /// Order and operate jobs, too.
    Operate,
    /// Tokens, the audit log and secrets of answer files, too.
    Admin,
}

impl Scope {
    /// Every scope, the least first.
    pub const ALL: [Self; 3] = [Self::Read, Self::Operate, Self::Admin];

    /// The word in the API, on the command line and in the audit log.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }

    /// Whether who has this may do what asks for `needed`.
    pub fn allows(self, needed: Self) -> bool {
        self >= needed
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// How a caller came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Via {
    /// The unix socket: the peer's uid says who.
    Socket,
    /// `Authorization: Bearer`.
    Token,
    /// A browser's session cookie.
    Session,
}

/// Who asks. Only the check at the door makes one of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Caller {
    /// `uid 1000 (alice)`, or the token's name.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// How it came in.
    pub via: Via,
}

impl Caller {
    /// As it stands in jobs (`asked_by`), logs and the audit log.
    pub fn label(&self) -> String {
        match self.via {
            Via::Socket => self.name.clone(),
            Via::Token => format!("token {}", self.name),
            Via::Session => format!("token {} in a browser", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_allows_what_stands_before_it() {
        let allowed = |scope: Scope| Scope::ALL.map(|needed| scope.allows(needed));
        assert_eq!(Scope::ALL.map(allowed), [[true, false, false], [true, true, false], [true, true, true]]);
    }

    #[test]
    fn scopes_have_one_word_everywhere() {
        for scope in Scope::ALL {
            assert_eq!(serde_json::to_value(scope).unwrap(), scope.label());
        }
    }
}

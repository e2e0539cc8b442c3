//! The door: who a token, a cookie or a peer of the unix socket is; tokens made and taken back; the audit log. A shell
//! over `access` and `store::accounts`.
//!
//! Invariant: a token and a cookie leave here once, when they are made; neither is ever logged.

use std::{
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use crate::{
    access::{
        Caller, Scope, Via,
        audit::{Action, Deed},
        lockout::{Lockout, Tried},
        session::{self, SessionRecord},
        token::{self, TokenRecord},
    },
    clock::{Clock, Timestamp},
    secret::{Secret, TokenHash},
    store::{
        StoreError,
        accounts::{Accounts, Known},
    },
};

/// The group whose members may use the unix socket, where the system has it.
pub const GROUP: &str = "bootflip";

/// See the module.
#[derive(Debug)]
pub struct Door {
    accounts: Accounts,
    lockout: Mutex<Lockout>,
    /// Counts what was taken back.
    taken_back: watch::Sender<u64>,
}

/// What somebody showed to be let in.
#[derive(Debug, Clone, Copy)]
pub enum Shown {
    /// A token's hash.
    Token(TokenHash),
    /// A cookie's hash.
    Session(TokenHash),
}

/// How often what a stream's reader showed is looked at: tokens and sessions expire without anybody's doing.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// Why nobody was let in.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Nobody made this token, or it was revoked.
    #[error("this token is not known here; `bootflip token list` has those that are")]
    Unknown,
    /// It has expired.
    #[error("this token has expired; `bootflip token add` makes another")]
    Expired,
    /// Too many unknown tokens came from this address.
    #[error("too many unknown tokens came from this address; wait {} s", .0.as_secs())]
    LockedOut(Duration),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why no token was made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Its name.
    #[error("{0}")]
    Name(String),
    /// There is one of this name.
    #[error("there is a token named {0}; revoke it first, or choose another name")]
    Taken(String),
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A token that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// How long it is good; `None`: for ever.
    pub lasts: Option<Duration>,
}

fn random() -> Result<[u8; 32], getrandom::Error> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn caller(record: TokenRecord, via: Via) -> Caller {
    Caller { name: record.name, scope: record.scope, via }
}

impl Door {
    /// The door of this store.
    pub fn new(accounts: Accounts) -> Self {
        Self { accounts, lockout: Mutex::default(), taken_back: watch::channel(0).0 }
    }

    /// Tokens, sessions and the audit log as they are kept.
    pub const fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    fn lockout<T>(&self, act: impl FnOnce(&mut Lockout) -> T) -> T {
        act(&mut self.lockout.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who shows this token.
    ///
    /// # Errors
    /// Nobody that is let in.
    pub async fn by_token(&self, shown: &str, from: IpAddr, now: Timestamp) -> Result<Caller, Refused> {
        self.known(shown, from, now).await.map(|record| caller(record, Via::Token))
    }

    async fn known(&self, shown: &str, from: IpAddr, now: Timestamp) -> Result<TokenRecord, Refused> {
        if let Some(wait) = self.lockout(|lockout| lockout.wait(from, now)) {
            return Err(Refused::LockedOut(wait));
        }
        match self.accounts.token(TokenHash::of(shown), now).await? {
            Known::Good(record) => {
                self.lockout(|lockout| lockout.succeeded(from));
                Ok(record)
            }
            Known::Over => Err(Refused::Expired),
            Known::No => {
                if self.lockout(|lockout| lockout.failed(from, now)) == Tried::LockedOut {
                    tracing::warn!(peer = %from, "an address showed too many unknown tokens, and is locked out");
                    let who = Caller { name: from.to_string(), scope: Scope::Read, via: Via::Token };
                    let after = "locked out: too many unknown tokens".to_owned();
                    self.write_down(&[bare(who, Action::Lockout, after)], now).await;
                }
                Err(Refused::Unknown)
            }
        }
    }

    /// Who has this session cookie; `None`: nobody, the session is over.
    ///
    /// # Errors
    /// The database.
    pub async fn by_session(&self, cookie: &str, now: Timestamp) -> Result<Option<Caller>, StoreError> {
        let record = self.accounts.session(TokenHash::of(cookie), now).await?;
        Ok(record.map(|record| caller(record, Via::Session)))
    }

    /// Returns once this is good no longer. While the database cannot say, it is good.
    pub async fn until_over(&self, shown: Shown, clock: &dyn Clock) {
        let mut taken_back = self.taken_back.subscribe();
        loop {
            let now = clock.now();
            let is_good = match shown {
                Shown::Token(hash) => {
                    self.accounts.token(hash, now).await.map(|known| matches!(known, Known::Good(_)))
                }
                Shown::Session(hash) => self.accounts.session(hash, now).await.map(|found| found.is_some()),
            };
            if matches!(is_good, Ok(false)) {
                return;
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, taken_back.changed()).await; // either way: look
        }
    }

    /// A session for who shows this token: the cookie's value.
    ///
    /// # Errors
    /// Nobody that is let in.
    pub async fn log_in(&self, shown: &str, from: IpAddr, now: Timestamp) -> Result<Secret, Refused> {
        let record = self.known(shown, from, now).await?;
        let away = |error: getrandom::Error| StoreError::Unavailable {
            operation: "make a session for",
            path: "the system's random bytes".into(),
            detail: error.to_string(),
        };
        let cookie = session::text(random().map_err(away)?);
        let session = SessionRecord { token: record.hash, created: now, expires: now + session::LASTS };
        self.accounts.open_session(TokenHash::of(cookie.expose()), &session).await?;
        let who = caller(record, Via::Session);
        tracing::info!(asked_by = who.label(), peer = %from, "logged in");
        self.write_down(&[bare(who, Action::Login, format!("from {from}"))], now).await;
        Ok(cookie)
    }

    /// Ends the session of this cookie.
    ///
    /// # Errors
    /// The database.
    pub async fn log_out(&self, cookie: &str, now: Timestamp) -> Result<(), StoreError> {
        if let Some(who) = self.by_session(cookie, now).await? {
            self.accounts.close_session(TokenHash::of(cookie)).await?;
            self.taken_back.send_modify(|count| *count += 1);
            self.write_down(&[bare(who, Action::Logout, String::new())], now).await;
        }
        Ok(())
    }

    /// Makes a token: its text, which is told this once, and what is kept of it.
    ///
    /// # Errors
    /// Its name will not do or is taken.
    pub async fn add_token(
        &self,
        wanted: &Wanted,
        by: &Caller,
        now: Timestamp,
    ) -> Result<(Secret, TokenRecord), TokenError> {
        if let Some(problem) = token::name_problem(&wanted.name) {
            return Err(TokenError::Name(problem));
        }
        let text = token::text(random().map_err(TokenError::Random)?);
        let record = TokenRecord {
            name: wanted.name.clone(),
            hash: TokenHash::of(text.expose()),
            scope: wanted.scope,
            created: now,
            created_by: by.label(),
            expires: wanted.lasts.map(|lasts| now + lasts),
            last_used: None,
        };
        if !self.accounts.add_token(&record).await? {
            return Err(TokenError::Taken(wanted.name.clone()));
        }
        tracing::info!(asked_by = by.label(), token = record.name, scope = %record.scope, "token made");
        let until = record.expires.map_or_else(|| "for ever".to_owned(), |until| format!("until {until}"));
        let after = format!("{}: {}, {until}", record.name, record.scope);
        self.write_down(&[bare(by.clone(), Action::TokenAdd, after)], now).await;
        Ok((text, record))
    }

    /// Takes a token back; `false`: there is none of this name.
    ///
    /// # Errors
    /// The database.
    pub async fn revoke(&self, name: &str, by: &Caller, now: Timestamp) -> Result<bool, StoreError> {
        let Some(record) = self.accounts.revoke(name).await? else { return Ok(false) };
        self.taken_back.send_modify(|count| *count += 1);
        tracing::info!(asked_by = by.label(), token = name, "token revoked");
        let before = format!("{}: {}", record.name, record.scope);
        let deed = Deed { before, ..bare(by.clone(), Action::TokenRevoke, "revoked".to_owned()) };
        self.write_down(&[deed], now).await;
        Ok(true)
    }

    /// Adds to the audit log. What was done is done: a log that cannot be written is told aloud, and stops nobody.
    pub async fn write_down(&self, deeds: &[Deed], now: Timestamp) {
        if let Err(error) = self.accounts.write_down(deeds, now).await {
            let what: Vec<_> = deeds.iter().map(|deed| (deed.who.label(), deed.action)).collect();
            tracing::error!(%error, ?what, "the audit log cannot be written");
        }
    }
}

/// A deed that is about no VM.
pub(super) const fn bare(who: Caller, action: Action, after: String) -> Deed {
    Deed { who, action, vm: None, job: None, before: String::new(), after }
}

/// Who is at the other end of the unix socket: root, the server's own user and the members of [`GROUP`] may do
/// everything, others nothing. `Err`: how the one is called who may not.
pub fn of_socket(uid: u32, gid: u32) -> Result<Caller, String> {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let name = match &user {
        Some(user) => format!("uid {uid} ({})", user.name),
        None => format!("uid {uid}"),
    };
    let own = uid == 0 || uid == nix::unistd::geteuid().as_raw();
    if own || in_group(user.as_ref(), gid) {
        return Ok(Caller { name, scope: Scope::Admin, via: Via::Socket });
    }
    Err(name)
}

fn in_group(user: Option<&nix::unistd::User>, gid: u32) -> bool {
    let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP) else { return false };
    let named = || {
        let user = user?;
        let name = std::ffi::CString::new(user.name.clone()).ok()?;
        nix::unistd::getgrouplist(&name, user.gid).ok()
    };
    group.gid.as_raw() == gid || named().is_some_and(|groups| groups.contains(&group.gid))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn root_and_the_server_itself_may_do_everything() {
        let own = nix::unistd::geteuid().as_raw();
        for uid in [0, own] {
            let caller = of_socket(uid, u32::MAX - 1).unwrap();
            assert_eq!((caller.scope, caller.via), (Scope::Admin, Via::Socket));
            assert!(caller.name.starts_with(&format!("uid {uid}")));
        }
        assert_eq!(of_socket(u32::MAX - 7, u32::MAX - 7), Err(format!("uid {}", u32::MAX - 7)));
    }

    #[tokio::test]
    async fn guesser_is_locked_out_even_with_a_good_token_and_the_audit_log_tells() {
        let door = Door::new(Accounts::new(Arc::new(MemoryStore::new())));
        let (now, from) = (Timestamp::from_millis(1), IpAddr::from([192, 0, 2, 1]));
        let by = Caller { name: "uid 0 (root)".into(), scope: Scope::Admin, via: Via::Socket };
        let wanted = Wanted { name: "ci".into(), scope: Scope::Read, lasts: None };
        let (text, _) = door.add_token(&wanted, &by, now).await.unwrap();
        assert_eq!(door.by_token(text.expose(), from, now).await.unwrap().name, "ci");
        for _ in 0..10 {
            assert!(matches!(door.by_token("bft_guess", from, now).await, Err(Refused::Unknown)));
        }
        assert!(matches!(door.by_token(text.expose(), from, now).await, Err(Refused::LockedOut(_))));
        assert!(matches!(door.log_in(text.expose(), from, now).await, Err(Refused::LockedOut(_))));
        let other = IpAddr::from([192, 0, 2, 2]);
        let cookie = door.log_in(text.expose(), other, now).await.unwrap();
        assert_eq!(door.by_session(cookie.expose(), now).await.unwrap().unwrap().via, Via::Session);
        door.log_out(cookie.expose(), now).await.unwrap();
        assert_eq!(door.by_session(cookie.expose(), now).await.unwrap(), None);
        let actions: Vec<Action> =
            door.accounts().audit(1, 9).await.unwrap().into_iter().map(|entry| entry.action).collect();
        assert_eq!(actions, [Action::TokenAdd, Action::Lockout, Action::Login, Action::Logout]);
    }
}

//! The typed repository of access: `access/tokens/<hash>` and `access/names/<name>`, `access/sessions/<hash>`,
//! `access/repeats/<place>` (answers to requests with a key), `audit/<number>` and `audit-head`.
//!
//! Invariant: only hashes of tokens and cookies are in the store. A name has one token; the audit log has no gaps.

use std::sync::Arc;

use serde::{Serialize, de::DeserializeOwned};

use super::{Batch, Entry, Revision, Store, StoreError};
use crate::{
    access::{
        audit::{AuditEntry, Deed, Head},
        repeats::{self, Kept, KeptAnswer, Verdict},
        session::SessionRecord,
        token::TokenRecord,
    },
    clock::Timestamp,
    secret::TokenHash,
};

const TOKENS: &str = "access/tokens/";
const NAMES: &str = "access/names/";
const SESSIONS: &str = "access/sessions/";
const REPEATS: &str = "access/repeats/";
const AUDIT: &str = "audit/";
const AUDIT_HEAD: &str = "audit-head";

/// How often an entry is tried when others write theirs at the same time.
const TRIES: u32 = 64;

/// Tokens, sessions, kept answers and the audit log of a store.
#[derive(Debug, Clone)]
pub struct Accounts {
    store: Arc<dyn Store>,
}

fn hashed(prefix: &str, hash: TokenHash) -> String {
    format!("{prefix}{}", String::from(hash))
}

fn audit_key(number: u64) -> String {
    format!("{AUDIT}{number:020}")
}

fn parse<T: DeserializeOwned>(entry: &Entry) -> Result<T, StoreError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Corrupt { key: entry.key.clone(), detail: error.to_string() })
}

fn json(key: &str, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value)
        .map_err(|error| StoreError::Corrupt { key: key.to_owned(), detail: error.to_string() })
}

impl Accounts {
    /// Those of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    async fn read<T: DeserializeOwned>(&self, key: &str) -> Result<Option<(T, Revision)>, StoreError> {
        let Some(entry) = self.store.get(key).await? else { return Ok(None) };
        Ok(Some((parse(&entry)?, entry.revision)))
    }

    /// Adds a token; `false`: its name is taken.
    ///
    /// # Errors
    /// The store is away.
    pub async fn add_token(&self, record: &TokenRecord) -> Result<bool, StoreError> {
        let (name, key) = (format!("{NAMES}{}", record.name), hashed(TOKENS, record.hash));
        let batch = Batch::new().expect(&name, None).expect(&key, None);
        let batch = batch.put(name, String::from(record.hash)).put(&key, json(&key, record)?);
        match self.store.commit(batch).await {
            Ok(_) => Ok(true),
            Err(StoreError::Conflict { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    /// All tokens, by name.
    ///
    /// # Errors
    /// The store is away, or holds something else there.
    pub async fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        let entries = self.store.list(TOKENS).await?;
        let mut tokens = entries.iter().map(parse).collect::<Result<Vec<TokenRecord>, _>>()?;
        tokens.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tokens)
    }

    /// Takes a token back; what it was, if there was one of this name.
    ///
    /// # Errors
    /// The store is away.
    pub async fn revoke(&self, name: &str) -> Result<Option<TokenRecord>, StoreError> {
        let name_key = format!("{NAMES}{name}");
        let Some(entry) = self.store.get(&name_key).await? else { return Ok(None) };
        let key = format!("{TOKENS}{}", String::from_utf8_lossy(&entry.value));
        let Some((record, _)) = self.read::<TokenRecord>(&key).await? else { return Ok(None) };
        self.store.commit(Batch::new().delete(name_key).delete(key)).await?;
        Ok(Some(record))
    }

    /// The token of this hash, while it is good; a use is noted, about once a minute.
    ///
    /// # Errors
    /// The store is away.
    pub async fn token(&self, hash: TokenHash, now: Timestamp) -> Result<Known<TokenRecord>, StoreError> {
        let key = hashed(TOKENS, hash);
        let Some((record, revision)) = self.read::<TokenRecord>(&key).await? else { return Ok(Known::No) };
        if record.hash != hash {
            return Ok(Known::No);
        }
        if !record.is_good(now) {
            return Ok(Known::Over);
        }
        if record.use_is_news(now) {
            let used = TokenRecord { last_used: Some(now), ..record.clone() };
            let batch = Batch::new().expect(&key, Some(revision)).put(&key, json(&key, &used)?);
            // Another request noted it, or the disk is full: reading goes on all the same.
            if let Err(error) = self.store.commit(batch).await {
                tracing::debug!(token = %record.name, %error, "the use of a token is not noted");
            }
        }
        Ok(Known::Good(record))
    }

    /// Opens a session.
    ///
    /// # Errors
    /// The store is away.
    pub async fn open_session(&self, cookie: TokenHash, session: &SessionRecord) -> Result<(), StoreError> {
        let key = hashed(SESSIONS, cookie);
        self.store.commit(Batch::new().put(&key, json(&key, session)?)).await.map(drop)
    }

    /// The token behind a session's cookie, while both are good.
    ///
    /// # Errors
    /// The store is away.
    pub async fn session(
        &self,
        cookie: TokenHash,
        now: Timestamp,
    ) -> Result<Option<TokenRecord>, StoreError> {
        let Some((session, _)) = self.read::<SessionRecord>(&hashed(SESSIONS, cookie)).await? else {
            return Ok(None);
        };
        if !session.is_good(now) {
            return Ok(None);
        }
        Ok(match self.token(session.token, now).await? {
            Known::Good(record) => Some(record),
            Known::Over | Known::No => None,
        })
    }

    /// Ends a session.
    ///
    /// # Errors
    /// The store is away.
    pub async fn close_session(&self, cookie: TokenHash) -> Result<(), StoreError> {
        self.store.commit(Batch::new().delete(hashed(SESSIONS, cookie))).await.map(drop)
    }

    /// Whether a request with a key is new; if so it is under way from now on.
    ///
    /// # Errors
    /// The store is away.
    pub async fn begin(&self, place: &str, request: &str, now: Timestamp) -> Result<Verdict, StoreError> {
        let key = format!("{REPEATS}{place}");
        let kept = self.read::<Kept>(&key).await?;
        let verdict = repeats::judge(kept.as_ref().map(|(kept, _)| kept), request, now);
        if verdict != Verdict::New {
            return Ok(verdict);
        }
        let begun = Kept { request: request.to_owned(), at: now, answer: None };
        let revision = kept.map(|(_, revision)| revision);
        match self.store.commit(Batch::new().expect(&key, revision).put(&key, json(&key, &begun)?)).await {
            Ok(_) => Ok(Verdict::New),
            Err(StoreError::Conflict { .. }) => Ok(Verdict::UnderWay),
            Err(other) => Err(other),
        }
    }

    /// Keeps the answer to a request that was begun at `at`; `None`: it came to nothing, and may be made again.
    ///
    /// # Errors
    /// The store is away.
    pub async fn end(
        &self,
        place: &str,
        request: &str,
        at: Timestamp,
        answer: Option<KeptAnswer>,
    ) -> Result<(), StoreError> {
        let key = format!("{REPEATS}{place}");
        let batch = match answer {
            Some(answer) => {
                let kept = Kept { request: request.to_owned(), at, answer: Some(answer) };
                Batch::new().put(&key, json(&key, &kept)?)
            }
            None => Batch::new().delete(key),
        };
        self.store.commit(batch).await.map(drop)
    }

    /// Adds entries to the audit log, all or none.
    ///
    /// # Errors
    /// The store is away.
    pub async fn write_down(&self, deeds: &[Deed], now: Timestamp) -> Result<Vec<AuditEntry>, StoreError> {
        let mut conflict = StoreError::Conflict { key: AUDIT_HEAD.to_owned() };
        for _ in 0..TRIES {
            let head = self.read::<Head>(AUDIT_HEAD).await?;
            let (mut head, revision) =
                head.map_or_else(|| (Head::default(), None), |(head, at)| (head, Some(at)));
            let mut batch = Batch::new().expect(AUDIT_HEAD, revision);
            let mut entries = Vec::with_capacity(deeds.len());
            for deed in deeds {
                let entry = head.next(deed, now);
                head = entry.head();
                let key = audit_key(entry.number);
                batch = batch.put(&key, json(&key, &entry)?);
                entries.push(entry);
            }
            match self.store.commit(batch.put(AUDIT_HEAD, json(AUDIT_HEAD, &head)?)).await {
                Ok(_) => return Ok(entries),
                Err(error @ StoreError::Conflict { .. }) => conflict = error,
                Err(other) => return Err(other),
            }
        }
        Err(conflict)
    }

    /// The end of the audit log.
    ///
    /// # Errors
    /// The store is away.
    pub async fn audit_head(&self) -> Result<Head, StoreError> {
        Ok(self.read::<Head>(AUDIT_HEAD).await?.map_or_else(Head::default, |(head, _)| head))
    }

    /// The entries with numbers from `first` on, at most so many.
    ///
    /// # Errors
    /// The store is away.
    pub async fn audit(&self, first: u64, most: usize) -> Result<Vec<AuditEntry>, StoreError> {
        let last = self.audit_head().await?.number;
        let mut entries = Vec::new();
        for number in (first.max(1)..=last).take(most) {
            // One that somebody took out of the database is missing here, and the chain tells.
            entries.extend(self.read(&audit_key(number)).await?.map(|(entry, _)| entry));
        }
        Ok(entries)
    }

    /// Forgets sessions and kept answers that are over; how many.
    ///
    /// # Errors
    /// The store is away.
    pub async fn tidy(&self, now: Timestamp) -> Result<usize, StoreError> {
        let mut batch = Batch::new();
        for entry in self.store.list(SESSIONS).await? {
            if parse::<SessionRecord>(&entry).map_or(true, |session| !session.is_good(now)) {
                batch = batch.delete(entry.key);
            }
        }
        for entry in self.store.list(REPEATS).await? {
            if parse::<Kept>(&entry).map_or(true, |kept| now.since(kept.at) >= repeats::KEPT) {
                batch = batch.delete(entry.key);
            }
        }
        let over = batch.ops.len();
        if over > 0 {
            self.store.commit(batch).await?;
        }
        Ok(over)
    }
}

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known<T> {
    /// It is good.
    Good(T),
    /// It was made here, and has expired.
    Over,
    /// Nobody made it, or it was revoked.
    No,
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;
    use crate::{
        access::{Caller, Scope, Via, audit::Action},
        store::memory::MemoryStore,
    };

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn now<T>(work: impl Future<Output = Result<T, StoreError>>) -> T {
        work.now_or_never().expect("memory does not wait").unwrap()
    }

    fn record(name: &str, text: &str) -> TokenRecord {
        TokenRecord {
            name: name.into(),
            hash: TokenHash::of(text),
            scope: Scope::Operate,
            created: at(0),
            created_by: "uid 0 (root)".into(),
            expires: Some(at(1000)),
            last_used: None,
        }
    }

    fn accounts() -> Accounts {
        Accounts::new(Arc::new(MemoryStore::new()))
    }

    #[test]
    fn token_is_known_by_its_hash_until_it_expires_or_is_revoked() {
        let accounts = accounts();
        assert!(now(accounts.add_token(&record("ci", "secret"))));
        assert!(!now(accounts.add_token(&record("ci", "another"))), "the name is taken");
        let known = |text: &str, when| now(accounts.token(TokenHash::of(text), at(when)));
        assert!(matches!(known("secret", 10), Known::Good(record) if record.name == "ci"));
        assert_eq!(known("another", 10), Known::No);
        assert_eq!(known("secret", 1000), Known::Over);
        assert_eq!(now(accounts.tokens())[0].last_used, Some(at(10)));
        assert_eq!(now(accounts.revoke("ci")).unwrap().name, "ci");
        assert_eq!(known("secret", 10), Known::No);
        assert_eq!(now(accounts.revoke("ci")), None);
        assert!(now(accounts.add_token(&record("ci", "third"))), "the name is free again");
    }

    #[test]
    fn session_is_over_with_its_token() {
        let accounts = accounts();
        now(accounts.add_token(&record("alice", "secret")));
        let session = SessionRecord { token: TokenHash::of("secret"), created: at(0), expires: at(100) };
        now(accounts.open_session(TokenHash::of("cookie"), &session));
        let who = |when| now(accounts.session(TokenHash::of("cookie"), at(when))).map(|record| record.name);
        assert_eq!(who(99).as_deref(), Some("alice"));
        assert_eq!(who(100), None);
        assert_eq!(now(accounts.tidy(at(100))), 1);
        now(accounts.open_session(TokenHash::of("cookie"), &session));
        now(accounts.revoke("alice"));
        assert_eq!(who(1), None);
    }

    #[test]
    fn request_with_a_key_is_carried_out_once() {
        let accounts = accounts();
        let begin = |request: &str, when| now(accounts.begin("place", request, at(when)));
        assert_eq!(begin("a", 0), Verdict::New);
        assert_eq!(begin("a", 1), Verdict::UnderWay);
        let answer = KeptAnswer { status: 200, content_type: "t".into(), body: Some("b".into()) };
        now(accounts.end("place", "a", at(0), Some(answer.clone())));
        assert_eq!(begin("a", 2), Verdict::Again(answer));
        assert_eq!(begin("b", 2), Verdict::Other);
        now(accounts.end("place", "a", at(0), None));
        assert_eq!(begin("b", 3), Verdict::New);
        assert_eq!(now(accounts.tidy(at(86_403))), 1);
    }

    #[tokio::test]
    async fn audit_log_has_no_gaps_when_many_write_at_once() {
        let accounts = accounts();
        let deed = |number: u32| Deed {
            who: Caller { name: format!("t{number}"), scope: Scope::Operate, via: Via::Token },
            action: Action::Deploy,
            vm: Some(("web".into(), "u1".into())),
            job: None,
            before: "no job".into(),
            after: "Queued".into(),
        };
        let deeds: Vec<Deed> = (0..20).map(deed).collect();
        for entry in join_all(deeds.chunks(2).map(|deeds| accounts.write_down(deeds, at(1)))).await {
            entry.unwrap();
        }
        let entries = accounts.audit(0, 100).await.unwrap();
        assert_eq!(entries.len(), 20);
        assert_eq!(crate::access::audit::problem(&Head::default(), &entries), None);
        assert_eq!(accounts.audit(19, 100).await.unwrap().len(), 2);
        assert_eq!(accounts.audit(1, 3).await.unwrap().len(), 3);
        assert_eq!(accounts.audit_head().await.unwrap(), entries[19].head());
    }
}

//! The audit log: who did what to which VM, before and after. Each entry carries the hash of the one before, so that
//! one that was changed, added or taken out in between shows.
//!
//! What it does not show: entries cut off at the end, by who can write the database. Keep the last hash elsewhere.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Caller, Scope, Via};
use crate::{clock::Timestamp, secret::hex};

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// A job was ordered.
    Deploy,
    /// A job was cancelled.
    Cancel,
    /// A rescue was ended.
    Finish,
    /// A job was tried again.
    Retry,
    /// A job that waited for an operator was settled.
    Resolve,
    /// Something was rendered with its secrets.
    ShowSecrets,
    /// A token was made.
    TokenAdd,
    /// A token was revoked.
    TokenRevoke,
    /// A browser logged in.
    Login,
    /// A browser logged out.
    Logout,
    /// An address showed too many unknown tokens.
    Lockout,
    /// The configuration was read again.
    Reload,
}

/// What is written down; the log adds number, time and hashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deed {
    /// Who.
    pub who: Caller,
    /// What.
    pub action: Action,
    /// The VM's name and uuid, where it is about one.
    pub vm: Option<(String, String)>,
    /// The job, where it is about one.
    pub job: Option<String>,
    /// How it stood before.
    pub before: String,
    /// How it stands now, or why it was refused.
    pub after: String,
}

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditEntry {
    /// From 1, without gaps.
    pub number: u64,
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// Who.
    pub who: String,
    /// With which scope.
    pub scope: Scope,
    /// How they came in.
    pub via: Via,
    /// What.
    pub action: Action,
    /// The VM's name label.
    pub vm: Option<String>,
    /// The VM's uuid.
    pub vm_uuid: Option<String>,
    /// The job.
    pub job: Option<String>,
    /// How it stood before.
    pub before: String,
    /// How it stands now, or why it was refused.
    pub after: String,
    /// The hash of the entry before; of the first one 64 zeros.
    pub previous: String,
    /// SHA-256 of all that stands above, as JSON.
    pub hash: String,
}

/// The end of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last entry's number; 0: there is none.
    pub number: u64,
    /// Its hash.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self { number: 0, hash: "0".repeat(64) }
    }
}

impl Head {
    /// The entry that follows.
    pub fn next(&self, deed: &Deed, now: Timestamp) -> AuditEntry {
        let (vm, vm_uuid) = deed.vm.clone().unzip();
        let entry = AuditEntry {
            number: self.number + 1,
            at: now.to_string(),
            who: deed.who.label(),
            scope: deed.who.scope,
            via: deed.who.via,
            action: deed.action,
            vm,
            vm_uuid,
            job: deed.job.clone(),
            before: cut(&deed.before),
            after: cut(&deed.after),
            previous: self.hash.clone(),
            hash: String::new(),
        };
        AuditEntry { hash: entry.digest(), ..entry }
    }
}

impl AuditEntry {
    fn digest(&self) -> String {
        let bare = Self { hash: String::new(), ..self.clone() };
        // Plain data with string keys: it always has a JSON form.
        hex(&Sha256::digest(serde_json::to_vec(&bare).unwrap_or_default()))
    }

    /// Where the log ends with this entry.
    pub fn head(&self) -> Head {
        Head { number: self.number, hash: self.hash.clone() }
    }
}

/// The longest text of one entry, in characters.
const TEXT_LIMIT: usize = 500;

fn cut(text: &str) -> String {
    text.chars().take(TEXT_LIMIT).collect()
}

/// What is wrong with a run of entries that follows `head`; `None`: they are as they were written.
pub fn problem(head: &Head, entries: &[AuditEntry]) -> Option<String> {
    let mut last = head.clone();
    for entry in entries {
        if entry.number != last.number + 1 {
            return Some(format!("entry {} follows entry {}", entry.number, last.number));
        }
        if entry.previous != last.hash {
            return Some(format!(
                "entry {} does not follow the entry before it as that stands now",
                entry.number
            ));
        }
        if entry.hash != entry.digest() {
            return Some(format!("entry {} is not as it was written", entry.number));
        }
        last = entry.head();
    }
    None
}

/// What is missing of the entries with these numbers; `None`: nothing.
pub fn missing(numbers: std::ops::Range<u64>, entries: &[AuditEntry]) -> Option<String> {
    let wanted = usize::try_from(numbers.end.saturating_sub(numbers.start)).unwrap_or(usize::MAX);
    let (first, last) = (numbers.start, numbers.end.saturating_sub(1));
    (entries.len() < wanted).then(|| format!("of entries {first} to {last} only {} are there", entries.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> Vec<AuditEntry> {
        let who = Caller { name: "ci".into(), scope: Scope::Operate, via: Via::Token };
        let mut head = Head::default();
        let entry = |number: u64| {
            let deed = Deed {
                who: who.clone(),
                action: Action::Cancel,
                vm: Some(("web".into(), "u1".into())),
                job: Some(format!("j{number}")),
                before: "Installing".into(),
                after: "Undoing".into(),
            };
            let entry = head.next(&deed, Timestamp::from_millis(number));
            head = entry.head();
            entry
        };
        (1..=4).map(entry).collect()
    }

    #[test]
    fn log_as_written_is_whole() {
        let log = log();
        assert_eq!(problem(&Head::default(), &log), None);
        assert_eq!(problem(&log[1].head(), &log[2..]), None);
        let text = serde_json::to_string(&log).unwrap();
        let read: Vec<AuditEntry> = serde_json::from_str(&text).unwrap();
        assert_eq!(problem(&Head::default(), &read), None);
    }

    #[test]
    fn every_change_in_between_shows() {
        let changes: [fn(&mut Vec<AuditEntry>); 5] = [
            |log| log[1].who = "token mallory".into(),
            |log| log[2].after = "Failed".into(),
            |log| drop(log.remove(1)),
            |log| log.swap(1, 2),
            |log| {
                log[1].before = "Queued".into();
                log[1].hash = log[1].digest();
            },
        ];
        for change in changes {
            let mut log = log();
            change(&mut log);
            assert!(problem(&Head::default(), &log).is_some(), "{log:?}");
        }
    }

    #[test]
    fn long_words_are_cut() {
        let deed = Deed {
            who: Caller { name: "ci".into(), scope: Scope::Admin, via: Via::Session },
            action: Action::Login,
            vm: None,
            job: None,
            before: String::new(),
            after: "x".repeat(10_000),
        };
        assert_eq!(Head::default().next(&deed, Timestamp::from_millis(0)).after.len(), TEXT_LIMIT);
    }
}

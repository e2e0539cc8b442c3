//! The store: a small key-value trait with compare-and-set, and typed repositories over it.
//!
//! Invariant: a commit that returned `Ok` survives a crash of this process and of the machine (for backends on
//! disk), and is visible to every later `get`, `list` and `watch`. Backends: [`memory`] for tests and the
//! simulation, [`sqlite`] for the server. Typed repositories: `jobs`, `accounts`
//! (tokens, sessions, the audit log), `leases`.

pub mod accounts;
mod feed;
pub mod jobs;
pub mod leases;
pub mod memory;
pub mod sqlite;

use std::{fmt, path::PathBuf};

use futures_util::future::BoxFuture;

/// Grows by one with every commit; an entry carries the revision that last wrote it.
pub type Revision = u64;

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path-like, such as `jobs/0197…`; at most 512 bytes.
    pub key: String,
    /// JSON in practice; at most 1 MiB.
    pub value: Vec<u8>,
    /// The commit that last wrote it.
    pub revision: Revision,
}

/// A condition of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compare {
    /// The key looked at.
    pub key: String,
    /// The revision that it must have; `None`: it must not exist.
    pub revision: Option<Revision>,
}

/// A write of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Sets the key.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Vec<u8>,
    },
    /// Removes the key; absent is fine.
    Delete {
        /// The key.
        key: String,
    },
}

/// Writes that happen together, or not at all when a condition does not hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    /// All must hold.
    pub compares: Vec<Compare>,
    /// Done in order.
    pub ops: Vec<Op>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the condition that `key` stands at `revision` (`None`: is absent).
    pub fn expect(mut self, key: impl Into<String>, revision: Option<Revision>) -> Self {
        self.compares.push(Compare { key: key.into(), revision });
        self
    }

    /// Adds a write.
    pub fn put(mut self, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.ops.push(Op::Put { key: key.into(), value: value.into() });
        self
    }

    /// Adds a removal.
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.ops.push(Op::Delete { key: key.into() });
        self
    }
}

/// The longest key, in bytes.
pub const KEY_LIMIT: usize = 512;

/// The longest value, in bytes.
pub const VALUE_LIMIT: usize = 1024 * 1024;

impl Batch {
    /// Refuses what no backend takes; each asks this before it does anything.
    fn within_limits(&self) -> Result<(), StoreError> {
        for op in &self.ops {
            let (key, value) = match op {
                Op::Put { key, value } => (key, value.len()),
                Op::Delete { key } => (key, 0),
            };
            let too_large = |part, bytes, limit| {
                Err(StoreError::TooLarge { key: key.chars().take(64).collect(), part, bytes, limit })
            };
            if key.len() > KEY_LIMIT {
                return too_large("key", key.len(), KEY_LIMIT);
            }
            if value > VALUE_LIMIT {
                return too_large("value", value, VALUE_LIMIT);
            }
        }
        Ok(())
    }
}

/// What a commit changed, for watchers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The commit.
    pub revision: Revision,
    /// The key that it wrote.
    pub key: String,
    /// The new value; `None`: removed.
    pub value: Option<Vec<u8>>,
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A condition of the commit did not hold: somebody wrote in between. Read again and decide again.
    #[error("{key} was changed by somebody else meanwhile")]
    Conflict {
        /// The first key whose condition failed.
        key: String,
    },
    /// The database cannot be written or read just now (disk full, I/O error). Nothing of the commit was done.
    #[error(
        "cannot {operation} the database {path}: {detail}; free space or mend the disk, bootflip goes on by itself"
    )]
    Unavailable {
        /// `write` or `read`.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The backend's own words.
        detail: String,
    },
    /// A key of more than 512 bytes or a value of more than 1 MiB. Nothing of the commit was done.
    #[error("{key} does not go into the store: its {part} has {bytes} bytes and the limit is {limit}")]
    TooLarge {
        /// The key, cut to 64 characters.
        key: String,
        /// `key` or `value`.
        part: &'static str,
        /// What it has.
        bytes: usize,
        /// What it may have.
        limit: usize,
    },
    /// What stands in the store is not what this version writes.
    #[error("{key} in the store does not parse: {detail}")]
    Corrupt {
        /// The key.
        key: String,
        /// The parser's words.
        detail: String,
    },
}

/// A feed of changes; `None` when the store is closed or the watcher fell more than 4,096 changes behind
/// (then list again and watch from the new revision).
pub type Watch = tokio::sync::mpsc::Receiver<Change>;

/// A key-value store. Object-safe, so that the app holds one `Arc<dyn Store>`.
pub trait Store: Send + Sync + fmt::Debug {
    /// The entry of a key.
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>>;

    /// All entries whose key starts with `prefix`, by key.
    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>>;

    /// Does the batch, durably, or nothing. Returns the new revision.
    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>>;

    /// Changes after `from`, by revision. Of what happened before this call only the latest change of each key is
    /// told; from then on every change is. `from: 0` tells every key that exists. A backend may refuse a `from`
    /// that it no longer remembers, or that lies in the future, by closing at once.
    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>>;
}

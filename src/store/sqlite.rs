//! The store on disk: one SQLite file, one server.
//!
//! Invariants: `commit` returns `Ok` only after SQLite has synced it (WAL, `synchronous=FULL`); one process at a
//! time has the file, by a lock on `<file>.lock` that the kernel drops with the process; the files are 0600.
//! One thread writes and feeds the watchers (`writer`), one reads; callers only wait for their answers. A disk
//! that is full or fails is answered with [`StoreError::Unavailable`] call by call, so that everything goes on by
//! itself once it works again. `schema` opens and checks the file.

pub mod care;
mod schema;
mod writer;

use std::{
    fmt,
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use futures_util::future::{BoxFuture, FutureExt};
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OptionalExtension, Row, params};
use tokio::sync::{mpsc, oneshot};

use self::writer::{Write as WriteRequest, Writer};
use super::{Batch, Entry, Revision, Store, StoreError, Watch};

/// Requests waiting for a thread; beyond, callers wait for room.
const QUEUE: usize = 1024;

/// Why the database was not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has it.
    #[error("the database {path} is in use by another bootflip{}; stop that one, or give this one its own server.state_dir", holder(.pid))]
    Locked {
        /// The database.
        path: PathBuf,
        /// The other server's process, if it could be read.
        pid: Option<u32>,
    },
    /// Its folder is missing and cannot be made.
    #[error("cannot make the folder {path}")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be made, opened or set to mode 0600.
    #[error("cannot open {path} for this user alone")]
    File {
        /// The database or its lock.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite cannot open it or set it up.
    #[error("cannot set up the database {path}")]
    Database {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A newer bootflip wrote it.
    #[error(
        "the database {path} has schema {found}, and this bootflip knows schemas up to {known}; run the newer bootflip, or go back to a copy of the database from before the upgrade"
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// Another program's database.
    #[error("{path} is the database of another program; set server.state_dir to a folder of bootflip's own")]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// SQLite's own check failed.
    #[error(
        "the database {path} is damaged: {detail}; move it away: `bootflip restore --all` brings VMs back from the claims in the pool"
    )]
    Damaged {
        /// The database.
        path: PathBuf,
        /// SQLite's words.
        detail: String,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread for the database {path}")]
    Thread {
        /// The database.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// A store in one SQLite file. Dropping it waits for the commits that were accepted.
pub struct SqliteStore {
    path: PathBuf,
    writes: Option<mpsc::Sender<WriteRequest>>,
    reads: Option<mpsc::Sender<ReadRequest>>,
    threads: [Option<JoinHandle<()>>; 2],
    /// Released last: fields are dropped in order, and `drop` has joined the threads before.
    _lock: Flock<std::fs::File>,
}

impl SqliteStore {
    /// Opens or makes the database; a missing folder is made, for this user alone. Blocks on the disk.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        let lock = lock(&path)?;
        let writer = Writer::new(schema::open(&path)?, path.clone());
        let reader = Reader { connection: schema::open_for_reading(&path)?, path: path.clone() };
        let (writes, write_queue) = mpsc::channel(QUEUE);
        let (reads, read_queue) = mpsc::channel(QUEUE);
        let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
            let spawned = thread::Builder::new().name(name.to_owned()).spawn(work);
            spawned.map_err(|source| OpenError::Thread { path: path.clone(), source })
        };
        let reading = spawn("store-read", Box::new(move || reader.run(read_queue)))?;
        let writing = spawn("store-write", Box::new(move || writer.run(write_queue)))?;
        let threads = [Some(reading), Some(writing)];
        Ok(Self { path, writes: Some(writes), reads: Some(reads), threads, _lock: lock })
    }

    /// Sends a request to a thread and waits for the answer.
    async fn ask<Request, T>(
        &self,
        operation: &'static str,
        thread: Option<&mpsc::Sender<Request>>,
        request: impl FnOnce(Answer<T>) -> Request,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let gone = || unavailable(operation, &self.path, "its thread has ended");
        let thread = thread.ok_or_else(gone)?;
        thread.send(request(answer)).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

impl Drop for SqliteStore {
    fn drop(&mut self) {
        let [reading, writing] = &mut self.threads;
        // SQLite folds the WAL into the database when the last connection closes, and a reading one cannot.
        self.reads = None;
        join(reading.take(), &self.path);
        self.writes = None;
        join(writing.take(), &self.path);
    }
}

fn join(thread: Option<JoinHandle<()>>, path: &Path) {
    if thread.is_some_and(|thread| thread.join().is_err()) {
        tracing::error!(file = %path.display(), "a thread of the database panicked");
    }
}

impl fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store for SqliteStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        let key = key.to_owned();
        self.ask("read", self.reads.as_ref(), |answer| ReadRequest::Get { key, answer }).boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        let prefix = prefix.to_owned();
        self.ask("read", self.reads.as_ref(), |answer| ReadRequest::List { prefix, answer }).boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move {
            batch.within_limits()?;
            self.ask("write", self.writes.as_ref(), |answer| WriteRequest::Commit { batch, answer }).await
        }
        .boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.ask("read", self.writes.as_ref(), move |answer| WriteRequest::Watch { from, answer }).boxed()
    }
}

/// What the reading thread is asked.
#[derive(Debug)]
enum ReadRequest {
    Get { key: String, answer: Answer<Option<Entry>> },
    List { prefix: String, answer: Answer<Vec<Entry>> },
}

struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Reader {
    fn run(self, mut queue: mpsc::Receiver<ReadRequest>) {
        let failed = |error: rusqlite::Error| unavailable("read", &self.path, error);
        // An answer that nobody waits for any more is dropped.
        while let Some(request) = queue.blocking_recv() {
            match request {
                ReadRequest::Get { key, answer } => drop(answer.send(self.get(&key).map_err(failed))),
                ReadRequest::List { prefix, answer } => drop(answer.send(self.list(&prefix).map_err(failed))),
            }
        }
    }

    fn get(&self, key: &str) -> rusqlite::Result<Option<Entry>> {
        let sql = "SELECT key, value, revision FROM entries WHERE key = ?1 AND value IS NOT NULL";
        self.connection.prepare_cached(sql)?.query_row(params![key], entry).optional()
    }

    fn list(&self, prefix: &str) -> rusqlite::Result<Vec<Entry>> {
        let sql =
            "SELECT key, value, revision FROM entries WHERE key >= ?1 AND value IS NOT NULL ORDER BY key";
        let mut statement = self.connection.prepare_cached(sql)?;
        let entries = statement.query_map(params![prefix], entry)?;
        entries
            .take_while(|entry| entry.as_ref().map_or(true, |entry| entry.key.starts_with(prefix)))
            .collect()
    }
}

fn entry(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry { key: row.get(0)?, value: row.get(1)?, revision: revision(row.get(2)?) })
}

/// A revision as SQLite keeps it.
fn revision(stored: i64) -> Revision {
    u64::try_from(stored).unwrap_or(0)
}

/// A revision as SQLite keeps it; the ends of the two ranges are never reached by counting commits.
fn stored(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unavailable(operation: &'static str, path: &Path, detail: impl fmt::Display) -> StoreError {
    StoreError::Unavailable { operation, path: path.to_owned(), detail: detail.to_string() }
}

/// Takes the instance lock. The lock file stays behind: removing it would let two servers lock two files.
fn lock(database: &Path) -> Result<Flock<std::fs::File>, OpenError> {
    if let Some(folder) =
        database.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
    {
        schema::make_folder(folder)
            .map_err(|source| OpenError::Folder { path: folder.to_owned(), source })?;
    }
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let refused = |source| OpenError::File { path: path.clone(), source };
    let mut file = schema::private_file(&path).map_err(refused)?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(refused)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            // The number only serves the other server's message: a full disk must not keep this one from starting.
            let pid = std::process::id().to_string();
            let written =
                lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(pid.as_bytes()));
            if let Err(error) = written {
                tracing::debug!(file = %path.display(), %error, "the lock does not name this process");
            }
            Ok(lock)
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            Err(OpenError::Locked { path: database.to_owned(), pid: text.trim().parse().ok() })
        }
        Err((_, errno)) => Err(refused(errno.into())),
    }
}

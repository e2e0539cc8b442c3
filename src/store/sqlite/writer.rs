//! The writing thread: takes the batches that wait, does them in one transaction, and tells the watchers.
//!
//! Invariant: each batch's conditions are checked against everything committed before it, also within the group; a
//! verdict leaves this thread only after the transaction that it rests on is on disk.

use std::path::PathBuf;

use rusqlite::{Connection, OptionalExtension, Savepoint, TransactionBehavior, params};
use tokio::sync::mpsc;

use super::{Answer, revision, schema, stored, unavailable};
use crate::store::{Batch, Change, Compare, Op, Revision, StoreError, Watch, feed::Feed};

/// The most batches that share one transaction, hence one sync of the disk.
const GROUP: usize = 256;

/// How many removals pass between two looks at whether some can be forgotten.
const REMOVALS_PER_LOOK: usize = 1024;

/// What the writing thread is asked.
#[derive(Debug)]
pub(super) enum Write {
    Commit { batch: Batch, answer: Answer<Revision> },
    Watch { from: Revision, answer: Answer<Watch> },
}

pub(super) struct Writer {
    connection: Connection,
    path: PathBuf,
    feed: Feed,
    removals: usize,
}

/// What became of one batch in a transaction.
#[derive(Debug, PartialEq)]
enum Outcome {
    Done { revision: Revision, changes: Vec<Change> },
    Conflict { key: String },
}

impl Writer {
    pub(super) fn new(connection: Connection, path: PathBuf) -> Self {
        Self { connection, path, feed: Feed::default(), removals: 0 }
    }

    /// Serves until the queue is closed and empty.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Write>) {
        let mut group = Vec::new();
        while let Some(first) = queue.blocking_recv() {
            let mut next = Some(first);
            while let Some(request) = next.take() {
                match request {
                    Write::Commit { batch, answer } => group.push((batch, answer)),
                    Write::Watch { from, answer } => {
                        self.commit(&mut group);
                        let watch = self.watch(from).map_err(|error| unavailable("read", &self.path, error));
                        drop(answer.send(watch)); // nobody waits any more: fine
                    }
                }
                if group.len() < GROUP {
                    next = queue.try_recv().ok();
                }
            }
            self.commit(&mut group);
        }
    }

    /// Does the group and answers it. A group that fails is done again one by one, so that a batch that is too big
    /// for what is left of the disk fails alone.
    fn commit(&mut self, group: &mut Vec<(Batch, Answer<Revision>)>) {
        if group.is_empty() {
            return;
        }
        let batches: Vec<&Batch> = group.iter().map(|(batch, _)| batch).collect();
        let outcomes: Vec<rusqlite::Result<Outcome>> = match self.transact(&batches) {
            Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
            Err(error) if batches.len() == 1 => vec![Err(error)],
            Err(_) => {
                batches.iter().map(|batch| self.transact(&[batch]).map(|mut alone| alone.remove(0))).collect()
            }
        };
        for ((_, answer), outcome) in group.drain(..).zip(outcomes) {
            let verdict = match outcome {
                Ok(Outcome::Done { revision, changes }) => {
                    self.removals += changes.iter().filter(|change| change.value.is_none()).count();
                    self.feed.publish(&changes);
                    Ok(revision)
                }
                Ok(Outcome::Conflict { key }) => Err(StoreError::Conflict { key }),
                Err(error) => Err(unavailable("write", &self.path, error)),
            };
            drop(answer.send(verdict)); // nobody waits any more: it is done all the same
        }
        if self.removals >= REMOVALS_PER_LOOK {
            self.removals = 0;
            if let Err(error) = schema::forget_removed(&self.connection) {
                tracing::debug!(file = %self.path.display(), %error, "removed keys are kept longer");
            }
        }
    }

    /// One transaction, on disk when this returns `Ok`; one outcome for each batch.
    fn transact(&mut self, batches: &[&Batch]) -> rusqlite::Result<Vec<Outcome>> {
        let mut transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let sql = "SELECT value FROM meta WHERE name = 'revision'";
        let first = revision(transaction.query_row(sql, [], |row| row.get(0))?);
        let mut last = first;
        let mut outcomes = Vec::with_capacity(batches.len());
        for batch in batches {
            let savepoint = transaction.savepoint()?;
            let outcome = apply(&savepoint, batch, last + 1)?;
            match &outcome {
                Outcome::Done { revision, .. } => {
                    last = *revision;
                    savepoint.commit()?;
                }
                Outcome::Conflict { .. } => savepoint.finish()?,
            }
            outcomes.push(outcome);
        }
        if last > first {
            transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'revision'", [stored(last)])?;
            transaction.commit()?;
        }
        Ok(outcomes)
    }

    fn watch(&mut self, from: Revision) -> rusqlite::Result<Watch> {
        let meta = |name: &str| {
            let value =
                self.connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get(0));
            value.map(revision)
        };
        let known = from == 0 || from >= meta("forgotten")?;
        if !known || from > meta("revision")? {
            return Ok(Feed::refused());
        }
        let sql = "SELECT key, value, revision FROM entries
                   WHERE revision > ?1 AND (value IS NOT NULL OR ?1 > 0) ORDER BY revision, key";
        let mut statement = self.connection.prepare_cached(sql)?;
        let changes = statement.query_map([stored(from)], |row| {
            Ok(Change { key: row.get(0)?, value: row.get(1)?, revision: revision(row.get(2)?) })
        })?;
        let backlog = changes.collect::<rusqlite::Result<Vec<Change>>>()?;
        Ok(self.feed.subscribe(backlog))
    }
}

fn apply(savepoint: &Savepoint<'_>, batch: &Batch, revision: Revision) -> rusqlite::Result<Outcome> {
    for Compare { key, revision } in &batch.compares {
        let sql = "SELECT revision FROM entries WHERE key = ?1 AND value IS NOT NULL";
        let now: Option<i64> =
            savepoint.prepare_cached(sql)?.query_row([key], |row| row.get(0)).optional()?;
        if now != revision.map(stored) {
            return Ok(Outcome::Conflict { key: key.clone() });
        }
    }
    let mut changes = Vec::with_capacity(batch.ops.len());
    for op in &batch.ops {
        let (key, value, rows) = match op {
            Op::Put { key, value } => {
                let sql = "INSERT INTO entries (key, value, revision) VALUES (?1, ?2, ?3)
                           ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision";
                (
                    key,
                    Some(value),
                    savepoint.prepare_cached(sql)?.execute(params![key, value, stored(revision)])?,
                )
            }
            Op::Delete { key } => {
                let sql =
                    "UPDATE entries SET value = NULL, revision = ?2 WHERE key = ?1 AND value IS NOT NULL";
                (key, None, savepoint.prepare_cached(sql)?.execute(params![key, stored(revision)])?)
            }
        };
        if rows > 0 {
            changes.push(Change { revision, key: key.clone(), value: value.cloned() });
        }
    }
    Ok(Outcome::Done { revision, changes })
}

#[cfg(test)]
mod tests;

//! The typed repository of jobs: `jobs/<id>` holds the job as JSON; `live/<pool>/<vm uuid>` holds the id of the one
//! job that may be live for a VM, so that two can never be (F40).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use super::{Batch, Entry, Revision, Store, StoreError};
use crate::provision::Job;

/// Jobs in a store.
#[derive(Debug, Clone)]
pub struct Jobs {
    store: Arc<dyn Store>,
    /// What was parsed last, by key: a job is read far more often than it changes. The revision says whether it holds.
    parsed: Arc<Mutex<HashMap<String, Stored>>>,
}

/// Parsed jobs kept.
const PARSED: usize = 1024;

/// A job with the revision that it was read at.
#[derive(Debug, Clone)]
pub struct Stored {
    /// The job.
    pub job: Job,
    /// What a later write must expect.
    pub revision: Revision,
}

const JOBS: &str = "jobs/";

fn job_key(id: &str) -> String {
    format!("{JOBS}{id}")
}

/// The id of the job that a key is about; `None`: the key is no job's.
pub fn id_of(key: &str) -> Option<&str> {
    key.strip_prefix(JOBS)
}

/// A job as it stands in the store.
///
/// # Errors
/// What does not parse.
pub fn read(value: &[u8]) -> Result<Job, serde_json::Error> {
    serde_json::from_slice(value)
}

fn live_key(job: &Job) -> String {
    format!("live/{}/{}", job.pool, job.vm_uuid)
}

fn parse(entry: &Entry) -> Result<Stored, StoreError> {
    let job = serde_json::from_slice(&entry.value)
        .map_err(|error| StoreError::Corrupt { key: entry.key.clone(), detail: error.to_string() })?;
    Ok(Stored { job, revision: entry.revision })
}

fn json(job: &Job) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(job)
        .map_err(|error| StoreError::Corrupt { key: job_key(&job.id), detail: error.to_string() })
}

impl Jobs {
    /// The jobs of this store.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, parsed: Arc::default() }
    }

    /// One job.
    ///
    /// # Errors
    /// The store is away, or holds something else under that key.
    pub async fn get(&self, id: &str) -> Result<Option<Stored>, StoreError> {
        let Some(entry) = self.store.get(&job_key(id)).await? else { return Ok(None) };
        let known = self.parsed.lock().unwrap_or_else(PoisonError::into_inner).get(&entry.key).cloned();
        if let Some(known) = known.filter(|known| known.revision == entry.revision) {
            return Ok(Some(known));
        }
        let stored = parse(&entry)?;
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if parsed.len() >= PARSED {
            parsed.clear();
        }
        parsed.insert(entry.key, stored.clone());
        Ok(Some(stored))
    }

    /// All jobs, oldest first; those that do not parse as [`StoreError::Corrupt`].
    ///
    /// # Errors
    /// The store is away.
    pub async fn all(&self) -> Result<Vec<Result<Stored, StoreError>>, StoreError> {
        Ok(self.store.list(JOBS).await?.iter().map(parse).collect())
    }

    /// The live job of a VM.
    ///
    /// # Errors
    /// The store is away.
    pub async fn live(&self, pool: &str, vm_uuid: &str) -> Result<Option<Stored>, StoreError> {
        let Some(entry) = self.store.get(&format!("live/{pool}/{vm_uuid}")).await? else { return Ok(None) };
        self.get(&String::from_utf8_lossy(&entry.value)).await
    }

    /// Adds a job, unless its VM has a live one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when the VM has one; see [`Self::live`].
    pub async fn create(&self, job: &Job) -> Result<Revision, StoreError> {
        let live = live_key(job);
        let batch = Batch::new().expect(&live, None).expect(job_key(&job.id), None);
        self.store.commit(batch.put(live, job.id.as_bytes()).put(job_key(&job.id), json(job)?)).await
    }

    /// Removes a job that has ended, read as `stored`.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it changed meanwhile.
    pub async fn remove(&self, stored: &Stored) -> Result<Revision, StoreError> {
        let key = job_key(&stored.job.id);
        let revision =
            self.store.commit(Batch::new().expect(&key, Some(stored.revision)).delete(&key)).await?;
        self.parsed.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
        Ok(revision)
    }

    /// Replaces a job, read at `from`, and keeps the VM's live mark in step with it.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it changed meanwhile, or when it comes back to life and its VM has another.
    pub async fn replace(&self, from: &Stored, next: &Job) -> Result<Revision, StoreError> {
        let key = job_key(&next.id);
        let mut batch = Batch::new().expect(&key, Some(from.revision)).put(&key, json(next)?);
        match (from.job.state.is_terminal(), next.state.is_terminal()) {
            (false, true) => batch = batch.delete(live_key(next)),
            (true, false) => {
                batch = batch.expect(live_key(next), None).put(live_key(next), next.id.as_bytes())
            }
            (true, true) | (false, false) => {}
        }
        self.store.commit(batch).await
    }
}

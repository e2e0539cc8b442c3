//! The newest job of each VM and a line of every other, kept in step with the store by its feed: pages with a
//! thousand VMs read no database. A shell.
//!
//! Invariant: what stands here was stored before; it may be a moment old, and decides nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use super::flight::{Flight, News};
use crate::{
    clock::Timestamp,
    provision::job::{Job, State},
    recorder::pace::Pace,
    store::{Change, Revision, Store},
};

/// After the store's feed closed.
const PAUSE: Duration = Duration::from_secs(1);
/// The keys of jobs.
const JOBS: &str = "jobs/";

/// One line of an earlier job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its id.
    pub id: String,
    /// Its VM's uuid.
    pub vm_uuid: String,
    /// The VM's name label then.
    pub vm: String,
    /// Its pool.
    pub pool: String,
    /// Its profile.
    pub profile: String,
    /// How far it is, or how it ended.
    pub state: State,
    /// Why.
    pub reason: Option<&'static str>,
    /// When it was made.
    pub created: Timestamp,
    /// When it entered its state.
    pub since: Timestamp,
    /// Who asked.
    pub asked_by: String,
}

#[derive(Debug, Default)]
struct Kept {
    newest: HashMap<String, Arc<Job>>,
    lines: BTreeMap<String, Line>,
    pace: Pace,
}

/// The roster, shared.
#[derive(Debug, Clone, Default)]
pub struct Roster(Arc<Mutex<Kept>>);

impl Roster {
    /// The newest job of a VM.
    pub fn newest(&self, vm_uuid: &str) -> Option<Arc<Job>> {
        self.locked().newest.get(vm_uuid).cloned()
    }

    /// The newest jobs of all VMs, by VM uuid.
    pub fn all_newest(&self) -> HashMap<String, Arc<Job>> {
        self.locked().newest.clone()
    }

    /// Lines of jobs, the newest first: of all VMs, or of one.
    pub fn lines(&self, vm_uuid: Option<&str>, most: usize) -> Vec<Line> {
        let kept = self.locked();
        let all = kept.lines.values().rev();
        all.filter(|line| vm_uuid.is_none_or(|uuid| line.vm_uuid == uuid)).take(most).cloned().collect()
    }

    /// How long a job has left, by those of its profile that went well.
    pub fn left(&self, job: &Job, now: Timestamp) -> Option<Duration> {
        self.locked().pace.left(job, now)
    }

    fn locked(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows the store until `stop`.
    pub async fn follow(self, store: Arc<dyn Store>, flight: Flight, stop: CancellationToken) {
        let mut from: Revision = 0;
        let follow = async {
            loop {
                match store.watch(from).await {
                    Ok(mut watch) => {
                        while let Some(change) = watch.recv().await {
                            from = from.max(change.revision);
                            self.take(change, &flight);
                        }
                    }
                    Err(error) => tracing::debug!(%error, "the store's feed cannot be had"),
                }
                // The feed of a store that is away, or that we fell behind: all of it again, as it is now.
                from = 0;
                tokio::time::sleep(PAUSE).await;
            }
        };
        stop.run_until_cancelled(follow).await;
    }

    fn take(&self, change: Change, flight: &Flight) {
        let Some(id) = change.key.strip_prefix(JOBS) else { return };
        let Some(value) = change.value else {
            self.forget(id);
            return;
        };
        let job: Job = match serde_json::from_slice(&value) {
            Ok(job) => job,
            Err(error) => {
                tracing::debug!(job = id, %error, "a job that does not parse is on no page");
                return;
            }
        };
        let news = News::Job { vm_uuid: job.vm_uuid.clone(), job: job.id.clone() };
        self.keep(job);
        flight.tell(news);
    }

    fn forget(&self, id: &str) {
        let mut kept = self.locked();
        kept.lines.remove(id);
        kept.newest.retain(|_, job| job.id != id);
    }

    fn keep(&self, job: Job) {
        let mut kept = self.locked();
        kept.pace.learn(&job);
        kept.lines.insert(job.id.clone(), line(&job));
        // Ids are sortable by creation.
        let newer = kept.newest.get(&job.vm_uuid).is_none_or(|known| known.id <= job.id);
        if newer {
            kept.newest.insert(job.vm_uuid.clone(), Arc::new(job));
        }
    }
}

fn line(job: &Job) -> Line {
    Line {
        id: job.id.clone(),
        vm_uuid: job.vm_uuid.clone(),
        vm: job.vm_name.clone(),
        pool: job.pool.clone(),
        profile: job.profile.name.clone(),
        state: job.state,
        reason: job.reason.map(|reason| reason.label()),
        created: job.created,
        since: job.history.last().map_or(job.created, |mark| mark.at),
        asked_by: job.asked_by.clone(),
    }
}

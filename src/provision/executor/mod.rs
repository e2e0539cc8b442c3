//! The shell around the job: looks, plans, calls, looks again, and stores every step. The only writer of jobs.
//!
//! Order of every effect: intent stored → VM read → call → VM read back → outcome stored. After every commit the boot
//! gate is set from the job, so a closed gate is durable before it is closed and an open one before it opens. Nothing
//! in memory is needed after a restart: [`Executor::recover`] rebuilds it from the store.

mod calls;
pub mod claims;
mod facts;
mod history;
pub mod lookups;
mod publish;
mod reports;
mod rounds;
mod shared;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::BoxFuture;

use self::shared::Shared;
use super::{
    admission::{self, Caps, Places, Tally},
    job::{Effect, Intent, Job, NewJob, State},
    plan::{Observed, Plan, Trail, plan},
    preflight::Rules,
    reason::Reason,
    resume,
    step::{Channel, Event, step},
};
use crate::{
    boot::{
        Armed, Gate,
        sink::{Sign, Transfer},
    },
    clock::{Clock, Timestamp},
    machine::MacAddr,
    secret::{TokenHash, TokenKey},
    store::{
        Revision, Store, StoreError,
        jobs::{Jobs, Stored},
    },
    xen::{CallError, api::Api, records::VifRecord},
};

/// One pool as the executor uses it.
#[derive(Debug, Clone)]
pub struct PoolAccess {
    /// Its calls.
    pub api: Api,
    /// The same, for jobs on their way back: some calls are kept for them.
    pub way_back: Api,
    /// `pool.allow`.
    pub allow: Vec<String>,
    /// `limits.installs_per_pool` and `limits.installs_per_host`.
    pub installs: Caps,
}

impl PoolAccess {
    /// The calls of a job in this state.
    pub(super) const fn calls(&self, state: State) -> &Api {
        if matches!(state, State::Restoring | State::Undoing) { &self.way_back } else { &self.api }
    }
}

/// What the boot services would serve, checked before anything is changed (E0).
pub trait Serving: Send + Sync + fmt::Debug {
    /// What is wrong with what this attempt would be served: a file missing, a template broken, a listener down.
    fn problem(&self, armed: &Armed) -> Option<String>;
}

/// Who is told that a job should be looked at again.
pub trait Wakers: Send + Sync + fmt::Debug {
    /// This job has news.
    fn wake(&self, job: &str);
}

/// Who looks whether a guest answers on a TCP port (`evidence = "tcp:PORT"`).
pub trait Reach: Send + Sync + fmt::Debug {
    /// Whether a connection is accepted there. Ends within seconds.
    fn answers(&self, at: SocketAddr) -> BoxFuture<'_, bool>;
}

/// Who is told of every call to a pool that was made for a job.
pub trait Witness: Send + Sync + fmt::Debug {
    /// It was made, and done or refused. Never blocks and never fails.
    fn called(&self, job: &Job, effect: Effect, call: &'static str, failed: Option<&CallError>);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn called(&self, _: &Job, _: Effect, _: &'static str, _: Option<&CallError>) {}
}

/// What the executor is made of.
pub struct Parts {
    /// `server.name`.
    pub owner: String,
    /// Where jobs are.
    pub store: Arc<dyn Store>,
    /// The pools, by name.
    pub pools: BTreeMap<String, PoolAccess>,
    /// The boot gate.
    pub gate: Gate,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// The key of all tokens.
    pub key: TokenKey,
    /// E0's check of what would be served.
    pub serving: Arc<dyn Serving>,
    /// Who is woken.
    pub wakers: Arc<dyn Wakers>,
    /// Who looks at TCP ports.
    pub reach: Arc<dyn Reach>,
    /// Who is told of calls.
    pub witness: Arc<dyn Witness>,
    /// 128 fresh random bits in hex.
    pub nonce: Box<dyn Fn() -> String + Send + Sync>,
    /// What decides.
    pub decisions: Decisions,
}

/// The two pure functions that decide. Tests put a broken one in their place, to see that they would notice.
#[derive(Debug, Clone, Copy)]
pub struct Decisions {
    /// [`plan`].
    pub plan: fn(Effect, &Job, &Observed, &Trail, Timestamp) -> Plan,
    /// [`step`].
    pub step: fn(&Job, &Event, Timestamp) -> Job,
}

impl Default for Decisions {
    fn default() -> Self {
        Self { plan, step }
    }
}

/// Drives jobs (see the module).
pub struct Executor {
    parts: Parts,
    jobs: Jobs,
    memory: Mutex<Memory>,
    /// The NICs of each pool.
    vifs: HashMap<String, Shared<Arc<Vec<VifRecord>>>>,
    /// The syncs of each pool's database.
    syncs: HashMap<String, Shared<()>>,
    /// When this executor was made: calls of one before it may still be under way.
    born: Timestamp,
}

/// What may be lost in a crash.
#[derive(Debug, Default)]
struct Memory {
    trails: HashMap<String, (Intent, u32, Trail)>,
    references: HashMap<String, String>,
    domids: HashMap<String, (i64, Timestamp)>,
    tokens: HashMap<TokenHash, (String, Channel)>,
    renders: HashMap<TokenHash, String>,
    macs: HashMap<MacAddr, String>,
    signs: HashMap<String, Vec<Sign>>,
    /// What left for machines with a job, the oldest first.
    transfers: VecDeque<(Timestamp, Transfer)>,
    live: BTreeMap<String, Job>,
    /// Looks in a row that failed, and whether they said that there is no such VM.
    unreachable: HashMap<String, (bool, u32)>,
    /// When each job's last start was sent.
    starts: HashMap<String, Timestamp>,
    /// Since when the VM that a job wants to start is busy with something else.
    busy: HashMap<String, Timestamp>,
    /// What was published of each job.
    published: HashMap<String, Revision>,
    /// Where installations may run, as E0 and plans saw it.
    places: Places,
    /// By order: its jobs that have ended, and whether they were installed; cancelled ones are neither.
    ended: HashMap<String, HashMap<String, bool>>,
}

impl Memory {
    /// How the order of a job went so far.
    fn tally(&self, job: &Job) -> Tally {
        job.options.batch.as_ref().map_or_else(Tally::default, |batch| self.tally_of(&batch.id))
    }

    fn tally_of(&self, batch: &str) -> Tally {
        let mut tally = Tally::default();
        for installed in self.ended.get(batch).into_iter().flat_map(HashMap::values) {
            let count = if *installed { &mut tally.succeeded } else { &mut tally.failed };
            *count = count.saturating_add(1);
        }
        tally
    }

    /// Notes how a job of an order ended, or that it is tried again.
    fn note_end(&mut self, job: &Job) {
        let Some(batch) = &job.options.batch else { return };
        let stopped = job.reason == Some(Reason::WaveStopped);
        let ended = self.ended.entry(batch.id.clone()).or_default();
        let verdict = match job.state {
            State::Succeeded => Some(true),
            // The others do not wait for a person.
            State::NeedsOperator => Some(false),
            State::Failed if !stopped => Some(false),
            State::Queued
            | State::Preparing
            | State::Flipping
            | State::Booting
            | State::Installing
            | State::Restoring
            | State::Starting
            | State::Verifying
            | State::Undoing
            | State::Failed
            | State::Cancelled => None,
        };
        match verdict {
            Some(installed) => ended.insert(job.id.clone(), installed),
            None => ended.remove(&job.id),
        };
    }
}

/// When a job wants to be looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// At this time, or on news.
    At(Timestamp),
    /// On news only.
    OnNews,
    /// Never: it has ended and settled.
    Ended,
}

/// Why an operation on a job was not done.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No such job.
    #[error("there is no job {0}")]
    NoSuchJob(String),
    /// The job's pool is not in the configuration any more.
    #[error("pool {0} is not in the configuration; the job waits for it")]
    NoSuchPool(String),
    /// The operation does not fit the job's state.
    #[error("the job is {state}: {operation} has no effect on it")]
    NotNow {
        /// What was asked.
        operation: &'static str,
        /// The job's state.
        state: State,
    },
}

/// How long one tick may go on before others get a turn.
const ROUNDS_PER_TICK: usize = 400;

/// Pause after the store failed.
const STORE_PAUSE: Duration = Duration::from_secs(2);

enum Flow {
    Again,
    Until(Timestamp),
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor").field("owner", &self.parts.owner).finish_non_exhaustive()
    }
}

impl Executor {
    /// An executor; call [`Self::recover`] before anything else.
    pub fn new(parts: Parts) -> Self {
        let jobs = Jobs::new(Arc::clone(&parts.store));
        let vifs = parts.pools.keys().map(|pool| (pool.clone(), Shared::default())).collect();
        let syncs = parts.pools.keys().map(|pool| (pool.clone(), Shared::default())).collect();
        let born = parts.clock.now();
        Self { parts, jobs, memory: Mutex::new(Memory::default()), vifs, syncs, born }
    }

    /// Reads all jobs, sets the boot gate and the token index from them, and returns those that want a look.
    ///
    /// # Errors
    /// The store is away.
    pub async fn recover(&self) -> Result<Vec<String>, StoreError> {
        let mut wanted = Vec::new();
        for stored in self.jobs.all().await? {
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => {
                    tracing::error!(%error, "a job cannot be read and is left alone; its VM: `bootflip restore`");
                    continue;
                }
            };
            self.publish(None, &stored.job, stored.revision);
            if !stored.job.state.is_terminal() || stored.job.settle_at.is_some() {
                wanted.push(stored.job.id);
            }
        }
        Ok(wanted)
    }

    /// Makes a job, or returns the live one that its VM already has (`false`).
    ///
    /// # Errors
    /// The store is away.
    pub async fn create(&self, new: NewJob) -> Result<(Job, bool), StoreError> {
        let job = Job::new(new, self.parts.clock.now());
        match self.jobs.create(&job).await {
            Ok(revision) => {
                tracing::info!(job = %job.id, vm = %job.vm_name, "job made");
                self.publish(None, &job, revision);
                self.parts.wakers.wake(&job.id);
                Ok((job, true))
            }
            Err(StoreError::Conflict { key }) => match self.jobs.live(&job.pool, &job.vm_uuid).await? {
                Some(stored) => Ok((stored.job, false)),
                None => Err(StoreError::Conflict { key }),
            },
            Err(other) => Err(other),
        }
    }

    /// One job.
    ///
    /// # Errors
    /// The store is away.
    pub async fn job(&self, id: &str) -> Result<Option<Job>, StoreError> {
        Ok(self.jobs.get(id).await?.map(|stored| stored.job))
    }

    /// All jobs, oldest first.
    ///
    /// # Errors
    /// The store is away.
    pub async fn all(&self) -> Result<Vec<Job>, StoreError> {
        Ok(self.jobs.all().await?.into_iter().flatten().map(|stored| stored.job).collect())
    }

    /// An operator's cancel, retry or resolve.
    ///
    /// # Errors
    /// No such job, or the event has no effect on it as it stands.
    pub async fn operate(&self, id: &str, event: Event) -> Result<Job, OperationError> {
        let operation = event.label();
        let before = self.jobs.get(id).await?.ok_or_else(|| OperationError::NoSuchJob(id.to_owned()))?;
        let after = self.apply(id, &event).await?;
        if after == before.job {
            return Err(OperationError::NotNow { operation, state: after.state });
        }
        self.parts.wakers.wake(id);
        Ok(after)
    }

    /// Takes a job as far as it goes now.
    pub async fn tick(&self, id: &str) -> Wake {
        for _ in 0..ROUNDS_PER_TICK {
            match self.round(id).await {
                Ok(Some(Flow::Again)) => {}
                Ok(Some(Flow::Until(at))) => return Wake::At(at),
                Ok(None) => return self.at_rest(id),
                Err(error) => {
                    tracing::error!(job = id, %error, "a job cannot go on");
                    return Wake::At(self.parts.clock.now() + STORE_PAUSE);
                }
            }
        }
        Wake::At(self.parts.clock.now())
    }

    /// Queued jobs are woken when a slot frees; ended ones never.
    fn at_rest(&self, id: &str) -> Wake {
        if self.memory().live.contains_key(id) { Wake::OnNews } else { Wake::Ended }
    }

    async fn round(&self, id: &str) -> Result<Option<Flow>, OperationError> {
        self.take_signs(id).await?;
        let Some(Stored { job, .. }) = self.jobs.get(id).await? else { return Ok(None) };
        if job.state == State::Queued {
            return Ok(self.admit(&job).await?.then_some(Flow::Again));
        }
        let now = self.parts.clock.now();
        match resume(&job) {
            Some(effect) => self.effect(job, effect).await.map(Some),
            None if job.state == State::NeedsOperator => self.look_if_safe(&job).await.map(Some),
            None => match job.settle_at {
                Some(at) if now >= at => self.settle(&job).await.map(Some),
                Some(at) => Ok(Some(Flow::Until(at))),
                None => Ok(None),
            },
        }
    }

    async fn admit(&self, job: &Job) -> Result<bool, OperationError> {
        let caps = self.pool(job)?.installs;
        // Where a host may take all that the pool may, it does not matter.
        if caps.host < caps.pool && !self.memory().places.knows(&job.vm_uuid) {
            self.look_for_places(job).await?;
        }
        let verdict = {
            let mut memory = self.memory();
            let tally = memory.tally(job);
            let verdict = admission::judge(job, memory.live.values(), caps, &memory.places, tally);
            if verdict == admission::Verdict::Begins
                && let Some(known) = memory.live.get_mut(&job.id)
            {
                known.slot = true; // taken before the store is asked, so that two cannot take the last one
            }
            verdict
        };
        let event = match verdict {
            admission::Verdict::Begins => Event::Admitted,
            admission::Verdict::Waits => return Ok(false),
            admission::Verdict::Stopped => {
                Event::Failed(Reason::WaveStopped, "it never began; nothing was changed".to_owned())
            }
        };
        self.apply(&job.id, &event).await?;
        Ok(true)
    }

    /// Stores what an event makes of a job, and sets the gate from it.
    async fn apply(&self, id: &str, event: &Event) -> Result<Job, OperationError> {
        loop {
            let stored = self.jobs.get(id).await?.ok_or_else(|| OperationError::NoSuchJob(id.to_owned()))?;
            let next = (self.parts.decisions.step)(&stored.job, event, self.parts.clock.now());
            if next == stored.job {
                return Ok(next);
            }
            match self.jobs.replace(&stored, &next).await {
                Ok(revision) => {
                    if next.state != stored.job.state {
                        let reason = next.reason.map(Reason::label);
                        tracing::info!(job = id, vm = %next.vm_name, from = %stored.job.state, to = %next.state, reason, "job advanced");
                    }
                    self.publish(Some(&stored.job), &next, revision);
                    return Ok(next);
                }
                // Its own record changed: decide again. The VM's live mark is another job's: an operator's retry fails.
                Err(StoreError::Conflict { key }) if key.starts_with("jobs/") => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn pool(&self, job: &Job) -> Result<&PoolAccess, OperationError> {
        self.parts.pools.get(&job.pool).ok_or_else(|| OperationError::NoSuchPool(job.pool.clone()))
    }

    fn rules(&self, pool: &PoolAccess) -> Rules {
        Rules { allow: pool.allow.clone(), owner: self.parts.owner.clone() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Errors that say nothing of the VM: the pool is away, its certificate or our password is wrong.
    fn is_about_the_pool(error: &CallError) -> bool {
        matches!(
            error,
            CallError::Unreachable { .. } | CallError::Untrusted { .. } | CallError::LoginRefused { .. }
        )
    }
}

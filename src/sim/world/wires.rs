//! The wires of World: a transport that asks the pool model directly, a store that remembers, a clock that is told.
//! A crash of the server is a call that never returns: World drops the tick that waits for it.

use std::{
    collections::BTreeSet,
    future::{pending, ready},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use super::{
    cut::Cut,
    storm::{Fate, Storm},
    strike::{Deed, Strike},
    verdict::Ledger,
};
use crate::{
    boot::Gate,
    clock::{Clock, Timestamp},
    provision::{Effect, Job, executor::Wakers},
    sim::pool::Pool,
    store::{Batch, Entry, Op, Revision, Store, StoreError, Watch, memory::MemoryStore},
    xen::{CallError, Method, Transport, Value},
};

/// What all parts of a world share.
#[derive(Debug)]
pub(super) struct Shared {
    /// The world's time.
    pub(super) now: Timestamp,
    /// The pool.
    pub(super) pool: Pool,
    /// Which life of the server is the present one.
    pub(super) life: u32,
    /// The server died within the tick under way.
    pub(super) died: bool,
    /// The next await of the server is its last.
    pub(super) dies_next: bool,
    /// A crash and a lost reply at one place.
    pub(super) cut: Option<Cut>,
    /// Random misfortune.
    pub(super) storm: Option<Storm>,
    /// What befalls the calls of one effect.
    pub(super) strike: Option<Strike>,
    /// Every session ended with the coordinator's process: a read logs in anew and nobody notices, a change is refused.
    pub(super) logged_out: bool,
    /// The calls so far, each with the effect whose intent was stored.
    pub(super) called: BTreeSet<(Effect, Method)>,
    /// What is watched, and what was found.
    pub(super) ledger: Ledger,
    /// The present server's gate.
    pub(super) gate: Gate,
}

/// The shared state behind its lock.
#[derive(Debug, Clone)]
pub(super) struct Wires(Arc<Mutex<Shared>>);

/// A call of the server to the pool takes this long.
const CALL_TAKES: Duration = Duration::from_millis(2);

impl Wires {
    /// Wraps the state.
    pub(super) fn new(shared: Shared) -> Self {
        Self(Arc::new(Mutex::new(shared)))
    }

    /// The state.
    pub(super) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for Wires {
    fn now(&self) -> Timestamp {
        self.lock().now
    }
}

/// The transport of one life of the server.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) wires: Wires,
    pub(super) life: u32,
}

impl Line {
    /// `None`: the server died.
    fn perform(&self, method: Method, params: &[Value]) -> Option<Result<Value, CallError>> {
        let mut shared = self.wires.lock();
        let shared = &mut *shared;
        if shared.life != self.life {
            shared.ledger.violation("I9", "a dead server made a call");
            return None;
        }
        if shared.dies_next || shared.died {
            shared.died = true;
            return None;
        }
        shared.now = shared.now + CALL_TAKES;
        let now = shared.now;
        shared.pool.advance(now);
        let job = shared.ledger.only_job();
        shared.called.extend(job.and_then(|job| job.intent).map(|intent| (intent.effect, method)));
        if let Some(deed) = shared.strike.as_mut().and_then(|strike| strike.befalls(method, job)) {
            return Some(struck(shared, deed, method, params));
        }
        if let Some(refused) = logged_out(shared, method) {
            return Some(Err(refused));
        }
        let mut fate = Fate::Done;
        if let Some(cut) = &mut shared.cut {
            fate = cut.fate(method, shared.ledger.only_job());
        }
        if fate == Fate::Done
            && let Some(storm) = &mut shared.storm
        {
            fate = storm.fate(now, method, params, &mut shared.pool, &mut shared.ledger);
        }
        let unknown = || CallError::Unknown { method: method.name(), detail: "the connection broke".into() };
        let done = |shared: &mut Shared| done(shared, method, params);
        match fate {
            Fate::Done => Some(done(shared)),
            Fate::LostBefore => Some(Err(unknown())),
            Fate::LostAfter => {
                let _ = done(shared);
                Some(Err(unknown()))
            }
            Fate::Fails(failure) => Some(Err(CallError::Failed { method: method.name(), failure })),
            Fate::Away => Some(Err(CallError::Unreachable { detail: "connection refused".into() })),
            Fate::DiesBefore => {
                shared.died = true;
                None
            }
            Fate::DiesAfter => {
                let _ = done(shared);
                shared.died = true;
                None
            }
            Fate::DiesWithReply => {
                let answer = done(shared);
                shared.dies_next = true;
                Some(answer)
            }
        }
    }
}

/// The pool does what it is asked, under the ledger's eyes.
fn done(shared: &mut Shared, method: Method, params: &[Value]) -> Result<Value, CallError> {
    shared.ledger.before_call(&shared.pool, &shared.gate, method, params);
    let answer = shared.pool.call_trusted(shared.now, method, params);
    shared.ledger.after_call(&shared.pool, method, params, answer.is_ok());
    answer.map_err(|failure| CallError::Failed { method: method.name(), failure })
}

fn struck(shared: &mut Shared, deed: Deed, method: Method, params: &[Value]) -> Result<Value, CallError> {
    let now = shared.now;
    match deed {
        Deed::Fails(failure) => Err(CallError::Failed { method: method.name(), failure }),
        Deed::TaskFails(failure) => Ok(shared.pool.fail_task(now, method, failure)),
        Deed::ForgetsBefore(lost) => {
            shared.pool.restart_coordinator(now, lost);
            shared.logged_out = true;
            logged_out(shared, method).map_or_else(|| done(shared, method, params), Err)
        }
        Deed::ForgetsAfter(lost) => {
            let answer = done(shared, method, params);
            shared.pool.restart_coordinator(now, lost);
            shared.logged_out = true;
            answer
        }
    }
}

/// The first call since the sessions ended: the client logs in, and leaves it to the caller to repeat a change.
fn logged_out(shared: &mut Shared, method: Method) -> Option<CallError> {
    let refused = std::mem::take(&mut shared.logged_out) && method.changes_the_pool();
    let failure = || crate::xen::Failure::new("SESSION_INVALID", &["OpaqueRef:old"]);
    refused.then(|| CallError::Failed { method: method.name(), failure: failure() })
}

impl Transport for Line {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        match self.perform(method, &params) {
            Some(answer) => Box::pin(ready(answer)),
            None => Box::pin(pending()),
        }
    }
}

/// The store, which outlives the server.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) wires: Wires,
    pub(super) inner: MemoryStore,
}

impl Disk {
    /// `None`: the server died.
    fn write(&self, batch: Batch) -> Option<Result<Revision, StoreError>> {
        let job = batch.ops.iter().find_map(|op| match op {
            Op::Put { key, value } if key.starts_with("jobs/") => serde_json::from_slice::<Job>(value).ok(),
            Op::Put { .. } | Op::Delete { .. } => None,
        });
        let mut shared = self.wires.lock();
        let shared = &mut *shared;
        if shared.dies_next || shared.died {
            shared.died = true;
            return None;
        }
        let point = match (&mut shared.cut, &job) {
            (Some(cut), Some(job)) => cut.commit(shared.ledger.job(&job.id), job),
            (_, _) => super::cut::AtCommit::Goes,
        };
        let storm = shared.storm.as_mut().map_or(Fate::Done, |storm| storm.commit(&mut shared.ledger));
        match (point, &storm) {
            (super::cut::AtCommit::DiesBefore, _) | (_, Fate::DiesBefore) => {
                shared.died = true;
                return None;
            }
            (_, Fate::Away) => {
                let path = std::path::PathBuf::from("world.db");
                return Some(Err(StoreError::Unavailable {
                    operation: "write",
                    path,
                    detail: "no space left".into(),
                }));
            }
            (super::cut::AtCommit::Goes | super::cut::AtCommit::DiesAfter, _) => {}
        }
        let answer = self.inner.commit(batch).now_or_never()?;
        if let (Ok(_), Some(job)) = (&answer, job) {
            let now = shared.now;
            shared.ledger.stored(&shared.pool, job, now);
        }
        if point == super::cut::AtCommit::DiesAfter || storm == Fate::DiesAfter {
            shared.died = true;
            return None;
        }
        Some(answer)
    }
}

impl Store for Disk {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        self.inner.list(prefix)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>> {
        match self.write(batch) {
            Some(answer) => Box::pin(ready(answer)),
            None => Box::pin(pending()),
        }
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.inner.watch(from)
    }
}

/// Jobs that have news.
#[derive(Debug, Clone, Default)]
pub(super) struct News(Arc<Mutex<BTreeSet<String>>>);

impl News {
    /// The jobs woken since the last time.
    pub(super) fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Wakers for News {
    fn wake(&self, job: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(job.to_owned());
    }
}

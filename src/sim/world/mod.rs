//! World: the pool model, the executor and guests on one clock, without sockets: thousands of runs a second, the same
//! for the same seed. The server may die at any await and is started again from what it had stored.

pub mod cut;
pub mod guest;
pub mod rng;
pub mod storm;
pub mod strike;
pub mod verdict;
mod wires;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};

use self::{
    cut::Cut,
    guest::{Behaviour, DiskContent, Guest, Services},
    storm::Storm,
    strike::Strike,
    verdict::Ledger,
    wires::{Disk, Line, News, Shared, Wires},
};
use crate::{
    boot::{
        Armed, Gate,
        sink::{Report, Sink as _},
    },
    clock::{Clock as _, Timestamp},
    config::{Deadlines, Profile},
    provision::{
        Effect, Event, Job, State,
        admission::Caps,
        executor::{Decisions, Executor, NoWitness, Parts, PoolAccess, Reach, Serving, Wake, claims},
        job::{NewJob, Options},
    },
    secret::{TokenKey, TokenUse},
    sim::pool::{PersonAct, Pool, VmSpec, VmTruth},
    store::memory::MemoryStore,
    xen::{Method, api::Api},
};

/// One VM of a world, and the job on it.
#[derive(Debug, Clone)]
pub struct VmPlan {
    /// The VM.
    pub spec: VmSpec,
    /// How its network boots behave, by attempt; the last one repeats.
    pub behaviours: Vec<Behaviour>,
    /// The job; `None`: a bystander.
    pub job: Option<(Profile, Options)>,
}

/// A world to be made.
#[derive(Debug)]
pub struct Setup {
    /// The pool.
    pub pool: Pool,
    /// Its VMs.
    pub vms: Vec<VmPlan>,
    /// `limits.installs_per_pool`.
    pub installs: u32,
    /// `pool.allow`.
    pub allow: Vec<String>,
    /// What decides.
    pub decisions: Decisions,
    /// A crash at one place.
    pub cut: Option<Cut>,
    /// Random misfortune.
    pub storm: Option<Storm>,
    /// How long the server is away after a crash.
    pub downtime: Downtime,
}

/// A VM that the pool has already: its uuid, how its guests behave, and its job.
pub type KnownVm = (String, Vec<Behaviour>, Option<(Profile, Options)>);

/// How long the server is away after a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Downtime {
    /// So long.
    For(Duration),
    /// Until every VM is Halted again (and at least a minute).
    UntilHalted,
}

/// E0's stand-in: profiles named `broken…` cannot be served.
#[derive(Debug)]
struct Served;

impl Serving for Served {
    fn problem(&self, armed: &Armed) -> Option<String> {
        armed.profile.starts_with("broken").then(|| format!("{}: no such file", armed.files.kernel))
    }
}

/// No socket: no guest answers on a port.
#[derive(Debug)]
struct NoNetwork;

impl Reach for NoNetwork {
    fn answers(&self, _: SocketAddr) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(false))
    }
}

struct Server {
    executor: Arc<Executor>,
    gate: Gate,
    news: News,
    wakes: BTreeMap<String, Wake>,
}

/// A world.
pub struct World {
    wires: Wires,
    disk: Arc<Disk>,
    server: Option<Server>,
    setup: Rest,
    guests: Vec<Guest>,
    contents: HashMap<String, DiskContent>,
    attempts: HashMap<String, usize>,
    behaviours: HashMap<String, Vec<Behaviour>>,
    back_at: Option<Timestamp>,
    sent: Vec<Report>,
    /// How often the server died.
    pub crashes: u32,
}

struct Rest {
    installs: u32,
    per_host: u32,
    allow: Vec<String>,
    decisions: Decisions,
    downtime: Downtime,
}

/// The world's first instant: 2026-01-01.
pub const BEGINNING: Timestamp = Timestamp::from_millis(1_767_225_600_000);

const POOL: &str = "sim";

const KEY: TokenKey = TokenKey::new([7; 32]);

impl World {
    /// A world with its jobs queued.
    pub fn new(mut setup: Setup) -> Self {
        let mut known = Vec::new();
        for VmPlan { spec, behaviours, job } in std::mem::take(&mut setup.vms) {
            known.push((setup.pool.add_vm(spec), behaviours, job));
        }
        Self::of_known(setup, known)
    }

    /// The same of VMs that the pool has already, by uuid; `setup.vms` is left out.
    pub fn of_known(setup: Setup, known: Vec<KnownVm>) -> Self {
        let mut ledger = Ledger::default();
        let pool = setup.pool;
        let mut jobs = Vec::new();
        let mut behaviours = HashMap::new();
        for (n, (uuid, acts, job)) in known.into_iter().enumerate() {
            let Some(truth) = pool.truth(&uuid) else { continue };
            let name = truth.name.clone();
            ledger.original(truth);
            behaviours.insert(uuid.clone(), acts);
            if let Some((profile, options)) = job {
                jobs.push(NewJob {
                    id: format!("job-{n}"),
                    pool: POOL.into(),
                    vm_uuid: uuid,
                    vm_name: name,
                    profile,
                    variables: BTreeMap::new(),
                    deadlines: Deadlines::default(),
                    options,
                    asked_by: "world".into(),
                });
            }
        }
        let shared = Shared {
            now: BEGINNING,
            pool,
            life: 0,
            died: false,
            dies_next: false,
            cut: setup.cut,
            storm: setup.storm,
            strike: None,
            logged_out: false,
            called: BTreeSet::new(),
            ledger,
            gate: Gate::default(),
        };
        let wires = Wires::new(shared);
        let disk = Arc::new(Disk { wires: wires.clone(), inner: MemoryStore::new() });
        let rest = Rest {
            installs: setup.installs,
            per_host: u32::MAX,
            allow: setup.allow,
            decisions: setup.decisions,
            downtime: setup.downtime,
        };
        let mut world = Self {
            wires,
            disk,
            server: None,
            setup: rest,
            guests: Vec::new(),
            contents: HashMap::new(),
            attempts: HashMap::new(),
            behaviours,
            back_at: None,
            sent: Vec::new(),
            crashes: 0,
        };
        world.make_jobs(jobs);
        world
    }

    /// Jobs are made in fair weather: nothing was promised before they are stored.
    fn make_jobs(&mut self, jobs: Vec<NewJob>) {
        let (cut, storm) = {
            let mut shared = self.wires.lock();
            (shared.cut.take(), shared.storm.take())
        };
        self.boot_server();
        if let Some(server) = &self.server {
            for job in jobs {
                let _ = server.executor.create(job).now_or_never();
            }
        }
        let mut shared = self.wires.lock();
        (shared.cut, shared.storm) = (cut, storm);
    }

    /// Starts the server from what it had stored; its jobs go on at the next [`Self::run`].
    pub fn boot_server(&mut self) {
        let gate = Gate::default();
        let life = {
            let mut shared = self.wires.lock();
            shared.life += 1;
            shared.died = false;
            shared.dies_next = false;
            shared.gate = gate.clone();
            shared.life
        };
        let news = News::default();
        let line = Line { wires: self.wires.clone(), life };
        let api = Api::new(Arc::new(line));
        let access = PoolAccess {
            way_back: api.clone(),
            api,
            allow: self.setup.allow.clone(),
            installs: Caps { pool: self.setup.installs, host: self.setup.per_host },
        };
        let nonces = std::sync::atomic::AtomicU32::new(0);
        let executor = Executor::new(Parts {
            owner: "world".into(),
            store: self.disk.clone(),
            pools: [(POOL.to_owned(), access)].into(),
            gate: gate.clone(),
            clock: Arc::new(self.wires.clone()),
            key: KEY,
            serving: Arc::new(Served),
            wakers: Arc::new(news.clone()),
            reach: Arc::new(NoNetwork),
            witness: Arc::new(NoWitness),
            nonce: Box::new(move || {
                let n = nonces.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                format!("{life:016x}{n:016x}")
            }),
            decisions: self.setup.decisions,
        });
        let wanted = executor.recover().now_or_never().and_then(Result::ok).unwrap_or_default();
        let now = self.now();
        let wakes = wanted.into_iter().map(|id| (id, Wake::At(now))).collect();
        self.server = Some(Server { executor: Arc::new(executor), gate, news, wakes });
        self.back_at = None;
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.wires.now()
    }

    /// Runs until nothing is left to happen, or for this long.
    pub fn run(&mut self, span: Duration) {
        let until = self.now() + span;
        while self.now() < until {
            self.happen();
            let Some(next) = self.next_time() else { return };
            let mut shared = self.wires.lock();
            let next = next.max(shared.now + Duration::from_millis(1)).min(until);
            shared.now = next;
            shared.pool.advance(next);
        }
    }

    /// Lets this much time pass, whether anything happens in it or not.
    pub fn pass(&mut self, span: Duration) {
        let until = self.now() + span;
        self.run(span);
        let mut shared = self.wires.lock();
        shared.now = shared.now.max(until);
        shared.pool.advance(until);
    }

    /// Everything that is due now.
    fn happen(&mut self) {
        self.start_guests();
        let now = self.now();
        for at in 0..self.guests.len() {
            self.guest_acts(at, now);
        }
        self.guests.retain(|guest| !guest.idle);
        self.start_server(now);
        self.tick_jobs(now);
        self.start_guests();
        let mut shared = self.wires.lock();
        let shared = &mut *shared;
        shared.ledger.check_flipped(&shared.pool);
    }

    fn start_guests(&mut self) {
        let (now, starts) = {
            let mut shared = self.wires.lock();
            (shared.now, shared.pool.take_starts())
        };
        for start in starts {
            let hvm = matches!(start.mode, crate::sim::pool::BootMode::Hvm { .. });
            let seen = self.attempts.entry(start.vm_uuid.clone()).or_default();
            let behaviours = self.behaviours.get(&start.vm_uuid);
            let behaviour = behaviours.and_then(|all| all.get(*seen).or_else(|| all.last()));
            if hvm {
                *seen += 1;
            }
            self.guests.retain(|guest| guest.vm_uuid != start.vm_uuid);
            let disk = self.contents.entry(start.vm_uuid.clone()).or_default();
            self.guests.push(Guest::new(
                &start,
                behaviour.copied().unwrap_or(Behaviour::NeverBoots),
                disk,
                now,
            ));
        }
    }

    fn guest_acts(&mut self, at: usize, now: Timestamp) {
        let Some(guest) = self.guests.get_mut(at) else { return };
        if guest.next > now || guest.idle {
            return;
        }
        let services =
            self.server.as_ref().map(|server| Services { gate: &server.gate, sink: &*server.executor });
        let disk = self.contents.entry(guest.vm_uuid.clone()).or_default();
        let wires = self.wires.clone();
        let lived = guest.act(now, services, |change| change(&mut wires.lock().pool), disk).is_some();
        self.sent.append(&mut guest.sent);
        let mut shared = self.wires.lock();
        shared.ledger.counts.happenings += 1;
        if guest.unready {
            shared.ledger.unready(&guest.vm_uuid);
        }
        drop(shared);
        if !lived {
            self.die();
        }
    }

    fn die(&mut self) {
        self.server = None;
        self.crashes += 1;
        let pause = match self.setup.downtime {
            Downtime::For(span) => span,
            Downtime::UntilHalted => Duration::from_secs(60),
        };
        self.back_at = Some(self.now() + pause);
    }

    fn start_server(&mut self, now: Timestamp) {
        if self.back_at.is_none_or(|at| now < at) {
            return;
        }
        let all_halted = self.truths().iter().all(|truth| truth.power_state == "Halted");
        if self.setup.downtime == Downtime::UntilHalted && !all_halted {
            self.back_at = Some(now + Duration::from_secs(5));
            return;
        }
        self.boot_server();
    }

    fn tick_jobs(&mut self, now: Timestamp) {
        loop {
            let Some(server) = &mut self.server else { return };
            for id in server.news.take() {
                server.wakes.insert(id, Wake::At(now));
            }
            let due = server.wakes.iter().find(|(_, wake)| matches!(wake, Wake::At(at) if *at <= now));
            let Some(id) = due.map(|(id, _)| id.clone()) else { return };
            let executor = Arc::clone(&server.executor);
            match executor.tick(&id).now_or_never() {
                Some(Wake::Ended) => {
                    server.wakes.remove(&id);
                }
                Some(wake) => {
                    server.wakes.insert(id, wake);
                }
                None => self.die(),
            }
        }
    }

    fn next_time(&self) -> Option<Timestamp> {
        let shared = self.wires.lock();
        let pool = shared.pool.next_due();
        drop(shared);
        let guests = self.guests.iter().map(|guest| guest.next).min();
        let jobs = self.server.as_ref().and_then(|server| {
            let times = server.wakes.values().filter_map(|wake| match wake {
                Wake::At(at) => Some(*at),
                Wake::OnNews | Wake::Ended => None,
            });
            times.min()
        });
        [pool, guests, jobs, self.back_at].into_iter().flatten().min()
    }

    /// The VMs as they are.
    pub fn truths(&self) -> Vec<VmTruth> {
        let shared = self.wires.lock();
        shared.pool.uuids().iter().filter_map(|uuid| shared.pool.truth(uuid)).collect()
    }

    /// The jobs as last stored, by id.
    pub fn jobs(&self) -> Vec<Job> {
        let shared = self.wires.lock();
        let mut jobs: Vec<Job> = shared.ledger.jobs().cloned().collect();
        jobs.sort_by(|a, b| a.id.cmp(&b.id));
        jobs
    }

    /// An operator acts on a job, if the server is up. False: it is not, or the act has no effect.
    pub fn operate(&mut self, job: &str, event: Event) -> bool {
        let Some(server) = &self.server else { return false };
        match Arc::clone(&server.executor).operate(job, event).now_or_never() {
            Some(done) => done.is_ok(),
            None => {
                self.die();
                false
            }
        }
    }

    /// Every report that was ever sent comes once more: a proxy tries again, a packet was slow.
    pub fn repeat_reports(&mut self) {
        for report in self.sent.clone() {
            let Some(server) = &self.server else { return };
            if Arc::clone(&server.executor).report(report).now_or_never().is_none() {
                self.die();
            }
        }
    }

    /// A report of the job's present attempt comes, whatever the job thinks by now.
    pub fn report_late(&mut self, job: &str, stage: &str) {
        let Some(attempt) = self.wires.lock().ledger.job(job).map(|job| job.attempt) else { return };
        let token = KEY.token(job, attempt, TokenUse::Report).hash();
        let report = Report { token, stage: stage.to_owned(), body: Vec::new(), peer: None, by_get: false };
        self.sent.push(report);
        self.repeat_reports();
    }

    /// A person acts on a VM.
    pub fn person(&mut self, vm: &str, act: &PersonAct) -> bool {
        let mut shared = self.wires.lock();
        let shared = &mut *shared;
        shared.ledger.person_acts(&mut shared.pool, shared.now, vm, act)
    }

    /// Something is told or changed behind the scenes.
    pub fn with<T>(
        &self,
        change: impl FnOnce(&mut Pool, &mut Ledger, &mut Option<Storm>, &mut Option<Cut>) -> T,
    ) -> T {
        let mut shared = self.wires.lock();
        let shared = &mut *shared;
        change(&mut shared.pool, &mut shared.ledger, &mut shared.storm, &mut shared.cut)
    }

    /// `limits.installs_per_host`, which does not limit a new world. The server starts again.
    pub fn limit_per_host(&mut self, installs: u32) {
        self.setup.per_host = installs;
        self.boot_server();
    }

    /// From now on calls are hit like this (or no longer); answers what hit them so far.
    pub fn strike(&mut self, strike: Option<Strike>) -> Option<Strike> {
        std::mem::replace(&mut self.wires.lock().strike, strike)
    }

    /// The calls that were made so far, each with the effect whose intent was stored.
    pub fn called(&self) -> BTreeSet<(Effect, Method)> {
        self.wires.lock().called.clone()
    }

    /// The database is gone, and the server with it: every VM is put back from the claims in the pool alone.
    /// Returns what stood in the way, by VM.
    pub fn restore_from_claims(&mut self, stop: bool) -> Vec<(String, String)> {
        self.server = None;
        self.back_at = None;
        let life = {
            let mut shared = self.wires.lock();
            shared.life += 1;
            (shared.died, shared.dies_next, shared.cut, shared.storm) = (false, false, None, None);
            shared.ledger.claims_only = true;
            shared.life
        };
        let api = Api::new(Arc::new(Line { wires: self.wires.clone(), life }));
        let wires = self.wires.clone();
        let pause = |until: Timestamp| -> BoxFuture<'_, ()> {
            let mut shared = wires.lock();
            shared.now = until.max(shared.now + Duration::from_millis(100));
            let now = shared.now;
            shared.pool.advance(now);
            Box::pin(std::future::ready(()))
        };
        let found = claims::claims(&api).now_or_never().and_then(Result::ok).unwrap_or_default();
        let restored = found.iter().filter_map(|claimed| {
            let done = claims::restore(&api, claimed, stop, &self.wires, &pause).now_or_never();
            let failed = done.unwrap_or_else(|| Err("it never returned".into())).err()?;
            Some((claimed.vm.name_label.clone(), failed))
        });
        restored.collect()
    }

    /// All jobs have ended.
    pub fn all_ended(&self) -> bool {
        self.jobs().iter().all(|job| job.state.is_terminal())
    }

    /// Some job waits for a person.
    pub fn parked(&self) -> Vec<String> {
        self.jobs().into_iter().filter(|job| job.state == State::NeedsOperator).map(|job| job.id).collect()
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World")
            .field("now", &self.now())
            .field("crashes", &self.crashes)
            .finish_non_exhaustive()
    }
}

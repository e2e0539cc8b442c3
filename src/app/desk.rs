//! Does what the admin API and the dashboard are asked: looks at jobs and VMs, plans, makes jobs, operates them. A shell over the
//! executor and the pools; it decides nothing about a job itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures_util::{StreamExt, future::join_all, stream};
use tokio_util::sync::CancellationToken;

use super::{
    door::Door,
    flight::Flight,
    inventory::Known,
    logs,
    machines::{self, VmView},
    orders::{Health, Order, OrderAnswer, OrderLine, Outcome, PoolAway, RenderOrder},
    planning,
    preview::{self, PreviewError, Wanted, machine_config, profile_for},
    reload::Live,
    roster::Roster,
    selection::{Candidate, Selection, resolve},
    views::{self, JobView, TransferView},
};
use crate::{
    access::{
        Caller,
        audit::{Action, Deed},
    },
    boot::{
        Gate,
        render::{Templates, Urls},
        vouch::Vouch,
    },
    clock::{Clock, Timestamp},
    config::ProfileKind,
    dhcp::server::Board,
    machine::MacAddr,
    metrics::Metrics,
    provision::{
        Event,
        capacity::Wish,
        executor::{Executor, OperationError},
        job::{Batch, NewJob, Options, Resolution},
        reason::Reason,
    },
    store::Store,
    syslog,
    xen::{CallError, Class, api::Api, records::VmRecord},
};

/// VMs that are looked at or ordered at once.
const AT_ONCE: usize = 4;

/// Why an order was not carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum DeskError {
    /// The executor's.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// A VM's name: none, or several.
    #[error("{0}")]
    NoSuchVm(String),
    /// No VM was named.
    #[error("no VM was named")]
    Empty,
    /// A pool does not answer.
    #[error("pool {pool} does not answer")]
    Pool {
        /// Its name.
        pool: String,
        /// Why.
        source: CallError,
    },
    /// The file of a machine's lines.
    #[error("cannot read the lines of {mac}")]
    Log {
        /// The machine.
        mac: MacAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Profile or template.
    #[error(transparent)]
    Preview(#[from] PreviewError),
}

/// What the desk works with.
#[derive(Debug)]
pub struct Desk {
    /// The configuration, as it counts now.
    pub config: Live,
    /// The jobs.
    pub executor: Arc<Executor>,
    /// The pools, by name.
    pub apis: BTreeMap<String, Api>,
    /// What the watchers know of them.
    pub known: Known,
    /// The boot gate.
    pub gate: Gate,
    /// The templates.
    pub templates: Arc<Templates>,
    /// The boot files, where boot HTTP is on.
    pub files: Option<Vouch>,
    /// The boot URLs, where boot HTTP is on.
    pub urls: Option<Urls>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// DHCP, by interface.
    pub dhcp: Vec<Board>,
    /// The syslog receiver, where it is on.
    pub syslog: Option<syslog::server::Board>,
    /// The flight recorder.
    pub flight: Flight,
    /// The newest job of each VM.
    pub roster: Roster,
    /// Who may do what, and what was done.
    pub door: Door,
    /// The database.
    pub store: Arc<dyn Store>,
    /// The server stops: streams end.
    pub stop: CancellationToken,
    /// What is counted and measured.
    pub metrics: Arc<Metrics>,
    /// When the server began.
    pub began: Timestamp,
}

impl Desk {
    /// How the server is.
    pub fn health(&self) -> Health {
        let away = |(pool, problem): (String, Option<String>)| Some(PoolAway { pool, problem: problem? });
        let mut machines = 0;
        self.gate.update(|table| machines = table.len());
        Health {
            server: self.config.now().server_name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            jobs: self.executor.live().iter().filter(|job| !job.state.is_terminal()).count(),
            machines,
            pools_away: self.known.problems().into_iter().filter_map(away).collect(),
            dhcp: self.dhcp.iter().map(Board::read).collect(),
            syslog: self.syslog.as_ref().map(syslog::server::Board::read),
        }
    }

    /// All jobs, oldest first, without their logs.
    pub async fn jobs(&self) -> Result<Vec<JobView>, DeskError> {
        let jobs = self.executor.all().await.map_err(OperationError::from)?;
        let now = self.clock.now();
        Ok(jobs.iter().map(|job| views::brief(job, now)).collect())
    }

    /// One job.
    pub async fn job(&self, id: &str) -> Result<JobView, DeskError> {
        let job = self.executor.job(id).await.map_err(OperationError::from)?;
        let job = job.ok_or_else(|| OperationError::NoSuchJob(id.to_owned()))?;
        let transfers = self.executor.transfers(id);
        let transfers = transfers.iter().map(|(at, transfer)| TransferView::of(*at, transfer)).collect();
        Ok(JobView { transfers, ..views::full(&job, self.clock.now()) })
    }

    /// What a job's machine sent by syslog since the job was made.
    pub async fn log(&self, id: &str) -> Result<String, DeskError> {
        let job = self.executor.job(id).await.map_err(OperationError::from)?;
        let job = job.ok_or_else(|| OperationError::NoSuchJob(id.to_owned()))?;
        let Some(mac) = job.mac else { return Ok(String::new()) };
        let folder = logs::folder(&self.config.now());
        let read = tokio::task::spawn_blocking(move || logs::read(&folder, mac, job.created));
        let read = read.await.map_err(std::io::Error::other).flatten();
        read.map_err(|source| DeskError::Log { mac, source })
    }

    /// Cancel, finish, retry or resolve; the audit log tells.
    pub async fn operate(
        &self,
        id: &str,
        operation: Operation,
        caller: &Caller,
    ) -> Result<JobView, DeskError> {
        let (action, event) = operation.parts();
        tracing::info!(job = id, asked_by = caller.label(), ?event, "job operated");
        let before = self.executor.job(id).await.map_err(OperationError::from)?;
        let before = before.ok_or_else(|| OperationError::NoSuchJob(id.to_owned()))?;
        let done = self.executor.operate(id, event).await;
        let after = match &done {
            Ok(job) => job.state.to_string(),
            Err(error) => format!("refused: {error}"),
        };
        let deed = Deed {
            who: caller.clone(),
            action,
            vm: Some((before.vm_name, before.vm_uuid)),
            job: Some(id.to_owned()),
            before: before.state.to_string(),
            after,
        };
        self.door.write_down(&[deed], self.clock.now()).await;
        Ok(views::full(&done?, self.clock.now()))
    }

    /// What an order would come to; changes nothing.
    pub async fn plan(&self, order: &Order, caller: &Caller) -> Result<OrderAnswer, DeskError> {
        let (mut answer, wishes) = self.carry_out(order, &caller.label(), Work::Plan).await?;
        if order.whole {
            self.look_around(&mut answer, &wishes).await;
        }
        Ok(answer)
    }

    /// Adds to a plan what hosts can take, and the files that would be served.
    async fn look_around(&self, answer: &mut OrderAnswer, wishes: &BTreeMap<String, Vec<Wish>>) {
        for (name, wishes) in wishes {
            let Some(api) = self.apis.get(name) else { continue };
            match planning::pool(name, api, &self.config.now().limits, wishes).await {
                Ok(pool) => answer.pools.push(pool),
                Err(error) => {
                    answer.pools_away.push(PoolAway { pool: name.clone(), problem: error.to_string() });
                }
            }
        }
        let named: BTreeSet<String> = answer.vms.iter().filter_map(|line| line.profile.clone()).collect();
        let (config, templates) = (self.config.now(), Arc::clone(&self.templates));
        let files = self.files.clone();
        let read =
            tokio::task::spawn_blocking(move || planning::files(&config, &templates, &named, files.as_ref()));
        answer.files = read.await.unwrap_or_default();
    }

    /// Makes the jobs of an order; none when one of its selectors cannot be resolved. The audit log tells.
    pub async fn deploy(&self, order: &Order, caller: &Caller) -> Result<OrderAnswer, DeskError> {
        let asked_by = caller.label();
        tracing::info!(asked_by, selectors = ?order.selectors, profile = order.profile, reinstall = order.reinstall, "deploy ordered");
        let (answer, _) = self.carry_out(order, &asked_by, Work::Make).await?;
        let deeds: Vec<Deed> = answer.vms.iter().map(|line| ordered(line, caller)).collect();
        if !deeds.is_empty() {
            self.door.write_down(&deeds, self.clock.now()).await;
        }
        Ok(answer)
    }

    /// What became of the VMs; and, by pool, what those ask of it that are ready.
    async fn carry_out(
        &self,
        order: &Order,
        asked_by: &str,
        work: Work,
    ) -> Result<(OrderAnswer, BTreeMap<String, Vec<Wish>>), DeskError> {
        if order.selectors.is_empty() {
            return Err(DeskError::Empty);
        }
        if let Some(name) = &order.profile {
            profile_for(&self.config.now(), Some(name), "", "")?;
        }
        let (candidates, pools_away) = self.candidates().await;
        let Selection { chosen, unresolved } = resolve(&order.selectors, &candidates);
        if work == Work::Make && !unresolved.is_empty() {
            // A mistyped name: better none than some.
            let answer = OrderAnswer { unresolved, pools_away, ..OrderAnswer::default() };
            return Ok((answer, BTreeMap::new()));
        }
        let heeds = order.max_parallel.or(order.first).or(order.stop_after).is_some();
        let batch = heeds.then(|| Batch {
            id: new_id(),
            at_once: order.max_parallel.map(|most| most.max(1)),
            first: order.first,
            stop_after: order.stop_after,
        });
        let asked = Asked { order, asked_by, batch, work };
        let lines = stream::iter(chosen).map(|vm| self.line(vm, &asked)).buffered(AT_ONCE);
        let (mut vms, mut wishes) = (Vec::new(), BTreeMap::<String, Vec<Wish>>::new());
        for (line, wish) in lines.collect::<Vec<_>>().await {
            if let Some(wish) = wish.filter(|_| line.outcome != Outcome::Refused) {
                wishes.entry(line.pool.clone()).or_default().push(wish);
            }
            vms.push(line);
        }
        Ok((OrderAnswer { vms, unresolved, pools_away, ..OrderAnswer::default() }, wishes))
    }

    /// One VM of an order, and what it asks of its pool where it was looked at.
    async fn line(&self, vm: Candidate, asked: &Asked<'_>) -> (OrderLine, Option<Wish>) {
        let mut line = blank(&vm);
        if let Some(live) = self.live_job(&vm) {
            let line = OrderLine {
                outcome: Outcome::Existing,
                detail: format!("it has a live job, which is {}", live.1),
                job: Some(live.0),
                ..line
            };
            return (line, None);
        }
        let new = match self.new_job(&vm, asked) {
            Ok(new) => new,
            Err(error) => return (OrderLine { detail: error.to_string(), ..line }, None),
        };
        line.profile = Some(new.profile.name.clone());
        let mut wish = None;
        if asked.work == Work::Plan || !asked.order.planned {
            (line, wish) = self.look(line, &new).await;
            if asked.work == Work::Plan || line.outcome == Outcome::Refused {
                return (line, wish);
            }
        }
        let line = match self.executor.create(new).await {
            Ok((job, true)) => OrderLine { outcome: Outcome::Created, job: Some(job.id), ..line },
            Ok((job, false)) => OrderLine { outcome: Outcome::Existing, job: Some(job.id), ..line },
            Err(error) => OrderLine { outcome: Outcome::Refused, detail: error.to_string(), ..line },
        };
        (line, wish)
    }

    /// E0, without a job.
    async fn look(&self, line: OrderLine, new: &NewJob) -> (OrderLine, Option<Wish>) {
        let Some(api) = self.apis.get(&new.pool) else {
            return (
                OrderLine { detail: OperationError::NoSuchPool(new.pool.clone()).to_string(), ..line },
                None,
            );
        };
        let preview = match self.executor.preview(new.clone(), api).await {
            Ok(Ok(preview)) => preview,
            // Nothing was learnt of the VM: the job looks itself, and waits for the pool.
            Ok(Err(error)) if says_nothing(&error) => {
                let line = OrderLine { outcome: Outcome::Unknown, detail: error.to_string(), ..line };
                return (line, None);
            }
            Ok(Err(error)) => return (OrderLine { detail: error.to_string(), ..line }, None),
            Err(error) => return (OrderLine { detail: error.to_string(), ..line }, None),
        };
        let line = OrderLine { memory: Some(preview.memory), hosts: preview.hosts, ..line };
        let line = match preview.verdict {
            Ok(cleared) => {
                let erases = cleared.disk.map(|(position, _)| {
                    let words = format!("{position} ");
                    preview.disks.iter().find(|disk| disk.starts_with(&words)).cloned().unwrap_or(position)
                });
                let detail = if cleared.running { "it runs, and is shut down first" } else { "" };
                OrderLine {
                    outcome: Outcome::Ready,
                    running: cleared.running,
                    erases,
                    disks: preview.disks,
                    detail: detail.to_owned(),
                    ..line
                }
            }
            Err((reason, detail)) => refused(OrderLine { disks: preview.disks, ..line }, reason, detail),
        };
        (line, Some(preview.wish))
    }

    fn live_job(&self, vm: &Candidate) -> Option<(String, String)> {
        let live = self.executor.live();
        live.into_iter()
            .find(|job| job.pool == vm.pool && job.vm_uuid == vm.uuid && !job.state.is_terminal())
            .map(|job| (job.id, job.state.to_string()))
    }

    fn new_job(&self, vm: &Candidate, asked: &Asked<'_>) -> Result<NewJob, PreviewError> {
        let order = asked.order;
        let config = self.config.now();
        let profile = profile_for(&config, order.profile.as_deref(), &vm.uuid, &vm.name)?.clone();
        if order.rescue && profile.kind != ProfileKind::Rescue {
            return Err(PreviewError::NoRescue(profile.name));
        }
        let machine = machine_config(&config, &vm.uuid, &vm.name);
        Ok(NewJob {
            id: new_id(),
            pool: vm.pool.clone(),
            vm_uuid: vm.uuid.clone(),
            vm_name: vm.name.clone(),
            variables: preview::variables(&config, &profile, vm),
            profile,
            deadlines: config.deadlines.clone(),
            options: Options {
                reinstall: order.reinstall,
                keep_hvm_seconds: order.keep_hvm_seconds,
                stay_hvm: order.stay_hvm,
                disk: machine.and_then(|machine| machine.disk.clone()),
                mac: machine.and_then(|machine| machine.mac),
                batch: asked.batch.clone(),
            },
            asked_by: asked.asked_by.to_owned(),
        })
    }

    /// The VMs of all pools; of a pool that does not answer, those that it had when it was last read.
    async fn candidates(&self) -> (Vec<Candidate>, Vec<PoolAway>) {
        let (mut candidates, mut away) = (Vec::new(), Vec::new());
        for (pool, read) in self.read_pools().await {
            match read {
                Ok(vms) => candidates.extend(vms.iter().map(|vm| Candidate::of(&pool, vm))),
                Err(error) => {
                    candidates.extend(self.known.vms(&pool));
                    away.push(PoolAway { pool, problem: error.to_string() });
                }
            }
        }
        // `--first 1` means the same VM every time.
        candidates.sort_by(|a, b| (&a.pool, &a.name, &a.uuid).cmp(&(&b.pool, &b.name, &b.uuid)));
        (candidates, away)
    }

    async fn read_pools(&self) -> Vec<(String, Result<Vec<VmRecord>, CallError>)> {
        join_all(self.apis.iter().map(async |(pool, api)| (pool.clone(), api.vms().await))).await
    }

    /// All VMs of all pools, by pool and name, and the pools that do not answer.
    pub async fn vms(&self) -> (Vec<VmView>, Vec<PoolAway>) {
        let (mut vms, mut away) = (Vec::new(), Vec::new());
        for (pool, read) in self.read_pools().await {
            match read {
                Ok(records) => vms.extend(records.iter().map(|vm| machines::view(&pool, vm))),
                Err(error) => away.push(PoolAway { pool, problem: error.to_string() }),
            }
        }
        vms.sort_by(|a, b| (&a.pool, &a.name, &a.uuid).cmp(&(&b.pool, &b.name, &b.uuid)));
        (vms, away)
    }

    /// One VM, by name or uuid.
    pub async fn vm(&self, name: &str) -> Result<VmView, DeskError> {
        let (pool, vm) = self.find(name).await?;
        Ok(machines::view(&pool, &vm))
    }

    /// What a machine would be served.
    pub async fn render(&self, order: &RenderOrder) -> Result<String, DeskError> {
        let (pool, vm) = self.find(&order.vm).await?;
        let config = self.config.now();
        let profile = profile_for(&config, order.profile.as_deref(), &vm.uuid, &vm.name_label)?;
        let api = self.apis.get(&pool).ok_or_else(|| OperationError::NoSuchPool(pool.clone()))?;
        let wanted = Wanted { vm: &vm, pool: &pool, profile, order };
        Ok(preview::render(&config, &self.templates, self.urls.as_ref(), api, wanted).await?)
    }

    async fn find(&self, name: &str) -> Result<(String, VmRecord), DeskError> {
        find(&self.apis, name).await
    }
}

/// One VM of these pools, by name or uuid.
pub async fn find(apis: &BTreeMap<String, Api>, name: &str) -> Result<(String, VmRecord), DeskError> {
    let mut all = Vec::new();
    let mut away = None;
    for (pool, api) in apis {
        match api.vms().await {
            Ok(vms) => all.extend(vms.into_iter().map(|vm| (pool.clone(), vm))),
            Err(source) => away = Some(DeskError::Pool { pool: pool.clone(), source }),
        }
    }
    let candidates: Vec<Candidate> = all.iter().map(|(pool, vm)| Candidate::of(pool, vm)).collect();
    let Selection { chosen, unresolved } = resolve(&[name.to_owned()], &candidates);
    match (chosen.as_slice(), unresolved.first()) {
        ([one], _) => {
            let found = all.into_iter().find(|(_, vm)| vm.uuid == one.uuid);
            found.ok_or_else(|| DeskError::NoSuchVm(name.to_owned()))
        }
        (_, Some(unresolved)) => {
            Err(away.unwrap_or_else(|| DeskError::NoSuchVm(format!("{name}: {}", unresolved.problem))))
        }
        ([] | [_, _, ..], None) => {
            Err(DeskError::NoSuchVm(format!("{name}: {} VMs fit; name one", chosen.len())))
        }
    }
}

/// What an operator does to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// End it and put the VM back.
    Cancel,
    /// End a rescue.
    Finish,
    /// Another attempt.
    Retry,
    /// Settle what waits for a person.
    Resolve(Resolution),
}

impl Operation {
    const fn parts(self) -> (Action, Event) {
        match self {
            Self::Cancel => (Action::Cancel, Event::Cancel),
            Self::Finish => (Action::Finish, Event::Finish),
            Self::Retry => (Action::Retry, Event::Retry),
            Self::Resolve(resolution) => (Action::Resolve, Event::Resolve(resolution)),
        }
    }
}

/// One VM of an order, for the audit log.
fn ordered(line: &OrderLine, caller: &Caller) -> Deed {
    let (before, after) = match line.outcome {
        Outcome::Existing => ("a live job", "unchanged".to_owned()),
        Outcome::Created | Outcome::Ready | Outcome::Unknown => {
            ("no live job", format!("job made: {}", line.profile.as_deref().unwrap_or_default()))
        }
        Outcome::Refused => {
            let reason = line.reason.as_deref().unwrap_or("no job");
            ("no live job", format!("refused: {reason}: {}", line.detail))
        }
    };
    Deed {
        who: caller.clone(),
        action: Action::Deploy,
        vm: Some((line.vm.clone(), line.vm_uuid.clone())),
        job: line.job.clone(),
        before: before.to_owned(),
        after,
    }
}

/// Whether jobs are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Plan,
    Make,
}

struct Asked<'a> {
    order: &'a Order,
    asked_by: &'a str,
    batch: Option<Batch>,
    work: Work,
}

/// An error by which the pool says nothing about the VM: it is away, busy, or another one is its coordinator now.
fn says_nothing(error: &CallError) -> bool {
    match error.class() {
        Class::Retry | Class::SlowRetry | Class::Relogin | Class::Redirect => true,
        Class::Permanent | Class::Observe => error.failure().is_none(),
    }
}

fn blank(vm: &Candidate) -> OrderLine {
    OrderLine {
        vm: vm.name.clone(),
        vm_uuid: vm.uuid.clone(),
        pool: vm.pool.clone(),
        profile: None,
        outcome: Outcome::Refused,
        job: None,
        reason: None,
        detail: String::new(),
        remedy: None,
        running: false,
        erases: None,
        disks: Vec::new(),
        memory: None,
        hosts: Vec::new(),
    }
}

fn refused(line: OrderLine, reason: Reason, detail: String) -> OrderLine {
    OrderLine {
        outcome: Outcome::Refused,
        reason: Some(reason.label().to_owned()),
        remedy: Some(reason.remedy().to_owned()),
        detail,
        ..line
    }
}

fn new_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

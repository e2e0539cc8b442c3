//! The pool model: XenAPI semantics over a small database, domains and a queue of things that are due. Sync and
//! pure: seeded, no sockets, no clock.
//!
//! Invariants: the same seed and the same calls give the same pool; a VM has at most one domain, and domains are
//! the truth that `power_state`, `domid` and the metrics only follow. Where things are: `schema` and `release`
//! which fields exist, `messages` which messages and who may send them, `db` the rows, `calls` what messages do,
//! `sessions` logins, `power` starts, stops and guests, `build` what a domain is built from, `outside` domains that another body runs, `hosts` where domains fit, `bootloader` what pygrub finds,
//! `load` a pool from a real database, `create`, `devices`, `sizes` VMs that are made, `follow` how records follow domains, `tasks` the queue, `events` event.from, `populate` what a pool and a VM
//! consist of.

mod bootloader;
mod build;
mod calls;
mod create;
mod db;
mod devices;
mod events;
mod expression;
mod follow;
mod getters;
mod hosts;
mod load;
mod messages;
mod outside;
mod populate;
mod power;
mod release;
mod rng;
mod schema;
mod sessions;
mod sizes;
mod spec;
mod tasks;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

pub use load::LoadError;
pub use messages::{FieldFacts, MessageFacts};
pub use outside::{DomainAct, DomainOrder};
pub use release::{Api, Release};
pub use spec::{
    BootMode, Caller, DiskKind, DiskSpec, DomainStart, DomainTruth, GuestAct, HostSpec, LoggedCall,
    PersonAct, Role, Timing, VmSpec, VmTruth,
};

use db::Db;
use power::{Domain, Op};
use rng::Rng;
use schema::Class;
use sessions::{Actor, Doors};
use tasks::Due;
pub use tasks::TaskState;

use crate::{
    clock::Timestamp,
    secret::Secret,
    xen::{Failure, Method, Value},
};

/// The other_config key of bootflip's claim, as a reader of the pool's records knows it.
const CLAIM_KEY: &str = "bootflip:claim";
/// How many calls the log keeps.
const LOG_LIMIT: usize = 200_000;
/// The account of a new pool.
pub const DEFAULT_USER: &str = "root";
/// Its password.
pub const DEFAULT_PASSWORD: &str = "simulated";

/// A simulated pool.
#[derive(Debug)]
pub struct Pool {
    release: Release,
    db: Db,
    rng: Rng,
    timing: Timing,
    hosts: Vec<Host>,
    coordinator: usize,
    pool_ref: String,
    network_ref: String,
    sr_ref: String,
    doors: Doors,
    trusted: Role,
    /// By VM reference.
    domains: BTreeMap<String, Domain>,
    next_domid: u32,
    due: BTreeMap<(Timestamp, u64), Due>,
    next_due_id: u64,
    finished_tasks: VecDeque<(Timestamp, String)>,
    starts: Vec<DomainStart>,
    log: Vec<LoggedCall>,
    /// Calls that fell out of the log: all, and those by clients.
    log_dropped_all: usize,
    log_dropped_clients: usize,
    /// Pending tasks that go when they end.
    doomed_tasks: HashSet<String>,
    /// Uuids in the order in which VMs were added.
    added: Vec<String>,
    /// By VM uuid: domains built so far, HVM and PV.
    built: HashMap<String, (u32, u32)>,
    /// By VM uuid: HVM domains built because the guest rebooted by itself.
    rebuilt: HashMap<String, u32>,
    /// By VM uuid: what pygrub finds.
    boot_disks: HashMap<String, Result<(), String>>,
    /// Uuids of guests that ignore a clean shutdown.
    deaf: HashSet<String>,
    /// By VM reference: the record's power state does not follow the domain for now.
    stale: HashSet<String>,
    /// Uuids of guests that run as 32-bit PV.
    bits32: HashSet<String>,
    /// What `host.get_server_certificate` answers, PEM.
    certificate: String,
    /// Grows with every restart of the coordinator; part of event tokens.
    epoch: u32,
    /// Tokens from before this revision are refused.
    events_lost_to: u64,
    /// Domains are run by a body outside.
    outside: Option<outside::Outside>,
}

#[derive(Debug)]
struct Host {
    reference: String,
    spec: HostSpec,
}

impl Pool {
    /// A pool of two hosts, `127.0.0.1` (coordinator) and `127.0.0.2`.
    pub fn new(seed: u64, release: Release) -> Self {
        let second =
            HostSpec { name: "xs-2".to_owned(), address: "127.0.0.2".to_owned(), ..HostSpec::default() };
        Self::with_hosts(seed, release, vec![HostSpec::default(), second])
    }

    /// A pool of these hosts; the first is the coordinator.
    pub fn with_hosts(seed: u64, release: Release, hosts: Vec<HostSpec>) -> Self {
        let mut pool = Self::empty(seed, release);
        pool.populate(hosts);
        pool
    }

    /// No hosts, no records; the account of a new pool.
    fn empty(seed: u64, release: Release) -> Self {
        let mut pool = Self {
            release,
            db: Db::default(),
            rng: Rng::new(seed),
            timing: Timing::default(),
            hosts: Vec::new(),
            coordinator: 0,
            pool_ref: String::new(),
            network_ref: String::new(),
            sr_ref: String::new(),
            doors: Doors::default(),
            trusted: Role::PoolAdmin,
            domains: BTreeMap::new(),
            next_domid: 1,
            due: BTreeMap::new(),
            next_due_id: 0,
            finished_tasks: VecDeque::new(),
            starts: Vec::new(),
            log: Vec::new(),
            log_dropped_all: 0,
            log_dropped_clients: 0,
            doomed_tasks: HashSet::new(),
            added: Vec::new(),
            built: HashMap::new(),
            rebuilt: HashMap::new(),
            boot_disks: HashMap::new(),
            deaf: HashSet::new(),
            stale: HashSet::new(),
            bits32: HashSet::new(),
            certificate: String::new(),
            epoch: 1,
            events_lost_to: 0,
            outside: None,
        };
        pool.add_account(DEFAULT_USER, Secret::new(DEFAULT_PASSWORD.to_owned()), Role::PoolAdmin);
        pool
    }

    /// Adds a VM; answers its uuid.
    pub fn add_vm(&mut self, spec: VmSpec) -> String {
        self.build_vm(spec)
    }

    /// Adds an account, or changes its password and role.
    pub fn add_account(&mut self, user: &str, password: Secret, role: Role) {
        self.doors.add_account(user, password, role);
    }

    /// The role that [`Pool::call_trusted`] acts with; at first pool-admin.
    pub const fn set_trusted_role(&mut self, role: Role) {
        self.trusted = role;
    }

    /// How long things take from now on.
    pub const fn set_timing(&mut self, timing: Timing) {
        self.timing = timing;
    }

    /// The PEM that `host.get_server_certificate` answers.
    pub fn set_certificate(&mut self, pem: &str) {
        pem.clone_into(&mut self.certificate);
    }

    /// The release that the pool behaves like.
    pub const fn release(&self) -> Release {
        self.release
    }

    /// Every message that the pool's release has, as `class.message`, without the `Async.` twins: what
    /// `system.listMethods` lists.
    pub fn methods(&self) -> Vec<String> {
        self.message_facts().into_iter().map(|facts| facts.name).collect()
    }

    /// The same messages with their parameters and roles.
    pub fn message_facts(&self) -> Vec<MessageFacts> {
        let all = messages::all(self.release.api).into_iter();
        all.map(|(name, known)| MessageFacts { name, params: known.params, role: known.role }).collect()
    }

    /// Every field of the records of the pool's release.
    pub fn field_facts(&self) -> Vec<FieldFacts> {
        let of_class = |class: Class| {
            let fields = class.fields_of(self.release.api);
            fields.map(move |(name, kind)| FieldFacts { class: class.name(), name, kind: kind.name() })
        };
        Class::ALL.into_iter().flat_map(of_class).collect()
    }

    /// The addresses of the members, the first is the one that was coordinator at the beginning.
    pub fn addresses(&self) -> Vec<&str> {
        self.hosts.iter().map(|host| host.spec.address.as_str()).collect()
    }

    /// From now on the VM's record does not follow its domain (xapi missed xenopsd's events), until
    /// [`Pool::catch_up`], a restart of the coordinator or a stop over the API.
    pub fn let_go_stale(&mut self, vm_uuid: &str) {
        if let Some(vm) = self.db.by_uuid(Class::Vm, vm_uuid) {
            self.stale.insert(vm.to_owned());
        }
    }

    /// A stale record follows its domain again.
    pub fn catch_up(&mut self, now: Timestamp, vm_uuid: &str) {
        if let Some(vm) = self.db.by_uuid(Class::Vm, vm_uuid).map(str::to_owned) {
            self.stale.remove(&vm);
            self.follow_domain(now, &vm);
        }
    }

    /// Switches HA; VMs with `ha_always_run` are started again when they stop by themselves.
    pub fn set_ha(&mut self, now: Timestamp, enabled: bool) {
        let pool_ref = self.pool_ref.clone();
        self.db.set(now, Class::Pool, &pool_ref, "ha_enabled", Value::Bool(enabled));
    }

    /// Changes a host, found by its address: whether it takes domains, its memory, its processor.
    pub fn change_host(&mut self, now: Timestamp, address: &str, change: impl FnOnce(&mut HostSpec)) {
        if let Some(index) = self.hosts.iter().position(|host| host.spec.address == address) {
            if let Some(host) = self.hosts.get_mut(index) {
                change(&mut host.spec);
            }
            self.describe_host(now, index);
        }
    }

    /// What pygrub would find on the VM's boot disk from now on: an installer that finished says `Ok`, one that
    /// erased the disk says `Err` with pygrub's words.
    pub fn set_bootable(&mut self, vm_uuid: &str, found: Result<(), String>) {
        self.boot_disks.insert(vm_uuid.to_owned(), found);
    }

    /// One call as it comes over the wire: the session's reference is the first parameter (but not of a login),
    /// `Async.` may stand in front. A slow message without `Async.` is done at once, in no time.
    pub fn call(&mut self, now: Timestamp, method: &str, params: &[Value]) -> Result<Value, Failure> {
        if method == Method::SessionLogin.name() {
            let nobody = Actor { caller: Caller::Client, role: Role::ReadOnly, session: "" };
            return self.perform(now, nobody, method, params);
        }
        let session = params.first().and_then(Value::as_str).unwrap_or_default();
        let Some(role) = self.doors.enter(now, session) else {
            return Err(Failure::new("SESSION_INVALID", &[session]));
        };
        let actor = Actor { caller: Caller::Client, role, session };
        self.perform(now, actor, method, params.get(1..).unwrap_or_default())
    }

    /// One call without a session, as [`Transport`](crate::xen::Transport) is asked: the answer of an async method
    /// is its task's reference.
    pub fn call_trusted(
        &mut self,
        now: Timestamp,
        method: Method,
        params: &[Value],
    ) -> Result<Value, Failure> {
        let actor = Actor { caller: Caller::Client, role: self.trusted, session: "" };
        if method.is_async() {
            self.perform(now, actor, &format!("Async.{}", method.name()), params)
        } else {
            self.perform(now, actor, method.name(), params)
        }
    }

    /// What a person does with another client; done at once. Answers the uuid of the VM acted on, or made.
    pub fn person(&mut self, now: Timestamp, vm_uuid: &str, act: &PersonAct) -> Result<String, Failure> {
        let Some(vm) = self.db.by_uuid(Class::Vm, vm_uuid).map(str::to_owned) else {
            return Err(Failure::new("UUID_INVALID", &["VM", vm_uuid]));
        };
        let (method, params) = act.as_call(&vm);
        let actor = Actor { caller: Caller::Person, role: Role::PoolAdmin, session: "" };
        let answer = self.perform(now, actor, method, &params)?;
        let made =
            answer.as_str().map(|made| self.db.text(Class::Vm, made, "uuid")).filter(|uuid| !uuid.is_empty());
        Ok(made.unwrap_or(vm_uuid).to_owned())
    }

    /// When the next thing is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// The domains that began to run since the last time.
    pub fn take_starts(&mut self) -> Vec<DomainStart> {
        std::mem::take(&mut self.starts)
    }

    /// Grows with every change that event.from could tell.
    pub const fn revision(&self) -> u64 {
        self.db.revision()
    }

    /// The VMs that were added or cloned, in order, without those that were destroyed.
    pub fn uuids(&self) -> Vec<String> {
        self.added.iter().filter(|uuid| self.db.by_uuid(Class::Vm, uuid).is_some()).cloned().collect()
    }

    /// A VM as it is now; `None` when there is no such VM.
    pub fn truth(&self, vm_uuid: &str) -> Option<VmTruth> {
        let vm = self.db.by_uuid(Class::Vm, vm_uuid)?;
        let text = |field: &str| self.db.text(Class::Vm, vm, field).to_owned();
        let map = |field: &str| self.db.map_of(Class::Vm, vm, field);
        let other_config = map("other_config");
        let (hvm_starts, pv_starts) = self.built.get(vm_uuid).copied().unwrap_or_default();
        Some(VmTruth {
            uuid: vm_uuid.to_owned(),
            name: text("name_label"),
            power_state: text("power_state"),
            domain_type: self.release.has_domain_type().then(|| text("domain_type")),
            hvm_boot_policy: text("HVM_boot_policy"),
            hvm_boot_params: map("HVM_boot_params"),
            pv_bootloader: text("PV_bootloader"),
            pv_args: text("PV_args"),
            actions_after: ["actions_after_shutdown", "actions_after_reboot", "actions_after_crash"]
                .map(text),
            platform: map("platform"),
            claim: other_config.get(CLAIM_KEY).cloned(),
            other_config,
            start_time: self.db.text(Class::VmMetrics, &text("metrics"), "start_time").to_owned(),
            hvm_starts,
            pv_starts,
            hvm_rebuilds: self.rebuilt.get(vm_uuid).copied().unwrap_or_default(),
            domain: self.domains.get(vm).map(Domain::truth),
        })
    }

    /// The calls so far, oldest first; the oldest are dropped beyond a limit of 200,000.
    pub fn log(&self) -> &[LoggedCall] {
        &self.log
    }

    /// How many calls clients made.
    pub fn client_calls(&self) -> usize {
        self.log_dropped_clients + self.log.iter().filter(|call| call.caller == Caller::Client).count()
    }

    /// The uuid and name label of the VM that a call is about: the one in its parameters.
    pub fn vm_of(&self, params: &[Value]) -> Option<(String, String)> {
        let vm = params
            .iter()
            .take(2)
            .filter_map(Value::as_str)
            .find(|text| self.db.row(Class::Vm, text).is_some())?;
        Some((
            self.db.text(Class::Vm, vm, "uuid").to_owned(),
            self.db.text(Class::Vm, vm, "name_label").to_owned(),
        ))
    }

    /// The address of the coordinator.
    pub fn coordinator(&self) -> &str {
        self.hosts.get(self.coordinator).map_or("", |host| &host.spec.address)
    }

    /// Another member becomes the coordinator: sessions and tasks vanish. False when no host has this address.
    pub fn move_coordinator(&mut self, now: Timestamp, address: &str) -> bool {
        let Some(index) = self.hosts.iter().position(|host| host.spec.address == address) else {
            return false;
        };
        self.coordinator = index;
        self.restart_coordinator(now, Duration::ZERO);
        let (pool_ref, host) = (self.pool_ref.clone(), self.host_ref(index));
        self.db.set_text(now, Class::Pool, &pool_ref, "master", &host);
        true
    }

    /// The coordinator's toolstack starts again: sessions and tasks vanish, writes of the last `lose` that were not
    /// synced are forgotten (five minutes at most: older ones are on disk), and records follow the domains again.
    /// What a host had begun goes on.
    pub fn restart_coordinator(&mut self, now: Timestamp, lose: Duration) {
        self.advance(now);
        self.doors.close_all();
        self.stale.clear();
        self.epoch += 1;
        let lose = u64::try_from(lose.as_millis()).unwrap_or(u64::MAX);
        self.db.forget_after(Timestamp::from_millis(now.millis().saturating_sub(lose)));
        // Behind the loss: what the database says of operations under way is not believed.
        self.forget_tasks(now);
        self.follow_domains(now);
    }

    /// Whether a session of this reference lives.
    pub fn has_session(&self, reference: &str) -> bool {
        self.doors.get(reference).is_some()
    }

    /// Whether xapi takes its time over this message (without `Async.`): a body begins it as a task and waits.
    /// Where domains are run outside, nothing that acts on one is done at once.
    pub fn is_slow(&self, method: &str) -> bool {
        let op = method.strip_prefix("VM.").and_then(Op::named);
        op.is_some_and(|op| op.is_slow() || self.outside.is_some())
    }

    /// Every session ends.
    pub fn expire_sessions(&mut self) {
        self.doors.close_all();
    }

    fn host_ref(&self, index: usize) -> String {
        self.hosts.get(index).map_or_else(|| schema::NULL.to_owned(), |host| host.reference.clone())
    }

    /// One call by anybody, logged.
    fn perform(
        &mut self,
        now: Timestamp,
        actor: Actor<'_>,
        method: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        self.advance(now);
        let vm = self.vm_of(params).map(|(uuid, _)| uuid);
        if self.log.len() >= LOG_LIMIT {
            let dropped = self.log.drain(..LOG_LIMIT / 2);
            self.log_dropped_clients += dropped.filter(|call| call.caller == Caller::Client).count();
            self.log_dropped_all += LOG_LIMIT / 2;
        }
        self.log.push(LoggedCall {
            at: now,
            caller: actor.caller,
            method: method.to_owned(),
            vm,
            params: calls::summary(method, params),
            outcome: Ok(()),
            task: None,
        });
        let answer = self.dispatch(now, actor, method, params);
        if let (Err(failure), Some(entry)) = (&answer, self.log.last_mut()) {
            entry.outcome = Err(failure.clone());
        }
        answer
    }
}

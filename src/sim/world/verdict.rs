//! What World watches: the invariants of the fault catalogue (I1..I10, I14) and one of our own (PV: what says that it
//! cannot start as PV is not started as PV by its installation), on the pool's own state and on the calls
//! that reach it, by code that shares nothing with `step`. A violation has the invariant's name.

// Of many methods and acts a rule names the few that it is about.
#![allow(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::{
    boot::{Answer, Ask, Gate},
    clock::Timestamp,
    provision::{
        Effect, Job, Reason, State,
        claim::{CLAIM_KEY, Claim},
        job::{Evidence, GateState, Resolution},
        settings::Field,
    },
    secret::TokenHash,
    sim::pool::{BootMode, PersonAct, Pool, VmTruth},
    xen::{Method, Value},
};

/// How often things happened.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// States entered.
    pub states: BTreeMap<State, u64>,
    /// Reasons of ends and of waits for a person.
    pub reasons: BTreeMap<Reason, u64>,
    /// Misfortunes.
    pub faults: BTreeMap<&'static str, u64>,
    /// Commits of jobs, guests' steps and calls.
    pub happenings: u64,
}

impl Counts {
    /// Adds another's.
    pub fn add(&mut self, other: &Self) {
        for (state, n) in &other.states {
            *self.states.entry(*state).or_default() += n;
        }
        for (reason, n) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += n;
        }
        for (fault, n) in &other.faults {
            *self.faults.entry(fault).or_default() += n;
        }
        self.happenings += other.happenings;
    }
}

/// The watcher's notes.
#[derive(Debug, Default)]
pub struct Ledger {
    /// What was found: (invariant, what).
    pub violations: Vec<(&'static str, String)>,
    /// How often things happened.
    pub counts: Counts,
    jobs: HashMap<String, Job>,
    originals: HashMap<String, VmTruth>,
    tokens: HashMap<TokenHash, (String, usize)>,
    looked_at: Option<u64>,
    start_intents: HashMap<String, u32>,
    /// VMs of which a person touched settings, claim or life.
    pub tainted: HashSet<String>,
    person_domains: HashSet<(String, u32)>,
    person_values: HashMap<(String, &'static str), String>,
    /// VMs whose type a person set: between a look and E12's start, and at a reboot by the guest itself, nothing can
    /// keep them from coming up as HVM.
    typed: HashSet<String>,
    /// VMs whose new system was heard to say that it is not ready for a PV start, in the attempt under way.
    unready: HashSet<String>,
    /// E12's intents of each VM.
    pv_intents: HashMap<String, u32>,
    /// No server and no job: what calls now restores from claims alone.
    pub claims_only: bool,
    /// HVM and PV starts that a person made.
    pub person_starts: HashMap<String, (u32, u32)>,
}

impl Ledger {
    /// Notes a violation.
    pub fn violation(&mut self, invariant: &'static str, what: impl Into<String>) {
        if self.violations.len() < 20 {
            self.violations.push((invariant, what.into()));
        }
    }

    /// Notes a misfortune.
    pub fn count_fault(&mut self, kind: &'static str) {
        *self.counts.faults.entry(kind).or_default() += 1;
    }

    /// Remembers a VM as it was.
    pub fn original(&mut self, truth: VmTruth) {
        self.originals.insert(truth.uuid.clone(), truth);
    }

    /// A job as last stored.
    pub fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.get(id)
    }

    /// The job, when there is just one.
    pub fn only_job(&self) -> Option<&Job> {
        self.jobs.values().next().filter(|_| self.jobs.len() == 1)
    }

    /// All jobs as last stored.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values()
    }

    fn live_job(&self, vm: &str) -> Option<&Job> {
        self.jobs
            .values()
            .filter(|job| job.vm_uuid == vm)
            .max_by_key(|job| (!job.state.is_terminal(), job.created))
    }

    /// The server took a guest's word that it is not ready for a PV start.
    pub fn unready(&mut self, vm: &str) {
        self.unready.insert(vm.to_owned());
    }

    /// A person does this, with another client. False: the pool refused it.
    pub fn person_acts(&mut self, pool: &mut Pool, now: Timestamp, vm: &str, act: &PersonAct) -> bool {
        let before = pool.truth(vm);
        let done = pool.person(now, vm, act).is_ok();
        if let (Some(before), Some(after)) = (before, pool.truth(vm)) {
            let theirs = self.person_starts.entry(vm.to_owned()).or_default();
            theirs.0 += after.hvm_starts - before.hvm_starts;
            theirs.1 += after.pv_starts - before.pv_starts;
        }
        if done {
            self.person(vm, act, pool);
        }
        done
    }

    fn person(&mut self, vm: &str, act: &PersonAct, pool: &Pool) {
        let domain = pool.truth(vm).and_then(|truth| truth.domain).map(|domain| domain.domid);
        match act {
            PersonAct::Start | PersonAct::HardReboot | PersonAct::CleanReboot => {
                self.person_domains.extend(domain.map(|domid| (vm.to_owned(), domid)));
            }
            PersonAct::SetBootParams(params) => {
                let order = params.get("order").cloned().unwrap_or_default();
                self.person_values.insert((vm.to_owned(), "order"), order);
                self.tainted.insert(vm.to_owned());
            }
            PersonAct::SetPolicy(_) | PersonAct::SetDomainType(_) => {
                self.typed.insert(vm.to_owned());
                self.tainted.insert(vm.to_owned());
            }
            PersonAct::RemoveOtherConfig { .. } | PersonAct::Destroy => {
                self.tainted.insert(vm.to_owned());
            }
            _ => {}
        }
    }

    /// Watches a call before it is done.
    pub fn before_call(&mut self, pool: &Pool, gate: &Gate, method: Method, params: &[Value]) {
        self.counts.happenings += 1;
        if !method.changes_the_pool() || method == Method::PoolSyncDatabase {
            return;
        }
        let Some(truth) = pool.vm_of(params).and_then(|(uuid, _)| pool.truth(&uuid)) else { return };
        if self.claims_only {
            if sets_boot(method) && truth.power_state != "Halted" {
                self.violation("I14", format!("{} while the VM is {}", method.name(), truth.power_state));
            }
            return;
        }
        let Some(job) = self.live_job(&truth.uuid).cloned() else {
            return self.violation("I2", format!("{} without a job", method.name()));
        };
        let key = params.get(1).and_then(Value::as_str).unwrap_or_default();
        if !intent_fits(&job, method) {
            let at = job.intent.map(|intent| intent.effect);
            self.violation("I8", format!("{} with the intent {at:?} stored ({})", method.name(), job.state));
        }
        let found = truth.claim.as_deref().and_then(|text| serde_json::from_str::<Claim>(text).ok());
        let ours = found.as_ref().is_some_and(|claim| Some(claim.nonce.as_str()) == job.nonce());
        let waived = matches!(job.resolution, Some(Resolution::Restore | Resolution::Accept));
        match method {
            Method::VmAddToOtherConfig if key == CLAIM_KEY => {}
            Method::VmRemoveFromOtherConfig if key == CLAIM_KEY && !ours => {
                self.violation("I2", "a claim that is not ours is removed");
            }
            _ if !ours && !waived => {
                self.violation("I2", format!("{} without our claim in the VM", method.name()))
            }
            _ => {}
        }
        if matches!(method, Method::VmHardShutdown | Method::VmCleanShutdown)
            && let Some(domain) = &truth.domain
            && self.person_domains.contains(&(truth.uuid.clone(), domain.domid))
            // A start of ours whose answer never came, and a person's in the same seconds, cannot be told apart.
            && job.start.as_ref().is_none_or(|start| start.seen.is_some())
            // A reinstall stops what runs, whoever started it.
            && job.cursor != Some(Effect::Stop)
        {
            self.violation("I6", "a domain that a person started is shut down");
        }
        if method == Method::VmStart {
            self.before_start(&job);
        }
        if sets_boot(method) {
            self.before_setting(&truth, &job, found.as_ref(), gate, method, params);
        }
    }

    fn before_start(&mut self, job: &Job) {
        match job.state {
            State::Booting => drop(self.unready.remove(&job.vm_uuid)),
            // After a rescue the VM starts as it was, whatever the rescue system says of itself.
            State::Starting
                if self.unready.contains(&job.vm_uuid)
                    && !job.options.stay_hvm
                    && job.profile.kind == crate::config::ProfileKind::Install =>
            {
                self.violation("PV", "a system that says it is not ready is started as PV");
            }
            _ => {}
        }
    }

    fn before_setting(
        &mut self,
        truth: &VmTruth,
        job: &Job,
        claim: Option<&Claim>,
        gate: &Gate,
        method: Method,
        params: &[Value],
    ) {
        // Under the PV domain of the job's own, a coordinator's lost restore is written again (7.5 and later).
        let own_pv = truth.domain_type.is_some()
            && truth.domain.as_ref().is_some_and(|domain| {
                (domain.mode == BootMode::Pv || job.options.stay_hvm) && !domain.paused
            })
            && job.pv_start.as_ref().and_then(|start| start.seen.as_ref()) == Some(&truth.start_time);
        if truth.power_state != "Halted" && !own_pv {
            self.violation("I14", format!("{} while the VM is {}", method.name(), truth.power_state));
        }
        let on_the_way_back = matches!(job.state, State::Restoring | State::Undoing);
        if on_the_way_back
            && let Some(mac) = job.mac
            && matches!(gate.answer(Ask::Netboot { mac }), Answer::Boot(_))
        {
            self.violation("I13", "settings are put back while the gate is open");
        }
        let forced = job.resolution == Some(Resolution::Restore);
        if method == Method::VmSetHvmBootParams && !forced {
            let now = truth.hvm_boot_params.get("order").cloned();
            let by_person = self.person_values.get(&(truth.uuid.clone(), "order"));
            let order = Field::BootParam("order".into());
            let known = claim.and_then(|claim| claim.touched.get(&order));
            let theirs = by_person.is_some() && by_person == now.as_ref();
            let mine = known.is_some_and(|entry| entry.saved == now || entry.written == now);
            let kept =
                params.get(1).and_then(|map| map.get("order")).and_then(Value::as_str) == now.as_deref();
            if theirs && !mine && !kept {
                self.violation("I14", "a person's boot order is overwritten");
            }
        }
    }

    /// Watches a call after it was done.
    pub fn after_call(&mut self, pool: &Pool, method: Method, params: &[Value], done: bool) {
        let key = params.get(1).and_then(Value::as_str).unwrap_or_default();
        if !done || method != Method::VmAddToOtherConfig || key != CLAIM_KEY {
            return;
        }
        let Some(truth) = pool.vm_of(params).and_then(|(uuid, _)| pool.truth(&uuid)) else { return };
        let Some(claim) = truth.claim.as_deref().and_then(|text| serde_json::from_str::<Claim>(text).ok())
        else {
            return self.violation("I3", "the claim cannot be read back");
        };
        let saved = |field: Field| claim.touched.get(&field).and_then(|entry| entry.saved.clone());
        let [_, reboot, crash] = &truth.actions_after;
        let told = [
            (saved(Field::BootParam("order".into())), truth.hvm_boot_params.get("order").cloned()),
            (saved(Field::ActionsAfterReboot), Some(reboot.clone())),
            (saved(Field::ActionsAfterCrash), Some(crash.clone())),
            (saved(Field::DomainType), truth.domain_type.clone()),
        ];
        if told.iter().any(|(claim, truth)| claim != truth) && !self.tainted.contains(&truth.uuid) {
            self.violation("I3", format!("the claim does not tell the way back: {told:?}"));
        }
    }

    /// Watches a job being stored.
    pub fn stored(&mut self, pool: &Pool, job: Job, _now: Timestamp) {
        self.counts.happenings += 1;
        let before = self.jobs.get(&job.id).cloned();
        let was = before.as_ref().map(|before| before.state);
        if was != Some(job.state) {
            *self.counts.states.entry(job.state).or_default() += 1;
            if let Some(reason) =
                job.reason.filter(|_| job.state.is_terminal() || job.state == State::NeedsOperator)
            {
                *self.counts.reasons.entry(reason).or_default() += 1;
            }
        }
        let came_back = match was {
            Some(State::Succeeded | State::Failed | State::Cancelled) => {
                !job.state.is_terminal() && !matches!(job.state, State::Queued | State::Undoing)
            }
            Some(State::Undoing | State::NeedsOperator) => {
                // A retry that found an earlier attempt's claim begins when that is undone.
                let next =
                    job.state == State::Queued && before.as_ref().is_some_and(|b| b.attempt < job.attempt);
                !job.state.is_terminal()
                    && !matches!(job.state, State::Undoing | State::NeedsOperator)
                    && !next
            }
            Some(_) | None => false,
        };
        if came_back {
            self.violation("I5", format!("from {was:?} to {} by an outside event", job.state));
        }
        let builds_hvm =
            |effect| effect == Effect::Start || (effect == Effect::StartPv && job.options.stay_hvm);
        let intended = |job: &Job| job.intent.is_some_and(|intent| builds_hvm(intent.effect));
        if intended(&job) && !before.as_ref().is_some_and(intended) {
            *self.start_intents.entry(job.vm_uuid.clone()).or_default() += 1;
        }
        let starts_pv = |job: &Job| job.intent.is_some_and(|intent| intent.effect == Effect::StartPv);
        if starts_pv(&job) && !before.as_ref().is_some_and(starts_pv) {
            *self.pv_intents.entry(job.vm_uuid.clone()).or_default() += 1;
        }
        let round = job.history.iter().filter(|mark| mark.state == State::Queued).count();
        if let Some(tokens) = &job.tokens {
            for hash in [tokens.render, tokens.report, tokens.booted] {
                let of = (job.id.clone(), round);
                if self.tokens.insert(hash, of.clone()).is_some_and(|earlier| earlier != of) {
                    self.violation("I5", "an attempt has an earlier attempt's token");
                }
            }
        }
        if job.state == State::Succeeded && was != Some(State::Succeeded) {
            self.succeeded(pool, &job);
        }
        self.jobs.insert(job.id.clone(), job);
    }

    fn succeeded(&mut self, pool: &Pool, job: &Job) {
        if job.evidence == Evidence::None && was_install(job) {
            self.violation("I7", "Succeeded without evidence");
        }
        if job.gate != GateState::Closed {
            self.violation("I13", "Succeeded with the gate open");
        }
        if let Some(truth) = pool.truth(&job.vm_uuid) {
            self.restored("I7", &truth, Some(job));
        }
    }

    /// The VM is as it was, and unclaimed.
    pub fn restored(&mut self, invariant: &'static str, truth: &VmTruth, job: Option<&Job>) {
        if self.tainted.contains(&truth.uuid) {
            return;
        }
        let Some(original) = self.originals.get(&truth.uuid).cloned() else { return };
        if truth.claim.as_ref().is_some_and(|claim| claim.contains("\"owner\":\"world\"")) {
            self.violation(invariant, "our claim is still there");
        }
        let now = boot_settings(truth);
        let then = boot_settings(&original);
        let stays = job.filter(|job| job.options.stay_hvm && was_install(job));
        let asked =
            stays.is_some() && without_xapis_keys(truth.clone()) == without_xapis_keys(as_hvm(original));
        // Later a coordinator may have forgotten the whole job, claim and all: it is as it was, then.
        let must = invariant == "I7" && stays.is_some();
        if !asked && (now != then || must) {
            self.violation(invariant, format!("not restored: {now:?}, was {then:?}"));
        }
    }

    /// I1, at any time: what is flipped is claimed.
    pub fn check_flipped(&mut self, pool: &Pool) {
        if self.looked_at == Some(pool.revision()) {
            return;
        }
        self.looked_at = Some(pool.revision());
        for uuid in pool.uuids() {
            let Some(truth) = pool.truth(&uuid) else { continue };
            let flipped = truth.hvm_boot_params.get("order").is_some_and(|order| order == "n");
            let abandoned = self.live_job(&uuid).is_some_and(|job| job.reason == Some(Reason::Abandoned));
            if flipped && truth.claim.is_none() && !self.tainted.contains(&uuid) && !abandoned {
                self.violation("I1", "network boot without a claim");
            }
        }
    }

    /// I10, after more time than all deadlines together: every job has ended or waits for a person. Recovery mode has
    /// no time limit of its own.
    pub fn check_waits(&mut self) {
        let waiting = self.jobs.values().filter(|job| was_install(job));
        let still = waiting.filter(|job| !job.state.is_terminal() && job.state != State::NeedsOperator);
        let found: Vec<String> =
            still.map(|job| format!("{} is still {} ({:?})", job.vm_name, job.state, job.cursor)).collect();
        for what in found {
            self.violation("I10", what);
        }
    }

    /// I1 and I4, when all is quiet.
    pub fn check_end(&mut self, pool: &Pool) {
        let jobs: Vec<Job> = self.jobs.values().cloned().collect();
        for job in &jobs {
            let Some(truth) = pool.truth(&job.vm_uuid) else { continue };
            let given_up =
                matches!(job.reason, Some(Reason::Abandoned | Reason::Accepted | Reason::ClaimedByOther));
            if job.state.is_terminal() && job.claim.is_some() && !given_up {
                self.restored("I1", &truth, Some(job));
            }
            let count = |of: &HashMap<String, u32>| of.get(&job.vm_uuid).copied().unwrap_or_default();
            let by_type = if self.typed.contains(&job.vm_uuid) {
                count(&self.pv_intents) + truth.hvm_rebuilds
            } else {
                0
            };
            let intents = count(&self.start_intents) + by_type;
            let by_person = self.person_starts.get(&job.vm_uuid).copied().unwrap_or_default();
            if truth.hvm_starts.saturating_sub(by_person.0) > intents {
                let (started, theirs) = (truth.hvm_starts, by_person.0);
                self.violation(
                    "I4",
                    format!(
                        "{}: {started} HVM starts ({theirs} by people), {intents} were intended",
                        truth.name
                    ),
                );
            }
        }
    }
}

fn was_install(job: &Job) -> bool {
    job.profile.kind == crate::config::ProfileKind::Install
}

/// What `--stay-hvm` leaves.
fn as_hvm(mut vm: VmTruth) -> VmTruth {
    vm.domain_type = vm.domain_type.map(|_| "hvm".to_owned());
    "BIOS order".clone_into(&mut vm.hvm_boot_policy);
    vm.hvm_boot_params.insert("order".to_owned(), "c".to_owned());
    vm
}

/// But for what xapi itself writes at every HVM start, the last one of a VM that stays HVM too.
fn without_xapis_keys(mut vm: VmTruth) -> BootSettings {
    vm.platform.retain(|key, _| !matches!(key.as_str(), "device-model" | "timeoffset"));
    boot_settings(&vm)
}

type BootSettings = (Option<String>, String, BTreeMap<String, String>, [String; 3], BTreeMap<String, String>);

fn boot_settings(truth: &VmTruth) -> BootSettings {
    (
        truth.domain_type.clone(),
        truth.hvm_boot_policy.clone(),
        truth.hvm_boot_params.clone(),
        truth.actions_after.clone(),
        truth.platform.clone(),
    )
}

fn sets_boot(method: Method) -> bool {
    matches!(
        method,
        Method::VmSetDomainType
            | Method::VmSetHvmBootPolicy
            | Method::VmSetHvmBootParams
            | Method::VmSetActionsAfterCrash
            | Method::VmSetActionsAfterReboot
            | Method::VmSetActionsAfterShutdown
            | Method::VmAddToPlatform
            | Method::VmRemoveFromPlatform
            | Method::VmSetPvBootloader
    )
}

fn intent_fits(job: &Job, method: Method) -> bool {
    let Some(effect) = job.intent.map(|intent| intent.effect) else { return false };
    match method {
        Method::VmAddToOtherConfig => matches!(effect, Effect::Claim | Effect::Release),
        Method::VmRemoveFromOtherConfig => effect == Effect::Release,
        Method::VmStart => matches!(effect, Effect::Start | Effect::StartPv),
        Method::VmUnpause => effect == Effect::StartPv,
        Method::VmHardShutdown | Method::VmCleanShutdown => matches!(effect, Effect::Stop | Effect::Disarm),
        _ => matches!(effect, Effect::Actions | Effect::Order | Effect::Flip | Effect::Restore),
    }
}

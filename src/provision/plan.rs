//! The next thing that brings an effect about, given the job and the VM as it is now. Pure and level-triggered: the
//! executor looks, asks `plan`, does what it says, and looks again; an effect is done only when a look says so.
//!
//! Invariants: no call that changes a VM without our claim standing in it (I2), no boot setting written while it
//! runs, no start called again while the last one may have happened (I4).

use std::{collections::BTreeMap, time::Duration};

use super::{
    claim::{CLAIM_KEY, Claim, Found, INSTALLED_KEY},
    completion,
    job::{Difference, Effect, Evidence, Job, Resolution, State},
    reason::Reason,
    recovery,
    settings::{self, Aim, Field},
    starting,
    step::Outcome,
};
use crate::{
    clock::Timestamp,
    config::{EvidenceKind, ProfileKind},
    xen::{
        CallError, Class, Method,
        records::{PowerState, VmMetrics, VmRecord},
    },
};

/// A call that changes the VM (or the pool's database).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `VM.add_to_other_config`.
    AddToOtherConfig(String, String),
    /// `VM.remove_from_other_config`.
    RemoveFromOtherConfig(String),
    /// `pool.sync_database`.
    Sync,
    /// `VM.set_actions_after_shutdown`.
    SetActionsAfterShutdown(String),
    /// `VM.set_actions_after_reboot`.
    SetActionsAfterReboot(String),
    /// `VM.set_actions_after_crash`.
    SetActionsAfterCrash(String),
    /// `VM.set_HVM_boot_params`, the whole map.
    SetHvmBootParams(BTreeMap<String, String>),
    /// `VM.set_domain_type`.
    SetDomainType(String),
    /// `VM.set_HVM_boot_policy`.
    SetHvmBootPolicy(String),
    /// `VM.set_PV_bootloader`.
    SetPvBootloader(String),
    /// `VM.add_to_platform`.
    AddToPlatform(String, String),
    /// `VM.remove_from_platform`.
    RemoveFromPlatform(String),
    /// `Async.VM.clean_shutdown`.
    CleanShutdown,
    /// `Async.VM.hard_shutdown`.
    HardShutdown,
    /// `Async.VM.start`.
    Start {
        /// `start_paused`.
        paused: bool,
    },
    /// `VM.unpause`.
    Unpause,
}

impl Call {
    /// The message, for logs: no parameters, which hold our claim.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::AddToOtherConfig(..) => Method::VmAddToOtherConfig.name(),
            Self::RemoveFromOtherConfig(_) => Method::VmRemoveFromOtherConfig.name(),
            Self::Sync => Method::PoolSyncDatabase.name(),
            Self::SetActionsAfterShutdown(_) => Method::VmSetActionsAfterShutdown.name(),
            Self::SetActionsAfterReboot(_) => Method::VmSetActionsAfterReboot.name(),
            Self::SetActionsAfterCrash(_) => Method::VmSetActionsAfterCrash.name(),
            Self::SetHvmBootParams(_) => Method::VmSetHvmBootParams.name(),
            Self::SetDomainType(_) => Method::VmSetDomainType.name(),
            Self::SetHvmBootPolicy(_) => Method::VmSetHvmBootPolicy.name(),
            Self::SetPvBootloader(_) => Method::VmSetPvBootloader.name(),
            Self::AddToPlatform(..) => Method::VmAddToPlatform.name(),
            Self::RemoveFromPlatform(_) => Method::VmRemoveFromPlatform.name(),
            Self::CleanShutdown => Method::VmCleanShutdown.name(),
            Self::HardShutdown => Method::VmHardShutdown.name(),
            Self::Start { .. } => Method::VmStart.name(),
            Self::Unpause => Method::VmUnpause.name(),
        }
    }
}

/// What came of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallResult {
    /// The pool answered; an asynchronous call's task.
    Ok {
        /// The task's reference, for the slow calls.
        task: Option<String>,
    },
    /// The pool refused, or no answer came.
    Failed(CallError),
}

/// What the executor did for the effect so far, in this process. Lost in a crash: nothing depends on it but not
/// repeating what surely failed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    /// The calls with their results, oldest first.
    pub calls: Vec<(Timestamp, Call, CallResult)>,
    /// This process stored the effect's intent itself: before it, no call was made.
    pub intended_here: bool,
    /// Since when the pool has answered every look at this effect, in this process.
    pub begun: Option<Timestamp>,
    /// When the last start of this job, of whatever effect, may have been sent: by this process, or by one before it.
    pub start_sent: Option<Timestamp>,
}

impl Trail {
    /// The pool has been looked at for that long, and what is waited for did not come.
    pub fn waited(&self, limit: Duration, now: Timestamp) -> bool {
        self.begun.is_some_and(|begun| now >= begun + limit)
    }

    /// The newest call.
    pub fn last(&self) -> Option<&(Timestamp, Call, CallResult)> {
        self.calls.last()
    }

    /// Whether a call of this kind was answered well.
    pub fn succeeded(&self, call: &Call) -> bool {
        self.calls.iter().any(|(_, made, result)| made == call && matches!(result, CallResult::Ok { .. }))
    }

    /// Whether the outcome of some call is unknown.
    pub fn has_unknown(&self) -> bool {
        self.calls
            .iter()
            .any(|(_, _, result)| matches!(result, CallResult::Failed(CallError::Unknown { .. })))
    }

    /// The task of the newest call that has one.
    pub fn task(&self) -> Option<&str> {
        self.calls.iter().rev().find_map(|(_, _, result)| match result {
            CallResult::Ok { task } => task.as_deref(),
            CallResult::Failed(_) => None,
        })
    }
}

/// A task of the pool, as last looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// It goes on.
    Pending,
    /// It ended well.
    Success,
    /// It failed with these words.
    Failed(CallError),
    /// The pool does not know it any more: its outcome must be looked up on the VM.
    Gone,
}

/// The VM as it is now.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Its record.
    pub vm: VmRecord,
    /// Its metrics.
    pub metrics: VmMetrics,
    /// Since when this server has seen this domid.
    pub domid_since: Timestamp,
    /// The task that the effect waits for.
    pub task: Option<TaskState>,
    /// Addresses that the guest agent tells (read only for E13).
    pub guest_addresses: Vec<String>,
    /// The guest accepts connections on the profile's TCP port (tried only for E13).
    pub answers: bool,
}

impl Observed {
    /// Halted, and nothing is going on that may change that.
    pub fn is_halted(&self) -> bool {
        self.vm.power_state == PowerState::Halted
    }

    /// An operation is running on the VM.
    pub fn is_busy(&self) -> bool {
        !self.vm.current_operations.is_empty()
    }
}

/// The next thing to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Plan {
    /// The effect holds; store the outcome.
    Done(Outcome),
    /// Make this call, then look again.
    Call(Call),
    /// Derive the attempt's tokens and store them (E7).
    Arm,
    /// Store that Halted was seen (E9).
    SeenHalted,
    /// What this effect builds on holds no more: E0's verdict is too old for E1, or E11's restore was forgotten before
    /// E14.
    LookAgain,
    /// Look again at this time, or when something happens.
    Wait(Timestamp),
    /// The job fails; the way back begins.
    Fail(Reason, String),
    /// Only a person can settle it.
    Park(Reason, String, Vec<Difference>),
}

/// How soon to look again while something is under way.
pub const SOON: Duration = Duration::from_millis(500);

/// The longest pause between tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// Says the next thing for the effect that `job` is at. E0 has a way of its own (`preflight`).
pub fn plan(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if let Some(plan) = after_refusal(effect, job, trail, now) {
        return plan;
    }
    if needs_claim(effect, job) && !holds_claim(job, seen) {
        return recovery::without_claim(effect, job, seen);
    }
    match effect {
        Effect::Preflight => Plan::Fail(Reason::PoolRefused, "E0 was asked of the wrong planner".into()),
        Effect::Claim => claim(job, seen, trail, now),
        Effect::Sync => sync(trail, now),
        Effect::Stop => stop(job, seen, trail, now),
        Effect::Actions | Effect::Order | Effect::Flip => flip(effect, job, seen),
        Effect::Arm => Plan::Arm,
        Effect::Start => starting::hvm(job, seen, trail, now),
        Effect::Completion => completion::completion(job, seen, now),
        Effect::Disarm => recovery::disarm(job, seen, trail, now),
        Effect::Restore => recovery::restore(job, seen, trail, now),
        Effect::StartPv => starting::pv(job, seen, trail, now),
        Effect::Evidence => evidence(job, seen, now),
        Effect::Release => release(job, seen),
    }
}

/// Effects that change the VM, or build on its being ours.
fn needs_claim(effect: Effect, job: &Job) -> bool {
    let waived = job.resolution.is_some();
    match effect {
        Effect::Preflight | Effect::Claim | Effect::Release => false,
        Effect::Sync
        | Effect::Stop
        | Effect::Actions
        | Effect::Order
        | Effect::Flip
        | Effect::Arm
        | Effect::Start
        | Effect::Completion
        | Effect::Disarm
        | Effect::Restore
        | Effect::StartPv
        | Effect::Evidence => !waived,
    }
}

/// Our claim stands in the VM.
pub fn holds_claim(job: &Job, seen: &Observed) -> bool {
    job.claim.as_ref().is_some_and(|claim| claim.stands_in(&seen.vm))
}

/// What a refused or lost call means for the effect: a pause, the end, or nothing (look at the VM).
fn after_refusal(effect: Effect, job: &Job, trail: &Trail, now: Timestamp) -> Option<Plan> {
    let (at, call, CallResult::Failed(error)) = trail.last()? else { return None };
    let reads_its_own = matches!(call, Call::CleanShutdown | Call::Sync);
    if reads_its_own || matches!(effect, Effect::Start | Effect::StartPv) {
        return None;
    }
    let failures =
        trail.calls.iter().filter(|(_, _, result)| matches!(result, CallResult::Failed(_))).count();
    let again = *at + backoff(failures);
    let detail = error.to_string();
    match error.class() {
        Class::Permanent => Some(give_up(job, reason_of(error), detail)),
        // Look and decide anew; but not faster and faster when no answer comes at all.
        Class::Observe | Class::Relogin | Class::Redirect if failures > 2 && past(job, now) => {
            Some(give_up(job, Reason::GaveUp, detail))
        }
        Class::Observe | Class::Relogin | Class::Redirect => {
            (failures > 2 && now < again).then_some(Plan::Wait(again))
        }
        Class::Retry | Class::SlowRetry
            if past(job, now) && !matches!(error, CallError::Unreachable { .. }) =>
        {
            Some(give_up(job, Reason::GaveUp, detail))
        }
        Class::Retry | Class::SlowRetry => (now < again).then_some(Plan::Wait(again)),
    }
}

/// The effect's own deadline is over.
pub fn past(job: &Job, now: Timestamp) -> bool {
    job.intent.is_some_and(|intent| now >= intent.at + job.deadlines.effect)
}

/// Ahead, a failure starts the way back; on the way back it takes a person.
pub fn give_up(job: &Job, reason: Reason, detail: String) -> Plan {
    if job.state == State::Undoing {
        Plan::Park(reason, detail, Vec::new())
    } else {
        Plan::Fail(reason, detail)
    }
}

/// The pause after the `n`th failure in a row.
pub fn backoff(failures: usize) -> Duration {
    let doubled = u32::try_from(failures.saturating_sub(1).min(5)).unwrap_or(5);
    Duration::from_secs(1).saturating_mul(1 << doubled).min(LONGEST_BACKOFF)
}

/// The reason that a permanent error stands for.
pub fn reason_of(error: &CallError) -> Reason {
    match error.failure().map(|failure| failure.code.as_str()) {
        Some("RBAC_PERMISSION_DENIED" | "PERMISSION_DENIED") => Reason::RightsMissing,
        Some("OPERATION_BLOCKED") => Reason::OperationBlocked,
        Some("VM_IS_PROTECTED") => Reason::HaProtected,
        Some(_) | None => Reason::PoolRefused,
    }
}

/// E1. Until the claim stands, anybody may use the VM: what E0 saw must still hold.
fn claim(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let Some(claim) = &job.claim else {
        return Plan::Fail(Reason::PoolRefused, "the job has no claim to write".into());
    };
    match Claim::find(&seen.vm) {
        Found::Claim(found) if found.nonce == claim.nonce => Plan::Done(Outcome::Claimed),
        Found::Absent if trail.calls.is_empty() && job.cleared_at.is_some_and(|at| now >= at + FRESH) => {
            Plan::LookAgain
        }
        Found::Absent if job.has_run_since(&seen.metrics.start_time) => Plan::Fail(
            Reason::StartedBySomeone,
            "the VM ran after it was looked at; it was not claimed and nothing was changed".into(),
        ),
        Found::Absent if seen.is_halted() || job.was_running => {
            Plan::Call(Call::AddToOtherConfig(CLAIM_KEY.into(), claim.text()))
        }
        Found::Absent => {
            Plan::Fail(Reason::StartedBySomeone, "the VM was started before it was claimed".into())
        }
        Found::Claim(found) => Plan::Fail(
            Reason::ClaimedByOther,
            format!("claimed by {} for job {} since {}", found.owner, found.job, found.since),
        ),
        Found::Stray(found) => Plan::Fail(
            Reason::ClaimedByOther,
            format!("it carries a claim made for VM {}: it is a copy of that one", found.vm_uuid),
        ),
        Found::Unreadable(why) => {
            Plan::Fail(Reason::ClaimedByOther, format!("its claim cannot be read: {why}"))
        }
    }
}

/// How long E0's verdict is built on without another look.
const FRESH: Duration = Duration::from_secs(60);

/// E2, and the end of E11: done once the pool said so, or said that this account may not.
pub fn sync(trail: &Trail, now: Timestamp) -> Plan {
    let tries = trail.calls.iter().filter(|(_, call, _)| *call == Call::Sync).count();
    let last = trail.calls.iter().rev().find(|(_, call, _)| *call == Call::Sync);
    match last {
        None => Plan::Call(Call::Sync),
        Some((_, _, CallResult::Ok { .. })) => Plan::Done(Outcome::Synced { durable: true }),
        Some((_, _, CallResult::Failed(error)))
            if error.class() == Class::Permanent || tries >= SYNC_TRIES =>
        {
            Plan::Done(Outcome::Synced { durable: false })
        }
        Some((at, _, CallResult::Failed(_))) => {
            let again = *at + backoff(tries);
            if now >= again { Plan::Call(Call::Sync) } else { Plan::Wait(again) }
        }
    }
}

/// Tries of one sync before the settle check takes its place.
const SYNC_TRIES: usize = 4;

/// E3.
fn stop(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if seen.is_halted() {
        return if seen.is_busy() { while_busy(job, seen, trail, now) } else { Plan::Done(Outcome::Stopped) };
    }
    if !job.was_running {
        return Plan::Fail(Reason::StartedBySomeone, "the VM was started while it was being claimed".into());
    }
    let clean_until = job.intent.map_or(now, |intent| intent.at) + job.deadlines.clean_shutdown;
    shut_down(seen, trail, now, clean_until, job.deadlines.effect).unwrap_or_else(|| cannot_stop(job, seen))
}

/// A clean shutdown until `clean_until`, then a hard one, each called again only when the last one surely ended.
/// `None`: hard ones have not helped for `limit`.
pub fn shut_down(
    seen: &Observed,
    trail: &Trail,
    now: Timestamp,
    clean_until: Timestamp,
    limit: Duration,
) -> Option<Plan> {
    let clean_refused = trail.calls.iter().any(|(_, call, result)| {
        *call == Call::CleanShutdown
            && matches!(result, CallResult::Failed(error) if error.class() == Class::Permanent)
    });
    let clean_failed = trail.last().is_some_and(|(_, call, _)| *call == Call::CleanShutdown)
        && matches!(seen.task, Some(TaskState::Failed(_)));
    let hards = trail.calls.iter().filter(|(_, call, _)| *call == Call::HardShutdown);
    let first_hard = hards.clone().next().map(|(at, _, _)| *at);
    if first_hard.is_some_and(|first| now >= first + limit) {
        return None;
    }
    let hard = now >= clean_until || clean_refused || clean_failed || first_hard.is_some();
    let wanted = if hard { Call::HardShutdown } else { Call::CleanShutdown };
    let pause = if hard { backoff(hards.count()) } else { SOON };
    Some(match (trail.last(), &seen.task) {
        // hard_shutdown may overtake a clean one.
        (Some((_, call, CallResult::Ok { .. })), Some(TaskState::Pending)) if *call == wanted => {
            Plan::Wait(now + SOON)
        }
        (Some((at, call, _)), _) if *call == wanted && now < *at + pause => Plan::Wait(now + SOON),
        (None, _) if seen.is_busy() && !hard => Plan::Wait(now + SOON),
        (Some(_) | None, _) => Plan::Call(wanted),
    })
}

/// The VM did not stop within the deadline.
pub fn cannot_stop(job: &Job, seen: &Observed) -> Plan {
    let why = match &seen.task {
        Some(TaskState::Failed(error)) => error.to_string(),
        Some(TaskState::Pending) => "hard_shutdown goes on and on".to_owned(),
        Some(TaskState::Success | TaskState::Gone) | None => "hard_shutdown has no effect".to_owned(),
    };
    give_up(job, Reason::GaveUp, format!("the VM cannot be stopped: {why}"))
}

/// Another operation runs on the VM: it is waited for, but not for ever.
pub fn while_busy(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if !trail.waited(job.deadlines.effect, now) {
        return Plan::Wait(now + SOON);
    }
    let operations: Vec<&str> = seen.vm.current_operations.values().map(String::as_str).collect();
    let detail = format!("the VM is busy with {} and does not get free", operations.join(", "));
    give_up(job, Reason::Busy, detail)
}

/// E4, E5, E6: never while the VM runs, never over a person's change.
fn flip(effect: Effect, job: &Job, seen: &Observed) -> Plan {
    let Some(claim) = &job.claim else {
        return Plan::Fail(Reason::ClaimLost, "the job has no claim".into());
    };
    if !seen.is_halted() {
        return Plan::Fail(Reason::StartedBySomeone, "the VM was started before the flip".into());
    }
    if let Some(difference) = settings::stranger_value(&seen.vm, &claim.touched) {
        return Plan::Fail(Reason::SettingsChanged, describe(&difference));
    }
    let wanted = |field: &Field| match field {
        Field::ActionsAfterShutdown | Field::ActionsAfterReboot | Field::ActionsAfterCrash => {
            effect == Effect::Actions
        }
        Field::BootParam(_) | Field::Platform(_) => effect == Effect::Order,
        Field::DomainType | Field::HvmBootPolicy => effect == Effect::Flip,
        Field::PvBootloader => false,
    };
    match settings::way_there(&seen.vm, &claim.touched, wanted) {
        Some(call) => Plan::Call(call),
        None if effect == Effect::Actions => Plan::Done(Outcome::ActionsSet),
        None if effect == Effect::Order => Plan::Done(Outcome::OrderSet),
        None => Plan::Done(Outcome::Flipped),
    }
}

/// A difference in words.
pub fn describe(difference: &Difference) -> String {
    let show = |value: &Option<String>| {
        value.as_ref().map_or_else(|| "absent".to_owned(), |text| format!("\"{text}\""))
    };
    format!(
        "{} is {}; saved {}, written {}",
        difference.field,
        show(&difference.now),
        show(&difference.saved),
        show(&difference.written)
    )
}

/// The running domain is of the type that the job leaves the VM with, by the newest field that the pool has.
pub fn runs_as_asked(job: &Job, seen: &Observed) -> bool {
    let hvm = match (&seen.metrics.current_domain_type, seen.metrics.hvm) {
        (Some(kind), _) if kind != "unspecified" => kind == "hvm",
        (_, Some(hvm)) => hvm,
        // Old pools tell neither: our own start, with the policy read back before it, and still the same.
        (_, None) => !seen.vm.is_pv(),
    };
    hvm == (job.aim() == Aim::InstalledHvm)
}

/// E13.
fn evidence(job: &Job, seen: &Observed, now: Timestamp) -> Plan {
    if job.profile.kind == ProfileKind::Rescue {
        return Plan::Done(Outcome::EvidenceSeen(Evidence::None));
    }
    let since = job.pv_start.as_ref().and_then(|start| start.at).unwrap_or(job.created);
    let right = runs_as_asked(job, seen);
    if right && job.booted_at.is_some() {
        let strong = if job.options.stay_hvm { Evidence::Hvm } else { Evidence::Pv };
        return Plan::Done(Outcome::EvidenceSeen(strong));
    }
    let runs = seen.vm.power_state == PowerState::Running;
    let weak = match job.profile.evidence {
        EvidenceKind::Report => false,
        EvidenceKind::Lease => job.signs.get(&crate::boot::sink::Sign::Lease).is_some_and(|&at| at >= since),
        EvidenceKind::Agent => !seen.guest_addresses.is_empty(),
        EvidenceKind::Tcp(_) => seen.answers,
        EvidenceKind::None => true,
    };
    let deadline = since + job.deadlines.evidence;
    if right && runs && weak {
        return Plan::Done(Outcome::EvidenceSeen(Evidence::Weak));
    }
    if now >= deadline {
        return Plan::Done(Outcome::EvidenceSeen(Evidence::None));
    }
    Plan::Wait(deadline.min(now + job.deadlines.poll))
}

/// E14: the mark of a success first, the claim last, and only while what E11 put back still stands.
fn release(job: &Job, seen: &Observed) -> Plan {
    if job.resolution == Some(Resolution::Abandon) || !holds_claim(job, seen) {
        return Plan::Done(Outcome::Released);
    }
    if recovery::is_forgotten(job, seen) {
        return Plan::LookAgain;
    }
    let succeeds = job.ending.is_none_or(|ending| ending.state == State::Succeeded);
    let installed = job.profile.kind == ProfileKind::Install && succeeds && job.evidence != Evidence::None;
    if installed {
        let mark = serde_json::json!({ "job": job.id, "attempt": job.attempt }).to_string();
        match seen.vm.other_config.get(INSTALLED_KEY) {
            Some(text) if *text == mark => {}
            Some(_) => return Plan::Call(Call::RemoveFromOtherConfig(INSTALLED_KEY.into())),
            None => return Plan::Call(Call::AddToOtherConfig(INSTALLED_KEY.into(), mark)),
        }
    }
    Plan::Call(Call::RemoveFromOtherConfig(CLAIM_KEY.into()))
}

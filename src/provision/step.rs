//! What an event makes of a job: one table, state × event, total. Pure. The state stands outside, the event inside;
//! no wildcard over our own enums, so that a new state or event breaks the build here.
//!
//! An event that does not fit (an outcome of an effect that the job is no longer at, a late report) leaves the job as
//! it is, but for a line in its log.

mod heard;

pub use self::heard::ANSWER_FETCHES;
use self::heard::{answer_fetched, booted, late, ready, reported, sign_seen};
pub use super::event::{Channel, Event, Outcome};
use super::{
    job::{Difference, Effect, Ending, Evidence, GateState, Intent, Job, Resolution, StartRecord, State},
    reason::Reason,
};
use crate::{clock::Timestamp, config::ProfileKind};

/// A settle check comes this long after the end of a job that wrote a claim. The coordinator writes its database within
/// five minutes; E11's sync makes the settings durable where the account may sync, but not E14's removal of the claim.
pub const SETTLE_AFTER: std::time::Duration = std::time::Duration::from_secs(360);

/// The job after an event. Equal to the job before when the event has no effect.
pub fn step(job: &Job, event: &Event, now: Timestamp) -> Job {
    let mut next = job.clone();
    match job.state {
        State::Queued => queued(&mut next, event, now),
        State::Preparing | State::Flipping | State::Booting | State::Installing => {
            ahead(&mut next, event, now)
        }
        State::Restoring | State::Starting | State::Verifying => after(&mut next, event, now),
        State::Undoing => undoing(&mut next, event, now),
        State::NeedsOperator => parked(&mut next, event, now),
        State::Succeeded | State::Failed | State::Cancelled => ended(&mut next, event, now),
    }
    next
}

fn queued(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::Admitted => {
            job.slot = true;
            job.cursor = Some(Effect::Preflight);
            job.enter(State::Preparing, now);
        }
        Event::Cancel => {
            end(job, State::Cancelled, Some(Reason::CancelledByOperator), "before it began", now)
        }
        Event::Failed(reason, detail) => end(job, State::Failed, Some(*reason), detail, now),
        Event::Waiting(why) => job.waiting.clone_from(why),
        Event::Sign(_) | Event::Report(_) | Event::Ready(..) | Event::Booted(_) | Event::AnswerFetched => {}
        Event::Intended(..)
        | Event::TaskKnown(_)
        | Event::Done(_)
        | Event::Outdated
        | Event::Finish
        | Event::Parked(..)
        | Event::SafeAgain
        | Event::SeenHalted
        | Event::Retry
        | Event::Resolve(_)
        | Event::Settled
        | Event::Unsettled(_) => {}
    }
}

/// Preparing, Flipping, Booting, Installing: a failure or a cancel begins the way back.
fn ahead(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::Intended(effect, start) => intend(job, *effect, start.as_ref(), now),
        Event::TaskKnown(task) => task_known(job, task),
        Event::Done(outcome) => advance(job, outcome, now),
        Event::Failed(reason, detail) => undo(job, State::Failed, *reason, detail, now),
        Event::Outdated => {
            if job.cursor == Some(Effect::Claim) {
                go_to(job, Effect::Preflight);
            }
        }
        Event::Parked(reason, detail, differences) => park(job, *reason, detail, differences, now),
        Event::Cancel => undo(job, State::Cancelled, Reason::CancelledByOperator, "on request", now),
        Event::Finish => finish(job, now),
        Event::Sign(sign) => sign_seen(job, *sign, now),
        Event::AnswerFetched => answer_fetched(job, now),
        Event::Report(stage) => reported(job, stage, now),
        Event::Ready(stage, document) => ready(job, stage, document.as_deref(), now),
        Event::SeenHalted => job.halted_at = job.halted_at.or(Some(now)),
        Event::Waiting(why) => job.waiting.clone_from(why),
        // E0 met a claim of an earlier attempt: that one is undone first.
        Event::Unsettled(claim) if job.cursor == Some(Effect::Preflight) => {
            job.claim = Some(claim.as_ref().clone());
            job.ending = Some(Ending { state: State::Queued, reason: None });
            job.note(
                now,
                format!("the VM carries the claim of attempt {}: it is put back first", claim.attempt),
            );
            begin_undo(job, now);
        }
        Event::Booted(_)
        | Event::Admitted
        | Event::SafeAgain
        | Event::Retry
        | Event::Resolve(_)
        | Event::Settled
        | Event::Unsettled(_) => {}
    }
}

/// Restoring, Starting, Verifying: the installation is complete; a cancel waits for the restore by going through it.
fn after(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::Intended(effect, start) => intend(job, *effect, start.as_ref(), now),
        Event::TaskKnown(task) => task_known(job, task),
        Event::Done(outcome) => advance(job, outcome, now),
        Event::Failed(reason, detail) => undo(job, State::Failed, *reason, detail, now),
        Event::Parked(reason, detail, differences) => park(job, *reason, detail, differences, now),
        Event::Cancel => undo(job, State::Cancelled, Reason::CancelledByOperator, "on request", now),
        Event::Sign(sign) => sign_seen(job, *sign, now),
        Event::Report(stage) | Event::Ready(stage, _) => late(job, &stage.name, now),
        Event::Booted(stage) => booted(job, stage, now),
        Event::Waiting(why) => job.waiting.clone_from(why),
        Event::Outdated => forgotten(job, now),
        Event::Admitted
        | Event::Finish
        | Event::SafeAgain
        | Event::SeenHalted
        | Event::AnswerFetched
        | Event::Retry
        | Event::Resolve(_)
        | Event::Settled
        | Event::Unsettled(_) => {}
    }
}

fn undoing(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::Intended(effect, start) => intend(job, *effect, start.as_ref(), now),
        Event::TaskKnown(task) => task_known(job, task),
        Event::Done(outcome) => advance_undo(job, outcome, now),
        Event::Failed(reason, detail) | Event::Parked(reason, detail, _) if *reason == Reason::VmGone => {
            end(job, State::Failed, Some(Reason::VmGone), detail, now);
        }
        Event::Failed(reason, detail) => park(job, *reason, detail, &[], now),
        Event::Parked(reason, detail, differences) => park(job, *reason, detail, differences, now),
        Event::Report(stage) | Event::Ready(stage, _) => late(job, &stage.name, now),
        Event::Waiting(why) => job.waiting.clone_from(why),
        Event::Cancel if job.options.keep_hvm_seconds.is_some() => {
            job.options.keep_hvm_seconds = None;
            job.note(now, "cancel: it is held up for debugging no longer");
        }
        Event::Cancel if goes_on(job) => {
            let reason = Some(Reason::CancelledByOperator);
            job.ending = Some(Ending { state: State::Cancelled, reason });
            job.note(now, "cancel: it is put back, and does not go on then");
        }
        Event::Cancel => job.note(now, "cancel: it is being undone already"),
        Event::Sign(sign) => sign_seen(job, *sign, now),
        Event::Outdated => forgotten(job, now),
        Event::Booted(_)
        | Event::Admitted
        | Event::Finish
        | Event::SafeAgain
        | Event::SeenHalted
        | Event::AnswerFetched
        | Event::Retry
        | Event::Resolve(_)
        | Event::Settled
        | Event::Unsettled(_) => {}
    }
}

fn parked(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::SafeAgain => {
            job.note(now, "safe again: the way back goes on");
            begin_undo(job, now);
        }
        Event::Resolve(resolution) => {
            job.resolution = Some(*resolution);
            job.note(now, format!("resolved by an operator: {resolution:?}"));
            match resolution {
                Resolution::Restore => begin_undo(job, now),
                Resolution::Accept => {
                    job.ending = Some(Ending { state: State::Failed, reason: Some(Reason::Accepted) });
                    begin_undo(job, now);
                }
                Resolution::Abandon => {
                    let detail = job.detail.clone();
                    end(job, State::Failed, Some(Reason::Abandoned), &detail, now);
                }
            }
        }
        Event::Failed(reason, detail) if *reason == Reason::VmGone => {
            end(job, State::Failed, Some(Reason::VmGone), detail, now);
        }
        Event::Report(stage) | Event::Ready(stage, _) => late(job, &stage.name, now),
        Event::Waiting(why) => job.waiting.clone_from(why),
        Event::Cancel => job.note(now, "cancel: it waits for a person; see `jobs resolve`"),
        Event::Admitted
        | Event::Intended(..)
        | Event::TaskKnown(_)
        | Event::Done(_)
        | Event::Failed(..)
        | Event::Outdated
        | Event::Finish
        | Event::Parked(..)
        | Event::SeenHalted
        | Event::Sign(_)
        | Event::AnswerFetched
        | Event::Booted(_)
        | Event::Retry
        | Event::Settled
        | Event::Unsettled(_) => {}
    }
}

fn ended(job: &mut Job, event: &Event, now: Timestamp) {
    match event {
        Event::Retry if matches!(job.state, State::Failed | State::Cancelled) => again(job, now),
        Event::Settled => job.settle_at = None,
        Event::Unsettled(claim) => {
            job.settle_at = None;
            job.ending = Some(Ending { state: job.state, reason: job.reason });
            job.note(
                now,
                format!("the coordinator lost writes: the claim of attempt {} is back", claim.attempt),
            );
            job.claim = Some(claim.as_ref().clone());
            begin_undo(job, now);
        }
        Event::Report(stage) | Event::Ready(stage, _) | Event::Booted(stage) => {
            late(job, &stage.name, now);
        }
        Event::Waiting(why) => job.waiting.clone_from(why),
        Event::Retry
        | Event::Admitted
        | Event::Intended(..)
        | Event::TaskKnown(_)
        | Event::Done(_)
        | Event::Failed(..)
        | Event::Outdated
        | Event::Finish
        | Event::Parked(..)
        | Event::SafeAgain
        | Event::SeenHalted
        | Event::Sign(_)
        | Event::AnswerFetched
        | Event::Cancel
        | Event::Resolve(_) => {}
    }
}

/// A rescue is over when an operator says so; an installation is not theirs to end but by a cancel.
fn finish(job: &mut Job, now: Timestamp) {
    if job.profile.kind == ProfileKind::Rescue && !job.finished {
        job.finished = true;
        job.note(now, "finish: on request");
    }
}

fn intend(job: &mut Job, effect: Effect, start: Option<&StartRecord>, now: Timestamp) {
    if job.cursor != Some(effect) {
        return;
    }
    job.intent = Some(Intent { effect, at: now });
    match effect {
        Effect::Start => job.start = start.cloned(),
        Effect::StartPv => job.pv_start = start.cloned(),
        Effect::Preflight
        | Effect::Claim
        | Effect::Sync
        | Effect::Stop
        | Effect::Actions
        | Effect::Order
        | Effect::Flip
        | Effect::Arm
        | Effect::Completion
        | Effect::Disarm
        | Effect::Restore
        | Effect::Evidence
        | Effect::Release => {}
    }
}

fn task_known(job: &mut Job, task: &str) {
    let start = match job.cursor {
        Some(Effect::Start) => job.start.as_mut(),
        Some(Effect::StartPv) => job.pv_start.as_mut(),
        Some(_) | None => None,
    };
    if let Some(start) = start {
        start.task = Some(task.to_owned());
    }
}

fn go_to(job: &mut Job, effect: Effect) {
    job.cursor = Some(effect);
    job.intent = None;
    job.waiting = None;
}

/// The way ahead, E0 to E14.
fn advance(job: &mut Job, outcome: &Outcome, now: Timestamp) {
    if job.cursor != Some(outcome.effect()) {
        return;
    }
    match outcome {
        Outcome::Cleared(cleared) => {
            job.mac = cleared.mac;
            job.disk.clone_from(&cleared.disk);
            job.was_running = cleared.running;
            job.cleared_at = Some(now);
            job.cleared_start = Some(cleared.start_time.clone());
            job.xen = cleared.xen;
            job.claim = Some(cleared.claim.clone());
            go_to(job, Effect::Claim);
        }
        Outcome::Claimed => go_to(job, Effect::Sync),
        Outcome::Synced { durable } => {
            note_sync(job, *durable, now);
            go_to(job, Effect::Stop);
        }
        Outcome::Stopped => {
            go_to(job, Effect::Actions);
            job.enter(State::Flipping, now);
        }
        Outcome::ActionsSet => go_to(job, Effect::Order),
        Outcome::OrderSet => go_to(job, Effect::Flip),
        Outcome::Flipped => go_to(job, Effect::Arm),
        Outcome::Armed(tokens) => {
            job.tokens = Some(*tokens);
            job.gate = if job.profile.boot.is_some() { GateState::Booting } else { GateState::Closed };
            go_to(job, Effect::Start);
            job.enter(State::Booting, now);
        }
        Outcome::Started { start_time, domid } => {
            started(job.start.as_mut(), start_time, *domid, now);
            go_to(job, Effect::Completion);
            if job.gate == GateState::Installing {
                job.enter(State::Installing, now); // the guest was faster than our look
            }
        }
        Outcome::Completed => {
            job.gate = GateState::Closed;
            go_to(job, Effect::Disarm);
            job.enter(State::Restoring, now);
        }
        Outcome::Disarmed { .. } => {
            job.slot = false;
            go_to(job, Effect::Restore);
        }
        Outcome::Restored { durable } => {
            note_sync(job, *durable, now);
            // Recovery mode leaves a VM as it found it: Halted, or running again.
            let starts = job.profile.kind == ProfileKind::Install || job.was_running;
            go_to(job, if starts { Effect::StartPv } else { Effect::Release });
            job.enter(if starts { State::Starting } else { State::Verifying }, now);
        }
        Outcome::PvStarted { start_time, domid } => {
            started(job.pv_start.as_mut(), start_time, *domid, now);
            go_to(job, Effect::Evidence);
            job.enter(State::Verifying, now);
        }
        Outcome::StartGivenUp(_) => {}
        Outcome::EvidenceSeen(evidence) => {
            job.evidence = *evidence;
            go_to(job, Effect::Release);
        }
        Outcome::Released => {
            let (ending, detail) = verdict(job);
            end(job, ending.state, ending.reason, detail, now);
        }
    }
}

/// How a job ends that went all the way.
const fn verdict(job: &Job) -> (Ending, &'static str) {
    match (job.profile.kind, job.evidence) {
        (ProfileKind::Install, Evidence::None) => (
            Ending { state: State::Failed, reason: Some(Reason::NoEvidence) },
            "it started as PV and was not heard of",
        ),
        (ProfileKind::Install, Evidence::Weak | Evidence::Pv | Evidence::Hvm) | (ProfileKind::Rescue, _) => {
            (Ending { state: State::Succeeded, reason: None }, "")
        }
    }
}

/// E14 found that a coordinator forgot the restore: it is done again, and the end stays what it was.
fn forgotten(job: &mut Job, now: Timestamp) {
    if job.cursor != Some(Effect::Release) {
        return;
    }
    if job.ending.is_none() {
        let (ending, detail) = verdict(job);
        job.ending = Some(ending);
        detail.clone_into(&mut job.detail);
    }
    job.note(now, "the coordinator lost the restore; it is done again");
    begin_undo(job, now);
}

fn note_sync(job: &mut Job, durable: bool, now: Timestamp) {
    if !durable {
        job.note(now, "the pool's database was not synced; the VM is looked at again after the end");
    }
}

fn started(start: Option<&mut StartRecord>, start_time: &str, domid: i64, now: Timestamp) {
    if let Some(start) = start {
        start.domid = Some(domid);
        start.seen = Some(start_time.to_owned());
        // The pool's own word on when, held between our intent and our look: its clock may be off.
        let told = Timestamp::from_xenapi(start_time).unwrap_or(now);
        start.at = Some(told.clamp(start.intended.min(now), now));
    }
}

/// The way back: E10, E11, E12 (a VM that we shut down and that never netbooted), E14.
fn advance_undo(job: &mut Job, outcome: &Outcome, now: Timestamp) {
    if job.cursor != Some(outcome.effect()) {
        return;
    }
    match outcome {
        Outcome::Disarmed { unstarted } => {
            job.slot = false;
            if *unstarted {
                job.start = None;
            }
            go_to(job, Effect::Restore);
        }
        Outcome::Restored { durable } => {
            note_sync(job, *durable, now);
            let as_it_was = job.was_running && job.start.is_none() && job.resolution.is_none();
            go_to(job, if as_it_was { Effect::StartPv } else { Effect::Release });
        }
        Outcome::PvStarted { start_time, domid } => {
            started(job.pv_start.as_mut(), start_time, *domid, now);
            go_to(job, Effect::Release);
        }
        Outcome::StartGivenUp(why) => {
            job.note(now, format!("it could not be started as it was: {why}"));
            go_to(job, Effect::Release);
        }
        Outcome::Released if goes_on(job) => again(job, now),
        Outcome::Released => {
            let ending = job.ending.unwrap_or(Ending { state: State::Failed, reason: job.reason });
            let detail = job.detail.clone();
            end(job, ending.state, ending.reason, &detail, now);
        }
        Outcome::Cleared(_)
        | Outcome::Claimed
        | Outcome::Synced { .. }
        | Outcome::Stopped
        | Outcome::ActionsSet
        | Outcome::OrderSet
        | Outcome::Flipped
        | Outcome::Armed(_)
        | Outcome::Started { .. }
        | Outcome::Completed
        | Outcome::EvidenceSeen(_) => {}
    }
}

/// What an earlier attempt left is undone, and then the retry goes on.
fn goes_on(job: &Job) -> bool {
    job.ending.is_some_and(|ending| ending.state == State::Queued)
}

/// Another attempt, with tokens of its own.
fn again(job: &mut Job, now: Timestamp) {
    job.next_attempt();
    job.note(now, format!("attempt {}", job.attempt));
    job.enter(State::Queued, now);
}

/// A failure or a cancel: the way back, or the end where nothing was begun.
fn undo(job: &mut Job, state: State, reason: Reason, detail: &str, now: Timestamp) {
    let unclaimed = job.claim.is_none();
    let not_ours = job.cursor == Some(Effect::Claim) && reason == Reason::ClaimedByOther;
    if unclaimed || not_ours || reason == Reason::VmGone {
        let state = if reason == Reason::VmGone { State::Failed } else { state };
        return end(job, state, Some(reason), detail, now);
    }
    if refuses_start(reason) {
        match job.cursor {
            Some(Effect::Start) => job.start = None,
            Some(Effect::StartPv) => job.pv_start = None,
            Some(_) | None => {}
        }
    }
    job.ending = Some(Ending { state, reason: Some(reason) });
    job.reason = Some(reason);
    detail.clone_into(&mut job.detail);
    job.note(now, format!("{reason}: {detail}"));
    begin_undo(job, now);
}

/// Reasons by which E8 and E12 say that no domain came of our call: none runs, or one of somebody else's.
const fn refuses_start(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::StartedBySomeone
            | Reason::SettingsChanged
            | Reason::NoHost
            | Reason::RightsMissing
            | Reason::OperationBlocked
            | Reason::HaProtected
            | Reason::StartFailed
            | Reason::BootloaderFailed
    )
}

fn begin_undo(job: &mut Job, now: Timestamp) {
    job.gate = GateState::Closed;
    go_to(job, Effect::Disarm);
    job.differences.clear();
    if let Some(ending) = job.ending {
        job.reason = ending.reason;
    }
    job.enter(State::Undoing, now);
}

fn park(job: &mut Job, reason: Reason, detail: &str, differences: &[Difference], now: Timestamp) {
    if job.ending.is_none() {
        job.ending = Some(Ending { state: State::Failed, reason: Some(reason) });
    }
    job.reason = Some(reason);
    detail.clone_into(&mut job.detail);
    job.differences = differences.to_vec();
    job.slot = false;
    job.resolution = None;
    job.cursor = None;
    job.intent = None;
    job.gate = GateState::Closed;
    job.note(now, format!("needs an operator: {reason}: {detail}"));
    job.enter(State::NeedsOperator, now);
}

fn end(job: &mut Job, state: State, reason: Option<Reason>, detail: &str, now: Timestamp) {
    job.cursor = None;
    job.intent = None;
    job.slot = false;
    job.gate = GateState::Closed;
    job.waiting = None;
    job.ending = None;
    job.reason = reason;
    detail.clone_into(&mut job.detail);
    let nothing_to_find = matches!(reason, Some(Reason::VmGone | Reason::Abandoned));
    let looks_again = job.claim.is_some() && !nothing_to_find;
    job.settle_at = looks_again.then(|| now + SETTLE_AFTER);
    if let Some(reason) = reason {
        job.note(now, format!("{state}: {reason} {detail}"));
    }
    job.enter(state, now);
}

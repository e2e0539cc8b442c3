//! E8 and E12: starting the VM once. Halted alone never proves that a start did not happen: the call is made again
//! only when start_time is as the intent has it, no task and no operation is live, no sign of the guest was seen, and
//! the pool had time to write the new start_time.

use std::time::Duration;

use super::{
    job::{Job, StartRecord, State},
    plan::{
        Call, CallResult, Observed, Plan, SOON, TaskState, Trail, backoff, give_up, past, reason_of,
        while_busy,
    },
    reason::Reason,
    settings::{self, Aim, Field},
    step::Outcome,
};
use crate::{
    clock::Timestamp,
    xen::{CallError, Class, error::bootloader_message, records::PowerState},
};

/// VM_metrics.start_time is written by an event after the start; until this long after a call (or after an intent
/// whose call may have been made) an unchanged start_time says nothing.
pub(super) const METRICS_LAG: Duration = Duration::from_secs(5);

/// After a task's success, start_time must change within this; then the start counts without it.
const METRICS_WAIT: Duration = Duration::from_secs(60);

/// E8: the HVM start.
pub fn hvm(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let Some(start) = &job.start else {
        return Plan::Fail(Reason::StartFailed, "the intent of the start is missing".into());
    };
    let domid = seen.vm.domid;
    let done = |start_time: &str| Plan::Done(Outcome::Started { start_time: start_time.to_owned(), domid });
    let signs = job.signs.values().any(|&at| at > start.intended);
    let plan = once(job, start, seen, trail, now, Start { paused: false, signs }, done);
    let flipped = job
        .claim
        .as_ref()
        .is_some_and(|claim| settings::way_there(&seen.vm, &claim.touched, Field::is_flipped).is_none());
    if matches!(plan, Plan::Call(Call::Start { .. })) && !flipped {
        return Plan::Fail(Reason::SettingsChanged, "its boot settings were changed before the start".into());
    }
    plan
}

/// E12: the PV start, paused first (a bootloader error comes back to the caller), then unpaused. In Undoing: the VM
/// that we shut down and that never netbooted is started as it was.
pub fn pv(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let Some(start) = &job.pv_start else {
        return Plan::Fail(Reason::PvStartFailed, "the intent of the start is missing".into());
    };
    if seen.vm.power_state == PowerState::Paused {
        // start_time may be new already while the pool still works on the start: it is not done before it is unpaused.
        return if seen.is_busy() { while_busy(job, seen, trail, now) } else { unpause(job, trail, now) };
    }
    let domid = seen.vm.domid;
    let done = |start_time: &str| Plan::Done(Outcome::PvStarted { start_time: start_time.to_owned(), domid });
    let plan = once(job, start, seen, trail, now, Start { paused: true, signs: false }, done);
    let changed = "somebody changed its type before the start".to_owned();
    let starts = matches!(plan, Plan::Call(Call::Start { .. }));
    match starts && seen.vm.is_pv() == (job.aim() == Aim::InstalledHvm) {
        true if job.state == State::Undoing => Plan::Done(Outcome::StartGivenUp(changed)),
        true => Plan::Fail(Reason::SettingsChanged, changed),
        false => plan,
    }
}

fn unpause(job: &Job, trail: &Trail, now: Timestamp) -> Plan {
    let failure = |(at, call, result): &(Timestamp, Call, CallResult)| match result {
        CallResult::Failed(error) if *call == Call::Unpause => Some((*at, error.clone())),
        CallResult::Failed(_) | CallResult::Ok { .. } => None,
    };
    let failures: Vec<(Timestamp, CallError)> = trail.calls.iter().filter_map(failure).collect();
    let (Some((first, _)), Some((last, error))) = (failures.first(), failures.last()) else {
        return Plan::Call(Call::Unpause);
    };
    if error.class() == Class::Permanent || now >= *first + job.deadlines.pv_start {
        return give_up(job, Reason::PvStartFailed, format!("it was started paused, and {error}"));
    }
    let again = *last + backoff(failures.len());
    if now >= again { Plan::Call(Call::Unpause) } else { Plan::Wait(again) }
}

struct Start {
    paused: bool,
    signs: bool,
}

fn once(
    job: &Job,
    start: &StartRecord,
    seen: &Observed,
    trail: &Trail,
    now: Timestamp,
    wanted: Start,
    done: impl Fn(&str) -> Plan,
) -> Plan {
    let uncalled = trail.intended_here && trail.calls.is_empty();
    let refusal = refusal_of_all(seen, trail);
    let someone = || give_up(job, Reason::StartedBySomeone, "the VM was started by somebody else".into());
    let halts = seen.vm.power_state == PowerState::Halted;
    if seen.metrics.start_time != start.before {
        return match refusal {
            Some(error) if halts => refused(job, wanted.paused, &error),
            Some(_) => someone(),
            None if uncalled => someone(),
            None => done(&seen.metrics.start_time),
        };
    }
    match seen.vm.power_state {
        PowerState::Running | PowerState::Paused | PowerState::Suspended if uncalled || refusal.is_some() => {
            someone()
        }
        PowerState::Running | PowerState::Paused | PowerState::Suspended => {
            lagging(start, seen, trail, now, done)
        }
        PowerState::Halted => halted(job, start, seen, trail, now, wanted, done),
    }
}

/// The newest refusal, when every call of ours was answered, and answered with one: what runs is not ours.
fn refusal_of_all(seen: &Observed, trail: &Trail) -> Option<CallError> {
    let unpaused = trail.calls.iter().any(|(_, call, _)| *call == Call::Unpause);
    if !trail.intended_here || unpaused {
        return None;
    }
    let newest = trail.calls.len().checked_sub(1)?;
    let mut last = None;
    for (index, (_, _, result)) in trail.calls.iter().enumerate() {
        last = match (result, &seen.task) {
            (CallResult::Failed(error), _) => Some(error.clone()),
            // Another call followed, which it does only after the task of this one had failed.
            (CallResult::Ok { task: Some(_) }, _) if index < newest => last,
            (CallResult::Ok { task: Some(_) }, Some(TaskState::Failed(error))) => Some(error.clone()),
            (CallResult::Ok { .. }, _) => return None,
        };
        if last.as_ref().is_some_and(|error| !is_refusal(error)) {
            return None;
        }
    }
    last
}

/// The pool said that it did not start the VM. A cancelled task and xapi's catch-all say nothing.
fn is_refusal(error: &CallError) -> bool {
    let CallError::Failed { failure, .. } = error else { return false };
    failure.is("VM_BAD_POWER_STATE")
        || (!failure.is("INTERNAL_ERROR")
            && !failure.is("TASK_CANCELLED")
            && matches!(error.class(), Class::Retry | Class::SlowRetry | Class::Permanent))
}

/// It runs, and the pool has not written the new start_time yet.
fn lagging(
    start: &StartRecord,
    seen: &Observed,
    trail: &Trail,
    now: Timestamp,
    done: impl Fn(&str) -> Plan,
) -> Plan {
    let since = trail.last().map_or(start.intended, |(at, _, _)| *at);
    if now >= since + METRICS_WAIT { done(&seen.metrics.start_time) } else { Plan::Wait(now + SOON) }
}

fn halted(
    job: &Job,
    start: &StartRecord,
    seen: &Observed,
    trail: &Trail,
    now: Timestamp,
    wanted: Start,
    done: impl Fn(&str) -> Plan,
) -> Plan {
    let limit = if wanted.paused { job.deadlines.pv_start } else { job.deadlines.effect };
    if seen.is_busy() || seen.task == Some(TaskState::Pending) {
        let detail = format!("the start has not ended after {} s", limit.as_secs());
        return match trail.waited(limit, now) {
            true => give_up(job, Reason::GaveUp, detail),
            false => Plan::Wait(now + SOON),
        };
    }
    if seen.task == Some(TaskState::Success) || wanted.signs {
        // It started and halted again before start_time was written, which must come.
        return lagging(start, seen, trail, now, done);
    }
    let call = Plan::Call(Call::Start { paused: wanted.paused });
    let failed = match (&seen.task, trail.last()) {
        (Some(TaskState::Failed(error)), _) => Some(error),
        (_, Some((_, _, CallResult::Failed(error)))) => Some(error),
        (_, _) => None,
    };
    let last = trail.last().map(|(at, _, _)| *at);
    let Some(error) = failed else {
        // Nothing failed in this process: the first call, or one of which only the intent is known.
        let quiet_from = if trail.intended_here && trail.calls.is_empty() {
            now
        } else {
            last.unwrap_or(start.intended) + METRICS_LAG
        };
        return if now >= quiet_from { call } else { Plan::Wait(quiet_from) };
    };
    let failures = trail.calls.len();
    let over = if wanted.paused { now >= start.intended + limit } else { past(job, now) };
    match error.class() {
        Class::Observe | Class::Relogin | Class::Redirect => {
            let quiet_from = last.unwrap_or(start.intended) + METRICS_LAG.max(backoff(failures));
            match now >= quiet_from {
                true if over && failures > 2 => refused(job, wanted.paused, error),
                true => call,
                false => Plan::Wait(quiet_from),
            }
        }
        Class::Permanent => refused(job, wanted.paused, error),
        Class::Retry | Class::SlowRetry => {
            let again = last.unwrap_or(now) + backoff(failures);
            if over && !matches!(error, CallError::Unreachable { .. }) {
                refused(job, wanted.paused, error)
            } else if now >= again {
                call
            } else {
                Plan::Wait(again)
            }
        }
    }
}

/// The start failed for good. After the restore the VM is PV and Halted, so its claim can go: never parked.
fn refused(job: &Job, pv: bool, error: &CallError) -> Plan {
    if let Some(message) = error.failure().and_then(bootloader_message).filter(|_| pv) {
        return Plan::Fail(Reason::BootloaderFailed, message);
    }
    let named = reason_of(error);
    let reason = match (named, pv) {
        (Reason::PoolRefused, true) => Reason::PvStartFailed,
        (Reason::PoolRefused, false) if matches!(error.class(), Class::Retry | Class::SlowRetry) => {
            Reason::NoHost
        }
        (Reason::PoolRefused, false) => Reason::StartFailed,
        (named, _) => named,
    };
    let in_words = error.to_string();
    if job.state == State::Undoing {
        Plan::Done(Outcome::StartGivenUp(in_words))
    } else {
        Plan::Fail(reason, in_words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::tests::{at, job, observed};

    #[test]
    fn pv_start_is_not_done_before_it_is_unpaused() {
        let mut job = job("j1", 0);
        job.state = State::Starting;
        job.pv_start = Some(StartRecord {
            before: "then".to_owned(),
            domid_before: -1,
            intended: at(10),
            task: None,
            seen: None,
            domid: None,
            at: None,
        });
        let called = Trail {
            calls: vec![(at(10), Call::Start { paused: true }, CallResult::Ok { task: None })],
            intended_here: true,
            ..Trail::default()
        };
        let wait = Plan::Wait(at(11) + SOON);
        let done = Plan::Done(Outcome::PvStarted { start_time: "now".to_owned(), domid: 7 });
        for (power_state, operation, start_time, expected) in [
            (PowerState::Paused, Some("start"), "now", wait.clone()),
            (PowerState::Paused, Some("unpause"), "now", wait.clone()),
            (PowerState::Paused, None, "now", Plan::Call(Call::Unpause)),
            (PowerState::Paused, None, "then", Plan::Call(Call::Unpause)),
            (PowerState::Running, None, "then", wait),
            (PowerState::Running, None, "now", done),
        ] {
            let mut seen = observed(power_state, start_time);
            seen.vm.current_operations =
                operation.map(|name| ("task".to_owned(), name.to_owned())).into_iter().collect();
            let plan = pv(&job, &seen, &called, at(11));
            assert_eq!(plan, expected, "{power_state:?} {operation:?} {start_time}");
        }
    }
}

//! E10 and E11, in Restoring and in Undoing: the gate closed, the VM stopped if it is ours, the settings put back.
//! A VM that runs and is not ours is never stopped and never rewritten.

use super::{
    claim::Found,
    job::{Job, Resolution, StartRecord, State},
    plan::{
        Call, Observed, Plan, SOON, TaskState, Trail, cannot_stop, describe, give_up, holds_claim,
        runs_as_asked, shut_down, sync, while_busy,
    },
    reason::Reason,
    settings::{self, Aim, WayBack},
    starting::METRICS_LAG,
    step::Outcome,
};
use crate::{clock::Timestamp, xen::records::PowerState};

/// How long a start may stay in flight unseen, after the intent or the call.
const START_IN_FLIGHT: std::time::Duration = std::time::Duration::from_secs(5);

/// How long `bootflip restore --stop` tries to shut a VM down.
const STOP_LIMIT: std::time::Duration = std::time::Duration::from_secs(120);

/// How often a job that waits for a person tries a refused call again by itself.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_secs(1800);

/// E10. The gate was closed with the decision that led here.
pub fn disarm(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if seen.vm.power_state == PowerState::Halted {
        return halted(job, seen, trail, now);
    }
    if is_half_started(job, seen) {
        return stop(job, seen, trail, now);
    }
    match whose(job, seen, now) {
        Whose::Unsure(until) => return Plan::Wait(until),
        Whose::Ours => {
            return match held_until(job) {
                Some(until) if now < until => Plan::Wait(until.min(now + job.deadlines.poll)),
                Some(_) | None => stop(job, seen, trail, now),
            };
        }
        Whose::Theirs => {}
    }
    if is_at_target(job, seen) || is_our_pv(job, seen) {
        return Plan::Done(Outcome::Disarmed { unstarted: false });
    }
    if came_of_our_pv_start(job, seen) && !runs_as_asked(job, seen) {
        return stop(job, seen, trail, now);
    }
    let detail =
        "it runs in network boot mode, started by somebody else; shut it down and it is put back by itself";
    give_up(job, Reason::StartedBySomeone, detail.into())
}

fn stop(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    shut_down(seen, trail, now, now, job.deadlines.effect).unwrap_or_else(|| cannot_stop(job, seen))
}

/// E12's start came as far as a paused domain, which nobody has unpaused: it neither runs nor is off.
fn is_half_started(job: &Job, seen: &Observed) -> bool {
    seen.vm.power_state == PowerState::Paused
        && job.pv_start.as_ref().is_some_and(|start| start.seen.is_none())
}

/// What runs is the domain of our own E12, and this release takes new settings for the next start from a running VM
/// without harm (6.1 and 6.2 do not; `domain_type` came with 7.5): a coordinator that forgot the restore.
fn is_our_pv(job: &Job, seen: &Observed) -> bool {
    seen.vm.power_state == PowerState::Running
        && seen.vm.domain_type.is_some()
        && runs_as_asked(job, seen)
        && came_of_our_pv_start(job, seen)
}

/// The domain is that of our own E12. One that does not run as asked was built from a record that a coordinator had
/// forgotten the restore of.
fn came_of_our_pv_start(job: &Job, seen: &Observed) -> bool {
    let mark = job.pv_start.as_ref().and_then(|start| start.seen.as_deref());
    mark == Some(seen.metrics.start_time.as_str())
}

/// Halted: sure, once no start of ours can be under way any more.
fn halted(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if seen.is_busy() {
        return while_busy(job, seen, trail, now);
    }
    if seen.task == Some(TaskState::Pending) && !trail.waited(job.deadlines.effect, now) {
        return Plan::Wait(now + SOON);
    }
    let unseen = |start: &&StartRecord| start.seen.is_none();
    let in_flight = [&job.start, &job.pv_start].into_iter().flatten().filter(unseen);
    let sent = in_flight.map(|start| trail.start_sent.unwrap_or_default().max(start.intended)).max();
    match sent.map(|sent| sent + START_IN_FLIGHT) {
        Some(until) if now < until && job.state == State::Undoing => Plan::Wait(until),
        Some(_) | None => {
            let before = job.start.as_ref().filter(unseen).map(|start| &start.before);
            Plan::Done(Outcome::Disarmed { unstarted: before == Some(&seen.metrics.start_time) })
        }
    }
}

enum Whose {
    Ours,
    Theirs,
    /// Its start_time may not be written yet.
    Unsure(Timestamp),
}

/// Whether the domain that runs came of our HVM start.
fn whose(job: &Job, seen: &Observed, now: Timestamp) -> Whose {
    let Some(start) = &job.start else { return Whose::Theirs };
    let settled = seen.domid_since + METRICS_LAG;
    match &start.seen {
        Some(mark) if *mark != seen.metrics.start_time => Whose::Theirs,
        // A migration keeps start_time; a reboot writes it a little later.
        Some(_) if start.domid != Some(seen.vm.domid) && now < settled => Whose::Unsure(settled),
        Some(_) => Whose::Ours,
        // Halted when the intent was stored, under our claim, and running now: the call had its effect.
        None => Whose::Ours,
    }
}

/// `--on-failure keep-hvm`: until when a failed VM stays up.
fn held_until(job: &Job) -> Option<Timestamp> {
    let held = std::time::Duration::from_secs(job.options.keep_hvm_seconds?);
    let failed = job.ending.is_some_and(|ending| ending.state == State::Failed);
    job.intent.filter(|_| failed).map(|intent| intent.at + held)
}

/// Every touched setting equals its target.
pub fn is_at_target(job: &Job, seen: &Observed) -> bool {
    match &job.claim {
        Some(claim) => settings::way_back(&seen.vm, &claim.touched, job.aim(), false) == WayBack::AtTarget,
        None => true,
    }
}

/// After E11: a value that we wrote for the installation stands in the VM again. Only a coordinator that forgot the
/// restore does that. What xapi itself writes at a start says nothing.
pub fn is_forgotten(job: &Job, seen: &Observed) -> bool {
    let Some(claim) = &job.claim else { return false };
    let own = claim.touched.iter().filter(|(field, _)| !field.is_written_by_xapi());
    let own = own.map(|(field, entry)| (field.clone(), entry.clone())).collect();
    matches!(settings::way_back(&seen.vm, &own, job.aim(), false), WayBack::Next(_))
}

/// E11.
pub fn restore(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let Some(claim) = &job.claim else { return Plan::Done(Outcome::Restored { durable: true }) };
    let force = job.resolution == Some(Resolution::Restore);
    let next = match settings::way_back(&seen.vm, &claim.touched, job.aim(), force) {
        WayBack::Next(call) => call,
        WayBack::Differs(_) if job.resolution == Some(Resolution::Accept) => return synced(trail, now),
        WayBack::Differs(differences) => {
            let detail = differences.iter().map(describe).collect::<Vec<_>>().join("; ");
            return Plan::Park(Reason::SettingsChanged, detail, differences);
        }
        WayBack::AtTarget => return synced(trail, now),
    };
    if seen.vm.power_state != PowerState::Halted && !is_our_pv(job, seen) {
        return give_up(
            job,
            Reason::StartedBySomeone,
            "the VM was started before its settings were put back".into(),
        );
    }
    if seen.is_busy() {
        return while_busy(job, seen, trail, now);
    }
    Plan::Call(next)
}

fn synced(trail: &Trail, now: Timestamp) -> Plan {
    let plan = sync(trail, now);
    if let Plan::Done(Outcome::Synced { durable }) = plan {
        Plan::Done(Outcome::Restored { durable })
    } else {
        plan
    }
}

/// What to do when our claim does not stand in the VM (a person removed it, or the coordinator forgot it).
pub fn without_claim(effect: super::Effect, job: &Job, seen: &Observed) -> Plan {
    let whose = match super::claim::Claim::find(&seen.vm) {
        Found::Absent => "the claim is gone from the VM's other_config".to_owned(),
        Found::Claim(other) => format!("the VM carries a claim of {} for job {}", other.owner, other.job),
        Found::Stray(other) => format!("the VM carries a claim made for VM {}", other.vm_uuid),
        Found::Unreadable(why) => format!("the VM's claim cannot be read: {why}"),
    };
    if job.state != State::Undoing {
        return Plan::Fail(Reason::ClaimLost, whose);
    }
    if !is_at_target(job, seen) {
        return Plan::Park(Reason::ClaimLost, whose, Vec::new());
    }
    if effect == super::Effect::Disarm {
        Plan::Done(Outcome::Disarmed { unstarted: false })
    } else if effect == super::Effect::Restore {
        Plan::Done(Outcome::Restored { durable: true })
    } else if effect == super::Effect::StartPv {
        Plan::Done(Outcome::StartGivenUp(whose))
    } else {
        Plan::Fail(Reason::ClaimLost, whose)
    }
}

/// Whether a job in NeedsOperator may go on by itself: what it waited for is no longer so.
pub fn safe_again(job: &Job, seen: &Observed, now: Timestamp) -> bool {
    let parked_at = job.history.last().map_or(now, |mark| mark.at);
    match job.reason {
        Some(Reason::StartedBySomeone | Reason::Busy) => seen.is_halted() && !seen.is_busy(),
        Some(Reason::SettingsChanged) => job.claim.as_ref().is_none_or(|claim| {
            !matches!(settings::way_back(&seen.vm, &claim.touched, job.aim(), false), WayBack::Differs(_))
        }),
        Some(Reason::ClaimLost) => holds_claim(job, seen) || is_at_target(job, seen),
        Some(_) | None => now >= parked_at + TRY_AGAIN,
    }
}

/// The call that makes a parked VM's restore possible without its server: `bootflip restore`, from the claim alone.
pub fn from_claim(
    claim: &super::claim::Claim,
    seen: &Observed,
    stop: bool,
    trail: &Trail,
    now: Timestamp,
) -> Plan {
    if seen.is_busy() {
        return Plan::Wait(now + SOON);
    }
    match settings::way_back(&seen.vm, &claim.touched, Aim::AsBefore, false) {
        WayBack::AtTarget if matches!(sync(trail, now), Plan::Call(_) | Plan::Wait(_)) => sync(trail, now),
        WayBack::AtTarget => Plan::Call(Call::RemoveFromOtherConfig(super::claim::CLAIM_KEY.into())),
        WayBack::Differs(differences) => {
            let detail = differences.iter().map(describe).collect::<Vec<_>>().join("; ");
            Plan::Park(Reason::SettingsChanged, detail, differences)
        }
        WayBack::Next(_) if seen.vm.power_state != PowerState::Halted && stop => {
            shut_down(seen, trail, now, now, STOP_LIMIT).unwrap_or_else(|| {
                let detail = "it cannot be stopped: hard_shutdown has no effect".into();
                Plan::Fail(Reason::GaveUp, detail)
            })
        }
        WayBack::Next(_) if seen.vm.power_state != PowerState::Halted => Plan::Park(
            Reason::StartedBySomeone,
            "it runs; say --stop to shut it down hard first".into(),
            Vec::new(),
        ),
        WayBack::Next(call) => Plan::Call(call),
    }
}

//! E10 and E11, in Restoring and in Undoing: the gate closed, the VM stopped if it is ours, the settings put back.
//! A VM that runs and is not ours is never stopped and never rewritten.

use super::{
    claim::Found,
    job::{GateState, Job, Resolution, State},
    plan::{Call, Observed, Plan, SOON, Trail, describe, give_up, holds_claim, shut_down, sync},
    reason::Reason,
    settings::{self, WayBack},
    starting::METRICS_LAG,
    step::Outcome,
};
use crate::{clock::Timestamp, xen::records::PowerState};

/// How long a start may stay in flight unseen, after the intent or the call.
const START_IN_FLIGHT: std::time::Duration = std::time::Duration::from_secs(5);

/// How often a job that waits for a person tries a refused call again by itself.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_secs(1800);

/// E10.
pub fn disarm(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    if job.gate != GateState::Closed {
        return Plan::CloseGate;
    }
    if seen.vm.power_state == PowerState::Halted {
        return halted(job, seen, now);
    }
    match whose(job, seen, now) {
        Whose::Unsure(until) => return Plan::Wait(until),
        Whose::Ours => {
            return match held_until(job) {
                Some(until) if now < until => Plan::Wait(until.min(now + job.deadlines.poll)),
                Some(_) | None => shut_down(seen, trail, now, now),
            };
        }
        Whose::Theirs => {}
    }
    if is_at_target(job, seen) {
        return Plan::Done(Outcome::Disarmed);
    }
    let detail =
        "it runs in network boot mode, started by somebody else; shut it down and it is put back by itself";
    give_up(job, Reason::StartedBySomeone, detail.into())
}

/// Halted: sure, once no start of ours can be under way any more.
fn halted(job: &Job, seen: &Observed, now: Timestamp) -> Plan {
    if seen.is_busy() {
        return Plan::Wait(now + SOON);
    }
    let in_flight = [&job.start, &job.pv_start]
        .into_iter()
        .flatten()
        .filter(|start| start.seen.is_none())
        .map(|start| start.intended + START_IN_FLIGHT)
        .max();
    match in_flight {
        Some(until) if now < until && job.state == State::Undoing => Plan::Wait(until),
        Some(_) | None => Plan::Done(Outcome::Disarmed),
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
        Some(claim) => settings::way_back(&seen.vm, &claim.touched, false) == WayBack::AtTarget,
        None => true,
    }
}

/// E11.
pub fn restore(job: &Job, seen: &Observed, trail: &Trail) -> Plan {
    let Some(claim) = &job.claim else { return Plan::Done(Outcome::Restored { durable: true }) };
    let force = job.resolution == Some(Resolution::Restore);
    let next = match settings::way_back(&seen.vm, &claim.touched, force) {
        WayBack::Next(call) => call,
        WayBack::Differs(_) if job.resolution == Some(Resolution::Accept) => return synced(trail),
        WayBack::Differs(differences) => {
            let detail = differences.iter().map(describe).collect::<Vec<_>>().join("; ");
            return Plan::Park(Reason::SettingsChanged, detail, differences);
        }
        WayBack::AtTarget => match settings::success_changes(&seen.vm, job.state == State::Restoring) {
            Some(call) => call,
            None => return synced(trail),
        },
    };
    if seen.vm.power_state != PowerState::Halted {
        return give_up(
            job,
            Reason::StartedBySomeone,
            "the VM was started before its settings were put back".into(),
        );
    }
    if seen.is_busy() {
        return Plan::Wait(job.intent.map(|intent| intent.at).unwrap_or_default() + SOON);
    }
    Plan::Call(next)
}

fn synced(trail: &Trail) -> Plan {
    let plan = sync(trail);
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
        Plan::Done(Outcome::Disarmed)
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
        Some(Reason::StartedBySomeone) => seen.is_halted() && !seen.is_busy(),
        Some(Reason::SettingsChanged) => job.claim.as_ref().is_none_or(|claim| {
            !matches!(settings::way_back(&seen.vm, &claim.touched, false), WayBack::Differs(_))
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
    let back = settings::way_back(&seen.vm, &claim.touched, false);
    match back {
        WayBack::AtTarget => Plan::Call(Call::RemoveFromOtherConfig(super::claim::CLAIM_KEY.into())),
        WayBack::Differs(differences) => {
            let detail = differences.iter().map(describe).collect::<Vec<_>>().join("; ");
            Plan::Park(Reason::SettingsChanged, detail, differences)
        }
        WayBack::Next(_) if seen.vm.power_state != PowerState::Halted && stop => {
            shut_down(seen, trail, now, now)
        }
        WayBack::Next(_) if seen.vm.power_state != PowerState::Halted => Plan::Park(
            Reason::StartedBySomeone,
            "it runs; say --stop to shut it down hard first".into(),
            Vec::new(),
        ),
        WayBack::Next(call) => Plan::Call(call),
    }
}

//! What a guest is heard of: signs from the boot services, fetches of the answer file, reports. Pure; part of the table
//! in `step`.

use crate::{
    boot::sink::Sign,
    clock::Timestamp,
    provision::{
        job::{Effect, GateState, Job, StageMark, State},
        readiness::Document,
    },
};

/// How often the answer file may be given out in one attempt.
pub const ANSWER_FETCHES: u32 = 10;

/// Stages kept of one attempt, besides the last one.
const STAGES: usize = 64;

pub(super) fn sign_seen(job: &mut Job, sign: Sign, now: Timestamp) {
    if sign == Sign::NetbootRefused && job.gate == GateState::Installing {
        job.rebooted += 1;
        job.note(now, "it netboots again after its answer file: refused (rebooted)");
    }
    // A lease counts as evidence only after the PV start, so the newest one is kept.
    if sign == Sign::Lease {
        job.signs.insert(sign, now);
    } else {
        job.signs.entry(sign).or_insert(now);
    }
}

pub(super) fn answer_fetched(job: &mut Job, now: Timestamp) {
    if job.gate == GateState::Closed || job.answer_fetches >= ANSWER_FETCHES {
        return;
    }
    job.answer_fetches += 1;
    job.gate = GateState::Installing;
    installing(job, now);
}

fn installing(job: &mut Job, now: Timestamp) {
    if job.state == State::Booting && job.cursor == Some(Effect::Completion) {
        job.enter(State::Installing, now);
    }
}

pub(super) fn reported(job: &mut Job, stage: &StageMark, now: Timestamp) {
    if job.tokens.is_none() {
        return;
    }
    if job.gate == GateState::Booting {
        job.gate = GateState::Installing;
    }
    let completes = |name: &str| matches!(name, "done" | "failed");
    let again =
        |seen: &StageMark| seen.name == stage.name || (completes(&seen.name) && completes(&stage.name));
    // The first counts. A guest cannot make its job's record grow without end.
    if job.stages.iter().any(again) || (job.stages.len() >= STAGES && !completes(&stage.name)) {
        return;
    }
    job.stages.push(stage.clone());
    if stage.name == "done" {
        job.done_at = job.done_at.or(Some(now));
    }
    installing(job, now);
}

/// The installed system's word on itself, once in an attempt.
pub(super) fn ready(job: &mut Job, stage: &StageMark, document: Option<&Document>, now: Timestamp) {
    let before = job.stages.len();
    reported(job, stage, now);
    if job.stages.len() > before {
        job.readiness = document.cloned();
    }
}

/// A report after its time is recorded once, however often it is repeated.
pub(super) fn late(job: &mut Job, stage: &str, now: Timestamp) {
    let text = format!("late report {stage}: recorded, without effect");
    if !job.log.iter().any(|line| line.text == text) {
        job.note(now, text);
    }
}

pub(super) fn booted(job: &mut Job, stage: &StageMark, now: Timestamp) {
    if job.booted_at.is_none() {
        job.booted_at = Some(now);
        job.stages.push(stage.clone());
    }
}

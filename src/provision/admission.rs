//! Who may begin: a slot per pool, and per batch where `deploy --max-parallel` said so. Pure.
//!
//! A slot is taken before E1 and given back at E10 or at a terminal state. NeedsOperator, Verifying and an undo need
//! none; a resumed job keeps its own even above the cap.

use super::job::{Job, State};

/// Whether a queued job may begin, given all live jobs.
pub fn may_begin<'a>(job: &Job, live: impl IntoIterator<Item = &'a Job>, cap: u32) -> bool {
    let (mut in_pool, mut in_batch) = (0u32, 0u32);
    for other in live {
        if !other.slot || other.id == job.id {
            continue;
        }
        in_pool += u32::from(other.pool == job.pool);
        let same =
            matches!((&other.options.batch, &job.options.batch), (Some((a, _)), Some((b, _))) if a == b);
        in_batch += u32::from(same);
    }
    let batch_cap = job.options.batch.as_ref().map_or(u32::MAX, |(_, cap)| *cap);
    in_pool < cap && in_batch < batch_cap
}

/// The order in which queued jobs are asked: oldest first.
pub fn order(jobs: &mut [Job]) {
    jobs.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
}

/// A job that is waiting for a slot.
pub fn is_waiting(job: &Job) -> bool {
    job.state == State::Queued
}

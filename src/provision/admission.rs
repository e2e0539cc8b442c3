//! Who may begin: a slot per pool, and per batch where `deploy --max-parallel` said so. Pure.
//!
//! A slot is taken before E1 and given back at E10 or at a terminal state. NeedsOperator, Verifying and an undo need
//! none; a resumed job keeps its own even above the cap.

use std::collections::HashMap;

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
        // A batch may span pools: those of a pool that is away hold the others up no longer.
        in_batch += u32::from(same && other.waiting.is_none());
    }
    let batch_cap = job.options.batch.as_ref().map_or(u32::MAX, |(_, cap)| *cap);
    in_pool < cap && in_batch < batch_cap
}

/// The order in which queued jobs are asked: oldest first.
pub fn order(jobs: &mut [Job]) {
    jobs.sort_by(|a, b| (a.created, &a.id).cmp(&(b.created, &b.id)));
}

/// The queued jobs to wake when a slot was given back: oldest first, one for each free slot of their pool (`cap_of`),
/// and no more of a batch than it may. Waking all would have each of a thousand look a thousand times.
pub fn next<'a>(
    live: impl IntoIterator<Item = &'a Job>,
    cap_of: impl Fn(&str) -> u32,
) -> impl Iterator<Item = &'a str> {
    let (mut in_pool, mut in_batch) = (HashMap::<&str, u32>::new(), HashMap::<&str, u32>::new());
    let mut waiting = Vec::new();
    for job in live {
        if job.slot {
            *in_pool.entry(&job.pool).or_default() += 1;
            if let Some((batch, _)) = job.options.batch.as_ref().filter(|_| job.waiting.is_none()) {
                *in_batch.entry(batch).or_default() += 1;
            }
        } else if is_waiting(job) {
            waiting.push(job);
        }
    }
    waiting.sort_by_key(|job| (job.created, &job.id));
    waiting.into_iter().filter_map(move |job| {
        let pool = in_pool.entry(&job.pool).or_default();
        let batch = job.options.batch.as_ref().map(|(batch, cap)| (in_batch.entry(batch).or_default(), *cap));
        if *pool >= cap_of(&job.pool) || batch.as_ref().is_some_and(|(used, cap)| **used >= *cap) {
            return None;
        }
        *pool += 1;
        if let Some((used, _)) = batch {
            *used += 1;
        }
        Some(job.id.as_str())
    })
}

/// A job that is waiting for a slot.
pub fn is_waiting(job: &Job) -> bool {
    job.state == State::Queued
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::provision::tests::job;

    #[test]
    fn each_free_slot_wakes_the_oldest_that_may_have_it() {
        let running = |id: &str| Job { slot: true, state: State::Booting, ..job(id, 0) };
        let batched = |job: Job| {
            let mut job = job;
            job.options.batch = Some(("b".to_owned(), 1));
            job
        };
        let elsewhere = Job { pool: "other".to_owned(), ..job("o5", 5) };
        for (live, expected) in [
            (vec![], vec![]),
            (vec![job("j2", 2), job("j1", 1), job("j3", 3)], vec!["j1", "j2"]),
            (vec![running("r1"), job("j2", 2), job("j1", 1)], vec!["j1"]),
            (vec![running("r1"), running("r2"), job("j1", 1)], vec![]),
            (vec![running("r1"), running("r2"), job("j1", 1), elsewhere], vec!["o5"]),
            (vec![batched(running("r1")), batched(job("j1", 1)), job("j2", 2)], vec!["j2"]),
            (vec![batched(job("j1", 1)), batched(job("j2", 2)), job("j3", 3)], vec!["j1", "j3"]),
        ] {
            let woken: Vec<&str> = next(&live, |_| 2).collect();
            assert_eq!(woken, expected);
        }
    }
}

//! Who may begin: a slot per pool, and what the jobs of one order agreed on (`deploy --max-parallel --first
//! --stop-after`). Pure.
//!
//! A slot is taken before E1 and given back at E10 or at a terminal state. NeedsOperator, Verifying and an undo need
//! none; a resumed job keeps its own even above the cap.

use std::collections::HashMap;

use super::job::{Batch, Job, State};

/// How the jobs of one order have ended so far, each by its last attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Installed.
    pub succeeded: u32,
    /// Not installed, and not cancelled by a person.
    pub failed: u32,
}

/// What a queued job may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Begin.
    Begins,
    /// Wait for a slot, or for those that go first.
    Waits,
    /// Never begin: enough of its order have failed.
    Stopped,
}

/// Whether too many of an order have failed.
pub fn is_stopped(batch: &Batch, tally: Tally) -> bool {
    // One failure among those that go first says that the others would fail too.
    let first_failed = batch.first.is_some_and(|first| tally.succeeded < first) && tally.failed > 0;
    batch.stop_after.map_or(first_failed, |most| tally.failed >= most)
}

/// How many of an order may be under way at once.
fn room(batch: &Batch, tally: Tally) -> u32 {
    let all = batch.at_once.unwrap_or(u32::MAX);
    match batch.first {
        Some(first) if tally.succeeded < first => all.min(first - tally.succeeded),
        Some(_) | None => all,
    }
}

/// Whether a queued job may begin, given all live jobs and how its order went so far.
pub fn judge<'a>(job: &Job, live: impl IntoIterator<Item = &'a Job>, cap: u32, tally: Tally) -> Verdict {
    let batch = job.options.batch.as_ref();
    if batch.is_some_and(|batch| is_stopped(batch, tally)) {
        return Verdict::Stopped;
    }
    let (mut in_pool, mut in_batch) = (0u32, 0u32);
    for other in live {
        if other.id == job.id {
            continue;
        }
        in_pool += u32::from(other.slot && other.pool == job.pool);
        in_batch += u32::from(batch.is_some() && same_batch(other, job) && holds_room(other));
    }
    let begins = in_pool < cap && batch.is_none_or(|batch| in_batch < room(batch, tally));
    if begins { Verdict::Begins } else { Verdict::Waits }
}

fn same_batch(a: &Job, b: &Job) -> bool {
    a.options.batch.as_ref().map(|batch| &batch.id) == b.options.batch.as_ref().map(|batch| &batch.id)
}

/// It counts among those of its order that are under way. Orders may span pools: those of a pool that is away hold
/// the others up no longer. Those that go first count to their very end: the others wait for how it goes.
fn holds_room(job: &Job) -> bool {
    let goes_first = job.options.batch.as_ref().is_some_and(|batch| batch.first.is_some());
    let rests = matches!(job.state, State::Queued | State::NeedsOperator) || job.state.is_terminal();
    let under_way = job.slot || (goes_first && !rests);
    under_way && job.waiting.is_none()
}

/// The queued jobs to wake when something has ended: oldest first, one for each free slot of their pool (`cap_of`),
/// no more of an order than it may, and all that will never begin. Waking all would have each of a thousand look a
/// thousand times.
pub fn next<'a>(
    live: impl IntoIterator<Item = &'a Job>,
    cap_of: impl Fn(&str) -> u32,
    tally_of: impl Fn(&str) -> Tally,
) -> impl Iterator<Item = &'a str> {
    let (mut in_pool, mut in_batch) = (HashMap::<&str, u32>::new(), HashMap::<&str, u32>::new());
    let mut waiting = Vec::new();
    for job in live {
        *in_pool.entry(&job.pool).or_default() += u32::from(job.slot);
        if let Some(batch) = &job.options.batch {
            *in_batch.entry(&batch.id).or_default() += u32::from(holds_room(job));
        }
        if is_waiting(job) {
            waiting.push(job);
        }
    }
    waiting.sort_by_key(|job| (job.created, &job.id));
    waiting.into_iter().filter_map(move |job| {
        let batch = job.options.batch.as_ref().map(|batch| (batch, tally_of(&batch.id)));
        if batch.is_some_and(|(batch, tally)| is_stopped(batch, tally)) {
            return Some(job.id.as_str());
        }
        let pool = in_pool.entry(&job.pool).or_default();
        let batch = batch.map(|(batch, tally)| (in_batch.entry(&batch.id).or_default(), room(batch, tally)));
        if *pool >= cap_of(&job.pool) || batch.as_ref().is_some_and(|(used, room)| **used >= *room) {
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
            job.options.batch = Some(Batch { id: "b".to_owned(), at_once: Some(1), ..Batch::default() });
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
            let woken: Vec<&str> = next(&live, |_| 2, |_| Tally::default()).collect();
            assert_eq!(woken, expected);
        }
    }

    #[test]
    fn those_that_go_first_decide_for_the_others() {
        let of = |id: &str, created, state, batch: Batch| {
            let mut job = Job { state, slot: state == State::Booting, ..job(id, created) };
            job.options.batch = Some(Batch { id: "b".to_owned(), ..batch });
            job
        };
        let canary = || Batch { first: Some(1), ..Batch::default() };
        let patient = || Batch { stop_after: Some(2), ..Batch::default() };
        let tally = |succeeded, failed| Tally { succeeded, failed };
        for (what, first, batch, tally, expected) in [
            ("the first of all", None, canary(), tally(0, 0), Verdict::Begins),
            ("the first runs", Some(State::Booting), canary(), tally(0, 0), Verdict::Waits),
            ("the first is heard of last", Some(State::Verifying), canary(), tally(0, 0), Verdict::Waits),
            ("the first went well", None, canary(), tally(1, 0), Verdict::Begins),
            ("the first failed", None, canary(), tally(0, 1), Verdict::Stopped),
            ("a later one failed", None, canary(), tally(1, 1), Verdict::Begins),
            ("one of two failed", None, patient(), tally(0, 1), Verdict::Begins),
            ("two of two failed", None, patient(), tally(5, 2), Verdict::Stopped),
        ] {
            let asks = of("j2", 2, State::Queued, batch.clone());
            let mut live: Vec<Job> = first.map(|state| of("j1", 1, state, batch)).into_iter().collect();
            assert_eq!(judge(&asks, &live, 4, tally), expected, "{what}");
            live.push(asks);
            let woken = next(&live, |_| 4, |_| tally).count();
            assert_eq!(woken, usize::from(expected != Verdict::Waits), "{what}: it is woken to hear it");
        }
    }
}

//! Who may begin: a slot per pool, a place on a host, and what the jobs of one order agreed on (`deploy --max-parallel
//! --first --stop-after`). Pure.
//!
//! A slot is taken before E1 and given back at E10 or at a terminal state. NeedsOperator, Verifying and an undo need
//! none; a resumed job keeps its own even above the cap.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// How many installations a pool takes at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caps {
    /// In all (`limits.installs_per_pool`).
    pub pool: u32,
    /// On one host (`limits.installs_per_host`).
    pub host: u32,
}

/// Where installations may run, as far as pools were asked: hosts by their references.
#[derive(Debug, Clone, Default)]
pub struct Places {
    of_vms: HashMap<String, Vec<String>>,
    of_pools: HashMap<String, Vec<String>>,
}

impl Places {
    /// Notes what a look at a VM told: the hosts of its pool that can run HVM guests now, and those of them that can
    /// start the VM.
    pub fn learn(&mut self, pool: &str, all: Vec<String>, vm_uuid: &str, possible: Vec<String>) {
        self.of_pools.insert(pool.to_owned(), all);
        self.of_vms.insert(vm_uuid.to_owned(), possible);
    }

    /// The VM was looked at.
    pub fn knows(&self, vm_uuid: &str) -> bool {
        self.of_vms.contains_key(vm_uuid)
    }

    /// The hosts that may run a job's VM. Of a VM that was not looked at: all of its pool; none: nothing is known.
    fn of(&self, job: &Job) -> &[String] {
        let known = self.of_vms.get(&job.vm_uuid).filter(|hosts| !hosts.is_empty());
        known.or_else(|| self.of_pools.get(&job.pool)).map_or(&[], Vec::as_slice)
    }
}

/// Installations on hosts, at most `most` on one. Which of its hosts the pool took for a VM is not asked: it counts as
/// being where it leaves the others most room.
#[derive(Debug)]
pub struct Seating<'a> {
    most: usize,
    seated: BTreeMap<&'a str, Vec<&'a [String]>>,
}

impl<'a> Seating<'a> {
    /// Nobody yet.
    pub fn new(most: u32) -> Self {
        Self { most: usize::try_from(most).unwrap_or(usize::MAX), seated: BTreeMap::new() }
    }

    /// Finds a host for one more that may run on these; of which nothing is known always does. False: they are full,
    /// and nobody there can be counted as being elsewhere.
    pub fn seat(&mut self, hosts: &'a [String]) -> bool {
        hosts.is_empty() || self.place(hosts, &mut BTreeSet::new())
    }

    /// One augmenting path of the matching of installations and hosts; each host is tried once.
    fn place(&mut self, hosts: &'a [String], tried: &mut BTreeSet<&'a str>) -> bool {
        for host in hosts {
            if !tried.insert(host) {
                continue;
            }
            let here = self.seated.entry(host).or_default();
            if here.len() < self.most {
                here.push(hosts);
                return true;
            }
            for (index, other) in here.clone().into_iter().enumerate() {
                if self.place(other, tried) {
                    if let Some(freed) = self.seated.get_mut(host.as_str()).and_then(|at| at.get_mut(index)) {
                        *freed = hosts;
                    }
                    return true;
                }
            }
        }
        false
    }
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

/// Whether a queued job may begin, given all live jobs, where they may run, and how its order went so far.
pub fn judge<'a>(
    job: &'a Job,
    live: impl IntoIterator<Item = &'a Job>,
    caps: Caps,
    places: &'a Places,
    tally: Tally,
) -> Verdict {
    let batch = job.options.batch.as_ref();
    if batch.is_some_and(|batch| is_stopped(batch, tally)) {
        return Verdict::Stopped;
    }
    let (mut in_pool, mut in_batch) = (0u32, 0u32);
    let mut seating = Seating::new(caps.host);
    for other in live {
        if other.id == job.id {
            continue;
        }
        if other.slot && other.pool == job.pool {
            in_pool += 1;
            // One above the cap, from before a restart, finds none.
            seating.seat(places.of(other));
        }
        in_batch += u32::from(batch.is_some() && same_batch(other, job) && holds_room(other));
    }
    let begins = in_pool < caps.pool
        && batch.is_none_or(|batch| in_batch < room(batch, tally))
        && seating.seat(places.of(job));
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

/// The queued jobs to wake when something has ended: oldest first, one for each free slot of their pool (`caps_of`)
/// that has a host for it, no more of an order than it may, and all that will never begin. Waking all would have each
/// of a thousand look a thousand times.
pub fn next<'a>(
    live: impl IntoIterator<Item = &'a Job>,
    caps_of: impl Fn(&str) -> Caps,
    places: &'a Places,
    tally_of: impl Fn(&str) -> Tally,
) -> impl Iterator<Item = &'a str> {
    let mut in_batch = HashMap::<&str, u32>::new();
    let mut pools = HashMap::<&str, (Caps, u32, Seating<'a>)>::new();
    let mut waiting = Vec::new();
    for job in live {
        let (_, in_pool, seating) = pools.entry(&job.pool).or_insert_with(|| {
            let caps = caps_of(&job.pool);
            (caps, 0, Seating::new(caps.host))
        });
        if job.slot {
            *in_pool += 1;
            seating.seat(places.of(job));
        }
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
        let (caps, in_pool, seating) = pools.get_mut(job.pool.as_str())?;
        let batch = batch.map(|(batch, tally)| (in_batch.entry(&batch.id).or_default(), room(batch, tally)));
        let full = *in_pool >= caps.pool || batch.as_ref().is_some_and(|(used, room)| **used >= *room);
        if full || !seating.seat(places.of(job)) {
            return None;
        }
        *in_pool += 1;
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
            let places = Places::default();
            let woken: Vec<&str> = next(&live, |_| caps(2, 1), &places, |_| Tally::default()).collect();
            assert_eq!(woken, expected);
        }
    }

    const fn caps(pool: u32, host: u32) -> Caps {
        Caps { pool, host }
    }

    fn names(hosts: &str) -> Vec<String> {
        hosts.chars().map(String::from).collect()
    }

    #[test]
    fn each_installation_finds_a_host_while_one_of_its_own_has_room() {
        // Hosts by letters, each installation by those that may run it; which of them find one.
        for (most, installations, expected) in [
            (1, vec!["ab", "ab", "ab"], "yyn"),
            (2, vec!["ab", "ab", "ab", "ab", "ab"], "yyyyn"),
            // The first counts as being on b, so that the second finds a.
            (1, vec!["ab", "a", "b"], "yyn"),
            // A chain of three moves.
            (1, vec!["ab", "bc", "cd", "a", "a"], "yyyyn"),
            (1, vec!["a", "a", "b"], "yny"),
            // Of one nothing is known.
            (1, vec!["a", "", ""], "yyy"),
        ] {
            let hosts: Vec<Vec<String>> = installations.iter().map(|hosts| names(hosts)).collect();
            let mut seating = Seating::new(most);
            let found: String =
                hosts.iter().map(|hosts| if seating.seat(hosts) { 'y' } else { 'n' }).collect();
            assert_eq!(found, expected, "{most} on each of {installations:?}");
        }
    }

    #[test]
    fn a_job_waits_for_a_host_of_its_own_and_lets_those_begin_that_have_one() {
        let of = |id: &str, created, slot| {
            let state = if slot { State::Booting } else { State::Queued };
            Job { vm_uuid: id.to_owned(), slot, state, ..job(id, created) }
        };
        let pool = of("r1", 0, true).pool;
        let mut places = Places::default();
        for (vm, hosts) in [("r1", "a"), ("j1", "a"), ("j2", "ab")] {
            places.learn(&pool, names("ab"), vm, names(hosts));
        }
        let live = [of("r1", 0, true), of("j1", 1, false), of("j2", 2, false), of("j3", 3, false)];
        let judged = |job: &Job| judge(job, &live, caps(4, 1), &places, Tally::default());
        assert_eq!(judged(&live[1]), Verdict::Waits, "its only host is taken");
        assert_eq!(judged(&live[2]), Verdict::Begins, "the other host is free");
        assert_eq!(judged(&live[3]), Verdict::Begins, "of one that was not looked at, any host will do");
        let woken: Vec<&str> = next(&live, |_| caps(4, 1), &places, |_| Tally::default()).collect();
        assert_eq!(woken, ["j2"], "one place is free");
        let nothing_known = Places::default();
        assert_eq!(judge(&live[1], &live, caps(4, 1), &nothing_known, Tally::default()), Verdict::Begins);
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
            let places = Places::default();
            assert_eq!(judge(&asks, &live, caps(4, 1), &places, tally), expected, "{what}");
            live.push(asks);
            let woken = next(&live, |_| caps(4, 1), &places, |_| tally).count();
            assert_eq!(woken, usize::from(expected != Verdict::Waits), "{what}: it is woken to hear it");
        }
    }
}

//! How long installations take, learnt from those that went well, and how long one has left. Pure.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use crate::{
    clock::Timestamp,
    provision::job::{Job, State},
};

/// Runs remembered of a profile.
const RUNS: usize = 10;
/// Profiles remembered.
const PROFILES: usize = 1000;

/// One installation that went well.
#[derive(Debug, Clone)]
struct Run {
    job: String,
    /// From the HVM start to each stage.
    stages: Vec<(String, Duration)>,
    /// From the HVM start to the end.
    whole: Duration,
}

/// What was learnt, by profile.
#[derive(Debug, Clone, Default)]
pub struct Pace(HashMap<String, VecDeque<Run>>);

fn begun(job: &Job) -> Option<Timestamp> {
    job.start.as_ref().map(|start| start.at.unwrap_or(start.intended))
}

impl Pace {
    /// Learns from a job that succeeded; from any other nothing.
    pub fn learn(&mut self, job: &Job) {
        if job.state != State::Succeeded {
            return;
        }
        let (Some(begun), Some(end)) = (begun(job), job.history.last()) else { return };
        let known = self.0.contains_key(&job.profile.name);
        if !known && self.0.len() >= PROFILES {
            return;
        }
        let stages = job.stages.iter().map(|stage| (stage.name.clone(), stage.at.since(begun))).collect();
        let runs = self.0.entry(job.profile.name.clone()).or_default();
        if runs.iter().any(|run| run.job == job.id) {
            return;
        }
        if runs.len() >= RUNS {
            runs.pop_front();
        }
        runs.push_back(Run { job: job.id.clone(), stages, whole: end.at.since(begun) });
    }

    /// How long a job has left, by what others of its profile took from its newest stage on; zero where it is overdue.
    /// `None`: it has not been started, is on its way back, or nothing is known of its profile.
    pub fn left(&self, job: &Job, now: Timestamp) -> Option<Duration> {
        match job.state {
            State::Booting | State::Installing | State::Restoring | State::Starting | State::Verifying => {}
            State::Queued
            | State::Preparing
            | State::Flipping
            | State::Undoing
            | State::NeedsOperator
            | State::Succeeded
            | State::Failed
            | State::Cancelled => return None,
        }
        let begun = begun(job)?;
        let runs = self.0.get(&job.profile.name)?;
        let newest = job.stages.last();
        let rest = |run: &Run| {
            let at = newest.and_then(|stage| run.stages.iter().find(|(name, _)| *name == stage.name));
            run.whole.saturating_sub(at.map_or(Duration::ZERO, |(_, at)| *at))
        };
        // A stage that no other run had tells nothing: then the whole counts.
        let is_usual = newest.is_some_and(|stage| {
            runs.iter().any(|run| run.stages.iter().any(|(name, _)| *name == stage.name))
        });
        let since = newest.filter(|_| is_usual).map_or(begun, |stage| stage.at);
        let mut rests: Vec<Duration> = runs.iter().map(rest).collect();
        rests.sort_unstable();
        let median = rests.get(rests.len() / 2)?;
        Some(median.saturating_sub(now.since(since)))
    }
}

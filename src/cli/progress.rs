//! The live lines of jobs: one a job that is under way on a terminal, one a change elsewhere. To stderr.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::note;
use crate::{app::views::JobView, provision::State};

/// Where progress goes.
#[derive(Debug)]
pub(super) enum Progress {
    /// Lines that change.
    Screen {
        /// The screen.
        screen: MultiProgress,
        /// One a job that is under way.
        bars: BTreeMap<String, ProgressBar>,
        /// Jobs whose end was said.
        over: BTreeMap<String, u32>,
    },
    /// One line for each change.
    Lines {
        /// What was last said of each job.
        said: BTreeMap<String, String>,
    },
    /// Nowhere.
    Silent,
}

impl Progress {
    /// On a terminal lines that change, else one a change; with `silent` nothing.
    pub(super) fn new(silent: bool) -> Self {
        if silent {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Screen { screen: MultiProgress::new(), bars: BTreeMap::new(), over: BTreeMap::new() }
        } else {
            Self::Lines { said: BTreeMap::new() }
        }
    }

    /// Says something that is not about one job.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Screen { screen, .. } => drop(screen.println(text)),
            Self::Lines { .. } | Self::Silent => note(text),
        }
    }

    /// Shows a job as it is now.
    pub(super) fn show(&mut self, job: &JobView) {
        match self {
            Self::Silent => {}
            Self::Lines { said } => {
                let what = standing(job);
                if said.get(&job.id) != Some(&what) {
                    note(&format!("{what}  {}", timing(job)));
                    said.insert(job.id.clone(), what);
                }
            }
            Self::Screen { screen, bars, over } if job.is_over() => {
                if let Some(bar) = bars.remove(&job.id) {
                    bar.finish_and_clear();
                }
                if over.insert(job.id.clone(), job.attempt) != Some(job.attempt) {
                    drop(screen.println(format!("{}  {}", standing(job), timing(job))));
                }
            }
            Self::Screen { bars, .. } if job.state == State::Queued && !bars.contains_key(&job.id) => {}
            Self::Screen { screen, bars, .. } => {
                let bar = bars.entry(job.id.clone()).or_insert_with(|| screen.add(bar()));
                bar.set_position(u64::from(job.percent));
                bar.set_message(format!("{}  {}", standing(job), timing(job)));
            }
        }
    }

    /// Takes what changes off the screen.
    pub(super) fn clear(&self) {
        if let Self::Screen { screen, .. } = self {
            drop(screen.clear());
        }
    }
}

/// A job in one line: what changes in steps.
fn standing(job: &JobView) -> String {
    let stage = job.stages.last().map_or("-", |stage| stage.name.as_str());
    let mut text = format!("{:16} {:13} {stage:11} {:3}%", job.vm, job.state, job.percent);
    if let Some(waiting) = &job.waiting {
        text.push_str(&format!("  waiting: {waiting}"));
    }
    if let (true, Some(reason)) = (job.is_over(), job.reason) {
        text.push_str(&format!("  {reason}: {}", job.detail));
    }
    text
}

fn timing(job: &JobView) -> String {
    format!("{:.0} s", job.states.iter().map(|state| state.seconds).sum::<f64>())
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:20}]");
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

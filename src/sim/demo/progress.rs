//! The live lines of the demo: one a VM on a terminal (of many VMs only those that are under way), plain lines
//! elsewhere, nothing with `--json`. Writes to stderr; the result goes to stdout by the command line.

use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::jobs::JobView;

/// Where progress goes.
#[derive(Debug)]
pub enum Progress {
    /// Bars that move.
    Bars {
        /// The screen.
        screen: MultiProgress,
        /// One a VM.
        bars: BTreeMap<String, ProgressBar>,
        /// Every VM keeps its line; else it has one only while it is under way.
        all: bool,
    },
    /// One line for each new state or stage.
    Lines {
        /// What was last said of each VM.
        said: BTreeMap<String, String>,
    },
    /// Nowhere.
    Silent,
}

impl Progress {
    /// Bars when stderr is a terminal. `names`: all VMs, in the order of their lines.
    pub fn new<'a>(json: bool, names: impl ExactSizeIterator<Item = &'a str>) -> Self {
        if json {
            return Self::Silent;
        }
        if !std::io::stderr().is_terminal() {
            return Self::Lines { said: BTreeMap::new() };
        }
        let (screen, all) = (MultiProgress::new(), names.len() <= MOST_LINES);
        let mut bars = BTreeMap::new();
        for name in names.filter(|_| all) {
            let bar = screen.add(bar());
            bar.set_message(format!("{name:12} -"));
            bars.insert(name.to_owned(), bar);
        }
        Self::Bars { screen, bars, all }
    }

    /// Says something that is not about one VM.
    pub fn say(&self, text: &str) {
        match self {
            Self::Bars { screen, .. } => drop(screen.println(text)),
            Self::Lines { .. } => line(text),
            Self::Silent => {}
        }
    }

    /// Shows a job as it is now, `since` the demo's start.
    pub fn show(&mut self, name: &str, job: &JobView, since: Duration) {
        let what = standing(name, job);
        let since = since.as_secs_f64();
        match self {
            Self::Silent => {}
            Self::Lines { said } => {
                if said.insert(name.to_owned(), what.clone()).as_ref() != Some(&what) {
                    line(&format!("{since:6.1} s  {what}"));
                }
            }
            Self::Bars { screen, bars, all: false } if job.is_over() => {
                if let Some(bar) = bars.remove(name) {
                    bar.finish_and_clear();
                    drop(screen.println(format!("{since:6.1} s  {what}")));
                }
            }
            Self::Bars { bars, all: false, .. } if job.is_queued() && !bars.contains_key(name) => {}
            Self::Bars { screen, bars, .. } => {
                let bar = bars.entry(name.to_owned()).or_insert_with(|| screen.add(bar()));
                bar.set_position(job.percent.into());
                bar.set_message(format!("{what} {:6.1} s", job.seconds()));
            }
        }
    }

    /// Leaves the screen to what comes next: lines of all VMs stay as they are, the others go.
    pub fn clear(&self) {
        if let Self::Bars { screen, bars, all } = self {
            if *all {
                bars.values().for_each(ProgressBar::abandon);
                line("");
            } else {
                drop(screen.clear());
            }
        }
    }
}

/// State, stage and percent; what changes in steps.
fn standing(name: &str, job: &JobView) -> String {
    let stage = job.stages.last().map_or("-", |stage| stage.name.as_str());
    let attempt = if job.attempt > 1 { format!("#{}", job.attempt) } else { String::new() };
    format!("{name:12} {attempt:2} {:13} {stage:11} {:3} %", job.state, job.percent)
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:60} [{bar:25}]");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ");
    ProgressBar::new(100).with_style(style)
}

fn line(text: &str) {
    // A closed stderr must not end the demo.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// So many VMs have a line each; with more, a terminal of usual height would not hold them.
const MOST_LINES: usize = 16;

//! The live lines of the demo: one a VM that is under way on a terminal, plain lines elsewhere, nothing with
//! `--json`. Writes to stderr; the result goes to stdout by the command line.

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
        /// One a VM that is under way.
        bars: BTreeMap<String, ProgressBar>,
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
    /// Bars when stderr is a terminal.
    pub fn new(json: bool) -> Self {
        if json {
            Self::Silent
        } else if std::io::stderr().is_terminal() {
            Self::Bars { screen: MultiProgress::new(), bars: BTreeMap::new() }
        } else {
            Self::Lines { said: BTreeMap::new() }
        }
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
        let stage = job.stages.last().map(|stage| stage.name.as_str()).unwrap_or_default();
        let what = format!("{name:12} {:10} {stage:11} {:3}%", job.state, job.percent);
        match self {
            Self::Silent => {}
            Self::Lines { said } => {
                if said.insert(name.to_owned(), what.clone()).as_ref() != Some(&what) {
                    line(&format!("{:7.1}s {what}", since.as_secs_f64()));
                }
            }
            Self::Bars { screen, bars } if job.is_over() => {
                if let Some(bar) = bars.remove(name) {
                    bar.finish_and_clear();
                    drop(screen.println(format!("{:7.1}s {what}", since.as_secs_f64())));
                }
            }
            Self::Bars { bars, .. }
                if job.state.eq_ignore_ascii_case("queued") && !bars.contains_key(name) => {}
            Self::Bars { screen, bars } => {
                let bar = bars.entry(name.to_owned()).or_insert_with(|| screen.add(bar()));
                bar.set_position(job.percent.into());
                bar.set_message(what);
            }
        }
    }

    /// Takes what moves off the screen.
    pub fn clear(&self) {
        if let Self::Bars { screen, .. } = self {
            drop(screen.clear());
        }
    }
}

fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed:>5} {msg} [{bar:30}]");
    ProgressBar::new(100).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn line(text: &str) {
    // A closed stderr must not end the demo.
    let _ = writeln!(std::io::stderr(), "{text}");
}

//! What was measured, and what it is beside the peers: medians, ratios, goals, the table and the JSON.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// One server's share of one round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    /// The figure itself.
    pub(crate) value: f64,
    /// Processor seconds for each unit of work (a GB, a thousand exchanges or requests); `None`: not told.
    pub(crate) cpu: Option<f64>,
    /// The most memory that the server's processes had, in MiB.
    pub(crate) peak: f64,
}

/// Which way a figure is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Better {
    /// A speed.
    More,
    /// A time, or what it costs.
    Less,
}

/// What is compared of a contest's samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// [`Sample::value`].
    Value,
    /// [`Sample::cpu`].
    Cpu,
    /// [`Sample::peak`].
    Peak,
}

/// Beside whom a goal is set.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Rival {
    /// The peer of this name.
    Peer(&'static str),
    /// Whichever peer did best in this run.
    Best,
}

/// A bound for the ratio of ours to a peer's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Goal {
    /// Of what.
    pub(crate) of: Measure,
    /// Beside whom.
    pub(crate) beside: Rival,
    /// At least this where more is better, at most this where less is.
    pub(crate) bound: f64,
}

/// The same work for several servers, in rounds.
#[derive(Debug)]
pub(crate) struct Contest {
    /// With its unit.
    pub(crate) figure: String,
    /// Which way it is good.
    pub(crate) better: Better,
    /// What the processor seconds are counted for.
    pub(crate) work: &'static str,
    /// Ours, and then the peers.
    pub(crate) servers: Vec<String>,
    /// A sample for each server, or why there is none.
    pub(crate) rounds: Vec<Vec<Result<Sample, String>>>,
    /// What is wanted.
    pub(crate) goals: Vec<Goal>,
}

/// A line of the table.
#[derive(Debug)]
pub(crate) struct Row {
    figure: String,
    peer: String,
    ours: f64,
    theirs: f64,
    ratio: f64,
    goal: Option<String>,
    met: Option<bool>,
}

impl Contest {
    /// A line for each measure and peer, and one for each goal beside the best peer.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for of in [Measure::Value, Measure::Cpu, Measure::Peak] {
            for peer in 1..self.servers.len() {
                let named = |goal: &&Goal| matches!(goal.beside, Rival::Peer(name) if self.is(peer, name));
                let goal = self.goals.iter().filter(|goal| goal.of == of).find(named);
                rows.extend(self.row(of, peer, goal, ""));
            }
            for goal in self.goals.iter().filter(|goal| goal.of == of) {
                if let (Rival::Best, Some(best)) = (goal.beside, self.best(of)) {
                    rows.extend(self.row(of, best, Some(goal), "best: "));
                }
            }
        }
        rows
    }

    /// What went wrong, and how often.
    pub(crate) fn failures(&self) -> Vec<String> {
        let mut said: Vec<String> = Vec::new();
        for (number, server) in self.servers.iter().enumerate() {
            let failed: Vec<&String> =
                self.rounds.iter().filter_map(|round| round.get(number)?.as_ref().err()).collect();
            if let Some(first) = failed.first() {
                let of = self.rounds.len();
                said.push(format!(
                    "{}: {server} failed in {} of {of} rounds: {first}",
                    self.figure,
                    failed.len()
                ));
            }
        }
        said
    }

    fn is(&self, server: usize, name: &str) -> bool {
        self.servers.get(server).is_some_and(|server| server.starts_with(name))
    }

    fn taken(&self, of: Measure, server: usize) -> Vec<Option<f64>> {
        let one = |round: &Vec<Result<Sample, String>>| {
            let sample = round.get(server)?.as_ref().ok()?;
            match of {
                Measure::Value => Some(sample.value),
                Measure::Cpu => sample.cpu,
                Measure::Peak => Some(sample.peak),
            }
        };
        self.rounds.iter().map(one).collect()
    }

    fn middle(&self, of: Measure, server: usize) -> Option<f64> {
        median(self.taken(of, server).into_iter().flatten())
    }

    fn better(&self, of: Measure) -> Better {
        match of {
            Measure::Value => self.better,
            Measure::Cpu | Measure::Peak => Better::Less,
        }
    }

    fn best(&self, of: Measure) -> Option<usize> {
        let all = (1..self.servers.len()).filter_map(|peer| Some((peer, self.middle(of, peer)?)));
        let order = |left: &(usize, f64), right: &(usize, f64)| left.1.total_cmp(&right.1);
        let best = match self.better(of) {
            Better::More => all.max_by(order),
            Better::Less => all.min_by(order),
        };
        best.map(|(peer, _)| peer)
    }

    /// `None`: one of the two was never measured.
    fn row(&self, of: Measure, peer: usize, goal: Option<&Goal>, mark: &str) -> Option<Row> {
        let (ours, theirs) = (self.middle(of, 0)?, self.middle(of, peer)?);
        // The two of a round were measured side by side; what the machine did in other rounds is not in their ratio.
        let pairs = self.taken(of, 0).into_iter().zip(self.taken(of, peer));
        let ratio = median(pairs.filter_map(|(ours, theirs)| Some(ours? / theirs?)))?;
        let (sign, met) = match self.better(of) {
            Better::More => (">=", goal.map(|goal| ratio >= goal.bound)),
            Better::Less => ("<=", goal.map(|goal| ratio <= goal.bound)),
        };
        let figure = match of {
            Measure::Value => self.figure.clone(),
            Measure::Cpu => format!("{}: CPU s/{}", self.subject(), self.work),
            Measure::Peak => format!("{}: peak MiB", self.subject()),
        };
        let goal = goal.map(|goal| format!("{sign} {}x", goal.bound));
        let peer = format!("{mark}{}", self.servers.get(peer)?);
        Some(Row { figure, peer, ours, theirs, ratio, goal, met })
    }

    /// The figure without its unit.
    fn subject(&self) -> &str {
        self.figure.rsplit_once(", ").map_or(self.figure.as_str(), |(subject, _)| subject)
    }
}

impl Row {
    /// A figure with a bound of its own. `ratio` is ours to the bound.
    pub(crate) fn bound(figure: &str, ours: f64, better: Better, bound: f64) -> Self {
        let (sign, met) = match better {
            Better::More => (">=", ours >= bound),
            Better::Less => ("<=", ours <= bound),
        };
        Self {
            figure: figure.to_owned(),
            peer: "goal".to_owned(),
            ours,
            theirs: bound,
            ratio: ours / bound,
            goal: Some(format!("{sign} {bound}")),
            met: Some(met),
        }
    }

    fn json(&self) -> Value {
        let short = |number: f64| (number * 1000.0).round() / 1000.0;
        json!({
            "figure": self.figure, "peer": self.peer, "ours": short(self.ours), "theirs": short(self.theirs),
            "ratio": short(self.ratio), "goal": self.goal, "met": self.met,
        })
    }
}

/// The rows as a JSON text.
pub(crate) fn json(rows: &[Row]) -> String {
    let rows: Vec<String> = rows.iter().map(|row| format!("  {}", row.json())).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

/// The rows for people.
pub(crate) fn table(rows: &[Row]) -> String {
    let width = |of: fn(&Row) -> usize| rows.iter().map(of).max().unwrap_or_default();
    let (figures, peers) = (width(|row| row.figure.len()), width(|row| row.peer.len()));
    let mut text = format!(
        "{:figures$}  {:peers$}  {:>10}  {:>10}  {:>8}  goal\n",
        "figure", "peer", "ours", "theirs", "ratio"
    );
    let mut last = "";
    for row in rows {
        let verdict = match row.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        let figure = if row.figure == last { "" } else { &row.figure };
        last = &row.figure;
        let line = format!(
            "{figure:figures$}  {:peers$}  {:>10}  {:>10}  {:>8}  {} {verdict}",
            row.peer,
            number(row.ours),
            number(row.theirs),
            number(row.ratio),
            row.goal.as_deref().unwrap_or_default(),
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

fn number(number: f64) -> String {
    if number.abs() >= 100.0 { format!("{number:.0}") } else { format!("{number:.2}") }
}

/// The middle of some numbers; `None`: there are none.
pub(crate) fn median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() {
        0 => None,
        odd if odd % 2 == 1 => numbers.get(middle).copied(),
        _ => Some((numbers.get(middle - 1)? + numbers.get(middle)?) / 2.0),
    }
}

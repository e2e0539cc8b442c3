//! What is wrong with a configuration file, said so that it can be mended: where, what, and what to write instead.

use std::{
    fmt::{self, Write},
    path::PathBuf,
};

/// One thing to mend. Prints as `FILE:LINE: key: message; remedy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The configuration file, as it was named.
    pub file: PathBuf,
    /// Its line, from 1; 0: the file as a whole.
    pub line: usize,
    /// The key, such as `pool.main.url`; empty where there is none.
    pub key: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}; {}", self.message, self.remedy)
    }
}

/// All that is wrong with a configuration, by line; never empty. Prints one problem a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The problems, by line.
    pub fn all(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The problems and their number, as the command line shows them.
pub fn problems_report(problems: &Problems) -> String {
    let mut text = format!("{problems}\n");
    let count = problems.all().len();
    let noun = if count == 1 { "problem" } else { "problems" };
    let _ = writeln!(text, "{count} {noun} in the configuration; nothing was started");
    text
}

/// Where something stands in the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spot {
    /// From 1.
    pub(super) line: usize,
    /// The whole key, such as `dhcp[0].server.range`.
    pub(super) key: String,
}

impl Spot {
    /// A key below this one, on this one's line.
    pub(super) fn child(&self, name: &str) -> Self {
        let key = if self.key.is_empty() { name.to_owned() } else { format!("{}.{name}", self.key) };
        Self { line: self.line, key }
    }
}

/// Collects problems while the file is read and checked.
#[derive(Debug, Default)]
pub(super) struct Notes {
    notes: Vec<Note>,
    /// Lines that are not TOML: what follows from them is not told.
    broken: Vec<usize>,
}

#[derive(Debug)]
struct Note {
    spot: Spot,
    message: String,
    remedy: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Syntax,
    Wrong,
    Absent,
}

impl Notes {
    /// Something written is wrong.
    pub(super) fn wrong(&mut self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) {
        self.note(spot, message.into(), remedy.into(), Kind::Wrong);
    }

    /// Something that has to be there is not, or only not in a form that could be read (then that was noted).
    pub(super) fn absent(&mut self, spot: &Spot, message: impl Into<String>, remedy: impl Into<String>) {
        let noted = |note: &Note| {
            let rest = note.spot.key.strip_prefix(&spot.key);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        if !self.notes.iter().any(noted) {
            self.note(spot, message.into(), remedy.into(), Kind::Absent);
        }
    }

    /// A line is not TOML. One note a line: the first says why, the others follow from it.
    pub(super) fn syntax(&mut self, line: usize, message: &str) {
        if !self.broken.contains(&line) {
            self.broken.push(line);
            let spot = Spot { line, key: String::new() };
            self.note(&spot, message.to_owned(), "mend the TOML of this line".to_owned(), Kind::Syntax);
        }
    }

    fn note(&mut self, spot: &Spot, message: String, remedy: String, kind: Kind) {
        self.notes.push(Note { spot: spot.clone(), message, remedy, kind });
    }

    /// The checked value, or the problems. What stands on a broken line or is missing from a file with broken lines
    /// is most likely a consequence, and waits until these are mended.
    pub(super) fn verdict<T>(mut self, file: PathBuf, checked: Option<T>) -> Result<T, Problems> {
        if let (Some(checked), true) = (checked, self.notes.is_empty()) {
            return Ok(checked);
        }
        let broken = std::mem::take(&mut self.broken);
        let told = |note: &Note| match note.kind {
            Kind::Syntax => true,
            Kind::Wrong => !broken.contains(&note.spot.line),
            Kind::Absent => broken.is_empty(),
        };
        let mut problems: Vec<Problem> = self
            .notes
            .into_iter()
            .filter(told)
            .map(|Note { spot: Spot { line, key }, message, remedy, kind: _ }| Problem {
                file: file.clone(),
                line,
                key,
                message,
                remedy,
            })
            .collect();
        problems.sort_by_key(|problem| problem.line);
        Err(Problems(problems))
    }
}

impl Problems {
    /// The file as a whole cannot be used.
    pub(super) fn of_file(file: PathBuf, message: String, remedy: String) -> Self {
        Self(vec![Problem { file, line: 0, key: String::new(), message, remedy }])
    }
}

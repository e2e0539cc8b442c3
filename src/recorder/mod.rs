//! The flight recorder: what each machine did lately, from every service, in one order. Pure.
//!
//! Invariants: memory is bounded for each machine, for machines, and in all; what one source sends in masses pushes
//! out only its own; a stranger pushes out no machine. Records are for people: nothing is decided by them, and a
//! restart forgets them, except for what a job itself tells ([`of_job`]). [`diagnose`](diagnose::diagnose) says what
//! they mean.

mod consider;
pub mod diagnose;
mod jobs;
pub mod pace;
#[cfg(test)]
mod tests;
pub mod words;

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use serde::Serialize;

pub use self::jobs::of_job;
use crate::{
    boot::sink::{Noted, Notice, Packet, Protocol, ReportAnswer, Sign, Transfer},
    clock::Timestamp,
    machine::MacAddr,
    provision::job::State,
};

/// Where a record is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// DHCP packets.
    Dhcp,
    /// TFTP transfers.
    Tftp,
    /// Boot HTTP transfers.
    Http,
    /// The boot gate.
    Gate,
    /// Syslog lines.
    Syslog,
    /// Reports of the installer.
    Report,
    /// Calls to the pool.
    Xen,
    /// The job.
    Job,
}

impl Source {
    /// Every source.
    pub const ALL: [Self; 8] =
        [Self::Dhcp, Self::Tftp, Self::Http, Self::Gate, Self::Syslog, Self::Report, Self::Xen, Self::Job];

    /// The word on pages and in JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Http => "http",
            Self::Gate => "gate",
            Self::Syslog => "syslog",
            Self::Report => "report",
            Self::Xen => "xen",
            Self::Job => "job",
        }
    }
}

/// How a record is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tone {
    /// As it goes.
    Plain,
    /// A step forward.
    Good,
    /// Worth a look.
    Odd,
    /// Something failed.
    Bad,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A DHCP packet and its answer.
    Packet(Packet),
    /// A lease was stored and its ACK left.
    Leased {
        /// The address.
        address: IpAddr,
    },
    /// A file was asked for that is not there.
    Missing {
        /// Its name, as asked for.
        file: String,
    },
    /// A transfer ended.
    Fetched {
        /// How.
        protocol: Protocol,
        /// What, without tokens.
        file: String,
        /// Bytes of content.
        bytes: u64,
        /// How long it took.
        milliseconds: u64,
        /// `sent`, `complete`, `lost`, …
        outcome: &'static str,
    },
    /// The boot gate let it not netboot.
    Refused,
    /// A syslog line.
    Line {
        /// As a word.
        severity: &'static str,
        /// The text.
        text: String,
    },
    /// A stage that the job took.
    Stage {
        /// Its name.
        name: String,
        /// Percent, where it says.
        percent: Option<u8>,
        /// The first of its body.
        note: String,
    },
    /// A report that the job did not take.
    Unheard {
        /// The stage in its path.
        stage: String,
        /// Why: the answer's word.
        answer: &'static str,
    },
    /// A call to the pool.
    Call {
        /// Such as `VM.start`.
        call: String,
        /// The effect that it is for, such as `E8`.
        effect: String,
        /// The pool's words, when it failed.
        failed: Option<String>,
    },
    /// The job entered a state.
    Entered {
        /// Which.
        state: State,
        /// Of which attempt's end or standstill this is the reason, with its particulars.
        because: Option<String>,
    },
    /// A line of the job's log.
    Note {
        /// The text.
        text: String,
    },
}

/// One thing that happened to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When it was first seen.
    pub at: Timestamp,
    /// When it was last seen; later than `at` where repetitions were folded into it.
    pub last: Timestamp,
    /// How often.
    pub times: u32,
    /// The machine's network card; absent of a job that has none yet.
    pub mac: Option<MacAddr>,
    /// From where, where it has an address.
    pub peer: Option<IpAddr>,
    /// What.
    pub what: What,
}

/// Why a report that came before is not taken again.
const TAKEN_BEFORE: &str = "already taken";
/// A report that comes before the job can take it: a new system's before the look at its start, or any while the
/// database is away. Who reports asks again.
const ASKED_AGAIN: &str = "it was too early, or the database was away, and was asked to come again";
/// A part of a path that is so long and nothing but letters and digits may be a token.
const TOKEN_LIKE: usize = 32;
/// Texts are cut to so many characters.
const TEXT: usize = 400;
/// Records kept of one machine besides its syslog lines.
pub const WIRE_KEPT: usize = 400;
/// Syslog lines kept of one machine.
pub const LINES_KEPT: usize = 300;
/// Machines kept.
pub const MACHINES_KEPT: usize = 4096;
/// Records kept of all machines together.
pub const ALL_KEPT: usize = 100_000;
/// Records kept of all strangers together.
pub const STRANGERS_KEPT: usize = 200;

/// The records of one machine.
#[derive(Debug, Default)]
struct Reel {
    wire: VecDeque<Record>,
    lines: VecDeque<Record>,
    last: Timestamp,
}

impl Reel {
    fn len(&self) -> usize {
        self.wire.len().saturating_add(self.lines.len())
    }
}

/// The recorder.
#[derive(Debug, Default)]
pub struct Recorder {
    machines: HashMap<MacAddr, Reel>,
    strangers: VecDeque<Record>,
    kept: usize,
}

impl Recorder {
    /// A notice of a boot service; `known`: the machine is none of strangers.
    pub fn noted(&mut self, noted: Noted, known: bool, now: Timestamp) {
        let what = match noted.what {
            Notice::Packet(packet) => What::Packet(packet),
            Notice::Leased(address) => What::Leased { address: IpAddr::V4(address) },
            Notice::Missing(file) => What::Missing { file: cut(&without_tokens(&file)) },
            Notice::Line { severity, text } => What::Line { severity, text: cut(&text) },
        };
        let record = Record::of(now, noted.mac, noted.peer, what);
        if known {
            self.keep(noted.mac, record);
        } else if !self.strangers.back_mut().is_some_and(|last| last.takes(&record)) {
            push(&mut self.strangers, record, STRANGERS_KEPT);
        }
    }

    /// A sign. Most are told by a packet or a transfer too; a refusal is not.
    pub fn seen(&mut self, mac: MacAddr, sign: Sign, peer: Option<IpAddr>, now: Timestamp) {
        match sign {
            Sign::NetbootRefused => self.keep(mac, Record::of(now, mac, peer, What::Refused)),
            Sign::Dhcp | Sign::Loader | Sign::Script | Sign::Kernel | Sign::Initrd | Sign::Lease => {}
        }
    }

    /// A transfer that ended.
    pub fn transferred(&mut self, transfer: &Transfer, now: Timestamp) {
        let Some(mac) = transfer.mac else { return };
        let what = What::Fetched {
            protocol: transfer.protocol,
            file: cut(&transfer.file),
            bytes: transfer.bytes,
            milliseconds: u64::try_from(transfer.took.as_millis()).unwrap_or(u64::MAX),
            outcome: transfer.outcome,
        };
        self.keep(mac, Record::of(now, mac, Some(transfer.peer), what));
    }

    /// A report that was answered so. What the job took is in the job.
    pub fn reported(
        &mut self,
        mac: MacAddr,
        stage: &str,
        answer: ReportAnswer,
        peer: Option<IpAddr>,
        now: Timestamp,
    ) {
        let answer = match answer {
            ReportAnswer::Accepted => return,
            ReportAnswer::Already => TAKEN_BEFORE,
            ReportAnswer::Closed => "the job takes it no longer",
            ReportAnswer::Unknown => "no such token",
            ReportAnswer::WrongMethod => "GET instead of POST",
            ReportAnswer::Later => ASKED_AGAIN,
        };
        self.keep(mac, Record::of(now, mac, peer, What::Unheard { stage: cut(stage), answer }));
    }

    /// A call for a job's machine.
    pub fn called(
        &mut self,
        mac: MacAddr,
        call: &str,
        effect: String,
        failed: Option<String>,
        now: Timestamp,
    ) {
        let failed = failed.map(|text| cut(&text));
        self.keep(mac, Record::of(now, mac, None, What::Call { call: cut(call), effect, failed }));
    }

    /// The records of these network cards, the oldest first.
    pub fn timeline(&self, macs: &[MacAddr]) -> Vec<Record> {
        let reels = macs.iter().filter_map(|mac| self.machines.get(mac));
        let mut all: Vec<Record> =
            reels.flat_map(|reel| reel.wire.iter().chain(&reel.lines)).cloned().collect();
        all.sort_by_key(|record| record.at);
        all
    }

    /// What came from network cards that no VM has, the oldest first.
    pub fn strangers(&self) -> Vec<Record> {
        self.strangers.iter().cloned().collect()
    }

    /// The transfers of all machines that ended last, the newest first.
    pub fn transfers(&self, most: usize) -> Vec<Record> {
        let all = self.machines.values().flat_map(|reel| &reel.wire);
        let mut all: Vec<&Record> =
            all.filter(|record| matches!(record.what, What::Fetched { .. })).collect();
        all.sort_by_key(|record| std::cmp::Reverse(record.last));
        all.into_iter().take(most).cloned().collect()
    }

    /// How many records there are.
    pub const fn len(&self) -> usize {
        self.kept
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.kept == 0
    }

    fn keep(&mut self, mac: MacAddr, record: Record) {
        if !self.machines.contains_key(&mac) && self.machines.len() >= MACHINES_KEPT {
            self.forget_the_most_silent();
        }
        let is_line = matches!(record.what, What::Line { .. });
        let reel = self.machines.entry(mac).or_default();
        reel.last = record.at;
        let before = reel.len();
        let (ring, most) = if is_line { (&mut reel.lines, LINES_KEPT) } else { (&mut reel.wire, WIRE_KEPT) };
        if ring.back_mut().is_some_and(|last| last.takes(&record)) {
            return;
        }
        push(ring, record, most);
        self.kept = self.kept.saturating_add(reel.len()).saturating_sub(before);
        while self.kept > ALL_KEPT {
            self.forget_the_most_silent();
        }
    }

    fn forget_the_most_silent(&mut self) {
        let silent = self.machines.iter().min_by_key(|(_, reel)| reel.last).map(|(mac, _)| *mac);
        let gone = silent.and_then(|mac| self.machines.remove(&mac));
        self.kept = self.kept.saturating_sub(gone.map_or(0, |reel| reel.len()));
    }
}

impl Record {
    fn of(at: Timestamp, mac: MacAddr, peer: Option<IpAddr>, what: What) -> Self {
        Self { at, last: at, times: 1, mac: Some(mac), peer, what }
    }

    /// Folds a repetition of itself into itself.
    fn takes(&mut self, next: &Self) -> bool {
        if self.mac != next.mac || self.peer != next.peer || !self.what.repeats_as(&next.what) {
            return false;
        }
        self.times = self.times.saturating_add(next.times);
        self.last = next.last;
        true
    }

    /// Where it is from.
    pub const fn source(&self) -> Source {
        match &self.what {
            What::Packet(_) | What::Leased { .. } => Source::Dhcp,
            What::Missing { .. } => Source::Tftp,
            What::Fetched { protocol: Protocol::Http, .. } => Source::Http,
            What::Fetched { protocol: Protocol::Tftp, .. } => Source::Tftp,
            What::Refused => Source::Gate,
            What::Line { .. } => Source::Syslog,
            What::Stage { .. } | What::Unheard { .. } => Source::Report,
            What::Call { .. } => Source::Xen,
            What::Entered { .. } | What::Note { .. } => Source::Job,
        }
    }
}

impl What {
    /// The next of the same says nothing new.
    fn repeats_as(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Packet(a), Self::Packet(b)) => {
                // A client that asks again begins another transaction, and its clock has gone on.
                Packet { xid: 0, seconds: 0, ..*a } == Packet { xid: 0, seconds: 0, ..*b }
            }
            (Self::Fetched { .. }, _) => false,
            (a, b) => a == b,
        }
    }
}

fn push(ring: &mut VecDeque<Record>, record: Record, most: usize) {
    if ring.len() >= most {
        ring.pop_front();
    }
    ring.push_back(record);
}

/// A name as it was asked for may be a mistyped one with a token in it.
fn without_tokens(name: &str) -> String {
    let is_word = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    let masked = |part: &'_ str| part.len() >= TOKEN_LIKE && is_word(part);
    name.split('/').map(|part| if masked(part) { "***" } else { part }).collect::<Vec<_>>().join("/")
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(TEXT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

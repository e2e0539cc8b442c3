//! A machine as pages look at it: its guest, its newest job, its records, what they mean. Shared by all pages.

use std::{sync::Arc, time::Duration};

use serde::Serialize;

use crate::{
    app::{desk::Desk, inventory::Guest},
    clock::Timestamp,
    machine::MacAddr,
    provision::job::{Effect, Job, State},
    recorder::{
        Record,
        diagnose::{Finding, Subject, Weight, diagnose},
        of_job,
        words::span,
    },
};

/// The colour of a state: a word of the style sheet.
pub(super) const fn tone(state: State) -> &'static str {
    match state {
        State::Queued => "odd",
        State::Preparing
        | State::Flipping
        | State::Booting
        | State::Installing
        | State::Restoring
        | State::Starting
        | State::Verifying => "live",
        State::Undoing | State::Cancelled => "odd",
        State::NeedsOperator | State::Failed => "bad",
        State::Succeeded => "good",
    }
}

/// A state in plain words.
pub(super) const fn plain(state: State) -> &'static str {
    match state {
        State::Queued => "waits for a free slot",
        State::Preparing => "is being looked at and claimed",
        State::Flipping => "is being set to boot from the network",
        State::Booting => "boots from the network",
        State::Installing => "installs",
        State::Restoring => "gets its settings back",
        State::Starting => "starts as a PV guest",
        State::Verifying => "started; its first sign of life is awaited",
        State::Undoing => "is being put back as it was",
        State::NeedsOperator => "waits for you",
        State::Succeeded => "is done",
        State::Failed => "failed; the VM is put back",
        State::Cancelled => "was cancelled; the VM is put back",
    }
}

/// What an effect is, in plain words.
pub(super) const fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Preflight => "looking at the VM and the files",
        Effect::Claim => "claiming the VM",
        Effect::Sync => "saving the pool's database",
        Effect::Stop => "shutting the VM down",
        Effect::Actions => "making a reboot a halt",
        Effect::Order => "putting the network first",
        Effect::Flip => "flipping to HVM",
        Effect::Arm => "opening the boot gate",
        Effect::Start => "starting the VM",
        Effect::Completion => "waiting for the installer",
        Effect::Disarm => "closing the boot gate",
        Effect::Restore => "putting settings back",
        Effect::StartPv => "starting as PV",
        Effect::Evidence => "waiting for a sign of life",
        Effect::Release => "releasing the claim",
    }
}

/// The stage of a job, where it has one.
pub(super) fn stage(job: &Job) -> String {
    match job.state {
        State::Booting | State::Installing => match job.stages.last() {
            Some(stage) => stage.name.clone(),
            None => job.cursor.map(effect).unwrap_or_default().to_owned(),
        },
        State::Preparing
        | State::Flipping
        | State::Restoring
        | State::Starting
        | State::Verifying
        | State::Undoing => job.cursor.map(effect).unwrap_or_default().to_owned(),
        State::Queued | State::NeedsOperator | State::Succeeded | State::Failed | State::Cancelled => {
            String::new()
        }
    }
}

/// The percentage to show: while something is installed, and at the end of it.
pub(super) fn percent(job: &Job) -> Option<u8> {
    match job.state {
        State::Installing | State::Restoring | State::Starting | State::Verifying | State::Succeeded => {
            Some(job.percent())
        }
        State::Queued
        | State::Preparing
        | State::Flipping
        | State::Booting
        | State::Undoing
        | State::NeedsOperator
        | State::Failed
        | State::Cancelled => None,
    }
}

/// A time left, in words.
pub(super) fn left(left: Duration) -> String {
    match left.as_secs() {
        0 => "any moment now".to_owned(),
        1..60 => "less than a minute left".to_owned(),
        seconds => format!("about {} left", span(seconds * 1000)),
    }
}

/// How long ago, in words.
pub(super) fn ago(then: Timestamp, now: Timestamp) -> String {
    match now.since(then).as_secs() {
        0..5 => "just now".to_owned(),
        seconds => format!("{} ago", span(seconds * 1000)),
    }
}

/// `14:03:59.123`, in UTC.
pub(super) fn clock(at: Timestamp) -> String {
    let day = at.millis() % 86_400_000;
    let (hours, minutes, seconds) = (day / 3_600_000, day / 60_000 % 60, day / 1000 % 60);
    format!("{hours:02}:{minutes:02}:{seconds:02}.{:03}", day % 1000)
}

/// A record on a page and in JSON.
#[derive(Debug, Serialize)]
pub(super) struct RecordView {
    /// RFC 3339 with whole seconds, in UTC.
    pub(super) time: String,
    /// The time of the day.
    pub(super) clock: String,
    /// Where it is from.
    pub(super) source: &'static str,
    /// A word of the style sheet.
    pub(super) tone: String,
    /// One line.
    pub(super) words: String,
    /// The record itself, for programs.
    #[serde(flatten)]
    pub(super) record: Record,
}

impl RecordView {
    pub(super) fn of(record: Record) -> Self {
        Self {
            time: record.at.to_string(),
            clock: clock(record.at),
            source: record.source().label(),
            tone: format!("{:?}", record.tone()).to_lowercase(),
            words: record.words(),
            record,
        }
    }
}

/// A finding on a page.
#[derive(Debug, Serialize)]
pub(super) struct FindingView {
    /// Its name.
    pub(super) name: &'static str,
    /// How long ago it began.
    pub(super) ago: Option<String>,
    /// The finding.
    #[serde(flatten)]
    pub(super) finding: Finding,
}

/// What the recorder has of a machine, and what that means.
#[derive(Debug)]
pub(super) struct Look {
    /// Records, the oldest first, those of the newest job among them.
    pub(super) records: Vec<Record>,
    /// What they mean.
    pub(super) findings: Vec<Finding>,
}

/// Looks at a machine.
pub(super) fn look(desk: &Desk, macs: &[MacAddr], job: Option<&Job>, now: Timestamp) -> Look {
    let mut all = macs.to_vec();
    let own = job.and_then(|job| job.mac);
    all.extend(own.filter(|mac| !macs.contains(mac)));
    let mut records = desk.flight.read(|recorder| recorder.timeline(&all));
    let rivals: Vec<_> = desk.dhcp.iter().flat_map(|board| board.read().neighbours).collect();
    let subject = Subject { now, mac: own.or_else(|| macs.first().copied()), job, rivals: &rivals };
    let findings = diagnose(&subject, &records);
    records.extend(job.map(of_job).unwrap_or_default());
    records.sort_by_key(|record| record.at);
    Look { records, findings }
}

/// The finding that a row shows: what holds the machine up.
pub(super) fn first_hold(findings: &[Finding]) -> Option<&Finding> {
    findings.iter().find(|finding| finding.weight != Weight::Note)
}

/// The guest with this uuid as it was last read; of one that is gone, what its newest job tells.
pub(super) fn guest(desk: &Desk, uuid: &str) -> (Option<Arc<Guest>>, Option<Arc<Job>>) {
    (desk.known.guest(uuid), desk.roster.newest(uuid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_as_people_say_them() {
        let at = Timestamp::from_millis;
        assert_eq!(clock(at(1_796_000_045_007)), "00:54:05.007");
        assert_eq!(ago(at(0), at(3_000)), "just now");
        assert_eq!(ago(at(0), at(90_000)), "90 s ago");
        assert_eq!(ago(at(0), at(600_000)), "10 min ago");
        let cases = [(0, "any moment now"), (30, "less than a minute left"), (240, "about 4 min left")];
        for (seconds, words) in cases {
            assert_eq!(left(Duration::from_secs(seconds)), words);
        }
    }
}

//! Reports from outside, judged against the job they name. Pure: the executor stores the event and then answers.

use super::{
    job::{Job, StageMark, State},
    readiness::{Document, judge as judge_readiness},
    step::{Channel, Event},
};
use crate::{
    boot::sink::{Report, ReportAnswer},
    clock::Timestamp,
};

/// Characters of a report's body that are kept with the stage.
const NOTE_CHARS: usize = 2000;

/// The longest stage name.
const STAGE_MAX: usize = 32;

/// The stage whose body is the document of `pv-ready.sh`.
const READY: &str = "ready";

/// What a report means for the job: the event to store, if any, and the answer.
pub fn judge(job: &Job, report: &Report, channel: Channel, now: Timestamp) -> (Option<Event>, ReportAnswer) {
    if report.by_get && !job.profile.report_by_get {
        return (None, ReportAnswer::WrongMethod);
    }
    let sane = !report.stage.is_empty()
        && report.stage.len() <= STAGE_MAX
        && report.stage.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let right_path = match channel {
        Channel::Booted => report.stage == "booted",
        Channel::Report => report.stage != "booted",
    };
    if !sane || !right_path {
        return (None, ReportAnswer::Unknown);
    }
    let (stage, document) =
        if report.stage == READY { ready(job, report, now) } else { (mark(report, now), None) };
    let seen = job.stages.iter().any(|known| known.name == stage.name);
    let event =
        |stage| if report.stage == READY { Event::Ready(stage, document) } else { Event::Report(stage) };
    match channel {
        _ if seen => (None, ReportAnswer::Already),
        Channel::Report if matches!(job.state, State::Flipping | State::Booting | State::Installing) => {
            (Some(event(stage)), ReportAnswer::Accepted)
        }
        Channel::Report => (Some(event(stage)), ReportAnswer::Closed),
        Channel::Booted if job.state == State::Verifying => {
            (Some(Event::Booted(stage)), ReportAnswer::Accepted)
        }
        // The new system may be faster than the look at its start.
        Channel::Booted if job.state == State::Starting => (None, ReportAnswer::Later),
        Channel::Booted => (Some(Event::Booted(stage)), ReportAnswer::Closed),
    }
}

/// A document that cannot be read is noted and taken for none: the PV start itself will show.
fn ready(job: &Job, report: &Report, now: Timestamp) -> (StageMark, Option<Box<Document>>) {
    let (note, document) = match Document::parse(&report.body) {
        Ok(document) => {
            (judge_readiness(&document, job.xen).verdict.label().to_owned(), Some(Box::new(document)))
        }
        Err(error) => (format!("its document is left aside: {error}"), None),
    };
    (StageMark { name: report.stage.clone(), at: now, percent: None, note }, document)
}

fn mark(report: &Report, now: Timestamp) -> StageMark {
    let text = String::from_utf8_lossy(&report.body);
    let note: String = text.chars().filter(|c| !c.is_control() || *c == '\n').take(NOTE_CHARS).collect();
    let percent = note
        .split(|c: char| c.is_whitespace() || c == '&')
        .find_map(|word| word.strip_prefix("percent="))
        .and_then(|digits| digits.parse::<u8>().ok())
        .map(|percent| percent.min(100));
    StageMark { name: report.stage.clone(), at: now, percent, note }
}

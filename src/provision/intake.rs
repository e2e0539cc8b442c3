//! Reports from outside, judged against the job they name. Pure: the executor stores the event and then answers.

use super::{
    job::{Job, StageMark, State},
    readiness::{Document, judge as judge_readiness},
    stages,
    step::{Channel, Event},
};
use crate::{
    boot::sink::{Report, ReportAnswer},
    clock::Timestamp,
    secret::masked,
};

/// Characters of a report's body that are kept with the stage.
const NOTE_CHARS: usize = 2000;

/// The longest stage name.
const STAGE_MAX: usize = 32;

/// Characters of the installer's log that are kept: its end.
const LOG_CHARS: usize = 16_000;

/// The stage whose body is a sentence, and from its second line on the end of the installer's log.
const FAILED: &str = "failed";

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
    let report = &Report { body: without_tokens(&report.body), ..report.clone() };
    let (stage, document) = match report.stage.as_str() {
        READY => ready(job, report, now),
        stages::EVENT => match event(report, now) {
            Some(stage) => (stage, None),
            None => return (None, ReportAnswer::Accepted),
        },
        _ => (mark(report, now), None),
    };
    let seen = job.stages.iter().any(|known| known.name == stage.name);
    let told =
        |stage| if report.stage == READY { Event::Ready(stage, document) } else { Event::Report(stage) };
    match channel {
        _ if seen => (None, ReportAnswer::Already),
        Channel::Report if matches!(job.state, State::Flipping | State::Booting | State::Installing) => {
            (Some(told(stage)), ReportAnswer::Accepted)
        }
        Channel::Report => (Some(told(stage)), ReportAnswer::Closed),
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
    (StageMark { name: report.stage.clone(), at: now, percent: None, note, log: String::new() }, document)
}

/// An event of a webhook, where it means a stage. Of hundreds a few do; the others are answered, and change nothing.
fn event(report: &Report, now: Timestamp) -> Option<StageMark> {
    let (stage, note) = stages::of_event(&report.body)?;
    let note = plain(&note).take(NOTE_CHARS).collect();
    Some(StageMark { name: stage.to_owned(), at: now, percent: None, note, log: String::new() })
}

/// A body as it may be kept: whoever may read jobs must not learn an attempt's tokens.
fn without_tokens(body: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(body) {
        Ok(text) => masked(text).into_owned().into_bytes(),
        Err(_) => masked(&String::from_utf8_lossy(body)).into_owned().into_bytes(),
    }
}

/// Text without what moves a terminal's cursor.
fn plain(text: &str) -> impl Iterator<Item = char> {
    text.chars().filter(|c| !c.is_control() || *c == '\n')
}

fn mark(report: &Report, now: Timestamp) -> StageMark {
    let text = String::from_utf8_lossy(&report.body);
    let (said, log) = match report.stage.as_str() {
        FAILED => text.split_once('\n').unwrap_or((&text, "")),
        _ => (&*text, ""),
    };
    let note: String = plain(said).take(NOTE_CHARS).collect();
    let log: Vec<char> = plain(log.trim_end()).collect();
    let log: String = log.iter().skip(log.len().saturating_sub(LOG_CHARS)).collect();
    let percent = note
        .split(|c: char| c.is_whitespace() || c == '&')
        .find_map(|word| word.strip_prefix("percent="))
        .and_then(|digits| digits.parse::<u8>().ok())
        .map(|percent| percent.min(100));
    StageMark { name: report.stage.clone(), at: now, percent, note, log }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        provision::tests::{at, job},
        secret::TokenHash,
    };

    fn report(stage: &str, body: &[u8]) -> Report {
        let token = TokenHash::of("t");
        Report { token, stage: stage.to_owned(), body: body.to_vec(), peer: None, by_get: false }
    }

    fn installing() -> Job {
        Job { state: State::Installing, ..job("j", 1) }
    }

    fn taken(job: &Job, report: &Report) -> Option<StageMark> {
        let event = judge(job, report, Channel::Report, at(9)).0?;
        let Event::Report(stage) = event else { panic!("{event:?}") };
        Some(stage)
    }

    #[test]
    fn a_failure_brings_a_sentence_and_the_end_of_the_log() {
        let line = "line\x1b[2J of the log\n";
        let body = format!("no disk\nbegins here {}the last\n", line.repeat(2000));
        let stage = taken(&installing(), &report("failed", body.as_bytes())).unwrap();
        assert_eq!(stage.note, "no disk");
        assert_eq!(stage.log.chars().count(), LOG_CHARS);
        assert!(stage.log.ends_with("line[2J of the log\nthe last"), "{}", stage.log);
        let alone = taken(&installing(), &report("failed", b"no disk")).unwrap();
        assert_eq!((alone.note.as_str(), alone.log.as_str()), ("no disk", ""));
        // Of other stages the body is a note as before.
        let other = taken(&installing(), &report("base", b"a\nb")).unwrap();
        assert_eq!((other.note.as_str(), other.log.as_str()), ("a\nb", ""));
    }

    #[test]
    fn an_event_of_a_webhook_is_a_stage_or_changes_nothing_and_never_completes() {
        let event = |name: &str, result: &str| {
            let body = format!(r#"{{"name": "{name}", "event_type": "finish", "result": "{result}"}}"#);
            report("event", body.as_bytes())
        };
        let mut job = installing();
        let stage = taken(&job, &event("a/stage-extract", "SUCCESS")).unwrap();
        assert_eq!(
            (stage.name.as_str(), stage.note.as_str(), stage.percent),
            ("base", "a/stage-extract", None)
        );
        for nothing in ["subiquity/done", "subiquity/Install/install", "done", "x"] {
            for result in ["SUCCESS", "FAIL"] {
                let judged = judge(&job, &event(nothing, result), Channel::Report, at(9));
                assert_eq!(judged, (None, ReportAnswer::Accepted));
            }
        }
        let broken = judge(&job, &report("event", b"{"), Channel::Report, at(9));
        assert_eq!(broken, (None, ReportAnswer::Accepted));
        job.stages.push(stage);
        assert_eq!(job.percent(), 50);
        let again = judge(&job, &event("b/stage-extract", "SUCCESS"), Channel::Report, at(9));
        assert_eq!(again, (None, ReportAnswer::Already));
        // By the token of the installed system it is no event.
        let wrong = judge(&job, &event("a/stage-extract", "SUCCESS"), Channel::Booted, at(9));
        assert_eq!(wrong, (None, ReportAnswer::Unknown));
    }

    #[test]
    fn a_document_that_cannot_be_read_is_noted_and_counts_as_none() {
        let job = Job { state: State::Installing, ..job("j", 0) };
        for body in [&b"percent=40"[..], b"", b"\xff{", b"{\"v\":1}", b"[[[[[[[["] {
            let (event, answer) = judge(&job, &report("ready", body), Channel::Report, at(1));
            assert_eq!(answer, ReportAnswer::Accepted, "the installer goes on");
            let Some(Event::Ready(stage, None)) = event else { panic!("{event:?}") };
            assert!(stage.note.starts_with("its document is left aside: "), "{}", stage.note);
        }
    }

    #[test]
    fn a_document_is_the_installers_to_send() {
        let job = Job { state: State::Verifying, ..job("j", 0) };
        let (event, answer) = judge(&job, &report("ready", b"{}"), Channel::Booted, at(1));
        assert_eq!((event, answer), (None, ReportAnswer::Unknown));
    }
}

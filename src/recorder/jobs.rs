//! What a job's own record tells of its machine: its states, the stages that it took, its log. Pure.

use super::{Record, What, cut};
use crate::{
    clock::Timestamp,
    provision::job::{Job, State},
};

/// The records of a job, the oldest first. They are as durable as the job.
pub fn of_job(job: &Job) -> Vec<Record> {
    let record = |at: Timestamp, what| Record { at, last: at, times: 1, mac: job.mac, peer: None, what };
    let last = job.history.len().saturating_sub(1);
    let states = job.history.iter().enumerate().map(|(number, mark)| {
        let tells = number == last && (mark.state.is_terminal() || mark.state == State::NeedsOperator);
        let because = job.reason.filter(|_| tells).map(|reason| match job.detail.as_str() {
            "" => reason.label().to_owned(),
            detail => format!("{}: {}", reason.label(), cut(detail)),
        });
        record(mark.at, What::Entered { state: mark.state, because })
    });
    let stages = job.stages.iter().map(|stage| {
        let what = What::Stage { name: stage.name.clone(), percent: stage.percent, note: cut(&stage.note) };
        record(stage.at, what)
    });
    let notes = job.log.iter().map(|line| record(line.at, What::Note { text: cut(&line.text) }));
    let mut all: Vec<Record> = states.chain(stages).chain(notes).collect();
    all.sort_by_key(|record| record.at);
    all
}

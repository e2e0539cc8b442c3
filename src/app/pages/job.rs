//! A job's page: how it stands, why, what to do, everything that it left behind; and the list of jobs.

use std::sync::Arc;

use axum::{
    extract::{Path, Query, State as Axum},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;

use super::{
    Viewer,
    look::{FindingView, look},
    machine::{JobLine, shown, standing},
    render::{self, values},
};
use crate::{
    app::{
        desk::{Desk, Operation},
        views,
    },
    provision::job::{Job, Resolution, State},
};

/// Jobs on the list.
const LISTED: usize = 500;
/// Characters of syslog on the page: the newest.
const LOG: usize = 60_000;

async fn read(desk: &Desk, id: &str) -> Result<Option<Job>, String> {
    desk.executor.job(id).await.map_err(|error| crate::app::chain(&error))
}

fn live_values(desk: &Desk, job: &Job) -> minijinja::Value {
    let now = desk.clock.now();
    let macs = desk.known.guest(&job.vm_uuid).map(|guest| guest.macs.clone()).unwrap_or_default();
    // What the recorder has belongs to the VM's newest job.
    let is_newest = desk.roster.newest(&job.vm_uuid).is_none_or(|newest| newest.id == job.id);
    let findings = if is_newest { look(desk, &macs, Some(job), now).findings } else { Vec::new() };
    let standing = standing(desk, job, &findings, now);
    let findings: Vec<FindingView> = findings.into_iter().map(|finding| shown(finding, now)).collect();
    let transfers = desk.executor.transfers(&job.id);
    let transfers: Vec<_> =
        transfers.iter().rev().map(|(at, transfer)| views::TransferView::of(*at, transfer)).collect();
    let mut view = views::full(job, now);
    view.log.reverse();
    values! {
        id => job.id.clone(), uuid => job.vm_uuid.clone(), findings, transfers, view, standing,
        waits => job.state == State::NeedsOperator,
    }
}

/// What can be done with a job now.
fn doable(job: &Job) -> minijinja::Value {
    let live = !job.state.is_terminal() && job.state != State::NeedsOperator;
    values! {
        cancel => live,
        retry => matches!(job.state, State::Failed | State::Cancelled),
        resolve => job.state == State::NeedsOperator,
        finish => live && job.profile.kind == crate::config::ProfileKind::Rescue && !job.finished,
    }
}

/// `GET /jobs/{id}`.
pub(super) async fn job(viewer: Viewer, Axum(desk): Axum<Arc<Desk>>, Path(id): Path<String>) -> Response {
    let job = match read(&desk, &id).await {
        Ok(Some(job)) => job,
        Ok(None) => {
            return viewer.missing("There is no such job", "It may have been pruned from the history.");
        }
        Err(problem) => return viewer.unavailable(&problem),
    };
    let log = desk.log(&id).await.unwrap_or_default();
    let from = log.char_indices().nth_back(LOG).map_or(0, |(at, _)| at);
    let log = log.get(from..).unwrap_or_default();
    viewer.page(
        "job.html",
        "jobs",
        values! { log, may => viewer.may_operate(), can => doable(&job), ..live_values(&desk, &job) },
    )
}

/// `GET /jobs/{id}/live`: the part that changes.
pub(super) async fn live(Axum(desk): Axum<Arc<Desk>>, Path(id): Path<String>) -> Response {
    match read(&desk, &id).await {
        Ok(Some(job)) => render::page("job_live.html", live_values(&desk, &job)),
        Ok(None) => StatusCode::NOT_FOUND.into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// What the list shows.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Which {
    /// Only jobs in this state.
    #[serde(default)]
    state: String,
}

/// `GET /jobs`.
pub(super) async fn jobs(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Query(which): Query<Which>,
) -> Response {
    let now = desk.clock.now();
    let lines = desk.roster.lines(None, usize::MAX).into_iter();
    let wanted = lines.filter(|line| which.state.is_empty() || line.state.to_string() == which.state);
    let jobs: Vec<JobLine> = wanted.take(LISTED).map(|line| JobLine::of(line, now)).collect();
    let states: Vec<String> = State::ALL.iter().map(ToString::to_string).collect();
    viewer.page("jobs.html", "jobs", values! { jobs, states, state => which.state, most => LISTED })
}

/// An operation of its name in the address.
pub(super) fn operation(name: &str) -> Option<Operation> {
    Some(match name {
        "cancel" => Operation::Cancel,
        "retry" => Operation::Retry,
        "finish" => Operation::Finish,
        "restore" => Operation::Resolve(Resolution::Restore),
        "accept" => Operation::Resolve(Resolution::Accept),
        "abandon" => Operation::Resolve(Resolution::Abandon),
        _ => return None,
    })
}

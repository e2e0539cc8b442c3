//! A machine's page: how it is, what that means, and its flight recorder; the same as JSON.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, State as Axum},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    Viewer,
    look::{FindingView, Look, RecordView, ago, first_hold, guest, left, look, percent, plain, stage, tone},
    render::{self, values},
};
use crate::{
    app::{
        desk::Desk,
        inventory::Guest,
        orders::{RenderKind, RenderOrder},
        roster::Line,
        views::{self, JobView},
    },
    clock::Timestamp,
    machine::MacAddr,
    provision::job::{Job, State},
    recorder::{Source, diagnose::Finding},
};

/// Records on a page; the download has all.
const SHOWN: usize = 400;
/// Earlier jobs on a page.
const JOBS: usize = 20;

/// Which records are shown.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Which {
    /// Of one source.
    #[serde(default)]
    source: String,
}

/// How a job goes, as its box shows it.
#[derive(Debug, Serialize)]
pub(super) struct Standing {
    id: String,
    state: String,
    tone: &'static str,
    plain: &'static str,
    profile: String,
    stage: String,
    percent: Option<u8>,
    left: Option<String>,
    since: String,
    begun: String,
    attempt: u32,
    reason: Option<String>,
    detail: String,
    /// What holds it up, where that is known.
    hold: Option<String>,
    next: String,
    over: bool,
    steps: Vec<Step>,
}

/// A state that a job goes through.
#[derive(Debug, Serialize)]
pub(super) struct Step {
    name: &'static str,
    /// `done`, `now`, `broke` or nothing.
    how: &'static str,
}

/// The way of a job that goes well.
const WAY: [(State, &str); 8] = [
    (State::Queued, "queued"),
    (State::Preparing, "prepared"),
    (State::Flipping, "flipped"),
    (State::Booting, "booted"),
    (State::Installing, "installed"),
    (State::Restoring, "restored"),
    (State::Starting, "started"),
    (State::Verifying, "verified"),
];

/// How far the newest attempt came on its way, and where it left it.
fn steps(job: &Job) -> Vec<Step> {
    let attempt = job.history.iter().rposition(|mark| mark.state == State::Queued).unwrap_or_default();
    let entered = |state: State| job.history.iter().skip(attempt).any(|mark| mark.state == state);
    let furthest = WAY.iter().rposition(|(state, _)| entered(*state)).unwrap_or_default();
    let left_it = match job.state {
        State::Undoing | State::NeedsOperator | State::Failed | State::Cancelled => true,
        State::Queued
        | State::Preparing
        | State::Flipping
        | State::Booting
        | State::Installing
        | State::Restoring
        | State::Starting
        | State::Verifying
        | State::Succeeded => false,
    };
    let step = |(number, (_, name)): (usize, &(State, &'static str))| Step {
        name,
        how: match number.cmp(&furthest) {
            std::cmp::Ordering::Less => "done",
            std::cmp::Ordering::Equal if job.state == State::Succeeded => "done",
            std::cmp::Ordering::Equal if left_it => "broke",
            std::cmp::Ordering::Equal => "now",
            std::cmp::Ordering::Greater => "",
        },
    };
    WAY.iter().enumerate().map(step).collect()
}

/// How a job stands.
pub(super) fn standing(desk: &Desk, job: &Job, findings: &[Finding], now: Timestamp) -> Standing {
    // Of what has ended the reason counts; of what goes on, what holds it up now.
    let hold = first_hold(findings).filter(|_| !job.state.is_terminal() && job.state != State::NeedsOperator);
    let last = job.history.last().map_or(job.created, |mark| mark.at);
    let over = job.state.is_terminal() || job.state == State::NeedsOperator;
    let told = job.reason.filter(|_| over || job.state == State::Undoing);
    Standing {
        id: job.id.clone(),
        state: job.state.to_string(),
        tone: tone(job.state),
        plain: plain(job.state),
        profile: job.profile.name.clone(),
        stage: stage(job),
        percent: percent(job),
        left: desk.roster.left(job, now).map(left),
        since: ago(last, now),
        begun: ago(job.created, now),
        attempt: job.attempt,
        reason: told.map(|reason| reason.label().to_owned()),
        detail: views::full(job, now).detail,
        next: match (hold, told) {
            (Some(hold), _) => hold.step.clone(),
            (None, Some(reason)) => reason.remedy().to_owned(),
            (None, None) => views::next_step(job),
        },
        hold: hold.map(|hold| hold.saw.clone()),
        over,
        steps: steps(job),
    }
}

/// What the live part of the page shows.
fn live_values(desk: &Desk, uuid: &str, source: &str) -> Option<(Option<Arc<Guest>>, minijinja::Value)> {
    let now = desk.clock.now();
    let (guest, job) = guest(desk, uuid);
    if guest.is_none() && job.is_none() {
        return None;
    }
    let macs = guest.as_ref().map(|guest| guest.macs.clone()).unwrap_or_default();
    let Look { records, findings } = look(desk, &macs, job.as_deref(), now);
    let standing = job.as_deref().map(|job| standing(desk, job, &findings, now));
    let findings: Vec<FindingView> = findings.into_iter().map(|finding| shown(finding, now)).collect();
    let mut counts: Vec<(&str, usize)> = Source::ALL
        .iter()
        .map(|of| (of.label(), records.iter().filter(|record| record.source() == *of).count()))
        .collect();
    counts.retain(|(_, count)| *count > 0);
    let wanted = records.into_iter().filter(|record| source.is_empty() || record.source().label() == source);
    let mut rows: Vec<RecordView> = wanted.map(RecordView::of).collect();
    // The newest on top: who looks at a stuck machine wants the end.
    rows.reverse();
    let all = rows.len();
    rows.truncate(SHOWN);
    let values = values! {
        uuid, source, findings, counts, rows, all,
        standing,
        boots => job.as_ref().and_then(|job| job.mac).map(|mac| mac.to_string()),
        power => guest.as_ref().map(|guest| guest.view.power_state.clone()),
        next_boot => guest.as_ref().map(|guest| guest.view.next_boot.clone()),
    };
    Some((guest, values))
}

/// A finding, with how long ago it began.
pub(super) fn shown(finding: Finding, now: Timestamp) -> FindingView {
    let ago = finding.since.map(|since| ago(since, now));
    FindingView { name: finding.kind.label(), ago, finding }
}

/// A line of an earlier job.
#[derive(Debug, Serialize)]
pub(super) struct JobLine {
    id: String,
    vm: String,
    vm_uuid: String,
    pool: String,
    profile: String,
    state: String,
    tone: &'static str,
    reason: Option<&'static str>,
    created: String,
    ago: String,
    asked_by: String,
}

impl JobLine {
    pub(super) fn of(line: Line, now: Timestamp) -> Self {
        Self {
            id: line.id,
            vm: line.vm,
            vm_uuid: line.vm_uuid,
            pool: line.pool,
            profile: line.profile,
            state: line.state.to_string(),
            tone: tone(line.state),
            reason: line.reason,
            created: line.created.to_string(),
            ago: ago(line.created, now),
            asked_by: line.asked_by,
        }
    }
}

/// `GET /machines/{uuid}`.
pub(super) async fn machine(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Path(uuid): Path<String>,
    Query(which): Query<Which>,
) -> Response {
    let Some((guest, live)) = live_values(&desk, &uuid, &which.source) else {
        return viewer.missing(
            "There is no such machine",
            "No pool has a VM of this uuid, and no job was made for one.",
        );
    };
    let now = desk.clock.now();
    let name = guest.as_ref().map(|guest| guest.view.name.clone());
    let name = name.or_else(|| desk.roster.newest(&uuid).map(|job| job.vm_name.clone())).unwrap_or_default();
    let jobs: Vec<JobLine> =
        desk.roster.lines(Some(&uuid), JOBS).into_iter().map(|line| JobLine::of(line, now)).collect();
    let macs: Vec<String> = guest.iter().flat_map(|guest| &guest.macs).map(MacAddr::to_string).collect();
    let config = desk.config.now();
    let profiles: Vec<&String> = config.profiles.keys().collect();
    let view = guest.as_ref().map(|guest| &guest.view);
    viewer.page(
        "machine.html",
        "fleet",
        values! { name, macs, jobs, profiles, view, may => viewer.may_operate(), ..live },
    )
}

/// `GET /machines/{uuid}/live`: the part that changes.
pub(super) async fn live(
    Axum(desk): Axum<Arc<Desk>>,
    Path(uuid): Path<String>,
    Query(which): Query<Which>,
) -> Response {
    match live_values(&desk, &uuid, &which.source) {
        Some((_, values)) => render::page("machine_live.html", values),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The download.
#[derive(Debug, Serialize)]
struct FlightLog {
    format: &'static str,
    made_at: String,
    server: String,
    vm_uuid: String,
    vm: Option<String>,
    macs: Vec<MacAddr>,
    findings: Vec<FindingView>,
    records: Vec<RecordView>,
    job: Option<JobView>,
}

/// `GET /machines/{uuid}/flight.json`.
pub(super) async fn flight(Axum(desk): Axum<Arc<Desk>>, Path(uuid): Path<String>) -> Response {
    let now = desk.clock.now();
    let (guest, job) = guest(&desk, &uuid);
    if guest.is_none() && job.is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    let macs = guest.as_ref().map(|guest| guest.macs.clone()).unwrap_or_default();
    let Look { records, findings } = look(&desk, &macs, job.as_deref(), now);
    let log = FlightLog {
        format: "bootflip-flight/1",
        made_at: now.to_string(),
        server: desk.config.now().server_name.clone(),
        vm: guest.as_ref().map(|guest| guest.view.name.clone()),
        macs,
        findings: findings.into_iter().map(|finding| shown(finding, now)).collect(),
        records: records.into_iter().map(RecordView::of).collect(),
        job: job.map(|job| views::full(&job, now)),
        vm_uuid: uuid,
    };
    // The uuid stands in a header only where it is one.
    let name: String =
        log.vm_uuid.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '-').take(64).collect();
    let as_file = format!("attachment; filename=\"flight-{name}.json\"");
    ([(header::CONTENT_DISPOSITION, as_file), (header::CACHE_CONTROL, "no-store".to_owned())], Json(log))
        .into_response()
}

/// Which files are rendered.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Rendered {
    /// With this profile.
    #[serde(default)]
    profile: Option<String>,
}

/// `GET /machines/{uuid}/files`: what it would be served, secrets masked, tokens replaced.
pub(super) async fn files(
    Axum(desk): Axum<Arc<Desk>>,
    Path(uuid): Path<String>,
    Query(rendered): Query<Rendered>,
) -> Response {
    let profile = rendered.profile.filter(|name| !name.is_empty());
    let order = RenderOrder { kind: RenderKind::All, vm: uuid, profile, file: None, secrets: false };
    let (text, problem) = match desk.render(&order).await {
        Ok(text) => (text, String::new()),
        Err(error) => (String::new(), crate::app::chain(&error)),
    };
    render::page("files.html", values! { text, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_has_every_state_that_a_good_job_goes_through() {
        let end = [State::Undoing, State::NeedsOperator, State::Succeeded, State::Failed, State::Cancelled];
        let on_way: Vec<State> = WAY.iter().map(|(state, _)| *state).collect();
        for state in State::ALL {
            assert!(on_way.contains(&state) != end.contains(&state), "{state}");
        }
    }
}

//! The fleet: every guest with its state, stage, progress and time left, those that need somebody first. What is shown
//! is in memory: no pool is asked, so that a page costs the same whether pools answer or not.

use std::{collections::HashMap, sync::Arc};

use axum::{
    extract::{Query, State as Axum},
    response::Response,
};
use serde::{Deserialize, Serialize};

use super::{
    Viewer,
    look::{first_hold, left, look, percent, plain, stage, tone},
    render::values,
};
use crate::{
    app::{desk::Desk, inventory::Guest},
    clock::Timestamp,
    provision::job::{Job, State},
};

/// Rows on one page, unless asked for.
const ROWS: usize = 100;
/// The most.
const ROWS_MOST: usize = 2000;

/// Which machines are shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Show {
    /// All.
    #[default]
    All,
    /// Those that wait for somebody, and those that failed.
    Attention,
    /// Those with a live job.
    Running,
    /// Those whose newest job went well.
    Done,
    /// Those without a job.
    Idle,
}

/// What a reader asks for.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Filter {
    /// Part of a name, uuid, MAC, tag, profile or state.
    #[serde(default)]
    pub(super) q: String,
    /// Which.
    #[serde(default)]
    pub(super) show: Show,
    /// Of this pool only.
    #[serde(default)]
    pub(super) pool: String,
    /// From 1.
    #[serde(default)]
    pub(super) page: usize,
    /// Rows on a page.
    #[serde(default)]
    pub(super) rows: usize,
}

impl Filter {
    fn rows(&self) -> usize {
        if self.rows == 0 { ROWS } else { self.rows.min(ROWS_MOST) }
    }
}

/// A machine, with its newest job.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) guest: Arc<Guest>,
    pub(super) job: Option<Arc<Job>>,
}

/// Where a machine stands in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    NeedsSomebody,
    Failed,
    Running,
    Queued,
    Rest,
}

impl Machine {
    fn rank(&self) -> Rank {
        match self.job.as_ref().map(|job| job.state) {
            Some(State::NeedsOperator) => Rank::NeedsSomebody,
            Some(State::Failed) => Rank::Failed,
            Some(
                State::Preparing
                | State::Flipping
                | State::Booting
                | State::Installing
                | State::Restoring
                | State::Starting
                | State::Verifying
                | State::Undoing,
            ) => Rank::Running,
            Some(State::Queued) => Rank::Queued,
            Some(State::Succeeded | State::Cancelled) | None => Rank::Rest,
        }
    }

    fn is_shown(&self, show: Show) -> bool {
        let state = self.job.as_ref().map(|job| job.state);
        match show {
            Show::All => true,
            Show::Attention => matches!(self.rank(), Rank::NeedsSomebody | Rank::Failed),
            Show::Running => state.is_some_and(|state| !state.is_terminal() && state != State::NeedsOperator),
            Show::Done => state == Some(State::Succeeded),
            Show::Idle => state.is_none(),
        }
    }

    fn fits(&self, filter: &Filter) -> bool {
        let view = &self.guest.view;
        let in_pool = filter.pool.is_empty() || view.pool == filter.pool;
        let wanted = filter.q.trim().to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&wanted);
        let job = |job: &Arc<Job>| has(&job.profile.name) || has(&job.state.to_string()) || has(&job.id);
        in_pool
            && (wanted.is_empty()
                || has(&view.name)
                || has(&view.uuid)
                || view.tags.iter().any(|tag| has(tag))
                || self.guest.macs.iter().any(|mac| has(&mac.to_string()))
                || self.job.as_ref().is_some_and(job))
    }
}

/// All machines, those first that need somebody.
pub(super) fn machines(desk: &Desk) -> Vec<Machine> {
    let jobs: HashMap<String, Arc<Job>> = desk.roster.all_newest();
    let machine = |guest: Arc<Guest>| Machine { job: jobs.get(&guest.view.uuid).cloned(), guest };
    let mut all: Vec<Machine> = desk.known.guests().into_iter().map(machine).collect();
    all.sort_by_cached_key(|machine| {
        let view = &machine.guest.view;
        (machine.rank(), view.name.clone(), view.uuid.clone())
    });
    all
}

/// How many there are of each kind.
#[derive(Debug, Default, Serialize)]
pub(super) struct Counts {
    all: usize,
    attention: usize,
    running: usize,
    done: usize,
    idle: usize,
}

/// Counts machines.
pub(super) fn counts(machines: &[Machine]) -> Counts {
    let of = |show| machines.iter().filter(|machine| machine.is_shown(show)).count();
    Counts {
        all: machines.len(),
        attention: of(Show::Attention),
        running: of(Show::Running),
        done: of(Show::Done),
        idle: of(Show::Idle),
    }
}

/// One line of the table.
#[derive(Debug, Serialize)]
pub(super) struct Row {
    uuid: String,
    name: String,
    pool: String,
    power: String,
    tags: Vec<String>,
    job: Option<String>,
    profile: String,
    state: String,
    tone: &'static str,
    stage: String,
    percent: Option<u8>,
    left: Option<String>,
    /// What is the matter, or how it goes.
    why: String,
    /// What to do.
    next: String,
}

/// A machine's line.
pub(super) fn row(desk: &Desk, machine: &Machine, now: Timestamp) -> Row {
    let view = &machine.guest.view;
    let blank = Row {
        uuid: view.uuid.clone(),
        name: view.name.clone(),
        pool: view.pool.clone(),
        power: view.power_state.clone(),
        tags: view.tags.clone(),
        job: None,
        profile: String::new(),
        state: "no job".to_owned(),
        tone: "",
        stage: String::new(),
        percent: None,
        left: None,
        why: String::new(),
        next: String::new(),
    };
    let Some(job) = machine.job.as_deref() else { return blank };
    let (why, next) = why(desk, machine, job, now);
    Row {
        job: Some(job.id.clone()),
        profile: job.profile.name.clone(),
        state: job.state.to_string(),
        tone: tone(job.state),
        stage: stage(job),
        percent: percent(job),
        left: desk.roster.left(job, now).map(left),
        why,
        next,
        ..blank
    }
}

/// What is the matter with it, and what to do.
fn why(desk: &Desk, machine: &Machine, job: &Job, now: Timestamp) -> (String, String) {
    let reason = job.reason.filter(|_| job.state.is_terminal() || job.state == State::NeedsOperator);
    match (job.state, reason) {
        (State::Succeeded | State::Cancelled, _) => (String::new(), String::new()),
        (_, Some(reason)) => {
            let detail = if job.detail.is_empty() { String::new() } else { format!(": {}", job.detail) };
            (format!("{}{detail}", reason.label()), reason.remedy().to_owned())
        }
        (State::Queued, None) => ("It waits for a free slot of its pool or host.".to_owned(), String::new()),
        (_, None) => {
            let looked = look(desk, &machine.guest.macs, Some(job), now);
            match first_hold(&looked.findings) {
                Some(finding) => (finding.saw.clone(), finding.step.clone()),
                None => (format!("It {}.", plain(job.state)), String::new()),
            }
        }
    }
}

/// The machines of a page, how many fit the filter, and the page's number.
pub(super) fn page(machines: &[Machine], filter: &Filter) -> (Vec<Machine>, usize, usize) {
    let fit = |machine: &&Machine| machine.is_shown(filter.show) && machine.fits(filter);
    let fitting: Vec<&Machine> = machines.iter().filter(fit).collect();
    let pages = fitting.len().div_ceil(filter.rows()).max(1);
    let page = filter.page.clamp(1, pages);
    let shown = fitting.iter().skip((page - 1) * filter.rows()).take(filter.rows());
    (shown.map(|machine| (*machine).clone()).collect(), fitting.len(), page)
}

/// `GET /`.
pub(super) async fn fleet(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Query(filter): Query<Filter>,
) -> Response {
    let now = desk.clock.now();
    let machines = machines(&desk);
    let (shown, found, page) = page(&machines, &filter);
    let rows: Vec<Row> = shown.iter().map(|machine| row(&desk, machine, now)).collect();
    let pages = found.div_ceil(filter.rows()).max(1);
    let away: Vec<_> = desk.health().pools_away;
    let config = desk.config.now();
    let profiles: Vec<&String> = config.profiles.keys().collect();
    let pools: Vec<&String> = config.pools.keys().collect();
    let query = |page: usize| as_query(&Filter { page, ..filter.clone() });
    viewer.page(
        "fleet.html",
        "fleet",
        values! {
            rows, found, page, pages, away, profiles, pools, filter, counts => counts(&machines),
            query => query(page), before => query(page.saturating_sub(1)), after => query(page + 1),
            may => viewer.may_operate(),
        },
    )
}

/// A filter as a query string.
pub(super) fn as_query(filter: &Filter) -> String {
    let show = serde_json::to_value(filter.show).ok();
    let show = show.as_ref().and_then(|show| show.as_str()).unwrap_or("all").to_owned();
    let pairs = [
        ("q", filter.q.clone()),
        ("show", show),
        ("pool", filter.pool.clone()),
        ("page", filter.page.to_string()),
        ("rows", filter.rows.to_string()),
    ];
    let written = pairs.iter().map(|(name, value)| format!("{name}={}", escaped(value)));
    written.collect::<Vec<_>>().join("&")
}

/// RFC 3986 §2.1: everything but unreserved characters by its bytes.
pub(super) fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let piece = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    text.bytes().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_query_whatever_it_holds() {
        let filter = Filter { q: "a&b=\"ü".into(), show: Show::Attention, page: 2, ..Filter::default() };
        assert_eq!(as_query(&filter), "q=a%26b%3D%22%C3%BC&show=attention&pool=&page=2&rows=0");
    }
}

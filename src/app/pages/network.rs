//! Pools, leases and transfers.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    extract::{Path, State as Axum},
    response::Response,
};
use serde::Serialize;

use super::{
    Viewer,
    look::{RecordView, ago},
    render::values,
};
use crate::{
    app::{desk::Desk, machines::VmView, planning},
    boot::going::Going,
    clock::Timestamp,
    config::{PoolConfig, TlsTrust},
    provision::job::State,
    recorder::{What, words},
    store::leases,
};

/// Transfers on the page.
const TRANSFERS: usize = 300;

#[derive(Debug, Serialize)]
struct PoolLine {
    name: String,
    url: String,
    trust: &'static str,
    problem: Option<String>,
    guests: usize,
    running: usize,
    queued: usize,
    waiting: usize,
}

fn pool_line(desk: &Desk, pool: &PoolConfig) -> PoolLine {
    let problems = desk.known.problems();
    let jobs = desk.roster.all_newest();
    let of_pool = jobs.values().filter(|job| job.pool == pool.name);
    let (mut running, mut queued, mut waiting) = (0, 0, 0);
    for job in of_pool {
        match job.state {
            State::Queued => queued += 1,
            State::NeedsOperator => waiting += 1,
            State::Preparing
            | State::Flipping
            | State::Booting
            | State::Installing
            | State::Restoring
            | State::Starting
            | State::Verifying
            | State::Undoing => running += 1,
            State::Succeeded | State::Failed | State::Cancelled => {}
        }
    }
    PoolLine {
        name: pool.name.clone(),
        url: pool.url.clone(),
        trust: match pool.tls {
            TlsTrust::Ca(_) => "by its CA",
            TlsTrust::Pins(_) => "by its pinned certificate",
            TlsTrust::PlainHttp => "not at all: there is no TLS, and the password is readable on the way",
            TlsTrust::Insecure => "not at all: anybody in the way can read the password",
        },
        problem: match problems.get(&pool.name) {
            Some(problem) => problem.clone(),
            None => Some("it has not been read yet".to_owned()),
        },
        guests: desk.known.guests().iter().filter(|guest| guest.view.pool == pool.name).count(),
        running,
        queued,
        waiting,
    }
}

/// `GET /pools`.
pub(super) async fn pools(viewer: Viewer, Axum(desk): Axum<Arc<Desk>>) -> Response {
    let config = desk.config.now();
    let pools: Vec<PoolLine> = config.pools.values().map(|pool| pool_line(&desk, pool)).collect();
    viewer.page("pools.html", "pools", values! { pools })
}

/// `GET /pools/{name}`: asks the pool for its hosts.
pub(super) async fn pool(viewer: Viewer, Axum(desk): Axum<Arc<Desk>>, Path(name): Path<String>) -> Response {
    let current = desk.config.now();
    let (Some(config), Some(api)) = (current.pools.get(&name), desk.apis.get(&name)) else {
        return viewer.missing("There is no such pool", "The configuration has no pool of this name.");
    };
    let (hosts, problem) = match planning::pool(&name, api, &current.limits, &[]).await {
        Ok(plan) => (plan.hosts, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let gib = |bytes: u64| format!("{}.{} GiB", bytes >> 30, (bytes >> 20) % 1024 * 10 / 1024);
    let hosts: Vec<_> = hosts
        .into_iter()
        .map(|host| {
            let (memory, free) = (gib(host.memory), host.free.map(gib));
            values! { memory, free, host }
        })
        .collect();
    let known = desk.known.guests();
    let claimed: Vec<&VmView> = known
        .iter()
        .map(|guest| &guest.view)
        .filter(|view| view.pool == name && view.claim.is_some())
        .collect();
    viewer.page("pool.html", "pools", values! {
                line => pool_line(&desk, config), hosts, problem, claimed, allow => config.allow, user => config.user,
                per_pool => current.limits.installs_per_pool, per_host => current.limits.installs_per_host,
            })
}

#[derive(Debug, Serialize)]
struct LeaseLine {
    address: String,
    mac: String,
    vm: Option<(String, String)>,
    ends: String,
    over: bool,
}

fn in_future(until: Timestamp, now: Timestamp) -> String {
    let left = u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX);
    if left == 0 { "ended".to_owned() } else { format!("in {}", words::span(left)) }
}

/// `GET /leases`.
pub(super) async fn leases(viewer: Viewer, Axum(desk): Axum<Arc<Desk>>) -> Response {
    let now = desk.clock.now();
    let read = match leases::all(&*desk.store).await {
        Ok(mut read) => {
            read.sort_by_key(|lease| lease.address);
            read
        }
        Err(error) => return viewer.unavailable(&error.to_string()),
    };
    let guests = desk.known.guests();
    let owners: BTreeMap<_, _> = guests
        .iter()
        .flat_map(|guest| {
            guest.macs.iter().map(|mac| (*mac, (guest.view.uuid.clone(), guest.view.name.clone())))
        })
        .collect();
    let lines: Vec<LeaseLine> = read
        .iter()
        .map(|lease| LeaseLine {
            address: lease.address.to_string(),
            mac: lease.mac.to_string(),
            vm: owners.get(&lease.mac).cloned(),
            ends: in_future(lease.until, now),
            over: lease.until <= now,
        })
        .collect();
    let boards: Vec<_> = desk.dhcp.iter().map(|board| board.read()).collect();
    let boards: Vec<_> = boards
        .into_iter()
        .map(|status| {
            let rivals: Vec<_> = status
                .neighbours
                .iter()
                .map(|rival| {
                    values! { server => rival.server.to_string(), leases => rival.leases, boots => rival.boots,
                    in_the_way => rival.in_the_way, ago => ago(rival.last, now) }
                })
                .collect();
            let full: Vec<_> = status
                .nearly_full
                .iter()
                .map(|full| values! { first => full.range.0.to_string(), last => full.range.1.to_string(), taken => full.taken, size => full.size })
                .collect();
            values! { interface => status.interface, mode => status.mode, rivals, full }
        })
        .collect();
    let strangers = desk.flight.read(|recorder| recorder.strangers());
    let strangers: Vec<RecordView> = strangers.into_iter().rev().map(RecordView::of).collect();
    viewer.page("leases.html", "leases", values! { lines, boards, strangers })
}

#[derive(Debug, Serialize)]
struct TransferLine {
    time: String,
    ago: String,
    protocol: &'static str,
    peer: String,
    vm: Option<(String, String)>,
    file: String,
    size: String,
    took: String,
    outcome: String,
    tone: String,
}

#[derive(Debug, Serialize)]
struct RunningLine {
    protocol: &'static str,
    peer: String,
    vm: Option<(String, String)>,
    file: String,
    sent: String,
    size: String,
    percent: u64,
    rate: String,
}

impl RunningLine {
    fn of(going: &Going, vm: Option<(String, String)>) -> Self {
        let (sent, took) = (going.sent(), going.begun.elapsed());
        let each_second = u128::from(sent) * 1000 / took.as_millis().max(1);
        Self {
            protocol: going.protocol.label(),
            peer: going.peer.to_string(),
            vm,
            file: going.file.clone(),
            sent: words::size(sent),
            size: words::size(going.length),
            percent: (sent * 100).checked_div(going.length).unwrap_or(100).min(100),
            rate: format!("{}/s", words::size(u64::try_from(each_second).unwrap_or(u64::MAX))),
        }
    }
}

/// `GET /transfers`.
pub(super) async fn transfers(viewer: Viewer, Axum(desk): Axum<Arc<Desk>>) -> Response {
    let now = desk.clock.now();
    let guests = desk.known.guests();
    let owner = |mac| {
        let guest = guests.iter().find(|guest| guest.macs.contains(&mac))?;
        Some((guest.view.uuid.clone(), guest.view.name.clone()))
    };
    let line = |record: crate::recorder::Record| {
        let view = (record.source().label(), format!("{:?}", record.tone()).to_lowercase());
        let What::Fetched { file, bytes, milliseconds, outcome, .. } = record.what else { return None };
        Some(TransferLine {
            time: record.last.to_string(),
            ago: ago(record.last, now),
            protocol: view.0,
            peer: record.peer.map(|peer| peer.to_string()).unwrap_or_default(),
            vm: record.mac.and_then(owner),
            file,
            size: words::size(bytes),
            took: words::span(milliseconds),
            outcome: words::outcome_words(outcome).to_owned(),
            tone: view.1,
        })
    };
    let records = desk.flight.read(|recorder| recorder.transfers(TRANSFERS));
    let lines: Vec<TransferLine> = records.into_iter().filter_map(line).collect();
    let running = desk.flight.going();
    let running: Vec<RunningLine> =
        running.iter().map(|going| RunningLine::of(going, owner(going.mac))).collect();
    viewer.page("transfers.html", "transfers", values! { lines, running })
}

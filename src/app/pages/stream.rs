//! Server-sent events for open pages: cells of the fleet whose jobs changed, and "look again" for a machine or a job.
//! At most one message a second to each page, however much happens.

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    sync::Arc,
    time::Duration,
};

use axum::{
    extract::{Path, Query, State as Axum},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream::{self, Stream};
use tokio::{sync::broadcast, time::Instant};

use super::{
    fleet::{Filter, Machine, counts, machines, page, row},
    look::guest,
    render::{self, values},
};
use crate::{
    app::{desk::Desk, flight::News},
    machine::MacAddr,
};

/// Between two messages to one page.
const PACE: Duration = Duration::from_secs(1);
/// Rows that no news came of are told anew so often: times left and findings change with the clock alone.
const ANEW: Duration = Duration::from_secs(15);

/// What happened since the last message.
#[derive(Debug, Default)]
struct Gathered {
    vms: BTreeSet<String>,
    macs: BTreeSet<MacAddr>,
    /// More than the channel holds: everything may have changed.
    all: bool,
}

impl Gathered {
    fn take(&mut self, news: Result<News, broadcast::error::RecvError>) -> bool {
        match news {
            Ok(News::Machine(mac)) => drop(self.macs.insert(mac)),
            Ok(News::Job { vm_uuid, job: _ }) => drop(self.vms.insert(vm_uuid)),
            Err(broadcast::error::RecvError::Lagged(_)) => self.all = true,
            Err(broadcast::error::RecvError::Closed) => return false,
        }
        true
    }
}

/// Waits for the first news, then until the pace allows a message. `None`: the server stops.
async fn gather(news: &mut broadcast::Receiver<News>, last: Instant) -> Option<Gathered> {
    let mut gathered = Gathered::default();
    match tokio::time::timeout(ANEW, news.recv()).await {
        Ok(first) => {
            if !gathered.take(first) {
                return None;
            }
        }
        Err(_) => gathered.all = true,
    }
    let until = last + PACE;
    while let Ok(more) = tokio::time::timeout_at(until, news.recv()).await {
        if !gathered.take(more) {
            return None;
        }
    }
    // What came while nobody waited.
    while let Ok(more) = news.try_recv() {
        gathered.take(Ok(more));
    }
    Some(gathered)
}

/// Messages made from what happened; `tell` says which, or that there is none.
fn follow<F>(desk: Arc<Desk>, tell: F) -> Response
where
    F: Fn(&Desk, &Gathered) -> Option<Event> + Send + Sync + 'static,
{
    let news = desk.flight.news();
    let begun = Instant::now();
    let tell = Arc::new(tell);
    let events = stream::unfold((news, begun, desk, tell), async |(mut news, mut last, desk, tell)| {
        loop {
            let gathered = tokio::select! {
                () = desk.stop.cancelled() => return None,
                gathered = gather(&mut news, last) => gathered?,
            };
            last = Instant::now();
            if let Some(event) = tell(&desk, &gathered) {
                return Some((Ok(event), (news, last, desk, tell)));
            }
        }
    });
    sse(events)
}

fn sse(events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static) -> Response {
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

/// `GET /events/fleet`: the cells of rows on that page whose jobs or records changed, for swapping out of band.
pub(super) async fn fleet(Axum(desk): Axum<Arc<Desk>>, Query(filter): Query<Filter>) -> Response {
    let (shown, ..) = page(&machines(&desk), &filter);
    let shown: BTreeMap<String, Vec<MacAddr>> = shown
        .into_iter()
        .map(|Machine { guest, .. }| (guest.view.uuid.clone(), guest.macs.clone()))
        .collect();
    follow(desk, move |desk, gathered| {
        let all = machines(desk);
        let is_changed = |machine: &&Machine| {
            let uuid = &machine.guest.view.uuid;
            let on_page = shown.get(uuid);
            let heard = |macs: &Vec<MacAddr>| macs.iter().any(|mac| gathered.macs.contains(mac));
            let lives = machine.job.as_ref().is_some_and(|job| !job.state.is_terminal());
            on_page
                .is_some_and(|macs| gathered.vms.contains(uuid) || (lives && (gathered.all || heard(macs))))
        };
        let now = desk.clock.now();
        let rows: Vec<_> = all.iter().filter(is_changed).map(|machine| row(desk, machine, now)).collect();
        if rows.is_empty() && gathered.vms.is_empty() {
            return None;
        }
        let filter = Filter::default();
        let values = values! { rows, filter, counts => counts(&all), swap => true };
        match render::text("fleet_cells.html", values) {
            Ok(text) => Some(Event::default().event("cells").data(text)),
            Err(error) => {
                tracing::error!(%error, "cells do not render");
                None
            }
        }
    })
}

/// `GET /machines/{uuid}/events`: "changed" when the machine's records or its job did.
pub(super) async fn machine(Axum(desk): Axum<Arc<Desk>>, Path(uuid): Path<String>) -> Response {
    follow(desk, move |desk, gathered| {
        let (guest, job) = guest(desk, &uuid);
        let own = job.as_ref().and_then(|job| job.mac);
        let macs = guest.map(|guest| guest.macs.clone()).unwrap_or_default();
        let lives = job.is_some_and(|job| !job.state.is_terminal());
        let heard = macs.iter().chain(&own).any(|mac| gathered.macs.contains(mac));
        let changed = heard || gathered.vms.contains(&uuid) || (gathered.all && lives);
        changed.then(|| Event::default().event("changed").data("1"))
    })
}

/// `GET /events/all`: "changed" when anything did.
pub(super) async fn all(Axum(desk): Axum<Arc<Desk>>) -> Response {
    follow(desk, |_, _| Some(Event::default().event("changed").data("1")))
}

//! `GET /events`: changes of jobs as they come (server-sent events, WHATWG HTML §9.2).
//!
//! Invariant: an event's id is the store's revision, so that a client that comes back with `Last-Event-ID` is told
//! the latest change of every job that it missed. A client that reads too slowly is cut off, and comes back.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::HeaderMap,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::error::TryRecvError;

use super::problem::{Kind, Problems, Refusal};
use crate::{
    app::{desk::Desk, views},
    store::{Batch, Change, Revision, Watch, jobs},
};

/// How often a quiet stream says that it lives: proxies cut off what says nothing for a minute.
const ALIVE: Duration = Duration::from_secs(15);

/// Changes of jobs, as server-sent events. `job`: a job as in `GET /jobs`; `gone`: a job that was pruned; `reset`: what
/// came in between is not known any more, list again. Ids are revisions; `Last-Event-ID` goes on from there.
#[utoipa::path(get, path = "/events", tag = "jobs",
    params(("Last-Event-ID" = Option<u64>, Header, description = "The id of the last event that was seen")),
    responses((status = 200, description = "Events, without end", body = String, content_type = "text/event-stream"), Problems))]
pub(super) async fn events(
    State(desk): State<Arc<Desk>>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Refusal> {
    let last = headers.get("last-event-id").map(|value| value.to_str().unwrap_or_default());
    let last: Option<Revision> = match last.filter(|last| !last.is_empty()) {
        Some(last) => Some(last.parse().map_err(|_| {
            Refusal::new(Kind::InvalidRequest, "Last-Event-ID is the id of an event, a number")
        })?),
        None => None,
    };
    // The feed first, then what was read before: nothing falls in between.
    let (from, mut watch) = begin(&desk, last).await?;
    let mut first = Vec::new();
    if let Some(last) = last {
        match watch.try_recv() {
            Ok(change) => first.extend(told(&desk, &change)),
            Err(TryRecvError::Empty) => {}
            // The store no longer remembers that far back, or never got that far: another database.
            Err(TryRecvError::Disconnected) => {
                tracing::debug!(last, "a stream begins anew");
                let (now, anew) = begin(&desk, None).await?;
                watch = anew;
                first.push(Event::default().id(now.to_string()).event("reset").data("{}"));
            }
        }
    } else {
        first.push(Event::default().id(from.to_string()).comment("from now on"));
    }
    let stop = desk.stop.clone();
    let later = stream::unfold((desk, watch), async |(desk, mut watch)| {
        loop {
            let change = watch.recv().await?;
            if let Some(event) = told(&desk, &change) {
                return Some((event, (desk, watch)));
            }
        }
    });
    let events = stream::iter(first).chain(later).map(Ok).take_until(stop.cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(ALIVE)))
}

/// The feed after a revision; without one after what is there now.
async fn begin(desk: &Desk, last: Option<Revision>) -> Result<(Revision, Watch), Refusal> {
    let from = match last {
        Some(last) => last,
        // A commit of nothing tells the revision.
        None => desk.store.commit(Batch::new()).await?,
    };
    Ok((from, desk.store.watch(from).await?))
}

/// A change as an event; `None`: it is about something else.
fn told(desk: &Desk, change: &Change) -> Option<Event> {
    let id = jobs::id_of(&change.key)?;
    let event = Event::default().id(change.revision.to_string());
    let Some(value) = &change.value else {
        return event.event("gone").json_data(serde_json::json!({ "id": id })).ok();
    };
    let job = jobs::read(value).ok()?;
    event.event("job").json_data(views::brief(&job, desk.clock.now())).ok()
}

//! The dashboard: pages made on the server, kept fresh by htmx and server-sent events, usable without either. The
//! routers here say which scope a page needs; nothing below asks.
//!
//! Invariants: pages read memory and the store, and ask a pool only where a reader asked for that one pool; every value
//! is escaped; no page has code or style in it, so that the content security policy can refuse both.

mod assets;
mod fleet;
mod job;
mod look;
mod machine;
mod network;
mod orders;
mod render;
mod stream;

use std::sync::Arc;

use axum::{
    Router,
    extract::{FromRequestParts, Query},
    http::{StatusCode, request::Parts},
    response::Response,
    routing::{get, post},
};
use minijinja::Value;
use serde::Deserialize;

use self::render::values;
use super::desk::Desk;
use crate::access::{Caller, Scope, Via};

/// Pages that only read.
pub(in crate::app) fn read_routes() -> Router<Arc<Desk>> {
    Router::new()
        .route("/", get(fleet::fleet))
        .route("/events/fleet", get(stream::fleet))
        .route("/events/all", get(stream::all))
        .route("/machines/{uuid}", get(machine::machine))
        .route("/machines/{uuid}/live", get(machine::live))
        .route("/machines/{uuid}/events", get(stream::machine))
        .route("/machines/{uuid}/flight.json", get(machine::flight))
        .route("/machines/{uuid}/files", get(machine::files))
        .route("/jobs", get(job::jobs))
        .route("/jobs/{id}", get(job::job))
        .route("/jobs/{id}/live", get(job::live))
        .route("/pools", get(network::pools))
        .route("/pools/{name}", get(network::pool))
        .route("/leases", get(network::leases))
        .route("/transfers", get(network::transfers))
}

/// What acts, and the plans before it.
pub(in crate::app) fn operate_routes() -> Router<Arc<Desk>> {
    Router::new()
        .route("/plan", post(orders::plan))
        .route("/orders", post(orders::order))
        .route("/jobs/{id}/{operation}", post(orders::operate))
}

/// What anybody may see: the login page and the files that pages need.
pub(in crate::app) fn open_routes() -> Router<Arc<Desk>> {
    Router::new().route("/login", get(login)).route("/static/{name}", get(assets::asset))
}

/// Why a browser is at the login page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sent {
    /// What came of the last try.
    problem: String,
    /// Where to go then.
    next: String,
}

/// `GET /login`.
async fn login(Query(sent): Query<Sent>) -> Response {
    let problem = match sent.problem.as_str() {
        "" => "",
        "unknown" => "This token is not known here.",
        "expired" => "This token has expired. Make another with bootflip token add.",
        "locked-out" => "Too many unknown tokens came from your address. Wait a while and try again.",
        _ => "That did not work. Try again.",
    };
    render::page("login.html", values! { problem, next => sent.next, here => "login" })
}

/// Who looks at a page.
#[derive(Debug, Clone)]
struct Viewer(Caller);

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = <Caller as FromRequestParts<S>>::Rejection;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Self::Rejection> {
        Caller::from_request_parts(parts, state).await.map(Self)
    }
}

impl Viewer {
    const fn caller(&self) -> &Caller {
        &self.0
    }

    fn may_operate(&self) -> bool {
        self.0.scope.allows(Scope::Operate)
    }

    /// A page with these values, and what every page shows. `here`: which of the main parts it belongs to.
    fn page(&self, name: &str, here: &str, values: Value) -> Response {
        self.page_with(StatusCode::OK, name, here, values)
    }

    fn page_with(&self, status: StatusCode, name: &str, here: &str, values: Value) -> Response {
        let logs_out = self.0.via == Via::Session;
        let own = values! { here, caller => self.0.name, scope => self.0.scope.label(), logs_out };
        render::page_with(status, name, minijinja::value::merge_maps([values, own]))
    }

    fn message(&self, status: StatusCode, title: &str, message: &str) -> Response {
        let tone = if status.is_server_error() { "bad" } else { "odd" };
        self.page_with(
            status,
            "message.html",
            "",
            values! { title, message, tone, status => status.as_u16() },
        )
    }

    fn missing(&self, title: &str, message: &str) -> Response {
        self.message(StatusCode::NOT_FOUND, title, message)
    }

    fn refused(&self, title: &str, message: &str) -> Response {
        self.message(StatusCode::UNPROCESSABLE_ENTITY, title, message)
    }

    fn unavailable(&self, message: &str) -> Response {
        self.message(StatusCode::SERVICE_UNAVAILABLE, "The database is away", message)
    }
}

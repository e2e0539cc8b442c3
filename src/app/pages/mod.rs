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

use std::{convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::FromRequestParts,
    http::{StatusCode, request::Parts},
    response::Response,
    routing::{get, post},
};
use minijinja::{Value, context};

use super::desk::Desk;
use crate::access::{Caller, Scope};

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

/// `GET /login`.
async fn login() -> Response {
    login_page(StatusCode::OK, "")
}

/// The login page, with why the last try was none.
pub(in crate::app) fn login_page(status: StatusCode, problem: &str) -> Response {
    render::page_with(status, "login.html", context! { problem, here => "login", caller => "", scope => "" })
}

/// Who looks at a page.
#[derive(Debug, Clone)]
struct Viewer(Option<Caller>);

impl<S: Send + Sync> FromRequestParts<S> for Viewer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // The router let nobody through whom it does not know.
        Ok(Self(parts.extensions.get::<Caller>().cloned()))
    }
}

impl Viewer {
    fn name(&self) -> &str {
        self.0.as_ref().map_or("somebody", |caller| caller.name.as_str())
    }

    fn may_operate(&self) -> bool {
        self.0.as_ref().is_some_and(|caller| caller.scope >= Scope::Operate)
    }

    /// What every page shows.
    fn values(&self) -> Value {
        let scope = self.0.as_ref().map(|caller| format!("{:?}", caller.scope).to_lowercase());
        context! { caller => self.name(), scope => scope.unwrap_or_default() }
    }

    fn message(&self, status: StatusCode, title: &str, message: &str) -> Response {
        let tone = if status.is_server_error() { "bad" } else { "odd" };
        let values = context! {
            here => "", ..self.values(), ..context! { title, message, tone, status => status.as_u16() }
        };
        render::page_with(status, "message.html", values)
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

//! `/health`, `/ready`, `/version`, `/openapi.json` and `/reload`.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    input::Body,
    problem::{Kind, Problems, Refusal},
};
use crate::{
    access::Caller,
    app::{
        desk::Desk,
        fleet::Readiness,
        orders::Health,
        reload::{self, Reloaded},
    },
};

type At = State<Arc<Desk>>;

/// How the server is.
#[utoipa::path(get, path = "/health", tag = "system",
    responses((status = 200, description = "How it is", body = Health), Problems))]
pub(super) async fn health(State(desk): At) -> Json<Health> {
    Json(desk.health())
}

/// Which program answers.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Version {
    /// `bootflip`.
    program: String,
    /// Such as `0.1.0`.
    version: String,
    /// Of this API.
    api: String,
}

/// The program and its version.
#[utoipa::path(get, path = "/version", tag = "system",
    responses((status = 200, description = "The version", body = Version), Problems))]
pub(super) async fn version() -> Json<Version> {
    let words = [env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"), "v1"];
    let [program, version, api] = words.map(str::to_owned);
    Json(Version { program, version, api })
}

/// Whether to take over what differs.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReloadOrder {
    /// Only tell.
    #[serde(default)]
    look: bool,
}

/// Reads the configuration again: checks it whole, and takes over what a running server can. Jobs under way keep what they
/// were made with.
#[utoipa::path(post, path = "/reload", tag = "system", request_body = ReloadOrder,
    responses((status = 200, description = "What differs", body = Reloaded), Problems))]
pub(super) async fn reload(
    State(desk): At,
    caller: Caller,
    Body(order): Body<ReloadOrder>,
) -> Result<Json<Reloaded>, Refusal> {
    let asked = Arc::clone(&desk);
    let read = tokio::task::spawn_blocking(move || reload::reload(&asked, order.look)).await;
    let read = read.map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
    if !order.look {
        tracing::info!(asked_by = caller.label(), taken = read.is_ok(), "configuration read again");
        desk.door.write_down(&[reload::deed(&caller, &read)], desk.clock.now()).await;
    }
    read.map(Json).map_err(|mistakes| Refusal::new(Kind::CannotBe, mistakes.to_string()))
}

/// Whether the server can do its work: the database can be written, the listeners are bound, the pools answer.
#[utoipa::path(get, path = "/ready", tag = "system",
    responses((status = 200, description = "It can", body = Readiness),
        (status = 503, description = "It cannot", body = Readiness), Problems))]
pub(super) async fn ready(State(desk): At) -> (StatusCode, Json<Readiness>) {
    let readiness = desk.readiness().await;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness))
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "system",
    responses((status = 200, description = "OpenAPI 3.1", body = serde_json::Value), Problems))]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(super::document())
}

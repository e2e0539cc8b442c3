//! `/health`, `/ready`, `/version` and `/openapi.json`.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problems;
use crate::app::{desk::Desk, fleet::Readiness, orders::Health};

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

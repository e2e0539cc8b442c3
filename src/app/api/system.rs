//! `/health`, `/ready`, `/version` and `/openapi.json`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problems;
use crate::app::{desk::Desk, orders::Health};

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

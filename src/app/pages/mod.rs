//! The dashboard's pages. A route's scope is the function that names it here; `app::api` layers each with its check.

use std::sync::Arc;

use axum::Router;

use super::desk::Desk;

/// Pages that need `Scope::Read`.
pub(in crate::app) fn read_routes() -> Router<Arc<Desk>> {
    Router::new()
}

/// What needs `Scope::Operate`.
pub(in crate::app) fn operate_routes() -> Router<Arc<Desk>> {
    Router::new()
}

/// What needs nobody: the login page, and the files that it is made of.
pub(in crate::app) fn open_routes() -> Router<Arc<Desk>> {
    Router::new()
}

//! Which pool a client speaks to, and who keeps that in mind between two runs. Pure.
//!
//! An address may come to belong to another pool, and a coordinator that was replaced while it was away comes back
//! with an old database (fault F19). The pool's uuid tells the first; only what the members say of each other tells
//! the second.

use std::fmt;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

/// What is kept of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `pool.uuid`.
    pub pool_uuid: String,
    /// Where the coordinator was last, as host:port.
    pub coordinator: String,
}

/// Who keeps one pool's identity.
pub trait Keeper: Send + Sync + fmt::Debug {
    /// What is kept; `None`: this pool was never spoken to. `Err` says why it cannot be told now.
    fn kept(&self) -> BoxFuture<'_, Result<Option<Identity>, String>>;

    /// Keeps this from now on. `Err` says why it cannot now.
    fn keep(&self, identity: Identity) -> BoxFuture<'_, Result<(), String>>;
}

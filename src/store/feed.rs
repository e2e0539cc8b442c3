//! The watchers of a store, and how changes reach them.
//!
//! Invariant: a watcher sees every change after its starting revision once and in order, or its feed closes. It is
//! never waited for: one that is [`LAG_LIMIT`] changes behind is dropped.

use tokio::sync::mpsc;

use super::{Change, Watch};

/// How many changes a watcher may be behind.
const LAG_LIMIT: usize = 4096;

/// The open feeds. Each backend guards it together with its writes, so that no change falls between a watcher's
/// backlog and its live part.
#[derive(Debug, Default)]
pub(super) struct Feed {
    watchers: Vec<mpsc::Sender<Change>>,
}

impl Feed {
    /// A feed that begins with `backlog`.
    pub(super) fn subscribe(&mut self, backlog: Vec<Change>) -> Watch {
        let (sender, watch) = mpsc::channel(LAG_LIMIT.saturating_add(backlog.len()));
        if backlog.into_iter().all(|change| sender.try_send(change).is_ok()) {
            self.watchers.push(sender);
        }
        watch
    }

    /// A feed that is closed from the start.
    pub(super) fn refused() -> Watch {
        mpsc::channel(1).1
    }

    /// Tells all watchers of one commit's changes.
    pub(super) fn publish(&mut self, changes: &[Change]) {
        self.watchers.retain(|sender| {
            !sender.is_closed() && changes.iter().all(|change| sender.try_send(change.clone()).is_ok())
        });
    }
}

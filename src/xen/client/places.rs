//! How many calls are under way at once, and those kept for jobs on their way back: a fleet that is being flipped must
//! not keep a VM from being restored.

use tokio::sync::{Semaphore, SemaphorePermit};

/// Of the calls at once, those that only the way back may use.
const KEPT: usize = 2;

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Ordinary,
    WayBack,
}

/// The places for calls under way: those of all, and those kept for the way back.
#[derive(Debug)]
pub(super) struct Places {
    ordinary: Semaphore,
    kept: Semaphore,
}

impl Places {
    pub(super) fn new(calls: usize) -> Self {
        let kept = KEPT.min(calls.saturating_sub(1));
        Self { ordinary: Semaphore::new(calls.max(1) - kept), kept: Semaphore::new(kept) }
    }

    /// A place, once there is one; `None` never comes, the semaphores are not closed.
    pub(super) async fn take(&self, place: Place) -> Option<SemaphorePermit<'_>> {
        match place {
            Place::Ordinary => self.ordinary.acquire().await.ok(),
            Place::WayBack => tokio::select! {
                biased;
                permit = self.ordinary.acquire() => permit.ok(),
                permit = self.kept.acquire() => permit.ok(),
            },
        }
    }
}

//! Forgets jobs that ended long ago (`store.keep_days`). A shell.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::{chain, desk::Desk};
use crate::clock::Timestamp;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(3600);

/// Looks again and again until `stop`.
pub async fn keep(desk: Arc<Desk>, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Some(kept) = desk.config.now().keep {
            let kept = u64::try_from(kept.as_millis()).unwrap_or(u64::MAX);
            forget(&desk, Timestamp::from_millis(desk.clock.now().millis().saturating_sub(kept))).await;
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

async fn forget(desk: &Desk, before: Timestamp) {
    match desk.executor.forget(before).await {
        Ok(0) => {}
        Ok(jobs) => tracing::info!(jobs, %before, "jobs that ended long ago are forgotten"),
        Err(error) => tracing::warn!(error = chain(&error), "old jobs are kept longer"),
    }
}

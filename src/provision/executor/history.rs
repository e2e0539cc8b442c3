//! Forgets jobs that ended long ago.

use super::Executor;
use crate::{
    clock::Timestamp,
    provision::Job,
    store::{StoreError, jobs::Stored},
};

impl Executor {
    /// Removes the jobs that ended, and were settled, before an instant; how many there were.
    ///
    /// # Errors
    /// The store is away; the rest stays for the next time.
    pub async fn forget(&self, before: Timestamp) -> Result<usize, StoreError> {
        let mut forgotten = 0;
        for stored in self.jobs.all().await?.into_iter().flatten() {
            if !is_over_since(&stored.job, before) {
                continue;
            }
            match self.jobs.remove(&stored).await {
                Ok(_) => {
                    self.forget_in_memory(&stored);
                    forgotten += 1;
                }
                // An operator tried it again in this moment.
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(forgotten)
    }

    fn forget_in_memory(&self, stored: &Stored) {
        let mut memory = self.memory();
        memory.published.remove(&stored.job.id);
        if let Some(batch) = &stored.job.options.batch
            && let Some(ended) = memory.ended.get_mut(&batch.id)
        {
            ended.remove(&stored.job.id);
            if ended.is_empty() {
                memory.ended.remove(&batch.id);
            }
        }
    }
}

fn is_over_since(job: &Job, before: Timestamp) -> bool {
    let ended = job.history.last().map_or(job.created, |mark| mark.at);
    job.state.is_terminal() && job.settle_at.is_none() && ended < before
}

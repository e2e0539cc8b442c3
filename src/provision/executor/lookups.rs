//! Who is under way, from memory: for those that wake jobs or must not make a second one.

use super::Executor;
use crate::provision::job::State;

/// A job that has not ended, or has yet to be settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveJob {
    /// Its id.
    pub id: String,
    /// The pool's name.
    pub pool: String,
    /// The VM.
    pub vm_uuid: String,
    /// How far it is.
    pub state: State,
}

impl Executor {
    /// How far the jobs are that have not ended, and whether they wait for their pool.
    pub fn standings(&self) -> Vec<(State, bool)> {
        let memory = self.memory();
        let open = memory.live.values().filter(|job| !job.state.is_terminal());
        open.map(|job| (job.state, job.waiting.is_some())).collect()
    }

    /// The jobs that the runner looks after, in no order.
    pub fn live(&self) -> Vec<LiveJob> {
        let live = |job: &super::Job| LiveJob {
            id: job.id.clone(),
            pool: job.pool.clone(),
            vm_uuid: job.vm_uuid.clone(),
            state: job.state,
        };
        self.memory().live.values().map(live).collect()
    }
}

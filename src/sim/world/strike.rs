//! What befalls the calls of one effect: the pool refuses them, lets their task fail, or restarts and forgets. The
//! fault table walks effect × call × deed.

use std::time::Duration;

use crate::{
    provision::{Effect, Job},
    xen::{Failure, Method},
};

/// What happens at a call that is hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deed {
    /// It is not done; this is the answer.
    Fails(Failure),
    /// It is taken, and its task ends with this; nothing is done.
    TaskFails(Failure),
    /// The coordinator restarts first and forgets what it wrote in this time and did not sync; then it is done.
    ForgetsBefore(Duration),
    /// It is done and answered; then the coordinator restarts and forgets.
    ForgetsAfter(Duration),
}

/// The calls that are hit, and how.
#[derive(Debug, Clone)]
pub struct Strike {
    /// While the job has this effect's intent.
    pub effect: Effect,
    /// This message.
    pub method: Method,
    /// What happens.
    pub deed: Deed,
    /// So many calls are hit; later ones are done as ever.
    pub times: u32,
    /// So many were.
    pub hits: u32,
}

impl Strike {
    /// One that waits for its first call.
    pub const fn new(effect: Effect, method: Method, deed: Deed, times: u32) -> Self {
        Self { effect, method, deed, times, hits: 0 }
    }

    /// What happens at this call, with the job as it is stored; `None`: it is not hit. Counts.
    pub fn befalls(&mut self, method: Method, job: Option<&Job>) -> Option<Deed> {
        let at = job.and_then(|job| job.intent).is_some_and(|intent| intent.effect == self.effect);
        if !at || method != self.method || self.hits >= self.times {
            return None;
        }
        self.hits += 1;
        Some(self.deed.clone())
    }
}

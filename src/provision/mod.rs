//! The job: one unattended run on one VM. Pure, but for `executor` and `runner` (the shells).
//!
//! `step` is the table of what an event makes of a job; `resume` names the effect that a job is at; `plan` looks at
//! the VM and says the next thing that brings an effect about. The executor stores the intent, looks, calls, looks
//! again, stores the outcome: every effect may be cut at any point and run again, and is done no more than once.
//! `claim` and `settings` are the way back, readable from the pool alone.

pub mod admission;
pub mod capacity;
pub mod claim;
pub mod completion;
pub mod creation;
pub mod event;
pub mod executor;
pub mod intake;
pub mod job;
pub mod plan;
pub mod preflight;
pub mod readiness;
pub mod reason;
pub mod recovery;
pub mod runner;
pub mod settings;
pub mod stages;
pub mod starting;
pub mod step;

pub use job::{Effect, Job, State};
pub use reason::Reason;
pub use step::{Event, Outcome, step};

/// The effect that a job is at, if it is at one: what a restarted server goes on with (the outbox).
pub fn resume(job: &Job) -> Option<Effect> {
    match job.state {
        State::Preparing
        | State::Flipping
        | State::Booting
        | State::Installing
        | State::Restoring
        | State::Starting
        | State::Verifying
        | State::Undoing => job.cursor,
        State::Queued | State::NeedsOperator | State::Succeeded | State::Failed | State::Cancelled => None,
    }
}

#[cfg(test)]
mod safety_tests;
#[cfg(test)]
mod tests;

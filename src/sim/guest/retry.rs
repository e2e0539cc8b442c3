//! A request that is repeated with growing waits until it is answered with success or the time is over. Pure.

use std::time::Duration;

use super::{FetchError, Fetched, Output, Pace};
use crate::clock::Timestamp;

/// What came of the last try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tried {
    /// A 2xx reply.
    Answered(Fetched),
    /// Another try is due then.
    Again(Timestamp),
    /// The time is over; why the last try failed.
    GaveUp(String),
}

/// A request and its clock.
#[derive(Debug, Clone)]
pub struct Retry {
    request: Output,
    wait: Duration,
    longest: Duration,
    ends: Option<Timestamp>,
    due: Option<Timestamp>,
}

impl Retry {
    /// Tries `request` now, and for as long as `pace` says (`for_ever`: without end).
    pub fn start(
        request: Output,
        pace: &Pace,
        for_ever: bool,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> Self {
        out.push(request.clone());
        let ends = (!for_ever).then(|| now + pace.retry_for);
        Self { request, wait: pace.retry, longest: pace.retry * 8, ends, due: None }
    }

    /// The try under way ended.
    pub fn fetched(&mut self, result: Result<Fetched, FetchError>, now: Timestamp) -> Tried {
        let reason = match result {
            Ok(fetched) if (200..300).contains(&fetched.status) => return Tried::Answered(fetched),
            Ok(fetched) => format!("HTTP status {}", fetched.status),
            Err(error) => error.to_string(),
        };
        if self.ends.is_some_and(|ends| now + self.wait >= ends) {
            return Tried::GaveUp(reason);
        }
        let due = now + self.wait;
        self.wait = (self.wait * 2).min(self.longest);
        self.due = Some(due);
        Tried::Again(due)
    }

    /// The next try may be due.
    pub fn timer(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.due.is_some_and(|due| due <= now) {
            self.due = None;
            out.push(self.request.clone());
        }
    }
}

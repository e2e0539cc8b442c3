//! One member of the pool: a call with the fault that hits it, done by the pool, answered when xapi would.

use std::{net::IpAddr, time::Duration};

use tokio::time::{sleep, timeout};
use tracing::debug;

use super::shared::{SharedFaults, SharedPool};
use crate::{
    sim::{
        faults::FaultKind,
        pool::{Pool, TaskState},
    },
    xen::{Failure, Method, Value},
};

/// Xapi gathers events this long before it answers event.from.
const EVENT_BATCH: Duration = Duration::from_millis(50);
/// The older of the two calls that wait for events.
const EVENT_NEXT: &str = "event.next";
/// The longest that a call waits for events, whatever the caller asks for.
const EVENT_LIMIT: Duration = Duration::from_secs(300);

/// One member of the pool as its listener knows it.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) address: IpAddr,
    pub(super) pool: SharedPool,
    pub(super) faults: SharedFaults,
    pub(super) login_delay: Duration,
}

/// The connection closes without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a planned fault closes the connection")]
pub(super) struct Closed;

impl Member {
    /// One call, with the fault that hits it.
    pub(super) async fn answer(
        &self,
        method: &str,
        params: &[Value],
    ) -> Result<Result<Value, Failure>, Closed> {
        let coordinator = self.pool.locked(|pool, _| pool.coordinator().to_owned());
        if coordinator != self.address.to_string() {
            return Ok(Err(Failure::new("HOST_IS_SLAVE", &[&coordinator])));
        }
        let (vm, now) = self.pool.locked(|pool, now| (pool.vm_of(params), now));
        let Some(fault) = self.faults.decide(now, method, vm.as_ref()) else {
            return self.carry_out(method, params).await;
        };
        debug!(fault = fault.name, %method, "planned fault");
        match fault.kind {
            FaultKind::LoseBefore => return Err(Closed),
            FaultKind::LoseAfter => {
                drop(self.carry_out(method, params).await?);
                return Err(Closed);
            }
            FaultKind::Fail(failure) => return Ok(Err(failure)),
            FaultKind::Delay(span) => sleep(span).await,
            FaultKind::Hang => std::future::pending::<()>().await,
            FaultKind::Hold => self.faults.wait_for(|plan| plan.is_released(&fault.name)).await,
            FaultKind::HoldReply => {
                let answer = self.carry_out(method, params).await;
                self.faults.wait_for(|plan| plan.is_released(&fault.name)).await;
                return answer;
            }
            FaultKind::ExpireSessions => self.pool.with(|pool, _| pool.expire_sessions()),
            FaultKind::CoordinatorRestart { lose } => {
                self.pool.with(|pool, now| pool.restart_coordinator(now, lose))
            }
            FaultKind::NotCoordinator { address } => {
                self.pool.with(|pool, now| pool.move_coordinator(now, &address));
                return Ok(Err(Failure::new("HOST_IS_SLAVE", &[&address])));
            }
            FaultKind::Person(act) => {
                if let Some((uuid, _)) = vm {
                    // What the person is told does not matter to the call.
                    drop(self.pool.with(|pool, now| pool.person(now, &uuid, &act)));
                }
            }
        }
        self.carry_out(method, params).await
    }

    /// One call, done by the pool; waits where xapi waits.
    async fn carry_out(&self, method: &str, params: &[Value]) -> Result<Result<Value, Failure>, Closed> {
        if self.pool.locked(|pool, _| pool.is_slow(method)) {
            return self.finish(method, params).await;
        }
        if method == Method::EventFrom.name() {
            self.wait_for_events(params).await;
        }
        if method == EVENT_NEXT {
            self.wait_for_next(params).await;
        }
        let answer = self.pool.with(|pool, now| pool.call(now, method, params));
        if answer.as_ref().is_err_and(|failure| failure.is("SESSION_AUTHENTICATION_FAILED")) {
            sleep(self.login_delay).await;
        }
        Ok(answer)
    }

    /// A slow message without `Async.`: begun as a task, answered when that ends.
    async fn finish(&self, method: &str, params: &[Value]) -> Result<Result<Value, Failure>, Closed> {
        let begun = self.pool.with(|pool, now| pool.call(now, &format!("Async.{method}"), params));
        let task = match begun {
            Ok(task) => task,
            Err(failure) => return Ok(Err(failure)),
        };
        let task = task.as_str().unwrap_or_default();
        let ended = |pool: &mut Pool, now| match pool.take_task(now, task) {
            TaskState::Pending => None,
            TaskState::Ended(outcome) => Some(Ok(outcome.map(|()| Value::void()))),
            TaskState::Gone => Some(Err(Closed)), // the toolstack restarted under the call
        };
        self.pool.wait_for(ended).await
    }

    /// Waits until event.from has something to say, or its time is over.
    async fn wait_for_events(&self, params: &[Value]) {
        let Some(Value::Double(seconds)) = params.get(3) else { return }; // the pool refuses it
        let asked = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
        let session = params.first().and_then(Value::as_str).unwrap_or_default();
        let subscription = params.get(1..).unwrap_or_default();
        let ready =
            |pool: &mut Pool, _| (!pool.has_session(session) || pool.has_events(subscription)).then_some(());
        if timeout(asked.min(EVENT_LIMIT), self.pool.wait_for(ready)).await.is_ok() {
            sleep(EVENT_BATCH).await;
        }
    }
    /// Waits until event.next, which takes no time limit, has something to say.
    async fn wait_for_next(&self, params: &[Value]) {
        let session = params.first().and_then(Value::as_str).unwrap_or_default();
        let ready =
            |pool: &mut Pool, _| (!pool.has_session(session) || pool.has_next_events(session)).then_some(());
        if timeout(EVENT_LIMIT, self.pool.wait_for(ready)).await.is_ok() {
            sleep(EVENT_BATCH).await;
        }
    }
}

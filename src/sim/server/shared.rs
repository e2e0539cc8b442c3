//! The pool and its fault plan, shared between the listeners, the driver, guests and people, and the driver itself.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc, watch},
    time::Instant,
};
use tracing::debug;

use crate::{
    clock::{Clock, SystemClock, Timestamp},
    sim::{
        faults::{Fault, FaultPlan},
        pool::{DomainOrder, DomainStart, Pool},
    },
};

/// The driver looks at the pool at least this often.
const DRIVER_LIMIT: Duration = Duration::from_secs(3600);

/// The pool, shared between the listeners, the driver, guests and people.
#[derive(Debug, Clone)]
pub struct SharedPool {
    pool: Arc<Mutex<Pool>>,
    driver: Arc<Notify>,
    revision: watch::Sender<u64>,
}

impl SharedPool {
    pub(super) fn new(pool: Pool) -> Self {
        let revision = watch::Sender::new(pool.revision());
        Self { pool: Arc::new(Mutex::new(pool)), driver: Arc::default(), revision }
    }

    /// Does something with the pool at the present instant; the driver and waiting calls see what came of it.
    pub fn with<T>(&self, act: impl FnOnce(&mut Pool, Timestamp) -> T) -> T {
        let answer = self.locked(act);
        self.driver.notify_one();
        answer
    }

    pub(super) fn locked<T>(&self, act: impl FnOnce(&mut Pool, Timestamp) -> T) -> T {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = act(&mut pool, SystemClock.now());
        let revision = pool.revision();
        drop(pool);
        self.revision.send_if_modified(|seen| std::mem::replace(seen, revision) != revision);
        answer
    }

    /// Waits until `check` finds what it looks for.
    pub(super) async fn wait_for<T>(&self, mut check: impl FnMut(&mut Pool, Timestamp) -> Option<T>) -> T {
        let mut revision = self.revision.subscribe();
        loop {
            revision.mark_unchanged();
            if let Some(found) = self.locked(&mut check) {
                return found;
            }
            if revision.changed().await.is_err() {
                std::future::pending::<()>().await; // the sender lives as long as `self`
            }
        }
    }
}
/// The fault plan, shared between the listeners and whoever watches it.
#[derive(Debug, Clone)]
pub(super) struct SharedFaults {
    plan: Arc<Mutex<FaultPlan>>,
    changed: watch::Sender<()>,
}

impl SharedFaults {
    pub(super) fn new(plan: FaultPlan) -> Self {
        Self { plan: Arc::new(Mutex::new(plan)), changed: watch::Sender::new(()) }
    }

    pub(super) fn with<T>(&self, act: impl FnOnce(&mut FaultPlan) -> T) -> T {
        act(&mut self.plan.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn decide(
        &self,
        now: Timestamp,
        method: &str,
        vm: Option<&(String, String)>,
    ) -> Option<Fault> {
        let hit = self.with(|plan| plan.decide(now, method, vm));
        if hit.is_some() {
            self.changed.send_replace(());
        }
        hit
    }

    pub(super) fn release(&self, name: &str) {
        self.with(|plan| plan.release(name));
        self.changed.send_replace(());
    }

    pub(super) async fn wait_for(&self, check: impl Fn(&FaultPlan) -> bool) {
        let mut changed = self.changed.subscribe();
        while !self.with(|plan| check(plan)) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}
/// Lets due things happen by the real clock, and hands out the domains that began to run and what is asked of a body
/// outside.
pub(super) async fn drive(
    pool: SharedPool,
    starts: mpsc::Sender<DomainStart>,
    orders: mpsc::Sender<DomainOrder>,
) {
    loop {
        let (begun, asked, due, now) = pool.locked(|pool, now| {
            pool.advance(now);
            (pool.take_starts(), pool.take_orders(), pool.next_due(), now)
        });
        for order in asked {
            // A pool that asks has a body; one that is gone ends the lab.
            if let Err(error) = orders.try_send(order) {
                debug!(%error, "nobody runs this domain");
            }
        }
        for start in begun {
            // Where nobody plays guests, domains still start and stop.
            if let Err(error) = starts.try_send(start) {
                debug!(%error, "a domain without a guest");
            }
        }
        let pause = due.map_or(DRIVER_LIMIT, |due| due.since(now).min(DRIVER_LIMIT));
        tokio::select! {
            () = tokio::time::sleep_until(Instant::now() + pause) => {}
            () = pool.driver.notified() => {}
        }
    }
}

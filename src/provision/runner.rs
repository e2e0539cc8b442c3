//! Gives every live job a task: ticks it, waits for its next time or for news, ticks it again. A shell.

use std::{
    collections::HashMap,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::executor::{Executor, Wake, Wakers};
use crate::clock::Clock;

/// Wakes jobs by id; a wake for a job without a task starts one.
#[derive(Debug, Clone)]
pub struct Bell(mpsc::UnboundedSender<String>);

/// The receiving end of a [`Bell`].
#[derive(Debug)]
pub struct Rings(mpsc::UnboundedReceiver<String>);

impl Bell {
    /// A bell and its rings. Unbounded, but one ring is a job's id and the runner folds those of one job.
    pub fn new() -> (Self, Rings) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), Rings(receiver))
    }
}

impl Wakers for Bell {
    fn wake(&self, job: &str) {
        // A closed channel: the runner has stopped, and the next start looks at every job.
        let _ = self.0.send(job.to_owned());
    }
}

/// The longest that a job sleeps without a look.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

type Sleepers = Arc<Mutex<HashMap<String, Arc<tokio::sync::Notify>>>>;

/// Runs all jobs until `stop`; then returns when the ticks under way have ended (each is cut at its next store or
/// pool call by the caller's own deadline).
pub async fn run(
    executor: Arc<Executor>,
    clock: Arc<dyn Clock>,
    mut rings: Rings,
    first: Vec<String>,
    stop: CancellationToken,
) {
    let sleepers: Sleepers = Arc::default();
    let mut tasks = JoinSet::new();
    let begin = |id: String, tasks: &mut JoinSet<()>| {
        let mut known = sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(notify) = known.get(&id) {
            notify.notify_one();
            return;
        }
        let notify = Arc::new(tokio::sync::Notify::new());
        known.insert(id.clone(), Arc::clone(&notify));
        drop(known);
        let (executor, clock, stop, sleepers) =
            (Arc::clone(&executor), Arc::clone(&clock), stop.clone(), Arc::clone(&sleepers));
        tasks.spawn(async move {
            loop {
                let driven = drive(&executor, &*clock, &id, &notify, &stop);
                if AssertUnwindSafe(driven).catch_unwind().await.is_err() {
                    tracing::error!(
                        job = id,
                        "a defect in bootflip broke this job's round; it is tried again"
                    );
                    let pause = tokio::time::sleep(LONGEST_SLEEP);
                    stop.run_until_cancelled(pause).await;
                    continue;
                }
                if stop.is_cancelled() || fell_asleep(&sleepers, &id, &notify) {
                    return;
                }
            }
        });
    };
    for id in first {
        begin(id, &mut tasks);
    }
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            ring = rings.0.recv() => match ring {
                Some(id) => begin(id, &mut tasks),
                None => break,
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Takes a job that ended from the list of those that have a task; false: it was woken in that moment, by the retry
/// of an operator, and goes on.
fn fell_asleep(sleepers: &Sleepers, id: &str, notify: &tokio::sync::Notify) -> bool {
    let mut known = sleepers.lock().unwrap_or_else(PoisonError::into_inner);
    let woken = notify.notified().now_or_never().is_some();
    if !woken {
        known.remove(id);
    }
    !woken
}

async fn drive(
    executor: &Executor,
    clock: &dyn Clock,
    id: &str,
    notify: &tokio::sync::Notify,
    stop: &CancellationToken,
) {
    while !stop.is_cancelled() {
        let nap = match executor.tick(id).await {
            Wake::Ended => return,
            Wake::OnNews => LONGEST_SLEEP,
            Wake::At(at) => at.since(clock.now()).min(LONGEST_SLEEP),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = notify.notified() => {}
            () = tokio::time::sleep(nap) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_in_the_moment_of_the_end_is_heard() {
        let (sleepers, notify) = (Sleepers::default(), Arc::new(tokio::sync::Notify::new()));
        sleepers.lock().unwrap().insert("job".to_owned(), Arc::clone(&notify));
        notify.notify_one();
        assert!(!fell_asleep(&sleepers, "job", &notify), "it was woken");
        assert!(fell_asleep(&sleepers, "job", &notify), "once");
        assert!(sleepers.lock().unwrap().is_empty());
    }
}

//! The threads that serve connections: each has a scheduler of its own, and a connection stays on the one that it got.
//! In a pool of workers that take tasks from each other, a single client's connection wanders between the processors
//! and meets its client on the client's own: it gets a large file at four fifths of the speed (`docs/decisions/0007`).
//!
//! Invariant: the threads end when [`Lanes`] is dropped, and with them what still ran there.

use std::{future::Future, io, num::NonZero, sync::Arc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    task::JoinSet,
};

/// More than a boot network fills; each costs memory.
const AT_MOST: usize = 4;

/// Threads, each with its connections.
#[derive(Debug)]
pub(super) struct Lanes(Vec<Lane>);

#[derive(Debug)]
struct Lane {
    handle: Handle,
    /// Held by each connection of this lane.
    load: Arc<()>,
    /// Its end is the thread's.
    _end: oneshot::Sender<()>,
}

impl Lanes {
    /// One for each processor, at most four.
    ///
    /// # Errors
    /// There is no thread or no descriptor to be had.
    pub(super) fn open() -> io::Result<Self> {
        let count = thread::available_parallelism().map_or(1, NonZero::get).min(AT_MOST);
        (0..count).map(|_| Lane::open()).collect::<io::Result<_>>().map(Self)
    }

    /// Runs this connection where the fewest are.
    pub(super) fn spawn(
        &self,
        connections: &mut JoinSet<()>,
        connection: impl Future<Output = ()> + Send + 'static,
    ) {
        let Some(lane) = self.0.iter().min_by_key(|lane| Arc::strong_count(&lane.load)) else { return };
        let load = Arc::clone(&lane.load);
        let counted = async move {
            connection.await;
            drop(load);
        };
        connections.spawn_on(counted, &lane.handle);
    }
}

impl Lane {
    fn open() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let log = tracing::dispatcher::get_default(Clone::clone);
        thread::Builder::new().name("boot-http".to_owned()).spawn(move || {
            let _log = tracing::dispatcher::set_default(&log);
            // An error: the sender is gone, which is what is waited for.
            let _ = runtime.block_on(ended);
            runtime.shutdown_background();
        })?;
        Ok(Self { handle, load: Arc::new(()), _end: end })
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn connections_are_spread_evenly_and_stay_on_their_thread() {
        let lanes = Lanes(vec![Lane::open().unwrap(), Lane::open().unwrap()]);
        let mut connections = JoinSet::new();
        let (told, mut tell) = mpsc::unbounded_channel();
        let more = Arc::new(tokio::sync::Semaphore::new(0));
        for _ in 0..6 {
            let (told, more) = (told.clone(), Arc::clone(&more));
            lanes.spawn(&mut connections, async move {
                let first = thread::current().id();
                told.send(first).unwrap();
                more.acquire().await.unwrap().forget();
                assert_eq!(thread::current().id(), first);
            });
        }
        let mut on = std::collections::HashMap::new();
        for _ in 0..6 {
            *on.entry(tell.recv().await.unwrap()).or_insert(0) += 1;
        }
        assert_eq!(on.into_values().collect::<Vec<_>>(), [3, 3]);
        more.add_permits(6);
        while let Some(ended) = connections.join_next().await {
            ended.unwrap();
        }
        assert!(lanes.0.iter().all(|lane| Arc::strong_count(&lane.load) == 1), "the places are free again");
    }

    #[tokio::test]
    async fn the_threads_end_with_what_runs_there_when_the_lanes_go() {
        let lanes = Lanes(vec![Lane::open().unwrap()]);
        let mut connections = JoinSet::new();
        lanes.spawn(&mut connections, std::future::pending());
        drop(lanes);
        assert!(connections.join_next().await.unwrap().unwrap_err().is_cancelled());
    }
}

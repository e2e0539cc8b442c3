//! A reading of a whole pool that many jobs want at once: one serves all who asked before it began, as each would have
//! got no newer one by itself.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// One kind of reading.
#[derive(Debug)]
pub(super) struct Shared<T> {
    /// How many asked so far; each has the number before its own as its ticket.
    asked: AtomicU64,
    /// The newest reading, and how many had asked when it began.
    newest: Mutex<Option<(u64, T)>>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self { asked: AtomicU64::new(0), newest: Mutex::new(None) }
    }
}

impl<T: Clone> Shared<T> {
    /// The result of a reading that began no earlier than this call; by `read` when there is none.
    pub(super) async fn read<E>(&self, read: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let ticket = self.asked.fetch_add(1, Ordering::SeqCst);
        let mut newest = self.newest.lock().await;
        match newest.take() {
            // The last who may have it takes it away.
            Some((begun, value)) if ticket + 1 == begun => return Ok(value),
            Some((begun, value)) if ticket < begun => {
                *newest = Some((begun, value.clone()));
                return Ok(value);
            }
            Some(_) | None => {}
        }
        let begun = self.asked.load(Ordering::SeqCst);
        let value = read.await?;
        if begun > ticket + 1 {
            *newest = Some((begun, value.clone()));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, convert::Infallible};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test]
    async fn one_reading_serves_all_who_asked_before_it_began() {
        let (shared, readings) = (Shared::default(), Cell::new(0));
        let read = || {
            shared.read(async {
                tokio::task::yield_now().await;
                readings.set(readings.get() + 1);
                Ok::<_, Infallible>(readings.get())
            })
        };
        // The first one's reading has begun when the others ask.
        assert_eq!(join_all((0..5).map(|_| read())).await, [1, 2, 2, 2, 2].map(Ok));
        assert_eq!(shared.newest.lock().await.as_ref(), None);
        assert_eq!(read().await, Ok(3));
    }

    #[tokio::test]
    async fn reading_that_failed_serves_nobody() {
        let shared = Shared::<u8>::default();
        let read = |result: Result<u8, &'static str>| {
            shared.read(async move {
                tokio::task::yield_now().await;
                result
            })
        };
        let all = join_all([read(Ok(1)), read(Err("away")), read(Ok(3)), read(Ok(4))]).await;
        assert_eq!(all, [Ok(1), Err("away"), Ok(3), Ok(3)]);
    }
}

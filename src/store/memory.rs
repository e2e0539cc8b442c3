//! The store in memory: for tests and the simulation. Nothing survives the process.
//!
//! Invariant: one lock guards entries, revision and watchers, so that every commit is one step for everybody.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures_util::future::{BoxFuture, FutureExt};

use super::{Batch, Change, Entry, Op, Revision, Store, StoreError, Watch, feed::Feed};

/// A store that forgets everything when its last clone is dropped; clones share their content.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    revision: Revision,
    /// A slot without a value is a key that was removed: watchers that begin earlier are told of it.
    slots: BTreeMap<String, Slot>,
    feed: Feed,
}

#[derive(Debug)]
struct Slot {
    value: Option<Vec<u8>>,
    revision: Revision,
}

impl MemoryStore {
    /// An empty store, at revision 0.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn commit(&mut self, batch: Batch) -> Result<Revision, StoreError> {
        batch.within_limits()?;
        for compare in batch.compares {
            let now =
                self.slots.get(&compare.key).filter(|slot| slot.value.is_some()).map(|slot| slot.revision);
            if now != compare.revision {
                return Err(StoreError::Conflict { key: compare.key });
            }
        }
        self.revision += 1;
        let revision = self.revision;
        let mut changes = Vec::with_capacity(batch.ops.len());
        for op in batch.ops {
            let (key, value) = match op {
                Op::Put { key, value } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            };
            let exists = self.slots.get(&key).is_some_and(|slot| slot.value.is_some());
            if value.is_some() || exists {
                self.slots.insert(key.clone(), Slot { value: value.clone(), revision });
                changes.push(Change { revision, key, value });
            }
        }
        self.feed.publish(&changes);
        Ok(revision)
    }

    fn watch(&mut self, from: Revision) -> Watch {
        if from > self.revision {
            return Feed::refused();
        }
        let later =
            self.slots.iter().filter(|(_, slot)| slot.revision > from && (from > 0 || slot.value.is_some()));
        let mut backlog: Vec<Change> = later
            .map(|(key, slot)| Change {
                revision: slot.revision,
                key: key.clone(),
                value: slot.value.clone(),
            })
            .collect();
        backlog.sort_by_key(|change| change.revision);
        self.feed.subscribe(backlog)
    }
}

fn entry(key: &str, slot: &Slot) -> Option<Entry> {
    let value = slot.value.clone()?;
    Some(Entry { key: key.to_owned(), value, revision: slot.revision })
}

impl Store for MemoryStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        async move { Ok(self.lock().slots.get(key).and_then(|slot| entry(key, slot))) }.boxed()
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        async move {
            let inner = self.lock();
            let from = inner.slots.range::<str, _>((Bound::Included(prefix), Bound::Unbounded));
            let under = from.take_while(|(key, _)| key.starts_with(prefix));
            Ok(under.filter_map(|(key, slot)| entry(key, slot)).collect())
        }
        .boxed()
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>> {
        async move { self.lock().commit(batch) }.boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        async move { Ok(self.lock().watch(from)) }.boxed()
    }
}

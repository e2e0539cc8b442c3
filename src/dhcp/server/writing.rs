//! Leases on their way into the store: a task of its own, so that the loop that answers packets never waits. While
//! one commit is on its way the next leases gather, and share the next one.

use std::{net::Ipv4Addr, sync::Arc};

use tokio::sync::mpsc;
use tracing::warn;

use super::super::Lease;
use crate::store::{Batch, Store, StoreError};

/// Where leases are in the store.
const LEASES: &str = "leases/";
/// Lease writes that may wait for the store; beyond it clients get no answer and ask again.
pub(super) const WRITES_WAITING: usize = 8192;
/// Outcomes of commits that may wait for the loop.
pub(super) const OUTCOMES_WAITING: usize = 16;
/// Lease writes in one commit.
const WRITES_TOGETHER: usize = 1024;

/// A change of the stored leases.
#[derive(Debug, Clone, Copy)]
pub(super) enum Write {
    Put(Lease),
    Remove(Ipv4Addr),
}

/// What became of the leases of one commit.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) leases: Vec<Lease>,
    pub(super) stored: bool,
}

/// Reads the leases back. A lease is no reason to stay down: one that does not parse is left out, and its client
/// keeps its address or gets another one.
pub(super) async fn read(store: &dyn Store) -> Result<Vec<Lease>, StoreError> {
    let entries = store.list(LEASES).await?;
    let mut leases = Vec::with_capacity(entries.len());
    for entry in entries {
        match serde_json::from_slice(&entry.value) {
            Ok(lease) => leases.push(lease),
            Err(error) => warn!(key = %entry.key, %error, "a stored lease does not parse and is not used"),
        }
    }
    Ok(leases)
}

/// Writes leases in the order in which they were handed over, as many as wait in one commit.
pub(super) async fn write(
    store: Arc<dyn Store>,
    mut queue: mpsc::Receiver<Write>,
    outcomes: mpsc::Sender<Written>,
) {
    let mut together = Vec::new();
    while queue.recv_many(&mut together, WRITES_TOGETHER).await > 0 {
        let mut batch = Batch::new();
        let mut leases = Vec::with_capacity(together.len());
        for write in together.drain(..) {
            match write {
                Write::Put(lease) => {
                    // A lease is two strings and a number.
                    let Ok(value) = serde_json::to_vec(&lease) else { continue };
                    batch = batch.put(key(lease.address), value);
                    leases.push(lease);
                }
                Write::Remove(address) => batch = batch.delete(key(address)),
            }
        }
        let stored = match store.commit(batch).await {
            Ok(_) => true,
            Err(error) => {
                warn!(%error, "leases could not be stored; new clients get no address until they can");
                false
            }
        };
        // The receiver is gone only when the server stops.
        drop(outcomes.send(Written { leases, stored }).await);
    }
}

fn key(address: Ipv4Addr) -> String {
    format!("{LEASES}{address}")
}

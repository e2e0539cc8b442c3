//! Keeps in the database which pool each configured name was, for the clients. A shell.

use std::sync::Arc;

use futures_util::{FutureExt, future::BoxFuture};

use super::chain;
use crate::{
    store::{Batch, Store, StoreError},
    xen::identity::{Identity, Keeper},
};

/// One pool's place in the store.
#[derive(Debug)]
pub struct StoredIdentity {
    store: Arc<dyn Store>,
    key: String,
}

impl StoredIdentity {
    /// That of the pool with this name in the configuration.
    pub fn of(store: Arc<dyn Store>, pool: &str) -> Self {
        Self { store, key: format!("pools/{pool}") }
    }

    /// Forgets it; whether there was something to forget.
    pub async fn forget(&self) -> Result<bool, StoreError> {
        let there = self.store.get(&self.key).await?.is_some();
        if there {
            self.store.commit(Batch::new().delete(&self.key)).await?;
        }
        Ok(there)
    }

    async fn read(&self) -> Result<Option<Identity>, String> {
        let entry = self.store.get(&self.key).await.map_err(|error| chain(&error))?;
        let parse = |value: Vec<u8>| serde_json::from_slice(&value).map_err(|error| error.to_string());
        entry.map(|entry| parse(entry.value)).transpose()
    }

    async fn write(&self, identity: Identity) -> Result<(), String> {
        let value = serde_json::to_vec(&identity).map_err(|error| error.to_string())?;
        self.store.commit(Batch::new().put(&self.key, value)).await.map_err(|error| chain(&error))?;
        Ok(())
    }
}

impl Keeper for StoredIdentity {
    fn kept(&self) -> BoxFuture<'_, Result<Option<Identity>, String>> {
        self.read().boxed()
    }

    fn keep(&self, identity: Identity) -> BoxFuture<'_, Result<(), String>> {
        self.write(identity).boxed()
    }
}

//! Leases as other parts than DHCP read them: which address a NIC has of us.

use std::net::Ipv4Addr;

use serde::Deserialize;

use super::{Store, StoreError};
use crate::{clock::Timestamp, machine::MacAddr};

/// Of the records that DHCP keeps under `leases/<address>`, what is read here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Kept {
    /// Who.
    pub mac: MacAddr,
    /// What.
    pub address: Ipv4Addr,
    /// Until when.
    pub until: Timestamp,
}

/// All leases, by nothing in particular.
///
/// # Errors
/// The store is away.
pub async fn all(store: &dyn Store) -> Result<Vec<Kept>, StoreError> {
    let entries = store.list("leases/").await?;
    Ok(entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect())
}

/// The address that our DHCP server gave this NIC, while it is its own.
///
/// # Errors
/// The store is away.
pub async fn address_of(
    store: &dyn Store,
    mac: MacAddr,
    now: Timestamp,
) -> Result<Option<Ipv4Addr>, StoreError> {
    let own = all(store).await?.into_iter().filter(|kept| kept.mac == mac && now < kept.until);
    Ok(own.max_by_key(|kept| kept.until).map(|kept| kept.address))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::store::{Batch, memory::MemoryStore};

    #[test]
    fn a_nic_has_its_address_until_the_lease_ends() {
        let store = MemoryStore::new();
        let mac = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);
        let until = Timestamp::from_millis(1_000);
        let address = Ipv4Addr::new(10, 0, 0, 7);
        let lease = serde_json::json!({ "mac": mac, "address": address, "until": until });
        let batch = Batch::new().put(format!("leases/{address}"), lease.to_string());
        store.commit(batch).now_or_never().unwrap().unwrap();
        let other = MacAddr::new([2, 0x16, 0x3e, 0, 0, 2]);
        for (mac, now, expected) in [(mac, 999, Some(address)), (mac, 1_000, None), (other, 0, None)] {
            let found = address_of(&store, mac, Timestamp::from_millis(now)).now_or_never().unwrap().unwrap();
            assert_eq!(found, expected, "{mac} at {now}");
        }
    }
}

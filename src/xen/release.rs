//! What a pool's release can do, found out from its own records. Pure.
//!
//! Invariant: nothing here is configured. What a record shows by itself (a field that is there or not) is read
//! from the record; the API version decides only what no record shows: which messages exist, and how the toolstack
//! behaves.

use std::fmt;

use super::records::{HostRecord, PoolRecord};

/// A XenAPI version: major, minor. 1.7 is XenServer 5.6, 2.15 is 8.2.
pub type ApiVersion = (u32, u32);

/// XenServer 5.6: the oldest release that bootflip works with.
pub const OLDEST: ApiVersion = (1, 7);
/// XenServer 6.0.
pub const V6_0: ApiVersion = (1, 9);
/// XenServer 6.1.
pub const V6_1: ApiVersion = (1, 10);
/// XenServer 6.2.
pub const V6_2: ApiVersion = (2, 0);
/// XenServer 7.1.
pub const V7_1: ApiVersion = (2, 6);
/// XenServer 7.5; its fields were there for trial in 7.4.
pub const V7_5: ApiVersion = (2, 10);
/// The preview of XenServer 8, and XCP-ng 8.3: no PV.
pub const V8_3: ApiVersion = (2, 20);

/// Something that some releases have and others do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ability {
    /// `VM.domain_type` and `VM.set_domain_type`.
    DomainType,
    /// `event.from`; before it there is only the queue of `event.next`.
    EventFrom,
    /// `session.login_with_password` takes an originator.
    Originator,
    /// `pool.sync_database`.
    SyncDatabase,
    /// `VM_metrics.hvm`.
    MetricsHvm,
    /// `VM_metrics.current_domain_type`.
    CurrentDomainType,
}

impl Ability {
    /// Every one.
    pub const ALL: [Self; 6] = [
        Self::DomainType,
        Self::EventFrom,
        Self::Originator,
        Self::SyncDatabase,
        Self::MetricsHvm,
        Self::CurrentDomainType,
    ];

    /// The first API version that has it.
    pub const fn since(self) -> ApiVersion {
        match self {
            Self::SyncDatabase => (1, 1),
            Self::EventFrom => V6_0,
            Self::Originator => V6_2,
            Self::MetricsHvm => V7_1,
            Self::DomainType | Self::CurrentDomainType => V7_5,
        }
    }

    /// As XenAPI spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DomainType => "domain_type",
            Self::EventFrom => "event.from",
            Self::Originator => "originator",
            Self::SyncDatabase => "pool.sync_database",
            Self::MetricsHvm => "VM_metrics.hvm",
            Self::CurrentDomainType => "VM_metrics.current_domain_type",
        }
    }
}

/// A release, as a host tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// `API_version_major` and `API_version_minor`.
    pub api: ApiVersion,
    /// Such as `8.2.1`; old hosts may not tell it.
    pub product_version: Option<String>,
    /// Such as `XCP-ng`; old hosts do not tell it.
    pub brand: Option<String>,
}

impl Release {
    /// That of one host.
    pub fn of_host(host: &HostRecord) -> Self {
        Self {
            api: host.api_version,
            product_version: host.product_version.clone(),
            brand: host.product_brand.clone(),
        }
    }

    /// That of a pool: its coordinator's, which answers all calls and whose database it is; where no host is the
    /// coordinator, the oldest host's. `None`: the pool has no hosts.
    pub fn of_pool(pool: &PoolRecord, hosts: &[HostRecord]) -> Option<Self> {
        let coordinator = hosts.iter().find(|host| host.reference == pool.master);
        coordinator.or_else(|| hosts.iter().min_by_key(|host| host.api_version)).map(Self::of_host)
    }

    /// Whether it has this.
    pub fn has(&self, ability: Ability) -> bool {
        self.api >= ability.since()
    }

    /// Older than what bootflip was made for.
    pub fn is_too_old(&self) -> bool {
        self.api < OLDEST
    }

    /// 5.6 and 6.0: the emulator reads `platform`'s acpi, apic and pae literally, absent meaning off, and an HVM
    /// start takes no other policy than exactly `BIOS order`.
    pub fn reads_flags_literally(&self) -> bool {
        self.api < V6_1
    }

    /// Whether its Xen and toolstack start PV guests at all: XenServer 8 and XCP-ng 8.3 dropped them. Either
    /// number is enough: previews raised them one after the other.
    pub fn starts_pv(&self) -> bool {
        let product = self.product_version.as_deref().and_then(numbers);
        self.api < V8_3 && product.is_none_or(|product| product < LAST_WITH_PV_ENDS)
    }
}

/// The first product version without PV: XCP-ng 8.3.0; XenServer 8 calls itself 8.4.0.
const LAST_WITH_PV_ENDS: (u32, u32) = (8, 3);

/// Major and minor of a product version.
fn numbers(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        (Some(Ok(major)), None) => Some((major, 0)),
        (_, _) => None,
    }
}

impl fmt::Display for Release {
    /// Such as `XCP-ng 8.2.1 (API 2.15)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let brand = self.brand.as_deref().unwrap_or("XenServer");
        let version = self.product_version.as_deref().unwrap_or("of unknown version");
        write!(f, "{brand} {version} (API {}.{})", self.api.0, self.api.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(api: ApiVersion, product: Option<&str>) -> Release {
        Release { api, product_version: product.map(str::to_owned), brand: None }
    }

    #[test]
    fn each_release_has_what_its_api_version_brought() {
        for (api, wanted) in [
            ((1, 7), "pool.sync_database"),
            ((1, 9), "event.from pool.sync_database"),
            ((1, 10), "event.from pool.sync_database"),
            ((2, 0), "event.from originator pool.sync_database"),
            ((2, 7), "event.from originator pool.sync_database VM_metrics.hvm"),
            (
                (2, 15),
                "domain_type event.from originator pool.sync_database VM_metrics.hvm VM_metrics.current_domain_type",
            ),
        ] {
            let release = release(api, None);
            let has: Vec<_> =
                Ability::ALL.into_iter().filter(|&it| release.has(it)).map(Ability::name).collect();
            assert_eq!(has.join(" "), wanted, "{api:?}");
            assert_eq!(release.reads_flags_literally(), api < (1, 10), "{api:?}");
        }
        assert!(release((1, 6), None).is_too_old() && !release((1, 7), None).is_too_old());
    }

    #[test]
    fn pv_ends_with_either_number() {
        for (api, product, starts) in [
            ((1, 7), Some("5.6.0"), true),
            ((2, 15), Some("8.2.1"), true),
            ((2, 15), None, true),
            ((2, 15), Some("unknown"), true),
            ((2, 21), Some("8.3.0"), false),
            ((2, 15), Some("8.3.0"), false),
            ((2, 16), Some("9"), false),
            ((2, 20), None, false),
            ((2, 21), Some("8.4.0"), false),
            ((2, 0), Some("6.2.0-12"), true),
        ] {
            assert_eq!(release(api, product).starts_pv(), starts, "{api:?} {product:?}");
        }
    }

    #[test]
    fn release_is_told_in_words() {
        let mut told = release((2, 15), Some("8.2.1"));
        assert_eq!(told.to_string(), "XenServer 8.2.1 (API 2.15)");
        told.brand = Some("XCP-ng".to_owned());
        told.product_version = None;
        assert_eq!(told.to_string(), "XCP-ng of unknown version (API 2.15)");
    }
}

//! What differs between releases: the API version decides which fields and messages exist; a few behaviours are
//! flags. A new release is a new constant here.

/// A XenAPI version: major, minor.
pub type Api = (u16, u16);

/// API version of XenServer 4.0 (rio): everything without another mark exists since then.
pub(super) const RIO: Api = (1, 1);
pub(super) const MIDNIGHT_RIDE: Api = (1, 7);
pub(super) const COWLEY: Api = (1, 8);
pub(super) const BOSTON: Api = (1, 9);
pub(super) const TAMPA: Api = (1, 10);
pub(super) const CLEARWATER: Api = (2, 0);
pub(super) const CREEDENCE: Api = (2, 3);
pub(super) const CREAM: Api = (2, 4);
pub(super) const DUNDEE: Api = (2, 5);
pub(super) const ELY: Api = (2, 6);
pub(super) const FALCON: Api = (2, 7);
pub(super) const INVERNESS: Api = (2, 8);
pub(super) const KOLKATA: Api = (2, 10);
pub(super) const NAPLES: Api = (2, 12);
pub(super) const QUEBEC: Api = (2, 14);
pub(super) const STOCKHOLM: Api = (2, 15);

/// A release of XenServer or XCP-ng, as far as the model tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Release {
    /// How people call it, such as `8.2`.
    pub name: &'static str,
    /// The API version in the host record.
    pub api: Api,
    /// `software_version:product_version` in the host record.
    pub product_version: &'static str,
    /// `software_version:product_brand`.
    pub brand: &'static str,
    /// An HVM start writes `platform:device-model` when it is absent (7.3 and later).
    pub writes_device_model: bool,
    /// The code for a clean shutdown of an HVM domain without tools.
    pub no_tools: &'static str,
}

impl Release {
    /// XCP-ng 8.2.
    pub const V8_2: Self = Self {
        name: "8.2",
        api: STOCKHOLM,
        product_version: "8.2.0",
        brand: "XCP-ng",
        writes_device_model: true,
        no_tools: "VM_LACKS_FEATURE",
    };

    /// XenServer 6.2: no `domain_type`, no `VM_metrics.hvm`.
    pub const V6_2: Self = Self {
        name: "6.2",
        api: CLEARWATER,
        product_version: "6.2.0",
        brand: "XenServer",
        writes_device_model: false,
        no_tools: "VM_MISSING_PV_DRIVERS",
    };

    /// Every release that the model knows.
    pub const ALL: [Self; 2] = [Self::V8_2, Self::V6_2];

    /// The release of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|release| release.name == name)
    }

    /// VM records have `domain_type`, metrics have `current_domain_type` (7.5 and later).
    pub fn has_domain_type(self) -> bool {
        self.api >= KOLKATA
    }

    /// Metrics have `hvm` (7.1 and later).
    pub fn has_metrics_hvm(self) -> bool {
        self.api >= ELY
    }
}

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
pub(super) const LIMA: Api = (2, 11);
pub(super) const NAPLES: Api = (2, 12);
pub(super) const QUEBEC: Api = (2, 14);
pub(super) const STOCKHOLM: Api = (2, 15);
pub(super) const NILE: Api = (2, 21);

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
    /// `software_version:xen`.
    pub xen: &'static str,
    /// An HVM start writes `platform:device-model` when it is absent (7.3 and later).
    pub writes_device_model: bool,
    /// The code for a clean shutdown of an HVM domain without tools.
    pub no_tools: &'static str,
}

/// The code for a clean shutdown without tools up to 6.5, and since 7.0.
const OLD_NO_TOOLS: &str = "VM_MISSING_PV_DRIVERS";
const NEW_NO_TOOLS: &str = "VM_LACKS_FEATURE";

impl Release {
    /// XenServer 5.6.
    pub const V5_6: Self = Self::old("5.6", MIDNIGHT_RIDE, "5.6.0", "3.4.2");
    /// XenServer 5.6 Feature Pack 1.
    pub const V5_6_FP1: Self = Self::old("5.6-fp1", COWLEY, "5.6.100", "3.4.2");
    /// XenServer 6.0: the first with event.from.
    pub const V6_0: Self = Self::old("6.0", BOSTON, "6.0.0", "4.1.1");
    /// XenServer 6.1: the first with xenopsd.
    pub const V6_1: Self = Self::old("6.1", TAMPA, "6.1.0", "4.1.3");
    /// XenServer 6.2: no `domain_type`, no `VM_metrics.hvm`; the first that knows originators.
    pub const V6_2: Self = Self::old("6.2", CLEARWATER, "6.2.0", "4.1.5");
    /// XenServer 6.5.
    pub const V6_5: Self = Self::old("6.5", CREEDENCE, "6.5.0", "4.4.1-xs90192");
    /// XenServer 7.2: has `VM_metrics.hvm`.
    pub const V7_2: Self = Self { no_tools: NEW_NO_TOOLS, ..Self::old("7.2", FALCON, "7.2.0", "4.7.1-1.1") };
    /// XenServer 7.6: has `domain_type`.
    pub const V7_6: Self = Self { brand: "XenServer", ..Self::new("7.6", LIMA, "7.6.0", "4.7.6-1.26") };
    /// Citrix Hypervisor 8.0.
    pub const V8_0: Self =
        Self { brand: "Citrix Hypervisor", ..Self::new("8.0", NAPLES, "8.0.0", "4.11.1-7.6") };
    /// XCP-ng 8.2.
    pub const V8_2: Self = Self::new("8.2", STOCKHOLM, "8.2.0", "4.13.4-9.29.1");
    /// XCP-ng 8.3: no PV.
    pub const V8_3: Self = Self::new("8.3", NILE, "8.3.0", "4.17.4-3");

    /// The releases that the model claims to behave like, oldest first.
    pub const ALL: [Self; 9] = [
        Self::V5_6,
        Self::V6_0,
        Self::V6_2,
        Self::V6_5,
        Self::V7_2,
        Self::V7_6,
        Self::V8_0,
        Self::V8_2,
        Self::V8_3,
    ];
    /// Releases that only loaded databases have; their behaviour is that of their neighbours.
    pub const BETWEEN: [Self; 2] = [Self::V5_6_FP1, Self::V6_1];

    const fn old(name: &'static str, api: Api, product_version: &'static str, xen: &'static str) -> Self {
        Self {
            name,
            api,
            product_version,
            xen,
            brand: "XenServer",
            writes_device_model: false,
            no_tools: OLD_NO_TOOLS,
        }
    }

    const fn new(name: &'static str, api: Api, product_version: &'static str, xen: &'static str) -> Self {
        Self {
            name,
            api,
            product_version,
            xen,
            brand: "XCP-ng",
            writes_device_model: true,
            no_tools: NEW_NO_TOOLS,
        }
    }

    /// The release of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain(Self::BETWEEN).find(|release| release.name == name)
    }

    /// The newest release whose API is not newer than this one; the oldest for what came before it.
    pub fn of_api(api: Api) -> Self {
        let fits = |release: &Self| release.api <= api;
        let newest =
            Self::ALL.into_iter().chain(Self::BETWEEN).filter(fits).max_by_key(|release| release.api);
        newest.unwrap_or(Self::V5_6)
    }

    /// VM records have `domain_type`, metrics have `current_domain_type` (7.5 and later).
    pub fn has_domain_type(self) -> bool {
        self.api >= KOLKATA
    }

    /// Metrics have `hvm` (7.1 and later).
    pub fn has_metrics_hvm(self) -> bool {
        self.api >= ELY
    }

    /// Xapi runs domains itself, without xenopsd (to 6.0): it boots HVM for the exact text `BIOS order` only, gives
    /// the emulator just the platform flags that are written, and API reboots and shutdowns obey actions_after_*.
    pub(super) fn runs_domains_itself(self) -> bool {
        self.api < TAMPA
    }

    /// A disk is named after the boot mode (6.1, 6.2): a domain that is flipped while it runs loses its disks at
    /// the next reboot.
    pub(super) fn names_disks_by_mode(self) -> bool {
        self.api >= TAMPA && self.api < CREEDENCE
    }

    /// Only VM.start, not a reboot, notes how the VM booted (6.1 to 7.2).
    pub(super) fn notes_mode_at_start_only(self) -> bool {
        self.api >= TAMPA && self.api < INVERNESS
    }

    /// Xen has PV domains at all.
    pub(super) fn runs_pv(self) -> bool {
        self.api < NILE
    }

    /// Events of `event.next` carry the record.
    pub(super) fn has_event_snapshots(self) -> bool {
        self.api >= BOSTON
    }
}

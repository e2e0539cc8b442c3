//! Typed records, read from the values that a pool sends. Pure.
//!
//! Invariant: nothing is guessed. A field that every release from 5.6 on has must be there and of its type; one
//! that came later is an `Option` and `None` on older pools; all other fields are ignored.

mod activity;
mod fields;
mod places;

use std::collections::BTreeMap;

use super::{Failure, Value, version::XenVersion};
pub use activity::{EventBatch, ObjectEvent, TaskRecord, TaskStatus};
use fields::Fields;
pub use places::{NetworkRecord, SrRecord};

/// A record that is not what XenAPI declares.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// Not a struct.
    #[error("{class}: not a record")]
    NotARecord {
        /// The XenAPI class.
        class: &'static str,
    },
    /// A field that every release has is missing.
    #[error("{class}.{field} is missing")]
    Missing {
        /// The XenAPI class.
        class: &'static str,
        /// The field, as XenAPI spells it.
        field: &'static str,
    },
    /// A field of another type, or with a value that its enum does not have.
    #[error("{class}.{field} is not {wanted}")]
    Type {
        /// The XenAPI class.
        class: &'static str,
        /// The field, as XenAPI spells it.
        field: &'static str,
        /// What it should be.
        wanted: &'static str,
    },
}

/// Something that a pool sends as a record.
pub trait Record: Sized {
    /// Reads it. `reference` is the one that the record was asked for by.
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError>;
}

/// Whether a reference points to nothing: `OpaqueRef:NULL`, and on old releases `Null` or the empty string.
pub fn is_null(reference: &str) -> bool {
    matches!(reference, "OpaqueRef:NULL" | "Null" | "NULL" | "")
}

/// Whether the VM with these metrics has never been started: its start_time is still in 1970. A clone copies its
/// origin's, so `false` does not prove that this VM ran.
pub fn never_ran(metrics: &VmMetrics) -> bool {
    metrics.start_time.starts_with("1970")
}

/// `VM.power_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PowerState {
    /// No domain.
    Halted,
    /// A domain that does not run: started paused, or paused by somebody.
    Paused,
    /// A domain that runs.
    Running,
    /// No domain; its memory is on disk.
    Suspended,
}

impl PowerState {
    /// As XenAPI spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Halted => "Halted",
            Self::Paused => "Paused",
            Self::Running => "Running",
            Self::Suspended => "Suspended",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Halted, Self::Paused, Self::Running, Self::Suspended]
            .into_iter()
            .find(|state| state.name() == text)
    }
}

/// What bootflip reads of a VM.
#[derive(Debug, Clone, PartialEq)]
pub struct VmRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`; not unique.
    pub name_label: String,
    /// `power_state`, a cache of the pool's that may lag behind.
    pub power_state: PowerState,
    /// `is_a_template`.
    pub is_a_template: bool,
    /// `is_control_domain`.
    pub is_control_domain: bool,
    /// `is_a_snapshot`.
    pub is_a_snapshot: bool,
    /// `domain_type`: `hvm`, `pv`, `pv_in_pvh`, `pvh`, `unspecified`; `None` before 7.5.
    pub domain_type: Option<String>,
    /// `HVM_boot_policy`: empty is PV, else HVM.
    pub hvm_boot_policy: String,
    /// `HVM_boot_params`: `order`, `firmware`.
    pub hvm_boot_params: BTreeMap<String, String>,
    /// `PV_args`.
    pub pv_args: String,
    /// `PV_bootloader`: `pygrub`, `eliloader` or empty.
    pub pv_bootloader: String,
    /// `PV_bootloader_args`.
    pub pv_bootloader_args: String,
    /// `PV_kernel`: a file in the control domain.
    pub pv_kernel: String,
    /// `PV_ramdisk`: a file in the control domain.
    pub pv_ramdisk: String,
    /// `PV_legacy_args`.
    pub pv_legacy_args: String,
    /// `actions_after_shutdown`: `destroy` or `restart`.
    pub actions_after_shutdown: String,
    /// `actions_after_reboot`: `destroy` or `restart`.
    pub actions_after_reboot: String,
    /// `actions_after_crash`: `destroy`, `restart`, `preserve` and others.
    pub actions_after_crash: String,
    /// `other_config`, where our claim lives.
    pub other_config: BTreeMap<String, String>,
    /// `platform`.
    pub platform: BTreeMap<String, String>,
    /// `blocked_operations`: operation → reason.
    pub blocked_operations: BTreeMap<String, String>,
    /// `current_operations`: task → operation.
    pub current_operations: BTreeMap<String, String>,
    /// `allowed_operations`, advice only.
    pub allowed_operations: Vec<String>,
    /// `ha_always_run`: set while HA keeps the VM up (deprecated since 6.0).
    pub ha_always_run: bool,
    /// `ha_restart_priority`: empty is unprotected.
    pub ha_restart_priority: String,
    /// `tags`.
    pub tags: Vec<String>,
    /// `VBDs`: references.
    pub vbds: Vec<String>,
    /// `VIFs`: references.
    pub vifs: Vec<String>,
    /// `metrics`: a reference.
    pub metrics: String,
    /// `guest_metrics`: a reference, null without guest tools.
    pub guest_metrics: String,
    /// `domid`; -1 without a domain.
    pub domid: i64,
    /// `resident_on`: a host, null without a domain.
    pub resident_on: String,
    /// `memory_static_max`, in bytes.
    pub memory_static_max: u64,
    /// `memory_static_min`, in bytes: no limit may be below it.
    pub memory_static_min: u64,
    /// `memory_dynamic_min`, in bytes: what a start needs.
    pub memory_dynamic_min: u64,
    /// `memory_dynamic_max`, in bytes.
    pub memory_dynamic_max: u64,
    /// `VCPUs_max`.
    pub vcpus_max: u64,
    /// `VCPUs_at_startup`.
    pub vcpus_at_startup: u64,
    /// `HVM_shadow_multiplier`.
    pub hvm_shadow_multiplier: f64,
}

impl VmRecord {
    /// Whether the next start has no BIOS and goes through the PV boot fields: `domain_type` is `pv`, `pv_in_pvh` or
    /// `pvh`, or, where the pool has no domain_type or left it `unspecified`, the policy is empty.
    pub fn is_pv(&self) -> bool {
        match self.domain_type.as_deref() {
            Some("pv" | "pv_in_pvh" | "pvh") => true,
            None | Some("unspecified") => self.hvm_boot_policy.is_empty(),
            Some(_) => false,
        }
    }
}

impl Record for VmRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("VM", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
            power_state: fields.parsed("power_state", "a vm_power_state", PowerState::parse)?,
            is_a_template: fields.flag("is_a_template")?,
            is_control_domain: fields.flag("is_control_domain")?,
            is_a_snapshot: fields.flag("is_a_snapshot")?,
            domain_type: fields.text_if("domain_type")?,
            hvm_boot_policy: fields.text("HVM_boot_policy")?,
            hvm_boot_params: fields.map("HVM_boot_params")?,
            pv_args: fields.text("PV_args")?,
            pv_bootloader: fields.text("PV_bootloader")?,
            pv_bootloader_args: fields.text("PV_bootloader_args")?,
            pv_kernel: fields.text("PV_kernel")?,
            pv_ramdisk: fields.text("PV_ramdisk")?,
            pv_legacy_args: fields.text("PV_legacy_args")?,
            actions_after_shutdown: fields.text("actions_after_shutdown")?,
            actions_after_reboot: fields.text("actions_after_reboot")?,
            actions_after_crash: fields.text("actions_after_crash")?,
            other_config: fields.map("other_config")?,
            platform: fields.map("platform")?,
            blocked_operations: fields.map("blocked_operations")?,
            current_operations: fields.map("current_operations")?,
            allowed_operations: fields.set("allowed_operations")?,
            ha_always_run: fields.flag("ha_always_run")?,
            ha_restart_priority: fields.text("ha_restart_priority")?,
            tags: fields.set("tags")?,
            vbds: fields.set("VBDs")?,
            vifs: fields.set("VIFs")?,
            metrics: fields.text("metrics")?,
            guest_metrics: fields.text("guest_metrics")?,
            domid: fields.int("domid")?,
            resident_on: fields.text("resident_on")?,
            memory_static_max: fields.bytes("memory_static_max")?,
            memory_static_min: fields.bytes("memory_static_min")?,
            memory_dynamic_min: fields.bytes("memory_dynamic_min")?,
            memory_dynamic_max: fields.bytes("memory_dynamic_max")?,
            vcpus_max: fields.count("VCPUs_max")?,
            vcpus_at_startup: fields.count("VCPUs_at_startup")?,
            hvm_shadow_multiplier: fields.float("HVM_shadow_multiplier")?,
        })
    }
}

/// What bootflip reads of `VM_metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmMetrics {
    /// `start_time` as sent: whole seconds, 1970 until the first start, kept after a halt.
    pub start_time: String,
    /// `hvm`: what a VM that is not halted runs as; `None` before 7.1.
    pub hvm: Option<bool>,
    /// `current_domain_type`: what a VM that is not halted runs as; `None` before 7.5.
    pub current_domain_type: Option<String>,
}

impl Record for VmMetrics {
    fn decode(_reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("VM_metrics", value)?;
        Ok(Self {
            start_time: fields.text("start_time")?,
            hvm: fields.flag_if("hvm")?,
            current_domain_type: fields.text_if("current_domain_type")?,
        })
    }
}

/// What bootflip reads of `VM_guest_metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestMetrics {
    /// `networks`: such as `0/ip` → `10.0.0.7`, from the guest's agent.
    pub networks: BTreeMap<String, String>,
}

impl Record for GuestMetrics {
    fn decode(_reference: &str, value: &Value) -> Result<Self, RecordError> {
        Ok(Self { networks: Fields::of("VM_guest_metrics", value)?.map("networks")? })
    }
}

/// What bootflip reads of a virtual block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VbdRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `userdevice`: its place, `0` first.
    pub userdevice: String,
    /// `bootable`.
    pub bootable: bool,
    /// `mode`: `RO` or `RW`.
    pub mode: String,
    /// `type`: `CD`, `Disk` or `Floppy`.
    pub kind: String,
    /// `empty`: a drive without a medium.
    pub empty: bool,
    /// `VDI`: a reference, null when empty.
    pub vdi: String,
}

impl Record for VbdRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("VBD", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            userdevice: fields.text("userdevice")?,
            bootable: fields.flag("bootable")?,
            mode: fields.text("mode")?,
            kind: fields.text("type")?,
            empty: fields.flag("empty")?,
            vdi: fields.text("VDI")?,
        })
    }
}

/// What bootflip reads of a virtual disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VdiRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`.
    pub name_label: String,
    /// `virtual_size`, in bytes.
    pub virtual_size: u64,
    /// `SR`: a reference.
    pub sr: String,
    /// `VBDs`: references, one for each VM that has it.
    pub vbds: Vec<String>,
}

impl Record for VdiRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("VDI", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
            virtual_size: fields.bytes("virtual_size")?,
            sr: fields.text("SR")?,
            vbds: fields.set("VBDs")?,
        })
    }
}

/// What bootflip reads of a virtual network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VifRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `VM`: a reference.
    pub vm: String,
    /// `device`: `0` boots first.
    pub device: String,
    /// `MAC`, as sent.
    pub mac: String,
    /// `network`: a reference.
    pub network: String,
    /// `locking_mode`: `disabled`, and `locked` without addresses, stop DHCP; `None` before 6.1.
    pub locking_mode: Option<String>,
}

impl Record for VifRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("VIF", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            vm: fields.text("VM")?,
            device: fields.text("device")?,
            mac: fields.text("MAC")?,
            network: fields.text("network")?,
            locking_mode: fields.text_if("locking_mode")?,
        })
    }
}

/// What bootflip reads of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`.
    pub name_label: String,
    /// `master`: the coordinator's reference.
    pub master: String,
    /// `ha_enabled`.
    pub ha_enabled: bool,
    /// `default_SR`: a reference, null where none was chosen.
    pub default_sr: String,
}

impl Record for PoolRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("pool", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
            master: fields.text("master")?,
            ha_enabled: fields.flag("ha_enabled")?,
            default_sr: fields.text("default_SR")?,
        })
    }
}

/// What bootflip reads of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`.
    pub name_label: String,
    /// `enabled`: not in maintenance.
    pub enabled: bool,
    /// `address`: where the other members reach it.
    pub address: String,
    /// `API_version_major` and `API_version_minor`: 2.15 is 8.2.
    pub api_version: (u32, u32),
    /// `software_version["product_version"]`: such as `8.2.1`.
    pub product_version: Option<String>,
    /// `software_version["product_brand"]`: such as `XCP-ng`.
    pub product_brand: Option<String>,
    /// `software_version["xen"]`: such as `4.13.4-9.29.1`.
    pub xen: Option<XenVersion>,
    /// `capabilities`: such as `xen-3.0-x86_64`, `hvm-3.0-x86_64`.
    pub capabilities: Vec<String>,
    /// `metrics`: the reference of its [`HostMetrics`].
    pub metrics: String,
}

impl HostRecord {
    /// Its Xen takes guests of a kind, such as `hvm-` or `xen-3.0-x86_32p`: a capability begins so.
    pub fn takes(&self, kind: &str) -> bool {
        self.capabilities.iter().any(|capability| capability.starts_with(kind))
    }
}

impl Record for HostRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("host", value)?;
        let mut software = fields.map("software_version")?;
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
            enabled: fields.flag("enabled")?,
            address: fields.text("address")?,
            api_version: (fields.version("API_version_major")?, fields.version("API_version_minor")?),
            product_version: software.remove("product_version"),
            product_brand: software.remove("product_brand"),
            xen: software.remove("xen").as_deref().and_then(XenVersion::parse),
            capabilities: fields.set("capabilities")?,
            metrics: fields.text("metrics")?,
        })
    }
}

/// What bootflip reads of a host's metrics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostMetrics {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `memory_total`, in bytes; 0 while the host is away.
    pub memory_total: u64,
}

impl Record for HostMetrics {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("host_metrics", value)?;
        Ok(Self { reference: reference.to_owned(), memory_total: fields.bytes("memory_total")? })
    }
}

/// What bootflip reads of its own session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// `is_local_superuser`: root, who may everything.
    pub is_local_superuser: bool,
    /// `rbac_permissions`: the messages that the session may send, in lower case; empty for root.
    pub rbac_permissions: Vec<String>,
}

impl Record for SessionRecord {
    fn decode(_reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("session", value)?;
        Ok(Self {
            is_local_superuser: fields.flag("is_local_superuser")?,
            rbac_permissions: fields.set("rbac_permissions")?,
        })
    }
}

#[cfg(test)]
mod tests;

//! The fields of each class, with kind, API version and whether a setter exists. Transcribed from the XenAPI data
//! model for the releases that the model covers; fields without a version here exist in all of them.

use std::collections::BTreeMap;

use super::release::{
    Api, BOSTON, CLEARWATER, COWLEY, CREAM, CREEDENCE, DUNDEE, ELY, FALCON, INVERNESS, KOLKATA,
    MIDNIGHT_RIDE, NAPLES, QUEBEC, RIO, STOCKHOLM, TAMPA,
};
use crate::xen::Value;

/// The null reference.
pub(super) const NULL: &str = "OpaqueRef:NULL";
/// The date of what never happened.
pub(super) const EPOCH: &str = "19700101T00:00:00Z";

/// A class of the pool's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    Vm,
    VmMetrics,
    VmGuestMetrics,
    Vif,
    Vbd,
    Vdi,
    Sr,
    Network,
    Host,
    HostMetrics,
    Pool,
    Task,
}

impl Class {
    pub(super) const ALL: [Self; 12] = [
        Self::Vm,
        Self::VmMetrics,
        Self::VmGuestMetrics,
        Self::Vif,
        Self::Vbd,
        Self::Vdi,
        Self::Sr,
        Self::Network,
        Self::Host,
        Self::HostMetrics,
        Self::Pool,
        Self::Task,
    ];

    /// The name in messages and errors.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vm => "VM",
            Self::VmMetrics => "VM_metrics",
            Self::VmGuestMetrics => "VM_guest_metrics",
            Self::Vif => "VIF",
            Self::Vbd => "VBD",
            Self::Vdi => "VDI",
            Self::Sr => "SR",
            Self::Network => "network",
            Self::Host => "host",
            Self::HostMetrics => "host_metrics",
            Self::Pool => "pool",
            Self::Task => "task",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    const fn fields(self) -> &'static [Field] {
        match self {
            Self::Vm => VM,
            Self::VmMetrics => VM_METRICS,
            Self::VmGuestMetrics => VM_GUEST_METRICS,
            Self::Vif => VIF,
            Self::Vbd => VBD,
            Self::Vdi => VDI,
            Self::Sr => SR,
            Self::Network => NETWORK,
            Self::Host => HOST,
            Self::HostMetrics => HOST_METRICS,
            Self::Pool => POOL,
            Self::Task => TASK,
        }
    }

    /// The field of this name, where the release has it.
    pub(super) fn field(self, api: Api, name: &str) -> Option<&'static Field> {
        self.fields().iter().find(|field| field.name == name && field.exists(api))
    }

    /// A record with every field of the release at its empty value.
    pub(super) fn blank(self, api: Api) -> BTreeMap<String, Value> {
        let fields = self.fields().iter().filter(|field| field.exists(api));
        fields.map(|field| (field.name.to_owned(), field.kind.empty())).collect()
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int,
    Float,
    Flag,
    Date,
    Reference,
    Set,
    Map,
}

impl Kind {
    fn empty(self) -> Value {
        match self {
            Self::Text => Value::void(),
            Self::Int => Value::string("0"),
            Self::Float => Value::Double(0.0),
            Self::Flag => Value::Bool(false),
            Self::Date => Value::DateTime(EPOCH.to_owned()),
            Self::Reference => Value::string(NULL),
            Self::Set => Value::Array(Vec::new()),
            Self::Map => Value::Struct(BTreeMap::new()),
        }
    }

    /// The value is of this kind, as it stands on the wire.
    pub(super) const fn holds(self, value: &Value) -> bool {
        match self {
            Self::Text | Self::Reference => matches!(value, Value::String(_)),
            Self::Int => matches!(value, Value::String(_) | Value::Int(_)),
            Self::Float => matches!(value, Value::Double(_)),
            Self::Flag => matches!(value, Value::Bool(_)),
            Self::Date => matches!(value, Value::DateTime(_)),
            Self::Set => matches!(value, Value::Array(_)),
            Self::Map => matches!(value, Value::Struct(_)),
        }
    }
}

/// One field of one class.
#[derive(Debug)]
pub(super) struct Field {
    name: &'static str,
    pub(super) kind: Kind,
    since: Api,
    until: Option<Api>,
    /// A setter exists (and `add_to_`, `remove_from_` for maps).
    pub(super) writable: bool,
}

impl Field {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, since: RIO, until: None, writable: false }
    }

    const fn since(self, api: Api) -> Self {
        Self { since: api, ..self }
    }

    const fn until(self, api: Api) -> Self {
        Self { until: Some(api), ..self }
    }

    const fn rw(self) -> Self {
        Self { writable: true, ..self }
    }

    fn exists(&self, api: Api) -> bool {
        self.since <= api && self.until.is_none_or(|until| api < until)
    }
}

const fn text(name: &'static str) -> Field {
    Field::new(name, Kind::Text)
}

const fn int(name: &'static str) -> Field {
    Field::new(name, Kind::Int)
}

const fn float(name: &'static str) -> Field {
    Field::new(name, Kind::Float)
}

const fn flag(name: &'static str) -> Field {
    Field::new(name, Kind::Flag)
}

const fn date(name: &'static str) -> Field {
    Field::new(name, Kind::Date)
}

const fn reference(name: &'static str) -> Field {
    Field::new(name, Kind::Reference)
}

const fn set(name: &'static str) -> Field {
    Field::new(name, Kind::Set)
}

const fn map(name: &'static str) -> Field {
    Field::new(name, Kind::Map)
}

const VM: &[Field] = &[
    map("HVM_boot_params").rw(),
    text("HVM_boot_policy").rw(),
    float("HVM_shadow_multiplier").rw(),
    map("NVRAM").since(NAPLES),
    text("PCI_bus").rw(),
    text("PV_args").rw(),
    text("PV_bootloader").rw(),
    text("PV_bootloader_args").rw(),
    text("PV_kernel").rw(),
    text("PV_legacy_args").rw(),
    text("PV_ramdisk").rw(),
    set("VBDs"),
    int("VCPUs_at_startup"),
    int("VCPUs_max"),
    map("VCPUs_params").rw(),
    set("VGPUs").since(BOSTON),
    set("VIFs"),
    set("VTPMs"),
    set("VUSBs"),
    text("actions_after_crash").rw(),
    text("actions_after_reboot").rw(),
    text("actions_after_shutdown").rw(),
    reference("affinity").rw(),
    set("allowed_operations"),
    reference("appliance"),
    set("attached_PCIs").since(BOSTON),
    map("bios_strings").since(MIDNIGHT_RIDE),
    map("blobs"),
    map("blocked_operations").rw(),
    set("children").since(MIDNIGHT_RIDE),
    set("consoles"),
    set("crash_dumps"),
    map("current_operations"),
    text("domain_type").since(KOLKATA).rw(),
    text("domarch"),
    int("domid"),
    text("generation_id").since(CLEARWATER),
    reference("guest_metrics"),
    flag("ha_always_run"),
    text("ha_restart_priority"),
    int("hardware_platform_version").since(CREAM).rw(),
    flag("has_vendor_device").since(DUNDEE),
    flag("is_a_snapshot"),
    flag("is_a_template").rw(),
    flag("is_control_domain"),
    flag("is_default_template").since(FALCON),
    flag("is_snapshot_from_vmpp").since(COWLEY).until(CLEARWATER),
    flag("is_vmss_snapshot").since(FALCON),
    map("last_boot_CPU_flags"),
    text("last_booted_record"),
    int("memory_dynamic_max"),
    int("memory_dynamic_min"),
    int("memory_overhead"),
    int("memory_static_max"),
    int("memory_static_min"),
    int("memory_target"),
    reference("metrics"),
    text("name_description").rw(),
    text("name_label").rw(),
    int("order").since(BOSTON),
    map("other_config").rw(),
    reference("parent").since(MIDNIGHT_RIDE),
    map("platform").rw(),
    text("power_state"),
    reference("protection_policy").since(COWLEY),
    text("recommendations").rw(),
    text("reference_label").since(ELY),
    flag("requires_reboot").since(ELY),
    reference("resident_on"),
    reference("scheduled_to_be_resident_on"),
    int("shutdown_delay").since(BOSTON),
    map("snapshot_info").since(MIDNIGHT_RIDE),
    text("snapshot_metadata").since(MIDNIGHT_RIDE),
    reference("snapshot_of"),
    reference("snapshot_schedule").since(FALCON),
    date("snapshot_time"),
    set("snapshots"),
    int("start_delay").since(BOSTON),
    reference("suspend_SR").since(BOSTON).rw(),
    reference("suspend_VDI"),
    set("tags").rw(),
    text("transportable_snapshot_id"),
    int("user_version").rw(),
    text("uuid"),
    int("version").since(BOSTON),
    map("xenstore_data").rw(),
];

const VM_METRICS: &[Field] = &[
    map("VCPUs_CPU"),
    map("VCPUs_flags"),
    int("VCPUs_number"),
    map("VCPUs_params"),
    map("VCPUs_utilisation").until(TAMPA),
    text("current_domain_type").since(KOLKATA),
    flag("hvm").since(ELY),
    date("install_time"),
    date("last_updated"),
    int("memory_actual"),
    flag("nested_virt").since(ELY),
    flag("nomigrate").since(ELY),
    map("other_config").rw(),
    date("start_time"),
    set("state"),
    text("uuid"),
];

const VM_GUEST_METRICS: &[Field] = &[
    flag("PV_drivers_detected").since(DUNDEE),
    flag("PV_drivers_up_to_date"),
    map("PV_drivers_version"),
    text("can_use_hotplug_vbd").since(DUNDEE),
    text("can_use_hotplug_vif").since(DUNDEE),
    date("last_updated"),
    flag("live"),
    map("networks"),
    map("os_version"),
    map("other"),
    map("other_config").rw(),
    text("uuid"),
];

const VIF: &[Field] = &[
    text("MAC"),
    flag("MAC_autogenerated"),
    int("MTU"),
    reference("VM"),
    set("allowed_operations"),
    map("current_operations"),
    flag("currently_attached"),
    text("device"),
    set("ipv4_addresses").since(DUNDEE),
    set("ipv4_allowed").since(TAMPA),
    text("ipv4_configuration_mode").since(DUNDEE),
    text("ipv4_gateway").since(DUNDEE),
    set("ipv6_addresses").since(DUNDEE),
    set("ipv6_allowed").since(TAMPA),
    text("ipv6_configuration_mode").since(DUNDEE),
    text("ipv6_gateway").since(DUNDEE),
    text("locking_mode").since(TAMPA),
    reference("metrics").until(TAMPA),
    reference("network"),
    map("other_config").rw(),
    map("qos_algorithm_params").rw(),
    text("qos_algorithm_type").rw(),
    set("qos_supported_algorithms"),
    map("runtime_properties"),
    int("status_code"),
    text("status_detail"),
    text("uuid"),
];

const VBD: &[Field] = &[
    reference("VDI"),
    reference("VM"),
    set("allowed_operations"),
    flag("bootable").rw(),
    map("current_operations"),
    flag("currently_attached"),
    text("device"),
    flag("empty"),
    reference("metrics").until(TAMPA),
    text("mode"),
    map("other_config").rw(),
    map("qos_algorithm_params").rw(),
    text("qos_algorithm_type").rw(),
    set("qos_supported_algorithms"),
    map("runtime_properties"),
    int("status_code"),
    text("status_detail"),
    flag("storage_lock"),
    text("type").rw(),
    flag("unpluggable").rw(),
    text("userdevice").rw(),
    text("uuid"),
];

const VDI: &[Field] = &[
    reference("SR"),
    set("VBDs"),
    flag("allow_caching").since(COWLEY),
    set("allowed_operations"),
    flag("cbt_enabled").since(INVERNESS),
    set("crash_dumps"),
    map("current_operations"),
    flag("is_a_snapshot"),
    flag("is_tools_iso").since(DUNDEE),
    text("location"),
    flag("managed"),
    flag("metadata_latest").since(BOSTON),
    reference("metadata_of_pool").since(BOSTON),
    flag("missing"),
    text("name_description"),
    text("name_label"),
    text("on_boot").since(COWLEY),
    map("other_config").rw(),
    reference("parent"),
    int("physical_utilisation"),
    flag("read_only"),
    flag("sharable"),
    map("sm_config").rw(),
    reference("snapshot_of"),
    date("snapshot_time"),
    set("snapshots"),
    flag("storage_lock"),
    set("tags").rw(),
    text("type"),
    text("uuid"),
    int("virtual_size"),
    map("xenstore_data").rw(),
];

const SR: &[Field] = &[
    set("PBDs"),
    set("VDIs"),
    set("allowed_operations"),
    map("blobs"),
    flag("clustered").since(DUNDEE),
    text("content_type"),
    map("current_operations"),
    reference("introduced_by").since(BOSTON),
    flag("is_tools_sr").since(DUNDEE),
    flag("local_cache_enabled").since(COWLEY),
    text("name_description"),
    text("name_label"),
    map("other_config").rw(),
    int("physical_size"),
    int("physical_utilisation"),
    flag("shared"),
    map("sm_config").rw(),
    set("tags").rw(),
    text("type"),
    text("uuid"),
    int("virtual_allocation"),
];

const NETWORK: &[Field] = &[
    int("MTU").since(MIDNIGHT_RIDE).rw(),
    set("PIFs"),
    set("VIFs"),
    set("allowed_operations"),
    map("assigned_ips").since(CREEDENCE),
    map("blobs"),
    text("bridge"),
    map("current_operations"),
    text("default_locking_mode").since(TAMPA),
    flag("managed").since(FALCON),
    text("name_description").rw(),
    text("name_label").rw(),
    map("other_config").rw(),
    set("purpose").since(INVERNESS),
    set("tags").rw(),
    text("uuid"),
];

const HOST: &[Field] = &[
    int("API_version_major"),
    int("API_version_minor"),
    text("API_version_vendor"),
    map("API_version_vendor_implementation"),
    set("PBDs"),
    set("PCIs").since(BOSTON),
    set("PGPUs").since(BOSTON),
    set("PIFs"),
    set("PUSBs").since(INVERNESS),
    text("address").rw(),
    set("allowed_operations"),
    map("bios_strings").since(MIDNIGHT_RIDE),
    map("blobs"),
    set("capabilities"),
    set("certificates").since(STOCKHOLM),
    map("chipset_info").since(BOSTON),
    reference("control_domain").since(ELY),
    map("cpu_configuration"),
    map("cpu_info").since(MIDNIGHT_RIDE),
    reference("crash_dump_sr").rw(),
    set("crashdumps"),
    map("current_operations"),
    text("display").since(CREAM).rw(),
    text("edition").since(MIDNIGHT_RIDE),
    set("editions").since(STOCKHOLM),
    flag("enabled"),
    map("external_auth_configuration"),
    text("external_auth_service_name"),
    text("external_auth_type"),
    set("features").since(FALCON),
    map("guest_VCPUs_params").since(TAMPA).rw(),
    set("ha_network_peers"),
    set("ha_statefiles"),
    set("host_CPUs"),
    text("hostname").rw(),
    text("iscsi_iqn").since(KOLKATA),
    map("license_params"),
    map("license_server").since(MIDNIGHT_RIDE).rw(),
    reference("local_cache_sr").since(COWLEY),
    map("logging").rw(),
    int("memory_overhead"),
    reference("metrics"),
    flag("multipathing").since(KOLKATA),
    text("name_description").rw(),
    text("name_label").rw(),
    map("other_config").rw(),
    set("patches"),
    map("power_on_config").since(MIDNIGHT_RIDE),
    text("power_on_mode").since(MIDNIGHT_RIDE),
    set("resident_VMs"),
    text("sched_policy"),
    map("software_version"),
    flag("ssl_legacy").since(DUNDEE),
    set("supported_bootloaders"),
    reference("suspend_image_sr").rw(),
    set("tags").rw(),
    text("uefi_certificates").since(QUEBEC),
    set("updates").since(ELY),
    set("updates_requiring_reboot").since(ELY),
    text("uuid"),
    set("virtual_hardware_platform_versions").since(CREAM),
];

const HOST_METRICS: &[Field] = &[
    date("last_updated"),
    flag("live"),
    int("memory_free").until(TAMPA),
    int("memory_total"),
    map("other_config").rw(),
    text("uuid"),
];

const POOL: &[Field] = &[
    set("allowed_operations"),
    map("blobs"),
    map("cpu_info").since(DUNDEE),
    reference("crash_dump_SR").rw(),
    map("current_operations"),
    reference("default_SR").rw(),
    map("guest_agent_config").since(DUNDEE),
    map("gui_config").rw(),
    flag("ha_allow_overcommit").rw(),
    text("ha_cluster_stack").since(DUNDEE),
    map("ha_configuration"),
    flag("ha_enabled"),
    int("ha_host_failures_to_tolerate"),
    flag("ha_overcommitted"),
    int("ha_plan_exists_for"),
    set("ha_statefiles"),
    map("health_check_config").since(DUNDEE).rw(),
    flag("igmp_snooping_enabled").since(INVERNESS),
    flag("live_patching_disabled").since(ELY).rw(),
    reference("master"),
    set("metadata_VDIs").since(BOSTON),
    text("name_description").rw(),
    text("name_label").rw(),
    map("other_config").rw(),
    flag("policy_no_vendor_device").since(DUNDEE).rw(),
    flag("redo_log_enabled").since(MIDNIGHT_RIDE),
    reference("redo_log_vdi").since(MIDNIGHT_RIDE),
    map("restrictions").since(MIDNIGHT_RIDE),
    reference("suspend_image_SR").rw(),
    set("tags").rw(),
    text("uefi_certificates").since(QUEBEC),
    text("uuid"),
    text("vswitch_controller").since(MIDNIGHT_RIDE),
    flag("wlb_enabled").rw(),
    text("wlb_url"),
    text("wlb_username"),
    flag("wlb_verify_cert").rw(),
];

const TASK: &[Field] = &[
    set("allowed_operations"),
    text("backtrace").since(DUNDEE),
    date("created"),
    map("current_operations"),
    set("error_info"),
    date("finished"),
    text("name_description"),
    text("name_label"),
    map("other_config"),
    float("progress"),
    reference("resident_on"),
    text("result"),
    text("status"),
    reference("subtask_of"),
    set("subtasks"),
    text("type"),
    text("uuid"),
];

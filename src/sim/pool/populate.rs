//! What a pool and a VM consist of: the rows of a new pool, of an added VM, of a clone.

use std::collections::BTreeMap;

use super::{
    Host, Pool,
    db::Fields,
    schema::{Class, EPOCH, NULL},
    spec::{DiskKind, DiskSpec, HostSpec, VmSpec},
};
use crate::{clock::Timestamp, machine::MacAddr, xen::Value};

/// Rows of the setting are older than everything that can be forgotten.
pub(super) const LONG_AGO: Timestamp = Timestamp::from_millis(0);
/// The size of the pool's SR, bytes.
pub(super) const SR_SIZE: u64 = 64 << 40;
/// The start time of a VM that ran before the model began: 2020-01-01.
pub(super) const RAN_BEFORE: &str = "20200101T00:00:00Z";

/// Writes members of a new record; a field that the release lacks is skipped.
pub(super) struct Draft(pub(super) Fields);

impl Draft {
    pub(super) fn put(&mut self, field: &str, value: Value) -> &mut Self {
        if let Some(slot) = self.0.get_mut(field) {
            *slot = value;
        }
        self
    }

    pub(super) fn text(&mut self, field: &str, text: &str) -> &mut Self {
        let is_date = matches!(self.0.get(field), Some(Value::DateTime(_)));
        let value = if is_date { Value::DateTime(text.to_owned()) } else { Value::string(text) };
        self.put(field, value)
    }

    pub(super) fn texts(&mut self, pairs: &[(&str, &str)]) -> &mut Self {
        for (field, text) in pairs {
            self.text(field, text);
        }
        self
    }

    /// The text of a member so far; empty when it has none.
    pub(super) fn word(&self, field: &str) -> String {
        self.0.get(field).and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Whether a flag is set so far.
    pub(super) fn is_set(&self, field: &str) -> bool {
        self.0.get(field) == Some(&Value::Bool(true))
    }

    /// Whether a set has a member that contains this.
    pub(super) fn has(&self, field: &str, part: &str) -> bool {
        let Some(Value::Array(items)) = self.0.get(field) else { return false };
        items.iter().filter_map(Value::as_str).any(|item| item.contains(part))
    }

    /// Writes one key of a map.
    pub(super) fn put_in(&mut self, field: &str, key: &str, text: &str) {
        if let Some(Value::Struct(members)) = self.0.get_mut(field) {
            members.insert(key.to_owned(), Value::string(text));
        }
    }

    pub(super) fn flag(&mut self, field: &str, flag: bool) -> &mut Self {
        self.put(field, Value::Bool(flag))
    }

    pub(super) fn set(&mut self, field: &str, items: &[String]) -> &mut Self {
        self.put(field, Value::Array(items.iter().map(Value::string).collect()))
    }
}

impl Pool {
    /// The rows of a new pool.
    pub(super) fn populate(&mut self, hosts: Vec<HostSpec>) {
        let mut sr = self.draft(Class::Sr);
        let size = SR_SIZE.to_string();
        sr.texts(&[("name_label", "Local storage"), ("type", "ext"), ("content_type", "user")]);
        sr.text("physical_size", &size);
        self.sr_ref = self.store(LONG_AGO, Class::Sr, sr);
        let mut network = self.draft(Class::Network);
        network.texts(&[
            ("name_label", "Pool-wide network associated with eth0"),
            ("bridge", "xenbr0"),
            ("MTU", "1500"),
        ]);
        self.network_ref = self.store(LONG_AGO, Class::Network, network);
        for spec in hosts {
            self.add_host(spec);
        }
        let mut pool = self.draft(Class::Pool);
        let (master, sr) = (self.host_ref(0), self.sr_ref.clone());
        pool.texts(&[("name_label", "simulated pool"), ("master", &master), ("default_SR", &sr)]);
        self.pool_ref = self.store(LONG_AGO, Class::Pool, pool);
        self.db.sync();
    }

    fn add_host(&mut self, spec: HostSpec) {
        let mut metrics = self.draft(Class::HostMetrics);
        metrics.flag("live", true).text("memory_total", &spec.memory.to_string());
        let metrics = self.store(LONG_AGO, Class::HostMetrics, metrics);
        let release = self.release;
        let (major, minor) = (release.api.0.to_string(), release.api.1.to_string());
        let mut host = self.draft(Class::Host);
        host.texts(&[
            ("hostname", &spec.name),
            ("name_label", &spec.name),
            ("metrics", &metrics),
            ("API_version_major", &major),
            ("API_version_minor", &minor),
            ("API_version_vendor", "XenSource"),
            ("sched_policy", "credit"),
            ("edition", "free"),
        ]);
        let software = [
            ("product_version", release.product_version),
            ("product_brand", release.brand),
            ("platform_version", release.product_version),
            ("xen", release.xen),
            ("xapi", &format!("{major}.{minor}")),
            ("hostname", "localhost"),
        ];
        host.put("software_version", pairs(&software));
        host.put(
            "cpu_info",
            pairs(&[("cpu_count", "32"), ("vendor", "GenuineIntel"), ("socket_count", "2")]),
        );
        host.set("supported_bootloaders", &["pygrub".to_owned(), "eliloader".to_owned()]);
        let reference = self.store(LONG_AGO, Class::Host, host);
        self.hosts.push(Host { reference: reference.clone(), spec });
        self.describe_host(LONG_AGO, self.hosts.len() - 1);
        self.add_control_domain(&reference);
    }

    /// The host's record follows its spec.
    pub(super) fn describe_host(&mut self, now: Timestamp, index: usize) {
        let Some(Host { reference, spec }) = self.hosts.get(index) else { return };
        let mut capabilities = vec!["xen-3.0-x86_64"];
        if spec.pv32 {
            capabilities.push("xen-3.0-x86_32p");
        }
        if spec.hvm {
            capabilities.extend(["hvm-3.0-x86_32", "hvm-3.0-x86_32p", "hvm-3.0-x86_64"]);
        }
        let capabilities = Value::Array(capabilities.into_iter().map(Value::string).collect());
        let metrics = self.db.text(Class::Host, reference, "metrics").to_owned();
        self.db.set_text(now, Class::Host, reference, "address", &spec.address);
        self.db.set(now, Class::Host, reference, "enabled", Value::Bool(spec.enabled));
        self.db.set(now, Class::Host, reference, "capabilities", capabilities);
        self.db.set_text(now, Class::HostMetrics, &metrics, "memory_total", &spec.memory.to_string());
    }

    fn add_control_domain(&mut self, host: &str) {
        let name = format!("Control domain on host: {}", self.db.text(Class::Host, host, "name_label"));
        let mut metrics = self.draft(Class::VmMetrics);
        metrics.text("start_time", RAN_BEFORE);
        let metrics = self.store(LONG_AGO, Class::VmMetrics, metrics);
        let mut vm = self.draft(Class::Vm);
        vm.texts(&[
            ("name_label", &name),
            ("power_state", "Running"),
            ("resident_on", host),
            ("metrics", &metrics),
        ]);
        vm.texts(&[("domid", "0"), ("domain_type", "pv"), ("guest_metrics", NULL)]);
        vm.flag("is_control_domain", true);
        let vm = self.store(LONG_AGO, Class::Vm, vm);
        self.db.set_text(LONG_AGO, Class::Host, host, "control_domain", &vm);
    }

    /// The rows of an added VM, and its domain when it runs.
    pub(super) fn build_vm(&mut self, spec: VmSpec) -> String {
        let mut metrics = self.draft(Class::VmMetrics);
        let ran = spec.ever_ran || spec.running;
        metrics
            .text("start_time", if ran { RAN_BEFORE } else { EPOCH })
            .text("current_domain_type", "unspecified");
        metrics.text("VCPUs_number", "1");
        let metrics = self.store(LONG_AGO, Class::VmMetrics, metrics);
        let mut draft = self.draft(Class::Vm);
        describe_vm(&mut draft, &spec, &metrics);
        let vm = self.store(LONG_AGO, Class::Vm, draft);
        let uuid = self.db.text(Class::Vm, &vm, "uuid").to_owned();
        for disk in &spec.disks {
            self.add_drive(&vm, disk);
        }
        for (device, mac) in spec.macs.iter().enumerate() {
            self.add_vif(LONG_AGO, &vm, device, *mac);
        }
        let blank = || Err("Unable to find partition containing kernel".to_owned());
        let found = spec.bootable.unwrap_or_else(|| if ran { Ok(()) } else { blank() });
        self.boot_disks.insert(uuid.clone(), found);
        if spec.deaf {
            self.deaf.insert(uuid.clone());
        }
        if spec.bits32 {
            self.bits32.insert(uuid.clone());
        }
        self.added.push(uuid.clone());
        self.note_overhead(LONG_AGO, &vm);
        if spec.running {
            self.run_from_before(&vm, None);
        }
        self.refresh_allowed(LONG_AGO, &vm);
        self.db.sync();
        uuid
    }

    pub(super) fn add_drive(&mut self, vm: &str, disk: &DiskSpec) {
        let empty = disk.kind == DiskKind::Cd && disk.size == 0;
        let sr = self.sr_ref.clone();
        let vdi = if empty {
            NULL.to_owned()
        } else {
            let mut vdi = self.draft(Class::Vdi);
            let size = disk.size.to_string();
            vdi.texts(&[
                ("name_label", "disk"),
                ("SR", &sr),
                ("virtual_size", &size),
                ("physical_utilisation", &size),
            ]);
            vdi.texts(&[("type", "user"), ("on_boot", "persist")])
                .flag("managed", true)
                .flag("read_only", disk.read_only);
            let vdi = self.store(LONG_AGO, Class::Vdi, vdi);
            self.link(LONG_AGO, (Class::Sr, &sr), "VDIs", &vdi);
            vdi
        };
        let mut vbd = self.draft(Class::Vbd);
        let kind = if disk.kind == DiskKind::Cd { "CD" } else { "Disk" };
        vbd.texts(&[("VM", vm), ("VDI", &vdi), ("userdevice", &disk.userdevice), ("type", kind)]);
        vbd.texts(&[
            ("device", &device_name(&disk.userdevice)),
            ("mode", if disk.read_only { "RO" } else { "RW" }),
        ]);
        vbd.flag("bootable", disk.bootable)
            .flag("empty", empty)
            .flag("unpluggable", disk.kind == DiskKind::Disk);
        let vbd = self.store(LONG_AGO, Class::Vbd, vbd);
        self.link(LONG_AGO, (Class::Vm, vm), "VBDs", &vbd);
        self.link(LONG_AGO, (Class::Vdi, &vdi), "VBDs", &vbd);
    }

    pub(super) fn add_vif(&mut self, now: Timestamp, vm: &str, device: usize, mac: MacAddr) {
        let mut vif = self.draft(Class::Vif);
        let network = self.network_ref.clone();
        vif.texts(&[
            ("VM", vm),
            ("network", &network),
            ("MAC", &mac.to_string()),
            ("device", &device.to_string()),
        ]);
        vif.texts(&[("MTU", "1500"), ("locking_mode", "network_default")]);
        let vif = self.store(now, Class::Vif, vif);
        self.link(now, (Class::Vm, vm), "VIFs", &vif);
        self.link(now, (Class::Network, &network), "VIFs", &vif);
    }

    /// The guest's agent talks: the guest metrics show its address.
    pub(super) fn show_agent(&mut self, now: Timestamp, vm: &str, ipv4: &str) {
        self.hide_agent(now, vm);
        let mut metrics = self.draft(Class::VmGuestMetrics);
        metrics.put("networks", pairs(&[("0/ip", ipv4), ("0/ipv4/0", ipv4)])).flag("live", true);
        metrics.text("last_updated", &super::calls::date(now)).flag("PV_drivers_detected", true);
        let metrics = self.store(now, Class::VmGuestMetrics, metrics);
        self.db.set_text(now, Class::Vm, vm, "guest_metrics", &metrics);
        self.refresh_allowed(now, vm);
    }

    /// The guest metrics go with the domain.
    pub(super) fn hide_agent(&mut self, now: Timestamp, vm: &str) {
        let metrics = self.db.text(Class::Vm, vm, "guest_metrics").to_owned();
        if metrics != NULL {
            self.db.remove(now, Class::VmGuestMetrics, &metrics);
            self.db.set_text(now, Class::Vm, vm, "guest_metrics", NULL);
        }
    }

    pub(super) fn draft(&mut self, class: Class) -> Draft {
        let mut draft = Draft(class.blank(self.release.api));
        let uuid = self.rng.uuid();
        draft.text("uuid", &uuid);
        draft
    }

    pub(super) fn store(&mut self, now: Timestamp, class: Class, draft: Draft) -> String {
        let reference = self.rng.reference();
        self.db.insert(now, class, reference.clone(), draft.0);
        reference
    }

    /// Adds a reference to a set of references.
    pub(super) fn link(
        &mut self,
        now: Timestamp,
        (class, owner): (Class, &str),
        field: &str,
        reference: &str,
    ) {
        let mut references = self.db.set_of(class, owner, field);
        references.push(reference.to_owned());
        let references = references.into_iter().map(Value::String).collect();
        self.db.set(now, class, owner, field, Value::Array(references));
    }
}

fn describe_vm(draft: &mut Draft, spec: &VmSpec, metrics: &str) {
    let memory = spec.memory.to_string();
    let [after_shutdown, after_reboot, after_crash] = &spec.actions_after;
    let by_policy = if spec.policy.is_empty() { "pv" } else { "hvm" };
    draft.texts(&[
        ("name_label", &spec.name),
        ("metrics", metrics),
        ("power_state", "Halted"),
        ("domid", "-1"),
        ("domain_type", spec.domain_type.as_deref().unwrap_or(by_policy)),
        ("HVM_boot_policy", &spec.policy),
        ("PV_bootloader", &spec.pv_bootloader),
        ("PV_args", &spec.pv_args),
        ("actions_after_shutdown", after_shutdown),
        ("actions_after_reboot", after_reboot),
        ("actions_after_crash", after_crash),
        ("actions_after_softreboot", "soft_reboot"),
        ("memory_static_max", &memory),
        ("memory_dynamic_max", &memory),
        ("memory_dynamic_min", &memory),
        ("memory_static_min", &memory),
        ("VCPUs_max", "1"),
        ("VCPUs_at_startup", "1"),
        ("user_version", "1"),
        ("ha_restart_priority", &spec.ha_restart_priority),
        ("generation_id", "0:0"),
    ]);
    draft.put("HVM_shadow_multiplier", Value::Double(1.0));
    draft.put("HVM_boot_params", Value::map(&spec.boot_params));
    draft.put("platform", Value::map(&spec.platform));
    draft.put("other_config", Value::map(&spec.other_config));
    draft.put("blocked_operations", Value::map(&spec.blocked_operations));
    draft.set("tags", &spec.tags);
    draft.flag("is_a_template", spec.template).flag("is_a_snapshot", spec.snapshot);
    let stock = spec.template && spec.other_config.contains_key("default_template");
    draft.flag("is_default_template", stock);
    draft.flag("is_control_domain", spec.control_domain);
    draft.flag("ha_always_run", spec.ha_restart_priority == "restart");
}

fn pairs(pairs: &[(&str, &str)]) -> Value {
    let map: BTreeMap<String, String> =
        pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
    Value::map(&map)
}

/// The name that a PV guest sees for a userdevice: `0` is `xvda`.
pub(super) fn device_name(userdevice: &str) -> String {
    let letter = userdevice.parse::<u8>().ok().and_then(|number| b'a'.checked_add(number)).map(char::from);
    letter.map_or_else(|| userdevice.to_owned(), |letter| format!("xvd{letter}"))
}

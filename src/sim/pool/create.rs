//! VMs that are made and unmade: `VM.clone`, `copy`, `provision`, `destroy`. Behaviour: xapi_vm_clone.ml,
//! xapi_templates.ml.

use super::{
    Pool,
    calls::{date, text_param},
    db::is_null,
    devices::mac_of_seed,
    populate::Draft,
    schema::{Class, NULL},
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// The other_config key from which MACs are derived; every clone gets a new value.
pub(super) const MAC_SEED: &str = "mac_seed";
/// The other_config keys that provisioning uses up.
const DISKS: &str = "disks";
const POST_INSTALL: &str = "postinstall";

/// One `<disk/>` of a template's plan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct PlannedDisk {
    pub(super) device: String,
    pub(super) size: String,
    pub(super) sr: String,
    pub(super) bootable: bool,
    pub(super) kind: String,
}

/// Reads `<provision><disk device="0" size="…" sr="…" bootable="true" type="system"/></provision>`.
pub(super) fn read_plan(text: &str) -> Option<Vec<PlannedDisk>> {
    let inside = text.trim().strip_prefix("<provision")?.split_once('>')?;
    if inside.0.ends_with('/') {
        return Some(Vec::new());
    }
    let inside = inside.1.trim_end().strip_suffix("</provision>")?;
    inside.split("<disk").skip(1).map(|disk| read_disk(disk.split_once('>')?.0)).collect()
}

fn read_disk(attributes: &str) -> Option<PlannedDisk> {
    let mut disk = PlannedDisk::default();
    let mut rest = attributes.trim().trim_end_matches('/').trim();
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (value, later) = after.get(1..)?.split_once(quote)?;
        match name.trim() {
            "device" => value.clone_into(&mut disk.device),
            "size" => value.clone_into(&mut disk.size),
            "sr" => value.clone_into(&mut disk.sr),
            "type" => value.clone_into(&mut disk.kind),
            "bootable" => disk.bootable = value == "true",
            _ => {}
        }
        rest = later.trim_start();
    }
    (!disk.device.is_empty() && disk.size.parse::<u64>().is_ok()).then_some(disk)
}

impl Pool {
    /// `VM.clone` (no SR) and `VM.copy`: everything but what names and places a VM. other_config and the start time
    /// are copied too; the MAC seed is new, and the MACs with it.
    pub(super) fn clone_vm(
        &mut self,
        now: Timestamp,
        vm: &str,
        name: &str,
        sr: Option<&str>,
    ) -> Result<String, Failure> {
        self.check_halted(vm)?;
        if let Some(sr) = sr.filter(|sr| !is_null(sr))
            && self.db.row(Class::Sr, sr).is_none()
        {
            return Err(Failure::new("HANDLE_INVALID", &["SR", sr]));
        }
        let metrics = self.db.text(Class::Vm, vm, "metrics").to_owned();
        let metrics = self.copy_row(now, Class::VmMetrics, &metrics, |_| {});
        let mut config = self.db.map_of(Class::Vm, vm, "other_config");
        config.insert(MAC_SEED.to_owned(), self.rng.uuid());
        config.remove("default_template");
        let none = Value::Struct(Default::default());
        let copy = self.copy_row(now, Class::Vm, vm, |draft| {
            draft.texts(&[("name_label", name), ("metrics", &metrics), ("guest_metrics", NULL)]);
            draft.set("VBDs", &[]).set("VIFs", &[]).flag("is_default_template", false);
            draft.put("other_config", Value::map(&config)).put("current_operations", none);
        });
        for vbd in self.db.set_of(Class::Vm, vm, "VBDs") {
            self.copy_drive(now, &copy, &vbd, sr.filter(|sr| !is_null(sr)));
        }
        for vif in self.db.set_of(Class::Vm, vm, "VIFs") {
            self.copy_vif(now, &copy, &vif);
        }
        let (from, to) = (self.uuid_of(vm), self.uuid_of(&copy));
        if let Some(found) = self.boot_disks.get(&from).cloned() {
            self.boot_disks.insert(to.clone(), found);
        }
        for marks in [&mut self.deaf, &mut self.bits32] {
            if marks.contains(&from) {
                marks.insert(to.clone());
            }
        }
        self.added.push(to);
        self.refresh_allowed(now, &copy);
        Ok(copy)
    }

    fn copy_drive(&mut self, now: Timestamp, copy: &str, vbd: &str, sr: Option<&str>) {
        let vdi = self.db.text(Class::Vbd, vbd, "VDI").to_owned();
        let is_cd = self.db.text(Class::Vbd, vbd, "type") == "CD";
        // A CD's image is shared, not copied.
        let vdi = if is_cd || is_null(&vdi) {
            vdi
        } else {
            let from_sr = self.db.text(Class::Vdi, &vdi, "SR").to_owned();
            let sr = sr.unwrap_or(&from_sr).to_owned();
            let made = self.copy_row(now, Class::Vdi, &vdi, |draft| {
                draft.set("VBDs", &[]).text("SR", &sr);
            });
            self.link(now, (Class::Sr, &sr), "VDIs", &made);
            made
        };
        let vbd = self.copy_row(now, Class::Vbd, vbd, |draft| {
            draft.texts(&[("VM", copy), ("VDI", &vdi)]).flag("currently_attached", false);
        });
        self.link(now, (Class::Vm, copy), "VBDs", &vbd);
        self.link(now, (Class::Vdi, &vdi), "VBDs", &vbd);
    }

    fn copy_vif(&mut self, now: Timestamp, copy: &str, vif: &str) {
        let seed = self.db.map_of(Class::Vm, copy, "other_config").remove(MAC_SEED).unwrap_or_default();
        let mac = mac_of_seed(&seed, self.db.text(Class::Vif, vif, "device"));
        let network = self.db.text(Class::Vif, vif, "network").to_owned();
        let vif = self.copy_row(now, Class::Vif, vif, |draft| {
            draft.texts(&[("VM", copy), ("MAC", &mac.to_string())]);
            draft.flag("MAC_autogenerated", true).flag("currently_attached", false);
        });
        self.link(now, (Class::Vm, copy), "VIFs", &vif);
        self.link(now, (Class::Network, &network), "VIFs", &vif);
    }

    /// `VM.provision`: a template becomes a VM with the disks that its plan asks for. A disk that cannot be made
    /// leaves those before it behind, and the template a template.
    pub(super) fn provision_vm(&mut self, now: Timestamp, vm: &str) -> Result<(), Failure> {
        if !self.db.flag(Class::Vm, vm, "is_a_template") {
            return Err(Failure::new("PROVISION_ONLY_ALLOWED_ON_TEMPLATE", &[]));
        }
        self.check_halted(vm)?;
        let mut config = self.db.map_of(Class::Vm, vm, "other_config");
        if let Some(plan) = config.get(DISKS) {
            let bad = || Failure::new("INTERNAL_ERROR", &["Xml.Error: the disk plan of the template"]);
            for disk in read_plan(plan).ok_or_else(bad)? {
                self.make_planned(now, vm, &disk)?;
            }
        }
        config.remove(DISKS);
        config.remove(POST_INSTALL);
        self.db.set(now, Class::Vm, vm, "other_config", Value::map(&config));
        self.db.set(now, Class::Vm, vm, "is_a_template", Value::Bool(false));
        let metrics = self.db.text(Class::Vm, vm, "metrics").to_owned();
        self.db.set(now, Class::VmMetrics, &metrics, "install_time", Value::DateTime(date(now)));
        self.refresh_allowed(now, vm);
        Ok(())
    }

    fn make_planned(&mut self, now: Timestamp, vm: &str, disk: &PlannedDisk) -> Result<(), Failure> {
        let sr = self.db.by_uuid(Class::Sr, &disk.sr).map(str::to_owned);
        let sr = sr.ok_or_else(|| Failure::new("UUID_INVALID", &["sr", &disk.sr]))?;
        let name = self.db.text(Class::Vm, vm, "name_label").to_owned();
        let mut vdi = self.draft(Class::Vdi);
        let label = format!("{name} {}", disk.device);
        vdi.texts(&[
            ("name_label", &label),
            ("SR", &sr),
            ("virtual_size", &disk.size),
            ("type", &disk.kind),
            ("on_boot", "persist"),
        ]);
        let vdi = self.store_vdi(now, vdi)?;
        let mut vbd = self.draft(Class::Vbd);
        vbd.texts(&[("VM", vm), ("VDI", &vdi), ("userdevice", &disk.device), ("mode", "RW")]);
        vbd.text("type", "Disk").flag("bootable", disk.bootable).flag("unpluggable", true);
        vbd.put("other_config", Value::map(&[("owner".to_owned(), String::new())].into()));
        self.store_vbd(now, vbd).map(drop)
    }

    /// `VM.destroy`: the VM, its drives and its NICs; the disks stay.
    pub(super) fn destroy_vm(&mut self, now: Timestamp, vm: &str) -> Result<(), Failure> {
        self.check_halted(vm)?;
        if !self.is_idle(vm) {
            return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", &["VM", vm]));
        }
        let config = self.db.map_of(Class::Vm, vm, "other_config");
        if self.db.flag(Class::Vm, vm, "is_a_template") && config.contains_key("default_template") {
            return Err(Failure::new("VM_CANNOT_DELETE_DEFAULT_TEMPLATE", &[vm]));
        }
        for (field, class) in [("VBDs", Class::Vbd), ("VIFs", Class::Vif)] {
            for device in self.db.set_of(Class::Vm, vm, field) {
                self.remove_device(now, class, &device);
            }
        }
        let metrics = self.db.text(Class::Vm, vm, "metrics").to_owned();
        self.db.remove(now, Class::VmMetrics, &metrics);
        self.db.remove(now, Class::Vm, vm);
        Ok(())
    }

    pub(super) fn check_halted(&self, vm: &str) -> Result<(), Failure> {
        match self.db.text(Class::Vm, vm, "power_state") {
            "Halted" => Ok(()),
            state => Err(Failure::new("VM_BAD_POWER_STATE", &[vm, "halted", &state.to_lowercase()])),
        }
    }

    pub(super) fn uuid_of(&self, vm: &str) -> String {
        self.db.text(Class::Vm, vm, "uuid").to_owned()
    }

    fn copy_row(
        &mut self,
        now: Timestamp,
        class: Class,
        of: &str,
        change: impl FnOnce(&mut Draft),
    ) -> String {
        let Some(row) = self.db.row(class, of) else { return NULL.to_owned() };
        let mut draft = Draft(row.fields.clone());
        draft.text("uuid", &self.rng.uuid());
        change(&mut draft);
        self.store(now, class, draft)
    }

    /// The messages of this file; `None`: it is none of them.
    pub(super) fn creation_message(
        &mut self,
        now: Timestamp,
        vm: &str,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        let made = |made: Result<String, Failure>| made.map(Value::String);
        let done = |done: Result<(), Failure>| done.map(|()| Value::void());
        Some(match message {
            "clone" => made(text_param(params, 1).and_then(|name| self.clone_vm(now, vm, name, None))),
            "copy" => made(text_param(params, 1).and_then(|name| {
                let sr = text_param(params, 2)?;
                self.clone_vm(now, vm, name, Some(sr))
            })),
            "provision" => done(self.provision_vm(now, vm)),
            "destroy" => done(self.destroy_vm(now, vm)),
            _ => return None,
        })
    }
}

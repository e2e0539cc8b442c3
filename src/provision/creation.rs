//! VMs from templates: what is asked for (`fleet`), what a pool makes of it (`plan`), the mark that a VM of ours
//! carries, and the next call that brings a VM nearer to what was planned. Pure.
//!
//! Invariants: a VM that is being made has a label of its own ([`making_label`]) from its first moment on, and gets
//! its name last, so that half-made ones are known without a database; it stays a template until its disks are
//! made, so that nobody starts it; and nothing is called that the record shows as done.

pub mod fleet;
pub mod plan;

use serde::{Deserialize, Serialize};

use self::plan::Planned;
use super::claim::{CLAIM_KEY, INSTALLED_KEY};
use crate::{
    clock::Timestamp,
    xen::records::{PowerState, VbdRecord, VifRecord, VmMetrics, VmRecord},
};

/// The key of our mark in `other_config`.
pub const CREATED_KEY: &str = "bootflip:created";

/// The key of the plan of disks in a template's `other_config`.
pub const DISKS_KEY: &str = "disks";

/// What a copy must not take over from its template: others' claims and installations, what `VM.destroy` refuses,
/// and what `eliloader` would boot from instead of the network.
const NOT_INHERITED: [&str; 4] = [CLAIM_KEY, INSTALLED_KEY, "default_template", "install-repository"];

/// What a VM says of how it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Version of this form: 1.
    pub v: u32,
    /// `server.name` of who made it.
    pub owner: String,
    /// The VM; another uuid means that a copy carries it along.
    pub vm_uuid: String,
    /// 128 random bits in hex: which making this was.
    pub nonce: String,
    /// When.
    pub since: Timestamp,
    /// VM_metrics.start_time as it was copied from the template: while it is this, the VM has never been started.
    pub start_time: String,
    /// [`Planned::digest`]: what was asked for.
    pub wish: String,
}

impl Mark {
    /// Its text in `other_config`.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("a mark is plain data with string keys")
    }

    /// The mark that was made for this VM; a copy's is none.
    pub fn of(vm: &VmRecord) -> Option<Self> {
        let mark: Self = serde_json::from_str(vm.other_config.get(CREATED_KEY)?).ok()?;
        (mark.v == 1 && mark.vm_uuid == vm.uuid).then_some(mark)
    }
}

/// Whether this is a VM that we made and nobody ever started. A copy has its origin's start_time, so that alone does
/// not tell.
pub fn made_and_never_started(vm: &VmRecord, metrics: &VmMetrics) -> bool {
    Mark::of(vm).is_some_and(|mark| mark.start_time == metrics.start_time)
        && !vm.other_config.contains_key(INSTALLED_KEY)
        && vm.power_state == PowerState::Halted
}

/// The label of a VM while it is made.
pub fn making_label(name: &str, owner: &str, nonce: &str) -> String {
    format!("{name}{MAKING}{owner} {nonce})")
}

const MAKING: &str = " (being made by bootflip ";
const NONCE_LENGTH: usize = 32;

/// The name and nonce in a label of [`making_label`] by this owner.
pub fn read_making_label<'l>(label: &'l str, owner: &str) -> Option<(&'l str, &'l str)> {
    let (name, rest) = label.rsplit_once(MAKING)?;
    let nonce = rest.strip_suffix(')')?.strip_prefix(owner)?.strip_prefix(' ')?;
    let is_nonce = nonce.len() == NONCE_LENGTH && nonce.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_nonce.then_some((name, nonce))
}

/// Whether this is the half-made VM of that making, which may be destroyed: it has its label or its mark, and was
/// never started. Without the mark it must be a template still, as a copy begins.
pub fn is_half_made(vm: &VmRecord, metrics: &VmMetrics, owner: &str, nonce: &str) -> bool {
    let labelled = read_making_label(&vm.name_label, owner).is_some_and(|(_, found)| found == nonce);
    let halted = vm.power_state == PowerState::Halted && !vm.is_a_snapshot && !vm.is_control_domain;
    halted
        && match Mark::of(vm) {
            Some(mark) => mark.owner == owner && mark.nonce == nonce && made_and_never_started(vm, metrics),
            None => labelled && vm.is_a_template,
        }
}

/// A making: whose it is and when it began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Making {
    /// `server.name`.
    pub owner: String,
    /// 128 random bits in hex.
    pub nonce: String,
    /// When.
    pub since: Timestamp,
}

/// A VM in the making, as the pool has it now.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The VM.
    pub vm: VmRecord,
    /// Its metrics.
    pub metrics: VmMetrics,
    /// Its drives.
    pub drives: Vec<VbdRecord>,
    /// Its NICs.
    pub vifs: Vec<VifRecord>,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `VM.add_to_other_config`.
    AddKey {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// `VM.remove_from_other_config`.
    RemoveKey(&'static str),
    /// `VM.set_PV_bootloader` to pygrub.
    Bootloader,
    /// `VM.set_memory_limits`.
    Memory {
        /// Bytes, as the VM has it.
        static_min: u64,
        /// Bytes.
        memory: u64,
    },
    /// `VM.set_VCPUs_max`.
    VcpusMax(u32),
    /// `VM.set_VCPUs_at_startup`.
    VcpusAtStartup(u32),
    /// `VM.add_tags`.
    Tag,
    /// `VM.provision`.
    Provision,
    /// `VIF.destroy` of this reference.
    RemoveVif(String),
    /// `VIF.create`.
    AddVif,
    /// `VBD.set_bootable` of this reference.
    Bootable(String, bool),
    /// `VM.set_name_label`: it is made.
    Name,
}

/// The next call for a VM that was cloned or copied for this plan; `None`: it is made.
///
/// # Errors
/// It cannot become what was planned, in words.
pub fn next(planned: &Planned, making: &Making, seen: &Seen) -> Result<Option<Step>, String> {
    if let Some(step) = mark(planned, making, seen).or_else(|| settings(planned, &seen.vm)) {
        return Ok(Some(step));
    }
    if seen.vm.is_a_template {
        return Ok(Some(Step::Provision));
    }
    if let Some(step) = nic(planned, &seen.vifs) {
        return Ok(Some(step));
    }
    if let Some(step) = boot_disk(&seen.drives)? {
        return Ok(Some(step));
    }
    Ok((seen.vm.name_label != planned.name).then_some(Step::Name))
}

fn mark(planned: &Planned, making: &Making, seen: &Seen) -> Option<Step> {
    if Mark::of(&seen.vm).is_some_and(|mark| mark.nonce == making.nonce) {
        return None;
    }
    if seen.vm.other_config.contains_key(CREATED_KEY) {
        return Some(Step::RemoveKey(CREATED_KEY));
    }
    let mark = Mark {
        v: 1,
        owner: making.owner.clone(),
        vm_uuid: seen.vm.uuid.clone(),
        nonce: making.nonce.clone(),
        since: making.since,
        start_time: seen.metrics.start_time.clone(),
        wish: planned.digest.clone(),
    };
    Some(Step::AddKey { key: CREATED_KEY, value: mark.text() })
}

fn settings(planned: &Planned, vm: &VmRecord) -> Option<Step> {
    if let Some(key) = NOT_INHERITED.into_iter().find(|key| vm.other_config.contains_key(*key)) {
        return Some(Step::RemoveKey(key));
    }
    let disks = vm.other_config.get(DISKS_KEY);
    // Provisioning uses the key up.
    if vm.is_a_template && disks != planned.disks.as_ref() {
        return Some(match (disks, &planned.disks) {
            (None, Some(value)) => Step::AddKey { key: DISKS_KEY, value: value.clone() },
            (Some(_), _) | (None, None) => Step::RemoveKey(DISKS_KEY),
        });
    }
    if vm.pv_bootloader != PYGRUB {
        return Some(Step::Bootloader);
    }
    if let Some(memory) = planned.memory
        && [vm.memory_dynamic_min, vm.memory_dynamic_max, vm.memory_static_max] != [memory; 3]
    {
        return Some(Step::Memory { static_min: vm.memory_static_min, memory });
    }
    if let Some(step) = planned.vcpus.and_then(|count| vcpus(count, vm)) {
        return Some(step);
    }
    (!vm.tags.contains(&planned.tag)).then_some(Step::Tag)
}

/// VCPUs_at_startup is never above VCPUs_max.
fn vcpus(count: u32, vm: &VmRecord) -> Option<Step> {
    let wanted = u64::from(count);
    if vm.vcpus_max < wanted {
        return Some(Step::VcpusMax(count));
    }
    if vm.vcpus_at_startup != wanted {
        return Some(Step::VcpusAtStartup(count));
    }
    (vm.vcpus_max != wanted).then_some(Step::VcpusMax(count))
}

/// One NIC, on the planned network, with the planned address: those of the template go.
fn nic(planned: &Planned, vifs: &[VifRecord]) -> Option<Step> {
    let fits = |vif: &&VifRecord| {
        vif.device == "0" && vif.network == planned.network.0 && vif.mac.parse() == Ok(planned.mac)
    };
    match vifs.iter().find(|vif| !fits(vif)) {
        Some(other) => Some(Step::RemoveVif(other.reference.clone())),
        None => vifs.is_empty().then_some(Step::AddVif),
    }
}

/// pygrub reads the first bootable device: that is the first writable disk, and no other is bootable.
fn boot_disk(drives: &[VbdRecord]) -> Result<Option<Step>, String> {
    let place = |vbd: &VbdRecord| vbd.userdevice.parse::<u32>().unwrap_or(u32::MAX);
    let disks = drives.iter().filter(|vbd| vbd.kind == "Disk" && vbd.mode == "RW" && !vbd.empty);
    let bootable = disks.clone().filter(|vbd| vbd.bootable).min_by_key(|vbd| place(vbd));
    let chosen = bootable
        .or_else(|| disks.min_by_key(|vbd| place(vbd)))
        .ok_or("the pool made no writable disk for it")?;
    let wrong = drives.iter().find(|vbd| vbd.bootable != (vbd.reference == chosen.reference));
    Ok(wrong.map(|vbd| Step::Bootable(vbd.reference.clone(), !vbd.bootable)))
}

/// What boots a PV guest from its own disk.
const PYGRUB: &str = "pygrub";

#[cfg(test)]
mod tests;

//! Where domains fit: which host takes a VM, what memory a domain needs beyond its own, and migration.

use super::{Host, Pool, calls::text_param, db::is_null, schema::Class};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

const MIB: u64 = 1 << 20;
/// What every domain needs, and what an HVM domain's screen and emulator need beside it (xapi memory.ml), bytes.
const PV_OVERHEAD: u64 = 2 * MIB;
const VIDEO: u64 = 4 * MIB;
const EMULATOR: u64 = MIB;
/// Pages of the shadow for each VCPU and for each MiB of the domain, and bytes of a page.
const SHADOW_PER_VCPU: u64 = 128;
const SHADOW_PER_MIB: u64 = 2;
const PAGE: u64 = 4096;

/// Whether a BIOS is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BootKind {
    Hvm,
    Pv,
}

impl Pool {
    /// The host that takes the VM; this one where the caller names one.
    pub(super) fn choose_host(&self, vm: &str, wanted: Option<&str>) -> Result<String, Failure> {
        let kind = self.planned_kind(vm);
        if kind != "pv" && !self.hosts.iter().any(|host| host.spec.hvm) {
            return Err(Failure::new("VM_HVM_REQUIRED", &[vm]));
        }
        if let Some(host) = wanted {
            self.assert_fits(vm, host, &kind)?;
            return Ok(host.to_owned());
        }
        let roomiest = self.fitting_hosts(vm, &kind).max_by_key(|host| self.free_on(host));
        roomiest.map(|host| host.reference.clone()).ok_or_else(|| Failure::new("NO_HOSTS_AVAILABLE", &[]))
    }

    /// Hosts that could start the VM now, in the mode that its record has.
    pub(super) fn possible_hosts(&self, vm: &str) -> Vec<String> {
        let kind = self.planned_kind(vm);
        self.fitting_hosts(vm, &kind).map(|host| host.reference.clone()).collect()
    }

    /// `VM.assert_can_boot_here`: why not, in xapi's order.
    pub(super) fn assert_can_boot_here(&self, vm: &str, params: &[Value]) -> Result<(), Failure> {
        self.assert_fits(vm, text_param(params, 1)?, &self.planned_kind(vm))
    }

    fn assert_fits(&self, vm: &str, reference: &str, kind: &str) -> Result<(), Failure> {
        let found = self.hosts.iter().find(|host| host.reference == reference);
        let host = found.ok_or_else(|| Failure::new("HANDLE_INVALID", &["host", reference]))?;
        if !host.spec.enabled {
            return Err(Failure::new("HOST_DISABLED", &[reference]));
        }
        if !takes_kind(host, kind) {
            return Err(Failure::new("VM_HVM_REQUIRED", &[vm]));
        }
        let (needed, free) = (self.memory_of(vm) + self.overhead_of(vm, kind), self.free_on(host));
        if free < needed {
            let words = [needed.to_string(), free.to_string()];
            return Err(Failure::new("HOST_NOT_ENOUGH_FREE_MEMORY", &[&words[0], &words[1]]));
        }
        Ok(())
    }

    /// Hosts that are enabled, with memory, and with VT where the kind of domain needs it.
    fn fitting_hosts<'a>(&'a self, vm: &str, kind: &'a str) -> impl Iterator<Item = &'a Host> {
        let needed = self.memory_of(vm) + self.overhead_of(vm, kind);
        let able = move |host: &&Host| host.spec.enabled && takes_kind(host, kind);
        self.hosts.iter().filter(able).filter(move |host| self.free_on(host) >= needed)
    }

    fn free_on(&self, host: &Host) -> u64 {
        host.spec.memory.saturating_sub(self.used_on(&host.reference))
    }

    /// `host.compute_free_memory`, bytes.
    pub(super) fn free_memory(&self, reference: &str) -> u64 {
        self.hosts.iter().find(|host| host.reference == reference).map_or(0, |host| self.free_on(host))
    }

    fn used_on(&self, host: &str) -> u64 {
        self.domains.values().filter(|domain| domain.host == host).map(|domain| domain.memory).sum()
    }

    pub(super) fn memory_of(&self, vm: &str) -> u64 {
        self.number(vm, "memory_static_max")
    }

    /// A number of the VM's record; 0 when it is none.
    pub(super) fn number(&self, vm: &str, field: &str) -> u64 {
        self.db.text(Class::Vm, vm, field).parse().unwrap_or_default()
    }

    /// What a domain of this kind needs beyond its own memory, bytes.
    pub(super) fn overhead_of(&self, vm: &str, kind: &str) -> u64 {
        if kind == "pv" {
            return PV_OVERHEAD;
        }
        let pages = SHADOW_PER_VCPU * self.number(vm, "VCPUs_max").max(1)
            + SHADOW_PER_MIB * (self.memory_of(vm) / MIB);
        PV_OVERHEAD + VIDEO + EMULATOR + (pages * PAGE).next_multiple_of(MIB)
    }

    /// The record's `memory_overhead` follows the kind of domain and its size.
    pub(super) fn note_overhead(&mut self, now: Timestamp, vm: &str) {
        let overhead = self.overhead_of(vm, &self.planned_kind(vm)).to_string();
        self.db.set_text(now, Class::Vm, vm, "memory_overhead", &overhead);
    }

    /// Moves a domain to this host, or for the null reference to any other: a new domid, the same start time.
    pub(super) fn migrate(&mut self, now: Timestamp, vm: &str, wanted: &str) -> Result<(), Failure> {
        let next_domid = self.next_domid;
        let Some(domain) = self.domains.get_mut(vm) else {
            return Err(Failure::new("VM_BAD_POWER_STATE", &[vm, "running", "halted"]));
        };
        let fits = |host: &&Host| {
            host.spec.enabled
                && host.reference != domain.host
                && (is_null(wanted) || host.reference == wanted)
        };
        let elsewhere = self.hosts.iter().find(fits);
        let Some(host) = elsewhere else { return Err(Failure::new("NO_HOSTS_AVAILABLE", &[])) };
        domain.host.clone_from(&host.reference);
        domain.domid = next_domid;
        self.next_domid += 1;
        self.follow_domain(now, vm);
        Ok(())
    }
}

/// The host's processor can run such domains: all but plain PV need VT.
fn takes_kind(host: &Host, kind: &str) -> bool {
    host.spec.hvm || kind == "pv"
}

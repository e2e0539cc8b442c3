//! How a domain is built from the VM's record: its mode, what stands against it, and what a start writes into the
//! record. Behaviour: xapi_xenops, xenopsd's domain.ml.

use super::{
    Pool,
    hosts::BootKind,
    power::{BIOS_ORDER, Domain},
    schema::Class,
    spec::BootMode,
    tasks::Due,
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// How a domain is to be built.
#[derive(Debug, Default)]
pub(super) struct Birth {
    pub(super) host: String,
    pub(super) paused: bool,
    /// By `VM.start`, not by a reboot.
    pub(super) by_start: bool,
    /// What xapi thought of the domain before a reboot.
    pub(super) believed_hvm: bool,
    pub(super) diskless: bool,
    /// The body that runs domains outside built it already.
    pub(super) born: Option<Born>,
}

/// A domain that runs outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Born {
    pub(super) domid: u32,
    pub(super) mode: BootMode,
    /// The value for `current_domain_type`.
    pub(super) kind: String,
}

impl Pool {
    pub(super) fn new_domain(
        &mut self,
        vm: &str,
        (mode, kind): (BootMode, String),
        host: String,
        started: Timestamp,
    ) -> Domain {
        let domid = self.next_domid;
        self.next_domid += 1;
        let memory = self.memory_of(vm) + self.overhead_of(vm, &kind);
        Domain {
            domid,
            born_as: domid,
            believed_hvm: mode != BootMode::Pv,
            mode,
            kind,
            host,
            memory,
            started,
            paused: false,
            told: false,
            exiting: false,
            agent: false,
            lacks: Vec::new(),
            diskless: false,
        }
    }

    /// How the VM would be built now; what stands against it.
    pub(super) fn planned_boot(&self, vm: &str, diskless: bool) -> Result<(BootMode, String), Failure> {
        let (boot, kind) = self.planned_mode(vm);
        let mode = match boot {
            BootKind::Pv => {
                self.check_xen_takes_pv(vm, &kind)?;
                if diskless {
                    return Err(Failure::new("INTERNAL_ERROR", &["there is no bootable device"]));
                }
                self.run_bootloader(vm)?;
                BootMode::Pv
            }
            BootKind::Hvm => {
                self.check_policy(vm)?;
                let order =
                    self.db.map_of(Class::Vm, vm, "HVM_boot_params").remove("order").unwrap_or_default();
                BootMode::Hvm { order: if order.is_empty() { "cd".to_owned() } else { order } }
            }
        };
        Ok((mode, kind))
    }

    pub(super) fn build(&mut self, now: Timestamp, vm: &str, birth: Birth) -> Result<(), Failure> {
        let (mode, kind) = match birth.born {
            Some(born) => {
                self.next_domid = born.domid;
                (born.mode, born.kind)
            }
            None => self.planned_boot(vm, birth.diskless)?,
        };
        let boot = if mode == BootMode::Pv { BootKind::Pv } else { BootKind::Hvm };
        let uuid = self.db.text(Class::Vm, vm, "uuid").to_owned();
        let built = self.built.entry(uuid).or_default();
        match boot {
            BootKind::Hvm => built.0 += 1,
            BootKind::Pv => built.1 += 1,
        }
        let lacks = if boot == BootKind::Hvm { self.flags_off(vm) } else { Vec::new() };
        let keeps_note = !birth.by_start && self.release.notes_mode_at_start_only();
        let domain = self.new_domain(vm, (mode, kind), birth.host, now);
        let believed_hvm = if keeps_note { birth.believed_hvm } else { domain.believed_hvm };
        let domain = Domain { paused: birth.paused, diskless: birth.diskless, believed_hvm, lacks, ..domain };
        self.domains.insert(vm.to_owned(), domain);
        self.write_boot_side_effects(now, vm, boot);
        self.follow_domain(now, vm);
        let at = now + self.rng.between(self.timing.start_time_lag);
        self.schedule(at, Due::StartTime { vm: vm.to_owned(), started: now });
        if !birth.paused {
            self.tell_start(vm, false);
        }
        Ok(())
    }

    /// To 6.0 only the exact text boots HVM (XA56 vmops.ml).
    fn check_policy(&self, vm: &str) -> Result<(), Failure> {
        let policy = self.db.text(Class::Vm, vm, "HVM_boot_policy");
        if self.release.runs_domains_itself() && policy != BIOS_ORDER {
            let words = format!("Failure(\"unsupported HVM_boot_policy: {policy}\")");
            return Err(Failure::new("INTERNAL_ERROR", &[&words]));
        }
        Ok(())
    }

    /// Xen without PV cannot make the domain; Xen without 32-bit PV finds out when it loads the kernel.
    fn check_xen_takes_pv(&self, vm: &str, kind: &str) -> Result<(), Failure> {
        if !self.release.runs_pv() && kind != "pvh" {
            let words = "xenopsd internal error: Xenctrl.Error(\"22: Invalid argument\")";
            return Err(Failure::new("INTERNAL_ERROR", &[words]));
        }
        let is_32 = self.bits32.contains(self.db.text(Class::Vm, vm, "uuid"));
        if kind == "pv" && is_32 && !self.hosts.iter().any(|host| host.spec.pv32) {
            let words = "guest type xen-3.0-x86_32p not supported by xen kernel, sorry";
            return Err(Failure::new("DOMAIN_BUILDER_ERROR", &["xc_dom_compat_check", "22", words]));
        }
        Ok(())
    }

    /// To 6.0 the emulator has just the flags that are written; later they default to on.
    fn flags_off(&self, vm: &str) -> Vec<&'static str> {
        if !self.release.runs_domains_itself() {
            return Vec::new();
        }
        let platform = self.db.map_of(Class::Vm, vm, "platform");
        let is_on = |flag: &&str| platform.get(*flag).is_some_and(|value| value == "true" || value == "1");
        ["acpi", "apic", "pae"].into_iter().filter(|flag| !is_on(flag)).collect()
    }

    /// What xapi itself writes into the record at a start.
    fn write_boot_side_effects(&mut self, now: Timestamp, vm: &str, boot: BootKind) {
        self.note_overhead(now, vm);
        if self.release.runs_domains_itself() {
            let is_32 = self.bits32.contains(self.db.text(Class::Vm, vm, "uuid"));
            let arch = match boot {
                BootKind::Hvm => "hvm",
                BootKind::Pv if is_32 => "x32",
                BootKind::Pv => "x64",
            };
            self.db.set_text(now, Class::Vm, vm, "domarch", arch);
        }
        if self.db.text(Class::Vm, vm, "domain_type") == "unspecified" {
            let (_, kind) = self.planned_mode(vm);
            self.db.set_text(now, Class::Vm, vm, "domain_type", &kind);
        }
        if boot == BootKind::Hvm {
            let mut platform = self.db.map_of(Class::Vm, vm, "platform");
            if self.release.writes_device_model {
                platform
                    .entry("device-model".to_owned())
                    .or_insert_with(|| "qemu-upstream-compat".to_owned());
            }
            platform.entry("timeoffset".to_owned()).or_insert_with(|| "0".to_owned());
            self.db.set(now, Class::Vm, vm, "platform", Value::map(&platform));
        }
    }
}

//! Starts, stops and reboots of domains: what `VM.start` and its like check and do, and what guests do to
//! themselves. Behaviour: xapi_vm_lifecycle (order of the checks), xapi_xenops (on_action_behaviour), bootloader.

use std::time::Duration;

use super::{
    Pool,
    calls::{flag_param, text_param},
    db::is_null,
    schema::Class,
    spec::{BootMode, DiskKind, DomainTruth, GuestAct},
    tasks::{Due, TaskEntry},
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// A living domain.
#[derive(Debug, Clone)]
pub(super) struct Domain {
    /// As the VM record has it; a migration changes it.
    pub(super) domid: u32,
    /// As the body that plays the guest knows it.
    pub(super) born_as: u32,
    pub(super) mode: BootMode,
    /// The value for `current_domain_type`.
    pub(super) kind: String,
    pub(super) host: String,
    pub(super) memory: u64,
    pub(super) started: Timestamp,
    pub(super) paused: bool,
    /// It was handed to the body that plays guests.
    pub(super) told: bool,
    /// The guest ended by itself; the toolstack has not noticed yet, or builds it again.
    exiting: bool,
    /// A guest agent runs: clean shutdown works.
    pub(super) agent: bool,
}

impl Domain {
    pub(super) fn truth(&self) -> DomainTruth {
        DomainTruth {
            domid: self.born_as,
            mode: self.mode.clone(),
            started: self.started,
            paused: self.paused,
        }
    }

    pub(super) fn listens(&self) -> bool {
        self.mode == BootMode::Pv || self.agent
    }
}

/// A power operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Start,
    CleanShutdown,
    HardShutdown,
    CleanReboot,
    HardReboot,
    Pause,
    Unpause,
}

impl Op {
    pub(super) const ALL: [Self; 7] = [
        Self::Start,
        Self::CleanShutdown,
        Self::HardShutdown,
        Self::CleanReboot,
        Self::HardReboot,
        Self::Pause,
        Self::Unpause,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::CleanShutdown => "clean_shutdown",
            Self::HardShutdown => "hard_shutdown",
            Self::CleanReboot => "clean_reboot",
            Self::HardReboot => "hard_reboot",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.name() == name)
    }

    /// The power states in which it is allowed; the first is named in the error.
    pub(super) const fn states(self) -> &'static [&'static str] {
        match self {
            Self::Start => &["Halted"],
            Self::CleanShutdown | Self::CleanReboot | Self::Pause => &["Running"],
            Self::HardShutdown => &["Running", "Paused", "Suspended"],
            Self::HardReboot => &["Running", "Paused"],
            Self::Unpause => &["Paused"],
        }
    }

    pub(super) const fn is_clean(self) -> bool {
        matches!(self, Self::CleanShutdown | Self::CleanReboot)
    }

    /// Takes long enough that a caller waits for a task.
    pub(super) const fn is_slow(self) -> bool {
        !matches!(self, Self::Pause | Self::Unpause)
    }

    /// May be called while another operation runs.
    pub(super) const fn overtakes(self) -> bool {
        matches!(self, Self::HardShutdown | Self::HardReboot)
    }
}

/// One power operation on one VM.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) op: Op,
    pub(super) vm: String,
    /// `VM.start` with `start_paused`.
    pub(super) paused: bool,
    /// The task that waits for it.
    pub(super) task: Option<TaskEntry>,
}

impl Order {
    /// Reads the parameters of the message.
    pub(super) fn read(op: Op, params: &[Value]) -> Result<Self, Failure> {
        let vm = text_param(params, 0)?.to_owned();
        let paused = op == Op::Start && flag_param(params, 1)?;
        Ok(Self { op, vm, paused, task: None })
    }
}

/// A crash this soon after the start always halts; a reboot this soon is delayed (xenopsd VM_check_state).
const EARLY: Duration = Duration::from_secs(120);
/// The delay of an early reboot.
const EARLY_REBOOT_DELAY: Duration = Duration::from_secs(15);
/// A clean shutdown that the guest does not acknowledge.
const DEAF_TIMEOUT: Duration = Duration::from_secs(60);
/// Memory that a domain needs beyond its own, bytes: HVM with its emulator, and PV.
const HVM_OVERHEAD: u64 = 20 << 20;
const PV_OVERHEAD: u64 = 2 << 20;
/// When domains started that run since before the model began: 2020-01-01, as the start time of such VMs says.
const RAN_BEFORE: Timestamp = Timestamp::from_millis(1_577_836_800_000);
/// Pygrub's words about a disk without a system.
const NO_SYSTEM: &str = "Unable to find partition containing kernel";

impl Pool {
    /// What the guest in this domain does. Ignored (false) when the domain is not the live one, is paused or has
    /// ended already.
    pub fn guest(&mut self, now: Timestamp, vm_uuid: &str, domid: u32, act: GuestAct) -> bool {
        self.advance(now);
        let Some(vm) = self.db.by_uuid(Class::Vm, vm_uuid).map(str::to_owned) else { return false };
        let alive = |domain: &&mut Domain| domain.born_as == domid && !domain.exiting && !domain.paused;
        let Some(domain) = self.domains.get_mut(&vm).filter(alive) else { return false };
        match act {
            GuestAct::Agent { ipv4 } => {
                domain.agent = true;
                self.show_agent(now, &vm, &ipv4);
            }
            GuestAct::PowerOff | GuestAct::Reboot | GuestAct::Crash => {
                domain.exiting = true;
                let at = now + self.rng.between(self.timing.exit);
                self.schedule(at, Due::GuestExit { vm, domid, act });
            }
        }
        true
    }

    /// How long the operation takes.
    pub(super) fn duration_of(&mut self, order: &Order) -> Duration {
        let span = match order.op {
            Op::Start | Op::CleanReboot | Op::HardReboot => self.timing.start,
            Op::HardShutdown => self.timing.hard_shutdown,
            Op::Pause | Op::Unpause => self.timing.refusal,
            Op::CleanShutdown if self.is_deaf(&order.vm) => return DEAF_TIMEOUT,
            Op::CleanShutdown => self.timing.clean_shutdown,
        };
        self.rng.between(span)
    }

    /// The checks before an operation, in xapi's order.
    pub(super) fn check_order(&self, order: &Order) -> Result<(), Failure> {
        let (op, vm) = (order.op, order.vm.as_str());
        if self.db.row(Class::Vm, vm).is_none() {
            return Err(Failure::new("HANDLE_INVALID", &["VM", vm]));
        }
        if let Some(reason) = self.db.map_of(Class::Vm, vm, "blocked_operations").get(op.name()) {
            return Err(Failure::new("OPERATION_BLOCKED", &[vm, reason]));
        }
        self.check_power_state(op, vm)?;
        if !op.overtakes() && !self.is_idle(vm) {
            return Err(Failure::new("OTHER_OPERATION_IN_PROGRESS", &["VM", vm]));
        }
        for (field, code) in [("is_a_snapshot", "VM_IS_SNAPSHOT"), ("is_a_template", "VM_IS_TEMPLATE")] {
            if self.db.flag(Class::Vm, vm, field) {
                return Err(Failure::new(code, &[vm, op.name()]));
            }
        }
        if self.db.flag(Class::Vm, vm, "is_control_domain") {
            return Err(Failure::new("OPERATION_NOT_ALLOWED", &["This operation is not allowed on dom0"]));
        }
        if op.is_clean() && !self.domains.get(vm).is_some_and(Domain::listens) {
            return Err(Failure::new(self.release.no_tools, &[vm]));
        }
        if op == Op::Start { self.choose_host(vm, self.planned_mode(vm).0).map(drop) } else { Ok(()) }
    }

    fn check_power_state(&self, op: Op, vm: &str) -> Result<(), Failure> {
        let actual = self.db.text(Class::Vm, vm, "power_state");
        if op.states().contains(&actual) {
            return Ok(());
        }
        let expected = op.states().first().copied().unwrap_or_default().to_lowercase();
        Err(Failure::new("VM_BAD_POWER_STATE", &[vm, &expected, &actual.to_lowercase()]))
    }

    /// The operation itself, when its time has come.
    pub(super) fn carry_out(&mut self, now: Timestamp, order: &Order) -> Result<(), Failure> {
        let vm = order.vm.as_str();
        match order.op {
            Op::Start => {
                self.check_power_state(Op::Start, vm)?;
                self.boot(now, vm, order.paused)
            }
            Op::CleanShutdown if self.domains.contains_key(vm) && self.is_deaf(vm) => {
                Err(Failure::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", &[vm]))
            }
            Op::CleanShutdown | Op::HardShutdown => {
                self.db.set(now, Class::Vm, vm, "ha_always_run", Value::Bool(false));
                self.halt(now, vm);
                Ok(())
            }
            Op::CleanReboot | Op::HardReboot => {
                self.check_power_state(Op::HardReboot, vm)?;
                self.rebuild(now, vm)
            }
            Op::Pause => self.set_paused(now, vm, Op::Pause),
            Op::Unpause => self.set_paused(now, vm, Op::Unpause),
        }
    }

    fn set_paused(&mut self, now: Timestamp, vm: &str, op: Op) -> Result<(), Failure> {
        self.check_power_state(op, vm)?;
        let pause = op == Op::Pause;
        if let Some(domain) = self.domains.get_mut(vm) {
            domain.paused = pause;
        }
        self.db.set_text(now, Class::Vm, vm, "power_state", if pause { "Paused" } else { "Running" });
        self.refresh_allowed(now, vm);
        if !pause {
            self.tell_start(vm, true);
        }
        Ok(())
    }

    /// How the VM would boot now: the mode, and the domain type that metrics would show.
    fn planned_mode(&self, vm: &str) -> (BootKind, String) {
        let policy = self.db.text(Class::Vm, vm, "HVM_boot_policy");
        let written = self.db.text(Class::Vm, vm, "domain_type");
        let kind = match written {
            "" | "unspecified" => {
                if policy.is_empty() {
                    "pv"
                } else {
                    "hvm"
                }
            }
            kind => kind,
        };
        (if kind == "hvm" { BootKind::Hvm } else { BootKind::Pv }, kind.to_owned())
    }

    /// Builds the domain of a halted VM.
    fn boot(&mut self, now: Timestamp, vm: &str, paused: bool) -> Result<(), Failure> {
        let (boot, _) = self.planned_mode(vm);
        let host = self.choose_host(vm, boot)?;
        self.build(now, vm, host, paused)
    }

    /// The domain of a VM that runs since before the model began; nobody plays its guest.
    pub(super) fn run_from_before(&mut self, vm: &str) {
        let (boot, kind) = self.planned_mode(vm);
        let mode = match boot {
            BootKind::Hvm => BootMode::Hvm { order: "cd".to_owned() },
            BootKind::Pv => BootMode::Pv,
        };
        let mut domain = self.new_domain(vm, (mode, kind), self.host_ref(0), RAN_BEFORE);
        domain.told = true;
        self.domains.insert(vm.to_owned(), domain);
        self.follow_domain(RAN_BEFORE, vm);
    }

    fn new_domain(
        &mut self,
        vm: &str,
        (mode, kind): (BootMode, String),
        host: String,
        started: Timestamp,
    ) -> Domain {
        let domid = self.next_domid;
        self.next_domid += 1;
        let overhead = if mode == BootMode::Pv { PV_OVERHEAD } else { HVM_OVERHEAD };
        Domain {
            domid,
            born_as: domid,
            mode,
            kind,
            host,
            memory: self.memory_of(vm) + overhead,
            started,
            paused: false,
            told: false,
            exiting: false,
            agent: false,
        }
    }

    fn build(&mut self, now: Timestamp, vm: &str, host: String, paused: bool) -> Result<(), Failure> {
        let (boot, kind) = self.planned_mode(vm);
        let mode = match boot {
            BootKind::Pv => {
                self.run_bootloader(vm)?;
                BootMode::Pv
            }
            BootKind::Hvm => {
                let order =
                    self.db.map_of(Class::Vm, vm, "HVM_boot_params").remove("order").unwrap_or_default();
                BootMode::Hvm { order: if order.is_empty() { "cd".to_owned() } else { order } }
            }
        };
        let uuid = self.db.text(Class::Vm, vm, "uuid").to_owned();
        let built = self.built.entry(uuid).or_default();
        match boot {
            BootKind::Hvm => built.0 += 1,
            BootKind::Pv => built.1 += 1,
        }
        let domain = Domain { paused, ..self.new_domain(vm, (mode, kind), host, now) };
        self.domains.insert(vm.to_owned(), domain);
        self.write_boot_side_effects(now, vm, boot);
        self.follow_domain(now, vm);
        let at = now + self.rng.between(self.timing.start_time_lag);
        self.schedule(at, Due::StartTime { vm: vm.to_owned(), started: now });
        if !paused {
            self.tell_start(vm, false);
        }
        Ok(())
    }

    /// What xapi itself writes into the record at a start.
    fn write_boot_side_effects(&mut self, now: Timestamp, vm: &str, boot: BootKind) {
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

    /// Reads the boot disk as the VM's bootloader would.
    fn run_bootloader(&self, vm: &str) -> Result<(), Failure> {
        let internal = |words: &str| Err(Failure::new("INTERNAL_ERROR", &[words]));
        let failed = |words: &str| Err(Failure::new("BOOTLOADER_FAILED", &[vm, words]));
        match self.db.text(Class::Vm, vm, "PV_bootloader") {
            "" if is_null(self.db.text(Class::Vm, vm, "PV_kernel")) => internal("the VM has no kernel"),
            "" => Ok(()),
            "eliloader" => {
                let other = self.db.map_of(Class::Vm, vm, "other_config");
                if other.contains_key("install-repository") {
                    Ok(())
                } else {
                    failed("install-repository is not set")
                }
            }
            "pygrub" => match self.first_bootable(vm) {
                None => internal("there is no bootable device"),
                Some(DiskKind::Cd) => failed(NO_SYSTEM),
                Some(DiskKind::Disk) => match self.boot_disks.get(self.db.text(Class::Vm, vm, "uuid")) {
                    Some(Ok(())) => Ok(()),
                    Some(Err(words)) => failed(words),
                    None => failed(NO_SYSTEM),
                },
            },
            other => internal(&format!("Bootloader.Unknown_bootloader(\"{other}\")")),
        }
    }

    /// The drive that the bootloader reads: the first bootable one that is not empty.
    fn first_bootable(&self, vm: &str) -> Option<DiskKind> {
        let drives = self.db.set_of(Class::Vm, vm, "VBDs");
        let bootable = |vbd: &&String| {
            self.db.flag(Class::Vbd, vbd, "bootable") && !self.db.flag(Class::Vbd, vbd, "empty")
        };
        let position =
            |vbd: &&String| self.db.text(Class::Vbd, vbd, "userdevice").parse::<u32>().unwrap_or(u32::MAX);
        let first = drives.iter().filter(bootable).min_by_key(position)?;
        Some(if self.db.text(Class::Vbd, first, "type") == "CD" { DiskKind::Cd } else { DiskKind::Disk })
    }

    /// The host that takes the VM.
    fn choose_host(&self, vm: &str, boot: BootKind) -> Result<String, Failure> {
        if boot == BootKind::Hvm && !self.hosts.iter().any(|host| host.spec.hvm) {
            return Err(Failure::new("VM_HVM_REQUIRED", &[vm]));
        }
        let roomiest = self.fitting_hosts(vm, boot).max_by_key(|host| self.free_on(host));
        roomiest.map(|host| host.reference.clone()).ok_or_else(|| Failure::new("NO_HOSTS_AVAILABLE", &[]))
    }

    /// Hosts that could start the VM now, in the mode that its record has.
    pub(super) fn possible_hosts(&self, vm: &str) -> Vec<String> {
        self.fitting_hosts(vm, self.planned_mode(vm).0).map(|host| host.reference.clone()).collect()
    }

    /// Hosts that are enabled, with memory, and with VT for HVM.
    fn fitting_hosts(&self, vm: &str, boot: BootKind) -> impl Iterator<Item = &super::Host> {
        let needed = self.memory_of(vm) + overhead(boot);
        let able = move |host: &&super::Host| host.spec.enabled && (host.spec.hvm || boot == BootKind::Pv);
        self.hosts.iter().filter(able).filter(move |host| self.free_on(host) >= needed)
    }

    fn free_on(&self, host: &super::Host) -> u64 {
        host.spec.memory.saturating_sub(self.used_on(&host.reference))
    }

    fn used_on(&self, host: &str) -> u64 {
        self.domains.values().filter(|domain| domain.host == host).map(|domain| domain.memory).sum()
    }

    fn memory_of(&self, vm: &str) -> u64 {
        self.db.text(Class::Vm, vm, "memory_static_max").parse().unwrap_or_default()
    }

    fn is_deaf(&self, vm: &str) -> bool {
        self.deaf.contains(self.db.text(Class::Vm, vm, "uuid"))
    }

    /// Ends the domain; the VM is Halted.
    fn halt(&mut self, now: Timestamp, vm: &str) {
        self.domains.remove(vm);
        self.follow_domain(now, vm);
    }

    /// A reboot: a new domain on the same host, from the record as it is now. A failure leaves the VM Halted.
    fn rebuild(&mut self, now: Timestamp, vm: &str) -> Result<(), Failure> {
        let Some(old) = self.domains.remove(vm) else {
            return Err(Failure::new("VM_BAD_POWER_STATE", &[vm, "running", "halted"]));
        };
        let outcome = self.build(now, vm, old.host, false);
        if outcome.is_err() {
            self.halt(now, vm);
        }
        outcome
    }

    /// The toolstack notices that a guest ended.
    pub(super) fn guest_exited(&mut self, now: Timestamp, vm: &str, domid: u32, act: &GuestAct) {
        let Some(domain) = self.domains.get(vm).filter(|domain| domain.born_as == domid) else { return };
        let early = now.since(domain.started) < EARLY;
        let setting = |field: &str| self.db.text(Class::Vm, vm, field).to_owned();
        let crashed = *act == GuestAct::Crash;
        let behaviour = match act {
            GuestAct::PowerOff => setting("actions_after_shutdown"),
            GuestAct::Reboot => setting("actions_after_reboot"),
            GuestAct::Crash if early => "destroy".to_owned(),
            GuestAct::Crash => setting("actions_after_crash"),
            GuestAct::Agent { .. } => return,
        };
        let protected = self.db.flag(Class::Pool, &self.pool_ref, "ha_enabled")
            && self.db.flag(Class::Vm, vm, "ha_always_run");
        match behaviour.as_str() {
            "restart" | "coredump_and_restart" | "rename_restart" => {
                self.rebuild_later(now, vm, domid, early && !crashed)
            }
            "preserve" => {}
            _ if protected => self.rebuild_later(now, vm, domid, false),
            _ => self.halt(now, vm),
        }
    }

    fn rebuild_later(&mut self, now: Timestamp, vm: &str, domid: u32, early: bool) {
        let delay = if early { EARLY_REBOOT_DELAY } else { Duration::ZERO };
        let at = now + delay + self.rng.between(self.timing.start);
        self.schedule(at, Due::Rebuild { vm: vm.to_owned(), domid });
    }

    pub(super) fn rebuild_after_exit(&mut self, now: Timestamp, vm: &str, domid: u32) {
        if self.domains.get(vm).is_some_and(|domain| domain.born_as == domid) {
            // Nobody asked over the API, so nobody is told why a rebuild failed: the VM is just Halted.
            drop(self.rebuild(now, vm));
        }
    }

    /// Moves a domain to another host: a new domid, the same start time.
    pub(super) fn migrate(&mut self, now: Timestamp, vm: &str) -> Result<(), Failure> {
        let next_domid = self.next_domid;
        let Some(domain) = self.domains.get_mut(vm) else {
            return Err(Failure::new("VM_BAD_POWER_STATE", &[vm, "running", "halted"]));
        };
        let elsewhere = self.hosts.iter().find(|host| host.reference != domain.host && host.spec.enabled);
        let Some(host) = elsewhere else { return Err(Failure::new("NO_HOSTS_AVAILABLE", &[])) };
        domain.host.clone_from(&host.reference);
        domain.domid = next_domid;
        self.next_domid += 1;
        self.follow_domain(now, vm);
        Ok(())
    }
}

/// Whether a BIOS is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BootKind {
    Hvm,
    Pv,
}

const fn overhead(boot: BootKind) -> u64 {
    match boot {
        BootKind::Hvm => HVM_OVERHEAD,
        BootKind::Pv => PV_OVERHEAD,
    }
}

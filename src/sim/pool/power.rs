//! Starts, stops and reboots of domains: what `VM.start` and its like check and do, and what guests do to
//! themselves. Behaviour: xapi_vm_lifecycle (order of the checks), xapi_xenops (on_action_behaviour), bootloader.

use std::time::Duration;

use super::{
    Pool,
    build::{Birth, Born},
    calls::{date, flag_param, text_param},
    hosts::BootKind,
    schema::Class,
    spec::{BootMode, DomainTruth, GuestAct},
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
    pub(super) exiting: bool,
    /// A guest agent runs: clean shutdown works.
    pub(super) agent: bool,
    /// Xapi takes it for an HVM domain; it may be wrong after a reboot into another mode.
    pub(super) believed_hvm: bool,
    /// Platform flags that the emulator was not given.
    pub(super) lacks: Vec<&'static str>,
    /// Its disks were lost at a reboot into another mode.
    pub(super) diskless: bool,
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
        !self.believed_hvm || self.agent
    }
}

/// A power operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Start,
    StartOn,
    CleanShutdown,
    HardShutdown,
    CleanReboot,
    HardReboot,
    Pause,
    Unpause,
}

impl Op {
    pub(super) const ALL: [Self; 8] = [
        Self::Start,
        Self::StartOn,
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
            Self::StartOn => "start_on",
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
            Self::Start | Self::StartOn => &["Halted"],
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
    /// The host that `VM.start_on` names.
    pub(super) host: Option<String>,
    /// The task that waits for it.
    pub(super) task: Option<TaskEntry>,
    /// The domain that the body outside built for it.
    pub(super) born: Option<Born>,
}

impl Order {
    /// An order to be checked, not carried out.
    pub(super) fn of(op: Op, vm: &str) -> Self {
        Self { op, vm: vm.to_owned(), paused: false, host: None, task: None, born: None }
    }

    /// Reads the parameters of the message.
    pub(super) fn read(op: Op, params: &[Value]) -> Result<Self, Failure> {
        let vm = text_param(params, 0)?.to_owned();
        let (host, paused) = match op {
            Op::Start => (None, flag_param(params, 1)?),
            Op::StartOn => (Some(text_param(params, 1)?.to_owned()), flag_param(params, 2)?),
            Op::CleanShutdown
            | Op::HardShutdown
            | Op::CleanReboot
            | Op::HardReboot
            | Op::Pause
            | Op::Unpause => (None, false),
        };
        Ok(Self { op, vm, paused, host, task: None, born: None })
    }
}

/// The policy that boots HVM on every release.
pub(super) const BIOS_ORDER: &str = "BIOS order";
/// A crash this soon after the start always halts; a reboot this soon is delayed (xenopsd VM_check_state).
const EARLY: Duration = Duration::from_secs(120);
/// The delay of an early reboot.
const EARLY_REBOOT_DELAY: Duration = Duration::from_secs(15);
/// A clean shutdown that the guest does not acknowledge.
const DEAF_TIMEOUT: Duration = Duration::from_secs(60);
/// When domains started that run since before the model began: 2020-01-01, as the start time of such VMs says.
const RAN_BEFORE: Timestamp = Timestamp::from_millis(1_577_836_800_000);

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
            Op::Start | Op::StartOn | Op::CleanReboot | Op::HardReboot => self.timing.start,
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
        if matches!(op, Op::Start | Op::StartOn) {
            self.choose_host(vm, order.host.as_deref()).map(drop)
        } else {
            Ok(())
        }
    }

    pub(super) fn check_power_state(&self, op: Op, vm: &str) -> Result<(), Failure> {
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
            Op::Start | Op::StartOn => {
                self.check_power_state(Op::Start, vm)?;
                self.boot(now, vm, order)
            }
            Op::CleanShutdown if self.domains.contains_key(vm) && self.is_deaf(vm) => {
                Err(Failure::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", &[vm]))
            }
            Op::CleanShutdown | Op::HardShutdown => {
                self.stale.remove(vm);
                self.db.set(now, Class::Vm, vm, "ha_always_run", Value::Bool(false));
                self.end_as_written(now, order, "actions_after_shutdown", "destroy")
            }
            Op::CleanReboot | Op::HardReboot => {
                self.check_power_state(Op::HardReboot, vm)?;
                self.stale.remove(vm);
                self.end_as_written(now, order, "actions_after_reboot", "restart")
            }
            Op::Pause => self.set_paused(now, vm, Op::Pause),
            Op::Unpause => self.set_paused(now, vm, Op::Unpause),
        }
    }

    /// An API reboot or shutdown: to 6.0 the record says what comes of it, later its name does.
    fn end_as_written(
        &mut self,
        now: Timestamp,
        order: &Order,
        setting: &str,
        usual: &str,
    ) -> Result<(), Failure> {
        let vm = order.vm.as_str();
        let written = self.db.text(Class::Vm, vm, setting).to_owned();
        let action = if self.release.runs_domains_itself() { written.as_str() } else { usual };
        let restarts = action == "restart";
        self.record_end(now, vm, if usual == "restart" { "rebooted" } else { "halted" }, "external", action);
        if restarts && self.domains.contains_key(vm) {
            return self.rebuild(now, vm, order.born.clone());
        }
        self.halt(now, vm);
        Ok(())
    }

    /// To 6.0 xapi writes into other_config why a domain ended.
    fn record_end(&mut self, now: Timestamp, vm: &str, reason: &str, initiator: &str, action: &str) {
        if !self.release.runs_domains_itself() {
            return;
        }
        let mut config = self.db.map_of(Class::Vm, vm, "other_config");
        let action = if action == "restart" { "Restart" } else { "Destroy" };
        let words = [
            ("last_shutdown_reason", reason.to_owned()),
            ("last_shutdown_initiator", initiator.to_owned()),
            ("last_shutdown_action", action.to_owned()),
            ("last_shutdown_time", date(now)),
        ];
        config.extend(words.map(|(key, word)| (key.to_owned(), word)));
        self.db.set(now, Class::Vm, vm, "other_config", Value::map(&config));
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

    /// How the VM would boot now, as the metrics would show it: hvm, pv, `pv_in_pvh`, pvh.
    pub(super) fn planned_kind(&self, vm: &str) -> String {
        let by_policy = if self.db.text(Class::Vm, vm, "HVM_boot_policy").is_empty() { "pv" } else { "hvm" };
        let written = self.db.text(Class::Vm, vm, "domain_type");
        if matches!(written, "" | "unspecified") { by_policy } else { written }.to_owned()
    }

    pub(super) fn planned_mode(&self, vm: &str) -> (BootKind, String) {
        let kind = self.planned_kind(vm);
        (if kind == "hvm" { BootKind::Hvm } else { BootKind::Pv }, kind)
    }

    /// Builds the domain of a halted VM.
    fn boot(&mut self, now: Timestamp, vm: &str, order: &Order) -> Result<(), Failure> {
        if let Some(domain) = self.domains.get(vm) {
            // The record says Halted only because it is stale.
            return Err(Failure::new("DOMAIN_EXISTS", &[vm, &domain.domid.to_string()]));
        }
        let host = self.choose_host(vm, order.host.as_deref())?;
        self.build(
            now,
            vm,
            Birth {
                host,
                paused: order.paused,
                by_start: true,
                born: order.born.clone(),
                ..Birth::default()
            },
        )
    }

    /// The domain of a VM that runs since before the model began, at this host and domid where they are known;
    /// nobody is told to play its guest.
    pub(super) fn run_from_before(&mut self, vm: &str, place: Option<(String, u32)>) {
        let (boot, kind) = self.planned_mode(vm);
        let mode = match boot {
            BootKind::Hvm => BootMode::Hvm { order: "cd".to_owned() },
            BootKind::Pv => BootMode::Pv,
        };
        let (host, domid) = place.unwrap_or_else(|| (self.host_ref(0), self.next_domid));
        let next_domid = self.next_domid.max(domid + 1);
        let domain = self.new_domain(vm, (mode, kind), host, RAN_BEFORE);
        self.next_domid = next_domid;
        self.domains.insert(vm.to_owned(), Domain { domid, born_as: domid, told: true, ..domain });
        self.follow_domain(RAN_BEFORE, vm);
    }

    /// A domain that was paused before the model began stays so.
    pub(super) fn pause_from_before(&mut self, vm: &str, paused: bool) {
        if let Some(domain) = self.domains.get_mut(vm) {
            domain.paused = paused;
        }
        self.follow_domain(RAN_BEFORE, vm);
    }

    fn is_deaf(&self, vm: &str) -> bool {
        self.deaf.contains(self.db.text(Class::Vm, vm, "uuid"))
    }

    /// Ends the domain; the VM is Halted.
    pub(super) fn halt(&mut self, now: Timestamp, vm: &str) {
        self.domains.remove(vm);
        self.follow_domain(now, vm);
    }

    /// A reboot: a new domain on the same host, from the record as it is now. A failure leaves the VM Halted.
    pub(super) fn rebuild(&mut self, now: Timestamp, vm: &str, born: Option<Born>) -> Result<(), Failure> {
        let Some(old) = self.domains.remove(vm) else {
            return Err(Failure::new("VM_BAD_POWER_STATE", &[vm, "running", "halted"]));
        };
        let flipped = old.kind != self.planned_kind(vm);
        let birth = Birth {
            diskless: old.diskless || flipped && self.release.names_disks_by_mode(),
            believed_hvm: old.believed_hvm,
            host: old.host,
            born,
            ..Birth::default()
        };
        let outcome = self.build(now, vm, birth);
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
        let reason = match act {
            GuestAct::Reboot => "rebooted",
            GuestAct::Crash => "crashed",
            GuestAct::PowerOff | GuestAct::Agent { .. } => "halted",
        };
        self.record_end(now, vm, reason, "internal", behaviour.trim_start_matches("coredump_and_"));
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

    pub(super) fn rebuild_after_exit(&mut self, now: Timestamp, vm: &str, domid: u32, born: Option<Born>) {
        if self.domains.get(vm).is_none_or(|domain| domain.born_as != domid) {
            return;
        }
        // Nobody asked over the API, so nobody is told why a rebuild failed: the VM is just Halted.
        drop(self.rebuild(now, vm, born));
        if self.domains.get(vm).is_some_and(|domain| domain.mode != BootMode::Pv) {
            *self.rebuilt.entry(self.db.text(Class::Vm, vm, "uuid").to_owned()).or_default() += 1;
        }
    }
}

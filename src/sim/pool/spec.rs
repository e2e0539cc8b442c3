//! What goes into the pool model and what comes out of it: VM shapes, guests' and people's acts, the truth, the log.

use std::{collections::BTreeMap, time::Duration};

use crate::{clock::Timestamp, machine::MacAddr, xen::Failure};

/// What a virtual drive holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// A disk.
    Disk,
    /// A CD; with `size` 0 the drive is empty.
    Cd,
}

/// One VBD with its VDI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskSpec {
    /// `VBD.userdevice`, such as `0`.
    pub userdevice: String,
    /// Bytes.
    pub size: u64,
    /// `VBD.bootable`.
    pub bootable: bool,
    /// `VBD.mode` is `RO`.
    pub read_only: bool,
    /// `VBD.type`.
    pub kind: DiskKind,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            userdevice: "0".to_owned(),
            size: 8 << 30,
            bootable: true,
            read_only: false,
            kind: DiskKind::Disk,
        }
    }
}

/// A VM to add. The default is a halted PV VM that never ran: one bootable blank disk, one VIF, pygrub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmSpec {
    /// `name_label`.
    pub name: String,
    /// One VIF each; device `0` first.
    pub macs: Vec<MacAddr>,
    /// One VBD each.
    pub disks: Vec<DiskSpec>,
    /// `domain_type`; `None`: what `policy` gives. Ignored where the release has no such field.
    pub domain_type: Option<String>,
    /// `HVM_boot_policy`.
    pub policy: String,
    /// `HVM_boot_params`.
    pub boot_params: BTreeMap<String, String>,
    /// `PV_bootloader`.
    pub pv_bootloader: String,
    /// `PV_args`.
    pub pv_args: String,
    /// `platform`.
    pub platform: BTreeMap<String, String>,
    /// `other_config`.
    pub other_config: BTreeMap<String, String>,
    /// `actions_after_shutdown`, `actions_after_reboot`, `actions_after_crash`.
    pub actions_after: [String; 3],
    /// `memory_static_max`, bytes.
    pub memory: u64,
    /// `tags`.
    pub tags: Vec<String>,
    /// `is_a_template`.
    pub template: bool,
    /// `is_a_snapshot`.
    pub snapshot: bool,
    /// `is_control_domain`.
    pub control_domain: bool,
    /// `ha_restart_priority`; `restart` also sets `ha_always_run`.
    pub ha_restart_priority: String,
    /// `blocked_operations`.
    pub blocked_operations: BTreeMap<String, String>,
    /// A domain runs from the start.
    pub running: bool,
    /// It ran at some time: `VM_metrics.start_time` is not 1970.
    pub ever_ran: bool,
    /// What pygrub finds on the boot disk: `Err` holds its last words. `None`: a bootable system when the VM ever
    /// ran, nothing otherwise.
    pub bootable: Option<Result<(), String>>,
    /// A PV guest that does not react to a clean shutdown.
    pub deaf: bool,
    /// Its kernel is a 32-bit one.
    pub bits32: bool,
}

impl Default for VmSpec {
    fn default() -> Self {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        Self {
            name: "vm".to_owned(),
            macs: vec![MacAddr::new([0x02, 0x16, 0x3e, 0, 0, 1])],
            disks: vec![DiskSpec::default()],
            domain_type: None,
            policy: String::new(),
            boot_params: BTreeMap::new(),
            pv_bootloader: "pygrub".to_owned(),
            pv_args: "console=hvc0".to_owned(),
            platform: map(&[
                ("acpi", "true"),
                ("apic", "true"),
                ("nx", "false"),
                ("pae", "true"),
                ("viridian", "true"),
            ]),
            other_config: map(&[
                ("base_template_name", "Debian Wheezy 7.0 (64-bit)"),
                ("install-methods", "http,ftp"),
            ]),
            actions_after: ["destroy".to_owned(), "restart".to_owned(), "restart".to_owned()],
            memory: 1 << 30,
            tags: Vec::new(),
            template: false,
            snapshot: false,
            control_domain: false,
            ha_restart_priority: String::new(),
            blocked_operations: BTreeMap::new(),
            running: false,
            ever_ran: false,
            bootable: None,
            deaf: false,
            bits32: false,
        }
    }
}

impl VmSpec {
    /// A stock PV template as a release brings them: no drives, a plan for one disk whose SR is not filled in.
    pub fn stock_template(name: &str, disk: u64) -> Self {
        let plan = format!(
            "<provision><disk device=\"0\" size=\"{disk}\" sr=\"\" bootable=\"true\" type=\"system\"/></provision>"
        );
        let config = [
            ("default_template", "true"),
            ("disks", &plan),
            ("install-methods", "http,ftp"),
            ("linux_template", "true"),
            ("mac_seed", "5b1a2f4e-0000-4000-8000-000000000000"),
        ];
        Self {
            name: name.to_owned(),
            macs: Vec::new(),
            disks: Vec::new(),
            pv_bootloader: "eliloader".to_owned(),
            other_config: config.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            template: true,
            ..Self::default()
        }
    }
}

/// One host of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSpec {
    /// `name_label` and `hostname`.
    pub name: String,
    /// `address`, as members know each other: no port.
    pub address: String,
    /// Bytes for domains.
    pub memory: u64,
    /// The processor can run HVM domains.
    pub hvm: bool,
    /// Xen takes 32-bit PV domains; 8.2 dropped them with an update of January 2022.
    pub pv32: bool,
    /// `enabled`: takes new domains.
    pub enabled: bool,
}

impl Default for HostSpec {
    fn default() -> Self {
        Self {
            name: "xs-1".to_owned(),
            address: "127.0.0.1".to_owned(),
            memory: 4 << 40,
            hvm: true,
            pv32: true,
            enabled: true,
        }
    }
}

/// An account's role (XenAPI RBAC), weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// `read-only`.
    ReadOnly,
    /// `vm-operator`: power operations.
    VmOperator,
    /// `vm-admin`: boot settings; may not sync the database.
    VmAdmin,
    /// `vm-power-admin`: memory, placement, snapshots.
    VmPowerAdmin,
    /// `pool-operator`: may sync the database.
    PoolOperator,
    /// `pool-admin`, as root is.
    PoolAdmin,
}

impl Role {
    /// Every role, weakest first.
    pub const ALL: [Self; 6] = [
        Self::ReadOnly,
        Self::VmOperator,
        Self::VmAdmin,
        Self::VmPowerAdmin,
        Self::PoolOperator,
        Self::PoolAdmin,
    ];

    /// XenAPI's name for it, such as `vm-admin`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::VmOperator => "vm-operator",
            Self::VmAdmin => "vm-admin",
            Self::VmPowerAdmin => "vm-power-admin",
            Self::PoolOperator => "pool-operator",
            Self::PoolAdmin => "pool-admin",
        }
    }

    /// The role of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }
}

/// How long things take, as (least, most); each draw comes from the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// VM.start and reboots, call to domain.
    pub start: (Duration, Duration),
    /// Hard shutdown.
    pub hard_shutdown: (Duration, Duration),
    /// Clean shutdown of a guest that listens.
    pub clean_shutdown: (Duration, Duration),
    /// A task that is refused.
    pub refusal: (Duration, Duration),
    /// From the guest's own end to `power_state`.
    pub exit: (Duration, Duration),
    /// From the domain to `VM_metrics.start_time`.
    pub start_time_lag: (Duration, Duration),
}

impl Default for Timing {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            start: (ms(300), ms(2000)),
            hard_shutdown: (ms(200), ms(1000)),
            clean_shutdown: (ms(2000), ms(8000)),
            refusal: (ms(5), ms(50)),
            exit: (ms(50), ms(300)),
            start_time_lag: (ms(0), ms(1500)),
        }
    }
}

/// How a domain booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootMode {
    /// With a BIOS; `order` as qemu gets it (`cd` when the VM names none).
    Hvm {
        /// Letters c (disk), d (CD), n (network).
        order: String,
    },
    /// Paravirtualized, through the bootloader.
    Pv,
}

/// A domain that began to run: the body that plays guests starts one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainStart {
    /// The VM.
    pub vm_uuid: String,
    /// Its name label.
    pub name: String,
    /// Names this domain in [`GuestAct`](super::Pool::guest)s for all its life, also after a migration.
    pub domid: u32,
    /// The NICs, device 0 first.
    pub macs: Vec<MacAddr>,
    /// How it boots.
    pub mode: BootMode,
    /// It was started paused and is unpaused now.
    pub was_paused: bool,
    /// Platform flags (acpi, apic, pae) that an HVM domain's emulator was not given; only on 6.0 and older.
    pub lacks: Vec<&'static str>,
    /// It lost its disks: on 6.1 and 6.2, when the boot mode was changed while its predecessor ran.
    pub diskless: bool,
}

/// What a guest does to itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GuestAct {
    /// Powers off.
    PowerOff,
    /// Reboots.
    Reboot,
    /// Panics.
    Crash,
    /// Its agent tells this IPv4 address (`VM_guest_metrics.networks`).
    Agent {
        /// Such as `10.0.0.9`.
        ipv4: String,
    },
}

/// What a person does to a VM with another client.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // each is the XenAPI message of that name
pub enum PersonAct {
    Start,
    HardShutdown,
    CleanShutdown,
    HardReboot,
    CleanReboot,
    Pause,
    Unpause,
    Migrate,
    Destroy,
    Clone { name: String },
    SetName(String),
    SetBootParams(BTreeMap<String, String>),
    SetPolicy(String),
    SetDomainType(String),
    SetPvBootloader(String),
    SetActionsAfterShutdown(String),
    SetActionsAfterReboot(String),
    SetActionsAfterCrash(String),
    SetTemplate(bool),
    AddOtherConfig { key: String, value: String },
    RemoveOtherConfig { key: String },
    SetOtherConfig(BTreeMap<String, String>),
    SetPlatform(BTreeMap<String, String>),
}

/// A VM as it really is: the record's fields as plain values, and what only the model knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmTruth {
    /// The VM.
    pub uuid: String,
    /// `name_label`.
    pub name: String,
    /// `power_state`.
    pub power_state: String,
    /// `domain_type`, where the release has it.
    pub domain_type: Option<String>,
    /// `HVM_boot_policy`.
    pub hvm_boot_policy: String,
    /// `HVM_boot_params`.
    pub hvm_boot_params: BTreeMap<String, String>,
    /// `PV_bootloader`.
    pub pv_bootloader: String,
    /// `PV_args`.
    pub pv_args: String,
    /// `actions_after_shutdown`, `actions_after_reboot`, `actions_after_crash`.
    pub actions_after: [String; 3],
    /// `platform`.
    pub platform: BTreeMap<String, String>,
    /// `other_config`.
    pub other_config: BTreeMap<String, String>,
    /// `other_config["bootflip:claim"]`.
    pub claim: Option<String>,
    /// `VM_metrics.start_time` as the record has it.
    pub start_time: String,
    /// HVM domains built so far, by starts and reboots.
    pub hvm_starts: u32,
    /// PV domains built so far.
    pub pv_starts: u32,
    /// Of the HVM domains: those built because the guest rebooted by itself.
    pub hvm_rebuilds: u32,
    /// The living domain.
    pub domain: Option<DomainTruth>,
}

/// A living domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainTruth {
    /// As in its [`DomainStart`].
    pub domid: u32,
    /// How it booted.
    pub mode: BootMode,
    /// When it was built.
    pub started: Timestamp,
    /// Not running: started paused, or paused by somebody.
    pub paused: bool,
}

/// Who made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A XenAPI client: the program under test.
    Client,
    /// A [`PersonAct`].
    Person,
}

/// One call, in the order in which the pool did them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedCall {
    /// When.
    pub at: Timestamp,
    /// Who.
    pub caller: Caller,
    /// As sent, with `Async.` in front where it was.
    pub method: String,
    /// The VM in the first parameter.
    pub vm: Option<String>,
    /// The other parameters, shortened; never a password or session.
    pub params: String,
    /// What was answered at once.
    pub outcome: Result<(), Failure>,
    /// How the task ended, once it did.
    pub task: Option<Result<(), Failure>>,
}

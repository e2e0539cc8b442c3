//! The boot settings that a job touches, and the three-way way back: what still equals what we wrote gets the
//! saved value; what equals the saved value is done; anything else is a person's and is left alone (I14).

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::{claim::Touched, job::Difference, plan::Call};
use crate::xen::records::VmRecord;

/// `HVM_boot_policy` of HVM; 5.6 and 6.0 accept no other text.
pub const BIOS_ORDER: &str = "BIOS order";

/// A field of the VM record, or one key of a map field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Field {
    /// `domain_type` (7.5 and later).
    DomainType,
    /// `HVM_boot_policy`, where there is no domain_type.
    HvmBootPolicy,
    /// A key of `HVM_boot_params`.
    BootParam(String),
    /// A key of `platform`.
    Platform(String),
    /// `actions_after_shutdown`.
    ActionsAfterShutdown,
    /// `actions_after_reboot`.
    ActionsAfterReboot,
    /// `actions_after_crash`.
    ActionsAfterCrash,
    /// `PV_bootloader`.
    PvBootloader,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DomainType => f.write_str("domain_type"),
            Self::HvmBootPolicy => f.write_str("HVM_boot_policy"),
            Self::BootParam(key) => write!(f, "HVM_boot_params.{key}"),
            Self::Platform(key) => write!(f, "platform.{key}"),
            Self::ActionsAfterShutdown => f.write_str("actions_after_shutdown"),
            Self::ActionsAfterReboot => f.write_str("actions_after_reboot"),
            Self::ActionsAfterCrash => f.write_str("actions_after_crash"),
            Self::PvBootloader => f.write_str("PV_bootloader"),
        }
    }
}

impl From<Field> for String {
    fn from(field: Field) -> Self {
        field.to_string()
    }
}

impl TryFrom<String> for Field {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Field {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "domain_type" => Ok(Self::DomainType),
            "HVM_boot_policy" => Ok(Self::HvmBootPolicy),
            "actions_after_shutdown" => Ok(Self::ActionsAfterShutdown),
            "actions_after_reboot" => Ok(Self::ActionsAfterReboot),
            "actions_after_crash" => Ok(Self::ActionsAfterCrash),
            "PV_bootloader" => Ok(Self::PvBootloader),
            other => match other.split_once('.') {
                Some(("HVM_boot_params", key)) => Ok(Self::BootParam(key.to_owned())),
                Some(("platform", key)) => Ok(Self::Platform(key.to_owned())),
                Some(_) | None => Err(format!("`{other}` is not a field that bootflip touches")),
            },
        }
    }
}

/// Keys of `platform` that xapi itself writes during an HVM run: always put back, never a difference.
const WRITTEN_BY_XAPI: [&str; 2] = ["device-model", "timeoffset"];

/// Emulator flags that 5.6 and 6.0 read literally, absent meaning off.
const EMULATOR_FLAGS: [&str; 3] = ["acpi", "apic", "pae"];

impl Field {
    /// What stands there now; `None`: the key is absent.
    pub fn read(&self, vm: &VmRecord) -> Option<String> {
        match self {
            Self::DomainType => vm.domain_type.clone(),
            Self::HvmBootPolicy => Some(vm.hvm_boot_policy.clone()),
            Self::BootParam(key) => vm.hvm_boot_params.get(key).cloned(),
            Self::Platform(key) => vm.platform.get(key).cloned(),
            Self::ActionsAfterShutdown => Some(vm.actions_after_shutdown.clone()),
            Self::ActionsAfterReboot => Some(vm.actions_after_reboot.clone()),
            Self::ActionsAfterCrash => Some(vm.actions_after_crash.clone()),
            Self::PvBootloader => Some(vm.pv_bootloader.clone()),
        }
    }

    /// The call that writes `value` there, on top of what `vm` holds.
    pub fn write(&self, vm: &VmRecord, value: Option<&str>) -> Call {
        let text = || value.unwrap_or_default().to_owned();
        match self {
            Self::DomainType => Call::SetDomainType(text()),
            Self::HvmBootPolicy => Call::SetHvmBootPolicy(text()),
            Self::BootParam(key) => {
                // The setter replaces the whole map, so it is read, changed by key, and written.
                let mut params = vm.hvm_boot_params.clone();
                match value {
                    Some(value) => params.insert(key.clone(), value.to_owned()),
                    None => params.remove(key),
                };
                Call::SetHvmBootParams(params)
            }
            // add_to_ refuses a key that exists: remove first, add in the next round.
            Self::Platform(key) if vm.platform.contains_key(key) => Call::RemoveFromPlatform(key.clone()),
            Self::Platform(key) => Call::AddToPlatform(key.clone(), text()),
            Self::ActionsAfterShutdown => Call::SetActionsAfterShutdown(text()),
            Self::ActionsAfterReboot => Call::SetActionsAfterReboot(text()),
            Self::ActionsAfterCrash => Call::SetActionsAfterCrash(text()),
            Self::PvBootloader => Call::SetPvBootloader(text()),
        }
    }

    /// Written on the way there: all but the one that a success changes.
    pub fn is_flipped(&self) -> bool {
        *self != Self::PvBootloader
    }

    pub(super) fn is_written_by_xapi(&self) -> bool {
        matches!(self, Self::Platform(key) if WRITTEN_BY_XAPI.contains(&key.as_str()))
    }
}

/// What a job on this VM will touch, with the way back: the `touched` of its claim.
///
/// `needs_flags`: the pool is 5.6 or 6.0, whose emulator reads absent flags as off. `stays_hvm`: the VM is to boot
/// from its disk as HVM afterwards.
pub fn touch(vm: &VmRecord, needs_flags: bool, stays_hvm: bool) -> BTreeMap<Field, Touched> {
    let mut touched = BTreeMap::new();
    let mut add = |field: Field, written: Option<&str>| {
        let left = (stays_hvm && field == Field::BootParam("order".into())).then(|| DISK_FIRST.to_owned());
        let saved = field.read(vm);
        touched.insert(field, Touched { saved, written: written.map(str::to_owned), left });
    };
    match vm.domain_type {
        Some(_) => add(Field::DomainType, Some("hvm")),
        None => add(Field::HvmBootPolicy, Some(BIOS_ORDER)),
    }
    add(Field::BootParam("order".into()), Some("n"));
    add(Field::BootParam("firmware".into()), Some("bios"));
    // What eliloader would do is the installation; the new system boots through pygrub.
    if vm.pv_bootloader == "eliloader" {
        add(Field::PvBootloader, Some("pygrub"));
    }
    for field in [Field::ActionsAfterShutdown, Field::ActionsAfterReboot, Field::ActionsAfterCrash] {
        add(field, Some("destroy"));
    }
    for key in WRITTEN_BY_XAPI {
        let now = vm.platform.get(key).map(String::as_str);
        add(Field::Platform(key.into()), now);
    }
    for key in EMULATOR_FLAGS.into_iter().filter(|key| needs_flags && !vm.platform.contains_key(*key)) {
        add(Field::Platform(key.into()), Some("true"));
    }
    touched
}

/// What a restore aims at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aim {
    /// Everything as it was saved.
    AsBefore,
    /// After an installation: the same, but for the declared change, eliloader to pygrub.
    Installed,
    /// After an installation with `--stay-hvm`: HVM, booting from the disk; all else as it was saved.
    InstalledHvm,
}

impl Aim {
    /// The value that a successful installation leaves there, where that is not the saved one.
    fn change(self, field: &Field, entry: &Touched) -> Option<String> {
        match (self, field) {
            (Self::Installed, Field::PvBootloader)
            | (Self::InstalledHvm, Field::DomainType | Field::HvmBootPolicy) => entry.written.clone(),
            (Self::InstalledHvm, Field::BootParam(_)) => entry.left.clone(),
            (Self::AsBefore | Self::Installed | Self::InstalledHvm, _) => None,
        }
    }
}

/// `HVM_boot_params:order` of a VM that stays HVM.
const DISK_FIRST: &str = "c";

/// The value that a restore aims at. A saved `unspecified` cannot be written (XenAPI refuses it): it comes back as
/// the type that the saved policy gives, which is PV, since only PV guests are flipped.
pub fn target(field: &Field, touched: &Touched) -> Option<String> {
    match (field, touched.saved.as_deref()) {
        (Field::DomainType, Some("unspecified")) => Some("pv".into()),
        (_, saved) => saved.map(str::to_owned),
    }
}

/// The way back as it stands now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WayBack {
    /// Everything equals its target.
    AtTarget,
    /// This call is next.
    Next(Call),
    /// All that may be put back is; these are a person's.
    Differs(Vec<Difference>),
}

/// The next step of a restore. `force`: an operator said that the saved values win.
pub fn way_back(vm: &VmRecord, touched: &BTreeMap<Field, Touched>, aim: Aim, force: bool) -> WayBack {
    let mut differences = Vec::new();
    for (field, entry) in touched {
        let now = field.read(vm);
        let change = aim.change(field, entry);
        let changes = change.is_some();
        let target = change.or_else(|| target(field, entry));
        // A saved `unspecified` that was never written stays what it is.
        if now == target || (now == entry.saved && !changes) {
            continue;
        }
        let ours = force || field.is_written_by_xapi() || entry.is_ours(now.as_ref()) || now == entry.saved;
        // A platform key that we are replacing is absent for one round.
        let halfway = matches!(field, Field::Platform(_)) && now.is_none() && entry.written.is_some();
        if ours || halfway {
            return WayBack::Next(field.write(vm, target.as_deref()));
        }
        differences.push(Difference {
            field: field.to_string(),
            saved: entry.saved.clone(),
            written: entry.written.clone(),
            now,
        });
    }
    if differences.is_empty() { WayBack::AtTarget } else { WayBack::Differs(differences) }
}

/// Every touched setting is as it was before.
pub fn is_as_before(vm: &VmRecord, touched: &BTreeMap<Field, Touched>) -> bool {
    way_back(vm, touched, Aim::AsBefore, false) == WayBack::AtTarget
}

/// The next write of E4, E5 or E6 among `fields` that does not hold yet; `None`: all hold.
pub fn way_there(
    vm: &VmRecord,
    touched: &BTreeMap<Field, Touched>,
    wanted: impl Fn(&Field) -> bool,
) -> Option<Call> {
    touched
        .iter()
        .filter(|(field, _)| wanted(field) && !field.is_written_by_xapi())
        .find(|(field, entry)| field.read(vm) != entry.written)
        .map(|(field, entry)| field.write(vm, entry.written.as_deref()))
}

/// The first field that is neither as saved nor as written: a person changed it meanwhile.
pub fn stranger_value(vm: &VmRecord, touched: &BTreeMap<Field, Touched>) -> Option<Difference> {
    touched.iter().find_map(|(field, entry)| {
        let now = field.read(vm);
        let known = field.is_written_by_xapi()
            || now == entry.saved
            || entry.is_ours(now.as_ref())
            || now == target(field, entry);
        (!known).then(|| Difference {
            field: field.to_string(),
            saved: entry.saved.clone(),
            written: entry.written.clone(),
            now,
        })
    })
}

/// The `xe` commands that bring a VM back by hand, from its claim alone.
pub fn xe_commands(vm_uuid: &str, touched: &BTreeMap<Field, Touched>) -> Vec<String> {
    let quote = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let mut commands: Vec<String> = touched
        .iter()
        .filter(|(field, entry)| entry.saved != entry.written || field.is_written_by_xapi())
        .map(|(field, entry)| {
            let value = target(field, entry);
            let (name, key) = match field {
                Field::DomainType => ("domain-type", None),
                Field::HvmBootPolicy => ("HVM-boot-policy", None),
                Field::BootParam(key) => ("HVM-boot-params", Some(key)),
                Field::Platform(key) => ("platform", Some(key)),
                Field::ActionsAfterShutdown => ("actions-after-shutdown", None),
                Field::ActionsAfterReboot => ("actions-after-reboot", None),
                Field::ActionsAfterCrash => ("actions-after-crash", None),
                Field::PvBootloader => ("PV-bootloader", None),
            };
            match (key, value) {
                (None, value) => {
                    format!("xe vm-param-set uuid={vm_uuid} {name}={}", quote(&value.unwrap_or_default()))
                }
                (Some(key), Some(value)) => {
                    format!("xe vm-param-set uuid={vm_uuid} {name}:{key}={}", quote(&value))
                }
                (Some(key), None) => {
                    format!("xe vm-param-remove uuid={vm_uuid} param-name={name} param-key={}", quote(key))
                }
            }
        })
        .collect();
    commands.push(format!(
        "xe vm-param-remove uuid={vm_uuid} param-name=other-config param-key={}",
        super::claim::CLAIM_KEY
    ));
    commands
}

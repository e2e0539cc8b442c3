//! VMs as people see them: the boot-related fields, and one sentence on how a VM will boot next. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    provision::claim::{Claim, Found, INSTALLED_KEY},
    xen::records::{PowerState, VmRecord},
};

/// A VM's boot-related fields, under the names that XenAPI gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[allow(non_snake_case)] // the names of the XenAPI, in JSON too
pub struct VmView {
    /// The pool's name in the configuration.
    pub pool: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`.
    pub name: String,
    /// `power_state`.
    pub power_state: String,
    /// guest, template, snapshot or control domain.
    pub kind: String,
    /// `tags`.
    pub tags: Vec<String>,
    /// `domain_type`; absent before 7.5.
    pub domain_type: Option<String>,
    /// `HVM_boot_policy`.
    pub HVM_boot_policy: String,
    /// `HVM_boot_params`.
    pub HVM_boot_params: BTreeMap<String, String>,
    /// `PV_bootloader`.
    pub PV_bootloader: String,
    /// `PV_bootloader_args`.
    pub PV_bootloader_args: String,
    /// `PV_kernel`.
    pub PV_kernel: String,
    /// `PV_ramdisk`.
    pub PV_ramdisk: String,
    /// `PV_args`.
    pub PV_args: String,
    /// `PV_legacy_args`.
    pub PV_legacy_args: String,
    /// `actions_after_shutdown`.
    pub actions_after_shutdown: String,
    /// `actions_after_reboot`.
    pub actions_after_reboot: String,
    /// `actions_after_crash`.
    pub actions_after_crash: String,
    /// What bootflip left there.
    pub claim: Option<ClaimView>,
    /// What the last successful installation left there.
    pub installed: Option<String>,
    /// How it will boot next, in one sentence.
    pub next_boot: String,
}

/// A claim as far as it is anybody's business (the nonce is not).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ClaimView {
    /// `server.name` of the server that made it.
    pub owner: String,
    /// The job.
    pub job: String,
    /// Its attempt.
    pub attempt: u32,
    /// Since when, RFC 3339.
    pub since: String,
    /// What is odd about it: a copy of another VM's, or unreadable.
    pub problem: Option<String>,
    /// The saved settings by field.
    pub saved: BTreeMap<String, Option<String>>,
}

/// A VM for people and programs.
pub fn view(pool: &str, vm: &VmRecord) -> VmView {
    VmView {
        pool: pool.to_owned(),
        uuid: vm.uuid.clone(),
        name: vm.name_label.clone(),
        power_state: vm.power_state.name().to_owned(),
        kind: kind(vm).to_owned(),
        tags: vm.tags.clone(),
        domain_type: vm.domain_type.clone(),
        HVM_boot_policy: vm.hvm_boot_policy.clone(),
        HVM_boot_params: vm.hvm_boot_params.clone(),
        PV_bootloader: vm.pv_bootloader.clone(),
        PV_bootloader_args: vm.pv_bootloader_args.clone(),
        PV_kernel: vm.pv_kernel.clone(),
        PV_ramdisk: vm.pv_ramdisk.clone(),
        PV_args: vm.pv_args.clone(),
        PV_legacy_args: vm.pv_legacy_args.clone(),
        actions_after_shutdown: vm.actions_after_shutdown.clone(),
        actions_after_reboot: vm.actions_after_reboot.clone(),
        actions_after_crash: vm.actions_after_crash.clone(),
        claim: claim_view(vm),
        installed: vm.other_config.get(INSTALLED_KEY).cloned(),
        next_boot: next_boot(vm),
    }
}

/// Guest, template, snapshot or control domain.
pub const fn kind(vm: &VmRecord) -> &'static str {
    if vm.is_control_domain {
        "control domain"
    } else if vm.is_a_snapshot {
        "snapshot"
    } else if vm.is_a_template {
        "template"
    } else {
        "guest"
    }
}

fn claim_view(vm: &VmRecord) -> Option<ClaimView> {
    let shown = |claim: &Claim, problem: Option<String>| ClaimView {
        owner: claim.owner.clone(),
        job: claim.job.clone(),
        attempt: claim.attempt,
        since: claim.since.to_string(),
        problem,
        saved: claim.touched.iter().map(|(field, entry)| (field.to_string(), entry.saved.clone())).collect(),
    };
    match Claim::find(vm) {
        Found::Absent => None,
        Found::Claim(claim) => Some(shown(&claim, None)),
        Found::Stray(claim) => {
            let problem = format!("this VM is a copy of {} and carries its claim along", claim.vm_uuid);
            Some(shown(&claim, Some(problem)))
        }
        Found::Unreadable(why) => Some(ClaimView {
            owner: String::new(),
            job: String::new(),
            attempt: 0,
            since: String::new(),
            problem: Some(format!("it cannot be read: {why}")),
            saved: BTreeMap::new(),
        }),
    }
}

/// One sentence on how a VM will boot at its next start.
pub fn next_boot(vm: &VmRecord) -> String {
    let when = match vm.power_state {
        PowerState::Halted => "At its next start it",
        PowerState::Running | PowerState::Paused => "It has a domain now; at its next start it",
        PowerState::Suspended => "It is suspended and resumes as it was; at its next start it",
    };
    let how = if vm.is_pv() { pv_boot(vm) } else { hvm_boot(vm) };
    let claimed = match Claim::find(vm) {
        Found::Claim(claim) => format!(
            " (bootflip server \"{}\" holds it for job {} and puts its settings back)",
            claim.owner, claim.job
        ),
        Found::Absent | Found::Stray(_) | Found::Unreadable(_) => String::new(),
    };
    format!("{when} {how}{claimed}.")
}

fn pv_boot(vm: &VmRecord) -> String {
    let arguments = match vm.pv_args.as_str() {
        "" => String::new(),
        arguments => format!(", with \"{arguments}\" added to the kernel's arguments"),
    };
    let kind = match vm.domain_type.as_deref() {
        Some("pvh") => "PVH",
        Some("pv_in_pvh") => "PV inside PVH",
        Some(_) | None => "PV",
    };
    match (vm.pv_bootloader.as_str(), vm.pv_kernel.as_str()) {
        ("pygrub", _) => {
            format!("boots as {kind}: pygrub takes the kernel from its first bootable disk{arguments}")
        }
        ("eliloader", _) => format!(
            "boots as {kind} through eliloader, which starts an installation from its install-repository first{arguments}"
        ),
        ("", "") => format!("cannot boot: it is {kind} and has neither a bootloader nor a kernel"),
        ("", kernel) => format!("boots as {kind} with the kernel {kernel} of the control domain{arguments}"),
        (other, _) => format!("boots as {kind} through the bootloader {other}{arguments}"),
    }
}

fn hvm_boot(vm: &VmRecord) -> String {
    let order = vm.hvm_boot_params.get("order").map_or("", String::as_str);
    let devices: Vec<&str> = order
        .chars()
        .map(|letter| match letter {
            'c' => "disk",
            'd' => "CD",
            'n' => "network",
            _ => "an unknown device",
        })
        .collect();
    if devices.is_empty() {
        return "boots as HVM in the firmware's own order (disk, then CD)".to_owned();
    }
    format!("boots as HVM from {}", devices.join(", then "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        sim::pool::{Pool, Release, VmSpec},
        xen::{Method, Value, records::Record},
    };

    fn vm(change: impl FnOnce(&mut VmRecord)) -> VmRecord {
        let mut pool = Pool::new(1, Release::named("8.2").expect("a release"));
        let uuid = pool.add_vm(VmSpec { pv_args: String::new(), ..VmSpec::default() });
        let now = crate::clock::Timestamp::from_millis(1);
        let reference = pool.call_trusted(now, Method::VmGetByUuid, &[Value::string(uuid)]).unwrap();
        let record = pool.call_trusted(now, Method::VmGetRecord, &[reference]).unwrap();
        let mut vm = VmRecord::decode("r", &record).unwrap();
        change(&mut vm);
        vm
    }

    fn flipped(order: &str) -> VmRecord {
        vm(|vm| {
            vm.domain_type = Some("hvm".into());
            vm.hvm_boot_params.insert("order".into(), order.into());
        })
    }

    #[test]
    fn sentence_says_how_a_vm_boots_next() {
        let cases = [
            (
                vm(|_| {}),
                "At its next start it boots as PV: pygrub takes the kernel from its first bootable disk.",
            ),
            (
                vm(|vm| vm.pv_args = "console=hvc0".into()),
                "At its next start it boots as PV: pygrub takes the kernel from its first bootable disk, with \"console=hvc0\" added to the kernel's arguments.",
            ),
            (
                vm(|vm| vm.pv_bootloader = "eliloader".into()),
                "At its next start it boots as PV through eliloader, which starts an installation from its install-repository first.",
            ),
            (
                vm(|vm| vm.pv_bootloader.clear()),
                "At its next start it cannot boot: it is PV and has neither a bootloader nor a kernel.",
            ),
            (
                vm(|vm| vm.domain_type = Some("pvh".into())),
                "At its next start it boots as PVH: pygrub takes the kernel from its first bootable disk.",
            ),
            (flipped("n"), "At its next start it boots as HVM from network."),
            (flipped("dc"), "At its next start it boots as HVM from CD, then disk."),
            (
                vm(|vm| {
                    vm.domain_type = None;
                    vm.hvm_boot_policy = "BIOS order".into();
                    vm.power_state = PowerState::Running;
                    vm.hvm_boot_params.clear();
                }),
                "It has a domain now; at its next start it boots as HVM in the firmware's own order (disk, then CD).",
            ),
        ];
        for (vm, sentence) in cases {
            assert_eq!(next_boot(&vm), sentence);
        }
    }

    #[test]
    fn an_unreadable_claim_is_shown_as_such() {
        let vm = vm(|vm| {
            vm.other_config.insert("bootflip:claim".into(), "{".into());
        });
        assert!(view("p", &vm).claim.unwrap().problem.unwrap().contains("cannot be read"));
    }
}

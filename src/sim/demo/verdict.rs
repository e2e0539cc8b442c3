//! The judge of a demo: reads the pool model's records and its call log, never the server. Pure.
//!
//! It shares nothing with the code that flips and restores; only the record as it was before says what is right.

use std::collections::BTreeMap;

use super::plan::{Deed, DemoPlan, NOTE_KEY};
use crate::{
    sim::pool::{BootMode, Caller, LoggedCall, VmTruth},
    xen::Method,
};

/// What the VM's records say, and what the guest in its domain saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Every boot-related field is as it was before.
    pub restored: bool,
    /// The proof that the new system runs as PV.
    pub evidence: Evidence,
    /// What is wrong, in words; empty: nothing.
    pub complaints: Vec<String>,
}

/// Proof that the newly installed system runs as PV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The living domain is PV, and the system in it had its `booted` report taken.
    Booted,
    /// The living domain is PV; nothing came from within it.
    Weak,
    /// No living PV domain.
    None,
}

impl Evidence {
    /// The word in the document.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Weak => "weak",
            Self::None => "none",
        }
    }
}

/// What is known of one VM when the demo ends.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// Its index in the plan.
    pub index: usize,
    /// Before the server was started.
    pub before: &'a VmTruth,
    /// Now.
    pub after: &'a VmTruth,
    /// The domain whose system had its `booted` report taken.
    pub booted_domid: Option<u32>,
    /// The calls of the whole run.
    pub log: &'a [LoggedCall],
}

/// Judges one VM that should have been installed.
pub fn judge(plan: &DemoPlan, facts: Facts<'_>) -> Verdict {
    let mut complaints = differences(plan, facts, plan.stays_hvm);
    let restored = complaints.is_empty();
    if facts.after.claim.is_some() {
        complaints.push("a claim is left".to_owned());
    }
    let evidence = evidence(plan, facts);
    if evidence != Evidence::Booted {
        complaints.push(format!("evidence is {}", evidence.label()));
    }
    let attempts = plan.vms.get(facts.index).map_or(1, super::plan::VmPlan::expected_attempts);
    let starts =
        (facts.after.hvm_starts - facts.before.hvm_starts, facts.after.pv_starts - facts.before.pv_starts);
    let expected = if plan.stays_hvm { (attempts + 1, 0) } else { (attempts, 1) };
    if starts != expected {
        complaints.push(format!(
            "started {} times as HVM and {} times as PV in {attempts} attempts",
            starts.0, starts.1
        ));
    }
    complaints.extend(foreign_calls(facts));
    Verdict { restored, evidence, complaints }
}

/// Judges one VM whose installation was broken on purpose: it must be as if nothing had been.
pub fn judge_undone(plan: &DemoPlan, facts: Facts<'_>) -> Verdict {
    let mut complaints = differences(plan, facts, false);
    let restored = complaints.is_empty();
    if facts.after.claim.is_some() {
        complaints.push("a claim is left".to_owned());
    }
    if facts.after.power_state != facts.before.power_state {
        complaints
            .push(format!("power_state is {}, was {}", facts.after.power_state, facts.before.power_state));
    }
    Verdict { restored, evidence: evidence(plan, facts), complaints }
}

/// Whether the VM's record is what it was before, whatever runs: the state in which a failed attempt leaves it.
pub fn is_undone(plan: &DemoPlan, facts: Facts<'_>) -> bool {
    facts.after.claim.is_none()
        && facts.after.power_state == "Halted"
        && differences(plan, facts, false).is_empty()
}

fn evidence(plan: &DemoPlan, facts: Facts<'_>) -> Evidence {
    let as_asked = |mode: &BootMode| match mode {
        BootMode::Pv => !plan.stays_hvm,
        BootMode::Hvm { order } => plan.stays_hvm && order == "c",
    };
    match &facts.after.domain {
        Some(domain) if as_asked(&domain.mode) && !domain.paused && facts.after.power_state == "Running" => {
            if facts.booted_domid == Some(domain.domid) {
                Evidence::Booted
            } else {
                Evidence::Weak
            }
        }
        Some(_) | None => Evidence::None,
    }
}

fn differences(plan: &DemoPlan, facts: Facts<'_>, stays_hvm: bool) -> Vec<String> {
    let (before, after) = (facts.before, facts.after);
    let mut expected_config = own_keys_removed(&before.other_config);
    let found_config = own_keys_removed(&after.other_config);
    let wrote_note =
        |hand: &&super::plan::Hand| hand.vm == facts.index && hand.deed == Deed::PersonWritesNote;
    if let (Some(_), Some(note)) = (plan.hands.iter().find(wrote_note), found_config.get(NOTE_KEY)) {
        expected_config.insert(NOTE_KEY.to_owned(), note.clone());
    }
    let shown = |value: &dyn std::fmt::Debug| format!("{value:?}");
    let domain_type =
        before.domain_type.as_deref().map(|kind| match (kind, before.hvm_boot_policy.as_str()) {
            ("unspecified", "") => "pv", // a saved `unspecified` comes back as what the saved policy gives
            ("unspecified", _) => "hvm",
            (kind, _) => kind,
        });
    let (mut domain_type, mut policy, mut params) =
        (domain_type, before.hvm_boot_policy.as_str(), before.hvm_boot_params.clone());
    if stays_hvm {
        domain_type = domain_type.map(|_| "hvm");
        policy = "BIOS order";
        params.insert("order".to_owned(), "c".to_owned());
    }
    // What xapi itself writes at every HVM start, the last one too.
    let by_xapi = |key: &str| stays_hvm && matches!(key, "device-model" | "timeoffset");
    let platform = |platform: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        platform.iter().filter(|(key, _)| !by_xapi(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    let bootloader = match before.pv_bootloader.as_str() {
        "eliloader" if !stays_hvm => "pygrub", // the declared change of an installation
        other => other,
    };
    [
        ("domain_type", shown(&domain_type), shown(&after.domain_type.as_deref())),
        ("HVM_boot_policy", shown(&policy), shown(&after.hvm_boot_policy.as_str())),
        ("HVM_boot_params", shown(&params), shown(&after.hvm_boot_params)),
        ("PV_bootloader", shown(&bootloader), shown(&after.pv_bootloader.as_str())),
        ("PV_args", shown(&before.pv_args), shown(&after.pv_args)),
        ("actions_after", shown(&before.actions_after), shown(&after.actions_after)),
        ("platform", shown(&platform(&before.platform)), shown(&platform(&after.platform))),
        ("other_config", shown(&expected_config), shown(&found_config)),
    ]
    .into_iter()
    .filter(|(_, expected, found)| expected != found)
    .map(|(field, expected, found)| format!("{field} is {found}, not {expected}"))
    .collect()
}

/// other_config without the keys that are bootflip's own (the claim is judged apart), or that xapi itself writes when
/// a VM halts (5.6 and 6.0).
fn own_keys_removed(config: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    config
        .iter()
        .filter(|(key, _)| !key.starts_with("bootflip:") && !key.starts_with("last_shutdown_"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Calls on this VM that bootflip must never make.
fn foreign_calls(facts: Facts<'_>) -> Vec<String> {
    let known = |method: &str| {
        let method = method.strip_prefix("Async.").unwrap_or(method);
        // An installation neither makes VMs nor destroys them.
        Method::ALL.iter().any(|known| known.name() == method && !known.makes_vms())
    };
    let ours = facts.log.iter().filter(|call| call.caller == Caller::Client);
    let of_this_vm = ours.filter(|call| call.vm.as_deref() == Some(facts.after.uuid.as_str()));
    of_this_vm.filter(|call| !known(&call.method)).map(|call| format!("{} was called", call.method)).collect()
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;

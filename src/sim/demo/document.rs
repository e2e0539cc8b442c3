//! What the demo says at its end: one JSON document, or a table. Pure.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

/// The document of `--json`.
#[derive(Debug, Clone, Serialize)]
pub struct Document {
    /// Every VM is as it should be, and every planned fault fired.
    pub ok: bool,
    /// The seed.
    pub seed: u64,
    /// How many calls the pool got from clients.
    pub xenapi_calls: usize,
    /// How often the server was killed.
    pub server_kills: u32,
    /// What was to go wrong, and what did.
    pub faults: Vec<FaultCount>,
    /// One entry a VM, in the order of their names in the plan.
    pub vms: Vec<VmLine>,
}

/// One kind of fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FaultCount {
    /// Its name.
    pub name: String,
    /// How often it was to happen.
    pub planned: u32,
    /// How often it did.
    pub fired: u32,
}

/// One VM.
#[derive(Debug, Clone, Serialize)]
pub struct VmLine {
    /// `name_label`.
    pub name: String,
    /// `uuid`.
    pub uuid: String,
    /// The job's state, as the server tells it; empty: no job.
    pub state: String,
    /// The job's reason, where it has one.
    pub reason: Option<String>,
    /// Every boot-related field is as before.
    pub restored: bool,
    /// booted, weak or none.
    pub evidence: String,
    /// `power_state`.
    pub power_state: String,
    /// `domain_type`; null where the release has none.
    pub domain_type: Option<String>,
    /// `HVM_boot_policy`.
    pub hvm_boot_policy: String,
    /// `HVM_boot_params`.
    pub hvm_boot_params: BTreeMap<String, String>,
    /// `PV_bootloader`.
    pub pv_bootloader: String,
    /// The claim that is left; null: none.
    pub claim: Option<String>,
    /// The job's attempts, as the server tells them.
    pub attempts: u32,
    /// Domains built during the demo.
    pub starts: Starts,
    /// The job's states and how long each took.
    pub states: Vec<Timed>,
    /// The installer's stages and when each was reported, counted from the start.
    pub stages: Vec<Timed>,
    /// What is wrong; not in the document, which shows the facts themselves.
    #[serde(skip)]
    pub complaints: Vec<String>,
    /// The profile, for the table.
    #[serde(skip)]
    pub profile: String,
}

/// Domains built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Starts {
    /// As HVM.
    pub hvm: u32,
    /// As PV.
    pub pv: u32,
}

/// A name and its seconds.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct Timed {
    /// State or stage.
    pub name: String,
    /// Seconds.
    pub seconds: f64,
}

impl Document {
    /// The table for people.
    pub fn table(&self) -> String {
        let width = self.vms.iter().map(|vm| vm.name.len()).max().unwrap_or(2).max(2);
        let mut text = format!(
            "{:width$}  {:8}  {:10}  {:44}  {:9}  {:8}  VERDICT\n",
            "VM", "PROFILE", "STATE", "STATES (SECONDS)", "BOOTS", "EVIDENCE"
        );
        for vm in &self.vms {
            let states: Vec<String> =
                vm.states.iter().map(|state| short(&state.name, state.seconds)).collect();
            let _ = writeln!(
                text,
                "{:width$}  {:8}  {:10}  {:44}  {:9}  {:8}  {}",
                vm.name,
                vm.profile,
                vm.state,
                states.join(" "),
                format!("{}/{}", vm.domain_type.as_deref().unwrap_or("-"), vm.pv_bootloader),
                vm.evidence,
                if vm.complaints.is_empty() { "restored".to_owned() } else { vm.complaints.join("; ") },
            );
        }
        for fault in &self.faults {
            let _ = writeln!(text, "fault {}: {} of {} fired", fault.name, fault.fired, fault.planned);
        }
        let good = self.vms.iter().filter(|vm| vm.complaints.is_empty()).count();
        let _ = writeln!(
            text,
            "{}: {good} of {} VMs installed, restored and running as PV; {} XenAPI calls, server killed {} times, seed {}",
            if self.ok { "ok" } else { "NOT OK" },
            self.vms.len(),
            self.xenapi_calls,
            self.server_kills,
            self.seed
        );
        text
    }
}

/// A state's first three letters and its seconds.
fn short(name: &str, seconds: f64) -> String {
    format!("{}:{seconds:.1}", name.chars().take(3).collect::<String>())
}

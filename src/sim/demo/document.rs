//! What the demo says at its end: one JSON document, or tables of at most 110 columns. Pure.

use std::{collections::BTreeMap, fmt::Write};

use serde::Serialize;

use super::options::Break;

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
    /// One entry a VM, in the plan's order.
    pub vms: Vec<VmLine>,
    /// Lines of real consoles that tell how the guests ran; only where there is a real Xen.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proof: Vec<String>,
    /// What was broken on purpose; for the table.
    #[serde(skip)]
    pub broken: Option<Break>,
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
    /// The job's state, as the server tells it; null: no job.
    pub state: Option<String>,
    /// The job's reason, or why none was made.
    pub reason: Option<String>,
    /// Every boot-related field is as before.
    pub restored: bool,
    /// booted, weak or none; on a real Xen `pv` where the booted kernel says itself that it runs as PV.
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

/// Names of states that have a column in the table of times, in their order.
const COLUMNS: [&str; 9] = [
    "Queued",
    "Preparing",
    "Flipping",
    "Booting",
    "Installing",
    "Restoring",
    "Starting",
    "Verifying",
    "Undoing",
];

impl Document {
    /// Every VM was refused before anything was changed, and nothing was broken on purpose.
    pub fn is_refused(&self) -> bool {
        let refused =
            |vm: &VmLine| vm.state.is_none() && vm.reason.is_some() && vm.starts.hvm + vm.starts.pv == 0;
        self.broken.is_none() && !self.vms.is_empty() && self.vms.iter().all(refused)
    }

    /// The tables for people: how each VM is, how long each attempt took, what was to go wrong, and the sum of it.
    pub fn table(&self) -> String {
        let mut text = self.ends();
        if self.vms.iter().any(|vm| !vm.states.is_empty()) {
            text.push('\n');
            text.push_str(&self.times());
        }
        if !self.faults.is_empty() {
            text.push('\n');
            text.push_str(&self.troubles());
        }
        for line in &self.proof {
            let _ = write!(text, "\n  {line}");
        }
        if !self.proof.is_empty() {
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.sum());
        text
    }

    /// How each VM is at the end.
    fn ends(&self) -> String {
        let mut rows = vec![
            ["VM", "PROFILE", "STATE", "ATTEMPTS", "FINAL BOOT SETTINGS", "EVIDENCE", "VERDICT"]
                .map(str::to_owned)
                .to_vec(),
        ];
        for vm in &self.vms {
            rows.push(vec![
                vm.name.clone(),
                vm.profile.clone(),
                vm.state.clone().unwrap_or_else(|| "no job".to_owned()),
                vm.attempts.to_string(),
                vm.boot_settings(),
                vm.evidence.clone(),
                self.verdict(vm).to_owned(),
            ]);
        }
        let mut lines = aligned(&rows, false);
        let head = lines.remove(0);
        let mut text = head + "\n";
        for (line, vm) in lines.iter().zip(&self.vms) {
            let _ = writeln!(text, "{line}");
            if let Some(reason) = &vm.reason {
                let _ = writeln!(text, "    reason: {reason}");
            }
            for complaint in vm.complaints.iter().filter(|_| !self.is_refused()) {
                let _ = writeln!(text, "    {complaint}");
            }
        }
        text
    }

    fn verdict(&self, vm: &VmLine) -> &'static str {
        match (vm.complaints.is_empty(), vm.restored, self.broken) {
            (true, _, None) => "restored",
            (true, _, Some(_)) => "undone",
            (false, true, _) if self.is_refused() => "refused",
            (false, true, _) => "BAD",
            (false, false, _) => "NOT RESTORED",
        }
    }

    /// The seconds of each attempt in each state, a row an attempt.
    fn times(&self) -> String {
        let undone = self.vms.iter().flat_map(|vm| &vm.states).any(|state| state.name == "Undoing");
        let columns = COLUMNS.get(..COLUMNS.len() - usize::from(!undone)).unwrap_or_default();
        let mut rows = vec![["SECONDS IN"].iter().chain(columns).map(|word| (*word).to_owned()).collect()];
        for vm in &self.vms {
            let attempts = attempts(&vm.states);
            for (nth, states) in attempts.iter().enumerate() {
                let name =
                    if attempts.len() > 1 { format!("{} #{}", vm.name, nth + 1) } else { vm.name.clone() };
                let seconds = columns.iter().map(|column| {
                    let mut found = states.iter().filter(|state| state.name == *column).peekable();
                    match found.peek() {
                        Some(_) => format!("{:.1}", found.map(|state| state.seconds).sum::<f64>()),
                        None => "-".to_owned(),
                    }
                });
                rows.push([name].into_iter().chain(seconds).collect());
            }
        }
        aligned(&rows, true).join("\n") + "\n"
    }

    fn troubles(&self) -> String {
        let mut rows = vec![["FAULT", "PLANNED", "FIRED"].map(str::to_owned).to_vec()];
        rows.extend(
            self.faults
                .iter()
                .map(|fault| vec![fault.name.clone(), fault.planned.to_string(), fault.fired.to_string()]),
        );
        aligned(&rows, true).join("\n") + "\n"
    }

    fn sum(&self) -> String {
        let good = self.vms.iter().filter(|vm| vm.complaints.is_empty()).count();
        let stay_hvm = self.vms.iter().any(|vm| vm.hvm_boot_policy == "BIOS order");
        let what = match self.broken {
            None if stay_hvm => "installed, and running as HVM from their disks",
            None => "installed, restored and running as PV",
            Some(_) => "as they were before, for the profile is broken on purpose",
        };
        let way_out = "refused, with nothing changed: this release cannot start PV guests; \
                       --stay-hvm installs them and leaves them HVM\n";
        if self.is_refused() {
            return way_out.to_owned();
        }
        format!(
            "{}: {good} of {} VMs are {what}; {} XenAPI calls, server killed {} times, seed {}\n",
            if self.ok { "ok" } else { "NOT OK" },
            self.vms.len(),
            self.xenapi_calls,
            self.server_kills,
            self.seed
        )
    }
}

impl VmLine {
    /// Such as `pv by pygrub, HVM policy "", order -`.
    fn boot_settings(&self) -> String {
        if self.hvm_boot_policy == "BIOS order" {
            let order = self.hvm_boot_params.get("order").map_or("-", String::as_str);
            return format!("hvm, HVM policy \"BIOS order\", order {order}");
        }
        format!(
            "{} by {}, HVM policy \"{}\", order {}",
            self.domain_type.as_deref().unwrap_or("-"),
            self.pv_bootloader,
            self.hvm_boot_policy,
            self.hvm_boot_params.get("order").map_or("-", String::as_str),
        )
    }
}

/// The states of each attempt: one ends with the state in which a job can be tried again.
fn attempts(states: &[Timed]) -> Vec<&[Timed]> {
    let is_end = |state: &Timed| matches!(state.name.as_str(), "Failed" | "Cancelled");
    states.split_inclusive(is_end).collect()
}

/// Rows with columns as wide as their widest cell; the first column to the left, the others to the right when
/// `numbers`.
fn aligned(rows: &[Vec<String>], numbers: bool) -> Vec<String> {
    let columns = rows.first().map_or(0, Vec::len);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
                if numbers && column > 0 { format!("{cell:>width$}") } else { format!("{cell:width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;

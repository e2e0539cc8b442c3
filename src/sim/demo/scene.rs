//! The pool, its VMs as they were before, and their guests: what verdicts are read from.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    document::{Document, FaultCount, Starts, VmLine},
    guests::Guests,
    jobs::JobView,
    layout,
    options::DemoOptions,
    plan::{DemoPlan, VmPlan},
    verdict::{Facts, is_undone, judge, judge_undone},
};
use crate::sim::{
    pool::{LoggedCall, VmTruth},
    server::SimServer,
};

/// What the demo is played on.
#[derive(Debug)]
pub struct Scene {
    /// The plan.
    pub plan: DemoPlan,
    /// The VMs' uuids, in the plan's order.
    pub uuids: Vec<String>,
    /// The VMs before the server was started, in the plan's order.
    pub before: Vec<VmTruth>,
    /// The pool.
    pub sim: SimServer,
    /// The guests.
    pub guests: Arc<Guests>,
}

/// What the demo itself counted.
#[derive(Debug, Default)]
pub struct Counts {
    /// Deeds done, by name.
    pub fired: BTreeMap<&'static str, u32>,
    /// SIGKILLs to the server.
    pub kills: u32,
    /// A command of the demo failed where nothing was to fail, or it was not over in time.
    pub command_failed: bool,
    /// Why `deploy` made no job, by VM uuid.
    pub refusals: HashMap<String, String>,
}

impl Scene {
    /// The VM's record is as before and nothing runs.
    pub fn is_undone(&self, index: usize) -> bool {
        let after = self.after(index);
        after.zip(self.before.get(index)).is_some_and(|(after, before)| {
            is_undone(&self.plan, Facts { index, before, after: &after, booted_domid: None, log: &[] })
        })
    }

    /// The end of the demo. `jobs` by VM uuid.
    pub fn document(
        &self,
        options: &DemoOptions,
        jobs: &HashMap<String, JobView>,
        counts: &Counts,
    ) -> Document {
        let (log, calls) = self.sim.pool.with(|pool, _| (pool.log().to_vec(), pool.client_calls()));
        let lines = (0..self.uuids.len())
            .filter_map(|index| self.line(index, options, (jobs, &counts.refusals), &log));
        let vms: Vec<VmLine> = lines.collect();
        let faults = self.faults(counts);
        let all_fired = faults.iter().all(|fault| fault.fired >= fault.planned);
        let all_well = vms.len() == self.uuids.len() && vms.iter().all(|vm| vm.complaints.is_empty());
        Document {
            ok: options.broken.is_none() && all_fired && all_well && !counts.command_failed,
            seed: options.seed,
            xenapi_calls: calls,
            server_kills: counts.kills,
            faults,
            vms,
            proof: Vec::new(),
            broken: options.broken,
        }
    }

    fn after(&self, index: usize) -> Option<VmTruth> {
        let uuid = self.uuids.get(index)?;
        self.sim.pool.with(|pool, _| pool.truth(uuid))
    }

    fn line(
        &self,
        index: usize,
        options: &DemoOptions,
        (jobs, refusals): (&HashMap<String, JobView>, &HashMap<String, String>),
        log: &[LoggedCall],
    ) -> Option<VmLine> {
        let (before, after) = (self.before.get(index)?, self.after(index)?);
        let facts =
            Facts { index, before, after: &after, booted_domid: self.guests.booted_domid(index), log };
        let verdict = match options.broken {
            None => judge(&self.plan, facts),
            Some(_) => judge_undone(&self.plan, facts),
        };
        let job = jobs.get(&after.uuid);
        let starts =
            Starts { hvm: after.hvm_starts - before.hvm_starts, pv: after.pv_starts - before.pv_starts };
        Some(VmLine {
            state: job.map(|job| job.state.clone()),
            reason: job.map_or_else(|| refusals.get(&after.uuid).cloned(), |job| job.reason.clone()),
            restored: verdict.restored,
            evidence: verdict.evidence.label().to_owned(),
            attempts: job.map_or(0, |job| job.attempt),
            starts,
            states: job.map(|job| job.states.clone()).unwrap_or_default(),
            stages: job.map(|job| job.stages.clone()).unwrap_or_default(),
            complaints: verdict.complaints,
            profile: layout::PROFILE.to_owned(),
            name: after.name,
            uuid: after.uuid,
            power_state: after.power_state,
            domain_type: after.domain_type,
            hvm_boot_policy: after.hvm_boot_policy,
            hvm_boot_params: after.hvm_boot_params,
            pv_bootloader: after.pv_bootloader,
            claim: after.claim,
        })
    }

    /// Calls' faults from the pool's tally, deeds from the demo's own count, mishaps from the pool's starts: an
    /// attempt behind a planned mishap happened when the VM was built as HVM once more.
    fn faults(&self, counts: &Counts) -> Vec<FaultCount> {
        let tally = self.sim.tally();
        let built = |vm: usize| {
            self.after(vm).zip(self.before.get(vm)).map_or(0, |(a, b)| a.hvm_starts - b.hvm_starts)
        };
        let count = |name: &str| {
            let calls: u32 = tally.iter().filter(|tally| tally.name == name).map(|tally| tally.fired).sum();
            let deeds = counts.fired.get(name).copied().unwrap_or_default();
            let mishaps = self.plan.mishaps.iter().filter(|(mishap, vm)| {
                let expected = self.plan.vms.get(*vm).map_or(1, VmPlan::expected_attempts);
                *mishap == name && built(*vm) >= expected
            });
            calls + deeds + u32::try_from(mishaps.count()).unwrap_or_default()
        };
        let planned = self.plan.planned();
        let counted = planned.iter().map(|(name, planned)| FaultCount {
            name: (*name).to_owned(),
            planned: *planned,
            fired: count(name),
        });
        counted.collect()
    }
}

//! Reading what E0 judges.

use std::{collections::BTreeMap, sync::Arc};

use super::{Executor, OperationError, PoolAccess};
use crate::{
    provision::{
        capacity::Wish,
        job::{Job, NewJob},
        preflight::{Cleared, Facts, hosts_among, hosts_to_ask, hvm_memory, judge, live_hosts},
        reason::Reason,
    },
    xen::{
        CallError,
        api::Api,
        records::{HostRecord, PowerState, VmRecord, is_null},
    },
};

/// What `deploy --plan` shows of one VM.
#[derive(Debug, Clone)]
pub struct Preview {
    /// E0's verdict.
    pub verdict: Result<Cleared, (Reason, String)>,
    /// Disks, in words.
    pub disks: Vec<String>,
    /// Bytes that it takes of a host as HVM.
    pub memory: u64,
    /// What it asks of its pool.
    pub wish: Wish,
    /// The names of the hosts that can run it.
    pub hosts: Vec<String>,
}

impl Executor {
    /// E0 for a job: the facts, the rules, and a look at everything that would be served.
    pub(super) async fn clear(
        &self,
        job: &Job,
        nonce: &str,
    ) -> Result<Result<Result<Cleared, (Reason, String)>, CallError>, OperationError> {
        let pool = self.pool(job)?;
        Ok(self.gather(job, &pool.api).await.map(|facts| self.verdict(job, pool, &facts, nonce)))
    }

    fn verdict(
        &self,
        job: &Job,
        pool: &PoolAccess,
        facts: &Facts,
        nonce: &str,
    ) -> Result<Cleared, (Reason, String)> {
        let cleared = judge(job, facts, &self.rules(pool), nonce, self.parts.clock.now())?;
        self.servable(job, cleared)
    }

    fn servable(&self, job: &Job, cleared: Cleared) -> Result<Cleared, (Reason, String)> {
        if job.profile.boot.is_none() {
            return Ok(cleared);
        }
        let Some(mac) = cleared.mac else { return Err((Reason::NoVif, "no NIC to boot from".into())) };
        let mut preview = job.clone();
        preview.disk.clone_from(&cleared.disk);
        preview.xen = cleared.xen;
        match self.parts.serving.problem(&self.armed(&preview, mac)) {
            Some(problem) => Err((Reason::NotServable, problem)),
            None => Ok(cleared),
        }
    }

    /// What a job would meet, with nothing stored and nothing changed. `api`: the pool's calls of whoever asks; a look may
    /// be repeated behind a new login, which a job's calls are not.
    ///
    /// # Errors
    /// The pool is away, or not in the configuration.
    pub async fn preview(
        &self,
        new: NewJob,
        api: &Api,
    ) -> Result<Result<Preview, CallError>, OperationError> {
        let job = Job::new(new, self.parts.clock.now());
        let pool = self.pool(&job)?;
        let facts = match self.gather(&job, api).await {
            Ok(facts) => facts,
            Err(error) => return Ok(Err(error)),
        };
        let disks = facts
            .vbds
            .iter()
            .filter(|(vbd, _)| vbd.kind == "Disk")
            .map(|(vbd, vdi)| crate::provision::preflight::describe_disk(vbd, vdi.as_ref()))
            .collect();
        let verdict = self.verdict(&job, pool, &facts, "preview");
        let (own, hosts) =
            (facts.vm.memory_dynamic_min, hosts_among(&facts.vm, &facts.hosts, &facts.possible_hosts));
        let memory = hvm_memory(&facts.vm, own);
        // What runs has its memory already, and gives it back when it is shut down.
        let running = facts.vm.power_state == PowerState::Running;
        let more = if running { memory.saturating_sub(own) } else { memory };
        let named = facts.hosts.iter().filter(|host| hosts.contains(&host.reference));
        let names = named.map(|host| host.name_label.clone()).collect();
        Ok(Ok(Preview { verdict, disks, memory, wish: Wish { memory: more, hosts }, hosts: names }))
    }

    /// Where a job's VM may run, before it is let in. A pool that does not answer tells nothing, and E0 waits for it.
    pub(super) async fn look_for_places(&self, job: &Job) -> Result<(), OperationError> {
        let api = &self.pool(job)?.api;
        let read = async {
            let reference = api.vm_by_uuid(&job.vm_uuid).await?;
            let vm = api.vm_record(&reference).await?;
            let (hosts, possible) = (api.hosts().await?, api.possible_hosts(&reference).await?);
            Ok::<_, CallError>((live_hosts(&hosts), hosts_among(&vm, &hosts, &possible)))
        };
        if let Ok((all, possible)) = read.await {
            self.memory().places.learn(&job.pool, all, &job.vm_uuid, possible);
        }
        Ok(())
    }

    async fn gather(&self, job: &Job, api: &Api) -> Result<Facts, CallError> {
        let reference = api.vm_by_uuid(&job.vm_uuid).await?;
        let vm = api.vm_record(&reference).await?;
        let metrics = api.vm_metrics(&vm.metrics).await?;
        let mut vbds = Vec::with_capacity(vm.vbds.len());
        for vbd in &vm.vbds {
            let vbd = api.vbd(vbd).await?;
            let vdi = if is_null(&vbd.vdi) { None } else { Some(api.vdi(&vbd.vdi).await?) };
            vbds.push((vbd, vdi));
        }
        let read = async { api.vifs().await.map(Arc::new) };
        let vifs = match self.vifs.get(&job.pool) {
            Some(shared) => shared.read(read).await?,
            None => read.await?,
        };
        let pool = api.pools().await?.into_iter().next().ok_or_else(|| CallError::Protocol {
            method: "pool.get_all_records",
            detail: "the pool has no pool record".into(),
        })?;
        let hosts = api.hosts().await?;
        let host_metrics = api.host_metrics().await?;
        let possible_hosts = api.possible_hosts(&reference).await?;
        let free_memory = free_memory(api, &vm, &hosts, &possible_hosts).await?;
        let facts = Facts { vm, metrics, vbds, vifs, pool, hosts, host_metrics, possible_hosts, free_memory };
        let all = live_hosts(&facts.hosts);
        let possible = hosts_among(&facts.vm, &facts.hosts, &facts.possible_hosts);
        self.memory().places.learn(&job.pool, all, &job.vm_uuid, possible);
        Ok(facts)
    }
}

/// Asks hosts for their free memory until one has room for the VM as HVM.
async fn free_memory(
    api: &Api,
    vm: &VmRecord,
    hosts: &[HostRecord],
    possible_hosts: &[String],
) -> Result<BTreeMap<String, u64>, CallError> {
    let needed = hvm_memory(vm, vm.memory_dynamic_min);
    let mut all = BTreeMap::new();
    for host in hosts_to_ask(vm, hosts, possible_hosts) {
        match api.free_memory(&host.reference).await {
            Ok(free) => {
                all.insert(host.reference.clone(), free);
                if free >= needed {
                    break;
                }
            }
            // The host is away, or tells no figure: then nothing speaks against it.
            Err(error) if error.failure().is_some() => break,
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

//! Looking at a VM, and making the calls that plans name.

use std::net::{IpAddr, SocketAddr};

use futures_util::future::join_all;

use super::{Executor, OperationError};
use crate::{
    clock::Timestamp,
    config::EvidenceKind,
    provision::{
        job::{Effect, Job},
        plan::{Call, CallResult, Observed, TaskState, Trail},
    },
    store::leases,
    xen::{
        CallError, Failure,
        api::Api,
        records::{PowerState, TaskStatus, is_null},
    },
};

impl Executor {
    /// The VM as it is now, found by uuid; a reference of an older database is looked up anew once.
    pub(super) async fn observe(
        &self,
        job: &Job,
        effect: Effect,
        trail: &Trail,
    ) -> Result<Observed, CallError> {
        let Ok(pool) = self.pool(job) else {
            return Err(CallError::Unreachable {
                detail: format!("pool {} is not in the configuration", job.pool),
            });
        };
        let api = pool.calls(job.state);
        let mut vm = match self.reference(api, &job.vm_uuid).await {
            Ok(reference) => match api.vm_record(&reference).await {
                Err(error) if error.is("HANDLE_INVALID") => {
                    self.memory().references.remove(&job.vm_uuid);
                    let reference = self.reference(api, &job.vm_uuid).await?;
                    api.vm_record(&reference).await?
                }
                other => other?,
            },
            Err(error) => return Err(error),
        };
        let metrics = api.vm_metrics(&vm.metrics).await?;
        let hvm = job.start.as_ref().filter(|_| effect == Effect::Start);
        let pv = job.pv_start.as_ref().filter(|_| effect == Effect::StartPv);
        let start = hvm.or(pv);
        // A start whose outcome nobody saw must have ended before the VM is put back.
        let unseen = [&job.start, &job.pv_start].into_iter().flatten().rfind(|start| start.seen.is_none());
        let unseen = unseen.filter(|_| effect == Effect::Disarm && trail.calls.is_empty());
        // A start between the two reads would look like one that has halted again.
        if vm.power_state == PowerState::Halted
            && start.is_some_and(|start| start.before != metrics.start_time)
        {
            vm = api.vm_record(&vm.reference).await?;
        }
        let known = start.or(unseen).and_then(|start| start.task.clone());
        let task = match trail.task().map(str::to_owned).or(known) {
            Some(task) => Some(task_state(api, &task).await?),
            None => None,
        };
        let port = match job.profile.evidence {
            EvidenceKind::Tcp(port) => Some(port.get()),
            EvidenceKind::Report | EvidenceKind::Lease | EvidenceKind::Agent | EvidenceKind::None => None,
        };
        let by_agent = port.is_some() || job.profile.evidence == EvidenceKind::Agent;
        let wants_agent = effect == Effect::Evidence && by_agent;
        let guest_addresses = if wants_agent && !is_null(&vm.guest_metrics) {
            api.guest_networks(&vm.guest_metrics)
                .await?
                .into_values()
                .filter(|address| !address.is_empty())
                .collect()
        } else {
            Vec::new()
        };
        let runs = effect == Effect::Evidence && vm.power_state == PowerState::Running;
        let answers = match port.filter(|_| runs) {
            Some(port) => self.answers(job, &guest_addresses, port).await,
            None => false,
        };
        let domid_since = self.domid_since(&vm.uuid, vm.domid);
        Ok(Observed { vm, metrics, domid_since, task, guest_addresses, answers })
    }

    /// Whether the guest accepts a connection on this port, at an address that its agent tells or our DHCP gave it.
    async fn answers(&self, job: &Job, told: &[String], port: u16) -> bool {
        let now = self.parts.clock.now();
        let leased = match job.mac {
            Some(mac) => leases::address_of(&*self.parts.store, mac, now).await.ok().flatten(),
            None => None,
        };
        let told = told.iter().filter_map(|address| address.parse::<IpAddr>().ok()).filter(may_be_a_guest);
        let addresses = leased.map(IpAddr::V4).into_iter().chain(told).take(ADDRESSES);
        let tries = addresses.map(|address| self.parts.reach.answers(SocketAddr::new(address, port)));
        join_all(tries).await.contains(&true)
    }

    /// Since when the VM has had this domid, as far as this server has looked.
    fn domid_since(&self, uuid: &str, domid: i64) -> Timestamp {
        let now = self.parts.clock.now();
        let mut memory = self.memory();
        let known = memory.domids.entry(uuid.to_owned()).or_insert((domid, now));
        if known.0 != domid {
            *known = (domid, now);
        }
        known.1
    }

    async fn reference(&self, api: &Api, uuid: &str) -> Result<String, CallError> {
        if let Some(known) = self.memory().references.get(uuid) {
            return Ok(known.clone());
        }
        let reference = api.vm_by_uuid(uuid).await?;
        self.memory().references.insert(uuid.to_owned(), reference.clone());
        Ok(reference)
    }

    /// Makes one call.
    pub(super) async fn make(
        &self,
        job: &Job,
        seen: &Observed,
        call: &Call,
    ) -> Result<CallResult, OperationError> {
        let api = self.pool(job)?.calls(job.state);
        match (call, self.syncs.get(&job.pool)) {
            (Call::Sync, Some(syncs)) => Ok(without_task(syncs.read(api.sync_database()).await)),
            (_, _) => Ok(make(api, &seen.vm.reference, call).await),
        }
    }
}

/// At so many addresses a guest is looked for.
const ADDRESSES: usize = 4;

/// What an agent tells is the guest's word: an address of this server itself is none of a guest.
fn may_be_a_guest(address: &IpAddr) -> bool {
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

/// Makes one call on a VM.
pub(super) async fn make(api: &Api, vm: &str, call: &Call) -> CallResult {
    let plain = match call {
        Call::AddToOtherConfig(key, value) => api.add_to_other_config(vm, key, value).await,
        Call::RemoveFromOtherConfig(key) => api.remove_from_other_config(vm, key).await,
        Call::Sync => api.sync_database().await,
        Call::SetActionsAfterShutdown(action) => api.set_actions_after_shutdown(vm, action).await,
        Call::SetActionsAfterReboot(action) => api.set_actions_after_reboot(vm, action).await,
        Call::SetActionsAfterCrash(action) => api.set_actions_after_crash(vm, action).await,
        Call::SetHvmBootParams(params) => api.set_hvm_boot_params(vm, params).await,
        Call::SetDomainType(kind) => api.set_domain_type(vm, kind).await,
        Call::SetHvmBootPolicy(policy) => api.set_hvm_boot_policy(vm, policy).await,
        Call::SetPvBootloader(bootloader) => api.set_pv_bootloader(vm, bootloader).await,
        Call::AddToPlatform(key, value) => api.add_to_platform(vm, key, value).await,
        Call::RemoveFromPlatform(key) => api.remove_from_platform(vm, key).await,
        Call::Unpause => api.unpause(vm).await,
        Call::CleanShutdown => return with_task(api.clean_shutdown(vm).await),
        Call::HardShutdown => return with_task(api.hard_shutdown(vm).await),
        Call::Start { paused } => return with_task(api.start(vm, *paused).await),
    };
    without_task(plain)
}

fn without_task(answer: Result<(), CallError>) -> CallResult {
    match answer {
        Ok(()) => CallResult::Ok { task: None },
        Err(error) => CallResult::Failed(error),
    }
}

fn with_task(answer: Result<String, CallError>) -> CallResult {
    match answer {
        Ok(task) => CallResult::Ok { task: Some(task) },
        Err(error) => CallResult::Failed(error),
    }
}

/// A task as it is now. One that the pool does not know any more is gone, and says nothing.
pub(super) async fn task_state(api: &Api, task: &str) -> Result<TaskState, CallError> {
    let record = match api.task(task).await {
        Ok(record) => record,
        Err(error) if error.is("HANDLE_INVALID") => return Ok(TaskState::Gone),
        Err(error) => return Err(error),
    };
    Ok(match record.status {
        TaskStatus::Pending | TaskStatus::Cancelling => TaskState::Pending,
        TaskStatus::Success => TaskState::Success,
        TaskStatus::Failure => {
            let failure = record
                .failure()
                .unwrap_or_else(|| Failure::new("INTERNAL_ERROR", &["the task failed without a word"]));
            TaskState::Failed(CallError::Failed { method: "task", failure })
        }
        TaskStatus::Cancelled => TaskState::Failed(CallError::Failed {
            method: "task",
            failure: Failure::new("TASK_CANCELLED", &[task]),
        }),
    })
}

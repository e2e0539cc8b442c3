//! XenAPI by its messages: one typed method for each that bootflip sends. Pure but for the transport it is given.
//!
//! Invariant: what is not here is never sent (threat T33), and no map is ever written whole but HVM_boot_params,
//! which has no setter by key.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{
    CallError, Method, Transport, Value,
    records::{
        EventBatch, GuestMetrics, HostMetrics, HostRecord, NetworkRecord, PoolRecord, Record, RecordError,
        SessionRecord, SrRecord, TaskRecord, VbdRecord, VdiRecord, VifRecord, VmMetrics, VmRecord,
    },
};

/// The messages of one pool. Cheap to clone. Every method fails with [`CallError`]; what the pool can answer to a
/// message is in the XenAPI data model.
#[derive(Clone, Debug)]
pub struct Api {
    transport: Arc<dyn Transport>,
}

/// The longest wait of [`Api::event_from`]; the transport's own deadline is a little later.
pub const LONGEST_EVENT_WAIT: Duration = Duration::from_secs(60);

impl Api {
    /// The messages, sent over this transport.
    pub const fn new(transport: Arc<dyn Transport>) -> Self {
        Self { transport }
    }

    /// `VM.get_by_uuid`: the VM's reference.
    pub async fn vm_by_uuid(&self, uuid: &str) -> Result<String, CallError> {
        self.reference(Method::VmGetByUuid, vec![Value::string(uuid)]).await
    }

    /// `VM.get_by_name_label`: the references of all VMs with this label, templates and snapshots among them.
    pub async fn vms_by_name(&self, label: &str) -> Result<Vec<String>, CallError> {
        self.references(Method::VmGetByNameLabel, label).await
    }

    /// `VM.get_possible_hosts`: the hosts that could start the VM now.
    pub async fn possible_hosts(&self, vm: &str) -> Result<Vec<String>, CallError> {
        self.references(Method::VmGetPossibleHosts, vm).await
    }

    async fn references(&self, method: Method, about: &str) -> Result<Vec<String>, CallError> {
        let Value::Array(items) = self.call(method, vec![Value::string(about)]).await? else {
            return Err(protocol(method, "not a set"));
        };
        let references = items.iter().map(|item| item.as_str().map(str::to_owned));
        references.collect::<Option<_>>().ok_or_else(|| protocol(method, "not a set of references"))
    }

    /// `VM.get_record`.
    pub async fn vm_record(&self, vm: &str) -> Result<VmRecord, CallError> {
        self.record(Method::VmGetRecord, vm).await
    }

    /// `VM.get_all_records`: all VMs, with templates, snapshots and control domains.
    pub async fn vms(&self) -> Result<Vec<VmRecord>, CallError> {
        self.records(Method::VmGetAllRecords).await
    }

    /// `VM_metrics.get_record`.
    pub async fn vm_metrics(&self, metrics: &str) -> Result<VmMetrics, CallError> {
        self.record(Method::VmMetricsGetRecord, metrics).await
    }

    /// `VM_guest_metrics.get_record`: the addresses that the guest's agent tells, such as `0/ip` → `10.0.0.7`.
    pub async fn guest_networks(&self, guest_metrics: &str) -> Result<BTreeMap<String, String>, CallError> {
        let record: GuestMetrics = self.record(Method::VmGuestMetricsGetRecord, guest_metrics).await?;
        Ok(record.networks)
    }

    /// `VBD.get_record`.
    pub async fn vbd(&self, vbd: &str) -> Result<VbdRecord, CallError> {
        self.record(Method::VbdGetRecord, vbd).await
    }

    /// `VDI.get_record`.
    pub async fn vdi(&self, vdi: &str) -> Result<VdiRecord, CallError> {
        self.record(Method::VdiGetRecord, vdi).await
    }

    /// `VIF.get_record`.
    pub async fn vif(&self, vif: &str) -> Result<VifRecord, CallError> {
        self.record(Method::VifGetRecord, vif).await
    }

    /// `VIF.get_all_records`.
    pub async fn vifs(&self) -> Result<Vec<VifRecord>, CallError> {
        self.records(Method::VifGetAllRecords).await
    }

    /// `pool.get_all_records`: one.
    pub async fn pools(&self) -> Result<Vec<PoolRecord>, CallError> {
        self.records(Method::PoolGetAllRecords).await
    }

    /// `host.get_all_records`.
    pub async fn hosts(&self) -> Result<Vec<HostRecord>, CallError> {
        self.records(Method::HostGetAllRecords).await
    }

    /// `host_metrics.get_all_records`.
    pub async fn host_metrics(&self) -> Result<Vec<HostMetrics>, CallError> {
        self.records(Method::HostMetricsGetAllRecords).await
    }

    /// `host.compute_free_memory`: bytes that a VM could be started with there, other guests ballooned down.
    pub async fn free_memory(&self, host: &str) -> Result<u64, CallError> {
        let method = Method::HostComputeFreeMemory;
        match self.call(method, vec![Value::string(host)]).await? {
            // Below zero where guests take more than was reckoned with.
            Value::Int(bytes) => Ok(u64::try_from(bytes).unwrap_or(0)),
            Value::String(text) => text
                .parse::<i64>()
                .map(|bytes| u64::try_from(bytes).unwrap_or(0))
                .map_err(|_| protocol(method, "not an int")),
            Value::Bool(_) | Value::Double(_) | Value::DateTime(_) | Value::Array(_) | Value::Struct(_) => {
                Err(protocol(method, "not an int"))
            }
        }
    }

    /// `session.get_record` of our own session: what this account may do.
    pub async fn own_session(&self) -> Result<SessionRecord, CallError> {
        let method = Method::SessionGetRecord;
        let answer = self.call(method, vec![]).await?;
        decoded(method, SessionRecord::decode("", &answer))
    }

    /// `pool.sync_database`: what was written so far survives the coordinator's power loss. Needs pool-operator.
    pub async fn sync_database(&self) -> Result<(), CallError> {
        self.void(Method::PoolSyncDatabase, vec![]).await
    }

    /// `VM.add_to_other_config`: MAP_DUPLICATE_KEY when the key is there with another value.
    pub async fn add_to_other_config(&self, vm: &str, key: &str, value: &str) -> Result<(), CallError> {
        self.add(Method::VmAddToOtherConfig, vm, key, value).await
    }

    /// `VM.remove_from_other_config`: no key, no effect.
    pub async fn remove_from_other_config(&self, vm: &str, key: &str) -> Result<(), CallError> {
        self.set(Method::VmRemoveFromOtherConfig, vm, key).await
    }

    /// `VM.add_to_platform`: MAP_DUPLICATE_KEY when the key is there with another value.
    pub async fn add_to_platform(&self, vm: &str, key: &str, value: &str) -> Result<(), CallError> {
        self.add(Method::VmAddToPlatform, vm, key, value).await
    }

    /// `VM.remove_from_platform`: no key, no effect.
    pub async fn remove_from_platform(&self, vm: &str, key: &str) -> Result<(), CallError> {
        self.set(Method::VmRemoveFromPlatform, vm, key).await
    }

    /// `VM.set_domain_type` (7.5 on): also writes the policy. `unspecified` is INVALID_VALUE.
    pub async fn set_domain_type(&self, vm: &str, domain_type: &str) -> Result<(), CallError> {
        self.set(Method::VmSetDomainType, vm, domain_type).await
    }

    /// `VM.set_HVM_boot_policy`: from 7.5 on it also writes the domain_type, `pv` for the empty policy.
    pub async fn set_hvm_boot_policy(&self, vm: &str, policy: &str) -> Result<(), CallError> {
        self.set(Method::VmSetHvmBootPolicy, vm, policy).await
    }

    /// `VM.set_HVM_boot_params`: replaces the whole map.
    pub async fn set_hvm_boot_params(
        &self,
        vm: &str,
        params: &BTreeMap<String, String>,
    ) -> Result<(), CallError> {
        self.void(Method::VmSetHvmBootParams, vec![Value::string(vm), Value::map(params)]).await
    }

    /// `VM.set_PV_bootloader`.
    pub async fn set_pv_bootloader(&self, vm: &str, bootloader: &str) -> Result<(), CallError> {
        self.set(Method::VmSetPvBootloader, vm, bootloader).await
    }

    /// `VM.set_actions_after_shutdown`: `destroy` or `restart`.
    pub async fn set_actions_after_shutdown(&self, vm: &str, action: &str) -> Result<(), CallError> {
        self.set(Method::VmSetActionsAfterShutdown, vm, action).await
    }

    /// `VM.set_actions_after_reboot`: `destroy` or `restart`.
    pub async fn set_actions_after_reboot(&self, vm: &str, action: &str) -> Result<(), CallError> {
        self.set(Method::VmSetActionsAfterReboot, vm, action).await
    }

    /// `VM.set_actions_after_crash`: `destroy`, `restart`, `preserve` and others.
    pub async fn set_actions_after_crash(&self, vm: &str, action: &str) -> Result<(), CallError> {
        self.set(Method::VmSetActionsAfterCrash, vm, action).await
    }

    /// `Async.VM.start`, not forced: the task's reference.
    pub async fn start(&self, vm: &str, paused: bool) -> Result<String, CallError> {
        let force = Value::Bool(false);
        self.reference(Method::VmStart, vec![Value::string(vm), Value::Bool(paused), force]).await
    }

    /// `VM.unpause`.
    pub async fn unpause(&self, vm: &str) -> Result<(), CallError> {
        self.void(Method::VmUnpause, vec![Value::string(vm)]).await
    }

    /// `Async.VM.clean_shutdown`: the task's reference.
    pub async fn clean_shutdown(&self, vm: &str) -> Result<String, CallError> {
        self.reference(Method::VmCleanShutdown, vec![Value::string(vm)]).await
    }

    /// `Async.VM.hard_shutdown`: the task's reference.
    pub async fn hard_shutdown(&self, vm: &str) -> Result<String, CallError> {
        self.reference(Method::VmHardShutdown, vec![Value::string(vm)]).await
    }

    /// `SR.get_all_records`.
    pub async fn srs(&self) -> Result<Vec<SrRecord>, CallError> {
        self.records(Method::SrGetAllRecords).await
    }

    /// `network.get_all_records`.
    pub async fn networks(&self) -> Result<Vec<NetworkRecord>, CallError> {
        self.records(Method::NetworkGetAllRecords).await
    }

    /// `Async.VM.clone`: the task's reference. Disks are cloned where they are, fast.
    pub async fn clone_vm(&self, vm: &str, label: &str) -> Result<String, CallError> {
        self.reference(Method::VmClone, vec![Value::string(vm), Value::string(label)]).await
    }

    /// `Async.VM.copy`: the task's reference. Disks are copied in full to the SR.
    pub async fn copy_vm(&self, vm: &str, label: &str, sr: &str) -> Result<String, CallError> {
        let params = vec![Value::string(vm), Value::string(label), Value::string(sr)];
        self.reference(Method::VmCopy, params).await
    }

    /// `Async.VM.provision`: the task's reference. A template becomes a VM, with the disks of its `disks` key.
    pub async fn provision(&self, vm: &str) -> Result<String, CallError> {
        self.reference(Method::VmProvision, vec![Value::string(vm)]).await
    }

    /// `VM.destroy`: the record with its drives and NICs; the disks stay.
    pub async fn destroy_vm(&self, vm: &str) -> Result<(), CallError> {
        self.void(Method::VmDestroy, vec![Value::string(vm)]).await
    }

    /// `VM.set_name_label`.
    pub async fn set_name_label(&self, vm: &str, label: &str) -> Result<(), CallError> {
        self.set(Method::VmSetNameLabel, vm, label).await
    }

    /// `VM.add_tags`: a tag that is there stays.
    pub async fn add_tag(&self, vm: &str, tag: &str) -> Result<(), CallError> {
        self.set(Method::VmAddTags, vm, tag).await
    }

    /// `VM.set_memory_limits` of a halted VM, in bytes: dynamic minimum and maximum are the static maximum. Needs
    /// vm-power-admin.
    pub async fn set_memory(&self, vm: &str, static_min: u64, memory: u64) -> Result<(), CallError> {
        let limits = [static_min, memory, memory, memory].map(|bytes| Value::string(bytes.to_string()));
        let params = std::iter::once(Value::string(vm)).chain(limits).collect();
        self.void(Method::VmSetMemoryLimits, params).await
    }

    /// `VM.set_VCPUs_max`: not below VCPUs_at_startup.
    pub async fn set_vcpus_max(&self, vm: &str, count: u32) -> Result<(), CallError> {
        self.set(Method::VmSetVcpusMax, vm, &count.to_string()).await
    }

    /// `VM.set_VCPUs_at_startup`: not above VCPUs_max.
    pub async fn set_vcpus_at_startup(&self, vm: &str, count: u32) -> Result<(), CallError> {
        self.set(Method::VmSetVcpusAtStartup, vm, &count.to_string()).await
    }

    /// `VIF.create` at device 0, with an MTU of 1500 bytes.
    pub async fn create_vif(&self, vm: &str, network: &str, mac: &str) -> Result<String, CallError> {
        let texts = [
            ("device", "0"),
            ("VM", vm),
            ("network", network),
            ("MAC", mac),
            ("MTU", "1500"),
            ("qos_algorithm_type", ""),
        ];
        let mut record: BTreeMap<String, Value> =
            texts.into_iter().map(|(field, text)| (field.to_owned(), Value::string(text))).collect();
        for field in ["other_config", "qos_algorithm_params"] {
            record.insert(field.to_owned(), Value::map(&BTreeMap::new()));
        }
        self.reference(Method::VifCreate, vec![Value::Struct(record)]).await
    }

    /// `VIF.destroy`.
    pub async fn destroy_vif(&self, vif: &str) -> Result<(), CallError> {
        self.void(Method::VifDestroy, vec![Value::string(vif)]).await
    }

    /// `VBD.set_bootable`.
    pub async fn set_bootable(&self, vbd: &str, bootable: bool) -> Result<(), CallError> {
        self.void(Method::VbdSetBootable, vec![Value::string(vbd), Value::Bool(bootable)]).await
    }

    /// `VDI.destroy`: the disk and what stands on it.
    pub async fn destroy_vdi(&self, vdi: &str) -> Result<(), CallError> {
        self.void(Method::VdiDestroy, vec![Value::string(vdi)]).await
    }

    /// `task.get_record`. HANDLE_INVALID: the pool forgot it; its outcome must be looked up in the VM.
    pub async fn task(&self, task: &str) -> Result<TaskRecord, CallError> {
        self.record(Method::TaskGetRecord, task).await
    }

    /// `task.destroy`: forgets it; a task that still goes on is only marked.
    pub async fn task_destroy(&self, task: &str) -> Result<(), CallError> {
        self.void(Method::TaskDestroy, vec![Value::string(task)]).await
    }

    /// `event.from` (6.0 on): waits up to `timeout` (at most [`LONGEST_EVENT_WAIT`]) for a change of the classes
    /// (`VM`, `task`, `VM/OpaqueRef:…`) after `token`; the empty token gives everything at once.
    pub async fn event_from(
        &self,
        classes: &[&str],
        token: &str,
        timeout: Duration,
    ) -> Result<EventBatch, CallError> {
        let method = Method::EventFrom;
        let classes = Value::Array(classes.iter().map(|&class| Value::string(class)).collect());
        let seconds = Value::Double(timeout.min(LONGEST_EVENT_WAIT).as_secs_f64());
        let answer = self.call(method, vec![classes, Value::string(token), seconds]).await?;
        decoded(method, EventBatch::decode("", &answer))
    }

    async fn call(&self, method: Method, params: Vec<Value>) -> Result<Value, CallError> {
        self.transport.call(method, params).await
    }

    async fn void(&self, method: Method, params: Vec<Value>) -> Result<(), CallError> {
        self.call(method, params).await.map(|_void| ())
    }

    async fn set(&self, method: Method, vm: &str, value: &str) -> Result<(), CallError> {
        self.void(method, vec![Value::string(vm), Value::string(value)]).await
    }

    async fn add(&self, method: Method, vm: &str, key: &str, value: &str) -> Result<(), CallError> {
        self.void(method, vec![Value::string(vm), Value::string(key), Value::string(value)]).await
    }

    async fn reference(&self, method: Method, params: Vec<Value>) -> Result<String, CallError> {
        let answer = self.call(method, params).await?;
        answer.as_str().map(str::to_owned).ok_or_else(|| protocol(method, "not a reference"))
    }

    async fn record<R: Record>(&self, method: Method, reference: &str) -> Result<R, CallError> {
        let answer = self.call(method, vec![Value::string(reference)]).await?;
        decoded(method, R::decode(reference, &answer))
    }

    async fn records<R: Record>(&self, method: Method) -> Result<Vec<R>, CallError> {
        let Value::Struct(all) = self.call(method, vec![]).await? else {
            return Err(protocol(method, "not a map of records"));
        };
        // By value: each record of a pool with thousands of them goes as soon as it is read.
        let records = all.into_iter().map(|(reference, record)| R::decode(&reference, &record));
        decoded(method, records.collect())
    }
}

fn decoded<T>(method: Method, record: Result<T, RecordError>) -> Result<T, CallError> {
    record.map_err(|error| protocol(method, &error.to_string()))
}

fn protocol(method: Method, detail: &str) -> CallError {
    CallError::Protocol { method: method.name(), detail: detail.to_owned() }
}

#[cfg(test)]
mod tests;

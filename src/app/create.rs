//! Makes VMs from templates: reads the pool for `creation::plan`, carries out what `creation::next` says, and clears
//! away what was not finished. A shell.
//!
//! Invariant: only a VM that `creation::is_half_made` knows as ours is ever destroyed, and of its disks only those
//! that no other VM has.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{StreamExt, stream};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::key;
use crate::{
    clock::{Clock, SystemClock},
    provision::creation::{
        Making, Mark, Seen, Step,
        fleet::Wish,
        is_half_made, made_and_never_started, making_label, next,
        plan::{Catalogue, Planned, Way, template_of},
        read_making_label,
    },
    xen::{
        CallError, Class, Method,
        api::Api,
        records::{TaskStatus, VmRecord, is_null},
    },
};

/// VMs that are made at once.
const AT_ONCE: usize = 3;
/// How often a step is tried, and the pause after the first try; each later one is twice as long.
const TRIES: u32 = 6;
const PAUSE: Duration = Duration::from_millis(200);
/// How long a VM is looked for whose clone call was not answered.
const LOST_CLONE: Duration = Duration::from_secs(5);
/// Between two looks at a task, and how long one may take in all.
const TASK_LOOK: Duration = Duration::from_millis(100);
const TASK_LIMIT: Duration = Duration::from_secs(2 * 3600);

/// What became of one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was made.
    Created,
    /// The same command made it before, and it was never started.
    Existing,
    /// It was not made, and nothing of it is left but what `detail` says.
    Failed,
    /// Another one failed before its turn came.
    NotBegun,
}

impl Outcome {
    /// The word in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Existing => "existing",
            Self::Failed => "failed",
            Self::NotBegun => "not begun",
        }
    }
}

/// One VM of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    /// Its name.
    pub vm: String,
    /// Its uuid, when it is there.
    pub vm_uuid: Option<String>,
    /// The address of its NIC.
    pub mac: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why it was not made.
    pub detail: String,
}

/// Makes VMs in one pool.
#[derive(Debug, Clone)]
pub struct Maker {
    /// The pool.
    pub api: Api,
    /// `server.name`.
    pub owner: String,
}

/// A half-made VM of an earlier run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The name that it was to get.
    pub name: String,
    /// Its reference.
    pub reference: String,
    nonce: String,
}

impl Maker {
    /// Reads what a plan for these wishes needs. Changes nothing.
    ///
    /// # Errors
    /// The pool does not answer.
    pub async fn read(&self, wishes: &[Wish]) -> Result<(Catalogue, Vec<Leftover>), CallError> {
        let api = &self.api;
        let pool = api.pools().await?.into_iter().next().ok_or_else(|| CallError::Protocol {
            method: Method::PoolGetAllRecords.name(),
            detail: "the pool has no pool record".to_owned(),
        })?;
        let vms = api.vms().await?;
        let mut drives = BTreeMap::new();
        for wish in wishes {
            let Ok(template) = template_of(wish, &vms) else { continue };
            if !drives.contains_key(&template.reference) {
                let mut found = Vec::new();
                for vbd in &template.vbds {
                    let vbd = api.vbd(vbd).await?;
                    let vdi = if is_null(&vbd.vdi) { None } else { Some(api.vdi(&vbd.vdi).await?) };
                    found.push((vbd, vdi));
                }
                drives.insert(template.reference.clone(), found);
            }
        }
        let names: BTreeSet<&str> = wishes.iter().map(|wish| wish.name.as_str()).collect();
        let (unstarted, leftovers) = self.sort(&vms, &names).await?;
        let mut vifs = api.vifs().await?;
        vifs.retain(|vif| leftovers.iter().all(|left| left.reference != vif.vm));
        let catalogue = Catalogue {
            owner: self.owner.clone(),
            pool,
            networks: api.networks().await?,
            srs: api.srs().await?,
            vms,
            vifs,
            drives,
            unstarted,
        };
        Ok((catalogue, leftovers))
    }

    /// Of the VMs that we made under these names: those that nobody started, and those that are half-made.
    async fn sort(
        &self,
        vms: &[VmRecord],
        names: &BTreeSet<&str>,
    ) -> Result<(BTreeSet<String>, Vec<Leftover>), CallError> {
        let (mut unstarted, mut leftovers) = (BTreeSet::new(), Vec::new());
        for vm in vms {
            let making =
                read_making_label(&vm.name_label, &self.owner).filter(|(name, _)| names.contains(name));
            if making.is_none() && !(names.contains(vm.name_label.as_str()) && Mark::of(vm).is_some()) {
                continue;
            }
            let metrics = self.api.vm_metrics(&vm.metrics).await?;
            match making {
                Some((name, nonce)) if is_half_made(vm, &metrics, &self.owner, nonce) => {
                    leftovers.push(Leftover {
                        name: name.to_owned(),
                        reference: vm.reference.clone(),
                        nonce: nonce.to_owned(),
                    })
                }
                Some(_) | None if made_and_never_started(vm, &metrics) => {
                    unstarted.insert(vm.uuid.clone());
                }
                Some(_) | None => {}
            }
        }
        Ok((unstarted, leftovers))
    }

    /// Destroys the half-made VMs of earlier runs.
    ///
    /// # Errors
    /// One could not be destroyed, and why.
    pub async fn clear(&self, leftovers: &[Leftover]) -> Result<(), String> {
        for left in leftovers {
            self.destroy(&left.reference, &left.nonce)
                .await
                .map_err(|why| format!("{}: {why}", left.name))?;
        }
        Ok(())
    }

    /// Makes the VMs of a plan, some at once. After a failure no more begin.
    pub async fn make_all(&self, plan: &[Planned]) -> Vec<Made> {
        let failed = AtomicBool::new(false);
        let one = async |planned: &Planned| {
            let (outcome, vm_uuid, detail) = if let Some(uuid) = &planned.existing {
                (Outcome::Existing, Some(uuid.clone()), String::new())
            } else if failed.load(Ordering::Relaxed) {
                (Outcome::NotBegun, None, "another one failed first".to_owned())
            } else {
                match self.make(planned).await {
                    Ok(uuid) => (Outcome::Created, Some(uuid), String::new()),
                    Err(why) => {
                        failed.store(true, Ordering::Relaxed);
                        (Outcome::Failed, None, why)
                    }
                }
            };
            Made { vm: planned.name.clone(), vm_uuid, mac: planned.mac.to_string(), outcome, detail }
        };
        stream::iter(plan).map(one).buffered(AT_ONCE).collect().await
    }

    async fn make(&self, planned: &Planned) -> Result<String, String> {
        let making = Making { owner: self.owner.clone(), nonce: key::nonce(), since: SystemClock.now() };
        let label = making_label(&planned.name, &making.owner, &making.nonce);
        let built = match self.copy(planned, &label).await {
            Ok(vm) => self.build(planned, &making, &vm).await,
            Err(why) => Err(why),
        };
        let Err(why) = built else { return built };
        match self.undo(&making, [&label, &planned.name]).await {
            Ok(()) => Err(why),
            Err(left) => Err(format!(
                "{why}; and what there is of it could not be cleared away ({left}): the next `vm create` of this name does"
            )),
        }
    }

    /// The template's copy under this label, once. A reply that was lost is looked for before the call is repeated;
    /// should the first call have been slow instead, there are two, and both go.
    async fn copy(&self, planned: &Planned, label: &str) -> Result<String, String> {
        let template = &planned.template.0;
        let mut tries = Tries::default();
        loop {
            let (method, sent) = match &planned.way {
                Way::Clone => (Method::VmClone, self.api.clone_vm(template, label).await),
                Way::Copy(sr) => (Method::VmCopy, self.api.copy_vm(template, label, sr).await),
            };
            let done = match sent {
                Ok(task) => self.finish(method, &task).await,
                Err(error) => Err(error),
            };
            let until = Instant::now() + if done.is_ok() { Duration::ZERO } else { LOST_CLONE };
            if let Err(error) = done {
                tries.after(error).await?;
            }
            loop {
                let found = patiently(async || self.api.vms_by_name(label).await).await?;
                match found.as_slice() {
                    [vm] => return Ok(vm.clone()),
                    [] if Instant::now() < until => sleep(PAUSE).await,
                    [] => break,
                    [_, _, ..] => return Err("the pool made it twice".to_owned()),
                }
            }
            tries.again("the pool made no copy of the template")?;
        }
    }

    /// Goes on until nothing is left to do; the VM's uuid.
    async fn build(&self, planned: &Planned, making: &Making, vm: &str) -> Result<String, String> {
        let mut last = None;
        let mut tries = Tries::default();
        loop {
            let seen = patiently(async || self.look(vm).await).await?;
            let Some(step) = next(planned, making, &seen)? else { return Ok(seen.vm.uuid) };
            if last.as_ref() != Some(&step) {
                tries = Tries::default();
            }
            tries.again("the pool says that it was done, and it was not")?;
            if step == Step::Name
                && !patiently(async || self.api.vms_by_name(&planned.name).await).await?.is_empty()
            {
                return Err("somebody else made a VM of this name meanwhile".to_owned());
            }
            match self.perform(vm, planned, &step).await {
                // An earlier call had its effect after all.
                Err(error) if error.is("MAP_DUPLICATE_KEY") => {}
                Err(error) => tries.after(error).await?,
                Ok(()) => {}
            }
            last = Some(step);
        }
    }

    async fn look(&self, vm: &str) -> Result<Seen, CallError> {
        let record = self.api.vm_record(vm).await?;
        let metrics = self.api.vm_metrics(&record.metrics).await?;
        let (mut drives, mut vifs) = (Vec::new(), Vec::new());
        // A template's are the template's own business.
        if !record.is_a_template {
            for vbd in &record.vbds {
                drives.push(self.api.vbd(vbd).await?);
            }
            for vif in &record.vifs {
                vifs.push(self.api.vif(vif).await?);
            }
        }
        Ok(Seen { vm: record, metrics, drives, vifs })
    }

    async fn perform(&self, vm: &str, planned: &Planned, step: &Step) -> Result<(), CallError> {
        let api = &self.api;
        match step {
            Step::AddKey { key, value } => api.add_to_other_config(vm, key, value).await,
            Step::RemoveKey(key) => api.remove_from_other_config(vm, key).await,
            Step::Bootloader => api.set_pv_bootloader(vm, "pygrub").await,
            Step::Memory { static_min, memory } => api.set_memory(vm, *static_min, *memory).await,
            Step::VcpusMax(count) => api.set_vcpus_max(vm, *count).await,
            Step::VcpusAtStartup(count) => api.set_vcpus_at_startup(vm, *count).await,
            Step::Tag => api.add_tag(vm, &planned.tag).await,
            Step::Provision => {
                let task = api.provision(vm).await?;
                self.finish(Method::VmProvision, &task).await
            }
            Step::RemoveVif(vif) => api.destroy_vif(vif).await,
            Step::AddVif => api.create_vif(vm, &planned.network.0, &planned.mac.to_string()).await.map(drop),
            Step::Bootable(vbd, bootable) => api.set_bootable(vbd, *bootable).await,
            Step::Name => api.set_name_label(vm, &planned.name).await,
        }
    }

    /// Waits for a task. One that the pool forgot says nothing: the caller looks.
    async fn finish(&self, method: Method, task: &str) -> Result<(), CallError> {
        let until = Instant::now() + TASK_LIMIT;
        loop {
            let record = match self.api.task(task).await {
                Ok(record) => record,
                Err(error) if error.is("HANDLE_INVALID") => return Ok(()),
                Err(error) if error.class() == Class::Permanent => return Err(error),
                Err(error) => {
                    tracing::debug!(%error, "a task cannot be read");
                    sleep(PAUSE).await;
                    if Instant::now() > until {
                        return Err(error);
                    }
                    continue;
                }
            };
            let result = match record.status {
                TaskStatus::Pending | TaskStatus::Cancelling if Instant::now() < until => {
                    sleep(TASK_LOOK).await;
                    continue;
                }
                TaskStatus::Pending | TaskStatus::Cancelling => Err(CallError::Unknown {
                    method: method.name(),
                    detail: "its task does not end".to_owned(),
                }),
                TaskStatus::Success => Ok(()),
                TaskStatus::Failure | TaskStatus::Cancelled => Err(match record.failure() {
                    Some(failure) => CallError::Failed { method: method.name(), failure },
                    None => CallError::Unknown {
                        method: method.name(),
                        detail: "its task was cancelled".to_owned(),
                    },
                }),
            };
            // Housekeeping: the pool forgets it by itself too.
            let _ = self.api.task_destroy(task).await;
            return result;
        }
    }

    /// Clears away what a failed making left under these labels.
    async fn undo(&self, making: &Making, labels: [&str; 2]) -> Result<(), String> {
        for label in labels {
            for vm in patiently(async || self.api.vms_by_name(label).await).await? {
                self.destroy(&vm, &making.nonce).await?;
            }
        }
        Ok(())
    }

    /// Destroys a half-made VM of that making with its disks, the disks first: what is cut here is found again by the
    /// VM. Another VM is left alone.
    async fn destroy(&self, vm: &str, nonce: &str) -> Result<(), String> {
        let mut tries = Tries::default();
        loop {
            tries.again("the pool did not destroy it")?;
            match self.destroy_once(vm, nonce).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => tries.after(error).await?,
            }
        }
    }

    /// Whether nothing is left.
    async fn destroy_once(&self, vm: &str, nonce: &str) -> Result<bool, CallError> {
        let record = match self.api.vm_record(vm).await {
            Err(error) if error.is("HANDLE_INVALID") => return Ok(true),
            other => other?,
        };
        let metrics = self.api.vm_metrics(&record.metrics).await?;
        if !is_half_made(&record, &metrics, &self.owner, nonce) {
            return Ok(true);
        }
        for vbd in &record.vbds {
            let drive = self.api.vbd(vbd).await?;
            if drive.kind != "Disk" || is_null(&drive.vdi) {
                continue;
            }
            let vdi = self.api.vdi(&drive.vdi).await?;
            if vdi.vbds.iter().all(|user| user == vbd) {
                self.api.destroy_vdi(&drive.vdi).await?;
            }
        }
        self.api.destroy_vm(vm).await?;
        Ok(false)
    }
}

/// How often something was tried.
#[derive(Debug, Default)]
struct Tries {
    count: u32,
    last: Option<CallError>,
}

impl Tries {
    /// Counts one more try.
    fn again(&mut self, what: &str) -> Result<(), String> {
        self.count += 1;
        if self.count <= TRIES {
            return Ok(());
        }
        Err(self.last.take().map_or_else(|| what.to_owned(), |error| error.to_string()))
    }

    /// After an error: a pause, if it may get better or may have had its effect.
    async fn after(&mut self, error: CallError) -> Result<(), String> {
        match error.class() {
            Class::Permanent => return Err(error.to_string()),
            Class::Retry | Class::SlowRetry | Class::Relogin | Class::Redirect | Class::Observe => {}
        }
        tracing::debug!(%error, "tried again");
        self.last = Some(error);
        sleep(PAUSE * 2_u32.saturating_pow(self.count.min(TRIES))).await;
        Ok(())
    }
}

/// Reads, again and again while it may get better.
async fn patiently<T>(read: impl AsyncFn() -> Result<T, CallError>) -> Result<T, String> {
    let mut tries = Tries::default();
    loop {
        tries.again("the pool does not answer")?;
        match read().await {
            Ok(found) => return Ok(found),
            Err(error) => tries.after(error).await?,
        }
    }
}

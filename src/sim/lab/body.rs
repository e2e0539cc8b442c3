//! Plays the guests of a simulated pool: one QEMU for each domain that comes up there, ended with its domain.
//!
//! Invariants: a VM's disks are open in one QEMU at most; what pygrub finds on them is told to the pool before the
//! end of the guest that wrote them, so a PV start that comes next is judged by the disk as it is.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use super::{Ended, Lab, LabError, Machine, Running, fstab};
use crate::sim::{
    pool::{BootMode, DomainStart, GuestAct},
    server::SharedPool,
};

/// How often a QEMU's domain is looked for: a hard shutdown does not ask the guest.
const LOOK: Duration = Duration::from_millis(200);

/// The guests of one pool.
#[derive(Debug)]
pub struct Body {
    lab: Lab,
    pool: SharedPool,
    vms: HashMap<String, OneVm>,
    /// Domains whose QEMU ended without the guest's doing.
    lost: Mutex<HashSet<u32>>,
}

#[derive(Debug)]
struct OneVm {
    machine: Machine,
    /// Held by whoever has the disks open.
    disks: tokio::sync::Mutex<()>,
}

impl Body {
    /// No guest runs yet. `machines` by the uuid of their VM.
    pub fn new(lab: Lab, pool: SharedPool, machines: HashMap<String, Machine>) -> Self {
        let vms = machines
            .into_iter()
            .map(|(uuid, machine)| (uuid, OneVm { machine, disks: tokio::sync::Mutex::default() }));
        Self { lab, pool, vms: vms.collect(), lost: Mutex::default() }
    }

    /// Tells the pool what pygrub finds on every VM's disk as it is now.
    pub async fn survey(&self) {
        for (uuid, vm) in &self.vms {
            let _disks = vm.disks.lock().await;
            self.survey_one(uuid, vm).await;
        }
    }

    /// A domain came up: its QEMU runs until the guest ends or the domain is gone.
    pub fn start(self: &Arc<Self>, start: DomainStart) {
        let body = Arc::clone(self);
        tokio::spawn(async move {
            let Some(vm) = body.vms.get(&start.vm_uuid) else { return };
            let _disks = vm.disks.lock().await;
            let act = match body.boot(vm, &start).await {
                Ok(running) => body.watch(vm, &start, running).await,
                Err(error) => {
                    tracing::warn!(vm = %start.name, domid = start.domid, error = %chain(&error), "a guest did not start");
                    Some(GuestAct::Crash)
                }
            };
            if let Some(act) = act {
                body.pool.with(|pool, now| pool.guest(now, &start.vm_uuid, start.domid, act));
            }
        });
    }

    /// The installed system in this domain is up, as its own console says ([`Installer::lives`]).
    ///
    /// [`Installer::lives`]: super::Installer::lives
    pub fn has_booted(&self, vm_uuid: &str, domid: u32) -> bool {
        let (line_with, _) = self.lab.installer().lives();
        let console =
            self.console(vm_uuid, domid).and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        String::from_utf8_lossy(&console).lines().any(|line| line.contains(line_with))
    }

    /// Where a domain's console is written; `None`: no such VM.
    pub fn console(&self, vm_uuid: &str, domid: u32) -> Option<PathBuf> {
        self.vms.get(vm_uuid).map(|vm| vm.machine.console(u64::from(domid)))
    }

    /// Whether every witness disk of the VM has the bytes it was made with; `false` also where there is no such VM.
    pub fn witnesses_are_intact(&self, vm_uuid: &str) -> Result<bool, LabError> {
        self.vms.get(vm_uuid).map_or(Ok(false), |vm| vm.machine.witnesses_are_intact())
    }

    /// What the fstab on the VM's disk names; read from the image, in which nothing may be written meanwhile.
    pub fn fstab(&self, vm_uuid: &str) -> Result<fstab::Fstab, LabError> {
        let disk = self.vms.get(vm_uuid).and_then(|vm| vm.machine.first_disk());
        Ok(fstab::read(disk.unwrap_or_else(|| Path::new("/dev/null")))?)
    }

    /// No QEMU ended without its guest's doing, or the pool's.
    pub fn nothing_was_lost(&self) -> bool {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    async fn boot(&self, vm: &OneVm, start: &DomainStart) -> Result<Running, LabError> {
        let console = u64::from(start.domid);
        let running = match &start.mode {
            BootMode::Hvm { order } => vm.machine.start_firmware(&self.lab, order, console)?,
            BootMode::Pv => {
                let extracted = vm.machine.bootable(&self.lab).await?;
                tracing::debug!(vm = %start.name, args = %extracted.args, "pygrub found a system");
                vm.machine.start_extracted(&self.lab, &extracted, console)?
            }
        };
        tracing::debug!(vm = %start.name, domid = start.domid, mode = ?start.mode, pid = running.pid(), "a guest runs");
        Ok(running)
    }

    /// Waits until the guest has ended, or ends it when its domain is gone. What it did; `None`: the pool knows.
    async fn watch(&self, vm: &OneVm, start: &DomainStart, mut running: Running) -> Option<GuestAct> {
        let ended = tokio::select! {
            ended = running.ended() => Some(ended),
            () = self.domain_gone(start) => None,
        };
        running.kill().await;
        tracing::debug!(vm = %start.name, domid = start.domid, ?ended, "a guest ended");
        self.survey_one(&start.vm_uuid, vm).await;
        Some(match ended? {
            Ended::PowerOff => GuestAct::PowerOff,
            Ended::Reboot => GuestAct::Reboot,
            Ended::Crash => GuestAct::Crash,
            Ended::Lost => {
                tracing::warn!(vm = %start.name, domid = start.domid, "QEMU ended by itself; see its qemu.log");
                self.lost.lock().unwrap_or_else(PoisonError::into_inner).insert(start.domid);
                GuestAct::Crash
            }
        })
    }

    async fn domain_gone(&self, start: &DomainStart) {
        let lives = || {
            let truth = self.pool.with(|pool, _| pool.truth(&start.vm_uuid));
            truth.and_then(|truth| truth.domain).is_some_and(|domain| domain.domid == start.domid)
        };
        while lives() {
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn survey_one(&self, uuid: &str, vm: &OneVm) {
        let found = vm.machine.bootable(&self.lab).await.map(|_| ()).map_err(|error| error.to_string());
        tracing::debug!(vm = vm.machine.name(), ?found, "pygrub looked at the disk");
        self.pool.with(|pool, _| pool.set_bootable(uuid, found));
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

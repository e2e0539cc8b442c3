//! Runs a guest for each domain that comes up in the simulated pool, and tells the pool what guests do.
//!
//! A VM's disk lives here: what its installer left is what its PV domain boots.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::plan::{DemoPlan, Moment};
use crate::{
    clock::SystemClock,
    sim::{
        guest::{
            Event, Guest, InstalledSystem,
            client::{Ended, Told, Wire},
        },
        pool::{BootMode, DomainStart, GuestAct},
        server::SharedPool,
    },
};

/// Something happened in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Happened {
    /// Index of the VM in the plan.
    pub vm: usize,
    /// Which HVM start of the VM this is, or follows, from 1.
    pub attempt: u32,
    /// What.
    pub moment: Moment,
}

/// The guests of a demo.
#[derive(Debug)]
pub struct Guests {
    plan: DemoPlan,
    /// VM uuid to its index in the plan.
    index: Mutex<HashMap<String, usize>>,
    wire: Arc<Wire>,
    pool: SharedPool,
    happened: mpsc::Sender<Happened>,
    vms: Mutex<HashMap<usize, OneVm>>,
}

#[derive(Debug, Default)]
struct OneVm {
    hvm_starts: u32,
    disk: Option<InstalledSystem>,
    running: Option<(u32, CancellationToken)>,
    booted_domid: Option<u32>,
    /// The domain whose firmware waits for something that it does not ask for twice.
    asks_once: Option<u32>,
}

impl Guests {
    /// No guest runs yet. `uuids` are those of the plan's VMs, in its order; VMs of the plan that have none yet are
    /// known by their names once they run.
    pub fn new(
        plan: DemoPlan,
        uuids: &[String],
        wire: Arc<Wire>,
        pool: SharedPool,
        happened: mpsc::Sender<Happened>,
    ) -> Self {
        let index = uuids.iter().cloned().zip(0..).collect();
        Self { plan, index: Mutex::new(index), wire, pool, happened, vms: Mutex::default() }
    }

    /// A domain came up: its guest runs until it ends, or the domain is gone.
    pub fn start(self: &Arc<Self>, start: DomainStart) {
        let Some(vm) = self.place(&start) else { return };
        let stop = CancellationToken::new();
        let (attempt, disk) = {
            let mut vms = self.vms();
            let one = vms.entry(vm).or_default();
            if let Some((_, stop)) = one.running.replace((start.domid, stop.clone())) {
                stop.cancel();
            }
            one.hvm_starts += u32::from(start.mode != BootMode::Pv);
            (one.hvm_starts, one.disk.clone())
        };
        let guests = Arc::clone(self);
        tokio::spawn(async move { guests.run(vm, attempt, start, disk, stop).await });
    }

    /// Stops guests whose domains are gone: a hard shutdown does not ask them.
    pub fn reap(&self) {
        let index = self.index().clone();
        for (uuid, vm) in &index {
            let mut vms = self.vms();
            let Some(one) = vms.get_mut(vm).filter(|one| one.running.is_some()) else { continue };
            let living = self.pool.with(|pool, _| pool.truth(uuid)).and_then(|truth| truth.domain);
            let living = living.map(|domain| domain.domid);
            if one.running.as_ref().is_some_and(|(domid, _)| Some(*domid) != living)
                && let Some((_, stop)) = one.running.take()
            {
                stop.cancel();
            }
        }
    }

    /// The domain of this VM whose installed system had its `booted` report taken.
    pub fn booted_domid(&self, vm: usize) -> Option<u32> {
        self.vms().get(&vm).and_then(|one| one.booted_domid)
    }

    /// Some guest's firmware waits for something that it does not ask for twice: without the server it would stay
    /// without anything to boot, as a real one does.
    pub fn ask_once(&self) -> bool {
        self.vms().values().any(|one| one.asks_once.is_some())
    }

    async fn run(
        &self,
        vm: usize,
        attempt: u32,
        start: DomainStart,
        disk: Option<InstalledSystem>,
        stop: CancellationToken,
    ) {
        let (Some(mac), Some(plan)) =
            (start.macs.first().copied(), self.plan.vms.get(vm).and_then(|vm| vm.guest(attempt)))
        else {
            return;
        };
        let (guest, moment) = match (&start.mode, disk) {
            (BootMode::Hvm { order }, _) if order.contains('n') => {
                (Guest::netboot(mac, plan.clone()), Moment::HvmRuns)
            }
            (BootMode::Pv | BootMode::Hvm { .. }, Some(disk)) => {
                (Guest::installed(mac, plan.clone(), disk), Moment::PvRuns)
            }
            // Nothing that speaks: a disk that no installer wrote.
            (BootMode::Hvm { .. } | BootMode::Pv, None) => return,
        };
        tracing::debug!(vm = %start.name, domid = start.domid, ?moment, "a guest runs");
        self.tell(Happened { vm, attempt, moment });
        let ended = self
            .wire
            .run_guest(mac, guest, &SystemClock, stop, |told| self.told(vm, attempt, &start, told))
            .await;
        tracing::debug!(vm = %start.name, domid = start.domid, ?ended, "a guest ended");
        let act = match ended {
            Ended::PowerOff => GuestAct::PowerOff,
            Ended::Reboot => GuestAct::Reboot,
            Ended::Stopped => return,
        };
        self.pool.with(|pool, now| pool.guest(now, &start.vm_uuid, start.domid, act));
    }

    fn told(&self, vm: usize, attempt: u32, start: &DomainStart, told: Told) {
        match told {
            Told::AsksOnce(asks) => {
                let mut vms = self.vms();
                let one = vms.entry(vm).or_default();
                if asks {
                    one.asks_once = Some(start.domid);
                } else if one.asks_once == Some(start.domid) {
                    one.asks_once = None;
                }
            }
            Told::Erased => self.set_disk(vm, &start.vm_uuid, None),
            Told::Installed(system) => self.set_disk(vm, &start.vm_uuid, Some(system)),
            Told::Event(Event::BootedReported) => {
                self.vms().entry(vm).or_default().booted_domid = Some(start.domid);
            }
            Told::Event(event) => {
                tracing::debug!(vm = %start.name, domid = start.domid, ?event, "in a guest");
                if let Event::Stage(stage) = event {
                    self.tell(Happened { vm, attempt, moment: Moment::At(stage) });
                }
            }
        }
    }

    fn set_disk(&self, vm: usize, uuid: &str, disk: Option<InstalledSystem>) {
        let found = match disk {
            Some(_) => Ok(()),
            None => Err("Unable to find partition containing kernel".to_owned()), // pygrub's words
        };
        self.pool.with(|pool, _| pool.set_bootable(uuid, found));
        self.vms().entry(vm).or_default().disk = disk;
    }

    fn tell(&self, happened: Happened) {
        if self.happened.try_send(happened).is_err() {
            tracing::debug!(?happened, "nobody hears what happened in a guest");
        }
    }

    /// The VM's place in the plan.
    fn place(&self, start: &DomainStart) -> Option<usize> {
        let mut index = self.index();
        if let Some(&vm) = index.get(&start.vm_uuid) {
            return Some(vm);
        }
        let named = |vm: &usize| self.plan.vms.get(*vm).is_some_and(|vm| vm.name == start.name);
        let vm =
            (0..self.plan.vms.len()).filter(|vm| !index.values().any(|known| known == vm)).find(named)?;
        index.insert(start.vm_uuid.clone(), vm);
        Some(vm)
    }

    fn index(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<usize, OneVm>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

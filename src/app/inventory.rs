//! What the pools have: every guest's NIC becomes a machine that the boot gate knows, and a changed VM wakes its job.
//! A shell. Events are wake-ups only; every job also looks by itself, so that a pool without events is only slower.
//!
//! Invariant: an armed machine is never touched from here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{
    machines::{self, VmView},
    selection::Candidate,
};
use crate::{
    boot::{Gate, Machine},
    machine::MacAddr,
    provision::executor::{Executor, Wakers},
    xen::{
        CallError, Value,
        api::Api,
        records::{EventBatch, ObjectEvent},
    },
};

/// How often the VMs and NICs of a pool are read.
const REFRESH: Duration = Duration::from_secs(60);

/// How long one wait for events lasts.
const EVENT_WAIT: Duration = Duration::from_secs(30);

/// How long a pool that has no event.from is left before it is asked again: it may be upgraded.
const WITHOUT_EVENTS: Duration = Duration::from_secs(3600);

/// The first and the longest pause after the pool could not be asked.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is known of the pools; shared with the admin socket.
#[derive(Debug, Clone, Default)]
pub struct Known(Arc<Mutex<BTreeMap<String, PoolKnown>>>);

/// What is known of one pool.
#[derive(Debug, Clone, Default)]
pub struct PoolKnown {
    /// Its VMs when it was last read.
    pub vms: Vec<Candidate>,
    /// Its guests, as people see them.
    pub guests: Vec<Arc<Guest>>,
    /// Why it could not be read the last time.
    pub problem: Option<String>,
}

/// A guest, as pages show it without asking the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its record.
    pub view: VmView,
    /// Its network cards, by device number.
    pub macs: Vec<MacAddr>,
}

/// What one reading of a pool found.
#[derive(Debug)]
struct Reading {
    vms: Vec<Candidate>,
    guests: Vec<Arc<Guest>>,
}

impl Known {
    /// The guests of all pools as they were last read, by pool and name.
    pub fn guests(&self) -> Vec<Arc<Guest>> {
        self.locked(|pools| pools.values().flat_map(|known| known.guests.iter().cloned()).collect())
    }

    /// One guest, by uuid.
    pub fn guest(&self, uuid: &str) -> Option<Arc<Guest>> {
        let find = |known: &PoolKnown| known.guests.iter().find(|guest| guest.view.uuid == uuid).cloned();
        self.locked(|pools| pools.values().find_map(find))
    }

    /// The pool's VMs as they were last read.
    pub fn vms(&self, pool: &str) -> Vec<Candidate> {
        self.locked(|pools| pools.get(pool).map(|known| known.vms.clone()).unwrap_or_default())
    }

    /// Why each pool could not be read the last time; `None`: it could.
    pub fn problems(&self) -> BTreeMap<String, Option<String>> {
        self.locked(|pools| pools.iter().map(|(name, known)| (name.clone(), known.problem.clone())).collect())
    }

    fn locked<T>(&self, act: impl FnOnce(&mut BTreeMap<String, PoolKnown>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a reading; whether the pool's standing changed.
    fn note(&self, pool: &str, read: Result<Reading, String>) -> bool {
        self.locked(|pools| {
            let new = !pools.contains_key(pool);
            let known = pools.entry(pool.to_owned()).or_default();
            let was_away = known.problem.is_some();
            match read {
                Ok(Reading { vms, guests }) => *known = PoolKnown { vms, guests, problem: None },
                Err(problem) => known.problem = Some(problem),
            }
            new || was_away != known.problem.is_some()
        })
    }
}

/// By name, each with its cards by device number.
fn in_order(guests: impl Iterator<Item = (VmView, Vec<(u32, MacAddr)>)>) -> Vec<Arc<Guest>> {
    let guest = |(view, mut cards): (VmView, Vec<(u32, MacAddr)>)| {
        cards.sort_unstable();
        Arc::new(Guest { view, macs: cards.into_iter().map(|(_, mac)| mac).collect() })
    };
    let mut all: Vec<Arc<Guest>> = guests.map(guest).collect();
    all.sort_by(|a, b| (&a.view.name, &a.view.uuid).cmp(&(&b.view.name, &b.view.uuid)));
    all
}

/// Watches one pool.
#[derive(Debug)]
pub struct Watcher {
    /// The pool's name.
    pub pool: String,
    /// Its calls.
    pub api: Api,
    /// Where its machines become known.
    pub gate: Gate,
    /// Whose jobs are woken.
    pub executor: Arc<Executor>,
    /// By what.
    pub wakers: Arc<dyn Wakers>,
    /// Where its VMs are noted.
    pub known: Known,
}

impl Watcher {
    /// Watches until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut macs = BTreeSet::new();
        let all = async {
            // Events begin with every VM's record, as large as this reading: one after the other, for the memory's sake.
            let read = self.read(&mut macs).await;
            tokio::join!(self.read_again_and_again(macs, read), self.follow())
        };
        stop.run_until_cancelled(all).await;
    }

    async fn read_again_and_again(&self, mut macs: BTreeSet<MacAddr>, mut read: bool) {
        let mut pause = PAUSE.0;
        loop {
            if read {
                pause = PAUSE.0;
                sleep(REFRESH).await;
            } else {
                sleep(pause).await;
                pause = (pause * 2).min(PAUSE.1);
            }
            read = self.read(&mut macs).await;
        }
    }

    /// Reads the pool and notes how it went; whether it could be read.
    async fn read(&self, macs: &mut BTreeSet<MacAddr>) -> bool {
        match self.refresh(macs).await {
            Ok(reading) => {
                if self.known.note(&self.pool, Ok(reading)) {
                    tracing::info!(pool = %self.pool, machines = macs.len(), "pool read");
                }
                true
            }
            Err(error) => {
                if self.known.note(&self.pool, Err(error.to_string())) {
                    tracing::warn!(pool = %self.pool, %error, "the pool cannot be read; its jobs wait");
                }
                false
            }
        }
    }

    /// Reads VMs and NICs, and tells the boot gate what came and went.
    async fn refresh(&self, macs: &mut BTreeSet<MacAddr>) -> Result<Reading, CallError> {
        let mut guests: HashMap<String, (VmView, Vec<(u32, MacAddr)>)> = HashMap::new();
        let mut candidates = Vec::new();
        for vm in self.api.vms().await? {
            let candidate = Candidate::of(&self.pool, &vm);
            if candidate.guest {
                guests.insert(vm.reference.clone(), (machines::view(&self.pool, &vm), Vec::new()));
            }
            candidates.push(candidate);
        }
        let mut machines: BTreeMap<MacAddr, Machine> = BTreeMap::new();
        for vif in self.api.vifs().await? {
            let (Ok(mac), Some((view, macs))) = (vif.mac.parse::<MacAddr>(), guests.get_mut(&vif.vm)) else {
                continue;
            };
            macs.push((vif.device.parse().unwrap_or(u32::MAX), mac));
            let (name, vm_uuid) = (view.name.clone(), view.uuid.clone());
            machines.insert(mac, Machine { mac, name, vm_uuid, armed: None });
        }
        let gone: Vec<MacAddr> = macs.iter().filter(|mac| !machines.contains_key(mac)).copied().collect();
        *macs = machines.keys().copied().collect();
        self.gate.update(|table| {
            for mac in gone {
                table.forget_unarmed(mac);
            }
            for machine in machines.into_values() {
                table.know(machine);
            }
        });
        Ok(Reading { vms: candidates, guests: in_order(guests.into_values()) })
    }

    /// Wakes the jobs of VMs that changed.
    async fn follow(&self) {
        let mut token = String::new();
        let mut pause = PAUSE.0;
        loop {
            match self.next_events(&token).await {
                Ok(batch) => {
                    self.wake(&batch.events);
                    token = batch.token;
                    pause = PAUSE.0;
                }
                // Older than 6.0: looking every minute is all there is, until the pool is upgraded.
                Err(error) if error.is("MESSAGE_METHOD_UNKNOWN") => {
                    tracing::info!(pool = %self.pool, "the pool tells no events; its jobs look by themselves");
                    sleep(WITHOUT_EVENTS).await;
                }
                Err(error) => {
                    tracing::debug!(pool = %self.pool, %error, "no events");
                    token.clear();
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Without a token: one that begins now. The empty token gives every object of its classes, so it asks for the
    /// one of class `pool`, whose event has no VM's uuid and makes all jobs look; a token is good for any class.
    async fn next_events(&self, token: &str) -> Result<EventBatch, CallError> {
        if token.is_empty() {
            return self.api.event_from(&["pool"], "", Duration::ZERO).await;
        }
        self.api.event_from(&["VM"], token, EVENT_WAIT).await
    }

    fn wake(&self, events: &[ObjectEvent]) {
        let uuid = |event: &ObjectEvent| {
            let uuid = event.snapshot.as_ref().and_then(|record| record.get("uuid")).and_then(Value::as_str);
            uuid.filter(|_| event.class.eq_ignore_ascii_case("vm")).map(str::to_owned)
        };
        // An event without a record is a VM that is gone; nobody knows which, so all look.
        let all = events.iter().any(|event| uuid(event).is_none());
        let changed: BTreeSet<String> = events.iter().filter_map(uuid).collect();
        for job in self.executor.live().iter().filter(|job| job.pool == self.pool) {
            if all || changed.contains(&job.vm_uuid) {
                self.wakers.wake(&job.id);
            }
        }
    }
}

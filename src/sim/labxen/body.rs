//! Does with xl what the pool asks of its domains.
//!
//! Invariants: a VM has one domain at most, and the next is created only when the `xl create` that watches the last
//! one has ended (its disks are closed then); each order is answered once; a domain that ends by the guest's own doing
//! is told to the pool, one that an order ended is not.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    sync::watch,
    time::timeout,
};

use super::{
    DomZero, XenLabError,
    guest::{self, Guest},
    words::{self, Said},
};
use crate::{
    sim::{
        lab::pygrub::last_words,
        pool::{BootMode, DomainAct, DomainOrder, GuestAct},
        server::SharedPool,
    },
    xen::Failure,
};

/// A guest that does not react to a clean shutdown in this time never will; on busy processors it takes a minute.
const SHUTDOWN_TIME: Duration = Duration::from_secs(240);
/// How often a create is tried while the last domain of its name is still being destroyed, and the pause between.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_secs(2);
/// How much of xl's words a failure carries.
const LAST_LINES: usize = 3;

/// The domains of one pool.
#[derive(Debug)]
pub struct Body {
    dom0: DomZero,
    pool: SharedPool,
    folder: PathBuf,
    vms: HashMap<String, OneVm>,
    lost: AtomicU32,
}

/// A VM as dom0 knows it.
#[derive(Debug)]
struct OneVm {
    /// Its block devices in dom0, in VBD order.
    devices: Vec<String>,
    lives: Mutex<Option<Living>>,
}

#[derive(Debug, Clone)]
struct Living {
    domid: u32,
    name: String,
    /// An order ends it; the pool knows.
    stopping: Arc<AtomicBool>,
    gone: watch::Receiver<bool>,
}

/// A domain that was created, and the xl that waits for its end.
struct Created {
    domid: u32,
    xl: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

/// Why a create failed, as far as what to do next depends on it.
enum Refusal {
    NotYet,
    Final(Failure),
}

impl Body {
    /// No domain runs yet. `vms`: dom0's block devices of each VM, by its uuid; `folder` takes consoles.
    pub fn new(dom0: DomZero, pool: SharedPool, folder: PathBuf, vms: HashMap<String, Vec<String>>) -> Self {
        let vms = vms.into_iter().map(|(uuid, devices)| (uuid, OneVm { devices, lives: Mutex::default() }));
        Self { dom0, pool, folder, vms: vms.collect(), lost: AtomicU32::new(0) }
    }

    /// Does what is asked, and answers the pool. Must run on the lab's runtime.
    pub fn obey(self: &Arc<Self>, order: DomainOrder) {
        let body = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = body.carry_out(&order).await;
            if let Err(failure) = &outcome {
                tracing::warn!(vm = %order.name, act = ?order.act, %failure, "xl did not do what the pool asked");
            }
            let (answer, created) = match outcome {
                Ok(Some(created)) => (Ok(created.domid), Some(created)),
                Ok(None) => (Ok(0), None),
                Err(failure) => (Err(failure), None),
            };
            // The domain's end may be told only after its number.
            let watcher = created.map(|created| (body.note(&order, created.domid), created));
            body.pool.with(|pool, now| pool.outside_done(now, order.id, answer));
            if let Some(((living, gone), created)) = watcher {
                body.watch(&order, &living, created).await;
                gone.send_replace(true);
            }
        });
    }

    /// The dom0 that all of it runs in.
    pub const fn dom0(&self) -> &DomZero {
        &self.dom0
    }

    /// What a domain's console has said so far.
    pub fn console(&self, vm_uuid: &str, domid: u32) -> String {
        let live = self.living(vm_uuid).filter(|living| living.domid == domid && !*living.gone.borrow());
        let path = live.map_or_else(|| self.old_console(domid), |living| self.dom0.console(&living.name));
        String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
    }

    /// No domain vanished without its guest's doing, or the pool's.
    pub fn nothing_was_lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) == 0
    }

    fn old_console(&self, domid: u32) -> PathBuf {
        self.folder.join(format!("console-{domid}.log"))
    }

    fn living(&self, vm_uuid: &str) -> Option<Living> {
        let vm = self.vms.get(vm_uuid)?;
        vm.lives.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, order: &DomainOrder, domid: u32) -> (Living, watch::Sender<bool>) {
        let (sender, gone) = watch::channel(false);
        let living = Living { domid, name: order.name.clone(), stopping: Arc::default(), gone };
        if let Some(vm) = self.vms.get(&order.vm_uuid) {
            *vm.lives.lock().unwrap_or_else(PoisonError::into_inner) = Some(living.clone());
        }
        (living, sender)
    }

    async fn carry_out(&self, order: &DomainOrder) -> Result<Option<Created>, Failure> {
        let living = self.living(&order.vm_uuid).filter(|living| !*living.gone.borrow());
        match (&order.act, living) {
            (DomainAct::Build { mode, paused, again }, living) => {
                if let Some(living) = living.filter(|_| *again) {
                    self.end(order, &living, "xl destroy").await?;
                }
                self.create(order, mode, *paused).await.map(Some)
            }
            (DomainAct::Shutdown, Some(living)) => {
                self.end(order, &living, "xl shutdown").await.map(|()| None)
            }
            (DomainAct::Destroy, Some(living)) => self.end(order, &living, "xl destroy").await.map(|()| None),
            (DomainAct::Pause, Some(living)) => self.tell(&living, "xl pause").await.map(|()| None),
            (DomainAct::Unpause, Some(living)) => self.tell(&living, "xl unpause").await.map(|()| None),
            // It ended by itself meanwhile, as the pool is about to hear.
            (DomainAct::Shutdown | DomainAct::Destroy | DomainAct::Pause | DomainAct::Unpause, None) => {
                Ok(None)
            }
        }
    }

    async fn tell(&self, living: &Living, words: &str) -> Result<(), Failure> {
        let done = self.dom0.run(&format!("{words} {}", living.domid)).await;
        done.map(drop).map_err(|error| internal(&error))
    }

    /// Ends a domain, and waits until it is gone.
    async fn end(&self, order: &DomainOrder, living: &Living, words: &str) -> Result<(), Failure> {
        living.stopping.store(true, Ordering::SeqCst);
        let mut gone = living.gone.clone();
        let told = self.tell(living, words).await;
        // xl complains of a domain that ended by itself just now.
        if told.is_err() && !*gone.borrow() {
            living.stopping.store(false, Ordering::SeqCst);
            return told;
        }
        let waited = timeout(SHUTDOWN_TIME, gone.wait_for(|gone| *gone)).await.is_ok();
        if waited {
            return Ok(());
        }
        living.stopping.store(false, Ordering::SeqCst);
        Err(Failure::new("VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT", &[&order.vm]))
    }

    async fn create(&self, order: &DomainOrder, mode: &BootMode, paused: bool) -> Result<Created, Failure> {
        let mut tries = TRIES;
        loop {
            match self.try_create(order, mode, paused).await {
                Ok(created) => return Ok(created),
                Err(Refusal::NotYet) if tries > 0 => {
                    tries -= 1;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(Refusal::NotYet) => {
                    return Err(Failure::new("DOMAIN_EXISTS", &[&order.vm, "0"]));
                }
                Err(Refusal::Final(failure)) => return Err(failure),
            }
        }
    }

    async fn try_create(
        &self,
        order: &DomainOrder,
        mode: &BootMode,
        paused: bool,
    ) -> Result<Created, Refusal> {
        let devices = self.vms.get(&order.vm_uuid).map(|vm| vm.devices.as_slice()).unwrap_or_default();
        let config = guest::config(&Guest {
            name: &order.name,
            uuid: &order.vm_uuid,
            mode,
            memory: order.memory,
            macs: &order.macs,
            disks: devices,
            pv_args: &order.pv_args,
        });
        let file = format!("/run/{}.cfg", order.vm_uuid);
        let pause = if paused { "-p " } else { "" };
        // One connection, one shell: -F keeps xl there until the domain is destroyed, and tells how it ended.
        let words = format!("cat >{file} && exec xl create -F {pause}{file} 2>&1");
        let started = self.dom0.start(&words, &config).await;
        let mut xl = started.map_err(|error| Refusal::Final(internal(&error)))?;
        let mut lines = BufReader::new(xl.stdout.take().ok_or_else(|| Refusal::Final(silent()))?).lines();
        let mut heard: Vec<String> = Vec::new();
        let mut refusal = None;
        while let Ok(Some(line)) = lines.next_line().await {
            match words::said(&line) {
                Some(Said::Built(domid)) => return Ok(Created { domid, xl, lines }),
                Some(Said::NotYet) => refusal = Some(Refusal::NotYet),
                Some(Said::Bootloader(file)) => {
                    refusal = Some(Refusal::Final(self.bootloader_failed(order, &file).await));
                }
                Some(Said::Ended(_)) | None => {}
            }
            heard.push(line);
        }
        let last = heard.get(heard.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("; ");
        tracing::debug!(vm = %order.name, said = %heard.join("; "), "xl create failed");
        Err(refusal.unwrap_or_else(|| Refusal::Final(Failure::new("INTERNAL_ERROR", &[&last]))))
    }

    /// As xapi says it: the bootloader's own last words.
    async fn bootloader_failed(&self, order: &DomainOrder, file: &str) -> Failure {
        let log = self.dom0.run(&format!("cat {file}")).await.unwrap_or_default();
        Failure::new("BOOTLOADER_FAILED", &[&order.vm, &last_words(&log)])
    }

    /// Waits for a domain's end; its console is put aside, and what the guest did is told to the pool.
    async fn watch(&self, order: &DomainOrder, living: &Living, created: Created) {
        let Created { domid, mut xl, mut lines } = created;
        tracing::debug!(vm = %order.name, domid, "a domain runs");
        let mut ended = None;
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some(Said::Ended(act)) = words::said(&line) {
                ended = Some(act);
            }
        }
        // What waits is told only after xl is gone: until then the disks are open.
        let _ = xl.wait().await;
        let _ = std::fs::rename(self.dom0.console(&living.name), self.old_console(domid));
        let stopped = living.stopping.load(Ordering::SeqCst);
        tracing::debug!(vm = %order.name, domid, ?ended, stopped, "a domain ended");
        if stopped {
            return;
        }
        if ended.is_none() {
            tracing::warn!(vm = %order.name, domid, "a domain vanished");
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        let act = ended.unwrap_or(GuestAct::Crash);
        self.pool.with(|pool, now| pool.guest(now, &order.vm_uuid, domid, act));
    }
}

fn internal(error: &XenLabError) -> Failure {
    Failure::new("INTERNAL_ERROR", &[&error.to_string()])
}

fn silent() -> Failure {
    Failure::new("INTERNAL_ERROR", &["ssh has no output"])
}

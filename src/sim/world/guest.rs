//! Guests of World: what a PXE client, an installer and an installed system do, step by step, without sockets. They
//! know their MAC; everything else they get from the gate's answers.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;

use crate::{
    boot::{
        Answer, Armed, Ask, Gate,
        sink::{Report, ReportAnswer, Seen, Sign, Sink},
    },
    clock::Timestamp,
    machine::MacAddr,
    secret::Token,
    sim::pool::{BootMode, DomainStart, GuestAct, Pool},
};

/// How a guest behaves in network boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Behaviour {
    /// Installs, reports, powers off.
    Installs,
    /// Installs and reports, and keeps running.
    StaysUp,
    /// Installs and reports, and leaves a disk that pygrub cannot read.
    BadDisk,
    /// Installs and reports; the new system never does.
    Mute,
    /// Installs, and reboots without a report.
    RebootsUnreported,
    /// Powers off at once, with the old system untouched.
    DiesAtOnce,
    /// Powers off after seven minutes without having touched anything.
    IdlesThenHalts,
    /// Installs from somebody else's server: halts after seven minutes, never asks us.
    External,
    /// Installs and says that it was readied for a PV start.
    Mends,
    /// Installs and says that it is not ready for a PV start.
    Unready,
    /// Reports failure.
    Fails,
    /// Never sends a packet.
    NeverBoots,
    /// Gets an address and no further.
    StopsAtDhcp,
    /// Boots the kernel and never asks for answers.
    StopsAtKernel,
    /// Fetches its answers and never reports.
    Silent,
    /// Reports the first stages and hangs.
    Hangs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Dhcp,
    Script,
    Kernel,
    Answers,
    Stage(&'static str),
    Ready(bool),
    Install { bootable: bool, reports: bool },
    Wait(u64),
    PowerOff,
    Reboot,
    Lease,
    Booted,
}

impl Behaviour {
    /// Every behaviour.
    pub const ALL: [Self; 16] = [
        Self::Installs,
        Self::StaysUp,
        Self::BadDisk,
        Self::Mute,
        Self::RebootsUnreported,
        Self::DiesAtOnce,
        Self::IdlesThenHalts,
        Self::External,
        Self::Mends,
        Self::Unready,
        Self::Fails,
        Self::NeverBoots,
        Self::StopsAtDhcp,
        Self::StopsAtKernel,
        Self::Silent,
        Self::Hangs,
    ];

    fn acts(self) -> Vec<Act> {
        use Act::{Answers, Dhcp, Install, Kernel, PowerOff, Ready, Reboot, Script, Stage, Wait};
        let boot =
            [Dhcp, Script, Kernel, Answers, Stage("started"), Stage("partitioned"), Wait(60), Stage("base")];
        let install = |bootable, reports, end: &[Act]| {
            let mut acts = boot.to_vec();
            acts.extend([Install { bootable, reports }, Stage("late")]);
            acts.extend(end);
            acts
        };
        match self {
            Self::Installs => install(true, true, &[Stage("done"), PowerOff]),
            Self::StaysUp => install(true, true, &[Stage("done")]),
            Self::BadDisk => install(false, true, &[Stage("done"), PowerOff]),
            Self::Mute => install(true, false, &[Stage("done"), PowerOff]),
            Self::Mends => install(true, true, &[Ready(true), Stage("done"), PowerOff]),
            Self::Unready => install(true, true, &[Ready(false), Stage("done"), PowerOff]),
            Self::RebootsUnreported => install(true, true, &[Wait(400), Reboot]),
            Self::DiesAtOnce => vec![Wait(5), PowerOff],
            Self::IdlesThenHalts => vec![Dhcp, Script, Kernel, Wait(420), PowerOff],
            Self::External => vec![Wait(420), Install { bootable: true, reports: false }, PowerOff],
            Self::Fails => {
                vec![Dhcp, Script, Kernel, Answers, Stage("started"), Stage("failed"), Wait(30), PowerOff]
            }
            Self::NeverBoots => vec![],
            Self::StopsAtDhcp => vec![Dhcp],
            Self::StopsAtKernel => vec![Dhcp, Script, Kernel],
            Self::Silent => vec![Dhcp, Script, Kernel, Answers],
            Self::Hangs => vec![Dhcp, Script, Kernel, Answers, Stage("started"), Stage("partitioned")],
        }
    }
}

/// What stands on a VM's disk.
#[derive(Debug, Clone, Default)]
pub enum DiskContent {
    /// What was there before the job.
    #[default]
    Old,
    /// A new system, with its `booted` token when its installer had one.
    New(Option<Token>),
}

/// The server, as a guest reaches it.
#[derive(Debug, Clone, Copy)]
pub struct Services<'a> {
    /// The boot gate.
    pub gate: &'a Gate,
    /// Where reports go.
    pub sink: &'a dyn Sink,
}

/// One domain's guest.
#[derive(Debug)]
pub struct Guest {
    /// The VM.
    pub vm_uuid: String,
    domid: u32,
    mac: Option<MacAddr>,
    acts: Vec<Act>,
    at: usize,
    /// When it acts next.
    pub next: Timestamp,
    retry_until: Option<Timestamp>,
    armed: Option<Arc<Armed>>,
    booted: Option<Token>,
    /// It does nothing more.
    pub idle: bool,
    /// The server took its word that it is not ready for a PV start.
    pub unready: bool,
    /// The reports that it sent.
    pub sent: Vec<Report>,
}

/// Reports are tried again for this long.
const PATIENCE: Duration = Duration::from_secs(600);

enum Try {
    Went,
    Again,
    Stuck,
}

impl Guest {
    /// The guest of a new domain.
    pub fn new(start: &DomainStart, behaviour: Behaviour, disk: &DiskContent, now: Timestamp) -> Self {
        let (acts, booted) = match (&start.mode, disk) {
            (BootMode::Hvm { order }, _) if order.starts_with('n') => (behaviour.acts(), None),
            // From its disk, whichever way.
            (BootMode::Hvm { .. } | BootMode::Pv, DiskContent::Old | DiskContent::New(None)) => {
                (vec![Act::Lease], None)
            }
            (BootMode::Hvm { .. } | BootMode::Pv, DiskContent::New(Some(token))) => {
                (vec![Act::Lease, Act::Booted], Some(token.clone()))
            }
        };
        Self {
            vm_uuid: start.vm_uuid.clone(),
            domid: start.domid,
            mac: start.macs.first().copied(),
            idle: acts.is_empty(),
            unready: false,
            sent: Vec::new(),
            acts,
            at: 0,
            next: now + Duration::from_millis(1500),
            retry_until: None,
            armed: None,
            booted,
        }
    }

    /// One step. `None`: the server died while it answered.
    pub fn act(
        &mut self,
        now: Timestamp,
        services: Option<Services<'_>>,
        pool: impl Fn(&mut dyn FnMut(&mut Pool)),
        disk: &mut DiskContent,
    ) -> Option<()> {
        let Some(&act) = self.acts.get(self.at) else {
            self.idle = true;
            return Some(());
        };
        let tried = match (act, services) {
            (Act::Install { bootable, reports }, _) => {
                *disk = DiskContent::New(
                    self.armed.as_ref().filter(|_| reports).map(|armed| armed.booted.clone()),
                );
                let found = if bootable {
                    Ok(())
                } else {
                    Err("Unable to find partition containing kernel".to_owned())
                };
                pool(&mut |pool| pool.set_bootable(&self.vm_uuid, found.clone()));
                Try::Went
            }
            (Act::Wait(seconds), _) => {
                self.at += 1;
                self.next = now + Duration::from_secs(seconds);
                return Some(());
            }
            (Act::PowerOff, _) => self.end(now, &GuestAct::PowerOff, pool),
            (Act::Reboot, _) => self.end(now, &GuestAct::Reboot, pool),
            (_, None) => Try::Again,
            (act, Some(services)) => self.ask(act, services)?,
        };
        self.advance(now, &tried, act);
        Some(())
    }

    fn advance(&mut self, now: Timestamp, tried: &Try, act: Act) {
        match tried {
            Try::Went => {
                self.at += 1;
                self.retry_until = None;
                self.next = now + Duration::from_secs(2);
            }
            Try::Again => {
                let until = *self.retry_until.get_or_insert(now + PATIENCE);
                self.next = now + Duration::from_secs(15);
                if now >= until {
                    // What cannot report powers off; what cannot boot sits there.
                    let installing = matches!(act, Act::Stage(_) | Act::Ready(_));
                    self.acts = if installing { vec![Act::PowerOff] } else { Vec::new() };
                    self.at = 0;
                }
            }
            Try::Stuck => self.idle = true,
        }
    }

    fn end(&self, now: Timestamp, act: &GuestAct, pool: impl Fn(&mut dyn FnMut(&mut Pool))) -> Try {
        pool(&mut |pool| {
            pool.guest(now, &self.vm_uuid, self.domid, act.clone());
        });
        Try::Stuck
    }

    /// `None`: the server died.
    fn ask(&mut self, act: Act, services: Services<'_>) -> Option<Try> {
        let Some(mac) = self.mac else { return Some(Try::Stuck) };
        let sign = |sign| services.sink.seen(Seen { mac, sign, peer: None });
        Some(match act {
            Act::Dhcp => match services.gate.answer(Ask::Netboot { mac }) {
                Answer::Unknown => Try::Again,
                Answer::Refused(_) => {
                    sign(Sign::NetbootRefused);
                    Try::Stuck
                }
                Answer::Boot(armed) => {
                    sign(Sign::Dhcp);
                    self.armed = Some(armed);
                    Try::Went
                }
            },
            Act::Script => {
                sign(Sign::Script);
                Try::Went
            }
            Act::Kernel => {
                sign(Sign::Kernel);
                Try::Went
            }
            Act::Answers => {
                let token = self.armed.as_ref()?.render.hash();
                match services.sink.answer_fetched(token, None).now_or_never()? {
                    Ok(true) => Try::Went,
                    Ok(false) | Err(_) => Try::Again,
                }
            }
            Act::Stage(stage) => {
                let token = self.armed.as_ref()?.report.hash();
                self.report(services, token, stage, b"percent=50".to_vec())?
            }
            Act::Ready(ready) => {
                let token = self.armed.as_ref()?.report.hash();
                let tried = self.report(services, token, "ready", document(ready).into_bytes())?;
                self.unready |= !ready && matches!(tried, Try::Went);
                tried
            }
            Act::Lease => {
                sign(Sign::Lease);
                Try::Went
            }
            Act::Booted => {
                let token = self.booted.as_ref()?.hash();
                self.report(services, token, "booted", Vec::new())?
            }
            Act::Install { .. } | Act::Wait(_) | Act::PowerOff | Act::Reboot => Try::Went,
        })
    }

    fn report(
        &mut self,
        services: Services<'_>,
        token: crate::secret::TokenHash,
        stage: &str,
        body: Vec<u8>,
    ) -> Option<Try> {
        let report = Report { token, stage: stage.to_owned(), body, peer: None, by_get: false };
        self.sent.push(report.clone());
        Some(match services.sink.report(report).now_or_never()? {
            ReportAnswer::Accepted | ReportAnswer::Already => Try::Went,
            ReportAnswer::Closed
            | ReportAnswer::Unknown
            | ReportAnswer::WrongMethod
            | ReportAnswer::Later => Try::Again,
        })
    }
}

/// What the installed system says of itself: it was mended, or has no menu that pygrub could read.
fn document(ready: bool) -> String {
    let (kernel, why) = if ready { ("/vmlinuz-1", "") } else { ("", "there is no grub.cfg or menu.lst") };
    let check = r#"{"check":"fstab","state":"mended","detail":"/etc/fstab names devices by UUID"}"#;
    format!(
        r#"{{"v":1,"root":"UUID=1","boot":{{"kind":"partition","fs":"ext2"}},"menu":{{"file":"","kernel":"{kernel}",
        "why":"{why}"}},"kernels":[{{"version":"1","file":"/boot/vmlinuz-1","compression":"gzip","xen_pv":"yes",
        "block":"initrd","net":"initrd"}}],"checks":[{check}]}}"#
    )
}

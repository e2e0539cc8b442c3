//! What the desk knows of pools, machines, profiles, leases and transfers, as plain data; and whether the server is
//! ready. A shell over the gate, the store and the executor.
//!
//! Invariant: no token, password or value of a variable is in a view.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{chain, desk::Desk, orders::PoolAway};
use crate::{
    boot::{ArmPhase, going::Going, sink::Protocol},
    clock::seconds,
    config::{Completion, EvidenceKind, ProfileKind, TlsTrust},
    store::{Batch, StoreError, leases},
};

/// A pool of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PoolView {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is reached.
    pub url: String,
    /// How its certificate is judged: `ca`, `pins`, `insecure` or `plain-http`.
    pub trust: String,
    /// It could be read the last time.
    pub reachable: bool,
    /// Why it could not; null where it could, or was not read yet.
    pub problem: Option<String>,
    /// Its VMs when it was last read.
    pub vms: usize,
    /// Jobs on it that have not ended.
    pub jobs: usize,
    /// Which VMs jobs may touch; none: all.
    pub allow: Vec<String>,
    /// `limits.installs_per_pool`.
    pub installs_per_pool: u32,
    /// `limits.installs_per_host`.
    pub installs_per_host: u32,
}

/// What the boot gate answers a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GateView {
    /// It may not netboot.
    Closed,
    /// It may netboot.
    Booting,
    /// It netbooted, and may fetch its answer file again, no more.
    Installing,
}

/// A machine as the boot services know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineView {
    /// Its NIC.
    pub mac: String,
    /// The VM's name label.
    pub name: String,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// The address that it was last heard from.
    pub address: Option<String>,
    /// What the boot gate answers it.
    pub gate: GateView,
    /// The job whose gate is open.
    pub job: Option<String>,
    /// The profile of its section in the configuration, where there is one.
    pub profile: Option<String>,
}

/// A profile of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProfileView {
    /// Its name.
    pub name: String,
    /// `install` or `rescue`.
    pub kind: String,
    /// How completion is known: `report`, `halt` or `either`.
    pub completion: String,
    /// What proves that the new system lives: `report`, `lease`, `agent`, `tcp:PORT` or `none`.
    pub evidence: String,
    /// The kernel, beneath `http.root`; null: another server boots its machines.
    pub kernel: Option<String>,
    /// The initrds.
    pub initrd: Vec<String>,
    /// The answer files' names.
    pub answers: Vec<String>,
    /// Which variables it declares.
    pub variables: Vec<VariableView>,
}

/// A variable that a profile declares; never its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VariableView {
    /// Its name.
    pub name: String,
    /// `text`, `secret`, `integer`, `boolean`, `list`, `address` or `users`.
    pub kind: String,
    /// It has to be set.
    pub required: bool,
    /// What it is for.
    pub about: String,
}

/// A lease of our DHCP server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// Who has it.
    pub mac: String,
    /// The address.
    pub address: String,
    /// Nobody else gets it before, RFC 3339 in UTC.
    pub until: String,
    /// It has run out.
    pub over: bool,
    /// The name label of the VM with this NIC, where one is known.
    pub vm: Option<String>,
}

/// A transfer of a file that goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunningTransfer {
    /// The machine.
    pub mac: String,
    /// The job, where it has one.
    pub job: Option<String>,
    /// `http` or `tftp`.
    pub protocol: Protocol,
    /// To which address.
    pub peer: String,
    /// What, without tokens.
    pub file: String,
    /// Bytes that have left.
    pub bytes: u64,
    /// Bytes in all.
    pub length: u64,
    /// For how long it has gone on.
    pub seconds: f64,
}

/// A transfer that ended lately.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TransferLine {
    /// When it ended, RFC 3339 in UTC.
    pub at: String,
    /// The machine, where it is known.
    pub mac: Option<String>,
    /// The job, where it is known.
    pub job: Option<String>,
    /// `http` or `tftp`.
    pub protocol: Protocol,
    /// To which address.
    pub peer: String,
    /// What, without tokens.
    pub file: String,
    /// Bytes of content.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// `sent`, `complete`, `broken-off`, `refused`, …
    pub outcome: String,
}

/// Whether the server can do its work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// All of what stands below.
    pub ready: bool,
    /// The database can be written; else why not.
    pub store: Option<String>,
    /// The listeners of the configuration are bound: the server answers nobody before they are.
    pub listeners: bool,
    /// Pools that do not answer, or were not read yet.
    pub pools: Vec<PoolAway>,
}

impl Desk {
    /// The pools, by name.
    pub fn pools(&self) -> Vec<PoolView> {
        let config = self.config.now();
        let problems = self.known.problems();
        let live = self.executor.live();
        let jobs_of =
            |name: &str| live.iter().filter(|job| job.pool == name && !job.state.is_terminal()).count();
        let view = |(name, pool): (&String, &crate::config::PoolConfig)| PoolView {
            name: name.clone(),
            url: pool.url.clone(),
            trust: trust(&pool.tls).to_owned(),
            reachable: problems.get(name).is_some_and(Option::is_none),
            problem: problems.get(name).cloned().flatten(),
            vms: self.known.vms(name).iter().filter(|vm| vm.guest).count(),
            jobs: jobs_of(name),
            allow: pool.allow.clone(),
            installs_per_pool: config.limits.installs_per_pool,
            installs_per_host: config.limits.installs_per_host,
        };
        config.pools.iter().map(view).collect()
    }

    /// The machines that the boot gate knows, in no order.
    pub fn machines(&self) -> Vec<MachineView> {
        let mut machines = Vec::new();
        self.gate.update(|table| {
            machines = table
                .machines()
                .map(|(machine, address)| MachineView {
                    mac: machine.mac.to_string(),
                    name: machine.name.clone(),
                    vm_uuid: machine.vm_uuid.clone(),
                    address: address.as_ref().map(IpAddr::to_string),
                    gate: match machine.armed.as_ref().map(|armed| armed.phase) {
                        None => GateView::Closed,
                        Some(ArmPhase::Booting) => GateView::Booting,
                        Some(ArmPhase::Installing) => GateView::Installing,
                    },
                    job: machine.armed.as_ref().map(|armed| armed.job.clone()),
                    profile: None,
                })
                .collect();
        });
        let config = self.config.now();
        for machine in &mut machines {
            let own = super::preview::machine_config(&config, &machine.vm_uuid, &machine.name);
            machine.profile = own.and_then(|own| own.profile.clone());
        }
        machines
    }

    /// The profiles, by name.
    pub fn profiles(&self) -> Vec<ProfileView> {
        let config = self.config.now();
        let variables = |name: &str| {
            let declared = config.declared.get(name).into_iter().flatten();
            let view = declared.map(|(name, variable)| VariableView {
                name: name.clone(),
                kind: variable.kind.label().to_owned(),
                required: variable.default.is_none(),
                about: variable.about.clone(),
            });
            view.collect()
        };
        let view = |(name, profile): (&String, &crate::config::Profile)| {
            let boot = profile.boot.as_ref();
            ProfileView {
                name: name.clone(),
                kind: kind(profile.kind).to_owned(),
                completion: completion(profile.completion).to_owned(),
                evidence: evidence(profile.evidence),
                kernel: boot.map(|boot| boot.kernel.clone()),
                initrd: boot.map(|boot| boot.initrd.clone()).unwrap_or_default(),
                answers: boot
                    .map(|boot| boot.answers().map(|answer| answer.name.to_owned()).collect())
                    .unwrap_or_default(),
                variables: variables(name),
            }
        };
        config.profiles.iter().map(view).collect()
    }

    /// The leases of our DHCP server, in no order.
    ///
    /// # Errors
    /// The store is away.
    pub async fn leases(&self) -> Result<Vec<LeaseView>, StoreError> {
        let now = self.clock.now();
        let leases = leases::all(&*self.store).await?;
        let mut views = Vec::with_capacity(leases.len());
        self.gate.update(|table| {
            views.extend(leases.iter().map(|lease| LeaseView {
                mac: lease.mac.to_string(),
                address: lease.address.to_string(),
                until: lease.until.to_string(),
                over: lease.until <= now,
                vm: table.machine(lease.mac).map(|machine| machine.name.clone()),
            }));
        });
        Ok(views)
    }

    /// The transfers that go on, the last to begin first.
    pub fn running_transfers(&self) -> Vec<RunningTransfer> {
        let view = |going: &Going| RunningTransfer {
            mac: going.mac.to_string(),
            job: self.executor.job_of(going.mac),
            protocol: going.protocol,
            peer: going.peer.to_string(),
            file: going.file.clone(),
            bytes: going.sent(),
            length: going.length,
            seconds: seconds(going.begun.elapsed()),
        };
        self.flight.going().iter().map(|going| view(going)).collect()
    }

    /// The transfers that ended lately, the newest first.
    pub fn transfers(&self) -> Vec<TransferLine> {
        let all = self.executor.all_transfers();
        let view = |(at, transfer): &(crate::clock::Timestamp, crate::boot::sink::Transfer)| TransferLine {
            at: at.to_string(),
            mac: transfer.mac.map(|mac| mac.to_string()),
            job: transfer.job.clone(),
            protocol: transfer.protocol,
            peer: transfer.peer.to_string(),
            file: transfer.file.clone(),
            bytes: transfer.bytes,
            seconds: seconds(transfer.took),
            outcome: transfer.outcome.to_owned(),
        };
        all.iter().rev().map(view).collect()
    }

    /// Whether the server can do its work now.
    pub async fn readiness(&self) -> Readiness {
        // A commit of nothing goes to the disk like any other.
        let store = self.store.commit(Batch::new()).await.err().map(|error| chain(&error));
        let problems = self.known.problems();
        let away = |name: &String| {
            let problem = match problems.get(name) {
                Some(None) => return None,
                Some(Some(problem)) => problem.clone(),
                None => "it was not read yet".to_owned(),
            };
            Some(PoolAway { pool: name.clone(), problem })
        };
        let pools: Vec<PoolAway> = self.config.now().pools.keys().filter_map(away).collect();
        Readiness { ready: store.is_none() && pools.is_empty(), store, listeners: true, pools }
    }
}

const fn trust(tls: &TlsTrust) -> &'static str {
    match tls {
        TlsTrust::Ca(_) => "ca",
        TlsTrust::Pins(_) => "pins",
        TlsTrust::Insecure => "insecure",
        TlsTrust::PlainHttp => "plain-http",
    }
}

const fn kind(kind: ProfileKind) -> &'static str {
    match kind {
        ProfileKind::Install => "install",
        ProfileKind::Rescue => "rescue",
    }
}

const fn completion(completion: Completion) -> &'static str {
    match completion {
        Completion::Report => "report",
        Completion::Halt => "halt",
        Completion::Either => "either",
    }
}

fn evidence(kind: EvidenceKind) -> String {
    match kind {
        EvidenceKind::Report => "report".to_owned(),
        EvidenceKind::Lease => "lease".to_owned(),
        EvidenceKind::Agent => "agent".to_owned(),
        EvidenceKind::Tcp(port) => format!("tcp:{port}"),
        EvidenceKind::None => "none".to_owned(),
    }
}

//! The control API's JSON: what it takes, and what it shows. Pure.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Value as Json, json};

use crate::{
    sim::{
        faults::{Fault, FaultKind, Tally, Trigger},
        pool::{BootMode, Caller, GuestAct, LoggedCall, PersonAct, VmTruth},
    },
    xen::Failure,
};

/// The other_config key of bootflip's claim.
const CLAIM_KEY: &str = "bootflip:claim";

/// A fault to plan.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewFault {
    name: String,
    method: String,
    vm: Option<String>,
    #[serde(default = "one")]
    nth: u32,
    #[serde(default = "one")]
    count: u32,
    kind: Kind,
}

const fn one() -> u32 {
    1
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Kind {
    LoseBefore,
    LoseAfter,
    Fail(Vec<String>),
    DelayMs(u64),
    Hang,
    Hold,
    HoldReply,
    ExpireSessions,
    CoordinatorRestart { lose_seconds: u64 },
    NotCoordinator(String),
    Person(Act),
}

impl NewFault {
    /// The fault; `Err` says why it could never fire.
    pub(super) fn into_fault(self) -> Result<Fault, String> {
        if self.nth == 0 || self.count == 0 {
            return Err("nth and count begin at 1".to_owned());
        }
        if self.method.starts_with("Async.") {
            return Err("leave `Async.` out: a method stands for both forms".to_owned());
        }
        let kind = match self.kind {
            Kind::LoseBefore => FaultKind::LoseBefore,
            Kind::LoseAfter => FaultKind::LoseAfter,
            Kind::Fail(words) => {
                let mut words = words.into_iter();
                let code = words.next().ok_or_else(|| "fail needs an error code".to_owned())?;
                FaultKind::Fail(Failure { code, params: words.collect() })
            }
            Kind::DelayMs(millis) => FaultKind::Delay(Duration::from_millis(millis)),
            Kind::Hang => FaultKind::Hang,
            Kind::Hold => FaultKind::Hold,
            Kind::HoldReply => FaultKind::HoldReply,
            Kind::ExpireSessions => FaultKind::ExpireSessions,
            Kind::CoordinatorRestart { lose_seconds } => {
                FaultKind::CoordinatorRestart { lose: Duration::from_secs(lose_seconds) }
            }
            Kind::NotCoordinator(address) => FaultKind::NotCoordinator { address },
            Kind::Person(act) => FaultKind::Person(act.into_act(&BTreeMap::new())),
        };
        let when = Trigger { method: self.method, vm: self.vm, nth: self.nth, times: self.count };
        Ok(Fault { name: self.name, when, kind })
    }
}

/// What a person does to a VM.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Act {
    Start,
    Shutdown,
    HardShutdown,
    Reboot,
    HardReboot,
    Pause,
    Unpause,
    Migrate,
    Destroy,
    RemoveClaim,
    Clone(String),
    Rename(String),
    SetType(String),
    SetPolicy(String),
    SetOrder(String),
    SetBootloader(String),
    SetAfterReboot(String),
    RemoveKey(String),
    SetTemplate(bool),
}

impl Act {
    /// The act; `boot_params` are the VM's, of which only the order changes.
    pub(super) fn into_act(self, boot_params: &BTreeMap<String, String>) -> PersonAct {
        match self {
            Self::Start => PersonAct::Start,
            Self::Shutdown => PersonAct::CleanShutdown,
            Self::HardShutdown => PersonAct::HardShutdown,
            Self::Reboot => PersonAct::CleanReboot,
            Self::HardReboot => PersonAct::HardReboot,
            Self::Pause => PersonAct::Pause,
            Self::Unpause => PersonAct::Unpause,
            Self::Migrate => PersonAct::Migrate,
            Self::Destroy => PersonAct::Destroy,
            Self::RemoveClaim => PersonAct::RemoveOtherConfig { key: CLAIM_KEY.to_owned() },
            Self::Clone(name) => PersonAct::Clone { name },
            Self::Rename(name) => PersonAct::SetName(name),
            Self::SetType(kind) => PersonAct::SetDomainType(kind),
            Self::SetPolicy(policy) => PersonAct::SetPolicy(policy),
            Self::SetOrder(order) => {
                let mut params = boot_params.clone();
                params.insert("order".to_owned(), order);
                PersonAct::SetBootParams(params)
            }
            Self::SetBootloader(bootloader) => PersonAct::SetPvBootloader(bootloader),
            Self::SetAfterReboot(action) => PersonAct::SetActionsAfterReboot(action),
            Self::RemoveKey(key) => PersonAct::RemoveOtherConfig { key },
            Self::SetTemplate(template) => PersonAct::SetTemplate(template),
        }
    }
}

/// What a guest does to itself, or has done to its disk.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Guest {
    PowerOff,
    Reboot,
    Crash,
    Agent(String),
    Installed(bool),
}

impl Guest {
    /// The act of a living guest; `Err`: what pygrub finds on the disk from now on.
    pub(super) fn into_act(self) -> Result<GuestAct, Result<(), String>> {
        match self {
            Self::PowerOff => Ok(GuestAct::PowerOff),
            Self::Reboot => Ok(GuestAct::Reboot),
            Self::Crash => Ok(GuestAct::Crash),
            Self::Agent(ipv4) => Ok(GuestAct::Agent { ipv4 }),
            Self::Installed(true) => Err(Ok(())),
            Self::Installed(false) => Err(Err("Unable to find partition containing kernel".to_owned())),
        }
    }
}

/// What happens to the coordinator, or to all that it remembers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Coordinator {
    Restart {
        #[serde(default)]
        lose_seconds: u64,
    },
    Move(String),
    ExpireSessions,
    LoseEvents,
}

/// One call of the log. `task` is absent for a call that made none, and until it ended.
pub(super) fn call(call: &LoggedCall) -> Json {
    let caller = match call.caller {
        Caller::Client => "client",
        Caller::Person => "person",
    };
    let mut shown = json!({
        "at": call.at.to_string(),
        "caller": caller,
        "method": call.method,
        "vm": call.vm,
        "params": call.params,
        "outcome": outcome(&call.outcome),
    });
    if let (Some(task), Some(members)) = (&call.task, shown.as_object_mut()) {
        members.insert("task".to_owned(), outcome(task));
    }
    shown
}

/// `"ok"`, or the failure's code and parameters.
fn outcome(outcome: &Result<(), Failure>) -> Json {
    match outcome {
        Ok(()) => json!("ok"),
        Err(failure) => std::iter::once(&failure.code).chain(&failure.params).cloned().collect(),
    }
}

/// A VM as it really is.
pub(super) fn truth(truth: &VmTruth) -> Json {
    let domain = truth.domain.as_ref().map(|domain| {
        let (mode, order) = match &domain.mode {
            BootMode::Hvm { order } => ("hvm", Some(order)),
            BootMode::Pv => ("pv", None),
        };
        json!({
            "domid": domain.domid,
            "mode": mode,
            "order": order,
            "started": domain.started.to_string(),
            "paused": domain.paused,
        })
    });
    let [after_shutdown, after_reboot, after_crash] = &truth.actions_after;
    json!({
        "uuid": truth.uuid,
        "name": truth.name,
        "power_state": truth.power_state,
        "domain_type": truth.domain_type,
        "HVM_boot_policy": truth.hvm_boot_policy,
        "HVM_boot_params": truth.hvm_boot_params,
        "PV_bootloader": truth.pv_bootloader,
        "PV_args": truth.pv_args,
        "actions_after_shutdown": after_shutdown,
        "actions_after_reboot": after_reboot,
        "actions_after_crash": after_crash,
        "platform": truth.platform,
        "other_config": truth.other_config,
        "claimed": truth.claim.is_some(),
        "start_time": truth.start_time,
        "hvm_starts": truth.hvm_starts,
        "pv_starts": truth.pv_starts,
        "domain": domain,
    })
}

/// How often a fault was planned and fired.
pub(super) fn tally(tally: &Tally) -> Json {
    let last = tally.last.map(|at| at.to_string());
    json!({ "name": tally.name, "planned": tally.planned, "fired": tally.fired, "last": last })
}

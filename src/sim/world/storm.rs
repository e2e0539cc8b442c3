//! Random misfortune, from a seed: lost replies, refusals, outages, crashes, and people.

use std::{collections::BTreeMap, time::Duration};

use super::{rng::Rng, verdict::Ledger};
use crate::{
    clock::Timestamp,
    provision::claim::CLAIM_KEY,
    sim::pool::{PersonAct, Pool},
    xen::{Failure, Method, Value},
};

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Done and answered.
    Done,
    /// Not done, not answered.
    LostBefore,
    /// Done, not answered.
    LostAfter,
    /// Not done, refused.
    Fails(Failure),
    /// The pool (or the disk) is away.
    Away,
    /// The server dies before it.
    DiesBefore,
    /// It is done, and the server dies.
    DiesAfter,
    /// It is done and answered, and the server dies at its next step.
    DiesWithReply,
}

/// Kinds of misfortune, as they are counted.
pub const KINDS: [&str; 22] = [
    "lost-before",
    "lost-after",
    "busy",
    "session-lost",
    "refused",
    "stays-busy",
    "outage",
    "coordinator-restart",
    "no-host",
    "start-refused",
    "crash-before",
    "crash-after",
    "crash-at-commit",
    "disk-full",
    "person-starts",
    "person-stops",
    "person-reboots",
    "person-sets-order",
    "person-sets-type",
    "person-removes-claim",
    "person-destroys",
    "rival-claims",
];

/// The claim of another bootflip server, with a database of its own.
fn rival_claim(vm_uuid: &str) -> String {
    format!(
        "{{\"v\":1,\"owner\":\"rival\",\"vm_uuid\":\"{vm_uuid}\",\"job\":\"theirs\",\"attempt\":1,\
         \"nonce\":\"ffff\",\"since\":0,\"touched\":{{}}}}"
    )
}

/// Random misfortune with its own seed.
#[derive(Debug)]
pub struct Storm {
    rng: Rng,
    /// One call in this many is hit.
    every: u64,
    outage_until: Timestamp,
    disk_full_until: u32,
    stuck: BTreeMap<&'static str, Timestamp>,
    /// No misfortune any more.
    pub over: bool,
}

impl Storm {
    /// A storm of this seed that hits one call in `every`.
    pub fn new(seed: u64, every: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            every,
            outage_until: Timestamp::default(),
            disk_full_until: 0,
            stuck: BTreeMap::new(),
            over: false,
        }
    }

    /// The fate of a call.
    pub fn fate(
        &mut self,
        now: Timestamp,
        method: Method,
        params: &[Value],
        pool: &mut Pool,
        ledger: &mut Ledger,
    ) -> Fate {
        if self.over {
            return Fate::Done;
        }
        if now < self.outage_until {
            return Fate::Away;
        }
        let is_start = method == Method::VmStart;
        let paused = is_start && params.get(1) == Some(&Value::Bool(true));
        if let Some(until) = self.stuck.get(if paused { "no-host" } else { "stays-busy" })
            && now < *until
        {
            if paused {
                return Fate::Fails(Failure::new("NO_HOSTS_AVAILABLE", &[]));
            }
            if method.changes_the_pool() && !is_start {
                return Fate::Fails(Failure::new("OTHER_OPERATION_IN_PROGRESS", &["VM", "ref"]));
            }
        }
        if is_start && !paused && self.rng.one_in(40) {
            ledger.count_fault("start-refused");
            return Fate::Fails(Failure::new(
                "DOMAIN_BUILDER_ERROR",
                &["xc_dom_linux_build", "1", "no kernel"],
            ));
        }
        if !self.rng.one_in(self.every) {
            return Fate::Done;
        }
        self.misfortune(now, method, params, pool, ledger)
    }

    fn misfortune(
        &mut self,
        now: Timestamp,
        method: Method,
        params: &[Value],
        pool: &mut Pool,
        ledger: &mut Ledger,
    ) -> Fate {
        let changes = method.changes_the_pool();
        let kind = *self.rng.pick(&KINDS);
        let fate = match kind {
            "lost-before" => Fate::LostBefore,
            "lost-after" => Fate::LostAfter,
            "busy" if changes => Fate::Fails(Failure::new("OTHER_OPERATION_IN_PROGRESS", &["VM", "ref"])),
            "session-lost" => Fate::Fails(Failure::new("SESSION_INVALID", &["ref"])),
            "refused" if changes => Fate::Fails(Failure::new("LICENCE_RESTRICTION", &["bootflip"])),
            "stays-busy" | "no-host" => {
                self.stuck.insert(kind, now + Duration::from_secs(900));
                Fate::Done
            }
            "outage" => {
                self.outage_until = now + Duration::from_secs(1 + self.rng.below(600));
                Fate::Away
            }
            "coordinator-restart" => {
                pool.restart_coordinator(now, Duration::ZERO);
                Fate::LostBefore
            }
            "crash-before" => Fate::DiesBefore,
            "crash-after" => Fate::DiesAfter,
            _ => return self.person(kind, now, method, params, pool, ledger),
        };
        ledger.count_fault(kind);
        fate
    }

    fn person(
        &mut self,
        kind: &'static str,
        now: Timestamp,
        method: Method,
        params: &[Value],
        pool: &mut Pool,
        ledger: &mut Ledger,
    ) -> Fate {
        // Between a look and a call there is no lock in XenAPI; what a person does in that instant is not our doing.
        let at_a_look =
            method == Method::VmGetRecord || (kind == "person-starts" && method == Method::VmStart);
        let Some((uuid, _)) = pool.vm_of(params).filter(|_| at_a_look) else { return Fate::Done };
        let act = match kind {
            "person-starts" => PersonAct::Start,
            "person-stops" => PersonAct::HardShutdown,
            "person-reboots" => PersonAct::HardReboot,
            "person-sets-order" => PersonAct::SetBootParams([("order".to_owned(), "dc".to_owned())].into()),
            "person-sets-type" => PersonAct::SetPolicy("BIOS order".into()),
            "person-removes-claim" => PersonAct::RemoveOtherConfig { key: CLAIM_KEY.into() },
            "rival-claims" => PersonAct::AddOtherConfig { key: CLAIM_KEY.into(), value: rival_claim(&uuid) },
            "person-destroys" if self.rng.one_in(3) => PersonAct::Destroy,
            _ => return Fate::Done,
        };
        if act == PersonAct::Destroy {
            let _ = pool.person(now, &uuid, &PersonAct::HardShutdown);
        }
        if ledger.person_acts(pool, now, &uuid, &act) {
            ledger.count_fault(kind);
        }
        Fate::Done
    }

    /// The fate of a commit.
    pub fn commit(&mut self, ledger: &mut Ledger) -> Fate {
        if self.over {
            return Fate::Done;
        }
        if self.disk_full_until > 0 {
            self.disk_full_until -= 1;
            return Fate::Away;
        }
        if !self.rng.one_in(self.every * 4) {
            return Fate::Done;
        }
        let kind = *self.rng.pick(&["crash-at-commit", "disk-full"]);
        ledger.count_fault(kind);
        if kind == "disk-full" {
            self.disk_full_until = 3;
            return Fate::Away;
        }
        if self.rng.one_in(2) { Fate::DiesBefore } else { Fate::DiesAfter }
    }
}

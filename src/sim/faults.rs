//! Faults as data: which call is hit, and what happens to it. Pure; the bodies carry the faults out.
//!
//! Invariant: a fault fires on its nth matching call and no other, so a plan and a sequence of calls give the same
//! faults every time; [`FaultPlan::tally`] says which planned ones did not fire.

use std::{collections::BTreeSet, time::Duration};

use crate::{clock::Timestamp, sim::pool::PersonAct, xen::Failure};

/// A planned fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For the tally; several faults may share one name.
    pub name: String,
    /// Which calls it hits.
    pub when: Trigger,
    /// What happens to them.
    pub kind: FaultKind,
}

/// Which calls a fault hits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// A message without `Async.`, such as `VM.start`; a `*` at the end stands for any rest.
    pub method: String,
    /// Only calls about the VM with this uuid or name label.
    pub vm: Option<String>,
    /// The first matching call that is hit, from 1.
    pub nth: u32,
    /// How many calls in a row are hit.
    pub times: u32,
}

impl Trigger {
    /// The first call of this message, about any VM.
    pub fn first(method: &str) -> Self {
        Self::nth(method, 1)
    }

    /// The nth call of this message, about any VM.
    pub fn nth(method: &str, nth: u32) -> Self {
        Self { method: method.to_owned(), vm: None, nth, times: 1 }
    }

    /// Only calls about the VM with this uuid or name label.
    #[must_use]
    pub fn of(self, vm: &str) -> Self {
        Self { vm: Some(vm.to_owned()), ..self }
    }

    /// That many calls in a row.
    #[must_use]
    pub fn times(self, times: u32) -> Self {
        Self { times, ..self }
    }

    fn matches(&self, method: &str, vm: Option<&(String, String)>) -> bool {
        let plain = method.strip_prefix("Async.").unwrap_or(method);
        let method_fits = match self.method.strip_suffix('*') {
            Some(prefix) => plain.starts_with(prefix),
            None => plain == self.method,
        };
        let vm_fits = match &self.vm {
            None => true,
            Some(wanted) => vm.is_some_and(|(uuid, name)| wanted == uuid || wanted == name),
        };
        method_fits && vm_fits
    }
}

/// What happens to a call that is hit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FaultKind {
    /// It is not done and not answered: the connection closes.
    LoseBefore,
    /// It is done and not answered: the connection closes.
    LoseAfter,
    /// It is not done; this is the answer.
    Fail(Failure),
    /// It is done that much later.
    Delay(Duration),
    /// It is never done and never answered; the connection stays open.
    Hang,
    /// It waits until the fault's name is released; then it is done and answered.
    Hold,
    /// It is done at once; its answer waits until the fault's name is released.
    HoldReply,
    /// Every session ends; then it is done (and so refused).
    ExpireSessions,
    /// The coordinator's toolstack restarts first, and forgets what it wrote in the last `lose` and did not sync.
    CoordinatorRestart {
        /// How much is forgotten.
        lose: Duration,
    },
    /// Another member is the coordinator from now on: this call and all later ones here get HOST_IS_SLAVE. When no
    /// member has this address, only this call gets the answer.
    NotCoordinator {
        /// The address in the answer.
        address: String,
    },
    /// A person does this to the call's VM first; then the call is done.
    Person(PersonAct),
}

/// How often the faults of one name were planned and fired.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Its name.
    pub name: String,
    /// Calls that should be hit.
    pub planned: u32,
    /// Calls that were.
    pub fired: u32,
    /// When the last one was.
    pub last: Option<Timestamp>,
}

/// The faults of a run, and how far they are.
#[derive(Debug, Clone, Default)]
pub struct FaultPlan {
    faults: Vec<Planned>,
    released: BTreeSet<String>,
}

#[derive(Debug, Clone)]
struct Planned {
    fault: Fault,
    seen: u32,
    fired: u32,
    last: Option<Timestamp>,
}

impl FaultPlan {
    /// A plan of these faults.
    pub fn new(faults: impl IntoIterator<Item = Fault>) -> Self {
        let mut plan = Self::default();
        for fault in faults {
            plan.add(fault);
        }
        plan
    }

    /// Adds a fault; calls count for it from now on.
    pub fn add(&mut self, fault: Fault) {
        self.faults.push(Planned { fault, seen: 0, fired: 0, last: None });
    }

    /// Counts this call and says what happens to it: the first planned fault that is due. `vm` is the uuid and name
    /// label of the VM in the call.
    pub fn decide(&mut self, now: Timestamp, method: &str, vm: Option<&(String, String)>) -> Option<Fault> {
        let mut hit = None;
        for planned in &mut self.faults {
            let when = &planned.fault.when;
            if !when.matches(method, vm) {
                continue;
            }
            planned.seen = planned.seen.saturating_add(1);
            let due = planned.seen >= when.nth && planned.fired < when.times;
            if due && hit.is_none() {
                planned.fired += 1;
                planned.last = Some(now);
                hit = Some(planned.fault.clone());
            }
        }
        hit
    }

    /// Lets calls go on that are held under this name, now and later.
    pub fn release(&mut self, name: &str) {
        self.released.insert(name.to_owned());
    }

    /// Whether the name was released.
    pub fn is_released(&self, name: &str) -> bool {
        self.released.contains(name)
    }

    /// Planned and fired, by name, in the order of the plan.
    pub fn tally(&self) -> Vec<Tally> {
        let mut tallies: Vec<Tally> = Vec::new();
        for planned in &self.faults {
            let name = &planned.fault.name;
            let (times, fired, last) = (planned.fault.when.times, planned.fired, planned.last);
            match tallies.iter_mut().find(|tally| tally.name == *name) {
                Some(tally) => {
                    tally.planned += times;
                    tally.fired += fired;
                    tally.last = tally.last.max(last);
                }
                None => tallies.push(Tally { name: name.clone(), planned: times, fired, last }),
            }
        }
        tallies
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    fn fault(name: &str, when: Trigger) -> Fault {
        Fault { name: name.to_owned(), when, kind: FaultKind::LoseBefore }
    }

    /// Calls as `method vm-name`; answers which fault fired on each, `-` for none.
    fn fired(faults: &[Fault], calls: &[&str]) -> String {
        let mut plan = FaultPlan::new(faults.iter().cloned());
        let names = calls.iter().map(|call| {
            let (method, vm) = call.split_once(' ').unwrap_or((call, ""));
            let vm = (!vm.is_empty()).then(|| (format!("uuid-{vm}"), vm.to_owned()));
            plan.decide(NOW, method, vm.as_ref()).map_or_else(|| "-".to_owned(), |fault| fault.name)
        });
        names.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_fault_fires_on_its_nth_matching_call_and_no_other() {
        let calls = [
            "VM.start a",
            "Async.VM.start b",
            "VM.get_record b",
            "VM.set_PV_bootloader a",
            "VM.start b",
            "VM.start b",
        ];
        let rows = [
            (vec![fault("f", Trigger::first("VM.start"))], "f - - - - -"),
            (vec![fault("f", Trigger::nth("VM.start", 2))], "- f - - - -"),
            (vec![fault("f", Trigger::nth("VM.start", 2).times(2))], "- f - - f -"),
            (vec![fault("f", Trigger::first("VM.start").of("b"))], "- f - - - -"),
            (vec![fault("f", Trigger::nth("VM.start", 3).of("uuid-b"))], "- - - - - f"),
            (vec![fault("f", Trigger::first("VM.set_*"))], "- - - f - -"),
            (vec![fault("f", Trigger::nth("*", 3))], "- - f - - -"),
            (vec![fault("f", Trigger::first("VM.hard_shutdown"))], "- - - - - -"),
            // Two faults on one call: the first of the plan fires, the other on the next match.
            (vec![fault("f", Trigger::first("VM.start")), fault("g", Trigger::first("*"))], "f g - - - -"),
        ];
        for (faults, expected) in rows {
            assert_eq!(fired(&faults, &calls), expected, "{faults:?}");
        }
    }

    #[test]
    fn the_tally_names_faults_that_did_not_fire() {
        let mut plan = FaultPlan::new([
            fault("lost", Trigger::first("VM.start").times(2)),
            fault("lost", Trigger::first("VM.unpause")),
            fault("never", Trigger::nth("VM.start", 9)),
        ]);
        plan.decide(NOW, "VM.start", None);
        let tally: Vec<_> = plan.tally().into_iter().map(|t| (t.name, t.planned, t.fired, t.last)).collect();
        assert_eq!(tally, [("lost".to_owned(), 3, 1, Some(NOW)), ("never".to_owned(), 1, 0, None)]);
        assert!(!plan.is_released("lost"));
        plan.release("lost");
        assert!(plan.is_released("lost"));
    }
}

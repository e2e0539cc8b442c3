//! What a seed means: the VMs of the demo, their guests' behaviour, and what goes wrong when. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::options::{Break, DemoOptions};
use crate::{
    machine::MacAddr,
    sim::{
        faults::{Fault, FaultKind, Trigger},
        guest::{GuestPlan, Mishap, Stage, dhcp::mix},
    },
};

/// One VM of the demo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmPlan {
    /// Its name label.
    pub name: String,
    /// Its NIC.
    pub mac: MacAddr,
    /// How its guest behaves at its first, second, … HVM start; the last goes on.
    pub attempts: Vec<GuestPlan>,
}

impl VmPlan {
    /// How the guest of the n-th HVM start (from 1) behaves; PV starts are like the last.
    pub fn guest(&self, hvm_start: u32) -> Option<&GuestPlan> {
        let at = usize::try_from(hvm_start.saturating_sub(1)).unwrap_or(usize::MAX);
        self.attempts.get(at).or_else(|| self.attempts.last())
    }

    /// How many attempts it takes until the VM is installed.
    pub fn expected_attempts(&self) -> u32 {
        u32::try_from(self.attempts.len()).unwrap_or(u32::MAX)
    }
}

/// A point in a guest's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Moment {
    /// An HVM domain of this VM came up.
    HvmRuns,
    /// The installer reports this stage.
    At(Stage),
    /// A PV domain of this VM came up.
    PvRuns,
}

/// What the demo does at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// SIGKILL to the server, which is started again after a while.
    KillServer {
        /// How long it stays away.
        away: Duration,
    },
    /// A person shuts the VM down, hard; the job fails and is retried.
    PersonShutsDown,
    /// A person writes a note into other_config, which must outlive the job.
    PersonWritesNote,
}

/// A deed, its moment and its name in the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hand {
    /// The name in `faults`.
    pub name: &'static str,
    /// Index of the VM.
    pub vm: usize,
    /// In which attempt of it; `None`: the first one in which the moment comes.
    pub attempt: Option<u32>,
    /// When.
    pub moment: Moment,
    /// What.
    pub deed: Deed,
}

/// All that a seed decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DemoPlan {
    /// The VMs.
    pub vms: Vec<VmPlan>,
    /// Faults of the calls.
    pub wire: Vec<Fault>,
    /// Deeds of the demo itself.
    pub hands: Vec<Hand>,
    /// Mishaps of guests that are counted as faults: name and VM.
    pub mishaps: Vec<(&'static str, usize)>,
    /// The VMs stay HVM, and boot from their disks.
    pub stays_hvm: bool,
}

/// The pool's second host, which becomes the coordinator.
pub const OTHER_MEMBER: &str = "127.0.0.2";
/// What the key is called that the person of the demo writes.
pub const NOTE_KEY: &str = "note";
/// The installers' ten minutes, in the demo's time.
pub const RETRY_FOR: Duration = Duration::from_secs(12);
/// The same, where reports are broken on purpose and nothing is gained by waiting.
const RETRY_FOR_BROKEN: Duration = Duration::from_secs(2);

impl DemoPlan {
    /// The plan of these options.
    pub fn new(options: &DemoOptions) -> Self {
        let retry_for = if options.broken == Some(Break::Report) { RETRY_FOR_BROKEN } else { RETRY_FOR };
        let vms = (0..u64::from(options.vms)).map(|at| vm(options.seed, at, retry_for)).collect();
        let mut plan = Self { vms, stays_hvm: options.stay_hvm, ..Self::default() };
        if options.faults {
            plan.add_faults(options.seed);
        }
        plan
    }

    /// Which faults are planned, and how often each.
    pub fn planned(&self) -> BTreeMap<&str, u32> {
        let names =
            self.wire.iter().map(|fault| fault.name.as_str()).chain(self.hands.iter().map(|hand| hand.name));
        names.chain(self.mishaps.iter().map(|(name, _)| *name)).fold(BTreeMap::new(), |mut counts, name| {
            *counts.entry(name).or_default() += 1;
            counts
        })
    }

    fn add_faults(&mut self, seed: u64) {
        let count = u64::try_from(self.vms.len()).unwrap_or(1).max(1);
        // Neighbours in a shuffled order, so that eight VMs get eight different troubles.
        let offset = mix(seed ^ 0xfa17) % count;
        let vm = |nth: u64| usize::try_from((offset + nth) % count).unwrap_or_default();
        let fault = |name: &str, method: &str, at: u64, nth: u32, kind| Fault {
            name: name.to_owned(),
            when: Trigger::nth(method, nth).of(self.vms.get(vm(at)).map_or("", |vm| vm.name.as_str())),
            kind,
        };
        let other = FaultKind::NotCoordinator { address: OTHER_MEMBER.to_owned() };
        let wire = vec![
            fault("reply-lost-before-hvm-start", "VM.start", 0, 1, FaultKind::LoseBefore),
            fault("reply-lost-after-hvm-start", "VM.start", 1, 1, FaultKind::LoseAfter),
            fault("reply-lost-after-pv-start", "VM.start", 2, 2, FaultKind::LoseAfter),
            fault("reply-lost-after-claim", "VM.add_to_other_config", 3, 1, FaultKind::LoseAfter),
            fault("reply-lost-before-restore", "VM.set_HVM_boot_params", 4, 2, FaultKind::LoseBefore),
            fault("reply-lost-after-flip", "VM.set_HVM_boot_params", 5, 1, FaultKind::LoseAfter),
            fault("session-expired", "VM.get_record", 6, between(seed, 1, 2, 5), FaultKind::ExpireSessions),
            fault("coordinator-change", "VM.get_record", 7, between(seed, 2, 4, 8), other),
        ];
        self.wire = wire;
        let stage = [Stage::Started, Stage::Partitioned, Stage::Base, Stage::Packages, Stage::Late];
        let pick = |salt: u64| {
            let at = usize::try_from(mix(seed ^ salt) % 5).unwrap_or_default();
            stage.get(at).copied().unwrap_or(Stage::Base)
        };
        let away = |salt: u64| Duration::from_millis(300 + mix(seed ^ salt) % 700);
        let rebooting = self.add_failing_attempt(vm(7), Mishap::RebootWithoutReport);
        let stopped = self.add_failing_attempt(vm(5), Mishap::None);
        self.mishaps = rebooting.map(|_| ("installer-reboots-without-report", vm(7))).into_iter().collect();
        let hand = |name, vm, moment, deed| Hand { name, vm, attempt: None, moment, deed };
        self.hands = vec![
            hand("server-killed", vm(3), Moment::At(pick(11)), Deed::KillServer { away: away(12) }),
            hand("server-killed", vm(6), Moment::PvRuns, Deed::KillServer { away: away(13) }),
            hand("server-killed", vm(4), Moment::HvmRuns, Deed::KillServer { away: away(14) }),
            hand("person-writes-note", vm(2), Moment::At(pick(15)), Deed::PersonWritesNote),
            Hand {
                attempt: stopped,
                ..hand("person-shuts-down", vm(5), Moment::At(Stage::Base), Deed::PersonShutsDown)
            },
        ];
    }

    /// Adds an attempt that fails in front of the one that goes well; answers its number, from 1.
    fn add_failing_attempt(&mut self, vm: usize, mishap: Mishap) -> Option<u32> {
        let attempts = &mut self.vms.get_mut(vm)?.attempts;
        let good = attempts.last()?.clone();
        let at = attempts.len() - 1;
        attempts.insert(at, GuestPlan { mishap, ..good });
        u32::try_from(at + 1).ok()
    }
}

fn vm(seed: u64, at: u64, retry_for: Duration) -> VmPlan {
    let own = mix(seed.rotate_left(20) ^ at);
    let [.., a, b] = mix(seed ^ 0x3ac).to_be_bytes();
    let [.., high, low] = at.to_be_bytes();
    let nouns = ["web", "db", "mail", "cache", "build", "queue", "proxy", "shop"];
    let noun = usize::try_from(own % 8).ok().and_then(|noun| nouns.get(noun)).copied().unwrap_or("vm");
    VmPlan {
        name: format!("{noun}-{:03}", at + 1),
        mac: MacAddr::new([0x02, 0x16, a, b, high, low]),
        attempts: vec![GuestPlan::hurried(own, retry_for)],
    }
}

fn between(seed: u64, salt: u64, low: u32, high: u32) -> u32 {
    low + u32::try_from(mix(seed ^ salt) % u64::from(high - low + 1)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn options(vms: u16, seed: u64, faults: bool) -> DemoOptions {
        DemoOptions { vms, seed, faults, program: "bootflip".into(), ..DemoOptions::default() }
    }

    #[test]
    fn seed_fixes_the_plan_and_another_seed_changes_it() {
        let plan = |seed| DemoPlan::new(&options(8, seed, true));
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
    }

    #[test]
    fn thousand_vms_have_names_and_macs_of_their_own() {
        let plan = DemoPlan::new(&options(1000, 1, false));
        assert_eq!(plan.vms.iter().map(|vm| &vm.name).collect::<HashSet<_>>().len(), 1000);
        assert_eq!(plan.vms.iter().map(|vm| vm.mac).collect::<HashSet<_>>().len(), 1000);
        assert!(plan.planned().is_empty());
    }

    #[test]
    fn faults_hold_what_the_demo_promises_at_any_size() {
        for vms in [1, 2, 8, 100] {
            let plan = DemoPlan::new(&options(vms, 7, true));
            let planned = plan.planned();
            assert!(planned["server-killed"] >= 2, "{planned:?}");
            assert_eq!(planned["installer-reboots-without-report"], 1);
            assert_eq!(planned.len(), 12);
        }
    }
}

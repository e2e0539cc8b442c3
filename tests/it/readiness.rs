//! PV readiness. Here: in a job, what the new system says of itself decides whether it is started as PV. `script` runs
//! `pv-ready.sh` on the file systems of `trees`, `table` sets it beside the real pygrub.

mod script;
mod table;
mod trees;

use std::time::Duration;

use bootflip::{
    clock::Timestamp,
    config::Completion,
    provision::{
        Effect, Job, Outcome, Reason, State,
        executor::Decisions,
        job::{Evidence, Options},
        plan::{Observed, Plan, Trail, plan},
        step::step,
    },
    sim::{
        pool::{Pool, Release, VmSpec},
        world::{Downtime, Setup, VmPlan, World, guest::Behaviour},
    },
};

use crate::{recovery::profile, walks::check_mutant};

fn run(behaviour: Behaviour, completion: Completion, stay_hvm: bool) -> World {
    let spec = VmSpec { name: "web".into(), ..VmSpec::default() };
    let options = Options { stay_hvm, ..Options::default() };
    let job = Some((profile(completion), options));
    let mut world = World::new(Setup {
        pool: Pool::new(1, Release::V8_2),
        vms: vec![VmPlan { spec, behaviours: vec![behaviour], job }],
        installs: 1,
        allow: vec![],
        decisions: Decisions::default(),
        cut: None,
        storm: None,
        downtime: Downtime::For(Duration::from_secs(1)),
    });
    world.run(Duration::from_secs(6 * 3600));
    world.with(|pool, ledger, _, _| {
        ledger.check_end(pool);
        assert_eq!(ledger.violations, []);
    });
    world
}

#[test]
fn what_says_that_it_is_not_ready_is_put_back_and_not_started() {
    for completion in [Completion::Report, Completion::Either] {
        let world = run(Behaviour::Unready, completion, false);
        let (job, vm) = (world.jobs().remove(0), world.truths().remove(0));
        assert_eq!((job.state, job.reason), (State::Failed, Some(Reason::NotPvReady)));
        assert!(
            job.detail.starts_with("pygrub finds no menu (there is no grub.cfg or menu.lst): "),
            "{}",
            job.detail
        );
        assert!(Reason::NotPvReady.remedy().contains("--stay-hvm"));
        assert_eq!((vm.power_state.as_str(), vm.pv_starts, vm.claim), ("Halted", 0, None));
        assert_eq!(vm.domain_type.as_deref(), Some("pv"));
    }
}

#[test]
fn what_stays_hvm_may_say_what_it_likes() {
    let job = run(Behaviour::Unready, Completion::Report, true).jobs().remove(0);
    assert_eq!((job.state, job.evidence), (State::Succeeded, Evidence::Hvm));
    assert!(job.readiness.is_some(), "and it is kept for `jobs show`");
}

#[test]
fn what_was_mended_goes_on() {
    let job = run(Behaviour::Mends, Completion::Report, false).jobs().remove(0);
    assert_eq!((job.state, job.evidence), (State::Succeeded, Evidence::Pv));
    let stage = job.stages.iter().find(|stage| stage.name == "ready").unwrap();
    assert_eq!(stage.note, "mended");
}

fn readiness_ignored(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match plan(effect, job, seen, trail, now) {
        Plan::Fail(Reason::NotPvReady, _) => Plan::Done(Outcome::Completed),
        other => other,
    }
}

#[test]
fn mutant_readiness_ignored_is_caught() {
    check_mutant("readiness ignored", readiness_ignored, step, &["PV"]);
}

//! The whole cycle on every release that the simulated pool knows, with every kind of PV guest that it can hold; and
//! on pools that forget their tasks.

use std::time::Duration;

use bootflip::{
    config::Completion,
    machine::MacAddr,
    provision::{Job, Reason, State, executor::Decisions, job::Options},
    sim::{
        pool::{Caller, Pool, Release, VmSpec, VmTruth},
        world::{Downtime, Setup, VmPlan, World, guest::Behaviour},
    },
};

use crate::recovery::profile;

const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// A world with these VMs, a job on each.
pub(crate) fn world(release: Release, vms: Vec<VmSpec>) -> World {
    let plan = |spec| VmPlan {
        spec,
        behaviours: vec![Behaviour::Installs],
        job: Some((profile(Completion::Report), Options::default())),
    };
    World::new(Setup {
        pool: Pool::new(11, release),
        vms: vms.into_iter().map(plan).collect(),
        installs: 4,
        allow: vec![],
        decisions: Decisions::default(),
        cut: None,
        storm: None,
        downtime: Downtime::For(Duration::from_secs(10)),
    })
}

pub(crate) fn vm(number: u8) -> VmSpec {
    VmSpec {
        name: format!("vm-{number}"),
        macs: vec![MacAddr::new([2, 0x16, 0x3e, 0, 0, number])],
        ..VmSpec::default()
    }
}

/// Calls of the server whose method this is, with their parameters.
fn calls(world: &World, method: &str) -> Vec<String> {
    world.with(|pool, _, _, _| {
        let ours = pool.log().iter().filter(|call| call.caller == Caller::Client && call.method == method);
        ours.map(|call| call.params.clone()).collect()
    })
}

/// A VM's settings, which an installation must leave as they were; a type that was unspecified comes back as PV.
fn settings(vm: &VmTruth) -> impl PartialEq + std::fmt::Debug + use<> {
    let kind = vm.domain_type.as_ref().map(|kind| kind.replace("unspecified", "pv"));
    (
        kind,
        vm.hvm_boot_policy.clone(),
        vm.hvm_boot_params.clone(),
        vm.actions_after.clone(),
        vm.platform.clone(),
        vm.pv_bootloader.clone(),
        vm.claim.clone(),
    )
}

fn installed(release: Release, spec: VmSpec) -> (World, Job) {
    let mut world = world(release, vec![spec]);
    let before = world.truths().remove(0);
    world.run(LONGEST);
    let (job, after) = (world.jobs().remove(0), world.truths().remove(0));
    let what = format!("{} {:?}", release.name, before.domain_type);
    if job.state == State::Succeeded {
        assert_eq!(settings(&after), settings(&before), "{what}");
        assert_eq!((after.hvm_starts, after.pv_starts), (1, 1), "{what}");
    }
    (world, job)
}

#[test]
fn every_release_takes_the_cycle_and_every_guest_comes_back_as_it_was() {
    let mut cycles = Vec::new();
    for release in Release::ALL {
        let kinds: &[&str] =
            if release.has_domain_type() { &["pv", "pv_in_pvh", "pvh", "unspecified"] } else { &[""] };
        for kind in kinds {
            let named = (!kind.is_empty()).then(|| (*kind).to_owned());
            let (world, job) = installed(release, VmSpec { domain_type: named, ..vm(1) });
            let what = format!("{} {kind}", release.name);
            if release.api >= (2, 21) && *kind != "pvh" {
                assert_eq!((job.state, job.reason), (State::Failed, Some(Reason::PvUnsupported)), "{what}");
                let detail = &job.detail;
                assert!(detail.contains("--stay-hvm"), "{what}: {detail}");
                let touched = world.with(|pool, _, _, _| {
                    let ours = pool.log().iter().filter(|call| call.caller == Caller::Client);
                    ours.filter(|call| call.method.contains("VM.") && !call.method.contains(".get_")).count()
                });
                assert_eq!(touched, 0, "{what}");
                continue;
            }
            assert_eq!(job.state, State::Succeeded, "{what}: {:?} {:?}", job.reason, job.detail);
            let policies = calls(&world, "VM.set_HVM_boot_policy");
            if release.has_domain_type() {
                assert!(policies.is_empty(), "{what}: it would make any type plain PV: {policies:?}");
            } else {
                assert_eq!(policies, ["BIOS order", ""], "{what}");
            }
            cycles.push(what);
        }
    }
    println!("{} cycles, all restored: {}", cycles.len(), cycles.join(", "));
}

#[test]
fn emulator_flags_are_set_for_the_hvm_phase_of_old_releases_only() {
    for release in Release::ALL.into_iter().filter(|release| release.api < (2, 21)) {
        for (given, wanted) in
            [(&[][..], "acpi apic pae"), (&["acpi", "pae"], "apic"), (&["acpi", "apic", "pae"], "")]
        {
            let platform = given.iter().map(|key| ((*key).to_owned(), "true".to_owned())).collect();
            let (world, job) = installed(release, VmSpec { platform, ..vm(1) });
            assert_eq!(job.state, State::Succeeded, "{}: {:?}", release.name, job.detail);
            let added: Vec<String> = calls(&world, "VM.add_to_platform")
                .into_iter()
                .filter_map(|params| params.strip_suffix(" true").map(str::to_owned))
                .collect();
            let wanted = if release.api < (1, 10) { wanted } else { "" };
            assert_eq!(added.join(" "), wanted, "{} with {given:?}", release.name);
        }
    }
}

#[test]
fn outcome_of_a_task_that_vanished_is_seen_on_the_vm() {
    for release in [Release::V5_6, Release::V6_2, Release::V8_2] {
        let mut world = world(release, vec![vm(1), vm(2)]);
        let before: Vec<_> = world.truths().iter().map(settings).collect();
        let begun = world.now();
        while !world.all_ended() && world.now() < begun + LONGEST {
            world.run(Duration::from_millis(700));
            let now = world.now();
            // Tasks vanish; what a host has begun goes on.
            world.with(|pool, _, _, _| pool.restart_coordinator(now, Duration::ZERO));
        }
        let vanished = world.with(|pool, _, _, _| {
            let asked = pool.log().iter().filter(|call| call.method == "task.get_record");
            asked
                .filter(|call| call.outcome.as_ref().is_err_and(|failure| failure.is("HANDLE_INVALID")))
                .count()
        });
        println!("{}: {vanished} questions about tasks that the pool had forgotten", release.name);
        assert!(vanished > 0, "{}", release.name);
        for (job, (before, after)) in world.jobs().iter().zip(before.iter().zip(&world.truths())) {
            assert_eq!(job.state, State::Succeeded, "{}: {:?}", release.name, job.detail);
            assert_eq!(&settings(after), before);
            assert_eq!((after.hvm_starts, after.pv_starts), (1, 1), "nothing is started twice");
        }
    }
}

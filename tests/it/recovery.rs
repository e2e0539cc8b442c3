//! The crash sweep: the server dies once at every effect × point × reply, and the job goes on as if nothing had been.

use std::{collections::BTreeMap, time::Duration};

use bootflip::{
    config::{BootFiles, Completion, EvidenceKind, Profile, ProfileKind},
    provision::{
        Effect, State,
        executor::Decisions,
        job::{Evidence, Options},
    },
    sim::{
        pool::{Pool, Release, VmSpec},
        world::{
            Downtime, Setup, VmPlan, World,
            cut::{Cut, Point, Reply},
            guest::Behaviour,
        },
    },
};

pub(crate) fn profile(completion: Completion) -> Profile {
    Profile {
        name: "mini".into(),
        kind: ProfileKind::Install,
        boot: Some(BootFiles {
            kernel: "linux".into(),
            initrd: vec!["initrd.gz".into()],
            args: "auto".into(),
            answer: Some("mini.j2".into()),
        }),
        completion,
        min_install: Duration::from_secs(300),
        evidence: EvidenceKind::Report,
        accept_weak: false,
        report_by_get: false,
        disk: None,
        variables: BTreeMap::new(),
    }
}

/// A reinstall of a running VM whose installer reports and keeps running: every effect has a call of its own.
fn reinstall(cut: Option<Cut>) -> World {
    let spec = VmSpec { running: true, ever_ran: true, ..VmSpec::default() };
    let job = Some((profile(Completion::Report), Options { reinstall: true, ..Options::default() }));
    World::new(Setup {
        pool: Pool::new(7, Release::V8_2),
        vms: vec![VmPlan { spec, behaviours: vec![Behaviour::StaysUp], job }],
        installs: 4,
        allow: Vec::new(),
        decisions: Decisions::default(),
        cut,
        storm: None,
        downtime: Downtime::For(Duration::from_secs(1)),
    })
}

/// Why a finished world is not as a single undisturbed installation leaves it; `None`: it is.
fn blemish(world: &mut World) -> Option<String> {
    let jobs = world.jobs();
    let [job] = jobs.as_slice() else { return Some(format!("{} jobs", jobs.len())) };
    if job.state != State::Succeeded || job.evidence != Evidence::Pv {
        return Some(format!("{} {:?} {} at {:?}", job.state, job.reason, job.detail, job.cursor));
    }
    let violations = world.with(|pool, ledger, _, _| {
        ledger.check_end(pool);
        std::mem::take(&mut ledger.violations)
    });
    if !violations.is_empty() {
        return Some(format!("{violations:?}"));
    }
    let truths = world.truths();
    let [vm] = truths.as_slice() else { return Some("no VM".into()) };
    let starts = (vm.hvm_starts, vm.pv_starts);
    (starts != (1, 1)).then(|| format!("{} HVM and {} PV starts", starts.0, starts.1))
}

#[test]
fn an_undisturbed_reinstall_succeeds() {
    let mut world = reinstall(None);
    world.run(Duration::from_secs(4 * 3600));
    let job = &world.jobs()[0];
    assert_eq!(blemish(&mut world), None, "{:#?}", job.log);
    let states: Vec<State> = job.history.iter().map(|mark| mark.state).collect();
    use State::*;
    assert_eq!(states, [Queued, Preparing, Flipping, Booting, Installing, Restoring, Starting, Verifying, Succeeded]);
}

#[test]
fn recovery_from_a_crash_at_every_effect_point_and_reply() {
    let mut failures = Vec::new();
    let mut cells = 0;
    println!("{:<4} {:<14} {:<11} {:<11} {:<11}", "", "", "ok", "lost-before", "lost-after");
    for effect in Effect::ALL {
        for point in Point::ALL {
            let mut row = format!("{:<4} {:<14}", effect.label(), format!("{point:?}"));
            for reply in Reply::ALL {
                let mut world = reinstall(Some(Cut::new(effect, point, reply)));
                world.run(Duration::from_secs(4 * 3600));
                let hit = world.with(|_, _, _, cut| cut.as_ref().is_some_and(Cut::hit));
                let blemish = if hit { blemish(&mut world) } else { Some("no hit".into()) };
                cells += 1;
                row.push_str(&format!(" {:<11}", if blemish.is_none() { "ok" } else { "FAILED" }));
                failures.extend(blemish.map(|why| format!("{} {point:?} {reply:?}: {why}", effect.label())));
            }
            println!("{row}");
        }
    }
    println!("{cells} cells, {} failed", failures.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

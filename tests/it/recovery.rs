//! The crash sweep: the server dies once at every effect × point × reply, and the job goes on as if nothing had been.

use std::{collections::BTreeMap, time::Duration};

use bootflip::{
    config::{BootFiles, Completion, EvidenceKind, Profile, ProfileKind},
    provision::{
        Effect, Event, Reason, State,
        executor::Decisions,
        job::{Evidence, Options, Resolution},
    },
    sim::{
        pool::{PersonAct, Pool, Release, VmSpec},
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
            fetch: bootflip::config::Fetch::Http,
            seed: Vec::new(),
            files: Vec::new(),
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
        ledger.check_waits();
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
    assert_eq!(
        states,
        [Queued, Preparing, Flipping, Booting, Installing, Restoring, Starting, Verifying, Succeeded]
    );
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

fn run_to_crash(world: &mut World) {
    for _ in 0..100_000 {
        if world.crashes > 0 {
            return;
        }
        world.run(Duration::from_millis(200));
    }
    panic!("the server did not die");
}

/// One crash after another: the second while the first is being recovered from.
#[test]
fn a_crash_within_the_recovery_from_a_crash_changes_nothing() {
    let points = || {
        Effect::ALL.into_iter().flat_map(|effect| Point::ALL.into_iter().map(move |point| (effect, point)))
    };
    let mut rng = bootflip::sim::world::rng::Rng::new(5);
    let (mut pairs, mut failures) = (0, Vec::new());
    for (first, point) in points() {
        for _ in 0..9 {
            let at_or_after: Vec<_> = points().filter(|(effect, _)| *effect >= first).collect();
            let &(second, then) = rng.pick(&at_or_after);
            let reply = *rng.pick(&Reply::ALL);
            let mut world = reinstall(Some(Cut::new(first, point, reply)));
            run_to_crash(&mut world);
            world.with(|_, _, _, cut| *cut = Some(Cut::new(second, then, reply)));
            world.run(Duration::from_secs(4 * 3600));
            pairs += 1;
            let why = if world.crashes == 0 { Some("no crash".into()) } else { blemish(&mut world) };
            failures.extend(why.map(|why| {
                format!("{}{point:?} {}{then:?} {reply:?}: {why}", first.label(), second.label())
            }));
        }
    }
    println!("{pairs} pairs of crashes, {} failed", failures.len());
    assert!(pairs >= 500);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The server is away from the HVM start until the guest has halted: whatever came of it, it is not started again.
#[test]
fn a_server_that_sleeps_through_the_installation_starts_nothing_twice() {
    for (completion, behaviour, boot, state) in [
        (Completion::Report, Behaviour::DiesAtOnce, true, State::Failed),
        (Completion::Halt, Behaviour::External, false, State::Succeeded),
    ] {
        let mut profile = profile(completion);
        if !boot {
            profile.boot = None;
            profile.evidence = EvidenceKind::Lease;
        }
        let mut world = one(VmSpec::default(), behaviour, profile, Options::default(), Downtime::UntilHalted);
        world.with(|_, _, _, cut| *cut = Some(Cut::new(Effect::Start, Point::AfterCall, Reply::LostAfter)));
        world.run(Duration::from_secs(6 * 3600));
        let job = &world.jobs()[0];
        assert_eq!(world.crashes, 1);
        assert_eq!(job.state, state, "{completion:?}: {:?} {} {:#?}", job.reason, job.detail, job.log);
        assert_eq!(world.truths()[0].hvm_starts, 1, "{completion:?}");
        assert_eq!(finish(&mut world), Vec::new());
    }
}

/// A world whose server dies in the HVM start and comes back when everything has halted.
pub(crate) fn asleep_through_the_start(decisions: Decisions) -> World {
    let job = Some((profile(Completion::Report), Options::default()));
    World::new(Setup {
        pool: Pool::new(7, Release::V8_2),
        vms: vec![VmPlan { spec: VmSpec::default(), behaviours: vec![Behaviour::DiesAtOnce], job }],
        installs: 4,
        allow: Vec::new(),
        decisions,
        cut: Some(Cut::new(Effect::Start, Point::AfterCall, Reply::LostAfter)),
        storm: None,
        downtime: Downtime::UntilHalted,
    })
}

/// An operator abandoned a job and retries it: what it left is put back, and one `jobs retry` is enough.
#[test]
fn a_retry_of_an_abandoned_job_undoes_the_old_attempt_and_goes_on() {
    let mut world = reinstall(None);
    let uuid = world.truths()[0].uuid.clone();
    let order = |order: &str| {
        let pairs = [("order", order), ("firmware", "bios")];
        PersonAct::SetBootParams(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
    };
    while world.jobs()[0].state != State::Installing {
        world.pass(Duration::from_secs(1));
    }
    assert!(world.person(&uuid, &order("dc")));
    world.pass(Duration::from_secs(3600));
    assert_eq!(world.jobs()[0].reason, Some(Reason::SettingsChanged), "{:#?}", world.jobs()[0].log);
    assert!(world.operate("job-0", Event::Resolve(Resolution::Abandon)));
    assert!(world.person(&uuid, &order("n")));
    assert!(world.truths()[0].claim.is_some());
    assert!(world.operate("job-0", Event::Retry));
    world.pass(Duration::from_secs(4 * 3600));
    let (job, truth) = (world.jobs().remove(0), world.truths().remove(0));
    assert_eq!((job.state, job.attempt), (State::Succeeded, 3), "{:#?}", job.log);
    assert_eq!((truth.claim, truth.domain_type.as_deref()), (None, Some("pv")));
    assert!(truth.hvm_boot_params.is_empty(), "{:?}", truth.hvm_boot_params);
}

/// The server is away from the PV start until somebody has shut the new system down.
#[test]
fn a_server_that_sleeps_through_the_pv_start_does_not_start_it_again() {
    let mut world = one(
        VmSpec::default(),
        Behaviour::Mute,
        profile(Completion::Report),
        Options::default(),
        Downtime::UntilHalted,
    );
    world.with(|_, _, _, cut| *cut = Some(Cut::new(Effect::StartPv, Point::AfterCall, Reply::LostAfter)));
    for _ in 0..5_000 {
        world.run(Duration::from_secs(1));
        if world.truths()[0].pv_starts == 1 {
            break;
        }
    }
    world.run(Duration::from_secs(30));
    let uuid = world.truths()[0].uuid.clone();
    world.person(&uuid, &PersonAct::HardShutdown);
    world.run(Duration::from_secs(6 * 3600));
    let job = &world.jobs()[0];
    assert_eq!(
        (world.crashes, job.state, job.reason),
        (1, State::Failed, Some(Reason::NoEvidence)),
        "{:#?}",
        job.log
    );
    assert_eq!((world.truths()[0].hvm_starts, world.truths()[0].pv_starts), (1, 1));
    assert_eq!(finish(&mut world), Vec::new());
}

fn one(spec: VmSpec, behaviour: Behaviour, profile: Profile, options: Options, downtime: Downtime) -> World {
    World::new(Setup {
        pool: Pool::new(7, Release::V8_2),
        vms: vec![VmPlan { spec, behaviours: vec![behaviour], job: Some((profile, options)) }],
        installs: 4,
        allow: Vec::new(),
        decisions: Decisions::default(),
        cut: None,
        storm: None,
        downtime,
    })
}

/// What is wrong with a world in which nothing is to happen any more.
fn finish(world: &mut World) -> Vec<(&'static str, String)> {
    world.with(|pool, ledger, _, _| {
        ledger.check_waits();
        ledger.check_end(pool);
        std::mem::take(&mut ledger.violations)
    })
}

#[test]
fn a_cancel_at_every_effect_leaves_the_vm_as_it_was() {
    let mut seen = Vec::new();
    for effect in Effect::ALL {
        let mut world = reinstall(Some(Cut::new(effect, Point::AfterIntent, Reply::Ok)));
        run_to_crash(&mut world);
        world.boot_server();
        assert!(world.operate("job-0", Event::Cancel), "{}", effect.label());
        world.run(Duration::from_secs(4 * 3600));
        let job = &world.jobs()[0];
        seen.push(format!("{}: {} {:?}", effect.label(), job.state, job.reason));
        assert_eq!(job.state, State::Cancelled, "{}: {:#?}", effect.label(), job.log);
        assert_eq!(finish(&mut world), Vec::new(), "{}", effect.label());
        let vm = &world.truths()[0];
        assert!(vm.hvm_starts <= 1 && vm.pv_starts <= 1, "{}", effect.label());
    }
    println!("{}", seen.join("\n"));
}

#[test]
fn without_a_database_every_vm_comes_back_from_its_claim_alone() {
    for effect in Effect::ALL {
        for point in Point::ALL {
            for reply in Reply::ALL {
                let mut world = reinstall(Some(Cut::new(effect, point, reply)));
                run_to_crash(&mut world);
                assert_eq!(
                    world.restore_from_claims(true),
                    Vec::new(),
                    "{} {point:?} {reply:?}",
                    effect.label()
                );
                let truth = world.truths().remove(0);
                let found = world.with(|_, ledger, _, _| {
                    ledger.restored("I3", &truth, None);
                    std::mem::take(&mut ledger.violations)
                });
                assert_eq!(found, Vec::new(), "{} {point:?} {reply:?}", effect.label());
            }
        }
    }
}

/// Acceptance: an installer that dies at once on a reinstall, with the old system still bootable.
#[test]
fn an_installer_that_dies_at_once_is_never_a_plain_success() {
    for completion in [Completion::Report, Completion::Halt, Completion::Either] {
        for behaviour in [Behaviour::DiesAtOnce, Behaviour::IdlesThenHalts] {
            for evidence in [EvidenceKind::Report, EvidenceKind::Lease, EvidenceKind::None] {
                for boot in [true, false] {
                    let spec = VmSpec { running: true, ever_ran: true, ..VmSpec::default() };
                    let mut profile = Profile { evidence, ..profile(completion) };
                    if !boot {
                        profile.boot = None;
                    }
                    let options = Options { reinstall: true, ..Options::default() };
                    let mut world =
                        one(spec, behaviour, profile, options, Downtime::For(Duration::from_secs(1)));
                    world.run(Duration::from_secs(6 * 3600));
                    let job = &world.jobs()[0];
                    println!(
                        "{completion:?} {behaviour:?} {evidence:?} ours={boot}: {} {:?} {:?}",
                        job.state, job.reason, job.evidence
                    );
                    assert!(job.state.is_terminal());
                    assert!(
                        job.state != State::Succeeded || job.evidence == Evidence::Weak,
                        "{:#?}",
                        job.log
                    );
                    assert_eq!(finish(&mut world), Vec::new());
                }
            }
        }
    }
}

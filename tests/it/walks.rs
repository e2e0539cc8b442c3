//! Seeded walks through World with misfortune of every kind, and the mutants that they must catch.

use std::{collections::BTreeMap, time::Duration};

use bootflip::{
    clock::Timestamp,
    config::{Completion, EvidenceKind, Profile, ProfileKind},
    machine::MacAddr,
    provision::{
        Effect, Event, Job, Outcome, Reason, State,
        claim::{CLAIM_KEY, Claim, Found},
        executor::Decisions,
        job::{Batch, GateState, Options, Resolution},
        plan::{Call, CallResult, Observed, Plan, Trail, plan},
        step::step,
    },
    sim::{
        pool::{DiskKind, DiskSpec, PersonAct, Pool, Release, Role, VmSpec},
        world::{
            Downtime, Setup, VmPlan, World, guest::Behaviour, rng::Rng, storm, storm::Storm, verdict::Counts,
        },
    },
    xen::{CallError, Class, records::PowerState},
};

use crate::recovery::profile;

/// Walks of the acceptance criterion.
const WALKS: u64 = 10_000;

/// Happenings that a walk has at least.
const LEAST: u64 = 40;

/// VMs that E0 refuses, one for each reason that it can give by the VM's shape.
const REFUSED: [Reason; 15] = [
    Reason::NotAGuest,
    Reason::NoVif,
    Reason::DuplicateMac,
    Reason::HaProtected,
    Reason::OperationBlocked,
    Reason::CdFirst,
    Reason::NotPv,
    Reason::PvUnsupported,
    Reason::NotAllowed,
    Reason::HasRun,
    Reason::WhichDisk,
    Reason::NotServable,
    Reason::NoHost,
    Reason::ClaimedByOther,
    Reason::Busy,
];

fn mac(n: u8) -> MacAddr {
    MacAddr::new([2, 0x16, 0x3e, 0, 0, n])
}

fn spec(n: u8) -> VmSpec {
    VmSpec { name: format!("vm-{n}"), macs: vec![mac(n)], tags: vec!["ok".into()], ..VmSpec::default() }
}

/// A VM of the shape that E0 refuses for `reason`.
fn refused(reason: Reason, n: u8, profile: &mut Profile) -> VmSpec {
    let mut vm = spec(n);
    match reason {
        Reason::NotAGuest => vm.template = true,
        Reason::NoVif => vm.macs.clear(),
        Reason::DuplicateMac => vm.macs.push(mac(n)),
        Reason::HaProtected => vm.ha_restart_priority = "restart".into(),
        Reason::OperationBlocked => {
            vm.blocked_operations.insert("start".into(), "ask Ann".into());
        }
        Reason::CdFirst => {
            let cd = DiskSpec {
                userdevice: "0".into(),
                kind: DiskKind::Cd,
                read_only: true,
                ..DiskSpec::default()
            };
            vm.disks = vec![cd, DiskSpec { userdevice: "1".into(), ..DiskSpec::default() }];
        }
        Reason::NotPv => {
            vm.domain_type = Some("hvm".into());
            vm.policy = "BIOS order".into();
        }
        Reason::NotAllowed => vm.tags.clear(),
        Reason::HasRun => vm.ever_ran = true,
        Reason::WhichDisk => vm.disks.push(DiskSpec { userdevice: "1".into(), ..DiskSpec::default() }),
        Reason::NotServable => profile.name = "broken".into(),
        Reason::NoHost => vm.memory = 1 << 50,
        Reason::ClaimedByOther => {
            vm.other_config.insert(CLAIM_KEY.into(), "{\"v\":9}".into());
        }
        Reason::Busy => (vm.running, vm.ever_ran) = (true, true),
        _ => {}
    }
    vm
}

fn world(seed: u64, decisions: Decisions, stormy: bool) -> World {
    let mut rng = Rng::new(seed);
    let mut vms = Vec::new();
    let mut shapes = Vec::new();
    let count = 2 + u8::try_from(rng.below(2)).unwrap();
    for n in 1..=count {
        let completion =
            *rng.pick(&[Completion::Report, Completion::Report, Completion::Halt, Completion::Either]);
        let mut profile = profile(completion);
        profile.evidence =
            *rng.pick(&[EvidenceKind::Report, EvidenceKind::Report, EvidenceKind::Lease, EvidenceKind::None]);
        if rng.one_in(20) {
            profile.kind = ProfileKind::Rescue;
        }
        let mut options = Options { keep_hvm_seconds: rng.one_in(20).then_some(600), ..Options::default() };
        options.stay_hvm = rng.one_in(12);
        let vm = if rng.one_in(3) {
            let reason = *rng.pick(&REFUSED);
            shapes.push(reason);
            refused(reason, n, &mut profile)
        } else if rng.one_in(3) {
            options.reinstall = true;
            VmSpec { running: rng.one_in(2), ever_ran: true, deaf: rng.one_in(4), ..spec(n) }
        } else {
            spec(n)
        };
        let weights = [Behaviour::Installs, Behaviour::Installs, Behaviour::StaysUp];
        let behaviour = if rng.one_in(2) { *rng.pick(&weights) } else { *rng.pick(&Behaviour::ALL) };
        let job = Some((profile, options));
        vms.push(VmPlan { spec: vm, behaviours: vec![behaviour, Behaviour::Installs], job });
    }
    let rescues =
        vms.iter().any(|vm| vm.job.as_ref().is_some_and(|(profile, _)| profile.kind == ProfileKind::Rescue));
    if !rescues && shapes.is_empty() && rng.one_in(5) {
        let batch = Batch { id: "b".into(), first: Some(1), ..Batch::default() };
        for (_, options) in vms.iter_mut().filter_map(|vm| vm.job.as_mut()) {
            options.batch = Some(batch.clone());
        }
    }
    let release = if rng.one_in(4) { Release::V6_2 } else { Release::V8_2 };
    let release =
        if shapes.contains(&Reason::PvUnsupported) { Release { api: (2, 21), ..release } } else { release };
    let mut pool = Pool::new(seed, release);
    if shapes.contains(&Reason::HaProtected) {
        pool.set_ha(bootflip::sim::world::BEGINNING, true);
    }
    match rng.below(12) {
        0 => pool.set_trusted_role(Role::VmAdmin),
        1 if rng.one_in(2) => pool.set_trusted_role(Role::VmOperator),
        _ => {}
    }
    let storm = stormy.then(|| Storm::new(rng.next_bits(), 20 + rng.below(200)));
    let downtime = Downtime::For(Duration::from_secs(1 + rng.below(90)));
    let (installs, allow) = (1 + u32::from(count > 1), vec!["tag=ok".to_owned()]);
    let mut world = World::new(Setup { pool, vms, installs, allow, decisions, cut: None, storm, downtime });
    if shapes.contains(&Reason::Busy) {
        let uuids: Vec<String> = world
            .truths()
            .iter()
            .filter(|vm| vm.power_state == "Running")
            .map(|vm| vm.uuid.clone())
            .collect();
        for uuid in uuids {
            world.person(&uuid, &PersonAct::Pause);
        }
    }
    world
}

/// Operators and people, now and then.
fn meddle(world: &mut World, rng: &mut Rng) {
    let jobs = world.jobs();
    if jobs.is_empty() {
        return;
    }
    let job = rng.pick(&jobs).clone();
    match rng.below(60) {
        0 => drop(world.operate(&job.id, Event::Cancel)),
        1..=8 if matches!(job.state, State::Failed | State::Cancelled) && job.attempt < 4 => {
            world.operate(&job.id, Event::Retry);
        }
        9..=12 if job.state == State::NeedsOperator => {
            let resolution = *rng.pick(&[Resolution::Restore, Resolution::Accept, Resolution::Abandon]);
            world.operate(&job.id, Event::Resolve(resolution));
        }
        46..=50 if job.profile.kind == ProfileKind::Rescue => {
            world.operate(&job.id, Event::Finish);
        }
        17 => world.repeat_reports(),
        13 => drop(world.person(&job.vm_uuid, &PersonAct::HardShutdown)),
        14 if rng.one_in(4) => drop(world.person(&job.vm_uuid, &PersonAct::Start)),
        15 if !job.state.is_terminal() && rng.one_in(4) => {
            let order = [("order".to_owned(), "dc".to_owned())].into();
            world.person(&job.vm_uuid, &PersonAct::SetBootParams(order));
        }
        16 | 18..=45 if job.settle_at.is_some() => {
            // The coordinator forgets what it had not written.
            let now = world.now();
            world.with(|pool, _, _, _| pool.restart_coordinator(now, Duration::from_secs(300)));
        }
        _ => {}
    }
}

/// One walk: misfortune and meddling, then fair weather until all is at rest, then a person settles what is left.
fn walk(seed: u64, decisions: Decisions, stormy: bool) -> (Vec<(&'static str, String)>, Counts) {
    let mut world = world(seed, decisions, stormy);
    let mut rng = Rng::new(seed ^ 0x5eed);
    for _ in 0..60 {
        let span = Duration::from_secs(1 + rng.below(240));
        world.run(span);
        if stormy {
            meddle(&mut world, &mut rng);
        }
    }
    world.with(|_, _, storm, _| {
        if let Some(storm) = storm {
            storm.over = true;
        }
    });
    world.run(Duration::from_secs(4 * 3600));
    world.with(|_, ledger, _, _| ledger.check_waits());
    for uuid in world.truths().iter().map(|vm| vm.uuid.clone()).collect::<Vec<_>>() {
        world.person(&uuid, &PersonAct::HardShutdown); // recovery mode has no time limit of its own
    }
    world.run(Duration::from_secs(3600));
    for job in world.parked() {
        let resolution = *rng.pick(&[Resolution::Restore, Resolution::Accept, Resolution::Abandon]);
        world.operate(&job, Event::Resolve(resolution));
    }
    world.run(Duration::from_secs(3600));
    if std::env::var_os("BOOTFLIP_SEED").is_some() {
        tell(&world);
    }
    world.with(|pool, ledger, _, _| {
        ledger.check_end(pool);
        (std::mem::take(&mut ledger.violations), ledger.counts.clone())
    })
}

/// The whole story of a walk: `BOOTFLIP_SEED=58 cargo test --test it walks::replay -- --nocapture`.
fn tell(world: &World) {
    for job in world.jobs() {
        println!(
            "== {} {} {:?} attempt {} start {:?}",
            job.vm_name, job.state, job.reason, job.attempt, job.start
        );
        for stage in &job.stages {
            println!("{:?} reported {}: {}", stage.at, stage.name, stage.note);
        }
        for line in &job.log {
            println!("{} {}", line.at, line.text);
        }
        for mark in &job.history {
            println!("{:?} {}", mark.at, mark.state);
        }
    }
    world.with(|pool, ledger, _, _| {
        for call in pool.log().iter().filter(|call| !call.method.contains("get_")) {
            println!(
                "{:?} {:?} {} {:?} {} {:?} {:?}",
                call.at, call.caller, call.method, call.vm, call.params, call.outcome, call.task
            );
        }
        println!("{:#?}", ledger.violations);
    });
}

#[test]
fn replay_of_one_walk() {
    let seed = std::env::var("BOOTFLIP_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    assert_eq!(walk(seed, Decisions::default(), true).0, Vec::new(), "seed {seed}");
}

thread_local! {
    static EVENTS: std::cell::RefCell<BTreeMap<&'static str, u64>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

fn counting_step(job: &Job, event: &Event, now: Timestamp) -> Job {
    EVENTS.with_borrow_mut(|events| *events.entry(event.label()).or_default() += 1);
    step(job, event, now)
}

/// Walks `seeds` on one thread.
fn walk_all(seeds: impl Iterator<Item = u64>) -> (Counts, BTreeMap<&'static str, u64>, Vec<String>, u64) {
    EVENTS.with_borrow_mut(BTreeMap::clear);
    let decisions = Decisions { step: counting_step, ..Decisions::default() };
    let (mut counts, mut found, mut short) = (Counts::default(), Vec::new(), 0);
    for seed in seeds {
        let (violations, walked) = walk(seed, decisions, true);
        short += u64::from(walked.happenings < LEAST);
        counts.add(&walked);
        found.extend(
            violations.into_iter().map(|(invariant, what)| format!("seed {seed}: {invariant}: {what}")),
        );
    }
    (counts, EVENTS.with_borrow(Clone::clone), found, short)
}

#[test]
fn ten_thousand_walks_hold_the_invariants_and_meet_everything() {
    let walks = std::env::var("BOOTFLIP_WALKS").ok().and_then(|n| n.parse().ok()).unwrap_or(WALKS);
    let threads = 2;
    let parts: Vec<_> = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..threads)
            .map(|part| scope.spawn(move || walk_all((0..walks).filter(move |seed| seed % threads == part))))
            .collect();
        hands.into_iter().map(|hand| hand.join().unwrap()).collect()
    });
    let (mut counts, mut events, mut found, mut short) = (Counts::default(), BTreeMap::new(), Vec::new(), 0);
    for (part, happened, violations, brief) in parts {
        counts.add(&part);
        for (event, n) in happened {
            *events.entry(event).or_insert(0u64) += n;
        }
        found.extend(violations);
        short += brief;
    }
    println!("{walks} walks, {} happenings, {short} under {LEAST}", counts.happenings);
    println!("states: {:?}", counts.states);
    println!("events: {events:?}");
    println!("faults: {:?}", counts.faults);
    println!(
        "reasons: {:?}",
        counts.reasons.iter().map(|(reason, n)| (reason.label(), n)).collect::<Vec<_>>()
    );
    assert!(
        found.is_empty(),
        "{} violations:\n{}",
        found.len(),
        found.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
    );
    let least = 100 * walks / WALKS;
    let mut rare = Vec::new();
    let mut check = |what: String, n: u64| {
        if n < least.max(1) {
            rare.push(format!("{what}: {n}"));
        }
    };
    for state in State::ALL {
        check(format!("state {state}"), counts.states.get(&state).copied().unwrap_or_default());
    }
    for event in Event::LABELS {
        check(format!("event {event}"), events.get(event).copied().unwrap_or_default());
    }
    for fault in storm::KINDS {
        check(format!("fault {fault}"), counts.faults.get(fault).copied().unwrap_or_default());
    }
    for reason in Reason::ALL {
        check(format!("reason {reason}"), counts.reasons.get(reason).copied().unwrap_or_default());
    }
    assert!(rare.is_empty(), "hit less than {least} times: {rare:?}");
    assert_eq!(short, 0, "walks under {LEAST} happenings");
}

pub(crate) type PlanFn = fn(Effect, &Job, &Observed, &Trail, Timestamp) -> Plan;
pub(crate) type StepFn = fn(&Job, &Event, Timestamp) -> Job;

/// The VM as if our claim stood in it.
fn claimed(job: &Job, seen: &Observed) -> Observed {
    let mut seen = seen.clone();
    if let Some(claim) = &job.claim {
        seen.vm.other_config.insert(CLAIM_KEY.into(), claim.text());
    }
    seen
}

fn no_claim(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match effect {
        Effect::Release => Plan::Done(Outcome::Released),
        _ => plan(effect, job, &claimed(job, seen), trail, now),
    }
}

/// E14 without its look at what E11 put back, which would mend what these mutants do.
fn release_unseen(job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match plan(Effect::Release, job, seen, trail, now) {
        Plan::LookAgain => Plan::Call(Call::RemoveFromOtherConfig(CLAIM_KEY.into())),
        other => other,
    }
}

fn release_before_restore(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match effect {
        Effect::Restore => Plan::Done(Outcome::Restored { durable: true }),
        Effect::Release => release_unseen(job, seen, trail, now),
        _ => plan(effect, job, seen, trail, now),
    }
}

fn no_read_back(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let writes = trail.calls.iter().filter(|(_, call, _)| *call != Call::Sync).count();
    match effect {
        // Six settings and what xapi wrote: once called, believed.
        Effect::Restore if writes >= 6 => Plan::Done(Outcome::Restored { durable: true }),
        Effect::Restore => {
            let mut before = seen.clone();
            for (_, call, _) in &trail.calls {
                believe(call, &mut before);
            }
            plan(effect, job, &before, trail, now)
        }
        Effect::Release => release_unseen(job, seen, trail, now),
        _ => plan(effect, job, seen, trail, now),
    }
}

fn believe(call: &Call, seen: &mut Observed) {
    match call {
        Call::SetDomainType(kind) => seen.vm.domain_type = Some(kind.clone()),
        Call::SetHvmBootPolicy(policy) => seen.vm.hvm_boot_policy.clone_from(policy),
        Call::SetHvmBootParams(params) => seen.vm.hvm_boot_params.clone_from(params),
        Call::SetActionsAfterShutdown(action) => seen.vm.actions_after_shutdown.clone_from(action),
        Call::SetActionsAfterReboot(action) => seen.vm.actions_after_reboot.clone_from(action),
        Call::SetActionsAfterCrash(action) => seen.vm.actions_after_crash.clone_from(action),
        _ => {}
    }
}

fn start_without_start_time(
    effect: Effect,
    job: &Job,
    seen: &Observed,
    trail: &Trail,
    now: Timestamp,
) -> Plan {
    let quiet = seen.vm.current_operations.is_empty() && seen.vm.power_state == PowerState::Halted;
    match (effect, &job.start) {
        (Effect::Start, Some(_)) if quiet && trail.task().is_none() => {
            Plan::Call(Call::Start { paused: false })
        }
        (_, _) => plan(effect, job, seen, trail, now),
    }
}

fn restore_while_running(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    let mut seen = seen.clone();
    if matches!(effect, Effect::Disarm | Effect::Restore) {
        seen.vm.power_state = PowerState::Halted;
    }
    plan(effect, job, &seen, trail, now)
}

fn disarm_after_restore(job: &Job, event: &Event, now: Timestamp) -> Job {
    let mut next = step(job, event, now);
    if matches!(next.cursor, Some(Effect::Disarm | Effect::Restore)) {
        next.gate = job.gate;
    } else if job.cursor == Some(Effect::Restore) {
        next.gate = GateState::Closed;
    }
    next
}

fn late_report_accepted(job: &Job, event: &Event, now: Timestamp) -> Job {
    let mut next = step(job, event, now);
    if let (Event::Report(stage), true) = (event, job.state.is_terminal() || job.state == State::Undoing)
        && stage.name == "done"
    {
        next.state = State::Restoring;
        next.cursor = Some(Effect::Disarm);
    }
    next
}

fn retry_without_new_tokens(job: &Job, event: &Event, now: Timestamp) -> Job {
    let mut next = step(job, event, now);
    if *event == Event::Retry {
        next.attempt = job.attempt;
    }
    next
}

fn foreign_claim_touched(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match (effect, Claim::find(&seen.vm)) {
        (Effect::Claim, Found::Claim(found)) if Some(found.nonce.as_str()) != job.nonce() => {
            Plan::Call(Call::RemoveFromOtherConfig(CLAIM_KEY.into()))
        }
        (_, _) => plan(effect, job, seen, trail, now),
    }
}

fn deadline_dropped(effect: Effect, job: &Job, seen: &Observed, trail: &Trail, now: Timestamp) -> Plan {
    match plan(effect, job, seen, trail, now) {
        Plan::Fail(
            Reason::InstallTimeout
            | Reason::NoStage
            | Reason::NoAnswerFile
            | Reason::NoKernel
            | Reason::NoDhcp,
            _,
        ) => Plan::Wait(now + Duration::from_secs(600)),
        other => other,
    }
}

pub(crate) fn check_mutant(name: &str, plan: PlanFn, step: StepFn, expected: &[&str]) {
    let decisions = Decisions { plan, step };
    for seed in 0..1_000 {
        let (violations, _) = walk(seed, decisions, true);
        if let Some((invariant, what)) = violations.iter().find(|(invariant, _)| expected.contains(invariant))
        {
            println!("{name}: caught at walk {seed} by {invariant}: {what}");
            return;
        }
    }
    panic!("{name} was not caught by any of {expected:?} in 1,000 walks");
}

#[test]
fn mutant_no_claim_is_caught() {
    check_mutant("no claim", no_claim, step, &["I1", "I2"]);
}

#[test]
fn mutant_release_before_restore_is_caught() {
    check_mutant("release before restore", release_before_restore, step, &["I1", "I7"]);
}

#[test]
fn mutant_no_read_back_is_caught() {
    check_mutant("no read-back", no_read_back, step, &["I1", "I7"]);
}

/// The server dies in the HVM start and comes back when the installer has died: the one place that needs start_time.
#[test]
fn mutant_start_without_start_time_is_caught() {
    let decisions = Decisions { plan: start_without_start_time, step };
    let mut world = crate::recovery::asleep_through_the_start(decisions);
    world.run(Duration::from_secs(6 * 3600));
    let found = world.with(|pool, ledger, _, _| {
        ledger.check_end(pool);
        std::mem::take(&mut ledger.violations)
    });
    println!("start without the start_time check: caught by {found:?}");
    assert!(found.iter().any(|(invariant, _)| *invariant == "I4"), "{found:?}");
}

#[test]
fn mutant_restore_while_running_is_caught() {
    check_mutant("restore while Running", restore_while_running, step, &["I14"]);
}

#[test]
fn mutant_disarm_after_restore_is_caught() {
    check_mutant("disarm after restore", plan, disarm_after_restore, &["I13"]);
}

/// The installer died, the job is undone, and then its `done` comes after all.
#[test]
fn mutant_late_report_accepted_is_caught() {
    for (name, step, caught) in
        [("sound", step as StepFn, false), ("late report accepted", late_report_accepted, true)]
    {
        let mut world = crate::recovery::asleep_through_the_start(Decisions { plan, step });
        world.run(Duration::from_secs(6 * 3600));
        assert_eq!(world.jobs()[0].state, State::Failed);
        world.report_late("job-0", "done");
        let found = world.with(|_, ledger, _, _| std::mem::take(&mut ledger.violations));
        println!("{name}: {found:?}");
        assert_eq!(found.iter().any(|(invariant, _)| *invariant == "I5"), caught);
    }
}

#[test]
fn mutant_retry_without_new_tokens_is_caught() {
    check_mutant("retry without new tokens", plan, retry_without_new_tokens, &["I5"]);
}

#[test]
fn mutant_foreign_claim_touched_is_caught() {
    check_mutant("foreign claim touched", foreign_claim_touched, step, &["I2"]);
}

#[test]
fn mutant_deadline_dropped_is_caught() {
    check_mutant("a deadline dropped", deadline_dropped, step, &["I10"]);
}

#[test]
fn classes_of_refusals_used_here_are_what_the_plans_expect() {
    let failed =
        |code| CallError::Failed { method: "VM.start", failure: bootflip::xen::Failure::new(code, &[]) };
    assert_eq!(failed("DOMAIN_BUILDER_ERROR").class(), Class::Permanent);
    assert_eq!(failed("NO_HOSTS_AVAILABLE").class(), Class::SlowRetry);
    assert_eq!(
        CallResult::Failed(failed("VM_BAD_POWER_STATE")),
        CallResult::Failed(failed("VM_BAD_POWER_STATE"))
    );
}

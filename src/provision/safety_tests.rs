//! Decisions that must not be taken, and waits that must end, by example.

use super::{
    claim::{CLAIM_KEY, Claim},
    job::{Effect, Ending, Evidence, GateState, Intent, Job, Resolution, StageMark, StartRecord, State},
    plan::{Call, CallResult, Observed, Plan, TaskState, Trail, plan},
    reason::Reason,
    settings::{self, Aim, Field, WayBack},
    step::{Event, Outcome, step},
    tests::{at, job, observed},
};
use crate::{
    clock::Timestamp,
    xen::{CallError, Failure, records::PowerState},
};

const DAY: u64 = 86_400;

fn refused(code: &str) -> CallError {
    CallError::Failed { method: "VM.start", failure: Failure::new(code, &["x"]) }
}

/// A start whose intent was stored at this second, and the start_time that came of it.
fn start(intended: u64, seen: Option<&str>) -> StartRecord {
    StartRecord {
        before: "old".into(),
        domid_before: -1,
        intended: at(intended),
        task: None,
        seen: seen.map(str::to_owned),
        domid: Some(7),
        at: None,
    }
}

/// A job at an effect since this second, and its VM with the claim in it.
fn at_effect(
    state: State,
    effect: Effect,
    since: u64,
    power: PowerState,
    start_time: &str,
) -> (Job, Observed) {
    let (mut job, mut seen) = (job("j", 0), observed(power, start_time));
    let claim = Claim {
        v: 1,
        owner: "o".into(),
        vm_uuid: "u1".into(),
        job: job.id.clone(),
        attempt: 1,
        nonce: "n".into(),
        since: at(0),
        touched: settings::touch(&seen.vm, false, false),
    };
    seen.vm.other_config.insert(CLAIM_KEY.into(), claim.text());
    job.claim = Some(claim);
    job.state = state;
    job.cursor = Some(effect);
    job.intent = Some(Intent { effect, at: at(since) });
    (job, seen)
}

fn trail(begun: u64, calls: Vec<(Timestamp, Call, CallResult)>) -> Trail {
    Trail { calls, intended_here: true, begun: Some(at(begun)), start_sent: None }
}

fn with_task() -> CallResult {
    CallResult::Ok { task: Some("task".into()) }
}

#[test]
fn a_sync_that_is_refused_does_not_spoil_the_restore() {
    let (job, seen) = at_effect(State::Restoring, Effect::Restore, 10, PowerState::Halted, "t");
    let denied = CallResult::Failed(refused("RBAC_PERMISSION_DENIED"));
    let plan = plan(Effect::Restore, &job, &seen, &trail(10, vec![(at(11), Call::Sync, denied)]), at(12));
    assert_eq!(plan, Plan::Done(Outcome::Restored { durable: false }));
}

#[test]
fn a_vm_that_does_not_stop_is_given_up_after_the_deadline_and_not_hurried() {
    let (mut job, mut seen) = at_effect(State::Undoing, Effect::Disarm, 10, PowerState::Running, "t1");
    job.start = Some(start(1, Some("t1")));
    job.ending = Some(Ending { state: State::Failed, reason: Some(Reason::NoReport) });
    seen.vm.domain_type = Some("hvm".into());
    let hard = |second| (at(second), Call::HardShutdown, with_task());
    for task in [TaskState::Failed(refused("HOST_OFFLINE")), TaskState::Pending, TaskState::Gone] {
        seen.task = Some(task.clone());
        let late = plan(Effect::Disarm, &job, &seen, &trail(10, vec![hard(20), hard(600)]), at(700));
        assert!(matches!(&late, Plan::Park(Reason::GaveUp, ..)), "{task:?}: {late:?}");
        let soon = plan(Effect::Disarm, &job, &seen, &trail(10, vec![hard(20), hard(21)]), at(22));
        assert!(matches!(&soon, Plan::Wait(_)), "{task:?}: {soon:?}");
    }
}

#[test]
fn what_is_busy_for_ever_is_waited_for_only_so_long() {
    for (state, effect, ended) in [
        (State::Undoing, Effect::Disarm, Plan::Park(Reason::Busy, String::new(), vec![])),
        (State::Undoing, Effect::Restore, Plan::Park(Reason::Busy, String::new(), vec![])),
        (State::Preparing, Effect::Stop, Plan::Fail(Reason::Busy, String::new())),
        (State::Booting, Effect::Start, Plan::Fail(Reason::GaveUp, String::new())),
        (State::Starting, Effect::StartPv, Plan::Fail(Reason::GaveUp, String::new())),
    ] {
        let (mut job, mut seen) = at_effect(state, effect, 10, PowerState::Halted, "old");
        job.start = Some(start(5, None));
        job.pv_start = Some(start(10, None));
        seen.vm.domain_type = Some("hvm".into());
        seen.vm.current_operations.insert("x".into(), "export".into());
        let early = plan(effect, &job, &seen, &trail(3600, vec![]), at(3601));
        let Plan::Wait(until) = early else { panic!("{effect:?}: {early:?}") };
        assert!(until > at(3601), "{effect:?}: the next look lies ahead");
        let late = plan(effect, &job, &seen, &trail(3600, vec![]), at(3600 + 600));
        match (&late, &ended) {
            (Plan::Park(reason, ..), Plan::Park(wanted, ..))
            | (Plan::Fail(reason, _), Plan::Fail(wanted, _)) => {
                assert_eq!(reason, wanted, "{effect:?}");
            }
            _ => panic!("{effect:?}: {late:?}"),
        }
    }
}

#[test]
fn an_unpause_that_is_refused_ends_the_start() {
    let (mut job, seen) = at_effect(State::Starting, Effect::StartPv, 50, PowerState::Paused, "t2");
    job.pv_start = Some(start(50, None));
    let failed = |second, code| (at(second), Call::Unpause, CallResult::Failed(refused(code)));
    for (calls, now, ends) in [
        (vec![failed(60, "OPERATION_BLOCKED")], 61, true),
        (vec![failed(60, "OTHER_OPERATION_IN_PROGRESS")], 61, false),
        (
            vec![failed(60, "OTHER_OPERATION_IN_PROGRESS"), failed(230, "OTHER_OPERATION_IN_PROGRESS")],
            241,
            true,
        ),
    ] {
        let plan = plan(Effect::StartPv, &job, &seen, &trail(50, calls), at(now));
        assert_eq!(matches!(plan, Plan::Fail(Reason::PvStartFailed, _)), ends, "{now}: {plan:?}");
    }
}

#[test]
fn a_half_started_vm_is_stopped_on_the_way_back() {
    let (mut job, seen) = at_effect(State::Starting, Effect::StartPv, 50, PowerState::Paused, "t2");
    job.start = Some(start(1, Some("t1")));
    job.pv_start = Some(start(50, None));
    let mut job = step(&job, &Event::Cancel, at(60));
    job.intent = Some(Intent { effect: Effect::Disarm, at: at(60) });
    assert_eq!(plan(Effect::Disarm, &job, &seen, &trail(60, vec![]), at(61)), Plan::Call(Call::HardShutdown));
}

#[test]
fn what_ran_after_it_was_looked_at_is_not_claimed() {
    let (mut job, mut seen) = at_effect(State::Preparing, Effect::Claim, 10, PowerState::Halted, "ran");
    seen.vm.other_config.clear();
    job.cleared_at = Some(at(10));
    job.cleared_start = Some("1970".into());
    let now = |second| plan(Effect::Claim, &job, &seen, &trail(10, vec![]), at(second));
    assert!(matches!(now(11), Plan::Fail(Reason::StartedBySomeone, _)));
    assert_eq!(now(3600), Plan::LookAgain, "an old verdict is no verdict");
    let again = step(&job, &Event::Outdated, at(3600));
    assert_eq!((again.cursor, again.state), (Some(Effect::Preflight), State::Preparing));
    assert_eq!(again.nonce(), Some("n"), "the next claim is known as the same job's");
}

#[test]
fn an_abandoned_job_is_left_alone_for_good() {
    let (job, _) = at_effect(State::NeedsOperator, Effect::Disarm, 10, PowerState::Running, "t1");
    let ended = step(&job, &Event::Resolve(Resolution::Abandon), at(100));
    assert_eq!((ended.state, ended.settle_at), (State::Failed, None));
}

#[test]
fn a_start_of_somebody_else_is_never_taken_for_ours() {
    let (mut job, mut seen) = at_effect(State::Booting, Effect::Start, 10, PowerState::Running, "new");
    job.start = Some(start(10, None));
    seen.vm.domain_type = Some("hvm".into());
    let call = Call::Start { paused: false };
    let in_task = |error| (with_task(), Some(TaskState::Failed(error)));
    let direct = |error| (CallResult::Failed(error), None);
    for (what, (result, task), ours) in [
        ("refused in the task", in_task(refused("VM_BAD_POWER_STATE")), false),
        ("no room, in the task", in_task(refused("HOST_NOT_ENOUGH_FREE_MEMORY")), false),
        ("refused", direct(refused("NO_HOSTS_AVAILABLE")), false),
        ("lost", direct(CallError::Unknown { method: "VM.start", detail: String::new() }), true),
        ("cancelled", in_task(refused("TASK_CANCELLED")), true),
        ("accepted", (with_task(), Some(TaskState::Success)), true),
        ("accepted, task collected", (with_task(), Some(TaskState::Gone)), true),
    ] {
        seen.task = task;
        let plan =
            plan(Effect::Start, &job, &seen, &trail(10, vec![(at(11), call.clone(), result)]), at(200));
        let theirs = matches!(plan, Plan::Fail(Reason::StartedBySomeone, _));
        assert!(theirs || matches!(plan, Plan::Done(Outcome::Started { .. })), "{what}: {plan:?}");
        assert_eq!(!theirs, ours, "{what}");
    }
}

#[test]
fn a_start_that_was_refused_leaves_nothing_to_stop_and_what_ran_runs_again() {
    let (mut job, _) = at_effect(State::Booting, Effect::Start, 10, PowerState::Halted, "old");
    job.start = Some(start(10, None));
    job.was_running = true;
    let mut job = step(&job, &Event::Failed(Reason::NoHost, "NO_HOSTS_AVAILABLE".into()), at(700));
    assert_eq!(job.start, None);
    for outcome in [Outcome::Disarmed { unstarted: false }, Outcome::Restored { durable: true }] {
        job = step(&job, &Event::Done(outcome), at(701));
    }
    assert_eq!(job.cursor, Some(Effect::StartPv), "it is started as it was");
}

#[test]
fn a_cancel_before_the_start_was_sent_starts_what_ran_again() {
    let (mut job, seen) = at_effect(State::Booting, Effect::Start, 10, PowerState::Halted, "old");
    job.start = Some(start(10, None));
    job.was_running = true;
    let mut job = step(&job, &Event::Cancel, at(11));
    job.intent = Some(Intent { effect: Effect::Disarm, at: at(11) });
    let sent = Trail { start_sent: Some(at(18)), ..trail(11, vec![]) };
    assert_eq!(plan(Effect::Disarm, &job, &seen, &sent, at(16)), Plan::Wait(at(23)), "one may be under way");
    let plan = plan(Effect::Disarm, &job, &seen, &sent, at(30));
    assert_eq!(plan, Plan::Done(Outcome::Disarmed { unstarted: true }));
    assert_eq!(step(&job, &Event::Done(Outcome::Disarmed { unstarted: true }), at(30)).start, None);
}

#[test]
fn an_untouched_vm_of_unspecified_type_is_as_it_was() {
    let mut seen = observed(PowerState::Halted, "old");
    seen.vm.domain_type = Some("unspecified".into());
    let touched = settings::touch(&seen.vm, false, false);
    assert_eq!(settings::way_back(&seen.vm, &touched, Aim::AsBefore, false), WayBack::AtTarget);
    seen.vm.domain_type = Some("hvm".into());
    let back = settings::way_back(&seen.vm, &touched, Aim::AsBefore, false);
    assert_eq!(back, WayBack::Next(Call::SetDomainType("pv".into())));
}

#[test]
fn eliloader_gives_way_to_pygrub_only_where_an_installation_succeeded() {
    let mut seen = observed(PowerState::Halted, "old");
    seen.vm.pv_bootloader = "eliloader".into();
    let touched = settings::touch(&seen.vm, false, false);
    let back = |seen: &Observed, aim| settings::way_back(&seen.vm, &touched, aim, false);
    assert_eq!(back(&seen, Aim::AsBefore), WayBack::AtTarget);
    assert_eq!(back(&seen, Aim::Installed), WayBack::Next(Call::SetPvBootloader("pygrub".into())));
    assert_eq!(
        settings::way_there(&seen.vm, &touched, |field| *field == Field::PvBootloader && field.is_flipped()),
        None
    );
    seen.vm.pv_bootloader = "pygrub".into();
    assert_eq!(back(&seen, Aim::Installed), WayBack::AtTarget);
    assert_eq!(back(&seen, Aim::AsBefore), WayBack::Next(Call::SetPvBootloader("eliloader".into())));
}

#[test]
fn the_gate_shuts_with_the_decision_to_go_back() {
    for event in
        [Event::Cancel, Event::Failed(Reason::NoStage, String::new()), Event::Done(Outcome::Completed)]
    {
        let (mut job, _) = at_effect(State::Installing, Effect::Completion, 10, PowerState::Running, "t");
        job.gate = GateState::Booting;
        assert_eq!(step(&job, &event, at(20)).gate, GateState::Closed, "{event:?}");
    }
}

#[test]
fn a_cancel_ends_the_hold_of_a_failed_vm() {
    let (mut job, mut seen) = at_effect(State::Undoing, Effect::Disarm, 10, PowerState::Running, "t1");
    job.options.keep_hvm_seconds = Some(3600);
    job.start = Some(start(1, Some("t1")));
    job.ending = Some(Ending { state: State::Failed, reason: Some(Reason::NoReport) });
    seen.vm.domain_type = Some("hvm".into());
    let held = plan(Effect::Disarm, &job, &seen, &trail(10, vec![]), at(11));
    assert!(matches!(held, Plan::Wait(_)), "{held:?}");
    let job = step(&job, &Event::Cancel, at(12));
    assert_eq!(plan(Effect::Disarm, &job, &seen, &trail(10, vec![]), at(13)), Plan::Call(Call::HardShutdown));
}

#[test]
fn the_first_completion_counts_and_stages_do_not_pile_up() {
    let (mut job, _) = at_effect(State::Installing, Effect::Completion, 10, PowerState::Running, "t");
    job.gate = GateState::Installing;
    job.tokens = Some(crate::provision::job::Tokens {
        render: crate::secret::TokenHash::of("a"),
        report: crate::secret::TokenHash::of("b"),
        booted: crate::secret::TokenHash::of("c"),
    });
    let report = |job: &Job, name: &str| {
        let stage = StageMark {
            name: name.into(),
            at: at(20),
            percent: None,
            note: String::new(),
            log: String::new(),
        };
        step(job, &Event::Report(stage), at(20))
    };
    for number in 0..100 {
        job = report(&job, &format!("stage-{number}"));
    }
    assert_eq!(job.stages.len(), 64);
    let done = report(&job, "done");
    assert!(done.done_at.is_some());
    assert_eq!(report(&done, "failed"), done);
}

#[test]
fn a_settle_check_that_finds_our_claim_again_leaves_the_way_back_to_the_claim() {
    let (mut job, seen) = at_effect(State::Succeeded, Effect::Release, 10, PowerState::Running, "t2");
    job.cursor = None;
    job.start = Some(start(1, Some("t1")));
    job.pv_start = Some(start(5, Some("t2")));
    let claim = Box::new(job.claim.clone().unwrap());
    let mut job = step(&job, &Event::Unsettled(claim), at(DAY));
    assert_eq!((job.state, job.resolution), (State::Undoing, None));
    job.intent = Some(Intent { effect: Effect::Disarm, at: at(DAY) });
    let mut flipped = seen;
    flipped.vm.domain_type = Some("hvm".into());
    let plan_of = |effect, seen: &Observed| plan(effect, &job, seen, &trail(DAY, vec![]), at(DAY + 1));
    let disarmed = Plan::Done(Outcome::Disarmed { unstarted: false });
    assert_eq!(plan_of(Effect::Disarm, &flipped), disarmed, "our own PV domain is not stopped");
    assert_eq!(plan_of(Effect::Restore, &flipped), Plan::Call(Call::SetDomainType("pv".into())));
    // 6.1 and 6.2 would lose its disks at the next reboot.
    flipped.vm.domain_type = None;
    flipped.vm.hvm_boot_policy = "BIOS order".into();
    if let Some(claim) = job.claim.as_mut() {
        let mut before = flipped.vm.clone();
        before.hvm_boot_policy.clear();
        claim.touched = settings::touch(&before, false, false);
    }
    let plan = plan(Effect::Disarm, &job, &flipped, &trail(DAY, vec![]), at(DAY + 1));
    assert!(matches!(plan, Plan::Park(Reason::StartedBySomeone, ..)), "{plan:?}");
}

#[test]
fn a_vm_that_was_to_stay_hvm_is_undone_in_full() {
    let mut seen = observed(PowerState::Halted, "old");
    let touched = settings::touch(&seen.vm, false, true);
    for order in ["n", "c"] {
        seen.vm.hvm_boot_params = [("order".to_owned(), order.to_owned())].into();
        let back = settings::way_back(&seen.vm, &touched, Aim::AsBefore, false);
        assert_eq!(back, WayBack::Next(Call::SetHvmBootParams([].into())), "{order}");
        seen.vm.domain_type = Some("hvm".into());
        let stays = settings::way_back(&seen.vm, &touched, Aim::InstalledHvm, false);
        assert_eq!(stays == WayBack::AtTarget, order == "c", "{stays:?}");
        seen.vm.domain_type = Some("pv".into());
    }
    seen.vm.hvm_boot_params = [("order".to_owned(), "dc".to_owned())].into();
    let theirs = settings::way_back(&seen.vm, &touched, Aim::AsBefore, false);
    assert!(matches!(theirs, WayBack::Differs(_)), "{theirs:?}");
}

#[test]
fn a_retry_that_meets_its_own_old_claim_puts_the_vm_back() {
    let (job, seen) = at_effect(State::Preparing, Effect::Preflight, 10, PowerState::Halted, "old");
    let claim = Box::new(job.claim.clone().unwrap());
    let mut retried = Job { claim: None, ..job };
    retried = step(&retried, &Event::Unsettled(claim), at(11));
    assert_eq!((retried.state, retried.cursor), (State::Undoing, Some(Effect::Disarm)));
    let mut flipped = seen;
    flipped.vm.domain_type = Some("hvm".into());
    retried.cursor = Some(Effect::Restore);
    retried.intent = Some(Intent { effect: Effect::Restore, at: at(12) });
    let back = plan(Effect::Restore, &retried, &flipped, &trail(12, vec![]), at(12));
    assert_eq!(back, Plan::Call(Call::SetDomainType("pv".into())));
    // Behind it the retry goes on by itself, as a new attempt; or not, when it was cancelled meanwhile.
    for (cancelled, expected) in [(false, State::Queued), (true, State::Cancelled)] {
        let mut released = Job { cursor: Some(Effect::Release), ..retried.clone() };
        if cancelled {
            released = step(&released, &Event::Cancel, at(13));
        }
        let next = step(&released, &Event::Done(Outcome::Released), at(14));
        let attempt = retried.attempt + u32::from(!cancelled);
        assert_eq!((next.state, next.attempt, next.ending), (expected, attempt, None));
    }
}

#[test]
fn without_a_word_of_the_domain_the_record_must_still_say_pv() {
    let (mut job, mut seen) = at_effect(State::Verifying, Effect::Evidence, 10, PowerState::Running, "new");
    job.pv_start = Some(start(5, Some("new")));
    job.booted_at = Some(at(12));
    seen.metrics.hvm = None;
    let done = |seen: &Observed| plan(Effect::Evidence, &job, seen, &trail(10, vec![]), at(13));
    assert!(matches!(done(&seen), Plan::Done(Outcome::EvidenceSeen(_))));
    seen.vm.domain_type = Some("hvm".into());
    assert!(matches!(done(&seen), Plan::Wait(_)), "somebody changed the type about our start");
}

#[test]
fn a_claim_is_not_released_from_a_vm_whose_restore_was_forgotten() {
    for (state, start_time, evidence, ending) in [
        (State::Verifying, "t2", Evidence::Pv, State::Succeeded),
        (State::Verifying, "t2", Evidence::None, State::Failed),
        (State::Undoing, "t1", Evidence::None, State::Cancelled),
    ] {
        let (mut job, mut seen) = at_effect(state, Effect::Release, 10, PowerState::Running, start_time);
        job.evidence = evidence;
        if state == State::Undoing {
            seen.vm.power_state = PowerState::Halted;
            job.ending = Some(Ending { state: ending, reason: Some(Reason::CancelledByOperator) });
        } else {
            (job.start, job.pv_start) = (Some(start(1, Some("t1"))), Some(start(5, Some("t2"))));
        }
        let now = |job: &Job, seen: &Observed| plan(Effect::Release, job, seen, &trail(10, vec![]), at(11));
        assert!(matches!(now(&job, &seen), Plan::Call(_)), "{state:?}: restored, it is released");
        let order = seen.vm.hvm_boot_params.insert("order".to_owned(), "n".to_owned());
        assert_eq!(now(&job, &seen), Plan::LookAgain, "{state:?}");
        let back = step(&job, &Event::Outdated, at(12));
        assert_eq!((back.state, back.cursor), (State::Undoing, Some(Effect::Disarm)));
        assert_eq!(back.ending.map(|ending| ending.state), Some(ending));
        // A person's value is theirs: nothing of ours stands in the VM.
        seen.vm.hvm_boot_params.insert("order".to_owned(), "dc".to_owned());
        assert!(matches!(now(&job, &seen), Plan::Call(_)), "{state:?}: {order:?}");
    }
}

//! The fault table: every class of error at every call of every effect, once and for hours; and a coordinator that
//! loses five minutes of writes. Whatever happens, the VM comes back as it was, or the job says why not and what to do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    time::Duration,
};

use bootflip::{
    config::Completion,
    provision::{
        Effect, Event, Job, Reason, State,
        executor::Decisions,
        job::{Options, Resolution},
    },
    sim::{
        pool::{Pool, Release, Role, VmSpec},
        world::{
            Downtime, Setup, VmPlan, World,
            cut::{Cut, Point, Reply},
            guest::Behaviour,
            strike::{Deed, Strike},
        },
    },
    xen::{Class, Failure, Method},
};

use crate::{common::tell, recovery::profile};

const MINUTE: Duration = Duration::from_secs(60);
/// Longer than a fault is borne, and longer than it takes to go on behind it.
const HOURS: Duration = Duration::from_secs(3 * 3600);

/// Error codes that a pool may answer, by their class.
const CODES: [(Class, &[&str]); 6] = [
    (
        Class::Retry,
        &[
            "OTHER_OPERATION_IN_PROGRESS",
            "TOO_BUSY",
            "TOO_MANY_PENDING_TASKS",
            "INTERNAL_ERROR",
            "VDI_IN_USE",
        ],
    ),
    (
        Class::SlowRetry,
        &[
            "HOST_STILL_BOOTING",
            "NO_HOSTS_AVAILABLE",
            "HOST_NOT_ENOUGH_FREE_MEMORY",
            "CANNOT_CONTACT_HOST",
            "SR_NOT_ATTACHED",
        ],
    ),
    (
        Class::Permanent,
        &[
            "RBAC_PERMISSION_DENIED",
            "OPERATION_BLOCKED",
            "OPERATION_NOT_ALLOWED",
            "LICENCE_RESTRICTION",
            "MESSAGE_METHOD_UNKNOWN",
            "BOOTLOADER_FAILED",
            "DOMAIN_BUILDER_ERROR",
            "VM_IS_PROTECTED",
        ],
    ),
    (Class::Relogin, &["SESSION_INVALID"]),
    (Class::Redirect, &["HOST_IS_SLAVE"]),
    (
        Class::Observe,
        &[
            "HANDLE_INVALID",
            "VM_BAD_POWER_STATE",
            "MAP_DUPLICATE_KEY",
            "OBJECT_NOLONGER_EXISTS",
            "VM_CRASHED",
        ],
    ),
];

/// Which way a job takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// A running VM is installed anew.
    Ahead,
    /// The installer reports failure.
    BackFromBoot,
    /// An operator cancels when the VM was shut down and not yet started.
    BackFromFlip,
}

impl Way {
    const ALL: [Self; 3] = [Self::Ahead, Self::BackFromBoot, Self::BackFromFlip];

    const fn name(self) -> &'static str {
        match self {
            Self::Ahead => "",
            Self::BackFromBoot => "undo",
            Self::BackFromFlip => "cancel",
        }
    }

    /// A world whose job is about to take this way.
    fn world(self, role: Role) -> World {
        let spec = VmSpec { running: true, ever_ran: true, ..VmSpec::default() };
        let behaviour = if self == Self::BackFromBoot { Behaviour::Fails } else { Behaviour::StaysUp };
        let options = Options { reinstall: true, ..Options::default() };
        let mut pool = Pool::new(7, Release::V8_2);
        pool.set_trusted_role(role);
        let mut world = World::new(Setup {
            pool,
            vms: vec![VmPlan {
                spec,
                behaviours: vec![behaviour],
                job: Some((profile(Completion::Report), options)),
            }],
            installs: 4,
            allow: Vec::new(),
            decisions: Decisions::default(),
            cut: (self == Self::BackFromFlip).then(|| Cut::new(Effect::Flip, Point::AfterIntent, Reply::Ok)),
            storm: None,
            downtime: Downtime::For(Duration::from_secs(1)),
        });
        if self == Self::BackFromFlip {
            // The server dies there, so that it can be told in the middle of what takes no time.
            until(&mut world, |world| world.crashes > 0);
            world.with(|_, _, _, cut| *cut = None);
            world.boot_server();
            assert!(world.operate("job-0", Event::Cancel));
        }
        world
    }

    /// The effects that belong to this way and to no earlier one.
    fn has(self, effect: Effect) -> bool {
        self == Self::Ahead || effect >= Effect::Disarm
    }

    /// Its effects with their calls, as a run without faults makes them.
    fn calls(self, role: Role) -> BTreeSet<(Effect, Method)> {
        let mut world = self.world(role);
        let before = if self == Self::Ahead { BTreeSet::new() } else { world.called() };
        world.run(HOURS);
        assert!(job(&world).state.is_terminal(), "{:#?}", job(&world).log);
        let new = world.called().into_iter().filter(|call| !before.contains(call));
        new.filter(|(effect, _)| self.has(*effect)).collect()
    }
}

fn job(world: &World) -> Job {
    world.jobs().remove(0)
}

/// Lets time pass in small steps until it is so.
fn until(world: &mut World, so: impl Fn(&World) -> bool) {
    let limit = world.now() + HOURS;
    while !so(world) {
        assert!(world.now() < limit, "{:#?}", job(world).log);
        world.pass(Duration::from_millis(200));
    }
}

/// What a cell came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// As if nothing had been: installed, or undone as it was to be.
    Went,
    /// Undone for this reason; the VM is as before.
    Undone(Reason),
    /// It waited until the fault was over, and then went on.
    Waited,
    /// It asked for an operator, and settled itself when the fault was over.
    Asked(Reason),
    /// It asked for an operator, and `jobs resolve --restore` settled it.
    Resolved(Reason),
}

/// Lets the job run with the fault, and then without it. `Err`: what is wrong.
fn verdict(world: &mut World, way: Way) -> Result<End, String> {
    world.run(HOURS);
    let hurt = job(world);
    let struck = world.strike(None).map_or(0, |strike| strike.hits);
    if struck == 0 {
        return Err("no hit".into());
    }
    let reason = hurt.reason.filter(|reason| !reason.remedy().is_empty());
    let asked = hurt.state == State::NeedsOperator;
    if asked && reason.is_none() {
        return Err("NeedsOperator without a reason".into());
    }
    let mut resolved = false;
    if !hurt.state.is_terminal() {
        if reason.is_none() && hurt.waiting.is_none() {
            return Err(format!("{} at {:?}, and nobody knows why", hurt.state, hurt.cursor));
        }
        world.run(HOURS);
        if job(world).state == State::NeedsOperator {
            resolved = world.operate("job-0", Event::Resolve(Resolution::Restore));
            world.run(HOURS);
        }
    }
    let after = job(world);
    restored(world, &after)?;
    let wanted = match way {
        Way::Ahead => State::Succeeded,
        Way::BackFromBoot => State::Failed,
        Way::BackFromFlip => State::Cancelled,
    };
    let own = matches!(after.reason, None | Some(Reason::InstallerFailed | Reason::CancelledByOperator));
    // The way back that an operator was asked about is tried again every half hour.
    Ok(match (hurt.state.is_terminal(), reason) {
        (false, Some(reason)) if resolved => End::Resolved(reason),
        (false, Some(reason)) if asked || after.reason == Some(reason) => End::Asked(reason),
        (false, _) => End::Waited,
        (_, _) if after.state == wanted && own => End::Went,
        (_, Some(reason)) => End::Undone(reason),
        (_, None) => return Err(format!("{} without a reason", after.state)),
    })
}

/// The job has ended, and the VM is as it was.
fn restored(world: &mut World, job: &Job) -> Result<(), String> {
    if !job.state.is_terminal() {
        let (state, cursor, waiting) = (job.state, job.cursor, job.waiting.as_ref());
        return Err(format!("{state} {:?} at {cursor:?}, {waiting:?}: {}", job.reason, job.detail));
    }
    let truth = world.truths().remove(0);
    let violations = world.with(|pool, ledger, _, _| {
        // Between a look and a call there is no lock in XenAPI; what counts here is how it ends.
        ledger.violations.clear();
        ledger.check_end(pool);
        ledger.restored("I1", &truth, Some(job));
        std::mem::take(&mut ledger.violations)
    });
    if violations.is_empty() { Ok(()) } else { Err(format!("{violations:?}")) }
}

/// How often each end came of a column's cells.
#[derive(Default)]
struct Cell(BTreeMap<End, u32>);

impl Cell {
    fn short(&self) -> String {
        let count = |fits: fn(&End) -> bool| -> u32 {
            self.0.iter().filter(|(end, _)| fits(end)).map(|(_, count)| count).sum()
        };
        let parts = [
            (count(|end| *end == End::Went), ""),
            (count(|end| *end == End::Waited), "w"),
            (count(|end| matches!(end, End::Undone(_))), "u"),
            (count(|end| matches!(end, End::Asked(_))), "a"),
            (count(|end| matches!(end, End::Resolved(_))), "r"),
        ];
        let shown = parts.iter().filter(|(count, _)| *count > 0);
        shown.map(|(count, mark)| format!("{count}{mark}")).collect::<Vec<_>>().join(" ")
    }
}

/// The table: rows by way and effect, columns by class, each cell for an error that comes once and one that stays.
#[derive(Default)]
struct Table {
    cells: BTreeMap<(Way, Effect), BTreeMap<(usize, bool), Cell>>,
    reasons: BTreeSet<Reason>,
    failures: Vec<String>,
    count: u32,
}

impl Table {
    fn add(&mut self, at: (Way, Effect), column: (usize, bool), what: &str, end: Result<End, String>) {
        self.count += 1;
        match end {
            Ok(end) => {
                if let End::Undone(reason) | End::Asked(reason) | End::Resolved(reason) = end {
                    self.reasons.insert(reason);
                }
                let row = self.cells.entry(at).or_default();
                *row.entry(column).or_default().0.entry(end).or_default() += 1;
            }
            Err(why) => self.failures.push(format!("{what}: {why}")),
        }
    }

    fn text(&self) -> String {
        let mut text = String::from(
            "fault table: once | for hours;  w: waited for it to end, u: undone with a reason, ",
        );
        text.push_str("a: asked an operator and settled itself, r: was resolved by one\n");
        let _ = write!(text, "{:<11}", "");
        for (class, _) in CODES {
            let _ = write!(text, "  {:<22}", format!("{class:?}"));
        }
        for ((way, effect), row) in &self.cells {
            let _ = write!(text, "\n{:<4}{:<7}", effect.label(), way.name());
            for column in 0..CODES.len() {
                let short = |stays| row.get(&(column, stays)).map_or_else(String::new, Cell::short);
                let _ = write!(text, "  {:<22}", format!("{} | {}", short(false), short(true)));
            }
        }
        let reasons: Vec<&str> = self.reasons.iter().map(|reason| reason.label()).collect();
        let _ = write!(
            text,
            "\n{} cells, {} failed; reasons: {}\n",
            self.count,
            self.failures.len(),
            reasons.join(", ")
        );
        text
    }
}

/// The ways in which a call can be refused: at once, and by its task where it has one.
fn deeds(method: Method, failure: &Failure) -> Vec<Deed> {
    let at_once = Deed::Fails(failure.clone());
    if method.is_async() { vec![at_once, Deed::TaskFails(failure.clone())] } else { vec![at_once] }
}

#[test]
fn every_class_of_error_at_every_call_of_every_effect_ends_restored_or_with_a_remedy() {
    for (class, codes) in CODES {
        for code in codes {
            assert_eq!(Class::of(&Failure::new(code, &["OpaqueRef:vm"])), class, "{code}");
        }
    }
    let mut table = Table::default();
    let mut effects = BTreeSet::new();
    for way in Way::ALL {
        for (effect, method) in way.calls(Role::PoolAdmin) {
            effects.insert(effect);
            for (column, (_, codes)) in CODES.iter().enumerate() {
                for code in *codes {
                    let failure = Failure::new(code, &["OpaqueRef:vm", "as the fault table has it"]);
                    for deed in deeds(method, &failure) {
                        for stays in [false, true] {
                            let mut world = way.world(Role::PoolAdmin);
                            let times = if stays { u32::MAX } else { 1 };
                            world.strike(Some(Strike::new(effect, method, deed.clone(), times)));
                            let how = if stays { "for hours" } else { "once" };
                            let what = format!("{way:?} {} {} {deed:?} {how}", effect.label(), method.name());
                            table.add((way, effect), (column, stays), &what, verdict(&mut world, way));
                        }
                    }
                }
            }
        }
    }
    tell(&table.text());
    assert_eq!(effects.into_iter().collect::<Vec<_>>(), Effect::ALL);
    assert!(table.failures.is_empty(), "{}", table.failures.join("\n"));
}

/// An account that may sync the pool's database, and one that may not.
const ACCOUNTS: [(&str, Role); 2] = [("may sync", Role::PoolOperator), ("may not sync", Role::VmAdmin)];

const FIVE_MINUTES: Duration = Duration::from_secs(300);

/// Longer than the settle check takes to come.
const SETTLED: Duration = Duration::from_secs(1800);

#[test]
fn a_coordinator_that_loses_five_minutes_at_any_call_leaves_every_vm_restored() {
    let mut failures = Vec::new();
    let mut ends: BTreeMap<String, u32> = BTreeMap::new();
    let mut cells = 0;
    for (account, role) in ACCOUNTS {
        for way in Way::ALL {
            for (effect, method) in way.calls(role) {
                for deed in [Deed::ForgetsBefore(FIVE_MINUTES), Deed::ForgetsAfter(FIVE_MINUTES)] {
                    let what = format!("{account} {way:?} {} {} {deed:?}", effect.label(), method.name());
                    let mut world = way.world(role);
                    world.strike(Some(Strike::new(effect, method, deed, 1)));
                    let end = verdict(&mut world, way);
                    cells += 1;
                    match end {
                        Ok(end) => *ends.entry(format!("{end:?}")).or_default() += 1,
                        Err(why) => failures.push(format!("{what}: {why}")),
                    }
                }
            }
        }
    }
    tell(&format!("five minutes lost at each call: {cells} cells, {} failed; {ends:?}\n", failures.len()));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_coordinator_that_loses_five_minutes_after_the_end_leaves_every_vm_restored() {
    let mut text = String::from("five minutes lost after E14:");
    let mut failures = Vec::new();
    for (account, role) in ACCOUNTS {
        for way in Way::ALL {
            for after in [0, 1, 30, 60, 120, 240, 299] {
                let mut world = way.world(role);
                until(&mut world, World::all_ended);
                world.pass(Duration::from_secs(after));
                let now = world.now();
                world.with(|pool, _, _, _| pool.restart_coordinator(now, FIVE_MINUTES));
                world.pass(SETTLED);
                let ended = job(&world);
                let verdict = restored(&mut world, &ended);
                let mark = if verdict.is_ok() { "ok" } else { "FAILED" };
                let _ = write!(text, "\n  {account:<13} {way:<14?} {after:>4} s later  {mark}");
                failures.extend(verdict.err().map(|why| format!("{account} {way:?} {after} s: {why}")));
            }
        }
    }
    tell(&format!("{text}\n"));
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// A minute is what the settle check has for itself: writes are on disk after five.
#[test]
fn a_coordinator_that_dies_when_all_is_on_disk_changes_nothing() {
    for (_, role) in ACCOUNTS {
        let mut world = Way::Ahead.world(role);
        until(&mut world, World::all_ended);
        world.pass(FIVE_MINUTES + MINUTE);
        let (before, now) = (world.truths(), world.now());
        world.with(|pool, _, _, _| pool.restart_coordinator(now, FIVE_MINUTES));
        assert_eq!(world.truths(), before);
        world.pass(SETTLED);
        let ended = job(&world);
        assert_eq!((ended.state, restored(&mut world, &ended)), (State::Succeeded, Ok(())));
    }
}

//! A real SIGKILL of the shipped binary at every effect, with real guests over sockets: the next start goes on, and
//! the pool counts one HVM and one PV start.

use std::time::Duration;

use bootflip::{
    provision::{
        Effect,
        job::{Evidence, State},
    },
    sim::{
        faults::FaultKind,
        guest::{GuestPlan, Mishap},
        pool::VmSpec,
    },
};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::common::site::{HELD, Plan, Site, blemishes, hold, quick, vm};

/// How many sites run side by side.
const AT_ONCE: usize = 9;

/// When the server is killed.
#[derive(Debug, Clone, Copy)]
enum At {
    /// While the nth call of this method is on its way: it is never done.
    Asked(&'static str, u32),
    /// When the nth call of this method is done and its answer is on its way.
    Done(&'static str, u32),
    /// While E0 asks which hosts could start the VM.
    Clearing,
    /// While E7 looks at the VM, after the flip.
    Arming,
    /// When the installer has reached its packages.
    Packages,
    /// When the job waits for evidence and the new system is not up yet.
    BeforeEvidence,
}

impl At {
    fn words(self) -> String {
        match self {
            Self::Asked(method, nth) => format!("{method} #{nth} asked"),
            Self::Done(method, nth) => format!("{method} #{nth} done"),
            Self::Clearing => "asking for possible hosts".to_owned(),
            Self::Arming => "reading the flipped VM".to_owned(),
            Self::Packages => "installer at its packages".to_owned(),
            Self::BeforeEvidence => "PV domain up, system silent".to_owned(),
        }
    }
}

/// Every effect, and for those with a call both sides of it.
fn cells() -> Vec<(Effect, At)> {
    let calls = [
        (Effect::Claim, "VM.add_to_other_config", 1),
        (Effect::Sync, "pool.sync_database", 1),
        (Effect::Stop, "VM.clean_shutdown", 1),
        (Effect::Actions, "VM.set_actions_after_reboot", 1),
        (Effect::Order, "VM.set_HVM_boot_params", 1),
        (Effect::Flip, "VM.set_domain_type", 1),
        (Effect::Start, "VM.start", 1),
        (Effect::Disarm, "VM.hard_shutdown", 1),
        (Effect::Restore, "VM.set_domain_type", 2),
        (Effect::StartPv, "VM.start", 2),
        (Effect::Release, "VM.remove_from_other_config", 1),
    ];
    let mut cells = vec![
        (Effect::Preflight, At::Clearing),
        (Effect::Arm, At::Arming),
        (Effect::Completion, At::Packages),
        (Effect::Evidence, At::BeforeEvidence),
    ];
    for (effect, method, nth) in calls {
        cells.extend([(effect, At::Asked(method, nth)), (effect, At::Done(method, nth))]);
    }
    cells.sort_by_key(|(effect, _)| *effect);
    cells
}

/// A reinstall of a running VM whose installer reports and stays up: every effect has something to do.
fn site() -> Site {
    let running = VmSpec { running: true, ever_ran: true, ..vm("web", 1) };
    let stays = GuestPlan { mishap: Mishap::KeepRunningAfterDone, ..quick() };
    Site::new(Plan { guest: stays, ..Plan::of(vec![running]) })
}

/// Orders the installation and waits for the moment.
async fn reach(site: &mut Site, at: At) -> String {
    match at {
        At::Asked(method, nth) => site.sim.add_fault(hold(method, nth, FaultKind::Hold)),
        At::Done(method, nth) => site.sim.add_fault(hold(method, nth, FaultKind::HoldReply)),
        At::Clearing => {
            // `deploy` looks by itself before it makes the job.
            site.run(&["deploy", "web", "-p", "mini", "--reinstall", "--plan"]).await.ended(0);
            let looks = site.calls("VM.get_possible_hosts");
            site.sim.add_fault(hold("VM.get_possible_hosts", looks + 1, FaultKind::Hold));
        }
        At::Arming => {
            let mut flip = hold("VM.set_domain_type", 1, FaultKind::Hold);
            flip.name = "flip".to_owned();
            site.sim.add_fault(flip);
        }
        At::BeforeEvidence => drop(site.pv_boots.send_replace(false)),
        At::Packages => {}
    }
    let id = site.deploy("web").await;
    match at {
        At::Asked(..) | At::Done(..) | At::Clearing => site.fired(HELD).await,
        At::Arming => {
            site.fired("flip").await;
            // The first look reads the flip back, the second one is E7's.
            site.sim.add_fault(hold("VM.get_record", 2, FaultKind::Hold));
            site.sim.release("flip");
            site.fired(HELD).await;
        }
        At::Packages => {
            site.until_packages().await;
        }
        At::BeforeEvidence => {
            site.until_job(&id, "waits for evidence", |job| job.state == State::Verifying).await;
        }
    }
    id
}

/// One site, killed at one moment; the row of the table, or what is wrong.
async fn cell(effect: Effect, at: At) -> (String, Option<String>) {
    let begun = Instant::now();
    let mut site = site();
    let before = site.truth("web");
    site.serve().await;
    let id = reach(&mut site, at).await;
    site.kill().await;
    let journal = site.journal().await;
    let found = journal.first().and_then(|job| Some((job.intent?.effect, job.state)));
    site.sim.release(HELD);
    site.pv_boots.send_replace(true);
    site.serve().await;
    let job = site.until_job(&id, "ended", |job| job.is_over()).await;
    let mut wrong = blemishes(&before, &site.truth("web"));
    if found.map(|(effect, _)| effect) != Some(effect) {
        wrong.push(format!("it was killed at {found:?}"));
    }
    if (job.state, job.evidence, job.attempt) != (State::Succeeded, Evidence::Pv, 1) {
        wrong.push(format!("{:?} {:?} {:?} {}", job.state, job.evidence, job.reason, job.detail));
    }
    let (code, took) = site.terminate().await;
    if code != Some(0) || took > Duration::from_secs(20) {
        wrong.push(format!("SIGTERM: {code:?} after {took:?}"));
    }
    let state = found.map_or_else(String::new, |(_, state)| state.to_string());
    let verdict = if wrong.is_empty() { "ok" } else { "FAILED" };
    let seconds = begun.elapsed().as_secs_f32();
    let row = format!(
        "{:<4} {:<40} {state:<11} {} {seconds:>5.1} s  {verdict}",
        effect.label(),
        at.words(),
        job.state
    );
    let failure = (!wrong.is_empty()).then(|| format!("{row}\n  {}\n{}", wrong.join("\n  "), site.log()));
    (row, failure)
}

#[tokio::test(flavor = "multi_thread")]
async fn server_killed_at_any_effect_goes_on_at_its_next_start() {
    let begun = Instant::now();
    let cells = cells();
    let covered: std::collections::BTreeSet<Effect> = cells.iter().map(|(effect, _)| *effect).collect();
    assert_eq!(covered.into_iter().collect::<Vec<_>>(), Effect::ALL);
    let rows: Vec<_> = stream::iter(cells)
        .map(|(effect, at)| tokio::spawn(cell(effect, at)))
        .buffered(AT_ONCE)
        .collect()
        .await;
    println!("{:<4} {:<40} {:<11} end", "", "SIGKILL while", "state then");
    let mut failures = Vec::new();
    for row in rows {
        let (row, failure) = row.unwrap();
        println!("{row}");
        failures.extend(failure);
    }
    println!("{:.0} s in all", begun.elapsed().as_secs_f32());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

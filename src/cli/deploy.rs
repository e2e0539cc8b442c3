//! `bootflip deploy`: plans, asks, orders and, with `--wait`, watches. The server does the work.

use std::{
    collections::BTreeSet,
    io::{self, BufRead, IsTerminal},
    time::Duration,
};

use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{
    Answer, Ended, Place, Stop,
    create::{self, CreateOptions},
    link::Link,
    note, print, print_json,
    progress::Progress,
    selectors,
    table::table,
};
use crate::app::{
    create::Made,
    orders::{FilePlan, HostPlan, Order, OrderAnswer, OrderLine, Outcome},
    views::{JobView, Verdict},
};

/// Arguments of `deploy`.
#[derive(Debug, Default, Args)]
pub(super) struct DeployArgs {
    /// Which VMs.
    #[arg(required_unless_present = "create", conflicts_with = "create", value_name = "SELECTOR")]
    pub(super) selectors: Vec<String>,
    /// What to install; default: the profile in each machine's section.
    #[arg(short, long, value_name = "NAME")]
    pub(super) profile: Option<String>,
    /// Show what would happen, and which disk of each VM would be erased; change nothing.
    #[arg(long)]
    pub(super) plan: bool,
    /// Wait until all jobs have ended; the exit code is the worst outcome's.
    #[arg(long)]
    pub(super) wait: bool,
    /// Erase VMs too that have run before.
    #[arg(long)]
    reinstall: bool,
    /// Do not ask.
    #[arg(short, long)]
    pub(super) yes: bool,
    /// At most this many of these VMs at once.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_parallel: Option<u32>,
    /// Canaries: this many of these VMs first, and the others once they have succeeded. One that fails ends the order.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    first: Option<u32>,
    /// Begin no more of these VMs after so many have failed.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    stop_after: Option<u32>,
    /// Leave the VMs HVM, booting from their disks: for pools that cannot start PV guests.
    #[arg(long)]
    stay_hvm: bool,
    /// What becomes of a VM whose installation failed.
    #[arg(long, value_enum, default_value_t = OnFailure::Undo)]
    on_failure: OnFailure,
    /// Print one JSON document.
    #[arg(long)]
    pub(super) json: bool,
    /// Make the VMs first, from a template, and install those.
    #[arg(long)]
    create: bool,
    #[command(flatten)]
    pub(super) wishes: CreateOptions,
    /// The command is `rescue`.
    #[arg(skip)]
    pub(super) rescue: bool,
}

/// What `--on-failure` takes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OnFailure {
    /// It is stopped and put back at once.
    #[default]
    Undo,
    /// It stays up in HVM boot for an hour, to look at; then it is put back.
    KeepHvm,
}

/// How long `--on-failure keep-hvm` holds a VM, in seconds.
const KEEP_HVM_SECONDS: u64 = 3600;

/// What is printed with `--json`.
#[derive(Debug, Serialize)]
struct Document<'a> {
    ok: bool,
    #[serde(flatten)]
    answer: &'a OrderAnswer,
    #[serde(skip_serializing_if = "<[Made]>::is_empty")]
    created: &'a [Made],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    jobs: Vec<JobView>,
}

pub(super) async fn run(args: &DeployArgs, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    if !args.create {
        if !args.wishes.is_empty() {
            let text = "options that describe new VMs (--template, --network, …) need --create";
            return Err(Stop::new(Ended::Usage, text));
        }
        return order(args, &link, selectors::expand(&args.selectors)?, &[]).await;
    }
    if place.remote.is_given() {
        let text = "--create makes VMs from here; run it on the server, or make them first";
        return Err(Stop::new(Ended::Usage, text));
    }
    // Nothing is made that could not be installed then.
    let _: serde_json::Value = link.get("/api/v1/health").await?;
    match create::create(&create::Request::for_deploy(args), place.config).await? {
        create::Created::Planned(ended) => Ok(ended),
        create::Created::Made(made, Ended::Done) => {
            if !args.json {
                note(create::made_text(&made).trim_end());
            }
            let selectors = made.iter().filter_map(|one| one.vm_uuid.as_ref());
            order(args, &link, selectors.map(|uuid| format!("uuid={uuid}")).collect(), &made).await
        }
        create::Created::Made(made, ended) => {
            note("bootflip: not all VMs could be made; nothing was ordered, and the same command goes on");
            create::show(&made, ended, args.json);
            Ok(ended)
        }
    }
}

async fn order(args: &DeployArgs, link: &Link, selectors: Vec<String>, created: &[Made]) -> Answer {
    let mut order = Order {
        selectors,
        profile: args.profile.clone(),
        reinstall: args.reinstall,
        max_parallel: args.max_parallel,
        first: args.first,
        stop_after: args.stop_after,
        stay_hvm: args.stay_hvm,
        rescue: args.rescue,
        keep_hvm_seconds: (args.on_failure == OnFailure::KeepHvm).then_some(KEEP_HVM_SECONDS),
        planned: false,
        whole: args.plan,
    };
    let mut refused = Vec::new();
    // Whose disks were made just now need not be asked about.
    if args.plan || !(args.yes || args.create) {
        let plan: OrderAnswer = link.post("/api/v1/plans", &order).await?;
        if let Some(ended) = unusable(&plan) {
            return finish(args, (&plan, created), Vec::new(), ended);
        }
        if args.plan {
            return finish(args, (&plan, created), Vec::new(), end_of_order(&plan));
        }
        if plan.vms.iter().all(|line| line.outcome == Outcome::Refused) {
            return finish(args, (&plan, created), Vec::new(), Ended::Refused);
        }
        note(plan_text(&plan).trim_end());
        let (no, wanted): (Vec<OrderLine>, Vec<OrderLine>) =
            plan.vms.into_iter().partition(|line| line.outcome == Outcome::Refused);
        refused = no;
        ask(&wanted, args.rescue)?;
        // Those that were shown with their disks, and no others.
        order.selectors = wanted.iter().map(|line| format!("uuid={}", line.vm_uuid)).collect();
    }
    let mut answer: OrderAnswer = link.post_patiently("/api/v1/jobs", &order).await?;
    if let Some(ended) = unusable(&answer) {
        return finish(args, (&answer, created), Vec::new(), ended);
    }
    answer.vms.extend(refused);
    if !args.wait {
        let ended = end_of_order(&answer);
        return finish(args, (&answer, created), Vec::new(), ended);
    }
    if !args.json {
        note(plan_text(&answer).trim_end());
    }
    let ids = answer.vms.iter().filter_map(|line| line.job.clone()).collect();
    let jobs = wait(link, &ids, Progress::new(args.json)).await?;
    let ended = jobs.iter().map(end_of_job).chain([end_of_order(&answer)]).max().unwrap_or(Ended::Done);
    finish(args, (&answer, created), jobs, ended)
}

/// A selector that names no VM, or several: nothing was done, for any.
fn unusable(answer: &OrderAnswer) -> Option<Ended> {
    (!answer.unresolved.is_empty()).then_some(Ended::Usage)
}

fn finish(
    args: &DeployArgs,
    (answer, created): (&OrderAnswer, &[Made]),
    jobs: Vec<JobView>,
    ended: Ended,
) -> Answer {
    if args.json {
        print_json(&Document { ok: ended == Ended::Done, answer, created, jobs });
        return Ok(ended);
    }
    for away in &answer.pools_away {
        note(&format!("bootflip: pool {} does not answer: {}", away.pool, away.problem));
    }
    for unresolved in &answer.unresolved {
        note(&format!("bootflip: {}: {}; nothing was done", unresolved.selector, unresolved.problem));
    }
    if !jobs.is_empty() {
        print(&jobs_text(&jobs));
    } else if !answer.vms.is_empty() {
        print(&plan_text(answer));
        print(&outlook_text(answer));
    }
    Ok(ended)
}

/// Hosts and files of a whole plan; empty without them.
fn outlook_text(answer: &OrderAnswer) -> String {
    let mut text = String::new();
    for pool in &answer.pools {
        let row = |host: &HostPlan| {
            let kinds = [(host.takes_hvm, "HVM"), (host.takes_pv, "PV")];
            let takes: Vec<&str> = kinds.iter().filter(|(takes, _)| *takes).map(|(_, kind)| *kind).collect();
            vec![
                host.name.clone(),
                if host.enabled { takes.join(" ") } else { "disabled".to_owned() },
                mib(host.memory),
                host.free.map_or_else(|| "-".to_owned(), mib),
                host.at_once.to_string(),
            ]
        };
        let rows: Vec<Vec<String>> = pool.hosts.iter().map(row).collect();
        text += &format!(
            "\nPool {}: {} of {} VMs at once (limits: {} a pool, {} a host)\n{}",
            pool.pool,
            pool.at_once,
            pool.vms,
            pool.installs_per_pool,
            pool.installs_per_host,
            table(&["HOST", "TAKES", "MEMORY", "FREE", "AT ONCE"], &rows)
        );
    }
    if !answer.files.is_empty() {
        let row = |file: &FilePlan| {
            let hash = file.sha256.clone().unwrap_or_else(|| "-".to_owned());
            vec![
                file.role.label().to_owned(),
                file.path.clone(),
                file.bytes.map_or_else(|| "-".to_owned(), |bytes| bytes.to_string()),
                file.problem.clone().unwrap_or(hash),
            ]
        };
        let rows: Vec<Vec<String>> = answer.files.iter().map(row).collect();
        text += &format!("\n{}", table(&["SERVED AS", "FILE", "BYTES", "SHA-256"], &rows));
    }
    text
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn end_of_order(answer: &OrderAnswer) -> Ended {
    let refused = answer.vms.iter().any(|line| line.outcome == Outcome::Refused);
    if refused { Ended::Refused } else { Ended::Done }
}

fn end_of_job(job: &JobView) -> Ended {
    match job.verdict() {
        Verdict::Done => Ended::Done,
        Verdict::Weak => Ended::Refused,
        Verdict::Failed => Ended::Failed,
    }
}

fn plan_text(answer: &OrderAnswer) -> String {
    let rows: Vec<Vec<String>> = answer
        .vms
        .iter()
        .map(|line| {
            vec![
                line.vm.clone(),
                line.pool.clone(),
                line.profile.clone().unwrap_or_else(|| "-".to_owned()),
                line.outcome.label().to_owned(),
                particulars(line),
            ]
        })
        .collect();
    table(&["VM", "POOL", "PROFILE", "OUTCOME", "PARTICULARS"], &rows)
}

fn particulars(line: &OrderLine) -> String {
    let mut parts = Vec::new();
    parts.extend(line.erases.as_ref().map(|disk| format!("erases disk {disk}")));
    let place = || format!("{} as HVM on {}", mib(line.memory.unwrap_or_default()), line.hosts.join(" or "));
    parts.extend((line.outcome == Outcome::Ready && !line.hosts.is_empty()).then(place));
    parts.extend(line.job.as_ref().map(|job| format!("job {job}")));
    match &line.reason {
        Some(reason) => parts.push(format!("{reason}: {}", line.detail)),
        None if line.detail.is_empty() => {}
        None => parts.push(line.detail.clone()),
    }
    parts.extend(line.remedy.clone());
    parts.join("; ")
}

fn jobs_text(jobs: &[JobView]) -> String {
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let states: Vec<String> =
                job.states.iter().map(|state| format!("{} {:.1}", state.name, state.seconds)).collect();
            let why = job.reason.map_or(String::new(), |reason| format!("{reason}: {}", job.detail));
            let evidence = serde_json::to_value(job.evidence).ok();
            vec![
                job.vm.clone(),
                job.profile.clone(),
                job.state.to_string(),
                evidence.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default(),
                states.join(", "),
                why,
            ]
        })
        .collect();
    table(&["VM", "PROFILE", "STATE", "EVIDENCE", "SECONDS", "REASON"], &rows)
}

/// What must be asked before disks are erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Question {
    /// Nothing.
    None,
    /// Yes or no.
    Yes,
    /// How many VMs.
    Number(usize),
    /// It cannot be asked; `--yes` is needed.
    CannotAsk,
}

fn question(vms: usize, terminal: bool) -> Question {
    match (vms, terminal) {
        (0, _) | (1, false) => Question::None,
        (1, true) => Question::Yes,
        (_, true) => Question::Number(vms),
        (_, false) => Question::CannotAsk,
    }
}

/// Asks the person at the terminal: an installation erases, a rescue shuts down what runs.
fn ask(wanted: &[OrderLine], rescue: bool) -> Result<(), Stop> {
    let hit = |line: &&OrderLine| line.outcome != Outcome::Existing && (!rescue || line.running);
    let erased = wanted.iter().filter(hit).count();
    let answered = |prompt: &str| {
        note(prompt);
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        if read.is_ok() { line.trim().to_owned() } else { String::new() }
    };
    let agreed = match question(erased, io::stdin().is_terminal() && io::stderr().is_terminal()) {
        Question::Yes if rescue => {
            answered("Shut this VM down and boot the rescue system? [yes/no]").eq_ignore_ascii_case("yes")
        }
        Question::None if rescue && erased > 0 => {
            let text = "the VM runs and would be shut down, and nobody can be asked here; say --yes";
            return Err(Stop::new(Ended::Usage, text));
        }
        Question::None => true,
        Question::Yes => answered("Erase this disk and install? [yes/no]").eq_ignore_ascii_case("yes"),
        Question::Number(vms) => {
            answered("Erase these disks and install? Type the number of VMs:") == vms.to_string()
        }
        Question::CannotAsk => {
            let text = format!("{erased} VMs would be erased and nobody can be asked here; say --yes");
            return Err(Stop::new(Ended::Usage, text));
        }
    };
    if agreed { Ok(()) } else { Err(Stop::new(Ended::Refused, "nothing was done")) }
}

/// Watches these jobs until all have ended or wait for a person.
pub(super) async fn wait(
    link: &Link,
    ids: &BTreeSet<String>,
    mut progress: Progress,
) -> Result<Vec<JobView>, Stop> {
    let pause = if ids.len() > MANY { PAUSE_FOR_MANY } else { PAUSE };
    let mut failures = 0;
    loop {
        match link.jobs().await {
            Ok(jobs) => {
                failures = 0;
                let ours: Vec<JobView> = jobs.into_iter().filter(|job| ids.contains(&job.id)).collect();
                ours.iter().for_each(|job| progress.show(job));
                if ours.len() < ids.len() {
                    return Err(Stop::new(Ended::Failed, "the server no longer knows some of these jobs"));
                }
                if ours.iter().all(JobView::is_over) {
                    progress.clear();
                    return Ok(ours);
                }
            }
            Err(error) if error.is_passing() => {
                failures += 1;
                if failures == 1 {
                    progress.say("the server does not answer; waiting for it");
                }
                if failures > FAILURES {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Between two looks; with more jobs than this the longer one.
const MANY: usize = 50;
const PAUSE: Duration = Duration::from_millis(300);
const PAUSE_FOR_MANY: Duration = Duration::from_secs(2);
/// Looks without an answer before waiting is given up: three minutes and more.
const FAILURES: u32 = 600;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_vm_is_asked_about_with_yes_and_more_with_their_number() {
        assert_eq!(question(0, true), Question::None);
        assert_eq!(question(1, true), Question::Yes);
        assert_eq!(question(1, false), Question::None);
        assert_eq!(question(12, true), Question::Number(12));
        assert_eq!(question(2, false), Question::CannotAsk);
    }
}

//! `bootflip jobs …`: looks at jobs and operates them, through the server.

use std::collections::BTreeSet;

use clap::{Args, Subcommand};

use super::{
    Answer, Ended, Place, Stop,
    deploy::wait,
    link::Link,
    note, print, print_json,
    progress::Progress,
    table::{fields, table},
};
use crate::{
    app::{
        orders::ResolveOrder,
        views::{JobView, TransferView, Verdict},
    },
    boot::sink::Protocol,
    provision::job::Resolution,
};

/// `jobs …`; alone it lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(super) struct JobsArgs {
    #[command(subcommand)]
    command: Option<JobsCommand>,
    #[command(flatten)]
    list: ListArgs,
}

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub(super) enum JobsCommand {
    /// All jobs, oldest first.
    List(ListArgs),
    /// One job: who asked, how far it is, why it ended or waits, and what to do next.
    Show(OneArgs),
    /// What a job's installer sent to the syslog receiver.
    Log(LogArgs),
    /// Show changes as they come, until no job is under way.
    Watch,
    /// End a job and put its VM back.
    Cancel(OneArgs),
    /// End a rescue: the VM is stopped and put back.
    Finish(OneArgs),
    /// Another attempt for a job that failed or was cancelled.
    Retry(OneArgs),
    /// Settle a job that waits for an operator.
    Resolve(ResolveArgs),
}

/// Arguments of `jobs list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Only those that have not ended.
    #[arg(long)]
    live: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A job.
#[derive(Debug, Args)]
pub(super) struct OneArgs {
    /// The job's id, or its VM's name or uuid for the newest job of that VM.
    job: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `jobs log`.
#[derive(Debug, Args)]
pub(super) struct LogArgs {
    /// The job's id, or its VM's name or uuid for the newest job of that VM.
    job: String,
}

/// Arguments of `jobs resolve`.
#[derive(Debug, Args)]
pub(super) struct ResolveArgs {
    #[command(flatten)]
    one: OneArgs,
    #[command(flatten)]
    how: How,
}

/// What was decided.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct How {
    /// Write the saved settings, whatever stands there now.
    #[arg(long)]
    restore: bool,
    /// Keep what stands there now, and release the VM.
    #[arg(long)]
    accept: bool,
    /// Touch nothing more: settings and claim stay as they are.
    #[arg(long)]
    abandon: bool,
}

impl How {
    const fn resolution(&self) -> Resolution {
        if self.restore {
            Resolution::Restore
        } else if self.accept {
            Resolution::Accept
        } else {
            Resolution::Abandon
        }
    }
}

pub(super) async fn run(args: &JobsArgs, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    let Some(command) = &args.command else { return list(&link, &args.list).await };
    match command {
        JobsCommand::List(args) => list(&link, args).await,
        JobsCommand::Show(args) => show(&link, args).await,
        JobsCommand::Log(args) => log(&link, args).await,
        JobsCommand::Watch => watch(&link).await,
        JobsCommand::Cancel(args) => operate(&link, args, "cancel", &serde_json::json!({})).await,
        JobsCommand::Finish(args) => operate(&link, args, "finish", &serde_json::json!({})).await,
        JobsCommand::Retry(args) => operate(&link, args, "retry", &serde_json::json!({})).await,
        JobsCommand::Resolve(args) => {
            let order = ResolveOrder { resolution: args.how.resolution() };
            operate(&link, &args.one, "resolve", &order).await
        }
    }
}

async fn list(link: &Link, args: &ListArgs) -> Answer {
    let mut jobs = link.jobs().await?;
    jobs.retain(|job| !args.live || !job.state.is_terminal());
    if args.json {
        print_json(&jobs);
        return Ok(Ended::Done);
    }
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let reason = job.reason.map_or("-", crate::provision::Reason::label);
            vec![
                job.id.clone(),
                job.vm.clone(),
                job.pool.clone(),
                job.profile.clone(),
                job.state.to_string(),
                format!("{}%", job.percent),
                job.attempt.to_string(),
                reason.to_owned(),
            ]
        })
        .collect();
    print(&table(&["JOB", "VM", "POOL", "PROFILE", "STATE", "DONE", "ATTEMPT", "REASON"], &rows));
    Ok(Ended::Done)
}

/// The job that is meant: by id or, of a VM, the newest.
fn meant<'a>(jobs: &'a [JobView], name: &str) -> Option<&'a JobView> {
    let by_id = jobs.iter().find(|job| job.id == name);
    by_id.or_else(|| jobs.iter().rev().find(|job| job.vm_uuid == name || job.vm == name))
}

async fn id_of(link: &Link, name: &str) -> Result<String, Stop> {
    let jobs = link.jobs().await?;
    let uuids: BTreeSet<&str> =
        jobs.iter().filter(|job| job.vm == name).map(|job| job.vm_uuid.as_str()).collect();
    if uuids.len() > 1 {
        let uuids: Vec<&str> = uuids.into_iter().collect();
        let text =
            format!("there are jobs of several VMs named {name}; name one by its uuid: {}", uuids.join(", "));
        return Err(Stop::new(Ended::Usage, text));
    }
    let found = meant(&jobs, name).map(|job| job.id.clone());
    found.ok_or_else(|| Stop::new(Ended::Usage, format!("there is no job {name}, and no job of a VM {name}")))
}

async fn show(link: &Link, args: &OneArgs) -> Answer {
    let id = id_of(link, &args.job).await?;
    let job: JobView = link.get(&format!("/api/v1/jobs/{id}")).await?;
    if args.json {
        print_json(&job);
    } else {
        print(&shown(&job));
    }
    Ok(Ended::Done)
}

async fn log(link: &Link, args: &LogArgs) -> Answer {
    let id = id_of(link, &args.job).await?;
    let lines = link.get_text(&format!("/api/v1/jobs/{id}/log")).await?;
    if lines.is_empty() {
        note(
            "nothing came from this machine; [syslog] and the profile's kernel arguments say where installers log to",
        );
    }
    print(&lines);
    Ok(Ended::Done)
}

fn shown(job: &JobView) -> String {
    let lines = |all: Vec<String>| all.join("\n");
    let states = job.states.iter().map(|state| format!("{} {:.1} s", state.name, state.seconds)).collect();
    let stages = job.stages.iter().map(|stage| {
        let percent = stage.percent.map_or(String::new(), |percent| format!(", {percent} %"));
        let note = if stage.note.is_empty() { String::new() } else { format!(": {}", stage.note.trim()) };
        format!("{} after {:.1} s{percent}{note}", stage.name, stage.seconds)
    });
    let differences = job.differences.iter().map(|field| {
        let value = |value: &Option<String>| {
            value.as_ref().map_or_else(|| "absent".to_owned(), |v| format!("\"{v}\""))
        };
        let (saved, written, now) = (value(&field.saved), value(&field.written), value(&field.now));
        format!("{}: saved {saved}, written {written}, now {now}", field.field)
    });
    let evidence = serde_json::to_value(job.evidence).ok();
    let mut pairs = vec![
        ("job", job.id.clone()),
        ("vm", format!("{} ({}) in pool {}", job.vm, job.vm_uuid, job.pool)),
        ("profile", job.profile.clone()),
        ("asked by", format!("{} at {}", job.asked_by, job.created)),
        ("state", format!("{}, attempt {}, {} %", job.state, job.attempt, job.percent)),
        ("evidence", evidence.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()),
    ];
    pairs.extend(job.waiting.clone().map(|waiting| ("waiting", waiting)));
    if let Some(reason) = job.reason {
        pairs.push(("reason", format!("{reason}: {}", job.detail)));
    }
    if !job.checklist.is_empty() {
        pairs.push(("look at", lines(job.checklist.clone())));
    }
    pairs.extend([("states", lines(states)), ("stages", lines(stages.collect()))]);
    if !job.transfers.is_empty() {
        pairs.push(("fetched", lines(job.transfers.iter().map(fetched).collect())));
    }
    if let Some(readiness) = &job.readiness {
        let all = [("", &readiness.mended), ("change: ", &readiness.problems), ("note: ", &readiness.advice)];
        let told = all.iter().flat_map(|(kind, what)| what.iter().map(move |text| format!("{kind}{text}")));
        pairs.push(("pv readiness", lines([readiness.verdict.clone()].into_iter().chain(told).collect())));
    }
    if !job.differences.is_empty() {
        pairs.push(("differences", lines(differences.collect())));
    }
    pairs.push(("next step", job.next_step.clone()));
    if !job.xe_commands.is_empty() {
        pairs.push(("by hand", lines(job.xe_commands.clone())));
    }
    let installers = job.stages.iter().filter(|stage| !stage.log.is_empty());
    pairs.extend(installers.map(|stage| ("installer's log", stage.log.clone())));
    let log = job.log.iter().map(|line| format!("{}  {}", line.at, line.text)).collect();
    pairs.push(("log", lines(log)));
    fields(&pairs)
}

fn fetched(transfer: &TransferView) -> String {
    let TransferView { at, file, bytes, seconds, outcome, peer, protocol } = transfer;
    let by = match protocol {
        Protocol::Http => "HTTP",
        Protocol::Tftp => "TFTP",
    };
    format!("{at}  {file} by {by}, {bytes} bytes to {peer} in {seconds:.1} s: {outcome}")
}

async fn watch(link: &Link) -> Answer {
    let live = link.jobs().await?.into_iter().filter(|job| !job.is_over()).map(|job| job.id).collect();
    let jobs = wait(link, &live, Progress::new(false)).await?;
    let failed = jobs.iter().any(|job| job.verdict() == Verdict::Failed);
    Ok(if failed { Ended::Failed } else { Ended::Done })
}

async fn operate(link: &Link, args: &OneArgs, operation: &str, order: &impl serde::Serialize) -> Answer {
    let id = id_of(link, &args.job).await?;
    let job: JobView = link.post(&format!("/api/v1/jobs/{id}/{operation}"), order).await?;
    if args.json {
        print_json(&job);
    } else {
        note(&format!("job {} of {} is {} now. {}", job.id, job.vm, job.state, job.next_step));
        if !job.xe_commands.is_empty() {
            print(&(job.xe_commands.join("\n") + "\n"));
        }
    }
    Ok(Ended::Done)
}

//! `bootflip vm create` and the first half of `deploy --create`: reads what is asked for, plans, asks, and has the
//! VMs made. No server is needed.

use std::{
    fs::{File, TryLockError},
    io::{self, BufRead, IsTerminal},
    path::{Path, PathBuf},
};

use clap::Args;
use serde::Serialize;

use super::{Answer, Ended, Stop, deploy::DeployArgs, load, note, print, print_json, table::table};
use crate::{
    app::{
        self,
        create::{Made, Maker, Outcome},
    },
    config::Config,
    provision::creation::{
        fleet::{self, Defaults, Wish},
        plan::{Planned, Way, plan},
    },
    xen::CallError,
};

/// The largest list, in bytes.
const LIST_LIMIT: u64 = 1 << 20;

/// The MAC addresses that nobody asked for otherwise begin so.
const MAC_PREFIX: &str = "02:16:3e";

/// The lock's file in `server.state_dir`: two runs would take each other's half-made VMs for leftovers.
const LOCK: &str = "create.lock";

/// Which VMs, and what of.
#[derive(Debug, Default, Clone, PartialEq, Eq, Args)]
pub(super) struct CreateOptions {
    /// The template, by name or uuid.
    #[arg(long, value_name = "TEMPLATE")]
    template: Option<String>,
    /// The VM's name; several, or a range: web-{01..20} (which most shells write out, and that is the same).
    #[arg(long, value_name = "NAME", num_args = 1..)]
    name: Vec<String>,
    /// The network of its NIC, by name or uuid.
    #[arg(long, value_name = "NETWORK")]
    network: Option<String>,
    /// The pool, as in the configuration; not needed where there is one.
    #[arg(long, value_name = "POOL")]
    pool: Option<String>,
    /// The storage repository, by name or uuid; default: the template's, or the pool's default.
    #[arg(long, value_name = "SR")]
    sr: Option<String>,
    /// Memory, such as 2GiB; default: the template's.
    #[arg(long, value_name = "SIZE", value_parser = fleet::size)]
    memory: Option<u64>,
    /// VCPUs; default: the template's.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: Option<u32>,
    /// Size of the boot disk, such as 20GiB; default: the template's.
    #[arg(long, value_name = "SIZE", value_parser = fleet::size)]
    disk: Option<u64>,
    /// The first half of the MAC addresses, locally administered [default: 02:16:3e]. The second half follows from
    /// pool and name, the same every time.
    #[arg(long, value_name = "PREFIX", value_parser = checked_prefix)]
    mac_prefix: Option<String>,
    /// A CSV file with a header; columns: name, template, network, sr, memory, vcpus, disk, mac, tag. What is not
    /// there comes from the options.
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// A tag for the VMs [default: bootflip].
    #[arg(long, value_name = "TAG")]
    tag: Option<String>,
}

fn checked_prefix(text: &str) -> Result<String, String> {
    fleet::mac_prefix(text).map(|_| text.to_owned())
}

impl CreateOptions {
    /// Nothing was said about new VMs.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Arguments of `vm create`.
#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    #[command(flatten)]
    options: CreateOptions,
    /// Show what would be made; change nothing.
    #[arg(long)]
    plan: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

/// What is to be done.
#[derive(Debug)]
pub(super) struct Request<'a> {
    options: &'a CreateOptions,
    plan: bool,
    yes: bool,
    json: bool,
    /// A profile that must be there.
    profile: Option<&'a str>,
}

impl<'a> Request<'a> {
    /// That of `deploy --create`.
    pub(super) fn for_deploy(args: &'a DeployArgs) -> Self {
        let profile = args.profile.as_deref();
        Self { options: &args.wishes, plan: args.plan, yes: args.yes, json: args.json, profile }
    }
}

/// How it went.
#[derive(Debug)]
pub(super) enum Created {
    /// The plan, or what speaks against it, was shown.
    Planned(Ended),
    /// VMs were made, all of them where it is [`Ended::Done`].
    Made(Vec<Made>, Ended),
}

pub(super) async fn run(args: &CreateArgs, path: &Path) -> Answer {
    let CreateArgs { options, plan, yes, json } = args;
    let request = Request { options, plan: *plan, yes: *yes, json: *json, profile: None };
    match create(&request, path).await? {
        Created::Planned(ended) => Ok(ended),
        Created::Made(made, ended) => {
            show(&made, ended, *json);
            Ok(ended)
        }
    }
}

/// Makes the VMs, or shows their plan.
pub(super) async fn create(request: &Request<'_>, path: &Path) -> Result<Created, Stop> {
    let config = load(path)?;
    let wishes = wishes(request.options)?;
    let pool = pool(&config, request.options)?;
    if let Some(profile) = request.profile.filter(|name| !config.profiles.contains_key(*name)) {
        return Err(Stop::new(Ended::Usage, format!("the configuration has no profile `{profile}`")));
    }
    let _lock = if request.plan { None } else { Some(lock(&config)?) };
    let clients = app::clients(&config).map_err(|error| Stop::new(Ended::Usage, app::chain(&error)))?;
    let api = app::apis(&clients).remove(&pool);
    let api = api.ok_or_else(|| Stop::new(Ended::Usage, format!("no pool `{pool}` in the configuration")))?;
    let maker = Maker { api, owner: config.server_name.clone() };
    let created = carry_out(request, &maker, &wishes).await;
    app::log_out(&clients).await;
    created
}

async fn carry_out(request: &Request<'_>, maker: &Maker, wishes: &[Wish]) -> Result<Created, Stop> {
    let away = |error: CallError| Stop::failed(&error);
    let (mut catalogue, leftovers) = maker.read(wishes).await.map_err(away)?;
    for left in &leftovers {
        let deed = if request.plan { "would be" } else { "is" };
        note(&format!("bootflip: a half-made {} of an earlier run {deed} cleared away", left.name));
    }
    if !request.plan && !leftovers.is_empty() {
        maker.clear(&leftovers).await.map_err(|why| Stop::new(Ended::Failed, why))?;
        catalogue = maker.read(wishes).await.map_err(away)?.0;
    }
    let prefix = request.options.mac_prefix.as_deref().unwrap_or(MAC_PREFIX);
    let prefix = fleet::mac_prefix(prefix).map_err(|problem| Stop::new(Ended::Usage, problem))?;
    let plan = match plan(wishes, &catalogue, prefix) {
        Ok(plan) => plan,
        Err(problems) => {
            if request.json {
                print_json(&serde_json::json!({ "ok": false, "problems": problems }));
            } else {
                problems.iter().for_each(|problem| note(&format!("bootflip: {problem}")));
                note("bootflip: nothing was made");
            }
            return Ok(Created::Planned(Ended::Refused));
        }
    };
    if request.plan {
        show_plan(&plan, request.json);
        return Ok(Created::Planned(Ended::Done));
    }
    if !request.yes {
        ask(&plan)?;
    }
    let made = maker.make_all(&plan).await;
    let all = made.iter().all(|one| matches!(one.outcome, Outcome::Created | Outcome::Existing));
    Ok(Created::Made(made, if all { Ended::Done } else { Ended::Failed }))
}

/// What is asked for.
fn wishes(options: &CreateOptions) -> Result<Vec<Wish>, Stop> {
    let usage = |problems: &[String]| Stop::new(Ended::Usage, problems.join("\nbootflip: "));
    let defaults = Defaults {
        template: options.template.clone(),
        network: options.network.clone(),
        sr: options.sr.clone(),
        memory: options.memory,
        vcpus: options.vcpus,
        disk: options.disk,
        tag: options.tag.clone(),
    };
    let mut all = Vec::new();
    for name in &options.name {
        all.extend(fleet::from_name(name, &defaults).map_err(|problems| usage(&problems))?);
    }
    if let Some(file) = &options.from {
        let bad = |why: String| usage(&[format!("{}: {why}", file.display())]);
        let size = std::fs::metadata(file).map_err(|error| bad(format!("cannot be read: {error}")))?.len();
        if size > LIST_LIMIT {
            return Err(bad(format!("it has more than {LIST_LIMIT} bytes")));
        }
        let text = std::fs::read_to_string(file).map_err(|error| bad(format!("cannot be read: {error}")))?;
        let found = fleet::from_csv(&file.display().to_string(), &text, &defaults);
        all.extend(found.map_err(|problems| usage(&problems))?);
    }
    if all.is_empty() {
        return Err(usage(&["which VMs? Say --name NAME, --name web-{01..20} or --from FILE".to_owned()]));
    }
    if all.len() > fleet::FLEET_MAX {
        return Err(usage(&[format!("{} VMs; at most {} are made at once", all.len(), fleet::FLEET_MAX)]));
    }
    Ok(all)
}

fn pool(config: &Config, options: &CreateOptions) -> Result<String, Stop> {
    let names: Vec<&str> = config.pools.keys().map(String::as_str).collect();
    let listed = names.join(", ");
    match (&options.pool, names.as_slice()) {
        (Some(name), _) if config.pools.contains_key(name) => Ok(name.clone()),
        (Some(name), _) => Err(Stop::new(
            Ended::Usage,
            format!("the configuration has no pool `{name}`; there are: {listed}"),
        )),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(Stop::new(Ended::Usage, format!("in which pool? Say --pool; there are: {listed}"))),
    }
}

/// Holds until the file is closed, also by the end of the process.
fn lock(config: &Config) -> Result<File, Stop> {
    let path = config.state_dir.join(LOCK);
    let bad = |error: io::Error| Stop::new(Ended::Failed, format!("cannot lock {}: {error}", path.display()));
    std::fs::create_dir_all(&config.state_dir).map_err(bad)?;
    let file = File::options().create(true).append(true).open(&path).map_err(bad)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let text = "another `vm create` or `deploy --create` of this configuration is making VMs";
            Err(Stop::new(Ended::Locked, text))
        }
        Err(TryLockError::Error(error)) => Err(bad(error)),
    }
}

/// Several VMs are asked about; one is as its command says.
fn ask(plan: &[Planned]) -> Result<(), Stop> {
    let count = plan.iter().filter(|planned| planned.existing.is_none()).count();
    if count <= 1 {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        let text = format!("{count} VMs would be made and nobody can be asked here; say --yes");
        return Err(Stop::new(Ended::Usage, text));
    }
    note(plan_text(plan).trim_end());
    note("Make these VMs? Type their number:");
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    if read.is_ok() && line.trim() == count.to_string() {
        return Ok(());
    }
    Err(Stop::new(Ended::Refused, "nothing was made"))
}

/// A line of the plan, for programs.
#[derive(Debug, Serialize)]
struct PlanLine<'a> {
    vm: &'a str,
    existing: Option<&'a str>,
    template: &'a str,
    copied: bool,
    network: &'a str,
    mac: String,
    sr: &'a str,
    sr_free_bytes: u64,
    disk_bytes: u64,
    memory_bytes: u64,
    vcpus: u64,
    tag: &'a str,
}

impl<'a> PlanLine<'a> {
    fn of(planned: &'a Planned) -> Self {
        Self {
            vm: &planned.name,
            existing: planned.existing.as_deref(),
            template: &planned.template.1,
            copied: matches!(planned.way, Way::Copy(_)),
            network: &planned.network.1,
            mac: planned.mac.to_string(),
            sr: &planned.sr.0,
            sr_free_bytes: planned.sr.1,
            disk_bytes: planned.need,
            memory_bytes: planned.sizes.0,
            vcpus: planned.sizes.1,
            tag: &planned.tag,
        }
    }
}

fn show_plan(plan: &[Planned], json: bool) {
    if json {
        let lines: Vec<PlanLine<'_>> = plan.iter().map(PlanLine::of).collect();
        print_json(&serde_json::json!({ "ok": true, "plan": lines }));
    } else {
        print(&plan_text(plan));
    }
}

fn plan_text(plan: &[Planned]) -> String {
    let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
    let row = |planned: &Planned| {
        let (sr, free) = &planned.sr;
        let disk = match (&planned.existing, &planned.disks, &planned.way) {
            (Some(_), _, _) => "there already".to_owned(),
            (None, None, Way::Clone) => "cloned".to_owned(),
            (None, Some(_), _) | (None, None, Way::Copy(_)) => mib(planned.need),
        };
        vec![
            planned.name.clone(),
            planned.template.1.clone(),
            planned.network.1.clone(),
            planned.mac.to_string(),
            format!("{sr} ({} free)", mib(*free)),
            disk,
            mib(planned.sizes.0),
            planned.sizes.1.to_string(),
        ]
    };
    let head = ["NAME", "TEMPLATE", "NETWORK", "MAC", "SR", "DISK", "MEMORY", "VCPUS"];
    table(&head, &plan.iter().map(row).collect::<Vec<_>>())
}

/// Prints what became of the VMs.
pub(super) fn show(made: &[Made], ended: Ended, json: bool) {
    if json {
        print_json(&serde_json::json!({ "ok": ended == Ended::Done, "vms": made }));
    } else {
        print(&made_text(made));
    }
}

/// What became of the VMs, as a table.
pub(super) fn made_text(made: &[Made]) -> String {
    let row = |one: &Made| {
        let uuid = one.vm_uuid.clone().unwrap_or_else(|| "-".to_owned());
        vec![one.vm.clone(), uuid, one.mac.clone(), one.outcome.label().to_owned(), one.detail.clone()]
    };
    table(&["VM", "UUID", "MAC", "OUTCOME", "PARTICULARS"], &made.iter().map(row).collect::<Vec<_>>())
}

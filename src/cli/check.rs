//! `bootflip check`: looks whether everything is in place, and changes nothing. What an account may is read from its
//! session, not tried.

use std::{fs, path::Path};

use clap::Args;
use serde::Serialize;

use super::{Answer, Ended, Stop, link::Link, load, print, print_json};
use crate::{
    app::{
        self, key, machines,
        orders::Health,
        preview,
        probe::{self, Probe},
        serving::{file_problem, file_problems, published},
        templates,
    },
    boot::render::{Templates, Urls},
    config::Config,
    dhcp::{Fullness, Neighbour, server::Status},
    xen::{
        CallError, Method,
        api::Api,
        release::{Ability, Release},
        rights::Rights,
    },
};

/// Arguments of `check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    /// As it should be.
    Good,
    /// It works, but look at it.
    Note,
    /// It does not work.
    Bad,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    standing: Standing,
    detail: String,
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, standing: Standing, detail: impl Into<String>) {
        self.0.push(Finding { what: what.into(), standing, detail: detail.into() });
    }

    /// Good, or bad with its error.
    fn judge<E: std::error::Error>(&mut self, what: impl Into<String>, result: Result<String, E>) {
        match result {
            Ok(detail) => self.add(what, Standing::Good, detail),
            Err(error) => self.add(what, Standing::Bad, app::chain(&error)),
        }
    }
}

pub(super) async fn run(args: &CheckArgs, path: &Path) -> Answer {
    let config = load(path)?;
    let mut findings = Findings::default();
    let summary = format!(
        "{}: {} pools, {} profiles, {} machines",
        path.display(),
        config.pools.len(),
        config.profiles.len(),
        config.machines.len()
    );
    findings.add("configuration", Standing::Good, summary);
    state_folder(&config, &mut findings);
    boot_files(&config, &mut findings);
    let templates = templates::load(config.template_dir.as_deref());
    if let Ok(templates) = &templates {
        boot_scripts(&config, templates, &mut findings);
    }
    findings.judge("templates", templates.map(|found| found.names().collect::<Vec<_>>().join(", ")));
    listeners(&config, &mut findings).await;
    elsewhere(&config, &mut findings);
    pools(&config, &mut findings).await?;
    let bad = findings.0.iter().filter(|finding| finding.standing == Standing::Bad).count();
    if args.json {
        print_json(&serde_json::json!({ "ok": bad == 0, "findings": findings.0 }));
    } else {
        print(&text(&findings.0, bad));
    }
    Ok(if bad == 0 { Ended::Done } else { Ended::Failed })
}

fn text(findings: &[Finding], bad: usize) -> String {
    let line = |finding: &Finding| {
        let word = match finding.standing {
            Standing::Good => "ok  ",
            Standing::Note => "note",
            Standing::Bad => "BAD ",
        };
        format!("{word}  {}: {}\n", finding.what, finding.detail)
    };
    let end = match bad {
        0 => "everything that can be seen without a change is in place\n".to_owned(),
        1 => "1 thing does not work\n".to_owned(),
        many => format!("{many} things do not work\n"),
    };
    findings.iter().map(line).chain([end]).collect()
}

fn state_folder(config: &Config, findings: &mut Findings) {
    let folder = &config.state_dir;
    let what = "server.state_dir";
    match fs::metadata(folder) {
        Ok(found) if !found.is_dir() => {
            findings.add(what, Standing::Bad, format!("{} is not a folder", folder.display()));
        }
        Ok(_) => match nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK) {
            Ok(()) => findings.add(what, Standing::Good, folder.display().to_string()),
            Err(error) => {
                let text = format!("{} cannot be written by this user: {error}", folder.display());
                findings.add(what, Standing::Bad, text);
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            findings.add(what, Standing::Note, format!("{} will be made", folder.display()));
        }
        Err(error) => findings.add(what, Standing::Bad, format!("{}: {error}", folder.display())),
    }
    if let Some(result) = key::look(folder) {
        findings.judge("token key", result.map(|()| "there, and for this user alone".to_owned()));
    }
}

/// A boot script of one's own, read for what the firmware lacks.
fn boot_scripts(config: &Config, templates: &Templates, findings: &mut Findings) {
    let urls = config.http.as_ref().map_or_else(|| Urls::new(""), |http| Urls::new(&http.public_url));
    for (name, profile) in &config.profiles {
        match preview::own_script(config, profile, templates, &urls) {
            None => {}
            Some(Ok(())) => {
                findings.add(
                    format!("boot script of profile {name}"),
                    Standing::Good,
                    "the firmware knows all of it",
                );
            }
            Some(Err(error)) => {
                findings.add(format!("boot script of profile {name}"), Standing::Bad, error.to_string());
            }
        }
    }
}

fn boot_files(config: &Config, findings: &mut Findings) {
    let files = config.http.as_ref().map(|http| published(&http.root));
    for (name, profile) in &config.profiles {
        let what = format!("profile {name}");
        let Some(boot) = &profile.boot else {
            findings.add(what, Standing::Good, "another deployment server boots its machines");
            continue;
        };
        let (Some(http), Some(files)) = (&config.http, &files) else {
            findings.add(what, Standing::Bad, "it has boot files and there is no [http]");
            continue;
        };
        let problems: Vec<String> = match files {
            Ok(files) => file_problems(files, boot).collect(),
            Err(problem) => vec![problem.clone()],
        };
        if problems.is_empty() {
            findings.add(
                what,
                Standing::Good,
                format!("{} boot files in {}", 1 + boot.initrd.len(), http.root.display()),
            );
        } else {
            findings.add(what, Standing::Bad, problems.join("; "));
        }
    }
    if let Some(tftp) = &config.tftp
        && let Some(problem) =
            published(&tftp.root).map_or_else(Some, |files| file_problem(&files, &tftp.loader))
    {
        let text = format!("{problem}; guests of Xen boot without it, other network cards do not");
        findings.add("tftp.loader", Standing::Note, text);
    }
}

/// Networks that somebody else's DHCP serves.
fn elsewhere(config: &Config, findings: &mut Findings) {
    if config.http.is_none() {
        return;
    }
    let off = config.dhcp_off.iter().map(|off| format!("DHCP on {}", off.interface));
    let none = config.dhcp.is_empty().then(|| "DHCP".to_owned()).filter(|_| config.dhcp_off.is_empty());
    for what in off.chain(none) {
        let text = "left to another server; `bootflip dhcp snippet` prints what points it to us";
        findings.add(what, Standing::Good, text);
    }
}

async fn listeners(config: &Config, findings: &mut Findings) {
    let link = Link::new(&config.admin.socket);
    if link.answers().await {
        let text = format!("a server answers on {}; it has the ports", config.admin.socket.display());
        findings.add("ports", Standing::Note, text);
        match link.get::<Health>("/api/v1/health").await {
            Ok(health) => health.dhcp.iter().for_each(|status| dhcp(status, findings)),
            Err(error) => findings.add("server", Standing::Bad, error.to_string()),
        }
        return;
    }
    for Probe { what, result } in probe::listeners(config).await {
        match result {
            Ok(()) => findings.add(what, Standing::Good, "free"),
            Err(problem) => findings.add(what, Standing::Bad, problem),
        }
    }
}

/// What the running server knows of one interface.
fn dhcp(status: &Status, findings: &mut Findings) {
    let what = format!("DHCP on {}", status.interface);
    for Neighbour { server, leases, boots, in_the_way, .. } in &status.neighbours {
        let does = match (leases, boots) {
            (true, true) => "leases addresses and boots machines",
            (true, false) => "leases addresses",
            (false, _) => "boots machines",
        };
        if *in_the_way {
            let text =
                format!("another server, {server}, {does} there: machines may follow it instead of us");
            findings.add(&what, Standing::Note, text);
        } else {
            findings.add(&what, Standing::Good, format!("the server beside us, {server}, {does}"));
        }
    }
    for Fullness { range: (first, last), taken, size, .. } in &status.nearly_full {
        let text =
            format!("{taken} of the {size} addresses from {first} to {last} are taken; widen the range");
        findings.add(&what, Standing::Note, text);
    }
    if !status.sends_frames && status.interface != "lo" {
        let text =
            "clients without an address are answered by broadcast; CAP_NET_RAW lets us reach each alone";
        findings.add(&what, Standing::Note, text);
    }
}

async fn pools(config: &Config, findings: &mut Findings) -> Result<(), Stop> {
    let clients = app::clients(config).map_err(|error| Stop::new(Ended::Usage, app::chain(&error)))?;
    for (name, api) in app::apis(&clients) {
        let what = format!("pool {name}");
        match look(&api).await {
            Ok((detail, release)) => {
                findings.add(&what, Standing::Good, detail);
                if let Some(release) = release {
                    abilities(&what, &release, findings);
                    let (standing, detail) = rights(&api, &release).await;
                    findings.add(what, standing, detail);
                }
            }
            Err(error) => findings.add(what, Standing::Bad, error.to_string()),
        }
    }
    app::log_out(&clients).await;
    Ok(())
}

/// What the pool's release does without.
fn abilities(what: &str, release: &Release, findings: &mut Findings) {
    if release.is_too_old() {
        let text = format!("{release} is older than XenServer 5.6, which bootflip was made for");
        findings.add(what, Standing::Bad, text);
    }
    if !release.starts_pv() {
        let text = format!(
            "{release} cannot start PV guests: an installed VM can only stay HVM there (deploy --stay-hvm)"
        );
        findings.add(what, Standing::Note, text);
    }
    if !release.has(Ability::EventFrom) {
        let text = format!("{release} tells no events; jobs see changes when they look themselves");
        findings.add(what, Standing::Note, text);
    }
}

/// What the account may do, as its own session has it: nothing is tried.
async fn rights(api: &Api, release: &Release) -> (Standing, String) {
    let rights = match api.own_session().await {
        Ok(session) => Rights::of(session),
        Err(error) => {
            let text = format!(
                "the pool does not tell what the account may ({error}); the right to change VMs (role vm-admin) and \
                 to sync the database (pool-operator) shows at the first job"
            );
            return (Standing::Note, text);
        }
    };
    let missing = rights.missing(release);
    let role = missing.iter().map(|method| method.role()).max();
    if let Some(role) = role {
        let names: Vec<&str> = missing.iter().map(|method| method.name()).collect();
        let text = format!("the account may not send {}: give it the role {role}", names.join(", "));
        return (Standing::Bad, text);
    }
    if rights.may(Method::PoolSyncDatabase) {
        return (Standing::Good, "the account may change VMs, and sync the pool's database".to_owned());
    }
    let text = format!(
        "the account may change VMs; it may not sync the pool's database (role {}), so that each job looks six minutes \
         after its end whether the coordinator lost what it wrote",
        Method::PoolSyncDatabase.role()
    );
    (Standing::Note, text)
}

/// Every kind of reading that a job does.
async fn look(api: &Api) -> Result<(String, Option<Release>), CallError> {
    let pools = api.pools().await?;
    let hosts = api.hosts().await?;
    let vms = api.vms().await?;
    let vifs = api.vifs().await?;
    let guests: Vec<_> = vms.iter().filter(|vm| machines::kind(vm) == "guest").collect();
    if let Some(vm) = guests.first() {
        api.vm_metrics(&vm.metrics).await?;
        api.possible_hosts(&vm.reference).await?;
    }
    let release = pools.first().and_then(|pool| Release::of_pool(pool, &hosts));
    let version = release.as_ref().map_or_else(String::new, |release| format!("{release}, "));
    let pv = guests.iter().filter(|vm| vm.is_pv()).count();
    let ha = if pools.iter().any(|pool| pool.ha_enabled) { ", HA is on" } else { "" };
    let detail = format!(
        "login works; {version}{} hosts, {} guests ({pv} PV), {} NICs{ha}",
        hosts.len(),
        guests.len(),
        vifs.len()
    );
    Ok((detail, release))
}

//! `bootflip vm list|show|create`: asks the pools of the configuration themselves; no server is needed.

use std::path::Path;

use clap::{Args, Subcommand};

use super::{
    Answer, Ended, Stop, create, load, note, print, print_json,
    table::{fields, table},
};
use crate::app::{
    self,
    desk::{self, DeskError},
    machines::{self, ClaimView, VmView},
};

/// `vm …`
#[derive(Debug, Subcommand)]
pub(super) enum VmCommand {
    /// All guests of all pools: power state, type, claim.
    List(ListArgs),
    /// One VM: its boot-related fields, and how it boots next.
    Show(ShowArgs),
    /// Make VMs from a template: disk, NIC, memory, ready to be installed.
    Create(Box<create::CreateArgs>),
}

/// Arguments of `vm list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Templates, snapshots and control domains too.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `vm show`.
#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The VM's name or uuid.
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: &VmCommand, config: &Path) -> Answer {
    match command {
        VmCommand::List(args) => asked(config, async |apis| list(args, apis).await).await,
        VmCommand::Show(args) => asked(config, async |apis| show(args, apis).await).await,
        VmCommand::Create(args) => create::run(args, config).await,
    }
}

async fn asked(config: &Path, work: impl AsyncFnOnce(&Apis) -> Answer) -> Answer {
    let config = load(config)?;
    let clients = app::clients(&config).map_err(|error| Stop::new(Ended::Usage, app::chain(&error)))?;
    let apis = app::apis(&clients);
    let answer = work(&apis).await;
    app::log_out(&clients).await;
    answer
}

type Apis = std::collections::BTreeMap<String, crate::xen::api::Api>;

async fn list(args: &ListArgs, apis: &Apis) -> Answer {
    let (mut views, mut ended) = (Vec::new(), Ended::Done);
    for (pool, api) in apis {
        match api.vms().await {
            Ok(vms) => {
                let shown = vms.iter().filter(|vm| args.all || machines::kind(vm) == "guest");
                views.extend(shown.map(|vm| machines::view(pool, vm)));
            }
            Err(error) => {
                note(&format!("bootflip: pool {pool}: {error}"));
                ended = Ended::Failed;
            }
        }
    }
    views.sort_by(|a, b| (&a.pool, &a.name, &a.uuid).cmp(&(&b.pool, &b.name, &b.uuid)));
    if args.json {
        print_json(&views);
    } else {
        print(&listed(&views));
    }
    Ok(ended)
}

fn listed(views: &[VmView]) -> String {
    let rows: Vec<Vec<String>> = views
        .iter()
        .map(|vm| {
            let claim = vm.claim.as_ref().map_or_else(
                || "-".to_owned(),
                |claim| match &claim.problem {
                    Some(_) => "unusable".to_owned(),
                    None => claim.owner.clone(),
                },
            );
            vec![
                vm.name.clone(),
                vm.uuid.clone(),
                vm.pool.clone(),
                vm.power_state.clone(),
                boot_type(vm).to_owned(),
                claim,
            ]
        })
        .collect();
    table(&["NAME", "UUID", "POOL", "POWER", "TYPE", "CLAIMED BY"], &rows)
}

fn boot_type(vm: &VmView) -> &str {
    match vm.domain_type.as_deref() {
        Some(kind) if kind != "unspecified" => kind,
        Some(_) | None if vm.HVM_boot_policy.is_empty() => "pv",
        Some(_) | None => "hvm",
    }
}

async fn show(args: &ShowArgs, apis: &Apis) -> Answer {
    let (pool, vm) = desk::find(apis, &args.name).await.map_err(|error| {
        let ended = if matches!(error, DeskError::Pool { .. }) { Ended::Failed } else { Ended::Usage };
        Stop::new(ended, app::chain(&error))
    })?;
    let view = machines::view(&pool, &vm);
    if args.json {
        print_json(&view);
    } else {
        print(&shown(&view));
    }
    Ok(Ended::Done)
}

fn shown(vm: &VmView) -> String {
    let quoted = |text: &str| if text.is_empty() { String::new() } else { format!("\"{text}\"") };
    let params: Vec<String> =
        vm.HVM_boot_params.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut pairs = vec![
        ("name", vm.name.clone()),
        ("uuid", vm.uuid.clone()),
        ("pool", vm.pool.clone()),
        ("kind", vm.kind.clone()),
        ("tags", vm.tags.join(", ")),
        ("power_state", vm.power_state.clone()),
        ("domain_type", vm.domain_type.clone().unwrap_or_else(|| "(this release has none)".to_owned())),
        ("HVM_boot_policy", quoted(&vm.HVM_boot_policy)),
        ("HVM_boot_params", params.join(", ")),
        ("PV_bootloader", vm.PV_bootloader.clone()),
        ("PV_bootloader_args", quoted(&vm.PV_bootloader_args)),
        ("PV_kernel", vm.PV_kernel.clone()),
        ("PV_ramdisk", vm.PV_ramdisk.clone()),
        ("PV_args", quoted(&vm.PV_args)),
        ("PV_legacy_args", quoted(&vm.PV_legacy_args)),
        ("actions_after_shutdown", vm.actions_after_shutdown.clone()),
        ("actions_after_reboot", vm.actions_after_reboot.clone()),
        ("actions_after_crash", vm.actions_after_crash.clone()),
        ("installed", vm.installed.clone().unwrap_or_default()),
        ("claim", vm.claim.as_ref().map(claim).unwrap_or_default()),
    ];
    pairs.push(("next boot", vm.next_boot.clone()));
    fields(&pairs)
}

fn claim(claim: &ClaimView) -> String {
    let whose =
        format!("{} for job {}, attempt {}, since {}", claim.owner, claim.job, claim.attempt, claim.since);
    let head = match &claim.problem {
        Some(problem) if claim.owner.is_empty() => problem.clone(),
        Some(problem) => format!("{whose}; {problem}"),
        None => whose,
    };
    let saved = claim.saved.iter().map(|(field, value)| match value {
        Some(value) => format!("\n  saved {field} = \"{value}\""),
        None => format!("\n  saved {field}: absent"),
    });
    std::iter::once(head).chain(saved).collect()
}

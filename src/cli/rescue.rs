//! `bootflip rescue`: recovery mode. A VM boots a rescue system over the network once, and is put back as it was when
//! it halts, or on `jobs finish`. Nothing is erased.

use clap::Args;

use super::{
    Answer, Place,
    deploy::{self, DeployArgs},
};

/// Arguments of `rescue`.
#[derive(Debug, Args)]
pub(super) struct RescueArgs {
    /// Which VM: its name or uuid.
    #[arg(value_name = "VM")]
    vm: String,
    /// What to boot: a profile with `kind = "rescue"`.
    #[arg(short, long, value_name = "NAME", default_value = "rescue")]
    profile: String,
    /// Show what would happen; change nothing.
    #[arg(long)]
    plan: bool,
    /// Wait until the rescue is over and the VM is back; the exit code is the outcome's.
    #[arg(long)]
    wait: bool,
    /// Do not ask before a running VM is shut down.
    #[arg(short, long)]
    yes: bool,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: RescueArgs, place: &Place<'_>) -> Answer {
    let mut deploy = DeployArgs::default();
    deploy.selectors.push(args.vm);
    deploy.profile = Some(args.profile);
    (deploy.plan, deploy.wait, deploy.yes, deploy.json) = (args.plan, args.wait, args.yes, args.json);
    deploy.rescue = true;
    deploy::run(&deploy, place).await
}

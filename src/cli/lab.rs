//! `bootflip lab`: the whole cycle with real firmware, a real installer and the real pygrub.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::Args;

use super::{Answer, Ended, Stop, print};
use crate::sim::{
    lab::{
        Installer,
        run::{self, LabOptions},
        scene::MAX_VMS,
    },
    pool::Release,
};

/// The whole cycle in QEMU: a simulated pool whose VMs boot real firmware, and real pygrub. Needs root.
#[derive(Debug, Clone, Args)]
pub struct LabArgs {
    /// The folder that tests/lab/prepare.sh filled (for Debian's installer: tests/labinstall/prepare.sh).
    #[arg(long, value_name = "DIR", default_value = "target/lab")]
    dir: PathBuf,
    /// What is installed: "mini", half a minute, or "debian", Debian's own installer, half an hour.
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Installer::Mini)]
    installer: Installer,
    /// How many VMs; default: 2, and 1 with Debian's installer.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_VMS)))]
    vms: Option<u16>,
    /// What serves TFTP: "own" or "async-tftp".
    #[arg(long, value_name = "ENGINE", default_value = "own", value_parser = ["own", "async-tftp"])]
    tftp_engine: String,
    /// Kills the server in the middle, at stages that the installer reports.
    #[arg(long)]
    faults: bool,
    /// Prints one JSON document at the end, and nothing else.
    #[arg(long)]
    json: bool,
    /// Leaves the lab's folder (disks, consoles, logs) behind.
    #[arg(long, hide = true)]
    keep: bool,
}

/// Plays the lab and prints its result. True: all went as it should (exit code 0, else 1).
pub async fn run(args: &LabArgs) -> anyhow::Result<bool> {
    let options = LabOptions {
        lab: args.dir.clone(),
        installer: args.installer,
        vms: args.vms.unwrap_or(match args.installer {
            Installer::Mini => 2,
            Installer::Debian => 1,
        }),
        faults: args.faults,
        tftp_engine: args.tftp_engine.clone(),
        json: args.json,
        program: std::env::current_exe().context("cannot tell where this program is")?,
        keep: args.keep,
    };
    // It has threads and a network namespace of its own, and blocks until all is over.
    let document =
        tokio::task::spawn_blocking(move || run::run(&options)).await.context("the lab broke off")??;
    let text = if args.json { serde_json::to_string_pretty(&document)? + "\n" } else { document.table() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the result")?;
    Ok(document.ok)
}

/// `bootflip simulate --lab DIR`: the lab's pool and guests, for a server of one's own.
pub(super) async fn simulate(dir: PathBuf, vms: u16, release: Release) -> Answer {
    if vms > MAX_VMS {
        return Err(Stop::new(Ended::Usage, format!("the lab has room for {MAX_VMS} VMs; say --vms")));
    }
    let tell = |line: &str| print(&format!("{line}\n"));
    match tokio::task::spawn_blocking(move || run::simulate(&dir, vms, release, tell)).await {
        Ok(served) => served.map(|()| Ended::Done).map_err(|error| Stop::failed(&error)),
        Err(broken) => Err(Stop::failed(&broken)),
    }
}

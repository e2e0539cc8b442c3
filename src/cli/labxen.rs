//! `bootflip lab-xen`: the whole cycle on a real Xen.

use std::{io::Write, path::PathBuf};

use clap::Args;

use super::{Answer, Ended, Stop, print};
use crate::sim::labxen::run::{self, XenLabOptions};

/// A Debian dom0 under Xen in QEMU, whose PV guest is installed anew over the network and comes back as PV.
#[derive(Debug, Args)]
pub(super) struct XenLabArgs {
    /// The folder that tests/labxen/prepare.sh filled.
    #[arg(long, value_name = "DIR", default_value = "target/lab-xen")]
    dir: PathBuf,
    /// Kills the server while the guest installs, and starts it again.
    #[arg(long)]
    faults: bool,
    /// Prints one JSON document at the end, and nothing else.
    #[arg(long)]
    json: bool,
    /// Leaves the lab's folder (disks, consoles, logs) behind.
    #[arg(long, hide = true)]
    keep: bool,
}

/// Plays it and prints its result.
pub(super) async fn run(args: &XenLabArgs) -> Answer {
    let options = XenLabOptions {
        lab: args.dir.clone(),
        json: args.json,
        faults: args.faults,
        program: std::env::current_exe().map_err(|error| Stop::failed(&error))?,
        keep: args.keep,
    };
    // It has threads and a network namespace of its own, and blocks until all is over.
    let played = tokio::task::spawn_blocking(move || run::run(&options)).await;
    let document = played.map_err(|error| Stop::failed(&error))?.map_err(|error| Stop::failed(&error))?;
    let text = if args.json {
        serde_json::to_string_pretty(&document).map_err(|error| Stop::failed(&error))? + "\n"
    } else {
        document.table()
    };
    std::io::stdout().write_all(text.as_bytes()).map_err(|error| Stop::failed(&error))?;
    Ok(if document.ok { Ended::Done } else { Ended::Failed })
}

/// `bootflip simulate --xl DIR`: the pool on a real Xen, for a server of one's own.
pub(super) async fn simulate(dir: PathBuf) -> Answer {
    let tell = |line: &str| print(&format!("{line}\n"));
    match tokio::task::spawn_blocking(move || run::simulate(&dir, tell)).await {
        Ok(served) => served.map(|()| Ended::Done).map_err(|error| Stop::failed(&error)),
        Err(broken) => Err(Stop::failed(&broken)),
    }
}

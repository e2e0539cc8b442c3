//! `bootflip demo`: the whole cycle on loopback.

use std::{ffi::OsString, io::Write};

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::simulate;
use crate::sim::{
    demo::{self, Break, DemoOptions, MAX_VMS, children::become_child},
    pool::Release,
};

/// The whole cycle on loopback: simulated pool, simulated PXE clients, real packets.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many VMs.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_VMS)))]
    vms: u16,
    /// Fixes names, MACs, faults and durations (not the interleaving).
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Which release the pool runs.
    #[arg(long, value_name = "R", default_value = "8.2", value_parser = simulate::release)]
    release: Release,
    /// Leaves the VMs HVM, booting from their disks: for releases that cannot start PV guests.
    #[arg(long)]
    stay_hvm: bool,
    /// Lets things go wrong: lost replies, expired sessions, a coordinator change, a failing installer, a person's
    /// hand, SIGKILLs to the server.
    #[arg(long)]
    faults: bool,
    /// Prints one JSON document at the end, and nothing else.
    #[arg(long)]
    json: bool,
    /// Breaks the profile on purpose; the demo then fails with every VM undone.
    #[arg(long = "break", value_enum, hide = true)]
    broken: Option<BreakArg>,
    /// Leaves the demo's folder (configuration, logs, database) behind.
    #[arg(long, hide = true)]
    keep: bool,
    /// The demo starts its children with this: the command behind `--`, which dies with the process of this id.
    #[arg(long, value_name = "PID", hide = true)]
    child_of: Option<i32>,
    /// The command and its arguments.
    #[arg(last = true, hide = true, requires = "child_of")]
    child: Vec<OsString>,
}

/// What `--break` takes.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum BreakArg {
    /// The kernel's path.
    Kernel,
    /// The report URL.
    Report,
}

/// How a demo ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Played {
    /// All went as it should.
    Well,
    /// This release takes none of the VMs, and nothing was changed.
    Refused,
    /// Something did not.
    Badly,
}

/// Plays the demo and prints its result.
pub async fn run(args: &DemoArgs) -> anyhow::Result<Played> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    if let Some(parent) = args.child_of {
        match become_child(&program, parent, &args.child)? {}
    }
    let options = DemoOptions {
        vms: args.vms,
        seed: args.seed,
        release: args.release,
        stay_hvm: args.stay_hvm,
        faults: args.faults,
        json: args.json,
        broken: args.broken.map(|broken| match broken {
            BreakArg::Kernel => Break::Kernel,
            BreakArg::Report => Break::Report,
        }),
        program,
        keep: args.keep,
    };
    let document = demo::run(&options).await?;
    let text = if args.json { serde_json::to_string_pretty(&document)? + "\n" } else { document.table() };
    std::io::stdout().write_all(text.as_bytes()).context("cannot print the result")?;
    Ok(match (document.ok, document.is_refused()) {
        (true, _) => Played::Well,
        (false, true) => Played::Refused,
        (false, false) => Played::Badly,
    })
}

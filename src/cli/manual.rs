//! `bootflip completions SHELL` and `bootflip man DIR`: what the command line says of itself, for shells and for man.

use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::{Answer, Cli, Ended, Stop, print};

/// Arguments of `completions`.
#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// For which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// The folder that the pages are written to; made where it is missing.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

pub(super) fn completions(args: &CompletionsArgs) -> Answer {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut text);
    print(&String::from_utf8_lossy(&text));
    Ok(Ended::Done)
}

/// One page for the program and one for each command, `bootflip.1`, `bootflip-jobs-show.1`, ….
pub(super) fn man(args: &ManArgs) -> Answer {
    let failed = |error: std::io::Error| {
        Stop::new(Ended::Failed, format!("cannot write into {}: {error}", args.folder.display()))
    };
    std::fs::create_dir_all(&args.folder).map_err(failed)?;
    // --help and --version are in every page anyhow.
    let command = Cli::command().disable_help_subcommand(true);
    clap_mangen::generate_to(command, &args.folder).map_err(failed)?;
    Ok(Ended::Done)
}

const NAME: &str = "bootflip";

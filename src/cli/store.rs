//! `bootflip store …`: copies the database, and looks whether one is whole. Both work while the server runs.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Answer, Ended, Stop, note, print_json, state_dir, table::fields};
use crate::{app, provision::Job, store::sqlite::care};

/// What to do with the database.
#[derive(Debug, Subcommand)]
pub(super) enum StoreCommand {
    /// Write a whole copy of the database as it is in this moment, while the server runs.
    Backup(BackupArgs),
    /// Look whether the database, or a copy of it, is whole. Changes nothing.
    Check(CheckArgs),
}

/// Arguments of `store backup`.
#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The copy; must not be there yet.
    #[arg(value_name = "FILE")]
    to: PathBuf,
}

/// Arguments of `store check`.
#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A copy; without it, the database of the configuration.
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &StoreCommand, config: &Path) -> Answer {
    match command {
        StoreCommand::Backup(args) => backup(args, config),
        StoreCommand::Check(args) => check(args, config),
    }
}

fn database(config: &Path) -> Result<PathBuf, Stop> {
    Ok(state_dir(config)?.join(app::DATABASE))
}

fn backup(args: &BackupArgs, config: &Path) -> Answer {
    let bytes = care::backup(&database(config)?, &args.to).map_err(|error| Stop::failed(&error))?;
    note(&format!(
        "{} has {bytes} bytes; token.key beside the database is not part of it",
        args.to.display()
    ));
    Ok(Ended::Done)
}

/// Jobs must parse.
fn judge(key: &str, value: &[u8]) -> Option<String> {
    let job = key.strip_prefix("jobs/")?;
    let error = serde_json::from_slice::<Job>(value).err()?;
    Some(format!("job {job} cannot be read: {error}; its VM: `bootflip restore`"))
}

fn check(args: &CheckArgs, config: &Path) -> Answer {
    let file = match &args.file {
        Some(file) => file.clone(),
        None => database(config)?,
    };
    let found = care::check(&file, judge).map_err(|error| Stop::failed(&error))?;
    if args.json {
        print_json(&found);
    } else {
        let kinds = found.entries.iter().map(|(kind, count)| format!("{count} {kind}"));
        let text = fields(&[
            ("database", file.display().to_string()),
            ("schema", found.schema.to_string()),
            ("revision", found.revision.to_string()),
            ("entries", kinds.collect::<Vec<_>>().join(", ")),
            (
                "problems",
                if found.problems.is_empty() { "none".to_owned() } else { found.problems.join("\n") },
            ),
        ]);
        super::print(&text);
    }
    Ok(if found.problems.is_empty() { Ended::Done } else { Ended::Failed })
}

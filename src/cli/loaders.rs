//! `bootflip loaders install|list|verify`: the boot loaders in `tftp.root`. No server is needed.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::{Answer, Ended, Stop, load, note, print, print_json, table::table};
use crate::app::{
    self,
    loaders::{self, LoadersError, Origin},
    publish::{Standing, State},
};

/// `loaders …`
#[derive(Debug, Subcommand)]
pub(super) enum LoadersCommand {
    /// Copy loaders from the distribution's packages, with their checksums in SHA256SUMS.
    Install(InstallArgs),
    /// The loaders that there are, where a package has them, and how they stand in the folder.
    List(Where),
    /// Compare the folder with SHA256SUMS, and tell what differs.
    Verify(Where),
}

/// Which folder.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// The folder; default: tftp.root of the configuration.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `loaders install`.
#[derive(Debug, Args)]
pub(super) struct InstallArgs {
    /// Which; default: those for iPXE and PXELINUX.
    names: Vec<String>,
    /// Take them from this folder, not from packages.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Do not ask Debian's archive for what is not installed.
    #[arg(long)]
    no_fetch: bool,
    #[command(flatten)]
    place: Where,
}

/// Where the packages of this computer are.
const SYSTEM: &str = "/";

pub(super) async fn run(command: &LoadersCommand, config: &Path) -> Answer {
    match command {
        LoadersCommand::Install(args) => install(args, config),
        LoadersCommand::List(place) => list(place, config),
        LoadersCommand::Verify(place) => verify(place, config),
    }
}

fn root(place: &Where, config: &Path) -> Result<PathBuf, Stop> {
    if let Some(root) = &place.root {
        return Ok(root.clone());
    }
    let config = load(config)?;
    let root = config.tftp.map(|tftp| tftp.root);
    root.ok_or_else(|| Stop::new(Ended::Usage, "the configuration has no [tftp]; name a folder with --root"))
}

fn stop(error: &LoadersError) -> Stop {
    let ended = match error {
        LoadersError::Unknown(_) => Ended::Usage,
        LoadersError::Folder(_) | LoadersError::Absent { .. } => Ended::Failed,
    };
    Stop::new(ended, app::chain(error))
}

fn install(args: &InstallArgs, config: &Path) -> Answer {
    let root = root(&args.place, config)?;
    let origin = match &args.from {
        Some(folder) => Origin::Folder(folder.clone()),
        None => Origin::Packages { system: SYSTEM.into(), fetch: !args.no_fetch },
    };
    let installed = loaders::install(&root, &args.names, &origin).map_err(|error| stop(&error))?;
    if args.place.json {
        let standings = loaders::verify(&root).map_err(|error| stop(&error))?;
        print_json(&standings);
        return Ok(Ended::Done);
    }
    for (name, new) in installed {
        let what = if new { "installed" } else { "unchanged" };
        print(&format!("{what}  {}\n", root.join(name).display()));
    }
    Ok(Ended::Done)
}

fn list(place: &Where, config: &Path) -> Answer {
    let root = root(place, config)?;
    let listed = loaders::list(&root, Path::new(SYSTEM)).map_err(|error| stop(&error))?;
    if place.json {
        let rows = listed.iter().map(|(loader, standing, found)| {
            serde_json::json!({
                "name": loader.name, "package": loader.package, "purpose": loader.purpose, "state": standing.state,
                "sha256": standing.sha256, "found": found,
            })
        });
        print_json(&rows.collect::<Vec<_>>());
        return Ok(Ended::Done);
    }
    let rows: Vec<Vec<String>> = listed
        .iter()
        .map(|(loader, standing, found)| {
            let found = found.as_ref().map_or_else(|| "-".to_owned(), |path| path.display().to_string());
            let state = standing.state.label().to_owned();
            vec![loader.name.to_owned(), state, loader.package.to_owned(), found, loader.purpose.to_owned()]
        })
        .collect();
    print(&table(&["LOADER", "HERE", "PACKAGE", "FOUND", "FOR"], &rows));
    Ok(Ended::Done)
}

fn verify(place: &Where, config: &Path) -> Answer {
    let root = root(place, config)?;
    let standings = loaders::verify(&root).map_err(|error| stop(&error))?;
    let well = !standings.is_empty() && standings.iter().all(|standing| standing.state == State::Verified);
    if place.json {
        print_json(&standings);
    } else {
        let row = |standing: &Standing| vec![standing.name.clone(), standing.state.label().to_owned()];
        print(&table(&["FILE", "STATE"], &standings.iter().map(row).collect::<Vec<_>>()));
    }
    if standings.is_empty() {
        note(&format!("bootflip: {} has no loaders; see `bootflip loaders install`", root.display()));
    }
    Ok(if well { Ended::Done } else { Ended::Failed })
}

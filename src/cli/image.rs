//! `bootflip image …`: installers' kernels, initrds and ISOs below `http.root`. No server is needed.

use std::{
    collections::BTreeMap,
    io::IsTerminal,
    path::{Path, PathBuf},
    sync::Mutex,
};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use super::{Answer, Ended, Stop, link::Link, load, note, print, print_json, socket, table::table};
use crate::{
    app::{
        self,
        images::{self, Download, Fetch, ImageError, Images, Listed, Pins, Published, Watch, catalogue},
        publish::State,
    },
    config::Config,
};

/// `image …`
#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// The images that are known, and those that are in the folder with how they stand to SHA256SUMS.
    List(Where),
    /// Take an image's files from an ISO, a tar, a Debian package or a folder; no network is needed.
    Add(AddArgs),
    /// Fetch an image from its mirror, or from Debian's package; goes on where an earlier fetch broke off.
    Fetch(FetchArgs),
    /// Compare the folder with SHA256SUMS, and tell what differs: that is given out to nobody.
    Verify(VerifyArgs),
    /// What nobody needs: what killed programs left, downloads that were not finished; removed with --yes.
    Gc(GcArgs),
}

/// Which folder.
#[derive(Debug, Args)]
pub(super) struct Where {
    /// The folder; default: http.root of the configuration.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is put where.
#[derive(Debug, Args)]
struct What {
    /// The image: one of `image list`, or a name of your own with --file.
    name: String,
    /// The folder below http.root; default: that of the profile that installs it.
    #[arg(long, value_name = "FOLDER")]
    into: Option<String>,
    /// A file of the image, and where it is (the end of a path; `*`: any characters but `/`); may be repeated.
    #[arg(long, value_name = "FILE=PATTERN")]
    file: Vec<String>,
    /// The SHA-256 that a file must have, or, without FILE, what it is taken from; may be repeated.
    #[arg(long, value_name = "[FILE=]HEX")]
    sha256: Vec<String>,
    #[command(flatten)]
    place: Where,
}

/// Arguments of `image add`.
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    #[command(flatten)]
    what: What,
    /// The ISO, tar, tar.gz, Debian package or folder.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
}

/// Arguments of `image fetch`.
#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    #[command(flatten)]
    what: What,
    /// Another mirror: the URL below which the image's files and their checksums are.
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Take Debian's package, by apt.
    #[arg(long, conflicts_with = "mirror")]
    package: bool,
}

/// Arguments of `image verify`.
#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Which folders below http.root; default: all.
    folders: Vec<String>,
    #[command(flatten)]
    place: Where,
}

/// Arguments of `image gc`.
#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// The images that no profile of the configuration boots from, too.
    #[arg(long)]
    unused: bool,
    /// Remove it.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Where,
}

pub(super) async fn run(command: &ImageCommand, config: &Path) -> Answer {
    match command {
        ImageCommand::List(place) => list(place, config),
        ImageCommand::Add(args) => add(args, config),
        ImageCommand::Fetch(args) => fetch(args, config).await,
        ImageCommand::Verify(args) => verify(args, config),
        ImageCommand::Gc(args) => gc(args, config).await,
    }
}

/// The folder, and the boot files of each profile where there is a configuration.
fn place(place: &Where, config: &Path) -> Result<(Images, BTreeMap<String, Vec<String>>), Stop> {
    let loaded = load(config);
    if let Some(root) = &place.root {
        let profiles = loaded.map(|config| profiles(&config)).unwrap_or_default();
        return Ok((Images::new(root.clone()), profiles));
    }
    let config = loaded?;
    let root = config.http.as_ref().map(|http| http.root.clone());
    let root = root.ok_or_else(|| {
        Stop::new(Ended::Usage, "the configuration has no [http]; name a folder with --root")
    })?;
    Ok((Images::new(root), profiles(&config)))
}

fn profiles(config: &Config) -> BTreeMap<String, Vec<String>> {
    let files = config.profiles.iter().filter_map(|(name, profile)| {
        let boot = profile.boot.as_ref()?;
        let all = std::iter::once(&boot.kernel).chain(&boot.initrd).chain(&boot.files).cloned();
        Some((name.clone(), all.collect()))
    });
    files.collect()
}

fn stop(error: &ImageError) -> Stop {
    let ended = match error {
        ImageError::Unknown(_)
        | ImageError::BadName(_)
        | ImageError::UnknownPin(_)
        | ImageError::NoPackage(_)
        | ImageError::NoContainer { .. } => Ended::Usage,
        ImageError::Folder(_)
        | ImageError::Broken { .. }
        | ImageError::Incomplete { .. }
        | ImageError::Differs { .. }
        | ImageError::NoSum { .. }
        | ImageError::Fetch { .. }
        | ImageError::Package { .. } => Ended::Failed,
    };
    Stop::new(ended, app::chain(error))
}

impl What {
    fn read(&self) -> Result<(catalogue::Image, String, Pins), Stop> {
        let image = images::image(&self.name, &self.file).map_err(|error| stop(&error))?;
        let folder = self.into.as_ref().unwrap_or(&image.profile).clone();
        images::named(&folder).map_err(|error| stop(&error))?;
        let pins = Pins::parse(&self.sha256).map_err(|word| {
            Stop::new(
                Ended::Usage,
                format!("--sha256 {word}: write HEX or FILE=HEX, with 64 hexadecimal digits"),
            )
        })?;
        Ok((image, folder, pins))
    }
}

fn list(args: &Where, config: &Path) -> Answer {
    let (images, profiles) = place(args, config)?;
    let there = match images.list(&profiles) {
        Ok(there) => there,
        Err(_) if !images.root().exists() => Vec::new(),
        Err(error) => return Err(stop(&error)),
    };
    if args.json {
        let known = catalogue::images().iter().map(|(name, image)| {
            serde_json::json!({
                "name": name, "about": image.about, "profile": image.profile, "mirror": image.mirror,
                "package": image.package, "files": image.files.keys().collect::<Vec<_>>(),
            })
        });
        print_json(&serde_json::json!({ "known": known.collect::<Vec<_>>(), "here": there }));
        return Ok(Ended::Done);
    }
    let known = catalogue::images().iter().map(|(name, image)| {
        let here = there.iter().any(|listed| listed.folder == image.profile);
        let here = if here { format!("{}/", image.profile) } else { "-".to_owned() };
        vec![name.clone(), here, image.profile.clone(), image.about.clone()]
    });
    print(&table(&["IMAGE", "HERE", "PROFILE", "ABOUT"], &known.collect::<Vec<_>>()));
    print(&format!("\n{}:\n", images.root().display()));
    print(&table(&["FOLDER", "STATE", "MB", "BOOTED BY"], &there.iter().map(row).collect::<Vec<_>>()));
    Ok(Ended::Done)
}

fn row(listed: &Listed) -> Vec<String> {
    let bad = listed.files.iter().find(|file| file.state != State::Verified);
    let state =
        bad.map_or_else(|| "verified".to_owned(), |file| format!("{} {}", file.name, file.state.label()));
    let profiles = if listed.profiles.is_empty() { "-".to_owned() } else { listed.profiles.join(", ") };
    vec![listed.folder.clone(), state, listed.bytes.div_ceil(1_000_000).to_string(), profiles]
}

fn add(args: &AddArgs, config: &Path) -> Answer {
    let (images, _) = place(&args.what.place, config)?;
    let (image, folder, pins) = args.what.read()?;
    let published = images.add(&image, &folder, &args.from, &pins).map_err(|error| stop(&error))?;
    tell(&args.what, &images, &published);
    Ok(Ended::Done)
}

async fn fetch(args: &FetchArgs, config: &Path) -> Answer {
    let (images, _) = place(&args.what.place, config)?;
    let (image, folder, pins) = args.what.read()?;
    let published = if args.package {
        images.add_package((&args.what.name, &image), &folder, &pins)
    } else {
        if image.mirror.is_empty() && args.mirror.is_none() {
            return Err(Stop::new(
                Ended::Usage,
                "an image of your own has no mirror; name one with --mirror",
            ));
        }
        let what = Fetch { image: &image, folder: &folder, mirror: args.mirror.as_deref(), pins: &pins };
        let bars = Bars::new(args.what.place.json);
        let fetched = match Download::new() {
            Ok(download) => download.fetch(&images, &what, &bars).await,
            Err(error) => Err(error),
        };
        bars.clear();
        fetched
    };
    tell(&args.what, &images, &published.map_err(|error| stop(&error))?);
    Ok(Ended::Done)
}

fn tell(what: &What, images: &Images, published: &[Published]) {
    if what.place.json {
        return print_json(&published);
    }
    for Published { name, sha256, new } in published {
        let word = if *new { "installed" } else { "unchanged" };
        print(&format!("{word}  {}  {sha256}\n", images.root().join(name).display()));
    }
}

/// A line that moves, on a terminal.
struct Bars(Mutex<Option<(String, ProgressBar)>>, bool);

impl Bars {
    fn new(silent: bool) -> Self {
        Self(Mutex::new(None), !silent && std::io::stderr().is_terminal())
    }

    fn clear(&self) {
        if let Some((_, bar)) = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take() {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Bars {
    fn progress(&self, file: &str, here: u64, whole: Option<u64>) {
        if !self.1 {
            return;
        }
        let mut shown = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if shown.as_ref().is_none_or(|(name, _)| name != file) {
            if let Some((_, bar)) = shown.take() {
                bar.finish_and_clear();
            }
            let bar = whole.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            let style = "{msg} {bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} to go";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(file.to_owned());
            *shown = Some((file.to_owned(), bar));
        }
        if let Some((_, bar)) = shown.as_ref() {
            bar.set_position(here);
        }
    }
}

fn verify(args: &VerifyArgs, config: &Path) -> Answer {
    let (images, _) = place(&args.place, config)?;
    let standings = images.verify(&args.folders).map_err(|error| stop(&error))?;
    let well = !standings.is_empty() && standings.iter().all(|file| file.state == State::Verified);
    if args.place.json {
        print_json(&standings);
    } else {
        let rows = standings.iter().map(|file| vec![file.name.clone(), file.state.label().to_owned()]);
        print(&table(&["FILE", "STATE"], &rows.collect::<Vec<_>>()));
    }
    if standings.is_empty() {
        note(&format!("bootflip: SHA256SUMS in {} names no such file", images.root().display()));
    } else if !well {
        note(
            "bootflip: what differs is given out to nobody; fetch or add the image again, or correct SHA256SUMS",
        );
    }
    Ok(if well { Ended::Done } else { Ended::Failed })
}

async fn gc(args: &GcArgs, config: &Path) -> Answer {
    let (images, profiles) = place(&args.place, config)?;
    if args.unused && profiles.is_empty() {
        let text =
            "which images are used stands in the configuration, and there is none here; name it with -c";
        return Err(Stop::new(Ended::Usage, text));
    }
    if args.unused && args.yes {
        let link = Link::new(&socket(config)?);
        if link.answers().await && link.jobs().await?.iter().any(|job| !job.is_over()) {
            let text =
                "jobs are under way, and boot from profiles as they were; nothing was removed. Wait for them";
            return Err(Stop::new(Ended::Refused, text));
        }
    }
    let garbage = images.gc(&profiles, args.unused, args.yes).map_err(|error| stop(&error))?;
    if args.place.json {
        print_json(&garbage);
        return Ok(Ended::Done);
    }
    for found in &garbage {
        let word = if args.yes { "removed" } else { "would remove" };
        print(&format!("{word}  {} ({}, {} bytes)\n", found.path.display(), found.why, found.bytes));
    }
    if garbage.is_empty() {
        note("bootflip: there is nothing to remove");
    } else if !args.yes {
        note("bootflip: nothing was removed; do it with --yes");
    }
    Ok(Ended::Done)
}

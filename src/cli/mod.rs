//! The command line: `bootflip COMMAND`. Each command is a module; this file is what they share.
//!
//! Invariant: results go to stdout, everything said on the way to stderr. Exit codes are those of [`Ended`].

mod check;
mod create;
pub mod demo;
mod deploy;
mod dhcp;
mod doctor_guest;
mod image;
mod jobs;
pub mod lab;
mod labxen;
mod link;
mod loaders;
mod logging;
mod manual;
mod pool;
mod progress;
mod reload;
mod remote;
mod render;
mod rescue;
mod restore;
mod selectors;
mod serve;
mod simulate;
mod store;
mod table;
mod template;
mod token;
mod vm;

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use crate::{
    app,
    config::{self, Config},
};

/// Installs paravirtualized XenServer and XCP-ng guests over the network, unattended, and puts every boot setting
/// back.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// The configuration.
    #[arg(short, long, global = true, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    #[command(flatten)]
    remote: remote::RemoteArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the server: DHCP, TFTP, HTTP, and the jobs.
    Serve(serve::ServeArgs),
    /// Look whether everything is in place: configuration, files, ports, pools. Changes nothing.
    Check(check::CheckArgs),
    /// Print what another DHCP server needs to send machines to us.
    #[command(subcommand)]
    Dhcp(dhcp::DhcpCommand),
    /// Trust a pool's certificate for the first time, or forget which pool a name was.
    #[command(subcommand)]
    Pool(pool::PoolCommand),
    /// Look at VMs: their boot-related fields, and how they boot next.
    #[command(subcommand)]
    Vm(vm::VmCommand),
    /// Install VMs. What stands on their boot disks is erased.
    Deploy(deploy::DeployArgs),
    /// Recovery mode: boot a rescue system over the network once, then put the VM back. Erases nothing.
    Rescue(rescue::RescueArgs),
    /// Look at jobs, and operate them; alone: list them.
    Jobs(jobs::JobsArgs),
    /// Make, list and revoke the tokens by which others may ask the server.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Show who did what.
    Audit(token::AuditArgs),
    /// Put VMs back from the claims in the pool alone; needs no database.
    Restore(restore::RestoreArgs),
    /// Show what a machine would be served.
    Render(render::RenderArgs),
    /// Bring installers' kernels, initrds and ISOs into http.root, and check them.
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Look at templates: list, show, or look for what is wrong with them.
    #[command(subcommand)]
    Template(template::TemplateCommand),
    /// Print the script that readies a guest for a start as PV by pygrub, to be run in the guest.
    DoctorGuest,
    /// Bring boot loaders from the distribution's packages into tftp.root, and check them.
    #[command(subcommand)]
    Loaders(loaders::LoadersCommand),
    /// Play the whole cycle on loopback: simulated pool, simulated PXE clients, real packets.
    Demo(demo::DemoArgs),
    /// Play the whole cycle in QEMU: real firmware, a real installer, the real pygrub. Needs root.
    Lab(lab::LabArgs),
    /// Play the whole cycle on a real Xen, itself in QEMU: PV to HVM and back to PV. Needs root.
    LabXen(labxen::XenLabArgs),
    /// Serve a simulated pool, to try things against.
    Simulate(simulate::SimulateArgs),
    /// Have the server read its configuration again; jobs under way keep what they were made with.
    Reload(reload::ReloadArgs),
    /// Copy the database, or look whether it is whole.
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Print the completions of a shell.
    Completions(manual::CompletionsArgs),
    /// Write the manual pages into a folder.
    Man(manual::ManArgs),
}

const AFTER_HELP: &str = "\
SELECTOR is a VM's name or uuid, tag=TAG, name~GLOB, or @FILE (one a line, CSV or TOML).

Exit codes: 0 done; 1 failed, or waits for an operator; 2 usage or configuration;
3 refused, weak or partly, with nothing broken; 75 locked by another server.";

/// Where the configuration is when nobody says.
const DEFAULT_CONFIG: &str = "/etc/bootflip/bootflip.toml";

/// The admin socket when the configuration says nothing.
const DEFAULT_SOCKET: &str = "/run/bootflip/admin.sock";

/// Where the state is when the configuration says nothing.
const DEFAULT_STATE_DIR: &str = "/var/lib/bootflip";

/// How a command ended; the exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ended {
    /// 0.
    Done,
    /// 3: refused, weak or partly; nothing is broken.
    Refused,
    /// 1: failed, or a job waits for an operator.
    Failed,
    /// 2: usage or configuration.
    Usage,
    /// 75 (EX_TEMPFAIL): another server has the lock.
    Locked,
}

impl Ended {
    const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Locked => 75,
        }
    }
}

/// A command that could not be carried out: the exit code, and what to tell.
#[derive(Debug)]
struct Stop {
    ended: Ended,
    message: String,
}

impl Stop {
    fn new(ended: Ended, message: impl Into<String>) -> Self {
        Self { ended, message: message.into() }
    }

    /// Failed, with an error and its causes.
    fn failed(error: &dyn std::error::Error) -> Self {
        Self::new(Ended::Failed, app::chain(error))
    }
}

type Answer = Result<Ended, Stop>;

/// Runs the program as its arguments say.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The server's log is as its configuration says, which is still to be read.
    if !matches!(cli.command, Command::Serve(_)) {
        logging::commands();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers())
        .thread_name("bootflip")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(Stop::failed(&error))),
    };
    let answer = runtime.block_on(run(cli));
    // What still hangs in a system call must not keep the program from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    end(answer)
}

fn end(answer: Answer) -> ExitCode {
    let ended = answer.unwrap_or_else(|stop| {
        note(&format!("bootflip: {}", stop.message));
        stop.ended
    });
    ExitCode::from(ended.code())
}

/// Two to four: the work is waiting, and every thread costs memory.
fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, 4)
}

async fn run(cli: Cli) -> Answer {
    let config = cli.config;
    let place = Place { config: &config, remote: &cli.remote };
    if cli.remote.is_explicit() && !cli.command.asks_a_server() {
        let text = "this command works on this machine alone, and not with --server";
        return Err(Stop::new(Ended::Usage, text));
    }
    match cli.command {
        Command::Serve(args) => serve::run(&args, &config).await,
        Command::Check(args) => check::run(&args, &config).await,
        Command::Dhcp(command) => dhcp::run(&command, &config),
        Command::Pool(command) => pool::run(&command, &config).await,
        Command::Vm(command) => vm::run(&command, &config).await,
        Command::Deploy(args) => deploy::run(&args, &place).await,
        Command::Rescue(args) => rescue::run(args, &place).await,
        Command::Jobs(args) => jobs::run(&args, &place).await,
        Command::Restore(args) => restore::run(&args, &config).await,
        Command::Render(args) => render::run(&args, &place).await,
        Command::Token(command) => token::run(&command, &place).await,
        Command::Audit(args) => token::audit(&args, &place).await,
        Command::Image(command) => image::run(&command, &config).await,
        Command::Template(command) => template::run(&command, &config),
        Command::Loaders(command) => loaders::run(&command, &config).await,
        Command::Demo(args) => match demo::run(&args).await {
            Ok(demo::Played::Well) => Ok(Ended::Done),
            Ok(demo::Played::Refused) => Ok(Ended::Refused),
            Ok(demo::Played::Badly) => Ok(Ended::Failed),
            Err(error) => Err(Stop::new(Ended::Failed, format!("{error:#}"))),
        },
        Command::DoctorGuest => doctor_guest::run(),
        Command::Lab(args) => played(lab::run(&args).await),
        Command::LabXen(args) => labxen::run(&args).await,
        Command::Simulate(args) => simulate::run(&args).await,
        Command::Reload(args) => reload::run(&args, &place).await,
        Command::Store(command) => store::run(&command, &config),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

impl Command {
    /// It does its work through a server, which may be another machine's.
    const fn asks_a_server(&self) -> bool {
        match self {
            Self::Deploy(_)
            | Self::Rescue(_)
            | Self::Jobs(_)
            | Self::Render(_)
            | Self::Token(_)
            | Self::Audit(_)
            | Self::Reload(_) => true,
            Self::Serve(_)
            | Self::Check(_)
            | Self::Dhcp(_)
            | Self::Pool(_)
            | Self::Vm(_)
            | Self::Restore(_)
            | Self::Image(_)
            | Self::Template(_)
            | Self::DoctorGuest
            | Self::Loaders(_)
            | Self::Demo(_)
            | Self::Lab(_)
            | Self::LabXen(_)
            | Self::Simulate(_)
            | Self::Store(_)
            | Self::Completions(_)
            | Self::Man(_) => false,
        }
    }
}

/// Where a command finds its configuration and its server.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    config: &'a Path,
    remote: &'a remote::RemoteArgs,
}

impl Place<'_> {
    /// The way to the server.
    fn link(&self) -> Result<link::Link, Stop> {
        match self.remote.remote()? {
            Some(remote) => Ok(link::Link::remote(remote)),
            None => Ok(link::Link::new(&socket(self.config)?)),
        }
    }
}

/// How a demo or a lab ended: whether all was as it should be.
fn played(well: anyhow::Result<bool>) -> Answer {
    match well {
        Ok(true) => Ok(Ended::Done),
        Ok(false) => Ok(Ended::Failed),
        Err(error) => Err(Stop::new(Ended::Failed, format!("{error:#}"))),
    }
}

/// Reads the configuration.
fn load(path: &Path) -> Result<Config, Stop> {
    config::load(path)
        .map_err(|problems| Stop::new(Ended::Usage, config::problems_report(&problems).trim_end()))
}

/// The admin socket that the configuration names.
fn socket(config: &Path) -> Result<PathBuf, Stop> {
    place_in(config, "admin", "socket", DEFAULT_SOCKET)
}

/// `server.state_dir`.
fn state_dir(config: &Path) -> Result<PathBuf, Stop> {
    place_in(config, "server", "state_dir", DEFAULT_STATE_DIR)
}

/// A path that the configuration names. Only this key is read, so that who needs it needs no right to read the passwords
/// that the configuration names.
fn place_in(config: &Path, section: &str, key: &str, default: &str) -> Result<PathBuf, Stop> {
    let text = match std::fs::read_to_string(config) {
        Ok(text) => text,
        Err(_) if config == Path::new(DEFAULT_CONFIG) => return Ok(default.into()),
        Err(error) => {
            return Err(Stop::new(Ended::Usage, format!("cannot read {}: {error}", config.display())));
        }
    };
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Stop::new(Ended::Usage, format!("{}: {}", config.display(), error.message()))
    })?;
    let named = table.get(section).and_then(|section| section.get(key)).and_then(|place| place.as_str());
    let folder = config.parent().unwrap_or_else(|| Path::new(""));
    Ok(named.map_or_else(|| default.into(), |place| folder.join(place)))
}

/// Prints a result. A closed stdout (`| head`) ends the printing, not the program.
fn print(text: &str) {
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

/// Prints a result as JSON.
fn print_json(value: &impl serde::Serialize) {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(&(text + "\n")),
        Err(error) => note(&format!("bootflip: the result is no JSON: {error}")),
    }
}

/// Says something on the way.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn admin_socket_is_found_without_reading_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.toml");
        let cases = [
            ("[admin]\nsocket = \"a.sock\"\n", folder.path().join("a.sock")),
            ("[admin]\nsocket = \"/x/a.sock\"\n", PathBuf::from("/x/a.sock")),
            ("[pool.main]\npassword_file = \"/none\"\n", PathBuf::from(DEFAULT_SOCKET)),
        ];
        for (text, expected) in cases {
            std::fs::write(&file, text).unwrap();
            assert_eq!(socket(&file).unwrap(), expected);
        }
        std::fs::write(&file, "[admin").unwrap();
        assert_eq!(socket(&file).unwrap_err().ended, Ended::Usage);
        assert_eq!(socket(&folder.path().join("none")).unwrap_err().ended, Ended::Usage);
    }

    #[test]
    fn worst_of_several_ends_is_the_greatest() {
        assert!(Ended::Done < Ended::Refused && Ended::Refused < Ended::Failed);
    }
}

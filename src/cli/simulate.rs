//! `bootflip simulate`: a XenAPI server on loopback, with VMs to try things against.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{Answer, Ended, Stop, lab, labxen, print};
use crate::{
    machine::MacAddr,
    secret::hex,
    sim::{
        pool::{
            BootMode, DEFAULT_PASSWORD, DEFAULT_USER, DomainStart, GuestAct, LoadError, Pool, Release, VmSpec,
        },
        server::{Control, ControlPlace, SharedPool, SimOptions, SimServer},
    },
};

/// How long a guest that installs takes for it.
const INSTALL_TIME: Duration = Duration::from_secs(3);
/// How long an installed guest takes until its agent tells an address.
const BOOT_TIME: Duration = Duration::from_secs(1);

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Which release it plays; 8.2 where neither this nor --load says.
    #[arg(long, value_name = "R", value_parser = release)]
    release: Option<Release>,
    /// Serve the pool of this XenServer database (JSON) instead, as the release it came from or as --release says.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["vms", "lab"])]
    load: Option<PathBuf>,
    /// How many VMs it has.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    vms: u16,
    /// Fixes uuids and timing.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Where both members listen, on 127.0.0.1 and 127.0.0.2; 0: any port that is free.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Serve HTTPS, with a certificate per member made now.
    #[arg(long, conflicts_with = "lab")]
    https: bool,
    /// What guests do.
    #[arg(long, value_enum, default_value_t = Guests::Stay, conflicts_with = "lab")]
    guests: Guests,
    /// Open the control API on this port of 127.0.0.1 (0: any that is free), or on a unix socket at this path.
    #[arg(long, value_name = "PORT|PATH", conflicts_with = "lab")]
    control: Option<ControlPlace>,
    /// Boot a QEMU for each VM that starts, with what tests/lab/prepare.sh put there; needs root, takes no seed or port.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seed", "port"])]
    lab: Option<PathBuf>,
    /// Run the domains on a real Xen, with what tests/labxen/prepare.sh put there: one PV VM of an 8.2 pool; needs root.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seed", "port", "vms", "load", "release", "https", "guests", "control", "lab"])]
    xl: Option<PathBuf>,
}

/// What guests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Guests {
    /// They run until somebody stops them.
    Stay,
    /// One that boots from the network installs itself in three seconds and powers off; then PV can boot from its
    /// disk, and tells an address.
    Install,
}

pub(super) fn release(name: &str) -> Result<Release, String> {
    let known = || Release::ALL.map(|release| release.name).join(", ");
    Release::named(name).ok_or_else(|| format!("known releases: {}", known()))
}

pub(super) async fn run(args: &SimulateArgs) -> Answer {
    if let Some(folder) = &args.xl {
        return labxen::simulate(folder.clone()).await;
    }
    if let Some(folder) = &args.lab {
        return lab::simulate(folder.clone(), args.vms, args.release.unwrap_or(Release::V8_2)).await;
    }
    let pool = match &args.load {
        Some(file) => load(file, args)?,
        None => made(args),
    };
    let introduced = Introduced { release: pool.release(), vms: pool.uuids().len() };
    let options = SimOptions {
        addresses: addresses(&pool)?,
        port: args.port,
        device: Some("lo".to_owned()),
        tls: args.https,
        ..SimOptions::default()
    };
    let mut server = SimServer::start(pool, options).map_err(|error| Stop::failed(&error))?;
    let control = match &args.control {
        Some(place) => Some(server.control(place).await.map_err(|error| Stop::failed(&error))?),
        None => None,
    };
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Stop::failed(&error))?;
    print(&introduction(&server, control.as_ref(), &introduced, args));
    loop {
        tokio::select! {
            signalled = tokio::signal::ctrl_c() => {
                return signalled.map(|()| Ended::Done).map_err(|error| Stop::failed(&error));
            }
            _ = terminate.recv() => return Ok(Ended::Done),
            start = server.starts.recv() => match start {
                Some(start) => {
                    print(&format!("domain {} of {} runs: {:?}\n", start.domid, start.name, start.mode));
                    if args.guests == Guests::Install {
                        tokio::spawn(play(server.pool.clone(), start));
                    }
                }
                None => return Ok(Ended::Done),
            },
        }
    }
}

/// A guest that installs itself from the network, or tells its address once it runs from its disk.
async fn play(pool: SharedPool, start: DomainStart) {
    let (vm, domid) = (start.vm_uuid.as_str(), start.domid);
    match &start.mode {
        BootMode::Hvm { order } if order.starts_with('n') => {
            sleep(INSTALL_TIME).await;
            pool.with(|pool, now| {
                // A guest that was stopped in between has installed nothing.
                if pool.guest(now, vm, domid, GuestAct::PowerOff) {
                    pool.set_bootable(vm, Ok(()));
                }
            });
        }
        BootMode::Hvm { .. } => {}
        BootMode::Pv => {
            sleep(BOOT_TIME).await;
            let [low, ..] = domid.to_le_bytes();
            let agent = GuestAct::Agent { ipv4: Ipv4Addr::new(192, 0, 2, low).to_string() };
            // Ignored by the pool where the guest is gone.
            pool.with(|pool, now| pool.guest(now, vm, domid, agent));
        }
    }
}

/// A pool of halted PV VMs.
fn made(args: &SimulateArgs) -> Pool {
    let mut pool = Pool::new(args.seed, args.release.unwrap_or(Release::V8_2));
    for number in 1..=args.vms {
        pool.add_vm(spec(number));
    }
    pool.add_vm(VmSpec::stock_template(TEMPLATE, 8 << 30));
    pool
}

/// The pool's template, for `vm create`.
const TEMPLATE: &str = "Debian Wheezy 7.0 (64-bit)";

/// The pool of a database.
fn load(file: &Path, args: &SimulateArgs) -> Result<Pool, Stop> {
    let usage = |error: &dyn std::fmt::Display| Stop::new(Ended::Usage, error.to_string());
    let name = file.display().to_string();
    let text =
        std::fs::read_to_string(file).map_err(|error| usage(&format!("cannot read {name}: {error}")))?;
    Pool::load(args.seed, &name, &text, args.release).map_err(|error| match &error {
        LoadError::Syntax { source, .. } => usage(&format!("{error}: {source}")),
        LoadError::Content { .. } => usage(&error),
    })
}

/// Where the pool's members listen: as their records say.
fn addresses(pool: &Pool) -> Result<Vec<Ipv4Addr>, Stop> {
    let parsed = pool.addresses().into_iter().map(str::parse).collect::<Result<_, _>>();
    parsed.map_err(|error: std::net::AddrParseError| Stop::failed(&error))
}

fn spec(number: u16) -> VmSpec {
    let [high, low] = number.to_be_bytes();
    VmSpec {
        name: format!("vm-{number:03}"),
        macs: vec![MacAddr::new([0x02, 0x16, 0x3e, 0x00, high, low])],
        tags: vec!["simulated".to_owned()],
        ..VmSpec::default()
    }
}

/// What the introduction tells of the pool.
struct Introduced {
    release: Release,
    vms: usize,
}

fn introduction(
    server: &SimServer,
    control: Option<&Control>,
    pool: &Introduced,
    args: &SimulateArgs,
) -> String {
    let url = server.url();
    let Release { brand, product_version, .. } = pool.release;
    let pins: Vec<String> = server.certificates.iter().map(|certificate| hex(&certificate.sha256)).collect();
    let guests = match args.guests {
        Guests::Stay => "No guest runs in them: a start shows here, and nothing more comes of it.",
        Guests::Install => {
            "A guest that boots from the network installs itself in three seconds and powers off."
        }
    };
    let vms = match &args.load {
        Some(file) => format!("the {} VMs and templates of {}", pool.vms, file.display()),
        None => format!(
            "{} halted PV VMs, vm-001 and on, tagged `simulated`, and the template \"{TEMPLATE}\"",
            args.vms
        ),
    };
    let mut text = format!(
        "\
A simulated pool ({brand} {product_version}) with {vms}.
{guests} Ctrl-C ends it.

  url       {url}
  user      {DEFAULT_USER}
  password  {DEFAULT_PASSWORD}
"
    );
    for (member, pin) in server.members.iter().zip(&pins) {
        text += &format!("  sha256    {pin}  {member}\n");
    }
    if let Some(control) = control {
        text += &format!("  control   {}\n", control.url);
    }
    let trust = match pins.as_slice() {
        [] => "plain_http = true".to_owned(),
        pins => format!("tls = {{ pins = {pins:?} }}"),
    };
    text + &format!(
        "\n\
For a configuration (write the password into simulated.password, mode 0600):

  [pool.simulated]
  url = \"{url}\"
  {trust}
  members = {members:?}
  user = \"{DEFAULT_USER}\"
  password_file = \"simulated.password\"

",
        members = server.members.iter().skip(1).map(ToString::to_string).collect::<Vec<_>>(),
    )
}

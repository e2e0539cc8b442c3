//! `bootflip simulate`: a XenAPI server on loopback, with VMs to try things against.

use std::{net::Ipv4Addr, path::PathBuf};

use clap::Args;

use super::{Answer, Ended, Stop, lab, print};
use crate::{
    machine::MacAddr,
    sim::{
        pool::{DEFAULT_PASSWORD, DEFAULT_USER, Pool, Release, VmSpec},
        server::{SimOptions, SimServer},
    },
};

/// Arguments of `simulate`.
#[derive(Debug, Args)]
pub(super) struct SimulateArgs {
    /// Which release it plays.
    #[arg(long, value_name = "R", default_value = "8.2", value_parser = release)]
    release: Release,
    /// How many VMs it has.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    vms: u16,
    /// Fixes uuids and timing.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Where it listens on 127.0.0.1; 0: any port that is free.
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    port: u16,
    /// Boot a QEMU for each VM that starts, with what tests/lab/prepare.sh put there; needs root, takes no seed or port.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["seed", "port"])]
    lab: Option<PathBuf>,
}

pub(super) fn release(name: &str) -> Result<Release, String> {
    let known = || Release::ALL.map(|release| release.name).join(", ");
    Release::named(name).ok_or_else(|| format!("known releases: {}", known()))
}

pub(super) async fn run(args: &SimulateArgs) -> Answer {
    if let Some(folder) = &args.lab {
        return lab::simulate(folder.clone(), args.vms, args.release).await;
    }
    let mut pool = Pool::new(args.seed, args.release);
    for number in 1..=args.vms {
        pool.add_vm(spec(number));
    }
    let options = SimOptions {
        addresses: vec![Ipv4Addr::LOCALHOST],
        port: args.port,
        device: Some("lo".to_owned()),
        ..SimOptions::default()
    };
    let mut server = SimServer::start(pool, options).map_err(|error| Stop::failed(&error))?;
    print(&introduction(&server.url(), args));
    loop {
        tokio::select! {
            signalled = tokio::signal::ctrl_c() => {
                return signalled.map(|()| Ended::Done).map_err(|error| Stop::failed(&error));
            }
            start = server.starts.recv() => match start {
                Some(start) => print(&format!("domain {} of {} runs: {:?}\n", start.domid, start.name, start.mode)),
                None => return Ok(Ended::Done),
            },
        }
    }
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

fn introduction(url: &str, args: &SimulateArgs) -> String {
    format!(
        "\
A simulated pool ({brand} {version}) with {vms} halted PV VMs, vm-001 and on, tagged `simulated`.
No guest runs in them: a start shows here, and nothing more comes of it. Ctrl-C ends it.

  url       {url}
  user      {DEFAULT_USER}
  password  {DEFAULT_PASSWORD}

For a configuration (write the password into simulated.password, mode 0600):

  [pool.simulated]
  url = \"{url}\"
  plain_http = true
  user = \"{DEFAULT_USER}\"
  password_file = \"simulated.password\"

",
        brand = args.release.brand,
        version = args.release.product_version,
        vms = args.vms,
    )
}

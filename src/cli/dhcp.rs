//! `bootflip dhcp snippet`: what another DHCP server has to be told where ours is off. Reads the configuration only.

use std::{collections::BTreeMap, path::Path};

use clap::{Args, Subcommand, ValueEnum};

use super::{Answer, Ended, Stop, load, print};
use crate::{
    config::{Config, architecture},
    dhcp::snippet::{Dialect, Target, snippet},
};

/// DHCP of others.
#[derive(Debug, Subcommand)]
pub(super) enum DhcpCommand {
    /// The lines for the configuration of ISC dhcpd, Kea or dnsmasq; default: all three.
    Snippet(SnippetArgs),
}

/// Arguments of `dhcp snippet`.
#[derive(Debug, Args)]
pub(super) struct SnippetArgs {
    /// For which server.
    #[arg(id = "kind", value_enum)] // `server` is the option --server of every command
    server: Option<Kind>,
    /// For which interface's loaders, where several are off; default: the first.
    #[arg(long, value_name = "DEVICE")]
    interface: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Isc,
    Kea,
    Dnsmasq,
}

pub(super) fn run(command: &DhcpCommand, config: &Path) -> Answer {
    let DhcpCommand::Snippet(args) = command;
    let config = load(config)?;
    let target = target(&config, args.interface.as_deref())?;
    let dialects = match args.server {
        Some(Kind::Isc) => vec![Dialect::Isc],
        Some(Kind::Kea) => vec![Dialect::Kea],
        Some(Kind::Dnsmasq) => vec![Dialect::Dnsmasq],
        None => vec![Dialect::Isc, Dialect::Kea, Dialect::Dnsmasq],
    };
    let texts: Vec<String> = dialects.into_iter().map(|dialect| snippet(dialect, &target)).collect();
    print(&texts.join("\n"));
    Ok(Ended::Done)
}

fn target(config: &Config, interface: Option<&str>) -> Result<Target, Stop> {
    let usage = |text: String| Stop::new(Ended::Usage, text);
    let http = config.http.as_ref();
    let http = http.ok_or_else(|| usage("there is no [http], so there is nothing to point to".to_owned()))?;
    let off = match interface {
        Some(name) => {
            let found = config.dhcp_off.iter().find(|off| off.interface == name);
            Some(found.ok_or_else(|| usage(format!("no [[dhcp]] of {name} has mode = \"off\"")))?)
        }
        None => config.dhcp_off.first(),
    };
    let mut loaders: BTreeMap<u16, String> = BTreeMap::new();
    if let Some(tftp) = &config.tftp {
        loaders.insert(architecture::BIOS, tftp.loader.clone());
    }
    loaders.extend(off.iter().flat_map(|off| off.loaders.clone()));
    let tftp = config.tftp.as_ref().and_then(|tftp| tftp.listen.first());
    let next_server = *tftp.map_or_else(|| http.listen.ip(), |listen| listen.ip());
    Ok(Target { next_server, boot_url: http.public_url.trim_end_matches('/').to_owned(), loaders })
}

//! The configuration that the lab writes for the server: the lab's, with the guests' console and more patience. Pure.

use std::{net::SocketAddr, path::Path};

use crate::sim::lab::layout::{Served, base, profile_section};

/// The profile. Kernel and initrds by HTTP: TFTP's lock-step costs minutes through an emulated NIC in an emulated Xen.
pub const PROFILE: &str = "mini-xen";

/// Every wait of a job, made long enough for a Xen that two busy processors emulate.
const DEADLINES: &str = "dhcp = \"15m\"\nkernel = \"20m\"\nanswer = \"25m\"\nfirst_stage = \"30m\"\n\
    halt_after_report = \"15m\"\npv_start = \"15m\"\nevidence = \"15m\"\neffect = \"20m\"\nclean_shutdown = \"5m\"\n";

/// The configuration for the pool at `pool`; `www` holds kernel and initrds, `vm` is to be installed.
pub fn config(folder: &Path, www: &Path, pool: SocketAddr, vm: &str) -> String {
    let served = Served { at_once: 1, tftp_engine: "own", deadlines: DEADLINES };
    let machine = format!("\n[machine.{vm}]\nprofile = \"{PROFILE}\"\n");
    base(folder, www, pool, &served) + &profile_section(PROFILE, "http", "hvc0") + &machine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_console_is_xens_and_every_deadline_is_known() {
        let text = config(Path::new("/f"), Path::new("/w"), ([127, 0, 0, 1], 4000).into(), "web");
        assert!(text.contains("args = \"console=hvc0 panic=5 url={{ answer_url }}"), "{text}");
        assert!(text.contains("\n[deadlines]\npoll = \"1s\"\ndhcp = \"15m\"\n"), "{text}");
        assert!(text.ends_with("[machine.web]\nprofile = \"mini-xen\"\n"));
        let parsed: toml::Table = text.parse().expect("TOML");
        assert_eq!(parsed["deadlines"].as_table().expect("a table").len(), 10);
    }
}

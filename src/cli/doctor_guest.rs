//! `bootflip doctor-guest`: prints the script that readies a guest for pygrub. Needs no server, pool or configuration.

use super::{Answer, Ended, print};
use crate::boot::render::PV_READY_SCRIPT;

/// How to run it, behind the script's first line.
const HOW: &str = "\
# Printed by `bootflip doctor-guest`. To look, changing nothing:
#   bootflip doctor-guest | ssh root@GUEST sh -s -- --check --xen VERSION
# To mend, so that kernel upgrades find the script again:
#   bootflip doctor-guest | ssh root@GUEST 'cat >/usr/local/sbin/bootflip-pv-ready &&
#       sh /usr/local/sbin/bootflip-pv-ready --xen VERSION'
# VERSION is the oldest Xen of the pool (xe host-list params=software-version), such as 4.13.
";

pub(super) fn run() -> Answer {
    print(&script());
    Ok(Ended::Done)
}

fn script() -> String {
    match PV_READY_SCRIPT.split_once('\n') {
        Some((first, rest)) => format!("{first}\n{HOW}{rest}"),
        None => PV_READY_SCRIPT.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_stays_whole_behind_its_first_line() {
        let script = script();
        assert!(script.starts_with("#!/bin/sh\n# Printed by `bootflip doctor-guest`"), "{script}");
        assert_eq!(script.replace(HOW, ""), PV_READY_SCRIPT);
    }
}

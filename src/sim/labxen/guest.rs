//! What `xl create` is given for a guest, from the VM's record. Pure text.
//!
//! An HVM guest has no screen and no emulated serial port: in an emulated computer each byte of either is a trap, and
//! the firmware's text alone would take a minute. Both kinds speak on Xen's own console (hvc0). A domain that ends in
//! any way is destroyed: what comes next is the pool's to say.

use std::fmt::Write;

use crate::{machine::MacAddr, sim::pool::BootMode};

/// The bridge in dom0 that the guests' NICs are plugged into.
pub const BRIDGE: &str = "xenbr0";
const MIB: u64 = 1 << 20;

/// A guest to create.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// The domain's name.
    pub name: &'a str,
    /// The VM's uuid, which is the domain's too, as xapi does it.
    pub uuid: &'a str,
    /// How it boots.
    pub mode: &'a BootMode,
    /// Bytes.
    pub memory: u64,
    /// The NICs, device 0 first.
    pub macs: &'a [MacAddr],
    /// Block devices of dom0, in VBD order.
    pub disks: &'a [String],
    /// `PV_args`: xapi, too, adds it to what pygrub printed.
    pub pv_args: &'a str,
}

/// The configuration in xl.cfg(5)'s words.
pub fn config(guest: &Guest<'_>) -> String {
    let mut text = format!(
        "name = {}\nuuid = {}\nvcpus = 1\nmemory = {}\n",
        quoted(guest.name),
        quoted(guest.uuid),
        guest.memory / MIB
    );
    let model = match guest.mode {
        BootMode::Pv => {
            // -q: as xapi calls it; without it pygrub draws a menu.
            let args = quoted(guest.pv_args);
            let _ = write!(
                text,
                "type = \"pv\"\nbootloader = \"pygrub\"\nbootloader_args = [\"-q\"]\nextra = {args}\n"
            );
            ""
        }
        BootMode::Hvm { order } => {
            let order = quoted(order);
            let _ = write!(
                text,
                "type = \"hvm\"\nfirmware = \"bios\"\nboot = {order}\nvga = \"none\"\nnographic = 1\nvnc = 0\n\
                 tsc_mode = \"native\"\n"
            );
            ",model=e1000"
        }
    };
    let disks =
        guest.disks.iter().zip('a'..='p').map(|(device, letter)| {
            quoted(&format!("format=raw,vdev=xvd{letter},access=rw,target={device}"))
        });
    let nics = guest.macs.iter().map(|mac| quoted(&format!("mac={mac},bridge={BRIDGE}{model}")));
    let list = |items: Vec<String>| items.join(", ");
    let _ = write!(text, "disk = [{}]\nvif = [{}]\n", list(disks.collect()), list(nics.collect()));
    text + "on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n"
}

/// A value that no name or argument can break out of: xl's own escapes differ between its releases.
fn quoted(value: &str) -> String {
    let plain = |letter: char| {
        if matches!(letter, '"' | '\'' | '\\') || letter.is_control() { '_' } else { letter }
    };
    format!("\"{}\"", value.chars().map(plain).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(mode: &BootMode) -> String {
        config(&Guest {
            name: "web 1",
            uuid: "6d0a3c1e-d002-4c17-8e00-000000000001",
            mode,
            memory: 384 << 20,
            macs: &[MacAddr::new([2, 22, 62, 0x77, 0, 1])],
            disks: &["/dev/vdb".to_owned(), "/dev/vdc".to_owned()],
            pv_args: "console=hvc0",
        })
    }

    const HEAD: &str =
        "name = \"web 1\"\nuuid = \"6d0a3c1e-d002-4c17-8e00-000000000001\"\nvcpus = 1\nmemory = 384\n";
    const DISKS: &str = "disk = [\"format=raw,vdev=xvda,access=rw,target=/dev/vdb\", \
        \"format=raw,vdev=xvdb,access=rw,target=/dev/vdc\"]\n";
    const TAIL: &str = "on_poweroff = \"destroy\"\non_reboot = \"destroy\"\non_crash = \"destroy\"\n";

    #[test]
    fn a_pv_guest_boots_by_the_hosts_pygrub() {
        let expected = format!(
            "{HEAD}type = \"pv\"\nbootloader = \"pygrub\"\nbootloader_args = [\"-q\"]\nextra = \"console=hvc0\"\n\
             {DISKS}vif = [\"mac=02:16:3e:77:00:01,bridge=xenbr0\"]\n{TAIL}"
        );
        assert_eq!(text(&BootMode::Pv), expected);
    }

    #[test]
    fn an_hvm_guest_boots_by_its_order_with_an_emulated_nic() {
        let expected = format!(
            "{HEAD}type = \"hvm\"\nfirmware = \"bios\"\nboot = \"n\"\nvga = \"none\"\nnographic = 1\nvnc = 0\n\
             tsc_mode = \"native\"\n\
             {DISKS}vif = [\"mac=02:16:3e:77:00:01,bridge=xenbr0,model=e1000\"]\n{TAIL}"
        );
        assert_eq!(text(&BootMode::Hvm { order: "n".to_owned() }), expected);
    }

    #[test]
    fn no_value_ends_its_quotes() {
        for value in ["a\" b", "a' b", "a\\ b", "a\nb"] {
            let quoted = quoted(value);
            assert!(!quoted[1..quoted.len() - 1].contains(['"', '\'', '\\', '\n']), "{quoted}");
        }
    }
}

//! The names under which PXELINUX and its kin (U-Boot, iPXE's `pxe` images) look for their configuration. Pure.
//!
//! The order is fixed: the machine's UUID, `01-` and its MAC, its IPv4 address in hexadecimal, the same with a digit
//! less each time, `default`. All of them are one answer, rendered behind the boot gate. Invariant: a name opens
//! nothing that the MAC would not: what has neither UUID nor MAC in it is answered by the address that asks.

use std::net::IpAddr;

use super::BootTable;
use crate::machine::MacAddr;

/// ARP type of Ethernet, before the MAC in a file's name.
const ETHERNET: &str = "01-";
/// Digits of an IPv4 address in hexadecimal.
const ADDRESS_DIGITS: usize = 8;

/// A file's name in `pxelinux.cfg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigName {
    /// `b8945908-d6a6-41a9-611d-74a6ab80b83d`, in lower case.
    Uuid(String),
    /// `01-88-99-aa-bb-cc-dd`.
    Mac(MacAddr),
    /// `C0A8025B`, or the first digits of it; in upper case.
    Address(String),
    /// `default`.
    Default,
}

impl ConfigName {
    /// Reads a name in any case; `None`: PXELINUX looks for no such file.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(mac) = name.strip_prefix(ETHERNET) {
            return mac.parse().ok().map(Self::Mac);
        }
        if name.eq_ignore_ascii_case("default") {
            return Some(Self::Default);
        }
        let hexadecimal = name.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hexadecimal && (1..=ADDRESS_DIGITS).contains(&name.len()) {
            return Some(Self::Address(name.to_ascii_uppercase()));
        }
        uuid::Uuid::try_parse(name).ok().filter(|_| name.len() == 36).map(|uuid| Self::Uuid(uuid.to_string()))
    }
}

impl BootTable {
    /// The known machine that a configuration of this name is for, asked by `peer`. Of a VM's machines the armed one.
    pub fn configured(&self, name: &ConfigName, peer: IpAddr) -> Option<MacAddr> {
        match name {
            ConfigName::Mac(mac) => self.machine(*mac).map(|machine| machine.mac),
            ConfigName::Uuid(uuid) => {
                // SMBIOS 2.6 stores the first three fields with their bytes reversed, and not all who read it know.
                let swapped = swapped(uuid);
                let is = |of: &str| of.eq_ignore_ascii_case(uuid) || Some(of) == swapped.as_deref();
                let machines = self.machines.values().filter(|machine| is(&machine.vm_uuid));
                machines
                    .max_by_key(|machine| (machine.armed.is_some(), machine.mac))
                    .map(|machine| machine.mac)
            }
            ConfigName::Address(digits) => {
                let IpAddr::V4(address) = peer else { return None };
                let own = format!("{:08X}", address.to_bits());
                self.peers.get(&peer).filter(|_| own.starts_with(digits.as_str())).copied()
            }
            ConfigName::Default => self.peers.get(&peer).copied(),
        }
    }
}

fn swapped(uuid: &str) -> Option<String> {
    let uuid = uuid::Uuid::try_parse(uuid).ok()?;
    Some(uuid::Uuid::from_bytes_le(*uuid.as_bytes()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::Machine;

    const UUID: &str = "b8945908-d6a6-41a9-611d-74a6ab80b83d";

    fn machine(last: u8, vm_uuid: &str) -> Machine {
        Machine { mac: mac(last), name: "web".into(), vm_uuid: vm_uuid.into(), armed: None }
    }

    const fn mac(last: u8) -> MacAddr {
        MacAddr::new([0x02, 0, 0, 0, 0, last])
    }

    /// Quirk 28, the order of https://wiki.syslinux.org/wiki/index.php?title=PXELINUX#Configuration.
    #[test]
    fn pxelinux_finds_its_configuration_under_each_name_of_its_search() {
        let mut table = BootTable::default();
        table.publish(machine(1, UUID));
        table.publish(machine(2, "11111111-1111-1111-1111-111111111111"));
        let peer = IpAddr::from([192, 168, 2, 91]);
        table.met(mac(1), peer);
        let found = |name: &str| table.configured(&ConfigName::parse(name)?, peer);
        for name in [
            UUID,
            &UUID.to_uppercase(),
            "085994b8-a6d6-a941-611d-74a6ab80b83d", // as a reader of raw SMBIOS bytes spells it
            "01-02-00-00-00-00-01",
            "C0A8025B",
            "c0a8025b",
            "C0A8025",
            "C0A802",
            "C0A80",
            "C0A8",
            "C0A",
            "C0",
            "C",
            "default",
        ] {
            assert_eq!(found(name), Some(mac(1)), "{name}");
        }
        for name in [
            "01-02-00-00-00-00-03",                 // no machine of ours
            "22222222-2222-2222-2222-222222222222", // no VM of ours
            "C0A8025C",                             // another's address
            "0A",
        ] {
            assert_eq!(found(name), None, "{name}");
        }
        let stranger = IpAddr::from([192, 168, 2, 92]);
        for name in ["C0A8025C", "C", "default"] {
            assert_eq!(table.configured(&ConfigName::parse(name).unwrap(), stranger), None, "{name}");
        }
    }

    #[test]
    fn other_names_are_none_that_pxelinux_looks_for() {
        for name in [
            "",
            "01-",
            "01-02-00-00-00-00",
            "02-02-00-00-00-00-01",
            "C0A8025B0",
            "defaults",
            "x",
            "{b8945908}",
        ] {
            assert_eq!(ConfigName::parse(name), None, "{name}");
        }
        assert_eq!(ConfigName::parse(&UUID.replace('-', "")), None);
    }
}

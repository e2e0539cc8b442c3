//! The boot gate: the one function that says whether a MAC may netboot now, and into what. Pure.
//!
//! DHCP, TFTP, every HTTP boot route and every rendered file ask [`BootTable::answer`]; nothing else decides
//! (invariant I13). The table is in memory and is fed by the executor: a packet never waits for the store or
//! for a pool. `render` makes the files, `sink` is how the shells tell what they saw.

pub mod going;
pub mod manifest;
pub mod pxelinux;
pub mod render;
pub mod root;
pub mod sink;
#[cfg(test)]
mod tests;
pub mod vouch;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, RwLock},
};

use self::{root::RelativePath, sink::Sign};
use crate::{
    config::BootFiles,
    machine::MacAddr,
    secret::{Token, TokenHash},
    xen::version::XenVersion,
};

/// What the boot services know of one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The NIC.
    pub mac: MacAddr,
    /// The VM's name label.
    pub name: String,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// The attempt whose gate is open.
    pub armed: Option<Arc<Armed>>,
}

/// An armed attempt: what it may fetch, and with which tokens.
#[derive(Debug)]
pub struct Armed {
    /// The job's id.
    pub job: String,
    /// Its attempt, from 1.
    pub attempt: u32,
    /// The VM's name label.
    pub vm_name: String,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// The NIC that boots.
    pub mac: MacAddr,
    /// Opens boot files and the answer file.
    pub render: Token,
    /// Opens reports.
    pub report: Token,
    /// Opens the `booted` report; written into the target by the answer file.
    pub booted: Token,
    /// What to boot.
    pub files: BootFiles,
    /// The profile's name.
    pub profile: String,
    /// Template variables, merged (global < profile < machine).
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The disk to install to, as VBD.userdevice and size in bytes.
    pub disk: Option<(String, u64)>,
    /// The oldest Xen of the hosts that may start what is installed; `None`: not known.
    pub xen: Option<XenVersion>,
    /// How far the attempt is.
    pub phase: ArmPhase,
}

impl Armed {
    /// What a file is to this attempt; `None`: its profile does not name it, and it is not given out.
    pub fn file_sign(&self, path: &RelativePath) -> Option<Sign> {
        let names = |name: &str| RelativePath::parse(name).as_ref() == Some(path);
        if names(&self.files.kernel) {
            return Some(Sign::Kernel);
        }
        // What is fetched beside kernel and initrd comes after them, and is a sign of no more.
        self.files.initrd.iter().chain(&self.files.files).any(|file| names(file)).then_some(Sign::Initrd)
    }
}

/// How far an armed attempt is (design: Boot gate).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ArmPhase {
    /// Loader and script may be asked for, again and again.
    Booting,
    /// The answer file was fetched or a report came: a new netboot is refused, the answer file may still be repeated.
    Installing,
}

/// A question to the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask<'a> {
    /// A PXE client's DHCP packet, or any boot file named by MAC: loader, script, PXELINUX configuration.
    Netboot {
        /// Who asks.
        mac: MacAddr,
    },
    /// A kernel or initrd by the render token.
    File {
        /// As presented.
        token: &'a str,
    },
    /// The answer file by the render token.
    AnswerFile {
        /// As presented.
        token: &'a str,
    },
}

/// The gate's answer.
#[derive(Debug, Clone)]
pub enum Answer {
    /// Nobody we know: proxy DHCP is silent, HTTP and TFTP give their one 404.
    Unknown,
    /// A machine that we know and that may not netboot now: local boot at once.
    Refused(Machine),
    /// Boot this.
    Boot(Arc<Armed>),
}

/// The machines and open attempts. Behind [`Gate`] for the shells.
#[derive(Debug, Default)]
pub struct BootTable {
    machines: HashMap<MacAddr, Machine>,
    renders: HashMap<TokenHash, MacAddr>,
    /// The last address of each known machine, and back: TFTP knows only addresses.
    addresses: HashMap<MacAddr, IpAddr>,
    peers: HashMap<IpAddr, MacAddr>,
}

impl BootTable {
    /// Adds a machine, or replaces what was known of it. `armed: None` closes its gate.
    pub fn publish(&mut self, machine: Machine) {
        self.close(machine.mac);
        if let Some(armed) = &machine.armed {
            self.renders.insert(armed.render.hash(), machine.mac);
        }
        self.machines.insert(machine.mac, machine);
    }

    /// Adds a machine that a pool told of; one that is armed stays as it is.
    pub fn know(&mut self, machine: Machine) {
        match self.machines.get(&machine.mac) {
            Some(known) if known.armed.is_some() => {}
            Some(_) | None => self.publish(Machine { armed: None, ..machine }),
        }
    }

    /// Removes a machine that its pool no longer has; one that is armed stays as it is.
    pub fn forget_unarmed(&mut self, mac: MacAddr) {
        if self.machines.get(&mac).is_some_and(|machine| machine.armed.is_none()) {
            self.forget(mac);
        }
    }

    /// Removes a machine: it is a stranger from now on.
    pub fn forget(&mut self, mac: MacAddr) {
        self.close(mac);
        if let Some(address) = self.addresses.remove(&mac) {
            self.peers.remove(&address);
        }
    }

    /// Notes the address of a known machine; what it had before is no longer its own.
    pub fn met(&mut self, mac: MacAddr, address: IpAddr) {
        if !self.machines.contains_key(&mac) {
            return;
        }
        if let Some(previous) = self.addresses.insert(mac, address) {
            self.peers.remove(&previous);
        }
        if let Some(other) = self.peers.insert(address, mac).filter(|other| *other != mac) {
            self.addresses.remove(&other);
        }
    }

    fn close(&mut self, mac: MacAddr) {
        if let Some(armed) = self.machines.remove(&mac).and_then(|machine| machine.armed) {
            self.renders.remove(&armed.render.hash());
        }
    }

    /// The machine with this MAC.
    pub fn machine(&self, mac: MacAddr) -> Option<&Machine> {
        self.machines.get(&mac)
    }

    /// All machines, each with the address that it was last heard from, in no order.
    pub fn machines(&self) -> impl Iterator<Item = (&Machine, Option<IpAddr>)> {
        self.machines.values().map(|machine| (machine, self.addresses.get(&machine.mac).copied()))
    }

    /// How many machines are known.
    pub fn len(&self) -> usize {
        self.machines.len()
    }

    /// No machine is known.
    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }

    /// The decision.
    pub fn answer(&self, ask: Ask<'_>) -> Answer {
        match ask {
            Ask::Netboot { mac } => match self.machines.get(&mac) {
                None => Answer::Unknown,
                Some(machine) => match &machine.armed {
                    Some(armed) if armed.phase == ArmPhase::Booting => Answer::Boot(Arc::clone(armed)),
                    Some(_) | None => Answer::Refused(machine.clone()),
                },
            },
            Ask::File { token } | Ask::AnswerFile { token } => {
                let machine = self.renders.get(&TokenHash::of(token)).and_then(|mac| self.machines.get(mac));
                match machine.and_then(|machine| machine.armed.as_ref()) {
                    Some(armed) => Answer::Boot(Arc::clone(armed)),
                    None => Answer::Unknown,
                }
            }
        }
    }
}

/// The table as the shells share it: publishing returns after every later answer sees it (the acknowledgement of
/// arm and disarm).
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<RwLock<BootTable>>);

impl Gate {
    /// The decision (see [`BootTable::answer`]).
    pub fn answer(&self, ask: Ask<'_>) -> Answer {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).answer(ask)
    }

    /// Whether a MAC is known.
    pub fn knows(&self, mac: MacAddr) -> bool {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).machine(mac).is_some()
    }

    /// Notes the address of a known machine. For reading signs only: an address opens nothing.
    pub fn met(&self, mac: MacAddr, address: IpAddr) {
        if self.who(address) != Some(mac) {
            self.update(|table| table.met(mac, address));
        }
    }

    /// The known machine that last had this address.
    pub fn who(&self, address: IpAddr) -> Option<MacAddr> {
        let table = self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        table.peers.get(&address).copied()
    }

    /// The known machine that a PXELINUX configuration is for (see [`BootTable::configured`]).
    pub fn configured(&self, name: &pxelinux::ConfigName, peer: IpAddr) -> Option<MacAddr> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).configured(name, peer)
    }

    /// Changes the table.
    pub fn update(&self, change: impl FnOnce(&mut BootTable)) {
        change(&mut self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner));
    }
}

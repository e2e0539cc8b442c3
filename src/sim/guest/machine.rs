//! One guest from power-on: firmware, boot loader, script, then what was booted. Pure; see the module above.

use std::collections::BTreeMap;

use super::{
    Event, FetchError, Fetched, Firmware, GuestPlan, Input, InstalledSystem, Output,
    dhcp::{Client, Lease, Personality, Step as Dhcp},
    installer::Installer,
    script::{Boot, Script, Step},
    system::System,
};
use crate::{clock::Timestamp, machine::MacAddr};

/// A simulated guest.
#[derive(Debug, Clone)]
pub struct Guest {
    mac: MacAddr,
    plan: GuestPlan,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    Off { disk: Option<InstalledSystem> },
    Post(Timestamp),
    Dhcp(Client, Personality),
    Loader,
    BootFile { url: String, lease: Lease },
    Script(Box<Script>),
    Pause(Box<Script>, Timestamp),
    Installer(Box<Installer>),
    System(Box<System>),
    Stopped,
}

impl Guest {
    /// A domain that is built as HVM and boots from the network only.
    pub const fn netboot(mac: MacAddr, plan: GuestPlan) -> Self {
        Self { mac, plan, state: State::Off { disk: None } }
    }

    /// A domain that is built as PV from what is on its disk.
    pub const fn installed(mac: MacAddr, plan: GuestPlan, disk: InstalledSystem) -> Self {
        Self { mac, plan, state: State::Off { disk: Some(disk) } }
    }

    /// Goes on. An input that does not fit what the guest is at changes nothing.
    pub fn handle(&mut self, input: Input<'_>, now: Timestamp) -> Vec<Output> {
        let mut out = vec![];
        match (&mut self.state, input) {
            (State::Off { disk }, Input::PowerOn) => {
                let disk = disk.take();
                self.power_on(disk, now, &mut out);
            }
            (State::Post(due), Input::Timer) if *due <= now => {
                let personality = match self.plan.firmware {
                    Firmware::Ipxe => Personality::Ipxe,
                    Firmware::PxeRom => Personality::PxeRom,
                };
                self.discover(personality, now, &mut out);
            }
            (State::Dhcp(client, personality), Input::Timer) => {
                let (personality, step) = (*personality, client.timer(now));
                self.dhcp(personality, step, &mut out);
            }
            (State::Dhcp(client, personality), Input::Dhcp(bytes)) => {
                let (personality, step) = (*personality, client.handle(bytes, now));
                self.dhcp(personality, step, &mut out);
            }
            (State::Loader, Input::Fetched(result)) => self.loader(result, now, &mut out),
            (State::BootFile { url, lease }, Input::Fetched(result)) => {
                let (url, lease) = (url.clone(), lease.clone());
                self.boot_file(&url, &lease, result, now, &mut out);
            }
            (State::Script(script), Input::Fetched(result)) => {
                let step = script.fetched(result.map_err(|error| error.to_string()));
                self.script(step, now, &mut out);
            }
            (State::Pause(script, due), Input::Timer) if *due <= now => {
                let mut script = script.clone();
                let step = script.slept();
                self.state = State::Script(script);
                self.script(step, now, &mut out);
            }
            (State::Installer(installer), input) => installer.handle(input, now, &mut out),
            (State::System(system), input) => system.handle(input, now, &mut out),
            (_, Input::PowerOn | Input::Dhcp(_) | Input::Fetched(_) | Input::Timer) => {}
        }
        out
    }

    /// Firmware asks once for its first file, or is about to: without an answer it stays without anything to boot.
    /// What comes later (script, installer, system) repeats its requests.
    pub const fn asks_once(&self) -> bool {
        match &self.state {
            State::Dhcp(client, _) => client.awaits_ack(),
            State::Loader | State::BootFile { .. } => true,
            State::Off { .. }
            | State::Post(_)
            | State::Script(_)
            | State::Pause(..)
            | State::Installer(_)
            | State::System(_)
            | State::Stopped => false,
        }
    }

    fn power_on(&mut self, disk: Option<InstalledSystem>, now: Timestamp, out: &mut Vec<Output>) {
        self.state = match disk {
            Some(disk) => State::System(Box::new(System::start(self.mac, &self.plan, disk, now, out))),
            None => {
                let due = now + self.plan.pace.post;
                out.push(Output::Timer(due));
                State::Post(due)
            }
        };
    }

    fn discover(&mut self, personality: Personality, now: Timestamp, out: &mut Vec<Output>) {
        out.push(Output::Event(Event::Discovering(personality)));
        let mut client = Client::new(personality, self.mac, self.plan.seed, self.plan.pace.dhcp_wait);
        let step = client.start(now);
        self.state = State::Dhcp(client, personality);
        self.dhcp(personality, step, out);
    }

    fn dhcp(&mut self, personality: Personality, step: Dhcp, out: &mut Vec<Output>) {
        match step {
            Dhcp::Wait => {}
            Dhcp::Send(packet, due) => out.extend([Output::Broadcast(packet), Output::Timer(due)]),
            Dhcp::GaveUp => self.stop("no DHCP offer".to_owned(), out),
            Dhcp::Bound(lease) => {
                out.extend([Output::Bind(lease.address), Output::Event(Event::Leased(lease.address))]);
                match boot_url(personality, &lease) {
                    Some(url) => {
                        out.push(Output::Get(url.clone()));
                        self.state = match personality {
                            Personality::PxeRom => State::Loader,
                            Personality::Ipxe | Personality::Linux => State::BootFile { url, lease },
                        };
                    }
                    None => self.stop("nothing to boot in the lease".to_owned(), out),
                }
            }
        }
    }

    /// The ROM's TFTP transfer ended: what it loaded is an iPXE, which asks DHCP anew.
    fn loader(&mut self, result: Result<Fetched, FetchError>, now: Timestamp, out: &mut Vec<Output>) {
        match result {
            Ok(loader) if loader.length > 0 => self.discover(Personality::Ipxe, now, out),
            Ok(_) => self.stop("the loader is empty".to_owned(), out),
            Err(error) => self.stop(format!("loader: {error}"), out),
        }
    }

    fn boot_file(
        &mut self,
        url: &str,
        lease: &Lease,
        result: Result<Fetched, FetchError>,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) {
        let fetched = match result {
            Ok(fetched) if fetched.status == 200 => fetched,
            Ok(fetched) => return self.stop(format!("{url}: HTTP status {}", fetched.status), out),
            Err(error) => return self.stop(format!("{url}: {error}"), out),
        };
        match Script::new(url, &fetched.body, variables(self.mac, lease)) {
            Some(mut script) => {
                let step = script.run();
                self.state = State::Script(Box::new(script));
                self.script(step, now, out);
            }
            None => self.stop(format!("{url}: not an executable image"), out),
        }
    }

    fn script(&mut self, step: Step, now: Timestamp, out: &mut Vec<Output>) {
        match step {
            Step::Fetch(url) => out.push(Output::Get(url)),
            Step::Sleep(span) => {
                let due = now + span;
                if let State::Script(script) = std::mem::replace(&mut self.state, State::Stopped) {
                    self.state = State::Pause(script, due);
                }
                out.push(Output::Timer(due));
            }
            Step::Boot(boot) => self.boot(&boot, now, out),
            Step::Exit => self.stop("the script left to the next boot device".to_owned(), out),
            Step::Reboot => {
                self.state = State::Stopped;
                out.push(Output::Reboot);
            }
            Step::Failed(reason) => self.stop(reason, out),
        }
    }

    fn boot(&mut self, boot: &Boot, now: Timestamp, out: &mut Vec<Output>) {
        if boot.initrds.iter().sum::<u64>() == 0 {
            return self.stop("kernel panic: unable to mount root fs (no initrd)".to_owned(), out);
        }
        match Installer::start(self.mac, &self.plan, &boot.arguments, now, out) {
            Ok(installer) => self.state = State::Installer(Box::new(installer)),
            Err(reason) => self.stop(reason, out),
        }
    }

    fn stop(&mut self, reason: String, out: &mut Vec<Output>) {
        self.state = State::Stopped;
        out.push(Output::Event(Event::NoBootableDevice(reason)));
    }
}

/// What firmware fetches after its lease: iPXE takes a URL as it is; a bare name is a TFTP file of `next_server`.
fn boot_url(personality: Personality, lease: &Lease) -> Option<String> {
    let (file, by_tftp) = (&lease.boot_file, !lease.next_server.is_unspecified());
    if file.is_empty() {
        return None;
    }
    match personality {
        Personality::Ipxe if file.contains("://") => Some(file.clone()),
        Personality::Ipxe | Personality::PxeRom if by_tftp => {
            Some(format!("tftp://{}/{}", lease.next_server, file.trim_start_matches('/')))
        }
        Personality::Ipxe | Personality::PxeRom | Personality::Linux => None,
    }
}

/// The settings that scripts read.
fn variables(mac: MacAddr, lease: &Lease) -> BTreeMap<String, String> {
    [
        ("mac", mac.to_string()),
        ("ip", lease.address.to_string()),
        ("next-server", lease.next_server.to_string()),
        ("filename", lease.boot_file.clone()),
        ("hostname", lease.hostname.clone()),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect()
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;

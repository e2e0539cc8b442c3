use std::{net::Ipv4Addr, time::Duration};

use super::*;
use crate::sim::guest::{Mishap, Pace, Stage};

const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 0x0a]);
const SCRIPT: &str = "#!ipxe\nimgfree\nkernel /f/tok/vmlinuz bootflip.answer=http://127.0.0.1:8/a/tok/mini || exit\n\
                      initrd /f/tok/initrd || exit\nboot || exit\n";
const ANSWER: &str =
    "REPORT_URL='http://127.0.0.1:8/r/rep'\nBOOTED_URL='http://127.0.0.1:8/r/boo/booted'\nHOSTNAME='web1'\n";

/// Everything around one guest, in virtual time.
struct World {
    now: Timestamp,
    timer: Option<Timestamp>,
    script: &'static str,
    answer: &'static str,
    /// This many requests whose URL has `broken` in it get no connection.
    broken: (&'static str, usize),
    /// This many DISCOVERs are not heard.
    deaf: usize,
    log: Vec<String>,
    disk: Option<InstalledSystem>,
}

impl World {
    fn new() -> Self {
        let now = Timestamp::from_millis(1_000_000);
        let (log, disk) = (vec![], None);
        Self { now, timer: None, script: SCRIPT, answer: ANSWER, broken: ("", 0), deaf: 0, log, disk }
    }

    /// Runs until nothing is under way, and returns what happened, one word or two each.
    fn run(mut self, mut guest: Guest) -> (String, Option<InstalledSystem>) {
        let mut outputs = guest.handle(Input::PowerOn, self.now);
        for _ in 0..2000 {
            let mut next = None;
            for output in outputs {
                next = self.carry_out(output).or(next);
            }
            outputs = match next {
                Some(Reaction::Dhcp(bytes)) => guest.handle(Input::Dhcp(&bytes), self.now),
                Some(Reaction::Fetched(result)) => guest.handle(Input::Fetched(result), self.now),
                None => match self.timer.take() {
                    Some(due) => {
                        self.now = self.now.max(due);
                        guest.handle(Input::Timer, self.now)
                    }
                    None => return (self.log.join("; "), self.disk),
                },
            };
        }
        panic!("the guest never rests: {}", self.log.join("; "));
    }

    fn carry_out(&mut self, output: Output) -> Option<Reaction> {
        match output {
            Output::Broadcast(packet) => self.dhcp(&packet).map(Reaction::Dhcp),
            Output::Get(url) => Some(Reaction::Fetched(self.fetch(url))),
            Output::Post { url, body } => {
                Some(Reaction::Fetched(self.fetch(format!("{url} {}", body.trim()))))
            }
            Output::Timer(due) => {
                self.timer = Some(due);
                None
            }
            Output::Installed(system) => {
                self.log.push("installed".to_owned());
                self.disk = Some(system);
                None
            }
            Output::Erased => {
                self.log.push("erased".to_owned());
                None
            }
            Output::PowerOff | Output::Reboot => {
                self.log.push(format!("{output:?}"));
                None
            }
            Output::Event(Event::NoBootableDevice(reason)) => {
                self.log.push(format!("no bootable device: {reason}"));
                None
            }
            Output::Event(Event::InstallFailed(reason)) => {
                self.log.push(format!("install failed: {reason}"));
                None
            }
            Output::Bind(_) | Output::Event(_) => None,
        }
    }

    fn dhcp(&mut self, packet: &[u8]) -> Option<Vec<u8>> {
        let (kind, is_ipxe) = (packet[242], packet.windows(4).any(|four| four == b"iPXE"));
        if kind == 1 && self.deaf > 0 {
            self.deaf -= 1;
            self.log.push("unheard".to_owned());
            return None;
        }
        let mut reply = packet[..240].to_vec();
        reply[0] = 2;
        reply[16..20].copy_from_slice(&Ipv4Addr::new(127, 64, 0, 9).octets());
        reply[20..24].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
        let file = if is_ipxe { "http://127.0.0.1:8/b/mac" } else { "undionly.kpxe" };
        reply[108..108 + file.len()].copy_from_slice(file.as_bytes());
        reply.extend([53, 1, if kind == 1 { 2 } else { 5 }, 54, 4, 127, 0, 0, 1, 255]);
        if kind == 3 {
            self.log.push("leased".to_owned());
        }
        Some(reply)
    }

    fn fetch(&mut self, what: String) -> Result<Fetched, FetchError> {
        if what.contains(self.broken.0) && self.broken.1 > 0 {
            self.broken.1 -= 1;
            self.log.push("unreachable".to_owned());
            return Err(FetchError::Unreachable(what));
        }
        self.log.push(what.replace("http://127.0.0.1:8", ""));
        let body = match what.as_str() {
            "http://127.0.0.1:8/b/mac" => self.script,
            "http://127.0.0.1:8/a/tok/mini" => self.answer,
            _ => "some bytes",
        };
        Ok(Fetched {
            status: 200,
            body: body.as_bytes().to_vec(),
            length: u64::try_from(body.len()).unwrap(),
        })
    }
}

enum Reaction {
    Dhcp(Vec<u8>),
    Fetched(Result<Fetched, FetchError>),
}

fn plan(mishap: Mishap) -> GuestPlan {
    let pace = Pace::hurried(1, Duration::from_secs(10));
    GuestPlan { firmware: Firmware::Ipxe, mishap, pace, seed: 1 }
}

fn netboot(mishap: Mishap) -> (String, Option<InstalledSystem>) {
    World::new().run(Guest::netboot(MAC, plan(mishap)))
}

const BOOTED: &str = "leased; /b/mac; /f/tok/vmlinuz; /f/tok/initrd; ";
const STARTED: &str = "leased; /a/tok/mini; /r/rep/started percent=5; ";
const WORKED: &str = "erased; /r/rep/partitioned percent=20; /r/rep/base percent=45; /r/rep/packages percent=75; \
                      /r/rep/late percent=90; installed; ";

#[test]
fn installation_goes_from_discover_to_power_off() {
    let (log, disk) = netboot(Mishap::None);
    assert_eq!(log, format!("{BOOTED}{STARTED}{WORKED}/r/rep/done percent=100; PowerOff"));
    assert_eq!(disk.unwrap().booted_url, "http://127.0.0.1:8/r/boo/booted");
}

#[test]
fn plain_pxe_rom_loads_ipxe_first() {
    let guest = Guest::netboot(MAC, GuestPlan { firmware: Firmware::PxeRom, ..plan(Mishap::None) });
    let (log, disk) = World::new().run(guest);
    assert!(
        log.starts_with("leased; tftp://127.0.0.1/undionly.kpxe; leased; /b/mac; /f/tok/vmlinuz"),
        "{log}"
    );
    assert!(disk.is_some());
}

#[test]
fn each_mishap_ends_as_it_says() {
    for (mishap, expected, installed) in [
        (Mishap::DieAtOnce, format!("{BOOTED}PowerOff"), false),
        (Mishap::RebootWithoutReport, format!("{BOOTED}{STARTED}{WORKED}Reboot"), true),
        (Mishap::PowerOffWithoutReport, format!("{BOOTED}{STARTED}{WORKED}PowerOff"), true),
        (
            Mishap::HangAt(Stage::Partitioned),
            format!("{BOOTED}{STARTED}").trim_end_matches("; ").to_owned(),
            false,
        ),
        (
            Mishap::FailAt(Stage::Partitioned),
            format!("{BOOTED}{STARTED}/r/rep/failed percent=100; PowerOff"),
            false,
        ),
        (Mishap::KeepRunningAfterDone, format!("{BOOTED}{STARTED}{WORKED}/r/rep/done percent=100"), true),
    ] {
        let (log, disk) = netboot(mishap);
        assert_eq!(log, expected, "{mishap:?}");
        assert_eq!(disk.is_some(), installed, "{mishap:?}");
    }
}

#[test]
fn refusal_and_broken_boots_leave_no_bootable_device() {
    for (script, expected) in [
        ("#!ipxe\nexit\n", "leased; /b/mac; no bootable device: the script left to the next boot device"),
        ("<html>", "leased; /b/mac; no bootable device: http://127.0.0.1:8/b/mac: not an executable image"),
        (
            "#!ipxe\nkernel /k\nboot\n",
            "leased; /b/mac; /k; no bootable device: kernel panic: unable to mount root fs (no initrd)",
        ),
        (
            "#!ipxe\nkernel /k\ninitrd /i\nboot\n",
            "leased; /b/mac; /k; /i; no bootable device: the kernel's command line names no answer file",
        ),
    ] {
        let world = World { script, ..World::new() };
        assert_eq!(world.run(Guest::netboot(MAC, plan(Mishap::None))).0, expected);
    }
}

#[test]
fn lost_discovers_and_reports_are_repeated() {
    let world = World { deaf: 3, broken: ("/r/rep/base", 3), ..World::new() };
    let (log, disk) = world.run(Guest::netboot(MAC, plan(Mishap::None)));
    assert!(log.starts_with("unheard; unheard; unheard; leased; /b/mac"), "{log}");
    assert!(
        log.contains("unreachable; unreachable; unreachable; /r/rep/base percent=45; /r/rep/packages"),
        "{log}"
    );
    assert!(log.ends_with("PowerOff") && disk.is_some(), "{log}");
}

#[test]
fn reports_in_vain_end_with_power_off_when_the_time_is_over() {
    let world = World { broken: ("/r/", usize::MAX), ..World::new() };
    let (log, disk) = world.run(Guest::netboot(MAC, plan(Mishap::None)));
    assert!(log.ends_with("unreachable; PowerOff"), "{log}");
    assert!(disk.is_none() && !log.contains("percent"), "{log}");
}

#[test]
fn server_that_is_never_there_leaves_no_bootable_device() {
    let world = World { deaf: usize::MAX, ..World::new() };
    let (log, _) = world.run(Guest::netboot(MAC, plan(Mishap::None)));
    assert!(log.ends_with("no bootable device: no DHCP offer"), "{log}");
}

#[test]
fn bad_answer_files_stop_the_installer() {
    for (answer, reason) in [
        ("", "the answer file has no REPORT_URL"),
        ("REPORT_URL=x\n", "the answer file has no BOOTED_URL"),
        ("hello\n", "line 1 of the answer file is not KEY=VALUE"),
    ] {
        let world = World { answer, ..World::new() };
        let (log, _) = world.run(Guest::netboot(MAC, plan(Mishap::None)));
        assert!(log.ends_with(&format!("install failed: {reason}")), "{log}");
    }
}

#[test]
fn installed_system_leases_and_reports_until_it_is_heard() {
    let disk =
        InstalledSystem { booted_url: "http://127.0.0.1:8/r/boo/booted".to_owned(), hostname: String::new() };
    for (mishap, expected) in [
        (Mishap::None, "unheard; leased; unreachable; unreachable; /r/boo/booted "),
        (Mishap::SystemKeepsSilent, "unheard; leased"),
    ] {
        let world = World { deaf: 1, broken: ("/r/boo", 2), ..World::new() };
        assert_eq!(world.run(Guest::installed(MAC, plan(mishap), disk.clone())).0, expected);
    }
}

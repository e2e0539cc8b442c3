//! The installed system's boot as PV: DHCP as Linux does it, then the `booted` report until it is taken. Pure.

use super::{
    Event, Input, InstalledSystem, Mishap, Output,
    dhcp::{Client, Personality, Step},
    plan::GuestPlan,
    retry::{Retry, Tried},
};
use crate::{clock::Timestamp, machine::MacAddr};

/// A running installed system.
#[derive(Debug, Clone)]
pub struct System {
    mac: MacAddr,
    plan: GuestPlan,
    installed: InstalledSystem,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    KernelBoots(Timestamp),
    Dhcp(Client),
    Reporting(Retry),
    Over,
}

impl System {
    /// Its kernel starts.
    pub fn start(
        mac: MacAddr,
        plan: &GuestPlan,
        installed: InstalledSystem,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> Self {
        let due = now + plan.pace.kernel;
        out.push(Output::Timer(due));
        Self { mac, plan: plan.clone(), installed, state: State::KernelBoots(due) }
    }

    /// Goes on.
    pub fn handle(&mut self, input: Input<'_>, now: Timestamp, out: &mut Vec<Output>) {
        match (&mut self.state, input) {
            (State::KernelBoots(due), Input::Timer) if *due <= now => {
                out.push(Output::Event(Event::SystemRuns));
                self.discover(now, out);
            }
            (State::Dhcp(client), Input::Timer) => {
                let step = client.timer(now);
                self.dhcp(step, now, out);
            }
            (State::Dhcp(client), Input::Dhcp(bytes)) => {
                let step = client.handle(bytes, now);
                self.dhcp(step, now, out);
            }
            (State::Reporting(retry), Input::Timer) => retry.timer(now, out),
            (State::Reporting(retry), Input::Fetched(result)) => match retry.fetched(result, now) {
                Tried::Again(due) => out.push(Output::Timer(due)),
                Tried::GaveUp(reason) => self.end(Event::ReportGivenUp(reason), out),
                Tried::Answered(_) => self.end(Event::BootedReported, out),
            },
            (_, Input::PowerOn | Input::Dhcp(_) | Input::Fetched(_) | Input::Timer) => {}
        }
    }

    fn discover(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        out.push(Output::Event(Event::Discovering(Personality::Linux)));
        let mut client = Client::new(Personality::Linux, self.mac, self.plan.seed, self.plan.pace.dhcp_wait);
        let step = client.start(now);
        self.state = State::Dhcp(client);
        self.dhcp(step, now, out);
    }

    fn dhcp(&mut self, step: Step, now: Timestamp, out: &mut Vec<Output>) {
        match step {
            Step::Wait => {}
            Step::Send(packet, due) => out.extend([Output::Broadcast(packet), Output::Timer(due)]),
            Step::GaveUp => self.discover(now, out), // an installed system never stops asking
            Step::Bound(lease) => {
                out.extend([Output::Bind(lease.address), Output::Event(Event::Leased(lease.address))]);
                if self.plan.mishap == Mishap::SystemKeepsSilent {
                    return self.end(Event::Idle, out);
                }
                let post = Output::Post { url: self.installed.booted_url.clone(), body: String::new() };
                self.state = State::Reporting(Retry::start(post, &self.plan.pace, true, now, out));
            }
        }
    }

    fn end(&mut self, event: Event, out: &mut Vec<Output>) {
        self.state = State::Over;
        out.push(Output::Event(event));
    }
}

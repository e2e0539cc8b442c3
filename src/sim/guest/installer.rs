//! The mini installer, from its kernel's first line to power-off. Pure.
//!
//! It finds the answer file's URL in the kernel arguments, takes every other URL from the answer file, reports its
//! stages as they end, writes the disk before it reports `done`, and powers off after a report that was taken or
//! when the time to report is over.

use std::{collections::BTreeMap, fmt};

use super::{
    Event, Input, InstalledSystem, Mishap, Output, Pace, answer,
    dhcp::{Client, Personality, Step},
    plan::GuestPlan,
    retry::{Retry, Tried},
};
use crate::{clock::Timestamp, machine::MacAddr};

/// What the installer reports, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The installer runs and has its answer file.
    Started,
    /// The disk has its partitions.
    Partitioned,
    /// The base system is unpacked.
    Base,
    /// The packages are in.
    Packages,
    /// The last commands ran.
    Late,
    /// The installation is complete.
    Done,
    /// The installation failed.
    Failed,
}

impl Stage {
    /// The name in the report's path.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Partitioned => "partitioned",
            Self::Base => "base",
            Self::Packages => "packages",
            Self::Late => "late",
            Self::Done => "done",
            Self::Failed => "failed",
        }
    }

    /// How much of the installation is over when this is reported.
    pub const fn percent(self) -> u8 {
        match self {
            Self::Started => 5,
            Self::Partitioned => 20,
            Self::Base => 45,
            Self::Packages => 75,
            Self::Late => 90,
            Self::Done | Self::Failed => 100,
        }
    }

    const fn next(self) -> Option<Self> {
        match self {
            Self::Started => Some(Self::Partitioned),
            Self::Partitioned => Some(Self::Base),
            Self::Base => Some(Self::Packages),
            Self::Packages => Some(Self::Late),
            Self::Late => Some(Self::Done),
            Self::Done | Self::Failed => None,
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// A running installer.
#[derive(Debug, Clone)]
pub struct Installer {
    mac: MacAddr,
    plan: GuestPlan,
    answer_url: String,
    answers: BTreeMap<String, String>,
    state: State,
}

#[derive(Debug, Clone)]
enum State {
    KernelBoots(Timestamp),
    Dhcp(Client),
    Answer(Retry),
    Working(Stage, Timestamp),
    Reporting(Stage, Retry),
    Halting(Timestamp),
    Over,
}

impl Installer {
    /// The kernel starts with this command line. `Err`: it names no answer file.
    pub fn start(
        mac: MacAddr,
        plan: &GuestPlan,
        arguments: &str,
        now: Timestamp,
        out: &mut Vec<Output>,
    ) -> Result<Self, String> {
        let named = ["bootflip.answer=", "url="]
            .iter()
            .find_map(|key| arguments.split_whitespace().find_map(|word| word.strip_prefix(key)));
        let answer_url = named.ok_or("the kernel's command line names no answer file")?.to_owned();
        let due = now + plan.pace.kernel;
        out.extend([Output::Event(Event::KernelRuns(arguments.to_owned())), Output::Timer(due)]);
        let state = State::KernelBoots(due);
        Ok(Self { mac, plan: plan.clone(), answer_url, answers: BTreeMap::new(), state })
    }

    /// Goes on.
    pub fn handle(&mut self, input: Input<'_>, now: Timestamp, out: &mut Vec<Output>) {
        match (&mut self.state, input) {
            (State::KernelBoots(due), Input::Timer) if *due <= now => self.kernel_is_up(now, out),
            (State::Working(stage, due), Input::Timer) if *due <= now => {
                let stage = *stage;
                self.report(stage, now, out);
            }
            (State::Halting(due), Input::Timer) if *due <= now => self.end(Output::PowerOff, out),
            (State::Answer(retry) | State::Reporting(_, retry), Input::Timer) => retry.timer(now, out),
            (State::Dhcp(client), Input::Timer) => {
                let step = client.timer(now);
                self.dhcp(step, now, out);
            }
            (State::Dhcp(client), Input::Dhcp(bytes)) => {
                let step = client.handle(bytes, now);
                self.dhcp(step, now, out);
            }
            (State::Answer(retry), Input::Fetched(result)) => {
                let tried = retry.fetched(result, now);
                self.answer(tried, now, out);
            }
            (State::Reporting(stage, retry), Input::Fetched(result)) => {
                let (stage, tried) = (*stage, retry.fetched(result, now));
                self.reported(stage, tried, now, out);
            }
            (_, Input::PowerOn | Input::Dhcp(_) | Input::Fetched(_) | Input::Timer) => {}
        }
    }

    const fn pace(&self) -> &Pace {
        &self.plan.pace
    }

    fn kernel_is_up(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        if self.plan.mishap == Mishap::DieAtOnce {
            return self.end(Output::PowerOff, out);
        }
        out.push(Output::Event(Event::Discovering(Personality::Linux)));
        let mut client = Client::new(Personality::Linux, self.mac, self.plan.seed, self.pace().dhcp_wait);
        let step = client.start(now);
        self.state = State::Dhcp(client);
        self.dhcp(step, now, out);
    }

    fn dhcp(&mut self, step: Step, now: Timestamp, out: &mut Vec<Output>) {
        match step {
            Step::Wait => {}
            Step::Send(packet, due) => out.extend([Output::Broadcast(packet), Output::Timer(due)]),
            Step::Bound(lease) => {
                out.extend([Output::Bind(lease.address), Output::Event(Event::Leased(lease.address))]);
                let get = Output::Get(self.answer_url.clone());
                self.state = State::Answer(Retry::start(get, self.pace(), false, now, out));
            }
            Step::GaveUp => self.fail("no DHCP server answered the installer".to_owned(), out),
        }
    }

    fn answer(&mut self, tried: Tried, now: Timestamp, out: &mut Vec<Output>) {
        match tried {
            Tried::Again(due) => out.push(Output::Timer(due)),
            Tried::GaveUp(reason) => self.fail(format!("answer file: {reason}"), out),
            Tried::Answered(fetched) => match answer::parse(&fetched.body) {
                Ok(answers) => {
                    match ["REPORT_URL", "BOOTED_URL"].iter().find(|key| !answers.contains_key(**key)) {
                        Some(key) => self.fail(format!("the answer file has no {key}"), out),
                        None => {
                            self.answers = answers;
                            self.work(Stage::Started, now, out);
                        }
                    }
                }
                Err(reason) => self.fail(reason, out),
            },
        }
    }

    /// Works on what ends with this stage's report.
    fn work(&mut self, stage: Stage, now: Timestamp, out: &mut Vec<Output>) {
        let (at_done, mishap) = (stage == Stage::Done, self.plan.mishap);
        if stage == Stage::Partitioned && mishap != Mishap::HangAt(stage) && mishap != Mishap::FailAt(stage) {
            out.push(Output::Erased);
        }
        if at_done {
            out.push(Output::Installed(InstalledSystem {
                booted_url: self.answers.get("BOOTED_URL").cloned().unwrap_or_default(),
                hostname: self.answers.get("HOSTNAME").cloned().unwrap_or_default(),
            }));
        }
        match mishap {
            Mishap::HangAt(at) if at == stage => {
                self.state = State::Over;
                out.push(Output::Event(Event::Idle));
            }
            Mishap::RebootWithoutReport if at_done => self.end(Output::Reboot, out),
            Mishap::PowerOffWithoutReport if at_done => self.end(Output::PowerOff, out),
            Mishap::FailAt(at) if at == stage => self.report(Stage::Failed, now, out),
            Mishap::None
            | Mishap::DieAtOnce
            | Mishap::RebootWithoutReport
            | Mishap::PowerOffWithoutReport
            | Mishap::HangAt(_)
            | Mishap::FailAt(_)
            | Mishap::KeepRunningAfterDone
            | Mishap::SystemKeepsSilent => {
                let due = now + self.pace().stage;
                self.state = State::Working(stage, due);
                out.push(Output::Timer(due));
            }
        }
    }

    fn report(&mut self, stage: Stage, now: Timestamp, out: &mut Vec<Output>) {
        let base = self.answers.get("REPORT_URL").map(String::as_str).unwrap_or_default();
        let url = format!("{}/{stage}", base.trim_end_matches('/'));
        let post = Output::Post { url, body: format!("percent={}\n", stage.percent()) };
        out.push(Output::Event(Event::Stage(stage)));
        self.state = State::Reporting(stage, Retry::start(post, self.pace(), false, now, out));
    }

    fn reported(&mut self, stage: Stage, tried: Tried, now: Timestamp, out: &mut Vec<Output>) {
        match tried {
            Tried::Again(due) => return out.push(Output::Timer(due)),
            Tried::GaveUp(reason) => {
                // One report in vain is the whole window gone: the templates power off then.
                out.push(Output::Event(Event::ReportGivenUp(format!("{stage}: {reason}"))));
                return self.halt(now, out);
            }
            Tried::Answered(_) => {}
        }
        match stage.next() {
            Some(next) => self.work(next, now, out),
            None if self.plan.mishap == Mishap::KeepRunningAfterDone => {
                self.state = State::Over;
                out.push(Output::Event(Event::Idle));
            }
            None => self.halt(now, out),
        }
    }

    fn halt(&mut self, now: Timestamp, out: &mut Vec<Output>) {
        let due = now + self.pace().halt;
        self.state = State::Halting(due);
        out.push(Output::Timer(due));
    }

    /// An installer that cannot go on stands there; only its server's deadlines end it.
    fn fail(&mut self, reason: String, out: &mut Vec<Output>) {
        self.state = State::Over;
        out.extend([Output::Event(Event::InstallFailed(reason)), Output::Event(Event::Idle)]);
    }

    fn end(&mut self, output: Output, out: &mut Vec<Output>) {
        self.state = State::Over;
        out.push(output);
    }
}

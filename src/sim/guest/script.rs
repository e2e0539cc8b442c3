//! The iPXE script interpreter, in the dialect of XenServer's ROM (2012-10-05). Pure.
//!
//! What that build lacks fails here as it fails there: unknown commands, unknown options (`--timeout` on image
//! commands above all), HTTPS. A line that fails and has no `||` ends the script, and the guest has no boot device.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Fetched, url::resolve};

/// What the script wants next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Fetch this; [`Script::fetched`] goes on.
    Fetch(String),
    /// Wait; [`Script::slept`] goes on.
    Sleep(Duration),
    /// Boot this kernel. The script never runs again.
    Boot(Boot),
    /// The script ended by itself, or by `exit`: the BIOS tries its next device.
    Exit,
    /// `reboot`.
    Reboot,
    /// A line failed: the same as an end, with a reason on the screen.
    Failed(String),
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Boot {
    /// The kernel's command line.
    pub arguments: String,
    /// Kernel length in bytes.
    pub kernel: u64,
    /// Lengths of the initrds in bytes.
    pub initrds: Vec<u64>,
}

/// A script that runs.
#[derive(Debug, Clone)]
pub struct Script {
    frames: Vec<Frame>,
    variables: BTreeMap<String, String>,
    kernel: Option<(u64, String)>,
    initrds: Vec<u64>,
    rest: VecDeque<(Joint, Vec<String>)>,
    under_way: Option<Download>,
    steps: u32,
}

#[derive(Debug, Clone)]
struct Frame {
    base: String,
    lines: Vec<String>,
    at: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Download {
    Kernel(String, String),
    Initrd(String),
    Chain(String, String),
}

/// What stands before a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Joint {
    First,
    And,
    Or,
}

/// What one command came to.
enum Did {
    Ok,
    Fail(String),
    Leave(Step),
    Goto(String),
}

impl Script {
    /// A script that came from `base`. `None`: the text is not an iPXE script.
    pub fn new(base: &str, body: &[u8], variables: BTreeMap<String, String>) -> Option<Self> {
        let frame = Frame::parse(base, body)?;
        Some(Self {
            frames: vec![frame],
            variables,
            kernel: None,
            initrds: vec![],
            rest: VecDeque::new(),
            under_way: None,
            steps: 0,
        })
    }

    /// Runs until something outside is wanted.
    pub fn run(&mut self) -> Step {
        self.go_on(None)
    }

    /// The pause that [`Step::Sleep`] asked for is over.
    pub fn slept(&mut self) -> Step {
        self.go_on(None)
    }

    /// What [`Step::Fetch`] asked for came, or `None` with a reason.
    pub fn fetched(&mut self, result: Result<Fetched, String>) -> Step {
        let Some(download) = self.under_way.take() else { return self.go_on(None) };
        let fetched = match result {
            Ok(fetched) if fetched.status == 200 => fetched,
            Ok(fetched) => return self.go_on(Some(format!("HTTP status {}", fetched.status))),
            Err(reason) => return self.go_on(Some(reason)),
        };
        match download {
            Download::Kernel(_, arguments) => self.kernel = Some((fetched.length, arguments)),
            Download::Initrd(_) => self.initrds.push(fetched.length),
            Download::Chain(url, arguments) => match Frame::parse(&url, &fetched.body) {
                Some(_) if self.frames.len() >= MAX_NESTED => {
                    return self.go_on(Some("nested too deep".to_owned()));
                }
                Some(frame) => {
                    self.frames.push(frame);
                    self.rest.clear(); // what follows `chain` on its line only matters to a guest that is lost anyway
                }
                None => {
                    self.kernel = Some((fetched.length, arguments));
                    return self.boot().unwrap_or_else(|reason| self.go_on(Some(reason)));
                }
            },
        }
        self.go_on(None)
    }

    /// Goes on behind a command that failed with this reason, or succeeded.
    fn go_on(&mut self, mut failed: Option<String>) -> Step {
        loop {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Step::Failed("the script never ends".to_owned());
            }
            let Some((joint, words)) = self.rest.pop_front() else {
                match failed.take() {
                    Some(reason) => return Step::Failed(reason),
                    None if self.next_line() => continue,
                    None => return Step::Exit,
                }
            };
            let runs = match joint {
                Joint::First => true,
                Joint::And => failed.is_none(),
                Joint::Or => failed.is_some(),
            };
            if !runs {
                // Its `system` leaves the line there: in `a && b || c`, a failed `a` runs neither.
                self.rest.clear();
                continue;
            }
            failed = match self.command(&words) {
                Did::Ok => None,
                Did::Fail(reason) => Some(format!("{}: {reason}", words.join(" "))),
                Did::Leave(step) => return step,
                Did::Goto(label) => match self.goto(&label) {
                    true => None,
                    false => Some(format!("goto: no label {label}")),
                },
            };
        }
    }

    /// Takes the next line; false when there is none in any frame.
    fn next_line(&mut self) -> bool {
        while let Some(frame) = self.frames.last_mut() {
            match frame.lines.get(frame.at) {
                Some(line) => {
                    frame.at += 1;
                    self.rest = commands(line, &self.variables);
                    return true;
                }
                None => {
                    self.frames.pop();
                }
            }
        }
        false
    }

    fn goto(&mut self, label: &str) -> bool {
        let found = self.frames.last_mut().and_then(|frame| {
            let at = frame.lines.iter().position(|line| line.strip_prefix(':') == Some(label))?;
            frame.at = at + 1;
            Some(())
        });
        if found.is_some() {
            self.rest.clear();
        }
        found.is_some()
    }

    fn command(&mut self, words: &[String]) -> Did {
        let Some((name, arguments)) = words.split_first() else { return Did::Ok };
        let texts: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match (name.as_str(), texts.as_slice()) {
            ("kernel" | "initrd" | "chain" | "imgargs" | "imgfree" | "boot" | "imgstat", _) => {
                self.image(name, &texts)
            }
            ("set", [variable, value @ ..]) => {
                self.variables.insert((*variable).to_owned(), value.join(" "));
                Did::Ok
            }
            ("clear", [variable]) => {
                self.variables.remove(*variable);
                Did::Ok
            }
            ("isset", [value, ..]) if !value.is_empty() => Did::Ok,
            ("isset", _) => Did::Fail("not set".to_owned()),
            ("iseq", [a, b]) if a == b => Did::Ok,
            ("goto", [label]) => Did::Goto((*label).to_owned()),
            ("sleep", [seconds]) => match seconds.parse() {
                Ok(seconds) => Did::Leave(Step::Sleep(Duration::from_secs(seconds))),
                Err(_) => Did::Fail("not a number".to_owned()),
            },
            ("exit", _) => self.exit(),
            ("reboot", []) => Did::Leave(Step::Reboot),
            // The interface is up and has its lease; a screen and a prompt without a key change nothing.
            ("echo" | "show" | "ifopen" | "ifstat" | "dhcp" | "sync" | "cpuid" | "prompt", _) => Did::Ok,
            ("iseq", _) => Did::Fail("not equal".to_owned()),
            _ => Did::Fail("command not found".to_owned()),
        }
    }

    /// `exit` leaves this script; a script that chained it goes on.
    fn exit(&mut self) -> Did {
        self.frames.pop();
        self.rest.clear();
        if self.frames.is_empty() { Did::Leave(Step::Exit) } else { Did::Ok }
    }

    fn image(&mut self, name: &str, words: &[&str]) -> Did {
        let (chosen, words) = match image_options(name, words) {
            Ok(parsed) => parsed,
            Err(option) => return Did::Fail(format!("unrecognised option `{option}`")),
        };
        let (target, arguments) = match words.split_first() {
            Some((target, arguments)) => (Some(*target), arguments.join(" ")),
            None => (None, String::new()),
        };
        let base = self.frames.last().map(|frame| frame.base.clone()).unwrap_or_default();
        match (name, target) {
            ("imgfree", _) => {
                self.kernel = None;
                self.initrds.clear();
                Did::Ok
            }
            ("imgstat", _) => Did::Ok,
            ("imgargs", Some(_)) => match &mut self.kernel {
                Some((_, line)) => {
                    *line = arguments;
                    Did::Ok
                }
                None => Did::Fail("no image".to_owned()),
            },
            ("boot", None) => self.boot().map_or_else(Did::Fail, Did::Leave),
            ("kernel", Some(target)) => self.fetch(Download::Kernel(resolve(&base, target), arguments)),
            ("initrd", Some(target)) => self.fetch(Download::Initrd(resolve(&base, target))),
            ("chain" | "boot", Some(target)) => {
                if chosen.replace {
                    self.frames.pop();
                }
                self.fetch(Download::Chain(resolve(&base, target), arguments))
            }
            _ => Did::Fail("usage".to_owned()),
        }
    }

    fn fetch(&mut self, download: Download) -> Did {
        let url = match &download {
            Download::Kernel(url, _) | Download::Initrd(url) | Download::Chain(url, _) => url.clone(),
        };
        self.under_way = Some(download);
        Did::Leave(Step::Fetch(url))
    }

    fn boot(&mut self) -> Result<Step, String> {
        match self.kernel.take() {
            Some((0, _)) => Err("exec format error".to_owned()),
            Some((kernel, arguments)) => {
                Ok(Step::Boot(Boot { arguments, kernel, initrds: std::mem::take(&mut self.initrds) }))
            }
            None => Err("no image selected".to_owned()),
        }
    }
}

impl Frame {
    fn parse(base: &str, body: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(body);
        let is_script = ["#!ipxe", "#!gpxe"].iter().any(|magic| {
            text.strip_prefix(magic)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        });
        let lines = || text.lines().skip(1).map(|line| line.trim().to_owned()).collect();
        is_script.then(|| Self { base: base.to_owned(), lines: lines(), at: 0 })
    }
}

/// Options of an image command that change what it does here.
#[derive(Default)]
struct ImageOptions {
    replace: bool,
}

/// The options that this build knows, before the first plain word (its getopt does not permute).
fn image_options<'a>(name: &str, words: &'a [&'a str]) -> Result<(ImageOptions, &'a [&'a str]), String> {
    let mut chosen = ImageOptions::default();
    let mut left = words;
    while let Some((word, rest)) =
        left.split_first().filter(|(word, _)| word.len() > 1 && word.starts_with('-'))
    {
        left = match *word {
            "--" => return Ok((chosen, rest)),
            "--autofree" | "-a" => rest,
            "--replace" | "-r" if name == "chain" || name == "boot" => {
                chosen.replace = true;
                rest
            }
            "--name" | "-n" => rest.get(1..).ok_or_else(|| (*word).to_owned())?,
            word if word.starts_with("--name=") => rest,
            word => return Err(word.to_owned()),
        };
    }
    Ok((chosen, left))
}

/// The commands of one line, variables filled in.
fn commands(line: &str, variables: &BTreeMap<String, String>) -> VecDeque<(Joint, Vec<String>)> {
    let mut found = VecDeque::new();
    if line.starts_with(':') {
        return found;
    }
    let expanded = expand(line, variables);
    let (mut joint, mut words) = (Joint::First, vec![]);
    for word in expanded.split_whitespace().take_while(|word| !word.starts_with('#')) {
        let next = match word {
            "||" => Joint::Or,
            "&&" => Joint::And,
            _ => {
                words.push(word.to_owned());
                continue;
            }
        };
        found.push_back((joint, std::mem::take(&mut words)));
        joint = next;
    }
    found.push_back((joint, words));
    found
}

/// Replaces `${name}` and `${name:type}`, innermost first; an unknown one becomes nothing.
fn expand(line: &str, variables: &BTreeMap<String, String>) -> String {
    let mut text = line.to_owned();
    while let Some(end) = text.find('}') {
        let Some(start) = text.get(..end).and_then(|head| head.rfind("${")) else { break };
        let value = text.get(start + 2..end).map(|name| value_of(name, variables)).unwrap_or_default();
        text.replace_range(start..=end, &value);
    }
    text
}

fn value_of(name: &str, variables: &BTreeMap<String, String>) -> String {
    let (name, kind) = name.split_once(':').unwrap_or((name, ""));
    let bare = name.strip_prefix("net0/").unwrap_or(name);
    let value = variables.get(name).or_else(|| variables.get(bare)).cloned().unwrap_or_default();
    match kind {
        "hexhyp" => value.replace(':', "-"),
        "hexraw" => value.replace(':', ""),
        _ => value,
    }
}

/// A script that does more steps than this loops for ever.
const MAX_STEPS: u32 = 100_000;
/// Scripts that chain scripts, at most this deep.
const MAX_NESTED: usize = 16;

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;

//! What installers send by syslog, as lines of a file. Pure; `server` has the socket and the files.
//!
//! Takes RFC 3164, RFC 5424 and what is nearly one of them: busybox sends no host, and rsyslog as it is set up. Invariants:
//! a line is one line of printable text, whatever came; no machine takes more than its share of lines, nor all together
//! more than theirs; what no known machine sent is counted and forgotten.

pub mod server;

use std::{collections::HashMap, fmt::Write as _};

use serde::{Deserialize, Serialize};

use crate::{clock::Timestamp, machine::MacAddr, secret::masked};

/// Characters of a message that are kept.
pub const TEXT_LIMIT: usize = 1024;

/// Lines at once, and for each second, of one machine.
const MACHINE: Rate = Rate { burst: 2_000, each_second: 100 };
/// The same of all of them.
const ALL: Rate = Rate { burst: 20_000, each_second: 2_000 };
/// Machines whose rate is remembered.
const MACHINES: usize = 4096;

/// RFC 5424 §6.2.1, table 2.
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
/// RFC 3164 §4.3.3: what has no priority is a notice.
const NOTICE: usize = 5;
/// The largest priority: facility 23, severity 7.
const PRIORITY_MAX: usize = 191;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `err`, `info`, ….
    pub severity: &'static str,
    /// One line of printable characters: who says it, and what.
    pub text: String,
}

/// Why nothing came of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dropped {
    /// No known machine has the address.
    Stranger,
    /// There was nothing in it.
    Empty,
    /// The machine, or all of them, sent too many.
    TooMany,
}

/// What came of all datagrams since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Counts {
    /// Lines that were filed.
    pub filed: u64,
    /// From addresses of no known machine.
    pub strangers: u64,
    /// Empty ones.
    pub empty: u64,
    /// Beyond a machine's share, or that of all.
    pub too_many: u64,
}

/// Reads a datagram; `None`: there is no text in it.
pub fn parse(datagram: &[u8]) -> Option<Message> {
    let text = String::from_utf8_lossy(datagram);
    let text = text.trim_matches(|c: char| matches!(c, '\0' | '\n' | '\r' | '\u{feff}'));
    let (priority, rest) = priority(text).unwrap_or((NOTICE, text));
    let said = match rest.strip_prefix("1 ").and_then(structured) {
        Some(said) => said,
        None => without_time(rest).to_owned(),
    };
    let said = harmless(masked(said.trim()).as_ref());
    (!said.is_empty())
        .then(|| Message { severity: SEVERITIES.get(priority % 8).copied().unwrap_or("notice"), text: said })
}

/// `<PRI>`, and what follows.
fn priority(text: &str) -> Option<(usize, &str)> {
    let (digits, rest) = text.strip_prefix('<')?.split_once('>')?;
    let fits = (1..=3).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let priority = digits.parse::<usize>().ok().filter(|priority| fits && *priority <= PRIORITY_MAX)?;
    Some((priority, rest))
}

/// RFC 5424 §6 behind the version: TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA MSG.
fn structured(rest: &str) -> Option<String> {
    let mut words = rest.splitn(6, ' ');
    let (_time, _host) = (words.next()?, words.next()?);
    let (application, process, _message) = (words.next()?, words.next()?, words.next()?);
    let said = without_data(words.next()?)?.trim_start_matches('\u{feff}');
    Some(match (application, process) {
        ("-", _) => said.to_owned(),
        (application, "-") => format!("{application}: {said}"),
        (application, process) => format!("{application}[{process}]: {said}"),
    })
}

/// What stands behind the structured data: `-`, or elements in brackets with quoted values.
fn without_data(text: &str) -> Option<&str> {
    if let Some(rest) = text.strip_prefix('-') {
        return rest.strip_prefix(' ').or_else(|| rest.is_empty().then_some(""));
    }
    let (mut quoted, mut escaped, mut open) = (false, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' if open => quoted = !quoted,
            '[' if !quoted => open = true,
            ']' if !quoted => open = false,
            ' ' if !open => return text.get(at + 1..),
            _ if !open => return None,
            _ => {}
        }
    }
    (!open).then_some("")
}

/// Without RFC 3164's time, `Nov 28 14:03:59 `: the receiver's own stands before the line.
fn without_time(text: &str) -> &str {
    let is_time = |time: &str| {
        time.bytes().zip(b"Aaa 99 99:99:99 ").all(|(byte, form)| match form {
            b'A' => byte.is_ascii_uppercase(),
            b'a' => byte.is_ascii_lowercase(),
            b'9' => byte.is_ascii_digit() || byte == b' ',
            other => byte == *other,
        })
    };
    match text.split_at_checked(16) {
        Some((time, rest)) if is_time(time) => rest,
        Some(_) | None => text,
    }
}

/// Text that does nothing to a terminal or a file: control and direction characters by their number.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars().take(TEXT_LIMIT) {
        let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
        if c == '\t' {
            out.push(' ');
        } else if c.is_control() || turns {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c)); // a String takes everything
        } else {
            out.push(c);
        }
    }
    out
}

/// So many at once, and so many a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    burst: u32,
    each_second: u32,
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a line.
    left: u64,
    at: Timestamp,
    /// Lines that it refused since the last that it took.
    refused: u64,
}

impl Bucket {
    fn full(rate: Rate, now: Timestamp) -> Self {
        Self { left: u64::from(rate.burst) * 1000, at: now, refused: 0 }
    }

    fn fill(&mut self, rate: Rate, now: Timestamp) {
        let passed = u64::try_from(now.since(self.at).as_millis()).unwrap_or(u64::MAX);
        let more = passed.saturating_mul(u64::from(rate.each_second));
        self.left = self.left.saturating_add(more).min(u64::from(rate.burst) * 1000);
        self.at = now;
    }

    const fn has_one(&self) -> bool {
        self.left >= 1000
    }
}

/// Takes datagrams in, within the bounds.
#[derive(Debug)]
pub struct Intake {
    machines: HashMap<MacAddr, Bucket>,
    all: Bucket,
    counts: Counts,
}

impl Intake {
    /// An intake that has taken nothing yet.
    pub fn new(now: Timestamp) -> Self {
        Self { machines: HashMap::new(), all: Bucket::full(ALL, now), counts: Counts::default() }
    }

    /// What came of everything so far.
    pub const fn counts(&self) -> Counts {
        self.counts
    }

    /// The lines to append to the machine's file: one, with another before it where some are missing.
    ///
    /// # Errors
    /// Why there is none.
    pub fn take(
        &mut self,
        from: Option<MacAddr>,
        datagram: &[u8],
        now: Timestamp,
    ) -> Result<(MacAddr, String), Dropped> {
        let taken = self.judge(from, datagram, now);
        match taken {
            Ok(_) => self.counts.filed += 1,
            Err(Dropped::Stranger) => self.counts.strangers += 1,
            Err(Dropped::Empty) => self.counts.empty += 1,
            Err(Dropped::TooMany) => self.counts.too_many += 1,
        }
        taken
    }

    fn judge(
        &mut self,
        from: Option<MacAddr>,
        datagram: &[u8],
        now: Timestamp,
    ) -> Result<(MacAddr, String), Dropped> {
        let mac = from.ok_or(Dropped::Stranger)?;
        let message = parse(datagram).ok_or(Dropped::Empty)?;
        if self.machines.len() >= MACHINES && !self.machines.contains_key(&mac) {
            // Who has been silent for so long has its whole share again.
            let full = std::time::Duration::from_secs(u64::from(MACHINE.burst / MACHINE.each_second));
            self.machines.retain(|_, bucket| now.since(bucket.at) < full);
        }
        if self.machines.len() >= MACHINES && !self.machines.contains_key(&mac) {
            return Err(Dropped::TooMany);
        }
        let own = self.machines.entry(mac).or_insert_with(|| Bucket::full(MACHINE, now));
        own.fill(MACHINE, now);
        self.all.fill(ALL, now);
        if !own.has_one() || !self.all.has_one() {
            own.refused += 1;
            return Err(Dropped::TooMany);
        }
        own.left -= 1000;
        self.all.left -= 1000;
        let mut lines = String::new();
        if own.refused > 0 {
            let _ = writeln!(
                lines,
                "{now} notice bootflip: {} lines were too many and are not here",
                own.refused
            );
            own.refused = 0;
        }
        let _ = writeln!(lines, "{now} {} {}", message.severity, message.text);
        Ok((mac, lines))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(1_796_000_000_000 + millis)
    }

    #[test]
    fn messages_of_every_make_become_one_line() {
        type Case<'a> = (&'a [u8], Option<(&'a str, &'a str)>);
        let cases: [Case<'_>; 22] = [
            // busybox syslogd -R of debian-installer
            (
                b"<14>Nov 28 14:03:59 base-installer: info: kernel",
                Some(("info", "base-installer: info: kernel")),
            ),
            (b"<30>Nov  2 04:03:59 main-menu[123]: INFO: x\n", Some(("info", "main-menu[123]: INFO: x"))),
            // rsyslog of Anaconda
            (b"<11>Nov 28 14:03:59 web1 anaconda[9]: failed", Some(("err", "web1 anaconda[9]: failed"))),
            (b"<165>1 2026-11-28T14:03:59.1Z web1 app 9 ID47 - said", Some(("notice", "app[9]: said"))),
            (b"<165>1 - - app - - - \xef\xbb\xbfsaid", Some(("notice", "app: said"))),
            (b"<165>1 - - - - - - said", Some(("notice", "said"))),
            (br#"<165>1 - - a - - [x@1 k="v ] \" w"][y z="1"] said"#, Some(("notice", "a: said"))),
            (b"<165>1 - - a - - -", Some(("notice", "a:"))),
            // broken ones
            (b"<165>1 - - a - - [x said", Some(("notice", "1 - - a - - [x said"))),
            (b"<165>1 two words", Some(("notice", "1 two words"))),
            (b"<192>x", Some(("notice", "<192>x"))),
            (b"<>x", Some(("notice", "<>x"))),
            (b"<1234>x", Some(("notice", "<1234>x"))),
            (b"<-1>x", Some(("notice", "<-1>x"))),
            (b"<13", Some(("notice", "<13"))),
            (b"no priority", Some(("notice", "no priority"))),
            (b"<0>x", Some(("emerg", "x"))),
            (b"<13>a\nb\x1b[2J\x07\tc\0", Some(("notice", "a\\u{a}b\\u{1b}[2J\\u{7} c"))),
            (b"<13>\xff\xfe", Some(("notice", "\u{fffd}\u{fffd}"))),
            ("<13>a\u{202e}b\u{2028}c".as_bytes(), Some(("notice", "a\\u{202e}b\\u{2028}c"))),
            (b"<13>Nov 28 14:03:59 ", None),
            (b"\0\n", None),
        ];
        for (datagram, expected) in cases {
            let message = parse(datagram);
            let found = message.as_ref().map(|message| (message.severity, message.text.as_str()));
            assert_eq!(found, expected, "{}", String::from_utf8_lossy(datagram));
        }
    }

    #[test]
    fn whatever_comes_is_one_printable_line() {
        let mut state = 1_u64;
        for length in 0..2000 {
            let bytes: Vec<u8> = (0..length % 300)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    u8::try_from(state >> 56).unwrap()
                })
                .collect();
            let mut intake = Intake::new(at(0));
            if let Ok((_, line)) = intake.take(Some(MAC), &bytes, at(0)) {
                assert_eq!(line.matches('\n').count(), 1);
                assert!(line.trim_end_matches('\n').chars().all(|c| !c.is_control()), "{line:?}");
            }
        }
        assert_eq!(parse(&[b'x'; 65_000]).unwrap().text.len(), TEXT_LIMIT);
    }

    #[test]
    fn a_machine_has_a_share_and_is_told_what_it_missed() {
        let mut intake = Intake::new(at(0));
        let burst = u64::from(MACHINE.burst);
        for _ in 0..burst {
            assert!(intake.take(Some(MAC), b"<13>x", at(0)).is_ok());
        }
        for _ in 0..3 {
            assert_eq!(intake.take(Some(MAC), b"<13>x", at(0)), Err(Dropped::TooMany));
        }
        let other = MacAddr::new([2, 0x16, 0x3e, 0, 0, 2]);
        assert!(intake.take(Some(other), b"<13>x", at(0)).is_ok());
        let (_, lines) = intake.take(Some(MAC), b"<13>again", at(10)).unwrap();
        let lines: Vec<&str> = lines.lines().collect();
        assert!(lines[0].ends_with(" notice bootflip: 3 lines were too many and are not here"), "{lines:?}");
        assert!(lines[1].ends_with("Z notice again"), "{lines:?}");
        assert_eq!(intake.take(None, b"<13>x", at(0)), Err(Dropped::Stranger));
        assert_eq!(intake.take(Some(MAC), b"", at(0)), Err(Dropped::Empty));
        let counts = Counts { filed: burst + 2, strangers: 1, empty: 1, too_many: 3 };
        assert_eq!(intake.counts(), counts);
    }

    #[test]
    fn all_machines_together_have_a_share() {
        let mut intake = Intake::new(at(0));
        let mac = |n: u32| {
            let [a, b, c, d] = n.to_be_bytes();
            MacAddr::new([2, 0x16, a, b, c, d])
        };
        let taken =
            (0..ALL.burst + 100).filter(|n| intake.take(Some(mac(n / 10)), b"x", at(0)).is_ok()).count();
        assert_eq!(taken, usize::try_from(ALL.burst).unwrap());
        let more = MACHINES as u32 * 2;
        (0..more).for_each(|n| drop(intake.take(Some(mac(n)), b"x", at(u64::from(n) * 100))));
        assert!(intake.machines.len() <= MACHINES);
    }
}

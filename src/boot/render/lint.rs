//! Reads an iPXE script as the firmware would, and says what that firmware does not know. Pure.
//!
//! The ROM of XenServer and XCP-ng is iPXE of 2012-10-05: a command or option that it lacks ends the boot (TripleO's and
//! Ironic's scripts put `--timeout` on `kernel`: xcp-ng/xcp#559). Invariant: what [`super::scripts`] writes has no
//! finding in its own dialect.

use std::collections::BTreeSet;

/// What a client's iPXE understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// gPXE, iPXE's forerunner, in the ROMs of releases before XenServer 6: takes `#!gpxe` only, has no labels.
    Gpxe,
    /// iPXE of 2012-10-05, as XenServer and XCP-ng build it into their virtual network cards; and everything of which
    /// we do not know better.
    Ipxe2012,
    /// iPXE of 2020 (1.20) or later.
    Modern,
}

/// The first release that has everything that a modern script uses.
const MODERN: (u32, u32) = (1, 20);

impl Dialect {
    /// By the User-Agent of the request: `gPXE/1.0.1`, `iPXE/1.21.1+ (g4bd064de)`. Every iPXE of 2010 to 2020 says
    /// 1.0.0.
    pub fn of_user_agent(agent: Option<&str>) -> Self {
        if agent.is_some_and(|agent| agent.starts_with("gPXE/")) {
            return Self::Gpxe;
        }
        let version = agent.and_then(|agent| agent.strip_prefix("iPXE/"));
        let mut numbers = version.unwrap_or_default().split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= MODERN => Self::Modern,
            (_, _) => Self::Ipxe2012,
        }
    }

    /// As a person calls it.
    const fn name(self) -> &'static str {
        match self {
            Self::Gpxe => "gPXE",
            Self::Ipxe2012 => "the iPXE of XenServer's firmware (2012)",
            Self::Modern => "iPXE 1.20",
        }
    }

    /// What a script of it begins with. iPXE takes gPXE's too.
    pub const fn begin(self) -> &'static str {
        match self {
            Self::Gpxe => "#!gpxe",
            Self::Ipxe2012 | Self::Modern => "#!ipxe",
        }
    }

    fn has(self, command: &str) -> bool {
        match self {
            Self::Gpxe => COMMANDS_GPXE.contains(&command),
            Self::Ipxe2012 => COMMANDS_2012.contains(&command),
            Self::Modern => COMMANDS_2012.contains(&command) || COMMANDS_SINCE.contains(&command),
        }
    }

    fn takes(self, option: &str) -> bool {
        let name = option.split('=').next().unwrap_or(option);
        let first = ["--name", "-n"];
        let old = ["--replace", "-r", "--autofree", "-a"];
        match self {
            Self::Gpxe => first.contains(&name),
            Self::Ipxe2012 => first.contains(&name) || old.contains(&name),
            Self::Modern => [&first[..], &old, &["--timeout", "-t"]].concat().contains(&name),
        }
    }

    fn fetches(self, scheme: &str) -> bool {
        match self {
            Self::Gpxe => ["http", "tftp"].contains(&scheme),
            Self::Ipxe2012 => ["http", "tftp", "file"].contains(&scheme),
            Self::Modern => ["http", "https", "tftp", "file", "nfs", "ftp"].contains(&scheme),
        }
    }
}

/// Those that its scripts in the field use; none is more than gPXE 1.0 has.
const COMMANDS_GPXE: [&str; 14] = [
    "autoboot", "boot", "chain", "dhcp", "echo", "exit", "imgargs", "imgexec", "imgfetch", "imgfree",
    "imgload", "initrd", "kernel", "set",
];
/// Read from the source at the commit that XenServer builds, with its configuration.
const COMMANDS_2012: [&str; 38] = [
    "autoboot",
    "boot",
    "chain",
    "choose",
    "clear",
    "cpuid",
    "dhcp",
    "echo",
    "exit",
    "goto",
    "ifclose",
    "ifopen",
    "ifstat",
    "imgargs",
    "imgexec",
    "imgfetch",
    "imgfree",
    "imgload",
    "imgselect",
    "imgstat",
    "initrd",
    "iseq",
    "isset",
    "item",
    "kernel",
    "login",
    "menu",
    "module",
    "prompt",
    "pxebs",
    "read",
    "reboot",
    "route",
    "sanboot",
    "set",
    "show",
    "sleep",
    "sync",
];
/// What came later.
const COMMANDS_SINCE: [&str; 20] = [
    "colour",
    "console",
    "cpair",
    "form",
    "ifconf",
    "iflinkwait",
    "imgextract",
    "imgmem",
    "imgtrust",
    "imgverify",
    "inc",
    "ntp",
    "param",
    "params",
    "pciscan",
    "poweroff",
    "sanhook",
    "time",
    "vcreate",
    "vdestroy",
];
/// Commands that fetch an image, or name one: their options are checked.
const IMAGE_COMMANDS: [&str; 7] = ["chain", "imgexec", "imgfetch", "initrd", "kernel", "module", "boot"];

/// What the firmware would stumble over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// From 1.
    pub line: usize,
    /// What, and for whom; may quote the script.
    pub problem: String,
}

/// Everything in this script that a client of this dialect does not understand.
pub fn lint(script: &str, dialect: Dialect) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, problem: String| findings.push(Finding { line, problem });
    let begin = dialect.begin();
    if script.lines().next().map(str::trim_end) != Some(begin) {
        find(1, format!("the first line is not `{begin}`: {} takes it for no script", dialect.name()));
    }
    let labels: BTreeSet<&str> = script.lines().filter_map(|line| line.trim().strip_prefix(':')).collect();
    for (at, line) in script.lines().enumerate() {
        let line = line.trim();
        if line.starts_with([':', '#']) {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().take_while(|word| !word.starts_with('#')).collect();
        for command in words.split(|word| matches!(*word, "||" | "&&")) {
            for problem in problems(command, dialect, &labels) {
                find(at + 1, problem);
            }
        }
    }
    findings
}

fn problems(words: &[&str], dialect: Dialect, labels: &BTreeSet<&str>) -> Vec<String> {
    let Some((command, rest)) = words.split_first() else { return Vec::new() };
    let whose = dialect.name();
    if command.contains("${") {
        return Vec::new(); // decided when it runs
    }
    if !dialect.has(command) {
        return vec![format!("{whose} has no command `{command}`")];
    }
    let mut found = Vec::new();
    if IMAGE_COMMANDS.contains(command) {
        let mut rest = rest.iter();
        let mut image = None;
        while let Some(word) = rest.next() {
            if !word.starts_with('-') {
                image = Some(word);
                break; // what follows is the image's
            }
            if !dialect.takes(word) {
                found.push(format!("{whose} has no option `{word}` for `{command}`"));
            }
            if matches!(*word, "--name" | "-n" | "--timeout" | "-t") {
                rest.next();
            }
        }
        let scheme = image.and_then(|image| image.split_once("://")).map(|(scheme, _)| scheme);
        if let Some(scheme) = scheme.filter(|scheme| !scheme.contains("${") && !dialect.fetches(scheme)) {
            found.push(format!("{whose} cannot fetch by `{scheme}`"));
        }
    }
    if let ("goto", Some(label)) = (*command, rest.first())
        && !label.contains("${")
        && !labels.contains(label)
    {
        found.push(format!("there is no label `{label}`"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(script: &str, dialect: Dialect) -> Vec<String> {
        lint(script, dialect).iter().map(|finding| format!("{}: {}", finding.line, finding.problem)).collect()
    }

    /// Quirk 34: what the ROM of 2012 has, and what it lacks.
    #[test]
    fn a_command_that_xenserver_firmware_lacks_fails_the_script() {
        let lacks = |command: &str| format!("2: the iPXE of XenServer's firmware (2012) has no {command}");
        for (line, finding) in [
            ("inc tries", "command `inc`"),
            ("poweroff", "command `poweroff`"),
            ("param mac ${net0/mac}", "command `param`"),
            ("console --picture x", "command `console`"),
            ("vcreate --tag 3 net0", "command `vcreate`"),
            ("imgverify x y", "command `imgverify`"),
            ("sleep 1 && poweroff || reboot", "command `poweroff`"),
            ("kernel --timeout 5 http://x/linux", "option `--timeout` for `kernel`"), // xcp-ng/xcp#559
            ("initrd --timeout=5 --name i http://x/i", "option `--timeout=5` for `initrd`"),
        ] {
            assert_eq!(findings(&format!("#!ipxe\n{line}\n"), Dialect::Ipxe2012), [lacks(finding)], "{line}");
            assert_eq!(findings(&format!("#!ipxe\n{line}\n"), Dialect::Modern), [""; 0], "{line}");
        }
        for line in [
            "prompt --key 0x02 --timeout 2000 Press || goto out",
            "kernel --name linux http://x/linux a --timeout 5 b=-c",
            "initrd -n i -r -a tftp://${next-server}/i",
            "menu Title",
            "item --gap -- x",
            "choose --default a --timeout 5 target && goto ${target} ||",
            "isset ${net0/mac} && dhcp net0 || # or not",
            "cpuid --ext 29 && set arch x86_64 || set arch i386",
            ":out",
            "# inc in a comment",
            "chain ${base}/x",
            "${what} now",
        ] {
            let script = format!("#!ipxe\n{line}\n:out\n");
            assert_eq!(findings(&script, Dialect::Ipxe2012), [""; 0], "{line}");
        }
    }

    #[test]
    fn what_no_ipxe_takes_is_found_in_every_dialect() {
        for dialect in [Dialect::Ipxe2012, Dialect::Modern] {
            assert_eq!(
                findings("echo hello\n", dialect),
                [format!("1: the first line is not `#!ipxe`: {} takes it for no script", dialect.name())]
            );
            assert_eq!(findings("#!ipxe\ngoto nowhere\n", dialect), ["2: there is no label `nowhere`"]);
            assert!(findings("#!ipxe\nkernel smb://x/linux\n", dialect)[0].contains("cannot fetch by `smb`"));
        }
        let https = "#!ipxe\nkernel https://x/linux\n";
        assert!(findings(https, Dialect::Ipxe2012)[0].contains("cannot fetch by `https`"));
        assert_eq!(findings(https, Dialect::Modern), [""; 0]);
    }

    #[test]
    fn only_a_client_that_says_so_is_modern() {
        for (agent, dialect) in [
            (None, Dialect::Ipxe2012),
            (Some(""), Dialect::Ipxe2012),
            (Some("iPXE/1.0.0+"), Dialect::Ipxe2012), // XenServer's ROM
            (Some("iPXE/1.0.0+git-20190125.36a4c85-5.1"), Dialect::Ipxe2012),
            (Some("gPXE/1.0.1"), Dialect::Gpxe),
            (Some("gPXE"), Dialect::Ipxe2012),
            (Some("iPXE/1.20.1"), Dialect::Modern),
            (Some("iPXE/1.21.1+ (g4bd064de)"), Dialect::Modern),
            (Some("iPXE/2.0.0"), Dialect::Modern),
            (Some("iPXE/99999999999999.1"), Dialect::Ipxe2012),
            (Some("curl/7.88"), Dialect::Ipxe2012),
        ] {
            assert_eq!(Dialect::of_user_agent(agent), dialect, "{agent:?}");
        }
    }
}

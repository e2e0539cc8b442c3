//! What `xl` says, and what a guest's console proves. Pure.

use crate::sim::pool::GuestAct;

/// What a line of `xl create -F` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The domain is there.
    Built(u32),
    /// The guest ended, and how; xl destroys the domain now.
    Ended(GuestAct),
    /// The bootloader failed; its words are in this file of dom0.
    Bootloader(String),
    /// The last domain of this name is still being destroyed.
    NotYet,
}

/// Reads one line; `None`: nothing that matters.
pub fn said(line: &str) -> Option<Said> {
    if line.starts_with("Waiting for domain ") {
        let (_, behind) = line.rsplit_once("(domid ")?;
        return behind.split(')').next()?.parse().ok().map(Said::Built);
    }
    if let Some((_, behind)) = line.split_once(" has shut down, reason code ") {
        // SHUTDOWN_* in Xen's public/sched.h.
        return Some(Said::Ended(match behind.split(' ').next()? {
            "0" => GuestAct::PowerOff,
            "1" => GuestAct::Reboot,
            _ => GuestAct::Crash,
        }));
    }
    if let Some((_, file)) = line.split_once("bootloader failed - consult logfile ") {
        return Some(Said::Bootloader(file.trim().to_owned()));
    }
    (line.contains("Domain with name") && line.ends_with("already exists.")).then_some(Said::NotYet)
}

/// The domain of this name in the table that `xl list` prints: `Name ID Mem VCPUs State Time(s)`.
pub fn listed(table: &str, name: &str) -> Option<u32> {
    table.lines().skip(1).find_map(|row| {
        // A name may hold spaces; the five columns behind it do not.
        let behind = row.strip_prefix(name)?.strip_prefix(' ')?;
        let columns: Vec<&str> = behind.split_ascii_whitespace().collect();
        if name.is_empty() || columns.len() != 5 {
            return None;
        }
        columns.first()?.parse().ok()
    })
}

/// What the system in the domain says of itself in the line that tells of its `booted` report.
pub const BOOTED: &str = "target: the booted report was taken";

/// The `guest_type` of that line: what the kernel's /sys/hypervisor says, `PV` or `HVM`.
pub fn guest_type(console: &str) -> Option<&str> {
    let line = console.lines().find(|line| line.contains(BOOTED))?;
    line.split_once("guest_type=")?.1.split_ascii_whitespace().next()
}

/// Texts that prove what a guest was: of kernels, of the installer and of the installed system.
const PROOFS: [&str; 6] = [
    "Hypervisor detected: Xen",
    "Booting paravirtualized kernel on Xen",
    "Booting kernel on Xen",
    "Hardware name: Xen HVM domU",
    "installer: done",
    BOOTED,
];

/// The lines of a console that prove something, in their order, each once.
pub fn proofs(console: &str) -> Vec<&str> {
    let mut found: Vec<&str> = Vec::new();
    for line in console.lines().map(str::trim) {
        if PROOFS.iter().any(|proof| line.contains(proof)) && !found.contains(&line) {
            found.push(line);
        }
    }
    found
}

/// What the hypervisor's console has of an HVM domain's firmware: `(d3) ` is what domain 3 said.
pub fn firmware_proofs(console: &str, domid: u32) -> Vec<&str> {
    let tag = format!("(d{domid}) ");
    let firmware = ["SeaBIOS (version", "HVM Loader", "Booting from ROM"];
    let of_domain = console.lines().map(str::trim).filter(|line| line.contains(&tag));
    of_domain.filter(|line| firmware.iter().any(|text| line.contains(text))).collect()
}

/// The name that an iPXE gave itself when it asked for the boot script, from packets as they were captured.
pub fn ipxe_agent(capture: &[u8]) -> Option<String> {
    const HEADER: &[u8] = b"User-Agent: iPXE";
    let begins = capture.windows(HEADER.len()).position(|bytes| bytes == HEADER)?;
    let line = capture.get(begins..)?.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    Some(String::from_utf8_lossy(line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_xl_create_says_is_read_line_by_line() {
        let exists = "libxl: error: libxl_domain.c:81:libxl__domain_rename: Domain 2:Domain with name \"vm1\" already exists.";
        let log = "/var/log/xen/bootloader.1.log";
        let failed = format!(
            "libxl: error: libxl_bootloader.c:767:bootloader_finished: Domain 1:bootloader failed - consult logfile {log}"
        );
        for (line, expected) in [
            ("Waiting for domain vm1 (domid 5) to die [pid 551]", Some(Said::Built(5))),
            ("Waiting for domain a (domid 9) b (domid 12) to die [pid 1]", Some(Said::Built(12))),
            ("Domain 1 has shut down, reason code 0 0x0", Some(Said::Ended(GuestAct::PowerOff))),
            ("Domain 1 has shut down, reason code 1 0x1", Some(Said::Ended(GuestAct::Reboot))),
            ("Domain 1 has shut down, reason code 3 0x3", Some(Said::Ended(GuestAct::Crash))),
            (failed.as_str(), Some(Said::Bootloader(log.to_owned()))),
            (exists, Some(Said::NotYet)),
            ("Parsing config from /tmp/pv.cfg", None),
            ("Waiting for domain vm1 (domid x) to die", None),
            ("", None),
        ] {
            assert_eq!(said(line), expected, "{line}");
        }
    }

    #[test]
    fn a_domain_is_found_in_the_list_by_its_whole_name() {
        let table = "\
Name                                        ID   Mem VCPUs\tState\tTime(s)
Domain-0                                     0   900     2     r-----     705.1
web 1                                       12   384     1     -b----       0.0
web                                          5   256     1     --p---       0.0
";
        for (name, expected) in
            [("Domain-0", Some(0)), ("web 1", Some(12)), ("web", Some(5)), ("we", None), ("", None)]
        {
            assert_eq!(listed(table, name), expected, "{name}");
        }
        assert_eq!(listed("", "web"), None);
    }

    #[test]
    fn consoles_prove_what_ran() {
        let pv = "[    0.000000] Hypervisor detected: Xen PV\r\n[    5.06] Booting kernel on Xen\r\nlogin\r\n\
            target: the booted report was taken: guest_type=PV root=/dev/xvda3 hostname=web\r\n";
        assert_eq!(guest_type(pv), Some("PV"));
        assert_eq!(proofs(pv).len(), 3);
        assert_eq!(proofs(pv)[1], "[    5.06] Booting kernel on Xen");
        for other in ["", "guest_type=PV", "target: the booted report was taken\n"] {
            assert_eq!(guest_type(other), None, "{other}");
        }
        let capture = b"\x01\xffGET /b/02 HTTP/1.1\r\nUser-Agent: iPXE/1.0.0+git-2019\r\nHost: x\r\n\xfe";
        assert_eq!(ipxe_agent(capture).as_deref(), Some("User-Agent: iPXE/1.0.0+git-2019"));
        assert_eq!(ipxe_agent(b"User-Agent: Wget\r\n"), None);
        let xen = "(XEN) x\n(d3) SeaBIOS (version 1.16)\n(d31) SeaBIOS (version 2)\n(d3) Booting from ROM...\n(d3) y\n";
        assert_eq!(firmware_proofs(xen, 3), ["(d3) SeaBIOS (version 1.16)", "(d3) Booting from ROM..."]);
    }
}

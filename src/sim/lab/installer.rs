//! What a run of the lab installs, the hardware that takes, and what the server is told of it. Pure.

use std::time::Duration;

use super::{layout::profile_section, network::SERVER, scene::DISK};

/// An installer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Installer {
    /// The lab's own, of Debian's kernel and busybox: half a minute.
    #[default]
    Mini,
    /// Debian's, unmodified, from a package mirror in the namespace: half an hour.
    Debian,
}

/// What an installer runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hardware {
    /// Of the disk to install to; sparse. Bytes.
    pub disk: u64,
    /// MiB.
    pub memory: u32,
    /// Virtual processors.
    pub processors: u8,
    /// Whether the first VM has a second disk, whose bytes must stay as they are.
    pub witness: bool,
}

/// A profile of the server's configuration.
#[derive(Debug, Clone, Copy)]
struct Profile {
    name: &'static str,
    /// `fetch`.
    fetch: &'static str,
}

impl Installer {
    /// The files beneath the lab's folder without which it cannot run.
    pub const fn files(self) -> &'static [&'static str] {
        match self {
            Self::Mini => &["www/vmlinuz", "www/initrd.gz", "www/rootfs.cpio"],
            Self::Debian => &["www/linux", "www/initrd.gz", "mirror/debian/dists/trixie/InRelease", "key"],
        }
    }

    /// The script that fills the lab's folder.
    pub const fn prepared_by(self) -> &'static str {
        match self {
            Self::Mini => "tests/lab/prepare.sh",
            Self::Debian => "tests/labinstall/prepare.sh",
        }
    }

    /// What it runs on, here and when the installed system boots.
    pub const fn hardware(self) -> Hardware {
        match self {
            // It unpacks into memory first: kernel, initrds and what the firmware keeps fit in this.
            Self::Mini => Hardware { disk: 600 << 20, memory: 256, processors: 1, witness: true },
            // No second disk: Linux probes IDE disks side by side, and an installer that finds another disk than it
            // was told of stops, as it should.
            Self::Debian => Hardware { disk: 6 << 30, memory: 1536, processors: 2, witness: false },
        }
    }

    /// How long one round of installations may take; some 80 s and 30 minutes on two loaded processors.
    pub const fn longest(self) -> Duration {
        match self {
            Self::Mini => Duration::from_secs(300),
            Self::Debian => Duration::from_secs(3 * 3600),
        }
    }

    /// What the installed system writes to its console when it is up, and how long that may follow its `booted`
    /// report. The mini installer's system writes its line once the report was taken (`target-booted.sh`).
    pub const fn lives(self) -> (&'static str, Duration) {
        match self {
            Self::Mini => ("target: the booted report was taken", Duration::from_secs(10)),
            Self::Debian => (" login:", Duration::from_secs(300)),
        }
    }

    /// The stages at whose report the server is killed in a run with faults.
    pub const fn kills(self) -> &'static [&'static str] {
        match self {
            Self::Mini => &["base"],
            // At the latter the reports `late` and `done` are a moment away, and have to be tried until it is back.
            Self::Debian => &["base", "packages"],
        }
    }

    const fn profiles(self) -> &'static [Profile] {
        match self {
            // They take turns, and the first one's firmware uses TFTP.
            Self::Mini => {
                &[Profile { name: "mini-tftp", fetch: "tftp" }, Profile { name: "mini", fetch: "http" }]
            }
            Self::Debian => &[Profile { name: "debian", fetch: "http" }],
        }
    }

    /// The profile of a VM by its number, from 0.
    pub fn profile(self, number: usize) -> &'static str {
        self.profiles().iter().cycle().nth(number % self.profiles().len()).map_or("", |profile| profile.name)
    }

    /// Lines of `[deadlines]`.
    pub const fn deadlines(self) -> &'static str {
        match self {
            Self::Mini => "",
            // An emulated processor takes its time.
            Self::Debian => {
                "dhcp = \"10m\"\nkernel = \"20m\"\nanswer = \"1h\"\nfirst_stage = \"1h\"\ninstall = \"3h\"\n\
                 halt_after_report = \"20m\"\npv_start = \"10m\"\nevidence = \"30m\"\n"
            }
        }
    }

    /// The profiles of the server's configuration. `key`: what the mirror is signed with, base64.
    pub fn sections(self, key: &str) -> String {
        match self {
            Self::Mini => self.profiles().iter().map(|p| profile_section(p.name, p.fetch, "ttyS0")).collect(),
            Self::Debian => debian(key),
        }
    }
}

/// The package mirror's address, on the bridge: another machine as far as guests can tell.
pub const MIRROR: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 0, 2);

/// The profile that bootflip brings along, with what is the lab's own: its mirror, a smaller kernel package, a console
/// on the serial line, and no timer check, which a loaded emulator fails.
fn debian(key: &str) -> String {
    format!(
        r#"
[profile.debian]
base = "debian"
kernel = "linux"
initrd = ["initrd.gz"]
disk = "{DISK}"

[profile.debian.variables]
mirror_host = "{MIRROR}"
mirror_key = "{key}"
apt_services = []
domain = "lab"
ntp = false
kernel_args = "language=en country=US base-installer/kernel/image=linux-image-cloud-amd64 DEBIAN_FRONTEND=text no_timer_check"
system_kernel_args = "console=ttyS0 no_timer_check"

[syslog]
listen = "{SERVER}:514"
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_take_turns_and_each_has_its_section() {
        for (installer, expected) in [
            (Installer::Mini, ["mini-tftp", "mini", "mini-tftp"]),
            (Installer::Debian, ["debian", "debian", "debian"]),
        ] {
            let sections = installer.sections("a2V5");
            assert_eq!([0, 1, 2].map(|number| installer.profile(number)), expected);
            for name in expected {
                assert!(sections.contains(&format!("\n[profile.{name}]\n")), "{name}");
            }
        }
    }

    #[test]
    fn the_debian_profile_names_the_mirror_and_its_key() {
        let sections = Installer::Debian.sections("a2V5");
        for line in ["mirror_host = \"10.77.0.2\"", "mirror_key = \"a2V5\"", "base = \"debian\""] {
            assert!(sections.lines().any(|written| written == line), "{line}");
        }
    }
}

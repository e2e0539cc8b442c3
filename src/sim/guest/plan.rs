//! How one simulated guest behaves: firmware, durations, and what goes wrong in it. Data only.

use std::time::Duration;

use super::{dhcp::mix, installer::Stage};

/// The behaviour of one guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestPlan {
    /// What looks for the network boot.
    pub firmware: Firmware,
    /// What goes wrong.
    pub mishap: Mishap,
    /// How long things take.
    pub pace: Pace,
    /// Transaction ids and the SMBIOS uuid come from it.
    pub seed: u64,
}

/// The ROM of the boot NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Firmware {
    /// XenServer's own iPXE.
    Ipxe,
    /// A plain BIOS PXE ROM: it loads what the DHCP server names by TFTP, and that is iPXE.
    PxeRom,
}

/// What goes wrong in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mishap {
    /// Nothing.
    None,
    /// The kernel runs and the guest powers off before it fetched an answer file: the old system is still there.
    DieAtOnce,
    /// The installer reboots after its last stage, without a `done` report.
    RebootWithoutReport,
    /// The installer powers off after its last stage, without a `done` report.
    PowerOffWithoutReport,
    /// The installer stops for ever before it reports this stage.
    HangAt(Stage),
    /// The installer posts `failed` in place of this stage, and powers off.
    FailAt(Stage),
    /// The installer reports `done` and never powers off.
    KeepRunningAfterDone,
    /// The installed system never reports.
    SystemKeepsSilent,
}

/// Durations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// From power-on to the first DHCP packet.
    pub post: Duration,
    /// To the first repeat of a DHCP message; doubled three times.
    pub dhcp_wait: Duration,
    /// From the start of a kernel to its first DHCP packet.
    pub kernel: Duration,
    /// Work before each of the five stages and before `done`.
    pub stage: Duration,
    /// From the end of the installation, or from the last try to report it, to power-off.
    pub halt: Duration,
    /// Before the first repeat of a request that failed; doubled up to eight times that.
    pub retry: Duration,
    /// How long a request is repeated before it is given up (ten minutes in the shipped templates).
    pub retry_for: Duration,
}

impl Pace {
    /// Durations of a machine in a hurry, for the demo: an installation of some two to four seconds, each guest a
    /// little different. `retry_for` stands for the ten minutes of the shipped templates.
    pub fn hurried(seed: u64, retry_for: Duration) -> Self {
        let between = |salt: u64, low: u64, high: u64| {
            Duration::from_millis(low + mix(seed ^ salt.rotate_left(17)) % (high - low + 1))
        };
        Self {
            post: between(1, 30, 150),
            dhcp_wait: Duration::from_millis(400),
            kernel: between(2, 50, 200),
            stage: between(3, 200, 550),
            halt: between(4, 50, 200),
            retry: Duration::from_millis(250),
            retry_for,
        }
    }
}

impl GuestPlan {
    /// A guest without mishap; one in four has a plain PXE ROM.
    pub fn hurried(seed: u64, retry_for: Duration) -> Self {
        let firmware = if mix(seed).is_multiple_of(4) { Firmware::PxeRom } else { Firmware::Ipxe };
        Self { firmware, mishap: Mishap::None, pace: Pace::hurried(seed, retry_for), seed }
    }
}

//! Simulated guests: what comes up at a `VM.start`. The cores are pure; `client.rs` is the socket half.
//!
//! A [`Guest`] knows its MAC and its [`GuestPlan`], nothing else: every address, URL, path and token that it uses
//! comes from a packet or a file that it fetched. It takes [`Input`]s and returns [`Output`]s:
//!
//! - started as HVM with order "n" it is XenServer's iPXE ROM of 2012 (`dhcp`, `script`), or a plain BIOS PXE ROM
//!   that loads iPXE by TFTP first, then the kernel's installer (`installer`), which writes the disk and powers off;
//! - started as PV it is what the installer left on the disk ([`InstalledSystem`]).
//!
//! One request is under way at a time, and a timer that is set replaces the one before it.

pub mod answer;
pub mod client;
pub mod dhcp;
pub mod installer;
pub mod machine;
pub mod plan;
pub mod retry;
pub mod script;
pub mod system;
pub mod tftp;
pub mod url;

use std::net::Ipv4Addr;

use crate::clock::Timestamp;

pub use installer::Stage;
pub use machine::Guest;
pub use plan::{Firmware, GuestPlan, Mishap, Pace};

/// What happens to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input<'a> {
    /// The domain was built and unpaused. Once, and first.
    PowerOn,
    /// A datagram came to the DHCP client port, ours or not.
    Dhcp(&'a [u8]),
    /// The request under way ended.
    Fetched(Result<Fetched, FetchError>),
    /// The time may have come; too early is no harm.
    Timer,
}

/// A reply that came in whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The HTTP status; 200 for a TFTP transfer.
    pub status: u16,
    /// The first [`BODY_KEPT`] bytes of the body.
    pub body: Vec<u8>,
    /// The body's whole length in bytes.
    pub length: u64,
}

/// How much of a body a guest looks at, in bytes: scripts and answer files; of kernels only the length counts.
pub const BODY_KEPT: usize = 64 * 1024;

/// Why no reply came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL is none that this firmware knows.
    #[error("the URL `{0}` is not one that this client can fetch")]
    BadUrl(String),
    /// No connection.
    #[error("no connection to {0}")]
    Unreachable(String),
    /// The connection ended before the reply did.
    #[error("the connection ended early")]
    Cut,
    /// The reply is not what the protocol says.
    #[error("bad reply: {0}")]
    BadReply(String),
    /// Nothing came for too long.
    #[error("timed out")]
    TimedOut,
}

/// What a guest wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Broadcast this from the DHCP client port.
    Broadcast(Vec<u8>),
    /// The lease: requests leave from this address from now on.
    Bind(Ipv4Addr),
    /// Fetch an `http://` or `tftp://` URL.
    Get(String),
    /// POST to an `http://` URL.
    Post {
        /// Where to.
        url: String,
        /// What.
        body: String,
    },
    /// Hand in [`Input::Timer`] then.
    Timer(Timestamp),
    /// The disk has a new partition table: what was on it is gone.
    Erased,
    /// The disk holds this from now on.
    Installed(InstalledSystem),
    /// The guest switched itself off. The last output.
    PowerOff,
    /// The guest rebooted; the hypervisor decides what that means. The last output.
    Reboot,
    /// Worth a line.
    Event(Event),
}

/// What an installer left on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstalledSystem {
    /// Where the first boot reports, from the answer file's BOOTED_URL.
    pub booted_url: String,
    /// From the answer file's HOSTNAME; empty: none.
    pub hostname: String,
}

/// What a guest is at, for logs and tests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A DISCOVER goes out.
    Discovering(dhcp::Personality),
    /// An ACK came.
    Leased(Ipv4Addr),
    /// The firmware gave up; the guest sits there with this on its screen.
    NoBootableDevice(String),
    /// The kernel runs, with this command line.
    KernelRuns(String),
    /// The installer is at this stage.
    Stage(Stage),
    /// The installer gave up.
    InstallFailed(String),
    /// A report was not taken, for good.
    ReportGivenUp(String),
    /// The installed system runs.
    SystemRuns,
    /// The installed system's `booted` report was taken.
    BootedReported,
    /// Nothing more happens in this guest until somebody stops it.
    Idle,
}

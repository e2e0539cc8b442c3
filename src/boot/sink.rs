//! How the boot services tell what they saw. The executor implements [`Sink`]; the shells hold it as `Arc<dyn Sink>`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::going::Going;
use crate::{machine::MacAddr, secret::TokenHash};

/// A sign of life of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sign {
    /// A DHCP DISCOVER or REQUEST of a PXE client.
    Dhcp,
    /// A PXE client that the gate refused.
    NetbootRefused,
    /// A loader, by TFTP.
    Loader,
    /// The boot script or PXELINUX configuration.
    Script,
    /// The kernel.
    Kernel,
    /// The initrd.
    Initrd,
    /// A DHCP lease to a client that is not PXE.
    Lease,
}

/// One sign, with who and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The machine.
    pub mac: MacAddr,
    /// What it did.
    pub sign: Sign,
    /// From which address, where it has one.
    pub peer: Option<IpAddr>,
}

/// A report as it came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// SHA-256 of the token in the path.
    pub token: TokenHash,
    /// The stage in the path: started, partitioned, base, packages, ready, late, done, failed, booted.
    pub stage: String,
    /// Up to 64 KiB.
    pub body: Vec<u8>,
    /// Who sent it.
    pub peer: Option<IpAddr>,
    /// It came by GET (accepted only where the profile says so).
    pub by_get: bool,
}

/// What the reporter is told. Each is answered only after it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReportAnswer {
    /// Taken: 201.
    Accepted,
    /// Taken before: 200.
    Already,
    /// The job does not take this report any more: 410.
    Closed,
    /// No such token: 404.
    Unknown,
    /// GET where the profile wants POST: 405.
    WrongMethod,
    /// The store is away: 503 with Retry-After; the reporter tries again.
    Later,
}

/// How a file left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Boot HTTP.
    Http,
    /// TFTP.
    Tftp,
}

impl Protocol {
    /// The label of logs and metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tftp => "tftp",
        }
    }
}

/// A transfer that is over: who, what, how much, for how long, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    /// How.
    pub protocol: Protocol,
    /// The machine, where the request or its address tells.
    pub mac: Option<MacAddr>,
    /// The job, where the request tells.
    pub job: Option<String>,
    /// To which address.
    pub peer: IpAddr,
    /// What was asked for; without tokens.
    pub file: String,
    /// Bytes of content that left.
    pub bytes: u64,
    /// From the request to the end.
    pub took: Duration,
    /// One word: `sent`, `broken-off`, `refused`, …
    pub outcome: &'static str,
}

/// A message of a DHCP client (RFC 2132 §9.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Asked {
    /// Is there a server?
    Discover,
    /// I take this offer, or keep my address.
    Request,
    /// The address is in use.
    Decline,
    /// I need it no longer.
    Release,
    /// I have an address; tell me the rest.
    Inform,
}

/// What kind of client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Asker {
    /// The network card's own firmware (PXE).
    Rom,
    /// UEFI HTTP boot.
    HttpRom,
    /// iPXE.
    Ipxe,
    /// An installer or an installed system.
    System,
}

/// What a DHCP packet was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// An offer; `boots`: it names a boot file.
    Offer {
        /// With a boot file.
        boots: bool,
    },
    /// An ACK.
    Ack {
        /// With a boot file.
        boots: bool,
    },
    /// An ACK once the lease is on disk.
    Storing,
    /// A NAK.
    Nak,
    /// Nothing, and why: a stable label.
    Silence(&'static str),
}

/// A DHCP packet of one machine and what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Packet {
    /// The transaction.
    pub xid: u32,
    /// What was asked.
    pub asked: Asked,
    /// By what.
    pub asker: Asker,
    /// How long the client says that it has been trying, in seconds; some write it with the low byte first.
    pub seconds: u16,
    /// The server that the client chose (option 54).
    pub chose: Option<Ipv4Addr>,
    /// The relay that it came through.
    pub relay: Option<Ipv4Addr>,
    /// The answer.
    pub told: Told,
    /// The address that it is to have.
    pub address: Option<Ipv4Addr>,
}

/// What a boot service noticed of a machine, beside signs, transfers and reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A DHCP packet.
    Packet(Packet),
    /// A lease is on disk, and its ACK has left.
    Leased(Ipv4Addr),
    /// A file was asked for by TFTP that is not there.
    Missing(String),
    /// A syslog line, harmless to show.
    Line {
        /// RFC 5424 §6.2.1, as a word.
        severity: &'static str,
        /// The text.
        text: String,
    },
}

/// A notice of one machine. Nothing is decided by it: it is for the flight recorder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Noted {
    /// The machine, or a stranger.
    pub mac: MacAddr,
    /// From which address, where it has one.
    pub peer: Option<IpAddr>,
    /// What.
    pub what: Notice,
}

/// Where signs, transfers, reports and notices go.
pub trait Sink: Send + Sync + fmt::Debug {
    /// A notice. Never blocks and never fails; a sink without a recorder drops it.
    fn noted(&self, noted: Noted);

    /// A sign. Never blocks and never fails; many of one kind may be folded into one.
    fn seen(&self, seen: Seen);

    /// A file begins to leave for a known machine. Whoever keeps this holds it weakly: it ends when the sender drops it.
    fn going(&self, going: &Arc<Going>);

    /// A transfer has ended. Never blocks and never fails; the oldest are forgotten.
    fn transferred(&self, transfer: Transfer);

    /// The answer file is about to be given out. Returns once that is durable: `true`: give it; `false`: the
    /// attempt has had its ten, or is over.
    fn answer_fetched<'a>(
        &'a self,
        token: TokenHash,
        peer: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>>;

    /// A report.
    fn report(&self, report: Report) -> BoxFuture<'_, ReportAnswer>;
}

/// The store is away just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be written just now")]
pub struct Unavailable;

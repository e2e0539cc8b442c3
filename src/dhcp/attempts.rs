//! What repeated packets of a boot ROM tell: that something between it and us does not work. Pure, and bounded by
//! [`LIMIT`]; nothing depends on it but hints in the log and the second way of telling UEFI what to boot.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    net::Ipv4Addr,
    time::Duration,
};

use crate::{clock::Timestamp, config::architecture, machine::MacAddr};

/// Something that a person should look at; each is told once for its cause, not for every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hint {
    /// The first DISCOVER that arrived was not the first that was sent.
    LateStart {
        /// How long the client had been trying.
        seconds: u16,
    },
    /// A client asks again and again and never takes what it is offered.
    OffersUnheard,
    /// A client's architecture has no loader.
    NoLoader {
        /// Option 93; `None`: it does not say.
        architecture: Option<u16>,
    },
    /// Packets come through a relay that the configuration does not name.
    UnknownRelay {
        /// Its giaddr.
        relay: Ipv4Addr,
    },
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LateStart { seconds } => write!(
                f,
                "it had been asking for {seconds} s before its first packet arrived: a switch port that waits for \
                 spanning tree (up to 30 s; set portfast)? The ROM shows PXE-E51 when it gives up"
            ),
            Self::OffersUnheard => write!(
                f,
                "it asks again and again, so our offers do not arrive or it takes another server's; the ROM shows \
                 PXE-E51 or PXE-E52 (firewall, VLAN, port security, `ethtool -K DEVICE tx off` on a bridge)"
            ),
            Self::NoLoader { architecture: Some(code) } => {
                let word = architecture::word(*code).map_or_else(|| code.to_string(), str::to_owned);
                write!(
                    f,
                    "there is no loader for architecture {code}; name one as {word} in [dhcp.loaders]. The ROM shows \
                     PXE-E53 (UEFI: PXE-E16, PXE-E23 or PXE-E99)"
                )
            }
            Self::NoLoader { architecture: None } => {
                write!(f, "there is no loader for it (no [tftp], or no boot HTTP). The ROM shows PXE-E53")
            }
            Self::UnknownRelay { relay } => {
                write!(
                    f,
                    "packets of relay {relay} are not answered; add it to relays of this [[dhcp]] if it is yours"
                )
            }
        }
    }
}

/// One client's DISCOVERs since its last REQUEST.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    last: Timestamp,
    discovers: u32,
}

/// The attempts that go on, and what was told already.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    going_on: HashMap<MacAddr, Attempt>,
    told: HashSet<Hint>,
}

/// ROMs back off to 32 s; after more than that a DISCOVER begins a new attempt.
const PAUSE: Duration = Duration::from_secs(60);
/// A ROM asks again after 4, 8 and 16 s, so this many in a row are half a minute without an answer.
const UNHEARD: u32 = 4;
/// RFC 951 §3: seconds since the client began to boot; a ROM sends its first packet at once.
const LATE: u16 = 10;
/// The most clients that are watched, and the most hints that are remembered.
const LIMIT: usize = 4096;

impl Attempts {
    /// A boot ROM of a known machine asks: for the how-many-th time, and what that hints at.
    pub(super) fn discover(&mut self, mac: MacAddr, seconds: u16, now: Timestamp) -> (u32, Option<Hint>) {
        if self.going_on.len() >= LIMIT {
            self.going_on.retain(|_, attempt| now.since(attempt.last) <= PAUSE);
            if self.going_on.len() >= LIMIT {
                return (1, None);
            }
        }
        let attempt = self.going_on.entry(mac).or_insert(Attempt { last: now, discovers: 0 });
        if now.since(attempt.last) > PAUSE {
            attempt.discovers = 0;
        }
        attempt.last = now;
        attempt.discovers = attempt.discovers.saturating_add(1);
        let seconds = in_network_order(seconds);
        let hint = match attempt.discovers {
            1 if seconds >= LATE => Some(Hint::LateStart { seconds }),
            UNHEARD => Some(Hint::OffersUnheard),
            _ => None,
        };
        (attempt.discovers, hint)
    }

    /// The client took an offer, ours or another's.
    pub(super) fn request(&mut self, mac: MacAddr) {
        self.going_on.remove(&mac);
    }

    /// The hint, unless it was told before.
    pub(super) fn once(&mut self, hint: Hint) -> Option<Hint> {
        (self.told.len() < LIMIT && self.told.insert(hint)).then_some(hint)
    }
}

/// Some ROMs write the seconds with the low byte first.
const fn in_network_order(seconds: u16) -> u16 {
    if seconds >= 256 && seconds.trailing_zeros() >= 8 { seconds >> 8 } else { seconds }
}

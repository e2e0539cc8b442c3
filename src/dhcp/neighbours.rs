//! Other DHCP servers on the same network, from what they and their clients broadcast. Pure; bounded by [`LIMIT`].
//!
//! In server mode any is one too many: two servers that lease are a race. Beside a proxy one server that leases is
//! the rule; a second one, or one that tells PXE clients what to boot, is worth a warning.

use std::{net::Ipv4Addr, time::Duration};

use dhcproto::v4::{self, borrowed};
use serde::{Deserialize, Serialize};

use super::options::{OPTIONS_AT, Options, code};
use crate::clock::Timestamp;

/// Another server, and what it was heard doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Neighbour {
    /// Option 54, else siaddr, else where the packet came from.
    #[schema(value_type = String)]
    pub server: Ipv4Addr,
    /// It gives addresses.
    pub leases: bool,
    /// It tells PXE clients what to boot.
    pub boots: bool,
    /// When it was first heard.
    pub since: Timestamp,
    /// When it was last heard.
    pub last: Timestamp,
    /// It should not be there.
    pub in_the_way: bool,
}

/// Something that was heard of another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Overheard {
    server: Ipv4Addr,
    leases: bool,
    boots: bool,
}

impl Overheard {
    /// A reply that somebody sent; `None`: it is none.
    pub(super) fn reply(bytes: &[u8], from: Ipv4Addr) -> Option<Self> {
        let header = borrowed::Message::new(bytes).ok().filter(|_| bytes.len() >= OPTIONS_AT)?;
        if header.opcode() != v4::Opcode::BootReply {
            return None;
        }
        let options = Options::of(bytes);
        // An OFFER or an ACK; a NAK says nothing about what its sender gives.
        if !matches!(options.get(code::MESSAGE_TYPE), Some([2 | 5])) {
            return None;
        }
        let named = options.address(code::SERVER_IDENTIFIER);
        let next = Some(header.siaddr()).filter(|next| !next.is_unspecified());
        let class = options.get(code::VENDOR_CLASS).unwrap_or_default();
        Some(Self {
            server: named.or(next).unwrap_or(from),
            leases: !header.yiaddr().is_unspecified(),
            boots: class.starts_with(b"PXEClient") || class.starts_with(b"HTTPClient"),
        })
    }

    /// A client's REQUEST that names the server that it chose.
    pub(super) const fn chosen(server: Ipv4Addr) -> Self {
        Self { server, leases: true, boots: false }
    }
}

/// The servers that were heard.
#[derive(Debug)]
pub(super) struct Neighbours {
    own: Ipv4Addr,
    is_proxy: bool,
    heard: Vec<Neighbour>,
}

/// The most that are remembered: more servers than that are somebody's forgery.
const LIMIT: usize = 16;
/// A server that was not heard for so long is gone.
const GONE: Duration = Duration::from_secs(24 * 3600);

impl Neighbours {
    pub(super) const fn new(own: Ipv4Addr, is_proxy: bool) -> Self {
        Self { own, is_proxy, heard: Vec::new() }
    }

    /// Notes it; `Some`: it is new, or does what it did not do before.
    pub(super) fn hear(&mut self, overheard: Overheard, now: Timestamp) -> Option<Neighbour> {
        let Overheard { server, leases, boots } = overheard;
        if server == self.own {
            return None;
        }
        self.heard.retain(|neighbour| now.since(neighbour.last) < GONE);
        let rivals = self.heard.iter().filter(|neighbour| neighbour.leases && neighbour.server != server);
        let is_second = rivals.count() > 0;
        let known = self.heard.iter().position(|neighbour| neighbour.server == server);
        let at = match known {
            Some(at) => at,
            None if self.heard.len() >= LIMIT => return None,
            None => {
                let (since, last) = (now, now);
                let blank = Neighbour { server, leases: false, boots: false, since, last, in_the_way: false };
                self.heard.push(blank);
                self.heard.len().saturating_sub(1)
            }
        };
        let is_proxy = self.is_proxy;
        let neighbour = self.heard.get_mut(at)?;
        let before = *neighbour;
        neighbour.leases |= leases;
        neighbour.boots |= boots;
        neighbour.last = now;
        neighbour.in_the_way |= !is_proxy || neighbour.boots || (neighbour.leases && is_second);
        let is_news = known.is_none()
            || (before.leases, before.boots, before.in_the_way)
                != (neighbour.leases, neighbour.boots, neighbour.in_the_way);
        is_news.then_some(*neighbour)
    }

    /// Another server gives addresses here.
    pub(super) fn lease(&self, now: Timestamp) -> bool {
        self.heard.iter().any(|neighbour| neighbour.leases && now.since(neighbour.last) < GONE)
    }

    /// All that were heard.
    pub(super) fn all(&self) -> &[Neighbour] {
        &self.heard
    }
}

//! Builds what we send, and chooses where it goes (RFC 2131 §4.1). Pure.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use dhcproto::{
    Encodable,
    v4::{self, OptionCode, UnknownOption},
};

use super::request::{Request, code};
use crate::config::DhcpPool;

/// BOOTP packets have at least this size (RFC 951); some relays and ROMs drop shorter ones.
const SMALLEST: usize = 300;
/// The header's file and sname fields, less a final NUL.
const FILE_LIMIT: usize = 127;
const SERVER_NAME_LIMIT: usize = 63;
const PXE_CLASS: &[u8] = b"PXEClient";
/// PXE specification 2.1: discovery control; 8 = no discovery, boot the file of this packet.
const DISCOVERY_CONTROL: [u8; 3] = [6, 1, 8];
const BOOT_ITEM: [u8; 2] = [71, 4];
const END: u8 = 255;
/// Type and server identifier are never left out; nor is the relay's option.
const ALWAYS: usize = 2;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const LEASE_TIME: u8 = 51;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const TFTP_SERVER: u8 = 66;
const BOOT_FILE: u8 = 67;

/// What kind of message we send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// DHCPOFFER.
    Offer,
    /// DHCPACK.
    Ack,
    /// DHCPNAK.
    Nak,
}

impl Kind {
    /// The name in counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Offer => "offer",
            Self::Ack => "ack",
            Self::Nak => "nak",
        }
    }

    const fn option(self) -> u8 {
        match self {
            Self::Offer => 2,
            Self::Ack => 5,
            Self::Nak => 6,
        }
    }
}

/// Where a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// To all on the interface, at the client port.
    Broadcast,
    /// To a client that has this address, at the client port.
    Client(Ipv4Addr),
    /// To a relay, at the server port.
    Relay(Ipv4Addr),
    /// Back to where it came from.
    Unicast(SocketAddrV4),
}

impl Destination {
    /// For a client that has no address yet.
    pub(super) fn without_address(request: &Request) -> Self {
        if request.giaddr.is_unspecified() { Self::Broadcast } else { Self::Relay(request.giaddr) }
    }

    /// For an ACK: a client that says it has an address is reached there.
    pub(super) fn to_client(request: &Request) -> Self {
        if request.giaddr.is_unspecified() && !request.ciaddr.is_unspecified() {
            Self::Client(request.ciaddr)
        } else {
            Self::without_address(request)
        }
    }
}

/// A packet to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// What it is.
    pub kind: Kind,
    /// Where it goes.
    pub to: Destination,
    /// The datagram.
    pub bytes: Vec<u8>,
}

/// What a client boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Boot {
    /// A URL, or a name on the TFTP server.
    pub(super) file: String,
    /// siaddr and option 66.
    pub(super) next_server: Ipv4Addr,
}

/// A reply in the making. Options are added in order of importance: when the client takes no packet that large,
/// the last ones are left out.
#[derive(Debug)]
pub(super) struct Draft {
    kind: Kind,
    identity: Ipv4Addr,
    to: Destination,
    address: Ipv4Addr,
    broadcast: bool,
    boot: Option<Boot>,
    lease: Vec<(u8, Vec<u8>)>,
    network: Vec<(u8, Vec<u8>)>,
}

impl Draft {
    pub(super) const fn new(kind: Kind, identity: Ipv4Addr) -> Self {
        Self {
            kind,
            identity,
            to: Destination::Broadcast,
            address: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            boot: None,
            lease: Vec::new(),
            network: Vec::new(),
        }
    }

    pub(super) fn to(mut self, to: Destination) -> Self {
        self.to = to;
        self
    }

    pub(super) fn address(mut self, address: Ipv4Addr) -> Self {
        self.address = address;
        self
    }

    pub(super) fn broadcast(mut self) -> Self {
        self.broadcast = true;
        self
    }

    pub(super) fn boot(mut self, boot: Boot) -> Self {
        self.boot = Some(boot);
        self
    }

    /// RFC 2131 §4.4.5: T1 is half of the lease, T2 seven eighths.
    pub(super) fn lease(mut self, lease: Duration) -> Self {
        let seconds = u32::try_from(lease.as_secs()).unwrap_or(u32::MAX);
        let rebinding = u32::try_from(u64::from(seconds) * 7 / 8).unwrap_or(u32::MAX);
        self.lease = [(LEASE_TIME, seconds), (RENEWAL_TIME, seconds / 2), (REBINDING_TIME, rebinding)]
            .map(|(code, value)| (code, value.to_be_bytes().to_vec()))
            .to_vec();
        self
    }

    pub(super) fn network(mut self, pool: &DhcpPool) -> Self {
        self.network.push((SUBNET_MASK, pool.netmask.octets().to_vec()));
        self.network.extend(pool.router.map(|router| (ROUTER, router.octets().to_vec())));
        if !pool.dns.is_empty() {
            self.network.push((DNS, pool.dns.iter().flat_map(Ipv4Addr::octets).collect()));
        }
        self
    }

    /// The packet for the client that sent `request`.
    pub(super) fn encode(self, request: &Request) -> Reply {
        let mut options = self.options(request);
        let (kind, to) = (self.kind, self.to);
        let mut bytes = self.write(request, &options);
        let always = ALWAYS + usize::from(request.relay_agent.is_some());
        while bytes.len() > request.maximum && options.len() > always {
            options.pop();
            bytes = self.write(request, &options);
        }
        bytes.resize(bytes.len().max(SMALLEST), 0);
        Reply { kind, to, bytes }
    }

    /// The options, the most important first.
    fn options(&self, request: &Request) -> Vec<(u8, Vec<u8>)> {
        let mut options = vec![
            (code::MESSAGE_TYPE, vec![self.kind.option()]),
            (code::SERVER_IDENTIFIER, self.identity.octets().to_vec()),
        ];
        debug_assert_eq!(options.len(), ALWAYS);
        options.extend(request.relay_agent.clone().map(|agent| (code::RELAY_AGENT, agent)));
        options.extend(self.lease.iter().take(1).cloned());
        options.extend(self.network.iter().take(1).cloned());
        if let Some(boot) = &self.boot {
            // Without option 60 a ROM takes no boot file from a proxy (PXE specification 2.1 §2.2.3).
            if request.vendor_class {
                options.push((code::VENDOR_CLASS, PXE_CLASS.to_vec()));
            }
            let mut vendor = DISCOVERY_CONTROL.to_vec();
            if let Some(item) = request.boot_item {
                vendor.extend(BOOT_ITEM);
                vendor.extend(item);
            }
            vendor.push(END);
            options.push((code::VENDOR_OPTIONS, vendor));
            options.extend(request.machine_identifier.clone().map(|id| (code::MACHINE_IDENTIFIER, id)));
            let mut file = boot.file.clone().into_bytes();
            if !boot.file.contains("://") {
                file.push(0); // some ROMs take the bytes after the option for more of the name
            }
            options.push((BOOT_FILE, file));
            options.push((TFTP_SERVER, boot.next_server.to_string().into_bytes()));
        }
        options.extend(self.network.iter().skip(1).cloned());
        options.extend(self.lease.iter().skip(1).cloned());
        options.extend(request.client_identifier.clone().map(|id| (code::CLIENT_IDENTIFIER, id)));
        options
    }

    fn write(&self, request: &Request, options: &[(u8, Vec<u8>)]) -> Vec<u8> {
        // A NAK has no addresses at all (RFC 2131 table 3); only an ACK repeats ciaddr.
        let client = if self.kind == Kind::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED };
        let next = self.boot.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |boot| boot.next_server);
        let octets = request.mac.octets();
        let mut message =
            v4::Message::new_with_id(request.xid, client, self.address, next, request.giaddr, &octets);
        message.set_opcode(v4::Opcode::BootReply);
        let broadcast = self.broadcast || request.broadcast;
        message.set_flags(if broadcast {
            v4::Flags::default().set_broadcast()
        } else {
            v4::Flags::default()
        });
        if let Some(boot) = &self.boot {
            if boot.file.len() <= FILE_LIMIT {
                message.set_fname(boot.file.as_bytes());
            }
            let name = boot.next_server.to_string();
            if name.len() <= SERVER_NAME_LIMIT {
                message.set_sname(name.as_bytes());
            }
        }
        for (code, data) in options {
            let option = UnknownOption::new(OptionCode::from(*code), data.clone());
            message.opts_mut().insert(v4::DhcpOption::Unknown(option));
        }
        // Into memory, with fields whose lengths were checked above; an empty datagram is dropped by the shell.
        message.to_vec().unwrap_or_default()
    }
}

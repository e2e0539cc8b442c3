//! Builds what we send, and chooses where it goes (RFC 2131 §4.1). Pure. `overload` has room for what does not fit.

mod overload;

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use dhcproto::{
    Encodable,
    v4::{self, OptionCode, UnknownOption},
};

use self::overload::Overload;
use super::{
    options::code,
    request::{Request, Wanted},
};
use crate::{
    config::{DhcpPool, Pxelinux},
    machine::MacAddr,
};

/// BOOTP packets have at least this size (RFC 951); some relays and ROMs drop shorter ones.
const SMALLEST: usize = 300;
/// The header's file and sname fields, less a final NUL.
const FILE_LIMIT: usize = 127;
const SERVER_NAME_LIMIT: usize = 63;
const PXE_CLASS: &[u8] = b"PXEClient";
const HTTP_CLASS: &[u8] = b"HTTPClient";
/// PXE specification 2.1: discovery control; 8 = no discovery, boot the file of this packet.
const DISCOVERY_CONTROL: [u8; 3] = [6, 1, 8];
const BOOT_ITEM: [u8; 2] = [71, 4];
const END: u8 = 255;
/// Type and server identifier are never left out; nor is the relay's option, which has 255 bytes at most and comes next.
const ALWAYS: usize = 2;

const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const LEASE_TIME: u8 = 51;
const RENEWAL_TIME: u8 = 58;
const REBINDING_TIME: u8 = 59;
const DOMAIN: u8 = 15;
const MTU: u8 = 26;
const NTP: u8 = 42;
/// RFC 5859: TFTP servers as addresses.
const TFTP_SERVER_ADDRESS: u8 = 150;
/// RFC 5071.
const PXELINUX_MAGIC: u8 = 208;
const PXELINUX_MAGIC_VALUE: [u8; 4] = [0xf1, 0, 0x74, 0x7e];
const PXELINUX_CONFIG: u8 = 209;
const PXELINUX_PREFIX: u8 = 210;
const PXELINUX_REBOOT: u8 = 211;
/// Encapsulated in option 175, to an iPXE: do not wait for a ProxyDHCP server.
const NO_PROXY: [u8; 3] = [0xb0, 1, 1];

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
    /// To a network card whose system does not have this address yet, at the client port: in a frame of our own,
    /// because no ARP would find it; by broadcast where we may not send frames.
    Card(MacAddr, Ipv4Addr),
    /// To a relay, at the server port.
    Relay(Ipv4Addr),
    /// Back to where it came from.
    Unicast(SocketAddrV4),
}

impl Destination {
    /// For what every client must hear: refusals, and what a proxy says.
    pub(super) fn to_all(request: &Request) -> Self {
        if request.giaddr.is_unspecified() { Self::Broadcast } else { Self::Relay(request.giaddr) }
    }

    /// For a client that is about to have `address`, and that asks for broadcasts if it can hear nothing else.
    pub(super) fn without_address(request: &Request, address: Ipv4Addr) -> Self {
        if request.giaddr.is_unspecified() && !request.broadcast && !address.is_unspecified() {
            Self::Card(request.mac, address)
        } else {
            Self::to_all(request)
        }
    }

    /// For an ACK: a client that says it has an address is reached there.
    pub(super) fn to_client(request: &Request, address: Ipv4Addr) -> Self {
        if request.giaddr.is_unspecified() && !request.ciaddr.is_unspecified() {
            Self::Client(request.ciaddr)
        } else {
            Self::without_address(request, address)
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
    /// How this kind of client wants to be told.
    pub(super) manner: Manner,
    /// Options for the loader that the file is, behind everything that the client itself needs.
    pub(super) extra: Vec<(u8, Vec<u8>)>,
}

/// How a boot is told to a kind of client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// A BIOS ROM, or iPXE: option 43 says to boot the file of this packet without a discovery.
    Direct,
    /// UEFI: many of its stacks mishandle option 43, and ask the boot server port when there is none.
    Plain,
    /// UEFI HTTP boot takes an offer with its own class only.
    Http,
}

/// What PXELINUX reads from the packet that its ROM kept.
pub(super) fn pxelinux_options(told: &Pxelinux) -> Vec<(u8, Vec<u8>)> {
    let text = |code, text: &Option<String>| Some((code, text.as_ref()?.clone().into_bytes()));
    let seconds = told.reboot_time.map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX));
    let options: Vec<_> = [
        text(PXELINUX_CONFIG, &told.config_file),
        text(PXELINUX_PREFIX, &told.path_prefix),
        seconds.map(|seconds| (PXELINUX_REBOOT, seconds.to_be_bytes().to_vec())),
    ]
    .into_iter()
    .flatten()
    .collect();
    let magic = (!options.is_empty()).then(|| (PXELINUX_MAGIC, PXELINUX_MAGIC_VALUE.to_vec()));
    magic.into_iter().chain(options).collect()
}

/// What clients of a network are told, as options: encoded once, not for every packet.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters {
    /// The netmask: nobody can do without.
    mask: Vec<(u8, Vec<u8>)>,
    /// Told to everybody.
    usual: Vec<(u8, Vec<u8>)>,
    /// Told to who asks for it, or does not say what it wants.
    wished: Vec<(u8, Vec<u8>)>,
}

impl Parameters {
    pub(super) fn of(pool: &DhcpPool) -> Self {
        let addresses = |code, list: &[Ipv4Addr]| {
            let bytes: Vec<u8> = list.iter().flat_map(Ipv4Addr::octets).collect();
            (!bytes.is_empty()).then_some((code, bytes))
        };
        let router: Vec<Ipv4Addr> = pool.router.into_iter().collect();
        let usual = [addresses(ROUTER, &router), addresses(DNS, &pool.dns)];
        let own = [
            pool.domain.clone().map(|domain| (DOMAIN, domain.into_bytes())),
            pool.mtu.map(|mtu| (MTU, mtu.to_be_bytes().to_vec())),
            addresses(NTP, &pool.ntp),
        ];
        let more = pool.options.iter().map(|(code, value)| (*code, value.clone()));
        Self {
            mask: vec![(SUBNET_MASK, pool.netmask.octets().to_vec())],
            usual: usual.into_iter().flatten().collect(),
            wished: own.into_iter().flatten().chain(more).collect(),
        }
    }
}

/// A reply in the making. Options are added in order of importance: when the client takes no packet that large,
/// the last ones go to header fields that are free (option 52), and are left out where these are full too.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    kind: Kind,
    identity: Ipv4Addr,
    to: Destination,
    address: Ipv4Addr,
    broadcast: bool,
    boot: Option<Boot>,
    lease: Option<u32>,
    network: Option<&'a Parameters>,
    alone: bool,
}

impl<'a> Draft<'a> {
    pub(super) const fn new(kind: Kind, identity: Ipv4Addr) -> Self {
        Self {
            kind,
            identity,
            to: Destination::Broadcast,
            address: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            boot: None,
            lease: None,
            network: None,
            alone: false,
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

    /// No proxy adds anything to what we say.
    pub(super) fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    pub(super) fn lease(mut self, lease: Duration) -> Self {
        self.lease = Some(u32::try_from(lease.as_secs()).unwrap_or(u32::MAX));
        self
    }

    pub(super) const fn network(mut self, parameters: &'a Parameters) -> Self {
        self.network = Some(parameters);
        self
    }

    /// The packet for the client that sent `request`.
    pub(super) fn encode(self, request: &Request) -> Reply {
        let mut options = self.options(request);
        let (kind, to) = (self.kind, self.to);
        let mut bytes = self.write(request, &options);
        if bytes.len() > request.maximum {
            // The boot file's name stays where ROMs look for it; the server's name stands in option 66 as well.
            let mut overload = Overload::new(self.boot.is_none());
            while bytes.len() + Overload::cost() > request.maximum && options.len() > ALWAYS {
                if let Some(last) = options.pop() {
                    overload.take(last);
                }
                bytes = self.write(request, &options);
            }
            if let Some((option, fields)) = overload.fields() {
                options.insert(ALWAYS, option);
                bytes = self.write(request, &options);
                overload::fill(&mut bytes, &fields);
            }
        }
        bytes.resize(bytes.len().max(SMALLEST), 0);
        Reply { kind, to, bytes }
    }

    /// The options, the most important first.
    fn options(&self, request: &Request) -> Vec<(u8, Vec<u8>)> {
        let mut options = Vec::with_capacity(24);
        options.push((code::MESSAGE_TYPE, vec![self.kind.option()]));
        options.push((code::SERVER_IDENTIFIER, self.identity.octets().to_vec()));
        debug_assert_eq!(options.len(), ALWAYS);
        options.extend(request.relay_agent.clone().map(|agent| (code::RELAY_AGENT, agent)));
        let seconds = |code, seconds: u32| (code, seconds.to_be_bytes().to_vec());
        options.extend(self.lease.map(|lease| seconds(LEASE_TIME, lease)));
        let network = self.network;
        options.extend(network.iter().flat_map(|network| network.mask.iter().cloned()));
        if let Some(boot) = &self.boot {
            self.boot_options(boot, request, &mut options);
        }
        let wished = |code| request.wanted.is_none_or(|wanted: Wanted| wanted.has(code));
        options.extend(network.iter().flat_map(|network| network.usual.iter().cloned()));
        let more = network.iter().flat_map(|network| &network.wished);
        options.extend(more.filter(|(code, _)| wished(*code)).cloned());
        // RFC 2131 §4.4.5: T1 is half of the lease, T2 seven eighths.
        options.extend(self.lease.map(|lease| seconds(RENEWAL_TIME, lease / 2)));
        options.extend(self.lease.map(|lease| seconds(REBINDING_TIME, lease - lease / 8)));
        options.extend(request.client_identifier.clone().map(|id| (code::CLIENT_IDENTIFIER, id)));
        options
    }

    fn boot_options(&self, boot: &Boot, request: &Request, options: &mut Vec<(u8, Vec<u8>)>) {
        // Without option 60 a ROM takes no boot file from a proxy (PXE specification 2.1 §2.2.3).
        if request.vendor_class {
            let class = match boot.manner {
                Manner::Direct | Manner::Plain => PXE_CLASS,
                Manner::Http => HTTP_CLASS,
            };
            options.push((code::VENDOR_CLASS, class.to_vec()));
        }
        match boot.manner {
            Manner::Direct => {
                let mut vendor = DISCOVERY_CONTROL.to_vec();
                if let Some(item) = request.boot_item {
                    vendor.extend(BOOT_ITEM);
                    vendor.extend(item);
                }
                vendor.push(END);
                options.push((code::VENDOR_OPTIONS, vendor));
            }
            Manner::Plain | Manner::Http => {}
        }
        options.extend(request.machine_identifier.clone().map(|id| (code::MACHINE_IDENTIFIER, id)));
        let mut file = boot.file.clone().into_bytes();
        if !boot.file.contains("://") {
            file.push(0); // some ROMs take the bytes after the option for more of the name
        }
        options.push((code::BOOT_FILE, file));
        options.push((code::TFTP_SERVER, boot.next_server.to_string().into_bytes()));
        if self.alone && request.speaks_ipxe {
            options.push((code::IPXE, NO_PROXY.to_vec()));
        }
        if request.wanted.is_some_and(|wanted| wanted.has(TFTP_SERVER_ADDRESS)) {
            options.push((TFTP_SERVER_ADDRESS, boot.next_server.octets().to_vec()));
        }
        options.extend(boot.extra.iter().cloned());
    }

    fn write(&self, request: &Request, options: &[(u8, Vec<u8>)]) -> Vec<u8> {
        // A NAK has no addresses at all (RFC 2131 table 3); only an ACK repeats ciaddr.
        let client = if self.kind == Kind::Ack { request.ciaddr } else { Ipv4Addr::UNSPECIFIED };
        let next = self.boot.as_ref().map_or(Ipv4Addr::UNSPECIFIED, |boot| boot.next_server);
        let octets = request.mac.octets();
        let mut message =
            v4::Message::new_with_id(request.xid, client, self.address, next, request.giaddr, &octets);
        message.set_opcode(v4::Opcode::BootReply);
        message.set_hops(request.hops);
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
        for (code, data) in options.iter().filter(|(code, _)| *code != code::RELAY_AGENT) {
            let option = UnknownOption::new(OptionCode::from(*code), data.clone());
            message.opts_mut().insert(v4::DhcpOption::Unknown(option));
        }
        // Into memory, with fields whose lengths were checked above; an empty datagram is dropped by the shell.
        let mut bytes = message.to_vec().unwrap_or_default();
        // The codec would write this one twice: as the unknown option that it is given as, and as its own, last.
        if let Some((code, agent)) = options.iter().find(|(code, _)| *code == code::RELAY_AGENT)
            && let Ok(length) = u8::try_from(agent.len())
            && bytes.pop() == Some(END)
        {
            bytes.extend([*code, length]);
            bytes.extend(agent);
            bytes.push(END);
        }
        bytes
    }
}

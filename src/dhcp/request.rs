//! Parses what clients send. Total: no packet panics, allocates more than its own length, or loops.
//!
//! A bad option costs that option alone: a Latin-1 host name or a list of the wrong length says nothing about
//! whether the client can netboot. Options are read as raw bytes for the same reason.

use std::{collections::HashMap, net::Ipv4Addr};

use dhcproto::v4::{self, borrowed};

use crate::machine::MacAddr;

/// RFC 951 header and the cookie of RFC 2131 §3.
const MINIMUM: usize = 240;
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
/// RFC 1700 hardware type of Ethernet.
const ETHERNET: u8 = 1;
const ETHERNET_LENGTH: u8 = 6;
/// RFC 2131 §3: every client takes a DHCP message of this size in its IP packet of 576 bytes.
pub(super) const SMALLEST_MAXIMUM: usize = 548;
/// What an Ethernet frame carries behind IP and UDP headers.
const LARGEST_MAXIMUM: usize = 1472;
/// IP and UDP headers, which option 57 counts and the DHCP message does not.
const HEADERS: usize = 28;

/// Option codes (RFC 2132, 3004, 3046, 4578).
pub(super) mod code {
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER_IDENTIFIER: u8 = 54;
    pub(crate) const MAXIMUM_SIZE: u8 = 57;
    pub(crate) const VENDOR_CLASS: u8 = 60;
    pub(crate) const CLIENT_IDENTIFIER: u8 = 61;
    pub(crate) const VENDOR_OPTIONS: u8 = 43;
    pub(crate) const USER_CLASS: u8 = 77;
    pub(crate) const RELAY_AGENT: u8 = 82;
    pub(crate) const ARCHITECTURE: u8 = 93;
    pub(crate) const MACHINE_IDENTIFIER: u8 = 97;
    /// Etherboot's encapsulated options: what an iPXE can do.
    pub(crate) const IPXE: u8 = 175;
}

/// iPXE feature sub-options of option 175 lie in this range; 0x13 is HTTP.
const IPXE_FEATURES: std::ops::RangeInclusive<u8> = 0x10..=0x2f;
const IPXE_HTTP: u8 = 0x13;
/// RFC 4578 §2.1.
const ARCHITECTURE_BIOS: u16 = 0;
/// PXE specification 2.1 §2.2: the chosen boot item; the layer's highest bit asks for security (BIS).
const PXE_BOOT_ITEM: u8 = 71;
const BOOT_ITEM_BIS: u8 = 0x80;

/// What a client wants (option 53), of what a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Message {
    /// DHCPDISCOVER.
    Discover,
    /// DHCPREQUEST.
    Request,
    /// DHCPDECLINE.
    Decline,
    /// DHCPRELEASE.
    Release,
    /// DHCPINFORM.
    Inform,
}

/// What a client is, as far as booting goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// iPXE or gPXE that speaks HTTP: it gets a URL, never another loader.
    Ipxe,
    /// A BIOS PXE ROM: it gets a loader by TFTP.
    BiosRom,
    /// A network boot client that we have nothing for (UEFI, UEFI HTTP).
    Unsupported,
    /// Not a boot ROM: an operating system or an installer.
    Plain,
}

impl Client {
    /// A boot ROM of any kind.
    pub const fn is_pxe(self) -> bool {
        match self {
            Self::Ipxe | Self::BiosRom | Self::Unsupported => true,
            Self::Plain => false,
        }
    }
}

/// Why a packet is not a request. Counted by label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Shorter than header and cookie.
    TooShort,
    /// Not a BOOTREQUEST.
    NotARequest,
    /// No DHCP cookie: plain BOOTP.
    NoCookie,
    /// Not an Ethernet address of six bytes.
    NotEthernet,
    /// No message type that a server takes.
    NoMessageType,
    /// The client demands Boot Integrity Services.
    BootIntegrity,
}

impl Refusal {
    /// A stable name for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too_short",
            Self::NotARequest => "not_a_request",
            Self::NoCookie => "no_cookie",
            Self::NotEthernet => "not_ethernet",
            Self::NoMessageType => "no_message_type",
            Self::BootIntegrity => "boot_integrity",
        }
    }
}

/// A client's packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Option 53.
    pub message: Message,
    /// Who.
    pub mac: MacAddr,
    /// What it is.
    pub client: Client,
    /// Transaction, echoed.
    pub xid: u32,
    /// Relays passed.
    pub hops: u8,
    /// The broadcast bit.
    pub broadcast: bool,
    /// The address that the client has and can be reached at.
    pub ciaddr: Ipv4Addr,
    /// The relay, if not 0.0.0.0.
    pub giaddr: Ipv4Addr,
    /// Option 50.
    pub requested: Option<Ipv4Addr>,
    /// Option 54.
    pub server: Option<Ipv4Addr>,
    /// The largest DHCP message that the client takes, in bytes, from option 57.
    pub maximum: usize,
    /// It sent option 60, and gets ours back.
    pub vendor_class: bool,
    /// Option 61, echoed (RFC 6842).
    pub client_identifier: Option<Vec<u8>>,
    /// Option 97, echoed.
    pub machine_identifier: Option<Vec<u8>>,
    /// Option 82, echoed.
    pub relay_agent: Option<Vec<u8>>,
    /// The boot item of option 43, echoed.
    pub boot_item: Option<[u8; 4]>,
}

impl Request {
    /// Parses a datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() < MINIMUM {
            return Err(Refusal::TooShort);
        }
        let header = borrowed::Message::new(bytes).map_err(|_| Refusal::TooShort)?;
        if header.opcode() != v4::Opcode::BootRequest {
            return Err(Refusal::NotARequest);
        }
        if bytes.get(236..MINIMUM) != Some(&MAGIC_COOKIE) {
            return Err(Refusal::NoCookie);
        }
        // Before chaddr(): the codec trusts this length.
        if header.hlen() != ETHERNET_LENGTH || u8::from(header.htype()) != ETHERNET {
            return Err(Refusal::NotEthernet);
        }
        let octets: [u8; 6] = header.chaddr().try_into().map_err(|_| Refusal::NotEthernet)?;
        let options = Options::of(&header, bytes);
        let message = match options.get(code::MESSAGE_TYPE) {
            Some([1]) => Message::Discover,
            Some([3]) => Message::Request,
            Some([4]) => Message::Decline,
            Some([7]) => Message::Release,
            Some([8]) => Message::Inform,
            Some(_) | None => return Err(Refusal::NoMessageType),
        };
        let boot_item = options.boot_item();
        if boot_item.is_some_and(|[_, _, layer, _]| layer & BOOT_ITEM_BIS != 0) {
            return Err(Refusal::BootIntegrity);
        }
        let owned = |code| options.get(code).map(<[u8]>::to_vec);
        Ok(Self {
            message,
            mac: MacAddr::new(octets),
            client: options.client(),
            xid: header.xid(),
            hops: header.hops(),
            broadcast: header.flags().broadcast(),
            ciaddr: header.ciaddr(),
            giaddr: header.giaddr(),
            requested: options.address(code::REQUESTED_ADDRESS),
            server: options.address(code::SERVER_IDENTIFIER),
            maximum: options.maximum(),
            vendor_class: options.get(code::VENDOR_CLASS).is_some(),
            client_identifier: owned(code::CLIENT_IDENTIFIER),
            // RFC 4578 §2.3: a type byte of 0 and 16 bytes.
            machine_identifier: owned(code::MACHINE_IDENTIFIER).filter(|id| id.len() == 17),
            relay_agent: owned(code::RELAY_AGENT).filter(|agent| agent.len() <= usize::from(u8::MAX)),
            boot_item,
        })
    }
}

/// The options of a packet by code, fragments joined (RFC 3396).
struct Options(HashMap<u8, Vec<u8>>);

impl Options {
    fn of(header: &borrowed::Message<'_>, bytes: &[u8]) -> Self {
        let mut options = Self(HashMap::new());
        options.read(header.opts());
        // RFC 2132 §9.3: bit 0 is the file field, bit 1 the sname field. Read once: no option there overloads again.
        let overload = match options.get(code::OVERLOAD) {
            Some([bits]) => *bits,
            Some(_) | None => 0,
        };
        for (bit, field) in [(1, 108..236), (2, 44..108)] {
            if overload & bit != 0 {
                options.read(borrowed::DhcpOptionIterator::new(bytes.get(field).unwrap_or_default()));
            }
        }
        options
    }

    fn read(&mut self, options: borrowed::DhcpOptionIterator<'_>) {
        for option in options {
            self.0.entry(option.code().into()).or_default().extend_from_slice(option.data());
        }
    }

    fn get(&self, code: u8) -> Option<&[u8]> {
        self.0.get(&code).map(Vec::as_slice)
    }

    fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets)).filter(|address| !address.is_unspecified())
    }

    fn maximum(&self) -> usize {
        let asked = self.get(code::MAXIMUM_SIZE).and_then(|size| <[u8; 2]>::try_from(size).ok());
        let asked = asked.map_or(0, |size| usize::from(u16::from_be_bytes(size)));
        asked.saturating_sub(HEADERS).clamp(SMALLEST_MAXIMUM, LARGEST_MAXIMUM)
    }

    fn boot_item(&self) -> Option<[u8; 4]> {
        sub_options(self.get(code::VENDOR_OPTIONS)?)
            .find(|(code, _)| *code == PXE_BOOT_ITEM)
            .and_then(|(_, item)| item.try_into().ok())
    }

    /// By capabilities and names, never by firmware versions (docs/boot-flow.md).
    fn client(&self) -> Client {
        let class = self.get(code::VENDOR_CLASS).unwrap_or_default();
        let is_pxe = class.starts_with(b"PXEClient");
        // Raw (iPXE) or with a length before each (RFC 3004).
        let user_class = self.get(code::USER_CLASS).unwrap_or_default();
        let named = [user_class, user_class.get(1..).unwrap_or_default()]
            .iter()
            .any(|name| name.starts_with(b"iPXE") || name.starts_with(b"gPXE"));
        let features = self.get(code::IPXE);
        if named || features.is_some() {
            return match features.map(speaks_http) {
                Some(false) => self.rom(class),
                Some(true) | None => Client::Ipxe,
            };
        }
        if is_pxe {
            self.rom(class)
        } else if class.starts_with(b"HTTPClient") {
            Client::Unsupported
        } else {
            Client::Plain
        }
    }

    /// Option 93 decides, a list of which the first counts; old ROMs say it in option 60 alone
    /// (`PXEClient:Arch:00000:UNDI:002001`).
    fn rom(&self, class: &[u8]) -> Client {
        let listed = self.get(code::ARCHITECTURE).and_then(|list| list.first_chunk::<2>());
        let named = || {
            let digits = class.get(15..20).and_then(|digits| std::str::from_utf8(digits).ok())?;
            digits.parse::<u16>().ok()
        };
        let architecture = listed.map(|bytes| u16::from_be_bytes(*bytes)).or_else(named);
        match architecture {
            Some(ARCHITECTURE_BIOS) | None => Client::BiosRom,
            Some(_) => Client::Unsupported,
        }
    }
}

/// Whether an iPXE that lists features lists HTTP; one that lists none is taken at its name.
fn speaks_http(encapsulated: &[u8]) -> bool {
    let mut features = sub_options(encapsulated)
        .map(|(code, _)| code)
        .filter(|code| IPXE_FEATURES.contains(code))
        .peekable();
    features.peek().is_none() || features.any(|code| code == IPXE_HTTP)
}

/// Encapsulated options (RFC 2132 §8.4), up to the first that does not fit.
fn sub_options(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let (code, after) = rest.split_first()?;
            match *code {
                0 => rest = after,
                255 => return None,
                code => {
                    let (length, after) = after.split_first()?;
                    let (data, after) = after.split_at_checked(usize::from(*length))?;
                    rest = after;
                    return Some((code, data));
                }
            }
        }
    })
}

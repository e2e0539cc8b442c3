//! Parses what clients send. Total: no packet panics, allocates more than its own length, or loops.
//! How options are found in it is in `options`.

use std::net::Ipv4Addr;

use dhcproto::v4::{self, borrowed};

use super::options::{OPTIONS_AT, Options, code, sub_options};
use crate::{config::architecture, machine::MacAddr};

/// The cookie of RFC 2131 §3, in front of the options.
const MAGIC_COOKIE: [u8; 4] = [99, 130, 83, 99];
const COOKIE_AT: usize = 236;
/// RFC 1700 hardware type of Ethernet.
const ETHERNET: u8 = 1;
const ETHERNET_LENGTH: u8 = 6;
/// RFC 2131 §3: every client takes a DHCP message of this size in its IP packet of 576 bytes.
pub(super) const SMALLEST_MAXIMUM: usize = 548;
/// What an Ethernet frame carries behind IP and UDP headers.
const LARGEST_MAXIMUM: usize = 1472;
/// IP and UDP headers, which option 57 counts and the DHCP message does not.
const HEADERS: usize = 28;
/// A client lists one architecture, or the few that its firmware can start.
const ARCHITECTURES_LIMIT: usize = 8;
/// RFC 4578 §2.3: a type byte of 0 and 16 bytes.
const MACHINE_IDENTIFIER_LENGTH: usize = 17;

/// iPXE feature sub-options of option 175 lie in this range; 0x13 is HTTP.
const IPXE_FEATURES: std::ops::RangeInclusive<u8> = 0x10..=0x2f;
const IPXE_HTTP: u8 = 0x13;
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
    /// A PXE ROM (BIOS or UEFI), or an iPXE without HTTP: it gets a loader by TFTP.
    Rom,
    /// UEFI HTTP boot: it gets a loader by URL.
    HttpRom,
    /// Not a boot ROM: an operating system or an installer.
    Plain,
}

impl Client {
    /// A boot ROM of any kind.
    pub const fn is_pxe(self) -> bool {
        match self {
            Self::Ipxe | Self::Rom | Self::HttpRom => true,
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
    /// What it can start, by the codes of option 93, the best first; empty where it does not say. At most eight.
    pub architectures: Vec<u16>,
    /// It is an iPXE of any kind, and heeds option 175.
    pub speaks_ipxe: bool,
    /// Transaction, echoed.
    pub xid: u32,
    /// Relays passed.
    pub hops: u8,
    /// How long the client has been trying, by its own clock, in seconds.
    pub seconds: u16,
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
    /// What it asks for (option 55); `None`: it does not say, and is told everything.
    pub wanted: Option<Wanted>,
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

/// A set of option codes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted([u64; 4]);

impl Wanted {
    fn of(codes: &[u8]) -> Self {
        let mut wanted = Self::default();
        for code in codes {
            if let Some(word) = wanted.0.get_mut(usize::from(code / 64)) {
                *word |= 1 << (code % 64);
            }
        }
        wanted
    }

    /// Whether the code is in the set.
    pub fn has(self, code: u8) -> bool {
        self.0.get(usize::from(code / 64)).is_some_and(|word| word >> (code % 64) & 1 == 1)
    }
}

impl Request {
    /// Parses a datagram.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() < OPTIONS_AT {
            return Err(Refusal::TooShort);
        }
        let header = borrowed::Message::new(bytes).map_err(|_| Refusal::TooShort)?;
        if header.opcode() != v4::Opcode::BootRequest {
            return Err(Refusal::NotARequest);
        }
        if bytes.get(COOKIE_AT..OPTIONS_AT) != Some(&MAGIC_COOKIE) {
            return Err(Refusal::NoCookie);
        }
        // Before chaddr(): the codec trusts this length.
        if header.hlen() != ETHERNET_LENGTH || u8::from(header.htype()) != ETHERNET {
            return Err(Refusal::NotEthernet);
        }
        let octets: [u8; 6] = header.chaddr().try_into().map_err(|_| Refusal::NotEthernet)?;
        let options = Options::of(bytes);
        let message = match options.get(code::MESSAGE_TYPE) {
            Some([1]) => Message::Discover,
            Some([3]) => Message::Request,
            Some([4]) => Message::Decline,
            Some([7]) => Message::Release,
            Some([8]) => Message::Inform,
            Some(_) | None => return Err(Refusal::NoMessageType),
        };
        let boot_item = boot_item(&options);
        if boot_item.is_some_and(|[_, _, layer, _]| layer & BOOT_ITEM_BIS != 0) {
            return Err(Refusal::BootIntegrity);
        }
        let owned = |code| options.get(code).map(<[u8]>::to_vec);
        Ok(Self {
            message,
            mac: MacAddr::new(octets),
            client: client(&options),
            architectures: architectures(&options),
            speaks_ipxe: names_ipxe(&options) || options.get(code::IPXE).is_some(),
            xid: header.xid(),
            hops: header.hops(),
            seconds: header.secs(),
            broadcast: header.flags().broadcast(),
            ciaddr: header.ciaddr(),
            giaddr: header.giaddr(),
            requested: options.address(code::REQUESTED_ADDRESS),
            server: options.address(code::SERVER_IDENTIFIER),
            wanted: options.get(code::PARAMETER_LIST).map(Wanted::of),
            maximum: maximum(&options),
            vendor_class: options.get(code::VENDOR_CLASS).is_some(),
            client_identifier: owned(code::CLIENT_IDENTIFIER),
            machine_identifier: owned(code::MACHINE_IDENTIFIER)
                .filter(|id| id.len() == MACHINE_IDENTIFIER_LENGTH && id.first() == Some(&0)),
            relay_agent: owned(code::RELAY_AGENT).filter(|agent| agent.len() <= usize::from(u8::MAX)),
            boot_item,
        })
    }
}

fn maximum(options: &Options<'_>) -> usize {
    let asked = options.get(code::MAXIMUM_SIZE).and_then(|size| <[u8; 2]>::try_from(size).ok());
    let asked = asked.map_or(0, |size| usize::from(u16::from_be_bytes(size)));
    asked.saturating_sub(HEADERS).clamp(SMALLEST_MAXIMUM, LARGEST_MAXIMUM)
}

fn boot_item(options: &Options<'_>) -> Option<[u8; 4]> {
    sub_options(options.get(code::VENDOR_OPTIONS)?)
        .find(|(code, _)| *code == PXE_BOOT_ITEM)
        .and_then(|(_, item)| item.try_into().ok())
}

/// By capabilities and names, never by firmware versions (docs/boot-flow.md).
fn client(options: &Options<'_>) -> Client {
    let class = options.get(code::VENDOR_CLASS).unwrap_or_default();
    let features = options.get(code::IPXE);
    if names_ipxe(options) || features.is_some() {
        return match features.map(speaks_http) {
            Some(false) => Client::Rom,
            Some(true) | None => Client::Ipxe,
        };
    }
    if class.starts_with(PXE_CLIENT) {
        Client::Rom
    } else if class.starts_with(HTTP_CLIENT) {
        Client::HttpRom
    } else {
        Client::Plain
    }
}

/// What the vendor class of network boot clients begins with (PXE specification 2.1 §2.2, UEFI §24.7.3.1).
const PXE_CLIENT: &[u8] = b"PXEClient";
const HTTP_CLIENT: &[u8] = b"HTTPClient";

/// The user class says iPXE or gPXE: as it is, as iPXE sends it, or with a length before each (RFC 3004).
fn names_ipxe(options: &Options<'_>) -> bool {
    let class = options.get(code::USER_CLASS).unwrap_or_default();
    let is_name = |name: &[u8]| name.starts_with(b"iPXE") || name.starts_with(b"gPXE");
    let mut rest = class;
    let listed = std::iter::from_fn(|| {
        let (length, after) = rest.split_first()?;
        let (name, after) = after.split_at_checked(usize::from(*length))?;
        rest = after;
        Some(name)
    });
    is_name(class) || listed.take(ARCHITECTURES_LIMIT).any(is_name)
}

/// Option 93 decides, a list in the order of the client's preference; old ROMs say it in option 60 alone
/// (`PXEClient:Arch:00000:UNDI:002001`).
fn architectures(options: &Options<'_>) -> Vec<u16> {
    let listed = options.get(code::ARCHITECTURE).unwrap_or_default();
    let pair = |pair: &[u8]| <[u8; 2]>::try_from(pair).map(u16::from_be_bytes).ok();
    let codes: Vec<u16> = listed.chunks_exact(2).take(ARCHITECTURES_LIMIT).filter_map(pair).collect();
    if !codes.is_empty() {
        return codes;
    }
    let class = options.get(code::VENDOR_CLASS).unwrap_or_default();
    let named = class.windows(ARCH_MARK.len() + 5).find_map(|part| {
        let digits = std::str::from_utf8(part.strip_prefix(ARCH_MARK)?).ok()?;
        digits.parse::<u16>().ok()
    });
    named.or_else(|| class.starts_with(PXE_CLIENT).then_some(architecture::BIOS)).into_iter().collect()
}

/// Stands in the vendor class in front of five digits.
const ARCH_MARK: &[u8] = b":Arch:";

/// Whether an iPXE that lists features lists HTTP; one that lists none is taken at its name.
fn speaks_http(encapsulated: &[u8]) -> bool {
    let mut features = sub_options(encapsulated).filter(|(code, _)| IPXE_FEATURES.contains(code)).peekable();
    // A feature is there with a value of 1; 0 says that it is not.
    features.peek().is_none() || features.any(|(code, value)| code == IPXE_HTTP && value.first() != Some(&0))
}

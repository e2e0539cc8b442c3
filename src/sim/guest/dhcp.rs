//! A DHCP client as firmware and installers have it (RFC 2131 §4.4, RFC 4578). Pure.
//!
//! It has a packet codec of its own, on purpose: an error in the server's codec must not be matched by the same
//! error here.

use std::{collections::BTreeMap, fmt, net::Ipv4Addr, time::Duration};

use crate::{clock::Timestamp, machine::MacAddr};

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Personality {
    /// XenServer's iPXE ROM, or an iPXE that another ROM loaded.
    Ipxe,
    /// A BIOS PXE ROM that is not iPXE.
    PxeRom,
    /// Linux: the installer's or the installed system's client, with a client identifier of another kind.
    Linux,
}

impl fmt::Display for Personality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipxe => "iPXE",
            Self::PxeRom => "PXE ROM",
            Self::Linux => "Linux",
        })
    }
}

/// What an ACK gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Our address.
    pub address: Ipv4Addr,
    /// siaddr; 0.0.0.0: none.
    pub next_server: Ipv4Addr,
    /// Option 67, else the header's `file`; empty: none.
    pub boot_file: String,
    /// Option 12; empty: none.
    pub hostname: String,
}

/// What the client wants, or came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Wait,
    /// Broadcast this; ask again at that time unless an answer came.
    Send(Vec<u8>, Timestamp),
    /// Done.
    Bound(Lease),
    /// Nobody answered often enough.
    GaveUp,
}

/// One run of the client, from DISCOVER to ACK.
#[derive(Debug, Clone)]
pub struct Client {
    personality: Personality,
    mac: MacAddr,
    uuid: [u8; 16],
    xid: u32,
    first_wait: Duration,
    waits: u32,
    naks: u32,
    started: Timestamp,
    due: Timestamp,
    state: State,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Discovering,
    Requesting { offered: Ipv4Addr, server: Ipv4Addr },
    Over,
}

impl Client {
    /// A client that has sent nothing yet. `seed` makes the transaction id and the SMBIOS uuid; `first_wait` is the
    /// time to the first repeat, doubled at each.
    pub fn new(personality: Personality, mac: MacAddr, seed: u64, first_wait: Duration) -> Self {
        let (high, low) = (mix(seed), mix(seed ^ 1));
        let mut uuid = [0; 16];
        uuid.iter_mut()
            .zip(high.to_be_bytes().into_iter().chain(low.to_be_bytes()))
            .for_each(|(to, from)| *to = from);
        let xid = u32::try_from(mix(seed ^ (2 + personality as u64)) >> 32).unwrap_or_default();
        let zero = Timestamp::default();
        Self {
            personality,
            mac,
            uuid,
            xid,
            first_wait,
            waits: 0,
            naks: 0,
            started: zero,
            due: zero,
            state: State::Discovering,
        }
    }

    /// Sends the first DISCOVER.
    pub fn start(&mut self, now: Timestamp) -> Step {
        self.started = now;
        self.send(now)
    }

    /// A REQUEST is out: an ACK may be on its way.
    pub const fn awaits_ack(&self) -> bool {
        matches!(self.state, State::Requesting { .. })
    }

    /// The time may have come for a repeat.
    pub fn timer(&mut self, now: Timestamp) -> Step {
        if now < self.due || self.state == State::Over {
            return Step::Wait;
        }
        self.waits += 1;
        if self.waits < TRIES {
            return self.send(now);
        }
        match self.state {
            State::Requesting { .. } => {
                self.waits = 0;
                self.state = State::Discovering;
                self.send(now)
            }
            State::Discovering | State::Over => {
                self.state = State::Over;
                Step::GaveUp
            }
        }
    }

    /// A datagram came, from anybody and for anybody.
    pub fn handle(&mut self, bytes: &[u8], now: Timestamp) -> Step {
        let Some(reply) = Reply::parse(bytes).filter(|reply| reply.xid == self.xid && reply.mac == self.mac)
        else {
            return Step::Wait;
        };
        match self.state {
            State::Discovering if reply.kind == OFFER && !reply.address.is_unspecified() => {
                match reply.server {
                    Some(server) => {
                        self.state = State::Requesting { offered: reply.address, server };
                        self.waits = 0;
                        self.send(now)
                    }
                    None => Step::Wait,
                }
            }
            State::Requesting { server, .. } if reply.server != Some(server) => Step::Wait,
            State::Requesting { offered, .. } if reply.kind == ACK && reply.address == offered => {
                self.state = State::Over;
                Step::Bound(reply.lease())
            }
            State::Requesting { .. } if reply.kind == NAK => {
                self.naks += 1;
                if self.naks > MAX_NAKS {
                    self.state = State::Over;
                    return Step::GaveUp;
                }
                self.state = State::Discovering;
                self.send(now)
            }
            State::Discovering | State::Requesting { .. } | State::Over => Step::Wait,
        }
    }

    fn send(&mut self, now: Timestamp) -> Step {
        let wait = self.first_wait * 2_u32.pow(self.waits.min(MAX_DOUBLINGS));
        self.due = now + wait;
        Step::Send(self.packet(now), self.due)
    }

    fn packet(&self, now: Timestamp) -> Vec<u8> {
        let seconds = u16::try_from(now.since(self.started).as_secs()).unwrap_or(u16::MAX);
        let mut packet = vec![BOOTREQUEST, ETHERNET, 6, 0];
        packet.extend(self.xid.to_be_bytes());
        packet.extend(seconds.to_be_bytes());
        packet.extend(BROADCAST_FLAG.to_be_bytes());
        packet.extend([0; 16]); // ciaddr, yiaddr, siaddr, giaddr
        packet.extend(self.mac.octets());
        packet.extend([0; 10 + 64 + 128]); // rest of chaddr, sname, file
        packet.extend(COOKIE);
        let mut option = |code: u8, data: &[u8]| {
            packet.push(code);
            packet.push(u8::try_from(data.len()).unwrap_or(u8::MAX));
            packet.extend(data);
        };
        match self.state {
            State::Discovering | State::Over => option(MESSAGE_TYPE, &[DISCOVER]),
            State::Requesting { offered, server } => {
                option(MESSAGE_TYPE, &[REQUEST]);
                option(SERVER_ID, &server.octets());
                option(REQUESTED_ADDRESS, &offered.octets());
            }
        }
        self.options(&mut option);
        packet.push(END);
        packet.resize(packet.len().max(MIN_PACKET), 0);
        packet
    }

    fn options(&self, option: &mut impl FnMut(u8, &[u8])) {
        option(MAX_SIZE, &1472_u16.to_be_bytes());
        let hardware = [[ETHERNET].as_slice(), &self.mac.octets()].concat();
        match self.personality {
            Personality::Ipxe | Personality::PxeRom => {
                option(VENDOR_CLASS, b"PXEClient:Arch:00000:UNDI:002001");
                option(ARCHITECTURE, &[0, 0]);
                option(UNDI, &[1, 2, 1]);
                option(MACHINE_ID, &[[0].as_slice(), &self.uuid].concat());
                option(PARAMETERS, &[1, 3, 6, 7, 12, 15, 17, 43, 60, 66, 67, 119, 128, 129, 130, 175, 203]);
            }
            Personality::Linux => {
                // RFC 4361: type 255, an IAID, then a DUID-LL; not the firmware's client identifier (pxe.md 19).
                let duid = [[255, 0, 0, 0, 1, 0, 3, 0, 1].as_slice(), &self.mac.octets()].concat();
                option(CLIENT_ID, &duid);
                option(PARAMETERS, &[1, 28, 2, 3, 15, 6, 119, 12, 44, 47, 26, 121, 42]);
            }
        }
        if self.personality == Personality::Ipxe {
            option(CLIENT_ID, &hardware);
            option(USER_CLASS, b"iPXE");
            // Bus id of an rtl8139, version 1.0.0, then what this build can do: bzImage, HTTP, TFTP, PXE.
            let bus = [0xb1, 5, 1, 0x10, 0xec, 0x81, 0x39];
            let features = [0xeb, 3, 1, 0, 0, 0x18, 1, 1, 0x13, 1, 1, 0x15, 1, 1, 0x21, 1, 1];
            option(IPXE_ENCAPSULATED, &[bus.as_slice(), &features].concat());
        }
    }
}

/// What a client reads of a reply.
#[derive(Debug)]
struct Reply {
    xid: u32,
    mac: MacAddr,
    kind: u8,
    server: Option<Ipv4Addr>,
    address: Ipv4Addr,
    next_server: Ipv4Addr,
    file: String,
    options: BTreeMap<u8, Vec<u8>>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let reply = bytes.get(..3)? == [BOOTREPLY, ETHERNET, 6] && bytes.get(236..240)? == COOKIE;
        let options = reply.then(|| options(bytes.get(240..).unwrap_or_default()))?;
        let mac: [u8; 6] = bytes.get(28..34)?.try_into().ok()?;
        Some(Self {
            xid: u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?),
            mac: MacAddr::new(mac),
            kind: *options.get(&MESSAGE_TYPE)?.first()?,
            server: options.get(&SERVER_ID).and_then(|data| address(data)),
            address: address(bytes.get(16..20)?)?,
            next_server: address(bytes.get(20..24)?)?,
            file: text(bytes.get(108..236)?),
            options,
        })
    }

    fn lease(&self) -> Lease {
        let option = |code| self.options.get(&code).map(|data| text(data)).unwrap_or_default();
        let named = option(BOOT_FILE);
        Lease {
            address: self.address,
            next_server: self.next_server,
            boot_file: if named.is_empty() { self.file.clone() } else { named },
            hostname: option(HOSTNAME),
        }
    }
}

fn options(mut bytes: &[u8]) -> BTreeMap<u8, Vec<u8>> {
    let mut found: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    while let Some((&code, rest)) = bytes.split_first() {
        match code {
            PAD => bytes = rest,
            END => break,
            _ => {
                let Some((&length, rest)) = rest.split_first() else { break };
                let Some((data, rest)) = rest.split_at_checked(usize::from(length)) else { break };
                found.entry(code).or_default().extend(data); // RFC 3396: parts of one option are joined
                bytes = rest;
            }
        }
    }
    found
}

fn address(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// SplitMix64's output function: spreads a seed's bits.
pub(crate) const fn mix(seed: u64) -> u64 {
    let a = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let b = (a ^ (a >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let c = (b ^ (b >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    c ^ (c >> 31)
}

/// How often one message is sent before the client gives up.
const TRIES: u32 = 8;
/// The wait between repeats grows up to this many doublings (iPXE of 2012: 1 s to 8 s).
const MAX_DOUBLINGS: u32 = 3;
/// A server that refuses what it offers, again and again, is left alone.
const MAX_NAKS: u32 = 3;
/// RFC 1542 §2.1: clients fill a BOOTP packet up to 300 bytes.
const MIN_PACKET: usize = 300;
const BOOTREQUEST: u8 = 1;
const BOOTREPLY: u8 = 2;
const ETHERNET: u8 = 1;
const BROADCAST_FLAG: u16 = 0x8000;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
// RFC 2132, 4578 and 3004 option codes.
const PAD: u8 = 0;
const HOSTNAME: u8 = 12;
const REQUESTED_ADDRESS: u8 = 50;
const MESSAGE_TYPE: u8 = 53;
const SERVER_ID: u8 = 54;
const PARAMETERS: u8 = 55;
const MAX_SIZE: u8 = 57;
const VENDOR_CLASS: u8 = 60;
const CLIENT_ID: u8 = 61;
const BOOT_FILE: u8 = 67;
const USER_CLASS: u8 = 77;
const ARCHITECTURE: u8 = 93;
const UNDI: u8 = 94;
const MACHINE_ID: u8 = 97;
const IPXE_ENCAPSULATED: u8 = 175;
const END: u8 = 255;
// RFC 2132 §9.6 message types.
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;
const NAK: u8 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);
    const SERVER: [u8; 4] = [127, 0, 0, 1];

    fn client(personality: Personality) -> Client {
        Client::new(personality, MAC, 7, Duration::from_millis(100))
    }

    fn sent(step: Step) -> Vec<u8> {
        match step {
            Step::Send(packet, _) => packet,
            Step::Wait | Step::Bound(_) | Step::GaveUp => panic!("nothing sent: {step:?}"),
        }
    }

    fn reply(request: &[u8], kind: u8, file: &[u8], extra: &[u8]) -> Vec<u8> {
        let mut bytes = request[..240].to_vec();
        bytes[0] = BOOTREPLY;
        bytes[16..20].copy_from_slice(&[127, 64, 0, 9]);
        bytes[20..24].copy_from_slice(&SERVER);
        bytes[108..108 + file.len()].copy_from_slice(file);
        bytes.extend([MESSAGE_TYPE, 1, kind, SERVER_ID, 4]);
        bytes.extend(SERVER);
        bytes.extend(extra);
        bytes.push(END);
        bytes
    }

    fn t(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn discover_carries_what_each_personality_sends() {
        for (personality, present, absent) in [
            (Personality::Ipxe, vec![53, 55, 57, 60, 61, 77, 93, 94, 97, 175], vec![]),
            (Personality::PxeRom, vec![53, 55, 57, 60, 93, 94, 97], vec![77, 175]),
            (Personality::Linux, vec![53, 55, 61], vec![60, 77, 93, 94, 97, 175]),
        ] {
            let packet = sent(client(personality).start(t(0)));
            let found = options(&packet[240..]);
            present.iter().for_each(|code| assert!(found.contains_key(code), "{personality} lacks {code}"));
            absent.iter().for_each(|code| assert!(!found.contains_key(code), "{personality} has {code}"));
            assert!(packet.len() >= MIN_PACKET);
        }
    }

    #[test]
    fn offer_then_ack_is_a_lease_with_the_boot_file_of_option_67_first() {
        for (extra, expected) in
            [(b"\x43\x05other".as_slice(), "other"), (b"".as_slice(), "http://127.0.0.1/b/x")]
        {
            let mut client = client(Personality::Ipxe);
            let discover = sent(client.start(t(0)));
            let request = sent(client.handle(&reply(&discover, OFFER, b"", b""), t(1)));
            let options = options(&request[240..]);
            assert_eq!(options[&REQUESTED_ADDRESS], [127, 64, 0, 9]);
            assert_eq!(options[&SERVER_ID], SERVER);
            let bound = client.handle(&reply(&request, ACK, b"http://127.0.0.1/b/x", extra), t(2));
            let Step::Bound(lease) = bound else { panic!("{bound:?}") };
            assert_eq!((lease.address, lease.boot_file.as_str()), (Ipv4Addr::new(127, 64, 0, 9), expected));
        }
    }

    #[test]
    fn replies_to_others_and_rubbish_change_nothing() {
        let mut client = client(Personality::Ipxe);
        let discover = sent(client.start(t(0)));
        let good = reply(&discover, OFFER, b"", b"");
        let (mut other_mac, mut other_xid, mut request) = (good.clone(), good.clone(), good.clone());
        other_mac[33] ^= 1;
        other_xid[7] ^= 1;
        request[0] = BOOTREQUEST;
        for bytes in [other_mac, other_xid, request, good[..239].to_vec(), vec![]] {
            assert_eq!(client.handle(&bytes, t(1)), Step::Wait);
        }
        assert!(matches!(client.handle(&good, t(1)), Step::Send(..)));
    }

    #[test]
    fn unanswered_discover_backs_off_and_ends() {
        let mut client = client(Personality::Ipxe);
        let (mut step, mut dues) = (client.start(t(0)), vec![]);
        while let Step::Send(_, due) = step {
            assert_eq!(client.timer(t(due.millis() - 1)), Step::Wait);
            dues.push(due.millis());
            step = client.timer(due);
        }
        assert_eq!(step, Step::GaveUp);
        assert_eq!(dues, [100, 300, 700, 1500, 2300, 3100, 3900, 4700]);
    }

    #[test]
    fn nak_starts_over() {
        let mut client = client(Personality::Linux);
        let discover = sent(client.start(t(0)));
        let request = sent(client.handle(&reply(&discover, OFFER, b"", b""), t(1)));
        let again = sent(client.handle(&reply(&request, NAK, b"", b""), t(2)));
        assert_eq!(options(&again[240..])[&MESSAGE_TYPE], [DISCOVER]);
    }
}

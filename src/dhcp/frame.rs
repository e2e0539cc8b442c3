//! Ethernet frames with an IPv4 and UDP packet in them (RFC 894, 791, 768): how a client is reached that has no
//! address yet, from the address and device that we mean, with checksums that are really there (some ROMs drop what
//! a bridge with checksum offload lets through). Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::machine::MacAddr;

/// The Ethernet broadcast.
pub const EVERYBODY: MacAddr = MacAddr::new([0xff; 6]);

const ETHERNET_HEADER: usize = 14;
const ETHERTYPE_IP: [u8; 2] = [8, 0];
const IP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const PROTOCOL_UDP: u8 = 17;
/// RFC 791: version 4, five words of header.
const VERSION_AND_LENGTH: u8 = 0x45;
/// RFC 1340: the recommended time to live.
const TIME_TO_LIVE: u8 = 64;

/// A frame from one card to another with a datagram in it; `None`: it is too long for a packet.
pub fn frame(
    cards: (MacAddr, MacAddr),
    (from, to): (SocketAddrV4, SocketAddrV4),
    payload: &[u8],
) -> Option<Vec<u8>> {
    let udp_length = u16::try_from(UDP_HEADER + payload.len()).ok()?;
    let ip_length = u16::try_from(IP_HEADER + UDP_HEADER + payload.len()).ok()?;
    let mut ip = [0; IP_HEADER];
    let [high, low] = ip_length.to_be_bytes();
    let (a, b) = (from.ip().octets(), to.ip().octets());
    let words = [[VERSION_AND_LENGTH, 0], [high, low], [0, 0], [0, 0], [TIME_TO_LIVE, PROTOCOL_UDP], [0, 0]];
    let bytes = words.into_iter().flatten().chain(a).chain(b);
    for (place, byte) in ip.iter_mut().zip(bytes) {
        *place = byte;
    }
    let checksum = !sum(0, &ip);
    for (place, byte) in ip.iter_mut().skip(10).zip(checksum.to_be_bytes()) {
        *place = byte;
    }
    let mut udp = Vec::with_capacity(UDP_HEADER + payload.len());
    for word in [from.port(), to.port(), udp_length, 0] {
        udp.extend(word.to_be_bytes());
    }
    udp.extend(payload);
    let pseudo = a.into_iter().chain(b).chain([0, PROTOCOL_UDP]).chain(udp_length.to_be_bytes());
    let pseudo: Vec<u8> = pseudo.collect();
    // RFC 768: a checksum of zero is sent as all ones, because zero says that there is none.
    let checksum = match !sum(sum(0, &pseudo), &udp) {
        0 => u16::MAX,
        checksum => checksum,
    };
    for (place, byte) in udp.iter_mut().skip(6).zip(checksum.to_be_bytes()) {
        *place = byte;
    }
    let (source, target) = cards;
    let mut frame = Vec::with_capacity(ETHERNET_HEADER + IP_HEADER + udp.len());
    frame.extend(target.octets());
    frame.extend(source.octets());
    frame.extend(ETHERTYPE_IP);
    frame.extend(ip);
    frame.extend(udp);
    Some(frame)
}

/// The datagram of a frame, with where it came from and was sent to; `None`: it is not one whole UDP datagram.
pub fn datagram(frame: &[u8]) -> Option<(SocketAddrV4, SocketAddrV4, &[u8])> {
    let packet = frame.get(ETHERNET_HEADER..).filter(|_| frame.get(12..14) == Some(&ETHERTYPE_IP))?;
    let first = *packet.first()?;
    let header = usize::from(first & 0x0f) * 4;
    let is_whole = packet.get(6..8).is_some_and(|part| matches!(part, [flags, 0] if flags & 0x3f == 0));
    if first >> 4 != 4 || header < IP_HEADER || !is_whole || packet.get(9) != Some(&PROTOCOL_UDP) {
        return None;
    }
    let address = |at: usize| {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    let udp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes(udp.get(at..at + 2)?.try_into().ok()?));
    let payload = udp.get(UDP_HEADER..usize::from(word(4)?))?;
    Some((SocketAddrV4::new(address(12)?, word(0)?), SocketAddrV4::new(address(16)?, word(2)?), payload))
}

/// The ones' complement sum of RFC 1071, continued from `start`.
fn sum(start: u16, bytes: &[u8]) -> u16 {
    let mut total = u32::from(start);
    for pair in bytes.chunks(2) {
        let word = match pair {
            [high, low] => u16::from_be_bytes([*high, *low]),
            [high] => u16::from_be_bytes([*high, 0]),
            _ => 0,
        };
        total += u32::from(word);
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_checksums_that_are_right_and_reads_back() {
        let (from, to) =
            (SocketAddrV4::new([10, 0, 0, 1].into(), 67), SocketAddrV4::new([10, 0, 0, 9].into(), 68));
        for length in [0, 1, 300, 301, 1472] {
            let payload: Vec<u8> = (0..length).map(|n: u32| n.to_le_bytes()[0]).collect();
            let cards = (MacAddr::new([2, 0, 0, 0, 0, 1]), MacAddr::new([2, 0, 0, 0, 0, 2]));
            let frame = frame(cards, (from, to), &payload).unwrap();
            assert_eq!(frame[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
            // RFC 1071: with the checksum in it, all ones.
            assert_eq!(sum(0, &frame[14..34]), 0xffff);
            let udp_length = u16::try_from(8 + payload.len()).unwrap().to_be_bytes();
            let pseudo = [&[10, 0, 0, 1, 10, 0, 0, 9, 0, 17][..], &udp_length].concat();
            assert_eq!(sum(sum(0, &pseudo), &frame[34..]), 0xffff);
            assert_eq!(datagram(&frame), Some((from, to, &payload[..])));
        }
        assert_eq!(frame((EVERYBODY, EVERYBODY), (from, to), &[0; 65_600]), None);
    }

    #[test]
    fn what_is_no_whole_datagram_is_not_read() {
        let at = SocketAddrV4::new([10, 0, 0, 1].into(), 67);
        let whole = frame((EVERYBODY, EVERYBODY), (at, at), b"abc").unwrap();
        for end in 0..whole.len() {
            assert_eq!(datagram(&whole[..end]), None, "{end}");
        }
        for (place, byte) in
            [(12, 0x86), (14, 0x65), (14, 0x44), (14, 0x4f), (20, 0x20), (21, 1), (23, 6), (38, 9)]
        {
            let mut broken = whole.clone();
            broken[place] = byte;
            assert_eq!(datagram(&broken), None, "{place} {byte}");
        }
    }
}

//! A client's datagram: parsing is total, and what was parsed is within its bounds.
#![no_main]

use bootflip::tftp::packet::{BLOCK_SIZES, Packet, Request};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match Packet::parse(bytes) {
        Some(Packet::Read(request) | Packet::Write(request)) => check(&request, bytes),
        Some(Packet::Error { message, .. }) => assert!(message.len() + 4 <= bytes.len()),
        Some(Packet::Acknowledge(_)) => assert!(bytes.len() >= 4),
        Some(Packet::Data | Packet::Options) | None => {}
    }
});

fn check(request: &Request<'_>, bytes: &[u8]) {
    assert!(request.file.len() + 2 <= bytes.len() && !request.file.contains(&0));
    let asked = request.asked;
    assert!(asked.block_size.is_none_or(|size| (BLOCK_SIZES.0..=BLOCK_SIZES.1).contains(&size)));
    assert!(asked.window != Some(0) && asked.timeout != Some(0));
}

//! A client's datagram, and a frame that a packet socket hands over: parsing is total, and what is parsed is within
//! its bounds.
#![no_main]

use bootflip::dhcp::{Request, frame};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((_, _, payload)) = frame::datagram(bytes) {
        assert!(payload.len() <= bytes.len());
        check(payload);
    }
    check(bytes);
});

fn check(bytes: &[u8]) {
    let Ok(request) = Request::parse(bytes) else { return };
    assert!((548..=1472).contains(&request.maximum));
    assert!(request.architectures.len() <= 8);
    assert!(request.machine_identifier.is_none_or(|id| id.len() == 17));
    assert!(request.relay_agent.is_none_or(|agent| agent.len() <= 255));
    let identifier = request.client_identifier.map_or(0, |id| id.len());
    assert!(identifier <= bytes.len());
}

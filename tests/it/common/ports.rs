//! Ports for a server that is started again and must find the same ones.

use std::{
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::atomic::{AtomicU32, Ordering},
};

/// Below what the kernel gives to sockets that ask for any port (from 32768 on), so that none of those takes it while
/// a server is down.
const FIRST: u32 = 10_000;
const COUNT: u32 = 22_000;

/// A port that is free for UDP and TCP at every address, and that this process hands out once. Another process of
/// tests begins somewhere else.
pub(crate) fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let begin = std::process::id().wrapping_mul(2_654_435_761) >> 8;
    loop {
        let at = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + at).unwrap();
        let any = (Ipv4Addr::UNSPECIFIED, port);
        if UdpSocket::bind(any).is_ok() && TcpListener::bind(any).is_ok() {
            return port;
        }
    }
}

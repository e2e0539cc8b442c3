//! A transfer that goes on, as whoever looks at it sees it.
//!
//! Invariant: who sends only counts; nobody who looks holds it up.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering},
    time::Instant,
};

use super::sink::Protocol;
use crate::machine::MacAddr;

/// A transfer from its request to its end: the sender holds it, and drops it then.
#[derive(Debug)]
pub struct Going {
    /// How.
    pub protocol: Protocol,
    /// The machine.
    pub mac: MacAddr,
    /// To which address.
    pub peer: IpAddr,
    /// What was asked for; without tokens.
    pub file: String,
    /// Bytes that are to leave.
    pub length: u64,
    /// When it was asked for.
    pub begun: Instant,
    sent: AtomicU64,
}

impl Going {
    /// One that begins: no byte has left.
    pub const fn new(
        protocol: Protocol,
        (mac, peer): (MacAddr, IpAddr),
        file: String,
        length: u64,
        begun: Instant,
    ) -> Self {
        Self { protocol, mac, peer, file, length, begun, sent: AtomicU64::new(0) }
    }

    /// More bytes have left.
    pub fn add(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// It has come to this byte. What is sent again does not count twice.
    pub fn reach(&self, bytes: u64) {
        self.sent.fetch_max(bytes, Ordering::Relaxed);
    }

    /// Bytes that have left.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

//! Addresses that present tokens which nobody made: after [`TRIES`] of them an address waits.
//!
//! Invariant: the table is bounded; an address that only forgot its token is let in again by itself.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use crate::clock::Timestamp;

/// Unknown tokens within [`WINDOW`] before an address is locked out.
pub const TRIES: u32 = 10;

/// How long tries are remembered, and how long a lockout lasts.
pub const WINDOW: Duration = Duration::from_secs(15 * 60);

/// Addresses remembered; beyond, the one that began longest ago is forgotten.
const ADDRESSES: usize = 10_000;

/// Who tried how often.
#[derive(Debug, Default)]
pub struct Lockout {
    tries: HashMap<IpAddr, Tries>,
}

#[derive(Debug, Clone, Copy)]
struct Tries {
    count: u32,
    since: Timestamp,
}

/// What came of a failed try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tried {
    /// It may try again.
    Noted,
    /// This was the one too many.
    LockedOut,
}

impl Lockout {
    /// How long this address has to wait still.
    pub fn wait(&self, address: IpAddr, now: Timestamp) -> Option<Duration> {
        let tries = self.tries.get(&shared(address)).filter(|tries| tries.count >= TRIES)?;
        let left = WINDOW.saturating_sub(now.since(tries.since));
        (!left.is_zero()).then_some(left)
    }

    /// Notes an unknown token; the lockout counts from the last one.
    pub fn failed(&mut self, address: IpAddr, now: Timestamp) -> Tried {
        let address = shared(address);
        if self.tries.len() >= ADDRESSES && !self.tries.contains_key(&address) {
            self.tries.retain(|_, tries| now.since(tries.since) < WINDOW);
            let oldest = self.tries.iter().min_by_key(|(_, tries)| tries.since).map(|(address, _)| *address);
            if let Some(oldest) = oldest.filter(|_| self.tries.len() >= ADDRESSES) {
                self.tries.remove(&oldest);
            }
        }
        let tries = self.tries.entry(address).or_insert(Tries { count: 0, since: now });
        if now.since(tries.since) >= WINDOW {
            *tries = Tries { count: 0, since: now };
        }
        tries.count += 1;
        if tries.count < TRIES {
            return Tried::Noted;
        }
        tries.since = now;
        if tries.count == TRIES { Tried::LockedOut } else { Tried::Noted }
    }

    /// Forgets what this address tried: it has shown a good token.
    pub fn succeeded(&mut self, address: IpAddr) {
        self.tries.remove(&shared(address));
    }
}

/// What one guesser has at will counts as one address: of IPv6 a /64.
fn shared(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() & !u128::from(u64::MAX)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn tenth_unknown_token_locks_the_address_out_for_a_quarter_of_an_hour() {
        let mut lockout = Lockout::default();
        let (guesser, other) = (address("192.0.2.1"), address("192.0.2.2"));
        for try_ in 0..9 {
            assert_eq!(lockout.failed(guesser, at(try_)), Tried::Noted);
            assert_eq!(lockout.wait(guesser, at(try_)), None);
        }
        assert_eq!(lockout.failed(guesser, at(9)), Tried::LockedOut);
        assert_eq!(lockout.wait(guesser, at(9)), Some(WINDOW));
        assert_eq!(lockout.wait(guesser, at(9 + 899)), Some(Duration::from_secs(1)));
        assert_eq!(lockout.wait(guesser, at(9 + 900)), None);
        assert_eq!(lockout.wait(other, at(9)), None);
        assert_eq!(lockout.failed(guesser, at(9 + 900)), Tried::Noted, "it begins anew");
    }

    #[test]
    fn tries_long_ago_and_before_a_good_token_do_not_count() {
        let mut lockout = Lockout::default();
        let guesser = address("192.0.2.1");
        for _ in 0..9 {
            lockout.failed(guesser, at(0));
        }
        assert_eq!(lockout.failed(guesser, at(900)), Tried::Noted);
        for _ in 0..8 {
            lockout.failed(guesser, at(901));
        }
        lockout.succeeded(guesser);
        assert_eq!(lockout.failed(guesser, at(902)), Tried::Noted);
    }

    #[test]
    fn addresses_of_one_network_of_a_guesser_count_together() {
        let mut lockout = Lockout::default();
        for host in 0..10 {
            lockout.failed(address(&format!("2001:db8::{host:x}")), at(0));
        }
        assert!(lockout.wait(address("2001:db8::ffff"), at(0)).is_some());
        assert!(lockout.wait(address("2001:db8:0:1::1"), at(0)).is_none());
    }

    #[test]
    fn table_stays_bounded() {
        let mut lockout = Lockout::default();
        for number in 0..20_000u32 {
            lockout.failed(IpAddr::V4(number.into()), at(u64::from(number) / 1000));
        }
        assert!(lockout.tries.len() <= ADDRESSES);
        assert!(lockout.tries.contains_key(&IpAddr::V4(19_999.into())));
    }
}

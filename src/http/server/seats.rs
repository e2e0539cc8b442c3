//! Who holds connections. A connection that is asking for nothing gives way to a new one when the room is full, the
//! longest idle first; one with a request in flight never does.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

/// How many connections there may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// From one address.
    pub(super) for_one: usize,
    /// In all.
    pub(super) in_all: usize,
}

#[derive(Debug)]
struct Table {
    room: Room,
    next: u64,
    seats: HashMap<u64, Taken>,
    per_address: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Taken {
    address: IpAddr,
    /// Requests in flight; one connection has one at a time, and the tail of the one before.
    asking: usize,
    /// Counts up with each connection and each request that ends.
    idle_since: u64,
    leave: CancellationToken,
}

/// The seats of a server.
#[derive(Debug, Clone)]
pub(super) struct Seats(Arc<Mutex<Table>>);

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Seats,
    number: u64,
    leave: CancellationToken,
}

impl Seats {
    pub(super) fn new(room: Room) -> Self {
        let table = Table { room, next: 0, seats: HashMap::new(), per_address: HashMap::new() };
        Self(Arc::new(Mutex::new(table)))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A seat for a connection from this address; `None`: all are taken by connections that are being served.
    pub(super) fn take(&self, address: IpAddr) -> Option<Seat> {
        let mut table = self.table();
        let own = table.per_address.get(&address).copied().unwrap_or_default();
        if own >= table.room.for_one {
            table.evict(|taken| taken.address == address)?;
        }
        if table.seats.len() >= table.room.in_all {
            table.evict(|_| true)?;
        }
        let number = table.tick();
        let leave = CancellationToken::new();
        let taken = Taken { address, asking: 0, idle_since: number, leave: leave.clone() };
        table.seats.insert(number, taken);
        *table.per_address.entry(address).or_default() += 1;
        Some(Seat { seats: self.clone(), number, leave })
    }
}

impl Table {
    const fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Ends the connection among these that has asked for nothing for the longest; `None`: all are served just now.
    fn evict(&mut self, among: impl Fn(&Taken) -> bool) -> Option<()> {
        let idle = self.seats.iter().filter(|(_, taken)| taken.asking == 0 && among(taken));
        let number = *idle.min_by_key(|(_, taken)| taken.idle_since)?.0;
        self.remove(number);
        Some(())
    }

    fn remove(&mut self, number: u64) {
        let Some(taken) = self.seats.remove(&number) else { return };
        taken.leave.cancel();
        if let Some(own) = self.per_address.get_mut(&taken.address) {
            *own -= 1;
            if *own == 0 {
                self.per_address.remove(&taken.address);
            }
        }
    }
}

impl Seat {
    /// Is cancelled when the connection must go.
    pub(super) fn leave(&self) -> CancellationToken {
        self.leave.clone()
    }

    /// A request has come.
    pub(super) fn begin(&self) {
        if let Some(taken) = self.seats.table().seats.get_mut(&self.number) {
            taken.asking += 1;
        }
    }

    /// Its answer has left.
    pub(super) fn end(&self) {
        let mut table = self.seats.table();
        let now = table.tick();
        if let Some(taken) = table.seats.get_mut(&self.number) {
            taken.asking = taken.asking.saturating_sub(1);
            taken.idle_since = now;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.table().remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, n])
    }

    #[test]
    fn the_longest_idle_gives_way_and_who_is_served_does_not() {
        let seats = Seats::new(Room { for_one: 9, in_all: 3 });
        let [first, second, third] = [1, 2, 3].map(|n| seats.take(address(n)).unwrap());
        first.begin();
        let fourth = seats.take(address(4)).unwrap();
        let left = |seat: &Seat| seat.leave().is_cancelled();
        assert_eq!([&first, &second, &third, &fourth].map(left), [false, true, false, false]);
        first.end(); // now it is the one that was served last
        drop(second);
        let fifth = seats.take(address(5)).unwrap();
        assert_eq!([&first, &third, &fourth, &fifth].map(left), [false, true, false, false]);
        for seat in [&first, &fourth, &fifth] {
            seat.begin();
        }
        assert!(seats.take(address(6)).is_none());
        drop(fourth);
        assert!(seats.take(address(6)).is_some());
    }

    #[test]
    fn one_address_takes_no_more_than_its_share() {
        let seats = Seats::new(Room { for_one: 2, in_all: 9 });
        let own = [1, 1, 1].map(|n| seats.take(address(n)).unwrap());
        let other = seats.take(address(2)).unwrap();
        let left = |seat: &Seat| seat.leave().is_cancelled();
        assert_eq!(own.each_ref().map(left), [true, false, false]);
        assert!(!left(&other));
        own.iter().for_each(Seat::begin);
        assert!(seats.take(address(1)).is_none());
        drop((own, other));
        let table = seats.table();
        assert!(table.seats.is_empty() && table.per_address.is_empty());
    }
}

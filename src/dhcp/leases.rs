//! The addresses of server mode: who holds which, in memory. Pure.
//!
//! Invariants: one MAC has at most one address and one address at most one MAC; a MAC keeps its address whatever
//! client identifier it sends (PXE, iPXE and Linux send three different ones), also after its lease ended, until
//! somebody else needs it. There is at most one record per address of the range, so strangers cannot fill memory.

use std::{
    collections::{BTreeSet, HashMap},
    net::Ipv4Addr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{clock::Timestamp, config::DhcpPool, machine::MacAddr};

/// A lease as the store keeps it, under `leases/<address>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Who.
    pub mac: MacAddr,
    /// What.
    pub address: Ipv4Addr,
    /// Nobody else gets the address before this; never earlier than what the client was promised.
    pub until: Timestamp,
}

/// How a client stands with us, the least first: it may take what those before it were only offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Standing {
    /// Policy allows it an address that is left over.
    Stranger,
    /// A machine or a reservation names it.
    Known,
    /// A job is about to install it: the addresses that are kept for these are its, too.
    Job,
}

/// A pool that is nearly full, or has room again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Fullness {
    /// First and last address.
    #[schema(value_type = (String, String))]
    pub range: (Ipv4Addr, Ipv4Addr),
    /// Addresses that are leased, offered or declined.
    pub taken: usize,
    /// Addresses that there are.
    pub size: usize,
    /// Nine tenths or more are taken, and have not yet fallen to eight again.
    pub alarm: bool,
}

#[derive(Debug, Clone, Copy)]
struct Record {
    address: Ipv4Addr,
    standing: Standing,
    /// An offer holds the address until then.
    offered: Timestamp,
    /// The store holds the lease until then.
    durable: Timestamp,
    /// A write of the lease is on its way.
    writing: bool,
}

impl Record {
    fn is_live(&self, now: Timestamp) -> bool {
        self.writing || self.offered > now || self.durable > now
    }

    fn is_leased(&self, now: Timestamp) -> bool {
        self.writing || self.durable > now
    }
}

/// The addresses of one pool.
#[derive(Debug)]
pub(super) struct Book {
    range: (u32, u32),
    /// Reserved for one MAC each.
    reservations: HashMap<MacAddr, Ipv4Addr>,
    /// Never given to clients of the range: ours, the router's, reserved ones, network and broadcast.
    excluded: BTreeSet<Ipv4Addr>,
    records: HashMap<MacAddr, Record>,
    holders: HashMap<Ipv4Addr, MacAddr>,
    /// Addresses that somebody uses without asking us, and until when we leave them alone.
    declined: HashMap<Ipv4Addr, Timestamp>,
    /// Addresses of the range that clients can have, those that only jobs get among them.
    size: usize,
    keep_for_jobs: usize,
    /// How many are taken: counted at that time, and since then only added to.
    taken: usize,
    counted: Option<Timestamp>,
    alarm: bool,
    /// Where the search for a free address goes on.
    cursor: u32,
    /// The last search found nothing for strangers; the next one is not before this.
    full_until: Timestamp,
}

/// How long an offered address is kept for the client: longer than a ROM's back-off.
const OFFER_HOLD: Duration = Duration::from_secs(60);
/// How long a declined address is left alone.
const DECLINE_HOLD: Duration = Duration::from_secs(600);
/// How long a full pool is not searched again for strangers.
const FULL_HOLD: Duration = Duration::from_secs(1);
/// How long a count of the taken addresses stands.
const COUNT_HOLD: Duration = Duration::from_secs(1);
/// The alarm begins at nine tenths, and ends below eight.
const ALARM_TENTHS: usize = 9;
const CALM_TENTHS: usize = 8;

impl Book {
    pub(super) fn new(pool: &DhcpPool, own: Ipv4Addr, leases: impl IntoIterator<Item = Lease>) -> Self {
        let mask = u32::from(pool.netmask);
        let range = (u32::from(pool.range.0), u32::from(pool.range.1));
        let network = range.0 & mask;
        let mut excluded: BTreeSet<Ipv4Addr> = pool.reservations.values().copied().collect();
        excluded.extend([own, Ipv4Addr::from(network), Ipv4Addr::from(network | !mask)]);
        excluded.extend(pool.router);
        excluded.extend(&pool.dns);
        let inside = excluded.range(pool.range.0..=pool.range.1.max(pool.range.0)).count();
        let width = usize::try_from(range.1.saturating_sub(range.0)).unwrap_or(usize::MAX).saturating_add(1);
        let mut book = Self {
            range,
            reservations: pool.reservations.iter().map(|(mac, address)| (*mac, *address)).collect(),
            excluded,
            records: HashMap::new(),
            holders: HashMap::new(),
            declined: HashMap::new(),
            size: width.saturating_sub(inside),
            keep_for_jobs: usize::try_from(pool.keep_for_jobs).unwrap_or(usize::MAX),
            taken: 0,
            counted: None,
            alarm: false,
            cursor: range.0,
            full_until: Timestamp::default(),
        };
        // The store has the leases that a client had before its present one, too: the latest counts.
        let mut leases: Vec<Lease> = leases.into_iter().collect();
        leases.sort_by_key(|lease| std::cmp::Reverse(lease.until));
        for lease in leases {
            let is_new = !book.holders.contains_key(&lease.address) && !book.records.contains_key(&lease.mac);
            if is_new && book.may_hold(lease.mac, lease.address) {
                let record = Record {
                    address: lease.address,
                    standing: Standing::Known,
                    offered: Timestamp::default(),
                    durable: lease.until,
                    writing: false,
                };
                book.put(lease.mac, record);
            }
        }
        book
    }

    /// The address to offer; it is held for a minute.
    pub(super) fn offer(
        &mut self,
        mac: MacAddr,
        standing: Standing,
        requested: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        let own =
            self.records.get(&mac).copied().filter(|record| {
                self.may_hold(mac, record.address) && !self.is_declined(record.address, now)
            });
        let address = match own {
            Some(record) if record.is_live(now) || self.is_reserved(mac) || self.has_room(standing, now) => {
                record.address
            }
            Some(_) => return None,
            None => self.choose(mac, standing, requested, now)?,
        };
        self.hold(mac, standing, address, now + OFFER_HOLD, now);
        Some(address)
    }

    /// Takes an address that the client asks for by name. `false`: it is not to be had for this client.
    pub(super) fn take(
        &mut self,
        mac: MacAddr,
        standing: Standing,
        address: Ipv4Addr,
        now: Timestamp,
    ) -> bool {
        let other_is_leased =
            self.records.get(&mac).is_some_and(|record| record.address != address && record.is_leased(now));
        if other_is_leased || !self.may_hold(mac, address) || !self.is_free_for(mac, standing, address, now) {
            return false;
        }
        // What was offered or leased to it is its own; anything else is taken from what is left.
        let live = |record: &Record| record.address == address && record.is_live(now);
        let is_its_own = self.is_reserved(mac) || self.records.get(&mac).is_some_and(live);
        if !is_its_own && !self.has_room(standing, now) {
            return false;
        }
        self.hold(mac, standing, address, now + OFFER_HOLD, now);
        true
    }

    /// Whether the count of taken addresses has crossed a threshold. Looks once a second at most.
    pub(super) fn alarm(&mut self, now: Timestamp) -> Option<Fullness> {
        let taken = self.taken(now);
        let threshold = if self.alarm { CALM_TENTHS } else { ALARM_TENTHS };
        let alarm = taken * 10 >= self.size * threshold && self.size > 0;
        if alarm == self.alarm {
            return None;
        }
        self.alarm = alarm;
        let range = (Ipv4Addr::from(self.range.0), Ipv4Addr::from(self.range.1));
        Some(Fullness { range, taken, size: self.size, alarm })
    }

    fn taken(&mut self, now: Timestamp) -> usize {
        let stands = self.counted.is_some_and(|counted| counted <= now && now.since(counted) < COUNT_HOLD);
        if !stands {
            let within = |address: Ipv4Addr| {
                (self.range.0..=self.range.1).contains(&u32::from(address))
                    && !self.excluded.contains(&address)
            };
            let held = self.records.values().filter(|record| record.is_live(now) && within(record.address));
            let declined = self.declined.iter().filter(|(address, until)| **until > now && within(**address));
            self.taken = held.count() + declined.count();
            self.counted = Some(now);
        }
        self.taken
    }

    /// An address of the range is left for a client of this standing, beside what is kept for jobs.
    fn has_room(&mut self, standing: Standing, now: Timestamp) -> bool {
        standing == Standing::Job || self.keep_for_jobs == 0 || {
            self.size.saturating_sub(self.taken(now)) > self.keep_for_jobs
        }
    }

    /// Forgets a client that is in another network now. `None`: it was not here.
    pub(super) fn moved_away(&mut self, mac: MacAddr) -> Option<Ipv4Addr> {
        let address = self.records.get(&mac)?.address;
        self.remove(mac);
        Some(address)
    }

    /// Whether the address is another client's, as far as we know.
    pub(super) fn is_anothers(&self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> bool {
        let holder = self.holders.get(&address).filter(|holder| **holder != mac);
        holder.and_then(|holder| self.records.get(holder)).is_some_and(|record| record.is_leased(now))
    }

    /// The address that a MAC has, had or was offered.
    pub(super) fn address_of(&self, mac: MacAddr) -> Option<Ipv4Addr> {
        self.records.get(&mac).map(|record| record.address)
    }

    /// Until when the store keeps the lease.
    pub(super) fn durable_until(&self, mac: MacAddr) -> Timestamp {
        self.records.get(&mac).map(|record| record.durable).unwrap_or_default()
    }

    /// Marks the lease as being written. `false`: it already is.
    pub(super) fn start_writing(&mut self, mac: MacAddr) -> bool {
        match self.records.get_mut(&mac) {
            Some(record) => !std::mem::replace(&mut record.writing, true),
            None => false,
        }
    }

    /// A write has ended, with what the store holds now, or not at all. `false`: the record is not of that
    /// address any more.
    pub(super) fn written(&mut self, mac: MacAddr, address: Ipv4Addr, durable: Option<Timestamp>) -> bool {
        match self.records.get_mut(&mac).filter(|record| record.address == address) {
            Some(record) => {
                record.writing = false;
                record.durable = durable.unwrap_or(record.durable);
                true
            }
            None => false,
        }
    }

    /// The client took another server's offer.
    pub(super) fn drop_offer(&mut self, mac: MacAddr) {
        if let Some(record) = self.records.get_mut(&mac) {
            record.offered = Timestamp::default();
        }
    }

    /// The client found the address in use. `None`: it is not its own.
    pub(super) fn decline(&mut self, mac: MacAddr, address: Ipv4Addr, now: Timestamp) -> Option<()> {
        self.records.get(&mac).filter(|record| record.address == address)?;
        self.remove(mac);
        self.declined.retain(|_, until| *until > now);
        self.declined.insert(address, now + DECLINE_HOLD);
        Some(())
    }

    /// The client gives its lease back; it gets the same address when it comes again, unless somebody needed it.
    pub(super) fn release(&mut self, mac: MacAddr, address: Ipv4Addr) -> Option<()> {
        let record = self.records.get_mut(&mac).filter(|record| record.address == address)?;
        record.durable = Timestamp::default();
        record.offered = Timestamp::default();
        Some(())
    }

    /// Whether the configuration lets this MAC have that address at all.
    fn may_hold(&self, mac: MacAddr, address: Ipv4Addr) -> bool {
        match self.reservations.get(&mac) {
            Some(reserved) => *reserved == address,
            None => {
                let number = u32::from(address);
                (self.range.0..=self.range.1).contains(&number) && !self.excluded.contains(&address)
            }
        }
    }

    fn is_reserved(&self, mac: MacAddr) -> bool {
        self.reservations.contains_key(&mac)
    }

    fn is_declined(&self, address: Ipv4Addr, now: Timestamp) -> bool {
        self.declined.get(&address).is_some_and(|until| *until > now)
    }

    /// A known machine may take what a stranger was only offered: random MACs cannot starve it. So may a machine
    /// with a job what one without was offered.
    fn is_free_for(&self, mac: MacAddr, standing: Standing, address: Ipv4Addr, now: Timestamp) -> bool {
        if self.is_declined(address, now) {
            return false;
        }
        let Some(holder) = self.holders.get(&address).filter(|holder| **holder != mac) else { return true };
        let Some(record) = self.records.get(holder) else { return true };
        let outranked = standing > record.standing;
        if outranked { !record.is_leased(now) } else { !record.is_live(now) }
    }

    fn choose(
        &mut self,
        mac: MacAddr,
        standing: Standing,
        requested: Option<Ipv4Addr>,
        now: Timestamp,
    ) -> Option<Ipv4Addr> {
        if let Some(reserved) = self.reservations.get(&mac).copied() {
            return self.is_free_for(mac, standing, reserved, now).then_some(reserved);
        }
        if !self.has_room(standing, now) {
            return None;
        }
        if let Some(address) = requested
            && self.may_hold(mac, address)
            && self.is_free_for(mac, standing, address, now)
        {
            return Some(address);
        }
        if standing == Standing::Stranger && self.full_until > now {
            return None;
        }
        let found = self
            .search(
                |book, address| !book.holders.contains_key(&address) && !book.is_declined(address, now),
                mac,
            )
            .or_else(|| {
                self.search(|book, address| book.is_free_for(mac, Standing::Stranger, address, now), mac)
            })
            .or_else(|| self.search(|book, address| book.is_free_for(mac, standing, address, now), mac));
        match found {
            Some(address) => self.cursor = u32::from(address),
            None => self.full_until = now + FULL_HOLD,
        }
        found
    }

    /// The first address from the cursor on, around the range once, that the client may hold and that is `free`.
    fn search(&self, free: impl Fn(&Self, Ipv4Addr) -> bool, mac: MacAddr) -> Option<Ipv4Addr> {
        let (first, last) = self.range;
        let start = self.cursor.clamp(first, last.max(first));
        (start..=last)
            .chain(first..start)
            .map(Ipv4Addr::from)
            .find(|address| self.may_hold(mac, *address) && free(self, *address))
    }

    fn hold(
        &mut self,
        mac: MacAddr,
        standing: Standing,
        address: Ipv4Addr,
        offered: Timestamp,
        now: Timestamp,
    ) {
        match self.records.get_mut(&mac) {
            Some(record) if record.address == address => {
                self.taken += usize::from(!record.is_live(now));
                record.offered = offered;
                record.standing = standing;
            }
            Some(_) | None => {
                debug_assert!(self.is_free_for(mac, standing, address, now));
                if let Some(previous) = self.holders.get(&address).copied() {
                    self.remove(previous);
                }
                self.taken += 1;
                let durable = Timestamp::default();
                self.put(mac, Record { address, standing, offered, durable, writing: false });
            }
        }
    }

    fn put(&mut self, mac: MacAddr, record: Record) {
        self.remove(mac);
        self.holders.insert(record.address, mac);
        self.records.insert(mac, record);
    }

    fn remove(&mut self, mac: MacAddr) {
        if let Some(record) = self.records.remove(&mac) {
            self.holders.remove(&record.address);
        }
    }
}

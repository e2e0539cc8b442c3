//! Server mode: which network a client is in, what it may have there, and when it may be told. Pure.
//!
//! Invariants: an ACK that names an address leaves only after the lease is durable for at least the time that it
//! promises; a client that another server serves is never refused aloud; a relay that the configuration does not
//! name is not answered.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use super::{
    Action, Client, Ignored, Lease, Message, Request, granted, ignore,
    leases::{Book, Standing},
    reply::{Boot, Destination, Draft, Kind, Parameters, Reply},
};
use crate::{
    boot::Answer,
    clock::Timestamp,
    config::{DhcpPool, DhcpServer},
    machine::MacAddr,
};

/// All networks of one interface.
#[derive(Debug)]
pub(super) struct Lessor {
    /// The interface's own network first, then those behind relays.
    networks: Vec<Network>,
    /// Another DHCP server was heard: what is not certainly ours to refuse may be its client's.
    has_company: bool,
}

/// One network with its addresses.
#[derive(Debug)]
struct Network {
    config: DhcpPool,
    parameters: Parameters,
    book: Book,
    /// Answers that wait for their lease to be durable; the last request of a client counts.
    waiting: BTreeMap<MacAddr, (Reply, Client)>,
}

/// What is needed to answer one packet.
pub(super) struct Served {
    pub(super) identity: Ipv4Addr,
    pub(super) boot: Option<Boot>,
    pub(super) now: Timestamp,
}

/// A promise shorter than this is not worth its packet: the client waits for the store.
const SHORTEST_PROMISE: Duration = Duration::from_secs(10);

impl Lessor {
    pub(super) fn new(server: DhcpServer, own: Ipv4Addr, leases: &[Lease]) -> Self {
        let network = |config: DhcpPool| {
            let book = Book::new(&config, own, leases.iter().copied());
            Network { parameters: Parameters::of(&config), config, book, waiting: BTreeMap::new() }
        };
        let networks = std::iter::once(server.own).chain(server.relayed).map(network).collect();
        Self { networks, has_company: false }
    }

    pub(super) fn handle(&mut self, request: &Request, answer: &Answer, served: &Served) -> Vec<Action> {
        let Some(at) = self.network_of(request) else { return ignore(Ignored::OtherSubnet) };
        let has_company = self.has_company;
        let Some(network) = self.networks.get_mut(at) else { return ignore(Ignored::OtherSubnet) };
        let Some(standing) = network.standing(request.mac, answer) else { return ignore(Ignored::Stranger) };
        let mut actions = network.handle(request, standing, served, has_company);
        actions.extend(network.book.alarm(served.now).map(Action::Fullness));
        let leases = actions.iter().any(|action| matches!(action, Action::Commit(_)));
        if leases && self.networks.len() > 1 {
            let others = self.networks.iter_mut().enumerate().filter(|(other, _)| *other != at);
            let left = others.filter_map(|(_, network)| network.book.moved_away(request.mac));
            actions.extend(left.map(Action::Forget));
        }
        actions
    }

    /// Whether another DHCP server leases here too.
    pub(super) const fn set_company(&mut self, has_company: bool) {
        self.has_company = has_company;
    }

    /// The lease of [`Action::Commit`] is durable.
    pub(super) fn committed(&mut self, lease: &Lease) -> Vec<Action> {
        for network in &mut self.networks {
            if network.book.written(lease.mac, lease.address, Some(lease.until)) {
                return match network.waiting.remove(&lease.mac) {
                    Some((reply, client)) => granted(reply, client, lease.address),
                    None => Vec::new(),
                };
            }
        }
        Vec::new() // declined or replaced meanwhile
    }

    /// The lease of [`Action::Commit`] could not be stored.
    pub(super) fn not_committed(&mut self, lease: &Lease) {
        for network in &mut self.networks {
            if network.book.written(lease.mac, lease.address, None) {
                network.waiting.remove(&lease.mac);
            }
        }
    }

    /// By the relay, else by the address that the client has already, else the interface's own.
    fn network_of(&self, request: &Request) -> Option<usize> {
        let find = |address| self.networks.iter().position(|network| network.has(address));
        if !request.giaddr.is_unspecified() {
            return find(request.giaddr);
        }
        if request.ciaddr.is_unspecified() { Some(0) } else { find(request.ciaddr).or(Some(0)) }
    }
}

impl Network {
    fn has(&self, address: Ipv4Addr) -> bool {
        let mask = self.config.netmask.to_bits();
        address.to_bits() & mask == self.config.range.0.to_bits() & mask
    }

    fn standing(&self, mac: MacAddr, answer: &Answer) -> Option<Standing> {
        match answer {
            Answer::Boot(_) => Some(Standing::Job),
            Answer::Refused(_) => Some(Standing::Known),
            Answer::Unknown if self.config.reservations.contains_key(&mac) => Some(Standing::Known),
            Answer::Unknown => self.config.lease_to_strangers.then_some(Standing::Stranger),
        }
    }

    fn handle(
        &mut self,
        request: &Request,
        standing: Standing,
        served: &Served,
        has_company: bool,
    ) -> Vec<Action> {
        match request.message {
            Message::Discover => self.discover(request, standing, served),
            Message::Request => match self.judge(request, standing, served, has_company) {
                Verdict::Grant(address) => self.grant(request, address, served),
                Verdict::Refuse => refuse(request, served),
                Verdict::Silence(why) => ignore(why),
            },
            Message::Decline => {
                let declined =
                    request.requested.filter(|at| self.book.decline(request.mac, *at, served.now).is_some());
                self.waiting.remove(&request.mac);
                declined.map_or_else(|| ignore(Ignored::NoRecord), |at| vec![Action::Forget(at)])
            }
            Message::Release => match self.book.release(request.mac, request.ciaddr) {
                Some(()) => vec![Action::Forget(request.ciaddr)],
                None => ignore(Ignored::NoRecord),
            },
            Message::Inform => self.inform(request, served),
        }
    }

    fn discover(&mut self, request: &Request, standing: Standing, served: &Served) -> Vec<Action> {
        match self.book.offer(request.mac, standing, request.requested, served.now) {
            Some(address) => {
                let draft = self.draft(Kind::Offer, served).lease(self.config.lease).address(address);
                let to = Destination::without_address(request, address);
                vec![Action::Send(draft.to(to).encode(request))]
            }
            None => ignore(Ignored::PoolExhausted),
        }
    }

    /// RFC 2131 §4.3.2: which of the four states the client is in shows in what it fills in.
    fn judge(
        &mut self,
        request: &Request,
        standing: Standing,
        served: &Served,
        has_company: bool,
    ) -> Verdict {
        if let Some(server) = request.server {
            if server != served.identity {
                self.book.drop_offer(request.mac);
                return Verdict::Silence(Ignored::OtherServer);
            }
            // SELECTING. The offer may be from before a restart of ours: any free address of the pool will do.
            let wanted = request.requested.unwrap_or(request.ciaddr);
            return self.take(request.mac, standing, wanted, served.now).unwrap_or(Verdict::Refuse);
        }
        let ours = self.book.address_of(request.mac);
        // Beside another server, a client that does not name us may well be that one's.
        let refuse = if has_company { Verdict::Silence(Ignored::NotOurs) } else { Verdict::Refuse };
        match request.requested {
            // INIT-REBOOT.
            Some(wanted) if request.ciaddr.is_unspecified() => match ours {
                Some(address) if address == wanted => {
                    self.take(request.mac, standing, wanted, served.now).unwrap_or(refuse)
                }
                Some(_) => refuse,
                None if request.giaddr.is_unspecified() && !self.has(wanted) => refuse,
                None => Verdict::Silence(Ignored::NoRecord),
            },
            // RENEWING (unicast) or REBINDING (broadcast). A known machine that renews a free address keeps it, so
            // that a lost database costs no running installation.
            Some(_) | None if !request.ciaddr.is_unspecified() => {
                if ours.is_none() && has_company {
                    return Verdict::Silence(Ignored::NotOurs);
                }
                let wanted = request.ciaddr;
                let taken = self.take(request.mac, standing, wanted, served.now);
                let is_wrong = ours.is_some_and(|address| address != wanted)
                    || self.book.is_anothers(request.mac, wanted, served.now);
                let silence = Verdict::Silence(Ignored::NoRecord);
                taken.unwrap_or(if is_wrong { refuse } else { silence })
            }
            Some(_) | None => Verdict::Silence(Ignored::Contradictory),
        }
    }

    fn take(&mut self, mac: MacAddr, standing: Standing, at: Ipv4Addr, now: Timestamp) -> Option<Verdict> {
        self.book.take(mac, standing, at, now).then_some(Verdict::Grant(at))
    }

    /// Answers a durable lease from memory, and promises no more of it than is stored; a new one waits for the store.
    fn grant(&mut self, request: &Request, address: Ipv4Addr, served: &Served) -> Vec<Action> {
        let (now, promise) = (served.now, self.config.lease);
        let left = self.book.durable_until(request.mac).since(now);
        let is_durable = left >= promise.min(SHORTEST_PROMISE);
        let told = if is_durable { promise.min(left) } else { promise };
        let draft = self.draft(Kind::Ack, served).lease(told).address(address);
        let reply = draft.to(Destination::to_client(request, address)).encode(request);
        // Stored for twice the promise, so that renewals go on through half a lease without a store.
        let lease = Lease { mac: request.mac, address, until: now + promise * 2 };
        if is_durable {
            let mut actions = granted(reply, request.client, address);
            if left < promise * 3 / 2 && self.book.start_writing(request.mac) {
                actions.push(Action::Commit(lease));
            }
            return actions;
        }
        self.waiting.insert(request.mac, (reply, request.client));
        if self.book.start_writing(request.mac) {
            vec![Action::Commit(lease)]
        } else {
            ignore(Ignored::Committing)
        }
    }

    /// RFC 2131 §4.3.5: parameters only, no address and no lease time.
    fn inform(&self, request: &Request, served: &Served) -> Vec<Action> {
        let to = Destination::to_client(request, Ipv4Addr::UNSPECIFIED);
        vec![Action::Send(self.draft(Kind::Ack, served).to(to).encode(request))]
    }

    fn draft(&self, kind: Kind, served: &Served) -> Draft<'_> {
        let draft = Draft::new(kind, served.identity).network(&self.parameters);
        match served.boot.clone() {
            Some(boot) => draft.boot(boot).alone(),
            None => draft,
        }
    }
}

/// What a REQUEST gets.
enum Verdict {
    Grant(Ipv4Addr),
    Refuse,
    Silence(Ignored),
}

fn refuse(request: &Request, served: &Served) -> Vec<Action> {
    let draft = Draft::new(Kind::Nak, served.identity).broadcast();
    vec![Action::Send(draft.to(Destination::to_all(request)).encode(request))]
}

//! DHCP for network boot: a pure core that turns a packet into actions, and its socket shell.
//!
//! [`Service::handle`] is the core: it takes a parsed [`Request`], the boot gate's answer and the time, and returns
//! what is to be done. Invariants: an ACK that names an address leaves only after the lease is durable for at least
//! the time that it promises; in proxy mode nothing is ever leased or refused; a client that the gate does not know
//! never gets boot options. `request` parses, `reply` encodes, `leases` keeps the addresses, `server` owns the
//! sockets.

mod leases;
mod reply;
mod request;
pub mod server;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{
    boot::{Answer, sink::Sign},
    clock::Timestamp,
    config::{DhcpMode, DhcpPool},
    machine::MacAddr,
};

pub use leases::Lease;
use leases::{Book, Standing};
use reply::{Boot, Draft};
pub use reply::{Destination, Kind, Reply};
pub use request::{Client, Message, Refusal, Request};

/// The DHCP server port (RFC 2131 §4.1); relays answer there too.
pub const SERVER_PORT: u16 = 67;

/// The loader for BIOS ROMs unless configured otherwise: iPXE on the ROM's own network driver.
pub const DEFAULT_LOADER: &str = "undionly.kpxe";

/// What one interface's service is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Our address there: siaddr and option 54.
    pub address: Ipv4Addr,
    /// Proxy or server.
    pub mode: DhcpMode,
    /// Base of the boot script's URL (`http://10.0.0.2:8080`); `None`: no boot HTTP.
    pub boot_url: Option<String>,
    /// The loader that BIOS ROMs get by TFTP, such as [`DEFAULT_LOADER`] or `pxelinux.0`; `None`: no TFTP.
    pub loader: Option<String>,
}

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send it.
    Send(Reply),
    /// Make the lease durable, then call [`Service::committed`], or [`Service::not_committed`] when it failed.
    Commit(Lease),
    /// Forget the lease of this MAC in the store.
    Forget(MacAddr),
    /// Tell the sink that this machine gave a sign.
    Tell(Sign),
    /// The machine has this address from now on.
    Met(Ipv4Addr),
    /// Nothing is done, and why.
    Ignore(Ignored),
}

/// Why a well-formed packet gets no answer. Counted by label, logged at debug level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ignored {
    /// No machine, reservation or policy names this MAC.
    Stranger,
    /// Proxy mode answers PXE clients only.
    NotPxe,
    /// Proxy mode answers DISCOVER on the DHCP port, REQUEST and INFORM on the boot server port.
    NotForProxy,
    /// This client cannot be booted by us: UEFI firmware, or what it needs (HTTP, TFTP) is off.
    NoBootFile,
    /// The client took another server's offer.
    OtherServer,
    /// No address is free.
    PoolExhausted,
    /// A client that we have no record of asks to keep its address (RFC 2131 §4.3.2: stay silent).
    NoRecord,
    /// The lease is being written.
    Committing,
    /// A relay of another subnet.
    OtherSubnet,
    /// Contradictory fields.
    Contradictory,
    /// The relayed packet has been through too many relays.
    TooManyHops,
}

impl Ignored {
    /// A stable name for counters and logs.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stranger => "stranger",
            Self::NotPxe => "not_pxe",
            Self::NotForProxy => "not_for_proxy",
            Self::NoBootFile => "no_boot_file",
            Self::OtherServer => "other_server",
            Self::PoolExhausted => "pool_exhausted",
            Self::NoRecord => "no_record",
            Self::Committing => "committing",
            Self::OtherSubnet => "other_subnet",
            Self::Contradictory => "contradictory",
            Self::TooManyHops => "too_many_hops",
        }
    }
}

/// RFC 1542 §4.1.1: a packet with more hops is dropped.
const HOPS_LIMIT: u8 = 16;

/// One interface's DHCP service: the settings and, in server mode, the addresses.
#[derive(Debug)]
pub struct Service {
    address: Ipv4Addr,
    boot_url: Option<String>,
    loader: Option<String>,
    role: Role,
}

#[derive(Debug)]
enum Role {
    Proxy,
    Server(Box<Pool>),
}

#[derive(Debug)]
struct Pool {
    config: DhcpPool,
    book: Book,
    /// Answers that wait for their lease to be durable; the last request of a client counts.
    waiting: BTreeMap<MacAddr, (Reply, Client)>,
}

impl Service {
    /// A service; in server mode with the leases that the store holds (those outside its range are left alone).
    pub fn new(settings: Settings, leases: impl IntoIterator<Item = Lease>) -> Self {
        let role = match settings.mode {
            DhcpMode::Proxy => Role::Proxy,
            DhcpMode::Server(config) => {
                let book = Book::new(&config, settings.address, leases);
                Role::Server(Box::new(Pool { config, book, waiting: BTreeMap::new() }))
            }
        };
        Self { address: settings.address, boot_url: settings.boot_url, loader: settings.loader, role }
    }

    /// A packet on the DHCP port. `answer` is the gate's to `Ask::Netboot` for the packet's MAC.
    pub fn handle(&mut self, request: &Request, answer: &Answer, now: Timestamp) -> Vec<Action> {
        if request.hops > HOPS_LIMIT {
            return ignore(Ignored::TooManyHops);
        }
        let boot = self.boot_for(request, answer);
        let identity = self.address;
        let mut actions = match &mut self.role {
            Role::Proxy => proxy_offer(request, answer, boot, identity),
            Role::Server(pool) => pool.handle(request, answer, &Served { identity, boot, now }),
        };
        let sign = netboot_sign(request, answer);
        actions.extend(sign.map(Action::Tell));
        actions
    }

    /// A packet on the boot server port 4011 (proxy mode; PXE specification 2.1 §2.2.1).
    pub fn handle_boot_server(&self, request: &Request, answer: &Answer, from: SocketAddrV4) -> Vec<Action> {
        if !matches!(request.message, Message::Request | Message::Inform) {
            return ignore(Ignored::NotForProxy);
        }
        if !request.client.is_pxe() {
            return ignore(Ignored::NotPxe);
        }
        let Some(boot) = self.boot_for(request, answer) else {
            return ignore(no_boot(answer));
        };
        // To the source: XenServer's older iPXE takes no broadcast here (CA-247413).
        let draft = Draft::new(Kind::Ack, self.address).boot(boot).to(Destination::Unicast(from));
        let mut actions = vec![Action::Send(draft.encode(request))];
        if !from.ip().is_unspecified() {
            actions.push(Action::Met(*from.ip()));
        }
        actions.extend(netboot_sign(request, answer).map(Action::Tell));
        actions
    }

    /// The lease of [`Action::Commit`] is durable.
    pub fn committed(&mut self, lease: &Lease) -> Vec<Action> {
        let Role::Server(pool) = &mut self.role else { return Vec::new() };
        if !pool.book.written(lease.mac, lease.address, Some(lease.until)) {
            return Vec::new(); // declined or replaced meanwhile
        }
        match pool.waiting.remove(&lease.mac) {
            Some((reply, client)) => granted(reply, client, lease.address),
            None => Vec::new(),
        }
    }

    /// The lease of [`Action::Commit`] could not be stored: the client gets no answer and asks again.
    pub fn not_committed(&mut self, lease: &Lease) {
        if let Role::Server(pool) = &mut self.role
            && pool.book.written(lease.mac, lease.address, None)
        {
            pool.waiting.remove(&lease.mac);
        }
    }

    /// What a PXE client of a known machine boots. A machine that may not netboot gets the same: the script behind
    /// the URL says `exit`, and that is quicker than a ROM's time-out.
    fn boot_for(&self, request: &Request, answer: &Answer) -> Option<Boot> {
        let known = match answer {
            Answer::Boot(_) | Answer::Refused(_) => true,
            Answer::Unknown => false,
        };
        let file = match request.client {
            Client::Ipxe => format!("{}/b/{}", self.boot_url.as_deref()?.trim_end_matches('/'), request.mac),
            Client::BiosRom => self.loader.clone()?,
            Client::Unsupported | Client::Plain => return None,
        };
        known.then_some(Boot { file, next_server: self.address })
    }
}

fn ignore(why: Ignored) -> Vec<Action> {
    vec![Action::Ignore(why)]
}

/// An ACK that may leave now.
fn granted(reply: Reply, client: Client, address: Ipv4Addr) -> Vec<Action> {
    let mut actions = vec![Action::Send(reply), Action::Met(address)];
    if !client.is_pxe() {
        actions.push(Action::Tell(Sign::Lease));
    }
    actions
}

fn no_boot(answer: &Answer) -> Ignored {
    match answer {
        Answer::Unknown => Ignored::Stranger,
        Answer::Boot(_) | Answer::Refused(_) => Ignored::NoBootFile,
    }
}

/// What a DISCOVER or REQUEST of a known PXE client says about its machine.
fn netboot_sign(request: &Request, answer: &Answer) -> Option<Sign> {
    let asks = matches!(request.message, Message::Discover | Message::Request);
    if !request.client.is_pxe() || !asks {
        return None;
    }
    match answer {
        Answer::Unknown => None,
        Answer::Refused(_) => Some(Sign::NetbootRefused),
        Answer::Boot(_) => Some(Sign::Dhcp),
    }
}

fn proxy_offer(request: &Request, answer: &Answer, boot: Option<Boot>, identity: Ipv4Addr) -> Vec<Action> {
    if !request.client.is_pxe() {
        return ignore(Ignored::NotPxe);
    }
    if request.message != Message::Discover {
        return ignore(Ignored::NotForProxy);
    }
    let Some(boot) = boot else { return ignore(no_boot(answer)) };
    // The flag is forced: a client without an address drops unicast.
    let draft =
        Draft::new(Kind::Offer, identity).boot(boot).broadcast().to(Destination::without_address(request));
    vec![Action::Send(draft.encode(request))]
}

/// What the server side needs to answer one packet.
struct Served {
    identity: Ipv4Addr,
    boot: Option<Boot>,
    now: Timestamp,
}

impl Pool {
    fn handle(&mut self, request: &Request, answer: &Answer, served: &Served) -> Vec<Action> {
        if !request.giaddr.is_unspecified() && !self.on_subnet(request.giaddr, served.identity) {
            return ignore(Ignored::OtherSubnet);
        }
        let Some(standing) = self.standing(request.mac, answer) else { return ignore(Ignored::Stranger) };
        match request.message {
            Message::Discover => self.discover(request, standing, served),
            Message::Request => self.request(request, standing, served),
            Message::Decline => {
                let declined =
                    request.requested.and_then(|at| self.book.decline(request.mac, at, served.now));
                self.waiting.remove(&request.mac);
                declined.map_or_else(|| ignore(Ignored::NoRecord), |()| vec![Action::Forget(request.mac)])
            }
            Message::Release => match self.book.release(request.mac, request.ciaddr) {
                Some(()) => vec![Action::Forget(request.mac)],
                None => ignore(Ignored::NoRecord),
            },
            Message::Inform => self.inform(request, served),
        }
    }

    fn standing(&self, mac: MacAddr, answer: &Answer) -> Option<Standing> {
        match answer {
            Answer::Boot(_) | Answer::Refused(_) => Some(Standing::Known),
            Answer::Unknown if self.config.reservations.contains_key(&mac) => Some(Standing::Known),
            Answer::Unknown => self.config.lease_to_strangers.then_some(Standing::Stranger),
        }
    }

    fn on_subnet(&self, address: Ipv4Addr, identity: Ipv4Addr) -> bool {
        let mask = u32::from(self.config.netmask);
        u32::from(address) & mask == u32::from(identity) & mask
    }

    fn discover(&mut self, request: &Request, standing: Standing, served: &Served) -> Vec<Action> {
        match self.book.offer(request.mac, standing, request.requested, served.now) {
            Some(address) => {
                let draft = self.draft(Kind::Offer, request, served).address(address);
                vec![Action::Send(draft.to(Destination::without_address(request)).encode(request))]
            }
            None => ignore(Ignored::PoolExhausted),
        }
    }

    /// RFC 2131 §4.3.2: which of the four states the client is in shows in what it fills in.
    fn request(&mut self, request: &Request, standing: Standing, served: &Served) -> Vec<Action> {
        let identity = served.identity;
        if let Some(server) = request.server {
            if server != identity {
                self.book.drop_offer(request.mac);
                return ignore(Ignored::OtherServer);
            }
            // SELECTING. The offer may be from before a restart of ours: any free address of the pool will do.
            let wanted = request.requested.unwrap_or(request.ciaddr);
            return self.take(request, standing, wanted, served);
        }
        match request.requested {
            // INIT-REBOOT.
            Some(wanted) if request.ciaddr.is_unspecified() => match self.book.address_of(request.mac) {
                Some(address) if address == wanted => self.take(request, standing, wanted, served),
                Some(_) => self.refuse(request, served),
                None if request.giaddr.is_unspecified() && !self.on_subnet(wanted, identity) => {
                    self.refuse(request, served)
                }
                None => ignore(Ignored::NoRecord),
            },
            // RENEWING (unicast) or REBINDING (broadcast).
            Some(_) | None if !request.ciaddr.is_unspecified() => {
                self.take(request, standing, request.ciaddr, served)
            }
            Some(_) | None => ignore(Ignored::Contradictory),
        }
    }

    fn take(&mut self, request: &Request, standing: Standing, at: Ipv4Addr, served: &Served) -> Vec<Action> {
        if self.book.take(request.mac, standing, at, served.now) {
            self.grant(request, at, served)
        } else {
            self.refuse(request, served)
        }
    }

    /// Answers from memory where the durable lease lasts at least as long as the answer promises; else the answer
    /// waits for the store.
    fn grant(&mut self, request: &Request, address: Ipv4Addr, served: &Served) -> Vec<Action> {
        let now = served.now;
        let draft = self.draft(Kind::Ack, request, served).address(address);
        let reply = draft.to(Destination::to_client(request)).encode(request);
        // Stored for twice the promise, so that renewals go on through half a lease without a store.
        let lease = Lease { mac: request.mac, address, until: now + self.config.lease * 2 };
        let durable = self.book.durable_until(request.mac);
        if durable >= now + self.config.lease {
            let mut actions = granted(reply, request.client, address);
            if durable < now + self.config.lease * 3 / 2 && self.book.start_writing(request.mac) {
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

    fn refuse(&self, request: &Request, served: &Served) -> Vec<Action> {
        let draft = Draft::new(Kind::Nak, served.identity).broadcast();
        vec![Action::Send(draft.to(Destination::without_address(request)).encode(request))]
    }

    /// RFC 2131 §4.3.5: parameters only, no address and no lease time.
    fn inform(&self, request: &Request, served: &Served) -> Vec<Action> {
        let mut draft = Draft::new(Kind::Ack, served.identity).network(&self.config);
        if let Some(boot) = served.boot.clone() {
            draft = draft.boot(boot);
        }
        vec![Action::Send(draft.to(Destination::to_client(request)).encode(request))]
    }

    fn draft(&self, kind: Kind, request: &Request, served: &Served) -> Draft {
        let draft = Draft::new(kind, served.identity).network(&self.config).lease(self.config.lease);
        let draft = if request.broadcast { draft.broadcast() } else { draft };
        match served.boot.clone() {
            Some(boot) => draft.boot(boot),
            None => draft,
        }
    }
}

//! DHCP for network boot: a pure core that turns a packet into actions, and its socket shell.
//!
//! [`Service::handle`] is the core: it takes a parsed [`Request`], the boot gate's answer and the time, and returns
//! what is to be done. Invariants: an ACK that names an address leaves only after the lease is durable for at least
//! the time that it promises; in proxy mode nothing is ever leased or refused; a client that the gate does not know
//! never gets boot options. `request` parses (with `options`), `reply` encodes, `lessor` is server mode, `leases`
//! keeps its addresses, `neighbours` and `attempts` notice what is wrong on the network, `frame` is what a client
//! without an address is sent, `server` owns the sockets; `snippet` is for networks that somebody else serves.

mod attempts;
pub mod frame;
mod leases;
mod lessor;
mod neighbours;
mod notice;
mod options;
mod reply;
mod request;
pub mod server;
pub mod snippet;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
};

use crate::{
    boot::{Answer, sink::Sign},
    clock::Timestamp,
    config::{DhcpMode, Pxelinux, architecture},
};

use attempts::Attempts;
pub use attempts::Hint;
pub use leases::{Fullness, Lease};
use lessor::{Lessor, Served};
pub use neighbours::Neighbour;
use neighbours::{Neighbours, Overheard};
use reply::{Boot, Draft, Manner};
pub use reply::{Destination, Kind, Reply};
pub use request::{Client, Message, Refusal, Request, Wanted};

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
    /// The relays (giaddr) that are answered.
    pub relays: Vec<Ipv4Addr>,
    /// Base of the boot script's URL (`http://10.0.0.2:8080`); `None`: no boot HTTP.
    pub boot_url: Option<String>,
    /// The loader that BIOS ROMs get by TFTP, such as [`DEFAULT_LOADER`] or `pxelinux.0`; `None`: no TFTP.
    pub loader: Option<String>,
    /// Loaders by architecture, over `loader`; URLs are for UEFI HTTP boot.
    pub loaders: BTreeMap<u16, String>,
    /// What PXELINUX is told.
    pub pxelinux: Pxelinux,
}

/// What the shell is to do, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send it.
    Send(Reply),
    /// Make the lease durable, then call [`Service::committed`], or [`Service::not_committed`] when it failed.
    Commit(Lease),
    /// Forget the lease of this address in the store.
    Forget(Ipv4Addr),
    /// Tell the sink that this machine gave a sign.
    Tell(Sign),
    /// The machine has this address from now on.
    Met(Ipv4Addr),
    /// Show that something on the network looks wrong.
    Hint(Hint),
    /// Show that a pool is nearly full, or is no longer.
    Fullness(Fullness),
    /// Show another server, or what is new about it.
    Neighbour(Neighbour),
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
    /// This client cannot be booted by us: its architecture has no loader, or what it needs (HTTP, TFTP) is off.
    NoBootFile,
    /// The client took another server's offer.
    OtherServer,
    /// No address is free.
    PoolExhausted,
    /// A client that we have no record of asks to keep its address (RFC 2131 §4.3.2: stay silent).
    NoRecord,
    /// The lease is being written.
    Committing,
    /// A relay that the configuration does not name.
    UnknownRelay,
    /// A relay of a subnet that has no addresses here.
    OtherSubnet,
    /// Another server leases here, and the client does not name us.
    NotOurs,
    /// Contradictory fields.
    Contradictory,
    /// The relayed packet has been through too many relays.
    TooManyHops,
}

impl Ignored {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::Stranger,
        Self::NotPxe,
        Self::NotForProxy,
        Self::NoBootFile,
        Self::OtherServer,
        Self::PoolExhausted,
        Self::NoRecord,
        Self::Committing,
        Self::UnknownRelay,
        Self::OtherSubnet,
        Self::NotOurs,
        Self::Contradictory,
        Self::TooManyHops,
    ];

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
            Self::UnknownRelay => "unknown_relay",
            Self::OtherSubnet => "other_subnet",
            Self::NotOurs => "not_ours",
            Self::Contradictory => "contradictory",
            Self::TooManyHops => "too_many_hops",
        }
    }
}

/// RFC 1542 §4.1.1: a packet with more hops is dropped.
const HOPS_LIMIT: u8 = 16;

/// How often an UEFI client is offered the boot without option 43 before it is tried the other way.
const PLAIN_OFFERS: u32 = 1;

/// One interface's DHCP service: the settings and, in server mode, the addresses.
#[derive(Debug)]
pub struct Service {
    address: Ipv4Addr,
    boot_url: Option<String>,
    loaders: BTreeMap<u16, String>,
    pxelinux: Vec<(u8, Vec<u8>)>,
    relays: Vec<Ipv4Addr>,
    role: Role,
    neighbours: Neighbours,
    attempts: Attempts,
}

#[derive(Debug)]
enum Role {
    Proxy,
    Server(Box<Lessor>),
}

impl Service {
    /// A service; in server mode with the leases that the store holds (those outside its range are left alone).
    pub fn new(settings: Settings, leases: impl IntoIterator<Item = Lease>) -> Self {
        let Settings { address, mode, relays, boot_url, loader, mut loaders, pxelinux } = settings;
        if let (false, Some(loader)) = (loaders.contains_key(&architecture::BIOS), loader) {
            loaders.insert(architecture::BIOS, loader);
        }
        let (role, is_proxy) = match mode {
            DhcpMode::Proxy => (Role::Proxy, true),
            DhcpMode::Server(server) => {
                let leases: Vec<Lease> = leases.into_iter().collect();
                (Role::Server(Box::new(Lessor::new(server, address, &leases))), false)
            }
        };
        Self {
            address,
            boot_url,
            loaders,
            pxelinux: reply::pxelinux_options(&pxelinux),
            relays,
            role,
            neighbours: Neighbours::new(address, is_proxy),
            attempts: Attempts::default(),
        }
    }

    /// A packet on the DHCP port. `answer` is the gate's to `Ask::Netboot` for the packet's MAC.
    pub fn handle(&mut self, request: &Request, answer: &Answer, now: Timestamp) -> Vec<Action> {
        if request.hops > HOPS_LIMIT {
            return ignore(Ignored::TooManyHops);
        }
        if !request.giaddr.is_unspecified() && !self.relays.contains(&request.giaddr) {
            let hint = self.attempts.once(Hint::UnknownRelay { relay: request.giaddr });
            return with_hint(ignore(Ignored::UnknownRelay), hint);
        }
        let news = self.overhear_request(request, now);
        let (discovers, hint) = self.attempt(request, answer, now);
        let boot = self.boot_for(request, answer, discovers);
        let missing = if boot.is_none() { self.missing_loader(request, answer) } else { None };
        let identity = self.address;
        let mut actions = match &mut self.role {
            Role::Proxy => proxy_offer(request, answer, boot, identity),
            Role::Server(lessor) => lessor.handle(request, answer, &Served { identity, boot, now }),
        };
        actions.extend(netboot_sign(request, answer).map(Action::Tell));
        actions.extend(news.map(Action::Neighbour));
        with_hint(with_hint(actions, hint), missing)
    }

    /// A reply that another server sent to the client port, from that address.
    pub fn overhear(&mut self, bytes: &[u8], from: Ipv4Addr, now: Timestamp) -> Vec<Action> {
        let news = Overheard::reply(bytes, from).and_then(|overheard| self.hear(overheard, now));
        news.map(Action::Neighbour).into_iter().collect()
    }

    /// The other servers that were heard.
    pub fn neighbours(&self) -> &[Neighbour] {
        self.neighbours.all()
    }

    fn overhear_request(&mut self, request: &Request, now: Timestamp) -> Option<Neighbour> {
        // Through a relay comes what clients of another network chose.
        let chosen = request.server.filter(|_| request.giaddr.is_unspecified())?;
        if request.message != Message::Request {
            return None;
        }
        self.hear(Overheard::chosen(chosen), now)
    }

    fn hear(&mut self, overheard: Overheard, now: Timestamp) -> Option<Neighbour> {
        let news = self.neighbours.hear(overheard, now);
        if let Role::Server(lessor) = &mut self.role {
            lessor.set_company(self.neighbours.lease(now));
        }
        news
    }

    /// The how-many-th DISCOVER in a row this is, of a boot ROM of a known machine.
    fn attempt(&mut self, request: &Request, answer: &Answer, now: Timestamp) -> (u32, Option<Hint>) {
        if !request.client.is_pxe() || !is_known(answer) {
            return (0, None);
        }
        match request.message {
            Message::Discover => self.attempts.discover(request.mac, request.seconds, now),
            Message::Request | Message::Inform => {
                self.attempts.request(request.mac);
                (0, None)
            }
            Message::Decline | Message::Release => (0, None),
        }
    }

    /// A packet on the boot server port 4011 (proxy mode; PXE specification 2.1 §2.2.1).
    pub fn handle_boot_server(
        &mut self,
        request: &Request,
        answer: &Answer,
        from: SocketAddrV4,
    ) -> Vec<Action> {
        if !matches!(request.message, Message::Request | Message::Inform) {
            return ignore(Ignored::NotForProxy);
        }
        if !request.client.is_pxe() {
            return ignore(Ignored::NotPxe);
        }
        let Some(boot) = self.boot_for(request, answer, 0) else {
            return with_hint(ignore(no_boot(answer)), self.missing_loader(request, answer));
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
        match &mut self.role {
            Role::Proxy => Vec::new(),
            Role::Server(lessor) => lessor.committed(lease),
        }
    }

    /// The lease of [`Action::Commit`] could not be stored: the client gets no answer and asks again.
    pub fn not_committed(&mut self, lease: &Lease) {
        match &mut self.role {
            Role::Proxy => {}
            Role::Server(lessor) => lessor.not_committed(lease),
        }
    }

    /// What a PXE client of a known machine boots. A machine that may not netboot gets the same: the script behind
    /// the URL says `exit`, and that is quicker than a ROM's time-out.
    fn boot_for(&self, request: &Request, answer: &Answer, discovers: u32) -> Option<Boot> {
        if !is_known(answer) {
            return None;
        }
        let next_server = self.address;
        match request.client {
            Client::Ipxe => {
                let file = format!("{}/b/{}", self.boot_url.as_deref()?.trim_end_matches('/'), request.mac);
                Some(Boot { file, next_server, manner: Manner::Direct, extra: Vec::new() })
            }
            Client::Rom => {
                let (architecture, file) = self.loader_for(request, |file| !file.contains("://"))?;
                let is_bios = architecture == architecture::BIOS;
                let manner = if is_bios || discovers > PLAIN_OFFERS { Manner::Direct } else { Manner::Plain };
                Some(Boot { file, next_server, manner, extra: self.pxelinux.clone() })
            }
            Client::HttpRom => {
                let (_, file) = self.loader_for(request, |file| file.contains("://"))?;
                Some(Boot { file, next_server, manner: Manner::Http, extra: Vec::new() })
            }
            Client::Plain => None,
        }
    }

    /// The first architecture of the client's list that has a fitting loader.
    fn loader_for(&self, request: &Request, fits: impl Fn(&str) -> bool) -> Option<(u16, String)> {
        let listed: &[u16] = match request.architectures.as_slice() {
            [] => &[architecture::BIOS],
            listed => listed,
        };
        let loader = |code: &u16| Some((*code, self.loaders.get(code).filter(|file| fits(file))?.clone()));
        listed.iter().find_map(loader)
    }

    /// A known client that boots and has nothing to boot, once for each architecture.
    fn missing_loader(&mut self, request: &Request, answer: &Answer) -> Option<Hint> {
        if !request.client.is_pxe() || !is_known(answer) {
            return None;
        }
        let architecture = match request.client {
            Client::Ipxe | Client::Plain => None,
            Client::Rom | Client::HttpRom => request.architectures.first().copied(),
        };
        self.attempts.once(Hint::NoLoader { architecture })
    }
}

fn is_known(answer: &Answer) -> bool {
    match answer {
        Answer::Boot(_) | Answer::Refused(_) => true,
        Answer::Unknown => false,
    }
}

fn with_hint(mut actions: Vec<Action>, hint: Option<Hint>) -> Vec<Action> {
    actions.extend(hint.map(Action::Hint));
    actions
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
    let draft = Draft::new(Kind::Offer, identity).boot(boot).broadcast().to(Destination::to_all(request));
    vec![Action::Send(draft.encode(request))]
}

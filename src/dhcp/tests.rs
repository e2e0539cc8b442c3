//! The core over bytes: packets in, actions as text out.

use std::time::Duration;

use dhcproto::{
    Decodable,
    v4::{self, DhcpOption, OptionCode},
};

use super::{options::code, *};
use crate::{
    boot::Machine,
    config::{DhcpPool, DhcpServer},
    machine::MacAddr,
};

mod packets;

const SELF: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const LEASE: Duration = Duration::from_secs(3600);
const BIOS: &[(u8, &[u8])] = &[(60, b"PXEClient:Arch:00000:UNDI:002001"), (93, &[0, 0])];
/// What XenServer's ROM sends: class, architecture, UNDI, user class, and features with HTTP (0x13).
const IPXE: &[(u8, &[u8])] = &[
    (60, b"PXEClient:Arch:00000:UNDI:002001"),
    (93, &[0, 0]),
    (94, &[1, 2, 1]),
    (77, b"iPXE"),
    (175, &[0xb1, 5, 1, 0x80, 0x86, 0x10, 0x0e, 0x13, 1, 1, 0x18, 1, 1, 0x21, 1, 1]),
];

fn mac(n: u8) -> MacAddr {
    MacAddr::new([2, 0, 0, 0, 0, n])
}

/// A client's packet; tests change fields before it is sent.
#[derive(Clone)]
struct Packet {
    bytes: Vec<u8>,
}

impl Packet {
    fn new(message: u8, n: u8, options: &[(u8, &[u8])]) -> Self {
        let mut bytes = vec![0; 240];
        bytes[..4].copy_from_slice(&[1, 1, 6, 0]);
        bytes[4..8].copy_from_slice(&[0, 0, 0, n]);
        bytes[28..34].copy_from_slice(&mac(n).octets());
        bytes[236..240].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, message]);
        for (code, data) in options {
            bytes.extend([*code, u8::try_from(data.len()).unwrap()]);
            bytes.extend(*data);
        }
        bytes.push(255);
        Self { bytes }
    }

    fn option(mut self, code: u8, data: &[u8]) -> Self {
        self.bytes.pop();
        self.bytes.extend([code, u8::try_from(data.len()).unwrap()]);
        self.bytes.extend(data);
        self.bytes.push(255);
        self
    }

    fn with(self, options: &[(u8, &[u8])]) -> Self {
        options.iter().fold(self, |packet, (code, data)| packet.option(*code, data))
    }

    fn at(mut self, offset: usize, data: &[u8]) -> Self {
        self.bytes[offset..offset + data.len()].copy_from_slice(data);
        self
    }

    fn ciaddr(self, address: [u8; 4]) -> Self {
        self.at(12, &address)
    }

    fn giaddr(self, address: [u8; 4]) -> Self {
        self.at(24, &address)
    }
}

fn discover(n: u8) -> Packet {
    Packet::new(1, n, &[])
}

/// SELECTING.
fn select(n: u8, address: [u8; 4]) -> Packet {
    Packet::new(3, n, &[(54, &SELF.octets()), (50, &address)])
}

fn server(own: DhcpPool) -> DhcpMode {
    DhcpMode::Server(DhcpServer { own, relayed: vec![] })
}

fn pool(range: (u8, u8)) -> DhcpPool {
    DhcpPool {
        range: (Ipv4Addr::new(10, 0, 0, range.0), Ipv4Addr::new(10, 0, 0, range.1)),
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(Ipv4Addr::new(10, 0, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 53)],
        domain: None,
        ntp: vec![],
        mtu: None,
        options: BTreeMap::new(),
        lease: LEASE,
        reservations: [(mac(9), Ipv4Addr::new(10, 0, 0, 9))].into(),
        lease_to_strangers: false,
        keep_for_jobs: 0,
    }
}

/// One relay, and loaders for BIOS, x64 and UEFI HTTP.
fn settings(mode: DhcpMode) -> Settings {
    let loaders = [(7, "ipxe.efi"), (9, "ipxe.efi"), (16, "http://10.0.0.1:8080/ipxe.efi")];
    Settings {
        address: SELF,
        mode,
        relays: vec![[10, 0, 0, 250].into(), [10, 9, 0, 250].into()],
        boot_url: Some("http://10.0.0.1:8080".into()),
        loader: Some(DEFAULT_LOADER.into()),
        loaders: loaders.map(|(code, file)| (code, file.to_owned())).into(),
        pxelinux: Pxelinux::default(),
    }
}

/// A service, a clock and a gate that knows MACs 1 to 99; 1 to 49 may netboot.
struct Rig {
    service: Service,
    now: Timestamp,
    store_answers: bool,
}

impl Rig {
    fn new(mode: DhcpMode) -> Self {
        Self::with(settings(mode))
    }

    fn with(settings: Settings) -> Self {
        let now = Timestamp::from_millis(1_000_000);
        Self { service: Service::new(settings, []), now, store_answers: true }
    }

    fn server() -> Self {
        Self::new(server(pool((100, 102))))
    }

    fn proxy() -> Self {
        Self::new(DhcpMode::Proxy)
    }

    fn gate(mac: MacAddr) -> Answer {
        let machine = Machine { mac, name: "m".into(), vm_uuid: "u".into(), armed: None };
        match mac.octets()[5] {
            1..=49 => Answer::Boot(std::sync::Arc::new(crate::boot::Armed {
                job: "j".into(),
                attempt: 1,
                vm_name: "m".into(),
                vm_uuid: "u".into(),
                mac,
                render: token(),
                report: token(),
                booted: token(),
                files: crate::config::BootFiles {
                    kernel: "k".into(),
                    initrd: vec![],
                    args: String::new(),
                    answer: None,
                    fetch: crate::config::Fetch::Http,
                    seed: Vec::new(),
                    files: Vec::new(),
                },
                profile: "p".into(),
                variables: BTreeMap::new(),
                disk: None,
                xen: None,
                phase: crate::boot::ArmPhase::Booting,
            })),
            50..=99 => Answer::Refused(machine),
            _ => Answer::Unknown,
        }
    }

    fn actions(&mut self, packet: &Packet) -> Vec<Action> {
        let request = Request::parse(&packet.bytes).unwrap();
        let mut actions = self.service.handle(&request, &Self::gate(request.mac), self.now);
        if self.store_answers {
            actions = self.run_commits(actions);
        }
        actions
    }

    fn run_commits(&mut self, actions: Vec<Action>) -> Vec<Action> {
        let mut all = Vec::new();
        for action in actions {
            let committed =
                if let Action::Commit(lease) = &action { self.service.committed(lease) } else { Vec::new() };
            all.push(action);
            all.extend(committed);
        }
        all
    }

    /// What comes of a packet; how full the pool is, is another matter.
    fn text(&mut self, packet: &Packet) -> String {
        let actions = self.actions(packet);
        let shown = actions.iter().filter(|action| !matches!(action, Action::Fullness(_)));
        shown.map(describe).collect::<Vec<_>>().join("; ")
    }

    fn reply(&mut self, packet: &Packet) -> v4::Message {
        let actions = self.actions(packet);
        let reply = actions
            .iter()
            .find_map(|action| if let Action::Send(reply) = action { Some(reply) } else { None });
        decode(reply.unwrap_or_else(|| panic!("{actions:?}")))
    }

    /// DISCOVER and REQUEST; the address.
    fn lease(&mut self, n: u8) -> Ipv4Addr {
        let address = self.reply(&discover(n)).yiaddr();
        let text = self.text(&select(n, address.octets()));
        assert!(text.contains(&format!("ack {address} ")), "{text}");
        address
    }

    fn wait(&mut self, seconds: u64) {
        self.now = self.now + Duration::from_secs(seconds);
    }
}

fn token() -> crate::secret::Token {
    crate::secret::TokenKey::new([0; 32]).token("j", 1, crate::secret::TokenUse::Render)
}

fn decode(reply: &Reply) -> v4::Message {
    v4::Message::from_bytes(&reply.bytes).unwrap()
}

fn describe(action: &Action) -> String {
    match action {
        Action::Send(reply) => {
            let to = match reply.to {
                Destination::Broadcast => "broadcast".to_owned(),
                Destination::Client(address) => address.to_string(),
                Destination::Card(..) => "its card".to_owned(),
                Destination::Relay(address) => format!("relay {address}"),
                Destination::Unicast(to) => to.to_string(),
            };
            format!("{} {} to {to}", reply.kind.label(), decode(reply).yiaddr())
        }
        Action::Commit(lease) => format!("commit {} {}", lease.mac, lease.address),
        Action::Forget(address) => format!("forget {address}"),
        Action::Tell(sign) => format!("tell {sign:?}"),
        Action::Met(address) => format!("met {address}"),
        Action::Hint(hint) => format!("hint {hint:?}"),
        Action::Fullness(full) => format!("full {} of {} {}", full.taken, full.size, full.alarm),
        Action::Neighbour(neighbour) => {
            let Neighbour { server, leases, boots, in_the_way, .. } = neighbour;
            format!("neighbour {server} leases {leases} boots {boots} in the way {in_the_way}")
        }
        Action::Ignore(why) => format!("ignore {}", why.label()),
    }
}

/// A header field up to its NUL.
fn field(bytes: Option<&[u8]>) -> String {
    let text = String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    text.trim_end_matches('\0').to_owned()
}

fn raw(message: &v4::Message, code: u8) -> Option<Vec<u8>> {
    let option = message.opts().get(OptionCode::from(code))?;
    use dhcproto::Encodable;
    let bytes = option.to_vec().unwrap();
    Some(bytes[2..].to_vec())
}

#[test]
fn a_lease_is_offered_committed_and_then_acknowledged() {
    let mut rig = Rig::server();
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.100 to its card");
    assert_eq!(
        rig.text(&select(1, [10, 0, 0, 100])),
        "commit 02:00:00:00:00:01 10.0.0.100; ack 10.0.0.100 to its card; met 10.0.0.100; tell Lease"
    );
    let ack = rig.reply(&select(1, [10, 0, 0, 100]));
    assert_eq!(ack.opts().get(OptionCode::AddressLeaseTime), Some(&DhcpOption::AddressLeaseTime(3600)));
    assert_eq!(ack.opts().get(OptionCode::Renewal), Some(&DhcpOption::Renewal(1800)));
    assert_eq!(
        ack.opts().get(OptionCode::SubnetMask),
        Some(&DhcpOption::SubnetMask([255, 255, 255, 0].into()))
    );
    assert_eq!(ack.opts().get(OptionCode::Router), Some(&DhcpOption::Router(vec![[10, 0, 0, 254].into()])));
    assert_eq!(
        ack.opts().get(OptionCode::DomainNameServer),
        Some(&DhcpOption::DomainNameServer(vec![[10, 0, 0, 53].into()]))
    );
    assert_eq!(ack.opts().get(OptionCode::ServerIdentifier), Some(&DhcpOption::ServerIdentifier(SELF)));
}

#[test]
fn nothing_is_acknowledged_before_the_store_has_it() {
    let mut rig = Rig::server();
    rig.store_answers = false;
    rig.text(&discover(1));
    let request = select(1, [10, 0, 0, 100]);
    assert_eq!(rig.text(&request), "commit 02:00:00:00:00:01 10.0.0.100");
    assert_eq!(rig.text(&request), "ignore committing");
    assert_eq!(rig.text(&discover(2)), "offer 10.0.0.101 to its card", "others are served meanwhile");
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.100 to its card");
    // The answer is to the last request.
    rig.text(&request.clone().at(4, &[0, 0, 7, 7]));
    let lease = Lease { mac: mac(1), address: [10, 0, 0, 100].into(), until: rig.now + LEASE * 2 };
    let actions = rig.service.committed(&lease);
    let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(decode(reply).xid(), 0x0707);
}

#[test]
fn a_failed_commit_leaves_the_client_without_an_answer_until_it_asks_again() {
    let mut rig = Rig::server();
    rig.store_answers = false;
    rig.text(&discover(1));
    let request = select(1, [10, 0, 0, 100]);
    let actions = rig.actions(&request);
    let Action::Commit(lease) = &actions[0] else { panic!("{actions:?}") };
    rig.service.not_committed(lease);
    assert_eq!(rig.service.committed(lease), [], "nobody waits any more");
    rig.store_answers = true;
    rig.wait(7200);
    assert!(rig.text(&request).contains("ack 10.0.0.100"));
}

#[test]
fn a_bound_client_is_acknowledged_from_memory() {
    let mut rig = Rig::server();
    rig.lease(1);
    rig.store_answers = false;
    let again = "ack 10.0.0.100 to its card; met 10.0.0.100; tell Lease";
    assert_eq!(rig.text(&select(1, [10, 0, 0, 100])), again);
    // At T1 the store is written in the background, once, and the client does not wait for it.
    rig.wait(1801);
    let renew = Packet::new(3, 1, &[]).ciaddr([10, 0, 0, 100]);
    let renewed = "ack 10.0.0.100 to 10.0.0.100; met 10.0.0.100; tell Lease";
    assert_eq!(rig.text(&renew), format!("{renewed}; commit 02:00:00:00:00:01 10.0.0.100"));
    assert_eq!(rig.text(&renew), renewed);
    // With the store away for long, no more is promised than is durable, and in the end nothing.
    rig.wait(1900);
    let short = rig.reply(&renew);
    assert_eq!(short.opts().get(OptionCode::AddressLeaseTime), Some(&DhcpOption::AddressLeaseTime(3499)));
    assert_eq!(short.opts().get(OptionCode::Renewal), Some(&DhcpOption::Renewal(1749)));
    rig.wait(3490);
    assert_eq!(rig.text(&renew), "ignore committing");
}

#[test]
fn one_mac_has_one_address_whatever_its_client_identifier() {
    let mut rig = Rig::server();
    let first = rig.lease(1);
    let linux = discover(1).option(61, &[255, 1, 2, 3, 4, 0, 1, 0, 1]);
    let rom = Packet::new(1, 1, IPXE).option(61, &[1, 2, 0, 0, 0, 0, 1]);
    assert_eq!(rig.reply(&linux).yiaddr(), first);
    let offer = rig.reply(&rom);
    assert_eq!(offer.yiaddr(), first);
    assert_eq!(raw(&offer, code::CLIENT_IDENTIFIER), Some(vec![1, 2, 0, 0, 0, 0, 1]), "echoed (RFC 6842)");
    rig.wait(100_000);
    rig.lease(2);
    assert_eq!(rig.reply(&discover(1)).yiaddr(), first, "also long after the lease ended");
}

#[test]
fn an_ended_lease_is_given_away_when_the_pool_is_full() {
    let mut rig = Rig::server();
    for n in 1..=3 {
        rig.lease(n);
    }
    assert_eq!(rig.text(&discover(4)), "ignore pool_exhausted");
    rig.wait(3 * 3600);
    assert_eq!(rig.text(&discover(4)), "offer 10.0.0.102 to its card");
    assert_eq!(
        rig.text(&select(4, [10, 0, 0, 102])).split(';').next(),
        Some("commit 02:00:00:00:00:04 10.0.0.102")
    );
    let nak = Packet::new(3, 3, &[]).ciaddr([10, 0, 0, 102]);
    assert_eq!(rig.text(&nak), "nak 0.0.0.0 to broadcast", "whoever had it must ask anew");
}

#[test]
fn strangers_get_nothing_unless_policy_says_so() {
    let mut rig = Rig::server();
    assert_eq!(rig.text(&discover(200)), "ignore stranger");
    assert_eq!(rig.text(&select(200, [10, 0, 0, 100])), "ignore stranger", "and are never refused aloud");
    assert_eq!(rig.text(&Packet::new(3, 200, &[]).ciaddr([192, 168, 0, 7])), "ignore stranger");
    let mut open = pool((100, 102));
    open.lease_to_strangers = true;
    let mut rig = Rig::new(server(open));
    let offer = rig.reply(&Packet::new(1, 200, IPXE));
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 0, 0, 100));
    assert_eq!((offer.siaddr(), offer.fname()), (Ipv4Addr::UNSPECIFIED, None), "no boot options");
    for code in [43, 60, 66, 67] {
        assert_eq!(raw(&offer, code), None);
    }
}

#[test]
fn random_macs_do_not_starve_a_known_machine() {
    let mut open = pool((100, 102));
    open.lease_to_strangers = true;
    let mut rig = Rig::new(server(open));
    for n in 200..=220 {
        rig.text(&discover(n));
    }
    assert_eq!(rig.text(&discover(221)), "ignore pool_exhausted");
    assert!(rig.text(&discover(1)).starts_with("offer 10.0.0.10"));
    rig.lease(1);
}

#[test]
fn a_reservation_is_kept_for_its_mac() {
    let mut rig = Rig::server();
    assert_eq!(rig.text(&discover(9)), "offer 10.0.0.9 to its card");
    assert_eq!(rig.text(&select(1, [10, 0, 0, 9])), "nak 0.0.0.0 to broadcast");
    let mut inside = pool((100, 102));
    inside.reservations.insert(mac(7), [10, 0, 0, 100].into());
    let mut rig = Rig::new(server(inside));
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.101 to its card");
    assert_eq!(rig.text(&discover(7)), "offer 10.0.0.100 to its card");
}

#[test]
fn our_own_and_special_addresses_are_never_leased() {
    let mut config = pool((0, 3));
    config.router = Some([10, 0, 0, 2].into());
    let mut rig = Rig::new(server(config));
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.3 to its card");
    assert_eq!(rig.text(&discover(2)), "ignore pool_exhausted");
}

#[test]
fn a_request_is_judged_by_the_state_that_the_client_is_in() {
    let other = [10, 0, 0, 77];
    let with = |options: &[(u8, &[u8])]| Packet::new(3, 1, options);
    for (case, packet, expected) in [
        ("selecting another server", with(&[(54, &other), (50, &[10, 0, 0, 100])]), "ignore other_server"),
        ("selecting what it was not offered", select(1, [10, 0, 0, 101]), "nak 0.0.0.0 to broadcast"),
        ("selecting what is not ours", select(1, other), "nak 0.0.0.0 to broadcast"),
        ("init-reboot, right", with(&[(50, &[10, 0, 0, 100])]), "ack 10.0.0.100 to its card"),
        ("init-reboot, wrong", with(&[(50, &[10, 0, 0, 101])]), "nak 0.0.0.0 to broadcast"),
        ("init-reboot, other net", with(&[(50, &[192, 168, 0, 1])]), "nak 0.0.0.0 to broadcast"),
        ("renewing, right", with(&[]).ciaddr([10, 0, 0, 100]), "ack 10.0.0.100 to 10.0.0.100"),
        ("renewing, wrong", with(&[]).ciaddr([10, 0, 0, 101]), "nak 0.0.0.0 to broadcast"),
        ("neither", with(&[]), "ignore contradictory"),
    ] {
        let mut rig = Rig::server();
        rig.lease(1);
        let text = rig.text(&packet);
        assert_eq!(text.split(';').next(), Some(expected), "{case}");
    }
    // Without a record (RFC 2131 §4.3.2): silence in INIT-REBOOT, but the subnet is ours to refuse; and a known
    // machine that renews a free address keeps it, so that a lost database costs no running installation.
    for (packet, expected) in [
        (with(&[(50, &[10, 0, 0, 100])]), "ignore no_record"),
        (with(&[(50, &[192, 168, 0, 1])]), "nak 0.0.0.0 to broadcast"),
        (with(&[]).ciaddr([10, 0, 0, 102]), "commit 02:00:00:00:00:01 10.0.0.102"),
        (select(1, [10, 0, 0, 101]), "commit 02:00:00:00:00:01 10.0.0.101"),
    ] {
        assert_eq!(Rig::server().text(&packet).split(';').next(), Some(expected));
    }
}

#[test]
fn the_offer_ends_when_another_server_is_chosen() {
    let mut rig = Rig::new(server(pool((100, 100))));
    rig.text(&discover(1));
    assert_eq!(rig.text(&discover(2)), "ignore pool_exhausted");
    rig.text(&Packet::new(3, 1, &[(54, &[10, 0, 0, 77]), (50, &[10, 0, 0, 100])]));
    assert_eq!(rig.text(&discover(2)), "offer 10.0.0.100 to its card");
}

#[test]
fn a_declined_address_rests_and_a_released_one_comes_back() {
    let mut rig = Rig::server();
    rig.lease(1);
    assert_eq!(rig.text(&Packet::new(4, 2, &[(50, &[10, 0, 0, 100])])), "ignore no_record", "not its own");
    assert_eq!(rig.text(&Packet::new(4, 1, &[(50, &[10, 0, 0, 100])])), "forget 10.0.0.100");
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.101 to its card");
    rig.wait(601);
    rig.text(&discover(2));
    assert_eq!(rig.text(&discover(3)), "offer 10.0.0.100 to its card");
    let address = rig.lease(1);
    assert_eq!(rig.text(&Packet::new(7, 1, &[]).ciaddr([10, 0, 0, 55])), "ignore no_record");
    assert_eq!(rig.text(&Packet::new(7, 1, &[]).ciaddr(address.octets())), format!("forget {address}"));
    assert_eq!(rig.reply(&discover(1)).yiaddr(), address);
}

#[test]
fn inform_gets_parameters_and_no_lease() {
    let mut rig = Rig::server();
    let packet = Packet::new(8, 1, &[]).ciaddr([10, 0, 0, 50]);
    assert_eq!(rig.text(&packet), "ack 0.0.0.0 to 10.0.0.50");
    let ack = rig.reply(&packet);
    assert_eq!(raw(&ack, 51), None);
    assert_eq!(raw(&ack, 1), Some(vec![255, 255, 255, 0]));
}

#[test]
fn leases_of_the_store_hold_after_a_restart() {
    let until = Timestamp::from_millis(1_000_000) + LEASE * 2;
    let settings = settings(server(pool((100, 102))));
    let lease = |n, last| Lease { mac: mac(n), address: [10, 0, 0, last].into(), until };
    let mut rig = Rig::server();
    rig.service = Service::new(settings, [lease(1, 101), lease(2, 101), lease(3, 200)]);
    assert_eq!(rig.text(&discover(4)), "offer 10.0.0.100 to its card");
    assert_eq!(rig.text(&discover(1)), "offer 10.0.0.101 to its card");
    let renewing = Packet::new(3, 1, &[]).ciaddr([10, 0, 0, 101]);
    assert_eq!(rig.text(&renewing), "ack 10.0.0.101 to 10.0.0.101; met 10.0.0.101; tell Lease");
    let text = serde_json::to_string(&lease(1, 101)).unwrap();
    assert_eq!(text, r#"{"mac":"02:00:00:00:00:01","address":"10.0.0.101","until":8200000}"#);
}

#[test]
fn the_last_addresses_are_kept_for_machines_with_a_job() {
    let mut small = pool((100, 103));
    (small.keep_for_jobs, small.lease_to_strangers) = (1, true);
    let mut rig = Rig::new(server(small));
    for n in [50, 51, 200] {
        rig.lease(n);
    }
    assert_eq!(rig.text(&discover(52)), "ignore pool_exhausted");
    assert_eq!(rig.text(&select(52, [10, 0, 0, 103])), "nak 0.0.0.0 to broadcast");
    assert_eq!(rig.lease(1), Ipv4Addr::new(10, 0, 0, 103));
    // Who had an address long ago does not get it back at the cost of what is kept either.
    rig.wait(3 * 3600);
    for n in [1, 50, 51] {
        rig.lease(n);
    }
    assert_eq!(rig.text(&discover(200)), "ignore pool_exhausted");
    assert_eq!(rig.text(&discover(50)), "offer 10.0.0.100 to its card");
}

#[test]
fn a_pool_that_is_nearly_full_is_told_once_and_again_when_there_is_room() {
    let mut rig = Rig::new(server(pool((100, 109))));
    let mut told = Vec::new();
    let mut ask = |rig: &mut Rig, n: u8| {
        let actions = rig.actions(&discover(n));
        let full = actions.iter().filter(|action| matches!(action, Action::Fullness(_)));
        told.extend(full.map(|action| format!("{n}: {}", describe(action))));
    };
    for n in 1..=10 {
        if n == 9 {
            continue; // has a reservation of its own
        }
        ask(&mut rig, n);
    }
    ask(&mut rig, 11);
    rig.wait(61);
    ask(&mut rig, 12);
    assert_eq!(told, ["10: full 9 of 10 true", "12: full 1 of 10 false"]);
}

#[test]
fn a_client_behind_a_relay_is_leased_an_address_of_its_own_network() {
    let far = DhcpPool {
        range: ([10, 9, 0, 10].into(), [10, 9, 0, 20].into()),
        router: Some([10, 9, 0, 1].into()),
        ..pool((100, 102))
    };
    let mut rig = Rig::new(DhcpMode::Server(DhcpServer { own: pool((100, 102)), relayed: vec![far] }));
    let near = rig.lease(1);
    let relay = [10, 9, 0, 250];
    let offer = rig.reply(&discover(1).giaddr(relay));
    assert_eq!(offer.yiaddr(), Ipv4Addr::new(10, 9, 0, 10));
    assert_eq!(raw(&offer, 3), Some(vec![10, 9, 0, 1]));
    let text = rig.text(&select(1, [10, 9, 0, 10]).giaddr(relay));
    assert_eq!(
        text,
        "commit 02:00:00:00:00:01 10.9.0.10; ack 10.9.0.10 to relay 10.9.0.250; met 10.9.0.10; tell Lease; \
         forget 10.0.0.100",
        "{near} is free again: one card is in one network"
    );
    // It renews by unicast, past the relay.
    let renewal = Packet::new(3, 1, &[]).ciaddr([10, 9, 0, 10]);
    assert_eq!(rig.text(&renewal), "ack 10.9.0.10 to 10.9.0.10; met 10.9.0.10; tell Lease");
    assert_eq!(rig.reply(&discover(2)).yiaddr(), near);
}

#[test]
fn a_bad_relayed_request_is_refused_through_its_relay() {
    let mut rig = Rig::server();
    rig.lease(1);
    let wrong = select(1, [10, 0, 0, 77]).giaddr([10, 0, 0, 250]);
    assert_eq!(rig.text(&wrong), "nak 0.0.0.0 to relay 10.0.0.250");
}

#[test]
fn with_the_store_away_offers_go_out_new_leases_wait_and_nobody_is_refused() {
    let mut rig = Rig::server();
    let old = rig.lease(1);
    rig.store_answers = false;
    for n in 2..=3 {
        let offer = rig.reply(&discover(n)).yiaddr();
        assert!(rig.text(&select(n, offer.octets())).starts_with("commit "));
        for _ in 0..3 {
            assert_eq!(rig.text(&select(n, offer.octets())), "ignore committing");
        }
    }
    assert!(rig.text(&select(1, old.octets())).starts_with(&format!("ack {old} ")));
}

/// Another server's reply, as it is heard on the client port.
fn foreign(server: [u8; 4], yiaddr: [u8; 4], options: &[(u8, &[u8])]) -> Packet {
    Packet::new(2, 1, &[(54, &server)]).at(0, &[2]).at(16, &yiaddr).with(options)
}

#[test]
fn another_server_is_told_once_for_what_it_does() {
    let (one, two) = ([10, 0, 0, 66], [10, 0, 0, 67]);
    let lease = |server| foreign(server, [10, 0, 0, 180], &[]);
    let boots = |server| foreign(server, [0; 4], &[(60, b"PXEClient")]);
    let hear = |rig: &mut Rig, packet: &Packet| {
        let actions = rig.service.overhear(&packet.bytes, [10, 0, 0, 66].into(), rig.now);
        actions.iter().map(describe).collect::<Vec<_>>().join("; ")
    };
    let mut server = Rig::server();
    let bad = "neighbour 10.0.0.66 leases true boots false in the way true";
    assert_eq!(hear(&mut server, &lease(one)), bad);
    assert_eq!(hear(&mut server, &lease(one)), "");
    assert_eq!(hear(&mut server, &lease(SELF.octets())), "", "what we say ourselves");
    assert_eq!(hear(&mut server, &discover(1)), "", "a request is no reply");
    assert_eq!(
        hear(&mut server, &lease(one).at(28, &[9; 6]).at(2, &[255])),
        "",
        "and nothing trusts its lengths"
    );
    let mut proxy = Rig::proxy();
    for (packet, expected) in [
        (lease(one), "neighbour 10.0.0.66 leases true boots false in the way false"),
        (lease(two), "neighbour 10.0.0.67 leases true boots false in the way true"),
        (boots(one), "neighbour 10.0.0.66 leases true boots true in the way true"),
        (boots(one), ""),
    ] {
        assert_eq!(hear(&mut proxy, &packet), expected);
    }
    // Where replies are not heard, a client's choice is.
    let mut deaf = Rig::server();
    let chosen = Packet::new(3, 1, &[(54, &one), (50, &[10, 0, 0, 180])]);
    assert_eq!(deaf.text(&chosen), format!("ignore other_server; {bad}"));
    let status: Vec<Ipv4Addr> = proxy.service.neighbours().iter().map(|neighbour| neighbour.server).collect();
    assert_eq!(status, [Ipv4Addr::from(one), Ipv4Addr::from(two)]);
}

#[test]
fn a_thousand_forged_servers_take_no_more_memory_than_sixteen() {
    let mut rig = Rig::server();
    for n in 0..1000_u32 {
        let [.., a, b] = n.to_be_bytes();
        let packet = foreign([10, 1, a, b], [10, 0, 0, 180], &[]);
        rig.service.overhear(&packet.bytes, SELF, rig.now);
    }
    assert_eq!(rig.service.neighbours().len(), 16);
}

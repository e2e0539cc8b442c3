//! What PXE firmware does that no RFC says: one test for each habit that DHCP meets, from bytes, named after it.
//! `docs/quirks.md` lists all of them, with those of TFTP and HTTP and those that do not apply.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use bootflip::{
    boot::{Answer, Ask},
    clock::Timestamp,
    config::{DhcpMode, DhcpPool, DhcpServer, Pxelinux},
    dhcp::{
        Action, Client, DEFAULT_LOADER, Destination, Ignored, Kind, Message, Refusal, Reply, Request,
        Service, Settings,
    },
    machine::MacAddr,
};

use crate::{
    boot::{ARMED, STRANGER, Scene},
    dhcp::pool,
};

const US: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const RELAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 250);
const BIOS: &[u8] = b"PXEClient:Arch:00000:UNDI:002001";

/// A packet in the making.
#[derive(Clone)]
struct Packet(Vec<u8>);

impl Packet {
    fn new(kind: u8, mac: MacAddr) -> Self {
        let mut bytes = vec![0; 240];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(&[1, 2, 3, 4]);
        bytes[28..34].copy_from_slice(&mac.octets());
        bytes[236..].copy_from_slice(&[99, 130, 83, 99]);
        bytes.extend([53, 1, kind]);
        Self(bytes)
    }

    fn option(mut self, code: u8, data: &[u8]) -> Self {
        self.0.extend([code, u8::try_from(data.len()).unwrap()]);
        self.0.extend(data);
        self
    }

    fn at(mut self, place: usize, bytes: &[u8]) -> Self {
        self.0[place..place + bytes.len()].copy_from_slice(bytes);
        self
    }

    fn request(&self) -> Request {
        Request::parse(&[&self.0[..], &[255]].concat()).unwrap()
    }
}

fn discover(mac: MacAddr) -> Packet {
    Packet::new(1, mac)
}

/// A BIOS ROM of the armed machine.
fn rom() -> Packet {
    discover(ARMED).option(60, BIOS).option(93, &[0, 0])
}

fn uefi() -> Packet {
    discover(ARMED).option(60, b"PXEClient:Arch:00007:UNDI:003016").option(93, &[0, 7])
}

fn ipxe() -> Packet {
    rom().option(77, b"iPXE").option(175, &[0x13, 1, 1])
}

/// The service of one mode, with the gate of the other tests, and a clock.
struct Rig {
    service: Service,
    scene: Scene,
    now: Timestamp,
}

impl Rig {
    fn new(mode: DhcpMode) -> Self {
        let loaders = [(7, "ipxe.efi"), (9, "ipxe.efi"), (16, "http://10.0.0.1:8080/ipxe.efi")];
        let settings = Settings {
            address: US,
            mode,
            relays: vec![RELAY],
            boot_url: Some("http://10.0.0.1:8080".into()),
            loader: Some(DEFAULT_LOADER.into()),
            loaders: loaders.map(|(code, file)| (code, file.to_owned())).into(),
            pxelinux: Pxelinux {
                config_file: Some("site.cfg".into()),
                path_prefix: Some("boot/".into()),
                reboot_time: Some(Duration::from_secs(60)),
            },
        };
        Self {
            service: Service::new(settings, []),
            scene: Scene::new(),
            now: Timestamp::from_millis(5_000_000),
        }
    }

    fn proxy() -> Self {
        Self::new(DhcpMode::Proxy)
    }

    fn server() -> Self {
        let own =
            DhcpPool { netmask: Ipv4Addr::new(255, 255, 255, 0), ..pool([10, 0, 0, 100], [10, 0, 0, 200]) };
        Self::new(DhcpMode::Server(DhcpServer { own, relayed: vec![] }))
    }

    fn both() -> [Self; 2] {
        [Self::proxy(), Self::server()]
    }

    fn answer(&self, request: &Request) -> Answer {
        self.scene.gate.answer(Ask::Netboot { mac: request.mac })
    }

    /// What comes of it, with every lease stored at once.
    fn actions(&mut self, packet: &Packet) -> Vec<Action> {
        let request = packet.request();
        let answer = self.answer(&request);
        let mut done = Vec::new();
        for action in self.service.handle(&request, &answer, self.now) {
            let after =
                if let Action::Commit(lease) = &action { self.service.committed(lease) } else { vec![] };
            done.push(action);
            done.extend(after);
        }
        done
    }

    fn reply(&mut self, packet: &Packet) -> Option<Told> {
        sent(self.actions(packet))
    }

    fn told(&mut self, packet: &Packet) -> Told {
        self.reply(packet).expect("an answer")
    }

    fn boot_server(&mut self, packet: &Packet) -> Option<Told> {
        let request = packet.request();
        let answer = self.answer(&request);
        let from = SocketAddrV4::new([10, 0, 0, 60].into(), 4011);
        sent(self.service.handle_boot_server(&request, &answer, from))
    }

    fn hints(&mut self, packet: &Packet) -> Vec<String> {
        let hint = |action| if let Action::Hint(hint) = action { Some(hint.to_string()) } else { None };
        self.actions(packet).into_iter().filter_map(hint).collect()
    }
}

fn sent(actions: Vec<Action>) -> Option<Told> {
    actions
        .into_iter()
        .find_map(|action| if let Action::Send(reply) = action { Some(Told::new(reply)) } else { None })
}

/// A reply, taken apart without the code that made it.
#[derive(Debug)]
struct Told {
    reply: Reply,
    options: BTreeMap<u8, Vec<u8>>,
    order: Vec<u8>,
}

impl Told {
    fn new(reply: Reply) -> Self {
        let (mut options, mut order) = (BTreeMap::new(), Vec::new());
        let mut rest = &reply.bytes[240..];
        while rest[0] != 255 {
            let (code, length) = (rest[0], usize::from(rest[1]));
            options.insert(code, rest[2..2 + length].to_vec());
            order.push(code);
            rest = &rest[2 + length..];
        }
        assert!(rest[1..].iter().all(|byte| *byte == 0), "nothing but padding behind the end");
        Self { reply, options, order }
    }

    fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    fn field(&self, range: std::ops::Range<usize>) -> String {
        let field = &self.reply.bytes[range];
        let end = field.iter().position(|byte| *byte == 0).expect("a NUL ends it");
        String::from_utf8(field[..end].to_vec()).unwrap()
    }

    fn file(&self) -> String {
        self.field(108..236)
    }

    fn address(&self, at: usize) -> Ipv4Addr {
        Ipv4Addr::from(<[u8; 4]>::try_from(&self.reply.bytes[at..at + 4]).unwrap())
    }
}

#[test]
fn quirk_01_architecture_is_a_list_and_the_first_known_code_counts() {
    for (listed, file) in [
        (&[0, 0][..], Some(DEFAULT_LOADER)),
        (&[0, 7], Some("ipxe.efi")),
        // 9 by the RFC's text, 7 by what firmware sends: both are x64.
        (&[0, 9], Some("ipxe.efi")),
        (&[0, 11, 0, 7], Some("ipxe.efi")),
        (&[0, 7, 0, 0], Some("ipxe.efi")),
        (&[0, 11], None),
        (&[2, 0], None),
    ] {
        for mut rig in Rig::both() {
            let packet = discover(ARMED).option(60, b"PXEClient").option(93, listed);
            let told = rig.reply(&packet).filter(|told| told.option(60).is_some());
            assert_eq!(told.map(|told| told.file()), file.map(str::to_owned), "{listed:?}");
        }
    }
    // Unknown: told to a person once, not for every packet.
    let mut rig = Rig::proxy();
    let arm = discover(ARMED).option(60, b"PXEClient").option(93, &[0, 11]);
    assert!(rig.hints(&arm)[0].contains("efi-arm64"));
    assert!(rig.hints(&arm).is_empty());
}

#[test]
fn quirk_02_machine_identifier_is_echoed_exactly_or_left_out() {
    let uuid = [&[0][..], &[0xab; 16]].concat();
    for (sent, echoed) in [
        (uuid.clone(), Some(uuid.clone())),
        ([&[1][..], &[0xab; 16]].concat(), None),
        (vec![0; 16], None),
        (vec![0; 18], None),
    ] {
        let told = Rig::proxy().told(&rom().option(97, &sent));
        assert_eq!(told.option(97).map(<[u8]>::to_vec), echoed, "{sent:?}");
    }
    assert_eq!(Rig::proxy().told(&rom()).option(97), None);
}

#[test]
fn quirk_03_vendor_class_in_the_answer_is_what_the_client_asked_with() {
    for mut rig in Rig::both() {
        assert_eq!(rig.told(&rom()).option(60), Some(&b"PXEClient"[..]));
        let http = discover(ARMED).option(60, b"HTTPClient:Arch:00016:UNDI:003001").option(93, &[0, 16]);
        let told = rig.told(&http);
        assert_eq!(told.option(60), Some(&b"HTTPClient"[..]));
        assert_eq!(told.file(), "http://10.0.0.1:8080/ipxe.efi");
        assert_eq!(told.option(43), None);
    }
    // A client that is no boot ROM gets none.
    assert_eq!(Rig::server().told(&discover(ARMED)).option(60), None);
}

#[test]
fn quirk_04_bios_roms_are_told_to_skip_discovery_and_their_chosen_item_comes_back() {
    let told = Rig::proxy().told(&rom());
    assert_eq!(told.option(43), Some(&[6, 1, 8, 255][..]), "6 = 8: boot the file; ended by 255");
    let chosen = Packet::new(3, ARMED).option(60, BIOS).option(43, &[71, 4, 0, 0, 0, 0, 255]);
    for kind in [3, 8] {
        let told = Rig::proxy().boot_server(&chosen.clone().at(242, &[kind])).unwrap();
        assert_eq!(told.reply.kind, Kind::Ack);
        assert_eq!(told.option(43), Some(&[6, 1, 8, 71, 4, 0, 0, 0, 0, 255][..]));
    }
    // The layer's highest bit demands signed boot files (BIS): nobody has them.
    let bis =
        [&Packet::new(3, ARMED).option(60, BIOS).option(43, &[71, 4, 0, 0, 0x80, 0]).0[..], &[255]].concat();
    assert_eq!(Request::parse(&bis), Err(Refusal::BootIntegrity));
}

#[test]
fn quirk_05_uefi_gets_no_option_43_and_its_file_on_the_boot_server_port_too() {
    let mut rig = Rig::proxy();
    let offer = rig.told(&uefi());
    assert_eq!((offer.option(43), offer.file().as_str()), (None, "ipxe.efi"));
    let asked = Packet::new(3, ARMED).option(60, b"PXEClient").option(93, &[0, 7]);
    let ack = rig.boot_server(&asked).unwrap();
    assert_eq!((ack.option(43), ack.file().as_str(), ack.address(20)), (None, "ipxe.efi", US));
}

#[test]
fn quirk_06_uefi_that_asks_again_is_told_the_other_way() {
    let mut rig = Rig::proxy();
    let first = rig.told(&uefi());
    assert_eq!(first.option(54), Some(&US.octets()[..]));
    assert_eq!(
        first.address(20),
        US,
        "siaddr and option 54 together keep some from asking port 4011 by broadcast"
    );
    assert_eq!(first.option(43), None);
    rig.now = rig.now + Duration::from_secs(4);
    assert_eq!(rig.told(&uefi()).option(43), Some(&[6, 1, 8, 255][..]));
    // Each boot begins anew.
    rig.now = rig.now + Duration::from_secs(120);
    assert_eq!(rig.told(&uefi()).option(43), None);
}

#[test]
fn quirk_07_ipxe_ignores_a_boot_offer_without_siaddr_or_file() {
    for mut rig in Rig::both() {
        let told = rig.told(&ipxe());
        assert_eq!(told.address(20), US);
        assert_eq!(told.file(), format!("http://10.0.0.1:8080/b/{ARMED}"));
        assert_eq!(told.option(54), Some(&US.octets()[..]));
    }
    let ack = Rig::proxy().boot_server(&Packet::new(3, ARMED).option(60, BIOS).option(77, b"iPXE")).unwrap();
    assert_eq!(
        (ack.address(20), ack.option(60)),
        (US, Some(&b"PXEClient"[..])),
        "nor does it take an ACK without"
    );
}

#[test]
fn quirk_08_ipxe_waits_two_seconds_for_a_proxy_unless_it_is_told_not_to() {
    // From memory: the answer to a DISCOVER is there when the function returns, with the store out of the picture.
    let mut rig = Rig::server();
    let request = ipxe().request();
    let answer = rig.answer(&request);
    let actions = rig.service.handle(&request, &answer, rig.now);
    assert!(matches!(&actions[0], Action::Send(reply) if reply.kind == Kind::Offer));
    // Where we lease and boot, nobody else's offer is worth waiting for (option 175, sub-option 176).
    assert_eq!(rig.told(&ipxe()).option(175), Some(&[176, 1, 1][..]));
    assert_eq!(rig.told(&rom()).option(175), None, "no other ROM knows it");
    assert_eq!(Rig::proxy().told(&ipxe()).option(175), None);
}

#[test]
fn quirk_09_a_proxys_offer_is_broadcast_and_the_boot_server_answers_its_sender() {
    let told = Rig::proxy().told(&rom());
    assert_eq!(told.reply.to, Destination::Broadcast);
    assert_eq!(told.reply.bytes[10], 0x80, "the flag is set though the client did not ask for it");
    // Older XenServer firmware drops a broadcast there (CA-247413).
    let ack = Rig::proxy().boot_server(&Packet::new(3, ARMED).option(60, BIOS)).unwrap();
    assert_eq!(ack.reply.to, Destination::Unicast(SocketAddrV4::new([10, 0, 0, 60].into(), 4011)));
    // A server's offer goes to the card, unless the client says that it hears broadcasts only.
    let mut rig = Rig::server();
    assert!(matches!(rig.told(&rom()).reply.to, Destination::Card(ARMED, _)));
    assert_eq!(rig.told(&rom().at(10, &[0x80])).reply.to, Destination::Broadcast);
}

#[test]
fn quirk_10_a_relayed_packet_is_answered_to_its_relay_with_giaddr_hops_and_option_82() {
    for mut rig in Rig::both() {
        let relayed = rom().at(24, &RELAY.octets()).at(3, &[3]).option(82, &[1, 2, 7, 8]);
        let told = rig.told(&relayed);
        assert_eq!(told.reply.to, Destination::Relay(RELAY));
        assert_eq!((told.address(24), told.reply.bytes[3]), (RELAY, 3));
        assert_eq!(told.option(82), Some(&[1, 2, 7, 8][..]));
        assert_eq!(told.order.last(), Some(&82), "the last option (RFC 3046)");
        let forged = rom().at(24, &[10, 0, 0, 66]);
        assert_eq!(rig.actions(&forged)[0], Action::Ignore(Ignored::UnknownRelay));
    }
}

#[test]
fn quirk_11_transaction_numbers_collide_so_the_hardware_address_is_who_a_client_is() {
    let mut rig = Rig::server();
    let other = MacAddr::new([2, 0, 0, 0, 0, 2]);
    let (one, two) = (rig.told(&rom()), rig.told(&discover(other)));
    assert_eq!(one.reply.bytes[4..8], two.reply.bytes[4..8]);
    assert_ne!(one.address(16), two.address(16));
    for (told, mac) in [(one, ARMED), (two, other)] {
        assert_eq!(told.reply.bytes[1..3], [1, 6], "type and length are echoed");
        assert_eq!(told.reply.bytes[28..44], [&mac.octets()[..], &[0; 10]].concat());
    }
}

#[test]
fn quirk_12_names_end_with_a_nul_and_stand_in_header_and_options_and_overload_is_read() {
    let told = Rig::proxy().told(&rom());
    assert_eq!((told.file(), told.field(44..108)), (DEFAULT_LOADER.to_owned(), "10.0.0.1".to_owned()));
    assert_eq!(told.option(67), Some(&b"undionly.kpxe\0"[..]), "some ROMs read on behind the option");
    assert_eq!(told.option(66), Some(&b"10.0.0.1"[..]));
    assert_eq!(told.option(52), None, "the fields are names");
    // A client's options in the file and sname fields.
    let class = [&[60, 9][..], b"PXEClient", &[255]].concat();
    let overloaded = discover(ARMED).option(52, &[3]).at(108, &class).at(44, &[93, 2, 0, 7, 255]);
    let request = overloaded.request();
    assert_eq!((request.client, request.architectures), (Client::Rom, vec![7]));
}

#[test]
fn quirk_13_without_a_parameter_list_the_basics_are_told_and_old_roms_get_small_packets() {
    let mut rig = Rig::server();
    let bare = rig.told(&rom());
    for code in [1, 51, 54] {
        assert!(bare.option(code).is_some(), "{code}: a Raspberry Pi 3 asks for nothing");
    }
    // RFC 2131 §2: 576 bytes of IP packet unless option 57 says more; ROMs break above.
    for (size, limit) in [(None, 548), (Some([2, 64]), 548), (Some([5, 220]), 1472)] {
        let mut packet = rom().option(61, &[7; 250]);
        if let Some(size) = size {
            packet = packet.option(57, &size);
        }
        let told = rig.told(&packet);
        assert!((300..=limit).contains(&told.reply.bytes.len()), "{}", told.reply.bytes.len());
        assert!(told.option(67).is_some() && told.option(51).is_some());
    }
    // What is asked for by a list only: 150 (TFTP server as an address).
    assert_eq!(bare.option(150), None);
    assert_eq!(rig.told(&rom().option(55, &[1, 3, 150])).option(150), Some(&US.octets()[..]));
    // RFC 5071: the ROM keeps its packet for PXELINUX, and does not ask for these.
    let magic = [0xf1, 0, 0x74, 0x7e];
    for (code, value) in [(208, &magic[..]), (209, b"site.cfg"), (210, b"boot/"), (211, &[0, 0, 0, 60])] {
        assert_eq!(bare.option(code), Some(value), "{code}");
    }
}

#[test]
fn quirk_14_the_loop_is_broken_by_what_the_client_can_do_however_it_says_its_name() {
    let url = format!("http://10.0.0.1:8080/b/{ARMED}");
    for (case, packet, file) in [
        ("the name, raw", rom().option(77, b"iPXE"), url.as_str()),
        ("the name with a length", rom().option(77, b"\x04iPXE"), &url),
        ("gPXE", rom().option(77, b"gPXE"), &url),
        ("features with HTTP", rom().option(175, &[0x13, 1, 1, 0x21, 1, 1]), &url),
        ("the name, but no HTTP", rom().option(77, b"iPXE").option(175, &[0x21, 1, 1]), DEFAULT_LOADER),
        ("a plain ROM", rom(), DEFAULT_LOADER),
    ] {
        for mut rig in Rig::both() {
            assert_eq!(rig.told(&packet).file(), file, "{case}");
        }
    }
}

#[test]
fn quirk_15_a_native_ipxe_rom_is_handed_a_url_and_never_another_ipxe() {
    // As XenServer's firmware of 2012 sends it.
    let features = [0xb1, 5, 1, 0x10, 0xec, 0x81, 0x39, 0x13, 1, 1, 0x18, 1, 1, 0x15, 1, 1, 0x21, 1, 1];
    let packet = rom().option(77, b"iPXE").option(175, &features).option(94, &[1, 2, 1]);
    for mut rig in Rig::both() {
        let told = rig.told(&packet);
        assert!(told.file().starts_with("http://"), "{}", told.file());
        assert!(!told.order.iter().any(|code| (208..=211).contains(code)), "nor is it PXELINUX");
    }
}

#[test]
fn quirk_16_the_url_names_the_card_that_asks() {
    let second = MacAddr::new([2, 0, 0, 0, 0, 2]);
    let packet = ipxe().at(28, &second.octets());
    assert_eq!(Rig::server().told(&packet).file(), format!("http://10.0.0.1:8080/b/{second}"));
}

#[test]
fn quirk_17_beside_another_server_nobody_is_refused_and_a_proxy_leases_nothing() {
    let foreign = Packet::new(3, ARMED).option(54, &[10, 0, 0, 66]).option(50, &[10, 0, 0, 180]);
    for mut rig in Rig::both() {
        let actions = rig.actions(&foreign);
        assert!(
            actions.iter().any(|action| matches!(action, Action::Neighbour(_))),
            "it is noticed: {actions:?}"
        );
        assert_eq!(sent(actions).map(|told| told.reply.kind), None);
        // Later it renews, or comes back with the address of the other server.
        for later in [
            Packet::new(3, ARMED).at(12, &[10, 0, 0, 180]),
            Packet::new(3, ARMED).option(50, &[192, 168, 0, 4]),
            Packet::new(3, ARMED).at(12, &[192, 168, 0, 4]),
        ] {
            assert!(rig.reply(&later).is_none());
        }
    }
    let mut proxy = Rig::proxy();
    for kind in [1, 3, 4, 7, 8] {
        for packet in
            [Packet::new(kind, ARMED).option(60, BIOS), Packet::new(kind, STRANGER).option(60, BIOS)]
        {
            let actions = proxy.actions(&packet);
            let leases = |action: &Action| matches!(action, Action::Commit(_) | Action::Forget(_));
            assert!(!actions.iter().any(leases));
            let told = sent(actions);
            assert!(
                told.is_none_or(|told| told.address(16).is_unspecified() && told.reply.kind == Kind::Offer)
            );
        }
    }
}

#[test]
fn quirk_18_a_first_packet_that_comes_late_hints_at_spanning_tree() {
    let mut rig = Rig::server();
    // The seconds field, in network order and as some ROMs write it.
    for (mac, seconds, hinted) in [([0, 28], true), ([28, 0], true), ([0, 4], false), ([0, 0], false)]
        .into_iter()
        .map(|(seconds, hinted)| (ARMED, seconds, hinted))
    {
        rig.now = rig.now + Duration::from_secs(120);
        let hints = rig.hints(&rom().at(28, &mac.octets()).at(8, &seconds));
        assert_eq!(hints.iter().any(|hint| hint.contains("spanning tree")), hinted, "{seconds:?}: {hints:?}");
    }
}

#[test]
fn quirk_19_the_second_stage_has_another_client_identifier_and_keeps_the_address() {
    let mut rig = Rig::server();
    let first = rig.told(&rom().option(61, &[0, 1, 2, 3])).address(16);
    for identifier in [&[1, 2, 0, 0, 0, 0, 1][..], &[255, 9, 9, 9, 9, 0, 1, 0, 1]] {
        let linux = discover(ARMED).option(61, identifier).option(60, b"d-i");
        let told = rig.told(&linux);
        assert_eq!(told.address(16), first);
        assert_eq!(told.option(61), Some(identifier), "echoed (RFC 6842)");
        assert_eq!(told.option(67), None, "it boots nothing");
        assert_eq!(Rig::proxy().actions(&linux)[0], Action::Ignore(Ignored::NotPxe));
    }
}

#[test]
fn quirk_20_what_the_roms_screen_says_stands_beside_the_log_line_that_explains_it() {
    let mut rig = Rig::server();
    let mut hints = Vec::new();
    for _ in 0..5 {
        hints.extend(rig.hints(&rom()));
        rig.now = rig.now + Duration::from_secs(8);
    }
    assert_eq!(hints.len(), 1, "{hints:?}");
    assert!(hints[0].contains("PXE-E51") && hints[0].contains("PXE-E52"));
    let arm = discover(ARMED).option(60, b"PXEClient").option(93, &[0, 10]);
    assert!(rig.hints(&arm.at(28, &[2, 0, 0, 0, 0, 2])).iter().any(|hint| hint.contains("PXE-E53")));
}

#[test]
fn quirk_37_old_releases_say_gpxe_and_are_known_by_that_and_not_by_their_host() {
    let packet = rom().option(77, b"gPXE");
    assert_eq!(packet.request().client, Client::Ipxe);
    assert_eq!(packet.request().message, Message::Discover);
    for mut rig in Rig::both() {
        assert_eq!(rig.told(&packet).file(), format!("http://10.0.0.1:8080/b/{ARMED}"));
    }
}

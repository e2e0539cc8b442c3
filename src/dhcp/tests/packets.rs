//! What stands in packets: boot options, echoes, sizes, and what damaged ones do.

use super::*;
use crate::dhcp::options::Options;

#[test]
fn ipxe_is_handed_the_script_url_and_a_rom_the_loader() {
    let url = "http://10.0.0.1:8080/b/02:00:00:00:00:01";
    for (class, file, option) in
        [(IPXE, url, url.as_bytes().to_vec()), (BIOS, "undionly.kpxe", b"undionly.kpxe\0".to_vec())]
    {
        for mut rig in [Rig::server(), Rig::proxy()] {
            let offer = rig.reply(&Packet::new(1, 1, class));
            assert_eq!(field(offer.fname()), file);
            assert_eq!(raw(&offer, 67), Some(option.clone()));
            assert_eq!(raw(&offer, 66), Some(b"10.0.0.1".to_vec()));
            assert_eq!((offer.siaddr(), field(offer.sname())), (SELF, "10.0.0.1".to_owned()));
            assert_eq!(raw(&offer, 60), Some(b"PXEClient".to_vec()));
            assert_eq!(raw(&offer, 43), Some(vec![6, 1, 8, 255]));
        }
    }
}

#[test]
fn what_a_client_is_shows_in_its_capabilities() {
    let no_http: &[u8] = &[0x15, 1, 1, 0x21, 1, 1];
    let http_off: &[u8] = &[0x13, 1, 0, 0x21, 1, 1];
    for (case, options, expected, architectures) in [
        ("nothing", &[][..], Client::Plain, &[][..]),
        ("Linux", &[(60, &b"Linux"[..])], Client::Plain, &[]),
        ("bare PXEClient", &[(60, b"PXEClient")], Client::Rom, &[0]),
        ("architecture in the class", &[(60, b"PXEClient:Arch:00007:UNDI:003000")], Client::Rom, &[7]),
        ("UEFI x64", &[(60, b"PXEClient"), (93, &[0, 7])], Client::Rom, &[7]),
        ("a list", &[(60, b"PXEClient"), (93, &[0, 11, 0, 7])], Client::Rom, &[11, 7]),
        ("half a code", &[(60, b"PXEClient"), (93, &[0, 7, 0])], Client::Rom, &[7]),
        ("UEFI HTTP", &[(60, b"HTTPClient:Arch:00016:UNDI:003001")], Client::HttpRom, &[16]),
        ("user class, raw", &[(77, b"iPXE")], Client::Ipxe, &[]),
        ("user class, RFC 3004", &[(77, b"\x04iPXE")], Client::Ipxe, &[]),
        ("the second of two user classes", &[(77, b"\x03lab\x04iPXE")], Client::Ipxe, &[]),
        ("a user class of another", &[(77, b"lab iPXE")], Client::Plain, &[]),
        ("gPXE", &[(77, b"gPXE")], Client::Ipxe, &[]),
        ("option 175 alone", &[(175, &[0xb1, 5, 1, 0x80, 0x86, 0x10, 0x0e])], Client::Ipxe, &[]),
        ("iPXE without HTTP", &[(60, b"PXEClient"), (77, b"iPXE"), (175, no_http)], Client::Rom, &[0]),
        ("iPXE with HTTP off", &[(60, b"PXEClient"), (77, b"iPXE"), (175, http_off)], Client::Rom, &[0]),
        (
            "UEFI iPXE",
            &[(60, b"PXEClient"), (93, &[0, 7]), (77, b"iPXE"), (175, &[0x13, 1, 1])],
            Client::Ipxe,
            &[7],
        ),
    ] {
        let request = Request::parse(&Packet::new(1, 1, options).bytes).unwrap();
        assert_eq!((request.client, request.architectures.as_slice()), (expected, architectures), "{case}");
    }
}

#[test]
fn a_refused_machine_still_gets_its_lease_and_a_script_that_exits() {
    let mut rig = Rig::server();
    let packet = Packet::new(1, 50, IPXE);
    assert_eq!(rig.text(&packet), "offer 10.0.0.100 to its card; tell NetbootRefused");
    assert_eq!(field(rig.reply(&packet).fname()), "http://10.0.0.1:8080/b/02:00:00:00:00:32");
    assert_eq!(rig.text(&discover(50)), "offer 10.0.0.100 to its card", "an operating system is no netboot");
    assert_eq!(Rig::proxy().text(&packet), "offer 0.0.0.0 to broadcast; tell NetbootRefused");
}

#[test]
fn signs_tell_boot_roms_from_systems() {
    let mut rig = Rig::server();
    assert_eq!(rig.text(&Packet::new(1, 1, IPXE)), "offer 10.0.0.100 to its card; tell Dhcp");
    let ack = rig.text(&Packet::new(3, 1, IPXE).option(54, &SELF.octets()).option(50, &[10, 0, 0, 100]));
    assert_eq!(
        ack,
        "commit 02:00:00:00:00:01 10.0.0.100; ack 10.0.0.100 to its card; met 10.0.0.100; tell Dhcp"
    );
}

#[test]
fn a_proxy_only_adds_boot_options_and_only_for_known_boot_roms() {
    let mut rig = Rig::proxy();
    let offer = rig.reply(&Packet::new(1, 1, IPXE));
    assert_eq!(offer.yiaddr(), Ipv4Addr::UNSPECIFIED);
    assert!(offer.flags().broadcast(), "forced: the client has no address yet");
    for code in [1, 3, 6, 51, 58, 59] {
        assert_eq!(raw(&offer, code), None, "{code}");
    }
    for (packet, expected) in [
        (discover(1), "ignore not_pxe"),
        (select(1, [10, 0, 0, 100]), "ignore not_pxe"),
        (Packet::new(1, 200, IPXE), "ignore stranger"),
        (Packet::new(3, 1, IPXE), "ignore not_for_proxy; tell Dhcp"),
        (
            Packet::new(1, 1, &[(60, b"PXEClient"), (93, &[0, 11])]),
            "ignore no_boot_file; tell Dhcp; hint NoLoader { architecture: Some(11) }",
        ),
        (Packet::new(1, 2, &[(60, b"PXEClient"), (93, &[0, 11])]), "ignore no_boot_file; tell Dhcp"),
    ] {
        assert_eq!(rig.text(&packet), expected);
    }
}

#[test]
fn the_boot_server_port_answers_the_sender() {
    let mut rig = Rig::proxy();
    let from = SocketAddrV4::new([10, 0, 0, 60].into(), 4011);
    let mut ask = |packet: &Packet| {
        let request = Request::parse(&packet.bytes).unwrap();
        let actions = rig.service.handle_boot_server(&request, &Rig::gate(request.mac), from);
        (actions.iter().map(describe).collect::<Vec<_>>().join("; "), actions)
    };
    let chosen = Packet::new(3, 1, BIOS).option(43, &[71, 4, 0, 0, 0, 0, 255]).ciaddr([10, 0, 0, 60]);
    let (text, actions) = ask(&chosen);
    assert_eq!(text, "ack 0.0.0.0 to 10.0.0.60:4011; met 10.0.0.60; tell Dhcp");
    let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(raw(&decode(reply), 43), Some(vec![6, 1, 8, 71, 4, 0, 0, 0, 0, 255]));
    assert_eq!(ask(&Packet::new(1, 1, BIOS)).0, "ignore not_for_proxy");
    assert_eq!(ask(&Packet::new(3, 1, &[])).0, "ignore not_pxe");
    assert_eq!(ask(&Packet::new(3, 200, BIOS)).0, "ignore stranger");
    let bis = Packet::new(3, 1, BIOS).option(43, &[71, 4, 0, 0, 0x80, 0]);
    assert_eq!(Request::parse(&bis.bytes), Err(Refusal::BootIntegrity));
}

#[test]
fn a_relayed_packet_is_answered_to_its_relay_with_option_82_last() {
    for mut rig in [Rig::server(), Rig::proxy()] {
        let packet = Packet::new(1, 1, IPXE).option(82, &[1, 2, 7, 8]).giaddr([10, 0, 0, 250]).at(3, &[2]);
        let actions = rig.actions(&packet);
        let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
        assert_eq!(reply.to, Destination::Relay([10, 0, 0, 250].into()));
        assert_eq!(decode(reply).giaddr(), Ipv4Addr::new(10, 0, 0, 250));
        let options = &reply.bytes[240..];
        let end = options.iter().rposition(|byte| *byte == 255).unwrap();
        assert_eq!(&options[end - 6..end], [82, 4, 1, 2, 7, 8]);
        assert_eq!(rig.text(&packet.at(3, &[17])), "ignore too_many_hops");
    }
    let mut rig = Rig::server();
    assert_eq!(rig.text(&discover(1).giaddr([10, 9, 0, 250])), "ignore other_subnet");
    let forged = discover(1).giaddr([10, 0, 0, 66]);
    assert_eq!(rig.text(&forged), "ignore unknown_relay; hint UnknownRelay { relay: 10.0.0.66 }");
    assert_eq!(rig.text(&forged), "ignore unknown_relay", "a person is told once");
}

#[test]
fn replies_echo_what_they_must_and_have_the_right_size() {
    let mut rig = Rig::server();
    let identifier = [&[0][..], &[5; 16]].concat();
    let packet = Packet::new(1, 1, IPXE).option(97, &identifier).at(10, &[0x80, 0]);
    let actions = rig.actions(&packet);
    let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
    let offer = decode(reply);
    assert_eq!((offer.xid(), offer.chaddr(), offer.hlen()), (1, &mac(1).octets()[..], 6));
    assert!(offer.flags().broadcast());
    assert_eq!(raw(&offer, 97), Some(identifier));
    assert!(reply.bytes.len() >= 300);
    let short = rig.reply(&Packet::new(1, 1, IPXE).option(97, &[0, 1]));
    assert_eq!(raw(&short, 97), None, "not the 17 bytes of RFC 4578");
}

#[test]
fn a_small_client_gets_the_important_options_only() {
    let mut rig = Rig::new(server(DhcpPool { dns: vec![SELF; 60], ..pool((100, 102)) }));
    let identifier = [1; 200];
    for (maximum, limit) in [(&[0, 0][..], 548), (&[2, 64], 548), (&[5, 220], 1472), (&[255, 255], 1472)] {
        let packet = Packet::new(1, 1, IPXE).option(61, &identifier).option(57, maximum);
        let actions = rig.actions(&packet);
        let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
        assert!(reply.bytes.len() <= limit, "{}", reply.bytes.len());
        let offer = decode(reply);
        for code in [51, 53, 54, 1, 43, 60, 67] {
            assert!(raw(&offer, code).is_some(), "{code} at {limit}");
        }
        assert_eq!(raw(&offer, 61).is_some(), limit == 1472);
        // T1 and T2 stand in the sname field, and the boot file's name where ROMs look for it.
        let read = Options::of(&reply.bytes);
        assert!(read.get(58).is_some() && read.get(59).is_some(), "at {limit}");
        assert_eq!(read.get(52), (limit == 548).then_some(&[2][..]));
        assert_eq!(field(offer.fname()), "http://10.0.0.1:8080/b/02:00:00:00:00:01");
    }
}

/// Found by fuzzing: the codec wrote it twice.
#[test]
fn a_relays_option_is_echoed_once_whatever_its_length() {
    for length in [2, 100, 253] {
        let agent = [&[1, length - 2][..], &vec![7; usize::from(length - 2)]].concat();
        for mut rig in [Rig::server(), Rig::proxy()] {
            let packet = Packet::new(1, 1, IPXE).option(82, &agent).giaddr([10, 0, 0, 250]);
            let actions = rig.actions(&packet);
            let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
            assert!(reply.bytes.len() <= 548, "{}", reply.bytes.len());
            // Repeated options are joined when they are read (RFC 3396).
            assert_eq!(Options::of(&reply.bytes).get(82), Some(&agent[..]), "{length}");
        }
    }
}

#[test]
fn options_that_do_not_fit_stand_in_the_header_fields_of_a_reply_without_a_boot() {
    let text = |code: u8, length: usize| (code, vec![code; length]);
    let options = [text(224, 40), text(225, 60), text(226, 61), text(227, 62), text(228, 30), text(229, 100)];
    let mut rig =
        Rig::new(server(DhcpPool { dns: vec![SELF; 40], options: options.into(), ..pool((100, 102)) }));
    let actions = rig.actions(&discover(1));
    let Action::Send(reply) = &actions[0] else { panic!("{actions:?}") };
    assert!(reply.bytes.len() <= 548, "{}", reply.bytes.len());
    let read = Options::of(&reply.bytes);
    assert_eq!(read.get(52), Some(&[3][..]));
    let there: Vec<u8> = (224..230).filter(|code| read.get(*code).is_some()).collect();
    assert_eq!(there, [224, 225, 226, 227, 228], "the largest has no place; T1 and T2 have the rest");
    assert!(read.get(58).is_some() && read.get(59).is_some());
    for code in there {
        let value = read.get(code).unwrap();
        assert!(value.iter().all(|byte| *byte == code), "{code}: {value:?}");
    }
}

#[test]
fn a_bad_option_costs_that_option_alone() {
    let packet = Packet::new(1, 1, &[(12, b"\xff\xfe"), (94, &[1]), (51, &[1, 2]), (80, &[1]), (81, &[])]);
    let mut packet = packet;
    for (code, data) in IPXE {
        packet = packet.option(*code, data);
    }
    assert_eq!(Request::parse(&packet.bytes).unwrap().client, Client::Ipxe);
    // Fragments of one option, apart from each other (RFC 3396).
    let split = Packet::new(1, 1, &[(60, b"PXECl"), (93, &[0, 0]), (60, b"ient")]);
    assert_eq!(Request::parse(&split.bytes).unwrap().client, Client::Rom);
    // Options in the file field (RFC 2132 §9.3), where an overload option does not count again.
    let overload =
        discover(1).option(52, &[1]).at(108, &[60, 9]).at(110, b"PXEClient").at(119, &[52, 1, 3, 255]);
    assert_eq!(Request::parse(&overload.bytes).unwrap().client, Client::Rom);
}

#[test]
fn what_is_no_request_is_refused_by_name() {
    let good = discover(1);
    for (packet, expected) in [
        (Packet { bytes: vec![] }, Refusal::TooShort),
        (Packet { bytes: good.bytes[..239].to_vec() }, Refusal::TooShort),
        (good.clone().at(0, &[2]), Refusal::NotARequest),
        (good.clone().at(236, &[0]), Refusal::NoCookie),
        (good.clone().at(2, &[255]), Refusal::NotEthernet),
        (good.clone().at(2, &[16]), Refusal::NotEthernet),
        (good.clone().at(1, &[32]), Refusal::NotEthernet),
        (Packet { bytes: good.bytes[..240].to_vec() }, Refusal::NoMessageType),
        (Packet::new(2, 1, &[]), Refusal::NoMessageType),
        (Packet::new(13, 1, &[]), Refusal::NoMessageType),
        (Packet { bytes: [&good.bytes[..240], &[53, 200, 1]].concat() }, Refusal::NoMessageType),
    ] {
        assert_eq!(Request::parse(&packet.bytes), Err(expected));
    }
}

/// Not a fuzzer, but ten thousand damaged packets: none panics, and what parses is answered without a panic.
#[test]
fn damaged_packets_do_no_harm() {
    let mut whole =
        Packet::new(1, 1, IPXE).option(61, &[7; 40]).option(82, &[1, 3, 1, 2, 3]).option(52, &[3]);
    whole = whole.option(43, &[71, 4, 0, 0, 0, 0, 255]).option(57, &[5, 0]).option(97, &[0; 17]);
    let (mut server, mut proxy) = (Rig::server(), Rig::proxy());
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).unwrap()
    };
    let mut parsed = 0;
    for _ in 0..10_000 {
        let mut bytes = whole.bytes.clone();
        for _ in 0..=random() % 4 {
            let at = random() % bytes.len();
            bytes[at] = u8::try_from(random() & 255).unwrap();
        }
        if random() % 3 == 0 {
            bytes.truncate(random() % (bytes.len() + 1));
        }
        if let Ok(request) = Request::parse(&bytes) {
            parsed += 1;
            for rig in [&mut server, &mut proxy] {
                rig.service.handle(&request, &Rig::gate(request.mac), rig.now);
            }
        }
    }
    assert!(parsed > 5_000, "{parsed}");
}

//! Packets of a network, one after the other, to a server and a proxy: no panic, replies within the client's size,
//! an ACK with an address only after its commit, nothing that a proxy leases or refuses.
//!
//! Input: packets with a length of two bytes before each; the first byte of the whole says what the store does.
#![no_main]

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use bootflip::{
    boot::{Ask, Gate, Machine},
    clock::Timestamp,
    config::{DhcpMode, DhcpPool, DhcpServer, Pxelinux},
    dhcp::{Action, Kind, Request, Service, Settings},
    machine::MacAddr,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((mode, mut rest)) = bytes.split_first() else { return };
    let gate = Gate::default();
    gate.update(|table| {
        for last in 0..4 {
            let mac = MacAddr::new([2, 0, 0, 0, 0, last]);
            table.publish(Machine { mac, name: "m".into(), vm_uuid: "u".into(), armed: None });
        }
    });
    let (mut server, mut proxy) = (service(true), service(false));
    let mut now = Timestamp::from_millis(1_000_000);
    for step in 0..16_u8 {
        let Some((length, after)) = rest.split_first_chunk::<2>() else { return };
        let length = usize::from(u16::from_be_bytes(*length)).min(after.len());
        let (packet, after) = after.split_at(length);
        rest = after;
        now = now + Duration::from_secs(u64::from(*mode) * 97);
        let stored = mode & 1 == 0 || step % 3 == 0;
        respond(&mut server, &mut proxy, &gate, packet, (now, stored));
    }
});

fn respond(
    server: &mut Service,
    proxy: &mut Service,
    gate: &Gate,
    packet: &[u8],
    (now, stored): (Timestamp, bool),
) {
    for service in [&mut *server, &mut *proxy] {
        service.overhear(packet, Ipv4Addr::new(10, 0, 0, 9), now);
    }
    let Ok(request) = Request::parse(packet) else { return };
    let answer = gate.answer(Ask::Netboot { mac: request.mac });
    for action in server.handle(&request, &answer, now) {
        match action {
            Action::Send(reply) => within(&reply.bytes, &request),
            Action::Commit(lease) => {
                assert!(lease.until > now);
                if stored {
                    for action in server.committed(&lease) {
                        if let Action::Send(reply) = action {
                            within(&reply.bytes, &request);
                        }
                    }
                } else {
                    server.not_committed(&lease);
                }
            }
            _ => {}
        }
    }
    let from = std::net::SocketAddrV4::new(request.ciaddr, 4011);
    let told = proxy.handle(&request, &answer, now).into_iter();
    for action in told.chain(proxy.handle_boot_server(&request, &answer, from)) {
        match action {
            Action::Send(reply) => {
                within(&reply.bytes, &request);
                assert_ne!(reply.kind, Kind::Nak);
                assert_eq!(reply.bytes.get(16..20), Some(&[0; 4][..]), "a proxy leases nothing");
            }
            Action::Commit(_) | Action::Forget(_) => panic!("a proxy has no leases"),
            _ => {}
        }
    }
}

fn within(bytes: &[u8], request: &Request) {
    assert!((300..=request.maximum).contains(&bytes.len()), "{}", bytes.len());
    assert_eq!(bytes.get(28..34), Some(&request.mac.octets()[..]));
}

fn service(leases: bool) -> Service {
    let pool = |net: u8| DhcpPool {
        range: (Ipv4Addr::new(10, net, 0, 100), Ipv4Addr::new(10, net, 0, 103)),
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(Ipv4Addr::new(10, net, 0, 254)),
        dns: vec![Ipv4Addr::new(10, 0, 0, 53)],
        domain: Some("example.org".into()),
        ntp: vec![],
        mtu: Some(1500),
        options: [(252, vec![7; 255])].into(),
        lease: Duration::from_secs(3600),
        reservations: BTreeMap::new(),
        lease_to_strangers: true,
        keep_for_jobs: 1,
    };
    let server = DhcpMode::Server(DhcpServer { own: pool(0), relayed: vec![pool(9)] });
    let settings = Settings {
        address: Ipv4Addr::new(10, 0, 0, 1),
        mode: if leases { server } else { DhcpMode::Proxy },
        relays: vec![Ipv4Addr::new(10, 9, 0, 250)],
        boot_url: Some("http://10.0.0.1:8080".into()),
        loader: Some("undionly.kpxe".into()),
        loaders: [(7, "ipxe.efi".into())].into(),
        pxelinux: Pxelinux { config_file: Some("x".into()), ..Pxelinux::default() },
    };
    Service::new(settings, [])
}

//! Real DHCP clients, relays and servers, in network namespaces that the tests make. Root, and the programs that
//! `tests/net/prepare.sh` installs. One client of each family here; `clients::full` has the rest, for test-full.

mod wire;

use std::{net::Ipv4Addr, time::Duration};

use bootflip::{
    config::{DhcpMode, DhcpServer},
    dhcp::snippet::{Dialect, Target, snippet},
};

use self::wire::{BRIDGE, Client, SERVER, Serve, on_a_wire, until};
use crate::{
    boot::{ARMED, STRANGER},
    dhcp::pool,
};

/// The script that a client calls with its lease: what it was told goes into a file, at once and whole.
fn note_environment(client: &Client) -> std::path::PathBuf {
    // dhclient gives its script an environment of its own making, so the place is in the script.
    let note = client.path("note.env").display().to_string();
    let text = "#!/bin/sh\ncase \"$1$reason\" in bound|BOUND|REBOOT|RENEW) env >\"$NOTE.new\"; mv \"$NOTE.new\" \"$NOTE\";; esac\n";
    client.script("note", &text.replace("$NOTE", &note))
}

/// Waits for the note; the value of a variable in it.
fn noted(client: &Client, names: &[&str]) -> String {
    let note = client.path("note.env");
    let text = until("the client has a lease", || std::fs::read_to_string(&note).ok());
    let line = |name: &&str| {
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        value.map(str::to_owned)
    };
    names.iter().find_map(line).unwrap_or_else(|| panic!("none of {names:?} in {text}"))
}

const UDHCPC: &str = "busybox udhcpc -i eth0 -f -n -q -t 8 -T 2 -O tftp -O bootfile -s";
const ROM: &str = "-V PXEClient:Arch:00000:UNDI:002001 -x 0x5d:0000";

fn in_range(text: &str) -> Ipv4Addr {
    let address: Ipv4Addr = text.trim().parse().unwrap_or_else(|_| panic!("{text:?} is not an address"));
    let (first, last) = wire::RANGE;
    assert!((Ipv4Addr::from(first)..=Ipv4Addr::from(last)).contains(&address), "{address}");
    address
}

#[test]
fn udhcpc_as_a_boot_rom_is_leased_an_address_and_told_the_loader() {
    on_a_wire("clients::udhcpc", &["busybox"], |wire| {
        let server = wire.serve(Serve::server());
        let client = wire.client("c1", ARMED);
        let script = note_environment(&client);
        client.run(&format!("{UDHCPC} {} {ROM}", script.display()));
        in_range(&noted(&client, &["ip"]));
        assert_eq!(noted(&client, &["siaddr"]), SERVER.to_string());
        assert_eq!(noted(&client, &["boot_file", "bootfile"]), "undionly.kpxe");
        assert_eq!(noted(&client, &["lease"]), "3600");
        assert!(server.board.read().sends_frames, "to its card, not to everybody");
    });
}

#[test]
fn dhclient_keeps_the_address_that_the_rom_had() {
    on_a_wire("clients::dhclient", &["busybox", "dhclient"], |wire| {
        let _server = wire.serve(Serve::server());
        let client = wire.client("c1", ARMED);
        let script = note_environment(&client);
        client.run(&format!("{UDHCPC} {} {ROM}", script.display()));
        let first = noted(&client, &["ip"]);
        std::fs::remove_file(client.path("note.env")).unwrap();
        // dhclient sends a client identifier of its own.
        let conf =
            client.script("dhclient.conf", "send dhcp-client-identifier ff:01:02:03:04:00:01:00:01;\n");
        let (leases, pid) = (client.path("leases"), client.path("pid"));
        let _dhclient = client.start(&format!(
            "dhclient -4 -1 -d -v -cf {} -lf {} -pf {} -sf {} eth0",
            conf.display(),
            leases.display(),
            pid.display(),
            script.display()
        ));
        assert_eq!(noted(&client, &["new_ip_address"]), first);
        assert_eq!(noted(&client, &["new_dhcp_server_identifier"]), SERVER.to_string());
    });
}

#[test]
fn a_client_behind_a_relay_gets_an_address_of_its_own_network() {
    on_a_wire("clients::dhcrelay", &["busybox", "dhcrelay"], |wire| {
        behind_a_relay(wire, |relay| relay.start("dhcrelay -4 -d -iu eth0 -id eth1 10.77.0.1"));
    });
}

/// `start`: a relay between eth0, on the server's wire, and eth1, on the client's.
fn behind_a_relay(wire: &wire::Wire<'_>, start: impl FnOnce(&Client) -> wire::Running) {
    let far = bootflip::config::DhcpPool {
        netmask: Ipv4Addr::new(255, 255, 255, 0),
        router: Some(Ipv4Addr::new(10, 78, 0, 1)),
        ..pool([10, 78, 0, 50], [10, 78, 0, 60])
    };
    let mut serve = Serve::server();
    serve.relays = vec![Ipv4Addr::new(10, 78, 0, 1)];
    if let DhcpMode::Server(server) = &mut serve.mode {
        server.relayed = vec![far];
    }
    let _server = wire.serve(serve);
    let relay = wire.client("relay", STRANGER);
    relay.ip("addr add 10.77.0.2/24 dev eth0");
    let client = relay.behind("far", ARMED);
    relay.ip("addr add 10.78.0.1/24 dev eth1");
    wire.ip("route add 10.78.0.0/24 via 10.77.0.2");
    let _relay = start(&relay);
    let script = note_environment(&client);
    client.run(&format!("{UDHCPC} {} {ROM}", script.display()));
    let address: Ipv4Addr = noted(&client, &["ip"]).parse().unwrap();
    assert_eq!(address.octets()[..3], [10, 78, 0]);
    assert_eq!(noted(&client, &["router"]), "10.78.0.1");
    assert_eq!(noted(&client, &["boot_file", "bootfile"]), "undionly.kpxe");
}

#[test]
fn a_foreign_server_keeps_its_clients_and_is_noticed() {
    on_a_wire("clients::dnsmasq beside our proxy", &["busybox", "dnsmasq"], |wire| {
        let server = wire.serve(Serve::proxy());
        let foreign = wire.client("foreign", STRANGER);
        foreign.ip("addr add 10.77.0.9/24 dev eth0");
        let _dnsmasq = foreign.start(
            "dnsmasq --no-daemon --conf-file=/dev/null --port=0 --no-ping --leasefile-ro --interface=eth0 \
             --dhcp-range=10.77.0.200,10.77.0.210,255.255.255.0,1h",
        );
        // A system that does not boot: the proxy has nothing to say to it.
        let client = wire.client("c1", bootflip::machine::MacAddr::new([2, 0, 0, 0, 0, 77]));
        let script = note_environment(&client);
        client.run(&format!("{UDHCPC} {}", script.display()));
        let address: Ipv4Addr = noted(&client, &["ip"]).parse().unwrap();
        assert!((200..=210).contains(&address.octets()[3]), "{address}");
        assert_eq!(noted(&client, &["serverid"]), "10.77.0.9");
        let note = std::fs::read_to_string(client.path("note.env")).unwrap();
        assert!(!note.contains("undionly") && !note.contains("boot_file"), "{note}");
        // A boot ROM of a known machine hears both: an address there, the boot here.
        let heard = wire.client("c2", ARMED).discover(2);
        let offers = || heard.iter().map(|(_, offer)| offer);
        let ours = offers().find(|offer| offer.yiaddr().is_unspecified()).expect("our proxy's offer");
        assert_eq!(ours.siaddr(), SERVER);
        assert!(offers().any(|offer| offer.yiaddr().octets()[..3] == [10, 77, 0]), "dnsmasq's offer");
        let neighbours =
            until("it is noticed", || Some(server.board.read().neighbours).filter(|all| !all.is_empty()));
        assert_eq!(neighbours[0].server, Ipv4Addr::new(10, 77, 0, 9));
        assert!(neighbours[0].leases && !neighbours[0].in_the_way, "{neighbours:?}");
    });
}

#[test]
fn a_second_server_beside_ours_is_in_the_way() {
    on_a_wire("clients::dnsmasq beside our server", &["busybox", "dnsmasq"], |wire| {
        // Known machines only, so that the stranger's lease is the other server's.
        let mut serve = Serve::server();
        if let DhcpMode::Server(DhcpServer { own, .. }) = &mut serve.mode {
            own.lease_to_strangers = false;
        }
        let server = wire.serve(serve);
        let foreign = wire.client("foreign", STRANGER);
        foreign.ip("addr add 10.77.0.9/24 dev eth0");
        let _dnsmasq = foreign.start(
            "dnsmasq --no-daemon --conf-file=/dev/null --port=0 --no-ping --leasefile-ro --interface=eth0 \
             --dhcp-range=10.77.0.200,10.77.0.210,255.255.255.0,1h",
        );
        let client = wire.client("c1", bootflip::machine::MacAddr::new([2, 0, 0, 0, 0, 77]));
        client.run(&format!("{UDHCPC} {}", note_environment(&client).display()));
        assert_eq!(noted(&client, &["serverid"]), "10.77.0.9");
        let neighbours =
            until("it is noticed", || Some(server.board.read().neighbours).filter(|all| !all.is_empty()));
        assert!(neighbours[0].in_the_way, "{neighbours:?}");
    });
}

#[test]
fn dnsmasq_boots_a_rom_by_the_lines_that_we_print() {
    on_a_wire("clients::dnsmasq by our snippet", &["busybox", "dnsmasq"], |wire| {
        // The ROM puts its address in.
        boots_by_our_lines(wire, Dialect::Dnsmasq, "${net0/mac}", |other, lines| {
            let conf = other.script("dnsmasq.conf", lines);
            other.start(&format!(
                "dnsmasq --no-daemon --conf-file={} --port=0 --no-ping --leasefile-ro --interface=eth0 \
                 --dhcp-range=10.77.0.200,10.77.0.210,255.255.255.0,1h",
                conf.display()
            ))
        });
    });
}

#[test]
fn isc_dhcpd_boots_a_rom_by_the_lines_that_we_print() {
    on_a_wire("clients::dhcpd by our snippet", &["busybox", "dhcpd"], |wire| {
        boots_by_our_lines(wire, Dialect::Isc, &ARMED.to_string(), |other, lines| {
            let subnet =
                "authoritative;\nsubnet 10.77.0.0 netmask 255.255.255.0 { range 10.77.0.200 10.77.0.210; }\n";
            let conf = other.script("dhcpd.conf", &format!("{lines}{subnet}"));
            let leases = other.script("leases", "");
            let (conf, leases) = (conf.display(), leases.display());
            other.start(&format!("dhcpd -4 -f -d -cf {conf} -lf {leases} --no-pid eth0"))
        });
    });
}

#[test]
fn kea_boots_a_rom_by_the_lines_that_we_print() {
    on_a_wire("clients::kea-dhcp4 by our snippet", &["busybox", "kea-dhcp4"], |wire| {
        boots_by_our_lines(wire, Dialect::Kea, &ARMED.to_string(), |other, lines| {
            let (_comment, ours) = lines.split_once('\n').unwrap();
            let mut dhcp4: serde_json::Value = serde_json::from_str(ours).unwrap();
            dhcp4["interfaces-config"] = serde_json::json!({ "interfaces": ["eth0"] });
            dhcp4["lease-database"] = serde_json::json!({ "type": "memfile", "persist": false });
            dhcp4["subnet4"] = serde_json::json!([{
                "id": 1, "subnet": "10.77.0.0/24", "pools": [{ "pool": "10.77.0.200 - 10.77.0.210" }],
            }]);
            let conf = other.script("kea.conf", &serde_json::json!({ "Dhcp4": dhcp4 }).to_string());
            let (conf, folder) = (conf.display(), other.path(""));
            let folder = folder.display();
            other.start(&format!(
                "env KEA_LOCKFILE_DIR={folder} KEA_PIDFILE_DIR={folder} KEA_DHCP_DATA_DIR={folder} kea-dhcp4 -c {conf}"
            ))
        });
    });
}

/// Ours is off; another server is told by our lines what boots. `mac`: how the script's URL names the machine there.
fn boots_by_our_lines(
    wire: &wire::Wire<'_>,
    dialect: Dialect,
    mac: &str,
    start: impl FnOnce(&Client, &str) -> wire::Running,
) {
    let other = wire.client("foreign", STRANGER);
    other.ip("addr add 10.77.0.9/24 dev eth0");
    let target = Target {
        next_server: SERVER,
        boot_url: format!("http://{SERVER}:8080"),
        loaders: [(0, "undionly.kpxe".to_owned()), (7, "ipxe.efi".to_owned())].into(),
    };
    let _other = start(&other, &snippet(dialect, &target));
    let server = SERVER.to_string();
    for (name, class, file, next) in [
        ("rom", ROM.to_owned(), "undionly.kpxe".to_owned(), Some(&server)),
        ("efi", ROM.replace("0000", "0007"), "ipxe.efi".to_owned(), Some(&server)),
        ("ipxe", format!("{ROM} -x 0x4d:69505845"), format!("http://{SERVER}:8080/b/{mac}"), None),
    ] {
        let client = wire.client(name, ARMED);
        let script = note_environment(&client);
        client.run(&format!("{UDHCPC} {} {class}", script.display()));
        assert_eq!(noted(&client, &["boot_file", "bootfile"]), file, "{name}");
        if let Some(next) = next {
            assert_eq!(&noted(&client, &["siaddr"]), next, "{name}");
        }
        wire.ip(&format!("link delete {name}")); // two cards of one MAC would share the answers
    }
}

#[test]
fn on_a_host_of_several_networks_replies_leave_where_they_were_asked_from_the_address_of_the_configuration() {
    on_a_wire("clients::several networks", &[], |wire| {
        // The bridge's first address is another one, and all that is not local leaves by another wire.
        wire.ip(&format!("addr del {SERVER}/24 dev {BRIDGE}"));
        wire.ip(&format!("addr add 10.77.0.250/24 dev {BRIDGE}"));
        wire.ip(&format!("addr add {SERVER}/24 dev {BRIDGE}"));
        let elsewhere = wire.client("elsewhere", STRANGER);
        wire.ip("addr add 10.99.0.1/24 dev elsewhere");
        wire.ip("link set elsewhere nomaster");
        wire.ip("route add default via 10.99.0.2");
        elsewhere.ip("addr add 10.99.0.2/24 dev eth0");
        let _server = wire.serve(Serve::server());
        let heard = wire.client("c1", ARMED).discover(1);
        let (from, offer) = &heard[0];
        assert_eq!(*from, SERVER);
        assert_eq!(offer.siaddr(), SERVER);
    });
}

#[test]
fn without_the_right_to_send_frames_a_client_without_an_address_hears_a_broadcast() {
    on_a_wire("clients::no CAP_NET_RAW", &["busybox"], |wire| {
        let server = wire.without_frames(|| wire.serve(Serve::server()));
        assert!(!server.board.read().sends_frames);
        let client = wire.client("c1", ARMED);
        let script = note_environment(&client);
        client.run(&format!("{UDHCPC} {} {ROM}", script.display()));
        in_range(&noted(&client, &["ip"]));
        assert_eq!(noted(&client, &["boot_file", "bootfile"]), "undionly.kpxe");
    });
}

/// What only test-full runs: more clients of families that have one above, and what takes long.
mod full {
    use super::*;

    #[test]
    #[ignore = "a second client of the family; part of test-full"]
    fn dhcpcd_takes_our_offer() {
        on_a_wire("clients::dhcpcd", &["unshare", "dhcpcd"], |wire| {
            let _server = wire.serve(Serve::server());
            let client = wire.client("c1", ARMED);
            // Debian 12 prints what it was offered, and then dies of a bug of its own; its helpers go with the namespace.
            let said = client.output(
                "unshare --pid --fork timeout 25 dhcpcd -4 -T -t 15 -i PXEClient:Arch:00000:UNDI:002001 eth0",
            );
            let address = said.lines().find_map(|line| line.split("new_ip_address=").nth(1));
            let address = address.unwrap_or_else(|| panic!("{said}"));
            in_range(address.trim_matches(|c: char| !c.is_ascii_digit()));
        });
    }

    #[test]
    #[ignore = "a second client of the family; part of test-full"]
    fn networkd_configures_its_link_by_us() {
        on_a_wire("clients::systemd-networkd", &["unshare", "/lib/systemd/systemd-networkd"], |wire| {
            let _server = wire.serve(Serve::server());
            let client = wire.client("c1", ARMED);
            let script = client.script(
                "networkd",
                "#!/bin/sh\nset -e\nmount -t tmpfs tmpfs /run\nmount -o bind,remount,ro /sys 2>/dev/null || mount -t sysfs -o ro sysfs /sys\n\
                 mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp\n\
                 chmod -R 777 /run/systemd\n\
                 printf '[Match]\\nName=eth0\\n[Network]\\nDHCP=ipv4\\nLinkLocalAddressing=no\\nIPv6AcceptRA=no\\n' >/run/systemd/network/10-eth0.network\n\
                 exec /lib/systemd/systemd-networkd\n",
            );
            let _networkd = client.start(&format!("unshare -m {}", script.display()));
            let address = until("networkd set an address", || {
                let shown = client.output("ip -4 -o addr show dev eth0");
                let address = shown.split("inet ").nth(1)?.split('/').next()?;
                Some(address.to_owned())
            });
            in_range(&address);
        });
    }

    #[test]
    #[ignore = "a second client of the family; part of test-full"]
    fn nmap_shows_what_we_offer() {
        on_a_wire("clients::nmap", &["nmap"], |wire| {
            let _server = wire.serve(Serve::server());
            let client = wire.client("c1", STRANGER);
            client.ip("addr add 10.77.0.30/24 dev eth0");
            let said = client.output("nmap --script broadcast-dhcp-discover -e eth0");
            let offered = said.lines().find_map(|line| line.split("IP Offered: ").nth(1));
            in_range(offered.unwrap_or_else(|| panic!("{said}")));
            assert!(said.contains("Server Identifier: 10.77.0.1"), "{said}");
        });
    }

    #[test]
    #[ignore = "a load generator; part of test-full"]
    fn perfdhcp_loses_nothing() {
        on_a_wire("clients::perfdhcp", &["perfdhcp"], |wire| {
            let mut serve = Serve::server();
            serve.relays = vec![Ipv4Addr::new(10, 77, 0, 30)];
            let _server = wire.serve(serve);
            let client = wire.client("c1", STRANGER);
            client.ip("addr add 10.77.0.30/24 dev eth0");
            let said = client.output("perfdhcp -4 -l eth0 -r 50 -R 50 -p 5 -W 1000000 10.77.0.1");
            let figures = |name: &str| -> Vec<u32> {
                let lines = said.lines().filter_map(|line| line.strip_prefix(name));
                lines.map(|value| value.trim().parse().unwrap()).collect()
            };
            let (sent, lost) = (figures("sent packets:"), figures("drops:"));
            assert!(sent.len() == 2 && sent.iter().all(|sent| *sent > 50), "{said}");
            assert_eq!(lost, [0, 0], "{said}");
        });
    }

    #[test]
    #[ignore = "a second relay; part of test-full"]
    fn a_client_behind_dnsmasq_as_a_relay_gets_an_address_of_its_own_network() {
        on_a_wire("clients::dnsmasq --dhcp-relay", &["busybox", "dnsmasq"], |wire| {
            behind_a_relay(wire, |relay| {
                relay.start(
                    "dnsmasq --no-daemon --conf-file=/dev/null --port=0 --dhcp-relay=10.78.0.1,10.77.0.1",
                )
            });
        });
    }

    #[test]
    #[ignore = "half a minute of emulation; part of test-full"]
    fn qemu_ipxe_of_e1000_and_rtl8139_fetches_its_script_from_our_server() {
        firmware_boots(Serve::server, None);
    }

    #[test]
    #[ignore = "half a minute of emulation; part of test-full"]
    fn qemu_ipxe_of_e1000_and_rtl8139_fetches_its_script_beside_a_foreign_server() {
        firmware_boots(
            Serve::proxy,
            Some(
                "dnsmasq --no-daemon --conf-file=/dev/null --port=0 --no-ping --leasefile-ro --interface=eth0 \
                 --dhcp-range=10.77.0.200,10.77.0.210,255.255.255.0,1h",
            ),
        );
    }

    fn firmware_boots(serve: fn() -> Serve, foreign: Option<&str>) {
        for model in ["e1000", "rtl8139"] {
            let roms = format!("/usr/lib/ipxe/qemu/pxe-{model}.rom");
            on_a_wire("clients::QEMU iPXE", &["qemu-system-x86_64", &roms], |wire| {
                let scripts = wire.scripts();
                let mut serve = serve();
                serve.url = scripts.url.clone();
                let _server = wire.serve(serve);
                let _foreign = foreign.map(|command| {
                    let other = wire.client("foreign", STRANGER);
                    other.ip("addr add 10.77.0.9/24 dev eth0");
                    (other.start(command), other)
                });
                let _guest = wire.firmware(model, ARMED);
                let asked = scripts.asked(Duration::from_secs(120));
                // iPXE encodes the colons.
                assert_eq!(asked.replace("%3A", ":"), format!("/b/{ARMED}"), "{model}");
            });
        }
    }
}

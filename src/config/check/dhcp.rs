//! DHCP: interfaces, the networks that are leased from, what clients are told; and that it does not stand in the
//! way of the other listeners.

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use super::Checker;
use crate::{
    config::{
        DhcpInterface, DhcpMode, DhcpOff, DhcpPool, DhcpServer, Pxelinux, architecture,
        problem::Spot,
        raw::{OptionBytes, RawConfig, RawDhcp, RawLeases, RawMode, RawPxelinux, RawTftp},
        read::At,
    },
    machine::MacAddr,
};

const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// PXE 2.1 §2.2: the boot server's port beside an existing DHCP server.
const PROXY_PORT: u16 = 4011;

/// How long a lease lasts, at least and at most.
const LEASES: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(30 * 24 * 3600));
const LEASE: Duration = Duration::from_secs(3600);

/// Netmasks, in bits: a network with room for a server and a client.
const PREFIXES: std::ops::RangeInclusive<u32> = 1..=30;

/// RFC 791: every host takes a packet of 576 bytes, so no network has a smaller MTU; jumbo frames end at 9216.
const MTUS: (u16, u16) = (576, 9216);

/// The file field of a DHCP packet (RFC 2131 §2), without its NUL.
const FILE_LIMIT: usize = 127;

/// PXELINUX's names go into one option each, with a NUL.
const PXELINUX_LIMIT: usize = 254;

/// Unless said otherwise, one address in this many is left for machines that a job is about to install.
const KEPT_SHARE: u32 = 16;

impl Checker<'_> {
    pub(super) fn dhcp(&mut self, raw: &RawConfig) -> Vec<DhcpInterface> {
        let written: &[At<RawDhcp>] = raw.dhcp.as_ref().map_or(&[], |dhcp| &dhcp.value);
        let on = |dhcp: &&At<RawDhcp>| dhcp.value.mode.as_ref().is_none_or(|mode| mode.value != RawMode::Off);
        let mut checked: Vec<DhcpInterface> = Vec::new();
        for dhcp in written.iter().filter(on) {
            let Some(interface) = self.interface(dhcp) else { continue };
            if checked.iter().any(|other| other.interface == interface.interface) {
                let message = format!("{:?} has a [[dhcp]] already", interface.interface);
                self.notes.wrong(&dhcp.spot, message, "keep one [[dhcp]] for each interface");
            }
            self.tftp_beside(&interface, raw.tftp.as_ref());
            checked.push(interface);
        }
        if let (Some(dhcp), None) = (written.iter().find(on), &raw.http) {
            let message = "is missing, and the boot scripts that DHCP points to are served there";
            let spot = Spot { line: dhcp.spot.line, key: "http".to_owned() };
            self.notes.absent(
                &spot,
                message,
                "add [http] with listen, or set the mode of this [[dhcp]] to \"off\"",
            );
        }
        checked
    }

    fn interface(&mut self, dhcp: &At<RawDhcp>) -> Option<DhcpInterface> {
        let At { value: raw, spot } = dhcp;
        let device = self.required(
            raw.interface.as_ref(),
            spot,
            "interface",
            "name the network device, such as \"eth1\"",
        );
        let device = device.map(|device| self.device(device));
        let remedy =
            "write \"proxy\" beside another DHCP server, \"server\" where this is the only one, or \"off\"";
        let mode = self.required(raw.mode.as_ref(), spot, "mode", remedy);
        let remedy = "write our IPv4 address on that interface";
        let address = self.required(raw.address.as_ref(), spot, "address", remedy);
        let unicast = |address: &&At<Ipv4Addr>| {
            !(address.value.is_unspecified() || address.value.is_multicast() || address.value.is_broadcast())
        };
        if let Some(At { value, spot }) = address.filter(|address| !unicast(address)) {
            self.notes.wrong(spot, format!("{value} is not an address of one machine"), remedy);
        }
        let port = |port: &Option<At<u16>>, default| port.as_ref().map_or(default, |port| port.value);
        let server_port = port(&raw.server_port, SERVER_PORT);
        let client_port = port(&raw.client_port, CLIENT_PORT);
        let proxy_port = port(&raw.proxy_port, PROXY_PORT);
        let taken = [server_port, client_port, proxy_port].map(|port| Some(port).filter(|port| *port > 0));
        let [server, client, proxy] = taken;
        if (server.is_some() && (server == client || server == proxy))
            || (client.is_some() && client == proxy)
        {
            let message = "two of server_port, client_port and proxy_port are the same";
            self.notes.wrong(spot, message, "remove them (67, 68 and 4011 are right), or make them differ");
        }
        let address = address.filter(unicast).map(|address| address.value);
        let mode = self.mode(raw, mode.map(|mode| mode.value), address, spot);
        let relays = self.relays(raw.relays.as_ref());
        let loaders = self.loaders(raw.loaders.as_ref());
        let pxelinux = raw.pxelinux.as_ref().map(|pxelinux| self.pxelinux(pxelinux)).unwrap_or_default();
        Some(DhcpInterface {
            interface: device?,
            mode: mode?,
            address: address?,
            server_port,
            client_port,
            proxy_port,
            relays,
            loaders,
            pxelinux,
        })
    }

    /// Interfaces that are left to somebody else.
    pub(super) fn dhcp_off(&mut self, raw: &RawConfig) -> Vec<DhcpOff> {
        let written: &[At<RawDhcp>] = raw.dhcp.as_ref().map_or(&[], |dhcp| &dhcp.value);
        let off =
            |dhcp: &&At<RawDhcp>| dhcp.value.mode.as_ref().is_some_and(|mode| mode.value == RawMode::Off);
        let mut checked = Vec::new();
        for At { value: raw, .. } in written.iter().filter(off) {
            let loaders = self.loaders(raw.loaders.as_ref());
            if let Some(device) = &raw.interface {
                checked.push(DhcpOff { interface: self.device(device), loaders });
            }
        }
        checked
    }

    fn relays(&mut self, relays: Option<&At<Vec<At<Ipv4Addr>>>>) -> Vec<Ipv4Addr> {
        let mut checked = Vec::new();
        for At { value, spot } in relays.iter().flat_map(|relays| &relays.value) {
            if value.is_unspecified() || value.is_multicast() || value.is_broadcast() {
                let remedy = "write the address that the relay has on the clients' network";
                self.notes.wrong(spot, format!("{value} is not an address of one machine"), remedy);
            }
            if checked.contains(value) {
                self.notes.wrong(spot, format!("{value} is in the list already"), "remove it");
            }
            checked.push(*value);
        }
        checked
    }

    fn loaders(&mut self, loaders: Option<&At<BTreeMap<String, At<String>>>>) -> BTreeMap<u16, String> {
        let mut checked = BTreeMap::new();
        let mut numbers = BTreeMap::new();
        for (word, file) in loaders.iter().flat_map(|loaders| &loaders.value) {
            let At { value, spot } = file;
            let Some(codes) = architecture::codes(word) else {
                let words: Vec<&str> = architecture::words().collect();
                let remedy = format!("write one of {}, or the number of option 93", words.join(", "));
                self.notes.wrong(spot, "is not an architecture", remedy);
                continue;
            };
            if value.contains("://") {
                self.one_line(file);
            } else {
                self.boot_file(file, "tftp.root");
            }
            if value.len() > FILE_LIMIT {
                let message =
                    format!("has {} bytes, and a DHCP packet has room for {FILE_LIMIT}", value.len());
                self.notes.wrong(spot, message, "write a shorter name");
            }
            // A number is more exact than a word that means it too.
            let into = if word.parse::<u16>().is_ok() { &mut numbers } else { &mut checked };
            into.extend(codes.into_iter().map(|code| (code, value.clone())));
        }
        checked.extend(numbers);
        checked
    }

    fn pxelinux(&mut self, written: &At<RawPxelinux>) -> Pxelinux {
        let raw = &written.value;
        let mut name = |name: &Option<At<String>>| {
            let name = name.as_ref()?;
            self.one_line(name);
            if name.value.is_empty() || name.value.len() > PXELINUX_LIMIT {
                let remedy = format!("write 1 to {PXELINUX_LIMIT} bytes, or remove the key");
                self.notes.wrong(&name.spot, "does not fit into a DHCP option", remedy);
            }
            Some(name.value.clone())
        };
        Pxelinux {
            config_file: name(&raw.config_file),
            path_prefix: name(&raw.path_prefix),
            reboot_time: raw.reboot_time.as_ref().map(|time| time.value),
        }
    }

    fn mode(
        &mut self,
        raw: &RawDhcp,
        mode: Option<RawMode>,
        ours: Option<Ipv4Addr>,
        dhcp: &Spot,
    ) -> Option<DhcpMode> {
        let relayed = self.relayed(raw, ours, mode);
        match (mode, &raw.server) {
            (Some(RawMode::Server) | None, Some(leases)) => {
                let own = self.leases(leases, ours, ours)?;
                Some(DhcpMode::Server(DhcpServer { own, relayed }))
            }
            (Some(RawMode::Server), None) => {
                let remedy = "add [dhcp.server] with range and netmask below this [[dhcp]]";
                self.notes.absent(
                    &dhcp.child("server"),
                    "is missing, and mode = \"server\" needs addresses to give",
                    remedy,
                );
                None
            }
            (Some(RawMode::Proxy | RawMode::Off), Some(leases)) => {
                let message = "has no effect with this mode";
                self.notes.wrong(&leases.spot, message, "remove it, or write mode = \"server\"");
                None
            }
            (Some(RawMode::Proxy), None) => Some(DhcpMode::Proxy),
            (Some(RawMode::Off) | None, None) => None,
        }
    }

    /// The networks behind relays. Each needs a relay of its own, or none of its clients is ever heard.
    fn relayed(&mut self, raw: &RawDhcp, ours: Option<Ipv4Addr>, mode: Option<RawMode>) -> Vec<DhcpPool> {
        let relays: &[At<Ipv4Addr>] = raw.relays.as_ref().map_or(&[], |relays| &relays.value);
        let mut networks: Vec<DhcpPool> = Vec::new();
        for network in raw.relayed.iter().flat_map(|relayed| &relayed.value) {
            if mode.is_some_and(|mode| mode != RawMode::Server) {
                let message = "has no effect with this mode";
                self.notes.wrong(&network.spot, message, "remove it, or write mode = \"server\"");
                continue;
            }
            let base = network.value.range.as_ref().and_then(|range| range.value.first());
            let Some(pool) = self.leases(network, base.map(|first| first.value), None) else { continue };
            let same = |other: Ipv4Addr| {
                let mask = pool.netmask.to_bits();
                other.to_bits() & mask == pool.range.0.to_bits() & mask
            };
            if ours.is_some_and(|ours| !ours.is_loopback() && same(ours)) {
                let message = "is the interface's own network";
                self.notes.wrong(&network.spot, message, "write it as [dhcp.server]");
            } else if networks.iter().any(|other| same(other.range.0)) {
                self.notes.wrong(&network.spot, "is a network that stands above already", "keep one of them");
            } else if !relays.iter().any(|relay| same(relay.value)) {
                let remedy = "add the relay's address on this network to relays of this [[dhcp]]";
                self.notes.wrong(&network.spot, "has no relay in relays, so no client is heard", remedy);
            }
            networks.push(pool);
        }
        networks
    }

    /// `anchor`: an address of the network; `ours`: the one that no client may have.
    fn leases(
        &mut self,
        leases: &At<RawLeases>,
        anchor: Option<Ipv4Addr>,
        ours: Option<Ipv4Addr>,
    ) -> Option<DhcpPool> {
        let At { value: raw, spot } = leases;
        let remedy = "write the interface's netmask, such as \"255.255.255.0\"";
        let netmask = self.required(raw.netmask.as_ref(), spot, "netmask", remedy);
        let network = netmask.and_then(|netmask| self.network(netmask, anchor));
        let remedy = "write range = [\"FIRST\", \"LAST\"]";
        let range = self.required(raw.range.as_ref(), spot, "range", remedy);
        let range = range.and_then(|range| self.range(range, network, ours));
        let router = raw.router.as_ref();
        if let (Some(At { value, spot }), Some(network)) = (router, network)
            && !network.has(*value)
        {
            let message = format!("{value} is not in the network {network}");
            self.notes.wrong(spot, message, "write the router's address there, or remove the key");
        }
        let reservations = self.reservations(raw.reservations.as_ref(), network, ours);
        let domain = raw.domain.as_ref().map(|domain| self.domain(domain));
        let options = self.options(raw.options.as_ref());
        let size = range.map_or(u32::MAX, |(first, last)| last.to_bits() - first.to_bits() + 1);
        let keep_for_jobs = self.within(&raw.keep_for_jobs, size / KEPT_SHARE, (0, size - 1));
        Some(DhcpPool {
            range: range?,
            netmask: netmask?.value,
            router: router.map(|router| router.value),
            dns: raw.dns.iter().flat_map(|dns| &dns.value).map(|dns| dns.value).collect(),
            domain,
            ntp: raw.ntp.iter().flat_map(|ntp| &ntp.value).map(|ntp| ntp.value).collect(),
            mtu: raw.mtu.as_ref().map(|_| self.within(&raw.mtu, MTUS.1, MTUS)),
            options,
            lease: self.within(&raw.lease, LEASE, LEASES),
            reservations,
            lease_to_strangers: raw.lease_to_strangers.as_ref().is_some_and(|lease| lease.value),
            keep_for_jobs,
        })
    }

    fn domain(&mut self, domain: &At<String>) -> String {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if domain.value.is_empty() || domain.value.len() > 253 || !domain.value.chars().all(fits) {
            self.notes.wrong(&domain.spot, "is not a domain", "write it as \"example.org\"");
        }
        domain.value.clone()
    }

    /// Options by code. What is ours to say in every packet cannot be overridden.
    fn options(&mut self, options: Option<&At<BTreeMap<String, At<OptionBytes>>>>) -> BTreeMap<u8, Vec<u8>> {
        let mut checked = BTreeMap::new();
        for (code, At { value, spot }) in options.iter().flat_map(|options| &options.value) {
            let Ok(code) = code.parse::<u8>() else {
                self.notes.wrong(spot, "is not the code of a DHCP option", "write a number from 2 to 254");
                continue;
            };
            let remedy = match code {
                1 | 3 | 6 | 15 | 26 | 42 | 51 => {
                    "it has a key of its own: netmask, router, dns, domain, mtu, ntp, lease"
                }
                66 | 67 => "it has a key of its own: tftp.loader, or loaders of this [[dhcp]]",
                208..=211 => "it has a key of its own: pxelinux of this [[dhcp]]",
                0 | 43 | 50 | 52..=61 | 77 | 82 | 93 | 94 | 97 | 175 | 255 => {
                    "remove it: the protocol decides what it says"
                }
                _ => {
                    checked.insert(code, value.0.clone());
                    continue;
                }
            };
            self.notes.wrong(spot, format!("option {code} cannot be set here"), remedy);
        }
        checked
    }

    /// The network of our address; on loopback, where every address is ours, that of no particular one.
    fn network(&mut self, netmask: &At<Ipv4Addr>, ours: Option<Ipv4Addr>) -> Option<Network> {
        let mask = netmask.value.to_bits();
        if mask.leading_ones() + mask.trailing_zeros() != u32::BITS
            || !PREFIXES.contains(&mask.leading_ones())
        {
            let remedy = "write the interface's netmask, such as \"255.255.255.0\"";
            self.notes.wrong(&netmask.spot, format!("{} is not a netmask", netmask.value), remedy);
            return None;
        }
        let ours = ours?;
        Some(Network { mask, base: if ours.is_loopback() { None } else { Some(ours.to_bits() & mask) } })
    }

    fn range(
        &mut self,
        range: &At<Vec<At<Ipv4Addr>>>,
        network: Option<Network>,
        ours: Option<Ipv4Addr>,
    ) -> Option<(Ipv4Addr, Ipv4Addr)> {
        let [first, last] = range.value.as_slice() else {
            let message = format!("has {} of the two addresses of a range", range.value.len());
            self.notes.absent(&range.spot, message, "write range = [\"FIRST\", \"LAST\"]");
            return None;
        };
        let (first, last) = (first.value, last.value);
        if last < first {
            self.notes.wrong(&range.spot, format!("{last} comes before {first}"), "swap them");
            return None;
        }
        if let Some(network) = network {
            if !network.has(first) || !network.has(last) || !network.one(first, last) {
                let message = format!("{first} to {last} is not within one network {network}");
                self.notes.wrong(&range.spot, message, "write two addresses of the interface's network");
            } else if let Some(ours) = ours.filter(|ours| (first..=last).contains(ours)) {
                let message = format!("has our own address {ours} in it");
                self.notes.wrong(&range.spot, message, "begin behind it or end before it");
            }
        }
        Some((first, last))
    }

    fn reservations(
        &mut self,
        written: Option<&At<BTreeMap<String, At<Ipv4Addr>>>>,
        network: Option<Network>,
        ours: Option<Ipv4Addr>,
    ) -> BTreeMap<MacAddr, Ipv4Addr> {
        let mut reservations: BTreeMap<MacAddr, Ipv4Addr> = BTreeMap::new();
        for (mac, At { value: address, spot }) in written.iter().flat_map(|written| &written.value) {
            let Ok(mac) = mac.parse::<MacAddr>() else {
                self.notes.wrong(spot, "is not a MAC address", "write it as \"02:16:3e:00:00:01\"");
                continue;
            };
            if let Some((holder, _)) = reservations.iter().find(|(_, taken)| *taken == address) {
                self.notes.wrong(
                    spot,
                    format!("{address} is reserved for {holder} already"),
                    "give each its own address",
                );
            }
            if network.is_some_and(|network| !network.has(*address)) || ours == Some(*address) {
                let message = format!("{address} is no address for a client on this interface");
                self.notes.wrong(spot, message, "write an address of its network that is not ours");
            }
            if reservations.insert(mac, *address).is_some() {
                self.notes.wrong(spot, format!("{mac} has a reservation already"), "keep one of them");
            }
        }
        reservations
    }

    /// Notes TFTP listeners on the ports of DHCP.
    fn tftp_beside(&mut self, dhcp: &DhcpInterface, tftp: Option<&At<RawTftp>>) {
        let listen = tftp.and_then(|tftp| tftp.value.listen.as_ref());
        let proxy = (dhcp.mode == DhcpMode::Proxy).then_some(dhcp.proxy_port);
        for At { value, spot } in listen.iter().flat_map(|listen| &listen.value) {
            let port = value.port();
            if port > 0 && (port == dhcp.server_port || Some(port) == proxy) {
                let message = format!("port {port} is what DHCP on {} listens on", dhcp.interface);
                self.notes.wrong(spot, message, "give one of them another port");
            }
        }
    }
}

/// A netmask, with the network's own bits where they are known.
#[derive(Debug, Clone, Copy)]
struct Network {
    mask: u32,
    base: Option<u32>,
}

impl Network {
    /// A client can have this address: in the network, and neither its first nor its last.
    fn has(self, address: Ipv4Addr) -> bool {
        let (bits, host) = (address.to_bits(), address.to_bits() & !self.mask);
        self.base.is_none_or(|base| bits & self.mask == base) && host != 0 && host != !self.mask
    }

    /// Both are in the same network.
    fn one(self, a: Ipv4Addr, b: Ipv4Addr) -> bool {
        a.to_bits() & self.mask == b.to_bits() & self.mask
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.base {
            Some(base) => write!(f, "{}/{}", Ipv4Addr::from_bits(base), self.mask.leading_ones()),
            None => write!(f, "of /{}", self.mask.leading_ones()),
        }
    }
}

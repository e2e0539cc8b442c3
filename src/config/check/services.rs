//! The listeners: DHCP, boot HTTP, admin; and that they do not stand in each other's way.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, time::Duration};

use super::{Checker, pool::Endpoint};
use crate::{
    config::{
        AdminConfig, DhcpInterface, DhcpMode, DhcpPool, HttpConfig,
        problem::Spot,
        raw::{RawAdmin, RawConfig, RawDhcp, RawHttp, RawLeases, RawMode, RawTftp},
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

const ADMIN_SOCKET: &str = "/run/bootflip/admin.sock";
/// `sun_path` of Linux, without its NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// The DHCP file field (RFC 2131 §2) has 128 bytes, the last a NUL, and holds `URL/b/02:16:3e:00:00:01`.
const PUBLIC_URL_LIMIT: usize = 127 - "/b/02:16:3e:00:00:01".len();

/// `IFNAMSIZ` of Linux, without its NUL.
const DEVICE_LIMIT: usize = 15;

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
        Some(DhcpInterface {
            interface: device?,
            mode: mode?,
            address: address?,
            server_port,
            client_port,
            proxy_port,
        })
    }

    fn mode(
        &mut self,
        raw: &RawDhcp,
        mode: Option<RawMode>,
        ours: Option<Ipv4Addr>,
        dhcp: &Spot,
    ) -> Option<DhcpMode> {
        match (mode, &raw.server) {
            (Some(RawMode::Server) | None, Some(leases)) => self.leases(leases, ours).map(DhcpMode::Server),
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

    fn leases(&mut self, leases: &At<RawLeases>, ours: Option<Ipv4Addr>) -> Option<DhcpPool> {
        let At { value: raw, spot } = leases;
        let remedy = "write the interface's netmask, such as \"255.255.255.0\"";
        let netmask = self.required(raw.netmask.as_ref(), spot, "netmask", remedy);
        let network = netmask.and_then(|netmask| self.network(netmask, ours));
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
        Some(DhcpPool {
            range: range?,
            netmask: netmask?.value,
            router: router.map(|router| router.value),
            dns: raw.dns.iter().flat_map(|dns| &dns.value).map(|dns| dns.value).collect(),
            lease: self.within(&raw.lease, LEASE, LEASES),
            reservations,
            lease_to_strangers: raw.lease_to_strangers.as_ref().is_some_and(|lease| lease.value),
        })
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

    pub(super) fn http(&mut self, http: &At<RawHttp>, boot_root: PathBuf) -> Option<HttpConfig> {
        let At { value: raw, spot } = http;
        let remedy = "write listen = \"ADDRESS:PORT\" with our address on the provisioning network";
        let listen = self.required(raw.listen.as_ref(), spot, "listen", remedy).map(|listen| listen.value);
        let public_url = match &raw.public_url {
            Some(url) => self.public_url(url),
            None => {
                if listen.is_some_and(|listen| listen.ip().is_unspecified()) {
                    let message = "is missing, and clients cannot be sent to 0.0.0.0";
                    self.notes.absent(
                        &spot.child("public_url"),
                        message,
                        "write public_url = \"http://ADDRESS:PORT\"",
                    );
                }
                listen.map(|listen| format!("http://{listen}"))
            }
        };
        let root = raw.root.as_ref().map_or(boot_root, |root| self.path(root));
        let device = raw.device.as_ref().map(|device| self.device(device));
        Some(HttpConfig { listen: listen?, public_url: public_url?, root, device })
    }

    fn public_url(&mut self, url: &At<String>) -> Option<String> {
        let endpoint = Endpoint::of(&url.value).filter(|endpoint| !endpoint.encrypted);
        let Some(endpoint) = endpoint else {
            let remedy = "write http://HOST or http://HOST:PORT, and nothing behind it";
            self.notes.wrong(&url.spot, "is not an address that boot loaders can fetch from", remedy);
            return None;
        };
        let text = endpoint.url();
        if text.len() > PUBLIC_URL_LIMIT {
            let message =
                format!("has {} bytes, and a DHCP packet has room for {PUBLIC_URL_LIMIT}", text.len());
            self.notes.wrong(&url.spot, message, "write the IPv4 address instead of the name");
        }
        Some(text)
    }

    pub(super) fn admin(&mut self, admin: Option<&At<RawAdmin>>) -> AdminConfig {
        let Some(written) = admin.and_then(|admin| admin.value.socket.as_ref()) else {
            return AdminConfig { socket: PathBuf::from(ADMIN_SOCKET) };
        };
        let socket = self.path(written);
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_LIMIT {
            let message =
                format!("has {bytes} bytes, and a unix socket's path has at most {SOCKET_PATH_LIMIT}");
            self.notes.wrong(&written.spot, message, "write a shorter path");
        }
        AdminConfig { socket }
    }

    pub(super) fn device(&mut self, device: &At<String>) -> String {
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
        if device.value.is_empty() || device.value.len() > DEVICE_LIMIT || !device.value.chars().all(fits) {
            let message = format!("{:?} is not the name of a network device", device.value);
            self.notes.wrong(&device.spot, message, "`ip link` lists them");
        }
        device.value.clone()
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

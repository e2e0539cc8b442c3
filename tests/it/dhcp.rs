//! The DHCP service over real sockets, all bound to loopback, without privileges.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{Arc, Mutex},
    time::Duration,
};

use bootflip::{
    boot::sink::Sign,
    clock::SystemClock,
    config::{DhcpInterface, DhcpMode, DhcpPool, DhcpServer, Pxelinux},
    dhcp::{
        DEFAULT_LOADER,
        server::{self, BootServices, Bound, Shared},
        snippet::{Dialect, Target, snippet},
    },
    machine::MacAddr,
    store::{Batch, Entry, Op, Revision, Store, StoreError, Watch},
};
use dhcproto::{
    Decodable, Encodable,
    v4::{self, DhcpOption, MessageType, OptionCode},
};
use futures_util::future::BoxFuture;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::boot::{ARMED, IDLE, STRANGER, Scene};

const LIMIT: Duration = Duration::from_secs(20);

/// A store that can be stalled or broken.
#[derive(Debug)]
pub(crate) struct SlowStore {
    entries: Mutex<BTreeMap<String, Vec<u8>>>,
    commits: Mutex<Vec<Batch>>,
    behaviour: watch::Sender<Behaviour>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behaviour {
    Works,
    Stalls,
    Fails,
}

impl SlowStore {
    pub(crate) fn new() -> Arc<Self> {
        let behaviour = watch::Sender::new(Behaviour::Works);
        Arc::new(Self { entries: Mutex::default(), commits: Mutex::default(), behaviour })
    }

    fn keys(&self) -> Vec<String> {
        self.entries.lock().unwrap().keys().cloned().collect()
    }
}

impl Store for SlowStore {
    fn get<'a>(&'a self, _key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        Box::pin(async { Ok(None) })
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        let entries = self.entries.lock().unwrap();
        let found = entries.iter().filter(|(key, _)| key.starts_with(prefix));
        let found =
            found.map(|(key, value)| Entry { key: key.clone(), value: value.clone(), revision: 1 }).collect();
        Box::pin(async { Ok(found) })
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>> {
        Box::pin(async move {
            let mut behaviour = self.behaviour.subscribe();
            let now = *behaviour.wait_for(|behaviour| *behaviour != Behaviour::Stalls).await.unwrap();
            if now == Behaviour::Fails {
                return Err(StoreError::Unavailable {
                    operation: "write",
                    path: "x".into(),
                    detail: "full".into(),
                });
            }
            let mut entries = self.entries.lock().unwrap();
            for op in &batch.ops {
                match op.clone() {
                    Op::Put { key, value } => drop(entries.insert(key, value)),
                    Op::Delete { key } => drop(entries.remove(&key)),
                }
            }
            self.commits.lock().unwrap().push(batch);
            Ok(1)
        })
    }

    fn watch(&self, _from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        Box::pin(async { Ok(tokio::sync::mpsc::channel(1).1) })
    }
}

/// A pool of a class A network, for machines that are known.
pub(crate) fn pool(first: [u8; 4], last: [u8; 4]) -> DhcpPool {
    DhcpPool {
        range: (first.into(), last.into()),
        netmask: Ipv4Addr::new(255, 0, 0, 0),
        router: None,
        dns: vec![],
        domain: None,
        ntp: vec![],
        mtu: None,
        options: BTreeMap::new(),
        lease: Duration::from_secs(3600),
        reservations: BTreeMap::new(),
        lease_to_strangers: false,
        keep_for_jobs: 0,
    }
}

/// An interface with the ports of the standards.
pub(crate) fn interface(device: &str, mode: DhcpMode, address: Ipv4Addr) -> DhcpInterface {
    DhcpInterface {
        interface: device.to_owned(),
        mode,
        address,
        server_port: 67,
        client_port: 68,
        proxy_port: 4011,
        relays: vec![],
        loaders: BTreeMap::new(),
        pxelinux: Pxelinux::default(),
    }
}

struct Rig {
    scene: Scene,
    store: Arc<SlowStore>,
    bound: Bound,
    client: Client,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Rig {
    async fn server() -> Self {
        Self::with(SlowStore::new(), Self::pool()).await
    }

    fn pool() -> DhcpMode {
        DhcpMode::Server(DhcpServer { own: pool([127, 64, 0, 10], [127, 64, 0, 250]), relayed: vec![] })
    }

    async fn with(store: Arc<SlowStore>, mode: DhcpMode) -> Self {
        let scene = Scene::new();
        let client = Client::new();
        let interface = DhcpInterface {
            server_port: 0,
            client_port: client.port,
            proxy_port: 0,
            ..interface("lo", mode, Ipv4Addr::LOCALHOST)
        };
        let boot =
            BootServices { url: Some("http://127.0.0.1:8080".into()), loader: Some(DEFAULT_LOADER.into()) };
        let shared = Shared {
            gate: scene.gate.clone(),
            sink: scene.sink.clone(),
            store: store.clone(),
            clock: Arc::new(SystemClock),
        };
        let server = server::bind(interface, boot, shared).await.unwrap();
        let (bound, stop) = (server.bound(), CancellationToken::new());
        let running = tokio::spawn(server.run(stop.clone()));
        Self { scene, store, bound, client, stop, running }
    }

    async fn send(&self, message: &v4::Message) {
        self.client.broadcast(message, self.bound.server.port()).await;
    }

    async fn ask(&self, message: &v4::Message) -> v4::Message {
        self.send(message).await;
        self.client.answer(message.xid()).await.0
    }
}

/// A client's socket: any address, bound to `lo`, as the demo's clients have it.
struct Client {
    socket: UdpSocket,
    port: u16,
}

impl Client {
    fn new() -> Self {
        Self::on(0)
    }

    fn on(port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind_device(Some(b"lo")).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port).into()).unwrap();
        let socket = UdpSocket::from_std(socket.into()).unwrap();
        let port = socket.local_addr().unwrap().port();
        Self { socket, port }
    }

    async fn broadcast(&self, message: &v4::Message, port: u16) {
        self.socket.send_to(&message.to_vec().unwrap(), (Ipv4Addr::BROADCAST, port)).await.unwrap();
    }

    /// The answer with this transaction; others are dropped.
    async fn answer(&self, xid: u32) -> (v4::Message, SocketAddr) {
        let wait = async {
            let mut packet = [0; 2048];
            loop {
                let (length, from) = self.socket.recv_from(&mut packet).await.unwrap();
                let message = v4::Message::from_bytes(&packet[..length]).unwrap();
                if message.xid() == xid && message.opcode() == v4::Opcode::BootReply {
                    return (message, from);
                }
            }
        };
        tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("no answer to {xid}"))
    }
}

fn message(mac: MacAddr, xid: u32, kind: MessageType) -> v4::Message {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(xid, zero, zero, zero, zero, &mac.octets());
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    message
}

fn ipxe(mut message: v4::Message) -> v4::Message {
    let class = b"PXEClient:Arch:00000:UNDI:002001".to_vec();
    message.opts_mut().insert(DhcpOption::ClassIdentifier(class));
    message.opts_mut().insert(DhcpOption::UserClass(b"iPXE".to_vec()));
    message
}

fn discover(mac: MacAddr, xid: u32) -> v4::Message {
    message(mac, xid, MessageType::Discover)
}

fn select(mac: MacAddr, xid: u32, address: Ipv4Addr) -> v4::Message {
    let mut message = message(mac, xid, MessageType::Request);
    message.opts_mut().insert(DhcpOption::RequestedIpAddress(address));
    message.opts_mut().insert(DhcpOption::ServerIdentifier(Ipv4Addr::LOCALHOST));
    message
}

fn kind(message: &v4::Message) -> MessageType {
    message.opts().msg_type().unwrap()
}

#[tokio::test]
async fn a_client_without_an_address_hears_its_lease_by_broadcast_on_loopback() {
    let rig = Rig::server().await;
    // Another client on the same port hears it too, as on a wire.
    let bystander = Client::on(rig.client.port);
    let offer = rig.ask(&ipxe(discover(ARMED, 1))).await;
    assert_eq!(kind(&offer), MessageType::Offer);
    assert_eq!(kind(&bystander.answer(1).await.0), MessageType::Offer);
    let file = String::from_utf8(offer.fname().unwrap().to_vec()).unwrap();
    assert_eq!(file.trim_end_matches('\0'), format!("http://127.0.0.1:8080/b/{ARMED}"));
    let request = ipxe(select(ARMED, 2, offer.yiaddr()));
    rig.send(&request).await;
    let (ack, from) = rig.client.answer(2).await;
    assert_eq!((kind(&ack), ack.yiaddr()), (MessageType::Ack, offer.yiaddr()));
    assert_eq!(
        from,
        SocketAddr::from((Ipv4Addr::LOCALHOST, rig.bound.server.port())),
        "it never left loopback"
    );
    assert_eq!(rig.store.keys(), [format!("leases/{}", offer.yiaddr())]);
    rig.scene.sink.until(ARMED, Sign::Dhcp).await;
    assert_eq!(rig.scene.gate.who(IpAddr::V4(offer.yiaddr())), Some(ARMED));
    drop(bystander); // of two sockets on one port, the kernel gives unicast to the last alone
    UdpSocket::bind((offer.yiaddr(), 0)).await.unwrap();
    let mut renewal = message(ARMED, 3, MessageType::Request);
    renewal.set_ciaddr(offer.yiaddr());
    assert_eq!(kind(&rig.ask(&renewal).await), MessageType::Ack);
    rig.scene.sink.until(ARMED, Sign::Lease).await;
}

#[tokio::test]
async fn discover_is_answered_from_memory_while_the_store_stalls() {
    let rig = Rig::server().await;
    let offer = rig.ask(&ipxe(discover(IDLE, 1))).await;
    let idle = offer.yiaddr();
    assert_eq!(kind(&rig.ask(&select(IDLE, 2, idle)).await), MessageType::Ack);
    rig.store.behaviour.send_replace(Behaviour::Stalls);
    let offer = rig.ask(&ipxe(discover(ARMED, 3))).await;
    assert_eq!(kind(&offer), MessageType::Offer);
    rig.send(&select(ARMED, 4, offer.yiaddr())).await;
    // Others are served meanwhile, also with an ACK where the lease is already durable.
    assert_eq!(kind(&rig.ask(&ipxe(discover(IDLE, 5))).await), MessageType::Offer);
    let mut renewal = message(IDLE, 6, MessageType::Request);
    renewal.set_ciaddr(rig.ask(&discover(IDLE, 7)).await.yiaddr());
    assert_eq!(kind(&rig.ask(&renewal).await), MessageType::Ack);
    assert_eq!(
        rig.store.keys(),
        [format!("leases/{idle}")],
        "the new lease is not stored, and was not acknowledged"
    );
    // The waiting client gets its answer as soon as the store has it.
    rig.store.behaviour.send_replace(Behaviour::Works);
    assert_eq!(kind(&rig.client.answer(4).await.0), MessageType::Ack);
    assert_eq!(rig.store.keys().len(), 2);
}

#[tokio::test]
async fn a_failing_store_acknowledges_nothing_until_it_works_again() {
    let rig = Rig::server().await;
    rig.store.behaviour.send_replace(Behaviour::Fails);
    let offer = rig.ask(&discover(ARMED, 1)).await;
    rig.send(&select(ARMED, 2, offer.yiaddr())).await;
    // The next answer is to this, not to the request before it.
    assert_eq!(kind(&rig.ask(&discover(ARMED, 3)).await), MessageType::Offer);
    assert_eq!(rig.store.keys(), [""; 0]);
    rig.store.behaviour.send_replace(Behaviour::Works);
    let again = async {
        for xid in 4.. {
            rig.send(&select(ARMED, xid, offer.yiaddr())).await;
            let answer = tokio::time::timeout(Duration::from_millis(500), rig.client.answer(xid)).await;
            if let Ok((ack, _)) = answer {
                return kind(&ack);
            }
        }
        unreachable!()
    };
    assert_eq!(tokio::time::timeout(LIMIT, again).await.unwrap(), MessageType::Ack);
}

#[tokio::test]
async fn leases_survive_a_restart() {
    let rig = Rig::server().await;
    let first = rig.ask(&discover(IDLE, 1)).await.yiaddr();
    rig.ask(&select(IDLE, 2, first)).await;
    rig.stop.cancel();
    rig.running.await.unwrap();
    rig.store.entries.lock().unwrap().insert("leases/junk".into(), b"junk".to_vec());
    let rig = Rig::with(rig.store, Rig::pool()).await;
    assert_ne!(rig.ask(&discover(ARMED, 1)).await.yiaddr(), first);
    assert_eq!(rig.ask(&discover(IDLE, 2)).await.yiaddr(), first);
}

#[tokio::test]
async fn stopping_stores_what_was_begun() {
    let rig = Rig::server().await;
    rig.store.behaviour.send_replace(Behaviour::Stalls);
    let offer = rig.ask(&discover(ARMED, 1)).await;
    rig.send(&select(ARMED, 2, offer.yiaddr())).await;
    rig.ask(&discover(IDLE, 3)).await; // by now the request before it was taken
    rig.stop.cancel();
    rig.store.behaviour.send_replace(Behaviour::Works);
    rig.running.await.unwrap();
    assert_eq!(rig.store.keys(), [format!("leases/{}", offer.yiaddr())]);
}

#[tokio::test]
async fn a_proxy_answers_known_boot_roms_and_is_silent_for_everybody_else() {
    let rig = Rig::with(SlowStore::new(), DhcpMode::Proxy).await;
    rig.send(&ipxe(discover(STRANGER, 1))).await;
    rig.send(&discover(ARMED, 2)).await;
    rig.send(&select(ARMED, 3, Ipv4Addr::new(127, 64, 0, 9))).await;
    rig.client.socket.send_to(b"junk", rig.bound.server).await.unwrap();
    // The first packet that comes back at all is the answer to the last one sent.
    rig.send(&ipxe(discover(ARMED, 4))).await;
    let mut packet = [0; 2048];
    let mut first = None;
    while first.is_none() {
        let (length, _) =
            tokio::time::timeout(LIMIT, rig.client.socket.recv_from(&mut packet)).await.unwrap().unwrap();
        first =
            v4::Message::from_bytes(&packet[..length]).ok().filter(|m| m.opcode() == v4::Opcode::BootReply);
    }
    let offer = first.unwrap();
    assert_eq!((offer.xid(), kind(&offer), offer.yiaddr()), (4, MessageType::Offer, Ipv4Addr::UNSPECIFIED));
    // And the boot server port answers the sender's own address.
    let proxy = rig.bound.proxy.unwrap();
    let plain = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let request = ipxe(message(ARMED, 5, MessageType::Request));
    plain.send_to(&request.to_vec().unwrap(), proxy).await.unwrap();
    let (length, from) = tokio::time::timeout(LIMIT, plain.recv_from(&mut packet)).await.unwrap().unwrap();
    let ack = v4::Message::from_bytes(&packet[..length]).unwrap();
    assert_eq!((kind(&ack), from), (MessageType::Ack, SocketAddr::V4(proxy)));
    let class = ack.opts().get(OptionCode::ClassIdentifier);
    assert_eq!(class, Some(&DhcpOption::ClassIdentifier(b"PXEClient".to_vec())));
    assert!(rig.store.commits.lock().unwrap().is_empty(), "a proxy leases nothing");
}

#[tokio::test]
async fn two_hundred_clients_at_once_each_get_an_address_of_their_own() {
    let rig = Rig::server().await;
    let mac = |n: u32| MacAddr::new([2, 1, 0, 0, 0, n.to_le_bytes()[0]]);
    rig.scene.gate.update(|table| {
        for n in 0..200 {
            let machine = bootflip::boot::Machine {
                mac: mac(n),
                name: n.to_string(),
                vm_uuid: n.to_string(),
                armed: None,
            };
            table.publish(machine);
        }
    });
    let mut addresses = std::collections::BTreeSet::new();
    for n in 0..200 {
        let offer = rig.ask(&discover(mac(n), 1000 + n)).await;
        rig.send(&select(mac(n), 2000 + n, offer.yiaddr())).await;
        addresses.insert(offer.yiaddr());
    }
    rig.client.answer(2199).await;
    assert_eq!(addresses.len(), 200);
    rig.stop.cancel();
    rig.running.await.unwrap();
    assert_eq!(rig.store.keys().len(), 200);
}

#[tokio::test]
async fn a_port_that_is_taken_is_said_with_its_interface() {
    let scene = Scene::new();
    let interface =
        DhcpInterface { server_port: 0, ..interface("nosuchdevice0", DhcpMode::Proxy, Ipv4Addr::LOCALHOST) };
    let shared = Shared {
        gate: scene.gate.clone(),
        sink: scene.sink.clone(),
        store: SlowStore::new(),
        clock: Arc::new(SystemClock),
    };
    let error = server::bind(interface, BootServices::default(), shared).await.unwrap_err().to_string();
    assert!(error.contains("nosuchdevice0 port 0"), "{error}");
}

#[tokio::test]
async fn a_known_machine_gets_its_lease_while_100_000_random_macs_ask() {
    let mut own = pool([127, 64, 0, 10], [127, 64, 0, 250]);
    own.lease_to_strangers = true;
    let rig = Rig::with(SlowStore::new(), DhcpMode::Server(DhcpServer { own, relayed: vec![] })).await;
    let port = rig.bound.server.port();
    // Somebody else's socket: a flood does not use the victim's.
    let flood = tokio::spawn(async move {
        let socket = Client::new();
        let mut packet = discover(MacAddr::new([6, 0, 0, 0, 0, 0]), 1).to_vec().unwrap();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for sent in 0..100_000_u32 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            packet[29..34].copy_from_slice(&state.to_be_bytes()[..5]);
            // What the kernel has no room for is lost, as on a wire.
            drop(socket.socket.try_send_to(&packet, (Ipv4Addr::BROADCAST, port).into()));
            if sent % 64 == 0 {
                tokio::task::yield_now().await;
            }
        }
    });
    let lease = async {
        for xid in (1000..).step_by(2) {
            // As a client: it asks again when nothing comes.
            let again = Duration::from_millis(500);
            rig.send(&discover(ARMED, xid)).await;
            let Ok((offer, _)) = tokio::time::timeout(again, rig.client.answer(xid)).await else { continue };
            rig.send(&select(ARMED, xid + 1, offer.yiaddr())).await;
            if let Ok((ack, _)) = tokio::time::timeout(again, rig.client.answer(xid + 1)).await {
                return kind(&ack);
            }
        }
        unreachable!()
    };
    assert_eq!(tokio::time::timeout(LIMIT, lease).await.unwrap(), MessageType::Ack);
    flood.await.unwrap();
    // And afterwards: the strangers hold no more than the pool has.
    let offer = rig.ask(&discover(IDLE, 1)).await;
    assert_eq!(kind(&rig.ask(&select(IDLE, 2, offer.yiaddr())).await), MessageType::Ack);
}

fn target() -> Target {
    let loaders = [(0, "undionly.kpxe".to_owned()), (7, "ipxe.efi".to_owned())];
    Target {
        next_server: [10, 1, 0, 2].into(),
        boot_url: "http://10.1.0.2:8080".into(),
        loaders: loaders.into(),
    }
}

#[test]
fn another_servers_lines_point_ipxe_to_its_script_and_roms_to_their_loader() {
    let lines = snippet(Dialect::Dnsmasq, &target());
    let lines: Vec<&str> = lines.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(
        lines,
        [
            "dhcp-userclass=set:bootflip-ipxe,iPXE",
            "dhcp-userclass=set:bootflip-ipxe,gPXE",
            "dhcp-boot=tag:bootflip-ipxe,http://10.1.0.2:8080/b/${net0/mac}",
            "dhcp-match=set:bootflip-0,option:client-arch,0",
            "dhcp-boot=tag:!bootflip-ipxe,tag:bootflip-0,undionly.kpxe,,10.1.0.2",
            "dhcp-match=set:bootflip-7,option:client-arch,7",
            "dhcp-boot=tag:!bootflip-ipxe,tag:bootflip-7,ipxe.efi,,10.1.0.2",
        ]
    );
    let isc = snippet(Dialect::Isc, &target());
    assert!(isc.contains("option architecture = 00:07 {"), "{isc}");
    assert_eq!(isc.matches('{').count(), isc.matches('}').count());
    let kea = snippet(Dialect::Kea, &target());
    let (_, json) = kea.split_once('\n').unwrap();
    let json: serde_json::Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["client-classes"][2]["boot-file-name"], "ipxe.efi");
    let option = &json["hooks-libraries"][0]["parameters"]["options"][0];
    assert_eq!(option["supersede"], "concat('http://10.1.0.2:8080/b/', hexstring(pkt4.mac, ':'))");
}

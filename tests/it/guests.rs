//! Simulated guests over real sockets on `lo`, against a DHCP, TFTP and HTTP responder that holds just what a guest
//! needs.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use bootflip::{
    boot::{
        Gate, Machine,
        going::Going,
        sink::{Noted, Report, ReportAnswer, Seen, Sign, Sink, Transfer, Unavailable},
    },
    clock::SystemClock,
    config::{DhcpInterface, DhcpMode, DhcpPool, DhcpServer},
    dhcp::server::{BootServices, Shared, bind},
    machine::MacAddr,
    secret::TokenHash,
    sim::{
        demo::{
            DemoOptions,
            guests::{Guests, Happened},
            plan::{DemoPlan, Moment},
        },
        guest::{
            Event, Firmware, Guest, GuestPlan, InstalledSystem, Mishap, Pace, Stage,
            client::{Ended, Told, Wire, WireConfig},
        },
        pool::{PersonAct, Pool, Release, VmSpec},
        server::{SimOptions, SimServer},
    },
    store::memory::MemoryStore,
};
use futures_util::future::BoxFuture;
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
};
use tokio_util::sync::CancellationToken;

type Log = Arc<Mutex<Vec<String>>>;

fn udp_on_lo(address: Ipv4Addr) -> UdpSocket {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    socket.bind_device(Some(b"lo")).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&SocketAddr::from((address, 0)).into()).unwrap();
    UdpSocket::from_std(socket.into()).unwrap()
}

/// Leases 127.64.0.x, x being the MAC's last byte.
async fn dhcp(socket: UdpSocket, client_port: u16, boot_url: String) {
    let mut buffer = vec![0; 2048];
    loop {
        let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
        let packet = &buffer[..length];
        let mut reply = packet[..240].to_vec();
        reply[0] = 2;
        reply[16..20].copy_from_slice(&[127, 64, 0, packet[33]]);
        reply[20..24].copy_from_slice(&[127, 0, 0, 1]);
        let file =
            if packet.windows(4).any(|four| four == b"iPXE") { boot_url.as_str() } else { "undionly.kpxe" };
        reply.extend([53, 1, if packet[242] == 1 { 2 } else { 5 }, 54, 4, 127, 0, 0, 1, 67]);
        reply.push(u8::try_from(file.len()).unwrap());
        reply.extend(file.as_bytes());
        reply.push(255);
        socket.send_to(&reply, (Ipv4Addr::BROADCAST, client_port)).await.unwrap();
    }
}

/// Serves any file, 3,000 bytes long, with the block size that was asked for.
async fn tftp(socket: UdpSocket, log: Log) {
    let mut buffer = vec![0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer).await.unwrap();
        let name = buffer[2..length].split(|b| *b == 0).next().unwrap().to_vec();
        log.lock().unwrap().push(format!("{} tftp {}", peer.ip(), String::from_utf8(name).unwrap()));
        let transfer = udp_on_lo(Ipv4Addr::LOCALHOST);
        let mut packet = b"\0\x06tsize\x003000\0blksize\x001432\0".to_vec();
        for block in 1..=4_u8 {
            transfer.send_to(&packet, peer).await.unwrap();
            let (length, _) = transfer.recv_from(&mut buffer).await.unwrap();
            assert_eq!(buffer[..length], [0, 4, 0, block - 1]);
            packet = vec![0, 3, 0, block];
            packet.resize(4 + if block < 3 { 1432 } else { 136 }, 7);
        }
    }
}

async fn http(listener: TcpListener, log: Log) {
    let at = listener.local_addr().unwrap();
    loop {
        let (mut stream, peer) = listener.accept().await.unwrap();
        let mut request = vec![];
        while !request.windows(4).any(|four| four == b"\r\n\r\n") {
            let read = stream.read_buf(&mut request).await.unwrap();
            assert_ne!(read, 0);
        }
        let request = String::from_utf8(request).unwrap();
        let words: Vec<&str> = request.split(' ').take(2).collect();
        log.lock().unwrap().push(format!("{} {}", peer.ip(), words.join(" ")));
        let body = match words[1] {
            "/b/x" => format!("#!ipxe\nkernel /f/k url=http://{at}/a/x\ninitrd /f/i\nboot\n"),
            "/a/x" => format!("REPORT_URL=http://{at}/r/t\nBOOTED_URL=http://{at}/r/u/booted\n"),
            _ => "x".repeat(200_000),
        };
        let reply = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        stream.write_all(reply.as_bytes()).await.unwrap();
    }
}

/// Wire and responders, and what the responders saw.
async fn start() -> (Arc<Wire>, Log) {
    let log = Log::default();
    let (server, files) = (udp_on_lo(Ipv4Addr::UNSPECIFIED), udp_on_lo(Ipv4Addr::LOCALHOST));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let boot_url = format!("http://{}/b/x", listener.local_addr().unwrap());
    let config = WireConfig {
        device: "lo".to_owned(),
        client_port: 0,
        server_port: server.local_addr().unwrap().port(),
        tftp_port: files.local_addr().unwrap().port(),
    };
    let wire = Arc::new(Wire::bind(config).unwrap());
    tokio::spawn(dhcp(server, wire.client_port().unwrap(), boot_url));
    tokio::spawn(tftp(files, Arc::clone(&log)));
    tokio::spawn(http(listener, Arc::clone(&log)));
    let run = Arc::clone(&wire);
    tokio::spawn(async move { run.run(CancellationToken::new()).await });
    (wire, log)
}

fn plan(firmware: Firmware) -> GuestPlan {
    let plan = GuestPlan::hurried(3, Duration::from_secs(5));
    let pace = Pace { stage: Duration::from_millis(20), ..plan.pace };
    GuestPlan { firmware, pace, ..plan }
}

async fn run(wire: &Wire, mac: MacAddr, guest: Guest) -> (Ended, Option<InstalledSystem>) {
    let mut disk = None;
    let tell = |told| {
        if let Told::Installed(system) = told {
            disk = Some(system);
        }
    };
    let ended = wire.run_guest(mac, guest, &SystemClock, CancellationToken::new(), tell).await;
    (ended, disk)
}

#[tokio::test]
async fn guest_installs_over_real_sockets_from_its_own_address() {
    for (last, firmware) in [(7, Firmware::Ipxe), (8, Firmware::PxeRom)] {
        let (wire, log) = start().await;
        let mac = MacAddr::new([2, 0, 0, 0, 0, last]);
        let (ended, disk) = run(&wire, mac, Guest::netboot(mac, plan(firmware))).await;
        assert_eq!(ended, Ended::PowerOff);
        assert!(disk.unwrap().booted_url.ends_with("/r/u/booted"));
        let loader: &[&str] = if firmware == Firmware::PxeRom { &["tftp undionly.kpxe"] } else { &[] };
        let rest =
            ["GET /b/x", "GET /f/k", "GET /f/i", "GET /a/x", "POST /r/t/started", "POST /r/t/partitioned"];
        let end = ["POST /r/t/base", "POST /r/t/packages", "POST /r/t/late", "POST /r/t/done"];
        let expected: Vec<String> =
            loader.iter().chain(&rest).chain(&end).map(|line| format!("127.64.0.{last} {line}")).collect();
        assert_eq!(*log.lock().unwrap(), expected);
    }
}

#[tokio::test]
async fn guests_side_by_side_hear_only_what_is_theirs() {
    let (wire, log) = start().await;
    let guests = (1..=20_u8).map(|last| {
        let (wire, mac) = (Arc::clone(&wire), MacAddr::new([2, 0, 0, 0, 0, last]));
        let disk = InstalledSystem { booted_url: String::new(), hostname: String::new() };
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            let (ended, _) = run(&wire, mac, Guest::netboot(mac, plan(Firmware::Ipxe))).await;
            assert_eq!(ended, Ended::PowerOff);
            let stop = CancellationToken::new();
            let silent = GuestPlan { mishap: Mishap::SystemKeepsSilent, ..plan(Firmware::Ipxe) };
            let idle = |told| {
                if told == Told::Event(Event::Idle) {
                    log.lock().unwrap().push(format!("127.64.0.{last} idle"));
                    stop.cancel();
                }
            };
            let guest = Guest::installed(mac, silent, disk);
            let ended = wire.run_guest(mac, guest, &SystemClock, stop.clone(), idle).await;
            assert_eq!(ended, Ended::Stopped);
        })
    });
    for guest in guests.collect::<Vec<_>>() {
        guest.await.unwrap();
    }
    let log = log.lock().unwrap();
    for last in 1..=20 {
        let seen = log.iter().filter(|line| line.starts_with(&format!("127.64.0.{last} "))).count();
        assert_eq!(seen, 11, "{log:?}");
    }
}

#[tokio::test]
async fn guests_of_a_simulated_pool_install_and_then_run_what_they_installed() {
    let (wire, log) = start().await;
    let program = "bootflip".into();
    let options = DemoOptions { vms: 1, seed: 5, json: true, program, ..DemoOptions::default() };
    let plan = DemoPlan::new(&options);
    let mut pool = Pool::new(5, Release::V8_2);
    let uuid = pool.add_vm(VmSpec { macs: vec![plan.vms[0].mac], ..VmSpec::default() });
    let mut sim = SimServer::start(pool, SimOptions::default()).unwrap();
    let (sender, mut happened) = tokio::sync::mpsc::channel(64);
    let guests = Arc::new(Guests::new(plan, std::slice::from_ref(&uuid), wire, sim.pool.clone(), sender));
    let person = |act: PersonAct| sim.pool.with(|pool, now| pool.person(now, &uuid, &act)).unwrap();

    person(PersonAct::SetDomainType("hvm".to_owned()));
    person(PersonAct::SetBootParams([("order".to_owned(), "n".to_owned())].into()));
    person(PersonAct::Start);
    guests.start(sim.starts.recv().await.unwrap());
    let mut moments = vec![];
    while moments.last() != Some(&Moment::At(Stage::Done)) {
        let Happened { vm, attempt, moment } = happened.recv().await.unwrap();
        assert_eq!((vm, attempt), (0, 1));
        moments.push(moment);
    }
    assert_eq!((moments[0], moments.len()), (Moment::HvmRuns, 7));
    let truth = || sim.pool.with(|pool, _| pool.truth(&uuid)).unwrap();
    until(|| truth().power_state == "Halted").await;

    person(PersonAct::SetDomainType("pv".to_owned()));
    person(PersonAct::Start);
    guests.start(sim.starts.recv().await.unwrap());
    until(|| guests.booted_domid(0).is_some()).await;
    assert_eq!(guests.booted_domid(0), truth().domain.map(|domain| domain.domid));
    assert!(log.lock().unwrap().last().unwrap().ends_with("POST /r/u/booted"));
}

/// Waits for what other tasks bring about.
async fn until(check: impl Fn() -> bool) {
    let wait = async {
        while !check() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it never came");
}

/// Notes signs and refuses the rest.
#[derive(Debug, Default)]
struct Signs(Mutex<Vec<Sign>>);

impl Sink for Signs {
    fn noted(&self, _: Noted) {}

    fn going(&self, _: &Arc<Going>) {}

    fn seen(&self, seen: Seen) {
        self.0.lock().unwrap().push(seen.sign);
    }

    fn transferred(&self, _: Transfer) {}

    fn answer_fetched<'a>(
        &'a self,
        _: TokenHash,
        _: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(async { Err(Unavailable) })
    }

    fn report(&self, _: Report) -> BoxFuture<'_, ReportAnswer> {
        Box::pin(async { ReportAnswer::Unknown })
    }
}

#[tokio::test]
async fn guests_get_their_leases_from_our_own_dhcp_server() {
    let server_port = udp_on_lo(Ipv4Addr::UNSPECIFIED).local_addr().unwrap().port();
    let config = WireConfig { device: "lo".to_owned(), client_port: 0, server_port, tftp_port: 1 };
    let wire = Arc::new(Wire::bind(config).unwrap());
    let range = (Ipv4Addr::new(127, 64, 0, 10), Ipv4Addr::new(127, 64, 0, 20));
    let own = DhcpPool {
        netmask: Ipv4Addr::new(255, 255, 0, 0),
        lease: Duration::from_secs(600),
        ..crate::dhcp::pool(range.0.octets(), range.1.octets())
    };
    let mode = DhcpMode::Server(DhcpServer { own, relayed: vec![] });
    let interface = DhcpInterface {
        server_port,
        client_port: wire.client_port().unwrap(),
        proxy_port: 0,
        ..crate::dhcp::interface("lo", mode, Ipv4Addr::LOCALHOST)
    };
    let (gate, signs) = (Gate::default(), Arc::new(Signs::default()));
    let mac = MacAddr::new([2, 0, 0, 0, 0, 9]);
    gate.update(|table| {
        table.publish(Machine { mac, name: "web".to_owned(), vm_uuid: "u".to_owned(), armed: None });
    });
    let shared = Shared {
        gate,
        sink: Arc::clone(&signs) as Arc<dyn Sink>,
        store: Arc::new(MemoryStore::new()),
        clock: Arc::new(SystemClock),
    };
    // A port where nobody listens: what the guest says of it shows the URL that it was given.
    let boot =
        BootServices { url: Some("http://127.0.0.1:9".to_owned()), loader: Some("undionly.kpxe".to_owned()) };
    let server = bind(interface, boot, shared).await.unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(server.run(stop.clone()));
    let running = Arc::clone(&wire);
    tokio::spawn(async move { running.run(CancellationToken::new()).await });

    let disk = InstalledSystem { booted_url: String::new(), hostname: String::new() };
    let silent = GuestPlan { mishap: Mishap::SystemKeepsSilent, ..plan(Firmware::Ipxe) };
    let mut leases = vec![];
    for guest in [Guest::netboot(mac, plan(Firmware::Ipxe)), Guest::installed(mac, silent, disk)] {
        let over = CancellationToken::new();
        let mut screen = String::new();
        let watch = |told| match told {
            Told::Event(Event::Leased(address)) => leases.push(address),
            Told::Event(Event::NoBootableDevice(reason)) => {
                screen = reason;
                over.cancel();
            }
            Told::Event(Event::Idle) => over.cancel(),
            Told::Event(_) | Told::AsksOnce(_) | Told::Erased | Told::Installed(_) => {}
        };
        let run = wire.run_guest(mac, guest, &SystemClock, over.clone(), watch);
        let ended = tokio::time::timeout(Duration::from_secs(20), run).await;
        assert_eq!(ended, Ok(Ended::Stopped), "{:?}", signs.0.lock().unwrap());
        assert!(
            screen.is_empty() || screen.starts_with(&format!("http://127.0.0.1:9/b/{mac}: ")),
            "{screen}"
        );
    }
    assert_eq!(leases.len(), 2);
    assert!(leases[0] == leases[1] && (range.0..=range.1).contains(&leases[0]), "{leases:?}");
    assert!(signs.0.lock().unwrap().contains(&Sign::Lease));
    stop.cancel();
}

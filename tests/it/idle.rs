//! The server that has nothing to do: how much memory it takes, and that it answers DHCP from memory while disk and
//! pool are stalled.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bootflip::{
    app,
    clock::{Clock, SystemClock},
    machine::MacAddr,
    sim::{
        faults::{Fault, FaultKind, Trigger},
        guest::dhcp::{Client, Personality, Step},
        pool::VmSpec,
    },
};
use socket2::{Domain, Socket, Type};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep, timeout},
};

use crate::common::site::{LONG, Plan, Site, vm};

/// The goal is 64 MiB for the release build; this is the debug build, whose code and stacks are larger.
const LIMIT_KIB: u64 = 96 << 10;
/// A client that waits longer has sent its DISCOVER again. SQLite alone waits five seconds for a locked database.
const PROMPT: Duration = Duration::from_secs(1);

fn vms(count: u16) -> Vec<VmSpec> {
    (1..=count).map(|number| vm(&format!("vm-{number}"), number)).collect()
}

/// A line of /proc/PID/status, in KiB.
fn memory(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:"))).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_server_with_a_thousand_known_vms_stays_small() {
    let mut site = Site::new(Plan::of(vms(1000)));
    site.serve().await;
    site.until_known(1000).await;
    let until = Instant::now() + LONG;
    // Idle: the first events, every VM among them, are read, and what it takes does not change.
    let (mut last, mut same) = (0, 0);
    while same < 10 || site.calls("event.from") < 1 {
        let now = memory(site.pid(), "VmRSS");
        same = if now == last { same + 1 } else { 0 };
        last = now;
        assert!(Instant::now() < until, "it is never idle: {}", site.log());
        sleep(Duration::from_millis(100)).await;
    }
    let peak = memory(site.pid(), "VmHWM");
    println!(
        "resident with 1,000 known VMs: {:.1} MiB, peak {:.1} MiB",
        last as f64 / 1024.0,
        peak as f64 / 1024.0
    );
    assert!(last <= LIMIT_KIB, "{last} KiB");
}

/// DHCP clients on `lo` that share a socket.
struct Clients {
    socket: UdpSocket,
    server: SocketAddr,
}

impl Clients {
    fn bind(server_port: u16) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.bind_device(Some(b"lo")).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
        let server = SocketAddr::from((Ipv4Addr::LOCALHOST, server_port));
        Self { socket: UdpSocket::from_std(socket.into()).unwrap(), server }
    }

    async fn send(&self, step: Step) {
        let Step::Send(packet, _) = step else { panic!("{step:?}") };
        self.socket.send_to(&packet, self.server).await.unwrap();
    }

    /// The next packet, with the MAC that it is for.
    async fn next(&self) -> (MacAddr, Vec<u8>) {
        let mut buffer = vec![0; 2048];
        let length = self.socket.recv(&mut buffer).await.unwrap();
        buffer.truncate(length);
        (MacAddr::new(buffer[28..34].try_into().unwrap()), buffer)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn discover_is_answered_from_memory_while_disk_and_pool_are_stalled() {
    const COUNT: u16 = 50;
    let mut site = Site::new(Plan::of(vms(COUNT)));
    let clients = Clients::bind(site.ports[0]);
    let port = clients.socket.local_addr().unwrap().port();
    site.reconfigure(|text| {
        let (head, rest) = text.split_once("client_port = ").unwrap();
        format!("{head}client_port = {port}\n{}", rest.split_once('\n').unwrap().1)
    });
    site.serve().await;
    site.until_known(usize::from(COUNT)).await;
    let hang = Trigger { times: u32::MAX, ..Trigger::first("*") };
    site.sim.add_fault(Fault { name: "hang".into(), when: hang, kind: FaultKind::Hang });
    let _hanging = site.command(&["vm", "list"]).spawn().unwrap();
    site.fired("hang").await;
    // Another process that holds the write lock: commits of the server hang, until SQLite gives up.
    let disk = rusqlite::Connection::open(site.path("state").join(app::DATABASE)).unwrap();
    disk.execute_batch("BEGIN IMMEDIATE").unwrap();

    let macs: Vec<MacAddr> = vms(COUNT).iter().map(|vm| vm.macs[0]).collect();
    let client = |mac| Client::new(Personality::Ipxe, mac, 1, Duration::from_secs(1));
    let mut first = client(macs[0]);
    clients.send(first.start(SystemClock.now())).await;
    let (_, offer) = timeout(LONG, clients.next()).await.unwrap();
    clients.send(first.handle(&offer, SystemClock.now())).await; // its lease must be stored before the ACK
    let mut slowest = Duration::ZERO;
    for &wanted in &macs[1..] {
        let mut other = client(wanted);
        let begun = Instant::now();
        clients.send(other.start(SystemClock.now())).await;
        let (mac, packet) = timeout(LONG, clients.next()).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        assert_eq!(mac, wanted, "an ACK without a stored lease");
        assert!(matches!(other.handle(&packet, SystemClock.now()), Step::Send(..)), "no OFFER");
    }
    println!("{} OFFERs while disk and pool were stalled; the slowest took {slowest:?}", COUNT - 1);
    assert!(slowest < PROMPT, "{slowest:?}");

    disk.execute_batch("ROLLBACK").unwrap();
    let bound = async {
        loop {
            let wait = timeout(PROMPT, clients.next()).await;
            let step = match wait {
                Ok((mac, packet)) if mac == macs[0] => first.handle(&packet, SystemClock.now()),
                Ok(_) => continue,
                Err(_) => first.timer(SystemClock.now()),
            };
            match step {
                Step::Bound(_) => return,
                Step::GaveUp => {
                    first = client(macs[0]);
                    clients.send(first.start(SystemClock.now())).await;
                }
                Step::Send(..) => clients.send(step).await,
                Step::Wait => {}
            }
        }
    };
    timeout(LONG, bound).await.expect("a lease once the disk works");
}

//! TFTP beside dnsmasq, tftpd-hpa and atftpd, all at once on their own addresses of one loopback device.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    thread,
    time::Duration,
};

use crate::{
    figures::{Better, Contest, Goal, Measure, Rival, Sample},
    options::Extent,
    ours::Site,
    peers::TftpPeer,
    process::Server,
    scene::Scene,
    tftp_load::{Fetched, Load, Loss, fetch},
};

/// What fits into an Ethernet frame.
const BLOCK: usize = 1468;
const PORT: u16 = 69;
const MIB: u64 = 1 << 20;
/// The longest that one server may take for a round of whole transfers.
const LIMIT: Duration = Duration::from_secs(30);
/// The longest that a lossy transfer may take; what is not done then counts as this.
const LOSSY_LIMIT: Duration = Duration::from_secs(60);
/// Where the clients are.
const CLIENTS: Ipv4Addr = Ipv4Addr::new(127, 0, 1, 1);

/// A load beside the same load of the peers.
#[derive(Debug, Clone, Copy)]
struct Work {
    clients: usize,
    window: u64,
    mib: u64,
    goals: &'static [Goal],
}

const fn goal(of: Measure, beside: Rival, bound: f64) -> Goal {
    Goal { of, beside, bound }
}

const WORKS: [Work; 4] = [
    Work { clients: 1, window: 1, mib: 16, goals: &[goal(Measure::Value, Rival::Best, 1.0)] },
    Work { clients: 1, window: 16, mib: 64, goals: &[] },
    Work { clients: 32, window: 1, mib: 8, goals: &[goal(Measure::Value, Rival::Best, 1.0)] },
    Work {
        clients: 32,
        window: 16,
        mib: 16,
        goals: &[
            goal(Measure::Value, Rival::Peer("dnsmasq"), 3.0),
            goal(Measure::Value, Rival::Best, 1.5),
            goal(Measure::Cpu, Rival::Best, 0.5),
        ],
    },
];

/// Ours and the peers, running.
struct Field {
    site: Site,
    peers: Vec<Server>,
    /// Of each, ours first.
    at: Vec<SocketAddrV4>,
}

impl Field {
    fn start(scene: &Scene, ours: Site, address: Ipv4Addr) -> io::Result<Self> {
        scene.file("small", 2000)?;
        let mut at = vec![SocketAddrV4::new(address, PORT)];
        let mut peers = Vec::new();
        for (number, peer) in (21..).zip(TftpPeer::ALL) {
            let address = Ipv4Addr::new(127, 0, 0, number);
            at.push(SocketAddrV4::new(address, PORT));
            let mut server = peer.start(scene, address)?;
            let hello = load(SocketAddrV4::new(address, PORT), "small", 2000, 1, 1);
            let hello = Load { limit: Duration::from_millis(200), ..hello };
            server.until("it gives out no file", || fetch(&hello).is_ok_and(|fetched| fetched.whole == 1))?;
            peers.push(server);
        }
        Ok(Self { site: ours, peers, at })
    }

    fn servers(&self) -> impl Iterator<Item = (&Server, SocketAddrV4)> {
        std::iter::once(&self.site.server).chain(&self.peers).zip(self.at.iter().copied())
    }

    fn names(&self) -> Vec<String> {
        self.servers().map(|(server, _)| server.name.clone()).collect()
    }
}

fn load(server: SocketAddrV4, file: &str, length: u64, clients: usize, window: u64) -> Load {
    let file = file.to_owned();
    Load { server, from: CLIENTS, file, length, clients, block: BLOCK, window, loss: None, limit: LIMIT }
}

/// All TFTP contests. `site` serves at `address`.
pub(crate) fn contests(
    scene: &Scene,
    extent: Extent,
    site: Site,
    address: Ipv4Addr,
) -> io::Result<Vec<Contest>> {
    let field = Field::start(scene, site, address)?;
    let mut contests = Vec::new();
    for work in WORKS {
        contests.push(whole(scene, extent, &field, work)?);
    }
    contests.push(lossy(scene, extent, &field)?);
    Ok(contests)
}

fn whole(scene: &Scene, extent: Extent, field: &Field, work: Work) -> io::Result<Contest> {
    let mib = if extent.quick { work.mib.div_ceil(4) } else { work.mib };
    let (name, length) = (format!("tftp-{mib}"), mib * MIB);
    scene.file(&name, length)?;
    let mut servers = field.names();
    let mut rounds = Vec::new();
    // The first round warms up: caches, and what a server does once.
    for round in 0..=extent.rounds {
        let mut samples = Vec::new();
        for (number, (server, at)) in field.servers().enumerate() {
            let load = load(at, &name, length, work.clients, work.window);
            let (fetched, used) = server.during(|| fetch(&load));
            let fetched = fetched?;
            if let (Some(name), true) = (servers.get_mut(number), round == 0 && fetched.window < work.window)
            {
                name.push_str(" (window 1)");
            }
            samples.push(judged(&fetched, work.clients).map(|()| {
                let bytes = fetched.bytes as f64;
                used.speed(bytes / 1e6, bytes / 1e9)
            }));
        }
        if round > 0 {
            rounds.push(samples);
        }
    }
    Ok(Contest {
        figure: format!("TFTP {} clients, window {}, MB/s", work.clients, work.window)
            .replace("1 clients", "1 client"),
        better: Better::More,
        work: "GB",
        servers,
        rounds,
        goals: work.goals.to_vec(),
    })
}

fn judged(fetched: &Fetched, clients: usize) -> Result<(), String> {
    if fetched.whole == clients {
        return Ok(());
    }
    let why = fetched.failure.as_deref().unwrap_or("no reason told");
    Err(format!("{} of {clients} have their file: {why}", fetched.whole))
}

/// Every server waits for timers most of the time here, so they run side by side: a round takes as long as the
/// slowest. A server that leaves clients without their file gets the limit as its time.
fn lossy(scene: &Scene, extent: Extent, field: &Field) -> io::Result<Contest> {
    const NUMBER: usize = 8;
    let (name, length) = if extent.quick { ("tftp-lossy-less", MIB / 4) } else { ("tftp-lossy", MIB / 2) };
    scene.file(name, length)?;
    let mut rounds = Vec::new();
    for round in 0..extent.lossy_rounds {
        let loss = Some(Loss { seed: 0x5eed + 2 * round as u64, per_mille: 10 });
        let samples: Vec<io::Result<Result<Sample, String>>> = thread::scope(|scope| {
            let running: Vec<_> = field
                .servers()
                .map(|(server, at)| {
                    scope.spawn(move || {
                        let load = Load { loss, limit: LOSSY_LIMIT, ..load(at, name, length, NUMBER, 16) };
                        let (fetched, used) = server.during(|| fetch(&load));
                        fetched.map(|fetched| {
                            let whole = fetched.whole == NUMBER;
                            let value = if whole { used.seconds } else { LOSSY_LIMIT.as_secs_f64() };
                            if !whole {
                                eprintln!(
                                    "  {}: {}",
                                    server.name,
                                    judged(&fetched, NUMBER).err().unwrap_or_default()
                                );
                            }
                            Ok(Sample { value, cpu: None, peak: used.peak })
                        })
                    })
                })
                .collect();
            let joined = |thread: thread::ScopedJoinHandle<'_, io::Result<Result<Sample, String>>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(joined).collect()
        });
        rounds.push(samples.into_iter().collect::<io::Result<_>>()?);
    }
    Ok(Contest {
        figure: "TFTP 8 clients, 1 % loss, window 16, seconds".to_owned(),
        better: Better::Less,
        work: "GB",
        servers: field.names(),
        rounds,
        goals: vec![goal(Measure::Value, Rival::Best, 0.5)],
    })
}

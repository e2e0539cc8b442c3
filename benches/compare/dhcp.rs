//! DHCP beside Kea and dnsmasq: whole exchanges (DISCOVER, OFFER, REQUEST, ACK) of clients that were never seen
//! before, by perfdhcp, on a wire between two namespaces.
//!
//! perfdhcp offers a rate and waits for nobody, so a rate is searched for each server at which most exchanges come to
//! their end. A server begins every run with an empty book: nobody renews what it wrote in the run before.

use std::{
    fs, io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::{Receiver, Sender, channel},
};

use crate::{
    figures::{Better, Contest, Goal, Measure, Rival, Sample},
    network,
    options::Extent,
    ours::{Ours, Site},
    process::Server,
    scene::Scene,
};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const ENDS: [&str; 2] = ["10.9.0.1/16", "10.9.0.2/16"];
/// The addresses to lease, for every server.
const RANGE: [&str; 2] = ["10.9.1.0", "10.9.255.250"];
const NETMASK: &str = "255.255.0.0";
/// As many clients as there are addresses, or a little less.
const CLIENTS: usize = 65_000;
/// From one offered rate to the next while the best is searched.
const STEP: f64 = 1.4;
/// A server that brings fewer of the offered exchanges to their end is past its best.
const PAST: f64 = 0.7;
/// Steps of a search, at most.
const STEPS: usize = 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Candidate {
    Ours,
    Kea,
    Dnsmasq,
}

impl Candidate {
    const ALL: [Self; 3] = [Self::Ours, Self::Kea, Self::Dnsmasq];

    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "bootflip",
            Self::Kea => "Kea",
            Self::Dnsmasq => "dnsmasq",
        }
    }

    /// Where the search begins.
    const fn hint(self) -> f64 {
        match self {
            Self::Ours | Self::Kea => 3000.0,
            Self::Dnsmasq => 300.0,
        }
    }
}

/// A run of perfdhcp.
#[derive(Debug, Clone, Copy)]
struct Offered {
    /// Exchanges begun a second.
    rate: f64,
    seconds: u32,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
struct Came {
    /// Exchanges that came to their end, a second.
    rate: f64,
    /// All of them.
    count: f64,
}

/// The contest.
pub(crate) fn contest(scene: &Scene, extent: Extent) -> io::Result<Contest> {
    let (ask, asked) = channel();
    let (answer, answered) = channel();
    let perfdhcp = scene.peer("kea-admin/usr/sbin/perfdhcp");
    let libraries = libraries(scene);
    let client = move || perform(&perfdhcp, &libraries, &asked, &answer);
    let server = || {
        let wire = Wire { ask, answered };
        wire.contest(scene, extent)
    };
    let (contest, ()) = network::wired(ENDS, server, client)?;
    contest
}

fn libraries(scene: &Scene) -> String {
    let folder = scene.peer("kea-common/usr/lib");
    let own = fs::read_dir(&folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    own.filter(|path| path.to_string_lossy().ends_with("linux-gnu"))
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(":")
}

/// Runs perfdhcp at the clients' end, as often as asked.
fn perform(program: &Path, libraries: &str, asked: &Receiver<Offered>, answer: &Sender<io::Result<Came>>) {
    while let Ok(offered) = asked.recv() {
        let output = Command::new(program)
            .env("LD_LIBRARY_PATH", libraries)
            .args(["-4", "-l", "wire0", "-W", "500000", "-r"])
            .arg(format!("{:.0}", offered.rate))
            .args(["-R", &CLIENTS.to_string(), "-p", &offered.seconds.to_string(), &SERVER.to_string()])
            .output();
        if answer.send(output.and_then(|output| read(&String::from_utf8_lossy(&output.stdout)))).is_err() {
            return;
        }
    }
}

/// Reads what perfdhcp prints.
fn read(text: &str) -> io::Result<Came> {
    let number = |line: &str, before: &str| -> Option<f64> {
        line.trim().strip_prefix(before)?.split_whitespace().next()?.parse().ok()
    };
    let rate = text.lines().find_map(|line| number(line, "Rate: "));
    let exchanges = text.split_once("REQUEST-ACK");
    let count =
        exchanges.and_then(|(_, rest)| rest.lines().find_map(|line| number(line, "received packets: ")));
    match (rate, count) {
        (Some(rate), Some(count)) => Ok(Came { rate, count }),
        (_, _) => Err(io::Error::other(format!("perfdhcp said: {text}"))),
    }
}

/// The servers' end.
struct Wire {
    ask: Sender<Offered>,
    answered: Receiver<io::Result<Came>>,
}

/// A running server, whoever's.
enum Running {
    Ours(Box<Site>),
    Peer(Server),
}

impl Running {
    const fn server(&self) -> &Server {
        match self {
            Self::Ours(site) => &site.server,
            Self::Peer(server) => server,
        }
    }
}

impl Wire {
    fn contest(&self, scene: &Scene, extent: Extent) -> io::Result<Contest> {
        let seconds = if extent.quick { 2 } else { 4 };
        let mut best = Vec::new();
        for candidate in Candidate::ALL {
            best.push(self.search(scene, candidate)?);
        }
        let mut rounds = Vec::new();
        for _ in 0..extent.rounds.min(3) {
            let mut samples = Vec::new();
            for (candidate, rate) in Candidate::ALL.into_iter().zip(&best) {
                let mut taken = Vec::new();
                for rate in [*rate, rate * 1.15] {
                    taken.push(self.run(scene, candidate, Offered { rate, seconds })?);
                }
                let most = taken.into_iter().max_by(|one, other| one.value.total_cmp(&other.value));
                samples.push(most.ok_or_else(|| "nothing was offered".to_owned()));
            }
            rounds.push(samples);
        }
        let goal = |beside, bound| Goal { of: Measure::Value, beside: Rival::Peer(beside), bound };
        Ok(Contest {
            figure: "DHCP new leases, exchanges/s".to_owned(),
            better: Better::More,
            work: "1000 exchanges",
            servers: Candidate::ALL.map(|candidate| candidate.name().to_owned()).to_vec(),
            rounds,
            goals: vec![goal("Kea", 1.0), goal("dnsmasq", 10.0)],
        })
    }

    /// The offered rate at which most exchanges come to their end.
    fn search(&self, scene: &Scene, candidate: Candidate) -> io::Result<f64> {
        let mut rate = candidate.hint();
        let (mut best, mut most) = (rate, 0.0);
        let mut falling = false;
        for step in 0..STEPS {
            let came = self.run(scene, candidate, Offered { rate, seconds: 2 })?;
            eprintln!("  {}: {:.0} of {rate:.0} exchanges/s", candidate.name(), came.value);
            if came.value > most {
                (best, most) = (rate, came.value);
            }
            let past = came.value < rate * PAST;
            falling |= past && step == 0;
            // Up until it is past its best; where the first rate was, down until it is not.
            if past != falling {
                break;
            }
            rate = if falling { rate / STEP } else { rate * STEP };
        }
        Ok(best)
    }

    fn run(&self, scene: &Scene, candidate: Candidate, offered: Offered) -> io::Result<Sample> {
        let running = start(scene, candidate)?;
        let (came, used) = running.server().during(|| {
            self.ask.send(offered).map_err(io::Error::other)?;
            self.answered.recv().map_err(io::Error::other)?
        });
        let came = came?;
        // Used by exchanges that came to nothing, too.
        let cpu = (came.count > 0.0).then(|| used.cpu / (came.count / 1e3));
        Ok(Sample { value: came.rate, cpu, peak: used.peak })
    }
}

/// Starts a server with an empty book, and waits until it listens.
fn start(scene: &Scene, candidate: Candidate) -> io::Result<Running> {
    let mut running = match candidate {
        Candidate::Ours => return ours(scene).map(|site| Running::Ours(Box::new(site))),
        Candidate::Kea => kea(scene)?,
        Candidate::Dnsmasq => dnsmasq(scene)?,
    };
    // Port 67 in hexadecimal, in the namespace of this thread.
    let listens =
        || fs::read_to_string("/proc/thread-self/net/udp").is_ok_and(|sockets| sockets.contains(":0043 "));
    running.until("nothing listens on port 67", listens)?;
    Ok(Running::Peer(running))
}

fn ours(scene: &Scene) -> io::Result<Site> {
    let [first, last] = RANGE;
    // perfdhcp sends as a relay does.
    let more = format!(
        r#"[[dhcp]]
interface = "wire0"
mode = "server"
address = "{SERVER}"
relays = ["{CLIENT}"]
[dhcp.server]
range = ["{first}", "{last}"]
netmask = "{NETMASK}"
lease_to_strangers = true
keep_for_jobs = 0
"#
    );
    Site::start(scene, &Ours { address: SERVER, http: super::http::PORT, more, arguments: 8 })
}

fn kea(scene: &Scene) -> io::Result<Server> {
    let folder = scene.fresh("kea")?;
    let [first, last] = RANGE;
    let configuration = serde_json::json!({"Dhcp4": {
        "interfaces-config": {"interfaces": ["wire0"], "dhcp-socket-type": "udp"},
        "lease-database": {"type": "memfile", "persist": true, "name": folder.join("leases.csv")},
        "multi-threading": {"enable-multi-threading": true, "thread-pool-size": 2, "packet-queue-size": 64},
        "valid-lifetime": 3600,
        "subnet4": [{"id": 1, "subnet": "10.9.0.0/16", "pools": [{"pool": format!("{first} - {last}")}]}],
        "loggers": [{"name": "kea-dhcp4", "severity": "ERROR", "output_options": [{"output": "stdout"}]}],
    }});
    let file = folder.join("kea.json");
    fs::write(&file, configuration.to_string())?;
    let place = folder.display().to_string();
    let environment = [
        ("LD_LIBRARY_PATH", libraries(scene)),
        ("KEA_PIDFILE_DIR", place.clone()),
        ("KEA_LOCKFILE_DIR", place),
    ];
    let arguments = ["-c".to_owned(), file.display().to_string()];
    let program = scene.peer("kea-dhcp4-server/usr/sbin/kea-dhcp4");
    Server::start_with(Candidate::Kea.name(), &program, &arguments, &scene.log("kea"), &environment)
}

fn dnsmasq(scene: &Scene) -> io::Result<Server> {
    let folder = scene.fresh("dnsmasq")?;
    let [first, last] = RANGE;
    let arguments = [
        "--no-daemon",
        "--conf-file=/dev/null",
        "--port=0",
        "--user=root",
        "--log-facility=/dev/null",
        "--interface=wire0",
        "--bind-interfaces",
        "--no-ping",
        &format!("--dhcp-lease-max={CLIENTS}"),
        &format!("--dhcp-leasefile={}", folder.join("leases").display()),
        &format!("--dhcp-range={first},{last},{NETMASK},1h"),
    ]
    .map(str::to_owned);
    let program = PathBuf::from("dnsmasq");
    Server::start(Candidate::Dnsmasq.name(), &program, &arguments, &scene.log("dnsmasq-dhcp"))
}

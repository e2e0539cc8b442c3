//! HTTP beside nginx, and the memory of many downloads at once.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use crate::{
    figures::{Better, Contest, Goal, Measure, Rival, Row},
    http_load::{Answered, Load, Until, fetch},
    options::Extent,
    ours::{Site, get},
    peers::nginx,
    process::{Server, Used},
    scene::Scene,
    tftp_load::{self, word},
};

/// The port of both.
pub(crate) const PORT: u16 = 8080;
const NGINX: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 30);
/// How many download at once where memory is measured.
const CROWD: usize = 200;
/// What they may cost, in MiB.
const CROWD_GOAL: f64 = 64.0;
/// The longest that a crowd by TFTP downloads.
const CROWD_TIME: Duration = Duration::from_secs(10);
const MB: u64 = 1_000_000;

const GOALS: [Goal; 2] = [
    Goal { of: Measure::Value, beside: Rival::Peer("nginx"), bound: 1.0 },
    Goal { of: Measure::Cpu, beside: Rival::Peer("nginx"), bound: 1.2 },
];

/// Lays the files that the machine boots from.
pub(crate) fn lay(scene: &Scene) -> io::Result<()> {
    scene.file("kernel", 512 * MB)?;
    scene.file("initrd", 60 * MB)?;
    // For the length of the boot script alone.
    scene.file("initrd-2", 1000)?;
    scene.file("initrd-3", 1000)
}

/// What of what is fetched, and what that comes to.
struct Work {
    figure: String,
    /// Processor time is counted for this.
    work: &'static str,
    /// Of ours, and of nginx.
    paths: [String; 2],
    clients: usize,
    until: Until,
    /// The figure for a second, and the units that processor time is counted for, of what was answered.
    worth: fn(&Answered) -> (f64, f64),
}

/// All HTTP contests. The server's machine must be armed; `script` and `kernel` are paths of its boot.
pub(crate) fn contests(
    scene: &Scene,
    extent: Extent,
    site: &Site,
    at: SocketAddrV4,
    [script, kernel]: [&str; 2],
) -> io::Result<Vec<Contest>> {
    let mut nginx = nginx(scene, NGINX, PORT)?;
    let theirs = SocketAddrV4::new(NGINX, PORT);
    let text = get(at, script)?;
    let text = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    std::fs::write(scene.files().join("script"), text)?;
    nginx.until("it gives out no file", || {
        get(theirs, "/script").is_ok_and(|answer| answer.contains(" 200 "))
    })?;
    for (at, path) in [(at, kernel), (theirs, "/kernel")] {
        right(at, path)?;
    }
    let speed: fn(&Answered) -> (f64, f64) =
        |answered| (answered.bytes as f64 / 1e6, answered.bytes as f64 / 1e9);
    let requests: fn(&Answered) -> (f64, f64) =
        |answered| (answered.answers as f64, answered.answers as f64 / 1e3);
    let seconds = Duration::from_secs(if extent.quick { 1 } else { 3 });
    // One download takes a fifth of a second: too short to tell servers apart, so they are repeated.
    let large = |clients: usize| Work {
        figure: format!("HTTP 512 MB, {clients} clients, MB/s").replace("1 clients", "1 client"),
        work: "GB",
        paths: [kernel.to_owned(), "/kernel".to_owned()],
        clients,
        until: Until::Over(seconds),
        worth: speed,
    };
    let small = Work {
        figure: format!("HTTP rendered {:.0} kB, 16 clients, requests/s", text.len() as f64 / 1e3),
        work: "1000 requests",
        paths: [script.to_owned(), "/script".to_owned()],
        clients: 16,
        until: Until::Over(seconds),
        worth: requests,
    };
    let servers = [(&site.server, at), (&nginx, theirs)];
    [large(1), large(8), small].into_iter().map(|work| contest(extent, servers, &work)).collect()
}

fn contest(extent: Extent, servers: [(&Server, SocketAddrV4); 2], work: &Work) -> io::Result<Contest> {
    let mut rounds = Vec::new();
    for round in 0..=extent.rounds {
        let mut samples = Vec::new();
        for ((server, at), path) in servers.into_iter().zip(&work.paths) {
            let load = Load {
                server: at,
                path: path.clone(),
                clients: work.clients,
                until: work.until,
                discard: true,
            };
            let (answered, used): (_, Used) = server.during(|| fetch(&load));
            samples.push(answered.map_err(|error| error.to_string()).map(|answered| {
                let (amount, units) = (work.worth)(&answered);
                used.speed(amount, units)
            }));
        }
        // The first one warms up.
        if round > 0 {
            rounds.push(samples);
        }
    }
    Ok(Contest {
        figure: work.figure.clone(),
        better: Better::More,
        work: work.work,
        servers: servers.map(|(server, _)| server.name.clone()).to_vec(),
        rounds,
        goals: GOALS.to_vec(),
    })
}

/// What is thrown away later is looked at once.
fn right(at: SocketAddrV4, path: &str) -> io::Result<()> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(at)?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|four| four == b"\r\n\r\n").and_then(|end| answer.get(end + 4..));
    let body = body.filter(|body| body.len() as u64 == 512 * MB).unwrap_or_default();
    if !body.is_empty() && body.chunks_exact(4).zip(0..).all(|(found, at)| found == word(at)) {
        return Ok(());
    }
    Err(io::Error::other(format!("{at} does not give out {path} as it is")))
}

/// What many downloads at once cost above an idle server. The server must have done nothing yet.
pub(crate) fn crowd(
    scene: &Scene,
    extent: Extent,
    site: &Site,
    at: SocketAddrV4,
    kernel: &str,
) -> io::Result<Vec<Row>> {
    let ((), idle) = site.server.during(|| std::thread::sleep(Duration::from_millis(300)));
    let idle = idle.peak;
    let path = kernel.replace("/kernel", "/initrd");
    // Copied in small pieces, so that the clients are slower than the server and every connection is full.
    let load = Load { server: at, path, clients: CROWD, until: Until::Once, discard: false };
    let (answered, used) = site.server.during(|| fetch(&load));
    if answered?.answers != CROWD as u64 {
        return Err(io::Error::other("not every download is whole"));
    }
    let by_http = Row::bound(
        "memory above idle, 200 HTTP clients of 60 MB, MiB",
        used.peak - idle,
        Better::Less,
        CROWD_GOAL,
    );
    let length = 60 * MB;
    scene.file("tftp-crowd", length)?;
    let load = tftp_load::Load {
        server: SocketAddrV4::new(*at.ip(), 69),
        from: Ipv4Addr::new(127, 0, 1, 1),
        file: "tftp-crowd".to_owned(),
        length,
        clients: CROWD,
        block: 1468,
        window: 16,
        loss: None,
        limit: if extent.quick { CROWD_TIME / 4 } else { CROWD_TIME },
    };
    let (fetched, used) = site.server.during(|| tftp_load::fetch(&load));
    let fetched = fetched?;
    if fetched.whole == 0 && fetched.bytes == 0 {
        return Err(io::Error::other(fetched.failure.unwrap_or_default()));
    }
    let by_tftp = Row::bound(
        "memory above idle, 200 TFTP clients of 60 MB, MiB",
        used.peak - idle,
        Better::Less,
        CROWD_GOAL,
    );
    Ok(vec![by_http, by_tftp])
}

//! `make bench`: the boot services beside the servers that people use today, on the same work in one run.
//!
//! Rounds are interleaved (ours, peer, ours, peer, …) and medians are compared: the machine may have other work. What
//! is measured is the shipped binary, `bootflip serve`, with a configuration as a user writes it. Everything runs in
//! network namespaces that go with this program, which ends what it started, by process id.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    missing_debug_implementations
)]

mod decode;
mod dhcp;
mod figures;
mod http;
mod http_load;
mod network;
mod options;
mod ours;
mod peers;
mod process;
mod scene;
mod tftp;
mod tftp_load;

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::Instant,
};

use figures::{Better, Contest, Row};
use options::{Extent, Options, Part, USAGE};
use ours::{Ours, Site};
use scene::Scene;

/// Where the peers and files are; `make bench` fills it.
const FOLDER: &str = "target/bench";
/// The results.
const RESULTS: &str = "target/bench.json";
/// Where ours listens, on loopback.
const OURS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 10);
/// The longest arguments that a kernel may have; they stand four times in the boot script, which is to have 10 kB.
const ARGUMENTS: usize = 2040;
/// Tells this program that it is to measure reading alone, in a process that has done nothing else.
const DECODE: &str = "BOOTFLIP_BENCH_DECODE";

fn main() -> ExitCode {
    if std::env::var_os(DECODE).is_some() {
        let decoded = decode::measure();
        eprintln!("  {decoded}");
        println!("{} {}", decoded.speed, decoded.share);
        return ExitCode::SUCCESS;
    }
    let Some(options) = Options::parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> io::Result<()> {
    if !nix::unistd::geteuid().is_root() {
        return Err(io::Error::other("it needs root, for network namespaces and low ports"));
    }
    let scene = Scene::new(Path::new(FOLDER)).map_err(|error| {
        io::Error::new(error.kind(), format!("{FOLDER}: {error}; run benches/prepare.sh {FOLDER}"))
    })?;
    let begun = Instant::now();
    let mut results = Results::default();
    for part in &options.parts {
        eprintln!("bench: {} …", part.name());
        let measured = match part {
            Part::Tftp => network::alone(|| tftp(&scene, options.extent))?,
            Part::Http => network::alone(|| http(&scene, options.extent))?,
            Part::Dhcp => dhcp::contest(&scene, options.extent).map(|contest| Results::of(vec![contest])),
            Part::Decode => decoded(),
        };
        match measured {
            Ok(measured) => results.add(measured),
            Err(error) => results.failures.push(format!("{} was not measured: {error}", part.name())),
        }
    }
    fs::write(RESULTS, figures::json(&results.rows))?;
    print!("\n{}", figures::table(&results.rows));
    println!(
        "\n{} rounds, medians; {} processors, load average {}; {:.0} s; {RESULTS}",
        options.extent.rounds,
        std::thread::available_parallelism().map_or(1, usize::from),
        fs::read_to_string("/proc/loadavg")?.split(' ').take(3).collect::<Vec<_>>().join(" "),
        begun.elapsed().as_secs_f64(),
    );
    for failure in &results.failures {
        println!("{failure}");
    }
    if results.failures.is_empty() { Ok(()) } else { Err(io::Error::other("not everything was measured")) }
}

#[derive(Debug, Default)]
struct Results {
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Results {
    fn of(contests: Vec<Contest>) -> Self {
        let rows = contests.iter().flat_map(Contest::rows).collect();
        Self { rows, failures: contests.iter().flat_map(Contest::failures).collect() }
    }

    fn add(&mut self, more: Self) {
        self.rows.extend(more.rows);
        self.failures.extend(more.failures);
    }
}

fn site(scene: &Scene) -> io::Result<Site> {
    http::lay(scene)?;
    Site::start(scene, &Ours { address: OURS, http: http::PORT, more: String::new(), arguments: ARGUMENTS })
}

fn tftp(scene: &Scene, extent: Extent) -> io::Result<Results> {
    tftp::contests(scene, extent, site(scene)?, OURS).map(Results::of)
}

fn http(scene: &Scene, extent: Extent) -> io::Result<Results> {
    let site = site(scene)?;
    let at = SocketAddrV4::new(OURS, http::PORT);
    let (script, kernel) = site.arm()?;
    let crowd = http::crowd(scene, extent, &site, at, &kernel)?;
    let mut results = Results::of(http::contests(scene, extent, &site, at, [&script, &kernel])?);
    results.rows.extend(crowd);
    Ok(results)
}

fn decoded() -> io::Result<Results> {
    let output = Command::new(std::env::current_exe()?).env(DECODE, "1").stderr(Stdio::inherit()).output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [speed, share] = numbers.as_slice() else {
        return Err(io::Error::other(output.status.to_string()));
    };
    let rows = vec![
        Row::bound("xml-rpc decode MB/s", *speed, Better::More, decode::SLOWEST),
        Row::bound("xml-rpc decode, memory in bodies", *share, Better::Less, decode::LARGEST),
    ];
    Ok(Results { rows, failures: Vec::new() })
}

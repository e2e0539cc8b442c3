//! bootflip as a user runs it: `bootflip serve` with a configuration, a simulated pool behind it, and a VM whose
//! installation has begun, so that the boot gate is open.

use std::{
    fs, io,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use crate::{process::Server, scene::Scene};

/// The program that is measured.
const PROGRAM: &str = env!("CARGO_BIN_EXE_bootflip");
/// Names another build of it.
const ANOTHER: &str = "BOOTFLIP_BENCH_PROGRAM";
/// The MAC of the simulated pool's first VM.
const MAC: &str = "02:16:3e:00:00:01";
const POOL: u16 = 18080;
/// How often the boot script is looked for.
const LOOKS: usize = 200;

/// What is configured besides the pool.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    /// Where it listens.
    pub(crate) address: Ipv4Addr,
    /// The port of boot HTTP.
    pub(crate) http: u16,
    /// More of the configuration.
    pub(crate) more: String,
    /// Fixes the length of the boot script: it has the kernel's arguments four times.
    pub(crate) arguments: usize,
}

/// The server, and the pool behind it.
#[derive(Debug)]
pub(crate) struct Site {
    /// `bootflip serve`.
    pub(crate) server: Server,
    folder: PathBuf,
    at: SocketAddrV4,
    _pool: Server,
}

impl Site {
    /// Starts both.
    pub(crate) fn start(scene: &Scene, ours: &Ours) -> io::Result<Self> {
        let folder = scene.fresh("ours")?;
        let simulate = ["simulate", "--vms", "2", "--port", &POOL.to_string()].map(str::to_owned);
        let mut pool = Server::start("simulated pool", &program(), &simulate, &scene.log("pool"))?;
        let mut password = String::new();
        pool.until("its introduction", || {
            let said = fs::read_to_string(scene.log("pool")).unwrap_or_default();
            password = said
                .lines()
                .find_map(|line| line.trim().strip_prefix("password "))
                .map_or_else(String::new, |word| word.trim().to_owned());
            !password.is_empty()
        })?;
        let mut secret =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(folder.join("password"))?;
        secret.write_all(password.as_bytes())?;
        fs::write(folder.join("bootflip.toml"), configuration(scene, ours))?;
        let serve = ["serve".to_owned(), "-c".to_owned(), folder.join("bootflip.toml").display().to_string()];
        let server = Server::start("bootflip", &program(), &serve, &scene.log("bootflip"))?;
        let at = SocketAddrV4::new(ours.address, ours.http);
        let mut site = Self { server, folder, at, _pool: pool };
        site.server.until("see its log", || TcpStream::connect(at).is_ok())?;
        Ok(site)
    }

    /// Orders an installation and waits until its machine may boot; the paths of its boot script, and of the kernel.
    pub(crate) fn arm(&self) -> io::Result<(String, String)> {
        let script = format!("/b/{MAC}");
        let mut said = String::new();
        for look in 0..LOOKS {
            // Unknown until the server has read the pool.
            if look % 20 == 0 && !said.contains("job") {
                let output = Command::new(program())
                    .args(["deploy", "vm-001", "--profile", "bench", "--yes", "-c"])
                    .arg(self.folder.join("bootflip.toml"))
                    .output()?;
                said = format!(
                    "{}{}",
                    String::from_utf8_lossy(&output.stdout),
                    String::from_utf8_lossy(&output.stderr)
                );
            }
            let text = get(self.at, &script)?;
            let url = text.lines().find_map(|line| line.strip_prefix("kernel http://")?.split(' ').next());
            if let Some((_, path)) = url.and_then(|url| url.split_once('/')) {
                return Ok((script, format!("/{path}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Err(io::Error::other(format!("the machine never booted; deploy said: {said}")))
    }
}

fn program() -> PathBuf {
    std::env::var_os(ANOTHER).map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from)
}

fn configuration(scene: &Scene, ours: &Ours) -> String {
    let files = scene.files();
    let (address, http, files, more) = (ours.address, ours.http, files.display(), &ours.more);
    let arguments = "bench=1 ".repeat(ours.arguments / 8);
    format!(
        r#"[server]
name = "bench"
state_dir = "state"
[pool.simulated]
url = "http://127.0.0.1:{POOL}"
plain_http = true
user = "root"
password_file = "password"
[tftp]
listen = ["{address}:69"]
root = "{files}"
[http]
listen = "{address}:{http}"
root = "{files}"
[admin]
socket = "admin.sock"
[profile.bench]
kernel = "kernel"
initrd = ["initrd", "initrd-2", "initrd-3"]
args = "{arguments}"
completion = "halt"
evidence = "none"
accept_weak = true
[deadlines]
dhcp = "1h"
kernel = "1h"
answer = "1h"
first_stage = "1h"
{more}
"#
    )
}

/// What a GET answers, head and body.
pub(crate) fn get(at: SocketAddrV4, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

//! Real boot loaders against `bootflip serve`, each in a network namespace of its own: U-Boot, iPXE in the ROM of two
//! network cards, PXELINUX, and both dialects of our iPXE script. They boot Debian's kernel, and are judged by what
//! stands on their console. Needs root, QEMU and what `tests/lab/prepare.sh` and `tests/net/prepare.sh` bring.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bootflip::{
    machine::MacAddr,
    sim::{
        lab::{
            Network,
            network::{self, BRIDGE, NETMASK, RANGE, SERVER},
        },
        pool::{DEFAULT_PASSWORD, Pool, Release, VmSpec},
        server::{SimOptions, SimServer},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::common::programs::{missing, skip};

/// Longer than any boot seen on two loaded cores, three times over.
const PATIENCE: Duration = Duration::from_secs(360);
/// For one text on the console: less, so that it is this that is told.
const CONSOLE_PATIENCE: Duration = Duration::from_secs(300);
/// What the kernel prints first, and then its arguments.
const KERNEL: &str = "Linux version ";
const ARGUMENTS: &str = "Command line: ";
/// The VM that boots.
const MAC: MacAddr = MacAddr::new([0x02, 0x16, 0x3e, 0x78, 0, 1]);
const U_BOOT: &str = "/usr/lib/u-boot/qemu-x86/u-boot.rom";
const IPXE: &str = "/usr/lib/ipxe/ipxe.lkrn";

/// The lab's folder with kernel and initrd; or a skip.
fn kernels_or_skip(name: &str, files: &[&str]) -> Option<PathBuf> {
    let folder = std::env::var_os("BOOTFLIP_LAB")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab"), PathBuf::from);
    let www = folder.canonicalize().unwrap_or(folder).join("www");
    if !nix::unistd::geteuid().is_root() {
        skip(name, "not root");
        return None;
    }
    if missing("qemu-system-x86_64") || missing("ip") || missing("setpriv") {
        return None;
    }
    if !www.join("vmlinuz").exists() || !www.join("initrd.gz").exists() {
        skip(name, "no kernel; tests/lab/prepare.sh target/lab brings one");
        return None;
    }
    if let Some(file) = files.iter().find(|file| !Path::new(file).exists()) {
        skip(name, &format!("no {file}; tests/net/prepare.sh brings it"));
        return None;
    }
    Some(www)
}

/// Runs `body` in a namespace with a bridge and a tap, against time.
fn isolated(body: impl AsyncFnOnce(&Network) + Send) {
    network::isolated(|network| {
        network.tap("tap0").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { timeout(PATIENCE, body(network)).await.expect("it ends") });
    })
    .unwrap();
}

/// A simulated pool with one VM, and the server for it.
struct Site {
    folder: tempfile::TempDir,
    sim: SimServer,
    _server: Child,
}

impl Site {
    async fn serve(www: &Path) -> Self {
        let mut pool = Pool::new(7, Release::V8_2);
        pool.add_vm(VmSpec {
            name: "guest".to_owned(),
            macs: vec![MAC],
            bootable: Some(Ok(())),
            ..VmSpec::default()
        });
        let sim = SimServer::start(pool, SimOptions::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("tftp")).unwrap();
        std::fs::write(folder.path().join("b.toml"), configuration(&sim.url(), www)).unwrap();
        write_secret(&folder.path().join("password"), DEFAULT_PASSWORD);
        let log = std::fs::File::create(folder.path().join("serve.log")).unwrap();
        let mut server = Self::command(folder.path(), &["serve"]);
        let server = server.stderr(log).stdout(Stdio::null()).spawn().unwrap();
        while tokio::net::UnixStream::connect(folder.path().join("admin.sock")).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        Self { folder, sim, _server: server }
    }

    /// The program, which dies with this thread.
    fn command(folder: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", env!("CARGO_BIN_EXE_bootflip")]).args(arguments);
        command.arg("-c").arg(folder.join("b.toml")).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) {
        let output = Self::command(self.folder.path(), arguments).output().await.unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Orders an installation, and waits until the pool starts the VM: the gate is open then.
    async fn arm(&mut self) {
        self.run(&["deploy", "guest", "--profile", "kernel", "--yes"]).await;
        self.sim.starts.recv().await.unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("serve.log")).unwrap()
    }

    /// What the server gives a client that calls itself this.
    async fn script(&self, agent: &str) -> String {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().user_agent(agent).build().unwrap();
        let url = format!("http://{SERVER}:8080/b/{MAC}");
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = client.get(&url).send().await.unwrap();
            if answer.status() == 200 {
                return answer.text().await.unwrap();
            }
            assert!(Instant::now() < until, "the VM never became known");
            sleep(Duration::from_millis(50)).await;
        }
    }
}

fn configuration(pool: &str, www: &Path) -> String {
    let (first, last) = RANGE;
    format!(
        r#"
[server]
name = "site"
state_dir = "state"
[pool.main]
url = "{pool}"
plain_http = true
user = "root"
password_file = "password"
[admin]
socket = "admin.sock"
[[dhcp]]
interface = "{BRIDGE}"
mode = "server"
address = "{SERVER}"
[dhcp.server]
range = ["{first}", "{last}"]
netmask = "{NETMASK}"
[tftp]
listen = ["{SERVER}:69"]
root = "tftp"
[http]
listen = "{SERVER}:8080"
root = "{www}"
[profile.kernel]
kernel = "vmlinuz"
initrd = "initrd.gz"
args = "console=ttyS0 panic=1 url={{{{ answer_url }}}}"
answer = "mini.j2"
"#,
        www = www.display(),
    )
}

fn write_secret(path: &Path, text: &str) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// A guest and its console.
struct Guest {
    qemu: Child,
    seen: String,
}

impl Guest {
    fn start(card: &str, more: &[&str]) -> Self {
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config"]);
        qemu.args([
            "-machine",
            "pc,graphics=off",
            "-vga",
            "none",
            "-display",
            "none",
            "-accel",
            "tcg",
            "-cpu",
            "max",
        ]);
        qemu.args(["-m", "512", "-serial", "stdio", "-no-reboot"]);
        qemu.args(["-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no"]);
        qemu.args(["-device", &format!("{card},netdev=n,mac={MAC}")]).args(more);
        let qemu = qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        Self { qemu: qemu.spawn().unwrap(), seen: String::new() }
    }

    /// Boots by the iPXE in this network card.
    fn by_rom(card: &str) -> Self {
        Self::start(card, &["-boot", "order=n,strict=on"])
    }

    /// Boots iPXE with a script of its own.
    fn by_script(folder: &Path, script: &str) -> Self {
        let path = folder.join("script.ipxe");
        std::fs::write(&path, script).unwrap();
        Self::start("e1000,romfile=", &["-kernel", IPXE, "-initrd", path.to_str().unwrap()])
    }

    async fn types(&mut self, line: &str) {
        self.qemu.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).await.unwrap();
    }

    /// Waits until a text stands on the console behind what was waited for before, and returns the rest of its line.
    async fn until(&mut self, text: &str) -> String {
        let begun = Instant::now();
        let mut piece = [0; 4096];
        loop {
            let line = self.seen.split_once(text).and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((line, rest)) = line {
                let line = line.trim_end().to_owned();
                self.seen = rest.to_owned();
                return line;
            }
            let console = self.qemu.stdout.as_mut().unwrap();
            let read =
                timeout(CONSOLE_PATIENCE.saturating_sub(begun.elapsed()), console.read(&mut piece)).await;
            match read {
                Ok(Ok(length)) if length > 0 => self.seen += &String::from_utf8_lossy(&piece[..length]),
                other => panic!("never `{text}` on the console ({other:?}):\n{}", self.seen),
            }
        }
    }

    /// Waits for U-Boot's prompt, behind which there is no line's end.
    async fn prompt(&mut self) {
        let mut piece = [0; 4096];
        while !self.seen.ends_with("=> ") {
            let length = self.qemu.stdout.as_mut().unwrap().read(&mut piece).await.unwrap();
            assert!(length > 0, "{}", self.seen);
            self.seen += &String::from_utf8_lossy(&piece[..length]);
        }
        self.seen.clear();
    }

    /// Waits until the kernel runs with the arguments of this attempt.
    async fn boots(&mut self) {
        self.until(KERNEL).await;
        let arguments = self.until(ARGUMENTS).await;
        let own = format!("console=ttyS0 panic=1 url=http://{SERVER}:8080/a/");
        assert!(arguments.contains(&own), "{arguments}");
    }
}

/// The quickest foreign client: its own DHCP, TFTP and PXELINUX configuration.
#[test]
fn u_boot_boots_a_kernel_by_dhcp_and_its_pxe_command() {
    let Some(www) = kernels_or_skip("u-boot", &[U_BOOT]) else { return };
    isolated(async |_| {
        let mut site = Site::serve(&www).await;
        site.arm().await;
        let mut guest = Guest::start("e1000", &["-bios", U_BOOT]);
        // It counts down before it boots by itself; a key stops that.
        guest.until("Net: ").await;
        guest.types("").await;
        guest.prompt().await;
        guest.types("setenv autoload no; setenv pxefile_addr_r 0x800000; dhcp").await;
        guest.until("DHCP client bound to address 10.77.0.").await;
        guest.prompt().await;
        guest.types(&format!("setenv serverip {SERVER}; pxe get")).await;
        guest.until("Config file 'bzImage' found").await;
        guest.types("pxe boot").await;
        guest.boots().await;
    });
}

#[test]
#[ignore = "half a minute of emulation; part of test-full"]
fn the_ipxe_of_an_e1000_boots_a_kernel_by_http() {
    by_rom("e1000");
}

#[test]
#[ignore = "half a minute of emulation; part of test-full"]
fn the_ipxe_of_an_rtl8139_boots_a_kernel_by_http() {
    by_rom("rtl8139");
}

fn by_rom(card: &str) {
    let Some(www) = kernels_or_skip(card, &[]) else { return };
    isolated(async |network| {
        let mut site = Site::serve(&www).await;
        let _advertiser = network.advertise().unwrap();
        site.arm().await;
        Guest::by_rom(card).boots().await;
        let log = site.log();
        // iPXE encodes the colons.
        let script = format!("path=/b/{} ", MAC.to_string().replace(':', "%3A"));
        for path in [script.as_str(), "path=/f/*/vmlinuz ", "path=/f/*/initrd.gz "] {
            let line =
                log.lines().find(|line| line.contains(path)).unwrap_or_else(|| panic!("{path}\n{log}"));
            assert!(line.contains("outcome=\"sent\"") && line.contains(&format!("mac={MAC}")), "{line}");
        }
    });
}

#[test]
#[ignore = "half a minute of emulation; part of test-full"]
fn the_ipxe_of_a_network_card_goes_on_to_the_disk_when_the_gate_refuses() {
    let Some(www) = kernels_or_skip("refusal", &[]) else { return };
    isolated(async |network| {
        let site = Site::serve(&www).await;
        let _advertiser = network.advertise().unwrap();
        assert_eq!(site.script("curl").await, "#!ipxe\nexit\n");
        // SeaBIOS has nothing after the network card.
        Guest::by_rom("e1000").until("No bootable device").await;
    });
}

#[test]
#[ignore = "half a minute of emulation; part of test-full"]
fn pxelinux_chains_from_its_loader_to_the_kernel_by_tftp_and_leaves_when_refused() {
    let files = [IPXE, "/usr/lib/PXELINUX/pxelinux.0", "/usr/lib/syslinux/modules/bios/ldlinux.c32"];
    let Some(www) = kernels_or_skip("pxelinux", &files) else { return };
    isolated(async |_| {
        let mut site = Site::serve(&www).await;
        site.run(&["loaders", "install", "--no-fetch", "pxelinux.0", "ldlinux.c32"]).await;
        let server = format!("tftp://{SERVER}");
        // 210: where PXELINUX takes its files from, since the DHCP reply names a script.
        let chain = format!("#!ipxe\ndhcp\nset 210:string {server}/\nchain {server}/pxelinux.0\n");
        assert_eq!(site.script("curl").await, "#!ipxe\nexit\n");
        // Nothing comes after the network.
        Guest::by_script(site.folder.path(), &chain).until("No bootable device").await;
        site.arm().await;
        Guest::by_script(site.folder.path(), &chain).boots().await;
    });
}

#[test]
#[ignore = "half a minute of emulation; part of test-full"]
fn the_modern_script_boots_a_kernel_on_an_ipxe_that_can_count() {
    let Some(www) = kernels_or_skip("modern", &[IPXE]) else { return };
    isolated(async |_| {
        let mut site = Site::serve(&www).await;
        site.arm().await;
        let script = site.script("iPXE/1.21.1+").await;
        assert!(script.contains("inc tries"), "{script}");
        let script = script.replacen("#!ipxe\n", "#!ipxe\ndhcp\n", 1);
        Guest::by_script(site.folder.path(), &script).boots().await;
    });
}

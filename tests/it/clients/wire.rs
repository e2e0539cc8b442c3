//! A wire with our DHCP server on it and namespaces for others: nothing here can reach the computer's networks, and
//! all of it goes with the processes in it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddrV4},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, mpsc},
    time::Duration,
};

use bootflip::{
    clock::SystemClock,
    config::{DhcpMode, DhcpPool, DhcpServer},
    dhcp::{
        DEFAULT_LOADER,
        server::{self, Board, BootServices, Shared},
    },
    machine::MacAddr,
    sim::lab::network::{self, Network},
    store::memory::MemoryStore,
};
use dhcproto::{
    Decodable, Encodable,
    v4::{self, DhcpOption, MessageType},
};
use nix::sched::{CloneFlags, setns};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use socket2::{Domain, Protocol, Socket, Type};
use tokio_util::sync::CancellationToken;

pub(crate) use bootflip::sim::lab::network::BRIDGE;

use crate::{
    boot::Scene,
    dhcp::{interface, pool},
};

pub(crate) const SERVER: Ipv4Addr = network::SERVER;
pub(crate) const RANGE: ([u8; 4], [u8; 4]) = ([10, 77, 0, 50], [10, 77, 0, 199]);
/// Longer than any client here takes, several times over.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs `body` with a wire, or says that it cannot: `programs` are named as in a shell, or by path.
pub(crate) fn on_a_wire(test: &str, programs: &[&str], body: impl FnOnce(&Wire<'_>) + Send) {
    let there = |program: &str| {
        let folders = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin"];
        Path::new(program).is_absolute() && Path::new(program).exists()
            || folders.iter().any(|folder| Path::new(folder).join(program).exists())
    };
    let missing: Vec<&str> = programs.iter().copied().filter(|program| !there(program)).collect();
    let why = if !nix::unistd::geteuid().is_root() {
        "not root".to_owned()
    } else if !missing.is_empty() {
        format!("no {} (tests/net/prepare.sh installs it)", missing.join(", "))
    } else {
        let folder = tempfile::tempdir().unwrap();
        network::isolated(|network| {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
            body(&Wire { network, runtime: runtime.unwrap(), folder: folder.path() });
        })
        .unwrap();
        return;
    };
    let no_skip = std::env::var_os("BOOTFLIP_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!no_skip, "{test} cannot run: {why}");
    // Past the capture of the test's own output: a skip must be seen.
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
}

/// Asks again until there is something, or too long.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let pause = Duration::from_millis(50);
    for _ in 0..PATIENCE.as_millis() / pause.as_millis() {
        if let Some(found) = look() {
            return found;
        }
        std::thread::sleep(pause); // a process tells nobody when it writes a file
    }
    panic!("never: {what}")
}

/// The server's namespace, with a bridge.
pub(crate) struct Wire<'a> {
    #[expect(dead_code, reason = "proves that this thread is in a namespace of its own")]
    network: &'a Network,
    runtime: tokio::runtime::Runtime,
    folder: &'a Path,
}

/// How ours serves.
pub(crate) struct Serve {
    pub(crate) mode: DhcpMode,
    pub(crate) relays: Vec<Ipv4Addr>,
    pub(crate) url: String,
}

impl Serve {
    /// Leases to everybody; boots the machines that the gate knows.
    pub(crate) fn server() -> Self {
        let own = DhcpPool { netmask: network::NETMASK, lease_to_strangers: true, ..pool(RANGE.0, RANGE.1) };
        let mode = DhcpMode::Server(DhcpServer { own, relayed: vec![] });
        Self { mode, relays: vec![], url: format!("http://{SERVER}:8080") }
    }

    pub(crate) fn proxy() -> Self {
        Self { mode: DhcpMode::Proxy, ..Self::server() }
    }
}

/// Ours, running; it stops with this.
pub(crate) struct Served {
    pub(crate) board: Board,
    stop: CancellationToken,
    _scene: Scene,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A process that is ended when this is dropped.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace with `eth0` on the wire.
pub(crate) struct Client {
    /// Its only process: the namespace lives as long.
    holder: Running,
    folder: PathBuf,
}

/// What guests ask the boot HTTP server for.
pub(crate) struct Scripts {
    pub(crate) url: String,
    asked: mpsc::Receiver<String>,
}

impl Scripts {
    /// The first path that is asked for.
    pub(crate) fn asked(&self, patience: Duration) -> String {
        self.asked.recv_timeout(patience).expect("a guest asks for its script")
    }
}

impl Wire<'_> {
    pub(crate) fn serve(&self, serve: Serve) -> Served {
        let scene = Scene::new();
        let shared = Shared {
            gate: scene.gate.clone(),
            sink: scene.sink.clone(),
            store: Arc::new(MemoryStore::new()),
            clock: Arc::new(SystemClock),
        };
        let boot = BootServices { url: Some(serve.url), loader: Some(DEFAULT_LOADER.into()) };
        let mut interface = interface(BRIDGE, serve.mode, SERVER);
        interface.relays = serve.relays;
        let bound = self.runtime.block_on(server::bind(interface, boot, shared)).unwrap();
        let (board, stop) = (bound.board(), CancellationToken::new());
        self.runtime.spawn(bound.run(stop.clone()));
        Served { board, stop, _scene: scene }
    }

    /// Does `work` on this thread without CAP_NET_RAW.
    #[expect(clippy::unused_self, reason = "this thread is the wire's")]
    pub(crate) fn without_frames<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = capabilities(None).unwrap();
        let mut less = before;
        less.effective.remove(CapabilitySet::NET_RAW);
        set_capabilities(None, less).unwrap();
        let done = work();
        set_capabilities(None, before).unwrap();
        done
    }

    /// A namespace with `eth0`, which has this MAC, on the bridge.
    pub(crate) fn client(&self, name: &str, mac: MacAddr) -> Client {
        let client = Client::hold(self.folder.join(name));
        let pid = client.holder.0.id();
        self.ip(&format!("link add {name} type veth peer name eth0 address {mac} netns {pid}"));
        self.ip(&format!("link set {name} master {BRIDGE} up"));
        client.ip("link set lo up");
        client.ip("link set eth0 up");
        client
    }

    pub(crate) fn ip(&self, arguments: &str) {
        succeed(Command::new("ip").args(arguments.split_whitespace()), arguments);
    }

    /// A web server that notes what it is asked for and has nothing.
    pub(crate) fn scripts(&self) -> Scripts {
        let listener = std::net::TcpListener::bind((SERVER, 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (tell, asked) = mpsc::channel();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = [0; 512];
                let length = stream.read(&mut head).unwrap_or(0);
                let line = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = stream.write_all(b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n");
                if tell.send(path).is_err() {
                    return;
                }
            }
        });
        Scripts { url, asked }
    }

    /// A virtual machine that boots from its network card's ROM.
    pub(crate) fn firmware(&self, model: &str, mac: MacAddr) -> Running {
        self.ip("tuntap add dev guest mode tap");
        self.ip(&format!("link set guest master {BRIDGE} up"));
        let command = format!(
            "qemu-system-x86_64 -nodefaults -no-user-config -machine pc,graphics=off -vga none -display none \
             -accel tcg,tb-size=64 -cpu max -m 256 -boot order=n,strict=on -serial file:{}/console \
             -netdev tap,id=n0,ifname=guest,script=no,downscript=no -device {model},netdev=n0,mac={mac}",
            self.folder.display()
        );
        start(Command::new("setpriv").args(["--pdeathsig", "KILL"]).args(command.split_whitespace()))
    }
}

impl Client {
    fn hold(folder: PathBuf) -> Self {
        std::fs::create_dir_all(&folder).unwrap();
        // It ends with this thread, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", "echo ready; exec sleep 600"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        Self { holder: Running(child), folder }
    }

    /// A namespace behind this one: its `eth0` is on a wire with our `eth1`.
    pub(crate) fn behind(&self, name: &str, mac: MacAddr) -> Self {
        let client = Self::hold(self.folder.join(name));
        let pid = client.holder.0.id();
        self.ip(&format!("link add eth1 type veth peer name eth0 address {mac} netns {pid}"));
        self.ip("link set eth1 up");
        client.ip("link set lo up");
        client.ip("link set eth0 up");
        client
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A file that can be run.
    pub(crate) fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    pub(crate) fn ip(&self, arguments: &str) {
        self.run(&format!("ip {arguments}"));
    }

    /// The program in this namespace, words split at spaces.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "nsenter", "-t", &self.holder.0.id().to_string(), "-n"]);
        command.args(line.split_whitespace()).current_dir(&self.folder);
        command
    }

    pub(crate) fn run(&self, line: &str) {
        succeed(&mut self.command(line), line);
    }

    /// What it says, however it ends.
    pub(crate) fn output(&self, line: &str) -> String {
        text(&self.command(line).stdin(Stdio::null()).output().unwrap())
    }

    pub(crate) fn start(&self, line: &str) -> Running {
        start(&mut self.command(line))
    }

    /// Broadcasts a boot ROM's DISCOVER; the offers of all who answer, at least of so many, with whom they came from.
    pub(crate) fn discover(&self, least: usize) -> Vec<(Ipv4Addr, v4::Message)> {
        self.ip("addr add 10.77.0.31/24 dev eth0");
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.holder.0.id())).unwrap();
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                    offers(least)
                })
                .join()
                .unwrap()
        })
    }
}

fn offers(least: usize) -> Vec<(Ipv4Addr, v4::Message)> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).unwrap();
    socket.set_broadcast(true).unwrap();
    socket.bind_device(Some(b"eth0")).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into()).unwrap();
    let socket = std::net::UdpSocket::from(socket);
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = v4::Message::new_with_id(77, zero, zero, zero, zero, &crate::boot::ARMED.octets());
    message.set_flags(v4::Flags::default().set_broadcast());
    for option in [
        DhcpOption::MessageType(MessageType::Discover),
        DhcpOption::ClassIdentifier(b"PXEClient:Arch:00000:UNDI:002001".to_vec()),
    ] {
        message.opts_mut().insert(option);
    }
    let mut heard = BTreeMap::new();
    until("all servers offer", || {
        socket.send_to(&message.to_vec().unwrap(), (Ipv4Addr::BROADCAST, 67)).unwrap();
        let mut packet = [0; 2048];
        while let Ok((length, std::net::SocketAddr::V4(from))) = socket.recv_from(&mut packet) {
            let offer = v4::Message::from_bytes(&packet[..length]).unwrap();
            heard.insert(offer.yiaddr(), (*from.ip(), offer));
        }
        (heard.len() >= least).then_some(())
    });
    heard.into_values().collect()
}

fn start(command: &mut Command) -> Running {
    Running(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn succeed(command: &mut Command, line: &str) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{line}: {}", text(&output));
}

fn text(output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    format!("{out}{err}")
}

//! The TFTP service over real sockets, asked by a client of a few lines.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bootflip::{
    boot::{render::Urls, sink::Sign},
    config::TftpConfig,
    tftp::server::{self, AsyncTftp, Engine, Library, Shared},
};
use futures_util::future::BoxFuture;
use tokio::{net::UdpSocket, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::boot::{ARMED, IDLE, STRANGER, Scene, kernel};

struct Rig {
    scene: Scene,
    servers: Vec<SocketAddr>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Arc::new(AsyncTftp))
    }

    fn with(engine: Arc<dyn Engine>) -> Self {
        let scene = Scene::new();
        let loader: Vec<u8> = (0..100_000_u32).map(|n| n.to_be_bytes()[3]).collect();
        std::fs::write(scene.root().join("undionly.kpxe"), loader).unwrap();
        std::fs::create_dir(scene.root().join("pxelinux.cfg")).unwrap();
        std::fs::write(scene.root().join("pxelinux.cfg/default"), "never served").unwrap();
        let config = TftpConfig {
            loader: "undionly.kpxe".to_owned(),
            listen: [1, 2].map(|n| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, n), 0)).into(),
            root: scene.root(),
            device: Some("lo".into()),
        };
        let shared = Shared {
            gate: scene.gate.clone(),
            sink: scene.sink.clone(),
            templates: scene.templates(),
            urls: Urls::new("http://127.0.0.1:8080"),
            files: scene.root(),
        };
        let server = server::bind(&config, shared, engine).unwrap();
        let servers = server.bound();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self { scene, servers, stop, running }
    }

    async fn get(&self, name: &str) -> Result<Vec<u8>, String> {
        fetch(self.servers[0], name.as_bytes(), &[]).await.map(|(content, _)| content)
    }

    async fn text(&self, name: &str) -> String {
        let render = self.scene.armed.render.expose();
        match self.get(&name.replace("RENDER", render)).await {
            Ok(content) => String::from_utf8(content).unwrap().replace(render, "RENDER"),
            Err(error) => error,
        }
    }
}

/// What the server sent in its OACK.
type Granted = BTreeMap<String, String>;

/// Reads a file as RFC 1350, 2347, 2348, 2349 and 7440 say. `Err`: the ERROR packet's code and text.
async fn fetch(
    server: SocketAddr,
    name: &[u8],
    options: &[(&str, &str)],
) -> Result<(Vec<u8>, Granted), String> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut request = [&[0, 1], name, b"\0octet\0"].concat();
    for (key, value) in options {
        request.extend([key.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    socket.send_to(&request, server).await.unwrap();
    let (mut content, mut granted, mut expected) = (Vec::new(), Granted::new(), 1_u16);
    let mut packet = vec![0; 70_000];
    loop {
        let received = tokio::time::timeout(Duration::from_secs(20), socket.recv_from(&mut packet)).await;
        let (length, peer) = received.map_err(|_| "timeout".to_owned())?.unwrap();
        assert_eq!(peer.ip(), server.ip(), "the reply leaves from the address that was asked");
        let number = u16::from_be_bytes([packet[2], packet[3]]);
        let ack = |block: u16| [&[0, 4][..], &block.to_be_bytes()].concat();
        let option = |granted: &Granted, key: &str, otherwise: usize| {
            granted.get(key).map_or(otherwise, |value| value.parse().unwrap())
        };
        match packet[1] {
            6 => {
                let text = String::from_utf8(packet[2..length].to_vec()).unwrap();
                let words: Vec<&str> = text.trim_end_matches('\0').split('\0').collect();
                granted = words.chunks(2).map(|pair| (pair[0].to_owned(), pair[1].to_owned())).collect();
                socket.send_to(&ack(0), peer).await.unwrap();
            }
            3 if number == expected => {
                content.extend_from_slice(&packet[4..length]);
                let last = length - 4 < option(&granted, "blksize", 512);
                if last || usize::from(number) % option(&granted, "windowsize", 1) == 0 {
                    socket.send_to(&ack(number), peer).await.unwrap();
                }
                if last {
                    return Ok((content, granted));
                }
                expected = expected.wrapping_add(1);
            }
            3 => {}
            5 => return Err(format!("error {number}: {}", String::from_utf8_lossy(&packet[4..length - 1]))),
            other => panic!("packet of kind {other}"),
        }
    }
}

const NOT_FOUND: &str = "error 1: File not found";

#[tokio::test]
async fn a_loader_comes_whole_with_any_options() {
    let rig = Rig::new();
    let expected: Vec<u8> = (0..100_000_u32).map(|n| n.to_be_bytes()[3]).collect();
    for server in &rig.servers {
        for (options, granted) in [
            (&[][..], &[][..]),
            (&[("tsize", "0"), ("blksize", "1432")], &[("tsize", "100000"), ("blksize", "1432")]),
            (&[("blksize", "65464")], &[("blksize", "1468")]),
            (&[("blksize", "512"), ("windowsize", "8")], &[("blksize", "512"), ("windowsize", "8")]),
            (&[("windowsize", "65535")], &[("windowsize", "32")]),
            (&[("nonsense", "1"), ("tsize", "0")], &[("tsize", "100000")]),
        ] {
            let (content, answer) = fetch(*server, b"\\undionly.kpxe", options).await.unwrap();
            assert!(content == expected, "{options:?}: {} bytes", content.len());
            let granted: Granted = granted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(answer, granted, "{options:?}");
        }
    }
}

#[tokio::test]
async fn a_configuration_is_rendered_behind_the_gate() {
    let rig = Rig::new();
    let armed = rig.text("pxelinux.cfg/01-02-00-00-00-00-01").await;
    assert_eq!(
        armed,
        "DEFAULT install\nPROMPT 0\nTIMEOUT 0\nLABEL install\n  KERNEL ::f/RENDER/u/linux\n  \
         INITRD ::f/RENDER/u/initrd.gz\n  APPEND bootflip.answer=http://127.0.0.1:8080/a/RENDER/mini\n"
    );
    let refusal = "DEFAULT local\nPROMPT 0\nTIMEOUT 0\nLABEL local\n  LOCALBOOT -1\n";
    assert_eq!(
        rig.text(&format!("/boot/pxelinux.cfg/01-{}", IDLE.hyphenated().to_uppercase())).await,
        refusal
    );
    assert_eq!(rig.text(&format!("pxelinux.cfg/01-{}", STRANGER.hyphenated())).await, NOT_FOUND);
    rig.scene.disarm();
    assert_eq!(rig.text("pxelinux.cfg/01-02-00-00-00-00-01").await, refusal);
    let signs = [(ARMED, Sign::Script), (IDLE, Sign::NetbootRefused), (ARMED, Sign::NetbootRefused)];
    assert_eq!(rig.scene.sink.signs(), signs);
}

/// Who asks without MAC or UUID is known by its address.
#[tokio::test]
async fn a_configuration_has_every_name_of_pxelinux() {
    let rig = Rig::new();
    assert_eq!(rig.text("pxelinux.cfg/default").await, NOT_FOUND, "nobody has this address yet");
    rig.scene.gate.met(ARMED, Ipv4Addr::LOCALHOST.into());
    let armed = rig.text("pxelinux.cfg/01-02-00-00-00-00-01").await;
    for name in ["7F000001", "7F00000", "7F", "7f0000", "default"] {
        assert_eq!(rig.text(&format!("pxelinux.cfg/{name}")).await, armed, "{name}");
    }
    assert_eq!(rig.text("pxelinux.cfg/7F000002").await, NOT_FOUND);
    assert_eq!(rig.text(&format!("pxelinux.cfg/{}", "1".repeat(36))).await, NOT_FOUND);
}

#[tokio::test]
async fn kernel_and_initrd_come_by_token_until_the_gate_closes() {
    let rig = Rig::new();
    let render = rig.scene.armed.render.expose();
    let (linux, initrd) = (format!("f/{render}/u/linux"), format!("/f/{render}/u/initrd.gz"));
    assert!(rig.get(&linux).await.unwrap() == kernel());
    assert_eq!(rig.get(&initrd).await.unwrap(), b"initrd");
    assert_eq!(rig.get("undionly.kpxe").await.unwrap().len(), 100_000);
    let signs = [(ARMED, Sign::Kernel), (ARMED, Sign::Initrd), (ARMED, Sign::Loader)];
    assert_eq!(rig.scene.sink.signs(), signs, "the loader's reader is known by its address");
    assert_eq!(rig.text(&format!("f/{render}/unnamed")).await, NOT_FOUND);
    assert_eq!(rig.text(&format!("f/{}/u/linux", rig.scene.armed.report.expose())).await, NOT_FOUND);
    rig.scene.disarm();
    assert_eq!(rig.text(&linux).await, NOT_FOUND);
}

#[tokio::test]
async fn a_changed_file_is_read_again() {
    let rig = Rig::new();
    assert_eq!(rig.text("unnamed").await, "unnamed");
    std::fs::write(rig.scene.root().join("new"), "changed").unwrap();
    std::fs::rename(rig.scene.root().join("new"), rig.scene.root().join("unnamed")).unwrap();
    assert_eq!(rig.text("unnamed").await, "changed");
    std::fs::remove_file(rig.scene.root().join("unnamed")).unwrap();
    assert_eq!(rig.text("unnamed").await, NOT_FOUND);
}

#[tokio::test]
async fn no_name_leads_out_of_the_root() {
    let rig = Rig::new();
    let climbs = [
        "../canary",
        "/../canary",
        "..\\canary",
        "u/../../canary",
        "u\\..\\..\\canary",
        "%2e%2e/canary",
        "....//canary",
        "./../canary",
        "/etc/passwd",
        "/proc/self/environ",
        "out",
        "u",
        "u/",
        "u/linux/",
        ".",
        "/",
        "C:\\canary",
        "pxelinux.cfg/default",
        "pxelinux.cfg/0A000001",
        "pxelinux.cfg/../../canary",
        "f/../../canary",
        "con",
        "",
    ];
    for name in climbs {
        assert_eq!(rig.text(name).await, NOT_FOUND, "{name:?}");
    }
    assert_eq!(rig.text(&format!("f/{}/../../canary", rig.scene.armed.render.expose())).await, NOT_FOUND);
    assert_eq!(rig.scene.sink.signs(), []);
}

#[tokio::test]
async fn writes_are_refused() {
    let rig = Rig::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"\0\x02unnamed\0octet\0", rig.servers[0]).await.unwrap();
    let mut packet = [0; 600];
    let (length, _) = socket.recv_from(&mut packet).await.unwrap();
    assert_eq!(&packet[..4], [0, 5, 0, 4], "{:?}", &packet[..length]);
    assert_eq!(rig.text("unnamed").await, "unnamed");
}

#[tokio::test]
async fn damaged_requests_and_silent_clients_cost_nobody_else_anything() {
    let rig = Rig::new();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for packet in [
        &b""[..],
        b"\0",
        b"\0\x01",
        b"\0\x01\0",
        b"\0\x01x",
        b"\0\x05\0\0x\0",
        b"\0\x01x\0mail\0",
        &[0xff; 1400],
    ] {
        socket.send_to(packet, rig.servers[0]).await.unwrap();
    }
    for _ in 0..50 {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        silent.send_to(b"\0\x01undionly.kpxe\0octet\0windowsize\x0032\0", rig.servers[0]).await.unwrap();
    }
    assert_eq!(rig.get("undionly.kpxe").await.unwrap().len(), 100_000);
}

/// Fails twice, panics once, then works.
#[derive(Debug, Default)]
struct Flaky(AtomicU32);

impl Engine for Flaky {
    fn serve(&self, socket: std::net::UdpSocket, library: Arc<dyn Library>) -> BoxFuture<'static, io::Error> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Box::pin(async { io::Error::other("broken") }),
            2 | 3 => Box::pin(async { panic!("broken on purpose") }),
            _ => AsyncTftp.serve(socket, library),
        }
    }
}

#[tokio::test]
async fn an_engine_that_ends_is_started_again() {
    let rig = Rig::with(Arc::new(Flaky::default()));
    assert_eq!(rig.text("unnamed").await, "unnamed");
    rig.stop.cancel();
    rig.running.await.unwrap();
}

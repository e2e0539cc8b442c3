//! The TFTP service over real sockets: one battery over both engines. What the other engine cannot do is listed by
//! name in [`GAPS`] and in `docs/tftp.md`.
//!
//! `client` is the client of the battery; `quirks` has what PXE clients do; `hostile` what attackers and bad networks
//! do; `proxy` is such a network; `clients` are programs that others wrote.

mod client;
mod clients;
mod hostile;
mod proxy;
mod quirks;

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use bootflip::{
    boot::{render::Urls, sink::Sign},
    config::{TftpConfig, TftpEngine},
    tftp::{
        server::{self, Engine, Library, Shared},
        transfer::Rollover,
    },
};
use futures_util::future::BoxFuture;
use tokio::{net::UdpSocket, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use self::{
    client::{Granted, fetch},
    clients::*,
    hostile::*,
    quirks::*,
};
use crate::boot::{ARMED, IDLE, STRANGER, Scene, kernel};

/// A running server with files.
pub(crate) struct Rig {
    scene: Scene,
    servers: Vec<SocketAddr>,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

/// The defaults of the configuration, on loopback.
fn config(root: &Path, engine: TftpEngine) -> TftpConfig {
    TftpConfig {
        loader: "undionly.kpxe".to_owned(),
        listen: [1, 2].map(|n| SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, n), 0)).into(),
        root: root.to_owned(),
        device: None,
        engine,
        single_port: false,
        rollover: Rollover::Zero,
        block_size: 1468,
        window: 64,
        clients: vec![],
        transfers_per_client: 8,
        transfers: 512,
    }
}

impl Rig {
    fn new(engine: TftpEngine) -> Self {
        Self::with(engine, |_| {})
    }

    fn with(engine: TftpEngine, change: impl FnOnce(&mut TftpConfig)) -> Self {
        Self::run(engine, change, server::engine)
    }

    fn run(
        engine: TftpEngine,
        change: impl FnOnce(&mut TftpConfig),
        engine_of: impl FnOnce(&TftpConfig) -> Arc<dyn Engine>,
    ) -> Self {
        let scene = Scene::new();
        std::fs::write(scene.root().join("undionly.kpxe"), loader()).unwrap();
        std::fs::create_dir(scene.root().join("pxelinux.cfg")).unwrap();
        std::fs::write(scene.root().join("pxelinux.cfg/default"), "never served").unwrap();
        let mut config = config(&scene.root(), engine);
        change(&mut config);
        let shared = Shared {
            gate: scene.gate.clone(),
            sink: scene.sink.clone(),
            templates: scene.templates(),
            urls: Urls::new("http://127.0.0.1:8080"),
            files: scene.root(),
        };
        let server = server::bind(&config, shared, engine_of(&config)).unwrap();
        let servers = server.bound();
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        Self { scene, servers, stop, running }
    }

    fn write(&self, name: &str, content: &[u8]) {
        std::fs::write(self.scene.root().join(name), content).unwrap();
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

fn loader() -> Vec<u8> {
    (0..100_000_u32).map(|n| n.to_be_bytes()[3]).collect()
}

/// Makes a test of each case for each engine.
macro_rules! battery {
    ($($case:ident),* $(,)?; own only: $($own:ident: $why:literal),* $(,)?) => {
        mod own {
            use bootflip::config::TftpEngine::Own;
            $(#[tokio::test] async fn $case() { super::$case(Own).await; })*
            $(#[tokio::test] async fn $own() { super::$own(Own).await; })*
        }
        mod async_tftp {
            use bootflip::config::TftpEngine::AsyncTftp;
            $(#[tokio::test] async fn $case() { super::$case(AsyncTftp).await; })*
        }
        /// Cases that do not hold for the engine `async-tftp`, and why.
        const GAPS: &[(&str, &str)] = &[$((stringify!($own), $why)),*];
    };
}

battery! {
    a_loader_comes_whole_with_any_options,
    a_configuration_is_rendered_behind_the_gate,
    a_configuration_has_every_name_of_pxelinux,
    kernel_and_initrd_come_by_token_until_the_gate_closes,
    a_changed_file_is_read_again,
    no_name_leads_out_of_the_root,
    writes_are_refused,
    damaged_requests_and_silent_clients_cost_nobody_else_anything,
    quirk_22_blocks_fit_and_unknown_options_are_left_out,
    quirk_23_repeated_acks_send_nothing_again,
    quirk_24_block_numbers_roll_over_to_zero,
    quirk_25_a_window_is_kept_and_a_hole_in_it_filled,
    quirk_27_names_are_understood_in_every_spelling,
    quirk_28_names_that_are_not_there_are_answered_at_once,
    quirk_30_writing_is_refused,
    five_hundred_names_lead_nowhere,
    a_swapped_link_never_leads_out,
    a_flipped_byte_withdraws_a_file,
    a_file_larger_than_the_memory_comes_whole,
    curl_reads_with_every_block_size,
    atftp_reads_with_every_block_size_and_window,
    tftp_hpa_reads_in_binary,
    busybox_reads_with_every_block_size;
    own only:
    quirk_21_a_probe_for_the_size_is_no_failure: "a client's ERROR is ignored, and its port not heard for six seconds",
    quirk_24_block_numbers_roll_over_to_one_where_configured: "always rolls over to 0",
    quirk_25_a_lost_first_block_comes_at_once: "a repeated ACK before the window waits for the timer",
    quirk_26_the_last_ack_may_never_come: "a port whose last ACK is missing is not heard for six seconds",
    quirk_27_a_forgotten_nul_is_no_obstacle: "a request with an option without value is not answered",
    quirk_29_one_port_serves_all: "knows no single-port mode",
    quirk_29_the_answer_leaves_from_the_address_that_was_asked: "needs one listener an address",
    quirk_30_netascii_is_refused_clearly: "netascii is sent as octet",
    a_bad_network_spoils_no_transfer: "fixed pauses of a second and no word of a window's first block",
    a_server_that_stops_lets_transfers_end: "a stop cuts transfers short",
    every_transfer_is_told: "how a transfer ended is not known",
    one_address_has_its_limit: "no limits",
    other_networks_are_not_answered_at_all: "knows no networks",
}

/// What the documentation says of the other engine is what the battery leaves out.
#[test]
fn the_gaps_of_the_other_engine_are_documented() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/tftp.md")).unwrap();
    for (case, why) in GAPS {
        assert!(text.contains(&format!("| `{case}` | {why} |")), "docs/tftp.md lacks: | `{case}` | {why} |");
    }
}

const NOT_FOUND: &str = "error 1: File not found";

async fn a_loader_comes_whole_with_any_options(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let expected = loader();
    for server in &rig.servers {
        for (options, granted) in [
            (&[][..], &[][..]),
            (&[("tsize", "0"), ("blksize", "1432")], &[("tsize", "100000"), ("blksize", "1432")]),
            (&[("blksize", "65464")], &[("blksize", "1468")]),
            (&[("blksize", "512"), ("windowsize", "8")], &[("blksize", "512"), ("windowsize", "8")]),
            (&[("windowsize", "65535")], &[("windowsize", "64")]),
            (&[("nonsense", "1"), ("tsize", "0")], &[("tsize", "100000")]),
        ] {
            let (content, answer) = fetch(*server, b"\\undionly.kpxe", options).await.unwrap();
            assert!(content == expected, "{options:?}: {} bytes", content.len());
            let granted: Granted = granted.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(answer, granted, "{options:?}");
        }
    }
}

async fn a_configuration_is_rendered_behind_the_gate(engine: TftpEngine) {
    let rig = Rig::new(engine);
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
async fn a_configuration_has_every_name_of_pxelinux(engine: TftpEngine) {
    let rig = Rig::new(engine);
    assert_eq!(rig.text("pxelinux.cfg/default").await, NOT_FOUND, "nobody has this address yet");
    rig.scene.gate.met(ARMED, Ipv4Addr::LOCALHOST.into());
    let armed = rig.text("pxelinux.cfg/01-02-00-00-00-00-01").await;
    for name in ["7F000001", "7F00000", "7F", "7f0000", "default"] {
        assert_eq!(rig.text(&format!("pxelinux.cfg/{name}")).await, armed, "{name}");
    }
    assert_eq!(rig.text("pxelinux.cfg/7F000002").await, NOT_FOUND);
    assert_eq!(rig.text(&format!("pxelinux.cfg/{}", "1".repeat(36))).await, NOT_FOUND);
}

async fn kernel_and_initrd_come_by_token_until_the_gate_closes(engine: TftpEngine) {
    let rig = Rig::new(engine);
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

async fn a_changed_file_is_read_again(engine: TftpEngine) {
    let rig = Rig::new(engine);
    assert_eq!(rig.text("unnamed").await, "unnamed");
    std::fs::write(rig.scene.root().join("new"), "changed").unwrap();
    std::fs::rename(rig.scene.root().join("new"), rig.scene.root().join("unnamed")).unwrap();
    assert_eq!(rig.text("unnamed").await, "changed");
    std::fs::remove_file(rig.scene.root().join("unnamed")).unwrap();
    assert_eq!(rig.text("unnamed").await, NOT_FOUND);
}

async fn no_name_leads_out_of_the_root(engine: TftpEngine) {
    let rig = Rig::new(engine);
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

async fn writes_are_refused(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(b"\0\x02unnamed\0octet\0", rig.servers[0]).await.unwrap();
    let mut packet = [0; 600];
    let (length, _) = socket.recv_from(&mut packet).await.unwrap();
    assert_eq!(&packet[..4], [0, 5, 0, 2], "{:?}", &packet[..length]);
    assert_eq!(rig.text("unnamed").await, "unnamed");
}

async fn damaged_requests_and_silent_clients_cost_nobody_else_anything(engine: TftpEngine) {
    let rig = Rig::new(engine);
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

/// Fails twice, panics twice, then works.
#[derive(Debug)]
struct Flaky(AtomicU32, Arc<dyn Engine>);

impl Engine for Flaky {
    fn serve(
        &self,
        socket: std::net::UdpSocket,
        library: Arc<dyn Library>,
        stop: CancellationToken,
    ) -> BoxFuture<'static, io::Result<()>> {
        match self.0.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Box::pin(async { Err(io::Error::other("broken")) }),
            2 | 3 => Box::pin(async { panic!("broken on purpose") }),
            _ => self.1.serve(socket, library, stop),
        }
    }
}

#[tokio::test]
async fn an_engine_that_ends_is_started_again() {
    let flaky =
        |config: &TftpConfig| Arc::new(Flaky(AtomicU32::new(0), server::engine(config))) as Arc<dyn Engine>;
    let rig = Rig::run(TftpEngine::Own, |_| {}, flaky);
    assert_eq!(rig.text("unnamed").await, "unnamed");
    rig.stop.cancel();
    rig.running.await.unwrap();
}

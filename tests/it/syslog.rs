//! The syslog receiver on real sockets.

use std::{net::Ipv4Addr, path::Path, sync::Arc, time::Duration};

use bootflip::{
    boot::{Gate, Machine},
    clock::SystemClock,
    config::SyslogConfig,
    machine::MacAddr,
    sim::guest::{GuestPlan, Pace},
    syslog::server::{self, Board, Shared, earlier_file_of, file_of},
};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use crate::common::{
    PATIENCE,
    site::{Plan, Site, quick, vm},
};

const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);

struct Rig {
    folder: tempfile::TempDir,
    gate: Gate,
    board: Board,
    /// Known as the machine's address.
    machine: UdpSocket,
    stranger: UdpSocket,
    stop: CancellationToken,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn rig(file_size: u32) -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let gate = Gate::default();
    gate.update(|table| {
        table.know(Machine { mac: MAC, name: "web".into(), vm_uuid: "u".into(), armed: None })
    });
    let own = Ipv4Addr::new(127, 0, 0, 2);
    gate.met(MAC, own.into());
    let config =
        SyslogConfig { listen: "127.0.0.1:0".parse().unwrap(), device: Some("lo".into()), file_size };
    let shared = Shared {
        gate: gate.clone(),
        sink: Arc::new(crate::boot::Recorder::default()),
        clock: Arc::new(SystemClock),
        folder: folder.path().join("syslog"),
    };
    let server = server::bind(&config, shared).unwrap();
    let (address, board, stop) = (server.bound(), server.board(), CancellationToken::new());
    let socket = async |from: Ipv4Addr| {
        let socket = UdpSocket::bind((from, 0)).await.unwrap();
        socket.connect(address).await.unwrap();
        socket
    };
    let (machine, stranger) = (socket(own).await, socket(Ipv4Addr::new(127, 0, 0, 3)).await);
    tokio::spawn(server.run(stop.clone()));
    Rig { folder, gate, board, machine, stranger, stop }
}

impl Rig {
    fn folder(&self) -> std::path::PathBuf {
        self.folder.path().join("syslog")
    }

    /// Waits until a file holds this.
    async fn until(&self, file: &Path, holds: &str) -> String {
        let look = async {
            loop {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                if text.contains(holds) {
                    return text;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|_| panic!("{holds} is not in {}", file.display()))
    }
}

#[tokio::test]
async fn lines_are_filed_by_machine_and_those_of_strangers_counted() {
    let rig = rig(1 << 20).await;
    assert!(!rig.folder().exists());
    rig.stranger.send(b"<13>evil").await.unwrap();
    rig.machine.send(b"<14>Nov 28 14:03:59 main-menu[1]: one\x1b[2J").await.unwrap();
    rig.machine.send(b"").await.unwrap();
    rig.machine.send(b"<11>1 - - app - - - two").await.unwrap();
    let text = rig.until(&file_of(&rig.folder(), MAC), "two").await;
    let lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, ["info main-menu[1]: one\\u{1b}[2J", "err app: two"]);
    assert!(text.starts_with("20") && text.as_bytes()[19] == b'Z', "{text}");
    let files: Vec<_> =
        std::fs::read_dir(rig.folder()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(files, ["02:16:3e:00:00:01.log"]);
    let counts = rig.board.read();
    assert_eq!((counts.filed, counts.strangers, counts.empty, counts.too_many), (2, 1, 1, 0));
    // The stranger takes the address over that the machine had: it is known by it from now on.
    rig.gate.met(MAC, Ipv4Addr::new(127, 0, 0, 3).into());
    rig.stranger.send(b"<13>moved").await.unwrap();
    rig.until(&file_of(&rig.folder(), MAC), "notice moved").await;
}

#[tokio::test]
async fn a_full_file_is_kept_once() {
    let rig = rig(1000).await;
    let (now, before) = (file_of(&rig.folder(), MAC), earlier_file_of(&rig.folder(), MAC));
    for round in 0..6 {
        let line = format!("<13>round {round} {}", "x".repeat(400));
        rig.machine.send(line.as_bytes()).await.unwrap();
        rig.until(&now, &format!("round {round}")).await;
    }
    // Two lines fit: 0 and 1 went into a file that 2 and 3 replaced as the earlier one.
    let (now, before) = (std::fs::read_to_string(now).unwrap(), std::fs::read_to_string(before).unwrap());
    let rounds =
        |text: &str| text.lines().map(|line| line.split(' ').nth(3).unwrap().to_owned()).collect::<Vec<_>>();
    assert_eq!(
        (rounds(&before), rounds(&now)),
        (vec!["2".to_owned(), "3".to_owned()], vec!["4".to_owned(), "5".to_owned()])
    );
}

/// The address that the one guest of a site fetched from.
fn peer(site: &Site) -> Ipv4Addr {
    let log = site.log();
    let peer =
        log.split("peer=").find(|after| after.starts_with("127.64.")).unwrap_or_else(|| panic!("{log}"));
    peer.split([' ', ':']).next().unwrap().parse().unwrap()
}

/// Where the receiver of a site listens.
fn bound(site: &Site) -> String {
    let bound: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(site.path("state/bound.json")).unwrap()).unwrap();
    bound["syslog"].as_str().unwrap().to_owned()
}

/// From the guest's own address, as an installer would.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_log_prints_what_the_machine_of_a_job_sent() {
    let more = "[syslog]\nlisten = \"127.0.0.1:0\"\ndevice = \"lo\"\n".to_owned();
    let mut site = Site::new(Plan { more, ..Plan::of(vec![vm("web", 1)]) });
    site.serve().await;
    let id = site.deploy("web").await;
    site.run(&["jobs", "log", &id]).await.ended(0).says("nothing came from this machine");
    site.until_packages().await;
    let (peer, bound) = (peer(&site), bound(&site));
    let socket = UdpSocket::bind((peer, 0)).await.unwrap();
    let send = async {
        loop {
            socket.send_to(b"<11>Nov 28 14:03:59 anaconda: it works", &bound).await.unwrap();
            let ran = site.run(&["jobs", "log", "web"]).await.ended(0);
            if ran.out.contains(" err anaconda: it works\n") {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, send).await.unwrap();
    let health = site.folder.path().join("state/syslog/02:16:3e:00:00:01.log");
    assert!(health.exists());
}

/// It asks for no lease and no file between two stages: a report is the first that the new server hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn machine_that_installs_is_known_again_by_its_report_after_a_restart() {
    let more = "[syslog]\nlisten = \"127.0.0.1:0\"\ndevice = \"lo\"\n".to_owned();
    let pace = Pace { stage: Duration::from_secs(1), ..quick().pace };
    let guest = GuestPlan { pace, ..quick() };
    let mut site = Site::new(Plan { more, guest, ..Plan::of(vec![vm("web", 1)]) });
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_packages().await;
    let socket = UdpSocket::bind((peer(&site), 0)).await.unwrap();
    site.kill().await;
    site.serve().await;
    site.until_job(&id, "came to its late stage", |job| job.stages.iter().any(|stage| stage.name == "late"))
        .await;
    socket.send_to(b"<11>Nov 28 14:03:59 anaconda: still here", bound(&site)).await.unwrap();
    let file = file_of(&site.path("state/syslog"), MAC);
    site.until_job(&id, "ended", |job| job.is_over()).await;
    let text = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(text.contains("err anaconda: still here"), "`{text}`\n{}", site.log());
}

//! One VM of the lab, with a tiny responder in place of the server: the firmware, the installer, pygrub and the
//! installed system are real. Needs root, QEMU and a folder that tests/lab/prepare.sh filled.

use std::{
    collections::BTreeSet,
    future::IntoFuture,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path as UrlPath, State},
    http::StatusCode,
    routing::{get, post},
};
use bootflip::sim::lab::{
    Ended, Lab, LabError, Machine, Network,
    machine::{Content, MachineSpec},
    network::{self, NETMASK, RANGE, SERVER},
    qemu::NicModel,
};

/// MAC address of the one VM.
const MAC: &str = "02:16:3e:00:00:01";
/// Longer than any run seen on two loaded cores, three times over.
const PATIENCE: Duration = Duration::from_secs(240);

/// The lab's folder, or a skip that `BOOTFLIP_NO_SKIP=1` turns into a failure.
fn lab_or_skip() -> Option<Lab> {
    let folder = std::env::var_os("BOOTFLIP_LAB")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab"), PathBuf::from);
    let why = if nix::unistd::geteuid().is_root() {
        match Lab::open(&folder) {
            Ok(lab) => return Some(lab),
            Err(error) => error.to_string(),
        }
    } else {
        "not root".to_owned()
    };
    assert!(
        std::env::var_os("BOOTFLIP_NO_SKIP").is_none_or(|value| value != "1"),
        "the lab cannot run: {why}"
    );
    // Past the capture of the test's own output: a skip must be seen.
    let _ = writeln!(std::io::stderr(), "SKIP lab: {why}");
    None
}

/// What the guests told: stage and body, in order.
#[derive(Debug, Default)]
struct Reports(Mutex<Vec<(String, String)>>);

impl Reports {
    fn stages(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(stage, _)| stage.clone()).collect()
    }
}

/// The first report of each boot is told to come again later.
async fn report(
    State(reports): State<Arc<(Reports, Mutex<BTreeSet<String>>)>>,
    UrlPath((token, stage)): UrlPath<(String, String)>,
    body: String,
) -> StatusCode {
    if reports.1.lock().unwrap().insert(token) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    reports.0.0.lock().unwrap().push((stage, body));
    StatusCode::CREATED
}

fn responder(lab: &Lab, url: &str, reports: Arc<(Reports, Mutex<BTreeSet<String>>)>) -> Router {
    let script = format!(
        "#!ipxe\nkernel {url}/f/vmlinuz url={url}/a console=ttyS0 panic=5\ninitrd {url}/f/initrd.gz\n\
         initrd {url}/f/rootfs.cpio\nboot\n"
    );
    let answers = format!(
        "REPORT_URL='{url}/r/one'\nBOOTED_URL='{url}/r/two/booted'\nHOSTNAME='alpha'\nDISK='0'\nDISK_POSITION=0\n\
         DISK_SIZE={DISK_SIZE}\n"
    );
    let www = lab.www();
    let file = async move |UrlPath(name): UrlPath<String>| std::fs::read(www.join(name)).unwrap();
    Router::new()
        .route("/b", get(async || script))
        .route("/a", get(async || answers))
        .route("/f/{name}", get(file))
        .route("/r/{token}/{stage}", post(report))
        .with_state(reports)
}

const DISK_SIZE: u64 = 600 << 20;

#[test]
fn a_vm_installs_itself_over_the_wire_and_boots_what_pygrub_finds() {
    let Some(lab) = lab_or_skip() else { return };
    network::isolated(|network| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, install_and_boot(&lab, network)).await.unwrap()
        });
    })
    .unwrap();
}

async fn install_and_boot(lab: &Lab, network: &Network) {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind((SERVER, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let reports: Arc<(Reports, Mutex<BTreeSet<String>>)> = Arc::default();
    tokio::spawn(axum::serve(listener, responder(lab, &url, Arc::clone(&reports))).into_future());
    let _advertiser = network.advertise().unwrap();
    let range = format!("--dhcp-range={},{},{NETMASK},1h", RANGE.0, RANGE.1);
    let _dhcp =
        network.dnsmasq(&["--no-ping", "--leasefile-ro", &range, &format!("--dhcp-boot={url}/b")]).unwrap();
    let spec = MachineSpec {
        name: "alpha".into(),
        number: 0,
        macs: vec![MAC.parse().unwrap()],
        model: NicModel::E1000,
        disks: vec![(DISK_SIZE, Content::Blank), (8 << 20, Content::Witness)],
    };
    let machine = Machine::create(network, folder.path(), spec).unwrap();

    let blank = machine.bootable(lab).await;
    assert!(matches!(blank, Err(LabError::Pygrub(_))), "{blank:?}");
    assert_eq!(blank.unwrap_err().to_string(), "Unable to find partition containing kernel");

    let mut installer = machine.start_firmware(lab, "n", 1).unwrap();
    let ended = installer.ended().await;
    let console = std::fs::read_to_string(machine.console(1)).unwrap_or_default();
    assert_eq!(ended, Ended::PowerOff, "{console}");
    assert_eq!(reports.0.stages(), ["started", "partitioned", "base", "late", "done"], "{console}");

    let extracted = machine.bootable(lab).await.unwrap();
    assert!(extracted.args.starts_with("root=UUID="), "{}", extracted.args);
    let mut system = machine.start_extracted(lab, &extracted, 2).unwrap();
    let booted = async {
        while reports.0.stages().last().is_none_or(|stage| stage != "booted") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = booted => {}
        ended = system.ended() => panic!("{ended:?}: {}", std::fs::read_to_string(machine.console(2)).unwrap_or_default()),
    }
    system.kill().await;
    // No Xen here: `none` is the truth, and the disk is not the sda that was installed to.
    let last = reports.0.0.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last.1, "guest_type=none root=/dev/vda3 hostname=alpha");
    assert!(machine.witnesses_are_intact().unwrap());
}

//! One VM of the lab: the firmware, the installer, pygrub and the installed system are real. Needs root, QEMU and a folder that tests/lab/prepare.sh filled.

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
use bootflip::{
    sim::{
        lab::{
            Body, Installer, Lab, Network, Scene,
            network::{self, NETMASK, RANGE, SERVER},
            run::{self, LabOptions},
        },
        pool::{PersonAct, Release, VmTruth},
    },
    xen::Failure,
};

/// Longer than any run seen on two loaded cores, three times over.
const PATIENCE: Duration = Duration::from_secs(240);

/// The lab's folder, or a skip that `BOOTFLIP_NO_SKIP=1` turns into a failure.
fn lab_or_skip() -> Option<PathBuf> {
    let folder = std::env::var_os("BOOTFLIP_LAB")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab"), PathBuf::from);
    let why = if nix::unistd::geteuid().is_root() {
        match Lab::open(&folder, Installer::Mini) {
            Ok(_) => return Some(folder),
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

/// What the guests told: stage and body, in order; and the tokens that were put off once.
#[derive(Debug, Default)]
struct Told {
    reports: Mutex<Vec<(String, String)>>,
    put_off: Mutex<BTreeSet<String>>,
}

impl Told {
    fn stages(&self) -> Vec<String> {
        self.reports.lock().unwrap().iter().map(|(stage, _)| stage.clone()).collect()
    }
}

/// The first report of each boot is told to come again later.
async fn report(
    State(told): State<Arc<Told>>,
    UrlPath((token, stage)): UrlPath<(String, String)>,
    body: String,
) -> StatusCode {
    if told.put_off.lock().unwrap().insert(token) {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    told.reports.lock().unwrap().push((stage, body));
    StatusCode::CREATED
}

fn responder(lab: &Lab, url: &str, told: Arc<Told>) -> Router {
    let script = format!(
        "#!ipxe\nkernel {url}/f/vmlinuz url={url}/a console=ttyS0 panic=5\ninitrd {url}/f/initrd.gz\n\
         initrd {url}/f/rootfs.cpio\nboot\n"
    );
    let answers = format!(
        "REPORT_URL='{url}/r/one'\nBOOTED_URL='{url}/r/two/booted'\nHOSTNAME='lab-01'\nDISK='0'\nDISK_POSITION=0\n\
         DISK_SIZE=629145600\n"
    );
    let www = lab.www();
    let file = async move |UrlPath(name): UrlPath<String>| std::fs::read(www.join(name)).unwrap();
    Router::new()
        .route("/b", get(async || script))
        .route("/a", get(async || answers))
        .route("/f/{name}", get(file))
        .route("/r/{token}/{stage}", post(report))
        .with_state(told)
}

#[test]
fn a_vm_with_real_firmware_is_flipped_installed_restored_and_boots_by_pygrub() {
    let Some(folder) = lab_or_skip() else { return };
    let program = env!("CARGO_BIN_EXE_bootflip").into();
    let options = LabOptions {
        lab: folder,
        installer: Installer::Mini,
        vms: 1,
        tftp_engine: "own".into(),
        faults: false,
        json: true,
        program,
        keep: false,
    };
    let document = run::run(&options).unwrap();
    let vm = &document.vms[0];
    assert!(document.ok, "{}", document.table());
    assert_eq!((vm.evidence.as_str(), vm.power_state.as_str()), ("booted", "Running"));
    assert_eq!((vm.starts.hvm, vm.starts.pv), (1, 1));
    assert_eq!(vm.profile, "mini-tftp", "iPXE fetched kernel and initrds by TFTP");
    let stages: Vec<&str> = vm.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(stages, ["started", "partitioned", "base", "late", "done", "booted"]);
}

/// The lab without the server: a tiny responder, dnsmasq, and a person's hand on the pool.
#[test]
#[ignore = "a minute of emulation that the test above mostly covers; part of test-full"]
fn a_vm_installs_itself_over_the_wire_and_boots_what_pygrub_finds() {
    let Some(folder) = lab_or_skip() else { return };
    let lab = Lab::open(&folder, Installer::Mini).unwrap();
    network::isolated(|network| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::time::timeout(PATIENCE, install_and_boot(&lab, network)).await.unwrap()
        });
    })
    .unwrap();
}

/// The pool's only VM, and what a person does to it.
struct Hands {
    scene: Scene,
    uuid: String,
}

impl Hands {
    fn act(&self, act: PersonAct) -> Result<String, Failure> {
        self.scene.sim.pool.with(|pool, now| pool.person(now, &self.uuid, &act))
    }

    /// Plays guests until the pool shows what is waited for.
    async fn until(&mut self, what: impl Fn(&VmTruth, &Body) -> bool) -> VmTruth {
        loop {
            let truth = self.scene.after().remove(0);
            if what(&truth, &self.scene.body) {
                return truth;
            }
            tokio::select! {
                start = self.scene.next_start() => self.scene.body.start(start.unwrap()),
                () = tokio::time::sleep(Duration::from_millis(100)) => {}
            }
        }
    }

    fn console(&self, truth: &VmTruth) -> String {
        let domid = truth.domain.as_ref().map_or(1, |domain| domain.domid);
        let path = self.scene.body.console(&self.uuid, domid).unwrap();
        std::fs::read_to_string(path).unwrap_or_default()
    }
}

async fn install_and_boot(lab: &Lab, network: &Network) {
    let folder = tempfile::tempdir().unwrap();
    let listener = tokio::net::TcpListener::bind((SERVER, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let told: Arc<Told> = Arc::default();
    tokio::spawn(axum::serve(listener, responder(lab, &url, Arc::clone(&told))).into_future());
    let range = format!("--dhcp-range={},{},{NETMASK},1h", RANGE.0, RANGE.1);
    let boot = format!("--dhcp-boot={url}/b");
    let _dhcp = network.dnsmasq(&["--no-ping", "--leasefile-ro", &range, &boot]).unwrap();
    let scene = Scene::set(lab, network, folder.path(), 1, Release::V8_2).await.unwrap();
    let mut vm = Hands { uuid: scene.before[0].uuid.clone(), scene };

    let refused = vm.act(PersonAct::Start).unwrap_err();
    assert_eq!(refused.code, "BOOTLOADER_FAILED");
    assert_eq!(refused.params[1], "Unable to find partition containing kernel");

    vm.act(PersonAct::SetPolicy("BIOS order".to_owned())).unwrap();
    vm.act(PersonAct::SetBootParams([("order".to_owned(), "n".to_owned())].into())).unwrap();
    vm.act(PersonAct::Start).unwrap();
    vm.until(|vm, _| vm.domain.is_some()).await;
    let halted = vm.until(|vm, _| vm.power_state == "Halted").await;
    let console = vm.console(&halted);
    assert_eq!(told.stages(), ["started", "partitioned", "base", "late", "done"], "{console}");

    vm.act(PersonAct::SetPolicy(String::new())).unwrap();
    vm.act(PersonAct::Start).unwrap();
    let running = vm
        .until(|vm, body| vm.domain.as_ref().is_some_and(|domain| body.has_booted(&vm.uuid, domain.domid)))
        .await;
    assert_eq!((running.hvm_starts, running.pv_starts), (1, 1));
    // No Xen here: `none` is the truth, and the disk is not the sda that was installed to.
    let last = told.reports.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last, ("booted".to_owned(), "guest_type=none root=/dev/vda3 hostname=lab-01".to_owned()));
    assert!(vm.scene.body.witnesses_are_intact(&vm.uuid).unwrap());

    vm.act(PersonAct::HardShutdown).unwrap();
    vm.until(|vm, _| vm.power_state == "Halted").await;
    assert!(vm.scene.body.nothing_was_lost());
}

//! What the tests of the boot services share: a gate with one armed machine, published files, and a sink that
//! records.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use bootflip::{
    boot::{
        ArmPhase, Armed, Gate, Machine,
        going::Going,
        render::Templates,
        sink::{Noted, Report, ReportAnswer, Seen, Sign, Sink, Transfer, Unavailable},
    },
    config::BootFiles,
    machine::MacAddr,
    secret::{TokenHash, TokenKey, TokenUse},
};
use futures_util::future::BoxFuture;

/// The armed machine.
pub(crate) const ARMED: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
/// A known machine that may not netboot.
pub(crate) const IDLE: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);
/// Nobody.
pub(crate) const STRANGER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 3]);

/// The gate, what it opens, and where the files are.
pub(crate) struct Scene {
    pub(crate) gate: Gate,
    pub(crate) armed: Arc<Armed>,
    pub(crate) folder: tempfile::TempDir,
    pub(crate) sink: Arc<Recorder>,
}

impl Scene {
    /// Files: `u/linux` (300,000 bytes, each the low byte of its offset), `u/initrd.gz`, `u/live.iso`, `unnamed`, and a canary
    /// beside the root.
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("root/u")).unwrap();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
        write("root/u/linux", &kernel());
        write("root/u/initrd.gz", b"initrd");
        write("root/u/live.iso", b"iso");
        write("root/unnamed", b"unnamed");
        write("canary", b"canary");
        std::os::unix::fs::symlink("../canary", folder.path().join("root/out")).unwrap();
        let scene =
            Self { gate: Gate::default(), armed: armed(1, ArmPhase::Booting), folder, sink: Arc::default() };
        scene.gate.update(|table| {
            table.publish(machine(ARMED, Some(Arc::clone(&scene.armed))));
            table.publish(machine(IDLE, None));
        });
        scene
    }

    pub(crate) fn root(&self) -> std::path::PathBuf {
        Path::join(self.folder.path(), "root")
    }

    pub(crate) fn templates(&self) -> Arc<Templates> {
        Arc::new(Templates::new(BTreeMap::new()).unwrap())
    }

    pub(crate) fn disarm(&self) {
        self.gate.update(|table| table.publish(machine(ARMED, None)));
    }
}

pub(crate) fn kernel() -> Vec<u8> {
    (0..300_000_u32).map(|n| n.to_le_bytes()[0]).collect()
}

fn machine(mac: MacAddr, armed: Option<Arc<Armed>>) -> Machine {
    Machine { mac, name: "web".into(), vm_uuid: "u".into(), armed }
}

fn armed(attempt: u32, phase: ArmPhase) -> Arc<Armed> {
    let token = |usage| TokenKey::new([9; 32]).token("job", attempt, usage);
    Arc::new(Armed {
        job: "job".into(),
        attempt,
        vm_name: "web".into(),
        vm_uuid: "u".into(),
        mac: ARMED,
        render: token(TokenUse::Render),
        report: token(TokenUse::Report),
        booted: token(TokenUse::Booted),
        files: BootFiles {
            kernel: "u/linux".into(),
            initrd: vec!["u/initrd.gz".into()],
            args: "bootflip.answer={{ answer_url }}".into(),
            answer: Some("mini.j2".into()),
            fetch: bootflip::config::Fetch::Http,
            seed: vec!["extra=mini.j2".into()],
            files: vec!["u/live.iso".into()],
        },
        profile: "mini".into(),
        variables: BTreeMap::new(),
        disk: Some(("0".into(), 1 << 30)),
        xen: None,
        phase,
    })
}

/// A sink that keeps what it is told and answers as told.
#[derive(Debug)]
pub(crate) struct Recorder {
    pub(crate) seen: Mutex<Vec<Seen>>,
    pub(crate) transfers: Mutex<Vec<Transfer>>,
    pub(crate) reports: Mutex<Vec<Report>>,
    pub(crate) answers_fetched: Mutex<u32>,
    pub(crate) report_answer: Mutex<ReportAnswer>,
    pub(crate) answer_fetched: Mutex<Result<bool, Unavailable>>,
    signal: tokio::sync::Notify,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            transfers: Mutex::default(),
            reports: Mutex::default(),
            answers_fetched: Mutex::default(),
            report_answer: Mutex::new(ReportAnswer::Accepted),
            answer_fetched: Mutex::new(Ok(true)),
            signal: tokio::sync::Notify::new(),
        }
    }
}

impl Recorder {
    pub(crate) fn signs(&self) -> Vec<(MacAddr, Sign)> {
        self.seen.lock().unwrap().iter().map(|seen| (seen.mac, seen.sign)).collect()
    }

    /// Waits until a sign was seen.
    pub(crate) async fn until(&self, mac: MacAddr, sign: Sign) {
        let wait = async {
            loop {
                let notified = self.signal.notified();
                if self.signs().contains(&(mac, sign)) {
                    return;
                }
                notified.await;
            }
        };
        let limit = std::time::Duration::from_secs(20);
        assert!(tokio::time::timeout(limit, wait).await.is_ok(), "no {sign:?} of {mac}: {:?}", self.signs());
    }
}

impl Sink for Recorder {
    fn noted(&self, _: Noted) {}

    fn going(&self, _: &Arc<Going>) {}

    fn seen(&self, seen: Seen) {
        self.seen.lock().unwrap().push(seen);
        self.signal.notify_waiters();
    }

    fn transferred(&self, transfer: Transfer) {
        self.transfers.lock().unwrap().push(transfer);
        self.signal.notify_waiters();
    }

    fn answer_fetched<'a>(
        &'a self,
        _token: TokenHash,
        _peer: Option<std::net::IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        *self.answers_fetched.lock().unwrap() += 1;
        let answer = *self.answer_fetched.lock().unwrap();
        Box::pin(async move { answer })
    }

    fn report(&self, report: Report) -> BoxFuture<'_, ReportAnswer> {
        self.reports.lock().unwrap().push(report);
        let answer = *self.report_answer.lock().unwrap();
        Box::pin(async move { answer })
    }
}

//! The lab's own run: the demo's cycle with real firmware, a real installer and the real pygrub.
//!
//! A simulated pool, `bootflip serve` and `bootflip deploy` as children, and a QEMU for each domain, all in one
//! namespace. The verdict is the demo's: from the pool model's records, and from what guests and disks hold.

use std::{
    collections::HashMap,
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use tokio::{
    process::Child,
    time::{Instant, interval},
};

use super::{
    Installer, Lab, LabError, Network, Scene,
    faults::{Deed, Kills},
    layout::{self, Served},
    network::{self, NetworkError},
    scene,
};
use crate::sim::{
    demo::{
        children::{ChildError, Program, Server, tail},
        document::{Document, FaultCount, Starts, VmLine},
        jobs::{JobFeed, JobView},
        plan::DemoPlan,
        progress::Progress,
        verdict::{Facts, Verdict, judge},
    },
    pool::{DEFAULT_PASSWORD, LoggedCall, Release, VmTruth},
};

/// One run of the lab.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The folder that `prepare.sh` filled.
    pub lab: PathBuf,
    /// What is installed.
    pub installer: Installer,
    /// How many VMs, 1 to [`scene::MAX_VMS`].
    pub vms: u16,
    /// The server's `tftp.engine`.
    pub tftp_engine: String,
    /// The server is killed in the middle, at stages that the installer reports, and started again.
    pub faults: bool,
    /// One JSON document at the end, no progress.
    pub json: bool,
    /// The shipped binary.
    pub program: PathBuf,
    /// Leave disks, consoles and logs behind.
    pub keep: bool,
}

/// The lab could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Something of the lab itself.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Something of the lab on a real Xen.
    #[error(transparent)]
    Xen(Box<crate::sim::labxen::XenLabError>),
    /// The pool.
    #[error("the simulated pool refuses: {0}")]
    Pool(String),
    /// A file or folder.
    #[error("cannot write {path}")]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The threads that drive it.
    #[error("cannot start a runtime")]
    Runtime(#[source] io::Error),
    /// A child process.
    #[error("a child process of the lab failed")]
    Child(#[from] ChildError),
    /// The server ended by itself.
    #[error("the server ended by itself ({status}); its last lines:\n{tail}")]
    ServerEnded {
        /// How.
        status: ExitStatus,
        /// From its log.
        tail: String,
    },
    /// It took too long.
    #[error("the lab was not over after {0} s")]
    TooLong(u64),
    /// Ctrl-C.
    #[error("interrupted")]
    Interrupted,
}

impl From<NetworkError> for RunError {
    fn from(error: NetworkError) -> Self {
        Self::Lab(error.into())
    }
}

/// Between two looks at a console for the line that tells that the system is up.
const CONSOLE_PAUSE: Duration = Duration::from_millis(200);

/// Plays the lab, on threads of its own: blocks, and may be called within a runtime only where that may be. The
/// document says how it went.
pub fn run(options: &LabOptions) -> Result<Document, RunError> {
    let lab = Lab::open(&options.lab, options.installer)?;
    // Half an hour's evidence of what went wrong is not thrown away.
    let keep = |result: &Result<Document, RunError>| {
        options.keep
            || options.installer == Installer::Debian && !result.as_ref().is_ok_and(|document| document.ok)
    };
    apart(keep, async |network, folder| {
        let mut bench = Bench::set_up(options, &lab, network, folder).await?;
        bench.play().await
    })
}

/// Serves the lab's pool until Ctrl-C, with a QEMU for each domain and a configuration for a server of one's own.
/// Blocks as [`run`] does. `tell` gets a line for each thing that happens.
pub fn simulate(
    lab: &Path,
    vms: u16,
    release: Release,
    tell: impl Fn(&str) + Send + Sync,
) -> Result<(), RunError> {
    let lab = Lab::open(lab, Installer::Mini)?;
    apart(
        |_| false,
        async |network, folder| {
            let mut scene = Scene::set(&lab, network, folder, vms, release).await?;
            write_configuration(&lab, &scene, folder, vms, "own")?;
            tell(&format!(
                "{vms} PV VMs with blank disks, tagged {}, in a simulated pool at {}. To run a server beside them:\n\n  \
             nsenter --net={} bootflip serve -c {}\n\nCtrl-C ends all of it.",
                scene::TAG,
                scene.sim.url(),
                namespace(),
                folder.join(layout::CONFIG).display(),
            ));
            loop {
                tokio::select! {
                    Some(start) = scene.next_start() => {
                        let console = scene.body.console(&start.vm_uuid, start.domid).unwrap_or_default();
                        tell(&format!(
                            "domain {} of {} runs ({:?}): {}", start.domid, start.name, start.mode, console.display()
                        ));
                        scene.body.start(start);
                    }
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                }
            }
        },
    )
}

/// Runs `body` in a namespace and with a folder of its own, which goes unless `keep` says otherwise.
pub(in crate::sim) fn apart<T: Send>(
    keep: impl FnOnce(&Result<T, RunError>) -> bool,
    body: impl AsyncFnOnce(&Network, &Path) -> Result<T, RunError> + Send,
) -> Result<T, RunError> {
    let folder = make_folder()?;
    let result = network::isolated(|network| {
        // One thread: QEMU dies with the thread that started it, and this one lives to the end.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.map_err(RunError::Runtime)?.block_on(body(network, &folder))
    });
    let result = result.map_err(RunError::from).flatten();
    if keep(&result) {
        tracing::warn!(folder = %folder.display(), "the lab's folder is left");
    } else {
        // What cannot be removed is in the temporary folder; it does not change the result.
        let _ = std::fs::remove_dir_all(&folder);
    }
    result
}

/// The namespace of the calling thread, as other programs reach it.
pub(in crate::sim) fn namespace() -> String {
    format!("/proc/{}/task/{}/ns/net", std::process::id(), nix::unistd::gettid())
}

fn write_configuration(
    lab: &Lab,
    scene: &Scene,
    folder: &Path,
    at_once: u16,
    tftp_engine: &str,
) -> Result<(), RunError> {
    let names = scene.before.iter().map(|vm| vm.name.as_str());
    let installer = lab.installer();
    let served = Served { at_once, tftp_engine, deadlines: installer.deadlines() };
    let key = lab.mirror_key();
    let text = layout::config(folder, &lab.www(), scene.sim.address, names, &served, (installer, &key));
    write(&folder.join(layout::CONFIG), &text, 0o600)?;
    write(&folder.join(layout::PASSWORD), &format!("{DEFAULT_PASSWORD}\n"), 0o600)
}

/// The lab while it runs.
#[derive(Debug)]
struct Bench<'o> {
    options: &'o LabOptions,
    scene: Scene,
    program: Program,
    server: Server,
    kills: Kills,
    feed: JobFeed,
    deploy: Option<Child>,
    deploy_failed: bool,
    begun: Instant,
    /// What the server last told, by VM uuid.
    jobs: HashMap<String, JobView>,
    progress: Progress,
}

impl<'o> Bench<'o> {
    async fn set_up(
        options: &'o LabOptions,
        lab: &Lab,
        network: &Network,
        folder: &Path,
    ) -> Result<Self, RunError> {
        let begun = Instant::now();
        let scene = Scene::set(lab, network, folder, options.vms, Release::V8_2).await?;
        write_configuration(lab, &scene, folder, options.vms.min(AT_ONCE), &options.tftp_engine)?;
        let launcher = folder.join(layout::LAUNCHER);
        write(&launcher, &layout::launcher(&options.program), 0o700)?;
        let program =
            Program { path: launcher, config: folder.join(layout::CONFIG), logs: folder.to_owned() };
        let progress = Progress::new(options.json, scene.before.iter().map(|vm| vm.name.as_str()));
        Ok(Self {
            options,
            scene,
            server: Server::start(program.clone())?,
            kills: Kills::at(if options.faults { options.installer.kills() } else { &[] }),
            program,
            feed: JobFeed::new(folder.join(layout::ADMIN_SOCKET)),
            deploy: None,
            deploy_failed: false,
            begun,
            jobs: HashMap::new(),
            progress,
        })
    }

    async fn play(&mut self) -> Result<Document, RunError> {
        self.server_answers().await?;
        self.progress.say(&format!(
            "{} PV VMs with blank disks in a simulated pool at {}; all of it in the namespace {}",
            self.scene.before.len(),
            self.scene.sim.url(),
            namespace(),
        ));
        let tag = format!("tag={}", scene::TAG);
        let deploy = ["deploy", &tag, "--wait", "--yes"];
        self.deploy = Some(self.program.spawn(&deploy, "deploy")?);
        let rounds = u32::from(self.options.vms.div_ceil(AT_ONCE));
        let longest = LONGEST_START + self.options.installer.longest() * rounds;
        let ends = self.begun + longest;
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                Some(start) = self.scene.next_start() => self.scene.body.start(start),
                _ = tick.tick() => {
                    if self.tick().await? {
                        break;
                    }
                }
                _ = tokio::signal::ctrl_c() => return Err(RunError::Interrupted),
                () = tokio::time::sleep_until(ends) => {
                    self.progress.clear();
                    return Err(RunError::TooLong(longest.as_secs()));
                }
            }
        }
        self.progress.clear();
        let document = self.document()?;
        self.server.stop().await?;
        Ok(document)
    }

    /// The server's admin socket answers for the first time.
    async fn server_answers(&mut self) -> Result<(), RunError> {
        let ends = Instant::now() + START_TIME;
        while self.feed.jobs().await.is_err() {
            self.server_lives()?;
            if Instant::now() > ends {
                return Err(RunError::TooLong(START_TIME.as_secs()));
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    fn server_lives(&mut self) -> Result<(), RunError> {
        match self.server.ended() {
            Some(status) => Err(RunError::ServerEnded { status, tail: tail(&self.program.log("serve")) }),
            None => Ok(()),
        }
    }

    /// Looks at everything; true when all is over.
    async fn tick(&mut self) -> Result<bool, RunError> {
        self.server_lives()?;
        self.kill_or_restart().await?;
        if let Some(status) = self.deploy.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            self.deploy = None;
            self.deploy_failed = !status.success();
        }
        let Ok(jobs) = self.feed.jobs().await else { return Ok(false) };
        for job in jobs {
            if let Some(vm) = self.scene.before.iter().find(|vm| vm.uuid == job.vm_uuid) {
                self.progress.show(&vm.name, &job, self.begun.elapsed());
            }
            self.jobs.insert(job.vm_uuid.clone(), job);
        }
        Ok(self.deploy.is_none() && self.jobs.values().all(JobView::is_over))
    }

    async fn kill_or_restart(&mut self) -> Result<(), RunError> {
        match self.kills.due(Instant::now(), self.jobs.values()) {
            Some(Deed::Kill(stage)) => {
                self.server.kill().await?;
                self.progress.say(&format!("SIGKILL to the server at the stage {stage}"));
            }
            Some(Deed::Restart) => {
                self.server.restart()?;
                self.progress.say("the server is started again");
            }
            None => {}
        }
        Ok(())
    }

    fn document(&self) -> Result<Document, RunError> {
        let (log, calls) = self.scene.sim.pool.with(|pool, _| (pool.log().to_vec(), pool.client_calls()));
        // What the demo's judge expects: one attempt a VM, nobody's hand, no faults.
        let plan = DemoPlan::default();
        let after = self.scene.after();
        let mut vms = Vec::new();
        for (index, (before, after)) in self.scene.before.iter().zip(after).enumerate() {
            vms.push(self.line(&plan, index, before, after, &log)?);
        }
        let all_well = vms.len() == self.scene.before.len() && vms.iter().all(|vm| vm.complaints.is_empty());
        Ok(Document {
            ok: all_well
                && !self.deploy_failed
                && self.server.kills == self.kills.planned()
                && self.scene.body.nothing_was_lost(),
            seed: 0,
            xenapi_calls: calls,
            server_kills: self.server.kills,
            faults: self.faults(),
            vms,
            proof: Vec::new(),
            broken: None,
        })
    }

    fn faults(&self) -> Vec<FaultCount> {
        let kills = FaultCount {
            name: "server-kill".to_owned(),
            planned: self.kills.planned(),
            fired: self.server.kills,
        };
        if self.options.faults { vec![kills] } else { vec![] }
    }

    /// The domain's system is up, as its console tells. The server knows of the `booted` report a moment before.
    fn lives(&self, vm_uuid: &str, domid: u32, succeeded: bool) -> bool {
        let (_, patience) = self.options.installer.lives();
        let ends = Instant::now() + if succeeded { patience } else { Duration::ZERO };
        loop {
            if self.scene.body.has_booted(vm_uuid, domid) {
                return true;
            }
            if Instant::now() >= ends {
                return false;
            }
            std::thread::sleep(CONSOLE_PAUSE);
        }
    }

    /// What speaks against the disks: a witness that was written to, an fstab that does not name by UUID.
    fn disk_complaints(&self, vm_uuid: &str) -> Result<Vec<String>, RunError> {
        let mut complaints = Vec::new();
        if !self.scene.body.witnesses_are_intact(vm_uuid)? {
            complaints.push("the second disk was changed".to_owned());
        }
        match self.scene.body.fstab(vm_uuid) {
            Ok(fstab) if fstab.is_by_uuid() => {}
            Ok(fstab) => complaints.push(format!("not all of fstab is by UUID: {:?}", fstab.entries)),
            Err(error) => complaints.push(error.to_string()),
        }
        Ok(complaints)
    }

    fn line(
        &self,
        plan: &DemoPlan,
        index: usize,
        before: &VmTruth,
        after: VmTruth,
        log: &[LoggedCall],
    ) -> Result<VmLine, RunError> {
        let domid = after.domain.as_ref().map(|domain| domain.domid);
        let succeeded = self.jobs.get(&after.uuid).is_some_and(|job| job.state == "Succeeded");
        let booted_domid = domid.filter(|domid| self.lives(&after.uuid, *domid, succeeded));
        let mut verdict = judge(plan, Facts { index, before, after: &after, booted_domid, log });
        verdict.complaints.extend(self.disk_complaints(&after.uuid)?);
        for complaint in &verdict.complaints {
            tracing::warn!(vm = %after.name, complaint, "not as it should be");
        }
        let job = self.jobs.get(&after.uuid);
        Ok(vm_line(before, after, verdict, job, self.options.installer.profile(index)))
    }
}

/// A VM of the document: its records, the verdict on them, and the job as the server told it.
pub(in crate::sim) fn vm_line(
    before: &VmTruth,
    after: VmTruth,
    verdict: Verdict,
    job: Option<&JobView>,
    profile: &str,
) -> VmLine {
    VmLine {
        state: job.map(|job| job.state.clone()),
        reason: job.and_then(|job| job.reason.clone()),
        restored: verdict.restored,
        evidence: verdict.evidence.label().to_owned(),
        attempts: job.map_or(0, |job| job.attempt),
        starts: Starts { hvm: after.hvm_starts - before.hvm_starts, pv: after.pv_starts - before.pv_starts },
        states: job.map(|job| job.states.clone()).unwrap_or_default(),
        stages: job.map(|job| job.stages.clone()).unwrap_or_default(),
        complaints: verdict.complaints,
        profile: profile.to_owned(),
        name: after.name,
        uuid: after.uuid,
        power_state: after.power_state,
        domain_type: after.domain_type,
        hvm_boot_policy: after.hvm_boot_policy,
        hvm_boot_params: after.hvm_boot_params,
        pv_bootloader: after.pv_bootloader,
        claim: after.claim,
    }
}

fn make_folder() -> Result<PathBuf, RunError> {
    let folder = std::env::temp_dir().join(format!("bootflip-lab-{}", uuid::Uuid::new_v4().simple()));
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|source| RunError::Write { path: folder.clone(), source })?;
    Ok(folder)
}

pub(in crate::sim) fn write(path: &Path, text: &str, mode: u32) -> Result<(), RunError> {
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    written.map_err(|source| RunError::Write { path: path.to_owned(), source })
}

/// Installations at once: two emulated processors are as much as a small machine has.
const AT_ONCE: u16 = 2;
const TICK: Duration = Duration::from_millis(200);
/// The server has that long to answer for the first time.
const START_TIME: Duration = Duration::from_secs(20);
const LONGEST_START: Duration = Duration::from_secs(120);

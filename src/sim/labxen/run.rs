//! The lab's own run on a real Xen: a PV guest that runs is installed anew and comes back as PV.
//!
//! `bootflip serve` and `bootflip deploy --reinstall` as children, in the namespace on the guests' wire; nothing of
//! theirs is other than in production. The verdict is the demo's, from the pool model's records, and beyond it what
//! Xen, the kernels' consoles and the disks tell.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    process::Child,
    time::{Instant, interval},
};

use super::{LabXen, Scene, XenLabError, layout, scene, words};
use crate::sim::{
    demo::{
        children::{Program, Server, tail},
        document::{Document, FaultCount},
        jobs::{JobFeed, JobView},
        plan::DemoPlan,
        progress::Progress,
        verdict::{Evidence, Facts, judge},
    },
    lab::{
        Network, layout as lab_layout,
        run::{RunError, apart, namespace, vm_line, write},
    },
    pool::{BootMode, DEFAULT_PASSWORD, PersonAct, VmTruth},
};

/// One run.
#[derive(Debug, Clone)]
pub struct XenLabOptions {
    /// The folder that `tests/labxen/prepare.sh` filled.
    pub lab: PathBuf,
    /// One JSON document at the end, no progress.
    pub json: bool,
    /// The server is killed while the guest installs, and started again.
    pub faults: bool,
    /// The shipped binary.
    pub program: PathBuf,
    /// Leave disks, consoles and logs behind.
    pub keep: bool,
}

impl From<XenLabError> for RunError {
    fn from(error: XenLabError) -> Self {
        Self::Xen(Box::new(error))
    }
}

/// The stage after whose report the server is killed: the disk is partitioned, the system is not unpacked.
const KILL_STAGE: &str = "partitioned";
const TICK: Duration = Duration::from_millis(200);
/// 250 s on two quiet processors.
const LONGEST: Duration = Duration::from_secs(3600);
/// What the shell of a system that is up says on its console.
const UP: &str = "built-in shell (ash)";
/// The server knows of the report a moment before the guest has written that it was taken.
const CONSOLE_TIME: Duration = Duration::from_secs(60);

/// Plays it, on threads of its own: blocks, and may be called within a runtime only where that may be. The document
/// says how it went.
pub fn run(options: &XenLabOptions) -> Result<Document, RunError> {
    let lab = LabXen::open(&options.lab)?;
    apart(
        |_| options.keep,
        async |network, folder| {
            let mut bench = Bench::set_up(options, &lab, network, folder).await?;
            bench.play().await
        },
    )
}

/// Serves the pool until Ctrl-C, with a configuration for a server of one's own. Blocks as [`run`] does. `tell` gets
/// a line for each thing that happens.
pub fn simulate(lab: &Path, tell: impl Fn(&str) + Send + Sync) -> Result<(), RunError> {
    let lab = LabXen::open(lab)?;
    apart(
        |_| false,
        async |network, folder| {
            tell("Xen boots; that takes a quarter of a minute and more.");
            let mut scene = Scene::set(&lab, network, folder).await?;
            configure(&lab, &scene, folder)?;
            tell(&format!(
                "A halted PV VM, {}, with a system on its disk, in a simulated pool at {}; its domains are those of a \
             real Xen. To run a server beside it:\n\n  nsenter --net={} bootflip serve -c {}\n\nCtrl-C ends all of it.",
                scene::VM,
                scene.sim.url(),
                namespace(),
                folder.join(lab_layout::CONFIG).display(),
            ));
            loop {
                tokio::select! {
                    Some(order) = scene.sim.orders.recv() => {
                        tell(&format!("{}: {:?}", order.name, order.act));
                        scene.body.obey(order);
                    }
                    Some(start) = scene.sim.starts.recv() => {
                        tell(&format!("domain {} of {} runs: {:?}", start.domid, start.name, start.mode));
                    }
                    _ = tokio::signal::ctrl_c() => return Ok(()),
                }
            }
        },
    )
}

fn configure(lab: &LabXen, scene: &Scene, folder: &Path) -> Result<(), RunError> {
    let text = layout::config(folder, &lab.www(), scene.sim.address, scene::VM);
    write(&folder.join(lab_layout::CONFIG), &text, 0o600)?;
    write(&folder.join(lab_layout::PASSWORD), &format!("{DEFAULT_PASSWORD}\n"), 0o600)
}

/// The lab while it runs.
#[derive(Debug)]
struct Bench<'o> {
    options: &'o XenLabOptions,
    scene: Scene,
    program: Program,
    server: Server,
    feed: JobFeed,
    deploy: Option<Child>,
    deploy_failed: bool,
    begun: Instant,
    job: Option<JobView>,
    /// Domains that ran, oldest first.
    ran: Vec<(u32, BootMode)>,
    progress: Progress,
}

impl<'o> Bench<'o> {
    async fn set_up(
        options: &'o XenLabOptions,
        lab: &LabXen,
        network: &Network,
        folder: &Path,
    ) -> Result<Self, RunError> {
        let begun = Instant::now();
        let progress = Progress::new(options.json, std::iter::once(scene::VM));
        progress.say(&format!("Xen boots, in the namespace {}", namespace()));
        let scene = Scene::set(lab, network, folder).await?;
        progress.say(&format!("{:6.1} s  dom0 is up, its toolstack runs", begun.elapsed().as_secs_f64()));
        configure(lab, &scene, folder)?;
        let launcher = folder.join(lab_layout::LAUNCHER);
        write(&launcher, &lab_layout::launcher(&options.program), 0o700)?;
        let program =
            Program { path: launcher, config: folder.join(lab_layout::CONFIG), logs: folder.to_owned() };
        Ok(Self {
            options,
            scene,
            server: Server::start(program.clone())?,
            program,
            feed: JobFeed::new(folder.join(lab_layout::ADMIN_SOCKET)),
            deploy: None,
            deploy_failed: false,
            begun,
            job: None,
            ran: Vec::new(),
            progress,
        })
    }

    async fn play(&mut self) -> Result<Document, RunError> {
        let ends = self.begun + LONGEST;
        self.until(ends, async |bench| Ok(bench.feed.jobs().await.is_ok())).await?;
        let uuid = self.scene.uuid.clone();
        // As a person does it: it is no call of bootflip's.
        let begun = self.scene.sim.pool.with(|pool, now| pool.person(now, &uuid, &PersonAct::Start));
        begun.map_err(|failure| RunError::Pool(failure.to_string()))?;
        self.until(ends, async |bench| Ok(bench.is_up())).await?;
        self.say("the guest is up: PV, by pygrub, from the disk as it was before");
        let before = self.truth()?;
        self.deploy = Some(self.program.spawn(&DEPLOY, "deploy")?);
        self.until(ends, async |bench| bench.is_over().await).await?;
        self.progress.clear();
        let document = self.document(&before).await?;
        self.server.stop().await?;
        Ok(document)
    }

    /// Lets everything happen until `done` says so.
    async fn until(
        &mut self,
        ends: Instant,
        done: impl AsyncFn(&mut Self) -> Result<bool, RunError>,
    ) -> Result<(), RunError> {
        let mut tick = interval(TICK);
        loop {
            tokio::select! {
                Some(order) = self.scene.sim.orders.recv() => self.scene.body.obey(order),
                Some(start) = self.scene.sim.starts.recv() => {
                    self.say(&format!("Xen runs domain {} ({:?})", start.domid, start.mode));
                    self.ran.push((start.domid, start.mode));
                }
                _ = tick.tick() => {
                    self.server_lives()?;
                    if done(self).await? {
                        return Ok(());
                    }
                }
                _ = tokio::signal::ctrl_c() => return Err(RunError::Interrupted),
                () = tokio::time::sleep_until(ends) => {
                    self.progress.clear();
                    return Err(RunError::TooLong(LONGEST.as_secs()));
                }
            }
        }
    }

    fn say(&self, text: &str) {
        self.progress.say(&format!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64()));
    }

    fn server_lives(&mut self) -> Result<(), RunError> {
        match self.server.ended() {
            Some(status) => Err(RunError::ServerEnded { status, tail: tail(&self.program.log("serve")) }),
            None => Ok(()),
        }
    }

    fn truth(&self) -> Result<VmTruth, RunError> {
        let truth = self.scene.sim.pool.with(|pool, _| pool.truth(&self.scene.uuid));
        truth.ok_or_else(|| RunError::Pool("the VM is gone".to_owned()))
    }

    fn is_up(&self) -> bool {
        let domid = self.ran.last().map(|(domid, _)| *domid);
        domid.is_some_and(|domid| self.scene.body.console(&self.scene.uuid, domid).contains(UP))
    }

    /// Looks at the job, and strikes where that is due; true when all is over.
    async fn is_over(&mut self) -> Result<bool, RunError> {
        if let Some(status) = self.deploy.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            self.deploy = None;
            self.deploy_failed = !status.success();
        }
        let Ok(jobs) = self.feed.jobs().await else { return Ok(false) };
        let Some(job) = jobs.into_iter().find(|job| job.vm_uuid == self.scene.uuid) else {
            return Ok(self.deploy.is_none());
        };
        self.progress.show(scene::VM, &job, self.begun.elapsed());
        let strikes = self.options.faults
            && self.server.kills == 0
            && job.stages.last().is_some_and(|stage| stage.name == KILL_STAGE);
        let over = job.is_over();
        self.job = Some(job);
        if strikes {
            self.server.kill().await?;
            self.say("SIGKILL to the server, while the guest installs; it is started again");
            self.server.restart()?;
        }
        Ok(over && self.deploy.is_none())
    }

    async fn document(&self, before: &VmTruth) -> Result<Document, RunError> {
        let (log, calls) = self.scene.sim.pool.with(|pool, _| (pool.log().to_vec(), pool.client_calls()));
        let plan = DemoPlan::default();
        let after = self.truth()?;
        let domid = after.domain.as_ref().map(|domain| domain.domid);
        let guest_type = self.guest_type(domid).await;
        let booted_domid = domid.filter(|_| guest_type.is_some());
        let mut verdict = judge(&plan, Facts { index: 0, before, after: &after, booted_domid, log: &log });
        let complaints = &mut verdict.complaints;
        if guest_type.as_deref() != Some("PV") {
            complaints.push(format!("the guest's kernel says that it runs as {guest_type:?}"));
        }
        if !self.scene.witness_is_intact()? {
            complaints.push("the second disk was changed".to_owned());
        }
        let table = self.scene.body.dom0().run("xl list").await?;
        if words::listed(&table, scene::VM) != domid {
            complaints.push(format!("the pool says domain {domid:?}, xl list says:\n{table}"));
        }
        if words::ipxe_agent(&self.scene.body.dom0().wire()).is_none() {
            complaints.push("no iPXE asked for the boot script".to_owned());
        }
        let kills = u32::from(self.options.faults);
        let proven = verdict.evidence == Evidence::Booted && guest_type.as_deref() == Some("PV");
        let mut vm = vm_line(before, after, verdict, self.job.as_ref(), layout::PROFILE);
        if proven {
            vm.evidence = "pv".to_owned();
        }
        // Where the server was killed, `deploy` may have lost it; the job tells.
        let command_failed = self.deploy_failed && kills == 0;
        let struck = self.server.kills;
        let faults = (kills > 0).then(|| FaultCount {
            name: "server killed while the guest installs".to_owned(),
            planned: kills,
            fired: struck,
        });
        Ok(Document {
            ok: vm.complaints.is_empty()
                && !command_failed
                && struck == kills
                && self.scene.body.nothing_was_lost(),
            seed: 0,
            xenapi_calls: calls,
            server_kills: struck,
            faults: faults.into_iter().collect(),
            proof: self.proof(&table),
            vms: vec![vm],
            broken: None,
        })
    }

    /// What the system in this domain says its kernel runs as.
    async fn guest_type(&self, domid: Option<u32>) -> Option<String> {
        let domid = domid?;
        let ends = Instant::now() + CONSOLE_TIME;
        loop {
            let console = self.scene.body.console(&self.scene.uuid, domid);
            let found = words::guest_type(&console).map(str::to_owned);
            if found.is_some() || Instant::now() > ends {
                return found;
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// What consoles and Xen itself have said, domain by domain.
    fn proof(&self, table: &str) -> Vec<String> {
        let hypervisor = self.scene.body.dom0().hypervisor();
        let mut lines: Vec<String> = Vec::new();
        let xen = hypervisor.lines().find(|line| line.contains("Xen version"));
        lines.extend(xen.map(|line| line.trim().to_owned()));
        for (domid, mode) in &self.ran {
            lines.push(format!("domain {domid} ({mode:?}):"));
            let firmware = words::firmware_proofs(&hypervisor, *domid);
            let console = self.scene.body.console(&self.scene.uuid, *domid);
            let said = firmware.into_iter().chain(words::proofs(&console));
            lines.extend(said.map(|line| format!("  {line}")));
        }
        let agent = words::ipxe_agent(&self.scene.body.dom0().wire());
        lines.extend(agent.map(|agent| format!("on the wire: {agent}")));
        lines.push("xl list:".to_owned());
        lines.extend(table.lines().map(|line| format!("  {}", line.trim_end())));
        lines
    }
}

const DEPLOY: [&str; 5] = ["deploy", scene::VM, "--reinstall", "--wait", "--yes"];

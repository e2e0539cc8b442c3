//! The demo's own run: start everything, do the plan's deeds, watch, judge.

use std::{
    collections::{HashMap, HashSet},
    fs::DirBuilder,
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use tokio::{
    process::Child,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    children::{ChildError, Program, Server, tail},
    document::Document,
    guests::{Guests, Happened},
    jobs::{self, JobFeed, JobView},
    layout::{self, Ports},
    options::DemoOptions,
    plan::{Deed, DemoPlan, Hand, NOTE_KEY, VmPlan},
    ports::{self, Free},
    progress::Progress,
    scene::{Counts, Scene},
};
use crate::sim::{
    guest::client::{Wire, WireConfig, WireError},
    pool::{DEFAULT_PASSWORD, PersonAct, Pool, VmSpec},
    server::{SimError, SimOptions, SimServer},
};

/// The demo could not be played to its end.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// Its folder.
    #[error("cannot write {path}")]
    Write {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No free port.
    #[error("cannot find a free port on 127.0.0.1")]
    Port(#[source] io::Error),
    /// The simulated pool.
    #[error("cannot start the simulated pool")]
    Pool(#[source] SimError),
    /// The guests' wire.
    #[error("cannot start the guests' wire")]
    Wire(#[source] WireError),
    /// A child process.
    #[error("a child process of the demo failed")]
    Child(#[source] ChildError),
    /// The server ended by itself.
    #[error("the server ended by itself ({status}); its last lines:\n{tail}")]
    ServerEnded {
        /// How.
        status: ExitStatus,
        /// From its log.
        tail: String,
    },
    /// The server's admin socket stays silent.
    #[error("the server did not answer within {0} s; its last lines:\n{1}")]
    Silent(u64, String),
    /// Signals cannot be heard.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// Ctrl-C, or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

/// Plays the demo; the document says how it went.
pub async fn run(options: &DemoOptions) -> Result<Document, DemoError> {
    let folder = make_folder()?;
    let result = Demo::start(options, &folder).await;
    let result = match result {
        Ok(mut demo) => demo.play().await,
        Err(error) => Err(error),
    };
    if options.keep {
        tracing::info!(folder = %folder.display(), "the demo's folder is left");
    } else {
        // What cannot be removed is in the temporary folder; it does not change the result.
        let _ = std::fs::remove_dir_all(&folder);
    }
    result
}

struct Demo<'o> {
    options: &'o DemoOptions,
    scene: Scene,
    happened: mpsc::Receiver<Happened>,
    program: Program,
    server: Server,
    feed: JobFeed,
    deploy: Option<Child>,
    begun: Instant,
    /// When the server, killed, is started again.
    restart_at: Option<Instant>,
    /// Kills that wait until the server is back.
    kills_waiting: Vec<Hand>,
    hands_left: Vec<Hand>,
    counts: Counts,
    /// What the server last told, by VM uuid.
    jobs: HashMap<String, JobView>,
    /// Jobs and attempts that were told to try again.
    retried: HashSet<(String, u32)>,
    retries: Vec<(Child, (String, u32))>,
    progress: Progress,
    wire_stop: CancellationToken,
}

impl Drop for Demo<'_> {
    fn drop(&mut self) {
        self.wire_stop.cancel();
    }
}

impl<'o> Demo<'o> {
    async fn start(options: &'o DemoOptions, folder: &Path) -> Result<Self, DemoError> {
        let plan = DemoPlan::new(options);
        let mut pool = Pool::new(options.seed, options.release);
        let uuids: Vec<String> = plan.vms.iter().map(|vm| pool.add_vm(spec(vm))).collect();
        let before = uuids.iter().filter_map(|uuid| pool.truth(uuid)).collect();
        let sim_options = SimOptions { device: Some(DEVICE.to_owned()), ..SimOptions::default() };
        let sim = SimServer::start(pool, sim_options).map_err(DemoError::Pool)?;
        plan.wire.iter().for_each(|fault| sim.add_fault(fault.clone()));
        let (wire, ports) = wire(sim.address.port())?;
        for file in layout::files(folder, &ports, options, DEFAULT_PASSWORD) {
            write(&folder.join(file.path), &file.content, file.mode)?;
        }
        let wire_stop = CancellationToken::new();
        let (running, stop) = (Arc::clone(&wire), wire_stop.clone());
        tokio::spawn(async move { running.run(stop).await });
        let (sender, happened) = mpsc::channel(HAPPENED_QUEUE);
        let guests = Arc::new(Guests::new(plan.clone(), &uuids, wire, sim.pool.clone(), sender));
        let (config, logs) = (folder.join(layout::CONFIG), folder.to_owned());
        let program = Program { path: options.program.clone(), config, logs };
        let progress = Progress::new(options.json, plan.vms.iter().map(|vm| vm.name.as_str()));
        let server = Server::start(program.clone()).map_err(DemoError::Child)?;
        Ok(Self {
            options,
            hands_left: plan.hands.clone(),
            scene: Scene { plan, uuids, before, sim, guests },
            happened,
            program,
            server,
            feed: JobFeed::new(folder.join(layout::ADMIN_SOCKET)),
            deploy: None,
            begun: Instant::now(),
            restart_at: None,
            kills_waiting: vec![],
            counts: Counts::default(),
            jobs: HashMap::new(),
            retried: HashSet::new(),
            retries: vec![],
            progress,
            wire_stop,
        })
    }

    async fn play(&mut self) -> Result<Document, DemoError> {
        let mut stop = signal(SignalKind::terminate()).map_err(DemoError::Signals)?;
        let played = tokio::select! {
            played = self.play_through() => Some(played),
            () = stopped(&mut stop) => None,
        };
        self.progress.clear();
        match played {
            Some(played) => played?,
            None => return Err(DemoError::Interrupted),
        }
        self.counts.kills = self.server.kills;
        let document = self.scene.document(self.options, &self.jobs, &self.counts);
        self.server.stop().await.map_err(DemoError::Child)?;
        Ok(document)
    }

    async fn play_through(&mut self) -> Result<(), DemoError> {
        self.server_answers().await?;
        self.progress.say(&format!(
            "{} PV VMs in a simulated pool at {}; server and clients on device {DEVICE}; at most {} at once",
            self.scene.uuids.len(),
            self.scene.sim.url(),
            self.options.cap()
        ));
        let tag = format!("tag={}", layout::TAG);
        let mut deploy = vec!["deploy", &tag, "--profile", layout::PROFILE, "--wait", "--yes", "--json"];
        deploy.extend(self.options.stay_hvm.then_some("--stay-hvm"));
        self.deploy = Some(self.program.spawn(&deploy, DEPLOY).map_err(DemoError::Child)?);
        let ends = Instant::now() + self.longest();
        let mut tick = interval(self.tick_time());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(start) = self.scene.sim.starts.recv() => self.scene.guests.start(start),
                Some(happened) = self.happened.recv() => self.deeds(happened).await?,
                () = sleep_until(self.restart_at.unwrap_or(ends)), if self.restart_at.is_some() => self.restart()?,
                () = sleep(KILL_LOOK), if !self.kills_waiting.is_empty() => self.kill().await?,
                _ = tick.tick() => {
                    if self.tick().await? {
                        return Ok(());
                    }
                }
                () = sleep_until(ends) => {
                    self.progress.say(&format!("not over after {} s", self.longest().as_secs()));
                    self.counts.command_failed = true;
                    return Ok(());
                }
            }
        }
    }

    /// The server's admin socket answers for the first time.
    async fn server_answers(&mut self) -> Result<(), DemoError> {
        let ends = Instant::now() + START_TIME;
        while self.feed.jobs().await.is_err() {
            self.server_lives()?;
            if Instant::now() > ends {
                let tail = tail(&self.program.log("serve"));
                return Err(DemoError::Silent(START_TIME.as_secs(), tail));
            }
            tokio::time::sleep(TICK).await;
        }
        Ok(())
    }

    fn server_lives(&mut self) -> Result<(), DemoError> {
        match self.server.ended() {
            Some(status) => Err(DemoError::ServerEnded { status, tail: tail(&self.program.log("serve")) }),
            None => Ok(()),
        }
    }

    /// Far more than it should take.
    fn longest(&self) -> Duration {
        let rounds = u32::from(self.options.vms.div_ceil(self.options.cap()));
        LONGEST_START + LONGEST_ROUND * rounds
    }

    /// Between two looks at everything: the list of many jobs is long.
    fn tick_time(&self) -> Duration {
        TICK + TICK_FOR_EACH * u32::from(self.options.vms)
    }

    fn restart(&mut self) -> Result<(), DemoError> {
        self.restart_at = None;
        self.progress.say("the server is started again");
        self.server.restart().map_err(DemoError::Child)
    }

    /// Does what the plan holds for this moment.
    async fn deeds(&mut self, happened: Happened) -> Result<(), DemoError> {
        let due = |hand: &Hand| {
            let attempt_fits = hand.attempt.is_none_or(|attempt| attempt == happened.attempt);
            hand.vm == happened.vm && hand.moment == happened.moment && attempt_fits
        };
        let (now, later) = self.hands_left.drain(..).partition(due);
        self.hands_left = later;
        let now: Vec<Hand> = now;
        for hand in now {
            match hand.deed {
                Deed::KillServer { .. } => self.kills_waiting.push(hand),
                Deed::PersonShutsDown => self.person(&hand, &PersonAct::HardShutdown),
                Deed::PersonWritesNote => {
                    let note = PersonAct::AddOtherConfig {
                        key: NOTE_KEY.to_owned(),
                        value: "do not lose".to_owned(),
                    };
                    self.person(&hand, &note);
                }
            }
        }
        self.kill().await
    }

    fn person(&mut self, hand: &Hand, act: &PersonAct) {
        let Some(uuid) = self.scene.uuids.get(hand.vm) else { return };
        match self.scene.sim.pool.with(|pool, now| pool.person(now, uuid, act)) {
            Ok(_) => {
                self.progress.say(&format!("a person's hand: {}", hand.name));
                *self.counts.fired.entry(hand.name).or_default() += 1;
            }
            Err(failure) => tracing::warn!(hand = hand.name, ?failure, "the pool refused a person"),
        }
    }

    /// Kills the server if that is due, it is there, and no firmware waits for its first file: a ROM does not ask for
    /// that twice, and a VM with nothing to boot is no fault of the server's recovery.
    async fn kill(&mut self) -> Result<(), DemoError> {
        if !self.server.is_up() || self.scene.guests.ask_once() {
            return Ok(());
        }
        let Some(hand) = self.kills_waiting.pop() else { return Ok(()) };
        let Deed::KillServer { away } = hand.deed else { return Ok(()) };
        self.server.kill().await.map_err(DemoError::Child)?;
        *self.counts.fired.entry(hand.name).or_default() += 1;
        self.restart_at = Some(Instant::now() + away);
        self.progress.say(&format!("SIGKILL to the server; it stays away for {} ms", away.as_millis()));
        Ok(())
    }

    /// Looks at everything; true when all is over.
    async fn tick(&mut self) -> Result<bool, DemoError> {
        self.scene.guests.reap();
        self.server_lives()?;
        if let Some(status) = self.deploy.as_mut().and_then(|child| child.try_wait().ok().flatten()) {
            self.deploy = None;
            self.deployed(status);
        }
        self.reap_retries();
        let Ok(jobs) = self.feed.jobs().await else { return Ok(false) };
        for job in jobs {
            if let Some(vm) = self.scene.uuids.iter().position(|uuid| *uuid == job.vm_uuid) {
                let name = self.scene.plan.vms.get(vm).map(|vm| vm.name.clone()).unwrap_or_default();
                self.progress.show(&name, &job, self.begun.elapsed());
            }
            self.jobs.insert(job.vm_uuid.clone(), job);
        }
        let retrying = self.retry()?;
        let live = self.jobs.values().any(|job| !job.is_over());
        Ok(self.deploy.is_none()
            && self.retries.is_empty()
            && !retrying
            && !live
            && self.kills_waiting.is_empty())
    }

    /// The order is carried out. With planned failures its word is that some jobs failed at first, which is right.
    fn deployed(&mut self, status: ExitStatus) {
        self.counts.command_failed = !status.success() && self.scene.plan.mishaps.is_empty();
        let printed = std::fs::read(self.program.result(DEPLOY)).unwrap_or_default();
        self.counts.refusals = jobs::refusals(&printed);
    }

    /// A retry that did not reach a server, because that was killed meanwhile, is due again.
    fn reap_retries(&mut self) {
        let (retries, retried) = (&mut self.retries, &mut self.retried);
        retries.retain_mut(|(child, key)| match child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) if status.success() => false,
            Ok(Some(_)) | Err(_) => {
                retried.remove(key);
                false
            }
        });
    }

    /// Tries failed jobs again whose plan has more attempts, once their VM is undone; true: such a job is there.
    fn retry(&mut self) -> Result<bool, DemoError> {
        let mut found = false;
        for (index, uuid) in self.scene.uuids.iter().enumerate() {
            let Some(job) = self.jobs.get(uuid).filter(|job| job.has_failed()) else { continue };
            let expected = self.scene.plan.vms.get(index).map_or(1, VmPlan::expected_attempts);
            let key = (job.id.clone(), job.attempt);
            if job.attempt >= expected || self.retried.contains(&key) {
                continue;
            }
            found = true;
            if self.scene.is_undone(index) {
                let child =
                    self.program.spawn(&["jobs", "retry", &job.id], "retry").map_err(DemoError::Child)?;
                self.retries.push((child, key.clone()));
                self.retried.insert(key);
            }
        }
        Ok(found)
    }
}

fn spec(vm: &VmPlan) -> VmSpec {
    VmSpec {
        name: vm.name.clone(),
        macs: vec![vm.mac],
        tags: vec![layout::TAG.to_owned()],
        ..VmSpec::default()
    }
}

fn make_folder() -> Result<PathBuf, DemoError> {
    let name = format!("bootflip-demo-{}", uuid::Uuid::new_v4().simple());
    let folder = std::env::temp_dir().join(name);
    let made = DirBuilder::new().mode(0o700).create(&folder);
    made.map_err(|source| DemoError::Write { path: folder.clone(), source })?;
    Ok(folder)
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), DemoError> {
    let failed = |source| DemoError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(path, content).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(failed)
}

/// The guests' wire, and ports for the server. The client port is the wire's own.
fn wire(pool: u16) -> Result<(Arc<Wire>, Ports), DemoError> {
    let Free { udp: [dhcp_server, dhcp_proxy, tftp], tcp: [http] } =
        ports::free(DEVICE).map_err(DemoError::Port)?;
    let config =
        WireConfig { device: DEVICE.to_owned(), client_port: 0, server_port: dhcp_server, tftp_port: tftp };
    let wire = Wire::bind(config).map_err(DemoError::Wire)?;
    let dhcp_client = wire.client_port().map_err(DemoError::Port)?;
    Ok((Arc::new(wire), Ports { pool, dhcp_server, dhcp_client, dhcp_proxy, tftp, http }))
}

/// Somebody wants the demo to end.
async fn stopped(terminate: &mut Signal) {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The name of the files with what `deploy` says.
const DEPLOY: &str = "deploy";
/// The only device that anything in the demo is bound to.
const DEVICE: &str = "lo";
const HAPPENED_QUEUE: usize = 4096;
const TICK: Duration = Duration::from_millis(200);
const TICK_FOR_EACH: Duration = Duration::from_millis(2);
/// Between two looks whether a kill that waits can be done.
const KILL_LOOK: Duration = Duration::from_millis(20);
/// The server has that long to answer for the first time.
const START_TIME: Duration = Duration::from_secs(20);
const LONGEST_START: Duration = Duration::from_secs(150);
/// For each round of installations at once.
const LONGEST_ROUND: Duration = Duration::from_secs(30);

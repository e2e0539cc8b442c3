//! A site for the shipped binary: a simulated pool behind real XML-RPC, guests that speak real DHCP, TFTP and HTTP on
//! device `lo`, a folder with configuration and boot files, and the server's process while there is one.

use std::{
    fmt::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    sync::Arc,
    time::Duration,
};

use bootflip::{
    app::{self, views::JobView},
    machine::MacAddr,
    provision::{
        Job,
        job::{Evidence, State},
    },
    sim::{
        demo::{
            guests::{Guests, Happened},
            plan::{DemoPlan, Moment, VmPlan},
        },
        faults::{Fault, FaultKind, Trigger},
        guest::{
            GuestPlan, Pace, Stage,
            client::{Wire, WireConfig},
        },
        pool::{BootMode, DEFAULT_PASSWORD, DomainStart, Pool, Release, Timing, VmSpec, VmTruth},
        server::{SharedPool, SimOptions, SimServer},
    },
    store::{Store, jobs::Jobs, sqlite::SqliteStore},
};
use tokio::{
    process::{Child, Command},
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::ports;

/// Longer than anything takes, on a machine that is busy with other things.
pub(crate) const LONG: Duration = Duration::from_secs(90);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// What a site is made of.
pub(crate) struct Plan {
    /// The VMs.
    pub(crate) vms: Vec<VmSpec>,
    /// The names of VMs that will be made; guests run in them too.
    pub(crate) later: Vec<String>,
    /// How the guests behave; each HVM start the same.
    pub(crate) guest: GuestPlan,
    /// Guests that behave otherwise, by the VM's name.
    pub(crate) others: Vec<(String, GuestPlan)>,
    /// DHCP, TFTP, boot HTTP and the profile `mini`; false: only what `more` says.
    pub(crate) boot: bool,
    /// More of the configuration.
    pub(crate) more: String,
}

impl Plan {
    pub(crate) fn of(vms: Vec<VmSpec>) -> Self {
        Self { vms, later: Vec::new(), guest: quick(), others: Vec::new(), boot: true, more: String::new() }
    }
}

/// A VM of this name, with a MAC of its own.
pub(crate) fn vm(name: &str, number: u16) -> VmSpec {
    let [high, low] = number.to_be_bytes();
    VmSpec {
        name: name.to_owned(),
        macs: vec![MacAddr::new([0x02, 0x16, 0x3e, 0, high, low])],
        ..VmSpec::default()
    }
}

/// A guest that installs in less than two seconds, and waits long for a server that is away. Never in less than one:
/// start_time counts seconds, and a start that cannot be told from the one before is waited for a minute.
pub(crate) fn quick() -> GuestPlan {
    let plan = GuestPlan::hurried(3, LONG);
    let pace = Pace {
        post: Duration::from_millis(50),
        dhcp_wait: Duration::from_secs(2),
        kernel: Duration::from_millis(50),
        stage: Duration::from_millis(220),
        halt: Duration::from_millis(50),
        ..plan.pace
    };
    GuestPlan { pace, ..plan }
}

/// A pool that is quicker than real ones.
pub(crate) fn quick_pool() -> Pool {
    let span = |from, to| (Duration::from_millis(from), Duration::from_millis(to));
    let mut pool = Pool::new(7, Release::V8_2);
    pool.set_timing(Timing {
        start: span(50, 150),
        hard_shutdown: span(50, 150),
        clean_shutdown: span(100, 200),
        refusal: span(5, 20),
        exit: span(20, 50),
        start_time_lag: span(0, 100),
    });
    pool
}

/// Holds the nth call of this method; at its arrival, or when it is done and not answered.
pub(crate) fn hold(method: &str, nth: u32, kind: FaultKind) -> Fault {
    Fault { name: HELD.to_owned(), when: Trigger::nth(method, nth), kind }
}

/// The name of every [`hold`].
pub(crate) const HELD: &str = "held";

/// See the module.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pool: SharedPool,
    pub(crate) sim: SimServer,
    /// Domains boot as PV only while this is true.
    pub(crate) pv_boots: watch::Sender<bool>,
    /// Those of DHCP, TFTP and boot HTTP.
    pub(crate) ports: [u16; 3],
    /// What guests go through.
    pub(crate) happened: mpsc::Receiver<Happened>,
    /// The environment of every command.
    pub(crate) environment: Vec<(String, String)>,
    server: Option<Child>,
    stop: CancellationToken,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Site {
    pub(crate) fn new(plan: Plan) -> Self {
        let mut pool = quick_pool();
        let uuids: Vec<String> = plan.vms.iter().map(|vm| pool.add_vm(vm.clone())).collect();
        let options = SimOptions {
            device: Some("lo".to_owned()),
            login_delay: Duration::ZERO,
            ..SimOptions::default()
        };
        let mut sim = SimServer::start(pool, options).unwrap();
        let (stop, pool) = (CancellationToken::new(), sim.pool.clone());
        let ports = [ports::free(), ports::free(), ports::free()];
        let [server_port, tftp_port, _] = ports;
        let config = WireConfig { device: "lo".to_owned(), client_port: 0, server_port, tftp_port };
        let wire = Arc::new(Wire::bind(config).unwrap());
        let client_port = wire.client_port().unwrap();
        let (running, ending) = (Arc::clone(&wire), stop.clone());
        tokio::spawn(async move { running.run(ending).await });

        let (told, happened) = mpsc::channel(4096);
        let (pv_boots, may_boot) = watch::channel(true);
        let guests = Guests::new(demo_plan(&plan), &uuids, wire, pool.clone(), told);
        let (_, nothing) = mpsc::channel(1);
        let starts = std::mem::replace(&mut sim.starts, nothing);
        let play = play(Arc::new(guests), starts, may_boot);
        tokio::spawn(stop.clone().run_until_cancelled_owned(play));

        let folder = tempfile::tempdir().unwrap();
        let mut text = head(&sim.url());
        if plan.boot {
            text.push_str(&boot(ports, client_port));
            std::fs::create_dir_all(folder.path().join("root/mini")).unwrap();
            for file in ["mini/vmlinuz", "mini/initrd", "undionly.kpxe"] {
                std::fs::write(folder.path().join("root").join(file), file.repeat(1000)).unwrap();
            }
        }
        writeln!(text, "{}", plan.more).unwrap();
        std::fs::write(folder.path().join("b.toml"), text).unwrap();
        write_secret(&folder.path().join("password"), DEFAULT_PASSWORD);
        Self { folder, pool, sim, pv_boots, ports, happened, environment: Vec::new(), server: None, stop }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Changes the configuration's text.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let text = std::fs::read_to_string(self.path("b.toml")).unwrap();
        std::fs::write(self.path("b.toml"), change(text)).unwrap();
    }

    /// The shipped binary with this configuration.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
        command.args(arguments).arg("-c").arg(self.path("b.toml"));
        command.envs(self.environment.iter().cloned()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub(crate) async fn run(&self, arguments: &[&str]) -> Ran {
        let output = timeout(LONG, self.command(arguments).output()).await.expect("it ends").unwrap();
        Ran::of(output)
    }

    /// Starts the server; its admin socket answers when this returns.
    pub(crate) async fn serve(&mut self) {
        let command = self.command(&["serve"]);
        self.serve_by(command).await;
    }

    /// Starts the server by a command of the test's own.
    pub(crate) async fn serve_by(&mut self, mut command: Command) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("serve.log")).unwrap();
        let out = log.try_clone().unwrap();
        self.server = Some(command.stdout(out).stderr(log).kill_on_drop(true).spawn().unwrap());
        let until = Instant::now() + LONG;
        while tokio::net::UnixStream::connect(self.path("admin.sock")).await.is_err() {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < until, "no server: {ended:?}\n{}", self.log());
            sleep(LOOK).await;
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.server.as_ref().and_then(Child::id).unwrap()
    }

    /// What the server wrote to stdout and stderr.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    /// SIGKILL; the process is gone when this returns.
    pub(crate) async fn kill(&mut self) {
        self.server.take().unwrap().kill().await.unwrap();
    }

    /// SIGTERM; the exit code and how long it took.
    pub(crate) async fn terminate(&mut self) -> (Option<i32>, Duration) {
        let mut server = self.server.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id().unwrap()).unwrap());
        let begun = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = timeout(LONG, server.wait()).await.expect("it ends").unwrap();
        (status.code(), begun.elapsed())
    }

    /// Orders an installation with profile `mini`; the job's id.
    pub(crate) async fn deploy(&self, name: &str) -> String {
        let order = ["deploy", name, "-p", "mini", "--reinstall", "--yes", "--json"];
        let answer = self.run(&order).await.ended(0).json();
        answer["vms"][0]["job"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// The job as `jobs show` tells it.
    pub(crate) async fn job(&self, id: &str) -> JobView {
        let shown = self.run(&["jobs", "show", id, "--json"]).await.ended(0);
        serde_json::from_str(&shown.out).unwrap()
    }

    /// Waits until the job ended as it should, and the pool's record says so too.
    pub(crate) async fn until_installed(&self, id: &str, before: &VmTruth) {
        let job = self.until_job(id, "ended", |job| job.is_over()).await;
        assert_eq!((job.state, job.evidence), (State::Succeeded, Evidence::Pv), "{job:#?}\n{}", self.log());
        assert_eq!(blemishes(before, &self.truth(&before.name)), Vec::<String>::new());
    }

    /// Waits until an installer has reached its packages.
    pub(crate) async fn until_packages(&mut self) {
        let mut reached = Moment::HvmRuns;
        while reached != Moment::At(Stage::Packages) {
            reached = timeout(LONG, self.happened.recv()).await.expect("an installer").unwrap().moment;
        }
    }

    /// Waits until the server has read this many machines from the pool.
    pub(crate) async fn until_known(&self, machines: usize) {
        let until = Instant::now() + LONG;
        while !self.log().contains(&format!("machines={machines}")) {
            assert!(Instant::now() < until, "the pool was not read: {}", self.log());
            sleep(LOOK).await;
        }
    }

    /// Waits until the job is as wanted.
    pub(crate) async fn until_job(&self, id: &str, what: &str, wanted: impl Fn(&JobView) -> bool) -> JobView {
        let until = Instant::now() + LONG;
        loop {
            let job = self.job(id).await;
            if wanted(&job) {
                return job;
            }
            assert!(Instant::now() < until, "the job never {what}: {job:#?}\n{}", self.log());
            sleep(LOOK * 4).await;
        }
    }

    /// Waits until a fault of this name has fired.
    pub(crate) async fn fired(&self, fault: &str) {
        let fired = timeout(LONG, self.sim.fired(fault, 1)).await;
        fired.unwrap_or_else(|_| panic!("no call met the fault {fault}\n{}", self.log()));
    }

    pub(crate) fn truth(&self, name: &str) -> VmTruth {
        self.pool.with(|pool, _| {
            let mut all = pool.uuids().into_iter().filter_map(|uuid| pool.truth(&uuid));
            all.find(|vm| vm.name == name).unwrap()
        })
    }

    /// How often the pool was asked this.
    pub(crate) fn calls(&self, method: &str) -> u32 {
        let count = |pool: &mut Pool, _| pool.log().iter().filter(|call| call.method == method).count();
        u32::try_from(self.pool.with(count)).unwrap()
    }

    /// The jobs in the database as it stands; the server must not run. The database itself is not opened.
    pub(crate) async fn journal(&self) -> Vec<Job> {
        let copy = tempfile::tempdir().unwrap();
        for ending in ["", "-wal"] {
            let name = format!("{}{ending}", app::DATABASE);
            let from = self.path("state").join(&name);
            if from.exists() {
                std::fs::copy(from, copy.path().join(name)).unwrap();
            }
        }
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(copy.path().join(app::DATABASE)).unwrap());
        Jobs::new(store).all().await.unwrap().into_iter().map(|stored| stored.unwrap().job).collect()
    }
}

/// How a VM differs from what an installation must leave of `before`; empty: not at all. Read from the pool alone.
pub(crate) fn blemishes(before: &VmTruth, after: &VmTruth) -> Vec<String> {
    let mut config = after.other_config.clone();
    config.remove("bootflip:installed");
    let starts = (after.hvm_starts - before.hvm_starts, after.pv_starts - before.pv_starts);
    let as_pv = after.domain.as_ref().is_some_and(|domain| domain.mode == BootMode::Pv && !domain.paused);
    let mut blemishes = differences(before, &VmTruth { other_config: config, ..after.clone() });
    if starts != (1, 1) {
        blemishes.push(format!("{} HVM and {} PV starts", starts.0, starts.1));
    }
    if !as_pv || after.power_state != "Running" {
        blemishes.push(format!("it is {} with {:?}", after.power_state, after.domain));
    }
    blemishes
}

/// The settings of a VM that are not as they were.
pub(crate) fn differences(before: &VmTruth, after: &VmTruth) -> Vec<String> {
    let shown = |vm: &VmTruth| {
        [
            ("domain_type", format!("{:?}", vm.domain_type)),
            ("HVM_boot_policy", format!("{:?}", vm.hvm_boot_policy)),
            ("HVM_boot_params", format!("{:?}", vm.hvm_boot_params)),
            ("PV_bootloader", format!("{:?}", vm.pv_bootloader)),
            ("PV_args", format!("{:?}", vm.pv_args)),
            ("actions_after", format!("{:?}", vm.actions_after)),
            ("platform", format!("{:?}", vm.platform)),
            ("other_config", format!("{:?}", vm.other_config)),
            ("claim", format!("{:?}", vm.claim)),
        ]
    };
    let both = shown(before).into_iter().zip(shown(after));
    both.filter(|(was, is)| was != is)
        .map(|((field, was), (_, is))| format!("{field} is {is}, was {was}"))
        .collect()
}

fn demo_plan(plan: &Plan) -> DemoPlan {
    let guest = |name: &str| {
        let other = plan.others.iter().find(|(of, _)| of == name);
        other.map_or_else(|| plan.guest.clone(), |(_, guest)| guest.clone())
    };
    let one = |vm: &VmSpec| VmPlan {
        name: vm.name.clone(),
        mac: vm.macs.first().copied().unwrap_or(MacAddr::new([2; 6])),
        attempts: vec![guest(&vm.name)],
    };
    let later = plan.later.iter().map(|name| one(&VmSpec { name: name.clone(), ..VmSpec::default() }));
    DemoPlan { vms: plan.vms.iter().map(one).chain(later).collect(), ..DemoPlan::default() }
}

/// Runs a guest for every domain, and stops those whose domains are gone.
async fn play(guests: Arc<Guests>, mut starts: mpsc::Receiver<DomainStart>, may_boot: watch::Receiver<bool>) {
    loop {
        let start = match timeout(LOOK, starts.recv()).await {
            Err(_) => {
                guests.reap();
                continue;
            }
            Ok(None) => return,
            Ok(Some(start)) => start,
        };
        guests.reap();
        let (guests, mut may_boot) = (Arc::clone(&guests), may_boot.clone());
        tokio::spawn(async move {
            if start.mode != BootMode::Pv || may_boot.wait_for(|open| *open).await.is_ok() {
                guests.start(start);
            }
        });
    }
}

fn head(pool: &str) -> String {
    format!(
        r#"[server]
name = "site"
state_dir = "state"
[pool.main]
url = "{pool}"
plain_http = true
user = "root"
password_file = "password"
[admin]
socket = "admin.sock"
[deadlines]
poll = "500ms"
halt_after_report = "1s"
report_after_halt = "5s"
"#
    )
}

fn boot([server, tftp, http]: [u16; 3], client: u16) -> String {
    let host = Ipv4Addr::LOCALHOST;
    format!(
        r#"[[dhcp]]
interface = "lo"
mode = "server"
address = "{host}"
server_port = {server}
client_port = {client}
[dhcp.server]
range = ["127.64.0.1", "127.64.255.254"]
netmask = "255.255.0.0"
[tftp]
listen = ["{host}:{tftp}"]
root = "root"
device = "lo"
[http]
listen = "{host}:{http}"
root = "root"
device = "lo"
[profile.mini]
kernel = "mini/vmlinuz"
initrd = "mini/initrd"
args = "console=ttyS0 bootflip.answer={{{{ answer_url }}}}"
answer = "mini.j2"
"#
    )
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) said: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), said: text(output.stderr) }
    }

    #[track_caller]
    pub(crate) fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.said);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        let all = format!("{}{}", self.out, self.said);
        assert!(all.contains(text), "`{text}` is not in: {all}");
    }
}

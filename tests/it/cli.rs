//! The binary as an operator uses it, against a simulated pool: `serve` and the commands as child processes.
//! The guests here halt by themselves (`completion = "halt"`), so that nothing but the pool is needed.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use bootflip::sim::{
    faults::{Fault, FaultKind, Trigger},
    pool::{
        BootMode, DEFAULT_PASSWORD, DiskSpec, DomainStart, GuestAct, PersonAct, Pool, Release, VmSpec,
        VmTruth,
    },
    server::{SharedPool, SimOptions, SimServer},
};
use serde_json::Value;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

const LONG: Duration = Duration::from_secs(60);

/// A pool, a folder with a configuration, and the server's process while there is one.
struct Site {
    folder: tempfile::TempDir,
    pool: SharedPool,
    sim: SimServer,
    server: Option<Child>,
}

/// What guests of the tests do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guests {
    /// An HVM guest halts after a moment; a PV guest stays.
    Install,
    /// They stay.
    Stay,
}

const PROFILES: &str = r#"
[profile.ext]
completion = "halt"
evidence = "none"
accept_weak = true
min_install = "200ms"

[profile.weak]
completion = "halt"
evidence = "none"
min_install = "200ms"
"#;

fn vm(name: &str, number: u8) -> VmSpec {
    VmSpec {
        name: name.to_owned(),
        macs: vec![bootflip::machine::MacAddr::new([0x02, 0x16, 0x3e, 0, 0, number])],
        tags: vec!["new".to_owned()],
        bootable: Some(Ok(())),
        ..VmSpec::default()
    }
}

impl Site {
    fn new(vms: Vec<VmSpec>, guests: Guests) -> Self {
        Self::with(vms, guests, PROFILES, Vec::new())
    }

    fn with(vms: Vec<VmSpec>, guests: Guests, more: &str, faults: Vec<Fault>) -> Self {
        let mut pool = Pool::new(7, Release::V8_2);
        for vm in vms {
            pool.add_vm(vm);
        }
        let mut sim = SimServer::start(pool, SimOptions::default()).unwrap();
        faults.into_iter().for_each(|fault| sim.add_fault(fault));
        let pool = sim.pool.clone();
        let (_, nothing) = tokio::sync::mpsc::channel(1);
        let starts = std::mem::replace(&mut sim.starts, nothing);
        tokio::spawn(play(pool.clone(), starts, guests));
        let folder = tempfile::tempdir().unwrap();
        let text = format!(
            "[server]\nname = \"site\"\nstate_dir = \"state\"\n[pool.main]\nurl = \"{}\"\nplain_http = true\nuser = \"root\"\npassword_file = \"password\"\n[admin]\nsocket = \"admin.sock\"\n[deadlines]\npoll = \"1s\"\n{more}",
            sim.url()
        );
        std::fs::write(folder.path().join("b.toml"), text).unwrap();
        write_secret(&folder.path().join("password"), DEFAULT_PASSWORD);
        Self { folder, pool, sim, server: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
        command.args(arguments).arg("-c").arg(self.path("b.toml")).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        let output = timeout(LONG, self.command(arguments).output()).await.expect("it ends").unwrap();
        Ran::of(output)
    }

    async fn serve(&mut self) {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.path("serve.log")).unwrap();
        let server = self.command(&["serve"]).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        self.server = Some(server);
        let until = Instant::now() + LONG;
        while tokio::net::UnixStream::connect(self.path("admin.sock")).await.is_err() {
            assert!(Instant::now() < until, "the server does not answer: {}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("serve.log")).unwrap_or_default()
    }

    async fn kill(&mut self) {
        self.server.take().unwrap().kill().await.unwrap();
    }

    /// SIGTERM; the exit code and how long it took.
    async fn terminate(&mut self) -> (Option<i32>, Duration) {
        let mut server = self.server.take().unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(server.id().unwrap()).unwrap());
        let begun = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = timeout(LONG, server.wait()).await.expect("it ends").unwrap();
        (status.code(), begun.elapsed())
    }

    fn truth(&self, name: &str) -> VmTruth {
        self.pool.with(|pool, _| {
            let all = pool.uuids().into_iter().filter_map(|uuid| pool.truth(&uuid));
            all.into_iter().find(|vm| vm.name == name).unwrap()
        })
    }

    fn person(&self, name: &str, act: &PersonAct) {
        let uuid = self.truth(name).uuid;
        self.pool.with(|pool, now| pool.person(now, &uuid, act)).unwrap();
    }

    /// Waits until the pool's record is as wanted.
    async fn until(&self, name: &str, what: &str, wanted: impl Fn(&VmTruth) -> bool) {
        let until = Instant::now() + LONG;
        while !wanted(&self.truth(name)) {
            assert!(Instant::now() < until, "{name} never {what}: {:?}\n{}", self.truth(name), self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn is_back(&self, name: &str) {
        let vm = self.truth(name);
        assert_eq!(vm.domain_type.as_deref(), Some("pv"), "{vm:?}");
        assert_eq!((vm.hvm_boot_policy.as_str(), vm.hvm_boot_params.len()), ("", 0), "{vm:?}");
        assert_eq!(vm.actions_after, ["destroy", "restart", "restart"], "{vm:?}");
        assert_eq!(vm.claim, None, "{vm:?}");
    }
}

async fn play(pool: SharedPool, mut starts: tokio::sync::mpsc::Receiver<DomainStart>, guests: Guests) {
    while let Some(start) = starts.recv().await {
        if guests == Guests::Install && start.mode != BootMode::Pv {
            let pool = pool.clone();
            tokio::spawn(async move {
                sleep(Duration::from_millis(800)).await;
                pool.with(|pool, now| pool.guest(now, &start.vm_uuid, start.domid, GuestAct::PowerOff));
            });
        }
    }
}

fn write_secret(path: &Path, text: &str) {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.unwrap().write_all(text.as_bytes()).unwrap();
}

/// What a command came to.
struct Ran {
    code: Option<i32>,
    out: String,
    said: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Self { code: output.status.code(), out: text(output.stdout), said: text(output.stderr) }
    }

    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.said);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}", self.out))
    }

    #[track_caller]
    fn says(&self, text: &str) {
        let all = format!("{}{}", self.out, self.said);
        assert!(all.contains(text), "`{text}` is not in: {all}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deploy_waits_until_the_vm_is_installed_and_back() {
    let mut site = Site::new(vec![vm("web", 1), vm("db", 2)], Guests::Install);
    site.serve().await;
    let done =
        site.run(&["deploy", "tag=new", "--profile", "ext", "--wait", "--yes", "--json"]).await.ended(0);
    let document = done.json();
    assert_eq!(document["ok"], true);
    for job in document["jobs"].as_array().unwrap() {
        assert_eq!((&job["state"], &job["evidence"]), (&"Succeeded".into(), &"weak".into()));
        let states: Vec<&str> =
            job["states"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(states.first(), Some(&"Queued"));
        assert_eq!(states.last(), Some(&"Succeeded"));
    }
    for name in ["web", "db"] {
        site.is_back(name);
        let vm = site.truth(name);
        assert_eq!((vm.hvm_starts, vm.pv_starts), (1, 1));
        assert_eq!(vm.domain.unwrap().mode, BootMode::Pv);
    }
    let shown = site.run(&["jobs", "show", "web"]).await.ended(0);
    shown.says("asked by");
    shown.says("next step");
    assert_eq!(site.run(&["jobs", "list", "--json"]).await.ended(0).json().as_array().unwrap().len(), 2);
    let (code, took) = site.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert!(!site.path("admin.sock").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn weak_evidence_is_exit_code_3_unless_accepted() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Install);
    site.serve().await;
    let ran = site.run(&["deploy", "web", "-p", "weak", "--wait"]).await.ended(3);
    ran.says("Succeeded");
    site.is_back("web");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_mean_no_vm_or_several_stop_the_order() {
    let mut site = Site::new(vec![vm("twin", 1), vm("twin", 2), vm("web", 3)], Guests::Stay);
    site.serve().await;
    for yes in [&["--yes"][..], &[]] {
        let with = |selectors: &[&'static str]| [&["deploy", "--profile", "ext"], selectors, yes].concat();
        site.run(&with(&["web", "nobody"])).await.ended(2).says("no VM has this name or uuid");
        let twin = site.run(&with(&["web", "twin"])).await.ended(2);
        for uuid in site.pool.with(|pool, _| pool.uuids()) {
            let named = site.pool.with(|pool, _| pool.truth(&uuid)).unwrap().name;
            assert_eq!(twin.said.contains(&uuid), named == "twin", "{}", twin.said);
        }
    }
    site.run(&["deploy", "tag=new", "-p", "ext"]).await.ended(2).says("say --yes");
    site.run(&["deploy", "web", "-p", "none"]).await.ended(2).says("there is no profile `none`");
    site.run(&["deploy", "web"]).await.ended(3).says("no profile: name one with --profile");
    assert_eq!(site.run(&["jobs", "list", "--json"]).await.json(), Value::Array(Vec::new()));
    assert_eq!(site.truth("web").hvm_starts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_be_erased_is_refused_with_nothing_changed() {
    let ran = VmSpec { ever_ran: true, ..vm("old", 1) };
    let two = VmSpec {
        disks: vec![DiskSpec::default(), DiskSpec { userdevice: "1".into(), ..DiskSpec::default() }],
        ..vm("two", 2)
    };
    let mut site = Site::new(vec![ran, two, vm("web", 3)], Guests::Install);
    site.serve().await;
    let before = [site.truth("old"), site.truth("two")];
    let plan = site.run(&["deploy", "tag=new", "-p", "ext", "--plan", "--json"]).await.ended(3).json();
    let outcomes: HashMap<&str, (&str, Option<&str>)> = plan["vms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| {
            let text = |key: &str| vm[key].as_str();
            (text("vm").unwrap(), (text("outcome").unwrap(), text("reason")))
        })
        .collect();
    assert_eq!(outcomes["old"], ("refused", Some("has-run")));
    assert_eq!(outcomes["two"], ("refused", Some("which-disk")));
    assert_eq!(outcomes["web"], ("ready", None));
    let done = site.run(&["deploy", "tag=new", "-p", "ext", "--yes", "--wait"]).await.ended(3);
    done.says("--reinstall");
    assert_eq!([site.truth("old"), site.truth("two")], before);
    assert_eq!(site.truth("web").pv_starts, 1);
    site.run(&["deploy", "old", "-p", "ext", "--reinstall", "--wait"]).await.ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_order_is_answered_with_the_live_job() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Stay);
    site.serve().await;
    let first = site.run(&["deploy", "web", "-p", "ext", "--json"]).await.ended(0).json();
    let again = site.run(&["deploy", "web", "-p", "ext", "--json"]).await.ended(0).json();
    assert_eq!(again["vms"][0]["outcome"], "existing");
    assert_eq!(first["vms"][0]["job"], again["vms"][0]["job"]);
    site.until("web", "runs as HVM", |vm| vm.hvm_starts == 1).await;
    site.run(&["jobs", "retry", "web"]).await.ended(3);
    site.run(&["jobs", "cancel", "web"]).await.ended(0);
    site.until("web", "is put back", |vm| vm.claim.is_none()).await;
    site.is_back("web");
    assert_eq!(site.truth("web").power_state, "Halted");
    site.run(&["jobs", "show", "nobody"]).await.ended(2);
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_on_the_same_database_exits_with_75() {
    let mut site = Site::new(vec![], Guests::Stay);
    site.serve().await;
    site.run(&["serve"]).await.ended(75).says("in use by another bootflip");
    site.run(&["jobs", "list"]).await.ended(0);
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_server_goes_on_where_it_was() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Stay);
    site.serve().await;
    site.run(&["deploy", "web", "-p", "ext"]).await.ended(0);
    site.until("web", "runs as HVM", |vm| vm.hvm_starts == 1).await;
    site.kill().await;
    let vm = site.truth("web");
    let domid = vm.domain.unwrap().domid;
    sleep(Duration::from_millis(300)).await; // min_install, in the pool's time
    site.pool.with(|pool, now| pool.guest(now, &vm.uuid, domid, GuestAct::PowerOff));
    site.serve().await;
    site.until("web", "runs as PV without a claim", |vm| vm.pv_starts == 1 && vm.claim.is_none()).await;
    site.is_back("web");
    assert_eq!(site.truth("web").hvm_starts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn server_stops_in_time_while_a_call_hangs() {
    let hang = Fault { name: "hang".into(), when: Trigger::first("VM.start"), kind: FaultKind::Hang };
    let mut site = Site::with(vec![vm("web", 1)], Guests::Install, PROFILES, vec![hang]);
    site.serve().await;
    site.run(&["deploy", "web", "-p", "ext"]).await.ended(0);
    timeout(LONG, site.sim.fired("hang", 1)).await.unwrap();
    let (code, took) = site.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < Duration::from_secs(20), "{took:?}");
    site.serve().await;
    site.until("web", "runs as PV without a claim", |vm| vm.pv_starts == 1 && vm.claim.is_none()).await;
    assert_eq!(site.truth("web").hvm_starts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_needs_nothing_but_the_claims() {
    let mut site = Site::new(vec![vm("web", 1), vm("db", 2), vm("idle", 3)], Guests::Stay);
    site.serve().await;
    site.run(&["deploy", "web", "db", "-p", "ext", "--yes"]).await.ended(0);
    for name in ["web", "db"] {
        site.until(name, "runs as HVM", |vm| vm.hvm_starts == 1).await;
    }
    site.kill().await;
    std::fs::remove_dir_all(site.path("state")).unwrap();
    let refused = site.run(&["restore", "--all"]).await.ended(3);
    refused.says("--stop");
    assert!(site.truth("web").claim.is_some());
    site.person("db", &PersonAct::HardShutdown);
    let done = site.run(&["restore", "db", "idle", "--json"]).await.ended(0).json();
    assert_eq!(
        (&done["vms"][0]["result"], &done["vms"][1]["result"]),
        (&"restored".into(), &"nothing".into())
    );
    site.is_back("db");
    site.run(&["restore", "--all", "--stop"]).await.ended(0);
    site.is_back("web");
    assert_eq!(site.truth("web").power_state, "Halted");
    site.run(&["restore", "--all"]).await.ended(0).says("no VM of these pools carries a claim");
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_goes_through_the_server_that_answers() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Stay);
    site.serve().await;
    site.run(&["deploy", "web", "-p", "ext"]).await.ended(0);
    site.until("web", "runs as HVM", |vm| vm.hvm_starts == 1).await;
    site.run(&["restore", "web"]).await.ended(3).says("say --stop");
    assert_eq!(site.truth("web").power_state, "Running");
    site.run(&["restore", "web", "--stop"]).await.ended(0).says("by its server");
    site.is_back("web");
    site.run(&["jobs", "show", "web"]).await.ended(0).says("Cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_of_another_server_is_left_alone_unless_named() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Stay);
    site.serve().await;
    site.run(&["deploy", "web", "-p", "ext"]).await.ended(0);
    site.until("web", "runs as HVM", |vm| vm.hvm_starts == 1).await;
    site.kill().await;
    let config = std::fs::read_to_string(site.path("b.toml")).unwrap();
    std::fs::write(site.path("b.toml"), config.replace("name = \"site\"", "name = \"other\"")).unwrap();
    let shown = site.run(&["vm", "show", "web", "--json"]).await.ended(0).json();
    assert_eq!(shown["claim"]["owner"], "site");
    assert_eq!(shown["claim"]["saved"]["domain_type"], "pv");
    assert!(!shown.to_string().contains("nonce"));
    site.run(&["restore", "web", "--stop"]).await.ended(3).says("--owner site");
    site.run(&["restore", "web", "--stop", "--owner", "nobody"]).await.ended(3);
    site.run(&["restore", "web", "--stop", "--owner", "site"]).await.ended(0);
    site.is_back("web");
}

#[tokio::test(flavor = "multi_thread")]
async fn pool_that_does_not_answer_stops_no_server() {
    let mut site = Site::new(vec![vm("web", 1)], Guests::Install);
    let more = "[pool.away]\nurl = \"http://127.0.0.1:9\"\nplain_http = true\nuser = \"root\"\npassword_file = \"password\"\n";
    let config = std::fs::read_to_string(site.path("b.toml")).unwrap();
    std::fs::write(site.path("b.toml"), format!("{config}\n{more}")).unwrap();
    site.serve().await;
    let done = site.run(&["deploy", "web", "-p", "ext", "--wait"]).await.ended(0);
    done.says("pool away does not answer");
    site.run(&["vm", "list"]).await.ended(1).says("web");
    site.run(&["check"]).await.ended(1).says("BAD   pool away");
}

#[tokio::test(flavor = "multi_thread")]
async fn vm_show_tells_the_boot_fields_and_the_next_boot() {
    let site = Site::new(vec![vm("web", 1)], Guests::Stay);
    let shown = site.run(&["vm", "show", "web"]).await.ended(0);
    for field in [
        "PV_args",
        "PV_bootloader",
        "PV_ramdisk",
        "PV_kernel",
        "PV_bootloader_args",
        "PV_legacy_args",
        "HVM_boot_params",
        "HVM_boot_policy",
        "domain_type",
        "actions_after_shutdown",
        "actions_after_reboot",
        "actions_after_crash",
        "claim",
    ] {
        assert!(shown.out.lines().any(|line| line.split_whitespace().next() == Some(field)), "{field}");
    }
    shown.says("At its next start it boots as PV: pygrub takes the kernel from its first bootable disk");
    site.run(&["vm", "show", "nobody"]).await.ended(2);
    site.run(&["vm", "list"]).await.ended(0).says("web");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_says_what_is_in_place_and_changes_nothing() {
    let site = Site::new(vec![vm("web", 1)], Guests::Stay);
    let before = site.truth("web");
    site.run(&["check"]).await.ended(0).says("1 guests (1 PV)");
    let changed = site.pool.with(|pool, _| {
        pool.log()
            .iter()
            .any(|call| ["VM.set_", "VM.add_", "VM.start"].iter().any(|m| call.method.contains(m)))
    });
    assert!(!changed && site.truth("web") == before && !site.path("state").exists());
    write_secret(&site.path("password"), "wrong");
    site.run(&["check"]).await.ended(1).says("SESSION_AUTHENTICATION_FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn five_mistakes_are_five_messages_and_nothing_starts() {
    let site = Site::new(vec![], Guests::Stay);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/five-mistakes.toml");
    for command in ["check", "serve"] {
        let mut run = Command::new(env!("CARGO_BIN_EXE_bootflip"));
        let output =
            run.arg(command).arg("-c").arg(&file).current_dir(site.folder.path()).output().await.unwrap();
        let ran = Ran::of(output).ended(2);
        assert_eq!(ran.said.matches("five-mistakes.toml:").count(), 5, "{}", ran.said);
        ran.says("nothing was started");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_key_that_others_may_read_stops_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let mut site = Site::new(vec![], Guests::Stay);
    site.serve().await;
    site.terminate().await;
    let key = site.path("state/token.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    site.run(&["serve"]).await.ended(1).says("open to others");
    site.run(&["check"]).await.ended(1).says("open to others");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_without_a_server_say_so() {
    let site = Site::new(vec![], Guests::Stay);
    site.run(&["jobs", "list"]).await.ended(1).says("start `bootflip serve`");
    site.run(&["deploy", "x", "-p", "ext"]).await.ended(1).says("no server answers");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_dhcp_server_is_told_by_interface_and_server_and_nothing_is_printed_without_boot_http() {
    let site = Site::new(vec![], Guests::Stay);
    site.run(&["dhcp", "snippet"]).await.ended(2).says("there is no [http], so there is nothing to point to");
    let config = std::fs::read_to_string(site.path("b.toml")).unwrap();
    let more = "[http]\nlisten = \"10.1.0.2:8080\"\n[tftp]\nlisten = [\"10.1.0.2:69\"]\n\
                [[dhcp]]\ninterface = \"eth1\"\nmode = \"off\"\n\
                [[dhcp]]\ninterface = \"eth2\"\nmode = \"off\"\nloaders = { efi-x64 = \"ipxe.efi\" }\n";
    std::fs::write(site.path("b.toml"), format!("{config}{more}")).unwrap();
    let all = site.run(&["dhcp", "snippet"]).await.ended(0);
    for server in ["for ISC dhcpd", "for Kea", "for dnsmasq"] {
        all.says(server);
    }
    assert!(!all.out.contains("ipxe.efi"), "the first interface's loaders: {}", all.out);
    let one = site.run(&["dhcp", "snippet", "dnsmasq", "--interface", "eth2"]).await.ended(0);
    one.says("tag:bootflip-7,ipxe.efi,,10.1.0.2");
    assert!(!one.out.contains("ISC") && !one.out.contains("Kea"), "{}", one.out);
    let none = site.run(&["dhcp", "snippet", "--interface", "eth9"]).await.ended(2);
    none.says("no [[dhcp]] of eth9 has mode = \"off\"");
}

//! The demo end to end, through the real binary: what it prints, that it ends as it says, that nothing leaves `lo`,
//! that no child outlives it, and that it needs no privileges.

use std::{
    collections::BTreeSet,
    io::Write,
    net::IpAddr,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// Longer than any run on a loaded machine.
const LONG: Duration = Duration::from_secs(170);
/// Somebody who may nothing.
const NOBODY: u32 = 65_534;

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_bootflip"))
}

/// `program demo ARGUMENTS`, with a temporary folder of its own.
fn command(program: &Path, arguments: &[&str], folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.arg("demo").args(arguments).env("TMPDIR", folder).env("HOME", folder).current_dir(folder);
    command.env_remove("RUST_LOG");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(mut command: Command) -> Output {
    timeout(LONG, command.output()).await.expect("the demo ends").unwrap()
}

/// The exit code and the document of `bootflip demo ARGUMENTS --json`.
async fn demo(arguments: &[&str]) -> (i32, Value) {
    let folder = tempfile::tempdir().unwrap();
    let arguments = [arguments, &["--json"]].concat();
    let ran = output(command(binary(), &arguments, folder.path())).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "something is left behind");
    parsed(&ran)
}

fn parsed(ran: &Output) -> (i32, Value) {
    let (out, said) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(said.is_empty(), "--json says something on the way: {said}");
    let document = serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"));
    (ran.status.code().unwrap(), document)
}

/// What must be true of a VM that was installed, whatever went wrong on the way.
fn assert_installed(vm: &Value) {
    assert_eq!(vm["state"], "Succeeded", "{vm}");
    assert_eq!(vm["reason"], Value::Null, "{vm}");
    assert_eq!(vm["restored"], true, "{vm}");
    assert_eq!(vm["evidence"], "booted", "{vm}");
    assert_eq!(vm["power_state"], "Running", "{vm}");
    assert_eq!(vm["domain_type"], "pv", "{vm}");
    assert_eq!(vm["hvm_boot_policy"], "", "{vm}");
    assert_eq!(vm["pv_bootloader"], "pygrub", "{vm}");
    assert_eq!(vm["claim"], Value::Null, "{vm}");
    assert_eq!(vm["starts"]["hvm"], vm["attempts"], "{vm}");
    assert_eq!(vm["starts"]["pv"], 1, "{vm}");
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect()
}

const WAY: [&str; 9] = [
    "Queued",
    "Preparing",
    "Flipping",
    "Booting",
    "Installing",
    "Restoring",
    "Starting",
    "Verifying",
    "Succeeded",
];

#[tokio::test]
async fn demo_installs_restores_and_proves_each_vm() {
    let (code, document) = demo(&["--vms", "2", "--seed", "1"]).await;
    assert_eq!((code, &document["ok"]), (0, &Value::Bool(true)), "{document:#}");
    assert_eq!(document["faults"], serde_json::json!([]));
    assert_eq!((&document["seed"], &document["server_kills"]), (&1.into(), &0.into()));
    assert!(document["xenapi_calls"].as_u64().unwrap() > 20);
    let vms = document["vms"].as_array().unwrap();
    assert_eq!(vms.len(), 2);
    for vm in vms {
        assert_installed(vm);
        assert_eq!(vm["attempts"], 1);
        assert_eq!(names(&vm["states"]), WAY);
        let stages = ["started", "partitioned", "base", "packages", "late", "done", "booted"];
        assert_eq!(names(&vm["stages"]), stages);
    }
}

#[tokio::test]
async fn every_planned_fault_fires_and_all_vms_are_installed_yet() {
    let (code, document) = demo(&["--vms", "3", "--faults", "--seed", "7"]).await;
    assert_eq!((code, &document["ok"]), (0, &Value::Bool(true)), "{document:#}");
    assert!(document["server_kills"].as_u64().unwrap() >= 2);
    let faults = document["faults"].as_array().unwrap();
    faults.iter().for_each(|fault| assert_eq!(fault["fired"], fault["planned"], "{fault}"));
    let vms = document["vms"].as_array().unwrap();
    vms.iter().for_each(assert_installed);
    // An installer that reboots without a report, and a person who shuts a VM down: both end Failed, and again.
    let failed: usize = vms
        .iter()
        .map(|vm| names(&vm["states"]).windows(2).filter(|two| *two == ["Undoing", "Failed"]).count())
        .sum();
    let attempts: u64 = vms.iter().map(|vm| vm["attempts"].as_u64().unwrap()).sum();
    assert_eq!((failed, attempts), (2, 5), "{document:#}");
}

#[tokio::test]
async fn broken_kernel_is_refused_with_nothing_changed() {
    let (code, document) = demo(&["--vms", "2", "--break", "kernel"]).await;
    assert_eq!((code, &document["ok"]), (1, &Value::Bool(false)));
    for vm in document["vms"].as_array().unwrap() {
        assert_undone(vm);
        assert_eq!((&vm["state"], &vm["reason"]), (&Value::Null, &"not-servable".into()), "{vm}");
        assert_eq!(vm["starts"], serde_json::json!({"hvm": 0, "pv": 0}));
    }
}

#[tokio::test]
async fn broken_report_url_fails_with_every_vm_undone() {
    let (code, document) = demo(&["--vms", "2", "--break", "report"]).await;
    assert_eq!((code, &document["ok"]), (1, &Value::Bool(false)));
    for vm in document["vms"].as_array().unwrap() {
        assert_undone(vm);
        assert_eq!((&vm["state"], &vm["reason"]), (&"Failed".into(), &"no-report".into()), "{vm}");
        assert_eq!(vm["starts"], serde_json::json!({"hvm": 1, "pv": 0}));
    }
}

fn assert_undone(vm: &Value) {
    assert_eq!(vm["restored"], true, "{vm}");
    assert_eq!(vm["claim"], Value::Null, "{vm}");
    assert_eq!(vm["power_state"], "Halted", "{vm}");
    assert_eq!(vm["evidence"], "none", "{vm}");
}

#[tokio::test]
async fn seed_fixes_names_and_uuids() {
    let seen = async |seed: &str| {
        let (_, document) = demo(&["--vms", "3", "--break", "kernel", "--seed", seed]).await;
        let vms = document["vms"].as_array().unwrap().clone();
        vms.iter().map(|vm| format!("{} {}", vm["name"], vm["uuid"])).collect::<Vec<_>>()
    };
    let first = seen("5").await;
    assert_eq!(first, seen("5").await);
    assert_ne!(first, seen("6").await);
}

#[tokio::test]
async fn people_get_a_line_for_each_change_and_tables_of_110_columns() {
    let folder = tempfile::tempdir().unwrap();
    let ran = output(command(binary(), &["--vms", "1"], folder.path())).await;
    assert_eq!(ran.status.code(), Some(0));
    let (out, said) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8(ran.stderr).unwrap());
    for word in ["1 PV VMs in a simulated pool", "Installing", "partitioned", "100 %", "Succeeded"] {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
    for word in ["FINAL BOOT SETTINGS", "pv by pygrub", "SECONDS IN", "ok: 1 of 1 VMs"] {
        assert!(out.contains(word), "no `{word}` in: {out}");
    }
    out.lines().for_each(|line| assert!(line.chars().count() <= 110, "{line}"));
}

/// The demo of this folder, once its server answers; with the server's admin socket.
async fn running(folder: &Path) -> (Child, PathBuf) {
    let child = command(binary(), &["--vms", "8", "--json"], folder).spawn().unwrap();
    let until = Instant::now() + LONG;
    loop {
        let inside = std::fs::read_dir(folder).unwrap().next();
        if let Some(socket) = inside.map(|entry| entry.unwrap().path().join("admin.sock"))
            && UnixStream::connect(&socket).await.is_ok()
        {
            return (child, socket);
        }
        assert!(Instant::now() < until, "the demo's server does not answer");
        sleep(Duration::from_millis(20)).await;
    }
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn nobody_answers(socket: &Path) {
    let until = Instant::now() + LONG;
    while UnixStream::connect(socket).await.is_ok() {
        assert!(Instant::now() < until, "the server outlives the demo");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn killed_demo_takes_its_server_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, socket) = running(folder.path()).await;
    signal(&child, Signal::SIGKILL);
    child.wait().await.unwrap();
    nobody_answers(&socket).await;
}

#[tokio::test]
async fn demo_that_is_asked_to_end_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (mut child, socket) = running(folder.path()).await;
    signal(&child, Signal::SIGTERM);
    assert_eq!(timeout(LONG, child.wait()).await.expect("it ends").unwrap().code(), Some(1));
    nobody_answers(&socket).await;
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// True: this test cannot run here, which is said past the capture of its output.
fn skipped(test: &str) -> bool {
    let missing =
        [("unshare", "--version"), ("ip", "-V"), ("ss", "-V")].into_iter().find(|(program, flag)| {
            let ran = std::process::Command::new(program).arg(flag).output();
            !ran.is_ok_and(|ran| ran.status.success())
        });
    let why = match missing {
        _ if !nix::unistd::geteuid().is_root() => "not root".to_owned(),
        Some((program, _)) => format!("no `{program}` here"),
        None => return false,
    };
    let strict = std::env::var_os("BOOTFLIP_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!strict, "{test} cannot run: {why}");
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {why}");
    true
}

#[tokio::test]
async fn demo_needs_no_privileges() {
    if !nix::unistd::geteuid().is_root() {
        // Every other test of this file shows it then.
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // The checkout may be closed to others.
    let program = folder.path().join("bootflip");
    std::fs::copy(binary(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = command(&program, &["--vms", "2", "--json"], folder.path());
    command.uid(NOBODY).gid(NOBODY);
    let (code, document) = parsed(&output(command).await);
    assert_eq!((code, &document["ok"]), (0, &Value::Bool(true)), "{document:#}");
}

/// In a network namespace with `lo` and one more device that has the default route, so that whatever is not meant for
/// `lo` leaves by it and is counted. Prints the sockets as they come, then the device's packet count before and
/// after, and once more when something was sent on purpose.
const APART: &str = r#"
set -e
ip link set lo up
ip link add out type veth peer name far
for device in out far; do
    # IPv6 speaks by itself on a new link.
    echo 1 >/proc/sys/net/ipv6/conf/$device/disable_ipv6 2>/dev/null || true
    ip link set $device arp off up
done
ip addr add 192.0.2.1/24 dev out
ip route add default via 192.0.2.2
count() { sed -n 's/^ *out: *//p' /proc/net/dev | awk '{ print "COUNT", $2 + $10 }'; }
count
"$0" demo --vms 2 --seed 3 --faults --json >"$1" &
demo=$!
while kill -0 $demo 2>/dev/null; do ss -tunaH; sleep 0.05; done
wait $demo
count
echo >/dev/udp/198.51.100.1/9
count
"#;

#[tokio::test]
async fn nothing_of_the_demo_leaves_lo() {
    if skipped("nothing_of_the_demo_leaves_lo") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let document = folder.path().join("document");
    let mut apart = Command::new("unshare");
    apart.args(["-n", "bash", "-c", APART]).arg(binary()).arg(&document).env("TMPDIR", folder.path());
    apart.stdin(Stdio::null()).kill_on_drop(true);
    let ran = output(apart).await;
    let (out, said) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success(), "{said}");
    let document: Value = serde_json::from_slice(&std::fs::read(document).unwrap()).unwrap();
    assert_eq!(document["ok"], true, "{document:#}");
    let counts: Vec<&str> = out.lines().filter_map(|line| line.strip_prefix("COUNT ")).collect();
    assert_eq!(
        counts,
        ["0", "0", "1"],
        "packets of the other device before, after, and after one on purpose"
    );
    let sockets: BTreeSet<&str> = out.lines().filter(|line| !line.starts_with("COUNT")).collect();
    assert!(sockets.len() > 8, "{sockets:?}");
    sockets.iter().for_each(|socket| assert!(is_on_lo(socket), "{socket}"));
}

/// A line of `ss -tunaH`: bound to device `lo`, or connected from loopback to loopback.
fn is_on_lo(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(4);
    let (local, peer) = (words.next().unwrap(), words.next().unwrap());
    let is_loopback = |end: &str| {
        let address = end.rsplit_once(':').unwrap().0.split('%').next().unwrap();
        address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    local.contains("%lo:") || (is_loopback(local) && is_loopback(peer))
}

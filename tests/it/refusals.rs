//! Everything that E0 refuses: nothing is changed, for halted VMs and for running ones with `--reinstall`. The real
//! executor with the real look at boot files and templates, against the pool model; a few rows through the binary.

use std::{
    collections::BTreeMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use bootflip::{
    app::{
        serving::{Offer, published},
        templates,
    },
    boot::{Gate, render::Urls},
    clock::{Clock, SystemClock},
    config::{BootFiles, Completion, Deadlines, EvidenceKind, Profile, ProfileKind},
    machine::MacAddr,
    provision::{
        Reason, State,
        admission::Caps,
        executor::{Decisions, Executor, NoWitness, Parts, PoolAccess, Wakers},
        job::{NewJob, Options},
    },
    secret::TokenKey,
    sim::pool::{DiskKind, DiskSpec, Pool, Release, Role, VmSpec},
    store::memory::MemoryStore,
    xen::{CallError, Method, Transport, Value, api::Api},
};
use futures_util::future::BoxFuture;

use crate::common::site::{Plan, Site, differences, vm};

/// The pool, called without a network.
#[derive(Debug, Clone)]
struct Line(Arc<Mutex<Pool>>);

impl Transport for Line {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        let answer = self.0.lock().unwrap().call_trusted(SystemClock.now(), method, &params);
        Box::pin(
            async move { answer.map_err(|failure| CallError::Failed { method: method.name(), failure }) },
        )
    }
}

#[derive(Debug)]
struct NoWakers;

impl Wakers for NoWakers {
    fn wake(&self, _: &str) {}
}

/// What is asked for, and of what.
struct Case {
    pool: Pool,
    vm: VmSpec,
    profile: Profile,
    options: Options,
    allow: Vec<String>,
    root: Option<&'static str>,
    listening: bool,
    /// Done when the VM is there.
    after: fn(&mut Pool, &str),
}

type Change = fn(&mut Case);

impl Case {
    /// An installation that nothing speaks against.
    fn good(release: Release, running: bool) -> Self {
        let vm = VmSpec { running, ever_ran: running, ..vm("web", 1) };
        Self {
            pool: Pool::new(7, release),
            vm,
            profile: profile(),
            options: Options { reinstall: running, ..Options::default() },
            allow: Vec::new(),
            root: Some("root"),
            listening: true,
            after: |_, _| {},
        }
    }

    fn boot(&mut self) -> &mut BootFiles {
        self.profile.boot.as_mut().unwrap()
    }
}

fn profile() -> Profile {
    Profile {
        name: "mini".into(),
        kind: ProfileKind::Install,
        boot: Some(BootFiles {
            kernel: "mini/vmlinuz".into(),
            initrd: vec!["mini/initrd".into()],
            args: "url={{ answer_url }}".into(),
            answer: Some("mini.j2".into()),
            fetch: bootflip::config::Fetch::Http,
            seed: Vec::new(),
            files: Vec::new(),
        }),
        completion: Completion::Report,
        min_install: Duration::from_secs(300),
        evidence: EvidenceKind::Report,
        accept_weak: false,
        report_by_get: false,
        disk: None,
        variables: BTreeMap::new(),
    }
}

/// Everything that the pool's records say.
fn records(pool: &mut Pool) -> String {
    let all = [Method::VmGetAllRecords, Method::VifGetAllRecords, Method::PoolGetAllRecords];
    let read = |method| format!("{:?}", pool.call_trusted(SystemClock.now(), method, &[]).unwrap());
    let texts: Vec<String> = all.into_iter().map(read).collect();
    let truths: Vec<_> = pool.uuids().iter().map(|uuid| pool.truth(uuid)).collect();
    format!("{texts:?} {truths:?}")
}

struct Came {
    state: State,
    reason: Option<Reason>,
    detail: String,
    /// Calls that change something and were not refused.
    changed: Vec<String>,
    same: bool,
}

impl fmt::Display for Came {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:?}: {}; changed {:?}, same {}",
            self.state, self.reason, self.detail, self.changed, self.same
        )
    }
}

/// Runs the job until it is past E0.
async fn run(folder: &Path, case: Case) -> Came {
    let mut pool = case.pool;
    let uuid = pool.add_vm(case.vm);
    (case.after)(&mut pool, &uuid);
    let before = records(&mut pool);
    let calls = pool.log().len();
    let pool = Arc::new(Mutex::new(pool));
    let found = Arc::new(templates::load(Some(&folder.join("templates"))).unwrap());
    let offer = Offer::new(found, case.root.map(|root| folder.join(root)));
    if case.listening {
        let files = case.root.map(|root| published(&folder.join(root)));
        offer.open(Some(Urls::new("http://127.0.0.1:8080")), files);
    }
    let api = Api::new(Arc::new(Line(Arc::clone(&pool))));
    let executor = Executor::new(Parts {
        owner: "site".into(),
        store: Arc::new(MemoryStore::new()),
        pools: [(
            "main".to_owned(),
            PoolAccess { way_back: api.clone(), api, allow: case.allow, installs: Caps { pool: 4, host: 4 } },
        )]
        .into(),
        gate: Gate::default(),
        clock: Arc::new(SystemClock),
        key: TokenKey::new([7; 32]),
        serving: Arc::new(offer),
        wakers: Arc::new(NoWakers),
        reach: Arc::new(bootflip::app::reach::Tcp),
        witness: Arc::new(NoWitness),
        nonce: Box::new(|| "nonce".into()),
        decisions: Decisions::default(),
    });
    let new = NewJob {
        id: "job".into(),
        pool: "main".into(),
        vm_uuid: uuid,
        vm_name: "web".into(),
        profile: case.profile,
        variables: BTreeMap::new(),
        deadlines: Deadlines::default(),
        options: case.options,
        asked_by: "test".into(),
    };
    executor.create(new).await.unwrap();
    executor.tick("job").await;
    let job = executor.job("job").await.unwrap().unwrap();
    let mut pool = pool.lock().unwrap();
    let changes = |method: &str| {
        let plain = method.strip_prefix("Async.").unwrap_or(method);
        Method::ALL.iter().any(|known| known.name() == plain && known.changes_the_pool())
    };
    let log = pool.log().iter().skip(calls);
    let done = log.filter(|call| changes(&call.method) && call.outcome.is_ok());
    let changed = done.map(|call| call.method.clone()).collect();
    let same = records(&mut pool) == before;
    Came { state: job.state, reason: job.reason, detail: job.detail, changed, same }
}

/// Which VMs a row is tried with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// A halted one that never ran.
    Halted,
    /// That, and a running one with `--reinstall`.
    Both,
}

fn block(case: &mut Case, operation: &str) {
    case.vm.blocked_operations = [(operation.to_owned(), "do not touch".to_owned())].into();
}

fn disk(position: &str) -> DiskSpec {
    DiskSpec { userdevice: position.into(), ..DiskSpec::default() }
}

fn cd(position: &str) -> DiskSpec {
    DiskSpec { kind: DiskKind::Cd, read_only: true, size: 1 << 20, ..disk(position) }
}

/// Changes both hosts.
fn hosts(pool: &mut Pool, change: fn(&mut bootflip::sim::pool::HostSpec)) {
    for address in ["127.0.0.1", "127.0.0.2"] {
        pool.change_host(SystemClock.now(), address, change);
    }
}

/// A release that dropped PV.
const WITHOUT_PV: Release =
    Release { name: "8.3", api: (2, 21), product_version: "8.3.0", brand: "XCP-ng", ..Release::V8_2 };

/// What is wrong, with which VMs, the reason, and words that the detail must hold.
fn rows() -> Vec<(&'static str, Of, Change, Reason, &'static str)> {
    use Of::{Both, Halted};
    vec![
        ("no VIF", Both, |c| c.vm.macs.clear(), Reason::NoVif, "no VIF"),
        (
            "no VIF with the expected MAC",
            Both,
            |c| c.options.mac = Some(MacAddr::new([2, 0, 0, 0, 0, 9])),
            Reason::NoVif,
            "02:00:00:00:00:09",
        ),
        (
            "a duplicate MAC",
            Both,
            |c| drop(c.pool.add_vm(vm("other", 1))),
            Reason::DuplicateMac,
            "02:16:3e:00:00:01",
        ),
        ("a template", Halted, |c| c.vm.template = true, Reason::NotAGuest, "template"),
        ("a snapshot", Halted, |c| c.vm.snapshot = true, Reason::NotAGuest, "snapshot"),
        ("a control domain", Both, |c| c.vm.control_domain = true, Reason::NotAGuest, "control domain"),
        (
            "HA-protected",
            Both,
            |c| {
                c.vm.ha_restart_priority = "restart".into();
                c.pool.set_ha(SystemClock.now(), true);
            },
            Reason::HaProtected,
            "HA is on",
        ),
        (
            "start blocked",
            Both,
            |c| block(c, "start"),
            Reason::OperationBlocked,
            "`start` is blocked: do not touch",
        ),
        (
            "hard_shutdown blocked",
            Both,
            |c| block(c, "hard_shutdown"),
            Reason::OperationBlocked,
            "do not touch",
        ),
        (
            "clean_shutdown blocked",
            Both,
            |c| block(c, "clean_shutdown"),
            Reason::OperationBlocked,
            "do not touch",
        ),
        ("unpause blocked", Both, |c| block(c, "unpause"), Reason::OperationBlocked, "do not touch"),
        (
            "a bootable CD first",
            Both,
            |c| c.vm.disks = vec![cd("0"), disk("1")],
            Reason::CdFirst,
            "CD at position 0",
        ),
        ("a pool without PV", Both, |c| c.pool = Pool::new(7, WITHOUT_PV), Reason::PvUnsupported, "8.3.0"),
        (
            "a 32-bit guest where hosts dropped 32-bit PV",
            Both,
            |c| {
                hosts(&mut c.pool, |host| host.pv32 = false);
                let template = ("base_template_name".to_owned(), "Debian Wheezy 7.0 (32-bit)".to_owned());
                c.vm.other_config.extend([template]);
            },
            Reason::PvUnsupported,
            "Debian Wheezy 7.0 (32-bit)",
        ),
        ("an HVM guest", Both, |c| c.vm.policy = "BIOS order".into(), Reason::NotPv, "its type is "),
        (
            "outside the allow-list",
            Both,
            |c| c.allow = vec!["tag=bootflip".into()],
            Reason::NotAllowed,
            "tag=bootflip",
        ),
        ("it has run", Halted, |c| c.vm.ever_ran = true, Reason::HasRun, "it ran last at 2020"),
        (
            "it runs",
            Both,
            |c| {
                c.vm.running = true;
                c.options.reinstall = false;
            },
            Reason::HasRun,
            "it is running",
        ),
        (
            "we installed it",
            Halted,
            |c| c.vm.other_config.extend([("bootflip:installed".to_owned(), "{}".to_owned())]),
            Reason::HasRun,
            "",
        ),
        (
            "two writable disks",
            Both,
            |c| c.vm.disks = vec![disk("0"), disk("1")],
            Reason::WhichDisk,
            "several writable disks: 0",
        ),
        ("no writable disk", Both, |c| c.vm.disks[0].read_only = true, Reason::WhichDisk, "no writable disk"),
        (
            "a disk that is not there",
            Both,
            |c| c.profile.disk = Some("7".into()),
            Reason::WhichDisk,
            "position 7",
        ),
        (
            "a disk behind a bootable one",
            Both,
            |c| {
                c.vm.disks = vec![disk("0"), disk("1")];
                c.options.disk = Some("1".into());
            },
            Reason::WhichDisk,
            "position 0 is bootable",
        ),
        (
            "a disk that does not boot",
            Both,
            |c| c.vm.disks[0].bootable = false,
            Reason::WhichDisk,
            "not bootable",
        ),
        (
            "somebody else's claim",
            Both,
            |c| c.after = |pool, uuid| claim(pool, uuid, uuid),
            Reason::ClaimedByOther,
            "claimed by another-site for job their-job",
        ),
        (
            "a copy of somebody's claim",
            Both,
            |c| c.after = |pool, uuid| claim(pool, uuid, "another-vm"),
            Reason::ClaimedByOther,
            "a copy of VM another-vm",
        ),
        (
            "a claim that cannot be read",
            Both,
            |c| c.vm.other_config.extend([("bootflip:claim".to_owned(), "{".to_owned())]),
            Reason::ClaimedByOther,
            "cannot be read",
        ),
        (
            "paused",
            Both,
            |c| {
                c.vm.running = true;
                c.options.reinstall = true;
                c.after = |pool, uuid| {
                    pool.person(SystemClock.now(), uuid, &bootflip::sim::pool::PersonAct::Pause).unwrap();
                    pool.advance(SystemClock.now() + Duration::from_secs(60));
                };
            },
            Reason::Busy,
            "Paused",
        ),
        (
            "kernel missing",
            Both,
            |c| c.boot().kernel = "mini/none".into(),
            Reason::NotServable,
            "root/mini/none cannot be opened",
        ),
        (
            "kernel empty",
            Both,
            |c| c.boot().kernel = "mini/empty".into(),
            Reason::NotServable,
            "root/mini/empty is empty",
        ),
        (
            "kernel outside",
            Both,
            |c| c.boot().kernel = "../secret".into(),
            Reason::NotServable,
            "is not a path beneath",
        ),
        (
            "initrd missing",
            Both,
            |c| c.boot().initrd.push("mini/none".into()),
            Reason::NotServable,
            "root/mini/none cannot be opened",
        ),
        ("boot folder missing", Both, |c| c.root = Some("nowhere"), Reason::NotServable, "nowhere"),
        (
            "template missing",
            Both,
            |c| c.boot().answer = Some("none.j2".into()),
            Reason::NotServable,
            "none.j2",
        ),
        (
            "undefined variable in a template",
            Both,
            |c| c.boot().answer = Some("strict.j2".into()),
            Reason::NotServable,
            "strict.j2:2",
        ),
        (
            "undefined variable in the arguments",
            Both,
            |c| c.boot().args = "x={{ vars.nowhere }}".into(),
            Reason::NotServable,
            "nowhere",
        ),
        ("boot HTTP off", Both, |c| c.root = None, Reason::NotServable, "[http]"),
        ("listeners down", Both, |c| c.listening = false, Reason::NotServable, "listeners are not up"),
        ("more memory than any host has", Both, |c| c.vm.memory = 8 << 40, Reason::NoHost, "8388608 MiB"),
        (
            "memory for PV, not for HVM",
            Both,
            |c| {
                c.vm.memory = 1 << 30;
                hosts(&mut c.pool, |host| host.memory = (1 << 30) + (8 << 20));
            },
            Reason::NoHost,
            "1024 MiB",
        ),
        (
            "all hosts in maintenance",
            Both,
            |c| hosts(&mut c.pool, |host| host.enabled = false),
            Reason::NoHost,
            "enabled",
        ),
        ("hosts without VT", Both, |c| hosts(&mut c.pool, |host| host.hvm = false), Reason::NoHost, "HVM"),
        (
            "an account that may only read",
            Both,
            |c| c.pool.set_trusted_role(Role::ReadOnly),
            Reason::RightsMissing,
            "RBAC_PERMISSION_DENIED",
        ),
        (
            "an account that may only start VMs",
            Both,
            |c| c.pool.set_trusted_role(Role::VmOperator),
            Reason::RightsMissing,
            "RBAC_PERMISSION_DENIED",
        ),
    ]
}

/// A claim of another server stands in this VM, made for that one.
fn claim(pool: &mut Pool, uuid: &str, made_for: &str) {
    let text = serde_json::json!({
        "v": 1, "owner": "another-site", "vm_uuid": made_for, "job": "their-job", "attempt": 1,
        "nonce": "00", "since": 0, "touched": {}
    });
    let act = bootflip::sim::pool::PersonAct::AddOtherConfig {
        key: "bootflip:claim".into(),
        value: text.to_string(),
    };
    pool.person(SystemClock.now(), uuid, &act).unwrap();
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["root/mini", "templates"] {
        std::fs::create_dir_all(folder.path().join(name)).unwrap();
    }
    let files = [
        ("root/mini/vmlinuz", "kernel"),
        ("root/mini/initrd", "initrd"),
        ("root/mini/empty", ""),
        ("secret", "secret"),
        ("templates/strict.j2", "hostname\nroot {{ vars.root_password_hash }}\n"),
    ];
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

#[tokio::test]
async fn whatever_speaks_against_it_is_refused_with_nothing_changed() {
    let folder = folder();
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (what, of, change, reason, words) in rows() {
        for release in [Release::V8_2, Release::V6_2] {
            for running in [false, true] {
                if running && of == Of::Halted {
                    continue;
                }
                let mut case = Case::good(release, running);
                change(&mut case);
                let came = run(folder.path(), case).await;
                tried += 1;
                let refused =
                    came.state == State::Failed && came.reason == Some(reason) && reason.is_refusal();
                if !(refused && came.detail.contains(words) && came.changed.is_empty() && came.same) {
                    wrong.push(format!("{what} ({}, running: {running}): {came}", release.name));
                }
            }
        }
    }
    println!("{} rows, {tried} refusals, {} wrong", rows().len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_only_looks_like_trouble_is_not_refused() {
    let rows: [(&str, Change); 14] = [
        ("nothing", |_| {}),
        ("HA is on, the VM not protected", |c| c.pool.set_ha(SystemClock.now(), true)),
        ("best effort is no protection", |c| {
            c.vm.ha_restart_priority = "best-effort".into();
            c.pool.set_ha(SystemClock.now(), true);
        }),
        ("HA is off", |c| c.vm.ha_restart_priority = "restart".into()),
        ("a CD behind the disk", |c| c.vm.disks = vec![disk("0"), cd("3")]),
        ("an empty drive first", |c| c.vm.disks = vec![DiskSpec { size: 0, ..cd("0") }, disk("1")]),
        ("a CD first that does not boot", |c| {
            c.vm.disks = vec![DiskSpec { bootable: false, ..cd("0") }, disk("1")];
        }),
        ("a read-only disk beside", |c| {
            c.vm.disks.push(DiskSpec { read_only: true, ..disk("1") });
        }),
        ("two disks and one named", |c| {
            c.vm.disks.push(disk("1"));
            c.profile.disk = Some("0".into());
        }),
        ("inside the allow-list", |c| {
            c.allow = vec!["tag=x".into(), "name~w?b".into()];
        }),
        ("copying is blocked", |c| block(c, "copy")),
        ("another VM with another MAC", |c| drop(c.pool.add_vm(vm("other", 2)))),
        ("one host in maintenance", |c| {
            c.pool.change_host(SystemClock.now(), "127.0.0.1", |host| host.enabled = false);
        }),
        ("64-bit where hosts dropped 32-bit PV", |c| hosts(&mut c.pool, |host| host.pv32 = false)),
    ];
    let folder = folder();
    for (what, change) in rows {
        for running in [false, true] {
            let mut case = Case::good(Release::V8_2, running);
            change(&mut case);
            let came = run(folder.path(), case).await;
            assert!(
                came.state != State::Failed && !came.changed.is_empty(),
                "{what}, running {running}: {came}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_order_names_the_reason_and_exits_with_3() {
    let more = r#"
[profile.no-kernel]
kernel = "mini/none"
args = "url={{ answer_url }}"
answer = "mini.j2"
[profile.no-variable]
kernel = "mini/vmlinuz"
args = "root={{ vars.nowhere }}"
completion = "halt"
"#;
    let running = |name, number| VmSpec { running: true, ever_ran: true, ..vm(name, number) };
    let vms = vec![
        running("web", 1),
        VmSpec { memory: 8 << 40, ..running("huge", 2) },
        VmSpec { ever_ran: true, ..vm("old", 3) },
        vm("twin", 4),
        vm("twin", 5),
    ];
    let names = ["web", "huge", "old"];
    let mut site = Site::new(Plan { more: more.to_owned(), ..Plan::of(vms) });
    let before = names.map(|name| site.truth(name));
    site.serve().await;
    let rows: [(&[&str], i32, &str); 6] = [
        (&["web", "-p", "no-kernel", "--reinstall"], 3, "not-servable: boot file"),
        (&["web", "-p", "no-variable", "--reinstall"], 3, "nowhere"),
        (&["huge", "-p", "mini", "--reinstall"], 3, "no-host"),
        (&["old", "-p", "mini"], 3, "has-run: it ran last at 20200101T00:00:00Z"),
        (&["web", "-p", "none", "--reinstall"], 2, "there is no profile `none`"),
        (&["twin", "-p", "mini"], 2, "2 VMs have this name"),
    ];
    for (arguments, code, words) in rows {
        for way in [&["--yes", "--wait"][..], &["--plan"]] {
            site.run(&[&["deploy"], arguments, way].concat()).await.ended(code).says(words);
        }
    }
    for (name, before) in names.into_iter().zip(&before) {
        let after = site.truth(name);
        assert_eq!((&after, differences(before, &after)), (before, Vec::new()));
    }
    assert_eq!(site.run(&["jobs", "list", "--json"]).await.json(), serde_json::json!([]));
}

//! The dashboard in Debian's Chromium: a fleet of a thousand VMs of which some fifty are being installed by guests on
//! real packets, some are stuck, and some have names that attack the page. `tests/browser/run.py` looks at it, and says
//! what is wrong. Needs what `tests/browser/prepare.sh` brings.

use std::{path::Path, time::Duration};

use bootflip::{
    machine::MacAddr,
    provision::job::State,
    sim::{
        guest::{GuestPlan, Mishap, Pace, Stage},
        pool::{Pool, VmSpec},
    },
    xen::{Method, Value},
};
use tokio::{process::Command, time::timeout};

use crate::common::{
    programs::skip,
    site::{Plan, Site, quick, vm},
};

/// Machines in all.
const MACHINES: u16 = 1000;
/// Machines that are being installed while the pages are looked at.
const RUNNING: u16 = 50;
/// The longest that the browser may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Names that would run in a page that does not escape them.
const HOSTILE: [&str; 4] = [
    "<img src=x onerror=\"window.pwned='name'\">",
    "\"><script>window.pwned='name'</script>",
    "'-window.pwned-'{{ 7 * 7 }}</td><svg onload=window.pwned=1>",
    "javascript:window.pwned=1//\u{202e}evil",
];

const MORE: &str = r#"
[syslog]
listen = "127.0.0.1:0"
device = "lo"
[limits]
installs_per_pool = 80
installs_per_host = 80
"#;

/// What a VM of the scene is for: its name and how its guest behaves.
fn cast() -> Vec<(String, Option<GuestPlan>)> {
    let silent = GuestPlan { pace: Pace { post: Duration::from_secs(3600), ..quick().pace }, ..quick() };
    let slow = |number: u16| {
        let stage = Duration::from_secs(20 + u64::from(number) * 3);
        GuestPlan { pace: Pace { stage, ..quick().pace }, ..quick() }
    };
    let with = |mishap| Some(GuestPlan { mishap, ..quick() });
    let mut all: Vec<(String, Option<GuestPlan>)> = vec![
        ("done-1".into(), None),
        ("done-2".into(), None),
        ("done-3".into(), None),
        ("fails".into(), with(Mishap::FailAt(Stage::Packages))),
        ("hangs".into(), with(Mishap::HangAt(Stage::Base))),
        ("changed".into(), with(Mishap::HangAt(Stage::Base))),
        ("silent".into(), Some(silent.clone())),
        ("hostile".into(), Some(silent)),
    ];
    all.extend(HOSTILE.iter().map(|name| ((*name).to_owned(), None)));
    all.extend((1..=RUNNING).map(|number| (format!("run-{number:02}"), Some(slow(number)))));
    let rest = MACHINES - u16::try_from(all.len()).unwrap();
    all.extend((1..=rest).map(|number| (format!("idle-{number:04}"), None)));
    all
}

fn scene() -> Site {
    let cast = cast();
    let vms = cast.iter().zip(1..).map(|((name, _), number)| {
        let tag = if name.starts_with("run-") { "web" } else { "spare" };
        VmSpec { tags: vec![tag.to_owned()], ..vm(name, number) }
    });
    let vms: Vec<VmSpec> = vms.collect();
    let others = cast.into_iter().filter_map(|(name, guest)| Some((name, guest?))).collect();
    Site::new(Plan { others, more: MORE.to_owned(), ..Plan::of(vms) })
}

/// A person changes what the job has written.
fn change_by_hand(pool: &mut Pool, name: &str) {
    let uuids = pool.uuids();
    let of_name = |uuid: &&String| pool.truth(uuid).is_some_and(|vm| vm.name == name);
    let uuid = uuids.iter().find(of_name).unwrap().clone();
    let now = bootflip::clock::Timestamp::from_millis(1);
    let reference = pool.call_trusted(now, Method::VmGetByUuid, &[Value::string(uuid)]).unwrap();
    pool.call_trusted(now, Method::VmSetDomainType, &[reference, Value::string("pvh".to_owned())]).unwrap();
}

async fn play(site: &Site) -> String {
    let mut ids = Vec::new();
    for name in ["done-1", "done-2", "done-3", "fails", "changed", "hangs", "silent", "hostile"] {
        ids.push(site.deploy(name).await);
    }
    site.run(&["deploy", "tag=web", "-p", "mini", "--reinstall", "--yes", "--json"]).await.ended(0);
    for id in &ids[..3] {
        site.until_job(id, "succeeded", |job| job.state == State::Succeeded).await;
    }
    site.until_job(&ids[3], "failed", |job| job.state == State::Failed).await;
    site.until_job(&ids[4], "installs", |job| !job.stages.is_empty()).await;
    site.pool.with(|pool, _| change_by_hand(pool, "changed"));
    site.run(&["jobs", "cancel", &ids[4]]).await.ended(0);
    site.until_job(&ids[4], "waits", |job| job.state == State::NeedsOperator).await;
    ids[7].clone()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes in a real browser; part of test-full"]
async fn pages_do_what_they_should_in_chromium() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("target/browser/venv/bin/python");
    if !python.exists() || !Path::new("/usr/bin/chromium").exists() {
        return skip("Chromium", "not prepared; tests/browser/prepare.sh installs it");
    }
    let mut site = scene();
    site.reconfigure(|text| {
        let text = text.replace("[admin]\n", "[admin]\nlisten = \"127.0.0.1:0\"\n");
        // The silent one stays stuck for as long as it is looked at.
        text.replace("[deadlines]\n", "[deadlines]\ndhcp = \"20m\"\n")
    });
    site.serve().await;
    site.until_known(usize::from(MACHINES)).await;
    let token = async |name: &str, scope: &str| {
        let made = site.run(&["token", "add", name, "--scope", scope, "--json"]).await.ended(0).json();
        made["token"].as_str().unwrap().to_owned()
    };
    let (operator, reader) = (token("operator", "operate").await, token("reader", "read").await);
    let hostile = play(&site).await;
    let bound: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(site.path("state/bound.json")).unwrap()).unwrap();
    let number = cast().iter().position(|(name, _)| name == "hostile").unwrap() + 1;
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    let mut command = Command::new(python);
    command
        .arg(root.join("tests/browser/run.py"))
        .env("DASHBOARD", format!("http://{}", bound["remote"]["address"].as_str().unwrap()))
        .env("OPERATOR", operator)
        .env("READER", reader)
        .env("BOOT", bound["url"].as_str().unwrap())
        .env("SYSLOG", bound["syslog"].as_str().unwrap())
        .env("TFTP_PORT", site.ports[1].to_string())
        .env("HOSTILE_MAC", MacAddr::new([0x02, 0x16, 0x3e, 0, high, low]).to_string())
        .env("HOSTILE_JOB", hostile)
        .env("SERVER_PID", site.pid().to_string())
        .env("SCREENSHOTS", root.join("target/screenshots"))
        .env("AXE", root.join("target/browser/node/node_modules/axe-core/axe.min.js"))
        .kill_on_drop(true);
    let status = timeout(LIMIT, command.status()).await.expect("the browser ends").unwrap();
    assert!(status.success(), "the browser found something wrong; see above\n{}", last_lines(&site.log()));
}

fn last_lines(log: &str) -> String {
    let warnings: Vec<&str> =
        log.lines().filter(|line| line.contains("ERROR") || line.contains("WARN")).collect();
    warnings[warnings.len().saturating_sub(20)..].join("\n")
}

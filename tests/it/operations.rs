//! Running it: metrics and alert rules, the unit, logs, reload, the database's copies, old jobs, manual pages.

use std::{
    collections::BTreeSet,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use bootflip::{
    app::views::JobView,
    provision::{Job, job::State},
    store::{Batch, Store, jobs::Jobs, sqlite::SqliteStore},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::{Instant, sleep},
};

use crate::common::{
    programs,
    site::{LONG, Plan, Site, vm},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The body of what the admin socket answers to a GET.
async fn get(site: &Site, path: &str) -> String {
    let mut stream = UnixStream::connect(site.path("admin.sock")).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    body.to_owned()
}

fn value(metrics: &str, series: &str) -> f64 {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in:\n{metrics}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_counted_at_every_seam() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    let before = site.truth("web");
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_installed(&id, &before).await;
    let begun = Instant::now();
    let metrics = loop {
        let metrics = get(&site, "/metrics").await;
        // The counter of jobs follows the database's feed.
        if value(&metrics, "bootflip_provision_transitions_total{state=\"succeeded\"}") > 0.0 {
            break metrics;
        }
        assert!(begun.elapsed() < LONG, "{metrics}");
        sleep(Duration::from_millis(50)).await;
    };
    for (series, least) in [
        ("bootflip_boot_signs_total{sign=\"dhcp\"}", 1.0),
        ("bootflip_boot_signs_total{sign=\"kernel\"}", 1.0),
        ("bootflip_boot_transfers_total{protocol=\"http\",outcome=\"sent\"}", 3.0),
        ("bootflip_boot_answer_files_total{outcome=\"given\"}", 1.0),
        ("bootflip_boot_reports_total{answer=\"accepted\"}", 2.0),
        ("bootflip_dhcp_replies_total{kind=\"offer\"}", 1.0),
        ("bootflip_provision_transitions_total{state=\"installing\"}", 1.0),
        ("bootflip_provision_job_duration_seconds_count{state=\"succeeded\"}", 1.0),
        ("bootflip_xen_calls_total{pool=\"main\",method=\"VM.start\",outcome=\"ok\"}", 2.0),
        ("bootflip_xen_pool_up{pool=\"main\"}", 1.0),
        ("bootflip_store_commits_total{outcome=\"ok\"}", 10.0),
        ("bootflip_store_size_bytes", 4096.0),
        ("bootflip_process_open_files", 5.0),
    ] {
        let found = value(&metrics, series);
        assert!(found >= least, "{series} is {found}:\n{metrics}");
    }
    assert_eq!(value(&metrics, "bootflip_provision_transitions_total{state=\"failed\"}"), 0.0);
    let installing = value(&metrics, "bootflip_provision_jobs{state=\"installing\"}");
    assert_eq!(installing, 0.0, "it has ended");
}

fn tool(test: &str, path: &str) -> Option<PathBuf> {
    let found = root().join(path);
    if !found.exists() {
        programs::skip(test, &format!("{path} is missing; `make test` as root brings it"));
        return None;
    }
    Some(found)
}

#[test]
fn alert_rules_pass_promtool_and_name_only_metrics_that_there_are() {
    let page = std::fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let rules = std::fs::read_to_string(root().join("config/prometheus-alerts.yml")).unwrap();
    let names = rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for name in names.filter(|name| name.starts_with("bootflip_")) {
        let base = name.trim_end_matches("_bucket");
        assert!(page.contains(&format!("| `{base}` |")), "{name} is no metric");
    }
    let Some(promtool) = tool("promtool", "target/promtool/promtool") else { return };
    for arguments in [
        ["check", "rules", "config/prometheus-alerts.yml"],
        ["test", "rules", "tests/data/prometheus-alerts-test.yml"],
    ] {
        let output = Command::new(&promtool).args(arguments).current_dir(root()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && said.contains("SUCCESS"), "{arguments:?}: {said}");
    }
}

#[test]
fn unit_is_hardened() {
    let unit = std::fs::read_to_string(root().join("packaging/bootflip.service")).unwrap();
    for line in [
        "Type=notify",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE CAP_NET_RAW",
        "CapabilityBoundingSet=CAP_NET_BIND_SERVICE CAP_NET_RAW",
        "LoadCredential=pool:/etc/bootflip/credentials",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    if programs::missing("systemd-analyze") {
        return;
    }
    let analyze = |more: &[&str]| {
        let unit = root().join("packaging/bootflip.service");
        let output = Command::new("systemd-analyze").args(more).arg(unit).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (within, said) = analyze(&["security", "--offline=true", "--threshold=20", "--no-pager"]);
    let verdict = said.lines().last().unwrap_or_default();
    assert!(within, "more than 2.0: {verdict}");
    crate::common::tell(&format!("unit: {}\n", verdict.trim()));
}

#[tokio::test(flavor = "multi_thread")]
async fn reload_takes_over_what_no_job_has_and_tells_the_rest() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1), vm("db", 2)]));
    site.pv_boots.send_replace(false);
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_job(&id, "starts as PV", |job| job.state == State::Verifying || job.state == State::Starting)
        .await;
    site.reconfigure(|text| {
        let text = text.replace("[profile.mini]\n", "[profile.mini]\naccept_weak = true\n");
        format!("{text}[limits]\ninstalls_per_pool = 9\n[profile.later]\nbase = \"custom\"\n")
    });
    let keys = |ran: &crate::common::site::Ran| -> Vec<String> {
        let differences = ran.json()["differences"].clone();
        differences.as_array().unwrap().iter().map(|one| one["key"].as_str().unwrap().to_owned()).collect()
    };
    let expected = ["profile.later", "profile.mini.accept_weak", "limits"];
    let planned = site.run(&["reload", "--plan", "--json"]).await.ended(0);
    assert_eq!(keys(&planned), expected, "{}", planned.out);
    assert_eq!(
        keys(&site.run(&["reload", "--plan", "--json"]).await.ended(0)),
        expected,
        "a plan takes nothing over"
    );
    let shown = site.run(&["reload"]).await.ended(0);
    shown.says("false -> true");
    shown.says("at the next start");
    // Limits stay as they are until a start; that they differ goes on being told.
    assert_eq!(keys(&site.run(&["reload", "--json"]).await.ended(0)), ["limits"]);
    site.run(&["deploy", "db", "--profile", "later", "--yes", "--plan", "--json"]).await.says("\"later\"");
    let kept = kept(&site, &id).await;
    assert!(!kept.profile.accept_weak, "a job under way keeps its profile");
    site.reconfigure(|text| text.replace("accept_weak = true", "accept_weak = \"maybe\""));
    site.run(&["reload"]).await.ended(2).says("nothing was taken over");
    site.run(&["deploy", "db", "--profile", "later", "--yes", "--plan", "--json"]).await.says("\"later\"");
    site.reconfigure(|text| text.replace("accept_weak = \"maybe\"", "accept_weak = false"));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(site.pid()).unwrap()),
        nix::sys::signal::Signal::SIGHUP,
    )
    .unwrap();
    let begun = Instant::now();
    while !site.log().contains("key=\"profile.mini.accept_weak\" what=\"true -> false\"") {
        assert!(begun.elapsed() < LONG, "{}", site.log());
        sleep(Duration::from_millis(50)).await;
    }
    site.pv_boots.send_replace(true);
    site.until_job(&id, "ends", JobView::is_over).await;
}

/// A job as it stands in the database of a server that runs.
async fn kept(site: &Site, id: &str) -> Job {
    let copy = site.path("kept.db");
    site.run(&["store", "backup", copy.to_str().unwrap()]).await.ended(0);
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(copy).unwrap());
    Jobs::new(store).get(id).await.unwrap().unwrap().job
}

#[tokio::test(flavor = "multi_thread")]
async fn json_logs_have_one_event_for_each_change_of_state() {
    let mut site =
        Site::new(Plan { more: "[log]\nformat = \"json\"\n".to_owned(), ..Plan::of(vec![vm("web", 1)]) });
    let before = site.truth("web");
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_installed(&id, &before).await;
    let job = site.job(&id).await;
    let log = site.log();
    let events: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let advanced: Vec<&Value> = events.iter().filter(|event| event["message"] == "job advanced").collect();
    let to: Vec<&str> = advanced.iter().map(|event| event["to"].as_str().unwrap()).collect();
    let states: Vec<&str> = job.states.iter().skip(1).map(|state| state.name.as_str()).collect();
    assert_eq!(to, states);
    assert!(advanced.iter().all(|event| event["job"] == id.as_str() && event["vm"] == "web"), "{advanced:?}");
    let transfer =
        events.iter().find(|event| event["message"] == "boot HTTP" && event["status"] == 200).unwrap();
    assert!(transfer["mac"] == "02:16:3e:00:00:01" && transfer["peer"].is_string(), "{transfer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn database_is_copied_while_the_server_runs_and_a_damaged_one_is_noticed() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    let before = site.truth("web");
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_installed(&id, &before).await;
    let copy = site.path("copy.db");
    let name = copy.to_str().unwrap();
    site.run(&["store", "backup", name]).await.ended(0);
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    site.run(&["store", "backup", name]).await.ended(1).says("File exists");
    let checked = site.run(&["store", "check", name, "--json"]).await.ended(0);
    assert_eq!((&checked.json()["entries"]["jobs"], &checked.json()["problems"]), (&json!(1), &json!([])));
    site.run(&["store", "check"]).await.ended(0).says("problems");
    site.terminate().await;
    // A copy is a database to start with.
    std::fs::rename(&copy, site.path("state/bootflip.db")).unwrap();
    site.serve().await;
    assert_eq!(site.job(&id).await.state, State::Succeeded);
    site.run(&["store", "backup", name]).await.ended(0);
    let mut bytes = std::fs::read(&copy).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].fill(0x5a);
    std::fs::write(&copy, &bytes).unwrap();
    site.run(&["store", "check", name]).await.ended(1);
    std::fs::write(&copy, "no database at all, but long enough to be one").unwrap();
    site.run(&["store", "check", name]).await.ended(1).says("another program");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_that_ended_long_ago_are_forgotten_and_others_are_not() {
    let mut site =
        Site::new(Plan { more: "[store]\nkeep_days = 30\n".to_owned(), ..Plan::of(vec![vm("web", 1)]) });
    let before = site.truth("web");
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_installed(&id, &before).await;
    site.terminate().await;
    let old = old_jobs(&site, &id).await;
    site.serve().await;
    let begun = Instant::now();
    loop {
        let jobs = site.run(&["jobs", "list", "--json"]).await.ended(0).json();
        let left: BTreeSet<String> =
            jobs.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect();
        if left.len() == 2 {
            assert!(left.contains(&id) && left.contains(&old.unsettled), "{left:?}");
            break;
        }
        assert!(begun.elapsed() < LONG, "{left:?}\n{}", site.log());
        sleep(Duration::from_millis(50)).await;
    }
    assert!(site.log().contains("jobs=2"), "{}", site.log());
}

/// Jobs of forty days ago in the database of a server that is down.
struct Old {
    /// Of those that ended: one that is not settled.
    unsettled: String,
}

async fn old_jobs(site: &Site, id: &str) -> Old {
    let store = SqliteStore::open(site.path("state/bootflip.db")).unwrap();
    let entry = store.get(&format!("jobs/{id}")).await.unwrap().unwrap();
    let job: Value = serde_json::from_slice(&entry.value).unwrap();
    let mut batch = Batch::new();
    // The third is still to be looked at: the pool may have an older database.
    let later = job["created"].as_u64().unwrap() + 3600 * 1000;
    for (name, state, settle) in [
        ("old-1", "Succeeded", json!(null)),
        ("old-2", "Failed", json!(null)),
        ("old-3", "Succeeded", json!(later)),
    ] {
        let mut old = job.clone();
        old["id"] = json!(name);
        old["state"] = json!(state);
        old["settle_at"] = settle;
        for mark in old["history"].as_array_mut().unwrap() {
            mark["at"] = json!(mark["at"].as_u64().unwrap() - 40 * 24 * 3600 * 1000);
        }
        batch = batch.put(format!("jobs/{name}"), old.to_string());
    }
    store.commit(batch).await.unwrap();
    Old { unsettled: "old-3".to_owned() }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let bootflip = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_bootflip")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for shell in ["bash", "zsh", "fish"] {
        let text = bootflip(&["completions", shell]);
        for word in ["deploy", "rescue", "reload", "profile"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    bootflip(&["man", folder.path().to_str().unwrap()]);
    for page in ["bootflip.1", "bootflip-deploy.1", "bootflip-jobs-show.1", "bootflip-store-backup.1"] {
        let text = std::fs::read_to_string(folder.path().join(page)).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
    }
}

//! Secrets of a whole run, searched for everywhere: log, answers of the API, database, what `ps` shows.

use std::{collections::BTreeMap, path::Path, process::Stdio};

use bootflip::{
    app::{api, key},
    secret::{Secret, TokenUse},
    sim::pool::{DEFAULT_USER, Role},
};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Rig, browser};
use crate::common::site::{LONG, Plan, Ran, Site, vm, write_secret};

/// The pool's password.
const PASSWORD: &str = "canary-password-5f1d";

/// A variable of the kind `secret`. It stands in the script that its machine gets, and in the database with its job.
const HASH: &str = "canary-hash-8e21";

const MORE: &str = r#"
[profile.mini.variable.hash]
kind = "secret"
about = "A password's hash."
[profile.mini.variables]
hash = { file = "hash" }
"#;

fn holds(text: &[u8], secret: &str) -> bool {
    text.windows(secret.len()).any(|piece| piece == secret.as_bytes())
}

/// Every file of a folder, by name.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.insert(path.display().to_string(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// Command line and environment of a process, as `ps` shows them.
fn of_process(pid: u32) -> Vec<u8> {
    let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap();
    [read("cmdline"), read("environ")].concat()
}

/// Every answer of the API to who may do everything, but events (they have no end) and rendered secrets.
async fn answers(rig: &Rig, token: &str, job: &str) -> BTreeMap<String, Vec<u8>> {
    let document = serde_json::to_value(api::document()).unwrap();
    let mut found = BTreeMap::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        if methods.get("get").is_none() || path.ends_with("/events") {
            continue;
        }
        let name = if path.contains("/pools/") {
            "main"
        } else if path.contains("/profiles/") {
            "mini"
        } else {
            "web"
        };
        let path = path.replace("{id}", job).replace("{name}", name).replace("{mac}", "02:16:3e:00:00:01");
        let answer = rig.request(Method::GET, &path).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        found.insert(path, answer.bytes().await.unwrap().to_vec());
    }
    let order = json!({ "kind": "all", "vm": "web", "profile": "mini" });
    let answer = rig.post(token, "/api/v1/renders", &order).await;
    assert_eq!(answer.status(), 200);
    found.insert("/renders".to_owned(), answer.bytes().await.unwrap().to_vec());
    found
}

fn canary_site() -> Site {
    let mut site = Site::new(Plan { more: MORE.to_owned(), ..Plan::of(vec![vm("web", 1)]) });
    site.pool
        .with(|pool, _| pool.add_account(DEFAULT_USER, Secret::new(PASSWORD.to_owned()), Role::PoolAdmin));
    write_secret(&site.path("password"), PASSWORD);
    write_secret(&site.path("hash"), HASH);
    site.reconfigure(|text| {
        text.replace("args = \"console=ttyS0", "args = \"console=ttyS0 hash={{ vars.hash }}")
    });
    site.environment.push(("RUST_LOG".to_owned(), "debug".to_owned()));
    site
}

#[tokio::test]
async fn secrets_of_a_whole_run_are_in_no_log_answer_database_or_command_line() {
    let mut rig = Rig::over(canary_site()).await;
    let (ops, admin) = (rig.token("ops", "operate").await, rig.token("root", "admin").await);
    let cookie = browser::log_in(&rig, &admin).await;
    let cookie = cookie.split_once('=').unwrap().1.to_owned();
    write_secret(&rig.site.path("ops.token"), &ops);
    rig.site.until_known(1).await;

    let (url, file) = (rig.url.clone(), rig.site.path("ops.token"));
    let order = ["deploy", "web", "-p", "mini", "--reinstall", "--yes", "--wait", "--json", "--server", &url];
    let mut deploy = rig.site.command(&order);
    deploy.env("BOOTFLIP_TOKEN_FILE", &file).stdout(Stdio::piped()).stderr(Stdio::piped());
    let deploy = deploy.spawn().unwrap();
    let mut found = BTreeMap::from([
        ("the process of deploy".to_owned(), of_process(deploy.id().unwrap())),
        ("the process of serve".to_owned(), of_process(rig.site.pid())),
    ]);
    let ran = Ran::of(timeout(LONG, deploy.wait_with_output()).await.expect("it ends").unwrap()).ended(0);
    let printed: Value = ran.json();
    let job = printed["vms"][0]["job"].as_str().unwrap().to_owned();
    found.extend([
        ("deploy's result".to_owned(), ran.out.into_bytes()),
        ("deploy's words".to_owned(), ran.said.into_bytes()),
    ]);
    found.extend(answers(&rig, &admin, &job).await);

    // What is searched for can be found: this is the one answer that has it.
    let order = json!({ "kind": "script", "vm": "web", "profile": "mini" });
    let shown = rig.post(&admin, "/api/v1/renders/secrets", &order).await.bytes().await.unwrap();
    assert!(holds(&shown, HASH));
    rig.site.run(&["audit"]).await.ended(0).says("show-secrets");

    assert_eq!(rig.site.terminate().await.0, Some(0));
    found.insert("the log".to_owned(), rig.site.log().into_bytes());
    assert!(holds(&found["the log"], "method=GET"), "the log has its requests");
    let state = rig.site.path("state");
    let key = key::load_or_make(&state).unwrap();
    let tokens =
        [TokenUse::Render, TokenUse::Report, TokenUse::Booted].map(|usage| key.token(&job, 1, usage));
    let mut secrets = vec![
        ("a token", ops.as_str()),
        ("a token", &admin),
        ("a cookie", &cookie),
        ("the password", PASSWORD),
    ];
    secrets.extend(tokens.iter().map(|token| ("a job's token", token.expose())));
    let database = files(&state);
    assert!(database.keys().any(|name| name.ends_with(bootflip::app::DATABASE)));
    for (kind, secret) in &secrets {
        for (place, text) in found.iter().chain(&database) {
            assert!(!holds(text, secret), "{kind} is in {place}");
        }
    }
    for (place, text) in &found {
        assert!(!holds(text, HASH), "the secret variable is in {place}");
    }
}

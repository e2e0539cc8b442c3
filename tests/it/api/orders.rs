//! Orders over the API: pages and filters, repeated requests, bad bodies, the audit log of what was done.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::{Rig, problem};

fn order(names: &[&str]) -> Value {
    json!({ "selectors": names, "profile": "ext", "reinstall": true })
}

async fn ids(rig: &Rig, token: &str, query: &str) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = rig.get(token, &format!("/api/v1/jobs?{query}{cursor}")).await;
        ids.extend(page["jobs"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return ids,
        }
    }
}

#[tokio::test]
async fn jobs_come_in_pages_and_by_filter() {
    let rig = Rig::new(&["a", "b", "c", "d", "e"]).await;
    let token = rig.token("ops", "operate").await;
    let answer = rig.post(&token, "/api/v1/jobs", &order(&["a", "b", "c", "d", "e"])).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let all = ids(&rig, &token, "limit=1000").await;
    assert_eq!(all.len(), 5);
    for limit in [1, 2, 3, 5] {
        assert_eq!(ids(&rig, &token, &format!("limit={limit}")).await, all, "by {limit}");
    }
    let newest: Vec<String> = all.iter().rev().cloned().collect();
    assert_eq!(ids(&rig, &token, "newest=true&limit=2").await, newest);
    let of_c = ids(&rig, &token, "vm=c").await;
    assert_eq!(of_c.len(), 1);
    assert_eq!(ids(&rig, &token, "vm=c&profile=ext&pool=main").await, of_c);
    assert_eq!(ids(&rig, &token, "pool=other").await.len(), 0);
    for query in ["limit=0", "limit=1001", "limit=x", "cursor=zz", "state=None", "colour=red"] {
        let answer = rig.request(Method::GET, &format!("/api/v1/jobs?{query}")).bearer_auth(&token);
        assert_eq!(problem(answer.send().await.unwrap()).await, "invalid-request", "{query}");
    }
    let vms = rig.get(&token, "/api/v1/vms?limit=2").await;
    assert_eq!(vms["vms"].as_array().unwrap().len(), 2);
    assert!(vms["next"].is_string());
    let halted = rig.get(&token, "/api/v1/vms?name=a&pool=main").await;
    assert_eq!(halted["vms"][0]["name"], "a");
}

#[tokio::test]
async fn fleet_is_there_to_look_at() {
    let rig = Rig::new(&["web"]).await;
    let token = rig.token("reader", "read").await;
    let pool = rig.get(&token, "/api/v1/pools/main").await;
    assert_eq!(
        (&pool["reachable"], &pool["vms"], &pool["trust"]),
        (&json!(true), &json!(1), &json!("plain-http"))
    );
    let machines = rig.get(&token, "/api/v1/machines").await;
    assert_eq!(
        (&machines["machines"][0]["name"], &machines["machines"][0]["gate"]),
        (&json!("web"), &json!("closed"))
    );
    let mac = machines["machines"][0]["mac"].as_str().unwrap();
    assert_eq!(rig.get(&token, &format!("/api/v1/machines/{mac}")).await["name"], "web");
    assert_eq!(rig.get(&token, "/api/v1/machines?gate=booting").await["machines"], json!([]));
    assert_eq!(rig.get(&token, "/api/v1/profiles/ext").await["completion"], "halt");
    assert_eq!(rig.get(&token, "/api/v1/leases").await["leases"], json!([]));
    assert_eq!(rig.get(&token, "/api/v1/transfers").await["transfers"], json!([]));
    assert_eq!(rig.get(&token, "/api/v1/ready").await["ready"], json!(true));
    for path in [
        "/api/v1/pools/none",
        "/api/v1/profiles/none",
        "/api/v1/machines/x",
        "/api/v1/jobs/none",
        "/api/v1/vms/none",
    ] {
        let answer = rig.request(Method::GET, path).bearer_auth(&token).send().await.unwrap();
        assert_eq!(problem(answer).await, "not-found", "{path}");
    }
}

#[tokio::test]
async fn server_without_its_pool_is_alive_and_not_ready() {
    let rig = Rig::new(&["web"]).await;
    let token = rig.token("reader", "read").await;
    rig.site.run(&["token", "list"]).await.ended(0).says("reader");
    rig.site.reconfigure(|text| text.replace("[pool.main]\n", "[pool.other]\nurl = \"http://127.0.0.1:1\"\nplain_http = true\nuser = \"root\"\npassword_file = \"password\"\n[pool.main]\n"));
    let mut rig = rig;
    rig.site.terminate().await;
    rig.site.serve().await;
    rig.url = format!("http://{}", super::bound(&rig.site)["remote"]["address"].as_str().unwrap());
    let answer = rig.request(Method::GET, "/api/v1/ready").bearer_auth(&token).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let ready: Value = answer.json().await.unwrap();
    assert_eq!(ready["store"], Value::Null);
    assert!(ready["pools"].as_array().unwrap().iter().any(|pool| pool["pool"] == "other"), "{ready}");
    rig.get(&token, "/api/v1/health").await;
}

#[tokio::test]
async fn order_with_a_key_is_carried_out_once() {
    let rig = Rig::new(&["a", "b"]).await;
    let token = rig.token("ops", "operate").await;
    let keyed = |token: String, body: Value| {
        let request = rig.request(Method::POST, "/api/v1/jobs").bearer_auth(token);
        request.header("idempotency-key", "order-1").json(&body).send()
    };
    let first = keyed(token.clone(), order(&["a"])).await.unwrap();
    assert!(first.status().is_success() && !first.headers().contains_key("idempotent-replayed"));
    let first: Value = first.json().await.unwrap();
    assert_eq!(first["vms"][0]["outcome"], "created");
    let again = keyed(token.clone(), order(&["a"])).await.unwrap();
    assert_eq!(again.headers()["idempotent-replayed"], "true");
    assert_eq!(again.json::<Value>().await.unwrap(), first, "created still, and not existing");
    assert_eq!(problem(keyed(token.clone(), order(&["b"])).await.unwrap()).await, "key-reused");
    let other = rig.token("other", "operate").await;
    let of_other: Value = keyed(other, order(&["b"])).await.unwrap().json().await.unwrap();
    assert_eq!(of_other["vms"][0]["outcome"], "created", "another caller's key is another key");
    let refused = rig.request(Method::POST, "/api/v1/jobs/none/cancel").bearer_auth(&token);
    let refused = refused.header("idempotency-key", "order-2").send().await.unwrap();
    assert_eq!(problem(refused).await, "not-found");
    let free =
        rig.request(Method::POST, "/api/v1/jobs").bearer_auth(&token).header("idempotency-key", "order-2");
    assert!(free.json(&order(&["a"])).send().await.unwrap().status().is_success(), "a refusal keeps no key");
    let bad = rig.request(Method::POST, "/api/v1/jobs").bearer_auth(&token).header("idempotency-key", "a b");
    assert_eq!(problem(bad.json(&order(&["a"])).send().await.unwrap()).await, "invalid-request");
}

#[tokio::test]
async fn ten_of_the_same_order_at_once_make_one_job() {
    let rig = Rig::new(&["a"]).await;
    let token = rig.token("ops", "operate").await;
    let sends = (0..10).map(|_| {
        let request = rig.request(Method::POST, "/api/v1/jobs").bearer_auth(&token);
        request.header("idempotency-key", "k").json(&order(&["a"])).send()
    });
    let mut created = 0;
    for answer in futures_util::future::join_all(sends).await {
        let answer = answer.unwrap();
        if answer.status() == StatusCode::CONFLICT {
            assert_eq!(problem(answer).await, "under-way");
        } else if !answer.headers().contains_key("idempotent-replayed") {
            created += 1;
        }
    }
    assert_eq!(created, 1);
    assert_eq!(ids(&rig, &token, "vm=a").await.len(), 1);
}

#[tokio::test]
async fn bad_bodies_are_problems() {
    let rig = Rig::new(&["a"]).await;
    let token = rig.token("ops", "operate").await;
    let cases: [(&str, &str, Vec<u8>, &str); 6] = [
        ("/api/v1/jobs", "application/json", b"{".to_vec(), "invalid-request"),
        ("/api/v1/jobs", "application/json", b"{\"selectors\": 1}".to_vec(), "invalid-request"),
        (
            "/api/v1/jobs",
            "application/json",
            b"{\"selectors\": [], \"colour\": 1}".to_vec(),
            "invalid-request",
        ),
        ("/api/v1/jobs", "application/json", b"{\"selectors\": []}".to_vec(), "cannot-be"),
        ("/api/v1/jobs", "text/plain", b"{}".to_vec(), "wrong-type"),
        ("/api/v1/plans", "application/json", vec![b' '; (1 << 20) + 1], "too-large"),
    ];
    for (path, kind, body, expected) in cases {
        let request = rig.request(Method::POST, path).bearer_auth(&token).header("content-type", kind);
        let answer = request.body(body.clone()).send().await.unwrap();
        assert_eq!(
            problem(answer).await,
            expected,
            "{path} {kind} {}",
            String::from_utf8_lossy(&body[..body.len().min(60)])
        );
    }
}

#[tokio::test]
async fn audit_log_says_who_did_what_to_which_vm_and_shows_what_was_changed() {
    let mut rig = Rig::new(&["web"]).await;
    let token = rig.token("ops", "operate").await;
    let made: Value = rig.post(&token, "/api/v1/jobs", &order(&["web"])).await.json().await.unwrap();
    let job = made["vms"][0]["job"].as_str().unwrap().to_owned();
    rig.post(&token, &format!("/api/v1/jobs/{job}/cancel"), &json!({})).await;
    let shown = rig.site.run(&["audit", "--json"]).await.ended(0).json();
    let find = |action: &str| {
        shown.as_array().unwrap().iter().find(|entry| entry["action"] == action).unwrap().clone()
    };
    let (deploy, cancel) = (find("deploy"), find("cancel"));
    for entry in [&deploy, &cancel] {
        assert_eq!(
            (&entry["who"], &entry["vm"], &entry["via"]),
            (&json!("token ops"), &json!("web"), &json!("token"))
        );
        assert_eq!(entry["job"].as_str().unwrap(), job);
    }
    assert_eq!(deploy["before"], "no live job");
    assert!(!cancel["before"].as_str().unwrap().is_empty() && !cancel["after"].as_str().unwrap().is_empty());
    assert!(find("token-add")["who"].as_str().unwrap().starts_with("uid "));
    let asked_by = rig.site.job(&job).await.asked_by;
    assert_eq!(asked_by, "token ops");

    // Somebody with the database in hand makes it another's deed.
    rig.site.terminate().await;
    let database = rig.site.path("state").join(bootflip::app::DATABASE);
    forge(&database, &deploy).await;
    rig.site.serve().await;
    rig.site.run(&["audit", "--all"]).await.ended(1).says("is not as it was written");
}

/// In the middle, and whole pages of it.
#[tokio::test]
async fn audit_log_shows_what_was_taken_out() {
    use bootflip::store::{Batch, Store, sqlite::SqliteStore};
    let mut rig = Rig::new(&[]).await;
    for number in 0..4 {
        rig.token(&format!("t{number}"), "read").await;
    }
    rig.site.run(&["audit", "--all"]).await.ended(0);
    rig.site.terminate().await;
    let database = rig.site.path("state").join(bootflip::app::DATABASE);
    let remove = async |numbers: std::ops::RangeInclusive<u32>| {
        let store = SqliteStore::open(&database).unwrap();
        let batch = numbers.fold(Batch::new(), |batch, number| batch.delete(format!("audit/{number:020}")));
        store.commit(batch).await.unwrap();
    };
    remove(3..=4).await;
    rig.site.serve().await;
    rig.site.run(&["audit", "--all"]).await.ended(1).says("audit log was changed");
    rig.site.run(&["audit", "--last", "2"]).await.ended(1).says("of entries 3 to 4 only 0 are there");
    rig.site.terminate().await;
    remove(1..=2).await;
    rig.site.serve().await;
    rig.site.run(&["audit", "--all"]).await.ended(1).says("of entries 1 to 4 only 0 are there");
}

/// A name that is a VM only a moment later: the same key may be used again.
#[tokio::test]
async fn order_that_made_nothing_is_not_kept_under_its_key() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("ops", "operate").await;
    for _ in 0..2 {
        let request = rig.request(Method::POST, "/api/v1/jobs").bearer_auth(&token);
        let answer = request.header("idempotency-key", "k1").json(&order(&["nobody"])).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers().get("idempotent-replayed"), None);
    }
}

/// Changes who did it, in the database itself.
async fn forge(database: &std::path::Path, entry: &Value) {
    use bootflip::store::{Batch, Store, sqlite::SqliteStore};
    let store = SqliteStore::open(database).unwrap();
    let key = format!("audit/{:020}", entry["number"].as_u64().unwrap());
    let text = String::from_utf8(store.get(&key).await.unwrap().unwrap().value).unwrap();
    assert!(text.contains("token ops"), "{text}");
    store.commit(Batch::new().put(key, text.replace("token ops", "token bob"))).await.unwrap();
}

//! Tokens as they are made, listed and revoked, by the command line and over the API.

use reqwest::Method;
use serde_json::json;

use super::{Rig, problem};

#[tokio::test]
async fn token_is_shown_once_listed_without_its_text_and_ends_when_revoked() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("ci", "read").await;
    assert!(token.starts_with("bft_") && token.len() == 68, "{token}");
    rig.get(&token, "/api/v1/jobs").await;
    let listed = rig.site.run(&["token", "list"]).await.ended(0);
    for word in ["ci", "read", "uid "] {
        listed.says(word);
    }
    assert!(!listed.out.contains(&token));
    let listed = rig.site.run(&["token", "list", "--json"]).await.ended(0).json();
    assert!(listed[0]["last_used"].is_string() && listed[0]["expires"].is_string(), "{listed}");
    rig.site.run(&["token", "add", "ci", "--scope", "admin"]).await.ended(3).says("revoke it first");
    rig.site.run(&["token", "add", "../x", "--scope", "admin"]).await.ended(2);
    rig.site.run(&["token", "add", "x"]).await.ended(2).says("--scope");
    rig.site.run(&["token", "revoke", "ci"]).await.ended(0);
    rig.site.run(&["token", "revoke", "ci"]).await.ended(2).says("there is no token named ci");
    let answer = rig.request(Method::GET, "/api/v1/jobs").bearer_auth(&token).send().await.unwrap();
    assert_eq!(problem(answer).await, "invalid-token");
}

#[tokio::test]
async fn admin_makes_tokens_over_the_api_too() {
    let rig = Rig::new(&[]).await;
    let admin = rig.token("root", "admin").await;
    let order = json!({ "name": "ci", "scope": "operate", "days": null });
    let made = rig.post(&admin, "/api/v1/tokens", &order).await;
    assert_eq!(made.status(), 201);
    let made: serde_json::Value = made.json().await.unwrap();
    assert_eq!(
        (&made["about"]["created_by"], &made["about"]["expires"]),
        (&json!("token root"), &json!(null))
    );
    rig.get(made["token"].as_str().unwrap(), "/api/v1/jobs").await;
    assert_eq!(problem(rig.post(&admin, "/api/v1/tokens", &order).await).await, "name-taken");
    for order in [
        json!({ "name": "a/b", "scope": "read", "days": 1 }),
        json!({ "name": "x", "scope": "root", "days": 1 }),
        json!({ "name": "x", "scope": "read", "days": 0 }),
        json!({ "name": "x", "scope": "read", "days": 100_000 }),
    ] {
        assert_eq!(
            problem(rig.post(&admin, "/api/v1/tokens", &order).await).await,
            "invalid-request",
            "{order}"
        );
    }
    let gone = rig.request(Method::DELETE, "/api/v1/tokens/ci").bearer_auth(&admin).send().await.unwrap();
    assert_eq!(gone.status(), 204);
}

#[tokio::test]
async fn headers_do_not_say_who_asks() {
    let rig = Rig::new(&[]).await;
    for (name, value) in [
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-user", "root"),
        ("x-remote-user", "admin"),
        ("forwarded", "for=127.0.0.1;by=unix"),
        ("authorization", "Basic cm9vdDpyb290"),
        ("cookie", "bootflip=../../x"),
    ] {
        let answer = rig.request(Method::GET, "/api/v1/jobs").header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{name}");
    }
}

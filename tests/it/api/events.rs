//! The stream of events.

use std::time::Duration;

use futures_util::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{Rig, problem};
use crate::common::site::LONG;

/// One event as it came.
#[derive(Debug)]
struct Event {
    id: u64,
    kind: String,
    data: Value,
}

/// Reads events until one is as wanted; all that came.
async fn read_until(
    rig: &Rig,
    token: &str,
    last: Option<u64>,
    wanted: impl Fn(&Event) -> bool,
) -> Vec<Event> {
    let mut request = rig.request(Method::GET, "/api/v1/events").bearer_auth(token);
    if let Some(last) = last {
        request = request.header("last-event-id", last);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut stream = answer.bytes_stream();
    let (mut text, mut events) = (String::new(), Vec::new());
    while !events.last().is_some_and(&wanted) {
        let piece = timeout(LONG, stream.next()).await.expect("an event").expect("no end").unwrap();
        text.push_str(std::str::from_utf8(&piece).unwrap());
        while let Some((block, rest)) = text.split_once("\n\n") {
            events.extend(parse(block));
            text = rest.to_owned();
        }
    }
    events
}

fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let kind = field("event:")?.to_owned();
    let data = serde_json::from_str(field("data:")?).unwrap();
    Some(Event { id: field("id:").unwrap().parse().unwrap(), kind, data })
}

#[tokio::test]
async fn who_comes_back_is_told_what_it_missed() {
    let rig = Rig::new(&["web"]).await;
    let token = rig.token("ops", "operate").await;
    let over = |event: &Event| event.data["state"] == "Cancelled" || event.data["state"] == "Failed";
    let order = json!({ "selectors": ["web"], "profile": "ext", "reinstall": true });
    let listening = read_until(&rig, &token, None, |event| event.kind == "job");
    let ordering = async {
        // The stream is open once it has begun; orders go on until one is seen.
        tokio::time::sleep(Duration::from_millis(200)).await;
        rig.post(&token, "/api/v1/jobs", &order).await.json::<Value>().await.unwrap()
    };
    let (first, made) = tokio::join!(listening, ordering);
    let job = made["vms"][0]["job"].as_str().unwrap();
    let first = first.last().unwrap();
    assert_eq!(first.data["id"].as_str().unwrap(), job);
    assert_eq!(first.data.get("log"), None, "events have no logs");

    rig.post(&token, &format!("/api/v1/jobs/{job}/cancel"), &json!({})).await;
    let missed = read_until(&rig, &token, Some(first.id), over).await;
    assert!(missed.windows(2).all(|pair| pair[0].id < pair[1].id), "{missed:?}");
    assert!(missed.iter().all(|event| event.id > first.id && event.kind == "job"), "{missed:?}");
}

#[tokio::test]
async fn id_of_another_database_begins_anew() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("reader", "read").await;
    let events = read_until(&rig, &token, Some(u64::MAX >> 2), |_| true).await;
    assert_eq!(events[0].kind, "reset");
    let bad = rig.request(Method::GET, "/api/v1/events").bearer_auth(&token).header("last-event-id", "x");
    assert_eq!(problem(bad.send().await.unwrap()).await, "invalid-request");
}

#[tokio::test]
async fn open_streams_do_not_hold_up_the_end_of_the_server() {
    let mut rig = Rig::new(&[]).await;
    let token = rig.token("reader", "read").await;
    let open = rig.request(Method::GET, "/api/v1/events").bearer_auth(&token).send().await.unwrap();
    let (code, _) = rig.site.terminate().await;
    assert_eq!(code, Some(0));
    assert!(!rig.site.log().contains("stopped in the middle"), "{}", rig.site.log());
    drop(open);
}

#[tokio::test]
async fn stream_ends_with_the_token_that_opened_it() {
    let rig = Rig::new(&[]).await;
    for path in ["/api/v1/events", "/events/fleet", "/events/all"] {
        let token = rig.token("gone", "read").await;
        let open = rig.request(Method::GET, path).bearer_auth(&token).send().await.unwrap();
        assert_eq!(open.headers()["content-type"], "text/event-stream", "{path}");
        rig.site.run(&["token", "revoke", "gone"]).await.ended(0);
        let mut stream = open.bytes_stream();
        let end = async { while stream.next().await.is_some_and(|piece| piece.is_ok()) {} };
        timeout(LONG, end).await.unwrap_or_else(|_| panic!("{path} goes on"));
    }
}

#[tokio::test]
async fn stream_ends_with_its_session() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("person", "read").await;
    let cookie = super::browser::log_in(&rig, &token).await;
    let open = rig.request(Method::GET, "/events/all").header("cookie", &cookie).send().await.unwrap();
    assert_eq!(open.headers()["content-type"], "text/event-stream");
    let out =
        rig.request(Method::POST, "/logout").header("cookie", &cookie).header("origin", rig.url.as_str());
    assert!(out.send().await.unwrap().status().is_redirection());
    let mut stream = open.bytes_stream();
    let end = async { while stream.next().await.is_some_and(|piece| piece.is_ok()) {} };
    timeout(LONG, end).await.expect("it ends with the session");
}

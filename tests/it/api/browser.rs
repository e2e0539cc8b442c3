//! Logins of browsers, and what answers tell them.

use reqwest::{Method, Response};

use super::{Rig, problem};

async fn shown(rig: &Rig, token: &str, next: &str, origin: &str) -> Response {
    let body = format!("token={token}&next={next}");
    let request = rig.request(Method::POST, "/login").header("origin", origin.to_owned());
    request.header("content-type", "application/x-www-form-urlencoded").body(body).send().await.unwrap()
}

/// A session's cookie, as browsers send it back.
pub(super) async fn log_in(rig: &Rig, token: &str) -> String {
    let answer = shown(rig, token, "/", &rig.url).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["location"]), (303, &"/".parse().unwrap()));
    let cookie = answer.headers()["set-cookie"].to_str().unwrap();
    for word in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(word), "{cookie}");
    }
    cookie.split(';').next().unwrap().to_owned()
}

async fn status(rig: &Rig, cookie: &str) -> u16 {
    let answer = rig.request(Method::GET, "/api/v1/jobs").header("cookie", cookie).send().await.unwrap();
    answer.status().as_u16()
}

#[tokio::test]
async fn session_begins_with_a_token_and_ends_with_logout_or_its_token() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("alice", "read").await;
    let (first, second) = (log_in(&rig, &token).await, log_in(&rig, &token).await);
    assert_ne!(first, second, "each login has a cookie of its own");
    assert_eq!((status(&rig, &first).await, status(&rig, &second).await), (200, 200));
    assert_eq!(status(&rig, "bootflip=0000").await, 401);

    let out = rig.request(Method::POST, "/logout").header("cookie", &first);
    let answer = out.header("origin", rig.url.clone()).send().await.unwrap();
    assert_eq!(answer.status(), 303);
    assert!(answer.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!((status(&rig, &first).await, status(&rig, &second).await), (401, 200));
    rig.site.run(&["token", "revoke", "alice"]).await.ended(0);
    assert_eq!(status(&rig, &second).await, 401);
}

#[tokio::test]
async fn session_survives_a_restart_of_the_server() {
    let mut rig = Rig::new(&[]).await;
    let token = rig.token("alice", "read").await;
    let cookie = log_in(&rig, &token).await;
    assert_eq!(rig.site.terminate().await.0, Some(0));
    rig.site.serve().await;
    rig.url = format!("http://{}", super::bound(&rig.site)["remote"]["address"].as_str().unwrap());
    assert_eq!(status(&rig, &cookie).await, 200);
}

#[tokio::test]
async fn login_leads_back_to_our_own_pages_alone_and_only_from_them() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("alice", "read").await;
    for (next, location) in [("/jobs/1", "/jobs/1"), ("//evil.example", "/"), ("https://evil.example", "/")] {
        assert_eq!(shown(&rig, &token, next, &rig.url).await.headers()["location"], location);
    }
    assert_eq!(problem(shown(&rig, &token, "/", "https://evil.example").await).await, "wrong-origin");
    let wrong = shown(&rig, "bft_none", "/jobs", &rig.url).await;
    assert_eq!(wrong.headers()["location"], "/login?problem=unknown&next=/jobs");
    assert!(!wrong.headers().contains_key("set-cookie"));
}

#[tokio::test]
async fn guesser_waits_and_a_session_from_there_goes_on() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("alice", "read").await;
    let cookie = log_in(&rig, &token).await;
    for guess in 0..10 {
        let bad = rig.request(Method::GET, "/api/v1/jobs").bearer_auth(format!("bft_{guess}"));
        assert_eq!(problem(bad.send().await.unwrap()).await, "invalid-token", "{guess}");
    }
    let good = rig.request(Method::GET, "/api/v1/jobs").bearer_auth(&token).send().await.unwrap();
    assert!(good.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() > 800);
    assert_eq!(problem(good).await, "locked-out");
    let again = shown(&rig, &token, "/", &rig.url).await;
    assert_eq!(again.headers()["location"], "/login?problem=locked-out");
    assert_eq!(status(&rig, &cookie).await, 200);
    rig.site.run(&["audit"]).await.ended(0).says("lockout");
}

#[tokio::test]
async fn every_answer_says_what_browsers_may_do_with_it() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("alice", "read").await;
    for (path, token) in
        [("/api/v1/jobs", Some(&token)), ("/api/v1/jobs", None), ("/none", None), ("/login", None)]
    {
        let mut request = rig.request(Method::GET, path);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.unwrap();
        let header = |name: &str| answer.headers()[name].to_str().unwrap().to_owned();
        let policy = header("content-security-policy");
        assert!(
            policy.contains("default-src 'self'") && policy.contains("frame-ancestors 'none'"),
            "{policy}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(header("referrer-policy"), "same-origin", "{path}");
        if path != "/login" {
            assert_eq!(header("cache-control"), "no-store", "{path}");
        }
    }
}

//! The admin API over real sockets: scopes, sessions, pages, repeated requests, events, TLS, secrets.

mod browser;
mod canary;
mod document;
mod events;
mod matrix;
mod orders;
mod remote;
mod tokens;

use bootflip::sim::pool::VmSpec;
use reqwest::{Method, RequestBuilder, Response};
use serde_json::Value;

use crate::common::site::{Plan, Site, vm};

/// Profiles without boot files: nothing but the pool is needed.
const PROFILES: &str = r#"
[profile.ext]
completion = "halt"
evidence = "none"
accept_weak = true
min_install = "200ms"
"#;

/// A server with its TCP listener.
struct Rig {
    site: Site,
    url: String,
    client: reqwest::Client,
}

impl Rig {
    /// With VMs of these names, and without boot services.
    async fn new(names: &[&str]) -> Self {
        let number = |at: usize| u16::try_from(at).unwrap() + 1;
        let vms: Vec<VmSpec> = names.iter().enumerate().map(|(at, name)| vm(name, number(at))).collect();
        let machines = vms.len();
        let rig = Self::of(Plan { boot: false, more: PROFILES.to_owned(), ..Plan::of(vms) }).await;
        rig.site.until_known(machines).await;
        rig
    }

    async fn of(plan: Plan) -> Self {
        Self::over(Site::new(plan)).await
    }

    async fn over(mut site: Site) -> Self {
        site.reconfigure(|text| text.replace("[admin]\n", "[admin]\nlisten = \"127.0.0.1:0\"\n"));
        site.serve().await;
        let url = format!("http://{}", bound(&site)["remote"]["address"].as_str().unwrap());
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        Self { site, url, client }
    }

    /// Makes a token by the command line.
    async fn token(&self, name: &str, scope: &str) -> String {
        let ran = self.site.run(&["token", "add", name, "--scope", scope]).await.ended(0);
        ran.says("it is shown this once");
        ran.out.trim().to_owned()
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    async fn get(&self, token: &str, path: &str) -> Value {
        let answer = self.request(Method::GET, path).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    async fn post(&self, token: &str, path: &str, body: &Value) -> Response {
        self.request(Method::POST, path).bearer_auth(token).json(body).send().await.unwrap()
    }
}

/// Where the server of a site listens. It writes that before its socket answers.
fn bound(site: &Site) -> Value {
    serde_json::from_slice(&std::fs::read(site.path("state/bound.json")).unwrap()).unwrap()
}

/// The kind of a problem, whose form is checked.
async fn problem(answer: Response) -> String {
    let status = answer.status().as_u16();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["status"], status, "{problem}");
    for word in ["title", "detail"] {
        assert!(problem[word].as_str().is_some_and(|text| !text.is_empty()), "{problem}");
    }
    problem["type"].as_str().unwrap().strip_prefix("urn:bootflip:problem:").unwrap().to_owned()
}

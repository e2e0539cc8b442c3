//! The boot HTTP service over real sockets. `files`: parts, versions and what is big; `hostile`: clients that do harm;
//! `clients`: programs that others wrote.

mod clients;
mod files;
mod hostile;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use bootflip::{
    boot::sink::{ReportAnswer, Sign, Unavailable},
    config::HttpConfig,
    http::server::{self, Limits, Shared},
    secret::TokenHash,
};
use reqwest::{Method, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::boot::{ARMED, IDLE, STRANGER, Scene, kernel};

struct Rig {
    scene: Scene,
    address: SocketAddr,
    client: reqwest::Client,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl Rig {
    fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    fn with_limits(limits: Limits) -> Self {
        Self::build(limits, None)
    }

    /// `root`: where the files are, when not in the scene.
    fn build(limits: Limits, root: Option<std::path::PathBuf>) -> Self {
        let scene = Scene::new();
        let config = HttpConfig {
            listen: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0),
            public_url: "http://127.0.0.1:0".into(),
            root: root.unwrap_or_else(|| scene.root()),
            device: Some("lo".into()),
        };
        let shared = Shared {
            gate: scene.gate.clone(),
            sink: scene.sink.clone(),
            templates: scene.templates(),
            log: None,
        };
        let server = server::bind(&config, shared).unwrap().with_limits(limits);
        let address = server.bound();
        assert_eq!(server.urls().base(), format!("http://{address}"));
        let stop = CancellationToken::new();
        let running = tokio::spawn(server.run(stop.clone()));
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { scene, address, client, stop, running }
    }

    fn url(&self, path: &str) -> String {
        let armed = &self.scene.armed;
        let path = path
            .replace("RENDER", armed.render.expose())
            .replace("REPORT", armed.report.expose())
            .replace("BOOTED", armed.booted.expose());
        format!("http://{}{path}", self.address)
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client.request(method, self.url(path))
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let response = self.request(Method::GET, path).send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> u16 {
        self.request(Method::POST, path).body(body).send().await.unwrap().status().as_u16()
    }

    /// Sends these bytes and reads until the server closes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }
}

const NOT_FOUND: (u16, &str) = (404, "not found\n");

#[tokio::test]
async fn a_machine_boots_from_script_to_answer_file() {
    let rig = Rig::new();
    let (status, script) = rig.get(&format!("/b/{ARMED}")).await;
    assert_eq!(status, 200);
    assert!(script.starts_with("#!ipxe\n"), "{script}");
    // From here on only what the script says.
    let word = |prefix: &str| {
        let line = script.lines().find(|line| line.starts_with(prefix)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    let fetched = rig.client.get(word("kernel ")).send().await.unwrap();
    assert_eq!(fetched.headers()["content-length"], "300000");
    assert!(fetched.bytes().await.unwrap() == kernel());
    assert_eq!(rig.client.get(word("initrd ")).send().await.unwrap().text().await.unwrap(), "initrd");
    let answer_url = script.split("bootflip.answer=").nth(1).unwrap().split_whitespace().next().unwrap();
    let answer = rig.client.get(answer_url).send().await.unwrap().text().await.unwrap();
    assert!(answer.contains(&format!("REPORT_URL={}\n", rig.url("/r/REPORT"))), "{answer}");
    assert!(answer.contains(&format!("BOOTED_URL={}\n", rig.url("/r/BOOTED/booted"))), "{answer}");
    let signs = rig.scene.sink.signs();
    assert_eq!(signs, [(ARMED, Sign::Script), (ARMED, Sign::Kernel), (ARMED, Sign::Initrd)]);
    assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), 1);
    assert_eq!(rig.scene.gate.who(Ipv4Addr::LOCALHOST.into()), Some(ARMED));
}

/// A nocloud seed: several files below one token, of which the first alone says that the installer has its answers.
#[tokio::test]
async fn a_seed_has_several_files_and_the_first_one_counts() {
    let rig = Rig::new();
    for name in ["extra", "extra"] {
        let (status, text) = rig.get(&format!("/a/RENDER/{name}")).await;
        assert!(status == 200 && text.contains("REPORT_URL="), "{status} {text}");
    }
    for name in ["", "none", "mini.j2", "extra=mini.j2", "extra/", "u/extra"] {
        let (status, text) = rig.get(&format!("/a/RENDER/{name}")).await;
        assert_eq!((status, text.as_str()), NOT_FOUND, "{name}");
    }
    assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), 0);
    assert_eq!(rig.get("/a/RENDER/mini").await.0, 200);
    assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), 1);
    assert_eq!(rig.get("/f/RENDER/u/live.iso").await, (200, "iso".to_owned()));
    // Over, and none of it is given out.
    rig.scene.disarm();
    for path in ["/a/RENDER/extra", "/a/RENDER/mini", "/f/RENDER/u/live.iso"] {
        assert_eq!(rig.get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn head_says_what_get_would_and_leaves_no_sign() {
    let rig = Rig::new();
    for path in [format!("/b/{ARMED}"), "/f/RENDER/u/linux".into(), "/a/RENDER/mini".into()] {
        let head = rig.request(Method::HEAD, &path).send().await.unwrap();
        let get_length = rig.get(&path).await.1.len();
        assert_eq!(head.status(), 200, "{path}");
        let length: usize = head.headers()["content-length"].to_str().unwrap().parse().unwrap();
        if path.starts_with("/f") {
            assert_eq!(length, 300_000);
        } else {
            assert_eq!(length, get_length, "{path}");
        }
    }
    assert_eq!(rig.scene.sink.signs().len(), 2, "the two GETs");
    assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), 1);
}

#[tokio::test]
async fn every_miss_is_the_same_404() {
    let rig = Rig::new();
    let other = "0".repeat(64);
    let misses = [
        "/".to_owned(),
        format!("/b/{STRANGER}"),
        "/b/nonsense".into(),
        format!("/f/{other}/u/linux"),
        "/f/REPORT/u/linux".into(),
        "/f/RENDER/unnamed".into(),
        "/f/RENDER/out".into(),
        "/f/RENDER/u".into(),
        format!("/a/{other}/mini"),
        "/a/BOOTED/mini".into(),
        "/a/RENDER/preseed".into(),
        "/r/REPORT/UPPER".into(),
    ];
    let mut whole = Vec::new();
    for path in &misses {
        let response = rig.request(Method::GET, path).send().await.unwrap();
        let mut headers: Vec<_> = response.headers().iter().map(|(n, v)| format!("{n}={v:?}")).collect();
        headers.retain(|header| !header.starts_with("date"));
        whole.push((response.status(), headers, response.text().await.unwrap()));
        let (status, _, body) = whole.last().unwrap();
        assert_eq!((status.as_u16(), body.as_str()), NOT_FOUND, "{path}");
    }
    whole.dedup();
    assert_eq!(whole.len(), 1, "{whole:?}");
    // The file is gone from the disk; the client learns no more than anybody.
    std::fs::remove_file(rig.scene.root().join("u/initrd.gz")).unwrap();
    assert_eq!(rig.get("/f/RENDER/u/initrd.gz").await, (404, "not found\n".to_owned()));
    assert_eq!(rig.scene.sink.signs(), []);
}

#[tokio::test]
async fn a_disarmed_machine_gets_the_refusal_and_its_tokens_are_dead() {
    let rig = Rig::new();
    rig.scene.disarm();
    for mac in [ARMED, IDLE] {
        assert_eq!(rig.get(&format!("/b/{mac}")).await, (200, "#!ipxe\nexit\n".to_owned()));
    }
    for path in ["/f/RENDER/u/linux", "/a/RENDER/mini"] {
        assert_eq!(rig.get(path).await, (404, "not found\n".to_owned()), "{path}");
    }
    assert_eq!(rig.scene.sink.signs(), [(ARMED, Sign::NetbootRefused), (IDLE, Sign::NetbootRefused)]);
    assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), 0);
}

#[tokio::test]
async fn the_answer_file_leaves_only_when_its_fetch_is_durable() {
    let rig = Rig::new();
    *rig.scene.sink.answer_fetched.lock().unwrap() = Err(Unavailable);
    let response = rig.request(Method::GET, "/a/RENDER/mini").send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (503, &"5".parse().unwrap())
    );
    assert_eq!(response.text().await.unwrap(), "");
    *rig.scene.sink.answer_fetched.lock().unwrap() = Ok(false);
    assert_eq!(rig.get("/a/RENDER/mini").await, (404, "not found\n".to_owned()));
}

#[tokio::test]
async fn a_report_reaches_the_sink_and_gets_its_answer() {
    let rig = Rig::new();
    for (answer, status) in [
        (ReportAnswer::Accepted, 201),
        (ReportAnswer::Already, 200),
        (ReportAnswer::Closed, 410),
        (ReportAnswer::Unknown, 404),
        (ReportAnswer::WrongMethod, 405),
        (ReportAnswer::Later, 503),
    ] {
        *rig.scene.sink.report_answer.lock().unwrap() = answer;
        assert_eq!(rig.post("/r/REPORT/base", b"40 %".to_vec()).await, status, "{answer:?}");
    }
    assert_eq!(rig.get("/r/REPORT/done?rc=0").await.0, 503);
    let reports = rig.scene.sink.reports.lock().unwrap();
    let (first, last) = (&reports[0], reports.last().unwrap());
    assert_eq!(first.token, TokenHash::of(rig.scene.armed.report.expose()));
    assert_eq!((first.stage.as_str(), first.body.as_slice(), first.by_get), ("base", &b"40 %"[..], false));
    assert_eq!(first.peer, Some(Ipv4Addr::LOCALHOST.into()));
    assert_eq!((last.stage.as_str(), last.body.as_slice(), last.by_get), ("done", &b"rc=0"[..], true));
}

#[tokio::test]
async fn a_report_of_more_than_64_kib_is_refused_and_never_reaches_the_sink() {
    let rig = Rig::new();
    assert_eq!(rig.post("/r/REPORT/late", vec![b'x'; 65_536]).await, 201);
    assert_eq!(rig.post("/r/REPORT/late", vec![b'x'; 65_537]).await, 413);
    let path = rig.url("/r/REPORT/late").split_once("/r/").unwrap().1.to_owned();
    let head = format!("POST /r/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let huge = rig.raw(&format!("{head}Content-Length: 1000000000\r\n\r\n")).await;
    assert!(huge.starts_with("HTTP/1.1 413 "), "{huge}");
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let chunked = rig.raw(&format!("{head}Transfer-Encoding: chunked\r\n\r\n{}", chunk.repeat(3))).await;
    assert!(chunked.starts_with("HTTP/1.1 413 "), "{chunked}");
    assert_eq!(rig.scene.sink.reports.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_hundred_reports_at_once_all_reach_the_sink() {
    let rig = Rig::with_limits(Limits { connections_per_address: 100, ..Limits::default() });
    let posts = (0..100).map(|_| rig.post("/r/REPORT/done", Vec::new()));
    let answers = futures_util::future::join_all(posts).await;
    assert_eq!(answers, [201; 100]);
    assert_eq!(rig.scene.sink.reports.lock().unwrap().len(), 100);
}

#[tokio::test]
async fn other_methods_are_refused_with_what_is_allowed() {
    let rig = Rig::new();
    for (method, path, allowed) in [
        (Method::POST, "/b/02:00:00:00:00:01", "GET, HEAD"),
        (Method::PUT, "/f/RENDER/u/linux", "GET, HEAD"),
        (Method::DELETE, "/a/RENDER/mini", "GET, HEAD"),
        (Method::PUT, "/r/REPORT/done", "POST"),
        (Method::HEAD, "/r/REPORT/done", "POST"),
    ] {
        let response = rig.request(method, path).send().await.unwrap();
        assert_eq!(
            (response.status(), &response.headers()["allow"]),
            (StatusCode::METHOD_NOT_ALLOWED, &allowed.parse().unwrap())
        );
    }
    assert!(rig.scene.sink.reports.lock().unwrap().is_empty());
}

#[tokio::test]
async fn no_path_leads_out_of_the_root() {
    let rig = Rig::new();
    let token = rig.scene.armed.render.expose().to_owned();
    let climbs = [
        "../canary",
        "../../canary",
        "u/../../canary",
        "%2e%2e/canary",
        "%2e%2e%2fcanary",
        "..%2fcanary",
        "..%5ccanary",
        "..\\canary",
        "%252e%252e/canary",
        "%c0%ae%c0%ae/canary",
        "%c0%ae./canary",
        "....//canary",
        "./../canary",
        "u/linux/../../../canary",
        "//canary",
        "/etc/passwd",
        "/proc/self/environ",
        "%00",
        "canary%00.gz",
        "out",
        "u/linux%00",
        "u/linux/",
        "u/linux%2f",
        "con",
        "file:///etc/passwd",
        "u%2f..%2f..%2fcanary",
    ];
    for climb in climbs {
        for line in
            [format!("/f/{token}/{climb}"), format!("/{climb}"), format!("http://x/f/{token}/{climb}")]
        {
            let answer =
                rig.raw(&format!("GET {line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{line}: {answer}");
            assert!(
                !answer.to_lowercase().contains("canary") && !answer.contains("root:"),
                "{line}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn what_is_no_http_is_answered_or_dropped_and_the_server_goes_on() {
    let rig = Rig::new();
    let many = "X: y\r\n".repeat(200);
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(100_000));
    for request in [
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "\x16\x03\x01\x02\x00\r\n\r\n",
        "POST /r/x/y HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
        "GET / HTTP/9.9\r\n\r\n",
        &format!("GET / HTTP/1.1\r\n{many}\r\n"),
        &long,
    ] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4") || answer.starts_with("HTTP/1.0 4"),
            "{answer}"
        );
    }
    assert_eq!(rig.get(&format!("/b/{ARMED}")).await.0, 200);
}

/// Quirk 31: old iPXE knows no chunks, and some builds speak HTTP/1.0: every answer has a length, and then an end.
#[tokio::test]
async fn an_old_ipxe_gets_a_length_and_no_chunks_on_every_route() {
    let rig = Rig::new();
    let paths = ["/f/RENDER/u/linux", "/f/RENDER/u/initrd.gz", "/a/RENDER/mini", "/b/x", "/nothing"];
    let mut paths: Vec<String> = paths
        .iter()
        .map(|path| rig.url(path).split_once(&rig.address.to_string()).unwrap().1.to_owned())
        .collect();
    paths.extend([format!("/b/{ARMED}"), format!("/b/{IDLE}")]);
    for path in &paths {
        for (version, header) in [("1.0", ""), ("1.1", "Host: x\r\nConnection: close\r\n")] {
            for method in ["GET", "HEAD"] {
                let answer = rig.raw(&format!("{method} {path} HTTP/{version}\r\n{header}\r\n")).await;
                let (head, body) = answer.split_once("\r\n\r\n").unwrap();
                let head = head.to_lowercase();
                assert!(!head.contains("transfer-encoding"), "{method} {path} {version}: {head}");
                let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                let length: usize = length.trim().parse().unwrap();
                // The kernel's bytes are not text: what stands for them is longer.
                let fits = if method == "HEAD" { body.is_empty() } else { body.len() >= length };
                assert!(fits && length > 0, "{method} {path} {version}: {length} {}", body.len());
            }
        }
    }
}

/// Quirk 37.
#[tokio::test]
async fn each_firmware_gets_a_script_in_its_own_words() {
    let rig = Rig::new();
    for (agent, begin, armed) in [
        ("gPXE/1.0.1", "#!gpxe\n", "boot\n"),
        ("iPXE/1.0.0+", "#!ipxe\n", "goto failed4"),
        ("iPXE/1.21.1+ (g4bd064de)", "#!ipxe\n", "inc tries"),
    ] {
        for (mac, has) in [(ARMED, armed), (IDLE, "exit\n"), (ARMED, armed)] {
            let answer = rig.request(Method::GET, &format!("/b/{mac}")).header("user-agent", agent);
            let script = answer.send().await.unwrap().text().await.unwrap();
            assert!(script.starts_with(begin) && script.contains(has), "{agent}: {script}");
        }
    }
}

#[tokio::test]
async fn stopping_ends_idle_connections_at_once() {
    let rig = Rig::new();
    let mut idle = TcpStream::connect(rig.address).await.unwrap();
    assert_eq!(rig.get(&format!("/b/{ARMED}")).await.0, 200);
    rig.stop.cancel();
    tokio::time::timeout(std::time::Duration::from_secs(5), rig.running).await.unwrap().unwrap();
    let mut rest = Vec::new();
    assert_eq!(idle.read_to_end(&mut rest).await.unwrap_or(0), 0);
}

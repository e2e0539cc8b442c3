//! Clients that do harm: damaged requests, smuggling, forged headers, and those that stall.

use std::time::Duration;

use tokio::net::TcpSocket;

use super::{files::Log, *};
use crate::common::PATIENCE;

/// Requests as bytes, and the status of each answer in order. `RENDER` and `REPORT` are the tokens. Behind the last
/// the client says no more; a server that goes on to read it as a request would answer again.
const RAW: [(&str, &[u16]); 30] = [
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n", &[200]),
    ("GET /b/02:00:00:00:00:02 HTTP/1.0\r\n\r\n", &[200]),
    ("GET http://x/b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n", &[200]), // absolute form
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\nHost: x\n\n", &[200]), // RFC 9112 §2.2: a bare LF may end a line
    ("\r\nGET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n", &[200]), // §2.2: an empty line in front
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\n\r\n", &[400]),      // no Host
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n", &[400]),
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost : x\r\n\r\n", &[400]),
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n", &[400]),
    ("GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\nX: a\0b\r\n\r\n", &[400]),
    ("GET  /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
    ("GET /b/02:00:00:00:00:02 HTTP/2.0\r\nHost: x\r\n\r\n", &[400]),
    ("G\x01T / HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
    ("GET /b/x y HTTP/1.1\r\nHost: x\r\n\r\n", &[400]),
    ("CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", &[404]),
    ("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", &[404]),
    ("TRACE /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n", &[405]),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &[]), // HTTP/2 with prior knowledge
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab", &[201]),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab", &[201]),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc", &[400]),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: +2\r\n\r\nab", &[400]),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: -2\r\n\r\nab", &[400]),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nab", &[400]),
    // Length and chunks at once: the chunks count and the connection ends, so that the hidden GET is no request.
    (
        "POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n",
        &[201],
    ),
    (
        "POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n",
        &[201],
    ),
    ("POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\nab", &[400]),
    ("POST /r/REPORT/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400]),
    (
        "POST /r/REPORT/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n",
        &[400],
    ),
    (
        "GET /f/RENDER/u/initrd.gz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n\
         GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHost: x\r\n\r\n",
        &[400],
    ),
];

/// The statuses of a stream of answers.
fn statuses(answers: &str) -> Vec<u16> {
    let starts = answers.match_indices("HTTP/1.").map(|(at, _)| &answers[at + 9..at + 12]);
    starts.map(|status| status.parse().unwrap()).collect()
}

#[tokio::test]
async fn damaged_and_smuggled_requests_get_the_status_of_the_rfc() {
    let rig = Rig::new();
    let (render, report) = (rig.scene.armed.render.expose(), rig.scene.armed.report.expose());
    for (request, expected) in RAW {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        let request = request.replace("RENDER", render).replace("REPORT", report);
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await; // a reset behind the answer is an end too
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(statuses(&answer), expected, "{request}\n{answer}");
    }
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_lines() {
    let rig = Rig::new();
    let get = |more: &str| format!("GET /b/{IDLE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{more}\r\n");
    for (more, status) in [
        ("X: y\r\n".repeat(90), 200),
        ("X: y\r\n".repeat(100), 431),
        (format!("X: {}\r\n", "y".repeat(15_000)), 200),
        (format!("X: {}\r\n", "y".repeat(17_000)), 431),
    ] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(get(&more).as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert_eq!(statuses(&String::from_utf8_lossy(&answer)), [status], "{} bytes", more.len());
    }
}

#[tokio::test]
async fn who_sends_is_what_the_socket_says_whatever_headers_claim() {
    let rig = Rig::new();
    let claims = [
        ("x-forwarded-for", "10.9.9.9"),
        ("forwarded", "for=10.9.9.9"),
        ("x-real-ip", "10.9.9.9"),
        ("client-ip", "10.9.9.9"),
        ("x-originating-ip", "10.9.9.9"),
        ("x-remote-user", "admin"),
        ("x-forwarded-host", "evil"),
        ("authorization", "Bearer x"),
    ];
    for (name, value) in claims {
        let answer =
            rig.request(Method::GET, &format!("/b/{ARMED}")).header(name, value).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{name}");
        assert!(!answer.text().await.unwrap().contains(value), "{name}");
        let report = rig.request(Method::POST, "/r/REPORT/base").header(name, value).body("x");
        assert_eq!(report.send().await.unwrap().status(), 201, "{name}");
    }
    let local = Some(Ipv4Addr::LOCALHOST.into());
    assert!(rig.scene.sink.reports.lock().unwrap().iter().all(|report| report.peer == local));
    assert!(rig.scene.sink.seen.lock().unwrap().iter().all(|seen| seen.peer == local));
    assert_eq!(rig.scene.gate.who(Ipv4Addr::LOCALHOST.into()), Some(ARMED));
}

/// A connection from an address of our own.
async fn connect_from(source: Ipv4Addr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source, 0).into())?;
    socket.connect(to).await
}

/// Connections have two ends in this process.
fn allow_descriptors() {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let all = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, all).unwrap();
}

#[tokio::test]
async fn two_thousand_stalled_clients_keep_nobody_out() {
    allow_descriptors();
    let rig = Rig::new();
    let mut stalled = Vec::new();
    for n in 0..2100_u16 {
        let [high, low] = (n / 50 + 1).to_be_bytes();
        let mut stream = connect_from(Ipv4Addr::new(127, 1, high, low), rig.address).await.unwrap();
        // Some say nothing, some stop in the head.
        if n % 2 == 0 {
            let _ = stream.write_all(b"GET /b/02:00:00:00:00:02 HTTP/1.1\r\nHo").await;
        }
        stalled.push(stream);
    }
    for _ in 0..20 {
        // Each on a connection of its own.
        let answer = rig.raw(&format!("GET /b/{IDLE} HTTP/1.0\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }
    // The first ones made room, without a word.
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, stalled[0].read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty());
}

#[tokio::test]
async fn one_address_holds_no_more_than_its_connections() {
    let rig = Rig::with_limits(Limits { connections_per_address: 2, ..Limits::default() });
    let source = Ipv4Addr::new(127, 2, 0, 1);
    let mut first = connect_from(source, rig.address).await.unwrap();
    let mut others = Vec::new();
    for _ in 0..2 {
        let mut stream = connect_from(source, rig.address).await.unwrap();
        stream.write_all(format!("GET /b/{IDLE} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        others.push(stream);
    }
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, first.read_to_end(&mut rest)).await;
    assert!(closed.is_ok() && rest.is_empty(), "the one that asked for nothing made room");
}

/// Long enough for a request on a busy machine, short enough to wait for.
fn hasty() -> Limits {
    let soon = Duration::from_millis(300);
    Limits { head: soon, body_stall: soon, send_stall: soon, ..Limits::default() }
}

#[tokio::test]
async fn a_head_that_does_not_come_ends_the_connection() {
    let rig = Rig::with_limits(hasty());
    for begun in ["", "GET /b/", "GET /b/x HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = TcpStream::connect(rig.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{begun}");
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_come_is_a_timeout_and_no_report() {
    let rig = Rig::with_limits(hasty());
    let path = rig.url("/r/REPORT/base").split_once("/r/").unwrap().1.to_owned();
    let head = format!("POST /r/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = tokio::time::timeout(PATIENCE, rig.raw(&head)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(rig.scene.sink.reports.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_dropped() {
    let log = Log::default();
    let _taken = log.take();
    let rig = Rig::with_limits(hasty());
    std::fs::File::create(rig.scene.root().join("u/linux")).unwrap().set_len(256 << 20).unwrap();
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    let path = rig.url("/f/RENDER/u/linux").split_once("/f/").unwrap().1.to_owned();
    stream.write_all(format!("GET /f/{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    // It never reads.
    let lines = log.requests(1).await;
    assert!(lines[0].contains("outcome=\"broken-off\""), "{lines:?}");
}

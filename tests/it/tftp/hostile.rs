//! What attackers, bad networks, changing files and stopping servers do.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::symlink,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bootflip::{
    config::TftpEngine,
    tftp::{
        server::{self, Content, Library, Refusal},
        sessions::Ended,
    },
};
use futures_util::{StreamExt, future::BoxFuture, stream};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::{
    NOT_FOUND, Rig,
    client::{Client, ack, fetch, request},
    config, loader,
    proxy::{Chaos, Proxy},
};

const LONG: Duration = Duration::from_secs(20);
/// The bound of the acceptance criterion; each transfer takes seconds.
const TRANSFER_LIMIT: Duration = Duration::from_secs(60);

/// A file's name, and the options to ask it with.
type Wish = (&'static [u8], &'static [(&'static str, &'static str)]);

/// 200 transfers over a network that loses, doubles and reorders five of a hundred datagrams each way.
pub(super) async fn a_bad_network_spoils_no_transfer(engine: TftpEngine) {
    let rig = Rig::with(engine, |config| config.transfers_per_client = 512);
    let small: Vec<u8> = loader().into_iter().take(20_000).collect();
    rig.write("small", &small);
    let chaos = Chaos { lost: 5, doubled: 5, delayed: 5 };
    let proxy = Proxy::before(rig.servers[0], 7, chaos).await;
    let wishes: [Wish; 5] = [
        (b"small", &[]),
        (b"small", &[("blksize", "1468"), ("tsize", "0")]),
        (b"undionly.kpxe", &[("blksize", "1468"), ("windowsize", "8")]),
        (b"undionly.kpxe", &[("blksize", "1024"), ("windowsize", "16"), ("tsize", "0")]),
        (b"undionly.kpxe", &[("windowsize", "64")]),
    ];
    let transfers = stream::iter(0..200_usize).map(async |number| {
        let (name, options) = wishes[number % wishes.len()];
        let fetched = tokio::time::timeout(TRANSFER_LIMIT, fetch(proxy.address, name, options)).await;
        let (content, _) = fetched.expect("a transfer within a minute").unwrap();
        let expected = if name == b"small" { small.clone() } else { loader() };
        assert!(content == expected, "transfer {number}: {} bytes", content.len());
    });
    assert_eq!(transfers.buffer_unordered(40).count().await, 200);
}

/// 500 names that try to leave the folder, beside which a canary lies.
pub(super) async fn five_hundred_names_lead_nowhere(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let climbs = [
        "..",
        "../..",
        "..\\..",
        "%2e%2e",
        "....//",
        "..%2f",
        "..%5c",
        "\u{ff0e}\u{ff0e}",
        "u/../..",
        "u\\..\\..",
    ];
    let fronts = ["", "/", "\\", "./", "//", "C:\\", "file:///", "tftp://127.0.0.1/", "u/"];
    let ends = ["/canary", "\\canary", "//canary", "/./canary", "/canary/", "/root/../canary"];
    let mut names: Vec<Vec<u8>> = Vec::new();
    for climb in climbs {
        for front in fronts {
            names.extend(ends.iter().map(|end| format!("{front}{climb}{end}").into_bytes()));
        }
    }
    let canary = rig.scene.folder.path().join("canary");
    names.extend(
        [
            "out",
            "/etc/passwd",
            "/proc/self/environ",
            "nul",
            "con",
            "aux.txt",
            ".",
            "..",
            "pxelinux.cfg/../../canary",
        ]
        .map(|name| name.as_bytes().to_vec()),
    );
    names.push(canary.to_str().unwrap().as_bytes().to_vec());
    names.push(b"\xc0\xae\xc0\xae/canary".to_vec());
    names.push(b"..\xff/canary".to_vec());
    assert!(names.len() >= 500, "{}", names.len());
    let asked = stream::iter(names).map(async |name| {
        // What is no UTF-8 the other engine does not answer at all.
        if engine == TftpEngine::AsyncTftp && std::str::from_utf8(&name).is_err() {
            return;
        }
        let got = fetch(rig.servers[0], &name, &[]).await;
        assert_eq!(got.unwrap_err(), NOT_FOUND, "{:?}", String::from_utf8_lossy(&name));
    });
    asked.buffer_unordered(4).collect::<()>().await;
    assert_eq!(rig.scene.sink.signs(), []);
}

/// A link that is swapped while it is read, in and out of the folder.
pub(super) async fn a_swapped_link_never_leads_out(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let (root, stop) = (rig.scene.root(), Arc::new(AtomicBool::new(false)));
    symlink("unnamed", root.join("link")).unwrap();
    let swapping = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            for target in ["unnamed", "../canary"].iter().cycle() {
                symlink(target, root.join("new")).unwrap();
                std::fs::rename(root.join("new"), root.join("link")).unwrap();
                if stop.load(Ordering::Relaxed) {
                    return;
                }
            }
        })
    };
    let mut read = 0;
    for _ in 0..1000 {
        match rig.text("link").await.as_str() {
            "unnamed" => read += 1,
            other => assert_eq!(other, NOT_FOUND),
        }
    }
    stop.store(true, Ordering::Relaxed);
    swapping.join().unwrap();
    assert!(read > 0);
}

/// A file that the manifest names is what the manifest says, or is not given out.
pub(super) async fn a_flipped_byte_withdraws_a_file(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let sum = |content: &[u8]| format!("{:x}", Sha256::digest(content));
    rig.write("SHA256SUMS", format!("{}  undionly.kpxe\n", sum(&loader())).as_bytes());
    let withdrawn = "error 0: withdrawn: the file is not what SHA256SUMS says";
    let asked = async || match rig.get("undionly.kpxe").await {
        Ok(content) => content.len().to_string(),
        Err(error) => error,
    };
    assert_eq!(asked().await, "100000");
    let mut flipped = loader();
    flipped[50_000] ^= 1;
    rig.write("new", &flipped);
    std::fs::rename(rig.scene.root().join("new"), rig.scene.root().join("undionly.kpxe")).unwrap();
    assert_eq!(asked().await, withdrawn);
    assert_eq!(rig.text("unnamed").await, "unnamed", "the manifest does not name it");
    rig.write("SHA256SUMS", format!("{} *undionly.kpxe\n", sum(&flipped)).as_bytes());
    assert_eq!(asked().await, "100000");
    rig.write("undionly.kpxe", b"short");
    assert_eq!(asked().await, withdrawn);
    rig.write("SHA256SUMS", b"no manifest\n");
    assert_eq!(asked().await, "error 0: the server cannot read this now");
    std::fs::remove_file(rig.scene.root().join("SHA256SUMS")).unwrap();
    assert_eq!(asked().await, "5");
}

/// A file larger than what is kept in memory comes whole, for several clients at different places.
pub(super) async fn a_file_larger_than_the_memory_comes_whole(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let content: Vec<u8> =
        (0..7_500_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    rig.write("large", &content);
    let fetches = [("1468", "64"), ("1428", "16"), ("1024", "33")].map(async |(size, window)| {
        let options = [("blksize", size), ("windowsize", window), ("tsize", "0")];
        let (fetched, granted) = fetch(rig.servers[0], b"large", &options).await.unwrap();
        assert_eq!(granted["tsize"], content.len().to_string());
        assert!(fetched == content);
    });
    futures_util::future::join_all(fetches).await;
}

/// After the stop transfers come to their end, and nobody begins one.
pub(super) async fn a_server_that_stops_lets_transfers_end(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    client.ask(b"unnamed", &[("blksize", "8"), ("tsize", "0")]).await;
    assert_eq!(client.next(LONG).await.unwrap()[1], 6);
    rig.stop.cancel();
    client.reply(&ack(0)).await;
    assert_eq!(client.next(LONG).await.unwrap(), b"\0\x03\0\x01unnamed");
    client.reply(&ack(1)).await;
    tokio::time::timeout(LONG, rig.running).await.unwrap().unwrap();
}

/// Keeps what the engine tells.
#[derive(Debug, Default)]
struct Ears(Mutex<Vec<Ended>>);

impl Library for Ears {
    fn open<'a>(&'a self, _: std::net::IpAddr, name: &'a [u8]) -> BoxFuture<'a, Result<Content, Refusal>> {
        let found = name == b"file";
        Box::pin(async move {
            if found { Ok(Content::Text(vec![7; 1000].into())) } else { Err(Refusal::NotFound) }
        })
    }

    fn ended(&self, ended: Ended) {
        self.0.lock().unwrap().push(ended);
    }
}

/// Who, what, how many bytes and how it ended.
pub(super) async fn every_transfer_is_told(engine: TftpEngine) {
    let folder = tempfile::tempdir().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let server = socket.local_addr().unwrap();
    let (ears, stop) = (Arc::new(Ears::default()), CancellationToken::new());
    let engine = server::engine(&config(folder.path(), engine));
    let running = tokio::spawn(engine.serve(socket, Arc::clone(&ears) as Arc<dyn Library>, stop.clone()));
    assert_eq!(fetch(server, b"file", &[]).await.unwrap().0.len(), 1000);
    assert_eq!(fetch(server, b"none", &[]).await.unwrap_err(), NOT_FOUND);
    let mut probe = Client::new(server).await;
    probe.ask(b"file", &[("tsize", "0")]).await;
    probe.next(LONG).await.unwrap();
    probe.reply(b"\0\x05\0\x08only asking\0").await;
    let mut half = Client::new(server).await;
    half.ask(b"file", &[]).await;
    half.next(LONG).await.unwrap();
    half.reply(&ack(1)).await;
    half.next(LONG).await.unwrap();
    half.reply(b"\0\x05\0\x03disk full\0").await;
    // The engine is asked for something more, so that what was before is done.
    assert!(fetch(server, b"file", &[]).await.is_ok());
    stop.cancel();
    running.await.unwrap().unwrap();
    let told = ears.0.lock().unwrap();
    let lines: Vec<String> = told
        .iter()
        .map(|ended| {
            format!("{} {} {}", String::from_utf8_lossy(&ended.file), ended.bytes, ended.outcome.label())
        })
        .collect();
    assert_eq!(lines, ["file 1000 complete", "file 0 aborted", "file 512 aborted", "file 1000 complete"]);
    assert_eq!(told[1].peer.to_string(), probe.socket.local_addr().unwrap().to_string());
}

/// Requests and acknowledgements from elsewhere get nothing, not even an ERROR.
pub(super) async fn other_networks_are_not_answered_at_all(engine: TftpEngine) {
    let rig = Rig::with(engine, |config| {
        config.clients = vec!["127.0.0.0/24".parse().unwrap(), "127.9.0.0/16".parse().unwrap()];
    });
    for (address, answered) in [("127.0.0.1", true), ("127.9.1.1", true), ("127.1.0.1", false)] {
        let socket = tokio::net::UdpSocket::bind(format!("{address}:0")).await.unwrap();
        let mut packet = [0; 2048];
        if !answered {
            // What is answered to others comes first: theirs would have been sent before.
            for bytes in
                [request(b"undionly.kpxe", "octet", &[]), request(b"none", "octet", &[]), ack(7).to_vec()]
            {
                socket.send_to(&bytes, rig.servers[0]).await.unwrap();
            }
            assert_eq!(rig.get("undionly.kpxe").await.unwrap(), loader());
            let got = socket.try_recv(&mut packet);
            assert!(got.is_err(), "{address} got {got:?} bytes");
            continue;
        }
        socket.send_to(&request(b"undionly.kpxe", "octet", &[]), rig.servers[0]).await.unwrap();
        let got = tokio::time::timeout(LONG, socket.recv(&mut packet)).await.unwrap().unwrap();
        assert_eq!(got, 516, "{address}");
    }
}

/// Eight transfers of an address and not a ninth, unless one was never answered.
pub(super) async fn one_address_has_its_limit(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut client = Client::new(rig.servers[0]).await;
        client.ask(b"undionly.kpxe", &[]).await;
        client.next(LONG).await.unwrap();
        client.reply(&ack(1)).await;
        client.next(LONG).await.unwrap();
        clients.push(client);
    }
    let mut ninth = Client::new(rig.servers[0]).await;
    ninth.ask(b"undionly.kpxe", &[]).await;
    let mut elsewhere = Client::at(Ipv4Addr::new(127, 0, 0, 9), rig.servers[0]).await;
    assert!(elsewhere.get(b"unnamed", &[]).await.is_ok());
    assert_eq!(ninth.next(Duration::from_millis(1)).await, None);
    clients[3].reply(b"\0\x05\0\0gone\0").await;
    assert!(ninth.get(b"undionly.kpxe", &[]).await.unwrap() == loader());
}

/// The shipped server with nothing but TFTP.
struct Served {
    child: Child,
    address: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Served {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let text = format!(
            "[server]\nname = \"a\"\nstate_dir = \"{at}/state\"\n[pool.p]\nurl = \"http://127.0.0.1:1\"\nplain_http = true\n\
             user = \"u\"\npassword_file = \"{at}/password\"\n[admin]\nsocket = \"{at}/admin.sock\"\n\
             [tftp]\nlisten = [\"127.0.0.1:0\"]\nroot = \"{at}\"\n"
        );
        std::fs::write(folder.path().join("c.toml"), text).unwrap();
        std::fs::write(folder.path().join("password"), "p").unwrap();
        std::fs::write(folder.path().join("undionly.kpxe"), loader()).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(folder.path().join("password"), mode).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_bootflip"))
            .args(["serve", "-c"])
            .arg(folder.path().join("c.toml"))
            .env("RUST_LOG", "info")
            .stderr(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("TFTP listens")).unwrap();
        let address = line.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        let address = address.parse().unwrap_or_else(|_| panic!("{line}"));
        std::thread::spawn(move || lines.for_each(drop)); // so that it never waits for us
        Self { child, address, _folder: folder }
    }

    /// Resident memory in KiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// 10,000 requests of clients that never come back cost little memory and shut nobody out.
#[tokio::test]
async fn ten_thousand_half_open_requests_shut_nobody_out() {
    let served = Served::start();
    let server = served.address;
    let good = async || {
        let mut client = Client::at(Ipv4Addr::new(127, 0, 0, 2), server).await;
        let options = [("blksize", "1432"), ("tsize", "0")];
        assert!(client.get(b"undionly.kpxe", &options).await.unwrap() == loader());
    };
    good().await;
    let before = served.memory();
    let flood = tokio::task::spawn_blocking(move || {
        let packet =
            request(b"undionly.kpxe", "octet", &[("blksize", "1468"), ("windowsize", "64"), ("tsize", "0")]);
        for n in 0..10_000_u32 {
            let [_, _, high, low] = n.to_be_bytes();
            let socket = UdpSocket::bind((Ipv4Addr::new(127, 1, high, low), 0)).unwrap();
            socket.send_to(&packet, server).unwrap();
        }
    });
    for _ in 0..20 {
        good().await;
    }
    flood.await.unwrap();
    good().await;
    let after = served.memory();
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} KiB after");
}

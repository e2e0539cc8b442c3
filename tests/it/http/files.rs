//! Parts, versions, and what is big.

use std::{
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, OnceLock},
};

use tracing_subscriber::fmt::MakeWriter;

use bootflip::boot::sink::Transfer;

use super::*;

#[tokio::test]
async fn ranges_give_parts() {
    let rig = Rig::new();
    let kernel = kernel();
    for (range, status, expected, content_range) in [
        ("bytes=0-9", 206, &kernel[..10], "bytes 0-9/300000"),
        ("bytes=299990-", 206, &kernel[299_990..], "bytes 299990-299999/300000"),
        ("bytes=-5", 206, &kernel[299_995..], "bytes 299995-299999/300000"),
        ("bytes=300000-", 416, &[][..], "bytes */300000"),
        ("bytes=5-2", 200, &kernel[..], ""),
    ] {
        let response =
            rig.request(Method::GET, "/f/RENDER/u/linux").header("range", range).send().await.unwrap();
        assert_eq!(response.status(), status, "{range}");
        let header = response.headers().get("content-range").map_or("", |value| value.to_str().unwrap());
        assert_eq!(header, content_range, "{range}");
        assert!(response.bytes().await.unwrap() == expected, "{range}");
    }
    let conditional =
        rig.request(Method::GET, "/f/RENDER/u/linux").header("range", "bytes=0-9").header("if-range", "x");
    assert_eq!(conditional.send().await.unwrap().status(), 200);
}

/// What a response says, header by header.
fn header<'a>(response: &'a reqwest::Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().unwrap())
}

#[tokio::test]
async fn what_the_client_has_is_not_sent_again_and_leaves_no_sign() {
    let rig = Rig::new();
    for path in [format!("/b/{ARMED}"), "/f/RENDER/u/linux".into(), "/a/RENDER/mini".into()] {
        let whole = rig.request(Method::GET, &path).send().await.unwrap();
        let tag = header(&whole, "etag").to_owned();
        let date = header(&whole, "last-modified").to_owned();
        assert!(tag.starts_with('"') && tag.len() > 10, "a strong tag: {tag}");
        let (signs, fetched) =
            (rig.scene.sink.signs().len(), *rig.scene.sink.answers_fetched.lock().unwrap());
        let again = rig.request(Method::GET, &path).header("if-none-match", &tag).send().await.unwrap();
        assert_eq!((again.status().as_u16(), header(&again, "etag")), (304, tag.as_str()), "{path}");
        assert_eq!(again.bytes().await.unwrap().len(), 0);
        assert_eq!(date.is_empty(), !path.starts_with("/f"), "only files have a date");
        if !date.is_empty() {
            let again = rig.request(Method::GET, &path).header("if-modified-since", &date);
            assert_eq!(again.send().await.unwrap().status(), 304, "{path}");
        }
        let other = rig.request(Method::GET, &path).header("if-match", "\"other\"").send().await.unwrap();
        assert_eq!(other.status(), 412, "{path}");
        assert_eq!(rig.scene.sink.signs().len(), signs, "{path}");
        assert_eq!(*rig.scene.sink.answers_fetched.lock().unwrap(), fetched, "{path}");
    }
}

#[tokio::test]
async fn a_download_goes_on_only_in_the_same_version() {
    let rig = Rig::new();
    let get = || rig.request(Method::GET, "/f/RENDER/u/linux");
    let tag = header(&get().send().await.unwrap(), "etag").to_owned();
    let rest = async || {
        let request = get().header("range", "bytes=299990-").header("if-range", &tag);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.bytes().await.unwrap().len())
    };
    assert_eq!(rest().await, (206, 10));
    // The same length and the same time of last change; nobody can set back when the inode was changed.
    let path = rig.scene.root().join("u/linux");
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"other", 0).unwrap();
    file.set_modified(modified).unwrap();
    assert_eq!(rest().await, (200, 300_000));
    assert_ne!(header(&get().send().await.unwrap(), "etag"), tag);
}

#[tokio::test]
async fn rendered_files_have_ranges_too() {
    let rig = Rig::new();
    let (_, script) = rig.get(&format!("/b/{ARMED}")).await;
    let part = rig.request(Method::GET, &format!("/b/{ARMED}")).header("range", "bytes=2-5");
    let part = part.send().await.unwrap();
    let range = format!("bytes 2-5/{}", script.len());
    assert_eq!((part.status().as_u16(), header(&part, "content-range")), (206, range.as_str()));
    assert_eq!(part.text().await.unwrap(), "ipxe");
}

#[tokio::test]
async fn a_head_ignores_ranges() {
    let rig = Rig::new();
    let head = rig.request(Method::HEAD, "/f/RENDER/u/linux").header("range", "bytes=0-9");
    let head = head.send().await.unwrap();
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "300000"));
    assert_eq!(header(&head, "accept-ranges"), "bytes");
}

/// 5 MB in which no two windows are alike.
fn pattern() -> Vec<u8> {
    (0..1_250_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
}

#[tokio::test]
async fn files_and_scripts_follow_each_other_on_one_connection() {
    let rig = Rig::new();
    let pattern = pattern();
    std::fs::write(rig.scene.root().join("u/linux"), &pattern).unwrap();
    let file = rig.url("/f/RENDER/u/linux").split_once("/f/").unwrap().1.to_owned();
    // All five are asked for at once; the answers come one behind the other.
    let get = |path: &str, more: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n");
    let file = format!("/f/{file}");
    let asked = [
        get(&file, ""),
        get(&format!("/b/{IDLE}"), ""),
        get(&file, "Range: bytes=1048570-1048600\r\n"),
        get(&file, "Range: bytes=-3000001\r\n"),
        get(&format!("/b/{IDLE}"), "Connection: close\r\n"),
    ];
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(asked.concat().as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let exit = &b"#!ipxe\nexit\n"[..];
    let mut rest = answer.as_slice();
    for expected in
        [&pattern[..], exit, &pattern[1_048_570..1_048_601], &pattern[pattern.len() - 3_000_001..], exit]
    {
        let end = rest.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let (head, after) = rest.split_at(end);
        let head = String::from_utf8_lossy(head).to_lowercase();
        assert!(head.contains(&format!("content-length: {}\r\n", expected.len())), "{head}");
        assert!(after[..expected.len()] == *expected, "{head}");
        rest = &after[expected.len()..];
    }
    assert!(rest.is_empty());
}

#[tokio::test]
async fn a_file_of_more_than_2_gib_is_served_whole_and_in_parts() {
    let rig = Rig::new();
    let file = std::fs::File::create(rig.scene.root().join("u/linux")).unwrap();
    file.set_len((2 << 30) + 1000).unwrap();
    file.write_all_at(b"end", (2 << 30) + 997).unwrap();
    let head = rig.request(Method::HEAD, "/f/RENDER/u/linux").send().await.unwrap();
    assert_eq!(header(&head, "content-length"), "2147484648");
    let part = rig.request(Method::GET, "/f/RENDER/u/linux").header("range", "bytes=2147484640-");
    assert_eq!(part.send().await.unwrap().bytes().await.unwrap(), &b"\0\0\0\0\0end"[..]);
    let mut whole = rig.request(Method::GET, "/f/RENDER/u/linux").send().await.unwrap();
    let mut length = 0;
    while let Some(piece) = whole.chunk().await.unwrap() {
        length += piece.len();
        if length > 8 << 20 {
            break; // it comes; the rest is the same zeroes
        }
    }
    assert!(length > 8 << 20);
}

/// tmpfs cannot tell whether a read would wait.
#[tokio::test]
async fn a_file_in_memory_only_is_served_too() {
    let shm = std::path::Path::new("/dev/shm");
    if !shm.is_dir() {
        println!("no /dev/shm: nothing to look at");
        return;
    }
    let folder = tempfile::tempdir_in(shm).unwrap();
    std::fs::create_dir(folder.path().join("u")).unwrap();
    std::fs::write(folder.path().join("u/linux"), pattern()).unwrap();
    let rig = Rig::build(Limits::default(), Some(folder.path().to_owned()));
    let got = rig.request(Method::GET, "/f/RENDER/u/linux").send().await.unwrap();
    assert!(got.bytes().await.unwrap() == pattern());
}

#[tokio::test]
async fn a_file_that_is_cut_short_breaks_the_download_and_nothing_else() {
    let rig = Rig::new();
    let path = rig.scene.root().join("u/linux");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let mut response = rig.request(Method::GET, "/f/RENDER/u/linux").send().await.unwrap();
    response.chunk().await.unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1).unwrap();
    let mut broken = false;
    loop {
        match response.chunk().await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => {
                broken = true;
                break;
            }
        }
    }
    assert!(broken, "no zeroes stand for what is gone");
    assert_eq!(rig.get("/f/RENDER/u/initrd.gz").await, (200, "initrd".to_owned()));
}

/// Lines of a log, to be waited for.
#[derive(Debug, Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<u8>>>, Arc<tokio::sync::Notify>);

impl Log {
    /// Takes the log of this thread.
    pub(super) fn take(&self) -> tracing::subscriber::DefaultGuard {
        // While there is but one dispatcher, a place that logs first on a thread without it is turned off for all.
        static SECOND: OnceLock<tracing::Dispatch> = OnceLock::new();
        SECOND.get_or_init(|| tracing::Dispatch::new(tracing::subscriber::NoSubscriber::new()));
        let layer = tracing_subscriber::fmt().with_writer(self.clone()).with_ansi(false).with_target(false);
        tracing::subscriber::set_default(layer.finish())
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("boot HTTP peer=")).map(str::to_owned).collect()
    }

    /// Waits until there are so many requests in it.
    pub(super) async fn requests(&self, count: usize) -> Vec<String> {
        let wait = async {
            loop {
                let notified = self.1.notified();
                let lines = self.lines();
                if lines.len() >= count {
                    return lines;
                }
                notified.await;
            }
        };
        tokio::time::timeout(crate::common::PATIENCE, wait).await.unwrap()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        self.1.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn each_request_is_one_event_with_machine_job_bytes_and_outcome_and_no_token() {
    let log = Log::default();
    let _taken = log.take();
    let rig = Rig::new();
    rig.get(&format!("/b/{ARMED}")).await;
    rig.get("/f/RENDER/u/linux").await;
    rig.request(Method::GET, "/f/RENDER/u/linux").header("range", "bytes=0-9").send().await.unwrap();
    rig.request(Method::HEAD, "/a/RENDER/mini").send().await.unwrap();
    rig.post("/r/REPORT/done", b"x".to_vec()).await;
    rig.get(&format!("/b/{IDLE}")).await;
    rig.get("/f/REPORT/u/linux").await;
    let script = rig.get(&format!("/b/{ARMED}")).await.1.len();
    let lines = log.requests(8).await;
    let script = format!("mac={ARMED} job=\"job\" method=GET path=/b/{ARMED} status=200 bytes={script} ");
    let expected = [
        script.as_str(),
        "mac=02:00:00:00:00:01 job=\"job\" method=GET path=/f/*/u/linux status=200 bytes=300000 ",
        "mac=02:00:00:00:00:01 job=\"job\" method=GET path=/f/*/u/linux status=206 bytes=10 ",
        "mac=02:00:00:00:00:01 job=\"job\" method=HEAD path=/a/*/mini status=200 bytes=0 ",
        "method=POST path=/r/*/done status=201 bytes=0 ",
        "mac=02:00:00:00:00:02 method=GET path=/b/02:00:00:00:00:02 status=200 bytes=12 ",
        "method=GET path=/f/*/u/linux status=404 bytes=10 ",
        script.as_str(),
    ];
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    for (line, expected) in lines.iter().zip(expected) {
        assert!(line.contains(expected), "{line}\n{expected}");
        let outcome = if expected.contains("404") { "refused" } else { "sent" };
        assert!(line.contains(" seconds=") && line.contains(&format!("outcome=\"{outcome}\"")), "{line}");
        for token in [&rig.scene.armed.render, &rig.scene.armed.report, &rig.scene.armed.booted] {
            assert!(!line.contains(token.expose()));
        }
    }
    // What leaves for a machine is told to its job as well.
    let told = rig.scene.sink.transfers.lock().unwrap();
    let told: Vec<String> = told
        .iter()
        .map(|transfer| {
            let Transfer { protocol, mac, job, file, bytes, outcome, .. } = transfer;
            format!("{protocol:?} {} {job:?} {file} {bytes} {outcome}", mac.unwrap())
        })
        .collect();
    assert_eq!(told.len(), 6, "{told:#?}");
    assert_eq!(told[1], format!("Http {ARMED} Some(\"job\") /f/*/u/linux 300000 sent"));
    assert_eq!(told[4], format!("Http {IDLE} None /b/{IDLE} 12 sent"));
}

#[tokio::test]
async fn a_client_that_goes_away_is_told_as_broken_off() {
    let log = Log::default();
    let _taken = log.take();
    let rig = Rig::new();
    std::fs::File::create(rig.scene.root().join("u/linux")).unwrap().set_len(256 << 20).unwrap();
    let path = rig.url("/f/RENDER/u/linux").split_once("/f/").unwrap().1.to_owned();
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(format!("GET /f/{path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let mut some = [0; 1000];
    stream.read_exact(&mut some).await.unwrap();
    drop(stream);
    let lines = log.requests(1).await;
    assert!(lines[0].contains("outcome=\"broken-off\""), "{lines:?}");
}

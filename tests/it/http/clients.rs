//! curl and wget, as installers use them.

use std::path::PathBuf;

use super::*;
use crate::common::programs::missing;

/// Runs a program and returns what it printed.
async fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    let output = tokio::process::Command::new(program)
        .args(arguments)
        .env_remove("http_proxy")
        .env("HOME", "/nonexistent")
        .output()
        .await
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn curl(arguments: &[&str]) -> String {
    let arguments: Vec<&str> =
        ["-q", "-sS", "--noproxy", "*", "-m", "60"].iter().chain(arguments).copied().collect();
    let (well, printed) = run("curl", &arguments).await;
    assert!(well, "curl {arguments:?}: {printed}");
    printed
}

fn file(rig: &Rig, name: &str) -> (PathBuf, String) {
    let path = rig.scene.folder.path().join(name);
    let text = path.to_str().unwrap().to_owned();
    (path, text)
}

#[tokio::test]
async fn curl_fetches_whole_in_parts_and_as_http_1_0() {
    if missing("curl") {
        return;
    }
    let rig = Rig::new();
    let url = rig.url("/f/RENDER/u/linux");
    let (path, out) = file(&rig, "got");
    for version in ["-0", "--http1.1"] {
        curl(&[version, "-o", &out, &url]).await;
        assert!(std::fs::read(&path).unwrap() == kernel(), "{version}");
    }
    for (range, expected) in
        [("0-9", &kernel()[..10]), ("299990-", &kernel()[299_990..]), ("-5", &kernel()[299_995..])]
    {
        let status = curl(&["-r", range, "-o", &out, "-w", "%{http_code}", &url]).await;
        assert_eq!(status, "206", "{range}");
        assert!(std::fs::read(&path).unwrap() == expected, "{range}");
    }
    let head = curl(&["-I", &url]).await.to_lowercase();
    assert!(head.contains("content-length: 300000") && head.contains("accept-ranges: bytes"), "{head}");
}

#[tokio::test]
async fn curl_resumes_a_broken_download() {
    if missing("curl") {
        return;
    }
    let rig = Rig::new();
    let (path, out) = file(&rig, "got");
    std::fs::write(&path, &kernel()[..123_456]).unwrap();
    curl(&["-C", "-", "-o", &out, &rig.url("/f/RENDER/u/linux")]).await;
    assert!(std::fs::read(&path).unwrap() == kernel());
}

#[tokio::test]
async fn curl_asks_again_only_for_what_changed() {
    if missing("curl") {
        return;
    }
    let rig = Rig::new();
    let url = rig.url("/f/RENDER/u/linux");
    let ((_, out), (_, tag)) = (file(&rig, "got"), file(&rig, "tag"));
    let get = [
        "--etag-save",
        tag.as_str(),
        "--etag-compare",
        tag.as_str(),
        "-o",
        out.as_str(),
        "-w",
        "%{http_code}",
    ];
    let get: Vec<&str> = get.iter().copied().chain([url.as_str()]).collect();
    assert_eq!(curl(&get).await, "200");
    assert_eq!(curl(&get).await, "304");
    assert_eq!(curl(&["-z", &out, "-R", "-o", &out, "-w", "%{http_code}", &url]).await, "304");
}

#[tokio::test]
async fn curl_keeps_its_connection_for_all_of_a_boot() {
    if missing("curl") {
        return;
    }
    let rig = Rig::new();
    let (_, out) = file(&rig, "got");
    let urls = [rig.url(&format!("/b/{ARMED}")), rig.url("/f/RENDER/u/linux"), rig.url("/a/RENDER/mini")];
    let mut arguments = vec!["-w", "%{num_connects} "];
    for url in &urls {
        arguments.extend(["-o", out.as_str(), url.as_str()]);
    }
    assert_eq!(curl(&arguments).await, "1 0 0 ");
}

#[tokio::test]
async fn reports_come_by_curl_and_wget() {
    let rig = Rig::new();
    let url = rig.url("/r/REPORT/base");
    let (_, body) = file(&rig, "body");
    std::fs::write(&body, "percent=40").unwrap();
    if !missing("curl") {
        let file = format!("@{body}");
        for arguments in [&["-d", "percent=40"][..], &["--data-binary", &file], &["-X", "POST", "-T", &body]]
        {
            let arguments: Vec<&str> =
                arguments.iter().copied().chain(["-w", "%{http_code}", &url]).collect();
            assert_eq!(curl(&arguments).await, "201", "{arguments:?}");
        }
        let chunked =
            ["-X", "POST", "-T", &body, "-H", "Transfer-Encoding: chunked", "-w", "%{http_code}", &url];
        assert_eq!(curl(&chunked).await, "201");
    }
    if !missing("wget") {
        let file = format!("--post-file={body}");
        assert!(run("wget", &["--no-proxy", "-q", "-O", "-", &file, &url]).await.0);
    }
    if !missing("busybox") {
        assert!(run("busybox", &["wget", "-q", "-O", "-", "--post-data", "percent=40", &url]).await.0);
    }
    let reports = rig.scene.sink.reports.lock().unwrap();
    assert!(reports.iter().all(|report| report.body == b"percent=40" && !report.by_get));
}

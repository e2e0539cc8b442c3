//! TFTP clients that others wrote: curl, atftp, tftp-hpa, busybox.

use std::{path::Path, process::Stdio, time::Duration};

use bootflip::config::TftpEngine;
use tokio::process::Command;

use super::{Rig, loader};
use crate::common::programs::missing;

/// Longer than any transfer here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Content of every kind of length: nothing, a full last block, and others.
const LENGTHS: [usize; 5] = [0, 511, 512, 1468 * 3, 20_000];

struct Bench {
    rig: Rig,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(engine: TftpEngine) -> Self {
        let rig = Rig::with(engine, |config| config.block_size = 65_464);
        for length in LENGTHS {
            rig.write(&format!("f{length}"), &loader()[..length]);
        }
        Self { rig, folder: tempfile::tempdir().unwrap() }
    }

    /// Runs a client in a folder of its own, and compares what it wrote to `out`. `NAME`, `HOST` and `PORT` are filled
    /// in.
    async fn fetches(&self, client: &str, name: &str) {
        let server = self.rig.servers[0];
        let line = client
            .replace("NAME", name)
            .replace("HOST", &server.ip().to_string())
            .replace("PORT", &server.port().to_string());
        let out = self.folder.path().join("out");
        let _ = std::fs::remove_file(&out);
        let words: Vec<&str> = line.split('|').collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).current_dir(self.folder.path()).stdin(Stdio::null()).kill_on_drop(true);
        let ran = tokio::time::timeout(PATIENCE, command.output()).await;
        let output = ran.unwrap_or_else(|_| panic!("{line}: no end")).unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {} {told}", output.status);
        let expected = std::fs::read(self.rig.scene.root().join(name)).unwrap();
        assert!(read(&out) == expected, "{line}: {} bytes of {}; {told}", read(&out).len(), expected.len());
    }
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_default()
}

pub(super) async fn curl_reads_with_every_block_size(engine: TftpEngine) {
    if missing("curl") {
        return;
    }
    let bench = Bench::new(engine);
    // Of an empty file it says "getpeername() failed", whoever the server is.
    for length in &LENGTHS[1..] {
        bench.fetches("curl|-sS|-o|out|tftp://HOST:PORT/NAME", &format!("f{length}")).await;
    }
    for size in [8, 512, 1428, 1468, 8192, 65_464] {
        bench
            .fetches(&format!("curl|-sS|--tftp-blksize|{size}|-o|out|tftp://HOST:PORT/NAME"), "f20000")
            .await;
    }
    bench.fetches("curl|-sS|--tftp-no-options|-o|out|tftp://HOST:PORT/NAME", "f20000").await;
}

pub(super) async fn atftp_reads_with_every_block_size_and_window(engine: TftpEngine) {
    if missing("atftp") {
        return;
    }
    let bench = Bench::new(engine);
    let get = "--get|-r|NAME|-l|out|HOST|PORT";
    // An empty file it does not create.
    for length in &LENGTHS[1..] {
        bench.fetches(&format!("atftp|{get}"), &format!("f{length}")).await;
    }
    for size in [8, 512, 1428, 8192, 65_464] {
        for window in [1, 2, 8, 64] {
            let options = format!("--option|blksize {size}|--option|windowsize {window}|--option|tsize");
            bench.fetches(&format!("atftp|{options}|{get}"), "f20000").await;
        }
    }
}

pub(super) async fn tftp_hpa_reads_in_binary(engine: TftpEngine) {
    if missing("tftp") {
        return;
    }
    let bench = Bench::new(engine);
    for length in LENGTHS {
        bench.fetches("tftp|-m|binary|HOST|PORT|-c|get|NAME|out", &format!("f{length}")).await;
    }
}

pub(super) async fn busybox_reads_with_every_block_size(engine: TftpEngine) {
    if missing("busybox") {
        return;
    }
    let bench = Bench::new(engine);
    for length in LENGTHS {
        bench.fetches("busybox|tftp|-g|-r|NAME|-l|out|HOST|PORT", &format!("f{length}")).await;
    }
    // The request has to fit into a block of its own.
    for size in [64, 512, 1024, 1468, 65_464] {
        bench.fetches(&format!("busybox|tftp|-g|-b|{size}|-r|NAME|-l|out|HOST|PORT"), "f20000").await;
    }
}

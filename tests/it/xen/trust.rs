//! `pool trust`, `pool forget`, and what `check` says of an account, by the shipped binary.

use std::net::Ipv4Addr;

use bootflip::{
    secret::{Secret, hex},
    sim::pool::{DEFAULT_PASSWORD, Role},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
};

use super::{certificate, server::listener, tls_server};
use crate::common::site::{Plan, Ran, Site, vm};

async fn trust(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
    Ran::of(command.args(["pool", "trust"]).args(arguments).kill_on_drop(true).output().await.unwrap())
}

#[tokio::test]
async fn trust_prints_the_certificate_and_the_lines_and_sends_nothing() {
    let (acceptor, _, pin) = certificate();
    let server = tls_server(acceptor).await;
    let address = server.address.to_string();
    let ran = trust(&[&format!("https://{address}")]).await.ended(0);
    let colons = pin.map(|byte| format!("{byte:02X}")).join(":");
    ran.says(&format!("{address} shows this certificate"));
    ran.says(&format!("SHA-256   {colons}"));
    ran.says("subject   CN=rcgen self signed cert");
    ran.says("signed by itself");
    ran.says(&format!("url = \"https://{address}\"\ntls = {{ pins = [\"{}\"] }}\n", hex(&pin)));
    let json = trust(&["--json", &address]).await.ended(0).json();
    assert_eq!((&json["sha256"], &json["valid_now"]), (&hex(&pin).into(), &true.into()));
    assert_eq!((server.connections(), server.calls()), (2, vec![]));
}

#[tokio::test]
async fn trust_says_why_an_old_host_needs_plain_http() {
    // What stunnel of 6.x and 7.2 does with a client that offers none of its ciphers.
    let refusal = b"\x15\x03\x03\x00\x02\x02\x28".as_slice();
    for answer in [refusal, b""] {
        let old = listener(Ipv4Addr::LOCALHOST, 0).await.unwrap();
        let address = old.local_addr().unwrap();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = old.accept().await.unwrap();
                let _ = stream.read(&mut [0; 4096]).await.unwrap();
                stream.write_all(answer).await.unwrap();
            }
        });
        let ran = trust(&[&format!("https://{address}")]).await.ended(3);
        ran.says("have no TLS in common");
        ran.says("url = \"http://127.0.0.1\"\nplain_http = true");
        serving.abort();
    }
    let nobody = listener(Ipv4Addr::LOCALHOST, 0).await.unwrap().local_addr().unwrap();
    trust(&[&nobody.to_string()]).await.ended(1).says("cannot be reached");
    trust(&["http://10.0.0.2"]).await.ended(2).says("write https://HOST");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_keeps_which_pool_it_was_until_that_is_forgotten() {
    let mut site = Site::new(Plan { boot: false, ..Plan::of(vec![vm("web", 1)]) });
    site.serve().await;
    site.until_known(1).await;
    site.run(&["pool", "forget", "main"]).await.ended(75).says("another");
    site.terminate().await;
    site.run(&["pool", "forget", "other"]).await.ended(2).says("there are: main");
    site.run(&["pool", "forget", "main"]).await.ended(0).says("decides which pool it is");
    site.run(&["pool", "forget", "main"]).await.ended(0).says("Nothing was known");
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_the_rights_that_an_account_lacks() {
    let site = Site::new(Plan { boot: false, ..Plan::of(vec![vm("web", 1)]) });
    let rows = [
        ("admin", Role::PoolAdmin, 0, "may change VMs, and sync the pool's database"),
        ("operator", Role::PoolOperator, 0, "may change VMs, and sync the pool's database"),
        ("vms", Role::VmAdmin, 0, "it may not sync the pool's database (role pool-operator)"),
        ("power", Role::VmOperator, 1, "VM.set_domain_type"),
        ("power", Role::VmOperator, 1, "give it the role vm-admin"),
        ("reader", Role::ReadOnly, 1, "VM.start"),
    ];
    let mut user = "root";
    for (name, role, code, words) in rows {
        let password = Secret::new(DEFAULT_PASSWORD.to_owned());
        site.pool.with(|pool, _| pool.add_account(name, password, role));
        site.reconfigure(|text| text.replace(&format!("user = \"{user}\""), &format!("user = \"{name}\"")));
        user = name;
        let before = site.pool.with(|pool, _| pool.log().len());
        site.run(&["check"]).await.ended(code).says(words);
        let changed = site.pool.with(|pool, _| {
            let calls = pool.log()[before..].iter();
            calls
                .filter(|call| !call.method.contains(".get_") && !call.method.starts_with("session."))
                .count()
        });
        assert_eq!(changed, 0, "{name}");
    }
}

//! The dashboard's pages as the server answers them, over the unix socket: what stands in them, what they do, and that
//! nothing is done before its plan was confirmed.

use std::time::Duration;

use bootflip::{provision::job::State, sim::guest::Pace};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use crate::common::site::{LONG, Plan, Site, quick, vm};

/// An answer.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    #[track_caller]
    fn has(&self, texts: &[&str]) -> &Self {
        for text in texts {
            assert!(self.body.contains(text), "`{text}` is not in {}\n{}", self.status, self.body);
        }
        self
    }
}

async fn ask(site: &Site, method: &str, path: &str, form: Option<&str>) -> Answer {
    let form = form.unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}\r\n\r\n{form}",
        form.len()
    );
    let mut stream = UnixStream::connect(site.path("admin.sock")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("an answer").unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

async fn get(site: &Site, path: &str) -> Answer {
    let answer = ask(site, "GET", path, None).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    answer
}

/// Reads a page until it has this.
async fn until(site: &Site, path: &str, text: &str) -> Answer {
    let look = async {
        loop {
            let answer = get(site, path).await;
            if answer.body.contains(text) {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(LONG, look).await.unwrap_or_else(|_| panic!("`{text}` never came to {path}\n{}", site.log()))
}

const NAME: &str = "<b>web</b>";

async fn site() -> (Site, String) {
    let silent = bootflip::sim::guest::GuestPlan {
        pace: Pace { post: Duration::from_secs(3600), ..quick().pace },
        ..quick()
    };
    let others = vec![("stuck".to_owned(), silent)];
    let mut site = Site::new(Plan { others, ..Plan::of(vec![vm(NAME, 1), vm("stuck", 2), vm("idle", 3)]) });
    site.serve().await;
    site.until_known(3).await;
    let id = site.deploy(NAME).await;
    site.until_job(&id, "ended", |job| job.state == State::Succeeded).await;
    (site, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_is_told_on_every_page() {
    let (site, id) = site().await;
    let uuid = site.truth(NAME).uuid;
    let escaped = "&lt;b&gt;web&lt;&#x2f;b&gt;";
    let fleet = until(&site, "/", "Succeeded").await;
    fleet.has(&[
        escaped,
        "<b>3</b> all",
        "<b>1</b> installed",
        "Nothing happens before you have seen the plan",
    ]);
    assert!(!fleet.body.contains(NAME));
    assert!(fleet.head.contains("content-security-policy: default-src 'self';"), "{}", fleet.head);
    get(&site, "/?q=idle").await.has(&["1 of 3 machines"]);
    get(&site, "/?show=done").await.has(&["1 of 3 machines", escaped]);

    let machine = get(&site, &format!("/machines/{uuid}")).await;
    machine.has(&[
        escaped,
        "asked for a DHCP server (DISCOVER); offered",
        "with a boot file",
        "The job is Installing.",
        "The job is Succeeded.",
        "Reported &quot;done&quot;",
        "VM.set_domain_type for E6: done.",
        "VM.start for E8: done.",
        "complete.",
    ]);
    get(&site, &format!("/machines/{uuid}?source=xen")).await.has(&["VM.start for E8"]);
    let flight = get(&site, &format!("/machines/{uuid}/flight.json")).await;
    let flight: serde_json::Value = serde_json::from_str(&flight.body).unwrap();
    let sources: std::collections::BTreeSet<&str> = flight["records"]
        .as_array()
        .unwrap()
        .iter()
        .map(|record| record["source"].as_str().unwrap())
        .collect();
    for source in ["dhcp", "http", "report", "xen", "job"] {
        assert!(sources.contains(source), "{sources:?}");
    }
    assert_eq!(flight["findings"], serde_json::json!([]));

    get(&site, &format!("/jobs/{id}")).await.has(&[escaped]);
    get(&site, &format!("/jobs/{id}/live")).await.has(&["mini&#x2f;vmlinuz"]);
    get(&site, "/jobs").await.has(&[escaped, &id]);
    get(&site, &format!("/machines/{uuid}/files?profile=mini")).await.has(&["REPORT_URL="]);
    get(&site, "/pools").await.has(&["answers"]);
    get(&site, "/pools/main").await.has(&["Takes HVM"]);
    get(&site, "/leases").await.has(&["127.64.", escaped]);
    get(&site, "/transfers").await.has(&["mini&#x2f;vmlinuz", escaped]);
    get(&site, "/login").await.has(&["API token"]);
    assert_eq!(ask(&site, "GET", "/machines/nobody", None).await.status, 404);
    assert_eq!(ask(&site, "GET", "/jobs/nobody", None).await.status, 404);
    assert_eq!(ask(&site, "GET", "/static/nothing", None).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_before_its_plan_is_confirmed() {
    let (site, _) = site().await;
    let (idle, stuck) = (site.truth("idle").uuid, site.truth("stuck").uuid);
    let both = format!("vm={idle}&vm={stuck}&profile=mini&reinstall=on&action=install");
    let plan = ask(&site, "POST", "/plan", Some(&both)).await;
    plan.has(&["Nothing has been changed", "Install 2 VMs", "Type 2 to confirm", "ready"]);
    for form in [both.clone(), format!("{both}&confirm=1"), "action=install".to_owned()] {
        let refused = ask(&site, "POST", "/orders", Some(&form)).await;
        assert_eq!(refused.status, 422, "{}", refused.body);
    }
    assert_eq!(ask(&site, "POST", "/plan", Some("action=install")).await.status, 422);
    until(&site, "/", "<b>2</b> without a job").await;

    let one = format!("vm={stuck}&profile=mini&reinstall=on&action=install");
    ask(&site, "POST", "/orders", Some(&one)).await.has(&["1 of 1 ordered"]);
    let path = format!("/machines/{stuck}");
    until(&site, &path, "Booting").await.has(&["Next step:"]);

    let cancel = format!("vm={stuck}&vm={idle}&action=cancel");
    let plan = ask(&site, "POST", "/plan", Some(&cancel)).await;
    plan.has(&["Cancel the jobs of 1 of 2 VMs", "The VM is switched off", "It has no job."]);
    let done = ask(&site, "POST", "/orders", Some(&format!("vm={stuck}&action=cancel"))).await;
    done.has(&["1 of 1 cancelled"]);
    until(&site, &path, ">Cancelled</span>").await;
    let put_back = site.truth("stuck");
    assert!(put_back.claim.is_none() && put_back.domain.is_none(), "{put_back:?}");
    assert_eq!(site.truth("idle").hvm_starts, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_page_is_told_of_changes_and_does_not_hold_the_server_up() {
    let (mut site, _) = site().await;
    until(&site, "/", "Succeeded").await;
    let mut stream = UnixStream::connect(site.path("admin.sock")).await.unwrap();
    stream.write_all(b"GET /events/fleet?q=stuck HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut told = vec![0; 4096];
    let length = stream.read(&mut told).await.unwrap();
    assert!(String::from_utf8_lossy(&told[..length]).contains("text/event-stream"));
    let uuid = site.truth("stuck").uuid;
    site.deploy("stuck").await;
    let mut text = String::new();
    let read = async {
        while !(text.contains(&format!("id=\"state-{uuid}\"")) && text.contains("Booting")) {
            let length = stream.read(&mut told).await.unwrap();
            text.push_str(&String::from_utf8_lossy(&told[..length]));
        }
    };
    timeout(LONG, read).await.expect("the row of the VM whose job began");
    assert!(text.contains("event: cells") && text.contains("hx-swap-oob"), "{text}");
    assert!(!text.contains(&site.truth("idle").uuid), "{text}");
    let (code, took) = site.terminate().await;
    assert_eq!(code, Some(0));
    assert!(took < bootflip::app::STOP_LIMIT, "an open page held the server up for {took:?}");
}

/// Two files that nobody reads on: one by boot HTTP, one by TFTP.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_seen_while_they_go_on() {
    let (site, _) = site().await;
    let id = site.deploy("stuck").await;
    site.until_job(&id, "boots", |job| job.state == State::Booting).await;
    std::fs::File::options()
        .write(true)
        .open(site.path("root/mini/initrd"))
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    get(&site, "/transfers").await.has(&["Transfers"]);
    let bound: serde_json::Value =
        serde_json::from_slice(&std::fs::read(site.path("state/bound.json")).unwrap()).unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let script = format!("http://{}/b/02:16:3e:00:00:02", bound["http"].as_str().unwrap());
    let script = reqwest::get(script).await.unwrap().text().await.unwrap();
    let url =
        script.lines().find(|line| line.starts_with("initrd ")).expect(&script).split(' ').nth(1).unwrap();
    let mut slow = reqwest::get(url).await.unwrap();
    assert!(!slow.chunk().await.unwrap().unwrap().is_empty());
    let name = url.split_once("/f/").unwrap().1;
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let ask = format!("\0\u{1}f/{name}\0octet\0");
    socket.send_to(ask.as_bytes(), bound["tftp"][0].as_str().unwrap()).await.unwrap();
    let (_, from) = timeout(LONG, socket.recv_from(&mut [0; 600])).await.expect("the first block").unwrap();

    let shown = until(&site, "/transfers", "Now: 2").await;
    shown.has(&["mini&#x2f;initrd", ">http<", ">tftp<", "1073 MB", "every 2s", ">stuck</a>"]);
    // What has arrived is counted a moment later.
    let path = format!("/api/v1/transfers?job={id}");
    let counted = async {
        loop {
            let listed: serde_json::Value = serde_json::from_str(&get(&site, &path).await.body).unwrap();
            let running = listed["running"].as_array().unwrap().clone();
            if running.iter().all(|transfer| transfer["bytes"] != 0) {
                return running;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let running = timeout(LONG, counted).await.expect("bytes are counted");
    assert_eq!(running.len(), 2, "{running:?}");
    for transfer in running {
        let bytes = transfer["bytes"].as_u64().unwrap();
        assert!((1..1 << 30).contains(&bytes) && transfer["length"] == 1 << 30, "{transfer}");
        assert!(!transfer["file"].as_str().unwrap().contains(name.split('/').next().unwrap()), "{transfer}");
    }

    // Error 0: the client has had enough.
    drop(slow);
    socket.send_to(b"\0\x05\0\0\0", from).await.unwrap();
    let gone = async {
        while get(&site, "/transfers").await.body.contains("Now: ") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, gone).await.expect("both are over");
    get(&site, "/transfers").await.has(&["broken off by the client", "the client stopped it"]);
}

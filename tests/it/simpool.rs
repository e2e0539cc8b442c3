//! The simulated pool over its real body: bytes on a socket, no client library of ours.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bootflip::{
    clock::Timestamp,
    sim::{
        faults::{Fault, FaultKind, FaultPlan, Trigger},
        pool::{BootMode, DEFAULT_PASSWORD, DEFAULT_USER, GuestAct, PersonAct, Pool, Release, VmSpec},
        server::{SimOptions, SimServer},
    },
    xen::{CallError, Failure, Method, Transport, Value, api::Api, records},
};
use futures_util::future::BoxFuture;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(20);

fn options(faults: impl IntoIterator<Item = Fault>) -> SimOptions {
    let faults = FaultPlan::new(faults);
    SimOptions { device: Some("lo".to_owned()), login_delay: Duration::ZERO, faults, ..SimOptions::default() }
}

fn fault(name: &str, when: Trigger, kind: FaultKind) -> Fault {
    Fault { name: name.to_owned(), when, kind }
}

/// A served pool with one bootable PV VM.
fn serve(faults: impl IntoIterator<Item = Fault>) -> (SimServer, String) {
    let mut pool = Pool::new(3, Release::V8_2);
    let uuid = pool.add_vm(VmSpec { name: "web-01".to_owned(), bootable: Some(Ok(())), ..VmSpec::default() });
    (SimServer::start(pool, options(faults)).unwrap(), uuid)
}

/// One parameter as a client may write it.
fn param(text: &str) -> String {
    let value = match text {
        "true" => "<boolean>1</boolean>".to_owned(),
        "false" => "<boolean>0</boolean>".to_owned(),
        "VM+task" => "<array><data><value>VM</value><value>task</value></data></array>".to_owned(),
        _ if text.parse::<f64>().is_ok() => format!("<double>{text}</double>"),
        _ => format!("<string>{text}</string>"),
    };
    format!("<param><value>{value}</value></param>")
}

/// The reply's document without a word on HTTP; `None`: the connection closed without one.
async fn post(address: std::net::SocketAddr, method: &str, params: &[&str]) -> Option<String> {
    let params: String = params.iter().map(|text| param(text)).collect();
    let body = format!(
        "<?xml version=\"1.0\"?>\n<methodCall> <methodName>{method}</methodName> <params>{params}</params> </methodCall>"
    );
    let head = format!(
        "POST /RPC2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.expect("an answer in time").ok()?;
    let (head, body) = reply.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("content-type: text/xml"), "{head}");
    Some(body.to_owned())
}

/// The value of a successful reply: the text of the member `Value`.
async fn ok(server: &SimServer, method: &str, params: &[&str]) -> String {
    let reply = post(server.address, method, params).await.expect("an answer");
    let head = "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>\
                <value>Success</value></member><member><name>Value</name><value>";
    let rest = reply.strip_prefix(head).unwrap_or_else(|| panic!("{method}: {reply}"));
    let tail = "</value></member></struct></value></param></params></methodResponse>";
    rest.trim_end().strip_suffix(tail).unwrap_or_else(|| panic!("{method}: {reply}")).to_owned()
}

/// The first words of a refusal.
async fn refused(address: std::net::SocketAddr, method: &str, params: &[&str]) -> String {
    let reply = post(address, method, params).await.expect("an answer");
    assert!(reply.contains("<value>Failure</value>"), "{method}: {reply}");
    let words = reply.split("<data>").nth(1).unwrap().split("</data>").next().unwrap();
    words.replace("</value><value>", " ").replace("<value>", "").replace("</value>", "")
}

async fn login(server: &SimServer) -> String {
    ok(server, "session.login_with_password", &[DEFAULT_USER, DEFAULT_PASSWORD, "1.0", "bootflip"]).await
}

/// The text between the tags of a member.
fn member<'a>(document: &'a str, name: &str) -> &'a str {
    let rest = document.split(&format!("<name>{name}</name><value>")).nth(1).unwrap_or_default();
    rest.split("</value>").next().unwrap_or_default()
}

#[tokio::test]
async fn a_client_logs_in_reads_starts_and_hears_of_it() {
    let (mut server, uuid) = serve([]);
    assert_eq!(
        refused(server.address, "session.login_with_password", &["root", "wrong"]).await,
        "SESSION_AUTHENTICATION_FAILED root Authentication failure"
    );
    let session = login(&server).await;
    let s = session.as_str();
    let vm = ok(&server, "VM.get_by_uuid", &[s, &uuid]).await;
    let record = ok(&server, "VM.get_record", &[s, &vm]).await;
    assert_eq!((member(&record, "uuid"), member(&record, "power_state")), (uuid.as_str(), "Halted"));
    assert!(
        !record.contains("> <") && !record.contains("<string>"),
        "no white space, bare strings: {record}"
    );
    let batch = ok(&server, "event.from", &[s, "VM+task", "", "30.1"]).await;
    let token = member(&batch, "token").to_owned();
    let address = server.address;
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { post(address, "event.from", &[&session, "VM+task", &token, "30.1"]).await }
    });
    let task = ok(&server, "Async.VM.start", &[s, &vm, "false", "false"]).await;
    let batch = waiting.await.unwrap().unwrap();
    assert!(batch.contains("<value>task</value>") && batch.contains("<name>snapshot</name>"), "{batch}");
    let start = timeout(PATIENCE, server.starts.recv()).await.unwrap().unwrap();
    assert_eq!((start.vm_uuid.as_str(), &start.mode), (uuid.as_str(), &BootMode::Pv));
    assert_eq!(member(&ok(&server, "task.get_record", &[s, &task]).await, "status"), "success");
    assert!(server.pool.with(|pool, now| pool.guest(now, &uuid, start.domid, GuestAct::PowerOff)));
    assert_eq!(ok(&server, "session.logout", &[s]).await, "");
    assert_eq!(
        refused(server.address, "VM.get_record", &[s, &vm]).await,
        format!("SESSION_INVALID {session}")
    );
}

#[tokio::test]
async fn a_slow_call_without_async_answers_when_it_is_done() {
    let (server, uuid) = serve([]);
    let session = login(&server).await;
    let vm = ok(&server, "VM.get_by_uuid", &[&session, &uuid]).await;
    assert_eq!(ok(&server, "VM.start", &[&session, &vm, "false", "false"]).await, "");
    assert_eq!(ok(&server, "VM.get_power_state", &[&session, &vm]).await, "Running");
    let again = refused(server.address, "VM.start", &[&session, &vm, "false", "false"]).await;
    assert_eq!(again, format!("VM_BAD_POWER_STATE {vm} halted running"));
}

#[tokio::test]
async fn planned_faults_happen_to_the_calls_they_name() {
    let get = "VM.get_power_state";
    let (server, uuid) = serve([
        fault("lost before", Trigger::first("VM.add_to_other_config"), FaultKind::LoseBefore),
        fault("lost after", Trigger::nth("VM.add_to_other_config", 2), FaultKind::LoseAfter),
        fault(
            "refused",
            Trigger::nth(get, 1).of("web-01"),
            FaultKind::Fail(Failure::new("HOST_STILL_BOOTING", &[])),
        ),
        fault("a person starts it", Trigger::nth(get, 2).of("web-01"), FaultKind::Person(PersonAct::Start)),
        fault("expired", Trigger::nth(get, 3), FaultKind::ExpireSessions),
        fault("restart", Trigger::nth(get, 4), FaultKind::CoordinatorRestart { lose: Duration::ZERO }),
    ]);
    let mut session = login(&server).await;
    let vm = ok(&server, "VM.get_by_uuid", &[&session, &uuid]).await;
    let add = [session.as_str(), &vm, "bootflip:claim", "mine"];
    let claim = |server: &SimServer| server.pool.with(|pool, _| pool.truth(&uuid).unwrap().claim);
    assert_eq!(post(server.address, "VM.add_to_other_config", &add).await, None);
    assert_eq!(claim(&server), None, "lost before the effect");
    assert_eq!(post(server.address, "VM.add_to_other_config", &add).await, None);
    assert_eq!(claim(&server).as_deref(), Some("mine"), "lost after the effect");
    assert_eq!(refused(server.address, get, &[&session, &vm]).await, "HOST_STILL_BOOTING");
    assert_eq!(ok(&server, get, &[&session, &vm]).await, "Running");
    for _ in 0..2 {
        assert_eq!(
            refused(server.address, get, &[&session, &vm]).await,
            format!("SESSION_INVALID {session}")
        );
        session = login(&server).await;
    }
    assert!(
        server.tally().iter().all(|tally| tally.planned == 1 && tally.fired == 1),
        "{:?}",
        server.tally()
    );
}

#[tokio::test]
async fn a_held_call_waits_for_its_release() {
    let (server, uuid) = serve([
        fault("held", Trigger::first("VM.set_PV_args"), FaultKind::Hold),
        fault("reply held", Trigger::nth("VM.set_PV_args", 2), FaultKind::HoldReply),
    ]);
    let session = login(&server).await;
    let vm = ok(&server, "VM.get_by_uuid", &[&session, &uuid]).await;
    let pv_args = |server: &SimServer| server.pool.with(|pool, _| pool.truth(&uuid).unwrap().pv_args);
    for (name, value, while_held) in [("held", "one", "console=hvc0"), ("reply held", "two", "two")] {
        let params = [session.as_str(), &vm, value];
        let call = post(server.address, "VM.set_PV_args", &params);
        let watch = async {
            timeout(PATIENCE, server.fired(name, 1)).await.unwrap();
            // The reply is held after the effect, which the pool shows a moment later.
            timeout(PATIENCE, async {
                while pv_args(&server) != while_held {
                    tokio::task::yield_now().await;
                }
            })
            .await
            .unwrap();
            server.release(name);
        };
        let (reply, ()) = tokio::join!(call, watch);
        assert!(reply.unwrap().contains("Success"));
        assert_eq!(pv_args(&server), value);
    }
}

#[tokio::test]
async fn another_member_becomes_the_coordinator() {
    let moved = FaultKind::NotCoordinator { address: "127.0.0.2".to_owned() };
    let strange = FaultKind::NotCoordinator { address: "192.0.2.1".to_owned() };
    let (server, uuid) = serve([
        fault("stranger", Trigger::first("VM.get_by_uuid"), strange),
        fault("moved", Trigger::nth("VM.get_by_uuid", 2), moved),
    ]);
    let [first, second] = server.members[..] else { panic!("two members") };
    assert_eq!(first.port(), second.port());
    let credentials = [DEFAULT_USER, DEFAULT_PASSWORD];
    assert_eq!(refused(second, "session.login_with_password", &credentials).await, "HOST_IS_SLAVE 127.0.0.1");
    let session = login(&server).await;
    assert_eq!(refused(first, "VM.get_by_uuid", &[&session, &uuid]).await, "HOST_IS_SLAVE 192.0.2.1");
    assert_eq!(refused(first, "VM.get_by_uuid", &[&session, &uuid]).await, "HOST_IS_SLAVE 127.0.0.2");
    assert_eq!(refused(first, "session.login_with_password", &credentials).await, "HOST_IS_SLAVE 127.0.0.2");
    assert!(post(second, "session.login_with_password", &credentials).await.unwrap().contains("Success"));
}

#[tokio::test]
async fn what_is_no_call_gets_a_page_of_html() {
    let (server, _) = serve([]);
    let body = "not XML";
    let rows = [
        (
            format!(
                "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            "500",
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
                .to_owned(),
            "500",
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(), "404"),
    ];
    for (request, status) in rows {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut reply = String::new();
        timeout(PATIENCE, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
        assert!(
            reply.starts_with(&format!("HTTP/1.1 {status}")) && reply.contains("<html>"),
            "{request}: {reply}"
        );
    }
}

/// The model without sockets, at an instant of the test's own.
#[derive(Debug)]
struct Direct(Mutex<(Pool, Timestamp)>);

impl Direct {
    fn wait(&self, span: Duration) {
        let mut held = self.0.lock().unwrap();
        let now = held.1 + span;
        held.0.advance(now);
        held.1 = now;
    }
}

impl Transport for Direct {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        let mut held = self.0.lock().unwrap();
        let now = held.1;
        let answer = held.0.call_trusted(now, method, &params);
        let answer = answer.map_err(|failure| CallError::Failed { method: method.name(), failure });
        Box::pin(std::future::ready(answer))
    }
}

#[tokio::test]
async fn the_typed_client_reads_every_record_of_every_release() {
    for release in Release::ALL {
        let mut pool = Pool::new(3, release);
        let uuid =
            pool.add_vm(VmSpec { name: "web-01".to_owned(), bootable: Some(Ok(())), ..VmSpec::default() });
        let direct = Arc::new(Direct(Mutex::new((pool, Timestamp::from_millis(1_767_268_800_000)))));
        let api = Api::new(direct.clone());
        let vm = api.vm_by_uuid(&uuid).await.unwrap();
        assert_eq!(api.vms_by_name("web-01").await.unwrap(), [vm.as_str()]);
        assert_eq!((api.vms().await.unwrap().len(), api.vifs().await.unwrap().len()), (3, 1));
        assert_eq!((api.pools().await.unwrap().len(), api.hosts().await.unwrap().len()), (1, 2));
        assert_eq!(api.possible_hosts(&vm).await.unwrap().len(), 2);
        let record = api.vm_record(&vm).await.unwrap();
        assert_eq!(record.domain_type.is_some(), release.has_domain_type());
        assert!(record.is_pv() && records::never_ran(&api.vm_metrics(&record.metrics).await.unwrap()));
        let vbd = api.vbd(&record.vbds[0]).await.unwrap();
        assert_eq!(api.vdi(&vbd.vdi).await.unwrap().virtual_size, 8 << 30);
        api.vif(&record.vifs[0]).await.unwrap();
        api.add_to_other_config(&vm, "bootflip:claim", "{}").await.unwrap();
        api.sync_database().await.unwrap();
        api.set_hvm_boot_params(&vm, &BTreeMap::from([("order".to_owned(), "n".to_owned())])).await.unwrap();
        let flipped = api.set_domain_type(&vm, "hvm").await;
        assert_eq!(flipped.is_ok(), release.has_domain_type());
        api.set_hvm_boot_policy(&vm, "BIOS order").await.unwrap();
        for set in [
            api.set_actions_after_shutdown(&vm, "destroy").await,
            api.set_actions_after_reboot(&vm, "destroy").await,
            api.set_actions_after_crash(&vm, "destroy").await,
            api.set_pv_bootloader(&vm, "pygrub").await,
            api.add_to_platform(&vm, "new", "true").await,
            api.remove_from_platform(&vm, "new").await,
        ] {
            set.unwrap();
        }
        let task = api.start(&vm, true).await.unwrap();
        assert_eq!(api.task(&task).await.unwrap().failure(), None);
        direct.wait(Duration::from_secs(5));
        api.unpause(&vm).await.unwrap();
        assert!(!records::never_ran(&api.vm_metrics(&record.metrics).await.unwrap()));
        let task = api.clean_shutdown(&vm).await.unwrap();
        direct.wait(Duration::from_secs(5));
        assert!(api.task(&task).await.unwrap().failure().is_some(), "no tools");
        api.task_destroy(&task).await.unwrap();
        api.hard_shutdown(&vm).await.unwrap();
        direct.wait(Duration::from_secs(5));
        assert_eq!(api.vm_record(&vm).await.unwrap().power_state, records::PowerState::Halted);
        api.remove_from_other_config(&vm, "bootflip:claim").await.unwrap();
        let batch = api.event_from(&["VM", "task"], "", Duration::from_secs(30)).await;
        if release.api < Release::V6_0.api {
            assert!(batch.is_err(), "5.6 has event.next only");
            continue;
        }
        let batch = batch.unwrap();
        assert!(batch.events.len() >= 4, "{batch:?}");
    }
}

//! The simulated pool's transports over real sockets: both RPC forms, pages for what is no call, HTTPS.

use std::net::SocketAddr;

use bootflip::{
    config::{PoolConfig, TlsTrust},
    secret::Secret,
    sim::{
        pool::{DEFAULT_PASSWORD, DEFAULT_USER, Pool, Release, VmSpec},
        server::{SimOptions, SimServer},
    },
    xen::{CallError, api::Api, client::Client},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::common::PATIENCE;

fn options() -> SimOptions {
    SimOptions {
        device: Some("lo".to_owned()),
        login_delay: std::time::Duration::ZERO,
        ..SimOptions::default()
    }
}

/// A served pool with one PV VM.
fn serve(release: Release) -> (SimServer, String) {
    let mut pool = Pool::new(3, release);
    let uuid = pool.add_vm(VmSpec { name: "web-01".to_owned(), bootable: Some(Ok(())), ..VmSpec::default() });
    (SimServer::start(pool, options()).unwrap(), uuid)
}

/// One request on a connection of its own: status line and headers, body.
async fn raw(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut reply)).await.expect("an answer in time").unwrap();
    let (head, body) = reply.split_once("\r\n\r\n").expect("a whole answer");
    (head.to_owned(), body.to_owned())
}

fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
}

async fn json_rpc(address: SocketAddr, call: &Value) -> Value {
    let (head, body) = raw(address, &post("/jsonrpc", &call.to_string())).await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

#[tokio::test]
async fn json_rpc_of_both_versions_answers_as_xml_rpc_does() {
    let (server, uuid) = serve(Release::V8_2);
    let at = server.address;
    let credentials = json!([DEFAULT_USER, DEFAULT_PASSWORD, "1.0", "tests"]);
    let login = json!({ "method": "session.login_with_password", "params": credentials, "id": "a" });
    let answer = json_rpc(at, &login).await;
    assert_eq!((&answer["id"], &answer["error"]), (&json!("a"), &Value::Null));
    let session = answer["result"].as_str().unwrap().to_owned();
    let call = |method: &str, params: Value| {
        let mut all = vec![json!(session)];
        all.extend(params.as_array().unwrap().iter().cloned());
        json!({ "jsonrpc": "2.0", "method": method, "params": all, "id": 7 })
    };
    let vm = json_rpc(at, &call("VM.get_by_uuid", json!([uuid]))).await;
    assert_eq!((&vm["jsonrpc"], &vm["id"], vm.get("error")), (&json!("2.0"), &json!(7), None));
    let record = json_rpc(at, &call("VM.get_record", json!([vm["result"]]))).await["result"].take();
    assert_eq!(
        (&record["is_a_template"], &record["VCPUs_max"], &record["HVM_shadow_multiplier"]),
        (&json!(false), &json!("1"), &json!(1.0))
    );
    assert_eq!(record["snapshot_time"], json!("19700101T00:00:00Z"));
    let events = json_rpc(at, &call("event.from", json!([["VM"], "", 1.1]))).await;
    assert!(events["result"]["events"].as_array().unwrap().iter().any(|event| event["snapshot"] == record));
    let set = call("VM.set_HVM_boot_params", json!([vm["result"], { "order": "n" }]));
    assert_eq!(json_rpc(at, &set).await["result"], json!(""));
    let refused = json_rpc(at, &call("VM.get_by_uuid", json!(["nobody"]))).await;
    let error = json!({ "code": 1, "message": "UUID_INVALID", "data": ["VM", "nobody"] });
    assert_eq!(refused, json!({ "jsonrpc": "2.0", "error": error, "id": 7 }));
    let refused = json_rpc(at, &json!({ "method": "VM.get_all", "params": ["x"], "id": 0 })).await;
    assert_eq!(refused, json!({ "result": null, "error": ["SESSION_INVALID", "x"], "id": 0 }));
}

#[tokio::test]
async fn any_path_is_xml_rpc_and_json_only_where_the_release_has_it() {
    let xml = "<?xml version='1.0'?><methodCall><methodName>VM.get_all</methodName><params><param><value>\
               <string>x</string></value></param></params></methodCall>";
    let json = r#"{"method":"VM.get_all","params":["x"],"id":0}"#;
    let failure = "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name>\
                   <value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>\
                   <value>SESSION_INVALID</value><value>x</value></data></array></value></member></struct></value>\
                   </param></params></methodResponse>";
    let refused = r#"{"error":["SESSION_INVALID","x"],"id":0,"result":null}"#;
    for (release, path, body, expected) in [
        (Release::V8_2, "/", xml, failure),
        (Release::V8_2, "/RPC2", xml, failure),
        (Release::V8_2, "/xmlrpc", xml, failure),
        (Release::V8_2, "/json", xml, failure),
        (Release::V8_2, "/jsonrpc", json, refused),
        (Release::V8_2, "/jsonrpc/", json, refused),
        (Release::V6_2, "/jsonrpc", xml, failure),
    ] {
        let (server, _) = serve(release);
        let (head, answer) = raw(server.address, &post(path, body)).await;
        assert!(head.starts_with("HTTP/1.1 200 OK"), "{} {path}: {head}", release.name);
        assert_eq!(answer, expected, "{} {path}", release.name);
    }
}

#[tokio::test]
async fn what_is_no_call_gets_xapis_page() {
    let (server, _) = serve(Release::V8_2);
    let (old, _) = serve(Release::V6_2);
    let big = "x".repeat(301 << 10);
    let chunked =
        "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let json = r#"{"method":"VM.get_all","params":["x"],"id":0}"#;
    for (address, request, detail) in [
        (server.address, post("/", "not XML"), "text where an element belongs"),
        (server.address, post("/", json), "text where an element belongs"),
        (server.address, post("/jsonrpc", "[]"), "Invalid request body"),
        (
            server.address,
            post("/jsonrpc", r#"{"method":"a","params":[]}"#),
            "Invalid field 'id' in request body",
        ),
        (server.address, post("/", &big), "Http_svr.Client_requested_size_over_limit"),
        (server.address, chunked.to_owned(), "We require a content-length: HTTP header"),
        (old.address, post("/jsonrpc", json), "text where an element belongs"),
    ] {
        let (head, body) = raw(address, &request).await;
        assert!(head.starts_with("HTTP/1.1 500 Internal Error"), "{head}");
        assert!(head.contains("content-type: text/html") && head.contains("connection: close"), "{head}");
        let end = format!("<h1> Additional information </h1>{detail}</body></html>");
        assert!(body.ends_with(&end), "{body}");
    }
}

/// One XML-RPC call whose parameters are strings.
async fn xml_rpc(address: SocketAddr, method: &str, params: &[&str]) -> String {
    let params: String = params.iter().map(|text| format!("<param><value>{text}</value></param>")).collect();
    let body = format!("<methodCall><methodName>{method}</methodName><params>{params}</params></methodCall>");
    raw(address, &post("/", &body)).await.1
}

#[tokio::test]
async fn the_list_of_methods_needs_no_session_and_has_no_envelope() {
    for (release, has, lacks) in [
        (Release::V8_2, "VM.set_domain_type", "VM.no_such"),
        (Release::V6_2, "event.inject", "VM.set_domain_type"),
    ] {
        let (server, _) = serve(release);
        let answer = xml_rpc(server.address, "system.listMethods", &[]).await;
        let bare = "<?xml version=\"1.0\"?><methodResponse><params><param><value><array><data><value>";
        assert!(answer.starts_with(bare), "{answer}");
        for (method, listed) in [(has, true), (lacks, false), ("pool.get_all_records", true)] {
            assert_eq!(answer.contains(&format!("<value>{method}</value>")), listed, "{method}");
        }
    }
    let (server, _) = serve(Release::V8_2);
    let listed =
        json_rpc(server.address, &json!({ "jsonrpc": "2.0", "method": "system.listMethods", "id": 0 })).await;
    assert!(listed["result"].as_array().unwrap().contains(&json!("VM.start")));
}

/// The text of the first value in an answer.
fn value(answer: &str) -> &str {
    let rest = answer.split("<name>Value</name><value>").nth(1).unwrap_or_else(|| panic!("{answer}"));
    rest.split("</value>").next().unwrap_or_default()
}

#[tokio::test]
async fn event_next_waits_until_there_is_something_to_say() {
    let (server, uuid) = serve(Release::V6_2);
    let at = server.address;
    let login = xml_rpc(at, "session.login_with_password", &[DEFAULT_USER, DEFAULT_PASSWORD]).await;
    let session = value(&login).to_owned();
    let classes = "<array><data><value>vm</value></data></array>";
    assert_eq!(value(&xml_rpc(at, "event.register", &[&session, classes]).await), "");
    let vm = value(&xml_rpc(at, "VM.get_by_uuid", &[&session, &uuid]).await).to_owned();
    let waiting = {
        let session = session.clone();
        tokio::spawn(async move { xml_rpc(at, "event.next", &[&session]).await })
    };
    xml_rpc(at, "VM.set_name_description", &[&session, &vm, "changed"]).await;
    let events = waiting.await.unwrap();
    assert!(events.contains("<value>mod</value>") && events.contains("<value>changed</value>"), "{events}");
}

#[tokio::test]
async fn records_are_picked_by_an_expression() {
    let (server, uuid) = serve(Release::V8_2);
    let at = server.address;
    let login = xml_rpc(at, "session.login_with_password", &[DEFAULT_USER, DEFAULT_PASSWORD]).await;
    let session = value(&login).to_owned();
    for (class, expression, hits) in [
        ("VM", "true", 3),
        ("VM", "field \"is__control__domain\" = \"true\"", 2),
        ("VM", "(field \"name__label\" = \"web-01\") and (not field \"is_a_template\" = \"true\")", 1),
        ("host", "false", 0),
    ] {
        let answer = xml_rpc(at, &format!("{class}.get_all_records_where"), &[&session, expression]).await;
        assert_eq!(answer.matches("<name>uuid</name>").count(), hits, "{expression}: {answer}");
        assert_eq!(answer.contains(&uuid), hits == 1 || hits == 3, "{expression}");
    }
    for bad in ["", "field \"nothing\" = \"x\""] {
        let answer = xml_rpc(at, "VM.get_all_records_where", &[&session, bad]).await;
        assert!(answer.contains("<value>INVALID_VALUE</value><value>expr</value>"), "{answer}");
    }
}

fn secure(server: &SimServer, tls: TlsTrust) -> Client {
    let config = PoolConfig {
        name: "lab".into(),
        url: server.url(),
        members: server.members.iter().map(SocketAddr::to_string).collect(),
        user: DEFAULT_USER.into(),
        password: Secret::new(DEFAULT_PASSWORD.into()),
        tls,
        allow: vec![],
    };
    Client::new(&config, "bootflip test").unwrap()
}

#[tokio::test]
async fn https_is_trusted_by_the_told_pin_or_certificate_and_by_no_other() {
    let pool = Pool::new(3, Release::V8_2);
    let server = SimServer::start(pool, SimOptions { tls: true, ..options() }).unwrap();
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let pins: Vec<[u8; 32]> = server.certificates.iter().map(|certificate| certificate.sha256).collect();
    let [first, second] = pins[..] else { panic!("a certificate for each member") };
    assert_ne!(first, second);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    let pems: String = server.certificates.iter().map(|certificate| certificate.pem.clone()).collect();
    std::fs::write(&ca, pems).unwrap();
    for tls in [TlsTrust::Pins(vec![first]), TlsTrust::Ca(ca), TlsTrust::Insecure] {
        let client = std::sync::Arc::new(secure(&server, tls));
        assert_eq!(Api::new(client.clone()).hosts().await.unwrap().len(), 2);
        client.logout().await;
    }
    let logins = |server: &SimServer| {
        server.pool.with(|pool, _| {
            pool.log().iter().filter(|call| call.method.ends_with("login_with_password")).count()
        })
    };
    let before = logins(&server);
    let wrong = Api::new(std::sync::Arc::new(secure(&server, TlsTrust::Pins(vec![second]))));
    assert!(matches!(wrong.hosts().await, Err(CallError::Untrusted { .. })));
    assert_eq!((before, logins(&server)), (3, 3), "no password is sent where no pin fits");
    // The other member has the other certificate, and the coordinator's is what the pool itself names.
    server.pool.with(|pool, now| pool.move_coordinator(now, "127.0.0.2"));
    let both = Api::new(std::sync::Arc::new(secure(&server, TlsTrust::Pins(pins))));
    assert_eq!(both.hosts().await.unwrap().len(), 2);
}

//! The XenAPI client against a server that misbehaves: sessions, redirects, trust, lost answers, deadlines.

mod databases;
mod errors;
mod faults;
mod identity;
pub(crate) mod releases;
mod server;
mod trust;

use std::{
    collections::BTreeMap,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bootflip::{
    config::{PoolConfig, TlsTrust},
    secret::Secret,
    xen::{
        CallError, Class, Failure, Method, Transport, Value,
        api::Api,
        client::{Client, ForJobs, WayBack},
    },
};
use futures_util::future::join_all;
use identity::host;
use server::{Call, Reply, Server, listener};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, rustls};

const PASSWORD: &str = "s3cret&<>";
const LOGIN: &str = "session.login_with_password";

fn pool(url: String, members: &[String], tls: TlsTrust) -> PoolConfig {
    PoolConfig {
        name: "lab".into(),
        url,
        members: members.to_vec(),
        user: "root".into(),
        password: Secret::new(PASSWORD.into()),
        tls,
        allow: vec![],
    }
}

fn client(server: &Server, members: &[String]) -> Client {
    let url = format!("http://{}", server.address);
    Client::new(&pool(url, members, TlsTrust::PlainHttp), "bootflip test").unwrap()
}

/// A pool that lets everybody in and answers every call with void.
fn friendly(call: &Call) -> Reply {
    match call.method.as_str() {
        LOGIN => Reply::Value(Value::string("OpaqueRef:session")),
        "host.get_all_records" => Reply::Value(Value::Struct(BTreeMap::new())),
        _ => Reply::Value(Value::void()),
    }
}

fn failure(code: &str, params: &[&str]) -> Reply {
    Reply::Failure(Failure::new(code, params))
}

fn slave_of(master: &str) -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    let master = master.to_owned();
    move |_| failure("HOST_IS_SLAVE", &[&master])
}

async fn set(client: &Client) -> Result<Value, CallError> {
    client.call(Method::VmSetDomainType, vec![Value::string("OpaqueRef:vm"), Value::string("hvm")]).await
}

async fn get(client: &Client) -> Result<Value, CallError> {
    client.call(Method::VmGetRecord, vec![Value::string("OpaqueRef:vm")]).await
}

#[tokio::test]
async fn one_login_serves_all_calls() {
    let server = Server::start(friendly).await;
    let client = Arc::new(client(&server, &[]));
    join_all((0..20).map(|_| set(&client)))
        .await
        .into_iter()
        .for_each(|outcome| assert_eq!(outcome, Ok(Value::void())));
    let api = Api::new(client.clone());
    assert_eq!(api.start("OpaqueRef:vm", true).await.as_deref(), Ok(""));
    client.logout().await;
    client.logout().await;

    let calls = server.calls();
    let login = ["root", PASSWORD, "1.0", "bootflip test"].map(Value::string).to_vec();
    assert_eq!(calls[0], Call { method: LOGIN.into(), params: login });
    assert_eq!((&*calls[1].method, &*calls[2].method), ("pool.get_all_records", "host.get_all_records"));
    assert!(calls[3..].iter().all(|call| call.params[0] == Value::string("OpaqueRef:session")));
    let methods = server.methods();
    assert_eq!(methods[21..], ["Async.VM.start", "session.logout"]);
    let wanted = vec![
        Value::string("OpaqueRef:session"),
        Value::string("OpaqueRef:vm"),
        Value::Bool(true),
        Value::Bool(false),
    ];
    assert_eq!(calls.iter().find(|call| call.method == "Async.VM.start").unwrap().params, wanted);
}

#[tokio::test]
async fn an_expired_session_costs_one_login_and_one_repeat() {
    for (expiries, repeats, class) in [(1, 2, None), (2, 2, Some(Class::Relogin))] {
        let left = AtomicUsize::new(expiries);
        let server = Server::start(move |call| {
            let expired = call.method == "VM.set_domain_type"
                && left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            if expired { failure("SESSION_INVALID", &["OpaqueRef:session"]) } else { friendly(call) }
        })
        .await;
        let client = client(&server, &[]);
        let outcome = set(&client).await;
        assert_eq!(outcome.as_ref().err().map(CallError::class), class);
        assert!(!format!("{outcome:?}").contains("OpaqueRef:session"));
        let methods = server.methods();
        assert_eq!(methods.iter().filter(|method| *method == LOGIN).count(), 2);
        assert_eq!(methods.iter().filter(|method| *method == "VM.set_domain_type").count(), repeats);
    }
}

/// A coordinator that came back may have forgotten what the caller saw.
#[tokio::test]
async fn a_change_of_a_job_is_repeated_only_by_the_job_itself() {
    for (refusal, class) in [("SESSION_INVALID", Class::Relogin), ("HOST_IS_SLAVE", Class::Redirect)] {
        let next = Server::start(friendly).await;
        let named = next.address.to_string();
        let left = AtomicUsize::new(1);
        let first = Server::start(move |call| {
            let ours = call.method.starts_with("VM.");
            let hit = |left: usize| left.checked_sub(1).filter(|_| ours);
            let refused = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, hit).is_ok();
            if refused { failure(refusal, &[&named]) } else { friendly(call) }
        })
        .await;
        let client = Arc::new(client(&first, &[next.address.to_string()]));
        let (jobs, params) = (ForJobs(client.clone()), vec![Value::string("vm"), Value::string("hvm")]);
        let change = || jobs.call(Method::VmSetDomainType, params.clone());
        let refused = change().await.unwrap_err();
        assert_eq!((refused.class(), refused.is(refusal)), (class, true));
        assert_eq!(change().await, Ok(Value::void()), "behind a look of the caller's own");
        let sent = [first.methods(), next.methods()].concat();
        assert_eq!(sent.iter().filter(|method| *method == "VM.set_domain_type").count(), 2);
        assert_eq!(sent.iter().filter(|method| *method == LOGIN).count(), 2, "it has logged in anew");
    }
}

#[tokio::test]
async fn an_old_server_gets_the_two_parameters_that_it_knows() {
    let server = Server::start(|call| match (call.method.as_str(), call.params.len()) {
        (LOGIN, 3..) => failure("MESSAGE_PARAMETER_COUNT_MISMATCH", &[LOGIN, "2", "4"]),
        ("VM.get_record", _) => failure("SESSION_INVALID", &["x"]),
        _ => friendly(call),
    })
    .await;
    let client = client(&server, &[]);
    get(&client).await.unwrap_err();
    let logins = server.calls().into_iter().filter(|call| call.method == LOGIN).map(|call| call.params.len());
    assert_eq!(logins.collect::<Vec<_>>(), [4, 2, 2], "found out once, then remembered");
}

#[tokio::test]
async fn a_redirect_to_a_known_member_is_followed() {
    let coordinator = Server::start(friendly).await;
    let address = coordinator.address.to_string();
    let slave = Server::start(slave_of(&address)).await;
    let client = client(&slave, &[address]);
    set(&client).await.unwrap();
    set(&client).await.unwrap();
    assert_eq!(slave.methods(), [LOGIN]);
    assert_eq!(coordinator.methods(), [LOGIN, "VM.set_domain_type", "VM.set_domain_type"]);
}

#[tokio::test]
async fn a_coordinator_that_steps_down_in_the_middle_is_left() {
    let next = Server::start(friendly).await;
    let address = next.address.to_string();
    let named = address.clone();
    let first = Server::start(move |call| match call.method.as_str() {
        LOGIN | "host.get_all_records" | "pool.get_all_records" => friendly(call),
        _ => failure("HOST_IS_SLAVE", &[&named]),
    })
    .await;
    let client = client(&first, &[address]);
    set(&client).await.unwrap();
    assert_eq!(first.methods(), [LOGIN, "VM.set_domain_type"]);
    assert_eq!(next.methods(), [LOGIN, "VM.set_domain_type"]);
}

#[tokio::test]
async fn a_stranger_named_as_coordinator_never_sees_a_login() {
    let stranger = Server::start(friendly).await;
    let slave = Server::start(slave_of(&stranger.address.to_string())).await;
    let client = client(&slave, &["127.0.0.9".to_owned()]);
    let error = set(&client).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Untrusted { detail } if detail.contains("pool.lab.members")),
        "{error}"
    );
    assert_eq!(error.class(), Class::Permanent);
    assert_eq!((stranger.connections(), stranger.calls().len()), (0, 0));
}

#[tokio::test]
async fn members_that_name_each_other_are_followed_three_times() {
    let ports =
        [listener(Ipv4Addr::LOCALHOST, 0).await.unwrap(), listener(Ipv4Addr::LOCALHOST, 0).await.unwrap()];
    let addresses = ports.each_ref().map(|port| port.local_addr().unwrap().to_string());
    let [one, two] = ports;
    let one = Server::run(one, None, slave_of(&addresses[1]));
    let two = Server::run(two, None, slave_of(&addresses[0]));
    let client = client(&one, &addresses);
    assert!(matches!(set(&client).await, Err(CallError::Unreachable { .. })));
    assert_eq!(one.calls().len() + two.calls().len(), 8, "four for each member tried");
}

/// Two listeners on one port of two addresses, as two hosts of a pool have it.
async fn twins() -> [tokio::net::TcpListener; 2] {
    loop {
        let one = listener(Ipv4Addr::LOCALHOST, 0).await.unwrap();
        if let Ok(two) = listener(Ipv4Addr::new(127, 0, 0, 2), one.local_addr().unwrap().port()).await {
            return [one, two];
        }
    }
}

#[tokio::test]
async fn a_member_that_the_pool_listed_itself_is_trusted() {
    let [one, two] = twins().await;
    let next = Server::run(two, None, friendly);
    let first = Server::run(one, None, move |call| match call.method.as_str() {
        LOGIN => friendly(call),
        "host.get_all_records" => {
            Reply::Value(Value::Struct(BTreeMap::from([("r".into(), host("127.0.0.2"))])))
        }
        _ => failure("HOST_IS_SLAVE", &["127.0.0.2"]),
    });
    let client = client(&first, &[]);
    set(&client).await.unwrap();
    assert_eq!(next.methods(), [LOGIN, "VM.set_domain_type"]);
}

#[tokio::test]
async fn a_dead_coordinator_is_looked_for_among_the_members() {
    let coordinator = Server::start(friendly).await;
    let slave = Server::start(slave_of(&coordinator.address.to_string())).await;
    let dead = listener(Ipv4Addr::LOCALHOST, 0).await.unwrap().local_addr().unwrap();
    let members = [slave.address.to_string(), coordinator.address.to_string()];
    let config = pool(format!("http://{dead}"), &members, TlsTrust::PlainHttp);
    let client = Client::new(&config, "").unwrap();
    set(&client).await.unwrap();
    assert_eq!(slave.methods(), [LOGIN]);

    let alone = Client::new(&pool(format!("http://{dead}"), &[], TlsTrust::PlainHttp), "").unwrap();
    let error = set(&alone).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}: surely not sent");
    assert!(error.to_string().contains("refused"), "{error}");
}

#[tokio::test]
async fn a_pool_that_starts_is_unreachable() {
    for code in ["HOST_STILL_BOOTING", "HOST_IN_EMERGENCY_MODE"] {
        let server = Server::start(move |_| failure(code, &[])).await;
        let error = set(&client(&server, &[])).await.unwrap_err();
        assert!(
            matches!(error, CallError::Unreachable { .. }) && error.class() == Class::SlowRetry,
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_lost_answer_is_unknown_only_where_something_may_have_changed() {
    let server = Server::start(|call| match call.method.as_str() {
        LOGIN | "host.get_all_records" | "pool.get_all_records" => friendly(call),
        _ => Reply::Lost,
    })
    .await;
    let client = client(&server, &[]);
    let changed = set(&client).await.unwrap_err();
    assert!(matches!(changed, CallError::Unknown { method: "VM.set_domain_type", .. }), "{changed}");
    assert_eq!(changed.class(), Class::Observe);
    assert!(matches!(get(&client).await, Err(CallError::Unreachable { .. })));
    assert_eq!(server.methods(), [LOGIN, "VM.set_domain_type", "VM.get_record"], "nothing is sent twice");
}

#[tokio::test]
async fn an_answer_that_trickles_in_hits_the_total_deadline() {
    let server = Server::start(|call| match call.method.as_str() {
        LOGIN | "host.get_all_records" | "pool.get_all_records" => friendly(call),
        _ => Reply::Trickle,
    })
    .await;
    let client = client(&server, &[]).with_deadlines(|_| Duration::from_millis(300));
    let error = set(&client).await.unwrap_err();
    assert!(matches!(&error, CallError::Unknown { detail, .. } if detail.contains("300ms")), "{error}");
    assert!(matches!(get(&client).await, Err(CallError::Unreachable { .. })));
}

#[tokio::test]
async fn a_login_that_never_answers_leaves_the_call_unsent() {
    let server = Server::start(|_| Reply::Trickle).await;
    let client = client(&server, &[]).with_deadlines(|_| Duration::from_millis(200));
    let error = set(&client).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert_eq!(server.methods(), [LOGIN]);
}

#[tokio::test]
async fn a_wrong_password_is_not_tried_again_and_again() {
    let refuse =
        |_: &Call| failure("SESSION_AUTHENTICATION_FAILED", &["root", &format!("{PASSWORD} is wrong")]);
    let server = Server::start(refuse).await;
    let patient = client(&server, &[]);
    for outcome in join_all((0..10).map(|_| set(&patient))).await {
        let error = outcome.unwrap_err();
        assert!(
            matches!(error, CallError::LoginRefused { .. }) && error.class() == Class::Permanent,
            "{error}"
        );
    }
    assert_eq!(server.methods(), [LOGIN]);

    let server = Server::start(refuse).await;
    let hasty = client(&server, &[]).with_login_cooldown(Duration::ZERO);
    for _ in 0..3 {
        assert!(matches!(set(&hasty).await, Err(CallError::LoginRefused { .. })));
    }
    assert_eq!(server.methods().len(), 3, "after the cool-down it is tried again");
}

#[tokio::test]
async fn answers_that_are_not_xenapi_are_protocol_errors() {
    let huge = "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n";
    let rows = [
        ("HTTP/1.1 500 Internal Error\r\ncontent-length: 2\r\n\r\nno", "HTTP 500"),
        ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "HTTP 302"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>", "<html>"),
        (huge, "more than 67108864 bytes"),
    ];
    for (raw, wanted) in rows {
        let server = Server::start(move |call| match call.method.as_str() {
            LOGIN | "host.get_all_records" | "pool.get_all_records" => friendly(call),
            _ => Reply::Raw(raw.into()),
        })
        .await;
        let error = set(&client(&server, &[])).await.unwrap_err();
        assert!(matches!(&error, CallError::Protocol { detail, .. } if detail.contains(wanted)), "{error}");
        assert_eq!(error.class(), Class::Observe);
    }
}

#[tokio::test]
async fn a_large_answer_is_read_whole() {
    let large = Value::Array((0..50_000).map(|at| Value::string(format!("OpaqueRef:{at}"))).collect());
    let answer = large.clone();
    let server = Server::start(move |call| match call.method.as_str() {
        "VM.get_record" => Reply::Value(answer.clone()),
        _ => friendly(call),
    })
    .await;
    assert_eq!(get(&client(&server, &[])).await, Ok(large));
}

#[tokio::test]
async fn only_so_many_calls_are_under_way_and_event_from_is_not_one_of_them() {
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&gate);
    let server = Server::start(move |call| match call.method.as_str() {
        "VM.set_domain_type" => Reply::Gated(Arc::clone(&held)),
        _ => friendly(call),
    })
    .await;
    let client = Arc::new(client(&server, &[]).with_calls_at_once(4));
    let mut under_way = server.under_way();
    let calls: Vec<_> = (0..6)
        .map(|_| {
            let client = Arc::clone(&client);
            tokio::spawn(async move { set(&client).await })
        })
        .collect();
    while server.methods().iter().filter(|method| *method == "VM.set_domain_type").count() < 2 {
        under_way.changed().await.unwrap();
    }
    client
        .call(Method::EventFrom, vec![Value::Array(vec![]), Value::void(), Value::Double(1.0)])
        .await
        .unwrap();
    assert_eq!(*under_way.borrow(), 2, "the other four wait on our side");
    let way_back = WayBack(Arc::clone(&client));
    way_back.call(Method::VmGetRecord, vec![Value::string("vm")]).await.unwrap();
    gate.add_permits(6);
    for call in calls {
        call.await.unwrap().unwrap();
    }
}

/// A certificate for 127.0.0.1 with the server's side of TLS and the SHA-256 of the certificate.
fn certificate() -> (TlsAcceptor, rcgen::Certificate, [u8; 32]) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let pin = Sha256::digest(made.cert.der()).into();
    (TlsAcceptor::from(Arc::new(config)), made.cert, pin)
}

async fn tls_server(acceptor: TlsAcceptor) -> Server {
    Server::run(listener(Ipv4Addr::LOCALHOST, 0).await.unwrap(), Some(acceptor), friendly)
}

fn tls_client(server: &Server, tls: TlsTrust) -> Client {
    Client::new(&pool(format!("https://{}/", server.address), &[], tls), "bootflip test").unwrap()
}

#[tokio::test]
async fn a_certificate_is_trusted_by_pin_by_ca_or_on_demand() {
    let (acceptor, certificate, pin) = certificate();
    let server = tls_server(acceptor).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, certificate.pem()).unwrap();
    for tls in [TlsTrust::Pins(vec![[0; 32], pin]), TlsTrust::Ca(ca), TlsTrust::Insecure] {
        set(&tls_client(&server, tls)).await.unwrap();
    }
}

#[tokio::test]
async fn a_pin_that_does_not_fit_ends_all_calls_before_the_password() {
    let (acceptor, _, mut pin) = certificate();
    let server = tls_server(acceptor).await;
    pin[31] ^= 1;
    let client = tls_client(&server, TlsTrust::Pins(vec![pin]));
    let error = set(&client).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Untrusted { detail } if detail.contains("none of its pins")),
        "{error}"
    );
    let connections = server.connections();
    for _ in 0..5 {
        assert!(matches!(get(&client).await, Err(CallError::Untrusted { .. })));
    }
    assert_eq!((server.calls(), server.connections()), (vec![], connections), "nothing more is even tried");
}

#[tokio::test]
async fn a_certificate_of_another_ca_sees_no_password() {
    let (acceptor, ..) = certificate();
    let server = tls_server(acceptor).await;
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, certificate().1.pem()).unwrap();
    let error = set(&tls_client(&server, TlsTrust::Ca(ca.clone()))).await.unwrap_err();
    assert!(
        matches!(&error, CallError::Untrusted { detail } if detail.contains("is not trusted")),
        "{error}"
    );
    assert_eq!(server.calls(), []);

    std::fs::write(&ca, "no certificate").unwrap();
    let error = Client::new(&pool("https://h".into(), &[], TlsTrust::Ca(ca)), "").unwrap_err();
    assert!(error.to_string().contains("it holds no certificate"), "{error}");
}

#[tokio::test]
async fn a_pinned_redirect_is_held_to_the_same_pins() {
    let (acceptor, ..) = certificate();
    let impostor = tls_server(acceptor).await;
    let address = impostor.address.to_string();
    let (acceptor, _, pin) = certificate();
    let slave =
        Server::run(listener(Ipv4Addr::LOCALHOST, 0).await.unwrap(), Some(acceptor), slave_of(&address));
    let url = format!("https://{}", slave.address);
    let client = Client::new(&pool(url, &[address], TlsTrust::Pins(vec![pin])), "").unwrap();
    assert!(matches!(set(&client).await, Err(CallError::Untrusted { .. })));
    assert!(matches!(set(&client).await, Err(CallError::Untrusted { .. })));
    assert_eq!((slave.methods(), impostor.calls()), (vec![LOGIN.to_owned()], vec![]));
}

#[tokio::test]
async fn a_handshake_that_never_ends_leaves_the_call_unsent() {
    // It waits for the end of an HTTP head, which a TLS handshake does not have.
    let server = Server::start(friendly).await;
    let error = set(&tls_client(&server, TlsTrust::Insecure)).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable { .. }), "{error}");
    assert_eq!(server.calls(), []);
}

#[test]
fn what_no_client_can_be_made_of_is_refused_with_a_remedy() {
    for (url, members, tls, wanted) in [
        ("http://h", &[][..], TlsTrust::Insecure, "url `http://h` must be https://host"),
        ("https://h", &[], TlsTrust::PlainHttp, "must be http://host"),
        ("https://h/path", &[], TlsTrust::Insecure, "must be https://host"),
        ("https://root:x@h", &[], TlsTrust::Insecure, "must be https://host"),
        ("h", &[], TlsTrust::Insecure, "must be https://host"),
        ("https://h", &["a b"], TlsTrust::Insecure, "member `a b` must be host or host:port"),
        ("https://h", &[], TlsTrust::Ca("/nowhere/ca.pem".into()), "cannot read the CA file /nowhere/ca.pem"),
    ] {
        let members: Vec<String> = members.iter().map(|&member| member.to_owned()).collect();
        let error = Client::new(&pool(url.into(), &members, tls), "").unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn a_client_prints_no_secret() {
    let client = Client::new(&pool("https://h".into(), &[], TlsTrust::Insecure), "").unwrap();
    let printed = format!("{client:?}");
    assert!(printed.contains("lab") && !printed.contains(PASSWORD), "{printed}");
}

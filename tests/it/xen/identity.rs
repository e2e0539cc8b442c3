//! Is it still the same pool, and does only one member say that it is the coordinator?

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bootflip::{
    app::identity::StoredIdentity,
    config::TlsTrust,
    store::memory::MemoryStore,
    xen::{
        CallError, Value,
        client::Client,
        identity::{Identity, Keeper},
    },
};
use futures_util::{FutureExt, future::BoxFuture};

use super::{
    LOGIN, failure, get, pool,
    server::{Call, Reply, Server, listener},
    set, slave_of, twins,
};

/// A pool as this uuid, with this host as its master; its hosts are at these addresses.
fn member_of(
    uuid: &str,
    master: &str,
    hosts: &[(&str, &str)],
) -> impl Fn(&Call) -> Reply + Send + Sync + 'static {
    let text = |name: &str, value: &str| (name.to_owned(), Value::string(value));
    let record = BTreeMap::from([
        text("uuid", uuid),
        text("name_label", ""),
        text("master", master),
        ("ha_enabled".to_owned(), Value::Bool(false)),
        ("default_SR".to_owned(), Value::string("OpaqueRef:NULL")),
    ]);
    let pools = BTreeMap::from([("OpaqueRef:pool".to_owned(), Value::Struct(record))]);
    let hosts = hosts.iter().map(|(reference, address)| ((*reference).to_owned(), host(address))).collect();
    let (pools, hosts) = (Value::Struct(pools), Value::Struct(hosts));
    move |call| match call.method.as_str() {
        LOGIN => Reply::Value(Value::string("OpaqueRef:session")),
        "pool.get_all_records" => Reply::Value(pools.clone()),
        "host.get_all_records" => Reply::Value(hosts.clone()),
        _ => Reply::Value(Value::void()),
    }
}

/// A host record with this address.
pub(super) fn host(address: &str) -> Value {
    let text = |name: &str, value: &str| (name.to_owned(), Value::string(value));
    let mut host = BTreeMap::from([
        text("uuid", "h"),
        text("name_label", "xs2"),
        text("address", address),
        text("API_version_major", "2"),
        text("API_version_minor", "15"),
        text("metrics", "OpaqueRef:hm"),
    ]);
    host.insert("enabled".into(), Value::Bool(true));
    host.insert("software_version".into(), Value::Struct(BTreeMap::new()));
    host.insert("capabilities".into(), Value::Array(vec![]));
    Value::Struct(host)
}

/// Keeps it in memory, as the database does over restarts.
#[derive(Debug, Default)]
struct Kept {
    identity: Mutex<Option<Identity>>,
    broken: bool,
}

impl Keeper for Kept {
    fn kept(&self) -> BoxFuture<'_, Result<Option<Identity>, String>> {
        let kept = self.identity.lock().unwrap().clone();
        async { if self.broken { Err("no disk".to_owned()) } else { Ok(kept) } }.boxed()
    }

    fn keep(&self, identity: Identity) -> BoxFuture<'_, Result<(), String>> {
        *self.identity.lock().unwrap() = Some(identity);
        async { Ok(()) }.boxed()
    }
}

fn client(server: &Server, members: &[String], keeper: &Arc<Kept>) -> Client {
    let url = format!("http://{}", server.address);
    let client = Client::new(&pool(url, members, TlsTrust::PlainHttp), "test").unwrap();
    client.with_keeper(Arc::clone(keeper) as _).with_login_cooldown(Duration::ZERO)
}

fn kept(uuid: &str, at: &Server) -> Arc<Kept> {
    let identity = Identity { pool_uuid: uuid.into(), coordinator: at.address.to_string() };
    Arc::new(Kept { identity: Mutex::new(Some(identity)), broken: false })
}

fn untrusted(error: &CallError, words: &[&str]) {
    let CallError::Untrusted { detail } = error else { panic!("{error:?}") };
    assert!(words.iter().all(|word| detail.contains(word)), "{detail}");
}

#[tokio::test]
async fn an_address_that_belongs_to_another_pool_is_never_spoken_to_again() {
    let stranger = Server::start(member_of("u-new", "h1", &[])).await;
    let client = client(&stranger, &[], &kept("u-old", &stranger));
    let words = ["is pool u-new now and not u-old", "bootflip pool forget lab"];
    untrusted(&set(&client).await.unwrap_err(), &words);
    untrusted(&get(&client).await.unwrap_err(), &words);
    assert_eq!(stranger.methods(), [LOGIN, "session.logout"], "nothing but the login, which was ended");
}

#[tokio::test]
async fn the_right_pool_is_found_behind_an_address_that_went_to_another() {
    let stranger = Server::start(member_of("u-new", "h1", &[])).await;
    let right = Server::start(member_of("u-old", "h1", &[])).await;
    let keeper = kept("u-old", &stranger);
    let client = client(&stranger, &[right.address.to_string()], &keeper);
    set(&client).await.unwrap();
    client.logout().await;
    set(&client).await.unwrap();
    assert_eq!(stranger.methods(), [LOGIN, "session.logout"]);
    let identity = keeper.identity.lock().unwrap().clone().unwrap();
    assert_eq!((identity.pool_uuid, identity.coordinator), ("u-old".into(), right.address.to_string()));
}

#[tokio::test]
async fn a_session_that_ends_does_not_lead_into_another_pool() {
    // No keeper: the pool is known from the same run.
    let moved = Arc::new(AtomicBool::new(false));
    let (old, new) = (member_of("u-old", "h1", &[]), member_of("u-new", "h1", &[]));
    let now = Arc::clone(&moved);
    let server =
        Server::start(move |call| if now.load(Ordering::SeqCst) { new(call) } else { old(call) }).await;
    let url = format!("http://{}", server.address);
    let client = Client::new(&pool(url, &[], TlsTrust::PlainHttp), "test").unwrap();
    set(&client).await.unwrap();
    client.logout().await;
    moved.store(true, Ordering::SeqCst);
    untrusted(&set(&client).await.unwrap_err(), &["is pool u-new now"]);
}

#[tokio::test]
async fn two_coordinators_stop_all_calls_until_one_gives_way() {
    let [one, two] = [(); 2].map(|()| listener(std::net::Ipv4Addr::LOCALHOST, 0));
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    let gave_way = Arc::new(AtomicBool::new(false));
    let (old, follows) = (member_of("u", "h-old", &[]), slave_of(&two.local_addr().unwrap().to_string()));
    let given = Arc::clone(&gave_way);
    let old = Server::run(
        one,
        None,
        move |call| {
            if given.load(Ordering::SeqCst) { follows(call) } else { old(call) }
        },
    );
    let new = Server::run(two, None, member_of("u", "h-new", &[]));
    let client = client(&old, &[new.address.to_string()], &kept("u", &old));
    let (a, b) = (old.address.to_string(), new.address.to_string());
    untrusted(&set(&client).await.unwrap_err(), &["both answer as coordinator", &a, &b]);
    for server in [&old, &new] {
        assert_eq!(server.methods(), [LOGIN, "session.logout"], "no session is left behind");
    }
    gave_way.store(true, Ordering::SeqCst);
    set(&client).await.unwrap();
    assert_eq!(new.methods().last().unwrap(), "VM.set_domain_type");
}

#[tokio::test]
async fn a_coordinator_that_its_members_do_not_follow_is_waited_for() {
    // The old coordinator is back; the new one does not answer; the other members name it.
    let [one, two] = twins().await;
    let hosts = [("h-old", "127.0.0.1"), ("h3", "127.0.0.2"), ("h-new", "127.0.0.3")];
    let old = Server::run(one, None, member_of("u", "h-old", &hosts));
    let third = Server::run(two, None, slave_of("127.0.0.3"));
    let client = client(&old, &[], &kept("u", &old));
    let error = set(&client).await.unwrap_err();
    let told = "follows another coordinator, 127.0.0.3";
    assert!(matches!(&error, CallError::Unreachable { detail } if detail.contains(told)), "{error}");
    assert_eq!(old.methods(), [LOGIN, "session.logout"]);
    assert!(third.methods().iter().all(|method| method == LOGIN));
}

#[tokio::test]
async fn a_coordinator_may_have_several_names_and_followers_that_use_any() {
    let [one, two] = twins().await;
    let hosts = [("h1", "127.0.0.1"), ("h2", "127.0.0.2")];
    // The same host behind a second address, as a name and an address are; and a member that follows.
    let third = listener(std::net::Ipv4Addr::new(127, 0, 0, 3), one.local_addr().unwrap().port());
    let alias = Server::run(third.await.unwrap(), None, member_of("u", "h1", &hosts));
    let coordinator = Server::run(one, None, member_of("u", "h1", &hosts));
    let follower = Server::run(two, None, slave_of("127.0.0.1"));
    let client = client(&alias, &[coordinator.address.to_string()], &Arc::default());
    set(&client).await.unwrap();
    assert_eq!(follower.methods(), [LOGIN]);
    assert_eq!(alias.methods(), [LOGIN, "VM.set_domain_type"]);
}

#[tokio::test]
async fn the_coordinator_of_the_last_run_is_asked_first() {
    let new = Server::start(member_of("u", "h2", &[])).await;
    let old = Server::start(slave_of(&new.address.to_string())).await;
    let members = [new.address.to_string()];
    let keeper = Arc::<Kept>::default();
    set(&client(&old, &members, &keeper)).await.unwrap();
    set(&client(&old, &members, &keeper)).await.unwrap();
    let logins = |server: &Server| server.methods().iter().filter(|method| *method == LOGIN).count();
    assert_eq!((logins(&old), logins(&new)), (2, 2), "the second time for its opinion only");
    assert_eq!(new.methods()[..2], [LOGIN, "VM.set_domain_type"]);
}

#[tokio::test]
async fn nothing_is_sent_while_nobody_can_tell_which_pool_it_was() {
    let server = Server::start(member_of("u", "h1", &[])).await;
    let broken = Arc::new(Kept { identity: Mutex::default(), broken: true });
    let error = set(&client(&server, &[], &broken)).await.unwrap_err();
    assert!(matches!(&error, CallError::Unreachable { detail } if detail.contains("no disk")), "{error}");
    assert_eq!(server.calls(), []);
}

#[tokio::test]
async fn a_toolstack_that_starts_in_the_middle_is_waited_for_and_asked_anew() {
    for code in ["HOST_STILL_BOOTING", "HOST_IN_EMERGENCY_MODE"] {
        let starting = Arc::new(AtomicBool::new(true));
        let (normal, now) = (member_of("u", "h1", &[]), Arc::clone(&starting));
        let server = Server::start(move |call| {
            let refused = call.method == "VM.set_domain_type" && now.load(Ordering::SeqCst);
            if refused { failure(code, &[]) } else { normal(call) }
        })
        .await;
        let client = client(&server, &[], &Arc::default());
        let error = set(&client).await.unwrap_err();
        assert!(matches!(&error, CallError::Unreachable { detail } if detail.contains(code)), "{error}");
        starting.store(false, Ordering::SeqCst);
        set(&client).await.unwrap();
        assert_eq!(server.methods(), [LOGIN, "VM.set_domain_type", LOGIN, "VM.set_domain_type"]);
    }
}

#[tokio::test]
async fn the_store_keeps_an_identity_until_it_is_forgotten() {
    let store = Arc::new(MemoryStore::new());
    let of = |pool: &str| StoredIdentity::of(store.clone(), pool);
    let identity = Identity { pool_uuid: "u".into(), coordinator: "10.0.0.1:443".into() };
    assert_eq!(of("main").kept().await, Ok(None));
    of("main").keep(identity.clone()).await.unwrap();
    assert_eq!((of("main").kept().await, of("other").kept().await), (Ok(Some(identity)), Ok(None)));
    assert!(of("main").forget().await.unwrap() && !of("main").forget().await.unwrap());
    assert_eq!(of("main").kept().await, Ok(None));
}

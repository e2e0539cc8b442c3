//! One battery over every backend of the store, and what only the one on disk has to hold.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt, sync::Arc};

use bootflip::store::{
    Batch, Change, Store, StoreError, Watch,
    memory::MemoryStore,
    sqlite::{OpenError, SqliteStore},
};
use tempfile::TempDir;

/// A backend to try, with what keeps it alive.
struct Bench {
    store: Arc<dyn Store>,
    _folder: Option<TempDir>,
}

fn memory() -> Bench {
    Bench { store: Arc::new(MemoryStore::new()), _folder: None }
}

fn sqlite() -> Bench {
    let folder = TempDir::new().unwrap();
    Bench {
        store: Arc::new(SqliteStore::open(folder.path().join("bootflip.db")).unwrap()),
        _folder: Some(folder),
    }
}

macro_rules! battery {
    ($($fact:ident)*) => {
        mod over_memory {
            $(#[tokio::test] async fn $fact() { super::$fact(&*super::memory().store).await })*
        }
        mod over_sqlite {
            $(#[tokio::test] async fn $fact() { super::$fact(&*super::sqlite().store).await })*
        }
    };
}

battery! {
    an_absent_key_is_none
    a_committed_value_is_read_back
    every_commit_raises_the_revision_by_one
    a_list_has_the_prefix_exactly_and_is_sorted
    a_stale_condition_is_a_conflict_that_names_the_key
    a_batch_happens_whole_or_not_at_all
    writes_of_one_batch_are_done_in_order
    removing_what_is_absent_is_fine_and_tells_nobody
    a_removed_key_can_be_made_again
    a_watcher_sees_every_later_change_in_order
    a_watcher_is_told_the_latest_of_what_it_missed
    a_watcher_from_the_start_is_told_what_exists
    a_watcher_from_the_future_is_refused
    a_watcher_that_falls_behind_is_closed
    a_hundred_concurrent_increments_all_count
    what_is_too_large_is_refused_whole
    bytes_and_keys_come_back_as_they_were
}

async fn put(store: &dyn Store, key: &str, value: &str) -> u64 {
    store.commit(Batch::new().put(key, value)).await.unwrap()
}

async fn value(store: &dyn Store, key: &str) -> Option<String> {
    store.get(key).await.unwrap().map(|entry| String::from_utf8(entry.value).unwrap())
}

async fn next(watch: &mut Watch) -> String {
    let change = watch.recv().await.expect("the feed is open");
    shown(&change)
}

fn shown(Change { revision, key, value }: &Change) -> String {
    match value {
        Some(value) => format!("{revision} {key}={}", String::from_utf8_lossy(value)),
        None => format!("{revision} {key} removed"),
    }
}

async fn an_absent_key_is_none(store: &dyn Store) {
    assert_eq!(store.get("jobs/1").await.unwrap(), None);
    assert_eq!(store.list("").await.unwrap(), []);
}

async fn a_committed_value_is_read_back(store: &dyn Store) {
    let revision = put(store, "jobs/1", "queued").await;
    let entry = store.get("jobs/1").await.unwrap().unwrap();
    assert_eq!(
        (entry.key.as_str(), entry.value.as_slice(), entry.revision),
        ("jobs/1", &b"queued"[..], revision)
    );
}

async fn every_commit_raises_the_revision_by_one(store: &dyn Store) {
    let mut revisions = vec![put(store, "a", "1").await, put(store, "a", "1").await];
    revisions.push(store.commit(Batch::new().put("a", "2").put("b", "2").delete("a")).await.unwrap());
    revisions.push(store.commit(Batch::new()).await.unwrap());
    assert_eq!(revisions, [1, 2, 3, 4]);
    assert!(store.commit(Batch::new().expect("a", Some(9))).await.is_err());
    assert_eq!(put(store, "a", "3").await, 5, "a refused commit takes no revision");
}

async fn a_list_has_the_prefix_exactly_and_is_sorted(store: &dyn Store) {
    for key in
        ["jobs/2", "jobs/10", "jobs/1", "jobs", "jobs0", "joc", "JOBS/3", "jobs/é", "jobs/\u{10ffff}x", "i"]
    {
        put(store, key, "x").await;
    }
    store.commit(Batch::new().delete("jobs/2")).await.unwrap();
    let keys: Vec<String> = store.list("jobs/").await.unwrap().into_iter().map(|entry| entry.key).collect();
    assert_eq!(keys, ["jobs/1", "jobs/10", "jobs/é", "jobs/\u{10ffff}x"]);
    assert_eq!(store.list("").await.unwrap().len(), 9);
    assert_eq!(store.list("jobs/1_").await.unwrap(), [], "no character is a wildcard");
}

async fn a_stale_condition_is_a_conflict_that_names_the_key(store: &dyn Store) {
    let old = put(store, "a", "1").await;
    let new = put(store, "a", "2").await;
    let removed = put(store, "gone", "1").await;
    store.commit(Batch::new().delete("gone")).await.unwrap();
    for (case, batch, conflict) in [
        ("an old revision", Batch::new().expect("a", Some(old)), Some("a")),
        ("absent, and it exists", Batch::new().expect("a", None), Some("a")),
        ("exists, and it is absent", Batch::new().expect("b", Some(1)), Some("b")),
        ("exists, and it was removed", Batch::new().expect("gone", Some(removed)), Some("gone")),
        (
            "the first that fails",
            Batch::new().expect("a", Some(new)).expect("c", Some(1)).expect("a", None),
            Some("c"),
        ),
        ("all hold", Batch::new().expect("a", Some(new)).expect("b", None).expect("gone", None), None),
    ] {
        match (store.commit(batch.put("a", "2")).await, conflict) {
            (Err(StoreError::Conflict { key }), Some(expected)) => assert_eq!(key, expected, "{case}"),
            (Ok(_), None) => {}
            (other, _) => panic!("{case}: {other:?}"),
        }
    }
}

async fn a_batch_happens_whole_or_not_at_all(store: &dyn Store) {
    put(store, "a", "1").await;
    let batch = Batch::new().put("b", "2").delete("a").put("c", "2").expect("missing", Some(1));
    assert!(matches!(store.commit(batch).await, Err(StoreError::Conflict { .. })));
    assert_eq!(
        (value(store, "a").await.as_deref(), value(store, "b").await, value(store, "c").await),
        (Some("1"), None, None)
    );
    let revision = store.commit(Batch::new().put("b", "2").delete("a").put("c", "2")).await.unwrap();
    let entries = store.list("").await.unwrap();
    assert!(entries.iter().all(|entry| entry.revision == revision) && entries.len() == 2);
}

async fn writes_of_one_batch_are_done_in_order(store: &dyn Store) {
    store
        .commit(Batch::new().put("a", "1").delete("a").put("a", "2").put("b", "1").delete("b"))
        .await
        .unwrap();
    assert_eq!((value(store, "a").await.as_deref(), value(store, "b").await), (Some("2"), None));
}

async fn removing_what_is_absent_is_fine_and_tells_nobody(store: &dyn Store) {
    let mut watch = store.watch(0).await.unwrap();
    store.commit(Batch::new().delete("never")).await.unwrap();
    put(store, "a", "1").await;
    assert_eq!(next(&mut watch).await, "2 a=1");
}

async fn a_removed_key_can_be_made_again(store: &dyn Store) {
    let first = put(store, "a", "1").await;
    store.commit(Batch::new().expect("a", Some(first)).delete("a")).await.unwrap();
    let again = store.commit(Batch::new().expect("a", None).put("a", "2")).await.unwrap();
    assert_eq!(store.get("a").await.unwrap().unwrap().revision, again);
}

async fn a_watcher_sees_every_later_change_in_order(store: &dyn Store) {
    let from = put(store, "a", "0").await;
    let mut watch = store.watch(from).await.unwrap();
    put(store, "a", "1").await;
    put(store, "a", "2").await;
    store.commit(Batch::new().put("b", "3").delete("a")).await.unwrap();
    store.commit(Batch::new().put("b", "4").expect("a", Some(1))).await.unwrap_err();
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(next(&mut watch).await);
    }
    assert_eq!(seen, ["2 a=1", "3 a=2", "4 b=3", "4 a removed"]);
    assert!(watch.try_recv().is_err(), "a refused commit is not told");
}

async fn a_watcher_is_told_the_latest_of_what_it_missed(store: &dyn Store) {
    put(store, "old", "0").await;
    let from = put(store, "b", "1").await;
    put(store, "c", "2").await;
    put(store, "a", "3").await;
    put(store, "a", "4").await;
    store.commit(Batch::new().delete("b")).await.unwrap();
    let mut watch = store.watch(from).await.unwrap();
    put(store, "d", "7").await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(next(&mut watch).await);
    }
    assert_eq!(seen, ["3 c=2", "5 a=4", "6 b removed", "7 d=7"]);
}

async fn a_watcher_from_the_start_is_told_what_exists(store: &dyn Store) {
    put(store, "b", "1").await;
    put(store, "a", "2").await;
    store.commit(Batch::new().delete("b")).await.unwrap();
    let mut watch = store.watch(0).await.unwrap();
    assert_eq!(next(&mut watch).await, "2 a=2");
    assert!(watch.try_recv().is_err());
}

async fn a_watcher_from_the_future_is_refused(store: &dyn Store) {
    let mut watch = store.watch(1).await.unwrap();
    assert_eq!(watch.recv().await, None);
}

async fn a_watcher_that_falls_behind_is_closed(store: &dyn Store) {
    let mut slow = store.watch(0).await.unwrap();
    for round in 0..5u32 {
        let batch = (0..1000).fold(Batch::new(), |batch, i| batch.put(format!("k{i}"), round.to_string()));
        store.commit(batch).await.unwrap();
    }
    let mut seen = 0;
    while slow.recv().await.is_some() {
        seen += 1;
    }
    assert_eq!(seen, 4096);
    let mut fresh = store.watch(4).await.unwrap();
    assert_eq!(next(&mut fresh).await.split(' ').next(), Some("5"));
}

async fn a_hundred_concurrent_increments_all_count(store: &dyn Store) {
    let increment = async |by: u32| {
        for _ in 0..by {
            loop {
                let entry = store.get("counter").await.unwrap();
                let count: u64 =
                    entry.as_ref().map_or(0, |entry| serde_json::from_slice(&entry.value).unwrap());
                let batch = Batch::new().expect("counter", entry.map(|entry| entry.revision));
                match store.commit(batch.put("counter", (count + 1).to_string())).await {
                    Ok(_) => break,
                    Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
                    Err(other) => panic!("{other}"),
                }
            }
        }
    };
    futures_util::future::join_all((0..100).map(|_| increment(2))).await;
    assert_eq!(value(store, "counter").await.as_deref(), Some("200"));
}

async fn what_is_too_large_is_refused_whole(store: &dyn Store) {
    let (long, big) = ("k".repeat(513), vec![0; 1024 * 1024 + 1]);
    for (batch, text) in [
        (Batch::new().put("a", "1").put(long.clone(), "1"), "its key has 513 bytes and the limit is 512"),
        (Batch::new().put("a", "1").delete(long), "its key has 513 bytes and the limit is 512"),
        (
            Batch::new().put("a", "1").put("b", big),
            "b does not go into the store: its value has 1048577 bytes and the limit is 1048576",
        ),
    ] {
        let error = store.commit(batch).await.unwrap_err().to_string();
        assert!(error.ends_with(text), "{error}");
    }
    assert_eq!(store.list("").await.unwrap(), []);
    store.commit(Batch::new().put("k".repeat(512), vec![0; 1024 * 1024])).await.unwrap();
}

async fn bytes_and_keys_come_back_as_they_were(store: &dyn Store) {
    let value: Vec<u8> = (0..=255).collect();
    for key in ["a'\"b%_", "nul\0in it", "🦀", ""] {
        store.commit(Batch::new().put(key, value.clone())).await.unwrap();
        assert_eq!(store.get(key).await.unwrap().unwrap().value, value, "{key:?}");
    }
    store.commit(Batch::new().put("empty", Vec::new())).await.unwrap();
    assert_eq!(store.get("empty").await.unwrap().unwrap().value, b"", "empty is not absent");
}

// What only the backend on disk has to hold.

#[tokio::test]
async fn commits_survive_a_reopen_and_revisions_go_on() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("state/deep/bootflip.db");
    let store = SqliteStore::open(&path).unwrap();
    put(&store, "a", "1").await;
    put(&store, "b", "2").await;
    store.commit(Batch::new().delete("a")).await.unwrap();
    drop(store);
    let store = SqliteStore::open(&path).unwrap();
    assert_eq!((value(&store, "a").await, value(&store, "b").await.as_deref()), (None, Some("2")));
    let mut watch = store.watch(1).await.unwrap();
    assert_eq!(put(&store, "c", "3").await, 4);
    let seen = [next(&mut watch).await, next(&mut watch).await, next(&mut watch).await];
    assert_eq!(seen, ["2 b=2", "3 a removed", "4 c=3"]);
}

#[tokio::test]
async fn commits_under_way_are_done_before_the_store_closes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bootflip.db");
    let store = SqliteStore::open(&path).unwrap();
    let commits: Vec<_> = (0..200).map(|i| store.commit(Batch::new().put(format!("k{i}"), "x"))).collect();
    let revisions: BTreeSet<u64> =
        futures_util::future::try_join_all(commits).await.unwrap().into_iter().collect();
    assert_eq!(revisions, (1..=200).collect());
    drop(store);
    assert!(!path.with_extension("db-wal").exists(), "the last connection folds it into the database");
    assert_eq!(SqliteStore::open(&path).unwrap().list("k").await.unwrap().len(), 200);
}

#[tokio::test]
async fn closing_the_store_closes_the_feeds() {
    let bench = sqlite();
    let mut watch = bench.store.watch(0).await.unwrap();
    drop(bench);
    assert_eq!(watch.recv().await, None);
}

#[tokio::test]
async fn the_files_are_for_this_user_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("new/bootflip.db");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = SqliteStore::open(&path).unwrap();
    put(&store, "a", "1").await;
    let files: Vec<_> =
        std::fs::read_dir(path.parent().unwrap()).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 4, "database, -wal, -shm and lock: {files:?}");
    assert!(files.iter().all(|file| mode(file) == 0o600), "{files:?}");
    assert_eq!(mode(path.parent().unwrap()), 0o700);
    drop(store);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let _store = SqliteStore::open(&path).unwrap();
    assert_eq!(mode(&path), 0o600, "one that was wider is narrowed");
}

#[test]
fn a_second_server_on_the_file_is_refused_until_the_first_is_gone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bootflip.db");
    let first = SqliteStore::open(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(
        matches!(error, OpenError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    let expected = format!(
        "the database {} is in use by another bootflip (process {}); stop that one, or give this one its own server.state_dir",
        path.display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    drop(first);
    SqliteStore::open(&path).unwrap();
}

#[test]
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bootflip.db");
    drop(SqliteStore::open(&path).unwrap());
    let change = |sql| rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
    change("UPDATE meta SET value = 2 WHERE name = 'schema'; PRAGMA journal_mode = DELETE");
    let before = std::fs::read(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err().to_string();
    assert!(
        error.contains("has schema 2, and this bootflip knows schemas up to 1; run the newer bootflip"),
        "{error}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_file_that_is_not_ours_is_refused_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bootflip.db");
    std::fs::write(&path, "#!/bin/sh\n".repeat(500)).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(OpenError::Foreign { .. })));
    std::fs::remove_file(&path).unwrap();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE songs (name TEXT)").unwrap();
    let before = std::fs::read(&path).unwrap();
    assert!(matches!(SqliteStore::open(&path), Err(OpenError::Foreign { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn a_damaged_database_is_refused_with_what_to_do() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bootflip.db");
    drop(SqliteStore::open(&path).unwrap());
    let mut bytes = std::fs::read(&path).unwrap();
    let pages = bytes.len() / 4096;
    bytes[4096 * (pages - 1)..].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. } | OpenError::Database { .. }), "{error}");
}

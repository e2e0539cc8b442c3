use tempfile::TempDir;
use tokio::sync::oneshot;

use super::*;

struct Bench {
    writer: Writer,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("bootflip.db");
        Self { writer: Writer::new(schema::open(&path).unwrap(), path), _folder: folder }
    }

    /// Does the batches as one group.
    fn commit(&mut self, batches: impl IntoIterator<Item = Batch>) -> Vec<String> {
        let (mut group, answers): (Vec<_>, Vec<_>) = batches
            .into_iter()
            .map(|batch| {
                let (answer, answered) = oneshot::channel();
                ((batch, answer), answered)
            })
            .unzip();
        self.writer.commit(&mut group);
        let shown = |verdict: Result<Revision, StoreError>| match verdict {
            Ok(revision) => revision.to_string(),
            Err(StoreError::Conflict { key }) => format!("conflict on {key}"),
            Err(StoreError::Unavailable { operation, detail, .. }) => format!("cannot {operation}: {detail}"),
            Err(StoreError::TooLarge { .. } | StoreError::Corrupt { .. }) => unreachable!(),
        };
        answers.into_iter().map(|mut answer| shown(answer.try_recv().unwrap())).collect()
    }

    /// The answer of a pragma that counts pages.
    fn pages(&self, pragma: &str) -> i64 {
        self.writer.connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn batches_of_one_group_see_each_other_and_are_judged_apart() {
    let mut bench = Bench::new();
    let verdicts = bench.commit([
        Batch::new().expect("a", None).put("a", "1"),
        Batch::new().expect("a", None).put("a", "2"),
        Batch::new().expect("a", Some(1)).put("b", "1").put("a", "3"),
        Batch::new().put("c", "1").expect("a", Some(1)),
        Batch::new().put("d", "1"),
    ]);
    assert_eq!(verdicts, ["1", "conflict on a", "2", "conflict on a", "3"]);
    let keys = "SELECT group_concat(key || '=' || value, ' ') FROM (SELECT * FROM entries ORDER BY key)";
    let keys: String = bench.writer.connection.query_row(keys, [], |row| row.get(0)).unwrap();
    assert_eq!(keys, "a=3 b=1 d=1");
}

#[test]
fn one_group_is_one_transaction() {
    let mut bench = Bench::new();
    let other = Connection::open(&bench.writer.path).unwrap();
    let commits = || other.query_row("PRAGMA data_version", [], |row| row.get::<_, i64>(0)).unwrap();
    let before = commits();
    bench.commit((0..100).map(|i| Batch::new().put(format!("k{i}"), "x")));
    let frames: i64 =
        bench.writer.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(1)).unwrap();
    assert!(commits() > before);
    assert!(
        frames < 50,
        "a hundred commits of their own would write more than 200 pages, this wrote {frames}"
    );
}

#[test]
fn a_full_disk_refuses_each_batch_that_does_not_fit_and_goes_on_when_there_is_room() {
    let mut bench = Bench::new();
    assert_eq!(bench.commit([Batch::new().put("a", "1")]), ["1"]);
    let limit = bench.pages("page_count") + 2;
    assert_eq!(bench.pages(&format!("max_page_count = {limit}")), limit);
    let big = || vec![b'x'; 100_000];
    let full = "cannot write: database or disk is full";
    assert_eq!(bench.commit([Batch::new().put("b", big())]), [full]);
    let verdicts = bench.commit([
        Batch::new().put("c", "1"),
        Batch::new().put("d", "1").put("e", big()),
        Batch::new().expect("d", None).put("f", "1"),
        Batch::new().expect("a", None).put("g", "1"),
    ]);
    assert_eq!(verdicts, ["2", full, "3", "conflict on a"]);
    bench.pages("max_page_count = 100000");
    assert_eq!(bench.commit([Batch::new().expect("b", None).expect("d", None).put("b", big())]), ["4"]);
}

#[test]
fn the_oldest_removed_keys_are_forgotten_and_a_watcher_from_before_is_refused() {
    let mut bench = Bench::new();
    let keys = || (0..17_000).map(|i| format!("k{i}"));
    bench.commit([keys().fold(Batch::new().put("kept", "x"), |batch, key| batch.put(key, "x"))]);
    for first in (0..3000).step_by(30) {
        bench.commit([keys().skip(first).take(30).fold(Batch::new(), |batch, key| batch.delete(key))]);
    }
    bench.commit([keys().skip(3000).fold(Batch::new(), |batch, key| batch.delete(key))]);
    let meta = "SELECT value FROM meta WHERE name = 'forgotten'";
    let forgotten: i64 = bench.writer.connection.query_row(meta, [], |row| row.get(0)).unwrap();
    assert_eq!(
        forgotten, 22,
        "616 of 17,000 are beyond 16,384: 20 commits of 30 and a part of the next, after the first commit"
    );
    let forgotten = revision(forgotten);
    let open = |bench: &mut Bench, from| bench.writer.watch(from).unwrap().try_recv().is_ok();
    assert!(!open(&mut bench, forgotten - 1));
    assert!(open(&mut bench, forgotten));
    assert!(open(&mut bench, 0), "from the start everything that exists is known");
}

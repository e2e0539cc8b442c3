//! Counts what passes: the boot services' signs, the database's commits, the calls to pools, the jobs' changes. Each
//! wraps what it counts, so that neither side knows. A shell.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{Router, extract, http::header, response::IntoResponse, routing::get};
use futures_util::{FutureExt, future::BoxFuture};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use crate::{
    boot::{
        going::Going,
        sink::{Noted, Report, ReportAnswer, Seen, Sink, Transfer, Unavailable},
    },
    dhcp,
    metrics::{self, JobNow, Metrics, Now},
    provision::{Job, executor::Executor, job::State},
    secret::TokenHash,
    store::{Batch, Change, Entry, Revision, Store, StoreError, Watch},
    syslog,
    xen::{CallError, Method, Transport, Value},
};

/// A sink whose events are counted.
#[derive(Debug)]
pub struct CountedSink {
    /// Where they go.
    pub inner: Arc<dyn Sink>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

impl Sink for CountedSink {
    fn noted(&self, noted: Noted) {
        self.inner.noted(noted);
    }

    fn going(&self, going: &Arc<Going>) {
        self.inner.going(going);
    }

    fn seen(&self, seen: Seen) {
        self.metrics.sign(seen.sign);
        self.inner.seen(seen);
    }

    fn transferred(&self, transfer: Transfer) {
        self.metrics.transfer(&transfer);
        self.inner.transferred(transfer);
    }

    fn answer_fetched<'a>(
        &'a self,
        token: TokenHash,
        peer: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        let answer = self.inner.answer_fetched(token, peer);
        answer.inspect(|answer| self.metrics.answer_file(answer)).boxed()
    }

    fn report(&self, report: Report) -> BoxFuture<'_, ReportAnswer> {
        self.inner.report(report).inspect(|answer| self.metrics.report(*answer)).boxed()
    }
}

/// A store whose commits are measured.
#[derive(Debug)]
pub struct MeasuredStore {
    /// The store.
    pub inner: Arc<dyn Store>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

impl Store for MeasuredStore {
    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Entry>, StoreError>> {
        self.inner.get(key)
    }

    fn list<'a>(&'a self, prefix: &'a str) -> BoxFuture<'a, Result<Vec<Entry>, StoreError>> {
        self.inner.list(prefix)
    }

    fn commit(&self, batch: Batch) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let begun = Instant::now();
        self.inner.commit(batch).inspect(move |answer| self.metrics.commit(answer, begun.elapsed())).boxed()
    }

    fn watch(&self, from: Revision) -> BoxFuture<'_, Result<Watch, StoreError>> {
        self.inner.watch(from)
    }
}

/// A pool whose calls are measured.
#[derive(Debug)]
pub struct MeasuredPool {
    /// Its name in the configuration.
    pub pool: String,
    /// Its calls.
    pub inner: Arc<dyn Transport>,
    /// Where they are counted.
    pub metrics: Arc<Metrics>,
}

impl Transport for MeasuredPool {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        let begun = Instant::now();
        let call = self.inner.call(method, params);
        call.inspect(move |answer| self.metrics.call(&self.pool, method, answer, begun.elapsed())).boxed()
    }
}

/// The state of every job in the store: what stood there before this run is no news.
pub async fn states(store: &dyn Store) -> Result<HashMap<String, State>, StoreError> {
    let mut states = HashMap::new();
    for Entry { key, value, revision } in store.list(JOBS).await? {
        changed(&mut states, &Change { revision, key, value: Some(value) });
    }
    Ok(states)
}

/// Counts what becomes of jobs until `stop`. Of a watcher that fell behind only the last state of each job is counted.
pub async fn follow_jobs(
    store: Arc<dyn Store>,
    mut states: HashMap<String, State>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    while !stop.is_cancelled() {
        if let Ok(mut watch) = store.watch(0).await {
            while let Some(Some(change)) = stop.run_until_cancelled(watch.recv()).await {
                if let Some((before, job)) = changed(&mut states, &change)
                    && before != Some(job.state)
                {
                    metrics.advanced(job.state, job.reason, lasted(&job));
                }
            }
        }
        stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
    }
}

const JOBS: &str = "jobs/";

/// Before a feed that broke is opened again.
const PAUSE: Duration = Duration::from_secs(5);

/// The job of a change, and the state that it had before.
fn changed(states: &mut HashMap<String, State>, change: &Change) -> Option<(Option<State>, Job)> {
    let id = change.key.strip_prefix(JOBS)?;
    let Some(value) = &change.value else {
        states.remove(id);
        return None;
    };
    let job: Job = serde_json::from_slice(value).ok()?;
    Some((states.insert(id.to_owned(), job.state), job))
}

fn lasted(job: &Job) -> Duration {
    job.history.last().map_or(Duration::ZERO, |mark| mark.at.since(job.created))
}

/// `/metrics`; its scope is `Scope::Read`.
pub(in crate::app) fn read_routes() -> Router<Arc<Desk>> {
    Router::new().route("/metrics", get(scrape))
}

async fn scrape(extract::State(desk): extract::State<Arc<Desk>>) -> impl IntoResponse {
    desk.metrics.observe(&look(&desk));
    ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], desk.metrics.render())
}

/// What only is known when it is asked for.
fn look(desk: &Desk) -> Now {
    let health = desk.health();
    let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let pools = desk.known.problems().into_iter().map(|(pool, problem)| (pool, problem.is_none()));
    let mut did = BTreeMap::new();
    for (what, times) in desk.dhcp.iter().flat_map(dhcp::server::Board::tally) {
        *did.entry(what).or_insert(0_u64) += times;
    }
    Now {
        jobs: jobs(&desk.executor),
        machines: count(health.machines),
        pools: pools.collect(),
        dhcp_neighbours: count(health.dhcp.iter().map(|status| status.neighbours.len()).sum()),
        dhcp_nearly_full: count(health.dhcp.iter().map(|status| status.nearly_full.len()).sum()),
        dhcp: did.into_iter().collect(),
        syslog: desk.syslog.as_ref().map(syslog::server::Board::read),
        store_bytes: store_bytes(&desk.config.now().state_dir.join(super::DATABASE)),
        memory_bytes: resident_bytes(),
        open_files: count(std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)),
        since_seconds: desk.began.millis() / 1000,
    }
}

fn jobs(executor: &Executor) -> Vec<JobNow> {
    executor.standings().into_iter().map(|(state, waiting)| JobNow { state, waiting }).collect()
}

/// The database and its log of changes, which SQLite keeps beside it.
fn store_bytes(database: &Path) -> u64 {
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    let size = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
    size(database) + size(Path::new(&log))
}

/// proc_pid_status(5): `VmRSS:  12345 kB`.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[test]
    fn the_process_knows_its_own_size() {
        assert!(resident_bytes() > 1 << 20, "a process has more than a mebibyte");
        assert_eq!(store_bytes(Path::new("/none")), 0);
    }

    #[tokio::test]
    async fn commits_are_counted_by_what_came_of_them() {
        let metrics = Arc::new(Metrics::new());
        let inner: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let store = MeasuredStore { inner, metrics: Arc::clone(&metrics) };
        store.commit(Batch::new().put("a", "1")).await.unwrap();
        store.commit(Batch::new().expect("a", None).put("a", "2")).await.unwrap_err();
        assert_eq!(store.get("a").await.unwrap().unwrap().value, b"1");
        let text = metrics.render();
        for line in [
            "bootflip_store_commits_total{outcome=\"ok\"} 1",
            "bootflip_store_commits_total{outcome=\"conflict\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}

//! What is counted and measured, for Prometheus. Pure but for its counters: who sees an event calls the method of that
//! name; what is only known when asked (queues, sizes) comes in a [`Now`] with each scrape.
//!
//! Names are `bootflip_<part>_<what>_<unit or total>`; labels have values of closed lists (`labels`), and the configured
//! pools. `docs/metrics.md` describes each, and a test compares.

mod labels;

use std::{
    borrow::Cow,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    boot::sink::{ReportAnswer, Sign, Transfer, Unavailable},
    provision::{Reason, job::State},
    store::StoreError,
    syslog::Counts,
    xen::{CallError, Method},
};

/// What [`Metrics::render`] gives (OpenMetrics 1.0), for a `Content-Type`.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels: name and value each.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// A job as the gauges see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobNow {
    /// How far it is.
    pub state: State,
    /// It waits for its pool.
    pub waiting: bool,
}

/// What DHCP did, by what and by kind, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DhcpDid {
    /// A reply of this kind was sent.
    Replied(&'static str),
    /// A packet of a client was not answered, for this reason.
    Ignored(&'static str),
    /// A datagram was no request, for this reason.
    Refused(&'static str),
}

/// What is known only when asked.
#[derive(Debug, Clone, Default)]
pub struct Now {
    /// Jobs that have not ended.
    pub jobs: Vec<JobNow>,
    /// Machines that the boot services know.
    pub machines: u64,
    /// Each pool, and whether it answered last.
    pub pools: Vec<(String, bool)>,
    /// Other DHCP servers that were heard.
    pub dhcp_neighbours: u64,
    /// Ranges of which nine tenths are leased.
    pub dhcp_nearly_full: u64,
    /// What DHCP did so far.
    pub dhcp: Vec<(DhcpDid, u64)>,
    /// What came by syslog so far; `None`: the receiver is off.
    pub syslog: Option<Counts>,
    /// Bytes of the database with its log of changes.
    pub store_bytes: u64,
    /// Resident memory of the process, in bytes.
    pub memory_bytes: u64,
    /// Open files of the process.
    pub open_files: u64,
    /// When the server began, in seconds since 1970.
    pub since_seconds: u64,
}

/// All of it.
pub struct Metrics {
    registry: Registry,
    signs: Counters<1>,
    transfers: Counters<2>,
    sent_bytes: Counters<1>,
    transfer_seconds: Histograms<1>,
    answer_files: Counters<1>,
    reports: Counters<1>,
    transitions: Counters<1>,
    reasons: Counters<1>,
    job_seconds: Histograms<1>,
    calls: Counters<3>,
    call_seconds: Histograms<2>,
    commits: Counters<1>,
    commit_seconds: Histogram,
    dhcp_replies: Counters<1>,
    dhcp_ignored: Counters<1>,
    dhcp_refused: Counters<1>,
    syslog_lines: Counters<1>,
    gauges: ScrapeGauges,
}

/// What is set by each scrape.
#[derive(Default)]
struct ScrapeGauges {
    jobs: Gauges<1>,
    waiting: Gauge,
    machines: Gauge,
    pools: Gauges<1>,
    neighbours: Gauge,
    nearly_full: Gauge,
    store_bytes: Gauge,
    memory_bytes: Gauge,
    open_files: Gauge,
    since: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn one(name: &'static str, value: impl Into<Cow<'static, str>>) -> Labels<1> {
    [(name, value.into())]
}

/// From a millisecond to a quarter of a minute.
fn call_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

/// From a hundredth of a second to a quarter of an hour.
fn transfer_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 4.0, 9))
}

/// From a minute to four hours.
fn job_buckets() -> Histogram {
    Histogram::new([60.0, 120.0, 300.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0, 7200.0, 14_400.0])
}

impl Metrics {
    /// All at zero; series whose labels are known stand from the start, so that a first event is an increase.
    pub fn new() -> Self {
        let new = Self {
            registry: Registry::with_prefix("bootflip"),
            signs: Counters::default(),
            transfers: Counters::default(),
            sent_bytes: Counters::default(),
            transfer_seconds: Family::new_with_constructor(transfer_buckets),
            answer_files: Counters::default(),
            reports: Counters::default(),
            transitions: Counters::default(),
            reasons: Counters::default(),
            job_seconds: Family::new_with_constructor(job_buckets),
            calls: Counters::default(),
            call_seconds: Family::new_with_constructor(call_buckets),
            commits: Counters::default(),
            commit_seconds: call_buckets(),
            dhcp_replies: Counters::default(),
            dhcp_ignored: Counters::default(),
            dhcp_refused: Counters::default(),
            syslog_lines: Counters::default(),
            gauges: ScrapeGauges::default(),
        };
        new.begin();
        new.registered()
    }

    fn begin(&self) {
        for sign in labels::SIGNS {
            drop(self.signs.get_or_create(&one("sign", labels::sign(sign))));
        }
        for protocol in labels::PROTOCOLS {
            drop(self.sent_bytes.get_or_create(&one("protocol", protocol.label())));
            drop(self.transfer_seconds.get_or_create(&one("protocol", protocol.label())));
        }
        for outcome in labels::ANSWER_FILES {
            drop(self.answer_files.get_or_create(&one("outcome", outcome)));
        }
        for answer in labels::REPORT_ANSWERS {
            drop(self.reports.get_or_create(&one("answer", labels::report(answer))));
        }
        for state in State::ALL {
            drop(self.transitions.get_or_create(&one("state", labels::state(state))));
        }
        for reason in Reason::ALL {
            drop(self.reasons.get_or_create(&one("reason", reason.label())));
        }
        for state in State::ALL.into_iter().filter(|state| state.is_terminal()) {
            drop(self.job_seconds.get_or_create(&one("state", labels::state(state))));
        }
        for outcome in labels::COMMITS {
            drop(self.commits.get_or_create(&one("outcome", outcome)));
        }
    }

    fn registered(mut self) -> Self {
        self.register_boot();
        self.register_jobs();
        self.register_pools();
        self.register_process();
        self
    }

    fn register_boot(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "boot_signs",
            "Signs of life of machines, as the boot services saw them",
            self.signs.clone(),
        );
        registry.register("boot_transfers", "Transfers of boot files that ended", self.transfers.clone());
        registry.register("boot_sent_bytes", "Bytes of boot files that left", self.sent_bytes.clone());
        let help = "How long transfers of boot files took";
        registry.register("boot_transfer_duration_seconds", help, self.transfer_seconds.clone());
        registry.register("boot_answer_files", "Answer files that were asked for", self.answer_files.clone());
        registry.register("boot_reports", "Reports of installers and new systems", self.reports.clone());
        let help = "Machines that the boot services know";
        registry.register("boot_known_machines", help, self.gauges.machines.clone());
        registry.register("dhcp_replies", "DHCP replies that were sent", self.dhcp_replies.clone());
        registry.register("dhcp_ignored", "DHCP requests that were not answered", self.dhcp_ignored.clone());
        registry.register("dhcp_refused", "Datagrams that are no DHCP request", self.dhcp_refused.clone());
        let help = "Other DHCP servers that were heard on our networks";
        registry.register("dhcp_foreign_servers", help, self.gauges.neighbours.clone());
        let help = "DHCP ranges of which nine tenths are leased";
        registry.register("dhcp_nearly_full_ranges", help, self.gauges.nearly_full.clone());
        registry.register("syslog_lines", "Lines that came by syslog", self.syslog_lines.clone());
    }

    fn register_jobs(&mut self) {
        let registry = &mut self.registry;
        registry.register("provision_jobs", "Jobs that have not ended", self.gauges.jobs.clone());
        let help = "Jobs that wait for their pool";
        registry.register("provision_waiting_jobs", help, self.gauges.waiting.clone());
        registry.register("provision_transitions", "Jobs that came into a state", self.transitions.clone());
        let help = "Jobs that ended or wait for a person, by reason";
        registry.register("provision_reasons", help, self.reasons.clone());
        let help = "From a job's making to its end";
        registry.register("provision_job_duration_seconds", help, self.job_seconds.clone());
    }

    fn register_pools(&mut self) {
        let registry = &mut self.registry;
        registry.register("xen_calls", "XenAPI calls that ended", self.calls.clone());
        registry.register(
            "xen_call_duration_seconds",
            "How long XenAPI calls took",
            self.call_seconds.clone(),
        );
        registry.register("xen_pool_up", "Whether a pool answered last: 1 or 0", self.gauges.pools.clone());
    }

    fn register_process(&mut self) {
        let registry = &mut self.registry;
        registry.register("store_commits", "Commits to the database", self.commits.clone());
        let help = "How long commits to the database took";
        registry.register("store_commit_duration_seconds", help, self.commit_seconds.clone());
        let help = "Bytes of the database on disk";
        registry.register("store_size_bytes", help, self.gauges.store_bytes.clone());
        let help = "Resident memory of the server";
        registry.register("process_resident_bytes", help, self.gauges.memory_bytes.clone());
        registry.register("process_open_files", "Open files of the server", self.gauges.open_files.clone());
        let help = "When the server began, in seconds since 1970";
        registry.register("process_start_time_seconds", help, self.gauges.since.clone());
        let version: Gauges<1> = Gauges::default();
        version.get_or_create(&one("version", env!("CARGO_PKG_VERSION"))).set(1);
        registry.register("process_build", "1, with the version as its label", version);
    }

    /// A sign of a machine.
    pub fn sign(&self, sign: Sign) {
        self.signs.get_or_create(&one("sign", labels::sign(sign))).inc();
    }

    /// A transfer that ended.
    pub fn transfer(&self, transfer: &Transfer) {
        let protocol = transfer.protocol.label();
        let both = [("protocol", protocol.into()), ("outcome", transfer.outcome.into())];
        self.transfers.get_or_create(&both).inc();
        self.sent_bytes.get_or_create(&one("protocol", protocol)).inc_by(transfer.bytes);
        let seconds = transfer.took.as_secs_f64();
        self.transfer_seconds.get_or_create(&one("protocol", protocol)).observe(seconds);
    }

    /// An answer file was asked for.
    pub fn answer_file(&self, given: &Result<bool, Unavailable>) {
        self.answer_files.get_or_create(&one("outcome", labels::answer_file(given))).inc();
    }

    /// A report came.
    pub fn report(&self, answer: ReportAnswer) {
        self.reports.get_or_create(&one("answer", labels::report(answer))).inc();
    }

    /// A job came into a state, with this reason; of one that ended: after so long.
    pub fn advanced(&self, state: State, reason: Option<Reason>, lasted: Duration) {
        self.transitions.get_or_create(&one("state", labels::state(state))).inc();
        if !state.is_terminal() && state != State::NeedsOperator {
            return;
        }
        if let Some(reason) = reason {
            self.reasons.get_or_create(&one("reason", reason.label())).inc();
        }
        if state.is_terminal() {
            let seconds = lasted.as_secs_f64();
            self.job_seconds.get_or_create(&one("state", labels::state(state))).observe(seconds);
        }
    }

    /// A call to this pool ended.
    pub fn call<T>(&self, pool: &str, method: Method, answer: &Result<T, CallError>, took: Duration) {
        let (pool, name) = (Cow::from(pool.to_owned()), Cow::from(method.name()));
        let all =
            [("pool", pool.clone()), ("method", name.clone()), ("outcome", labels::call(answer).into())];
        self.calls.get_or_create(&all).inc();
        let both = [("pool", pool), ("method", name)];
        self.call_seconds.get_or_create(&both).observe(took.as_secs_f64());
    }

    /// A commit ended.
    pub fn commit<T>(&self, answer: &Result<T, StoreError>, took: Duration) {
        self.commits.get_or_create(&one("outcome", labels::commit(answer))).inc();
        self.commit_seconds.observe(took.as_secs_f64());
    }

    /// Sets what is known only when asked.
    pub fn observe(&self, now: &Now) {
        let gauges = &self.gauges;
        for state in State::ALL.into_iter().filter(|state| !state.is_terminal()) {
            let jobs = now.jobs.iter().filter(|job| job.state == state).count();
            gauges.jobs.get_or_create(&one("state", labels::state(state))).set(signed(jobs));
        }
        gauges.waiting.set(signed(now.jobs.iter().filter(|job| job.waiting).count()));
        gauges.machines.set(signed(now.machines));
        for (pool, up) in &now.pools {
            gauges.pools.get_or_create(&one("pool", pool.clone())).set(i64::from(*up));
        }
        gauges.neighbours.set(signed(now.dhcp_neighbours));
        gauges.nearly_full.set(signed(now.dhcp_nearly_full));
        gauges.store_bytes.set(signed(now.store_bytes));
        gauges.memory_bytes.set(signed(now.memory_bytes));
        gauges.open_files.set(signed(now.open_files));
        gauges.since.set(signed(now.since_seconds));
        for (did, count) in &now.dhcp {
            let (family, label) = match did {
                DhcpDid::Replied(kind) => (&self.dhcp_replies, one("kind", *kind)),
                DhcpDid::Ignored(why) => (&self.dhcp_ignored, one("why", *why)),
                DhcpDid::Refused(why) => (&self.dhcp_refused, one("why", *why)),
            };
            raise(&family.get_or_create(&label), *count);
        }
        if let Some(Counts { filed, strangers, empty, too_many }) = now.syslog {
            for (outcome, count) in
                [("filed", filed), ("strangers", strangers), ("empty", empty), ("too_many", too_many)]
            {
                raise(&self.syslog_lines.get_or_create(&one("outcome", outcome)), count);
            }
        }
    }

    /// All of it as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // A String takes everything; what is written before an error would be shown as it is.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Takes over a count that somebody else keeps.
fn raise(counter: &Counter<u64, AtomicU64>, count: u64) {
    counter.inner().fetch_max(count, Ordering::Relaxed);
}

fn signed<T: TryInto<i64>>(count: T) -> i64 {
    count.try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        net::{IpAddr, Ipv4Addr},
    };

    use super::*;
    use crate::boot::sink::Protocol;

    /// After one event of each kind.
    fn eventful() -> Metrics {
        let metrics = Metrics::new();
        metrics.sign(Sign::Kernel);
        metrics.transfer(&Transfer {
            protocol: Protocol::Tftp,
            mac: None,
            job: None,
            peer: IpAddr::V4(Ipv4Addr::LOCALHOST),
            file: "secret/path".to_owned(),
            bytes: 70,
            took: Duration::from_millis(20),
            outcome: "sent",
        });
        metrics.answer_file(&Ok(true));
        metrics.report(ReportAnswer::Unknown);
        metrics.advanced(State::Failed, Some(Reason::NoDhcp), Duration::from_secs(130));
        metrics.advanced(State::Booting, None, Duration::ZERO);
        let lost: Result<(), _> = Err(CallError::Unreachable { detail: "no route to 10.0.0.1".to_owned() });
        metrics.call("main", Method::VmGetRecord, &lost, Duration::from_millis(3));
        metrics.commit(&Ok(7), Duration::from_millis(3));
        metrics
    }

    #[test]
    fn each_event_is_one_more_of_its_kind() {
        let text = eventful().render();
        for line in [
            r#"bootflip_boot_signs_total{sign="kernel"} 1"#,
            r#"bootflip_boot_signs_total{sign="dhcp"} 0"#,
            r#"bootflip_boot_transfers_total{protocol="tftp",outcome="sent"} 1"#,
            r#"bootflip_boot_sent_bytes_total{protocol="tftp"} 70"#,
            r#"bootflip_boot_transfer_duration_seconds_count{protocol="tftp"} 1"#,
            r#"bootflip_boot_answer_files_total{outcome="given"} 1"#,
            r#"bootflip_boot_reports_total{answer="unknown"} 1"#,
            r#"bootflip_provision_transitions_total{state="failed"} 1"#,
            r#"bootflip_provision_reasons_total{reason="no-dhcp"} 1"#,
            r#"bootflip_provision_job_duration_seconds_bucket{le="300.0",state="failed"} 1"#,
            r#"bootflip_xen_calls_total{pool="main",method="VM.get_record",outcome="unreachable"} 1"#,
            r#"bootflip_store_commits_total{outcome="ok"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
        assert!(
            !text.contains("secret") && !text.contains("10.0.0.1"),
            "what is not of a closed list is no label"
        );
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn every_metric_is_documented_with_its_type() {
        let metrics = eventful();
        let did = [DhcpDid::Replied("offer"), DhcpDid::Ignored("not_pxe"), DhcpDid::Refused("too_short")];
        metrics.observe(&Now {
            pools: vec![("main".to_owned(), true)],
            dhcp: did.map(|did| (did, 1)).to_vec(),
            syslog: Some(Counts::default()),
            ..Now::default()
        });
        let text = metrics.render();
        let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(|line| {
            let (name, kind) = line.split_once(' ').unwrap();
            (format!("{name}{}", if kind == "counter" { "_total" } else { "" }), kind.to_owned())
        });
        let documented = include_str!("../../docs/metrics.md").lines().filter_map(|line| {
            let mut cells = line.strip_prefix("| `bootflip_")?.split(" | ");
            let name = cells.next()?.trim_end_matches('`');
            Some((format!("bootflip_{name}"), cells.next()?.to_owned()))
        });
        let (told, documented): (BTreeSet<_>, BTreeSet<_>) = (told.collect(), documented.collect());
        assert_eq!(told, documented);
    }

    #[test]
    fn what_is_known_only_when_asked_is_as_last_told() {
        let metrics = Metrics::new();
        let job = JobNow { state: State::Installing, waiting: true };
        let counts = Counts { filed: 5, ..Counts::default() };
        let mut now = Now {
            jobs: vec![job, job],
            pools: vec![("main".to_owned(), true)],
            dhcp: vec![(DhcpDid::Replied("offer"), 4)],
            syslog: Some(counts),
            ..Now::default()
        };
        metrics.observe(&now);
        now.jobs.pop();
        now.pools = vec![("main".to_owned(), false)];
        metrics.observe(&now);
        let text = metrics.render();
        for line in [
            r#"bootflip_provision_jobs{state="installing"} 1"#,
            "bootflip_provision_waiting_jobs 1",
            r#"bootflip_xen_pool_up{pool="main"} 0"#,
            r#"bootflip_dhcp_replies_total{kind="offer"} 4"#,
            r#"bootflip_syslog_lines_total{outcome="filed"} 5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}

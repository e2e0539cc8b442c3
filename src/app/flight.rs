//! The flight recorder as the rest of the program shares it: a [`Sink`] before the executor's, a witness of its calls,
//! and news for pages that are open. A shell.
//!
//! Invariant: recording never holds anybody up: a lock for as long as a push takes, and news that nobody waits for.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;

use crate::{
    boot::{
        Gate,
        going::Going,
        sink::{Noted, Report, ReportAnswer, Seen, Sink, Transfer, Unavailable},
    },
    clock::{Clock, Timestamp},
    machine::MacAddr,
    provision::{
        executor::Witness,
        job::{Effect, Job},
    },
    recorder::Recorder,
    secret::TokenHash,
    xen::CallError,
};

/// News that a slow page may be behind; then it reads all anew.
const NEWS: usize = 1024;

/// Something that an open page may show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// A machine has another record.
    Machine(MacAddr),
    /// The job of this VM changed.
    Job {
        /// The VM's uuid.
        vm_uuid: String,
        /// The job's id.
        job: String,
    },
}

/// The recorder, shared.
#[derive(Debug, Clone)]
pub struct Flight {
    recorder: Arc<Mutex<Recorder>>,
    news: broadcast::Sender<News>,
    going: Arc<Mutex<Vec<Weak<Going>>>>,
    gate: Gate,
    clock: Arc<dyn Clock>,
}

impl Flight {
    /// An empty one.
    pub fn new(gate: Gate, clock: Arc<dyn Clock>) -> Self {
        Self {
            recorder: Arc::default(),
            going: Arc::default(),
            news: broadcast::channel(NEWS).0,
            gate,
            clock,
        }
    }

    /// Reads the recorder.
    pub fn read<T>(&self, look: impl FnOnce(&Recorder) -> T) -> T {
        look(&self.locked())
    }

    /// What happens from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        self.news.subscribe()
    }

    /// Tells the open pages.
    pub fn tell(&self, news: News) {
        // Nobody looks: that is fine.
        let _ = self.news.send(news);
    }

    /// The transfers that go on, those that began last first.
    pub fn going(&self) -> Vec<Arc<Going>> {
        let all = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().rev().filter_map(Weak::upgrade).collect()
    }

    fn began(&self, going: &Arc<Going>) {
        let mut all = self.going.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(going));
        drop(all);
        self.tell(News::Machine(going.mac));
    }

    fn locked(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, mac: MacAddr, note: impl FnOnce(&mut Recorder, Timestamp)) {
        note(&mut self.locked(), self.clock.now());
        self.tell(News::Machine(mac));
    }
}

impl Witness for Flight {
    fn called(&self, job: &Job, effect: Effect, call: &'static str, failed: Option<&CallError>) {
        let Some(mac) = job.mac else { return };
        let failed = failed.map(ToString::to_string);
        self.note(mac, |recorder, now| recorder.called(mac, call, effect.label(), failed, now));
    }
}

/// A sink that records, and passes everything on.
#[derive(Debug)]
pub struct Recording {
    /// The recorder.
    pub flight: Flight,
    /// Who decides.
    pub inner: Arc<dyn Sink>,
}

impl Sink for Recording {
    fn noted(&self, noted: Noted) {
        let (mac, known) = (noted.mac, self.flight.gate.knows(noted.mac));
        self.flight.note(mac, |recorder, now| recorder.noted(noted.clone(), known, now));
        self.inner.noted(noted);
    }

    fn going(&self, going: &Arc<Going>) {
        self.flight.began(going);
        self.inner.going(going);
    }

    fn seen(&self, seen: Seen) {
        let Seen { mac, sign, peer } = seen;
        self.flight.note(mac, |recorder, now| recorder.seen(mac, sign, peer, now));
        self.inner.seen(seen);
    }

    fn transferred(&self, transfer: Transfer) {
        if let Some(mac) = transfer.mac {
            self.flight.note(mac, |recorder, now| recorder.transferred(&transfer, now));
        }
        self.inner.transferred(transfer);
    }

    fn answer_fetched<'a>(
        &'a self,
        token: TokenHash,
        peer: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        self.inner.answer_fetched(token, peer)
    }

    fn report(&self, report: Report) -> BoxFuture<'_, ReportAnswer> {
        Box::pin(async move {
            let (stage, peer) = (report.stage.clone(), report.peer);
            let answer = self.inner.report(report).await;
            // Who has no token of ours is known by its address alone.
            if let Some(mac) = peer.and_then(|peer| self.flight.gate.who(peer)) {
                self.flight.note(mac, |recorder, now| recorder.reported(mac, &stage, answer, peer, now));
            }
            answer
        })
    }
}

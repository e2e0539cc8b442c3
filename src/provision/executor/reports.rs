//! What the boot services tell: signs are folded in memory until the next look; the answer file's fetch and every
//! report are durable before they are answered.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::BoxFuture;

use super::{Executor, OperationError};
use crate::{
    boot::{
        going::Going,
        sink::{Noted, Report, ReportAnswer, Seen, Sign, Sink, Transfer, Unavailable},
    },
    clock::Timestamp,
    machine::MacAddr,
    provision::{
        intake,
        job::{GateState, Job},
        step::{ANSWER_FETCHES, Event},
    },
    secret::TokenHash,
};

/// Transfers kept, of all jobs together.
const TRANSFERS_KEPT: usize = 2000;
/// Signs kept per job between two looks.
const SIGNS_KEPT: usize = 32;

impl Executor {
    /// Stores the signs that came in since the last look.
    pub(super) async fn take_signs(&self, id: &str) -> Result<(), OperationError> {
        let signs = self.memory().signs.remove(id).unwrap_or_default();
        for sign in signs {
            self.apply(id, &Event::Sign(sign)).await?;
        }
        Ok(())
    }

    async fn fetched(&self, token: TokenHash) -> Result<bool, OperationError> {
        let known = self.memory().renders.get(&token).cloned();
        let Some(id) = known else { return Ok(false) };
        let Some(job) = self.job(&id).await? else { return Ok(false) };
        if job.gate == GateState::Closed || job.answer_fetches >= ANSWER_FETCHES {
            return Ok(false);
        }
        let after = self.apply(&id, &Event::AnswerFetched).await?;
        self.parts.wakers.wake(&id);
        Ok(after.answer_fetches > job.answer_fetches)
    }

    async fn take_report(&self, report: Report) -> Result<ReportAnswer, OperationError> {
        let known = self.memory().tokens.get(&report.token).cloned();
        let Some((id, channel)) = known else { return Ok(ReportAnswer::Unknown) };
        let Some(job) = self.job(&id).await? else { return Ok(ReportAnswer::Unknown) };
        let (event, answer) = intake::judge(&job, &report, channel, self.parts.clock.now());
        let Some(event) = event else { return Ok(answer) };
        // After a restart of the server this may be the first that is heard of the machine's address.
        if let (Some(mac), Some(peer)) = (job.mac, report.peer) {
            self.parts.gate.met(mac, peer);
        }
        let after = self.apply(&id, &event).await?;
        self.parts.wakers.wake(&id);
        // Of reports that come together one wins; the others find it taken.
        let mine = answer != ReportAnswer::Accepted || took(&after, &job);
        Ok(if mine { answer } else { ReportAnswer::Already })
    }
}

fn took(after: &Job, before: &Job) -> bool {
    after.stages.len() > before.stages.len()
}

impl Executor {
    /// The transfers of a job's machine that ended lately, the oldest first.
    pub fn transfers(&self, job: &str) -> Vec<(Timestamp, Transfer)> {
        let memory = self.memory();
        let of_job = memory.transfers.iter().filter(|(_, transfer)| transfer.job.as_deref() == Some(job));
        of_job.cloned().collect()
    }

    /// The job of a machine, while it has one.
    pub fn job_of(&self, mac: MacAddr) -> Option<String> {
        self.memory().macs.get(&mac).cloned()
    }

    /// All transfers that ended lately, the oldest first.
    pub fn all_transfers(&self) -> Vec<(Timestamp, Transfer)> {
        self.memory().transfers.iter().cloned().collect()
    }
}

impl Sink for Executor {
    /// Nothing is decided by a notice.
    fn noted(&self, _: Noted) {}

    fn going(&self, _: &Arc<Going>) {}

    fn seen(&self, seen: Seen) {
        let id = {
            let mut memory = self.memory();
            let Some(id) = memory.macs.get(&seen.mac).cloned() else { return };
            let known = memory.live.get(&id).is_some_and(|job| job.signs.contains_key(&seen.sign));
            if known && !matches!(seen.sign, Sign::NetbootRefused | Sign::Lease) {
                return;
            }
            let signs = memory.signs.entry(id.clone()).or_default();
            if signs.len() >= SIGNS_KEPT || signs.contains(&seen.sign) {
                return;
            }
            signs.push(seen.sign);
            id
        };
        self.parts.wakers.wake(&id);
    }

    fn transferred(&self, mut transfer: Transfer) {
        let now = self.parts.clock.now();
        let mut memory = self.memory();
        if transfer.job.is_none() {
            transfer.job = transfer.mac.and_then(|mac| memory.macs.get(&mac).cloned());
        }
        // Requests of machines without a job are in the log.
        if transfer.job.is_some() {
            if memory.transfers.len() >= TRANSFERS_KEPT {
                memory.transfers.pop_front();
            }
            memory.transfers.push_back((now, transfer));
        }
    }

    fn answer_fetched<'a>(
        &'a self,
        token: TokenHash,
        _peer: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(async move {
            self.fetched(token).await.map_err(|error| {
                tracing::error!(%error, "an answer file could not be given out");
                Unavailable
            })
        })
    }

    fn report(&self, report: Report) -> BoxFuture<'_, ReportAnswer> {
        Box::pin(async move {
            let stage = report.stage.clone();
            self.take_report(report).await.unwrap_or_else(|error| {
                tracing::error!(%error, stage, "a report could not be stored");
                ReportAnswer::Later
            })
        })
    }
}

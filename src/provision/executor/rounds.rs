//! One round of a job's effect: intent stored, VM looked at, plan asked, done what it says. What a pool that is away, a
//! VM that is gone and a job that waits for a person mean for that.

use std::time::Duration;

use super::{Executor, Flow, OperationError};
use crate::{
    clock::Timestamp,
    provision::{
        claim::{Claim, Found},
        job::{Effect, Intent, Job, StartRecord, State},
        plan::{Call, CallResult, Observed, Plan, SOON, TaskState, Trail, backoff, reason_of, while_busy},
        reason::Reason,
        recovery,
        step::{Event, Outcome},
    },
    xen::{CallError, Class, Method},
};

/// So often in a row the pool must say that it has no such VM before the job believes it.
const LOOKS_FOR_GONE: u32 = 3;

/// So often in a row a look may be answered with an error that says nothing; some ten minutes.
const LOOKS_THAT_FAIL: u32 = 24;

/// The pool has no VM of this uuid. Other records may go while we look (metrics do at each reboot).
fn is_gone(error: &CallError) -> bool {
    matches!(error, CallError::Failed { method, failure }
        if *method == Method::VmGetByUuid.name() && failure.is("UUID_INVALID"))
}

impl Executor {
    pub(super) async fn effect(&self, job: Job, effect: Effect) -> Result<Flow, OperationError> {
        let (job, fresh) = match job.intent {
            Some(_) => (job, false),
            None => match self.intend(&job, effect).await? {
                Ok(job) => (job, true),
                Err(flow) => return Ok(flow),
            },
        };
        let Some(intent) = job.intent.filter(|intent| intent.effect == effect) else {
            return Ok(Flow::Again);
        };
        if effect == Effect::Preflight {
            return self.preflight(&job).await;
        }
        let mut trail = self.trail(&job, intent, fresh);
        let flow = self.look_and_act(&job, effect, &mut trail).await;
        self.memory().trails.insert(job.id.clone(), (intent, job.attempt, trail));
        flow
    }

    async fn look_and_act(
        &self,
        job: &Job,
        effect: Effect,
        trail: &mut Trail,
    ) -> Result<Flow, OperationError> {
        let seen = match self.observe(job, effect, trail).await {
            Ok(seen) => seen,
            Err(error) => {
                trail.begun = None;
                return self.unobserved(job, &error).await;
            }
        };
        self.reached(job).await?;
        let now = self.parts.clock.now();
        trail.begun = trail.begun.or(Some(now));
        Ok(match (self.parts.decisions.plan)(effect, job, &seen, trail, now) {
            Plan::Done(outcome) => {
                self.forget_task(job, &seen, trail).await;
                self.note(job, Event::Done(outcome)).await?
            }
            Plan::Call(call) => self.call(job, effect, &seen, call, trail).await?,
            Plan::Arm => {
                let tokens = self.tokens_of(job);
                self.note(job, Event::Done(Outcome::Armed(tokens))).await?
            }
            Plan::SeenHalted => self.note(job, Event::SeenHalted).await?,
            Plan::LookAgain => self.note(job, Event::Outdated).await?,
            Plan::Wait(at) => Flow::Until(at.max(now + Duration::from_millis(1))),
            Plan::Fail(reason, detail) => self.note(job, Event::Failed(reason, detail)).await?,
            Plan::Park(reason, detail, differences) => {
                self.note(job, Event::Parked(reason, detail, differences)).await?
            }
        })
    }

    async fn call(
        &self,
        job: &Job,
        effect: Effect,
        seen: &Observed,
        call: Call,
        trail: &mut Trail,
    ) -> Result<Flow, OperationError> {
        let starts = matches!(call, Call::Start { .. });
        let result = self.make(job, seen, &call).await?;
        if starts {
            self.memory().starts.insert(job.id.clone(), self.parts.clock.now());
        }
        let failed = match &result {
            CallResult::Failed(error) => Some(error),
            CallResult::Ok { .. } => None,
        };
        self.parts.witness.called(job, effect, call.name(), failed);
        if let CallResult::Failed(error) = &result {
            tracing::debug!(job = %job.id, effect = %effect.label(), call = call.name(), %error, "a call failed");
            if Self::is_about_the_pool(error) {
                trail.begun = None;
                return self.unobserved(job, error).await;
            }
        }
        let task = match &result {
            CallResult::Ok { task } if starts => task.clone(),
            CallResult::Ok { .. } | CallResult::Failed(_) => None,
        };
        trail.calls.push((self.parts.clock.now(), call, result));
        if let Some(task) = task {
            self.apply(&job.id, &Event::TaskKnown(task)).await?;
        }
        Ok(Flow::Again)
    }

    /// The pool keeps few tasks: one that has ended and was read is taken away. That it cannot be is no matter.
    async fn forget_task(&self, job: &Job, seen: &Observed, trail: &Trail) {
        let ended = matches!(seen.task, Some(TaskState::Success | TaskState::Failed(_)));
        if let (true, Some(task), Ok(pool)) = (ended, trail.task(), self.pool(job)) {
            let _ = pool.calls(job.state).task_destroy(task).await;
        }
    }

    async fn note(&self, job: &Job, event: Event) -> Result<Flow, OperationError> {
        let after = self.apply(&job.id, &event).await?;
        // An event that changes nothing would come again at once.
        let same = after == *job;
        Ok(if same { Flow::Until(self.parts.clock.now() + job.deadlines.poll) } else { Flow::Again })
    }

    /// Stores the intent; a start's intent remembers the domain that was there before.
    async fn intend(&self, job: &Job, effect: Effect) -> Result<Result<Job, Flow>, OperationError> {
        let start = if matches!(effect, Effect::Start | Effect::StartPv) {
            let seen = match self.observe(job, effect, &Trail::default()).await {
                Ok(seen) => seen,
                Err(error) => return self.unobserved(job, &error).await.map(Err),
            };
            let now = self.parts.clock.now();
            if seen.is_busy() {
                return self.busy(job, &seen, now).await.map(Err);
            }
            self.memory().busy.remove(&job.id);
            if !seen.is_halted() {
                let detail = "the VM was started by somebody else before our start".to_owned();
                let event = match (job.state, effect) {
                    // As it was: running. Whoever started it did our work.
                    (State::Undoing, _) => Event::Done(Outcome::StartGivenUp(detail)),
                    (_, _) => Event::Failed(Reason::StartedBySomeone, detail),
                };
                return self.note(job, event).await.map(Err);
            }
            if effect == Effect::Start && job.has_run_since(&seen.metrics.start_time) {
                let detail = "the VM ran after it was looked at, and before our start".to_owned();
                return self.note(job, Event::Failed(Reason::StartedBySomeone, detail)).await.map(Err);
            }
            let (before, domid_before) = (seen.metrics.start_time, seen.vm.domid);
            Some(StartRecord {
                before,
                domid_before,
                intended: now,
                task: None,
                seen: None,
                domid: None,
                at: None,
            })
        } else {
            None
        };
        self.apply(&job.id, &Event::Intended(effect, start)).await.map(Ok)
    }

    /// Something else is done with the VM that is to be started: it is waited for, but not for ever.
    async fn busy(&self, job: &Job, seen: &Observed, now: Timestamp) -> Result<Flow, OperationError> {
        let since = *self.memory().busy.entry(job.id.clone()).or_insert(now);
        let trail = Trail { begun: Some(since), ..Trail::default() };
        match while_busy(job, seen, &trail, now) {
            Plan::Fail(reason, detail) => self.note(job, Event::Failed(reason, detail)).await,
            Plan::Park(_, detail, _) => self.note(job, Event::Done(Outcome::StartGivenUp(detail))).await,
            Plan::Done(_)
            | Plan::Call(_)
            | Plan::Arm
            | Plan::SeenHalted
            | Plan::LookAgain
            | Plan::Wait(_) => Ok(Flow::Until(now + SOON)),
        }
    }

    fn trail(&self, job: &Job, intent: Intent, fresh: bool) -> Trail {
        let mut memory = self.memory();
        let start_sent = Some(memory.starts.get(&job.id).copied().unwrap_or(self.born));
        match memory.trails.remove(&job.id) {
            Some((of, attempt, trail)) if of == intent && attempt == job.attempt => {
                Trail { start_sent, ..trail }
            }
            Some(_) | None => Trail { intended_here: fresh, start_sent, ..Trail::default() },
        }
    }

    async fn preflight(&self, job: &Job) -> Result<Flow, OperationError> {
        // A call with the nonce of an earlier look may still be under way.
        let nonce = job.nonce().map_or_else(|| (self.parts.nonce)(), str::to_owned);
        match self.clear(job, &nonce).await? {
            Ok(Ok(cleared)) => {
                self.reached(job).await?;
                self.note(job, Event::Done(Outcome::Cleared(Box::new(cleared)))).await
            }
            Ok(Err((Reason::ClaimedByOther, detail))) => self.claimed(job, detail).await,
            Ok(Err((reason, detail))) => self.note(job, Event::Failed(reason, detail)).await,
            Err(error) => self.unobserved(job, &error).await,
        }
    }

    /// E0 met a claim: of an earlier attempt of this job, which an operator abandoned or a coordinator brought back, or
    /// of somebody else.
    async fn claimed(&self, job: &Job, detail: String) -> Result<Flow, OperationError> {
        let seen = match self.observe(job, Effect::Preflight, &Trail::default()).await {
            Ok(seen) => seen,
            Err(error) => return self.unobserved(job, &error).await,
        };
        let event = match Claim::find(&seen.vm) {
            Found::Claim(claim) if claim.owner == self.parts.owner && claim.job == job.id => {
                Event::Unsettled(claim)
            }
            Found::Claim(_) | Found::Stray(_) | Found::Unreadable(_) | Found::Absent => {
                Event::Failed(Reason::ClaimedByOther, detail)
            }
        };
        self.note(job, event).await
    }

    /// The pool is away: the job waits, however long that takes. The VM is gone: that is an end.
    async fn unobserved(&self, job: &Job, error: &CallError) -> Result<Flow, OperationError> {
        let gone = is_gone(error);
        if error.class() == Class::Permanent
            && error.failure().is_some()
            && !gone
            && !Self::is_about_the_pool(error)
        {
            // A refused look is no refused start: what runs may be ours.
            let starts = matches!(job.cursor, Some(Effect::Start | Effect::StartPv));
            let reason = if starts { Reason::PoolRefused } else { reason_of(error) };
            return self.note(job, Event::Failed(reason, error.to_string())).await;
        }
        let failures = {
            let mut memory = self.memory();
            let (kind, count) = memory.unreachable.entry(job.id.clone()).or_default();
            *count = if *kind == gone { count.saturating_add(1) } else { 1 };
            *kind = gone;
            *count
        };
        if gone && failures >= LOOKS_FOR_GONE {
            return self.note(job, Event::Failed(Reason::VmGone, error.to_string())).await;
        }
        let answers = matches!(error.class(), Class::Observe | Class::Retry) && error.failure().is_some();
        if answers && failures >= LOOKS_THAT_FAIL {
            return self.note(job, Event::Failed(Reason::GaveUp, error.to_string())).await;
        }
        if failures == 1 || job.waiting.is_none() {
            tracing::warn!(job = %job.id, vm = %job.vm_name, %error, "waiting for the pool");
            self.apply(&job.id, &Event::Waiting(Some(error.to_string()))).await?;
        }
        let pause = backoff(usize::try_from(failures).unwrap_or(usize::MAX));
        Ok(Flow::Until(self.parts.clock.now() + pause))
    }

    async fn reached(&self, job: &Job) -> Result<(), OperationError> {
        self.memory().unreachable.remove(&job.id);
        if job.waiting.is_some() {
            self.apply(&job.id, &Event::Waiting(None)).await?;
        }
        Ok(())
    }

    pub(super) async fn look_if_safe(&self, job: &Job) -> Result<Flow, OperationError> {
        let seen = match self.observe(job, Effect::Disarm, &Trail::default()).await {
            Ok(seen) => seen,
            Err(error) => return self.unobserved(job, &error).await,
        };
        self.reached(job).await?;
        let now = self.parts.clock.now();
        if recovery::safe_again(job, &seen, now) {
            return self.note(job, Event::SafeAgain).await;
        }
        Ok(Flow::Until(now + job.deadlines.poll))
    }

    /// Six minutes after an end whose writes could not be synced: are they still there?
    pub(super) async fn settle(&self, job: &Job) -> Result<Flow, OperationError> {
        let seen = match self.observe(job, Effect::Release, &Trail::default()).await {
            Ok(seen) => seen,
            Err(error) if is_gone(&error) => return self.note(job, Event::Settled).await,
            Err(error) => return self.unobserved(job, &error).await,
        };
        self.reached(job).await?;
        self.note(job, Self::settled(job, &seen)).await
    }

    /// The coordinator came back with an older database exactly when our claim is back: it was written before anything
    /// else, and removed after everything else.
    fn settled(job: &Job, seen: &Observed) -> Event {
        match (&job.claim, Claim::find(&seen.vm)) {
            (Some(claim), Found::Claim(found)) if found.owner == claim.owner && found.job == job.id => {
                Event::Unsettled(found)
            }
            // The restore was forgotten between a look and E14's call.
            (Some(claim), Found::Absent) if recovery::is_forgotten(job, seen) => {
                Event::Unsettled(Box::new(claim.clone()))
            }
            (_, Found::Claim(_) | Found::Stray(_) | Found::Unreadable(_) | Found::Absent) => Event::Settled,
        }
    }
}

//! What happens to a job, and what its effects come to: the vocabulary of `step`.

use serde::{Deserialize, Serialize};

use super::{
    claim::Claim,
    job::{Difference, Effect, Evidence, Resolution, StageMark, StartRecord, Tokens},
    preflight::Cleared,
    readiness::Document,
    reason::Reason,
};
use crate::boot::sink::Sign;

/// What an effect came to, once a look at the VM says that it holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// E0.
    Cleared(Box<Cleared>),
    /// E1.
    Claimed,
    /// E2; not durable: this account may not sync, or the pool would not.
    Synced {
        /// The claim is on the coordinator's disk.
        durable: bool,
    },
    /// E3.
    Stopped,
    /// E4.
    ActionsSet,
    /// E5.
    OrderSet,
    /// E6.
    Flipped,
    /// E7.
    Armed(Tokens),
    /// E8.
    Started {
        /// VM_metrics.start_time of the domain.
        start_time: String,
        /// Its domid; -1 when it has halted again.
        domid: i64,
    },
    /// E9.
    Completed,
    /// E10.
    Disarmed {
        /// E8's intent was stored, and no start came of it: the VM has not run since.
        unstarted: bool,
    },
    /// E11.
    Restored {
        /// The restored settings are on the coordinator's disk.
        durable: bool,
    },
    /// E12.
    PvStarted {
        /// VM_metrics.start_time of the domain.
        start_time: String,
        /// Its domid; -1 when it has halted again.
        domid: i64,
    },
    /// E12 in Undoing: the VM could not be started as it was; it stays Halted.
    StartGivenUp(String),
    /// E13.
    EvidenceSeen(Evidence),
    /// E14.
    Released,
}

impl Outcome {
    /// The effect that it is the outcome of.
    pub const fn effect(&self) -> Effect {
        match self {
            Self::Cleared(_) => Effect::Preflight,
            Self::Claimed => Effect::Claim,
            Self::Synced { .. } => Effect::Sync,
            Self::Stopped => Effect::Stop,
            Self::ActionsSet => Effect::Actions,
            Self::OrderSet => Effect::Order,
            Self::Flipped => Effect::Flip,
            Self::Armed(_) => Effect::Arm,
            Self::Started { .. } => Effect::Start,
            Self::Completed => Effect::Completion,
            Self::Disarmed { .. } => Effect::Disarm,
            Self::Restored { .. } => Effect::Restore,
            Self::PvStarted { .. } | Self::StartGivenUp(_) => Effect::StartPv,
            Self::EvidenceSeen(_) => Effect::Evidence,
            Self::Released => Effect::Release,
        }
    }
}

/// Something that happened to a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A slot is free.
    Admitted,
    /// The intent of the effect that the job is at; with what a start must remember.
    Intended(Effect, Option<StartRecord>),
    /// The task of the start that was just called.
    TaskKnown(String),
    /// The effect holds.
    Done(Outcome),
    /// The effect cannot be had.
    Failed(Reason, String),
    /// What the effect builds on holds no more: E0's verdict is too old for E1, or the restore was forgotten before E14.
    Outdated,
    /// Only a person can settle it.
    Parked(Reason, String, Vec<Difference>),
    /// What a person was needed for is no longer so.
    SafeAgain,
    /// Halted was seen in E9.
    SeenHalted,
    /// A sign of the guest.
    Sign(Sign),
    /// The answer file is about to be given out.
    AnswerFetched,
    /// A stage or `done`, `failed`, with the attempt's report token.
    Report(StageMark),
    /// The report `ready`; its document, if that could be read.
    Ready(StageMark, Option<Box<Document>>),
    /// The `booted` report, with its token.
    Booted(StageMark),
    /// The pool is away, or is back.
    Waiting(Option<String>),
    /// An operator wants it to end.
    Cancel,
    /// An operator says that a rescue is over.
    Finish,
    /// An operator wants another attempt.
    Retry,
    /// An operator settled it.
    Resolve(Resolution),
    /// A settle check found the VM as it should be.
    Settled,
    /// A settle check found a claim of this job's: the coordinator came back with an older database.
    Unsettled(Box<Claim>),
}

impl Event {
    /// Every label.
    pub const LABELS: [&'static str; 21] = [
        "admitted",
        "intended",
        "task-known",
        "done",
        "failed",
        "outdated",
        "parked",
        "safe-again",
        "seen-halted",
        "sign",
        "answer-fetched",
        "report",
        "ready",
        "booted",
        "waiting",
        "cancel",
        "finish",
        "retry",
        "resolve",
        "settled",
        "unsettled",
    ];

    /// Its name in counts and logs.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Intended(..) => "intended",
            Self::TaskKnown(_) => "task-known",
            Self::Done(_) => "done",
            Self::Failed(..) => "failed",
            Self::Outdated => "outdated",
            Self::Parked(..) => "parked",
            Self::SafeAgain => "safe-again",
            Self::SeenHalted => "seen-halted",
            Self::Sign(_) => "sign",
            Self::AnswerFetched => "answer-fetched",
            Self::Report(_) => "report",
            Self::Ready(..) => "ready",
            Self::Booted(_) => "booted",
            Self::Waiting(_) => "waiting",
            Self::Cancel => "cancel",
            Self::Finish => "finish",
            Self::Retry => "retry",
            Self::Resolve(_) => "resolve",
            Self::Settled => "settled",
            Self::Unsettled(_) => "unsettled",
        }
    }
}

/// Which of an attempt's tokens a report came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Channel {
    /// The installer's.
    Report,
    /// The installed system's.
    Booted,
}

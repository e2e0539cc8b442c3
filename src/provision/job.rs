//! The job's record, as it stands in the store. Every field is what a restarted server needs to go on.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{claim::Claim, readiness::Document, reason::Reason, settings::Aim, stages};
use crate::{
    boot::sink::Sign,
    clock::Timestamp,
    config::{Deadlines, Profile, ProfileKind},
    machine::MacAddr,
    secret::TokenHash,
    xen::version::XenVersion,
};

/// How far a job is (design: The job).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
pub enum State {
    /// Waits for a slot; nothing was done.
    Queued,
    /// E0..E3: looked at, claimed, synced, stopped.
    Preparing,
    /// E4..E7: being flipped to HVM network boot, and armed.
    Flipping,
    /// E8: started; no sign of the installer yet.
    Booting,
    /// E9: the installer runs.
    Installing,
    /// E10, E11: stopped, and every setting put back.
    Restoring,
    /// E12: the PV start.
    Starting,
    /// E13, E14: waiting for evidence, then releasing the claim.
    Verifying,
    /// On the way back after a failure or cancel.
    Undoing,
    /// What only a person can settle.
    NeedsOperator,
    /// Ended well.
    Succeeded,
    /// Ended badly; the VM is restored (or was never touched).
    Failed,
    /// Ended on request; the VM is restored.
    Cancelled,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 13] = [
        Self::Queued,
        Self::Preparing,
        Self::Flipping,
        Self::Booting,
        Self::Installing,
        Self::Restoring,
        Self::Starting,
        Self::Verifying,
        Self::Undoing,
        Self::NeedsOperator,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Nothing more happens by itself.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Queued => "Queued",
            Self::Preparing => "Preparing",
            Self::Flipping => "Flipping",
            Self::Booting => "Booting",
            Self::Installing => "Installing",
            Self::Restoring => "Restoring",
            Self::Starting => "Starting",
            Self::Verifying => "Verifying",
            Self::Undoing => "Undoing",
            Self::NeedsOperator => "NeedsOperator",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Cancelled => "Cancelled",
        })
    }
}

/// The effects, in their order (design: E0..E14). In Undoing the way is E10, E11, E12 (only for a VM that we
/// shut down and that never netbooted), E14.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Effect {
    /// E0: reads only.
    Preflight,
    /// E1: the claim.
    Claim,
    /// E2: the pool's database on disk.
    Sync,
    /// E3: a running VM shut down (reinstall).
    Stop,
    /// E4: actions_after_* = destroy.
    Actions,
    /// E5: order "n", platform flags.
    Order,
    /// E6: domain_type or policy.
    Flip,
    /// E7: the boot gate opens.
    Arm,
    /// E8: the HVM start.
    Start,
    /// E9: waiting for completion.
    Completion,
    /// E10: the gate closes; the VM is stopped if it still runs and is ours.
    Disarm,
    /// E11: the settings are put back, read back and synced.
    Restore,
    /// E12: the PV start, paused first.
    StartPv,
    /// E13: evidence.
    Evidence,
    /// E14: the claim is released.
    Release,
}

impl Effect {
    /// All, in order: `ALL[n]` is E*n*.
    pub const ALL: [Self; 15] = [
        Self::Preflight,
        Self::Claim,
        Self::Sync,
        Self::Stop,
        Self::Actions,
        Self::Order,
        Self::Flip,
        Self::Arm,
        Self::Start,
        Self::Completion,
        Self::Disarm,
        Self::Restore,
        Self::StartPv,
        Self::Evidence,
        Self::Release,
    ];

    /// `E0`..`E14`.
    pub fn label(self) -> String {
        format!("E{}", Self::ALL.iter().position(|&effect| effect == self).unwrap_or_default())
    }
}

/// What was asked for, beyond the profile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// A VM that has run may be erased.
    pub reinstall: bool,
    /// `--on-failure keep-hvm`: hold a failed VM in HVM boot for debugging, at most this many seconds.
    pub keep_hvm_seconds: Option<u64>,
    /// VBD.userdevice of the disk to install to (machine over profile).
    pub disk: Option<String>,
    /// The NIC that boots, when the VM has several.
    pub mac: Option<MacAddr>,
    /// Install, and leave the VM HVM, booting from its disk.
    #[serde(default)]
    pub stay_hvm: bool,
    /// The order that the job came with, when its jobs heed each other.
    pub batch: Option<Batch>,
}

/// What the jobs of one order agree on (`deploy --max-parallel --first --stop-after`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The same for all of them, and for no other's.
    pub id: String,
    /// So many at once.
    pub at_once: Option<u32>,
    /// So many go first; the others begin when these have succeeded.
    pub first: Option<u32>,
    /// After so many failures no more begin.
    pub stop_after: Option<u32>,
}

/// The intent of the effect that the job is at; durable before the effect's first call (I8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Which.
    pub effect: Effect,
    /// When it was stored.
    pub at: Timestamp,
}

/// One VM.start of ours. Halted alone never proves that it did not happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartRecord {
    /// VM_metrics.start_time as read before.
    pub before: String,
    /// VM.domid as read before.
    pub domid_before: i64,
    /// When the intent was stored.
    pub intended: Timestamp,
    /// The task, once known.
    pub task: Option<String>,
    /// start_time of the domain that came of it: the mark by which it is ours.
    pub seen: Option<String>,
    /// Its domid: another one means a migration or a reboot whose start_time may not be written yet.
    pub domid: Option<i64>,
    /// When it was first seen to have started.
    pub at: Option<Timestamp>,
}

/// The hashes of an attempt's three tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Boot files and the answer file.
    pub render: TokenHash,
    /// Reports.
    pub report: TokenHash,
    /// The `booted` report.
    pub booted: TokenHash,
}

/// The boot gate as this job wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateState {
    /// Not (or no longer) armed.
    Closed,
    /// May netboot.
    Booting,
    /// The answer file was fetched or a report came: no new netboot.
    Installing,
}

/// One reported stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageMark {
    /// Its name, from the path.
    pub name: String,
    /// When it came.
    pub at: Timestamp,
    /// Percent, when the body says (`percent=40`).
    pub percent: Option<u8>,
    /// The first of the body, as text, at most 2,000 characters; of `failed` its first line.
    pub note: String,
    /// The end of the installer's log, which came with `failed`; at most 16,000 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

/// When a state was entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateMark {
    /// The state.
    pub state: State,
    /// When.
    pub at: Timestamp,
}

/// One line of the job's own log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    pub at: Timestamp,
    /// One sentence.
    pub text: String,
}

/// What a job that is being undone will end as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// Failed or Cancelled; Succeeded, when a settle check found a lost write; Queued, when a retry found the claim of
    /// an earlier attempt and begins behind its undo.
    pub state: State,
    /// Why.
    pub reason: Option<Reason>,
}

/// A setting that is neither what we wrote nor what we saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Difference {
    /// The field, such as `HVM_boot_params.order`.
    pub field: String,
    /// What we saved.
    pub saved: Option<String>,
    /// What we wrote.
    pub written: Option<String>,
    /// What stands there now.
    pub now: Option<String>,
}

/// What an operator decided about a job in NeedsOperator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Write the saved settings, whatever stands there.
    Restore,
    /// Keep what a person wrote; what is still ours is put back.
    Accept,
    /// Touch nothing more.
    Abandon,
}

/// Proof that the newly installed system runs as PV (design: Evidence).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// None, or not yet.
    #[default]
    None,
    /// The domain is PV, but the sign of life could be the old system's.
    Weak,
    /// The domain is PV and the new system reported with its own token.
    Pv,
    /// The same of a VM that stays HVM on request.
    Hvm,
}

/// One unattended run on one VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// A version 7 UUID: sortable by creation.
    pub id: String,
    /// The pool's name in the configuration.
    pub pool: String,
    /// The VM.
    pub vm_uuid: String,
    /// Its name label when the job was made.
    pub vm_name: String,
    /// The profile, as it was when the job was made (F69).
    pub profile: Profile,
    /// Template variables, merged.
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The deadlines, as they were when the job was made.
    pub deadlines: Deadlines,
    /// What was asked for.
    pub options: Options,
    /// Who asked (`uid 1000 (alice)`).
    pub asked_by: String,
    /// When.
    pub created: Timestamp,

    /// How far it is.
    pub state: State,
    /// Why it ended or waits.
    pub reason: Option<Reason>,
    /// The reason's particulars, in words.
    pub detail: String,
    /// From 1; a retry adds one.
    pub attempt: u32,
    /// The effect that it is at.
    pub cursor: Option<Effect>,
    /// That effect's intent, once stored.
    pub intent: Option<Intent>,
    /// It holds a slot (design: Admission).
    pub slot: bool,
    /// What it waits for, when the pool is away.
    pub waiting: Option<String>,

    /// The NIC that boots; known from E0 on.
    pub mac: Option<MacAddr>,
    /// The disk to install to as (userdevice, bytes); known from E0 on.
    pub disk: Option<(String, u64)>,
    /// The VM ran when we came (reinstall).
    pub was_running: bool,
    /// When E0 looked.
    #[serde(default)]
    pub cleared_at: Option<Timestamp>,
    /// VM_metrics.start_time as E0 saw it.
    #[serde(default)]
    pub cleared_start: Option<String>,
    /// The oldest Xen of the hosts that may run it; known from E0 on, where they tell.
    #[serde(default)]
    pub xen: Option<XenVersion>,
    /// The claim, as it will be or is written; known from E0 on.
    pub claim: Option<Claim>,
    /// When to look again, six minutes after the end: a coordinator may have forgotten the last of our writes.
    pub settle_at: Option<Timestamp>,

    /// The HVM start.
    pub start: Option<StartRecord>,
    /// The PV start (or, in Undoing, the start as it was).
    pub pv_start: Option<StartRecord>,
    /// start_times of domains that earlier attempts of this job made.
    pub own_starts: Vec<String>,
    /// The tokens' hashes, from E7 on.
    pub tokens: Option<Tokens>,
    /// The boot gate.
    pub gate: GateState,
    /// How often the answer file was given out.
    pub answer_fetches: u32,
    /// First time that each sign was seen in this attempt.
    pub signs: BTreeMap<Sign, Timestamp>,
    /// New netboots that were refused after the answer file.
    pub rebooted: u32,
    /// Reported stages.
    pub stages: Vec<StageMark>,
    /// What the installed system told of itself (the stage `ready`).
    #[serde(default)]
    pub readiness: Option<Document>,
    /// When `done` was reported.
    pub done_at: Option<Timestamp>,
    /// When Halted was first seen after E8.
    pub halted_at: Option<Timestamp>,
    /// When `booted` was reported.
    pub booted_at: Option<Timestamp>,
    /// An operator said that the rescue is over.
    #[serde(default)]
    pub finished: bool,
    /// The verdict of E13.
    pub evidence: Evidence,

    /// What Undoing ends in.
    pub ending: Option<Ending>,
    /// Settings that differ, in NeedsOperator.
    pub differences: Vec<Difference>,
    /// What the operator decided.
    pub resolution: Option<Resolution>,
    /// Every state entered, in order, over all attempts.
    pub history: Vec<StateMark>,
    /// The last 200 lines of what happened.
    pub log: Vec<LogLine>,
}

/// What [`Job::new`] needs.
#[derive(Debug, Clone)]
pub struct NewJob {
    /// A version 7 UUID.
    pub id: String,
    /// The pool's name.
    pub pool: String,
    /// The VM.
    pub vm_uuid: String,
    /// Its name label.
    pub vm_name: String,
    /// What to install.
    pub profile: Profile,
    /// Template variables, merged.
    pub variables: BTreeMap<String, serde_json::Value>,
    /// The deadlines.
    pub deadlines: Deadlines,
    /// What was asked for.
    pub options: Options,
    /// Who asked.
    pub asked_by: String,
}

/// Lines kept in [`Job::log`].
const LOG_LINES: usize = 200;

impl Job {
    /// A queued job.
    pub fn new(new: NewJob, now: Timestamp) -> Self {
        Self {
            id: new.id,
            pool: new.pool,
            vm_uuid: new.vm_uuid,
            vm_name: new.vm_name,
            profile: new.profile,
            variables: new.variables,
            deadlines: new.deadlines,
            options: new.options,
            asked_by: new.asked_by,
            created: now,
            state: State::Queued,
            reason: None,
            detail: String::new(),
            attempt: 1,
            cursor: None,
            intent: None,
            slot: false,
            waiting: None,
            mac: None,
            disk: None,
            was_running: false,
            cleared_at: None,
            cleared_start: None,
            xen: None,
            claim: None,
            settle_at: None,
            start: None,
            pv_start: None,
            own_starts: Vec::new(),
            tokens: None,
            gate: GateState::Closed,
            answer_fetches: 0,
            signs: BTreeMap::new(),
            rebooted: 0,
            stages: Vec::new(),
            readiness: None,
            done_at: None,
            halted_at: None,
            booted_at: None,
            finished: false,
            evidence: Evidence::None,
            ending: None,
            differences: Vec::new(),
            resolution: None,
            history: vec![StateMark { state: State::Queued, at: now }],
            log: Vec::new(),
        }
    }

    /// Enters a state and remembers when.
    pub(super) fn enter(&mut self, state: State, now: Timestamp) {
        if self.state != state {
            self.state = state;
            self.history.push(StateMark { state, at: now });
        }
    }

    /// Adds a line to the log.
    pub(super) fn note(&mut self, now: Timestamp, text: impl Into<String>) {
        if self.log.len() >= LOG_LINES {
            self.log.remove(0);
        }
        self.log.push(LogLine { at: now, text: text.into() });
    }

    /// Forgets what belongs to one attempt, keeping what belongs to the job.
    pub(super) fn next_attempt(&mut self) {
        self.attempt += 1;
        let seen = [&self.start, &self.pv_start].into_iter().flatten().filter_map(|start| start.seen.clone());
        self.own_starts.extend(seen.collect::<Vec<_>>());
        self.reason = None;
        self.detail.clear();
        self.cursor = None;
        self.intent = None;
        self.slot = false;
        self.waiting = None;
        self.cleared_at = None;
        self.cleared_start = None;
        self.xen = None;
        self.claim = None;
        self.settle_at = None;
        self.start = None;
        self.pv_start = None;
        self.tokens = None;
        self.gate = GateState::Closed;
        self.answer_fetches = 0;
        self.signs.clear();
        self.stages.clear();
        self.readiness = None;
        self.done_at = None;
        self.halted_at = None;
        self.booted_at = None;
        self.finished = false;
        self.evidence = Evidence::None;
        self.ending = None;
        self.differences.clear();
        self.resolution = None;
    }

    /// A VM that was off when E0 looked has run since: it may hold what nobody agreed to erase.
    pub fn has_run_since(&self, start_time: &str) -> bool {
        !self.was_running && self.cleared_start.as_deref().is_some_and(|then| then != start_time)
    }

    /// What its settings are to be once the guest of E8 is gone. From the PV start on, the new system is what the VM
    /// has, however the job ends.
    pub fn aim(&self) -> Aim {
        let ran = |start: &Option<StartRecord>| start.as_ref().is_some_and(|start| start.seen.is_some());
        let ahead = matches!(self.state, State::Restoring | State::Starting | State::Verifying);
        let installed = ahead || (ran(&self.start) && ran(&self.pv_start));
        match self.profile.kind {
            ProfileKind::Install if installed && self.options.stay_hvm => Aim::InstalledHvm,
            ProfileKind::Install if installed => Aim::Installed,
            ProfileKind::Install | ProfileKind::Rescue => Aim::AsBefore,
        }
    }

    /// The nonce of its claim.
    pub fn nonce(&self) -> Option<&str> {
        self.claim.as_ref().map(|claim| claim.nonce.as_str())
    }

    /// `done` was reported, or it went well without; else the newest stage's percentage, as reported or as usual.
    pub fn percent(&self) -> u8 {
        if self.done_at.is_some() || self.state == State::Succeeded {
            return 100;
        }
        let of = |stage: &StageMark| stage.percent.or_else(|| stages::usual_percent(&stage.name));
        self.stages.iter().filter_map(of).max().unwrap_or(0)
    }
}

//! What the admin socket and `--json` show: jobs and VMs as plain data, and the sentences for people. Pure.
//!
//! Invariant: no token, password or nonce is in a view.

use serde::{Deserialize, Serialize};

use crate::{
    boot::sink::{Protocol, Transfer},
    clock::{Timestamp, seconds},
    config::ProfileKind,
    provision::{
        job::{Difference, Evidence, Job, State},
        readiness::{self, Verdict as Readiness},
        reason::Reason,
        settings::xe_commands,
        stages::usual_percent,
    },
    xen::bootloader::Diagnosis,
};

/// A job for people and programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// The VM's name label when the job was made.
    pub vm: String,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// The pool's name in the configuration.
    pub pool: String,
    /// The profile's name.
    pub profile: String,
    /// How far it is.
    pub state: State,
    /// Why it ended or waits.
    pub reason: Option<Reason>,
    /// What to do about the reason.
    pub remedy: Option<String>,
    /// The reason's particulars.
    pub detail: String,
    /// From 1.
    pub attempt: u32,
    /// What it waits for, when the pool is away.
    pub waiting: Option<String>,
    /// Who asked.
    pub asked_by: String,
    /// When, RFC 3339 in UTC.
    pub created: String,
    /// What proves that the new system runs as PV.
    pub evidence: Evidence,
    /// The profile takes weak evidence for success.
    pub weak_accepted: bool,
    /// How much of the installation the installer says is done.
    pub percent: u8,
    /// Every state entered, and how long it lasted (an end lasts 0 s).
    pub states: Vec<Timed>,
    /// Reported stages, counted from the HVM start.
    pub stages: Vec<StageView>,
    /// What its machine fetched since the server began, oldest first; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub transfers: Vec<TransferView>,
    /// Whether the installed system is ready for a PV start, when it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<ReadinessView>,
    /// What to look at, the likeliest cause first, where pygrub found nothing to boot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checklist: Vec<String>,
    /// Settings that a person changed meanwhile.
    pub differences: Vec<Difference>,
    /// What an operator can do now.
    pub next_step: String,
    /// The `xe` commands that restore the VM by hand; only in NeedsOperator, or when abandoned.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub xe_commands: Vec<String>,
    /// What happened, oldest first; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<LogView>,
}

/// A name and its seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Timed {
    /// A state.
    pub name: String,
    /// Seconds, with one decimal.
    pub seconds: f64,
}

/// One reported stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct StageView {
    /// Its name.
    pub name: String,
    /// Seconds from the HVM start to the report.
    pub seconds: f64,
    /// Percent, when the report says.
    pub percent: Option<u8>,
    /// The beginning of the report's body.
    pub note: String,
    /// The end of the installer's log, which came with `failed`; left out of lists.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub log: String,
}

/// One transfer that ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TransferView {
    /// When it ended, RFC 3339 in UTC.
    pub at: String,
    /// `http` or `tftp`.
    pub protocol: Protocol,
    /// To which address.
    pub peer: String,
    /// What, without tokens.
    pub file: String,
    /// Bytes of content.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// `sent`, `complete`, `broken-off`, `refused`, …
    pub outcome: String,
}

impl TransferView {
    /// Of a transfer that ended then.
    pub fn of(at: Timestamp, transfer: &Transfer) -> Self {
        Self {
            at: at.to_string(),
            protocol: transfer.protocol,
            peer: transfer.peer.to_string(),
            file: transfer.file.clone(),
            bytes: transfer.bytes,
            seconds: seconds(transfer.took),
            outcome: transfer.outcome.to_owned(),
        }
    }
}

/// What the installed system's document comes to on this pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ReadinessView {
    /// `ready`, `mended` or `not-ready`.
    pub verdict: String,
    /// The oldest Xen of the hosts that may run it.
    pub xen: Option<String>,
    /// What the script put right.
    pub mended: Vec<String>,
    /// What is to be changed.
    pub problems: Vec<String>,
    /// What a PV start does not hang on.
    pub advice: Vec<String>,
}

/// One line of a job's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LogView {
    /// When, RFC 3339 in UTC.
    pub at: String,
    /// What.
    pub text: String,
}

/// What a job that ended, or waits for a person, counts as: the exit codes of `deploy --wait`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Done.
    Done,
    /// Refused with nothing changed, or done with evidence that the old system could give too.
    Weak,
    /// Failed, cancelled, or waiting for a person.
    Failed,
}

/// A job without its log, for lists.
pub fn brief(job: &Job, now: Timestamp) -> JobView {
    let mut view = JobView { log: Vec::new(), ..full(job, now) };
    view.stages.iter_mut().for_each(|stage| stage.log.clear());
    view
}

/// A job with all that there is to say.
pub fn full(job: &Job, now: Timestamp) -> JobView {
    let diagnosis =
        (job.reason == Some(Reason::BootloaderFailed)).then(|| Diagnosis::of_message(&job.detail));
    let started = job.start.as_ref().map(|start| start.at.unwrap_or(start.intended));
    JobView {
        id: job.id.clone(),
        vm: job.vm_name.clone(),
        vm_uuid: job.vm_uuid.clone(),
        pool: job.pool.clone(),
        profile: job.profile.name.clone(),
        state: job.state,
        reason: job.reason,
        remedy: job.reason.map(|reason| reason.remedy().to_owned()),
        detail: match diagnosis {
            Some(diagnosis) => format!("{} ({})", diagnosis.sentence, job.detail),
            None => job.detail.clone(),
        },
        checklist: diagnosis
            .map(|diagnosis| diagnosis.checklist.iter().map(|line| (*line).to_owned()).collect())
            .unwrap_or_default(),
        attempt: job.attempt,
        waiting: job.waiting.clone(),
        asked_by: job.asked_by.clone(),
        created: job.created.to_string(),
        evidence: job.evidence,
        weak_accepted: job.profile.accept_weak,
        percent: job.percent(),
        states: states(job, now),
        stages: job
            .stages
            .iter()
            .map(|stage| StageView {
                name: stage.name.clone(),
                seconds: started.map_or(0.0, |started| seconds(stage.at.since(started))),
                percent: stage.percent.or_else(|| usual_percent(&stage.name)),
                note: stage.note.clone(),
                log: stage.log.clone(),
            })
            .collect(),
        transfers: Vec::new(),
        readiness: readiness(job),
        differences: job.differences.clone(),
        next_step: next_step(job),
        xe_commands: by_hand(job),
        log: job
            .log
            .iter()
            .map(|line| LogView { at: line.at.to_string(), text: line.text.clone() })
            .collect(),
    }
}

fn readiness(job: &Job) -> Option<ReadinessView> {
    let judgement = readiness::judge(job.readiness.as_ref()?, job.xen);
    let verdict = judgement.verdict.label().to_owned();
    let (mended, problems) = match judgement.verdict {
        Readiness::Ready => (Vec::new(), Vec::new()),
        Readiness::Mended(mended) => (mended, Vec::new()),
        Readiness::NotReady(problems) => (Vec::new(), problems),
    };
    let xen = job.xen.map(|xen| xen.to_string());
    Some(ReadinessView { verdict, xen, mended, problems, advice: judgement.advice })
}

fn states(job: &Job, now: Timestamp) -> Vec<Timed> {
    let ends = job.history.iter().skip(1).map(|next| next.at).chain([now]);
    let lasted = |state: State, from: Timestamp, to: Timestamp| {
        if state.is_terminal() { 0.0 } else { seconds(to.since(from)) }
    };
    job.history
        .iter()
        .zip(ends)
        .map(|(mark, to)| Timed { name: mark.state.to_string(), seconds: lasted(mark.state, mark.at, to) })
        .collect()
}

fn by_hand(job: &Job) -> Vec<String> {
    let needed = job.state == State::NeedsOperator || job.reason == Some(Reason::Abandoned);
    match &job.claim {
        Some(claim) if needed => xe_commands(&job.vm_uuid, &claim.touched),
        Some(_) | None => Vec::new(),
    }
}

/// One sentence on what an operator can do now.
pub fn next_step(job: &Job) -> String {
    let id = &job.id;
    let remedy = job.reason.map(Reason::remedy).unwrap_or_default();
    match job.state {
        State::Queued => "Nothing: it begins when its pool and a host have room for it.".to_owned(),
        State::Preparing
        | State::Flipping
        | State::Booting
        | State::Installing
        | State::Restoring
        | State::Starting
        | State::Verifying => match &job.waiting {
            Some(_) => "Mend the way to the pool; the job goes on by itself.".to_owned(),
            None if job.finished => "Nothing: the rescue ends, and the VM is put back.".to_owned(),
            None if job.profile.kind == ProfileKind::Rescue => {
                format!("Shut the VM down when the rescue is over, or say `bootflip jobs finish {id}`.")
            }
            None => format!("Nothing; `bootflip jobs cancel {id}` ends it and puts the VM back."),
        },
        State::Undoing => "Nothing: the VM is being put back.".to_owned(),
        State::NeedsOperator => format!(
            "{remedy} Then `bootflip jobs resolve {id}` with --restore (write the saved settings), --accept (keep what stands there) or --abandon (touch nothing more)."
        ),
        State::Succeeded => match job.evidence {
            Evidence::Weak if !job.profile.accept_weak => {
                "Look at the VM: the sign of life could have come from the old system too.".to_owned()
            }
            Evidence::None | Evidence::Weak | Evidence::Pv | Evidence::Hvm => "Nothing: done.".to_owned(),
        },
        State::Failed | State::Cancelled => format!("{remedy} Then `bootflip jobs retry {id}`."),
    }
}

impl JobView {
    /// Nothing more happens before a person acts.
    pub const fn is_over(&self) -> bool {
        self.state.is_terminal() || matches!(self.state, State::NeedsOperator)
    }

    /// What it counts as; meaningful once [`Self::is_over`].
    pub fn verdict(&self) -> Verdict {
        let refused = self.reason.is_some_and(Reason::is_refusal);
        match self.state {
            State::Succeeded if self.evidence == Evidence::Weak && !self.weak_accepted => Verdict::Weak,
            State::Succeeded => Verdict::Done,
            State::Failed if refused => Verdict::Weak,
            State::Failed | State::Cancelled | State::NeedsOperator => Verdict::Failed,
            State::Queued
            | State::Preparing
            | State::Flipping
            | State::Booting
            | State::Installing
            | State::Restoring
            | State::Starting
            | State::Verifying
            | State::Undoing => Verdict::Done,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::*;
    use crate::{
        config::{Completion, Deadlines, EvidenceKind, Profile, ProfileKind},
        provision::job::{NewJob, Options, StateMark},
    };

    fn job() -> Job {
        let profile = Profile {
            name: "mini".into(),
            kind: ProfileKind::Install,
            boot: None,
            completion: Completion::Report,
            min_install: Duration::from_secs(300),
            evidence: EvidenceKind::Report,
            accept_weak: false,
            report_by_get: false,
            disk: None,
            variables: BTreeMap::new(),
        };
        let new = NewJob {
            id: "j1".into(),
            pool: "main".into(),
            vm_uuid: "u1".into(),
            vm_name: "web".into(),
            profile,
            variables: BTreeMap::new(),
            deadlines: Deadlines::default(),
            options: Options::default(),
            asked_by: "uid 0 (root)".into(),
        };
        Job::new(new, Timestamp::from_millis(1_000))
    }

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_millis(seconds * 1000)
    }

    #[test]
    fn each_state_lasts_until_the_next_and_an_end_lasts_no_time() {
        let mut job = job();
        job.history.push(StateMark { state: State::Preparing, at: at(3) });
        job.history.push(StateMark { state: State::Failed, at: at(7) });
        let lasted: Vec<_> = full(&job, at(99)).states.into_iter().map(|s| (s.name, s.seconds)).collect();
        let expected = [("Queued", 2.0), ("Preparing", 4.0), ("Failed", 0.0)];
        assert_eq!(lasted, expected.map(|(name, seconds)| (name.to_owned(), seconds)));
    }

    #[test]
    fn exit_code_follows_the_worst_that_a_job_came_to() {
        let cases = [
            (State::Succeeded, None, Evidence::Pv, false, Verdict::Done),
            (State::Succeeded, None, Evidence::Weak, false, Verdict::Weak),
            (State::Succeeded, None, Evidence::Weak, true, Verdict::Done),
            (State::Failed, Some(Reason::HasRun), Evidence::None, false, Verdict::Weak),
            (State::Failed, Some(Reason::NoReport), Evidence::None, false, Verdict::Failed),
            (State::NeedsOperator, Some(Reason::SettingsChanged), Evidence::None, false, Verdict::Failed),
            (State::Cancelled, Some(Reason::CancelledByOperator), Evidence::None, false, Verdict::Failed),
        ];
        for (state, reason, evidence, accept, verdict) in cases {
            let mut job = job();
            (job.state, job.reason, job.evidence, job.profile.accept_weak) =
                (state, reason, evidence, accept);
            let view = full(&job, at(1));
            assert!(view.is_over());
            assert_eq!(view.verdict(), verdict, "{state} {reason:?}");
        }
    }

    #[test]
    fn who_must_act_is_told_the_command() {
        let mut job = job();
        (job.state, job.reason) = (State::NeedsOperator, Some(Reason::SettingsChanged));
        assert!(next_step(&job).contains("bootflip jobs resolve j1"));
        (job.state, job.reason) = (State::Failed, Some(Reason::NoReport));
        assert!(next_step(&job).contains("bootflip jobs retry j1"));
    }

    #[test]
    fn what_the_installed_system_told_is_shown_as_it_counts_on_this_pool() {
        let mut job = job();
        let document = r#"{"v":1,"root":"UUID=1","boot":{"kind":"partition","fs":"ext2"},
            "menu":{"file":"/boot/grub/grub.cfg","kernel":"/vmlinuz-1"},
            "kernels":[{"version":"1","file":"/boot/vmlinuz-1","compression":"zstd","xen_pv":"yes","block":"initrd",
                        "net":"initrd"}],
            "checks":[{"check":"fstab","state":"mended","detail":"by UUID"}]}"#;
        job.readiness = Some(readiness::Document::parse(document.as_bytes()).unwrap());
        for (xen, verdict, mended, problems) in
            [((4, 17), "mended", 1, 0), ((4, 13), "not-ready", 0, 1), ((4, 15), "mended", 1, 0)]
        {
            job.xen = Some(crate::xen::version::XenVersion::new(xen.0, xen.1));
            let view = full(&job, at(1)).readiness.unwrap();
            assert_eq!(view.verdict, verdict);
            assert_eq!((view.mended.len(), view.problems.len()), (mended, problems));
        }
    }

    #[test]
    fn a_view_survives_json() {
        let view = full(&job(), at(5));
        let text = serde_json::to_string(&view).unwrap();
        assert!(text.contains(r#""state":"Queued""#), "{text}");
        assert_eq!(serde_json::from_str::<JobView>(&text).unwrap(), view);
    }
}

//! E9: when an installation is complete, and when it is given up (design: Completion). The report alone is
//! "finishing", Halted alone may be a crash: each profile says which of them count.

use super::{
    job::{Job, StartRecord},
    plan::{Observed, Plan},
    readiness::{self, Verdict},
    reason::Reason,
    step::Outcome,
};
use crate::{
    boot::sink::Sign,
    clock::Timestamp,
    config::{Completion, ProfileKind},
};

/// The answer to E9. What pygrub could not start is not given to it.
pub fn completion(job: &Job, seen: &Observed, now: Timestamp) -> Plan {
    let plan = progress(job, seen, now);
    if plan != Plan::Done(Outcome::Completed) {
        return plan;
    }
    match unready(job) {
        Some(sentences) => Plan::Fail(Reason::NotPvReady, sentences),
        None => plan,
    }
}

/// Why what was installed would not start as PV, in the words of its own document. Without one nothing speaks against it.
fn unready(job: &Job) -> Option<String> {
    let starts_pv = job.profile.kind == ProfileKind::Install && !job.options.stay_hvm;
    let document = job.readiness.as_ref().filter(|_| starts_pv)?;
    match readiness::judge(document, job.xen).verdict {
        Verdict::NotReady(sentences) => Some(sentences.join("; ")),
        Verdict::Ready | Verdict::Mended(_) => None,
    }
}

fn progress(job: &Job, seen: &Observed, now: Timestamp) -> Plan {
    let Some(start) = job.start.as_ref() else {
        return Plan::Fail(Reason::StartFailed, "the HVM start left no record".into());
    };
    if job.stages.iter().any(|stage| stage.name == "failed") {
        let said = job
            .stages
            .iter()
            .rev()
            .find(|stage| stage.name == "failed")
            .map_or("", |stage| stage.note.as_str());
        return Plan::Fail(Reason::InstallerFailed, format!("the installer said: {said}"));
    }
    if !seen.is_halted() {
        return running(job, start, seen, now);
    }
    if seen.is_busy() {
        return Plan::Wait(now + super::plan::SOON);
    }
    let Some(halted) = job.halted_at else { return Plan::SeenHalted };
    if job.profile.kind == ProfileKind::Rescue {
        return Plan::Done(Outcome::Completed);
    }
    let reported = job.done_at.is_some();
    let report_until = halted + job.deadlines.report_after_halt;
    match job.profile.completion {
        Completion::Report if reported => Plan::Done(Outcome::Completed),
        Completion::Report if now < report_until => Plan::Wait(report_until),
        Completion::Report => Plan::Fail(Reason::NoReport, "the VM is Halted and no `done` came".into()),
        Completion::Halt => by_halt(job, start, halted),
        Completion::Either if reported => Plan::Done(Outcome::Completed),
        Completion::Either => {
            let verdict = by_halt(job, start, halted);
            let waits = matches!(verdict, Plan::Fail(..)) && now < report_until;
            if waits { Plan::Wait(report_until) } else { verdict }
        }
    }
}

/// Halted long enough after the start, and the answer file fetched where we serve one.
fn by_halt(job: &Job, start: &StartRecord, halted: Timestamp) -> Plan {
    let ran = halted.since(start.at.unwrap_or(start.intended));
    if ran < job.profile.min_install {
        let (ran, least) = (ran.as_secs(), job.profile.min_install.as_secs());
        return Plan::Fail(
            Reason::HaltedEarly,
            format!("Halted {ran} s after the start; an installation takes at least {least} s"),
        );
    }
    let answers = job.profile.boot.as_ref().is_some_and(|boot| boot.answer.is_some());
    if answers && job.answer_fetches == 0 {
        return Plan::Fail(Reason::HaltedEarly, "Halted without ever fetching its answer file".into());
    }
    Plan::Done(Outcome::Completed)
}

fn running(job: &Job, start: &StartRecord, seen: &Observed, now: Timestamp) -> Plan {
    if start.seen.as_ref().is_some_and(|mark| *mark != seen.metrics.start_time) {
        return Plan::Fail(
            Reason::StartedBySomeone,
            "the VM was started anew by somebody else during the installation".into(),
        );
    }
    if job.profile.kind == ProfileKind::Rescue {
        // E10 stops it.
        return match job.finished {
            true => Plan::Done(Outcome::Completed),
            false => Plan::Wait(now + job.deadlines.poll),
        };
    }
    let begun = start.at.unwrap_or(start.intended);
    let mut next = now + job.deadlines.poll;
    if let Some(done) = job.done_at {
        let until = done + job.deadlines.halt_after_report;
        // Past it, E10 stops the VM: the installer said that it is done.
        let counts = job.profile.completion != Completion::Halt;
        if counts && now >= until {
            return Plan::Done(Outcome::Completed);
        }
        next = if counts { next.min(until) } else { next };
    }
    for (reason, until, met, what) in deadlines(job, begun) {
        if met {
            continue;
        }
        if now >= until {
            return Plan::Fail(
                reason,
                format!("{what} within {} s of the start", until.since(begun).as_secs()),
            );
        }
        next = next.min(until);
    }
    Plan::Wait(next)
}

/// The deadlines that hold for this job: reason, when, whether what it waits for came, and that in words.
fn deadlines(job: &Job, begun: Timestamp) -> Vec<(Reason, Timestamp, bool, &'static str)> {
    let limits = &job.deadlines;
    let serves = job.profile.boot.as_ref();
    let answers = serves.is_some_and(|boot| boot.answer.is_some());
    let reports = job.profile.completion != Completion::Halt;
    let saw = |signs: &[Sign]| signs.iter().any(|sign| job.signs.contains_key(sign));
    let staged = !job.stages.is_empty();
    let answered = job.answer_fetches > 0 || staged;
    let kernel = saw(&[Sign::Kernel, Sign::Initrd]) || answered;
    let dhcp = saw(&[Sign::Dhcp, Sign::Loader, Sign::Script]) || kernel;
    // Where only Halted counts, a `done` report ends nothing.
    let finished = reports && job.done_at.is_some();
    let mut all = vec![(Reason::InstallTimeout, begun + limits.install, finished, "it did not finish")];
    if reports {
        all.push((Reason::NoStage, begun + limits.first_stage, staged, "no report came"));
    }
    if answers {
        all.push((Reason::NoAnswerFile, begun + limits.answer, answered, "the answer file was not fetched"));
    }
    if serves.is_some() {
        all.push((Reason::NoKernel, begun + limits.kernel, kernel, "no kernel was fetched"));
        all.push((Reason::NoDhcp, begun + limits.dhcp, dhcp, "no DHCP packet came"));
    }
    all.sort_by_key(|&(_, until, _, _)| until);
    all
}

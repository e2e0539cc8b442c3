//! What the records of one machine come to, before they are judged. Pure.

use std::{collections::BTreeSet, net::Ipv4Addr};

use super::{Record, Tone, What, diagnose::Subject, words::severity_tone};
use crate::{
    boot::sink::{Asked, Packet, Sign, Told},
    clock::Timestamp,
    provision::job::{GateState, Job, State},
};

/// How far the machine came in this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reached {
    /// Nothing was heard of it.
    Nothing,
    /// It asked for an address.
    Dhcp,
    /// It fetched a loader.
    Loader,
    /// It fetched its boot script.
    Script,
    /// It fetched the kernel or the initrd.
    Kernel,
    /// It fetched its answer file.
    Answer,
    /// Its installer reported.
    Stage,
}

/// A subject, with the records since the attempt's HVM start.
#[derive(Debug)]
pub(super) struct View<'a> {
    pub(super) subject: &'a Subject<'a>,
    pub(super) records: Vec<&'a Record>,
    /// When the attempt's machine was started.
    pub(super) started: Option<Timestamp>,
    /// Until when it is looked at: now, or when its installation was over.
    pub(super) until: Timestamp,
    pub(super) reached: Reached,
}

impl<'a> View<'a> {
    pub(super) fn of(subject: &'a Subject<'a>, records: &'a [Record]) -> Self {
        let started = subject.job.and_then(|job| job.start.as_ref());
        let started = started.map(|start| start.at.unwrap_or(start.intended).min(start.intended));
        let from = started.or_else(|| subject.job.map(|job| job.created));
        let from = from.unwrap_or_default();
        let until = subject.job.and_then(over).unwrap_or(subject.now);
        let within = |record: &&Record| record.last >= from && record.at <= until;
        let records: Vec<&Record> = records.iter().filter(within).collect();
        let reached = subject.job.map_or_else(|| reached_alone(&records), reached);
        Self { subject, records, started, until, reached }
    }

    /// The job, while its VM boots or installs, or where that went wrong.
    pub(super) fn installing(&self) -> Option<&'a Job> {
        self.subject.job.filter(|job| match job.state {
            State::Booting | State::Installing | State::Undoing | State::Failed | State::NeedsOperator => {
                job.start.is_some()
            }
            State::Queued
            | State::Preparing
            | State::Flipping
            | State::Restoring
            | State::Starting
            | State::Verifying
            | State::Succeeded
            | State::Cancelled => false,
        })
    }

    /// Seconds since the attempt's HVM start.
    pub(super) fn seconds(&self) -> Option<u64> {
        Some(self.until.since(self.started?).as_secs())
    }

    /// Seconds since the first of these signs.
    pub(super) fn seconds_since(&self, signs: &[Sign]) -> Option<u64> {
        let job = self.subject.job?;
        let first = signs.iter().filter_map(|sign| job.signs.get(sign)).min()?;
        Some(self.until.since(*first).as_secs())
    }

    /// DHCP packets of the network card that boots (of all, where it is not known), with how often they came.
    pub(super) fn packets(&self) -> impl Iterator<Item = (&'a Record, &'a Packet)> {
        let mac = self.subject.mac;
        self.records.iter().filter_map(move |record| {
            let What::Packet(packet) = &record.what else { return None };
            (mac.is_none() || record.mac == mac).then_some((*record, packet))
        })
    }

    /// How often a boot ROM was offered something since it last took an offer, and when that began.
    pub(super) fn offers_in_vain(&self) -> (u32, Option<Timestamp>) {
        let (mut times, mut since) = (0_u32, None);
        for (record, packet) in self.packets() {
            match (packet.asked, packet.told) {
                (Asked::Request | Asked::Inform, _) => (times, since) = (0, None),
                (Asked::Discover, Told::Offer { .. }) => {
                    times = times.saturating_add(record.times);
                    since = since.or(Some(record.at));
                }
                (Asked::Discover, Told::Ack { .. } | Told::Storing | Told::Nak | Told::Silence(_))
                | (Asked::Decline | Asked::Release, _) => {}
            }
        }
        (times, since)
    }

    /// Packets that were not answered for this reason; how many and the first.
    pub(super) fn silent(&self, label: &'static str) -> Option<(u32, &'a Record, &'a Packet)> {
        let mut found: Option<(u32, &Record, &Packet)> = None;
        for (record, packet) in self.packets().filter(|(_, packet)| packet.told == Told::Silence(label)) {
            let (times, first, of) = found.unwrap_or((0, record, packet));
            found = Some((times.saturating_add(record.times), first, of));
        }
        found
    }

    /// Servers that the machine chose, and that are not ours.
    pub(super) fn chosen_others(&self) -> BTreeSet<Ipv4Addr> {
        let refused = ["other_server", "not_ours"];
        let took = |packet: &Packet| matches!(packet.told, Told::Silence(why) if refused.contains(&why));
        self.packets()
            .filter(|(_, packet)| packet.asked == Asked::Request && took(packet))
            .filter_map(|(_, packet)| packet.chose)
            .collect()
    }

    /// The last line of the installer that tells of an error.
    pub(super) fn last_error(&self) -> Option<(&'a Record, &'a str)> {
        self.records.iter().rev().find_map(|record| {
            let What::Line { severity, text } = &record.what else { return None };
            (severity_tone(severity) == Tone::Bad).then_some((*record, text.as_str()))
        })
    }
}

/// When the part of a job was over that a machine can be heard in.
fn over(job: &Job) -> Option<Timestamp> {
    let last = job.history.last()?;
    last.state.is_terminal().then_some(last.at)
}

fn reached(job: &Job) -> Reached {
    let saw = |sign| job.signs.contains_key(&sign);
    if job.stages.iter().any(|stage| stage.name != "booted") {
        Reached::Stage
    } else if job.answer_fetches > 0 {
        Reached::Answer
    } else if saw(Sign::Kernel) || saw(Sign::Initrd) {
        Reached::Kernel
    } else if saw(Sign::Script) || job.gate == GateState::Installing {
        Reached::Script
    } else if saw(Sign::Loader) {
        Reached::Loader
    } else if saw(Sign::Dhcp) {
        Reached::Dhcp
    } else {
        Reached::Nothing
    }
}

/// Of a machine without a job.
fn reached_alone(records: &[&Record]) -> Reached {
    let asked = records.iter().any(|record| matches!(record.what, What::Packet(_)));
    if asked { Reached::Dhcp } else { Reached::Nothing }
}

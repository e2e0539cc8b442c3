//! A record in words. Pure.

use super::{Record, Tone, What};
use crate::{
    boot::sink::{Asked, Asker, Packet, Told},
    provision::job::State,
};

impl Record {
    /// The record in one plain sentence or line.
    pub fn words(&self) -> String {
        match &self.what {
            What::Packet(packet) => packet_words(packet),
            What::Leased { address } => format!("Lease of {address} is stored; the ACK has left."),
            What::Missing { file } => format!("Asked for {file}, which is not there."),
            What::Fetched { file, bytes, milliseconds, outcome, .. } => {
                let size = size(*bytes);
                format!("{file}: {size} in {}, {}.", span(*milliseconds), outcome_words(outcome))
            }
            What::Refused => {
                "Asked to netboot and was refused: it was told to boot from its disk.".to_owned()
            }
            What::Line { text, .. } => text.clone(),
            What::Stage { name, percent, note } => {
                let percent = percent.map(|percent| format!(" ({percent} %)")).unwrap_or_default();
                let note = if note.is_empty() { String::new() } else { format!(": {note}") };
                format!("Reported \"{name}\"{percent}{note}")
            }
            What::Unheard { stage, answer } => {
                format!("Reported \"{stage}\", which was not taken: {answer}.")
            }
            What::Call { call, effect, failed: None } => format!("{call} for {effect}: done."),
            What::Call { call, effect, failed: Some(why) } => format!("{call} for {effect} failed: {why}"),
            What::Entered { state, because: None } => format!("The job is {state}."),
            What::Entered { state, because: Some(why) } => format!("The job is {state}: {why}"),
            What::Note { text } => text.clone(),
        }
    }

    /// How it is to be taken.
    pub fn tone(&self) -> Tone {
        match &self.what {
            What::Packet(packet) => match packet.told {
                Told::Silence(_) => Tone::Odd,
                Told::Nak => Tone::Odd,
                Told::Offer { .. } | Told::Ack { .. } | Told::Storing => Tone::Plain,
            },
            What::Leased { .. } | What::Note { .. } => Tone::Plain,
            What::Missing { .. } => Tone::Odd,
            What::Fetched { outcome, .. } => outcome_tone(outcome),
            What::Refused | What::Unheard { .. } => Tone::Odd,
            What::Line { severity, .. } => severity_tone(severity),
            What::Stage { name, .. } if name == "failed" => Tone::Bad,
            What::Stage { .. } => Tone::Good,
            What::Call { failed, .. } => failed.as_ref().map_or(Tone::Plain, |_| Tone::Bad),
            What::Entered { state, .. } => match state {
                State::Succeeded => Tone::Good,
                State::Failed | State::NeedsOperator => Tone::Bad,
                State::Undoing | State::Cancelled => Tone::Odd,
                State::Queued
                | State::Preparing
                | State::Flipping
                | State::Booting
                | State::Installing
                | State::Restoring
                | State::Starting
                | State::Verifying => Tone::Plain,
            },
        }
    }
}

pub(super) fn severity_tone(severity: &str) -> Tone {
    match severity {
        "emerg" | "alert" | "crit" | "err" => Tone::Bad,
        "warning" => Tone::Odd,
        _ => Tone::Plain,
    }
}

fn outcome_tone(outcome: &str) -> Tone {
    match outcome {
        "sent" | "complete" | "unconfirmed" | "not-modified" => Tone::Plain,
        "lost" | "broken-off" | "read_failed" => Tone::Bad,
        _ => Tone::Odd,
    }
}

/// A transfer's outcome in words.
pub fn outcome_words(outcome: &str) -> &str {
    match outcome {
        "sent" | "complete" => "complete",
        "unconfirmed" => "complete, though the client did not confirm the last block",
        "not-modified" => "the client has it already",
        "broken-off" => "broken off by the client",
        "lost" => "the client fell silent",
        "unanswered" => "the client never came back for it",
        "aborted" => "the client stopped it",
        "replaced" => "the client began again",
        "read_failed" => "the file could not be read",
        "stopped" => "the server stopped",
        other => other,
    }
}

fn packet_words(packet: &Packet) -> String {
    let asker = match packet.asker {
        Asker::Rom => "The network card's firmware",
        Asker::HttpRom => "UEFI HTTP boot",
        Asker::Ipxe => "iPXE",
        Asker::System => "The system",
    };
    let asked = match packet.asked {
        Asked::Discover => "asked for a DHCP server (DISCOVER)",
        Asked::Request => "took an offer or renewed (REQUEST)",
        Asked::Decline => "declined its address: somebody else uses it (DECLINE)",
        Asked::Release => "gave its address back (RELEASE)",
        Asked::Inform => "asked for boot settings only (INFORM)",
    };
    let of = packet.chose.map(|server| format!(" of server {server}")).unwrap_or_default();
    let relay = packet.relay.map(|relay| format!(" through relay {relay}")).unwrap_or_default();
    let address = packet.address.map(|address| format!(" of {address}")).unwrap_or_default();
    let told = match packet.told {
        Told::Offer { boots: true } => format!("offered{address}, with a boot file"),
        Told::Offer { boots: false } => format!("offered{address}, without a boot file"),
        Told::Ack { boots: true } => format!("acknowledged{address}, with a boot file"),
        Told::Ack { boots: false } => format!("acknowledged{address}"),
        Told::Storing => format!("acknowledged{address} once the lease is on disk"),
        Told::Nak => "refused (NAK): that address is not its own here".to_owned(),
        Told::Silence(why) => format!("not answered: {}", silence(why)),
    };
    format!("{asker} {asked}{of}{relay}; {}.", told.replacen("offered of", "offered", 1))
}

/// Why a packet was not answered, in words; the labels are those of `dhcp::Ignored`.
fn silence(label: &str) -> &str {
    match label {
        "stranger" => "no VM of the pools has this MAC",
        "not_pxe" => "the proxy answers boot ROMs only",
        "not_for_proxy" => "another server's business",
        "no_boot_file" => "there is nothing for it to boot",
        "other_server" => "it took another server's offer",
        "pool_exhausted" => "no address is free",
        "no_record" => "an address that we have no record of",
        "committing" => "its lease is being written",
        "unknown_relay" => "the relay is not in the configuration",
        "other_subnet" => "the relay's subnet has no addresses here",
        "not_ours" => "another server leases here",
        "contradictory" => "its fields contradict each other",
        "too_many_hops" => "too many relays",
        other => other,
    }
}

/// A span of milliseconds as a person says it.
pub fn span(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..120_000 => format!("{} s", milliseconds / 1000),
        120_000..7_200_000 => format!("{} min", milliseconds / 60_000),
        _ => format!("{} h", milliseconds / 3_600_000),
    }
}

/// A number of bytes as a person says it.
pub fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{} kB", bytes / 1_000),
        1_000_000..10_000_000 => format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

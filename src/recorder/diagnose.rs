//! What a machine's records mean, in plain words: what was seen, what that is a sign of, what the machine's own screen
//! shows, and what to do. Pure. The likeliest cause comes first; once a machine is past a point, what held it there is
//! told no more.

use std::time::Duration;

use serde::Serialize;

use super::{
    ASKED_AGAIN, Record, Source, TAKEN_BEFORE, What,
    consider::{Reached, View},
    words::span,
};
use crate::{
    boot::sink::{Asker, Protocol, Sign, Told},
    clock::Timestamp,
    dhcp::Neighbour,
    machine::MacAddr,
    provision::job::Job,
};

/// Who is judged.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The time.
    pub now: Timestamp,
    /// The network card that is to boot, where that is known.
    pub mac: Option<MacAddr>,
    /// The VM's newest job.
    pub job: Option<&'a Job>,
    /// Other DHCP servers that were heard.
    pub rivals: &'a [Neighbour],
}

/// What a finding is about. Troubleshooting has a section of this name for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The pool is away.
    PoolAway,
    /// The pool fails a call again and again.
    PoolFails,
    /// Another network card of the VM boots.
    WrongNic,
    /// Nothing was heard of it.
    NoDhcp,
    /// Another server answers.
    SecondServer,
    /// A relay that is not ours.
    UnknownRelay,
    /// No address is free.
    PoolExhausted,
    /// Our offers do not arrive, or are not taken.
    OffersUnheard,
    /// Nothing to boot for its kind.
    NoLoader,
    /// A file that is not there.
    MissingFile,
    /// Its first packets came late.
    StpGap,
    /// Small answers arrive, large ones do not.
    Mtu,
    /// TFTP answers do not arrive.
    TftpSilent,
    /// It has its script and fetches nothing.
    NoKernel,
    /// The kernel never fetched the answer file.
    NoAnswerFile,
    /// The installer has not reported since.
    SilentInstaller,
    /// It netboots again after its installation began.
    LoopRefused,
    /// It netboots with no job.
    NotArmed,
    /// Its reports are not taken.
    ReportRefused,
    /// The installer's own words.
    InstallerError,
}

impl Kind {
    /// The name in JSON and in the documentation's headings.
    pub const fn label(self) -> &'static str {
        match self {
            Self::PoolAway => "pool-away",
            Self::PoolFails => "pool-fails",
            Self::WrongNic => "wrong-nic",
            Self::NoDhcp => "no-dhcp",
            Self::SecondServer => "second-server",
            Self::UnknownRelay => "unknown-relay",
            Self::PoolExhausted => "pool-exhausted",
            Self::OffersUnheard => "offers-unheard",
            Self::NoLoader => "no-loader",
            Self::MissingFile => "missing-file",
            Self::StpGap => "stp-gap",
            Self::Mtu => "mtu",
            Self::TftpSilent => "tftp-silent",
            Self::NoKernel => "no-kernel",
            Self::NoAnswerFile => "no-answer-file",
            Self::SilentInstaller => "silent-installer",
            Self::LoopRefused => "loop-refused",
            Self::NotArmed => "not-armed",
            Self::ReportRefused => "report-refused",
            Self::InstallerError => "installer-error",
        }
    }
}

/// How much a finding holds the machine up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Weight {
    /// It does not go on before somebody does something.
    Stops,
    /// It may be why it does not go on.
    Hinders,
    /// Good to know.
    Note,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub kind: Kind,
    /// How much it matters.
    pub weight: Weight,
    /// What was seen.
    pub saw: String,
    /// What that is a sign of.
    pub means: String,
    /// What the machine's screen shows, where firmware shows something.
    pub screen: Option<&'static str>,
    /// What to do.
    pub step: String,
    /// Since when.
    pub since: Option<Timestamp>,
}

/// A VM's firmware takes this long to its first packet; slow hosts included. Seconds.
const FIRST_PACKET: u64 = 30;
/// RFC 951 §3: the first packet of a ROM says that it has tried for no time at all. Seconds.
const LATE: u16 = 10;
/// A ROM asks after 4, 8 and 16 s.
const IN_VAIN: u32 = 4;
/// For so long a report may be asked to come again; reporters try for ten minutes.
const REPORTS_IN_VAIN: Duration = Duration::from_secs(120);
/// A script is run at once. Seconds.
const SCRIPT_TO_KERNEL: u64 = 30;
/// A kernel, its initrd and the installer's first steps. Seconds.
const KERNEL_TO_ANSWER: u64 = 180;
/// The longest step of an installation that is usual. Seconds.
const BETWEEN_STAGES: u64 = 20 * 60;
/// What fits into one Ethernet frame (RFC 894), less headers. Bytes.
const ONE_FRAME: u64 = 1400;
/// So many failures of one call in a row.
const CALLS_IN_VAIN: usize = 3;

type Rule = for<'a> fn(&View<'a>) -> Option<Finding>;

/// The likeliest cause first.
const RULES: [Rule; 20] = [
    pool_away,
    pool_fails,
    wrong_nic,
    no_dhcp,
    second_server,
    unknown_relay,
    pool_exhausted,
    no_loader,
    offers_unheard,
    missing_file,
    tftp_silent,
    mtu,
    no_kernel,
    no_answer_file,
    loop_refused,
    installer_error,
    silent_installer,
    report_refused,
    stp_gap,
    not_armed,
];

/// What the records say is wrong; empty: nothing that we know of. `records` are those of all the VM's network cards.
pub fn diagnose(subject: &Subject<'_>, records: &[Record]) -> Vec<Finding> {
    let view = View::of(subject, records);
    let mut found: Vec<Finding> = RULES.iter().filter_map(|rule| rule(&view)).collect();
    found.sort_by_key(|finding| finding.weight);
    found
}

fn finding(kind: Kind, weight: Weight, saw: String, means: &str, step: &str) -> Finding {
    Finding { kind, weight, saw, means: means.to_owned(), screen: None, step: step.to_owned(), since: None }
}

impl Finding {
    fn shows(self, screen: &'static str) -> Self {
        Self { screen: Some(screen), ..self }
    }

    fn since(self, since: Timestamp) -> Self {
        Self { since: Some(since), ..self }
    }
}

fn pool_away(view: &View<'_>) -> Option<Finding> {
    let job = view.subject.job.filter(|job| !job.state.is_terminal())?;
    let why = job.waiting.as_deref()?;
    Some(finding(
        Kind::PoolAway,
        Weight::Stops,
        format!("Pool {} does not answer: {why}", job.pool),
        "The job stands still until the pool can be reached. Boot services go on; the guest may be installing meanwhile.",
        "See that the coordinator runs and that this server reaches it on its port; the job goes on by itself.",
    ))
}

fn pool_fails(view: &View<'_>) -> Option<Finding> {
    view.subject.job.filter(|job| !job.state.is_terminal())?;
    let calls = view.records.iter().rev().filter_map(|record| {
        let What::Call { call, failed, .. } = &record.what else { return None };
        Some((*record, call, failed.as_deref(), record.times))
    });
    let (mut times, mut last) = (0_usize, None);
    for (record, call, failed, folded) in calls {
        let Some(why) = failed else { break };
        times = times.saturating_add(usize::try_from(folded).unwrap_or(usize::MAX));
        last = last.or(Some((record, call, why)));
    }
    let (record, call, why) = last.filter(|_| times >= CALLS_IN_VAIN)?;
    let found = finding(
        Kind::PoolFails,
        Weight::Hinders,
        format!("{call} failed {times} times in a row; the last time: {why}"),
        "The pool answers, and refuses what the job needs.",
        "Mend what its words name; the job tries again until its deadline, then puts the VM back.",
    );
    Some(found.since(record.at))
}

fn wrong_nic(view: &View<'_>) -> Option<Finding> {
    view.installing().filter(|_| view.reached == Reached::Nothing)?;
    let mac = view.subject.mac?;
    let other = view.records.iter().find_map(|record| {
        let boots = matches!(&record.what, What::Packet(packet) if packet.asker != Asker::System);
        record.mac.filter(|of| boots && *of != mac).map(|of| (of, record.at))
    });
    let (other, at) = other?;
    let found = finding(
        Kind::WrongNic,
        Weight::Stops,
        format!("The VM netboots from its network card {other}; the job armed {mac}."),
        "The firmware tries network cards in the order of their device numbers, and another one came first or is the only one with a network.",
        &format!(
            "Put VIF {mac} first (device 0), or name the other card: `mac = \"{other}\"` in the machine's section. Then retry the job."
        ),
    );
    Some(found.since(at))
}

fn no_dhcp(view: &View<'_>) -> Option<Finding> {
    view.installing().filter(|_| view.reached == Reached::Nothing)?;
    let seconds = view.seconds().filter(|seconds| *seconds >= FIRST_PACKET)?;
    let heard = view.records.iter().any(|record| record.source() == Source::Dhcp);
    if heard {
        return None;
    }
    let found = finding(
        Kind::NoDhcp,
        Weight::Stops,
        format!("The VM was started {} ago and no DHCP packet of it reached us.", span(seconds * 1000)),
        "Its network card is on a network, or in a VLAN, where this server does not listen; or its first boot device is not the network.",
        "Compare the VIF's network and VLAN with the interface in [[dhcp]], and run `bootflip check`. `tcpdump -eni INTERFACE port 67` on this server shows whether anything arrives.",
    );
    Some(found.shows(
        "PXE-E51: No DHCP or proxyDHCP offers were received, or iPXE: No configuration methods succeeded",
    ))
}

fn second_server(view: &View<'_>) -> Option<Finding> {
    if view.reached > Reached::Script {
        return None;
    }
    let step = "Switch the other server off on this network, or let it only lease and run ours in proxy mode. Switches can block foreign servers (DHCP snooping).";
    let means = "Two servers race; a machine that takes the other's offer gets no boot file of ours, or boots something else.";
    let screen = "PXE-E53: No boot filename received, or somebody else's boot menu";
    if let Some(server) = view.chosen_others().first() {
        let saw = format!("The machine took the offer of another DHCP server, {server}.");
        return Some(finding(Kind::SecondServer, Weight::Stops, saw, means, step).shows(screen));
    }
    let rival = view.subject.rivals.iter().find(|rival| rival.in_the_way)?;
    view.installing()?;
    let does = match (rival.leases, rival.boots) {
        (true, true) => "gives addresses and boot files",
        (false, true) => "gives boot files",
        (true | false, false) => "gives addresses",
    };
    let saw = format!("Another DHCP server, {}, {does} on this network.", rival.server);
    Some(finding(Kind::SecondServer, Weight::Hinders, saw, means, step).shows(screen).since(rival.since))
}

fn unknown_relay(view: &View<'_>) -> Option<Finding> {
    let (times, first, packet) = view.silent("unknown_relay")?;
    if view.reached > Reached::Nothing {
        return None;
    }
    let relay = packet.relay.map(|relay| relay.to_string()).unwrap_or_default();
    let found = finding(
        Kind::UnknownRelay,
        Weight::Stops,
        format!("{times} of its packets came through relay {relay}, which is not in the configuration."),
        "Packets of relays that nobody named are not answered: they could come from anywhere.",
        &format!("If that relay is yours, add \"{relay}\" to `relays` of this [[dhcp]]."),
    );
    Some(found.shows("PXE-E51: No DHCP or proxyDHCP offers were received").since(first.at))
}

fn pool_exhausted(view: &View<'_>) -> Option<Finding> {
    let (times, first, _) = view.silent("pool_exhausted")?;
    if view.reached > Reached::Loader {
        return None;
    }
    let found = finding(
        Kind::PoolExhausted,
        Weight::Stops,
        format!("{times} of its packets could not be answered: no address is free."),
        "Every address of the range is leased.",
        "Widen `range` of [dhcp.server] or shorten `lease`; see the page Leases for who has them.",
    );
    Some(found.shows("PXE-E51: No DHCP or proxyDHCP offers were received").since(first.at))
}

fn no_loader(view: &View<'_>) -> Option<Finding> {
    if view.reached > Reached::Dhcp {
        return None;
    }
    let bare = |told: Told| {
        matches!(
            told,
            Told::Offer { boots: false } | Told::Ack { boots: false } | Told::Silence("no_boot_file")
        )
    };
    let mut packets = view.packets();
    let (record, packet) = packets.find(|(_, packet)| packet.asker != Asker::System && bare(packet.told))?;
    let what = match packet.asker {
        Asker::Rom | Asker::System => "its PXE firmware",
        Asker::HttpRom => "its UEFI HTTP boot",
        Asker::Ipxe => "its iPXE",
    };
    let found = finding(
        Kind::NoLoader,
        Weight::Stops,
        format!("There is no boot file for {what}."),
        "The loader for its architecture is not configured, or [tftp] or [http] is off.",
        "Name a loader for its architecture in [dhcp.loaders] and put the file into tftp.root; `bootflip loaders` fetches the usual ones.",
    );
    Some(
        found
            .shows("PXE-E53: No boot filename received (UEFI: PXE-E16, PXE-E23 or PXE-E99)")
            .since(record.at),
    )
}

fn offers_unheard(view: &View<'_>) -> Option<Finding> {
    if view.reached > Reached::Dhcp {
        return None;
    }
    let (times, since) = view.offers_in_vain();
    let since = since.filter(|_| times >= IN_VAIN)?;
    let found = finding(
        Kind::OffersUnheard,
        Weight::Stops,
        format!("It asked {times} times, was offered an address each time, and never took one."),
        "Our offers do not arrive: a firewall, a VLAN, port security, or checksums that a virtual bridge leaves empty. Or it waits for a proxy's boot server on port 4011.",
        "Look with `tcpdump -eni INTERFACE port 67 or port 68` whether the offer leaves; on a bridge try `ethtool -K INTERFACE tx off`; open 67 and 4011/udp.",
    );
    Some(found.shows("PXE-E51 or PXE-E52 (no offers), PXE-E55 (port 4011 is silent)").since(since))
}

fn missing_file(view: &View<'_>) -> Option<Finding> {
    if view.reached > Reached::Script {
        return None;
    }
    // PXELINUX asks for a dozen names before the one that is there.
    let usual = |file: &str| file.contains("pxelinux.cfg") || file.ends_with(".c32");
    let (record, file) = view.records.iter().rev().find_map(|record| {
        let What::Missing { file } = &record.what else { return None };
        (!usual(file)).then_some((*record, file))
    })?;
    let found = finding(
        Kind::MissingFile,
        Weight::Stops,
        format!("It asked for {file} by TFTP, and there is no such file."),
        "The loader is not in tftp.root, or the firmware mangles its name.",
        "Put the file there (`bootflip loaders`), with read permission for the server's user; names are case-sensitive.",
    );
    Some(found.shows("PXE-T01: File not found, then PXE-E3B").since(record.at))
}

/// Transfers that failed at their end, with their protocol and bytes.
fn failures<'a>(view: &View<'a>, outcomes: &[&str]) -> Vec<(&'a Record, Protocol, &'a str, u64)> {
    let failed = |record: &&'a Record| {
        let What::Fetched { protocol, file, bytes, outcome, .. } = &record.what else { return None };
        outcomes.contains(outcome).then_some((*record, *protocol, file.as_str(), *bytes))
    };
    view.records.iter().filter_map(failed).collect()
}

fn tftp_silent(view: &View<'_>) -> Option<Finding> {
    if view.reached > Reached::Loader {
        return None;
    }
    let lost = failures(view, &["lost", "unanswered"]);
    let nothing = lost.iter().filter(|(_, protocol, _, bytes)| *protocol == Protocol::Tftp && *bytes == 0);
    let all: Vec<_> = nothing.collect();
    let (record, _, file, _) = all.first().filter(|_| all.len() >= 2)?;
    let found = finding(
        Kind::TftpSilent,
        Weight::Stops,
        format!("It asked for {file} by TFTP {} times and confirmed not one block.", all.len()),
        "TFTP answers from a port of its own (RFC 1350), which firewalls and NAT do not expect; or the bridge leaves UDP checksums empty.",
        "Let UDP from this server to the machines pass, or set `tftp.single_port`; on a bridge try `ethtool -K INTERFACE tx off`.",
    );
    Some(found.shows("PXE-E32: TFTP open timeout").since(record.at))
}

fn mtu(view: &View<'_>) -> Option<Finding> {
    if view.reached >= Reached::Answer {
        return None;
    }
    let broken = failures(view, &["lost", "broken-off"]);
    let large = |bytes: u64| bytes > ONE_FRAME;
    let whole: Vec<u64> = failures(view, &["sent", "complete", "unconfirmed"])
        .into_iter()
        .map(|(_, _, _, bytes)| bytes)
        .collect();
    // Anything large that arrived whole says that large packets do arrive.
    if whole.is_empty() || whole.iter().any(|bytes| large(*bytes)) {
        return None;
    }
    let (record, _, file, _) = broken.first().filter(|_| broken.len() >= 2)?;
    let found = finding(
        Kind::Mtu,
        Weight::Hinders,
        format!("Small files arrived; {file} broke off {} times.", broken.len()),
        "Full-size packets are lost on the way: an MTU below 1500 somewhere (VXLAN, GRE, a VPN, a jumbo-frame mismatch), with no ICMP to tell.",
        "Try `ping -M do -s 1472 MACHINE` from this server; give the path one MTU, or set `tftp.block_size` lower.",
    );
    Some(found.shows("PXE-E32 or a transfer that stands still at a few kB").since(record.at))
}

fn no_kernel(view: &View<'_>) -> Option<Finding> {
    view.installing().filter(|_| matches!(view.reached, Reached::Loader | Reached::Script))?;
    let seconds = view.seconds_since(&[Sign::Script, Sign::Loader])?;
    if seconds < SCRIPT_TO_KERNEL {
        return None;
    }
    let has = if view.reached == Reached::Script { "its boot script" } else { "its loader" };
    Some(finding(
        Kind::NoKernel,
        Weight::Stops,
        format!("It fetched {has} {} ago, and no kernel since.", span(seconds * 1000)),
        "The loader cannot reach the boot HTTP listener, or does not understand the script.",
        "Look at the VM's console for iPXE's own words; try the kernel's URL from that network with curl; `bootflip render script --vm NAME` shows the script.",
    ))
}

fn no_answer_file(view: &View<'_>) -> Option<Finding> {
    let job = view.installing().filter(|_| view.reached == Reached::Kernel)?;
    job.profile.boot.as_ref().and_then(|boot| boot.answer.as_ref())?;
    let seconds = view.seconds_since(&[Sign::Kernel, Sign::Initrd])?;
    if seconds < KERNEL_TO_ANSWER {
        return None;
    }
    let leases = view.packets().any(|(_, packet)| packet.asker == Asker::System);
    let means = if leases {
        "The installer has a network and does not know where its answers are: a kernel argument is missing or mistyped."
    } else {
        "The installer has no network: its kernel has no driver for this network card, it chose another card, or DHCP timed out."
    };
    Some(finding(
        Kind::NoAnswerFile,
        Weight::Stops,
        format!("It fetched its kernel {} ago, and its answer file never.", span(seconds * 1000)),
        means,
        "Look at the VM's console: it asks a question or shows the error. Check `args` of the profile (answer_url, BOOTIF, ip=dhcp) with `bootflip render args --vm NAME`.",
    ))
}

fn loop_refused(view: &View<'_>) -> Option<Finding> {
    let job = view.installing().filter(|job| job.rebooted > 0)?;
    let times = match job.rebooted {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    Some(finding(
        Kind::LoopRefused,
        Weight::Hinders,
        format!("After its installation had begun it netbooted again, {times}; it was refused."),
        "The installer rebooted in the middle, or somebody reset the VM. bootflip does not install it a second time by itself: that would be a reinstall loop.",
        "See in the timeline what came before. When the installation is lost, cancel the job and retry it.",
    ))
}

fn installer_error(view: &View<'_>) -> Option<Finding> {
    view.installing()?;
    let (record, text) = view.last_error()?;
    let found = finding(
        Kind::InstallerError,
        Weight::Note,
        format!("The installer logged: {text}"),
        "Its last line that tells of an error. Not every such line stops an installation.",
        "Read the lines around it below, or all of them with `bootflip jobs show --log`.",
    );
    Some(found.since(record.last))
}

fn silent_installer(view: &View<'_>) -> Option<Finding> {
    let job = view.installing().filter(|_| view.reached >= Reached::Answer)?;
    if job.done_at.is_some() || job.halted_at.is_some() {
        return None;
    }
    let heard = view.records.iter().map(|record| record.last).max();
    let stage = job.stages.last();
    let last = stage.map(|stage| stage.at).into_iter().chain(heard).max()?;
    let seconds = view.until.since(last).as_secs();
    if seconds < BETWEEN_STAGES {
        return None;
    }
    let after = stage
        .map_or_else(|| "it fetched its answer file".to_owned(), |stage| format!("stage \"{}\"", stage.name));
    let found = finding(
        Kind::SilentInstaller,
        Weight::Hinders,
        format!("Nothing was heard for {}; the last was {after}.", span(seconds * 1000)),
        "The installer waits for an answer, for a mirror that does not respond, or has stopped.",
        "Look at the VM's console. A question that it asks can be answered in the profile's answer file.",
    );
    Some(found.since(last))
}

fn report_refused(view: &View<'_>) -> Option<Finding> {
    let (record, stage, answer) = view.records.iter().rev().find_map(|record| {
        let What::Unheard { stage, answer } = &record.what else { return None };
        // The same report twice is a retry that was not needed; one that comes a little early comes again.
        let harmless = match *answer {
            TAKEN_BEFORE => true,
            ASKED_AGAIN => record.last.since(record.at) < REPORTS_IN_VAIN,
            _ => false,
        };
        (!harmless).then_some((*record, stage, answer))
    })?;
    let found = finding(
        Kind::ReportRefused,
        Weight::Hinders,
        format!("Its report \"{stage}\" was not taken: {answer}."),
        "Reports count once, in the attempt that they belong to, and by POST unless the profile allows GET.",
        "After a cancel or a deadline that is as it should be. Otherwise compare the report URL in the rendered answer file.",
    );
    Some(found.since(record.at))
}

fn stp_gap(view: &View<'_>) -> Option<Finding> {
    let mut first = view.packets();
    let (record, packet) = first.find(|(_, packet)| packet.asker != Asker::System)?;
    let seconds = in_network_order(packet.seconds);
    if seconds < LATE {
        return None;
    }
    let weight = if view.reached > Reached::Dhcp { Weight::Note } else { Weight::Hinders };
    let found = finding(
        Kind::StpGap,
        weight,
        format!("It had been asking for {seconds} s before its first packet reached us."),
        "The switch port forwards nothing while spanning tree listens and learns, up to 30 s; some machines give up before.",
        "Set the port to edge (portfast) on the switch, also on ports towards the hosts.",
    );
    Some(found.shows("PXE-E51, when it gives up in that time").since(record.at))
}

fn not_armed(view: &View<'_>) -> Option<Finding> {
    if view.subject.job.is_some_and(|job| !job.state.is_terminal()) {
        return None;
    }
    let refused = view.records.iter().rev().find(|record| record.what == What::Refused)?;
    let found = finding(
        Kind::NotArmed,
        Weight::Note,
        "It asked to netboot, and no job of its is open: it was told to boot from its disk.".to_owned(),
        "Its boot order begins with the network. Nothing is installed without a job.",
        "Order an installation if that is wanted; otherwise put the disk first in its boot order.",
    );
    Some(found.since(refused.last))
}

/// Some ROMs write the seconds with the low byte first.
const fn in_network_order(seconds: u16) -> u16 {
    if seconds >= 256 && seconds.trailing_zeros() >= 8 { seconds >> 8 } else { seconds }
}

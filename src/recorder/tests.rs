use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use super::{
    diagnose::{Finding, Kind, Subject, Weight, diagnose},
    pace::Pace,
    *,
};
use crate::{
    boot::sink::{Asked, Asker, Told},
    config::{BootFiles, Completion, Deadlines, EvidenceKind, Fetch, Profile, ProfileKind},
    dhcp::Neighbour,
    provision::{
        job::{GateState, Job, NewJob, Options, StageMark, StartRecord, StateMark},
        reason::Reason,
    },
};

const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);
const SIBLING: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 9]);
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 7));
/// When the VM of every case is started.
const START: u64 = 1_796_000_000_000;

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(START + seconds * 1000)
}

fn packet(asked: Asked, asker: Asker, told: Told) -> Packet {
    Packet { xid: 7, asked, asker, seconds: 0, chose: None, relay: None, told, address: None }
}

const OFFER: Told = Told::Offer { boots: true };

fn discover() -> Packet {
    packet(Asked::Discover, Asker::Rom, OFFER)
}

fn job() -> Job {
    let boot = BootFiles {
        kernel: "k".into(),
        initrd: Vec::new(),
        args: String::new(),
        answer: Some("mini.j2".into()),
        fetch: Fetch::Http,
        seed: Vec::new(),
        files: Vec::new(),
    };
    let profile = Profile {
        name: "mini".into(),
        kind: ProfileKind::Install,
        boot: Some(boot),
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
    let mut job = Job::new(new, Timestamp::from_millis(START - 5000));
    job.mac = Some(MAC);
    enter(&mut job, State::Booting, at(0));
    job.start = Some(StartRecord {
        before: String::new(),
        domid_before: -1,
        intended: at(0),
        task: None,
        seen: None,
        domid: None,
        at: None,
    });
    job.gate = GateState::Booting;
    job
}

fn enter(job: &mut Job, state: State, at: Timestamp) {
    job.state = state;
    job.history.push(StateMark { state, at });
}

fn stage(name: &str, at: Timestamp) -> StageMark {
    StageMark { name: name.into(), at, percent: None, note: String::new(), log: String::new() }
}

/// One case: what is changed of a job that was just started, and what is recorded.
#[derive(Default)]
struct Case {
    job: Option<Job>,
    recorder: Recorder,
    rivals: Vec<Neighbour>,
    now: u64,
}

impl Case {
    fn after(now: u64) -> Self {
        Self { job: Some(job()), now, ..Self::default() }
    }

    fn job(mut self, change: impl FnOnce(&mut Job)) -> Self {
        change(self.job.as_mut().unwrap());
        self
    }

    fn sign(self, sign: Sign, seconds: u64) -> Self {
        self.job(|job| {
            job.signs.insert(sign, at(seconds));
        })
    }

    fn packets(mut self, packet: Packet, seconds: &[u64]) -> Self {
        for second in seconds {
            let noted = Noted { mac: MAC, peer: None, what: Notice::Packet(packet) };
            self.recorder.noted(noted, true, at(*second));
        }
        self
    }

    fn fetched(mut self, protocol: Protocol, bytes: u64, outcome: &'static str, seconds: u64) -> Self {
        let file = format!("file-of-{bytes}");
        let took = Duration::from_secs(1);
        let transfer =
            Transfer { protocol, mac: Some(MAC), job: None, peer: PEER, file, bytes, took, outcome };
        self.recorder.transferred(&transfer, at(seconds));
        self
    }

    fn note(mut self, what: Notice, seconds: u64) -> Self {
        self.recorder.noted(Noted { mac: MAC, peer: Some(PEER), what }, true, at(seconds));
        self
    }

    fn findings(&self) -> Vec<Finding> {
        let subject =
            Subject { now: at(self.now), mac: Some(MAC), job: self.job.as_ref(), rivals: &self.rivals };
        diagnose(&subject, &self.recorder.timeline(&[MAC, SIBLING]))
    }

    #[track_caller]
    fn finds(self, expected: &[(Kind, Weight)], words: &str) {
        let findings = self.findings();
        let found: Vec<_> = findings.iter().map(|finding| (finding.kind, finding.weight)).collect();
        assert_eq!(found, expected, "{findings:#?}");
        let text = findings.iter().map(|finding| format!("{finding:?}")).collect::<String>();
        assert!(text.contains(words), "`{words}` is not in {text}");
    }
}

use Weight::{Hinders, Note as Remark, Stops};

#[test]
fn a_machine_that_goes_on_has_nothing_wrong() {
    Case::after(20).finds(&[], "");
    let boots = packet(Asked::Request, Asker::Rom, Told::Ack { boots: true });
    Case::after(40)
        .packets(discover(), &[5])
        .packets(boots, &[6])
        .sign(Sign::Dhcp, 5)
        .sign(Sign::Script, 8)
        .sign(Sign::Kernel, 9)
        .fetched(Protocol::Http, 900, "sent", 8)
        .fetched(Protocol::Http, 9_000_000, "sent", 12)
        .finds(&[], "");
}

#[test]
fn silence_after_the_start_is_told_from_another_card_that_boots() {
    Case::after(45).finds(&[(Kind::NoDhcp, Stops)], "45 s ago");
    let mut case = Case::after(45);
    let noted = Noted { mac: SIBLING, peer: None, what: Notice::Packet(discover()) };
    case.recorder.noted(noted, true, at(9));
    case.finds(&[(Kind::WrongNic, Stops)], "02:16:3e:00:00:09");
}

#[test]
fn offers_that_nobody_takes_are_seen_and_forgotten_once_one_is_taken() {
    let asks = || Case::after(40).sign(Sign::Dhcp, 2).packets(discover(), &[2, 6, 14, 30]);
    asks().finds(&[(Kind::OffersUnheard, Stops)], "PXE-E55");
    let took = packet(Asked::Request, Asker::Rom, Told::Ack { boots: true });
    asks().packets(took, &[31]).finds(&[], "");
}

#[test]
fn dhcp_says_why_it_gives_nothing() {
    let silent = |why| packet(Asked::Discover, Asker::Rom, Told::Silence(why));
    Case::after(20)
        .packets(silent("pool_exhausted"), &[2, 6])
        .finds(&[(Kind::PoolExhausted, Stops)], "2 of its packets");
    let relayed = Packet { relay: Some(Ipv4Addr::new(10, 1, 0, 1)), ..silent("unknown_relay") };
    Case::after(20).packets(relayed, &[2]).finds(&[(Kind::UnknownRelay, Stops)], "relay 10.1.0.1");
    let bare = packet(Asked::Discover, Asker::HttpRom, Told::Offer { boots: false });
    Case::after(20).sign(Sign::Dhcp, 2).packets(bare, &[2]).finds(&[(Kind::NoLoader, Stops)], "UEFI HTTP");
    for label in ["no_boot_file", "pool_exhausted", "unknown_relay", "other_server", "not_ours", "stranger"] {
        let all = crate::dhcp::Ignored::ALL.map(crate::dhcp::Ignored::label);
        assert!(all.contains(&label), "{label} is none of dhcp's");
    }
}

#[test]
fn a_second_server_is_named() {
    let theirs = Ipv4Addr::new(10, 0, 0, 254);
    let took = packet(Asked::Request, Asker::Rom, Told::Silence("other_server"));
    let took = Packet { chose: Some(theirs), ..took };
    Case::after(20).packets(took, &[3]).finds(&[(Kind::SecondServer, Stops)], "10.0.0.254");
    let rival =
        Neighbour { server: theirs, leases: true, boots: false, since: at(1), last: at(2), in_the_way: true };
    let mut case = Case::after(20);
    case.rivals.push(rival);
    case.finds(&[(Kind::SecondServer, Hinders)], "gives addresses on this network");
    let mut past = Case::after(20).sign(Sign::Kernel, 9);
    past.rivals.push(rival);
    past.finds(&[], "");
}

#[test]
fn a_late_first_packet_is_a_hint_at_spanning_tree() {
    for (seconds, said) in [(28, "28 s"), (28 << 8, "28 s")] {
        let late = Packet { seconds, ..discover() };
        Case::after(40).sign(Sign::Dhcp, 30).packets(late, &[30]).finds(&[(Kind::StpGap, Hinders)], said);
    }
    Case::after(40).sign(Sign::Dhcp, 30).packets(Packet { seconds: 4, ..discover() }, &[30]).finds(&[], "");
}

#[test]
fn tftp_that_nobody_hears_is_told_from_large_packets_that_are_lost() {
    let tftp = |case: Case, bytes, outcome| {
        case.fetched(Protocol::Tftp, bytes, outcome, 10).fetched(Protocol::Tftp, bytes, outcome, 20)
    };
    tftp(Case::after(30).sign(Sign::Loader, 9), 0, "lost").finds(&[(Kind::TftpSilent, Stops)], "PXE-E32");
    let small = Case::after(30).sign(Sign::Kernel, 9).fetched(Protocol::Http, 900, "sent", 8);
    tftp(small, 2900, "broken-off").finds(&[(Kind::Mtu, Hinders)], "MTU");
    let large = Case::after(30).sign(Sign::Kernel, 9).fetched(Protocol::Http, 90_000, "sent", 8);
    tftp(large, 2900, "broken-off").finds(&[], "");
}

#[test]
fn a_file_that_is_not_there_is_named_and_pxelinux_may_search() {
    let missing = |file: &str| Case::after(20).sign(Sign::Dhcp, 2).note(Notice::Missing(file.into()), 5);
    missing("undionly.kpxe").finds(&[(Kind::MissingFile, Stops)], "PXE-T01");
    missing("pxelinux.cfg/01-02-16-3e-00-00-01").finds(&[], "");
    let token = "A".repeat(43);
    let case = missing(&format!("x/{token}/linux"));
    assert!(!format!("{:?}", case.findings()).contains(&token));
}

#[test]
fn what_comes_after_the_script_has_its_time() {
    Case::after(45).sign(Sign::Script, 10).finds(&[(Kind::NoKernel, Stops)], "its boot script 35 s ago");
    let kernel = || Case::after(200).sign(Sign::Script, 10).sign(Sign::Kernel, 12);
    kernel().finds(&[(Kind::NoAnswerFile, Stops)], "no network");
    let lease = packet(Asked::Request, Asker::System, Told::Ack { boots: false });
    kernel()
        .packets(lease, &[60])
        .finds(&[(Kind::NoAnswerFile, Stops)], "does not know where its answers are");
    kernel().job(|job| job.profile.boot.as_mut().unwrap().answer = None).finds(&[], "");
}

fn installing(now: u64) -> Case {
    Case::after(now).sign(Sign::Script, 10).sign(Sign::Kernel, 12).job(|job| {
        enter(job, State::Installing, at(30));
        job.answer_fetches = 1;
        job.gate = GateState::Installing;
        job.stages.push(stage("started", at(40)));
    })
}

#[test]
fn an_installer_that_says_nothing_or_reboots_is_noticed() {
    installing(600).finds(&[], "");
    installing(40 + 1300).finds(&[(Kind::SilentInstaller, Hinders)], "stage \\\"started\\\"");
    let line = |severity, text: &str| Notice::Line { severity, text: text.into() };
    installing(1340).note(line("info", "still unpacking"), 1300).finds(&[], "");
    installing(600)
        .note(line("err", "mirror: 404"), 500)
        .note(line("info", "x"), 501)
        .finds(&[(Kind::InstallerError, Remark)], "mirror: 404");
    installing(600).job(|job| job.rebooted = 2).finds(&[(Kind::LoopRefused, Hinders)], "2 times");
    let mut late = installing(600);
    late.recorder.reported(MAC, "done", ReportAnswer::Closed, Some(PEER), at(590));
    late.finds(&[(Kind::ReportRefused, Hinders)], "takes it no longer");
    let early = |times: u64| {
        let mut case = installing(600);
        for time in 0..times {
            case.recorder.reported(MAC, "booted", ReportAnswer::Later, Some(PEER), at(400 + 5 * time));
        }
        case
    };
    early(24).finds(&[], "");
    early(40).finds(&[(Kind::ReportRefused, Hinders)], "asked to come again");
}

#[test]
fn the_pool_is_told_from_the_machine() {
    let away = |job: &mut Job| job.waiting = Some("connection refused".into());
    Case::after(20).job(away).finds(&[(Kind::PoolAway, Stops)], "connection refused");
    let mut case = Case::after(20);
    for second in 1..4 {
        let failed = Some(format!("HOST_NOT_ENOUGH_FREE_MEMORY {second}"));
        case.recorder.called(MAC, "VM.start", "E8".into(), failed, at(second));
    }
    case.finds(&[(Kind::PoolFails, Hinders)], "3 times in a row");
}

#[test]
fn what_failed_is_judged_as_it_stood_then() {
    let mut failed = job();
    enter(&mut failed, State::Undoing, at(120));
    enter(&mut failed, State::Failed, at(125));
    (failed.reason, failed.detail) = (Some(Reason::NoDhcp), "nothing came".into());
    let case = Case { job: Some(failed.clone()), now: 90_000, ..Case::default() };
    case.finds(&[(Kind::NoDhcp, Stops)], "2 min ago");
    let words: Vec<String> = of_job(&failed).iter().map(Record::words).collect();
    assert_eq!(words.last().unwrap(), "The job is Failed: no-dhcp: nothing came");
}

#[test]
fn a_machine_without_a_job_that_netboots_is_told_so() {
    let mut case = Case { now: 10, ..Case::default() };
    case.recorder.seen(MAC, Sign::NetbootRefused, Some(PEER), at(5));
    case.finds(&[(Kind::NotArmed, Remark)], "boot from its disk");
}

#[test]
fn repetitions_are_one_record_and_a_transfer_is_none() {
    let mut recorder = Recorder::default();
    for second in 0..50_u16 {
        let packet = Packet { xid: second.into(), seconds: second, ..discover() };
        recorder.noted(Noted { mac: MAC, peer: None, what: Notice::Packet(packet) }, true, at(second.into()));
    }
    let [only] = &recorder.timeline(&[MAC])[..] else { panic!("one record") };
    assert_eq!((only.times, only.at, only.last), (50, at(0), at(49)));
    let case = Case { recorder, ..Case::default() }.fetched(Protocol::Http, 5, "sent", 60).fetched(
        Protocol::Http,
        5,
        "sent",
        60,
    );
    assert_eq!(case.recorder.timeline(&[MAC]).len(), 3);
}

#[test]
fn memory_is_bounded_and_no_source_pushes_out_another() {
    let mac = |n: usize| {
        let [.., a, b, c] = n.to_be_bytes();
        MacAddr::new([2, 0x16, 0x3e, a, b, c])
    };
    let mut recorder = Recorder::default();
    recorder.called(MAC, "VM.start", "E8".into(), None, at(0));
    for n in 0..LINES_KEPT * 3 {
        let what = Notice::Line { severity: "info", text: format!("{n} {}", "x".repeat(2 * TEXT)) };
        recorder.noted(Noted { mac: MAC, peer: None, what }, true, at(1));
    }
    let kept = recorder.timeline(&[MAC]);
    assert_eq!(kept.len(), LINES_KEPT + 1);
    assert!(kept.iter().all(|record| record.words().chars().count() <= TEXT + 1));
    for n in 0..STRANGERS_KEPT * 3 {
        let noted = Noted { mac: mac(n), peer: None, what: Notice::Packet(discover()) };
        recorder.noted(noted, false, at(2));
    }
    assert_eq!((recorder.strangers().len(), recorder.len()), (STRANGERS_KEPT, LINES_KEPT + 1));
    for n in 0..MACHINES_KEPT + 50 {
        for call in 0..40 {
            recorder.called(mac(n), &call.to_string(), String::new(), None, at(10 + n as u64));
        }
    }
    assert!(recorder.len() <= ALL_KEPT && recorder.machines.len() <= MACHINES_KEPT);
    let counted: usize = recorder.machines.values().map(Reel::len).sum();
    assert_eq!(counted, recorder.len());
    assert!(recorder.timeline(&[MAC]).is_empty(), "the one that was silent for longest goes first");
}

#[test]
fn a_job_that_is_told_from_others_of_its_profile_has_a_time_left() {
    let ran = |id: &str, base: u64, whole: u64| {
        let mut job = job();
        job.id = id.into();
        job.stages = vec![stage("started", at(60)), stage("base", at(base))];
        enter(&mut job, State::Succeeded, at(whole));
        job
    };
    let mut pace = Pace::default();
    assert_eq!(pace.left(&job(), at(0)), None);
    for (id, base, whole) in [("a", 300, 600), ("b", 400, 800), ("c", 350, 700)] {
        pace.learn(&ran(id, base, whole));
        pace.learn(&ran(id, base, whole));
    }
    let mut now = job();
    let left = |job: &Job, seconds| pace.left(job, at(seconds)).map(|left| left.as_secs());
    assert_eq!(left(&now, 100), Some(600));
    now.stages.push(stage("base", at(500)));
    assert_eq!(left(&now, 500), Some(350));
    assert_eq!(left(&now, 5000), Some(0));
    now.stages.push(stage("own", at(600)));
    assert_eq!(left(&now, 600), Some(100));
    enter(&mut now, State::Undoing, at(700));
    assert_eq!(left(&now, 700), None);
}

#[test]
fn every_source_and_outcome_has_words() {
    let labels: Vec<&str> = Source::ALL.iter().map(|source| source.label()).collect();
    assert_eq!(labels, ["dhcp", "tftp", "http", "gate", "syslog", "report", "xen", "job"]);
    for label in crate::dhcp::Ignored::ALL.map(crate::dhcp::Ignored::label) {
        let words = Case::after(0)
            .packets(packet(Asked::Discover, Asker::Ipxe, Told::Silence(label)), &[1])
            .recorder
            .timeline(&[MAC])[0]
            .words();
        assert!(!words.contains('_'), "{words}");
    }
    let case = Case::after(0).fetched(Protocol::Http, 9_500_000, "broken-off", 3);
    let record = &case.recorder.timeline(&[MAC])[0];
    assert_eq!(record.words(), "file-of-9500000: 9.5 MB in 1 s, broken off by the client.");
    assert_eq!((record.source(), record.tone()), (Source::Http, Tone::Bad));
}

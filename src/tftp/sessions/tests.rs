use super::*;

const LIMITS: Limits = Limits { window: 16, rollover: Rollover::Zero, per_client: 8, in_all: 16, senders: 4 };

fn peer(host: u8, port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, host), port)
}

fn at(port: u8, peer: SocketAddrV4) -> Arrival {
    Arrival { port: Port(port), peer, local: Ipv4Addr::UNSPECIFIED, block_size: 1468 }
}

fn ms(millis: u64) -> Moment {
    Duration::from_millis(millis)
}

const REQUEST: &[u8] = b"\0\x01f\0octet\0";
const WINDOWED: &[u8] = b"\0\x01f\0octet\0windowsize\x004\0";

struct Table(Sessions<()>);

impl Table {
    fn new(limits: Limits) -> Self {
        Self(Sessions::new(limits))
    }

    fn hear(&mut self, now: u64, at: Arrival, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        self.0.receive(ms(now), &at, bytes, &mut actions);
        actions
    }

    /// A request that is found: a file of 10,000 bytes.
    fn ask(&mut self, now: u64, peer: SocketAddrV4, request: &[u8]) -> Option<Id> {
        let actions = self.hear(now, at(0, peer), request);
        let id = actions.iter().find_map(|action| match action {
            Action::Open { id, .. } => Some(*id),
            Action::Send { .. } | Action::Reply { .. } | Action::Tell(_) => None,
        })?;
        let mut more = Vec::new();
        self.0.opened(ms(now), id, Ok(((), 10_000)), &mut more);
        assert!(matches!(more.as_slice(), [Action::Send { .. }]), "{more:?}");
        Some(id)
    }

    fn ack(&mut self, now: u64, id: Id, block: u16) -> Vec<Action> {
        self.hear(now, at(id.port.0, id.peer), &[&[0, 4][..], &block.to_be_bytes()].concat())
    }
}

/// An ERROR's code, where the one action is one.
fn error_code(actions: &[Action]) -> Option<u8> {
    match actions {
        [Action::Reply { packet, .. }] if packet.starts_with(&[0, 5]) => Some(packet[3]),
        _ => None,
    }
}

#[test]
fn a_transfer_runs_to_its_end_and_is_told() {
    let mut table = Table::new(LIMITS);
    let id = table.ask(0, peer(1, 2000), WINDOWED).unwrap();
    assert_eq!(id.port, Port(1));
    assert_eq!(table.ack(1, id, 0), [Action::Send { id, flight: Flight::Blocks { first: 1, count: 4 } }]);
    for block in [4, 8, 12, 16] {
        assert_eq!(
            table.ack(2, id, block),
            [Action::Send { id, flight: Flight::Blocks { first: u64::from(block) + 1, count: 4 } }]
        );
    }
    let ended = Ended {
        peer: peer(1, 2000),
        file: b"f".to_vec(),
        bytes: 10_000,
        took: ms(3),
        outcome: Outcome::Finished(Finish::Complete),
    };
    assert_eq!(table.ack(3, id, 20), [Action::Tell(ended)]);
    assert!(table.0.is_empty());
    assert_eq!(table.ack(4, id, 20), [], "late packets are no strangers'");
}

#[test]
fn what_is_not_served_is_refused_clearly() {
    let mut table = Table::new(LIMITS);
    for (request, code) in [
        (&b"\0\x02f\0octet\0"[..], Some(2)),
        (b"\0\x01f\0netascii\0", Some(4)),
        (b"\0\x01f\0NetASCII\0", Some(4)),
        (b"\0\x01f\0mail\0", Some(4)),
        (b"\0\x01f\0", None),
        (b"\0\x03\0\x01", Some(5)),
    ] {
        let peer = peer(code.unwrap_or_default(), 2000);
        assert_eq!(error_code(&table.hear(0, at(0, peer), request)), code, "{request:?}");
    }
    assert!(table.0.is_empty());
}

#[test]
fn nobody_answers_an_error_or_an_impossible_address() {
    let mut table = Table::new(LIMITS);
    for (host, port) in [(1, 0), (1, 69)] {
        assert_eq!(table.hear(0, at(0, peer(host, port)), REQUEST), []);
    }
    for address in [Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)] {
        assert_eq!(table.hear(0, at(0, SocketAddrV4::new(address, 2000)), REQUEST), []);
    }
    for port in [0, 1] {
        assert_eq!(table.hear(0, at(port, peer(1, 2000)), b"\0\x05\0\x05unknown\0"), []);
    }
}

#[test]
fn strangers_get_one_error_a_second() {
    let mut table = Table::new(LIMITS);
    let ack = b"\0\x04\0\x07";
    let answers = |table: &mut Table, now, host| table.hear(now, at(1, peer(host, 2000)), ack).len();
    assert_eq!(answers(&mut table, 0, 1), 1);
    assert_eq!((1..1000).map(|now| answers(&mut table, now, 1)).sum::<usize>(), 0);
    assert_eq!(answers(&mut table, 1000, 1), 1);
    assert_eq!(answers(&mut table, 1000, 2), 1);
}

#[test]
fn a_request_that_comes_again_gets_a_port_of_its_own() {
    let mut table = Table::new(LIMITS);
    let client = peer(1, 2000);
    let first = table.ask(0, client, WINDOWED).unwrap();
    let second = table.ask(1, client, WINDOWED).unwrap();
    assert_ne!(first.port, second.port);
    // The client takes the first and turns the second down, which hurts nobody.
    assert_eq!(table.ack(2, first, 0).len(), 1);
    let told = table.hear(3, at(second.port.0, client), b"\0\x05\0\x05unknown\0");
    assert!(matches!(&told[..], [Action::Tell(ended)] if ended.outcome.label() == "aborted"), "{told:?}");
    assert_eq!(table.ack(4, first, 4).len(), 1);
    // All ports taken: the client has to wait.
    for _ in 0..3 {
        table.ask(5, client, WINDOWED).unwrap();
    }
    assert_eq!(table.ask(5, client, WINDOWED), None);
}

#[test]
fn a_client_that_gave_up_may_ask_again_from_its_port() {
    for senders in [0, 4] {
        let mut table = Table::new(Limits { senders, ..LIMITS });
        let client = peer(1, 2070);
        for round in 0..10 {
            let id = table.ask(round * 10, client, b"\0\x01f\0octet\0tsize\x000\0").unwrap();
            let told = table.hear(round * 10 + 1, at(id.port.0, client), b"\0\x05\0\x08aborted\0");
            let [Action::Tell(ended)] = &told[..] else { panic!("{told:?}") };
            assert_eq!(ended.outcome, Outcome::Aborted { code: 8, text: "aborted".into() });
        }
        assert!(table.0.is_empty());
    }
}

#[test]
fn in_single_port_mode_a_doubled_request_disturbs_nothing() {
    let mut table = Table::new(Limits { senders: 0, ..LIMITS });
    let client = peer(1, 2000);
    let id = table.ask(0, client, WINDOWED).unwrap();
    assert_eq!(id.port, LISTENER);
    assert_eq!(table.hear(5, at(0, client), WINDOWED), []);
    assert_eq!(table.ack(10, id, 0).len(), 1);
    assert_eq!(table.hear(20, at(0, client), WINDOWED), []);
    assert_eq!(table.ack(30, id, 4).len(), 1);
    let again = table.ask(1100, client, WINDOWED).unwrap();
    assert_ne!(again, id, "the client began anew");
    assert!(table.ask(1200, client, REQUEST).is_some(), "another request is no repetition");
    assert_eq!(table.0.len(), 1);
}

#[test]
fn limits_hold_and_only_the_unanswered_give_way() {
    let mut table = Table::new(LIMITS);
    let ids: Vec<Id> = (0..8).map(|n| table.ask(0, peer(1, 2000 + n), WINDOWED).unwrap()).collect();
    for id in &ids[1..] {
        table.ack(1, *id, 0);
    }
    let last = table.ask(2, peer(1, 3000), WINDOWED).expect("the unanswered one gave way");
    assert_eq!(error_code(&table.ack(3, ids[0], 0)), Some(5), "it is a stranger now");
    table.ack(3, last, 0);
    assert_eq!(table.ask(4, peer(1, 3001), WINDOWED), None, "eight at work are the limit of an address");
    assert!(table.ask(4, peer(2, 2000), WINDOWED).is_some());
    // A flood from everywhere: the table stays at its limit, those at work stay, a newcomer gets in.
    for n in 0..10_000_u16 {
        let [high, low] = n.to_be_bytes();
        let stranger = SocketAddrV4::new(Ipv4Addr::new(10, 1, high, low), 2000);
        assert!(table.ask(5, stranger, WINDOWED).is_some());
        assert!(table.0.len() <= LIMITS.in_all * (WAITING + 1));
    }
    assert!(table.0.timers.len() <= LIMITS.in_all * (WAITING + 1) * TIMERS_PER_TRANSFER + 1);
    assert!(table.0.half_open.len() <= LIMITS.in_all * WAITING * 2 + 1);
    let good = table.ask(6, peer(3, 2000), WINDOWED).unwrap();
    assert_eq!(table.ack(7, good, 0).len(), 1);
    for id in &ids[1..] {
        assert_eq!(table.ack(7, *id, 4).len(), 1);
    }
}

#[test]
fn a_flood_does_not_push_out_who_has_only_just_asked_nor_do_more_work_at_once_than_may() {
    let mut table = Table::new(LIMITS);
    let flood = |table: &mut Table, from: u16, count: usize| -> Vec<Id> {
        let strangers = (0..u16::try_from(count).unwrap()).map(|n| {
            let [high, low] = (from + n).to_be_bytes();
            SocketAddrV4::new(Ipv4Addr::new(10, 1, high, low), 2000)
        });
        strangers.map(|stranger| table.ask(5, stranger, WINDOWED).unwrap()).collect()
    };
    let good = table.ask(5, peer(3, 2000), WINDOWED).unwrap();
    flood(&mut table, 0, LIMITS.in_all * (WAITING - 1));
    assert_eq!(table.ack(6, good, 0).len(), 1, "it was not pushed out by fifteen times the transfers");
    let many = flood(&mut table, 10_000, LIMITS.in_all * 2);
    let sends = many.iter().filter(|id| !table.ack(7, **id, 0).is_empty()).count();
    assert_eq!(sends, LIMITS.in_all - 1, "so many work at once, and the good one");
    assert_eq!(table.ask(8, peer(4, 2000), WINDOWED), None, "all are at work");
    assert_eq!(table.0.answered, LIMITS.in_all);
}

#[test]
fn timers_follow_the_transfers() {
    let mut table = Table::new(LIMITS);
    let id = table.ask(0, peer(1, 2000), WINDOWED).unwrap();
    assert_eq!(table.0.deadline(), Some(ms(1000)));
    table.ack(10, id, 0);
    assert_eq!(table.0.deadline(), Some(ms(210)), "the measured way is shorter");
    table.ack(100, id, 4);
    let mut actions = Vec::new();
    table.0.expire(ms(210), &mut actions);
    assert_eq!(actions, [], "it has moved on");
    assert!(table.0.deadline().unwrap() > ms(210));
    table.0.expire(ms(1000), &mut actions);
    assert_eq!(actions, [Action::Send { id, flight: Flight::Blocks { first: 5, count: 4 } }]);
    table.0.expire(ms(100_000), &mut actions);
    assert!(matches!(actions.last(), Some(Action::Tell(ended)) if ended.outcome.label() == "lost"));
    assert!(table.0.is_empty());
}

#[test]
fn files_that_are_not_there_and_disks_that_fail_are_told() {
    let mut table = Table::new(LIMITS);
    let denial = Denial { code: ErrorCode::NotFound, text: "File not found" };
    let opened = table.hear(0, at(0, peer(1, 2000)), REQUEST);
    let [Action::Open { id, file }] = &opened[..] else { panic!("{opened:?}") };
    assert_eq!(file, b"f");
    let mut actions = Vec::new();
    table.0.opened(ms(1), *id, Err(denial), &mut actions);
    assert_eq!(error_code(&actions), Some(1));
    let id = table.ask(2, peer(1, 2000), REQUEST).unwrap();
    actions.clear();
    table.0.read_failed(ms(3), id, &mut actions);
    assert_eq!(error_code(&actions[..1]), Some(0));
    assert!(matches!(&actions[1], Action::Tell(ended) if ended.outcome == Outcome::ReadFailed));
    // What was given up meanwhile is nobody's.
    table.0.opened(ms(4), id, Ok(((), 1)), &mut actions);
    table.0.read_failed(ms(4), id, &mut actions);
    assert_eq!(actions.len(), 2);
}

#[test]
fn a_server_that_stops_lets_transfers_end_and_takes_no_more() {
    let mut table = Table::new(LIMITS);
    let id = table.ask(0, peer(1, 2000), REQUEST).unwrap();
    table.0.close();
    assert_eq!(table.ask(1, peer(2, 2000), REQUEST), None);
    assert_eq!(table.ack(2, id, 1).len(), 1);
    let mut actions = Vec::new();
    table.0.stop(ms(3), &mut actions);
    assert_eq!(error_code(&actions[..1]), Some(0));
    assert!(
        matches!(&actions[1], Action::Tell(ended) if ended.outcome == Outcome::Stopped && ended.bytes == 512)
    );
    assert!(table.0.is_empty());
}

use super::*;

const TERMS: Terms = Terms { block_size: 1468, window: 64, rollover: Rollover::Zero };
const SECOND: Duration = Duration::from_secs(1);

fn ms(millis: u64) -> Moment {
    Duration::from_millis(millis)
}

fn asked(window: u16) -> Asked {
    Asked { block_size: Some(100), window: Some(window), ..Asked::default() }
}

/// A transfer of `blocks` blocks of 100 bytes, the last one of 50, whose OACK was answered after 10 ms.
fn running(window: u16, blocks: u64) -> (Transfer, Step) {
    let (mut transfer, flight) = Transfer::begin(&asked(window), &TERMS, blocks * 100 - 50, ms(0));
    assert_eq!(flight, Flight::Options);
    let step = transfer.acknowledge(0, ms(10));
    (transfer, step)
}

fn send(first: u64, count: u16) -> Step {
    Step::Send(Flight::Blocks { first, count })
}

#[test]
fn without_options_the_first_answer_is_block_1() {
    let (mut transfer, flight) = Transfer::begin(&Asked::default(), &TERMS, 1024, ms(0));
    assert_eq!(flight, Flight::Blocks { first: 1, count: 1 });
    assert_eq!(transfer.acknowledge(1, ms(1)), send(2, 1));
    // 1024 bytes are two full blocks: an empty one says that it is over.
    assert_eq!(transfer.acknowledge(2, ms(2)), send(3, 1));
    assert_eq!(transfer.span(3, 1), (1024, 0));
    assert_eq!(transfer.acknowledge(3, ms(3)), Step::Done(Finish::Complete));
    assert_eq!(transfer.bytes_arrived(), 1024);
    let (mut empty, _) = Transfer::begin(&Asked::default(), &TERMS, 0, ms(0));
    assert_eq!(empty.acknowledge(1, ms(1)), Step::Done(Finish::Complete));
}

#[test]
fn blocks_follow_windows_and_spans_are_within_the_file() {
    let (mut transfer, step) = running(4, 10);
    assert_eq!(step, send(1, 4));
    assert_eq!(transfer.span(1, 4), (0, 400));
    assert_eq!(transfer.acknowledge(4, ms(20)), send(5, 4));
    assert_eq!(transfer.acknowledge(8, ms(30)), send(9, 2));
    assert_eq!(transfer.span(9, 2), (800, 150));
    assert_eq!(transfer.acknowledge(10, ms(40)), Step::Done(Finish::Complete));
}

#[test]
fn only_what_was_asked_for_is_granted_and_within_the_terms() {
    let all = Asked { block_size: Some(65_464), window: Some(65_535), timeout: Some(3), size: true };
    let terms = Terms { block_size: 65_464, ..TERMS };
    for (asked, terms, text) in [
        (all, TERMS, "\0\u{6}tsize\u{0}9\0blksize\u{0}1468\0timeout\u{0}3\0windowsize\u{0}64\0"),
        (all, terms, "\0\u{6}tsize\u{0}9\0blksize\u{0}65464\0timeout\u{0}3\0windowsize\u{0}2\0"),
        (Asked { timeout: Some(11), size: true, ..Asked::default() }, TERMS, "\0\u{6}tsize\u{0}9\0"),
        (Asked { window: Some(7), ..Asked::default() }, TERMS, "\0\u{6}windowsize\u{0}7\0"),
    ] {
        let (transfer, _) = Transfer::begin(&asked, &terms, 9, ms(0));
        assert_eq!(String::from_utf8(transfer.granted().packet()).unwrap(), text);
    }
    let (_, flight) = Transfer::begin(&Asked { timeout: Some(11), ..Asked::default() }, &TERMS, 9, ms(0));
    assert_eq!(flight, Flight::Blocks { first: 1, count: 1 }, "nothing is granted: no OACK");
}

#[test]
fn repeated_acknowledgements_send_nothing_in_lock_step() {
    let (mut transfer, _) = running(1, 10);
    assert_eq!(transfer.acknowledge(1, ms(20)), send(2, 1));
    for at in 21..2000 {
        assert_eq!(transfer.acknowledge(1, ms(at)), Step::Wait);
        assert_eq!(transfer.acknowledge(0, ms(at)), Step::Wait);
    }
    assert_eq!(transfer.acknowledge(2, ms(2000)), send(3, 1));
}

#[test]
fn a_hole_is_filled_at_once_and_once() {
    let (mut transfer, _) = running(4, 10);
    assert_eq!(transfer.acknowledge(2, ms(20)), send(3, 4), "a partial window goes on behind the hole");
    assert_eq!(transfer.acknowledge(2, ms(21)), Step::Wait, "too soon: the network doubled it");
    assert_eq!(transfer.acknowledge(2, ms(30)), send(3, 4), "the window's first block is missing");
    assert_eq!(transfer.acknowledge(2, ms(40)), Step::Wait, "once");
    assert_eq!(transfer.acknowledge(1, ms(50)), Step::Wait);
    let Step::Send(again) = transfer.expire(transfer.deadline()) else { panic!() };
    assert_eq!(Step::Send(again), send(3, 4));
    assert_eq!(transfer.acknowledge(7, ms(700)), Step::Wait, "never sent");
    assert_eq!(transfer.acknowledge(6, ms(800)), send(7, 4));
}

#[test]
fn the_timer_backs_off_and_gives_up() {
    let (mut transfer, _) = running(4, 10);
    let (mut pauses, mut last) = (Vec::new(), ms(10));
    let finish = loop {
        let deadline = transfer.deadline();
        assert_eq!(transfer.expire(deadline - ms(1)), Step::Wait);
        pauses.push((deadline - last).as_millis());
        last = deadline;
        match transfer.expire(deadline) {
            Step::Send(flight) => assert_eq!(Step::Send(flight), send(1, 4)),
            Step::Done(finish) => break finish,
            Step::Wait => panic!("nothing at the deadline"),
        }
    };
    assert_eq!(pauses[..6], [200, 400, 800, 1600, 3200, 5000]);
    assert_eq!(finish, Finish::Lost);
    assert!((30 * SECOND..40 * SECOND).contains(&last), "{last:?}");
}

#[test]
fn a_stranger_gets_three_datagrams() {
    for asked in [Asked::default(), asked(64)] {
        let (mut transfer, _) = Transfer::begin(&asked, &TERMS, 1 << 20, ms(0));
        let mut sent = 1;
        while let Step::Send(_) = transfer.expire(transfer.deadline()) {
            sent += 1;
        }
        assert_eq!(sent, 3);
        assert_eq!(transfer.expire(transfer.deadline()), Step::Done(Finish::Unanswered));
    }
}

#[test]
fn a_last_acknowledgement_that_never_comes_is_no_failure() {
    let (mut transfer, _) = running(4, 2);
    let finish = loop {
        if let Step::Done(finish) = transfer.expire(transfer.deadline()) {
            break finish;
        }
    };
    assert_eq!(finish, Finish::Unconfirmed);
    assert!(transfer.deadline() < 20 * SECOND);
}

#[test]
fn an_agreed_timeout_is_kept() {
    let asked = Asked { timeout: Some(3), ..Asked::default() };
    let (mut transfer, _) = Transfer::begin(&asked, &TERMS, 5000, ms(0));
    transfer.acknowledge(0, ms(1));
    transfer.acknowledge(1, ms(2));
    assert_eq!(transfer.deadline(), ms(3002));
}

#[test]
fn the_pause_follows_the_round_trip() {
    let (mut transfer, _) = running(1, 1000);
    let mut now = ms(10);
    for block in 1..200 {
        now += ms(500);
        transfer.acknowledge(block, now);
    }
    let pause = transfer.deadline() - now;
    assert!((ms(500)..ms(600)).contains(&pause), "{pause:?}");
}

/// Every block of a long transfer is numbered as the client expects, and acknowledgements find it again.
#[test]
fn block_numbers_roll_over_to_zero_or_one() {
    for (rollover, after) in [(Rollover::Zero, 0), (Rollover::One, 1)] {
        let terms = Terms { rollover, ..TERMS };
        let asked = Asked { block_size: Some(8), window: Some(16), ..Asked::default() };
        let blocks = 200_000;
        let (mut transfer, _) = Transfer::begin(&asked, &terms, blocks * 8 - 1, ms(0));
        let mut step = transfer.acknowledge(0, ms(0));
        let (mut expected, mut seen) = (1_u16, 0);
        while let Step::Send(Flight::Blocks { first, count }) = step {
            for block in first..first + u64::from(count) {
                assert_eq!(transfer.number(block), expected, "block {block}");
                expected = if expected == 65_535 { after } else { expected + 1 };
                seen = block;
            }
            // Every other window comes in two parts.
            let part = if seen % 32 == 0 { seen - 7 } else { seen };
            let number = transfer.number(part);
            step = transfer.acknowledge(number, ms(seen));
            if part != seen {
                assert_eq!(step, send(part + 1, u16::try_from(blocks - part).unwrap_or(u16::MAX).min(16)));
                step = transfer.acknowledge(transfer.number(seen), ms(seen));
            }
        }
        assert_eq!((step, seen), (Step::Done(Finish::Complete), blocks));
    }
}

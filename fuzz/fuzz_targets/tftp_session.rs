//! A server and whatever clients send: limits hold, a stranger gets little, nothing is sent beyond a file's end, and an
//! ERROR is never answered. Bytes are steps: who, what, and how much later.
#![no_main]

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddrV4},
    time::Duration,
};

use bootflip::tftp::{
    packet::ErrorCode,
    sessions::{Action, Arrival, Denial, Id, LISTENER, Limits, Port, Sessions},
    transfer::{FIRST_SENDINGS, Flight, Rollover},
};

const IN_ALL: usize = 6;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((first, steps)) = bytes.split_first() else { return };
    let limits = Limits {
        window: 1 + u16::from(first & 15),
        rollover: if first & 16 == 0 { Rollover::Zero } else { Rollover::One },
        per_client: 3,
        in_all: IN_ALL,
        senders: if first & 32 == 0 { 2 } else { 0 },
    };
    let length = [0, 1, 512, 700_000][usize::from(first >> 6)];
    let mut server = Server { sessions: Sessions::new(limits), limits, length, now: Duration::ZERO, unanswered: HashMap::new() };
    let mut rest = steps;
    while let Some((step, after)) = rest.split_first_chunk::<4>() {
        rest = server.step(*step, after);
    }
    server.act(|sessions, now, actions| sessions.stop(now, actions));
    assert!(server.sessions.is_empty());
});

struct Server {
    sessions: Sessions<()>,
    limits: Limits,
    length: u64,
    now: Duration,
    /// Datagrams of transfers that no client has answered.
    unanswered: HashMap<Id, u32>,
}

impl Server {
    fn step<'b>(&mut self, [who, what, high, low]: [u8; 4], rest: &'b [u8]) -> &'b [u8] {
        self.now += Duration::from_millis(u64::from(who >> 4) * u64::from(who >> 4) * 10);
        let now = self.now;
        self.act(|sessions, _, actions| sessions.expire(now, actions));
        let peer = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1 + (who & 1)), 1000 + u16::from(who >> 1 & 7));
        let port = if what & 1 == 0 { LISTENER } else { Port(1 + (what >> 1 & 1)) };
        let at = Arrival { port, peer, local: Ipv4Addr::UNSPECIFIED, block_size: 1468 };
        let take = rest.len().min(usize::from(low));
        let (packet, after): (Vec<u8>, _) = match what >> 5 {
            0 => (b"\0\x01f\0octet\0".to_vec(), rest),
            1 => (b"\0\x01f\0octet\0blksize\x008\0windowsize\x009\0tsize\x000\0".to_vec(), rest),
            2 | 3 | 4 => (vec![0, 4, high, low], rest),
            5 => (vec![0, 5, high, low], rest),
            _ => (rest[..take].to_vec(), &rest[take..]),
        };
        if let [0, 4, ..] = packet[..] {
            // It may have been an answer: from here on the transfer's own limits count.
            self.unanswered.retain(|id, _| id.peer != peer);
        }
        let error = packet.starts_with(&[0, 5]);
        let replies = self.act(|sessions, now, actions| sessions.receive(now, &at, &packet, actions));
        assert!(!error || replies == 0, "an ERROR was answered");
        after
    }

    /// Does what the sessions want; returns how many packets left.
    fn act(&mut self, change: impl FnOnce(&mut Sessions<()>, Duration, &mut Vec<Action>)) -> u32 {
        let mut actions = Vec::new();
        let mut replies = 0;
        change(&mut self.sessions, self.now, &mut actions);
        while let Some(action) = actions.pop() {
            match action {
                Action::Open { id, file } => {
                    let denial = Denial { code: ErrorCode::NotFound, text: "File not found" };
                    let content = if file == b"f" { Ok(((), self.length)) } else { Err(denial) };
                    self.unanswered.insert(id, 0);
                    self.sessions.opened(self.now, id, content, &mut actions);
                }
                Action::Send { id, flight } => {
                    replies += 1;
                    self.check(id, flight);
                }
                Action::Reply { packet, .. } => {
                    replies += 1;
                    assert!(packet.starts_with(&[0, 5]) && packet.ends_with(&[0]));
                }
                Action::Tell(ended) => assert!(ended.bytes <= self.length),
            }
        }
        assert!(self.sessions.len() <= IN_ALL);
        replies
    }

    fn check(&mut self, id: Id, flight: Flight) {
        let (transfer, (), _) = self.sessions.running(id).expect("it runs, as it sends");
        if let Flight::Blocks { first, count } = flight {
            assert!(first > 0 && (1..=self.limits.window).contains(&count));
            let (offset, length) = transfer.span(first, count);
            assert!(offset + length <= self.length);
            assert!(length <= u64::from(count) * u64::from(transfer.block_size()));
        }
        if let Some(sent) = self.unanswered.get_mut(&id) {
            *sent += 1;
            assert!(*sent <= FIRST_SENDINGS, "a stranger got more than {FIRST_SENDINGS} datagrams");
        }
    }
}

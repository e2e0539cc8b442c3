//! What PXE clients do on TFTP, and what a server has to make of it: quirks 21 to 30 of the list in `docs/tftp.md`.

use std::time::Duration;

use bootflip::{config::TftpEngine, tftp::transfer::Rollover};

use super::{
    NOT_FOUND, Rig,
    client::{Client, ack, fetch, granted, request},
    loader,
};

/// Long enough for an answer, short enough for silence.
const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(20);

/// Quirk 21: firmware asks for the size alone, then sends ERROR 8, and asks again from the same port.
pub(super) async fn quirk_21_a_probe_for_the_size_is_no_failure(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    for _ in 0..5 {
        client.peer = None;
        client.ask(b"undionly.kpxe", &[("tsize", "0")]).await;
        let packet = client.next(LONG).await.unwrap();
        assert_eq!(granted(&packet)["tsize"], "100000");
        client.reply(b"\0\x05\0\x08User aborted the transfer\0").await;
    }
    client.peer = None;
    assert!(client.get(b"undionly.kpxe", &[("tsize", "0"), ("blksize", "1432")]).await.unwrap() == loader());
}

/// Quirk 22: blocks fit into a frame of the interface; options that nobody knows are left out of the answer.
pub(super) async fn quirk_22_blocks_fit_and_unknown_options_are_left_out(engine: TftpEngine) {
    let rig = Rig::new(engine);
    for (asked, expected) in
        [("8", "8"), ("1432", "1432"), ("1468", "1468"), ("1469", "1468"), ("65464", "1468")]
    {
        let options = [("blksize", asked), ("multicast", ""), ("x-vendor", "1")];
        let (content, granted) = fetch(rig.servers[0], b"unnamed", &options).await.unwrap();
        assert_eq!(
            (content.as_slice(), granted["blksize"].as_str(), granted.len()),
            (&b"unnamed"[..], expected, 1)
        );
    }
}

/// Quirk 23: repeated ACKs send nothing again; the first DATA waits for ACK 0 when there was an OACK.
pub(super) async fn quirk_23_repeated_acks_send_nothing_again(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    client.ask(b"undionly.kpxe", &[("blksize", "512")]).await;
    assert_eq!(client.next(LONG).await.unwrap()[1], 6);
    client.reply(&ack(0)).await;
    for block in 1..=50_u16 {
        let packet = client.next(LONG).await.unwrap();
        assert_eq!(packet[..4], [0, 3, 0, block.to_be_bytes()[1]], "exactly one of each block");
        for _ in 0..3 {
            client.reply(&ack(block)).await;
        }
    }
}

/// Quirk 24: after block 65,535 comes block 0.
pub(super) async fn quirk_24_block_numbers_roll_over_to_zero(engine: TftpEngine) {
    rolls_over(Rig::new(engine), 0).await;
}

/// Quirk 24: or block 1, for clients that expect that.
pub(super) async fn quirk_24_block_numbers_roll_over_to_one_where_configured(engine: TftpEngine) {
    rolls_over(Rig::with(engine, |config| config.rollover = Rollover::One), 1).await;
}

async fn rolls_over(rig: Rig, rollover: u16) {
    let content: Vec<u8> = (0..140_000_u32).flat_map(u32::to_be_bytes).collect();
    rig.write("large", &content);
    let mut client = Client::new(rig.servers[0]).await;
    client.rollover = rollover;
    let options = [("blksize", "8"), ("windowsize", "16")];
    assert!(client.get(b"large", &options).await.unwrap() == content);
}

/// Quirk 25: never more than the window, and a lost block is sent again with all behind it.
pub(super) async fn quirk_25_a_window_is_kept_and_a_hole_in_it_filled(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    client.ask(b"undionly.kpxe", &[("windowsize", "8")]).await;
    assert_eq!(client.next(LONG).await.unwrap()[1], 6);
    client.reply(&ack(0)).await;
    let numbers = async |client: &mut Client| {
        let mut numbers = Vec::new();
        for _ in 0..8 {
            numbers.push(client.next(LONG).await.unwrap()[3]);
        }
        numbers
    };
    assert_eq!(numbers(&mut client).await, [1, 2, 3, 4, 5, 6, 7, 8]);
    // Block 4 was lost.
    client.reply(&ack(3)).await;
    assert_eq!(numbers(&mut client).await, [4, 5, 6, 7, 8, 9, 10, 11]);
    client.reply(&ack(11)).await;
    assert_eq!(numbers(&mut client).await, [12, 13, 14, 15, 16, 17, 18, 19]);
}

/// Quirk 25: when the first block of a window is lost, the client repeats the ACK before it, and is not left waiting.
pub(super) async fn quirk_25_a_lost_first_block_comes_at_once(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    client.ask(b"undionly.kpxe", &[("windowsize", "4"), ("timeout", "10")]).await;
    assert_eq!(client.next(LONG).await.unwrap()[1], 6);
    client.reply(&ack(0)).await;
    for expected in 1..=4 {
        assert_eq!(client.next(LONG).await.unwrap()[3], expected);
    }
    // Its timer would take ten seconds.
    client.reply(&ack(0)).await;
    for expected in 1..=4 {
        assert_eq!(client.next(Duration::from_secs(8)).await.unwrap()[3], expected);
    }
}

/// Quirk 26: the last ACK often never comes; the port may ask for the next file all the same.
pub(super) async fn quirk_26_the_last_ack_may_never_come(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    for _ in 0..3 {
        client.peer = None;
        client.ask(b"unnamed", &[]).await;
        assert_eq!(client.next(LONG).await.unwrap(), b"\0\x03\0\x01unnamed");
    }
}

/// Quirk 27: names come with backslashes, slashes in front, a trailing 0xFF or NUL, and MACs in any case.
pub(super) async fn quirk_27_names_are_understood_in_every_spelling(engine: TftpEngine) {
    let rig = Rig::new(engine);
    for name in ["u/initrd.gz", "/u/initrd.gz", "\\u\\initrd.gz", "//u//initrd.gz", "./u/initrd.gz"] {
        assert_eq!(rig.text(name).await, "initrd", "{name}");
    }
    for name in ["01-02-00-00-00-00-01", "01-02-00-00-00-00-01"] {
        let upper = name.to_uppercase();
        assert!(rig.text(&format!("pxelinux.cfg/{upper}")).await.starts_with("DEFAULT install"), "{upper}");
    }
    // Percent signs and `#` stand for themselves.
    rig.write("a#b%20c", b"odd");
    assert_eq!(rig.text("a#b%20c").await, "odd");
}

/// Quirk 27: a name without its last NUL, or with 0xFF behind it.
pub(super) async fn quirk_27_a_forgotten_nul_is_no_obstacle(engine: TftpEngine) {
    let rig = Rig::new(engine);
    for packet in
        [&b"\0\x01unnamed\xff\0octet\0"[..], b"\0\x01unnamed\0octet", b"\0\x01unnamed\0octet\0blksize\0"]
    {
        let mut client = Client::new(rig.servers[0]).await;
        client.send(packet, rig.servers[0]).await;
        assert_eq!(client.next(LONG).await.unwrap(), b"\0\x03\0\x01unnamed", "{packet:?}");
        client.reply(&ack(1)).await;
    }
}

/// Quirk 28: PXELINUX asks for many names that are not there, and gets each answer at once.
pub(super) async fn quirk_28_names_that_are_not_there_are_answered_at_once(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    for name in
        ["ldlinux.c32", "boot/isolinux/ldlinux.c32", "pxelinux.cfg/0A00", "grub.cfg-01-02-00-00-00-00-09"]
    {
        client.peer = None;
        client.ask(name.as_bytes(), &[("tsize", "0"), ("blksize", "1408")]).await;
        assert_eq!(client.next(LONG).await.unwrap()[..4], [0, 5, 0, 1], "{name}");
    }
}

/// Quirk 29: files may leave from the port that was asked.
pub(super) async fn quirk_29_one_port_serves_all(engine: TftpEngine) {
    let rig = Rig::with(engine, |config| config.single_port = true);
    let fetches = (0..8).map(async |_| {
        let mut client = Client::new(rig.servers[0]).await;
        for options in [&[][..], &[("blksize", "1428"), ("windowsize", "8")]] {
            client.peer = None;
            client.granted.clear();
            assert!(client.get(b"undionly.kpxe", options).await.unwrap() == loader());
            assert_eq!(client.peer, Some(rig.servers[0]));
        }
    });
    futures_util::future::join_all(fetches).await;
}

/// Quirk 29: a server that listens on all addresses answers from the one that was asked.
pub(super) async fn quirk_29_the_answer_leaves_from_the_address_that_was_asked(engine: TftpEngine) {
    for single_port in [false, true] {
        let rig = Rig::with(engine, |config| {
            config.listen = vec!["0.0.0.0:0".parse().unwrap()];
            config.single_port = single_port;
        });
        for address in ["127.0.0.1", "127.0.0.7", "127.1.2.3"] {
            let server = format!("{address}:{}", rig.servers[0].port()).parse().unwrap();
            for options in [&[][..], &[("blksize", "1428"), ("windowsize", "8")]] {
                let (content, _) = fetch(server, b"undionly.kpxe", options).await.unwrap();
                assert!(content == loader(), "{address}");
            }
            assert_eq!(fetch(server, b"none", &[]).await.unwrap_err(), NOT_FOUND);
        }
    }
}

/// Quirk 30: netascii is refused with a reason that a person can read.
pub(super) async fn quirk_30_netascii_is_refused_clearly(engine: TftpEngine) {
    let rig = Rig::new(engine);
    for (mode, text) in [("netascii", "netascii is not served"), ("mail", "mail is not served")] {
        let mut client = Client::new(rig.servers[0]).await;
        client.send(&request(b"unnamed", mode, &[]), rig.servers[0]).await;
        let packet = client.next(LONG).await.unwrap();
        assert_eq!(packet[..4], [0, 5, 0, 4]);
        assert!(String::from_utf8_lossy(&packet).contains(text), "{packet:?}");
    }
}

/// Quirk 30: nothing is ever written.
pub(super) async fn quirk_30_writing_is_refused(engine: TftpEngine) {
    let rig = Rig::new(engine);
    let mut client = Client::new(rig.servers[0]).await;
    client.send(b"\0\x02unnamed\0octet\0", rig.servers[0]).await;
    assert_eq!(client.next(LONG).await.unwrap()[..4], [0, 5, 0, 2]);
    client.peer = None;
    assert_eq!(client.next(SHORT).await, None, "one answer");
    assert_eq!(rig.text("unnamed").await, "unnamed");
}

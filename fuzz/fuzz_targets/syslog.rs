//! What an installer says of itself: a syslog datagram, and an event of Subiquity's webhook.
#![no_main]

use bootflip::{
    clock::Timestamp,
    machine::MacAddr,
    provision::stages,
    syslog::{Intake, TEXT_LIMIT, parse},
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some(message) = parse(bytes) {
        assert!(!message.text.is_empty() && message.text.chars().all(|c| !c.is_control()));
        // A character that is shown by its number takes up to ten.
        assert!(message.text.chars().count() <= TEXT_LIMIT * 10);
    }
    let now = Timestamp::from_millis(1_796_000_000_000);
    let mut intake = Intake::new(now);
    if let Ok((_, line)) = intake.take(Some(MacAddr::new([2, 0, 0, 0, 0, 1])), bytes, now) {
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with('\n'));
    }
    if let Some((stage, _)) = stages::of_event(bytes) {
        assert!(stage != "done" && stage != "failed" && stages::usual_percent(stage).is_some());
    }
});

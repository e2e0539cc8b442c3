//! How fast, and in how much memory, the answer to VM.get_all_records of a large pool is read: `cargo bench --bench
//! decode`. Fails where it is slower than 100 MB a second on one core, or takes four times the body's memory.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::cast_precision_loss)]

#[path = "compare/decode.rs"]
mod measured;

use measured::{LARGEST, SLOWEST, measure};

fn main() {
    let decoded = measure();
    println!("{decoded}");
    assert!(decoded.speed >= SLOWEST, "slower than {SLOWEST} MB/s");
    assert!(decoded.share < LARGEST, "more than {LARGEST} times the body");
}

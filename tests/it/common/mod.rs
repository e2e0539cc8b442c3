//! What several areas of the tests share.

pub(crate) mod ports;
pub(crate) mod programs;
pub(crate) mod reference;
pub(crate) mod site;

/// Longer than anything takes that a test waits for.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

/// Prints past the capture of a test's own output: figures that one wants to see of a run that goes well.
pub(crate) fn tell(text: &str) {
    use std::io::Write;
    let _ = std::io::stderr().write_all(text.as_bytes());
}

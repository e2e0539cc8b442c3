//! What the demo is asked for. Data only.

use std::path::PathBuf;

/// What to break on purpose, so that a test sees the demo fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// The profile's kernel is not there.
    Kernel,
    /// The answer file names a report URL that is not one.
    Report,
}

/// One run of the demo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoOptions {
    /// How many VMs, 1 to [`MAX_VMS`].
    pub vms: u16,
    /// Fixes names, MACs, faults and durations; not the interleaving.
    pub seed: u64,
    /// Whether things go wrong on purpose.
    pub faults: bool,
    /// One JSON document at the end, no progress.
    pub json: bool,
    /// What is broken.
    pub broken: Option<Break>,
    /// The shipped binary.
    pub program: PathBuf,
    /// Leave the demo's folder behind.
    pub keep: bool,
}

/// The most VMs of one demo.
pub const MAX_VMS: u16 = 1000;

impl DemoOptions {
    /// Installations at once: 4, and one more for each 25 VMs beyond a hundred.
    pub fn cap(&self) -> u16 {
        4 + self.vms.saturating_sub(100) / 25
    }
}

//! What the demo is asked for. Data only.

use std::path::PathBuf;

use crate::sim::pool::Release;

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
    /// What the pool runs.
    pub release: Release,
    /// `deploy --stay-hvm`.
    pub stay_hvm: bool,
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

impl Default for DemoOptions {
    fn default() -> Self {
        Self {
            vms: 8,
            seed: 1,
            release: Release::V8_2,
            stay_hvm: false,
            faults: false,
            json: false,
            broken: None,
            program: PathBuf::new(),
            keep: false,
        }
    }
}

impl DemoOptions {
    /// Installations at once: 4, and a tenth of many VMs.
    pub fn cap(&self) -> u16 {
        (self.vms / 10).clamp(4, 60)
    }
}

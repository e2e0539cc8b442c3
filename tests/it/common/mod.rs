//! What several areas of the tests share.

pub(crate) mod ports;
pub(crate) mod programs;
pub(crate) mod reference;
pub(crate) mod site;

/// Longer than anything takes that a test waits for.
pub(crate) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(20);

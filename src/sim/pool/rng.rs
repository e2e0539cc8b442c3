//! The model's randomness: SplitMix64, so that a seed gives the same pool on every machine.

use std::time::Duration;

/// A seeded generator.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A span between the two, in whole milliseconds.
    pub(super) fn between(&mut self, span: (Duration, Duration)) -> Duration {
        let (from, to) = span;
        let width = u64::try_from(to.saturating_sub(from).as_millis()).unwrap_or(u64::MAX);
        from + Duration::from_millis(self.next().checked_rem(width.saturating_add(1)).unwrap_or(0))
    }

    /// A uuid of version 4.
    pub(super) fn uuid(&mut self) -> String {
        let bits = (u128::from(self.next()) << 64) | u128::from(self.next());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string()
    }

    /// A fresh reference.
    pub(super) fn reference(&mut self) -> String {
        format!("OpaqueRef:{}", self.uuid())
    }
}

//! Time as a value. Cores take a [`Timestamp`]; only shells ask a [`Clock`] for one.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970-01-01 UTC.
#[derive(
    Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The instant this many milliseconds after 1970-01-01 UTC.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Reads XenAPI's `20260101T12:00:00Z` (`dateTime.iso8601` without separators, UTC).
    pub fn from_xenapi(text: &str) -> Option<Self> {
        let number = |from: usize, to: usize| text.get(from..to)?.parse::<i16>().ok();
        let small = |from, to| number(from, to).and_then(|n| i8::try_from(n).ok());
        if text.get(8..9) != Some("T") {
            return None;
        }
        let date = jiff::civil::Date::new(number(0, 4)?, small(4, 6)?, small(6, 8)?).ok()?;
        let time = jiff::civil::Time::new(small(9, 11)?, small(12, 14)?, small(15, 17)?, 0).ok()?;
        let at = jiff::tz::TimeZone::UTC.to_timestamp(date.to_datetime(time)).ok()?;
        u64::try_from(at.as_millisecond()).ok().map(Self)
    }

    /// Milliseconds since 1970-01-01 UTC.
    pub const fn millis(self) -> u64 {
        self.0
    }

    /// How long after `earlier` this is; zero when it is before.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Timestamp {
    type Output = Self;

    fn add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC, whole seconds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::try_from(self.0 / 1000).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_second(seconds) {
            Ok(at) => write!(f, "{at}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}.{:03}", self.0 % 1000)
    }
}

/// Where a shell gets the time from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The present instant.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // the one place that asks the machine
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Seconds with one decimal, for tables and progress lines.
pub fn seconds(span: Duration) -> f64 {
    (span.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pools_date_is_read_and_anything_else_is_not() {
        let read = |text| Timestamp::from_xenapi(text).map(|at| at.to_string());
        assert_eq!(read("20260101T12:00:00Z").as_deref(), Some("2026-01-01T12:00:00Z"));
        assert_eq!(read("19700101T00:00:00Z").as_deref(), Some("1970-01-01T00:00:00Z"));
        for text in ["", "20261301T00:00:00Z", "2026-01-01T12:00:00Z", "20260101T12", "é0260101T12:00:00Z"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}

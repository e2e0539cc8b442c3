//! The version of a host's Xen, as far as guests depend on it. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::records::HostRecord;

/// Such as 4.13: which kernels the domain builder unpacks, and what pygrub reads, hangs on no more than that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct XenVersion {
    /// 4 of 4.13.
    pub major: u16,
    /// 13 of 4.13.
    pub minor: u16,
}

impl XenVersion {
    /// Of these two numbers.
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    /// Reads `software_version:xen`, such as `4.13.4-9.29.1`; `None`: it does not begin with two numbers.
    pub fn parse(text: &str) -> Option<Self> {
        let (major, rest) = text.trim().split_once('.')?;
        let digits =
            rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| rest.get(..end).unwrap_or(""));
        Some(Self { major: major.parse().ok()?, minor: digits.parse().ok()? })
    }

    /// The oldest among hosts: a guest must boot on whichever of them the pool takes. `None`: none of them tells.
    pub fn lowest<'a>(hosts: impl IntoIterator<Item = &'a HostRecord>) -> Option<Self> {
        hosts.into_iter().filter_map(|host| host.xen).min()
    }
}

impl fmt::Display for XenVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<XenVersion> for String {
    fn from(version: XenVersion) -> Self {
        version.to_string()
    }
}

impl TryFrom<String> for XenVersion {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or_else(|| format!("`{text}` is no version of Xen"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_tell_their_xen_in_many_ways_and_two_numbers_count() {
        for (told, expected) in [
            ("4.13.4-9.29.1", Some((4, 13))),
            ("4.1.5", Some((4, 1))),
            ("3.4.2", Some((3, 4))),
            ("4.17", Some((4, 17))),
            ("4.11-1", Some((4, 11))),
            ("", None),
            ("4", None),
            ("4.x", None),
            ("-1.2", None),
            ("4.99999", None),
        ] {
            let version = XenVersion::parse(told);
            assert_eq!(version.map(|xen| (xen.major, xen.minor)), expected, "{told}");
        }
        assert!(XenVersion::new(4, 9) < XenVersion::new(4, 13), "numbers, not text");
    }
}

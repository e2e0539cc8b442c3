//! What the boot services know of a VM: its MAC address. Pure.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// An Ethernet address. Parses `02:16:3e:00:00:01`, `02-16-3E-00-00-01` and `02163e000001`; prints the first form.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

/// The text is not six bytes in hex.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a MAC address; write it as 02:16:3e:00:00:01")]
pub struct BadMac {
    /// What was given.
    pub text: String,
}

impl MacAddr {
    /// The address with these bytes.
    pub const fn new(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The six bytes, in wire order.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// `02-16-3e-00-00-01`, the form of PXELINUX file names (there behind `01-`).
    pub fn hyphenated(self) -> String {
        self.to_string().replace(':', "-")
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let bad = || BadMac { text: text.chars().take(64).collect() };
        let separator = if text.contains(':') {
            Some(':')
        } else if text.contains('-') {
            Some('-')
        } else {
            None
        };
        let parts: Vec<&str> = match separator {
            Some(separator) => text.split(separator).collect(),
            None if text.is_ascii() && text.len() == 12 => {
                (0..6).filter_map(|i| text.get(i * 2..i * 2 + 2)).collect()
            }
            None => return Err(bad()),
        };
        let bytes: Vec<u8> = parts
            .iter()
            .map(|part| match part.len() {
                2 if part.bytes().all(|b| b.is_ascii_hexdigit()) => {
                    u8::from_str_radix(part, 16).map_err(|_| bad())
                }
                _ => Err(bad()),
            })
            .collect::<Result<_, _>>()?;
        bytes.try_into().map(Self).map_err(|_| bad())
    }
}

impl TryFrom<String> for MacAddr {
    type Error = BadMac;

    fn try_from(text: String) -> Result<Self, BadMac> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_spellings_are_one_address() {
        for text in ["02:16:3e:00:00:0A", "02-16-3E-00-00-0a", "02163e00000a"] {
            assert_eq!(text.parse::<MacAddr>().unwrap().to_string(), "02:16:3e:00:00:0a");
        }
    }

    #[test]
    fn what_is_not_six_bytes_in_hex_is_refused() {
        for text in [
            "",
            "02:16:3e:00:00",
            "02:16:3e:00:00:01:02",
            "+2:16:3e:00:00:01",
            "02163e0000é",
            "zz:16:3e:00:00:01",
        ] {
            assert!(text.parse::<MacAddr>().is_err(), "{text}");
        }
    }
}

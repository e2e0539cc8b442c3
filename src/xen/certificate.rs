//! What stands in a certificate, for a person to look at before it is trusted: names, validity, fingerprint. Pure.
//!
//! Invariant: nothing is decided from what is read here; trust is by fingerprint or CA (`tls`). Every length is
//! checked, nothing recurses, and names are shown without control characters.

use sha2::{Digest, Sha256};

/// A certificate in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Such as `CN=xs1, O=Example`; empty when it names nobody.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// The first moment that it is valid, such as `2020-01-31 12:00:00`, UTC.
    pub not_before: String,
    /// The last one.
    pub not_after: String,
}

/// SHA-256 of a certificate in DER: what a pin is.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

impl Certificate {
    /// Reads X.509 (RFC 5280 §4.1) in DER; `None`: it is not.
    pub fn read(der: &[u8]) -> Option<Self> {
        let (certificate, _) = expect(der, SEQUENCE)?;
        let (mut rest, _) = expect(certificate, SEQUENCE)?;
        if let Some((VERSION, _, after)) = element(rest) {
            rest = after;
        }
        let (_, rest) = expect(rest, INTEGER)?;
        let (_, rest) = expect(rest, SEQUENCE)?; // the signature's algorithm
        let (issuer, rest) = expect(rest, SEQUENCE)?;
        let (validity, rest) = expect(rest, SEQUENCE)?;
        let (subject, _) = expect(rest, SEQUENCE)?;
        let (not_before, after) = time(validity)?;
        let (not_after, _) = time(after)?;
        Some(Self { subject: name(subject), issuer: name(issuer), not_before, not_after })
    }

    /// Whether it vouches for itself, as those of XenServer do.
    pub fn is_self_signed(&self) -> bool {
        self.subject == self.issuer
    }
}

/// The next element's tag and content, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&[tag, first], rest) = der.split_first_chunk()?;
    let (length, rest) = if first < LONG_FORM {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & !LONG_FORM);
        let bytes = rest.get(..count).filter(|bytes| (1..=LENGTH_BYTES).contains(&bytes.len()))?;
        let length = bytes.iter().fold(0, |length: usize, &byte| (length << 8) | usize::from(byte));
        (length, rest.get(count..)?)
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

/// The next element's content, when it has this tag, and what follows.
fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, content, rest) = element(der)?;
    (found == tag).then_some((content, rest))
}

/// A UTCTime or GeneralizedTime in Zulu time (RFC 5280 §4.1.2.5), and what follows.
fn time(der: &[u8]) -> Option<(String, &[u8])> {
    let (tag, content, rest) = element(der)?;
    let digits = std::str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let all = match tag {
        UTC_TIME => {
            let century = if digits.get(..2)?.parse::<u8>().ok()? < 50 { "20" } else { "19" };
            format!("{century}{digits}")
        }
        GENERALIZED_TIME => digits.to_owned(),
        _ => return None,
    };
    let plain = all.len() == 14 && all.bytes().all(|byte| byte.is_ascii_digit());
    let part = |from: usize, to: usize| all.get(from..to).filter(|_| plain);
    let (year, month, day) = (part(0, 4)?, part(4, 6)?, part(6, 8)?);
    let (hour, minute, second) = (part(8, 10)?, part(10, 12)?, part(12, 14)?);
    Some((format!("{year}-{month}-{day} {hour}:{minute}:{second}"), rest))
}

/// A distinguished name; attributes that are not in [`ATTRIBUTES`] are left out.
fn name(mut der: &[u8]) -> String {
    let mut parts = Vec::new();
    while let Some((SET, mut set, rest)) = element(der) {
        der = rest;
        while let Some((SEQUENCE, pair, more)) = element(set) {
            set = more;
            let Some((kind, value)) = expect(pair, OBJECT_IDENTIFIER) else { continue };
            let known = ATTRIBUTES.iter().find(|(oid, _)| *oid == kind);
            if let (Some((_, short)), Some((_, text, _))) = (known, element(value)) {
                let text: String = String::from_utf8_lossy(text)
                    .chars()
                    .filter(|shown| !shown.is_control())
                    .take(LONGEST_TEXT)
                    .collect();
                parts.push(format!("{short}={text}"));
            }
        }
    }
    parts.join(", ")
}

const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
/// `[0] EXPLICIT`.
const VERSION: u8 = 0xa0;
/// X.690 §8.1.3.5: a length of this and more counts the bytes of the length proper.
const LONG_FORM: u8 = 0x80;
const LENGTH_BYTES: usize = 3;
const LONGEST_TEXT: usize = 128;
/// X.520 attribute types under 2.5.4, by their DER content.
const ATTRIBUTES: [(&[u8], &str); 6] = [
    (&[0x55, 0x04, 0x03], "CN"),
    (&[0x55, 0x04, 0x06], "C"),
    (&[0x55, 0x04, 0x07], "L"),
    (&[0x55, 0x04, 0x08], "ST"),
    (&[0x55, 0x04, 0x0a], "O"),
    (&[0x55, 0x04, 0x0b], "OU"),
];

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn der(change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "xs1");
        params.not_before = rcgen::date_time_ymd(2020, 1, 31);
        params.not_after = rcgen::date_time_ymd(2051, 12, 1);
        change(&mut params);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn certificate_is_told_in_words() {
        let read = Certificate::read(&der(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Example\u{1b}[31m");
            params.distinguished_name.push(DnType::CustomDnType(vec![1, 2, 3, 4]), "left out");
        }))
        .unwrap();
        assert_eq!(read.subject, "CN=xs1, O=Example[31m");
        assert!(read.is_self_signed());
        // UTCTime before 2050, GeneralizedTime from then on.
        assert_eq!((&*read.not_before, &*read.not_after), ("2020-01-31 00:00:00", "2051-12-01 00:00:00"));
    }

    #[test]
    fn no_prefix_and_no_flipped_byte_does_harm() {
        let whole = der(|_| {});
        for end in 0..whole.len() {
            let _ = Certificate::read(&whole[..end]);
            for flip in [0x01, 0x80, 0xff] {
                let mut bent = whole.clone();
                bent[end] ^= flip;
                let _ = Certificate::read(&bent);
            }
        }
        for junk in [&[][..], &[0x30], &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &[0x30, 0x80], b"<html>"] {
            assert_eq!(Certificate::read(junk), None);
        }
        assert_eq!(crate::secret::hex(&fingerprint(b"")[..4]), "e3b0c442");
    }
}

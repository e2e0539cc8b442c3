//! Conditions and ranges of a request (RFC 9110 §13 and §14), against what would be sent. Pure.
//!
//! Invariant: a part is sent only of the version that the client has begun to read; in doubt it gets the whole.

use std::time::{Duration, SystemTime};

/// Which version of something would be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Validator {
    /// A strong entity tag, with its quotes: other bytes, another tag.
    pub tag: String,
    /// When it was last changed, where that is known.
    pub modified: Option<SystemTime>,
}

impl Validator {
    /// `Last-Modified`, in whole seconds.
    pub fn last_modified(&self) -> Option<String> {
        self.modified.map(httpdate::fmt_http_date)
    }

    /// Whether it is unchanged since this HTTP date; `None`: the date does not parse, or none is known.
    fn unchanged_since(&self, date: &str) -> Option<bool> {
        let (date, modified) = (httpdate::parse_http_date(date).ok()?, self.modified?);
        Some(whole_seconds(modified) <= date)
    }

    /// Whether a list of entity tags names it. A weak tag stands for the same bytes only with `weakly`.
    fn is_named(&self, list: &str, weakly: bool) -> bool {
        let names = |tag: &str| match tag.strip_prefix("W/") {
            Some(tag) => weakly && tag == self.tag,
            None => tag == "*" || tag == self.tag,
        };
        // No tag of ours has a comma in it.
        list.split(',').map(str::trim).any(names)
    }
}

/// HTTP dates have no fractions of a second.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let fraction = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos());
    time - Duration::from_nanos(fraction.into())
}

/// The headers of a request that ask for something other than the whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions<'a> {
    /// `If-Match`.
    pub if_match: Option<&'a str>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<&'a str>,
    /// `If-None-Match`.
    pub if_none_match: Option<&'a str>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<&'a str>,
    /// `If-Range`.
    pub if_range: Option<&'a str>,
    /// `Range`; to be left out for HEAD (RFC 9110 §14.2).
    pub range: Option<&'a str>,
}

/// What to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// 200 and everything.
    Whole,
    /// 206 and these bytes.
    Part {
        /// The first byte's offset.
        first: u64,
        /// How many bytes; at least one.
        length: u64,
    },
    /// 304: the client has it.
    NotModified,
    /// 412: the client wants another version.
    OtherVersion,
    /// 416: nothing of it is in the range.
    Unsatisfiable,
}

impl Conditions<'_> {
    /// Decides in the order of RFC 9110 §13.2.2, for something of `length` bytes.
    pub fn decide(&self, validator: &Validator, length: u64) -> Decision {
        let wanted = match (self.if_match, self.if_unmodified_since) {
            (Some(list), _) => validator.is_named(list, false),
            (None, Some(date)) => validator.unchanged_since(date).unwrap_or(true),
            (None, None) => true,
        };
        if !wanted {
            return Decision::OtherVersion;
        }
        let had = match (self.if_none_match, self.if_modified_since) {
            (Some(list), _) => validator.is_named(list, true),
            (None, Some(date)) => validator.unchanged_since(date).unwrap_or(false),
            (None, None) => false,
        };
        if had {
            return Decision::NotModified;
        }
        match self.range.filter(|_| self.range_is_of(validator)) {
            Some(range) => part(range, length),
            None => Decision::Whole,
        }
    }

    /// Whether the range, if there is one, is of this version. A date counts only where it is exactly ours.
    fn range_is_of(&self, validator: &Validator) -> bool {
        match self.if_range.map(str::trim) {
            None => true,
            Some(tag) if tag.ends_with('"') => tag == validator.tag,
            Some(date) => {
                let date = httpdate::parse_http_date(date).ok();
                date.is_some() && date == validator.modified.map(whole_seconds)
            }
        }
    }
}

/// Reads a `Range` header for `length` bytes. Several ranges at once, and what is none, give the whole.
fn part(header: &str, length: u64) -> Decision {
    let Some(spec) = header.trim().strip_prefix("bytes=") else { return Decision::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Decision::Whole };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u64::MAX))
    };
    let (first, last) = match (number(first), number(last)) {
        (None, Some(suffix)) if first.is_empty() => {
            if suffix == 0 {
                return Decision::Unsatisfiable;
            }
            (length.saturating_sub(suffix), length.saturating_sub(1))
        }
        (Some(first), None) if last.is_empty() => (first, length.saturating_sub(1)),
        (Some(first), Some(last)) if first <= last => (first, last.min(length.saturating_sub(1))),
        (_, _) => return Decision::Whole,
    };
    if first >= length {
        return Decision::Unsatisfiable;
    }
    Decision::Part { first, length: last - first + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1 s and a bit after 2026-11-28 11:00:00.
    fn validator() -> Validator {
        let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_863_601_500);
        Validator { tag: "\"v2\"".into(), modified: Some(modified) }
    }

    const BEFORE: &str = "Sat, 28 Nov 2026 11:00:00 GMT";
    const THEN: &str = "Sat, 28 Nov 2026 11:00:01 GMT";
    const AFTER: &str = "Sat, 28 Nov 2026 11:00:02 GMT";

    #[test]
    fn ranges_are_read_as_rfc_9110_says() {
        let range = |first, length| Decision::Part { first, length };
        for (header, expected) in [
            ("bytes=0-", range(0, 10)),
            ("bytes=0-0", range(0, 1)),
            ("bytes=2-5", range(2, 4)),
            ("bytes=5-100", range(5, 5)),
            ("bytes=-3", range(7, 3)),
            ("bytes=-30", range(0, 10)),
            ("bytes=0-99999999999999999999999", range(0, 10)),
            ("bytes=10-", Decision::Unsatisfiable),
            ("bytes=99999999999999999999999-", Decision::Unsatisfiable),
            ("bytes=-0", Decision::Unsatisfiable),
            ("bytes=5-2", Decision::Whole),
            ("bytes=-", Decision::Whole),
            ("bytes=+1-2", Decision::Whole),
            ("bytes=1-2,4-5", Decision::Whole),
            ("lines=1-2", Decision::Whole),
            ("", Decision::Whole),
        ] {
            let conditions = Conditions { range: Some(header), ..Conditions::default() };
            assert_eq!(conditions.decide(&validator(), 10), expected, "{header}");
        }
        let all = Conditions { range: Some("bytes=0-"), ..Conditions::default() };
        assert_eq!(all.decide(&validator(), 0), Decision::Unsatisfiable);
        assert_eq!(Conditions::default().decide(&validator(), 0), Decision::Whole);
    }

    #[test]
    fn what_the_client_has_is_not_sent_again() {
        for (tags, date, expected) in [
            (Some("\"v2\""), None, Decision::NotModified),
            (Some("W/\"v2\""), None, Decision::NotModified),
            (Some("\"v1\", \"v2\""), None, Decision::NotModified),
            (Some("*"), None, Decision::NotModified),
            (Some("\"v1\""), None, Decision::Whole),
            (Some("v2"), None, Decision::Whole),
            (Some("\"v1\""), Some(AFTER), Decision::Whole), // the tag counts, the date does not
            (None, Some(THEN), Decision::NotModified),
            (None, Some(AFTER), Decision::NotModified),
            (None, Some(BEFORE), Decision::Whole),
            (None, Some("yesterday"), Decision::Whole),
        ] {
            let conditions =
                Conditions { if_none_match: tags, if_modified_since: date, ..Conditions::default() };
            assert_eq!(conditions.decide(&validator(), 10), expected, "{tags:?} {date:?}");
        }
    }

    #[test]
    fn another_version_than_asked_for_is_not_sent() {
        for (tags, date, expected) in [
            (Some("\"v2\""), None, Decision::Whole),
            (Some("*"), None, Decision::Whole),
            (Some("W/\"v2\""), None, Decision::OtherVersion), // a weak tag does not promise the same bytes
            (Some("\"v1\""), Some(AFTER), Decision::OtherVersion),
            (None, Some(THEN), Decision::Whole),
            (None, Some(BEFORE), Decision::OtherVersion),
            (None, Some("yesterday"), Decision::Whole),
        ] {
            let conditions =
                Conditions { if_match: tags, if_unmodified_since: date, ..Conditions::default() };
            assert_eq!(conditions.decide(&validator(), 10), expected, "{tags:?} {date:?}");
        }
    }

    #[test]
    fn a_resumed_download_gets_the_rest_only_of_the_same_version() {
        let rest = Decision::Part { first: 4, length: 6 };
        for (if_range, expected) in [
            ("\"v2\"", rest),
            (THEN, rest),
            ("\"v1\"", Decision::Whole),
            ("W/\"v2\"", Decision::Whole),
            (BEFORE, Decision::Whole),
            (AFTER, Decision::Whole),
            ("", Decision::Whole),
        ] {
            let conditions =
                Conditions { range: Some("bytes=4-"), if_range: Some(if_range), ..Conditions::default() };
            assert_eq!(conditions.decide(&validator(), 10), expected, "{if_range}");
        }
    }

    #[test]
    fn without_a_date_of_ours_no_date_of_theirs_counts() {
        let validator = Validator { modified: None, ..validator() };
        let conditions = Conditions {
            if_modified_since: Some(AFTER),
            if_range: Some(THEN),
            range: Some("bytes=4-"),
            ..Conditions::default()
        };
        assert_eq!(conditions.decide(&validator, 10), Decision::Whole);
        assert_eq!(validator.last_modified(), None);
    }
}

//! Reads a TOML tree into typed raw sections without stopping at the first mistake: unknown keys, wrong types and
//! scalars that do not parse are noted with their line and left out. (Serde's `deny_unknown_fields` denies the same
//! and stops there; the file with five mistakes deserves five messages.)
//!
//! Invariant: what is left out, a key or an element of a list, was noted. No value that might be a secret is ever part of a note: values are quoted
//! only by [`Scalar`] types, and none of them is a password.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::problem::{Notes, Spot};

/// A value with the place where it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) spot: Spot,
}

/// Turns offsets into lines, and collects what is wrong.
pub(super) struct Reader<'a> {
    /// Offsets of the line ends.
    ends: Vec<usize>,
    /// The line that the text begins on.
    first: usize,
    pub(super) notes: &'a mut Notes,
}

/// What can stand in the file.
pub(super) trait Read: Sized {
    /// Reads it; `None`: it is noted why not.
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self>;
}

/// A string of a certain form.
pub(super) trait Scalar: Sized {
    /// What it is, for `… is not …`.
    const FORM: &str;
    /// An example, quotes included.
    const EXAMPLE: &str;
    /// Parses the text between the quotes.
    fn scan(text: &str) -> Option<Self>;
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &str, notes: &'a mut Notes) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self { ends, first: 1, notes }
    }

    /// For a text of our own, all of which is taken to stand on one line of the user's file.
    pub(super) const fn fixed(line: usize, notes: &'a mut Notes) -> Self {
        Self { ends: Vec::new(), first: line, notes }
    }

    /// The line that a span begins on.
    fn line(&self, span: Range<usize>) -> usize {
        self.ends.partition_point(|end| *end < span.start) + self.first
    }

    /// Reads a whole file.
    pub(super) fn document<T: Read + Default>(&mut self, text: &str) -> At<T> {
        self.document_at(text, Spot { line: 1, key: String::new() })
    }

    /// Reads a whole text as if it stood in a place of the file.
    pub(super) fn document_at<T: Read + Default>(&mut self, text: &str, spot: Spot) -> At<T> {
        let (tree, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            let line = self.line(error.span().unwrap_or(0..0));
            self.notes.syntax(line, error.message());
        }
        let value = T::read(&DeValue::Table(tree.into_inner()), &spot, self).unwrap_or_default();
        At { value, spot }
    }

    /// Reads a member of a table.
    pub(super) fn member<T: Read>(
        &mut self,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
        parent: &Spot,
    ) -> Option<At<T>> {
        let spot = Spot { line: self.line(key.span()), ..parent.child(&quoted(key.get_ref().as_ref())) };
        let value = T::read(value.get_ref(), &spot, self)?;
        Some(At { value, spot })
    }

    /// Notes a key that nobody reads.
    pub(super) fn unknown(&mut self, key: &Spanned<impl AsRef<str>>, parent: &Spot, known: &[&str]) {
        let name = key.get_ref().as_ref();
        let spot = Spot { line: self.line(key.span()), ..parent.child(&quoted(name)) };
        self.notes.wrong(&spot, "is not a key that bootflip knows", nearest(name, known));
    }

    /// Notes a value of another type than wanted.
    pub(super) fn mistyped(&mut self, spot: &Spot, value: &DeValue<'_>, wanted: &str, example: &str) {
        let found = match value {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a number",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.notes.wrong(spot, format!("is {found}, not {wanted}"), format!("write it as {example}"));
    }
}

/// What was meant by a name that nobody knows: the nearest known one, or all of them.
pub(crate) fn nearest(name: &str, known: &[&str]) -> String {
    match known.iter().map(|known| (distance(name, known), *known)).min() {
        Some((0..=2, known)) => format!("did you mean `{known}`?"),
        Some(_) | None => format!("known here: {}", known.join(", ")),
    }
}

/// A key as it has to be written in TOML.
fn quoted(key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { format!("{key:?}") }
}

/// Levenshtein's edit distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((y, above), diagonal) in b.chars().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(x != y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

impl<T: Scalar> Read for T {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(text) = value.as_str() else {
            let digits =
                value.as_integer().map(ToString::to_string).filter(|digits| Self::scan(digits).is_some());
            let example = digits.map_or_else(|| Self::EXAMPLE.to_owned(), |digits| format!("\"{digits}\""));
            reader.mistyped(spot, value, &format!("{} in quotes", Self::FORM), &example);
            return None;
        };
        let scanned = T::scan(text);
        if scanned.is_none() {
            let shown: String = text.chars().take(64).collect();
            reader.notes.wrong(
                spot,
                format!("{shown:?} is not {}", T::FORM),
                format!("write it as {}", T::EXAMPLE),
            );
        }
        scanned
    }
}

impl Read for bool {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        let read = value.as_bool();
        if read.is_none() {
            reader.mistyped(spot, value, "true or false", "true");
        }
        read
    }
}

/// Integers, each within its own type.
macro_rules! integers {
    ($($type:ty)*) => { $(
        impl Read for $type {
            fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
                let Some(digits) = value.as_integer() else {
                    reader.mistyped(spot, value, "an integer", "a number without quotes");
                    return None;
                };
                let read = Self::from_str_radix(digits.as_str(), digits.radix()).ok();
                if read.is_none() {
                    let message = format!("{digits} is out of range");
                    reader.notes.wrong(spot, message, format!("give a number from 0 to {}", Self::MAX));
                }
                read
            }
        }
    )* };
}
integers!(u16 u32);

impl<T: Read> Read for Vec<At<T>> {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(elements) = value.as_array() else {
            let table = format!("[[{}]]", spot.key);
            reader.mistyped(spot, value, "a list", if value.is_table() { &table } else { "[…, …]" });
            return None;
        };
        let read = elements.iter().enumerate().map(|(at, element)| {
            let spot = Spot { line: reader.line(element.span()), key: format!("{}[{at}]", spot.key) };
            Some(At { value: T::read(element.get_ref(), &spot, reader)?, spot })
        });
        Some(read.flatten().collect())
    }
}

impl<T: Read> Read for BTreeMap<String, At<T>> {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(table) = value.as_table() else {
            let example = format!("[{}] with keys below it", spot.key);
            reader.mistyped(spot, value, "a table", &example);
            return None;
        };
        let read = |(key, value): (&Spanned<DeString<'_>>, &Spanned<DeValue<'_>>)| {
            let member = reader.member(key, value, spot)?;
            Some((key.get_ref().to_string(), member))
        };
        Some(table.iter().filter_map(read).collect())
    }
}

impl Read for serde_json::Value {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        let number = match value {
            DeValue::String(text) => return Some(Self::String(text.to_string())),
            DeValue::Boolean(truth) => return Some(Self::Bool(*truth)),
            DeValue::Datetime(date) => return Some(Self::String(date.to_string())),
            DeValue::Array(_) => {
                let elements = Vec::<At<Self>>::read(value, spot, reader)?;
                return Some(Self::Array(elements.into_iter().map(|element| element.value).collect()));
            }
            DeValue::Table(_) => {
                let members = BTreeMap::<String, At<Self>>::read(value, spot, reader)?;
                return Some(Self::Object(
                    members.into_iter().map(|(key, member)| (key, member.value)).collect(),
                ));
            }
            DeValue::Integer(digits) => {
                i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(Self::from)
            }
            DeValue::Float(digits) => {
                digits.as_str().parse().ok().and_then(serde_json::Number::from_f64).map(Self::Number)
            }
        };
        if number.is_none() {
            reader.notes.wrong(spot, "is a number that templates cannot hold", "write it in quotes");
        }
        number
    }
}

/// A section: a table whose keys are the fields. A field that is absent or was noted is `None`.
macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub(super) struct $name {
            $($(#[$about])* pub(super) $field: Option<$crate::config::read::At<$type>>,)*
        }

        impl $name {
            /// The keys, in the order in which they are told.
            pub(super) const KEYS: &[&str] = &[$(stringify!($field)),*];

            /// This one's fields, and another's where it has none.
            #[allow(dead_code)] // of profiles only
            pub(super) fn over(self, base: Self) -> Self {
                Self { $($field: self.$field.or(base.$field)),* }
            }
        }

        impl $crate::config::read::Read for $name {
            fn read(
                value: &toml::de::DeValue<'_>,
                spot: &$crate::config::problem::Spot,
                reader: &mut $crate::config::read::Reader<'_>,
            ) -> Option<Self> {
                let Some(table) = value.as_table() else {
                    let example = format!("[{}] with keys below it", spot.key);
                    reader.mistyped(spot, value, "a table", &example);
                    return None;
                };
                let mut section = Self::default();
                for (key, value) in table {
                    match key.get_ref().as_ref() {
                        $(stringify!($field) => section.$field = reader.member(key, value, spot),)*
                        _ => reader.unknown(key, spot, Self::KEYS),
                    }
                }
                Some(section)
            }
        }
    };
}
pub(super) use section;

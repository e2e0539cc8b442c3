//! Splits a body into tags and text: XML 1.0 as far as XML-RPC has use for it, in one pass and without recursion.
//!
//! Invariants: well-formed or refused (end tags match, references end); attributes are skipped and never looked at;
//! no document type, no entity but XML's own five and numbers. Nothing is copied but text that holds a reference.

use std::borrow::Cow;

use memchr::{memchr, memchr2};

use super::{CodecError, is_xml};

/// One step through a body.
pub(super) enum Token<'x> {
    /// A start tag, by its name. An empty element is one of these and a [`Token::Close`].
    Open(&'x str),
    /// An end tag, which matched its start.
    Close,
    /// Text with its references resolved; what stands between two tags may come in pieces.
    Text(Cow<'x, str>),
    /// The end of the body.
    End,
}

/// Walks through a body.
pub(super) struct Scanner<'x> {
    rest: &'x str,
    length: usize,
    /// The elements that are open. Bounded by who pulls: the decoder stops at what nests too deep.
    open: Vec<&'x str>,
    /// The last start tag was an empty element's.
    closes: bool,
}

impl<'x> Scanner<'x> {
    /// At the beginning of a body, whose every character must be one of XML's.
    pub(super) fn new(text: &'x str) -> Result<Self, CodecError> {
        match illegal(text) {
            Some(illegal) => Err(CodecError::Character { code: u32::from(illegal) }),
            None => Ok(Self { rest: text, length: text.len(), open: Vec::new(), closes: false }),
        }
    }

    fn syntax(&self) -> CodecError {
        let at = self.length - self.rest.len();
        CodecError::Syntax { at: u64::try_from(at).unwrap_or(u64::MAX) }
    }

    /// The next token; at the end, [`Token::End`] again and again.
    pub(super) fn next(&mut self) -> Result<Token<'x>, CodecError> {
        if std::mem::take(&mut self.closes) {
            self.open.pop();
            return Ok(Token::Close);
        }
        loop {
            let Some(markup) = self.rest.strip_prefix('<') else {
                return self.text();
            };
            let skipped = match markup.as_bytes().first() {
                Some(b'/') => return self.close(markup.get(1..).unwrap_or_default()),
                Some(b'?') => after(markup, "?>"),
                Some(b'!') if markup.starts_with("!--") => after(markup.get(3..).unwrap_or_default(), "-->"),
                Some(b'!') => return self.declared(markup),
                Some(_) => return self.open(markup),
                None => None,
            };
            self.rest = skipped.ok_or_else(|| self.syntax())?;
        }
    }

    fn text(&mut self) -> Result<Token<'x>, CodecError> {
        if self.rest.is_empty() {
            return Ok(Token::End);
        }
        let bytes = self.rest.as_bytes();
        let special = memchr2(b'<', b'&', bytes).unwrap_or(bytes.len());
        let plain = bytes.get(special) != Some(&b'&');
        let end = if plain { special } else { memchr(b'<', bytes).unwrap_or(bytes.len()) };
        let (text, rest) = self.rest.split_at_checked(end).ok_or_else(|| self.syntax())?;
        let text = if plain { Cow::Borrowed(text) } else { Cow::Owned(self.resolved(text)?) };
        self.rest = rest;
        Ok(Token::Text(text))
    }

    fn resolved(&self, mut text: &str) -> Result<String, CodecError> {
        let mut all = String::with_capacity(text.len());
        while let Some((plain, reference)) = text.split_once('&') {
            all.push_str(plain);
            let (name, after) = reference.split_once(';').ok_or_else(|| self.syntax())?;
            all.push(character(name)?);
            text = after;
        }
        all.push_str(text);
        Ok(all)
    }

    /// What follows `</`.
    fn close(&mut self, markup: &'x str) -> Result<Token<'x>, CodecError> {
        let open = self.open.pop().ok_or_else(|| self.syntax())?;
        let rest = markup.strip_prefix(open).ok_or_else(|| self.syntax())?;
        // White space may follow the name.
        let rest = rest.strip_prefix('>').or_else(|| rest.trim_ascii_start().strip_prefix('>'));
        self.rest = rest.ok_or_else(|| self.syntax())?;
        Ok(Token::Close)
    }

    /// What follows `<`, from the `!` on.
    fn declared(&mut self, markup: &'x str) -> Result<Token<'x>, CodecError> {
        if let Some(data) = markup.strip_prefix("![CDATA[") {
            let (text, rest) = data.split_once("]]>").ok_or_else(|| self.syntax())?;
            self.rest = rest;
            return Ok(Token::Text(Cow::Borrowed(text)));
        }
        let doctype = markup.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("!DOCTYPE"));
        Err(if doctype { CodecError::DocumentType } else { self.syntax() })
    }

    /// What follows `<`, from the name on.
    fn open(&mut self, markup: &'x str) -> Result<Token<'x>, CodecError> {
        let ends = |byte: u8| matches!(byte, b'>' | b'/' | b'<' | b' ' | b'\t' | b'\r' | b'\n');
        let end = markup.bytes().position(ends).ok_or_else(|| self.syntax())?;
        let (name, tail) = markup.split_at_checked(end).ok_or_else(|| self.syntax())?;
        if name.is_empty() {
            return Err(self.syntax());
        }
        let (inside, rest) = match tail.strip_prefix('>') {
            Some(rest) => ("", rest),
            None => tag_end(tail).and_then(|end| cut(tail, end)).ok_or_else(|| self.syntax())?,
        };
        self.rest = rest;
        self.closes = inside.ends_with('/');
        self.open.push(name);
        Ok(Token::Open(name))
    }
}

/// What stands before and behind the byte at `at`.
fn cut(text: &str, at: usize) -> Option<(&str, &str)> {
    Some((text.get(..at)?, text.get(at + 1..)?))
}

/// Where a start tag's `>` is; one inside quotes does not count.
fn tag_end(tail: &str) -> Option<usize> {
    let mut quote = None;
    for (at, byte) in tail.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if open == byte => quote = None,
            (Some(_), _) => {}
            (None, b'"' | b'\'') => quote = Some(byte),
            (None, b'>') => return Some(at),
            (None, b'<') => return None,
            (None, _) => {}
        }
    }
    None
}

fn after<'x>(text: &'x str, end: &str) -> Option<&'x str> {
    text.split_once(end).map(|(_, rest)| rest)
}

/// The character that `&name;` stands for: XML's own five, and numbers.
fn character(name: &str) -> Result<char, CodecError> {
    let number = match name.strip_prefix('#') {
        Some(digits) => match digits.strip_prefix('x') {
            Some(hexadecimal) => u32::from_str_radix(hexadecimal, 16).ok(),
            None => digits.parse().ok(),
        },
        None => {
            return match name {
                "amp" => Ok('&'),
                "lt" => Ok('<'),
                "gt" => Ok('>'),
                "quot" => Ok('"'),
                "apos" => Ok('\''),
                _ => Err(CodecError::Entity),
            };
        }
    };
    let code = number.ok_or(CodecError::Entity)?;
    char::from_u32(code).filter(|&character| is_xml(character)).ok_or(CodecError::Character { code })
}

/// The first character that XML cannot hold. Those are control characters, and two that begin with byte EF: pieces
/// without either are passed over at once.
fn illegal(text: &str) -> Option<char> {
    let suspicious = |&byte: &u8| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r') || byte == 0xef;
    let clean = |piece: &[u8]| !piece.iter().fold(false, |found, byte| found | suspicious(byte));
    if text.as_bytes().chunks(PIECE).all(clean) {
        return None;
    }
    text.chars().find(|&character| !is_xml(character))
}

/// In bytes; a body without control characters is looked through by so many at once.
const PIECE: usize = 256;

//! The reading half: values from tags and text, with caps.

use std::borrow::Cow;

use super::{
    CodecError, MAX_BYTES, MAX_DEPTH, MAX_NODES, Value,
    scan::{self, Scanner},
};

/// The caps of one reading; tests have smaller ones.
#[derive(Clone, Copy)]
pub(super) struct Caps {
    bytes: usize,
    depth: usize,
    nodes: usize,
}

pub(super) const CAPS: Caps = Caps { bytes: MAX_BYTES, depth: MAX_DEPTH, nodes: MAX_NODES };

/// Every element of XML-RPC but `base64` and `fault`, which xapi never sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    MethodCall,
    MethodName,
    MethodResponse,
    Params,
    Param,
    Value,
    Array,
    Data,
    Struct,
    Member,
    Name,
    String,
    Int,
    Boolean,
    Double,
    DateTime,
    Nil,
}

impl Tag {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "methodCall" => Self::MethodCall,
            "methodName" => Self::MethodName,
            "methodResponse" => Self::MethodResponse,
            "params" => Self::Params,
            "param" => Self::Param,
            "value" => Self::Value,
            "array" => Self::Array,
            "data" => Self::Data,
            "struct" => Self::Struct,
            "member" => Self::Member,
            "name" => Self::Name,
            "string" => Self::String,
            "int" | "i4" | "i8" => Self::Int,
            "boolean" => Self::Boolean,
            "double" => Self::Double,
            "dateTime.iso8601" => Self::DateTime,
            "nil" => Self::Nil,
            _ => return None,
        })
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::MethodCall => "methodCall",
            Self::MethodName => "methodName",
            Self::MethodResponse => "methodResponse",
            Self::Params => "params",
            Self::Param => "param",
            Self::Value => "value",
            Self::Array => "array",
            Self::Data => "data",
            Self::Struct => "struct",
            Self::Member => "member",
            Self::Name => "name",
            Self::String => "string",
            Self::Int => "int",
            Self::Boolean => "boolean",
            Self::Double => "double",
            Self::DateTime => "dateTime.iso8601",
            Self::Nil => "nil",
        }
    }

    pub(super) fn unexpected(self, wanted: &'static str) -> CodecError {
        CodecError::Unexpected { found: self.name().to_owned(), wanted }
    }

    pub(super) fn must_be(self, wanted: Self) -> Result<(), CodecError> {
        if self == wanted { Ok(()) } else { Err(self.unexpected(wanted.name())) }
    }
}

/// A [`scan::Token`] whose tag is known.
enum Token<'x> {
    Open(Tag),
    Close,
    Text(Cow<'x, str>),
    End,
}

impl Token<'_> {
    fn unexpected(&self, wanted: &'static str) -> CodecError {
        let found = match self {
            Self::Open(tag) => tag.name(),
            Self::Close => "an end tag",
            Self::Text(_) => "text",
            Self::End => "the end",
        };
        CodecError::Unexpected { found: found.to_owned(), wanted }
    }
}

pub(super) struct Decoder<'x> {
    scanner: Scanner<'x>,
    caps: Caps,
    nodes: usize,
}

impl<'x> Decoder<'x> {
    pub(super) fn new(body: &'x [u8], caps: Caps) -> Result<Self, CodecError> {
        if body.len() > caps.bytes {
            return Err(CodecError::TooBig { cap: caps.bytes });
        }
        let text =
            std::str::from_utf8(body).map_err(|error| CodecError::NotUtf8 { at: error.valid_up_to() })?;
        Ok(Self { scanner: Scanner::new(text)?, caps, nodes: 0 })
    }

    fn next(&mut self) -> Result<Token<'x>, CodecError> {
        Ok(match self.scanner.next()? {
            scan::Token::Open(name) => Token::Open(self.opening(name)?),
            scan::Token::Close => Token::Close,
            scan::Token::Text(text) => Token::Text(text),
            scan::Token::End => Token::End,
        })
    }

    fn opening(&mut self, name: &str) -> Result<Tag, CodecError> {
        self.nodes += 1;
        if self.nodes > self.caps.nodes {
            return Err(CodecError::TooManyNodes { cap: self.caps.nodes });
        }
        Tag::parse(name).ok_or_else(|| CodecError::Unexpected {
            found: format!("<{}>", name.chars().take(LONGEST_NAME_SHOWN).collect::<String>()),
            wanted: "an element of XML-RPC",
        })
    }

    /// The next child's tag, or `None` at the parent's end tag. White space before it is skipped.
    pub(super) fn child(&mut self) -> Result<Option<Tag>, CodecError> {
        loop {
            match self.next()? {
                Token::Open(tag) => return Ok(Some(tag)),
                Token::Close => return Ok(None),
                Token::Text(text) if is_blank(&text) => {}
                token @ (Token::Text(_) | Token::End) => return Err(token.unexpected("an element")),
            }
        }
    }

    pub(super) fn open(&mut self, wanted: Tag) -> Result<(), CodecError> {
        match self.child()? {
            Some(tag) => tag.must_be(wanted),
            None => Err(Token::Close.unexpected(wanted.name())),
        }
    }

    pub(super) fn close(&mut self) -> Result<(), CodecError> {
        self.child()?.map_or(Ok(()), |tag| Err(tag.unexpected("an end tag")))
    }

    /// Nothing but white space after the root.
    pub(super) fn finish(mut self) -> Result<(), CodecError> {
        loop {
            match self.next()? {
                Token::End => return Ok(()),
                Token::Text(text) if is_blank(&text) => {}
                token @ (Token::Open(_) | Token::Close | Token::Text(_)) => {
                    return Err(token.unexpected("the end"));
                }
            }
        }
    }

    /// All text up to the end tag, as it stands.
    pub(super) fn text(&mut self) -> Result<String, CodecError> {
        let mut all = String::new();
        loop {
            match self.next()? {
                Token::Text(text) if all.is_empty() => all = text.into_owned(),
                Token::Text(text) => all.push_str(&text),
                Token::Close => return Ok(all),
                token @ (Token::Open(_) | Token::End) => return Err(token.unexpected("text")),
            }
        }
    }

    /// `<value>…</value>` and the parent's end tag.
    pub(super) fn only_value(&mut self) -> Result<Value, CodecError> {
        self.open(Tag::Value)?;
        let value = self.value(1)?;
        self.close()?;
        Ok(value)
    }

    /// What follows `<value>`, up to and with its end tag.
    fn value(&mut self, depth: usize) -> Result<Value, CodecError> {
        if depth > self.caps.depth {
            return Err(CodecError::TooDeep { cap: self.caps.depth });
        }
        let mut bare = String::new();
        loop {
            match self.next()? {
                Token::Text(text) if bare.is_empty() => bare = text.into_owned(),
                Token::Text(text) => bare.push_str(&text),
                Token::Close => return Ok(Value::String(bare)),
                Token::Open(tag) if is_blank(&bare) => {
                    let value = self.typed(tag, depth)?;
                    self.close()?;
                    return Ok(value);
                }
                token @ (Token::Open(_) | Token::End) => return Err(token.unexpected("a value's end")),
            }
        }
    }

    /// What follows a type's start tag, up to and with its end tag.
    fn typed(&mut self, tag: Tag, depth: usize) -> Result<Value, CodecError> {
        let bad = || CodecError::Scalar { kind: tag.name() };
        match tag {
            Tag::String => self.text().map(Value::String),
            Tag::DateTime => self.text().map(Value::DateTime),
            Tag::Int => self.text()?.trim().parse().map(Value::Int).map_err(|_| bad()),
            Tag::Double => self.text()?.trim().parse().map(Value::Double).map_err(|_| bad()),
            Tag::Boolean => match self.text()?.trim() {
                "1" | "true" => Ok(Value::Bool(true)),
                "0" | "false" => Ok(Value::Bool(false)),
                _ => Err(bad()),
            },
            Tag::Nil => {
                self.text().and_then(|text| if is_blank(&text) { Ok(Value::void()) } else { Err(bad()) })
            }
            Tag::Array => self.array(depth),
            Tag::Struct => self.members(depth),
            Tag::MethodCall
            | Tag::MethodName
            | Tag::MethodResponse
            | Tag::Params
            | Tag::Param
            | Tag::Value
            | Tag::Data
            | Tag::Member
            | Tag::Name => Err(tag.unexpected("a type")),
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, CodecError> {
        let mut items = Vec::new();
        let Some(tag) = self.child()? else { return Ok(Value::Array(items)) };
        tag.must_be(Tag::Data)?;
        while let Some(tag) = self.child()? {
            tag.must_be(Tag::Value)?;
            items.push(self.value(depth + 1)?);
        }
        self.close()?;
        Ok(Value::Array(items))
    }

    fn members(&mut self, depth: usize) -> Result<Value, CodecError> {
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some(tag) = self.child()? {
            tag.must_be(Tag::Member)?;
            self.open(Tag::Name)?;
            let name = self.text()?;
            self.open(Tag::Value)?;
            let value = self.value(depth + 1)?;
            self.close()?;
            members.push((name, value));
        }
        // A map that is made of sorted members at once is quicker to make than by insertion, and has no gaps.
        members.sort_unstable_by(|(one, _), (two, _)| one.cmp(two));
        if members.windows(2).any(|pair| matches!(pair, [(one, _), (two, _)] if one == two)) {
            return Err(CodecError::DuplicateMember);
        }
        Ok(Value::Struct(members.into_iter().collect()))
    }
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
}

const LONGEST_NAME_SHOWN: usize = 32;

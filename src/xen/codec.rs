//! XML-RPC as XenAPI speaks it: calls and replies, written and read, both directions. Pure.
//!
//! Invariant: reading is bounded. A body of more than [`MAX_BYTES`], nested deeper than [`MAX_DEPTH`], or with more
//! than [`MAX_NODES`] elements is refused, and so is any document type or entity of its own, so that no body
//! costs more than its size in memory and time. Attributes are never looked at and name spaces never resolved
//! (RUSTSEC-2026-0194 and -0195). White space inside a string is kept as it stands.
//!
//! Calls write every string as `<string>`; replies write it bare and without white space between tags, as xapi
//! does. Both are read everywhere. Ints are decimal strings in both directions.

use std::{borrow::Cow, collections::BTreeMap};

use quick_xml::{Reader, events::Event};

use super::{Failure, Value};

/// The most bytes that a body may have; all VMs of a large pool are some megabytes.
pub const MAX_BYTES: usize = 64 << 20;
/// How deep values may nest; a XenAPI record in an event reaches 6.
pub const MAX_DEPTH: usize = 64;
/// The most elements in one body.
pub const MAX_NODES: usize = 2_000_000;

/// Why a body cannot be read, or a call not be written. No text of the body stands in it but a tag's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the cap.
    #[error("more than {cap} bytes")]
    TooBig {
        /// The cap, in bytes.
        cap: usize,
    },
    /// Values nest deeper than the cap.
    #[error("values nest deeper than {cap}")]
    TooDeep {
        /// The cap, in values.
        cap: usize,
    },
    /// More elements than the cap.
    #[error("more than {cap} elements")]
    TooManyNodes {
        /// The cap, in elements.
        cap: usize,
    },
    /// Not UTF-8.
    #[error("not UTF-8 at byte {at}")]
    NotUtf8 {
        /// Where, in bytes.
        at: usize,
    },
    /// A document type, which XML-RPC has no use for.
    #[error("a document type")]
    DocumentType,
    /// An entity other than XML's own five.
    #[error("an entity that XML does not define")]
    Entity,
    /// A character that XML 1.0 §2.2 does not allow, plain or as a reference.
    #[error("the character U+{code:04X}, which XML cannot hold")]
    Character {
        /// The code point.
        code: u32,
    },
    /// Not well-formed XML.
    #[error("not well-formed XML near byte {at}")]
    Syntax {
        /// Where, in bytes.
        at: u64,
    },
    /// Something else than XML-RPC wants at this place.
    #[error("{found} where {wanted} belongs")]
    Unexpected {
        /// What stands there: a tag's name, `text`, `an end tag` or `the end`.
        found: String,
        /// What belongs there.
        wanted: &'static str,
    },
    /// A number or boolean that does not parse.
    #[error("a bad {kind}")]
    Scalar {
        /// The element: `int`, `boolean`, `double`, `nil`.
        kind: &'static str,
    },
    /// A struct with two members of one name.
    #[error("a struct with two members of one name")]
    DuplicateMember,
    /// Not xapi's envelope: `{Status: Success, Value}` or `{Status: Failure, ErrorDescription: [code, …]}`.
    #[error("not XenAPI's envelope: {detail}")]
    Envelope {
        /// What is wrong with it.
        detail: &'static str,
    },
}

/// The body of a call. `method` is the name on the wire, with its `Async.` if any; `params` begin with the session's
/// reference. Fails only with [`CodecError::Character`].
pub fn encode_call(method: &str, params: &[Value]) -> Result<String, CodecError> {
    let mut writer = Writer { text: String::with_capacity(512), side: Side::Call, refused: None };
    writer.text.push_str("<?xml version=\"1.0\"?><methodCall><methodName>");
    writer.escaped(method);
    writer.text.push_str("</methodName><params>");
    for param in params {
        writer.text.push_str("<param>");
        writer.value(param);
        writer.text.push_str("</param>");
    }
    writer.text.push_str("</params></methodCall>");
    match writer.refused {
        Some(refused) => Err(CodecError::Character { code: u32::from(refused) }),
        None => Ok(writer.text),
    }
}

/// The body of a successful answer. Characters that XML cannot hold are left out, as xapi does.
pub fn encode_success(value: &Value) -> String {
    encode_reply("Success", "Value", value)
}

/// The body of a failure's answer. Characters that XML cannot hold are left out, as xapi does.
pub fn encode_failure(failure: &Failure) -> String {
    let words = std::iter::once(&failure.code).chain(&failure.params);
    let description = Value::Array(words.map(Value::string).collect());
    encode_reply("Failure", "ErrorDescription", &description)
}

/// Reads a call: the method's name on the wire and its parameters.
pub fn decode_call(body: &[u8]) -> Result<(String, Vec<Value>), CodecError> {
    let mut decoder = Decoder::new(body, CAPS)?;
    decoder.open(Tag::MethodCall)?;
    decoder.open(Tag::MethodName)?;
    let method = decoder.text()?;
    let mut params = Vec::new();
    match decoder.child()? {
        None => {}
        Some(Tag::Params) => {
            while let Some(tag) = decoder.child()? {
                tag.must_be(Tag::Param)?;
                params.push(decoder.only_value()?);
            }
            decoder.close()?; // the root; the loop ended with the end of `params`
        }
        Some(other) => return Err(other.unexpected(Tag::Params.name())),
    }
    decoder.finish()?;
    Ok((method, params))
}

/// Reads an answer: the value, or the pool's own failure.
pub fn decode_reply(body: &[u8]) -> Result<Result<Value, Failure>, CodecError> {
    let mut decoder = Decoder::new(body, CAPS)?;
    for tag in [Tag::MethodResponse, Tag::Params, Tag::Param] {
        decoder.open(tag)?;
    }
    let envelope = decoder.only_value()?;
    decoder.close()?;
    decoder.close()?;
    decoder.finish()?;
    opened(envelope)
}

/// Which end writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Call,
    Reply,
}

struct Writer {
    text: String,
    side: Side,
    /// The first character that could not be written.
    refused: Option<char>,
}

impl Writer {
    fn value(&mut self, value: &Value) {
        self.text.push_str("<value>");
        match value {
            Value::String(text) => self.string(text),
            Value::Int(number) => self.string(&number.to_string()),
            Value::Bool(truth) => self.scalar("boolean", if *truth { "1" } else { "0" }),
            Value::Double(number) if number.is_nan() => self.scalar("double", "nan"),
            Value::Double(number) => self.scalar("double", &number.to_string()),
            Value::DateTime(text) => self.scalar("dateTime.iso8601", text),
            Value::Array(items) => {
                self.text.push_str("<array><data>");
                for item in items {
                    self.value(item);
                }
                self.text.push_str("</data></array>");
            }
            Value::Struct(members) => {
                self.text.push_str("<struct>");
                for (name, member) in members {
                    self.member(name, member);
                }
                self.text.push_str("</struct>");
            }
        }
        self.text.push_str("</value>");
    }

    fn member(&mut self, name: &str, member: &Value) {
        self.text.push_str("<member><name>");
        self.escaped(name);
        self.text.push_str("</name>");
        self.value(member);
        self.text.push_str("</member>");
    }

    fn string(&mut self, text: &str) {
        match self.side {
            Side::Call => self.scalar("string", text),
            Side::Reply => self.escaped(text),
        }
    }

    fn scalar(&mut self, element: &str, text: &str) {
        for piece in ["<", element, ">"] {
            self.text.push_str(piece);
        }
        self.escaped(text);
        for piece in ["</", element, ">"] {
            self.text.push_str(piece);
        }
    }

    fn escaped(&mut self, text: &str) {
        for character in text.chars() {
            match character {
                '&' => self.text.push_str("&amp;"),
                '<' => self.text.push_str("&lt;"),
                '>' => self.text.push_str("&gt;"),
                '"' => self.text.push_str("&quot;"),
                // A plain CR would come out as LF (XML 1.0 §2.11); xapi writes it plain all the same.
                '\r' if self.side == Side::Call => self.text.push_str("&#13;"),
                _ if is_xml(character) => self.text.push(character),
                _ => self.refused = self.refused.or(Some(character)),
            }
        }
    }
}

fn encode_reply(status: &str, member: &str, value: &Value) -> String {
    let mut writer = Writer { text: String::with_capacity(512), side: Side::Reply, refused: None };
    writer.text.push_str("<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>");
    writer.member("Status", &Value::string(status));
    writer.member(member, value);
    writer.text.push_str("</struct></value></param></params></methodResponse>");
    writer.text
}

fn opened(envelope: Value) -> Result<Result<Value, Failure>, CodecError> {
    let bad = |detail| CodecError::Envelope { detail };
    let Value::Struct(mut members) = envelope else { return Err(bad("it is not a struct")) };
    let status = members.remove("Status");
    match status.as_ref().and_then(Value::as_str) {
        Some("Success") => members.remove("Value").map(Ok).ok_or_else(|| bad("Success without Value")),
        Some("Failure") => {
            let Some(Value::Array(words)) = members.remove("ErrorDescription") else {
                return Err(bad("Failure without ErrorDescription"));
            };
            let words: Option<Vec<String>> =
                words.iter().map(|word| word.as_str().map(str::to_owned)).collect();
            let mut words = words.ok_or_else(|| bad("ErrorDescription holds more than strings"))?.into_iter();
            let code = words.next().ok_or_else(|| bad("ErrorDescription is empty"))?;
            Ok(Err(Failure { code, params: words.collect() }))
        }
        Some(_) => Err(bad("an unknown Status")),
        None => Err(bad("no Status")),
    }
}

/// The caps of one reading; tests have smaller ones.
#[derive(Clone, Copy)]
struct Caps {
    bytes: usize,
    depth: usize,
    nodes: usize,
}

const CAPS: Caps = Caps { bytes: MAX_BYTES, depth: MAX_DEPTH, nodes: MAX_NODES };

/// Every element of XML-RPC but `base64` and `fault`, which xapi never sends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
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

    const fn name(self) -> &'static str {
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

    fn unexpected(self, wanted: &'static str) -> CodecError {
        CodecError::Unexpected { found: self.name().to_owned(), wanted }
    }

    fn must_be(self, wanted: Self) -> Result<(), CodecError> {
        if self == wanted { Ok(()) } else { Err(self.unexpected(wanted.name())) }
    }
}

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

struct Decoder<'x> {
    reader: Reader<&'x [u8]>,
    caps: Caps,
    nodes: usize,
}

impl<'x> Decoder<'x> {
    fn new(body: &'x [u8], caps: Caps) -> Result<Self, CodecError> {
        if body.len() > caps.bytes {
            return Err(CodecError::TooBig { cap: caps.bytes });
        }
        let text =
            std::str::from_utf8(body).map_err(|error| CodecError::NotUtf8 { at: error.valid_up_to() })?;
        if let Some(illegal) = text.chars().find(|&character| !is_xml(character)) {
            return Err(CodecError::Character { code: u32::from(illegal) });
        }
        let mut reader = Reader::from_str(text);
        reader.config_mut().expand_empty_elements = true;
        Ok(Self { reader, caps, nodes: 0 })
    }

    fn next(&mut self) -> Result<Token<'x>, CodecError> {
        loop {
            let event = self.reader.read_event().map_err(|_| self.syntax())?;
            match event {
                Event::Start(start) => return self.opening(start.name().into_inner()).map(Token::Open),
                Event::End(_) => return Ok(Token::Close),
                Event::Text(text) => return Ok(Token::Text(text.into_inner())),
                Event::CData(text) => return Ok(Token::Text(text.into_inner())),
                Event::GeneralRef(entity) => {
                    let character = resolved(&entity.into_inner())?;
                    return Ok(Token::Text(Cow::Owned(character.to_string())));
                }
                Event::DocType(_) => return Err(CodecError::DocumentType),
                Event::Eof => return Ok(Token::End),
                // `expand_empty_elements` makes Empty a Start and an End.
                Event::Empty(_) => return Err(self.syntax()),
                Event::Comment(_) | Event::Decl(_) | Event::PI(_) => {}
            }
        }
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

    fn syntax(&self) -> CodecError {
        CodecError::Syntax { at: self.reader.error_position() }
    }

    /// The next child's tag, or `None` at the parent's end tag. White space before it is skipped.
    fn child(&mut self) -> Result<Option<Tag>, CodecError> {
        loop {
            match self.next()? {
                Token::Open(tag) => return Ok(Some(tag)),
                Token::Close => return Ok(None),
                Token::Text(text) if is_blank(&text) => {}
                token @ (Token::Text(_) | Token::End) => return Err(token.unexpected("an element")),
            }
        }
    }

    fn open(&mut self, wanted: Tag) -> Result<(), CodecError> {
        match self.child()? {
            Some(tag) => tag.must_be(wanted),
            None => Err(Token::Close.unexpected(wanted.name())),
        }
    }

    fn close(&mut self) -> Result<(), CodecError> {
        self.child()?.map_or(Ok(()), |tag| Err(tag.unexpected("an end tag")))
    }

    /// Nothing but white space after the root.
    fn finish(mut self) -> Result<(), CodecError> {
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
    fn text(&mut self) -> Result<String, CodecError> {
        let mut all = String::new();
        loop {
            match self.next()? {
                Token::Text(text) => all.push_str(&text),
                Token::Close => return Ok(all),
                token @ (Token::Open(_) | Token::End) => return Err(token.unexpected("text")),
            }
        }
    }

    /// `<value>…</value>` and the parent's end tag.
    fn only_value(&mut self) -> Result<Value, CodecError> {
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
        let mut members = BTreeMap::new();
        while let Some(tag) = self.child()? {
            tag.must_be(Tag::Member)?;
            self.open(Tag::Name)?;
            let name = self.text()?;
            self.open(Tag::Value)?;
            let value = self.value(depth + 1)?;
            self.close()?;
            if members.insert(name, value).is_some() {
                return Err(CodecError::DuplicateMember);
            }
        }
        Ok(Value::Struct(members))
    }
}

/// The character that `&…;` stands for: XML's own five, and numbers.
fn resolved(entity: &str) -> Result<char, CodecError> {
    let number = match entity.strip_prefix('#') {
        Some(hexadecimal) if hexadecimal.starts_with('x') => {
            u32::from_str_radix(hexadecimal.trim_start_matches('x'), 16).ok()
        }
        Some(decimal) => decimal.parse().ok(),
        None => {
            return match entity {
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

/// XML 1.0 §2.2 `Char`.
const fn is_xml(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

fn is_blank(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n'))
}

const LONGEST_NAME_SHOWN: usize = 32;

#[cfg(test)]
mod tests;

//! XML-RPC as XenAPI speaks it: calls and replies, written and read, both directions. Pure.
//!
//! Invariant: reading is bounded. A body of more than [`MAX_BYTES`], nested deeper than [`MAX_DEPTH`], or with more
//! than [`MAX_NODES`] elements is refused, and so is any document type or entity of its own, so that no body
//! costs more than its size in memory and time. Attributes are never looked at and name spaces never resolved
//! (RUSTSEC-2026-0194 and -0195). White space inside a string is kept as it stands.
//!
//! Calls write every string as `<string>`; replies write it bare and without white space between tags, as xapi
//! does. Both are read everywhere. Ints are decimal strings in both directions.

mod decode;
mod encode;
mod scan;

use super::{Failure, Value};
use decode::{CAPS, Decoder, Tag};
use encode::{Side, Writer};

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

/// The body of an answer without an envelope: that of `system.listMethods` alone.
pub fn encode_bare(value: &Value) -> String {
    let mut writer = Writer { text: String::with_capacity(512), side: Side::Reply, refused: None };
    writer.text.push_str("<?xml version=\"1.0\"?><methodResponse><params><param>");
    writer.value(value);
    writer.text.push_str("</param></params></methodResponse>");
    writer.text
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

/// XML 1.0 §2.2 `Char`.
const fn is_xml(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests;

//! The writing half: values as elements.

use super::{Value, is_xml};

/// Which end writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Call,
    Reply,
}

pub(super) struct Writer {
    pub(super) text: String,
    pub(super) side: Side,
    /// The first character that could not be written.
    pub(super) refused: Option<char>,
}

impl Writer {
    pub(super) fn value(&mut self, value: &Value) {
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

    pub(super) fn member(&mut self, name: &str, member: &Value) {
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

    pub(super) fn escaped(&mut self, text: &str) {
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

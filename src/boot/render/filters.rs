//! What templates may call beyond the engine's own filters: quoting for shells, preseed lines and JSON.

use minijinja::{Environment, Error, ErrorKind, Value};

/// Begins the detail of errors raised here: it names no value and may be shown.
pub(super) const OURS: &str = "bootflip: ";

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("shquote", shquote);
    environment.add_filter("preseed_line", preseed_line);
    environment.add_filter("tojson", tojson);
}

fn refuse(detail: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{OURS}{detail}"))
}

/// Fails for what is not set: an optional argument would otherwise print as nothing.
fn text(value: &Value) -> Result<String, Error> {
    if value.is_undefined() { Err(Error::from(ErrorKind::UndefinedError)) } else { Ok(value.to_string()) }
}

/// One word of a POSIX shell, whatever the value holds: `it's` becomes `'it'\''s'`, and what needs no quotes gets
/// none (unless `shquote(true)`).
fn shquote(value: &Value, always: Option<bool>) -> Result<String, Error> {
    let text = text(value)?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:@%+=,-".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) && !always.unwrap_or(false) {
        return Ok(text);
    }
    if text.contains('\0') {
        return Err(refuse("a NUL byte cannot stand in a shell word"));
    }
    Ok(format!("'{}'", text.replace('\'', r"'\''")))
}

/// The value for one line of a preseed file: a line break would start another answer, and a backslash at the end
/// would swallow the next one.
fn preseed_line(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(char::is_control) {
        return Err(refuse("a line break or control character cannot stand in a preseed line"));
    }
    if text.ends_with('\\') {
        return Err(refuse("a backslash cannot end a preseed line"));
    }
    Ok(text)
}

fn tojson(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    serde_json::to_string(value).map_err(|_| refuse("this value has no JSON form"))
}

//! What templates may call beyond the engine's own filters: one for each context that a value can stand in.
//!
//! Invariant: what a filter gives is read back as the same value in its context, whatever the value holds, or the filter
//! refuses it and says what the context cannot hold. No refusal names the value. [`ESCAPES`] lists them for `check`.

use std::{fmt::Write as _, net::Ipv4Addr};

use minijinja::{Environment, Error, ErrorKind, Value, value::ValueKind};

/// Begins the detail of errors raised here: it names no value and may be shown.
pub(super) const OURS: &str = "bootflip: ";

/// The filters after which a value may stand in a file, by name.
pub(super) const ESCAPES: [&str; 12] = [
    "shquote",
    "preseed_line",
    "yaml",
    "tojson",
    "kickstart",
    "kickstart_line",
    "karg",
    "kargs",
    "ipxe",
    "hostname",
    "prefix",
    "length",
];

/// The longest name of a host (Linux), and of one label (RFC 1123 §2.1).
const HOST_LIMIT: usize = 64;
const LABEL_LIMIT: usize = 63;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("shquote", shquote);
    environment.add_filter("preseed_line", preseed_line);
    environment.add_filter("tojson", tojson);
    environment.add_filter("yaml", yaml);
    environment.add_filter("kickstart", kickstart);
    environment.add_filter("kickstart_line", kickstart_line);
    environment.add_filter("karg", karg);
    environment.add_filter("kargs", kargs);
    environment.add_filter("ipxe", ipxe);
    environment.add_filter("hostname", hostname);
    environment.add_filter("prefix", prefix);
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

/// The value for one line of a preseed file: a line break would start another answer, a backslash at the end would
/// swallow the next one, and debconf's database reads `\n` back as a line break. debian-installer's reader is a shell
/// script, which drops blanks at either end.
fn preseed_line(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(char::is_control) {
        return Err(refuse("a line break or control character cannot stand in a preseed line"));
    }
    if text.contains('\\') {
        return Err(refuse("a backslash cannot stand in a preseed line: its readers take it for an escape"));
    }
    if text.trim() != text {
        return Err(refuse("a preseed line keeps no blank at the beginning or end of its value"));
    }
    Ok(text)
}

fn tojson(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    serde_json::to_string(value).map_err(|_| refuse("this value has no JSON form"))
}

/// A value of YAML on one line, quoted so that it is what it was: `no` stays a text, a list is a list.
fn yaml(value: &Value) -> Result<String, Error> {
    if value.is_undefined() {
        return Err(Error::from(ErrorKind::UndefinedError));
    }
    let value = serde_json::to_value(value).map_err(|_| refuse("this value has no YAML form"))?;
    let mut out = String::new();
    write_yaml(&value, &mut out);
    Ok(out)
}

fn write_yaml(value: &serde_json::Value, out: &mut String) {
    match value {
        serde_json::Value::Null => out.push_str("null"),
        serde_json::Value::Bool(truth) => out.push_str(if *truth { "true" } else { "false" }),
        serde_json::Value::Number(number) => out.push_str(&number.to_string()),
        serde_json::Value::String(text) => yaml_text(text, out),
        serde_json::Value::Array(items) => {
            out.push('[');
            for (at, item) in items.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                write_yaml(item, out);
            }
            out.push(']');
        }
        serde_json::Value::Object(members) => {
            out.push('{');
            for (at, (name, member)) in members.iter().enumerate() {
                out.push_str(if at == 0 { "" } else { ", " });
                yaml_text(name, out);
                out.push_str(": ");
                write_yaml(member, out);
            }
            out.push('}');
        }
    }
}

/// YAML 1.2 §5.7: a double-quoted scalar holds every character, by escape where it is not printable.
fn yaml_text(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => {
                let code = u32::from(c);
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                }; // a String takes everything
            }
        }
    }
    out.push('"');
}

/// What Python takes for the end of a line (`str.splitlines`), which is how kickstart files are read.
fn ends_line(c: char) -> bool {
    c.is_control() && c != '\t' || matches!(c, '\u{2028}' | '\u{2029}')
}

/// One word of a kickstart command, which is split as Python's shlex does.
fn kickstart(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(ends_line) {
        return Err(refuse("a line break or control character cannot stand in a kickstart command"));
    }
    // Python's argparse takes it for the end of the options, and drops it, even behind `--name=`.
    if text == "--" {
        return Err(refuse("two hyphens alone cannot stand in a kickstart command"));
    }
    Ok(format!("'{}'", text.replace('\'', r#"'"'"'"#)))
}

/// A line of a kickstart section, such as a package: no other section, comment or exclusion.
fn kickstart_line(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(ends_line) {
        return Err(refuse(
            "a line break or control character cannot stand in a line of a kickstart section",
        ));
    }
    if text.trim() != text || text.is_empty() || text.starts_with(['%', '-']) || text.contains('#') {
        return Err(refuse(
            "a line of a kickstart section is not empty, has no blank at its ends and no `#`, and does not begin with `%` or `-`",
        ));
    }
    Ok(text)
}

/// The value of a kernel argument, in quotes where it has blanks. The kernel's reader knows no escape, and takes the byte
/// A0, which some letters have in UTF-8, for a blank.
fn karg(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(char::is_control) || text.bytes().any(|byte| byte == 0xa0) {
        return Err(refuse(
            "a control character or a letter with the byte A0 cannot stand in a kernel argument",
        ));
    }
    if text.contains('"') {
        return Err(refuse("a double quote cannot stand in a kernel argument"));
    }
    Ok(if text.contains(' ') { format!("\"{text}\"") } else { text })
}

/// Any number of kernel arguments, as somebody wrote them for a kernel.
fn kargs(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    if text.chars().any(char::is_control) || !text.matches('"').count().is_multiple_of(2) {
        return Err(refuse(
            "a control character or a double quote without its end cannot stand in kernel arguments",
        ));
    }
    Ok(text)
}

/// One word of an iPXE command: iPXE has no quotes.
fn ipxe(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    let blank = |c: char| c.is_ascii_whitespace() || c.is_control();
    if text.is_empty() || text.contains(blank) {
        return Err(refuse("a word of an iPXE script is not empty and has no blank or control character"));
    }
    if text.contains("${") || text.starts_with('#') || matches!(text.as_str(), "||" | "&&") {
        return Err(refuse(
            "this means something to iPXE: `${`, `#`, `||` and `&&` cannot stand in its words",
        ));
    }
    Ok(text)
}

/// A name that a host can have (RFC 1123 §2.1), as it is.
fn hostname(value: &Value) -> Result<String, Error> {
    let text = text(value)?;
    let label = |label: &str| {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=LABEL_LIMIT).contains(&label.len())
            && label.bytes().all(fits)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if text.len() > HOST_LIMIT || !text.split('.').all(label) {
        return Err(refuse(
            "this is not a name that a host can have: letters, digits and `-`; set the variable `hostname`",
        ));
    }
    Ok(text)
}

/// The length of a netmask's prefix: 24 of 255.255.255.0.
fn prefix(value: &Value) -> Result<u32, Error> {
    let mask = (value.kind() == ValueKind::String).then(|| text(value)).transpose()?.unwrap_or_default();
    let bits = mask.parse::<Ipv4Addr>().map(u32::from).ok();
    let whole = bits.filter(|bits| bits.leading_ones() + bits.trailing_zeros() == u32::BITS);
    whole.map(u32::leading_ones).ok_or_else(|| refuse("this is not a netmask"))
}

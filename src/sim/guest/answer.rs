//! The mini installer's answer file: `KEY=VALUE` lines that a shell could source. Pure.

use std::collections::BTreeMap;

/// Reads the file; a line that is no assignment is an error with its number, as `sh` would stop there.
pub fn parse(body: &[u8]) -> Result<BTreeMap<String, String>, String> {
    let text = String::from_utf8_lossy(body);
    let mut found = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let bad = || format!("line {} of the answer file is not KEY=VALUE", at + 1);
        let (key, value) = line.split_once('=').ok_or_else(bad)?;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if key.is_empty() || !key.chars().all(is_name) {
            return Err(bad());
        }
        found.insert(key.to_owned(), unquote(value).ok_or_else(bad)?);
    }
    Ok(found)
}

/// One shell word: plain, quoted, or pieces of both side by side. `None`: a blank outside quotes, an open quote.
fn unquote(word: &str) -> Option<String> {
    let (mut value, mut quote, mut escaped) = (String::new(), None, false);
    for c in word.chars() {
        if escaped {
            value.push(c);
            escaped = false;
        } else if quote == Some(c) {
            quote = None;
        } else if c == '\\' && quote != Some('\'') {
            escaped = true;
        } else if quote.is_none() && (c == '\'' || c == '"') {
            quote = Some(c);
        } else if quote.is_none() && c.is_whitespace() {
            return None;
        } else {
            value.push(c);
        }
    }
    (quote.is_none() && !escaped).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shell_words() {
        for (word, expected) in [
            ("plain", Some("plain")),
            ("'a b'", Some("a b")),
            (r"'it'\''s'", Some("it's")),
            (r#""q \" q""#, Some(r#"q " q"#)),
            ("", Some("")),
            ("a b", None),
            ("'open", None),
        ] {
            assert_eq!(unquote(word).as_deref(), expected, "{word}");
        }
    }

    #[test]
    fn comments_and_blank_lines_are_skipped_and_rubbish_is_named() {
        let found = parse(b"# by bootflip\n\nA=1\nREPORT_URL='http://h/r/t'\n").unwrap();
        assert_eq!(found["REPORT_URL"], "http://h/r/t");
        assert_eq!(parse(b"A=1\nrm -rf /\n").unwrap_err(), "line 2 of the answer file is not KEY=VALUE");
    }
}

//! Variables that a profile declares: their kinds, what fits them, and what of them may be shown. Pure.
//!
//! Invariant: no message names a value. What was declared is whole: a user without groups has an empty list of them,
//! so that templates need not ask.

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde_json::{Map, Value, json};

/// Template variables by name.
pub type Variables = BTreeMap<String, Value>;

/// What a profile declares, by name.
pub type Declarations = BTreeMap<String, Variable>;

/// What stands for a secret where it is not shown. It needs no quotes anywhere.
pub const HIDDEN: &str = "HIDDEN";

/// The longest name of an account (Linux's `LOGIN_NAME_MAX`, less its NUL, is longer; `useradd` stops here).
const ACCOUNT_LIMIT: usize = 32;

/// A declared variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// What it may hold.
    pub kind: VariableKind,
    /// What it holds where nobody sets it; `None`: then a template that uses it fails.
    pub default: Option<Value>,
    /// The only values, where not every one will do.
    pub choices: Vec<String>,
    /// What it is for, in one sentence.
    pub about: String,
}

/// What a variable may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum VariableKind {
    /// Any text.
    Text,
    /// A text that is not shown: a password's hash.
    Secret,
    /// A whole number.
    Integer,
    /// true or false.
    Boolean,
    /// A list of texts.
    List,
    /// An IPv4 address, or "".
    Address,
    /// Accounts by name: `password_hash`, `ssh_keys`, `groups`, `sudo`.
    Users,
}

impl VariableKind {
    /// The word in the configuration.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Secret => "secret",
            Self::Integer => "integer",
            Self::Boolean => "boolean",
            Self::List => "list",
            Self::Address => "address",
            Self::Users => "users",
        }
    }

    /// An example of what may be written.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Text => "\"…\"",
            Self::Secret => "{ file = \"FILE\" }, a file of mode 0600",
            Self::Integer => "5",
            Self::Boolean => "true",
            Self::List => "[\"…\", \"…\"]",
            Self::Address => "\"10.0.0.2\"",
            Self::Users => {
                "{ alice = { password_hash = { file = \"alice.hash\" }, ssh_keys = [\"…\"], sudo = true } }"
            }
        }
    }

    /// The value as templates get it.
    ///
    /// # Errors
    /// What is wrong with it, without the value.
    pub fn admit(self, value: &Value) -> Result<Value, String> {
        let wrong = || Err(format!("is not of the kind `{}` that its profile declares", self.label()));
        match (self, value) {
            (Self::Text | Self::Secret, Value::String(_)) | (Self::Boolean, Value::Bool(_)) => {
                Ok(value.clone())
            }
            (Self::Integer, Value::Number(number)) if number.is_i64() => Ok(value.clone()),
            (Self::List, Value::Array(items)) if items.iter().all(Value::is_string) => Ok(value.clone()),
            (Self::Address, Value::String(text)) if text.is_empty() || text.parse::<Ipv4Addr>().is_ok() => {
                Ok(value.clone())
            }
            (Self::Users, Value::Object(users)) => accounts(users),
            (
                Self::Text
                | Self::Secret
                | Self::Integer
                | Self::Boolean
                | Self::List
                | Self::Address
                | Self::Users,
                _,
            ) => wrong(),
        }
    }
}

fn accounts(users: &Map<String, Value>) -> Result<Value, String> {
    let whole = users.iter().map(|(name, user)| Ok((name.clone(), account(name, user)?)));
    whole.collect::<Result<Map<_, _>, String>>().map(Value::Object)
}

fn account(name: &str, user: &Value) -> Result<Value, String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_');
    if !begins || name.len() > ACCOUNT_LIMIT || !name.bytes().all(fits) || name == "root" {
        return Err(
            "has a name that is none of an account: lower-case letters, digits, `_` and `-`, not root".into(),
        );
    }
    let Value::Object(user) = user else { return Err(format!("has {name}, which is not a table")) };
    let (mut hash, mut keys, mut groups, mut sudo) = (json!("!"), json!([]), json!([]), json!(false));
    for (key, value) in user {
        let (place, kind) = match key.as_str() {
            "password_hash" => (&mut hash, VariableKind::Secret),
            "ssh_keys" => (&mut keys, VariableKind::List),
            "groups" => (&mut groups, VariableKind::List),
            "sudo" => (&mut sudo, VariableKind::Boolean),
            _ => {
                return Err(format!(
                    "has {name}.{key}, which no account has; known: password_hash, ssh_keys, groups, sudo"
                ));
            }
        };
        *place = kind
            .admit(value)
            .map_err(|_| format!("has {name}.{key}, which is not of the kind `{}`", kind.label()))?;
    }
    Ok(json!({ "password_hash": hash, "ssh_keys": keys, "groups": groups, "sudo": sudo }))
}

/// The defaults of what is declared.
pub fn defaults(declared: &Declarations) -> Variables {
    let default = |(name, variable): (&String, &Variable)| Some((name.clone(), variable.default.clone()?));
    declared.iter().filter_map(default).collect()
}

/// The variables as they may be shown: each secret is [`HIDDEN`]. Of what nobody declared, the name tells.
pub fn shown(declared: &Declarations, variables: &Variables) -> Variables {
    let show = |(name, value): (&String, &Value)| {
        let kind = declared.get(name).map(|variable| variable.kind);
        let sounds_secret = ["password", "passwd", "secret", "token"].iter().any(|word| name.contains(word));
        let value = match kind {
            Some(VariableKind::Secret) => hide(value),
            Some(VariableKind::Users) => hide_within(value),
            None if sounds_secret => hide(value),
            None
            | Some(
                VariableKind::Text
                | VariableKind::Integer
                | VariableKind::Boolean
                | VariableKind::List
                | VariableKind::Address,
            ) => value.clone(),
        };
        (name.clone(), value)
    };
    variables.iter().map(show).collect()
}

/// "" and "!" say that there is no password, which is no secret.
fn hide(value: &Value) -> Value {
    let none = value.as_str().is_some_and(|text| matches!(text, "" | "!" | "*"));
    if none { value.clone() } else { json!(HIDDEN) }
}

fn hide_within(users: &Value) -> Value {
    let mut users = users.clone();
    for user in users.as_object_mut().into_iter().flat_map(|users| users.values_mut()) {
        if let Some(hash) = user.get_mut("password_hash") {
            *hash = hide(hash);
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_fits_its_kind_or_is_refused_without_being_named() {
        use VariableKind::{Address, Boolean, Integer, List, Secret, Text, Users};
        let kinds = [Text, Secret, Integer, Boolean, List, Address, Users];
        for (value, fits) in [
            (json!("hunter2"), &[Text, Secret][..]),
            (json!(""), &[Text, Secret, Address]),
            (json!("10.0.0.2"), &[Text, Secret, Address]),
            (json!(5), &[Integer]),
            (json!(5.5), &[]),
            (json!(true), &[Boolean]),
            (json!([]), &[List]),
            (json!(["a", "b"]), &[List]),
            (json!(["a", 5]), &[]),
            (json!({}), &[Users]),
            (json!({ "hunter2": { "password_hash": 5 } }), &[]),
            (json!({ "hunter2": { "colour": "red" } }), &[]),
            (json!({ "Root": {} }), &[]),
            (json!({ "root": {} }), &[]),
            (json!({ "a": "hunter2" }), &[]),
        ] {
            for kind in kinds {
                let admitted = kind.admit(&value);
                assert_eq!(admitted.is_ok(), fits.contains(&kind), "{value} {kind:?}");
                let named = admitted.err().filter(|_| !value.is_object());
                assert!(!named.is_some_and(|message| message.contains("hunter2")), "{value}");
            }
        }
    }

    #[test]
    fn an_account_is_whole_for_templates() {
        let admitted = VariableKind::Users.admit(&json!({ "alice": { "sudo": true } })).unwrap();
        let whole = json!({ "alice": { "password_hash": "!", "ssh_keys": [], "groups": [], "sudo": true } });
        assert_eq!(admitted, whole);
    }

    #[test]
    fn secrets_are_hidden_wherever_they_stand() {
        let variable = |kind| Variable { kind, default: None, choices: Vec::new(), about: String::new() };
        let declared = Declarations::from([
            ("root".into(), variable(VariableKind::Secret)),
            ("none".into(), variable(VariableKind::Secret)),
            ("users".into(), variable(VariableKind::Users)),
            ("password_policy".into(), variable(VariableKind::Text)),
        ]);
        let variables = Variables::from([
            ("root".into(), json!("$6$x")),
            ("none".into(), json!("!")),
            ("users".into(), json!({ "a": { "password_hash": "$6$y", "sudo": true } })),
            ("password_policy".into(), json!("long")),
            ("old_password".into(), json!("$6$z")),
        ]);
        let expected = Variables::from([
            ("root".into(), json!(HIDDEN)),
            ("none".into(), json!("!")),
            ("users".into(), json!({ "a": { "password_hash": HIDDEN, "sudo": true } })),
            ("password_policy".into(), json!("long")),
            ("old_password".into(), json!(HIDDEN)),
        ]);
        assert_eq!(shown(&declared, &variables), expected);
    }
}

//! Variables and groups: what files hold is put in place, and each value is held against what profiles declare.
//!
//! A variable of a profile must be one that it declares, unless it is open: it has neither a `base` nor declarations of
//! its own. One that uses a shipped template has that one's declarations and stays open. Variables of all machines, of a
//! group, or of a machine without a profile must fit every profile that declares them, and be declared by one, unless a
//! profile is open. No note quotes a value.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Checker;
use crate::config::{
    GroupConfig,
    problem::Spot,
    raw::{OneOrMany, RawConfig, RawProfile, RawVariable},
    read::{At, nearest},
    shipped,
    variables::{self, Declarations, Variable, VariableKind, Variables},
};

type RawVariables = At<BTreeMap<String, At<Value>>>;

/// Whose declarations hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose<'a> {
    /// This profile's.
    Profile(&'a str),
    /// Every profile's.
    All,
}

impl Checker<'_> {
    /// What each profile declares.
    pub(super) fn declared(&mut self, raw: &RawConfig) -> BTreeMap<String, Declarations> {
        let profiles = raw.profile.iter().flat_map(|profiles| &profiles.value);
        let declared = |(name, profile): (&String, &At<RawProfile>)| {
            if profile.value.variable.is_none() {
                self.open.insert(name.clone());
                let answers = profile.value.answer.iter().flat_map(|answers| &answers.value.0);
                let shipped = answers.flat_map(|answer| shipped::declarations_of_template(&answer.value));
                return (name.clone(), shipped.collect());
            }
            let written = profile.value.variable.iter().flat_map(|written| &written.value);
            let read = written
                .filter_map(|(name, variable)| Some((name.clone(), self.declaration(name, variable)?)));
            (name.clone(), read.collect())
        };
        profiles.map(declared).collect()
    }

    fn declaration(&mut self, name: &str, written: &At<RawVariable>) -> Option<Variable> {
        self.variable_name(name, &written.spot);
        let Some(declared) = shipped::declaration(&written.value) else {
            let remedy = "write kind = \"text\", \"secret\", \"integer\", \"boolean\", \"list\", \"address\" or \"users\"";
            self.notes.absent(&written.spot.child("kind"), "is missing", remedy);
            return None;
        };
        if let (Some(default), Some(At { spot, .. })) = (&declared.default, &written.value.default) {
            let default = self.admitted(&declared, default, spot);
            return Some(Variable { default: Some(default), ..declared });
        }
        Some(declared)
    }

    /// A profile's variables: its own over the global ones over its defaults.
    pub(super) fn profile_variables(
        &mut self,
        name: &str,
        raw: &RawProfile,
        global: Option<&RawVariables>,
    ) -> Variables {
        let mut all = self.declared.get(name).map_or_else(Variables::new, variables::defaults);
        // Noted once, by `check_globals`.
        let notes = std::mem::take(&mut self.notes);
        all.extend(self.variables(global, Whose::All));
        self.notes = notes;
        all.extend(self.variables(raw.variables.as_ref(), Whose::Profile(name)));
        all
    }

    /// Notes what is wrong with the variables of all templates.
    pub(super) fn check_globals(&mut self, raw: &RawConfig) {
        self.variables(raw.variables.as_ref(), Whose::All);
    }

    /// The groups, in the order of the file.
    pub(super) fn groups(&mut self, raw: &RawConfig) -> Vec<GroupConfig> {
        let mut written: Vec<_> = raw.group.iter().flat_map(|groups| &groups.value).collect();
        written.sort_by_key(|(_, group)| group.spot.line);
        let mut groups = Vec::with_capacity(written.len());
        for (name, At { value: group, spot }) in written {
            self.name(name, spot);
            let remedy = "name its machines: a name or uuid, \"uuid=U\", \"tag=T\" or \"name~GLOB\" each";
            let members = self.required(group.members.as_ref(), spot, "members", remedy);
            let members = members.map_or(&[][..], |At { value: OneOrMany(members), .. }| members);
            for member in members {
                let empty = ["", "uuid=", "tag=", "name~"].contains(&member.value.as_str());
                if empty {
                    self.notes.wrong(&member.spot, "names no machine", remedy);
                }
            }
            groups.push(GroupConfig {
                name: name.clone(),
                members: members.iter().map(|member| member.value.clone()).collect(),
                variables: self.variables(group.variables.as_ref(), Whose::All),
            });
        }
        groups
    }

    /// Variables as written, with what their files hold.
    pub(super) fn variables(&mut self, written: Option<&RawVariables>, whose: Whose<'_>) -> Variables {
        let mut all = Variables::new();
        for (name, At { value, spot }) in written.iter().flat_map(|written| &written.value) {
            self.variable_name(name, spot);
            let declared = self.declarations_of(name, whose, spot);
            let mut held = match declared.first() {
                Some(declared) => self.admitted(declared, value, spot),
                None => self.filled(value, None, spot),
            };
            for further in declared.iter().skip(1) {
                held = self.admitted(further, &held, spot);
            }
            all.insert(name.clone(), held);
        }
        all
    }

    /// The declarations that hold for a variable; notes one that nobody declares.
    fn declarations_of(&mut self, name: &str, whose: Whose<'_>, spot: &Spot) -> Vec<Variable> {
        let (profiles, open): (Vec<&Declarations>, bool) = match whose {
            Whose::Profile(profile) => {
                (self.declared.get(profile).into_iter().collect(), self.open.contains(profile))
            }
            Whose::All => (self.declared.values().collect(), !self.open.is_empty()),
        };
        let mut found: Vec<Variable> =
            profiles.iter().filter_map(|declared| declared.get(name)).cloned().collect();
        found.dedup_by(|a, b| (a.kind, &a.choices) == (b.kind, &b.choices));
        if found.is_empty() && !open && !profiles.is_empty() {
            let known = profiles.iter().flat_map(|declared| declared.keys()).map(String::as_str);
            let known: std::collections::BTreeSet<&str> = known.collect();
            let known: Vec<&str> = known.into_iter().collect();
            let remedy = match known.is_empty() {
                true => "remove it, or declare it in [profile.NAME.variable]".to_owned(),
                false => nearest(name, &known),
            };
            let message = match whose {
                Whose::Profile(profile) => format!("is not a variable of profile {profile}"),
                Whose::All => "is not a variable of any profile".to_owned(),
            };
            self.notes.wrong(spot, message, remedy);
        }
        found
    }

    fn variable_name(&mut self, name: &str, spot: &Spot) {
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(word) || name.is_empty() {
            let message = "is not a name that templates can use";
            self.notes.wrong(spot, message, "use letters, digits and `_`, and begin with a letter");
        }
    }

    /// The value of a declared variable; as it is where it does not fit, which is noted.
    fn admitted(&mut self, declared: &Variable, value: &Value, spot: &Spot) -> Value {
        let value = self.filled(value, Some(declared.kind), spot);
        let held = match declared.kind.admit(&value) {
            Ok(held) => held,
            Err(message) => {
                self.notes.wrong(spot, message, format!("write it as {}", declared.kind.example()));
                return value;
            }
        };
        let chosen = held.as_str().is_none_or(|text| declared.choices.iter().any(|choice| choice == text));
        if !declared.choices.is_empty() && !chosen {
            let remedy = format!("write one of: {}", declared.choices.join(", "));
            self.notes.wrong(spot, "is none of the values that its profile knows", remedy);
        }
        held
    }

    /// The value with what the files hold that it names, `{ file = "FILE" }`.
    fn filled(&mut self, value: &Value, kind: Option<VariableKind>, spot: &Spot) -> Value {
        if let Some(file) = file_of(value) {
            return self.text_of(file, kind, spot);
        }
        match value {
            Value::Object(members) => {
                let fill = |(name, member): (&String, &Value)| {
                    let kind = match (kind, name.as_str()) {
                        (Some(VariableKind::Users), "ssh_keys" | "groups") => Some(VariableKind::List),
                        (Some(VariableKind::Users), "password_hash") => Some(VariableKind::Secret),
                        (kind, _) => kind,
                    };
                    (name.clone(), self.filled(member, kind, spot))
                };
                Value::Object(members.iter().map(fill).collect())
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                value.clone()
            }
        }
    }

    fn text_of(&mut self, file: &str, kind: Option<VariableKind>, spot: &Spot) -> Value {
        let (text, open_to_others) = match self.files.texts.get(file) {
            Some(Ok(read)) => (read.text.expose(), read.open_to_others),
            Some(Err((message, remedy))) => {
                self.notes.wrong(spot, message, remedy);
                let list = kind == Some(VariableKind::List);
                return if list { Value::Array(Vec::new()) } else { Value::String(String::new()) };
            }
            None => ("", false),
        };
        if kind == Some(VariableKind::Secret) && open_to_others {
            self.notes.wrong(
                spot,
                format!("{file} is open to others, and holds a secret"),
                format!("chmod 600 {file}"),
            );
        }
        match kind {
            Some(VariableKind::List) => {
                let lines =
                    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
                Value::Array(lines.map(|line| Value::String(line.to_owned())).collect())
            }
            Some(VariableKind::Secret | VariableKind::Users) => Value::String(text.trim().to_owned()),
            None
            | Some(
                VariableKind::Text | VariableKind::Integer | VariableKind::Boolean | VariableKind::Address,
            ) => Value::String(text.strip_suffix('\n').unwrap_or(text).to_owned()),
        }
    }
}

/// The file of a value `{ file = "FILE" }`.
fn file_of(value: &Value) -> Option<&str> {
    let members = value.as_object().filter(|members| members.len() == 1)?;
    members.get("file")?.as_str()
}

/// Every file that a value names.
pub(super) fn files_of<'v>(value: &'v Value, found: &mut Vec<&'v str>) {
    match (file_of(value), value) {
        (Some(file), _) => found.push(file),
        (None, Value::Object(members)) => members.values().for_each(|member| files_of(member, found)),
        (None, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_)) => {}
    }
}

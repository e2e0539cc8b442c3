//! The profiles that the program brings along (`config/profiles/NAME.toml`), for `base = "NAME"`. Pure.
//!
//! Invariant: each reads without a note (a test), so that what is wrong with a profile is always something that its
//! own section lacks or says; it is told at the line of `base`.

use std::collections::BTreeMap;

use super::{
    problem::{Notes, Spot},
    raw::{RawConfig, RawProfile},
    read::{At, Reader},
    variables::{Declarations, Variable},
};

/// By name.
const SHIPPED: [(&str, &str); 6] = [
    ("ubuntu-preseed", include_str!("../../config/profiles/ubuntu-preseed.toml")),
    ("ubuntu-autoinstall", include_str!("../../config/profiles/ubuntu-autoinstall.toml")),
    ("debian", include_str!("../../config/profiles/debian.toml")),
    ("alma-kickstart", include_str!("../../config/profiles/alma-kickstart.toml")),
    ("rescue", include_str!("../../config/profiles/rescue.toml")),
    ("custom", include_str!("../../config/profiles/custom.toml")),
];

/// The names of the profiles that the program brings along.
pub fn names() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

/// What a shipped profile declares; empty: there is none of this name, or it declares nothing.
pub fn declarations(name: &str) -> Declarations {
    let mut notes = Notes::default();
    let raw = read(name, &Spot::default(), &mut notes);
    raw.and_then(|raw| raw.variable).map_or_else(Declarations::new, |declared| {
        declared
            .value
            .into_iter()
            .filter_map(|(name, variable)| Some((name, declaration(&variable.value)?)))
            .collect()
    })
}

/// What the shipped profile declares that a template belongs to.
pub(super) fn declarations_of_template(template: &str) -> Declarations {
    let uses = |name: &&str| {
        let raw = read(name, &Spot::default(), &mut Notes::default());
        let answers = raw.and_then(|raw| raw.answer);
        answers.is_some_and(|answers| answers.value.0.iter().any(|answer| answer.value == template))
    };
    names().find(uses).map_or_else(Declarations::new, declarations)
}

/// A declaration as written; `None`: its kind is missing.
pub(super) fn declaration(raw: &super::raw::RawVariable) -> Option<Variable> {
    Some(Variable {
        kind: raw.kind.as_ref()?.value,
        default: raw.default.as_ref().map(|default| default.value.clone()),
        choices: raw.choices.iter().flat_map(|all| &all.value).map(|choice| choice.value.clone()).collect(),
        about: raw.about.as_ref().map_or_else(String::new, |about| about.value.clone()),
    })
}

/// Lays under each profile with a `base` what it does not say itself.
pub(super) fn lay_under(raw: &mut RawConfig, notes: &mut Notes) {
    for profile in raw.profile.iter_mut().flat_map(|profiles| profiles.value.values_mut()) {
        let Some(base) = profile.value.base.clone() else { continue };
        let spot = Spot { line: base.spot.line, key: profile.spot.key.clone() };
        match read(&base.value, &spot, notes) {
            Some(shipped) => {
                let own = std::mem::take(&mut profile.value);
                profile.value = laid(own, shipped);
            }
            None => {
                let names: Vec<&str> = names().collect();
                let remedy = format!("write one of: {}", names.join(", "));
                notes.wrong(
                    &base.spot,
                    format!("{:?} is not a profile that bootflip brings along", base.value),
                    remedy,
                );
            }
        }
    }
}

fn read(name: &str, spot: &Spot, notes: &mut Notes) -> Option<RawProfile> {
    let (_, text) = SHIPPED.iter().find(|(known, _)| *known == name)?;
    Some(Reader::fixed(spot.line, notes).document_at(text, spot.clone()).value)
}

/// Key by key; declarations and variables name by name.
fn laid(mut own: RawProfile, mut base: RawProfile) -> RawProfile {
    let variable = joined(own.variable.take(), base.variable.take());
    let variables = joined(own.variables.take(), base.variables.take());
    RawProfile { variable, variables, ..own.over(base) }
}

type Table<T> = At<BTreeMap<String, At<T>>>;

fn joined<T>(own: Option<Table<T>>, base: Option<Table<T>>) -> Option<Table<T>> {
    match (own, base) {
        (Some(At { value: own, spot }), Some(At { value: mut all, .. })) => {
            all.extend(own);
            Some(At { value: all, spot })
        }
        (own, base) => own.or(base),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_profile_reads_without_a_note_and_explains_its_variables() {
        for name in names() {
            let mut notes = Notes::default();
            assert!(read(name, &Spot::default(), &mut notes).is_some());
            assert_eq!(format!("{notes:?}"), format!("{:?}", Notes::default()), "{name}");
            for (variable, declared) in declarations(name) {
                assert!(declared.about.ends_with('.'), "{name}.{variable}: {}", declared.about);
                if let Some(default) = &declared.default {
                    assert_eq!(declared.kind.admit(default).as_ref(), Ok(default), "{name}.{variable}");
                }
            }
        }
    }
}

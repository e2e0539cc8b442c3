//! Every error code that a pool may answer has a class that somebody chose.

use std::collections::{BTreeMap, BTreeSet};

use bootflip::xen::{Class, Failure};

use crate::common::reference::data_model;

#[test]
fn every_code_of_the_data_model_has_a_class_by_an_entry_or_a_rule() {
    let Some(model) = data_model("errors against the data model") else { return };
    let documented = model["errors"].as_object().unwrap().keys().map(String::as_str);
    let others = model["errors_declared_without_documented_params"].as_array().unwrap();
    let codes: BTreeSet<&str> = documented.chain(others.iter().map(|code| code.as_str().unwrap())).collect();
    let entries: BTreeMap<&str, Class> = Class::table().collect();

    let unknown: Vec<_> = codes.iter().filter(|code| Class::known(code).is_none()).collect();
    assert!(unknown.is_empty(), "no class for {unknown:?}");
    let (by_entry, by_rule): (Vec<&str>, Vec<&str>) =
        codes.iter().copied().partition(|code| entries.contains_key(code));
    let mut counts = BTreeMap::new();
    for code in &codes {
        *counts.entry(format!("{:?}", Class::known(code).unwrap())).or_insert(0) += 1;
    }
    println!(
        "{} codes of the data model: {} by an entry, {} by a rule ({}); {counts:?}",
        codes.len(),
        by_entry.len(),
        by_rule.len(),
        by_rule.join(", ")
    );
    let ours: Vec<_> = entries.keys().filter(|code| !codes.contains(*code)).collect();
    assert_eq!(ours, [&"SR_BACKEND_FAILURE_46"], "entries that no release sends");
}

#[test]
fn no_code_stands_in_the_table_twice() {
    let mut seen = BTreeSet::new();
    let twice: Vec<_> = Class::table().filter(|(code, _)| !seen.insert(*code)).collect();
    assert_eq!(twice, []);
}

#[test]
fn families_of_codes_are_known_by_their_beginning_only() {
    for (code, known) in [
        ("SR_BACKEND_FAILURE_44", Some(Class::Permanent)),
        ("SR_BACKEND_FAILURE_46", Some(Class::Retry)),
        ("SR_BACKEND_FAILURE_9999", Some(Class::Permanent)),
        ("SR_BACKEND_FAILURES", None),
        ("VM_LACKS_FEATURE_VCPU_HOTPLUG", Some(Class::Permanent)),
        ("A_CODE_OF_TOMORROW", None),
        ("", None),
    ] {
        assert_eq!(Class::known(code), known, "{code}");
        assert_eq!(Class::of(&Failure::new(code, &[])), known.unwrap_or(Class::Permanent), "{code}");
    }
}

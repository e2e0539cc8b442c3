//! What two configurations differ in, by key, and which of it a running server can take over. Pure.
//!
//! Invariant: no value of a variable, password or template is ever told, only its name: they may be secrets.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Config, GroupConfig, MachineConfig, Profile};

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Difference {
    /// The key, as the file writes it: `profile.ubuntu.completion`.
    pub key: String,
    /// What of it: `new`, `removed`, `changed`, or `OLD -> NEW`.
    pub what: String,
    /// The server has to be started anew before this counts.
    pub restart: bool,
}

/// All differences, those that count at once first.
pub fn difference(old: &Config, new: &Config) -> Vec<Difference> {
    let mut all = Vec::new();
    all.extend(named("profile", &old.profiles, &new.profiles, profile));
    all.extend(named("machine", &old.machines, &new.machines, machine));
    all.extend(named("group", &groups(old), &groups(new), group));
    if old.groups.iter().map(|group| &group.name).ne(new.groups.iter().map(|group| &group.name)) {
        all.push(at_once("group", "the order is another"));
    }
    all.extend(values("deadlines", &json(&old.deadlines), &json(&new.deadlines)));
    all.extend(declared(old, new));
    all.extend(at_start(old, new));
    all
}

fn at_once(key: impl Into<String>, what: impl Into<String>) -> Difference {
    Difference { key: key.into(), what: what.into(), restart: false }
}

/// Sections that only a start reads.
fn at_start(old: &Config, new: &Config) -> Vec<Difference> {
    // Debug leaves secrets out, and names every other field.
    let sections: [(&str, [String; 2]); 11] = [
        ("server.name", [old.server_name.clone(), new.server_name.clone()]),
        ("server.state_dir", both(&old.state_dir, &new.state_dir)),
        ("dhcp", both(&(&old.dhcp, &old.dhcp_off), &(&new.dhcp, &new.dhcp_off))),
        ("tftp", both(&old.tftp, &new.tftp)),
        ("http", both(&old.http, &new.http)),
        ("syslog", both(&old.syslog, &new.syslog)),
        ("admin", both(&old.admin, &new.admin)),
        ("limits", both(&old.limits, &new.limits)),
        ("log", both(&old.log, &new.log)),
        ("store", both(&old.keep, &new.keep)),
        ("template_dir", both(&old.template_dir, &new.template_dir)),
    ];
    let restart = |key: &str| Difference { key: key.to_owned(), what: "changed".to_owned(), restart: true };
    let mut all: Vec<Difference> =
        sections.iter().filter(|(_, [old, new])| old != new).map(|(key, _)| restart(key)).collect();
    let passwords = |name: &String| {
        let password = |config: &Config| config.pools.get(name).map(|pool| pool.password.expose().to_owned());
        password(old) != password(new)
    };
    for name in old.pools.keys().chain(new.pools.keys()).collect::<BTreeSet<_>>() {
        let (before, after) = (old.pools.get(name), new.pools.get(name));
        let [was, is] = both(&before, &after);
        if was != is || passwords(name) {
            let what = kind(before.is_some(), after.is_some()).to_owned();
            all.push(Difference { key: format!("pool.{name}"), what, restart: true });
        }
    }
    all
}

fn both<T: std::fmt::Debug>(old: &T, new: &T) -> [String; 2] {
    [format!("{old:?}"), format!("{new:?}")]
}

const fn kind(was: bool, is: bool) -> &'static str {
    match (was, is) {
        (false, _) => "new",
        (true, false) => "removed",
        (true, true) => "changed",
    }
}

/// Entries of a section with a name each; `inside` compares two of one name.
fn named<T: PartialEq>(
    section: &str,
    old: &BTreeMap<String, T>,
    new: &BTreeMap<String, T>,
    inside: impl Fn(&str, &T, &T) -> Vec<Difference>,
) -> Vec<Difference> {
    let mut all = Vec::new();
    for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
        let key = format!("{section}.{name}");
        match (old.get(name), new.get(name)) {
            (Some(old), Some(new)) if old == new => {}
            (Some(old), Some(new)) => all.extend(inside(&key, old, new)),
            (was, is) => all.push(at_once(key, kind(was.is_some(), is.is_some()))),
        }
    }
    all
}

fn profile(key: &str, old: &Profile, new: &Profile) -> Vec<Difference> {
    let without = |profile: &Profile| json(&Profile { variables: BTreeMap::new(), ..profile.clone() });
    let mut all = values(key, &without(old), &without(new));
    all.extend(variables(key, &old.variables, &new.variables));
    all
}

fn machine(key: &str, old: &MachineConfig, new: &MachineConfig) -> Vec<Difference> {
    let shown = |machine: &MachineConfig| serde_json::json!({ "mac": machine.mac, "disk": machine.disk, "profile": machine.profile });
    let mut all = values(key, &shown(old), &shown(new));
    all.extend(variables(key, &old.variables, &new.variables));
    all
}

fn group(key: &str, old: &GroupConfig, new: &GroupConfig) -> Vec<Difference> {
    let shown = |group: &GroupConfig| serde_json::json!({ "members": group.members });
    let mut all = values(key, &shown(old), &shown(new));
    all.extend(variables(key, &old.variables, &new.variables));
    all
}

fn groups(config: &Config) -> BTreeMap<String, GroupConfig> {
    config.groups.iter().map(|group| (group.name.clone(), group.clone())).collect()
}

fn variables(
    key: &str,
    old: &BTreeMap<String, serde_json::Value>,
    new: &BTreeMap<String, serde_json::Value>,
) -> Vec<Difference> {
    let names = old.keys().chain(new.keys()).collect::<BTreeSet<_>>();
    let differs = names.into_iter().filter(|name| old.get(*name) != new.get(*name));
    let told = |name: &String| {
        at_once(format!("{key}.variables.{name}"), kind(old.contains_key(name), new.contains_key(name)))
    };
    differs.map(told).collect()
}

fn declared(old: &Config, new: &Config) -> Vec<Difference> {
    // A profile that is new or gone is told as a whole.
    let names = old.profiles.keys().filter(|name| new.profiles.contains_key(*name));
    let differs = names.filter(|name| {
        let [was, is] = both(&old.declared.get(*name), &new.declared.get(*name));
        was != is
    });
    differs.map(|name| at_once(format!("profile.{name}.variable"), "changed")).collect()
}

fn json(value: &impl Serialize) -> serde_json::Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// A value, as an operator reads it: times in seconds (serde writes a `Duration` as `secs` and `nanos`).
fn shown(value: &serde_json::Value) -> String {
    let part = |name: &str| value.get(name).and_then(serde_json::Value::as_u64);
    match (part("secs"), part("nanos")) {
        (Some(seconds), Some(0)) => format!("{seconds}s"),
        (Some(seconds), Some(nanos)) => format!("{seconds}.{:03}s", nanos / 1_000_000),
        (_, _) => value.to_string(),
    }
}

/// Values that may be shown, key by key.
fn values(key: &str, old: &serde_json::Value, new: &serde_json::Value) -> Vec<Difference> {
    if old.get("nanos").is_some() && new.get("nanos").is_some() {
        let same = old == new;
        return (!same)
            .then(|| at_once(key, format!("{} -> {}", shown(old), shown(new))))
            .into_iter()
            .collect();
    }
    if let (Some(old), Some(new)) = (old.as_object(), new.as_object()) {
        let none = serde_json::Value::Null;
        let names = old.keys().chain(new.keys()).collect::<BTreeSet<_>>();
        let inner = |name: &String| {
            values(&format!("{key}.{name}"), old.get(name).unwrap_or(&none), new.get(name).unwrap_or(&none))
        };
        return names.into_iter().flat_map(inner).collect();
    }
    if old == new { Vec::new() } else { vec![at_once(key, format!("{} -> {}", shown(old), shown(new)))] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Surroundings, load_in};

    const BASE: &str = r#"[server]
name = "a"
[pool.main]
url = "https://10.0.0.10"
user = "u"
tls = "insecure"
[profile.ext]
completion = "halt"
evidence = "none"
[machine.web1]
profile = "ext"
[machine.web1.variables]
root_password = "hunter2"
"#;

    fn loaded(text: &str, password: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("b.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::write(folder.path().join("main"), password).unwrap();
        let surroundings = Surroundings { credentials: Some(folder.path().to_owned()) };
        load_in(&file, &surroundings).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn each_difference_has_its_key_and_no_secret() {
        let old = loaded(BASE, "swordfish");
        let cases: &[(&str, &str, &str)] = &[
            ("", "", ""),
            (
                "completion = \"halt\"",
                "completion = \"either\"",
                "profile.ext.completion: \"halt\" -> \"either\"",
            ),
            ("hunter2", "hunter3", "machine.web1.variables.root_password: changed"),
            (
                "root_password = ",
                "user_password = ",
                "machine.web1.variables.root_password: removed|machine.web1.variables.user_password: new",
            ),
            ("[machine.web1]\n", "[machine.web1]\ndisk = \"1\"\n", "machine.web1.disk: null -> \"1\""),
            ("[profile.ext]", "[limits]\ninstalls_per_pool = 9\n[profile.ext]", "limits: changed (restart)"),
            ("[profile.ext]", "[profile.new]\nbase = \"custom\"\n[profile.ext]", "profile.new: new"),
            ("user = \"u\"", "user = \"v\"", "pool.main: changed (restart)"),
            (
                "[profile.ext]",
                "[group.g]\nmembers = \"web1\"\n[profile.ext]",
                "group.g: new|group: the order is another",
            ),
            (
                "[profile.ext]",
                "[deadlines]\ninstall = \"3h\"\n[profile.ext]",
                "deadlines.install: 7200s -> 10800s",
            ),
            (
                "[profile.ext]",
                "[log]\nformat = \"json\"\n[store]\nkeep_days = 0\n[profile.ext]",
                "log: changed (restart)|store: changed (restart)",
            ),
        ];
        for (from, to, expected) in cases {
            let new = loaded(&BASE.replacen(from, to, 1), "swordfish");
            let shown: Vec<String> = difference(&old, &new)
                .iter()
                .map(|one| {
                    format!("{}: {}{}", one.key, one.what, if one.restart { " (restart)" } else { "" })
                })
                .collect();
            assert_eq!(&shown.join("|"), expected, "{to}");
        }
        let changed = difference(&old, &loaded(BASE, "sesame"));
        assert_eq!(changed.iter().map(|one| one.key.as_str()).collect::<Vec<_>>(), ["pool.main"]);
        assert!(!format!("{changed:?}").contains("sesame"));
    }
}

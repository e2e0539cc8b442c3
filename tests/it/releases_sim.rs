//! The simulated pool against the XenAPI data model and real databases: what exists in which release, who may send
//! it, and what a loaded pool shows.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use bootflip::{
    clock::Timestamp,
    sim::pool::{Api, DiskKind, DiskSpec, GuestAct, LoadError, Pool, Release, Role, VmTruth},
    xen::{Method, Value},
};
use serde_json::Value as Json;

use crate::common::reference::{data_model, reference_or_skip};

const NOW: Timestamp = Timestamp::from_millis(1_767_268_800_000);
/// The xapi of XCP-ng 8.3; versions after 8.2 are compared with it.
const XAPI_8_3: [u32; 3] = [24, 19, 2];

/// Whether what came (or went) with this release or xapi version has done so in `release`.
fn came(model: &Json, release: Release, code: &str) -> bool {
    let releases = model["releases"].as_array().unwrap();
    let at = releases.iter().position(|known| known["code"] == code);
    let Some(at) = at else {
        let version: Vec<u32> = code.split(['.', '-']).filter_map(|part| part.parse().ok()).collect();
        return release == Release::V8_3 && version.as_slice() <= &XAPI_8_3[..];
    };
    // The first release of this API: hotfixes that share it came later.
    let api = format!("{}.{}", release.api.0, release.api.1);
    let own = releases.iter().position(|known| known["api_version"] == api.as_str()).unwrap();
    at <= own
}

/// Whether the release has this field or message. A prototype is there for whoever asks, so it counts from then on.
fn has(model: &Json, release: Release, item: &Json) -> bool {
    let since = item["prototyped"].as_str().or_else(|| item["introduced"].as_str());
    since.is_none_or(|code| came(model, release, code))
        && !item["removed"].as_str().is_some_and(|code| came(model, release, code))
}

fn kind_of(kind: &str) -> &str {
    match kind.rsplit(' ').next().unwrap() {
        "set" => "set",
        "map" => "map",
        "ref" => "ref",
        _ if kind.starts_with("enum ") => "string",
        plain => plain,
    }
}

#[test]
fn the_records_of_every_release_are_those_of_the_data_model() {
    let Some(model) = data_model("the simulated pool's records") else { return };
    for release in Release::ALL {
        let pool = Pool::new(1, release);
        let ours: BTreeSet<String> = pool
            .field_facts()
            .iter()
            .map(|field| format!("{}.{}: {}", field.class, field.name, field.kind))
            .collect();
        let classes: BTreeSet<&str> = pool.field_facts().iter().map(|field| field.class).collect();
        let mut theirs = BTreeSet::new();
        for class in classes {
            let fields = model["classes"][class]["fields"].as_array().unwrap();
            for field in fields.iter().filter(|field| has(&model, release, field)) {
                let (name, kind) = (field["name"].as_str().unwrap(), field["type"].as_str().unwrap());
                theirs.insert(format!("{class}.{name}: {}", kind_of(kind)));
            }
        }
        let missing: Vec<_> = theirs.difference(&ours).collect();
        let extra: Vec<_> = ours.difference(&theirs).collect();
        assert!(missing.is_empty() && extra.is_empty(), "{}: {missing:?} {extra:?}", release.name);
        println!("{}: {} fields", release.name, ours.len());
    }
}

#[test]
fn the_messages_of_every_release_are_those_of_the_data_model() {
    let Some(model) = data_model("the simulated pool's messages") else { return };
    for release in Release::ALL {
        let mut wrong = Vec::new();
        let facts = Pool::new(1, release).message_facts();
        for fact in &facts {
            let (class, name) = fact.name.split_once('.').unwrap();
            let messages = model["classes"][class]["messages"].as_array().unwrap();
            let Some(message) = messages.iter().find(|message| message["name"] == name) else {
                wrong.push(format!("{} is not in the model", fact.name));
                continue;
            };
            if !has(&model, release, message) {
                wrong.push(format!("{} is not in this release", fact.name));
            }
            let params = message["params"].as_array().unwrap();
            let count = params.iter().filter(|param| param["name"] != "session_id").count();
            // The originator came to an old message.
            if count != fact.params.1 && fact.name != "session.login_with_password" {
                wrong.push(format!("{} has {count} parameters, not {:?}", fact.name, fact.params));
            }
            let roles = message["roles"].as_array().unwrap();
            let least = roles.iter().filter_map(|role| Role::named(role.as_str()?)).min();
            if least != Some(fact.role) {
                wrong.push(format!("{} needs {least:?}, not {:?}", fact.name, fact.role));
            }
        }
        assert!(wrong.is_empty(), "{}: {wrong:?}", release.name);
        println!("{}: {} messages", release.name, facts.len());
    }
}

#[test]
fn every_getter_of_the_data_model_is_answered() {
    let Some(model) = data_model("the simulated pool's getters") else { return };
    for release in Release::ALL {
        let pool = Pool::new(1, release);
        let ours: BTreeSet<String> = pool.methods().into_iter().collect();
        for field in pool.field_facts() {
            let getter = format!("{}.get_{}", field.class, field.name);
            assert!(ours.contains(&getter), "{}: {getter}", release.name);
        }
        let known = ["get_all", "get_all_records", "get_record", "get_by_uuid", "get_by_name_label"];
        let classes: BTreeSet<&str> = pool.field_facts().iter().map(|field| field.class).collect();
        for (class, name) in classes.iter().flat_map(|class| known.map(|name| (*class, name))) {
            let messages = model["classes"][class]["messages"].as_array().unwrap();
            let theirs = messages.iter().any(|m| m["name"] == name && has(&model, release, m));
            assert_eq!(ours.contains(&format!("{class}.{name}")), theirs, "{}: {class}.{name}", release.name);
        }
    }
}

const FILES: [(&str, &str); 6] = [
    ("cowley-db.json", "5.6-fp1"),
    ("boston-db.json", "6.0"),
    ("state.json", "5.6"),
    ("state3.json", "5.6"),
    ("tampa-db-inc-snapshots.json", "6.1"),
    ("xapidb-app.json", "6.0"),
];

/// A database as a pool, and as it is written.
fn load(file: &str) -> Option<(Pool, Json)> {
    let path = reference_or_skip("real databases", &format!("data/xapi/{file}"))?;
    let text = fs::read_to_string(path).unwrap();
    Some((Pool::load(1, file, &text, None).unwrap(), serde_json::from_str(&text).unwrap()))
}

fn records(pool: &mut Pool, class: &str) -> BTreeMap<String, Value> {
    let login = [Value::string("root"), Value::string("simulated")];
    let session = pool.call(NOW, "session.login_with_password", &login).unwrap();
    let Value::Struct(records) = pool.call(NOW, &format!("{class}.get_all_records"), &[session]).unwrap()
    else {
        panic!("no records of {class}");
    };
    records
}

fn flag(record: &Value, field: &str) -> bool {
    record.get(field) == Some(&Value::Bool(true))
}

fn text<'a>(record: &'a Value, field: &str) -> &'a str {
    record.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn guests(pool: &Pool) -> Vec<VmTruth> {
    pool.uuids().iter().filter_map(|uuid| pool.truth(uuid)).collect()
}

#[test]
fn every_real_database_becomes_a_pool() {
    let Some(index) = reference_or_skip("real databases", "data/xapi/index.json") else { return };
    let index: Json = serde_json::from_slice(&fs::read(index).unwrap()).unwrap();
    assert_eq!(index.as_array().unwrap().len(), FILES.len());
    for (file, release) in FILES {
        let (mut pool, _) = load(file).unwrap();
        assert_eq!(pool.release().name, release, "{file}");
        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for vm in records(&mut pool, "VM").values() {
            let kind = if flag(vm, "is_control_domain") {
                "dom0"
            } else {
                match (flag(vm, "is_a_template"), text(vm, "HVM_boot_policy").is_empty()) {
                    (false, true) => "pv_guest",
                    (false, false) => "hvm_guest",
                    (true, true) => "pv_template",
                    (true, false) => "hvm_template",
                }
            };
            *counts.entry(kind.to_owned()).or_default() += 1;
        }
        let entry = index.as_array().unwrap().iter().find(|entry| entry["file"] == file).unwrap();
        assert_eq!(serde_json::to_value(&counts).unwrap(), entry["counts"], "{file}");
        println!("{file}: {release} {counts:?}");
    }
}

#[test]
fn a_loaded_pool_says_what_the_file_says() {
    /// What the model says by itself.
    const OWN: [&str; 9] = [
        "allowed_operations",
        "metrics",
        "memory_overhead",
        "address",
        "software_version",
        "API_version_major",
        "API_version_minor",
        "currently_attached",
        "resident_VMs",
    ];
    let mut compared = 0;
    for (file, _) in FILES {
        let Some((mut pool, written)) = load(file) else { return };
        for class in ["VM", "VIF", "network", "host", "pool"] {
            let records = records(&mut pool, class);
            let table = written["tables"][class].as_object().unwrap();
            assert_eq!(records.len(), table.len(), "{file} {class}");
            for (reference, fields) in table {
                let record = &records[reference];
                for (field, wanted) in fields.as_object().unwrap() {
                    let Some(value) = record.get(field).filter(|_| !OWN.contains(&field.as_str())) else {
                        continue;
                    };
                    assert_eq!(plain(value), *wanted, "{file} {class} {reference} {field}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 5_000, "{compared}");
    println!("{compared} values are those of the files");
}

fn plain(value: &Value) -> Json {
    match value {
        Value::String(text) | Value::DateTime(text) => text.as_str().into(),
        Value::Bool(flag) => (*flag).into(),
        Value::Double(number) => (*number).into(),
        Value::Int(number) => (*number).into(),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Struct(members) => members.iter().map(|(key, item)| (key.clone(), plain(item))).collect(),
    }
}

#[test]
fn the_traps_of_the_real_databases_are_there() {
    let by_name = |pool: &Pool, name: &str| guests(pool).into_iter().find(|vm| vm.name == name).unwrap();
    let Some((mut xapidb, _)) = load("xapidb-app.json") else { return };
    let eliloader = by_name(&xapidb, "CentOS 5 (32-bit) (2)");
    assert_eq!((eliloader.pv_bootloader.as_str(), eliloader.power_state.as_str()), ("eliloader", "Halted"));
    let pool = records(&mut xapidb, "pool");
    assert_eq!(text(pool.values().next().unwrap(), "default_SR"), "OpaqueRef:NULL", "no default SR");
    for (file, name) in [("state.json", "GUI Team Build Box"), ("cowley-db.json", WEB_SELF_SERVICE)] {
        let (pool, _) = load(file).unwrap();
        let vm = by_name(&pool, name);
        assert_eq!((vm.hvm_boot_params["order"].as_str(), vm.hvm_boot_policy.as_str()), ("", ""), "{file}");
    }
    let (mut state3, _) = load("state3.json").unwrap();
    let host = records(&mut state3, "host");
    assert!(host.values().all(|host| text(host, "API_version_minor") == "7"), "served as 5.6");
    let vms = records(&mut state3, "VM");
    let vifs = |name: &str| {
        let vm = vms.values().find(|vm| text(vm, "name_label") == name).unwrap();
        let Some(Value::Array(vifs)) = vm.get("VIFs") else { panic!("{vm:?}") };
        (vifs.len(), flag(vm, "ha_always_run"))
    };
    assert_eq!(vifs("Debian Etch 4.0 (5)"), (0, false));
    assert_eq!(vifs("Debian Etch 4.0 (4)"), (5, true));
    let without_mark = records(&mut state3, "VIF");
    assert_eq!(without_mark.len(), 25);
}

const WEB_SELF_SERVICE: &str = "Citrix XenServer Web Self Service v1.0 (Build 9057)";

#[test]
fn every_guest_of_a_real_database_has_one_bootable_disk() {
    let mut seen = 0;
    for (file, _) in FILES {
        let Some((mut pool, _)) = load(file) else { return };
        let drives = records(&mut pool, "VBD");
        for vm in records(&mut pool, "VM").values() {
            let Some(Value::Array(own)) = vm.get("VBDs") else { panic!("{vm:?}") };
            let is_guest = !flag(vm, "is_a_template") && !flag(vm, "is_control_domain");
            assert_eq!(own.len(), usize::from(is_guest), "{file} {}", text(vm, "name_label"));
            let bootable = own.iter().filter(|vbd| flag(&drives[vbd.as_str().unwrap()], "bootable"));
            seen += bootable.count();
        }
        let guest = guests(&pool).into_iter().find(|vm| vm.domain.is_some()).unwrap().uuid;
        let disk =
            |position: &str, kind| DiskSpec { userdevice: position.to_owned(), kind, ..DiskSpec::default() };
        pool.add_disk(&guest, &disk("1", DiskKind::Disk)).unwrap();
        pool.add_disk(&guest, &DiskSpec { read_only: true, ..disk("3", DiskKind::Cd) }).unwrap();
        assert_eq!(
            pool.add_disk(&guest, &disk("1", DiskKind::Disk)).unwrap_err().code,
            "DEVICE_ALREADY_EXISTS"
        );
        let more = records(&mut pool, "VBD").len();
        assert_eq!(more, drives.len() + 2, "{file}");
    }
    println!("{seen} guests with one bootable disk");
    assert_eq!(seen, 29);
}

#[test]
fn the_running_guests_of_a_real_database_can_be_driven() {
    for (file, _) in FILES {
        let Some((mut pool, written)) = load(file) else { return };
        for vm in guests(&pool) {
            let record = written["tables"]["VM"].as_object().unwrap().values();
            let record = record.into_iter().find(|record| record["uuid"] == vm.uuid.as_str()).unwrap();
            assert_eq!(vm.power_state, record["power_state"], "{file} {}", vm.name);
            let Some(domain) = vm.domain else { continue };
            assert_eq!(domain.domid.to_string(), record["domid"], "{file} {}", vm.name);
            assert!(pool.guest(NOW, &vm.uuid, domain.domid, GuestAct::PowerOff));
            pool.advance(NOW + std::time::Duration::from_secs(60));
            let after = pool.truth(&vm.uuid).unwrap();
            // HA is off, so what protects a guest does not start it again.
            assert_eq!((after.power_state.as_str(), after.domain), ("Halted", None), "{file} {}", vm.name);
        }
        let calls = pool.call_trusted(NOW, Method::VmGetAllRecords, &[]);
        assert!(calls.is_ok());
    }
}

#[test]
fn a_database_that_is_wrong_says_where() {
    let whole = |vm: &str| {
        format!(
            r#"{{"release": {{"api": "1.9"}}, "tables": {{
                "pool": {{"p": {{"uuid": "1", "master": "h"}}}},
                "host": {{"h": {{"uuid": "2", "enabled": true}}}},
                "network": {{}}, "VIF": {{}}, "VM": {{{vm}}}}}}}"#
        )
    };
    let rows = [
        ("{".to_owned(), "x.json is not JSON"),
        ("{}".to_owned(), "x.json: release: is missing"),
        (r#"{"release": {"api": "six"}}"#.to_owned(), "x.json: release.api: is not a version such as 1.9"),
        (r#"{"release": {"api": "1.9"}}"#.to_owned(), "x.json: tables: is missing"),
        (
            r#"{"release": {"api": "1.9"}, "tables": {"pool": 1}}"#.to_owned(),
            "x.json: tables.pool: is not an object",
        ),
        (whole("").replace("\"h\": {", "\"i\": {"), "x.json: tables.pool.p.master: is no host"),
        (whole(r#""v": {}"#), "x.json: tables.VM.v.uuid: is missing"),
        (whole(r#""v": {"uuid": "3", "VIFs": ""}"#), "x.json: tables.VM.v.VIFs: is not of type set"),
        (
            whole(r#""v": {"uuid": "3", "platform": {"pae": 1}}"#),
            "x.json: tables.VM.v.platform: is not of type map",
        ),
        (whole(r#""v": 7"#), "x.json: tables.VM.v: is not a record"),
    ];
    for (json, expected) in rows {
        let error = Pool::load(1, "x.json", &json, None).unwrap_err();
        assert_eq!(error.to_string(), expected);
        assert_eq!(matches!(error, LoadError::Syntax { .. }), expected.ends_with("JSON"));
    }
    let vm = r#""v": {"uuid": "3", "name_label": "web", "power_state": "Halted"}"#;
    let as_6_2 = Pool::load(1, "x.json", &whole(vm), Release::named("6.2")).unwrap();
    let api: Api = as_6_2.release().api;
    assert_eq!((api, as_6_2.addresses()), ((2, 0), vec!["127.0.0.1"]));
}

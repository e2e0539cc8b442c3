//! What bootflip sends and reads, held against the XenAPI data model: every message, parameter and field is there in
//! every release from 5.6 to 8.3, or is known to have come later; every message needs the role that we say.

pub(crate) mod cycles;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bootflip::xen::{
    CallError, Method, Transport, Value,
    api::Api,
    records::{
        GuestMetrics, HostMetrics, HostRecord, NetworkRecord, PoolRecord, Record, SessionRecord, SrRecord,
        TaskRecord, VbdRecord, VdiRecord, VifRecord, VmMetrics, VmRecord,
    },
    release::{Ability, ApiVersion, Release},
    rights::Role,
};
use futures_util::{FutureExt, future::BoxFuture};
use serde_json::Value as Json;

use crate::common::reference::data_model;

/// The releases that we claim, by the data model's names.
const CLAIMED: [(&str, &str); 14] = [
    ("5.6", "midnight-ride"),
    ("5.6 FP1", "cowley"),
    ("6.0", "boston"),
    ("6.1", "tampa"),
    ("6.2", "clearwater"),
    ("6.5", "creedence"),
    ("7.0", "dundee"),
    ("7.1", "ely"),
    ("7.2", "falcon"),
    ("7.5", "kolkata"),
    ("7.6", "lima"),
    ("8.0", "naples"),
    ("8.2", "stockholm"),
    ("8.3", "nile"),
];

struct Model(Json);

impl Model {
    /// When a release came, in order; versions of xapi come after 8.2.
    fn order(&self, code: &str) -> usize {
        let releases = self.0["releases"].as_array().unwrap();
        let at = |code: &str| releases.iter().position(|release| release["code"] == code);
        at(code).unwrap_or_else(|| at("stockholm_psr").unwrap())
    }

    fn api(&self, code: &str) -> ApiVersion {
        let releases = self.0["releases"].as_array().unwrap();
        let release = releases.iter().find(|release| release["code"] == code).unwrap();
        let (major, minor) = release["api_version"].as_str().unwrap().split_once('.').unwrap();
        (major.parse().unwrap(), minor.parse().unwrap())
    }

    /// Whether a field or message is there in a release.
    fn has(&self, item: &Json, release: &str) -> bool {
        let at = self.order(release);
        let came = item["introduced"].as_str().is_none_or(|code| self.order(code) <= at);
        came && item["removed"].as_str().is_none_or(|code| self.order(code) > at)
    }

    fn message(&self, name: &str) -> &Json {
        let (class, message) = name.split_once('.').unwrap();
        let messages = self.0["classes"][class]["messages"].as_array().unwrap();
        let found = messages.iter().find(|found| found["name"] == message);
        found.unwrap_or_else(|| panic!("the data model has no {name}"))
    }

    /// A record of a class as a release has it, each field with a value of its type.
    fn record(&self, class: &str, release: &str) -> Value {
        let fields = self.0["classes"][class]["fields"].as_array().unwrap();
        let there = fields.iter().filter(|field| self.has(field, release));
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        Value::Struct(there.map(|field| (text(&field["name"]), sample(&text(&field["type"])))).collect())
    }
}

/// A value of a type of the data model, as it stands on the wire.
fn sample(kind: &str) -> Value {
    match kind {
        "bool" => Value::Bool(false),
        "float" => Value::Double(1.0),
        "datetime" => Value::DateTime("19700101T00:00:00Z".into()),
        "int" => Value::string("1"),
        "enum vm_power_state" => Value::string("Halted"),
        "enum task_status_type" => Value::string("pending"),
        set if set.ends_with(" set") => Value::Array(vec![]),
        map if map.ends_with(" map") => Value::Struct(BTreeMap::new()),
        _ => Value::string("x"),
    }
}

/// Whether a value is what XenAPI wants for a type.
fn fits(value: &Value, kind: &str) -> bool {
    match value {
        Value::Bool(_) => kind == "bool",
        Value::Double(_) => kind == "float",
        Value::Array(_) => kind.ends_with(" set"),
        Value::Struct(_) => kind.ends_with(" map") || kind.ends_with(" record"),
        Value::String(number) if kind == "int" => number.parse::<i64>().is_ok(),
        Value::String(_) => kind == "string" || kind.ends_with(" ref") || kind.starts_with("enum "),
        Value::Int(_) | Value::DateTime(_) => false,
    }
}

#[test]
fn every_message_is_there_in_every_release_with_the_role_that_we_say() {
    let Some(model) = data_model("messages against the data model").map(Model) else { return };
    let mut later = Vec::new();
    for method in Method::ALL {
        let name = method.name();
        let message = model.message(name);
        let missing: BTreeSet<ApiVersion> = CLAIMED
            .iter()
            .filter(|(_, code)| !model.has(message, code))
            .map(|(_, code)| model.api(code))
            .collect();
        let since = method.since();
        for api in CLAIMED.iter().map(|(_, code)| model.api(code)) {
            assert_eq!(missing.contains(&api), since.is_some_and(|since| api < since), "{name} in {api:?}");
        }
        later.extend(since.map(|since| format!("{name} since {since:?}")));
        let roles: Vec<&str> =
            message["roles"].as_array().unwrap().iter().map(|role| role.as_str().unwrap()).collect();
        let least = Role::ALL.into_iter().find(|role| roles.contains(&role.name()));
        // Not restricted: the message has no role, as it is how one gets a session.
        assert_eq!(least.unwrap_or(Role::ReadOnly), method.role(), "{name}: {roles:?}");
    }
    println!("{} messages in {} releases; later ones: {later:?}", Method::ALL.len(), CLAIMED.len());
}

#[test]
fn abilities_come_with_the_releases_that_the_data_model_names() {
    let Some(model) = data_model("abilities against the data model").map(Model) else { return };
    let field = |class: &str, name: &str| {
        let fields = model.0["classes"][class]["fields"].as_array().unwrap();
        fields.iter().find(|field| field["name"] == name).unwrap().clone()
    };
    for ability in Ability::ALL {
        let item = match ability {
            Ability::DomainType => field("VM", "domain_type"),
            Ability::EventFrom => model.message("event.from").clone(),
            Ability::Originator => field("session", "originator"),
            Ability::SyncDatabase => model.message("pool.sync_database").clone(),
            Ability::MetricsHvm => field("VM_metrics", "hvm"),
            Ability::CurrentDomainType => field("VM_metrics", "current_domain_type"),
        };
        for (name, code) in CLAIMED {
            let release = Release { api: model.api(code), product_version: None, brand: None };
            assert_eq!(release.has(ability), model.has(&item, code), "{} in {name}", ability.name());
        }
    }
}

/// Answers every call with a void and keeps what was asked.
#[derive(Debug, Default)]
struct Recorder(Mutex<Vec<(Method, Vec<Value>)>>);

impl Transport for Recorder {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.0.lock().unwrap().push((method, params));
        async { Ok(Value::void()) }.boxed()
    }
}

/// Sends every message once; what comes of it does not matter.
fn send_all(api: &Api) {
    fn now<T>(future: impl Future<Output = Result<T, CallError>>) {
        let _ = future.now_or_never().expect("the recorder answers at once");
    }
    let order = BTreeMap::from([("order".to_owned(), "n".to_owned())]);
    now(api.vm_by_uuid("u"));
    now(api.vms_by_name("n"));
    now(api.possible_hosts("vm"));
    now(api.vm_record("vm"));
    now(api.vms());
    now(api.vm_metrics("m"));
    now(api.guest_networks("g"));
    now(api.vbd("vbd"));
    now(api.vdi("vdi"));
    now(api.vif("vif"));
    now(api.vifs());
    now(api.pools());
    now(api.hosts());
    now(api.host_metrics());
    now(api.free_memory("host"));
    now(api.sync_database());
    now(api.add_to_other_config("vm", "k", "v"));
    now(api.remove_from_other_config("vm", "k"));
    now(api.add_to_platform("vm", "k", "v"));
    now(api.remove_from_platform("vm", "k"));
    now(api.set_domain_type("vm", "hvm"));
    now(api.set_hvm_boot_policy("vm", "BIOS order"));
    now(api.set_hvm_boot_params("vm", &order));
    now(api.set_pv_bootloader("vm", "pygrub"));
    now(api.set_actions_after_shutdown("vm", "destroy"));
    now(api.set_actions_after_reboot("vm", "destroy"));
    now(api.set_actions_after_crash("vm", "destroy"));
    now(api.start("vm", true));
    now(api.unpause("vm"));
    now(api.clean_shutdown("vm"));
    now(api.hard_shutdown("vm"));
    now(api.task("task"));
    now(api.task_destroy("task"));
    now(api.event_from(&["VM"], "", Duration::from_secs(1)));
    now(api.own_session());
    now(api.srs());
    now(api.networks());
    now(api.clone_vm("vm", "n"));
    now(api.copy_vm("vm", "n", "sr"));
    now(api.provision("vm"));
    now(api.destroy_vm("vm"));
    now(api.set_name_label("vm", "n"));
    now(api.add_tag("vm", "t"));
    now(api.set_memory("vm", 1, 2));
    now(api.set_vcpus_max("vm", 2));
    now(api.set_vcpus_at_startup("vm", 2));
    now(api.create_vif("vm", "network", "02:16:3e:00:00:01"));
    now(api.destroy_vif("vif"));
    now(api.set_bootable("vbd", true));
    now(api.destroy_vdi("vdi"));
}

#[test]
fn every_parameter_has_the_type_that_the_message_wants() {
    let Some(model) = data_model("parameters against the data model").map(Model) else { return };
    let recorder = Arc::new(Recorder::default());
    send_all(&Api::new(recorder.clone()));
    let sent = recorder.0.lock().unwrap();
    let mut count = 0;
    for (method, params) in sent.iter() {
        let wanted = model.message(method.name())["params"].as_array().unwrap();
        assert_eq!(wanted[0]["name"], "session_id");
        // The transport adds the session, and once more where it is the object asked for.
        let given = 1 + usize::from(*method == Method::SessionGetRecord);
        assert_eq!(params.len() + given, wanted.len(), "{}", method.name());
        for (value, wanted) in params.iter().zip(&wanted[given..]) {
            let kind = wanted["type"].as_str().unwrap();
            assert!(fits(value, kind), "{}: {} is {kind}, not {value:?}", method.name(), wanted["name"]);
            count += 1;
        }
    }
    let own = [Method::SessionLogin, Method::SessionLogout]; // sent by the client itself
    let all: BTreeSet<Method> = sent.iter().map(|(method, _)| *method).chain(own).collect();
    assert_eq!(all, Method::ALL.into_iter().collect());
    println!("{count} parameters of {} messages", sent.len());
}

/// Reads a record of a class; what it made of fields that came later.
fn read(class: &str, record: &Value) -> Result<Vec<(&'static str, bool)>, String> {
    fn decoded<R: Record>(record: &Value) -> Result<R, String> {
        R::decode("r", record).map_err(|error| error.to_string())
    }
    Ok(match class {
        "VM" => vec![("domain_type", decoded::<VmRecord>(record)?.domain_type.is_some())],
        "VM_metrics" => {
            let read = decoded::<VmMetrics>(record)?;
            vec![("hvm", read.hvm.is_some()), ("current_domain_type", read.current_domain_type.is_some())]
        }
        "VIF" => vec![("locking_mode", decoded::<VifRecord>(record)?.locking_mode.is_some())],
        "VM_guest_metrics" => decoded::<GuestMetrics>(record).map(|_| vec![])?,
        "VBD" => decoded::<VbdRecord>(record).map(|_| vec![])?,
        "VDI" => decoded::<VdiRecord>(record).map(|_| vec![])?,
        "SR" => decoded::<SrRecord>(record).map(|_| vec![])?,
        "network" => decoded::<NetworkRecord>(record).map(|_| vec![])?,
        "pool" => decoded::<PoolRecord>(record).map(|_| vec![])?,
        "host" => decoded::<HostRecord>(record).map(|_| vec![])?,
        "host_metrics" => decoded::<HostMetrics>(record).map(|_| vec![])?,
        "task" => decoded::<TaskRecord>(record).map(|_| vec![])?,
        "session" => decoded::<SessionRecord>(record).map(|_| vec![])?,
        other => panic!("nobody reads {other}"),
    })
}

#[test]
fn every_field_that_we_read_is_in_the_records_of_every_release() {
    let Some(model) = data_model("fields against the data model").map(Model) else { return };
    let classes = [
        "VM",
        "VM_metrics",
        "VIF",
        "VM_guest_metrics",
        "VBD",
        "VDI",
        "SR",
        "network",
        "pool",
        "host",
        "host_metrics",
        "task",
        "session",
    ];
    let mut read_records = 0;
    for class in classes {
        for (name, code) in CLAIMED {
            let record = model.record(class, code);
            let later = read(class, &record).unwrap_or_else(|error| panic!("{class} of {name}: {error}"));
            for (field, there) in later {
                assert_eq!(there, record.get(field).is_some(), "{class}.{field} in {name}");
            }
            read_records += 1;
        }
    }
    println!("{read_records} records of {} classes in {} releases", classes.len(), CLAIMED.len());
}

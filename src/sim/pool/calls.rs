//! The messages: which exist, who may send them, what they read and write. Getters and setters come from the
//! schema; only what xapi treats specially has code of its own.

use std::collections::BTreeMap;

use super::{
    Pool,
    power::{Op, Order},
    release::Api,
    schema::{Class, Kind},
    spec::{PersonAct, Role},
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// How much of one parameter the log keeps, in characters.
const SUMMARY_LIMIT: usize = 160;
/// Values that an enum field takes; a setter refuses others.
const ENUMS: [(&str, &[&str]); 4] = [
    ("domain_type", &["hvm", "pv", "pv_in_pvh", "pvh"]),
    ("actions_after_shutdown", &["destroy", "restart"]),
    ("actions_after_reboot", &["destroy", "restart"]),
    (
        "actions_after_crash",
        &["destroy", "coredump_and_destroy", "restart", "coredump_and_restart", "preserve", "rename_restart"],
    ),
];
/// Since this API version a login may name its originator.
const ORIGINATOR_SINCE: Api = super::release::CLEARWATER;
/// Since this API version there is event.from.
const EVENT_FROM_SINCE: Api = super::release::BOSTON;

impl Pool {
    /// One message, session taken off.
    pub(super) fn dispatch(
        &mut self,
        now: Timestamp,
        role: Role,
        method: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        let unknown = || Failure::new("MESSAGE_METHOD_UNKNOWN", &[method]);
        let (is_async, plain) = match method.strip_prefix("Async.") {
            Some(plain) => (true, plain),
            None => (false, method),
        };
        let (class, message) = plain.split_once('.').ok_or_else(unknown)?;
        if role < role_for(class, message) {
            return Err(Failure::new("RBAC_PERMISSION_DENIED", &[plain, "No permission in user session"]));
        }
        check_count(plain, message, params)?;
        match (class, message, is_async) {
            ("session", "login_with_password", false) => return self.login(params),
            ("session", "logout", false) => return Ok(Value::void()),
            ("event", "from", false) if self.release.api >= EVENT_FROM_SINCE => {
                return self.event_from(now, params);
            }
            _ => {}
        }
        let class = Class::named(class).ok_or_else(unknown)?;
        if !is_async {
            return self.message(now, class, message, params).unwrap_or_else(|| Err(unknown()));
        }
        if class == Class::Task {
            return Err(unknown());
        }
        if let (Class::Vm, Some(op)) = (class, Op::named(message)) {
            return Ok(self.begin_order(now, op, params));
        }
        let outcome = self.message(now, class, message, params).ok_or_else(unknown)?;
        let task = self.new_task(now, method);
        let reference = Value::string(task.reference.clone());
        let text = |value: Value| value.as_str().unwrap_or_default().to_owned();
        self.finish_later(now, task, outcome.map(text));
        Ok(reference)
    }

    /// A message of a class; `None` when the release has no such message.
    fn message(
        &mut self,
        now: Timestamp,
        class: Class,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        if class == Class::Vm
            && let Some(answer) = self.vm_message(now, message, params)
        {
            return Some(answer);
        }
        Some(match message {
            "sync_database" if class == Class::Pool => {
                self.db.sync();
                Ok(Value::void())
            }
            "destroy" if class == Class::Task => self.existing(class, params).map(|task| {
                self.destroy_task(now, &task);
                Value::void()
            }),
            "get_all" => Ok(Value::Array(self.db.rows(class).map(|(row, _)| Value::string(row)).collect())),
            "get_all_records" => {
                let record = |(reference, row): (&String, &super::db::Row)| {
                    (reference.clone(), Value::Struct(row.fields.clone()))
                };
                Ok(Value::Struct(self.db.rows(class).map(record).collect()))
            }
            "get_record" => self.existing(class, params).map(|reference| {
                let fields = self.db.row(class, &reference).map(|row| row.fields.clone());
                Value::Struct(fields.unwrap_or_default())
            }),
            "get_by_uuid" => text_param(params, 0).and_then(|uuid| {
                let found = self.db.by_uuid(class, uuid).map(Value::string);
                found.ok_or_else(|| Failure::new("UUID_INVALID", &[class.name(), uuid]))
            }),
            "get_by_name_label" => text_param(params, 0).map(|name| self.named(class, name)),
            other => return self.field_message(now, class, other, params),
        })
    }

    /// What is special about VMs.
    fn vm_message(
        &mut self,
        now: Timestamp,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        if let Some(op) = Op::named(message) {
            let done = Order::read(op, params).and_then(|order| {
                self.check_order(&order)?;
                self.carry_out(now, &order)
            });
            return Some(done.map(|()| Value::void()));
        }
        let on_vm = self.existing(Class::Vm, params);
        if message == "get_possible_hosts" {
            return Some(
                on_vm.map(|vm| {
                    Value::Array(self.possible_hosts(&vm).into_iter().map(Value::String).collect())
                }),
            );
        }
        let done = match message {
            "set_domain_type" if self.release.has_domain_type() => on_vm.and_then(|vm| {
                let kind = text_param(params, 1)?;
                check_enum("domain_type", kind)?;
                let policy = if kind == "hvm" { "BIOS order" } else { "" };
                self.db.set_text(now, Class::Vm, &vm, "domain_type", kind);
                self.db.set_text(now, Class::Vm, &vm, "HVM_boot_policy", policy);
                Ok(())
            }),
            "set_HVM_boot_policy" => on_vm.and_then(|vm| {
                let policy = text_param(params, 1)?;
                self.db.set_text(now, Class::Vm, &vm, "HVM_boot_policy", policy);
                self.db.set_text(
                    now,
                    Class::Vm,
                    &vm,
                    "domain_type",
                    if policy.is_empty() { "pv" } else { "hvm" },
                );
                Ok(())
            }),
            "set_is_a_template" => on_vm.and_then(|vm| {
                let template = flag_param(params, 1)?;
                self.db.set(now, Class::Vm, &vm, "is_a_template", Value::Bool(template));
                self.refresh_allowed(now, &vm);
                Ok(())
            }),
            "destroy" => on_vm.and_then(|vm| self.destroy_vm(now, &vm)),
            "pool_migrate" => on_vm.and_then(|vm| self.migrate(now, &vm)),
            "clone" => {
                return Some(on_vm.and_then(|vm| {
                    let name = text_param(params, 1)?.to_owned();
                    self.clone_vm(now, &vm, &name).map(Value::String)
                }));
            }
            _ => return None,
        };
        Some(done.map(|()| Value::void()))
    }

    /// `get_F`, `set_F`, `add_to_F`, `remove_from_F` and the tags.
    fn field_message(
        &mut self,
        now: Timestamp,
        class: Class,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        let api = self.release.api;
        let (verb, field) = ["add_to_", "remove_from_", "get_", "set_"]
            .into_iter()
            .find_map(|verb| message.strip_prefix(verb).map(|field| (verb, field)))
            .or_else(|| matches!(message, "add_tags" | "remove_tags").then_some((message, "tags")))?;
        let spec = class.field(api, field)?;
        let on_maps = matches!(verb, "add_to_" | "remove_from_");
        if verb != "get_" && !spec.writable || on_maps && spec.kind != Kind::Map {
            return None;
        }
        let reference = match self.existing(class, params) {
            Ok(reference) => reference,
            Err(failure) => return Some(Err(failure)),
        };
        Some(match verb {
            "get_" => Ok(self.db.value(class, &reference, field).cloned().unwrap_or_else(Value::void)),
            "set_" => self.set_field(now, class, &reference, (field, spec.kind), params.get(1)),
            "add_to_" => self.add_to_map(now, class, &reference, field, params),
            "remove_from_" => text_param(params, 1).map(|key| {
                let mut map = self.db.map_of(class, &reference, field);
                if map.remove(key).is_some() {
                    self.db.set(now, class, &reference, field, Value::map(&map));
                }
                Value::void()
            }),
            _ => text_param(params, 1).map(|tag| {
                let mut tags = self.db.set_of(class, &reference, field);
                tags.retain(|known| known != tag);
                if verb == "add_tags" {
                    tags.push(tag.to_owned());
                }
                self.db.set(
                    now,
                    class,
                    &reference,
                    field,
                    Value::Array(tags.into_iter().map(Value::String).collect()),
                );
                Value::void()
            }),
        })
    }

    fn set_field(
        &mut self,
        now: Timestamp,
        class: Class,
        reference: &str,
        (field, kind): (&str, Kind),
        value: Option<&Value>,
    ) -> Result<Value, Failure> {
        let value = value
            .filter(|value| kind.holds(value))
            .ok_or_else(|| Failure::new("FIELD_TYPE_ERROR", &[field]))?;
        if let Some(text) = value.as_str() {
            check_enum(field, text)?;
        }
        self.db.set(now, class, reference, field, value.clone());
        Ok(Value::void())
    }

    fn add_to_map(
        &mut self,
        now: Timestamp,
        class: Class,
        reference: &str,
        field: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        let (key, value) = (text_param(params, 1)?, text_param(params, 2)?);
        let mut map = self.db.map_of(class, reference, field);
        if map.contains_key(key) {
            let uuid = self.db.text(class, reference, "uuid");
            return Err(Failure::new("MAP_DUPLICATE_KEY", &[class.name(), field, uuid, key]));
        }
        map.insert(key.to_owned(), value.to_owned());
        self.db.set(now, class, reference, field, Value::map(&map));
        Ok(Value::void())
    }

    /// The reference in the first parameter, when it points at a row.
    fn existing(&self, class: Class, params: &[Value]) -> Result<String, Failure> {
        let reference = text_param(params, 0)?;
        match self.db.row(class, reference) {
            Some(_) => Ok(reference.to_owned()),
            None => Err(Failure::new("HANDLE_INVALID", &[class.name(), reference])),
        }
    }

    fn named(&self, class: Class, name: &str) -> Value {
        let is_named = |(reference, _): &(&String, &super::db::Row)| {
            self.db.text(class, reference, "name_label") == name
        };
        Value::Array(
            self.db.rows(class).filter(is_named).map(|(reference, _)| Value::string(reference)).collect(),
        )
    }

    fn login(&mut self, params: &[Value]) -> Result<Value, Failure> {
        let most = if self.release.api >= ORIGINATOR_SINCE { 4 } else { 3 };
        if !(2..=most).contains(&params.len()) {
            let (expected, received) = (most.to_string(), params.len().to_string());
            let words = ["session.login_with_password", expected.as_str(), received.as_str()];
            return Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", &words));
        }
        let (user, password) = (text_param(params, 0)?, text_param(params, 1)?);
        match self.accounts.get(user) {
            Some((known, role)) if known.expose() == password => {
                let (role, session) = (*role, self.rng.reference());
                self.sessions.insert(session.clone(), role);
                Ok(Value::String(session))
            }
            _ => Err(Failure::new("SESSION_AUTHENTICATION_FAILED", &[user, "Authentication failure"])),
        }
    }
}

impl PersonAct {
    /// The message that does it.
    pub(super) fn as_call(&self, vm: &str) -> (&'static str, Vec<Value>) {
        let this = || Value::string(vm);
        let text = |text: &String| vec![this(), Value::string(text)];
        let map = |map: &BTreeMap<String, String>| vec![this(), Value::map(map)];
        match self {
            Self::Start => ("VM.start", vec![this(), Value::Bool(false), Value::Bool(false)]),
            Self::HardShutdown => ("VM.hard_shutdown", vec![this()]),
            Self::CleanShutdown => ("VM.clean_shutdown", vec![this()]),
            Self::HardReboot => ("VM.hard_reboot", vec![this()]),
            Self::CleanReboot => ("VM.clean_reboot", vec![this()]),
            Self::Pause => ("VM.pause", vec![this()]),
            Self::Unpause => ("VM.unpause", vec![this()]),
            Self::Migrate => ("VM.pool_migrate", vec![this()]),
            Self::Destroy => ("VM.destroy", vec![this()]),
            Self::Clone { name } => ("VM.clone", text(name)),
            Self::SetName(name) => ("VM.set_name_label", text(name)),
            Self::SetBootParams(params) => ("VM.set_HVM_boot_params", map(params)),
            Self::SetPolicy(policy) => ("VM.set_HVM_boot_policy", text(policy)),
            Self::SetDomainType(kind) => ("VM.set_domain_type", text(kind)),
            Self::SetPvBootloader(bootloader) => ("VM.set_PV_bootloader", text(bootloader)),
            Self::SetActionsAfterShutdown(action) => ("VM.set_actions_after_shutdown", text(action)),
            Self::SetActionsAfterReboot(action) => ("VM.set_actions_after_reboot", text(action)),
            Self::SetActionsAfterCrash(action) => ("VM.set_actions_after_crash", text(action)),
            Self::SetTemplate(template) => ("VM.set_is_a_template", vec![this(), Value::Bool(*template)]),
            Self::AddOtherConfig { key, value } => {
                ("VM.add_to_other_config", vec![this(), Value::string(key), Value::string(value)])
            }
            Self::RemoveOtherConfig { key } => ("VM.remove_from_other_config", text(key)),
            Self::SetOtherConfig(config) => ("VM.set_other_config", map(config)),
            Self::SetPlatform(platform) => ("VM.set_platform", map(platform)),
        }
    }
}

/// The weakest role that may send the message.
fn role_for(class: &str, message: &str) -> Role {
    match (class, message) {
        ("session" | "event" | "task", _) => Role::ReadOnly,
        (_, message) if message.starts_with("get_") => Role::ReadOnly,
        ("VM", "add_tags" | "remove_tags") => Role::VmOperator,
        ("VM", message) if Op::named(message).is_some() => Role::VmOperator,
        ("VM" | "VIF" | "VBD" | "VDI", _) => Role::VmAdmin,
        _ => Role::PoolOperator,
    }
}

/// The number of parameters, without the session.
fn check_count(method: &str, message: &str, params: &[Value]) -> Result<(), Failure> {
    let expected = match message {
        "start" | "from" => 3,
        "clone" => 2,
        "get_all" | "get_all_records" | "sync_database" => 0,
        _ if Op::named(message).is_some() || message.starts_with("get_") => 1,
        _ if message.starts_with("set_") || message.starts_with("remove_from_") => 2,
        _ if message.starts_with("add_to_") => 3,
        _ => return Ok(()),
    };
    if params.len() == expected {
        return Ok(());
    }
    let words = [method, &expected.to_string(), &params.len().to_string()];
    Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", &words))
}

fn check_enum(field: &str, value: &str) -> Result<(), Failure> {
    match ENUMS.iter().find(|(name, _)| *name == field) {
        Some((_, values)) if !values.contains(&value) => Err(Failure::new("INVALID_VALUE", &[field, value])),
        _ => Ok(()),
    }
}

/// The parameters as the log keeps them: without the first reference, shortened, and nothing of a password.
pub(super) fn summary(method: &str, params: &[Value]) -> String {
    let shown = if method.starts_with("session.") { 0..1 } else { 1..params.len().max(1) };
    let texts = params.get(shown).unwrap_or_default().iter().map(|value| {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Bool(flag) => flag.to_string(),
            Value::Struct(_) | Value::Array(_) | Value::Double(_) | Value::Int(_) | Value::DateTime(_) => {
                format!("{value:?}")
            }
        };
        text.chars().take(SUMMARY_LIMIT).collect::<String>()
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// The text parameter at this place.
pub(super) fn text_param(params: &[Value], index: usize) -> Result<&str, Failure> {
    params.get(index).and_then(Value::as_str).ok_or_else(|| bad_parameter(index))
}

/// The boolean parameter at this place.
pub(super) fn flag_param(params: &[Value], index: usize) -> Result<bool, Failure> {
    let Some(Value::Bool(flag)) = params.get(index) else { return Err(bad_parameter(index)) };
    Ok(*flag)
}

fn bad_parameter(index: usize) -> Failure {
    Failure::new(
        "XMLRPC_UNMARSHAL_FAILURE",
        &[&format!("parameter {}", index + 1), "missing or of another type"],
    )
}

/// A `dateTime.iso8601` as xapi writes it: whole seconds, UTC, with Z.
pub(super) fn date(at: Timestamp) -> String {
    let seconds = i64::try_from(at.millis() / 1000).unwrap_or(i64::MAX);
    let stamp = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    stamp.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

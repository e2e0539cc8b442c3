//! The messages: which exist, who may send them, what they read and write. Getters and setters come from the
//! schema; only what xapi treats specially has code of its own.

use std::collections::BTreeMap;

use super::{
    Pool,
    messages::{self, Verb},
    power::{BIOS_ORDER, Op, Order},
    schema::{Class, Kind, NULL},
    sessions::Actor,
    spec::PersonAct,
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// How much of one parameter the log keeps, in characters.
const SUMMARY_LIMIT: usize = 160;
/// Values that an enum field takes; a setter refuses others.
const ENUMS: [(&str, &[&str]); 5] = [
    ("actions_after_softreboot", &["soft_reboot", "destroy", "restart", "preserve"]),
    ("domain_type", &["hvm", "pv", "pv_in_pvh", "pvh"]),
    ("actions_after_shutdown", &["destroy", "restart"]),
    ("actions_after_reboot", &["destroy", "restart"]),
    (
        "actions_after_crash",
        &["destroy", "coredump_and_destroy", "restart", "coredump_and_restart", "preserve", "rename_restart"],
    ),
];

impl Pool {
    /// One message, session taken off.
    pub(super) fn dispatch(
        &mut self,
        now: Timestamp,
        actor: Actor<'_>,
        method: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        let unknown = || Failure::new("MESSAGE_METHOD_UNKNOWN", &[method]);
        let (is_async, plain) = match method.strip_prefix("Async.") {
            Some(plain) => (true, plain),
            None => (false, method),
        };
        let (class, message) = plain.split_once('.').ok_or_else(unknown)?;
        let known = messages::known(self.release.api, class, message).ok_or_else(unknown)?;
        if is_async && !known.is_async {
            return Err(unknown());
        }
        messages::check_role(actor.role, plain, known, params)?;
        // A trusted caller has no session to ask about; it asks for its own.
        if plain != "session.get_record" || !actor.session.is_empty() {
            messages::check_count(plain, known, params)?;
        }
        match (class, message) {
            ("session", "login_with_password") => return self.login(now, params),
            ("session", "logout") => {
                self.doors.close(actor.session);
                return Ok(Value::void());
            }
            ("session", _) => return self.session_message(actor, message, params),
            ("event", "from") => return self.event_from(now, params),
            ("event", _) => return self.event_message(now, actor.session, message, params),
            _ => {}
        }
        let class = Class::named(class).ok_or_else(unknown)?;
        if !is_async {
            return self.message(now, class, message, params).unwrap_or_else(|| Err(unknown()));
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
        if let Some(answer) = self.device_message(now, class, message, params) {
            return Some(answer);
        }
        Some(match message {
            "compute_free_memory" if class == Class::Host => {
                self.existing(class, params).map(|host| Value::string(self.free_memory(&host).to_string()))
            }
            "get_server_certificate" if class == Class::Host => {
                self.existing(class, params).map(|_| Value::string(&self.certificate))
            }
            "get_servertime" if class == Class::Host => {
                self.existing(class, params).map(|_| Value::DateTime(date(now)))
            }
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
            "get_all_records_where" => self.records_where(class, params),
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
                self.carry_out_or_ask(now, order)
            });
            return Some(done.map(|()| Value::void()));
        }
        let special =
            ["get_allowed", "set_", "assert_", "compute_"].iter().any(|start| message.starts_with(start))
                || matches!(message, "get_possible_hosts" | "pool_migrate" | "power_state_reset")
                || matches!(message, "clone" | "copy" | "provision" | "destroy");
        if !special {
            return None;
        }
        let vm = match self.existing(Class::Vm, params) {
            Ok(vm) => vm,
            Err(failure) => return Some(Err(failure)),
        };
        let vm = vm.as_str();
        if let Some(answer) = self.creation_message(now, vm, message, params) {
            return Some(answer);
        }
        if let Some(answer) = self.size_message(now, vm, message, params) {
            return Some(answer);
        }
        let done = match message {
            "get_allowed_VBD_devices" | "get_allowed_VIF_devices" => {
                return Some(Ok(self.allowed_positions(vm, message)));
            }
            "get_possible_hosts" => {
                let hosts = self.possible_hosts(vm).into_iter().map(Value::String).collect();
                return Some(Ok(Value::Array(hosts)));
            }
            "compute_memory_overhead" => {
                let overhead = self.overhead_of(vm, &self.planned_kind(vm));
                return Some(Ok(Value::string(overhead.to_string())));
            }
            "assert_can_boot_here" => self.assert_can_boot_here(vm, params),
            "assert_operation_valid" => self.assert_operation_valid(vm, params),
            "set_domain_type" => self.set_domain_type(now, vm, params),
            "set_HVM_boot_policy" => self.set_policy(now, vm, params),
            "set_is_a_template" => flag_param(params, 1).map(|template| {
                self.db.set(now, Class::Vm, vm, "is_a_template", Value::Bool(template));
                self.refresh_allowed(now, vm);
            }),
            "set_ha_always_run" => flag_param(params, 1).map(|always| {
                self.db.set(now, Class::Vm, vm, "ha_always_run", Value::Bool(always));
            }),
            "set_ha_restart_priority" => text_param(params, 1).map(|priority| {
                self.db.set_text(now, Class::Vm, vm, "ha_restart_priority", priority);
            }),
            "pool_migrate" => text_param(params, 1).and_then(|wanted| self.migrate(now, vm, wanted)),
            "power_state_reset" => {
                self.reset_power_state(now, vm);
                Ok(())
            }
            _ => return None,
        };
        Some(done.map(|()| Value::void()))
    }

    fn set_domain_type(&mut self, now: Timestamp, vm: &str, params: &[Value]) -> Result<(), Failure> {
        let kind = text_param(params, 1)?;
        check_enum("domain_type", kind)?;
        self.db.set_text(now, Class::Vm, vm, "domain_type", kind);
        self.db.set_text(now, Class::Vm, vm, "HVM_boot_policy", if kind == "hvm" { BIOS_ORDER } else { "" });
        self.note_overhead(now, vm);
        Ok(())
    }

    fn set_policy(&mut self, now: Timestamp, vm: &str, params: &[Value]) -> Result<(), Failure> {
        let policy = text_param(params, 1)?;
        self.db.set_text(now, Class::Vm, vm, "HVM_boot_policy", policy);
        // Whatever it was before: a pv_in_pvh guest becomes a plain PV one.
        let kind = if policy.is_empty() { "pv" } else { "hvm" };
        self.db.set_text(now, Class::Vm, vm, "domain_type", kind);
        self.note_overhead(now, vm);
        Ok(())
    }

    fn assert_operation_valid(&self, vm: &str, params: &[Value]) -> Result<(), Failure> {
        let op = text_param(params, 1)?;
        let allowed = self.db.set_of(Class::Vm, vm, "allowed_operations");
        if allowed.iter().any(|known| known == op) {
            return Ok(());
        }
        match Op::named(op) {
            Some(known) => self.check_order(&Order::of(known, vm)),
            None => Err(Failure::new("OPERATION_NOT_ALLOWED", &[op])),
        }
    }

    /// `get_F`, `set_F`, `add_to_F`, `remove_from_F` and the tags; that the release has it is known.
    fn field_message(
        &mut self,
        now: Timestamp,
        class: Class,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        let (verb, field) = messages::field_verb(message)?;
        let kind = class.field(self.release.api, field)?.kind;
        let reference = match self.existing(class, params) {
            Ok(reference) => reference,
            Err(failure) => return Some(Err(failure)),
        };
        Some(match verb {
            Verb::Get => Ok(self.db.value(class, &reference, field).cloned().unwrap_or_else(Value::void)),
            Verb::Set => self.set_field(now, class, &reference, (field, kind), params.get(1)),
            Verb::AddTo => self.add_to_map(now, class, &reference, field, params),
            Verb::RemoveFrom => text_param(params, 1).map(|key| {
                let mut map = self.db.map_of(class, &reference, field);
                if map.remove(key).is_some() {
                    self.db.set(now, class, &reference, field, Value::map(&map));
                }
                Value::void()
            }),
            Verb::AddTag | Verb::RemoveTag => text_param(params, 1).map(|tag| {
                let mut tags = self.db.set_of(class, &reference, field);
                tags.retain(|known| known != tag);
                if verb == Verb::AddTag {
                    tags.push(tag.to_owned());
                }
                let tags = tags.into_iter().map(Value::String).collect();
                self.db.set(now, class, &reference, field, Value::Array(tags));
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
    pub(super) fn existing(&self, class: Class, params: &[Value]) -> Result<String, Failure> {
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
            // To any other host: the model takes the null reference for that.
            Self::Migrate => {
                ("VM.pool_migrate", vec![this(), Value::string(NULL), Value::map(&BTreeMap::new())])
            }
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

//! Which messages exist in which release, how many parameters they take, and the least role that may send them.
//!
//! Getters and setters follow from the fields; everything else stands in [`MESSAGES`]. A test compares all of it
//! with the XenAPI data model, release by release.

use super::{
    release::{Api, BOSTON, CLEARWATER, ELY, MIDNIGHT_RIDE, NILE, RIO, TAMPA},
    schema::{Class, Kind},
    spec::Role,
};
use crate::xen::{Failure, Value};

/// A message that is no getter or setter of a field.
#[derive(Debug)]
pub(super) struct Message {
    class: &'static str,
    name: &'static str,
    /// Parameters after the session: least and most.
    params: (usize, usize),
    /// The weakest role that may send it.
    role: Role,
    since: Api,
    /// `Async.` may stand in front.
    is_async: bool,
}

/// What the model knows of a message that a release has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    /// Parameters after the session: least and most.
    pub(super) params: (usize, usize),
    /// The weakest role that may send it.
    pub(super) role: Role,
    /// `Async.` may stand in front.
    pub(super) is_async: bool,
}

impl Message {
    const fn new(class: &'static str, name: &'static str, params: usize, role: Role) -> Self {
        Self { class, name, params: (params, params), role, since: RIO, is_async: true }
    }

    const fn since(self, api: Api) -> Self {
        Self { since: api, ..self }
    }

    const fn up_to(self, params: usize) -> Self {
        Self { params: (self.params.0, params), ..self }
    }

    const fn sync_only(self) -> Self {
        Self { is_async: false, ..self }
    }

    const fn known(&self) -> Known {
        Known { params: self.params, role: self.role, is_async: self.is_async }
    }
}

const fn read(class: &'static str, name: &'static str, params: usize) -> Message {
    Message::new(class, name, params, Role::ReadOnly)
}

const fn session(name: &'static str, params: usize) -> Message {
    read("session", name, params).sync_only()
}

const fn event(name: &'static str, params: usize) -> Message {
    read("event", name, params).sync_only()
}

const fn operate(name: &'static str, params: usize) -> Message {
    Message::new("VM", name, params, Role::VmOperator)
}

const fn make(class: &'static str, name: &'static str, params: usize) -> Message {
    Message::new(class, name, params, Role::VmAdmin)
}

const fn power(name: &'static str, params: usize) -> Message {
    Message::new("VM", name, params, Role::VmPowerAdmin)
}

const fn pool_wide(class: &'static str, name: &'static str, params: usize) -> Message {
    Message::new(class, name, params, Role::PoolOperator)
}

/// Every message of the model that is no getter or setter of a field.
const MESSAGES: &[Message] = &[
    session("get_auth_user_name", 1).since(MIDNIGHT_RIDE),
    session("get_auth_user_sid", 1),
    session("get_client_certificate", 1).since(NILE),
    session("get_is_local_superuser", 1),
    session("get_last_active", 1),
    session("get_originator", 1).since(CLEARWATER),
    session("get_other_config", 1),
    session("get_parent", 1).since(MIDNIGHT_RIDE),
    session("get_pool", 1),
    session("get_rbac_permissions", 1).since(MIDNIGHT_RIDE),
    session("get_record", 1),
    session("get_subject", 1),
    session("get_tasks", 1).since(MIDNIGHT_RIDE),
    session("get_this_host", 1),
    session("get_this_user", 1),
    session("get_uuid", 1),
    session("get_validation_time", 1),
    session("login_with_password", 2).up_to(4),
    session("logout", 0),
    event("from", 3).since(BOSTON),
    event("get_current_id", 0),
    event("inject", 2).since(TAMPA),
    event("next", 0),
    event("register", 1),
    event("unregister", 1),
    operate("clean_reboot", 1),
    operate("clean_shutdown", 1),
    operate("hard_reboot", 1),
    operate("hard_shutdown", 1),
    operate("pause", 1),
    operate("start", 3),
    operate("unpause", 1),
    make("VM", "clone", 2),
    make("VM", "copy", 3),
    make("VM", "destroy", 1),
    make("VM", "provision", 1),
    make("VM", "set_VCPUs_at_startup", 2).since(MIDNIGHT_RIDE),
    make("VM", "set_VCPUs_max", 2).since(MIDNIGHT_RIDE),
    power("pool_migrate", 3),
    power("set_memory", 2).since(ELY),
    power("set_memory_dynamic_max", 2).since(MIDNIGHT_RIDE),
    power("set_memory_dynamic_min", 2).since(MIDNIGHT_RIDE),
    power("set_memory_dynamic_range", 3).since(MIDNIGHT_RIDE),
    power("set_memory_limits", 5).since(MIDNIGHT_RIDE),
    power("set_memory_static_max", 2),
    power("set_memory_static_min", 2).since(MIDNIGHT_RIDE),
    power("set_memory_static_range", 3).since(MIDNIGHT_RIDE),
    power("start_on", 4),
    pool_wide("VM", "power_state_reset", 1),
    pool_wide("VM", "set_ha_always_run", 2),
    pool_wide("VM", "set_ha_restart_priority", 2),
    read("VM", "assert_can_boot_here", 2),
    read("VM", "assert_operation_valid", 2),
    read("VM", "compute_memory_overhead", 1).since(MIDNIGHT_RIDE),
    read("VM", "get_allowed_VBD_devices", 1),
    read("VM", "get_allowed_VIF_devices", 1),
    read("VM", "get_possible_hosts", 1),
    make("VBD", "create", 1),
    make("VBD", "destroy", 1),
    make("VBD", "set_mode", 2),
    make("VDI", "create", 1),
    make("VDI", "destroy", 1),
    make("VDI", "set_name_description", 2),
    make("VDI", "set_name_label", 2),
    make("VIF", "create", 1),
    make("VIF", "destroy", 1),
    read("host", "compute_free_memory", 1),
    read("host", "get_server_certificate", 1),
    read("host", "get_servertime", 1),
    pool_wide("pool", "sync_database", 0),
    read("task", "destroy", 1).sync_only(),
];

/// Messages that every class of records has, and those of classes whose records have names.
const OF_RECORDS: [(&str, usize); 4] =
    [("get_all", 0), ("get_all_records", 0), ("get_by_uuid", 1), ("get_record", 1)];
const OF_NAMES: (&str, usize) = ("get_by_name_label", 1);
/// Every class answers it, though the published data model hides it (but for `message`).
const HIDDEN: (&str, usize) = ("get_all_records_where", 1);
/// Writes of these fields need another role than their class's usual one.
const FIELD_ROLES: [(Class, &str, Role); 8] = [
    (Class::Vm, "HVM_shadow_multiplier", Role::VmPowerAdmin),
    (Class::Vm, "affinity", Role::VmPowerAdmin),
    (Class::Network, "MTU", Role::VmAdmin),
    (Class::Pool, "gui_config", Role::VmOperator),
    (Class::Pool, "custom_uefi_certificates", Role::PoolAdmin),
    (Class::Pool, "guest_agent_config", Role::PoolAdmin),
    (Class::Pool, "telemetry_next_collection", Role::PoolAdmin),
    (Class::Pool, "uefi_certificates", Role::PoolAdmin),
];
/// Keys of `VM.other_config` that need another role than vm-admin; a `*` at the end stands for any rest.
const KEY_ROLES: [(&str, Role); 4] = [
    ("pci", Role::PoolAdmin),
    ("hvm_serial", Role::PoolAdmin),
    ("folder", Role::VmOperator),
    ("XenCenter.CustomFields.*", Role::VmOperator),
];

/// A message of a release, for whoever lists or checks them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MessageFacts {
    /// Such as `VM.start`.
    pub name: String,
    /// Parameters after the session: least and most.
    pub params: (usize, usize),
    /// The weakest role that may send it.
    pub role: Role,
}

/// A field of a release's records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFacts {
    /// Such as `VM`.
    pub class: &'static str,
    /// Such as `HVM_boot_policy`.
    pub name: &'static str,
    /// `string` (also for an enum), `int`, `float`, `bool`, `datetime`, `ref`, `set` or `map`.
    pub kind: &'static str,
}

/// What the release knows of this message; `None`: it has no such message.
pub(super) fn known(api: Api, class: &str, name: &str) -> Option<Known> {
    let own = MESSAGES.iter().find(|message| message.name == name && message.class == class);
    if let Some(message) = own {
        let mut known = message.known();
        if message.name == "login_with_password" && api < CLEARWATER {
            known.params.1 = 3; // no originator yet
        }
        return (message.since <= api).then_some(known);
    }
    let class = Class::named(class)?;
    let is_async = class != Class::Task;
    let reads = |params| Known { params: (params, params), role: Role::ReadOnly, is_async };
    if let Some((_, params)) = OF_RECORDS.iter().chain([&HIDDEN]).find(|(known, _)| *known == name) {
        return Some(reads(*params));
    }
    if name == OF_NAMES.0 {
        let named = class != Class::Pool && class.field(api, "name_label").is_some();
        return named.then(|| reads(OF_NAMES.1));
    }
    let (verb, field) = field_verb(name)?;
    let spec = class.field(api, field)?;
    let on_maps = matches!(verb, Verb::AddTo | Verb::RemoveFrom);
    if verb != Verb::Get && !spec.writable || on_maps && spec.kind != Kind::Map {
        return None;
    }
    let params = match verb {
        Verb::Get => return Some(reads(1)),
        Verb::Set | Verb::RemoveFrom | Verb::AddTag | Verb::RemoveTag => 2,
        Verb::AddTo => 3,
    };
    Some(Known { params: (params, params), role: write_role(class, field), is_async })
}

/// Every message of the release, as `class.name`, with the parameters that follow the session and the least role.
pub(super) fn all(api: Api) -> Vec<(String, Known)> {
    let named = |message: &Message| {
        let known = known(api, message.class, message.name)?;
        Some((format!("{}.{}", message.class, message.name), known))
    };
    let mut found: Vec<(String, Known)> = MESSAGES.iter().filter_map(named).collect();
    for class in Class::ALL {
        let of_class = OF_RECORDS.iter().chain([&OF_NAMES]).map(|(name, _)| (*name).to_owned());
        let of_fields = class.fields_of(api).flat_map(|(field, _)| {
            ["get_", "set_", "add_to_", "remove_from_"].map(|verb| format!("{verb}{field}"))
        });
        let tags = ["add_tags", "remove_tags"].map(str::to_owned);
        for name in of_class.chain(of_fields).chain(tags) {
            let full = format!("{}.{name}", class.name());
            let listed = found.iter().any(|(known, _)| *known == full);
            if let Some(known) = known(api, class.name(), &name).filter(|_| !listed) {
                found.push((full, known));
            }
        }
    }
    found
}

/// What a message does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    Set,
    AddTo,
    RemoveFrom,
    AddTag,
    RemoveTag,
}

/// The verb and field that the name of a message is made of.
pub(super) fn field_verb(name: &str) -> Option<(Verb, &str)> {
    let tags = [("add_tags", Verb::AddTag), ("remove_tags", Verb::RemoveTag)];
    if let Some((_, verb)) = tags.into_iter().find(|(known, _)| *known == name) {
        return Some((verb, "tags"));
    }
    let verbs = [
        ("get_", Verb::Get),
        ("set_", Verb::Set),
        ("add_to_", Verb::AddTo),
        ("remove_from_", Verb::RemoveFrom),
    ];
    verbs.into_iter().find_map(|(prefix, verb)| name.strip_prefix(prefix).map(|field| (verb, field)))
}

fn write_role(class: Class, field: &str) -> Role {
    if field == "tags" {
        return Role::VmOperator;
    }
    let exception = FIELD_ROLES.iter().find(|(of, name, _)| *of == class && *name == field);
    if let Some((_, _, role)) = exception {
        return *role;
    }
    match class {
        Class::Vm
        | Class::VmMetrics
        | Class::VmGuestMetrics
        | Class::Vif
        | Class::Vbd
        | Class::Vdi
        | Class::Task => Role::VmAdmin,
        Class::Sr | Class::Network | Class::Host | Class::HostMetrics | Class::Pool => Role::PoolOperator,
    }
}

/// Refuses what the role may not send, with the permission that it lacks. Some keys of `VM.other_config` have
/// permissions of their own.
pub(super) fn check_role(role: Role, plain: &str, known: Known, params: &[Value]) -> Result<(), Failure> {
    let on_keys = matches!(plain, "VM.add_to_other_config" | "VM.remove_from_other_config");
    let key = params.get(1).and_then(Value::as_str).filter(|_| on_keys);
    let by_key = key.and_then(|key| {
        let fits = |pattern: &str| match pattern.strip_suffix('*') {
            Some(start) => key.starts_with(start),
            None => key == pattern,
        };
        KEY_ROLES.iter().find(|(pattern, _)| fits(pattern))
    });
    let needed = by_key.map_or(known.role, |(_, role)| *role);
    if role >= needed {
        return Ok(());
    }
    // Xapi writes permissions in lower case, and the reason with the roles that would do.
    let suffix = by_key.map(|(pattern, _)| format!("/key:{pattern}")).unwrap_or_default();
    let permission = format!("{plain}{suffix}").to_lowercase();
    let able: Vec<&str> =
        Role::ALL.iter().rev().filter(|role| **role >= needed).map(|role| role.name()).collect();
    let reason = format!("No permission in user session. (Roles with this permission: {})", able.join(", "));
    Err(Failure::new("RBAC_PERMISSION_DENIED", &[&permission, &reason]))
}

/// Refuses another number of parameters than the message has; both numbers are without the session.
pub(super) fn check_count(plain: &str, known: Known, params: &[Value]) -> Result<(), Failure> {
    let (least, most) = known.params;
    if (least..=most).contains(&params.len()) {
        return Ok(());
    }
    let words = [plain, &most.to_string(), &params.len().to_string()];
    Err(Failure::new("MESSAGE_PARAMETER_COUNT_MISMATCH", &words))
}

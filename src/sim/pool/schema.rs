//! Classes and what a field is: its kind, the API versions that have it, whether a setter exists. The fields
//! themselves are in `tables`.

mod tables;

use std::collections::BTreeMap;

use super::release::{Api, RIO};
use crate::xen::Value;

/// The null reference.
pub(super) const NULL: &str = "OpaqueRef:NULL";
/// The date of what never happened.
pub(super) const EPOCH: &str = "19700101T00:00:00Z";

/// A class of the pool's database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Class {
    Vm,
    VmMetrics,
    VmGuestMetrics,
    Vif,
    Vbd,
    Vdi,
    Sr,
    Network,
    Host,
    HostMetrics,
    Pool,
    Task,
}

impl Class {
    pub(super) const ALL: [Self; 12] = [
        Self::Vm,
        Self::VmMetrics,
        Self::VmGuestMetrics,
        Self::Vif,
        Self::Vbd,
        Self::Vdi,
        Self::Sr,
        Self::Network,
        Self::Host,
        Self::HostMetrics,
        Self::Pool,
        Self::Task,
    ];

    /// The name in messages and errors.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Vm => "VM",
            Self::VmMetrics => "VM_metrics",
            Self::VmGuestMetrics => "VM_guest_metrics",
            Self::Vif => "VIF",
            Self::Vbd => "VBD",
            Self::Vdi => "VDI",
            Self::Sr => "SR",
            Self::Network => "network",
            Self::Host => "host",
            Self::HostMetrics => "host_metrics",
            Self::Pool => "pool",
            Self::Task => "task",
        }
    }

    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    const fn fields(self) -> &'static [Field] {
        match self {
            Self::Vm => tables::VM,
            Self::VmMetrics => tables::VM_METRICS,
            Self::VmGuestMetrics => tables::VM_GUEST_METRICS,
            Self::Vif => tables::VIF,
            Self::Vbd => tables::VBD,
            Self::Vdi => tables::VDI,
            Self::Sr => tables::SR,
            Self::Network => tables::NETWORK,
            Self::Host => tables::HOST,
            Self::HostMetrics => tables::HOST_METRICS,
            Self::Pool => tables::POOL,
            Self::Task => tables::TASK,
        }
    }

    /// The field of this name, where the release has it.
    pub(super) fn field(self, api: Api, name: &str) -> Option<&'static Field> {
        self.fields().iter().find(|field| field.name == name && field.exists(api))
    }

    /// The names and kinds of the fields that the release has.
    pub(super) fn fields_of(self, api: Api) -> impl Iterator<Item = (&'static str, Kind)> {
        self.fields().iter().filter(move |field| field.exists(api)).map(|field| (field.name, field.kind))
    }

    /// A record with every field of the release at its empty value.
    pub(super) fn blank(self, api: Api) -> BTreeMap<String, Value> {
        let fields = self.fields().iter().filter(|field| field.exists(api));
        fields.map(|field| (field.name.to_owned(), field.kind.empty())).collect()
    }
}

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Int,
    Float,
    Flag,
    Date,
    Reference,
    Set,
    Map,
}

impl Kind {
    /// How the data model calls it; an enum counts as a string.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Int => "int",
            Self::Float => "float",
            Self::Flag => "bool",
            Self::Date => "datetime",
            Self::Reference => "ref",
            Self::Set => "set",
            Self::Map => "map",
        }
    }

    fn empty(self) -> Value {
        match self {
            Self::Text => Value::void(),
            Self::Int => Value::string("0"),
            Self::Float => Value::Double(0.0),
            Self::Flag => Value::Bool(false),
            Self::Date => Value::DateTime(EPOCH.to_owned()),
            Self::Reference => Value::string(NULL),
            Self::Set => Value::Array(Vec::new()),
            Self::Map => Value::Struct(BTreeMap::new()),
        }
    }

    /// The value is of this kind, as it stands on the wire.
    pub(super) const fn holds(self, value: &Value) -> bool {
        match self {
            Self::Text | Self::Reference => matches!(value, Value::String(_)),
            Self::Int => matches!(value, Value::String(_) | Value::Int(_)),
            Self::Float => matches!(value, Value::Double(_)),
            Self::Flag => matches!(value, Value::Bool(_)),
            Self::Date => matches!(value, Value::DateTime(_)),
            Self::Set => matches!(value, Value::Array(_)),
            Self::Map => matches!(value, Value::Struct(_)),
        }
    }
}

/// One field of one class.
#[derive(Debug)]
pub(super) struct Field {
    name: &'static str,
    pub(super) kind: Kind,
    since: Api,
    until: Option<Api>,
    /// A setter exists (and `add_to_`, `remove_from_` for maps).
    pub(super) writable: bool,
}

impl Field {
    const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind, since: RIO, until: None, writable: false }
    }

    const fn since(self, api: Api) -> Self {
        Self { since: api, ..self }
    }

    const fn until(self, api: Api) -> Self {
        Self { until: Some(api), ..self }
    }

    const fn rw(self) -> Self {
        Self { writable: true, ..self }
    }

    fn exists(&self, api: Api) -> bool {
        self.since <= api && self.until.is_none_or(|until| api < until)
    }
}

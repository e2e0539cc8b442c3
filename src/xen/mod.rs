//! The XenAPI: values, methods, errors and typed records (pure), and the client (`client.rs`, the shell).
//!
//! Everything above talks to a pool through [`Transport`]: `client::Client` speaks XML-RPC over HTTP(S), and the
//! simulator's pool model answers the same calls directly in World.

pub mod api;
pub mod bootloader;
pub mod certificate;
pub mod client;
pub mod codec;
mod endpoint;
pub mod error;
pub mod identity;
pub mod records;
pub mod release;
pub mod rights;
mod tls;
pub mod version;

use std::{collections::BTreeMap, fmt, time::Duration};

use futures_util::future::BoxFuture;

pub use error::{CallError, Class, Failure};

/// A XenAPI value as it stands on the wire (`xenapi` wire protocol): ints travel as decimal strings, references,
/// enums and uuids as strings, maps and records as structs, sets as arrays, void as the empty string.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `<string>` or bare text.
    String(String),
    /// `<boolean>`.
    Bool(bool),
    /// `<double>`.
    Double(f64),
    /// `<int>`/`<i4>`: not sent by xapi, accepted.
    Int(i64),
    /// `<dateTime.iso8601>`, such as `20260101T12:00:00Z`, as text.
    DateTime(String),
    /// `<array>`.
    Array(Vec<Self>),
    /// `<struct>`.
    Struct(BTreeMap<String, Self>),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// Void.
    pub fn void() -> Self {
        Self::String(String::new())
    }

    /// A `(string → string) map`.
    pub fn map(map: &BTreeMap<String, String>) -> Self {
        Self::Struct(map.iter().map(|(key, value)| (key.clone(), Self::string(value))).collect())
    }

    /// The text of a string or date.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) | Self::DateTime(text) => Some(text),
            Self::Bool(_) | Self::Double(_) | Self::Int(_) | Self::Array(_) | Self::Struct(_) => None,
        }
    }

    /// A struct's member.
    pub fn get(&self, member: &str) -> Option<&Self> {
        match self {
            Self::Struct(members) => members.get(member),
            Self::String(_)
            | Self::Bool(_)
            | Self::Double(_)
            | Self::Int(_)
            | Self::DateTime(_)
            | Self::Array(_) => None,
        }
    }
}

/// The only XenAPI messages that bootflip ever sends (threat T33).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // each is the XenAPI message of the same name
pub enum Method {
    SessionLogin,
    SessionLogout,
    SessionGetRecord,
    PoolGetAllRecords,
    PoolSyncDatabase,
    HostGetAllRecords,
    HostMetricsGetAllRecords,
    HostComputeFreeMemory,
    VmGetAllRecords,
    VmGetByUuid,
    VmGetByNameLabel,
    VmGetRecord,
    VmGetPossibleHosts,
    VmMetricsGetRecord,
    VmGuestMetricsGetRecord,
    VbdGetRecord,
    VdiGetRecord,
    VifGetRecord,
    VifGetAllRecords,
    VmAddToOtherConfig,
    VmRemoveFromOtherConfig,
    VmSetDomainType,
    VmSetHvmBootPolicy,
    VmSetHvmBootParams,
    VmSetPvBootloader,
    VmSetActionsAfterShutdown,
    VmSetActionsAfterReboot,
    VmSetActionsAfterCrash,
    VmAddToPlatform,
    VmRemoveFromPlatform,
    VmCleanShutdown,
    VmHardShutdown,
    VmStart,
    VmUnpause,
    SrGetAllRecords,
    NetworkGetAllRecords,
    VmClone,
    VmCopy,
    VmProvision,
    VmDestroy,
    VmSetNameLabel,
    VmAddTags,
    VmSetMemoryLimits,
    VmSetVcpusMax,
    VmSetVcpusAtStartup,
    VifCreate,
    VifDestroy,
    VbdSetBootable,
    VdiDestroy,
    TaskGetRecord,
    TaskDestroy,
    EventFrom,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 52] = [
        Self::SessionLogin,
        Self::SessionLogout,
        Self::SessionGetRecord,
        Self::PoolGetAllRecords,
        Self::PoolSyncDatabase,
        Self::HostGetAllRecords,
        Self::HostMetricsGetAllRecords,
        Self::HostComputeFreeMemory,
        Self::VmGetAllRecords,
        Self::VmGetByUuid,
        Self::VmGetByNameLabel,
        Self::VmGetRecord,
        Self::VmGetPossibleHosts,
        Self::VmMetricsGetRecord,
        Self::VmGuestMetricsGetRecord,
        Self::VbdGetRecord,
        Self::VdiGetRecord,
        Self::VifGetRecord,
        Self::VifGetAllRecords,
        Self::VmAddToOtherConfig,
        Self::VmRemoveFromOtherConfig,
        Self::VmSetDomainType,
        Self::VmSetHvmBootPolicy,
        Self::VmSetHvmBootParams,
        Self::VmSetPvBootloader,
        Self::VmSetActionsAfterShutdown,
        Self::VmSetActionsAfterReboot,
        Self::VmSetActionsAfterCrash,
        Self::VmAddToPlatform,
        Self::VmRemoveFromPlatform,
        Self::VmCleanShutdown,
        Self::VmHardShutdown,
        Self::VmStart,
        Self::VmUnpause,
        Self::SrGetAllRecords,
        Self::NetworkGetAllRecords,
        Self::VmClone,
        Self::VmCopy,
        Self::VmProvision,
        Self::VmDestroy,
        Self::VmSetNameLabel,
        Self::VmAddTags,
        Self::VmSetMemoryLimits,
        Self::VmSetVcpusMax,
        Self::VmSetVcpusAtStartup,
        Self::VifCreate,
        Self::VifDestroy,
        Self::VbdSetBootable,
        Self::VdiDestroy,
        Self::TaskGetRecord,
        Self::TaskDestroy,
        Self::EventFrom,
    ];

    /// The name on the wire, without an `Async.` in front.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SessionLogin => "session.login_with_password",
            Self::SessionLogout => "session.logout",
            Self::SessionGetRecord => "session.get_record",
            Self::PoolGetAllRecords => "pool.get_all_records",
            Self::PoolSyncDatabase => "pool.sync_database",
            Self::HostGetAllRecords => "host.get_all_records",
            Self::HostMetricsGetAllRecords => "host_metrics.get_all_records",
            Self::HostComputeFreeMemory => "host.compute_free_memory",
            Self::VmGetAllRecords => "VM.get_all_records",
            Self::VmGetByUuid => "VM.get_by_uuid",
            Self::VmGetByNameLabel => "VM.get_by_name_label",
            Self::VmGetRecord => "VM.get_record",
            Self::VmGetPossibleHosts => "VM.get_possible_hosts",
            Self::VmMetricsGetRecord => "VM_metrics.get_record",
            Self::VmGuestMetricsGetRecord => "VM_guest_metrics.get_record",
            Self::VbdGetRecord => "VBD.get_record",
            Self::VdiGetRecord => "VDI.get_record",
            Self::VifGetRecord => "VIF.get_record",
            Self::VifGetAllRecords => "VIF.get_all_records",
            Self::VmAddToOtherConfig => "VM.add_to_other_config",
            Self::VmRemoveFromOtherConfig => "VM.remove_from_other_config",
            Self::VmSetDomainType => "VM.set_domain_type",
            Self::VmSetHvmBootPolicy => "VM.set_HVM_boot_policy",
            Self::VmSetHvmBootParams => "VM.set_HVM_boot_params",
            Self::VmSetPvBootloader => "VM.set_PV_bootloader",
            Self::VmSetActionsAfterShutdown => "VM.set_actions_after_shutdown",
            Self::VmSetActionsAfterReboot => "VM.set_actions_after_reboot",
            Self::VmSetActionsAfterCrash => "VM.set_actions_after_crash",
            Self::VmAddToPlatform => "VM.add_to_platform",
            Self::VmRemoveFromPlatform => "VM.remove_from_platform",
            Self::VmCleanShutdown => "VM.clean_shutdown",
            Self::VmHardShutdown => "VM.hard_shutdown",
            Self::VmStart => "VM.start",
            Self::VmUnpause => "VM.unpause",
            Self::SrGetAllRecords => "SR.get_all_records",
            Self::NetworkGetAllRecords => "network.get_all_records",
            Self::VmClone => "VM.clone",
            Self::VmCopy => "VM.copy",
            Self::VmProvision => "VM.provision",
            Self::VmDestroy => "VM.destroy",
            Self::VmSetNameLabel => "VM.set_name_label",
            Self::VmAddTags => "VM.add_tags",
            Self::VmSetMemoryLimits => "VM.set_memory_limits",
            Self::VmSetVcpusMax => "VM.set_VCPUs_max",
            Self::VmSetVcpusAtStartup => "VM.set_VCPUs_at_startup",
            Self::VifCreate => "VIF.create",
            Self::VifDestroy => "VIF.destroy",
            Self::VbdSetBootable => "VBD.set_bootable",
            Self::VdiDestroy => "VDI.destroy",
            Self::TaskGetRecord => "task.get_record",
            Self::TaskDestroy => "task.destroy",
            Self::EventFrom => "event.from",
        }
    }

    /// Slow calls are sent as `Async.<name>`: they answer with a task's reference at once.
    pub const fn is_async(self) -> bool {
        matches!(
            self,
            Self::VmStart
                | Self::VmCleanShutdown
                | Self::VmHardShutdown
                | Self::VmClone
                | Self::VmCopy
                | Self::VmProvision
        )
    }

    /// Calls that change something on the pool.
    pub const fn changes_the_pool(self) -> bool {
        matches!(
            self,
            Self::PoolSyncDatabase
                | Self::VmAddToOtherConfig
                | Self::VmRemoveFromOtherConfig
                | Self::VmSetDomainType
                | Self::VmSetHvmBootPolicy
                | Self::VmSetHvmBootParams
                | Self::VmSetPvBootloader
                | Self::VmSetActionsAfterShutdown
                | Self::VmSetActionsAfterReboot
                | Self::VmSetActionsAfterCrash
                | Self::VmAddToPlatform
                | Self::VmRemoveFromPlatform
                | Self::VmCleanShutdown
                | Self::VmHardShutdown
                | Self::VmStart
                | Self::VmUnpause
        ) || self.makes_vms()
    }

    /// Calls that change something, and that only the making of VMs from templates needs; no job sends them.
    pub const fn makes_vms(self) -> bool {
        matches!(
            self,
            Self::VmClone
                | Self::VmCopy
                | Self::VmProvision
                | Self::VmDestroy
                | Self::VmSetNameLabel
                | Self::VmAddTags
                | Self::VmSetMemoryLimits
                | Self::VmSetVcpusMax
                | Self::VmSetVcpusAtStartup
                | Self::VifCreate
                | Self::VifDestroy
                | Self::VbdSetBootable
                | Self::VdiDestroy
        )
    }

    /// How long one call may take in all before its outcome is unknown (fault F13).
    pub const fn deadline(self) -> Duration {
        if matches!(self, Self::EventFrom) {
            Duration::from_secs(75)
        } else if matches!(
            self,
            Self::PoolSyncDatabase
                | Self::VmUnpause
                | Self::VmGetAllRecords
                | Self::VifGetAllRecords
                | Self::VmDestroy
                | Self::VdiDestroy
        ) {
            Duration::from_secs(60)
        } else {
            Duration::from_secs(15)
        }
    }
}

/// One pool, as something that answers XenAPI calls. The transport adds the session reference itself: `params`
/// never hold it, also where it is the object asked for ([`Method::SessionGetRecord`]). For a method that [`Method::is_async`], the answer is the task's reference.
pub trait Transport: Send + Sync + fmt::Debug {
    /// One call. Never retried by the transport when it may have had an effect: an unknown outcome is
    /// [`CallError::Unknown`], and the caller looks. SESSION_INVALID is answered by one new login and one
    /// repeat (the pool refused before it did anything); HOST_IS_SLAVE by following to a known member. A job's calls
    /// are not repeated so: it looks anew, at what a coordinator that came back may have an older record of.
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>>;
}

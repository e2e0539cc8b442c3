//! Which role each message needs, since when it exists, and what of it an account may do. Pure.
//!
//! The facts are the data model's; `tests/it/xen/releases.rs` holds them against it. An account's own rights are read
//! from its session (`session.get_record`), which any account may, so that asking changes nothing on the pool.

use std::{collections::BTreeSet, fmt};

use super::{
    Method,
    records::SessionRecord,
    release::{Ability, ApiVersion, Release},
};

/// A role of XenAPI's access control, the weakest first; each may what those before it may. Root is pool-admin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Reads.
    ReadOnly,
    /// Power operations.
    VmOperator,
    /// A VM's settings.
    VmAdmin,
    /// Placement, memory, snapshots.
    VmPowerAdmin,
    /// The pool.
    PoolOperator,
    /// Everything.
    PoolAdmin,
}

impl Role {
    /// Every role, the weakest first.
    pub const ALL: [Self; 6] = [
        Self::ReadOnly,
        Self::VmOperator,
        Self::VmAdmin,
        Self::VmPowerAdmin,
        Self::PoolOperator,
        Self::PoolAdmin,
    ];

    /// As XenAPI spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::VmOperator => "vm-operator",
            Self::VmAdmin => "vm-admin",
            Self::VmPowerAdmin => "vm-power-admin",
            Self::PoolOperator => "pool-operator",
            Self::PoolAdmin => "pool-admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Method {
    /// The weakest role that may send it.
    pub const fn role(self) -> Role {
        match self {
            Self::PoolSyncDatabase => Role::PoolOperator,
            Self::VmAddToOtherConfig
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
            | Self::VmClone
            | Self::VmCopy
            | Self::VmProvision
            | Self::VmDestroy
            | Self::VmSetNameLabel
            | Self::VmSetVcpusMax
            | Self::VmSetVcpusAtStartup
            | Self::VifCreate
            | Self::VifDestroy
            | Self::VbdSetBootable
            | Self::VdiDestroy => Role::VmAdmin,
            Self::VmSetMemoryLimits => Role::VmPowerAdmin,
            Self::VmCleanShutdown
            | Self::VmHardShutdown
            | Self::VmStart
            | Self::VmUnpause
            | Self::VmAddTags => Role::VmOperator,
            Self::SessionLogin
            | Self::SessionLogout
            | Self::SessionGetRecord
            | Self::PoolGetAllRecords
            | Self::HostGetAllRecords
            | Self::HostMetricsGetAllRecords
            | Self::HostComputeFreeMemory
            | Self::VmGetAllRecords
            | Self::VmGetByUuid
            | Self::VmGetByNameLabel
            | Self::VmGetRecord
            | Self::VmGetPossibleHosts
            | Self::VmMetricsGetRecord
            | Self::VmGuestMetricsGetRecord
            | Self::VbdGetRecord
            | Self::VdiGetRecord
            | Self::VifGetRecord
            | Self::VifGetAllRecords
            | Self::SrGetAllRecords
            | Self::NetworkGetAllRecords
            | Self::TaskGetRecord
            | Self::TaskDestroy
            | Self::EventFrom => Role::ReadOnly,
        }
    }

    /// The API version that brought it; `None`: every release that bootflip works with has it.
    pub const fn since(self) -> Option<ApiVersion> {
        if matches!(self, Self::VmSetDomainType) {
            Some(Ability::DomainType.since())
        } else if matches!(self, Self::EventFrom) {
            Some(Ability::EventFrom.since())
        } else {
            None
        }
    }
}

/// What an account may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rights {
    all: bool,
    permissions: BTreeSet<String>,
}

impl Rights {
    /// Those of a session.
    pub fn of(session: SessionRecord) -> Self {
        let permissions = session.rbac_permissions.into_iter().map(|name| name.to_ascii_lowercase());
        Self { all: session.is_local_superuser, permissions: permissions.collect() }
    }

    /// Whether it may send this message.
    pub fn may(&self, method: Method) -> bool {
        let login = matches!(method, Method::SessionLogin | Method::SessionLogout);
        self.all || login || self.permissions.contains(&method.name().to_ascii_lowercase())
    }

    /// What a job needs on such a release and this account may not, but [`Method::PoolSyncDatabase`], without which
    /// jobs go on.
    pub fn missing(&self, release: &Release) -> Vec<Method> {
        let needed = |&method: &Method| {
            let there = method.since().is_none_or(|since| release.api >= since);
            // The policy is the way to the boot mode only where there is no domain_type.
            let spare = matches!(method, Method::PoolSyncDatabase)
                || matches!(method, Method::VmSetHvmBootPolicy) && release.has(Ability::DomainType);
            there && !spare && !method.makes_vms()
        };
        Method::ALL.into_iter().filter(needed).filter(|&method| !self.may(method)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rights(role: Role) -> Rights {
        let may = |method: &Method| method.role() <= role;
        Rights::of(SessionRecord {
            is_local_superuser: false,
            // As xapi keeps them.
            rbac_permissions: Method::ALL
                .into_iter()
                .filter(may)
                .map(|method| method.name().to_ascii_lowercase())
                .collect(),
        })
    }

    fn release(api: ApiVersion) -> Release {
        Release { api, product_version: None, brand: None }
    }

    #[test]
    fn each_role_lacks_what_is_above_it() {
        let lacks = |role, api| {
            let missing = rights(role).missing(&release(api));
            missing.into_iter().map(Method::name).collect::<Vec<_>>()
        };
        assert_eq!(lacks(Role::PoolOperator, (2, 15)), [""; 0]);
        assert_eq!(lacks(Role::VmAdmin, (2, 15)), [""; 0]);
        let operator = lacks(Role::VmOperator, (2, 15));
        assert_eq!(operator.len(), 10, "{operator:?}");
        assert!(operator.contains(&"VM.set_domain_type") && !operator.contains(&"VM.set_HVM_boot_policy"));
        let old = lacks(Role::VmOperator, (1, 7));
        assert!(!old.contains(&"VM.set_domain_type") && old.contains(&"VM.set_HVM_boot_policy"));
        assert_eq!(lacks(Role::ReadOnly, (1, 7)).len(), 14);
        assert!(!rights(Role::VmAdmin).may(Method::PoolSyncDatabase));
        assert!(rights(Role::PoolOperator).may(Method::PoolSyncDatabase));
    }

    #[test]
    fn root_may_everything_though_no_permission_is_listed() {
        let root = Rights::of(SessionRecord { is_local_superuser: true, rbac_permissions: vec![] });
        assert!(Method::ALL.into_iter().all(|method| root.may(method)));
        let nobody = Rights::of(SessionRecord { is_local_superuser: false, rbac_permissions: vec![] });
        assert!(nobody.may(Method::SessionLogout) && !nobody.may(Method::VmGetRecord));
    }
}

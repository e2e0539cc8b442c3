//! Jobs and VMs for the unit tests of this layer.

use std::{collections::BTreeMap, time::Duration};

use super::{
    job::{Job, NewJob, Options},
    plan::Observed,
};
use crate::{
    clock::Timestamp,
    config::{Completion, Deadlines, EvidenceKind, Profile, ProfileKind},
    xen::records::{PowerState, VmMetrics, VmRecord},
};

/// A moment, in seconds.
pub(super) fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

/// A queued job, made at this second.
pub(super) fn job(id: &str, created: u64) -> Job {
    let profile = Profile {
        name: "mini".into(),
        kind: ProfileKind::Install,
        boot: None,
        completion: Completion::Report,
        min_install: Duration::from_secs(300),
        evidence: EvidenceKind::Report,
        accept_weak: false,
        report_by_get: false,
        disk: None,
        variables: BTreeMap::new(),
    };
    let new = NewJob {
        id: id.into(),
        pool: "main".into(),
        vm_uuid: "u1".into(),
        vm_name: "web".into(),
        profile,
        variables: BTreeMap::new(),
        deadlines: Deadlines::default(),
        options: Options::default(),
        asked_by: "uid 0 (root)".into(),
    };
    Job::new(new, at(created))
}

/// A PV VM that has or had domain 7.
pub(super) fn observed(power_state: PowerState, start_time: &str) -> Observed {
    let vm = VmRecord {
        reference: "OpaqueRef:vm".into(),
        uuid: "u1".into(),
        name_label: "web".into(),
        power_state,
        is_a_template: false,
        is_control_domain: false,
        is_a_snapshot: false,
        domain_type: Some("pv".into()),
        hvm_boot_policy: String::new(),
        hvm_boot_params: BTreeMap::new(),
        pv_args: String::new(),
        pv_bootloader: "pygrub".into(),
        pv_bootloader_args: String::new(),
        pv_kernel: String::new(),
        pv_ramdisk: String::new(),
        pv_legacy_args: String::new(),
        actions_after_shutdown: "destroy".into(),
        actions_after_reboot: "restart".into(),
        actions_after_crash: "restart".into(),
        other_config: BTreeMap::new(),
        platform: BTreeMap::new(),
        blocked_operations: BTreeMap::new(),
        current_operations: BTreeMap::new(),
        allowed_operations: vec![],
        ha_always_run: false,
        ha_restart_priority: String::new(),
        tags: vec![],
        vbds: vec![],
        vifs: vec![],
        metrics: "OpaqueRef:metrics".into(),
        guest_metrics: "OpaqueRef:NULL".into(),
        domid: 7,
        resident_on: "OpaqueRef:host".into(),
        memory_static_max: 1 << 30,
        memory_static_min: 1 << 28,
        memory_dynamic_min: 1 << 30,
        memory_dynamic_max: 1 << 30,
        vcpus_max: 1,
        vcpus_at_startup: 1,
        hvm_shadow_multiplier: 1.0,
    };
    Observed {
        vm,
        metrics: VmMetrics { start_time: start_time.to_owned(), hvm: Some(false), current_domain_type: None },
        domid_since: at(0),
        task: None,
        guest_addresses: vec![],
        answers: false,
    }
}

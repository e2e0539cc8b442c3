//! Starts, stops, reboots and guests.

use super::*;

#[test]
fn a_start_is_refused_for_what_stands_against_it() {
    let spec = VmSpec { bootable: Some(Ok(())), ..VmSpec::default() };
    let blocked = [("start".to_owned(), "frozen".to_owned())].into();
    let cd = DiskSpec { kind: DiskKind::Cd, userdevice: "0".to_owned(), ..DiskSpec::default() };
    let disk = |userdevice: &str| DiskSpec { userdevice: userdevice.to_owned(), ..DiskSpec::default() };
    let no_system = "failure BOOTLOADER_FAILED VM Unable to find partition containing kernel";
    let rows = [
        (VmSpec { running: true, ..spec.clone() }, "failure VM_BAD_POWER_STATE VM halted running"),
        (VmSpec { template: true, ..spec.clone() }, "failure VM_IS_TEMPLATE VM start"),
        (VmSpec { snapshot: true, ..spec.clone() }, "failure VM_IS_SNAPSHOT VM start"),
        (VmSpec { blocked_operations: blocked, ..spec.clone() }, "failure OPERATION_BLOCKED VM frozen"),
        (VmSpec { memory: 8 << 40, ..spec.clone() }, "failure NO_HOSTS_AVAILABLE"),
        (VmSpec { bootable: None, ..spec.clone() }, no_system),
        (
            VmSpec { bootable: Some(Err("no grub".to_owned())), ..spec.clone() },
            "failure BOOTLOADER_FAILED VM no grub",
        ),
        (VmSpec { disks: vec![], ..spec.clone() }, "failure INTERNAL_ERROR there is no bootable device"),
        (VmSpec { disks: vec![cd.clone(), disk("1")], ..spec.clone() }, no_system),
        (VmSpec { disks: vec![DiskSpec { size: 0, ..cd.clone() }, disk("1")], ..spec.clone() }, "success"),
        (
            VmSpec { disks: vec![disk("0"), DiskSpec { userdevice: "3".to_owned(), ..cd }], ..spec.clone() },
            "success",
        ),
        (
            VmSpec { pv_bootloader: "grub".to_owned(), ..spec.clone() },
            r#"failure INTERNAL_ERROR Bootloader.Unknown_bootloader("grub")"#,
        ),
        (
            VmSpec { pv_bootloader: "eliloader".to_owned(), ..spec.clone() },
            "failure BOOTLOADER_FAILED VM install-repository is not set",
        ),
        (
            VmSpec { pv_bootloader: String::new(), ..spec.clone() },
            "failure INTERNAL_ERROR the VM has no kernel",
        ),
        (VmSpec { bootable: None, policy: "BIOS order".to_owned(), ..spec }, "success"), // HVM asks no bootloader
    ];
    for release in BOTH {
        for (spec, expected) in &rows {
            let running = spec.running;
            let mut rig = Rig::new(release, spec.clone());
            assert_eq!(rig.run("VM.start VM false false"), *expected, "{} {spec:?}", release.name);
            let truth = rig.truth();
            assert_eq!(truth.power_state == "Running", *expected == "success" || running);
            assert_eq!(rig.call("VM.get_current_operations VM"), "ok Struct({})");
        }
    }
}

#[test]
fn hosts_may_refuse_a_domain() {
    let mut rig = Rig::pv(Release::V8_2);
    for address in ["127.0.0.1", "127.0.0.2"] {
        rig.pool.change_host(START, address, |host| host.hvm = false);
    }
    rig.call("VM.set_domain_type VM hvm");
    assert_eq!(rig.run("VM.start VM false false"), "failure VM_HVM_REQUIRED VM");
    rig.pool.change_host(START, "127.0.0.1", |host| host.enabled = false);
    rig.pool.change_host(START, "127.0.0.2", |host| host.memory = 1 << 30);
    rig.call("VM.set_domain_type VM pv");
    assert_eq!(rig.run("VM.start VM false false"), "failure NO_HOSTS_AVAILABLE");
}

#[test]
fn a_start_shows_in_the_records() {
    let mut rig = Rig::pv(Release::V8_2);
    assert_eq!(rig.truth().start_time, "19700101T00:00:00Z");
    rig.call("VM.set_domain_type VM hvm");
    rig.call("VM.set_HVM_boot_params VM {order=n}");
    assert!(rig.call("Async.VM.start VM false false").starts_with("ok OpaqueRef:"));
    assert!(rig.call("VM.get_current_operations VM").contains(r#"String("start")"#));
    assert_eq!(rig.call("VM.hard_shutdown VM"), "VM_BAD_POWER_STATE [VM, running, halted]");
    assert_eq!(rig.run("VM.start VM false false"), "failure OTHER_OPERATION_IN_PROGRESS VM VM");
    rig.wait(Duration::from_secs(2));
    let truth = rig.truth();
    let domain = truth.domain.clone().unwrap();
    assert_eq!((truth.power_state.as_str(), truth.hvm_starts, truth.pv_starts), ("Running", 1, 0));
    assert_eq!(domain.mode, BootMode::Hvm { order: "n".to_owned() });
    assert_eq!(truth.platform["device-model"], "qemu-upstream-compat");
    assert!(truth.platform.contains_key("timeoffset"));
    assert_eq!(rig.call("VM.get_domid VM"), format!("ok {}", domain.domid));
    let started = calls::date(domain.started);
    rig.wait(Duration::from_millis(1500));
    assert_eq!(rig.truth().start_time, started, "written within the lag");
    rig.call("VM.hard_shutdown VM");
    assert_eq!(rig.truth().start_time, started, "kept after a halt");
    assert_eq!(rig.call("VM.get_domid VM"), "ok -1");
    assert_eq!(rig.call("VM.get_resident_on VM"), "ok OpaqueRef:NULL");
}

#[test]
fn the_metrics_tell_what_runs() {
    for (kind, current, hvm) in [("hvm", "hvm", true), ("pv", "pv", false), ("pv~in~pvh", "pv_in_pvh", false)]
    {
        let mut rig = Rig::pv(Release::V8_2);
        rig.call(&format!("VM.set_domain_type VM {kind}"));
        assert_eq!(rig.run("VM.start VM false false"), "success");
        let metrics = rig.pool.db.text(Class::Vm, &rig.vm, "metrics").to_owned();
        assert_eq!(rig.pool.db.text(Class::VmMetrics, &metrics, "current_domain_type"), current);
        assert_eq!(rig.pool.db.flag(Class::VmMetrics, &metrics, "hvm"), hvm);
        rig.call("VM.hard_shutdown VM");
        assert_eq!(rig.pool.db.text(Class::VmMetrics, &metrics, "current_domain_type"), "unspecified");
    }
}

#[test]
fn an_unspecified_domain_type_is_resolved_at_the_start() {
    let spec =
        VmSpec { domain_type: Some("unspecified".to_owned()), bootable: Some(Ok(())), ..VmSpec::default() };
    check(
        Rig::new(Release::V8_2, spec),
        &[
            ("VM.get_domain_type VM", "ok unspecified"),
            ("task VM.start VM false false", "success"),
            ("VM.get_domain_type VM", "ok pv"),
        ],
    );
}

#[test]
fn a_paused_start_runs_when_it_is_unpaused() {
    let mut rig = Rig::pv(Release::V8_2);
    assert_eq!(rig.run("VM.start VM true false"), "success");
    assert_eq!((rig.truth().power_state.as_str(), rig.truth().pv_starts), ("Paused", 1));
    assert!(rig.pool.take_starts().is_empty());
    let domid = rig.truth().domain.unwrap().domid;
    assert!(
        !rig.pool.guest(rig.now, &rig.uuid.clone(), domid, GuestAct::PowerOff),
        "a paused guest does nothing"
    );
    assert_eq!(rig.call("VM.unpause VM"), "ok");
    let starts = rig.pool.take_starts();
    assert_eq!(starts.len(), 1);
    assert!(starts[0].was_paused && starts[0].mode == BootMode::Pv && starts[0].domid == domid);
    assert_eq!(rig.call("VM.pause VM"), "ok");
    assert_eq!(rig.call("VM.unpause VM"), "ok");
    assert!(rig.pool.take_starts().is_empty(), "the same domain is not told twice");
    assert_eq!(rig.call("VM.unpause VM"), "VM_BAD_POWER_STATE [VM, paused, running]");
}

#[test]
fn a_guests_own_end_obeys_the_record() {
    let late = Duration::from_secs(121);
    let rows = [
        ("shutdown", "destroy", GuestAct::PowerOff, late, "Halted"),
        ("shutdown", "restart", GuestAct::PowerOff, late, "Running"),
        ("reboot", "restart", GuestAct::Reboot, late, "Running"),
        ("reboot", "destroy", GuestAct::Reboot, late, "Halted"),
        ("crash", "restart", GuestAct::Crash, late, "Running"),
        ("crash", "destroy", GuestAct::Crash, late, "Halted"),
        ("crash", "restart", GuestAct::Crash, Duration::from_secs(30), "Halted"), // too early to start again
    ];
    for release in BOTH {
        for (event, action, act, after, expected) in rows.clone() {
            let mut rig = Rig::pv(release);
            rig.run("VM.start VM false false");
            rig.call(&format!("VM.set_actions_after_{event} VM {action}"));
            rig.wait(after);
            let before = rig.truth();
            rig.guest(act);
            rig.wait(Duration::from_secs(3));
            let truth = rig.truth();
            assert_eq!(truth.power_state, expected, "{} {event} {action}", release.name);
            assert_eq!(truth.pv_starts, if expected == "Running" { 2 } else { 1 });
            rig.wait(Duration::from_secs(2));
            assert_eq!(
                rig.truth().start_time > before.start_time,
                expected == "Running",
                "a reboot moves the start time"
            );
        }
    }
}

#[test]
fn a_reboot_takes_the_boot_mode_of_the_record() {
    let mut rig = Rig::pv(Release::V8_2);
    rig.run("VM.start VM false false");
    rig.call("VM.set_domain_type VM hvm");
    rig.guest(GuestAct::Reboot);
    rig.wait(Duration::from_secs(10));
    assert_eq!(rig.truth().hvm_starts, 0, "an early reboot is delayed by 15 s");
    rig.wait(Duration::from_secs(10));
    assert_eq!(rig.truth().hvm_starts, 1);
    let told: Vec<u32> = rig.pool.take_starts().iter().map(|start| start.domid).collect();
    assert_eq!(told.len(), 2);
    assert!(
        !rig.pool.guest(rig.now, &rig.uuid.clone(), told[0], GuestAct::PowerOff),
        "the old domain is gone"
    );
    rig.call("VM.set_domain_type VM pv");
    rig.pool.set_bootable(&rig.uuid.clone(), Err("nothing".to_owned()));
    rig.wait(Duration::from_secs(200));
    rig.guest(GuestAct::Reboot);
    rig.wait(Duration::from_secs(5));
    assert_eq!(rig.truth().power_state, "Halted", "a rebuild that fails leaves the VM Halted");
}

#[test]
fn an_api_reboot_always_reboots() {
    for release in BOTH {
        let mut rig = Rig::pv(release);
        rig.run("VM.start VM false false");
        rig.call("VM.set_actions_after_reboot VM destroy");
        assert_eq!(rig.run("VM.hard_reboot VM"), "success");
        assert_eq!((rig.truth().power_state.as_str(), rig.truth().pv_starts), ("Running", 2));
    }
}

#[test]
fn a_clean_shutdown_needs_a_guest_that_listens() {
    for (release, code) in [(Release::V8_2, "VM_LACKS_FEATURE"), (Release::V6_2, "VM_MISSING_PV_DRIVERS")] {
        let mut rig = Rig::pv(release);
        rig.run("VM.start VM false false");
        assert_eq!(rig.run("VM.clean_shutdown VM"), "success");
        rig.call("VM.set_HVM_boot_policy VM BIOS_order");
        rig.run("VM.start VM false false");
        assert_eq!(rig.run("VM.clean_shutdown VM"), format!("failure {code} VM"));
        rig.guest(GuestAct::Agent { ipv4: "10.0.0.9".to_owned() });
        assert_eq!(rig.run("VM.clean_shutdown VM"), "success");
        assert_eq!(rig.truth().power_state, "Halted");
        assert_eq!(rig.call("VM.get_guest_metrics VM"), "ok OpaqueRef:NULL");
    }
    let deaf = VmSpec { running: true, deaf: true, ..VmSpec::default() };
    let mut rig = Rig::new(Release::V8_2, deaf);
    assert_eq!(rig.run("VM.clean_shutdown VM"), "failure VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT VM");
    assert_eq!(rig.run("VM.hard_shutdown VM"), "success");
}

#[test]
fn a_hard_shutdown_overtakes_a_clean_one() {
    let mut rig = Rig::new(Release::V8_2, VmSpec { running: true, deaf: true, ..VmSpec::default() });
    rig.call("Async.VM.clean_shutdown VM");
    assert_eq!(rig.run("VM.hard_shutdown VM"), "success");
    rig.wait(Duration::from_secs(61));
    assert_eq!(rig.call("VM.get_current_operations VM"), "ok Struct({})");
}

#[test]
fn ha_starts_a_protected_vm_again() {
    for (enabled, expected) in [(true, "Running"), (false, "Halted")] {
        let spec =
            VmSpec { ha_restart_priority: "restart".to_owned(), bootable: Some(Ok(())), ..VmSpec::default() };
        let mut rig = Rig::new(Release::V8_2, spec);
        rig.pool.set_ha(START, enabled);
        rig.run("VM.start VM false false");
        rig.guest(GuestAct::PowerOff);
        rig.wait(Duration::from_secs(5));
        assert_eq!(rig.truth().power_state, expected);
        if enabled {
            rig.call("VM.hard_shutdown VM");
            assert_eq!(rig.call("VM.get_ha_always_run VM"), "ok Bool(false)", "the API ends the protection");
        }
    }
}

#[test]
fn a_migration_keeps_the_start_time_and_the_guest() {
    let mut rig = Rig::pv(Release::V8_2);
    rig.run("VM.start VM false false");
    rig.wait(Duration::from_secs(2));
    let (before, domid) = (rig.truth(), rig.call("VM.get_domid VM"));
    rig.pool.person(rig.now, &rig.uuid.clone(), &PersonAct::Migrate).unwrap();
    assert_eq!(rig.truth().start_time, before.start_time);
    assert_ne!(rig.call("VM.get_domid VM"), domid);
    rig.guest(GuestAct::PowerOff);
    rig.wait(Duration::from_secs(1));
    assert_eq!(rig.truth().power_state, "Halted");
}

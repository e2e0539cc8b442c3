//! What differs from release to release.

use super::*;

fn hvm(release: Release) -> Rig {
    Rig::new(release, VmSpec { policy: "BIOS order".to_owned(), bootable: Some(Ok(())), ..VmSpec::default() })
}

fn names(which: impl Fn(Release) -> bool) -> String {
    let fitting = Release::ALL.into_iter().filter(|release| which(*release));
    fitting.map(|release| release.name).collect::<Vec<_>>().join(" ")
}

#[test]
fn releases_are_found_by_name_and_by_api() {
    assert_eq!(names(|_| true), "5.6 6.0 6.2 6.5 7.2 7.6 8.0 8.2 8.3");
    for release in Release::ALL.into_iter().chain(Release::BETWEEN) {
        assert_eq!((Release::named(release.name), Release::of_api(release.api)), (Some(release), release));
    }
    assert_eq!(Release::named("9.9"), None);
    let rows = [((1, 3), "5.6"), ((1, 8), "5.6-fp1"), ((1, 10), "6.1"), ((2, 4), "6.5"), ((2, 30), "8.3")];
    for (api, name) in rows {
        assert_eq!(Release::of_api(api).name, name, "{api:?}");
    }
}

#[test]
fn fields_and_messages_come_with_their_release() {
    let has = |message: &str| names(|release| Pool::new(1, release).methods().iter().any(|m| m == message));
    let rows = [
        ("VM.set_domain_type", "7.6 8.0 8.2 8.3"),
        ("VM_metrics.get_current_domain_type", "7.6 8.0 8.2 8.3"),
        ("VM_metrics.get_hvm", "7.2 7.6 8.0 8.2 8.3"),
        ("event.from", "6.0 6.2 6.5 7.2 7.6 8.0 8.2 8.3"),
        ("event.inject", "6.2 6.5 7.2 7.6 8.0 8.2 8.3"),
        ("session.get_originator", "6.2 6.5 7.2 7.6 8.0 8.2 8.3"),
        ("VM.set_memory", "7.2 7.6 8.0 8.2 8.3"),
        ("VM.set_actions_after_softreboot", "8.3"),
        ("VM.set_HVM_boot_policy", "5.6 6.0 6.2 6.5 7.2 7.6 8.0 8.2 8.3"),
    ];
    for (message, expected) in rows {
        assert_eq!(has(message), expected, "{message}");
    }
}

#[test]
fn every_listed_message_is_answered() {
    for release in Release::ALL {
        for fact in Pool::new(1, release).message_facts() {
            let mut rig = Rig::pv(release);
            let class = fact.name.split('.').next().and_then(Class::named).unwrap_or(Class::Vm);
            let object = rig.pool.db.rows(class).map(|(reference, _)| reference.clone()).next();
            let first = Value::string(object.unwrap_or_else(|| "nothing".to_owned()));
            let rest = (1..fact.params.1).map(|_| Value::string("1"));
            let params: Vec<Value> = std::iter::once(first).chain(rest).take(fact.params.1).collect();
            let answer = rig.pool.perform(START, ADMIN, &fact.name, &params);
            let code = answer.err().map(|failure| failure.code).unwrap_or_default();
            let unknown =
                ["MESSAGE_METHOD_UNKNOWN", "MESSAGE_PARAMETER_COUNT_MISMATCH"].contains(&code.as_str());
            assert!(!unknown, "{} {} {code}", release.name, fact.name);
        }
    }
}

#[test]
fn only_the_exact_policy_boots_hvm_to_6_0() {
    let boots = |policy: &str| {
        names(|release| {
            let mut rig = hvm(release);
            rig.call(&format!("VM.set_HVM_boot_policy VM {policy}"));
            let ended = rig.run("VM.start VM false false");
            assert_eq!(rig.truth().power_state == "Running", ended == "success", "{ended}");
            ended == "success"
        })
    };
    assert_eq!(boots("BIOS_order"), names(|_| true));
    assert_eq!(boots("yes"), "6.2 6.5 7.2 7.6 8.0 8.2 8.3");
}

#[test]
fn to_6_0_the_emulator_has_the_written_flags_only() {
    let platform =
        [("acpi", "true"), ("apic", "false")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    for release in Release::ALL {
        let spec = VmSpec {
            policy: "BIOS order".to_owned(),
            platform: platform.clone().into(),
            ..VmSpec::default()
        };
        let mut rig = Rig::new(release, spec);
        assert_eq!(rig.run("VM.start VM false false"), "success");
        let lacks = rig.pool.take_starts()[0].lacks.clone();
        let expected: &[&str] = if release.runs_domains_itself() { &["apic", "pae"] } else { &[] };
        assert_eq!(lacks, expected, "{}", release.name);
    }
}

#[test]
fn an_hvm_start_writes_platform_keys() {
    let writes = |key: &str| {
        names(|release| {
            let mut rig = hvm(release);
            rig.run("VM.start VM false false");
            rig.truth().platform.contains_key(key)
        })
    };
    assert_eq!(writes("device-model"), "7.6 8.0 8.2 8.3");
    assert_eq!(writes("timeoffset"), names(|_| true));
}

#[test]
fn to_6_0_an_api_reboot_or_shutdown_does_what_the_record_says() {
    let rows = [
        ("actions_after_reboot", "destroy", "hard_reboot", "Halted"),
        ("actions_after_reboot", "destroy", "clean_reboot", "Halted"),
        ("actions_after_shutdown", "restart", "clean_shutdown", "Running"),
        ("actions_after_shutdown", "restart", "hard_shutdown", "Running"),
    ];
    for release in Release::ALL.into_iter().filter(|release| release.runs_pv()) {
        for (setting, action, message, old) in rows {
            let mut rig = Rig::pv(release);
            rig.run("VM.start VM false false");
            rig.call(&format!("VM.set_{} VM {action}", setting));
            assert_eq!(rig.run(&format!("VM.{message} VM")), "success");
            let plain = if message.ends_with("reboot") { "Running" } else { "Halted" };
            let expected = if release.runs_domains_itself() { old } else { plain };
            assert_eq!(rig.truth().power_state, expected, "{} {message}", release.name);
            let noted = rig.truth().other_config.contains_key("last_shutdown_time");
            assert_eq!(noted, release.runs_domains_itself(), "xapi writes into other_config to 6.0 only");
        }
    }
}

#[test]
fn a_flip_while_running_loses_the_disks_on_6_2() {
    for release in Release::ALL {
        let mut rig = hvm(release);
        rig.run("VM.start VM false false");
        rig.call("VM.set_HVM_boot_policy VM -");
        let ended = rig.run("VM.hard_reboot VM");
        let expected = match release.name {
            "6.2" => "failure INTERNAL_ERROR there is no bootable device",
            "8.3" => "failure INTERNAL_ERROR xenopsd internal error: Xenctrl.Error(\"22: Invalid argument\")",
            _ => "success",
        };
        assert_eq!(ended, expected, "{}", release.name);
    }
    let mut rig = Rig::pv(Release::V6_2);
    rig.run("VM.start VM false false");
    rig.call("VM.set_HVM_boot_policy VM BIOS_order");
    assert_eq!(rig.run("VM.hard_reboot VM"), "success");
    let told: Vec<bool> = rig.pool.take_starts().iter().map(|start| start.diskless).collect();
    assert_eq!(told, [false, true], "the HVM domain runs, without disks");
    rig.run("VM.hard_shutdown VM");
    rig.run("VM.start VM false false");
    assert!(!rig.pool.take_starts()[0].diskless, "a start finds them again");
}

#[test]
fn from_6_1_to_7_2_only_a_start_notes_the_boot_mode() {
    let refused = names(|release| {
        let mut rig = hvm(release);
        rig.run("VM.start VM false false");
        rig.call("VM.set_HVM_boot_policy VM -");
        rig.wait(Duration::from_secs(200));
        if release.names_disks_by_mode() || !release.runs_pv() {
            return false; // the reboot itself fails
        }
        rig.guest(GuestAct::Reboot);
        rig.wait(Duration::from_secs(10));
        assert_eq!(rig.truth().pv_starts, 1, "{}", release.name);
        let ended = rig.run("VM.clean_shutdown VM");
        assert!(ended == "success" || ended == format!("failure {} VM", release.no_tools), "{ended}");
        ended != "success"
    });
    assert_eq!(refused, "6.5 7.2");
}

#[test]
fn hosts_without_pv_start_no_pv_domain() {
    let no_pv = "failure INTERNAL_ERROR xenopsd internal error: Xenctrl.Error(\"22: Invalid argument\")";
    for (kind, expected) in [("pv", no_pv), ("pv~in~pvh", no_pv), ("pvh", "success"), ("hvm", "success")] {
        let mut rig = Rig::pv(Release::V8_3);
        rig.call(&format!("VM.set_domain_type VM {kind}"));
        assert_eq!(rig.run("VM.start VM false false"), expected, "{kind}");
    }
}

#[test]
fn patched_hosts_start_no_32_bit_pv_domain() {
    let builder = "failure DOMAIN_BUILDER_ERROR xc_dom_compat_check 22 guest type xen-3.0-x86_32p not supported \
                   by xen kernel, sorry";
    for (bits32, patched, expected) in
        [(true, true, builder), (false, true, "success"), (true, false, "success")]
    {
        let spec = VmSpec { bits32, bootable: Some(Ok(())), ..VmSpec::default() };
        let mut rig = Rig::new(Release::V8_2, spec);
        for address in ["127.0.0.1", "127.0.0.2"] {
            rig.pool.change_host(START, address, |host| host.pv32 = !patched);
        }
        assert_eq!(rig.run("VM.start VM false false"), expected, "{bits32} {patched}");
    }
}

#[test]
fn hvm_needs_more_memory_than_pv() {
    for release in Release::ALL.into_iter().filter(|release| release.runs_pv()) {
        let mut rig = Rig::pv(release);
        let pv = rig.call("VM.get_memory_overhead VM");
        rig.call("VM.set_HVM_boot_policy VM BIOS_order");
        let hvm = rig.call("VM.get_memory_overhead VM");
        let bytes = |line: &str| line.trim_start_matches("ok ").parse::<u64>().unwrap();
        assert!(bytes(&hvm) >= bytes(&pv) + (8 << 20), "{pv} {hvm}");
        assert_eq!(rig.call("VM.compute_memory_overhead VM"), hvm);
        let fits_pv = (1 << 30) + bytes(&pv);
        for address in ["127.0.0.1", "127.0.0.2"] {
            rig.pool.change_host(START, address, |host| host.memory = fits_pv);
        }
        assert_eq!(rig.run("VM.start VM false false"), "failure NO_HOSTS_AVAILABLE");
        rig.call("VM.set_HVM_boot_policy VM -");
        assert_eq!(rig.run("VM.start VM false false"), "success");
    }
}

#[test]
fn a_start_on_a_host_asks_that_host() {
    let mut rig = Rig::pv(Release::V8_2);
    let host = rig.pool.host_ref(1);
    assert_eq!(rig.run(&format!("VM.start_on VM {host} false false")), "success");
    assert_eq!(rig.call("VM.get_resident_on VM"), format!("ok {host}"));
    rig.run("VM.hard_shutdown VM");
    rig.pool.change_host(START, "127.0.0.2", |host| host.enabled = false);
    let refused = format!("HOST_DISABLED [{host}]");
    assert_eq!(rig.call(&format!("VM.assert_can_boot_here VM {host}")), refused);
    assert_eq!(
        rig.run(&format!("VM.start_on VM {host} false false")),
        format!("failure HOST_DISABLED {host}")
    );
}

#[test]
fn a_stale_record_shows_what_was() {
    let mut rig = Rig::pv(Release::V8_2);
    rig.run("VM.start VM false false");
    rig.wait(Duration::from_secs(200));
    rig.pool.let_go_stale(&rig.uuid.clone());
    rig.guest(GuestAct::PowerOff);
    rig.wait(Duration::from_secs(5));
    assert_eq!((rig.truth().power_state.as_str(), rig.truth().domain), ("Running", None));
    assert_eq!(rig.run("VM.start VM false false"), "failure VM_BAD_POWER_STATE VM halted running");
    rig.pool.catch_up(rig.now, &rig.uuid.clone());
    assert_eq!(rig.truth().power_state, "Halted");
    rig.pool.let_go_stale(&rig.uuid.clone());
    rig.run("VM.start VM false false");
    let domid = rig.truth().domain.expect("it lives").domid;
    assert_eq!(rig.truth().power_state, "Halted", "nobody told xapi");
    assert_eq!(rig.run("VM.start VM false false"), format!("failure DOMAIN_EXISTS VM {domid}"));
    rig.pool.restart_coordinator(rig.now, Duration::ZERO);
    assert_eq!(rig.truth().power_state, "Running", "a restart looks at the domains");
    assert_eq!(rig.call("VM.power_state_reset VM"), "ok");
    assert_eq!(rig.truth().power_state, "Halted");
    assert!(rig.truth().domain.is_some(), "the domain is still there");
}

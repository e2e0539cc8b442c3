use super::*;

fn failed(code: &str, params: &[&str]) -> CallError {
    CallError::Failed { method: "VM.start", failure: Failure::new(code, params) }
}

#[test]
fn each_code_has_the_class_that_the_reference_gives_it() {
    let rows = [
        (Class::Relogin, "SESSION_INVALID"),
        (Class::Redirect, "HOST_IS_SLAVE"),
        (
            Class::Retry,
            "OTHER_OPERATION_IN_PROGRESS TOO_BUSY TOO_MANY_PENDING_TASKS EVENTS_LOST SR_BACKEND_FAILURE_46",
        ),
        (
            Class::SlowRetry,
            "HOST_STILL_BOOTING HOST_IN_EMERGENCY_MODE HOST_OFFLINE CANNOT_CONTACT_HOST NO_HOSTS_AVAILABLE \
             HOST_NOT_ENOUGH_FREE_MEMORY HOST_DISABLED HOST_NOT_ENOUGH_PCPUS HOST_EVACUATE_IN_PROGRESS VM_REQUIRES_SR \
             VM_REQUIRES_NETWORK VM_HOST_INCOMPATIBLE_VERSION",
        ),
        (
            Class::Observe,
            "VM_BAD_POWER_STATE MAP_DUPLICATE_KEY HANDLE_INVALID VM_FAILED_SHUTDOWN_ACKNOWLEDGMENT VM_SHUTDOWN_TIMEOUT",
        ),
        (
            Class::Permanent,
            "SESSION_AUTHENTICATION_FAILED SESSION_AUTHORIZATION_FAILED RBAC_PERMISSION_DENIED PERMISSION_DENIED \
             OPERATION_NOT_ALLOWED OPERATION_BLOCKED VM_IS_TEMPLATE VM_IS_SNAPSHOT VM_IS_PROTECTED UUID_INVALID \
             VM_HVM_REQUIRED BOOTLOADER_FAILED UNKNOWN_BOOTLOADER DOMAIN_BUILDER_ERROR VM_MISSING_PV_DRIVERS \
             VM_LACKS_FEATURE VM_LACKS_FEATURE_SHUTDOWN MESSAGE_METHOD_UNKNOWN MESSAGE_PARAMETER_COUNT_MISMATCH \
             INVALID_VALUE FIELD_TYPE_ERROR TASK_CANCELLED LICENCE_RESTRICTION LICENSE_EXPIRED SR_BACKEND_FAILURE_44 \
             HA_OPERATION_WOULD_BREAK_FAILOVER_PLAN A_CODE_OF_TOMORROW",
        ),
    ];
    for (class, codes) in rows {
        for code in codes.split_whitespace() {
            for params in [&[][..], &["one"], &["one", "two", "three"]] {
                assert_eq!(failed(code, params).class(), class, "{code}");
            }
        }
    }
}

#[test]
fn bootloader_errors_are_known_under_all_their_names() {
    let rows: [(&str, &[&str], Option<&str>); 8] = [
        (
            "BOOTLOADER_FAILED",
            &["OpaqueRef:1", "Unable to find partition containing kernel"],
            Some("Unable to find partition containing kernel"),
        ),
        ("BOOTLOADER_FAILED", &[], Some("")),
        ("UNKNOWN_BOOTLOADER", &["OpaqueRef:1", "grub"], Some("unknown bootloader grub")),
        (
            "INTERNAL_ERROR",
            &["Bootloader.Bad_error(\"no kernel\")"],
            Some("Bootloader.Bad_error(\"no kernel\")"),
        ),
        ("INTERNAL_ERROR", &["Bootloader.Unknown_bootloader x"], Some("Bootloader.Unknown_bootloader x")),
        (
            "INTERNAL_ERROR",
            &["xenopsd: there is no bootable device"],
            Some("xenopsd: there is no bootable device"),
        ),
        ("INTERNAL_ERROR", &["Unix.Unix_error(ECONNREFUSED)"], None),
        ("VM_BAD_POWER_STATE", &["there is no bootable device"], None),
    ];
    for (code, params, wanted) in rows {
        let failure = Failure::new(code, params);
        assert_eq!(bootloader_message(&failure).as_deref(), wanted, "{failure}");
        if wanted.is_some() {
            assert_eq!(Class::of(&failure), Class::Permanent, "{failure}");
        }
    }
    assert_eq!(failed("INTERNAL_ERROR", &["Not_found"]).class(), Class::Retry);
}

#[test]
fn what_may_have_happened_is_looked_at() {
    let unknown = CallError::Unknown { method: "VM.start", detail: "reset".into() };
    let protocol = CallError::Protocol { method: "VM.start", detail: "not UTF-8 at byte 0".into() };
    assert_eq!([unknown.class(), protocol.class()], [Class::Observe; 2]);
    assert!(unknown.failure().is_none() && !unknown.is("VM_BAD_POWER_STATE"));
    let failed = failed("VM_BAD_POWER_STATE", &["r", "halted", "running"]);
    assert!(failed.is("VM_BAD_POWER_STATE"));
    assert_eq!(failed.to_string(), "VM.start: VM_BAD_POWER_STATE [r, halted, running]");
}

use super::*;

fn text(text: &str) -> Value {
    Value::string(text)
}

fn record(fields: &[(&str, Value)]) -> BTreeMap<String, Value> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// A VM as 8.2 sends it, with fields that bootflip does not read.
fn vm() -> BTreeMap<String, Value> {
    let map = |key: &str, value: &str| Value::map(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
    let set = |item: &str| Value::Array(vec![text(item)]);
    record(&[
        ("uuid", text("2a4f")),
        ("name_label", text(" web 1 ")),
        ("name_description", text("ignored")),
        ("power_state", text("Halted")),
        ("is_a_template", Value::Bool(false)),
        ("is_control_domain", Value::Bool(false)),
        ("is_a_snapshot", Value::Bool(false)),
        ("domain_type", text("pv")),
        ("HVM_boot_policy", text("")),
        ("HVM_boot_params", map("order", "cd")),
        ("PV_args", text("console=hvc0")),
        ("PV_bootloader", text("pygrub")),
        ("PV_bootloader_args", text("")),
        ("PV_kernel", text("")),
        ("PV_ramdisk", text("")),
        ("PV_legacy_args", text("")),
        ("actions_after_shutdown", text("destroy")),
        ("actions_after_reboot", text("restart")),
        ("actions_after_crash", text("restart")),
        ("other_config", map("k", "v")),
        ("platform", map("acpi", "1")),
        ("blocked_operations", map("start", "no")),
        ("current_operations", map("OpaqueRef:task", "start")),
        ("allowed_operations", set("start")),
        ("ha_always_run", Value::Bool(false)),
        ("ha_restart_priority", text("")),
        ("tags", set("t")),
        ("VBDs", set("OpaqueRef:vbd")),
        ("VIFs", set("OpaqueRef:vif")),
        ("metrics", text("OpaqueRef:metrics")),
        ("guest_metrics", text("OpaqueRef:NULL")),
        ("domid", text("-1")),
        ("resident_on", text("OpaqueRef:NULL")),
        ("memory_static_max", text("1073741824")),
        ("memory_static_min", text("268435456")),
        ("memory_dynamic_min", text("536870912")),
        ("memory_dynamic_max", text("1073741824")),
        ("VCPUs_max", text("2")),
        ("VCPUs_at_startup", text("1")),
        ("HVM_shadow_multiplier", Value::Double(1.0)),
        ("last_booted_record", text("ignored")),
    ])
}

fn decode_vm(fields: BTreeMap<String, Value>) -> Result<VmRecord, RecordError> {
    VmRecord::decode("OpaqueRef:vm", &Value::Struct(fields))
}

#[test]
fn a_vm_is_read_as_it_stands() {
    let read = decode_vm(vm()).unwrap();
    assert_eq!((read.reference.as_str(), read.name_label.as_str()), ("OpaqueRef:vm", " web 1 "));
    assert_eq!((read.power_state, read.domid, read.memory_static_max), (PowerState::Halted, -1, 1 << 30));
    assert_eq!(read.hvm_boot_params, BTreeMap::from([("order".to_owned(), "cd".to_owned())]));
    assert_eq!(read.current_operations.values().next().unwrap(), "start");
    assert_eq!((read.vbds, read.vifs), (vec!["OpaqueRef:vbd".to_owned()], vec!["OpaqueRef:vif".to_owned()]));
    assert!(is_null(&read.guest_metrics) && is_null(&read.resident_on) && !is_null(&read.metrics));
}

#[test]
fn only_later_fields_may_be_missing_and_none_may_be_of_another_type() {
    for field in vm().keys() {
        let mut without = vm();
        without.remove(field);
        let mut wrong = vm();
        wrong.insert(field.clone(), Value::Array(vec![Value::Bool(true)]));
        match field.as_str() {
            "name_description" | "last_booted_record" => {
                assert_eq!(decode_vm(without), decode_vm(vm()), "{field}");
                assert_eq!(decode_vm(wrong), decode_vm(vm()), "{field}");
                continue;
            }
            "domain_type" => assert_eq!(decode_vm(without).unwrap().domain_type, None),
            _ => assert!(
                matches!(decode_vm(without), Err(RecordError::Missing { class: "VM", field: named }) if named == field),
                "{field}"
            ),
        }
        assert!(
            matches!(decode_vm(wrong), Err(RecordError::Type { class: "VM", field: named, .. }) if named == field),
            "{field}"
        );
    }
    assert_eq!(VmRecord::decode("r", &text("x")), Err(RecordError::NotARecord { class: "VM" }));
    for (field, value) in [
        ("power_state", "Sleeping"),
        ("power_state", "halted"),
        ("memory_static_max", "-1"),
        ("memory_static_max", ""),
        ("domid", "one"),
    ] {
        let mut wrong = vm();
        wrong.insert(field.to_owned(), text(value));
        assert!(matches!(decode_vm(wrong), Err(RecordError::Type { .. })), "{field} {value}");
    }
}

#[test]
fn what_starts_paravirtualized_is_told_from_both_fields() {
    for (domain_type, policy, pv) in [
        (None, "", true),
        (None, "BIOS order", false),
        (Some("unspecified"), "", true),
        (Some("unspecified"), "BIOS order", false),
        (Some("pv"), "", true),
        (Some("pv_in_pvh"), "", true),
        (Some("pvh"), "", true),
        (Some("hvm"), "BIOS order", false),
        (Some("hvm"), "", false),
        (Some("of_tomorrow"), "", false),
    ] {
        let mut fields = vm();
        fields.remove("domain_type");
        if let Some(domain_type) = domain_type {
            fields.insert("domain_type".into(), text(domain_type));
        }
        fields.insert("HVM_boot_policy".into(), text(policy));
        assert_eq!(decode_vm(fields).unwrap().is_pv(), pv, "{domain_type:?} {policy:?}");
    }
}

#[test]
fn a_vm_that_never_ran_has_a_start_time_in_1970() {
    for (date, never) in
        [("19700101T00:00:00Z", true), ("1970-01-01T00:00:00Z", true), ("20260101T12:00:00Z", false)]
    {
        let old = record(&[("start_time", Value::DateTime(date.into()))]);
        let metrics = VmMetrics::decode("", &Value::Struct(old)).unwrap();
        assert_eq!(metrics, VmMetrics { start_time: date.into(), hvm: None, current_domain_type: None });
        assert_eq!(never_ran(&metrics), never, "{date}");
    }
    let new = record(&[
        ("start_time", Value::DateTime("20260101T12:00:00Z".into())),
        ("hvm", Value::Bool(false)),
        ("current_domain_type", text("pv")),
    ]);
    let metrics = VmMetrics::decode("", &Value::Struct(new)).unwrap();
    assert_eq!((metrics.hvm, metrics.current_domain_type.as_deref()), (Some(false), Some("pv")));
}

#[test]
fn a_host_tells_its_release() {
    let mut fields = record(&[
        ("uuid", text("h")),
        ("name_label", text("xs1")),
        ("enabled", Value::Bool(true)),
        ("address", text("10.0.0.2")),
        ("API_version_major", text("2")),
        ("API_version_minor", Value::Int(15)),
        (
            "software_version",
            Value::map(&BTreeMap::from([("product_version".to_owned(), "8.2.1".to_owned())])),
        ),
        ("capabilities", Value::Array(vec![text("hvm-3.0-x86_64")])),
        ("metrics", text("OpaqueRef:hm")),
    ]);
    let host = HostRecord::decode("OpaqueRef:h", &Value::Struct(fields.clone())).unwrap();
    assert_eq!(
        (host.api_version, host.product_version.as_deref(), host.product_brand.as_deref()),
        ((2, 15), Some("8.2.1"), None)
    );
    assert!(host.takes("hvm-") && !host.takes("xen-3.0-x86_32p"));
    fields.insert("API_version_minor".into(), text("-1"));
    assert!(HostRecord::decode("OpaqueRef:h", &Value::Struct(fields)).is_err());
}

#[test]
fn a_failed_task_says_why() {
    let task = |status: &str, words: &[&str]| {
        let words = words.iter().map(|&word| text(word)).collect();
        let fields = [
            ("status", text(status)),
            ("error_info", Value::Array(words)),
            ("result", text("")),
            ("progress", Value::Double(0.5)),
        ];
        TaskRecord::decode("OpaqueRef:t", &Value::Struct(record(&fields)))
    };
    let failed = task("failure", &["BOOTLOADER_FAILED", "OpaqueRef:vm", "no kernel"]).unwrap();
    assert_eq!(failed.failure(), Some(Failure::new("BOOTLOADER_FAILED", &["OpaqueRef:vm", "no kernel"])));
    assert_eq!(task("pending", &[]).unwrap().failure(), None);
    assert!(task("Success", &[]).is_err(), "statuses are in lower case");
}

#[test]
fn events_carry_a_record_unless_something_is_gone() {
    let event = |operation: &str, snapshot: Option<Value>| {
        let mut fields = record(&[
            ("id", text("1")),
            ("class", text("vm")),
            ("operation", text(operation)),
            ("ref", text("OpaqueRef:vm")),
        ]);
        fields.extend(snapshot.map(|snapshot| ("snapshot".to_owned(), snapshot)));
        Value::Struct(fields)
    };
    let events = Value::Array(vec![event("mod", Some(Value::Struct(vm()))), event("del", None)]);
    let batch = EventBatch::decode("", &Value::Struct(record(&[("token", text("7,8")), ("events", events)])))
        .unwrap();
    assert_eq!(batch.token, "7,8");
    assert_eq!(batch.events.iter().map(|event| event.operation.as_str()).collect::<Vec<_>>(), ["mod", "del"]);
    let snapshot = batch.events[0].snapshot.as_ref().unwrap();
    assert!(VmRecord::decode(&batch.events[0].reference, snapshot).is_ok());
    assert!(batch.events[1].snapshot.is_none());
}

#[test]
fn nulls_have_three_spellings() {
    assert!(["OpaqueRef:NULL", "Null", ""].into_iter().all(is_null) && !is_null("OpaqueRef:1"));
}

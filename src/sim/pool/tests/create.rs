//! VMs, disks, drives and NICs that are made.

use super::*;
use crate::sim::pool::create::read_plan;

const PLAN: &str = r#"<provision><disk device="0" size="8589934592" sr="" bootable="true" type="system"/><disk device='1' size='1024' sr='' bootable='false' type='user'/></provision>"#;

fn template(plan: Option<&str>) -> Rig {
    let mut other_config = VmSpec::default().other_config;
    other_config.insert("default_template".to_owned(), "true".to_owned());
    other_config.insert("mac_seed".to_owned(), "seed".to_owned());
    if let Some(plan) = plan {
        other_config.insert("disks".to_owned(), plan.to_owned());
    }
    let spec = VmSpec { template: true, disks: vec![], macs: vec![], other_config, ..VmSpec::default() };
    Rig::new(Release::V8_2, spec)
}

impl Rig {
    /// The VM that the scripts call `VM` is from now on the one that this call makes.
    fn turn_to(&mut self, line: &str) {
        let answer = self.call(line);
        let made = answer.trim_start_matches("ok ").to_owned();
        assert!(made.starts_with("OpaqueRef:"), "{line}: {answer}");
        self.uuid = self.pool.db.text(Class::Vm, &made, "uuid").to_owned();
        self.vm = made;
    }

    fn set(&mut self, class: Class, reference: &str, field: &str) -> Vec<String> {
        self.pool.db.set_of(class, reference, field)
    }

    fn create(&mut self, method: &str, pairs: &[(&str, &str)]) -> String {
        let empty = || Value::Struct(BTreeMap::new());
        let value = |name: &str, text: &str| match name {
            "other_config" | "qos_algorithm_params" => empty(),
            _ if text == "true" || text == "false" => Value::Bool(text == "true"),
            _ => Value::string(text.replace("VM", &self.vm)),
        };
        let usual = [("other_config", ""), ("qos_algorithm_type", ""), ("qos_algorithm_params", "")];
        let members = usual.iter().chain(pairs).map(|(name, text)| ((*name).to_owned(), value(name, text)));
        let record = Value::Struct(members.collect());
        let answer = self.pool.perform(self.now, ADMIN, method, &[record]);
        self.show(answer)
    }
}

#[test]
fn a_plan_is_read_as_xapi_reads_it() {
    let show = |text: &str| {
        let disks = read_plan(text)?;
        let lines = disks.iter().map(|disk| {
            format!("{} {} {:?} {} {}", disk.device, disk.size, disk.sr, disk.bootable, disk.kind)
        });
        Some(lines.collect::<Vec<_>>().join("; "))
    };
    assert_eq!(show(PLAN).as_deref(), Some("0 8589934592 \"\" true system; 1 1024 \"\" false user"));
    assert_eq!(show("<provision/>").as_deref(), Some(""));
    assert_eq!(show("<provision></provision>").as_deref(), Some(""));
    for bad in [
        "",
        "<disk/>",
        "<provision><disk device=\"0\"/></provision>",
        "<provision><disk size=1/></provision>",
    ] {
        assert_eq!(show(bad), None, "{bad}");
    }
}

#[test]
fn a_template_becomes_a_vm_once_its_disks_have_an_sr() {
    let mut rig = template(Some(PLAN));
    assert_eq!(rig.call("VM.destroy VM"), "VM_CANNOT_DELETE_DEFAULT_TEMPLATE [VM]");
    rig.turn_to("VM.clone VM web-01");
    assert_eq!(rig.run("VM.provision VM"), "failure UUID_INVALID sr", "the plan names no SR");
    assert_eq!(rig.call("VM.get_is_a_template VM"), "ok Bool(true)");
    let sr = rig.pool.db.text(Class::Sr, &rig.pool.sr_ref, "uuid").to_owned();
    let plan = PLAN.replace("sr=\"\"", &format!("sr=\"{sr}\"")).replace("sr=''", &format!("sr='{sr}'"));
    rig.call("VM.remove_from_other_config VM disks");
    let params = [Value::string(&rig.vm), Value::string("disks"), Value::string(&plan)];
    rig.pool.perform(rig.now, ADMIN, "VM.add_to_other_config", &params).unwrap();
    assert_eq!(rig.run("VM.provision VM"), "success");
    assert_eq!(rig.call("VM.get_is_a_template VM"), "ok Bool(false)");
    assert!(!rig.truth().other_config.contains_key("disks"));
    let vm = rig.vm.clone();
    let drives = rig.set(Class::Vm, &vm, "VBDs");
    let show = |vbd: &String| {
        let text = |field: &str| rig.pool.db.text(Class::Vbd, vbd, field).to_owned();
        let size = rig.pool.db.text(Class::Vdi, &text("VDI"), "virtual_size").to_owned();
        format!(
            "{} {} {} {size}",
            text("userdevice"),
            text("mode"),
            rig.pool.db.flag(Class::Vbd, vbd, "bootable")
        )
    };
    assert_eq!(drives.iter().map(show).collect::<Vec<_>>(), ["0 RW true 8589934592", "1 RW false 1024"]);
    assert_eq!(rig.run("VM.provision VM"), "failure PROVISION_ONLY_ALLOWED_ON_TEMPLATE");
    assert_eq!(rig.call("VM.get_allowed_VBD_devices VM").matches("String").count(), 14);
}

#[test]
fn a_stock_template_is_cloned_and_provisioned_without_its_mark() {
    let mut rig = Rig::new(Release::V7_2, VmSpec::stock_template("Debian Wheezy 7.0 (64-bit)", 8 << 30));
    assert_eq!(rig.call("VM.get_is_default_template VM"), "ok Bool(true)");
    assert!(rig.call("VM.get_allowed_operations VM").contains("provision"));
    assert_eq!(rig.run("VM.start VM false false"), "failure VM_IS_TEMPLATE VM start");
    rig.turn_to("VM.clone VM web-01");
    assert_eq!(rig.call("VM.get_is_default_template VM"), "ok Bool(false)");
    assert_eq!(rig.call("VM.get_name_label VM"), "ok web-01");
    rig.call("VM.remove_from_other_config VM disks");
    assert_eq!(rig.run("VM.provision VM"), "success", "without a plan it just becomes a VM");
    assert_eq!(rig.run("VM.destroy VM"), "success");
}

#[test]
fn a_plan_that_fails_half_way_leaves_the_first_disk_behind() {
    let mut rig = template(None);
    rig.turn_to("VM.clone VM web-01");
    let sr = rig.pool.add_sr("small", 8_589_934_592 + 512);
    let plan = PLAN.replace("sr=\"\"", &format!("sr=\"{sr}\"")).replace("sr=''", &format!("sr='{sr}'"));
    let params = [Value::string(&rig.vm), Value::string("disks"), Value::string(&plan)];
    rig.pool.perform(rig.now, ADMIN, "VM.add_to_other_config", &params).unwrap();
    assert_eq!(rig.run("VM.provision VM"), "failure SR_BACKEND_FAILURE_44  There is insufficient space");
    let vm = rig.vm.clone();
    let drives = rig.set(Class::Vm, &vm, "VBDs");
    assert_eq!((drives.len(), rig.call("VM.get_is_a_template VM").as_str()), (1, "ok Bool(true)"));
    let vdi = rig.pool.db.text(Class::Vbd, &drives[0], "VDI").to_owned();
    assert_eq!(rig.call(&format!("VDI.destroy {vdi}")), "ok");
    assert!(rig.set(Class::Vm, &vm, "VBDs").is_empty(), "a drive goes with its disk");
    assert_eq!(rig.call("VM.destroy VM"), "ok", "half-made VMs can be cleaned away");
    assert_eq!(
        rig.pool.db.text(Class::Sr, rig.pool.db.by_uuid(Class::Sr, &sr).unwrap(), "virtual_allocation"),
        "0"
    );
}

#[test]
fn clones_have_a_mac_seed_and_macs_of_their_own() {
    let mut rig = Rig::pv(Release::V8_2);
    let vm = rig.vm.clone();
    let mac_of = |rig: &mut Rig, vm: &str| {
        let vifs = rig.set(Class::Vm, vm, "VIFs");
        rig.pool.db.text(Class::Vif, &vifs[0], "MAC").to_owned()
    };
    let original = mac_of(&mut rig, &vm);
    let mut seen = vec![original];
    for line in ["VM.clone VM a", "VM.clone VM b", "VM.copy VM c OpaqueRef:NULL"] {
        let answer = rig.call(line);
        let made = answer.trim_start_matches("ok ").to_owned();
        let mac = mac_of(&mut rig, &made);
        let first = u8::from_str_radix(&mac[..2], 16).unwrap();
        assert_eq!(first & 3, 2, "locally administered, unicast: {mac}");
        assert!(!seen.contains(&mac));
        seen.push(mac);
    }
    assert_eq!(rig.call("VM.copy VM d nowhere"), "HANDLE_INVALID [SR, nowhere]");
    rig.run("VM.start VM false false");
    assert_eq!(rig.call("VM.clone VM e"), "VM_BAD_POWER_STATE [VM, halted, running]");
}

#[test]
fn an_async_clone_answers_the_reference_in_its_task() {
    let mut rig = Rig::pv(Release::V8_2);
    let answer = rig.call("Async.VM.clone VM copy");
    rig.wait(Duration::from_secs(1));
    let task = answer.trim_start_matches("ok ").to_owned();
    let result = rig.pool.db.text(Class::Task, &task, "result").to_owned();
    let made = result.strip_prefix("<value>").and_then(|rest| rest.strip_suffix("</value>")).unwrap();
    assert_eq!(rig.pool.db.text(Class::Vm, made, "name_label"), "copy");
}

#[test]
fn nics_are_checked_before_they_are_made() {
    let mut rig = Rig::pv(Release::V8_2);
    let network = rig.pool.network_ref.clone();
    let rows = [
        ("0", "02:16:3e:00:00:09", "DEVICE_ALREADY_EXISTS [0]"),
        ("7", "02:16:3e:00:00:09", "INVALID_DEVICE [7]"),
        ("1", "02:16:3e:00:00", "MAC_INVALID [02:16:3e:00:00]"),
        ("1", "02163e000009", "MAC_INVALID [02163e000009]"),
        ("1", "03:16:3e:00:00:09", "MAC_INVALID [03:16:3e:00:00:09]"),
        ("1", "02:16:3e:00:00:09", "ok"),
        ("2", "", "ok"),
    ];
    for (device, mac, expected) in rows {
        let pairs = [("VM", "VM"), ("network", &network), ("device", device), ("MAC", mac), ("MTU", "1500")];
        let answer = rig.create("VIF.create", &pairs);
        assert_eq!(answer.split(" OpaqueRef").next(), Some(expected), "{device} {mac}");
    }
    let missing =
        rig.create("VIF.create", &[("VM", "VM"), ("network", &network), ("device", "3"), ("MAC", "")]);
    assert_eq!(missing, "XMLRPC_UNMARSHAL_FAILURE [MTU, missing from the record]");
    let nowhere = [("VM", "VM"), ("network", "x"), ("device", "3"), ("MAC", ""), ("MTU", "1500")];
    assert_eq!(rig.create("VIF.create", &nowhere), "HANDLE_INVALID [network, x]");
    let vm = rig.vm.clone();
    let vifs = rig.set(Class::Vm, &vm, "VIFs");
    assert_eq!(vifs.len(), 3);
    assert_eq!(rig.call("VM.get_allowed_VIF_devices VM").matches("String").count(), 4);
    rig.run("VM.start VM false false");
    assert!(rig.call(&format!("VIF.destroy {}", vifs[0])).starts_with("OPERATION_NOT_ALLOWED"));
    rig.run("VM.hard_shutdown VM");
    assert_eq!(rig.call(&format!("VIF.destroy {}", vifs[0])), "ok");
    assert_eq!(rig.set(Class::Vm, &vm, "VIFs").len(), 2);
}

#[test]
fn drives_are_checked_before_they_are_made() {
    let mut rig = Rig::pv(Release::V8_2);
    let sr = rig.pool.sr_ref.clone();
    let disk = [("SR", sr.as_str()), ("virtual_size", "1024"), ("type", "user"), ("sharable", "false")];
    let disk = [&disk[..], &[("read_only", "false"), ("name_label", "data")]].concat();
    let vdi = rig.create("VDI.create", &disk).trim_start_matches("ok ").to_owned();
    let rows = [
        ("0", "RW", "Disk", "DEVICE_ALREADY_EXISTS [0]"),
        ("xvdb", "RW", "Disk", "INVALID_DEVICE [xvdb]"),
        ("1", "rw", "Disk", "INVALID_VALUE [mode, rw]"),
        ("3", "RW", "CD", "VBD_CDS_MUST_BE_READONLY"),
        ("1", "RW", "Disk", "ok"),
        ("autodetect", "RW", "Disk", "ok"),
    ];
    for (position, mode, kind, expected) in rows {
        let pairs = [("VM", "VM"), ("VDI", vdi.as_str()), ("userdevice", position), ("bootable", "false")];
        let pairs = [&pairs[..], &[("mode", mode), ("type", kind), ("empty", "false")]].concat();
        let answer = rig.create("VBD.create", &pairs);
        assert_eq!(answer.split(" OpaqueRef").next(), Some(expected), "{position} {mode} {kind}");
    }
    let vm = rig.vm.clone();
    let drives = rig.set(Class::Vm, &vm, "VBDs");
    assert_eq!(drives.len(), 3);
    assert_eq!(rig.pool.db.text(Class::Vbd, &drives[2], "userdevice"), "2");
    assert_eq!(rig.call(&format!("VBD.set_bootable {} true", drives[1])), "ok");
    rig.run("VM.start VM false false");
    assert_eq!(rig.call(&format!("VDI.destroy {vdi}")), format!("VDI_IN_USE [{vdi}, destroy]"));
}

#[test]
fn memory_limits_keep_their_order() {
    for release in Release::ALL {
        let rig = Rig::pv(release);
        let order = "MEMORY_CONSTRAINT_VIOLATION [Memory limits must satisfy: static_min <= dynamic_min <= \
                     dynamic_max <= static_max]";
        let mut script = vec![
            ("VM.set_memory_limits VM 1 2147483648 2147483648 2147483648", "ok"),
            ("VM.get_memory_static_max VM", "ok 2147483648"),
            ("VM.get_memory_target VM", "ok 2147483648"),
            ("VM.set_memory_static_max VM 1073741824", order),
            ("VM.set_memory_dynamic_range VM 1073741824 1073741824", "ok"),
            ("VM.set_memory_static_max VM 1073741824", "ok"),
            ("VM.set_memory_static_max VM much", "FIELD_TYPE_ERROR [memory_static_max]"),
            (
                "VM.set_VCPUs_at_startup VM 2",
                "INVALID_VALUE [VCPU values must satisfy: 0 < VCPUs_at_startup <= VCPUs_max, 2]",
            ),
            ("VM.set_VCPUs_max VM 2", "ok"),
            ("VM.set_VCPUs_at_startup VM 2", "ok"),
            ("VM.set_name_label VM web-01", "ok"),
            ("VM.set_name_description VM made", "ok"),
        ];
        let has_set_memory = release.api >= Release::V7_2.api;
        let known = if has_set_memory { "ok" } else { "MESSAGE_METHOD_UNKNOWN [VM.set_memory]" };
        script.push(("VM.set_memory VM 3221225472", known));
        check(rig, &script);
    }
}

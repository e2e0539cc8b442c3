use super::*;

fn timed(names: &[(&str, f64)]) -> Vec<Timed> {
    names.iter().map(|&(name, seconds)| Timed { name: name.to_owned(), seconds }).collect()
}

fn line(name: &str, state: Option<&str>, states: Vec<Timed>) -> VmLine {
    VmLine {
        name: name.to_owned(),
        uuid: format!("uuid-of-{name}"),
        state: state.map(str::to_owned),
        reason: None,
        restored: true,
        evidence: "booted".to_owned(),
        power_state: "Running".to_owned(),
        domain_type: Some("pv".to_owned()),
        hvm_boot_policy: String::new(),
        hvm_boot_params: BTreeMap::new(),
        pv_bootloader: "pygrub".to_owned(),
        claim: None,
        attempts: 1,
        starts: Starts { hvm: 1, pv: 1 },
        states,
        stages: timed(&[("started", 1.0)]),
        complaints: vec![],
        profile: "mini".to_owned(),
    }
}

fn document(vms: Vec<VmLine>) -> Document {
    let faults = vec![FaultCount { name: "server-killed".to_owned(), planned: 2, fired: 2 }];
    Document {
        ok: true,
        seed: 7,
        xenapi_calls: 12,
        server_kills: 2,
        faults,
        vms,
        proof: vec![],
        broken: None,
    }
}

fn sample() -> Document {
    let good = timed(&[
        ("Queued", 0.0),
        ("Preparing", 0.1),
        ("Flipping", 0.2),
        ("Booting", 1.4),
        ("Installing", 103.1),
        ("Restoring", 0.1),
        ("Starting", 2.1),
        ("Verifying", 0.8),
        ("Succeeded", 0.0),
    ]);
    let failed = timed(&[("Queued", 8.0), ("Installing", 3.0), ("Undoing", 0.5), ("Failed", 0.0)]);
    let again = [failed, good.clone()].concat();
    let retried = VmLine { attempts: 2, ..line("db-1000", Some("Succeeded"), again) };
    let refused = VmLine {
        attempts: 0,
        reason: Some("not-servable".to_owned()),
        evidence: "none".to_owned(),
        complaints: vec!["evidence is none".to_owned()],
        ..line("mail-002", None, vec![])
    };
    document(vec![line("queue-001", Some("Succeeded"), good), refused, retried])
}

#[test]
fn tables_name_states_attempts_and_settings() {
    let expected = r#"VM         PROFILE  STATE      ATTEMPTS  FINAL BOOT SETTINGS                   EVIDENCE  VERDICT
queue-001  mini     Succeeded  1         pv by pygrub, HVM policy "", order -  booted    restored
mail-002   mini     no job     0         pv by pygrub, HVM policy "", order -  none      BAD
    reason: not-servable
    evidence is none
db-1000    mini     Succeeded  2         pv by pygrub, HVM policy "", order -  booted    restored

SECONDS IN  Queued  Preparing  Flipping  Booting  Installing  Restoring  Starting  Verifying  Undoing
queue-001      0.0        0.1       0.2      1.4       103.1        0.1       2.1        0.8        -
db-1000 #1     8.0          -         -        -         3.0          -         -          -      0.5
db-1000 #2     0.0        0.1       0.2      1.4       103.1        0.1       2.1        0.8        -

FAULT          PLANNED  FIRED
server-killed        2      2

ok: 2 of 3 VMs are installed, restored and running as PV; 12 XenAPI calls, server killed 2 times, seed 7
"#;
    let table = sample().table();
    assert_eq!(table, expected);
    table.lines().for_each(|line| assert!(line.chars().count() <= 110, "{line}"));
}

#[test]
fn document_has_the_promised_members_and_no_others() {
    let value = serde_json::to_value(sample()).unwrap();
    let members = |value: &serde_json::Value| {
        let mut names: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        names.sort();
        names.join(" ")
    };
    assert_eq!(members(&value), "faults ok seed server_kills vms xenapi_calls");
    assert_eq!(members(&value["faults"][0]), "fired name planned");
    let vm = &value["vms"][0];
    assert_eq!(
        members(vm),
        "attempts claim domain_type evidence hvm_boot_params hvm_boot_policy name power_state pv_bootloader \
         reason restored stages starts state states uuid"
    );
    assert_eq!(members(&vm["starts"]), "hvm pv");
    assert_eq!(members(&vm["states"][0]), "name seconds");
    assert_eq!(members(&vm["stages"][0]), "name seconds");
}

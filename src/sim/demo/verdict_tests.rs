use super::*;
use crate::{
    clock::Timestamp,
    sim::{
        demo::options::DemoOptions,
        pool::{DomainTruth, Pool, Release, VmSpec},
    },
};

fn plan(faults: bool) -> DemoPlan {
    let program = "bootflip".into();
    DemoPlan::new(&DemoOptions { seed: 7, faults, program, ..DemoOptions::default() })
}

fn before() -> VmTruth {
    let mut pool = Pool::new(1, Release::V8_2);
    let uuid = pool.add_vm(VmSpec::default());
    pool.truth(&uuid).unwrap()
}

/// The VM as it should be in the end.
fn installed() -> VmTruth {
    let domain = DomainTruth { domid: 9, mode: BootMode::Pv, started: Timestamp::default(), paused: false };
    let power_state = "Running".to_owned();
    VmTruth { power_state, hvm_starts: 1, pv_starts: 1, domain: Some(domain), ..before() }
}

fn complaints(index: usize, after: &VmTruth, booted_domid: Option<u32>, log: &[LoggedCall]) -> String {
    let facts = Facts { index, before: &before(), after, booted_domid, log };
    judge(&plan(true), facts).complaints.join("; ")
}

/// A VM of the plan to which nothing is to happen but what happens to all.
fn quiet_vm() -> usize {
    let plan = plan(true);
    (0..8)
        .find(|vm| plan.vms[*vm].attempts.len() == 1 && plan.hands.iter().all(|hand| hand.vm != *vm))
        .unwrap()
}

#[test]
fn each_thing_that_is_wrong_is_named() {
    let hvm = |mut vm: VmTruth| {
        vm.domain_type = Some("hvm".to_owned());
        vm.hvm_boot_policy = "BIOS order".to_owned();
        vm
    };
    let other_key = |mut vm: VmTruth, key: &str| {
        vm.other_config.insert(key.to_owned(), "x".to_owned());
        vm
    };
    for (after, booted, expected) in [
        (installed(), Some(9), ""),
        (other_key(installed(), "bootflip:installed"), Some(9), ""),
        (other_key(installed(), NOTE_KEY), Some(9), "other_config is"),
        (hvm(installed()), Some(9), "domain_type is Some(\"hvm\"), not Some(\"pv\"); HVM_boot_policy is"),
        (VmTruth { claim: Some("{}".to_owned()), ..installed() }, Some(9), "a claim is left"),
        (installed(), Some(8), "evidence is weak"),
        (
            VmTruth { domain: None, power_state: "Halted".to_owned(), ..installed() },
            Some(9),
            "evidence is none",
        ),
        (
            VmTruth { hvm_starts: 2, ..installed() },
            Some(9),
            "started 2 times as HVM and 1 times as PV in 1 attempts",
        ),
        (
            VmTruth { pv_starts: 0, ..installed() },
            Some(9),
            "started 1 times as HVM and 0 times as PV in 1 attempts",
        ),
    ] {
        let found = complaints(quiet_vm(), &after, booted, &[]);
        assert!(
            found.starts_with(expected) && found.is_empty() == expected.is_empty(),
            "{found}, not {expected}"
        );
    }
}

#[test]
fn note_of_a_person_is_right_where_it_was_planned() {
    let noted = plan(true).hands.iter().find(|hand| hand.deed == Deed::PersonWritesNote).unwrap().vm;
    let mut after = installed();
    after.other_config.insert(NOTE_KEY.to_owned(), "do not lose".to_owned());
    assert_eq!(complaints(noted, &after, Some(9), &[]), "");
}

#[test]
fn call_that_is_not_on_the_list_is_named() {
    let call = |method: &str, caller| LoggedCall {
        at: Timestamp::default(),
        caller,
        method: method.to_owned(),
        vm: Some(before().uuid),
        params: String::new(),
        outcome: Ok(()),
        task: None,
    };
    for (method, caller, expected) in [
        ("Async.VM.start", Caller::Client, ""),
        ("VM.destroy", Caller::Client, "VM.destroy was called"),
        ("VM.destroy", Caller::Person, ""),
    ] {
        assert_eq!(complaints(quiet_vm(), &installed(), Some(9), &[call(method, caller)]), expected);
    }
}

//! The boot gate's decisions.

use super::*;
use crate::secret::{TokenKey, TokenUse};

const MAC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 2]);

fn armed(attempt: u32, phase: ArmPhase) -> Arc<Armed> {
    let token = |usage| TokenKey::new([1; 32]).token("j", attempt, usage);
    Arc::new(Armed {
        job: "j".into(),
        attempt,
        vm_name: "web".into(),
        vm_uuid: "u".into(),
        mac: MAC,
        render: token(TokenUse::Render),
        report: token(TokenUse::Report),
        booted: token(TokenUse::Booted),
        files: BootFiles {
            kernel: "/u/linux".into(),
            initrd: vec!["u/initrd.gz".into(), "extra".into()],
            args: String::new(),
            answer: None,
            fetch: crate::config::Fetch::Http,
            seed: Vec::new(),
            files: Vec::new(),
        },
        profile: "p".into(),
        variables: BTreeMap::new(),
        disk: None,
        xen: None,
        phase,
    })
}

fn machine(armed: Option<Arc<Armed>>) -> Machine {
    Machine { mac: MAC, name: "web".into(), vm_uuid: "u".into(), armed }
}

fn label(answer: &Answer) -> &'static str {
    match answer {
        Answer::Unknown => "unknown",
        Answer::Refused(_) => "refused",
        Answer::Boot(_) => "boot",
    }
}

/// What the gate says to a netboot, to the render token as file and as answer file, and to the other two tokens.
fn decisions(gate: &Gate, of: &Armed) -> [&'static str; 5] {
    let file = |token| label(&gate.answer(Ask::File { token }));
    [
        label(&gate.answer(Ask::Netboot { mac: MAC })),
        file(of.render.expose()),
        label(&gate.answer(Ask::AnswerFile { token: of.render.expose() })),
        file(of.report.expose()),
        file(of.booted.expose()),
    ]
}

#[test]
fn the_gate_opens_with_arming_and_closes_with_disarming() {
    let gate = Gate::default();
    let first = armed(1, ArmPhase::Booting);
    assert_eq!(decisions(&gate, &first), ["unknown"; 5]);
    gate.update(|table| table.publish(machine(None)));
    assert_eq!(decisions(&gate, &first), ["refused", "unknown", "unknown", "unknown", "unknown"]);
    gate.update(|table| table.publish(machine(Some(Arc::clone(&first)))));
    assert_eq!(decisions(&gate, &first), ["boot", "boot", "boot", "unknown", "unknown"]);
    gate.update(|table| table.publish(machine(Some(armed(1, ArmPhase::Installing)))));
    assert_eq!(decisions(&gate, &first), ["refused", "boot", "boot", "unknown", "unknown"]);
    gate.update(|table| table.publish(machine(Some(armed(2, ArmPhase::Booting)))));
    assert_eq!(decisions(&gate, &first), ["boot", "unknown", "unknown", "unknown", "unknown"]);
    gate.update(|table| table.forget(MAC));
    assert_eq!(decisions(&gate, &first), ["unknown"; 5]);
}

#[test]
fn a_stranger_opens_nothing() {
    let gate = Gate::default();
    gate.update(|table| table.publish(machine(Some(armed(1, ArmPhase::Booting)))));
    assert_eq!(label(&gate.answer(Ask::Netboot { mac: OTHER })), "unknown");
    for token in ["", "0", "é", &"0".repeat(64)] {
        assert_eq!(label(&gate.answer(Ask::File { token })), "unknown");
    }
    assert!(gate.knows(MAC) && !gate.knows(OTHER));
}

#[test]
fn an_address_is_of_the_known_machine_that_had_it_last() {
    let gate = Gate::default();
    let [one, two] = [1, 2].map(|n| IpAddr::from([10, 0, 0, n]));
    gate.met(MAC, one);
    assert_eq!(gate.who(one), None, "a stranger is not noted");
    gate.update(|table| {
        table.publish(machine(None));
        table.publish(Machine { mac: OTHER, ..machine(None) });
    });
    gate.met(MAC, one);
    gate.met(MAC, two);
    assert_eq!([gate.who(one), gate.who(two)], [None, Some(MAC)]);
    gate.met(OTHER, two);
    gate.update(|table| table.publish(machine(None)));
    assert_eq!(gate.who(two), Some(OTHER));
    gate.met(MAC, one);
    gate.update(|table| table.forget(MAC));
    assert_eq!(gate.who(one), None);
}

#[test]
fn only_files_that_the_profile_names_are_given_out() {
    let armed = armed(1, ArmPhase::Booting);
    let sign = |path| armed.file_sign(&RelativePath::parse(path).unwrap());
    assert_eq!(sign("u/linux"), Some(Sign::Kernel));
    assert_eq!(sign("u//initrd.gz"), Some(Sign::Initrd));
    assert_eq!(sign("extra"), Some(Sign::Initrd));
    for path in ["linux", "u/linux2", "u", "U/linux"] {
        assert_eq!(sign(path), None, "{path}");
    }
}

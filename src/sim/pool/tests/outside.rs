//! Domains that a body outside runs.

use super::*;

const BUILD: DomainAct = DomainAct::Build { mode: BootMode::Pv, paused: false, again: false };

fn rig() -> Rig {
    // Nothing on its disk, as far as the model knows: only the body can tell.
    let mut rig = Rig::new(Release::V8_2, VmSpec::default());
    rig.pool.run_domains_outside();
    rig
}

impl Rig {
    /// Begins an operation and lets its time pass; answers its task.
    fn begin(&mut self, line: &str) -> String {
        let task = self.call(&format!("Async.{line}"));
        self.wait(Duration::from_secs(10));
        task.strip_prefix("ok ").expect("a task").to_owned()
    }

    fn status(&self, task: &str) -> String {
        let words = self.pool.db.set_of(Class::Task, task, "error_info");
        format!("{} {}", self.pool.db.text(Class::Task, task, "status"), words.join(" "))
            .replace(&self.vm, "VM")
            .trim_end()
            .to_owned()
    }

    /// The only thing that is asked of the body.
    fn asked(&mut self) -> DomainOrder {
        let mut orders = self.pool.take_orders();
        assert_eq!(orders.len(), 1, "{orders:?}");
        orders.remove(0)
    }

    fn done(&mut self, order: &DomainOrder, outcome: Result<u32, Failure>) {
        self.pool.outside_done(self.now, order.id, outcome);
    }

    fn running(domid: u32) -> Self {
        let mut rig = rig();
        rig.begin("VM.start VM false false");
        let order = rig.asked();
        assert_eq!((&order.act, &order.vm_uuid, order.memory), (&BUILD, &rig.uuid, 1 << 30));
        rig.done(&order, Ok(domid));
        rig
    }
}

#[test]
fn a_start_ends_when_the_body_says_so_with_its_number() {
    let mut rig = rig();
    let task = rig.begin("VM.start VM true false");
    let order = rig.asked();
    assert_eq!(order.act, DomainAct::Build { mode: BootMode::Pv, paused: true, again: false });
    assert_eq!((rig.status(&task), rig.truth().power_state.as_str()), ("pending".to_owned(), "Halted"));
    rig.done(&order, Ok(41));
    assert_eq!((rig.status(&task), rig.truth().power_state.as_str()), ("success".to_owned(), "Paused"));
    assert_eq!(rig.call("VM.get_domid VM"), "ok 41");
    let task = rig.begin("VM.unpause VM");
    let order = rig.asked();
    assert_eq!((&order.act, rig.truth().power_state.as_str()), (&DomainAct::Unpause, "Paused"));
    rig.done(&order, Ok(0));
    assert_eq!((rig.status(&task), rig.truth().power_state.as_str()), ("success".to_owned(), "Running"));
    let started = rig.truth().start_time;
    assert!(started.starts_with("20260101T12:"), "{started}");
}

#[test]
fn what_the_body_says_against_a_start_ends_the_task_and_the_vm_stays_halted() {
    let mut rig = rig();
    let task = rig.begin("VM.start VM false false");
    let order = rig.asked();
    rig.done(&order, Err(Failure::new("BOOTLOADER_FAILED", &[&order.vm, "no kernel"])));
    assert_eq!(rig.status(&task), "failure BOOTLOADER_FAILED VM no kernel");
    assert_eq!(rig.truth().power_state, "Halted");
    assert_eq!(rig.call("VM.get_current_operations VM"), "ok Struct({})");
}

#[test]
fn the_mode_is_that_of_the_record_when_it_was_asked() {
    let mut rig = rig();
    rig.call("VM.set_HVM_boot_policy VM BIOS_order");
    rig.call("VM.set_HVM_boot_params VM {order=n}");
    rig.begin("VM.start VM false false");
    let order = rig.asked();
    let mode = BootMode::Hvm { order: "n".to_owned() };
    assert_eq!(order.act, DomainAct::Build { mode: mode.clone(), paused: false, again: false });
    rig.call("VM.set_HVM_boot_policy VM -");
    rig.done(&order, Ok(7));
    let domain = rig.truth().domain.unwrap();
    assert_eq!((domain.domid, domain.mode, rig.truth().hvm_starts), (7, mode, 1));
}

#[test]
fn stops_wait_for_the_body() {
    for (line, act) in [
        ("VM.clean_shutdown VM", DomainAct::Shutdown),
        ("VM.hard_shutdown VM", DomainAct::Destroy),
        ("VM.pause VM", DomainAct::Pause),
    ] {
        let mut rig = Rig::running(3);
        let task = rig.begin(line);
        let order = rig.asked();
        assert_eq!((&order.act, rig.truth().power_state.as_str()), (&act, "Running"), "{line}");
        rig.done(&order, Ok(0));
        let expected = if act == DomainAct::Pause { "Paused" } else { "Halted" };
        assert_eq!((rig.status(&task), rig.truth().power_state.as_str()), ("success".to_owned(), expected));
    }
}

#[test]
fn what_will_be_refused_is_not_asked() {
    let mut rig = Rig::running(3);
    for (line, expected) in [
        ("VM.start VM false false", "failure VM_BAD_POWER_STATE VM halted running"),
        ("VM.unpause VM", "failure VM_BAD_POWER_STATE VM paused running"),
    ] {
        let task = rig.begin(line);
        assert_eq!(rig.status(&task), expected);
        assert_eq!(rig.pool.take_orders(), []);
    }
}

#[test]
fn a_guests_own_reboot_builds_another_domain_and_a_lost_one_halts() {
    for (answer, state, starts) in [(Ok(4), "Running", 2), (Err(Failure::new("X", &[])), "Halted", 1)] {
        let mut rig = Rig::running(3);
        rig.guest(GuestAct::Reboot);
        rig.wait(Duration::from_secs(60));
        let order = rig.asked();
        assert_eq!(order.act, BUILD);
        rig.done(&order, answer);
        assert_eq!((rig.truth().power_state.as_str(), rig.truth().pv_starts), (state, starts));
    }
}

#[test]
fn a_reboot_over_the_api_replaces_the_domain() {
    let mut rig = Rig::running(3);
    let task = rig.begin("VM.hard_reboot VM");
    let order = rig.asked();
    assert_eq!(order.act, DomainAct::Build { mode: BootMode::Pv, paused: false, again: true });
    rig.done(&order, Ok(9));
    assert_eq!((rig.status(&task).as_str(), rig.truth().domain.unwrap().domid), ("success", 9));
}

#[test]
fn an_answer_to_nothing_is_ignored() {
    let mut rig = Rig::running(3);
    rig.pool.outside_done(rig.now, 99, Ok(5));
    assert_eq!(rig.truth().domain.unwrap().domid, 3);
}

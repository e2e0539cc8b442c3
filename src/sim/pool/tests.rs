//! The model's semantics, one fact per row.

use std::time::Duration;

mod create;
mod outside;
mod power;
mod releases;
mod sessions;

use super::*;

const START: Timestamp = Timestamp::from_millis(1_767_268_800_000); // 2026-01-01T12:00:00Z

const ADMIN: Actor<'_> = Actor { caller: Caller::Client, role: Role::PoolAdmin, session: "" };

/// A pool with one VM, and a clock.
struct Rig {
    pool: Pool,
    now: Timestamp,
    uuid: String,
    vm: String,
}

/// An answer as a line: `ok VALUE` or `CODE [params]`, with the VM's reference as `VM`.
type Line = String;

impl Rig {
    fn new(release: Release, spec: VmSpec) -> Self {
        let mut pool = Pool::new(7, release);
        let uuid = pool.add_vm(spec);
        let vm = pool.db.by_uuid(Class::Vm, &uuid).unwrap().to_owned();
        Self { pool, now: START, uuid, vm }
    }

    fn pv(release: Release) -> Self {
        Self::new(release, VmSpec { bootable: Some(Ok(())), ..VmSpec::default() })
    }

    /// `VM.start VM false false`; `{a=b}` is a map, `-` an empty text, `true`/`false` booleans.
    fn call(&mut self, line: &str) -> Line {
        let mut words = line.split(' ');
        let method = words.next().unwrap();
        let params: Vec<Value> = words.map(|word| self.value(word)).collect();
        let answer = self.pool.perform(self.now, ADMIN, method, &params);
        self.show(answer)
    }

    fn value(&self, word: &str) -> Value {
        match word {
            "VM" => Value::string(&self.vm),
            "-" => Value::void(),
            "true" | "false" => Value::Bool(word == "true"),
            _ if word.starts_with('{') => {
                let pairs = word.trim_matches(['{', '}']).split(',').filter_map(|pair| pair.split_once('='));
                Value::Struct(pairs.map(|(key, value)| (key.to_owned(), Value::string(value))).collect())
            }
            _ => Value::string(word.replace('_', " ").replace("~", "_")),
        }
    }

    fn show(&self, answer: Result<Value, Failure>) -> Line {
        let line = match answer {
            Ok(Value::String(text)) => format!("ok {text}"),
            Ok(other) => format!("ok {other:?}"),
            Err(failure) => failure.to_string(),
        };
        let uuid_hidden = line.replace(&self.vm, "VM").replace(&self.uuid, "UUID");
        uuid_hidden.trim_end().to_owned()
    }

    /// A task's end: waits for it and says how it ended.
    fn run(&mut self, line: &str) -> Line {
        let answer = self.call(&format!("Async.{line}"));
        let Some(task) = answer.strip_prefix("ok ").map(str::to_owned) else { return answer };
        for _ in 0..1000 {
            if self.pool.db.text(Class::Task, &task, "status") != "pending" {
                break;
            }
            self.now = self.pool.next_due().expect("a pending task has an end");
            self.pool.advance(self.now);
        }
        let error = self.pool.db.set_of(Class::Task, &task, "error_info");
        let status = self.pool.db.text(Class::Task, &task, "status").to_owned();
        format!("{status} {}", error.join(" ")).replace(&self.vm, "VM").trim_end().to_owned()
    }

    fn wait(&mut self, span: Duration) {
        self.now = self.now + span;
        self.pool.advance(self.now);
    }

    fn guest(&mut self, act: GuestAct) {
        let domid = self.truth().domain.expect("a domain lives").domid;
        assert!(self.pool.guest(self.now, &self.uuid.clone(), domid, act));
    }

    fn truth(&self) -> VmTruth {
        self.pool.truth(&self.uuid).unwrap()
    }
}

/// Lines of `call => answer`; a call that begins with `task` is sent as Async and waited for.
fn check(mut rig: Rig, script: &[(&str, &str)]) {
    for (call, expected) in script {
        let line = match call.strip_prefix("task ") {
            Some(call) => rig.run(call),
            None => rig.call(call),
        };
        assert_eq!(line, *expected, "{call} on {}", rig.pool.release.name);
    }
}

const BOTH: [Release; 2] = [Release::V8_2, Release::V6_2];

#[test]
fn policy_and_domain_type_write_each_other() {
    check(
        Rig::pv(Release::V8_2),
        &[
            ("VM.get_domain_type VM", "ok pv"),
            ("VM.set_HVM_boot_policy VM BIOS_order", "ok"),
            ("VM.get_domain_type VM", "ok hvm"),
            ("VM.set_HVM_boot_policy VM -", "ok"),
            ("VM.get_domain_type VM", "ok pv"),
            ("VM.set_domain_type VM hvm", "ok"),
            ("VM.get_HVM_boot_policy VM", "ok BIOS order"),
            ("VM.set_domain_type VM pv~in~pvh", "ok"),
            ("VM.get_HVM_boot_policy VM", "ok"),
            ("VM.set_HVM_boot_policy VM -", "ok"),
            ("VM.get_domain_type VM", "ok pv"), // the trap: not pv_in_pvh
            ("VM.set_domain_type VM unspecified", "INVALID_VALUE [domain_type, unspecified]"),
        ],
    );
}

#[test]
fn an_old_release_has_no_domain_type() {
    let mut rig = Rig::pv(Release::V6_2);
    assert_eq!(rig.call("VM.set_domain_type VM hvm"), "MESSAGE_METHOD_UNKNOWN [VM.set_domain_type]");
    assert_eq!(rig.call("VM.get_domain_type VM"), "MESSAGE_METHOD_UNKNOWN [VM.get_domain_type]");
    let has = |rig: &Rig, class, reference: &str, field| rig.pool.db.value(class, reference, field).is_some();
    let metrics = rig.pool.db.text(Class::Vm, &rig.vm, "metrics").to_owned();
    assert!(
        !has(&rig, Class::Vm, &rig.vm, "domain_type") && has(&rig, Class::Vm, &rig.vm, "HVM_boot_policy")
    );
    assert!(
        !has(&rig, Class::VmMetrics, &metrics, "hvm") && has(&rig, Class::VmMetrics, &metrics, "start_time")
    );
    assert_eq!(rig.call("VM.set_HVM_boot_policy VM BIOS_order"), "ok");
    assert_eq!(rig.run("VM.start VM false false"), "success");
    assert!(matches!(rig.truth().domain.unwrap().mode, BootMode::Hvm { .. }));
}

#[test]
fn setters_do_what_xapi_does() {
    for release in BOTH {
        check(
            Rig::pv(release),
            &[
                ("VM.set_HVM_boot_params VM {order=n,firmware=bios}", "ok"),
                ("VM.set_HVM_boot_params VM {order=c}", "ok"),
                ("VM.get_HVM_boot_params VM", r#"ok Struct({"order": String("c")})"#),
                ("VM.set_HVM_boot_params VM order", "FIELD_TYPE_ERROR [HVM_boot_params]"),
                ("VM.add_to_other_config VM bootflip:claim one", "ok"),
                (
                    "VM.add_to_other_config VM bootflip:claim two",
                    "MAP_DUPLICATE_KEY [VM, other_config, UUID, bootflip:claim]",
                ),
                ("VM.remove_from_other_config VM bootflip:claim", "ok"),
                ("VM.remove_from_other_config VM bootflip:claim", "ok"),
                ("VM.add_to_other_config VM bootflip:claim two", "ok"),
                ("VM.set_actions_after_reboot VM destroy", "ok"),
                ("VM.set_actions_after_reboot VM preserve", "INVALID_VALUE [actions_after_reboot, preserve]"),
                ("VM.set_actions_after_crash VM preserve", "ok"),
                ("VM.set_PV_bootloader VM eliloader", "ok"),
                ("VM.add_tags VM web", "ok"),
                ("VM.get_tags VM", r#"ok Array([String("web")])"#),
                ("VM.set_uuid VM x", "MESSAGE_METHOD_UNKNOWN [VM.set_uuid]"),
                ("VM.start VM", "MESSAGE_PARAMETER_COUNT_MISMATCH [VM.start, 3, 1]"),
                ("VM.set_PV_args VM", "MESSAGE_PARAMETER_COUNT_MISMATCH [VM.set_PV_args, 2, 1]"),
                ("VM.get_all_records VM", "MESSAGE_PARAMETER_COUNT_MISMATCH [VM.get_all_records, 0, 1]"),
                ("VM.fly VM", "MESSAGE_METHOD_UNKNOWN [VM.fly]"),
                ("VM.get_record OpaqueRef:gone", "HANDLE_INVALID [VM, OpaqueRef:gone]"),
                ("VM.get_by_uuid nobody", "UUID_INVALID [VM, nobody]"),
                ("VM.get_by_name_label vm", r#"ok Array([String("VM")])"#),
            ],
        );
    }
}

#[test]
fn setters_ask_for_no_power_state() {
    let mut rig = Rig::new(Release::V8_2, VmSpec { running: true, ..VmSpec::default() });
    assert_eq!(rig.call("VM.set_domain_type VM hvm"), "ok");
    assert_eq!(rig.truth().domain.unwrap().mode, BootMode::Pv, "the running domain stays what it is");
    rig.call("VM.hard_reboot VM");
    assert_eq!(rig.truth().domain.unwrap().mode, BootMode::Hvm { order: "cd".to_owned() });
}

#[test]
fn a_clone_copies_the_claim_and_the_start_time() {
    let mut rig = Rig::new(Release::V8_2, VmSpec { ever_ran: true, ..VmSpec::default() });
    rig.call("VM.add_to_other_config VM bootflip:claim mine");
    let copy =
        rig.pool.person(rig.now, &rig.uuid.clone(), &PersonAct::Clone { name: "copy".to_owned() }).unwrap();
    assert_ne!(copy, rig.uuid);
    let (truth, original) = (rig.pool.truth(&copy).unwrap(), rig.truth());
    assert_eq!(
        (truth.claim, truth.start_time, truth.name.as_str()),
        (original.claim, original.start_time, "copy")
    );
    assert_eq!(rig.pool.uuids(), [rig.uuid.clone(), copy.clone()]);
    rig.pool.person(rig.now, &copy, &PersonAct::Destroy).unwrap();
    assert_eq!(rig.pool.uuids(), [rig.uuid.clone()]);
    assert_eq!(rig.pool.person(rig.now, &copy, &PersonAct::Start).unwrap_err().code, "UUID_INVALID");
}

#[test]
fn a_restart_forgets_what_was_not_synced() {
    let lose = Duration::from_secs(300);
    let mut rig = Rig::pv(Release::V8_2);
    rig.call("VM.set_actions_after_crash VM destroy");
    rig.call("pool.sync_database");
    rig.wait(Duration::from_secs(10));
    rig.call("VM.add_to_other_config VM bootflip:claim mine");
    rig.call("VM.set_domain_type VM hvm");
    rig.run("VM.start VM false false");
    rig.wait(Duration::from_secs(2));
    let before = rig.truth();
    rig.pool.restart_coordinator(rig.now, Duration::ZERO);
    assert_eq!(rig.truth(), before, "a clean restart loses nothing");
    rig.pool.restart_coordinator(rig.now, lose);
    let truth = rig.truth();
    assert_eq!((truth.claim, truth.domain_type.as_deref()), (None, Some("pv")));
    assert_eq!(truth.actions_after[2], "destroy", "it was synced");
    assert_eq!(
        (truth.power_state.as_str(), truth.start_time),
        ("Running", before.start_time),
        "the domain is the truth"
    );
}

#[test]
fn a_restart_ends_sessions_and_tasks_but_not_what_hosts_began() {
    let mut rig = Rig::pv(Release::V8_2);
    let login = [Value::string(DEFAULT_USER), Value::string(DEFAULT_PASSWORD)];
    let session = rig.pool.call(START, "session.login_with_password", &login).unwrap();
    let params = [session.clone(), Value::string(&rig.vm), Value::Bool(false), Value::Bool(false)];
    let task = rig.pool.call(START, "Async.VM.start", &params).unwrap();
    rig.pool.restart_coordinator(START, Duration::ZERO);
    let failure = rig.pool.call(START, "VM.get_record", &params[..2]).unwrap_err();
    assert_eq!(
        (failure.code.as_str(), failure.params),
        ("SESSION_INVALID", vec![session.as_str().unwrap().to_owned()])
    );
    let task = task.as_str().unwrap().to_owned();
    assert_eq!(rig.call(&format!("task.get_record {task}")), format!("HANDLE_INVALID [task, {task}]"));
    assert_eq!(rig.call("VM.get_current_operations VM"), "ok Struct({})");
    assert_eq!(rig.truth().power_state, "Halted");
    rig.wait(Duration::from_secs(3));
    assert_eq!((rig.truth().power_state.as_str(), rig.truth().pv_starts), ("Running", 1));
}

#[test]
fn accounts_may_do_what_their_role_allows() {
    let rows = [
        (Role::ReadOnly, "VM.get_record VM", "ok"),
        (Role::ReadOnly, "VM.start VM false false", "RBAC_PERMISSION_DENIED"),
        (Role::VmOperator, "VM.start VM false false", "ok"),
        (Role::VmOperator, "VM.set_domain_type VM hvm", "RBAC_PERMISSION_DENIED"),
        (Role::VmAdmin, "VM.set_domain_type VM hvm", "ok"),
        (Role::VmAdmin, "VM.add_to_other_config VM a b", "ok"),
        (Role::VmAdmin, "pool.sync_database", "RBAC_PERMISSION_DENIED"),
        (Role::PoolOperator, "pool.sync_database", "ok"),
    ];
    for (role, line, expected) in rows {
        let mut rig = Rig::pv(Release::V8_2);
        rig.pool.add_account("ops", Secret::new("secret".to_owned()), role);
        let login = [Value::string("ops"), Value::string("secret")];
        let session = rig.pool.call(START, "session.login_with_password", &login).unwrap();
        let (method, words) = line.split_once(' ').unwrap_or((line, ""));
        let params = words.split_whitespace().map(|word| rig.value(word));
        let params: Vec<Value> = std::iter::once(session).chain(params).collect();
        let code =
            rig.pool.call(START, method, &params).map_or_else(|failure| failure.code, |_| "ok".to_owned());
        assert_eq!(code, expected, "{role:?} {line}");
        assert!(!format!("{:?}", rig.pool.log()).contains("secret"));
    }
}

#[test]
fn events_tell_what_changed_since_the_token() {
    let mut rig = Rig::pv(Release::V8_2);
    let ask = |rig: &mut Rig, token: &str| {
        let classes = Value::Array(vec![Value::string("VM"), Value::string("task")]);
        let params = [classes, Value::string(token), Value::Double(30.0)];
        let ready = rig.pool.has_events(&params);
        let batch = rig.pool.call_trusted(rig.now, Method::EventFrom, &params).unwrap();
        let Some(Value::Array(events)) = batch.get("events") else { panic!("{batch:?}") };
        let line = |event: &Value| {
            ["class", "operation"].map(|name| event.get(name).unwrap().as_str().unwrap().to_owned())
        };
        let lines: Vec<String> = events.iter().map(|event| line(event).join(" ")).collect();
        assert_eq!(ready, !lines.is_empty());
        (lines, batch.get("token").unwrap().as_str().unwrap().to_owned())
    };
    let (all, token) = ask(&mut rig, "");
    assert_eq!(all, ["vm add", "vm add", "vm add"], "two control domains and the VM");
    assert_eq!(ask(&mut rig, &token).0, Vec::<String>::new());
    rig.call("VM.set_domain_type VM hvm");
    assert_eq!(ask(&mut rig, &token).0, ["vm mod"]);
    let answer = rig.call("Async.VM.start VM false false");
    let (lines, token) = ask(&mut rig, &token);
    assert_eq!(lines, ["task add", "vm mod"]);
    rig.wait(Duration::from_secs(5));
    assert_eq!(ask(&mut rig, &token).0, ["vm mod", "task mod"]);
    rig.call(&format!("task.destroy {}", answer.trim_start_matches("ok ")));
    assert_eq!(ask(&mut rig, &token).0, ["vm mod", "task del"]);
    rig.pool.restart_coordinator(rig.now, Duration::ZERO);
    let params = [Value::Array(vec![Value::string("VM")]), Value::string(&token), Value::Double(1.0)];
    assert_eq!(rig.pool.call_trusted(rig.now, Method::EventFrom, &params).unwrap_err().code, "EVENTS_LOST");
}

#[test]
fn finished_tasks_are_collected() {
    let mut rig = Rig::pv(Release::V8_2);
    let answer = rig.call("Async.VM.start VM false false");
    let task = answer.trim_start_matches("ok ").to_owned();
    rig.wait(Duration::from_secs(60));
    assert_eq!(rig.call(&format!("task.get_status {task}")), "ok success");
    rig.wait(Duration::from_secs(66 * 60));
    assert_eq!(rig.call(&format!("task.get_status {task}")), format!("HANDLE_INVALID [task, {task}]"));
    let answer = rig.call("Async.VM.clone VM copy");
    assert_eq!(answer.split(' ').next(), Some("ok"));
    for entry in rig.pool.log().iter().filter(|call| call.method == "Async.VM.start") {
        assert_eq!((entry.task.clone(), entry.vm.as_ref()), (Some(Ok(())), Some(&rig.uuid)));
    }
}

#[test]
fn finished_tasks_above_two_hundred_are_culled() {
    let mut rig = Rig::pv(Release::V8_2);
    let mut first = String::new();
    for number in 0..250 {
        let answer = rig.call("Async.VM.set_PV_args VM quiet");
        rig.wait(Duration::from_secs(1));
        if number == 0 {
            answer.trim_start_matches("ok ").clone_into(&mut first);
        }
    }
    assert_eq!(rig.pool.db.count(Class::Task), 200);
    assert_eq!(rig.call(&format!("task.get_status {first}")), format!("HANDLE_INVALID [task, {first}]"));
}

#[test]
fn the_same_seed_gives_the_same_pool() {
    let story = |seed| {
        let mut pool = Pool::new(seed, Release::V8_2);
        let uuid = pool.add_vm(VmSpec { bootable: Some(Ok(())), ..VmSpec::default() });
        pool.person(START, &uuid, &PersonAct::Start).unwrap();
        pool.advance(START + Duration::from_secs(5));
        let records = pool.call_trusted(START, Method::VmGetAllRecords, &[]).unwrap();
        (format!("{records:?}"), pool.log().to_vec())
    };
    assert_eq!(story(1), story(1));
    assert_ne!(story(1).0, story(2).0);
}

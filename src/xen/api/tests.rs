use std::sync::Mutex;

use futures_util::{FutureExt, future::BoxFuture};

use super::*;

/// Answers every call with one value and keeps what was asked.
#[derive(Debug)]
struct Recorder {
    answer: Value,
    calls: Mutex<Vec<(Method, Vec<Value>)>>,
}

impl Transport for Recorder {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.calls.lock().unwrap().push((method, params));
        async { Ok(self.answer.clone()) }.boxed()
    }
}

fn recording(answer: Value) -> (Api, Arc<Recorder>) {
    let recorder = Arc::new(Recorder { answer, calls: Mutex::default() });
    (Api::new(recorder.clone()), recorder)
}

fn now<T>(future: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    future.now_or_never().unwrap()
}

#[test]
fn every_message_is_sent_with_the_parameters_that_xenapi_wants() {
    let (api, recorder) = recording(Value::string("OpaqueRef:answer"));
    let order = BTreeMap::from([("order".to_owned(), "n".to_owned())]);
    now(api.sync_database()).unwrap();
    now(api.add_to_other_config("vm", "k", "v")).unwrap();
    now(api.remove_from_other_config("vm", "k")).unwrap();
    now(api.add_to_platform("vm", "k", "v")).unwrap();
    now(api.remove_from_platform("vm", "k")).unwrap();
    now(api.set_domain_type("vm", "hvm")).unwrap();
    now(api.set_hvm_boot_policy("vm", "BIOS order")).unwrap();
    now(api.set_hvm_boot_params("vm", &order)).unwrap();
    now(api.set_pv_bootloader("vm", "pygrub")).unwrap();
    now(api.set_actions_after_shutdown("vm", "destroy")).unwrap();
    now(api.set_actions_after_reboot("vm", "destroy")).unwrap();
    now(api.set_actions_after_crash("vm", "destroy")).unwrap();
    now(api.unpause("vm")).unwrap();
    now(api.task_destroy("task")).unwrap();
    for started in [api.vm_by_uuid("uuid").now_or_never(), api.start("vm", true).now_or_never()] {
        assert_eq!(started.unwrap().unwrap(), "OpaqueRef:answer");
    }
    now(api.clean_shutdown("vm")).unwrap();
    now(api.hard_shutdown("vm")).unwrap();

    let sent: Vec<String> = recorder
        .calls
        .lock()
        .unwrap()
        .iter()
        .map(|(method, params)| {
            let params: Vec<String> = params
                .iter()
                .map(|param| param.as_str().map_or_else(|| format!("{param:?}"), str::to_owned))
                .collect();
            format!("{}({})", method.name(), params.join(", "))
        })
        .collect();
    assert_eq!(
        sent,
        [
            "pool.sync_database()",
            "VM.add_to_other_config(vm, k, v)",
            "VM.remove_from_other_config(vm, k)",
            "VM.add_to_platform(vm, k, v)",
            "VM.remove_from_platform(vm, k)",
            "VM.set_domain_type(vm, hvm)",
            "VM.set_HVM_boot_policy(vm, BIOS order)",
            "VM.set_HVM_boot_params(vm, Struct({\"order\": String(\"n\")}))",
            "VM.set_PV_bootloader(vm, pygrub)",
            "VM.set_actions_after_shutdown(vm, destroy)",
            "VM.set_actions_after_reboot(vm, destroy)",
            "VM.set_actions_after_crash(vm, destroy)",
            "VM.unpause(vm)",
            "task.destroy(task)",
            "VM.get_by_uuid(uuid)",
            "VM.start(vm, Bool(true), Bool(false))",
            "VM.clean_shutdown(vm)",
            "VM.hard_shutdown(vm)",
        ]
    );
}

#[test]
fn event_from_waits_a_double_of_at_most_a_minute() {
    let answer =
        BTreeMap::from([("token".into(), Value::string("t")), ("events".into(), Value::Array(vec![]))]);
    let (api, recorder) = recording(Value::Struct(answer));
    assert_eq!(now(api.event_from(&["VM"], "", Duration::from_secs(600))).unwrap().token, "t");
    let wanted = vec![Value::Array(vec![Value::string("VM")]), Value::void(), Value::Double(60.0)];
    assert_eq!(recorder.calls.lock().unwrap()[0], (Method::EventFrom, wanted));
}

#[test]
fn an_answer_of_another_shape_is_a_protocol_error() {
    let (api, _) = recording(Value::Bool(true));
    let errors = [
        now(api.vm_record("vm")).unwrap_err(),
        now(api.vms()).unwrap_err(),
        now(api.vms_by_name("x")).unwrap_err(),
        now(api.start("vm", false)).unwrap_err(),
        now(api.event_from(&[], "", Duration::ZERO)).unwrap_err(),
    ];
    let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "VM.get_record: the answer cannot be read: VM: not a record",
            "VM.get_all_records: the answer cannot be read: not a map of records",
            "VM.get_by_name_label: the answer cannot be read: not a set",
            "VM.start: the answer cannot be read: not a reference",
            "event.from: the answer cannot be read: event batch: not a record",
        ]
    );
}

#[test]
fn all_records_keep_their_references() {
    let vif = |mac: &str| {
        let fields = [("VM", "vm"), ("device", "0"), ("MAC", mac), ("network", "net")];
        Value::Struct(
            fields.into_iter().map(|(name, value)| (name.to_owned(), Value::string(value))).collect(),
        )
    };
    let all = BTreeMap::from([("OpaqueRef:1".into(), vif("a")), ("OpaqueRef:2".into(), vif("b"))]);
    let (api, _) = recording(Value::Struct(all));
    let vifs = now(api.vifs()).unwrap();
    let read: Vec<_> = vifs.iter().map(|vif| (vif.reference.as_str(), vif.mac.as_str())).collect();
    assert_eq!(read, [("OpaqueRef:1", "a"), ("OpaqueRef:2", "b")]);
    assert_eq!(vifs[0].locking_mode, None);
}

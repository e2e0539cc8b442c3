//! How fast, and in how much memory, the answer to VM.get_all_records of a large pool is read.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    hint::black_box,
};

use bootflip::xen::{Value, codec};

const BODY: usize = 5_000_000;
const ROUNDS: u32 = 40;
/// MB a second, on one core.
pub(crate) const SLOWEST: f64 = 100.0;
/// Times the body, which counts as one of them.
pub(crate) const LARGEST: f64 = 4.0;

/// What was measured.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// How many VMs the answer has.
    pub(crate) count: usize,
    /// Its length in MB.
    pub(crate) length: f64,
    /// MB a second, on one core.
    pub(crate) speed: f64,
    /// Memory while it is read, in bodies.
    pub(crate) share: f64,
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, length, speed, share } = self;
        let milliseconds = length / speed * 1e3;
        write!(
            f,
            "{count} VMs in {length:.1} MB: read and dropped in {milliseconds:.1} ms of one core, {speed:.0} MB/s; \
             memory {share:.1} times the body"
        )
    }
}

/// Measures. The process must have done nothing before: what it freed would hide what reading takes.
pub(crate) fn measure() -> Decoded {
    let body = body().into_bytes();
    fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = memory("VmRSS");
    let value = codec::decode_reply(&body).unwrap().unwrap();
    let taken = memory("VmHWM") - before;
    let Value::Struct(records) = &value else { panic!("not a map of records") };
    let count = records.len();
    drop(value);

    let begun = on_cpu();
    for _ in 0..ROUNDS {
        drop(black_box(codec::decode_reply(black_box(&body)).unwrap()));
    }
    let seconds = (on_cpu() - begun) / f64::from(ROUNDS);
    let length = body.len() as f64;
    Decoded { count, length: length / 1e6, speed: length / 1e6 / seconds, share: 1.0 + taken as f64 / length }
}

/// An answer of at least [`BODY`] bytes, as xapi writes it.
fn body() -> String {
    let whole = codec::encode_success(&Value::Struct(BTreeMap::from([("REF".to_owned(), vm())])));
    let (head, rest) = whole.split_once("<member><name>REF</name>").unwrap();
    let (record, tail) = rest.split_at(
        rest.len() - "</struct></value></member></struct></value></param></params></methodResponse>".len(),
    );
    let mut text = String::with_capacity(BODY + record.len() + tail.len());
    text.push_str(head);
    for number in 0.. {
        if text.len() >= BODY {
            break;
        }
        write!(text, "<member><name>OpaqueRef:{number:08x}-5e8a-4f0e-9b3c-29c0a1b2c3d4</name>{record}")
            .unwrap();
    }
    text + tail
}

/// A VM of the size and shape of real ones: some sixty texts, most of them references, and a dozen maps and sets.
fn vm() -> Value {
    let reference = |n: usize| format!("OpaqueRef:{n:08x}-5e8a-4f0e-9b3c-29c0a1b2c3d4");
    let mut vm = BTreeMap::new();
    for (n, name) in TEXTS.iter().enumerate() {
        vm.insert((*name).to_owned(), Value::string(reference(n)));
    }
    let restriction = "<restriction field=\"vcpus-max\" max=\"32\"/>".repeat(6);
    vm.insert("recommendations".into(), Value::string(format!("<restrictions>{restriction}</restrictions>")));
    let booted =
        "('uuid' '2a4f0d5e-1111-2222-3333-444455556666') ('allowed_operations' ('array')) ".repeat(8);
    vm.insert("last_booted_record".into(), Value::string(format!("('struct' {booted})")));
    for name in ["is_a_template", "is_a_snapshot", "is_control_domain", "ha_always_run", "requires_reboot"] {
        vm.insert(name.into(), Value::Bool(false));
    }
    vm.insert("HVM_shadow_multiplier".into(), Value::Double(1.0));
    vm.insert("snapshot_time".into(), Value::DateTime("19700101T00:00:00Z".into()));
    for (count, name) in
        ["tags", "VBDs", "VIFs", "consoles", "snapshots", "allowed_operations"].iter().enumerate()
    {
        vm.insert(
            (*name).to_owned(),
            Value::Array((0..count).map(|n| Value::string(reference(n))).collect()),
        );
    }
    for (count, name) in
        ["blobs", "HVM_boot_params", "xenstore_data", "platform", "other_config"].iter().enumerate()
    {
        let pair = |n: usize| (format!("key_{n}"), format!("value {n} & more of it"));
        vm.insert((*name).to_owned(), Value::map(&(0..count * 3).map(pair).collect()));
    }
    Value::Struct(vm)
}

const TEXTS: [&str; 44] = [
    "uuid",
    "name_label",
    "name_description",
    "power_state",
    "user_version",
    "suspend_VDI",
    "resident_on",
    "scheduled_to_be_resident_on",
    "affinity",
    "memory_overhead",
    "memory_target",
    "memory_static_max",
    "memory_dynamic_max",
    "memory_dynamic_min",
    "memory_static_min",
    "VCPUs_max",
    "VCPUs_at_startup",
    "actions_after_shutdown",
    "actions_after_reboot",
    "actions_after_crash",
    "PV_bootloader",
    "PV_kernel",
    "PV_ramdisk",
    "PV_args",
    "PV_bootloader_args",
    "PV_legacy_args",
    "HVM_boot_policy",
    "PCI_bus",
    "domid",
    "domarch",
    "metrics",
    "guest_metrics",
    "ha_restart_priority",
    "snapshot_of",
    "transportable_snapshot_id",
    "parent",
    "appliance",
    "order",
    "shutdown_delay",
    "start_delay",
    "suspend_SR",
    "version",
    "generation_id",
    "domain_type",
];

/// A line of /proc/self/status, in bytes.
fn memory(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Seconds that this thread was on a processor: what others do on a busy machine does not count.
fn on_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

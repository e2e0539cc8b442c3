//! Wishes as they are written, plans by table, and a VM's way from copy to name.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    fleet::{Defaults, from_csv, from_name, mac_prefix, names, size},
    plan::{Catalogue, plan},
    *,
};
use crate::{
    provision::tests::observed,
    xen::records::{NetworkRecord, PoolRecord, SrRecord, VdiRecord},
};

const PREFIX: [u8; 3] = [2, 0x16, 0x3e];
const PLAN: &str =
    r#"<provision><disk device="0" size="8589934592" sr="" bootable="true" type="system"/></provision>"#;

fn nonce() -> String {
    "a".repeat(32)
}

fn making() -> Making {
    Making { owner: "us".to_owned(), nonce: nonce(), since: Timestamp::from_millis(0) }
}

fn template(name: &str) -> VmRecord {
    let mut vm = observed(PowerState::Halted, "20200101T00:00:00Z").vm;
    vm.reference = format!("ref-{name}");
    vm.uuid = format!("uuid-{name}");
    vm.name_label = name.to_owned();
    vm.is_a_template = true;
    vm.pv_bootloader = "eliloader".to_owned();
    vm.domain_type = Some("pv".to_owned());
    vm.hvm_boot_policy = String::new();
    vm.other_config = [(DISKS_KEY, PLAN), (CLAIM_KEY, "{}"), (CREATED_KEY, "{}")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    (vm.tags, vm.vbds, vm.vifs) = (vec![], vec![], vec![]);
    vm
}

fn sr(name: &str, free: u64) -> SrRecord {
    SrRecord {
        reference: format!("ref-{name}"),
        uuid: format!("uuid-{name}"),
        name_label: name.to_owned(),
        content_type: if name == "cds" { "iso" } else { "user" }.to_owned(),
        kind: "ext".to_owned(),
        free,
    }
}

fn catalogue() -> Catalogue {
    let network = |name: &str| NetworkRecord {
        reference: format!("ref-{name}"),
        uuid: format!("uuid-{name}"),
        name_label: name.to_owned(),
    };
    Catalogue {
        owner: "us".to_owned(),
        pool: PoolRecord {
            reference: "ref-pool".to_owned(),
            uuid: "uuid-pool".to_owned(),
            name_label: String::new(),
            master: String::new(),
            ha_enabled: false,
            default_sr: "ref-main".to_owned(),
        },
        vms: vec![template("debian")],
        networks: vec![network("lan")],
        srs: vec![sr("main", 100 << 30), sr("fast", 10 << 30), sr("cds", 100 << 30)],
        vifs: vec![],
        drives: BTreeMap::new(),
        unstarted: BTreeSet::new(),
    }
}

fn defaults() -> Defaults {
    let text = |text: &str| Some(text.to_owned());
    Defaults { template: text("debian"), network: text("lan"), ..Defaults::default() }
}

/// What a plan comes to, or what speaks against it.
fn words(name: &str, wish: impl FnOnce(&mut Defaults), pool: impl FnOnce(&mut Catalogue)) -> String {
    let (mut defaults, mut catalogue) = (defaults(), catalogue());
    wish(&mut defaults);
    pool(&mut catalogue);
    match plan(&from_name(name, &defaults).unwrap(), &catalogue, PREFIX) {
        Ok(all) => {
            let line = |one: &Planned| {
                format!("{} {:?} {} {} {:?}", one.name, one.way, one.sr.0, one.need >> 30, one.existing)
            };
            all.iter().map(line).collect::<Vec<_>>().join("; ")
        }
        Err(problems) => problems.join("; "),
    }
}

fn with_own_disk(pool: &mut Catalogue) {
    let Some(template) = pool.vms.first_mut() else { return };
    template.other_config.remove(DISKS_KEY);
    let vdi = VdiRecord {
        reference: "ref-vdi".to_owned(),
        uuid: String::new(),
        name_label: String::new(),
        virtual_size: 5 << 30,
        sr: "ref-main".to_owned(),
        vbds: vec![],
    };
    pool.drives.insert(template.reference.clone(), vec![(drive("0", true, "Disk"), Some(vdi))]);
}

fn drive(userdevice: &str, bootable: bool, kind: &str) -> VbdRecord {
    VbdRecord {
        reference: format!("vbd-{userdevice}"),
        userdevice: userdevice.to_owned(),
        bootable,
        mode: if kind == "CD" { "RO" } else { "RW" }.to_owned(),
        kind: kind.to_owned(),
        empty: false,
        vdi: "ref-vdi".to_owned(),
    }
}

#[test]
fn plans_and_refusals() {
    let text = |text: &str| Some(text.to_owned());
    let rows = [
        (words("a", |_| {}, |_| {}), "a Clone main 8 None"),
        (
            words("a{1..2}", |w| w.disk = Some(20 << 30), |_| {}),
            "a1 Clone main 20 None; a2 Clone main 20 None",
        ),
        (words("a", |w| w.sr = text("uuid-fast"), |_| {}), "a Clone fast 8 None"),
        (
            words("a{1..2}", |w| w.sr = text("fast"), |_| {}),
            "SR \"fast\" has 10240 MiB free, and the new disks need 16384 MiB",
        ),
        (words("a", |w| w.sr = text("cds"), |_| {}), "holds CDs or drives"),
        (words("a", |_| {}, with_own_disk), "a Clone main 0 None"),
        (words("a", |w| w.sr = text("fast"), with_own_disk), "a Copy(\"ref-fast\") fast 5 None"),
        (words("a", |w| w.disk = Some(1), with_own_disk), "leave out --disk"),
        (
            words("a", |_| {}, |p| p.pool.default_sr = "OpaqueRef:NULL".into()),
            "no default SR; name one with --sr",
        ),
        (
            words("a", |w| w.memory = Some(64 << 20), |_| {}),
            "64 MiB of memory are below the least that template \"debian\" allows: 256 MiB",
        ),
        (words("a", |w| w.network = text("wan"), |_| {}), "no network \"wan\""),
        (words("a", |_| {}, |p| p.networks.push(p.networks[0].clone())), "2 networks have the name \"lan\""),
        (words("debian", |_| {}, |_| {}), "the pool has a VM of this name: uuid-debian"),
        (words("a", |_| {}, |p| p.vms[0].domain_type = Some("hvm".into())), "is HVM"),
        (
            words("a", |_| {}, |p| p.vms[0].pv_kernel = "/boot/x".into()),
            "boots the kernel /boot/x of the control domain",
        ),
        (words("a", |_| {}, |p| p.vms[0].is_a_template = false), "uuid-debian is a VM and no template"),
        (words("a", |_| {}, |p| p.vms[0].is_a_snapshot = true), "uuid-debian is a snapshot"),
        (words("a", |_| {}, |p| _ = p.vms[0].other_config.remove(DISKS_KEY)), "say how large with --disk"),
        (
            words("a", |_| {}, |p| _ = p.vms[0].other_config.insert(DISKS_KEY.into(), "<x".into())),
            "is damaged",
        ),
    ];
    for (found, expected) in rows {
        assert!(found.contains(expected), "{found}\n  wanted {expected}");
    }
}

#[test]
fn addresses_are_the_same_every_time_and_never_taken() {
    let macs = |pool: &Catalogue| {
        let wishes = from_name("a{1..3}", &defaults()).unwrap();
        plan(&wishes, pool, PREFIX).unwrap().iter().map(|one| one.mac).collect::<Vec<_>>()
    };
    let mut pool = catalogue();
    let first = macs(&pool);
    assert_eq!(first, macs(&pool));
    assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), 3);
    assert!(first.iter().all(|mac| mac.octets().starts_with(&PREFIX)));
    pool.vifs.push(vif("0", &first[1].to_string().to_uppercase(), "ref-lan"));
    let second = macs(&pool);
    assert_eq!((second[0], second[2]), (first[0], first[2]));
    assert_ne!(second[1], first[1]);
}

fn vif(device: &str, mac: &str, network: &str) -> VifRecord {
    VifRecord {
        reference: format!("vif-{device}"),
        vm: "ref-other".to_owned(),
        device: device.to_owned(),
        mac: mac.to_owned(),
        network: network.to_owned(),
        locking_mode: None,
    }
}

/// What the pool makes of a step.
fn done(seen: &mut Seen, step: &Step, planned: &Planned) {
    let vm = &mut seen.vm;
    match step {
        Step::AddKey { key, value } => _ = vm.other_config.insert((*key).to_owned(), value.clone()),
        Step::RemoveKey(key) => _ = vm.other_config.remove(*key),
        Step::Bootloader => vm.pv_bootloader = "pygrub".to_owned(),
        Step::Memory { memory, .. } => {
            (vm.memory_static_max, vm.memory_dynamic_min, vm.memory_dynamic_max) =
                (*memory, *memory, *memory);
        }
        Step::VcpusMax(count) => vm.vcpus_max = u64::from(*count),
        Step::VcpusAtStartup(count) => vm.vcpus_at_startup = u64::from(*count),
        Step::Tag => vm.tags.push(planned.tag.clone()),
        Step::Provision => {
            vm.is_a_template = false;
            vm.other_config.remove(DISKS_KEY);
            seen.drives = vec![drive("3", true, "CD"), drive("1", false, "Disk"), drive("0", false, "Disk")];
            seen.vifs = vec![vif("0", "02:00:00:00:00:01", "ref-other")];
        }
        Step::RemoveVif(_) => seen.vifs.clear(),
        Step::AddVif => seen.vifs.push(vif("0", &planned.mac.to_string(), &planned.network.0)),
        Step::Bootable(vbd, bootable) => {
            seen.drives
                .iter_mut()
                .filter(|one| one.reference == *vbd)
                .for_each(|one| one.bootable = *bootable);
        }
        Step::Name => vm.name_label = planned.name.clone(),
    }
}

#[test]
fn a_copy_goes_step_by_step_and_gets_its_name_last() {
    let wish = Defaults { memory: Some(2 << 30), vcpus: Some(4), ..defaults() };
    let planned = plan(&from_name("web", &wish).unwrap(), &catalogue(), PREFIX).unwrap().remove(0);
    let seen = observed(PowerState::Halted, "20200101T00:00:00Z");
    let mut vm = template("debian");
    vm.uuid = "uuid-new".to_owned();
    vm.name_label = making_label("web", "us", &nonce());
    let mut seen = Seen { vm, metrics: seen.metrics, drives: vec![], vifs: vec![] };
    let mut steps = Vec::new();
    let mut half_made = 0;
    while let Some(step) = next(&planned, &making(), &seen).unwrap() {
        // At every point what there is could be cleared away, by this making alone.
        assert!(steps.is_empty() || is_half_made(&seen.vm, &seen.metrics, "us", &nonce()), "{steps:?}");
        assert!(!is_half_made(&seen.vm, &seen.metrics, "us", &"b".repeat(32)));
        assert!(!is_half_made(&seen.vm, &seen.metrics, "them", &nonce()));
        half_made += 1;
        done(&mut seen, &step, &planned);
        let words = format!("{step:?}");
        steps.push(words.split([' ', '(']).next().unwrap().to_owned());
        assert!(steps.len() < 40, "{steps:?}");
    }
    let expected = "RemoveKey AddKey RemoveKey RemoveKey AddKey Bootloader Memory VcpusMax VcpusAtStartup Tag Provision \
                    RemoveVif AddVif Bootable Bootable Name";
    assert_eq!(steps.join(" "), expected);
    assert_eq!(half_made, 16);
    assert!(made_and_never_started(&seen.vm, &seen.metrics), "its start_time is the template's");
    seen.metrics.start_time = "20260101T00:00:00Z".to_owned();
    assert!(!made_and_never_started(&seen.vm, &seen.metrics));
    assert!(!is_half_made(&seen.vm, &seen.metrics, "us", &nonce()));
}

#[test]
fn a_copy_of_what_we_made_is_not_ours() {
    let mut seen = observed(PowerState::Halted, "20200101T00:00:00Z");
    let mark = Mark {
        v: 1,
        owner: "us".to_owned(),
        vm_uuid: "another".to_owned(),
        nonce: nonce(),
        since: Timestamp::from_millis(0),
        start_time: seen.metrics.start_time.clone(),
        wish: String::new(),
    };
    seen.vm.other_config.insert(CREATED_KEY.to_owned(), mark.text());
    assert!(!made_and_never_started(&seen.vm, &seen.metrics));
    assert!(!is_half_made(&seen.vm, &seen.metrics, "us", &nonce()));
    let own = Mark { vm_uuid: seen.vm.uuid.clone(), ..mark };
    seen.vm.other_config.insert(CREATED_KEY.to_owned(), own.text());
    assert!(made_and_never_started(&seen.vm, &seen.metrics));
    seen.vm.other_config.insert(INSTALLED_KEY.to_owned(), "{}".to_owned());
    assert!(!made_and_never_started(&seen.vm, &seen.metrics));
}

#[test]
fn labels_of_the_making_are_read_back() {
    let label = making_label("web (1)", "site a", &nonce());
    assert_eq!(read_making_label(&label, "site a"), Some(("web (1)", nonce().as_str())));
    for (label, owner) in [
        (label.as_str(), "site"),
        (label.as_str(), "a"),
        ("web", "site a"),
        ("web (being made by bootflip site a x)", "site a"),
    ] {
        assert_eq!(read_making_label(label, owner), None, "{label}");
    }
}

#[test]
fn ranges_sizes_and_prefixes_are_read() {
    let shown = |text: &str| names(text).map_or_else(|problem| problem, |names| names.join(" "));
    for (text, expected) in [
        ("web", "web"),
        ("web-{08..10}", "web-08 web-09 web-10"),
        ("{1..2}-{a", "`-{a`: a range is written as {01..20}"),
        ("r{1..2}n{1..2}", "r1n1 r1n2 r2n1 r2n2"),
        ("w{2..1}", "`w{2..1}`: a range is written as {01..20}"),
        ("w{+1..2}", "`w{+1..2}`: a range is written as {01..20}"),
        ("w{1..2000}", "`w{1..2000}` names 2000 VMs; at most 1000 are made at once"),
        ("w{0..4294967295}", "`w{0..4294967295}` names 4294967296 VMs; at most 1000 are made at once"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
    for (text, expected) in [
        ("2GiB", Some(2 << 30)),
        ("512 MiB", Some(512 << 20)),
        ("7", Some(7)),
        ("1T", Some(1 << 40)),
        ("0", None),
        ("2GB", None),
        ("", None),
        ("9999999999G", None),
        ("-1", None),
    ] {
        assert_eq!(size(text).ok(), expected, "{text}");
    }
    for (text, expected) in [
        ("02:16:3e", true),
        ("0A-00-ff", true),
        ("00:16:3e", false),
        ("03:16:3e", false),
        ("02:16", false),
        ("2:16:3e", false),
    ] {
        assert_eq!(mac_prefix(text).is_ok(), expected, "{text}");
    }
}

#[test]
fn lists_are_read_with_what_the_options_say_for_missing_cells() {
    let read = |text: &str| from_csv("f.csv", text, &defaults());
    let wishes =
        read("name,memory,VCPUs,mac\n# no\nweb-{1..2},2GiB,2,\n\"db\",,,02:00:00:00:00:01\n").unwrap();
    let shown: Vec<String> = wishes
        .iter()
        .map(|wish| {
            format!(
                "{} {} {:?} {:?} {:?} {}",
                wish.place, wish.name, wish.memory, wish.vcpus, wish.mac, wish.tag
            )
        })
        .collect();
    let expected = [
        "f.csv:3 web-1 Some(2147483648) Some(2) None bootflip",
        "f.csv:3 web-2 Some(2147483648) Some(2) None bootflip",
        "f.csv:4 db None None Some(02:00:00:00:00:01) bootflip",
    ];
    assert_eq!(shown, expected);
    for (text, problem) in [
        ("", "f.csv: it names no VM"),
        ("name\n", "f.csv: it names no VM"),
        ("name,colour\n", "f.csv:1: no column `colour`"),
        ("tag\nx\n", "f.csv:1: the first line names the columns, and one must be `name`"),
        ("name,vcpus\nx,0\n", "f.csv:2: vcpus: `0` is not a number from 1 on"),
        ("name,mac\nx{1..2},02:00:00:00:00:01\n", "f.csv:2: one MAC address for 2 VMs"),
        ("name,mac\n,\nx,y,z\n", "f.csv:2: a VM needs a name f.csv:3: 3 cells, but 2 columns"),
    ] {
        assert_eq!(read(text).unwrap_err().join(" ").split("; there").next(), Some(problem), "{text}");
    }
    let nothing = from_csv("f.csv", "name\nx\n", &Defaults::default()).unwrap_err();
    assert_eq!(nothing.len(), 2, "{nothing:?}");
}

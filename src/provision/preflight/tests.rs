//! Can the pool take it as HVM, and start it as PV again? Everything else of E0 is tried against whole pools.

use super::*;
use crate::{
    config::{BootFiles, Fetch},
    provision::tests::{job, observed},
};

const GIB: u64 = 1 << 30;

fn host(name: &str) -> HostRecord {
    HostRecord {
        reference: format!("ref-{name}"),
        uuid: name.to_owned(),
        name_label: name.to_owned(),
        enabled: true,
        address: "10.0.0.1".to_owned(),
        api_version: (2, 15),
        product_version: Some("8.2.1".to_owned()),
        product_brand: Some("XCP-ng".to_owned()),
        xen: XenVersion::parse("4.13.4-9.29.1"),
        capabilities: ["xen-3.0-x86_64", "xen-3.0-x86_32p", "hvm-3.0-x86_64", ""].map(str::to_owned).to_vec(),
        metrics: format!("metrics-{name}"),
    }
}

fn facts() -> Facts {
    let seen = observed(PowerState::Halted, "19700101T00:00:00Z");
    let hosts = vec![host("xs-1"), host("xs-2")];
    Facts {
        vm: seen.vm,
        metrics: seen.metrics,
        vbds: vec![],
        vifs: Arc::default(),
        pool: PoolRecord {
            reference: "ref-pool".to_owned(),
            uuid: "pool".to_owned(),
            name_label: String::new(),
            master: "ref-xs-1".to_owned(),
            ha_enabled: false,
            default_sr: String::new(),
        },
        host_metrics: hosts
            .iter()
            .map(|host| HostMetrics { reference: host.metrics.clone(), memory_total: 8 * GIB })
            .collect(),
        possible_hosts: hosts.iter().map(|host| host.reference.clone()).collect(),
        hosts,
        free_memory: BTreeMap::new(),
    }
}

fn newest(host: &mut HostRecord) {
    host.api_version = (2, 21);
    host.product_version = Some("8.3.0".to_owned());
}

fn without(host: &mut HostRecord, kind: &str) {
    host.capabilities.retain(|capability| !capability.starts_with(kind));
}

fn set(facts: &mut Facts, key: &str, value: &str) {
    facts.vm.other_config.insert(key.to_owned(), value.to_owned());
}

/// What the judge says of these facts, with a profile that installs this kernel.
fn words(judge: fn(&Job, &Facts) -> Result<(), Refusal>, kernel: &str, change: fn(&mut Facts)) -> String {
    let mut job = job("j1", 0);
    job.profile.boot = Some(BootFiles {
        kernel: kernel.to_owned(),
        initrd: vec![],
        args: String::new(),
        answer: None,
        fetch: Fetch::Http,
        seed: Vec::new(),
        files: Vec::new(),
    });
    let mut facts = facts();
    change(&mut facts);
    judge(&job, &facts).map_or_else(|(reason, text)| format!("{reason}: {text}"), |()| String::new())
}

#[test]
fn pool_that_cannot_start_pv_is_told_with_the_way_out() {
    type Row = (&'static str, fn(&mut Facts), &'static str);
    let rows: [Row; 16] = [
        ("x/vmlinuz", |_| {}, ""),
        ("x/vmlinuz", |f| newest(&mut f.hosts[1]), "host xs-2 (XCP-ng 8.3.0 (API 2.21)) cannot start PV"),
        ("x/vmlinuz", |f| f.hosts.iter_mut().for_each(newest), "host xs-1"),
        (
            "x/vmlinuz",
            |f| {
                newest(&mut f.hosts[0]);
                f.vm.domain_type = Some("pv_in_pvh".to_owned());
            },
            "cannot start PV guests any more",
        ),
        (
            "x/vmlinuz",
            |f| {
                newest(&mut f.hosts[0]);
                f.vm.domain_type = Some("pvh".to_owned());
            },
            "",
        ),
        (
            "x/vmlinuz",
            |f| f.hosts.iter_mut().for_each(|host| without(host, "xen-")),
            "no enabled host takes PV",
        ),
        ("x/vmlinuz", |f| without(&mut f.hosts[0], "xen-"), ""),
        ("x/vmlinuz", no_pv32, ""),
        ("debian/i386/linux", no_pv32, "the profile's kernel is debian/i386/linux"),
        ("debian/i386/linux", |f| without(&mut f.hosts[0], "xen-3.0-x86_32p"), ""),
        (
            "debian/linux",
            |f| {
                no_pv32(f);
                set(f, "install-arch", "i386");
            },
            "its install-arch is i386",
        ),
        // The new system counts before the old one.
        (
            "debian/amd64/linux",
            |f| {
                no_pv32(f);
                set(f, "install-arch", "i386");
                set(f, "base_template_name", "Debian Wheezy 7.0 (32-bit)");
            },
            "",
        ),
        (
            "linux",
            |f| {
                no_pv32(f);
                set(f, "install-arch", "x86_64");
                set(f, "base_template_name", "Debian Wheezy 7.0 (32-bit)");
            },
            "",
        ),
        (
            "linux",
            |f| {
                no_pv32(f);
                set(f, "base_template_name", "Debian Wheezy 7.0 (32-bit)");
            },
            "it was made from \"Debian Wheezy 7.0 (32-bit)\", so it is taken for a 32-bit guest",
        ),
        (
            "multi-i386-amd64/linux",
            |f| {
                no_pv32(f);
                set(f, "base_template_name", "Debian Wheezy 7.0 (64-bit)");
            },
            "",
        ),
        // Only a host in maintenance still takes 32 bits.
        (
            "i686/linux",
            |f| {
                without(&mut f.hosts[0], "xen-3.0-x86_32p");
                f.hosts[1].enabled = false;
            },
            "no record says how wide a guest is",
        ),
    ];
    for (at, (kernel, change, wanted)) in rows.into_iter().enumerate() {
        let words = words(boots_pv, kernel, change);
        assert_eq!(words.is_empty(), wanted.is_empty(), "row {at}: {words}");
        let told = words.contains(wanted) && words.contains("--stay-hvm");
        assert!(wanted.is_empty() || told && words.starts_with("pv-unsupported: "), "row {at}: {words}");
    }
}

fn no_pv32(facts: &mut Facts) {
    facts.hosts.iter_mut().for_each(|host| without(host, "xen-3.0-x86_32p"));
}

fn frees(facts: &mut Facts, free: [u64; 2]) {
    facts.free_memory = facts.hosts.iter().map(|host| host.reference.clone()).zip(free).collect();
}

#[test]
fn host_must_have_vt_and_memory_for_the_hvm_phase() {
    // A guest of 1 GiB takes 1,040 MiB as HVM.
    const FITS: u64 = 1040 << 20;
    type Row = (fn(&mut Facts), &'static str);
    let rows: [Row; 13] = [
        (|_| {}, ""),
        (|f| f.hosts.iter_mut().for_each(|host| host.enabled = false), "no host of the pool is enabled"),
        (|f| f.hosts.iter_mut().for_each(|host| without(host, "hvm-")), "switch VT-x or AMD-V on"),
        (|f| without(&mut f.hosts[0], "hvm-"), ""),
        (
            |f| {
                without(&mut f.hosts[0], "hvm-");
                f.hosts[1].enabled = false;
            },
            "switch VT-x or AMD-V on",
        ),
        (|f| f.possible_hosts.clear(), "no host can start it as HVM with 1024 MiB"),
        (
            |f| {
                f.vm.power_state = PowerState::Running;
                f.possible_hosts.clear();
            },
            "",
        ),
        (
            |f| f.host_metrics.iter_mut().for_each(|host| host.memory_total = GIB),
            "no host can start it as HVM",
        ),
        (|f| frees(f, [FITS, 0]), ""),
        (|f| frees(f, [0, FITS]), ""),
        (
            |f| frees(f, [FITS - 1, GIB]),
            "needs 1040 MiB with Xen's share, and the roomiest host has 1039 MiB free",
        ),
        // It may begin small, and what is not known does not speak against it.
        (
            |f| {
                f.vm.memory_dynamic_min = GIB / 2;
                frees(f, [FITS - GIB / 2, 0]);
            },
            "",
        ),
        (|f| f.free_memory.extend([("ref-xs-1".to_owned(), 0)]), ""),
    ];
    for (at, (change, wanted)) in rows.into_iter().enumerate() {
        let words = words(|_, facts| has_host(facts), "x", change);
        assert_eq!(words.is_empty(), wanted.is_empty(), "row {at}: {words}");
        assert!(words.contains(wanted), "row {at}: {words}");
    }
}

#[test]
fn only_hosts_that_could_start_it_are_asked_for_their_memory() {
    let asked = |change: fn(&mut Facts)| {
        let mut facts = facts();
        change(&mut facts);
        let hosts = hosts_to_ask(&facts.vm, &facts.hosts, &facts.possible_hosts);
        hosts.map(|host| host.name_label.as_str()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(asked(|_| {}), "xs-1 xs-2");
    assert_eq!(asked(|f| drop(f.possible_hosts.remove(0))), "xs-2");
    assert_eq!(asked(|f| f.hosts[1].enabled = false), "xs-1");
    assert_eq!(asked(|f| without(&mut f.hosts[0], "hvm-")), "xs-2");
    assert_eq!(asked(|f| f.vm.power_state = PowerState::Running), "");
}

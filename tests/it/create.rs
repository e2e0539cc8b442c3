//! VMs are made from templates: as asked, once, and with nothing left behind when a call fails, a reply gets lost or
//! the command is killed half-way.

use std::collections::BTreeMap;

use bootflip::{
    sim::{
        faults::{Fault, FaultKind, Trigger},
        pool::VmSpec,
    },
    xen::{Failure, Method, Value},
};

use crate::common::site::{Plan, Ran, Site, hold, vm};

const NETWORK: &str = "Pool-wide network associated with eth0";
const STOCK: &str = "Debian Wheezy 7.0 (64-bit)";

fn stock() -> VmSpec {
    VmSpec::stock_template(STOCK, 8 << 30)
}

/// A template that was made from a VM that ran, and brings its disk and NIC.
fn golden() -> VmSpec {
    VmSpec { template: true, ever_ran: true, pv_args: "console=hvc0 quiet".to_owned(), ..vm("golden", 7) }
}

fn site(vms: Vec<VmSpec>) -> Site {
    Site::new(Plan { boot: false, ..Plan::of(vms) })
}

/// All records of a class, by reference.
fn records(site: &Site, method: Method) -> BTreeMap<String, Value> {
    match site.pool.with(|pool, now| pool.call_trusted(now, method, &[])).unwrap() {
        Value::Struct(all) => all,
        other => panic!("{other:?}"),
    }
}

fn record(site: &Site, method: Method, reference: &str) -> Value {
    site.pool.with(|pool, now| pool.call_trusted(now, method, &[Value::string(reference)])).unwrap()
}

fn text<'v>(record: &'v Value, field: &str) -> &'v str {
    record.get(field).and_then(Value::as_str).unwrap()
}

fn list(record: &Value, field: &str) -> Vec<String> {
    let Some(Value::Array(items)) = record.get(field) else { panic!("{field}") };
    items.iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

/// The labels of all VMs, and how many disks and NICs there are.
fn census(site: &Site) -> (Vec<String>, usize, usize) {
    let vms = records(site, Method::VmGetAllRecords);
    let mut labels: Vec<String> = vms.values().map(|vm| text(vm, "name_label").to_owned()).collect();
    labels.sort();
    let srs = records(site, Method::SrGetAllRecords);
    let disks = srs.values().map(|sr| list(sr, "VDIs").len()).sum();
    (labels, disks, records(site, Method::VifGetAllRecords).len())
}

/// What `census` says once this VM is there too.
fn with_one_more(
    (mut labels, disks, nics): (Vec<String>, usize, usize),
    name: &str,
) -> (Vec<String>, usize, usize) {
    labels.push(name.to_owned());
    labels.sort();
    (labels, disks + 1, nics + 1)
}

fn order<'a>(template: &'a str, name: &'a str) -> Vec<&'a str> {
    let sizes = ["--memory", "2GiB", "--vcpus", "2", "--yes"];
    [&["vm", "create", "--template", template, "--name", name, "--network", NETWORK][..], &sizes].concat()
}

async fn create(site: &Site, template: &str, name: &str) -> Ran {
    site.run(&order(template, name)).await
}

fn vm_named(site: &Site, name: &str) -> Value {
    let all = records(site, Method::VmGetAllRecords);
    all.into_values().find(|vm| text(vm, "name_label") == name).unwrap_or_else(|| panic!("no {name}"))
}

/// A VM as an installation wants it.
#[track_caller]
fn is_as_asked(site: &Site, name: &str, disk: u64) -> Value {
    let vm = vm_named(site, name);
    assert_eq!(vm.get("is_a_template"), Some(&Value::Bool(false)));
    assert_eq!(text(&vm, "PV_bootloader"), "pygrub");
    for limit in ["memory_static_max", "memory_dynamic_min", "memory_dynamic_max"] {
        assert_eq!(text(&vm, limit), (2_u64 << 30).to_string(), "{limit}");
    }
    assert_eq!((text(&vm, "VCPUs_max"), text(&vm, "VCPUs_at_startup")), ("2", "2"));
    assert_eq!(list(&vm, "tags"), ["bootflip"]);
    let drives = list(&vm, "VBDs");
    let [drive] = drives.as_slice() else { panic!("{drives:?}") };
    let drive = record(site, Method::VbdGetRecord, drive);
    assert_eq!((drive.get("bootable"), text(&drive, "mode")), (Some(&Value::Bool(true)), "RW"));
    assert_eq!(
        text(&record(site, Method::VdiGetRecord, text(&drive, "VDI")), "virtual_size"),
        disk.to_string()
    );
    let nics = list(&vm, "VIFs");
    let [nic] = nics.as_slice() else { panic!("{nics:?}") };
    let nic = record(site, Method::VifGetRecord, nic);
    assert!(text(&nic, "MAC").starts_with("02:16:3e:") && text(&nic, "device") == "0", "{nic:?}");
    vm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_template_becomes_the_vms_of_a_range_once() {
    let site = site(vec![stock()]);
    let mut line = order(STOCK, "web-{08..10}");
    line.extend(["--disk", "20GiB"]);
    let mut plan = line.clone();
    plan.push("--plan");
    let before = census(&site);
    let planned = site.run(&plan).await.ended(0);
    planned.says("web-09  Debian Wheezy 7.0 (64-bit)");
    planned.says("20480 MiB  2048 MiB  2");
    assert_eq!(census(&site), before);

    let made = site.run(&line).await.ended(0);
    println!("{}{}", planned.out, made.out);
    for name in ["web-08", "web-09", "web-10"] {
        let vm = is_as_asked(&site, name, 20 << 30);
        assert_eq!(text(&vm, "PV_args"), "console=hvc0");
        let Some(Value::Struct(config)) = vm.get("other_config") else { panic!() };
        assert!(config.contains_key("bootflip:created") && !config.contains_key("disks"), "{config:?}");
    }
    let after = census(&site);
    site.run(&line).await.ended(0).says("existing");
    assert_eq!(census(&site), after);
    // Others of the same names are not these.
    create(&site, STOCK, "web-08").await.ended(3).says("the pool has a VM of this name");
    let clash = site.run(&[&line[..], &["--name", "web-{10..11}"]].concat()).await.ended(3);
    clash.says("web-10 is named twice");
    clash.says("nothing was made");
    assert_eq!(census(&site), after);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_with_a_disk_is_cloned_or_copied_to_another_sr() {
    let site = site(vec![golden()]);
    site.pool.with(|pool, _| pool.add_sr("fast", 64 << 30));
    create(&site, "golden", "a").await.ended(0);
    let vm = is_as_asked(&site, "a", 8 << 30);
    assert_eq!(text(&vm, "PV_args"), "console=hvc0 quiet");
    assert_eq!((site.calls("Async.VM.clone"), site.calls("Async.VM.copy")), (1, 0));
    let mut line = order("golden", "b");
    line.extend(["--sr", "fast"]);
    site.run(&line).await.ended(0);
    is_as_asked(&site, "b", 8 << 30);
    assert_eq!((site.calls("Async.VM.clone"), site.calls("Async.VM.copy")), (1, 1));
}

/// Every message that making a VM of [`STOCK`] sends.
const STEPS: [&str; 11] = [
    "VM.clone",
    "VM.add_to_other_config",
    "VM.remove_from_other_config",
    "VM.set_PV_bootloader",
    "VM.set_memory_limits",
    "VM.set_VCPUs_max",
    "VM.set_VCPUs_at_startup",
    "VM.add_tags",
    "VM.provision",
    "VIF.create",
    "VM.set_name_label",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_leaves_nothing_behind() {
    let site = site(vec![stock()]);
    let before = census(&site);
    for method in STEPS {
        let failure = Failure::new("SR_BACKEND_FAILURE_44", &["", "no space", ""]);
        let fault =
            Fault { name: method.into(), when: Trigger::first(method), kind: FaultKind::Fail(failure) };
        site.sim.add_fault(fault);
        create(&site, STOCK, "web").await.ended(1).says("SR_BACKEND_FAILURE_44");
        assert_eq!(census(&site), before, "{method}");
    }
    // Nor one that fails late, with lost replies while it is cleared away.
    for (method, kind) in [
        ("VDI.destroy", FaultKind::LoseAfter),
        ("VM.destroy", FaultKind::LoseAfter),
        ("VM.destroy", FaultKind::LoseBefore),
    ] {
        let name = format!("{method} {kind:?}");
        site.sim.add_fault(Fault { name, when: Trigger::first(method), kind });
    }
    let failure = Failure::new("MAC_INVALID", &["x"]);
    site.sim.add_fault(Fault {
        name: "late".into(),
        when: Trigger::first("VIF.create"),
        kind: FaultKind::Fail(failure),
    });
    create(&site, STOCK, "web").await.ended(1).says("MAC_INVALID");
    assert_eq!(census(&site), before);
    assert!(site.sim.tally().iter().all(|tally| tally.fired == tally.planned), "{:?}", site.sim.tally());
    create(&site, STOCK, "web").await.ended(0);
    assert_eq!(census(&site), with_one_more(before, "web"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_looked_for_and_nothing_is_made_twice() {
    let site = site(vec![stock()]);
    for (at, method) in STEPS.into_iter().enumerate() {
        for (how, kind) in [("before", FaultKind::LoseBefore), ("after", FaultKind::LoseAfter)] {
            let before = census(&site);
            let name = format!("web-{at}-{how}");
            site.sim.add_fault(Fault { name: name.clone(), when: Trigger::first(method), kind });
            create(&site, STOCK, &name).await.ended(0);
            assert_eq!(census(&site), with_one_more(before, &name), "{method} {how}");
            is_as_asked(&site, &name, 8 << 30);
        }
    }
    assert!(site.sim.tally().iter().all(|tally| tally.fired == tally.planned), "{:?}", site.sim.tally());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_run_is_cleared_away_by_the_next() {
    for method in STEPS {
        let site = site(vec![stock()]);
        let before = census(&site);
        site.sim.add_fault(hold(method, 1, FaultKind::HoldReply));
        let mut killed = site.command(&order(STOCK, "web")).spawn().unwrap();
        site.fired(crate::common::site::HELD).await;
        // A second run keeps away from the first one's work.
        create(&site, STOCK, "web").await.ended(75).says("is making VMs");
        killed.kill().await.unwrap();
        site.sim.release(crate::common::site::HELD);
        // A clone that the pool is still about is there once its task has ended.
        let made = ["VM.clone", "VM.provision"].contains(&method);
        while made
            && site.pool.with(|pool, _| {
                pool.log().iter().any(|call| call.method.ends_with(method) && call.task.is_none())
            })
        {
            tokio::task::yield_now().await;
        }
        let again = create(&site, STOCK, "web").await.ended(0);
        again.says(if method == "VM.set_name_label" {
            "existing"
        } else {
            "half-made web of an earlier run"
        });
        assert_eq!(census(&site), with_one_more(before, "web"), "{method}");
        is_as_asked(&site, "web", 8 << 30);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_fail_half_way_is_refused_first() {
    let hvm =
        VmSpec { name: "windows".into(), policy: "BIOS order".into(), template: true, ..VmSpec::default() };
    let bare =
        VmSpec { name: "bare".into(), template: true, disks: vec![], macs: vec![], ..VmSpec::default() };
    let site = site(vec![stock(), golden(), hvm, bare, vm("web", 1), stock_twin(), stock_twin()]);
    site.pool.with(|pool, _| pool.add_sr("small", 1 << 30));
    let before = census(&site);
    let rows: [(&[&str], &str); 10] = [
        (&["--template", "none"], "the pool has no template \"none\""),
        (&["--template", "web"], "is a VM and no template"),
        (&["--template", "twin"], "2 templates have the name \"twin\"; name one by its uuid"),
        (&["--template", "windows"], "is HVM"),
        (&["--template", "bare"], "say how large with --disk"),
        (&["--template", "golden", "--disk", "9GiB"], "brings a disk of its own"),
        (&["--network", "none"], "the pool has no network \"none\""),
        (&["--sr", "none"], "the pool has no SR \"none\""),
        (&["--sr", "small"], "SR \"small\" has 1024 MiB free, and the new disks need 16384 MiB"),
        (&["--memory", "512MiB"], "512 MiB of memory are below the least that template"),
    ];
    for (options, words) in rows {
        let mut line = vec!["vm", "create", "--name", "new-{1..2}", "--yes"];
        let given = |option: &str| options.contains(&option);
        for usual in [["--template", STOCK], ["--network", NETWORK]] {
            if !given(usual[0]) {
                line.extend(usual);
            }
        }
        line.extend(options);
        site.run(&line).await.ended(3).says(words);
        assert_eq!(census(&site), before, "{options:?}");
    }
}

fn stock_twin() -> VmSpec {
    VmSpec { name: "twin".to_owned(), ..stock() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_says_what_is_wrong_by_file_and_line() {
    let site = site(vec![stock()]);
    let list = site.path("fleet.csv");
    let shown = list.display().to_string();
    let line = ["vm", "create", "--from", &shown, "--template", STOCK, "--network", NETWORK, "--json"];
    std::fs::write(&list, "name;memory;mac\nweb-1;2 XB;\n\nweb-2;;02:16:3e:00:00\n").unwrap();
    let bad = site.run(&line).await.ended(2);
    bad.says("fleet.csv:2: memory: `2 XB` is not a size");
    bad.says("fleet.csv:4: mac:");
    std::fs::write(&list, "name,memory,mac,tag\nweb-1,1536MiB,,db\nweb-2,,02:aa:00:00:00:01,\n").unwrap();
    site.run(&line).await.ended(2).says("2 VMs would be made and nobody can be asked here; say --yes");
    let made = site.run(&[&line[..], &["--yes"]].concat()).await.ended(0).json();
    assert_eq!((&made["vms"][1]["mac"], &made["ok"]), (&"02:aa:00:00:00:01".into(), &true.into()), "{made}");
    assert_eq!(list_of(&site, "web-1", "tags"), ["db"]);
    assert_eq!(text(&vm_named(&site, "web-1"), "memory_static_max"), (1536_u64 << 20).to_string());
}

fn list_of(site: &Site, name: &str, field: &str) -> Vec<String> {
    list(&vm_named(site, name), field)
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_are_made_and_installed_by_one_command() {
    let later = vec!["web-1".to_owned(), "web-2".to_owned()];
    let mut site = Site::new(Plan { later, ..Plan::of(vec![golden()]) });
    let line = [
        "deploy",
        "--create",
        "--template",
        "golden",
        "--name",
        "web-{1..2}",
        "--network",
        NETWORK,
        "-p",
        "mini",
        "--yes",
        "--wait",
        "--json",
    ];
    site.run(&line).await.ended(1).says("no server answers");
    site.serve().await;
    site.run(&["deploy", "web-1", "--network", NETWORK, "-p", "mini"]).await.ended(2).says("need --create");
    let answer = site.run(&line).await.ended(0).json();
    let states: Vec<_> = answer["jobs"].as_array().unwrap().iter().map(|job| &job["state"]).collect();
    assert_eq!(states, ["succeeded", "succeeded"], "{answer}");
    assert_eq!(answer["created"].as_array().unwrap().len(), 2);
    for name in ["web-1", "web-2"] {
        let truth = site.truth(name);
        assert_eq!((truth.hvm_starts, truth.pv_starts, truth.power_state.as_str()), (1, 1, "Running"));
    }
    // It ran now: that it was made by us protects it no less.
    site.run(&["deploy", "web-1", "-p", "mini", "--plan"]).await.ended(3).says("has-run");
}

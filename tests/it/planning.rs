//! `deploy --plan`: what would happen to each VM, what hosts can take, which files would be served; and that nothing
//! is touched. Places on hosts, as jobs wait for them.

use std::{collections::BTreeSet, time::Duration};

use bootflip::sim::{
    pool::{Caller, HostSpec, Pool, Release, VmSpec},
    world::World,
};
use sha2::{Digest, Sha256};

use crate::{
    common::site::{Plan, Site, vm},
    xen::releases::cycles,
};

const GIB: u64 = 1 << 30;

/// A profile whose kernel is not there.
const BROKEN: &str = r#"
[profile.broken]
kernel = "none/vmlinuz"
args = "url={{ report_url }}"
[limits]
installs_per_host = 2
"#;

async fn planned() -> Site {
    let vms = vec![
        vm("web-1", 1),
        vm("web-2", 2),
        vm("web-3", 3),
        VmSpec { memory: 3 * GIB, ..vm("web-4", 4) },
        VmSpec { running: true, ever_ran: true, ..vm("old", 5) },
    ];
    let mut site = Site::new(Plan { more: BROKEN.to_owned(), ..Plan::of(vms) });
    site.pool.with(|pool, now| {
        pool.change_host(now, "127.0.0.1", |host| host.memory = 8 * GIB);
        pool.change_host(now, "127.0.0.2", |host| host.memory = 2 * GIB);
    });
    site.serve().await;
    site.until_known(5).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_tells_disks_refusals_hosts_and_files_and_touches_nothing() {
    let site = planned().await;
    let truths = |pool: &mut Pool, _| pool.uuids().iter().map(|uuid| pool.truth(uuid)).collect::<Vec<_>>();
    let before = site.pool.with(truths);
    let calls = site.pool.with(|pool, _| pool.log().len());
    let order = ["deploy", "name~web-*", "old", "-p", "mini", "--plan"];
    let text = site.run(&order).await.ended(3);
    println!("{}", text.out);
    text.says("erases disk 0 ");
    text.says("has-run: it is running");
    text.says("1040 MiB as HVM on xs-1 or xs-2");
    text.says("3104 MiB as HVM on xs-1");
    text.says("Pool main: 3 of 4 VMs at once (limits: 4 a pool, 2 a host)");
    let json = site.run(&[&order[..], &["--json"]].concat()).await.ended(3).json();
    let hosts: Vec<_> = json["pools"][0]["hosts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|host| {
            (host["name"].as_str().unwrap(), host["memory"].as_u64().unwrap() / GIB, &host["at_once"])
        })
        .map(|(name, memory, at_once)| format!("{name} {memory} GiB: {at_once}"))
        .collect();
    assert_eq!(hosts, ["xs-1 8 GiB: 2", "xs-2 2 GiB: 1"]);
    for file in json["files"].as_array().unwrap() {
        let path = file["path"].as_str().unwrap();
        if file["role"] != "answer" {
            let bytes = std::fs::read(path).unwrap();
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!((&file["bytes"], &file["sha256"]), (&bytes.len().into(), &digest.into()), "{path}");
        }
        assert_eq!(file["problem"], serde_json::Value::Null, "{path}");
        text.says(path);
        text.says(file["sha256"].as_str().unwrap());
    }
    let roles: Vec<&str> =
        json["files"].as_array().unwrap().iter().map(|file| file["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["kernel", "initrd", "answer", "loader"]);

    let sent: BTreeSet<String> = site.pool.with(|pool, _| {
        let ours = pool.log()[calls..].iter().filter(|call| call.caller == Caller::Client);
        ours.map(|call| call.method.clone()).collect()
    });
    let reads = |method: &String| {
        method.contains(".get_") || method == "host.compute_free_memory" || method == "event.from"
    };
    assert_eq!(sent.into_iter().filter(|method| !reads(method)).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(site.pool.with(truths), before);
    assert_eq!(site.run(&["jobs", "--json"]).await.ended(0).json(), serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_names_the_file_that_is_not_there() {
    let site = planned().await;
    let text = site.run(&["deploy", "web-1", "-p", "broken", "--plan"]).await.ended(3);
    text.says("not-servable: boot file");
    let json = site.run(&["deploy", "web-1", "-p", "broken", "--plan", "--json"]).await.ended(3).json();
    let kernel = &json["files"][0];
    assert_eq!((&kernel["role"], &kernel["bytes"]), (&"kernel".into(), &serde_json::Value::Null));
    assert!(kernel["problem"].as_str().unwrap().contains("none/vmlinuz cannot be opened"), "{kernel}");
    assert_eq!(json["pools"], serde_json::Value::Null, "no VM is ready, and so no host is asked");
}

/// How many VMs were under way at once at most, small ones and large ones.
fn most_at_once(world: &mut World) -> (usize, usize) {
    let mut most = (0, 0);
    for _ in 0..40_000 {
        world.run(Duration::from_secs(1));
        let jobs = world.jobs();
        let under_way = |large: bool| {
            jobs.iter().filter(|job| job.slot && job.vm_name.starts_with("large") == large).count()
        };
        most = (most.0.max(under_way(false)), most.1.max(under_way(true)));
        if world.all_ended() {
            break;
        }
    }
    let unfinished: Vec<_> = world.jobs().into_iter().filter(|job| job.reason.is_some()).collect();
    assert!(world.all_ended() && unfinished.is_empty(), "{unfinished:#?}");
    most
}

#[test]
fn a_host_takes_no_more_installations_than_it_may() {
    let large =
        |number: u8| VmSpec { name: format!("large-{number}"), memory: 6 * GIB, ..cycles::vm(100 + number) };
    for (per_host, expected) in [(1, (2, 1)), (2, (4, 2)), (u32::MAX, (4, 4))] {
        // Large ones first, so that they would take every place if they were let.
        let vms: Vec<VmSpec> = (1..=5).map(large).chain((1..=5).map(cycles::vm)).collect();
        let mut world = cycles::world(Release::V8_2, vms);
        let now = world.now();
        world.with(|pool, _, _, _| {
            let room = |memory: u64| move |host: &mut HostSpec| host.memory = memory;
            pool.change_host(now, "127.0.0.1", room(64 * GIB));
            pool.change_host(now, "127.0.0.2", room(5 * GIB));
        });
        world.limit_per_host(per_host);
        let (small, large) = most_at_once(&mut world);
        println!("{per_host} a host: {small} small and {large} large ones at once at most");
        assert!(small <= expected.0 && large <= expected.1, "{per_host} a host: {small} and {large}");
        assert_eq!(large, expected.1, "{per_host} a host");
    }
}

//! The whole cycle on the guests of real databases, and where VMs stay HVM.

use std::{collections::BTreeMap, time::Duration};

use bootflip::{
    config::Completion,
    provision::{
        Reason, State,
        executor::Decisions,
        job::{Evidence, Job, Options},
    },
    sim::{
        pool::{DiskKind, DiskSpec, Pool, Release, VmSpec, VmTruth},
        world::{BEGINNING, Downtime, Setup, World, guest::Behaviour},
    },
};

use crate::{common::reference::reference_or_skip, recovery::profile};

const FILES: [&str; 6] = [
    "boston-db.json",
    "cowley-db.json",
    "state.json",
    "state3.json",
    "tampa-db-inc-snapshots.json",
    "xapidb-app.json",
];

/// Installs these VMs of the pool, one after the other has its slot, and says how that went.
fn install(pool: Pool, uuids: &[String], options: &Options) -> (Vec<Job>, Vec<VmTruth>) {
    let setup = Setup {
        pool,
        vms: vec![],
        installs: 2,
        allow: vec![],
        decisions: Decisions::default(),
        cut: None,
        storm: None,
        downtime: Downtime::For(Duration::from_secs(1)),
    };
    let job = || Some((profile(Completion::Report), options.clone()));
    let known = uuids.iter().map(|uuid| (uuid.clone(), vec![Behaviour::Installs], job())).collect();
    let mut world = World::of_known(setup, known);
    world.run(Duration::from_secs(6 * 3600));
    let violations = world.with(|pool, ledger, _, _| {
        ledger.check_end(pool);
        std::mem::take(&mut ledger.violations)
    });
    assert_eq!(violations, Vec::new());
    let truths = uuids.iter().filter_map(|uuid| world.with(|pool, _, _, _| pool.truth(uuid))).collect();
    (world.jobs(), truths)
}

#[test]
fn a_release_without_pv_takes_vms_that_stay_hvm() {
    let mut pool = Pool::new(1, Release::V8_3);
    let fresh = VmSpec { name: "fresh".into(), ..VmSpec::default() };
    let macs = vec!["02:16:3e:00:00:02".parse().unwrap()];
    let ran = VmSpec { name: "ran".into(), macs, ever_ran: true, ..VmSpec::default() };
    let uuids = vec![pool.add_vm(fresh), pool.add_vm(ran)];
    let options = Options { reinstall: true, stay_hvm: true, ..Options::default() };
    let (jobs, truths) = install(pool, &uuids, &options);
    for (job, vm) in jobs.iter().zip(&truths) {
        let ended = (job.state, job.reason, job.evidence);
        assert_eq!(ended, (State::Succeeded, None, Evidence::Hvm), "{}: {}", vm.name, job.detail);
        assert_eq!((vm.hvm_starts, vm.pv_starts), (2, 0), "{}", vm.name);
        assert_eq!(vm.hvm_boot_params.get("order").map(String::as_str), Some("c"), "{}", vm.name);
    }
}

/// What the file says of its VMs.
fn written(file: &str) -> Option<(String, Vec<serde_json::Value>)> {
    let path = reference_or_skip("databases", &format!("data/xapi/{file}"))?;
    let json = std::fs::read_to_string(path).unwrap();
    let written: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vms = written["tables"]["VM"].as_object().unwrap().values().cloned().collect();
    Some((json, vms))
}

/// The file's pool, and its PV guests.
fn load(file: &str) -> Option<(Pool, Vec<VmTruth>)> {
    let (json, vms) = written(file)?;
    let pool = Pool::load(1, file, &json, None).unwrap();
    let is_pv_guest = |vm: &&serde_json::Value| {
        vm["is_a_template"] == false && vm["is_control_domain"] == false && vm["HVM_boot_policy"] == ""
    };
    let guests = vms.iter().filter(is_pv_guest).filter_map(|vm| pool.truth(vm["uuid"].as_str()?)).collect();
    Some((pool, guests))
}

#[test]
fn the_pv_guests_of_real_databases_are_flipped_and_restored() {
    let reinstall = Options { reinstall: true, ..Options::default() };
    let mut all: BTreeMap<&str, u32> = BTreeMap::new();
    for file in FILES {
        let Some((_, guests)) = load(file) else { return };
        for guest in &guests {
            let Some((pool, _)) = load(file) else { return };
            let (jobs, truths) = install(pool, std::slice::from_ref(&guest.uuid), &reinstall);
            let (job, after) = (&jobs[0], &truths[0]);
            let built = (after.hvm_starts - guest.hvm_starts, after.pv_starts - guest.pv_starts);
            let what = match (job.state, job.reason, built) {
                (State::Succeeded, None, (1, 1)) => "flipped and restored",
                (State::Failed, Some(Reason::NoVif), (0, 0)) => "refused: no VIF",
                other => panic!("{file} {}: {other:?} {}", guest.name, job.detail),
            };
            println!("{file} {} ({}): {what}", guest.name, guest.power_state);
            *all.entry(what).or_default() += 1;
        }
    }
    println!("{all:?}");
    assert_eq!(all, [("flipped and restored", 15), ("refused: no VIF", 1)].into());
}

/// The VMs that the file says HA keeps running.
fn always_run(file: &str) -> Vec<String> {
    let vms = written(file).map_or_else(Vec::new, |(_, vms)| vms);
    let kept = vms.iter().filter(|vm| vm["ha_always_run"] == true);
    kept.filter_map(|vm| vm["uuid"].as_str().map(str::to_owned)).collect()
}

#[test]
fn what_must_not_be_touched_in_real_databases_is_refused() {
    let reinstall = Options { reinstall: true, ..Options::default() };
    let extra = |userdevice: &str, kind, read_only| DiskSpec {
        userdevice: userdevice.to_owned(),
        kind,
        read_only,
        ..DiskSpec::default()
    };
    let mut refused: BTreeMap<Reason, u32> = BTreeMap::new();
    let protected = always_run("state3.json");
    for file in FILES {
        let Some((_, guests)) = load(file) else { return };
        for guest in &guests {
            for (disk, reason) in [
                (Some(extra("1", DiskKind::Disk, false)), Reason::WhichDisk),
                (Some(extra("0", DiskKind::Cd, true)), Reason::CdFirst),
                (None, Reason::HaProtected),
            ] {
                let Some((mut pool, _)) = load(file) else { return };
                match &disk {
                    Some(disk) if disk.kind == DiskKind::Cd => {
                        pool.add_disk_before(&guest.uuid, disk).unwrap()
                    }
                    Some(disk) => pool.add_disk(&guest.uuid, disk).unwrap(),
                    None if file == "state3.json" && protected.contains(&guest.uuid) => {
                        pool.set_ha(BEGINNING, true);
                    }
                    None => continue,
                }
                let (jobs, truths) = install(pool, std::slice::from_ref(&guest.uuid), &reinstall);
                if jobs[0].reason == Some(Reason::NoVif) {
                    continue;
                }
                let found = (jobs[0].state, jobs[0].reason);
                assert_eq!(found, (State::Failed, Some(reason)), "{file} {}: {}", guest.name, jobs[0].detail);
                assert_eq!(truths[0].hvm_starts, guest.hvm_starts);
                *refused.entry(reason).or_default() += 1;
            }
        }
    }
    println!("refused: {refused:?}");
    assert_eq!(refused[&Reason::WhichDisk], 15);
    assert_eq!(refused[&Reason::CdFirst], 15);
    assert!(refused[&Reason::HaProtected] > 0, "{refused:?}");
}

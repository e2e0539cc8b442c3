//! What is ordered besides a plain installation: a rescue, canaries, a VM that stays HVM.

use bootflip::{
    provision::{
        job::{Evidence, State},
        reason::Reason,
    },
    sim::{
        faults::{Fault, FaultKind, Trigger},
        guest::{GuestPlan, Mishap, Stage},
    },
    xen::Failure,
};

use crate::common::site::{Plan, Site, quick, vm};

/// Another profile, which boots the same kernel and stays up.
const RESCUE: &str = r#"
[profile.rescue]
kind = "rescue"
kernel = "mini/vmlinuz"
initrd = ["mini/initrd"]
args = "quiet"
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_rescue_boots_once_and_is_put_back_when_it_is_said_to_be_over() {
    let plan = Plan { more: RESCUE.to_owned(), ..Plan::of(vec![vm("web", 1)]) };
    let mut site = Site::new(plan);
    let before = site.truth("web");
    site.serve().await;
    site.run(&["rescue", "web", "-p", "mini"]).await.ended(3).says("installs, and erases a disk");
    let ordered = site.run(&["rescue", "web", "--json"]).await.ended(0).json();
    let id = ordered["vms"][0]["job"].as_str().unwrap().to_owned();
    site.happened.recv().await.expect("its firmware runs");
    site.run(&["jobs", "show", "web"]).await.ended(0).says("jobs finish");
    site.run(&["jobs", "finish", "web"]).await.ended(0);
    let job = site.until_job(&id, "ended", |job| job.is_over()).await;
    assert_eq!((job.state, job.evidence), (State::Succeeded, Evidence::None), "{}", job.detail);
    let after = site.truth("web");
    assert_eq!((after.power_state.as_str(), after.hvm_starts, after.pv_starts), ("Halted", 1, 0));
    assert_eq!(after.claim, None);
    assert_eq!((&after.domain_type, &after.hvm_boot_params), (&before.domain_type, &before.hvm_boot_params));
    site.run(&["jobs", "finish", "web"]).await.ended(3).says("has no effect");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_fails_spares_the_others() {
    let guest = GuestPlan { mishap: Mishap::FailAt(Stage::Base), ..quick() };
    let vms = vec![vm("web-1", 1), vm("web-2", 2), vm("web-3", 3)];
    let mut site = Site::new(Plan { guest, ..Plan::of(vms) });
    site.serve().await;
    let order = ["deploy", "name~web-*", "-p", "mini", "--first", "1", "--yes", "--wait", "--json"];
    let answer = site.run(&order).await.ended(1).json();
    let mut reasons: Vec<&str> =
        answer["jobs"].as_array().unwrap().iter().map(|job| job["reason"].as_str().unwrap()).collect();
    reasons.sort_unstable();
    assert_eq!(reasons, [Reason::InstallerFailed.label(), "wave-stopped", "wave-stopped"]);
    let starts: u32 = ["web-1", "web-2", "web-3"].iter().map(|name| site.truth(name).hvm_starts).sum();
    assert_eq!(starts, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_may_stay_hvm_and_boot_from_its_disk() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    site.serve().await;
    site.run(&["deploy", "web", "-p", "mini", "--stay-hvm", "--yes", "--wait"]).await.ended(0);
    let after = site.truth("web");
    assert_eq!((after.hvm_starts, after.pv_starts, after.power_state.as_str()), (2, 0, "Running"));
    assert_eq!(after.domain_type.as_deref(), Some("hvm"));
    assert_eq!(after.hvm_boot_params.get("order").map(String::as_str), Some("c"));
    assert_eq!(after.claim, None);
    let job = site.run(&["jobs", "show", "web", "--json"]).await.ended(0).json();
    assert_eq!(job["evidence"], "hvm");
}

/// The demo's seed 7 once lost two of eight VMs so: their sessions ended while they were looked at.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_taken_while_sessions_end_and_the_pool_is_busy() {
    let busy = || FaultKind::Fail(Failure::new("HOST_STILL_BOOTING", &[]));
    for (method, kind) in [
        ("VM.get_by_uuid", FaultKind::ExpireSessions),
        ("VBD.get_record", FaultKind::ExpireSessions),
        ("VM.get_possible_hosts", FaultKind::ExpireSessions),
        ("VBD.get_record", busy()),
    ] {
        let mut site = Site::new(Plan::of(vec![vm("web-1", 1), vm("web-2", 2), vm("web-3", 3)]));
        site.serve().await;
        site.sim.add_fault(Fault { name: method.into(), when: Trigger::first(method), kind });
        let order = ["deploy", "name~web-*", "-p", "mini", "--yes", "--json"];
        let answer = site.run(&order).await.ended(0).json();
        let outcomes: Vec<&str> =
            answer["vms"].as_array().unwrap().iter().map(|vm| vm["outcome"].as_str().unwrap()).collect();
        assert_eq!(outcomes, ["created"; 3], "{method}: {answer}");
        assert_eq!(site.sim.tally()[0].fired, 1, "{method} is asked while an order is taken");
    }
}

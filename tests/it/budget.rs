//! How often the pool is called: by a job, by a server that has nothing to do, and by one that knows 500 VMs.

use std::{collections::BTreeMap, time::Duration};

use bootflip::{
    provision::State,
    sim::pool::{Caller, LoggedCall, Release},
};
use tokio::time::{Instant, sleep};

use crate::{
    common::site::{LONG, Plan, Site, vm},
    xen::releases::cycles,
};

/// Calls by their method, the most frequent first.
fn by_method<'c>(calls: impl Iterator<Item = &'c LoggedCall>) -> Vec<(usize, String)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for call in calls.filter(|call| call.caller == Caller::Client) {
        *counts.entry(&call.method).or_default() += 1;
    }
    let mut sorted: Vec<_> = counts.into_iter().map(|(method, count)| (count, method.to_owned())).collect();
    sorted.sort_by(|one, two| two.cmp(one));
    sorted
}

fn shown(counts: &[(usize, String)]) -> String {
    counts.iter().map(|(count, method)| format!("{count} {method}")).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_job_costs_a_known_number_of_calls() {
    for (jobs, most) in [(1, 260), (40, 260)] {
        let mut world = cycles::world(Release::V8_2, (1..=jobs).map(cycles::vm).collect());
        let begun = world.now();
        world.run(Duration::from_secs(24 * 3600));
        assert!(world.jobs().iter().all(|job| job.state == State::Succeeded));
        let ended = world.with(|pool, _, _, _| pool.log().iter().map(|call| call.at).max()).unwrap();
        let counts = world.with(|pool, _, _, _| by_method(pool.log().iter()));
        let total: usize = counts.iter().map(|(count, _)| count).sum();
        let changes: usize =
            counts.iter().filter(|(_, method)| !method.contains(".get_")).map(|(count, _)| count).sum();
        let jobs = usize::from(jobs);
        println!(
            "{jobs} jobs in {} s: {} calls a job, {} of them no reading ({})",
            ended.since(begun).as_secs(),
            total / jobs,
            changes / jobs,
            shown(&counts)
        );
        assert!(total / jobs <= most, "{} calls a job", total / jobs);
    }
}

/// What the server of a pool with 500 VMs asked so far, without logins.
fn asked(site: &Site) -> Vec<(usize, String)> {
    let counts = site.pool.with(|pool, _| by_method(pool.log().iter()));
    counts.into_iter().filter(|(_, method)| !method.starts_with("session.")).collect()
}

async fn server_of_500_vms() -> Site {
    let mut site = Site::new(Plan::of((1..=500).map(|number| vm(&format!("vm-{number}"), number)).collect()));
    site.serve().await;
    site.until_known(500).await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_vms_cost_one_event_stream_and_no_polling_per_vm() {
    let site = server_of_500_vms().await;
    let until = Instant::now() + LONG;
    // The first gives a token; the second waits for what happens.
    while site.calls("event.from") < 2 {
        assert!(Instant::now() < until, "no events: {}", site.log());
        sleep(Duration::from_millis(50)).await;
    }
    let counts = asked(&site);
    println!("from the start until events flow, 500 VMs: {}", shown(&counts));
    let of = |method: &str| counts.iter().find(|(_, known)| known == method).map_or(0, |(count, _)| *count);
    assert_eq!([of("VM.get_all_records"), of("VIF.get_all_records"), of("event.from")], [1, 1, 2]);
    assert!(counts.iter().map(|(count, _)| count).sum::<usize>() <= 8, "{}", shown(&counts));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes"]
async fn an_idle_minute_costs_less_than_ten_calls() {
    const MINUTES: u32 = 2;
    let site = server_of_500_vms().await;
    let before: usize = asked(&site).iter().map(|(count, _)| count).sum();
    sleep(Duration::from_secs(60) * MINUTES).await; // that is what is measured
    let counts = asked(&site);
    let after: usize = counts.iter().map(|(count, _)| count).sum();
    let calls = f64::from(u32::try_from(after - before).unwrap()) / f64::from(MINUTES);
    println!("500 VMs and nothing to do: {calls} calls a minute ({} in all)", shown(&counts));
    assert!(calls < 10.0, "{calls} calls a minute");
}

//! A look at a VM is several reads: what happens between two of them must not be taken for something else.

use std::time::Duration;

use bootflip::sim::faults::{Fault, FaultKind, Trigger};

use super::common::site::{Plan, Site, vm};

/// The VM is read before its start, its metrics behind it: that is no VM that has halted again. For the PV start it
/// would mean that nobody unpauses it.
#[tokio::test]
async fn start_between_two_reads_is_no_halt() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    site.sim.add_fault(Fault {
        name: "slow".to_owned(),
        when: Trigger::first("VM_metrics.get_record").times(1000),
        kind: FaultKind::Delay(Duration::from_millis(400)),
    });
    let before = site.truth("web");
    site.serve().await;
    site.until_known(1).await;
    let job = site.deploy("web").await;
    site.until_installed(&job, &before).await;
}

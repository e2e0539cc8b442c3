//! Evidence for systems that cannot post a report: a TCP port that answers.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};

use bootflip::{
    provision::{
        Reason,
        job::{Evidence, State},
    },
    sim::guest::{GuestPlan, Mishap},
};

use crate::common::site::{Plan, Site, quick, vm};

/// The address that the VM always gets.
const LEASE: Ipv4Addr = Ipv4Addr::new(127, 64, 0, 9);

/// A site whose new systems never report, with a profile that looks at this port.
async fn mute(port: u16) -> Site {
    let guest = GuestPlan { mishap: Mishap::SystemKeepsSilent, ..quick() };
    let mut site = Site::new(Plan { guest, ..Plan::of(vec![vm("web", 1)]) });
    site.reconfigure(|text| {
        text.replace("poll = \"500ms\"", "poll = \"500ms\"\nevidence = \"4s\"")
            .replace("answer = \"mini.j2\"", &format!("answer = \"mini.j2\"\nevidence = \"tcp:{port}\""))
            .replace(
                "netmask = \"255.255.0.0\"",
                &format!(
                    "netmask = \"255.255.0.0\"\nreservations = {{ \"02:16:3e:00:00:01\" = \"{LEASE}\" }}"
                ),
            )
    });
    site.serve().await;
    site
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_answers_is_weak_evidence() {
    let system = TcpListener::bind(SocketAddrV4::new(LEASE, 0)).unwrap();
    let site = mute(system.local_addr().unwrap().port()).await;
    let id = site.deploy("web").await;
    let job = site.until_job(&id, "ended", |job| job.is_over()).await;
    assert_eq!((job.state, job.evidence), (State::Succeeded, Evidence::Weak), "{}", job.detail);
    assert!(system.accept().is_ok(), "it was asked at its own lease");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_does_not_answer_is_none() {
    let port = TcpListener::bind(SocketAddrV4::new(LEASE, 0)).unwrap().local_addr().unwrap().port();
    let site = mute(port).await;
    let id = site.deploy("web").await;
    let job = site.until_job(&id, "ended", |job| job.is_over()).await;
    assert_eq!((job.state, job.reason), (State::Failed, Some(Reason::NoEvidence)), "{}", job.detail);
    assert_eq!(site.truth("web").claim, None);
}

//! Promises that an account of few rights, a hasty operator and a person at the pool put to the test.

use bootflip::{
    provision::job::State,
    secret::Secret,
    sim::pool::{DEFAULT_PASSWORD, DEFAULT_USER, Role},
};

use crate::common::site::{Plan, Site, vm};

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_may_not_sync_the_database_is_enough_for_an_installation() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    let password = Secret::new(DEFAULT_PASSWORD.to_owned());
    site.pool.with(|pool, _| pool.add_account(DEFAULT_USER, password, Role::VmAdmin));
    site.serve().await;
    let id = site.deploy("web").await;
    let job = site.until_job(&id, "ended", |job| job.is_over()).await;
    assert_eq!((job.state, job.reason), (State::Succeeded, None), "{}", job.detail);
}

#[tokio::test(flavor = "multi_thread")]
async fn restore_without_stop_leaves_a_running_installation_alone() {
    let mut site = Site::new(Plan::of(vec![vm("web", 1)]));
    site.serve().await;
    let id = site.deploy("web").await;
    site.until_packages().await;
    for command in [&["restore", "--all"][..], &["restore", "web"]] {
        site.run(command).await.ended(3);
        assert_eq!(site.job(&id).await.state, State::Installing, "{command:?}");
    }
    site.run(&["restore", "web", "--stop"]).await.ended(0);
    assert_eq!(site.job(&id).await.state, State::Cancelled);
}

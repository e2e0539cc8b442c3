//! Tells systemd how the server is, and keeps its watchdog quiet while all is well (sd_notify(3)). A shell.
//!
//! Invariant: without `NOTIFY_SOCKET` nothing is done here, so that a run by hand is as it was. A beat needs a turn of
//! the runtime and the locks of jobs and boot gate: where one of them hangs, systemd starts the server anew, which is
//! as safe as any kill.

use std::{sync::Arc, time::Duration};

use sd_notify::NotifyState;
use tokio_util::sync::CancellationToken;

use super::{desk::Desk, orders::Health};

/// How often the state is told when the watchdog does not want it sooner.
const BEAT: Duration = Duration::from_secs(10);

/// Everything listens; units that wait for us may begin.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The end has begun.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Tells the state again and again until `stop`.
pub async fn beat(desk: Arc<Desk>, stop: CancellationToken) {
    // Half of what the watchdog waits, as sd_watchdog_enabled(3) advises.
    let pause = sd_notify::watchdog_enabled().map_or(BEAT, |limit| (limit / 2).min(BEAT));
    let told = std::env::var_os("NOTIFY_SOCKET").is_some();
    while told && !stop.is_cancelled() {
        let health = desk.health();
        tell(&[NotifyState::Status(&sentence(&health)), NotifyState::Watchdog]);
        stop.run_until_cancelled(tokio::time::sleep(pause)).await;
    }
    stop.cancelled().await;
}

/// What `systemctl status` shows.
fn sentence(health: &Health) -> String {
    let mut text = match health.jobs {
        0 => "no job under way".to_owned(),
        1 => "1 job under way".to_owned(),
        jobs => format!("{jobs} jobs under way"),
    };
    for away in &health.pools_away {
        text.push_str(&format!("; pool {} does not answer", away.pool));
    }
    text
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd was not told how the server is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::orders::PoolAway;

    #[test]
    fn the_sentence_names_pools_that_are_away() {
        let mut health = Health {
            server: "a".to_owned(),
            version: "1".to_owned(),
            jobs: 2,
            machines: 0,
            pools_away: Vec::new(),
            dhcp: Vec::new(),
            syslog: None,
        };
        assert_eq!(sentence(&health), "2 jobs under way");
        health.pools_away.push(PoolAway { pool: "main".to_owned(), problem: "no route".to_owned() });
        assert_eq!(sentence(&health), "2 jobs under way; pool main does not answer");
    }
}

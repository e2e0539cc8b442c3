//! When the server of a lab run is killed and started again. Pure; `run.rs` does it.

use std::time::Duration;

use tokio::time::Instant;

use crate::sim::demo::jobs::JobView;

/// The kills of a run, in their order.
#[derive(Debug, Clone, Default)]
pub struct Kills {
    waiting: Vec<&'static str>,
    planned: u32,
    restart_at: Option<Instant>,
}

/// What is to be done now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// Kill the server: this stage was reported.
    Kill(&'static str),
    /// Start it again.
    Restart,
}

/// So long the server stays away: longer than the 10 s between two tries of a report.
const AWAY: Duration = Duration::from_secs(40);

impl Kills {
    /// One kill at each of these stages; they come in this order.
    pub fn at(stages: &[&'static str]) -> Self {
        let planned = u32::try_from(stages.len()).unwrap_or(u32::MAX);
        Self { waiting: stages.to_vec(), planned, restart_at: None }
    }

    /// How many there were to be.
    pub const fn planned(&self) -> u32 {
        self.planned
    }

    /// The server is away.
    pub const fn is_away(&self) -> bool {
        self.restart_at.is_some()
    }

    /// What is due, by what the jobs have reported.
    pub fn due<'a>(&mut self, now: Instant, mut jobs: impl Iterator<Item = &'a JobView>) -> Option<Deed> {
        match self.restart_at {
            Some(at) if at <= now => {
                self.restart_at = None;
                Some(Deed::Restart)
            }
            Some(_) => None,
            None => {
                let next = *self.waiting.first()?;
                if !jobs.any(|job| job.stages.iter().any(|stage| stage.name == next)) {
                    return None;
                }
                self.waiting.remove(0);
                self.restart_at = Some(now + AWAY);
                Some(Deed::Kill(next))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::demo::document::Timed;

    fn job(stages: &[&str]) -> JobView {
        let stages = stages.iter().map(|name| Timed { name: (*name).to_owned(), seconds: 1.0 }).collect();
        JobView {
            id: "j".to_owned(),
            vm_uuid: "u".to_owned(),
            percent: 0,
            state: "Installing".to_owned(),
            reason: None,
            attempt: 1,
            states: vec![],
            stages,
        }
    }

    #[test]
    fn the_server_is_killed_at_each_stage_once_and_comes_back() {
        let (mut kills, now) = (Kills::at(&["base", "packages"]), Instant::now());
        let mut due =
            |after: u64, stages: &[&str]| kills.due(now + Duration::from_secs(after), [job(stages)].iter());
        assert_eq!(due(0, &["started"]), None);
        assert_eq!(due(1, &["started", "base"]), Some(Deed::Kill("base")));
        assert_eq!(due(2, &["started", "base", "packages"]), None, "it is away");
        assert_eq!(due(60, &["started", "base"]), Some(Deed::Restart));
        assert_eq!(due(61, &["started", "base"]), None);
        assert_eq!(due(62, &["started", "base", "packages"]), Some(Deed::Kill("packages")));
        assert_eq!(due(120, &["started", "base", "packages"]), Some(Deed::Restart));
        assert_eq!(due(121, &["started", "base", "packages"]), None);
        assert_eq!(kills.planned(), 2);
    }
}

//! Takes over a changed configuration while the server runs: checks it whole, tells the difference, and then new orders
//! see the new one. A shell.
//!
//! Invariant: a job under way keeps the profile, the deadlines and the variables that it was made with; nothing here
//! reaches it. What only a start reads (listeners, pools, limits; see [`crate::config::difference`]) stays as it is and
//! is told. A configuration with one mistake changes nothing.

use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::desk::Desk;
use crate::{
    access::{
        Caller, Scope, Via,
        audit::{Action, Deed},
    },
    config::{
        self, Config,
        difference::{Difference, difference},
    },
};

/// The configuration as it counts now.
#[derive(Debug)]
pub struct Live(RwLock<Arc<Config>>);

impl Live {
    /// This one.
    pub fn new(config: Arc<Config>) -> Self {
        Self(RwLock::new(config))
    }

    /// As it is now. Who needs several keys that belong together asks once.
    pub fn now(&self) -> Arc<Config> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From `new` all that a running server can take over; the rest stays.
    fn take(&self, new: Config) {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let Config { profiles, declared, groups, machines, deadlines, .. } = new;
        *current =
            Arc::new(Config { profiles, declared, groups, machines, deadlines, ..(**current).clone() });
    }
}

/// What a reload came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Reloaded {
    /// What differs now.
    pub differences: Vec<Difference>,
}

/// Why nothing was taken over.
#[derive(Debug, thiserror::Error)]
#[error("the configuration has mistakes, and nothing was taken over:\n{0}")]
pub struct Mistakes(String);

/// Reads the file again. With `look` only the difference is told.
///
/// # Errors
/// Its mistakes, as `check` tells them.
pub fn reload(desk: &Desk, look: bool) -> Result<Reloaded, Mistakes> {
    let current = desk.config.now();
    let read = config::load(&current.file);
    let new = read.map_err(|problems| Mistakes(problems.to_string().trim_end().to_owned()))?;
    let differences = difference(&current, &new);
    if !look {
        for Difference { key, what, restart } in &differences {
            tracing::info!(key, what, restart, "configuration changed");
        }
        desk.config.take(new);
    }
    Ok(Reloaded { differences })
}

/// What the audit log keeps of one: the keys, without values.
pub fn deed(caller: &Caller, read: &Result<Reloaded, Mistakes>) -> Deed {
    let after = match read {
        Ok(reloaded) => {
            let keys: Vec<&str> = reloaded.differences.iter().map(|one| one.key.as_str()).collect();
            format!("{} differences: {}", keys.len(), keys.join(", "))
        }
        Err(_) => "refused: the configuration has mistakes".to_owned(),
    };
    let before = String::new();
    Deed { who: caller.clone(), action: Action::Reload, vm: None, job: None, before, after }
}

/// Reloads at each SIGHUP until `stop`.
pub async fn at_hangups(desk: Arc<Desk>, stop: CancellationToken) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            tracing::warn!(%error, "SIGHUP is not heard; `bootflip reload` works all the same");
            return stop.cancelled().await;
        }
    };
    while let Some(Some(())) = stop.run_until_cancelled(hangups.recv()).await {
        let asked = Arc::clone(&desk);
        let read = tokio::task::spawn_blocking(move || reload(&asked, false)).await;
        if let Ok(read) = &read {
            let who = Caller { name: "SIGHUP".to_owned(), scope: Scope::Admin, via: Via::Socket };
            desk.door.write_down(&[deed(&who, read)], desk.clock.now()).await;
        }
        match read {
            Ok(Ok(reloaded)) => {
                tracing::info!(differences = reloaded.differences.len(), "configuration read again");
            }
            Ok(Err(mistakes)) => tracing::error!("{mistakes}"),
            Err(error) => tracing::error!(%error, "the configuration was not read again"),
        }
    }
    stop.cancelled().await;
}

//! `bootflip serve`.

use std::{path::Path, time::Duration};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{Answer, Ended, Stop, load, logging};
use crate::app;

/// How long after a signal the process may still be there; the server itself needs less.
const HARD_LIMIT: Duration = Duration::from_secs(19);

/// Arguments of `serve`: none but the configuration.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {}

pub(super) async fn run(_: &ServeArgs, config: &Path) -> Answer {
    let config = load(config)?;
    logging::server(config.log)?;
    allow_descriptors();
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    let mut terminate = signal(SignalKind::terminate()).map_err(|error| Stop::failed(&error))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| Stop::failed(&error))?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "asked to stop");
        signalled.cancel();
        // A disk that hangs in a system call cannot be waited for; what is stored is stored.
        std::thread::spawn(|| {
            std::thread::sleep(HARD_LIMIT);
            std::process::exit(1);
        });
    });
    match app::serve(config, stop).await {
        Ok(()) => Ok(Ended::Done),
        Err(error) if error.is_locked() => Err(Stop::new(Ended::Locked, app::chain(&error))),
        Err(error) => Err(Stop::failed(&error)),
    }
}

/// Takes all the open files that the system allows: a connection is one, and many systems begin with 1,024.
fn allow_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if limit == all {
        return; // systemd's LimitNOFILE has done it, and its filter of calls need not allow this one
    }
    if let Err(error) = setrlimit(Resource::Nofile, all) {
        tracing::warn!(%error, "the number of open files stays as it is");
    }
}

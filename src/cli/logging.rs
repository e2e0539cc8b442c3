//! Where log events go. `RUST_LOG` says which; the server tells what an operator may act on, commands only trouble.
//!
//! Field names are the same in each format: `mac xid job vm peer file`, and what an event has beside them.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, Layer, layer::SubscriberExt, util::SubscriberInitExt};

use super::{Ended, Stop};
use crate::config::LogFormat;

/// Of a command: to stderr.
pub(super) fn commands() {
    tracing_subscriber::registry().with(lines().with_filter(filter("warn"))).init();
}

/// Of the server.
///
/// # Errors
/// The journal is not there.
pub(super) fn server(format: LogFormat) -> Result<(), Stop> {
    let log = tracing_subscriber::registry();
    match format {
        LogFormat::Text => log.with(lines().with_filter(filter("info"))).init(),
        LogFormat::Json => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(io::stderr);
            log.with(json.with_current_span(false).with_span_list(false).with_filter(filter("info"))).init();
        }
        LogFormat::Journald => {
            let journal = tracing_journald::layer().map_err(|error| {
                let text =
                    format!("log.format is \"journald\", and systemd's journal does not answer: {error}");
                Stop::new(Ended::Usage, text)
            })?;
            // JOB, MAC, …: as `journalctl JOB=ID` wants them. The default would prefix them with F_.
            let journal = journal.with_field_prefix(None).with_syslog_identifier("bootflip".to_owned());
            log.with(journal.with_filter(filter("info"))).init();
        }
    }
    Ok(())
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level))
}

fn lines<S>() -> impl Layer<S>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
}

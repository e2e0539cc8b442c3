//! Binds DHCP, TFTP, boot HTTP and syslog as the configuration says, and runs them. A shell.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{api, logs};
use crate::{
    boot::{
        Gate,
        render::{Templates, Urls},
        sink::Sink,
        vouch::Vouch,
    },
    clock::Clock,
    config::Config,
    dhcp, http,
    store::Store,
    syslog, tftp,
};

/// What the listeners need of the rest of the program.
#[derive(Debug)]
pub(super) struct Shared {
    /// The boot gate.
    pub(super) gate: Gate,
    /// Where signs and reports go.
    pub(super) sink: Arc<dyn Sink>,
    /// Where leases are kept.
    pub(super) store: Arc<dyn Store>,
    /// The time.
    pub(super) clock: Arc<dyn Clock>,
    /// What is rendered.
    pub(super) templates: Arc<Templates>,
}

/// Why a listener is not there.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// DHCP.
    #[error(transparent)]
    Dhcp(#[from] dhcp::server::BindError),
    /// TFTP.
    #[error(transparent)]
    Tftp(#[from] tftp::server::BindError),
    /// Boot HTTP.
    #[error(transparent)]
    Http(#[from] http::server::BindError),
    /// Syslog.
    #[error(transparent)]
    Syslog(#[from] syslog::server::BindError),
}

/// The bound listeners; nothing is answered before [`Listeners::run`].
#[derive(Debug, Default)]
pub(super) struct Listeners {
    dhcp: Vec<(String, dhcp::server::Server)>,
    tftp: Option<tftp::server::Server>,
    http: Option<http::server::Server>,
    syslog: Option<syslog::server::Server>,
}

/// Binds what the configuration has.
pub(super) async fn bind(config: &Config, shared: &Shared) -> Result<Listeners, BindError> {
    let mut listeners = Listeners::default();
    if let Some(syslog) = &config.syslog {
        let parts = syslog::server::Shared {
            gate: shared.gate.clone(),
            sink: Arc::clone(&shared.sink),
            clock: Arc::clone(&shared.clock),
            folder: logs::folder(config),
        };
        listeners.syslog = Some(syslog::server::bind(syslog, parts)?);
    }
    if let Some(http) = &config.http {
        let parts = http::server::Shared {
            gate: shared.gate.clone(),
            sink: Arc::clone(&shared.sink),
            templates: Arc::clone(&shared.templates),
            log: listeners.syslog.as_ref().map(syslog::server::Server::bound),
        };
        listeners.http = Some(http::server::bind(http, parts)?);
    }
    let urls = listeners.urls();
    if let Some(tftp) = &config.tftp {
        let parts = tftp::server::Shared {
            gate: shared.gate.clone(),
            sink: Arc::clone(&shared.sink),
            templates: Arc::clone(&shared.templates),
            // Without boot HTTP no profile has boot files, and no configuration is ever rendered.
            urls: urls.clone().unwrap_or_else(|| Urls::new("")),
            files: config.http.as_ref().map_or_else(|| tftp.root.clone(), |http| http.root.clone()),
        };
        listeners.tftp = Some(tftp::server::bind(tftp, parts, tftp::server::engine(tftp))?);
    }
    let boot = dhcp::server::BootServices {
        url: urls.map(|urls| urls.base().to_owned()),
        loader: config.tftp.as_ref().map(|tftp| tftp.loader.clone()),
    };
    for interface in &config.dhcp {
        let parts = dhcp::server::Shared {
            gate: shared.gate.clone(),
            sink: Arc::clone(&shared.sink),
            store: Arc::clone(&shared.store),
            clock: Arc::clone(&shared.clock),
        };
        let server = dhcp::server::bind(interface.clone(), boot.clone(), parts).await?;
        listeners.dhcp.push((interface.interface.clone(), server));
    }
    Ok(listeners)
}

impl Listeners {
    /// The boot URLs, where boot HTTP is on.
    pub(super) fn urls(&self) -> Option<Urls> {
        self.http.as_ref().map(|http| http.urls().clone())
    }

    /// The boot files, where boot HTTP is on.
    pub(super) fn files(&self) -> Option<Vouch> {
        self.http.as_ref().map(|http| http.files().clone())
    }

    /// Where the status of DHCP can be read, for each interface.
    pub(super) fn dhcp_boards(&self) -> Vec<dhcp::server::Board> {
        self.dhcp.iter().map(|(_, server)| server.board()).collect()
    }

    /// Where the counts of syslog can be read, where it is on.
    pub(super) fn syslog_board(&self) -> Option<syslog::server::Board> {
        self.syslog.as_ref().map(syslog::server::Server::board)
    }

    /// Where everything listens.
    pub(super) fn addresses(&self, admin: &api::Listeners) -> serde_json::Value {
        let dhcp = self.dhcp.iter().map(|(interface, server)| {
            let bound = server.bound();
            serde_json::json!({ "interface": interface, "server": bound.server, "proxy": bound.proxy })
        });
        serde_json::json!({
            "dhcp": dhcp.collect::<Vec<_>>(),
            "tftp": self.tftp.as_ref().map(tftp::server::Server::bound).unwrap_or_default(),
            "http": self.http.as_ref().map(http::server::Server::bound),
            "syslog": self.syslog.as_ref().map(syslog::server::Server::bound),
            "url": self.urls().map(|urls| urls.base().to_owned()),
            "admin": admin.socket(),
            "remote": admin.remote(),
        })
    }

    /// The work of each listener until `stop`, with its name.
    pub(super) fn run(self, stop: &CancellationToken) -> Vec<(String, BoxFuture<'static, ()>)> {
        let mut work: Vec<(String, BoxFuture<'static, ()>)> = Vec::new();
        for (interface, server) in self.dhcp {
            work.push((format!("DHCP on {interface}"), Box::pin(server.run(stop.clone()))));
        }
        if let Some(tftp) = self.tftp {
            work.push(("TFTP".to_owned(), Box::pin(tftp.run(stop.clone()))));
        }
        if let Some(http) = self.http {
            work.push(("boot HTTP".to_owned(), Box::pin(http.run(stop.clone()))));
        }
        if let Some(syslog) = self.syslog {
            work.push(("syslog".to_owned(), Box::pin(syslog.run(stop.clone()))));
        }
        work
    }
}

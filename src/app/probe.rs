//! Whether the listeners could be had: binds each one and lets it go at once. For `bootflip check`.

use std::{net::IpAddr, sync::Arc};

use futures_util::future::BoxFuture;

use super::{
    api, chain,
    listeners::{self, Shared},
};
use crate::{
    boot::{
        Gate,
        going::Going,
        render::Templates,
        sink::{Noted, Report, ReportAnswer, Seen, Sink, Transfer, Unavailable},
    },
    clock::SystemClock,
    config::Config,
    secret::TokenHash,
    store::memory::MemoryStore,
};

/// One listener that was tried.
#[derive(Debug)]
pub struct Probe {
    /// Which, such as `DHCP on eth1`.
    pub what: String,
    /// Whether it can be had.
    pub result: Result<(), String>,
}

/// Tries every listener of the configuration by itself.
pub async fn listeners(config: &Config) -> Vec<Probe> {
    let Ok(templates) = Templates::new(std::collections::BTreeMap::new()) else { return Vec::new() };
    let shared = Shared {
        gate: Gate::default(),
        sink: Arc::new(Deaf),
        store: Arc::new(MemoryStore::new()),
        clock: Arc::new(SystemClock),
        templates: Arc::new(templates),
    };
    let none = Config { dhcp: Vec::new(), tftp: None, http: None, syslog: None, ..config.clone() };
    let mut single: Vec<(String, Config)> = Vec::new();
    for interface in &config.dhcp {
        let one = Config { dhcp: vec![interface.clone()], ..none.clone() };
        single.push((format!("DHCP on {} port {}", interface.interface, interface.server_port), one));
    }
    if let Some(tftp) = &config.tftp {
        let at: Vec<String> = tftp.listen.iter().map(ToString::to_string).collect();
        single.push((
            format!("TFTP on {}", at.join(", ")),
            Config { tftp: config.tftp.clone(), ..none.clone() },
        ));
    }
    if let Some(http) = &config.http {
        let one = Config { http: config.http.clone(), ..none.clone() };
        single.push((format!("boot HTTP on {}", http.listen), one));
    }
    if let Some(syslog) = &config.syslog {
        let one = Config { syslog: config.syslog.clone(), ..none.clone() };
        single.push((format!("syslog on {}", syslog.listen), one));
    }
    let mut probes = Vec::new();
    for (what, config) in single {
        let result = listeners::bind(&config, &shared).await.map(drop).map_err(|error| chain(&error));
        probes.push(Probe { what, result });
    }
    if let Some(remote) = &config.admin.remote {
        let result = api::probe(remote).await.map_err(|error| chain(&error));
        probes.push(Probe { what: format!("admin API on {}", remote.listen), result });
    }
    probes
}

/// Nothing is served, so nothing is heard.
#[derive(Debug)]
struct Deaf;

impl Sink for Deaf {
    fn noted(&self, _: Noted) {}

    fn going(&self, _: &Arc<Going>) {}

    fn seen(&self, _: Seen) {}

    fn transferred(&self, _: Transfer) {}

    fn answer_fetched<'a>(
        &'a self,
        _: TokenHash,
        _: Option<IpAddr>,
    ) -> BoxFuture<'a, Result<bool, Unavailable>> {
        Box::pin(async { Err(Unavailable) })
    }

    fn report(&self, _: Report) -> BoxFuture<'_, ReportAnswer> {
        Box::pin(async { ReportAnswer::Later })
    }
}

//! Wires, binds, spawns and waits: the server. What it is made of is in the modules below; here is only the order.
//!
//! Invariants: nothing is bound before the database is ours; no listener answers before every job was read back
//! from it; a pool that does not answer stops nothing; once `stop` is given, [`serve`] returns within
//! [`STOP_LIMIT`], and what was under way goes on at the next start.

pub mod api;
pub mod create;
pub mod desk;
pub mod door;
pub mod fleet;
pub mod flight;
pub mod history;
pub mod identity;
pub mod images;
pub mod inventory;
pub mod key;
pub mod loaders;
pub mod logs;
pub mod machines;
pub mod metering;
pub mod orders;
pub mod planning;
pub mod preview;
pub mod probe;
pub mod publish;
pub mod reach;
pub mod reload;
pub mod roster;
pub mod selection;
pub mod service;
pub mod serving;
pub mod templates;
pub mod views;

mod listeners;
mod pages;

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use self::{
    api::{AdminError, SocketError},
    desk::Desk,
    door::Door,
    flight::{Flight, Recording},
    identity::StoredIdentity,
    inventory::{Known, Watcher},
    key::KeyError,
    listeners::{BindError, Listeners},
    metering::{CountedSink, MeasuredPool, MeasuredStore},
    reload::Live,
    roster::Roster,
    serving::Offer,
    templates::TemplateError,
};
use crate::{
    boot::Gate,
    clock::{Clock, SystemClock},
    config::Config,
    metrics::Metrics,
    provision::{
        admission::Caps,
        executor::{Decisions, Executor, Parts, PoolAccess},
        job::State,
        runner::{self, Bell, Rings},
    },
    store::{
        Store, StoreError,
        accounts::Accounts,
        sqlite::{OpenError, SqliteStore},
    },
    xen::{
        Transport,
        api::Api,
        client::{Client, ClientError, ForJobs, WayBack},
    },
};

/// How long everything may take to end.
pub const STOP_LIMIT: Duration = Duration::from_secs(10);

/// The database's file in `server.state_dir`.
pub const DATABASE: &str = "bootflip.db";

/// What names us to the pools.
pub const ORIGINATOR: &str = "bootflip";

/// Why the server did not start, or did not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The token key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The templates.
    #[error(transparent)]
    Templates(#[from] TemplateError),
    /// A pool's settings.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The jobs could not be read back.
    #[error("cannot read the jobs back")]
    Recover(#[source] StoreError),
    /// A listener.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// An admin listener.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// The addresses could not be written down.
    #[error("cannot write {path}")]
    Addresses {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A part ended by itself.
    #[error("{0} has ended by itself; the log says why")]
    Ended(String),
}

impl ServeError {
    /// Another server has the database or the admin socket.
    pub const fn is_locked(&self) -> bool {
        matches!(
            self,
            Self::Open(OpenError::Locked { .. }) | Self::Admin(AdminError::Socket(SocketError::InUse { .. }))
        )
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// A client for each pool of the configuration. Nothing is sent.
pub fn clients(config: &Config) -> Result<BTreeMap<String, Arc<Client>>, ClientError> {
    clients_with(config, |_, client| client)
}

fn clients_with(
    config: &Config,
    finish: impl Fn(&str, Client) -> Client,
) -> Result<BTreeMap<String, Arc<Client>>, ClientError> {
    let client = |(name, pool): (&String, _)| {
        let client = Client::new(pool, ORIGINATOR)?.with_calls_at_once(config.limits.calls_per_pool);
        Ok((name.clone(), Arc::new(finish(name, client))))
    };
    config.pools.iter().map(client).collect()
}

/// The calls of each pool.
pub fn apis(clients: &BTreeMap<String, Arc<Client>>) -> BTreeMap<String, Api> {
    clients.iter().map(|(name, client)| (name.clone(), Api::new(Arc::clone(client) as _))).collect()
}

/// Runs the server until `stop` is given.
///
/// # Errors
/// It cannot start, and nothing is left behind; or a part of it ended by itself.
pub async fn serve(config: Config, stop: CancellationToken) -> Result<(), ServeError> {
    open(config, &stop).await?.run(stop).await
}

/// A server that has everything and answers nothing yet.
struct Opened {
    desk: Arc<Desk>,
    clients: BTreeMap<String, Arc<Client>>,
    offer: Arc<Offer>,
    listeners: Listeners,
    admin: api::Listeners,
    bell: Bell,
    rings: Rings,
    /// The jobs that want a look.
    first: Vec<String>,
    /// How far all jobs are.
    states: HashMap<String, State>,
}

async fn open(config: Config, stop: &CancellationToken) -> Result<Opened, ServeError> {
    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new());
    let inner: Arc<dyn Store> = Arc::new(SqliteStore::open(config.state_dir.join(DATABASE))?);
    let store: Arc<dyn Store> = Arc::new(MeasuredStore { inner, metrics: Arc::clone(&metrics) });
    let key = key::load_or_make(&config.state_dir)?;
    let templates = Arc::new(templates::load(config.template_dir.as_deref())?);
    let kept = |pool: &str| Arc::new(StoredIdentity::of(Arc::clone(&store), pool));
    let clients = clients_with(&config, |pool, client| client.with_keeper(kept(pool)))?;
    let apis = apis(&clients);
    let (bell, rings) = Bell::new();
    let offer =
        Arc::new(Offer::new(Arc::clone(&templates), config.http.as_ref().map(|http| http.root.clone())));
    let gate = Gate::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let flight = Flight::new(gate.clone(), Arc::clone(&clock));
    let executor = Arc::new(Executor::new(Parts {
        owner: config.server_name.clone(),
        store: Arc::clone(&store),
        pools: pools(&config, &clients, &metrics),
        gate: gate.clone(),
        clock: Arc::clone(&clock),
        key,
        serving: Arc::clone(&offer) as _,
        wakers: Arc::new(bell.clone()),
        reach: Arc::new(reach::Tcp),
        witness: Arc::new(flight.clone()),
        nonce: Box::new(key::nonce),
        decisions: Decisions::default(),
    }));
    let first = executor.recover().await.map_err(ServeError::Recover)?;
    let states = metering::states(&*store).await.map_err(ServeError::Recover)?;
    let admin = api::bind(&config).await?;
    let recording = Recording { flight: flight.clone(), inner: Arc::clone(&executor) as _ };
    let shared = listeners::Shared {
        gate: gate.clone(),
        sink: Arc::new(CountedSink { inner: Arc::new(recording), metrics: Arc::clone(&metrics) }),
        store: Arc::clone(&store),
        clock: Arc::clone(&clock),
        templates: Arc::clone(&templates),
    };
    let listeners = listeners::bind(&config, &shared).await?;
    announce(&config, &listeners.addresses(&admin), first.len())?;
    offer.open(listeners.urls(), listeners.files().map(Ok));
    let (known, began) = (Known::default(), clock.now());
    let desk = Arc::new(Desk {
        config: Live::new(config),
        executor,
        apis,
        known,
        gate,
        templates,
        files: listeners.files(),
        urls: listeners.urls(),
        clock,
        dhcp: listeners.dhcp_boards(),
        syslog: listeners.syslog_board(),
        flight,
        roster: Roster::default(),
        door: Door::new(Accounts::new(Arc::clone(&store))),
        store,
        stop: stop.clone(),
        metrics,
        began,
    });
    Ok(Opened { desk, clients, offer, listeners, admin, bell, rings, first, states })
}

impl Opened {
    /// Answers until `stop`.
    async fn run(self, stop: CancellationToken) -> Result<(), ServeError> {
        let Self { desk, clients, offer, listeners, admin, bell, rings, first, states } = self;
        let mut parts = Running { tasks: JoinSet::new(), stop };
        parts.listeners(listeners);
        parts.beat(Arc::clone(&desk));
        parts.count(&desk, states);
        parts.admin(admin, Arc::clone(&desk));
        parts.watchers(&desk, &bell);
        parts.jobs(&desk, rings, first);
        parts.housekeeping(&desk);
        service::ready();
        let result = parts.wait(&offer).await;
        log_out(&clients).await;
        result
    }
}

fn pools(
    config: &Config,
    clients: &BTreeMap<String, Arc<Client>>,
    metrics: &Arc<Metrics>,
) -> BTreeMap<String, PoolAccess> {
    let measured = |pool: &str, inner: Arc<dyn Transport>| {
        Api::new(Arc::new(MeasuredPool { pool: pool.to_owned(), inner, metrics: Arc::clone(metrics) }))
    };
    let access = |(name, client): (&String, &Arc<Client>)| {
        let access = PoolAccess {
            api: measured(name, Arc::new(ForJobs(Arc::clone(client)))),
            way_back: measured(name, Arc::new(WayBack(Arc::clone(client)))),
            allow: config.pools.get(name)?.allow.clone(),
            installs: Caps { pool: config.limits.installs_per_pool, host: config.limits.installs_per_host },
        };
        Some((name.clone(), access))
    };
    clients.iter().filter_map(access).collect()
}

/// Where the server listens, for tests and for who set port 0: `bound.json` in the state folder; and in the log.
fn announce(config: &Config, addresses: &serde_json::Value, jobs: usize) -> Result<(), ServeError> {
    let path = config.state_dir.join("bound.json");
    let half = path.with_extension("new");
    let written =
        std::fs::write(&half, format!("{addresses}\n")).and_then(|()| std::fs::rename(&half, &path));
    written.map_err(|source| ServeError::Addresses { path, source })?;
    tracing::info!(server = %config.server_name, pools = config.pools.len(), jobs, %addresses, "serve");
    Ok(())
}

/// Ends the sessions: the pools limit them. What they do not get back in time they forget by themselves.
pub async fn log_out(clients: &BTreeMap<String, Arc<Client>>) {
    let all = futures_util::future::join_all(clients.values().map(|client| client.logout()));
    let _ = tokio::time::timeout(Duration::from_secs(2), all).await;
}

/// The tasks of a server.
struct Running {
    tasks: JoinSet<String>,
    stop: CancellationToken,
}

impl Running {
    fn spawn(&mut self, name: &str, work: impl Future<Output = ()> + Send + 'static) {
        let name = name.to_owned();
        self.tasks.spawn(async move {
            work.await;
            name
        });
    }

    fn listeners(&mut self, listeners: Listeners) {
        for (name, work) in listeners.run(&self.stop) {
            self.tasks.spawn(async move {
                work.await;
                name
            });
        }
    }

    fn admin(&mut self, admin: api::Listeners, desk: Arc<Desk>) {
        let stop = self.stop.clone();
        let (roster, store, flight) = (desk.roster.clone(), Arc::clone(&desk.store), desk.flight.clone());
        self.spawn("the roster of jobs", roster.follow(store, flight, stop.clone()));
        self.spawn("the admin API", api::serve(admin, desk, stop));
    }

    fn beat(&mut self, desk: Arc<Desk>) {
        let stop = self.stop.clone();
        self.spawn("the watchdog", service::beat(desk, stop));
    }

    fn count(&mut self, desk: &Desk, states: HashMap<String, State>) {
        let (store, metrics, stop) = (Arc::clone(&desk.store), Arc::clone(&desk.metrics), self.stop.clone());
        self.spawn("the count of jobs", metering::follow_jobs(store, states, metrics, stop));
    }

    fn housekeeping(&mut self, desk: &Arc<Desk>) {
        let (asked, stop) = (Arc::clone(desk), self.stop.clone());
        self.spawn("the wait for SIGHUP", reload::at_hangups(asked, stop));
        let (keeper, stop) = (Arc::clone(desk), self.stop.clone());
        self.spawn("the housekeeping", history::keep(keeper, stop));
    }

    fn watchers(&mut self, desk: &Desk, bell: &Bell) {
        for (pool, api) in &desk.apis {
            let watcher = Watcher {
                pool: pool.clone(),
                api: api.clone(),
                gate: desk.gate.clone(),
                executor: Arc::clone(&desk.executor),
                wakers: Arc::new(bell.clone()),
                known: desk.known.clone(),
            };
            let name = format!("the watch over pool {pool}");
            let stop = self.stop.clone();
            self.spawn(&name, watcher.run(stop));
        }
    }

    fn jobs(&mut self, desk: &Desk, rings: Rings, first: Vec<String>) {
        let (executor, clock) = (Arc::clone(&desk.executor), Arc::clone(&desk.clock));
        let stop = self.stop.clone();
        self.spawn("the job runner", runner::run(executor, clock, rings, first, stop));
    }

    /// Waits for `stop`, or for a part that ends by itself; then for all parts, but not for ever.
    async fn wait(mut self, offer: &Offer) -> Result<(), ServeError> {
        let ended = tokio::select! {
            () = self.stop.cancelled() => None,
            ended = self.tasks.join_next() => Some(match ended {
                Some(Ok(name)) => name,
                Some(Err(error)) => format!("a part that panicked ({error})"),
                None => "everything".to_owned(),
            }),
        };
        offer.close();
        service::stopping();
        // A part that ended because of `stop` did not end by itself.
        let ended = ended.filter(|_| !self.stop.is_cancelled());
        tracing::info!(parts = self.tasks.len(), "stopping; what is under way goes on at the next start");
        self.stop.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(STOP_LIMIT, all).await.is_err() {
            tracing::warn!("stopped in the middle of a call; the next start looks what came of it");
        }
        self.tasks.abort_all();
        ended.map_or(Ok(()), |name| Err(ServeError::Ended(name)))
    }
}

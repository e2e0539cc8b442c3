//! One pool over HTTP(S): the shell of `xen`. Here are calls and deadlines; `login` has sessions, `wire` one request.
//! The pure parts are beside it: `codec`, `endpoint`, `tls`, `error`.
//!
//! Invariants. The password goes only to the configured URL, to `members`, and to addresses that the pool itself
//! listed after a good login, always under the same TLS rule. A call that may have had an effect is never sent
//! twice: [`CallError::Unknown`] goes to the caller. Every wait is inside a call's deadline. No body, session
//! reference or password is ever logged or put into an error.

mod login;
pub mod peek;
mod places;
mod wire;

use std::{
    fmt, io,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use tracing::debug;

use super::{
    CallError, Failure, Method, Transport, Value,
    codec::{self, CodecError},
    endpoint::{self, Endpoint},
    identity::Keeper,
    tls::{self, Judge, Mismatch},
};
use login::{Login, MAX_HOPS, STARTING, Session};
use places::{Place, Places};
use wire::{PostError, Wire};

use crate::{
    config::{PoolConfig, TlsTrust},
    secret::Secret,
};

/// A pool's configuration that no client can be made of.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Not `https://host[:port]`, or `http://…` without `plain_http`, or the other way round.
    #[error("pool {pool}: url `{url}` must be {scheme}://host or {scheme}://host:port")]
    Url {
        /// The pool's name.
        pool: String,
        /// As configured.
        url: String,
        /// What its TLS rule asks for.
        scheme: &'static str,
    },
    /// An entry of `members` that is not a host.
    #[error("pool {pool}: member `{member}` must be host or host:port")]
    Member {
        /// The pool's name.
        pool: String,
        /// As configured.
        member: String,
    },
    /// The CA file cannot be read.
    #[error("pool {pool}: cannot read the CA file {path}")]
    ReadCa {
        /// The pool's name.
        pool: String,
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA file is not PEM with certificates.
    #[error("pool {pool}: the CA file {path} cannot be used: {detail}")]
    ParseCa {
        /// The pool's name.
        pool: String,
        /// The file.
        path: PathBuf,
        /// The parser's words.
        detail: String,
    },
    /// The TLS library refused its settings.
    #[error("pool {pool}: cannot set up TLS")]
    Tls {
        /// The pool's name.
        pool: String,
        /// Why.
        source: rustls::Error,
    },
    /// The HTTP library refused its settings.
    #[error("pool {pool}: cannot set up HTTP")]
    Http {
        /// The pool's name.
        pool: String,
        /// Why.
        source: reqwest::Error,
    },
}

/// One pool. Logs in when first called, keeps one session, and logs in again when that is gone.
pub struct Client {
    user: String,
    password: Secret,
    originator: String,
    home: Endpoint,
    members: Vec<Endpoint>,
    wire: Wire,
    places: Places,
    deadline: fn(Method) -> Duration,
    login_cooldown: Duration,
    login: Mutex<Login>,
    keeper: Option<Arc<dyn Keeper>>,
}

impl Client {
    /// A client of this pool; nothing is sent yet. `originator` names us to the pool, which limits sessions by it
    /// (6.2 on). Reads the CA file.
    pub fn new(pool: &PoolConfig, originator: &str) -> Result<Self, ClientError> {
        let scheme = if pool.tls == TlsTrust::PlainHttp { "http" } else { "https" };
        let name = || pool.name.clone();
        let home = home(&pool.url, scheme).ok_or_else(|| ClientError::Url {
            pool: name(),
            url: pool.url.clone(),
            scheme,
        })?;
        let member = |member: &String| {
            Endpoint::parse(member, home.port)
                .ok_or_else(|| ClientError::Member { pool: name(), member: member.clone() })
        };
        let members = pool.members.iter().map(member).collect::<Result<_, _>>()?;
        let mismatch = Arc::new(OnceLock::new());
        let config = tls::client_config(judge(pool, &mismatch)?)
            .map_err(|source| ClientError::Tls { pool: name(), source })?;
        let wire = Wire::new(&pool.name, scheme, config, mismatch)
            .map_err(|source| ClientError::Http { pool: name(), source })?;
        Ok(Self {
            user: pool.user.clone(),
            password: pool.password.clone(),
            originator: originator.to_owned(),
            home,
            members,
            wire,
            places: Places::new(DEFAULT_CALLS_AT_ONCE),
            deadline: Method::deadline,
            login_cooldown: LOGIN_COOLDOWN,
            login: Mutex::default(),
            keeper: None,
        })
    }

    /// How many calls may be under way at once (`calls_per_pool`), of which some are kept for [`WayBack`];
    /// `event.from` is not counted.
    #[must_use]
    pub fn with_calls_at_once(mut self, calls: u32) -> Self {
        self.places = Places::new(usize::try_from(calls).unwrap_or(DEFAULT_CALLS_AT_ONCE));
        self
    }

    /// Other deadlines than [`Method::deadline`].
    #[must_use]
    pub const fn with_deadlines(mut self, deadline: fn(Method) -> Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// How long a refused login is remembered before it is tried again; a minute unless told otherwise.
    #[must_use]
    pub const fn with_login_cooldown(mut self, cooldown: Duration) -> Self {
        self.login_cooldown = cooldown;
        self
    }

    /// Who keeps which pool this is; from then on a login counts only at that pool, and only where no second member
    /// claims to be its coordinator.
    #[must_use]
    pub fn with_keeper(mut self, keeper: Arc<dyn Keeper>) -> Self {
        self.keeper = Some(keeper);
        self
    }

    /// Ends the session, if there is one.
    pub async fn logout(&self) {
        let session = self.login.lock().await.session.take();
        if let Some(session) = session {
            self.end(&session).await;
        }
    }

    /// One call within its deadline. Waiting for a free place among the calls under way has the same limit, before.
    async fn timed(
        &self,
        method: Method,
        params: Vec<Value>,
        place: Place,
        again: Again,
    ) -> Result<Value, CallError> {
        self.wire.trusted()?;
        let deadline = (self.deadline)(method);
        // event.from waits for a minute by design, on a connection that no other call shares meanwhile.
        let permit = async { if method == Method::EventFrom { None } else { self.places.take(place).await } };
        let full = |_| CallError::Unreachable {
            detail: format!(
                "pool {}: too many calls are under way, and none ended in {deadline:?}",
                self.wire.pool
            ),
        };
        let _permit = timeout(deadline, permit).await.map_err(full)?;
        let sent = AtomicBool::new(false);
        let late = |_| {
            let detail = format!("pool {}: no answer in {deadline:?}", self.wire.pool);
            self.no_answer(method, sent.load(Ordering::Relaxed), detail)
        };
        timeout(deadline, self.exchange(method, params, again, &sent)).await.map_err(late)?
    }

    /// The call itself: at most one new login, one new connection and [`MAX_HOPS`] redirects, all of them after
    /// an answer or a failed connection that proves that nothing was done. `sent` is true while that is unproved.
    async fn exchange(
        &self,
        method: Method,
        params: Vec<Value>,
        again: Again,
        sent: &AtomicBool,
    ) -> Result<Value, CallError> {
        let repeats = again == Again::AtOnce || !method.changes_the_pool();
        let (mut relogins, mut reconnects, mut hops) = (0, 0, 0);
        loop {
            let session = self.session().await?;
            let body = encoded(method, &session, &params)?;
            sent.store(true, Ordering::Relaxed);
            let answer = self.wire.post(&session.at, body).await;
            match answer {
                Ok(Ok(value)) => return Ok(value),
                Err(PostError::NoAnswer(detail)) => return Err(self.no_answer(method, true, detail)),
                Err(PostError::Unreadable(detail)) => {
                    return Err(CallError::Protocol { method: method.name(), detail });
                }
                Err(PostError::Untrusted(detail)) => return Err(CallError::Untrusted { detail }),
                Err(PostError::NotSent(detail)) => {
                    sent.store(false, Ordering::Relaxed);
                    self.leave(&session, None).await;
                    reconnects += 1;
                    if reconnects > 1 || !repeats {
                        return Err(CallError::Unreachable { detail });
                    }
                }
                Ok(Err(failure)) => {
                    sent.store(false, Ordering::Relaxed);
                    let ended = failure.is("SESSION_INVALID") && relogins == 0;
                    let moved = failure.is("HOST_IS_SLAVE") && hops < MAX_HOPS;
                    if ended {
                        relogins += 1;
                        self.leave(&session, None).await;
                    } else if moved {
                        hops += 1;
                        self.follow(&session, &failure).await?;
                    }
                    if (ended || moved) && repeats {
                        continue;
                    }
                    if STARTING.contains(&failure.code.as_str()) {
                        // It may come up as another's follower: the next call looks anew.
                        self.leave(&session, None).await;
                        let detail = format!("pool {}: {}: {failure}", self.wire.pool, session.at);
                        return Err(CallError::Unreachable { detail });
                    } else {
                        return Err(CallError::Failed {
                            method: method.name(),
                            failure: scrubbed(failure, &session.reference),
                        });
                    }
                }
            }
        }
    }

    fn no_answer(&self, method: Method, sent: bool, detail: String) -> CallError {
        if sent && method.changes_the_pool() {
            CallError::Unknown { method: method.name(), detail }
        } else {
            CallError::Unreachable { detail: format!("{}: {detail}", method.name()) }
        }
    }

    async fn call_from(
        &self,
        place: Place,
        again: Again,
        method: Method,
        params: Vec<Value>,
    ) -> Result<Value, CallError> {
        let started = Instant::now();
        let outcome = self.timed(method, params, place, again).await;
        let class = outcome.as_ref().err().map(CallError::class);
        debug!(pool = %self.wire.pool, method = method.name(), took = ?started.elapsed(), ?class, "called the pool");
        outcome
    }
}

impl Transport for Client {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.call_from(Place::Ordinary, Again::AtOnce, method, params).boxed()
    }
}

/// Who repeats a call that was refused because the session had ended or the coordinator is another one now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Again {
    /// The client, under its new session.
    AtOnce,
    /// Of a change the caller, when it has looked: a coordinator that came back may have forgotten what it saw.
    WhenLooked,
}

/// The same pool for jobs: a change is never repeated behind a new login without another look.
#[derive(Debug, Clone)]
pub struct ForJobs(pub Arc<Client>);

impl Transport for ForJobs {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.0.call_from(Place::Ordinary, Again::WhenLooked, method, params).boxed()
    }
}

/// The same as [`ForJobs`] for putting settings back: its calls find a place also where a fleet's other calls take all that
/// they may.
#[derive(Debug, Clone)]
pub struct WayBack(pub Arc<Client>);

impl Transport for WayBack {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.0.call_from(Place::WayBack, Again::WhenLooked, method, params).boxed()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("pool", &self.wire.pool)
            .field("home", &self.home)
            .finish_non_exhaustive()
    }
}

/// SESSION_INVALID repeats our session's reference, and nobody knows what a strange server repeats.
fn scrubbed(mut failure: Failure, secret: &str) -> Failure {
    let shows = |param: &&mut String| !secret.is_empty() && param.contains(secret);
    failure.params.iter_mut().filter(shows).for_each(|param| *param = "…".to_owned());
    failure
}

fn home(url: &str, scheme: &str) -> Option<Endpoint> {
    let url = reqwest::Url::parse(url).ok().filter(|url| url.scheme() == scheme)?;
    let plain =
        url.username().is_empty() && url.password().is_none() && url.path() == "/" && url.query().is_none();
    let endpoint = Endpoint::parse(url.host_str()?, url.port_or_known_default()?)?;
    plain.then_some(endpoint)
}

fn judge(pool: &PoolConfig, mismatch: &Mismatch) -> Result<Judge, ClientError> {
    match &pool.tls {
        TlsTrust::Pins(pins) => Ok(Judge::Pins(pins.clone(), Arc::clone(mismatch))),
        TlsTrust::Insecure => Ok(Judge::Anyone),
        // Never used: no https URL is ever asked for.
        TlsTrust::PlainHttp => Ok(Judge::Pins(Vec::new(), Arc::clone(mismatch))),
        TlsTrust::Ca(path) => {
            let name = || (pool.name.clone(), path.clone());
            let pem = std::fs::read(path).map_err(|source| {
                let (pool, path) = name();
                ClientError::ReadCa { pool, path, source }
            })?;
            let roots = tls::roots(&pem).map_err(|detail| {
                let (pool, path) = name();
                ClientError::ParseCa { pool, path, detail }
            })?;
            Ok(Judge::Roots(roots))
        }
    }
}

fn encoded(method: Method, session: &Session, params: &[Value]) -> Result<String, CallError> {
    let mut all = Vec::with_capacity(params.len() + 2);
    all.push(Value::string(&session.reference));
    if method == Method::SessionGetRecord {
        all.push(Value::string(&session.reference));
    }
    all.extend_from_slice(params);
    let prefix = if method.is_async() { "Async." } else { "" };
    codec::encode_call(&format!("{prefix}{}", method.name()), &all).map_err(|error: CodecError| {
        // xapi refuses such a value by this code as well; it would not even get that far.
        let failure = Failure::new("INVALID_VALUE", &[method.name(), &error.to_string()]);
        CallError::Failed { method: method.name(), failure }
    })
}

const DEFAULT_CALLS_AT_ONCE: usize = 8;
const LOGIN_COOLDOWN: Duration = Duration::from_secs(60);

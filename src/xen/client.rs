//! One pool over HTTP(S): the shell of `xen`. Here are sessions, redirects and deadlines; `wire` does one request.
//! The pure parts are beside it: `codec`, `endpoint`, `tls`, `error`.
//!
//! Invariants. The password goes only to the configured URL, to `members`, and to addresses that the pool itself
//! listed after a good login, always under the same TLS rule. A call that may have had an effect is never sent
//! twice: [`CallError::Unknown`] goes to the caller. Every wait is inside a call's deadline. No body, session
//! reference or password is ever logged or put into an error.

mod places;
mod wire;

use std::{
    collections::BTreeMap,
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
use tracing::{debug, error, info};

use super::{
    CallError, Failure, Method, Transport, Value,
    codec::{self, CodecError},
    endpoint::{self, Endpoint},
    records::{HostRecord, Record},
    tls::{self, Judge, Mismatch},
};
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
}

/// What is known of the session; the lock around it makes logins one at a time.
#[derive(Default)]
struct Login {
    session: Option<Arc<Session>>,
    /// Where the coordinator was last, tried first.
    coordinator: Option<Endpoint>,
    /// The members as the pool listed them after the last good login; replaced, not added to, because an ejected
    /// host is no member any more.
    learnt: Vec<Endpoint>,
    /// The last refusal of user and password, and when a login may be tried again.
    refused: Option<(Failure, Instant)>,
    /// The server is older than 6.2 and takes no originator.
    short: bool,
}

struct Session {
    reference: String,
    at: Endpoint,
}

/// Why a login at one member did not succeed.
enum LoginError {
    /// Another member may do better.
    Away(String),
    /// No other member will.
    Final(CallError),
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

    /// Ends the session, if there is one. What comes of it does not matter: the pool forgets idle sessions.
    pub async fn logout(&self) {
        let Some(session) = self.login.lock().await.session.take() else { return };
        let Ok(body) = codec::encode_call(Method::SessionLogout.name(), &[Value::string(&session.reference)])
        else {
            return;
        };
        let outcome = timeout(LOGOUT_DEADLINE, self.wire.post(&session.at, body)).await;
        debug!(pool = %self.wire.pool, answered = matches!(outcome, Ok(Ok(_))), "logged out");
    }

    /// One call within its deadline. Waiting for a free place among the calls under way has the same limit, before.
    async fn timed(&self, method: Method, params: Vec<Value>, place: Place) -> Result<Value, CallError> {
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
        timeout(deadline, self.exchange(method, params, &sent)).await.map_err(late)?
    }

    /// The call itself: at most one new login, one new connection and [`MAX_HOPS`] redirects, all of them after
    /// an answer or a failed connection that proves that nothing was done. `sent` is true while that is unproved.
    async fn exchange(
        &self,
        method: Method,
        params: Vec<Value>,
        sent: &AtomicBool,
    ) -> Result<Value, CallError> {
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
                    if reconnects > 1 {
                        return Err(CallError::Unreachable { detail });
                    }
                }
                Ok(Err(failure)) => {
                    sent.store(false, Ordering::Relaxed);
                    if failure.is("SESSION_INVALID") && relogins == 0 {
                        relogins += 1;
                        self.leave(&session, None).await;
                    } else if failure.is("HOST_IS_SLAVE") && hops < MAX_HOPS {
                        hops += 1;
                        let coordinator =
                            self.coordinator(&*self.login.lock().await, &session.at, &failure)?;
                        self.leave(&session, Some(coordinator)).await;
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

    /// Forgets a session that is of no use any more, unless another call already has a newer one.
    async fn leave(&self, session: &Arc<Session>, coordinator: Option<Endpoint>) {
        let mut login = self.login.lock().await;
        if login.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            login.session = None;
            login.coordinator = coordinator.or_else(|| login.coordinator.take());
        }
    }

    /// The session, after a login if need be.
    async fn session(&self) -> Result<Arc<Session>, CallError> {
        let mut login = self.login.lock().await;
        if let Some(session) = &login.session {
            return Ok(Arc::clone(session));
        }
        if let Some((failure, until)) = &login.refused
            && Instant::now() < *until
        {
            return Err(CallError::LoginRefused { failure: failure.clone() });
        }
        let mut candidates: Vec<Endpoint> = Vec::new();
        for candidate in login.coordinator.iter().chain(self.known(&login)) {
            if !candidates.contains(candidate) {
                candidates.push(candidate.clone());
            }
        }
        let mut tried = Vec::new();
        for candidate in candidates {
            match self.login_from(&mut login, candidate).await {
                Ok(session) => {
                    info!(pool = %self.wire.pool, coordinator = %session.at, "logged in to the pool");
                    self.learn(&mut login, &session).await;
                    login.coordinator = Some(session.at.clone());
                    let session = Arc::new(session);
                    login.session = Some(Arc::clone(&session));
                    return Ok(session);
                }
                Err(LoginError::Away(detail)) => tried.push(detail),
                Err(LoginError::Final(error)) => return Err(error),
            }
        }
        Err(CallError::Unreachable { detail: format!("pool {}: {}", self.wire.pool, tried.join("; ")) })
    }

    /// Logs in at a member, or at the coordinator that it names.
    async fn login_from(&self, login: &mut Login, start: Endpoint) -> Result<Session, LoginError> {
        let mut at = start;
        for _ in 0..=MAX_HOPS {
            self.wire.trusted().map_err(LoginError::Final)?;
            match self.login_at(login, &at).await? {
                Ok(reference) => {
                    login.refused = None;
                    return Ok(Session { reference, at });
                }
                Err(failure) => match failure.code.as_str() {
                    "HOST_IS_SLAVE" => {
                        at = self.coordinator(login, &at, &failure).map_err(LoginError::Final)?
                    }
                    "SESSION_AUTHENTICATION_FAILED" | "SESSION_AUTHORIZATION_FAILED" => {
                        error!(pool = %self.wire.pool, user = %self.user, %failure, "the pool refused the login");
                        login.refused = Some((failure.clone(), Instant::now() + self.login_cooldown));
                        return Err(LoginError::Final(CallError::LoginRefused { failure }));
                    }
                    "HOST_STILL_BOOTING" | "HOST_IN_EMERGENCY_MODE" => {
                        return Err(LoginError::Away(format!("{at}: {failure}")));
                    }
                    _ => return Err(LoginError::Final(CallError::Failed { method: LOGIN, failure })),
                },
            }
        }
        Err(LoginError::Away(format!("{at}: still no coordinator after {MAX_HOPS} redirects")))
    }

    async fn login_at(
        &self,
        login: &mut Login,
        at: &Endpoint,
    ) -> Result<Result<String, Failure>, LoginError> {
        loop {
            let mut params = vec![Value::string(&self.user), Value::string(self.password.expose())];
            let short = login.short || self.originator.is_empty();
            if !short {
                params.extend([Value::string(CLIENT_VERSION), Value::string(&self.originator)]);
            }
            let unreadable =
                |detail: String| LoginError::Final(CallError::Protocol { method: LOGIN, detail });
            let body = codec::encode_call(LOGIN, &params)
                .map_err(|error| unreadable(format!("not sent: {error}")))?;
            match self.wire.post(at, body).await {
                Ok(Err(failure)) if failure.is("MESSAGE_PARAMETER_COUNT_MISMATCH") && !short => {
                    login.short = true
                }
                Ok(Err(failure)) => return Ok(Err(scrubbed(failure, self.password.expose()))),
                Ok(Ok(Value::String(reference))) => return Ok(Ok(reference)),
                Ok(Ok(_)) => return Err(unreadable("not a reference".to_owned())),
                Err(PostError::NotSent(detail) | PostError::NoAnswer(detail)) => {
                    return Err(LoginError::Away(format!("{at}: {detail}")));
                }
                Err(PostError::Untrusted(detail)) => {
                    return Err(LoginError::Final(CallError::Untrusted { detail }));
                }
                Err(PostError::Unreadable(detail)) => return Err(unreadable(format!("{at}: {detail}"))),
            }
        }
    }

    /// Asks the pool for its members, for the day the coordinator moves. Without an answer the old ones stay.
    async fn learn(&self, login: &mut Login, session: &Session) {
        let Ok(body) =
            codec::encode_call(Method::HostGetAllRecords.name(), &[Value::string(&session.reference)])
        else {
            return;
        };
        let Ok(Ok(Ok(Value::Struct(hosts)))) =
            timeout(LEARN_DEADLINE, self.wire.post(&session.at, body)).await
        else {
            debug!(pool = %self.wire.pool, "the pool did not list its members");
            return;
        };
        login.learnt = addresses(&hosts, self.home.port);
    }

    /// The coordinator that a HOST_IS_SLAVE answer names, if it is one that we know.
    fn coordinator(&self, login: &Login, at: &Endpoint, failure: &Failure) -> Result<Endpoint, CallError> {
        let named = failure.params.first().map_or("", String::as_str);
        if let Some(known) = endpoint::find(named, self.known(login)) {
            info!(pool = %self.wire.pool, from = %at, to = %known, "the coordinator is another member");
            return Ok(known.clone());
        }
        let named: String =
            named.chars().take(LONGEST_NAME_SHOWN).filter(|shown| !shown.is_control()).collect();
        let detail = format!(
            "pool {}: {at} says that the coordinator is `{named}`, which is no member that we know; nothing was sent \
             there. If it is one, add it to pool.{}.members",
            self.wire.pool, self.wire.pool
        );
        error!(pool = %self.wire.pool, from = %at, %named, "a member names a stranger as coordinator");
        Err(CallError::Untrusted { detail })
    }

    fn known<'s>(&'s self, login: &'s Login) -> impl Iterator<Item = &'s Endpoint> {
        std::iter::once(&self.home).chain(&self.members).chain(&login.learnt)
    }

    fn no_answer(&self, method: Method, sent: bool, detail: String) -> CallError {
        if sent && method.changes_the_pool() {
            CallError::Unknown { method: method.name(), detail }
        } else {
            CallError::Unreachable { detail: format!("{}: {detail}", method.name()) }
        }
    }

    async fn call_from(&self, place: Place, method: Method, params: Vec<Value>) -> Result<Value, CallError> {
        let started = Instant::now();
        let outcome = self.timed(method, params, place).await;
        let class = outcome.as_ref().err().map(CallError::class);
        debug!(pool = %self.wire.pool, method = method.name(), took = ?started.elapsed(), ?class, "called the pool");
        outcome
    }
}

impl Transport for Client {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.call_from(Place::Ordinary, method, params).boxed()
    }
}

/// The same pool for putting settings back: its calls find a place also where a fleet's other calls take all that
/// they may.
#[derive(Debug, Clone)]
pub struct WayBack(pub Arc<Client>);

impl Transport for WayBack {
    fn call<'a>(&'a self, method: Method, params: Vec<Value>) -> BoxFuture<'a, Result<Value, CallError>> {
        self.0.call_from(Place::WayBack, method, params).boxed()
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

/// The addresses in `host.get_all_records`; a host whose record cannot be read is left out.
fn addresses(hosts: &BTreeMap<String, Value>, port: u16) -> Vec<Endpoint> {
    let hosts = hosts.iter().filter_map(|(reference, host)| HostRecord::decode(reference, host).ok());
    hosts.filter_map(|host| Endpoint::parse(&host.address, port)).collect()
}

/// How often a HOST_IS_SLAVE answer is followed in one call.
const MAX_HOPS: u32 = 3;
const LOGIN: &str = Method::SessionLogin.name();
/// `session.login_with_password`'s third parameter; xapi ignores it.
const CLIENT_VERSION: &str = "1.0";
const DEFAULT_CALLS_AT_ONCE: usize = 8;
const LOGIN_COOLDOWN: Duration = Duration::from_secs(60);
const LEARN_DEADLINE: Duration = Duration::from_secs(5);
const LOGOUT_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_NAME_SHOWN: usize = 64;

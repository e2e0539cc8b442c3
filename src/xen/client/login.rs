//! Sessions: where to log in, as whom, and whether it is still the same pool that lets us in.
//!
//! Invariants: one login at a time. The password goes to known members only, and to none that turned out to be of
//! another pool. A session is used only where the pool's uuid is the one kept, and no other member says that it, or
//! a third one, is the coordinator.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};
use tracing::{debug, error, info, warn};

use super::{
    CallError, Client, Failure, Method, Value, codec,
    endpoint::{self, Endpoint},
    scrubbed,
    wire::PostError,
};
use crate::xen::{
    identity::Identity,
    records::{HostRecord, PoolRecord, Record},
};

/// What is known of the session; the lock around it makes logins one at a time.
#[derive(Default)]
pub(super) struct Login {
    pub(super) session: Option<Arc<Session>>,
    /// Where the coordinator was last, tried first.
    coordinator: Option<Endpoint>,
    /// Members that said since the last good login that they are not the coordinator.
    others: Vec<Endpoint>,
    /// The members as the pool listed them after the last good login; replaced, not added to, because an ejected
    /// host is no member any more.
    learnt: Vec<Endpoint>,
    /// What cannot be used for now, and until when: user and password were refused, or two members answered as
    /// coordinator.
    barred: Option<(CallError, Instant)>,
    /// Which pool this is, once known.
    identity: Option<Identity>,
    /// Addresses that turned out to be of another pool, and what was found: never spoken to again.
    impostors: Vec<(Endpoint, String)>,
    /// The server is older than 6.2 and takes no originator.
    short: bool,
}

pub(super) struct Session {
    pub(super) reference: String,
    pub(super) at: Endpoint,
}

/// Why a login at one member did not succeed.
enum LoginError {
    /// Another member may do better.
    Away(String),
    /// It is of another pool, which is noted.
    Impostor,
    /// No other member will.
    Final(CallError),
}

/// What another member says when asked for a session.
enum Says {
    /// It is a coordinator: of this pool, with this host (a reference) as the pool's master.
    Coordinator(PoolRecord),
    /// This one is.
    Follows(String),
    /// Nothing that can be used.
    Nothing,
}

impl Client {
    /// Forgets a session that is of no use any more, unless another call already has a newer one. `next` is the
    /// coordinator that the member named instead.
    pub(super) async fn leave(&self, session: &Arc<Session>, next: Option<Endpoint>) {
        let mut login = self.login.lock().await;
        if login.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            login.session = None;
            if next.is_some() {
                login.coordinator = next;
                login.others.push(session.at.clone());
            }
        }
    }

    /// Follows a HOST_IS_SLAVE answer to a call.
    pub(super) async fn follow(&self, session: &Arc<Session>, failure: &Failure) -> Result<(), CallError> {
        let next = self.coordinator(&*self.login.lock().await, &session.at, failure)?;
        self.leave(session, Some(next)).await;
        Ok(())
    }

    /// The session, after a login if need be.
    pub(super) async fn session(&self) -> Result<Arc<Session>, CallError> {
        let mut login = self.login.lock().await;
        if let Some(session) = &login.session {
            return Ok(Arc::clone(session));
        }
        if let Some((error, until)) = &login.barred
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        login.barred = None;
        self.recall(&mut login).await?;
        let mut tried = Vec::new();
        for candidate in self.candidates(&login) {
            // Found out within this very round.
            if login.impostors.iter().any(|(impostor, _)| *impostor == candidate) {
                continue;
            }
            match self.accepted_from(&mut login, candidate).await {
                Ok(session) => {
                    info!(pool = %self.wire.pool, coordinator = %session.at, "logged in to the pool");
                    login.coordinator = Some(session.at.clone());
                    login.others.clear();
                    let session = Arc::new(session);
                    login.session = Some(Arc::clone(&session));
                    return Ok(session);
                }
                Err(LoginError::Away(detail)) => tried.push(detail),
                Err(LoginError::Impostor) => {}
                Err(LoginError::Final(error)) => return Err(error),
            }
        }
        Err(self.nobody(&login, &tried))
    }

    /// No member let us in.
    fn nobody(&self, login: &Login, tried: &[String]) -> CallError {
        let impostors = login.impostors.iter().map(|(_, found)| found.as_str());
        let all: Vec<&str> = impostors.chain(tried.iter().map(String::as_str)).collect();
        let detail = format!("pool {}: {}", self.wire.pool, all.join("; "));
        if login.impostors.is_empty() {
            CallError::Unreachable { detail }
        } else {
            CallError::Untrusted { detail }
        }
    }

    /// Reads, once, which pool this was in earlier runs.
    async fn recall(&self, login: &mut Login) -> Result<(), CallError> {
        let Some(keeper) = self.keeper.as_ref().filter(|_| login.identity.is_none()) else { return Ok(()) };
        let unknown = |detail: String| CallError::Unreachable {
            detail: format!(
                "pool {}: cannot tell whether it is the same pool as before: {detail}",
                self.wire.pool
            ),
        };
        login.identity = keeper.kept().await.map_err(unknown)?;
        if let Some(identity) = &login.identity {
            login.coordinator = Endpoint::parse(&identity.coordinator, self.home.port);
        }
        Ok(())
    }

    /// Where to try, in order.
    fn candidates(&self, login: &Login) -> Vec<Endpoint> {
        let mut candidates: Vec<Endpoint> = Vec::new();
        for candidate in login.coordinator.iter().chain(self.known(login)) {
            let shunned = login.impostors.iter().any(|(impostor, _)| impostor == candidate);
            if !shunned && !candidates.contains(candidate) {
                candidates.push(candidate.clone());
            }
        }
        candidates
    }

    /// Logs in at a member, or at the coordinator that it names, and looks whether that may be used.
    async fn accepted_from(&self, login: &mut Login, start: Endpoint) -> Result<Session, LoginError> {
        let session = self.login_from(login, start).await?;
        if let Err(refusal) = self.accept(login, &session).await {
            self.end(&session).await;
            return Err(refusal);
        }
        Ok(session)
    }

    /// Logs in at a member, or at the coordinator that it names.
    async fn login_from(&self, login: &mut Login, start: Endpoint) -> Result<Session, LoginError> {
        let mut at = start;
        for _ in 0..=MAX_HOPS {
            self.wire.trusted().map_err(LoginError::Final)?;
            match self.login_at(login, &at).await? {
                Ok(reference) => return Ok(Session { reference, at }),
                Err(failure) => match failure.code.as_str() {
                    "HOST_IS_SLAVE" => {
                        let next = self.coordinator(login, &at, &failure).map_err(LoginError::Final)?;
                        login.others.push(std::mem::replace(&mut at, next));
                    }
                    "SESSION_AUTHENTICATION_FAILED" | "SESSION_AUTHORIZATION_FAILED" => {
                        error!(pool = %self.wire.pool, user = %self.user, %failure, "the pool refused the login");
                        return Err(LoginError::Final(self.bar(login, CallError::LoginRefused { failure })));
                    }
                    code if STARTING.contains(&code) => {
                        return Err(LoginError::Away(format!("{at}: {failure}")));
                    }
                    _ => return Err(LoginError::Final(CallError::Failed { method: LOGIN, failure })),
                },
            }
        }
        Err(LoginError::Away(format!("{at}: still no coordinator after {MAX_HOPS} redirects")))
    }

    /// Remembers for a while that no login is of use.
    fn bar(&self, login: &mut Login, error: CallError) -> CallError {
        login.barred = Some((error.clone(), Instant::now() + self.login_cooldown));
        error
    }

    async fn login_at(
        &self,
        login: &mut Login,
        at: &Endpoint,
    ) -> Result<Result<String, Failure>, LoginError> {
        loop {
            let short = login.short || self.originator.is_empty();
            let unreadable =
                |detail: String| LoginError::Final(CallError::Protocol { method: LOGIN, detail });
            let body = codec::encode_call(LOGIN, &self.credentials(short))
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

    fn credentials(&self, short: bool) -> Vec<Value> {
        let mut params = vec![Value::string(&self.user), Value::string(self.password.expose())];
        if !short {
            params.extend([Value::string(CLIENT_VERSION), Value::string(&self.originator)]);
        }
        params
    }

    /// Whether the member that let us in is what it was: the same pool, and its only coordinator.
    async fn accept(&self, login: &mut Login, session: &Session) -> Result<(), LoginError> {
        let pool = self.pool_record(session).await;
        if let Some(kept) = &login.identity {
            let Some(pool) = &pool else {
                let detail = format!("{}: it does not tell which pool it is", session.at);
                return Err(LoginError::Away(detail));
            };
            if pool.uuid != kept.pool_uuid {
                let detail = format!(
                    "{} is pool {} now and not {}; nothing more is sent there. If the pool was made anew on \
                     purpose, stop the server, run `bootflip pool forget {}`, and start it again",
                    session.at, pool.uuid, kept.pool_uuid, self.wire.pool
                );
                error!(pool = %self.wire.pool, peer = %session.at, uuid = %pool.uuid, kept = %kept.pool_uuid, "another pool answers");
                login.impostors.push((session.at.clone(), detail.clone()));
                return Err(LoginError::Impostor);
            }
        }
        let hosts = self.learn(login, session).await;
        let Some(pool) = pool else { return Ok(()) };
        if self.keeper.is_some() {
            let own =
                hosts.iter().find(|host| host.reference == pool.master).map(|host| host.address.as_str());
            self.is_only_coordinator(login, session, &pool, own).await?;
        }
        let identity = Identity { pool_uuid: pool.uuid, coordinator: session.at.to_string() };
        if login.identity.as_ref() != Some(&identity) {
            if let Some(keeper) = &self.keeper
                && let Err(detail) = keeper.keep(identity.clone()).await
            {
                // The next login tries again; this one is good.
                warn!(pool = %self.wire.pool, %detail, "the pool's identity could not be kept");
                return Ok(());
            }
            login.identity = Some(identity);
        }
        Ok(())
    }

    /// Asks every other member whether it has another opinion. Members that do not answer have none. `own`: the
    /// coordinator's address as the pool has it, which may be another than we use.
    async fn is_only_coordinator(
        &self,
        login: &mut Login,
        session: &Session,
        pool: &PoolRecord,
        own: Option<&str>,
    ) -> Result<(), LoginError> {
        let asked = |member: &Endpoint| *member != session.at && !login.others.contains(member);
        let mut others: Vec<Endpoint> = self.candidates(login).into_iter().filter(asked).collect();
        others.truncate(MOST_ASKED);
        let short = login.short;
        let said = join_all(others.iter().map(|member| self.opinion(member, short))).await;
        // The coordinator by all its names.
        let mut coordinator = vec![session.at.clone()];
        coordinator.extend(own.and_then(|own| Endpoint::parse(own, self.home.port)));
        for (member, says) in others.iter().zip(&said) {
            match says {
                Says::Coordinator(other) if other.uuid == pool.uuid && other.master == pool.master => {
                    coordinator.push(member.clone());
                }
                Says::Coordinator(other) if other.uuid == pool.uuid => {
                    return Err(LoginError::Final(self.two_coordinators(login, &session.at, member)));
                }
                Says::Coordinator(_) | Says::Follows(_) | Says::Nothing => {}
            }
        }
        for (member, says) in others.iter().zip(&said) {
            let Says::Follows(named) = says else { continue };
            let known = endpoint::find(named, self.known(login)).is_some();
            if known && endpoint::find(named, coordinator.iter()).is_none() {
                // It may not have heard of a change yet: that passes, or the operator sees it in this text.
                let detail = format!("{}: {member} follows another coordinator, {named}", session.at);
                return Err(LoginError::Away(detail));
            }
        }
        Ok(())
    }

    fn two_coordinators(&self, login: &mut Login, one: &Endpoint, two: &Endpoint) -> CallError {
        error!(pool = %self.wire.pool, %one, %two, "two members answer as coordinator");
        let detail = format!(
            "pool {}: {one} and {two} both answer as coordinator; nothing is changed until one of them follows the \
             other. One has an old database: find out which (xe pool-list params=master on both), and run \
             `xe pool-recover-slaves` on the right one",
            self.wire.pool
        );
        self.bar(login, CallError::Untrusted { detail })
    }

    /// What a member says when asked for a session, which is given back at once.
    async fn opinion(&self, member: &Endpoint, short: bool) -> Says {
        let Ok(body) = codec::encode_call(LOGIN, &self.credentials(short)) else { return Says::Nothing };
        match timeout(OPINION_DEADLINE, self.wire.post(member, body)).await {
            Ok(Ok(Ok(Value::String(reference)))) => {
                let session = Session { reference, at: member.clone() };
                let pool = self.pool_record(&session).await;
                self.end(&session).await;
                pool.map_or(Says::Nothing, Says::Coordinator)
            }
            Ok(Ok(Err(failure))) if failure.is("HOST_IS_SLAVE") => {
                Says::Follows(failure.params.into_iter().next().unwrap_or_default())
            }
            Ok(Ok(_) | Err(_)) | Err(_) => Says::Nothing,
        }
    }

    /// Ends a session that will not be used. What comes of it does not matter: the pool forgets idle sessions.
    pub(super) async fn end(&self, session: &Session) {
        let logout = Method::SessionLogout.name();
        let Ok(body) = codec::encode_call(logout, &[Value::string(&session.reference)]) else { return };
        let outcome = timeout(LOGOUT_DEADLINE, self.wire.post(&session.at, body)).await;
        debug!(pool = %self.wire.pool, answered = matches!(outcome, Ok(Ok(_))), "logged out");
    }

    async fn all_records(&self, session: &Session, method: Method) -> Option<BTreeMap<String, Value>> {
        let body = codec::encode_call(method.name(), &[Value::string(&session.reference)]).ok()?;
        match timeout(LEARN_DEADLINE, self.wire.post(&session.at, body)).await {
            Ok(Ok(Ok(Value::Struct(records)))) => Some(records),
            Ok(Ok(_) | Err(_)) | Err(_) => None,
        }
    }

    async fn pool_record(&self, session: &Session) -> Option<PoolRecord> {
        let records = self.all_records(session, Method::PoolGetAllRecords).await?;
        records.iter().find_map(|(reference, pool)| PoolRecord::decode(reference, pool).ok())
    }

    /// Asks the pool for its members, for the day the coordinator moves. Without an answer the old ones stay. A host
    /// whose record cannot be read is left out.
    async fn learn(&self, login: &mut Login, session: &Session) -> Vec<HostRecord> {
        let Some(hosts) = self.all_records(session, Method::HostGetAllRecords).await else {
            debug!(pool = %self.wire.pool, "the pool did not list its members");
            return Vec::new();
        };
        let hosts = hosts.iter().filter_map(|(reference, host)| HostRecord::decode(reference, host).ok());
        let hosts: Vec<HostRecord> = hosts.collect();
        let address = |host: &HostRecord| Endpoint::parse(&host.address, self.home.port);
        login.learnt = hosts.iter().filter_map(address).collect();
        hosts
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
}

/// The toolstack starts, or has no coordinator: it did nothing, and may answer in some minutes.
pub(super) const STARTING: [&str; 2] = ["HOST_STILL_BOOTING", "HOST_IN_EMERGENCY_MODE"];
/// How often a HOST_IS_SLAVE answer is followed in one call.
pub(super) const MAX_HOPS: u32 = 3;
const LOGIN: &str = Method::SessionLogin.name();
/// `session.login_with_password`'s third parameter; xapi ignores it.
const CLIENT_VERSION: &str = "1.0";
/// How many other members are asked for their opinion after a login.
const MOST_ASKED: usize = 16;
const OPINION_DEADLINE: Duration = Duration::from_secs(3);
const LEARN_DEADLINE: Duration = Duration::from_secs(5);
const LOGOUT_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST_NAME_SHOWN: usize = 64;

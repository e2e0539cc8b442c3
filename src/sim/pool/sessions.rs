//! Accounts and sessions: logins, how long a session lives, how many may live (xapi `db_gc_util`), and what a
//! session tells of itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use super::{
    DEFAULT_USER, Pool,
    calls::{date, text_param},
    events::Subscription,
    messages,
    release::{BOSTON, CLEARWATER, CREEDENCE, NILE, Release},
    schema::NULL,
    spec::Role,
};
use crate::{
    clock::Timestamp,
    secret::Secret,
    xen::{Failure, Value},
};

/// A session that nobody used for this long is gone.
const IDLE_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How many sessions may live: in all on 5.6, in all on 6.0 to 6.2, and later those of root without an originator,
/// of one originator, of one other user.
const LIMIT_5_6: usize = 200;
const LIMIT_6_0: usize = 400;
const LIMIT_ANONYMOUS: usize = 400;
const LIMIT_GROUP: usize = 500;

/// Stands for the user of calls without a session.
const TRUSTED: &str = "trusted";

/// A living session.
#[derive(Debug)]
pub(super) struct Session {
    role: Role,
    user: String,
    originator: String,
    last_active: Timestamp,
    /// Sessions in the order of their logins.
    number: u64,
    /// What `event.next` tells; nothing until `event.register`.
    pub(super) registered: Option<Registered>,
}

/// What a session registered for, and how far it has been told.
#[derive(Debug)]
pub(super) struct Registered {
    pub(super) classes: Subscription,
    pub(super) told: u64,
}

/// Who calls: the role, and the session where there is one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Actor<'a> {
    pub(super) caller: super::Caller,
    pub(super) role: Role,
    /// Empty for a trusted call and for a person.
    pub(super) session: &'a str,
}

/// The pool's accounts and sessions.
#[derive(Debug, Default)]
pub(super) struct Doors {
    accounts: HashMap<String, (Secret, Role)>,
    sessions: HashMap<String, Session>,
    logins: u64,
}

impl Doors {
    pub(super) fn add_account(&mut self, user: &str, password: Secret, role: Role) {
        self.accounts.insert(user.to_owned(), (password, role));
    }

    pub(super) fn close(&mut self, reference: &str) {
        self.sessions.remove(reference);
    }

    pub(super) fn close_all(&mut self) {
        self.sessions.clear();
    }

    pub(super) fn get(&self, reference: &str) -> Option<&Session> {
        self.sessions.get(reference)
    }

    pub(super) fn get_mut(&mut self, reference: &str) -> Option<&mut Session> {
        self.sessions.get_mut(reference)
    }

    /// The session's role; the use keeps it alive. `None`: there is no such session, or none any more.
    pub(super) fn enter(&mut self, now: Timestamp, reference: &str) -> Option<Role> {
        let session = self.sessions.get_mut(reference)?;
        if now.since(session.last_active) > IDLE_LIMIT {
            self.sessions.remove(reference);
            return None;
        }
        session.last_active = session.last_active.max(now);
        Some(session.role)
    }

    /// Expired sessions go, and of a group with too many members the one that was idle longest.
    fn collect(&mut self, now: Timestamp, release: Release, newest: &str) {
        self.sessions.retain(|_, session| now.since(session.last_active) <= IDLE_LIMIT);
        let Some((group, limit)) = self.get(newest).map(|session| group(release, session)) else { return };
        let members = || self.sessions.iter().filter(|(_, session)| self::group(release, session).0 == group);
        if members().count() <= limit {
            return;
        }
        let idle = |(_, session): &(&String, &Session)| (session.last_active, session.number);
        if let Some(reference) = members().min_by_key(idle).map(|(reference, _)| reference.clone()) {
            self.sessions.remove(&reference);
        }
    }
}

/// Which sessions share a limit with this one, and the limit.
fn group(release: Release, session: &Session) -> (String, usize) {
    if release.api < BOSTON {
        (String::new(), LIMIT_5_6)
    } else if release.api < CREEDENCE {
        (String::new(), LIMIT_6_0)
    } else if session.user != DEFAULT_USER {
        (format!("user {}", session.user), LIMIT_GROUP)
    } else if session.originator.is_empty() {
        ("anonymous".to_owned(), LIMIT_ANONYMOUS)
    } else {
        (format!("originator {}", session.originator), LIMIT_GROUP)
    }
}

impl Pool {
    /// How many sessions live.
    pub fn session_count(&self) -> usize {
        self.doors.sessions.len()
    }

    pub(super) fn login(&mut self, now: Timestamp, params: &[Value]) -> Result<Value, Failure> {
        let (user, password) = (text_param(params, 0)?, text_param(params, 1)?);
        let originator = params.get(3).and_then(Value::as_str).unwrap_or_default();
        let role = match self.doors.accounts.get(user) {
            Some((known, role)) if known.expose() == password => *role,
            _ => {
                return Err(Failure::new("SESSION_AUTHENTICATION_FAILED", &[user, "Authentication failure"]));
            }
        };
        let reference = self.rng.reference();
        self.doors.logins += 1;
        let session = Session {
            role,
            user: user.to_owned(),
            originator: originator.to_owned(),
            last_active: now,
            number: self.doors.logins,
            registered: None,
        };
        self.doors.sessions.insert(reference.clone(), session);
        self.doors.collect(now, self.release, &reference);
        Ok(Value::String(reference))
    }

    /// What a session tells of itself: `session.get_record` and the getters of its members. The parameter is its
    /// reference; a trusted caller, who has none, leaves it out.
    pub(super) fn session_message(
        &self,
        actor: Actor<'_>,
        message: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        let trusted = actor.session.is_empty() && params.is_empty();
        let record = if trusted {
            self.record_of(actor.role, TRUSTED, "", "", Timestamp::from_millis(0))
        } else {
            let reference = text_param(params, 0)?;
            let session = self.doors.get(reference);
            let session = session.ok_or_else(|| Failure::new("HANDLE_INVALID", &["session", reference]))?;
            let uuid = reference.trim_start_matches("OpaqueRef:");
            self.record_of(session.role, &session.user, &session.originator, uuid, session.last_active)
        };
        if message == "get_record" {
            return Ok(Value::Struct(record));
        }
        let member = message.strip_prefix("get_").and_then(|name| record.get(name)).cloned();
        Ok(member.unwrap_or_else(Value::void))
    }

    fn record_of(
        &self,
        role: Role,
        user: &str,
        originator: &str,
        uuid: &str,
        last_active: Timestamp,
    ) -> BTreeMap<String, Value> {
        // Root is no subject: xapi lists no permission for it.
        let is_root = user == DEFAULT_USER || user == TRUSTED && role == Role::PoolAdmin;
        let map = || Value::Struct(BTreeMap::new());
        let set = || Value::Array(Vec::new());
        let mut members = vec![
            ("uuid", Value::string(uuid)),
            ("this_host", Value::string(self.host_ref(self.coordinator))),
            ("this_user", Value::string(NULL)),
            ("last_active", Value::DateTime(date(last_active))),
            ("pool", Value::Bool(false)), // true for a session of a pool member
            ("other_config", map()),
            ("is_local_superuser", Value::Bool(is_root)),
            ("subject", Value::string(NULL)),
            ("validation_time", Value::DateTime(date(last_active))),
            ("auth_user_sid", Value::void()),
            ("auth_user_name", Value::string(if is_root { "" } else { user })),
            ("rbac_permissions", if is_root { set() } else { self.permissions_of(role) }),
            ("tasks", set()),
            ("parent", Value::string(NULL)),
        ];
        if self.release.api >= CLEARWATER {
            members.push(("originator", Value::string(originator)));
        }
        if self.release.api >= NILE {
            members.push(("client_certificate", Value::Bool(false)));
        }
        members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The permissions of a role, in lower case as xapi keeps them.
    fn permissions_of(&self, role: Role) -> Value {
        let may = messages::all(self.release.api).into_iter().filter(|(_, known)| role >= known.role);
        let names: BTreeSet<String> = may.map(|(name, _)| name.to_lowercase()).collect();
        Value::Array(names.into_iter().map(Value::String).collect())
    }
}

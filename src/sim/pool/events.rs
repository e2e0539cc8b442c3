//! `event.from`, and the older `event.next`: what changed since a token, or since a session was last told. Answers
//! at once, with an empty batch when nothing did; waiting is the body's work (it watches [`Pool::revision`]).

use std::collections::BTreeMap;

use super::{Pool, calls::text_param, db::Row, schema::Class, sessions::Registered};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// How many events xapi keeps for `event.next`.
const QUEUE_LIMIT: u64 = 500;

/// A subscription: whole classes, or single objects.
#[derive(Debug, Default)]
pub(super) struct Subscription {
    classes: Vec<Class>,
    objects: Vec<(Class, String)>,
}

impl Subscription {
    fn read(params: &[Value]) -> Result<Self, Failure> {
        let bad = |text: &str| Failure::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", &[text]);
        let Some(Value::Array(wanted)) = params.first() else { return Err(bad("classes")) };
        let mut subscription = Self::default();
        for text in wanted.iter().filter_map(Value::as_str) {
            let (name, object) =
                text.split_once('/').map_or((text, None), |(name, object)| (name, Some(object)));
            let class = || Class::ALL.into_iter().find(|class| class.name().eq_ignore_ascii_case(name));
            match object {
                _ if name == "*" => subscription.classes.extend(Class::ALL),
                // A class that the model lacks never has events.
                None => subscription.classes.extend(class()),
                Some(object) => {
                    subscription.objects.push((class().ok_or_else(|| bad(text))?, object.to_owned()))
                }
            }
        }
        Ok(subscription)
    }

    fn covers(&self, class: Class, reference: &str) -> bool {
        self.classes.contains(&class) || self.objects.iter().any(|(of, one)| *of == class && one == reference)
    }

    fn touches(&self, class: Class) -> bool {
        self.classes.contains(&class) || self.objects.iter().any(|(of, _)| *of == class)
    }
}

impl Pool {
    /// Whether [`Method::EventFrom`](crate::xen::Method::EventFrom) with these parameters (without a session) has
    /// anything to answer now: events or a refusal.
    pub fn has_events(&self, params: &[Value]) -> bool {
        let (Ok(subscription), Ok(since)) = (Subscription::read(params), self.token_revision(params)) else {
            return true;
        };
        since.is_none_or(|since| self.changed_since(&subscription, since))
    }

    /// Whether `event.next` has anything to answer to this session now: events or a refusal.
    pub fn has_next_events(&self, session: &str) -> bool {
        let registered = self.doors.get(session).and_then(|session| session.registered.as_ref());
        registered.is_none_or(|registered| self.changed_since(&registered.classes, registered.told))
    }

    /// Every event so far is lost: tokens and registrations from before get EVENTS_LOST.
    pub const fn lose_events(&mut self) {
        self.events_lost_to = self.db.skip_revision();
    }

    fn changed_since(&self, subscription: &Subscription, since: u64) -> bool {
        let touched = |class: Class| {
            self.db
                .rows(class)
                .any(|(reference, row)| row.modified > since && subscription.covers(class, reference))
        };
        since < self.events_lost_to
            || since < self.db.revision()
                && (Class::ALL.into_iter().any(touched)
                    || self.db.gone_after(since).any(|gone| subscription.covers(gone.class, &gone.reference)))
    }

    /// Parameters: classes, token, timeout.
    pub(super) fn event_from(&self, now: Timestamp, params: &[Value]) -> Result<Value, Failure> {
        let subscription = Subscription::read(params)?;
        if !matches!(params.get(2), Some(Value::Double(_))) {
            return Err(Failure::new("FIELD_TYPE_ERROR", &["timeout"]));
        }
        let since = self.token_revision(params)?;
        let events = self.events_after(now, &subscription, since, true);
        let counts = Class::ALL.into_iter().filter(|class| subscription.touches(*class));
        let counts = counts
            .map(|class| (class.name().to_lowercase(), Value::string(self.db.count(class).to_string())));
        let members = [
            ("events", Value::Array(events)),
            ("valid_ref_counts", Value::Struct(counts.collect())),
            ("token", self.token()),
        ];
        Ok(Value::Struct(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
    }

    /// The token of what was told until now.
    fn token(&self) -> Value {
        Value::string(format!("{:020},{:020}", self.db.revision(), self.epoch))
    }

    /// The latest state of every object that changed after this revision, oldest change first; `None`: of every
    /// object.
    fn events_after(
        &self,
        now: Timestamp,
        subscription: &Subscription,
        since: Option<u64>,
        snapshots: bool,
    ) -> Vec<Value> {
        let mut events: Vec<(u64, Value)> = Vec::new();
        let after = since.unwrap_or(0);
        let at = Value::DateTime(super::calls::date(now));
        for class in Class::ALL.into_iter().filter(|class| subscription.touches(*class)) {
            let fresh = self.db.rows(class).filter(|(_, row)| row.modified > after);
            for (reference, row) in fresh.filter(|(reference, _)| subscription.covers(class, reference)) {
                let operation = if row.created > after { "add" } else { "mod" };
                let shown = snapshots.then_some(row);
                events.push((row.modified, event((row.modified, &at), class, operation, reference, shown)));
            }
        }
        let gone = self.db.gone_after(after).filter(|_| since.is_some());
        for gone in gone.filter(|gone| subscription.covers(gone.class, &gone.reference)) {
            events
                .push((gone.revision, event((gone.revision, &at), gone.class, "del", &gone.reference, None)));
        }
        events.sort_by_key(|(revision, _)| *revision);
        events.into_iter().map(|(_, event)| event).collect()
    }

    /// The revision in the token; `None`: from the beginning. A token of an earlier coordinator is not continued.
    fn token_revision(&self, params: &[Value]) -> Result<Option<u64>, Failure> {
        let token = text_param(params, 1)?;
        if token.is_empty() {
            return Ok(None);
        }
        let bad = || Failure::new("EVENT_FROM_TOKEN_PARSE_FAILURE", &[token]);
        let (revision, epoch) = token.split_once(',').ok_or_else(bad)?;
        let revision: u64 = revision.parse().map_err(|_| bad())?;
        let epoch: u32 = epoch.parse().map_err(|_| bad())?;
        let known = epoch == self.epoch && revision >= self.events_lost_to.max(self.db.forgotten_to());
        if known { Ok(Some(revision)) } else { Err(Failure::new("EVENTS_LOST", &[])) }
    }

    /// The messages of the class `event` but `event.from`.
    pub(super) fn event_message(
        &mut self,
        now: Timestamp,
        session: &str,
        message: &str,
        params: &[Value],
    ) -> Result<Value, Failure> {
        match message {
            "register" | "unregister" => {
                let classes = Subscription::read(params)?;
                let told = self.db.revision();
                let session = self.registering(session)?;
                session.registered = (message == "register").then_some(Registered { classes, told });
                Ok(Value::void())
            }
            "next" => self.event_next(now, session),
            "inject" => self.inject(text_param(params, 0)?, text_param(params, 1)?),
            _ => Ok(Value::string(self.db.revision().to_string())),
        }
    }

    fn registering(&mut self, session: &str) -> Result<&mut super::sessions::Session, Failure> {
        self.doors.get_mut(session).ok_or_else(|| Failure::new("SESSION_INVALID", &[session]))
    }

    fn event_next(&mut self, now: Timestamp, session: &str) -> Result<Value, Failure> {
        let registered = self.doors.get(session).and_then(|session| session.registered.as_ref());
        let registered = registered.ok_or_else(|| Failure::new("SESSION_NOT_REGISTERED", &[session]))?;
        let (told, revision) = (registered.told, self.db.revision());
        if told < self.events_lost_to.max(self.db.forgotten_to())
            || revision.saturating_sub(told) > QUEUE_LIMIT
        {
            return Err(Failure::new("EVENTS_LOST", &[]));
        }
        let snapshots = self.release.has_event_snapshots();
        let events = self.events_after(now, &registered.classes, Some(told), snapshots);
        if let Some(registered) = self.registering(session)?.registered.as_mut() {
            registered.told = revision;
        }
        Ok(Value::Array(events))
    }

    /// `event.inject`: a change that changes nothing; answers a token from just before it.
    fn inject(&mut self, class: &str, reference: &str) -> Result<Value, Failure> {
        let known = Class::ALL.into_iter().find(|known| known.name().eq_ignore_ascii_case(class));
        let known = known.filter(|known| self.db.row(*known, reference).is_some());
        let known = known.ok_or_else(|| Failure::new("HANDLE_INVALID", &[class, reference]))?;
        let before = self.token();
        self.db.touch(known, reference);
        Ok(before)
    }
}

fn event(
    (id, at): (u64, &Value),
    class: Class,
    operation: &str,
    reference: &str,
    row: Option<&Row>,
) -> Value {
    let mut members: BTreeMap<String, Value> = [
        ("id", Value::string(id.to_string())),
        ("timestamp", at.clone()),
        ("class", Value::string(class.name().to_lowercase())),
        ("operation", Value::string(operation)),
        ("ref", Value::string(reference)),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value))
    .collect();
    if let Some(row) = row {
        members.insert("snapshot".to_owned(), Value::Struct(row.fields.clone()));
    }
    Value::Struct(members)
}

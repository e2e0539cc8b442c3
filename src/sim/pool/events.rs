//! `event.from`: what changed since a token. Answers at once, with an empty batch when nothing did; waiting is the
//! body's work (it watches [`Pool::revision`]).

use std::collections::BTreeMap;

use super::{Pool, calls::text_param, db::Row, schema::Class};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

/// A subscription: whole classes, or single objects.
struct Subscription {
    classes: Vec<Class>,
    objects: Vec<(Class, String)>,
}

impl Subscription {
    fn read(params: &[Value]) -> Result<Self, Failure> {
        let bad = |text: &str| Failure::new("EVENT_SUBSCRIPTION_PARSE_FAILURE", &[text]);
        let Some(Value::Array(wanted)) = params.first() else { return Err(bad("classes")) };
        let mut subscription = Self { classes: Vec::new(), objects: Vec::new() };
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
        let Some(since) = since else { return true };
        let touched = |class: Class| {
            self.db
                .rows(class)
                .any(|(reference, row)| row.modified > since && subscription.covers(class, reference))
        };
        since < self.db.revision()
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
        let mut events: Vec<(u64, Value)> = Vec::new();
        let after = since.unwrap_or(0);
        let at = Value::DateTime(super::calls::date(now));
        for class in Class::ALL.into_iter().filter(|class| subscription.touches(*class)) {
            let fresh = self.db.rows(class).filter(|(_, row)| row.modified > after);
            for (reference, row) in fresh.filter(|(reference, _)| subscription.covers(class, reference)) {
                let operation = if row.created > after { "add" } else { "mod" };
                events
                    .push((row.modified, event((row.modified, &at), class, operation, reference, Some(row))));
            }
        }
        let gone = self.db.gone_after(after).filter(|_| since.is_some());
        for gone in gone.filter(|gone| subscription.covers(gone.class, &gone.reference)) {
            events
                .push((gone.revision, event((gone.revision, &at), gone.class, "del", &gone.reference, None)));
        }
        events.sort_by_key(|(revision, _)| *revision);
        let counts = Class::ALL.into_iter().filter(|class| subscription.touches(*class));
        let counts = counts
            .map(|class| (class.name().to_lowercase(), Value::string(self.db.count(class).to_string())));
        let members = [
            ("events", Value::Array(events.into_iter().map(|(_, event)| event).collect())),
            ("valid_ref_counts", Value::Struct(counts.collect())),
            ("token", Value::string(format!("{:020},{:020}", self.db.revision(), self.epoch))),
        ];
        Ok(Value::Struct(members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()))
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
        if epoch == self.epoch { Ok(Some(revision)) } else { Err(Failure::new("EVENTS_LOST", &[])) }
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

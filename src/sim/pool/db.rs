//! The pool's database: rows of plain values, a revision per change, and what a crash of the coordinator forgets.
//!
//! Invariant: every change of a row goes through [`Db::set`], [`Db::insert`] or [`Db::remove`], so that events and
//! the undo journal see it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

use super::schema::{Class, NULL};
use crate::{clock::Timestamp, xen::Value};

/// A record's fields.
pub(super) type Fields = BTreeMap<String, Value>;

/// One record with its history's two ends.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) fields: Fields,
    pub(super) created: u64,
    pub(super) modified: u64,
}

/// A record that is gone.
#[derive(Debug, Clone)]
pub(super) struct Gone {
    pub(super) revision: u64,
    pub(super) class: Class,
    pub(super) reference: String,
}

/// How to forget one write.
#[derive(Debug, Clone)]
struct Undo {
    at: Timestamp,
    class: Class,
    reference: String,
    before: Before,
}

#[derive(Debug, Clone)]
enum Before {
    Field(String, Value),
    Absent,
    Row(Fields),
}

/// Xapi holds writes back for up to five minutes; older ones are on disk.
const JOURNAL_SPAN: Duration = Duration::from_secs(300);
/// How many removals are remembered for `event.from`.
const GONE_LIMIT: usize = 10_000;

/// The rows of every class.
#[derive(Debug, Clone, Default)]
pub(super) struct Db {
    rows: BTreeMap<Class, BTreeMap<String, Row>>,
    by_uuid: HashMap<String, (Class, String)>,
    gone: VecDeque<Gone>,
    /// Removals up to this revision are not remembered any more.
    forgotten_to: u64,
    journal: VecDeque<Undo>,
    revision: u64,
}

impl Db {
    /// Grows with every change.
    pub(super) const fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn rows(&self, class: Class) -> impl Iterator<Item = (&String, &Row)> {
        self.rows.get(&class).into_iter().flatten()
    }

    pub(super) fn count(&self, class: Class) -> usize {
        self.rows.get(&class).map_or(0, BTreeMap::len)
    }

    pub(super) fn gone_after(&self, revision: u64) -> impl Iterator<Item = &Gone> {
        self.gone.iter().skip_while(move |gone| gone.revision <= revision)
    }

    /// A token from before this revision cannot be continued.
    pub(super) const fn forgotten_to(&self) -> u64 {
        self.forgotten_to
    }

    /// A revision at which nothing changes.
    pub(super) const fn skip_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Marks a row as changed, though it is not.
    pub(super) fn touch(&mut self, class: Class, reference: &str) {
        if let Some(row) = self.rows.get_mut(&class).and_then(|rows| rows.get_mut(reference)) {
            self.revision += 1;
            row.modified = self.revision;
        }
    }

    pub(super) fn row(&self, class: Class, reference: &str) -> Option<&Row> {
        self.rows.get(&class)?.get(reference)
    }

    pub(super) fn by_uuid(&self, class: Class, uuid: &str) -> Option<&str> {
        let (of, reference) = self.by_uuid.get(uuid)?;
        (*of == class).then_some(reference)
    }

    pub(super) fn value(&self, class: Class, reference: &str, field: &str) -> Option<&Value> {
        self.row(class, reference)?.fields.get(field)
    }

    /// A text, reference, number or date; empty when there is none.
    pub(super) fn text(&self, class: Class, reference: &str, field: &str) -> &str {
        self.value(class, reference, field).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn flag(&self, class: Class, reference: &str, field: &str) -> bool {
        self.value(class, reference, field) == Some(&Value::Bool(true))
    }

    /// The texts of a set.
    pub(super) fn set_of(&self, class: Class, reference: &str, field: &str) -> Vec<String> {
        let Some(Value::Array(items)) = self.value(class, reference, field) else { return Vec::new() };
        items.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A map of texts.
    pub(super) fn map_of(&self, class: Class, reference: &str, field: &str) -> BTreeMap<String, String> {
        let Some(Value::Struct(members)) = self.value(class, reference, field) else {
            return BTreeMap::new();
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        members.iter().map(|(key, value)| (key.clone(), text(value))).collect()
    }

    /// Writes a field. A field that the release does not have, or a row that is gone, is left alone.
    pub(super) fn set(&mut self, now: Timestamp, class: Class, reference: &str, field: &str, value: Value) {
        let Some(row) = self.rows.get_mut(&class).and_then(|rows| rows.get_mut(reference)) else { return };
        let Some(slot) = row.fields.get_mut(field) else { return };
        if *slot == value {
            return;
        }
        let before = std::mem::replace(slot, value);
        self.revision += 1;
        row.modified = self.revision;
        self.note(now, class, reference, Before::Field(field.to_owned(), before));
    }

    pub(super) fn set_text(
        &mut self,
        now: Timestamp,
        class: Class,
        reference: &str,
        field: &str,
        text: &str,
    ) {
        self.set(now, class, reference, field, Value::string(text));
    }

    /// Adds a record.
    pub(super) fn insert(&mut self, now: Timestamp, class: Class, reference: String, fields: Fields) {
        self.note(now, class, &reference, Before::Absent);
        self.put(class, reference, fields);
    }

    /// Removes a record; absent is fine.
    pub(super) fn remove(&mut self, now: Timestamp, class: Class, reference: &str) {
        if let Some(row) = self.take(class, reference) {
            self.note(now, class, reference, Before::Row(row.fields));
        }
    }

    /// Everything so far is on disk.
    pub(super) fn sync(&mut self) {
        self.journal.clear();
    }

    /// Forgets the writes after `since` that were not synced.
    pub(super) fn forget_after(&mut self, since: Timestamp) {
        while self.journal.back().is_some_and(|undo| undo.at > since) {
            let Some(undo) = self.journal.pop_back() else { return };
            match undo.before {
                Before::Absent => drop(self.take(undo.class, &undo.reference)),
                Before::Row(fields) => self.put(undo.class, undo.reference, fields),
                Before::Field(field, value) => {
                    let row = self.rows.get_mut(&undo.class).and_then(|rows| rows.get_mut(&undo.reference));
                    if let Some(row) = row {
                        self.revision += 1;
                        row.modified = self.revision;
                        row.fields.insert(field, value);
                    }
                }
            }
        }
    }

    fn put(&mut self, class: Class, reference: String, fields: Fields) {
        if let Some(uuid) = fields.get("uuid").and_then(Value::as_str) {
            self.by_uuid.insert(uuid.to_owned(), (class, reference.clone()));
        }
        self.revision += 1;
        let row = Row { fields, created: self.revision, modified: self.revision };
        self.rows.entry(class).or_default().insert(reference, row);
    }

    fn take(&mut self, class: Class, reference: &str) -> Option<Row> {
        let row = self.rows.get_mut(&class)?.remove(reference)?;
        if let Some(uuid) = row.fields.get("uuid").and_then(Value::as_str) {
            self.by_uuid.remove(uuid);
        }
        self.revision += 1;
        self.gone.push_back(Gone { revision: self.revision, class, reference: reference.to_owned() });
        if self.gone.len() > GONE_LIMIT
            && let Some(oldest) = self.gone.pop_front()
        {
            self.forgotten_to = oldest.revision;
        }
        Some(row)
    }

    fn note(&mut self, at: Timestamp, class: Class, reference: &str, before: Before) {
        if class == Class::Task {
            return; // tasks do not outlive the coordinator's process at all
        }
        while self.journal.front().is_some_and(|undo| at.since(undo.at) > JOURNAL_SPAN) {
            self.journal.pop_front();
        }
        self.journal.push_back(Undo { at, class, reference: reference.to_owned(), before });
    }
}

/// The reference points at nothing.
pub(super) fn is_null(reference: &str) -> bool {
    reference.is_empty() || reference == NULL || reference == "Null"
}

//! Reads a record's members, and says which one is wrong.

use std::collections::BTreeMap;

use super::{RecordError, Value};

/// A record's members, with names for what is wrong with them.
pub(super) struct Fields<'v> {
    class: &'static str,
    members: &'v BTreeMap<String, Value>,
}

impl<'v> Fields<'v> {
    pub(super) const fn of(class: &'static str, value: &'v Value) -> Result<Self, RecordError> {
        match value {
            Value::Struct(members) => Ok(Self { class, members }),
            Value::String(_)
            | Value::Bool(_)
            | Value::Double(_)
            | Value::Int(_)
            | Value::DateTime(_)
            | Value::Array(_) => Err(RecordError::NotARecord { class }),
        }
    }

    pub(super) fn get(&self, field: &'static str) -> Result<&'v Value, RecordError> {
        self.members.get(field).ok_or(RecordError::Missing { class: self.class, field })
    }

    pub(super) const fn type_error(&self, field: &'static str, wanted: &'static str) -> RecordError {
        RecordError::Type { class: self.class, field, wanted }
    }

    pub(super) fn text(&self, field: &'static str) -> Result<String, RecordError> {
        let text = self.get(field)?.as_str();
        text.map(str::to_owned).ok_or_else(|| self.type_error(field, "text"))
    }

    pub(super) fn text_if(&self, field: &'static str) -> Result<Option<String>, RecordError> {
        if self.members.contains_key(field) { self.text(field).map(Some) } else { Ok(None) }
    }

    pub(super) fn flag(&self, field: &'static str) -> Result<bool, RecordError> {
        let Value::Bool(flag) = self.get(field)? else { return Err(self.type_error(field, "a boolean")) };
        Ok(*flag)
    }

    pub(super) fn flag_if(&self, field: &'static str) -> Result<Option<bool>, RecordError> {
        if self.members.contains_key(field) { self.flag(field).map(Some) } else { Ok(None) }
    }

    pub(super) fn parsed<T>(
        &self,
        field: &'static str,
        wanted: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, RecordError> {
        self.get(field)?.as_str().and_then(parse).ok_or_else(|| self.type_error(field, wanted))
    }

    pub(super) fn int(&self, field: &'static str) -> Result<i64, RecordError> {
        if let Value::Int(number) = self.get(field)? {
            return Ok(*number);
        }
        self.parsed(field, "an int", |text| text.parse().ok())
    }

    pub(super) fn bytes(&self, field: &'static str) -> Result<u64, RecordError> {
        u64::try_from(self.int(field)?).map_err(|_| self.type_error(field, "a size in bytes"))
    }

    pub(super) fn count(&self, field: &'static str) -> Result<u64, RecordError> {
        u64::try_from(self.int(field)?).map_err(|_| self.type_error(field, "a number of things"))
    }

    pub(super) fn version(&self, field: &'static str) -> Result<u32, RecordError> {
        u32::try_from(self.int(field)?).map_err(|_| self.type_error(field, "a version number"))
    }

    pub(super) fn float(&self, field: &'static str) -> Result<f64, RecordError> {
        let Value::Double(number) = self.get(field)? else { return Err(self.type_error(field, "a float")) };
        Ok(*number)
    }

    pub(super) fn map(&self, field: &'static str) -> Result<BTreeMap<String, String>, RecordError> {
        let bad = || self.type_error(field, "a map of strings");
        let Value::Struct(members) = self.get(field)? else { return Err(bad()) };
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(bad);
        members.iter().map(|(key, value)| Ok((key.clone(), text(value)?))).collect()
    }

    pub(super) fn set(&self, field: &'static str) -> Result<Vec<String>, RecordError> {
        let bad = || self.type_error(field, "a set of strings");
        let Value::Array(items) = self.get(field)? else { return Err(bad()) };
        items.iter().map(|item| item.as_str().map(str::to_owned).ok_or_else(bad)).collect()
    }
}

//! `get_all_records_where`, which every class of records has.

use std::collections::BTreeMap;

use super::{Pool, calls::text_param, expression::Expression, schema::Class};
use crate::xen::{Failure, Value};

impl Pool {
    /// The records that an expression picks.
    pub(super) fn records_where(&self, class: Class, params: &[Value]) -> Result<Value, Failure> {
        let text = text_param(params, 0)?;
        let invalid = || Failure::new("INVALID_VALUE", &["expr", text]);
        let expression = Expression::parse(text).ok_or_else(invalid)?;
        if expression.fields().iter().any(|field| class.field(self.release.api, field).is_none()) {
            return Err(invalid());
        }
        let mut records = BTreeMap::new();
        for (reference, row) in self.db.rows(class) {
            let field = |name: &str| row.fields.get(name).map(as_database_text);
            if expression.holds(&field) {
                records.insert(reference.clone(), Value::Struct(row.fields.clone()));
            }
        }
        Ok(Value::Struct(records))
    }
}

/// A value as the database keeps it, for comparison with a literal.
fn as_database_text(value: &Value) -> String {
    match value {
        Value::String(text) | Value::DateTime(text) => text.clone(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Array(_) | Value::Struct(_) => String::new(),
    }
}

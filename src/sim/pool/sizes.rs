//! Memory and VCPUs of a VM: the setters and the order that the limits must keep.

use super::{Pool, schema::Class};
use crate::{
    clock::Timestamp,
    xen::{Failure, Value},
};

const STATIC_MIN: &str = "memory_static_min";
const STATIC_MAX: &str = "memory_static_max";
const DYNAMIC_MIN: &str = "memory_dynamic_min";
const DYNAMIC_MAX: &str = "memory_dynamic_max";

impl Pool {
    /// The setters of memory and VCPUs; `None`: the message is none of them.
    pub(super) fn size_message(
        &mut self,
        now: Timestamp,
        vm: &str,
        message: &str,
        params: &[Value],
    ) -> Option<Result<Value, Failure>> {
        let fields: &[&str] = match message {
            "set_memory" => &[STATIC_MIN, STATIC_MAX, DYNAMIC_MIN, DYNAMIC_MAX],
            "set_memory_limits" => &[STATIC_MIN, STATIC_MAX, DYNAMIC_MIN, DYNAMIC_MAX],
            "set_memory_static_range" => &[STATIC_MIN, STATIC_MAX],
            "set_memory_dynamic_range" => &[DYNAMIC_MIN, DYNAMIC_MAX],
            "set_memory_static_min" => &[STATIC_MIN],
            "set_memory_static_max" => &[STATIC_MAX],
            "set_memory_dynamic_min" => &[DYNAMIC_MIN],
            "set_memory_dynamic_max" => &[DYNAMIC_MAX],
            "set_VCPUs_max" => &["VCPUs_max"],
            "set_VCPUs_at_startup" => &["VCPUs_at_startup"],
            _ => return None,
        };
        // `set_memory` gives one value to all limits.
        let place = |index: usize| if message == "set_memory" { 1 } else { index + 1 };
        let values: Result<Vec<u64>, Failure> = fields
            .iter()
            .enumerate()
            .map(|(index, field)| number_param(params, place(index), field))
            .collect();
        let written = values.and_then(|values| {
            let pairs: Vec<(&str, u64)> = fields.iter().copied().zip(values).collect();
            self.set_sizes(now, vm, &pairs)
        });
        Some(written.map(|()| Value::void()))
    }

    fn set_sizes(&mut self, now: Timestamp, vm: &str, pairs: &[(&str, u64)]) -> Result<(), Failure> {
        if !pairs.iter().all(|(field, _)| field.starts_with("memory_dynamic")) {
            self.check_halted(vm)?;
        }
        let value = |field: &str| {
            let given = pairs.iter().find(|(name, _)| *name == field).map(|(_, value)| *value);
            given.unwrap_or_else(|| self.number(vm, field))
        };
        let limits = [STATIC_MIN, DYNAMIC_MIN, DYNAMIC_MAX, STATIC_MAX].map(value);
        if !limits.is_sorted() {
            let words = "Memory limits must satisfy: static_min <= dynamic_min <= dynamic_max <= static_max";
            return Err(Failure::new("MEMORY_CONSTRAINT_VIOLATION", &[words]));
        }
        let (start, most) = (value("VCPUs_at_startup"), value("VCPUs_max"));
        if start == 0 || start > most {
            let words = "VCPU values must satisfy: 0 < VCPUs_at_startup <= VCPUs_max";
            return Err(Failure::new("INVALID_VALUE", &[words, &start.to_string()]));
        }
        for (field, value) in pairs {
            self.db.set_text(now, Class::Vm, vm, field, &value.to_string());
        }
        self.db.set_text(now, Class::Vm, vm, "memory_target", &self.number(vm, DYNAMIC_MAX).to_string());
        self.note_overhead(now, vm);
        Ok(())
    }
}

/// An int as it stands on the wire: a decimal in a string, from some clients an `<int>`.
fn number_param(params: &[Value], index: usize, field: &str) -> Result<u64, Failure> {
    let number = match params.get(index) {
        Some(Value::String(text)) => text.parse().ok(),
        Some(Value::Int(number)) => u64::try_from(*number).ok(),
        Some(Value::Bool(_) | Value::Double(_) | Value::DateTime(_) | Value::Array(_) | Value::Struct(_))
        | None => None,
    };
    number.ok_or_else(|| Failure::new("FIELD_TYPE_ERROR", &[field]))
}

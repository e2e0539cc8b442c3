//! What goes on in a pool: tasks and events.

use super::{Failure, Fields, Record, RecordError, Value};

/// `task.status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaskStatus {
    /// It goes on.
    Pending,
    /// It had its effect.
    Success,
    /// It failed; `error_info` says why.
    Failure,
    /// Somebody asked it to stop.
    Cancelling,
    /// It was stopped.
    Cancelled,
}

impl TaskStatus {
    /// As XenAPI spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Pending, Self::Success, Self::Failure, Self::Cancelling, Self::Cancelled]
            .into_iter()
            .find(|status| status.name() == text)
    }
}

/// What bootflip reads of a task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `status`.
    pub status: TaskStatus,
    /// `error_info`: a failure's code and parameters.
    pub error_info: Vec<String>,
    /// `result`, as sent: a value in XML such as `<value>OpaqueRef:…</value>`; empty for void.
    pub result: String,
    /// `progress`, 0 to 1.
    pub progress: f64,
}

impl TaskRecord {
    /// Why the task failed, when it did and said so.
    pub fn failure(&self) -> Option<Failure> {
        let (code, params) = self.error_info.split_first()?;
        Some(Failure { code: code.clone(), params: params.to_vec() })
    }
}

impl Record for TaskRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("task", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            status: fields.parsed("status", "a task_status_type", TaskStatus::parse)?,
            error_info: fields.set("error_info")?,
            result: fields.text("result")?,
            progress: fields.float("progress")?,
        })
    }
}

/// What `event.from` answers.
#[derive(Debug, Clone, PartialEq)]
pub struct EventBatch {
    /// Where to go on; belongs to this coordinator and session.
    pub token: String,
    /// The latest state of each object that changed; states in between may be left out.
    pub events: Vec<ObjectEvent>,
}

impl Record for EventBatch {
    fn decode(_reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("event batch", value)?;
        let Value::Array(events) = fields.get("events")? else {
            return Err(fields.type_error("events", "an array"));
        };
        let events = events.iter().map(|event| ObjectEvent::decode("", event)).collect::<Result<_, _>>()?;
        Ok(Self { token: fields.text("token")?, events })
    }
}

/// One object that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectEvent {
    /// `class`, in lower case: `vm`, `task`.
    pub class: String,
    /// `operation`: `add`, `mod` or `del`.
    pub operation: String,
    /// `ref`.
    pub reference: String,
    /// `snapshot`: the whole record; absent on `del`.
    pub snapshot: Option<Value>,
}

impl Record for ObjectEvent {
    fn decode(_reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("event", value)?;
        Ok(Self {
            class: fields.text("class")?,
            operation: fields.text("operation")?,
            reference: fields.text("ref")?,
            snapshot: value.get("snapshot").cloned(),
        })
    }
}

//! The queue of things that are due, and the task records.

use super::{
    Pool,
    power::{Op, Order},
    schema::Class,
    spec::GuestAct,
};
use crate::{
    clock::Timestamp,
    xen::{Failure, Method, Value},
};

/// Something that happens later.
#[derive(Debug)]
pub(super) enum Due {
    /// A power operation reaches its end.
    Power(Order),
    /// A task whose outcome is known gets it.
    Finish { task: TaskEntry, outcome: Result<String, Failure> },
    /// `VM_metrics.start_time` follows a start.
    StartTime { vm: String, started: Timestamp },
    /// A guest's own end is noticed.
    GuestExit { vm: String, domid: u32, act: GuestAct },
    /// A domain that rebooted itself is built again.
    Rebuild { vm: String, domid: u32 },
}

/// How far a task is, for a body that waits for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Not at its end.
    Pending,
    /// At its end; its record is removed now.
    Ended(Result<(), Failure>),
    /// There is no such record.
    Gone,
}

/// A task and the call that made it.
#[derive(Debug, Clone)]
pub(super) struct TaskEntry {
    pub(super) reference: String,
    /// The number of the call since the pool began.
    call: usize,
    /// Which coordinator process made it.
    epoch: u32,
}

/// Finished tasks go after 65 minutes, or above 200 tasks (xapi `db_gc_util`).
const TASK_LIFE: std::time::Duration = std::time::Duration::from_secs(65 * 60);
const TASK_LIMIT: usize = 200;

impl Pool {
    /// Does all that is due until `now`.
    pub fn advance(&mut self, now: Timestamp) {
        while let Some(entry) = self.due.first_entry() {
            let at = entry.key().0;
            if at > now {
                break;
            }
            match entry.remove() {
                Due::Power(order) => self.finish_order(at, order),
                Due::Finish { task, outcome } => self.finish_task(at, &task, outcome),
                Due::StartTime { vm, started } => self.write_start_time(at, &vm, started),
                Due::GuestExit { vm, domid, act } => self.guest_exited(at, &vm, domid, &act),
                Due::Rebuild { vm, domid } => self.rebuild_in_time(at, vm, domid),
            }
        }
        self.collect_tasks(now);
    }

    pub(super) fn schedule(&mut self, at: Timestamp, due: Due) {
        self.next_due_id += 1;
        self.due.insert((at, self.next_due_id), due);
    }

    /// A pending task for the call that is logged last.
    pub(super) fn new_task(&mut self, now: Timestamp, label: &str) -> TaskEntry {
        let reference = self.rng.reference();
        let mut fields = Class::Task.blank(self.release.api);
        let mut set = |field: &str, value: Value| {
            if let Some(slot) = fields.get_mut(field) {
                *slot = value;
            }
        };
        set("uuid", Value::string(self.rng.uuid()));
        set("name_label", Value::string(label));
        set("created", Value::DateTime(super::calls::date(now)));
        set("status", Value::string("pending"));
        set("type", Value::string("<none/>"));
        set("backtrace", Value::string("()"));
        set("allowed_operations", Value::Array(vec![Value::string("destroy")]));
        set("resident_on", Value::string(self.host_ref(self.coordinator)));
        self.db.insert(now, Class::Task, reference.clone(), fields);
        TaskEntry { reference, call: self.log_dropped_all + self.log.len(), epoch: self.epoch }
    }

    /// `Async.VM.start` and its like: the task at once, the operation later.
    pub(super) fn begin_order(&mut self, now: Timestamp, op: Op, params: &[Value]) -> Value {
        let task = self.new_task(now, &format!("Async.VM.{}", op.name()));
        let answer = Value::string(task.reference.clone());
        let checked = Order::read(op, params).and_then(|order| self.check_order(&order).map(|()| order));
        match checked {
            Ok(order) => {
                let at = now + self.duration_of(&order);
                self.note_operation(now, &order.vm, &task.reference, Some(op));
                self.schedule(at, Due::Power(Order { task: Some(task), ..order }));
            }
            Err(failure) => self.finish_later(now, task, Err(failure)),
        }
        answer
    }

    /// An asynchronous call that is taken and not carried out: its task ends with this failure. It is not logged.
    pub fn fail_task(&mut self, now: Timestamp, method: Method, failure: Failure) -> Value {
        let task = TaskEntry { call: 0, ..self.new_task(now, &format!("Async.{}", method.name())) };
        let answer = Value::string(task.reference.clone());
        self.finish_later(now, task, Err(failure));
        answer
    }

    /// The outcome of a task is known, and its record says so a little later.
    pub(super) fn finish_later(&mut self, now: Timestamp, task: TaskEntry, outcome: Result<String, Failure>) {
        let at = now + self.rng.between(self.timing.refusal);
        self.schedule(at, Due::Finish { task, outcome });
    }

    /// An operation's time is over: it happens, and its task ends.
    fn finish_order(&mut self, now: Timestamp, order: Order) {
        if let Some(order) = self.ask_outside(order) {
            let outcome = self.carry_out(now, &order);
            self.end_order(now, &order, outcome);
        }
    }

    /// What came of an operation: its task ends.
    pub(super) fn end_order(&mut self, now: Timestamp, order: &Order, outcome: Result<(), Failure>) {
        let Some(task) = &order.task else { return };
        self.note_operation(now, &order.vm, &task.reference, None);
        self.finish_task(now, task, outcome.map(|()| String::new()));
    }

    fn finish_task(&mut self, now: Timestamp, task: &TaskEntry, outcome: Result<String, Failure>) {
        let entry = task.call.checked_sub(self.log_dropped_all + 1).and_then(|index| self.log.get_mut(index));
        if let Some(entry) = entry {
            entry.task = Some(outcome.as_ref().map(|_| ()).map_err(Clone::clone));
        }
        if task.epoch != self.epoch {
            return; // the record vanished with the process that made it
        }
        let reference = task.reference.as_str();
        let mut set = |field: &str, value: Value| self.db.set(now, Class::Task, reference, field, value);
        match outcome {
            Ok(result) => {
                set("progress", Value::Double(1.0));
                set(
                    "result",
                    Value::String(if result.is_empty() {
                        result
                    } else {
                        format!("<value>{result}</value>")
                    }),
                );
                set("status", Value::string("success"));
            }
            Err(failure) => {
                let words = std::iter::once(failure.code).chain(failure.params).map(Value::String).collect();
                set("error_info", Value::Array(words));
                set("status", Value::string("failure"));
            }
        }
        set("finished", Value::DateTime(super::calls::date(now)));
        if self.doomed_tasks.remove(reference) {
            self.db.remove(now, Class::Task, reference);
        } else {
            self.finished_tasks.push_back((now, reference.to_owned()));
        }
    }

    /// How far a task is; one that ended is taken away.
    pub fn take_task(&mut self, now: Timestamp, reference: &str) -> TaskState {
        match self.db.text(Class::Task, reference, "status") {
            "" => TaskState::Gone,
            "pending" => TaskState::Pending,
            status => {
                let outcome = if status == "success" { Ok(()) } else { Err(self.task_failure(reference)) };
                self.db.remove(now, Class::Task, reference);
                TaskState::Ended(outcome)
            }
        }
    }

    fn task_failure(&self, reference: &str) -> Failure {
        let mut words = self.db.set_of(Class::Task, reference, "error_info").into_iter();
        Failure { code: words.next().unwrap_or_default(), params: words.collect() }
    }

    /// `task.destroy`: a pending task is only marked.
    pub(super) fn destroy_task(&mut self, now: Timestamp, reference: &str) {
        if self.db.text(Class::Task, reference, "status") == "pending" {
            self.doomed_tasks.insert(reference.to_owned());
        } else {
            self.db.remove(now, Class::Task, reference);
        }
    }

    fn collect_tasks(&mut self, now: Timestamp) {
        let over = |pool: &Self| pool.db.count(Class::Task) > TASK_LIMIT;
        while self.finished_tasks.front().is_some_and(|(at, _)| now.since(*at) > TASK_LIFE || over(self)) {
            if let Some((_, reference)) = self.finished_tasks.pop_front() {
                self.db.remove(now, Class::Task, &reference);
            }
        }
    }

    /// Every task record vanishes, and no VM shows an operation any more.
    pub(super) fn forget_tasks(&mut self, now: Timestamp) {
        let tasks: Vec<String> = self.db.rows(Class::Task).map(|(reference, _)| reference.clone()).collect();
        for reference in tasks {
            self.db.remove(now, Class::Task, &reference);
        }
        self.finished_tasks.clear();
        self.doomed_tasks.clear();
        let vms: Vec<String> = self.db.rows(Class::Vm).map(|(reference, _)| reference.clone()).collect();
        for vm in vms {
            self.db.set(now, Class::Vm, &vm, "current_operations", Value::Struct(Default::default()));
        }
    }

    /// Shows or hides an operation in `current_operations`.
    fn note_operation(&mut self, now: Timestamp, vm: &str, task: &str, op: Option<Op>) {
        let mut operations = self.db.map_of(Class::Vm, vm, "current_operations");
        match op {
            Some(op) => drop(operations.insert(task.to_owned(), op.name().to_owned())),
            None => drop(operations.remove(task)),
        }
        self.db.set(now, Class::Vm, vm, "current_operations", Value::map(&operations));
        self.refresh_allowed(now, vm);
    }

    /// Whether nothing is under way on the VM, as its record shows.
    pub(super) fn is_idle(&self, vm: &str) -> bool {
        self.db.map_of(Class::Vm, vm, "current_operations").is_empty()
    }
}

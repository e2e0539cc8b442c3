//! What a person asks for: an order is shown as a plan first, and done when that is confirmed; one job is cancelled,
//! tried again or settled from its page.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Form,
    extract::{Path, State as Axum},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use serde::Serialize;

use super::{Viewer, job::operation, look::plain, render::values};
use crate::{
    app::{
        desk::{Desk, Operation},
        orders::{Order, OrderAnswer, Outcome},
    },
    provision::job::{Job, State},
};

/// What is to be done with several VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Install,
    Cancel,
    Retry,
}

/// A form of the fleet or a machine's page, or of a plan that is confirmed.
#[derive(Debug, Clone, Serialize)]
struct Asked {
    action: Action,
    vms: Vec<String>,
    profile: String,
    reinstall: bool,
    stay_hvm: bool,
    max_parallel: Option<u32>,
    /// How many the reader says that it is.
    confirm: Option<usize>,
}

impl Asked {
    /// What a form asks for, or why that cannot be read: nothing is guessed.
    fn of(fields: Vec<(String, String)>) -> Result<Self, String> {
        let mut asked = Self {
            action: Action::Install,
            vms: Vec::new(),
            profile: String::new(),
            reinstall: false,
            stay_hvm: false,
            max_parallel: None,
            confirm: None,
        };
        let (mut seen, mut chosen) = (BTreeSet::new(), false);
        for (name, value) in fields {
            match name.as_str() {
                "vm" if seen.insert(value.clone()) => asked.vms.push(value),
                "action" => {
                    asked.action = match value.as_str() {
                        "cancel" => Action::Cancel,
                        "retry" => Action::Retry,
                        "install" => Action::Install,
                        _ => return Err("The form asks for something that is not known here.".to_owned()),
                    };
                    chosen = true;
                }
                "profile" => asked.profile = value,
                "reinstall" => asked.reinstall = true,
                "stay_hvm" => asked.stay_hvm = true,
                "max_parallel" if value.trim().is_empty() => {}
                "max_parallel" => match value.trim().parse() {
                    Ok(number) => asked.max_parallel = Some(number),
                    Err(_) => return Err(format!("At most so many at a time: {value:?} is no number.")),
                },
                "confirm" => asked.confirm = value.trim().parse().ok(),
                _ => {}
            }
        }
        if chosen { Ok(asked) } else { Err("The form does not say what is to be done.".to_owned()) }
    }

    fn order(&self, vms: Vec<String>, planned: bool) -> Order {
        Order {
            selectors: vms.into_iter().map(|uuid| format!("uuid={uuid}")).collect(),
            profile: Some(self.profile.clone()).filter(|name| !name.is_empty()),
            reinstall: self.reinstall,
            stay_hvm: self.stay_hvm,
            max_parallel: self.max_parallel,
            planned,
            whole: !planned,
            ..Order::default()
        }
    }
}

/// One job that an action is about.
#[derive(Debug, Serialize)]
struct Touched {
    vm: String,
    vm_uuid: String,
    job: String,
    state: String,
    /// What would happen, or what did.
    what: String,
    /// It can be done.
    can: bool,
}

/// `POST /plan`: what it would come to; changes nothing.
pub(super) async fn plan(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    let asked = match Asked::of(fields) {
        Ok(asked) => asked,
        Err(problem) => return viewer.refused("Nothing was planned", &problem),
    };
    if asked.vms.is_empty() {
        return viewer.refused("No VM was selected", "Tick VMs on the fleet page first.");
    }
    match asked.action {
        Action::Install => match desk.plan(&asked.order(asked.vms.clone(), false), viewer.caller()).await {
            Ok(answer) => plan_page(&viewer, &asked, &answer, false),
            Err(error) => viewer.refused("This cannot be planned", &crate::app::chain(&error)),
        },
        Action::Cancel | Action::Retry => {
            let touched: Vec<Touched> =
                asked.vms.iter().map(|uuid| touched(&desk, asked.action, uuid)).collect();
            jobs_page(&viewer, &asked, &touched, false)
        }
    }
}

fn plan_page(viewer: &Viewer, asked: &Asked, answer: &OrderAnswer, made: bool) -> Response {
    let ready: Vec<&String> = answer
        .vms
        .iter()
        .filter(|line| matches!(line.outcome, Outcome::Ready | Outcome::Unknown))
        .map(|line| &line.vm_uuid)
        .collect();
    let count = |outcome| answer.vms.iter().filter(|line| line.outcome == outcome).count();
    let values = values! {
        asked, answer, ready, made, jobs => (), count => ready.len(),
        created => count(Outcome::Created), refused => count(Outcome::Refused), existing => count(Outcome::Existing),
    };
    viewer.page("plan.html", "fleet", values)
}

fn jobs_page(viewer: &Viewer, asked: &Asked, touched: &[Touched], made: bool) -> Response {
    let ready: Vec<&String> =
        touched.iter().filter(|touched| touched.can).map(|touched| &touched.vm_uuid).collect();
    let values = values! {
        asked, ready, made, jobs => touched, count => ready.len(), answer => (), created => ready.len(),
        refused => touched.len() - ready.len(), existing => 0,
    };
    viewer.page("plan.html", "fleet", values)
}

/// What an action would do to the newest job of a VM.
fn touched(desk: &Desk, action: Action, uuid: &str) -> Touched {
    let guest = desk.known.guest(uuid);
    let name = guest.map(|guest| guest.view.name.clone()).unwrap_or_else(|| uuid.to_owned());
    let Some(job) = desk.roster.newest(uuid) else {
        let what = "It has no job.".to_owned();
        let (job, state) = (String::new(), "no job".to_owned());
        return Touched { vm: name, vm_uuid: uuid.to_owned(), job, state, what, can: false };
    };
    let (can, what) = match action {
        Action::Cancel | Action::Install => may_cancel(&job),
        Action::Retry => may_retry(&job),
    };
    Touched {
        vm: name,
        vm_uuid: uuid.to_owned(),
        job: job.id.clone(),
        state: job.state.to_string(),
        what: what.to_owned(),
        can,
    }
}

fn may_cancel(job: &Job) -> (bool, &'static str) {
    match job.state {
        State::Queued => (true, "It never begins; nothing was changed."),
        State::Preparing | State::Flipping => {
            (true, "It is undone: the VM gets its settings back and is as it was.")
        }
        State::Booting | State::Installing => (
            true,
            "The VM is switched off and gets its settings back. Its disk stays as the installer left it: half-written.",
        ),
        State::Restoring | State::Starting | State::Verifying => {
            (true, "The VM is put back and the job does not go on; the new system stays on its disk.")
        }
        State::Undoing => (false, "It is being undone already."),
        State::NeedsOperator => (false, "It waits for a person: settle it on its page."),
        State::Succeeded | State::Failed | State::Cancelled => (false, "It has ended."),
    }
}

fn may_retry(job: &Job) -> (bool, &'static str) {
    match job.state {
        State::Failed | State::Cancelled => {
            (true, "The whole job runs again, as a new attempt with new tokens. The disk is erased again.")
        }
        State::Succeeded => (false, "It went well: order a new installation instead."),
        State::NeedsOperator => (false, "It waits for a person: settle it on its page."),
        State::Queued
        | State::Preparing
        | State::Flipping
        | State::Booting
        | State::Installing
        | State::Restoring
        | State::Starting
        | State::Verifying
        | State::Undoing => (false, "It has not ended."),
    }
}

/// `POST /orders`: does what a plan showed.
pub(super) async fn order(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Form(fields): Form<Vec<(String, String)>>,
) -> Response {
    let asked = match Asked::of(fields) {
        Ok(asked) => asked,
        Err(problem) => return viewer.refused("Nothing was done", &problem),
    };
    let number = asked.vms.len();
    // Several at once are confirmed by their number, as on a terminal.
    if number == 0 || (number > 1 && asked.confirm != Some(number)) {
        let said = format!("The plan is about {number} VMs. Type that number to confirm; nothing was done.");
        return viewer.refused("Not confirmed", &said);
    }
    match asked.action {
        Action::Install => {
            let order = asked.order(asked.vms.clone(), true);
            match desk.deploy(&order, viewer.caller()).await {
                Ok(answer) => plan_page(&viewer, &asked, &answer, true),
                Err(error) => viewer.refused("This was not ordered", &crate::app::chain(&error)),
            }
        }
        Action::Cancel | Action::Retry => {
            let mut done = Vec::new();
            for uuid in &asked.vms {
                done.push(act(&viewer, &desk, asked.action, uuid).await);
            }
            jobs_page(&viewer, &asked, &done, true)
        }
    }
}

async fn act(viewer: &Viewer, desk: &Desk, action: Action, uuid: &str) -> Touched {
    let touched = touched(desk, action, uuid);
    if !touched.can {
        return touched;
    }
    let (operation, said) = match action {
        Action::Retry => (Operation::Retry, "It runs again."),
        Action::Cancel | Action::Install => (Operation::Cancel, "It is being cancelled."),
    };
    match desk.operate(&touched.job, operation, viewer.caller()).await {
        Ok(job) => Touched {
            state: job.state.to_string(),
            what: format!("{said} Now it {}.", plain(job.state)),
            ..touched
        },
        Err(error) => Touched { what: crate::app::chain(&error), can: false, ..touched },
    }
}

/// `POST /jobs/{id}/{operation}`.
pub(super) async fn operate(
    viewer: Viewer,
    Axum(desk): Axum<Arc<Desk>>,
    Path((id, name)): Path<(String, String)>,
) -> Response {
    let Some(operation) = operation(&name) else { return StatusCode::NOT_FOUND.into_response() };
    match desk.operate(&id, operation, viewer.caller()).await {
        Ok(job) => Redirect::to(&format!("/jobs/{}", job.id)).into_response(),
        Err(error) => viewer.refused("This was not done", &crate::app::chain(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_is_an_order_for_each_vm_once() {
        let fields = [
            ("vm", "a"),
            ("vm", "b"),
            ("vm", "a"),
            ("profile", "mini"),
            ("reinstall", "on"),
            ("confirm", " 2 "),
            ("action", "install"),
            ("max_parallel", ""),
            ("other", "y"),
        ];
        let read = |fields: &[(&str, &str)]| {
            Asked::of(fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let asked = read(&fields).unwrap();
        assert_eq!((asked.vms.len(), asked.confirm, asked.max_parallel), (2, Some(2), None));
        let order = asked.order(asked.vms.clone(), true);
        assert_eq!(order.selectors, ["uuid=a", "uuid=b"]);
        assert!(order.reinstall && order.planned && !order.stay_hvm);
        let bare = read(&[("action", "install")]).unwrap();
        assert_eq!(bare.order(Vec::new(), false).profile, None);
        for guess in
            [&[("vm", "a")][..], &[("action", "bogus")], &[("action", "install"), ("max_parallel", "x")]]
        {
            assert!(read(guess).is_err(), "{guess:?}");
        }
    }
}

//! `/jobs`, `/plans` and `/renders`.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    input::{Body, Params, Segment},
    once::NothingDone,
    page::{Order as Direction, Wanted, page},
    problem::{Problems, Refusal},
};
use crate::{
    access::{
        Caller,
        audit::{Action, Deed},
    },
    app::{
        desk::{Desk, Operation},
        orders::{Order, OrderAnswer, Outcome, RenderOrder, ResolveOrder},
        views::JobView,
    },
    provision::{job::State as JobState, reason::Reason},
};

type At = State<Arc<Desk>>;

/// Which jobs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct JobsParams {
    /// In this state.
    #[param(inline)]
    state: Option<JobState>,
    /// Ended, or not.
    live: Option<bool>,
    /// With this reason.
    #[param(inline)]
    reason: Option<Reason>,
    /// Of this pool.
    pool: Option<String>,
    /// Of the VM with this name label or uuid.
    vm: Option<String>,
    /// With this profile.
    profile: Option<String>,
    /// The newest first; default: the oldest.
    newest: Option<bool>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^([0-9a-f]{2})*$")]
    cursor: Option<String>,
}

impl JobsParams {
    fn fits(&self, job: &JobView) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|wanted| wanted == has);
        self.state.is_none_or(|state| job.state == state)
            && self.live.is_none_or(|live| job.state.is_terminal() != live)
            && self.reason.is_none_or(|reason| job.reason == Some(reason))
            && is(&self.pool, &job.pool)
            && is(&self.profile, &job.profile)
            && (is(&self.vm, &job.vm) || is(&self.vm, &job.vm_uuid))
    }
}

/// A page of jobs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobsPage {
    /// Without their logs.
    jobs: Vec<JobView>,
    /// `cursor` of the next page; null: this is the last one.
    next: Option<String>,
}

/// Jobs, without their logs.
#[utoipa::path(get, path = "/jobs", tag = "jobs", params(JobsParams),
    responses((status = 200, description = "A page of jobs", body = JobsPage), Problems))]
pub(super) async fn list(
    State(desk): At,
    Params(wanted): Params<JobsParams>,
) -> Result<Json<JobsPage>, Refusal> {
    let mut jobs = desk.jobs().await?;
    jobs.retain(|job| wanted.fits(job));
    let order = if wanted.newest == Some(true) { Direction::Down } else { Direction::Up };
    let wanted = Wanted { limit: wanted.limit, cursor: wanted.cursor.as_deref(), order };
    // Ids are UUIDs of version 7: by age.
    let (jobs, next) = page(jobs, wanted, |job| job.id.clone())?;
    Ok(Json(JobsPage { jobs, next }))
}

/// One job, with its log, and what its machine fetched.
#[utoipa::path(get, path = "/jobs/{id}", tag = "jobs", params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = JobView), Problems))]
pub(super) async fn show(State(desk): At, Segment(id): Segment<String>) -> Result<Json<JobView>, Refusal> {
    Ok(Json(desk.job(&id).await?))
}

/// What the job's machine sent by syslog since the job was made.
#[utoipa::path(get, path = "/jobs/{id}/log", tag = "jobs", params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Lines, the oldest first", body = String, content_type = "text/plain"), Problems))]
pub(super) async fn log(State(desk): At, Segment(id): Segment<String>) -> Result<String, Refusal> {
    Ok(desk.log(&id).await?)
}

/// What an order would come to, VM by VM. Changes nothing.
#[utoipa::path(post, path = "/plans", tag = "jobs", request_body = Order,
    responses((status = 200, description = "What would become of each VM", body = OrderAnswer), Problems))]
pub(super) async fn plan(
    State(desk): At,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<Json<OrderAnswer>, Refusal> {
    Ok(Json(desk.plan(&order, &caller).await?))
}

/// Makes the jobs of an order. Makes none when one selector names no VM, or not one alone.
#[utoipa::path(post, path = "/jobs", tag = "jobs", request_body = Order,
    responses((status = 200, description = "What became of each VM", body = OrderAnswer), Problems))]
pub(super) async fn deploy(
    State(desk): At,
    caller: Caller,
    Body(order): Body<Order>,
) -> Result<Response, Refusal> {
    let answer = desk.deploy(&order, &caller).await?;
    let made = answer.vms.iter().any(|line| line.outcome != Outcome::Refused);
    let mut response = Json(answer).into_response();
    if !made {
        response.extensions_mut().insert(NothingDone);
    }
    Ok(response)
}

/// Ends a job, and puts its VM back.
#[utoipa::path(post, path = "/jobs/{id}/cancel", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is then", body = JobView), Problems))]
pub(super) async fn cancel(
    State(desk): At,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<JobView>, Refusal> {
    Ok(Json(desk.operate(&id, Operation::Cancel, &caller).await?))
}

/// Ends a rescue: its VM is stopped and put back.
#[utoipa::path(post, path = "/jobs/{id}/finish", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is then", body = JobView), Problems))]
pub(super) async fn finish(
    State(desk): At,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<JobView>, Refusal> {
    Ok(Json(desk.operate(&id, Operation::Finish, &caller).await?))
}

/// Another attempt for a job that failed or was cancelled.
#[utoipa::path(post, path = "/jobs/{id}/retry", tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is then", body = JobView), Problems))]
pub(super) async fn retry(
    State(desk): At,
    caller: Caller,
    Segment(id): Segment<String>,
) -> Result<Json<JobView>, Refusal> {
    Ok(Json(desk.operate(&id, Operation::Retry, &caller).await?))
}

/// Settles a job that waits for an operator.
#[utoipa::path(post, path = "/jobs/{id}/resolve", tag = "jobs", request_body = ResolveOrder,
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job as it is then", body = JobView), Problems))]
pub(super) async fn resolve(
    State(desk): At,
    caller: Caller,
    Segment(id): Segment<String>,
    Body(order): Body<ResolveOrder>,
) -> Result<Json<JobView>, Refusal> {
    Ok(Json(desk.operate(&id, Operation::Resolve(order.resolution), &caller).await?))
}

/// What a machine would be served, with secrets masked and placeholders for tokens.
#[utoipa::path(post, path = "/renders", tag = "jobs", request_body = RenderOrder,
    responses((status = 200, description = "The text", body = String, content_type = "text/plain"), Problems))]
pub(super) async fn render(State(desk): At, Body(order): Body<RenderOrder>) -> Result<String, Refusal> {
    Ok(desk.render(&order).await?)
}

/// What a machine would be served, with its secrets; the tokens are placeholders here too.
#[utoipa::path(post, path = "/renders/secrets", tag = "jobs", request_body = RenderOrder,
    responses((status = 200, description = "The text", body = String, content_type = "text/plain"), Problems))]
pub(super) async fn render_secrets(
    State(desk): At,
    caller: Caller,
    Body(order): Body<RenderOrder>,
) -> Result<impl IntoResponse, Refusal> {
    let text = desk.render(&RenderOrder { secrets: true, ..order.clone() }).await?;
    let vm = desk.vm(&order.vm).await?;
    let deed = Deed {
        who: caller,
        action: Action::ShowSecrets,
        vm: Some((vm.name, vm.uuid)),
        job: None,
        before: String::new(),
        after: format!("{:?} of {}", order.kind, order.profile.as_deref().unwrap_or("the machine's profile")),
    };
    desk.door.write_down(&[deed], desk.clock.now()).await;
    Ok(text)
}

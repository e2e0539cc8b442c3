//! `/pools`, `/vms`, `/machines`, `/profiles`, `/leases` and `/transfers`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    input::{Params, Segment},
    page::{Order, Wanted, page},
    problem::{Problems, Refusal},
};
use crate::app::{desk::Desk, machines::VmView, orders::PoolAway};

type At = State<Arc<Desk>>;

/// Which VMs.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct VmsParams {
    /// Templates, snapshots and control domains too.
    all: Option<bool>,
    /// Of this pool.
    pool: Option<String>,
    /// With this name label.
    name: Option<String>,
    /// With this tag.
    tag: Option<String>,
    /// `Halted`, `Running`, `Paused` or `Suspended`.
    power_state: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    cursor: Option<String>,
}

impl VmsParams {
    fn fits(&self, vm: &VmView) -> bool {
        let is = |wanted: &Option<String>, has: &str| wanted.as_ref().is_none_or(|wanted| wanted == has);
        (self.all == Some(true) || vm.kind == "guest")
            && is(&self.pool, &vm.pool)
            && is(&self.name, &vm.name)
            && is(&self.power_state, &vm.power_state)
            && self.tag.as_ref().is_none_or(|tag| vm.tags.contains(tag))
    }
}

/// A page of VMs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VmsPage {
    /// By pool and name.
    vms: Vec<VmView>,
    /// Pools that do not answer; their VMs are not here.
    pools_away: Vec<PoolAway>,
    /// `cursor` of the next page; null: this is the last one.
    next: Option<String>,
}

/// VMs of all pools, as they are now.
#[utoipa::path(get, path = "/vms", tag = "fleet", params(VmsParams),
    responses((status = 200, description = "A page of VMs", body = VmsPage), Problems))]
pub(super) async fn vms(
    State(desk): At,
    Params(wanted): Params<VmsParams>,
) -> Result<Json<VmsPage>, Refusal> {
    let (mut vms, pools_away) = desk.vms().await;
    vms.retain(|vm| wanted.fits(vm));
    let wanted = Wanted { limit: wanted.limit, cursor: wanted.cursor.as_deref(), order: Order::Up };
    let (vms, next) = page(vms, wanted, |vm| format!("{}\0{}\0{}", vm.pool, vm.name, vm.uuid))?;
    Ok(Json(VmsPage { vms, pools_away, next }))
}

/// One VM, by name label or uuid.
#[utoipa::path(get, path = "/vms/{name}", tag = "fleet", params(("name" = String, Path, description = "Name label or uuid")),
    responses((status = 200, description = "The VM", body = VmView), Problems))]
pub(super) async fn vm(State(desk): At, Segment(name): Segment<String>) -> Result<Json<VmView>, Refusal> {
    Ok(Json(desk.vm(&name).await?))
}

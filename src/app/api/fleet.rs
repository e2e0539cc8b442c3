//! `/pools`, `/vms`, `/machines`, `/profiles`, `/leases` and `/transfers`.

use std::sync::Arc;

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    input::{Params, Segment},
    page::{Order, Wanted, limit, page},
    problem::{Problems, Refusal},
};
use crate::app::{
    desk::Desk,
    fleet::{GateView, LeaseView, MachineView, PoolView, ProfileView, RunningTransfer, TransferLine},
    machines::VmView,
    orders::PoolAway,
};

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
    #[param(pattern = "^([0-9a-f]{2})*$")]
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

/// Pools of the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PoolList {
    /// By name.
    pools: Vec<PoolView>,
}

/// The pools.
#[utoipa::path(get, path = "/pools", tag = "fleet",
    responses((status = 200, description = "The pools", body = PoolList), Problems))]
pub(super) async fn pools(State(desk): At) -> Json<PoolList> {
    Json(PoolList { pools: desk.pools() })
}

/// One pool.
#[utoipa::path(get, path = "/pools/{name}", tag = "fleet", params(("name" = String, Path, description = "Its name in the configuration")),
    responses((status = 200, description = "The pool", body = PoolView), Problems))]
pub(super) async fn pool(State(desk): At, Segment(name): Segment<String>) -> Result<Json<PoolView>, Refusal> {
    let found = desk.pools().into_iter().find(|pool| pool.name == name);
    found.map(Json).ok_or_else(|| Refusal::not_found(format!("the configuration has no pool {name}")))
}

/// Profiles of the configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ProfileList {
    /// By name.
    profiles: Vec<ProfileView>,
}

/// The profiles.
#[utoipa::path(get, path = "/profiles", tag = "fleet",
    responses((status = 200, description = "The profiles", body = ProfileList), Problems))]
pub(super) async fn profiles(State(desk): At) -> Json<ProfileList> {
    Json(ProfileList { profiles: desk.profiles() })
}

/// One profile.
#[utoipa::path(get, path = "/profiles/{name}", tag = "fleet", params(("name" = String, Path, description = "Its name in the configuration")),
    responses((status = 200, description = "The profile", body = ProfileView), Problems))]
pub(super) async fn profile(
    State(desk): At,
    Segment(name): Segment<String>,
) -> Result<Json<ProfileView>, Refusal> {
    let found = desk.profiles().into_iter().find(|profile| profile.name == name);
    found.map(Json).ok_or_else(|| Refusal::not_found(format!("the configuration has no profile {name}")))
}

/// Which machines.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct MachinesParams {
    /// With this answer of the boot gate.
    #[param(inline)]
    gate: Option<GateView>,
    /// Of the VM with this name label or uuid.
    vm: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^([0-9a-f]{2})*$")]
    cursor: Option<String>,
}

/// A page of machines.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct MachinesPage {
    /// By MAC.
    machines: Vec<MachineView>,
    /// `cursor` of the next page; null: this is the last one.
    next: Option<String>,
}

/// The machines that the boot services know.
#[utoipa::path(get, path = "/machines", tag = "fleet", params(MachinesParams),
    responses((status = 200, description = "A page of machines", body = MachinesPage), Problems))]
pub(super) async fn machines(
    State(desk): At,
    Params(wanted): Params<MachinesParams>,
) -> Result<Json<MachinesPage>, Refusal> {
    let mut machines = desk.machines();
    machines.retain(|machine| {
        wanted.gate.is_none_or(|gate| machine.gate == gate)
            && wanted.vm.as_ref().is_none_or(|vm| *vm == machine.name || *vm == machine.vm_uuid)
    });
    let wanted = Wanted { limit: wanted.limit, cursor: wanted.cursor.as_deref(), order: Order::Up };
    let (machines, next) = page(machines, wanted, |machine| machine.mac.clone())?;
    Ok(Json(MachinesPage { machines, next }))
}

/// One machine.
#[utoipa::path(get, path = "/machines/{mac}", tag = "fleet", params(("mac" = String, Path, description = "Such as 02:16:3e:00:00:01")),
    responses((status = 200, description = "The machine", body = MachineView), Problems))]
pub(super) async fn machine(
    State(desk): At,
    Segment(mac): Segment<String>,
) -> Result<Json<MachineView>, Refusal> {
    let wanted: crate::machine::MacAddr =
        mac.parse().map_err(|error: crate::machine::BadMac| Refusal::not_found(error.to_string()))?;
    let wanted = wanted.to_string();
    let found = desk.machines().into_iter().find(|machine| machine.mac == wanted);
    found.map(Json).ok_or_else(|| Refusal::not_found(format!("no machine with the MAC {mac} is known")))
}

/// Which leases.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct LeasesParams {
    /// Those that have run out, too.
    over: Option<bool>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
    /// `next` of the page before.
    #[param(pattern = "^([0-9a-f]{2})*$")]
    cursor: Option<String>,
}

/// A page of leases.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeasesPage {
    /// By address.
    leases: Vec<LeaseView>,
    /// `cursor` of the next page; null: this is the last one.
    next: Option<String>,
}

/// Leases of our DHCP server.
#[utoipa::path(get, path = "/leases", tag = "fleet", params(LeasesParams),
    responses((status = 200, description = "A page of leases", body = LeasesPage), Problems))]
pub(super) async fn leases(
    State(desk): At,
    Params(wanted): Params<LeasesParams>,
) -> Result<Json<LeasesPage>, Refusal> {
    let mut leases = desk.leases().await?;
    leases.retain(|lease| wanted.over == Some(true) || !lease.over);
    let wanted = Wanted { limit: wanted.limit, cursor: wanted.cursor.as_deref(), order: Order::Up };
    let key = |lease: &LeaseView| {
        let number = lease.address.parse::<std::net::Ipv4Addr>().map_or(0, u32::from);
        format!("{number:010}")
    };
    let (leases, next) = page(leases, wanted, key)?;
    Ok(Json(LeasesPage { leases, next }))
}

/// Which transfers.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct TransfersParams {
    /// Of this job.
    job: Option<String>,
    /// Of this machine.
    mac: Option<String>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

/// Transfers that go on, and those that ended lately.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TransferList {
    /// Those that go on now, the last to begin first. With `job`: of its machine.
    running: Vec<RunningTransfer>,
    /// Those that ended, the newest first. The server keeps some hundreds, and none over its restart.
    transfers: Vec<TransferLine>,
}

/// What machines fetched lately.
#[utoipa::path(get, path = "/transfers", tag = "fleet", params(TransfersParams),
    responses((status = 200, description = "Transfers", body = TransferList), Problems))]
pub(super) async fn transfers(
    State(desk): At,
    Params(wanted): Params<TransfersParams>,
) -> Result<Json<TransferList>, Refusal> {
    let limit = limit(wanted.limit)?;
    let is = |wanted: &Option<String>, has: Option<&String>| wanted.is_none() || wanted.as_ref() == has;
    let fits = |job: Option<&String>, mac: Option<&String>| is(&wanted.job, job) && is(&wanted.mac, mac);
    let (mut running, mut transfers) = (desk.running_transfers(), desk.transfers());
    running.retain(|transfer| fits(transfer.job.as_ref(), Some(&transfer.mac)));
    running.truncate(limit);
    transfers.retain(|transfer| fits(transfer.job.as_ref(), transfer.mac.as_ref()));
    transfers.truncate(limit);
    Ok(Json(TransferList { running, transfers }))
}

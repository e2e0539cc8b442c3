//! Restoring from the claims in a pool alone: no job, no database. `bootflip restore` uses it when the claim's server
//! does not answer.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::calls::{make, task_state};
use crate::{
    clock::{Clock, Timestamp},
    provision::{
        claim::{Claim, Found},
        plan::{Call, CallResult, Observed, Plan, Trail},
        recovery,
    },
    xen::{
        CallError,
        api::Api,
        records::{VmMetrics, VmRecord},
    },
};

/// A claim found in a pool.
#[derive(Debug, Clone)]
pub struct Claimed {
    /// The VM that carries it.
    pub vm: VmRecord,
    /// The claim; `None` with the reason: it cannot be acted on.
    pub claim: Result<Claim, String>,
}

/// Every claim in a pool.
///
/// # Errors
/// The pool is away.
pub async fn claims(api: &Api) -> Result<Vec<Claimed>, CallError> {
    let found = api.vms().await?.into_iter().filter_map(|vm| {
        let claim = match Claim::find(&vm) {
            Found::Absent => return None,
            Found::Claim(claim) => Ok(*claim),
            Found::Stray(claim) => Err(format!("a stray copy: the claim is VM {}'s", claim.vm_uuid)),
            Found::Unreadable(why) => Err(format!("cannot be read: {why}")),
        };
        Some(Claimed { vm, claim })
    });
    Ok(found.collect())
}

/// How long one VM's restore may take in all.
const DEADLINE: Duration = Duration::from_secs(300);

/// How a restore waits: until a time.
pub type Pause<'a> = &'a (dyn Fn(Timestamp) -> BoxFuture<'a, ()> + Send + Sync);

/// Puts one VM back, from its claim. `stop`: a running flipped VM is shut down hard first.
///
/// # Errors
/// What stands in the way, in words.
pub async fn restore(
    api: &Api,
    claimed: &Claimed,
    stop: bool,
    clock: &dyn Clock,
    pause: Pause<'_>,
) -> Result<(), String> {
    let claim = claimed.claim.clone()?;
    let mut trail = Trail::default();
    let until = clock.now() + DEADLINE;
    let mut last = String::from("no answer yet");
    while clock.now() < until {
        match observe(api, &claimed.vm.uuid, &trail).await {
            Ok(seen) if !claim.stands_in(&seen.vm) => return Ok(()),
            Ok(seen) => match recovery::from_claim(&claim, &seen, stop, &trail, clock.now()) {
                Plan::Call(call) => {
                    let result = make(api, &seen.vm.reference, &call).await;
                    if let CallResult::Failed(error) = &result {
                        last = error.to_string();
                        let optional = matches!(call, Call::Sync | Call::CleanShutdown);
                        if error.class() == crate::xen::Class::Permanent && !optional {
                            return Err(last);
                        }
                        pause(clock.now() + Duration::from_secs(1)).await;
                    }
                    trail.calls.push((clock.now(), call, result));
                }
                Plan::Park(_, detail, _) | Plan::Fail(_, detail) => return Err(detail),
                Plan::Wait(at) => pause(at).await,
                Plan::Done(_) | Plan::Arm | Plan::SeenHalted | Plan::LookAgain => {
                    return Ok(());
                }
            },
            Err(error) => {
                last = error.to_string();
                pause(clock.now() + Duration::from_secs(1)).await;
            }
        }
    }
    Err(format!("not done within {} s; last: {last}", DEADLINE.as_secs()))
}

/// Waits by the machine's own timer: what a [`Pause`] of the command line does.
pub async fn sleep_until(until: Timestamp, clock: &dyn Clock) {
    tokio::time::sleep(until.since(clock.now()).max(Duration::from_millis(50))).await;
}

async fn observe(api: &Api, uuid: &str, trail: &Trail) -> Result<Observed, CallError> {
    let reference = api.vm_by_uuid(uuid).await?;
    let vm = api.vm_record(&reference).await?;
    let metrics: VmMetrics = api.vm_metrics(&vm.metrics).await?;
    let task = match trail.task() {
        Some(task) => Some(task_state(api, task).await?),
        None => None,
    };
    let domid_since = Timestamp::default();
    Ok(Observed { vm, metrics, domid_since, task, guest_addresses: Vec::new(), answers: false })
}

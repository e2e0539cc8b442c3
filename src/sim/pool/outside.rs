//! Domains that a body outside runs: the pool asks for them and follows what came of it. Pure.
//!
//! Without this the model itself decides how a start ends, and guests are played after it. With it every start, stop
//! and pause becomes a [`DomainOrder`]; the call's task ends when the body answers, a domain has the number that the
//! body tells, and a start fails with the body's words. Everything else (checks, records, metrics, what follows a
//! guest's own end) stays the model's. For releases from 6.1 on, on which the record does not say what comes of an
//! API shutdown.

use std::collections::BTreeMap;

use super::{
    Pool,
    build::Born,
    power::{Op, Order},
    schema::Class,
    spec::BootMode,
};
use crate::{clock::Timestamp, machine::MacAddr, xen::Failure};

/// What is to be done with a VM's domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainAct {
    /// Build one.
    Build {
        /// As which kind.
        mode: BootMode,
        /// Leave it paused.
        paused: bool,
        /// End the one that runs first: a reboot over the API.
        again: bool,
    },
    /// Ask the guest to power off, and wait until the domain is gone.
    Shutdown,
    /// End it.
    Destroy,
    /// Stop it where it is.
    Pause,
    /// Let it run.
    Unpause,
}

/// One thing to do, once; answered by [`Pool::outside_done`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainOrder {
    /// Names it in the answer.
    pub id: u64,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// Its reference, as failures name it.
    pub vm: String,
    /// Its name label.
    pub name: String,
    /// Bytes.
    pub memory: u64,
    /// The NICs, device 0 first.
    pub macs: Vec<MacAddr>,
    /// `PV_args`.
    pub pv_args: String,
    /// What to do.
    pub act: DomainAct,
}

/// The orders that were given and not answered.
#[derive(Debug, Default)]
pub(super) struct Outside {
    asked: Vec<DomainOrder>,
    open: BTreeMap<u64, Open>,
    last: u64,
}

#[derive(Debug)]
enum Open {
    /// An operation over the API, and what is built for it.
    Operation(Order, Option<(BootMode, String)>),
    /// A guest rebooted itself.
    Rebuild { vm: String, domid: u32, plan: (BootMode, String) },
}

impl Pool {
    /// From now on a body runs the domains. To be called before the first start.
    pub fn run_domains_outside(&mut self) {
        self.outside = Some(Outside::default());
    }

    /// What is asked of the body since the last time.
    pub fn take_orders(&mut self) -> Vec<DomainOrder> {
        self.outside.as_mut().map(|outside| std::mem::take(&mut outside.asked)).unwrap_or_default()
    }

    /// What came of an order: the number of the domain that was built (0: none was), or what xapi would say.
    pub fn outside_done(&mut self, now: Timestamp, id: u64, outcome: Result<u32, Failure>) {
        self.advance(now);
        let Some(open) = self.outside.as_mut().and_then(|outside| outside.open.remove(&id)) else { return };
        let born =
            |plan: Option<(BootMode, String)>, domid| plan.map(|(mode, kind)| Born { domid, mode, kind });
        match open {
            Open::Operation(order, plan) => {
                let outcome = match outcome {
                    Ok(domid) => self.carry_out(now, &Order { born: born(plan, domid), ..order.clone() }),
                    Err(failure) => {
                        // The old domain of a reboot is gone whatever became of the new one.
                        if matches!(order.op, Op::CleanReboot | Op::HardReboot) {
                            self.halt(now, &order.vm);
                        }
                        Err(failure)
                    }
                };
                self.end_order(now, &order, outcome);
            }
            Open::Rebuild { vm, domid, plan } => match outcome {
                Ok(number) => self.rebuild_after_exit(now, &vm, domid, born(Some(plan), number)),
                Err(_) => self.halt(now, &vm),
            },
        }
    }

    /// A message that is done at once; where domains run outside, it is only begun.
    pub(super) fn carry_out_or_ask(&mut self, now: Timestamp, order: Order) -> Result<(), Failure> {
        match self.ask_outside(order) {
            Some(order) => self.carry_out(now, &order),
            None => Ok(()),
        }
    }

    /// Hands the operation to the body. Gives it back where the model alone can tell what comes of it: there is no
    /// body, or the operation will be refused.
    pub(super) fn ask_outside(&mut self, order: Order) -> Option<Order> {
        if self.outside.is_none() {
            return Some(order);
        }
        let (vm, lives) = (order.vm.as_str(), self.domains.contains_key(&order.vm));
        let mut plan = None;
        let act = match order.op {
            Op::Start | Op::StartOn => {
                let fits = !lives
                    && self.check_power_state(Op::Start, vm).is_ok()
                    && self.choose_host(vm, order.host.as_deref()).is_ok();
                plan = self.planned_boot(vm, false).ok().filter(|_| fits);
                let Some((mode, _)) = &plan else { return Some(order) };
                DomainAct::Build { mode: mode.clone(), paused: order.paused, again: false }
            }
            Op::CleanReboot | Op::HardReboot if lives => match self.planned_boot(vm, false) {
                Ok((mode, kind)) => {
                    plan = Some((mode.clone(), kind));
                    DomainAct::Build { mode, paused: false, again: true }
                }
                Err(_) => DomainAct::Destroy,
            },
            Op::CleanShutdown if lives => DomainAct::Shutdown,
            Op::HardShutdown if lives => DomainAct::Destroy,
            Op::Pause if self.check_power_state(Op::Pause, vm).is_ok() => DomainAct::Pause,
            Op::Unpause if self.check_power_state(Op::Unpause, vm).is_ok() => DomainAct::Unpause,
            Op::CleanReboot | Op::HardReboot | Op::CleanShutdown | Op::HardShutdown => return Some(order),
            Op::Pause | Op::Unpause => return Some(order),
        };
        let vm = order.vm.clone();
        self.ask(&vm, act, Open::Operation(order, plan));
        None
    }

    /// A guest that rebooted itself is due to be built again.
    pub(super) fn rebuild_in_time(&mut self, now: Timestamp, vm: String, domid: u32) {
        let lives = self.domains.get(&vm).is_some_and(|domain| domain.born_as == domid);
        match self.planned_boot(&vm, false) {
            Ok(plan) if lives && self.outside.is_some() => {
                let act = DomainAct::Build { mode: plan.0.clone(), paused: false, again: false };
                self.ask(&vm.clone(), act, Open::Rebuild { vm, domid, plan });
            }
            Ok(_) | Err(_) => self.rebuild_after_exit(now, &vm, domid, None),
        }
    }

    fn ask(&mut self, vm: &str, act: DomainAct, open: Open) {
        let macs = self.db.set_of(Class::Vm, vm, "VIFs");
        let macs = macs.iter().filter_map(|vif| self.db.text(Class::Vif, vif, "MAC").parse().ok()).collect();
        let text = |field: &str| self.db.text(Class::Vm, vm, field).to_owned();
        let (vm_uuid, name, pv_args) = (text("uuid"), text("name_label"), text("PV_args"));
        let memory = self.memory_of(vm);
        let Some(outside) = &mut self.outside else { return };
        outside.last += 1;
        let id = outside.last;
        outside.open.insert(id, open);
        outside.asked.push(DomainOrder { id, vm_uuid, vm: vm.to_owned(), name, memory, macs, pv_args, act });
    }
}

//! How the records follow the domains: power state, domid, metrics, attached devices, allowed operations, and the
//! starts that are handed to the body that plays guests.

use super::{
    Pool,
    calls::date,
    power::{Domain, Op},
    schema::{Class, NULL},
    spec::DomainStart,
};
use crate::{clock::Timestamp, xen::Value};

impl Pool {
    /// The records follow all domains again, as after a restart of xapi.
    pub(super) fn follow_domains(&mut self, now: Timestamp) {
        let vms: Vec<String> = self.db.rows(Class::Vm).map(|(vm, _)| vm.clone()).collect();
        self.domains.retain(|vm, _| vms.contains(vm));
        for vm in &vms {
            if self.db.flag(Class::Vm, vm, "is_control_domain") {
                continue; // its domain is the host's own
            }
            self.follow_domain(now, vm);
            if let Some(started) = self.domains.get(vm).map(|domain| domain.started) {
                self.write_start_time(now, vm, started);
            }
        }
    }

    /// Writes what the record tells of the VM's domain, or of its absence.
    pub(super) fn follow_domain(&mut self, now: Timestamp, vm: &str) {
        if self.stale.contains(vm) {
            return;
        }
        let domain = self.domains.get(vm).cloned();
        let (state, domid, host) = match &domain {
            Some(domain) if domain.paused => ("Paused", domain.domid.to_string(), domain.host.as_str()),
            Some(domain) => ("Running", domain.domid.to_string(), domain.host.as_str()),
            None if self.db.text(Class::Vm, vm, "power_state") == "Suspended" => return,
            None => ("Halted", "-1".to_owned(), NULL),
        };
        let was_on = self.db.text(Class::Vm, vm, "resident_on").to_owned();
        self.db.set_text(now, Class::Vm, vm, "power_state", state);
        self.db.set_text(now, Class::Vm, vm, "domid", &domid);
        self.db.set_text(now, Class::Vm, vm, "resident_on", host);
        self.note_resident(now, &was_on, host, vm);
        let metrics = self.db.text(Class::Vm, vm, "metrics").to_owned();
        let kind = domain.as_ref().map_or("unspecified", |domain| domain.kind.as_str());
        let memory = domain.as_ref().map_or(0, |domain| domain.memory);
        self.db.set_text(now, Class::VmMetrics, &metrics, "current_domain_type", kind);
        self.db.set(now, Class::VmMetrics, &metrics, "hvm", Value::Bool(kind == "hvm"));
        self.db.set_text(now, Class::VmMetrics, &metrics, "memory_actual", &memory.to_string());
        for (drives, class) in [("VBDs", Class::Vbd), ("VIFs", Class::Vif)] {
            for device in self.db.set_of(Class::Vm, vm, drives) {
                let lost = class == Class::Vbd && domain.as_ref().is_some_and(|domain| domain.diskless);
                let attached = domain.is_some() && !lost;
                self.db.set(now, class, &device, "currently_attached", Value::Bool(attached));
            }
        }
        if !domain.is_some_and(|domain| domain.agent) {
            self.hide_agent(now, vm);
        }
        self.refresh_allowed(now, vm);
    }

    /// `VM.power_state_reset`: the record says Halted, whatever lives.
    pub(super) fn reset_power_state(&mut self, now: Timestamp, vm: &str) {
        let domain = self.domains.remove(vm);
        self.stale.remove(vm);
        self.follow_domain(now, vm);
        if let Some(domain) = domain {
            self.domains.insert(vm.to_owned(), domain);
            self.stale.insert(vm.to_owned());
        }
    }

    fn note_resident(&mut self, now: Timestamp, was_on: &str, host: &str, vm: &str) {
        if was_on == host {
            return;
        }
        for (host, stays) in [(was_on, false), (host, true)] {
            let mut residents = self.db.set_of(Class::Host, host, "resident_VMs");
            residents.retain(|resident| resident != vm);
            if stays {
                residents.push(vm.to_owned());
            }
            let residents = residents.into_iter().map(Value::String).collect();
            self.db.set(now, Class::Host, host, "resident_VMs", Value::Array(residents));
        }
    }

    /// `allowed_operations`: what a client may expect to be allowed.
    pub(super) fn refresh_allowed(&mut self, now: Timestamp, vm: &str) {
        let state = self.db.text(Class::Vm, vm, "power_state");
        let template = self.db.flag(Class::Vm, vm, "is_a_template");
        let listens = self.domains.get(vm).is_some_and(Domain::listens);
        let idle = self.is_idle(vm);
        let fits = |op: &Op| {
            op.states().contains(&state)
                && (idle || op.overtakes())
                && !template
                && (listens || !op.is_clean())
        };
        let mut allowed: Vec<Value> =
            Op::ALL.iter().filter(|op| fits(op)).map(|op| Value::string(op.name())).collect();
        if template && idle {
            allowed.extend(["clone", "copy", "provision", "destroy", "export"].map(Value::string));
        } else if idle && state == "Halted" {
            allowed.extend(
                ["clone", "copy", "destroy", "export", "snapshot", "changing_VCPUs"].map(Value::string),
            );
        }
        self.db.set(now, Class::Vm, vm, "allowed_operations", Value::Array(allowed));
    }
    /// The start time is written some time after the start, and never moved back.
    pub(super) fn write_start_time(&mut self, now: Timestamp, vm: &str, started: Timestamp) {
        let metrics = self.db.text(Class::Vm, vm, "metrics").to_owned();
        let text = date(started);
        // The dates have one width, so their order is the order of the texts.
        if self.db.text(Class::VmMetrics, &metrics, "start_time") < text.as_str() {
            self.db.set(now, Class::VmMetrics, &metrics, "start_time", Value::DateTime(text));
        }
    }

    /// Hands a domain that runs now to the body that plays guests, once.
    pub(super) fn tell_start(&mut self, vm: &str, was_paused: bool) {
        let Some(domain) = self.domains.get_mut(vm).filter(|domain| !domain.told) else { return };
        domain.told = true;
        let (domid, mode) = (domain.born_as, domain.mode.clone());
        let (lacks, diskless) = (domain.lacks.clone(), domain.diskless);
        let macs = self.db.set_of(Class::Vm, vm, "VIFs");
        let macs = macs.iter().filter_map(|vif| self.db.text(Class::Vif, vif, "MAC").parse().ok()).collect();
        self.starts.push(DomainStart {
            vm_uuid: self.db.text(Class::Vm, vm, "uuid").to_owned(),
            name: self.db.text(Class::Vm, vm, "name_label").to_owned(),
            domid,
            macs,
            mode,
            was_paused,
            lacks,
            diskless,
        });
    }
}

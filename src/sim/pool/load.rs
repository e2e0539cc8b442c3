//! A pool from the records of a real XenServer database: VMs, VIFs, networks, hosts and the pool itself, with all
//! their fields. Such files have no table of drives or metrics: every guest gets one bootable disk.
//!
//! Invariant: what a record says in a field that the served release has, the pool says too; only what depends on
//! the model's own domains (power state, allowed operations) and the hosts' addresses is the model's.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use super::{
    Host, HostSpec, Pool,
    bootloader::NO_SYSTEM,
    db::is_null,
    populate::{Draft, LONG_AGO, RAN_BEFORE, SR_SIZE},
    release::Release,
    schema::{Class, EPOCH, Kind, NULL},
    spec::DiskSpec,
};
use crate::xen::Value;

/// A database that cannot become a pool.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is no JSON.
    #[error("{file} is not JSON")]
    Syntax {
        /// The file's name, as given.
        file: String,
        /// Where, by line and column.
        source: serde_json::Error,
    },
    /// Something is missing, or of another type.
    #[error("{file}: {place}: {problem}")]
    Content {
        /// The file's name, as given.
        file: String,
        /// Such as `tables.VM.OpaqueRef:….VIFs`.
        place: String,
        /// What is wrong there.
        problem: String,
    },
}

/// The file, for errors.
#[derive(Clone, Copy)]
struct Source<'a> {
    file: &'a str,
}

impl Source<'_> {
    fn wrong(self, place: &str, problem: &str) -> LoadError {
        LoadError::Content {
            file: self.file.to_owned(),
            place: place.to_owned(),
            problem: problem.to_owned(),
        }
    }

    fn object<'j>(self, owner: &'j Json, path: &str, name: &str) -> Result<&'j Map<String, Json>, LoadError> {
        let place = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let found = owner.get(name).ok_or_else(|| self.wrong(&place, "is missing"))?;
        found.as_object().ok_or_else(|| self.wrong(&place, "is not an object"))
    }

    /// The release that wrote the file, by its API version.
    fn release(self, root: &Json) -> Result<Release, LoadError> {
        let written = self.object(root, "", "release")?;
        let api = written.get("api").and_then(Json::as_str);
        let api = api.and_then(|text| text.split_once('.'));
        let api = api.and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
        let api = api.ok_or_else(|| self.wrong("release.api", "is not a version such as 1.9"))?;
        Ok(Release::of_api(api))
    }
}

impl Pool {
    /// The pool that a database describes. `file` names it in errors. The release is that of the file, or `release`
    /// where the caller names one; files older than 5.6 are served as 5.6. Guests that the file shows as running
    /// have a domain; nobody is told of its start, so that a driver may act for it but need not.
    pub fn load(seed: u64, file: &str, json: &str, release: Option<Release>) -> Result<Self, LoadError> {
        let root: Json = serde_json::from_str(json)
            .map_err(|source| LoadError::Syntax { file: file.to_owned(), source })?;
        let source = Source { file };
        let written = source.release(&root)?;
        let mut pool = Self::empty(seed, release.unwrap_or(written));
        let table = |name: &str| source.object(root.get("tables").unwrap_or(&Json::Null), "tables", name);
        source.object(&root, "", "tables")?;
        for (class, name) in [(Class::Pool, "pool"), (Class::Network, "network"), (Class::Vif, "VIF")] {
            for (reference, record) in table(name)? {
                let draft = pool.read_record(source, class, name, (reference, record))?;
                pool.db.insert(LONG_AGO, class, reference.clone(), draft.0);
            }
        }
        pool.load_hosts(source, table("host")?)?;
        pool.fill_gaps();
        pool.load_vms(source, table("VM")?)?;
        pool.db.sync();
        Ok(pool)
    }

    /// The members of a record that the release has, each as its kind.
    fn read_record(
        &mut self,
        source: Source<'_>,
        class: Class,
        table: &str,
        (reference, record): (&str, &Json),
    ) -> Result<Draft, LoadError> {
        let place = |name: &str| format!("tables.{table}.{reference}{name}");
        let members = record.as_object().ok_or_else(|| source.wrong(&place(""), "is not a record"))?;
        let api = self.release.api;
        let mut draft = self.draft(class);
        for (name, value) in members {
            // Xapi keeps some members to itself: times of change, what is reserved.
            let Some(field) = class.field(api, name) else { continue };
            let read = read_value(field.kind, value);
            let problem = format!("is not of type {}", field.kind.name());
            draft.put(name, read.ok_or_else(|| source.wrong(&place(&format!(".{name}")), &problem))?);
        }
        if members.get("uuid").and_then(Json::as_str).is_none() {
            return Err(source.wrong(&place(".uuid"), "is missing"));
        }
        Ok(draft)
    }

    /// Hosts, the coordinator first: it listens at 127.0.0.1.
    fn load_hosts(&mut self, source: Source<'_>, table: &Map<String, Json>) -> Result<(), LoadError> {
        let pool = self.db.rows(Class::Pool).map(|(reference, _)| reference.clone()).next();
        self.pool_ref = pool.ok_or_else(|| source.wrong("tables.pool", "is empty"))?;
        let master = self.db.text(Class::Pool, &self.pool_ref, "master").to_owned();
        if !table.contains_key(&master) {
            return Err(source.wrong(&format!("tables.pool.{}.master", self.pool_ref), "is no host"));
        }
        let mut references: Vec<&String> = table.keys().collect();
        references.sort_by_key(|reference| **reference != master);
        for (number, reference) in references.into_iter().enumerate() {
            let record = table.get(reference).unwrap_or(&Json::Null);
            let mut draft = self.read_record(source, Class::Host, "host", (reference, record))?;
            let spec = HostSpec {
                name: draft.word("hostname"),
                address: format!("127.0.0.{}", number + 1),
                hvm: draft.has("capabilities", "hvm-"),
                pv32: draft.has("capabilities", "x86_32p"),
                enabled: draft.is_set("enabled"),
                ..HostSpec::default()
            };
            let mut metrics = self.draft(Class::HostMetrics);
            metrics.flag("live", true).text("memory_total", &spec.memory.to_string());
            let metrics = self.store(LONG_AGO, Class::HostMetrics, metrics);
            draft.texts(&[("address", &spec.address), ("metrics", &metrics)]);
            self.serve_release(&mut draft);
            draft.set("supported_bootloaders", &["pygrub".to_owned(), "eliloader".to_owned()]);
            self.db.insert(LONG_AGO, Class::Host, reference.clone(), draft.0);
            self.hosts.push(Host { reference: reference.clone(), spec });
        }
        Ok(())
    }

    /// A host says the release that the pool behaves like where the file is of another one.
    fn serve_release(&self, host: &mut Draft) {
        let (major, minor) = (self.release.api.0.to_string(), self.release.api.1.to_string());
        if host.word("API_version_major") == major && host.word("API_version_minor") == minor {
            return;
        }
        host.texts(&[("API_version_major", &major), ("API_version_minor", &minor)]);
        let version = self.release.product_version.to_owned();
        host.put_in("software_version", "product_version", &version);
        host.put_in("software_version", "product_brand", self.release.brand);
        host.put_in("software_version", "xen", self.release.xen);
    }

    fn load_vms(&mut self, source: Source<'_>, table: &Map<String, Json>) -> Result<(), LoadError> {
        for (reference, record) in table {
            let mut draft = self.read_record(source, Class::Vm, "VM", (reference, record))?;
            let ran = ever_ran(&draft);
            let mut metrics = self.draft(Class::VmMetrics);
            metrics.texts(&[
                ("start_time", if ran { RAN_BEFORE } else { EPOCH }),
                ("current_domain_type", "unspecified"),
            ]);
            let metrics = self.store(LONG_AGO, Class::VmMetrics, metrics);
            draft.texts(&[("metrics", &metrics), ("guest_metrics", NULL)]).set("VBDs", &[]);
            if draft.word("domain_type").is_empty() {
                let kind = if draft.word("HVM_boot_policy").is_empty() { "pv" } else { "hvm" };
                draft.text("domain_type", kind);
            }
            let is_guest = !draft.is_set("is_a_template") && !draft.is_set("is_control_domain");
            let (uuid, state) = (draft.word("uuid"), draft.word("power_state"));
            if draft.word("domarch") == "x32" {
                self.bits32.insert(uuid.clone());
            }
            let is_dom0 = draft.is_set("is_control_domain");
            self.db.insert(LONG_AGO, Class::Vm, reference.clone(), draft.0);
            if is_dom0 {
                continue;
            }
            if is_guest {
                self.add_drive(reference, &DiskSpec::default());
                let nothing = || Err(NO_SYSTEM.to_owned());
                self.boot_disks.insert(uuid.clone(), if ran { Ok(()) } else { nothing() });
            }
            self.added.push(uuid);
            if matches!(state.as_str(), "Running" | "Paused") {
                let place = self.place_of(reference);
                self.run_from_before(reference, place);
                self.pause_from_before(reference, state == "Paused");
            }
            self.note_overhead(LONG_AGO, reference);
            self.refresh_allowed(LONG_AGO, reference);
        }
        Ok(())
    }

    /// What the file has no table for: the SR that disks are on (the pool's default where it names one).
    fn fill_gaps(&mut self) {
        let network = self.db.rows(Class::Network).map(|(reference, _)| reference.clone()).next();
        self.network_ref = network.unwrap_or_else(|| NULL.to_owned());
        let named = self.db.text(Class::Pool, &self.pool_ref, "default_SR").to_owned();
        let mut sr = self.draft(Class::Sr);
        let size = SR_SIZE.to_string();
        sr.texts(&[("name_label", "Local storage"), ("type", "ext"), ("content_type", "user")]);
        sr.text("physical_size", &size);
        if is_null(&named) {
            self.sr_ref = self.store(LONG_AGO, Class::Sr, sr);
        } else {
            self.db.insert(LONG_AGO, Class::Sr, named.clone(), sr.0);
            self.sr_ref = named;
        }
    }

    /// Where a running VM of the file runs: its host and domid.
    pub(super) fn place_of(&self, vm: &str) -> Option<(String, u32)> {
        let host = self.db.text(Class::Vm, vm, "resident_on");
        let domid = self.db.text(Class::Vm, vm, "domid").parse().ok()?;
        self.hosts.iter().any(|known| known.reference == host).then(|| (host.to_owned(), domid))
    }
}

/// Signs in the record that the VM ran at some time.
fn ever_ran(vm: &Draft) -> bool {
    vm.word("power_state") != "Halted"
        || !vm.word("domarch").is_empty()
        || matches!(vm.0.get("other_config"), Some(Value::Struct(config)) if config.contains_key("last_shutdown_time"))
}

/// The value as the wire has it; `None`: it is of another kind.
fn read_value(kind: Kind, value: &Json) -> Option<Value> {
    let text = || value.as_str().map(str::to_owned);
    Some(match kind {
        Kind::Text | Kind::Reference => Value::String(text()?),
        Kind::Int => Value::String(text().or_else(|| value.as_i64().map(|number| number.to_string()))?),
        Kind::Float => Value::Double(value.as_f64().or_else(|| value.as_str()?.parse().ok())?),
        Kind::Flag => Value::Bool(value.as_bool()?),
        Kind::Date => Value::DateTime(text()?),
        Kind::Set => {
            let items: Option<Vec<Value>> =
                value.as_array()?.iter().map(|item| item.as_str().map(Value::string)).collect();
            Value::Array(items?)
        }
        Kind::Map => {
            let members: Option<BTreeMap<String, Value>> = value
                .as_object()?
                .iter()
                .map(|(key, item)| Some((key.clone(), Value::string(item.as_str()?))))
                .collect();
            Value::Struct(members?)
        }
    })
}

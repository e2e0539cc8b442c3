//! E0: what must hold before anything is changed. Reads only; every refusal says what was found and names the way
//! out. `gather` (the executor's work) reads the facts, [`judge`] decides; pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    claim::{Claim, Found, INSTALLED_KEY},
    creation::made_and_never_started,
    job::Job,
    reason::Reason,
    settings,
};
use crate::{
    clock::Timestamp,
    config::ProfileKind,
    machine::MacAddr,
    xen::{
        records::{
            HostMetrics, HostRecord, PoolRecord, PowerState, VbdRecord, VdiRecord, VifRecord, VmMetrics,
            VmRecord, never_ran,
        },
        release::Release,
        version::XenVersion,
    },
};

/// What E0 read.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The VM.
    pub vm: VmRecord,
    /// Its metrics.
    pub metrics: VmMetrics,
    /// Its block devices, each with its image where it has one.
    pub vbds: Vec<(VbdRecord, Option<VdiRecord>)>,
    /// Every VIF of the pool.
    pub vifs: Arc<Vec<VifRecord>>,
    /// The pool.
    pub pool: PoolRecord,
    /// Its hosts.
    pub hosts: Vec<HostRecord>,
    /// Their metrics.
    pub host_metrics: Vec<HostMetrics>,
    /// The hosts that could start it now, as PV (`VM.get_possible_hosts`).
    pub possible_hosts: Vec<String>,
    /// Bytes that a host has free for a start (`host.compute_free_memory`), by its reference, of those that were
    /// asked: the possible ones up to the first with room enough.
    pub free_memory: BTreeMap<String, u64>,
}

/// What the configuration says about this VM.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// `pool.allow`.
    pub allow: Vec<String>,
    /// `server.name`.
    pub owner: String,
}

/// A VM that may be installed.
#[derive(Debug, Clone, PartialEq)]
pub struct Cleared {
    /// The NIC that boots; rescue and external boot may do without.
    pub mac: Option<MacAddr>,
    /// The disk to install to: (userdevice, bytes).
    pub disk: Option<(String, u64)>,
    /// It runs now, and is to be stopped (reinstall).
    pub running: bool,
    /// VM_metrics.start_time: one that is off and has another later has run meanwhile.
    pub start_time: String,
    /// The oldest Xen of the hosts that may run it; `None`: none of them tells.
    pub xen: Option<XenVersion>,
    /// The claim to write.
    pub claim: Claim,
}

type Refusal = (Reason, String);

/// Decides E0.
///
/// # Errors
/// The first rule that does not hold, with what was found.
pub fn judge(
    job: &Job,
    facts: &Facts,
    rules: &Rules,
    nonce: &str,
    now: Timestamp,
) -> Result<Cleared, Refusal> {
    is_a_guest(&facts.vm)?;
    is_allowed(&facts.vm, &rules.allow)?;
    is_unclaimed(&facts.vm)?;
    is_not_protected(facts)?;
    is_free(&facts.vm)?;
    is_pv(facts)?;
    boots_pv(job, facts)?;
    let mac = booting_nic(job, facts)?;
    let disk = match job.profile.kind {
        ProfileKind::Install => Some(install_disk(job, facts)?),
        ProfileKind::Rescue => None,
    };
    may_be_erased(job, facts)?;
    has_host(facts)?;
    let needs_flags = facts.hosts.iter().any(|host| Release::of_host(host).reads_flags_literally());
    let claim = Claim {
        v: 1,
        owner: rules.owner.clone(),
        vm_uuid: facts.vm.uuid.clone(),
        job: job.id.clone(),
        attempt: job.attempt,
        nonce: nonce.to_owned(),
        since: now,
        touched: settings::touch(&facts.vm, needs_flags, job.options.stay_hvm),
    };
    if claim.text().len() > super::claim::CLAIM_MAX {
        return Err((Reason::SettingsChanged, "its boot settings do not fit into a claim of 4 KiB".into()));
    }
    let running = facts.vm.power_state == PowerState::Running;
    let start_time = facts.metrics.start_time.clone();
    Ok(Cleared { mac, disk, running, start_time, xen: oldest_xen(facts), claim })
}

/// Xapi takes any of the possible hosts; where none is possible now, any of the pool may be later.
fn oldest_xen(facts: &Facts) -> Option<XenVersion> {
    let possible = hosts_among(&facts.vm, &facts.hosts, &facts.possible_hosts);
    let among = facts.hosts.iter().filter(|host| possible.contains(&host.reference));
    XenVersion::lowest(among).or_else(|| XenVersion::lowest(&facts.hosts))
}

fn is_a_guest(vm: &VmRecord) -> Result<(), Refusal> {
    let what = if vm.is_control_domain {
        "a control domain"
    } else if vm.is_a_snapshot {
        "a snapshot"
    } else if vm.is_a_template {
        "a template"
    } else {
        return Ok(());
    };
    Err((Reason::NotAGuest, format!("{} is {what}", vm.name_label)))
}

/// `allow` entries are `tag=T`, `uuid=U` or `name~GLOB`; none: every VM.
fn is_allowed(vm: &VmRecord, allow: &[String]) -> Result<(), Refusal> {
    let fits = allow.is_empty() || allow.iter().any(|rule| selects(rule, vm));
    if fits { Ok(()) } else { Err((Reason::NotAllowed, format!("allow = {allow:?} does not cover it"))) }
}

/// Whether a rule or selector (`tag=T`, `uuid=U`, `name~GLOB`, a uuid or a name label) names this VM.
pub fn selects(rule: &str, vm: &VmRecord) -> bool {
    if let Some(tag) = rule.strip_prefix("tag=") {
        return vm.tags.iter().any(|found| found == tag);
    }
    if let Some(glob) = rule.strip_prefix("name~") {
        return glob_fits(glob, &vm.name_label);
    }
    let rule = rule.strip_prefix("uuid=").unwrap_or(rule);
    vm.uuid == rule || vm.name_label == rule
}

/// `*` any text, `?` any character; everything else is itself.
pub fn glob_fits(glob: &str, text: &str) -> bool {
    let (glob, text): (Vec<char>, Vec<char>) = (glob.chars().collect(), text.chars().collect());
    let (mut g, mut t, mut star) = (0, 0, None);
    while let Some(&c) = text.get(t) {
        match glob.get(g) {
            Some('*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&wanted) if wanted == '?' || wanted == c => {
                g += 1;
                t += 1;
            }
            Some(_) | None => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    g = at + 1;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    glob.iter().skip(g).all(|&c| c == '*')
}

fn is_unclaimed(vm: &VmRecord) -> Result<(), Refusal> {
    match Claim::find(vm) {
        Found::Absent => Ok(()),
        Found::Claim(claim) => Err((
            Reason::ClaimedByOther,
            format!(
                "claimed by {} for job {} since {}; `bootflip restore` undoes a claim of ours",
                claim.owner, claim.job, claim.since
            ),
        )),
        Found::Stray(claim) => Err((
            Reason::ClaimedByOther,
            format!(
                "it is a copy of VM {} and carries its claim; remove the key bootflip:claim from the copy",
                claim.vm_uuid
            ),
        )),
        Found::Unreadable(why) => {
            Err((Reason::ClaimedByOther, format!("its bootflip:claim cannot be read: {why}")))
        }
    }
}

fn is_not_protected(facts: &Facts) -> Result<(), Refusal> {
    let vm = &facts.vm;
    let protected =
        vm.ha_always_run || (!vm.ha_restart_priority.is_empty() && vm.ha_restart_priority != "best-effort");
    if facts.pool.ha_enabled && protected {
        return Err((Reason::HaProtected, "HA is on in the pool and protects this VM".into()));
    }
    const NEEDED: [&str; 5] = ["start", "start_on", "hard_shutdown", "unpause", "clean_shutdown"];
    match NEEDED.iter().find(|operation| vm.blocked_operations.contains_key(**operation)) {
        Some(operation) => {
            let why = vm.blocked_operations.get(*operation).cloned().unwrap_or_default();
            Err((Reason::OperationBlocked, format!("`{operation}` is blocked: {why}")))
        }
        None => Ok(()),
    }
}

fn is_free(vm: &VmRecord) -> Result<(), Refusal> {
    match vm.power_state {
        PowerState::Paused | PowerState::Suspended => {
            Err((Reason::Busy, format!("it is {:?}", vm.power_state)))
        }
        PowerState::Halted | PowerState::Running if !vm.current_operations.is_empty() => {
            let operations: BTreeSet<&str> = vm.current_operations.values().map(String::as_str).collect();
            Err((Reason::Busy, format!("in progress: {operations:?}")))
        }
        PowerState::Halted | PowerState::Running => Ok(()),
    }
}

fn is_pv(facts: &Facts) -> Result<(), Refusal> {
    if facts.vm.is_pv() {
        return Ok(());
    }
    let kind = facts
        .vm
        .domain_type
        .clone()
        .unwrap_or_else(|| format!("HVM_boot_policy \"{}\"", facts.vm.hvm_boot_policy));
    Err((Reason::NotPv, format!("its type is {kind}")))
}

/// The way out where the pool cannot start the VM as PV once it is installed.
const STAY_HVM: &str = "--stay-hvm installs it and leaves it HVM, booting from its disk";

/// Whether the VM can come back as what it is. PVH is not PV: it needs no PV support of Xen.
fn boots_pv(job: &Job, facts: &Facts) -> Result<(), Refusal> {
    let stays = job.options.stay_hvm && job.profile.kind == ProfileKind::Install;
    if stays || facts.vm.domain_type.as_deref() == Some("pvh") {
        return Ok(());
    }
    let refuse = |text: String| Err((Reason::PvUnsupported, format!("{text}; {STAY_HVM}")));
    let ended = |host: &&HostRecord| !Release::of_host(host).starts_pv();
    if let Some(host) = facts.hosts.iter().find(ended) {
        let release = Release::of_host(host);
        return refuse(format!("host {} ({release}) cannot start PV guests any more", host.name_label));
    }
    let enabled = || facts.hosts.iter().filter(|host| host.enabled);
    // No enabled host at all is a matter of its own.
    if enabled().next().is_some() && !enabled().any(|host| host.takes("xen-")) {
        return refuse("no enabled host takes PV guests (none has `xen-…` among its capabilities)".into());
    }
    // Xen lists x86_32p only while it takes 32-bit PV; 8.2 dropped it with an update of January 2022.
    match narrow(job, &facts.vm) {
        Some(sign) if !enabled().any(|host| host.takes("xen-3.0-x86_32p")) => refuse(format!(
            "{sign}, so it is taken for a 32-bit guest, and no enabled host takes 32-bit PV any more (no record \
             says how wide a guest is; if the new system has 64 bits, name a 64-bit kernel in the profile, or \
             correct install-arch and base_template_name in the VM's other_config)"
        )),
        Some(_) | None => Ok(()),
    }
}

/// The sign that the VM's next system has 32 bits; `None`: it has 64, or nothing says so. What will be installed
/// counts before what was: the profile's kernel, the VM's install-arch, the template that it was made from.
fn narrow(job: &Job, vm: &VmRecord) -> Option<String> {
    let erased = job.profile.kind == ProfileKind::Install;
    let kernel = job.profile.boot.as_ref().filter(|_| erased).map_or("", |boot| boot.kernel.as_str());
    let config = |key: &str| vm.other_config.get(key).map_or("", String::as_str);
    let (arch, template) = (config("install-arch"), config("base_template_name"));
    let signs = [
        (kernel, format!("the profile's kernel is {kernel}")),
        (arch, format!("its install-arch is {arch}")),
        (template, format!("it was made from \"{template}\"")),
    ];
    signs
        .into_iter()
        .find_map(|(text, sign)| is_narrow(text).map(|narrow| (narrow, sign)))
        .and_then(|(narrow, sign)| narrow.then_some(sign))
}

/// Whether a path, an architecture or a template's name says 32 bits; `None`: it says nothing, or both.
fn is_narrow(text: &str) -> Option<bool> {
    const NARROW: [&str; 6] = ["i386", "i486", "i586", "i686", "x86_32", "32-bit"];
    const WIDE: [&str; 4] = ["amd64", "x86_64", "x86-64", "64-bit"];
    let text = text.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    match (says(&NARROW), says(&WIDE)) {
        (true, false) => Some(true),
        (false, true) => Some(false),
        (_, _) => None,
    }
}

/// A host that can take the VM in HVM mode. Of a running VM the pool cannot tell which hosts have room once it is
/// shut down, so that only the hosts' whole memory counts.
fn has_host(facts: &Facts) -> Result<(), Refusal> {
    let refuse = |text: String| Err((Reason::NoHost, text));
    let enabled: Vec<&HostRecord> = facts.hosts.iter().filter(|host| host.enabled).collect();
    if enabled.is_empty() {
        return refuse("no host of the pool is enabled".into());
    }
    let able: Vec<&HostRecord> = enabled.into_iter().filter(|host| host.takes("hvm-")).collect();
    if able.is_empty() {
        return refuse(
            "no enabled host can run HVM guests, which the installation needs (none has `hvm-…` among its \
             capabilities): switch VT-x or AMD-V on in its firmware"
                .into(),
        );
    }
    let (memory, needed) = (facts.vm.memory_static_max, hvm_memory(&facts.vm, facts.vm.memory_static_max));
    let is_large = |host: &&HostRecord| {
        let metrics = facts.host_metrics.iter().find(|metrics| metrics.reference == host.metrics);
        metrics.is_some_and(|metrics| metrics.memory_total >= needed)
    };
    let has_room = |host: &&HostRecord| {
        facts.vm.power_state != PowerState::Halted || facts.possible_hosts.contains(&host.reference)
    };
    let fitting: Vec<_> = able.into_iter().filter(is_large).filter(has_room).collect();
    if fitting.is_empty() {
        return refuse(format!("no host can start it as HVM with {} MiB", memory >> 20));
    }
    // A guest begins at its dynamic minimum, and a pool that has no figure for a host says nothing about it.
    let least = hvm_memory(&facts.vm, facts.vm.memory_dynamic_min);
    let free = |host: &&HostRecord| facts.free_memory.get(&host.reference).copied();
    if fitting.iter().any(|host| free(host).is_none_or(|free| free >= least)) {
        return Ok(());
    }
    let most = fitting.iter().filter_map(free).max().unwrap_or_default();
    refuse(format!(
        "it fits as PV, but as HVM it needs {} MiB with Xen's share, and the roomiest host has {} MiB free",
        least >> 20,
        most >> 20
    ))
}

/// What the VM takes of a host while it runs as HVM with `memory` bytes of its own, in bytes.
pub const fn hvm_memory(vm: &VmRecord, memory: u64) -> u64 {
    let for_processors = PER_VCPU.saturating_mul(vm.vcpus_max);
    memory.saturating_add(memory / SHADOW_SHARE).saturating_add(for_processors).saturating_add(HVM_OVERHEAD)
}

/// The hosts that can run HVM guests now, by their references.
pub fn live_hosts(hosts: &[HostRecord]) -> Vec<String> {
    let live = hosts.iter().filter(|host| host.enabled && host.takes("hvm-"));
    live.map(|host| host.reference.clone()).collect()
}

/// Those of them that can start the VM: its storage, its networks, room. Of a VM that runs the pool does not tell, and
/// any will do.
pub fn hosts_among(vm: &VmRecord, hosts: &[HostRecord], possible_hosts: &[String]) -> Vec<String> {
    let mut live = live_hosts(hosts);
    if vm.power_state == PowerState::Halted {
        live.retain(|host| possible_hosts.contains(host));
    }
    live
}

/// The hosts that could start a halted VM as HVM if they have memory: whose free memory decides.
pub fn hosts_to_ask<'f>(
    vm: &VmRecord,
    hosts: &'f [HostRecord],
    possible_hosts: &[String],
) -> impl Iterator<Item = &'f HostRecord> {
    let halted = vm.power_state == PowerState::Halted;
    let may = move |host: &&HostRecord| halted && host.enabled && host.takes("hvm-");
    let possible: BTreeSet<String> = possible_hosts.iter().cloned().collect();
    hosts.iter().filter(may).filter(move |host| possible.contains(&host.reference))
}

/// Xapi's reckoning for HVM: two pages of shadow and p2m for each MiB of the guest's memory, …
const SHADOW_SHARE: u64 = 128;
/// … 256 pages for each VCPU, …
const PER_VCPU: u64 = 1 << 20;
/// … and video memory, the emulator's and Xen's own, in bytes.
const HVM_OVERHEAD: u64 = 7 << 20;

fn booting_nic(job: &Job, facts: &Facts) -> Result<Option<MacAddr>, Refusal> {
    let mut own: Vec<&VifRecord> = facts.vifs.iter().filter(|vif| vif.vm == facts.vm.reference).collect();
    own.sort_by_key(|vif| vif.device.parse::<u32>().unwrap_or(u32::MAX));
    let vif = match job.options.mac {
        Some(mac) => own
            .iter()
            .find(|vif| vif.mac.parse() == Ok(mac))
            .ok_or_else(|| (Reason::NoVif, format!("it has no VIF with MAC {mac}")))?,
        None => own.first().ok_or_else(|| (Reason::NoVif, "it has no VIF".into()))?,
    };
    let Ok(mac) = vif.mac.parse::<MacAddr>() else {
        return Err((Reason::NoVif, format!("its VIF's MAC is \"{}\"", vif.mac)));
    };
    let same = facts.vifs.iter().filter(|other| other.mac.parse() == Ok(mac)).count();
    if same > 1 {
        return Err((Reason::DuplicateMac, format!("{same} VIFs of the pool have MAC {mac}")));
    }
    Ok(Some(mac))
}

fn install_disk(job: &Job, facts: &Facts) -> Result<(String, u64), Refusal> {
    let mut devices: Vec<&(VbdRecord, Option<VdiRecord>)> =
        facts.vbds.iter().filter(|(vbd, _)| !vbd.empty).collect();
    devices.sort_by_key(|(vbd, _)| vbd.userdevice.parse::<u32>().unwrap_or(u32::MAX));
    let is_disk = |vbd: &VbdRecord| vbd.kind == "Disk" && vbd.mode == "RW";
    let writable: Vec<_> = devices.iter().filter(|(vbd, _)| is_disk(vbd)).collect();
    let named = job.options.disk.as_ref().or(job.profile.disk.as_ref());
    let list =
        || writable.iter().map(|(vbd, vdi)| describe_disk(vbd, vdi.as_ref())).collect::<Vec<_>>().join(", ");
    let chosen = match named {
        Some(position) => writable.iter().find(|(vbd, _)| vbd.userdevice == *position).ok_or_else(|| {
            (Reason::WhichDisk, format!("no writable disk at position {position}; there are: {}", list()))
        })?,
        None => match writable.as_slice() {
            [only] => only,
            [] => return Err((Reason::WhichDisk, "it has no writable disk".into())),
            [_, ..] => return Err((Reason::WhichDisk, format!("it has several writable disks: {}", list()))),
        },
    };
    // pygrub reads the first bootable device that is not empty.
    match devices.iter().find(|(vbd, _)| vbd.bootable) {
        Some((first, _)) if first.userdevice == chosen.0.userdevice => {}
        Some((first, _)) if first.kind != "Disk" => {
            return Err((
                Reason::CdFirst,
                format!(
                    "the bootable {} at position {} stands before the disk",
                    first.kind, first.userdevice
                ),
            ));
        }
        Some((first, _)) => {
            return Err((
                Reason::WhichDisk,
                format!(
                    "position {} is bootable and would be read before {}",
                    first.userdevice, chosen.0.userdevice
                ),
            ));
        }
        None => {
            return Err((
                Reason::WhichDisk,
                format!("the disk at position {} is not bootable", chosen.0.userdevice),
            ));
        }
    }
    Ok((chosen.0.userdevice.clone(), chosen.1.as_ref().map_or(0, |vdi| vdi.virtual_size)))
}

/// A disk in words: position, name and size, for plans and confirmations.
pub fn describe_disk(vbd: &VbdRecord, vdi: Option<&VdiRecord>) -> String {
    let name = vdi.map_or("", |vdi| vdi.name_label.as_str());
    let mib = vdi.map_or(0, |vdi| vdi.virtual_size >> 20);
    format!("{} \"{name}\" {mib} MiB", vbd.userdevice)
}

fn may_be_erased(job: &Job, facts: &Facts) -> Result<(), Refusal> {
    let erases = job.profile.kind == ProfileKind::Install;
    let ours = job.own_starts.contains(&facts.metrics.start_time);
    let copied = made_and_never_started(&facts.vm, &facts.metrics);
    let ran = !(never_ran(&facts.metrics) || copied) || facts.vm.other_config.contains_key(INSTALLED_KEY);
    let running = facts.vm.power_state == PowerState::Running;
    if erases && !job.options.reinstall && (running || (ran && !ours)) {
        let when = if running {
            "it is running".to_owned()
        } else {
            format!("it ran last at {}", facts.metrics.start_time)
        };
        return Err((Reason::HasRun, when));
    }
    Ok(())
}

#[cfg(test)]
mod tests;

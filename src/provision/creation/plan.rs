//! What a pool makes of wishes: names looked up, room reckoned, addresses chosen, everything refused that would fail
//! half-way. Pure.
//!
//! Invariant: a plan is for all wishes or for none; the problems are all told at once.

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};

use super::{DISKS_KEY, Mark, fleet::Wish};
use crate::{
    machine::MacAddr,
    secret::hex,
    xen::records::{NetworkRecord, PoolRecord, SrRecord, VbdRecord, VdiRecord, VifRecord, VmRecord, is_null},
};

/// What was read of the pool.
#[derive(Debug, Clone)]
pub struct Catalogue {
    /// `server.name`.
    pub owner: String,
    /// The pool.
    pub pool: PoolRecord,
    /// All VMs, with the templates.
    pub vms: Vec<VmRecord>,
    /// All networks.
    pub networks: Vec<NetworkRecord>,
    /// All storage repositories.
    pub srs: Vec<SrRecord>,
    /// The NICs whose addresses are taken.
    pub vifs: Vec<VifRecord>,
    /// The drives of the templates that are wished for, by the template's reference.
    pub drives: BTreeMap<String, Vec<(VbdRecord, Option<VdiRecord>)>>,
    /// The uuids of VMs that we made and nobody started.
    pub unstarted: BTreeSet<String>,
}

/// How a VM comes from its template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// `VM.clone`: the disks stay in their storage repository.
    Clone,
    /// `VM.copy` to the storage repository with this reference.
    Copy(String),
}

/// One VM to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// `name_label`.
    pub name: String,
    /// It is there already, made for the same wish and never started: its uuid.
    pub existing: Option<String>,
    /// The template: reference and name.
    pub template: (String, String),
    /// How it comes from it.
    pub way: Way,
    /// The network: reference and name.
    pub network: (String, String),
    /// The storage repository: name and free bytes.
    pub sr: (String, u64),
    /// Bytes of its disks.
    pub need: u64,
    /// The value of the `disks` key, with the storage repository filled in; `None`: the template brings its disks.
    pub disks: Option<String>,
    /// Bytes to set; `None`: as the template has it.
    pub memory: Option<u64>,
    /// VCPUs to set; `None`: as the template has it.
    pub vcpus: Option<u32>,
    /// Bytes and VCPUs that it will have.
    pub sizes: (u64, u64),
    /// The address of its NIC.
    pub mac: MacAddr,
    /// A tag.
    pub tag: String,
    /// Names what was asked for: the same for the same wish in the same pool.
    pub digest: String,
}

/// The template that a wish means.
///
/// # Errors
/// There is none, or several, or it cannot be used.
pub fn template_of<'c>(wish: &Wish, vms: &'c [VmRecord]) -> Result<&'c VmRecord, String> {
    let usable = |vm: &&VmRecord| vm.is_a_template && !vm.is_a_snapshot && !vm.is_control_domain;
    let templates: Vec<&VmRecord> = vms.iter().filter(usable).collect();
    let found = one("template", &wish.template, templates, |vm| (&vm.uuid, &vm.name_label));
    let template = found.map_err(|problem| {
        let named = |vm: &&VmRecord| vm.name_label == wish.template || vm.uuid == wish.template;
        match vms.iter().filter(|vm| !usable(vm)).find(named) {
            Some(vm) if vm.is_a_snapshot => format!("{problem}; {} is a snapshot", vm.uuid),
            Some(vm) => format!("{problem}; {} is a VM and no template", vm.uuid),
            None => problem,
        }
    })?;
    if !template.is_pv() {
        return Err(format!(
            "template \"{}\" is HVM (its HVM_boot_policy is \"{}\"): it boots from a BIOS and its PV boot fields are \
             not meant to be used; bootflip installs PV guests, so take a PV template (`bootflip vm list --all`)",
            template.name_label, template.hvm_boot_policy
        ));
    }
    if !template.pv_kernel.is_empty() {
        return Err(format!(
            "template \"{}\" boots the kernel {} of the control domain and never its own disk",
            template.name_label, template.pv_kernel
        ));
    }
    Ok(template)
}

/// More names than this are no help.
const MANY: usize = 12;

/// The one thing of this uuid or name.
fn one<'t, T>(
    what: &str,
    wanted: &str,
    all: Vec<&'t T>,
    names: impl Fn(&T) -> (&String, &String),
) -> Result<&'t T, String> {
    if let Some(found) = all.iter().find(|item| names(item).0 == wanted) {
        return Ok(found);
    }
    let mut known: Vec<String> = all.iter().map(|item| format!("\"{}\"", names(item).1)).collect();
    known.sort();
    let known = if known.len() > MANY { String::new() } else { format!("; there are: {}", known.join(", ")) };
    let named: Vec<&T> = all.into_iter().filter(|item| names(item).1 == wanted).collect();
    match named.as_slice() {
        [only] => Ok(only),
        [] => Err(format!("the pool has no {what} \"{wanted}\"{known}")),
        [_, _, ..] => {
            let uuids: Vec<&str> = named.iter().map(|item| names(item).0.as_str()).collect();
            let count = uuids.len();
            Err(format!(
                "{count} {what}s have the name \"{wanted}\"; name one by its uuid: {}",
                uuids.join(", ")
            ))
        }
    }
}

/// Plans all wishes.
///
/// # Errors
/// Everything that speaks against them.
pub fn plan(wishes: &[Wish], pool: &Catalogue, prefix: [u8; 3]) -> Result<Vec<Planned>, Vec<String>> {
    let mut taken: BTreeSet<MacAddr> = pool.vifs.iter().filter_map(|vif| vif.mac.parse().ok()).collect();
    let (mut all, mut problems, mut names) = (Vec::<Planned>::new(), Vec::new(), BTreeSet::new());
    for wish in wishes {
        if !names.insert(wish.name.as_str()) {
            problems.push(format!("{}: {} is named twice", wish.place, wish.name));
            continue;
        }
        match planned(wish, pool, prefix, &taken) {
            Ok(planned) => {
                taken.insert(planned.mac);
                all.push(planned);
            }
            Err(problem) => problems.push(format!("{}: {}: {problem}", wish.place, wish.name)),
        }
    }
    problems.extend(room(&all));
    if problems.is_empty() { Ok(all) } else { Err(problems) }
}

fn planned(
    wish: &Wish,
    pool: &Catalogue,
    prefix: [u8; 3],
    taken: &BTreeSet<MacAddr>,
) -> Result<Planned, String> {
    let template = template_of(wish, &pool.vms)?;
    let networks = pool.networks.iter().collect();
    let network = one("network", &wish.network, networks, |network| (&network.uuid, &network.name_label))?;
    let drives = pool.drives.get(&template.reference).map(Vec::as_slice).unwrap_or_default();
    let own: Vec<&VdiRecord> = drives
        .iter()
        .filter(|(vbd, _)| vbd.kind == "Disk" && vbd.mode == "RW")
        .filter_map(|(_, vdi)| vdi.as_ref())
        .collect();
    let sr = storage(wish, pool, &own)?;
    let (disks, new_bytes) = disk_plan(wish, template, &own, &sr.uuid)?;
    let moves = own.iter().any(|vdi| vdi.sr != sr.reference);
    let own_bytes = if moves { own.iter().map(|vdi| vdi.virtual_size).sum() } else { 0 };
    let memory = wish.memory.unwrap_or(template.memory_static_max);
    if memory < template.memory_static_min {
        return Err(format!(
            "{} MiB of memory are below the least that template \"{}\" allows: {} MiB",
            memory >> 20,
            template.name_label,
            template.memory_static_min >> 20
        ));
    }
    let digest = digest(wish, [&template.uuid, &network.uuid, &sr.uuid]);
    let existing = existing(wish, pool, &digest)?;
    Ok(Planned {
        name: wish.name.clone(),
        template: (template.reference.clone(), template.name_label.clone()),
        way: if moves { Way::Copy(sr.reference.clone()) } else { Way::Clone },
        network: (network.reference.clone(), network.name_label.clone()),
        sr: (sr.name_label.clone(), sr.free),
        need: if existing.is_some() { 0 } else { new_bytes.saturating_add(own_bytes) },
        disks,
        memory: wish.memory,
        vcpus: wish.vcpus,
        sizes: (memory, wish.vcpus.map_or(template.vcpus_max, u64::from)),
        mac: address(wish, pool, prefix, taken, existing.as_deref())?,
        tag: wish.tag.clone(),
        existing,
        digest,
    })
}

/// Where the disks go: as asked, else where the template's are, else the pool's default.
fn storage<'c>(wish: &Wish, pool: &'c Catalogue, own: &[&VdiRecord]) -> Result<&'c SrRecord, String> {
    let by_reference = |reference: &str| pool.srs.iter().find(|sr| sr.reference == reference);
    let sr = match (&wish.sr, own.first()) {
        (Some(wanted), _) => one("SR", wanted, pool.srs.iter().collect(), |sr| (&sr.uuid, &sr.name_label))?,
        (None, Some(disk)) => by_reference(&disk.sr).ok_or("the SR of the template's disk is gone")?,
        (None, None) if is_null(&pool.pool.default_sr) => {
            return Err("the pool has no default SR; name one with --sr, or in a column `sr`".to_owned());
        }
        (None, None) => by_reference(&pool.pool.default_sr)
            .ok_or("the pool's default SR is gone; name one with --sr, or in a column `sr`")?,
    };
    if sr.content_type == "iso" || matches!(sr.kind.as_str(), "iso" | "udev") {
        return Err(format!("SR \"{}\" holds CDs or drives ({}) and no disks", sr.name_label, sr.kind));
    }
    Ok(sr)
}

/// The `disks` key to write, and the bytes that it asks for.
fn disk_plan(
    wish: &Wish,
    template: &VmRecord,
    own: &[&VdiRecord],
    sr: &str,
) -> Result<(Option<String>, u64), String> {
    let name = &template.name_label;
    let text = template.other_config.get(DISKS_KEY);
    let mut disks = match text {
        Some(text) => {
            read_disks(text).ok_or_else(|| format!("the disk plan of template \"{name}\" is damaged"))?
        }
        None => Vec::new(),
    };
    if !own.is_empty() {
        if wish.disk.is_some() {
            return Err(format!(
                "template \"{name}\" brings a disk of its own, whose size is as it is; leave out --disk"
            ));
        }
        if !disks.is_empty() {
            return Err(format!(
                "template \"{name}\" has disks and a plan for more; bootflip makes VMs with one"
            ));
        }
        return Ok((None, 0));
    }
    if disks.is_empty() {
        let size = wish.disk.ok_or_else(|| {
            format!("template \"{name}\" has no disk and no plan for one; say how large with --disk")
        })?;
        disks.push(PlannedDisk { device: "0".to_owned(), size, bootable: true, kind: "system".to_owned() });
    }
    let first = disks.iter().position(|disk| disk.bootable).unwrap_or(0);
    for (at, disk) in disks.iter_mut().enumerate() {
        disk.bootable = at == first;
        if disk.bootable {
            disk.size = wish.disk.unwrap_or(disk.size);
        }
    }
    let total = disks.iter().fold(0_u64, |sum, disk| sum.saturating_add(disk.size));
    let elements: String = disks.iter().map(|disk| disk.element(sr)).collect();
    Ok((Some(format!("<provision>{elements}</provision>")), total))
}

/// One `<disk/>` of a template's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PlannedDisk {
    device: String,
    size: u64,
    bootable: bool,
    kind: String,
}

impl PlannedDisk {
    fn element(&self, sr: &str) -> String {
        let Self { device, size, bootable, kind } = self;
        format!(
            "<disk device=\"{device}\" size=\"{size}\" sr=\"{sr}\" bootable=\"{bootable}\" type=\"{kind}\" />"
        )
    }
}

/// Reads `<provision><disk device="0" size="…" sr="" bootable="true" type="system"/></provision>`.
fn read_disks(text: &str) -> Option<Vec<PlannedDisk>> {
    let (head, inside) = text.trim().strip_prefix("<provision")?.split_once('>')?;
    if head.ends_with('/') {
        return Some(Vec::new());
    }
    let inside = inside.trim().strip_suffix("</provision>")?;
    inside.split("<disk").skip(1).map(|element| read_disk(element.split_once('>')?.0)).collect()
}

fn read_disk(attributes: &str) -> Option<PlannedDisk> {
    let mut found = BTreeMap::new();
    let mut rest = attributes.trim().trim_end_matches('/').trim();
    while let Some((name, after)) = rest.split_once('=') {
        let after = after.trim_start();
        let quote = after.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (value, later) = after.get(1..)?.split_once(quote)?;
        found.insert(name.trim(), value);
        rest = later.trim_start();
    }
    // What is written out again must not end its attribute.
    let word = |value: &&&str| value.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let device = found.get("device").filter(word).filter(|device| !device.is_empty())?;
    Some(PlannedDisk {
        device: (*device).to_owned(),
        size: found.get("size")?.parse().ok().filter(|&size| size > 0)?,
        bootable: found.get("bootable") == Some(&"true"),
        kind: found.get("type").filter(word).map_or_else(|| "system".to_owned(), |kind| (*kind).to_owned()),
    })
}

/// The VM that this wish has made already. Any other VM of this name is in the way.
fn existing(wish: &Wish, pool: &Catalogue, digest: &str) -> Result<Option<String>, String> {
    let named: Vec<&VmRecord> = pool.vms.iter().filter(|vm| vm.name_label == wish.name).collect();
    let ours = |vm: &VmRecord| {
        let marked = Mark::of(vm).is_some_and(|mark| mark.owner == pool.owner && mark.wish == digest);
        marked && !vm.is_a_template && pool.unstarted.contains(&vm.uuid)
    };
    match named.as_slice() {
        [] => Ok(None),
        [only] if ours(only) => Ok(Some(only.uuid.clone())),
        several => {
            let uuids: Vec<&str> = several.iter().map(|vm| vm.uuid.as_str()).collect();
            Err(format!("the pool has a VM of this name: {}", uuids.join(", ")))
        }
    }
}

/// The address: as asked, else derived, the same every time, from prefix, pool and name.
fn address(
    wish: &Wish,
    pool: &Catalogue,
    prefix: [u8; 3],
    taken: &BTreeSet<MacAddr>,
    existing: Option<&str>,
) -> Result<MacAddr, String> {
    if let Some(uuid) = existing {
        let own = pool.vms.iter().find(|vm| vm.uuid == uuid).map(|vm| vm.reference.as_str());
        let vif = pool.vifs.iter().find(|vif| Some(vif.vm.as_str()) == own);
        return vif.and_then(|vif| vif.mac.parse().ok()).ok_or_else(|| format!("{uuid} has lost its NIC"));
    }
    if let Some(mac) = wish.mac {
        let [first, ..] = mac.octets();
        return match (first & 1, taken.contains(&mac)) {
            (0, false) => Ok(mac),
            (0, true) => Err(format!("the address {mac} is taken in this pool")),
            _ => Err(format!("{mac} is a multicast address")),
        };
    }
    let derived = (0..ADDRESS_TRIES).map(|try_number| {
        let hash = Sha256::digest(format!("{}\0{}\0{try_number}", pool.pool.uuid, wish.name));
        let (a, b, c) = match hash.as_slice() {
            [a, b, c, ..] => (*a, *b, *c),
            _ => (0, 0, 0),
        };
        let [x, y, z] = prefix;
        MacAddr::new([x, y, z, a, b, c])
    });
    let mut free = derived.filter(|mac| !taken.contains(mac));
    free.next()
        .ok_or_else(|| "no address is free behind this prefix; take another with --mac-prefix".to_owned())
}

/// Addresses that are tried for one VM.
const ADDRESS_TRIES: u32 = 1000;

fn digest(wish: &Wish, uuids: [&String; 3]) -> String {
    let Wish { name, memory, vcpus, disk, mac, tag, .. } = wish;
    let text = format!("{name}\0{uuids:?}\0{memory:?}\0{vcpus:?}\0{disk:?}\0{mac:?}\0{tag}");
    hex(Sha256::digest(text).as_slice()).chars().take(DIGEST_LENGTH).collect()
}

/// Hex digits that tell one wish from another.
const DIGEST_LENGTH: usize = 16;

/// Storage repositories that the new disks do not fit into, all together.
fn room(all: &[Planned]) -> Vec<String> {
    let mut needs: BTreeMap<&(String, u64), u64> = BTreeMap::new();
    for planned in all {
        let need = needs.entry(&planned.sr).or_default();
        *need = need.saturating_add(planned.need);
    }
    let full = |((name, free), need): (&(String, u64), u64)| {
        let text =
            format!("SR \"{name}\" has {} MiB free, and the new disks need {} MiB", free >> 20, need >> 20);
        (need > *free).then_some(text)
    };
    needs.into_iter().filter_map(full).collect()
}

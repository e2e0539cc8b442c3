//! What `deploy --plan` shows besides the VMs: what each host can take, how many go at once, and the files that would
//! be served. A shell: reads the pool and the files, changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use sha2::{Digest, Sha256};

use super::{
    orders::{FilePlan, FileRole, HostPlan, PoolPlan},
    serving::{file_problem, published},
};
use crate::{
    boot::{
        render::Templates,
        root::{RelativePath, Root},
        vouch::{Vouch, digest},
    },
    config::{Config, Limits, Profile},
    provision::{
        admission::Caps,
        capacity::{Wish, at_once},
    },
    secret::hex,
    xen::{CallError, api::Api, records::HostRecord},
};

/// Larger files are named without their hash: reading them would take too long for a plan.
const HASHED: u64 = 1 << 30;

/// The hosts of a pool, and how many of these installations they would take at once. Reads only.
///
/// # Errors
/// The pool is away.
pub async fn pool(name: &str, api: &Api, limits: &Limits, wishes: &[Wish]) -> Result<PoolPlan, CallError> {
    let caps = Caps { pool: limits.installs_per_pool, host: limits.installs_per_host };
    let hosts = api.hosts().await?;
    let metrics = api.host_metrics().await?;
    let mut free = BTreeMap::new();
    for host in hosts.iter().filter(|host| host.enabled) {
        match api.free_memory(&host.reference).await {
            Ok(bytes) => drop(free.insert(host.reference.clone(), bytes)),
            // It is away, or tells no figure.
            Err(error) if error.failure().is_some() => {}
            Err(error) => return Err(error),
        }
    }
    let taken = at_once(wishes, &free, caps);
    let host = |host: &HostRecord| HostPlan {
        name: host.name_label.clone(),
        enabled: host.enabled,
        takes_hvm: host.takes("hvm-"),
        takes_pv: host.takes("xen-"),
        memory: metrics.iter().find(|found| found.reference == host.metrics).map_or(0, |of| of.memory_total),
        free: free.get(&host.reference).copied(),
        at_once: taken.get(&host.reference).copied().unwrap_or_default(),
    };
    Ok(PoolPlan {
        pool: name.to_owned(),
        vms: u32::try_from(wishes.len()).unwrap_or(u32::MAX),
        at_once: taken.values().sum(),
        installs_per_pool: caps.pool,
        installs_per_host: caps.host,
        hosts: hosts.iter().map(host).collect(),
    })
}

/// The files that these profiles would have served. Blocks while they are read. `boot`: the folder of boot files, with
/// what E0 knows of them already.
pub fn files(
    config: &Config,
    templates: &Templates,
    profiles: &BTreeSet<String>,
    boot: Option<&Vouch>,
) -> Vec<FilePlan> {
    let own = config.http.as_ref().map(|http| boot.cloned().map_or_else(|| published(&http.root), Ok));
    let loaders = config.tftp.as_ref().map(|tftp| published(&tftp.root));
    let mut plans: Vec<FilePlan> = Vec::new();
    let mut add = |plan: FilePlan| match plans.iter_mut().find(|known| known.is_same(&plan)) {
        Some(known) => known.profiles.extend(plan.profiles),
        None => plans.push(plan),
    };
    for profile in profiles.iter().filter_map(|name| config.profiles.get(name)) {
        let (Some(boot), Some(http), Some(own)) = (&profile.boot, &config.http, &own) else { continue };
        let file = |path: &String, role| file((&http.root, own), path, role, profile);
        add(file(&boot.kernel, FileRole::Kernel));
        boot.initrd.iter().for_each(|path| add(file(path, FileRole::Initrd)));
        boot.files.iter().for_each(|path| add(file(path, FileRole::File)));
        boot.answers().for_each(|found| add(answer(found.template, templates, profile)));
        if let (Some(tftp), Some(loaders)) = (&config.tftp, &loaders) {
            add(self::file((&tftp.root, loaders), &tftp.loader, FileRole::Loader, profile));
        }
    }
    plans
}

fn file(
    (root, files): (&Path, &Result<Vouch, String>),
    path: &str,
    role: FileRole,
    profile: &Profile,
) -> FilePlan {
    let (bytes, sha256) = match look(root, path) {
        Some((bytes, sha256)) => (Some(bytes), sha256),
        None => (None, None),
    };
    FilePlan {
        path: root.join(path).display().to_string(),
        role,
        profiles: vec![profile.name.clone()],
        bytes,
        sha256,
        problem: files
            .as_ref()
            .map_or_else(|problem| Some(problem.clone()), |files| file_problem(files, path)),
    }
}

/// Size and hash of a file.
fn look(root: &Path, path: &str) -> Option<(u64, Option<String>)> {
    let published = Root::open(root).ok()?.open_file(&RelativePath::parse(path)?).ok()?;
    let length = published.length;
    let hash = (length <= HASHED).then(|| digest(&published.file).ok()).flatten();
    Some((length, hash.map(|digest| hex(&digest))))
}

/// The answer file's template; what it renders to differs from machine to machine, and E0 has tried it.
fn answer(name: &str, templates: &Templates, profile: &Profile) -> FilePlan {
    let source = templates.source(name);
    FilePlan {
        path: name.to_owned(),
        role: FileRole::Answer,
        profiles: vec![profile.name.clone()],
        bytes: source.map(|source| u64::try_from(source.len()).unwrap_or(u64::MAX)),
        sha256: source.map(|source| hex(&Sha256::digest(source))),
        problem: source.is_none().then(|| format!("there is no template {name}")),
    }
}

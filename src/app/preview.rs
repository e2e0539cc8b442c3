//! Renders what a machine would be served, with placeholder tokens. Reads the pool; changes nothing.

use super::{
    orders::{RenderKind, RenderOrder},
    selection::Candidate,
};
use crate::{
    boot::{
        ArmPhase, Armed,
        render::{RenderError, SCRIPT, Templates, Urls, lint::Dialect},
    },
    config::{
        BootFiles, Config, MachineConfig, Profile,
        variables::{Variables, shown},
    },
    machine::MacAddr,
    secret::{TokenKey, TokenUse},
    xen::{
        CallError,
        api::Api,
        records::{VmRecord, is_null},
        version::XenVersion,
    },
};

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum PreviewError {
    /// No profile was named.
    #[error("no profile: name one with --profile, or set `profile` in [machine.\"{vm}\"]")]
    NoProfile {
        /// The VM.
        vm: String,
    },
    /// It is not in the configuration.
    #[error("there is no profile `{name}`; the configuration has: {known}")]
    UnknownProfile {
        /// As given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// The profile has no boot files of ours.
    #[error("profile `{0}` has no boot files: another deployment server boots its machines")]
    NothingServed(String),
    /// The profile has no answer file.
    #[error("profile `{0}` has no answer file")]
    NoAnswer(String),
    /// The profile has none of this name.
    #[error("profile `{profile}` has no answer file `{name}`; it has: {known}")]
    NoSuchAnswer {
        /// The profile.
        profile: String,
        /// As given.
        name: String,
        /// Those that there are.
        known: String,
    },
    /// An installation was asked for as a rescue.
    #[error("profile `{0}` installs, and erases a disk; name one with kind = \"rescue\"")]
    NoRescue(String),
    /// The boot HTTP listener is off.
    #[error("the boot HTTP listener is off, so nothing is served; add [http]")]
    NoHttp,
    /// The VM has no NIC.
    #[error("VM {0} has no VIF to boot from")]
    NoNic(String),
    /// The template.
    #[error(transparent)]
    Render(#[from] RenderError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] CallError),
}

/// The machine's section of the configuration, by uuid or name.
pub fn machine_config<'a>(config: &'a Config, uuid: &str, name: &str) -> Option<&'a MachineConfig> {
    config.machines.get(uuid).or_else(|| config.machines.get(name))
}

/// The profile that applies to a machine: the named one, or what its section says.
pub fn profile_for<'a>(
    config: &'a Config,
    named: Option<&str>,
    uuid: &str,
    vm: &str,
) -> Result<&'a Profile, PreviewError> {
    let own = machine_config(config, uuid, vm).and_then(|machine| machine.profile.as_deref());
    let name = named.or(own).ok_or_else(|| PreviewError::NoProfile { vm: vm.to_owned() })?;
    config.profiles.get(name).ok_or_else(|| PreviewError::UnknownProfile {
        name: name.to_owned(),
        known: config.profiles.keys().cloned().collect::<Vec<_>>().join(", "),
    })
}

/// Template variables of a machine: its own over its groups' over its profile's.
pub fn variables(config: &Config, profile: &Profile, vm: &Candidate) -> Variables {
    let mut merged = profile.variables.clone();
    for group in &config.groups {
        if group.members.iter().any(|member| vm.is_meant_by(member)) {
            merged.extend(group.variables.clone());
        }
    }
    let machine = machine_config(config, &vm.uuid, &vm.name);
    merged.extend(machine.map(|machine| machine.variables.clone()).unwrap_or_default());
    merged
}

/// What is to be rendered.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The VM.
    pub vm: &'a VmRecord,
    /// Its pool's name.
    pub pool: &'a str,
    /// The profile.
    pub profile: &'a Profile,
    /// What was asked for.
    pub order: &'a RenderOrder,
}

/// What the machine would be served.
pub async fn render(
    config: &Config,
    templates: &Templates,
    urls: Option<&Urls>,
    api: &Api,
    wanted: Wanted<'_>,
) -> Result<String, PreviewError> {
    let Wanted { vm, pool, profile, order } = wanted;
    let files = profile.boot.clone().ok_or_else(|| PreviewError::NothingServed(profile.name.clone()))?;
    let urls = urls.ok_or(PreviewError::NoHttp)?;
    let machine = machine_config(config, &vm.uuid, &vm.name_label);
    let mac = match machine.and_then(|machine| machine.mac) {
        Some(mac) => mac,
        None => first_nic(api, vm).await?,
    };
    let disk_wanted = machine.and_then(|machine| machine.disk.as_ref()).or(profile.disk.as_ref());
    let disk = disk(api, vm, disk_wanted.map(String::as_str)).await?;
    let xen = XenVersion::lowest(&api.hosts().await?);
    let target = Target { name: &vm.name_label, uuid: &vm.uuid, mac, disk, xen };
    let mut variables = variables(config, profile, &Candidate::of(pool, vm));
    if let Some(declared) = config.declared.get(&profile.name).filter(|_| !order.secrets) {
        variables = shown(declared, &variables);
    }
    let armed = sample(profile, files, variables, target);
    match order.kind {
        RenderKind::All => all(templates, &armed, urls),
        RenderKind::Script | RenderKind::Pxelinux | RenderKind::Answer | RenderKind::Args => {
            one(templates, &armed, urls, (order.kind, order.file.as_deref()))
        }
    }
}

fn one(
    templates: &Templates,
    armed: &Armed,
    urls: &Urls,
    (kind, file): (RenderKind, Option<&str>),
) -> Result<String, PreviewError> {
    Ok(match kind {
        RenderKind::Script | RenderKind::All => templates.ipxe_script(armed, urls, Dialect::Ipxe2012)?,
        RenderKind::Pxelinux => templates.pxelinux_config(armed, urls)?,
        RenderKind::Args => templates.render_args(armed, urls)? + "\n",
        RenderKind::Answer => {
            let first = armed.files.answers().next();
            let first = first.ok_or_else(|| PreviewError::NoAnswer(armed.profile.clone()))?;
            let name = file.unwrap_or(first.name);
            templates.render_answer_named(armed, urls, name)?.ok_or_else(|| PreviewError::NoSuchAnswer {
                profile: armed.profile.clone(),
                name: name.to_owned(),
                known: armed.files.answers().map(|file| file.name).collect::<Vec<_>>().join(", "),
            })?
        }
    })
}

/// Each file behind a line that names it.
fn all(templates: &Templates, armed: &Armed, urls: &Urls) -> Result<String, PreviewError> {
    let mut text = String::new();
    let mut add = |name: &str, rendered: String| {
        text.push_str(&format!("==> {name} <==\n{rendered}"));
        text.push_str(if rendered.ends_with('\n') { "\n" } else { "\n\n" });
    };
    add("args", one(templates, armed, urls, (RenderKind::Args, None))?);
    add("script", one(templates, armed, urls, (RenderKind::Script, None))?);
    add("pxelinux", one(templates, armed, urls, (RenderKind::Pxelinux, None))?);
    for file in armed.files.answers() {
        let rendered = one(templates, armed, urls, (RenderKind::Answer, Some(file.name)))?;
        add(&format!("answer {}", file.name), rendered);
    }
    Ok(text)
}

/// What a boot script of one's own would do to the firmware of a machine of this profile: `Ok`: nothing. `None`: the
/// profile has no boot files, or the script is ours. Asks no pool; variables are those of the first machine with this
/// profile.
pub fn own_script(
    config: &Config,
    profile: &Profile,
    templates: &Templates,
    urls: &Urls,
) -> Option<Result<(), RenderError>> {
    let files = profile.boot.clone().filter(|_| templates.names().any(|name| name == SCRIPT))?;
    let disk = Some(("0".to_owned(), 1 << 34));
    let uuid = uuid::Uuid::nil().to_string();
    let target = Target { name: "example", uuid: &uuid, mac: EXAMPLE, disk, xen: None };
    let machine = config.machines.values().find(|machine| machine.profile.as_deref() == Some(&profile.name));
    let mut variables = profile.variables.clone();
    variables.extend(machine.map(|machine| machine.variables.clone()).unwrap_or_default());
    let armed = sample(profile, files, variables, target);
    let dialects = [Dialect::Ipxe2012, Dialect::Modern];
    Some(dialects.into_iter().try_for_each(|dialect| templates.ipxe_script(&armed, urls, dialect).map(drop)))
}

/// A MAC of nobody's.
const EXAMPLE: MacAddr = MacAddr::new([0x02, 0, 0, 0, 0, 0]);

struct Target<'a> {
    name: &'a str,
    uuid: &'a str,
    mac: MacAddr,
    disk: Option<(String, u64)>,
    xen: Option<XenVersion>,
}

/// An attempt with tokens that open nothing.
fn sample(profile: &Profile, files: BootFiles, variables: Variables, target: Target<'_>) -> Armed {
    let key = TokenKey::new([0; 32]);
    let token = |usage| key.token("preview", 0, usage);
    Armed {
        job: "preview".to_owned(),
        attempt: 0,
        vm_name: target.name.to_owned(),
        vm_uuid: target.uuid.to_owned(),
        mac: target.mac,
        render: token(TokenUse::Render),
        report: token(TokenUse::Report),
        booted: token(TokenUse::Booted),
        files,
        profile: profile.name.clone(),
        variables,
        disk: target.disk,
        xen: target.xen,
        phase: ArmPhase::Booting,
    }
}

async fn first_nic(api: &Api, vm: &VmRecord) -> Result<MacAddr, PreviewError> {
    let mut nics = Vec::with_capacity(vm.vifs.len());
    for vif in &vm.vifs {
        nics.push(api.vif(vif).await?);
    }
    nics.sort_by_key(|vif| vif.device.parse::<u32>().unwrap_or(u32::MAX));
    let mac = nics.first().and_then(|vif| vif.mac.parse().ok());
    mac.ok_or_else(|| PreviewError::NoNic(vm.name_label.clone()))
}

/// The disk at the wanted position, or the first writable one.
async fn disk(api: &Api, vm: &VmRecord, wanted: Option<&str>) -> Result<Option<(String, u64)>, CallError> {
    let mut found: Vec<(String, u64)> = Vec::new();
    for vbd in &vm.vbds {
        let vbd = api.vbd(vbd).await?;
        let fits = wanted.is_none_or(|wanted| vbd.userdevice == wanted);
        if vbd.kind == "Disk" && vbd.mode == "RW" && fits && !is_null(&vbd.vdi) {
            let size = api.vdi(&vbd.vdi).await?.virtual_size;
            found.push((vbd.userdevice, size));
        }
    }
    found.sort_by_key(|(position, _)| position.parse::<u32>().unwrap_or(u32::MAX));
    Ok(found.into_iter().next())
}

//! Renders what a machine would be served, with placeholder tokens. Reads the pool; changes nothing.

use std::collections::BTreeMap;

use super::orders::RenderKind;
use crate::{
    boot::{
        ArmPhase, Armed,
        render::{RenderError, SCRIPT, Templates, Urls, lint::Dialect},
    },
    config::{BootFiles, Config, MachineConfig, Profile},
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

/// Template variables of a machine: its own over its profile's.
pub fn variables(profile: &Profile, machine: Option<&MachineConfig>) -> BTreeMap<String, serde_json::Value> {
    let mut merged = profile.variables.clone();
    merged.extend(machine.map(|machine| machine.variables.clone()).unwrap_or_default());
    merged
}

/// What the machine would be served as of this kind.
pub async fn render(
    config: &Config,
    templates: &Templates,
    urls: Option<&Urls>,
    api: &Api,
    (vm, profile, kind): (&VmRecord, &Profile, RenderKind),
) -> Result<String, PreviewError> {
    let files = profile.boot.clone().ok_or_else(|| PreviewError::NothingServed(profile.name.clone()))?;
    let urls = urls.ok_or(PreviewError::NoHttp)?;
    let machine = machine_config(config, &vm.uuid, &vm.name_label);
    let mac = match machine.and_then(|machine| machine.mac) {
        Some(mac) => mac,
        None => first_nic(api, vm).await?,
    };
    let wanted = machine.and_then(|machine| machine.disk.as_ref()).or(profile.disk.as_ref());
    let disk = disk(api, vm, wanted.map(String::as_str)).await?;
    let xen = XenVersion::lowest(&api.hosts().await?);
    let target = Target { name: &vm.name_label, uuid: &vm.uuid, mac, disk, xen };
    let armed = sample(profile, files, variables(profile, machine), target);
    Ok(match kind {
        RenderKind::Script => templates.ipxe_script(&armed, urls, Dialect::Ipxe2012)?,
        RenderKind::Pxelinux => templates.pxelinux_config(&armed, urls)?,
        RenderKind::Args => templates.render_args(&armed, urls)? + "\n",
        RenderKind::Answer => templates
            .render_answer(&armed, urls)?
            .ok_or_else(|| PreviewError::NoAnswer(profile.name.clone()))?,
    })
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
    let armed = sample(profile, files, variables(profile, machine), target);
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
fn sample(
    profile: &Profile,
    files: BootFiles,
    variables: BTreeMap<String, serde_json::Value>,
    target: Target<'_>,
) -> Armed {
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

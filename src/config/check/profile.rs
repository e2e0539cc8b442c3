//! Profiles and machines.

use std::{collections::BTreeMap, time::Duration};

use super::{Checker, variables::Whose};
use crate::{
    config::{
        AnswerFile, BootFiles, Completion, EvidenceKind, Fetch, MachineConfig, Profile, ProfileKind,
        problem::Spot,
        raw::{RawConfig, RawMachine, RawMode, RawProfile},
        read::At,
    },
    machine::MacAddr,
};

/// With `completion = "halt"`, sooner than this is no installation.
const MIN_INSTALL: Duration = Duration::from_secs(5 * 60);
const MIN_INSTALLS: (Duration, Duration) = (Duration::ZERO, Duration::from_secs(24 * 3600));

impl Checker<'_> {
    pub(super) fn profiles(&mut self, raw: &RawConfig) -> BTreeMap<String, Profile> {
        let profiles = raw.profile.iter().flat_map(|profiles| &profiles.value);
        profiles.map(|(name, profile)| (name.clone(), self.profile(name, profile, raw))).collect()
    }

    fn profile(&mut self, name: &str, profile: &At<RawProfile>, file: &RawConfig) -> Profile {
        let At { value: raw, spot } = profile;
        self.name(name, spot);
        let kind = raw.kind.as_ref().map_or(ProfileKind::Install, |kind| kind.value);
        let boot = self.boot(raw, spot, file);
        let completion = self.completion(raw, kind, boot.as_ref(), spot);
        let evidence = self.evidence(raw, kind, boot.is_some(), spot, file);
        let variables = self.profile_variables(name, raw, file.variables.as_ref());
        Profile {
            name: name.to_owned(),
            kind,
            boot,
            completion,
            min_install: self.within(&raw.min_install, MIN_INSTALL, MIN_INSTALLS),
            evidence,
            accept_weak: raw.accept_weak.as_ref().is_some_and(|accept| accept.value),
            report_by_get: raw.report_by_get.as_ref().is_some_and(|by_get| by_get.value),
            disk: raw.disk.as_ref().map(|disk| self.disk(disk)),
            variables,
        }
    }

    fn boot(&mut self, raw: &RawProfile, profile: &Spot, file: &RawConfig) -> Option<BootFiles> {
        let initrd = raw.initrd.iter().flat_map(|initrd| &initrd.value.0);
        let Some(kernel) = &raw.kernel else {
            let needs = [
                raw.initrd.as_ref().map(|initrd| &initrd.spot),
                raw.files.as_ref().map(|files| &files.spot),
                raw.args.as_ref().map(|args| &args.spot),
                raw.answer.as_ref().map(|answer| &answer.spot),
                raw.fetch.as_ref().map(|fetch| &fetch.spot),
            ];
            if let Some(spot) = needs.into_iter().flatten().next() {
                let remedy = "add kernel, or remove initrd, files, args, answer and fetch where another server does the boot";
                self.notes.absent(&Spot { line: spot.line, ..profile.child("kernel") }, "is missing", remedy);
            }
            return None;
        };
        let files = raw.files.iter().flat_map(|files| &files.value.0);
        for path in std::iter::once(kernel).chain(initrd.clone()).chain(files.clone()) {
            self.boot_file(path, "http.root");
        }
        if file.http.is_none() {
            let message = "cannot be served: [http] is not configured";
            let remedy =
                "add [http] with listen, or remove the boot files where another server does the boot";
            self.notes.wrong(&kernel.spot, message, remedy);
        }
        let fetch = raw.fetch.as_ref().map_or_else(Fetch::default, |fetch| fetch.value);
        if let Some(At { value: Fetch::Tftp, spot }) = &raw.fetch
            && file.tftp.is_none()
        {
            let remedy = "add [tftp] with listen, or write fetch = \"http\"";
            self.notes.wrong(spot, "cannot be: [tftp] is not configured", remedy);
        }
        if let Some(args) = &raw.args {
            self.one_line(args);
        }
        let mut answers = self.answers(raw).into_iter();
        Some(BootFiles {
            kernel: kernel.value.clone(),
            initrd: initrd.map(|path| path.value.clone()).collect(),
            args: raw.args.as_ref().map_or_else(String::new, |args| args.value.clone()),
            answer: answers.next(),
            seed: answers.collect(),
            files: files.map(|path| path.value.clone()).collect(),
            fetch,
        })
    }

    /// The answer files, as written; each is `TEMPLATE` or `NAME=TEMPLATE`.
    fn answers(&mut self, raw: &RawProfile) -> Vec<String> {
        let Some(written) = &raw.answer else { return Vec::new() };
        let mut names: Vec<&str> = Vec::new();
        for answer in &written.value.0 {
            let file = AnswerFile::of(&answer.value);
            self.name(file.template, &answer.spot);
            if answer.value.contains('=') {
                self.name(file.name, &answer.spot);
            }
            if names.contains(&file.name) {
                let message = format!("another answer file is served as {:?} too", file.name);
                self.notes.wrong(&answer.spot, message, "write NAME=TEMPLATE to serve it under another name");
            }
            names.push(file.name);
        }
        let told = |args: &At<String>| ["answer_url", "seed_url"].iter().any(|url| args.value.contains(url));
        if !raw.args.as_ref().is_some_and(told) {
            let message = "is never fetched: args does not tell the installer where it is";
            let remedy = "add {{ answer_url }} to args, such as url={{ answer_url }}";
            self.notes.wrong(&written.spot, message, remedy);
        }
        written.value.0.iter().map(|answer| answer.value.clone()).collect()
    }

    fn completion(
        &mut self,
        raw: &RawProfile,
        kind: ProfileKind,
        boot: Option<&BootFiles>,
        profile: &Spot,
    ) -> Completion {
        let written = raw.completion.as_ref();
        let default = match kind {
            ProfileKind::Install => Completion::Report,
            ProfileKind::Rescue => Completion::Halt,
        };
        let completion = written.map_or(default, |completion| completion.value);
        let spot = written.map_or_else(|| profile.child("completion"), |completion| completion.spot.clone());
        match (kind, completion) {
            (ProfileKind::Install, Completion::Report) => {
                let told = |boot: &BootFiles| boot.answer.is_some() || boot.args.contains("report_url");
                if boot.is_some_and(|boot| !told(boot)) {
                    let message = "waits for a report, and nothing tells the installer where to send it";
                    let remedy = "add answer, or {{ report_url }} to args, or write completion = \"halt\"";
                    self.notes.absent(&spot, message, remedy);
                }
            }
            (ProfileKind::Rescue, Completion::Report | Completion::Either) => {
                self.notes.wrong(
                    &spot,
                    "a rescue ends when the VM halts",
                    "write completion = \"halt\" or remove it",
                );
            }
            (ProfileKind::Install, Completion::Halt | Completion::Either)
            | (ProfileKind::Rescue, Completion::Halt) => {}
        }
        completion
    }

    fn evidence(
        &mut self,
        raw: &RawProfile,
        kind: ProfileKind,
        ours: bool,
        profile: &Spot,
        file: &RawConfig,
    ) -> EvidenceKind {
        let Some(At { value, spot }) = &raw.evidence else {
            return match (kind, ours) {
                (ProfileKind::Rescue, _) => EvidenceKind::None,
                (ProfileKind::Install, true) => EvidenceKind::Report,
                (ProfileKind::Install, false) => {
                    let message =
                        "is missing, and without an answer file of ours nothing is said of the new system";
                    let remedy = "write \"report\" when it posts to its booted URL, else \"lease\", \"agent\", \"tcp:PORT\" or \"none\"";
                    self.notes.absent(&profile.child("evidence"), message, remedy);
                    EvidenceKind::None
                }
            };
        };
        let leases = |dhcp: &At<_>| is_server(&dhcp.value);
        if *value == EvidenceKind::Lease && !file.dhcp.iter().flat_map(|dhcp| &dhcp.value).any(leases) {
            let message =
                "a lease is seen only where we are the DHCP server, and no [[dhcp]] has mode = \"server\"";
            self.notes.wrong(spot, message, "write \"report\", \"agent\", \"tcp:PORT\" or \"none\"");
        }
        *value
    }

    pub(super) fn machines(&mut self, raw: &RawConfig) -> BTreeMap<String, MachineConfig> {
        let mut macs: BTreeMap<MacAddr, &str> = BTreeMap::new();
        let mut machines = BTreeMap::new();
        for (name, machine) in raw.machine.iter().flat_map(|machines| &machines.value) {
            if let Some(At { value, spot }) = &machine.value.mac
                && let Some(other) = macs.insert(*value, name)
            {
                let message = format!("{value} is the MAC of machine {other:?} too");
                self.notes.wrong(spot, message, "`xe vif-list` shows which is whose");
            }
            machines.insert(name.clone(), self.machine(machine, raw));
        }
        machines
    }

    fn machine(&mut self, machine: &At<RawMachine>, file: &RawConfig) -> MachineConfig {
        let raw = &machine.value;
        if let Some(At { value: name, spot }) = &raw.profile {
            let known = |profiles: &At<BTreeMap<String, _>>| profiles.value.contains_key(name);
            if !file.profile.as_ref().is_some_and(known) {
                let message = format!("there is no [profile.{name}]");
                let names = file.profile.iter().flat_map(|profiles| profiles.value.keys());
                let names: Vec<&str> = names.map(String::as_str).collect();
                let remedy = match names.is_empty() {
                    true => "add it".to_owned(),
                    false => format!("add it, or write one of: {}", names.join(", ")),
                };
                self.notes.absent(spot, message, remedy);
            }
        }
        MachineConfig {
            mac: raw.mac.as_ref().map(|mac| mac.value),
            disk: raw.disk.as_ref().map(|disk| self.disk(disk)),
            profile: raw.profile.as_ref().map(|profile| profile.value.clone()),
            variables: match raw.profile.as_ref().map(|profile| profile.value.as_str()) {
                Some(profile) => self.variables(raw.variables.as_ref(), Whose::Profile(profile)),
                None => self.variables(raw.variables.as_ref(), Whose::All),
            },
        }
    }

    fn disk(&mut self, disk: &At<String>) -> String {
        if disk.value.is_empty()
            || disk.value.len() > 16
            || !disk.value.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            let message = format!("{:?} is not the position of a disk", disk.value);
            self.notes.wrong(
                &disk.spot,
                message,
                "write the userdevice that `xe vbd-list` shows, such as \"0\"",
            );
        }
        disk.value.clone()
    }

    /// Notes a path that does not stay below its root, or that a boot script could not name.
    pub(super) fn boot_file(&mut self, path: &At<String>, root: &str) {
        let plain = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+' | b'~' | b'/')
        };
        let inside = path.value.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if !inside || !path.value.bytes().all(plain) {
            let message = format!("{:?} is not a plain path below {root}", path.value);
            let remedy = "write it as DIR/FILE: no leading `/`, no `..`, only letters, digits and ._-+~";
            self.notes.wrong(&path.spot, message, remedy);
        }
    }
}

fn is_server(dhcp: &crate::config::raw::RawDhcp) -> bool {
    dhcp.mode.as_ref().is_some_and(|mode| mode.value == RawMode::Server)
}

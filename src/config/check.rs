//! Turns the file as written into a [`Config`] with nothing left to guess, or into every problem there is. Pure:
//! what the secret files hold is an argument.
//!
//! Invariant: a `Config` comes out only when nothing was noted. Each function notes what it finds, and goes on.
//! Sections: `pool`, `dhcp`, `services` (HTTP, syslog, admin), `tftp`, `profile` (profiles and machines), `variables`
//! (and groups); this file has the rest, and what they share.

mod dhcp;
mod pool;
mod profile;
mod services;
mod tftp;
mod variables;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Config, Deadlines, Limits,
    problem::{Notes, Problems, Spot},
    raw::{RawConfig, RawDeadlines, RawLimits, RawServer, RawStore},
    read::{At, Reader},
    shipped,
    variables::Declarations,
};
use crate::secret::Secret;

/// Where state is kept unless `server.state_dir` says otherwise.
const STATE_DIR: &str = "/var/lib/bootflip";

/// Days that jobs which have ended are kept, unless `store.keep_days` says otherwise.
const KEEP_DAYS: u32 = 365;

/// The shortest and the longest deadline that makes sense.
const DEADLINES: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(7 * 24 * 3600));

/// The longest name of a server, pool or profile, in bytes: it stands in claims, URLs and logs.
const NAME_LIMIT: usize = 64;

/// A file as written, and what was noted while it was read.
pub(super) struct Parsed {
    raw: At<RawConfig>,
    notes: Notes,
}

/// What a pool's password file holds, or what is wrong with it (message and remedy).
pub(super) type PasswordRead = Result<Secret, (String, String)>;

/// What a file that a variable names holds.
#[derive(Debug)]
pub(super) struct TextRead {
    /// What.
    pub(super) text: Secret,
    /// Others than its owner may read it.
    pub(super) open_to_others: bool,
}

/// What the files hold that the configuration names.
#[derive(Debug, Default)]
pub(super) struct FilesRead {
    /// The passwords, by pool.
    pub(super) passwords: BTreeMap<String, PasswordRead>,
    /// What variables name, by file as written; or message and remedy.
    pub(super) texts: BTreeMap<String, Result<TextRead, (String, String)>>,
}

impl Parsed {
    /// Reads a file's text.
    pub(super) fn of(text: &str) -> Self {
        let mut notes = Notes::default();
        let mut raw: At<RawConfig> = Reader::new(text, &mut notes).document(text);
        shipped::lay_under(&mut raw.value, &mut notes);
        Self { raw, notes }
    }

    /// The files that variables name, as written.
    pub(super) fn variable_files(&self) -> Vec<&str> {
        let raw = &self.raw.value;
        let profiles = raw.profile.iter().flat_map(|all| all.value.values().map(|one| &one.value.variables));
        let groups = raw.group.iter().flat_map(|all| all.value.values().map(|one| &one.value.variables));
        let machines = raw.machine.iter().flat_map(|all| all.value.values().map(|one| &one.value.variables));
        let all = std::iter::once(&raw.variables).chain(profiles).chain(groups).chain(machines);
        let mut found = Vec::new();
        for value in all.flatten().flat_map(|variables| variables.value.values()) {
            variables::files_of(&value.value, &mut found);
        }
        found
    }

    /// The pools with the password files that they name, as written.
    pub(super) fn password_files(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let pools = self.raw.value.pool.iter().flat_map(|pools| &pools.value);
        pools.map(|(name, pool)| {
            (name.as_str(), pool.value.password_file.as_ref().map(|file| file.value.as_str()))
        })
    }

    /// Checks everything. `file` is named in problems, and relative paths count from its folder.
    pub(super) fn check(self, file: &Path, files: &FilesRead) -> Result<Config, Problems> {
        let folder = file.parent().unwrap_or_else(|| Path::new(""));
        let mut checker =
            Checker { folder, files, declared: BTreeMap::new(), open: BTreeSet::new(), notes: self.notes };
        let config = checker.config(file, &self.raw);
        checker.notes.verdict(file.to_owned(), config)
    }
}

/// Checks one file. A value that is wrong is noted and replaced by something harmless, so that the rest is checked
/// too; what was noted keeps the result from coming out.
struct Checker<'a> {
    folder: &'a Path,
    files: &'a FilesRead,
    /// What each profile declares, once it is known.
    declared: BTreeMap<String, Declarations>,
    /// The profiles whose variables may have any name.
    open: BTreeSet<String>,
    notes: Notes,
}

impl Checker<'_> {
    fn config(&mut self, path: &Path, file: &At<RawConfig>) -> Option<Config> {
        let raw = &file.value;
        let (server_name, state_dir) = self.server(raw.server.as_ref(), &file.spot);
        let pools = self.pools(raw.pool.as_ref(), &file.spot);
        let dhcp = self.dhcp(raw);
        let dhcp_off = self.dhcp_off(raw);
        let tftp = raw.tftp.as_ref().and_then(|tftp| self.tftp(tftp, &state_dir));
        let boot_root = tftp.as_ref().map_or_else(|| state_dir.join(BOOT_ROOT), |tftp| tftp.root.clone());
        let http = raw.http.as_ref().and_then(|http| self.http(http, boot_root));
        let syslog = raw.syslog.as_ref().and_then(|syslog| self.syslog(syslog));
        let admin = self.admin(raw.admin.as_ref());
        self.declared = self.declared(raw);
        self.check_globals(raw);
        let profiles = self.profiles(raw);
        let groups = self.groups(raw);
        let machines = self.machines(raw);
        let limits = self.limits(raw.limits.as_ref());
        let deadlines = self.deadlines(raw.deadlines.as_ref());
        let template_dir = raw.template_dir.as_ref().map(|folder| self.path(folder));
        let log = raw.log.as_ref().and_then(|log| Some(log.value.format.as_ref()?.value));
        Some(Config {
            file: path.to_owned(),
            server_name: server_name?,
            state_dir,
            keep: self.keep(raw.store.as_ref()),
            log: log.unwrap_or_default(),
            pools,
            dhcp,
            dhcp_off,
            tftp,
            http,
            syslog,
            admin,
            profiles,
            declared: std::mem::take(&mut self.declared),
            groups,
            machines,
            limits,
            deadlines,
            template_dir,
        })
    }

    fn server(&mut self, server: Option<&At<RawServer>>, file: &Spot) -> (Option<String>, PathBuf) {
        let spot = server.map_or_else(|| file.child("server"), |server| server.spot.clone());
        let raw = server.map(|server| &server.value);
        let remedy = "write a name that no other bootflip on these pools has, such as \"bootflip-a\": VMs are marked with it";
        let name = self.required(raw.and_then(|raw| raw.name.as_ref()), &spot, "name", remedy);
        if let Some(name) = name {
            self.name(&name.value, &name.spot);
        }
        let state_dir = raw.and_then(|raw| raw.state_dir.as_ref());
        let state_dir = state_dir.map_or_else(|| PathBuf::from(STATE_DIR), |folder| self.path(folder));
        (name.map(|name| name.value.clone()), state_dir)
    }

    fn keep(&mut self, store: Option<&At<RawStore>>) -> Option<Duration> {
        let days =
            store.map_or(KEEP_DAYS, |store| self.within(&store.value.keep_days, KEEP_DAYS, (0, 36_500)));
        (days > 0).then(|| Duration::from_secs(u64::from(days) * 24 * 3600))
    }

    fn limits(&mut self, limits: Option<&At<RawLimits>>) -> Limits {
        let default = Limits::default();
        let Some(At { value: raw, .. }) = limits else { return default };
        Limits {
            installs_per_pool: self.within(&raw.installs_per_pool, default.installs_per_pool, (1, 1000)),
            installs_per_host: self.within(&raw.installs_per_host, default.installs_per_host, (1, 1000)),
            // Two are kept for restores, so there must be a third.
            calls_per_pool: self.within(&raw.calls_per_pool, default.calls_per_pool, (3, 64)),
        }
    }

    fn deadlines(&mut self, deadlines: Option<&At<RawDeadlines>>) -> Deadlines {
        let default = Deadlines::default();
        let Some(At { value: raw, .. }) = deadlines else { return default };
        let order = [&raw.dhcp, &raw.kernel, &raw.answer, &raw.first_stage, &raw.install];
        let written: Vec<&At<Duration>> = order.into_iter().flatten().collect();
        for (earlier, later) in written.iter().zip(written.iter().skip(1)) {
            if later.value < earlier.value {
                let message =
                    format!("ends before {} does, and both count from the VM's start", earlier.spot.key);
                self.notes.wrong(&later.spot, message, format!("make it {} or more", earlier.value.shown()));
            }
        }
        let mut span = |written: &Option<At<Duration>>, default| self.within(written, default, DEADLINES);
        Deadlines {
            dhcp: span(&raw.dhcp, default.dhcp),
            kernel: span(&raw.kernel, default.kernel),
            answer: span(&raw.answer, default.answer),
            first_stage: span(&raw.first_stage, default.first_stage),
            install: span(&raw.install, default.install),
            halt_after_report: span(&raw.halt_after_report, default.halt_after_report),
            report_after_halt: span(&raw.report_after_halt, default.report_after_halt),
            pv_start: span(&raw.pv_start, default.pv_start),
            evidence: span(&raw.evidence, default.evidence),
            effect: span(&raw.effect, default.effect),
            clean_shutdown: span(&raw.clean_shutdown, default.clean_shutdown),
            poll: span(&raw.poll, default.poll),
        }
    }

    /// A key that has to be there.
    fn required<'v, T>(
        &mut self,
        value: Option<&'v At<T>>,
        section: &Spot,
        key: &str,
        remedy: &str,
    ) -> Option<&'v At<T>> {
        if value.is_none() {
            self.notes.absent(&section.child(key), "is missing", remedy);
        }
        value
    }

    /// The written value, between two bounds, or the default.
    fn within<T: Bounded>(&mut self, written: &Option<At<T>>, default: T, (least, most): (T, T)) -> T {
        let Some(At { value, spot }) = written else { return default };
        if *value < least || *value > most {
            let remedy = format!("write a value from {} to {}", least.shown(), most.shown());
            self.notes.wrong(spot, format!("{} is out of bounds", value.shown()), remedy);
        }
        *value
    }

    /// Notes a name that cannot stand in claims, URLs and logs.
    fn name(&mut self, name: &str, spot: &Spot) {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > NAME_LIMIT || !name.bytes().all(fits) {
            let remedy = format!("use 1 to {NAME_LIMIT} letters, digits, `.`, `_` and `-`");
            self.notes.wrong(spot, "is not a name that can stand in claims and URLs", remedy);
        }
    }

    /// A path, counted from the folder of the configuration file.
    fn path(&mut self, path: &At<String>) -> PathBuf {
        if path.value.is_empty() || path.value.contains('\0') {
            self.notes.wrong(&path.spot, "is not a path", "name a file or folder, or remove the key");
        }
        self.folder.join(&path.value)
    }

    /// Notes a text that would break out of the line it is written into.
    fn one_line(&mut self, text: &At<String>) {
        if text.value.chars().any(char::is_control) {
            self.notes.wrong(
                &text.spot,
                "has a line break or control character in it",
                "write it as one line",
            );
        }
    }
}

/// The folder of boot files under `server.state_dir`, unless `tftp.root` or `http.root` name one.
const BOOT_ROOT: &str = "tftpboot";

/// A value with a least and a most.
trait Bounded: PartialOrd + Copy {
    /// As it stands in the file.
    fn shown(self) -> String;
}

impl Bounded for u16 {
    fn shown(self) -> String {
        self.to_string()
    }
}

impl Bounded for u32 {
    fn shown(self) -> String {
        self.to_string()
    }
}

impl Bounded for Duration {
    fn shown(self) -> String {
        let millis = self.as_millis();
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
        match units.into_iter().find(|(unit, _)| millis > 0 && millis.is_multiple_of(*unit)) {
            Some((unit, name)) => format!("{:?}", format!("{}{name}", millis / unit)),
            None => format!("{:?}", format!("{millis}ms")),
        }
    }
}

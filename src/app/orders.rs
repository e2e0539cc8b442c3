//! What the admin API is asked, and what it answers to an order. Plain data, shared with the command line.

use serde::{Deserialize, Deserializer, Serialize, de::Error};

use super::selection::Unresolved;
use crate::{
    access::{Scope, audit::AuditEntry, token::TokenRecord},
    clock::Timestamp,
    dhcp::server::Status,
    provision::job::Resolution,
    syslog::Counts,
};

/// `POST /api/v1/plans` and `POST /api/v1/jobs`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Which VMs: names, uuids, `tag=…`, `name~GLOB`.
    pub selectors: Vec<String>,
    /// What to install; absent: what each machine's section says.
    #[serde(default)]
    pub profile: Option<String>,
    /// VMs that have run may be erased.
    #[serde(default)]
    pub reinstall: bool,
    /// At most this many of them at once.
    #[serde(default, deserialize_with = "whole")]
    pub max_parallel: Option<u32>,
    /// So many of them go first; the others begin when these have succeeded.
    #[serde(default, deserialize_with = "whole")]
    pub first: Option<u32>,
    /// After so many failures no more begin.
    #[serde(default, deserialize_with = "whole")]
    pub stop_after: Option<u32>,
    /// Install, and leave the VMs HVM, booting from their disks.
    #[serde(default)]
    pub stay_hvm: bool,
    /// Recovery mode: the profile must be a rescue, and nothing is erased.
    #[serde(default)]
    pub rescue: bool,
    /// Hold a failed VM in HVM boot for debugging, at most this many seconds.
    #[serde(default, deserialize_with = "whole")]
    pub keep_hvm_seconds: Option<u64>,
    /// The plan was looked at just now: make the jobs without another look (each looks by itself before it begins).
    #[serde(default)]
    pub planned: bool,
    /// A plan tells of hosts and files too.
    #[serde(default)]
    pub whole: bool,
}

/// A whole number, also where it is written `5.0`: for JSON Schema (2020-12 §4.2.3) and JavaScript that is the same.
fn whole<'de, D: Deserializer<'de>, T: TryFrom<u64>>(from: D) -> Result<Option<T>, D::Error> {
    let Some(number) = Option::<serde_json::Number>::deserialize(from)? else { return Ok(None) };
    let whole = number.as_u64().or_else(|| {
        let float = number.as_f64().filter(|float| float.fract() == 0.0)?;
        format!("{float:.0}").parse().ok()
    });
    let fits = whole.and_then(|whole| T::try_from(whole).ok());
    fits.map(Some).ok_or_else(|| D::Error::custom(format!("{number} is not a whole number that fits here")))
}

/// What became of one VM of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It may be installed (a plan).
    Ready,
    /// A job was made.
    Created,
    /// It has a live job; that is the answer.
    Existing,
    /// Nothing was changed; `reason` and `detail` say why.
    Refused,
    /// Its pool does not answer: a job would wait for it (a plan).
    Unknown,
}

impl Outcome {
    /// The word in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Created => "created",
            Self::Existing => "existing",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
        }
    }
}

/// One VM of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrderLine {
    /// Its name label.
    pub vm: String,
    /// Its uuid.
    pub vm_uuid: String,
    /// Its pool's name.
    pub pool: String,
    /// The profile, where one applies.
    pub profile: Option<String>,
    /// What became of it.
    pub outcome: Outcome,
    /// The job that was made, or that it has.
    pub job: Option<String>,
    /// The reason's label, when refused for one of the closed list.
    pub reason: Option<String>,
    /// Particulars.
    pub detail: String,
    /// What to do about it.
    pub remedy: Option<String>,
    /// It runs, and would be shut down first.
    #[serde(default)]
    pub running: bool,
    /// The disk that is erased, in words.
    pub erases: Option<String>,
    /// All its disks, in words.
    pub disks: Vec<String>,
    /// Bytes that it takes of a host while it is installed, Xen's share included (a plan).
    #[serde(default)]
    pub memory: Option<u64>,
    /// The names of the hosts that can run it then (a plan).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
}

/// What a pool would do with the VMs of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolPlan {
    /// Its name.
    pub pool: String,
    /// How many of its VMs are ready.
    pub vms: u32,
    /// How many of them would be under way at once; the others wait in the queue.
    pub at_once: u32,
    /// `limits.installs_per_pool`.
    pub installs_per_pool: u32,
    /// `limits.installs_per_host`.
    pub installs_per_host: u32,
    /// Its hosts.
    pub hosts: Vec<HostPlan>,
}

/// One host of a [`PoolPlan`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HostPlan {
    /// Its name label.
    pub name: String,
    /// Not in maintenance.
    pub enabled: bool,
    /// It can run HVM guests.
    pub takes_hvm: bool,
    /// It can run PV guests.
    pub takes_pv: bool,
    /// Its memory in bytes; 0 while it is away.
    pub memory: u64,
    /// Bytes free for a start, other guests ballooned down; absent where it tells none.
    pub free: Option<u64>,
    /// How many of the plan's VMs it would take at once.
    pub at_once: u32,
}

/// What a served file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileRole {
    /// The kernel.
    Kernel,
    /// An initrd.
    Initrd,
    /// What the installer fetches beside them: an ISO.
    File,
    /// An answer file's template.
    Answer,
    /// What network cards without iPXE get by TFTP.
    Loader,
}

impl FileRole {
    /// The word in tables.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::File => "file",
            Self::Answer => "answer",
            Self::Loader => "loader",
        }
    }
}

/// A file that would be served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FilePlan {
    /// Where it is; of a template its name.
    pub path: String,
    /// What it is.
    pub role: FileRole,
    /// The profiles that have it.
    pub profiles: Vec<String>,
    /// Its size; absent: there is no such file.
    pub bytes: Option<u64>,
    /// Its hash in hex; absent of what is not there, cannot be read or is very large.
    pub sha256: Option<String>,
    /// Why it could not be served.
    pub problem: Option<String>,
}

impl FilePlan {
    /// The same file for the same end, whoever wants it.
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.path, self.role, &self.problem) == (&other.path, other.role, &other.problem)
    }
}

/// A pool that does not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PoolAway {
    /// Its name.
    pub pool: String,
    /// Why.
    pub problem: String,
}

/// The answer to an order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct OrderAnswer {
    /// One line a VM.
    pub vms: Vec<OrderLine>,
    /// Selectors that name no VM, or not one alone.
    pub unresolved: Vec<Unresolved>,
    /// Pools that do not answer; VMs of theirs are known from an earlier reading or not at all.
    pub pools_away: Vec<PoolAway>,
    /// What the pools' hosts can take (a whole plan).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<PoolPlan>,
    /// The files that would be served (a whole plan).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<FilePlan>,
}

/// `POST /api/v1/jobs/{id}/resolve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResolveOrder {
    /// What was decided.
    pub resolution: Resolution,
}

/// `POST /api/v1/renders`, and `/renders/secrets`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RenderOrder {
    /// What to render.
    pub kind: RenderKind,
    /// For which VM: name or uuid.
    pub vm: String,
    /// With which profile; absent: what the machine's section says.
    #[serde(default)]
    pub profile: Option<String>,
    /// Which of several answer files; absent: the first.
    #[serde(default)]
    pub file: Option<String>,
    /// Show secrets too; not part of the request, which has a route of its own for them.
    #[serde(skip)]
    pub secrets: bool,
}

/// What a machine can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RenderKind {
    /// The iPXE script.
    Script,
    /// The PXELINUX configuration.
    Pxelinux,
    /// An answer file.
    Answer,
    /// The kernel arguments.
    Args,
    /// All of that.
    All,
}

/// Any refusal (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Problem {
    /// Which kind, for programs: `urn:bootflip:problem:NAME`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind, in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong this time, and what to do.
    pub detail: String,
}

/// `POST /api/v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenOrder {
    /// Its name: letters, digits, `-`, `_` and `.`; it stands in jobs and in the audit log.
    #[schema(pattern = "^[A-Za-z0-9_-][A-Za-z0-9._-]*$", min_length = 1, max_length = 64)]
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// For how many days; null: for ever.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1, maximum = 65535)]
    pub days: Option<u16>,
}

/// A token, without its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenView {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scope: Scope,
    /// When it was made, RFC 3339 in UTC.
    pub created: String,
    /// Who made it.
    pub created_by: String,
    /// Until when it is good; null: for ever.
    pub expires: Option<String>,
    /// It is no longer good.
    pub expired: bool,
    /// When it was last used, to about a minute.
    pub last_used: Option<String>,
}

impl TokenView {
    /// What is shown of a token.
    pub fn of(record: &TokenRecord, now: Timestamp) -> Self {
        Self {
            name: record.name.clone(),
            scope: record.scope,
            created: record.created.to_string(),
            created_by: record.created_by.clone(),
            expires: record.expires.map(|at| at.to_string()),
            expired: !record.is_good(now),
            last_used: record.last_used.map(|at| at.to_string()),
        }
    }
}

/// `GET /api/v1/tokens`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct TokenList {
    /// By name.
    pub tokens: Vec<TokenView>,
}

/// A new token. Its text is told this once; the type has no `Debug`.
#[derive(Serialize, Deserialize, utoipa::ToSchema)]
#[allow(missing_debug_implementations)] // it would print the token
pub struct TokenMade {
    /// For `Authorization: Bearer`.
    pub token: String,
    /// What it is.
    pub about: TokenView,
}

/// `GET /api/v1/audit`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct AuditPage {
    /// The oldest first.
    pub entries: Vec<AuditEntry>,
    /// The number of the log's last entry.
    pub last: u64,
    /// `from` of the next page; null: the log ends here.
    pub next: Option<u64>,
    /// What is wrong with these entries; null: they are as they were written.
    pub problem: Option<String>,
}

/// `GET /api/v1/health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Health {
    /// `server.name`.
    pub server: String,
    /// The program's version.
    pub version: String,
    /// Jobs that have not ended.
    pub jobs: usize,
    /// Machines that the boot gate knows.
    pub machines: usize,
    /// Pools that do not answer.
    pub pools_away: Vec<PoolAway>,
    /// DHCP, by interface: other servers that were heard, pools that are nearly full.
    #[serde(default)]
    pub dhcp: Vec<Status>,
    /// What came to the syslog receiver, where it is on.
    #[serde(default)]
    pub syslog: Option<Counts>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_numbers_are_taken_however_they_are_written() {
        for (text, days) in [
            ("5", Some(Some(5))),
            ("5.0", Some(Some(5))),
            ("5e1", Some(Some(50))),
            ("null", Some(None)),
            ("5.5", None),
            ("-1", None),
            ("65536", None),
            ("1e300", None),
            ("\"5\"", None),
        ] {
            let order = format!(r#"{{"name": "ci", "scope": "read", "days": {text}}}"#);
            let read = serde_json::from_str::<TokenOrder>(&order).ok().map(|order| order.days);
            assert_eq!(read, days, "{text}");
        }
    }
}

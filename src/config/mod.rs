//! The configuration: [`Config`] is checked and has nothing left to guess; `raw` is the file as written, `check`
//! turns one into the other and reports every problem at once. Reading and checking opens nothing but the file
//! itself and the secret files it names (`load`).

pub mod architecture;
mod check;
pub mod difference;
mod load;
mod problem;
mod raw;
mod read;
pub mod shipped;
pub mod variables;

use std::{collections::BTreeMap, net::Ipv4Addr, num::NonZeroU16, path::PathBuf, time::Duration};

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::{machine::MacAddr, secret::Secret, tftp::transfer::Rollover};

use self::variables::{Declarations, VariableKind, Variables};
pub use load::{Surroundings, load, load_in};
pub use problem::{Problem, Problems, problems_report};
pub(crate) use read::nearest;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that it was read from.
    pub file: PathBuf,
    /// `server.name`: the owner that stands in our claims.
    pub server_name: String,
    /// `server.state_dir`: database, token key, lock.
    pub state_dir: PathBuf,
    /// `store.keep_days`: how long jobs that have ended are kept; `None`: for good.
    pub keep: Option<Duration>,
    /// `log.format`.
    pub log: LogFormat,
    /// The pools, by name.
    pub pools: BTreeMap<String, PoolConfig>,
    /// DHCP, per interface; empty: somebody else's DHCP and PXE serve.
    pub dhcp: Vec<DhcpInterface>,
    /// Interfaces that the file names with `mode = "off"`.
    pub dhcp_off: Vec<DhcpOff>,
    /// TFTP; `None`: off.
    pub tftp: Option<TftpConfig>,
    /// The boot HTTP listener; `None`: off.
    pub http: Option<HttpConfig>,
    /// The syslog receiver; `None`: off.
    pub syslog: Option<SyslogConfig>,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Profiles, by name.
    pub profiles: BTreeMap<String, Profile>,
    /// What each profile declares of its variables; nothing: any may be set.
    pub declared: BTreeMap<String, Declarations>,
    /// Groups of machines, in the order of the file: of several that hold a machine the later wins.
    pub groups: Vec<GroupConfig>,
    /// What is known of machines, by VM name or uuid.
    pub machines: BTreeMap<String, MachineConfig>,
    /// Limits.
    pub limits: Limits,
    /// Deadlines.
    pub deadlines: Deadlines,
    /// Where templates that override the embedded ones are.
    pub template_dir: Option<PathBuf>,
}

/// One pool.
#[derive(Debug, Clone)]
pub struct PoolConfig {
    /// The key in `[pool.NAME]`.
    pub name: String,
    /// `https://…` or, when `plain_http` says so, `http://…`; scheme, host and port only.
    pub url: String,
    /// Other members that a HOST_IS_SLAVE answer may name (host or host:port).
    pub members: Vec<String>,
    /// The account.
    pub user: String,
    /// From `password_file` or `$CREDENTIALS_DIRECTORY/<name>`.
    pub password: Secret,
    /// How the server's certificate is judged.
    pub tls: TlsTrust,
    /// Which VMs jobs may touch; empty: none are excluded. Each is `tag=T`, `name~GLOB`, `uuid=U`.
    pub allow: Vec<String>,
}

/// How a pool's certificate is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsTrust {
    /// By this CA file (PEM).
    Ca(PathBuf),
    /// The leaf certificate's SHA-256 is one of these.
    Pins(Vec<[u8; 32]>),
    /// Not at all; said so in the configuration.
    Insecure,
    /// Plain HTTP; said so in the configuration (`plain_http = true`).
    PlainHttp,
}

/// DHCP on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpInterface {
    /// The device that the socket is bound to, such as `eth1`.
    pub interface: String,
    /// What we do there.
    pub mode: DhcpMode,
    /// Our address there: siaddr, option 54, and the host in boot URLs.
    pub address: Ipv4Addr,
    /// 67 unless a test or the demo says otherwise.
    pub server_port: u16,
    /// 68 unless a test or the demo says otherwise.
    pub client_port: u16,
    /// 4011 unless a test or the demo says otherwise (proxy mode).
    pub proxy_port: u16,
    /// The relays (giaddr) whose packets are answered.
    pub relays: Vec<Ipv4Addr>,
    /// What a client of an architecture boots, by its code (option 93): a file of the TFTP server, or a URL. BIOS
    /// (0) has `tftp.loader` where this says nothing.
    pub loaders: BTreeMap<u16, String>,
    /// What PXELINUX is told (RFC 5071).
    pub pxelinux: Pxelinux,
}

/// An interface where somebody else's DHCP serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpOff {
    /// The device.
    pub interface: String,
    /// What that server should let clients boot, as in [`DhcpInterface::loaders`].
    pub loaders: BTreeMap<u16, String>,
}

/// What PXELINUX is told beside its own search (RFC 5071).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pxelinux {
    /// Option 209.
    pub config_file: Option<String>,
    /// Option 210.
    pub path_prefix: Option<String>,
    /// Option 211.
    pub reboot_time: Option<Duration>,
}

/// What our DHCP does on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DhcpMode {
    /// Adds boot options beside an existing DHCP server; never leases.
    Proxy,
    /// Is the DHCP server.
    Server(DhcpServer),
}

/// The networks of server mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpServer {
    /// The interface's own network.
    pub own: DhcpPool,
    /// Networks behind relays, chosen by giaddr.
    pub relayed: Vec<DhcpPool>,
}

/// The addresses of one network, and what its clients are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DhcpPool {
    /// First and last address given to clients.
    pub range: (Ipv4Addr, Ipv4Addr),
    /// Subnet mask.
    pub netmask: Ipv4Addr,
    /// Option 3.
    pub router: Option<Ipv4Addr>,
    /// Option 6.
    pub dns: Vec<Ipv4Addr>,
    /// Option 15.
    pub domain: Option<String>,
    /// Option 42.
    pub ntp: Vec<Ipv4Addr>,
    /// Option 26.
    pub mtu: Option<u16>,
    /// Any other options, by code, as they go over the wire; each 1 to 255 bytes.
    pub options: BTreeMap<u8, Vec<u8>>,
    /// Option 51.
    pub lease: Duration,
    /// Fixed addresses.
    pub reservations: BTreeMap<MacAddr, Ipv4Addr>,
    /// Lease to MACs that no machine or reservation names.
    pub lease_to_strangers: bool,
    /// How many addresses are left for machines that a job is about to install.
    pub keep_for_jobs: u32,
}

/// TFTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TftpConfig {
    /// One server per address (a reply must leave from the address that was asked).
    pub listen: Vec<std::net::SocketAddrV4>,
    /// The published files.
    pub root: PathBuf,
    /// What BIOS network cards without iPXE get, beneath the root.
    pub loader: String,
    /// Bind the sockets to this device (the demo: `lo`).
    pub device: Option<String>,
    /// What sends the files.
    pub engine: TftpEngine,
    /// Files leave from the port that was asked, which firewalls and address translation understand.
    pub single_port: bool,
    /// What follows block 65,535.
    pub rollover: Rollover,
    /// The largest block, in bytes; an interface with smaller frames makes it smaller.
    pub block_size: u16,
    /// The largest window (RFC 7440), in blocks.
    pub window: u16,
    /// The networks that are answered; none: all.
    pub clients: Vec<Ipv4Net>,
    /// Transfers of one address at the same time.
    pub transfers_per_client: u16,
    /// Transfers at the same time.
    pub transfers: u16,
}

/// How the server writes its log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people, to stderr.
    #[default]
    Text,
    /// One JSON object a line, to stderr.
    Json,
    /// Entries of systemd's journal, with fields of their own.
    Journald,
}

/// A TFTP implementation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TftpEngine {
    /// bootflip's own.
    #[default]
    Own,
    /// The crate `async-tftp`.
    AsyncTftp,
}

/// The boot HTTP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Where it listens.
    pub listen: std::net::SocketAddrV4,
    /// What clients are told, such as `http://10.0.0.2:8080`; default from `listen`.
    pub public_url: String,
    /// Kernels, initrds and what profiles name; default: `tftp.root`.
    pub root: PathBuf,
    /// Bind the socket to this device (the demo: `lo`).
    pub device: Option<String>,
}

/// The syslog receiver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyslogConfig {
    /// Where it listens, and what installers are told.
    pub listen: std::net::SocketAddrV4,
    /// Bind the socket to this device (the demo: `lo`).
    pub device: Option<String>,
    /// Bytes of a machine's file; a full one is kept beside the new one.
    pub file_size: u32,
}

/// The admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// The unix socket; default `/run/bootflip/admin.sock`.
    pub socket: PathBuf,
    /// The TCP listener; `None`: off.
    pub remote: Option<RemoteConfig>,
}

/// The admin API and the dashboard over TCP, for who has a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteConfig {
    /// Where it listens.
    pub listen: std::net::SocketAddr,
    /// How it is encrypted.
    pub tls: RemoteTls,
}

/// TLS of the admin listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteTls {
    /// None: on loopback, or said so in the configuration (`plain_http = true`).
    Off,
    /// A certificate that signs itself, made at the first start and kept in `server.state_dir`.
    Generated,
    /// Files in PEM.
    Files {
        /// The certificate, and those that it hangs on.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

/// What to install, and how to know that it is done. A job keeps a copy from its creation on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// The key in `[profile.NAME]`.
    pub name: String,
    /// Install or rescue.
    pub kind: ProfileKind,
    /// Our boot files; `None`: a deployment server that is already in place does the boot.
    pub boot: Option<BootFiles>,
    /// How completion is known.
    pub completion: Completion,
    /// With `halt`: sooner than this is no installation.
    pub min_install: Duration,
    /// What proves that the new system lives.
    pub evidence: EvidenceKind,
    /// Weak evidence counts as success.
    pub accept_weak: bool,
    /// Reports may come as GET (for tools that cannot POST).
    pub report_by_get: bool,
    /// VBD.userdevice of the disk to install to; `None`: the only writable one.
    pub disk: Option<String>,
    /// Variables for templates: profile's over global over declared defaults; the machine's groups' and its own over these.
    pub variables: Variables,
}

/// Install erases the disk; rescue does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileKind {
    /// An unattended installation.
    Install,
    /// Recovery mode: HVM network boot once.
    Rescue,
}

/// The files of a network boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFiles {
    /// Path under the HTTP root.
    pub kernel: String,
    /// Paths under the HTTP root.
    pub initrd: Vec<String>,
    /// Kernel arguments, a template.
    pub args: String,
    /// The answer file's template, by name (`preseed.j2`), or `NAME=TEMPLATE` where it is served under another name.
    pub answer: Option<String>,
    /// Further answer files, written like it and served beside it. Jobs stored before this key have none.
    #[serde(default)]
    pub seed: Vec<String>,
    /// Further files under the HTTP root that the installer may fetch: an ISO. Jobs stored before this key have none.
    #[serde(default)]
    pub files: Vec<String>,
    /// How iPXE fetches kernel and initrds. Jobs stored before this key have the default.
    #[serde(default)]
    pub fetch: Fetch,
}

impl BootFiles {
    /// The answer files, the one first whose fetch counts.
    pub fn answers(&self) -> impl Iterator<Item = AnswerFile<'_>> {
        self.answer.iter().chain(&self.seed).map(|written| AnswerFile::of(written))
    }
}

/// A file that is rendered for a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerFile<'a> {
    /// Under which it is served.
    pub name: &'a str,
    /// Its template's.
    pub template: &'a str,
}

impl<'a> AnswerFile<'a> {
    /// From `NAME=TEMPLATE`, or from `TEMPLATE`, whose name is the template's without `.j2`.
    pub fn of(written: &'a str) -> Self {
        match written.split_once('=') {
            Some((name, template)) => Self { name, template },
            None => Self { name: written.strip_suffix(".j2").unwrap_or(written), template: written },
        }
    }
}

/// The protocol of iPXE's downloads of kernel and initrds; the script itself always comes by HTTP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fetch {
    /// From our HTTP listener.
    #[default]
    Http,
    /// From our TFTP listener, at the address that DHCP told as next server.
    Tftp,
}

/// How completion is known (design: Completion).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Completion {
    /// A `done` report, and Halted.
    Report,
    /// Halted, long enough after the start.
    Halt,
    /// Whichever holds first.
    Either,
}

/// What a profile names as life of the new system (evidence, part b).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EvidenceKind {
    /// The `booted` report with the job's third token.
    Report,
    /// A DHCP lease to a client that is not PXE, after the PV start (weak: the old system could do it too).
    Lease,
    /// An address from the guest agent (weak).
    Agent,
    /// It accepts connections on this TCP port, at its lease's or its agent's address (weak).
    Tcp(NonZeroU16),
    /// None is to be had (weak).
    None,
}

/// What is known of one machine beyond the pool's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineConfig {
    /// The NIC that boots, when the VM has several.
    pub mac: Option<MacAddr>,
    /// Overrides the profile's.
    pub disk: Option<String>,
    /// The profile to use when `deploy` names none.
    pub profile: Option<String>,
    /// Template variables.
    pub variables: Variables,
}

/// Machines that share variables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupConfig {
    /// The key in `[group.NAME]`.
    pub name: String,
    /// A name or uuid, `uuid=U`, `tag=T` or `name~GLOB` each.
    pub members: Vec<String>,
    /// Template variables: over the profile's, under the machine's.
    pub variables: Variables,
}

/// Limits, each with its unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Installations at once per pool.
    pub installs_per_pool: u32,
    /// Installations at once per host that may run them.
    pub installs_per_host: u32,
    /// XenAPI calls at once per pool.
    pub calls_per_pool: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { installs_per_pool: 4, installs_per_host: 4, calls_per_pool: 8 }
    }
}

/// Deadlines (design: Completion). Each counts from the PV or HVM start unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deadlines {
    /// First DHCP packet; 2 min.
    pub dhcp: Duration,
    /// Kernel fetched; 5 min.
    pub kernel: Duration,
    /// Answer file fetched; 10 min.
    pub answer: Duration,
    /// First report; 20 min.
    pub first_stage: Duration,
    /// The whole installation; 120 min.
    pub install: Duration,
    /// Halted after a `done` report; 5 min.
    pub halt_after_report: Duration,
    /// A report in flight after Halted; 60 s.
    pub report_after_halt: Duration,
    /// The PV start, from its first try; 3 min.
    pub pv_start: Duration,
    /// Evidence, from the PV start; 10 min.
    pub evidence: Duration,
    /// One effect's retries before the job gives up; 10 min.
    pub effect: Duration,
    /// A clean shutdown before a hard one; 2 min.
    pub clean_shutdown: Duration,
    /// How often the pool is asked when no event came; 15 s.
    pub poll: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        const fn minutes(n: u64) -> Duration {
            Duration::from_secs(n * 60)
        }
        Self {
            dhcp: minutes(2),
            kernel: minutes(5),
            answer: minutes(10),
            first_stage: minutes(20),
            install: minutes(120),
            halt_after_report: minutes(5),
            report_after_halt: minutes(1),
            pv_start: minutes(3),
            evidence: minutes(10),
            effect: minutes(10),
            clean_shutdown: minutes(2),
            poll: Duration::from_secs(15),
        }
    }
}

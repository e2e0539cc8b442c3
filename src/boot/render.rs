//! Renders what a machine boots with: iPXE script, PXELINUX configuration, kernel arguments and answer file. Pure.
//!
//! Invariant: a rendering ends within [`FUEL`] steps and [`OUTPUT_LIMIT`] bytes, reads no file, and its errors name
//! the template, the line and the expression, but no value (variables hold password hashes). Templates that use a
//! variable which is not set fail; `check_all` finds that before a VM is touched. `scripts` holds the fixed
//! dialects of the boot loaders, `filters` what templates may call, `lint` what a firmware understands, `check` what can be
//! said of a template without a machine.

pub mod check;
mod filters;
pub mod lint;
mod scripts;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    error::Error as _,
    fmt,
    io::{self, Write},
    net::SocketAddrV4,
};

use minijinja::{
    AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, syntax::SyntaxConfig, value::Serde,
};
use serde::Serialize;

use super::Armed;
use crate::machine::MacAddr;

use self::{lint::Dialect, scripts::Sources};

pub use scripts::{GPXE_REFUSAL, IPXE_REFUSAL, PXELINUX_REFUSAL};

/// Steps of the template engine that one rendering may take.
pub const FUEL: u64 = 1_000_000;
/// Bytes that one rendering may produce: 1 MiB.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// Macros and includes within each other.
const RECURSION_LIMIT: usize = 32;
/// Bytes of kernel arguments: x86 Linux takes 2048 with the final NUL, PXELINUX hands on as much.
const ARGUMENTS_LIMIT: usize = 2047;

/// The template whose rendering answer files get as `report_script`.
const REPORT_SCRIPT: &str = "report.sh.j2";
/// The template of the iPXE script, where somebody wrote one.
pub const SCRIPT: &str = "script.ipxe.j2";
/// What every attempt has beside its answer files: [`PV_READY_SCRIPT`], under this name.
const PV_READY: &str = "bootflip-pv-ready";
/// Readies a system for pygrub, and tells whether it is ready (`docs/pv-readiness.md`).
pub const PV_READY_SCRIPT: &str = include_str!("../../config/guest/pv-ready.sh");
/// The templates that the program brings along, by name.
const EMBEDDED: [(&str, &str); 13] = [
    ("preseed.j2", include_str!("../../config/templates/preseed.j2")),
    ("user-data.j2", include_str!("../../config/templates/user-data.j2")),
    ("meta-data.j2", include_str!("../../config/templates/meta-data.j2")),
    ("vendor-data.j2", include_str!("../../config/templates/vendor-data.j2")),
    ("kickstart.j2", include_str!("../../config/templates/kickstart.j2")),
    ("mini.j2", include_str!("../../config/templates/mini.j2")),
    ("macros.j2", include_str!("../../config/templates/macros.j2")),
    ("disk.sh.j2", include_str!("../../config/templates/disk.sh.j2")),
    ("give-up.sh.j2", include_str!("../../config/templates/give-up.sh.j2")),
    ("late.sh.j2", include_str!("../../config/templates/late.sh.j2")),
    ("target.sh.j2", include_str!("../../config/templates/target.sh.j2")),
    ("booted.sh.j2", include_str!("../../config/templates/booted.sh.j2")),
    (REPORT_SCRIPT, include_str!("../../config/templates/report.sh.j2")),
];

/// The boot URLs of one server, from its `public_url`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Urls {
    base: String,
    log: Option<SocketAddrV4>,
}

impl Urls {
    /// URLs under this base, such as `http://10.0.0.2:8080`.
    pub fn new(public_url: &str) -> Self {
        Self { base: public_url.trim_end_matches('/').to_owned(), log: None }
    }

    /// The same, with where installers may send their log.
    #[must_use]
    pub fn with_log(self, log: Option<SocketAddrV4>) -> Self {
        Self { log, ..self }
    }

    /// The base itself.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The boot script of a machine. It carries no token: the whole LAN sees it in DHCP.
    pub fn script(&self, mac: MacAddr) -> String {
        format!("{}/b/{mac}", self.base)
    }

    /// A kernel or initrd.
    pub fn file(&self, armed: &Armed, path: &str) -> String {
        format!("{}/f/{}/{}", self.base, armed.render.expose(), encode_path(path))
    }

    /// The same by TFTP. iPXE has set `next-server` from the DHCP reply that named the script, so this is the address
    /// of ours that the client can reach.
    pub fn file_by_tftp(&self, armed: &Armed, path: &str) -> String {
        format!("tftp://${{next-server}}/f/{}/{}", armed.render.expose(), encode_path(path))
    }

    /// The answer file; `None`: the profile has none.
    pub fn answer(&self, armed: &Armed) -> Option<String> {
        let first = armed.files.answers().next()?;
        Some(self.seed(armed) + &encode_path(first.name))
    }

    /// What all answer files are below of; ends with a slash, as cloud-init wants its seed.
    pub fn seed(&self, armed: &Armed) -> String {
        format!("{}/a/{}/", self.base, armed.render.expose())
    }

    /// The script that readies a system for pygrub.
    pub fn pv_ready(&self, armed: &Armed) -> String {
        self.seed(armed) + PV_READY
    }

    /// Where stages are posted, as `<this>/<stage>`.
    pub fn report(&self, armed: &Armed) -> String {
        format!("{}/r/{}", self.base, armed.report.expose())
    }

    /// Where the installed system says that it runs.
    pub fn booted(&self, armed: &Armed) -> String {
        format!("{}/r/{}/booted", self.base, armed.booted.expose())
    }
}

/// Why something cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{template}{}: {problem}", Line(.line))]
pub struct RenderError {
    /// The template's name, or what it is for.
    pub template: String,
    /// The line in it, from 1.
    pub line: Option<usize>,
    /// What is wrong; names no value.
    pub problem: String,
}

struct Line<'a>(&'a Option<usize>);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

/// The templates of a server: the embedded ones, with overrides and additions by name.
#[derive(Debug, Clone)]
pub struct Templates {
    environment: Environment<'static>,
    sources: BTreeMap<String, String>,
}

impl Templates {
    /// The embedded templates under `overrides` (name → source). Every source with a syntax error is reported.
    pub fn new(overrides: BTreeMap<String, String>) -> Result<Self, Vec<RenderError>> {
        let mut sources: BTreeMap<String, String> =
            EMBEDDED.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
        sources.extend(overrides);
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::Strict);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_LIMIT);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_debug(false);
        environment.set_syntax(syntax());
        filters::add(&mut environment);
        let mut errors = Vec::new();
        for (name, source) in &sources {
            if let Err(error) = environment.add_template_owned(name.clone(), source.clone()) {
                errors.push(explain(&error, name, &sources));
            }
        }
        if errors.is_empty() { Ok(Self { environment, sources }) } else { Err(errors) }
    }

    /// Whether the program brings a template of this name along.
    pub fn is_embedded(name: &str) -> bool {
        EMBEDDED.iter().any(|(known, _)| *known == name)
    }

    /// The names of all templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.sources.keys().map(String::as_str)
    }

    /// A template as it was written; `None`: there is none of this name.
    pub fn source(&self, name: &str) -> Option<&str> {
        self.sources.get(name).map(String::as_str)
    }

    /// The answer file whose fetch counts; `Ok(None)`: the profile has none.
    pub fn render_answer(&self, armed: &Armed, urls: &Urls) -> Result<Option<String>, RenderError> {
        armed.files.answers().next().map(|file| self.answer_of(file.template, armed, urls)).transpose()
    }

    /// The answer file that is served as `name`; `Ok(None)`: the profile has none of this name. Every profile that has
    /// any has `bootflip-pv-ready`.
    pub fn render_answer_named(
        &self,
        armed: &Armed,
        urls: &Urls,
        name: &str,
    ) -> Result<Option<String>, RenderError> {
        let found = armed.files.answers().find(|file| file.name == name);
        match found {
            Some(file) => self.answer_of(file.template, armed, urls).map(Some),
            None if name == PV_READY && armed.files.answer.is_some() => Ok(Some(PV_READY_SCRIPT.to_owned())),
            None => Ok(None),
        }
    }

    fn answer_of(&self, template: &str, armed: &Armed, urls: &Urls) -> Result<String, RenderError> {
        let mut facts = Facts::of(armed, urls);
        facts.pv_ready_script = Some(PV_READY_SCRIPT);
        facts.report_script = Some(self.render_named(REPORT_SCRIPT, armed, &facts)?);
        self.render_named(template, armed, &facts)
    }

    fn render_named(&self, name: &str, armed: &Armed, facts: &Facts<'_>) -> Result<String, RenderError> {
        let template =
            self.environment.get_template(name).map_err(|error| explain(&error, name, &self.sources))?;
        self.render(&template, name, armed, facts)
    }

    /// The kernel arguments, on one line.
    pub fn render_args(&self, armed: &Armed, urls: &Urls) -> Result<String, RenderError> {
        let name = format!("kernel arguments of profile {}", armed.profile);
        let refuse =
            |problem: &str| RenderError { template: name.clone(), line: None, problem: problem.to_owned() };
        let template = self
            .environment
            .template_from_named_str(&name, &armed.files.args)
            .map_err(|error| explain(&error, &name, &self.sources))?;
        let rendered = self.render(&template, &name, armed, &Facts::of(armed, urls))?;
        let arguments = rendered.trim();
        if arguments.chars().any(char::is_control) {
            return Err(refuse("a line break or control character in kernel arguments; they are one line"));
        }
        if arguments.len() > ARGUMENTS_LIMIT {
            return Err(refuse("more than 2047 bytes of kernel arguments; Linux and PXELINUX take no more"));
        }
        Ok(arguments.to_owned())
    }

    /// The script that boots an armed attempt by iPXE or gPXE: of the template [`SCRIPT`] where there is one, else our own.
    /// Errors: what a client of this dialect would not understand.
    pub fn ipxe_script(&self, armed: &Armed, urls: &Urls, dialect: Dialect) -> Result<String, RenderError> {
        let sources = Sources::of(armed, urls, self.render_args(armed, urls)?)?;
        // gPXE has too little of the language for one text to serve both.
        if !self.sources.contains_key(SCRIPT) || dialect == Dialect::Gpxe {
            return Ok(scripts::ipxe(&sources, dialect));
        }
        let mut facts = Facts::of(armed, urls);
        facts.boot = Some(ScriptFacts {
            kernel_url: sources.kernel,
            initrd_urls: sources.initrds,
            args: sources.arguments,
            modern: dialect == Dialect::Modern,
        });
        let script = self.render_named(SCRIPT, armed, &facts)?;
        match lint::lint(&script, dialect).into_iter().next() {
            None => Ok(script),
            Some(finding) => Err(RenderError {
                template: format!("the script that {SCRIPT} gives"),
                line: Some(finding.line),
                problem: finding.problem,
            }),
        }
    }

    /// The PXELINUX configuration that boots an armed attempt, with kernel and initrd by TFTP.
    pub fn pxelinux_config(&self, armed: &Armed, urls: &Urls) -> Result<String, RenderError> {
        scripts::pxelinux(armed, &self.render_args(armed, urls)?)
    }

    /// Renders everything that this attempt would be served, and returns every problem.
    pub fn check_all(&self, sample: &Armed, urls: &Urls) -> Vec<RenderError> {
        let mut errors: Vec<RenderError> = Vec::new();
        for dialect in [Dialect::Ipxe2012, Dialect::Modern] {
            errors.extend(
                self.ipxe_script(sample, urls, dialect).err().filter(|error| !errors.contains(error)),
            );
        }
        errors.extend(self.pxelinux_config(sample, urls).err().filter(|error| !errors.contains(error)));
        errors.extend(
            sample.files.answers().filter_map(|file| self.answer_of(file.template, sample, urls).err()),
        );
        errors
    }

    fn render(
        &self,
        template: &minijinja::Template<'_, '_>,
        name: &str,
        armed: &Armed,
        facts: &Facts<'_>,
    ) -> Result<String, RenderError> {
        let mut output = Capped(Vec::new());
        let context = Value::from(Serde(facts));
        template
            .render_captured_to(context, &mut output)
            .map_err(|error| explain_with(&error, name, &armed.files.args, &self.sources))?;
        String::from_utf8(output.0).map_err(|_| RenderError {
            template: name.to_owned(),
            line: None,
            problem: "the output is not UTF-8".to_owned(),
        })
    }
}

/// A block tag on a line of its own leaves no line behind.
fn syntax() -> SyntaxConfig {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true)
        .build()
        .expect("the engine's own delimiters are valid")
}

/// What a template sees (`docs/config.md` lists it).
#[derive(Serialize)]
struct Facts<'a> {
    machine: MachineFacts<'a>,
    disk: Option<DiskFacts<'a>>,
    vars: &'a BTreeMap<String, serde_json::Value>,
    profile: &'a str,
    pool: PoolFacts,
    server: ServerFacts<'a>,
    log: Option<LogFacts>,
    answer_url: Option<String>,
    seed_url: String,
    file_urls: Vec<String>,
    report_url: String,
    booted_url: String,
    /// Where `pv_ready_script` can be fetched: debian-installer's reader does not survive a line of that length.
    pv_ready_url: String,
    /// The shell script that posts a stage (`report.sh.j2`), rendered; only in answer files.
    report_script: Option<String>,
    /// The script that readies the installed system for pygrub; only in answer files.
    pv_ready_script: Option<&'static str>,
    /// Only in [`SCRIPT`].
    #[serde(skip_serializing_if = "Option::is_none")]
    boot: Option<ScriptFacts>,
}

/// What an iPXE script is made of.
#[derive(Serialize)]
struct ScriptFacts {
    kernel_url: String,
    initrd_urls: Vec<String>,
    args: String,
    modern: bool,
}

#[derive(Serialize)]
struct MachineFacts<'a> {
    name: &'a str,
    mac: String,
    uuid: &'a str,
}

/// `letter` is that of the device name (`a` of xvda or sda); xapi names devices by their position.
#[derive(Serialize)]
struct DiskFacts<'a> {
    userdevice: &'a str,
    position: u32,
    letter: char,
    size: u64,
}

/// Our syslog receiver.
#[derive(Serialize)]
struct LogFacts {
    host: String,
    port: u16,
}

/// `xen` is such as `4.13`; empty: not known.
#[derive(Serialize)]
struct PoolFacts {
    xen: String,
}

#[derive(Serialize)]
struct ServerFacts<'a> {
    url: &'a str,
}

impl<'a> Facts<'a> {
    fn of(armed: &'a Armed, urls: &'a Urls) -> Self {
        let disk = armed.disk.as_ref().map(|(userdevice, size)| {
            let position = disk_position(userdevice);
            let letter =
                u8::try_from(position).ok().filter(|n| *n < 26).map_or('a', |n| char::from(b'a' + n));
            DiskFacts { userdevice, position, letter, size: *size }
        });
        Self {
            machine: MachineFacts { name: &armed.vm_name, mac: armed.mac.to_string(), uuid: &armed.vm_uuid },
            disk,
            vars: &armed.variables,
            profile: &armed.profile,
            pool: PoolFacts { xen: armed.xen.map(|xen| xen.to_string()).unwrap_or_default() },
            server: ServerFacts { url: urls.base() },
            log: urls.log.map(|log| LogFacts { host: log.ip().to_string(), port: log.port() }),
            answer_url: urls.answer(armed),
            seed_url: urls.seed(armed),
            file_urls: armed.files.files.iter().map(|file| urls.file(armed, file)).collect(),
            report_url: urls.report(armed),
            booted_url: urls.booted(armed),
            pv_ready_url: urls.pv_ready(armed),
            report_script: None,
            pv_ready_script: None,
            boot: None,
        }
    }
}

/// The position of a VBD.userdevice, from 0: `0` and `xvda` are 0, `3` and `hdd` are 3.
pub fn disk_position(userdevice: &str) -> u32 {
    if let Ok(number) = userdevice.parse() {
        return number;
    }
    match userdevice.bytes().last() {
        Some(letter @ b'a'..=b'z') => u32::from(letter - b'a'),
        Some(_) | None => 0,
    }
}

/// Takes bytes up to [`OUTPUT_LIMIT`], then fails.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > OUTPUT_LIMIT {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn explain(error: &minijinja::Error, name: &str, sources: &BTreeMap<String, String>) -> RenderError {
    explain_with(error, name, "", sources)
}

/// Turns the engine's error into ours. Its own text and debug dump may hold values, so only the kind, the place
/// and the expression as written in the template are taken over.
#[allow(clippy::wildcard_enum_match_arm)] // the engine's enum, open to additions
fn explain_with(
    error: &minijinja::Error,
    name: &str,
    unnamed_source: &str,
    sources: &BTreeMap<String, String>,
) -> RenderError {
    let mut innermost = error;
    while let Some(inner) = innermost.source().and_then(|source| source.downcast_ref::<minijinja::Error>()) {
        innermost = inner;
    }
    let template = innermost.name().or_else(|| error.name()).unwrap_or(name).to_owned();
    let source = sources.get(&template).map_or(unnamed_source, String::as_str);
    let expression = innermost.range().and_then(|range| expression_at(source, range)).unwrap_or_default();
    let expression: String = expression.chars().take(80).collect();
    let detail = innermost.detail().unwrap_or_default();
    let problem = match innermost.kind() {
        ErrorKind::UndefinedError => {
            format!("`{expression}` is not defined; set the variable for the profile, the machine or all")
        }
        ErrorKind::OutOfFuel => format!("takes more than {FUEL} steps; look for a loop without end"),
        ErrorKind::WriteFailure => format!("gives more than {OUTPUT_LIMIT} bytes"),
        // The engine's words about the template's own text.
        kind @ (ErrorKind::SyntaxError
        | ErrorKind::TemplateNotFound
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownTest
        | ErrorKind::UnknownMethod
        | ErrorKind::BadEscape) => format!("{kind}: {detail}"),
        kind => match detail.strip_prefix(filters::OURS) {
            Some(ours) => format!("`{expression}`: {ours}"),
            None => format!("{kind} in `{expression}`"),
        },
    };
    RenderError { template, line: innermost.line().or_else(|| error.line()), problem }
}

/// What stands between the braces around a place of a template.
fn expression_at(source: &str, place: std::ops::Range<usize>) -> Option<&str> {
    let before = source.get(..place.start)?;
    let after = source.get(place.end..)?;
    let start = before.rfind("{{").max(before.rfind("{%")).map_or(place.start, |at| at + 2);
    let end = [after.find("}}"), after.find("%}")]
        .into_iter()
        .flatten()
        .min()
        .map_or(place.end, |at| place.end + at);
    source.get(start..end).map(|text| text.trim_matches([' ', '-', '+', '\n']))
}

/// Percent-encodes a path for a URL, leaving its slashes and dropping leading ones.
fn encode_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.trim_start_matches('/').bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

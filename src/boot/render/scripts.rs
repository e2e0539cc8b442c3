//! The boot loaders' own dialects (`lint` knows what each understands).
//!
//! XenServer's ROM is iPXE of 2012-10-05: no `inc`, image commands know `--name` alone, and a line stops at the
//! first command whose operator does not hold, so that `a && b || c` does not run `c` when `a` failed. Hence one
//! command a line, unrolled tries, and `goto` for what failed.

use super::{Dialect, RenderError, Urls};
use crate::{boot::Armed, config::Fetch};

/// What a known machine gets that may not netboot now: on to the next boot device at once.
pub const IPXE_REFUSAL: &str = "#!ipxe\nexit\n";
/// The same for gPXE.
pub const GPXE_REFUSAL: &str = "#!gpxe\nexit\n";
/// The same for PXELINUX.
pub const PXELINUX_REFUSAL: &str = "DEFAULT local\nPROMPT 0\nTIMEOUT 0\nLABEL local\n  LOCALBOOT -1\n";

/// How often the script tries all of its downloads.
const TRIES: u32 = 4;
/// Seconds between two tries.
const PAUSE_SECONDS: u32 = 5;

/// The same where a script can count.
const MODERN_TRIES: u32 = 20;

/// Where a script fetches kernel and initrds, and the kernel's arguments.
pub(super) struct Sources {
    pub(super) kernel: String,
    pub(super) initrds: Vec<String>,
    pub(super) arguments: String,
}

impl Sources {
    pub(super) fn of(armed: &Armed, urls: &Urls, arguments: String) -> Result<Self, RenderError> {
        check_for_ipxe(armed, &arguments)?;
        let file = |path: &str| match armed.files.fetch {
            Fetch::Http => urls.file(armed, path),
            Fetch::Tftp => urls.file_by_tftp(armed, path),
        };
        let initrds = armed.files.initrd.iter().map(|initrd| file(initrd)).collect();
        Ok(Self { kernel: file(&armed.files.kernel), initrds, arguments })
    }
}

pub(super) fn ipxe(sources: &Sources, dialect: Dialect) -> String {
    match dialect {
        Dialect::Gpxe => gpxe(sources),
        Dialect::Ipxe2012 => ipxe_2012(sources),
        Dialect::Modern => ipxe_modern(sources),
    }
}

/// One try: a script of gPXE ends at the first command that fails, and the firmware goes on.
fn gpxe(sources: &Sources) -> String {
    let kernel = format!("kernel {} {}", sources.kernel, sources.arguments);
    let mut script = format!("{}\nimgfree\n{}\n", Dialect::Gpxe.begin(), kernel.trim_end());
    for initrd in &sources.initrds {
        script.push_str(&format!("initrd {initrd}\n"));
    }
    script.push_str("boot\n");
    script
}

fn ipxe_2012(sources: &Sources) -> String {
    let mut script = String::from("#!ipxe\n");
    for attempt in 1..=TRIES {
        let failed = format!("failed{attempt}");
        script.push_str("imgfree\n");
        let line = format!("kernel {} {}", sources.kernel, sources.arguments);
        script.push_str(&format!("{} || goto {failed}\n", line.trim_end()));
        for initrd in &sources.initrds {
            script.push_str(&format!("initrd {initrd} || goto {failed}\n"));
        }
        script.push_str(&format!("boot || goto {failed}\n:{failed}\n"));
        if attempt < TRIES {
            script.push_str(&format!("sleep {PAUSE_SECONDS}\n"));
        }
    }
    script.push_str(GIVE_UP);
    script
}

const GIVE_UP: &str = "echo bootflip: kernel or initrd could not be loaded\nexit\n";

/// Names its images: under UEFI the kernel finds its initrd by `initrd=NAME`; under BIOS it takes no notice.
fn ipxe_modern(sources: &Sources) -> String {
    let mut script = String::from("#!ipxe\nset tries:int32 0\n:again\nimgfree\n");
    script.push_str(&format!("kernel --name linux {}", sources.kernel));
    let names: Vec<String> = (0..sources.initrds.len()).map(|n| format!("initrd{n}")).collect();
    for name in &names {
        script.push_str(&format!(" initrd={name}"));
    }
    script.push_str(format!(" {}", sources.arguments).trim_end());
    script.push_str(" || goto failed\n");
    for (name, initrd) in names.iter().zip(&sources.initrds) {
        script.push_str(&format!("initrd --name {name} {initrd} || goto failed\n"));
    }
    script.push_str(&format!(
        "boot || goto failed\n:failed\ninc tries\niseq ${{tries}} {MODERN_TRIES} && goto gaveup ||\n\
         sleep {PAUSE_SECONDS}\ngoto again\n:gaveup\n{GIVE_UP}"
    ));
    script
}

/// iPXE has no quoting: what it would take for an operator or a variable cannot be passed to a kernel.
fn check_for_ipxe(armed: &Armed, arguments: &str) -> Result<(), RenderError> {
    let refused = arguments.split_whitespace().find(|word| matches!(*word, "||" | "&&" | "#"));
    let refused = refused.or_else(|| arguments.contains("${").then_some("${"));
    match refused {
        None => Ok(()),
        Some(word) => Err(RenderError {
            template: format!("kernel arguments of profile {}", armed.profile),
            line: None,
            problem: format!("`{word}` means something to iPXE and cannot be passed to the kernel"),
        }),
    }
}

pub(super) fn pxelinux(armed: &Armed, arguments: &str) -> Result<String, RenderError> {
    // `::` takes the name as it is, wherever pxelinux.0 itself came from; a comma or blank would end the name.
    let name = |path: &str| {
        let path = path.trim_start_matches('/');
        if path.contains([',', ' ', '\t', '\n', '\r']) {
            return Err(RenderError {
                template: format!("boot files of profile {}", armed.profile),
                line: None,
                problem: format!(
                    "PXELINUX cannot load `{}`: a blank or comma in its name",
                    path.escape_debug()
                ),
            });
        }
        Ok(format!("::f/{}/{path}", armed.render.expose()))
    };
    let initrds: Vec<String> = armed.files.initrd.iter().map(|path| name(path)).collect::<Result<_, _>>()?;
    let mut config = String::from("DEFAULT install\nPROMPT 0\nTIMEOUT 0\nLABEL install\n");
    config.push_str(&format!("  KERNEL {}\n", name(&armed.files.kernel)?));
    if !initrds.is_empty() {
        config.push_str(&format!("  INITRD {}\n", initrds.join(",")));
    }
    if !arguments.is_empty() {
        config.push_str(&format!("  APPEND {arguments}\n"));
    }
    Ok(config)
}

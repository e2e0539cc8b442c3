//! The boot loaders' own dialects.
//!
//! XenServer's ROM is iPXE of 2012-10-05: no `inc`, image commands know `--name` alone, and a line stops at the
//! first command whose operator does not hold, so that `a && b || c` does not run `c` when `a` failed. Hence one
//! command a line, unrolled tries, and `goto` for what failed.

use super::{RenderError, Urls};
use crate::{boot::Armed, config::Fetch};

/// What a known machine gets that may not netboot now: on to the next boot device at once.
pub const IPXE_REFUSAL: &str = "#!ipxe\nexit\n";
/// The same for PXELINUX.
pub const PXELINUX_REFUSAL: &str = "DEFAULT local\nPROMPT 0\nTIMEOUT 0\nLABEL local\n  LOCALBOOT -1\n";

/// How often the script tries all of its downloads.
const TRIES: u32 = 4;
/// Seconds between two tries.
const PAUSE_SECONDS: u32 = 5;

pub(super) fn ipxe(armed: &Armed, urls: &Urls, arguments: &str) -> Result<String, RenderError> {
    check_for_ipxe(armed, arguments)?;
    let file = |path: &str| match armed.files.fetch {
        Fetch::Http => urls.file(armed, path),
        Fetch::Tftp => urls.file_by_tftp(armed, path),
    };
    let mut script = String::from("#!ipxe\n");
    for attempt in 1..=TRIES {
        let failed = format!("failed{attempt}");
        script.push_str("imgfree\n");
        let line = format!("kernel {} {arguments}", file(&armed.files.kernel));
        script.push_str(&format!("{} || goto {failed}\n", line.trim_end()));
        for initrd in &armed.files.initrd {
            script.push_str(&format!("initrd {} || goto {failed}\n", file(initrd)));
        }
        script.push_str(&format!("boot || goto {failed}\n:{failed}\n"));
        if attempt < TRIES {
            script.push_str(&format!("sleep {PAUSE_SECONDS}\n"));
        }
    }
    script.push_str("echo bootflip: kernel or initrd could not be loaded\nexit\n");
    Ok(script)
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

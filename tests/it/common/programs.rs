//! Programs of others that tests run.

use std::{io::Write, path::Path};

/// Where they are looked for.
const FOLDERS: [&str; 6] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// Whether a program is missing: the test is then skipped, which is told; with `BOOTFLIP_NO_SKIP=1` it fails.
pub(crate) fn missing(program: &str) -> bool {
    if FOLDERS.iter().any(|folder| Path::new(folder).join(program).exists()) {
        return false;
    }
    skip(program, "not installed; tests/net/prepare.sh or tests/lab/prepare.sh installs it");
    true
}

/// Tells of a skip; with `BOOTFLIP_NO_SKIP=1` that is a failure.
pub(crate) fn skip(name: &str, why: &str) {
    let never = std::env::var_os("BOOTFLIP_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!never, "{name} cannot be skipped: {why}");
    // Past the capture of the test's own output: a skip must be seen.
    let _ = writeln!(std::io::stderr(), "SKIP {name}: {why}");
}

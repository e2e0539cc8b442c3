//! Reference data that is not part of the project: the XenAPI data model, and records of real databases. Tests that
//! need it are skipped, counted and listed where it is absent.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The file of this name below the folder that `BOOTFLIP_REFERENCE` names (with `reference/` and `data/`), or that
/// lies beside the project; or a skip. `BOOTFLIP_NO_SKIP` does not count here: no machine can install this data.
pub(crate) fn reference_or_skip(test: &str, file: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BOOTFLIP_REFERENCE")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared"), PathBuf::from);
    let path = folder.join(file);
    if path.exists() {
        return Some(path);
    }
    // Past the capture of the test's own output: a skip must be seen.
    let _ = writeln!(std::io::stderr(), "SKIP {test}: no reference data ({file}); see BOOTFLIP_REFERENCE");
    None
}

/// The XenAPI data model, or a skip.
pub(crate) fn data_model(test: &str) -> Option<serde_json::Value> {
    let path = reference_or_skip(test, "reference/xenapi-datamodel.json")?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

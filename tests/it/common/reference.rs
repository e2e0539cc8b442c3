//! Reference data that is not part of the project: the XenAPI data model, and records of real databases. Tests that
//! need it are skipped, counted and listed where it is absent.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// The file of this name below the folder that `BOOTFLIP_REFERENCE` names (with `reference/` and `data/`), or that
/// lies beside the project; or a skip that `BOOTFLIP_NO_SKIP=1` turns into a failure.
pub(crate) fn reference_or_skip(test: &str, file: &str) -> Option<PathBuf> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folders = match std::env::var_os("BOOTFLIP_REFERENCE") {
        Some(folder) => vec![PathBuf::from(folder)],
        None => vec![project.join("../shared"), project.join("../../shared")],
    };
    let found = folders.iter().map(|folder| folder.join(file)).find(|path| path.exists());
    if found.is_none() {
        let strict = std::env::var_os("BOOTFLIP_NO_SKIP").is_some_and(|value| value == "1");
        assert!(!strict, "{test}: there is no {file} in {folders:?}");
        // Past the capture of the test's own output: a skip must be seen.
        let _ =
            writeln!(std::io::stderr(), "SKIP {test}: no reference data ({file}); see BOOTFLIP_REFERENCE");
    }
    found
}

/// The XenAPI data model, or a skip.
pub(crate) fn data_model(test: &str) -> Option<serde_json::Value> {
    let path = reference_or_skip(test, "reference/xenapi-datamodel.json")?;
    Some(serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap())
}

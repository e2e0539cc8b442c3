//! Reads the templates that override or join the built-in ones. A shell.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::boot::render::{RenderError, Templates};

/// The largest template, in bytes.
const TEMPLATE_LIMIT: u64 = 1 << 20;

/// Why the templates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The folder or a file in it cannot be read.
    #[error("cannot read {path}; template_dir must be a folder of templates (*.j2) that this user may read")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Syntax errors, all of them.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Syntax(Vec<RenderError>),
}

/// The built-in templates under those of this folder (`*.j2`, not in folders below).
pub fn load(folder: Option<&Path>) -> Result<Templates, TemplateError> {
    Templates::new(sources(folder)?).map_err(TemplateError::Syntax)
}

/// The templates of a folder, by name, as written.
pub fn sources(folder: Option<&Path>) -> Result<BTreeMap<String, String>, TemplateError> {
    let mut sources = BTreeMap::new();
    if let Some(folder) = folder {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| TemplateError::Read { path, source }
        };
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(".j2"));
            if let Some(name) = name {
                sources.insert(name.to_owned(), read(&path).map_err(at(&path))?);
            }
        }
    }
    Ok(sources)
}

/// One template.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = fs::File::open(path)?.take(TEMPLATE_LIMIT + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length > TEMPLATE_LIMIT) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(text)
}

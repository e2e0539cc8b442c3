//! A folder of published files and its `SHA256SUMS`, as `loaders` and `image` fill it. A shell.
//!
//! Invariant: a file is replaced whole or not at all, and what the manifest says of it is written last; a name that is not
//! ours to change keeps its line.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::boot::{
    manifest::{BadLine, MANIFEST, Manifest},
    root::RelativePath,
    vouch::digest,
};
use crate::secret::hex;

/// Why a folder of published files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file or folder could not be used.
    #[error("cannot {operation} {path}")]
    File {
        /// `read`, `write`, ….
        operation: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The manifest has a line that is none.
    #[error("{path} cannot be read; correct or remove it")]
    Manifest {
        /// Where it is.
        path: PathBuf,
        /// Which line.
        source: BadLine,
    },
}

/// An error of the disk, with what was done to which path.
pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::File { operation, path, source }
}

/// How a file in the folder stands to its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// As the manifest says.
    Verified,
    /// Its bytes are others than the manifest's.
    Differs,
    /// The manifest names it, and it is not there.
    Missing,
    /// It is there, and the manifest does not name it.
    Unlisted,
    /// Neither.
    Absent,
}

impl State {
    /// As a table shows it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Verified => "verified",
            Self::Differs => "differs",
            Self::Missing => "missing",
            Self::Unlisted => "not in SHA256SUMS",
            Self::Absent => "-",
        }
    }
}

/// One file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Its name below the folder.
    pub name: String,
    /// How it is.
    pub state: State,
    /// Its SHA-256 in hexadecimal, where it is there.
    pub sha256: Option<String>,
}

/// Writes a file, onto the disk.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

/// A folder of our own in the same file system, so that renaming works; goes when dropped.
#[derive(Debug)]
pub struct Stage(PathBuf);

/// What names of such folders begin with; the process's id follows.
pub(super) const STAGE: &str = ".bootflip-";

impl Stage {
    /// Makes one in a folder of published files; makes that too, where it is missing.
    ///
    /// # Errors
    /// The disk's.
    pub fn beneath(root: &Path) -> Result<Self, FolderError> {
        fs::create_dir_all(root).map_err(failed("make", root))?;
        let stage = root.join(format!("{STAGE}{}", std::process::id()));
        let _ = fs::remove_dir_all(&stage); // of a process that had this id before
        fs::create_dir(&stage).map_err(failed("write", &stage))?;
        Ok(Self(stage))
    }

    /// A place in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what stays is found by its name
    }
}

/// The manifest of a folder as it is written.
#[derive(Debug)]
pub struct Written {
    text: String,
    manifest: Manifest,
}

impl Written {
    /// Reads it; an empty one where there is none.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub fn read(root: &Path) -> Result<Self, FolderError> {
        let path = root.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        match Manifest::parse(&text) {
            Ok(manifest) => Ok(Self { text, manifest }),
            Err(source) => Err(FolderError::Manifest { path, source }),
        }
    }

    /// The names in it: behind the digits, a blank, and a blank or `*`.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(' ')?.1.get(1..))
    }

    /// How the file of this name stands to it. Reads the file whole.
    ///
    /// # Errors
    /// The disk's.
    pub fn standing(&self, root: &Path, name: &str) -> Result<Standing, FolderError> {
        let expected = RelativePath::parse(name).and_then(|name| self.manifest.digest(&name).copied());
        let path = root.join(name);
        let digest = match File::open(&path).and_then(|file| digest(&file)) {
            Ok(digest) => Some(digest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let state = match (expected, digest) {
            (Some(expected), Some(digest)) if expected == digest => State::Verified,
            (Some(_), Some(_)) => State::Differs,
            (Some(_), None) => State::Missing,
            (None, Some(_)) => State::Unlisted,
            (None, None) => State::Absent,
        };
        Ok(Standing { name: name.to_owned(), state, sha256: digest.map(|digest| hex(&digest)) })
    }

    /// The same with these sums in the place of what it says of their names.
    fn with(&self, sums: &[(&str, &str)], without: &[&str]) -> String {
        let is_new = |line: &str| {
            let name = line.split_once(' ').and_then(|(_, rest)| rest.get(1..));
            let gone = |name: &str| sums.iter().any(|(new, _)| *new == name) || without.contains(&name);
            name.is_some_and(|name| gone(name.trim_start_matches("./")))
        };
        let mut text = String::new();
        for line in self.text.lines().filter(|line| line.starts_with('#') || !is_new(line)) {
            let _ = writeln!(text, "{line}"); // a String takes everything
        }
        for (name, digest) in sums {
            let _ = writeln!(text, "{digest}  {name}");
        }
        text
    }

    /// Puts these files of a stage into the folder, each whole or not at all, and then their sums into the manifest.
    ///
    /// # Errors
    /// The disk's; what was not reached is as before.
    pub fn publish(&self, root: &Path, stage: &Stage, files: &[Staged]) -> Result<(), FolderError> {
        for Staged { name, path, .. } in files {
            let target = root.join(name);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder).map_err(failed("make", folder))?;
            }
            fs::rename(path, &target).map_err(failed("write", &target))?;
        }
        let sums: Vec<(&str, &str)> =
            files.iter().map(|staged| (staged.name.as_str(), staged.sha256.as_str())).collect();
        self.replace(root, stage, &self.with(&sums, &[]))
    }

    /// Takes names out of the manifest; then nothing is said of their files.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(&self, root: &Path, stage: &Stage, names: &[&str]) -> Result<(), FolderError> {
        self.replace(root, stage, &self.with(&[], names))
    }

    #[expect(clippy::unused_self, reason = "what is written in its place")]
    fn replace(&self, root: &Path, stage: &Stage, text: &str) -> Result<(), FolderError> {
        let written = stage.path(MANIFEST);
        write(&written, text.as_bytes())?;
        let target = root.join(MANIFEST);
        fs::rename(&written, &target).map_err(failed("write", &target))?;
        let folder = File::open(root).and_then(|folder| folder.sync_all());
        folder.map_err(failed("write", root))
    }
}

/// A file that is to be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Staged {
    /// Its name below the folder.
    pub name: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

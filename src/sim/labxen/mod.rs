//! The lab on a real Xen: a Debian dom0 under Xen in QEMU, and a simulated pool whose domains are that Xen's.
//!
//! The pool's record decides what `xl create` is given: PV by the host's own pygrub, or HVM from the network by the
//! firmware's own iPXE. Invariant: as in [`lab`](super::lab), nothing is touched but a namespace without a name, files
//! beneath the lab's own folder, and processes that die with it. Where things are: `guest` and `words` are pure, what xl
//! is given and what it says; `dom0` runs Xen, `body` does what the pool asks, `scene` and `run` play it all.
//! What it boots is made by `tests/labxen/prepare.sh`; `docs/lab.md` tells how.

pub mod body;
pub mod dom0;
pub mod guest;
pub mod layout;
pub mod run;
pub mod scene;
pub mod words;

use std::path::{Path, PathBuf};

pub use body::Body;
pub use dom0::DomZero;
pub use scene::Scene;

use super::lab::{Installer, Lab, LabError, network::NetworkError};

/// A folder that `tests/labxen/prepare.sh` filled.
#[derive(Debug, Clone)]
pub struct LabXen {
    folder: PathBuf,
    lab: Lab,
}

/// Why the lab on a real Xen cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum XenLabError {
    /// A file or program is missing.
    #[error("the lab lacks {path}; run tests/labxen/prepare.sh {folder} target/lab")]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// The lab's folder.
        folder: PathBuf,
    },
    /// Of the part that it shares with the lab.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// A program could not be run.
    #[error("cannot run {program}")]
    Run {
        /// Which.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// QEMU went, or dom0 took too long.
    #[error("dom0 {what}; its console ends with:\n{tail}")]
    DomZero {
        /// Such as `was not ready after 900 s`.
        what: String,
        /// The last lines.
        tail: String,
    },
    /// A command failed in dom0.
    #[error("`{command}` failed in dom0: {complaint}")]
    Refused {
        /// The command.
        command: String,
        /// What it said.
        complaint: String,
    },
}

impl From<NetworkError> for XenLabError {
    fn from(error: NetworkError) -> Self {
        Self::Lab(error.into())
    }
}

impl LabXen {
    /// The lab in this folder. Errors: [`XenLabError::Missing`] names the first thing that the script would bring.
    pub fn open(folder: &Path) -> Result<Self, XenLabError> {
        let missing = |path: PathBuf| XenLabError::Missing { path, folder: folder.to_owned() };
        let full = folder.canonicalize().map_err(|_| missing(folder.to_owned()))?;
        let lab = Lab::open(&full.join("lab"), Installer::Mini)?;
        let this = Self { folder: full, lab };
        let mut files =
            ["boot/xen", "boot/vmlinux", "boot/initrd.img", "dom0.img", "before.img", "ssh/known_hosts"]
                .map(|path| this.folder.join(path))
                .into_iter();
        match files.find(|path| !path.exists()) {
            Some(path) => Err(missing(path)),
            None => Ok(this),
        }
    }

    /// The files to serve.
    pub fn www(&self) -> PathBuf {
        self.lab.www()
    }

    /// The disk of a guest that has a system and runs as PV.
    pub fn before(&self) -> PathBuf {
        self.folder.join("before.img")
    }
}

//! The lab: guests that are real. A VM.start of the simulated pool boots a QEMU; an HVM start runs SeaBIOS and
//! iPXE, a PV start runs the real pygrub on the disk and boots what it printed.
//!
//! Invariant: the lab touches only what it made: a network namespace without a name, which the kernel takes away
//! with the last process in it; files beneath its own folder; processes that it started, known by their id, which
//! die with it. `qemu` and `pygrub`'s parser are pure; the other parts touch the world.
//! What the guests run is made by `tests/lab/prepare.sh`; `docs/lab.md` tells how.

pub mod body;
pub mod disk;
pub mod faults;
pub mod fstab;
pub mod installer;
pub mod layout;
pub mod machine;
pub mod network;
pub mod pygrub;
pub mod qemu;
pub mod run;
pub mod scene;

use std::path::{Path, PathBuf};

pub use body::Body;
pub use installer::Installer;
pub use machine::{Ended, Machine, Running};
pub use network::Network;
pub use scene::Scene;

/// A folder that `prepare.sh` filled, and what of this computer the lab uses.
#[derive(Debug, Clone)]
pub struct Lab {
    folder: PathBuf,
    installer: Installer,
    accelerator: qemu::Accelerator,
}

/// Why the lab cannot do something.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file or program of the lab is missing.
    #[error("the lab lacks {path}; run {script} {folder}")]
    Missing {
        /// What was looked for.
        path: PathBuf,
        /// What would bring it.
        script: &'static str,
        /// The lab's folder.
        folder: PathBuf,
    },
    /// The network namespace or something in it could not be made.
    #[error(transparent)]
    Network(#[from] network::NetworkError),
    /// A disk image could not be made or read.
    #[error("cannot {operation} the disk image {path}")]
    Disk {
        /// `create` or `read`.
        operation: &'static str,
        /// The image.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The fstab of an installed system could not be read.
    #[error(transparent)]
    Fstab(#[from] fstab::FstabError),
    /// pygrub found nothing to boot, or did not run.
    #[error(transparent)]
    Pygrub(#[from] pygrub::PygrubError),
    /// The simulated pool could not be served.
    #[error("cannot serve the simulated pool")]
    Pool(#[from] crate::sim::server::SimError),
    /// QEMU could not be started.
    #[error("cannot start QEMU for {name}")]
    Spawn {
        /// The VM.
        name: String,
        /// Why.
        source: std::io::Error,
    },
}

/// Where the programs that QEMU, dnsmasq and the shell scripts need are looked for.
const PROGRAM_FOLDERS: [&str; 4] = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"];
/// What must be installed.
const PROGRAMS: [&str; 4] = ["qemu-system-x86_64", "dnsmasq", "ip", "setpriv"];

impl Lab {
    /// The lab in this folder, for one installer. Errors: [`LabError::Missing`] names the first thing that
    /// `prepare.sh` would bring.
    pub fn open(folder: &Path, installer: Installer) -> Result<Self, LabError> {
        let script = installer.prepared_by();
        let missing = |path: PathBuf| LabError::Missing { path, script, folder: folder.to_owned() };
        for program in PROGRAMS {
            if !PROGRAM_FOLDERS.iter().any(|folder| Path::new(folder).join(program).exists()) {
                return Err(missing(PathBuf::from(program)));
            }
        }
        let folder = folder.canonicalize().map_err(|_| missing(folder.to_owned()))?;
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let lab = Self { folder, installer, accelerator: qemu::Accelerator::for_processor(&cpuinfo) };
        let files = installer.files().iter().map(|file| lab.folder.join(file));
        match files.chain([lab.pygrub()]).find(|path| !path.exists()) {
            Some(path) => Err(missing(path)),
            None => Ok(lab),
        }
    }

    /// The files to serve: kernel and initrds.
    pub fn www(&self) -> PathBuf {
        self.folder.join("www")
    }

    /// What is installed.
    pub const fn installer(&self) -> Installer {
        self.installer
    }

    /// The package mirror's files, as its HTTP root.
    fn mirror(&self) -> PathBuf {
        self.folder.join("mirror")
    }

    /// What the package mirror is signed with, base64; empty where there is none.
    fn mirror_key(&self) -> String {
        std::fs::read_to_string(self.folder.join("key")).unwrap_or_default().trim().to_owned()
    }

    /// What QEMU computes with.
    pub const fn accelerator(&self) -> qemu::Accelerator {
        self.accelerator
    }

    fn pygrub(&self) -> PathBuf {
        self.folder.join("xen/bin/pygrub")
    }

    fn xen_libraries(&self) -> PathBuf {
        self.folder.join("xen/lib/x86_64-linux-gnu")
    }
}

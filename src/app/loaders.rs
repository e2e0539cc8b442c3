//! Boot loaders: found in the distribution's packages, copied into `tftp.root`, and told apart by checksum. A shell.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use sha2::{Digest as _, Sha256};

use super::publish::{FolderError, Stage, Staged, Standing, State, Written, failed, write};
use crate::secret::hex;

/// A loader that distributions package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loader {
    /// Its file name, in packages and in `tftp.root`.
    pub name: &'static str,
    /// Debian's package.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
    /// Installed when nothing is named.
    pub usual: bool,
}

const fn loader(name: &'static str, package: &'static str, usual: bool, purpose: &'static str) -> Loader {
    Loader { name, package, purpose, usual }
}

/// What can be installed by name.
pub const LOADERS: [Loader; 10] = [
    loader("undionly.kpxe", "ipxe", true, "iPXE over the network card's own driver (BIOS)"),
    loader("undionly.kkpxe", "ipxe", false, "the same; keeps the driver loaded"),
    loader("ipxe.pxe", "ipxe", false, "iPXE with its own drivers (BIOS; not in Debian's package)"),
    loader("ipxe.efi", "ipxe", false, "iPXE with its own drivers (UEFI)"),
    loader("snponly.efi", "ipxe", true, "iPXE over the firmware's driver (UEFI)"),
    loader("pxelinux.0", "pxelinux", true, "PXELINUX (BIOS)"),
    loader("lpxelinux.0", "pxelinux", true, "PXELINUX that fetches by HTTP too (BIOS)"),
    loader("ldlinux.c32", "syslinux-common", true, "needed by PXELINUX"),
    loader("libcom32.c32", "syslinux-common", false, "needed by PXELINUX's menus"),
    loader("menu.c32", "syslinux-common", false, "PXELINUX's menu"),
];

/// Where packages put them: Debian and Ubuntu, Fedora and its kin, Arch.
const FOLDERS: [&str; 6] = [
    "usr/lib/ipxe",
    "usr/lib/PXELINUX",
    "usr/lib/syslinux/modules/bios",
    "usr/share/ipxe",
    "usr/share/syslinux",
    "usr/lib/syslinux/bios",
];

/// Why loaders are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum LoadersError {
    /// No loader of ours.
    #[error("there is no loader `{0}`; `bootflip loaders list` names those that there are")]
    Unknown(String),
    /// The folder, or its manifest.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// No package brought it.
    #[error(
        "`{loader}` is in no folder of packages; install the package {package} (Debian's name), or name a folder \
         with --from{hint}"
    )]
    Absent {
        /// Which.
        loader: &'static str,
        /// Debian's package.
        package: &'static str,
        /// What fetching came to.
        hint: String,
    },
}

/// What the manifest names, and the loaders that lie beside it unnamed; by name.
pub fn verify(root: &Path) -> Result<Vec<Standing>, LoadersError> {
    let manifest = Written::read(root)?;
    let mut names: Vec<&str> = manifest.names().collect();
    names.extend(LOADERS.iter().map(|loader| loader.name));
    names.sort_unstable();
    names.dedup();
    let standings = names.into_iter().map(|name| manifest.standing(root, name));
    let all: Vec<Standing> = standings.collect::<Result<_, _>>()?;
    Ok(all.into_iter().filter(|known| known.state != State::Absent).collect())
}

/// Every loader, with how it stands in the folder and where a package has it.
pub fn list(root: &Path, system: &Path) -> Result<Vec<(Loader, Standing, Option<PathBuf>)>, LoadersError> {
    let manifest = Written::read(root)?;
    let found = |loader: Loader| {
        let standing = manifest.standing(root, loader.name)?;
        Ok((loader, standing, packaged(system, loader.name)))
    };
    LOADERS.into_iter().map(found).collect()
}

/// Where loaders are taken from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// The packages of the system at this path (`/`), or, where they lack something and `fetch`, of Debian's archive.
    Packages {
        /// Where the system is.
        system: PathBuf,
        /// Ask the archive too.
        fetch: bool,
    },
    /// This folder.
    Folder(PathBuf),
}

/// Copies loaders into the folder and notes their checksums. Empty `names`: the usual ones. Returns the names with
/// whether their bytes are new here.
pub fn install(
    root: &Path,
    names: &[String],
    origin: &Origin,
) -> Result<Vec<(&'static str, bool)>, LoadersError> {
    let wanted = wanted(names)?;
    let manifest = Written::read(root)?;
    let stage = Stage::beneath(root)?;
    let (mut staged, mut news) = (Vec::new(), Vec::new());
    for loader in wanted {
        let found = found(loader, origin, &stage.path(""))?;
        let bytes = fs::read(&found).map_err(failed("read", &found))?;
        let sha256 = hex(&Sha256::digest(&bytes));
        let new = manifest.standing(root, loader.name)?.sha256.as_ref() != Some(&sha256);
        let path = stage.path(&format!("{}.new", loader.name));
        write(&path, &bytes)?;
        staged.push(Staged { name: loader.name.to_owned(), path, sha256 });
        news.push((loader.name, new));
    }
    manifest.publish(root, &stage, &staged)?;
    Ok(news)
}

fn wanted(names: &[String]) -> Result<Vec<Loader>, LoadersError> {
    if names.is_empty() {
        return Ok(LOADERS.into_iter().filter(|loader| loader.usual).collect());
    }
    let known = |name: &String| {
        let known = LOADERS.into_iter().find(|loader| loader.name == name);
        known.ok_or_else(|| LoadersError::Unknown(name.clone()))
    };
    names.iter().map(known).collect()
}

fn found(loader: Loader, origin: &Origin, work: &Path) -> Result<PathBuf, LoadersError> {
    let absent = |hint: String| LoadersError::Absent { loader: loader.name, package: loader.package, hint };
    match origin {
        Origin::Folder(folder) => {
            let path = folder.join(loader.name);
            if path.is_file() { Ok(path) } else { Err(absent(String::new())) }
        }
        Origin::Packages { system, fetch } => {
            if let Some(path) = packaged(system, loader.name) {
                return Ok(path);
            }
            if !*fetch {
                return Err(absent(String::new()));
            }
            let unpacked = work.join(loader.package);
            if !unpacked.exists() {
                download(loader.package, work, &unpacked)
                    .map_err(|why| absent(format!("; the archive gave nothing: {why}")))?;
            }
            packaged(&unpacked, loader.name).ok_or_else(|| absent("; the archive's package lacks it".into()))
        }
    }
}

fn packaged(system: &Path, name: &str) -> Option<PathBuf> {
    FOLDERS.iter().map(|folder| system.join(folder).join(name)).find(|path| path.is_file())
}

/// Unpacks a package of Debian's archive without installing it. apt checks the archive's signature.
pub(super) fn download(package: &str, work: &Path, unpacked: &Path) -> Result<(), String> {
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(work)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("cannot run {program}: {error}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        let last = complaint.lines().last().unwrap_or("no word why").to_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{program}: {last}")) }
    };
    // As root apt would hand the download to a user of its own, who may not write here.
    let options = ["-q", "-o", "APT::Sandbox::User=root", "download", package].map(std::ffi::OsStr::new);
    run("apt-get", &options)?;
    let files = fs::read_dir(work).map_err(|error| error.to_string())?;
    let prefix = format!("{package}_");
    let is_ours = |name: &str| name.starts_with(&prefix) && name.ends_with(".deb");
    let archive = files
        .filter_map(Result::ok)
        .find(|file| file.file_name().to_str().is_some_and(is_ours))
        .ok_or("apt-get downloaded nothing")?;
    run("dpkg-deb", &["-x".as_ref(), archive.path().as_ref(), unpacked.as_ref()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::manifest::MANIFEST;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        /// A system with two packages, and an empty folder.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            for (path, text) in [
                ("system/usr/lib/ipxe/undionly.kpxe", "undi"),
                ("system/usr/lib/ipxe/snponly.efi", "snp"),
                ("system/usr/lib/PXELINUX/pxelinux.0", "pxelinux"),
                ("system/usr/lib/PXELINUX/lpxelinux.0", "lpxelinux"),
                ("system/usr/share/syslinux/ldlinux.c32", "ldlinux"),
            ] {
                let path = folder.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, text).unwrap();
            }
            fs::create_dir(folder.path().join("root")).unwrap();
            Self { folder }
        }

        fn root(&self) -> PathBuf {
            self.folder.path().join("root")
        }

        fn system(&self) -> PathBuf {
            self.folder.path().join("system")
        }

        fn install(&self, names: &[&str]) -> Result<Vec<(&'static str, bool)>, String> {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let origin = Origin::Packages { system: self.system(), fetch: false };
            install(&self.root(), &names, &origin).map_err(|error| error.to_string())
        }

        fn states(&self) -> Vec<(String, State)> {
            let standings = verify(&self.root()).unwrap();
            standings.into_iter().map(|standing| (standing.name, standing.state)).collect()
        }
    }

    #[test]
    fn the_usual_loaders_come_from_the_packages_and_sha256sum_agrees() {
        let place = Place::new();
        let usual = ["undionly.kpxe", "snponly.efi", "pxelinux.0", "lpxelinux.0", "ldlinux.c32"];
        assert_eq!(place.install(&[]).unwrap(), usual.map(|name| (name, true)));
        assert_eq!(place.install(&[]).unwrap(), usual.map(|name| (name, false)), "again: nothing is new");
        assert!(place.states().iter().all(|(_, state)| *state == State::Verified));
        let mut sha256sum = Command::new("sha256sum");
        let checked =
            sha256sum.args(["--strict", "-c", MANIFEST]).current_dir(place.root()).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        let mut files: Vec<_> =
            fs::read_dir(place.root()).unwrap().map(|file| file.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files.len(), 6, "nothing is left over: {files:?}");
    }

    #[test]
    fn verify_tells_what_differs_what_is_missing_and_what_is_not_listed() {
        let place = Place::new();
        place.install(&["undionly.kpxe", "pxelinux.0"]).unwrap();
        fs::write(place.root().join("undionly.kpxe"), "evil").unwrap();
        fs::remove_file(place.root().join("pxelinux.0")).unwrap();
        fs::write(place.root().join("ipxe.efi"), "by hand").unwrap();
        let expected = [
            ("ipxe.efi", State::Unlisted),
            ("pxelinux.0", State::Missing),
            ("undionly.kpxe", State::Differs),
        ];
        assert_eq!(place.states(), expected.map(|(name, state)| (name.to_owned(), state)));
        place.install(&["undionly.kpxe", "pxelinux.0"]).unwrap();
        assert_eq!(fs::read_to_string(place.root().join("undionly.kpxe")).unwrap(), "undi");
    }

    #[test]
    fn lines_of_others_stay_in_the_manifest() {
        let place = Place::new();
        let other = format!("{}  kernels/linux\n", "0a".repeat(32));
        let old = format!("# mine\n{other}{}  undionly.kpxe\n", "00".repeat(32));
        fs::write(place.root().join(MANIFEST), old).unwrap();
        place.install(&["undionly.kpxe"]).unwrap();
        let text = fs::read_to_string(place.root().join(MANIFEST)).unwrap();
        let sum = hex(&Sha256::digest("undi"));
        assert_eq!(text, format!("# mine\n{other}{sum}  undionly.kpxe\n"));
    }

    #[test]
    fn what_cannot_be_had_changes_nothing() {
        let place = Place::new();
        for (names, expected) in [
            (&["undionly.kpxe", "menu.c32"][..], "`menu.c32` is in no folder of packages"),
            (&["nosuch"][..], "there is no loader `nosuch`"),
        ] {
            assert!(place.install(names).unwrap_err().contains(expected), "{names:?}");
        }
        assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0);
        fs::write(place.root().join(MANIFEST), "nonsense\n").unwrap();
        assert!(place.install(&["undionly.kpxe"]).unwrap_err().contains("SHA256SUMS cannot be read"));
        assert!(!place.root().join("undionly.kpxe").exists());
    }

    #[test]
    fn a_folder_of_ones_own_will_do() {
        let place = Place::new();
        let from = place.system().join("usr/lib/ipxe");
        let names = ["undionly.kpxe".to_owned()];
        install(&place.root(), &names, &Origin::Folder(from)).unwrap();
        let listed = list(&place.root(), &place.system()).unwrap();
        let (_, standing, found) = listed.iter().find(|(loader, ..)| loader.name == "undionly.kpxe").unwrap();
        assert_eq!(standing.state, State::Verified);
        assert_eq!(found.as_deref(), Some(place.system().join("usr/lib/ipxe/undionly.kpxe").as_path()));
    }
}

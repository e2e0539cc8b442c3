//! Boot loaders: found in the distribution's packages, copied into `tftp.root`, and told apart by checksum. A shell.
//!
//! Invariant: a file is replaced whole or not at all, and what the manifest says of it is written last; a name in
//! `SHA256SUMS` that this program does not know keeps its line.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::boot::{
    manifest::{BadLine, MANIFEST, Manifest},
    root::RelativePath,
};

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

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LoadersError {
    let path = path.to_owned();
    move |source| LoadersError::File { operation, path, source }
}

/// How a loader in the folder stands to its manifest.
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

/// What the manifest names, and the loaders that lie beside it unnamed; by name.
pub fn verify(root: &Path) -> Result<Vec<Standing>, LoadersError> {
    let manifest = Written::read(root)?;
    let mut names: Vec<&str> = manifest.names().collect();
    names.extend(LOADERS.iter().map(|loader| loader.name));
    names.sort_unstable();
    names.dedup();
    let standings = names.into_iter().map(|name| manifest.standing(root, name));
    standings.filter(|known| known.as_ref().map_or(true, |known| known.state != State::Absent)).collect()
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
    let fetched = tempfile_in(root)?;
    let mut staged = Vec::new();
    for loader in wanted {
        let path = found(loader, origin, &fetched.0)?;
        let bytes = fs::read(&path).map_err(failed("read", &path))?;
        let digest = hexadecimal(&Sha256::digest(&bytes));
        let new = manifest.standing(root, loader.name)?.sha256.as_ref() != Some(&digest);
        let stage = fetched.0.join(format!("{}.new", loader.name));
        write(&stage, &bytes)?;
        staged.push((loader.name, stage, digest, new));
    }
    for (name, stage, _, _) in &staged {
        let target = root.join(name);
        fs::rename(stage, &target).map_err(failed("write", &target))?;
    }
    let sums = staged.iter().map(|(name, _, digest, _)| (*name, digest.as_str()));
    let stage = fetched.0.join(MANIFEST);
    write(&stage, manifest.with(sums).as_bytes())?;
    let target = root.join(MANIFEST);
    fs::rename(&stage, &target).map_err(failed("write", &target))?;
    let folder = File::open(root).and_then(|folder| folder.sync_all());
    folder.map_err(failed("write", root))?;
    Ok(staged.into_iter().map(|(name, _, _, new)| (name, new)).collect())
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
fn download(package: &str, work: &Path, unpacked: &Path) -> Result<(), String> {
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

fn write(path: &Path, bytes: &[u8]) -> Result<(), LoadersError> {
    let written = File::create(path).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(failed("write", path))
}

/// A folder of our own in the same file system, so that renaming works; goes when dropped.
struct Work(PathBuf);

fn tempfile_in(root: &Path) -> Result<Work, LoadersError> {
    let work = root.join(format!(".loaders-{}", std::process::id()));
    fs::create_dir(&work).map_err(failed("write", &work))?;
    Ok(Work(work))
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // what stays is found by its name
    }
}

/// The manifest as it is written.
struct Written {
    text: String,
    manifest: Manifest,
}

impl Written {
    fn read(root: &Path) -> Result<Self, LoadersError> {
        let path = root.join(MANIFEST);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed("read", &path)(error)),
        };
        match Manifest::parse(&text) {
            Ok(manifest) => Ok(Self { text, manifest }),
            Err(source) => Err(LoadersError::Manifest { path, source }),
        }
    }

    /// The names in it: behind the digits, a blank, and a blank or `*`.
    fn names(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.filter_map(|line| line.split_once(' ')?.1.get(1..))
    }

    fn standing(&self, root: &Path, name: &str) -> Result<Standing, LoadersError> {
        let expected = RelativePath::parse(name).and_then(|name| self.manifest.digest(&name).copied());
        let path = root.join(name);
        let digest = match digest_of(&path) {
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
        Ok(Standing { name: name.to_owned(), state, sha256: digest.map(|digest| hexadecimal(&digest)) })
    }

    /// The same with these sums in the place of what it says of their names.
    fn with<'a>(&self, sums: impl Iterator<Item = (&'a str, &'a str)>) -> String {
        let sums: Vec<(&str, &str)> = sums.collect();
        let is_new = |line: &str| {
            let name = line.split_once(' ').and_then(|(_, rest)| rest.get(1..));
            name.is_some_and(|name| sums.iter().any(|(new, _)| *new == name.trim_start_matches("./")))
        };
        let mut text = String::new();
        for line in self.text.lines().filter(|line| line.starts_with('#') || !is_new(line)) {
            let _ = writeln!(text, "{line}"); // a String takes everything
        }
        for (name, digest) in &sums {
            let _ = writeln!(text, "{digest}  {name}");
        }
        text
    }
}

fn digest_of(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            length => hasher.update(piece.get(..length).unwrap_or_default()),
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // a String takes everything
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let sum = hexadecimal(&Sha256::digest("undi"));
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

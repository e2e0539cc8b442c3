//! Images: kernels, initrds and ISOs of installers below `http.root`, each with its line in `SHA256SUMS`. A shell.
//!
//! Invariant: what does not have the checksum that its mirror, its pin or its manifest says is never put into the folder,
//! and never given out from it (`boot::vouch`). A file is there whole or not at all.

pub mod catalogue;
mod fetch;
mod unpack;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use serde::Serialize;

pub use self::fetch::{Download, Fetch, Watch};
use self::{
    catalogue::{Image, is_sha256},
    unpack::Container,
};
use super::{
    loaders::download,
    publish::{FolderError, STAGE, Stage, Staged, Standing, State, Written, failed},
};
use crate::{boot::vouch::digest, secret::hex};

/// Downloads that are not whole yet, below `http.root`.
const PARTS: &str = ".bootflip-parts";

/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The folder, or its manifest.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// No image of this name.
    #[error(
        "there is no image `{0}`; `bootflip image list` names those that there are, and `image add NAME PATH --file FILE=PATTERN` makes another"
    )]
    Unknown(String),
    /// Not a name of a folder or file.
    #[error("`{0}` is no name of a file or folder below http.root")]
    BadName(String),
    /// It holds no files that we can take out.
    #[error("{path} is no folder, ISO, tar, tar.gz or Debian package; unpack it, and add the folder")]
    NoContainer {
        /// Which.
        path: PathBuf,
    },
    /// It is damaged.
    #[error("{path} cannot be unpacked: {problem}")]
    Broken {
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// It lacks files of the image.
    #[error("{path} has no {files}; say where they are with --file FILE=PATTERN")]
    Incomplete {
        /// Which.
        path: PathBuf,
        /// What is missing.
        files: String,
    },
    /// Other bytes than the checksum says.
    #[error("{file} has SHA-256 {found}, and {said} says {expected}; it was not taken")]
    Differs {
        /// Which.
        file: String,
        /// Who says so.
        said: String,
        /// Its SHA-256.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A pin that names no file of the image.
    #[error("--sha256 names {0}, which is no file of this image")]
    UnknownPin(String),
    /// No checksum.
    #[error(
        "{sums} has no checksum of {file}; pin it with --sha256 {file}=HEX, or name another mirror with --mirror"
    )]
    NoSum {
        /// Which file.
        file: String,
        /// The document.
        sums: String,
    },
    /// A download failed.
    #[error("{url}: {problem}")]
    Fetch {
        /// What was asked for.
        url: String,
        /// Why.
        problem: String,
    },
    /// Debian's archive has no such package, or no way to it.
    #[error("the package {package} could not be had: {problem}")]
    Package {
        /// Which.
        package: String,
        /// Why.
        problem: String,
    },
    /// No package is known.
    #[error("no package of `{0}` is known; fetch it from its mirror")]
    NoPackage(String),
}

/// SHA-256s that a person vouches for, in lower-case hexadecimal.
#[derive(Debug, Clone, Default)]
pub struct Pins {
    /// By file of the image.
    pub files: BTreeMap<String, String>,
    /// Of the ISO, tar or package itself.
    pub container: Option<String>,
}

impl Pins {
    /// Reads `HEX` and `FILE=HEX`; `Err`: which of them is neither.
    ///
    /// # Errors
    /// The word that is no pin.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        let mut pins = Self::default();
        for word in words {
            let (file, sum) = word.split_once('=').map_or((None, word.as_str()), |(f, s)| (Some(f), s));
            if !is_sha256(sum) {
                return Err(word.clone());
            }
            let sum = sum.to_ascii_lowercase();
            match file {
                Some(file) => drop(pins.files.insert(file.to_owned(), sum)),
                None => pins.container = Some(sum),
            }
        }
        Ok(pins)
    }

    fn belong_to(&self, image: &Image) -> Result<(), ImageError> {
        let stranger = self.files.keys().find(|file| !image.files.contains_key(*file));
        stranger.map_or(Ok(()), |file| Err(ImageError::UnknownPin(file.clone())))
    }
}

/// A file of an image, as it was put into the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Published {
    /// Its name below `http.root`.
    pub name: String,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// These bytes were not there before.
    pub new: bool,
}

/// An image as the folder has it.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its folder below `http.root`.
    pub folder: String,
    /// The images of the list that go there.
    pub images: Vec<String>,
    /// Its files.
    pub files: Vec<Standing>,
    /// Bytes of them.
    pub bytes: u64,
    /// The profiles of the configuration that boot from it.
    pub profiles: Vec<String>,
}

/// What `gc` found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// What.
    pub path: PathBuf,
    /// Why.
    pub why: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// The folder of images.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
}

impl Images {
    /// Below `http.root`.
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Takes an image's files out of an ISO, a tar, a Debian package or a folder.
    ///
    /// # Errors
    /// What was not taken, and why; the folder is as before.
    pub fn add(
        &self,
        image: &Image,
        folder: &str,
        from: &Path,
        pins: &Pins,
    ) -> Result<Vec<Published>, ImageError> {
        pins.belong_to(image)?;
        if let Some(expected) = &pins.container {
            same(&from.display().to_string(), &sum_of(from)?, expected, "--sha256")?;
        }
        let stage = Stage::beneath(&self.root)?;
        self.take(image, folder, &Container::at(from)?, pins, &stage)
    }

    /// The same from the image's Debian package, which apt fetches and vouches for.
    ///
    /// # Errors
    /// As [`Images::add`].
    pub fn add_package(
        &self,
        (name, image): (&str, &Image),
        folder: &str,
        pins: &Pins,
    ) -> Result<Vec<Published>, ImageError> {
        let package = image.package.as_deref().ok_or_else(|| ImageError::NoPackage(name.to_owned()))?;
        let stage = Stage::beneath(&self.root)?;
        let unpacked = stage.path("package");
        download(package, &stage.path(""), &unpacked)
            .map_err(|problem| ImageError::Package { package: package.to_owned(), problem })?;
        self.take(image, folder, &Container::at(&unpacked)?, pins, &stage)
    }

    fn take(
        &self,
        image: &Image,
        folder: &str,
        container: &Container,
        pins: &Pins,
        stage: &Stage,
    ) -> Result<Vec<Published>, ImageError> {
        self.publish(stage, &unpacked(image, folder, container, pins, stage)?)
    }

    fn publish(&self, stage: &Stage, staged: &[Staged]) -> Result<Vec<Published>, ImageError> {
        let manifest = Written::read(&self.root)?;
        let mut published = Vec::new();
        for Staged { name, sha256, .. } in staged {
            let before = manifest.standing(&self.root, name)?;
            let new = before.sha256.as_ref() != Some(sha256) || before.state != State::Verified;
            published.push(Published { name: name.clone(), sha256: sha256.clone(), new });
        }
        manifest.publish(&self.root, stage, staged)?;
        Ok(published)
    }

    /// The images that are there, by folder. Reads every file whole.
    ///
    /// # Errors
    /// The folder's.
    pub fn list(&self, profiles: &BTreeMap<String, Vec<String>>) -> Result<Vec<Listed>, ImageError> {
        let mut found: BTreeMap<String, Listed> = BTreeMap::new();
        for standing in self.verify(&[])? {
            let Some((folder, _)) = standing.name.rsplit_once('/') else { continue };
            let listed = found.entry(folder.to_owned()).or_insert_with(|| Listed {
                folder: folder.to_owned(),
                images: catalogue::images()
                    .iter()
                    .filter(|(name, image)| image.profile == folder || *name == folder)
                    .map(|(name, _)| name.clone())
                    .collect(),
                files: Vec::new(),
                bytes: 0,
                profiles: using(profiles, folder),
            });
            listed.bytes += fs::metadata(self.root.join(&standing.name)).map_or(0, |about| about.len());
            listed.files.push(standing);
        }
        Ok(found.into_values().collect())
    }

    /// How the files of these folders stand to the manifest; of all folders where none is named.
    ///
    /// # Errors
    /// The folder's.
    pub fn verify(&self, folders: &[String]) -> Result<Vec<Standing>, ImageError> {
        let manifest = Written::read(&self.root)?;
        let wanted = |name: &&str| {
            let folder = name.rsplit_once('/').map(|(folder, _)| folder);
            folders.is_empty() || folder.is_some_and(|folder| folders.iter().any(|one| one == folder))
        };
        let mut names: Vec<&str> = manifest.names().filter(wanted).collect();
        names.sort_unstable();
        names.into_iter().map(|name| Ok(manifest.standing(&self.root, name)?)).collect()
    }

    /// What nobody needs: what killed programs left, and names whose files are gone; with `unused` the images that no
    /// profile boots from, too. `remove`: and removes it.
    ///
    /// # Errors
    /// The folder's.
    pub fn gc(
        &self,
        profiles: &BTreeMap<String, Vec<String>>,
        unused: bool,
        remove: bool,
    ) -> Result<Vec<Garbage>, ImageError> {
        let mut garbage = self.leftovers()?;
        let manifest = Written::read(&self.root)?;
        let mut names = Vec::new();
        for name in manifest.names() {
            let path = self.root.join(name);
            let folder = name.rsplit_once('/').map(|(folder, _)| folder);
            match fs::metadata(&path) {
                Err(_) => {
                    names.push(name);
                    garbage.push(Garbage { path, why: "in SHA256SUMS, and not there", bytes: 0 });
                }
                Ok(about) if unused && folder.is_some_and(|folder| using(profiles, folder).is_empty()) => {
                    names.push(name);
                    garbage.push(Garbage { path, why: "no profile boots from it", bytes: about.len() });
                }
                Ok(_) => {}
            }
        }
        if remove {
            for Garbage { path, .. } in garbage.iter().filter(|garbage| garbage.path.exists()) {
                let done = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
                done.map_err(failed("remove", path))?;
                if let Some(folder) = path.parent().filter(|folder| *folder != self.root) {
                    let _ = fs::remove_dir(folder); // where it is empty now
                }
            }
            if !names.is_empty() {
                manifest.forget(&self.root, &Stage::beneath(&self.root)?, &names)?;
            }
        }
        Ok(garbage)
    }

    /// Stages of processes that are gone, and downloads that were not finished.
    fn leftovers(&self) -> Result<Vec<Garbage>, ImageError> {
        let mut found = Vec::new();
        let entries = fs::read_dir(&self.root).map_err(failed("read", &self.root))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name();
            let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(STAGE)) else { continue };
            let process = rest.parse::<u32>().ok();
            let alive = process.is_some_and(|id| Path::new(&format!("/proc/{id}")).exists());
            if process.is_some() && !alive {
                found.push(Garbage { path: entry.path(), why: "left by a killed program", bytes: 0 });
            }
        }
        let parts = self.root.join(PARTS);
        for entry in fs::read_dir(&parts).into_iter().flatten().filter_map(Result::ok) {
            let bytes = entry.metadata().map_or(0, |about| about.len());
            found.push(Garbage { path: entry.path(), why: "a download that was not finished", bytes });
        }
        Ok(found)
    }
}

/// Takes all files of an image out of what holds them, into a stage, each as its pin says.
fn unpacked(
    image: &Image,
    folder: &str,
    container: &Container,
    pins: &Pins,
    stage: &Stage,
) -> Result<Vec<Staged>, ImageError> {
    let place = stage.path("files");
    fs::create_dir(&place).map_err(failed("write", &place))?;
    let taken: BTreeSet<String> = container.extract(image, &place)?.into_iter().collect();
    let missing: Vec<&str> =
        image.files.keys().map(String::as_str).filter(|file| !taken.contains(*file)).collect();
    if !missing.is_empty() {
        let files = missing.join(", ");
        return Err(ImageError::Incomplete { path: container.path().to_owned(), files });
    }
    let mut staged = Vec::new();
    for file in taken {
        let path = place.join(&file);
        let sha256 = sum_of(&path)?;
        if let Some(expected) = pins.files.get(&file) {
            same(&file, &sha256, expected, "--sha256")?;
        }
        staged.push(Staged { name: format!("{folder}/{file}"), path, sha256 });
    }
    Ok(staged)
}

/// The SHA-256 of a file, in hexadecimal.
fn sum_of(path: &Path) -> Result<String, ImageError> {
    let sum = File::open(path).and_then(|file| digest(&file)).map_err(failed("read", path))?;
    Ok(hex(&sum))
}

/// The profiles that boot files of this folder.
fn using(profiles: &BTreeMap<String, Vec<String>>, folder: &str) -> Vec<String> {
    let below = |file: &String| file.rsplit_once('/').is_some_and(|(found, _)| found == folder);
    profiles.iter().filter(|(_, files)| files.iter().any(below)).map(|(name, _)| name.clone()).collect()
}

fn same(file: &str, found: &str, expected: &str, said: &str) -> Result<(), ImageError> {
    if found == expected {
        return Ok(());
    }
    Err(ImageError::Differs {
        file: file.to_owned(),
        said: said.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    })
}

/// The image of this name, or one that a person describes: `FILE=PATTERN` for each of its files.
///
/// # Errors
/// There is none, or a word is none.
pub fn image(name: &str, files: &[String]) -> Result<Image, ImageError> {
    let mut image = match catalogue::images().get(name) {
        Some(image) => image.clone(),
        None if files.is_empty() => return Err(ImageError::Unknown(name.to_owned())),
        None => Image {
            about: "described by hand".to_owned(),
            profile: name.to_owned(),
            mirror: String::new(),
            sums: "SHA256SUMS".to_owned(),
            package: None,
            files: BTreeMap::new(),
        },
    };
    for word in files {
        let (file, pattern) = word.split_once('=').ok_or_else(|| ImageError::BadName(word.clone()))?;
        named(file)?;
        image.files.insert(file.to_owned(), vec![pattern.to_owned()]);
    }
    Ok(image)
}

/// A name of one part.
///
/// # Errors
/// It is none.
pub fn named(name: &str) -> Result<&str, ImageError> {
    let parsed = crate::boot::root::RelativePath::parse(name);
    match parsed {
        Some(parsed) if parsed.as_str() == name && !name.contains('/') && !name.starts_with('.') => Ok(name),
        Some(_) | None => Err(ImageError::BadName(name.to_owned())),
    }
}

//! Takes an image's files out of what a person has: an ISO, a tar, a Debian package, or a folder. Blocks. A shell.
//!
//! Invariant: nothing is written but the files that were asked for, under names of ours; what an archive says of paths is
//! compared and never used.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use flate2::read::GzDecoder;

use super::{
    ImageError,
    catalogue::{Image, Source, choose},
};
use crate::app::publish::failed;

/// Folders within each other that are looked through.
const DEPTH: usize = 12;
/// Where an ISO 9660 image says what it is.
const ISO_MAGIC: (u64, &[u8]) = (0x8001, b"CD001");
const TAR_MAGIC: (u64, &[u8]) = (257, b"ustar");

/// What holds the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Folder,
    Iso,
    Tar,
    TarGz,
    Deb,
}

/// Where it is, and what.
#[derive(Debug)]
pub(super) struct Container {
    path: PathBuf,
    kind: Kind,
}

impl Container {
    /// Looks what this is, by its content.
    pub(super) fn at(path: &Path) -> Result<Self, ImageError> {
        let kind = kind(path).map_err(failed("read", path))?;
        let kind = kind.ok_or_else(|| ImageError::NoContainer { path: path.to_owned() })?;
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes out the files of the image that it has, into a folder; returns their names. An ISO is itself the image's ISO.
    pub(super) fn extract(&self, image: &Image, into: &Path) -> Result<Vec<String>, ImageError> {
        let paths = self.paths()?;
        let mut wanted: Vec<(usize, String)> = Vec::new();
        let mut done = Vec::new();
        for name in image.files.keys() {
            let inside = image.sources(name).filter_map(|source| match source {
                Source::InIso(path) => Some(Source::Path(path)),
                Source::Path(_) => None,
            });
            let found = match self.kind {
                Kind::Iso => choose(inside, &paths).or_else(|| choose(image.sources(name), &paths)),
                Kind::Folder | Kind::Tar | Kind::TarGz | Kind::Deb => choose(image.sources(name), &paths),
            };
            if let Some(at) = found {
                wanted.push((at, name.clone()));
            } else if self.kind == Kind::Iso && image.iso().is_some_and(|(iso, _)| iso == name) {
                let target = into.join(name);
                fs::copy(&self.path, &target).map_err(failed("write", &target))?;
                done.push(name.clone());
            }
        }
        for (at, name) in &wanted {
            if let Some(path) = paths.get(*at) {
                self.take(path, &into.join(name))?;
                done.push(name.clone());
            }
        }
        Ok(done)
    }

    /// The regular files in it.
    fn paths(&self) -> Result<Vec<String>, ImageError> {
        let mut paths = Vec::new();
        match self.kind {
            Kind::Folder => walk(&self.path, "", DEPTH, &mut paths).map_err(failed("read", &self.path))?,
            Kind::Iso => {
                let mut file = BufReader::new(self.file()?);
                let root = isomage::detect_and_parse_filesystem(&mut file, &self.path.display().to_string())
                    .map_err(|error| self.broken(&error))?;
                list(&root, "", DEPTH, &mut paths);
            }
            Kind::Tar | Kind::TarGz | Kind::Deb => self.each(|path, _| {
                paths.push(path.to_owned());
                Ok(true)
            })?,
        }
        Ok(paths)
    }

    /// Copies one of them.
    fn take(&self, path: &str, target: &Path) -> Result<(), ImageError> {
        let copy = |from: &mut dyn Read| {
            let mut file = File::create(target)?;
            io::copy(from, &mut file)?;
            file.sync_all()
        };
        match self.kind {
            Kind::Folder => {
                let from = self.path.join(path);
                let mut file = File::open(&from).map_err(failed("read", &from))?;
                Ok(copy(&mut file).map_err(failed("write", target))?)
            }
            Kind::Iso => {
                let mut file = self.file()?;
                let root = isomage::detect_and_parse_filesystem(&mut file, &self.path.display().to_string())
                    .map_err(|error| self.broken(&error))?;
                let node = root.find_node(path);
                let node = node.ok_or_else(|| self.broken(&format!("{path} is gone")))?;
                let mut written = File::create(target).map_err(failed("write", target))?;
                isomage::cat_node(&mut file, node, &mut written).map_err(|error| self.broken(&error))?;
                Ok(written.sync_all().map_err(failed("write", target))?)
            }
            Kind::Tar | Kind::TarGz | Kind::Deb => self.each(|found, entry| {
                if found == path {
                    copy(entry)?;
                }
                Ok(found != path)
            }),
        }
    }

    /// Shows every regular file of an archive until `look` has seen enough.
    fn each(&self, mut look: impl FnMut(&str, &mut dyn Read) -> io::Result<bool>) -> Result<(), ImageError> {
        let mut unpacker = None;
        let bytes: Box<dyn Read> = match self.kind {
            Kind::TarGz => Box::new(GzDecoder::new(BufReader::new(self.file()?))),
            Kind::Deb => {
                let child = unpacker.insert(self.unpacker()?);
                match child.0.stdout.take() {
                    Some(stdout) => Box::new(stdout),
                    None => return Err(self.broken(&"dpkg-deb says nothing")),
                }
            }
            Kind::Tar | Kind::Folder | Kind::Iso => Box::new(BufReader::new(self.file()?)),
        };
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().map_err(|error| self.broken(&error))?;
        for entry in entries {
            let mut entry = entry.map_err(|error| self.broken(&error))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().map_err(|error| self.broken(&error))?.display().to_string();
            if !look(&path, &mut entry).map_err(|error| self.broken(&error))? {
                break;
            }
        }
        Ok(())
    }

    /// Packages may be compressed in any way that dpkg knows.
    fn unpacker(&self) -> Result<Unpacker, ImageError> {
        let mut command = Command::new("dpkg-deb");
        command.arg("--fsys-tarfile").arg(&self.path).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = command.stderr(Stdio::null()).spawn();
        child.map(Unpacker).map_err(|error| self.broken(&format!("dpkg-deb does not run: {error}")))
    }

    fn file(&self) -> Result<File, ImageError> {
        Ok(File::open(&self.path).map_err(failed("read", &self.path))?)
    }

    fn broken(&self, problem: &dyn std::fmt::Display) -> ImageError {
        ImageError::Broken { path: self.path.clone(), problem: problem.to_string() }
    }
}

/// Ends with us.
struct Unpacker(Child);

impl Drop for Unpacker {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}

fn kind(path: &Path) -> io::Result<Option<Kind>> {
    if fs::metadata(path)?.is_dir() {
        return Ok(Some(Kind::Folder));
    }
    let mut file = File::open(path)?;
    let mut has = |(at, magic): (u64, &[u8])| -> io::Result<bool> {
        let mut bytes = vec![0; magic.len()];
        file.seek(SeekFrom::Start(at))?;
        match file.read_exact(&mut bytes) {
            Ok(()) => Ok(bytes == magic),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    };
    let magics = [
        ((0, &b"!<arch>\n"[..]), Kind::Deb),
        ((0, &[0x1f, 0x8b][..]), Kind::TarGz),
        (ISO_MAGIC, Kind::Iso),
        (TAR_MAGIC, Kind::Tar),
    ];
    for (magic, kind) in magics {
        if has(magic)? {
            return Ok(Some(kind));
        }
    }
    Ok(None)
}

/// Links are not followed: what they lead to is found itself, or lies outside.
fn walk(folder: &Path, below: &str, depth: usize, paths: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if kind.is_file() {
            paths.push(path);
        } else if kind.is_dir() && depth > 0 {
            walk(&entry.path(), &path, depth - 1, paths)?;
        }
    }
    Ok(())
}

fn list(node: &isomage::TreeNode, below: &str, depth: usize, paths: &mut Vec<String>) {
    for child in &node.children {
        let path = if below.is_empty() { child.name.clone() } else { format!("{below}/{}", child.name) };
        if !child.is_directory {
            paths.push(path);
        } else if depth > 0 {
            list(child, &path, depth - 1, paths);
        }
    }
}

//! Published files that are what `SHA256SUMS` says. One of the places that touch the world: it opens and reads files for
//! the TFTP and HTTP shells, and for the checks before a job.
//!
//! Invariant: a file that the manifest in the published folder names is never given out with other bytes than the
//! manifest's. It is read whole once, and again when it, or the manifest, has changed; what the manifest does not name is
//! given out as it is.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest as _, Sha256};

use super::{
    manifest::{Digest, MANIFEST, MANIFEST_LIMIT, Manifest},
    root::{Published, RelativePath, Root},
};

/// Of a file, this much is read at once, in bytes.
const PIECE: usize = 256 << 10;

/// Why a file is not given out.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// It is not there, or no file below the folder.
    #[error(transparent)]
    Absent(io::Error),
    /// It is there, and the disk failed or it changed while it was read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    /// Its bytes are others than the manifest's.
    #[error(
        "withdrawn: it is not what SHA256SUMS says; put the right file there (`bootflip image verify` tells which differ), \
         or correct the manifest"
    )]
    Withdrawn,
    /// The manifest cannot be used, so nothing can be vouched for.
    #[error("SHA256SUMS cannot be used: {0}")]
    Manifest(String),
}

/// A published folder with its manifest. Clones share what they know.
#[derive(Debug, Clone)]
pub struct Vouch {
    root: Root,
    known: Arc<Mutex<Known>>,
    /// One reading at a time: several clients ask for a file at once.
    reading: Arc<Mutex<()>>,
}

/// What was read, each with the tag that the file had then.
#[derive(Debug, Default)]
struct Known {
    manifest: Option<(String, Arc<Manifest>)>,
    /// No more than the manifest names.
    digests: HashMap<RelativePath, (String, Digest)>,
}

impl Vouch {
    /// For the files below this folder.
    pub fn new(root: Root) -> Self {
        Self { root, known: Arc::default(), reading: Arc::default() }
    }

    /// The folder.
    pub const fn root(&self) -> &Root {
        &self.root
    }

    /// Opens a file and vouches for it. Blocks for as long as the disk does: for a file that the manifest names and that
    /// is new, until it is read whole.
    ///
    /// # Errors
    /// What is given out to nobody.
    pub fn open(&self, name: &RelativePath) -> Result<Published, Unfit> {
        let published = self.root.open_file(name).map_err(Unfit::Absent)?;
        self.check(name, &published.file, &published.tag())?;
        Ok(published)
    }

    /// Vouches for a file that is open, and had this tag then.
    ///
    /// # Errors
    /// What is given out to nobody.
    pub fn check(&self, name: &RelativePath, file: &File, tag: &str) -> Result<(), Unfit> {
        let manifest = self.manifest()?;
        let Some(expected) = manifest.digest(name) else { return Ok(()) };
        let mut found = self.lock().digest(name, tag);
        if found.is_none() {
            let _one = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
            found = self.lock().digest(name, tag);
            if found.is_none() {
                let digest = self.read(name, file, tag)?;
                self.lock().digests.insert(name.clone(), (tag.to_owned(), digest));
                found = Some(digest);
            }
        }
        if found.as_ref() == Some(expected) { Ok(()) } else { Err(Unfit::Withdrawn) }
    }

    fn read(&self, name: &RelativePath, file: &File, tag: &str) -> Result<Digest, Unfit> {
        let digest = digest(file).map_err(Unfit::Unreadable)?;
        // The name may stand for another file by now; what was read counts if it was one file from end to end.
        let now = self.root.open_file(name).map(|published| published.tag());
        match now {
            Ok(now) if now == tag => Ok(digest),
            Ok(_) => Err(Unfit::Unreadable(io::Error::other("it changed while it was read"))),
            Err(error) => Err(Unfit::Absent(error)),
        }
    }

    /// The manifest of the folder; an empty one where there is none.
    fn manifest(&self) -> Result<Arc<Manifest>, Unfit> {
        let refuse = |problem: &dyn std::fmt::Display| Unfit::Manifest(problem.to_string());
        let Some(name) = RelativePath::parse(MANIFEST) else { return Err(refuse(&"no name")) };
        let published = match self.root.open_file(&name) {
            Ok(published) => published,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.lock().manifest = None;
                return Ok(Arc::default());
            }
            Err(error) => return Err(refuse(&error)),
        };
        let tag = published.tag();
        if let Some((known, manifest)) = &self.lock().manifest
            && *known == tag
        {
            return Ok(Arc::clone(manifest));
        }
        let mut text = String::new();
        let read = published.file.take(MANIFEST_LIMIT).read_to_string(&mut text);
        read.map_err(|error| refuse(&error))?;
        let manifest = Arc::new(Manifest::parse(&text).map_err(|error| refuse(&error))?);
        let mut known = self.lock();
        known.digests.retain(|name, _| manifest.digest(name).is_some());
        known.manifest = Some((tag, Arc::clone(&manifest)));
        Ok(manifest)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn digest(&self, name: &RelativePath, tag: &str) -> Option<Digest> {
        self.digests.get(name).filter(|(known, _)| known == tag).map(|(_, digest)| *digest)
    }
}

/// The SHA-256 of a file, from its beginning, wherever its cursor is.
///
/// # Errors
/// The disk's.
pub fn digest(file: &File) -> io::Result<Digest> {
    let mut sum = Sha256::new();
    let mut piece = vec![0; PIECE];
    let mut offset = 0;
    loop {
        match file.read_at(&mut piece, offset) {
            Ok(0) => return Ok(sum.finalize().into()),
            Ok(length) => {
                sum.update(piece.get(..length).unwrap_or_default());
                offset += u64::try_from(length).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn sum(text: &str) -> String {
        Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn a_file_is_given_out_while_it_is_what_the_manifest_says() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let vouch = Vouch::new(Root::open(folder.path()).unwrap());
        let name = RelativePath::parse("linux").unwrap();
        let opened =
            || vouch.open(&name).map(|published| published.length).map_err(|unfit| unfit.to_string());
        assert!(opened().unwrap_err().contains("No such file"));
        write("linux", "right");
        assert_eq!(opened(), Ok(5), "no manifest: as it is");
        write(MANIFEST, &format!("{}  other\n", sum("right")));
        assert_eq!(opened(), Ok(5), "it is not named");
        write(MANIFEST, &format!("{}  linux\n", sum("right")));
        assert_eq!(opened(), Ok(5));
        // A byte is flipped in place: same length, same inode.
        write("linux", "wrong");
        assert!(opened().unwrap_err().starts_with("withdrawn: "));
        write(MANIFEST, &format!("{}  linux\n", sum("wrong")));
        assert_eq!(opened(), Ok(5), "the manifest was corrected");
        write(MANIFEST, "nonsense\n");
        assert!(opened().unwrap_err().contains("SHA256SUMS cannot be used: line 1"));
    }
}

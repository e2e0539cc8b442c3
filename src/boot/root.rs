//! The folders of published files. One of the places that touch the world: it opens files for the TFTP and HTTP
//! shells, and for the checks before a job.
//!
//! Invariant: nothing outside the folder is ever opened, whatever the name or the symbolic links say, and nothing
//! but a regular file. The kernel resolves the name beneath the folder (`openat2`), so that a link swapped in
//! between is not followed either; the file is then served from the descriptor.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, openat2},
    sys::stat::Mode,
};

/// The longest name that is looked up, in bytes.
const NAME_LIMIT: usize = 512;

/// A name below a published folder: parts without `..`, joined by `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RelativePath(String);

impl RelativePath {
    /// Parses a name. Slashes in front and doubled ones do not count; `None`: no name of a file below a folder.
    pub fn parse(name: &str) -> Option<Self> {
        if name.len() > NAME_LIMIT || name.chars().any(char::is_control) || name.contains('\\') {
            return None;
        }
        let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
        let fine = !parts.is_empty() && !parts.contains(&"..") && !name.ends_with('/');
        fine.then(|| Self(parts.join("/")))
    }

    /// The name, with single slashes and none in front.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An open regular file.
#[derive(Debug)]
pub struct Published {
    /// At its beginning.
    pub file: File,
    /// Its length in bytes when it was opened.
    pub length: u64,
    /// When it was last changed.
    pub modified: Option<SystemTime>,
    /// Its inode, and when that was last changed: nobody can set this time back.
    changed: (u64, i64, i64),
}

impl Published {
    /// A strong entity tag (RFC 9110 §8.8.3), with its quotes: another file, or other bytes in it, another tag.
    pub fn tag(&self) -> String {
        let (inode, seconds, nanoseconds) = self.changed;
        format!("\"{inode:x}-{:x}-{seconds:x}.{nanoseconds:x}\"", self.length)
    }
}

/// A folder whose files are published.
#[derive(Debug, Clone)]
pub struct Root {
    folder: Arc<File>,
    path: PathBuf,
}

/// The folder cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot open the folder {path} of published files; create it, or name another one in the configuration"
)]
pub struct OpenRootError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl Root {
    /// Opens the folder.
    pub fn open(path: &Path) -> Result<Self, OpenRootError> {
        let at = |source| OpenRootError { path: path.to_owned(), source };
        let folder = File::open(path).map_err(at)?;
        if !folder.metadata().map_err(at)?.is_dir() {
            return Err(at(io::Error::from(io::ErrorKind::NotADirectory)));
        }
        Ok(Self { folder: Arc::new(folder), path: path.to_owned() })
    }

    /// Where the folder is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a file below it. Blocks for as long as the disk does.
    pub fn open_file(&self, name: &RelativePath) -> io::Result<Published> {
        // Without O_NONBLOCK a FIFO below the folder would hang the open.
        let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).mode(Mode::empty()).resolve(resolve);
        let file = File::from(openat2(&*self.folder, name.as_str(), how)?);
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        }
        let changed = (metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
        Ok(Published { file, length: metadata.len(), modified: metadata.modified().ok(), changed })
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("root");
        fs::create_dir_all(inside.join("sub")).unwrap();
        fs::write(folder.path().join("canary"), "secret").unwrap();
        fs::write(inside.join("sub/linux"), "kernel").unwrap();
        symlink("sub/linux", inside.join("link")).unwrap();
        symlink("../canary", inside.join("out")).unwrap();
        symlink(folder.path().join("canary"), inside.join("absolute")).unwrap();
        symlink("/proc/self/environ", inside.join("magic")).unwrap();
        nix::unistd::mkfifo(&inside.join("fifo"), Mode::S_IRWXU).unwrap();
        let root = Root::open(&inside).unwrap();
        (folder, root)
    }

    fn read(root: &Root, name: &str) -> Option<String> {
        let published = root.open_file(&RelativePath::parse(name)?).ok()?;
        io::read_to_string(published.file).ok()
    }

    #[test]
    fn names_below_the_folder_are_served() {
        let (_folder, root) = root();
        for name in ["sub/linux", "/sub//linux", "./sub/./linux", "link"] {
            assert_eq!(read(&root, name).as_deref(), Some("kernel"), "{name}");
        }
    }

    #[test]
    fn nothing_else_is() {
        let (_folder, root) = root();
        let names = [
            "",
            "/",
            ".",
            "..",
            "../canary",
            "sub/../../canary",
            "sub/../sub/linux",
            "out",
            "absolute",
            "magic",
            "fifo",
            "sub",
            "sub/",
            "sub/linux/",
            "nosuch",
            "sub\\linux",
            "sub/linux\0",
            "sub/\nlinux",
            "%2e%2e/canary",
        ];
        for name in names {
            assert_eq!(read(&root, name), None, "{name:?}");
        }
        assert!(RelativePath::parse(&"a/".repeat(300)).is_none());
        assert!(RelativePath::parse(&format!("{}a", "a/".repeat(300))).is_none());
    }

    #[test]
    fn a_link_swapped_while_we_read_never_leads_out() {
        let (folder, root) = root();
        let inside = folder.path().join("root");
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let swapping = {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                for target in ["sub/linux", "../canary"].iter().cycle() {
                    symlink(target, inside.join("new")).unwrap();
                    fs::rename(inside.join("new"), inside.join("link")).unwrap();
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        return;
                    }
                }
            })
        };
        let served: Vec<String> = (0..1000).filter_map(|_| read(&root, "link")).collect();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        swapping.join().unwrap();
        assert!(served.iter().all(|text| text == "kernel"));
    }
}

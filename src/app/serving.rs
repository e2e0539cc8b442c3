//! E0's look at everything that an attempt would be served: files, templates, listeners. A shell; reads only.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    boot::{
        Armed,
        render::{Templates, Urls},
        root::{RelativePath, Root},
        vouch::{Unfit, Vouch},
    },
    config::BootFiles,
    provision::executor::Serving,
};

/// What this server has to offer.
#[derive(Debug)]
pub struct Offer {
    templates: Arc<Templates>,
    root: Option<PathBuf>,
    /// The URLs, and the folder or why it cannot be used.
    open: OnceLock<(Urls, Result<Vouch, String>)>,
    listening: AtomicBool,
}

impl Offer {
    /// The offer of a server with these templates and boot files beneath `root`; `None`: boot HTTP is off.
    pub const fn new(templates: Arc<Templates>, root: Option<PathBuf>) -> Self {
        Self { templates, root, open: OnceLock::new(), listening: AtomicBool::new(false) }
    }

    /// The listeners answer, under these URLs and with these files.
    pub fn open(&self, urls: Option<Urls>, files: Option<Result<Vouch, String>>) {
        if let Some(open) = urls.zip(files) {
            let _ = self.open.set(open); // once, at the start
        }
        self.listening.store(true, Ordering::Release);
    }

    /// A listener has ended.
    pub fn close(&self) {
        self.listening.store(false, Ordering::Release);
    }
}

impl Serving for Offer {
    fn problem(&self, armed: &Armed) -> Option<String> {
        if self.root.is_none() {
            return Some("the profile has boot files and the boot HTTP listener is off; add [http]".into());
        }
        let open = self.open.get().filter(|_| self.listening.load(Ordering::Acquire));
        let Some((urls, files)) = open else {
            return Some("the boot listeners are not up; see the server's log".into());
        };
        let files = match files {
            Ok(files) => files,
            Err(problem) => return Some(problem.clone()),
        };
        // A file that SHA256SUMS names is read whole the first time.
        if let Some(problem) = blocking(|| file_problems(files, &armed.files).next()) {
            return Some(problem);
        }
        self.templates.check_all(armed, urls).first().map(ToString::to_string)
    }
}

/// Work that waits for a disk, without keeping this thread's other tasks waiting.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        Ok(_) | Err(_) => work(),
    }
}

/// What is wrong with the files of a network boot.
pub fn file_problems<'a>(files: &'a Vouch, boot: &'a BootFiles) -> impl Iterator<Item = String> + 'a {
    let names = std::iter::once(&boot.kernel).chain(&boot.initrd).chain(&boot.files);
    names.filter_map(|name| file_problem(files, name))
}

/// What is wrong with a boot file: it must be a readable regular file beneath the folder, not empty, and what SHA256SUMS
/// says where that names it.
pub fn file_problem(files: &Vouch, file: &str) -> Option<String> {
    let folder = files.root().path();
    let Some(name) = RelativePath::parse(file) else {
        return Some(format!("`{file}` is not a path beneath {}", folder.display()));
    };
    let path = folder.join(name.as_str());
    match files.open(&name) {
        Ok(published) if published.length == 0 => Some(format!("boot file {} is empty", path.display())),
        Ok(_) => None,
        Err(Unfit::Absent(error)) => Some(format!("boot file {} cannot be opened: {error}", path.display())),
        Err(unfit) => Some(format!("boot file {}: {unfit}", path.display())),
    }
}

/// The files below this folder.
///
/// # Errors
/// In words.
pub fn published(folder: &Path) -> Result<Vouch, String> {
    Root::open(folder).map(Vouch::new).map_err(|error| super::chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_file_must_be_a_readable_regular_file_beneath_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("mini")).unwrap();
        std::fs::write(root.join("mini/vmlinuz"), "kernel").unwrap();
        std::fs::write(root.join("empty"), "").unwrap();
        std::fs::write(folder.path().join("secret"), "x").unwrap();
        std::os::unix::fs::symlink(folder.path().join("secret"), root.join("out")).unwrap();
        let cases = [
            ("mini/vmlinuz", None),
            ("mini/none", Some("cannot be opened")),
            ("mini", Some("cannot be opened")),
            ("empty", Some("is empty")),
            ("out", Some("cannot be opened")),
            ("../secret", Some("is not a path beneath")),
            ("/etc/passwd", Some("cannot be opened")),
            ("", Some("is not a path beneath")),
        ];
        let files = published(&root).unwrap();
        for (file, problem) in cases {
            match (file_problem(&files, file), problem) {
                (None, None) => {}
                (Some(found), Some(wanted)) => assert!(found.contains(wanted), "{file}: {found}"),
                (found, _) => panic!("{file}: {found:?}"),
            }
        }
    }
}

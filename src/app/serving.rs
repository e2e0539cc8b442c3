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
    },
    config::BootFiles,
    provision::executor::Serving,
};

/// What this server has to offer.
#[derive(Debug)]
pub struct Offer {
    templates: Arc<Templates>,
    root: Option<PathBuf>,
    urls: OnceLock<Urls>,
    listening: AtomicBool,
}

impl Offer {
    /// The offer of a server with these templates and boot files beneath `root`; `None`: boot HTTP is off.
    pub const fn new(templates: Arc<Templates>, root: Option<PathBuf>) -> Self {
        Self { templates, root, urls: OnceLock::new(), listening: AtomicBool::new(false) }
    }

    /// The listeners answer, under these URLs.
    pub fn open(&self, urls: Option<Urls>) {
        if let Some(urls) = urls {
            let _ = self.urls.set(urls); // once, at the start
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
        let Some(root) = &self.root else {
            return Some("the profile has boot files and the boot HTTP listener is off; add [http]".into());
        };
        let urls = self.urls.get().filter(|_| self.listening.load(Ordering::Acquire));
        let Some(urls) = urls else {
            return Some("the boot listeners are not up; see the server's log".into());
        };
        if let Some(problem) = boot_file_problems(root, &armed.files).next() {
            return Some(problem);
        }
        self.templates.check_all(armed, urls).first().map(ToString::to_string)
    }
}

/// What is wrong with the files of a network boot, beneath `root`.
pub fn boot_file_problems<'a>(root: &'a Path, boot: &'a BootFiles) -> impl Iterator<Item = String> + 'a {
    let files = std::iter::once(&boot.kernel).chain(&boot.initrd).chain(&boot.files);
    files.filter_map(move |file| file_problem(root, file))
}

/// What is wrong with a boot file: it must be a readable regular file beneath `root`, and not empty.
pub fn file_problem(root: &Path, file: &str) -> Option<String> {
    let Some(name) = RelativePath::parse(file) else {
        return Some(format!("`{file}` is not a path beneath {}", root.display()));
    };
    let root = match Root::open(root) {
        Ok(root) => root,
        Err(error) => return Some(super::chain(&error)),
    };
    let path = root.path().join(name.as_str());
    match root.open_file(&name) {
        Ok(published) if published.length == 0 => Some(format!("boot file {} is empty", path.display())),
        Ok(_) => None,
        Err(error) => Some(format!("boot file {} cannot be opened: {error}", path.display())),
    }
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
        for (file, problem) in cases {
            match (file_problem(&root, file), problem) {
                (None, None) => {}
                (Some(found), Some(wanted)) => assert!(found.contains(wanted), "{file}: {found}"),
                (found, _) => panic!("{file}: {found:?}"),
            }
        }
    }
}

//! E0's look at everything that an attempt would be served: files, templates, listeners. A shell; reads only.

use std::{
    fs::File,
    io,
    path::{Component, Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    boot::{
        Armed,
        render::{Templates, Urls},
    },
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
        let files = std::iter::once(&armed.files.kernel).chain(&armed.files.initrd);
        if let Some(problem) = files.filter_map(|file| file_problem(root, file)).next() {
            return Some(problem);
        }
        self.templates.check_all(armed, urls).first().map(ToString::to_string)
    }
}

/// What is wrong with a boot file: `file` beneath `root` must be there, regular, readable and not empty.
pub fn file_problem(root: &Path, file: &str) -> Option<String> {
    let relative = Path::new(file);
    if file.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Some(format!("`{file}` is not a path beneath {}", root.display()));
    }
    let path = root.join(relative);
    let looked = || -> io::Result<Result<(), &'static str>> {
        let (real, root) = (path.canonicalize()?, root.canonicalize()?);
        if !real.starts_with(&root) {
            return Ok(Err("leads out of the root by a link"));
        }
        let metadata = File::open(&real)?.metadata()?;
        Ok(match (metadata.is_file(), metadata.len()) {
            (false, _) => Err("is not a regular file"),
            (true, 0) => Err("is empty"),
            (true, _) => Ok(()),
        })
    };
    match looked() {
        Ok(Ok(())) => None,
        Ok(Err(what)) => Some(format!("boot file {} {what}", path.display())),
        Err(error) => Some(format!("boot file {} cannot be read: {error}", path.display())),
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
            ("mini/none", Some("cannot be read")),
            ("mini", Some("not a regular file")),
            ("empty", Some("is empty")),
            ("out", Some("leads out of the root")),
            ("../secret", Some("is not a path beneath")),
            ("/etc/passwd", Some("is not a path beneath")),
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

//! Where everything lies: a folder below `target/` with the peers, the files that are served, and what servers write.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use crate::tftp_load::word;

/// See the module.
#[derive(Debug)]
pub(crate) struct Scene {
    folder: PathBuf,
}

impl Scene {
    /// The scene in `folder`, which `benches/prepare.sh` has filled.
    pub(crate) fn new(folder: &Path) -> io::Result<Self> {
        let scene = Self { folder: folder.canonicalize()? };
        fs::create_dir_all(scene.files())?;
        fs::create_dir_all(scene.folder.join("logs"))?;
        Ok(scene)
    }

    /// The folder whose files are served.
    pub(crate) fn files(&self) -> PathBuf {
        self.folder.join("files")
    }

    /// A file of an unpacked package: `PACKAGE/usr/…`.
    pub(crate) fn peer(&self, name: &str) -> PathBuf {
        self.folder.join("peers").join(name)
    }

    /// Where a server's words go.
    pub(crate) fn log(&self, server: &str) -> PathBuf {
        self.folder.join("logs").join(format!("{server}.log"))
    }

    /// An empty folder.
    pub(crate) fn fresh(&self, name: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(name);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// A served file of this length, word after word.
    pub(crate) fn file(&self, name: &str, length: u64) -> io::Result<()> {
        let path = self.files().join(name);
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == length) {
            return Ok(());
        }
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
        for at in 0..length / 4 {
            file.write_all(&word(at as u32))?;
        }
        file.write_all(&vec![0; (length % 4) as usize])?;
        file.flush()
    }
}

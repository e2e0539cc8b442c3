//! The file with the key of all tokens: made once, for this user alone. A shell.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::secret::TokenKey;

/// The file's name in `server.state_dir`.
pub const KEY_FILE: &str = "token.key";

/// The permissions that nobody else may have on it.
const TOO_WIDE: u32 = 0o077;

/// Why there is no key. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Others could read it.
    #[error(
        "the token key {path} is open to others (mode {mode:04o}); chmod 600 it, or remove it when others may have read it (open attempts then need a retry)"
    )]
    TooWide {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// It does not hold 32 bytes.
    #[error(
        "the token key {path} does not hold 32 bytes; remove it to have a new one made (open attempts then need a retry)"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read or made.
    #[error("cannot read or make the token key {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system has no random bytes.
    #[error("the system gives no random bytes: {0}")]
    Random(getrandom::Error),
}

/// The key in this folder; made when there is none.
pub fn load_or_make(folder: &Path) -> Result<TokenKey, KeyError> {
    let path = folder.join(KEY_FILE);
    match File::open(&path) {
        Ok(file) => read(file, path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => make(path),
        Err(source) => Err(KeyError::File { path, source }),
    }
}

/// Whether a key that is there can be used; `None`: there is none yet. Makes none.
pub fn look(folder: &Path) -> Option<Result<(), KeyError>> {
    let path = folder.join(KEY_FILE);
    match File::open(&path) {
        Ok(file) => Some(read(file, path).map(drop)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => Some(Err(KeyError::File { path, source })),
    }
}

fn read(file: File, path: PathBuf) -> Result<TokenKey, KeyError> {
    let refused = |source| KeyError::File { path: path.clone(), source };
    let mode = file.metadata().map_err(refused)?.permissions().mode() & 0o7777;
    if mode & TOO_WIDE != 0 {
        return Err(KeyError::TooWide { path, mode });
    }
    let mut bytes = Vec::new();
    file.take(33).read_to_end(&mut bytes).map_err(refused)?;
    match <[u8; 32]>::try_from(bytes) {
        Ok(bytes) => Ok(TokenKey::new(bytes)),
        Err(_) => Err(KeyError::Damaged { path }),
    }
}

/// Written beside and renamed, so that a crash never leaves half a key.
fn make(path: PathBuf) -> Result<TokenKey, KeyError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
    let half = path.with_extension("new");
    let written = (|| {
        let _ = std::fs::remove_file(&half); // what a crash left behind
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&half)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&half, &path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    })();
    written.map_err(|source| KeyError::File { path, source })?;
    Ok(TokenKey::new(bytes))
}

/// 128 fresh random bits in hex, for claims.
pub fn nonce() -> String {
    let mut bytes = [0; 16];
    match getrandom::fill(&mut bytes) {
        Ok(()) => crate::secret::hex(&bytes),
        // Unique all the same: a version 4 UUID has its own source, and ends the process if that fails too.
        Err(_) => uuid::Uuid::new_v4().simple().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::TokenUse;

    fn token(key: &TokenKey) -> String {
        key.token("j", 1, TokenUse::Render).expose().to_owned()
    }

    #[test]
    fn key_is_made_once_and_for_this_user_alone() {
        let folder = tempfile::tempdir().unwrap();
        let first = load_or_make(folder.path()).unwrap();
        let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(token(&first), token(&load_or_make(folder.path()).unwrap()));
    }

    #[test]
    fn key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        load_or_make(folder.path()).unwrap();
        let path = folder.path().join(KEY_FILE);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(load_or_make(folder.path()), Err(KeyError::TooWide { mode: 0o640, .. })));
    }

    #[test]
    fn half_a_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KEY_FILE);
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .unwrap()
            .write_all(b"x")
            .unwrap();
        assert!(matches!(load_or_make(folder.path()), Err(KeyError::Damaged { .. })));
    }
}

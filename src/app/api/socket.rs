//! The unix socket of the admin API. A shell; `listen` answers on it.
//!
//! Invariant: its path is ours alone while the server runs, and who may open it is asked again of each peer's uid.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tokio::net::{UnixListener, UnixStream};

use crate::app::door::GROUP;

/// Owner and group may use the socket.
const SOCKET_MODE: u32 = 0o660;

/// Why the socket is not there.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// A server answers on it.
    #[error(
        "another server answers on the admin socket {path}; stop it, or set admin.socket to another path"
    )]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else stands there.
    #[error("{path} is there and is no socket; remove it, or set admin.socket to another path")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// It cannot be made.
    #[error("cannot make the admin socket {path}")]
    Make {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The open socket; removed when dropped.
#[derive(Debug)]
pub(super) struct Socket {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path); // the next start removes what is left
    }
}

/// Makes the socket. One that a dead server left behind is replaced.
pub(super) async fn bind(path: &Path) -> Result<Socket, SocketError> {
    let failed = |source| SocketError::Make { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder).map_err(failed)?;
            }
        }
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(failed)?;
        }
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    if let Ok(Some(group)) = nix::unistd::Group::from_name(GROUP)
        && let Err(error) = std::os::unix::fs::chown(path, None, Some(group.gid.as_raw()))
    {
        tracing::warn!(file = %path.display(), %error, "the admin socket stays with this user's group");
    }
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    Ok(Socket { path: path.to_owned(), listener: Some(listener) })
}

impl Socket {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The listener; taken once.
    pub(super) fn take(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }
}

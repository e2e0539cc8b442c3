//! What else is on the lab's wire when a real distribution's installer runs there: the package mirror, which is a
//! machine of its own as far as guests can tell, and somebody who takes the installer's syslog.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use tokio::net::UdpSocket;

use super::{
    Installer, Lab, Network,
    installer::{MIRROR, SYSLOG_PORT},
    network::{Helper, NetworkError, SERVER},
};

/// The installer's syslog, beneath the run's folder.
pub const SYSLOG: &str = "installer.log";

/// The others on the wire could not be played.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// Its address or its process.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// Where the installer's syslog would come in.
    #[error("cannot listen for the installer's syslog")]
    Listen(#[source] std::io::Error),
    /// Where it goes.
    #[error("cannot write {path}")]
    Log {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Lets the others join. Must run within a tokio runtime; what listens there ends with it.
pub async fn join(lab: &Lab, network: &Network, folder: &Path) -> Result<Option<Helper>, LanError> {
    match lab.installer() {
        Installer::Mini => Ok(None),
        Installer::Debian => {
            let path = folder.join(SYSLOG);
            let opened = OpenOptions::new().create(true).append(true).open(&path);
            let log = opened.map_err(|source| LanError::Log { path, source })?;
            let socket = UdpSocket::bind((SERVER, SYSLOG_PORT)).await.map_err(LanError::Listen)?;
            tokio::spawn(write_down(socket, log));
            Ok(Some(network.mirror(MIRROR, &lab.mirror(), &folder.join("mirror.log"))?))
        }
    }
}

/// A line for each datagram, with the seconds since the start.
async fn write_down(socket: UdpSocket, mut log: File) {
    let begun = Instant::now();
    let mut datagram = vec![0; LONGEST];
    while let Ok(length) = socket.recv(&mut datagram).await {
        let text = String::from_utf8_lossy(datagram.get(..length).unwrap_or_default()).into_owned();
        // A full disk ends more than this log.
        let _ = writeln!(log, "{:7.1} {}", begun.elapsed().as_secs_f64(), text.trim_end());
    }
}

/// Of a UDP datagram. Bytes.
const LONGEST: usize = 65_535;

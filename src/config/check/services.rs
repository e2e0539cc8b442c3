//! The listeners of boot HTTP, of syslog and of the admin socket. DHCP is in `dhcp`, TFTP in `tftp`.

use std::path::PathBuf;

use super::{Checker, pool::Endpoint};
use crate::config::{
    AdminConfig, HttpConfig, RemoteConfig, RemoteTls, SyslogConfig,
    problem::Spot,
    raw::{AdminTls, RawAdmin, RawHttp, RawSyslog},
    read::At,
};

const ADMIN_SOCKET: &str = "/run/bootflip/admin.sock";
/// `sun_path` of Linux, without its NUL.
const SOCKET_PATH_LIMIT: usize = 107;

/// The DHCP file field (RFC 2131 §2) has 128 bytes, the last a NUL, and holds `URL/b/02:16:3e:00:00:01`.
const PUBLIC_URL_LIMIT: usize = 127 - "/b/02:16:3e:00:00:01".len();

/// Bytes of a machine's log file, unless the configuration says otherwise; and the least and the most.
const LOG_SIZE: u32 = 1 << 20;
const LOG_SIZES: (u32, u32) = (16 << 10, 1 << 30);

/// `IFNAMSIZ` of Linux, without its NUL.
const DEVICE_LIMIT: usize = 15;

impl Checker<'_> {
    pub(super) fn http(&mut self, http: &At<RawHttp>, boot_root: PathBuf) -> Option<HttpConfig> {
        let At { value: raw, spot } = http;
        let remedy = "write listen = \"ADDRESS:PORT\" with our address on the provisioning network";
        let listen = self.required(raw.listen.as_ref(), spot, "listen", remedy).map(|listen| listen.value);
        let public_url = match &raw.public_url {
            Some(url) => self.public_url(url),
            None => {
                if listen.is_some_and(|listen| listen.ip().is_unspecified()) {
                    let message = "is missing, and clients cannot be sent to 0.0.0.0";
                    self.notes.absent(
                        &spot.child("public_url"),
                        message,
                        "write public_url = \"http://ADDRESS:PORT\"",
                    );
                }
                listen.map(|listen| format!("http://{listen}"))
            }
        };
        let root = raw.root.as_ref().map_or(boot_root, |root| self.path(root));
        let device = raw.device.as_ref().map(|device| self.device(device));
        Some(HttpConfig { listen: listen?, public_url: public_url?, root, device })
    }

    fn public_url(&mut self, url: &At<String>) -> Option<String> {
        let endpoint = Endpoint::of(&url.value).filter(|endpoint| !endpoint.encrypted);
        let Some(endpoint) = endpoint else {
            let remedy = "write http://HOST or http://HOST:PORT, and nothing behind it";
            self.notes.wrong(&url.spot, "is not an address that boot loaders can fetch from", remedy);
            return None;
        };
        let text = endpoint.url();
        if text.len() > PUBLIC_URL_LIMIT {
            let message =
                format!("has {} bytes, and a DHCP packet has room for {PUBLIC_URL_LIMIT}", text.len());
            self.notes.wrong(&url.spot, message, "write the IPv4 address instead of the name");
        }
        Some(text)
    }

    pub(super) fn syslog(&mut self, syslog: &At<RawSyslog>) -> Option<SyslogConfig> {
        let At { value: raw, spot } = syslog;
        let remedy = "write listen = \"ADDRESS:514\" with our address on the provisioning network";
        let listen = self.required(raw.listen.as_ref(), spot, "listen", remedy);
        if let Some(At { value, spot }) = listen.filter(|listen| listen.value.ip().is_unspecified()) {
            self.notes.wrong(spot, format!("installers cannot be told to log to {}", value.ip()), remedy);
        }
        Some(SyslogConfig {
            listen: listen?.value,
            device: raw.device.as_ref().map(|device| self.device(device)),
            file_size: self.within(&raw.file_size, LOG_SIZE, LOG_SIZES),
        })
    }

    pub(super) fn admin(&mut self, admin: Option<&At<RawAdmin>>) -> AdminConfig {
        let Some(At { value: raw, spot }) = admin else {
            return AdminConfig { socket: PathBuf::from(ADMIN_SOCKET), remote: None };
        };
        let remote = self.remote(raw, spot);
        let Some(written) = raw.socket.as_ref() else {
            return AdminConfig { socket: PathBuf::from(ADMIN_SOCKET), remote };
        };
        let socket = self.path(written);
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_LIMIT {
            let message =
                format!("has {bytes} bytes, and a unix socket's path has at most {SOCKET_PATH_LIMIT}");
            self.notes.wrong(&written.spot, message, "write a shorter path");
        }
        AdminConfig { socket, remote }
    }

    fn remote(&mut self, raw: &RawAdmin, spot: &Spot) -> Option<RemoteConfig> {
        let tls = match (&raw.tls_cert, &raw.tls_key) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (self.path(certificate), self.path(key));
                Some(RemoteTls::Files { certificate, key })
            }
            (None, None) => None,
            (Some(_), None) => {
                self.notes.absent(
                    &spot.child("tls_key"),
                    "is missing",
                    "name the file of the certificate's key",
                );
                None
            }
            (None, Some(_)) => {
                let remedy = "name the file of the key's certificate";
                self.notes.absent(&spot.child("tls_cert"), "is missing", remedy);
                None
            }
        };
        let tls = match (tls, &raw.tls) {
            (Some(_), Some(word)) => {
                let message = "asks for a certificate beside the one that tls_cert names";
                self.notes.wrong(&word.spot, message, "remove one of the two");
                RemoteTls::Off
            }
            (None, Some(At { value: AdminTls::Generated, .. })) => RemoteTls::Generated,
            (Some(files), None) => files,
            (None, None) => RemoteTls::Off,
        };
        let Some(listen) = &raw.listen else {
            if tls != RemoteTls::Off {
                let remedy = "write listen = \"ADDRESS:8443\", or remove the keys of TLS";
                self.notes.absent(&spot.child("listen"), "is missing", remedy);
            }
            return None;
        };
        let plain = raw.plain_http.as_ref().is_some_and(|plain| plain.value);
        if tls == RemoteTls::Off && !plain && !listen.value.ip().is_loopback() {
            let message = format!("would send tokens over the network to {} unencrypted", listen.value.ip());
            let remedy = "write tls = \"generated\", or tls_cert and tls_key; or plain_http = true where a proxy in front has TLS";
            self.notes.wrong(&listen.spot, message, remedy);
        }
        Some(RemoteConfig { listen: listen.value, tls })
    }

    pub(super) fn device(&mut self, device: &At<String>) -> String {
        let fits = |c: char| !c.is_whitespace() && !c.is_control() && c != '/';
        if device.value.is_empty() || device.value.len() > DEVICE_LIMIT || !device.value.chars().all(fits) {
            let message = format!("{:?} is not the name of a network device", device.value);
            self.notes.wrong(&device.spot, message, "`ip link` lists them");
        }
        device.value.clone()
    }
}

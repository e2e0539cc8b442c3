//! URLs as an old iPXE takes them: `http` and `tftp`, relative ones against the file that names them. Pure.

use std::net::Ipv4Addr;

/// The parts of a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// How to fetch it.
    pub scheme: Scheme,
    /// The host: this firmware is given addresses, never names.
    pub host: Ipv4Addr,
    /// As written.
    pub port: Option<u16>,
    /// From the slash on, with the query.
    pub path: String,
}

/// What this firmware can fetch with (no HTTPS in the build of 2012).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// TFTP.
    Tftp,
}

impl Url {
    /// Parses an absolute URL; `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let scheme = match scheme {
            "http" => Scheme::Http,
            "tftp" => Scheme::Tftp,
            _ => return None,
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (authority, None),
        };
        let printable = path.bytes().all(|byte| byte.is_ascii_graphic());
        let path = if path.is_empty() { "/".to_owned() } else { path.to_owned() };
        printable.then_some(Self { scheme, host: host.parse().ok()?, port, path })
    }
}

/// `target` as named in a file that came from `base`.
pub fn resolve(base: &str, target: &str) -> String {
    if target.contains("://") {
        return target.to_owned();
    }
    let root = base
        .find("://")
        .and_then(|at| base.get(at + 3..).and_then(|rest| rest.find('/')).map(|slash| at + 3 + slash));
    let (authority, path) = base.split_at(root.unwrap_or(base.len()));
    if target.starts_with('/') {
        return format!("{authority}{target}");
    }
    let folder = path.rfind('/').and_then(|slash| path.get(..=slash)).unwrap_or("/");
    format!("{authority}{folder}{target}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_what_this_firmware_knows() {
        let show =
            |text| Url::parse(text).map(|u| format!("{:?} {} {:?} {}", u.scheme, u.host, u.port, u.path));
        for (text, expected) in [
            ("http://127.0.0.1:8080/b/x?y=1", Some("Http 127.0.0.1 Some(8080) /b/x?y=1")),
            ("tftp://10.0.0.1/undionly.kpxe", Some("Tftp 10.0.0.1 None /undionly.kpxe")),
            ("http://10.0.0.1", Some("Http 10.0.0.1 None /")),
            ("https://10.0.0.1/", None),
            ("http://10.0.0.1:x/", None),
            ("http://host/", None),
            ("http://10.0.0.1/a b", None),
            ("undionly.kpxe", None),
        ] {
            assert_eq!(show(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn relative_names_stand_beside_the_file_that_names_them() {
        for (base, target, expected) in [
            ("http://1.2.3.4:80/b/x", "vmlinuz", "http://1.2.3.4:80/b/vmlinuz"),
            ("http://1.2.3.4/b/x", "/f/vmlinuz", "http://1.2.3.4/f/vmlinuz"),
            ("http://1.2.3.4", "vmlinuz", "http://1.2.3.4/vmlinuz"),
            ("http://1.2.3.4/b", "tftp://5.6.7.8/k", "tftp://5.6.7.8/k"),
        ] {
            assert_eq!(resolve(base, target), expected);
        }
    }
}

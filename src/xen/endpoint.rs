//! Where a member of a pool listens, and which members may be spoken to. Pure.
//!
//! Invariant: an address that a server names is only ever compared with addresses that we already trust; the
//! endpoint that is then used is ours, not the server's text (threat T18).

use std::{fmt, net::Ipv6Addr};

/// A host and its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// As it stands in a URL: a name in lower case, an IPv4 address, or an IPv6 address in brackets.
    pub(super) host: String,
    pub(super) port: u16,
}

impl Endpoint {
    /// Reads `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address; without a port it is `port`.
    pub(super) fn parse(text: &str, port: u16) -> Option<Self> {
        let (host, given) = split(text)?;
        Some(Self { host, port: given.unwrap_or(port) })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// The one of `known` that a server means by `named` (HOST_IS_SLAVE's parameter): the same host, and the same port
/// when it names one.
pub(super) fn find<'k>(named: &str, mut known: impl Iterator<Item = &'k Endpoint>) -> Option<&'k Endpoint> {
    let (host, port) = split(named)?;
    known.find(|endpoint| endpoint.host == host && port.is_none_or(|port| port == endpoint.port))
}

fn split(text: &str) -> Option<(String, Option<u16>)> {
    if let Ok(address) = text.parse::<Ipv6Addr>() {
        return Some((format!("[{address}]"), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        let address: Ipv6Addr = address.parse().ok()?;
        let port = match rest.strip_prefix(':') {
            Some(port) => Some(port.parse().ok()?),
            None if rest.is_empty() => None,
            None => return None,
        };
        return Some((format!("[{address}]"), port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (text, None),
    };
    let is_host = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let fits = !host.is_empty() && host.bytes().all(is_host);
    fits.then(|| (host.to_ascii_lowercase(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_may_be_written_in_five_ways() {
        for (text, wanted) in [
            ("10.0.0.2", Some("10.0.0.2:443")),
            ("10.0.0.2:8443", Some("10.0.0.2:8443")),
            ("XS1.example.net", Some("xs1.example.net:443")),
            ("fd00::2", Some("[fd00::2]:443")),
            ("[FD00::2]", Some("[fd00::2]:443")),
            ("[fd00::2]:8443", Some("[fd00::2]:8443")),
            ("", None),
            (":443", None),
            ("a:b", None),
            ("10.0.0.2:99999", None),
            ("root@10.0.0.2", None),
            ("10.0.0.2/x", None),
            ("[fd00::2]x", None),
            ("[x]", None),
        ] {
            assert_eq!(
                Endpoint::parse(text, 443).map(|endpoint| endpoint.to_string()).as_deref(),
                wanted,
                "{text}"
            );
        }
    }

    #[test]
    fn a_named_host_is_found_among_the_known_ones_only() {
        let known: Vec<_> =
            ["10.0.0.2", "10.0.0.3:8443"].map(|text| Endpoint::parse(text, 443).unwrap()).into();
        for (named, wanted) in [
            ("10.0.0.2", Some("10.0.0.2:443")),
            ("10.0.0.3", Some("10.0.0.3:8443")),
            ("10.0.0.3:8443", Some("10.0.0.3:8443")),
            ("10.0.0.3:443", None),
            ("10.0.0.4", None),
            ("10.0.0.2.evil.example", None),
            ("", None),
        ] {
            assert_eq!(find(named, known.iter()).map(ToString::to_string).as_deref(), wanted, "{named}");
        }
    }
}

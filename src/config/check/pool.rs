//! Pools: where they are, who we are there, and how their certificate is judged.

use std::collections::BTreeMap;

use super::Checker;
use crate::{
    config::{
        PoolConfig, TlsTrust,
        problem::Spot,
        raw::{RawPool, RawTls, RawTrust},
        read::At,
    },
    secret::Secret,
};

/// An `http://` or `https://` address without anything behind the port.
pub(super) struct Endpoint {
    pub(super) encrypted: bool,
    /// Host, and port where there is one.
    pub(super) authority: String,
}

impl Endpoint {
    /// Reads a URL. `None` does not say what it looked like: somebody may have put a password into it.
    pub(super) fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let encrypted = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        is_host(authority).then(|| Self { encrypted, authority: authority.to_owned() })
    }

    /// The URL in its one spelling.
    pub(super) fn url(&self) -> String {
        format!("http{}://{}", if self.encrypted { "s" } else { "" }, self.authority)
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`.
fn is_host(text: &str) -> bool {
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return port && address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    host.len() <= 253 && host.split('.').all(label) && port.is_none_or(is_port)
}

impl Checker<'_> {
    pub(super) fn pools(
        &mut self,
        pools: Option<&At<BTreeMap<String, At<RawPool>>>>,
        file: &Spot,
    ) -> BTreeMap<String, PoolConfig> {
        let Some(pools) = pools.filter(|pools| !pools.value.is_empty()) else {
            let remedy = "add [pool.NAME] with url, user, password_file and tls";
            self.notes.absent(&file.child("pool"), "no pool is configured", remedy);
            return BTreeMap::new();
        };
        let checked = |(name, pool): (&String, &At<RawPool>)| Some((name.clone(), self.pool(name, pool)?));
        pools.value.iter().filter_map(checked).collect()
    }

    fn pool(&mut self, name: &str, pool: &At<RawPool>) -> Option<PoolConfig> {
        let At { value: raw, spot } = pool;
        self.name(name, spot);
        let remedy = "write url = \"https://ADDRESS\" with the address of the pool's coordinator";
        let url = self.required(raw.url.as_ref(), spot, "url", remedy);
        let endpoint = url.and_then(|url| self.endpoint(url));
        let trust = endpoint.as_ref().zip(url).and_then(|(to, url)| self.trust(raw, to, &url.spot, spot));
        let remedy = "write the pool's account, such as user = \"bootflip\"";
        let user = self.required(raw.user.as_ref(), spot, "user", remedy);
        if let Some(user) = user {
            self.one_line(user);
        }
        let password = self.password(name, pool);
        let members: Vec<String> =
            raw.members.iter().flat_map(|members| &members.value).map(|member| self.member(member)).collect();
        let allow =
            raw.allow.iter().flat_map(|allow| &allow.value).map(|selector| self.selector(selector)).collect();
        Some(PoolConfig {
            name: name.to_owned(),
            url: endpoint?.url(),
            members,
            user: user?.value.clone(),
            password: password?,
            tls: trust?,
            allow,
        })
    }

    fn endpoint(&mut self, url: &At<String>) -> Option<Endpoint> {
        let endpoint = Endpoint::of(&url.value);
        if endpoint.is_none() {
            let message = "is not the address of a pool";
            self.notes.wrong(
                &url.spot,
                message,
                "write https://HOST or https://HOST:PORT, and nothing behind it",
            );
        }
        endpoint
    }

    fn trust(&mut self, raw: &RawPool, to: &Endpoint, url: &Spot, pool: &Spot) -> Option<TlsTrust> {
        let plain = raw.plain_http.as_ref().filter(|plain| plain.value);
        match (to.encrypted, plain) {
            (true, Some(plain)) => {
                self.notes.wrong(&plain.spot, "contradicts https:// in url", "remove one of them")
            }
            (false, None) => {
                let message = "is plain HTTP: the password would cross the network for all to read";
                self.notes.wrong(
                    url,
                    message,
                    "write https://, or add plain_http = true where nobody can listen",
                );
            }
            (true, None) | (false, Some(_)) => {}
        }
        match (to.encrypted, &raw.tls) {
            (true, Some(tls)) => self.judge(tls),
            (true, None) => {
                let message = "is missing: nothing says which certificate of the pool is right";
                let remedy =
                    "write tls = { pins = [\"SHA-256\"] }, tls = { ca = \"FILE\" } or tls = \"insecure\"";
                self.notes.absent(&pool.child("tls"), message, remedy);
                None
            }
            (false, Some(tls)) => {
                self.notes.wrong(
                    &tls.spot,
                    "has no effect with http:// in url",
                    "remove it, or write https://",
                );
                None
            }
            (false, None) => Some(TlsTrust::PlainHttp),
        }
    }

    fn judge(&mut self, tls: &At<RawTls>) -> Option<TlsTrust> {
        let trust = match &tls.value {
            RawTls::Insecure => return Some(TlsTrust::Insecure),
            RawTls::Trust(trust) => trust,
        };
        match trust {
            RawTrust { ca: Some(ca), pins: None } => Some(TlsTrust::Ca(self.path(ca))),
            RawTrust { ca: None, pins: Some(pins) } if !pins.value.is_empty() => {
                Some(TlsTrust::Pins(pins.value.iter().map(|pin| pin.value.0).collect()))
            }
            RawTrust { ca: Some(_), pins: Some(_) } => {
                self.notes.wrong(&tls.spot, "has both ca and pins", "keep one of them");
                None
            }
            RawTrust { ca: None, pins: Some(_) | None } => {
                let remedy = "write { pins = [\"SHA-256\"] } or { ca = \"FILE\" }";
                self.notes.absent(&tls.spot, "names neither ca nor pins", remedy);
                None
            }
        }
    }

    fn password(&mut self, name: &str, pool: &At<RawPool>) -> Option<Secret> {
        let raw = &pool.value;
        if let Some(literal) = &raw.password {
            let message = "a password has no place in this file";
            let remedy = "move it to a file of mode 0600, name that with password_file, and change the password if others could read it here";
            self.notes.wrong(&literal.spot, message, remedy);
            return None;
        }
        let spot = raw
            .password_file
            .as_ref()
            .map_or_else(|| pool.spot.child("password_file"), |file| file.spot.clone());
        match self.files.passwords.get(name) {
            Some(Ok(password)) => return Some(password.clone()),
            Some(Err((message, remedy))) => self.notes.wrong(&spot, message, remedy),
            None => {
                let remedy = format!(
                    "name a file of mode 0600 that holds the password, or give the systemd credential `{name}` \
                     (LoadCredential={name}:FILE)"
                );
                self.notes.absent(&spot, "is missing", remedy);
            }
        }
        None
    }

    fn member(&mut self, member: &At<String>) -> String {
        if !is_host(&member.value) {
            self.notes.wrong(&member.spot, "is not a pool member", "write HOST or HOST:PORT");
        }
        member.value.clone()
    }

    fn selector(&mut self, selector: &At<String>) -> String {
        let named = ["tag=", "name~", "uuid="].iter().find_map(|kind| selector.value.strip_prefix(kind));
        if named.is_none_or(str::is_empty) {
            let message = format!("{:?} does not say which VMs", selector.value);
            self.notes.wrong(&selector.spot, message, "write \"tag=TAG\", \"name~GLOB\" or \"uuid=UUID\"");
        }
        selector.value.clone()
    }
}

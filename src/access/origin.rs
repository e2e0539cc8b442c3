//! Whether a request that changes something comes from our own pages: browsers send cookies along with what other
//! sites make them send (cross-site request forgery).
//!
//! `SameSite=Strict` keeps the cookie away from other sites, but not from other ports of this host or, in a browser
//! that lacks it, from anybody; hence this check as well.

/// What a request says of where it comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin<'a> {
    /// The `Host` header.
    pub host: Option<&'a str>,
    /// The `Origin` header.
    pub origin: Option<&'a str>,
    /// The `Sec-Fetch-Site` header (W3C Fetch Metadata §2.3).
    pub fetch_site: Option<&'a str>,
}

impl Origin<'_> {
    /// Whether our own page made the request. One that says nothing of its origin is not ours: every browser since
    /// 2020 sends `Origin` with what changes something.
    pub fn is_own(self) -> bool {
        let same_site = self.fetch_site.is_none_or(|site| site == "same-origin");
        let Some(origin) = self.origin else { return self.fetch_site == Some("same-origin") };
        let Some((scheme, authority)) = origin.split_once("://") else { return false };
        let port = match scheme {
            "http" => ":80",
            "https" => ":443",
            _ => return false,
        };
        let bare =
            |authority: &'_ str| authority.strip_suffix(port).unwrap_or(authority).to_ascii_lowercase();
        same_site && self.host.is_some_and(|host| bare(host) == bare(authority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_may_change_something() {
        let own = Some("boot.example:8443");
        let cases = [
            (own, Some("https://boot.example:8443"), None, true),
            (own, Some("https://BOOT.example:8443"), Some("same-origin"), true),
            (Some("boot.example"), Some("https://boot.example"), None, true),
            (Some("boot.example:443"), Some("https://boot.example"), None, true),
            (own, None, Some("same-origin"), true),
            (own, None, None, false),
            (own, None, Some("none"), false),
            (own, Some("null"), None, false),
            (own, Some("https://boot.example"), None, false),
            (own, Some("https://boot.example:8443.evil.example"), None, false),
            (own, Some("https://evil.example"), None, false),
            (own, Some("https://boot.example:8443"), Some("cross-site"), false),
            (own, Some("https://boot.example:8443"), Some("same-site"), false),
            (own, Some("ftp://boot.example:8443"), None, false),
            (None, Some("https://boot.example:8443"), None, false),
        ];
        for (host, origin, fetch_site, expected) in cases {
            let asked = Origin { host, origin, fetch_site };
            assert_eq!(asked.is_own(), expected, "{asked:?}");
        }
    }
}

//! TFTP: boot loaders, PXELINUX configurations, and kernel and initrd for clients without HTTP. Reads only.
//!
//! What a name stands for is decided here, purely; `packet`, `transfer` and `sessions` are the protocol, purely too;
//! `server` has the files, the sockets and the transfer engines. Invariant: a
//! configuration is always rendered behind the boot gate, and never read from a file; everything else is a file
//! below one of two published folders.

pub mod packet;
pub mod server;
pub mod sessions;
pub mod transfer;

use crate::boot::{pxelinux::ConfigName, root::RelativePath};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// `pxelinux.cfg/<name>`: rendered for the machine that the name or the asking address means.
    Configuration(ConfigName),
    /// `f/<render token>/<path>`: a kernel or initrd.
    File {
        /// As presented.
        token: String,
        /// Which file.
        path: RelativePath,
    },
    /// A file below `tftp.root`: a loader.
    Published(RelativePath),
}

/// The folder in which PXELINUX looks for configurations: by UUID, by MAC, by IP address, `default`.
const CONFIGURATIONS: &str = "pxelinux.cfg";
const TOKEN_LENGTH: usize = 64;

impl Wanted {
    /// What this name stands for; `None`: nothing.
    ///
    /// ROMs send backslashes, leading slashes, and a trailing 0xFF or NUL when the boot file option had none. U-Boot
    /// takes PXELINUX's `::name` for a server without an address, and asks for `:name`.
    pub fn parse(name: &[u8]) -> Option<Self> {
        let end = name.iter().rposition(|byte| !matches!(byte, 0 | 0xff))? + 1;
        let name = std::str::from_utf8(name.get(..end)?).ok()?.replace('\\', "/");
        let path = RelativePath::parse(name.trim_start_matches(':'))?;
        let parts: Vec<&str> = path.as_str().split('/').collect();
        if let Some(at) = parts.iter().position(|part| part.eq_ignore_ascii_case(CONFIGURATIONS)) {
            let [file] = parts.get(at + 1..)? else { return None };
            return ConfigName::parse(file).map(Self::Configuration);
        }
        if let ["f", token, rest @ ..] = parts.as_slice()
            && token.len() == TOKEN_LENGTH
        {
            let path = RelativePath::parse(&rest.join("/"))?;
            return Some(Self::File { token: (*token).to_owned(), path });
        }
        Some(Self::Published(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn published(name: &str) -> Option<Wanted> {
        Some(Wanted::Published(RelativePath::parse(name).unwrap()))
    }

    #[test]
    fn loaders_are_found_under_every_spelling_of_roms() {
        for name in [
            &b"undionly.kpxe"[..],
            b"/undionly.kpxe",
            b"//undionly.kpxe",
            b"\\undionly.kpxe",
            b"./undionly.kpxe",
            b"undionly.kpxe\xff",
            b"undionly.kpxe\0",
            b"undionly.kpxe\0\xff",
        ] {
            assert_eq!(Wanted::parse(name), published("undionly.kpxe"), "{name:?}");
        }
        assert_eq!(Wanted::parse(b"boot\\bios\\pxelinux.0"), published("boot/bios/pxelinux.0"));
    }

    #[test]
    fn configurations_go_by_mac_in_any_case_and_folder() {
        let configuration =
            Some(Wanted::Configuration(ConfigName::Mac("02:16:3e:00:00:0a".parse().unwrap())));
        for name in [
            "pxelinux.cfg/01-02-16-3e-00-00-0a",
            "/pxelinux.cfg/01-02-16-3E-00-00-0A",
            "boot/bios/pxelinux.cfg/01-02-16-3e-00-00-0a",
            "PXELINUX.CFG\\01-02-16-3e-00-00-0a",
        ] {
            assert_eq!(Wanted::parse(name.as_bytes()), configuration, "{name}");
        }
        for name in [
            "pxelinux.cfg/graphics.cfg",
            "pxelinux.cfg/02-02-16-3e-00-00-0a",
            "pxelinux.cfg/01-02-16-3e-00-00",
            "pxelinux.cfg",
            "pxelinux.cfg/x/01-02-16-3e-00-00-0a",
        ] {
            assert_eq!(Wanted::parse(name.as_bytes()), None, "{name}: never a file");
        }
    }

    #[test]
    fn boot_files_go_by_token() {
        let file =
            |path| Some(Wanted::File { token: TOKEN.into(), path: RelativePath::parse(path).unwrap() });
        assert_eq!(Wanted::parse(format!("f/{TOKEN}/u/linux").as_bytes()), file("u/linux"));
        assert_eq!(Wanted::parse(format!("/f/{TOKEN}//u/linux").as_bytes()), file("u/linux"));
        assert_eq!(Wanted::parse(format!("f/{TOKEN}").as_bytes()), None);
        assert_eq!(Wanted::parse(b"f/short/linux"), published("f/short/linux"));
        assert_eq!(Wanted::parse(format!(":f/{TOKEN}/u/linux").as_bytes()), file("u/linux"), "U-Boot");
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let climbs = [
            "",
            "/",
            "..",
            "../canary",
            "a/../../canary",
            "..\\canary",
            "\\..\\canary",
            "a\\..\\..\\canary",
            "/../canary",
            "./../canary",
            "a/",
            "a\0b",
            "a\nb",
            "a/..",
        ];
        for name in climbs {
            assert_eq!(Wanted::parse(name.as_bytes()), None, "{name:?}");
        }
        for name in [&b"\xc0\xae\xc0\xae/canary"[..], b"\xff\xff", b"a\xfe", &[b'a'; 600]] {
            assert_eq!(Wanted::parse(name), None, "{name:?}");
        }
        for name in [format!("f/{TOKEN}/../../canary"), format!("f/{TOKEN}/..")] {
            assert_eq!(Wanted::parse(name.as_bytes()), None, "{name}");
        }
        // Names that mean nothing here are looked up as they stand.
        for name in ["%2e%2e/canary", "....//canary", "c:/canary", "con"] {
            assert_eq!(Wanted::parse(name.as_bytes()), published(name), "{name}");
        }
    }
}

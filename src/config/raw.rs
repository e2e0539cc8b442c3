//! The file as written: every key that it may have, each with its place. Types are right here; whether the values
//! make sense, alone and together, is `check`'s work. `config/bootflip.toml` documents the keys.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use ipnet::Ipv4Net;
use toml::de::DeValue;

use super::{
    Completion, EvidenceKind, Fetch, LogFormat, ProfileKind, TftpEngine, VariableKind,
    problem::Spot,
    read::{At, Read, Reader, Scalar, section},
};
use crate::machine::MacAddr;

type Named<T> = BTreeMap<String, At<T>>;

section! {
    /// The whole file.
    RawConfig {
        server: RawServer,
        store: RawStore,
        log: RawLog,
        pool: Named<RawPool>,
        dhcp: Vec<At<RawDhcp>>,
        tftp: RawTftp,
        http: RawHttp,
        syslog: RawSyslog,
        admin: RawAdmin,
        profile: Named<RawProfile>,
        group: Named<RawGroup>,
        machine: Named<RawMachine>,
        variables: Named<serde_json::Value>,
        limits: RawLimits,
        deadlines: RawDeadlines,
        template_dir: String,
    }
}

section! {
    /// `[server]`.
    RawServer {
        name: String,
        state_dir: String,
    }
}

section! {
    /// `[store]`.
    RawStore {
        keep_days: u32,
    }
}

section! {
    /// `[log]`.
    RawLog {
        format: LogFormat,
    }
}

section! {
    /// `[pool.NAME]`.
    RawPool {
        url: String,
        user: String,
        password_file: String,
        /// Not allowed; known, so that the message says what to do.
        password: Unread,
        tls: RawTls,
        plain_http: bool,
        members: Vec<At<String>>,
        allow: Vec<At<String>>,
    }
}

section! {
    /// `tls = { … }`.
    RawTrust {
        ca: String,
        pins: Vec<At<Pin>>,
    }
}

section! {
    /// `[[dhcp]]`.
    RawDhcp {
        interface: String,
        mode: RawMode,
        address: Ipv4Addr,
        server_port: u16,
        client_port: u16,
        proxy_port: u16,
        relays: Vec<At<Ipv4Addr>>,
        loaders: Named<String>,
        pxelinux: RawPxelinux,
        server: RawLeases,
        relayed: Vec<At<RawLeases>>,
    }
}

section! {
    /// `[dhcp.pxelinux]`.
    RawPxelinux {
        config_file: String,
        path_prefix: String,
        reboot_time: Duration,
    }
}

section! {
    /// `[dhcp.server]`, and `[[dhcp.relayed]]` for networks behind relays.
    RawLeases {
        range: Vec<At<Ipv4Addr>>,
        netmask: Ipv4Addr,
        router: Ipv4Addr,
        dns: Vec<At<Ipv4Addr>>,
        domain: String,
        ntp: Vec<At<Ipv4Addr>>,
        mtu: u16,
        options: Named<OptionBytes>,
        lease: Duration,
        lease_to_strangers: bool,
        keep_for_jobs: u32,
        reservations: Named<Ipv4Addr>,
    }
}

section! {
    /// `[tftp]`.
    RawTftp {
        listen: Vec<At<SocketAddrV4>>,
        root: String,
        loader: String,
        device: String,
        engine: TftpEngine,
        single_port: bool,
        rollover: u16,
        block_size: u16,
        window: u16,
        clients: Vec<At<Ipv4Net>>,
        transfers_per_client: u16,
        transfers: u16,
    }
}

section! {
    /// `[http]`.
    RawHttp {
        listen: SocketAddrV4,
        public_url: String,
        root: String,
        device: String,
    }
}

section! {
    /// `[syslog]`.
    RawSyslog {
        listen: SocketAddrV4,
        device: String,
        file_size: u32,
    }
}

section! {
    /// `[admin]`.
    RawAdmin {
        socket: String,
        listen: SocketAddr,
        tls: AdminTls,
        tls_cert: String,
        tls_key: String,
        plain_http: bool,
    }
}

section! {
    /// `[profile.NAME]`.
    RawProfile {
        base: String,
        kind: ProfileKind,
        kernel: String,
        initrd: OneOrMany,
        files: OneOrMany,
        args: String,
        answer: OneOrMany,
        fetch: Fetch,
        completion: Completion,
        min_install: Duration,
        evidence: EvidenceKind,
        accept_weak: bool,
        report_by_get: bool,
        disk: String,
        variable: Named<RawVariable>,
        variables: Named<serde_json::Value>,
    }
}

section! {
    /// `[profile.NAME.variable.NAME]`.
    RawVariable {
        kind: VariableKind,
        default: serde_json::Value,
        choices: Vec<At<String>>,
        about: String,
    }
}

section! {
    /// `[group.NAME]`.
    RawGroup {
        members: OneOrMany,
        variables: Named<serde_json::Value>,
    }
}

section! {
    /// `[machine.NAME]`.
    RawMachine {
        mac: MacAddr,
        disk: String,
        profile: String,
        variables: Named<serde_json::Value>,
    }
}

section! {
    /// `[limits]`.
    RawLimits {
        installs_per_pool: u32,
        installs_per_host: u32,
        calls_per_pool: u32,
    }
}

section! {
    /// `[deadlines]`.
    RawDeadlines {
        dhcp: Duration,
        kernel: Duration,
        answer: Duration,
        first_stage: Duration,
        install: Duration,
        halt_after_report: Duration,
        report_after_halt: Duration,
        pv_start: Duration,
        evidence: Duration,
        effect: Duration,
        clean_shutdown: Duration,
        poll: Duration,
    }
}

/// A value that is not looked at.
#[derive(Debug)]
pub(super) struct Unread;

impl Read for Unread {
    fn read(_: &DeValue<'_>, _: &Spot, _: &mut Reader<'_>) -> Option<Self> {
        Some(Self)
    }
}

/// How a certificate is judged, as written.
#[derive(Debug)]
pub(super) enum RawTls {
    Insecure,
    Trust(RawTrust),
}

impl Read for RawTls {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        if value.is_table() {
            return RawTrust::read(value, spot, reader).map(Self::Trust);
        }
        let insecure = value.as_str() == Some("insecure");
        if !insecure {
            let remedy = "write { pins = [\"SHA-256\"] }, { ca = \"FILE\" } or \"insecure\"";
            reader.notes.wrong(spot, "is not a way to judge a certificate", remedy);
        }
        insecure.then_some(Self::Insecure)
    }
}

/// A string, or a list of strings.
#[derive(Debug)]
pub(super) struct OneOrMany(pub(super) Vec<At<String>>);

impl Read for OneOrMany {
    fn read(value: &DeValue<'_>, spot: &Spot, reader: &mut Reader<'_>) -> Option<Self> {
        match value.as_str() {
            Some(text) => Some(Self(vec![At { value: text.to_owned(), spot: spot.clone() }])),
            None => Vec::read(value, spot, reader).map(Self),
        }
    }
}

/// `tls` of `[admin]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum AdminTls {
    Generated,
}

/// `mode` of `[[dhcp]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RawMode {
    Off,
    Proxy,
    Server,
}

/// SHA-256 of a certificate.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pin(pub(super) [u8; 32]);

impl Scalar for Pin {
    const FORM: &str = "the SHA-256 of a certificate, 64 hex digits";
    const EXAMPLE: &str = "`openssl x509 -noout -fingerprint -sha256` prints it";

    fn scan(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        let hex = digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit);
        let bytes: Vec<u8> = digits.chunks(2).map(byte).collect::<Option<_>>().filter(|_| hex)?;
        bytes.try_into().map(Self).ok()
    }
}

/// The value of a DHCP option, by the form that it is written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OptionBytes(pub(super) Vec<u8>);

impl Scalar for OptionBytes {
    const FORM: &str = "the value of a DHCP option";
    const EXAMPLE: &str =
        "\"text:…\", \"hex:0a0b…\", \"ip:10.0.0.2,10.0.0.3\", \"u8:1\", \"u16:1500\" or \"u32:60\"";

    fn scan(text: &str) -> Option<Self> {
        let (form, value) = text.split_once(':')?;
        let bytes = match form {
            "text" => value.as_bytes().to_vec(),
            "hex" => hex(value)?,
            "ip" => {
                let addresses = value.split(',').map(|address| address.trim().parse::<Ipv4Addr>().ok());
                addresses.collect::<Option<Vec<_>>>()?.iter().flat_map(Ipv4Addr::octets).collect()
            }
            "u8" => vec![value.parse::<u8>().ok()?],
            "u16" => value.parse::<u16>().ok()?.to_be_bytes().to_vec(),
            "u32" => value.parse::<u32>().ok()?.to_be_bytes().to_vec(),
            _ => return None,
        };
        // RFC 2132: no option that an operator would write has an empty value, and longer ones would be split.
        (1..=usize::from(u8::MAX)).contains(&bytes.len()).then_some(Self(bytes))
    }
}

/// Bytes in hex, with or without colons between them.
fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
        pair.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u8::from_str_radix(pair, 16).ok())?
    };
    digits.chunks(2).map(byte).collect()
}

impl Scalar for String {
    const FORM: &str = "text";
    const EXAMPLE: &str = "\"…\"";

    fn scan(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Scalar for Ipv4Addr {
    const FORM: &str = "an IPv4 address";
    const EXAMPLE: &str = "\"10.0.0.2\"";

    fn scan(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Scalar for Ipv4Net {
    const FORM: &str = "an IPv4 network";
    const EXAMPLE: &str = "\"10.1.0.0/24\"";

    /// An address with host bits is somebody's, and no network.
    fn scan(text: &str) -> Option<Self> {
        text.parse().ok().filter(|network: &Self| network.network() == network.addr())
    }
}

impl Scalar for SocketAddr {
    const FORM: &str = "an address with a port";
    const EXAMPLE: &str = "\"127.0.0.1:8443\"";

    fn scan(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Scalar for SocketAddrV4 {
    const FORM: &str = "an IPv4 address with a port";
    const EXAMPLE: &str = "\"ADDRESS:PORT\"";

    fn scan(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Scalar for MacAddr {
    const FORM: &str = "a MAC address";
    const EXAMPLE: &str = "\"02:16:3e:00:00:01\"";

    fn scan(text: &str) -> Option<Self> {
        text.parse().ok()
    }
}

impl Scalar for Duration {
    const FORM: &str = "a length of time";
    const EXAMPLE: &str = "\"500ms\", \"90s\", \"5m\", \"2h\" or \"1h30m\"";

    fn scan(text: &str) -> Option<Self> {
        let mut rest = text;
        let mut total = Self::ZERO;
        while !rest.is_empty() {
            let number = rest.split_at(rest.find(|c: char| !c.is_ascii_digit())?);
            let unit =
                number.1.split_at(number.1.find(|c: char| c.is_ascii_digit()).unwrap_or(number.1.len()));
            let millis: u64 = match unit.0 {
                "ms" => 1,
                "s" => 1000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return None,
            };
            let part = number.0.parse::<u64>().ok()?.checked_mul(millis)?;
            total = total.checked_add(Self::from_millis(part))?;
            rest = unit.1;
        }
        (!text.is_empty()).then_some(total)
    }
}

/// Enums, by their words.
macro_rules! words {
    ($type:ty, $form:literal, $example:literal, { $($word:literal => $value:path,)* }) => {
        impl Scalar for $type {
            const FORM: &str = $form;
            const EXAMPLE: &str = $example;

            fn scan(text: &str) -> Option<Self> {
                match text {
                    $($word => Some($value),)*
                    _ => None,
                }
            }
        }
    };
}

words!(RawMode, "a DHCP mode", r#""off", "proxy" or "server""#, {
    "off" => Self::Off,
    "proxy" => Self::Proxy,
    "server" => Self::Server,
});

words!(ProfileKind, "a kind of profile", r#""install" or "rescue""#, {
    "install" => Self::Install,
    "rescue" => Self::Rescue,
});

words!(Completion, "a way to know completion", r#""report", "halt" or "either""#, {
    "report" => Self::Report,
    "halt" => Self::Halt,
    "either" => Self::Either,
});

words!(VariableKind, "a kind of variable", r#""text", "secret", "integer", "boolean", "list", "address" or "users""#, {
    "text" => Self::Text,
    "secret" => Self::Secret,
    "integer" => Self::Integer,
    "boolean" => Self::Boolean,
    "list" => Self::List,
    "address" => Self::Address,
    "users" => Self::Users,
});

words!(Fetch, "a way to fetch boot files", r#""http" or "tftp""#, {
    "http" => Self::Http,
    "tftp" => Self::Tftp,
});

words!(AdminTls, "a way to have a certificate", r#""generated", or tls_cert and tls_key instead"#, {
    "generated" => Self::Generated,
});

words!(TftpEngine, "a TFTP engine", r#""own" or "async-tftp""#, {
    "own" => Self::Own,
    "async-tftp" => Self::AsyncTftp,
});

words!(LogFormat, "a format of logs", r#""text", "json" or "journald""#, {
    "text" => Self::Text,
    "json" => Self::Json,
    "journald" => Self::Journald,
});

impl Scalar for EvidenceKind {
    const FORM: &str = "a kind of evidence";
    const EXAMPLE: &str = r#""report", "lease", "agent", "tcp:PORT" or "none""#;

    fn scan(text: &str) -> Option<Self> {
        match text {
            "report" => Some(Self::Report),
            "lease" => Some(Self::Lease),
            "agent" => Some(Self::Agent),
            "none" => Some(Self::None),
            _ => text.strip_prefix("tcp:")?.parse().ok().map(Self::Tcp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTIONS: [(&str, &[&str]); 17] = [
        ("", RawConfig::KEYS),
        ("[server]", RawServer::KEYS),
        ("[pool.", RawPool::KEYS),
        ("[[dhcp]]", RawDhcp::KEYS),
        ("[dhcp.server]", RawLeases::KEYS),
        ("[dhcp.pxelinux]", RawPxelinux::KEYS),
        ("[tftp]", RawTftp::KEYS),
        ("[http]", RawHttp::KEYS),
        ("[syslog]", RawSyslog::KEYS),
        ("[admin]", RawAdmin::KEYS),
        ("[profile.", RawProfile::KEYS),
        ("[profile.NAME.variable.", RawVariable::KEYS),
        ("[group.", RawGroup::KEYS),
        ("[machine.", RawMachine::KEYS),
        ("[limits]", RawLimits::KEYS),
        ("[deadlines]", RawDeadlines::KEYS),
        ("tls", RawTrust::KEYS),
    ];

    /// `key = …`, also behind `# `, or a section of that name.
    fn shows(text: &str, key: &str) -> bool {
        let stated = |line: &str| {
            let line = line.trim_start_matches("# ");
            let section = line.starts_with('[') && line.split(['[', ']', '.']).any(|part| part == key);
            section || line.starts_with(&format!("{key} = ")) || line.contains(&format!("{{ {key} = "))
        };
        text.lines().any(stated)
    }

    #[test]
    fn the_example_and_the_whole_test_show_every_key() {
        let example = include_str!("../../config/bootflip.toml");
        let whole = include_str!("../../tests/data/whole.toml");
        for (section, key) in
            SECTIONS.iter().flat_map(|(section, keys)| keys.iter().map(move |key| (section, *key)))
        {
            // A password in the file is refused, so neither has one.
            let refused = key == "password";
            assert!(refused || shows(example, key), "{section} {key} is not in config/bootflip.toml");
            assert!(refused || shows(whole, key), "{section} {key} is not in tests/data/whole.toml");
        }
    }

    #[test]
    fn lengths_of_time_are_numbers_with_units() {
        for (text, millis) in [
            ("500ms", Some(500)),
            ("90s", Some(90_000)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("1d", Some(86_400_000)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("", None),
            ("5", None),
            ("m", None),
            ("-5m", None),
            ("5 m", None),
            ("1.5h", None),
            ("5min", None),
            ("99999999999999999999d", None),
            ("999999999999999999d", None),
        ] {
            assert_eq!(Duration::scan(text), millis.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn evidence_by_tcp_names_a_port() {
        let tcp = |port| std::num::NonZeroU16::new(port).map(EvidenceKind::Tcp);
        for (text, expected) in [
            ("tcp:22", tcp(22)),
            ("tcp:65535", tcp(65_535)),
            ("agent", Some(EvidenceKind::Agent)),
            ("tcp", None),
            ("tcp:", None),
            ("tcp:0", None),
            ("tcp:65536", None),
            ("tcp:ssh", None),
            ("udp:53", None),
        ] {
            assert_eq!(EvidenceKind::scan(text), expected, "{text:?}");
        }
    }

    #[test]
    fn option_values_are_read_by_the_form_that_they_name() {
        for (text, bytes) in [
            ("text:http://wpad/x", Some(&b"http://wpad/x"[..])),
            ("hex:0a0B", Some(&[10, 11])),
            ("hex:0a:0b:ff", Some(&[10, 11, 255])),
            ("ip:10.0.0.1", Some(&[10, 0, 0, 1])),
            ("ip:10.0.0.1, 10.0.0.2", Some(&[10, 0, 0, 1, 10, 0, 0, 2])),
            ("u8:255", Some(&[255])),
            ("u16:1500", Some(&[5, 220])),
            ("u32:60", Some(&[0, 0, 0, 60])),
            ("10.0.0.1", None),
            ("text:", None),
            ("hex:0", None),
            ("hex:+1", None),
            ("ip:10.0.0", None),
            ("u8:256", None),
            (&format!("text:{}", "x".repeat(256)), None),
        ] {
            assert_eq!(OptionBytes::scan(text).map(|option| option.0), bytes.map(<[u8]>::to_vec), "{text}");
        }
    }

    #[test]
    fn pins_are_read_as_openssl_prints_them() {
        let colons = ["AB"; 32].join(":");
        for (text, good) in [
            (colons.as_str(), true),
            (&"0a".repeat(32), true),
            (&"0a".repeat(31), false),
            (&"é".repeat(32), false),
        ] {
            assert_eq!(Pin::scan(text).is_some(), good, "{text}");
        }
    }
}

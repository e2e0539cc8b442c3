//! What another DHCP server has to be told so that its clients boot from us: for networks where ours is off. Pure.

use std::{collections::BTreeMap, fmt::Write, net::Ipv4Addr};

use crate::config::architecture;

/// A DHCP server whose configuration we can write a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// ISC dhcpd 4.
    Isc,
    /// Kea 2.2 or newer, with its hook library `libdhcp_flex_option.so`.
    Kea,
    /// dnsmasq 2.80 or newer.
    Dnsmasq,
}

/// What clients are pointed to.
#[derive(Debug, Clone)]
pub struct Target {
    /// Our TFTP server.
    pub next_server: Ipv4Addr,
    /// Base of the boot script's URL, such as `http://10.0.0.2:8080`.
    pub boot_url: String,
    /// Loaders by architecture; BIOS is 0.
    pub loaders: BTreeMap<u16, String>,
}

/// The lines for that server.
pub fn snippet(dialect: Dialect, target: &Target) -> String {
    match dialect {
        Dialect::Isc => isc(target),
        Dialect::Kea => kea(target),
        Dialect::Dnsmasq => dnsmasq(target),
    }
}

/// iPXE on XenServer names itself so, and what it can do in option 175.
const IPXE_NAMES: [&str; 2] = ["iPXE", "gPXE"];

fn isc(target: &Target) -> String {
    // binary-to-ascii leaves leading zeros out, and our URLs have them.
    let byte = |at: u32| {
        format!("suffix(concat(\"0\", binary-to-ascii(16, 8, \"\", substring(hardware, {at}, 1))), 2)")
    };
    let mac = (1..=6).map(byte).collect::<Vec<_>>().join(", \":\", ");
    let names = IPXE_NAMES.map(|name| format!("option user-class = \"{name}\"")).join(" or ");
    let mut text = format!(
        "# bootflip, for ISC dhcpd: in the subnet of the machines, or above all subnets.\n\
         option architecture code 93 = unsigned integer 16;\n\
         if {names} {{\n    filename = concat(\"{}/b/\", {mac});\n}}",
        target.boot_url
    );
    for (code, file) in &target.loaders {
        // As bytes: a number never equals what a client sent.
        let [high, low] = code.to_be_bytes();
        let _ = write!(
            text,
            " elsif substring(option vendor-class-identifier, 0, 9) = \"PXEClient\" and option architecture = {high:02x}:{low:02x} {{\n    \
             # {}\n    next-server {};\n    filename \"{file}\";\n}}",
            architecture::word(*code).unwrap_or("a code of option 93"),
            target.next_server
        );
    }
    text.push('\n');
    text
}

fn kea(target: &Target) -> String {
    let names = IPXE_NAMES.map(|name| format!("option[77].hex == '{name}'")).join(" or ");
    let mut classes = vec![serde_json::json!({ "name": "bootflip-ipxe", "test": names })];
    for (code, file) in &target.loaders {
        let name = format!("bootflip-{code}");
        classes.push(serde_json::json!({
            "name": name,
            "test": format!(
                "substring(option[60].hex,0,9) == 'PXEClient' and option[93].hex == 0x{code:04x} and not member('bootflip-ipxe')"
            ),
            "next-server": target.next_server,
            "boot-file-name": file,
        }));
    }
    let url = format!("concat('{}/b/', hexstring(pkt4.mac, ':'))", target.boot_url);
    let option = serde_json::json!({ "code": 67, "client-class": "bootflip-ipxe", "supersede": url });
    let whole = serde_json::json!({
        "client-classes": classes,
        "hooks-libraries": [{
            "library": "/usr/lib/x86_64-linux-gnu/kea/hooks/libdhcp_flex_option.so",
            "parameters": { "options": [option] },
        }],
    });
    let text = serde_json::to_string_pretty(&whole).unwrap_or_default();
    format!("// bootflip, for Kea: into \"Dhcp4\"; the library's folder is your distribution's.\n{text}\n")
}

fn dnsmasq(target: &Target) -> String {
    let mut text = "# bootflip, for dnsmasq.\n".to_owned();
    for name in IPXE_NAMES {
        let _ = writeln!(text, "dhcp-userclass=set:bootflip-ipxe,{name}");
    }
    let _ = writeln!(text, "# The ROM puts its MAC address in; net0 is the first network card.");
    let _ = writeln!(text, "dhcp-boot=tag:bootflip-ipxe,{}/b/${{net0/mac}}", target.boot_url);
    for (code, file) in &target.loaders {
        let _ = writeln!(text, "dhcp-match=set:bootflip-{code},option:client-arch,{code}");
        let _ =
            writeln!(text, "dhcp-boot=tag:!bootflip-ipxe,tag:bootflip-{code},{file},,{}", target.next_server);
    }
    text
}

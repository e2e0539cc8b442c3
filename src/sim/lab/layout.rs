//! The configuration that the lab writes for the server. Pure text.

use std::{net::SocketAddr, path::Path};

use super::{
    installer::{Installer, MIRROR},
    network::{BRIDGE, NETMASK, RANGE, SERVER},
    scene::DISK,
};

/// The configuration's path beneath the lab's folder.
pub const CONFIG: &str = "bootflip.toml";
/// The admin socket's path beneath the folder.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The file with the pool's password, beneath the folder.
pub const PASSWORD: &str = "password";
/// What starts the server and commands, beneath the folder.
pub const LAUNCHER: &str = "bootflip";

/// What of the server's configuration a run may choose.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// `limits.installs_per_pool`.
    pub at_once: u16,
    /// `tftp.engine`.
    pub tftp_engine: &'a str,
    /// Lines of `[deadlines]` beside `poll`.
    pub deadlines: &'a str,
}

/// The configuration for a simulated pool at `pool`; `www` holds kernel and initrds, `names` are the VMs. The last: what
/// they are installed with, and what the package mirror is signed with, base64 (empty where there is none).
pub fn config<'a>(
    folder: &Path,
    www: &Path,
    pool: SocketAddr,
    names: impl Iterator<Item = &'a str>,
    served: &Served<'_>,
    (installer, mirror_key): (Installer, &str),
) -> String {
    let machines = names
        .enumerate()
        .map(|(number, name)| format!("\n[machine.{name}]\nprofile = \"{}\"\n", installer.profile(number)));
    base(folder, www, pool, served) + &installer.sections(mirror_key) + &machines.collect::<String>()
}

/// The mini installer as a profile; `console`: the kernel's, such as `ttyS0`.
pub(in crate::sim) fn profile_section(name: &str, fetch: &str, console: &str) -> String {
    format!(
        r#"
[profile.{name}]
kernel = "vmlinuz"
initrd = ["initrd.gz", "rootfs.cpio"]
args = "console={console} panic=5 url={{{{ answer_url }}}} BOOTIF=01-{{{{ machine.mac|replace(':', '-') }}}}"
answer = "mini.j2"
fetch = "{fetch}"
completion = "report"
evidence = "report"
disk = "{DISK}"
"#
    )
}

/// The configuration without profiles and machines.
pub(in crate::sim) fn base(folder: &Path, www: &Path, pool: SocketAddr, served: &Served<'_>) -> String {
    let Served { at_once, tftp_engine, deadlines } = served;
    let (first, last) = RANGE;
    format!(
        r#"# Written by `bootflip lab`.
[server]
name = "lab"
state_dir = "{folder}/state"

[pool.lab]
url = "http://{pool}"
plain_http = true
user = "root"
password_file = "{folder}/{PASSWORD}"

[[dhcp]]
interface = "{BRIDGE}"
mode = "server"
address = "{SERVER}"

[dhcp.server]
range = ["{first}", "{last}"]
netmask = "{NETMASK}"
router = "{MIRROR}"
dns = ["{MIRROR}"]

[tftp]
listen = ["{SERVER}:69"]
root = "{www}"
engine = "{tftp_engine}"

[http]
listen = "{SERVER}:8080"
root = "{www}"

[admin]
socket = "{folder}/{ADMIN_SOCKET}"

[limits]
installs_per_pool = {at_once}
installs_per_host = {at_once}

[deadlines]
poll = "1s"
{deadlines}"#,
        folder = folder.display(),
        www = www.display(),
    )
}

/// A script that becomes `program`, which then dies with the thread that started it: a lab that is killed leaves no
/// server behind.
pub fn launcher(program: &Path) -> String {
    let quoted = program.to_string_lossy().replace('\'', "'\\''");
    format!("#!/bin/sh\nexec setpriv --pdeathsig KILL '{quoted}' \"$@\"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_launcher_takes_any_path() {
        let line = "exec setpriv --pdeathsig KILL '/a b/it'\\''s/bootflip' \"$@\"";
        assert_eq!(launcher(Path::new("/a b/it's/bootflip")).lines().nth(1), Some(line));
    }

    #[test]
    fn the_configuration_holds_its_folders_and_no_open_brace() {
        let names = ["lab-01", "lab-02"].into_iter();
        let served = Served { at_once: 2, tftp_engine: "async-tftp", deadlines: "" };
        let text = config(
            Path::new("/f"),
            Path::new("/w"),
            ([127, 0, 0, 1], 4000).into(),
            names,
            &served,
            (Installer::Mini, ""),
        );
        for line in [
            "state_dir = \"/f/state\"",
            "url = \"http://127.0.0.1:4000\"",
            "root = \"/w\"",
            "listen = [\"10.77.0.1:69\"]",
            "installs_per_pool = 2",
            "engine = \"async-tftp\"",
        ] {
            assert!(text.lines().any(|written| written == line), "{line}");
        }
        let machines = "[machine.lab-01]\nprofile = \"mini-tftp\"\n\n[machine.lab-02]\nprofile = \"mini\"\n";
        assert!(text.ends_with(machines), "{text}");
        assert!(text.contains("url={{ answer_url }} BOOTIF=01-{{ machine.mac|replace(':', '-') }}"));
    }
}

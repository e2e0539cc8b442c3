//! The configuration that the lab writes for the server. Pure text.

use std::{net::SocketAddr, path::Path};

use super::{
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
/// The profile that the lab deploys.
pub const PROFILE: &str = "mini";

/// The configuration for a simulated pool at `pool`; `www` holds kernel and initrds, `at_once` VMs are installed at
/// the same time.
pub fn config(folder: &Path, www: &Path, pool: SocketAddr, at_once: u16) -> String {
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

[tftp]
listen = ["{SERVER}:69"]
root = "{www}"

[http]
listen = "{SERVER}:8080"
root = "{www}"

[admin]
socket = "{folder}/{ADMIN_SOCKET}"

[profile.{PROFILE}]
kernel = "vmlinuz"
initrd = ["initrd.gz", "rootfs.cpio"]
args = "console=ttyS0 panic=5 url={{{{ answer_url }}}} BOOTIF=01-{{{{ machine.mac|replace(':', '-') }}}}"
answer = "mini.j2"
completion = "report"
evidence = "report"
disk = "{DISK}"

[limits]
installs_per_pool = {at_once}

[deadlines]
poll = "1s"
"#,
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
        let text = config(Path::new("/f"), Path::new("/w"), ([127, 0, 0, 1], 4000).into(), 2);
        for line in [
            "state_dir = \"/f/state\"",
            "url = \"http://127.0.0.1:4000\"",
            "root = \"/w\"",
            "listen = [\"10.77.0.1:69\"]",
            "installs_per_pool = 2",
        ] {
            assert!(text.lines().any(|written| written == line), "{line}");
        }
        assert!(text.contains("url={{ answer_url }} BOOTIF=01-{{ machine.mac|replace(':', '-') }}"));
    }
}

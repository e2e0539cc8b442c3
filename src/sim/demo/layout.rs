//! The files and the configuration that the demo writes for the server. Pure text; `run.rs` writes it.

use std::path::Path;

use super::{Break, options::DemoOptions};

/// The ports of one demo, all on 127.0.0.1 and device `lo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The simulated pool.
    pub pool: u16,
    /// DHCP server.
    pub dhcp_server: u16,
    /// DHCP client; held by the demo itself.
    pub dhcp_client: u16,
    /// DHCP, boot server discovery.
    pub dhcp_proxy: u16,
    /// TFTP.
    pub tftp: u16,
    /// Boot HTTP.
    pub http: u16,
}

/// A file to write, by its path beneath the demo's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Relative path.
    pub path: &'static str,
    /// What stands in it.
    pub content: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
}

/// Every file of the demo's folder.
pub fn files(folder: &Path, ports: &Ports, options: &DemoOptions, password: &str) -> Vec<File> {
    let file = |path, content: &[u8], mode| File { path, content: content.to_vec(), mode };
    let mut files = vec![
        file(CONFIG, config(folder, ports, options).as_bytes(), 0o600),
        file("password", format!("{password}\n").as_bytes(), 0o600),
        file("root/mini/vmlinuz", &filler(b"bootflip demo kernel\n", KERNEL_BYTES), 0o644),
        file("root/mini/initrd", &filler(b"bootflip demo initrd\n", INITRD_BYTES), 0o644),
        // Plain PXE ROMs load one of these by TFTP; the simulated ROM takes whatever comes for an iPXE.
        file("root/undionly.kpxe", &filler(b"bootflip demo loader\n", LOADER_BYTES), 0o644),
        file("root/pxelinux.0", &filler(b"bootflip demo loader\n", LOADER_BYTES), 0o644),
    ];
    if options.broken == Some(Break::Report) {
        files.push(file("templates/mini.j2", BROKEN_ANSWER.as_bytes(), 0o644));
    }
    files
}

/// The configuration's path beneath the folder.
pub const CONFIG: &str = "bootflip.toml";
/// The admin socket's path beneath the folder.
pub const ADMIN_SOCKET: &str = "admin.sock";
/// The profile that the demo deploys.
pub const PROFILE: &str = "mini";
/// The pool's name in the configuration.
pub const POOL: &str = "demo";
/// The tag on every VM of the demo.
pub const TAG: &str = "bootflip-demo";

fn config(folder: &Path, ports: &Ports, options: &DemoOptions) -> String {
    let folder = folder.display();
    let kernel = if options.broken == Some(Break::Kernel) { "mini/no-such-kernel" } else { "mini/vmlinuz" };
    let mut text = format!(
        r#"# Written by `bootflip demo`.
[server]
name = "demo"
state_dir = "{folder}/state"

[pool.{POOL}]
url = "http://127.0.0.1:{pool}"
plain_http = true
user = "root"
password_file = "{folder}/password"
members = ["127.0.0.2:{pool}"]

[[dhcp]]
interface = "lo"
mode = "server"
address = "127.0.0.1"
server_port = {dhcp_server}
client_port = {dhcp_client}
proxy_port = {dhcp_proxy}

[dhcp.server]
range = ["127.64.0.1", "127.64.255.254"]
netmask = "255.255.0.0"
lease = "1h"

[tftp]
listen = ["127.0.0.1:{tftp}"]
root = "{folder}/root"
device = "lo"

[http]
listen = "127.0.0.1:{http}"
root = "{folder}/root"
device = "lo"

[admin]
socket = "{folder}/{ADMIN_SOCKET}"

[profile.{PROFILE}]
kernel = "{kernel}"
initrd = "mini/initrd"
args = "console=ttyS0 bootflip.answer={{{{ answer_url }}}}"
answer = "mini.j2"
completion = "report"
evidence = "report"

[limits]
installs_per_pool = {cap}
installs_per_host = {cap}

"#,
        pool = ports.pool,
        dhcp_server = ports.dhcp_server,
        dhcp_client = ports.dhcp_client,
        dhcp_proxy = ports.dhcp_proxy,
        tftp = ports.tftp,
        http = ports.http,
        cap = options.cap(),
    );
    text.push_str(DEADLINES);
    if options.broken == Some(Break::Report) {
        // A key of the top level has to stand before the first table.
        text = format!("template_dir = \"{folder}/templates\"\n{text}");
    }
    text
}

/// `size` bytes that begin with `head`.
fn filler(head: &[u8], size: usize) -> Vec<u8> {
    head.iter().copied().cycle().take(size).collect()
}

/// Long for guests in a hurry on a busy machine, short for people who wait for the demo.
const DEADLINES: &str = r#"
[deadlines]
dhcp = "30s"
kernel = "40s"
answer = "50s"
first_stage = "60s"
install = "90s"
halt_after_report = "15s"
report_after_halt = "3s"
pv_start = "40s"
evidence = "40s"
effect = "60s"
poll = "1s"
"#;

/// Reports go where nothing listens for them.
const BROKEN_ANSWER: &str =
    "REPORT_URL={{ (report_url ~ '-broken')|shquote }}\nBOOTED_URL={{ booted_url|shquote }}\n";
/// Small enough for a thousand guests, large enough for several chunks.
const KERNEL_BYTES: usize = 1_500_000;
const INITRD_BYTES: usize = 2_500_000;
const LOADER_BYTES: usize = 70_000;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::config;

    fn load(broken: Option<Break>) -> config::Config {
        let folder = tempfile::tempdir().unwrap();
        let program = "bootflip".into();
        let options = DemoOptions { json: true, broken, program, ..DemoOptions::default() };
        let ports = Ports {
            pool: 4001,
            dhcp_server: 4002,
            dhcp_client: 4003,
            dhcp_proxy: 4004,
            tftp: 4005,
            http: 4006,
        };
        for file in files(folder.path(), &ports, &options, "simulated") {
            let path = folder.path().join(file.path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &file.content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(file.mode)).unwrap();
        }
        config::load(&folder.path().join(CONFIG)).unwrap_or_else(|problems| panic!("{problems}"))
    }

    #[test]
    fn configuration_is_one_that_the_server_takes() {
        for broken in [None, Some(Break::Kernel), Some(Break::Report)] {
            let config = load(broken);
            assert_eq!(config.limits.installs_per_pool, 4);
            assert_eq!(config.template_dir.is_some(), broken == Some(Break::Report));
            let kernel = config.profiles[PROFILE].boot.as_ref().unwrap().kernel.clone();
            assert_eq!(kernel == "mini/vmlinuz", broken != Some(Break::Kernel));
        }
    }

    #[test]
    fn every_listener_of_the_demo_is_on_lo() {
        let config = load(None);
        assert!(config.dhcp.iter().all(|dhcp| dhcp.interface == "lo" && dhcp.address.is_loopback()));
        let (tftp, http) = (config.tftp.unwrap(), config.http.unwrap());
        assert!(
            tftp.listen.iter().all(|address| address.ip().is_loopback()) && http.listen.ip().is_loopback()
        );
        assert_eq!((tftp.device.as_deref(), http.device.as_deref()), (Some("lo"), Some("lo")));
    }
}

//! Xen and its dom0 in one QEMU, and the way in: ssh over a connection that is kept.
//!
//! A look from inside costs a tenth of a second of an emulated processor. So guests' consoles are read outside, from
//! a folder that dom0 shares, and the end of a domain is told by the `xl create` that waits for it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    time::Instant,
};

use super::{LabXen, XenLabError};
use crate::sim::{demo::children::tail, lab::Network};

/// The tap of the guests' wire.
const TAP: &str = "dom0";
/// In the lab's own namespace nobody else listens.
const SSH_PORT: &str = "2222";
/// `prepare.sh` makes dom0's root with this.
const ROOT_UUID: &str = "6d0a3c1e-d002-4c17-8e00-0000000000d0";
/// What dom0 writes to its console last.
const READY: &str = "dom0: ready";
/// 15 s on two quiet processors; many times as long on busy ones.
const START_TIME: Duration = Duration::from_secs(900);
const LOOK: Duration = Duration::from_millis(200);

/// A dom0 that runs; ended when dropped.
#[derive(Debug)]
pub struct DomZero {
    _qemu: Child,
    _connection: Child,
    folder: PathBuf,
    keys: PathBuf,
}

impl DomZero {
    /// Boots Xen with a tap in the lab's bridge and these images as dom0's disks `/dev/vdb` and on; waits until the
    /// toolstack runs. `folder` takes consoles. To be called on the thread that lives as long as the lab.
    pub async fn boot(
        lab: &LabXen,
        network: &Network,
        folder: &Path,
        disks: &[PathBuf],
    ) -> Result<Self, XenLabError> {
        network.tap(TAP)?;
        let run = |source| XenLabError::Run { program: "qemu-system-x86_64", source };
        std::fs::create_dir_all(folder.join("consoles")).map_err(run)?;
        let errors = std::fs::File::create(folder.join("qemu.log")).map_err(run)?;
        let mut qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "nice", "-n", "10", "qemu-system-x86_64"])
            .args(arguments(lab, folder, disks))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(run)?;
        let console = hypervisor_console(folder);
        let ends = Instant::now() + START_TIME;
        let keys = lab.folder.join("ssh");
        loop {
            let said = read(&console);
            if said.contains(READY) {
                break;
            }
            let ended = qemu.try_wait().ok().flatten();
            if ended.is_some() || Instant::now() > ends {
                let what = ended.map_or_else(
                    || format!("was not ready after {} s", START_TIME.as_secs()),
                    |status| format!("ended ({status})"),
                );
                return Err(XenLabError::DomZero { what, tail: tail(&console) });
            }
            tokio::time::sleep(LOOK).await;
        }
        let connection = connect(&keys, &folder.join("ssh"), &console, ends).await?;
        Ok(Self { _qemu: qemu, _connection: connection, folder: folder.to_owned(), keys })
    }

    /// A command of dom0's shell, over the connection that is there.
    pub fn command(&self, words: &str) -> Command {
        let mut command = ssh(&self.keys, &self.folder.join("ssh"));
        command.args(["root@127.0.0.1", words]);
        command
    }

    /// Runs a command and waits for it; what it printed.
    pub async fn run(&self, words: &str) -> Result<String, XenLabError> {
        let output = self.command(words).stdout(Stdio::piped()).stderr(Stdio::piped()).output().await;
        let output = output.map_err(|source| XenLabError::Run { program: "ssh", source })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(XenLabError::Refused { command: words.to_owned(), complaint })
    }

    /// Starts a command with this text as its input; what it prints is read by the caller.
    pub async fn start(&self, words: &str, input: &str) -> Result<Child, XenLabError> {
        let failed = |source| XenLabError::Run { program: "ssh", source };
        let mut child =
            self.command(words).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(failed)?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(input.as_bytes()).await.map_err(failed)?;
        }
        Ok(child)
    }

    /// Where the console of the domain of this name is written while it lives.
    pub fn console(&self, name: &str) -> PathBuf {
        self.folder.join("consoles").join(format!("guest-{name}.log"))
    }

    /// The heads of all packets on the guests' wire so far, as a pcap file.
    pub fn wire(&self) -> Vec<u8> {
        std::fs::read(wire_capture(&self.folder)).unwrap_or_default()
    }

    /// What the hypervisor, dom0's kernel and the firmware of HVM domains have said.
    pub fn hypervisor(&self) -> String {
        read(&hypervisor_console(&self.folder))
    }
}

/// The connection that all commands share. sshd listens a moment after it says that it runs, and an emulated one may
/// miss a client's patience: what does not come about is tried again.
async fn connect(keys: &Path, control: &Path, console: &Path, ends: Instant) -> Result<Child, XenLabError> {
    loop {
        let mut connection = ssh(keys, control)
            .args(["-M", "-N", "root@127.0.0.1"])
            .spawn()
            .map_err(|source| XenLabError::Run { program: "ssh", source })?;
        while matches!(connection.try_wait(), Ok(None)) {
            if control.exists() {
                return Ok(connection);
            }
            if Instant::now() > ends {
                return Err(XenLabError::DomZero { what: "takes no ssh".to_owned(), tail: tail(console) });
            }
            tokio::time::sleep(LOOK).await;
        }
        if Instant::now() > ends {
            return Err(XenLabError::DomZero { what: "refuses ssh".to_owned(), tail: tail(console) });
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn wire_capture(folder: &Path) -> PathBuf {
    folder.join("wire.pcap")
}

fn hypervisor_console(folder: &Path) -> PathBuf {
    folder.join("xen.log")
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// ssh to dom0's root, with nothing of the person who runs the lab: no configuration, no keys, no known hosts.
fn ssh(keys: &Path, control: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "ssh", "-F", "/dev/null", "-q", "-p", SSH_PORT, "-i"]);
    command.arg(keys.join("id"));
    for (option, value) in [
        ("UserKnownHostsFile=", keys.join("known_hosts").into_os_string()),
        ("ControlPath=", control.as_os_str().to_owned()),
    ] {
        let mut words = OsString::from(option);
        words.push(value);
        command.arg("-o").arg(words);
    }
    for option in ["HostKeyAlias=dom0", "StrictHostKeyChecking=yes", "BatchMode=yes", "IdentitiesOnly=yes"] {
        command.args(["-o", option]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    command
}

/// QEMU's arguments. The processor is one on which Xen, a PV dom0 and HVM guests all run under emulation: with smap
/// dom0 dies at its first return to user land, with monitor Xen's idle loop panics, with rdtscp HVM Linux dies.
fn arguments(lab: &LabXen, folder: &Path, disks: &[PathBuf]) -> Vec<OsString> {
    let boot = lab.folder.join("boot");
    let fixed = "-nodefaults -no-user-config -machine pc,graphics=off -vga none -display none -monitor none \
        -accel tcg,thread=multi,tb-size=512 -cpu EPYC,-smap,-monitor,-rdtscp -smp 2 -m 2048 -name dom0";
    let mut line: Vec<OsString> = fixed.split_ascii_whitespace().map(OsString::from).collect();
    let mut add = |option: &str, value: String| line.extend([option.into(), value.into()]);
    add("-kernel", boot.join("xen").display().to_string());
    add("-append", XEN_ARGUMENTS.to_owned());
    let kernel = escaped(&boot.join("vmlinux"));
    let initrd = escaped(&boot.join("initrd.img"));
    add("-initrd", format!("{kernel} root=UUID={ROOT_UUID} {KERNEL_ARGUMENTS},{initrd}"));
    add("-serial", format!("file:{}", escaped(&hypervisor_console(folder))));
    let root = escaped(&lab.folder.join("dom0.img"));
    add("-drive", format!("file={root},format=raw,if=virtio,snapshot=on,cache=unsafe"));
    for disk in disks {
        add("-drive", format!("file={},format=raw,if=virtio,cache=unsafe", escaped(disk)));
    }
    add("-netdev", format!("user,id=control,restrict=on,hostfwd=tcp:127.0.0.1:{SSH_PORT}-:22"));
    add("-device", "virtio-net-pci,netdev=control,romfile=".to_owned());
    add("-netdev", format!("tap,id=wire,ifname={TAP},script=no,downscript=no"));
    add("-device", "virtio-net-pci,netdev=wire,romfile=".to_owned());
    // Heads of packets are enough to see who asked for what.
    let capture = escaped(&wire_capture(folder));
    add("-object", format!("filter-dump,id=capture,netdev=wire,file={capture},maxlen=600"));
    let consoles = escaped(&folder.join("consoles"));
    add("-virtfs", format!("local,path={consoles},mount_tag=consoles,security_model=none"));
    line
}

const XEN_ARGUMENTS: &str = "console=com1 com1=115200 dom0_mem=768M,max:768M cpuidle=0 noreboot spec-ctrl=no \
    guest_loglvl=all";
const KERNEL_ARGUMENTS: &str = "console=hvc0 panic=5 ipv6.disable=1 mitigations=off";

/// QEMU's option parser takes a doubled comma for a comma.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

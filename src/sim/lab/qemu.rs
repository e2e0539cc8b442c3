//! The command line of a guest's QEMU, and the meaning of what QEMU says on its control channel (QMP). Pure.
//!
//! An HVM guest sees emulated hardware (IDE disks, an emulated NIC with iPXE in its ROM); a PV guest sees virtio
//! disks and NICs and gets kernel, initrd and arguments directly. So a disk is `sda` at the installation and `vda`
//! afterwards, as it is `sda` and `xvda` on Xen: nothing but UUIDs survives.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use super::pygrub::Extracted;
use crate::machine::MacAddr;

/// What QEMU computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualisation.
    Kvm,
    /// Emulation.
    Tcg,
}

impl Accelerator {
    /// Decides by the processor's flags: a `/dev/kvm` may exist where no kernel ever boots under it.
    pub fn for_processor(cpuinfo: &str) -> Self {
        let virtualises = |line: &str| {
            line.starts_with("flags")
                && line.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm")
        };
        if cpuinfo.lines().any(virtualises) { Self::Kvm } else { Self::Tcg }
    }

    const fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max"],
        }
    }
}

/// The emulated NIC of an HVM guest; all three have Debian's iPXE in their ROM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NicModel {
    /// Intel 82540EM.
    #[default]
    E1000,
    /// Realtek 8139, XenServer's default.
    Rtl8139,
    /// Paravirtual.
    Virtio,
}

impl NicModel {
    const fn device(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::Rtl8139 => "rtl8139",
            Self::Virtio => "virtio-net-pci",
        }
    }
}

/// A NIC and the tap it is plugged into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// Its address.
    pub mac: MacAddr,
    /// The tap device, in the namespace that QEMU starts in.
    pub tap: String,
    /// What an HVM guest sees; a PV guest always sees virtio.
    pub model: NicModel,
}

/// How a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot<'a> {
    /// As HVM, by the firmware in this order: letters of `HVM_boot_params:order` (`n` network, `c` disk, `d` CD).
    Firmware {
        /// Such as `n` or `cd`.
        order: &'a str,
    },
    /// As PV, from what pygrub extracted.
    Extracted(&'a Extracted),
}

/// A guest to start.
#[derive(Debug, Clone, Copy)]
pub struct Guest<'a> {
    /// Shown in the process list.
    pub name: &'a str,
    /// How it boots.
    pub boot: Boot<'a>,
    /// The NICs, in VIF order.
    pub nics: &'a [Nic],
    /// Raw images, in VBD order; at most four.
    pub disks: &'a [PathBuf],
    /// MiB.
    pub memory: u32,
    /// Virtual processors.
    pub processors: u8,
    /// Where the serial console is written.
    pub console: &'a Path,
    /// What to compute with.
    pub accelerator: Accelerator,
}

/// The arguments after the program's name. QMP is on standard input and output. A guest that powers off or reboots
/// is left stopped, so that what it did can be read before QEMU goes.
pub fn arguments(guest: &Guest<'_>) -> Vec<OsString> {
    let mut line = Arguments(Vec::new());
    line.all([
        "-nodefaults",
        "-no-user-config",
        "-machine",
        "pc,graphics=off",
        "-vga",
        "none",
        "-display",
        "none",
    ]);
    line.all(guest.accelerator.arguments());
    line.all(["-name", &escaped(guest.name), "-m", &guest.memory.to_string()]);
    line.all(["-smp", &guest.processors.to_string(), "-qmp", "stdio"]);
    line.all(["-action", "reboot=shutdown,shutdown=pause"]);
    line.path("-serial", "file:", guest.console, "");
    let interface = match guest.boot {
        Boot::Firmware { order } => {
            line.all(["-boot", &format!("order={},strict=on", boot_order(order))]);
            "ide"
        }
        Boot::Extracted(extracted) => {
            line.all(["-kernel"]);
            line.0.push(extracted.kernel.clone().into());
            if let Some(initrd) = &extracted.initrd {
                line.all(["-initrd"]);
                line.0.push(initrd.clone().into());
            }
            line.all(["-append", &extracted.args]);
            "virtio"
        }
    };
    for (index, disk) in guest.disks.iter().enumerate() {
        let rest = format!(",format=raw,if={interface},index={index},cache=unsafe");
        line.path("-drive", "file=", disk, &rest);
    }
    for (index, nic) in guest.nics.iter().enumerate() {
        line.all(["-netdev", &format!("tap,id=nic{index},ifname={},script=no,downscript=no", nic.tap)]);
        let device = match guest.boot {
            Boot::Firmware { .. } => format!("{},netdev=nic{index},mac={}", nic.model.device(), nic.mac),
            Boot::Extracted(_) => format!("virtio-net-pci,netdev=nic{index},mac={},romfile=", nic.mac),
        };
        line.all(["-device", &device]);
    }
    line.0
}

/// The letters that QEMU knows, of an order as XenAPI has it; none: disk, then CD, as Xen's firmware does.
fn boot_order(order: &str) -> String {
    let known: String = order.chars().filter(|letter| matches!(letter, 'c' | 'd' | 'n')).collect();
    if known.is_empty() { "cd".to_owned() } else { known }
}

/// QEMU's option parser takes a doubled comma for a comma.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

struct Arguments(Vec<OsString>);

impl Arguments {
    fn all<const N: usize>(&mut self, words: [&str; N]) {
        self.0.extend(words.map(OsString::from));
    }

    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        self.all([option, &format!("{before}{}{after}", escaped(&path.to_string_lossy()))]);
    }
}

/// QMP: leave negotiation; events come only after it.
pub const NEGOTIATE: &str = "{\"execute\":\"qmp_capabilities\"}\n";
/// QMP: end QEMU.
pub const QUIT: &str = "{\"execute\":\"quit\"}\n";

/// Why a guest stopped, by QEMU's SHUTDOWN event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// It powered itself off.
    PowerOff,
    /// It reset itself.
    Reboot,
    /// It told that its kernel panicked.
    Panic,
    /// Somebody outside ended it.
    Host,
}

/// What a line of QMP says about the guest's end; `None`: nothing.
pub fn shutdown(line: &str) -> Option<Shutdown> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    if message.get("event")?.as_str()? != "SHUTDOWN" {
        return None;
    }
    // ShutdownCause in QEMU's qapi/run-state.json.
    Some(match message.pointer("/data/reason").and_then(serde_json::Value::as_str) {
        Some("guest-shutdown") => Shutdown::PowerOff,
        Some("guest-reset" | "subsystem-reset") => Shutdown::Reboot,
        Some("guest-panic") => Shutdown::Panic,
        Some(_) | None => Shutdown::Host,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(boot: Boot<'_>) -> String {
        let guest = Guest {
            name: "web,1",
            boot,
            nics: &[Nic {
                mac: MacAddr::new([2, 22, 62, 0, 0, 1]),
                tap: "tap0".into(),
                model: NicModel::Rtl8139,
            }],
            disks: &[PathBuf::from("/l/a.img"), PathBuf::from("/l/b.img")],
            memory: 256,
            processors: 2,
            console: Path::new("/l/console"),
            accelerator: Accelerator::Tcg,
        };
        arguments(&guest).iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    const COMMON: &str = "-nodefaults -no-user-config -machine pc,graphics=off -vga none -display none \
        -accel tcg,thread=multi,tb-size=256 -cpu max -name web,,1 -m 256 -smp 2 -qmp stdio \
        -action reboot=shutdown,shutdown=pause -serial file:/l/console";

    #[test]
    fn an_hvm_guest_boots_by_its_order_from_emulated_hardware() {
        let expected = format!(
            "{COMMON} -boot order=n,strict=on \
             -drive file=/l/a.img,format=raw,if=ide,index=0,cache=unsafe \
             -drive file=/l/b.img,format=raw,if=ide,index=1,cache=unsafe \
             -netdev tap,id=nic0,ifname=tap0,script=no,downscript=no \
             -device rtl8139,netdev=nic0,mac=02:16:3e:00:00:01"
        );
        assert_eq!(line(Boot::Firmware { order: "n" }), expected);
    }

    #[test]
    fn a_pv_guest_boots_exactly_what_pygrub_printed() {
        let extracted = Extracted {
            kernel: "/x/kernel".into(),
            initrd: Some("/x/ramdisk".into()),
            args: "root=UUID=7 ro".into(),
        };
        let expected = format!(
            "{COMMON} -kernel /x/kernel -initrd /x/ramdisk -append root=UUID=7 ro \
             -drive file=/l/a.img,format=raw,if=virtio,index=0,cache=unsafe \
             -drive file=/l/b.img,format=raw,if=virtio,index=1,cache=unsafe \
             -netdev tap,id=nic0,ifname=tap0,script=no,downscript=no \
             -device virtio-net-pci,netdev=nic0,mac=02:16:3e:00:00:01,romfile="
        );
        assert_eq!(line(Boot::Extracted(&extracted)), expected);
    }

    #[test]
    fn an_order_without_a_known_letter_means_disk_then_cd() {
        for (order, expected) in [("n", "n"), ("dcn", "dcn"), ("", "cd"), ("x,y", "cd"), ("nx", "n")] {
            assert_eq!(boot_order(order), expected);
        }
    }

    #[test]
    fn the_processors_flags_decide_and_not_a_device() {
        let flags =
            |flags: &str| Accelerator::for_processor(&format!("model name : vmx\nflags : fpu {flags} sse\n"));
        assert_eq!(flags(""), Accelerator::Tcg);
        assert_eq!(flags("svm"), Accelerator::Kvm);
        assert_eq!(flags("vmx"), Accelerator::Kvm);
        assert_eq!(flags("svm_lock"), Accelerator::Tcg);
    }

    #[test]
    fn only_a_shutdown_event_tells_how_a_guest_ended() {
        let event = |reason: &str| {
            shutdown(&format!(r#"{{"event":"SHUTDOWN","data":{{"guest":true,"reason":"{reason}"}}}}"#))
        };
        assert_eq!(event("guest-shutdown"), Some(Shutdown::PowerOff));
        assert_eq!(event("guest-reset"), Some(Shutdown::Reboot));
        assert_eq!(event("guest-panic"), Some(Shutdown::Panic));
        assert_eq!(event("host-qmp-quit"), Some(Shutdown::Host));
        for other in [r#"{"event":"RESUME"}"#, r#"{"return":{}}"#, "", "SHUTDOWN"] {
            assert_eq!(shutdown(other), None, "{other}");
        }
    }
}

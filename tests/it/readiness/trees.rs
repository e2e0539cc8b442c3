//! Root file systems as six installers leave them, as far as a start hangs on them: made of a few files each, with kernels
//! that have the shape of a bzImage and initrds that are cpio archives.

use std::{
    collections::BTreeMap,
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// UUIDs of the fixtures' file systems.
pub(crate) const ROOT: &str = "11111111-aaaa-4bbb-8ccc-000000000001";
pub(crate) const BOOT: &str = "22222222-aaaa-4bbb-8ccc-000000000002";
pub(crate) const SWAP: &str = "33333333-aaaa-4bbb-8ccc-000000000003";
/// The MAC of their card.
pub(crate) const MAC: &str = "02:16:3e:00:00:0a";
/// What a kernel unpacks to: an ELF file, as far as its magic goes.
pub(crate) const ELF: &[u8] = b"\x7fELF\x02\x01\x01 the kernel itself, which a PV guest starts in";

/// The distributions of the fixtures.
pub(crate) const RELEASES: [&str; 6] =
    ["ubuntu-14.04", "ubuntu-18.04", "ubuntu-20.04", "ubuntu-22.04", "debian-12", "alma-9"];

/// A root file system.
#[derive(Debug)]
pub(crate) struct Tree(TempDir);

impl Tree {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    pub(crate) fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub(crate) fn link(&self, path: &str, target: &str) {
        let path = self.at(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        std::fs::remove_file(self.at(path)).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// A kernel of this version with its configuration, modules and initrd.
    pub(crate) fn kernel(&self, version: &str, packed: &str) {
        self.file(&format!("boot/vmlinuz-{version}"), bzimage(packed));
        let options =
            "CONFIG_XEN=y\nCONFIG_XEN_PV=y\nCONFIG_XEN_BLKDEV_FRONTEND=m\nCONFIG_XEN_NETDEV_FRONTEND=m\n";
        self.file(&format!("boot/config-{version}"), options);
        for module in ["block/xen-blkfront", "net/xen-netfront"] {
            self.file(&format!("lib/modules/{version}/kernel/drivers/{module}.ko"), "");
        }
    }

    /// Debian's and Ubuntu's initrd: microcode in an archive of its own first, then the packed one.
    pub(crate) fn initrd(&self, version: &str, packed: &str, modules: &[&str]) {
        let mut bytes = cpio(&["kernel/x86/microcode/GenuineIntel.bin".to_owned()]);
        let names: Vec<String> = modules
            .iter()
            .map(|module| format!("usr/lib/modules/{version}/kernel/drivers/{module}.ko"))
            .chain([format!("usr/lib/modules/{version}/modules.order")])
            .collect();
        bytes.extend(pipe(packed, &["-c"], &cpio(&names)));
        self.file(&format!("boot/initrd.img-{version}"), bytes);
    }

    /// Every file and link with its mode and content: two equal ones are the same system.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        let mut folders = vec![self.path().to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                let meta = path.symlink_metadata().unwrap();
                let content = if meta.is_symlink() {
                    std::fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
                } else if meta.is_dir() {
                    folders.push(path.clone());
                    Vec::new()
                } else {
                    std::fs::read(&path).unwrap()
                };
                let name = path.strip_prefix(self.path()).unwrap().to_owned();
                all.insert(name, (meta.permissions().mode(), content));
            }
        }
        all
    }
}

/// What a program makes of its standard input.
pub(crate) fn pipe(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap().stdout
}

/// A file with the header of Linux's boot protocol and a payload that is packed so.
pub(crate) fn bzimage(packed: &str) -> Vec<u8> {
    let args: &[&str] = if packed == "lz4" { &["-l", "-c"] } else { &["-c"] };
    let mut payload = pipe(packed, args, ELF);
    if packed != "gzip" {
        payload.extend(u32::try_from(ELF.len()).unwrap().to_le_bytes());
    }
    let (setup_sectors, offset) = (3_u8, 0x80_u32);
    let mut image = vec![0; (usize::from(setup_sectors) + 1) * 512 + 0x80];
    image[0x1f1] = setup_sectors;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x248..0x24c].copy_from_slice(&offset.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
    image.extend(payload);
    image.extend([0; 64]); // the relocations, a checksum: what comes behind is none of the payload
    image
}

/// A cpio archive (newc) of empty files, padded to 512 bytes.
fn cpio(names: &[String]) -> Vec<u8> {
    let mut archive = Vec::new();
    let trailer = "TRAILER!!!".to_owned();
    for (n, name) in names.iter().chain([&trailer]).enumerate() {
        let size = name.len() + 1;
        let fields = [n + 1, 0o100_644, 0, 0, 1, 0, 0, 0, 0, 0, 0, size, 0];
        archive.extend(b"070701");
        for field in fields {
            archive.extend(format!("{field:08x}").bytes());
        }
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive.resize(archive.len().next_multiple_of(512), 0);
    archive
}

/// The boot loader's menu of a release, as its own tools write it.
pub(crate) fn menu(release: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/guests/{release}.cfg"));
    let text = std::fs::read_to_string(path).unwrap();
    text.replace("ROOT", ROOT).replace("BOOT", BOOT).replace("SWAP", SWAP)
}

const BOTH: [&str; 2] = ["block/xen-blkfront", "net/xen-netfront"];
const DEFAULTS: &str =
    "GRUB_DEFAULT=0\nGRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet splash\"\nGRUB_CMDLINE_LINUX=\"\"\n";

/// A release as its installer left it in an HVM guest: disks under one name, a card named after its bus.
pub(crate) fn release(name: &str) -> Tree {
    let tree = Tree::new();
    for (device, uuid) in [("sda1", BOOT), ("sda2", ROOT), ("sda5", SWAP)] {
        tree.link(&format!("dev/disk/by-uuid/{uuid}"), &format!("../../{device}"));
    }
    tree.file("sys/class/net/ens3/address", format!("{MAC}\n"));
    tree.file("sys/class/net/ens3/device/vendor", "");
    tree.file("etc/os-release", format!("NAME=x\nPRETTY_NAME=\"{name}\"\n"));
    if name != "ubuntu-14.04" {
        tree.file("usr/lib/systemd/system/serial-getty@.service", "[Unit]\n");
        tree.file("usr/lib/systemd/network/99-default.link", "[Link]\n");
    }
    if name != "alma-9" {
        tree.file("etc/default/grub", DEFAULTS);
        tree.file("etc/grub.d/10_linux", "#!/bin/sh\n");
        tree.file("usr/sbin/grub-mkconfig", "for x in ${sysconfdir}/default/grub.d/*.cfg ; do . $x; done\n");
        tree.file("etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sda5\n");
        tree.file("boot/grub/grub.cfg", menu(name));
    }
    match name {
        "ubuntu-14.04" => trusty(&tree),
        "ubuntu-18.04" => bionic(&tree),
        "ubuntu-20.04" => focal(&tree),
        "ubuntu-22.04" => jammy(&tree),
        "debian-12" => bookworm(&tree),
        _ => alma(&tree),
    }
    tree
}

/// debian-installer with an old disk driver: everything by device. grub-legacy-ec2 keeps a menu.lst of its own.
fn trusty(tree: &Tree) {
    let version = "3.13.0-24-generic";
    tree.kernel(version, "gzip");
    tree.initrd(version, "gzip", &BOTH);
    tree.file(
        "etc/fstab",
        "# <file system> <mount point>   <type>  <options>       <dump>  <pass>\n\
         /dev/sda2\t/\text4\terrors=remount-ro\t0\t1\n# swap was on /dev/sda5 during installation\n\
         /dev/sda5\tnone\tswap\tsw\t0\t0\n/dev/fd0        /media/floppy0  auto    rw,user,noauto,exec,utf8 0       0\n\n",
    );
    tree.file("etc/init/rc.conf", "# upstart\n");
    tree.file("etc/securetty", "console\ntty1\n");
    tree.file(
        "etc/network/interfaces",
        "auto lo\niface lo inet loopback\n\nauto eth0\niface eth0 inet dhcp\n",
    );
    tree.file("etc/udev/rules.d/70-persistent-net.rules", "SUBSYSTEM==\"net\", NAME=\"eth0\"\n");
    tree.file("usr/sbin/update-grub-legacy-ec2", "#!/bin/sh\n");
    tree.file(
        "boot/grub/menu.lst",
        format!(
            "default\t\t0\ntimeout\t\t0\nhiddenmenu\n### BEGIN AUTOMAGIC KERNELS LIST\n# kopt=root=/dev/sda2 ro\n\
             # groot=(hd0)\n# defoptions=console=hvc0\n## ## End Default Options ##\n\n\
             title\t\tUbuntu 14.04, kernel {version}\nroot\t\t(hd0)\n\
             kernel\t\t/boot/vmlinuz-{version} root=/dev/sda2 ro console=hvc0\n\
             initrd\t\t/boot/initrd.img-{version}\n\n### END DEBIAN AUTOMAGIC KERNELS LIST\n"
        ),
    );
}

/// Our own preseed: /boot on ext2 first.
fn bionic(tree: &Tree) {
    let version = "4.15.0-20-generic";
    tree.kernel(version, "gzip");
    tree.initrd(version, "gzip", &BOTH);
    tree.file(
        "etc/fstab",
        format!(
            "UUID={ROOT} /               ext4    errors=remount-ro 0       1\n\
             # /boot was on /dev/sda1 during installation\nUUID={BOOT} /boot           ext2    defaults        0       2\n\
             /dev/sda5 none            swap    sw              0       0\n"
        ),
    );
    tree.file(
        "etc/netplan/01-netcfg.yaml",
        "# This file describes the network interfaces available on your system\nnetwork:\n  version: 2\n  \
         renderer: networkd\n  ethernets:\n    ens3:\n      dhcp4: yes\n",
    );
}

/// Subiquity, one file system, a swap file; the kernel is packed with lz4.
fn focal(tree: &Tree) {
    let version = "5.4.0-42-generic";
    tree.kernel(version, "lz4");
    tree.initrd(version, "gzip", &BOTH);
    tree.file(
        "etc/fstab",
        format!("/dev/disk/by-uuid/{ROOT} / ext4 defaults 0 0\n/swap.img\tnone\tswap\tsw\t0\t0\n"),
    );
    tree.file(
        "etc/netplan/00-installer-config.yaml",
        "# This is the network config written by 'subiquity'\nnetwork:\n  ethernets:\n    ens3:\n      addresses:\n      \
         - 10.0.0.7/24\n      gateway4: 10.0.0.1\n  version: 2\n",
    );
}

/// Subiquity with its own LVM beside /boot; the kernel is packed with zstd.
fn jammy(tree: &Tree) {
    let version = "5.15.0-91-generic";
    tree.kernel(version, "zstd");
    tree.initrd(version, "zstd", &BOTH);
    let volume = "dm-uuid-LVM-abcDEF";
    tree.link(&format!("dev/disk/by-id/{volume}"), "../../dm-0");
    tree.file("sys/class/block/dm-0/dm/name", "ubuntu--vg-ubuntu--lv\n");
    tree.file(
        "etc/fstab",
        format!(
            "/dev/disk/by-id/{volume} / ext4 defaults 0 1\n/dev/disk/by-uuid/{BOOT} /boot ext4 defaults 0 1\n"
        ),
    );
    tree.file(
        "etc/netplan/00-installer-config.yaml",
        "network:\n  ethernets:\n    ens3: {dhcp4: true}\n  version: 2\n",
    );
}

/// debian-installer on a GPT, one file system.
fn bookworm(tree: &Tree) {
    let version = "6.1.0-18-amd64";
    tree.kernel(version, "xz");
    tree.initrd(version, "zstd", &BOTH);
    tree.file("etc/fstab", format!("UUID={ROOT} /               ext4    errors=remount-ro 0       1\n"));
    tree.file(
        "etc/network/interfaces",
        "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\nallow-hotplug ens3\n\
         iface ens3 inet dhcp\n",
    );
}

/// Anaconda: boot loader entries of the BLS, a keyfile of NetworkManager, dracut's initrd; /boot made ext4.
fn alma(tree: &Tree) {
    let version = "5.14.0-362.8.1.el9_3.x86_64";
    tree.kernel(version, "gzip");
    tree.initrd(version, "gzip", &BOTH);
    std::fs::rename(
        tree.at(&format!("boot/initrd.img-{version}")),
        tree.at(&format!("boot/initramfs-{version}.img")),
    )
    .unwrap();
    tree.file("boot/vmlinuz-0-rescue-0123", bzimage("gzip"));
    tree.file("boot/grub2/grub.cfg", menu("alma-9"));
    tree.file("boot/grub2/grubenv", "# GRUB Environment Block\nsaved_entry=0123-x\n");
    tree.file(
        &format!("boot/loader/entries/0123-{version}.conf"),
        format!(
            "title AlmaLinux ({version}) 9.3\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\n\
             options root=/dev/mapper/almalinux-root ro crashkernel=1G-4G:192M resume=/dev/sda5 \
             rd.lvm.lv=almalinux/root $tuned_params\nid almalinux\n"
        ),
    );
    tree.file("etc/default/grub", "GRUB_ENABLE_BLSCFG=true\nGRUB_CMDLINE_LINUX=\"crashkernel=1G-4G:192M\"\n");
    tree.file("etc/dracut.conf.d/x.conf", "");
    tree.file(
        "etc/fstab",
        format!("/dev/mapper/almalinux-root /  xfs defaults 0 0\nUUID={BOOT} /boot ext4 defaults 0 0\n"),
    );
    tree.file(
        "etc/NetworkManager/system-connections/ens3.nmconnection",
        "[connection]\nid=ens3\ntype=ethernet\ninterface-name=ens3\n\n[ethernet]\n\n[ipv4]\nmethod=auto\n",
    );
}

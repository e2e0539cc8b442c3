//! Readiness beside the real pygrub (xen-utils-4.17): disk images of many kinds, what the script and its judge say of
//! each, and what pygrub does with it. Where the two differ, the row says why.

use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Mutex,
};

use bootflip::{
    provision::readiness::{Document, Verdict, judge},
    sim::lab::{
        Installer, Lab,
        pygrub::{self, Extracted, PygrubError},
    },
    xen::version::XenVersion,
};

use super::{
    script::{document, run},
    trees::{BOOT, ROOT, SWAP, Tree, menu, release},
};
use crate::common::programs::{missing, skip};

const MIB: u64 = 1 << 20;
/// Bytes of an image.
const SIZE: u64 = 64 * MIB;
const TOOLS: [&str; 8] = ["dash", "mke2fs", "sfdisk", "gzip", "xz", "lz4", "zstd", "python3"];

/// How a disk is laid out; the file system of /boot begins at `at`.
#[derive(Clone, Copy)]
struct Disk {
    /// sfdisk's script; empty: no partition table.
    table: &'static str,
    at: u64,
    /// mke2fs's type and features; empty: nothing; `stamp`: these bytes at this place, and no more.
    fs: &'static [&'static str],
}

const MBR: &str = "label: dos\nstart=2048, size=81920, type=83, bootable\nstart=83968, size=20480, type=83\n";
const GPT: &str = "label: gpt\nstart=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n\
                   start=4096, size=81920\n";
const LOGICAL: &str = "label: dos\nstart=2048, size=8192, type=83\nstart=10240, size=102400, type=5\n\
                       start=12288, size=81920, type=83\n";
const LVM: &str = "label: dos\nstart=2048, size=81920, type=8e\n";
/// What old hosts read: no journal, none of ext4's features.
const EXT2: &[&str] = &["-t", "ext2"];
const EXT3: &[&str] = &["-t", "ext3"];
/// As mke2fs made it for years: 64bit, metadata_csum.
const EXT4: &[&str] = &["-t", "ext4", "-O", "64bit,metadata_csum"];
/// As mke2fs makes it since 1.47.
const NEW_EXT4: &[&str] = &["-t", "ext4", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file"];
const PLAIN_EXT4: &[&str] = &["-t", "ext4", "-O", "^64bit,^metadata_csum"];

const VOLUME: &[&str] = &["stamp", "536", "LVM2 001"];
const ENCRYPTED: &[&str] = &["stamp", "0", "LUKS"];

const fn disk(table: &'static str, at: u64, fs: &'static [&'static str]) -> Disk {
    Disk { table, at, fs }
}

struct Row {
    image: &'static str,
    disk: Disk,
    tree: Tree,
    /// The pool's oldest Xen.
    xen: &'static str,
    /// Why the two are meant to differ.
    differs: Option<&'static str>,
}

fn row(image: &'static str, disk: Disk, tree: Tree) -> Row {
    Row { image, disk, tree, xen: "4.17", differs: None }
}

/// A release as its installer left it, but for device names in fstab.
fn tidy(name: &str) -> Tree {
    let tree = release(name);
    let mut fstab = tree.read("etc/fstab");
    for (device, uuid) in [("/dev/sda1", BOOT), ("/dev/sda2", ROOT), ("/dev/sda5", SWAP)] {
        fstab = fstab.replace(device, &format!("UUID={uuid}"));
    }
    tree.file("etc/fstab", fstab);
    tree
}

/// A release after the script.
fn mended(name: &str) -> Tree {
    let tree = release(name);
    let (_, code) = document(&run(&["dash"], &tree, &["--xen", "4.13"]));
    assert_eq!(code, 0, "{name}");
    tree
}

/// Ubuntu 18.04 with a /boot of its own and these menus.
fn with_menus(grub_cfg: Option<&str>, menu_lst: Option<&str>) -> Tree {
    let tree = tidy("ubuntu-18.04");
    tree.remove("boot/grub/grub.cfg");
    for (file, text) in [("grub.cfg", grub_cfg), ("menu.lst", menu_lst)] {
        if let Some(text) = text {
            tree.file(&format!("boot/grub/{file}"), text);
        }
    }
    tree
}

const ENTRY: &str = "menuentry 'Linux' {\n\tlinux /vmlinuz-4.15.0-20-generic root=UUID=x ro console=hvc0\n\t\
                     initrd /initrd.img-4.15.0-20-generic\n}\n";
const MENU_LST: &str = "default 0\ntimeout 1\ntitle Linux\n root (hd0,0)\n \
                        kernel /vmlinuz-4.15.0-20-generic root=UUID=x ro\n initrd /initrd.img-4.15.0-20-generic\n";

fn nested(around: &str) -> String {
    format!("{around} {{\n{ENTRY}}}\n")
}

fn rows() -> Vec<Row> {
    let mbr = |fs| disk(MBR, MIB, fs);
    let saved = format!("set default=\"${{saved_entry}}\"\n{ENTRY}");
    let set_twice = format!("set kernelopts=\"root=UUID=x ro\"\n{ENTRY}");
    let efi = ENTRY.replace("linux", "linuxefi").replace("vmlinuzefi", "vmlinuz");
    let gone = ENTRY.replace("4.15.0-20", "4.15.0-19");
    let on_lvm = ENTRY.replace("linux /", "set root='lvmid/a/b'\n\tlinux /");
    let other_default = format!("set default=\"1\"\n{}{ENTRY}", gone.as_str());
    let beyond = format!("set default=\"7\"\n{ENTRY}");
    let mut all = vec![
        row("Ubuntu 14.04, one ext4, grub.cfg and menu.lst", mbr(PLAIN_EXT4), tidy("ubuntu-14.04")),
        row("Ubuntu 18.04, ext2 /boot, grub.cfg with a submenu", mbr(EXT2), tidy("ubuntu-18.04")),
        row("Ubuntu 18.04, ext3 /boot", mbr(EXT3), tidy("ubuntu-18.04")),
        row("Ubuntu 20.04, one ext4, lz4", mbr(EXT4), tidy("ubuntu-20.04")),
        row("Ubuntu 22.04, ext4 /boot beside LVM, zstd", mbr(EXT4), tidy("ubuntu-22.04")),
        row("Debian 12, GPT, one ext4 as of e2fsprogs 1.47", disk(GPT, 2 * MIB, NEW_EXT4), tidy("debian-12")),
        row("Debian 12, no partition table", disk("", 0, EXT4), tidy("debian-12")),
        row("Alma 9, BLS entries only", mbr(EXT4), tidy("alma-9")),
    ];
    for name in super::trees::RELEASES {
        let disk = if name == "debian-12" { disk(GPT, 2 * MIB, EXT4) } else { mbr(EXT4) };
        let image: &'static str = Box::leak(format!("{name}, readied").into_boxed_str());
        all.push(row(image, disk, mended(name)));
    }
    all.extend([
        row("menu.lst only", mbr(EXT2), with_menus(None, Some(MENU_LST))),
        row("a submenu only", mbr(EXT2), with_menus(Some(&nested("submenu 'All'")), None)),
        row("the default is a saved entry", mbr(EXT2), with_menus(Some(&saved), None)),
        row("the default is another entry", mbr(EXT2), with_menus(Some(&other_default), None)),
        row("the default is beyond the last entry", mbr(EXT2), with_menus(Some(&beyond), None)),
        row("no menu at all", mbr(EXT2), with_menus(None, None)),
        row("an entry within an entry", mbr(EXT2), with_menus(Some(&nested("menuentry 'a'")), None)),
        row("an entry that does not end", mbr(EXT2), with_menus(Some(ENTRY.trim_end_matches("}\n")), None)),
        row("a brace too many", mbr(EXT2), with_menus(Some(&format!("}}\n{ENTRY}")), None)),
        row("`set` with two `=`", mbr(EXT2), with_menus(Some(&set_twice), None)),
        row(
            "an empty grub.cfg before a good menu.lst",
            mbr(EXT2),
            with_menus(Some("# empty\n"), Some(MENU_LST)),
        ),
        row("linuxefi only", mbr(EXT2), with_menus(Some(&efi), None)),
        row("the root of an entry is LVM", mbr(EXT2), with_menus(Some(&on_lvm), None)),
        row("a kernel that is gone", mbr(EXT2), with_menus(Some(&gone), None)),
        row("a logical partition", disk(LOGICAL, 6 * MIB, EXT2), tidy("ubuntu-18.04")),
        row("a physical volume of LVM", disk(LVM, MIB, VOLUME), tidy("ubuntu-18.04")),
        row("an encrypted partition", mbr(ENCRYPTED), tidy("ubuntu-18.04")),
        row("a damaged superblock", mbr(&[]), tidy("ubuntu-18.04")),
        Row {
            differs: Some("pygrub is content; the system would not find its root under xvda"),
            ..row("fstab by /dev/sda2", mbr(EXT2), {
                let tree = tidy("ubuntu-18.04");
                tree.file("etc/fstab", "/dev/sda2 / ext4 defaults 0 1\n/dev/sda1 /boot ext2 defaults 0 2\n");
                tree
            })
        },
        Row {
            xen: "4.13",
            differs: Some("pygrub hands it on; the domain builder of Xen 4.13 cannot unpack it"),
            ..row("Ubuntu 22.04, zstd, for Xen 4.13", mbr(EXT2), tidy("ubuntu-22.04"))
        },
        Row {
            xen: "4.13",
            differs: Some("this machine's libext2fs knows the feature, those of Xen 4.13's time do not"),
            ..row("metadata_csum_seed, for Xen 4.13", mbr(NEW_EXT4), tidy("ubuntu-18.04"))
        },
        Row {
            xen: "4.1",
            differs: Some("this machine's libext2fs reads ext4, that of XenServer 6.1 does not"),
            ..row("ext4, for Xen 4.1", mbr(PLAIN_EXT4), tidy("ubuntu-18.04"))
        },
        Row {
            differs: Some("pygrub has the limit only where xapi calls it with --runas (XSA-443)"),
            ..row("an initrd of 129 MiB, on Xen with XSA-443", disk("", 0, EXT2), {
                let tree = tidy("debian-12");
                let initrd = tree.at("boot/initrd.img-6.1.0-18-amd64");
                std::fs::OpenOptions::new().write(true).open(initrd).unwrap().set_len(129 * MIB).unwrap();
                tree
            })
        },
    ]);
    all
}

/// Makes the image. Nothing is mounted: mke2fs copies the tree.
fn image(row: &Row, path: &Path) {
    let large = row.image.contains("129 MiB");
    let size = if large { 256 * MIB } else { SIZE };
    std::fs::File::create(path).unwrap().set_len(size).unwrap();
    if !row.disk.table.is_empty() {
        let mut sfdisk = Command::new("sfdisk");
        let mut child = sfdisk.args(["-q"]).arg(path).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(row.disk.table.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{}", row.image);
    }
    match row.disk.fs {
        [] => return,
        ["stamp", place, bytes] => {
            let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
            file.write_all_at(bytes.as_bytes(), row.disk.at + place.parse::<u64>().unwrap()).unwrap();
            return;
        }
        _ => {}
    }
    let mut make = Command::new("mke2fs");
    make.args(["-q", "-F"]).args(row.disk.fs).arg("-E").arg(format!("offset={}", row.disk.at));
    let made =
        make.arg("-d").arg(base(row)).arg(path).arg(if large { "255m" } else { "40m" }).output().unwrap();
    assert!(made.status.success(), "{}: {}", row.image, String::from_utf8_lossy(&made.stderr));
}

/// The file system that holds the kernels.
fn base(row: &Row) -> PathBuf {
    let separate =
        row.tree.read("etc/fstab").lines().any(|line| line.split_whitespace().nth(1) == Some("/boot"));
    row.tree.at(if separate { "boot" } else { "" })
}

fn says(document: &Document, xen: &str) -> (bool, String) {
    match judge(document, XenVersion::parse(xen)).verdict {
        Verdict::Ready | Verdict::Mended(_) => (true, format!("ready: {}", document.menu.kernel)),
        Verdict::NotReady(sentences) => (false, format!("not ready: {}", sentences.join("; "))),
    }
}

fn does(found: &Result<Extracted, PygrubError>, row: &Row, document: &Document) -> (bool, String) {
    match found {
        Ok(extracted) => {
            let kernel = base(row).join(document.menu.kernel.trim_start_matches('/'));
            if !document.menu.kernel.is_empty() {
                let (taken, there) =
                    (std::fs::read(&extracted.kernel).unwrap(), std::fs::read(kernel).unwrap());
                assert!(taken == there, "{}: pygrub takes another kernel", row.image);
            }
            (true, format!("boots it, with {}", extracted.args))
        }
        Err(error) => (false, error.to_string()),
    }
}

/// One row: the two answers, and whether that is as it should be.
fn compare(row: &Row, lab: &Lab) -> (String, bool) {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    image(row, &disk);
    let at = row.disk.at.to_string();
    let args = ["--check", "--xen", row.xen, "--disk", disk.to_str().unwrap(), "--boot-at", &at];
    let (document, _) = document(&run(&["dash"], &row.tree, &args));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let found = runtime.block_on(pygrub::run(lab, &disk, folder.path()));
    let (ready, said) = says(&document, row.xen);
    let (boots, done) = does(&found, row, &document);
    let note = row.differs.map_or(String::new(), |why| format!(" | differs: {why}"));
    let short = |text: String| text.chars().take(110).collect::<String>();
    let line = format!("{} | {} | {}{note}", row.image, short(said), short(done));
    (line, (ready == boots) != row.differs.is_some())
}

#[test]
fn readiness_says_what_pygrub_does() {
    if TOOLS.into_iter().any(missing) {
        return;
    }
    let folder = std::env::var_os("BOOTFLIP_LAB")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab"), PathBuf::from);
    let lab = match Lab::open(&folder, Installer::Mini) {
        Ok(lab) => lab,
        Err(error) => return skip("readiness beside pygrub", &error.to_string()),
    };
    let rows = rows();
    let lines = Mutex::new(vec![None; rows.len()]);
    let next = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(row) = rows.get(at) else { return };
                    let line = compare(row, &lab);
                    lines.lock().unwrap()[at] = Some(line);
                }
            });
        }
    });
    let lines: Vec<(String, bool)> = lines.into_inner().unwrap().into_iter().flatten().collect();
    println!("image | readiness says | pygrub 4.17");
    for (line, _) in &lines {
        println!("{line}");
    }
    assert_eq!(lines.len(), rows.len());
    let wrong: Vec<&String> = lines.iter().filter(|(_, right)| !right).map(|(line, _)| line).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn menus_of_the_fixtures_hold_no_placeholder() {
    for name in super::trees::RELEASES {
        let text = menu(name);
        assert!(
            !text.contains("ROOT") && !text.contains("BOOT ") && text.contains("grub.d/00_header"),
            "{name}"
        );
    }
}

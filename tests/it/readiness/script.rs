//! `pv-ready.sh` under dash and busybox ash, on the file systems of six releases.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use bootflip::{
    provision::readiness::{Document, Standing, Verdict, judge},
    xen::version::XenVersion,
};

use super::trees::{BOOT, ELF, MAC, RELEASES, ROOT, SWAP, Tree, pipe, release};
use crate::common::programs::missing;

/// Shells that installers and systems have.
const SHELLS: [&[&str]; 2] = [&["dash"], &["busybox", "ash"]];
const TOOLS: [&str; 6] = ["dash", "busybox", "gzip", "xz", "lz4", "zstd"];

pub(super) fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/guest/pv-ready.sh")
}

fn lacks_tools() -> bool {
    TOOLS.into_iter().any(missing)
}

pub(super) fn run(shell: &[&str], tree: &Tree, args: &[&str]) -> Output {
    let (program, first) = shell.split_first().unwrap();
    let mut command = Command::new(program);
    command.args(first).arg(script()).arg("--root").arg(tree.path()).args(args);
    command.output().unwrap()
}

/// What a run printed, and its exit code.
#[track_caller]
pub(super) fn document(output: &Output) -> (Document, i32) {
    assert!(output.stdout.len() < 32 << 10, "{} bytes", output.stdout.len());
    let said = String::from_utf8_lossy(&output.stdout);
    let document = Document::parse(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {said}\n{}", String::from_utf8_lossy(&output.stderr));
    });
    (document, output.status.code().unwrap())
}

type Snapshot = BTreeMap<PathBuf, (u32, Vec<u8>)>;

/// The paths that are not the same in both.
fn differing(one: &Snapshot, other: &Snapshot) -> Vec<PathBuf> {
    let all: BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    all.into_iter().filter(|path| one.get(*path) != other.get(*path)).cloned().collect()
}

fn xen(text: &str) -> Option<XenVersion> {
    XenVersion::parse(text)
}

#[test]
fn six_releases_are_readied_once_and_the_second_run_changes_nothing() {
    if lacks_tools() {
        return;
    }
    std::thread::scope(|scope| {
        for name in RELEASES {
            scope.spawn(move || {
                let mut made = Vec::new();
                for shell in SHELLS {
                    let tree = release(name);
                    let before = tree.snapshot();
                    let looked = run(shell, &tree, &["--xen", "4.13", "--check"]);
                    assert_eq!(before, tree.snapshot(), "{name}: --check changes nothing");
                    document(&looked);
                    let (first, code) = document(&run(shell, &tree, &["--xen", "4.13"]));
                    let judgement = judge(&first, xen("4.13"));
                    assert!(
                        matches!(&judgement.verdict, Verdict::Mended(_)),
                        "{name} {shell:?}: {judgement:?}"
                    );
                    assert_eq!(code, 0, "{name} {shell:?}: {first:?}");
                    let after = tree.snapshot();
                    let (second, code) = document(&run(shell, &tree, &["--xen", "4.13"]));
                    assert_eq!(code, 0);
                    assert!(
                        second.checks.iter().all(|check| check.state != Standing::Mended),
                        "{name}: {second:?}"
                    );
                    assert_eq!(judge(&second, xen("4.13")).verdict, Verdict::Ready, "{name} {shell:?}");
                    assert_eq!(
                        differing(&after, &tree.snapshot()),
                        Vec::<PathBuf>::new(),
                        "{name} {shell:?}"
                    );
                    let (check, _) = document(&run(shell, &tree, &["--check"]));
                    assert_eq!(check.xen, "4.13", "the version is kept for later runs");
                    made.push(after);
                }
                // gzip's own bytes are another's in busybox.
                made.iter_mut()
                    .for_each(|tree| tree.retain(|path, _| path.extension() != Some("gz".as_ref())));
                assert_eq!(
                    differing(&made[0], &made[1]),
                    Vec::<PathBuf>::new(),
                    "{name}: both shells make the same"
                );
            });
        }
    });
}

/// What each release's files are afterwards: a file, and lines that it has (`!` before one: has not).
#[test]
fn each_release_gets_what_its_pv_start_hangs_on() {
    if lacks_tools() {
        return;
    }
    let root = format!("root=UUID={ROOT}");
    let cases: Vec<(&str, &str, Vec<String>)> = vec![
        ("ubuntu-14.04", "etc/fstab", vec![format!("UUID={ROOT}\t/\text4"), format!("UUID={SWAP}\tnone"), "/dev/fd0 ".into(), "!/dev/sda2".into()]),
        ("ubuntu-14.04", "etc/init/hvc0.conf", vec!["getty -8 -L 115200 hvc0".into()]),
        ("ubuntu-14.04", "etc/securetty", vec!["hvc0".into(), "tty1".into()]),
        ("ubuntu-14.04", "boot/grub/menu.lst", vec!["default 0".into(), format!("# kopt={root} ro quiet splash console=hvc0"), format!("kernel /boot/vmlinuz-3.13.0-24-generic {root} ro quiet splash console=hvc0"), "### END DEBIAN AUTOMAGIC KERNELS LIST".into()]),
        ("ubuntu-18.04", "etc/initramfs-tools/conf.d/resume", vec![format!("RESUME=UUID={SWAP}")]),
        ("ubuntu-18.04", "etc/netplan/01-netcfg.yaml", vec![format!("      match:\n        macaddress: \"{MAC}\"\n      set-name: ens3\n      dhcp4: yes")]),
        ("ubuntu-18.04", "etc/default/grub.d/zz-bootflip.cfg", vec!["GRUB_DISABLE_SUBMENU=y".into(), "GRUB_DEFAULT=0".into()]),
        ("ubuntu-18.04", "boot/grub/menu.lst", vec!["\troot (hd0,0)\n\tkernel /vmlinuz-4.15.0-20-generic root=".into(), "\tinitrd /initrd.img-4.15.0-20-generic".into(), "!AUTOMAGIC".into()]),
        ("ubuntu-18.04", "boot/grub/grub.cfg", vec![format!("search --no-floppy --fs-uuid --set=root {BOOT}"), "set default=\"0\"\nif [".into(), "submenu 'Advanced".into()]),
        ("ubuntu-20.04", "boot/grub/grub.cfg", vec![format!("\tlinux /boot/vmlinuz-5.4.0-42-generic {root} ro quiet splash console=hvc0")]),
        ("ubuntu-20.04", "etc/netplan/00-installer-config.yaml", vec![format!("    ens3:\n      match:\n        macaddress: \"{MAC}\"\n      set-name: ens3\n      addresses:")]),
        ("ubuntu-22.04", "boot/grub/grub.cfg", vec!["\tlinux /pv-kernel-5.15.0-91-generic.gz root=/dev/mapper/ubuntu--vg-ubuntu--lv ro".into(), "pv_default=\"1\"".into()]),
        ("ubuntu-22.04", "etc/systemd/network/10-bootflip-ens3.link", vec![format!("MACAddress={MAC}"), "Name=ens3".into()]),
        ("debian-12", "etc/systemd/network/10-bootflip-ens3.link", vec![format!("MACAddress={MAC}")]),
        ("debian-12", "boot/grub/menu.lst", vec![format!("kernel /boot/vmlinuz-6.1.0-18-amd64 {root} ro quiet splash console=hvc0")]),
        ("alma-9", "boot/grub/grub.cfg", vec!["\tlinux /vmlinuz-5.14.0-362.8.1.el9_3.x86_64 root=/dev/mapper/almalinux-root ro crashkernel=1G-4G:192M".into(), format!("resume=UUID={SWAP} rd.lvm.lv=almalinux/root console=hvc0"), "!rescue".into(), "!tuned".into()]),
        ("alma-9", "boot/loader/entries/0123-5.14.0-362.8.1.el9_3.x86_64.conf", vec![format!("resume=UUID={SWAP} rd.lvm")]),
        ("alma-9", "etc/NetworkManager/system-connections/ens3.nmconnection", vec![format!("[ethernet]\nmac-address={MAC}"), "!interface-name".into()]),
        ("alma-9", "etc/kernel/install.d/95-bootflip-pv.install", vec!["bootflip-pv-ready --refresh".into()]),
        ("alma-9", "boot/grub2/grub.cfg", vec!["!bootflip".into(), "blscfg".into()]),
    ];
    for name in RELEASES {
        let tree = release(name);
        let ran = run(SHELLS[0], &tree, &["--xen", "4.13"]);
        for (_, file, lines) in cases.iter().filter(|(of, ..)| *of == name) {
            let text = tree.read(file);
            for line in lines {
                let (wanted, line) =
                    line.strip_prefix('!').map_or((true, line.as_str()), |line| (false, line));
                assert_eq!(
                    text.contains(line),
                    wanted,
                    "{name} {file}: {line}\n{text}\n{}",
                    String::from_utf8_lossy(&ran.stderr)
                );
            }
        }
        for hook in [
            "etc/kernel/postinst.d/zy-bootflip-pv",
            "etc/grub.d/06_bootflip_pv",
            "usr/local/sbin/bootflip-pv-ready",
        ] {
            let hook = tree.at(hook);
            if hook.exists() {
                let checked = Command::new("dash").arg("-n").arg(&hook).status().unwrap();
                assert!(checked.success(), "{name} {}", hook.display());
            }
        }
        assert!(!tree.at("etc/udev/rules.d/70-persistent-net.rules").exists());
    }
}

#[test]
fn a_kernel_that_the_host_cannot_unpack_is_kept_unpacked_beside_it() {
    if lacks_tools() {
        return;
    }
    for (release_name, xen, copied) in [
        ("ubuntu-22.04", "4.13", true),
        ("ubuntu-22.04", "4.15", false),
        ("ubuntu-22.04", "", true),
        ("ubuntu-20.04", "4.1", true),
        ("ubuntu-20.04", "4.4", false),
        ("debian-12", "3.4", false),
    ] {
        let tree = release(release_name);
        let (document, _) = document(&run(SHELLS[0], &tree, &["--xen", xen]));
        let kernel = &document.kernels[0];
        let copy = tree.at(&format!("boot/pv-kernel-{}.gz", kernel.version));
        assert_eq!(copy.exists(), copied, "{release_name} on {xen}");
        if copied {
            let unpacked = pipe("gzip", &["-dc"], &std::fs::read(&copy).unwrap());
            assert_eq!(unpacked, ELF);
            assert_eq!(kernel.compression.to_string(), "gzip");
        }
    }
}

#[test]
fn a_kernel_that_comes_or_goes_is_in_both_menus_or_in_none() {
    if lacks_tools() {
        return;
    }
    for shell in SHELLS {
        let tree = release("ubuntu-22.04");
        run(shell, &tree, &["--xen", "4.13"]);
        let (old, new) = ("5.15.0-91-generic", "5.15.0-100-generic");
        tree.kernel(new, "zstd");
        tree.initrd(new, "zstd", &["block/xen-blkfront"]);
        let order =
            |text: &str| text.find(new).is_some_and(|at| text.rfind(old).is_none_or(|later| at < later));
        assert!(run(shell, &tree, &["--refresh"]).status.success());
        for menu in ["boot/grub/menu.lst", "boot/grub/grub.cfg"] {
            let text = tree.read(menu);
            assert!(order(&text), "{menu}: the newest first, 100 above 91\n{text}");
            assert!(text.contains(&format!("/pv-kernel-{new}.gz")), "{menu}\n{text}");
        }
        let printed = run(shell, &tree, &["--grub-entries"]);
        let section = String::from_utf8(printed.stdout).unwrap();
        assert!(
            tree.read("boot/grub/grub.cfg").contains(section.trim_end()),
            "update-grub would write the same"
        );
        assert!(section.contains("pv_default=\"2\""), "GRUB itself begins behind both: {section}");
        for file in ["vmlinuz", "config", "initrd.img"] {
            tree.remove(&format!("boot/{file}-{new}"));
        }
        assert!(run(shell, &tree, &["--refresh"]).status.success());
        assert!(!tree.at(&format!("boot/pv-kernel-{new}.gz")).exists());
        for menu in ["boot/grub/menu.lst", "boot/grub/grub.cfg"] {
            let text = tree.read(menu);
            assert!(!text.contains(new) && text.contains(old), "{menu}\n{text}");
        }
    }
}

#[test]
fn what_cannot_be_mended_is_told_and_ends_with_1() {
    if lacks_tools() {
        return;
    }
    type Spoil = fn(&Tree);
    let cases: [(&str, Spoil, &str); 6] = [
        (
            "no UUID",
            |tree| tree.remove(&format!("dev/disk/by-uuid/{SWAP}")),
            "/dev/sda5 is named, and has no UUID",
        ),
        (
            "no kernel for PV",
            |tree| tree.file("boot/config-4.15.0-20-generic", "# CONFIG_XEN_PV is not set\n"),
            "no kernel in /boot has CONFIG_XEN_PV",
        ),
        (
            "no driver",
            |tree| tree.initrd("4.15.0-20-generic", "gzip", &["net/xen-netfront"]),
            "xen-blkfront is not in the initrd",
        ),
        ("no root", |tree| tree.file("etc/fstab", "# empty\n"), "/etc/fstab has no line for /"),
        (
            "a brace too many",
            |tree| tree.file("boot/grub/grub.cfg", "}\n### BEGIN /etc/grub.d/10_linux ###\n"),
            "a brace that closes nothing",
        ),
        (
            "a large initrd",
            |tree| {
                let file = std::fs::OpenOptions::new()
                    .write(true)
                    .open(tree.at("boot/initrd.img-4.15.0-20-generic"));
                file.unwrap().set_len((128 << 20) + 1).unwrap();
            },
            "134217729 bytes; pygrub copies at most",
        ),
    ];
    for (what, spoil, expected) in cases {
        let tree = release("ubuntu-18.04");
        spoil(&tree);
        let (document, code) = document(&run(SHELLS[0], &tree, &["--xen", "4.13"]));
        let problems: Vec<&str> = document
            .checks
            .iter()
            .filter(|check| check.state == Standing::Problem)
            .map(|check| check.detail.as_str())
            .collect();
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{what}: {problems:?}");
        assert_eq!(code, 1, "{what}");
        let verdict = judge(&document, xen("4.13")).verdict;
        assert!(matches!(verdict, Verdict::NotReady(_)), "{what}: the server says so too: {verdict:?}");
    }
}

#[test]
fn names_that_are_hostile_to_json_and_very_many_kernels_stay_one_small_document() {
    if lacks_tools() {
        return;
    }
    let tree = release("ubuntu-18.04");
    for n in 0..40 {
        tree.kernel(&format!("9.{n}-{}", "x".repeat(150)), "gzip");
    }
    tree.kernel("9.99-\"quo\\ted\" 'x'", "gzip");
    tree.file("etc/os-release", "PRETTY_NAME=\"\u{1b}[31m\u{7f}\u{e9}\\ tab\there\"\n");
    tree.file("etc/fstab", "LABEL=a\"b\\c / ext4 defaults 0 1\n");
    for shell in SHELLS {
        let (document, _) = document(&run(shell, &tree, &["--check"]));
        assert_eq!(document.root, "LABEL=a\"b\\c", "{shell:?}");
        assert_eq!(document.kernels.len(), 6);
        assert!(
            document.kernels[0].version.starts_with("9.39-xx"),
            "a name that no menu could hold is left out"
        );
        assert!(document.os.is_ascii());
    }
}

#[test]
fn wrong_arguments_end_with_2_and_change_nothing() {
    if lacks_tools() {
        return;
    }
    let tree = release("debian-12");
    let before = tree.snapshot();
    for args in
        [&["--xen"][..], &["--xen", "new"], &["--frob"], &["--disk", "/dev/null"], &["--boot-at", "x"]]
    {
        let ran = run(SHELLS[0], &tree, args);
        assert_eq!(ran.status.code(), Some(2), "{args:?}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains("usage: "), "{args:?}");
    }
    assert_eq!(before, tree.snapshot());
}

#[test]
fn the_script_is_clean_for_shellcheck() {
    if missing("shellcheck") {
        return;
    }
    let checked = Command::new("shellcheck").args(["-s", "sh"]).arg(script()).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

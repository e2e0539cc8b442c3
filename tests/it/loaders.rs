//! `bootflip loaders`, as an operator uses it.

use std::{
    path::Path,
    process::{Command, Output},
};

use crate::common::programs::{missing, skip};

fn loaders(arguments: &[&str], root: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
    command.arg("loaders").args(arguments).arg("--root").arg(root).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn loaders_are_installed_listed_and_verified_with_an_exit_code() {
    let (folder, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let from = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("undionly.kpxe"), "loader").unwrap();
    let empty = loaders(&["verify"], root.path());
    assert_eq!(empty.status.code(), Some(1));
    assert!(text(&empty.stderr).contains("has no loaders; see `bootflip loaders install`"));
    let installed = loaders(&["install", "undionly.kpxe", "--from", from], root.path());
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    assert!(text(&installed.stdout).starts_with("installed  "));
    assert_eq!(loaders(&["verify"], root.path()).status.code(), Some(0));
    let listed: serde_json::Value =
        serde_json::from_slice(&loaders(&["list", "--json"], root.path()).stdout).unwrap();
    let undionly = listed.as_array().unwrap().iter().find(|row| row["name"] == "undionly.kpxe").unwrap();
    assert_eq!((&undionly["state"], &undionly["package"]), (&"verified".into(), &"ipxe".into()));
    std::fs::write(root.path().join("undionly.kpxe"), "changed").unwrap();
    let differs = loaders(&["verify"], root.path());
    assert_eq!(differs.status.code(), Some(1));
    assert_eq!(text(&differs.stdout), "FILE           STATE\nundionly.kpxe  differs\n");
    for (arguments, code, complaint) in [
        (&["install", "nosuch"][..], 2, "there is no loader `nosuch`"),
        (&["install", "menu.c32", "--from", from], 1, "install the package syslinux-common"),
    ] {
        let refused = loaders(arguments, root.path());
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}");
        assert!(text(&refused.stderr).contains(complaint), "{}", text(&refused.stderr));
    }
}

/// In a mount namespace that lacks the package.
#[test]
#[ignore = "downloads a package of Debian's archive; part of test-full"]
fn a_loader_whose_package_is_not_installed_comes_from_the_archive() {
    if missing("apt-get") || missing("dpkg-deb") || missing("unshare") {
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        return skip("loaders from the archive", "not root");
    }
    let root = tempfile::tempdir().unwrap();
    let script = format!(
        "mkdir -p /usr/lib/PXELINUX && mount -t tmpfs none /usr/lib/PXELINUX && exec '{}' loaders install pxelinux.0 \
         --root '{}'",
        env!("CARGO_BIN_EXE_bootflip"),
        root.path().display()
    );
    let installed = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(installed.status.success(), "{}", text(&installed.stderr));
    assert!(std::fs::metadata(root.path().join("pxelinux.0")).unwrap().len() > 10_000);
    let mut left: Vec<_> =
        std::fs::read_dir(root.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["SHA256SUMS", "pxelinux.0"]);
    assert_eq!(loaders(&["verify"], root.path()).status.code(), Some(0));
}

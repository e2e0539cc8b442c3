//! What documents are taken, and what they come to on which Xen.

use serde_json::{Value, json};

use super::*;

fn ready() -> Value {
    json!({
        "v": 1, "mode": "mend", "xen": "4.13", "verdict": "ready", "os": "Ubuntu 22.04", "root": "UUID=1",
        "boot": {"separate": true, "kind": "partition", "table": "dos", "partition": 1, "fs": "ext2", "features": []},
        "menu": {"file": "/boot/grub/grub.cfg", "kernel": "/vmlinuz-5", "initrd": "/initrd.img-5", "why": ""},
        "kernels": [{
            "version": "5", "file": "/boot/vmlinuz-5", "copy": false, "compression": "gzip", "bytes": 9_000_000,
            "initrd": "/boot/initrd.img-5", "initrd_bytes": 40_000_000, "xen_pv": "yes", "block": "initrd",
            "net": "module",
        }],
        "checks": [{"check": "root", "state": "ok", "detail": "root is UUID=1"}],
    })
}

/// The document with one value set, by a path of keys.
fn with(path: &str, value: Value) -> Value {
    let mut document = ready();
    *document.pointer_mut(path).unwrap_or_else(|| panic!("no {path}")) = value;
    document
}

fn parse(document: &Value) -> Result<Document, Unreadable> {
    Document::parse(document.to_string().as_bytes())
}

const OLD: Option<XenVersion> = Some(XenVersion::new(4, 13));
const NEW: Option<XenVersion> = Some(XenVersion::new(4, 17));
const OLDEST: Option<XenVersion> = Some(XenVersion::new(4, 1));

#[test]
fn what_keeps_a_guest_from_starting_as_pv_is_told_with_its_remedy() {
    for (path, value, xen, expected) in [
        ("/os", json!("x"), OLD, "ready"),
        (
            "/root",
            json!("/dev/sda2"),
            OLD,
            "root is /dev/sda2, which may have another name in a PV guest: name it by UUID",
        ),
        ("/root", json!(""), OLD, "/etc/fstab has no line for /"),
        ("/root", json!("/dev/mapper/vg-root"), OLD, "ready"),
        ("/boot/kind", json!("lvm"), OLD, "/boot is on LVM or device-mapper, where pygrub does not look"),
        ("/boot/kind", json!("raid"), NEW, "/boot is on a software RAID"),
        ("/boot/kind", json!("logical"), NEW, "/boot is on a logical partition"),
        ("/boot/kind", json!("whole"), NEW, "ready"),
        ("/boot/kind", json!("something new"), NEW, "ready"),
        ("/boot/fs", json!("xfs"), NEW, "/boot is xfs, which pygrub does not read"),
        ("/boot/fs", json!("zonefs"), NEW, "/boot is a file system that is not known"),
        (
            "/boot/fs",
            json!("ext4"),
            OLDEST,
            "/boot is ext4, which needs the pygrub of Xen 4.2, and the pool's Xen is 4.1",
        ),
        ("/boot/fs", json!("ext4"), OLD, "ready"),
        (
            "/menu",
            json!({"file": "", "kernel": "", "why": "there is no grub.cfg"}),
            NEW,
            "pygrub finds no menu",
        ),
        (
            "/menu",
            json!({"file": "/boot/x", "kernel": "/k", "why": "/k is not there"}),
            NEW,
            "pygrub gets no kernel from /boot/x (/k is not there)",
        ),
        ("/kernels", json!([]), NEW, "no kernel in /boot has CONFIG_XEN_PV"),
        ("/kernels/0/xen_pv", json!("no"), NEW, "kernel 5 has no CONFIG_XEN_PV"),
        (
            "/kernels/0/compression",
            json!("zstd"),
            OLD,
            "kernel 5 is packed with zstd, which needs Xen 4.15, and the pool's Xen is 4.13: install the program zstd",
        ),
        ("/kernels/0/compression", json!("zstd"), NEW, "ready"),
        ("/kernels/0/compression", json!("zstd"), None, "ready"),
        ("/kernels/0/compression", json!("lz4"), OLD, "ready"),
        ("/kernels/0/compression", json!("lz4"), OLDEST, "kernel 5 is packed with lz4, which needs Xen 4.4"),
        ("/kernels/0/block", json!("module"), NEW, "xen-blkfront is not in the initrd of kernel 5"),
        ("/kernels/0/block", json!("built-in"), NEW, "ready"),
        ("/kernels/0/net", json!("no"), NEW, "kernel 5 has no xen-netfront"),
        ("/kernels/0/initrd_bytes", json!(134_217_729), NEW, "the initrd of 5 has 134217729 bytes"),
        ("/kernels/0/initrd_bytes", json!(134_217_728), NEW, "ready"),
        (
            "/checks/0",
            json!({"check": "fstab", "state": "problem", "detail": "/dev/sdb1 has no UUID"}),
            NEW,
            "/dev/sdb1 has no UUID",
        ),
        (
            "/checks/0",
            json!({"check": "fstab", "state": "todo", "detail": "by UUID"}),
            NEW,
            "not so yet: by UUID",
        ),
        ("/checks/0", json!({"check": "hooks", "state": "todo", "detail": "hooks"}), NEW, "ready"),
        (
            "/checks/0",
            json!({"check": "boot", "state": "problem", "detail": "it says so itself"}),
            NEW,
            "ready",
        ),
        ("/checks/0", json!({"check": "fstab", "state": "mended", "detail": "by UUID"}), NEW, "mended"),
    ] {
        let document = parse(&with(path, value.clone())).unwrap();
        let judgement = judge(&document, xen);
        match (&judgement.verdict, expected) {
            (Verdict::Ready, "ready") => {}
            (Verdict::Mended(what), "mended") => assert_eq!(what, &["by UUID"]),
            (Verdict::NotReady(sentences), expected) => {
                assert!(
                    sentences.len() == 1 && sentences[0].starts_with(expected),
                    "{path} {value}: {sentences:?}"
                );
            }
            (verdict, _) => panic!("{path} {value} on {xen:?}: {verdict:?}, not {expected}"),
        }
    }
}

#[test]
fn ext4s_new_features_are_read_by_new_hosts_only() {
    let mut document = with("/boot/fs", json!("ext4"));
    document["boot"]["features"] =
        json!(["extent", "64bit", "metadata_csum", "metadata_csum_seed", "orphan_file"]);
    let document = parse(&document).unwrap();
    let on = |xen| judge(&document, xen);
    assert_eq!(on(NEW), Judgement { verdict: Verdict::Ready, advice: vec![] });
    let Verdict::NotReady(sentences) = on(OLD).verdict else { panic!() };
    assert!(sentences.len() == 1 && sentences[0].contains("metadata_csum_seed"), "{sentences:?}");
    assert_eq!(on(OLD).advice.len(), 2, "64bit and metadata_csum may or may not be read");
    assert_eq!((on(None).verdict, on(None).advice.len()), (Verdict::Ready, 3), "an unknown Xen ends no job");
}

#[test]
fn what_is_no_document_of_the_script_is_refused() {
    let long = "x".repeat(401);
    for (document, expected) in [
        (json!([]), "line 1"),
        (json!({"v": 1}), "line 1"),
        (with("/v", json!(2)), "it has version 2"),
        (with("/root", json!(long)), "it is too long"),
        (
            with("/checks", json!(vec![json!({"check": "a", "state": "ok", "detail": ""}); 65])),
            "it is too long",
        ),
        (with("/checks/0/state", json!("fine")), "line 1"),
        (with("/kernels/0/bytes", json!(-1)), "line 1"),
        (with("/boot", json!("x".repeat(BYTES_MAX))), "it is too long"),
    ] {
        let error = parse(&document).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}, not {expected}");
    }
    assert!(Document::parse(b"\xff\xfe{").is_err());
}

#[test]
fn control_characters_do_not_reach_a_terminal() {
    let document = parse(&with("/os", json!("Ubuntu\u{1b}[2J\n"))).unwrap();
    assert_eq!(document.os, "Ubuntu[2J");
}

#[test]
fn the_kernel_that_the_menu_names_is_the_one_that_counts() {
    let mut document = ready();
    let mut newer = document["kernels"][0].clone();
    (newer["version"], newer["file"], newer["compression"]) =
        (json!("6"), json!("/boot/vmlinuz-6"), json!("zstd"));
    document["kernels"].as_array_mut().unwrap().insert(0, newer);
    assert_eq!(judge(&parse(&document).unwrap(), OLD).verdict, Verdict::Ready);
    document["menu"]["kernel"] = json!("/vmlinuz-6");
    assert_eq!(judge(&parse(&document).unwrap(), OLD).verdict.label(), "not-ready");
}

//! Why a PV start found nothing to boot: xapi's words as one sentence, and what to look at on the disk. Pure.
//!
//! The words come as BOOTLOADER_FAILED, or as its twins INTERNAL_ERROR and UNKNOWN_BOOTLOADER; pygrub itself says
//! little, as it swallows everything that goes wrong with a single partition.

use super::{Failure, error::bootloader_message};

/// What to tell an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Diagnosis {
    /// What happened, in one sentence.
    pub sentence: &'static str,
    /// What the disk and the VM's record must have, the likeliest cause first.
    pub checklist: &'static [&'static str],
}

impl Diagnosis {
    /// That of a failed start; `None`: the start failed for another reason.
    pub fn of(failure: &Failure) -> Option<Self> {
        if failure.is("DOMAIN_BUILDER_ERROR") {
            return Some(Self { sentence: UNLOADABLE, checklist: &CHECKLIST });
        }
        bootloader_message(failure).map(|message| Self::of_message(&message))
    }

    /// That of a message as [`bootloader_message`] gives it and jobs keep it.
    pub fn of_message(message: &str) -> Self {
        let found = SIGNS.iter().find(|(signs, _)| signs.iter().any(|sign| message.contains(sign)));
        Self { sentence: found.map_or(UNKNOWN, |(_, sentence)| sentence), checklist: &CHECKLIST }
    }
}

/// Parts of messages, and what they mean; the first that fits.
const SIGNS: [(&[&str], &str); 6] = [
    (
        &["there is no bootable device"],
        "No disk of the VM is marked as bootable, so that there is nothing to look for a kernel on.",
    ),
    (
        &["Unknown_bootloader", "unknown bootloader"],
        "PV_bootloader names a bootloader that the pool does not have; it knows pygrub and eliloader, by these \
         names only.",
    ),
    (
        &["UNSUPPORTED_INSTALL_METHOD", "INVALID_SOURCE", "eliloader"],
        "The VM's bootloader is still eliloader, which wanted to begin an installation of its own instead of \
         booting the disk.",
    ),
    (
        &["Unable to find partition containing kernel"],
        "pygrub read every partition of the first bootable disk and found no boot configuration that it \
         understands.",
    ),
    (
        &["too large", "too big", "max-size", "File size limit", "No space left"],
        "The kernel or the initrd is larger than the host lets pygrub take out of a guest's disk.",
    ),
    (&["compression", "xc_dom", "zImage", "ELF"], UNLOADABLE),
];

const UNLOADABLE: &str = "The kernel was found, and the host's Xen cannot load it as a PV kernel.";
const UNKNOWN: &str =
    "pygrub ended without a kernel to boot: it read the disk and gave up on what it found there.";

/// What a PV boot through pygrub needs.
const CHECKLIST: [&str; 7] = [
    "The first bootable disk has a first partition that pygrub can read: plain ext2 or ext3 holding /boot (ext4 \
     only without the features 64bit and metadata_csum); no LVM, RAID, LUKS or btrfs under /boot.",
    "/boot/grub/grub.cfg and /boot/grub/menu.lst are both there and name the same kernel: hosts up to 6.1 read \
     menu.lst first, later ones grub.cfg.",
    "The configuration is plain: one menuentry on one line, no submenu (GRUB_DISABLE_SUBMENU=y), GRUB_DEFAULT=0 \
     and not `saved`, and paths as they are inside that partition (without /boot when /boot is its own).",
    "The kernel is compressed in a way that the host unpacks: gzip everywhere, lz4 from 7.0 on, zstd only from \
     8.3 on. Where the distribution's is zstd, a hook that stores it with gzip or uncompressed helps.",
    "The kernel can run as PV (CONFIG_XEN_PV, 64 bits; 32 bits need PAE and a host that lists xen-3.0-x86_32p), \
     and its initrd has xen-blkfront, xen-netfront and the root file system.",
    "Kernel and initrd are small enough for the host's limits (128 MiB unpacked from pygrub's chroot): \
     MODULES=dep or a stronger compression makes the initrd smaller.",
    "The VM's record: exactly one bootable disk and no bootable CD before it, PV_bootloader pygrub, \
     PV_bootloader_args empty, PV_args with console=hvc0 and the root by UUID if grub's entry has none.",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_finding_no_kernel_has_its_sentence() {
        for (code, params, wanted) in [
            (
                "BOOTLOADER_FAILED",
                &["OpaqueRef:1", "Unable to find partition containing kernel"][..],
                "found no boot configuration",
            ),
            ("BOOTLOADER_FAILED", &["OpaqueRef:1", "UNSUPPORTED_INSTALL_METHOD x"], "still eliloader"),
            (
                "BOOTLOADER_FAILED",
                &["OpaqueRef:1", "OSError: File size limit exceeded"],
                "larger than the host",
            ),
            ("BOOTLOADER_FAILED", &[], "gave up"),
            ("INTERNAL_ERROR", &["Bootloader.Bad_error(\"Traceback\")"], "gave up"),
            ("INTERNAL_ERROR", &["Bootloader.Unknown_bootloader xenpvnetboot"], "names a bootloader"),
            ("INTERNAL_ERROR", &["xenopsd: there is no bootable device"], "marked as bootable"),
            ("UNKNOWN_BOOTLOADER", &["OpaqueRef:1", "grub"], "names a bootloader"),
            ("DOMAIN_BUILDER_ERROR", &["linux_build", "2", "xc_dom_parse_image"], "cannot load it"),
        ] {
            let diagnosis = Diagnosis::of(&Failure::new(code, params)).unwrap();
            assert!(diagnosis.sentence.contains(wanted), "{code} {params:?}: {}", diagnosis.sentence);
            assert_eq!(diagnosis.checklist.len(), 7);
        }
    }

    #[test]
    fn other_failures_are_not_the_disks() {
        for (code, params) in [
            ("NO_HOSTS_AVAILABLE", &[][..]),
            ("INTERNAL_ERROR", &["Unix.Unix_error(ECONNREFUSED)"]),
            ("VM_BAD_POWER_STATE", &["r", "halted", "running"]),
        ] {
            assert_eq!(Diagnosis::of(&Failure::new(code, params)), None, "{code}");
        }
    }
}

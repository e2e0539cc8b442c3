//! What the bootloader of a PV VM finds: pygrub, eliloader, or nothing. Behaviour: xenopsd's bootloader.ml.

use super::{Pool, db::is_null, schema::Class, spec::DiskKind};
use crate::xen::Failure;

/// Pygrub's words about a disk without a system.
pub(super) const NO_SYSTEM: &str = "Unable to find partition containing kernel";

impl Pool {
    /// Reads the boot disk as the VM's bootloader would.
    pub(super) fn run_bootloader(&self, vm: &str) -> Result<(), Failure> {
        let internal = |words: &str| Err(Failure::new("INTERNAL_ERROR", &[words]));
        let failed = |words: &str| Err(Failure::new("BOOTLOADER_FAILED", &[vm, words]));
        match self.db.text(Class::Vm, vm, "PV_bootloader") {
            "" if is_null(self.db.text(Class::Vm, vm, "PV_kernel")) => internal("the VM has no kernel"),
            "" => Ok(()),
            "eliloader" => {
                let other = self.db.map_of(Class::Vm, vm, "other_config");
                if other.contains_key("install-repository") {
                    Ok(())
                } else {
                    failed("install-repository is not set")
                }
            }
            "pygrub" => match self.first_bootable(vm) {
                None => internal("there is no bootable device"),
                Some(DiskKind::Cd) => failed(NO_SYSTEM),
                // The real one, outside, reads the real disk.
                Some(DiskKind::Disk) if self.outside.is_some() => Ok(()),
                Some(DiskKind::Disk) => match self.boot_disks.get(self.db.text(Class::Vm, vm, "uuid")) {
                    Some(Ok(())) => Ok(()),
                    Some(Err(words)) => failed(words),
                    None => failed(NO_SYSTEM),
                },
            },
            other => internal(&format!("Bootloader.Unknown_bootloader(\"{other}\")")),
        }
    }

    /// The drive that the bootloader reads: the first bootable one that is not empty.
    fn first_bootable(&self, vm: &str) -> Option<DiskKind> {
        let drives = self.db.set_of(Class::Vm, vm, "VBDs");
        let bootable = |vbd: &&String| {
            self.db.flag(Class::Vbd, vbd, "bootable") && !self.db.flag(Class::Vbd, vbd, "empty")
        };
        let position =
            |vbd: &&String| self.db.text(Class::Vbd, vbd, "userdevice").parse::<u32>().unwrap_or(u32::MAX);
        let first = drives.iter().filter(bootable).min_by_key(position)?;
        Some(if self.db.text(Class::Vbd, first, "type") == "CD" { DiskKind::Cd } else { DiskKind::Disk })
    }
}

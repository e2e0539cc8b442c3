//! The fstab of an installed system, read from the disk image by `debugfs`: nothing is mounted, and nothing of the
//! guest's is run.
//!
//! The disk is `sda` while it is installed and `xvda` afterwards: only what names file systems by UUID finds them.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What an fstab names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fstab {
    /// First and second field of every line that names a device of a disk.
    pub entries: Vec<(String, String)>,
}

/// It could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FstabError {
    /// `sfdisk` or `debugfs` did not run, or refused.
    #[error("cannot run {program} on {disk}")]
    Run {
        /// Which.
        program: &'static str,
        /// The image.
        disk: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No partition of the disk holds `/etc/fstab`.
    #[error("no partition of {disk} holds an /etc/fstab")]
    Absent {
        /// The image.
        disk: PathBuf,
    },
}

impl Fstab {
    /// The lines that name a partition, as `findmnt` and mount(8) would; the CD drive that Debian's installer adds is
    /// no part of the disk.
    fn parse(text: &str) -> Self {
        let fields = text.lines().filter(|line| !line.trim_start().starts_with('#')).filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            words.next().zip(words.next())
        });
        let of_a_disk = |device: &str| {
            let path = device.strip_prefix("/dev/");
            device.contains("UUID=")
                || path.is_some_and(|name| !name.starts_with("sr") && !name.starts_with("cdrom"))
        };
        let entries = fields.filter(|(device, _)| of_a_disk(device));
        Self { entries: entries.map(|(device, place)| (device.to_owned(), place.to_owned())).collect() }
    }

    /// What is named by something that another bus or hypervisor names otherwise.
    pub fn not_by_uuid(&self) -> impl Iterator<Item = &(String, String)> {
        self.entries.iter().filter(|(device, _)| !device.starts_with("UUID="))
    }

    /// The root file system is named by its UUID, and so is all the rest.
    pub fn is_by_uuid(&self) -> bool {
        self.entries.iter().any(|(_, place)| place == "/") && self.not_by_uuid().next().is_none()
    }
}

/// Reads the first `/etc/fstab` that a partition of the image holds.
pub fn read(disk: &Path) -> Result<Fstab, FstabError> {
    let table = output("sfdisk", Command::new("sfdisk").arg("--json").arg(disk), disk)?;
    for offset in offsets(&table) {
        let place = format!("{}?offset={offset}", disk.display());
        // -c: without the bitmaps, which do not fit each other while the system runs that writes them.
        let mut debugfs = Command::new("debugfs");
        let text = output("debugfs", debugfs.args(["-c", "-R", "cat /etc/fstab", &place]), disk)?;
        let fstab = Fstab::parse(&text);
        if !fstab.entries.is_empty() {
            return Ok(fstab);
        }
    }
    Err(FstabError::Absent { disk: disk.to_owned() })
}

fn output(program: &'static str, command: &mut Command, disk: &Path) -> Result<String, FstabError> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = output.map_err(|source| FstabError::Run { program, disk: disk.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Where the partitions begin, in bytes, from `sfdisk --json`.
fn offsets(table: &str) -> Vec<u64> {
    let table: serde_json::Value = serde_json::from_str(table).unwrap_or_default();
    let sector = table.pointer("/partitiontable/sectorsize").and_then(serde_json::Value::as_u64);
    let partitions = table.pointer("/partitiontable/partitions").and_then(serde_json::Value::as_array);
    let starts = partitions.into_iter().flatten().filter_map(|partition| partition.get("start")?.as_u64());
    starts.map(|start| start * sector.unwrap_or(SECTOR)).collect()
}

/// Bytes, where sfdisk does not tell.
const SECTOR: u64 = 512;

#[cfg(test)]
mod tests {
    use super::*;

    const DEBIAN: &str = "# /etc/fstab\n\
        UUID=1b1e / ext4 errors=remount-ro 0 1\n\
        UUID=77aa /boot ext2 defaults 0 2\n\
        UUID=cafe none swap sw 0 0\n\
        /dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0\n\
        tmpfs /tmp tmpfs defaults 0 0\n";

    #[test]
    fn an_fstab_is_good_when_every_partition_is_named_by_uuid() {
        let fstab = Fstab::parse(DEBIAN);
        assert_eq!(fstab.entries.len(), 3, "{fstab:?}");
        assert!(fstab.is_by_uuid());
        for (from, to) in
            [("UUID=cafe", "/dev/sda5"), ("UUID=77aa", "PARTUUID=77aa-01"), ("UUID=1b1e", "/dev/sda1")]
        {
            assert!(!Fstab::parse(&DEBIAN.replace(from, to)).is_by_uuid(), "{to}");
        }
        assert!(!Fstab::parse("UUID=77aa /boot ext2 defaults 0 2\n").is_by_uuid(), "there is no root");
    }

    #[test]
    fn partitions_are_found_where_sfdisk_says() {
        let table = r#"{"partitiontable":{"label":"dos","sectorsize":512,"partitions":[{"node":"a1","start":2048},{"node":"a2","start":4096}]}}"#;
        assert_eq!(offsets(table), [1 << 20, 2 << 20]);
        assert_eq!(offsets(""), [0_u64; 0]);
    }
}

//! The real pygrub: asks it what a disk boots.
//!
//! Runs unpacked and not installed: its libraries and file-system plug-ins are found through the environment. It
//! reads the raw image, prints three lines and leaves kernel and initrd in the folder it was given.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    process::Stdio,
};

use flate2::read::MultiGzDecoder;
use tokio::process::Command;

use super::Lab;

/// What pygrub took from a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// A copy of the kernel.
    pub kernel: PathBuf,
    /// A copy of the initrd.
    pub initrd: Option<PathBuf>,
    /// The kernel's arguments.
    pub args: String,
}

/// Why there is nothing to boot.
#[derive(Debug, thiserror::Error)]
pub enum PygrubError {
    /// It ran and refused the disk; its last words, as xapi passes them on in BOOTLOADER_FAILED.
    #[error("{words}")]
    Refused {
        /// Such as `Unable to find partition containing kernel`.
        words: String,
    },
    /// It could not be run.
    #[error("cannot run pygrub on {disk}")]
    Run {
        /// The image.
        disk: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What it took could not be unpacked.
    #[error("cannot unpack {kernel}")]
    Unpack {
        /// The kernel.
        kernel: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Runs pygrub on a raw image; the two files go into `folder`, which must exist.
pub async fn run(lab: &Lab, disk: &Path, folder: &Path) -> Result<Extracted, PygrubError> {
    let libraries = lab.xen_libraries();
    let output = Command::new("/usr/bin/python3")
        .arg(lab.pygrub())
        .args(["--quiet", "--output-format=simple"])
        .arg(format!("--output-directory={}", folder.display()))
        .arg(disk)
        .env("LD_LIBRARY_PATH", &libraries)
        .env("XEN_FSIMAGE_FSDIR", libraries.join("xenfsimage"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| PygrubError::Run { disk: disk.to_owned(), source })?;
    match parse(&String::from_utf8_lossy(&output.stdout)) {
        Some(extracted) if output.status.success() => Ok(extracted),
        Some(_) | None => {
            Err(PygrubError::Refused { words: last_words(&String::from_utf8_lossy(&output.stderr)) })
        }
    }
}

/// Unpacks a kernel that is packed as a whole (readiness keeps some so for old releases of Xen): Xen's domain builder
/// does that, QEMU boots only what is in there.
pub async fn unpack(kernel: &Path) -> Result<(), PygrubError> {
    let path = kernel.to_owned();
    let work = tokio::task::spawn_blocking(move || unpack_now(&path)).await;
    let unpacked = work.map_err(io::Error::other).flatten();
    unpacked.map_err(|source| PygrubError::Unpack { kernel: kernel.to_owned(), source })
}

fn unpack_now(kernel: &Path) -> io::Result<()> {
    let mut magic = [0; 2];
    let mut packed = File::open(kernel)?;
    packed.read_exact(&mut magic)?;
    if magic != [0x1f, 0x8b] {
        return Ok(());
    }
    let half = kernel.with_extension("unpacked");
    io::copy(&mut MultiGzDecoder::new(File::open(kernel)?), &mut File::create(&half)?)?;
    std::fs::rename(half, kernel)
}

/// Reads `--output-format=simple`: a line each of `kernel PATH`, `ramdisk PATH` (may be missing) and `args TEXT`.
fn parse(output: &str) -> Option<Extracted> {
    let value = |key: &str| output.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    Some(Extracted {
        kernel: value("kernel")?.into(),
        initrd: value("ramdisk").map(PathBuf::from),
        args: value("args").unwrap_or_default().to_owned(),
    })
}

/// The text behind `RuntimeError:`, or the last line of the traceback.
pub(in crate::sim) fn last_words(errors: &str) -> String {
    let mut lines = errors.lines().rev().filter(|line| !line.trim().is_empty());
    let runtime = errors.lines().rev().find_map(|line| line.strip_prefix("RuntimeError: "));
    runtime.or_else(|| lines.next()).unwrap_or("pygrub printed no kernel").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_pygrub_prints_is_read_line_by_line() {
        let printed = "kernel /x/boot_kernel.a\nramdisk /x/boot_ramdisk.b\nargs root=UUID=7 ro args x\n\n";
        let expected = Extracted {
            kernel: "/x/boot_kernel.a".into(),
            initrd: Some("/x/boot_ramdisk.b".into()),
            args: "root=UUID=7 ro args x".into(),
        };
        assert_eq!(parse(printed), Some(expected));
        assert_eq!(parse("kernel /k\n").map(|e| (e.initrd, e.args)), Some((None, String::new())));
        assert_eq!(parse("ramdisk /x\nargs y\n"), None);
    }

    #[test]
    fn a_kernel_that_is_packed_whole_is_unpacked_and_any_other_left_alone() {
        use std::io::Write as _;
        let folder = tempfile::tempdir().unwrap();
        let kernel = folder.path().join("boot_kernel.x");
        for written in [&b"MZ\x1f\x8b a bzImage"[..], b"\x7fELF"] {
            std::fs::write(&kernel, written).unwrap();
            unpack_now(&kernel).unwrap();
            assert_eq!(std::fs::read(&kernel).unwrap(), written);
        }
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(b"\x7fELF the kernel").unwrap();
        std::fs::write(&kernel, packer.finish().unwrap()).unwrap();
        unpack_now(&kernel).unwrap();
        assert_eq!(std::fs::read(&kernel).unwrap(), b"\x7fELF the kernel");
    }

    #[test]
    fn a_refusal_is_its_runtime_error() {
        let traceback = "Traceback (most recent call last):\n  File \"pygrub\", line 1032, in <module>\n    \
            raise RuntimeError(\"x\")\nRuntimeError: Unable to find partition containing kernel\n";
        assert_eq!(last_words(traceback), "Unable to find partition containing kernel");
        assert_eq!(last_words("ImportError: no module\n\n"), "ImportError: no module");
        assert_eq!(last_words(""), "pygrub printed no kernel");
    }
}

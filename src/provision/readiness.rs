//! Whether an installed system will start as a PV guest: the document that `config/guest/pv-ready.sh` prints inside it,
//! and what that means for the pool's Xen. Pure.
//!
//! Invariant: the document is the guest's word and is believed no further than that it can end its own job. What it
//! says is bounded before it is stored. What depends on the version of Xen is judged here, from the facts; the rest is
//! as the script found it. `docs/pv-readiness.md` has each sentence with its remedy.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::xen::version::XenVersion;

/// Bytes of a document: what a report may hold.
pub const BYTES_MAX: usize = 64 << 10;
/// Characters of one text in it.
const TEXT_MAX: usize = 400;
/// Kernels, findings and file system features in it.
const LIST_MAX: usize = 64;
/// Bytes of a kernel or initrd that pygrub copies out of a guest (LIMIT_FSIZE, since XSA-443).
const FILE_MAX: u64 = 128 << 20;

/// Reads ext4 in any way: pygrubs before it know ext2 and ext3 (pxe.md: 5.6 to 6.1 want ext3).
const EXT4: XenVersion = XenVersion::new(4, 2);
/// The domain builder unpacks lz4 (Xen commit 84f04d8f).
const LZ4: XenVersion = XenVersion::new(4, 4);
/// The domain builder unpacks zstd (Xen commit 8169f820).
const ZSTD: XenVersion = XenVersion::new(4, 15);
/// Hosts with an e2fsprogs that knows what mke2fs makes today.
const MODERN: XenVersion = XenVersion::new(4, 17);

/// What the script found, version 1. Keys that are not here are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    /// 1.
    pub v: u32,
    /// The Xen that the script was told; empty: none.
    #[serde(default)]
    pub xen: String,
    /// PRETTY_NAME of os-release.
    #[serde(default)]
    pub os: String,
    /// The first field of fstab's line for `/`.
    pub root: String,
    /// Where /boot is.
    pub boot: Boot,
    /// What pygrub will read.
    pub menu: Menu,
    /// The kernels that can start as PV, newest first.
    pub kernels: Vec<Kernel>,
    /// What was looked at.
    pub checks: Vec<Check>,
}

/// The place of /boot's file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Boot {
    /// /boot is a file system of its own.
    #[serde(default)]
    pub separate: bool,
    /// What it lies on.
    pub kind: Place,
    /// The file system.
    pub fs: FileSystem,
    /// Features of an ext file system, as mke2fs names them.
    #[serde(default)]
    pub features: Vec<String>,
}

/// What a file system lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// A primary partition of an MBR, or one of a GPT.
    Partition,
    /// A logical partition, which pygrub does not look for.
    Logical,
    /// The disk itself.
    Whole,
    /// LVM, or another device-mapper device.
    Lvm,
    /// A software RAID.
    Raid,
    /// The script could not tell.
    #[serde(other)]
    Unknown,
}

/// A file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystem {
    /// No journal, no extents.
    Ext2,
    /// A journal, no extents.
    Ext3,
    /// Extents, or other features of ext4.
    Ext4,
    /// FAT.
    Vfat,
    /// XFS.
    Xfs,
    /// Btrfs.
    Btrfs,
    /// An encrypted device.
    Luks,
    /// A physical volume of LVM.
    Lvm,
    /// None that the script knows.
    #[serde(other)]
    Unknown,
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ext2 => "ext2",
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Vfat => "vfat",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Luks => "encrypted",
            Self::Lvm => "LVM",
            Self::Unknown => "a file system that is not known",
        })
    }
}

/// The menu that pygrub reads first, read as pygrub does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Menu {
    /// Its path; empty: there is none.
    pub file: String,
    /// The kernel of its default entry, on the file system of /boot; empty: none can be had.
    pub kernel: String,
    /// Its initrd, or empty.
    #[serde(default)]
    pub initrd: String,
    /// Why pygrub gets nothing from it; empty: it does.
    #[serde(default)]
    pub why: String,
}

/// A kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// Such as `5.15.0-91-generic`.
    pub version: String,
    /// The file that pygrub is to take: the kernel, or its unpacked copy.
    pub file: String,
    /// How that is packed.
    pub compression: Compression,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<u64>,
    /// Those of its initrd.
    #[serde(default)]
    pub initrd_bytes: Option<u64>,
    /// CONFIG_XEN_PV.
    pub xen_pv: Known,
    /// Where xen-blkfront is.
    pub block: Driver,
    /// Where xen-netfront is.
    pub net: Driver,
}

/// How a kernel is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Of a bzImage, or of an ELF file.
    Gzip,
    /// Of a bzImage.
    Bzip2,
    /// Of a bzImage.
    Lzma,
    /// Of a bzImage.
    Xz,
    /// Of a bzImage.
    Lzo,
    /// Of a bzImage.
    Lz4,
    /// Of a bzImage.
    Zstd,
    /// An ELF file.
    None,
    /// None that the script knows.
    #[serde(other)]
    Unknown,
}

impl Compression {
    /// The first Xen whose domain builder unpacks it; `None`: all that bootflip meets.
    const fn since(self) -> Option<XenVersion> {
        match self {
            Self::Lz4 => Some(LZ4),
            Self::Zstd => Some(ZSTD),
            Self::Gzip | Self::Bzip2 | Self::Lzma | Self::Xz | Self::Lzo | Self::None | Self::Unknown => None,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::None => "nothing",
            Self::Unknown => "something that is not known",
        })
    }
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Known {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// The script could not tell.
    #[serde(other)]
    Unknown,
}

/// Where a driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// In the kernel.
    BuiltIn,
    /// In the initrd.
    Initrd,
    /// Only on the root file system.
    Module,
    /// Nowhere.
    No,
    /// The script could not tell.
    #[serde(other)]
    Unknown,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at, such as `fstab`.
    pub check: String,
    /// How it stands.
    pub state: Standing,
    /// In words.
    pub detail: String,
}

/// How a finding stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// A PV start does not hang on it.
    Advice,
    /// The script put it right.
    Mended,
    /// The script would put it right (`--check`).
    Todo,
    /// Only a person can.
    Problem,
}

/// A document that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// Larger than [`BYTES_MAX`], or a list or text in it is too long.
    #[error("it is too long")]
    TooLong,
    /// Not JSON, or not of this shape.
    #[error("it is not what pv-ready.sh writes: {0}")]
    Shape(String),
    /// Of a later version.
    #[error("it has version {0}, and this server knows 1")]
    Version(u32),
}

impl Document {
    /// Reads a report's body.
    ///
    /// # Errors
    /// It is no document of the script's.
    pub fn parse(body: &[u8]) -> Result<Self, Unreadable> {
        if body.len() > BYTES_MAX {
            return Err(Unreadable::TooLong);
        }
        // The error's place, and not the text there: that is the guest's.
        let shape = |error: serde_json::Error| {
            Unreadable::Shape(format!("line {}, column {}", error.line(), error.column()))
        };
        let document: Self = serde_json::from_slice(body).map_err(shape)?;
        if document.v != 1 {
            return Err(Unreadable::Version(document.v));
        }
        document.bounded()
    }

    fn bounded(mut self) -> Result<Self, Unreadable> {
        let lists = [self.kernels.len(), self.checks.len(), self.boot.features.len()];
        if lists.into_iter().any(|len| len > LIST_MAX) || self.texts().any(|text| text.len() > TEXT_MAX) {
            return Err(Unreadable::TooLong);
        }
        for text in self.texts() {
            text.retain(|c| !c.is_control());
        }
        Ok(self)
    }

    fn texts(&mut self) -> impl Iterator<Item = &mut String> {
        let Menu { file, kernel, initrd, why } = &mut self.menu;
        [&mut self.xen, &mut self.os, &mut self.root, file, kernel, initrd, why]
            .into_iter()
            .chain(&mut self.boot.features)
            .chain(self.kernels.iter_mut().flat_map(|kernel| [&mut kernel.version, &mut kernel.file]))
            .chain(self.checks.iter_mut().flat_map(|check| [&mut check.check, &mut check.detail]))
    }

    /// The kernel that pygrub will take; the menu may name one that the script did not list.
    fn booted(&self) -> Option<&Kernel> {
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let wanted = name(&self.menu.kernel);
        self.kernels.iter().find(|kernel| name(&kernel.file) == wanted).or_else(|| self.kernels.first())
    }

    fn told(&self, standing: Standing) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(move |check| check.state == standing)
    }
}

/// What a document comes to on a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// As it was found.
    Ready,
    /// After what the script put right, in sentences.
    Mended(Vec<String>),
    /// Not: sentences that say what to change.
    NotReady(Vec<String>),
}

impl Verdict {
    /// Its name in `--json`.
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Mended(_) => "mended",
            Self::NotReady(_) => "not-ready",
        }
    }
}

/// A verdict, and what else there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// What a PV start does not hang on, or may or may not.
    pub advice: Vec<String>,
}

/// What the script finds that this judges by itself, from the facts.
const JUDGED_HERE: [&str; 7] = ["boot", "compression", "drivers", "kernel", "menu", "root", "size"];
/// What a PV start hangs on though the script could mend it: it only looked.
const HANGS_ON: [&str; 2] = ["fstab", "kernel-args"];

/// What the document means for a pool whose oldest Xen is this.
pub fn judge(document: &Document, xen: Option<XenVersion>) -> Judgement {
    let mut findings = Findings::default();
    root(document, &mut findings);
    place(document, xen, &mut findings);
    menu(document, &mut findings);
    match document.booted() {
        Some(kernel) => booted(kernel, xen, &mut findings),
        None => findings
            .problem("no kernel in /boot has CONFIG_XEN_PV: install the distribution's generic kernel"),
    }
    for check in &document.checks {
        let judged = JUDGED_HERE.contains(&check.check.as_str());
        match check.state {
            Standing::Problem if !judged => findings.problem(&check.detail),
            Standing::Todo if HANGS_ON.contains(&check.check.as_str()) => {
                findings.problem(&format!("not so yet: {}; run the script without --check", check.detail));
            }
            Standing::Todo => findings.advice(&format!("to do: {}", check.detail)),
            Standing::Advice if !judged => findings.advice(&check.detail),
            Standing::Ok | Standing::Mended | Standing::Problem | Standing::Advice => {}
        }
    }
    let mended: Vec<String> = document.told(Standing::Mended).map(|check| check.detail.clone()).collect();
    let verdict = match (findings.problems.is_empty(), mended.is_empty()) {
        (false, _) => Verdict::NotReady(findings.problems),
        (true, false) => Verdict::Mended(mended),
        (true, true) => Verdict::Ready,
    };
    Judgement { verdict, advice: findings.advice }
}

#[derive(Default)]
struct Findings {
    problems: Vec<String>,
    advice: Vec<String>,
}

impl Findings {
    fn problem(&mut self, text: &str) {
        self.problems.push(text.to_owned());
    }

    fn advice(&mut self, text: &str) {
        self.advice.push(text.to_owned());
    }

    /// What is a problem before a version; where the version is not known, it may be one.
    fn before(&mut self, first: XenVersion, xen: Option<XenVersion>, what: &str, remedy: &str) {
        match xen {
            Some(xen) if xen < first => {
                self.problem(&format!("{what}, and the pool's Xen is {xen}: {remedy}"))
            }
            Some(_) => {}
            None => self.advice(&format!("{what}, and the pool does not tell its Xen: {remedy}")),
        }
    }
}

fn root(document: &Document, findings: &mut Findings) {
    const STABLE: [&str; 6] = ["UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=", "/dev/mapper/", "/dev/disk/by-"];
    if document.root.is_empty() {
        findings.problem("/etc/fstab has no line for /: write one, by UUID");
    } else if !STABLE.iter().any(|prefix| document.root.starts_with(prefix)) {
        findings.problem(&format!(
            "root is {}, which may have another name in a PV guest: name it by UUID in /etc/fstab",
            document.root
        ));
    }
}

/// Where /boot goes when it cannot stay.
const MOVE_BOOT: &str = "give /boot a primary partition of its own, ext2 or ext3";

fn place(document: &Document, xen: Option<XenVersion>, findings: &mut Findings) {
    let boot = &document.boot;
    match boot.kind {
        Place::Partition | Place::Whole => {}
        Place::Logical => {
            findings.problem(&format!(
                "/boot is on a logical partition, where pygrub does not look: {MOVE_BOOT}"
            ));
        }
        Place::Lvm | Place::Raid => {
            let what = if boot.kind == Place::Lvm { "LVM or device-mapper" } else { "a software RAID" };
            findings.problem(&format!("/boot is on {what}, where pygrub does not look: {MOVE_BOOT}"));
            return;
        }
        Place::Unknown => {
            findings.advice("where /boot lies on its disk could not be found out");
            return;
        }
    }
    match boot.fs {
        FileSystem::Ext2 | FileSystem::Ext3 | FileSystem::Vfat => {}
        FileSystem::Ext4 => ext4(&boot.features, xen, findings),
        FileSystem::Xfs | FileSystem::Btrfs | FileSystem::Luks | FileSystem::Lvm | FileSystem::Unknown => {
            findings.problem(&format!("/boot is {}, which pygrub does not read: {MOVE_BOOT}", boot.fs));
        }
    }
}

fn ext4(features: &[String], xen: Option<XenVersion>, findings: &mut Findings) {
    if xen.is_some_and(|xen| xen < EXT4) {
        return findings.before(
            EXT4,
            xen,
            "/boot is ext4, which needs the pygrub of Xen 4.2",
            "make it ext3",
        );
    }
    for feature in features {
        match feature.as_str() {
            // libext2fs refuses what it does not know of these (INCOMPAT), and old hosts have 1.42.
            "metadata_csum_seed" | "ea_inode" | "large_dir" | "inline_data" | "encrypt" | "casefold" => {
                let what = format!("/boot has the ext4 feature {feature}, which old hosts do not read");
                findings.before(MODERN, xen, &what, &format!("mke2fs -t ext3, or -O ^{feature}"));
            }
            "64bit" | "metadata_csum" if xen.is_none_or(|xen| xen < MODERN) => findings.advice(&format!(
                "/boot has the ext4 feature {feature}, which can defeat the pygrub of old hosts: ext2 or ext3 is safe"
            )),
            _ => {}
        }
    }
}

fn menu(document: &Document, findings: &mut Findings) {
    let menu = &document.menu;
    if !menu.kernel.is_empty() && menu.why.is_empty() {
        return;
    }
    let what = if menu.file.is_empty() {
        "pygrub finds no menu".to_owned()
    } else {
        format!("pygrub gets no kernel from {}", menu.file)
    };
    let remedy = "a plain entry for a kernel that is there, in /boot/grub/grub.cfg and menu.lst (pv-ready.sh writes both)";
    findings.problem(&format!("{what} ({}): {remedy}", menu.why));
}

fn booted(kernel: &Kernel, xen: Option<XenVersion>, findings: &mut Findings) {
    let version = &kernel.version;
    match kernel.xen_pv {
        Known::Yes => {}
        Known::No => findings.problem(&format!(
            "kernel {version} has no CONFIG_XEN_PV: install the distribution's generic kernel"
        )),
        Known::Unknown => {
            findings.advice(&format!("whether kernel {version} has CONFIG_XEN_PV is not known"))
        }
    }
    if let Some(since) = kernel.compression.since() {
        let what = format!("kernel {version} is packed with {}, which needs Xen {since}", kernel.compression);
        let remedy =
            format!("install the program {} and run pv-ready.sh again, which unpacks it", kernel.compression);
        findings.before(since, xen, &what, &remedy);
    }
    match kernel.block {
        Driver::BuiltIn | Driver::Initrd => {}
        Driver::Module | Driver::No => findings.problem(&format!(
            "xen-blkfront is not in the initrd of kernel {version}: add it to /etc/initramfs-tools/modules (dracut: \
             add_drivers) and build the initrd anew"
        )),
        Driver::Unknown => {
            findings.advice(&format!("whether the initrd of kernel {version} has xen-blkfront is not known"));
        }
    }
    match kernel.net {
        Driver::BuiltIn | Driver::Initrd | Driver::Module | Driver::Unknown => {}
        Driver::No => findings.problem(&format!("kernel {version} has no xen-netfront: install its modules")),
    }
    for (what, bytes) in [("kernel", kernel.bytes), ("initrd", kernel.initrd_bytes)] {
        if let Some(bytes) = bytes.filter(|bytes| *bytes > FILE_MAX) {
            findings.problem(&format!(
                "the {what} of {version} has {bytes} bytes, and pygrub copies at most {FILE_MAX}: MODULES=dep or \
                 COMPRESS=xz in initramfs.conf make an initrd smaller"
            ));
        }
    }
}

#[cfg(test)]
mod tests;

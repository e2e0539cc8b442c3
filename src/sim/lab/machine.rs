//! A VM of the lab: its disks and taps, and the QEMU that runs it at present.
//!
//! Invariant: at most one QEMU has a VM's disks open, and it ends with the [`Running`] that stands for it, or with
//! this process.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::{
    Lab, LabError, Network, disk,
    pygrub::{self, Extracted},
    qemu::{self, Boot, Guest, Nic, NicModel, Shutdown},
};
use crate::machine::MacAddr;

/// What a disk holds at first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Nothing: to be installed to.
    Blank,
    /// Known bytes, which nobody may change.
    Witness,
}

/// What to make a machine from.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Names the machine's folder and its QEMU.
    pub name: String,
    /// Tells its taps from those of other machines.
    pub number: usize,
    /// One NIC each.
    pub macs: Vec<MacAddr>,
    /// What HVM guests see.
    pub model: NicModel,
    /// Size in bytes and content, in VBD order.
    pub disks: Vec<(u64, Content)>,
    /// MiB.
    pub memory: u32,
    /// Virtual processors.
    pub processors: u8,
}

/// A VM's hardware.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    folder: PathBuf,
    nics: Vec<Nic>,
    disks: Vec<(PathBuf, u64, Content)>,
    memory: u32,
    processors: u8,
}

impl Machine {
    /// Makes disks and taps; the machine's files are in a folder of its name beneath `folder`.
    pub fn create(network: &Network, folder: &Path, spec: MachineSpec) -> Result<Self, LabError> {
        let folder = folder.join(&spec.name);
        std::fs::create_dir_all(folder.join("boot")).map_err(|source| LabError::Disk {
            operation: "create",
            path: folder.clone(),
            source,
        })?;
        let mut nics = Vec::new();
        for (index, mac) in spec.macs.into_iter().enumerate() {
            let tap = format!("tap{}n{index}", spec.number);
            network.tap(&tap)?;
            nics.push(Nic { mac, tap, model: spec.model });
        }
        let mut disks = Vec::new();
        for (index, (size, content)) in spec.disks.into_iter().enumerate() {
            let path = folder.join(format!("disk{index}.img"));
            match content {
                Content::Blank => disk::create_blank(&path, size)?,
                Content::Witness => disk::create_witness(&path, size)?,
            }
            disks.push((path, size, content));
        }
        let MachineSpec { name, memory, processors, .. } = spec;
        Ok(Self { name, folder, nics, disks, memory, processors })
    }

    /// The VM's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where this machine's console number `start` is written.
    pub fn console(&self, start: u64) -> PathBuf {
        self.folder.join(format!("console-{start}.log"))
    }

    /// The image of the disk that it is installed to; `None`: it has no disk.
    pub fn first_disk(&self) -> Option<&Path> {
        self.disks.first().map(|(path, ..)| path.as_path())
    }

    /// Whether every witness disk has the bytes it was made with.
    pub fn witnesses_are_intact(&self) -> Result<bool, LabError> {
        for (path, size, content) in &self.disks {
            match content {
                Content::Blank => {}
                Content::Witness if disk::witness_is_intact(path, *size)? => {}
                Content::Witness => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Asks pygrub what the first disk boots.
    pub async fn bootable(&self, lab: &Lab) -> Result<Extracted, LabError> {
        let boot = self.folder.join("boot");
        // pygrub gives each run's files a new name: without this every start would leave 10 MB behind.
        if let Ok(old) = std::fs::read_dir(&boot) {
            for file in old.flatten() {
                let _ = std::fs::remove_file(file.path());
            }
        }
        let disk = self.first_disk().unwrap_or_else(|| Path::new("/dev/null"));
        let extracted = pygrub::run(lab, disk, &boot).await?;
        pygrub::unpack(&extracted.kernel).await?;
        Ok(extracted)
    }

    /// Starts the machine as HVM, by its firmware; `start` numbers the console.
    pub fn start_firmware(&self, lab: &Lab, order: &str, start: u64) -> Result<Running, LabError> {
        self.start(lab, Boot::Firmware { order }, start)
    }

    /// Starts the machine as PV, from what pygrub extracted just now; `start` numbers the console.
    pub fn start_extracted(&self, lab: &Lab, extracted: &Extracted, start: u64) -> Result<Running, LabError> {
        self.start(lab, Boot::Extracted(extracted), start)
    }

    fn start(&self, lab: &Lab, boot: Boot<'_>, start: u64) -> Result<Running, LabError> {
        let disks: Vec<PathBuf> = self.disks.iter().map(|(path, ..)| path.clone()).collect();
        let guest = Guest {
            name: &self.name,
            boot,
            nics: &self.nics,
            disks: &disks,
            memory: self.memory,
            processors: self.processors,
            console: &self.console(start),
            accelerator: lab.accelerator(),
        };
        let failed = |source| LabError::Spawn { name: self.name.clone(), source };
        let errors = std::fs::File::create(self.folder.join("qemu.log")).map_err(failed)?;
        // setpriv: QEMU dies with the thread that started it, even when that is killed.
        let mut child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args(qemu::arguments(&guest))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (control, events) = pipes.ok_or_else(|| failed(std::io::ErrorKind::BrokenPipe.into()))?;
        Ok(Running { child, control, events: BufReader::new(events).lines() })
    }
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It powered itself off.
    PowerOff,
    /// It reset itself; the lab's QEMU never boots a second time by itself.
    Reboot,
    /// Its kernel panicked.
    Crash,
    /// QEMU went without the guest's doing: killed, or it never started (its `qemu.log` says why).
    Lost,
}

/// A QEMU that runs; killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    control: ChildStdin,
    events: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// QEMU's process id; `None` once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits until the guest has ended and its disks are closed.
    pub async fn ended(&mut self) -> Ended {
        // A QEMU that cannot hear this has ended: the events' end tells.
        let _ = self.control.write_all(qemu::NEGOTIATE.as_bytes()).await;
        let mut ended = Ended::Lost;
        while let Ok(Some(line)) = self.events.next_line().await {
            match qemu::shutdown(&line) {
                Some(Shutdown::PowerOff) => ended = Ended::PowerOff,
                Some(Shutdown::Reboot) => ended = Ended::Reboot,
                Some(Shutdown::Panic) => ended = Ended::Crash,
                Some(Shutdown::Host) => {}
                None => continue,
            }
            let _ = self.control.write_all(qemu::QUIT.as_bytes()).await;
        }
        let _ = self.child.wait().await;
        ended
    }

    /// Ends QEMU as a hard shutdown does, and waits until its disks are closed.
    pub async fn kill(mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill().await;
    }
}

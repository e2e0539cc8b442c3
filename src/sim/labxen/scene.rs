//! A simulated pool of one host, which is a real Xen, with one PV VM that has a system on its disk.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
};

use tokio::process::Command;

use super::{Body, DomZero, LabXen, XenLabError};
use crate::{
    machine::MacAddr,
    sim::{
        lab::{LabError, Network, disk, network::Helper, scene::DISK},
        pool::{DiskSpec, HostSpec, Pool, Release, Timing, VmSpec},
        server::{SimOptions, SimServer},
    },
};

/// The VM.
pub const VM: &str = "xen-01";
/// Its second disk, which must stay as it is. Bytes.
const WITNESS_SIZE: u64 = 8 << 20;
/// Bytes; kernel, two initrds and what is unpacked of them fit in this.
const MEMORY: u64 = 384 << 20;
/// Bytes that the lab's Xen has for guests, about.
const HOST_MEMORY: u64 = 1 << 30;

/// The pool, its VM, and the Xen that runs it.
#[derive(Debug)]
pub struct Scene {
    /// The VM.
    pub uuid: String,
    /// The pool's body on the wire.
    pub sim: SimServer,
    /// The domains.
    pub body: Arc<Body>,
    witness: PathBuf,
    _advertiser: Helper,
}

impl Scene {
    /// Boots Xen and serves a pool on it; `folder` takes disks and consoles. Must run within a tokio runtime.
    pub async fn set(lab: &LabXen, network: &Network, folder: &Path) -> Result<Self, XenLabError> {
        let system = folder.join("disk0.img");
        let witness = folder.join("disk1.img");
        copy(&lab.before(), &system).await?;
        disk::create_witness(&witness, WITNESS_SIZE)?;
        let size = std::fs::metadata(&system).map_or(0, |metadata| metadata.len());
        let advertiser = network.advertise()?;
        let disks = [system, witness.clone()];
        let dom0 = DomZero::boot(lab, network, folder, &disks).await?;
        let host = HostSpec { name: "xen-host".to_owned(), memory: HOST_MEMORY, ..HostSpec::default() };
        let mut pool = Pool::with_hosts(0, Release::V8_2, vec![host]);
        pool.run_domains_outside();
        pool.set_timing(at_once());
        let uuid = pool.add_vm(vm(size));
        let sim = SimServer::start(pool, SimOptions::default()).map_err(LabError::Pool)?;
        let devices = HashMap::from([(uuid.clone(), vec!["/dev/vdb".to_owned(), "/dev/vdc".to_owned()])]);
        let body = Arc::new(Body::new(dom0, sim.pool.clone(), folder.to_owned(), devices));
        Ok(Self { uuid, sim, body, witness, _advertiser: advertiser })
    }

    /// Whether the second disk has the bytes it was made with.
    pub fn witness_is_intact(&self) -> Result<bool, XenLabError> {
        Ok(disk::witness_is_intact(&self.witness, WITNESS_SIZE)?)
    }
}

/// What takes time here takes it for real.
fn at_once() -> Timing {
    let none = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    Timing {
        start: none,
        hard_shutdown: none,
        clean_shutdown: none,
        refusal: none,
        exit: none,
        start_time_lag: none,
    }
}

fn vm(size: u64) -> VmSpec {
    let witness =
        DiskSpec { userdevice: "1".to_owned(), size: WITNESS_SIZE, bootable: false, ..DiskSpec::default() };
    VmSpec {
        name: VM.to_owned(),
        macs: vec![MacAddr::new([0x02, 0x16, 0x3e, 0x78, 0, 1])],
        disks: vec![DiskSpec { userdevice: DISK.to_owned(), size, ..DiskSpec::default() }, witness],
        memory: MEMORY,
        ..VmSpec::default()
    }
}

/// A copy that stays sparse.
async fn copy(from: &Path, to: &Path) -> Result<(), XenLabError> {
    let failed = |source| LabError::Disk { operation: "create", path: to.to_owned(), source };
    let mut cp = Command::new("cp");
    let status = cp.arg("--sparse=always").arg(from).arg(to).stdin(Stdio::null()).status().await;
    if status.map_err(failed)?.success() {
        return Ok(());
    }
    Err(failed(std::io::ErrorKind::Other.into()).into())
}

//! A simulated pool whose VMs are the lab's: halted PV VMs with blank disks, behind real XML-RPC.

use std::{collections::HashMap, path::Path, sync::Arc};

use super::{
    Body, Lab, LabError, Machine, Network,
    installer::{Hardware, Installer, MIRROR},
    machine::{Content, MachineSpec},
    network::Helper,
    qemu::NicModel,
};
use crate::{
    machine::MacAddr,
    sim::{
        pool::{DiskSpec, DomainStart, Pool, Release, VmSpec, VmTruth},
        server::{SimOptions, SimServer},
    },
};

/// The most VMs of one lab; each takes some 300 MB and half a minute of a processor.
pub const MAX_VMS: u16 = 16;
/// The tag on every VM of the lab.
pub const TAG: &str = "bootflip-lab";
/// `VBD.userdevice` of the disk to install to.
pub const DISK: &str = "0";
/// The first VM's second disk, which must stay as it is. Bytes.
const WITNESS_SIZE: u64 = 8 << 20;

/// The pool, its VMs as they were before, and their guests.
#[derive(Debug)]
pub struct Scene {
    /// The VMs before anything was done to them.
    pub before: Vec<VmTruth>,
    /// The pool's body on the wire.
    pub sim: SimServer,
    /// The guests.
    pub body: Arc<Body>,
    _others: Vec<Helper>,
}

impl Scene {
    /// Makes disks and taps for `vms` machines, and a pool of VMs like them. `folder` takes disks and consoles. Must
    /// run within a tokio runtime.
    pub async fn set(
        lab: &Lab,
        network: &Network,
        folder: &Path,
        vms: u16,
        release: Release,
    ) -> Result<Self, LabError> {
        let mut pool = Pool::new(0, release);
        let mut machines = HashMap::new();
        let mut uuids = Vec::new();
        for number in 0..vms {
            let (vm, machine) = specs(number, lab.installer().hardware());
            let machine = Machine::create(network, folder, machine)?;
            let uuid = pool.add_vm(vm);
            machines.insert(uuid.clone(), machine);
            uuids.push(uuid);
        }
        let mut others = vec![network.advertise()?];
        match lab.installer() {
            Installer::Mini => {}
            Installer::Debian => {
                others.push(network.mirror(MIRROR, &lab.mirror(), &folder.join("mirror.log"))?)
            }
        }
        let before = uuids.iter().filter_map(|uuid| pool.truth(uuid)).collect();
        let sim = SimServer::start(pool, SimOptions::default())?;
        let body = Arc::new(Body::new(lab.clone(), sim.pool.clone(), machines));
        body.survey().await;
        Ok(Self { before, sim, body, _others: others })
    }

    /// Waits for the next domain that comes up; give it to `body.start`. `None`: the pool is gone.
    pub async fn next_start(&mut self) -> Option<DomainStart> {
        self.sim.starts.recv().await
    }

    /// Every VM as it is now, in the order of `before`.
    pub fn after(&self) -> Vec<VmTruth> {
        self.sim.pool.with(|pool, _| self.before.iter().filter_map(|vm| pool.truth(&vm.uuid)).collect())
    }
}

/// The three NICs take turns, and the first VM may have a second disk.
fn specs(number: u16, hardware: Hardware) -> (VmSpec, MachineSpec) {
    let Hardware { disk, memory, processors, witness } = hardware;
    let [high, low] = number.to_be_bytes();
    let mac = MacAddr::new([0x02, 0x16, 0x3e, 0x77, high, low]);
    let name = format!("lab-{:02}", number + 1);
    let model = match number % 3 {
        0 => NicModel::E1000,
        1 => NicModel::Rtl8139,
        _ => NicModel::Virtio,
    };
    let mut disks = vec![DiskSpec { userdevice: DISK.to_owned(), size: disk, ..DiskSpec::default() }];
    let mut images = vec![(disk, Content::Blank)];
    if number == 0 && witness {
        disks.push(DiskSpec {
            userdevice: "1".to_owned(),
            size: WITNESS_SIZE,
            bootable: false,
            ..DiskSpec::default()
        });
        images.push((WITNESS_SIZE, Content::Witness));
    }
    let vm = VmSpec {
        name: name.clone(),
        macs: vec![mac],
        disks,
        tags: vec![TAG.to_owned()],
        ..VmSpec::default()
    };
    let number = usize::from(number);
    (vm, MachineSpec { name, number, macs: vec![mac], model, disks: images, memory, processors })
}

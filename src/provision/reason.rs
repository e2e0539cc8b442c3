//! Why a job ended, or waits for a person. One closed list, each with a sentence on what to do.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! reasons {
    ($( $variant:ident $label:literal $group:ident $remedy:literal )*) => {
        /// Why a job ended or waits (`jobs show` prints the label and the remedy).
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum Reason {
            $( #[doc = $remedy] #[serde(rename = $label)] $variant, )*
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[ $( Self::$variant, )* ];

            /// The name in `--json`, logs and documentation.
            pub const fn label(self) -> &'static str {
                match self { $( Self::$variant => $label, )* }
            }

            /// What the operator can do about it.
            pub const fn remedy(self) -> &'static str {
                match self { $( Self::$variant => $remedy, )* }
            }

            const fn group(self) -> Group {
                match self { $( Self::$variant => Group::$group, )* }
            }
        }
    };
}

// By hand: the derive does not see the names that a macro gives to serde.
impl utoipa::PartialSchema for Reason {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        let labels: Vec<&str> = Self::ALL.iter().map(|reason| reason.label()).collect();
        utoipa::openapi::ObjectBuilder::new()
            .schema_type(utoipa::openapi::Type::String)
            .description(Some("Why a job ended or waits."))
            .enum_values(Some(labels))
            .into()
    }
}

impl utoipa::ToSchema for Reason {}

#[derive(PartialEq, Eq)]
enum Group {
    /// Refused before anything was changed (E0, E1).
    Refused,
    /// Came up while the job ran.
    Ran,
}

reasons! {
    NotAGuest "not-a-guest" Refused "Templates, snapshots and control domains are never touched; name a guest."
    NoVif "no-vif" Refused "Give the VM a VIF on the provisioning network, or correct `mac` in its [machine] section."
    DuplicateMac "duplicate-mac" Refused "Two VIFs of the pool carry this MAC; give one of them another."
    HaProtected "ha-protected" Refused "High availability would restart this VM; take it out of HA protection for the installation."
    OperationBlocked "operation-blocked" Refused "Somebody blocked an operation on this VM (blocked_operations); ask them, or unblock it."
    CdFirst "cd-before-disk" Refused "A bootable CD stands before the disk and pygrub would read it; eject it or make it not bootable."
    NotPv "not-pv" Refused "The VM is not paravirtualized; bootflip is for PV guests."
    PvUnsupported "pv-unsupported" Refused "This pool's release cannot start PV guests; install on another pool."
    NotAllowed "not-allowed" Refused "The VM is outside the pool's `allow` list; tag it, or widen the list."
    HasRun "has-run" Refused "The VM has run before and its disk would be erased; say --reinstall if that is wanted."
    WhichDisk "which-disk" Refused "Say which disk to erase: `disk = \"0\"` (VBD.userdevice) in the profile or machine; it must exist, be writable and bootable."
    NotServable "not-servable" Refused "A boot file or template of the profile is missing or broken; the detail names it."
    NoHost "no-host" Refused "No host of the pool can take the VM now: free memory, enable a host, or try later."
    RightsMissing "rights-missing" Refused "Give the account the role vm-admin (pool-operator to sync the database)."
    ClaimedByOther "claimed-by-other" Refused "Another bootflip server, or another job, owns this VM; see the claim in `vm show`."
    Busy "busy" Refused "The VM is paused, suspended or busy with another operation; try again when it is not."
    WaveStopped "wave-stopped" Refused "Others of the same order failed (--first, --stop-after): see why, then `jobs retry`, or deploy anew."
    VmGone "vm-gone" Ran "The VM was deleted from the pool; nothing is left to do."
    NoDhcp "no-dhcp" Ran "No DHCP packet of this MAC arrived: check the VIF's network, VLAN and our DHCP interface."
    NoKernel "no-kernel" Ran "The VM got an address and never fetched a kernel: see which file it asked for, and try it with curl."
    NoAnswerFile "no-answer-file" Ran "The kernel booted and never fetched its answer file: check the kernel arguments and the installer's network driver."
    NoStage "no-stage" Ran "The installer fetched its answers and never reported: watch its console; check the report URL."
    InstallTimeout "install-timeout" Ran "The installer did not finish in time: see its last stage; raise deadlines.install if it is only slow."
    NoReport "no-report" Ran "The VM halted and no completion report came: the installer died, or could not reach the report URL."
    HaltedEarly "halted-early" Ran "The VM halted too soon for an installation (or never fetched its answer file): the installer did not run."
    InstallerFailed "installer-failed" Ran "The installer reported failure: read the report's body in `jobs show`."
    StartFailed "start-failed" Ran "The pool could not start the VM in HVM mode: the detail has its words."
    BootloaderFailed "bootloader-failed" Ran "pygrub found nothing to boot: first partition ext2/3 with /boot, grub.cfg or menu.lst with one plain entry, a kernel that this Xen can unpack."
    PvStartFailed "pv-start-failed" Ran "The installed VM could not be started as PV: start it by hand; its settings are restored."
    NoEvidence "no-evidence" Ran "The VM started as PV and the new system never reported: look at its console (hvc0), network and root device."
    NotPvReady "not-pv-ready" Ran "pygrub could not start what was installed: change what the detail names and `jobs retry`, or `deploy --stay-hvm` leaves the VM HVM."
    StartedBySomeone "started-by-someone" Ran "Somebody else started this VM while it was ours: shut it down and bootflip puts it back by itself."
    SettingsChanged "settings-changed" Ran "Somebody changed settings that bootflip must put back: `jobs resolve --restore` writes the saved ones, --accept keeps these."
    ClaimLost "claim-lost" Ran "The claim in the VM's other_config is gone or is another's: `jobs resolve --restore` puts back what the job remembers."
    PoolRefused "pool-refused" Ran "The pool refused a call for good: the detail has its words; mend that, then `jobs resolve --restore` or `jobs retry`."
    GaveUp "gave-up" Ran "The pool kept failing a call until the deadline: see the detail, then `jobs retry`."
    CancelledByOperator "cancelled" Ran "Cancelled on request; the VM is as it was before, and Halted if the installer had begun."
    Abandoned "abandoned" Ran "Abandoned on request: the VM's settings and claim stay as they are; the xe commands to restore it were printed."
    Accepted "accepted" Ran "An operator accepted the settings that differ; all others are put back and the claim is released."
}

impl Reason {
    /// Nothing of the VM had been changed: `deploy` exits with 3.
    pub fn is_refusal(self) -> bool {
        self.group() == Group::Refused
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

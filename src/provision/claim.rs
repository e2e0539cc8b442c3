//! The claim: our record in the VM's `other_config`, the lock and the way back. It holds all that an undo needs,
//! so that a VM can be restored with the database gone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::settings::Field;
use crate::{clock::Timestamp, xen::records::VmRecord};

/// The key in `other_config`. `add_to_other_config` refuses a key that exists: that is the lock.
pub const CLAIM_KEY: &str = "bootflip:claim";

/// Left on a VM after a successful installation: `{"job":…,"at":…}`.
pub const INSTALLED_KEY: &str = "bootflip:installed";

/// The largest claim that is read or written, in bytes.
pub const CLAIM_MAX: usize = 4096;

/// The claim's JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Version of this form: 1.
    pub v: u32,
    /// `server.name` of the server that made it.
    pub owner: String,
    /// The VM that it was made for; another uuid means a clone or snapshot carries it along.
    pub vm_uuid: String,
    /// The job.
    pub job: String,
    /// Its attempt.
    pub attempt: u32,
    /// 128 random bits in hex: whose claim this is, beyond doubt.
    pub nonce: String,
    /// When it was made.
    pub since: Timestamp,
    /// The way back, by field.
    pub touched: BTreeMap<Field, Touched>,
}

/// One field's way back; `None`: the key is absent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// What stood there before.
    pub saved: Option<String>,
    /// What we write.
    pub written: Option<String>,
    /// What a successful installation leaves, where that is neither of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<String>,
}

impl Touched {
    /// A value that came of us.
    pub fn is_ours(&self, value: Option<&String>) -> bool {
        value == self.written.as_ref() || (value.is_some() && value == self.left.as_ref())
    }
}

/// What a VM says about claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No claim.
    Absent,
    /// A claim for this VM.
    Claim(Box<Claim>),
    /// A claim made for another VM: a clone, snapshot or template carries it.
    Stray(Box<Claim>),
    /// Something stands there that is not a claim of version 1.
    Unreadable(String),
}

impl Claim {
    /// Its text in `other_config`.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("a claim is plain data with string keys")
    }

    /// What stands in a VM's `other_config`.
    pub fn find(vm: &VmRecord) -> Found {
        let Some(text) = vm.other_config.get(CLAIM_KEY) else { return Found::Absent };
        if text.len() > CLAIM_MAX {
            return Found::Unreadable(format!("{} bytes, more than {CLAIM_MAX}", text.len()));
        }
        match serde_json::from_str::<Self>(text) {
            Ok(claim) if claim.v != 1 => Found::Unreadable(format!("version {}", claim.v)),
            Ok(claim) if claim.vm_uuid != vm.uuid => Found::Stray(Box::new(claim)),
            Ok(claim) => Found::Claim(Box::new(claim)),
            Err(error) => Found::Unreadable(error.to_string()),
        }
    }

    /// Whether the VM carries exactly this claim.
    pub fn stands_in(&self, vm: &VmRecord) -> bool {
        matches!(Self::find(vm), Found::Claim(found) if found.nonce == self.nonce && found.owner == self.owner)
    }
}

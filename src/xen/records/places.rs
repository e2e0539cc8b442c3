//! Where VMs are put: storage repositories and networks.

use super::{Fields, Record, RecordError, Value};

/// What bootflip reads of a storage repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SrRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`; not unique.
    pub name_label: String,
    /// `content_type`: `iso` holds CD images and no disks.
    pub content_type: String,
    /// `type`: such as `ext`, `lvm`, `nfs`, `iso`, `udev`.
    pub kind: String,
    /// `physical_size` less `physical_utilisation`, in bytes; 0 where the SR tells no size.
    pub free: u64,
}

impl Record for SrRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("SR", value)?;
        // Drives and the tools' SR have a size of -1.
        let free = fields.int("physical_size")?.saturating_sub(fields.int("physical_utilisation")?);
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
            content_type: fields.text("content_type")?,
            kind: fields.text("type")?,
            free: u64::try_from(free).unwrap_or(0),
        })
    }
}

/// What bootflip reads of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRecord {
    /// The reference that it was asked for by.
    pub reference: String,
    /// `uuid`.
    pub uuid: String,
    /// `name_label`; not unique.
    pub name_label: String,
}

impl Record for NetworkRecord {
    fn decode(reference: &str, value: &Value) -> Result<Self, RecordError> {
        let fields = Fields::of("network", value)?;
        Ok(Self {
            reference: reference.to_owned(),
            uuid: fields.text("uuid")?,
            name_label: fields.text("name_label")?,
        })
    }
}

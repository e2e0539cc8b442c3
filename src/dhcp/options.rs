//! The options of a packet by code: fragments joined wherever they stand (RFC 3396), the file and sname fields read
//! where option 52 says so (RFC 2132 §9.3). Total and linear in the packet's length. Pure.
//!
//! A bad option costs that option alone: a Latin-1 host name or a list of the wrong length says nothing about
//! whether the client can netboot. So everything is raw bytes here, and each reader judges the option that it needs.

use std::{borrow::Cow, net::Ipv4Addr};

/// Option codes (RFC 2132, 3004, 3046, 4578, 5071).
pub(super) mod code {
    pub(crate) const REQUESTED_ADDRESS: u8 = 50;
    pub(crate) const OVERLOAD: u8 = 52;
    pub(crate) const MESSAGE_TYPE: u8 = 53;
    pub(crate) const SERVER_IDENTIFIER: u8 = 54;
    pub(crate) const PARAMETER_LIST: u8 = 55;
    pub(crate) const MAXIMUM_SIZE: u8 = 57;
    pub(crate) const VENDOR_CLASS: u8 = 60;
    pub(crate) const CLIENT_IDENTIFIER: u8 = 61;
    pub(crate) const VENDOR_OPTIONS: u8 = 43;
    pub(crate) const TFTP_SERVER: u8 = 66;
    pub(crate) const BOOT_FILE: u8 = 67;
    pub(crate) const USER_CLASS: u8 = 77;
    pub(crate) const RELAY_AGENT: u8 = 82;
    pub(crate) const ARCHITECTURE: u8 = 93;
    pub(crate) const MACHINE_IDENTIFIER: u8 = 97;
    /// Etherboot's encapsulated options: what an iPXE can do.
    pub(crate) const IPXE: u8 = 175;
}

/// Where options stand in a packet behind its cookie, and the two header fields that option 52 can add.
pub(super) const OPTIONS_AT: usize = 240;
pub(super) const FILE_FIELD: std::ops::Range<usize> = 108..236;
pub(super) const SERVER_NAME_FIELD: std::ops::Range<usize> = 44..108;

/// The options of one packet.
#[derive(Debug)]
pub(super) struct Options<'a> {
    found: Vec<(u8, Cow<'a, [u8]>)>,
    /// Where each code stands in `found`, from 1; 0: nowhere. Packets full of one-byte options stay linear.
    places: [u8; 256],
}

impl<'a> Options<'a> {
    /// Reads a packet of at least [`OPTIONS_AT`] bytes.
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        let mut options = Self { found: Vec::with_capacity(24), places: [0; 256] };
        options.read(bytes.get(OPTIONS_AT..).unwrap_or_default());
        // Read once: an overload option that stands in a field overloads nothing again.
        let overload = match options.get(code::OVERLOAD) {
            Some([bits]) => *bits,
            Some(_) | None => 0,
        };
        for (bit, field) in [(1, FILE_FIELD), (2, SERVER_NAME_FIELD)] {
            if overload & bit != 0 {
                options.read(bytes.get(field).unwrap_or_default());
            }
        }
        options
    }

    fn read(&mut self, bytes: &'a [u8]) {
        // Not the codec's iterator: that one drops an option whose continuation is damaged.
        for (code, data) in sub_options(bytes) {
            let Some(place) = self.places.get_mut(usize::from(code)) else { continue };
            let before = usize::from(*place).checked_sub(1).and_then(|at| self.found.get_mut(at));
            match before {
                Some((_, joined)) => joined.to_mut().extend_from_slice(data),
                None => {
                    self.found.push((code, Cow::Borrowed(data)));
                    // 0 and 255 are no options, so there are at most 254 places.
                    *place = u8::try_from(self.found.len()).unwrap_or_default();
                }
            }
        }
    }

    pub(super) fn get(&self, code: u8) -> Option<&[u8]> {
        let place = usize::from(*self.places.get(usize::from(code))?).checked_sub(1)?;
        self.found.get(place).map(|(_, data)| data.as_ref())
    }

    /// An address that is one.
    pub(super) fn address(&self, code: u8) -> Option<Ipv4Addr> {
        let octets: [u8; 4] = self.get(code)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets)).filter(|address| !address.is_unspecified())
    }
}

/// Options as they follow each other in a packet (RFC 2132 §2) and in an option (§8.4), up to the first that does
/// not fit.
pub(super) fn sub_options(bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        loop {
            let (code, after) = rest.split_first()?;
            match *code {
                0 => rest = after,
                255 => return None,
                code => {
                    let (length, after) = after.split_first()?;
                    let (data, after) = after.split_at_checked(usize::from(*length))?;
                    rest = after;
                    return Some((code, data));
                }
            }
        }
    })
}

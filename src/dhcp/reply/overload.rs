//! Options that stand in the header's file and sname fields (RFC 2132 §9.3, option overload). Pure.

use super::super::options::{FILE_FIELD, SERVER_NAME_FIELD, code};

/// Option 52 itself: code, length, value.
const COST: usize = 3;
const END: u8 = 255;
const FILE: u8 = 1;
const SERVER_NAME: u8 = 2;

/// Options for header fields that are free.
#[derive(Debug)]
pub(super) struct Overload {
    /// The least important first.
    options: Vec<Coded>,
    file_is_free: bool,
}

/// An option: its code, and what it says.
type Coded = (u8, Vec<u8>);

/// A packet's options for one field, as bytes, and its bit in option 52.
type Field = (u8, std::ops::Range<usize>, Vec<u8>);

impl Overload {
    /// Of a packet whose file field holds a name, or not. The sname field is always free.
    pub(super) const fn new(file_is_free: bool) -> Self {
        Self { options: Vec::new(), file_is_free }
    }

    /// Takes an option that does not fit the packet: each is more important than those before.
    pub(super) fn take(&mut self, option: Coded) {
        self.options.push(option);
    }

    /// Bytes that option 52 takes of the packet.
    pub(super) const fn cost() -> usize {
        COST
    }

    /// Option 52, and the packet's fields; `None`: nothing fits them.
    pub(super) fn fields(self) -> Option<(Coded, Vec<Field>)> {
        let mut fields: Vec<Field> = vec![(SERVER_NAME, SERVER_NAME_FIELD, Vec::new())];
        if self.file_is_free {
            fields.push((FILE, FILE_FIELD, Vec::new()));
        }
        for (number, data) in self.options.into_iter().rev() {
            // Longer ones would have to be split (RFC 3396), and fit no field anyway.
            let Ok(length) = u8::try_from(data.len()) else { continue };
            let size = data.len() + 2;
            let room = |(_, field, held): &&mut Field| held.len() + size < field.len();
            if let Some((_, _, held)) = fields.iter_mut().find(room) {
                held.extend([number, length]);
                held.extend(data);
            }
        }
        fields.retain(|(_, _, held)| !held.is_empty());
        let bits = fields.iter().fold(0, |bits, (bit, _, _)| bits | bit);
        (bits != 0).then(|| ((code::OVERLOAD, vec![bits]), fields))
    }
}

/// Writes the fields into a packet.
pub(super) fn fill(packet: &mut [u8], fields: &[Field]) {
    for (_, place, held) in fields {
        if let Some(field) = packet.get_mut(place.clone()) {
            let bytes = held.iter().copied().chain([END]).chain(std::iter::repeat(0));
            field.iter_mut().zip(bytes).for_each(|(at, byte)| *at = byte);
        }
    }
}

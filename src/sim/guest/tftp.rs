//! The client's half of one TFTP read (RFC 1350, 2347 to 2349), as a ROM asks: octet, `tsize` and `blksize`. Pure.

use super::{BODY_KEPT, Fetched};

/// A transfer under way. It keeps the last packet that it sent, for the shell to repeat.
#[derive(Debug, Clone)]
pub struct Transfer {
    last_sent: Vec<u8>,
    block_size: usize,
    announced: Option<u64>,
    blocks: u64,
    length: u64,
    body: Vec<u8>,
}

/// What a packet led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Not for now: a repeat of what came before.
    Wait,
    /// Send [`Transfer::last_sent`] to the port that this packet came from.
    Send,
    /// Send it, and the file is whole.
    Done(Fetched),
    /// The transfer is over.
    Failed(String),
}

impl Transfer {
    /// Asks for `file`.
    pub fn new(file: &str) -> Self {
        let mut request = RRQ.to_be_bytes().to_vec();
        for word in [file, "octet", "tsize", "0", "blksize", XENSERVER_BLOCK_SIZE] {
            request.extend(word.as_bytes());
            request.push(0);
        }
        Self { last_sent: request, block_size: 512, announced: None, blocks: 0, length: 0, body: vec![] }
    }

    /// What to send, first or again.
    pub fn last_sent(&self) -> &[u8] {
        &self.last_sent
    }

    /// Nothing came from the server yet.
    pub const fn is_fresh(&self) -> bool {
        self.blocks == 0 && self.announced.is_none()
    }

    /// A packet came from the server.
    pub fn handle(&mut self, packet: &[u8]) -> Step {
        let Some((head, rest)) = packet.split_first_chunk::<2>() else { return Step::Wait };
        match u16::from_be_bytes(*head) {
            OACK => self.options(rest),
            DATA => self.data(rest),
            ERROR => {
                let code = rest.get(..2).unwrap_or_default();
                Step::Failed(format!("TFTP error {code:?}: {}", text(rest.get(2..).unwrap_or_default())))
            }
            other => Step::Failed(format!("TFTP opcode {other} from a server")),
        }
    }

    fn options(&mut self, rest: &[u8]) -> Step {
        if self.blocks > 0 {
            return Step::Wait;
        }
        let words: Vec<String> = rest.split(|byte| *byte == 0).map(text).collect();
        for pair in words.chunks_exact(2) {
            let [name, value] = pair else { continue };
            match (name.to_ascii_lowercase().as_str(), value.parse::<u64>()) {
                ("tsize", Ok(size)) => self.announced = Some(size),
                ("blksize", Ok(size)) => self.block_size = usize::try_from(size).unwrap_or(usize::MAX),
                _ => return Step::Failed(format!("option {name}={value} was never asked for")),
            }
        }
        self.announced = self.announced.or(Some(u64::MAX)); // no longer fresh
        self.acknowledge()
    }

    fn data(&mut self, rest: &[u8]) -> Step {
        let Some((number, data)) = rest.split_first_chunk::<2>() else { return Step::Wait };
        let expected = u16::try_from((self.blocks + 1) % 0x1_0000).unwrap_or_default();
        if u16::from_be_bytes(*number) != expected {
            return Step::Wait; // never answered: the sorcerer's apprentice (pxe.md 23)
        }
        if data.len() > self.block_size {
            return Step::Failed(format!(
                "a block of {} bytes where {} were agreed",
                data.len(),
                self.block_size
            ));
        }
        self.blocks += 1;
        self.length += u64::try_from(data.len()).unwrap_or_default();
        let room = BODY_KEPT.saturating_sub(self.body.len());
        self.body.extend(data.iter().take(room));
        let _ = self.acknowledge();
        if data.len() == self.block_size {
            return Step::Send;
        }
        match self.announced {
            Some(size) if size != u64::MAX && size != self.length => {
                Step::Failed(format!("{} bytes came where {size} were announced", self.length))
            }
            Some(_) | None => {
                Step::Done(Fetched { status: 200, body: std::mem::take(&mut self.body), length: self.length })
            }
        }
    }

    fn acknowledge(&mut self) -> Step {
        let number = u16::try_from(self.blocks % 0x1_0000).unwrap_or_default();
        self.last_sent = [ACK.to_be_bytes(), number.to_be_bytes()].concat();
        Step::Send
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// What XenServer's iPXE asks for (pxe.md 22).
const XENSERVER_BLOCK_SIZE: &str = "1432";
const RRQ: u16 = 1;
const DATA: u16 = 3;
const ACK: u16 = 4;
const ERROR: u16 = 5;
const OACK: u16 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_asks_for_size_and_block_size() {
        assert_eq!(Transfer::new("a/b").last_sent(), b"\0\x01a/b\0octet\0tsize\x000\0blksize\x001432\0");
    }

    #[test]
    fn file_with_options_and_repeats_comes_whole() {
        let mut transfer = Transfer::new("f");
        assert_eq!(transfer.handle(b"\0\x06tsize\x0010\0blksize\08\0"), Step::Send);
        assert_eq!(transfer.last_sent(), [0, 4, 0, 0]);
        assert_eq!(transfer.handle(b"\0\x03\0\x0112345678"), Step::Send);
        assert_eq!(transfer.handle(b"\0\x03\0\x0112345678"), Step::Wait);
        let whole = Fetched { status: 200, body: b"1234567890".to_vec(), length: 10 };
        assert_eq!(transfer.handle(b"\0\x03\0\x0290"), Step::Done(whole));
        assert_eq!(transfer.last_sent(), [0, 4, 0, 2]);
    }

    #[test]
    fn what_a_server_does_wrong_ends_the_transfer() {
        for (packets, reason) in [
            (vec![b"\0\x05\0\x01nothing here\0".as_slice()], "TFTP error [0, 1]: nothing here"),
            (vec![b"\0\x06windowsize\x004\0"], "option windowsize=4 was never asked for"),
            (
                vec![b"\0\x06tsize\09\0blksize\08\0", b"\0\x03\0\x01123"],
                "3 bytes came where 9 were announced",
            ),
            (vec![b"\0\x06blksize\x002\0", b"\0\x03\0\x01123"], "a block of 3 bytes where 2 were agreed"),
            (vec![b"\0\x02"], "TFTP opcode 2 from a server"),
        ] {
            let mut transfer = Transfer::new("f");
            let last = packets.iter().map(|packet| transfer.handle(packet)).last();
            assert_eq!(last, Some(Step::Failed(reason.to_owned())));
        }
    }
}

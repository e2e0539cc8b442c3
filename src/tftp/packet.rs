//! TFTP packets (RFC 1350 §5, RFC 2347-2349, RFC 7440): what clients send, read from bytes, and what we send,
//! written to bytes. Pure.
//!
//! Invariant: any bytes are a packet or nothing; ROMs that forget the last NUL or add options that nobody knows are
//! understood all the same.

/// RFC 1350 §5: the opcodes.
mod opcode {
    pub(super) const READ: u16 = 1;
    pub(super) const WRITE: u16 = 2;
    pub(super) const DATA: u16 = 3;
    pub(super) const ACKNOWLEDGE: u16 = 4;
    pub(super) const ERROR: u16 = 5;
    pub(super) const OPTIONS: u16 = 6;
}

/// Bytes before the content in a DATA packet.
pub const DATA_HEADER: usize = 4;
/// What a block holds when nothing was agreed (RFC 1350 §2), in bytes.
pub const DEFAULT_BLOCK: u16 = 512;
/// RFC 2348: the least and the most that a block may hold, in bytes.
pub const BLOCK_SIZES: (u16, u16) = (8, 65_464);
/// RFC 2349: the least and the longest pause that a client may ask for, in seconds.
const TIMEOUTS: (u16, u16) = (1, 255);

/// A packet of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packet<'a> {
    /// RRQ.
    Read(Request<'a>),
    /// WRQ.
    Write(Request<'a>),
    /// DATA; we never take any.
    Data,
    /// ACK of the block with this number.
    Acknowledge(u16),
    /// ERROR.
    Error {
        /// RFC 1350 §5, RFC 2347 for code 8.
        code: u16,
        /// What the client says about it.
        message: &'a [u8],
    },
    /// OACK; a client never sends one for a read.
    Options,
}

/// A request to read or to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The name as sent.
    pub file: &'a [u8],
    /// How the content is to be sent.
    pub mode: Mode,
    /// What the client would like.
    pub asked: Asked,
}

/// RFC 1350 §1: how a file is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// As it is.
    Octet,
    /// With line ends of the network.
    Netascii,
    /// To a user's mailbox; obsolete.
    Mail,
    /// Another word, or none.
    Other,
}

/// The options that a client asked for (RFC 2347). Values that no RFC allows count as not asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asked {
    /// `blksize` (RFC 2348), in bytes; more than 65,464 is taken as that.
    pub block_size: Option<u16>,
    /// `windowsize` (RFC 7440), in blocks; more than 65,535 is taken as that.
    pub window: Option<u16>,
    /// `timeout` (RFC 2349), in seconds.
    pub timeout: Option<u8>,
    /// `tsize` (RFC 2349).
    pub size: bool,
}

impl<'a> Packet<'a> {
    /// Reads a datagram. `None`: no TFTP.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (code, rest) = number(bytes)?;
        match code {
            opcode::READ => Request::parse(rest).map(Self::Read),
            opcode::WRITE => Request::parse(rest).map(Self::Write),
            opcode::DATA => Some(Self::Data),
            opcode::ACKNOWLEDGE => number(rest).map(|(block, _)| Self::Acknowledge(block)),
            opcode::ERROR => {
                let (code, message) = number(rest)?;
                Some(Self::Error { code, message: Words(message).next().unwrap_or_default() })
            }
            opcode::OPTIONS => Some(Self::Options),
            _ => None, // not an enum of ours
        }
    }
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut words = Words(bytes);
        let file = words.next()?;
        let mode = words.next().map_or(Mode::Other, Mode::parse);
        Some(Self { file, mode, asked: Asked::parse(words) })
    }
}

impl Mode {
    fn parse(word: &[u8]) -> Self {
        let known = [(&b"octet"[..], Self::Octet), (b"netascii", Self::Netascii), (b"mail", Self::Mail)];
        known
            .into_iter()
            .find(|(name, _)| word.eq_ignore_ascii_case(name))
            .map_or(Self::Other, |(_, mode)| mode)
    }
}

impl Asked {
    fn parse(mut words: Words<'_>) -> Self {
        let mut asked = Self::default();
        while let (Some(key), Some(value)) = (words.next(), words.next()) {
            let is = |name: &str| key.eq_ignore_ascii_case(name.as_bytes());
            if is("blksize") {
                let size = decimal(value).filter(|size| *size >= BLOCK_SIZES.0);
                asked.block_size = asked.block_size.or_else(|| size.map(|size| size.min(BLOCK_SIZES.1)));
            } else if is("windowsize") {
                asked.window = asked.window.or_else(|| decimal(value).filter(|window| *window > 0));
            } else if is("timeout") {
                let seconds = decimal(value).filter(|seconds| (TIMEOUTS.0..=TIMEOUTS.1).contains(seconds));
                asked.timeout = asked.timeout.or_else(|| u8::try_from(seconds?).ok());
            } else if is("tsize") {
                asked.size = asked.size || decimal(value).is_some();
            }
        }
        asked
    }

    /// Nothing was asked for that we know: an answer begins with DATA.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// Words that end in a NUL; the last one may lack it.
#[derive(Debug, Clone, Copy)]
struct Words<'a>(&'a [u8]);

impl<'a> Iterator for Words<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.iter().position(|byte| *byte == 0).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..).unwrap_or_default();
        Some(word)
    }
}

fn number(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*number), rest))
}

/// Digits as a number; what does not fit counts as the largest.
fn decimal(word: &[u8]) -> Option<u16> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let append = |sum: u16, digit| sum.saturating_mul(10).saturating_add(digit);
    let first = word.first().and_then(digit)?;
    word.get(1..)?.iter().try_fold(first, |sum, byte| digit(byte).map(|digit| append(sum, digit)))
}

/// The first bytes of the DATA packet with this block number.
pub const fn data_header(block: u16) -> [u8; DATA_HEADER] {
    let [high, low] = block.to_be_bytes();
    [0, 3, high, low]
}

/// Why a client gets nothing: the codes of RFC 1350 §5 that we use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The text says what it is.
    Undefined,
    /// No such file.
    NotFound,
    /// Writing.
    Access,
    /// A mode that we do not have.
    Illegal,
    /// Nothing is known of this transfer.
    UnknownTransfer,
}

impl ErrorCode {
    /// As it stands in a packet.
    pub const fn number(self) -> u16 {
        match self {
            Self::Undefined => 0,
            Self::NotFound => 1,
            Self::Access => 2,
            Self::Illegal => 4,
            Self::UnknownTransfer => 5,
        }
    }
}

/// An ERROR packet.
pub fn error(code: ErrorCode, text: &str) -> Vec<u8> {
    [&opcode::ERROR.to_be_bytes()[..], &code.number().to_be_bytes(), text.as_bytes(), b"\0"].concat()
}

/// What was agreed on (RFC 2347): only options that the client asked for, and that are granted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Granted {
    /// `blksize`, in bytes.
    pub block_size: Option<u16>,
    /// `windowsize`, in blocks.
    pub window: Option<u16>,
    /// `timeout`, in seconds.
    pub timeout: Option<u8>,
    /// `tsize`, in bytes.
    pub size: Option<u64>,
}

impl Granted {
    /// Nothing to tell: the answer begins with DATA.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// The OACK packet.
    pub fn packet(&self) -> Vec<u8> {
        let options = [
            ("tsize", self.size),
            ("blksize", self.block_size.map(u64::from)),
            ("timeout", self.timeout.map(u64::from)),
            ("windowsize", self.window.map(u64::from)),
        ];
        let mut packet = opcode::OPTIONS.to_be_bytes().to_vec();
        for (name, value) in options.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(block_size: Option<u16>, window: Option<u16>, timeout: Option<u8>, size: bool) -> Asked {
        Asked { block_size, window, timeout, size }
    }

    fn request(bytes: &[u8]) -> Option<(String, Mode, Asked)> {
        match Packet::parse(bytes)? {
            Packet::Read(request) => {
                Some((String::from_utf8_lossy(request.file).into(), request.mode, request.asked))
            }
            other @ (Packet::Write(_)
            | Packet::Data
            | Packet::Acknowledge(_)
            | Packet::Error { .. }
            | Packet::Options) => panic!("{other:?}"),
        }
    }

    #[test]
    fn requests_are_read_with_whatever_roms_leave_out_or_add() {
        let plain = || Some(("a".to_owned(), Mode::Octet, Asked::default()));
        for bytes in [
            &b"\0\x01a\0octet\0"[..],
            b"\0\x01a\0OCTET\0",
            b"\0\x01a\0octet",
            b"\0\x01a\0octet\0\0\0\0",
            b"\0\x01a\0octet\0blksize\0",
            b"\0\x01a\0octet\0blksize",
            b"\0\x01a\0octet\0nonsense\x001\0",
        ] {
            assert_eq!(request(bytes), plain(), "{bytes:?}");
        }
        let name = |mode| Some(("a".to_owned(), mode, Asked::default()));
        assert_eq!(request(b"\0\x01a\0netascii\0"), name(Mode::Netascii));
        assert_eq!(request(b"\0\x01a\0mail\0"), name(Mode::Mail));
        assert_eq!(request(b"\0\x01a\0"), name(Mode::Other));
        assert_eq!(request(b"\0\x01a"), name(Mode::Other));
        assert_eq!(request(b"\0\x01"), None);
        assert_eq!(
            request(b"\0\x01\xff\xfe\0octet\0").map(|(name, ..)| name),
            Some("\u{fffd}\u{fffd}".into())
        );
    }

    #[test]
    fn options_have_the_values_that_the_rfcs_allow() {
        for (options, expected) in [
            ("blksize=1432 tsize=0", asked(Some(1432), None, None, true)),
            ("BLKSIZE=8 WindowSize=1 TIMEOUT=1 TSIZE=77", asked(Some(8), Some(1), Some(1), true)),
            ("blksize=7", asked(None, None, None, false)),
            ("blksize=65464 windowsize=65535", asked(Some(65_464), Some(65_535), None, false)),
            ("blksize=65465 windowsize=65536", asked(Some(65_464), Some(65_535), None, false)),
            ("blksize=99999999999999999999", asked(Some(65_464), None, None, false)),
            ("blksize=0 windowsize=0 timeout=0", asked(None, None, None, false)),
            ("timeout=255", asked(None, None, Some(255), false)),
            ("timeout=256", asked(None, None, None, false)),
            ("blksize=-1 windowsize=+4 timeout=1s tsize=x", asked(None, None, None, false)),
            ("blksize=512 blksize=1024", asked(Some(512), None, None, false)),
            ("multicast= blksize=1024", asked(Some(1024), None, None, false)),
        ] {
            let bytes = format!("\0\x01a\0octet\0{}\0", options.replace(['=', ' '], "\0"));
            assert_eq!(request(bytes.as_bytes()).unwrap().2, expected, "{options}");
        }
    }

    #[test]
    fn other_packets_are_told_apart() {
        for (bytes, expected) in [
            (&b"\0\x04\xff\xfe"[..], Some(Packet::Acknowledge(0xfffe))),
            (b"\0\x04\0\x01padding", Some(Packet::Acknowledge(1))),
            (b"\0\x04\0", None),
            (b"\0\x05\0\x08aborted\0", Some(Packet::Error { code: 8, message: b"aborted" })),
            (b"\0\x05\0\0", Some(Packet::Error { code: 0, message: b"" })),
            (b"\0\x05\0", None),
            (b"\0\x03\0\x01x", Some(Packet::Data)),
            (b"\0\x06", Some(Packet::Options)),
            (b"\0\x07", None),
            (b"\x01\0a\0octet\0", None),
            (b"\0", None),
            (b"", None),
        ] {
            assert_eq!(Packet::parse(bytes), expected, "{bytes:?}");
        }
        assert!(matches!(Packet::parse(b"\0\x02a\0octet\0"), Some(Packet::Write(_))));
    }

    #[test]
    fn answers_are_spelled_as_the_rfcs_say() {
        assert_eq!(data_header(0x0102), [0, 3, 1, 2]);
        assert_eq!(error(ErrorCode::NotFound, "File not found"), b"\0\x05\0\x01File not found\0");
        let granted =
            Granted { block_size: Some(1432), window: Some(8), timeout: Some(1), size: Some(100_000) };
        assert_eq!(
            granted.packet(),
            b"\0\x06tsize\x00100000\0blksize\x001432\0timeout\x001\0windowsize\x008\0"
        );
        assert_eq!(Granted { size: Some(0), ..Granted::default() }.packet(), b"\0\x06tsize\x000\0");
        assert!(Granted::default().is_nothing() && Asked::default().is_nothing());
    }
}

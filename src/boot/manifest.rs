//! `SHA256SUMS`: the checksums of published files, as `sha256sum` writes them. Pure.

use std::collections::HashMap;

use super::root::RelativePath;

/// The manifest's name, in the folder whose files it names.
pub const MANIFEST: &str = "SHA256SUMS";
/// The largest manifest that is read, in bytes.
pub const MANIFEST_LIMIT: u64 = 1 << 20;

/// A SHA-256.
pub type Digest = [u8; 32];

/// Checksums by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Manifest(HashMap<RelativePath, Digest>);

/// A line that is none of a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {0} is not a SHA-256 in hexadecimal, two spaces and a name")]
pub struct BadLine(pub usize);

impl Manifest {
    /// Reads a manifest. Lines: 64 hexadecimal digits, a space, a space or `*`, a name below the folder; empty lines
    /// and such that begin with `#` do not count.
    pub fn parse(text: &str) -> Result<Self, BadLine> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        lines.map(|(at, line)| entry(line).ok_or(BadLine(at + 1))).collect::<Result<_, _>>().map(Self)
    }

    /// The checksum of a name; `None`: the manifest does not name it.
    pub fn digest(&self, name: &RelativePath) -> Option<&Digest> {
        self.0.get(name)
    }
}

fn entry(line: &str) -> Option<(RelativePath, Digest)> {
    let (digits, rest) = line.split_once(' ')?;
    let name = rest.strip_prefix([' ', '*'])?;
    Some((RelativePath::parse(name)?, digest(digits)?))
}

fn digest(digits: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, pair) in digest.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUM: &str = "0a0b0c0d0e0f00000000000000000000000000000000000000000000000000ff";

    #[test]
    fn lines_are_as_sha256sum_writes_them() {
        let text =
            format!("# loaders\n\n{SUM}  undionly.kpxe\n{} *sub/a b\n{SUM}  ./c\n", SUM.to_uppercase());
        let manifest = Manifest::parse(&text).unwrap();
        for name in ["undionly.kpxe", "sub/a b", "c"] {
            let digest = manifest.digest(&RelativePath::parse(name).unwrap()).unwrap();
            assert_eq!((digest[0], digest[31]), (0x0a, 0xff), "{name}");
        }
        assert_eq!(manifest.digest(&RelativePath::parse("other").unwrap()), None);
    }

    #[test]
    fn other_lines_are_named() {
        for line in
            ["x", "0a  a", &format!("{SUM} a"), &format!("{SUM}  ../a"), &format!("+{}  a", &SUM[1..])]
        {
            assert_eq!(Manifest::parse(&format!("{SUM}  ok\n{line}\n")), Err(BadLine(2)), "{line}");
        }
    }
}

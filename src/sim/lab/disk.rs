//! Disk images: blank ones to install to, and witnesses, whose bytes are known and must be the same afterwards.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write},
    path::Path,
};

use super::LabError;

/// Makes a sparse image of zeros, `size` bytes long.
pub fn create_blank(path: &Path, size: u64) -> Result<(), LabError> {
    let create = || File::create(path)?.set_len(size);
    create().map_err(|source| LabError::Disk { operation: "create", path: path.to_owned(), source })
}

/// Makes an image in which every 8 bytes hold a number that follows from their place; `size` is rounded down to 8.
pub fn create_witness(path: &Path, size: u64) -> Result<(), LabError> {
    let create = || -> io::Result<()> {
        let mut file = BufWriter::new(File::create(path)?);
        for place in 0..size / WORD {
            file.write_all(&known(place))?;
        }
        file.flush()
    };
    create().map_err(|source| LabError::Disk { operation: "create", path: path.to_owned(), source })
}

/// Whether a witness still has the bytes, and the length, that it was made with.
pub fn witness_is_intact(path: &Path, size: u64) -> Result<bool, LabError> {
    let compare = || -> io::Result<bool> {
        let mut file = BufReader::new(File::open(path)?);
        let mut word = [0; 8];
        for place in 0..size / WORD {
            match file.read_exact(&mut word) {
                Ok(()) if word == known(place) => {}
                Ok(()) => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(file.read(&mut word)? == 0)
    };
    compare().map_err(|source| LabError::Disk { operation: "read", path: path.to_owned(), source })
}

/// Odd, so that every place has a word of its own.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
/// Bytes that belong together.
const WORD: u64 = 8;

const fn known(place: u64) -> [u8; 8] {
    (place + 1).wrapping_mul(MULTIPLIER).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_or_another_length_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("witness");
        let size = 64 << 10;
        create_witness(&path, size).unwrap();
        assert!(witness_is_intact(&path, size).unwrap());
        let good = std::fs::read(&path).unwrap();
        let mut bad = good.clone();
        bad[40_000] ^= 1;
        for other in [&bad[..], &good[..good.len() - 8], &[&good[..], &[0]].concat()[..]] {
            std::fs::write(&path, other).unwrap();
            assert!(!witness_is_intact(&path, size).unwrap());
        }
    }
}

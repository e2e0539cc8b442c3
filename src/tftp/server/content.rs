//! What is given out: rendered text, or a file that is opened once and shared by all transfers. A shell.
//!
//! Invariant: memory is bounded whatever the files' sizes. Files are read in pieces, the pieces that were used last
//! are kept, and transfers hold none of their own. A file that changes while it is read is not read further.

use std::{
    collections::HashMap,
    fs::{File, Metadata},
    io,
    os::unix::fs::{FileExt, MetadataExt},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use crate::boot::going::Going;

/// Of a file, this much is read at once, in bytes.
pub(super) const PIECE: u64 = 64 << 10;
/// What is kept of files in memory, in bytes.
const MEMORY: usize = 24 << 20;

/// What is given out under a name.
#[derive(Debug, Clone)]
pub enum Content {
    /// In memory: rendered for one machine.
    Text(Bytes),
    /// On the disk; and for whoever looks, where this is for a known machine.
    File(Arc<OpenFile>, Option<Arc<Going>>),
}

/// A piece that is not in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing(pub(super) u64);

impl Content {
    /// Its length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Self::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Self::File(file, _) => file.identity.length,
        }
    }

    /// A piece from memory, counted from 0; empty past the end.
    fn piece(&self, index: u64) -> Option<Bytes> {
        match self {
            Self::Text(text) => {
                let at = |index: u64| {
                    usize::try_from(index.saturating_mul(PIECE)).unwrap_or(usize::MAX).min(text.len())
                };
                Some(text.slice(at(index)..at(index + 1)))
            }
            Self::File(file, _) => file.pieces.find((file.number, index)),
        }
    }

    /// A piece, from the disk where it must be. Blocks for as long as the disk does.
    pub(super) fn load(&self, index: u64) -> io::Result<Bytes> {
        match (self.piece(index), self) {
            (Some(piece), _) => Ok(piece),
            (None, Self::File(file, _)) => file.load(index),
            (None, Self::Text(_)) => Ok(Bytes::new()),
        }
    }

    /// Adds what stands at `offset` to `parts`, from memory alone.
    pub(super) fn gather(
        &self,
        mut offset: u64,
        mut length: u64,
        parts: &mut Vec<Bytes>,
    ) -> Result<(), Missing> {
        while length > 0 {
            let index = offset / PIECE;
            let piece = self.piece(index).ok_or(Missing(index))?;
            let from = usize::try_from(offset % PIECE).unwrap_or_default().min(piece.len());
            let take = usize::try_from(length).unwrap_or(usize::MAX).min(piece.len() - from);
            if take == 0 {
                break; // past the end
            }
            parts.push(piece.slice(from..from + take));
            let taken = u64::try_from(take).unwrap_or_default();
            (offset, length) = (offset + taken, length - taken);
        }
        self.reach(offset);
        Ok(())
    }

    /// What stands before this offset is sent.
    pub(super) fn reach(&self, offset: u64) {
        if let Self::File(_, Some(going)) = self {
            going.reach(offset);
        }
    }

    /// The piece to read next, when what was just sent entered a new one.
    pub(super) fn ahead(&self, offset: u64, length: u64) -> Option<u64> {
        let Self::File(file, _) = self else { return None };
        let entered = offset % PIECE < length || offset == 0;
        let next = (offset + length) / PIECE + 1;
        let wanted = entered && next * PIECE < file.identity.length;
        (wanted && !file.pieces.has((file.number, next))).then_some(next)
    }
}

/// What tells a file from the one that replaced it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    device: u64,
    node: u64,
    pub(super) length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            node: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    file: File,
    pub(super) identity: Identity,
    number: u64,
    pieces: Pieces,
}

impl OpenFile {
    /// An error when the file was changed since it was opened.
    pub(super) fn is_unchanged(&self) -> io::Result<()> {
        if Identity::of(&self.file.metadata()?) == self.identity {
            Ok(())
        } else {
            Err(io::Error::other("the file was changed while it was read"))
        }
    }

    fn load(&self, index: u64) -> io::Result<Bytes> {
        let rest = self.identity.length.saturating_sub(index.saturating_mul(PIECE));
        let mut piece = vec![0; usize::try_from(rest.min(PIECE)).unwrap_or_default()];
        self.file.read_exact_at(&mut piece, index * PIECE)?;
        self.is_unchanged()?;
        let piece = Bytes::from(piece);
        self.pieces.keep((self.number, index), piece.clone());
        Ok(piece)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.pieces.drop_file(self.number);
    }
}

/// Pieces of files in memory: those that were used last.
#[derive(Debug, Clone, Default)]
pub(super) struct Pieces(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    pieces: HashMap<(u64, u64), (Bytes, u64)>,
    bytes: usize,
    /// Counts looks: what was looked at last has the highest number.
    looks: u64,
    files: u64,
}

impl Pieces {
    /// Takes an open file in.
    pub(super) fn open(&self, file: File, identity: Identity) -> OpenFile {
        let mut kept = self.lock();
        kept.files += 1;
        OpenFile { file, identity, number: kept.files, pieces: self.clone() }
    }

    fn find(&self, key: (u64, u64)) -> Option<Bytes> {
        let mut kept = self.lock();
        kept.looks += 1;
        let looks = kept.looks;
        let (piece, used) = kept.pieces.get_mut(&key)?;
        *used = looks;
        Some(piece.clone())
    }

    fn has(&self, key: (u64, u64)) -> bool {
        self.lock().pieces.contains_key(&key)
    }

    fn keep(&self, key: (u64, u64), piece: Bytes) {
        let mut kept = self.lock();
        kept.looks += 1;
        let entry = (piece.clone(), kept.looks);
        kept.bytes += piece.len();
        if let Some((old, _)) = kept.pieces.insert(key, entry) {
            kept.bytes -= old.len();
        }
        while kept.bytes > MEMORY {
            let oldest = kept.pieces.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
            let Some((dropped, _)) = oldest.and_then(|key| kept.pieces.remove(&key)) else { break };
            kept.bytes -= dropped.len();
        }
    }

    fn drop_file(&self, number: u64) {
        let mut kept = self.lock();
        let Kept { pieces, bytes, .. } = &mut *kept;
        pieces.retain(|(file, _), (piece, _)| {
            let stays = *file != number;
            *bytes -= if stays { 0 } else { piece.len() };
            stays
        });
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

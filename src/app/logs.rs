//! Reads what a machine sent by syslog. A shell.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::{
    clock::Timestamp,
    config::Config,
    machine::MacAddr,
    syslog::server::{earlier_file_of, file_of},
};

/// The most that is shown, in bytes: the newest.
const SHOWN: u64 = 1 << 20;

/// The folder of the files.
pub fn folder(config: &Config) -> PathBuf {
    config.state_dir.join("syslog")
}

/// A machine's lines since an instant, the newest mebibyte of them.
pub fn read(folder: &Path, mac: MacAddr, since: Timestamp) -> io::Result<String> {
    let earlier = end_of(&earlier_file_of(folder, mac))?;
    let whole = earlier + &end_of(&file_of(folder, mac))?;
    // Each line begins with its time in one form, in UTC, so that texts compare as times do.
    let since = since.to_string();
    let kept: Vec<&str> = whole.split_inclusive('\n').filter(|line| **line >= *since).collect();
    Ok(kept.concat())
}

/// The end of a file, from the beginning of a line on; empty where there is none.
fn end_of(path: &Path) -> io::Result<String> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let from = length.saturating_sub(SHOWN);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(SHOWN).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    match text.split_once('\n') {
        Some((_, whole)) if from > 0 => Ok(whole.to_owned()),
        Some(_) | None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_from_both_files_since_an_instant() {
        let folder = tempfile::tempdir().unwrap();
        let mac = MacAddr::new([2, 0x16, 0x3e, 0, 0, 1]);
        assert_eq!(read(folder.path(), mac, Timestamp::from_millis(0)).unwrap(), "");
        std::fs::write(
            earlier_file_of(folder.path(), mac),
            "1970-01-01T00:00:01Z info a\n1970-01-01T00:00:02Z info b\n",
        )
        .unwrap();
        std::fs::write(file_of(folder.path(), mac), "1970-01-01T00:00:03Z info c\n").unwrap();
        let read = |seconds: u64| read(folder.path(), mac, Timestamp::from_millis(seconds * 1000)).unwrap();
        assert_eq!(read(2), "1970-01-01T00:00:02Z info b\n1970-01-01T00:00:03Z info c\n");
        assert_eq!(read(4), "");
        std::fs::write(file_of(folder.path(), mac), "1970-01-01T00:00:05Z info x\n".repeat(60_000)).unwrap();
        let text = read(5);
        assert!(text.len() <= 1 << 20 && text.starts_with("1970-01-01T00:00:05Z info x\n"));
    }
}

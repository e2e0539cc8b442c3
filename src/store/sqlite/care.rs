//! Copies a database and checks one, beside a server that may be using it: read-only connections, and SQLite's own locks.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rusqlite::Connection;
use serde::Serialize;

use super::{OpenError, revision, schema};
use crate::store::Revision;

/// Why there is no copy. What was there is as it was.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The copy cannot be made there.
    #[error("cannot make {path}")]
    Target {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// SQLite's words.
    #[error("cannot copy the database to {path}")]
    Copy {
        /// The copy.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Found {
    /// The schema.
    pub schema: i64,
    /// The last commit.
    pub revision: Revision,
    /// How many entries there are of each kind: the first part of their keys.
    pub entries: BTreeMap<String, u64>,
    /// What is wrong, in sentences.
    pub problems: Vec<String>,
}

/// Writes a copy as the database is in this moment, for this user alone; its size in bytes.
pub fn backup(database: &Path, to: &Path) -> Result<u64, BackupError> {
    let connection = schema::open_to_look(database)?;
    let target = |source| BackupError::Target { path: to.to_owned(), source };
    // SQLite writes into an empty file that is there, and so keeps its mode.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(target)?;
    let copied =
        to.to_str().ok_or_else(|| io::Error::other("the name is no UTF-8")).map_err(target).and_then(
            |name| {
                let copied = connection.execute("VACUUM INTO ?1", [name]);
                copied.map_err(|source| BackupError::Copy { path: to.to_owned(), source })
            },
        );
    let synced = copied.and_then(|_| {
        file.sync_all().map_err(target)?;
        let folder =
            to.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(target)
    });
    if let Err(error) = synced {
        let _ = std::fs::remove_file(to); // half a copy is none
        return Err(error);
    }
    Ok(file.metadata().map_err(target)?.len())
}

/// What is wrong with an entry of this key and value, for who knows what it should hold.
pub type Judge = fn(&str, &[u8]) -> Option<String>;

/// Looks whether a database is whole: its pages, its mark, and each entry by `judge`.
///
/// # Errors
/// It cannot be opened, or is not bootflip's.
pub fn check(database: &Path, judge: Judge) -> Result<Found, OpenError> {
    let connection = schema::open_to_look(database)?;
    let failed = |source| OpenError::Database { path: database.to_owned(), source };
    let mut found = Found::default();
    match read(&connection, judge, &mut found) {
        Ok(()) => Ok(found),
        // A page that cannot be read ends the look: that is what was looked for.
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            found.problems.push(error.to_string());
            Ok(found)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(connection: &Connection, judge: Judge, found: &mut Found) -> rusqlite::Result<()> {
    let meta = |name: &str| {
        connection.query_row("SELECT value FROM meta WHERE name = ?1", [name], |row| row.get::<_, i64>(0))
    };
    found.schema = meta("schema")?;
    found.revision = revision(meta("revision")?);
    let mut integrity = connection.prepare("PRAGMA integrity_check(20)")?;
    for line in integrity.query_map([], |row| row.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            found.problems.push(line);
        }
    }
    let mut entries =
        connection.prepare("SELECT key, value, revision FROM entries WHERE value IS NOT NULL")?;
    let mut rows = entries.query([])?;
    while let Some(row) = rows.next()? {
        let (key, value): (String, Vec<u8>) = (row.get(0)?, row.get(1)?);
        let kind = key.split('/').next().unwrap_or(&key).to_owned();
        *found.entries.entry(kind).or_insert(0) += 1;
        found.problems.extend(judge(&key, &value));
        if revision(row.get(2)?) > found.revision {
            found.problems.push(format!("{key} is newer than the last commit"));
        }
    }
    Ok(())
}

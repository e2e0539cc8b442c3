//! Opens the database file and brings it to the schema that this version knows.
//!
//! ```text
//! meta     name TEXT, value INTEGER     schema = 1; revision = the last commit; forgotten = see below
//! entries  key TEXT, value BLOB or NULL, revision INTEGER
//! ```
//! An entry whose value is NULL is a removed key, kept so that a watcher who begins earlier is told of the removal.
//! The newest [`REMOVED_KEPT`] are kept; `forgotten` is the revision of the newest one that was not, and watchers
//! cannot begin before it.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::OpenError;

/// `PRAGMA application_id`: "bflp".
const APPLICATION: i64 = 0x6266_6c70;

/// What this version writes.
const SCHEMA: i64 = 1;

/// How many removed keys are remembered.
const REMOVED_KEPT: u32 = 16_384;

/// How long a write waits for somebody else's tool (a backup, `sqlite3`) to let go of the file.
const BUSY: Duration = Duration::from_secs(5);

const TABLES: &str = "
    CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO meta VALUES ('schema', 1), ('revision', 0), ('forgotten', 0);
    CREATE TABLE entries (key TEXT PRIMARY KEY, value BLOB, revision INTEGER NOT NULL) STRICT;
    CREATE INDEX entries_by_revision ON entries (revision);
";

/// The writing connection, to a database that is there, whole and of our schema.
pub(super) fn open(path: &Path) -> Result<Connection, OpenError> {
    private_file(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let mut connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE).map_err(failed)?;
    match owner(&connection) {
        Ok(Owner::Nobody) => {}
        Ok(Owner::Bootflip { schema }) if schema > SCHEMA => {
            return Err(OpenError::Newer { path: path.to_owned(), found: schema, known: SCHEMA });
        }
        Ok(Owner::Bootflip { schema: _ }) => {}
        Ok(Owner::Another) => return Err(OpenError::Foreign { path: path.to_owned() }),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            return Err(OpenError::Foreign { path: path.to_owned() });
        }
        Err(source) => return Err(failed(source)),
    }
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    create(&mut connection).map_err(failed)?;
    let detail: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(failed)?;
    if detail != "ok" {
        return Err(OpenError::Damaged { path: path.to_owned(), detail });
    }
    forget_removed(&connection).map_err(failed)?;
    Ok(connection)
}

/// The reading connection.
pub(super) fn open_for_reading(path: &Path) -> Result<Connection, OpenError> {
    connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY)
        .map_err(|source| OpenError::Database { path: path.to_owned(), source })
}

/// A reading connection to a database that is there and ours, whole or not.
pub(super) fn open_to_look(path: &Path) -> Result<Connection, OpenError> {
    let failed = |source| OpenError::Database { path: path.to_owned(), source };
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(failed)?;
    match owner(&connection) {
        Ok(Owner::Bootflip { schema }) if schema > SCHEMA => {
            Err(OpenError::Newer { path: path.to_owned(), found: schema, known: SCHEMA })
        }
        Ok(Owner::Bootflip { schema: _ }) => Ok(connection),
        Ok(Owner::Nobody | Owner::Another) => Err(OpenError::Foreign { path: path.to_owned() }),
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::NotADatabase) => {
            Err(OpenError::Foreign { path: path.to_owned() })
        }
        Err(error) if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) => {
            Err(OpenError::Damaged { path: path.to_owned(), detail: error.to_string() })
        }
        Err(source) => Err(failed(source)),
    }
}

/// Drops the oldest removed keys, and notes how far.
pub(super) fn forget_removed(connection: &Connection) -> rusqlite::Result<()> {
    let last = "SELECT max(revision) FROM (SELECT revision FROM entries WHERE value IS NULL
                ORDER BY revision DESC LIMIT -1 OFFSET ?1)";
    let last: Option<i64> = connection.query_row(last, [REMOVED_KEPT], |row| row.get(0))?;
    let Some(last) = last else { return Ok(()) };
    let transaction = connection.unchecked_transaction()?;
    transaction.execute("DELETE FROM entries WHERE value IS NULL AND revision <= ?1", [last])?;
    transaction.execute("UPDATE meta SET value = ?1 WHERE name = 'forgotten'", [last])?;
    transaction.commit()
}

fn connect(path: &Path, access: OpenFlags) -> rusqlite::Result<Connection> {
    // No SQLITE_OPEN_URI: a `?` in a folder's name is a `?`.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    connection.busy_timeout(BUSY)?;
    Ok(connection)
}

enum Owner {
    Nobody,
    Bootflip { schema: i64 },
    Another,
}

fn owner(connection: &Connection) -> rusqlite::Result<Owner> {
    let application: i64 = connection.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    Ok(match application {
        APPLICATION => {
            let sql = "SELECT value FROM meta WHERE name = 'schema'";
            Owner::Bootflip { schema: connection.query_row(sql, [], |row| row.get(0))? }
        }
        0 if tables == 0 => Owner::Nobody,
        _ => Owner::Another,
    })
}

/// Makes the tables in an empty database: all of them and the mark, or nothing.
fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let tables: i64 = transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(TABLES)?;
        transaction.pragma_update(None, "application_id", APPLICATION)?;
    }
    transaction.commit()
}

/// Opens or makes a file that only this user reads and writes, whatever the umask is and was. SQLite gives its
/// `-wal` and `-shm` files the mode of the database.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Makes a folder that only this user enters.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

//! Reads the configuration file, and the passwords and variables in files that it names: the only files that configuration opens.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::{
    Config, Problems,
    check::{FilesRead, Parsed, PasswordRead, TextRead},
};
use crate::secret::Secret;

/// The largest configuration file, in bytes.
const FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// The longest password, in bytes.
const PASSWORD_LIMIT: u64 = 1024;

/// The folder beside the configuration whose files are named as pools and hold their passwords.
const CREDENTIALS: &str = "credentials";

/// The largest file of a variable, in bytes.
const TEXT_LIMIT: u64 = 64 * 1024;

/// The permissions that nobody else may have on a password file: group and others all, its owner execute.
const TOO_WIDE: u32 = 0o177;

/// What of the process's surroundings counts.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// `$CREDENTIALS_DIRECTORY`, where systemd puts what `LoadCredential=` names.
    pub credentials: Option<PathBuf>,
}

impl Surroundings {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self { credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) }
    }

    /// The credential with a pool's password: named as the pool, or as a folder's file is that was loaded whole
    /// (`LoadCredential=pool:FOLDER` makes `pool_NAME` of each, systemd.exec(5)).
    fn credential(&self, pool: &str) -> Option<PathBuf> {
        let folder = self.credentials.as_ref()?;
        [pool.to_owned(), format!("pool_{pool}")]
            .into_iter()
            .map(|name| folder.join(name))
            .find(|file| file.exists())
    }
}

/// Reads and checks a configuration file. Changes nothing.
pub fn load(path: &Path) -> Result<Config, Problems> {
    load_in(path, &Surroundings::of_process())
}

/// Like [`load`], in given surroundings.
pub fn load_in(path: &Path, surroundings: &Surroundings) -> Result<Config, Problems> {
    let text = read(path, FILE_LIMIT).map_err(|error| {
        let remedy = "name the configuration with -c FILE, and let this user read it";
        Problems::of_file(path.to_owned(), format!("cannot be read: {error}"), remedy.to_owned())
    })?;
    let parsed = Parsed::of(&text);
    let folder = path.parent().unwrap_or_else(|| Path::new(""));
    let mut files = FilesRead { passwords: BTreeMap::new(), texts: BTreeMap::new() };
    for file in parsed.variable_files() {
        files.texts.insert(file.to_owned(), text_file(&folder.join(file)));
    }
    for (pool, file) in parsed.password_files() {
        let credential = || surroundings.credential(pool);
        // What the unit has as credentials: for who runs `check` or `restore` by hand and may read them.
        let beside = folder.join(CREDENTIALS).join(pool);
        let read = match file {
            Some(file) => Some(password_file(&folder.join(file))),
            None => match credential() {
                Some(file) => Some(password(&file)),
                None => beside.exists().then(|| password_file(&beside)),
            },
        };
        files.passwords.extend(read.map(|read| (pool.to_owned(), read)));
    }
    parsed.check(path, &files)
}

/// What a variable's file holds.
fn text_file(path: &Path) -> Result<TextRead, (String, String)> {
    let read =
        std::fs::metadata(path).and_then(|meta| Ok((meta.permissions().mode(), read(path, TEXT_LIMIT)?)));
    let (mode, text) = read.map_err(|error| {
        let remedy = "let this user read it, or write the value here".to_owned();
        (format!("cannot read {}: {error}", path.display()), remedy)
    })?;
    Ok(TextRead { text: Secret::new(text), open_to_others: mode & TOO_WIDE != 0 })
}

/// A password from a file that nobody else may read. (Credentials of systemd are guarded by their folder, and show
/// wider modes where access lists stand behind them.)
fn password_file(path: &Path) -> PasswordRead {
    let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777);
    match mode {
        Ok(mode) if mode & TOO_WIDE != 0 => Err((
            format!("{} is open to others (mode {mode:04o})", path.display()),
            format!("chmod 600 {}", path.display()),
        )),
        Ok(_) => password(path),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn password(path: &Path) -> PasswordRead {
    let text = read(path, PASSWORD_LIMIT).map_err(|error| unreadable(path, &error))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() || line.chars().any(char::is_control) {
        let message = format!("{} does not hold one line with a password", path.display());
        return Err((message, "write the password and nothing else into it".to_owned()));
    }
    Ok(Secret::new(line.to_owned()))
}

fn unreadable(path: &Path, error: &io::Error) -> (String, String) {
    let remedy = "write the password into it, with mode 0600 and for the user that runs bootflip".to_owned();
    (format!("cannot read {}: {error}", path.display()), remedy)
}

fn read(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if u64::try_from(length).is_ok_and(|length| length > limit) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes")));
    }
    Ok(text)
}

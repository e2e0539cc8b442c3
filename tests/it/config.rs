//! The configuration file: what loads, and what every mistake is answered with.

use std::{os::unix::fs::PermissionsExt, path::Path};

use bootflip::config::{
    Config, Deadlines, Limits, Problems, Surroundings, TlsTrust, load, load_in, problems_report,
};
use tempfile::TempDir;

const PASSWORD: &str = "hunter2-and-more";

/// The least that loads.
const BASE: &str = r#"[server]
name = "a"
[pool.main]
url = "https://10.0.0.10"
user = "bootflip"
password_file = "secret"
tls = "insecure"
"#;

/// A folder with a password file and this configuration.
fn folder(text: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    write(&folder.path().join("secret"), &format!("{PASSWORD}\n"), 0o600);
    write(&folder.path().join("wide"), PASSWORD, 0o640);
    write(&folder.path().join("empty"), "\n", 0o600);
    write(&folder.path().join("two-lines"), "hunter2\nhunter3\n", 0o600);
    std::fs::write(folder.path().join("bootflip.toml"), text).unwrap();
    folder
}

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn loaded(text: &str) -> Result<Config, Problems> {
    load_in(&folder(text).path().join("bootflip.toml"), &Surroundings::default())
}

/// The problems, without the folder's name.
fn problems(text: &str) -> String {
    let folder = folder(text);
    let prefix = format!("{}/", folder.path().display());
    match load_in(&folder.path().join("bootflip.toml"), &Surroundings::default()) {
        Ok(_) => "loads".to_owned(),
        Err(problems) => problems.to_string().replace(&prefix, ""),
    }
}

#[test]
fn five_mistakes_are_five_messages_with_their_lines() {
    let problems = load_in(Path::new("tests/data/five-mistakes.toml"), &Surroundings::default()).unwrap_err();
    assert_eq!(problems_report(&problems), include_str!("../data/five-mistakes.txt"));
    assert_eq!(problems.all().len(), 5);
}

#[test]
fn the_example_loads() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bootflip.toml");
    std::fs::copy("config/bootflip.toml", &file).unwrap();
    write(&folder.path().join("main.password"), PASSWORD, 0o600);
    let config = load_in(&file, &Surroundings::default()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(config.server_name, "bootflip-a");
    assert_eq!(config.profiles.keys().collect::<Vec<_>>(), ["custom", "own", "rescue", "ubuntu"]);
    assert_eq!((config.limits, config.deadlines), (Limits::default(), Deadlines::default()));
}

/// What the example says of defaults is what is so: with its comments taken away it is the same configuration.
#[test]
fn the_defaults_that_the_example_names_are_the_defaults() {
    let example = std::fs::read_to_string("config/bootflip.toml").unwrap();
    let shows = |line: &str, key: &str| {
        line.strip_prefix("# ").is_some_and(|line| line.starts_with(&format!("{key} = ")))
    };
    // Examples of keys without a default.
    let no_default = [
        "template_dir",
        "members",
        "allow",
        "device",
        "mac",
        "disk",
        "\"02:16:3e:00:00:01\"",
        "efi-x64",
        "http-x64",
        "config_file",
        "path_prefix",
        "reboot_time",
        "domain",
        "ntp",
        "mtu",
        "252",
        "clients",
        "listen",
        "tls",
        "tls_cert",
        "tls_key",
    ];
    let uncomment = |line: &str| {
        let key = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")).map(|(key, _)| key);
        let is_key =
            key.is_some_and(|key| !key.contains(' ') && shows(line, key) && !no_default.contains(&key));
        // `http.root` repeats `tftp.root`, which the example sets.
        if is_key { line.trim_start_matches("# ").to_owned() } else { line.to_owned() }
    };
    let full: Vec<String> = example.lines().map(uncomment).collect();
    let changed = full.iter().zip(example.lines()).filter(|(full, line)| full != line).count();
    assert!(changed >= 30, "{changed} defaults are shown");
    let load = |text: &str| {
        let folder = folder(text);
        write(&folder.path().join("main.password"), PASSWORD, 0o600);
        let config = load_in(&folder.path().join("bootflip.toml"), &Surroundings::default());
        let shown = format!("{:#?}", config.unwrap_or_else(|problems| panic!("{problems}")));
        shown.replace(&folder.path().display().to_string(), "FOLDER")
    };
    assert_eq!(load(&full.join("\n")), load(&example));
}

#[test]
fn the_least_that_loads_has_the_documented_defaults() {
    let config = loaded(BASE).unwrap();
    assert_eq!(config.server_name, "a");
    assert_eq!(config.state_dir, Path::new("/var/lib/bootflip"));
    assert_eq!(config.admin.socket, Path::new("/run/bootflip/admin.sock"));
    let pool = &config.pools["main"];
    assert_eq!(
        (pool.name.as_str(), pool.url.as_str(), pool.user.as_str()),
        ("main", "https://10.0.0.10", "bootflip")
    );
    assert_eq!((pool.password.expose(), &pool.tls), (PASSWORD, &TlsTrust::Insecure));
    assert!(config.dhcp.is_empty() && config.tftp.is_none() && config.http.is_none());
    assert!(config.profiles.is_empty() && config.machines.is_empty() && config.template_dir.is_none());
}

#[test]
fn a_whole_configuration_comes_out_as_written() {
    let folder = folder(include_str!("../data/whole.toml"));
    let config = load_in(&folder.path().join("bootflip.toml"), &Surroundings::default()).unwrap();
    let text = format!("{config:#?}\n").replace(&folder.path().display().to_string(), "FOLDER");
    // Where the change is meant: run once with BOOTFLIP_BLESS=1 and review the difference.
    if std::env::var_os("BOOTFLIP_BLESS").is_some() {
        std::fs::write("tests/data/whole.txt", &text).unwrap();
    }
    assert_eq!(text, include_str!("../data/whole.txt"));
}

/// [`BASE`] with [`SERVICES`], edited: `+NEW` appends, `OLD -> NEW` replaces, `-OLD` removes; `⏎` ends a line.
fn edited(edit: &str) -> String {
    let text = format!("{BASE}{SERVICES}");
    let edit = edit.replace('⏎', "\n");
    if let Some(more) = edit.strip_prefix('+') {
        return format!("{text}{more}\n");
    }
    let (old, new) = edit.split_once(" -> ").unwrap_or_else(|| (edit.trim_start_matches('-'), ""));
    assert_eq!(text.matches(old).count(), 1, "{old:?} stands once in the text");
    text.replace(old, new)
}

const SERVICES: &str = r#"[[dhcp]]
interface = "eth1"
mode = "server"
address = "10.1.0.2"
[dhcp.server]
range = ["10.1.0.100", "10.1.0.199"]
netmask = "255.255.255.0"
[tftp]
listen = ["10.1.0.2:69"]
[http]
listen = "10.1.0.2:8080"
[profile.p]
kernel = "linux"
args = "url={{ answer_url }}"
answer = "preseed.j2"
"#;

#[test]
fn each_mistake_is_answered_with_its_line_its_key_and_a_remedy() {
    assert_eq!(problems(&edited("+")), "loads");
    let table = include_str!("../data/mistakes.txt");
    let mut answered = Vec::new();
    for case in table.split("\n\n").map(|case| case.trim_matches('\n')) {
        let (edit, _) = case.split_once("\n=> ").unwrap_or((case, ""));
        let answer = problems(&edited(edit)).replace('\n', "\n=> ").replace("bootflip.toml:", "");
        answered.push((format!("{edit}\n=> {answer}"), case));
    }
    if std::env::var_os("BOOTFLIP_BLESS").is_some() {
        let text: Vec<String> = answered.iter().map(|(answer, _)| answer.clone()).collect();
        std::fs::write("tests/data/mistakes.txt", text.join("\n\n") + "\n").unwrap();
    }
    for (answer, case) in answered {
        assert_eq!(answer, case);
    }
}

#[test]
fn the_whole_file_is_one_problem_when_it_cannot_be_read() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("bootflip.toml");
    let answer = || load(&file).unwrap_err().to_string().replace(&file.display().to_string(), "FILE");
    let remedy = "name the configuration with -c FILE, and let this user read it";
    assert_eq!(answer(), format!("FILE: cannot be read: No such file or directory (os error 2); {remedy}"));
    std::fs::write(&file, b"[server]\nname = \"\xff\"\n").unwrap();
    assert_eq!(answer(), format!("FILE: cannot be read: stream did not contain valid UTF-8; {remedy}"));
    std::fs::write(&file, vec![b'#'; 5 * 1024 * 1024]).unwrap();
    assert_eq!(answer(), format!("FILE: cannot be read: it has more than 4194304 bytes; {remedy}"));
}

#[test]
fn a_systemd_credential_named_as_the_pool_is_its_password() {
    let credentials = TempDir::new().unwrap();
    // systemd guards them by the folder: the files' own mode may be wider than 0600.
    write(&credentials.path().join("main"), "from-systemd\r\n", 0o440);
    let surroundings = Surroundings { credentials: Some(credentials.path().to_owned()) };
    let password = |text: &str| {
        let config = load_in(&folder(text).path().join("bootflip.toml"), &surroundings).unwrap();
        config.pools["main"].password.expose().to_owned()
    };
    assert_eq!(password(&BASE.replace("password_file = \"secret\"\n", "")), "from-systemd");
    assert_eq!(password(BASE), PASSWORD, "a file that the configuration names comes first");
    std::fs::rename(credentials.path().join("main"), credentials.path().join("pool_main")).unwrap();
    assert_eq!(
        password(&BASE.replace("password_file = \"secret\"\n", "")),
        "from-systemd",
        "of a whole folder"
    );
}

#[test]
fn no_password_is_ever_printed() {
    assert!(!format!("{:?}", loaded(BASE).unwrap()).contains("hunter2"));
    // Every answer in the table, too, though the edits put `hunter2` into many places.
    let answers = include_str!("../data/mistakes.txt").lines().filter(|line| line.starts_with("=>"));
    assert_eq!(answers.filter(|answer| answer.contains("hunter2")).count(), 0);
    for hidden in ["password = hunter2", "password = \"hunter2", "url = \"https://root:hunter2@h\n"] {
        let answer = problems(&BASE.replace("user = ", &format!("{hidden}\nuser = ")));
        assert!(!answer.contains("hunter2") && answer != "loads", "{answer}");
    }
}

#[test]
fn a_rescue_and_a_custom_profile_need_no_boot_files_of_ours() {
    let profiles =
        "[profile.r]\nkind = \"rescue\"\n[profile.c]\ncompletion = \"halt\"\nevidence = \"agent\"\n";
    let config = loaded(&format!("{BASE}{profiles}")).unwrap();
    assert!(config.profiles.values().all(|profile| profile.boot.is_none()) && config.http.is_none());
}

//! The walls between layers, and the shape of the code, read from the sources themselves.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A source file: its path below `src/`, and its text without the tests at its end.
struct Source {
    path: String,
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, end: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, end));
        } else if path.to_str().unwrap().ends_with(end) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Every source but test modules; comments and what stands behind the last `#[cfg(test)] mod` are cut.
fn sources() -> Vec<Source> {
    let src = root().join("src");
    let tests = |path: &str| path.ends_with("tests.rs") || path.contains("/tests/");
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(path).unwrap())
    };
    files(&src, ".rs")
        .into_iter()
        .map(read)
        .filter(|(path, _)| !tests(path))
        .map(|(path, text)| {
            let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
            let lines = text[..end].lines().filter(|line| !line.trim_start().starts_with("//"));
            Source { path, code: lines.collect::<Vec<_>>().join("\n") }
        })
        .collect()
}

fn is_shell(path: &str) -> bool {
    let file = path.rsplit('/').next().unwrap();
    path.starts_with("app/")
        || path.starts_with("cli/")
        || path.starts_with("store/")
        || path.starts_with("sim/")
        || path.starts_with("provision/executor/")
        || path.starts_with("tftp/server/")
        || path.starts_with("xen/client")
        || path.starts_with("config/load")
        || path.contains("/server/")
        || ["server.rs", "client.rs", "runner.rs", "clock.rs", "main.rs", "root.rs"].contains(&file)
}

/// All places where one of `words` stands in a file that `watched` picks.
#[track_caller]
fn nowhere(rule: &str, watched: impl Fn(&str) -> bool, words: &[&str]) {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| watched(&source.path)) {
        for word in words.iter().filter(|word| source.code.contains(**word)) {
            broken.push(format!("src/{} names {word}", source.path));
        }
    }
    assert!(broken.is_empty(), "{rule}:\n{}", broken.join("\n"));
}

#[test]
fn cores_touch_no_world() {
    let words = [
        "tokio::",
        "std::fs",
        "std::net::Udp",
        "std::net::Tcp",
        "std::process",
        "std::thread",
        "rusqlite",
        "reqwest",
        "getrandom",
        "SystemTime::now",
        "Instant::now",
        "SystemClock",
        "async fn",
    ];
    // `xen/api` is the transport's typed face: async, and still without a socket of its own.
    nowhere("a core is sync and pure", |path| !is_shell(path) && path != "xen/api.rs", &words);
}

#[test]
fn only_the_database_backend_knows_sqlite() {
    nowhere("SQLite stays in the store", |path| !path.starts_with("store/"), &["rusqlite"]);
}

#[test]
fn only_clients_know_reqwest() {
    let may =
        |path: &str| path.starts_with("xen/") || path.starts_with("sim/") || path == "app/images/fetch.rs";
    nowhere("reqwest stays in the client", |path| !may(path), &["reqwest"]);
}

#[test]
fn shells_never_call_each_other() {
    for (own, others) in [
        ("dhcp/", &["crate::tftp", "crate::http", "crate::provision", "crate::xen", "crate::app"][..]),
        ("tftp/", &["crate::dhcp", "crate::http", "crate::provision", "crate::xen", "crate::app"]),
        ("http/", &["crate::dhcp", "crate::tftp", "crate::provision", "crate::xen", "crate::app"]),
        ("store/sqlite", &["crate::dhcp", "crate::http", "crate::xen", "crate::app", "crate::provision"]),
        ("xen/", &["crate::dhcp", "crate::http", "crate::store", "crate::app", "crate::provision"]),
        ("provision/", &["crate::dhcp", "crate::tftp", "crate::http", "crate::app", "crate::cli"]),
        ("boot/", &["crate::dhcp", "crate::http", "crate::provision", "crate::xen", "crate::store"]),
        ("app/", &["crate::cli"]),
    ] {
        nowhere("nothing points up or sideways", |path| path.starts_with(own), others);
    }
}

#[test]
fn only_the_command_line_knows_the_simulator() {
    let may = |path: &str| path.starts_with("sim/") || path.starts_with("cli/") || path == "lib.rs";
    nowhere("the server knows nothing of the simulator", |path| !may(path), &["crate::sim", "sim::"]);
    let serving =
        |path: &str| ["cli/serve.rs", "cli/check.rs", "cli/deploy.rs", "cli/jobs.rs"].contains(&path);
    nowhere("nor do its commands", serving, &["crate::sim", "sim::"]);
}

#[test]
fn the_table_is_nested_and_never_matches_on_a_pair() {
    nowhere(
        "no tuple match hides tomorrow's state",
        |path| path == "provision/step.rs",
        &["match (state, event)", "match (job.state, event)"],
    );
}

/// Lines that a file may have, tests not counted; the transition table alone may have more.
const FILE_LINES: usize = 600;
const TABLE_LINES: usize = 750;

/// Lines that a function may have.
const FUNCTION_LINES: usize = 70;

#[test]
fn files_and_functions_stay_short() {
    let mut long = Vec::new();
    for source in sources() {
        let limit = if source.path == "provision/step.rs" { TABLE_LINES } else { FILE_LINES };
        let lines = source.code.lines().count();
        if lines > limit {
            long.push(format!("src/{}: {lines} lines", source.path));
        }
        let table = source.path == "provision/step.rs";
        for (name, lines) in functions(&source.code).into_iter().filter(|(_, lines)| *lines > FUNCTION_LINES)
        {
            if !table {
                long.push(format!("src/{}: {name} has {lines} lines", source.path));
            }
        }
    }
    assert!(long.is_empty(), "too long:\n{}", long.join("\n"));
}

/// Functions by name with their lines: from `fn` to the brace at the same indent (rustfmt sees to that).
fn functions(code: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let Some((before, after)) = words.split_once("fn ") else { continue };
        let modifiers = ["pub", "const", "async", "unsafe", "extern"];
        let is_head =
            before.split_whitespace().all(|word| modifiers.iter().any(|known| word.starts_with(known)));
        if !is_head || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let end = lines[at + 1..].iter().position(|later| {
            indent(later) == indent(line) && (later.trim() == "}" || later.trim_end().ends_with(';'))
        });
        let name = after.split(['(', '<']).next().unwrap_or_default().to_owned();
        found.extend(end.map(|end| (name, end + 2)));
    }
    found
}

#[test]
fn every_module_begins_with_what_it_does() {
    for path in files(&root().join("src"), ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        let tests = path.to_str().unwrap().contains("tests");
        assert!(tests || text.starts_with("//!"), "{}", path.display());
    }
}

#[test]
fn nothing_is_left_open() {
    let words = ["todo!(", "unimplemented!(", "dbg!("];
    nowhere("nothing is left open", |_| true, &words);
    for path in files(&root().join("docs"), ".md").into_iter().chain([root().join("README.md")]) {
        let text = fs::read_to_string(&path).unwrap();
        for word in ["TODO", "FIXME", "TBD"] {
            assert!(!text.contains(word), "{} says {word}", path.display());
        }
    }
}

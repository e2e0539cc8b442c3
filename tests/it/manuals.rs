//! What the documentation says, held against the program: commands parse, reasons and keys are all there, links lead
//! somewhere.

use std::path::{Path, PathBuf};

use bootflip::{cli::Cli, provision::reason::Reason, sim::pool::VmSpec};
use clap::{CommandFactory, error::ErrorKind};
use sha2::Digest;

use crate::common::site::{Plan, Site, vm};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let mut pages: Vec<PathBuf> =
        docs.filter(|path| path.extension().is_some_and(|end| end == "md")).collect();
    pages.push(root().join("README.md"));
    pages.sort();
    pages
}

/// The commands of a page: lines of indented blocks, and what stands between backquotes.
fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in page.lines() {
        if let Some(line) = line.strip_prefix("    ") {
            found.extend(line.trim().strip_prefix("bootflip ").map(str::to_owned));
        } else {
            let quoted = line.split('`').skip(1).step_by(2);
            found.extend(quoted.filter_map(|text| text.strip_prefix("bootflip ")).map(str::to_owned));
        }
    }
    found
}

/// The words of a command; `None`: it is a form with choices or gaps, and no command.
fn words(command: &str) -> Option<Vec<String>> {
    let command =
        command.split(" #").next()?.split(" && ").next()?.split(" | ").next()?.split(" > ").next()?.trim();
    let gap = ["…", "[", "|", "<", "..."].iter().any(|gap| command.contains(gap));
    let quoted = command.replace("{01..20}", "01");
    (!gap).then(|| quoted.split_whitespace().map(|word| word.trim_matches(['"', '\'']).to_owned()).collect())
}

/// A command that is only named: `bootflip deploy`, `bootflip jobs show`.
fn is_name(words: &[String]) -> bool {
    let mut command = Cli::command();
    for word in words {
        match command.find_subcommand(word).cloned() {
            Some(inner) => command = inner,
            None => return false,
        }
    }
    true
}

#[test]
fn every_command_in_the_documentation_is_one() {
    let mut tried = 0;
    let mut wrong = Vec::new();
    for page in pages() {
        for command in commands(&std::fs::read_to_string(&page).unwrap()) {
            let Some(words) = words(&command) else { continue };
            if is_name(&words) {
                continue;
            }
            tried += 1;
            let line = std::iter::once("bootflip".to_owned()).chain(words);
            if let Err(error) = Cli::command().try_get_matches_from(line)
                && error.use_stderr()
                // `bootflip render script` names what it is about, and leaves out of which VM.
                && error.kind() != ErrorKind::MissingRequiredArgument
            {
                wrong.push(format!("{}: bootflip {command}: {error}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(tried >= 40, "only {tried} commands were found");
}

#[test]
fn troubleshooting_has_every_reason_once() {
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    for reason in Reason::ALL {
        let rows = page.lines().filter(|line| line.starts_with(&format!("| `{}` |", reason.label()))).count();
        assert_eq!(rows, 1, "{reason} has {rows} rows");
    }
    let known = |label: &str| Reason::ALL.iter().any(|reason| reason.label() == label);
    let part = page.split("## By reason").nth(1).unwrap();
    for row in part.lines().filter_map(|line| line.strip_prefix("| `")) {
        let label = row.split('`').next().unwrap();
        assert!(known(label), "{label} is no reason");
    }
}

#[test]
fn links_between_pages_lead_somewhere() {
    let mut wrong = Vec::new();
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            if !page.parent().unwrap().join(file).exists() {
                wrong.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The README's configuration of a real pool, with a certificate's print in the place of the cut one.
#[test]
fn configuration_of_the_readme_is_a_whole_one() {
    let page = std::fs::read_to_string(root().join("README.md")).unwrap();
    let block = page.split("bootflip.toml`, whole:\n").nth(1).unwrap();
    let block: String = block
        .lines()
        .skip_while(|line| line.is_empty())
        .take_while(|line| !line.is_empty())
        .fold(String::new(), |text, line| {
            text + line.strip_prefix("    ").expect("a line of the block") + "\n"
        });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bootflip.toml");
    std::fs::write(&path, block.replace("4f1c…", &"4f1c".repeat(16))).unwrap();
    std::fs::create_dir(folder.path().join("credentials")).unwrap();
    crate::common::site::write_secret(&folder.path().join("credentials/main"), "secret");
    let config = bootflip::config::load(&path).unwrap_or_else(|problems| panic!("{problems}"));
    assert!(config.pools.contains_key("main") && config.profiles.contains_key("debian"));
}

/// Profiles and variables that the pages' examples name.
const EXAMPLES: &str = r#"
[profile.ubuntu]
kernel = "mini/vmlinuz"
initrd = "mini/initrd"
args = "bootflip.answer={{ answer_url }}"
answer = "mini.j2"
[profile.debian]
kernel = "mini/vmlinuz"
initrd = "mini/initrd"
args = "bootflip.answer={{ answer_url }}"
answer = "mini.j2"
[profile.web]
kernel = "mini/vmlinuz"
initrd = "mini/initrd"
args = "bootflip.answer={{ answer_url }}"
answer = "mini.j2"
[profile.ubuntu-preseed]
kernel = "mini/vmlinuz"
initrd = "mini/initrd"
args = "bootflip.answer={{ answer_url }}"
answer = "mini.j2"
[machine.web1]
profile = "debian"
"#;

/// How commands begin that can run at a desk. Others want another host, the internet, root, or a machine that waits.
const AT_A_DESK: [&str; 31] = [
    "audit",
    "check",
    "completions",
    "deploy VM --profile P --plan",
    "deploy web1 --profile debian --reinstall --plan",
    "deploy web1 --profile debian --reinstall --wait",
    "deploy web1 --profile ubuntu-preseed --plan",
    "dhcp snippet",
    "doctor-guest",
    "image list",
    "image verify",
    "image gc",
    "jobs list",
    "jobs log",
    "jobs show",
    "loaders list",
    "loaders verify",
    "man DIR",
    "reload",
    "render ",
    "restore --all",
    "restore VM",
    "store ",
    "template lint",
    "template list",
    "template show",
    "token add",
    "token list",
    "token revoke alice",
    "vm list",
    "vm show",
];

/// As the pages have them, in the pages' order, against a server and a pool with one VM.
#[tokio::test(flavor = "multi_thread")]
async fn commands_of_the_pages_that_can_run_at_a_desk_run() {
    let spec = VmSpec { tags: vec!["web".to_owned()], ..vm("web1", 1) };
    let mut site = Site::new(Plan { more: EXAMPLES.to_owned(), ..Plan::of(vec![spec]) });
    let sums: String = ["mini/vmlinuz", "mini/initrd", "undionly.kpxe"]
        .iter()
        .map(|name| {
            let bytes = std::fs::read(site.path("root").join(name)).unwrap();
            format!("{}  {name}\n", bootflip::secret::hex(&sha2::Sha256::digest(bytes)))
        })
        .collect();
    std::fs::write(site.path("root/SHA256SUMS"), sums).unwrap();
    site.serve().await;
    site.until_known(1).await;
    site.run(&["deploy", "web1", "-p", "debian", "--reinstall", "--yes", "--wait"]).await.ended(0);
    let folder = site.path("examples").display().to_string();
    std::fs::create_dir(&folder).unwrap();
    let mut ran = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for page in pages() {
        for command in commands(&std::fs::read_to_string(&page).unwrap()) {
            let known = AT_A_DESK.iter().any(|begin| command.starts_with(begin));
            let Some(words) = words(&command).filter(|_| known && !command.contains("--create")) else {
                continue;
            };
            let words: Vec<String> = words
                .into_iter()
                .map(|word| match word.as_str() {
                    "VM" | "web-1" | "JOB" => "web1".to_owned(),
                    "P" => "debian".to_owned(),
                    "NAME" => "named".to_owned(),
                    "DIR" => folder.clone(),
                    _ => word.replace("/var/backups", &folder),
                })
                .collect();
            let needs_more = is_name(&words) && words.len() > 1 && ["show", "log"].contains(&&*words[1]);
            let needs_more = needs_more || words == ["render", "script"];
            if needs_more || words.contains(&"my/*.j2".to_owned()) || !ran.insert(words.clone()) {
                continue;
            }
            let arguments: Vec<&str> =
                words.iter().map(String::as_str).chain((words[0] == "deploy").then_some("--yes")).collect();
            // Shown where one fails, or never ends.
            println!("bootflip {}", arguments.join(" "));
            let came = site.run(&arguments).await;
            // The VM has run: a plan without --reinstall refuses it, with the reason.
            let refused = words.contains(&"--plan".to_owned()) && came.code == Some(3);
            if came.code != Some(0) && !refused {
                wrong.push(format!(
                    "{}: bootflip {command}: {:?}: {}{}",
                    page.display(),
                    came.code,
                    came.said,
                    came.out
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(ran.len() >= 35, "only {} commands ran: {ran:?}", ran.len());
}

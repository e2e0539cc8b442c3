//! `bootflip template …` and `bootflip render`, as an operator uses them.

use std::process::Command;

use crate::common::site::{Plan, Ran, Site, vm, write_secret};

fn template(arguments: &[&str]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bootflip"));
    Ran::of(command.arg("template").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap())
}

/// The five broken templates of the documentation.
#[test]
fn lint_names_file_line_and_what_of_five_broken_templates() {
    let folder = "tests/data/templates";
    let files = ["syntax.j2", "variable.j2", "filter.j2", "escape.j2", "script.ipxe.j2"];
    let expected: [&[&str]; 5] = [
        &["4: syntax error: unexpected end of input, expected end of block"],
        &[
            "1: no profile has a variable `hostnme`; did you mean `hostname`?",
            "3: there is no `proxy`; known: machine, disk, vars, profile, pool, server, log, answer_url, seed_url, \
             file_urls, report_url, booted_url, pv_ready_url, report_script, pv_ready_script, boot",
        ],
        &["2: there is no template `boted.sh.j2`", "3: there is no filter `shellquote`"],
        &[
            "3: a value of people goes into the file as it is here; end it with `|yaml`",
            "6: a value of people goes into the file as it is here; end it with `|yaml`",
        ],
        &[
            "4: the iPXE of XenServer's firmware (2012) has no option `--timeout` for `kernel`",
            "4: there is no label `failed`",
        ],
    ];
    for (file, flaws) in files.iter().zip(expected) {
        let path = format!("{folder}/{file}");
        let lines: String = flaws.iter().map(|flaw| format!("{path}:{flaw}\n")).collect();
        let ran = template(&["lint", &path]).ended(1);
        assert_eq!(ran.out, lines);
    }
    let paths: Vec<String> = files.iter().map(|file| format!("{folder}/{file}")).collect();
    let mut all = vec!["lint", "--json"];
    all.extend(paths.iter().map(String::as_str));
    let found = template(&all).ended(1).json();
    assert_eq!(found.as_array().unwrap().len(), expected.iter().map(|flaws| flaws.len()).sum::<usize>());
    assert_eq!((&found[0]["file"], &found[0]["line"]), (&paths[0].clone().into(), &4.into()));
}

#[test]
fn lint_is_content_with_what_the_program_brings_along_and_says_what_it_cannot_read() {
    let paths: Vec<String> = std::fs::read_dir("config/templates")
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .collect();
    let mut all = vec!["lint"];
    all.extend(paths.iter().map(String::as_str));
    assert_eq!(template(&all).ended(0).out, "");
    template(&["lint", "nowhere.j2"]).ended(2).says("cannot read nowhere.j2");
    template(&["lint", "--nosuch"]).ended(2);
    template(&["show", "nosuch.j2"]).ended(2).says("there is no template nosuch.j2");
    assert_eq!(
        template(&["show", "booted.sh.j2"]).ended(0).out,
        std::fs::read_to_string("config/templates/booted.sh.j2").unwrap()
    );
    let listed = template(&["list"]).ended(0);
    listed.says("user-data.j2");
    listed.says("built-in");
}

const MORE: &str = r#"
[syslog]
listen = "127.0.0.1:0"
[profile.ubuntu-preseed]
base = "ubuntu-preseed"
[profile.ubuntu-autoinstall]
base = "ubuntu-autoinstall"
[profile.debian]
base = "debian"
[profile.alma-kickstart]
base = "alma-kickstart"
[profile.rescue]
base = "rescue"
[profile.custom]
base = "custom"
[profile.own]
base = "custom"
kernel = "own/linux"
args = "url={{ answer_url }} {{ vars.role|karg }}"
answer = "own.j2"
[profile.own.variables]
role = "web"
[machine.web-1.variables]
timezone = "Europe/Berlin"
root_password_hash = { file = "root.hash" }
[group.all]
members = "name~web-*"
variables = { timezone = "Asia/Tokyo", locale = "fr_FR.UTF-8" }
"#;

/// Each profile's every file, of a VM in a simulated pool, before a server runs.
#[tokio::test(flavor = "multi_thread")]
async fn render_shows_each_file_of_each_profile_and_no_secret_unless_asked() {
    let site = Site::new(Plan::of(vec![vm("web-1", 1)]));
    write_secret(&site.path("root.hash"), "$6$salt$hash\n");
    site.reconfigure(|text| {
        let own = "template_dir = \"templates\"\n";
        format!("{own}{text}{MORE}")
    });
    std::fs::create_dir_all(site.path("templates")).unwrap();
    std::fs::write(
        site.path("templates/own.j2"),
        "role {{ vars.role|shquote }} of {{ machine.name|shquote }}\n",
    )
    .unwrap();
    let parts = |base: &str| -> Vec<&str> {
        match base {
            "ubuntu-preseed" | "debian" => vec!["args", "script", "pxelinux", "answer preseed"],
            "ubuntu-autoinstall" => {
                vec![
                    "args",
                    "script",
                    "pxelinux",
                    "answer user-data",
                    "answer meta-data",
                    "answer vendor-data",
                ]
            }
            "alma-kickstart" => vec!["args", "script", "pxelinux", "answer kickstart"],
            "own" => vec!["args", "script", "pxelinux", "answer own"],
            _ => vec!["args", "script", "pxelinux"],
        }
    };
    for profile in ["ubuntu-preseed", "ubuntu-autoinstall", "debian", "alma-kickstart", "rescue", "own"] {
        let ran = site.run(&["render", "all", "--vm", "web-1", "--profile", profile]).await.ended(0);
        let heads: Vec<&str> =
            ran.out.lines().filter_map(|line| line.strip_prefix("==> ")?.strip_suffix(" <==")).collect();
        assert_eq!(heads, parts(profile), "{profile}");
        assert!(!ran.out.contains("$6$salt$hash"), "{}", ran.out);
        if parts(profile).len() > 3 && profile != "own" {
            // The machine's over its group's; its group's over the profile's.
            assert!(ran.out.contains("Europe/Berlin") && ran.out.contains("fr_FR.UTF-8"), "{}", ran.out);
            assert!(!ran.out.contains("Asia/Tokyo") && ran.out.contains("HIDDEN"), "{}", ran.out);
            let asked =
                site.run(&["render", "answer", "--vm", "web-1", "-p", profile, "--secrets"]).await.ended(0);
            assert!(asked.out.contains("$6$salt$hash"), "{}", asked.out);
        }
    }
    let meta = ["render", "answer", "--vm", "web-1", "-p", "ubuntu-autoinstall", "--file", "meta-data"];
    site.run(&meta).await.ended(0).says("local-hostname: \"web-1\"");
    let none = ["render", "answer", "--vm", "web-1", "-p", "ubuntu-autoinstall", "--file", "x"];
    site.run(&none).await.ended(2).says("it has: user-data, meta-data, vendor-data");
    site.run(&["render", "all", "--vm", "web-1", "-p", "custom"]).await.ended(2).says("has no boot files");
    site.run(&["template", "lint"]).await.ended(0);
    site.run(&["template", "list"]).await.ended(0).says("own.j2");
}

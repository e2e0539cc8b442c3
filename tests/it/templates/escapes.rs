//! Whatever a value holds, each filter gives what is read back as that value in its context, or refuses it. Who reads is
//! the program of the field or its parser; for kernel arguments, the kernel's own rules.

use std::{collections::BTreeMap, process::Command};

use bootflip::boot::render::{RenderError, Templates};
use serde_json::{Value, json};

use super::{Served, asked, fed, good, python};
use crate::common::programs::missing;

/// Values of each run.
const VALUES: usize = 600;

/// Texts that break things, and made-up ones from a seed: every kind of character, with those in plenty that mean something
/// somewhere.
fn values(seed: u64) -> Vec<String> {
    let fixed = [
        "",
        " ",
        "a",
        " a",
        "a ",
        "it's",
        "''",
        "'",
        "\"",
        "\\",
        "a\\",
        "\\n",
        "$(reboot)",
        "`x`",
        "${net0/mac}",
        "||",
        "&&",
        "#x",
        "a#b",
        "-rf",
        "--",
        "~",
        "*",
        "!",
        "a=b",
        "no",
        "null",
        "1e3",
        "0x10",
        "2026-11-28",
        "- a",
        "a: b",
        "&a",
        "%end",
        "%include x",
        "@core",
        "a\nb",
        "a\r\nb",
        "a\tb",
        "\0",
        "\u{7f}",
        "\u{85}",
        "\u{a0}",
        "à",
        "ü",
        "\u{2028}",
        "\u{2029}",
        "\u{feff}a",
        "\u{202e}",
        "\u{fffe}",
        "\u{1f600}",
        "日本",
        "{{ x }}",
        "{% x %}",
        "<<END",
        "END",
        "a;b",
        "(x)",
        "\u{b}",
        "\u{1c}",
    ];
    let alphabet: Vec<char> =
        " '\"\\$`#&|;%{}=:-~!*\n\t\r\0aZ09äà日\u{85}\u{a0}\u{2028}\u{200b}\u{1f600}".chars().collect();
    let mut state = seed;
    let mut next = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let mut all: Vec<String> = fixed.iter().map(|text| (*text).to_owned()).collect();
    while all.len() < VALUES {
        let length = 1 + next(8);
        let text = (0..length).map(|_| match next(8) {
            0 => char::from_u32(u32::try_from(next(0x11_0000)).unwrap()).unwrap_or('x'),
            _ => alphabet[next(alphabet.len())],
        });
        all.push(text.collect());
    }
    all
}

/// What a filter makes of each value: its text, or the refusal.
fn filtered(filter: &str) -> Vec<(String, Result<String, RenderError>)> {
    let source = format!("{{{{ vars.value|{filter} }}}}");
    let overrides = BTreeMap::from([("t.j2".to_owned(), source)]);
    let mut served =
        Served::of("[profile.p]\nkernel = \"k\"\nargs = \"{{ answer_url }}\"\nanswer = \"t.j2\"\n");
    served.templates = Templates::new(overrides).unwrap();
    let render = |value: String| {
        served.armed.variables.insert("value".into(), json!(value));
        let rendered = served.templates.render_answer(&served.armed, &served.urls);
        (value, rendered.map(Option::unwrap))
    };
    values(42).into_iter().map(render).collect()
}

/// The values that went through, with what came of them; the others were refused in clear words, for a reason.
fn through(filter: &str, may_refuse: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let all = filtered(filter);
    let mut passed = Vec::new();
    for (value, result) in all {
        match result {
            Ok(text) => passed.push((value, text)),
            Err(error) => {
                assert!(may_refuse(&value), "{filter} refuses {value:?}: {error}");
                assert!(error.problem.starts_with(&format!("`vars.value|{filter}`: ")), "{error}");
                assert!(error.problem.contains("cannot") || error.problem.contains("no"), "{error}");
            }
        }
    }
    assert!(passed.len() > 60, "{filter}: {} pass", passed.len());
    passed
}

fn control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

#[test]
fn a_shell_reads_every_word_back() {
    for filter in ["shquote", "shquote(true)"] {
        let passed = match filter {
            "shquote" => through(filter, |value| value.contains('\0')),
            _ => filtered(filter).into_iter().filter_map(|(value, text)| Some((value, text.ok()?))).collect(),
        };
        for shell in ["dash", "busybox"] {
            if missing(shell) {
                continue;
            }
            let mut command = Command::new(shell);
            if shell == "busybox" {
                command.arg("sh");
            }
            let script: String = passed.iter().map(|(_, word)| format!("printf '%s\\0' {word}\n")).collect();
            let output = fed(&mut command, script.as_bytes());
            good(&output, filter);
            let read: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
            assert_eq!(read.len(), passed.len() + 1);
            for ((value, word), read) in passed.iter().zip(read) {
                assert_eq!(read, value.as_bytes(), "{shell}: {word}");
            }
        }
    }
}

#[test]
fn yaml_is_read_back_as_the_same_value() {
    let name = "yaml_is_read_back_as_the_same_value";
    for filter in ["yaml", "tojson"] {
        // JSON stands in YAML where its characters are printable there; tojson is for JSON.
        let passed = through(filter, |_| false);
        let program = match filter {
            "yaml" => {
                "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer.read()), sys.stdout)"
            }
            _ => "import json, sys; json.dump(json.load(sys.stdin), sys.stdout)",
        };
        let document = match filter {
            "yaml" => passed.iter().map(|(_, text)| format!("- key: {text}\n")).collect(),
            _ => format!(
                "[{}]",
                passed.iter().map(|(_, text)| format!("{{\"key\": {text}}}")).collect::<Vec<_>>().join(",")
            ),
        };
        let Some(mut python) = python(name) else { return };
        let read = asked(&mut python, program, document.as_bytes());
        let expected: Vec<Value> = passed.iter().map(|(value, _)| json!({ "key": value })).collect();
        assert_eq!(read, json!(expected));
    }
}

#[test]
fn kickstart_words_are_read_back_by_pykickstart() {
    let ends_line = |value: &str| control(value) || value.contains(['\u{2028}', '\u{2029}']);
    let passed = through("kickstart", |value| ends_line(value) || value == "--");
    let name = "kickstart_words_are_read_back_by_pykickstart";
    let Some(mut reader) = python(name) else { return };
    let program = "
import json, sys
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion, RHEL9
parser = KickstartParser(makeVersion(RHEL9), followIncludes=False)
parser.readKickstartFromString(sys.stdin.buffer.read().decode())
json.dump([user.gecos for user in parser.handler.user.userList], sys.stdout)
";
    let lines = passed.iter().enumerate().map(|(n, (_, word))| format!("user --name=u{n} --gecos={word}\n"));
    let read = asked(&mut reader, program, lines.collect::<String>().as_bytes());
    let expected: Vec<&String> = passed.iter().map(|(value, _)| value).collect();
    assert_eq!(read, json!(expected));

    let lines = through("kickstart_line", |_| true);
    let program = "
import json, sys
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion, RHEL9
parser = KickstartParser(makeVersion(RHEL9), followIncludes=False)
seen = []
parser.handler.packages.add = lambda packages: seen.extend(packages)
parser.readKickstartFromString(sys.stdin.buffer.read().decode())
json.dump([line.rstrip('\\n') for line in seen], sys.stdout)
";
    let body: String = lines.iter().map(|(_, line)| format!("{line}\n")).collect();
    let Some(mut reader) = python(name) else { return };
    let read = asked(&mut reader, program, format!("%packages\n{body}%end\n").as_bytes());
    let expected: Vec<&String> = lines.iter().map(|(value, _)| value).collect();
    assert_eq!(read, json!(expected));
}

#[test]
fn debconf_reads_every_preseed_line_back() {
    let may_refuse = |value: &str| control(value) || value.contains('\\') || value.trim() != value;
    let passed = through("preseed_line", may_refuse);
    if missing("debconf-set-selections") || missing("debconf-communicate") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("debconf.conf");
    let text = format!(
        "Config: configdb\nTemplates: templatedb\n\nName: configdb\nDriver: File\nFilename: {0}/config.dat\n\n\
         Name: templatedb\nDriver: File\nFilename: {0}/templates.dat\n",
        folder.path().display()
    );
    std::fs::write(&settings, text).unwrap();
    let with_settings = |program: &str| {
        let mut command = Command::new(program);
        command
            .env("DEBCONF_SYSTEMRC", &settings)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .env("LC_ALL", "C.UTF-8");
        command
    };
    let lines: String =
        passed.iter().enumerate().map(|(n, (_, line))| format!("d-i test/q{n} string {line}\n")).collect();
    good(&fed(&mut with_settings("debconf-set-selections"), lines.as_bytes()), "set");
    let asks: String = (0..passed.len()).map(|n| format!("GET test/q{n}\n")).collect();
    let output = fed(&mut with_settings("debconf-communicate"), asks.as_bytes());
    good(&output, "get");
    let read = String::from_utf8(output.stdout).unwrap();
    let read: Vec<&str> = read.split_terminator('\n').map(|line| line.strip_prefix('0').unwrap()).collect();
    assert_eq!(read.len(), passed.len());
    for ((value, _), read) in passed.iter().zip(read) {
        // The answer is `0 VALUE`, and its reader drops the blank.
        assert_eq!(read.strip_prefix(' ').unwrap_or(read), value);
    }
}

/// Linux, lib/cmdline.c, `next_arg`: blanks end an argument outside of quotes; the byte A0 is one in its table.
fn kernel_reads(line: &[u8]) -> Vec<Vec<u8>> {
    let (mut arguments, mut current, mut quoted) = (Vec::new(), Vec::new(), false);
    for byte in line.iter().chain(b" ") {
        let blank = matches!(byte, b' ' | 9..=13 | 0xa0);
        if blank && !quoted {
            if !current.is_empty() {
                arguments.push(std::mem::take(&mut current));
            }
        } else if *byte == b'"' {
            quoted = !quoted;
        } else {
            current.push(*byte);
        }
    }
    arguments
}

#[test]
fn the_kernel_reads_every_argument_back() {
    let may_refuse =
        |value: &str| control(value) || value.contains('"') || value.bytes().any(|byte| byte == 0xa0);
    for (value, text) in through("karg", may_refuse) {
        let line = format!("quiet name={text} last");
        let expected = [b"quiet".to_vec(), [b"name=", value.as_bytes()].concat(), b"last".to_vec()];
        assert_eq!(kernel_reads(line.as_bytes()), expected, "{line}");
    }
}

/// iPXE, core/exec.c: words end at blanks, `#` begins a comment, `${` a setting, `||` and `&&` stand between commands.
#[test]
fn ipxe_reads_every_word_back() {
    let may_refuse = |value: &str| {
        let means = value.is_empty()
            || value.starts_with('#')
            || value.contains("${")
            || ["||", "&&"].contains(&value);
        means || control(value) || value.contains(' ')
    };
    for (value, text) in through("ipxe", may_refuse) {
        let line = format!("kernel {text} x");
        let words: Vec<&str> = line.split(|c: char| c.is_ascii_whitespace() || c == '\u{b}').collect();
        assert_eq!(words, ["kernel", value.as_str(), "x"]);
    }
}

#[test]
fn names_of_hosts_and_netmasks_are_judged() {
    let render = |source: &str| {
        let mut served =
            Served::of("[profile.p]\nkernel = \"k\"\nargs = \"{{ answer_url }}\"\nanswer = \"t.j2\"\n");
        served.templates = Templates::new(BTreeMap::from([("t.j2".to_owned(), source.to_owned())])).unwrap();
        served
            .templates
            .render_answer(&served.armed, &served.urls)
            .map(Option::unwrap)
            .map_err(|error| error.problem)
    };
    for name in ["web1", "web-1", "WEB.example.org", "1"] {
        assert_eq!(render(&format!("{{{{ '{name}'|hostname }}}}")).unwrap(), name);
    }
    for name in ["", "web 1", "-a", "a-", "a..b", "ü", "a_b", &"a".repeat(64), &["a"; 40].join(".")] {
        assert!(
            render(&format!("{{{{ '{name}'|hostname }}}}")).unwrap_err().contains("a host can have"),
            "{name}"
        );
    }
    for (mask, prefix) in
        [("255.255.255.0", "24"), ("255.255.255.255", "32"), ("0.0.0.0", "0"), ("255.255.255.128", "25")]
    {
        assert_eq!(render(&format!("{{{{ '{mask}'|prefix }}}}")).unwrap(), prefix);
    }
    for mask in ["255.0.255.0", "24", "", "255.255.255"] {
        assert!(
            render(&format!("{{{{ '{mask}'|prefix }}}}")).unwrap_err().contains("not a netmask"),
            "{mask}"
        );
    }
}

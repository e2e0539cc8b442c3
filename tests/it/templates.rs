//! The profiles that the program brings along: what they render to is read by the programs that read it in the field,
//! or by their parsers.

mod command;
mod escapes;
mod files;

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use bootflip::{
    boot::{
        ArmPhase, Armed,
        render::{Templates, Urls},
    },
    config::{Config, Surroundings, load_in},
    secret::{TokenKey, TokenUse},
    xen::version::XenVersion,
};
use serde_json::Value;

use crate::common::{programs::skip, site::write_secret};

const BASE: &str = r#"[server]
name = "a"
[pool.main]
url = "https://10.0.0.10"
user = "bootflip"
password_file = "root.hash"
tls = "insecure"
[http]
listen = "10.1.0.2:8080"
"#;

/// A configuration with these sections more.
pub(crate) fn config(more: &str) -> Config {
    let folder = tempfile::tempdir().unwrap();
    write_secret(&folder.path().join("root.hash"), "$6$salt$hash\n");
    std::fs::write(folder.path().join("keys.pub"), "# mine\nssh-ed25519 AAAA it's me\n\nssh-rsa BBBB you\n")
        .unwrap();
    let file = folder.path().join("bootflip.toml");
    std::fs::write(&file, format!("{BASE}{more}")).unwrap();
    load_in(&file, &Surroundings::default()).unwrap_or_else(|problems| panic!("{problems}"))
}

/// What a machine is served with the profile `p` of this configuration.
#[derive(Debug)]
struct Served {
    armed: Armed,
    templates: Templates,
    urls: Urls,
}

impl Served {
    fn of(more: &str) -> Self {
        let profile = config(more).profiles["p"].clone();
        let token = |usage| TokenKey::new([7; 32]).token("j", 1, usage);
        let armed = Armed {
            job: "j".into(),
            attempt: 1,
            vm_name: "web1".into(),
            vm_uuid: "4e6a0b1c-0000-4000-8000-000000000001".into(),
            mac: "02:16:3e:00:00:0a".parse().unwrap(),
            render: token(TokenUse::Render),
            report: token(TokenUse::Report),
            booted: token(TokenUse::Booted),
            files: profile.boot.unwrap(),
            profile: profile.name,
            variables: profile.variables,
            disk: Some(("1".into(), 10 << 30)),
            xen: Some(XenVersion::new(4, 13)),
            phase: ArmPhase::Booting,
        };
        let urls = Urls::new("http://10.1.0.2:8080").with_log(Some("10.1.0.2:514".parse().unwrap()));
        Self { armed, templates: Templates::new(BTreeMap::new()).unwrap(), urls }
    }

    /// With this job's tokens replaced by their names.
    fn named(&self, text: &str) -> String {
        text.replace(self.armed.render.expose(), "RENDER")
            .replace(self.armed.report.expose(), "REPORT")
            .replace(self.armed.booted.expose(), "BOOTED")
    }

    fn args(&self) -> String {
        self.named(&self.templates.render_args(&self.armed, &self.urls).unwrap())
    }

    #[track_caller]
    fn file(&self, name: &str) -> String {
        let rendered = self.templates.render_answer_named(&self.armed, &self.urls, name);
        self.named(&rendered.unwrap_or_else(|error| panic!("{error}")).unwrap())
    }
}

/// Runs a program with this input.
#[track_caller]
fn fed(command: &mut Command, input: &[u8]) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let feeder = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap();
    output
}

#[track_caller]
fn good(output: &Output, what: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{}\n{what}", String::from_utf8_lossy(&output.stdout));
}

/// Where `tests/templates/prepare.sh` puts PyYAML and pykickstart.
fn python_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/python")
}

/// A Python with these modules; `None`: it is missing, which is told.
fn python(test: &str) -> Option<Command> {
    if !python_folder().join("yaml").is_dir() || !python_folder().join("pykickstart").is_dir() {
        skip(test, "no PyYAML or pykickstart; tests/templates/prepare.sh brings them");
        return None;
    }
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", python_folder()).env("PYTHONDONTWRITEBYTECODE", "1");
    Some(command)
}

/// Runs a Python program; gives what it prints as JSON.
#[track_caller]
fn asked(python: &mut Command, program: &str, input: &[u8]) -> Value {
    let output = fed(python.args(["-c", program]), input);
    good(&output, &String::from_utf8_lossy(input));
    serde_json::from_slice(&output.stdout).unwrap()
}

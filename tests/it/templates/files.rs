//! Each shipped profile's files.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use super::{Served, asked, fed, good, python, python_folder};
use crate::common::programs::missing;

/// Everything that a profile can be told, with values that want quoting.
const TOLD: &str = r#"[profile.p.variables]
locale = "de_DE.UTF-8"
keymap = "de"
timezone = "Europe/Berlin"
proxy = "http://10.1.0.1:3128"
packages = ["vim", "tmux"]
root_password_hash = { file = "root.hash" }
ssh_keys = { file = "keys.pub" }
late_commands = ["echo \"it's done\" > /etc/motd", "systemctl disable \"x\""]
kernel_args = "quiet"
address = "10.1.0.20"
netmask = "255.255.255.128"
gateway = "10.1.0.1"
dns = ["10.1.0.1", "10.1.0.9"]
hostname = "web1.example.org"
[profile.p.variables.users.alice]
password_hash = { file = "root.hash" }
ssh_keys = { file = "keys.pub" }
groups = ["adm", "docker"]
sudo = true
"#;

fn plain(base: &str) -> Served {
    Served::of(&format!("[profile.p]\nbase = \"{base}\"\n"))
}

fn told(base: &str) -> Served {
    Served::of(&format!("[profile.p]\nbase = \"{base}\"\n{TOLD}"))
}

/// Both ways, with the disk known and not.
fn all(base: &str) -> Vec<Served> {
    let mut without = told(base);
    without.armed.disk = None;
    vec![plain(base), told(base), without]
}

/// What the shell command writes to this path, which is one `printf` of the script.
#[track_caller]
fn written(script: &str, path: &str) -> String {
    let end = format!(" > {path}");
    let stop = script.find(&end).unwrap_or_else(|| panic!("nothing writes {path}:\n{script}"));
    let start = script[..stop].rfind("printf '%s\\n' ").unwrap();
    let output = Command::new("sh").arg("-c").arg(&script[start..stop]).output().unwrap();
    good(&output, script);
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn shell_accepts(script: &str) {
    for shell in ["dash", "busybox"] {
        if missing(shell) {
            continue;
        }
        let mut command = Command::new(shell);
        if shell == "busybox" {
            command.arg("sh");
        }
        good(&fed(command.arg("-n"), script.as_bytes()), script);
    }
}

/// The script that readies the new system, where these shell commands write it.
#[track_caller]
fn readies(writer: &str) {
    let script = written(writer, "/tmp/bootflip-pv-ready.sh");
    shell_accepts(&script);
    assert!(script.contains("--xen VERSION"));
}

/// The scripts that every installation ends with, as these shell commands write them.
#[track_caller]
fn late_is_whole(writers: &[&str], told: bool) {
    let script = |name: &str| {
        let path = format!("/tmp/bootflip-{name}.sh");
        let end = format!(" > {path}");
        let writer = writers.iter().find(|writer| writer.contains(&end));
        let script = written(writer.unwrap_or_else(|| panic!("nothing writes {path}")), &path);
        shell_accepts(&script);
        script
    };
    let (late, target) = (script("late"), script("target"));
    for line in ["report packages", "report late", "report done", "  poweroff -f"] {
        assert!(late.lines().any(|found| found == line), "{line}:\n{late}");
    }
    assert!(late.contains("bootflip-pv-ready --xen '4.13' --output"), "{late}");
    let booted = written(&target, "/usr/local/sbin/bootflip-booted");
    shell_accepts(&booted);
    assert!(booted.contains("http://10.1.0.2:8080/r/BOOTED/booted"), "{booted}");
    let unit = written(&target, "/etc/systemd/system/bootflip-booted.service");
    assert!(unit.contains("ExecStart=/bin/sh /usr/local/sbin/bootflip-booted"), "{unit}");
    assert_eq!(target.contains("usermod -p '$6$salt$hash' alice"), told);
    assert_eq!(target.contains("usermod -p '$6$salt$hash' root"), told);
    assert_eq!(
        target.contains("'ssh-ed25519 AAAA it'\\''s me' \\\n  'ssh-rsa BBBB you' | keys /home/alice alice"),
        told
    );
    assert_eq!(target.contains(r#"sh -ec 'echo "it'\''s done" > /etc/motd'"#), told);
}

fn value<'a>(lines: &'a [String], key: &str) -> &'a str {
    let found = lines.iter().find_map(|line| line.strip_prefix(key));
    found.unwrap_or_else(|| panic!("{key}")).trim_start()
}

#[test]
fn a_preseed_is_read_by_debconf_and_its_scripts_by_shells() {
    for served in ["ubuntu-preseed", "debian"].into_iter().flat_map(all) {
        let text = served.file("preseed");
        if !missing("debconf-set-selections") {
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("preseed");
            std::fs::write(&file, &text).unwrap();
            let output = Command::new("debconf-set-selections").arg("-c").arg(&file).output().unwrap();
            good(&output, &text);
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
        let lines: Vec<String> = text.replace("\\\n", " ").lines().map(str::to_owned).collect();
        let early = value(&lines, "d-i preseed/early_command string");
        shell_accepts(early);
        shell_accepts(&written(early, "/tmp/bootflip-report.sh"));
        shell_accepts(&written(early, "/tmp/bootflip-disk.sh"));
        let late = value(&lines, "d-i preseed/late_command string");
        shell_accepts(late);
        let is_told = served.armed.variables["timezone"] == "Europe/Berlin";
        late_is_whole(&[early, late], is_told);
        // Fetched: a line as long as that one ends debian-installer's reader.
        let fetch = written(early, "/tmp/bootflip-fetch.sh");
        shell_accepts(&fetch);
        assert!(
            fetch.contains("-O /tmp/bootflip-pv-ready.sh http://10.1.0.2:8080/a/RENDER/bootflip-pv-ready"),
            "{fetch}"
        );
        assert!(served.file("bootflip-pv-ready").contains("--xen VERSION"));
        // That reader takes a line for a pattern, and each slash in it for a folder that it keeps on its stack of 8 MiB.
        let stack = text.lines().map(|line| line.matches('/').count() * line.len()).max();
        assert!(stack < Some(2 << 20), "{stack:?}");
        let root = value(&lines, "d-i passwd/root-password-crypted password");
        assert_ne!(root, "!", "which the installer takes for no answer, and asks");
        assert_eq!(value(&lines, "d-i debian-installer/exit/poweroff boolean"), "true");
        assert_eq!(value(&lines, "d-i time/zone string"), if is_told { "Europe/Berlin" } else { "Etc/UTC" });
    }
    let hosts = ["ubuntu-preseed", "debian"].map(|base| {
        let text = plain(base).file("preseed");
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        value(&lines, "d-i mirror/http/hostname string").to_owned()
    });
    assert_eq!(hosts, ["archive.ubuntu.com", "ftp.debian.org"]);
}

#[test]
fn kernel_arguments_are_those_that_each_installer_wants() {
    let di = "auto=true priority=critical url=http://10.1.0.2:8080/a/RENDER/preseed interface=auto \
              BOOTIF=01-02-16-3e-00-00-0a netcfg/dhcp_timeout=60";
    let log = "log_host=10.1.0.2 log_port=514";
    for base in ["ubuntu-preseed", "debian"] {
        assert_eq!(
            plain(base).args(),
            format!("{di} locale=en_US.UTF-8 keymap=us hostname=web1 {log}  console=ttyS0 ---")
        );
        assert_eq!(
            told(base).args(),
            format!(
                "{di} locale=de_DE.UTF-8 keymap=de hostname=web1.example.org netcfg/disable_autoconfig=true \
                 netcfg/get_ipaddress=10.1.0.20 netcfg/get_netmask=255.255.255.128 netcfg/get_gateway=10.1.0.1 \
                 netcfg/get_nameservers=10.1.0.1 netcfg/confirm_static=true {log} quiet console=ttyS0 ---"
            )
        );
    }
    assert_eq!(
        plain("ubuntu-autoinstall").args(),
        "ip=dhcp url=http://10.1.0.2:8080/f/RENDER/ubuntu-autoinstall/live-server.iso autoinstall \
         cloud-config-url=/dev/null ds=nocloud-net;s=http://10.1.0.2:8080/a/RENDER/"
    );
    assert_eq!(
        told("alma-kickstart").args(),
        "inst.ks=http://10.1.0.2:8080/a/RENDER/kickstart inst.repo=https://repo.almalinux.org/almalinux/9/BaseOS/x86_64/os/ \
         ip=dhcp inst.proxy=http://10.1.0.1:3128 inst.syslog=10.1.0.2:514 inst.cmdline quiet console=ttyS0"
    );
    assert_eq!(plain("rescue").args(), "console=ttyS0");
}

const YAML: &str = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer.read()), sys.stdout)";

#[test]
fn a_seed_is_read_as_yaml_and_its_scripts_by_shells() {
    let Some(mut python) = python("a_seed_is_read_as_yaml_and_its_scripts_by_shells") else { return };
    for served in all("ubuntu-autoinstall") {
        let mut read = |name: &str| {
            let mut again = Command::new(python.get_program());
            again.envs(python.get_envs().filter_map(|(name, value)| Some((name, value?))));
            python = again;
            asked(&mut python, YAML, served.file(name).as_bytes())
        };
        assert!(served.file("user-data").starts_with("#cloud-config\n"));
        let answers = read("user-data")["autoinstall"].clone();
        let is_told = served.armed.variables["timezone"] == "Europe/Berlin";
        assert_eq!(answers["version"], json!(1));
        assert_eq!(answers["shutdown"], json!("poweroff"));
        assert_eq!(answers["timezone"], json!(if is_told { "Europe/Berlin" } else { "Etc/UTC" }));
        let hook =
            json!({ "type": "webhook", "endpoint": "http://10.1.0.2:8080/r/REPORT/event", "level": "DEBUG" });
        assert_eq!(answers["reporting"]["bootflip"], hook);
        let nic = &answers["network"]["ethernets"]["boot"];
        assert_eq!(nic["match"], json!({ "macaddress": "02:16:3e:00:00:0a" }));
        assert_eq!(nic["dhcp4"], json!(!is_told));
        assert_eq!(nic.get("addresses"), is_told.then(|| json!(["10.1.0.20/25"])).as_ref());
        let disk = &answers["storage"]["config"][0];
        let known = served.armed.disk.is_some();
        assert_eq!(
            disk["match"],
            if known { json!({ "path": "/dev/*db" }) } else { json!({ "size": "largest" }) }
        );
        let host = if is_told { "web1.example.org" } else { "web1" };
        assert_eq!(answers["user-data"]["hostname"], json!(host));
        let commands = |key: &str| answers[key][0].as_str().unwrap().to_owned();
        let early = commands("early-commands");
        shell_accepts(&early);
        shell_accepts(&written(&early, "/tmp/bootflip-report.sh"));
        assert_eq!(early.contains("[ \"$sectors\" = 20971520 ]"), known, "{early}");
        late_is_whole(&[&commands("late-commands")], is_told);
        readies(&commands("late-commands"));
        shell_accepts(&commands("error-commands"));
        let meta = read("meta-data");
        assert_eq!(meta, json!({ "instance-id": served.armed.vm_uuid, "local-hostname": host }));
        assert_eq!(read("vendor-data"), json!({}));
    }
}

const KICKSTART: &str = "
import json, sys
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion, RHEL9
handler = makeVersion(RHEL9)
parser = KickstartParser(handler, followIncludes=False)
parser.readKickstartFromString(sys.stdin.read())
network = handler.network.network[0]
json.dump({
    'scripts': [[s.type, s.inChroot, s.errorOnFail, s.interp, s.script] for s in handler.scripts],
    'packages': sorted(handler.packages.packageList), 'groups': [g.name for g in handler.packages.groupList],
    'power': handler.reboot.action, 'timezone': handler.timezone.timezone, 'url': handler.url.url,
    'network': [network.device, network.bootProto, network.ip, network.netmask, network.hostname, network.nameserver],
}, sys.stdout)
";

#[test]
fn a_kickstart_is_read_by_pykickstart_and_its_scripts_by_shells() {
    for served in all("alma-kickstart") {
        let text = served.file("kickstart");
        let name = "a_kickstart_is_read_by_pykickstart_and_its_scripts_by_shells";
        let Some(mut validator) = python(name) else { return };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ks.cfg");
        std::fs::write(&file, &text).unwrap();
        let program = python_folder().join("bin/ksvalidator");
        let output = validator.arg(program).args(["-v", "RHEL9", "-e"]).arg(&file).output().unwrap();
        good(&output, &text);
        let read = asked(&mut python(name).unwrap(), KICKSTART, text.as_bytes());
        let is_told = served.armed.variables["timezone"] == "Europe/Berlin";
        kickstart_is_whole(&read, is_told, served.armed.disk.is_some());
    }
}

fn kickstart_is_whole(read: &Value, told: bool, disk_known: bool) {
    let packages = if told {
        json!(["curl", "openssh-server", "tmux", "vim"])
    } else {
        json!(["curl", "openssh-server"])
    };
    assert_eq!((&read["packages"], &read["groups"]), (&packages, &json!(["core"])));
    // KS_SHUTDOWN, which is what `poweroff` is.
    assert_eq!(read["power"], json!(2));
    let network = match told {
        true => json!([
            "02:16:3e:00:00:0a",
            "static",
            "10.1.0.20",
            "255.255.255.128",
            "web1.example.org",
            "10.1.0.1,10.1.0.9"
        ]),
        false => json!(["02:16:3e:00:00:0a", "dhcp", "", "", "web1", ""]),
    };
    assert_eq!(read["network"], network);
    let scripts: Vec<&str> =
        read["scripts"].as_array().unwrap().iter().map(|script| script[4].as_str().unwrap()).collect();
    let [before, partitioned, after, failed] = scripts[..] else { panic!("{scripts:?}") };
    scripts.iter().for_each(|script| shell_accepts(script));
    shell_accepts(&written(before, "/tmp/bootflip-report.sh"));
    assert!(before.contains("bootflip-report.sh started"), "{before}");
    assert_eq!(before.contains("[ \"$sectors\" = 20971520 ]"), disk_known, "{before}");
    assert!(partitioned.contains("bootflip-report.sh partitioned"));
    assert!(after.contains("bootflip-report.sh base"));
    late_is_whole(&[after], told);
    readies(after);
    assert!(failed.contains("failed") && failed.contains("poweroff -f"), "{failed}");
}

/// The part that chooses the disk, run against a made-up machine.
#[test]
fn an_installer_stops_when_the_disk_is_not_the_one_that_was_named() {
    let sysfs = tempfile::tempdir().unwrap();
    let disk = |name: &str, sectors: &str| {
        let folder = sysfs.path().join("sys/block").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (file, text) in [("size", sectors), ("removable", "0"), ("ro", "0")] {
            std::fs::write(folder.join(file), text).unwrap();
        }
        std::fs::create_dir_all(sysfs.path().join("dev")).unwrap();
        std::fs::write(sysfs.path().join("dev").join(name), "").unwrap();
    };
    disk("xvda", "2048");
    disk("xvdb", "20971520");
    let chosen = |served: &Served| {
        let text = served.file("kickstart");
        let start = text.find("# The disk that the deployment names").unwrap();
        let part = &text[start..start + text[start..].find("disk=${disk#/dev/}").unwrap()];
        let here = sysfs.path().display().to_string();
        // A made-up device is a file.
        let part = part
            .replace("/sys/", &format!("{here}/sys/"))
            .replace("/dev/", &format!("{here}/dev/"))
            .replace("-b ", "-f ");
        let script = format!("give_up() {{ echo \"stop: $1\"; exit 1; }}\n{part}\necho \"$disk\"");
        let output = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().replace(&here, "")
    };
    let with = |disk: Option<(&str, u64)>| {
        let mut served = plain("alma-kickstart");
        served.armed.disk = disk.map(|(position, size)| (position.to_owned(), size));
        served
    };
    assert_eq!(chosen(&with(Some(("1", 10 << 30)))), "/dev/xvdb");
    assert_eq!(chosen(&with(Some(("0", 10 << 30)))), "stop: /dev/xvda has 2048 sectors, not 20971520");
    assert_eq!(chosen(&with(Some(("2", 10 << 30)))), "stop: disk 2 is not there");
    assert_eq!(chosen(&with(None)), "stop: not exactly one disk: xvda xvdb");
    std::fs::remove_dir_all(sysfs.path().join("sys/block/xvda")).unwrap();
    assert_eq!(chosen(&with(None)), "/dev/xvdb");
    assert!(Path::new("/dev/null").exists());
}

/// The end of an installation, run against a made-up system whose commands only say that they ran.
#[test]
fn the_end_of_an_installation_makes_accounts_and_reports_in_order() {
    let root = tempfile::tempdir().unwrap();
    let here = root.path().display().to_string();
    let at = |path: &str| root.path().join(path);
    for folder in ["stubs", "lib/systemd/system", "etc", "root", "home/alice", "var/log", "tmp"] {
        std::fs::create_dir_all(at(folder)).unwrap();
    }
    let ran = at("ran");
    let stub = |name: &str, body: &str| {
        let text = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{body}\n", ran.display());
        std::fs::write(at("stubs").join(name), text).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(at("stubs").join(name), mode).unwrap();
    };
    for name in ["usermod", "useradd", "groupadd", "chown", "poweroff", "sync", "systemctl", "sleep"] {
        stub(name, "");
    }
    stub("id", "[ \"$1\" = -gn ] && echo users");
    stub("getent", "[ \"$2\" = adm ]");
    // Into the new system: here it is the made-up one.
    stub(
        "chroot",
        "shift; case $1 in sh) shift; exec sh \"$@\";; *) echo '{\"ready\": true}' > READY;; esac",
    );
    let text = told("alma-kickstart").file("kickstart");
    let after = &text[text.find("%post ").unwrap()..];
    let moved = |script: &str| {
        let mut script = script.to_owned();
        for path in ["/usr/local/sbin", "/etc/", "/home/", "/lib/systemd", "/root", "/var/log"] {
            for before in [" ", "'", "\"", "\n"] {
                script = script.replace(&format!("{before}{path}"), &format!("{before}{here}{path}"));
            }
        }
        script.replace("/mnt/sysroot", &here).replace("/tmp/bootflip-", &format!("{here}/tmp/bootflip-"))
    };
    let script = |name: &str| written(after, &format!("/tmp/bootflip-{name}.sh"));
    std::fs::write(at("tmp/bootflip-target.sh"), moved(&script("target"))).unwrap();
    std::fs::write(at("tmp/bootflip-pv-ready.sh"), "").unwrap();
    std::fs::write(at("tmp/bootflip-report.sh"), format!("echo \"report $*\" >> {}", ran.display())).unwrap();
    let chroot = std::fs::read_to_string(at("stubs/chroot")).unwrap();
    let ready = chroot.replace("READY", &at("var/log/bootflip-pv-ready.json").display().to_string());
    std::fs::write(at("stubs/chroot"), ready).unwrap();
    let path = format!("{here}/stubs:{}", std::env::var("PATH").unwrap());
    let run = |ends_well: bool| {
        let _ = std::fs::remove_file(&ran);
        let output = fed(Command::new("sh").env("PATH", &path), moved(&script("late")).as_bytes());
        assert_eq!(output.status.success(), ends_well, "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read_to_string(&ran).unwrap()
    };
    let log = run(true);
    let reports: Vec<&str> = log.lines().filter(|line| line.starts_with("report ")).collect();
    assert_eq!(
        reports,
        ["report packages", "report ready {\"ready\": true}", "report late", "report done"],
        "{log}"
    );
    for line in [
        "usermod -p $6$salt$hash root",
        "usermod -p $6$salt$hash alice",
        "groupadd docker",
        "usermod -a -G docker alice",
        "systemctl disable x",
        "sync",
    ] {
        assert!(log.lines().any(|found| found == line), "{line}:\n{log}");
    }
    assert!(!log.contains("poweroff") && !log.contains("groupadd adm"), "{log}");
    let read = |path: &str| std::fs::read_to_string(at(path)).unwrap();
    let keys = "ssh-ed25519 AAAA it's me\nssh-rsa BBBB you\n";
    assert_eq!(
        (read("root/.ssh/authorized_keys").as_str(), read("home/alice/.ssh/authorized_keys").as_str()),
        (keys, keys)
    );
    assert_eq!(read("etc/sudoers.d/bootflip-alice"), "alice ALL=(ALL) NOPASSWD:ALL\n");
    assert_eq!(read("etc/motd"), "it's done\n");
    assert!(read("etc/systemd/system/bootflip-booted.service").starts_with("[Unit]\n"));
    assert!(at("etc/systemd/system/multi-user.target.wants/bootflip-booted.service").is_symlink());
    assert!(!at("usr/local/sbin/bootflip-target").exists());
    // A command of one's own that fails: the failure is told, with the log, and the machine goes off.
    stub("systemctl", "exit 1");
    let log = run(false);
    let lines: Vec<&str> = log.lines().collect();
    let told = "report failed the installed system could not be set up /tmp/anaconda.log";
    let failed = lines.iter().position(|line| *line == told).unwrap_or_else(|| panic!("{log}"));
    assert_eq!(lines[failed + 1..], ["poweroff -f", "sleep 600"]);
}

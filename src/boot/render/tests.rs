//! What machines are served, as text.

use std::{collections::BTreeMap, process::Command};

use serde_json::json;

use super::{lint::Dialect, *};
use crate::{
    boot::ArmPhase,
    config::{BootFiles, shipped::declarations, variables::defaults},
    secret::{TokenKey, TokenUse},
    xen::version::XenVersion,
};

const MAC: MacAddr = MacAddr::new([2, 0x16, 0x3e, 0, 0, 0x0a]);

fn armed(args: &str, answer: Option<&str>) -> Armed {
    let key = TokenKey::new([7; 32]);
    Armed {
        job: "j".into(),
        attempt: 1,
        vm_name: "web 1's".into(),
        vm_uuid: "0a1b".into(),
        mac: MAC,
        render: key.token("j", 1, TokenUse::Render),
        report: key.token("j", 1, TokenUse::Report),
        booted: key.token("j", 1, TokenUse::Booted),
        files: BootFiles {
            kernel: "/ubuntu/linux".into(),
            initrd: vec!["ubuntu/initrd.gz".into()],
            args: args.into(),
            answer: answer.map(Into::into),
            fetch: crate::config::Fetch::Http,
            seed: Vec::new(),
            files: Vec::new(),
        },
        profile: "ubuntu".into(),
        variables: variables(answer),
        disk: Some(("1".into(), 10 << 30)),
        xen: Some(XenVersion::new(4, 13)),
        phase: ArmPhase::Booting,
    }
}

/// A secret, and what the profile declares that has this answer file.
fn variables(answer: Option<&str>) -> BTreeMap<String, serde_json::Value> {
    let mut variables = match answer {
        Some("preseed.j2") => defaults(&declarations("ubuntu-preseed")),
        Some(_) | None => BTreeMap::new(),
    };
    if answer == Some("preseed.j2") {
        variables.insert("hostname".into(), json!("web1"));
    }
    variables.insert("root_password_hash".to_owned(), json!("$6$secret$hash"));
    variables
}

fn urls() -> Urls {
    Urls::new("http://10.0.0.2:8080/")
}

fn templates(overrides: &[(&str, &str)]) -> Templates {
    let overrides = overrides.iter().map(|(name, source)| ((*name).into(), (*source).into())).collect();
    Templates::new(overrides).unwrap()
}

/// The text with this job's tokens replaced by their names.
fn named(armed: &Armed, text: &str) -> String {
    text.replace(armed.render.expose(), "RENDER")
        .replace(armed.report.expose(), "REPORT")
        .replace(armed.booted.expose(), "BOOTED")
}

fn answer(source: &str) -> Result<String, String> {
    let armed = armed("", Some("t.j2"));
    let rendered = templates(&[("t.j2", source)]).render_answer(&armed, &urls());
    rendered.map(|text| named(&armed, &text.unwrap())).map_err(|error| error.to_string())
}

#[test]
fn an_ipxe_script_tries_four_times_one_command_a_line() {
    let armed = armed("auto=true url={{ answer_url }} ---", Some("preseed.j2"));
    let script = named(&armed, &templates(&[]).ipxe_script(&armed, &urls(), Dialect::Ipxe2012).unwrap());
    let one = |n: u32| {
        format!(
            "imgfree\n\
             kernel http://10.0.0.2:8080/f/RENDER/ubuntu/linux auto=true \
             url=http://10.0.0.2:8080/a/RENDER/preseed --- || goto failed{n}\n\
             initrd http://10.0.0.2:8080/f/RENDER/ubuntu/initrd.gz || goto failed{n}\n\
             boot || goto failed{n}\n:failed{n}\n"
        )
    };
    let tries = [1, 2, 3, 4].map(one).join("sleep 5\n");
    assert_eq!(script, format!("#!ipxe\n{tries}echo bootflip: kernel or initrd could not be loaded\nexit\n"));
}

/// Quirk 32: under UEFI the kernel wants `initrd=NAME`.
#[test]
fn a_modern_script_counts_its_tries_and_names_its_initrds() {
    let mut armed = armed("quiet", None);
    armed.files.initrd.push("extra.gz".into());
    let script = named(&armed, &templates(&[]).ipxe_script(&armed, &urls(), Dialect::Modern).unwrap());
    assert_eq!(
        script,
        "#!ipxe\nset tries:int32 0\n:again\nimgfree\n\
         kernel --name linux http://10.0.0.2:8080/f/RENDER/ubuntu/linux initrd=initrd0 initrd=initrd1 quiet || goto failed\n\
         initrd --name initrd0 http://10.0.0.2:8080/f/RENDER/ubuntu/initrd.gz || goto failed\n\
         initrd --name initrd1 http://10.0.0.2:8080/f/RENDER/extra.gz || goto failed\n\
         boot || goto failed\n:failed\ninc tries\niseq ${tries} 20 && goto gaveup ||\nsleep 5\ngoto again\n\
         :gaveup\necho bootflip: kernel or initrd could not be loaded\nexit\n"
    );
}

/// Quirk 37: releases before 6 have gPXE in their ROM, which takes no script of iPXE's.
#[test]
fn gpxe_gets_a_script_of_its_own_whatever_template_there_is() {
    let armed = armed("quiet", None);
    let own = templates(&[(SCRIPT, "#!ipxe\ngoto x\n:x\n")]);
    assert_eq!(
        named(&armed, &own.ipxe_script(&armed, &urls(), Dialect::Gpxe).unwrap()),
        "#!gpxe\nimgfree\nkernel http://10.0.0.2:8080/f/RENDER/ubuntu/linux quiet\n\
         initrd http://10.0.0.2:8080/f/RENDER/ubuntu/initrd.gz\nboot\n"
    );
}

/// Quirk 32: GRUB wants the semicolon of `ds=nocloud;s=…` quoted, iPXE and PXELINUX must have it bare.
#[test]
fn a_semicolon_in_kernel_arguments_is_never_quoted() {
    let armed = armed("autoinstall ds=nocloud;s=http://x/ ---", None);
    for dialect in [Dialect::Gpxe, Dialect::Ipxe2012, Dialect::Modern] {
        let script = templates(&[]).ipxe_script(&armed, &urls(), dialect).unwrap();
        assert!(script.contains(" autoinstall ds=nocloud;s=http://x/ ---"), "{script}");
    }
    let config = templates(&[]).pxelinux_config(&armed, &urls()).unwrap();
    assert!(config.contains("  APPEND autoinstall ds=nocloud;s=http://x/ ---\n"), "{config}");
}

#[test]
fn our_own_scripts_have_nothing_that_their_firmware_lacks() {
    for fetch in [crate::config::Fetch::Http, crate::config::Fetch::Tftp] {
        for dialect in [Dialect::Gpxe, Dialect::Ipxe2012, Dialect::Modern] {
            let mut armed = armed("auto=true url={{ answer_url }} --- -x", Some("preseed.j2"));
            armed.files.fetch = fetch;
            let script = templates(&[]).ipxe_script(&armed, &urls(), dialect).unwrap();
            assert_eq!(lint::lint(&script, dialect), [], "{script}");
        }
    }
    assert_eq!(lint::lint(IPXE_REFUSAL, Dialect::Ipxe2012), []);
    assert_eq!(lint::lint(GPXE_REFUSAL, Dialect::Gpxe), []);
}

#[test]
fn a_script_of_ones_own_takes_the_place_of_ours_and_is_read_for_what_the_firmware_lacks() {
    let own = "#!ipxe\nkernel {{ boot.kernel_url }} {{ boot.args }}\n{% for url in boot.initrd_urls %}\n\
               initrd {{ url }}\n{% endfor %}\n{% if boot.modern %}\nimgverify x y\n{% endif %}\nboot\n";
    let armed = armed("quiet", None);
    let render = |source: &str, dialect| templates(&[(SCRIPT, source)]).ipxe_script(&armed, &urls(), dialect);
    let urls = "kernel http://10.0.0.2:8080/f/RENDER/ubuntu/linux quiet\n\
                initrd http://10.0.0.2:8080/f/RENDER/ubuntu/initrd.gz\n";
    let rendered = |dialect| named(&armed, &render(own, dialect).unwrap());
    assert_eq!(rendered(Dialect::Ipxe2012), format!("#!ipxe\n{urls}boot\n"));
    assert_eq!(rendered(Dialect::Modern), format!("#!ipxe\n{urls}imgverify x y\nboot\n"));
    let error = render("#!ipxe\ninc x\n", Dialect::Ipxe2012).unwrap_err().to_string();
    assert_eq!(
        error,
        "the script that script.ipxe.j2 gives:2: the iPXE of XenServer's firmware (2012) has no command `inc`"
    );
    let checked = templates(&[(SCRIPT, "#!ipxe\ninc x\n")]).check_all(&armed, &super::Urls::new("http://x"));
    assert_eq!(checked.iter().map(ToString::to_string).collect::<Vec<_>>(), [error]);
}

#[test]
fn an_ipxe_script_fetches_by_tftp_where_the_profile_says_so() {
    let mut armed = armed("quiet", None);
    armed.files.fetch = crate::config::Fetch::Tftp;
    let script = named(&armed, &templates(&[]).ipxe_script(&armed, &urls(), Dialect::Ipxe2012).unwrap());
    let one = "kernel tftp://${next-server}/f/RENDER/ubuntu/linux quiet || goto failed1\n\
               initrd tftp://${next-server}/f/RENDER/ubuntu/initrd.gz || goto failed1\n";
    assert!(script.contains(one) && !script.contains("http://"), "{script}");
}

#[test]
fn a_pxelinux_configuration_names_files_from_the_root() {
    let mut armed = armed("quiet", None);
    armed.files.initrd.push("extra.gz".into());
    assert_eq!(
        named(&armed, &templates(&[]).pxelinux_config(&armed, &urls()).unwrap()),
        "DEFAULT install\nPROMPT 0\nTIMEOUT 0\nLABEL install\n  KERNEL ::f/RENDER/ubuntu/linux\n  \
         INITRD ::f/RENDER/ubuntu/initrd.gz,::f/RENDER/extra.gz\n  APPEND quiet\n"
    );
}

#[test]
fn refusals_go_to_the_next_boot_device() {
    assert_eq!(IPXE_REFUSAL, "#!ipxe\nexit\n");
    assert!(PXELINUX_REFUSAL.ends_with("LABEL local\n  LOCALBOOT -1\n"));
}

#[test]
fn what_a_boot_loader_would_take_for_its_own_is_refused_in_arguments() {
    for (args, words) in [
        ("a || b", "`||` means something to iPXE"),
        ("a # b", "`#` means something to iPXE"),
        ("a ${net0/mac}", "`${` means something to iPXE"),
        ("a\nb", "a line break or control character"),
        ("{{ 'a' * 2048 }}", "more than 2047 bytes"),
    ] {
        let error = templates(&[])
            .ipxe_script(&armed(args, None), &urls(), Dialect::Ipxe2012)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("kernel arguments of profile ubuntu: ") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn a_blank_in_a_file_name_is_encoded_for_http_and_refused_for_pxelinux() {
    let mut armed = armed("", None);
    armed.files.kernel = "my files/linux".into();
    assert!(
        templates(&[])
            .ipxe_script(&armed, &urls(), Dialect::Ipxe2012)
            .unwrap()
            .contains("/my%20files/linux || goto")
    );
    assert!(templates(&[]).pxelinux_config(&armed, &urls()).is_err());
}

#[test]
fn the_context_is_what_the_documentation_lists() {
    let source = "{{ machine.name }} {{ machine.mac }} {{ machine.uuid }} {{ disk.userdevice }} {{ disk.position }} \
                  {{ disk.letter }} {{ disk.size }} {{ profile }} {{ server.url }}\n{{ answer_url }}\n{{ report_url }}\n{{ booted_url }}\n";
    assert_eq!(
        answer(source).unwrap(),
        "web 1's 02:16:3e:00:00:0a 0a1b 1 1 b 10737418240 ubuntu http://10.0.0.2:8080\n\
         http://10.0.0.2:8080/a/RENDER/t\nhttp://10.0.0.2:8080/r/REPORT\nhttp://10.0.0.2:8080/r/BOOTED/booted\n"
    );
}

#[test]
fn errors_name_template_line_and_expression_and_no_value() {
    let limit = OUTPUT_LIMIT;
    for (source, expected) in [
        (
            "\n{{ vars.nme }}",
            "t.j2:2: `vars.nme` is not defined; set the variable for the profile, the machine or all",
        ),
        ("{{ vars.nme|shquote }}", "t.j2:1: `vars.nme|shquote` is not defined"),
        ("{%- if vars.nme %}{% endif %}", "t.j2:1: `if vars.nme` is not defined"),
        ("{{ vars.root_password_hash.x.y }}", "t.j2:1: `vars.root_password_hash.x"),
        ("{{ vars.root_password_hash + 1 }}", "t.j2:1: invalid operation in `vars.root_password_hash + 1`"),
        ("{{ vars.root_password_hash|int }}", "t.j2:1: invalid operation in `vars.root_password_hash|int`"),
        ("{{ 'a\nb'|preseed_line }}", "a line break or control character cannot stand in a preseed line"),
        ("{{ 'a\\\\'|preseed_line }}", "a backslash cannot stand in a preseed line"),
        ("{{ x|nosuch }}", "t.j2:1: unknown filter: filter nosuch is unknown"),
        (
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}",
            "t.j2:1: ",
        ),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "t.j2:1: "),
    ] {
        let error = answer(source).unwrap_err();
        assert!(error.contains(expected), "{source}: {error}");
        assert!(!error.contains("secret"), "{error}");
    }
    let error = answer("{% for i in range(3000) %}{{ 'x' * 1000 }}{% endfor %}").unwrap_err();
    assert_eq!(error, format!("t.j2: gives more than {limit} bytes"));
    let error = Templates::new([("t.j2".to_owned(), "a\n{% if".to_owned())].into()).unwrap_err();
    assert!(error[0].to_string().starts_with("t.j2:2: syntax error: "), "{}", error[0]);
}

#[test]
fn templates_reach_each_other_and_no_file() {
    for source in
        ["{% include '/etc/passwd' %}", "{% import '../../etc/passwd' as x %}", "{% extends '/etc/passwd' %}"]
    {
        let error = answer(source).unwrap_err();
        assert!(error.starts_with("t.j2:1: ") && error.contains("template not found"), "{source}: {error}");
    }
    assert!(answer("{% include 'booted.sh.j2' %}").unwrap().starts_with("#!/bin/sh\n"));
    let error = templates(&[]).render_answer(&armed("", Some("../preseed.j2")), &urls()).unwrap_err();
    assert!(error.to_string().contains("template not found"), "{error}");
}

#[test]
fn check_all_reports_every_problem_of_an_attempt() {
    let errors =
        templates(&[("t.j2", "{{ vars.b }}")]).check_all(&armed("{{ vars.a }}", Some("t.j2")), &urls());
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert!(texts[0].contains("vars.a") && texts[1].contains("vars.b"), "{texts:?}");
    assert_eq!(templates(&[]).check_all(&armed("quiet", Some("preseed.j2")), &urls()), []);
}

#[test]
fn a_name_survives_every_quoting() {
    for name in ["web", "web 1's", "a\"b$(reboot)`x`", "ü\\n;&|<>*?", "-rf", "", "#x", "~"] {
        let mut armed = armed("", Some("t.j2"));
        armed.vm_name = name.into();
        let render = |source| templates(&[("t.j2", source)]).render_answer(&armed, &urls()).unwrap().unwrap();
        let script = render("printf %s {{ machine.name|shquote }}");
        let printed = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        assert_eq!(String::from_utf8(printed.stdout).unwrap(), name, "{script}");
        let json: String = serde_json::from_str(&render("{{ machine.name|tojson }}")).unwrap();
        assert_eq!(json, name);
    }
}

#[test]
fn the_mini_answer_file_is_read_by_a_shell() {
    let armed = armed("", Some("mini.j2"));
    let text = named(&armed, &templates(&[]).render_answer(&armed, &urls()).unwrap().unwrap());
    assert_eq!(
        text,
        "# Answer file of the mini installer: KEY=VALUE, each value one word of a POSIX shell.\n\
         REPORT_URL=http://10.0.0.2:8080/r/REPORT\n\
         BOOTED_URL=http://10.0.0.2:8080/r/BOOTED/booted\n\
         HOSTNAME='web 1'\\''s'\n\
         MAC=02:16:3e:00:00:0a\nUUID=0a1b\nPROFILE=ubuntu\nSERVER_URL=http://10.0.0.2:8080\n\
         DISK=1\nDISK_POSITION=1\nDISK_SIZE=10737418240\n"
    );
}

/// The lines of a preseed file with continuation lines joined, as debian-installer reads them.
fn preseed_lines(text: &str) -> Vec<String> {
    text.replace("\\\n", " ")
        .lines()
        .map(str::to_owned)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

#[test]
fn every_line_of_the_preseed_is_an_answer() {
    for with_disk in [true, false] {
        let mut armed = armed("", Some("preseed.j2"));
        if !with_disk {
            armed.disk = None;
        }
        let text = templates(&[]).render_answer(&armed, &urls()).unwrap().unwrap();
        let lines = preseed_lines(&text);
        for line in &lines {
            let words: Vec<&str> = line.split_whitespace().take(3).collect();
            assert!(matches!(words[0], "d-i" | "tasksel" | "popularity-contest"), "{line}");
            assert!(words[1].contains('/'), "{line}");
            // A command is one argument of `sh -c`, and Linux takes 128 KiB (MAX_ARG_STRLEN).
            assert!(line.len() < 100_000, "{} bytes: {}", line.len(), words[1]);
            let kinds = ["string", "boolean", "select", "multiselect", "note", "password"];
            assert!(kinds.contains(&words[2]), "{line}");
        }
        for expected in [
            "d-i netcfg/get_hostname string web1",
            "d-i passwd/root-password-crypted password $6$secret$hash",
            "d-i partman/early_command string sh /tmp/bootflip-disk.sh",
            "d-i debian-installer/exit/poweroff boolean true",
        ] {
            assert!(lines.iter().any(|line| line == expected), "{expected}\n{text}");
        }
    }
}

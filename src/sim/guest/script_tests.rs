use super::*;

/// Runs a script against a world in which only `files` exist, and writes down what it asked for.
fn trace(script: &str, files: &[(&str, &str)]) -> String {
    let variables = [("mac", "02:16:3e:00:00:0a"), ("ip", "127.64.0.9"), ("next-server", "127.0.0.1")];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let mut script = Script::new("http://h/b/x", script.as_bytes(), variables).unwrap();
    let (mut step, mut seen) = (script.run(), vec![]);
    loop {
        step = match step {
            Step::Fetch(url) => {
                seen.push(format!("get {url}"));
                let body =
                    files.iter().find(|(name, _)| *name == url).map(|(_, body)| body.as_bytes().to_vec());
                let status = if body.is_some() { 200 } else { 404 };
                let body = body.unwrap_or_default();
                script.fetched(Ok(Fetched { status, length: u64::try_from(body.len()).unwrap(), body }))
            }
            Step::Sleep(span) => {
                seen.push(format!("sleep {}", span.as_secs()));
                script.slept()
            }
            Step::Boot(boot) => {
                seen.push(format!("boot {} {:?} [{}]", boot.kernel, boot.initrds, boot.arguments));
                break;
            }
            Step::Exit | Step::Reboot | Step::Failed(_) => {
                seen.push(format!("{step:?}"));
                break;
            }
        };
    }
    seen.join("; ")
}

const FILES: &[(&str, &str)] = &[
    ("http://h/f/k", "kernel"),
    ("http://h/f/i", "in"),
    ("http://h/s", "#!ipxe\necho hi\n"),
    ("http://h/e", "#!ipxe\nexit\n"),
];

#[test]
fn scripts_do_what_the_rom_of_2012_does() {
    for (script, expected) in [
        ("#!ipxe\nexit\n", "Exit"),
        ("#!ipxe\n", "Exit"),
        (
            "#!ipxe\nimgfree\nkernel /f/k a=1 b=${net0/mac} || exit\ninitrd /f/i\nboot\n",
            "get http://h/f/k; get http://h/f/i; boot 6 [2] [a=1 b=02:16:3e:00:00:0a]",
        ),
        (
            "#!ipxe\nkernel -n vmlinuz --autofree /f/k x=${mac:hexhyp}\nboot",
            "get http://h/f/k; boot 6 [] [x=02-16-3e-00-00-0a]",
        ),
        (
            "#!ipxe\nkernel --timeout 5000 /f/k\nboot\n",
            r#"Failed("kernel --timeout 5000 /f/k: unrecognised option `--timeout`")"#,
        ),
        ("#!ipxe\nisset ${no} && echo yes || reboot\nexit", r#"Failed("isset: not set")"#),
        ("#!ipxe\necho a || echo b && reboot\nexit", "Exit"),
        ("#!ipxe\npoweroff\n", r#"Failed("poweroff: command not found")"#),
        ("#!ipxe\nkernel /no || echo gone\nexit", "get http://h/no; Exit"),
        ("#!ipxe\nkernel /no\nboot", r#"get http://h/no; Failed("HTTP status 404")"#),
        ("#!ipxe\nkernel /no || kernel /f/k && boot", "get http://h/no; get http://h/f/k; boot 6 [] []"),
        ("#!ipxe\nset n /f/k\nkernel ${n} q # not this\nboot ||", "get http://h/f/k; boot 6 [] [q]"),
        (
            "#!ipxe\nkernel /no || goto again\nboot\n:again\nsleep 2\nkernel /f/k || reboot\nboot",
            "get http://h/no; sleep 2; get http://h/f/k; boot 6 [] []",
        ),
        ("#!ipxe\ngoto nowhere", r#"Failed("goto: no label nowhere")"#),
        ("#!ipxe\n:a\ngoto a", r#"Failed("the script never ends")"#),
        ("#!ipxe\nisset ${nothing} || exit\nreboot", "Exit"),
        ("#!ipxe\niseq ${ip} 127.64.0.9 && reboot", "Reboot"),
        ("#!ipxe\nchain /s\nreboot", "get http://h/s; Reboot"),
        ("#!ipxe\nchain /e\nreboot", "get http://h/e; Reboot"),
        ("#!ipxe\nchain --replace /e\nreboot", "get http://h/e; Exit"),
        ("#!ipxe\nchain /f/k arg", "get http://h/f/k; boot 6 [] [arg]"),
        ("#!ipxe\nboot", r#"Failed("boot: no image selected")"#),
    ] {
        assert_eq!(trace(script, FILES), expected, "{script}");
    }
}

#[test]
fn what_is_not_a_script_is_told_apart() {
    for (body, is_script) in
        [("#!ipxe", true), ("#!gpxe\n", true), ("#!ipxefoo", false), ("<html>", false), ("", false)]
    {
        assert_eq!(Script::new("http://h/", body.as_bytes(), BTreeMap::new()).is_some(), is_script, "{body}");
    }
}

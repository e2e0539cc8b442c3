//! Reads a template as the engine does, without rendering it, and says what is wrong with it and where
//! (`bootflip template lint`). Pure.
//!
//! What it finds: syntax; variables, facts, filters, tests, functions and includes that there are not; values of people
//! that go into a file as they are, or by a filter of another context; and in boot scripts what the firmware lacks.
//! Invariant: a template without a flaw renders without an escape missing; what is optional (`is defined`,
//! `default(…)`) is no flaw. `walk` goes through the tree, this file knows what is known and what each context wants.

mod script;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use minijinja::{
    Environment, context,
    machinery::{ast::Stmt, parse},
};

use super::{EMBEDDED, SCRIPT, filters, syntax};

/// Something wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flaw {
    /// From 1.
    pub line: usize,
    /// What, and what to write instead; names no value.
    pub problem: String,
}

/// What a value is written into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The value of a preseed line.
    Preseed,
    /// A value of YAML.
    Yaml,
    /// A word of a kickstart command.
    Kickstart,
    /// A line of a kickstart's packages.
    KickstartLine,
    /// A shell script.
    Shell,
    /// A command of an iPXE script.
    Ipxe,
    /// Kernel arguments.
    Arguments,
    /// No telling: any escape will do.
    Unknown,
}

impl Place {
    /// The filters that make a value fit, the usual one first.
    const fn escapes(self) -> &'static [&'static str] {
        match self {
            Self::Preseed => &["preseed_line"],
            Self::Yaml => &["yaml", "tojson"],
            Self::Kickstart => &["kickstart"],
            Self::KickstartLine => &["kickstart_line"],
            Self::Shell => &["shquote"],
            Self::Ipxe => &["ipxe", "karg", "kargs"],
            Self::Arguments => &["karg", "kargs"],
            Self::Unknown => &["shquote"],
        }
    }
}

/// What kind of file a template gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Preseed,
    Yaml,
    Kickstart,
    Shell,
    Ipxe,
    Arguments,
    Unknown,
}

impl Kind {
    fn of(name: &str, source: &str) -> Self {
        let text = source.trim_start();
        let has = |begin: &str| source.lines().any(|line| line.starts_with(begin));
        if name == SCRIPT || text.starts_with("#!ipxe") || text.starts_with("#!gpxe") {
            Self::Ipxe
        } else if text.starts_with("#cloud-config") || name.ends_with(".yaml.j2") || name == "meta-data.j2" {
            Self::Yaml
        } else if has("%packages") || has("%post") {
            Self::Kickstart
        } else if has("d-i ") {
            Self::Preseed
        } else if has("#!/") || name.ends_with(".sh.j2") {
            Self::Shell
        } else {
            Self::Unknown
        }
    }

    /// The place behind this beginning of a line, in this section of a kickstart.
    fn place(self, line: &str, section: &str) -> Place {
        match self {
            Self::Preseed => {
                let mut words = line.split_whitespace();
                let answers = line.starts_with(['d', 't']) && line.contains('/');
                let command = words.nth(1).is_some_and(|question| question.ends_with("_command"));
                if answers && !command { Place::Preseed } else { Place::Unknown }
            }
            Self::Yaml => {
                let ahead = line.trim_start().trim_start_matches("- ");
                if ahead.is_empty() || ahead.trim_end().ends_with(':') { Place::Yaml } else { Place::Unknown }
            }
            Self::Kickstart => match section {
                "" => Place::Kickstart,
                "%packages" => Place::KickstartLine,
                _ => Place::Shell,
            },
            Self::Shell => Place::Shell,
            Self::Ipxe => Place::Ipxe,
            Self::Arguments => Place::Arguments,
            Self::Unknown => Place::Unknown,
        }
    }
}

/// The facts of every template, with what each has; nothing: it is a value itself.
const FACTS: [(&str, &[&str]); 16] = [
    ("machine", &["name", "mac", "uuid"]),
    ("disk", &["userdevice", "position", "letter", "size"]),
    ("vars", &[]),
    ("profile", &[]),
    ("pool", &["xen"]),
    ("server", &["url"]),
    ("log", &["host", "port"]),
    ("answer_url", &[]),
    ("seed_url", &[]),
    ("file_urls", &[]),
    ("report_url", &[]),
    ("booted_url", &[]),
    ("pv_ready_url", &[]),
    ("report_script", &[]),
    ("pv_ready_script", &[]),
    ("boot", &["kernel_url", "initrd_urls", "args", "modern"]),
];

/// The engine's own functions.
const FUNCTIONS: [&str; 4] = ["range", "dict", "debug", "namespace"];

/// What templates are held against.
#[derive(Debug)]
pub struct Checker {
    sources: BTreeMap<String, String>,
    variables: BTreeSet<String>,
    environment: Environment<'static>,
    /// What those have set that include a template, by its name.
    handed_on: BTreeMap<String, BTreeSet<String>>,
}

impl Checker {
    /// Knows the embedded templates under `sources` (name → source), and these variables.
    pub fn new(sources: BTreeMap<String, String>, variables: BTreeSet<String>) -> Self {
        let mut all: BTreeMap<String, String> =
            EMBEDDED.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
        all.extend(sources);
        let mut environment = Environment::new();
        filters::add(&mut environment);
        let mut checker = Self { sources: all, variables, environment, handed_on: BTreeMap::new() };
        checker.handed_on = checker.inherited();
        checker
    }

    /// Every flaw of one of its templates, by line; empty too where there is no such template.
    pub fn template(&self, name: &str) -> Vec<Flaw> {
        let Some(source) = self.sources.get(name) else { return Vec::new() };
        self.source(name, source, Kind::of(name, source))
    }

    /// Every flaw of kernel arguments.
    pub fn arguments(&self, source: &str) -> Vec<Flaw> {
        self.source("kernel arguments", source, Kind::Arguments)
    }

    fn source(&self, name: &str, source: &str, kind: Kind) -> Vec<Flaw> {
        let tree = match parse(source, name, syntax()) {
            Ok(tree) => tree,
            Err(error) => {
                let problem = format!("syntax error: {}", error.detail().unwrap_or("this is no template"));
                return vec![Flaw { line: error.line().unwrap_or(1), problem }];
            }
        };
        let mut flaws = walk::flaws(self, name, kind, &tree);
        if kind == Kind::Ipxe {
            flaws.extend(script::flaws(&tree));
        }
        flaws.sort();
        flaws.dedup();
        flaws
    }

    /// For each template that others include: the names that these set.
    fn inherited(&self) -> BTreeMap<String, BTreeSet<String>> {
        let trees: Vec<(&String, Stmt<'_>)> = self
            .sources
            .iter()
            .filter_map(|(name, source)| Some((name, parse(source, name, syntax()).ok()?)))
            .collect();
        let found: Vec<_> = trees.iter().map(|(name, tree)| (*name, walk::exports(tree))).collect();
        let mut inherited: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        // As often as templates can be within each other: names go one level down a round.
        for _ in 0..found.len() {
            for (name, (set, included)) in &found {
                let mut known = inherited.get(*name).cloned().unwrap_or_default();
                known.extend(set.iter().cloned());
                for template in included {
                    inherited.entry(template.clone()).or_default().extend(known.iter().cloned());
                }
            }
        }
        inherited
    }

    fn knows_filter(&self, name: &str) -> bool {
        self.evaluates("name is filter", name)
    }

    fn knows_test(&self, name: &str) -> bool {
        self.evaluates("name is test", name)
    }

    fn evaluates(&self, expression: &str, name: &str) -> bool {
        let compiled = self.environment.compile_expression(expression);
        compiled.and_then(|compiled| compiled.eval(context! { name })).is_ok_and(|value| value.is_true())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flaws(name: &str, source: &str) -> Vec<String> {
        let sources = BTreeMap::from([(name.to_owned(), source.to_owned())]);
        let checker = Checker::new(sources, BTreeSet::from(["hostname".to_owned(), "packages".to_owned()]));
        checker.template(name).iter().map(|flaw| format!("{}: {}", flaw.line, flaw.problem)).collect()
    }

    #[test]
    fn what_a_template_names_must_be_there() {
        for (source, flaw) in [
            (
                "\n{{ vars.hostnme|shquote }}",
                "2: no profile has a variable `hostnme`; did you mean `hostname`?",
            ),
            ("{{ machine.nme|shquote }}", "1: `machine` has no `nme`; known: name, mac, uuid"),
            ("{{ mchine.name|shquote }}", "1: there is no `mchine`"),
            ("{{ vars.hostname|shqute }}", "1: there is no filter `shqute`"),
            ("{% if vars.hostname is nosuch %}{% endif %}", "1: there is no test `nosuch`"),
            ("{{ nosuch(1) }}", "1: there is no function `nosuch`"),
            ("{% include 'nosuch.j2' %}", "1: there is no template `nosuch.j2`"),
            ("a\n{% if", "2: syntax error: unexpected end of input"),
            ("a\n{{ vars.hostname", "2: syntax error: unexpected end of input"),
        ] {
            let found = flaws("t.j2", source);
            assert!(found.len() == 1 && found[0].starts_with(flaw), "{source}: {found:?}");
        }
        for source in [
            "{{ vars.other|default('x')|shquote }}{% if vars.another is defined %}{% endif %}",
            "{% for p in vars.packages %}{{ loop.index }}{{ p|shquote }}{% endfor %}",
            "{% set x = vars.hostname %}{{ x|shquote }}{% set y %}{{ x|shquote }}{% endset %}{{ y }}",
            "{% macro m(a, b='c') %}{{ a|shquote }}{{ b|shquote }}{% endmacro %}{{ m(vars.hostname) }}",
            "{% from 'macros.j2' import write %}{{ write('/x', report_script) }}",
            "{% with a = 1 %}{{ a }}{% endwith %}{{ disk.size // 512 }} {{ answer_url }} {{ machine.mac }}",
            "{{ 'true' if vars.hostname else 'false' }} {{ range(3)|length }}",
        ] {
            assert_eq!(flaws("t.j2", source), [""; 0], "{source}");
        }
    }

    #[test]
    fn a_value_needs_the_escape_of_its_place() {
        let preseed = "d-i a/b string x\n";
        let kickstart = "lang x\n%packages\n%end\n";
        for (head, source, filter) in [
            ("", "{{ vars.hostname }}", "shquote"),
            ("", "{{ machine.name }}", "shquote"),
            ("", "{{ vars.hostname ~ 'x' }}", "shquote"),
            ("", "{{ vars.hostname|default('x') }}", "shquote"),
            ("", "{% set x = vars.hostname %}{{ x }}", "shquote"),
            ("", "{% for p in vars.packages %}{{ p }}{% endfor %}", "shquote"),
            ("", "{% macro m(a) %}{{ a }}{% endmacro %}", "shquote"),
            ("#!/bin/sh\n", "echo {{ vars.hostname|yaml }}", "shquote"),
            (preseed, "d-i a/b string {{ vars.hostname }}", "preseed_line"),
            (preseed, "d-i a/b string {{ vars.hostname|shquote }}", "preseed_line"),
            (preseed, "d-i preseed/late_command string x {{ vars.hostname }}", "shquote"),
            ("#cloud-config\n", "key: {{ vars.hostname|shquote }}", "yaml"),
            ("#cloud-config\n", "  - {{ vars.hostname }}", "yaml"),
            (kickstart, "lang {{ vars.hostname|shquote }}", "kickstart"),
            ("lang x\n%post\n%end\n%packages\n", "{{ vars.hostname|kickstart }}", "kickstart_line"),
            ("lang x\n%post\n", "echo {{ vars.hostname|kickstart }}", "shquote"),
            ("#!ipxe\n", "echo {{ vars.hostname|shquote }}", "ipxe"),
        ] {
            let found = flaws("t.j2", &format!("{head}{source}\n"));
            let ends = format!("end it with `|{filter}`");
            assert!(found.len() == 1 && found[0].ends_with(&ends), "{head}{source}: {found:?}");
        }
        for source in [
            "d-i a/b string {{ vars.hostname|preseed_line }}\nd-i preseed/early_command string {{ vars.hostname|shquote }}; \\\n  x {{ vars.hostname|shquote }}\n",
            "#cloud-config\na: {{ vars.hostname|yaml }}\nb: {{ vars.packages|tojson }}\nc: |\n  echo {{ vars.hostname|shquote }}\n",
            "lang {{ vars.hostname|kickstart }}\n%packages\n{{ vars.hostname|kickstart_line }}\n%end\n%post\necho {{ vars.hostname|shquote }}\n%end\nlang {{ vars.hostname|kickstart }}\n",
            "#!ipxe\nkernel {{ boot.kernel_url }} {{ boot.args }} {{ vars.hostname|karg }}\nboot\n",
        ] {
            assert_eq!(flaws("t.j2", source), [""; 0], "{source}");
        }
    }

    #[test]
    fn a_boot_script_has_what_the_firmware_lacks_named_at_its_line() {
        let lacks = "the iPXE of XenServer's firmware (2012) has no command `inc`";
        let script = "#!ipxe\n{% if boot.modern %}\ninc x\n{% else %}\nsleep 1\n{% endif %}\ninc y\nkernel {{ boot.kernel_url }} || goto out\n";
        let found = flaws("script.ipxe.j2", script);
        assert_eq!(found, [format!("7: {lacks}"), "8: there is no label `out`".to_owned()]);
    }

    #[test]
    fn what_the_program_brings_along_has_no_flaw() {
        let declared: Vec<_> =
            crate::config::shipped::names().map(crate::config::shipped::declarations).collect();
        let variables = declared.iter().flat_map(BTreeMap::keys).cloned().collect();
        let checker = Checker::new(BTreeMap::new(), variables);
        for (name, _) in EMBEDDED {
            assert_eq!(checker.template(name), [], "{name}");
        }
    }
}

//! `bootflip template …`: looks at templates. Needs neither server nor pool, and no configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};

use super::{Answer, DEFAULT_CONFIG, Ended, Stop, load, note, print, print_json, table::table};
use crate::{
    app::{self, templates},
    boot::render::{
        Templates,
        check::{Checker, Flaw},
    },
    config::{Config, shipped},
};

/// What to do with templates.
#[derive(Debug, Subcommand)]
pub(super) enum TemplateCommand {
    /// All templates: whose they are, and which profiles use them.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Print a template.
    Show {
        /// Its name.
        name: String,
    },
    /// Say what is wrong with templates, by file and line.
    Lint(LintArgs),
}

/// Arguments of `template lint`.
#[derive(Debug, Args)]
pub(super) struct LintArgs {
    /// Templates, wherever they are; default: those in template_dir, and the profiles' kernel arguments.
    files: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(command: &TemplateCommand, path: &Path) -> Answer {
    // Templates may be looked at before there is a configuration.
    let config = if path == Path::new(DEFAULT_CONFIG) && !path.exists() { None } else { Some(load(path)?) };
    match command {
        TemplateCommand::List { json } => list(config.as_ref(), *json),
        TemplateCommand::Show { name } => show(config.as_ref(), name),
        TemplateCommand::Lint(args) => lint(config.as_ref(), args),
    }
}

fn usage(error: &dyn std::error::Error) -> Stop {
    Stop::new(Ended::Usage, app::chain(error))
}

fn sources(config: Option<&Config>) -> Result<BTreeMap<String, String>, Stop> {
    templates::sources(config.and_then(|config| config.template_dir.as_deref()))
        .map_err(|error| usage(&error))
}

fn list(config: Option<&Config>, json: bool) -> Answer {
    let own = sources(config)?;
    let templates =
        Templates::new(BTreeMap::new()).map_err(|_| Stop::new(Ended::Failed, "the program is broken"))?;
    let names: BTreeSet<&str> = templates.names().chain(own.keys().map(String::as_str)).collect();
    let rows = names.into_iter().map(|name| {
        let whose = match (own.contains_key(name), Templates::is_embedded(name)) {
            (true, true) => "yours, in place of the built-in one",
            (true, false) => "yours",
            (false, _) => "built-in",
        };
        vec![name.to_owned(), whose.to_owned(), users(config, name).join(", ")]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if json {
        let row = |row: &Vec<String>| match row.as_slice() {
            [name, whose, profiles] => {
                serde_json::json!({ "name": name, "whose": whose, "profiles": profiles })
            }
            _ => serde_json::Value::Null,
        };
        print_json(&rows.iter().map(row).collect::<Vec<_>>());
    } else {
        print(&table(&["TEMPLATE", "WHOSE", "PROFILES"], &rows));
    }
    Ok(Ended::Done)
}

/// The profiles whose answer file a template is.
fn users<'a>(config: Option<&'a Config>, template: &str) -> Vec<&'a str> {
    let profiles = config.into_iter().flat_map(|config| config.profiles.values());
    let uses = |profile: &&crate::config::Profile| {
        profile.boot.iter().flat_map(|boot| boot.answers()).any(|answer| answer.template == template)
    };
    profiles.filter(uses).map(|profile| profile.name.as_str()).collect()
}

fn show(config: Option<&Config>, name: &str) -> Answer {
    let own = sources(config)?;
    let templates =
        Templates::new(BTreeMap::new()).map_err(|_| Stop::new(Ended::Failed, "the program is broken"))?;
    let source = own.get(name).map(String::as_str).or_else(|| templates.source(name));
    let Some(source) = source else {
        return Err(Stop::new(
            Ended::Usage,
            format!("there is no template {name}; `bootflip template list` has them"),
        ));
    };
    print(source);
    Ok(Ended::Done)
}

fn lint(config: Option<&Config>, args: &LintArgs) -> Answer {
    let mut own = sources(config)?;
    let mut looked_at: Vec<(String, String)> = Vec::new();
    for file in &args.files {
        let source = templates::read(file)
            .map_err(|error| Stop::new(Ended::Usage, format!("cannot read {}: {error}", file.display())))?;
        let name = file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        looked_at.push((file.display().to_string(), name.clone()));
        own.insert(name, source);
    }
    if let (true, Some(config)) = (args.files.is_empty(), config) {
        let folder = config.template_dir.clone().unwrap_or_default();
        looked_at.extend(own.keys().map(|name| (folder.join(name).display().to_string(), name.clone())));
    }
    let checker = Checker::new(own, variables(config));
    let mut found: Vec<(String, Flaw)> = Vec::new();
    for (shown, name) in looked_at {
        found.extend(checker.template(&name).into_iter().map(|flaw| (shown.clone(), flaw)));
    }
    if args.files.is_empty() {
        found.extend(arguments(config, &checker));
    }
    if args.json {
        let flaw = |(file, flaw): &(String, Flaw)| serde_json::json!({ "file": file, "line": flaw.line, "problem": flaw.problem });
        print_json(&found.iter().map(flaw).collect::<Vec<_>>());
    } else {
        print(
            &found
                .iter()
                .map(|(file, flaw)| format!("{file}:{}: {}\n", flaw.line, flaw.problem))
                .collect::<String>(),
        );
        match found.len() {
            0 => note("nothing is wrong"),
            1 => note("1 thing is wrong"),
            many => note(&format!("{many} things are wrong")),
        }
    }
    Ok(if found.is_empty() { Ended::Done } else { Ended::Failed })
}

fn arguments(config: Option<&Config>, checker: &Checker) -> Vec<(String, Flaw)> {
    let profiles = config.into_iter().flat_map(|config| config.profiles.values());
    let args = profiles.filter_map(|profile| Some((profile, &profile.boot.as_ref()?.args)));
    args.flat_map(|(profile, args)| {
        let shown = format!("kernel arguments of profile {}", profile.name);
        checker.arguments(args).into_iter().map(move |flaw| (shown.clone(), flaw))
    })
    .collect()
}

/// The variables that templates may use: those of the configuration's profiles, and those that bootflip's profiles declare.
fn variables(config: Option<&Config>) -> BTreeSet<String> {
    let mut known: BTreeSet<String> =
        shipped::names().flat_map(shipped::declarations).map(|(name, _)| name).collect();
    if let Some(config) = config {
        known.extend(config.declared.values().flat_map(BTreeMap::keys).cloned());
        known.extend(config.profiles.values().flat_map(|profile| profile.variables.keys()).cloned());
        known.extend(config.groups.iter().flat_map(|group| group.variables.keys()).cloned());
        known.extend(config.machines.values().flat_map(|machine| machine.variables.keys()).cloned());
    }
    known
}

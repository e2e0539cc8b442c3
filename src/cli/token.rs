//! `bootflip token …` and `bootflip audit`: who may ask the server, and what they did.

use std::num::NonZeroU16;

use clap::{Args, Subcommand};

use super::{Answer, Ended, Place, Stop, link::Link, note, print, print_json, table::table};
use crate::{
    access::{
        Scope,
        audit::{self, AuditEntry, Head},
        token::name_problem,
    },
    app::orders::{AuditPage, TokenList, TokenMade, TokenOrder, TokenView},
};

/// What to do with tokens.
#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token and print it. It is shown this once.
    Add(AddArgs),
    /// All tokens, by name.
    List(ListArgs),
    /// Take a token back; the sessions that it opened end, too.
    Revoke(RevokeArgs),
}

/// Arguments of `token add`.
#[derive(Debug, Args)]
pub(super) struct AddArgs {
    /// Its name: whose it is, or what for.
    name: String,
    /// read: look at everything; operate: order and operate jobs, too; admin: tokens, the audit log and secrets, too.
    #[arg(long, value_enum)]
    scope: Scope,
    /// For how many days.
    #[arg(long, value_name = "N", default_value = "90", conflicts_with = "forever")]
    days: NonZeroU16,
    /// Until it is revoked.
    #[arg(long)]
    forever: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `token list`.
#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `token revoke`.
#[derive(Debug, Args)]
pub(super) struct RevokeArgs {
    /// Its name.
    name: String,
}

/// Arguments of `audit`.
#[derive(Debug, Args)]
pub(super) struct AuditArgs {
    /// Only the last N entries.
    #[arg(long, value_name = "N", default_value_t = 50, conflicts_with = "all")]
    last: u32,
    /// All entries; the whole log is checked.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(command: &TokenCommand, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    match command {
        TokenCommand::Add(args) => add(&link, args).await,
        TokenCommand::List(args) => list(&link, args).await,
        TokenCommand::Revoke(args) => revoke(&link, args).await,
    }
}

async fn add(link: &Link, args: &AddArgs) -> Answer {
    let days = (!args.forever).then_some(args.days.get());
    let order = TokenOrder { name: args.name.clone(), scope: args.scope, days };
    let made: TokenMade = link.post("/api/v1/tokens", &order).await?;
    if args.json {
        print_json(&made);
        return Ok(Ended::Done);
    }
    let until = made
        .about
        .expires
        .as_ref()
        .map_or_else(|| "until it is revoked".to_owned(), |at| format!("until {at}"));
    note(&format!("token {} ({}), good {until}; it is shown this once:", made.about.name, made.about.scope));
    print(&format!("{}\n", made.token));
    Ok(Ended::Done)
}

async fn list(link: &Link, args: &ListArgs) -> Answer {
    let TokenList { tokens } = link.get("/api/v1/tokens").await?;
    if args.json {
        print_json(&tokens);
        return Ok(Ended::Done);
    }
    let rows: Vec<Vec<String>> = tokens.iter().map(row).collect();
    print(&table(&["NAME", "SCOPE", "EXPIRES", "LAST USED", "MADE BY"], &rows));
    Ok(Ended::Done)
}

fn row(token: &TokenView) -> Vec<String> {
    let expires = match &token.expires {
        Some(at) if token.expired => format!("{at} (over)"),
        Some(at) => at.clone(),
        None => "never".to_owned(),
    };
    let last_used = token.last_used.clone().unwrap_or_else(|| "never".to_owned());
    vec![token.name.clone(), token.scope.to_string(), expires, last_used, token.created_by.clone()]
}

async fn revoke(link: &Link, args: &RevokeArgs) -> Answer {
    if let Some(problem) = name_problem(&args.name) {
        return Err(Stop::new(Ended::Usage, problem));
    }
    link.delete(&format!("/api/v1/tokens/{}", args.name)).await?;
    note(&format!("token {} is revoked", args.name));
    Ok(Ended::Done)
}

pub(super) async fn audit(args: &AuditArgs, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    let (entries, problem) = if args.all { whole(&link).await? } else { last(&link, args.last).await? };
    if args.json {
        print_json(&entries);
    } else {
        let rows: Vec<Vec<String>> = entries.iter().map(entry).collect();
        print(&table(&["", "AT", "WHO", "SCOPE", "WHAT", "VM", "JOB", "BEFORE", "AFTER"], &rows));
    }
    match problem {
        Some(problem) => Err(Stop::new(Ended::Failed, format!("the audit log was changed: {problem}"))),
        None => Ok(Ended::Done),
    }
}

async fn last(link: &Link, most: u32) -> Result<(Vec<AuditEntry>, Option<String>), Stop> {
    let page: AuditPage = link.get(&format!("/api/v1/audit?limit={}", most.clamp(1, 1000))).await?;
    Ok((page.entries, page.problem))
}

/// The whole log, checked here from its first entry on.
async fn whole(link: &Link) -> Result<(Vec<AuditEntry>, Option<String>), Stop> {
    let (mut entries, mut next, mut last) = (Vec::new(), Some(1), 0);
    while let Some(from) = next {
        let mut page: AuditPage = link.get(&format!("/api/v1/audit?limit=1000&from={from}")).await?;
        entries.append(&mut page.entries);
        (next, last) = (page.next, page.last);
    }
    let problem =
        audit::problem(&Head::default(), &entries).or_else(|| audit::missing(1..last + 1, &entries));
    Ok((entries, problem))
}

fn entry(entry: &AuditEntry) -> Vec<String> {
    let action = serde_json::to_value(entry.action).ok();
    let action = action.and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default();
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    vec![
        entry.number.to_string(),
        entry.at.clone(),
        entry.who.clone(),
        entry.scope.to_string(),
        action,
        or_dash(&entry.vm),
        or_dash(&entry.job),
        entry.before.clone(),
        entry.after.clone(),
    ]
}

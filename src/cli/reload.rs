//! `bootflip reload`: has the server read its configuration again.

use clap::Args;

use super::{Answer, Ended, Place, note, print, print_json, table::table};
use crate::app::reload::Reloaded;

/// Arguments of `reload`.
#[derive(Debug, Args)]
pub(super) struct ReloadArgs {
    /// Only show what differs; take nothing over.
    #[arg(long)]
    plan: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &ReloadArgs, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    let order = serde_json::json!({ "look": args.plan });
    let reloaded: Reloaded = link.post("/api/v1/reload", &order).await?;
    if args.json {
        print_json(&reloaded);
    } else if reloaded.differences.is_empty() {
        note("nothing differs");
    } else {
        print(&shown(&reloaded));
        let waits = reloaded.differences.iter().any(|one| one.restart);
        if waits {
            note(
                "what says `at the next start` counts once the server was started anew; jobs under way outlive that",
            );
        }
    }
    Ok(Ended::Done)
}

fn shown(reloaded: &Reloaded) -> String {
    let rows: Vec<Vec<String>> = reloaded
        .differences
        .iter()
        .map(|one| {
            let counts = if one.restart { "at the next start" } else { "for new jobs" };
            vec![one.key.clone(), counts.to_owned(), one.what.clone()]
        })
        .collect();
    table(&["KEY", "COUNTS", "DIFFERENCE"], &rows)
}

//! `bootflip render`: what a machine would be served, with placeholder tokens. Asks the server when it answers, else
//! the pools themselves.

use std::path::Path;

use clap::Args;

use super::{Answer, Ended, Place, Stop, load, print};
use crate::{
    app::{
        self, desk,
        orders::{RenderKind, RenderOrder},
        preview::{self, Wanted},
        templates,
    },
    boot::render::Urls,
};

/// Arguments of `render`.
#[derive(Debug, Args)]
pub(super) struct RenderArgs {
    /// What to show.
    #[arg(value_enum)]
    kind: RenderKind,
    /// For which VM: its name or uuid.
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// With which profile; default: the one in the machine's section.
    #[arg(short, long, value_name = "NAME")]
    profile: Option<String>,
    /// Which of several answer files; default: the first.
    #[arg(long, value_name = "NAME")]
    file: Option<String>,
    /// Show password hashes and other secrets too.
    #[arg(long)]
    secrets: bool,
}

pub(super) async fn run(args: &RenderArgs, place: &Place<'_>) -> Answer {
    let link = place.link()?;
    let order = RenderOrder {
        kind: args.kind,
        vm: args.vm.clone(),
        profile: args.profile.clone(),
        file: args.file.clone(),
        secrets: args.secrets,
    };
    let text = if link.answers().await {
        let path = if order.secrets { "/api/v1/renders/secrets" } else { "/api/v1/renders" };
        let text = link.post_for_text(path, &order).await?;
        String::from_utf8_lossy(&text).into_owned()
    } else {
        alone(&order, place.config).await?
    };
    print(&text);
    Ok(Ended::Done)
}

async fn alone(order: &RenderOrder, config: &Path) -> Result<String, Stop> {
    let config = load(config)?;
    let usage = |error: &dyn std::error::Error| Stop::new(Ended::Usage, app::chain(error));
    let templates = templates::load(config.template_dir.as_deref()).map_err(|error| usage(&error))?;
    let clients = app::clients(&config).map_err(|error| usage(&error))?;
    let apis = app::apis(&clients);
    let (pool, vm) = desk::find(&apis, &order.vm).await.map_err(|error| usage(&error))?;
    let log = config.syslog.as_ref().map(|syslog| syslog.listen);
    let urls = config.http.as_ref().map(|http| Urls::new(&http.public_url).with_log(log));
    let profile = preview::profile_for(&config, order.profile.as_deref(), &vm.uuid, &vm.name_label)
        .map_err(|error| usage(&error))?;
    let api = apis.get(&pool).ok_or_else(|| Stop::new(Ended::Failed, "the pool is gone"))?;
    let wanted = Wanted { vm: &vm, pool: &pool, profile, order };
    let rendered = preview::render(&config, &templates, urls.as_ref(), api, wanted).await;
    app::log_out(&clients).await;
    rendered.map_err(|error| usage(&error))
}

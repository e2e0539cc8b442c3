//! `bootflip pool`: the first trust in a pool's certificate, and forgetting which pool a name was.

use std::{path::Path, sync::Arc};

use clap::{Args, Subcommand};
use serde::Serialize;

use super::{Answer, Ended, Stop, load, note, print, print_json};
use crate::{
    app::{self, identity::StoredIdentity},
    clock::{Clock, SystemClock},
    secret::hex,
    store::sqlite::SqliteStore,
    xen::{
        certificate::{Certificate, fingerprint},
        client::peek::{PeekError, Shown, peek},
    },
};

/// What to do with a pool.
#[derive(Debug, Subcommand)]
pub(super) enum PoolCommand {
    /// Show a server's certificate, and the lines that make the configuration trust it. Sends nothing of ours.
    Trust(TrustArgs),
    /// Forget which pool a name of the configuration was, when it is another one on purpose. The server must not
    /// run.
    Forget(ForgetArgs),
}

/// Arguments of `pool trust`.
#[derive(Debug, Args)]
pub(super) struct TrustArgs {
    /// The pool's address, such as https://10.0.0.2.
    url: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Arguments of `pool forget`.
#[derive(Debug, Args)]
pub(super) struct ForgetArgs {
    /// The pool's name in the configuration.
    name: String,
}

pub(super) async fn run(command: &PoolCommand, config: &Path) -> Answer {
    match command {
        PoolCommand::Trust(args) => trust(args).await,
        PoolCommand::Forget(args) => forget(args, config).await,
    }
}

#[derive(Debug, Serialize)]
struct Seen {
    address: String,
    sha256: String,
    subject: String,
    issuer: String,
    not_before: String,
    not_after: String,
    valid_now: bool,
    config: String,
}

async fn trust(args: &TrustArgs) -> Answer {
    let shown = match peek(&args.url).await {
        Ok(shown) => shown,
        Err(error @ PeekError::Address(_)) => return Err(Stop::new(Ended::Usage, error.to_string())),
        Err(error @ PeekError::Away { .. }) => return Err(Stop::failed(&error)),
        Err(PeekError::NothingInCommon { at, detail }) => {
            return Err(Stop::new(Ended::Refused, plain_http(&at, &detail)));
        }
    };
    let seen = seen(&shown);
    if args.json {
        print_json(&seen);
    } else {
        print(&text(&seen));
    }
    if !seen.valid_now {
        note("The certificate is not valid today. A pin does not mind; a CA would.");
    }
    Ok(Ended::Done)
}

fn seen(shown: &Shown) -> Seen {
    let sha256 = hex(&fingerprint(&shown.leaf));
    let unreadable = || "(cannot be read)".to_owned();
    let read = Certificate::read(&shown.leaf).unwrap_or_else(|| Certificate {
        subject: unreadable(),
        issuer: unreadable(),
        not_before: unreadable(),
        not_after: unreadable(),
    });
    let now = today();
    let issuer = if read.is_self_signed() { "itself".to_owned() } else { read.issuer };
    Seen {
        address: shown.authority.clone(),
        subject: read.subject,
        issuer,
        valid_now: *read.not_before <= *now && *now <= *read.not_after,
        not_before: read.not_before,
        not_after: read.not_after,
        config: format!("url = \"https://{}\"\ntls = {{ pins = [\"{sha256}\"] }}\n", shown.authority),
        sha256,
    }
}

/// Now, as [`Certificate`] writes times.
fn today() -> String {
    let seconds = i64::try_from(SystemClock.now().millis() / 1000).unwrap_or(i64::MAX);
    let now = jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::MAX);
    now.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn text(seen: &Seen) -> String {
    let colons: Vec<String> =
        seen.sha256.as_bytes().chunks(2).map(|pair| String::from_utf8_lossy(pair).to_uppercase()).collect();
    format!(
        "{} shows this certificate:\n\
         \x20 subject   {}\n\
         \x20 signed by {}\n\
         \x20 valid     {} to {} UTC\n\
         \x20 SHA-256   {}\n\
         \n\
         Whoever stands between you and the pool could show another one. Compare it with what the host itself says,\n\
         on its console:\n\
         \x20 openssl x509 -in /etc/xensource/xapi-ssl.pem -noout -fingerprint -sha256\n\
         \n\
         If they are the same, write into the pool's section of the configuration:\n\
         {}",
        seen.address,
        seen.subject,
        seen.issuer,
        seen.not_before,
        seen.not_after,
        colons.join(":"),
        seen.config
    )
}

/// What is left with a host whose TLS nobody should speak any more.
fn plain_http(at: &str, detail: &str) -> String {
    let host = at.rsplit_once(':').map_or(at, |(host, _)| host);
    format!(
        "{at} and bootflip have no TLS in common ({detail}).\n\
         XenServer 5.6 to 6.5, 7.2 to 7.6 and 7.1 without its updates offer only ciphers without forward secrecy, which \
         bootflip's TLS library (rustls) does not have. Update the host, or, where nobody can listen on the way, \
         let the password and everything else cross the network for all to read:\n\
         url = \"http://{host}\"\n\
         plain_http = true"
    )
}

async fn forget(args: &ForgetArgs, path: &Path) -> Answer {
    let config = load(path)?;
    if !config.pools.contains_key(&args.name) {
        let names: Vec<&str> = config.pools.keys().map(String::as_str).collect();
        let text =
            format!("there is no pool `{}` in the configuration; there are: {}", args.name, names.join(", "));
        return Err(Stop::new(Ended::Usage, text));
    }
    let store = match SqliteStore::open(config.state_dir.join(app::DATABASE)) {
        Ok(store) => store,
        Err(error) => {
            let locked = app::ServeError::from(error);
            let ended = if locked.is_locked() { Ended::Locked } else { Ended::Failed };
            return Err(Stop::new(ended, app::chain(&locked)));
        }
    };
    let identity = StoredIdentity::of(Arc::new(store), &args.name);
    match identity.forget().await {
        Ok(true) => note(&format!("The next login of pool {} decides which pool it is.", args.name)),
        Ok(false) => note(&format!("Nothing was known of pool {}.", args.name)),
        Err(error) => return Err(Stop::failed(&error)),
    }
    Ok(Ended::Done)
}

//! `bootflip restore`: puts VMs back from the claims in the pools. Where the claim's own server answers, it does the
//! work (its job is cancelled); else the claim alone says what to do, and no database is needed.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use clap::Args;
use futures_util::{StreamExt, future::BoxFuture, stream};
use hyper::StatusCode;
use serde::Serialize;

use super::{
    Answer, Ended, Stop,
    deploy::wait,
    link::{Link, LinkError},
    load, note, print, print_json,
    progress::Progress,
    selectors,
    table::table,
};
use crate::{
    app::{
        self,
        selection::{Candidate, Selection, resolve},
        views::JobView,
    },
    clock::SystemClock,
    provision::{
        State,
        claim::Claim,
        executor::claims::{self, Claimed},
        settings,
    },
    xen::{CallError, api::Api, records::PowerState},
};

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// Which VMs.
    #[arg(value_name = "SELECTOR", required_unless_present = "all")]
    selectors: Vec<String>,
    /// Every VM that carries a claim of ours.
    #[arg(long, conflicts_with = "selectors")]
    all: bool,
    /// Shut a running VM down, hard, when its settings have to be put back.
    #[arg(long)]
    stop: bool,
    /// Act on the claims of this server too: it is gone for good.
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// VMs that are put back at once.
const AT_ONCE: usize = 4;

/// What became of one VM.
#[derive(Debug, Serialize)]
struct Line {
    vm: String,
    vm_uuid: String,
    pool: String,
    result: Outcome,
    detail: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    /// It is as it was before, and carries no claim.
    Restored,
    /// It carried no claim.
    Nothing,
    /// Nothing was changed.
    Refused,
    /// It could not be done.
    Failed,
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Nothing => "nothing to do",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }

    const fn ended(self) -> Ended {
        match self {
            Self::Restored | Self::Nothing => Ended::Done,
            Self::Refused => Ended::Refused,
            Self::Failed => Ended::Failed,
        }
    }
}

pub(super) async fn run(args: &RestoreArgs, path: &Path) -> Answer {
    let config = load(path)?;
    let wanted = selectors::expand(&args.selectors)?;
    let clients = app::clients(&config).map_err(|error| Stop::new(Ended::Usage, app::chain(&error)))?;
    let apis = app::apis(&clients);
    let link = Link::new(&config.admin.socket);
    let work = Work { owner: &config.server_name, args, server: link.answers().await.then_some(link) };
    let (found, mut ended) = read(&apis).await;
    let (mut lines, unresolved) = select(args, &wanted, &found);
    for (selector, problem) in &unresolved {
        note(&format!("bootflip: {selector}: {problem}"));
        ended = ended.max(Ended::Usage);
    }
    let claimed: Vec<&Found> =
        found.iter().filter(|one| one.claimed.is_some() && lines.contains_key(&one.candidate.uuid)).collect();
    let done = stream::iter(claimed)
        .map(|one| async { (one.candidate.uuid.clone(), work.one(one, apis.get(&one.candidate.pool)).await) })
        .buffer_unordered(AT_ONCE);
    lines.extend(done.collect::<Vec<_>>().await);
    app::log_out(&clients).await;
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by(|a, b| (&a.pool, &a.vm, &a.vm_uuid).cmp(&(&b.pool, &b.vm, &b.vm_uuid)));
    let ended = lines.iter().map(|line| line.result.ended()).chain([ended]).max().unwrap_or(ended);
    show(args, &lines, ended);
    Ok(ended)
}

fn show(args: &RestoreArgs, lines: &[Line], ended: Ended) {
    if args.json {
        print_json(&serde_json::json!({ "ok": ended == Ended::Done, "vms": lines }));
    } else if lines.is_empty() {
        note("no VM of these pools carries a claim");
    } else {
        let row = |line: &Line| {
            vec![line.vm.clone(), line.pool.clone(), line.result.label().to_owned(), line.detail.clone()]
        };
        print(&table(&["VM", "POOL", "RESULT", "PARTICULARS"], &lines.iter().map(row).collect::<Vec<_>>()));
    }
}

/// A VM, with its claim where it carries one.
struct Found {
    candidate: Candidate,
    claimed: Option<Claimed>,
}

async fn read(apis: &BTreeMap<String, Api>) -> (Vec<Found>, Ended) {
    let (mut found, mut ended) = (Vec::new(), Ended::Done);
    for (pool, api) in apis {
        let read = async {
            let mut claims: BTreeMap<String, Claimed> =
                claims::claims(api).await?.into_iter().map(|one| (one.vm.uuid.clone(), one)).collect();
            Ok::<_, CallError>(api.vms().await?.into_iter().map(move |vm| Found {
                candidate: Candidate::of(pool, &vm),
                claimed: claims.remove(&vm.uuid),
            }))
        };
        match read.await {
            Ok(vms) => found.extend(vms),
            Err(error) => {
                note(&format!("bootflip: pool {pool}: {error}"));
                ended = Ended::Failed;
            }
        }
    }
    (found, ended)
}

type Lines = BTreeMap<String, Line>;

/// The VMs that are meant, as lines to be filled, and the selectors that mean none.
fn select(args: &RestoreArgs, wanted: &[String], found: &[Found]) -> (Lines, Vec<(String, String)>) {
    let blank = |candidate: &Candidate| {
        let line = line(candidate, Outcome::Nothing, "it carries no claim");
        (candidate.uuid.clone(), line)
    };
    if args.all {
        let claimed = found.iter().filter(|one| one.claimed.is_some());
        return (claimed.map(|one| blank(&one.candidate)).collect(), Vec::new());
    }
    let candidates: Vec<Candidate> = found.iter().map(|one| one.candidate.clone()).collect();
    let Selection { chosen, unresolved } = resolve(wanted, &candidates);
    let unresolved = unresolved.into_iter().map(|one| (one.selector, one.problem)).collect();
    (chosen.iter().map(blank).collect(), unresolved)
}

fn line(candidate: &Candidate, result: Outcome, detail: impl Into<String>) -> Line {
    Line {
        vm: candidate.name.clone(),
        vm_uuid: candidate.uuid.clone(),
        pool: candidate.pool.clone(),
        result,
        detail: detail.into(),
    }
}

struct Work<'a> {
    /// `server.name`.
    owner: &'a str,
    args: &'a RestoreArgs,
    /// Our server, when it answers.
    server: Option<Link>,
}

impl Work<'_> {
    async fn one(&self, found: &Found, api: Option<&Api>) -> Line {
        let (result, detail) = match (&found.claimed, api) {
            (Some(claimed), Some(api)) => self.restore(claimed, api).await,
            (None, _) | (_, None) => (Outcome::Nothing, "it carries no claim".to_owned()),
        };
        line(&found.candidate, result, detail)
    }

    async fn restore(&self, claimed: &Claimed, api: &Api) -> (Outcome, String) {
        let claim = match &claimed.claim {
            Ok(claim) => claim,
            Err(why) => return (Outcome::Refused, why.clone()),
        };
        let ours = claim.owner == self.owner;
        if !ours && self.args.owner.as_deref() != Some(claim.owner.as_str()) {
            let owner = &claim.owner;
            let text = format!(
                "claimed by server \"{owner}\" for job {}; restore it there or, when that server is gone for good, say --owner {owner}",
                claim.job
            );
            return (Outcome::Refused, text);
        }
        let off = claimed.vm.power_state == PowerState::Halted || self.args.stop;
        if !off && !settings::is_as_before(&claimed.vm, &claim.touched) {
            let text = "it runs in network boot mode; say --stop to shut it down hard first".to_owned();
            return (Outcome::Refused, text);
        }
        if let Some(server) = self.server.as_ref().filter(|_| ours) {
            if self.args.all
                && !self.args.stop
                && let Some(text) = under_way(server, claim).await
            {
                return (Outcome::Refused, text);
            }
            if let Some(answer) = through_server(server, claim, api).await {
                return answer;
            }
        }
        let pause = |until| Box::pin(claims::sleep_until(until, &SystemClock)) as BoxFuture<'_, ()>;
        match claims::restore(api, claimed, self.args.stop, &SystemClock, &pause).await {
            Ok(()) => (Outcome::Restored, "from its claim".to_owned()),
            Err(why) if claimed.vm.power_state != PowerState::Halted && !self.args.stop => {
                (Outcome::Refused, why)
            }
            Err(why) => (Outcome::Failed, why),
        }
    }
}

/// What `--all` leaves alone: a job that goes on, and puts its VM back by itself.
async fn under_way(server: &Link, claim: &Claim) -> Option<String> {
    let job: JobView = server.get(&format!("/api/v1/jobs/{}", claim.job)).await.ok()?;
    let waits = job.is_over() || matches!(job.state, State::NeedsOperator | State::Undoing);
    let text = format!(
        "job {} is under way ({}) and puts it back by itself; name the VM, or say --stop, to end it",
        job.id, job.state
    );
    (!waits).then_some(text)
}

/// Has the server undo its job; `None`: it knows of no such job, or the job has ended and left the claim.
async fn through_server(server: &Link, claim: &Claim, api: &Api) -> Option<(Outcome, String)> {
    let path = format!("/api/v1/jobs/{}/cancel", claim.job);
    match server.post::<JobView>(&path, &serde_json::json!({})).await {
        Ok(_) => {}
        // It is on its way back already, has ended, or waits for a person: the job says so below.
        Err(LinkError::Refused { status: StatusCode::CONFLICT, .. }) => {}
        Err(LinkError::Refused { status: StatusCode::NOT_FOUND, .. }) => return None,
        Err(error) => return Some((Outcome::Failed, error.to_string())),
    }
    let ids = BTreeSet::from([claim.job.clone()]);
    let job = match wait(server, &ids, Progress::Silent).await {
        Ok(jobs) => jobs.into_iter().next()?,
        Err(stop) => return Some((Outcome::Failed, stop.message)),
    };
    if job.state == State::NeedsOperator {
        return Some((Outcome::Failed, format!("job {} waits for an operator: {}", job.id, job.next_step)));
    }
    match still_claimed(claim, api).await {
        Ok(true) => None,
        Ok(false) => Some((Outcome::Restored, format!("by its server: job {} is {}", job.id, job.state))),
        Err(error) => Some((Outcome::Failed, error.to_string())),
    }
}

async fn still_claimed(claim: &Claim, api: &Api) -> Result<bool, CallError> {
    let vm = api.vm_by_uuid(&claim.vm_uuid).await?;
    Ok(claim.stands_in(&api.vm_record(&vm).await?))
}

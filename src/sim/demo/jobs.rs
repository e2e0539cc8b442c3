//! How the demo watches the server's jobs: by its admin socket, for progress and the document's `state`, `states`
//! and `stages`. No verdict comes from here.

use std::{collections::HashMap, io, path::PathBuf, time::Duration};

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    time::timeout,
};

use super::document::Timed;

/// A job as the admin API shows it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct JobView {
    /// Its id.
    pub id: String,
    /// The VM's uuid.
    pub vm_uuid: String,
    /// How much is over, 0 to 100.
    #[serde(default)]
    pub percent: u8,
    /// Its state.
    pub state: String,
    /// Why it ended as it did.
    #[serde(default)]
    pub reason: Option<String>,
    /// The attempt, from 1.
    #[serde(default)]
    pub attempt: u32,
    /// The states so far and how long each took.
    #[serde(default)]
    pub states: Vec<Timed>,
    /// The stages so far.
    #[serde(default)]
    pub stages: Vec<Timed>,
}

impl JobView {
    /// Nothing more happens by itself.
    pub fn is_over(&self) -> bool {
        ["succeeded", "failed", "cancelled", "needsoperator", "needs_operator", "needs-operator"]
            .contains(&self.state.to_ascii_lowercase().as_str())
    }

    /// It waits for a slot.
    pub fn is_queued(&self) -> bool {
        self.state.eq_ignore_ascii_case("queued")
    }

    /// How long it has been under way, over all attempts.
    pub fn seconds(&self) -> f64 {
        self.states.iter().map(|state| state.seconds).sum()
    }

    /// It failed, and may be tried again.
    pub fn has_failed(&self) -> bool {
        self.state.eq_ignore_ascii_case("failed")
    }
}

/// The jobs could not be asked for; usual while the server is away.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The socket.
    #[error("the server's admin socket does not answer")]
    Connect(#[source] io::Error),
    /// It took too long.
    #[error("the server's admin socket did not answer in time")]
    TimedOut,
    /// No reply of that form.
    #[error("the server's admin socket answered something else: {0}")]
    Reply(String),
}

/// The admin API of one server.
#[derive(Debug, Clone)]
pub struct JobFeed {
    socket: PathBuf,
}

impl JobFeed {
    /// The server whose admin socket is there.
    pub const fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// All jobs.
    pub async fn jobs(&self) -> Result<Vec<JobView>, FeedError> {
        let asked = timeout(ANSWER_TIME, self.ask()).await.map_err(|_| FeedError::TimedOut)?;
        parse(&asked.map_err(FeedError::Connect)?)
    }

    async fn ask(&self) -> io::Result<Vec<u8>> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all(b"GET /api/v1/jobs?limit=1000 HTTP/1.0\r\nHost: bootflip\r\n\r\n").await?;
        let mut reply = vec![];
        stream.read_to_end(&mut reply).await?;
        Ok(reply)
    }
}

/// The list, bare or as a member `jobs`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Listed {
    Bare(Vec<JobView>),
    Member { jobs: Vec<JobView> },
}

fn parse(reply: &[u8]) -> Result<Vec<JobView>, FeedError> {
    let end = reply.windows(4).position(|four| four == b"\r\n\r\n");
    let (head, body) = end.and_then(|end| reply.split_at_checked(end + 4)).unwrap_or((reply, b""));
    let status = String::from_utf8_lossy(head).lines().next().unwrap_or_default().to_owned();
    if !status.contains(" 200 ") {
        return Err(FeedError::Reply(status));
    }
    match serde_json::from_slice(body) {
        Ok(Listed::Bare(jobs) | Listed::Member { jobs }) => Ok(jobs),
        Err(error) => Err(FeedError::Reply(error.to_string())),
    }
}

/// Why `bootflip deploy --json` made no job, by VM uuid, from what it printed.
pub fn refusals(printed: &[u8]) -> HashMap<String, String> {
    #[derive(Deserialize)]
    struct Printed {
        #[serde(default)]
        vms: Vec<Line>,
    }
    #[derive(Deserialize)]
    struct Line {
        vm_uuid: String,
        job: Option<String>,
        reason: Option<String>,
    }
    let printed = serde_json::from_slice(printed).unwrap_or(Printed { vms: vec![] });
    let refused = printed.vms.into_iter().filter(|line| line.job.is_none());
    refused.filter_map(|line| Some((line.vm_uuid, line.reason?))).collect()
}

const ANSWER_TIME: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_the_list_are_read() {
        let job = r#"{"id":"j","vm":"web","vm_uuid":"u","state":"Failed","reason":"no-report","attempt":2,"states":[{"name":"Queued","seconds":0.1}],"more":1}"#;
        for body in [format!("[{job}]"), format!(r#"{{"jobs":[{job}]}}"#)] {
            let jobs = parse(format!("HTTP/1.0 200 OK\r\n\r\n{body}").as_bytes()).unwrap();
            assert!(jobs[0].is_over() && jobs[0].has_failed() && jobs[0].attempt == 2);
        }
        assert!(matches!(parse(b"HTTP/1.1 500 Oops\r\n\r\n[]"), Err(FeedError::Reply(_))));
        assert!(matches!(parse(b""), Err(FeedError::Reply(_))));
    }

    #[test]
    fn vms_without_a_job_have_the_reason_of_their_refusal() {
        let printed = br#"{"ok":false,"vms":[{"vm_uuid":"a","job":null,"reason":"not-servable"},{"vm_uuid":"b","job":"j","reason":null}]}"#;
        let expected = HashMap::from([("a".to_owned(), "not-servable".to_owned())]);
        assert_eq!(refusals(printed), expected);
        assert_eq!(refusals(b"rubbish"), HashMap::new());
    }
}

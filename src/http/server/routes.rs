//! What each route answers. Asks the gate, tells the sink, opens files.

use std::{
    convert::Infallible,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode, Version,
    body::{Body, Bytes, Incoming},
    header::{self, HeaderName, HeaderValue},
    http::request::Parts,
};
use tokio::time::Instant;
use tracing::{debug, error};

use super::{
    renders::{Rendered, Renders},
    reply::{Access, Cached, Content, Part, Reply},
    seats::Seat,
    wire::Outlet,
};
use crate::{
    boot::{
        Answer, Armed, Ask, Gate,
        going::Going,
        render::{GPXE_REFUSAL, IPXE_REFUSAL, RenderError, Urls, lint::Dialect},
        root::RelativePath,
        sink::{Protocol, Report, ReportAnswer, Seen, Sign, Sink},
        vouch::{Unfit, Vouch},
    },
    http::{
        NOT_FOUND, REPORT_LIMIT, RETRY_AFTER, Route,
        conditional::{Conditions, Decision, Validator},
        masked, report_status,
    },
    machine::MacAddr,
    secret::TokenHash,
};

/// What the routes need.
#[derive(Debug)]
pub(super) struct Routes {
    pub(super) gate: Gate,
    pub(super) sink: Arc<dyn Sink>,
    pub(super) renders: Renders,
    pub(super) files: Vouch,
    pub(super) urls: Urls,
    pub(super) body_stall: Duration,
}

/// A connection, as its requests need it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    /// As the socket says it; no header changes that.
    pub(super) peer: IpAddr,
    pub(super) seat: Arc<Seat>,
    pub(super) outlet: Outlet,
}

/// An answer before it is a message.
#[derive(Debug)]
struct Answered {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    content: Content,
    mac: Option<MacAddr>,
    job: Option<String>,
}

impl Answered {
    const fn bare(status: StatusCode) -> Self {
        Self { status, headers: Vec::new(), content: Content::Empty, mac: None, job: None }
    }

    fn with(mut self, name: HeaderName, value: &str) -> Self {
        match HeaderValue::from_str(value) {
            Ok(value) => self.headers.push((name, value)),
            Err(_) => debug!(%name, "a header value of ours does not parse"),
        }
        self
    }

    fn of(self, armed: &Armed) -> Self {
        Self { mac: Some(armed.mac), job: Some(armed.job.clone()), ..self }
    }

    /// The body's length in bytes.
    fn length(&self) -> u64 {
        match &self.content {
            Content::Empty => 0,
            Content::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
            Content::Part(part) => part.length,
        }
    }
}

fn not_found() -> Answered {
    let content = Content::Text(Bytes::from_static(NOT_FOUND.as_bytes()));
    Answered { content, ..Answered::bare(StatusCode::NOT_FOUND) }
        .with(header::CONTENT_TYPE, "text/plain; charset=utf-8")
}

fn later() -> Answered {
    Answered::bare(StatusCode::SERVICE_UNAVAILABLE).with(header::RETRY_AFTER, RETRY_AFTER)
}

fn wrong_method(allowed: &'static str) -> Answered {
    Answered::bare(StatusCode::METHOD_NOT_ALLOWED).with(header::ALLOW, allowed)
}

/// What was checked before the job began does not render now: a fault of ours or of a changed template.
fn broken(armed: &Armed, problem: &RenderError) -> Answered {
    error!(job = %armed.job, vm = %armed.vm_name, %problem, "what this machine needs cannot be rendered");
    Answered::bare(StatusCode::INTERNAL_SERVER_ERROR).of(armed)
}

/// Answers one request.
pub(super) async fn serve(
    routes: &Routes,
    line: Line,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Infallible> {
    let begun = Instant::now();
    line.seat.begin();
    let (parts, body) = request.into_parts();
    let answered = match refused_head(&parts) {
        Some(status) => Answered::bare(status),
        None => routes.answer(&parts, body, line.peer).await,
    };
    let length = answered.length();
    let path = masked(parts.uri.path());
    let going = routes.begin(&answered, &path, (line.peer, begun));
    let access = Access {
        begun,
        peer: line.peer,
        method: parts.method.to_string(),
        path,
        mac: answered.mac,
        job: answered.job,
        status: answered.status.as_u16(),
        length,
        sent: AtomicU64::new(0),
        going,
        seat: line.seat,
        sink: Arc::clone(&routes.sink),
    };
    let mut response = Response::new(Reply::new(answered.content, access, line.outlet));
    *response.status_mut() = answered.status;
    response.headers_mut().extend(answered.headers);
    // Whatever comes behind a body without a length is not read as a request (RFC 9112 §6.3): nothing to smuggle.
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

/// The status that refuses a request by its head alone.
fn refused_head(parts: &Parts) -> Option<StatusCode> {
    // RFC 9112 §3.2: not one Host is no request of HTTP/1.1.
    let hosts = parts.headers.get_all(header::HOST).iter().count();
    let hosts_fit = if parts.version == Version::HTTP_11 { hosts == 1 } else { hosts <= 1 };
    let body_fits = parts.method == Method::POST || !parts.headers.contains_key(header::TRANSFER_ENCODING);
    (!hosts_fit || !body_fits).then_some(StatusCode::BAD_REQUEST)
}

fn dialect(parts: &Parts) -> Dialect {
    Dialect::of_user_agent(parts.headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()))
}

fn refusal(dialect: Dialect) -> Rendered {
    let text = match dialect {
        Dialect::Gpxe => GPXE_REFUSAL,
        Dialect::Ipxe2012 | Dialect::Modern => IPXE_REFUSAL,
    };
    Rendered::new(text.to_owned())
}

fn conditions<'a>(headers: &'a HeaderMap, method: &Method) -> Conditions<'a> {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    Conditions {
        if_match: header(header::IF_MATCH),
        if_unmodified_since: header(header::IF_UNMODIFIED_SINCE),
        if_none_match: header(header::IF_NONE_MATCH),
        if_modified_since: header(header::IF_MODIFIED_SINCE),
        if_range: header(header::IF_RANGE),
        range: header(header::RANGE).filter(|_| *method == Method::GET),
    }
}

/// Status and headers of a decision, and the bytes it sends: from where and how many.
fn decided(decision: Decision, validator: &Validator, length: u64) -> (Answered, Option<(u64, u64)>) {
    let answered = |status: StatusCode, count: u64| {
        let answered = Answered::bare(status)
            .with(header::ETAG, &validator.tag)
            .with(header::ACCEPT_RANGES, "bytes")
            .with(header::CONTENT_LENGTH, &count.to_string());
        match validator.last_modified() {
            Some(date) => answered.with(header::LAST_MODIFIED, &date),
            None => answered,
        }
    };
    match decision {
        Decision::Whole => (answered(StatusCode::OK, length), Some((0, length))),
        Decision::Part { first, length: count } => {
            let range = format!("bytes {first}-{}/{length}", first + count - 1);
            let answered = answered(StatusCode::PARTIAL_CONTENT, count);
            (answered.with(header::CONTENT_RANGE, &range), Some((first, count)))
        }
        Decision::NotModified => {
            (Answered::bare(StatusCode::NOT_MODIFIED).with(header::ETAG, &validator.tag), None)
        }
        Decision::OtherVersion => (Answered::bare(StatusCode::PRECONDITION_FAILED), None),
        Decision::Unsatisfiable => {
            let range = format!("bytes */{length}");
            (Answered::bare(StatusCode::RANGE_NOT_SATISFIABLE).with(header::CONTENT_RANGE, &range), None)
        }
    }
}

/// The answer with a text, as far as it is asked for; and whether any of it leaves.
fn text(rendered: &Rendered, parts: &Parts) -> (Answered, bool) {
    let length = u64::try_from(rendered.text.len()).unwrap_or(u64::MAX);
    let decision = conditions(&parts.headers, &parts.method).decide(&rendered.validator, length);
    let (answered, bytes) = decided(decision, &rendered.validator, length);
    let answered = answered
        .with(header::CONTENT_TYPE, "text/plain; charset=utf-8")
        .with(header::CACHE_CONTROL, "no-store");
    let Some((first, count)) = bytes.filter(|_| parts.method == Method::GET) else {
        return (answered, false);
    };
    let range = usize::try_from(first).ok().zip(usize::try_from(first + count).ok());
    let text = range.map(|(from, to)| rendered.text.slice(from..to)).unwrap_or_default();
    (Answered { content: Content::Text(text), ..answered }, true)
}

impl Routes {
    async fn answer(&self, parts: &Parts, body: Incoming, peer: IpAddr) -> Answered {
        let Some(route) = Route::parse(parts.uri.path()) else { return not_found() };
        let reads = parts.method == Method::HEAD || parts.method == Method::GET;
        match route {
            Route::Report { token, stage } => self.report(&token, stage, parts, body, peer).await,
            Route::Script(_) | Route::File { .. } | Route::Answer { .. } if !reads => {
                wrong_method("GET, HEAD")
            }
            Route::Script(mac) => self.script(mac, parts, peer),
            Route::File { token, path } => self.file(&token, path, parts, peer).await,
            Route::Answer { token, name } => self.answer_file(&token, &name, parts, peer).await,
        }
    }

    /// Tells of a file that begins to leave; what is rendered leaves at once.
    fn begin(&self, answered: &Answered, path: &str, (peer, at): (IpAddr, Instant)) -> Option<Arc<Going>> {
        let Content::Part(part) = &answered.content else { return None };
        let whose = (answered.mac?, peer);
        let going = Arc::new(Going::new(Protocol::Http, whose, path.to_owned(), part.length, at.into_std()));
        self.sink.going(&going);
        Some(going)
    }

    fn tell(&self, mac: MacAddr, sign: Sign, peer: IpAddr) {
        self.gate.met(mac, peer);
        self.sink.seen(Seen { mac, sign, peer: Some(peer) });
    }

    fn script(&self, mac: MacAddr, parts: &Parts, peer: IpAddr) -> Answered {
        let (script, sign, job) = match self.gate.answer(Ask::Netboot { mac }) {
            Answer::Unknown => return not_found(),
            Answer::Refused(_) => (refusal(dialect(parts)), Sign::NetbootRefused, None),
            Answer::Boot(armed) => match self.renders.script(&armed, &self.urls, dialect(parts)) {
                Ok(script) => (script, Sign::Script, Some(armed.job.clone())),
                Err(problem) => return broken(&armed, &problem),
            },
        };
        let (answered, leaves) = text(&script, parts);
        if leaves {
            self.tell(mac, sign, peer);
        }
        Answered { mac: Some(mac), job, ..answered }
    }

    async fn file(&self, token: &str, path: RelativePath, parts: &Parts, peer: IpAddr) -> Answered {
        let Answer::Boot(armed) = self.gate.answer(Ask::File { token }) else { return not_found() };
        let Some(sign) = armed.file_sign(&path) else { return not_found() };
        let files = self.files.clone();
        let name = path.clone();
        let opened = tokio::task::spawn_blocking(move || {
            files.open(&name).map(|published| (Cached::of(&published.file), published))
        });
        let opened = opened.await.map_err(|error| Unfit::Unreadable(io::Error::other(error))).flatten();
        let (cached, published) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let root = self.files.root().path().display();
                error!(job = %armed.job, file = path.as_str(), %root, %error, "a boot file is not given out");
                return not_found();
            }
        };
        let validator = Validator { tag: published.tag(), modified: published.modified };
        let decision = conditions(&parts.headers, &parts.method).decide(&validator, published.length);
        let (answered, bytes) = decided(decision, &validator, published.length);
        let answered = answered.with(header::CONTENT_TYPE, "application/octet-stream").of(&armed);
        let Some((first, length)) = bytes.filter(|_| parts.method == Method::GET) else { return answered };
        self.tell(armed.mac, sign, peer);
        let part = Part { file: Arc::new(published.file), first, length, cached, warming: None };
        Answered { content: Content::Part(part), ..answered }
    }

    async fn answer_file(&self, token: &str, name: &str, parts: &Parts, peer: IpAddr) -> Answered {
        let Answer::Boot(armed) = self.gate.answer(Ask::AnswerFile { token }) else { return not_found() };
        let rendered = match self.renders.answer(&armed, &self.urls, name) {
            Ok(Some(rendered)) => rendered,
            Ok(None) => return not_found(),
            Err(problem) => return broken(&armed, &problem),
        };
        let (answered, leaves) = text(&rendered, parts);
        // What a seed has beside the first is asked for in any number and order, and says nothing of its own.
        let counts = armed.files.answers().next().is_some_and(|first| first.name == name);
        if leaves && counts {
            match self.sink.answer_fetched(TokenHash::of(token), Some(peer)).await {
                Ok(true) => {}
                Ok(false) => return not_found(),
                Err(_) => return later().of(&armed),
            }
        }
        answered.of(&armed)
    }

    async fn report(
        &self,
        token: &str,
        stage: String,
        parts: &Parts,
        body: Incoming,
        peer: IpAddr,
    ) -> Answered {
        let by_get = match parts.method {
            Method::GET => true,
            Method::POST => false,
            _ => return wrong_method("POST"),
        };
        let body = if by_get {
            parts.uri.query().unwrap_or_default().as_bytes().to_vec()
        } else {
            match read_body(&parts.headers, body, self.body_stall).await {
                Ok(body) => body,
                Err(refusal) => return Answered::bare(refusal),
            }
        };
        let report = Report { token: TokenHash::of(token), stage, body, peer: Some(peer), by_get };
        let answer = self.sink.report(report).await;
        match answer {
            ReportAnswer::Unknown => not_found(),
            ReportAnswer::WrongMethod => wrong_method("POST"),
            ReportAnswer::Later => later(),
            ReportAnswer::Accepted | ReportAnswer::Already | ReportAnswer::Closed => Answered::bare(
                StatusCode::from_u16(report_status(answer)).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            ),
        }
    }
}

/// The body of a report, or the status that refuses it.
async fn read_body(
    headers: &HeaderMap,
    mut body: Incoming,
    patience: Duration,
) -> Result<Vec<u8>, StatusCode> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced
        .and_then(|length| length.parse::<u64>().ok())
        .is_some_and(|length| length > REPORT_LIMIT as u64)
    {
        return Err(StatusCode::PAYLOAD_TOO_LARGE);
    }
    let mut whole = Vec::new();
    loop {
        let next = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        match tokio::time::timeout(patience, next).await {
            Ok(Some(Ok(frame))) => {
                let piece = frame.into_data().unwrap_or_default(); // trailers say nothing to us
                if whole.len() + piece.len() > REPORT_LIMIT {
                    return Err(StatusCode::PAYLOAD_TOO_LARGE);
                }
                whole.extend_from_slice(&piece);
            }
            Ok(Some(Err(_))) => return Err(StatusCode::BAD_REQUEST),
            Ok(None) => return Ok(whole),
            Err(_) => return Err(StatusCode::REQUEST_TIMEOUT),
        }
    }
}

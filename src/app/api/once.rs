//! `Idempotency-Key`: a request that is sent twice is carried out once (see `access::repeats`).
//!
//! Invariant: only answers of the routers that have this layer are kept in the database, and none of them holds a
//! secret. A client that goes away does not stop what it ordered half-way.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{Request, State},
    http::{HeaderName, HeaderValue, Method, Response as HttpResponse, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    BODY_LIMIT,
    problem::{Kind, Refusal},
};
use crate::{
    access::{
        Caller,
        repeats::{self, ANSWER_LIMIT, KeptAnswer, Verdict},
    },
    app::desk::Desk,
    clock::Timestamp,
};

const KEY: &str = "idempotency-key";

/// Says that the answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Carries a request with a key out once.
pub(super) async fn once(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    request: Request,
    next: Next,
) -> Result<Response, Refusal> {
    let Some(key) = request.headers().get(KEY).filter(|_| request.method() == Method::POST) else {
        return Ok(next.run(request).await);
    };
    let key = key.to_str().unwrap_or_default();
    if let Some(problem) = repeats::key_problem(key) {
        return Err(Refusal::new(Kind::InvalidRequest, problem));
    }
    let place = repeats::place(&caller.label(), key);
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_LIMIT).await.map_err(|_| {
        Refusal::new(Kind::TooLarge, format!("a request with a key has at most {BODY_LIMIT} bytes"))
    })?;
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let print = repeats::fingerprint(parts.method.as_str(), path, &body);
    let now = desk.clock.now();
    match desk.door.accounts().begin(&place, &print, now).await? {
        Verdict::New => {}
        Verdict::Again(answer) => return again(answer),
        Verdict::UnderWay => {
            return Err(Refusal::new(Kind::UnderWay, "the first request with this key is not answered yet"));
        }
        Verdict::Other => {
            return Err(Refusal::new(Kind::KeyReused, "take a new key for each new request"));
        }
    }
    let request = Request::from_parts(parts, Body::from(body));
    let work = tokio::spawn(async move {
        let response = next.run(request).await;
        keep(&desk, Begun { place, print, at: now }, response).await
    });
    work.await.map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?
}

/// A request under way.
struct Begun {
    place: String,
    print: String,
    at: Timestamp,
}

/// In an answer's extensions: it is none of a refusal, and nothing came of the request all the same.
#[derive(Debug, Clone, Copy)]
pub(super) struct NothingDone;

/// Keeps the answer where something was done; otherwise the request may be made again.
async fn keep(desk: &Desk, begun: Begun, response: Response) -> Result<Response, Refusal> {
    let (parts, body) = response.into_parts();
    let body =
        to_bytes(body, usize::MAX).await.map_err(|error| Refusal::new(Kind::Internal, error.to_string()))?;
    let was_done = parts.status.is_success() && parts.extensions.get::<NothingDone>().is_none();
    let done = was_done.then(|| {
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        KeptAnswer {
            status: parts.status.as_u16(),
            content_type: content_type.unwrap_or("application/json").to_owned(),
            body: kept(&body),
        }
    });
    if let Err(error) = desk.door.accounts().end(&begun.place, &begun.print, begun.at, done).await {
        tracing::error!(%error, "the answer to a request with a key is not kept");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn kept(body: &Bytes) -> Option<String> {
    let fits = body.len() <= ANSWER_LIMIT;
    std::str::from_utf8(body).ok().filter(|_| fits).map(str::to_owned)
}

fn again(answer: KeptAnswer) -> Result<Response, Refusal> {
    let Some(body) = answer.body else {
        return Err(Refusal::new(Kind::AnswerNotKept, "look at the jobs for what came of it"));
    };
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::OK);
    let mut response: Response = HttpResponse::new(Body::from(body)).into_response();
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(REPLAYED, HeaderValue::from_static("true"));
    if let Ok(content_type) = HeaderValue::from_str(&answer.content_type) {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    Ok(response)
}

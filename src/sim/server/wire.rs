//! HTTP as xapi speaks it: which request is a call, in which of the two forms, and how its answer is written.
//!
//! `POST /jsonrpc` is JSON-RPC where the release has it; every other POST path is XML-RPC, and so is that one where
//! it has not. A length must be told: xapi reads no chunked body. What is no call gets HTTP 500 and a page.

use axum::body::Body;
use hyper::{
    HeaderMap, Method as HttpMethod, Request, Response, StatusCode,
    body::Incoming,
    ext::ReasonPhrase,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_ORIGIN, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH,
        CONTENT_TYPE, HeaderValue,
    },
};
use tracing::debug;

use super::{
    jsonrpc,
    member::{Closed, Member},
};
use crate::{
    sim::pool::Api,
    xen::{Failure, Value, codec},
};

/// Xapi's `http_limit_max_rpc_size`, bytes.
const BODY_LIMIT: usize = 300 << 10;
/// The path of JSON-RPC; xapi looks for the longest path that a request's begins with.
const JSON_PATH: &str = "/jsonrpc";
/// The API version of XenServer 7.0, the first release that certainly has JSON-RPC.
const JSON_SINCE: Api = (2, 5);
/// The one call that needs no session, and whose XML answer has no envelope.
const LIST_METHODS: &str = "system.listMethods";
/// What xapi's page says before the error itself.
const APOLOGY: &str = "An unexpected error occurred; please wait a while and try again. If the problem persists, \
                       please contact your support representative.";

/// One HTTP request.
pub(super) async fn serve(member: &Member, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    if request.method() != HttpMethod::POST {
        return Ok(not_found());
    }
    let json = request.uri().path().starts_with(JSON_PATH)
        && member.pool.locked(|pool, _| pool.release().api >= JSON_SINCE);
    let body = match read_body(request).await {
        Ok(body) => body,
        Err(detail) => return Ok(no_call(&detail)),
    };
    let call = if json {
        jsonrpc::Request::read(&body).map(Call::Json)
    } else {
        codec::decode_call(&body)
            .map(|(method, params)| Call::Xml { method, params })
            .map_err(|error| error.to_string())
    };
    match call {
        Ok(call) => answer(member, &call).await,
        Err(detail) => Ok(no_call(&detail)),
    }
}

/// A call in one of the two forms.
enum Call {
    Json(jsonrpc::Request),
    Xml { method: String, params: Vec<Value> },
}

async fn answer(member: &Member, call: &Call) -> Result<Response<Body>, Closed> {
    let (method, params) = match call {
        Call::Json(request) => (&request.method, &request.params),
        Call::Xml { method, params } => (method, params),
    };
    let answer = if method == LIST_METHODS {
        let methods = member.pool.locked(|pool, _| pool.methods());
        Ok(Value::Array(methods.into_iter().map(Value::String).collect()))
    } else {
        member.answer(method, params).await?
    };
    let (body, kind) = match call {
        Call::Json(request) => (request.reply(&answer), "application/json"),
        Call::Xml { .. } => (xml(method, &answer), "text/xml"),
    };
    debug!(%method, member = %member.address, refused = answer.err().map(|failure| failure.code), "simulated call");
    let mut response = Response::new(Body::from(body));
    describe(response.headers_mut(), kind);
    Ok(response)
}

fn xml(method: &str, answer: &Result<Value, Failure>) -> String {
    match answer {
        Ok(value) if method == LIST_METHODS => codec::encode_bare(value),
        Ok(value) => codec::encode_success(value),
        Err(failure) => codec::encode_failure(failure),
    }
}

/// The request's body; `Err` says why there is none.
async fn read_body(request: Request<Incoming>) -> Result<bytes::Bytes, String> {
    if !request.headers().contains_key(CONTENT_LENGTH) {
        return Err("We require a content-length: HTTP header".to_owned());
    }
    let body = axum::body::to_bytes(Body::new(request.into_body()), BODY_LIMIT).await;
    body.map_err(|_| "Http_svr.Client_requested_size_over_limit".to_owned())
}

fn describe(headers: &mut HeaderMap, kind: &'static str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("X-Requested-With"));
}

/// What xapi answers to what is no call.
fn no_call(detail: &str) -> Response<Body> {
    let detail =
        detail.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let words = format!(
        "<html><body><h1>HTTP 500 internal server error</h1>{APOLOGY}<h1> Additional information </h1>{detail}</body></html>"
    );
    let mut response = page(StatusCode::INTERNAL_SERVER_ERROR, words);
    response.extensions_mut().insert(ReasonPhrase::from_static(b"Internal Error"));
    response
}

fn not_found() -> Response<Body> {
    page(StatusCode::NOT_FOUND, "<html><body><h1>404 Not Found</h1></body></html>".to_owned())
}

fn page(status: StatusCode, words: String) -> Response<Body> {
    let mut response = Response::new(Body::from(words));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store"));
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

//! HTTP as xapi speaks it: which request is a call, and how its answer is written.

use axum::body::Body;
use hyper::{
    Method as HttpMethod, Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue},
};
use tracing::debug;

use super::member::{Closed, Member};
use crate::xen::codec;

/// Xapi's `http_limit_max_rpc_size`, bytes.
const BODY_LIMIT: usize = 300 << 10;

/// One HTTP request.
pub(super) async fn serve(member: &Member, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    if request.method() != HttpMethod::POST {
        return Ok(page(StatusCode::NOT_FOUND));
    }
    if !request.headers().contains_key(CONTENT_LENGTH) {
        return Ok(page(StatusCode::INTERNAL_SERVER_ERROR)); // xapi cannot read a chunked body
    }
    let Ok(body) = axum::body::to_bytes(Body::new(request.into_body()), BODY_LIMIT).await else {
        return Ok(page(StatusCode::INTERNAL_SERVER_ERROR));
    };
    let Ok((method, params)) = codec::decode_call(&body) else {
        return Ok(page(StatusCode::INTERNAL_SERVER_ERROR));
    };
    let answer = member.answer(&method, &params).await?;
    let body = match &answer {
        Ok(value) => codec::encode_success(value),
        Err(failure) => codec::encode_failure(failure),
    };
    debug!(%method, member = %member.address, refused = answer.err().map(|failure| failure.code), "simulated call");
    let mut response = Response::new(Body::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/xml"));
    Ok(response)
}

/// What xapi answers to what is no call: HTML.
fn page(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::from(format!("<html><body><h1>{status}</h1></body></html>")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html"));
    response
}

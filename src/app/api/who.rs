//! The check at the door of every request: who asks (socket, token or cookie), whether a browser's request comes from
//! our own pages, and whether the scope of the router will do.
//!
//! Invariant: a [`Caller`] in a request's extensions was put there by [`identify`], and nothing else tells a handler
//! who asks. No header tells anybody's address or name.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    body::Body,
    extract::{FromRequestParts, Request, State},
    http::{HeaderMap, Method, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Redirect, Response},
};

use futures_util::StreamExt;

use super::problem::{Kind, Refusal};
use crate::{
    access::{Caller, Scope, origin::Origin, session::Transport, token},
    app::{desk::Desk, door::Shown},
    secret::TokenHash,
};

/// The other end of a connection; the listener puts it into every request.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// Of the unix socket: who it is, or how one is called who may not use it.
    Socket(Result<Caller, String>),
    /// Of the TCP listener.
    Remote(SocketAddr, Transport),
}

/// Finds out who asks, and refuses what is wrong whoever asks.
pub(super) async fn identify(State(desk): State<Arc<Desk>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    match caller(&desk, &parts).await {
        Ok(caller) => {
            if let Some(caller) = caller {
                parts.extensions.insert(caller);
            }
            let shown = shown(&parts);
            let response = next.run(Request::from_parts(parts, body)).await;
            match shown.filter(|_| is_stream(&response)) {
                Some(shown) => while_good(desk, shown, response),
                None => response,
            }
        }
        Err(refusal) => refusal.into_response(),
    }
}

/// What a request over TCP shows: the token's or the cookie's hash.
fn shown(request: &Parts) -> Option<Shown> {
    let Some(Peer::Remote(_, transport)) = request.extensions.get::<Peer>() else { return None };
    if let Some(shown) = request.headers.get(header::AUTHORIZATION) {
        return shown
            .to_str()
            .ok()
            .and_then(token::of_header)
            .map(|shown| Shown::Token(TokenHash::of(shown)));
    }
    cookie(&request.headers, *transport).map(|cookie| Shown::Session(TokenHash::of(cookie)))
}

fn is_stream(response: &Response) -> bool {
    let kind = response.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// A stream of events ends with what its reader showed: a revoked token watches no longer.
fn while_good(desk: Arc<Desk>, shown: Shown, response: Response) -> Response {
    response.map(|body| {
        let over = async move { desk.door.until_over(shown, &*desk.clock).await };
        Body::from_stream(body.into_data_stream().take_until(Box::pin(over)))
    })
}

async fn caller(desk: &Desk, request: &Parts) -> Result<Option<Caller>, Refusal> {
    let (address, transport) = match request.extensions.get::<Peer>() {
        Some(Peer::Socket(Ok(caller))) => return Ok(Some(caller.clone())),
        Some(Peer::Socket(Err(name))) => {
            let detail = format!("{name} is neither root, nor the server's user, nor in the group bootflip");
            return Err(Refusal::new(Kind::UserNotAllowed, detail));
        }
        Some(Peer::Remote(address, transport)) => (address.ip(), *transport),
        None => return Ok(None),
    };
    let (headers, now) = (&request.headers, desk.clock.now());
    if let Some(shown) = headers.get(header::AUTHORIZATION) {
        let shown = shown.to_str().ok().and_then(token::of_header);
        let detail = "write Authorization: Bearer TOKEN";
        let shown = shown.ok_or_else(|| Refusal::new(Kind::InvalidToken, detail))?;
        return Ok(Some(desk.door.by_token(shown, address, now).await?));
    }
    let Some(cookie) = cookie(headers, transport) else { return Ok(None) };
    if !is_safe(&request.method) {
        own_origin(headers, transport)?;
    }
    Ok(desk.door.by_session(cookie, now).await?)
}

/// The session's cookie.
pub(super) fn cookie(headers: &HeaderMap, transport: Transport) -> Option<&str> {
    let mut values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    values.find_map(|value| transport.of_header(value))
}

/// Whether the browser came by TLS, to us or to a proxy in front.
pub(super) fn is_https(headers: &HeaderMap, transport: Transport) -> bool {
    transport == Transport::Tls
        || headers.get(header::ORIGIN).is_some_and(|origin| origin.as_bytes().starts_with(b"https://"))
}

/// Whether our own page made this request. A page by plain HTTP is never one of a listener with TLS.
pub(super) fn own_origin(headers: &HeaderMap, transport: Transport) -> Result<(), Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let origin =
        Origin { host: header("host"), origin: header("origin"), fetch_site: header("sec-fetch-site") };
    let fits = |origin: &str| transport == Transport::Plain || origin.starts_with("https://");
    if origin.origin.is_none_or(fits) && origin.is_own() {
        return Ok(());
    }
    let detail = "requests of a browser that change something must come from bootflip's own pages";
    Err(Refusal::new(Kind::WrongOrigin, detail))
}

/// RFC 9110 §9.2.1.
fn is_safe(method: &Method) -> bool {
    [Method::GET, Method::HEAD, Method::OPTIONS].contains(method)
}

/// Lets in who has this scope; for `route_layer` of one router.
pub(super) async fn need(scope: Scope, request: Request, next: Next) -> Response {
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.scope.allows(scope) => next.run(request).await,
        Some(caller) => {
            let detail = format!("this needs the scope {scope}, and {} has {}", caller.label(), caller.scope);
            Refusal::new(Kind::ScopeTooSmall, detail).into_response()
        }
        None if wants_page(&request) => {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            Redirect::to(&super::login::address(Some(path), None)).into_response()
        }
        None => {
            let detail = "send Authorization: Bearer TOKEN; `bootflip token add NAME --scope read` on the server makes one";
            Refusal::new(Kind::NotLoggedIn, detail).into_response()
        }
    }
}

/// A person's browser that opens a page.
fn wants_page(request: &Request) -> bool {
    let accepts = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let pages = accepts.is_some_and(|accepts| accepts.contains("text/html"));
    pages && request.method() == Method::GET && !request.uri().path().starts_with(super::PREFIX)
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Refusal::new(Kind::NotLoggedIn, "nobody is logged in"))
    }
}

//! `POST /login` and `POST /logout`: a browser's session for a token. The page with the form is the dashboard's.

use std::sync::Arc;

use axum::{
    Extension, Form, Router,
    extract::{FromRequest, Request, State},
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Redirect, Response},
    routing::post,
};
use serde::Deserialize;

use super::{
    problem::{Kind, Refusal},
    who::{Peer, cookie, is_https, own_origin},
};
use crate::{
    app::{desk::Desk, door::Refused},
    secret::Secret,
};

/// The routes that need nobody.
pub(super) fn routes() -> Router<Arc<Desk>> {
    Router::new().route("/login", post(log_in)).route("/logout", post(log_out))
}

/// The form.
#[derive(Deserialize)]
struct Shown {
    token: String,
    /// Where to go then; a path of ours.
    #[serde(default)]
    next: Option<String>,
}

/// Where the form is; with where to go then, and why the last try came to nothing (`unknown`, `expired`,
/// `locked-out`).
pub(super) fn address(next: Option<&str>, problem: Option<&str>) -> String {
    let mut address = "/login".to_owned();
    let next = next.filter(|next| own_path(next) && *next != "/");
    let pairs = [("problem", problem), ("next", next)];
    for (name, value) in pairs.iter().filter_map(|(name, value)| Some((name, (*value)?))) {
        address.push(if address.contains('?') { '&' } else { '?' });
        address.push_str(name);
        address.push('=');
        address.extend(value.bytes().map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'/' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        }));
    }
    address
}

/// Whether it leads nowhere but to this server: browsers take `//HOST` and `/\HOST` for other hosts.
fn own_path(path: &str) -> bool {
    let plain = |c: char| !c.is_control() && c != '\\';
    path.starts_with('/') && !path.starts_with("//") && path.chars().all(plain)
}

async fn log_in(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    request: Request,
) -> Result<Response, Refusal> {
    let Peer::Remote(from, transport) = peer else {
        return Err(Refusal::new(Kind::InvalidRequest, "the unix socket knows who asks and needs no login"));
    };
    // Another site could log a browser in as somebody else, and watch what its user does there.
    own_origin(request.headers(), transport)?;
    let https = is_https(request.headers(), transport);
    let shown = Form::<Shown>::from_request(request, &desk).await;
    let Form(shown) = shown.map_err(|error| Refusal::new(Kind::InvalidRequest, error.body_text()))?;
    let next = shown.next.as_deref();
    let cookie = match desk.door.log_in(shown.token.trim(), from.ip(), desk.clock.now()).await {
        Ok(cookie) => cookie,
        Err(Refused::Unknown) => return Ok(Redirect::to(&address(next, Some("unknown"))).into_response()),
        Err(Refused::Expired) => return Ok(Redirect::to(&address(next, Some("expired"))).into_response()),
        Err(Refused::LockedOut(_)) => {
            return Ok(Redirect::to(&address(next, Some("locked-out"))).into_response());
        }
        Err(error @ Refused::Store(_)) => return Err(error.into()),
    };
    let to = next.filter(|next| own_path(next)).unwrap_or("/");
    Ok(with_cookie(Redirect::to(to).into_response(), transport.set_cookie(&cookie, https)))
}

async fn log_out(
    State(desk): State<Arc<Desk>>,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let Peer::Remote(_, transport) = peer else {
        return Err(Refusal::new(Kind::InvalidRequest, "the unix socket has no sessions"));
    };
    own_origin(&headers, transport)?;
    if let Some(cookie) = cookie(&headers, transport) {
        desk.door.log_out(cookie, desk.clock.now()).await?;
    }
    let nothing = Secret::new(String::new());
    let https = is_https(&headers, transport);
    Ok(with_cookie(Redirect::to(&address(None, None)).into_response(), transport.set_cookie(&nothing, https)))
}

fn with_cookie(mut response: Response, cookie: Secret) -> Response {
    // Hex and fixed words: always a header's value.
    if let Ok(mut value) = HeaderValue::from_str(cookie.expose()) {
        value.set_sensitive(true);
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn login_leads_nowhere_but_to_this_server() {
        let cases = [
            (Some("/jobs/1?a=b"), None, "/login?next=/jobs/1%3Fa%3Db"),
            (Some("/"), Some("unknown"), "/login?problem=unknown"),
            (Some("/vms"), Some("expired"), "/login?problem=expired&next=/vms"),
            (Some("//evil.example"), None, "/login"),
            (Some("/\\evil.example"), None, "/login"),
            (Some("https://evil.example"), None, "/login"),
            (Some("/a\nb"), None, "/login"),
            (None, None, "/login"),
        ];
        for (next, problem, expected) in cases {
            assert_eq!(address(next, problem), expected);
        }
    }
}

//! `/tokens` and `/audit`.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{
    input::{Body, Params, Segment},
    page::limit,
    problem::{Kind, Problems, Refusal},
};
use crate::{
    access::{Caller, audit},
    app::{
        desk::Desk,
        door::Wanted,
        orders::{AuditPage, TokenList, TokenMade, TokenOrder, TokenView},
    },
};

type At = State<Arc<Desk>>;

const DAY: u64 = 24 * 3600;

/// The largest number that is asked for: a log of so many entries is centuries away.
const MOST_NUMBER: u64 = 2_147_483_647;

/// All tokens, without their texts: nobody has those but who was given them.
#[utoipa::path(get, path = "/tokens", tag = "access",
    responses((status = 200, description = "All tokens, by name", body = TokenList), Problems))]
pub(super) async fn list(State(desk): At) -> Result<Json<TokenList>, Refusal> {
    let now = desk.clock.now();
    let tokens = desk.door.accounts().tokens().await?;
    Ok(Json(TokenList { tokens: tokens.iter().map(|record| TokenView::of(record, now)).collect() }))
}

/// Makes a token. Its text is in this answer and nowhere else; a repeated request is refused because of the name.
#[utoipa::path(post, path = "/tokens", tag = "access", request_body = TokenOrder,
    responses((status = 201, description = "The token", body = TokenMade), Problems))]
pub(super) async fn add(
    State(desk): At,
    caller: Caller,
    Body(order): Body<TokenOrder>,
) -> Result<Response, Refusal> {
    if order.days == Some(0) {
        return Err(Refusal::new(Kind::InvalidRequest, "days is 1 or more, or null"));
    }
    let lasts = order.days.map(|days| Duration::from_secs(u64::from(days) * DAY));
    let wanted = Wanted { name: order.name, scope: order.scope, lasts };
    let now = desk.clock.now();
    let (text, record) = desk.door.add_token(&wanted, &caller, now).await?;
    let made = TokenMade { token: text.expose().to_owned(), about: TokenView::of(&record, now) };
    Ok((StatusCode::CREATED, Json(made)).into_response())
}

/// Takes a token back, and ends the sessions that it opened.
#[utoipa::path(delete, path = "/tokens/{name}", tag = "access", params(("name" = String, Path, description = "The token's name")),
    responses((status = 204, description = "It is revoked"), Problems))]
pub(super) async fn revoke(
    State(desk): At,
    caller: Caller,
    Segment(name): Segment<String>,
) -> Result<StatusCode, Refusal> {
    match desk.door.revoke(&name, &caller, desk.clock.now()).await? {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refusal::not_found(format!("there is no token named {name}"))),
    }
}

/// Which entries.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct AuditParams {
    /// From this number on; default: the last entries that fit the limit.
    #[param(minimum = 1, maximum = 2147483647)]
    from: Option<u64>,
    /// At most so many.
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<u32>,
}

/// Who did what, the oldest first; and whether these entries are as they were written.
#[utoipa::path(get, path = "/audit", tag = "access", params(AuditParams),
    responses((status = 200, description = "Entries of the audit log", body = AuditPage), Problems))]
pub(super) async fn audit_log(
    State(desk): At,
    Params(wanted): Params<AuditParams>,
) -> Result<Json<AuditPage>, Refusal> {
    let limit = limit(wanted.limit)?;
    if wanted.from.is_some_and(|from| !(1..=MOST_NUMBER).contains(&from)) {
        return Err(Refusal::new(Kind::InvalidRequest, "from is the number of an entry"));
    }
    let accounts = desk.door.accounts();
    let last = accounts.audit_head().await?.number;
    let newest = last.saturating_sub(u64::try_from(limit).unwrap_or(u64::MAX)) + 1;
    let from = wanted.from.unwrap_or(newest).max(1);
    let entries = accounts.audit(from, limit).await?;
    // The chain begins with the entry before these.
    let before = if from > 1 { accounts.audit(from - 1, 1).await?.pop() } else { None };
    let head = before.map(|entry| entry.head()).unwrap_or_default();
    let until = from.saturating_add(u64::try_from(limit).unwrap_or(u64::MAX)).min(last.saturating_add(1));
    let problem = audit::problem(&head, &entries).or_else(|| audit::missing(from..until, &entries));
    let next = Some(until).filter(|next| *next <= last);
    Ok(Json(AuditPage { entries, last, next, problem }))
}

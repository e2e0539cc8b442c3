//! The admin API under `/api/v1`, and what else the admin listeners answer: the dashboard's pages, the login.
//!
//! Invariant: a route's scope is the router that it stands in ([`read`], [`operate`], [`admin`]; of the pages
//! likewise), and is set nowhere else. `who` finds out who asks; no handler does.
//! `desk` does the work; the handlers only read requests and write answers.

mod events;
mod fleet;
mod headers;
mod input;
mod jobs;
mod listen;
mod login;
mod once;
mod page;
mod patience;
mod problem;
mod socket;
mod system;
mod tls;
mod tokens;
mod who;

use std::sync::Arc;

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    middleware::{self, Next},
};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        ObjectBuilder, Required, Type,
        path::{ParameterBuilder, ParameterIn},
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_axum::{router::OpenApiRouter, routes};

pub use self::problem::{Kind, Refusal};
use super::{desk::Desk, metering, orders, pages};
use crate::access::{Scope, repeats};
pub use listen::{AdminError, Listeners, bind, probe, serve};
pub use socket::SocketError;

/// Where the API's paths begin.
pub const PREFIX: &str = "/api/v1";

/// The largest order: a thousand selectors and more.
const BODY_LIMIT: usize = 1 << 20;

/// The name of the security scheme in the document.
const SCHEME: &str = "token";

/// What the handlers do not say.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "bootflip",
        description = "Installs paravirtualized XenServer and XCP-ng guests over the network. See docs/api.md.",
        license(name = "Apache-2.0 OR MIT", identifier = "Apache-2.0 OR MIT")
    ),
    components(schemas(orders::Problem)),
    modifiers(&Scheme),
    tags(
        (name = "jobs", description = "Orders, their jobs, and what machines are served"),
        (name = "fleet", description = "Pools, VMs, machines, profiles, leases, transfers"),
        (name = "access", description = "Tokens and the audit log"),
        (name = "system", description = "The server itself")
    )
)]
struct Document;

struct Scheme;

impl Modify for Scheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        components.add_security_scheme(SCHEME, SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer)));
    }
}

/// What needs [`Scope::Read`].
fn read() -> OpenApiRouter<Arc<Desk>> {
    OpenApiRouter::new()
        .routes(routes!(system::health))
        .routes(routes!(system::ready))
        .routes(routes!(system::version))
        .routes(routes!(system::openapi))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::log))
        .routes(routes!(jobs::render))
        .routes(routes!(events::events))
        .routes(routes!(fleet::pools))
        .routes(routes!(fleet::pool))
        .routes(routes!(fleet::vms))
        .routes(routes!(fleet::vm))
        .routes(routes!(fleet::machines))
        .routes(routes!(fleet::machine))
        .routes(routes!(fleet::profiles))
        .routes(routes!(fleet::profile))
        .routes(routes!(fleet::leases))
        .routes(routes!(fleet::transfers))
}

/// What needs [`Scope::Operate`].
fn operate() -> OpenApiRouter<Arc<Desk>> {
    OpenApiRouter::new()
        .routes(routes!(jobs::plan))
        .routes(routes!(jobs::deploy))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::finish))
        .routes(routes!(jobs::retry))
        .routes(routes!(jobs::resolve))
}

/// What needs [`Scope::Admin`].
fn admin() -> OpenApiRouter<Arc<Desk>> {
    OpenApiRouter::new()
        .routes(routes!(jobs::render_secrets))
        .routes(routes!(tokens::list))
        .routes(routes!(tokens::add))
        .routes(routes!(tokens::revoke))
        .routes(routes!(tokens::audit_log))
        .routes(routes!(system::reload))
}

/// A router of the API whose every route needs this scope; the document says so, too.
fn scoped(scope: Scope, router: OpenApiRouter<Arc<Desk>>) -> OpenApiRouter<Arc<Desk>> {
    let mut router = router.route_layer(middleware::from_fn(check(scope)));
    for item in router.get_openapi_mut().paths.paths.values_mut() {
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in operations.into_iter().flatten() {
            operation.security = Some(vec![SecurityRequirement::new(SCHEME, [scope.label()])]);
        }
    }
    router
}

/// A router whose answers `once` keeps for repeated requests; the document says so, too.
fn kept(mut router: OpenApiRouter<Arc<Desk>>) -> OpenApiRouter<Arc<Desk>> {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(repeats::KEY_LIMIT))
        .pattern(Some("^[!-~]+$"));
    let key = ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some("The same request again, by the same caller within a day, gets the same answer"))
        .schema(Some(schema))
        .build();
    for item in router.get_openapi_mut().paths.paths.values_mut() {
        if let Some(operation) = &mut item.post {
            operation.parameters.get_or_insert_default().push(key.clone().into());
        }
    }
    router
}

/// A router of pages whose every route needs this scope. One without routes cannot have a layer.
fn paged(scope: Scope, router: Router<Arc<Desk>>) -> Router<Arc<Desk>> {
    if router.has_routes() { router.route_layer(middleware::from_fn(check(scope))) } else { router }
}

/// The check of one scope.
fn check(
    scope: Scope,
) -> impl Fn(Request, Next) -> futures_util::future::BoxFuture<'static, axum::response::Response> + Clone {
    move |request, next| Box::pin(who::need(scope, request, next))
}

/// The API alone, with its document. Answers of [`operate`] are kept for repeated requests; those of the others are
/// not, and some of theirs hold secrets.
fn api(once: impl FnOnce(OpenApiRouter<Arc<Desk>>) -> OpenApiRouter<Arc<Desk>>) -> OpenApiRouter<Arc<Desk>> {
    let routers = OpenApiRouter::new()
        .merge(scoped(Scope::Read, read()))
        .merge(scoped(Scope::Operate, once(kept(operate()))))
        .merge(scoped(Scope::Admin, admin()));
    OpenApiRouter::with_openapi(Document::openapi()).nest(PREFIX, routers)
}

/// The OpenAPI 3.1 document, as `docs/openapi.json` has it.
pub fn document() -> utoipa::openapi::OpenApi {
    api(|operate| operate).into_openapi()
}

/// Everything that the admin listeners answer. A layer here holds for every route.
pub fn routes(desk: Arc<Desk>) -> Router {
    let once = middleware::from_fn_with_state(Arc::clone(&desk), once::once);
    let (api, _) = api(|operate| operate.route_layer(once)).split_for_parts();
    Router::new()
        .merge(api)
        .merge(paged(Scope::Read, pages::read_routes()))
        .merge(paged(Scope::Read, metering::read_routes()))
        .merge(paged(Scope::Operate, pages::operate_routes()))
        .merge(pages::open_routes())
        .merge(login::routes())
        .fallback(async || Refusal::new(Kind::NoSuchPath, "there is no such path"))
        .method_not_allowed_fallback(async || {
            Refusal::new(
                Kind::WrongMethod,
                "this path does not have this method; Allow names those that it has",
            )
        })
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(Arc::clone(&desk), who::identify))
        .layer(middleware::from_fn(headers::add))
        .with_state(desk)
}

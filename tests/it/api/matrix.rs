//! Every route by every caller: anonymous, read, operate, admin; by token and by session. The routes of the API and
//! their scopes come from the router by way of its document, those of the pages from the functions that make them.

use bootflip::app::api;
use reqwest::Method;
use serde_json::json;

use super::Rig;

/// A route and the scope that it needs; `None`: nobody needs one.
struct Route {
    method: Method,
    path: String,
    needs: Option<usize>,
}

const SCOPES: [&str; 3] = ["read", "operate", "admin"];

fn of_api() -> Vec<Route> {
    let document = serde_json::to_value(api::document()).unwrap();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let scope = operation["security"][0]["token"][0].as_str().unwrap();
            let needs = SCOPES.iter().position(|known| *known == scope);
            let method = method.to_uppercase().parse().unwrap();
            routes.push(Route { method, path: filled(path), needs: Some(needs.unwrap()) });
        }
    }
    routes
}

/// `/vms/{name}` with something in place of the name.
fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

/// The routes that stand in `src/app/pages/mod.rs`, by the functions that `app::api` layers.
fn of_pages() -> Vec<Route> {
    let source = include_str!("../../../src/app/pages/mod.rs");
    let functions = [("fn read_routes", Some(0)), ("fn operate_routes", Some(1)), ("fn open_routes", None)];
    let mut routes = Vec::new();
    for (function, needs) in functions {
        let begin = source.find(function).unwrap_or_else(|| panic!("no {function}"));
        let body = &source[begin..];
        let body = &body[..body.find("\n}").unwrap()];
        for piece in body.split(".route(").skip(1) {
            let path = piece.split('"').nth(1).unwrap();
            let after = piece.splitn(3, '"').nth(2).unwrap();
            for (word, method) in [("get(", Method::GET), ("post(", Method::POST)] {
                if after.contains(word) {
                    routes.push(Route { method, path: filled(path), needs });
                }
            }
        }
    }
    routes
}

#[tokio::test]
async fn every_route_lets_in_whose_scope_will_do_and_nobody_else() {
    let rig = Rig::new(&["web"]).await;
    let mut tokens = vec![None];
    for scope in SCOPES {
        tokens.push(Some(rig.token(scope, scope).await));
    }
    let (routes, mut checked) = (of_api().into_iter().chain(of_pages()), 0);
    for Route { method, path, needs } in routes {
        for (at, token) in tokens.iter().enumerate() {
            let mut request = rig.request(method.clone(), &path);
            if let Some(token) = token {
                request = request.bearer_auth(token);
            }
            if method == Method::POST {
                request = request.json(&json!({}));
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let expected = match (needs, at) {
                (None, _) => None,
                (Some(_), 0) => Some(401),
                (Some(needs), at) => (at <= needs).then_some(403),
            };
            let caller = token.as_ref().map_or("anonymous", |_| SCOPES[at - 1]);
            match expected {
                Some(expected) => assert_eq!(status, expected, "{method} {path} by {caller}"),
                None => assert!(![401, 403, 405].contains(&status), "{method} {path} by {caller}: {status}"),
            }
            checked += 1;
        }
    }
    assert!(checked >= 30 * 4, "{checked}");
}

#[tokio::test]
async fn session_may_what_its_token_may_and_changes_nothing_for_another_site() {
    let rig = Rig::new(&["web"]).await;
    let mut cookies = Vec::new();
    for scope in SCOPES {
        let token = rig.token(scope, scope).await;
        cookies.push(super::browser::log_in(&rig, &token).await);
    }
    for Route { method, path, needs } in of_api() {
        let needs = needs.unwrap();
        for (at, cookie) in cookies.iter().enumerate() {
            let request = |origin: Option<&str>| {
                let mut request = rig.request(method.clone(), &path).header("cookie", cookie);
                if method == Method::POST {
                    request = request.json(&json!({}));
                }
                match origin {
                    Some(origin) => request.header("origin", origin),
                    None => request,
                }
            };
            let status = request(Some(&rig.url)).send().await.unwrap().status().as_u16();
            let scope = SCOPES[at];
            assert_eq!(status == 403, at < needs, "{method} {path} by a session of {scope}: {status}");
            assert!(![401, 405].contains(&status), "{method} {path} by a session of {scope}: {status}");
            if method != Method::GET {
                for origin in [None, Some("https://evil.example"), Some("null")] {
                    let answer = request(origin).send().await.unwrap();
                    assert_eq!(
                        super::problem(answer).await,
                        "wrong-origin",
                        "{method} {path} from {origin:?}"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_for_everybody() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("admin", "admin").await;
    for (method, path, kind) in [
        (Method::GET, "/api/v1/none", "no-such-path"),
        (Method::GET, "/api/v2/jobs", "no-such-path"),
        (Method::DELETE, "/api/v1/jobs", "wrong-method"),
        (Method::PATCH, "/api/v1/health", "wrong-method"),
    ] {
        let answer = rig.request(method.clone(), path).bearer_auth(&token).send().await.unwrap();
        if kind == "wrong-method" {
            assert!(answer.headers().contains_key("allow"), "{method} {path}");
        }
        assert_eq!(super::problem(answer).await, kind, "{method} {path}");
    }
}

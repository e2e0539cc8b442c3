//! The OpenAPI document in the repository is the one that the code makes.

use std::path::Path;

use bootflip::app::api;
use serde_json::Value;

use super::Rig;

/// `BOOTFLIP_WRITE=1 cargo test --test it api::document` writes it anew.
#[test]
fn kept_document_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let made = serde_json::to_string_pretty(&api::document()).unwrap() + "\n";
    if std::env::var_os("BOOTFLIP_WRITE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == made, "docs/openapi.json is old; BOOTFLIP_WRITE=1 cargo test --test it api::document");
}

#[test]
fn every_operation_says_its_scope_its_words_and_its_refusals() {
    let document = serde_json::to_value(api::document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        assert!(path.starts_with(api::PREFIX), "{path}");
        for (method, operation) in methods.as_object().unwrap() {
            operations += 1;
            let scopes = operation["security"][0]["token"].as_array().unwrap();
            assert!(scopes.len() == 1, "{method} {path}: {scopes:?}");
            let about = operation["summary"].as_str().or_else(|| operation["description"].as_str());
            assert!(about.is_some(), "{method} {path} says nothing of itself");
            let refusal = &operation["responses"]["default"]["content"]["application/problem+json"];
            assert_eq!(refusal["schema"]["$ref"], "#/components/schemas/Problem", "{method} {path}");
        }
    }
    assert!(operations >= 30, "{operations}");
}

#[test]
fn every_path_is_in_the_documentation() {
    let page = include_str!("../../../docs/api.md");
    let document = serde_json::to_value(api::document()).unwrap();
    for path in document["paths"].as_object().unwrap().keys() {
        let bare = path.strip_prefix(api::PREFIX).unwrap();
        let bare = bare.split('{').next().unwrap().trim_end_matches('/');
        assert!(page.contains(bare), "docs/api.md does not name {path}");
    }
}

#[tokio::test]
async fn server_has_its_document() {
    let rig = Rig::new(&[]).await;
    let token = rig.token("reader", "read").await;
    let served = rig.get(&token, "/api/v1/openapi.json").await;
    assert_eq!(served, serde_json::to_value(api::document()).unwrap());
    let version: Value = rig.get(&token, "/api/v1/version").await;
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

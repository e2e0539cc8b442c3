//! The files that pages need, embedded: nothing is fetched from the internet. Their addresses carry a hash of the
//! content, so that a browser keeps each until another version of the program has another.

use std::sync::LazyLock;

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};

use crate::secret::hex;

/// A file.
#[derive(Debug)]
pub(super) struct Asset {
    /// Its name below `/static/`.
    pub(super) name: &'static str,
    kind: &'static str,
    content: &'static [u8],
}

/// All of them. Those of others are listed in `assets/README.md`.
pub(super) const ASSETS: [Asset; 5] = [
    Asset { name: "app.css", kind: "text/css; charset=utf-8", content: include_bytes!("assets/app.css") },
    Asset {
        name: "app.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("assets/app.js"),
    },
    Asset {
        name: "htmx.min.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("assets/htmx.min.js"),
    },
    Asset {
        name: "htmx-sse.min.js",
        kind: "text/javascript; charset=utf-8",
        content: include_bytes!("assets/htmx-sse.min.js"),
    },
    Asset { name: "icon.svg", kind: "image/svg+xml", content: include_bytes!("assets/icon.svg") },
];

/// A hash of all contents, short.
pub(super) static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut hash = Sha256::new();
    ASSETS.iter().for_each(|asset| hash.update(asset.content));
    hex(&hash.finalize()).chars().take(12).collect()
});

/// `GET /static/{name}`.
pub(super) async fn asset(Path(name): Path<String>) -> Response {
    let Some(asset) = ASSETS.iter().find(|asset| asset.name == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let headers =
        [(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, "public, max-age=31536000, immutable")];
    (headers, asset.content).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_others_are_those_that_the_list_names() {
        let list = include_str!("assets/README.md");
        for name in ["htmx.min.js", "htmx-sse.min.js"] {
            let asset = ASSETS.iter().find(|asset| asset.name == name).unwrap();
            let line = list.lines().find(|line| line.contains(&format!("`{name}`"))).unwrap();
            assert!(line.contains(&hex(&Sha256::digest(asset.content))), "{name} is not what the list says");
            assert!(line.contains("0BSD"));
        }
    }

    #[test]
    fn no_asset_of_ours_names_another_host() {
        for asset in ASSETS.iter().filter(|asset| asset.name.starts_with("app.")) {
            let text = String::from_utf8(asset.content.to_vec()).unwrap();
            assert!(!text.contains("http://") && !text.contains("https://"), "{}", asset.name);
        }
    }
}

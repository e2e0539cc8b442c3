//! What an HTTP client says: the path of a report and every other route, conditions and ranges, and what the log makes
//! of it. First line: the request's target; the others: headers that ask for a part.
#![no_main]

use std::time::{Duration, SystemTime};

use bootflip::{
    boot::render::lint::Dialect,
    http::{
        Route,
        conditional::{Conditions, Decision, Validator},
        masked,
    },
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let target = lines.next().unwrap_or_default();
    route(target);
    if let Ok(uri) = target.parse::<hyper::Uri>() {
        route(uri.path());
    }
    let mut header = || lines.next().filter(|line| !line.is_empty());
    let conditions = Conditions {
        range: header(),
        if_range: header(),
        if_none_match: header(),
        if_match: header(),
        if_modified_since: header(),
        if_unmodified_since: header(),
    };
    let modified = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_863_601_500);
    let validator = Validator { tag: "\"v2\"".to_owned(), modified: Some(modified) };
    for length in [0, 1, 300_000, u64::MAX] {
        if let Decision::Part { first, length: count } = conditions.decide(&validator, length) {
            assert!(count > 0 && first.checked_add(count).is_some_and(|end| end <= length));
        }
    }
    Dialect::of_user_agent(Some(target));
});

fn route(path: &str) {
    let logged = masked(path);
    let hidden = |part: &str| part.split(|c: char| !c.is_ascii_hexdigit()).all(|run| run.len() < 20);
    assert!(logged.split('/').all(hidden), "{logged}");
    match Route::parse(path) {
        None => {}
        Some(Route::Report { token, stage }) => {
            assert_eq!(path, format!("/r/{token}/{stage}"));
            assert!(logged.starts_with("/r/*/"));
        }
        Some(Route::File { token, path: file }) => {
            assert_eq!(token.len(), 64);
            assert!(file.as_str().split('/').all(|part| !part.is_empty() && part != ".." && part != "."));
            assert!(!logged.contains(&token));
        }
        Some(Route::Answer { token, .. }) => assert!(!logged.contains(&token)),
        Some(Route::Script(mac)) => assert_eq!(Route::parse(&format!("/b/{mac}")), Some(Route::Script(mac))),
    }
}

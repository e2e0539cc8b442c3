//! Paths and ranges.

use super::*;

const TOKEN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[test]
fn paths_name_routes() {
    let mac: MacAddr = "02:16:3e:00:00:0a".parse().unwrap();
    for path in ["/b/02:16:3e:00:00:0a", "/b/02-16-3E-00-00-0A", "/b/02%3a16%3A3e%3a00%3a00%3a0a"] {
        assert_eq!(Route::parse(path), Some(Route::Script(mac)), "{path}");
    }
    let token = TOKEN.to_owned();
    let path = RelativePath::parse("a b/linux").unwrap();
    assert_eq!(
        Route::parse(&format!("/f/{TOKEN}/a%20b/linux")),
        Some(Route::File { token: token.clone(), path })
    );
    let answer = Route::Answer { token: token.clone(), name: "preseed".into() };
    assert_eq!(Route::parse(&format!("/a/{TOKEN}/preseed")), Some(answer));
    let report = Route::Report { token, stage: "done".into() };
    assert_eq!(Route::parse(&format!("/r/{TOKEN}/done")), Some(report));
}

#[test]
fn what_is_no_path_of_ours_has_no_route() {
    let paths = [
        "",
        "/",
        "*",
        "/b",
        "/b/",
        "/b/02:16:3e:00:00",
        "/b/02:16:3e:00:00:0a/",
        "/B/02:16:3e:00:00:0a",
        "//b/x",
        "/b/%zz",
        "/b/%f",
        "/b/%ff%fe",
        "/f/T",
        "/f/T/",
        "/f/T/..",
        "/f/T/../canary",
        "/f/T/%2e%2e/canary",
        "/f/T/%2e%2e%2fcanary",
        "/f/T/a%2f..%2f..%2fcanary",
        "/f/T/..%5ccanary",
        "/f/T/a%00",
        "/f/T/%c0%ae%c0%ae/x",
        "/f/T/linux/",
        "/f//etc/passwd",
        "/f/short/linux",
        "/a/T",
        "/r/T",
        "/r/T/",
        "/r/T/Done",
        "/r/T/a/b",
        "/r/T/..",
        "/r/T/done%00",
        "/x/T/y",
        "http://x/b/02:16:3e:00:00:0a",
    ];
    for path in paths {
        assert_eq!(Route::parse(&path.replace("/T", &format!("/{TOKEN}"))), None, "{path}");
    }
    assert_eq!(Route::parse(&format!("/r/{TOKEN}/{}", "a".repeat(33))), None);
}

#[test]
fn a_percent_sign_is_decoded_once() {
    let route = Route::parse(&format!("/f/{TOKEN}/%252e%252e/x"));
    assert_eq!(
        route,
        Some(Route::File { token: TOKEN.into(), path: RelativePath::parse("%2e%2e/x").unwrap() })
    );
}

#[test]
fn no_log_shows_a_token() {
    let cases = [
        (format!("/f/{TOKEN}/u/linux"), "/f/*/u/linux"),
        (format!("/a/{TOKEN}/preseed"), "/a/*/preseed"),
        (format!("/r/{TOKEN}/done"), "/r/*/done"),
        ("/b/02:16:3e:00:00:0a".to_owned(), "/b/02:16:3e:00:00:0a"),
        ("/b/02%3A16%3A3e%3a00%3A00%3A0a".to_owned(), "/b/02%3A16%3A3e%3a00%3A00%3A0a"),
        ("/r/short/done".to_owned(), "/r/*/done"),
        (format!("/x/%zz{}", "%30".repeat(9)), "/x/*"),
        ("/f".to_owned(), "/f"),
        (format!("//f/{TOKEN}/x"), "//f/*/x"),
        (format!("/x/a{TOKEN}.gz"), "/x/*"),
        (format!("/f/{TOKEN}"), "/f/*"),
        (format!("/{}", TOKEN.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>()), "/*"),
    ];
    for (path, shown) in cases {
        assert_eq!(masked(&path), shown, "{path}");
    }
    assert!(masked(&format!("/{}", "xyzä".repeat(100))).len() <= 203);
}

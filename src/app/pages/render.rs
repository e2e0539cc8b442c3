//! Templates to HTML. Whatever a value holds is text in the page: escaping is on for every template.

use std::sync::LazyLock;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Response},
};
use minijinja::{AutoEscape, Environment, HtmlEscape, UndefinedBehavior, Value, syntax::SyntaxConfig};

use super::assets::VERSION;

/// Name and text of every template.
const TEMPLATES: [(&str, &str); 17] = [
    ("base.html", include_str!("templates/base.html")),
    ("parts.html", include_str!("templates/parts.html")),
    ("fleet.html", include_str!("templates/fleet.html")),
    ("fleet_cells.html", include_str!("templates/fleet_cells.html")),
    ("machine.html", include_str!("templates/machine.html")),
    ("machine_live.html", include_str!("templates/machine_live.html")),
    ("files.html", include_str!("templates/files.html")),
    ("job.html", include_str!("templates/job.html")),
    ("job_live.html", include_str!("templates/job_live.html")),
    ("jobs.html", include_str!("templates/jobs.html")),
    ("pools.html", include_str!("templates/pools.html")),
    ("pool.html", include_str!("templates/pool.html")),
    ("leases.html", include_str!("templates/leases.html")),
    ("transfers.html", include_str!("templates/transfers.html")),
    ("plan.html", include_str!("templates/plan.html")),
    ("login.html", include_str!("templates/login.html")),
    ("message.html", include_str!("templates/message.html")),
];

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    match syntax {
        Ok(syntax) => environment.set_syntax(syntax),
        Err(error) => tracing::error!(%error, "pages keep their blank lines"),
    }
    environment.add_filter("coded", coded);
    environment.add_filter("query", |text: &str| super::fleet::escaped(text));
    environment.add_global("version", VERSION.as_str());
    environment.add_global("program", env!("CARGO_PKG_VERSION"));
    for (name, text) in TEMPLATES {
        if let Err(error) = environment.add_template(name, text) {
            tracing::error!(name, %error, "a page's template does not parse");
        }
    }
    environment
});

/// Text with what stands between backticks as code; everything in it is escaped here.
fn coded(text: &str) -> Value {
    let mut html = String::new();
    for (number, piece) in text.split('`').enumerate() {
        let is_code = number % 2 == 1;
        html.push_str(if is_code { "<code>" } else { "" });
        html.push_str(&HtmlEscape(piece).to_string());
        html.push_str(if is_code { "</code>" } else { "" });
    }
    Value::from_safe_string(html)
}

/// Values for a template: `name => value`, or `name` alone for a variable of that name; `..map` last for what another
/// map holds beside them. Whatever serializes is a value.
macro_rules! values {
    (@ $maps:ident $own:ident) => {};
    (@ $maps:ident $own:ident ..$rest:expr $(,)?) => { $maps.push(minijinja::Value::from(minijinja::value::Serde(&$rest))); };
    (@ $maps:ident $own:ident $key:ident => $value:expr $(, $($more:tt)*)?) => {
        $own.insert(stringify!($key), minijinja::Value::from(minijinja::value::Serde(&$value)));
        values!(@ $maps $own $($($more)*)?);
    };
    (@ $maps:ident $own:ident $key:ident $(, $($more:tt)*)?) => {
        $own.insert(stringify!($key), minijinja::Value::from(minijinja::value::Serde(&$key)));
        values!(@ $maps $own $($($more)*)?);
    };
    ($($all:tt)*) => {{
        #[allow(unused_mut)] // where there is no other map
        let mut maps: Vec<minijinja::Value> = Vec::new();
        let mut own: std::collections::BTreeMap<&'static str, minijinja::Value> = std::collections::BTreeMap::new();
        values!(@ maps own $($all)*);
        maps.insert(0, minijinja::Value::from(minijinja::value::Serde(&own)));
        minijinja::value::merge_maps(maps)
    }};
}
pub(super) use values;

/// The text of a template with these values.
pub(super) fn text(name: &str, values: Value) -> Result<String, minijinja::Error> {
    ENVIRONMENT.get_template(name)?.render(values)
}

/// A page or part of one. What it shows is of this moment: no cache keeps it.
pub(super) fn page(name: &str, values: Value) -> Response {
    page_with(StatusCode::OK, name, values)
}

/// The same with another status.
pub(super) fn page_with(status: StatusCode, name: &str, values: Value) -> Response {
    match text(name, values) {
        Ok(text) => {
            let mut response = (status, Html(text)).into_response();
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            response
        }
        Err(error) => {
            tracing::error!(name, %error, "a page does not render");
            (StatusCode::INTERNAL_SERVER_ERROR, "this page does not render; the log says why").into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_parses_and_none_has_code_or_style_in_it() {
        for (name, source) in TEMPLATES {
            assert!(ENVIRONMENT.get_template(name).is_ok(), "{name}");
            // The content security policy would refuse it, and a value could end in it.
            for word in [
                " style=",
                "<style",
                " onclick",
                " onload",
                "javascript:",
                "|safe",
                "| safe",
                "hx-on",
                "http://",
                "https://",
            ] {
                assert!(!source.contains(word), "{name} has {word}");
            }
            let scripts = source.matches("<script").count();
            assert_eq!(scripts, source.matches("<script src=\"/static/").count(), "{name}");
        }
    }

    #[test]
    fn a_value_is_text_whatever_it_holds() {
        let values = values! {
            title => "<script>alert(1)</script>", message => "\"'><img src=x onerror=alert(1)>", tone => "bad", caller => "x", scope => "read",
            logs_out => false, here => "", status => 404,
        };
        let text = text("message.html", values).unwrap();
        assert!(!text.contains("<script>alert") && !text.contains("<img"), "{text}");
        assert!(text.contains("&lt;script&gt;"), "{text}");
        let code = coded("a <b> `x <i>` y `open").to_string();
        assert_eq!(code, "a &lt;b&gt; <code>x &lt;i&gt;</code> y <code>open</code>");
    }
}

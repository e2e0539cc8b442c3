//! Stages of an installation: how far each usually is, and which of Subiquity's own events is one. Pure.
//!
//! Subiquity's webhook posts what it and curtin begin and finish, hundreds of events under names such as
//! `subiquity/Install/install/curtin_install/cmd-install/stage-extract`. Invariant: none of them completes a job; `done` and
//! `failed` come from our own commands alone, which say what went wrong.

use serde::Deserialize;

/// The stage under which a webhook posts its events.
pub const EVENT: &str = "event";

/// How much of an installation is over once a stage is reported, where the report does not say. `None`: a stage of a
/// template's own.
pub fn usual_percent(stage: &str) -> Option<u8> {
    Some(match stage {
        "started" => 5,
        "partitioned" => 15,
        "base" => 50,
        "packages" => 85,
        "ready" => 90,
        "late" => 95,
        "done" => 100,
        _ => return None,
    })
}

/// curtin's form (`curtin/reporter/events.py`), as far as it says anything.
#[derive(Deserialize)]
struct Posted {
    name: String,
    event_type: String,
    #[serde(default)]
    result: String,
}

/// The stage that an event of a webhook means, and what it said of itself. `None`: none.
pub fn of_event(body: &[u8]) -> Option<(&'static str, String)> {
    let posted: Posted = serde_json::from_slice(body).ok()?;
    if posted.event_type != "finish" || !matches!(posted.result.as_str(), "SUCCESS" | "WARN") {
        return None;
    }
    let stage = match posted.name.rsplit('/').next()? {
        "stage-partitioning" => "partitioned",
        "stage-extract" => "base",
        "postinstall" => "packages",
        _ => return None,
    };
    Some((stage, posted.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, kind: &str, result: &str) -> Vec<u8> {
        let event = serde_json::json!({
            "name": name, "description": "x", "event_type": kind, "result": result, "origin": "curtin",
            "timestamp": 1.5, "level": "INFO", "files": [{ "path": "/x", "content": "eA==", "encoding": "base64" }],
        });
        serde_json::to_vec(&event).unwrap()
    }

    #[test]
    fn an_event_of_subiquity_is_a_stage_or_nothing() {
        let curtin = "subiquity/Install/install/curtin_install";
        for (name, stage) in [
            // 20.04, and since 22.10, where each step is a curtin of its own
            (format!("{curtin}/cmd-install/stage-partitioning"), Some("partitioned")),
            (format!("{curtin}/run_curtin_step/cmd-install/stage-extract"), Some("base")),
            ("cmd-install/stage-extract".to_owned(), Some("base")),
            ("subiquity/Install/install/postinstall".to_owned(), Some("packages")),
            (format!("{curtin}/cmd-install/stage-partitioning/builtin"), None),
            (format!("{curtin}/cmd-install/stage-early"), None),
            (curtin.to_owned(), None),
            ("subiquity/Late/run".to_owned(), None),
            ("subiquity/Install/install".to_owned(), None),
            ("subiquity/done".to_owned(), None),
            ("subiquity/failed".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(of_event(&event(&name, "finish", "SUCCESS")).map(|(stage, _)| stage), stage, "{name}");
            assert_eq!(of_event(&event(&name, "start", "")), None, "{name}");
            assert_eq!(of_event(&event(&name, "finish", "FAIL")), None, "{name}");
        }
        for body in [&b""[..], b"{}", b"[]", b"stage=done", b"{\"name\":5}", b"\xff", &[b'['; 10_000]] {
            assert_eq!(of_event(body), None);
        }
    }

    #[test]
    fn stages_follow_each_other_up_to_a_hundred() {
        let stages = ["started", "partitioned", "base", "packages", "ready", "late", "done"];
        let percents: Vec<u8> = stages.iter().filter_map(|stage| usual_percent(stage)).collect();
        assert!(percents.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((percents.len(), percents.last()), (7, Some(&100)));
        assert_eq!(usual_percent("own"), None);
    }
}

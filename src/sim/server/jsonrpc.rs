//! JSON-RPC as xapi speaks it, 1.0 and 2.0: a request read, an answer written. Pure.
//!
//! Ints are decimal strings, dates and references strings, void the empty string, as in XML-RPC. An id is a string or
//! an int and never absent: there are no notifications. A request that is none is refused as a whole (HTTP 500).

use serde_json::{Map, Number, Value as Json, json};

use crate::xen::{Failure, Value};

/// The `code` of every error of version 2.0: clients read the message.
const ERROR_CODE: u8 = 1;

/// Which of the two forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A request: a call, and how its answer is addressed.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    version: Version,
    id: Json,
    pub(super) method: String,
    pub(super) params: Vec<Value>,
}

impl Request {
    /// Reads a body; `Err` says what is wrong with it, in xapi's words.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let document: Json = serde_json::from_slice(body).map_err(|error| error.to_string())?;
        let Json::Object(mut members) = document else { return Err("Invalid request body".to_owned()) };
        let Some(method) = members.remove("method") else {
            return Err("Required field method is missing".to_owned());
        };
        let Json::String(method) = method else { return Err(invalid("method")) };
        let version = match members.get("jsonrpc").map(Json::as_str) {
            None => Version::V1,
            Some(Some("2.0")) => Version::V2,
            Some(_) => return Err(invalid("jsonrpc")),
        };
        let params = read_params(version, members.remove("params"))?;
        let id = members.remove("id").filter(|id| id.is_string() || id.is_i64() || id.is_u64());
        let id = id.ok_or_else(|| invalid("id"))?;
        Ok(Self { version, id, method, params })
    }

    /// The body of the answer.
    pub(super) fn reply(&self, answer: &Result<Value, Failure>) -> String {
        let id = &self.id;
        let document = match (self.version, answer) {
            (Version::V1, Ok(value)) => json!({ "result": written(value), "error": null, "id": id }),
            (Version::V1, Err(failure)) => {
                let words: Vec<&String> = std::iter::once(&failure.code).chain(&failure.params).collect();
                json!({ "result": null, "error": words, "id": id })
            }
            (Version::V2, Ok(value)) => json!({ "jsonrpc": "2.0", "result": written(value), "id": id }),
            (Version::V2, Err(failure)) => {
                let error = json!({ "code": ERROR_CODE, "message": failure.code, "data": failure.params });
                json!({ "jsonrpc": "2.0", "error": error, "id": id })
            }
        };
        document.to_string()
    }
}

fn read_params(version: Version, params: Option<Json>) -> Result<Vec<Value>, String> {
    match (version, params) {
        (Version::V1, None) => Err("Required field params is missing".to_owned()),
        (Version::V2, None | Some(Json::Null)) => Ok(Vec::new()),
        (Version::V1 | Version::V2, Some(Json::Array(params))) => params.into_iter().map(read).collect(),
        (Version::V2, Some(named @ Json::Object(_))) => Ok(vec![read(named)?]),
        (
            Version::V1 | Version::V2,
            Some(Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) | Json::Object(_)),
        ) => Err(invalid("params")),
    }
}

fn invalid(field: &str) -> String {
    format!("Invalid field '{field}' in request body")
}

fn read(json: Json) -> Result<Value, String> {
    Ok(match json {
        Json::Null => return Err("Unable to parse null: XenAPI has no such value".to_owned()),
        Json::Bool(flag) => Value::Bool(flag),
        Json::Number(number) => match number.as_i64() {
            Some(number) => Value::Int(number),
            None => Value::Double(number.as_f64().ok_or_else(|| format!("Unable to parse {number}"))?),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => Value::Array(items.into_iter().map(read).collect::<Result<_, _>>()?),
        Json::Object(members) => {
            let member = |(name, value)| read(value).map(|value| (name, value));
            Value::Struct(members.into_iter().map(member).collect::<Result<_, _>>()?)
        }
    })
}

fn written(value: &Value) -> Json {
    match value {
        Value::String(text) | Value::DateTime(text) => Json::String(text.clone()),
        Value::Int(number) => Json::String(number.to_string()),
        Value::Bool(flag) => Json::Bool(*flag),
        // JSON has no infinities; xapi never sends any.
        Value::Double(number) => Number::from_f64(*number).map_or(Json::Null, Json::Number),
        Value::Array(items) => Json::Array(items.iter().map(written).collect()),
        Value::Struct(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), written(value)));
            Json::Object(members.collect::<Map<_, _>>())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request's version, method and parameters as one line, or why it is refused.
    fn check(body: &str) -> String {
        match Request::read(body.as_bytes()) {
            Ok(request) => format!("{:?} {} {:?}", request.version, request.method, request.params),
            Err(refused) => refused,
        }
    }

    #[test]
    fn requests_of_both_versions_are_read_and_others_refused() {
        let rows = [
            (
                r#"{"method":"VM.start","params":["s",true,1,2.5],"id":"x"}"#,
                r#"V1 VM.start [String("s"), Bool(true), Int(1), Double(2.5)]"#,
            ),
            (r#"{"jsonrpc":"2.0","method":"a","id":0}"#, "V2 a []"),
            (
                r#"{"jsonrpc":"2.0","method":"a","params":{"k":"v"},"id":0}"#,
                r#"V2 a [Struct({"k": String("v")})]"#,
            ),
            (r#"{"method":"a","id":1}"#, "Required field params is missing"),
            (r#"{"method":"a","params":{},"id":1}"#, "Invalid field 'params' in request body"),
            (r#"{"method":"a","params":[],"id":null}"#, "Invalid field 'id' in request body"),
            (r#"{"method":"a","params":[]}"#, "Invalid field 'id' in request body"),
            (r#"{"method":"a","params":[],"id":1.5}"#, "Invalid field 'id' in request body"),
            (
                r#"{"jsonrpc":"1.1","method":"a","params":[],"id":1}"#,
                "Invalid field 'jsonrpc' in request body",
            ),
            (r#"{"params":[],"id":1}"#, "Required field method is missing"),
            (r#"{"method":7,"params":[],"id":1}"#, "Invalid field 'method' in request body"),
            (r#"{"method":"a","params":[null],"id":1}"#, "Unable to parse null: XenAPI has no such value"),
            ("[]", "Invalid request body"),
        ];
        for (body, expected) in rows {
            assert_eq!(check(body), expected, "{body}");
        }
        assert!(check("<methodCall/>").starts_with("expected value"), "not JSON at all");
    }

    #[test]
    fn answers_have_the_form_of_their_request() {
        let value = Value::Struct(
            [
                ("int", Value::Int(7)),
                ("date", Value::DateTime("20260101T00:00:00Z".to_owned())),
                ("float", Value::Double(1.0)),
                ("set", Value::Array(vec![Value::void()])),
            ]
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
        );
        let good = r#"{"date":"20260101T00:00:00Z","float":1.0,"int":"7","set":[""]}"#;
        let failure = Failure::new("HOST_IS_SLAVE", &["10.0.0.1"]);
        let rows = [
            (r#"{"method":"a","params":[],"id":"x"}"#, Ok(value.clone()), format!(r#"{{"error":null,"id":"x","result":{good}}}"#)),
            (r#"{"jsonrpc":"2.0","method":"a","id":3}"#, Ok(value), format!(r#"{{"id":3,"jsonrpc":"2.0","result":{good}}}"#)),
            (
                r#"{"method":"a","params":[],"id":0}"#,
                Err(failure.clone()),
                r#"{"error":["HOST_IS_SLAVE","10.0.0.1"],"id":0,"result":null}"#.to_owned(),
            ),
            (
                r#"{"jsonrpc":"2.0","method":"a","id":0}"#,
                Err(failure),
                r#"{"error":{"code":1,"data":["10.0.0.1"],"message":"HOST_IS_SLAVE"},"id":0,"jsonrpc":"2.0"}"#.to_owned(),
            ),
        ];
        for (request, answer, expected) in rows {
            assert_eq!(Request::read(request.as_bytes()).unwrap().reply(&answer), expected, "{request}");
        }
    }
}

use std::collections::BTreeMap;

use super::*;

fn check_value(inner: &str, wanted: &Value) {
    let body =
        format!("<methodCall><methodName>m</methodName><params><param>{inner}</param></params></methodCall>");
    assert_eq!(decode_call(body.as_bytes()), Ok(("m".to_owned(), vec![wanted.clone()])), "{inner}");
}

fn check_refused(inner: &str, wanted: &CodecError) {
    let body =
        format!("<methodCall><methodName>m</methodName><params><param>{inner}</param></params></methodCall>");
    assert_eq!(decode_call(body.as_bytes()).unwrap_err(), *wanted, "{}", inner.get(..80).unwrap_or(inner));
}

fn text(text: &str) -> Value {
    Value::string(text)
}

fn unexpected(found: &str, wanted: &'static str) -> CodecError {
    CodecError::Unexpected { found: found.into(), wanted }
}

#[test]
fn every_shape_of_a_value_is_read() {
    let record =
        Value::Struct(BTreeMap::from([("a".to_owned(), text("1")), ("b c".to_owned(), Value::Bool(false))]));
    let rows = [
        ("<value>bare</value>", text("bare")),
        ("<value/>", text("")),
        ("<value></value>", text("")),
        ("<value><string/></value>", text("")),
        ("<value><nil/></value>", text("")),
        ("<value>  two  spaces\n</value>", text("  two  spaces\n")),
        ("<value><string> \t </string></value>", text(" \t ")),
        ("<value>\n  <string>x</string>\n</value>", text("x")),
        ("<value>a&lt;b&gt;c&amp;d&quot;e&apos;f&#65;&#x42;</value>", text("a<b>c&d\"e'fAB")),
        ("<value><![CDATA[<a & b>]]></value>", text("<a & b>")),
        ("<value>one<!-- not this -->two</value>", text("onetwo")),
        ("<value><int>-7</int></value>", Value::Int(-7)),
        ("<value><i4> 7 </i4></value>", Value::Int(7)),
        ("<value><boolean>1</boolean></value>", Value::Bool(true)),
        ("<value><double>60.1</double></value>", Value::Double(60.1)),
        ("<value><double>-inf</double></value>", Value::Double(f64::NEG_INFINITY)),
        (
            "<value><dateTime.iso8601>20260101T12:00:00Z</dateTime.iso8601></value>",
            Value::DateTime("20260101T12:00:00Z".into()),
        ),
        ("<value><array><data/></array></value>", Value::Array(vec![])),
        ("<value><array/></value>", Value::Array(vec![])),
        (
            "<value><array><data> <value>x</value> <value/> </data></array></value>",
            Value::Array(vec![text("x"), text("")]),
        ),
        ("<value><struct/></value>", Value::Struct(BTreeMap::new())),
        (
            "<value><struct>\n<member><name>a</name><value>1</value></member>\n\
             <member>\n<name>b c</name>\n<value><boolean>0</boolean></value></member></struct></value>",
            record,
        ),
        (
            "<value a='b' xmlns:x='y'>attributes are not looked at</value>",
            text("attributes are not looked at"),
        ),
    ];
    for (inner, wanted) in &rows {
        check_value(inner, wanted);
    }
}

#[test]
fn what_is_not_xml_rpc_is_refused() {
    let rows = [
        ("<value><int>seven</int></value>", CodecError::Scalar { kind: "int" }),
        ("<value><int>99999999999999999999</int></value>", CodecError::Scalar { kind: "int" }),
        ("<value><boolean>yes</boolean></value>", CodecError::Scalar { kind: "boolean" }),
        ("<value><double>1,5</double></value>", CodecError::Scalar { kind: "double" }),
        ("<value><nil>x</nil></value>", CodecError::Scalar { kind: "nil" }),
        ("<value>&lol;</value>", CodecError::Entity),
        ("<value>&#1;</value>", CodecError::Character { code: 1 }),
        ("<value>&#xFFFF;</value>", CodecError::Character { code: 0xffff }),
        ("<value>&#xD800;</value>", CodecError::Character { code: 0xd800 }),
        ("<value>&#99999999999;</value>", CodecError::Entity),
        ("<value>\u{1}</value>", CodecError::Character { code: 1 }),
        ("<value>text<string/></value>", unexpected("string", "a value's end")),
        ("<value><string>a<value/></string></value>", unexpected("value", "text")),
        ("<value><string/><string/></value>", unexpected("string", "an end tag")),
        ("<value><value/></value>", unexpected("value", "a type")),
        ("<value><base64>AA==</base64></value>", unexpected("<base64>", "an element of XML-RPC")),
        ("<value><array><value/></array></value>", unexpected("value", "data")),
        ("<value><struct><member><value/></member></struct></value>", unexpected("value", "name")),
        (
            "<value><struct><member><name>a</name></member></struct></value>",
            unexpected("an end tag", "value"),
        ),
        ("<value/>text", unexpected("text", "an element")),
        ("<value/><value/>", unexpected("value", "an end tag")),
        (
            "<value><struct><member><name>a</name><value/></member><member><name>a</name><value/></member></struct></value>",
            CodecError::DuplicateMember,
        ),
    ];
    for (inner, wanted) in &rows {
        check_refused(inner, wanted);
    }
}

#[test]
fn bodies_that_end_early_or_go_on_are_refused() {
    for body in [
        "",
        "  ",
        "text",
        "<methodCall>",
        "<methodCall><methodName>m</methodName><params>",
        "<methodCall><methodName>m</methodName><params><param><value>x",
        "<methodCall><methodName>m</wrong></methodCall>",
        "<methodCall><methodName>m</methodName></methodCall><methodCall/>",
        "<methodCall><methodName>m</methodName></methodCall>text",
        "<methodCall><methodName>a & b</methodName></methodCall>",
        "<html><body>500</body></html>",
        "<methodResponse><fault><value/></fault></methodResponse>",
    ] {
        assert!(decode_call(body.as_bytes()).is_err(), "{body}");
        assert!(decode_reply(body.as_bytes()).is_err(), "{body}");
    }
    assert_eq!(decode_call(b"<methodCall>\xff").unwrap_err(), CodecError::NotUtf8 { at: 12 });
    assert_eq!(
        decode_call(b"<methodCall><methodName>m</methodName></methodCall>").unwrap(),
        ("m".into(), vec![])
    );
}

#[test]
fn bombs_are_refused_at_once() {
    let entity =
        "<!DOCTYPE a [<!ENTITY b \"bbbbbbbb\">]><methodCall><methodName>&b;</methodName></methodCall>";
    assert_eq!(decode_call(entity.as_bytes()).unwrap_err(), CodecError::DocumentType);

    let deep = format!("{}x", "<value><array><data>".repeat(MAX_DEPTH + 1));
    check_refused(&deep, &CodecError::TooDeep { cap: MAX_DEPTH });
    let deepest = format!(
        "{}<value/>{}",
        "<value><array><data>".repeat(MAX_DEPTH - 1),
        "</data></array></value>".repeat(MAX_DEPTH - 1)
    );
    assert!(
        decode_call(
            format!("<methodCall><methodName/><params><param>{deepest}</param></params></methodCall>")
                .as_bytes()
        )
        .is_ok()
    );

    let unknown = "<a>".repeat(1_000_000);
    check_refused(&unknown, &unexpected("<a>", "an element of XML-RPC"));
    let wide = format!("<value><array><data>{}", "<value/>".repeat(MAX_NODES));
    check_refused(&wide, &CodecError::TooManyNodes { cap: MAX_NODES });
    assert_eq!(decode_reply(&vec![b' '; MAX_BYTES + 1]).unwrap_err(), CodecError::TooBig { cap: MAX_BYTES });

    let attributes: String = (0..80_000).map(|at| format!(" a{at}='x'")).collect();
    check_value(&format!("<value{attributes}>x</value>"), &text("x"));
}

#[test]
fn errors_show_nothing_of_the_body_but_a_short_tag() {
    let long = "s".repeat(500);
    let error =
        decode_reply(format!("<methodResponse><{long}>OpaqueRef:secret").as_bytes()).unwrap_err().to_string();
    assert!(error.len() < 100 && !error.contains("secret"), "{error}");
}

#[test]
fn replies_are_written_as_xapi_writes_them() {
    let record = Value::Struct(BTreeMap::from([
        ("bool".to_owned(), Value::Bool(true)),
        ("date".to_owned(), Value::DateTime("19700101T00:00:00Z".into())),
        ("int".to_owned(), Value::Int(-1)),
        ("set".to_owned(), Value::Array(vec![Value::Double(1.5)])),
        ("text".to_owned(), text("a<b>&\"'\r\u{1}")),
    ]));
    assert_eq!(
        encode_success(&record),
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>\
         <member><name>Status</name><value>Success</value></member><member><name>Value</name><value><struct>\
         <member><name>bool</name><value><boolean>1</boolean></value></member>\
         <member><name>date</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value></member>\
         <member><name>int</name><value>-1</value></member>\
         <member><name>set</name><value><array><data><value><double>1.5</double></value></data></array></value></member>\
         <member><name>text</name><value>a&lt;b&gt;&amp;&quot;'\r</value></member>\
         </struct></value></member></struct></value></param></params></methodResponse>"
    );
    assert_eq!(
        encode_failure(&Failure::new("VM_BAD_POWER_STATE", &["OpaqueRef:1", "halted"])),
        "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct>\
         <member><name>Status</name><value>Failure</value></member><member><name>ErrorDescription</name><value><array><data>\
         <value>VM_BAD_POWER_STATE</value><value>OpaqueRef:1</value><value>halted</value></data></array></value></member>\
         </struct></value></param></params></methodResponse>"
    );
}

#[test]
fn a_failure_keeps_all_its_parameters() {
    for params in [&[][..], &["a"], &["a", "", " c ", "d"]] {
        let failure = Failure::new("SOME_CODE", params);
        assert_eq!(decode_reply(encode_failure(&failure).as_bytes()), Ok(Err(failure)));
    }
}

#[test]
fn what_is_not_the_envelope_is_refused() {
    let member =
        |name: &str, value: &str| format!("<member><name>{name}</name><value>{value}</value></member>");
    let code = "<array><data><value>C</value><value><boolean>1</boolean></value></data></array>";
    for (members, detail) in [
        (String::new(), "no Status"),
        (member("Status", "Maybe"), "an unknown Status"),
        (member("Status", "Success"), "Success without Value"),
        (member("Status", "Failure"), "Failure without ErrorDescription"),
        (member("Status", "Failure") + &member("ErrorDescription", "X"), "Failure without ErrorDescription"),
        (member("Status", "Failure") + &member("ErrorDescription", "<array/>"), "ErrorDescription is empty"),
        (
            member("Status", "Failure") + &member("ErrorDescription", code),
            "ErrorDescription holds more than strings",
        ),
    ] {
        let body = format!(
            "<methodResponse><params><param><value><struct>{members}</struct></value></param></params></methodResponse>"
        );
        assert_eq!(decode_reply(body.as_bytes()), Err(CodecError::Envelope { detail }), "{members}");
    }
    let bare = b"<methodResponse><params><param><value>x</value></param></params></methodResponse>";
    assert_eq!(decode_reply(bare), Err(CodecError::Envelope { detail: "it is not a struct" }));
}

#[test]
fn a_call_with_a_character_that_xml_cannot_hold_is_not_written() {
    let nested = Value::Struct(BTreeMap::from([("k\u{0}".to_owned(), Value::Array(vec![text("v")]))]));
    assert_eq!(encode_call("m", &[nested]), Err(CodecError::Character { code: 0 }));
    assert_eq!(encode_call("m", &[text("\u{FFFE}")]), Err(CodecError::Character { code: 0xfffe }));
}

/// A small generator (xorshift) of values, so that each run sees the same thousands.
struct Generator(u64);

impl Generator {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn text(&mut self) -> String {
        const ALPHABET: [char; 16] =
            ['a', 'Z', '0', ' ', '\t', '\n', '\r', '<', '>', '&', '"', '\'', 'é', '\u{FFFD}', '😀', ';'];
        (0..self.below(12)).map(|_| ALPHABET[self.below(16) as usize]).collect()
    }

    fn value(&mut self, depth: u64) -> Value {
        match self.below(if depth == 0 { 4 } else { 6 }) {
            0 => Value::String(self.text()),
            1 => Value::Bool(self.below(2) == 1),
            2 => Value::Double(f64::from_bits(self.below(u64::MAX)).clamp(-1e300, 1e300)),
            3 => Value::DateTime("20260101T12:00:00Z".into()),
            4 => Value::Array((0..self.below(5)).map(|_| self.value(depth - 1)).collect()),
            _ => Value::Struct((0..self.below(5)).map(|_| (self.text(), self.value(depth - 1))).collect()),
        }
    }
}

#[test]
fn what_is_written_is_read_back_the_same() {
    let mut generator = Generator(0x9e37_79b9_7f4a_7c15);
    for _ in 0..5_000 {
        let params: Vec<Value> = (0..3).map(|_| generator.value(4)).collect();
        if params.iter().any(|param| format!("{param:?}").contains("NaN")) {
            continue; // NaN is not equal to itself
        }
        let call = encode_call("VM.start", &params).unwrap();
        assert_eq!(decode_call(call.as_bytes()).unwrap(), ("VM.start".to_owned(), params.clone()), "{call}");
        let reply = encode_success(&params[0]);
        assert_eq!(decode_reply(reply.as_bytes()).unwrap().unwrap(), params[0], "{reply}");
    }
}

#[test]
fn no_cut_or_changed_byte_makes_the_reader_panic() {
    let mut generator = Generator(7);
    for _ in 0..200 {
        let reply = encode_success(&generator.value(4)).into_bytes();
        for _ in 0..50 {
            let mut mutated = reply.clone();
            let at = generator.below(reply.len() as u64) as usize;
            match generator.below(3) {
                0 => mutated.truncate(at),
                1 => mutated[at] = generator.below(256) as u8,
                _ => mutated.insert(at, b"<>&/;\"x"[generator.below(7) as usize]),
            }
            let _ = decode_reply(&mutated);
            let _ = decode_call(&mutated);
        }
    }
}

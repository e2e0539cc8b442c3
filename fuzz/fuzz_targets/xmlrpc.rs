//! A pool's bodies: reading never panics, what was read can be written, and a second round changes nothing. The first
//! may: an int is a string on this wire, a CR in a reply comes out as LF, what XML cannot hold is left out.
#![no_main]

use bootflip::xen::codec::{decode_call, decode_reply, encode_call, encode_failure, encode_success};

/// As text, since NaN is not equal to itself.
fn same(one: &impl std::fmt::Debug, other: &impl std::fmt::Debug) {
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    match decode_reply(body) {
        Ok(Ok(value)) => {
            let again = |value| decode_reply(encode_success(value).as_bytes()).unwrap().unwrap();
            let once = again(&value);
            same(&again(&once), &once);
        }
        Ok(Err(failure)) => {
            let again = |failure| decode_reply(encode_failure(failure).as_bytes()).unwrap().unwrap_err();
            let once = again(&failure);
            same(&again(&once), &once);
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok((method, params)) = decode_call(body)
        && let Ok(text) = encode_call(&method, &params)
    {
        let (method, params) = decode_call(text.as_bytes()).unwrap();
        let text = encode_call(&method, &params).unwrap();
        same(&decode_call(text.as_bytes()).unwrap(), &(method, params));
    }
});

//! A pool's bodies: reading never panics, and what was read is written and read again as the same.
#![no_main]

use bootflip::xen::codec::{decode_call, decode_reply, encode_call, encode_failure, encode_success};

libfuzzer_sys::fuzz_target!(|body: &[u8]| {
    match decode_reply(body) {
        Ok(Ok(value)) => assert_eq!(decode_reply(encode_success(&value).as_bytes()), Ok(Ok(value))),
        Ok(Err(failure)) => {
            assert_eq!(decode_reply(encode_failure(&failure).as_bytes()), Ok(Err(failure)));
        }
        Err(error) => drop(error.to_string()),
    }
    if let Ok((method, params)) = decode_call(body)
        && let Ok(text) = encode_call(&method, &params)
    {
        assert_eq!(decode_call(text.as_bytes()), Ok((method, params)));
    }
});

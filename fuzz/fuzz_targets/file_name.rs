//! A name as a client sends it: what it stands for lies below a folder, whatever it says.
#![no_main]

use bootflip::{
    boot::{manifest::Manifest, root::RelativePath},
    tftp::Wanted,
};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    match Wanted::parse(bytes) {
        Some(Wanted::Published(path)) => check(&path),
        Some(Wanted::File { token, path }) => {
            assert_eq!(token.len(), 64);
            check(&path);
        }
        Some(Wanted::Configuration(_)) | None => {}
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Manifest::parse(text);
    }
});

fn check(path: &RelativePath) {
    let name = path.as_str();
    assert!(!name.is_empty() && name.len() <= 512 && !name.starts_with('/') && !name.ends_with('/'));
    assert!(name.split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
    assert!(!name.contains(['\\', '\0']));
    assert_eq!(RelativePath::parse(name).as_ref(), Some(path), "parsed again it is the same");
}

//! The architectures that network boot clients name in option 93 (RFC 4578 §2.1 and IANA's list after it), by the
//! words that the configuration has for them.
//!
//! 7 and 9 stand side by side: the RFC's text says EFI byte code for 7 and x86-64 for 9, and nearly all x86-64
//! firmware sends 7. Nobody boots byte code, so one word means both.

/// BIOS, also without option 93.
pub const BIOS: u16 = 0;

/// A word, and the codes that it means.
const WORDS: [(&str, &[u16]); 9] = [
    ("bios", &[BIOS]),
    ("efi-ia32", &[6]),
    ("efi-x64", &[7, 9]),
    ("efi-arm32", &[10]),
    ("efi-arm64", &[11]),
    ("http-ia32", &[15]),
    ("http-x64", &[16]),
    ("http-arm32", &[18]),
    ("http-arm64", &[19]),
];

/// The codes of a word, or of a number in decimal.
pub fn codes(word: &str) -> Option<Vec<u16>> {
    let named = WORDS.iter().find(|(name, _)| *name == word).map(|(_, codes)| codes.to_vec());
    named.or_else(|| word.parse().ok().map(|code| vec![code]))
}

/// The word for a code; `None`: only its number is known.
pub fn word(code: u16) -> Option<&'static str> {
    WORDS.iter().find(|(_, codes)| codes.contains(&code)).map(|(name, _)| *name)
}

/// Every word, as the configuration takes them.
pub fn words() -> impl Iterator<Item = &'static str> {
    WORDS.iter().map(|(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x64_is_seven_and_nine_and_a_number_is_itself() {
        assert_eq!(codes("efi-x64"), Some(vec![7, 9]));
        assert_eq!(codes("bios"), Some(vec![0]));
        assert_eq!(codes("41"), Some(vec![41]));
        for wrong in ["", "efi", "70000", "-1"] {
            assert_eq!(codes(wrong), None, "{wrong}");
        }
        assert_eq!((word(9), word(11), word(41)), (Some("efi-x64"), Some("efi-arm64"), None));
        assert!(words().all(|word| codes(word).is_some()));
    }
}

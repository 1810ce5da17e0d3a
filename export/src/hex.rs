//! Bytes as hexadecimal digits.

/// Returns the lowercase hexadecimal digits of `bytes`, two for each.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the `N` bytes whose hexadecimal digits are `text`, in any case. `None` if `text` is not `2·N` digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_round_trip_and_other_text_is_rejected() {
        assert_eq!(hex(&[0, 0x1f, 0xa0]), "001fa0");
        assert_eq!(unhex("001FA0"), Some([0, 0x1f, 0xa0]));
        for text in ["", "00", "001fa", "001fag", "001fa00", "+01fa0", "0é1f"] {
            assert_eq!(unhex::<3>(text), None, "{text}");
        }
    }
}

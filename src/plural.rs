//! Numbers with their nouns.

use std::fmt::Display;

/// Formats `count` with the noun `one` in the singular or plural: `1 image`, `2 images`, `2 classes`.
pub(crate) fn pluralize<N: PartialEq + From<u8> + Display>(count: N, one: &str) -> String {
    let ending = match () {
        () if count == N::from(1) => "",
        () if one.ends_with(['s', 'x']) => "es",
        () => "s",
    };
    format!("{count} {one}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nouns_are_pluralized() {
        for (count, one, expected) in [
            (0u64, "image", "0 images"),
            (1, "image", "1 image"),
            (2, "other", "2 others"),
            (1, "class", "1 class"),
            (13, "class", "13 classes"),
        ] {
            assert_eq!(pluralize(count, one), expected);
        }
    }
}

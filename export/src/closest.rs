//! Suggestions for misspelled names.

/// Returns the one of `names` of which `name` is likely a misspelling or a part, if any. Case, spaces, `_` and `-` do not matter.
///
/// A name is close if at most a third of its letters are wrong, missing, superfluous or swapped, or if it contains `name`.
///
/// ```
/// use tiny_cats_export::closest;
///
/// let breeds = ["Bombay", "British_Shorthair", "Maine_Coon"];
/// assert_eq!(closest("mainecon", breeds), Some("Maine_Coon"));
/// assert_eq!(closest("shorthair", breeds), Some("British_Shorthair"));
/// assert_eq!(closest("dog", breeds), None);
/// ```
pub fn closest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = |name: &str| -> String {
        // A longer text is close to no name, and would take long to compare.
        let letters = name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).take(MAX_LENGTH);
        letters.flat_map(char::to_lowercase).collect()
    };
    let wanted = plain(name);
    let length = wanted.chars().count();
    let distance = |other: &str| {
        let known = plain(other);
        let wrong = strsim::osa_distance(&wanted, &known);
        let most = (length.min(known.chars().count()) / 3).max(1);
        if wrong <= most && wrong < length {
            // Of equally close names, the one with the longest common beginning.
            let alike = wanted.chars().zip(known.chars()).take_while(|(a, b)| a == b).count();
            Some((wrong, MAX_LENGTH - alike))
        } else if length >= MIN_PART && known.contains(&wanted) {
            Some((MAX_LENGTH, known.chars().count()))
        } else {
            None
        }
    };
    let close = names.into_iter().filter_map(|other| Some((distance(other)?, other)));
    close.min_by_key(|(distance, _)| *distance).map(|(_, other)| other)
}

/// Maximum number of letters of a name that are compared.
const MAX_LENGTH: usize = 100;
/// Minimum number of letters that are searched for within a name.
const MIN_PART: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_close_is_suggested() {
        let breeds = ["Abyssinian", "Bombay", "British_Shorthair", "Maine_Coon", "Ragdoll", "Siamese"];
        for (written, expected) in [
            ("siamees", Some("Siamese")),
            ("Main Coon", Some("Maine_Coon")),
            ("bombai", Some("Bombay")),
            ("british", Some("British_Shorthair")),
            ("coon", Some("Maine_Coon")),
            ("dog", None),
            ("Tabby", None),
            ("cat", None),
            ("", None),
            ("a", None),
            ("lion", None),
        ] {
            assert_eq!(closest(written, breeds), expected, "{written:?}");
        }
        assert_eq!(closest("lrr", ["size", "lr"]), Some("lr"));
        assert_eq!(closest("size", ["seed", "image-size"]), Some("image-size"));
        assert_eq!(closest(&"x".repeat(1 << 20), breeds), None);
    }
}

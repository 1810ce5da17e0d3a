//! Suggestions for misspelled names.

/// Returns the most similar of `names`, if `name` is likely a misspelling or a part of it. Case, spaces, `_` and `-` do not matter.
///
/// A name is similar if at most a third of its letters differ, are missing, added or swapped, or if it contains `name`.
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
    let normalize = |name: &str| -> String {
        // A longer text is similar to no name, and slow to compare.
        let letters = name.chars().filter(|c| !matches!(c, ' ' | '_' | '-')).take(MAX_LENGTH);
        letters.flat_map(char::to_lowercase).collect()
    };
    let query = normalize(name);
    let length = query.chars().count();
    let distance = |other: &str| {
        let candidate = normalize(other);
        let edits = strsim::osa_distance(&query, &candidate);
        let max = (length.min(candidate.chars().count()) / 3).max(1);
        if edits <= max && edits < length {
            // Of equally similar names, the one with the longest common prefix.
            let common = query.chars().zip(candidate.chars()).take_while(|(a, b)| a == b).count();
            Some((edits, MAX_LENGTH - common))
        } else if length >= MIN_PART && candidate.contains(&query) {
            Some((MAX_LENGTH, candidate.chars().count()))
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
    fn only_similar_names_are_suggested() {
        let breeds = ["Abyssinian", "Bombay", "British_Shorthair", "Maine_Coon", "Ragdoll", "Siamese"];
        for (name, expected) in [
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
            assert_eq!(closest(name, breeds), expected, "{name:?}");
        }
        assert_eq!(closest("lrr", ["size", "lr"]), Some("lr"));
        assert_eq!(closest("size", ["seed", "image-size"]), Some("image-size"));
        assert_eq!(closest(&"x".repeat(1 << 20), breeds), None);
    }
}

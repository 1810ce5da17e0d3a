//! What somebody may have meant.

/// The one of `names` that is likest to `name`, if any is like it at all.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // What is longer than any name is like none, and would take long to compare.
    let name: String = name.chars().take(100).collect();
    let like = names.map(|other| (strsim::jaro_winkler(&name, other), other));
    like.filter(|(like, _)| *like > 0.6).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

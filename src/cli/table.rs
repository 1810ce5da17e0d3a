//! Tables on a terminal.

use std::path::Path;

use crate::data::printable;

/// Formats a table with a line of headings and columns separated by two spaces. Columns of numbers and empty entries are right-aligned.
pub fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let column = |i: usize| rows.iter().filter_map(move |row| row.get(i));
    let columns: Vec<(usize, bool)> = (0..headings.len())
        .map(|i| {
            let widest = column(i).map(|entry| width(entry)).max().unwrap_or(0);
            let is_number = |entry: &String| entry.chars().all(|c| c.is_ascii_digit() || ".-+e/".contains(c));
            (widest.max(width(headings[i])), column(i).all(is_number))
        })
        .collect();
    let line = |entries: &mut dyn Iterator<Item = &str>| {
        let cell = |(entry, &(width, align_right)): (&str, &(usize, bool))| {
            if align_right { format!("{entry:>width$}  ") } else { format!("{entry:<width$}  ") }
        };
        let line: String = entries.zip(&columns).map(cell).collect();
        line.trim_end().to_owned() + "\n"
    };
    let body: String = rows.iter().map(|row| line(&mut row.iter().map(String::as_str))).collect();
    line(&mut headings.iter().copied()) + &body
}

/// Converts text from a file to one printable line of at most `max_chars` characters, with control characters escaped.
pub fn clean(text: &str, max_chars: usize) -> String {
    let shortened: String = text.chars().take(max_chars).collect();
    let ellipsis = if text.chars().nth(max_chars).is_some() { "…" } else { "" };
    format!("{}{ellipsis}", printable(Path::new(&shortened)).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [["a", "1.5", ""], ["ⓑⓑⓑⓑ", "-12", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["name", "n", "z"], &rows), "name    n  z\na     1.5\nⓑⓑⓑⓑ  -12  x\n");
        assert_eq!(table(&["name"], &[]), "name\n");
        assert_eq!(clean("a\u{1b}[31m\nb", 99), "a\\u{1b}[31m\\nb");
        assert_eq!(clean("a\u{202e}\u{2028}b", 99), "a\\u{202e}\\u{2028}b");
        assert_eq!(clean("abc", 2), "ab…");
    }
}

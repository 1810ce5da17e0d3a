//! Tables on a terminal.

use std::path::Path;

use crate::data::printable;

/// Formats a table of aligned columns, separated by two spaces, with a line of headings. Columns in which every entry is a number or empty
/// are aligned to the right.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let width = |text: &str| text.chars().count();
    let column = |i: usize| rows.iter().filter_map(move |row| row.get(i));
    let columns: Vec<(usize, bool)> = (0..head.len())
        .map(|i| {
            let widest = column(i).map(|entry| width(entry)).max().unwrap_or(0);
            let number = |entry: &String| entry.chars().all(|c| c.is_ascii_digit() || ".-+e/".contains(c));
            (widest.max(width(head[i])), column(i).all(number))
        })
        .collect();
    let line = |entries: &mut dyn Iterator<Item = &str>| {
        let cell = |(entry, &(width, right)): (&str, &(usize, bool))| {
            if right { format!("{entry:>width$}  ") } else { format!("{entry:<width$}  ") }
        };
        let line: String = entries.zip(&columns).map(cell).collect();
        line.trim_end().to_owned() + "\n"
    };
    let body: String = rows.iter().map(|row| line(&mut row.iter().map(String::as_str))).collect();
    line(&mut head.iter().copied()) + &body
}

/// Text from a file in printable form: on one line, at most `most` characters, without control characters.
pub fn clean(text: &str, most: usize) -> String {
    let short: String = text.chars().take(most).collect();
    let more = if text.chars().nth(most).is_some() { "…" } else { "" };
    format!("{}{more}", printable(Path::new(&short)).display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_is_in_them() {
        let rows = [["a", "1.5", ""], ["ⓑⓑⓑⓑ", "-12", "x"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&["name", "n", "z"], &rows), "name    n  z\na     1.5\nⓑⓑⓑⓑ  -12  x\n");
        assert_eq!(table(&["name"], &[]), "name\n");
        assert_eq!(clean("a\u{1b}[31m\nb", 99), "a\\u{1b}[31m\\nb");
        assert_eq!(clean("a\u{202e}\u{2028}b", 99), "a\\u{202e}\\u{2028}b");
        assert_eq!(clean("abc", 2), "ab…");
    }
}

//! Splits of a data set into training, validation and test images.
//!
//! Photographs with neighboring numbers are often of one animal on one day, so a model that was trained on one recognizes the other. So a
//! class is not shuffled but cut into ranges: each series of numbered files at two positions at most. Identical images are never in two
//! parts. A data folder whose class folders are in folders `train`, `val` and `test` keeps that split.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The part of the data that an image is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Split {
    /// Images that the model is trained on.
    #[serde(rename = "train")]
    Train,
    /// Images that select the best state of a model.
    #[serde(rename = "val")]
    Validation,
    /// Images that are only used to measure the selected model.
    #[serde(rename = "test")]
    Test,
}

impl Split {
    /// All parts, in their order.
    pub const ALL: [Self; 3] = [Self::Train, Self::Validation, Self::Test];

    /// The short name: `train`, `val` or `test`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "val",
            Self::Test => "test",
        }
    }

    /// The part for a folder of this name, in any case of letters: `train`, `val`, `valid`, `validation` or `test`.
    pub(super) fn from_folder_name(name: &str) -> Option<Self> {
        Some(match name.to_ascii_lowercase().as_str() {
            "train" => Self::Train,
            "val" | "valid" | "validation" => Self::Validation,
            "test" => Self::Test,
            _ => return None,
        })
    }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The proportions of the parts, in the order of [`Split::ALL`]: 80, 10, 10 and 8, 1, 1 are the same. The share for training is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[u32; 3]", into = "[u32; 3]")]
pub struct Shares([u32; 3]);

impl Default for Shares {
    fn default() -> Self {
        Self([80, 10, 10])
    }
}

impl From<Shares> for [u32; 3] {
    fn from(shares: Shares) -> Self {
        shares.0
    }
}

impl TryFrom<[u32; 3]> for Shares {
    type Error = String;

    fn try_from(shares: [u32; 3]) -> Result<Self, String> {
        match shares {
            [0, ..] => Err("expected a share for training greater than 0".to_string()),
            _ if shares.iter().any(|&share| share > 1_000_000) => Err("expected at most 1000000".to_string()),
            _ => Ok(Self(shares)),
        }
    }
}

/// Parses the form of the command line: `80,10,10`.
impl FromStr for Shares {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shares: Option<Vec<u32>> = text.split(',').map(|share| share.trim().parse().ok()).collect();
        let shares: Option<[u32; 3]> = shares.and_then(|shares| shares.try_into().ok());
        shares.ok_or("expected shares of train, val and test like 80,10,10")?.try_into()
    }
}

impl Shares {
    /// The part of each file of one class. It depends only on the names.
    ///
    /// Each series is cut separately. Series too short for a file in each part are cut together, like one series. Training has the first
    /// files of each, the test the last. Each count is within one file of its proportion, but a class of a few files has one in each part,
    /// in training first.
    pub(super) fn split(self, names: &[&str]) -> Vec<Split> {
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.sort_by_cached_key(|&i| key(names[i]));
        let is_short = |series: &[usize]| {
            let smallest = self.0.iter().filter(|&&share| share > 0).min().copied().unwrap_or(0);
            (series.len() as u64) * u64::from(smallest) < self.total()
        };
        let (pool, mut groups): (Vec<&[usize]>, Vec<&[usize]>) = order
            .chunk_by(|&a, &b| series(names[a]).0 == series(names[b]).0)
            .partition(|series| is_short(series));
        let pool = pool.concat();
        if !pool.is_empty() {
            groups.push(&pool);
        }

        let mut splits = vec![Split::Train; names.len()];
        let is_only_group = groups.len() == 1;
        for group in groups {
            let mut counts = self.apportion(group.len());
            if is_only_group {
                self.fill_empty_splits(&mut counts);
            }
            let parts = Split::ALL.into_iter().zip(counts);
            let parts = parts.flat_map(|(split, count)| std::iter::repeat_n(split, count));
            group.iter().zip(parts).for_each(|(&i, split)| splits[i] = split);
        }
        splits
    }

    fn total(self) -> u64 {
        self.0.iter().map(|&share| u64::from(share)).sum()
    }

    /// Apportions `count` files by the method of largest remainders; of equal remainders, the earlier part comes first.
    fn apportion(self, count: usize) -> [usize; 3] {
        let exact = self.0.map(|share| count as u64 * u64::from(share));
        let mut counts = exact.map(|n| (n / self.total()) as usize);
        let mut by_remainder = [0, 1, 2];
        by_remainder.sort_by_key(|&part| std::cmp::Reverse(exact[part] % self.total()));
        let remaining = count - counts.iter().sum::<usize>();
        by_remainder[..remaining].iter().for_each(|&part| counts[part] += 1);
        counts
    }

    /// Gives each empty part with a nonzero share a file of the largest part, but never the only file of an earlier part.
    fn fill_empty_splits(self, counts: &mut [usize; 3]) {
        for part in (0..3).filter(|&part| self.0[part] > 0) {
            if counts[part] == 0 {
                let donors = (0..3).filter(|&donor| counts[donor] > usize::from(donor < part));
                if let Some(donor) = donors.max_by_key(|&donor| counts[donor]) {
                    counts[donor] -= 1;
                    counts[part] += 1;
                }
            }
        }
    }
}

/// The series of a file and its number in it, in decimal digits: (`pug_`, `12`) for `pug_12.jpg`, (`pug (`, `12`) for `pug (12).jpg`. A
/// file without a number is its own series.
pub(super) fn series(name: &str) -> (&str, &str) {
    let stem = name.rsplit_once('.').map_or(name, |(stem, _)| if stem.is_empty() { name } else { stem });
    let stem = stem.trim_end_matches(|c: char| !c.is_alphanumeric());
    let start = stem.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    stem.split_at(start)
}

/// The sort key of a class's files: series, then number, which may be of any length.
fn key(name: &str) -> (String, usize, String, String) {
    let (series, number) = series(name);
    let number = number.trim_start_matches('0');
    (series.to_string(), number.len(), number.to_string(), name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tiny_cats_models::random::{Purpose, Stream};

    fn counts(splits: &[Split]) -> [usize; 3] {
        Split::ALL.map(|part| splits.iter().filter(|&&split| split == part).count())
    }

    fn numbered(series: &str, count: usize) -> Vec<String> {
        (1..=count).map(|i| format!("{series}_{i}.jpg")).collect()
    }

    fn split(shares: Shares, names: &[String]) -> Vec<Split> {
        shares.split(&names.iter().map(String::as_str).collect::<Vec<_>>())
    }

    #[test]
    fn series_and_number_are_parsed_from_the_name() {
        for (name, expected) in [
            ("american_bulldog_12.jpg", ("american_bulldog_", "12")),
            ("12.jpg", ("", "12")),
            ("pug (007).png", ("pug (", "007")),
            ("tom.cat.jpg", ("tom.cat", "")),
            ("Katze_٣.jpg", ("Katze_٣", "")),
            ("no_extension_3", ("no_extension_", "3")),
            ("...", ("", "")),
            ("ü9", ("ü", "9")),
        ] {
            assert_eq!(series(name), expected, "{name}");
        }
    }

    #[test]
    fn small_classes_fill_training_first() {
        for (count, expected) in [
            (0, [0, 0, 0]),
            (1, [1, 0, 0]),
            (2, [1, 1, 0]),
            (3, [1, 1, 1]),
            (5, [3, 1, 1]),
            (9, [7, 1, 1]),
            (10, [8, 1, 1]),
            (11, [9, 1, 1]),
            (200, [160, 20, 20]),
        ] {
            assert_eq!(counts(&split(Shares::default(), &numbered("a", count))), expected, "{count}");
            let unnumbered: Vec<String> = (0..count).map(|i| format!("cat {}x.jpg", i * 7919)).collect();
            assert_eq!(counts(&split(Shares::default(), &unnumbered)), expected, "{count} without numbers");
        }
        let odd: Shares = "1,1,98".parse().unwrap();
        assert_eq!(counts(&split(odd, &numbered("a", 1))), [1, 0, 0]);
        assert_eq!(counts(&split(odd, &numbered("a", 2))), [1, 1, 0]);
        let all: Shares = "1,0,0".parse().unwrap();
        assert_eq!(counts(&split(all, &numbered("a", 50))), [50, 0, 0]);
    }

    #[test]
    fn invalid_shares_are_rejected() {
        for bad in ["", "80,10", "80,10,10,0", "0,50,50", "a,b,c", "-1,1,1", "80;10;10", "1,1,9999999"] {
            assert!(bad.parse::<Shares>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<Shares>("[0, 1, 1]").is_err());
        assert_eq!(serde_json::to_string(&Shares::default()).unwrap(), "[80,10,10]");
    }

    /// Classes of several series with gaps in their numbers, in random order.
    fn random_names(stream: &mut Stream) -> Vec<String> {
        let mut names = Vec::new();
        for series in 0..1 + stream.uniform_int(5) {
            let size =
                if stream.uniform_int(2) == 0 { stream.uniform_int(12) } else { stream.uniform_int(150) };
            let mut number = 0;
            for _ in 0..size {
                number += 1 + stream.uniform_int(3);
                names.push(format!(
                    "series{series}x_{number:0width$}.jpg",
                    width = stream.uniform_int(4) as usize
                ));
            }
        }
        let order = stream.permutation(names.len());
        order.into_iter().map(|i| names[i as usize].clone()).collect()
    }

    #[test]
    fn each_series_has_at_most_two_boundaries_and_its_shares() {
        for (case, shares) in [[80, 10, 10], [70, 15, 15], [8, 1, 1], [1, 1, 1], [90, 10, 0], [60, 40, 0]]
            .into_iter()
            .cycle()
            .take(300)
            .enumerate()
        {
            let names = random_names(&mut Stream::new(1, Purpose::Order, case as u64));
            let shares = Shares(shares);
            let splits = split(shares, &names);
            assert_eq!(splits.len(), names.len());
            let mut sorted: Vec<(&String, Split)> = names.iter().zip(splits).collect();
            sorted.sort_by_cached_key(|(name, _)| key(name));
            for run in sorted.chunk_by(|(a, _), (b, _)| series(a).0 == series(b).0) {
                let parts: Vec<Split> = run.iter().map(|&(_, split)| split).collect();
                // In order, so that there are two boundaries at most.
                assert!(parts.is_sorted(), "{case}: {run:?}");
                if run.len() >= 10 {
                    for (count, share) in counts(&parts).into_iter().zip(shares.0) {
                        let exact = run.len() as f64 * f64::from(share) / shares.total() as f64;
                        assert!((count as f64 - exact).abs() < 1.0, "{case}: {count}, expected {exact}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_split_does_not_depend_on_file_order() {
        let mut stream = Stream::new(2, Purpose::Order, 0);
        let names = random_names(&mut stream);
        let by_name = |names: &[String]| -> std::collections::BTreeMap<String, Split> {
            names.iter().cloned().zip(split(Shares::default(), names)).collect()
        };
        let expected = by_name(&names);
        assert_eq!(expected.len(), names.len());
        for _ in 0..5 {
            let order = stream.permutation(names.len());
            let shuffled: Vec<String> = order.into_iter().map(|i| names[i as usize].clone()).collect();
            assert_eq!(by_name(&shuffled), expected);
        }
    }
}

//! Prices of GPUs, CPU cores and memory by the hour.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use tiny_cats_export::{closest, excerpt};
use toml::{Table, Value};

use super::{Container, Error, Gpu, Result, gpu_models};
use crate::{data::printable, train::folder::read_bounded};

const EMBEDDED: &str = include_str!("prices.toml");

/// A price list in dollars per hour.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prices {
    /// The date of the prices.
    pub date: String,
    /// The source of the prices.
    pub source: String,
    /// Price of a CPU core.
    pub cpu_core_hour: f64,
    /// Price of a GiB of memory.
    pub memory_gib_hour: f64,
    /// Prices of GPUs by name; some GPUs have none.
    pub gpus: BTreeMap<String, f64>,
}

impl Prices {
    /// Returns the embedded price list.
    ///
    /// # Panics
    /// Never, since a test parses the list.
    pub fn embedded() -> Self {
        let empty = Self {
            date: String::new(),
            source: String::new(),
            cpu_core_hour: 0.0,
            memory_gib_hour: 0.0,
            gpus: BTreeMap::new(),
        };
        empty.with_file(Path::new("prices.toml"), EMBEDDED).expect("the embedded prices are valid")
    }

    /// Reads a price file. Missing prices are those of the embedded list.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or a field is invalid.
    pub fn load(path: &Path) -> Result<Self> {
        let text = String::from_utf8(read_bounded(path)?);
        let text =
            text.map_err(|_| Error::Prices { path: path.to_owned(), message: "expected UTF-8 text".into() })?;
        Self::embedded().with_file(path, &text)
    }

    /// Replaces the prices that the file at `path` lists.
    fn with_file(mut self, path: &Path, text: &str) -> Result<Self> {
        let invalid = |field: &str, expected: &str, found: &dyn std::fmt::Display| {
            let shortened = |text: &str| printable(Path::new(&text.chars().take(60).collect::<String>()));
            let [field, found] = [shortened(field), shortened(&found.to_string())];
            let message = format!("{}: expected {expected}, found {}", field.display(), found.display());
            Error::Prices { path: path.to_owned(), message }
        };
        let table: Table = text.parse().map_err(|e: toml::de::Error| {
            let line =
                1 + e.span().map_or(0, |span| text[..span.start.min(text.len())].matches('\n').count());
            let message = format!("line {line}: {}", e.message().lines().next().unwrap_or_default());
            Error::Prices { path: path.to_owned(), message }
        })?;
        let dollars = |field: &str, value: &Value| {
            let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
            let number = number.filter(|n| n.is_finite() && *n > 0.0 && *n < 1e6);
            number.ok_or_else(|| invalid(field, "dollars per hour", value))
        };
        for (key, value) in &table {
            match (key.as_str(), value) {
                ("date", Value::String(text)) => self.date = excerpt(text).into_owned(),
                ("date", Value::Datetime(date)) => self.date = date.to_string(),
                ("source", Value::String(text)) => self.source = excerpt(text).into_owned(),
                ("cpu_core_hour", value) => self.cpu_core_hour = dollars(key, value)?,
                ("memory_gib_hour", value) => self.memory_gib_hour = dollars(key, value)?,
                ("gpu", Value::Table(gpus)) => {
                    for (name, value) in gpus {
                        let model =
                            gpu_models().iter().find(|model| model.has_name(name)).ok_or_else(|| {
                                let suggestion =
                                    closest(name, gpu_models().iter().map(|model| model.name.as_str()));
                                let suggestion =
                                    suggestion.map_or(String::new(), |name| format!(", such as {name}"));
                                invalid(
                                    &format!("gpu.{name}"),
                                    &format!("the name of a GPU{suggestion}"),
                                    name,
                                )
                            })?;
                        self.gpus.insert(model.name.clone(), dollars(&format!("gpu.{name}"), value)?);
                    }
                }
                ("date" | "source", value) => return Err(invalid(key, "a string", value)),
                ("gpu", value) => return Err(invalid(key, "a table", value)),
                (_, value) => {
                    let fields = "date, source, cpu_core_hour, memory_gib_hour or [gpu]";
                    return Err(invalid(key, fields, value));
                }
            }
        }
        Ok(self)
    }

    /// Multiplies all prices by `factor`.
    pub fn with_factor(mut self, factor: f64) -> Self {
        self.cpu_core_hour *= factor;
        self.memory_gib_hour *= factor;
        self.gpus.values_mut().for_each(|dollars| *dollars *= factor);
        self
    }

    /// Returns the price of a container with these GPUs in dollars per hour; `None` if they have no price.
    pub fn hourly_price(&self, gpu: &Gpu, container: &Container) -> Option<f64> {
        let gpus = self.gpus.get(&gpu.model.name)? * gpu.count as f64;
        let memory = container.memory_mib / 1024.0;
        Some(gpus + container.cpu * self.cpu_core_hour + memory * self.memory_gib_hour)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_replaces_only_the_listed_prices() {
        let embedded = Prices::embedded();
        assert!(gpu_models().iter().filter(|model| embedded.gpus.contains_key(&model.name)).count() >= 9);
        let path = Path::new("p.toml");
        let prices = Prices::embedded()
            .with_file(path, "date = 2026-11-01\n[gpu]\nA100 = 3\n\"H100!\" = 4.5")
            .unwrap();
        assert_eq!((prices.gpus["A100-40GB"], prices.gpus["H100"], &*prices.date), (3.0, 4.5, "2026-11-01"));
        assert_eq!((prices.gpus["T4"], prices.cpu_core_hour), (embedded.gpus["T4"], embedded.cpu_core_hour));
    }

    #[test]
    fn an_invalid_list_gives_a_one_line_error_with_the_field() {
        for (text, message) in [
            ("gpu = 3", "gpu: expected a table, found 3"),
            ("[gpu]\nA10 = \"dear\"", "gpu.A10: expected dollars per hour, found \"dear\""),
            ("[gpu]\nA10 = -1", "gpu.A10: expected dollars per hour, found -1"),
            ("[gpu]\nA10 = nan", "gpu.A10: expected dollars per hour, found nan"),
            ("[gpu]\nA11 = 1", "gpu.A11: expected the name of a GPU, such as A10"),
            ("cpu = 1", "cpu: expected date, source,"),
            ("date = 3", "date: expected a string, found 3"),
            ("\n[gpu", "line 2: "),
        ] {
            let error = Prices::embedded().with_file(Path::new("p.toml"), text).unwrap_err().to_string();
            assert!(
                error.starts_with("p.toml: ") && error.contains(message) && !error.contains('\n'),
                "{error}"
            );
        }
    }
}

//! Parsing and validation of a sweep's file.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tiny_cats_export::closest;
use toml::{Table, Value};

use super::{Error, Result};
use crate::train::{folder::read_bounded, metrics::Goal};

/// Maximum number of keys in a table.
const MAX_KEYS: usize = 64;
/// Maximum number of values of a key.
const MAX_VALUES: usize = 1000;
/// Maximum number of values of a flag that takes several.
const MAX_LIST_VALUES: usize = 64;
/// Maximum bytes of a text.
const MAX_TEXT: usize = 1000;
/// Flags that the sweep sets itself, as they determine a job's files, or that have a field of their own.
const RESERVED: [&str; 10] =
    ["runs-dir", "output", "resume", "run-id", "config", "data", "help", "worker", "halvings", "deadline"];

/// The task that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// The generator.
    Dit,
    /// The classifier.
    Classifier,
}

impl TaskKind {
    /// The subcommand of `train`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dit => "dit",
            Self::Classifier => "classifier",
        }
    }
}

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// A flag without a value, set or not.
    Switch(bool),
    /// An integer.
    Whole(i64),
    /// A finite number.
    Number(f64),
    /// Any other text.
    Text(String),
    /// Several values of a flag that takes several, such as `ema-beta`; not nested.
    List(Vec<Setting>),
}

/// Formats the value as on the command line; equal numbers always yield the same text.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Switch(value) => write!(f, "{value}"),
            Self::Whole(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Text(value) => f.write_str(value),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(Self::to_string).collect();
                f.write_str(&values.join(","))
            }
        }
    }
}

/// The values that a key may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SearchSpace {
    /// One of these values, which are distinct.
    Values(Vec<Setting>),
    /// An integer in a range.
    Whole {
        /// The minimum.
        low: i64,
        /// The maximum.
        high: i64,
        /// True for a logarithmic scale.
        log: bool,
    },
    /// A number in a range.
    Number {
        /// The minimum.
        low: f64,
        /// The maximum.
        high: f64,
        /// True for a logarithmic scale.
        log: bool,
    },
}

/// The method that selects combinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// All combinations.
    Grid,
    /// Random combinations.
    Random {
        /// The number of jobs.
        jobs: usize,
        /// The seed; equal seeds draw equal combinations.
        seed: u64,
    },
}

/// A sweep, as defined by its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// The path of the file.
    #[serde(skip)]
    pub path: PathBuf,
    /// The file's name without extension, which names the sweep's folder.
    pub name: String,
    /// The task that is trained.
    pub task: TaskKind,
    /// The folder of the data; `None` for the default of `train`.
    pub data: Option<String>,
    /// A profile or a configuration file.
    pub config: Option<String>,
    /// The method that selects combinations.
    pub method: Method,
    /// The metric that ranks jobs.
    pub metric: String,
    /// The direction in which the metric improves.
    pub goal: Goal,
    /// Flags with the same value in all jobs.
    pub fixed: BTreeMap<String, Setting>,
    /// Flags that differ between jobs.
    pub space: BTreeMap<String, SearchSpace>,
}

impl Sweep {
    /// Reads a sweep's file.
    ///
    /// # Errors
    /// Returns an error if the file cannot be read or a field is not valid.
    pub fn load(path: &Path) -> Result<Self> {
        let text = String::from_utf8(read_bounded(path)?).map_err(|e| Error::file(path, e))?;
        Self::parse(path, &text)
    }

    /// Parses the text of a sweep's file.
    ///
    /// # Errors
    /// Returns an error if a field is not valid.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let table: Table = text.parse().map_err(|e| Error::file(path, e))?;
        let mut fields = Fields { path, table };
        let task = match fields.text("task")?.as_deref() {
            Some("dit") => TaskKind::Dit,
            Some("classifier") => TaskKind::Classifier,
            found => return Err(fields.field_error("task", expected(r#""dit" or "classifier""#, found))),
        };
        let (data, config) = (fields.text("data")?, fields.text("config")?);
        if let Some(name) = data.as_ref().filter(|name| name.starts_with('-') || name.is_empty()) {
            return Err(fields.field_error("data", expected("a folder", Some(name))));
        }
        let method = match fields.text("method")?.as_deref() {
            None | Some("grid") => Method::Grid,
            Some("random") => {
                let jobs = fields.whole("jobs", 1)?.and_then(|jobs| usize::try_from(jobs).ok());
                let jobs =
                    jobs.ok_or_else(|| fields.field_error("jobs", "expected how many, as a whole number"))?;
                Method::Random { jobs, seed: fields.whole("seed", 0)?.unwrap_or(0) }
            }
            found => return Err(fields.field_error("method", expected(r#""grid" or "random""#, found))),
        };
        let metric = fields.text("metric")?.unwrap_or_else(|| match task {
            TaskKind::Dit => "validation_loss".to_owned(),
            TaskKind::Classifier => "validation_accuracy".to_owned(),
        });
        let goal = match fields.text("goal")?.as_deref() {
            None => Goal::of(&metric).ok_or_else(|| {
                fields.field_error(
                    "goal",
                    format!(r#"expected "min" or "max", as the name {metric} does not say it"#),
                )
            })?,
            Some("min") => Goal::Min,
            Some("max") => Goal::Max,
            found => return Err(fields.field_error("goal", expected(r#""min" or "max""#, found))),
        };
        let mut fixed = BTreeMap::new();
        for (key, value) in fields.section("fixed")? {
            let field = format!("fixed.{key}");
            fixed.insert(key, fields.setting(&field, value)?);
        }
        let mut space = BTreeMap::new();
        for (key, value) in fields.section("sweep")? {
            let field = format!("sweep.{key}");
            if fixed.contains_key(&key) {
                return Err(fields.field_error(&field, "is fixed too: leave it out of one of the tables"));
            }
            space.insert(key, fields.space(&field, value, method)?);
        }
        if space.is_empty() {
            return Err(
                fields.field_error("sweep", "expected a table of what is tried, such as lr = [1e-4, 1e-3]")
            );
        }
        fields.check_no_fields_left(method)?;
        let name = name(path)?;
        Ok(Self { path: path.to_owned(), name, task, data, config, method, metric, goal, fixed, space })
    }

    /// Checks that all keys are in `flags`.
    ///
    /// # Errors
    /// Returns an error with the closest flag for the first key that is not.
    pub fn check_keys(&self, flags: &[String]) -> Result<()> {
        let fixed = self.fixed.keys().map(|key| ("fixed", key));
        let space = self.space.keys().map(|key| ("sweep", key));
        match fixed.chain(space).find(|(_, key)| !flags.contains(key)) {
            None => Ok(()),
            Some((table, key)) => {
                let near = closest(key, flags.iter().map(String::as_str));
                let near = near.map_or(String::new(), |near| format!("; the nearest is {near}"));
                let message =
                    format!("train {} has no flag --{}{near}", self.task.name(), key.escape_debug());
                Err(self.field_error(&format!("{table}.{}", key.escape_debug()), message))
            }
        }
    }

    pub(super) fn field_error(&self, field: &str, message: impl Into<String>) -> Error {
        Error::Field { path: self.path.clone(), field: field.to_owned(), message: message.into() }
    }
}

/// The name of a sweep's folder: that of its file, if it is valid as a folder's name.
fn name(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let allowed = |c: char| c.is_alphanumeric() || "-_.,+=".contains(c);
    if stem.is_empty() || stem.len() > 100 || stem.starts_with('.') || !stem.chars().all(allowed) {
        return Err(Error::file(path, "expected a file name of letters, digits, -, _ and ."));
    }
    Ok(stem.into_owned())
}

fn expected(what: &str, found: Option<&str>) -> String {
    match found {
        Some(found) => format!("expected {what}, found {}", truncate(found)),
        None => format!("expected {what}"),
    }
}

/// Escapes and shortens a value of the file for a message.
fn truncate(text: &str) -> String {
    let short: String = text.escape_debug().take(40).collect();
    if short.len() < text.len() { format!("{short:?}…") } else { format!("{text:?}") }
}

/// The fields of a file's table that are not parsed yet.
struct Fields<'a> {
    path: &'a Path,
    table: Table,
}

impl Fields<'_> {
    fn field_error(&self, field: &str, message: impl Into<String>) -> Error {
        Error::Field { path: self.path.to_owned(), field: field.to_owned(), message: message.into() }
    }

    fn text(&mut self, field: &str) -> Result<Option<String>> {
        match self.table.remove(field) {
            None => Ok(None),
            Some(value) => match self.setting(field, value)? {
                Setting::Text(text) => Ok(Some(text)),
                found => Err(self.field_error(field, expected("a text", Some(&found.to_string())))),
            },
        }
    }

    fn whole(&mut self, field: &str, least: u64) -> Result<Option<u64>> {
        match self.table.remove(field) {
            None => Ok(None),
            Some(Value::Integer(n)) if u64::try_from(n).is_ok_and(|n| n >= least) => Ok(Some(n as u64)),
            Some(found) => {
                let what = format!("a whole number, at least {least}");
                Err(self.field_error(field, expected(&what, Some(&found.to_string()))))
            }
        }
    }

    /// Takes a table, whose keys are flags.
    fn section(&mut self, field: &str) -> Result<Table> {
        let table = match self.table.remove(field) {
            None => Table::new(),
            Some(Value::Table(table)) => table,
            Some(found) => return Err(self.field_error(field, expected("a table", Some(&found.to_string())))),
        };
        if table.len() > MAX_KEYS {
            let message = format!("expected at most {MAX_KEYS} keys, found {}", table.len());
            return Err(self.field_error(field, message));
        }
        for key in table.keys() {
            let flag = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let field = format!("{field}.{}", key.escape_debug().take(60).collect::<String>());
            if key.is_empty() || key.starts_with('-') || !key.chars().all(flag) {
                return Err(self
                    .field_error(&field, "expected a flag of train without its dashes, such as batch-size"));
            }
            if RESERVED.contains(&key.as_str()) {
                let message = match key.as_str() {
                    "data" | "config" => "belongs to the beginning of the file, above all tables",
                    _ => "is not for a file to say: the sweep sees to it",
                };
                return Err(self.field_error(&field, message));
            }
        }
        Ok(table)
    }

    fn setting(&self, field: &str, value: Value) -> Result<Setting> {
        match value {
            Value::Boolean(value) => Ok(Setting::Switch(value)),
            Value::Integer(value) => Ok(Setting::Whole(value)),
            Value::Float(value) if value.is_finite() => Ok(Setting::Number(value)),
            Value::String(text) if text.len() <= MAX_TEXT && !text.chars().any(char::is_control) => {
                Ok(Setting::Text(text))
            }
            // A comma separates values on the command line.
            Value::Array(values) if (1..=MAX_LIST_VALUES).contains(&values.len()) => {
                let one = |value: Value| match value {
                    Value::Boolean(_) | Value::Array(_) => Err(self.field_error(
                        field,
                        expected("a list of texts or numbers", Some(&value.to_string())),
                    )),
                    Value::String(text) if text.contains(',') => {
                        Err(self.field_error(field, expected("texts without commas", Some(&text))))
                    }
                    value => self.setting(field, value),
                };
                Ok(Setting::List(values.into_iter().map(one).collect::<Result<_>>()?))
            }
            found => {
                let what =
                    format!("a text, a number, true, false or a list of 1 to {MAX_LIST_VALUES} values");
                Err(self.field_error(field, expected(&what, Some(&found.to_string()))))
            }
        }
    }

    fn space(&self, field: &str, value: Value, method: Method) -> Result<SearchSpace> {
        let mut table = match value {
            Value::Array(values) => return self.values(field, values),
            Value::Table(table) => table,
            found => {
                let what = "a list of values, or a range as { low = …, high = … }";
                return Err(self.field_error(field, expected(what, Some(&found.to_string()))));
            }
        };
        if let Some(values) = table.remove("values") {
            self.check_known_fields(field, &table, &["values"])?;
            let Value::Array(values) = values else {
                return Err(self.field_error(field, expected("a list as values", Some(&values.to_string()))));
            };
            return self.values(field, values);
        }
        let (low, high, scale) = (table.remove("low"), table.remove("high"), table.remove("scale"));
        self.check_known_fields(field, &table, &["low", "high", "scale", "values"])?;
        if method == Method::Grid {
            return Err(self.field_error(field, r#"a range is for method = "random"; a grid has values"#));
        }
        let log = match scale.as_ref().map(Value::as_str) {
            None | Some(Some("linear")) => false,
            Some(Some("log")) => true,
            Some(_) => return Err(self.field_error(field, r#"scale: expected "linear" or "log""#)),
        };
        let number = |value: &Option<Value>| match value {
            Some(Value::Integer(n)) => Some(*n as f64),
            Some(Value::Float(x)) if x.is_finite() => Some(*x),
            _ => None,
        };
        let (Some(least), Some(most)) = (number(&low), number(&high)) else {
            return Err(self.field_error(field, "expected numbers as low and high"));
        };
        if least >= most || (log && least <= 0.0) || !(most - least).is_finite() {
            let positive = if log { "positive and " } else { "" };
            let message =
                format!("expected low to be {positive}less than high, found {least:?} and {most:?}");
            return Err(self.field_error(field, message));
        }
        Ok(match (low, high) {
            // Above 2⁵³ not every integer is an f64.
            (Some(Value::Integer(low)), Some(Value::Integer(high)))
                if low.abs().max(high.abs()) < 1 << 53 =>
            {
                SearchSpace::Whole { low, high, log }
            }
            _ => SearchSpace::Number { low: least, high: most, log },
        })
    }

    fn values(&self, field: &str, values: Vec<Value>) -> Result<SearchSpace> {
        if values.is_empty() || values.len() > MAX_VALUES {
            let message = format!("expected 1 to {MAX_VALUES} values, found {}", values.len());
            return Err(self.field_error(field, message));
        }
        let values =
            values.into_iter().map(|value| self.setting(field, value)).collect::<Result<Vec<_>>>()?;
        let mut written: Vec<String> = values.iter().map(Setting::to_string).collect();
        written.sort();
        match written.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(self.field_error(field, format!("has {} twice", truncate(&pair[0])))),
            None => Ok(SearchSpace::Values(values)),
        }
    }

    /// Checks that no other fields are left in a table.
    fn check_known_fields(&self, field: &str, table: &Table, known: &[&str]) -> Result<()> {
        let Some(key) = table.keys().next() else { return Ok(()) };
        let near = closest(key, known.iter().copied())
            .map_or(String::new(), |near| format!("; the nearest is {near}"));
        let known = known.join(", ");
        Err(self.field_error(field, format!("expected {known}, found {}{near}", truncate(key))))
    }

    /// Checks that no unknown fields are left in the file.
    fn check_no_fields_left(&self, method: Method) -> Result<()> {
        const KNOWN: [&str; 10] =
            ["task", "data", "config", "method", "metric", "goal", "fixed", "sweep", "jobs", "seed"];
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        if method == Method::Grid && ["jobs", "seed"].contains(&key.as_str()) {
            return Err(self.field_error(key, r#"is for method = "random""#));
        }
        let near = closest(key, KNOWN);
        let near = near.map_or(String::new(), |near| format!("; the nearest is {near}"));
        let place =
            if near.is_empty() { "; flags of train belong into the table fixed or sweep" } else { "" };
        let field = key.escape_debug().take(60).collect::<String>();
        Err(self.field_error(&field, format!("there is no such field{near}{place}")))
    }
}

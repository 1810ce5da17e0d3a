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
use crate::{
    recipes::{TASKS, TaskKind},
    train::{folder::read_bounded, metrics::Goal},
};

/// Maximum number of keys in a table.
const MAX_KEYS: usize = 64;
/// Maximum number of values of a key.
const MAX_VALUES: usize = 1000;
/// Maximum number of values of a flag that takes several.
const MAX_LIST_VALUES: usize = 64;
/// Maximum bytes of a string.
const MAX_TEXT_BYTES: usize = 1000;
/// Flags that the sweep sets, since they determine the files of a job, or that have a separate field.
const RESERVED: [&str; 10] =
    ["runs-dir", "output", "resume", "run-id", "config", "data", "help", "worker", "halvings", "deadline"];

/// The value of a setting.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// A flag without a value, enabled or disabled.
    Switch(bool),
    /// An integer.
    Integer(i64),
    /// A finite number.
    Number(f64),
    /// A string.
    Text(String),
    /// Several values of a flag that takes several, such as `ema-beta`; not nested.
    List(Vec<Setting>),
}

/// Formats the value as on the command line. Equal numbers always yield the same text.
impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Switch(value) => write!(f, "{value}"),
            Self::Integer(value) => write!(f, "{value}"),
            Self::Number(value) => write!(f, "{value:?}"),
            Self::Text(value) => f.write_str(value),
            Self::List(values) => {
                let values: Vec<String> = values.iter().map(Self::to_string).collect();
                f.write_str(&values.join(","))
            }
        }
    }
}

/// The possible values of a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SearchSpace {
    /// One of these values, which are distinct.
    Values(Vec<Setting>),
    /// An integer in a range.
    Integer {
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
        /// The seed; equal seeds give equal combinations.
        seed: u64,
    },
}

/// A sweep, as defined by its file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sweep {
    /// The path of the file.
    #[serde(skip)]
    pub path: PathBuf,
    /// The name of the file without extension, which is also the name of the sweep's folder.
    pub name: String,
    /// The task that is trained: a name in [`TASKS`](crate::recipes::TASKS).
    pub task: String,
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
        let task = fields.text("task")?;
        let Some(task) = task.as_deref().and_then(TaskKind::find) else {
            let names = TASKS.map(|task| format!("{:?}", task.name)).join(" or ");
            return Err(fields.field_error("task", expected(&names, task.as_deref())));
        };
        let (data, config) = (fields.text("data")?, fields.text("config")?);
        if let Some(name) = data.as_ref().filter(|name| name.starts_with('-') || name.is_empty()) {
            return Err(fields.field_error("data", expected("a folder", Some(name))));
        }
        let method = match fields.text("method")?.as_deref() {
            None | Some("grid") => Method::Grid,
            Some("random") => {
                let jobs = fields.integer("jobs", 1)?.and_then(|jobs| usize::try_from(jobs).ok());
                let jobs = jobs.ok_or_else(|| {
                    fields.field_error("jobs", "expected the number of jobs, as an integer")
                })?;
                Method::Random { jobs, seed: fields.integer("seed", 0)?.unwrap_or(0) }
            }
            found => return Err(fields.field_error("method", expected(r#""grid" or "random""#, found))),
        };
        let metric = fields.text("metric")?.unwrap_or_else(|| task.metric.to_owned());
        let goal = match fields.text("goal")?.as_deref() {
            None => Goal::for_metric(&metric).ok_or_else(|| {
                fields.field_error(
                    "goal",
                    format!(r#"expected "min" or "max", since it cannot be derived from the name {metric}"#),
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
                return Err(
                    fields.field_error(&field, "expected the key in one table, found it in fixed and sweep")
                );
            }
            space.insert(key, fields.space(&field, value, method)?);
        }
        if space.is_empty() {
            return Err(fields
                .field_error("sweep", "expected a table of the values to try, such as lr = [1e-4, 1e-3]"));
        }
        fields.check_no_fields_left(method)?;
        let name = name(path)?;
        let (path, task) = (path.to_owned(), task.name.to_owned());
        Ok(Self { path, name, task, data, config, method, metric, goal, fixed, space })
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
                let suggestion = closest(key, flags.iter().map(String::as_str));
                let suggestion = suggestion.map_or(String::new(), |flag| format!("; did you mean {flag}?"));
                let message = format!("train {} has no flag --{}{suggestion}", self.task, key.escape_debug());
                Err(self.field_error(&format!("{table}.{}", key.escape_debug()), message))
            }
        }
    }

    pub(super) fn field_error(&self, field: &str, message: impl Into<String>) -> Error {
        Error::Field { path: self.path.clone(), field: field.to_owned(), message: message.into() }
    }
}

/// The name of a sweep's folder: the name of its file, if it is a valid name of a folder.
fn name(path: &Path) -> Result<String> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let allowed = |c: char| c.is_alphanumeric() || "-_.,+=".contains(c);
    if stem.is_empty() || stem.len() > 100 || stem.starts_with('.') || !stem.chars().all(allowed) {
        return Err(Error::file(path, "expected a file name of letters, digits, -, _ and ."));
    }
    Ok(stem.into_owned())
}

fn expected(expected_value: &str, found: Option<&str>) -> String {
    match found {
        Some(found) => format!("expected {expected_value}, found {}", truncate(found)),
        None => format!("expected {expected_value}"),
    }
}

/// Escapes and shortens a value of the file for a message.
fn truncate(text: &str) -> String {
    let shortened: String = text.escape_debug().take(40).collect();
    if shortened.len() < text.len() { format!("{shortened:?}…") } else { format!("{text:?}") }
}

/// The fields of the file that are not parsed yet.
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
                found => Err(self.field_error(field, expected("a string", Some(&found.to_string())))),
            },
        }
    }

    fn integer(&mut self, field: &str, min: u64) -> Result<Option<u64>> {
        match self.table.remove(field) {
            None => Ok(None),
            Some(Value::Integer(n)) if u64::try_from(n).is_ok_and(|n| n >= min) => Ok(Some(n as u64)),
            Some(found) => {
                let expected_value = format!("an integer of at least {min}");
                Err(self.field_error(field, expected(&expected_value, Some(&found.to_string()))))
            }
        }
    }

    /// Removes a table whose keys are flags.
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
            let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            let field = format!("{field}.{}", key.escape_debug().take(60).collect::<String>());
            if key.is_empty() || key.starts_with('-') || !key.chars().all(is_allowed) {
                return Err(self
                    .field_error(&field, "expected a flag of train without its dashes, such as batch-size"));
            }
            if RESERVED.contains(&key.as_str()) {
                let message = match key.as_str() {
                    "data" | "config" => "expected this key at the start of the file, before all tables",
                    _ => "cannot be set in the file, since the sweep sets it",
                };
                return Err(self.field_error(&field, message));
            }
        }
        Ok(table)
    }

    fn setting(&self, field: &str, value: Value) -> Result<Setting> {
        match value {
            Value::Boolean(value) => Ok(Setting::Switch(value)),
            Value::Integer(value) => Ok(Setting::Integer(value)),
            Value::Float(value) if value.is_finite() => Ok(Setting::Number(value)),
            Value::String(text) if text.len() <= MAX_TEXT_BYTES && !text.chars().any(char::is_control) => {
                Ok(Setting::Text(text))
            }
            // A comma separates values on the command line.
            Value::Array(values) if (1..=MAX_LIST_VALUES).contains(&values.len()) => {
                let parse_item = |value: Value| match value {
                    Value::Boolean(_) | Value::Array(_) => Err(self.field_error(
                        field,
                        expected("a list of strings or numbers", Some(&value.to_string())),
                    )),
                    Value::String(text) if text.contains(',') => {
                        Err(self.field_error(field, expected("strings without commas", Some(&text))))
                    }
                    value => self.setting(field, value),
                };
                Ok(Setting::List(values.into_iter().map(parse_item).collect::<Result<_>>()?))
            }
            found => {
                let expected_value =
                    format!("a string, a number, true, false or a list of 1 to {MAX_LIST_VALUES} values");
                Err(self.field_error(field, expected(&expected_value, Some(&found.to_string()))))
            }
        }
    }

    fn space(&self, field: &str, value: Value, method: Method) -> Result<SearchSpace> {
        let mut table = match value {
            Value::Array(values) => return self.values(field, values),
            Value::Table(table) => table,
            found => {
                let expected_value = "a list of values, or a range as { low = …, high = … }";
                return Err(self.field_error(field, expected(expected_value, Some(&found.to_string()))));
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
            return Err(self.field_error(field, r#"a range requires method = "random""#));
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
        let (Some(min), Some(max)) = (number(&low), number(&high)) else {
            return Err(self.field_error(field, "expected numbers as low and high"));
        };
        if min >= max || (log && min <= 0.0) || !(max - min).is_finite() {
            let positive = if log { "positive and " } else { "" };
            let message = format!("expected low to be {positive}less than high, found {min:?} and {max:?}");
            return Err(self.field_error(field, message));
        }
        Ok(match (low, high) {
            // Above 2⁵³, not every integer is representable as f64.
            (Some(Value::Integer(low)), Some(Value::Integer(high)))
                if low.abs().max(high.abs()) < 1 << 53 =>
            {
                SearchSpace::Integer { low, high, log }
            }
            _ => SearchSpace::Number { low: min, high: max, log },
        })
    }

    fn values(&self, field: &str, values: Vec<Value>) -> Result<SearchSpace> {
        if values.is_empty() || values.len() > MAX_VALUES {
            let message = format!("expected 1 to {MAX_VALUES} values, found {}", values.len());
            return Err(self.field_error(field, message));
        }
        let values =
            values.into_iter().map(|value| self.setting(field, value)).collect::<Result<Vec<_>>>()?;
        let mut texts: Vec<String> = values.iter().map(Setting::to_string).collect();
        texts.sort();
        match texts.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(self
                .field_error(field, format!("expected distinct values, found {} twice", truncate(&pair[0])))),
            None => Ok(SearchSpace::Values(values)),
        }
    }

    /// Checks that a table has no unknown fields.
    fn check_known_fields(&self, field: &str, table: &Table, known_fields: &[&str]) -> Result<()> {
        let Some(key) = table.keys().next() else { return Ok(()) };
        let suggestion = closest(key, known_fields.iter().copied())
            .map_or(String::new(), |field| format!("; did you mean {field}?"));
        let known_fields = known_fields.join(", ");
        Err(self.field_error(field, format!("expected {known_fields}, found {}{suggestion}", truncate(key))))
    }

    /// Checks that the file has no unknown fields.
    fn check_no_fields_left(&self, method: Method) -> Result<()> {
        const KNOWN: [&str; 10] =
            ["task", "data", "config", "method", "metric", "goal", "fixed", "sweep", "jobs", "seed"];
        let Some(key) = self.table.keys().next() else { return Ok(()) };
        if method == Method::Grid && ["jobs", "seed"].contains(&key.as_str()) {
            return Err(self.field_error(key, r#"requires method = "random""#));
        }
        let suggestion = closest(key, KNOWN);
        let suggestion = suggestion.map_or(String::new(), |field| format!("; did you mean {field}?"));
        let hint =
            if suggestion.is_empty() { "; put flags of train into the table fixed or sweep" } else { "" };
        let field = key.escape_debug().take(60).collect::<String>();
        Err(self.field_error(&field, format!("unknown field{suggestion}{hint}")))
    }
}

//! Configurations: profiles and files that set flags, and the resolved value of every flag.
//!
//! A configuration is TOML with a table for each task, `[dit]` and `[classifier]`. Its keys are the flags of `tiny-cats train`, and `data`
//! for the folder. It changes the flags' defaults, so the command line takes precedence, and both are checked in the same way.

#[cfg(test)]
mod tests;

use std::{
    any::TypeId,
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use clap::{Arg, ArgMatches, Command, parser::ValueSource};
use tiny_cats_export::{closest, excerpt};
use toml::{Table, Value};

use crate::train::folder::{CONFIGURATION, is_id, read_bounded};

/// The built-in profiles.
const PROFILES: [(&str, &str); 6] = [
    ("smoke", include_str!("../../../configs/smoke.toml")),
    ("local", include_str!("../../../configs/local.toml")),
    ("t4", include_str!("../../../configs/t4.toml")),
    ("a10", include_str!("../../../configs/a10.toml")),
    ("a100", include_str!("../../../configs/a100.toml")),
    ("h100", include_str!("../../../configs/h100.toml")),
];

/// The tasks; each has a table in a configuration.
const TASKS: [&str; 2] = ["dit", "classifier"];

/// Flags that concern a process, not the training.
const NOT_CONFIGURED: [&str; 8] =
    ["config", "resume", "run_id", "worker", "rank", "halvings", "deadline", "help"];

/// Flags that may differ when a run is resumed.
const NOT_COMPARED: [&str; 18] = [
    "runs_dir",
    "output",
    "device",
    "gpus",
    "max_time",
    "max_retries",
    "retry_initial",
    "retry_max",
    "num_workers",
    "log_interval",
    "log_file",
    "log_format",
    "tensorboard",
    "mlflow",
    "cache",
    "no_cache",
    "cfg_scale",
    "cfg_interval",
];

/// Flags for the sizes of the network, which the file of `--init` has, too.
const SIZES: [&str; 5] = ["size", "backbone", "width", "image_size", "crop_size"];

/// Pairs of mutually exclusive flags.
const CONFLICTING_FLAGS: [(&str, &str); 3] =
    [("init", "no_pretrained"), ("precision", "mixed_precision"), ("cache", "no_cache")];

/// Applies the configuration of `--config` or of a resumed run to the defaults of `command`, if `arguments` train.
///
/// # Errors
/// If the configuration cannot be read, or has a key that is not a flag.
pub fn with_defaults(command: Command, arguments: &[OsString]) -> anyhow::Result<Command> {
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(arguments);
    let Ok(matches) = lenient else { return Ok(command) };
    let Some((path, matches)) = training(&matches) else { return Ok(command) };
    let task = path[path.len() - 1];
    let string_flag = |id| matches.try_get_one::<String>(id).ok().flatten();
    // A resumed run uses its own configuration unless --config overrides it.
    let run_folder = || {
        let root = matches.try_get_one::<PathBuf>("runs_dir").ok().flatten()?;
        Some(root.join(string_flag("run_id").filter(|id| is_id(id))?))
    };
    let resumed = run_folder().or_else(|| string_flag("resume").map(PathBuf::from));
    let resumed = resumed.map(|run| run.join(CONFIGURATION)).filter(|path| path.is_file());
    let resumed = resumed.map(|path| path.to_string_lossy().into_owned());
    let Some(name) = string_flag("config").cloned().or(resumed) else { return Ok(command) };
    let table = read_config(&name)?;
    // Keys and values from an untrusted file are shortened.
    check_keys(&command, &name, &table).map_err(|e| anyhow::anyhow!("{}", excerpt(&e.to_string())))?;
    let Some(Value::Table(mut settings)) = table.get(task).cloned() else { return Ok(command) };
    // Of two mutually exclusive flags, the one on the command line takes precedence.
    let on_command_line = |id: &str| {
        matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    for (flag, other) in CONFLICTING_FLAGS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        if on_command_line(flag) {
            settings.retain(|key, _| id(key) != other);
        }
    }
    // With --init, the sizes of the network are those of the file, not those that a profile suggests for a machine.
    if on_command_line("init") && PROFILES.iter().any(|(profile, _)| *profile == name) {
        settings.retain(|key, _| !SIZES.contains(&id(key).as_str()));
    }
    Ok(modify_subcommand(command, &path, |mut command| {
        for (key, value) in settings {
            command = command.mut_arg(id(&key), |arg| {
                let values = flag_values(&arg, &value);
                arg.required(false).default_values(values)
            });
        }
        command
    }))
}

/// The subcommands up to the task, and the arguments of the task, if the command trains or plans a training.
pub fn training(matches: &ArgMatches) -> Option<(Vec<&'static str>, &ArgMatches)> {
    let mut path: Vec<&'static str> =
        ["plan", "cloud"].into_iter().filter(|&c| matches.subcommand_name() == Some(c)).collect();
    let parent = path.first().map_or(Some(matches), |first| matches.subcommand_matches(first))?;
    let (task, matches) = parent.subcommand_matches("train")?.subcommand()?;
    path.extend(["train", TASKS.into_iter().find(|name| *name == task)?]);
    Some((path, matches))
}

/// Applies `change` to the subcommand at `path` of `command`.
fn modify_subcommand(
    command: Command,
    path: &[&'static str],
    change: impl FnOnce(Command) -> Command,
) -> Command {
    match path {
        [] => change(command),
        [first, rest @ ..] => {
            command.mut_subcommand(first, |command| modify_subcommand(command, rest, change))
        }
    }
}

/// Reads the configuration `name`: a profile or a file.
fn read_config(name: &str) -> anyhow::Result<Table> {
    let text = match PROFILES.iter().find(|(profile, _)| *profile == name) {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let path = Path::new(name);
            let profiles = PROFILES.map(|profile| profile.0).join(", ");
            let context = || format!("--config {name}: expected a file or one of {profiles}");
            let text = read_bounded(path).with_context(context)?;
            String::from_utf8(text).ok().with_context(|| format!("--config {name}: expected UTF-8 text"))?
        }
    };
    text.parse().map_err(|error: toml::de::Error| {
        let before = |span: std::ops::Range<usize>| text.get(..span.start).unwrap_or_default();
        let line = 1 + error.span().map_or(0, |span| before(span).matches('\n').count());
        anyhow::anyhow!(
            "--config {name}: line {line}: {}",
            error.message().lines().next().unwrap_or_default()
        )
    })
}

/// Checks that every key is a flag, and that the flag accepts its value.
fn check_keys(command: &Command, name: &str, table: &Table) -> anyhow::Result<()> {
    for (task, settings) in table {
        if !TASKS.contains(&task.as_str()) {
            bail!("--config {name}: [{task}]: unknown table; expected [{}]", TASKS.join("] or ["));
        }
        let Value::Table(settings) = settings else {
            bail!("--config {name}: {task}: expected a table [{task}]");
        };
        let flags = subcommand(command, task);
        let ids: Vec<&str> = flags.get_arguments().map(|arg| arg.get_id().as_str()).collect();
        let ids: Vec<&str> = ids.into_iter().filter(|id| !NOT_CONFIGURED.contains(id)).collect();
        for (key, value) in settings {
            let flag_id = id(key);
            if !ids.contains(&flag_id.as_str()) {
                let flags: Vec<String> = ids.iter().map(|id| id.replace('_', "-")).collect();
                let suggestion = closest(key, flags.iter().map(String::as_str));
                let suggestion =
                    suggestion.map_or_else(String::new, |flag| format!("; did you mean {flag}?"));
                bail!("--config {name}: {task}.{key}: unknown key{suggestion}");
            }
            let Some(flag) = flags.get_arguments().find(|arg| arg.get_id().as_str() == flag_id) else {
                continue;
            };
            if !flag.get_action().takes_values() {
                if value.as_bool().is_none() {
                    bail!("--config {name}: {task}.{key}: expected true or false, found {value}");
                }
                continue;
            }
            let values = flag_values(flag, value);
            if values.is_empty() {
                if is_optional(flag) && *value == Value::Boolean(false) {
                    continue;
                }
                bail!("--config {name}: {task}.{key}: expected a value, found {value}");
            }
            let flag = format!("--{}={}", flag_id.replace('_', "-"), values.join(","));
            let argument = if flag_id == "data" { ["--", &values[0]] } else { [flag.as_str(), "--"] };
            let arguments = ["tiny-cats", "train", task, argument[0], argument[1]];
            if let Err(error) = command.clone().try_get_matches_from(arguments) {
                let message = error.to_string();
                let message = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
                bail!("--config {name}: {task}.{key}: {message}");
            }
        }
    }
    Ok(())
}

fn id(key: &str) -> String {
    key.replace('-', "_")
}

/// True if the value of a flag is optional, as for `--tensorboard`.
fn is_optional(flag: &Arg) -> bool {
    flag.get_action().takes_values() && flag.get_num_args().is_some_and(|range| range.min_values() == 0)
}

/// The values of `flag` for `value`; empty if `false` disables a flag whose value is optional.
fn flag_values(flag: &Arg, value: &Value) -> Vec<String> {
    match value {
        Value::Boolean(false) if is_optional(flag) => Vec::new(),
        // The format of earlier versions for a flag without a value.
        Value::Array(array) if array.is_empty() && is_optional(flag) => vec![true.to_string()],
        value => values(value),
    }
}

/// The texts of `value` on the command line.
fn values(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(array) => array.iter().flat_map(values).collect(),
        Value::Table(_) => Vec::new(),
        other => vec![other.to_string()],
    }
}

fn subcommand<'a>(command: &'a Command, task: &str) -> &'a Command {
    let train = command.find_subcommand("train").expect("train is a command");
    train.find_subcommand(task).expect("a task is a command")
}

/// The resolved values of all flags of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedConfig {
    task: &'static str,
    flags: Table,
}

impl ResolvedConfig {
    /// Resolves the flags of `command`, the root command, from `matches`.
    ///
    /// # Errors
    /// If a value is not UTF-8, which a configuration cannot contain.
    pub fn new(task: &'static str, command: &Command, matches: &ArgMatches) -> anyhow::Result<Self> {
        let mut flags = Table::new();
        for flag in subcommand(command, task).get_arguments() {
            let id = flag.get_id().as_str();
            let is_known = matches.try_contains_id(id).is_ok();
            if !is_known || NOT_CONFIGURED.contains(&id) || matches.value_source(id).is_none() {
                continue;
            }
            let Ok(Some(raw)) = matches.try_get_raw(id) else { continue };
            let mut values = Vec::new();
            for raw in raw {
                let name = if id == "data" { id.to_owned() } else { format!("--{}", id.replace('_', "-")) };
                let text = raw.to_str().with_context(|| {
                    format!("{name} {}: expected valid UTF-8", raw.to_string_lossy().escape_debug())
                })?;
                values.push(typed_value(flag, text));
            }
            let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
            // A switch that is off by default is omitted.
            if value != Value::Boolean(false) || matches.value_source(id) != Some(ValueSource::DefaultValue) {
                flags.insert(id.replace('_', "-"), value);
            }
        }
        Ok(Self { task, flags })
    }

    /// Converts the configuration to the contents of a file for `--config`.
    pub fn to_toml(&self) -> String {
        Table::from_iter([(self.task.to_owned(), Value::Table(self.flags.clone()))]).to_string()
    }

    /// Formats all flags on one line.
    pub fn to_line(&self) -> String {
        let flags: Vec<String> = self.flags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.join(" ")
    }

    /// Converts the flags that differ from their defaults, except `excluded`, to arguments for `train`.
    pub fn to_arguments(&self, command: &Command, excluded: &[&str]) -> Vec<String> {
        let defaults = command.clone().try_get_matches_from(["tiny-cats", "train", self.task]).ok();
        let defaults = defaults.as_ref().and_then(|matches| training(matches)).map(|(_, matches)| matches);
        let defaults = defaults.and_then(|matches| Self::new(self.task, command, matches).ok());
        let defaults = defaults.map_or_else(Table::new, |defaults| defaults.flags);
        let changed = self.flags.iter().filter(|(key, value)| {
            !excluded.contains(&id(key).as_str()) && defaults.get(*key) != Some(*value)
        });
        let flag = |(key, value): (&String, &Value)| match (value, values(value)) {
            (Value::Boolean(true), _) => format!("--{key}"),
            (_, values) => format!("--{key}={}", values.join(",")),
        };
        changed.map(flag).collect()
    }

    /// True if `text`, the `config.toml` of a run, has the same configuration, except for flags that may differ.
    pub fn is_same(&self, text: &str) -> bool {
        // Compared as text, since an earlier version may have written a number as another type.
        let text_of = |value: &Value| match value {
            Value::Float(number) => number.to_string(),
            value => values(value).join(","),
        };
        let comparable = |flags: &Table| -> BTreeMap<String, String> {
            let flags = flags.iter().filter(|(key, _)| !NOT_COMPARED.contains(&id(key).as_str()));
            flags.map(|(key, value)| (key.clone(), text_of(value))).collect()
        };
        match text.parse::<Table>() {
            Ok(table) => {
                matches!(table.get(self.task), Some(Value::Table(flags)) if comparable(flags) == comparable(&self.flags))
            }
            Err(_) => false,
        }
    }
}

/// Converts the value of a flag to TOML: to a number if the flag takes numbers and TOML can represent this one, or to a string.
fn typed_value(flag: &Arg, text: &str) -> Value {
    let has_type = |types: &[TypeId]| types.iter().any(|id| flag.get_value_parser().type_id() == *id);
    let is_integer =
        has_type(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]);
    let is_number = has_type(&[TypeId::of::<f32>(), TypeId::of::<f64>()]);
    if (is_integer || is_number)
        && let Ok(integer) = text.parse::<i64>()
    {
        return Value::Integer(integer);
    }
    match text.parse::<f64>() {
        Ok(value) if is_number && value.is_finite() => return Value::Float(value),
        _ => {}
    }
    match text.parse::<bool>() {
        Ok(switch) if !flag.get_action().takes_values() || (switch && is_optional(flag)) => {
            Value::Boolean(switch)
        }
        _ => Value::String(text.to_owned()),
    }
}

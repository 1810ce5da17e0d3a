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

/// The tasks, which are the tables of a configuration.
const TASKS: [&str; 2] = ["dit", "classifier"];

/// Flags that concern one call of the program, not the training.
const NOT_CONFIGURED: [&str; 8] =
    ["config", "resume", "run_id", "worker", "rank", "halvings", "deadline", "help"];

/// Flags that may differ between two calls of the same run.
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

/// Flags that set the network's sizes, which the file of `--init` states too.
const SIZES: [&str; 5] = ["size", "backbone", "width", "image_size", "crop_size"];

/// Pairs of flags that exclude each other.
const CONFLICTING_FLAGS: [(&str, &str); 3] =
    [("init", "no_pretrained"), ("precision", "mixed_precision"), ("cache", "no_cache")];

/// Changes the defaults of `command` to those of the configuration that `arguments` name by `--config`, if they train.
///
/// # Errors
/// If the configuration cannot be read, or has a key that is not a flag.
pub fn with_defaults(command: Command, arguments: &[OsString]) -> anyhow::Result<Command> {
    let lenient = command.clone().ignore_errors(true).try_get_matches_from(arguments);
    let Ok(matches) = lenient else { return Ok(command) };
    let Some((path, matches)) = training(&matches) else { return Ok(command) };
    let task = path[path.len() - 1];
    let said = |id| matches.try_get_one::<String>(id).ok().flatten();
    // A resumed run uses its own configuration unless another is named.
    let named = || {
        let root = matches.try_get_one::<PathBuf>("runs_dir").ok().flatten()?;
        Some(root.join(said("run_id").filter(|id| is_id(id))?))
    };
    let resumed = named().or_else(|| said("resume").map(PathBuf::from));
    let resumed = resumed.map(|run| run.join(CONFIGURATION)).filter(|path| path.is_file());
    let resumed = resumed.map(|path| path.to_string_lossy().into_owned());
    let Some(name) = said("config").cloned().or(resumed) else { return Ok(command) };
    let table = read(&name)?;
    // Keys and values from an untrusted file are shortened.
    check(&command, &name, &table).map_err(|e| anyhow::anyhow!("{}", excerpt(&e.to_string())))?;
    let Some(Value::Table(mut settings)) = table.get(task).cloned() else { return Ok(command) };
    // If two flags exclude each other, the one on the command line takes precedence.
    let on_command_line = |id: &str| {
        matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::CommandLine)
    };
    for (one, other) in CONFLICTING_FLAGS.into_iter().flat_map(|(a, b)| [(a, b), (b, a)]) {
        if on_command_line(one) {
            settings.retain(|key, _| id(key) != other);
        }
    }
    // A network that starts from another's weights has their sizes; a profile's sizes only suit a machine.
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

/// The subcommands up to a task, and the task's arguments, if the command trains or plans a training.
pub fn training(matches: &ArgMatches) -> Option<(Vec<&'static str>, &ArgMatches)> {
    let mut path: Vec<&'static str> =
        ["plan", "cloud"].into_iter().filter(|&c| matches.subcommand_name() == Some(c)).collect();
    let above = path.first().map_or(Some(matches), |first| matches.subcommand_matches(first))?;
    let (task, matches) = above.subcommand_matches("train")?.subcommand()?;
    path.extend(["train", TASKS.into_iter().find(|known| *known == task)?]);
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

/// Reads the configuration called `name`: a profile, or a file.
fn read(name: &str) -> anyhow::Result<Table> {
    let text = match PROFILES.iter().find(|(profile, _)| *profile == name) {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let path = Path::new(name);
            let profiles = PROFILES.map(|profile| profile.0).join(", ");
            let about = || format!("--config {name}: expected a file or one of {profiles}");
            let text = read_bounded(path).with_context(about)?;
            String::from_utf8(text).ok().with_context(|| format!("--config {name}: expected text"))?
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
fn check(command: &Command, name: &str, table: &Table) -> anyhow::Result<()> {
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
            let known = id(key);
            if !ids.contains(&known.as_str()) {
                let flags: Vec<String> = ids.iter().map(|id| id.replace('_', "-")).collect();
                let meant = closest(key, flags.iter().map(String::as_str));
                let meant = meant.map_or_else(String::new, |flag| format!("; did you mean {flag}?"));
                bail!("--config {name}: {task}.{key}: unknown key{meant}");
            }
            let Some(flag) = flags.get_arguments().find(|arg| arg.get_id().as_str() == known) else {
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
            let flag = format!("--{}={}", known.replace('_', "-"), values.join(","));
            let argument = if known == "data" { ["--", &values[0]] } else { [flag.as_str(), "--"] };
            let arguments = ["tiny-cats", "train", task, argument[0], argument[1]];
            if let Err(error) = command.clone().try_get_matches_from(arguments) {
                let said = error.to_string();
                let said = said.lines().next().unwrap_or_default().trim_start_matches("error: ");
                bail!("--config {name}: {task}.{key}: {said}");
            }
        }
    }
    Ok(())
}

fn id(key: &str) -> String {
    key.replace('-', "_")
}

/// True if a flag may be given without a value, such as `--tensorboard`.
fn is_optional(flag: &Arg) -> bool {
    flag.get_action().takes_values() && flag.get_num_args().is_some_and(|range| range.min_values() == 0)
}

/// The values of `flag` for `value`: none if `false` disables a flag that may be given without a value.
fn flag_values(flag: &Arg, value: &Value) -> Vec<String> {
    match value {
        Value::Boolean(false) if is_optional(flag) => Vec::new(),
        // Earlier versions wrote a flag without a value this way.
        Value::Array(none) if none.is_empty() && is_optional(flag) => vec![true.to_string()],
        value => values(value),
    }
}

/// The texts that `value` stands for on the command line.
fn values(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(all) => all.iter().flat_map(values).collect(),
        Value::Table(_) => Vec::new(),
        other => vec![other.to_string()],
    }
}

fn subcommand<'a>(command: &'a Command, task: &str) -> &'a Command {
    let train = command.find_subcommand("train").expect("train is a command");
    train.find_subcommand(task).expect("a task is a command")
}

/// The final values of all flags of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedConfig {
    task: &'static str,
    flags: Table,
}

impl ResolvedConfig {
    /// Resolves the flags in `matches` that `command`, the one that trains, has.
    ///
    /// # Errors
    /// If a value is not UTF-8, since no configuration can hold it.
    pub fn new(task: &'static str, command: &Command, matches: &ArgMatches) -> anyhow::Result<Self> {
        let mut flags = Table::new();
        for flag in subcommand(command, task).get_arguments() {
            let id = flag.get_id().as_str();
            let known = matches.try_contains_id(id).is_ok();
            if !known || NOT_CONFIGURED.contains(&id) || matches.value_source(id).is_none() {
                continue;
            }
            let Ok(Some(raw)) = matches.try_get_raw(id) else { continue };
            let mut values = Vec::new();
            for raw in raw {
                let name = if id == "data" { id.to_owned() } else { format!("--{}", id.replace('_', "-")) };
                let text = raw.to_str().with_context(|| {
                    format!("{name} {}: expected a name in UTF-8", raw.to_string_lossy().escape_debug())
                })?;
                values.push(typed(flag, text));
            }
            let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
            // A switch that is off by default is left out.
            if value != Value::Boolean(false) || matches.value_source(id) != Some(ValueSource::DefaultValue) {
                flags.insert(id.replace('_', "-"), value);
            }
        }
        Ok(Self { task, flags })
    }

    /// The contents of a file for `--config`.
    pub fn to_toml(&self) -> String {
        Table::from_iter([(self.task.to_owned(), Value::Table(self.flags.clone()))]).to_string()
    }

    /// All flags on one line.
    pub fn line(&self) -> String {
        let flags: Vec<String> = self.flags.iter().map(|(key, value)| format!("{key}={value}")).collect();
        flags.join(" ")
    }

    /// The flags that differ from their defaults, except those in `without`, as arguments for `train`.
    pub fn arguments(&self, command: &Command, without: &[&str]) -> Vec<String> {
        let plain = command.clone().try_get_matches_from(["tiny-cats", "train", self.task]).ok();
        let plain = plain.as_ref().and_then(|matches| training(matches)).map(|(_, matches)| matches);
        let plain = plain.and_then(|matches| Self::new(self.task, command, matches).ok());
        let plain = plain.map_or_else(Table::new, |plain| plain.flags);
        let said = self
            .flags
            .iter()
            .filter(|(key, value)| !without.contains(&id(key).as_str()) && plain.get(*key) != Some(*value));
        let flag = |(key, value): (&String, &Value)| match (value, values(value)) {
            (Value::Boolean(true), _) => format!("--{key}"),
            (_, values) => format!("--{key}={}", values.join(",")),
        };
        said.map(flag).collect()
    }

    /// True if the run whose `config.toml` is `text` has the same configuration, apart from flags that may differ.
    pub fn is_same(&self, text: &str) -> bool {
        // Compared as text, since an earlier version may have written the same number as another type.
        let text_of = |value: &Value| match value {
            Value::Float(number) => number.to_string(),
            value => values(value).join(","),
        };
        let compared = |flags: &Table| -> BTreeMap<String, String> {
            let flags = flags.iter().filter(|(key, _)| !NOT_COMPARED.contains(&id(key).as_str()));
            flags.map(|(key, value)| (key.clone(), text_of(value))).collect()
        };
        match text.parse::<Table>() {
            Ok(table) => {
                matches!(table.get(self.task), Some(Value::Table(flags)) if compared(flags) == compared(&self.flags))
            }
            Err(_) => false,
        }
    }
}

/// Converts a flag's value from text to TOML: a number if the flag takes numbers and TOML can hold this one, else a string.
fn typed(flag: &Arg, text: &str) -> Value {
    let of = |types: &[TypeId]| types.iter().any(|id| flag.get_value_parser().type_id() == *id);
    let whole = of(&[TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()]);
    let number = of(&[TypeId::of::<f32>(), TypeId::of::<f64>()]);
    if (whole || number)
        && let Ok(whole) = text.parse::<i64>()
    {
        return Value::Integer(whole);
    }
    match text.parse::<f64>() {
        Ok(value) if number && value.is_finite() => return Value::Float(value),
        _ => {}
    }
    match text.parse::<bool>() {
        Ok(switch) if !flag.get_action().takes_values() || (switch && is_optional(flag)) => {
            Value::Boolean(switch)
        }
        _ => Value::String(text.to_owned()),
    }
}

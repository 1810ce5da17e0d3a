//! Configurations: profiles and files that set settings.
//!
//! A configuration is TOML with a table for each task, such as `[dit]`. Its keys are those of the task's settings. Settings are resolved
//! once: a flag takes precedence over the configuration, and the configuration over the default.

use std::path::Path;

use tiny_cats_export::closest;
use toml::{Table, Value};

use super::{Error, Recipe, Result, TASKS, TaskKind, check_tasks};
use crate::train::folder::read_bounded;

/// The built-in profiles.
const PROFILES: [(&str, &str); 6] = [
    ("smoke", include_str!("../../configs/smoke.toml")),
    ("local", include_str!("../../configs/local.toml")),
    ("t4", include_str!("../../configs/t4.toml")),
    ("a10", include_str!("../../configs/a10.toml")),
    ("a100", include_str!("../../configs/a100.toml")),
    ("h100", include_str!("../../configs/h100.toml")),
];

/// Settings of the network's sizes, which the file of `init` has, too.
const SIZES: [&str; 5] = ["size", "backbone", "width", "image-size", "crop-size"];

/// Pairs of mutually exclusive settings. Without a flag for either, the second one takes precedence if it is set.
pub(crate) const EXCLUSIVE: [[&str; 2]; 3] =
    [["init", "no-pretrained"], ["precision", "mixed-precision"], ["cache", "no-cache"]];

/// Resolves the settings of a recipe from the `configuration`, which is a profile or a file, and the `flags`, by their keys. Values of
/// flags may be text.
///
/// # Errors
/// If the configuration cannot be read, a key is unknown, or a value has another type.
pub fn resolve<R: Recipe>(configuration: Option<&str>, flags: &Table) -> Result<R> {
    let mut configured = match configuration {
        Some(name) => section::<R>(&read(name)?),
        None => Table::new(),
    };
    // Of two mutually exclusive settings, the flag takes precedence.
    for [a, b] in EXCLUSIVE {
        for [flag, other] in [[a, b], [b, a]] {
            if flags.contains_key(flag) {
                configured.remove(other);
            }
        }
    }
    // With initial weights, the sizes of the network are those of the file, not those that a profile suggests for a machine.
    if flags.contains_key("init") && configuration.is_some_and(is_profile) {
        configured.retain(|key, _| !SIZES.contains(&key));
    }
    for [a, b] in EXCLUSIVE {
        if configured.get(b).is_some_and(|switch| *switch == Value::Boolean(true)) {
            configured.remove(a);
        }
    }
    let mut all = defaults::<R>()?;
    all.extend(configured);
    all.extend(flags.clone());
    R::from_table(&all).map_err(|error| Error::setting(error.key, error.message))
}

/// Formats settings as a configuration.
///
/// # Errors
/// [`Error::Setting`] if a number is too large for TOML, or a path is not UTF-8.
pub fn to_toml<R: Recipe>(settings: &R) -> Result<String> {
    Ok(Table::from_iter([(R::TASK.to_owned(), Value::Table(to_table(settings)?))]).to_string())
}

/// Formats settings on one line.
///
/// # Errors
/// As [`to_toml`].
pub fn to_line<R: Recipe>(settings: &R) -> Result<String> {
    let values: Vec<String> =
        to_table(settings)?.iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(values.join(" "))
}

/// Formats the settings that differ from their defaults, except `excluded`, as flags.
///
/// # Errors
/// As [`to_toml`].
pub fn to_flags<R: Recipe>(settings: &R, excluded: &[&str]) -> Result<Vec<String>> {
    let defaults = defaults::<R>()?;
    let flag = |(key, value): (&String, &Value)| match value {
        Value::Boolean(true) => format!("--{key}"),
        value => format!("--{key}={}", text(value)),
    };
    let table = to_table(settings)?;
    let changed = table
        .iter()
        .filter(|(key, value)| !excluded.contains(&key.as_str()) && defaults.get(*key) != Some(*value));
    Ok(changed.map(flag).collect())
}

/// True if a run whose configuration is `text` may be resumed with `settings`.
pub fn resumes<R: Recipe>(settings: &R, text: &str) -> bool {
    let Ok(table) = text.parse::<Table>() else { return false };
    let Ok(mut all) = defaults::<R>() else { return false };
    all.extend(section::<R>(&table));
    table.contains_key(R::TASK) && R::from_table(&all).is_ok_and(|other| settings.resumes(&other))
}

fn is_profile(name: &str) -> bool {
    PROFILES.iter().any(|(profile, _)| *profile == name)
}

fn to_table<R: Recipe>(settings: &R) -> Result<Table> {
    settings.to_table().map_err(|error| Error::setting(format!("settings of {}", R::TASK), error.to_string()))
}

fn defaults<R: Recipe>() -> Result<Table> {
    to_table(&R::default())
}

/// The table of a recipe in a configuration.
fn section<R: Recipe>(configuration: &Table) -> Table {
    configuration.get(R::TASK).and_then(Value::as_table).cloned().unwrap_or_default()
}

/// The text of a value on the command line.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        value => value.to_string(),
    }
}

/// Reads and checks the configuration `name`: a profile or a file.
fn read(name: &str) -> Result<Table> {
    let invalid = |message: String| Error::configuration(name, message);
    let text = match PROFILES.iter().find(|(profile, _)| *profile == name) {
        Some((_, text)) => (*text).to_owned(),
        None => {
            let profiles = PROFILES.map(|profile| profile.0).join(", ");
            let bytes = read_bounded(Path::new(name))
                .map_err(|error| invalid(format!("expected a file or one of {profiles}: {error}")))?;
            String::from_utf8(bytes).map_err(|_| invalid("expected UTF-8 text".into()))?
        }
    };
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let before = |span: std::ops::Range<usize>| text.get(..span.start).unwrap_or_default();
        let line = 1 + error.span().map_or(0, |span| before(span).matches('\n').count());
        invalid(format!("line {line}: {}", error.message().lines().next().unwrap_or_default()))
    })?;
    for (task, settings) in &table {
        if TaskKind::find(task).is_none() {
            let tasks = TASKS.map(|task| task.name).join("] or [");
            return Err(invalid(format!("[{task}]: unknown table; expected [{tasks}]")));
        }
        if !settings.is_table() {
            return Err(invalid(format!("{task}: expected a table [{task}]")));
        }
    }
    check_tasks(name, &table)?;
    Ok(table)
}

/// Checks that every key in the table of a recipe is a setting, and that its value has the right type.
pub(super) fn check<R: Recipe>(name: &str, configuration: &Table) -> Result<()> {
    let (keys, settings) = (R::keys(), section::<R>(configuration));
    let invalid =
        |key: &str, message: &str| Err(Error::configuration(name, format!("{}.{key}: {message}", R::TASK)));
    for key in settings.keys() {
        if !keys.contains(&key.as_str()) {
            let suggestion = closest(key, keys.iter().copied());
            let suggestion = suggestion.map_or_else(String::new, |key| format!("; did you mean {key}?"));
            return invalid(key, &format!("unknown key{suggestion}"));
        }
    }
    for (key, value) in &settings {
        if *value == Value::String(String::new()) {
            return invalid(key, "expected a value, found \"\"");
        }
    }
    let mut all = defaults::<R>()?;
    all.extend(settings);
    R::from_table(&all).map(|_| ()).or_else(|error| invalid(&error.key, &error.message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipes::{ClassifierSettings, DitSettings};

    fn table(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn flags_take_precedence_over_the_configuration_and_it_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "[dit]\nsteps = 7\nlr = 1\nno-cache = true\nmixed-precision = true\n").unwrap();
        let name = file.to_str();
        let resolve = |flags: &str| resolve::<DitSettings>(name, &table(flags)).unwrap();
        let settings = resolve("lr = '2e-1'\ncache = 'x'\nprecision = 'f32'");
        assert_eq!((settings.steps, settings.method.lr, settings.sample_interval), (7, 0.2, 5000));
        assert!(settings.run.cache.is_some() && !settings.run.no_cache && !settings.method.mixed_precision);
        assert!(resolve("").run.no_cache && resolve("").method.mixed_precision);
        // Of two that a configuration has, the switch wins, and flags for a process have it alone.
        std::fs::write(
            &file,
            "[dit]\ncache = 'x'\nno-cache = true\nprecision = 'f16'\nmixed-precision = true\n",
        )
        .unwrap();
        assert_eq!(to_flags(&resolve(""), &[]).unwrap(), ["--mixed-precision", "--no-cache"]);
        // Only a profile's sizes are those of a machine.
        let sized = |flags: &str| {
            let settings = super::resolve::<ClassifierSettings>(Some("a100"), &table(flags)).unwrap();
            (settings.backbone, settings.image_size)
        };
        assert_eq!(sized(""), (Some("resnet50".into()), Some(224)));
        assert_eq!(sized("init = 'x'"), (None, None));
    }

    #[test]
    fn the_app_in_the_cloud_has_the_same_tasks() {
        let app = table(include_str!("../../deploy/modal/settings.toml"));
        let expected: Vec<_> =
            TASKS.iter().map(|task| (task.name, task.released_file.unwrap_or(""))).collect();
        let found = app["tasks"].as_table().unwrap();
        assert_eq!(found.len(), expected.len());
        for (name, file) in expected {
            assert_eq!(found[name].as_str(), Some(file));
        }
    }

    #[test]
    fn settings_survive_a_round_trip() {
        let mut settings = DitSettings { size: Some("nano".into()), ..DitSettings::default() };
        settings.method.seed = u64::MAX;
        settings.method.ema_beta = vec![0.9, 0.99];
        settings.run.max_time = Some(std::time::Duration::from_millis(5_400_010));
        settings.run.tensorboard = Some("true".into());
        settings.release.cfg_interval = [0.25, 0.75];
        let text = to_toml(&settings).unwrap();
        let mut all = defaults::<DitSettings>().unwrap();
        all.extend(section::<DitSettings>(&table(&text)));
        assert_eq!(DitSettings::from_table(&all).unwrap(), settings, "{text}");
        let flags = to_flags(&settings, &["seed"]).unwrap();
        assert!(flags.contains(&"--ema-beta=0.9,0.99".to_owned()), "{flags:?}");
        assert!(flags.contains(&"--tensorboard".to_owned()) && flags.len() == 5, "{flags:?}");
    }

    #[test]
    fn runs_resume_with_the_same_settings_of_the_result() {
        let settings = DitSettings::default();
        // An earlier version wrote numbers and lists in other types, and left out what it did not have.
        let earlier = "[dit]\nlr = '1e-4'\nema-beta = 0.9999\nretry-max = '300s'\ngpus = 4\ncfg-interval = '0,1'\noutput = 'x'";
        assert!(resumes(&settings, earlier));
        for other in ["[dit]\nlr = 2e-4", "[dit]\nseed = 1", "[classifier]", "", "[dit"] {
            assert!(!resumes(&settings, other), "{other}");
        }
    }
}

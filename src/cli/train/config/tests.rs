use clap::{CommandFactory, FromArgMatches};

use super::*;
use crate::cli::{Cli, Command as Subcommand};

/// Resolves the flags of `tiny-cats` called with `arguments`, and formats them.
fn resolved(task: &'static str, arguments: &[String]) -> (ResolvedConfig, String) {
    let arguments: Vec<OsString> = ["tiny-cats", "train", task]
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
        .map(OsString::from)
        .collect();
    let command = with_defaults(Cli::command(), &arguments).unwrap();
    let matches = command.try_get_matches_from(&arguments).unwrap_or_else(|e| panic!("{arguments:?}: {e}"));
    let Subcommand::Train(parsed) = Cli::from_arg_matches(&matches).unwrap().command else {
        panic!("{arguments:?}: expected the subcommand train")
    };
    let (_, matches) = training(&matches).unwrap();
    (ResolvedConfig::new(task, &Cli::command(), matches).unwrap(), format!("{parsed:?}"))
}

/// Sample values of a flag, as on the command line; `None` is the flag without a value.
fn samples(flag: &Arg) -> Vec<Option<String>> {
    if !flag.get_action().takes_values() {
        return vec![None];
    }
    let has_type = |types: &[TypeId]| types.iter().any(|id| flag.get_value_parser().type_id() == *id);
    let names = [
        "a b/c",
        "7",
        "007",
        "-7",
        "1e-4",
        "true",
        "false",
        "nan",
        "-x",
        "[a]",
        "a,b",
        "ü\"\\'#=",
        "a\tb",
        "$HOME",
        " ",
    ];
    let possible: Vec<String> =
        flag.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    let values: Vec<&str> = match flag.get_id().as_str() {
        "max_time" | "retry_initial" | "retry_max" => vec!["90m", "1h 30m 10ms"],
        "cfg_interval" => vec!["0.25,0.75", "0,1"],
        "ema_beta" => vec!["0.9", "0.9,0.95", "1e-3", "0,1"],
        _ if !possible.is_empty() => possible.iter().map(String::as_str).collect(),
        _ if has_type(&[TypeId::of::<u32>()]) => vec!["0", "4294967295"],
        _ if has_type(&[TypeId::of::<u64>(), TypeId::of::<usize>()]) => {
            vec!["0", "8", "18446744073709551615"]
        }
        _ if has_type(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) => {
            vec!["0", "3", "1e-5", "0.1", "0.30000000000000004", "-2.5", "1e30", "inf"]
        }
        _ if has_type(&[TypeId::of::<String>(), TypeId::of::<PathBuf>()]) => names.to_vec(),
        id => panic!("--{id}: this test has no values of its type"),
    };
    let values = values.into_iter().map(|value| Some(value.to_owned()));
    if is_optional(flag) { std::iter::once(None).chain(values).collect() } else { values.collect() }
}

fn argument(flag: &Arg, value: Option<&str>) -> String {
    let name = flag.get_id().as_str().replace('_', "-");
    value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}"))
}

/// Every value of a flag is written to the configuration and read back by `--config`.
#[test]
fn written_configurations_can_be_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.toml");
    for task in TASKS {
        let command = Cli::command();
        let flags: Vec<(&Arg, Vec<Option<String>>)> = subcommand(&command, task)
            .get_arguments()
            .filter(|flag| !NOT_CONFIGURED.contains(&flag.get_id().as_str()))
            .map(|flag| (flag, samples(flag)))
            .collect();
        assert!(flags.len() > 40, "{task} has {} flags", flags.len());
        let rounds = flags.iter().map(|(_, values)| values.len()).max().unwrap();
        // Two mutually exclusive flags alternate between rounds, so every value is combined with both.
        for round in 0..2 * rounds {
            let excluded = |flag: &Arg| {
                CONFLICTING_FLAGS.iter().any(|(a, b)| [a, b][round % 2] == &flag.get_id().as_str())
            };
            let (mut arguments, mut data) = (Vec::new(), None);
            for (flag, values) in flags.iter().filter(|(flag, _)| !excluded(flag)) {
                let value = values[round / 2 % values.len()].as_deref();
                match (flag.get_id().as_str(), value) {
                    ("data", value) => data = value,
                    (_, value) => arguments.push(argument(flag, value)),
                }
            }
            arguments.extend(["--", data.unwrap()].map(str::to_owned));
            let (written, parsed) = resolved(task, &arguments);
            std::fs::write(&file, written.to_toml()).unwrap();
            let config = file.to_string_lossy().into_owned();
            let (reread, reparsed) = resolved(task, &[format!("--config={config}")]);
            assert_eq!(reread.flags, written.flags, "{arguments:?}");
            let reparsed = reparsed.replace(&format!("config: Some({config:?})"), "config: None");
            assert_eq!(reparsed, parsed, "{arguments:?} as\n{}", written.to_toml());
            assert!(written.is_same(&written.to_toml()));
        }
    }
}

/// A configuration without these flags stays that of versions without them, so that their runs resume.
#[test]
fn the_optimizer_is_in_the_configuration_only_if_it_was_given() {
    for task in TASKS {
        let (default, _) = resolved(task, &[]);
        assert!(["optimizer", "momentum"].iter().all(|key| !default.flags.contains_key(*key)));
        let (sgd, _) = resolved(task, &["--optimizer=sgd".to_owned(), "--momentum=0.8".to_owned()]);
        assert_eq!(sgd.flags["optimizer"].as_str(), Some("sgd"));
        assert_eq!(sgd.flags["momentum"].as_float(), Some(0.8));
        assert!(!sgd.is_same(&default.to_toml()));
    }
}

/// Covers files of earlier versions and files written by hand.
#[test]
fn an_optional_value_defaults_to_true_and_may_be_false() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    for (text, expected) in [
        ("[]", Some("true")),
        ("true", Some("true")),
        ("\"true\"", Some("true")),
        ("\"false\"", Some("false")),
        ("\"events\"", Some("events")),
        ("false", None),
    ] {
        std::fs::write(&file, format!("[dit]\ntensorboard = {text}\n")).unwrap();
        let (reread, _) = resolved("dit", &[format!("--config={}", file.display())]);
        let found = reread.flags.get("tensorboard").map(|value| values(value).join(","));
        assert_eq!(found.as_deref(), expected, "{text}");
    }
    // Equality does not depend on the types of numbers.
    let (current, _) = resolved("dit", &["--lr=1".to_owned(), "--seed=7".to_owned(), "synth".to_owned()]);
    let earlier = current.to_toml().replace("lr = 1\n", "lr = 1.0\n");
    assert!(earlier.contains("lr = 1.0") && current.is_same(&earlier));
    assert!(!current.is_same(&earlier.replace("seed = 7", "seed = 8")));
}

#[cfg(unix)]
#[test]
fn values_that_are_not_utf8_are_refused() {
    use std::os::unix::ffi::OsStringExt;
    let bad = OsString::from_vec(b"--output=a\xff\nb".to_vec());
    let matches =
        Cli::command().try_get_matches_from(["tiny-cats".into(), "train".into(), "dit".into(), bad]).unwrap();
    let error = ResolvedConfig::new("dit", &Cli::command(), training(&matches).unwrap().1).unwrap_err();
    assert_eq!(error.to_string(), "--output a\u{fffd}\\nb: expected valid UTF-8");
}

//! The arguments of a training: flags of its process, and its settings.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, anyhow, bail};
use clap::{ArgMatches, FromArgMatches, parser::ValueSource};
use toml::{Table, Value};

use crate::{
    recipes::{Error, Recipe, config},
    train::{self, folder, supervise::Worker},
};

/// Flags of a process, which are not settings of the training.
#[derive(clap::Args, Clone, Debug)]
pub struct ProcessArgs {
    /// Profile (smoke, local, t4, a10, a100, h100) or TOML file; flags take precedence
    #[arg(long, value_name = "NAME|FILE", help_heading = "Run")]
    pub config: Option<String>,
    /// Resume a run: `auto` the newest unfinished one of this configuration, if any; a folder the run in it. A training state starts a new
    /// run from it
    #[arg(long, default_value = "never", value_name = "auto|PATH|never", help_heading = "Run")]
    pub resume: String,
    /// Name of the run's folder [default: time, task and a random suffix]. An existing run of that name is resumed
    #[arg(long, value_name = "NAME", conflicts_with = "resume", help_heading = "Run")]
    pub run_id: Option<String>,
    /// Folder of the run that this process trains
    #[arg(long, hide = true)]
    pub worker: Option<PathBuf>,
    /// Rank of this process in its process group
    #[arg(long, hide = true, requires = "worker", default_value_t = 0)]
    pub rank: usize,
    /// Number of times that the micro-batch is halved, after out-of-memory errors
    #[arg(long, hide = true, default_value_t = 0)]
    pub halvings: u32,
    /// Time to stop at, in seconds since 1970
    #[arg(long, hide = true)]
    pub deadline: Option<u64>,
}

impl ProcessArgs {
    /// Checks the flags.
    ///
    /// # Errors
    /// If `--run-id` cannot be the name of a folder.
    pub fn validate(&self) -> anyhow::Result<()> {
        if let Some(id) = self.run_id.as_ref().filter(|id| !folder::is_id(id)) {
            let found = id.escape_debug();
            bail!(
                "--run-id: expected a name of at most 100 letters, digits, -, _, +, = and ., found {found}"
            );
        }
        Ok(())
    }

    /// The training state that a new run starts from.
    pub fn initial_state(&self) -> Option<PathBuf> {
        Some(PathBuf::from(&self.resume))
            .filter(|path| !["auto", "never"].contains(&&*self.resume) && path.is_file())
    }

    /// The configuration to read: that of `--config`, or that of the resumed run. A training process gets all settings as flags.
    fn configuration(&self, runs_dir: &Path) -> Option<String> {
        if self.worker.is_some() || self.config.is_some() {
            return self.config.clone();
        }
        let run = match (&self.run_id, self.resume.as_str()) {
            (Some(id), _) => runs_dir.join(Some(id).filter(|id| folder::is_id(id))?),
            (None, "auto" | "never") => return None,
            (None, path) => PathBuf::from(path),
        };
        let path = Some(run.join(folder::CONFIGURATION)).filter(|path| path.is_file())?;
        Some(path.to_string_lossy().into_owned())
    }
}

/// The arguments of `train TASK`, and of commands that plan or start such a training.
#[derive(Debug)]
pub struct TrainArgs<R> {
    /// The flags of the process.
    pub process: ProcessArgs,
    settings: Result<R, String>,
    /// The keys of the settings on the command line.
    command_line_keys: BTreeSet<String>,
    /// The configuration that was read.
    configuration: Option<String>,
}

impl<R: Recipe> TrainArgs<R> {
    /// The settings, resolved from the defaults, the configuration and the flags.
    ///
    /// # Errors
    /// If the configuration or a value is invalid.
    pub fn settings(&self) -> anyhow::Result<&R> {
        self.settings.as_ref().map_err(|message| anyhow!("{message}"))
    }

    /// The settings, which have been checked.
    ///
    /// # Errors
    /// If a flag is invalid; the error names the first one.
    pub fn valid_settings(&self) -> anyhow::Result<&R> {
        let settings = self.settings()?;
        self.process.validate()?;
        match (settings.validate(), &self.configuration) {
            (Ok(()), _) => Ok(settings),
            // A value that is not from the command line.
            (Err(Error::Setting { setting, message }), Some(name))
                if R::keys().contains(&setting.as_str()) && !self.is_given(&setting) =>
            {
                bail!("--config {name}: {}.{setting}: {message}", R::TASK)
            }
            (Err(error), _) => Err(flag_error::<R>(error)),
        }
    }

    /// True if the setting was on the command line.
    pub fn is_given(&self, key: &str) -> bool {
        self.command_line_keys.contains(key)
    }
}

impl<R: clap::Args> clap::Args for TrainArgs<R>
where
    Self: FromArgMatches,
{
    fn augment_args(command: clap::Command) -> clap::Command {
        ProcessArgs::augment_args(R::augment_args(command))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        ProcessArgs::augment_args_for_update(R::augment_args_for_update(command))
    }
}

impl<R: Recipe> FromArgMatches for TrainArgs<R> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let process = ProcessArgs::from_arg_matches(matches)?;
        let flags = match flags::<R>(matches) {
            Ok(flags) => flags,
            Err(error) => {
                let (settings, command_line_keys) = (Err(error.to_string()), BTreeSet::new());
                return Ok(Self { process, settings, command_line_keys, configuration: None });
            }
        };
        let runs_dir = flags.get("runs-dir").and_then(Value::as_str).unwrap_or(folder::RUNS);
        let configuration = process.configuration(Path::new(runs_dir));
        let settings = config::resolve(configuration.as_deref(), &flags).map_err(flag_error::<R>);
        let settings = settings.map_err(|error| error.to_string());
        let command_line_keys = flags.into_iter().map(|(key, _)| key).collect();
        Ok(Self { process, settings, command_line_keys, configuration })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The settings on the command line, as text.
fn flags<R: Recipe>(matches: &ArgMatches) -> anyhow::Result<Table> {
    let mut flags = Table::new();
    for key in R::keys() {
        let id = key.replace('-', "_");
        if matches.value_source(&id) != Some(ValueSource::CommandLine) {
            continue;
        }
        let text = |raw: &OsStr| -> anyhow::Result<Value> {
            let name = if key == "data" { key.to_owned() } else { format!("--{key}") };
            let text = raw.to_str().with_context(|| {
                format!("{name} {}: expected valid UTF-8", raw.to_string_lossy().escape_debug())
            })?;
            Ok(Value::String(text.to_owned()))
        };
        let raw = matches.get_raw(&id).into_iter().flatten();
        let mut values: Vec<Value> = raw.map(text).collect::<anyhow::Result<_>>()?;
        let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
        flags.insert(key.to_owned(), value);
    }
    Ok(flags)
}

/// Converts an error of a recipe: the names of settings become flags.
pub fn flag_error<R: Recipe>(error: Error) -> anyhow::Error {
    let flag = |setting: &str, message: &str| {
        let is_flag = setting != "data" && R::keys().contains(&setting);
        let name = match setting {
            "data" => String::new(),
            _ if is_flag || setting == "resume" => format!("--{setting}: "),
            _ => format!("{setting}: "),
        };
        anyhow!("{name}{message}")
    };
    match error {
        Error::Setting { setting, message } => flag(&setting, &message),
        Error::Configuration { name, message } => anyhow!("--config {name}: {message}"),
        Error::Train(train::Error::Setting { setting, message }) => flag(setting, &message),
        Error::Train(error) => error.into(),
        Error::Data(error) => error.into(),
        Error::Checkpoint(error) => error.into(),
        error => error.into(),
    }
}

/// The command of training processes: all settings as flags, so that they read no configuration.
#[derive(Clone)]
pub struct WorkerCommand {
    program: PathBuf,
    task: &'static str,
    flags: Vec<OsString>,
    data: PathBuf,
}

impl WorkerCommand {
    /// Makes the command of processes that train with `settings`, perhaps from a training state.
    ///
    /// # Errors
    /// If a setting cannot be a flag, or the path of this program cannot be found.
    pub fn new<R: Recipe>(settings: &R, initial_state: Option<&Path>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let flags = config::to_flags(settings, &["data"]).map_err(flag_error::<R>)?;
        let mut flags: Vec<OsString> = flags.into_iter().map(OsString::from).collect();
        flags.extend(initial_state.map(|state| path_flag("--resume=", state)));
        Ok(Self { program, task: R::TASK, flags, data: settings.data().to_owned() })
    }

    /// Returns the command of one process.
    pub fn command(&self, worker: &Worker, rank: usize) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["train", self.task]);
        command.arg(path_flag("--worker=", worker.folder)).arg(format!("--halvings={}", worker.halvings));
        if rank > 0 {
            command.arg(format!("--rank={rank}"));
        }
        if let Some(deadline) = worker.deadline {
            let seconds = deadline.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            command.arg(format!("--deadline={seconds}"));
        }
        command.args(&self.flags).arg("--").arg(&self.data);
        command
    }
}

fn path_flag(flag: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(flag);
    argument.push(path);
    argument
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory};

    use super::*;
    use crate::recipes::{ClassifierSettings, DitSettings};

    #[derive(clap::Parser)]
    struct TestCli<R: Recipe + clap::Args> {
        #[command(flatten)]
        train: TrainArgs<R>,
    }

    fn parse<R: Recipe + clap::Args>(arguments: &[String]) -> TrainArgs<R> {
        let arguments = ["train"].into_iter().chain(arguments.iter().map(String::as_str));
        let matches =
            TestCli::<R>::command().try_get_matches_from(arguments).unwrap_or_else(|e| panic!("{e}"));
        TestCli::<R>::from_arg_matches(&matches).unwrap().train
    }

    /// The defaults of the help are those of the settings, and every setting has a flag.
    fn check_defaults<R: Recipe + clap::Args>() {
        let command = TestCli::<R>::command();
        let matches = command.clone().get_matches_from(["train"]);
        assert_eq!(R::from_arg_matches(&matches).unwrap(), R::default());
        assert_eq!(parse::<R>(&[]).settings().unwrap(), &R::default());
        let flags: BTreeSet<String> =
            command.get_arguments().map(|flag| flag.get_id().as_str().replace('_', "-")).collect();
        let process: BTreeSet<String> = ProcessArgs::augment_args(clap::Command::new("x"))
            .get_arguments()
            .map(|flag| flag.get_id().as_str().replace('_', "-"))
            .collect();
        let expected: BTreeSet<String> = R::keys().into_iter().map(str::to_owned).collect();
        assert_eq!(flags.difference(&process).cloned().collect::<BTreeSet<_>>(), expected);
        assert!(expected.len() > 40);
    }

    #[test]
    fn the_help_has_the_defaults_of_the_settings() {
        check_defaults::<DitSettings>();
        check_defaults::<ClassifierSettings>();
    }

    /// Sample values of a flag; `None` is the flag without a value.
    fn samples(flag: &clap::Arg) -> Vec<Option<String>> {
        use std::any::TypeId;
        if !flag.get_action().takes_values() {
            return vec![None];
        }
        let has_type = |types: &[TypeId]| types.iter().any(|id| flag.get_value_parser().type_id() == *id);
        let names = [
            "a b/c",
            "7",
            "007",
            "1e-4",
            "true",
            "false",
            "nan",
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
            "seed" => vec!["0", "18446744073709551615"],
            _ if !possible.is_empty() => possible.iter().map(String::as_str).collect(),
            _ if has_type(&[TypeId::of::<u32>()]) => vec!["0", "4294967295"],
            _ if has_type(&[TypeId::of::<u64>(), TypeId::of::<usize>()]) => {
                vec!["0", "8", "9223372036854775807"]
            }
            _ if has_type(&[TypeId::of::<f32>(), TypeId::of::<f64>()]) => {
                vec!["0", "3", "1e-5", "0.1", "0.30000000000000004", "-2.5", "1e30", "inf"]
            }
            _ if has_type(&[TypeId::of::<String>(), TypeId::of::<PathBuf>()]) => names.to_vec(),
            id => panic!("--{id}: this test has no values of its type"),
        };
        let values = values.into_iter().map(|value| Some(value.to_owned()));
        let is_optional = flag.get_num_args().is_some_and(|range| range.min_values() == 0);
        if is_optional { std::iter::once(None).chain(values).collect() } else { values.collect() }
    }

    /// Every value of a flag reaches the settings, the configuration that a run writes, and the flags of its processes.
    fn check_values<R: Recipe + clap::Args>() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        let command = TestCli::<R>::command();
        let flags: Vec<(&clap::Arg, Vec<Option<String>>)> = command
            .get_arguments()
            .filter(|flag| R::keys().contains(&flag.get_id().as_str().replace('_', "-").as_str()))
            .map(|flag| (flag, samples(flag)))
            .collect();
        let rounds = flags.iter().map(|(_, values)| values.len()).max().unwrap();
        // Mutually exclusive flags alternate between rounds, so every value is combined with both.
        let exclusive = config::EXCLUSIVE.map(|pair| pair.map(|key| key.replace('-', "_")));
        for round in 0..2 * rounds {
            let (mut arguments, mut data) = (Vec::new(), "data".to_owned());
            for (flag, values) in &flags {
                let (id, value) = (flag.get_id().as_str(), &values[round / 2 % values.len()]);
                let name = id.replace('_', "-");
                match value {
                    _ if exclusive.iter().any(|pair| pair[round % 2] == id) => {}
                    Some(value) if id == "data" => data.clone_from(value),
                    Some(value) => arguments.push(format!("--{name}={value}")),
                    None => arguments.push(format!("--{name}")),
                }
            }
            arguments.extend(["--".to_owned(), data]);
            let parsed = parse::<R>(&arguments);
            let settings = parsed.settings().unwrap();
            std::fs::write(&file, config::to_toml(settings).unwrap()).unwrap();
            let reread = parse::<R>(&[format!("--config={}", file.display())]);
            assert_eq!(reread.settings().unwrap(), settings, "{arguments:?}");
            assert!(config::resumes(settings, &config::to_toml(settings).unwrap()));
            let worker = Worker { folder: Path::new("run"), halvings: 2, deadline: None };
            let command = WorkerCommand::new(settings, None).unwrap().command(&worker, 1);
            let arguments: Vec<String> =
                command.get_args().skip(2).map(|argument| argument.to_str().unwrap().to_owned()).collect();
            let started = parse::<R>(&arguments);
            assert_eq!(started.settings().unwrap(), settings, "{arguments:?}");
            assert_eq!((started.process.halvings, started.process.rank), (2, 1));
        }
    }

    #[test]
    fn all_values_reach_configurations_and_processes() {
        check_values::<DitSettings>();
        check_values::<ClassifierSettings>();
    }

    /// A configuration without these flags stays that of versions without them, so that their runs resume.
    #[test]
    fn the_optimizer_is_in_the_configuration_only_if_it_was_given() {
        let toml = |flags: &[&str]| {
            let flags: Vec<String> = flags.iter().map(|flag| flag.to_string()).collect();
            config::to_toml(parse::<DitSettings>(&flags).settings().unwrap()).unwrap()
        };
        let (default, sgd) = (toml(&[]), toml(&["--optimizer=sgd", "--momentum=0.8"]));
        assert!(!default.contains("optimizer") && !default.contains("momentum"), "{default}");
        assert!(sgd.contains("optimizer = \"sgd\"") && sgd.contains("momentum = 0.8"), "{sgd}");
        assert!(!config::resumes(&DitSettings::default(), &sgd));
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
            let parsed = parse::<DitSettings>(&[format!("--config={}", file.display())]);
            let found = &parsed.settings().unwrap().run.tensorboard;
            assert_eq!(found.as_deref(), expected.map(Path::new), "{text}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn values_that_are_not_utf8_are_refused() {
        use std::os::unix::ffi::OsStringExt;
        let bad = std::ffi::OsString::from_vec(b"--output=a\xff\nb".to_vec());
        let matches = TestCli::<DitSettings>::command().try_get_matches_from(["train".into(), bad]).unwrap();
        let parsed = TestCli::<DitSettings>::from_arg_matches(&matches).unwrap().train;
        let error = parsed.settings().unwrap_err();
        assert_eq!(error.to_string(), "--output a\u{fffd}\\nb: expected valid UTF-8");
    }
}

//! The jobs of a sweep.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tiny_cats_models::random::{Purpose, Stream};

use super::{Method, Result, SearchSpace, Setting, Sweep};
use crate::data::hex;

/// Maximum number of jobs, more than is practical.
const MAX_JOBS: usize = 10_000;
/// Maximum characters of a job's name before its hash.
const MAX_NAME_CHARS: usize = 80;

/// A run of a sweep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// The name: the differing settings and eight hexadecimal digits of a hash of the arguments, such as `lr=0.0003-1f2e3d4c`.
    ///
    /// It is unique in the sweep and a valid name of a folder.
    pub name: String,
    /// The settings that differ between jobs, by flag.
    pub settings: BTreeMap<String, Setting>,
    /// The arguments of `tiny-cats`, without the paths of its output.
    pub arguments: Vec<String>,
}

impl Sweep {
    /// Lists the jobs in an order that depends only on the file.
    ///
    /// A grid has every combination once; the last key varies fastest. A random sweep has as many distinct combinations as requested.
    ///
    /// # Errors
    /// Returns an error for more than 10,000 jobs, or fewer distinct combinations than requested.
    pub fn jobs(&self) -> Result<Vec<Job>> {
        let combinations = match self.method {
            Method::Grid => self.grid()?,
            Method::Random { jobs, seed } => self.random(jobs, seed)?,
        };
        Ok(combinations.into_iter().map(|settings| self.job(settings)).collect())
    }

    fn grid(&self) -> Result<Vec<BTreeMap<String, Setting>>> {
        let mut combinations = vec![BTreeMap::new()];
        for (key, space) in &self.space {
            // The parser refuses ranges in a grid.
            let SearchSpace::Values(values) = space else { continue };
            if combinations.len() * values.len() > MAX_JOBS {
                return Err(self
                    .field_error("sweep", format!("expected at most {MAX_JOBS} combinations, found more")));
            }
            let with_value = |settings: &BTreeMap<String, Setting>, value: &Setting| {
                let mut settings = settings.clone();
                settings.insert(key.clone(), value.clone());
                settings
            };
            combinations = combinations
                .iter()
                .flat_map(|s| values.iter().map(move |value| with_value(s, value)))
                .collect();
        }
        Ok(combinations)
    }

    fn random(&self, jobs: usize, seed: u64) -> Result<Vec<BTreeMap<String, Setting>>> {
        if jobs > MAX_JOBS {
            return Err(self.field_error("jobs", format!("expected at most {MAX_JOBS}, found {jobs}")));
        }
        let seeds: Vec<(&String, &SearchSpace, u64)> =
            self.space.iter().map(|(key, space)| (key, space, derive_seed(seed, key))).collect();
        let (mut combinations, mut seen) = (Vec::new(), BTreeSet::new());
        // About n ln n draws yield all of n combinations.
        for index in 0..100 * jobs as u64 {
            let draw = |&(key, space, seed): &(&String, &SearchSpace, u64)| {
                (key.clone(), space.draw(&mut Stream::new(seed, Purpose::Order, index)))
            };
            let settings: BTreeMap<String, Setting> = seeds.iter().map(draw).collect();
            if seen.insert(settings.values().map(Setting::to_string).collect::<Vec<_>>()) {
                combinations.push(settings);
            }
            if combinations.len() == jobs {
                return Ok(combinations);
            }
        }
        let found = combinations.len();
        Err(self.field_error(
            "jobs",
            format!("expected at most the number of distinct combinations, {found}, found {jobs}"),
        ))
    }

    fn job(&self, settings: BTreeMap<String, Setting>) -> Job {
        let mut arguments = vec!["train".to_owned(), self.task.clone()];
        arguments.extend(self.data.clone());
        arguments.extend(self.config.as_ref().map(|config| format!("--config={config}")));
        let flags: BTreeMap<_, _> = self.fixed.iter().chain(&settings).collect();
        arguments.extend(flags.into_iter().filter_map(|(key, value)| match value {
            Setting::Switch(false) => None,
            Setting::Switch(true) => Some(format!("--{key}")),
            value => Some(format!("--{key}={value}")),
        }));
        Job { name: name(&settings, &arguments), settings, arguments }
    }
}

/// Creates the name of a job.
fn name(settings: &BTreeMap<String, Setting>, arguments: &[String]) -> String {
    let mut hash = Sha256::new();
    for argument in arguments {
        // The length delimits the arguments.
        hash.update((argument.len() as u64).to_le_bytes());
        hash.update(argument);
    }
    let hash = hex(&hash.finalize()[..4]);
    let safe_char = |c: char| if c.is_ascii_alphanumeric() || "._+-=".contains(c) { c } else { '_' };
    let text: Vec<String> = settings.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let text: String = text.join("_").chars().map(safe_char).take(MAX_NAME_CHARS).collect();
    format!("{text}-{hash}")
}

/// The seed for the values of a key; see the [module](super).
fn derive_seed(seed: u64, key: &str) -> u64 {
    let hash =
        Sha256::new().chain_update("tiny-cats sweep").chain_update(seed.to_le_bytes()).chain_update(key);
    let mut prefix = [0; 8];
    prefix.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(prefix)
}

impl SearchSpace {
    /// Draws a random value; see the [module](super).
    fn draw(&self, stream: &mut Stream) -> Setting {
        match *self {
            // The parser refuses an empty list, and one of 2³² values.
            Self::Values(ref values) => values[stream.uniform_int(values.len() as u32) as usize].clone(),
            Self::Number { low, high, log } => {
                let value = interpolate(stream.uniform(), low, high, log);
                let rounded: f64 = format!("{value:.5e}").parse().unwrap_or(value);
                Setting::Number(rounded.clamp(low, high))
            }
            Self::Integer { low, high, log } => {
                // Every integer has an interval of the same width, including the bounds.
                let (from, to) = (low as f64, high as f64 + 1.0);
                let value = interpolate(stream.uniform(), from, to, log);
                Setting::Integer((value.floor() as i64).clamp(low, high))
            }
        }
    }
}

fn interpolate(share: f64, low: f64, high: f64, log: bool) -> f64 {
    if log { low * (high / low).powf(share) } else { low + share * (high - low) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn sweep(text: &str) -> Sweep {
        Sweep::parse(Path::new("s.toml"), text).unwrap()
    }

    fn number(setting: &Setting) -> f64 {
        match setting {
            Setting::Number(x) => *x,
            Setting::Integer(n) => *n as f64,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_grid_has_every_combination_once() {
        for case in 0..60 {
            let mut random = Stream::new(3, Purpose::Order, case);
            let lens: Vec<u32> = (0..=random.uniform_int(4)).map(|_| 1 + random.uniform_int(5)).collect();
            let line = |(i, n): (usize, &u32)| {
                let values: Vec<String> = (0..*n).map(|v| (v * v).to_string()).collect();
                format!("k{i} = [{}]\n", values.join(", "))
            };
            let text: String = lens.iter().enumerate().map(line).collect();
            let jobs = sweep(&format!("task = \"dit\"\n[fixed]\nz = 1\n[sweep]\n{text}")).jobs().unwrap();
            assert_eq!(jobs.len() as u32, lens.iter().product::<u32>());
            let points: BTreeSet<Vec<String>> =
                jobs.iter().map(|job| job.settings.values().map(Setting::to_string).collect()).collect();
            assert_eq!(points.len(), jobs.len(), "{text}");
            for point in &points {
                let is_in_range =
                    |(value, n): (&String, &u32)| (0..*n).any(|v| (v * v).to_string() == *value);
                assert!(
                    point.iter().zip(&lens).all(is_in_range) && point.len() == lens.len(),
                    "{text}: {point:?}"
                );
            }
            let names: BTreeSet<&String> = jobs.iter().map(|job| &job.name).collect();
            assert_eq!(names.len(), jobs.len());
        }
    }

    /// The names must not change, since other tools find finished jobs by them.
    #[test]
    fn names_and_arguments_of_jobs_are_stable() {
        let sweep = sweep(
            "task = \"classifier\"\ndata = \"data/cats\"\nconfig = \"smoke\"\n[fixed]\nepochs = 2\nno-pretrained = true\n\
             [sweep]\nlr = [1e-4, 1e-5]\nbackbone = [\"resnet18\"]\nmixed-precision = [false]",
        );
        let jobs = sweep.jobs().unwrap();
        let shared =
            ["train", "classifier", "data/cats", "--config=smoke", "--backbone=resnet18", "--epochs=2"];
        assert_eq!(jobs[0].arguments, [&shared[..], &["--lr=0.0001", "--no-pretrained"]].concat());
        assert_eq!(jobs[1].arguments, [&shared[..], &["--lr=1e-5", "--no-pretrained"]].concat());
        assert_eq!(jobs[0].name, "backbone=resnet18_lr=0.0001_mixed-precision=false-8f2233e5");
        let lists = "task = \"dit\"\n[fixed]\nema-beta = [0.9, 0.95]\ntensorboard = true\n[sweep]\nx = [[1, \"a\"], 2]";
        let jobs = self::sweep(lists).jobs().unwrap();
        assert_eq!(jobs[0].arguments, ["train", "dit", "--ema-beta=0.9,0.95", "--tensorboard", "--x=1,a"]);
        assert!(jobs[0].name.starts_with("x=1_a-") && jobs[1].name.starts_with("x=2-"));
        let unusual = "task = \"dit\"\n[sweep]\nx = [\"../../ü \", \"\", \"-\"]\ny = [\"LONG\"]";
        let unusual = self::sweep(&unusual.replace("LONG", &"y".repeat(900))).jobs().unwrap();
        for job in unusual {
            assert!(
                job.name.len() <= MAX_NAME_CHARS + 9 && !job.name.contains(['/', ' ', 'ü']),
                "{}",
                job.name
            );
        }
    }

    #[test]
    fn random_values_are_reproducible_and_within_their_bounds() {
        let text = |seed: u64, more: &str| {
            format!(
                "task = \"dit\"\nmethod = \"random\"\njobs = 2000\nseed = {seed}\n[sweep]\n{more}\
                 lr = {{ low = 1e-4, high = 1e-1, scale = \"log\" }}\n\
                 weight-decay = {{ low = -0.5, high = 1 }}\nsteps = {{ low = 1, high = 4 }}"
            )
        };
        let jobs = sweep(&text(7, "")).jobs().unwrap();
        assert_eq!(jobs, sweep(&text(7, "")).jobs().unwrap());
        let values_of =
            |jobs: &[Job], key: &str| jobs.iter().map(|job| number(&job.settings[key])).collect::<Vec<f64>>();
        let rates = values_of(&jobs, "lr");
        // Computed by an independent program from the documentation of the module.
        assert_eq!(rates[..4], [0.0178495, 0.00815365, 0.000245088, 0.000142986]);
        assert_ne!(rates, values_of(&sweep(&text(8, "")).jobs().unwrap(), "lr"));
        // Other keys do not affect the values.
        assert_eq!(rates, values_of(&sweep(&text(7, "size = [\"nano\"]\n")).jobs().unwrap(), "lr"));
        assert!(rates.iter().all(|x| (1e-4..=1e-1).contains(x)));
        assert!(values_of(&jobs, "weight-decay").iter().all(|x| (-0.5..=1.0).contains(x)));
        for n in 1..=4 {
            let share = values_of(&jobs, "steps").iter().filter(|x| **x == f64::from(n)).count();
            assert!((400..600).contains(&share), "{n} was drawn {share} of 2000 times");
        }
        // Kolmogorov–Smirnov test: the maximum distance to the uniform distribution is below 1.95 / √n for 999 of 1000 seeds.
        let ks_distance = |mut shares: Vec<f64>| {
            shares.sort_by(f64::total_cmp);
            let n = shares.len() as f64;
            shares
                .iter()
                .enumerate()
                .map(|(i, x)| (x - i as f64 / n).abs().max((x - (i + 1) as f64 / n).abs()))
                .fold(0.0, f64::max)
        };
        assert!(
            ks_distance(rates.iter().map(|x| (x / 1e-4).log10() / 3.0).collect()) < 1.95 / 2000f64.sqrt()
        );
        assert!(
            ks_distance(rates.iter().map(|x| x / 1e-1).collect()) > 0.3,
            "the values themselves are not uniform"
        );
        assert!(
            ks_distance(values_of(&jobs, "weight-decay").iter().map(|x| (x + 0.5) / 1.5).collect())
                < 1.95 / 2000f64.sqrt()
        );
    }

    #[test]
    fn random_jobs_are_distinct_and_limited() {
        let text = |jobs: usize| {
            format!(
                "task = \"dit\"\nmethod = \"random\"\njobs = {jobs}\n[sweep]\nx = [1, 2, 3]\ny = {{ values = [1, 2] }}"
            )
        };
        let jobs = sweep(&text(6)).jobs().unwrap();
        assert_eq!(jobs.iter().map(|job| &job.name).collect::<BTreeSet<_>>().len(), 6);
        assert!(sweep(&text(7)).jobs().unwrap_err().to_string().contains("jobs: expected at most"));
        assert!(sweep(&text(10_001)).jobs().is_err());
        let values: Vec<String> = (0..101).map(|i| i.to_string()).collect();
        let large = format!("task = \"dit\"\n[sweep]\nx = [{0}]\ny = [{0}]", values.join(","));
        assert!(sweep(&large).jobs().unwrap_err().to_string().contains("10000"));
    }
}

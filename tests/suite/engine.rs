//! The engine with a task so small that everything else shows: what it does when steps fail, memory is short, or nothing gets better.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use image::RgbImage;
use serde_json::Value;
use tempfile::TempDir;
use tiny_cats::{
    checkpoint::TrainingState,
    train::{
        AdamW, Batch, BatchSource, Control, EarlyStopping, Error, Event, LrShape, Result, Schedule, Score,
        Task, TrainOptions,
        folder::{RunRecord, Status},
        train,
    },
};
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    Init, ParamSpec, Precision, Source, TapeOptions, Tensor as _, TinyDitConfig, Weights,
    candle::Params,
    cost::CostSummary,
    tape::{Tape, Var},
};

const WIDTH: usize = 4;
const ITEMS: usize = 64;

/// Learns a matrix from rows of numbers.
struct Rows {
    batches: Arc<Numbers>,
    /// Items in a micro-batch that memory has room for.
    room: usize,
    /// What evaluations find, one after the other, of each moving average.
    scores: Vec<f64>,
    evaluated: usize,
    /// A step that takes long, and how long.
    slow: Option<(u64, Duration)>,
    steps: AtomicU64,
}

struct Numbers {
    /// Items that are no numbers.
    broken: Vec<u64>,
    /// What all are multiplied by.
    size: f32,
}

impl BatchSource for Numbers {
    fn items(&self) -> usize {
        ITEMS
    }

    fn batch(&self, position: u64, len: usize) -> Result<Batch> {
        let row = |item: u64| {
            let broken = self.broken.contains(&item);
            (0..WIDTH as u64)
                .map(move |i| if broken { f32::NAN } else { ((item * 7 + i * 3) % 11) as f32 / 11.0 })
        };
        let x: Vec<f32> = (position..position + len as u64).flat_map(row).map(|v| v * self.size).collect();
        Ok(Batch(vec![Tensor::from_vec(x, (len, WIDTH), &Device::Cpu)?]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        (position..position + len as u64).map(|item| format!("{item}.png").into()).collect()
    }
}

impl Rows {
    fn new() -> Self {
        Self {
            batches: Arc::new(Numbers { broken: Vec::new(), size: 1.0 }),
            room: usize::MAX,
            scores: Vec::new(),
            evaluated: 0,
            slow: None,
            steps: AtomicU64::new(0),
        }
    }

    fn broken(broken: &[u64]) -> Self {
        Self { batches: Arc::new(Numbers { broken: broken.to_vec(), size: 1.0 }), ..Self::new() }
    }

    fn spec() -> ParamSpec {
        ParamSpec { init: Init::Normal(0.5), ..TinyDitConfig::legacy().cost().unwrap().params.remove(0) }
    }
}

impl Task for Rows {
    fn kind(&self) -> &'static str {
        "rows"
    }

    fn release_name(&self) -> String {
        "rows".into()
    }

    fn cost(&self) -> Result<CostSummary> {
        let spec = ParamSpec { name: "weight".into(), dims: vec![WIDTH, WIDTH], ..Self::spec() };
        Ok(CostSummary { params: vec![spec], ..CostSummary::default() })
    }

    fn training_bytes(&self, batch: usize, _: TapeOptions) -> Result<u64> {
        Ok(4 * (batch * WIDTH) as u64)
    }

    fn batches(&self) -> Arc<dyn BatchSource> {
        self.batches.clone()
    }

    fn settings(&self) -> Value {
        Value::Null
    }

    fn meta(&self) -> ModelMeta {
        ModelMeta::tiny_dit(&TinyDitConfig::legacy(), vec!["a".into(); 13])
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [x] = batch.on(&Device::Cpu)?;
        let len = x.dim(0)?;
        if len > self.room {
            return Err(Error::Candle(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into())));
        }
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        if let Some((_, time)) = self.slow.filter(|(slow, _)| step == *slow) {
            std::thread::sleep(time);
        }
        let spec = self.cost()?.params.remove(0);
        let weight = tape.params(params).param(spec)?;
        let target = Tensor::ones((len, WIDTH), candle_core::DType::F32, &Device::Cpu)?;
        let ones = Tensor::ones(len, candle_core::DType::F32, &Device::Cpu)?;
        Ok(tape.constant(x).linear(&weight, None)?.weighted_mse(&target, &ones)?)
    }

    fn evaluate(&mut self, _: &Weights) -> Result<Vec<Score>> {
        let Some(&value) = self.scores.get(self.evaluated) else { return Ok(Vec::new()) };
        self.evaluated += 1;
        Ok(vec![Score { name: "validation_loss", value, higher_is_better: false }])
    }

    fn sample_grid(&mut self, _: &Weights) -> Result<Option<RgbImage>> {
        Ok(None)
    }
}

fn plan(folder: &Path, steps: u64) -> TrainOptions {
    TrainOptions {
        folder: folder.to_owned(),
        from: None,
        schedule: Schedule::new(LrShape::Cosine, 1e-2, 0.0, None, 10, steps).unwrap(),
        optimizer: AdamW { ema: vec![0.9], ..AdamW::default() },
        batch: 8,
        accumulation: 1,
        halvings: 0,
        tape: TapeOptions::default(),
        workers: 0,
        save_interval: 0,
        sample_interval: 0,
        log_interval: 1,
        early_stopping: None,
        max_skipped_steps: 3,
        seed: 0,
        configuration: String::new(),
        device: Device::Cpu,
        control: Control::default(),
    }
}

/// Trains in a folder of its own; what was noted on the way, and how it ended.
fn run(task: &mut Rows, plan: &TrainOptions) -> (Vec<String>, Result<[PathBuf; 2]>) {
    let mut notes = Vec::new();
    let ended = train(task, plan, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note.to_owned());
        }
    });
    (notes, ended)
}

fn state(folder: &Path, step: u64) -> TrainingState {
    TrainingState::load(&folder.join(format!("rows_step_{step:08}.safetensors"))).unwrap()
}

fn record(folder: &Path) -> RunRecord {
    RunRecord::load(folder).unwrap()
}

fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("run");
    (dir, folder)
}

#[test]
fn a_step_that_is_no_number_is_skipped_and_changes_nothing() {
    let (_dir, folder) = folder();
    let mut plan = plan(&folder, 6);
    plan.save_interval = 1;
    // Items 16 to 23 are those of the third step.
    let (notes, ended) = run(&mut Rows::broken(&[18]), &plan);
    ended.unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("step 3: the loss is NaN") && notes[0].contains("18.png"), "{notes:?}");
    let (before, after) = (state(&folder, 2), state(&folder, 3));
    assert!(before.weights == after.weights && before.ema == after.ema && before.moment1 == after.moment1);
    assert_eq!(after.meta["progress"]["skipped"], 1);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"skipped\":true").count(), 1, "{metrics}");
}

#[test]
fn too_many_such_steps_in_a_row_stop_the_run_and_its_state_is_kept() {
    let (_dir, folder) = folder();
    let broken: Vec<u64> = (32..64).collect();
    let (notes, ended) = run(&mut Rows::broken(&broken), &plan(&folder, 50));
    let error = ended.unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 7, .. }) && !error.is_transient(), "{error}");
    assert!(error.to_string().contains("48.png"), "{error}");
    assert_eq!(notes.len(), 2, "{notes:?}");
    let record = record(&folder);
    assert_eq!((record.status, record.step), (Status::Failed, 7));
    assert!(state(&folder, 7).weights["weight"].data().iter().all(|v| v.is_finite()));
    // With the data mended, it goes on.
    run(&mut Rows::new(), &plan(&folder, 50)).1.unwrap();
    // The first batch of all is broken: nothing was learnt, and nothing is left to go on from.
    let dir = tempfile::tempdir().unwrap();
    let error = run(&mut Rows::broken(&[0]), &plan(dir.path(), 50)).1.unwrap_err();
    assert!(error.to_string().starts_with("step 1: the loss is NaN"), "{error}");
}

#[test]
fn when_memory_is_short_smaller_micro_batches_learn_the_same() {
    let (_dir, first) = folder();
    let mut whole = plan(&first, 20);
    whole.batch = 12;
    run(&mut Rows::new(), &whole).1.unwrap();
    let (_dir, second) = folder();
    let mut short = plan(&second, 20);
    short.batch = 12;
    let (notes, ended) = run(&mut Rows { room: 3, ..Rows::new() }, &short);
    ended.unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[1].ends_with("4 micro-batches of 3 a step"), "{notes:?}");
    let (a, b) = (state(&first, 20), state(&second, 20));
    assert_eq!(b.meta["progress"]["micro_batch"], 3);
    for (a, b) in a.weights["weight"].data().iter().zip(b.weights["weight"].data()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    // It is remembered: a run that goes on does not try again. One item is as little as there is.
    let mut longer = short.clone();
    (longer.schedule.steps, longer.control) = (22, Control::default());
    let (notes, ended) = run(&mut Rows { room: 3, ..Rows::new() }, &longer);
    ended.unwrap();
    assert!(notes.iter().all(|note| !note.contains("out of memory")), "{notes:?}");
    assert!(notes.iter().any(|note| note == "going on with 4 micro-batches of 3 a step"), "{notes:?}");
    let (_dir, third) = folder();
    let error = run(&mut Rows { room: 0, ..Rows::new() }, &plan(&third, 5)).1.unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    // A parent that saw the process killed for it says so beforehand.
    let (_dir, fourth) = folder();
    let mut told = plan(&fourth, 20);
    (told.batch, told.halvings) = (12, 2);
    let (notes, ended) = run(&mut Rows { room: 3, ..Rows::new() }, &told);
    ended.unwrap();
    assert_eq!(notes, ["going on with 4 micro-batches of 3 a step"]);
    assert!(state(&fourth, 20).weights == b.weights, "the same micro-batches learn the same");
}

#[test]
fn a_run_that_gets_no_better_is_stopped_and_its_best_is_released() {
    let (_dir, folder) = folder();
    let mut plan = plan(&folder, 100);
    plan.save_interval = 5;
    plan.early_stopping = Some(EarlyStopping { patience: 3, min_delta: 0.01 });
    let scores = vec![1.0, 0.5, 0.495, 0.6, 0.7, 0.1];
    let (notes, ended) = run(&mut Rows { scores, ..Rows::new() }, &plan);
    let [_, released] = ended.unwrap();
    assert!(notes[0].contains("was best at step 10, 0.5000, and not better in 3 evaluations"), "{notes:?}");
    let record = record(&folder);
    assert_eq!((record.status, record.step), (Status::Finished, 25));
    let released = tiny_cats::checkpoint::open(&released, Default::default()).unwrap();
    assert!(released.weights == state(&folder, 10).ema);
}

#[test]
fn of_two_averages_the_one_that_is_evaluated_better_is_released() {
    let (_dir, folder) = folder();
    let mut plan = plan(&folder, 10);
    plan.optimizer.ema = vec![0.9, 0.1];
    plan.save_interval = 5;
    let [_, released] = run(&mut Rows { scores: vec![0.9, 0.8, 0.7, 0.6], ..Rows::new() }, &plan).1.unwrap();
    let (last, best) = (state(&folder, 10), record(&folder).best.unwrap());
    assert_eq!((best.step, best.average, best.value), (10, 1, 0.6));
    assert!(last.ema != last.ema2);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains(r#"{"step":10,"validation_loss":0.6,"weights":"ema2"}"#), "{metrics}");
    assert!(tiny_cats::checkpoint::open(&released, Default::default()).unwrap().weights == last.ema2);
}

/// The newest states are kept, and the best besides; metrics of steps that were lost are, too.
#[test]
fn five_states_and_the_best_are_kept_and_lost_steps_leave_no_metrics() {
    let (_dir, folder) = folder();
    std::fs::create_dir_all(&folder).unwrap();
    // A process was killed before its first state, in the middle of a line.
    std::fs::write(folder.join("metrics.jsonl"), "{\"step\":1,\"loss\":1}\n{\"step\":2,\"lo").unwrap();
    let mut plan = plan(&folder, 9);
    plan.save_interval = 1;
    let scores = (0..9).map(f64::from).collect();
    run(&mut Rows { scores, ..Rows::new() }, &plan).1.unwrap();
    let mut kept: Vec<u64> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str()?.strip_prefix("rows_step_")?.get(..8)?.parse().ok()
        })
        .collect();
    kept.sort_unstable();
    assert_eq!(kept, [1, 5, 6, 7, 8, 9]);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 18, "nine steps and nine evaluations");
}

#[test]
fn a_run_is_stopped_in_the_middle_of_a_step_and_ends_in_the_same_bytes() {
    let (_dir, left_alone) = folder();
    let alone = run(&mut Rows::new(), &plan(&left_alone, 30)).1.unwrap();
    let (_dir, folder) = folder();
    let stopped = plan(&folder, 30);
    let control = stopped.control.clone();
    let slow = Some((11, Duration::from_secs(4)));
    let thread = std::thread::spawn({
        let stopped = stopped.clone();
        move || run(&mut Rows { slow, ..Rows::new() }, &stopped).1.is_ok()
    });
    while !folder.join("metrics.jsonl").exists() || record(&folder).steps == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    let held = control.stop().unwrap();
    let (step, path) = held.at.clone().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "a step at work is not waited for");
    assert_eq!(step, 11);
    assert_eq!(record(&folder).status, Status::Stopped);
    // The run as the process would leave it, ended here and now.
    let left = tempfile::tempdir().unwrap();
    let left = left.path().join("run");
    std::fs::create_dir(&left).unwrap();
    for file in ["metrics.jsonl", "run.json", "config.toml", path.file_name().unwrap().to_str().unwrap()] {
        std::fs::copy(folder.join(file), left.join(file)).unwrap();
    }
    drop(held);
    let resumed = run(&mut Rows::new(), &plan(&left, 30)).1.unwrap();
    for (a, b) in alone.iter().zip(&resumed) {
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{} differs", b.display());
    }
    let metrics =
        |folder: &Path| std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap().lines().count();
    assert_eq!(metrics(&left), 30);
    assert!(!thread.join().unwrap() || metrics(&folder) == 30);
}

#[test]
fn in_f16_the_loss_scale_is_found_and_overflows_do_not_stop_the_run() {
    let (_dir, folder) = folder();
    let mut plan = plan(&folder, 12);
    plan.tape.precision = Precision::F16;
    plan.max_skipped_steps = 2;
    // Gradients of some 50: times 65536 they are beyond what f16 holds.
    let batches = Arc::new(Numbers { broken: Vec::new(), size: 10.0 });
    run(&mut Rows { batches, ..Rows::new() }, &plan).1.unwrap();
    let progress = &state(&folder, 12).meta["progress"];
    let (scale, skipped) =
        (progress["loss_scale"]["value"].as_f64().unwrap(), progress["skipped"].as_u64().unwrap());
    assert!((1..12).contains(&skipped) && scale == 65536.0 / 2f64.powi(skipped as i32), "{progress}");
    assert_eq!(progress["skipped_in_a_row"], 0);
}

/// Resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

/// With next to nothing to compute, what is left is the engine: it takes less than a millisecond a step, and memory stays flat.
#[test]
fn the_engine_itself_takes_little_time_and_no_more_memory_from_step_to_step() {
    let (_dir, folder) = folder();
    let mut plan = plan(&folder, 5000);
    (plan.save_interval, plan.log_interval) = (500, 1);
    let mut last = Instant::now();
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    train(&mut Rows::new(), &plan, &mut |event| {
        if let Event::Step(step) = event {
            times.push(last.elapsed());
            last = Instant::now();
            if step.step.is_multiple_of(500) {
                #[cfg(target_os = "linux")]
                memory.push(resident());
                #[cfg(not(target_os = "linux"))]
                memory.push(0u64);
            }
        }
    })
    .unwrap();
    times.sort();
    let median = times[times.len() / 2];
    println!("{median:?} a step; resident {memory:?}");
    assert!(median < Duration::from_millis(1), "{median:?} a step");
    assert!(memory[9] < memory[1] + (4 << 20), "{memory:?}");
}

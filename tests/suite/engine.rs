//! The training engine with a minimal task: steps that fail, too little memory, early stopping, and interruptions.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tempfile::TempDir;
use tiny_cats::{
    checkpoint::TrainingState,
    train::{
        Batch, BatchSource, Control, EarlyStopping, Error, Event, LrShape, OptimizerOptions, ParameterSlices,
        Result, Schedule, Score, Sgd, Task, TrainOptions, Update, UpdateRule,
        folder::{RunRecord, Status},
        train,
    },
};
use tiny_cats_export::ModelMeta;
use tiny_cats_models::{
    Init, Input, Network, Precision, Scope, Sizes, TapeOptions, Weights,
    candle::Params,
    cost::CostSummary,
    main_output,
    tape::{Tape, Var},
};

const WIDTH: usize = 4;
const ITEMS: usize = 64;

/// A network of one matrix, whose kind is not registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Matrix {}

impl Network for Matrix {
    const KIND: &'static str = "matrix";
    type Built<T: tiny_cats_models::Tensor> = T::Param;

    fn inputs(&self) -> Vec<Input> {
        vec![Input::floats("x", [WIDTH])]
    }

    fn outputs(&self) -> Vec<String> {
        vec!["y".into()]
    }

    fn build<T: tiny_cats_models::Tensor>(&self, scope: &mut Scope<T>) -> tiny_cats_models::Result<T::Param> {
        scope.matrix("weight", [WIDTH, WIDTH], Init::Normal(0.5))
    }

    fn forward<T: tiny_cats_models::Tensor>(
        weight: &T::Param,
        inputs: &[T],
    ) -> tiny_cats_models::Result<Vec<T>> {
        Ok(vec![inputs[0].linear(weight, None)?])
    }
}

/// A task that trains a matrix on rows of numbers.
struct MatrixTask {
    batches: Arc<RowSource>,
    /// The maximum number of items in a micro-batch; larger ones fail as out of memory.
    max_items: usize,
    /// The results of the evaluations in order, one for each moving average.
    scores: Vec<f64>,
    evaluations: usize,
    /// A slow step and its duration.
    slow: Option<(u64, Duration)>,
    steps: AtomicU64,
}

struct RowSource {
    /// Items that are NaN.
    nan_items: Vec<u64>,
    /// A factor for all numbers.
    scale: f32,
}

impl BatchSource for RowSource {
    fn items(&self) -> usize {
        ITEMS
    }

    fn batch(&self, position: u64, len: usize) -> Result<Batch> {
        let row = |item: u64| {
            let is_nan = self.nan_items.contains(&item);
            (0..WIDTH as u64)
                .map(move |i| if is_nan { f32::NAN } else { ((item * 7 + i * 3) % 11) as f32 / 11.0 })
        };
        let x: Vec<f32> = (position..position + len as u64).flat_map(row).map(|v| v * self.scale).collect();
        Ok(Batch(vec![Tensor::from_vec(x, (len, WIDTH), &Device::Cpu)?]))
    }

    fn files(&self, position: u64, len: usize) -> Vec<PathBuf> {
        (position..position + len as u64).map(|item| format!("{item}.png").into()).collect()
    }
}

impl MatrixTask {
    fn new() -> Self {
        Self {
            batches: Arc::new(RowSource { nan_items: Vec::new(), scale: 1.0 }),
            max_items: usize::MAX,
            scores: Vec::new(),
            evaluations: 0,
            slow: None,
            steps: AtomicU64::new(0),
        }
    }

    fn with_nan(items: &[u64]) -> Self {
        Self { batches: Arc::new(RowSource { nan_items: items.to_vec(), scale: 1.0 }), ..Self::new() }
    }
}

impl Task for MatrixTask {
    fn kind(&self) -> &'static str {
        "rows"
    }

    fn release_name(&self) -> String {
        "rows".into()
    }

    fn cost(&self) -> Result<CostSummary> {
        Ok(CostSummary { params: Matrix {}.specs()?, ..CostSummary::default() })
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
        ModelMeta::for_network(Matrix {}, Sizes::new(), Vec::new()).unwrap()
    }

    fn loss(&mut self, tape: &Tape, params: &mut Params, batch: &Batch) -> Result<Var> {
        let [x] = batch.to_device(&Device::Cpu)?;
        let len = x.dim(0)?;
        if len > self.max_items {
            return Err(Error::Candle(candle_core::Error::Msg("CUDA_ERROR_OUT_OF_MEMORY".into())));
        }
        let step = self.steps.fetch_add(1, Ordering::SeqCst);
        if let Some((_, time)) = self.slow.filter(|(slow, _)| step == *slow) {
            std::thread::sleep(time);
        }
        let weight = Matrix {}.build(&mut Scope::root(&mut tape.params(params)))?;
        let target = Tensor::ones((len, WIDTH), candle_core::DType::F32, &Device::Cpu)?;
        let ones = Tensor::ones(len, candle_core::DType::F32, &Device::Cpu)?;
        let output = main_output(Matrix::forward(&weight, &[tape.constant(x)])?)?;
        Ok(output.weighted_mse(&target, &ones)?)
    }

    fn evaluate(&mut self, _: &Weights) -> Result<Vec<Score>> {
        let Some(&value) = self.scores.get(self.evaluations) else { return Ok(Vec::new()) };
        self.evaluations += 1;
        Ok(vec![Score { name: "validation_loss", value, higher_is_better: false }])
    }
}

fn options(folder: &Path, steps: u64) -> TrainOptions {
    TrainOptions {
        folder: folder.to_owned(),
        from: None,
        schedule: Schedule::new(LrShape::Cosine, 1e-2, 0.0, None, 10, steps).unwrap(),
        optimizer: OptimizerOptions { ema: vec![0.9], ..OptimizerOptions::default() },
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

/// Trains the task. Returns the notes of the run and its result.
fn run(task: &mut MatrixTask, options: &TrainOptions) -> (Vec<String>, Result<[PathBuf; 2]>) {
    let mut notes = Vec::new();
    let result = train(task, options, &mut |event| {
        if let Event::Note(note) = event {
            notes.push(note.to_owned());
        }
    });
    (notes, result)
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
fn a_step_with_a_nan_loss_is_skipped_without_an_update() {
    let (_dir, folder) = folder();
    let mut options = options(&folder, 6);
    options.save_interval = 1;
    // Items 16 to 23 are those of the third step.
    let (notes, result) = run(&mut MatrixTask::with_nan(&[18]), &options);
    result.unwrap();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("step 3: the loss is NaN") && notes[0].contains("18.png"), "{notes:?}");
    let (before, after) = (state(&folder, 2), state(&folder, 3));
    assert!(before.weights == after.weights && before.ema == after.ema && before.moment1 == after.moment1);
    assert_eq!(after.meta["progress"]["skipped"], 1);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"skipped\":true").count(), 1, "{metrics}");
}

#[test]
fn too_many_consecutive_nan_steps_end_the_run_with_a_saved_state() {
    let (_dir, folder) = folder();
    let items: Vec<u64> = (32..64).collect();
    let (notes, result) = run(&mut MatrixTask::with_nan(&items), &options(&folder, 50));
    let error = result.unwrap_err();
    assert!(matches!(error, Error::NotFinite { step: 7, .. }) && !error.is_transient(), "{error}");
    assert!(error.to_string().contains("48.png"), "{error}");
    assert_eq!(notes.len(), 2, "{notes:?}");
    let record = record(&folder);
    assert_eq!((record.status, record.step), (Status::Failed, 7));
    assert!(state(&folder, 7).weights["weight"].data().iter().all(|v| v.is_finite()));
    // With valid data, the run resumes.
    run(&mut MatrixTask::new(), &options(&folder, 50)).1.unwrap();
    // If the first batch has a NaN, no state is saved.
    let dir = tempfile::tempdir().unwrap();
    let error = run(&mut MatrixTask::with_nan(&[0]), &options(dir.path(), 50)).1.unwrap_err();
    assert!(error.to_string().starts_with("step 1: the loss is NaN"), "{error}");
}

#[test]
fn out_of_memory_halves_the_micro_batch_with_the_same_result() {
    let (_dir, first) = folder();
    let mut unlimited = options(&first, 20);
    unlimited.batch = 12;
    run(&mut MatrixTask::new(), &unlimited).1.unwrap();
    let (_dir, second) = folder();
    let mut limited = options(&second, 20);
    limited.batch = 12;
    let (notes, result) = run(&mut MatrixTask { max_items: 3, ..MatrixTask::new() }, &limited);
    result.unwrap();
    assert_eq!(notes.len(), 2, "{notes:?}");
    assert!(notes[1].ends_with("4 micro-batches of 3 per step"), "{notes:?}");
    let (a, b) = (state(&first, 20), state(&second, 20));
    assert_eq!(b.meta["progress"]["micro_batch"], 3);
    for (a, b) in a.weights["weight"].data().iter().zip(b.weights["weight"].data()) {
        assert!((a - b).abs() < 1e-5, "{a} and {b}");
    }
    // The size is saved in the state: a resumed run does not try larger micro-batches. A single item that fails ends the run.
    let mut longer = limited.clone();
    (longer.schedule.steps, longer.control) = (22, Control::default());
    let (notes, result) = run(&mut MatrixTask { max_items: 3, ..MatrixTask::new() }, &longer);
    result.unwrap();
    assert!(notes.iter().all(|note| !note.contains("out of memory")), "{notes:?}");
    assert!(notes.iter().any(|note| note == "continuing with 4 micro-batches of 3 per step"), "{notes:?}");
    let (_dir, third) = folder();
    let error =
        run(&mut MatrixTask { max_items: 0, ..MatrixTask::new() }, &options(&third, 5)).1.unwrap_err();
    assert!(error.is_out_of_memory(), "{error}");
    // A parent process that saw the worker killed for lack of memory sets `halvings`.
    let (_dir, fourth) = folder();
    let mut halved = options(&fourth, 20);
    (halved.batch, halved.halvings) = (12, 2);
    let (notes, result) = run(&mut MatrixTask { max_items: 3, ..MatrixTask::new() }, &halved);
    result.unwrap();
    assert_eq!(notes, ["continuing with 4 micro-batches of 3 per step"]);
    assert!(state(&fourth, 20).weights == b.weights, "the same micro-batches give the same weights");
}

#[test]
fn early_stopping_releases_the_best_weights() {
    let (_dir, folder) = folder();
    let mut options = options(&folder, 100);
    options.save_interval = 5;
    options.early_stopping = Some(EarlyStopping { patience: 3, min_delta: 0.01 });
    let scores = vec![1.0, 0.5, 0.495, 0.6, 0.7, 0.1];
    let (notes, result) = run(&mut MatrixTask { scores, ..MatrixTask::new() }, &options);
    let [_, released] = result.unwrap();
    assert!(notes[0].contains("did not improve in 3 evaluations; best 0.5000 at step 10"), "{notes:?}");
    let record = record(&folder);
    assert_eq!((record.status, record.step), (Status::Finished, 25));
    let released = tiny_cats::checkpoint::open(&released, Default::default()).unwrap();
    assert!(released.weights == state(&folder, 10).ema);
}

#[test]
fn the_moving_average_with_the_better_evaluation_is_released() {
    let (_dir, folder) = folder();
    let mut options = options(&folder, 10);
    options.optimizer.ema = vec![0.9, 0.1];
    options.save_interval = 5;
    let [_, released] =
        run(&mut MatrixTask { scores: vec![0.9, 0.8, 0.7, 0.6], ..MatrixTask::new() }, &options).1.unwrap();
    let (last, best) = (state(&folder, 10), record(&folder).best.unwrap());
    assert_eq!((best.step, best.average, best.value), (10, 1, 0.6));
    assert!(last.ema != last.ema2);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains(r#"{"step":10,"validation_loss":0.6,"weights":"ema2"}"#), "{metrics}");
    assert!(tiny_cats::checkpoint::open(&released, Default::default()).unwrap().weights == last.ema2);
}

/// The five newest states and the best one are kept. Metrics of steps after the last state are removed when a run resumes.
#[test]
fn the_five_newest_states_and_the_best_are_kept_and_metrics_of_lost_steps_are_removed() {
    let (_dir, folder) = folder();
    std::fs::create_dir_all(&folder).unwrap();
    // A process was killed before it saved its first state, while it wrote a line.
    std::fs::write(folder.join("metrics.jsonl"), "{\"step\":1,\"loss\":1}\n{\"step\":2,\"lo").unwrap();
    let mut options = options(&folder, 9);
    options.save_interval = 1;
    let scores = (0..9).map(f64::from).collect();
    run(&mut MatrixTask { scores, ..MatrixTask::new() }, &options).1.unwrap();
    let mut steps: Vec<u64> = std::fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| {
            entry.unwrap().file_name().to_str()?.strip_prefix("rows_step_")?.get(..8)?.parse().ok()
        })
        .collect();
    steps.sort_unstable();
    assert_eq!(steps, [1, 5, 6, 7, 8, 9]);
    let metrics = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 18, "nine steps and nine evaluations");
}

#[test]
fn a_run_that_is_stopped_within_a_step_resumes_with_identical_results() {
    let (_dir, reference) = folder();
    let expected = run(&mut MatrixTask::new(), &options(&reference, 30)).1.unwrap();
    let (_dir, folder) = folder();
    let interrupted = options(&folder, 30);
    let control = interrupted.control.clone();
    let slow = Some((11, Duration::from_secs(4)));
    let thread = std::thread::spawn({
        let interrupted = interrupted.clone();
        move || run(&mut MatrixTask { slow, ..MatrixTask::new() }, &interrupted).1.is_ok()
    });
    while !folder.join("metrics.jsonl").exists() || record(&folder).steps == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    let stopped = control.stop().unwrap();
    let (step, path) = stopped.at.clone().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "stopping does not wait for the current step");
    assert_eq!(step, 11);
    assert_eq!(record(&folder).status, Status::Stopped);
    // A copy of the folder as it would be if the process ended now.
    let copy = tempfile::tempdir().unwrap();
    let copy = copy.path().join("run");
    std::fs::create_dir(&copy).unwrap();
    for file in ["metrics.jsonl", "run.json", "config.toml", path.file_name().unwrap().to_str().unwrap()] {
        std::fs::copy(folder.join(file), copy.join(file)).unwrap();
    }
    drop(stopped);
    let resumed = run(&mut MatrixTask::new(), &options(&copy, 30)).1.unwrap();
    for (a, b) in expected.iter().zip(&resumed) {
        assert!(std::fs::read(a).unwrap() == std::fs::read(b).unwrap(), "{} differs", b.display());
    }
    let metrics =
        |folder: &Path| std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap().lines().count();
    assert_eq!(metrics(&copy), 30);
    assert!(!thread.join().unwrap() || metrics(&folder) == 30);
}

/// A rule that is not part of the library: descent by the sign of the mean gradient of each matrix row.
#[derive(Debug)]
struct RowSign;

impl UpdateRule for RowSign {
    fn name(&self) -> &str {
        "row-sign"
    }

    fn settings(&self) -> Value {
        json!({})
    }

    fn moments(&self) -> usize {
        0
    }

    fn is_elementwise(&self) -> bool {
        false
    }

    fn update(&self, parameter: ParameterSlices, update: &Update) {
        let ParameterSlices { dims, values, gradient, .. } = parameter;
        assert_eq!(dims, [WIDTH, WIDTH]);
        for (values, gradient) in values.chunks_mut(WIDTH).zip(gradient.chunks(WIDTH)) {
            let sign = gradient.iter().sum::<f32>().signum();
            values.iter_mut().for_each(|w| *w -= update.rate as f32 * sign);
        }
    }
}

fn rules() -> Vec<OptimizerOptions> {
    let rules = [
        OptimizerOptions::default(),
        OptimizerOptions::new(Sgd { momentum: 0.0, ..Sgd::default() }),
        OptimizerOptions::new(Sgd { weight_decay: 0.1, ..Sgd::default() }),
        OptimizerOptions::new(Sgd { nesterov: true, ..Sgd::default() }),
        OptimizerOptions::new(RowSign),
    ];
    rules.into_iter().map(|rule| OptimizerOptions { ema: vec![0.9, 0.5], ..rule }).collect()
}

#[test]
fn runs_with_any_rule_learn_and_resume_with_identical_results() {
    const FILES: [&str; 3] = ["rows_step_00000030.safetensors", "rows.pt", "rows.safetensors"];
    for optimizer in rules() {
        let (_dir, complete) = folder();
        let with_rule = |folder: &Path| TrainOptions {
            optimizer: optimizer.clone(),
            save_interval: 12,
            ..options(folder, 30)
        };
        run(&mut MatrixTask::new(), &with_rule(&complete)).1.unwrap();
        let metrics = std::fs::read_to_string(complete.join("metrics.jsonl")).unwrap();
        let losses: Vec<f64> = metrics
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64())
            .collect();
        assert!(losses.len() == 30 && losses[29] < losses[0], "{optimizer:?}: {losses:?}");
        // A folder as it would be if the process had been killed after step 12.
        let (_dir, killed) = folder();
        std::fs::create_dir(&killed).unwrap();
        for file in ["metrics.jsonl", "run.json", "config.toml", "rows_step_00000012.safetensors"] {
            std::fs::copy(complete.join(file), killed.join(file)).unwrap();
        }
        run(&mut MatrixTask::new(), &with_rule(&killed)).1.unwrap();
        for file in FILES {
            let [expected, found] =
                [&complete, &killed].map(|folder| std::fs::read(folder.join(file)).unwrap());
            assert!(expected == found, "{optimizer:?}: {file} differs");
        }
    }
}

#[test]
fn a_run_is_not_resumed_with_another_rule_or_other_settings_of_it() {
    let change = |from: OptimizerOptions, to: OptimizerOptions| {
        let (_dir, folder) = folder();
        let [first, second] = [from, to].map(|optimizer| TrainOptions { optimizer, ..options(&folder, 4) });
        run(&mut MatrixTask::new(), &first).1.unwrap();
        let longer = TrainOptions { schedule: options(&folder, 6).schedule, ..second };
        let error = run(&mut MatrixTask::new(), &longer).1.unwrap_err().to_string();
        error.split_once("different settings: ").expect(&error).1.to_owned()
    };
    let sgd = |momentum| OptimizerOptions::new(Sgd { momentum, ..Sgd::default() });
    assert_eq!(
        change(OptimizerOptions::default(), sgd(0.9)),
        "settings.optimizer.name changed from adamw to sgd"
    );
    assert_eq!(
        change(sgd(0.9), OptimizerOptions::default()),
        "settings.optimizer.name changed from sgd to adamw"
    );
    assert_eq!(change(sgd(0.9), sgd(0.8)), "settings.optimizer.momentum changed from 0.9 to 0.8");
}

#[test]
fn f16_overflows_lower_the_loss_scale_and_do_not_end_the_run() {
    let (_dir, folder) = folder();
    let mut options = options(&folder, 12);
    options.tape.precision = Precision::F16;
    options.max_skipped_steps = 2;
    // With the loss scale of 65536, the gradient of the product overflows in f16.
    let batches = Arc::new(RowSource { nan_items: Vec::new(), scale: 100.0 });
    run(&mut MatrixTask { batches, ..MatrixTask::new() }, &options).1.unwrap();
    let progress = &state(&folder, 12).meta["progress"];
    let (scale, skipped) =
        (progress["loss_scale"]["value"].as_f64().unwrap(), progress["skipped"].as_u64().unwrap());
    assert!((1..12).contains(&skipped) && scale == 65536.0 / 2f64.powi(skipped as i32), "{progress}");
    assert_eq!(progress["skipped_in_a_row"], 0);
}

/// The resident memory of this process, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

/// The task computes almost nothing, so that this measures the engine: less than 1 ms per step, and no growth of memory.
#[test]
fn the_engine_has_a_small_overhead_and_constant_memory() {
    let (_dir, folder) = folder();
    let mut options = options(&folder, 5000);
    (options.save_interval, options.log_interval) = (500, 1);
    let mut last = Instant::now();
    let (mut times, mut memory) = (Vec::new(), Vec::new());
    train(&mut MatrixTask::new(), &options, &mut |event| {
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
    println!("{median:?} per step; resident {memory:?}");
    assert!(median < Duration::from_millis(1), "{median:?} per step");
    assert!(memory[9] < memory[1] + (4 << 20), "{memory:?}");
}

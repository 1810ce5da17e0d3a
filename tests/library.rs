//! The library without the command line: training under supervision, killed and resumed, evaluated, released, exported, planned, served.

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc::channel,
    time::Duration,
};

use tiny_cats::{
    checkpoint::{self, WeightsSelection},
    data::{
        Split,
        synth::{self, SynthManifest},
    },
    evaluate::{
        ClassifierOptions, FeatureOptions, GateOptions, GeneratorOptions, ImageSource, evaluate_classifier,
        evaluate_gate, evaluate_generator,
    },
    plan::{CloudSettings, Feasibility, Prices, estimate},
    recipes::{ClassifierSettings, DitSettings, ImageCounts, Job, Prepared, Recipe, config},
    serve::{Config, Server, Shutdown},
    train::{
        Event, folder, released,
        supervise::{self, Resume, RunSelection, SupervisorOptions, Worker, supervise},
        train,
    },
};
use tiny_cats_export::{ExportOptions, Request, export};

/// The folder of the run that a process of this test trains.
const WORKER: &str = "TINY_CATS_TEST_WORKER";

/// The settings of a small generator, trained on the images in `dir`.
fn generator(dir: &Path) -> DitSettings {
    let mut settings = DitSettings {
        data: dir.join("cats"),
        steps: 12,
        size: Some("nano".into()),
        image_size: Some(16),
        save_interval: 4,
        sample_interval: 0,
        ..DitSettings::default()
    };
    settings.method.batch_size = 8;
    settings.run.no_cache = true;
    settings.run.runs_dir = dir.join("runs");
    settings.run.retry_initial = Duration::ZERO;
    settings.release.output = dir.join("released");
    settings
}

/// Trains in this process, and copies the released files. `kill_at` is a step at which the process is killed, unless the run resumes.
fn train_in(folder: &Path, settings: &impl Recipe, kill_at: Option<u64>) -> PathBuf {
    let job = Job { folder: folder.to_owned(), ..Job::default() };
    let Prepared { mut task, options, .. } = settings.prepare(&job, &mut |_| {}).unwrap();
    let mut resumed = false;
    let files = train(&mut *task, &options, &mut |event| match event {
        Event::Begin { step, .. } => resumed = step > 0,
        Event::Step(step) if !resumed && Some(step.step) == kill_at => kill_this_process(),
        _ => {}
    })
    .unwrap();
    let destinations = settings.released_paths().unwrap();
    let is_own = released::owned_by_run(folder, &destinations);
    released::publish(&files, &destinations, is_own).unwrap();
    destinations[1].clone()
}

#[cfg(unix)]
fn kill_this_process() {
    // SAFETY: this ends the process.
    unsafe { libc::raise(libc::SIGKILL) };
}

#[cfg(not(unix))]
fn kill_this_process() {
    std::process::abort();
}

/// The processes of [`a_killed_run_is_resumed_to_the_same_bytes_evaluated_planned_and_served`]. Without them, it has nothing to do.
#[test]
fn worker() {
    if let Some(folder) = std::env::var_os(WORKER).map(PathBuf::from) {
        let dir = folder.parent().unwrap().parent().unwrap();
        train_in(&folder, &generator(dir), Some(6));
    }
}

/// Trains under supervision: this test's program is started again for each training process.
fn train_supervised(dir: &Path) -> PathBuf {
    let settings = generator(dir);
    settings.validate().unwrap();
    let configuration = config::to_toml(&settings).unwrap();
    let selection = RunSelection {
        task: DitSettings::TASK,
        runs: &settings.run.runs_dir,
        id: None,
        resume: &Resume::Auto,
        configuration: &configuration,
        resumes: &|text| config::resumes(&settings, text),
    };
    let options = SupervisorOptions {
        max_time: None,
        max_retries: 1,
        retry_initial: settings.run.retry_initial,
        retry_max: settings.run.retry_max,
        processes: 1,
    };
    let command = |worker: &Worker| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["worker", "--exact"]).env(WORKER, worker.folder);
        command
    };
    let mut notes = Vec::new();
    let code = supervise(&selection, &options, &command, &mut |event| {
        if let supervise::Event::Note(note) = event {
            notes.push(note.to_owned());
        }
    });
    assert_eq!((code.unwrap(), notes.len()), (0, 1), "{notes:?}");
    assert!(notes[0].contains("resuming in"), "{notes:?}");
    let runs = folder::list(&settings.run.runs_dir).unwrap();
    assert_eq!((runs.len(), runs[0].1.step), (1, 12));
    settings.released_paths().unwrap()[1].clone()
}

/// Serves a model in this process, and returns the answer of `/v1/models`.
fn serve(model: &Path) -> String {
    let (model, _) = checkpoint::open_model(model).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let config = Config { address: ([127, 0, 0, 1], 0).into(), ..Config::default() };
        let server = Server::start(config, Some(("cats".into(), model)), None).await.unwrap();
        let address = server.address().unwrap();
        let (ready, is_ready) = channel();
        server.when_ready(move || ready.send(()).unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let client = tokio::task::spawn_blocking(move || {
            is_ready.recv().unwrap();
            let mut stream = TcpStream::connect(address).unwrap();
            stream
                .write_all(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                .unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            stop.send(()).unwrap();
            answer
        });
        let shutdown = server.run(async { stopped.await.unwrap() }).await.unwrap();
        assert_eq!(shutdown, Shutdown::Graceful);
        client.await.unwrap()
    })
}

#[test]
fn a_killed_run_is_resumed_to_the_same_bytes_evaluated_planned_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("cats");
    synth::write(&data, &SynthManifest::new(10, 24, 0).unwrap(), |_| {}).unwrap();

    let released = train_supervised(dir.path());
    let mut whole = generator(dir.path());
    whole.release.output = dir.path().join("whole");
    let expected = train_in(&dir.path().join("uninterrupted"), &whole, None);
    assert!(std::fs::read(&released).unwrap() == std::fs::read(expected).unwrap());

    let onnx = released.with_extension("onnx");
    let loaded = checkpoint::open(&released, WeightsSelection::Default).unwrap();
    let meta = loaded.describe(&Default::default()).unwrap().meta;
    export(&meta, &loaded.weights, &onnx, &ExportOptions::default()).unwrap();
    let images = ImageCounts { classes: 13, train: 1000, validation: 100, test: 100 };
    let workload = whole.workload(&images).unwrap();
    let gpu = "L4".parse().unwrap();
    let planned = estimate(&workload, &gpu, &CloudSettings::default(), &Prices::embedded()).unwrap();
    assert!(planned.verdict == Feasibility::Fits && planned.dollars().unwrap() > 0.0);

    let mut classifier = ClassifierSettings {
        data: data.clone(),
        epochs: 1,
        width: Some(4),
        image_size: Some(32),
        ..ClassifierSettings::default()
    };
    classifier.run.no_cache = true;
    classifier.release.output = dir.path().join("released/classifier.pt");
    let classifier = train_in(&dir.path().join("classifier"), &classifier, None);
    let options = ClassifierOptions { model: Some(classifier.clone()), ..ClassifierOptions::new(&data) };
    let report = evaluate_classifier(&options, &mut |_| {}).unwrap();
    assert!(report.to_string().contains("accuracy"), "{report}");

    let request = Request { steps: Some(1), ..Request::default() };
    let source = ImageSource::Model { path: Some(onnx.clone()), samples: Some(26), request: request.clone() };
    let options = GeneratorOptions {
        split: Some(Split::Train),
        features: FeatureOptions { path: Some(classifier.clone()), ..FeatureOptions::default() },
        classifier: Some(classifier.clone()),
        ..GeneratorOptions::new(&data, source)
    };
    assert!(evaluate_generator(&options, &mut |_| {}).unwrap().to_string().contains("distance"));
    let options = GateOptions {
        model: Some(onnx.clone()),
        classifier: Some(classifier),
        count: 2,
        request,
        ..GateOptions::new(&data)
    };
    // Twelve steps do not make a generator.
    assert!(evaluate_gate(&options, &mut |_| {}).unwrap().failures().count() > 0);

    let answer = serve(&onnx);
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("cats"), "{answer}");
}

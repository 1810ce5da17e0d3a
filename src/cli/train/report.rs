//! Reports a training run: by a progress bar or lines, a log, plots, and trackers.

mod plot_thread;

use std::{
    io::IsTerminal,
    path::Path,
    time::{Duration, Instant},
};

use candle_core::Device;
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use plot_thread::{PlotRequest, PlotThread};

use crate::{
    cli::logging,
    memory,
    recipes::LogFormat,
    track::{RunInfo, Tracker, flatten_settings},
    train::{
        Event, Sample, Step,
        folder::{LOG, Status},
        metrics::LOSS,
    },
};

/// The minimum time between two queries of the memory in use.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// The minimum share of time waiting for data that is reported.
const MIN_WAIT_SHARE: f64 = 0.01;
/// The minimum time between plots of the loss curve at steps without an evaluation.
const CURVE_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum lines that are buffered until the log of the run exists.
const MAX_EARLY_LINES: usize = 100;

/// The options of a [`Reporter`].
#[derive(Default)]
pub struct ReportOptions {
    /// Total number of steps.
    pub steps: u64,
    /// The task, which is the name of its subcommand.
    pub task: &'static str,
    /// Steps between lines.
    pub log_interval: u64,
    /// The trackers to report to.
    pub trackers: Vec<Box<dyn Tracker>>,
    /// The format of the log in the run's folder.
    pub log_format: LogFormat,
    /// The device, if it is a GPU whose memory is reported.
    pub device: Option<Device>,
}

/// The flag that sets a field of the schedule of a task; the field itself if there is none. If the field has another unit than the flag,
/// both are named.
fn schedule_flag<'a>(task: &str, field: &'a str) -> &'a str {
    match (field, task) {
        ("steps", "dit") => "--steps",
        ("steps", "classifier") => "steps (--epochs)",
        ("warmup", "dit") => "--warmup-steps",
        ("warmup", "classifier") => "steps of the warm-up (--warmup-epochs)",
        // --lr-scaling scales both rates.
        ("peak", _) => "learning rate (--lr, --lr-scaling)",
        ("floor", _) => "learning rate at the end (--min-lr)",
        ("shape", _) => "--lr-schedule",
        _ => field,
    }
}

/// Reports a run, in constant memory.
pub struct Reporter {
    options: ReportOptions,
    bar: ProgressBar,
    /// True if the progress bar is on a terminal.
    is_terminal: bool,
    /// The totals of the steps since the last line.
    window: StepWindow,
    memory: Option<(Instant, String)>,
    /// Lines that were printed before the log of the run exists; `None` afterwards.
    early_lines: Option<Vec<String>>,
    plots: Option<PlotThread>,
    /// The start time of training in this process, and the step that it started after.
    started: Option<(Instant, u64)>,
    /// The time of the last request for plots.
    last_plot: Instant,
    is_finished: bool,
}

/// Totals of the steps between two lines.
#[derive(Clone, Copy, Debug, Default)]
struct StepWindow {
    items: u64,
    seconds: f64,
    waited: f64,
    skipped: u64,
}

impl StepWindow {
    fn add(&mut self, step: &Step) {
        self.items += step.items;
        self.seconds += step.seconds;
        self.waited += step.waited;
        self.skipped += u64::from(step.skipped);
    }

    fn speed(&self) -> f64 {
        if self.seconds > 0.0 { self.items as f64 / self.seconds } else { 0.0 }
    }

    /// The share of time waiting for data and the number of skipped steps; empty if there is nothing to report.
    fn notes(&self) -> String {
        let mut notes = String::new();
        let share = self.waited / self.seconds;
        if share > MIN_WAIT_SHARE {
            notes += &format!("  {:.0} % waiting for data", 100.0 * share);
        }
        if self.skipped > 0 {
            notes += &format!("  {} skipped", self.skipped);
        }
        notes
    }
}

impl Reporter {
    /// Creates a reporter with a progress bar on a terminal, or with a line every [`log_interval`](ReportOptions::log_interval) steps
    /// elsewhere.
    ///
    /// # Errors
    /// Those of the progress bar.
    pub fn new(options: ReportOptions) -> anyhow::Result<Self> {
        let style = "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed{prefix}";
        let bar = ProgressBar::new(options.steps).with_style(ProgressStyle::with_template(style)?);
        let is_terminal = std::io::stderr().is_terminal();
        if is_terminal {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        logging::set_progress_bar(&bar);
        let (window, early_lines) = (StepWindow::default(), Some(Vec::new()));
        let (memory, plots, last_plot) = (None, None, Instant::now());
        let (started, is_finished) = (None, false);
        Ok(Self {
            options,
            bar,
            is_terminal,
            window,
            memory,
            early_lines,
            plots,
            started,
            last_plot,
            is_finished,
        })
    }

    /// Reports an event.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Begin { folder, settings, step, steps, parameters } => {
                self.begin(folder, step);
                let folder_name = folder.display();
                self.print(&format!("{folder_name}: {parameters} parameters, steps {step} to {steps}"));
                self.bar.set_length(steps);
                self.bar.set_position(step);
                self.options.steps = steps;
                self.started = Some((Instant::now(), step));
                let (id, settings) = (run_name(folder), flatten_settings(settings));
                let run = RunInfo { id: &id, folder, step, settings: &settings };
                self.options.trackers.iter_mut().for_each(|tracker| tracker.begin(&run));
            }
            Event::Step(step) => self.step(step),
            Event::Evaluated { step, scores, best } => {
                let best = if best { ", the best so far" } else { "" };
                let texts: Vec<String> =
                    scores.iter().map(|s| format!("{} {:.4}", s.name, s.value)).collect();
                self.print(&format!("step {step}  {}{best}", texts.join("  ")));
                let values: Vec<(&str, f64)> = scores.iter().map(|s| (s.name, s.value)).collect();
                self.track(step, &values);
                self.request_plots(PlotRequest { curve: true, samples: None });
            }
            Event::Sampled { step, sample, path } => {
                self.print(&format!("wrote {}", path.display()));
                // Trackers and plots show images only; other samples are files.
                let Sample::Image(image) = sample else { return };
                let trackers = self.options.trackers.iter_mut();
                trackers.for_each(|tracker| tracker.image(step, "samples", image));
                self.request_plots(PlotRequest { curve: true, samples: Some(step) });
            }
            Event::Wrote(path) => self.print(&format!("wrote {}", path.display())),
            Event::ScheduleChanged { field, change } => {
                let field = schedule_flag(self.options.task, field);
                self.note(&format!("the schedule changed: {field} {change}"));
            }
            Event::Note(text) => self.note(text),
        }
    }

    fn note(&mut self, text: &str) {
        logging::eprint_and_log(text);
        self.buffer_early_line(text);
    }

    /// Ends the report with this status. A reporter that is dropped without this call reports a failed run.
    pub fn finish(mut self, status: Status) {
        self.end(status);
    }

    /// Opens the log in the run's folder.
    fn begin(&mut self, folder: &Path, step: u64) {
        logging::add_run_file(&folder.join(LOG), self.options.log_format);
        self.plots = PlotThread::start(folder, &run_name(folder), step);
        let action = if step == 0 { "starting run" } else { "resuming run" };
        self.early_lines.take().into_iter().flatten().for_each(|line| logging::log_to_run(&line));
        logging::log(&format!("{action} {} with tiny-cats {}", run_name(folder), env!("CARGO_PKG_VERSION")));
    }

    fn step(&mut self, now: &Step) {
        self.window.add(now);
        let Step { step, mean_loss, rate, norm, .. } = *now;
        let is_logged = step.is_multiple_of(self.options.log_interval.max(1)) || step == self.options.steps;
        if self.is_terminal {
            let speed = if now.seconds > 0.0 { now.items as f64 / now.seconds } else { 0.0 };
            let memory = self.memory();
            self.bar.set_position(step);
            self.bar.set_prefix(self.remaining_time(step));
            self.bar
                .set_message(format!("mean loss {mean_loss:.4}  lr {rate:.2e}  {speed:.1} images/s{memory}"));
        }
        if is_logged {
            let (speed, notes, memory) = (self.window.speed(), self.window.notes(), self.memory());
            let line = format!(
                "step {step}  mean loss {mean_loss:.4}  lr {rate:.2e}  gradient {norm:.3}  {speed:.1} images/s{memory}{notes}"
            );
            if self.is_terminal {
                logging::log(&line);
            } else {
                self.print(&line);
            }
            self.window = StepWindow::default();
            let values =
                [(LOSS, now.loss), ("lr", rate), ("gradient_norm", norm), ("items_per_second", speed)];
            self.track(step, &values);
            if self.last_plot.elapsed() > CURVE_INTERVAL {
                self.request_plots(PlotRequest { curve: true, samples: None });
            }
        }
    }

    fn request_plots(&mut self, request: PlotRequest) {
        self.last_plot = Instant::now();
        if let Some(plots) = &self.plots {
            plots.request_plots(request);
        }
    }

    fn track(&mut self, step: u64, values: &[(&str, f64)]) {
        self.options.trackers.iter_mut().for_each(|tracker| tracker.scalars(step, values));
    }

    fn print(&mut self, line: &str) {
        logging::print_and_log(line);
        self.buffer_early_line(line);
    }

    fn buffer_early_line(&mut self, line: &str) {
        if let Some(early_lines) =
            self.early_lines.as_mut().filter(|early_lines| early_lines.len() < MAX_EARLY_LINES)
        {
            early_lines.push(line.to_owned());
        }
    }

    /// The memory in use, to append to a line; empty if the system does not report it.
    fn memory(&mut self) -> String {
        let now = Instant::now();
        if let Some((time, text)) = &self.memory
            && now.duration_since(*time) < MEMORY_INTERVAL
        {
            return text.clone();
        }
        let process = memory::process().map(|bytes| format!("  {}", format_size(bytes)));
        let gpu = self.options.device.as_ref().and_then(memory::device);
        let gpu = gpu.map(|gpu| format!("  GPU {} of {}", format_size(gpu.reserved), format_size(gpu.total)));
        let text = process.unwrap_or_default() + &gpu.unwrap_or_default();
        self.memory = Some((now, text.clone()));
        text
    }

    /// The remaining time at the average speed of this process, including evaluations and saving.
    fn remaining_time(&self, step: u64) -> String {
        let Some((started, first_step)) = self.started else { return String::new() };
        let (done, remaining) = (step.saturating_sub(first_step), self.options.steps.saturating_sub(step));
        let seconds = started.elapsed().as_secs_f64() * remaining as f64 / done.max(1) as f64;
        let remaining_time = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        format!(", {:#} left", HumanDuration(remaining_time))
    }

    fn end(&mut self, status: Status) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        self.bar.finish_and_clear();
        if let Some(plots) = self.plots.take() {
            plots.finish();
        }
        self.options.trackers.iter_mut().for_each(|tracker| tracker.end(status));
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.end(Status::Failed);
    }
}

/// The name of a run: the name of its folder, with relative paths and links resolved.
fn run_name(folder: &Path) -> String {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    absolute.file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

fn format_size(bytes: u64) -> String {
    match bytes as f64 / (1 << 20) as f64 {
        mib if mib < 1000.0 => format!("{mib:.0} MiB"),
        mib => format!("{:.1} GiB", mib / 1024.0),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Write,
        sync::{Arc, Mutex},
    };

    use image::RgbImage;

    use super::*;
    use crate::train::Score;

    /// Records the calls of a tracker as text.
    #[derive(Clone, Default)]
    struct RecordingTracker(Arc<Mutex<Vec<String>>>);

    impl RecordingTracker {
        fn add(&self, text: String) {
            self.0.lock().unwrap().push(text);
        }
    }

    impl Tracker for RecordingTracker {
        fn begin(&mut self, run: &RunInfo) {
            self.add(format!("begin {} {} {:?}", run.id, run.step, run.settings));
        }

        fn scalars(&mut self, step: u64, values: &[(&str, f64)]) {
            self.add(format!("{step} {}", values.iter().map(|v| v.0).collect::<Vec<_>>().join(" ")));
        }

        fn image(&mut self, step: u64, name: &str, _image: &RgbImage) {
            self.add(format!("{step} image {name}"));
        }

        fn end(&mut self, status: Status) {
            self.add(format!("end {status:?}"));
        }
    }

    fn step(step: u64, loss: f64) -> Step {
        let (items, seconds, waited) = (8, 0.5, 0.1);
        let mean_loss = 1.5;
        Step {
            step,
            loss,
            mean_loss,
            rate: 1e-3,
            norm: 1.0,
            skipped: !loss.is_finite(),
            items,
            seconds,
            waited,
        }
    }

    fn begin(reporter: &mut Reporter, folder: &Path, first_step: u64, steps: u64) {
        let settings = serde_json::json!({"task": {"size": "nano"}});
        reporter.observe(Event::Begin {
            folder,
            settings: &settings,
            step: first_step,
            steps,
            parameters: 5,
        });
    }

    #[test]
    fn every_field_of_a_schedule_has_a_flag() {
        let schedule = crate::train::Schedule::new(Default::default(), 1e-3, 1e-6, None, 0, 10).unwrap();
        let fields = serde_json::to_value(schedule).unwrap();
        for field in fields.as_object().unwrap().keys() {
            for task in ["dit", "classifier"] {
                let flag = schedule_flag(task, field);
                assert!(flag.contains("--"), "{task} {field}: {flag}");
            }
        }
        assert_eq!(schedule_flag("dit", "steps"), "--steps");
    }

    /// Logging is global to the process, so a single test covers it.
    #[test]
    fn every_line_is_in_each_log_once_and_trackers_get_the_same_values() {
        logging::init();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("20261123-224501-dit-7f3a");
        fs::create_dir(&folder).unwrap();
        let log_file = dir.path().join("own.log");
        let calls = RecordingTracker::default();
        logging::add_file(&log_file, LogFormat::Json).unwrap();
        let (steps, log_interval, format) = (200, 100, LogFormat::Text);
        let trackers: Vec<Box<dyn Tracker>> = vec![Box::new(calls.clone())];
        let options = ReportOptions {
            steps,
            task: "dit",
            log_interval,
            trackers,
            log_format: format,
            device: Some(Device::Cpu),
        };
        let mut reporter = Reporter::new(options).unwrap();
        reporter.observe(Event::Note("a note before the folder is known"));
        begin(&mut reporter, &folder, 0, 200);
        let metrics = "{\"step\":100,\"loss\":2.0}\n{\"step\":100,\"validation_accuracy\":0.5}\n";
        fs::write(folder.join("metrics.jsonl"), metrics).unwrap();
        for n in 1..=200 {
            reporter.observe(Event::Step(&step(n, if n == 150 { f64::NAN } else { 2.0 })));
        }
        let scores = [Score { name: "validation_accuracy", value: 0.5, higher_is_better: true }];
        reporter.observe(Event::Evaluated { step: 200, scores: &scores, best: true });
        let (sample, path) = (Sample::Image(RgbImage::new(8, 8)), folder.join("x.png"));
        reporter.observe(Event::Sampled { step: 200, sample: &sample, path: &path });
        tracing::warn!("a warning");
        reporter.finish(Status::Stopped);

        let expected_lines = [
            "a note before the folder is known",
            "5 parameters, steps 0 to 200",
            "step 100  mean loss 1.5000  lr 1.00e-3  gradient 1.000  16.0 images/s",
            "20 % waiting for data  1 skipped",
            "step 200  validation_accuracy 0.5000, the best so far",
            "a warning",
        ];
        let (text, json) =
            (fs::read_to_string(folder.join("training.log")).unwrap(), fs::read_to_string(log_file).unwrap());
        for line in expected_lines {
            assert_eq!(text.matches(line).count(), 1, "{line} in\n{text}");
            assert_eq!(json.matches(line).count(), 1, "{line} in\n{json}");
        }
        // Each line has a time, a level and a text.
        for line in text.lines() {
            let (time, remaining) = line.split_once(' ').unwrap();
            assert!(
                humantime::parse_rfc3339(time).is_ok() && remaining.trim_start().starts_with(['I', 'W']),
                "{line}"
            );
        }
        for line in json.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(
                line["message"].is_string() && line["level"].is_string() && line["timestamp"].is_string()
            );
        }
        let calls = calls.0.lock().unwrap();
        let expected = [
            "begin 20261123-224501-dit-7f3a 0 [(\"task.size\", \"nano\")]",
            "100 loss lr gradient_norm items_per_second",
            "200 loss lr gradient_norm items_per_second",
            "200 validation_accuracy",
            "200 image samples",
            "end Stopped",
        ];
        assert_eq!(*calls, expected);
        assert!(folder.join("loss.png").is_file());

        #[cfg(target_os = "linux")]
        {
            // A full disk does not stop the run.
            logging::add_file(Path::new("/dev/full"), format).unwrap();
            (0..3).for_each(|_| logging::print_and_log("to a full disk"));
            let text = fs::read_to_string(folder.join("training.log")).unwrap();
            assert_eq!(text.matches("to a full disk").count(), 3);
        }
    }

    #[test]
    fn a_reporter_uses_constant_memory_and_does_not_wait_for_plots() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = fs::File::create(dir.path().join("metrics.jsonl")).unwrap();
        let mut reporter = Reporter::new(ReportOptions {
            steps: 1 << 40,
            log_interval: 1 << 39,
            ..ReportOptions::default()
        })
        .unwrap();
        begin(&mut reporter, dir.path(), 0, 1 << 40);
        let mut run = |from: u64| {
            for n in from..from + 500_000 {
                reporter.observe(Event::Step(&step(n, 1.0)));
                if n % 100 == 0 {
                    writeln!(metrics, "{{\"step\":{n},\"loss\":1.0}}").unwrap();
                    reporter.request_plots(PlotRequest { curve: true, samples: Some(n) });
                }
            }
            memory::process()
        };
        let (before, after) = (run(1), run(500_001));
        if let (Some(before), Some(after)) = (before, after) {
            assert!(after < before + (24 << 20), "{before} bytes, then {after}");
        }
        drop(reporter);
        assert!(dir.path().join("loss.png").is_file());
    }
}

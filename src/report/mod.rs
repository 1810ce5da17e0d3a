//! Reports of training runs: lines and the state of a progress bar, plots, and trackers.
//!
//! A [`Reporter`] turns the [events](Event) of a run into lines for a [`Progress`], plots in the run's folder, and values for trackers.

mod plot_thread;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use candle_core::Device;
use plot_thread::{PlotRequest, PlotThread};

use crate::{
    memory,
    track::{RunInfo, Tracker, flatten_settings},
    train::{Event, Sample, Step, folder::Status, metrics::LOSS},
};

/// The minimum time between two queries of the memory in use.
const MEMORY_INTERVAL: Duration = Duration::from_secs(1);
/// The minimum share of time waiting for data that is reported.
const MIN_WAIT_SHARE: f64 = 0.01;
/// The minimum time between plots of the loss curve at steps without an evaluation.
const CURVE_INTERVAL: Duration = Duration::from_secs(60);

/// A display of a report, such as a terminal, a log or a window. By default, nothing is shown.
pub trait Progress: Send {
    /// A run starts or resumes in `folder`, under this name.
    fn begin(&mut self, _folder: &Path, _name: &str, _step: u64, _steps: u64) {}

    /// A line of the report.
    fn line(&mut self, _line: &str) {}

    /// A line about the last steps. A display that is [live](Self::is_live) need not show it.
    fn step_line(&mut self, line: &str) {
        self.line(line);
    }

    /// A message that the user may not expect.
    fn note(&mut self, line: &str) {
        self.line(line);
    }

    /// True if [`status`](Self::status) is shown.
    fn is_live(&self) -> bool {
        false
    }

    /// The state after a step, for a display that is [live](Self::is_live). `remaining` is the expected time to the end of the run.
    fn status(&mut self, _step: u64, _message: &str, _remaining: Option<Duration>) {}

    /// The run has ended or stopped.
    fn end(&mut self) {}
}

/// Shows nothing.
impl Progress for () {}

/// The options of a [`Reporter`].
#[derive(Default)]
pub struct ReportOptions {
    /// Total number of steps.
    pub steps: u64,
    /// Steps between lines.
    pub log_interval: u64,
    /// The trackers to report to.
    pub trackers: Vec<Box<dyn Tracker>>,
    /// The device, if it is a GPU whose memory is reported.
    pub device: Option<Device>,
}

/// Reports a run, in constant memory.
pub struct Reporter {
    options: ReportOptions,
    progress: Box<dyn Progress>,
    /// The totals of the steps since the last line.
    window: StepWindow,
    memory: Option<(Instant, String)>,
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
    /// Creates a reporter to `progress`.
    pub fn new(options: ReportOptions, progress: impl Progress + 'static) -> Self {
        Self {
            options,
            progress: Box::new(progress),
            window: StepWindow::default(),
            memory: None,
            plots: None,
            started: None,
            last_plot: Instant::now(),
            is_finished: false,
        }
    }

    /// Reports an event.
    pub fn observe(&mut self, event: Event) {
        match event {
            Event::Begin { folder, settings, step, steps, parameters } => {
                let name = run_name(folder);
                self.progress.begin(folder, &name, step, steps);
                self.plots = PlotThread::start(folder, &name, step);
                let folder_name = folder.display();
                self.progress
                    .line(&format!("{folder_name}: {parameters} parameters, steps {step} to {steps}"));
                self.options.steps = steps;
                self.started = Some((Instant::now(), step));
                let settings = flatten_settings(settings);
                let run = RunInfo { id: &name, folder, step, settings: &settings };
                self.options.trackers.iter_mut().for_each(|tracker| tracker.begin(&run));
            }
            Event::Step(step) => self.step(step),
            Event::Evaluated { step, scores, best } => {
                let best = if best { ", the best so far" } else { "" };
                let texts: Vec<String> =
                    scores.iter().map(|s| format!("{} {:.4}", s.name, s.value)).collect();
                self.progress.line(&format!("step {step}  {}{best}", texts.join("  ")));
                let values: Vec<(&str, f64)> = scores.iter().map(|s| (s.name, s.value)).collect();
                self.track(step, &values);
                self.request_plots(PlotRequest { curve: true, samples: None });
            }
            Event::Sampled { step, sample, path } => {
                self.progress.line(&format!("wrote {}", path.display()));
                // Trackers and plots show images only; other samples are files.
                let Sample::Image(image) = sample else { return };
                let trackers = self.options.trackers.iter_mut();
                trackers.for_each(|tracker| tracker.image(step, "samples", image));
                self.request_plots(PlotRequest { curve: true, samples: Some(step) });
            }
            Event::Wrote(path) => self.progress.line(&format!("wrote {}", path.display())),
            Event::ScheduleChanged { field, change } => {
                self.progress.note(&format!("the schedule changed: {field} {change}"));
            }
            Event::Note(text) => self.progress.note(text),
        }
    }

    /// Ends the report with this status. A reporter that is dropped without this call reports a failed run.
    pub fn finish(mut self, status: Status) {
        self.end(status);
    }

    fn step(&mut self, now: &Step) {
        self.window.add(now);
        let Step { step, mean_loss, rate, norm, .. } = *now;
        let is_logged = step.is_multiple_of(self.options.log_interval.max(1)) || step == self.options.steps;
        if self.progress.is_live() {
            let speed = if now.seconds > 0.0 { now.items as f64 / now.seconds } else { 0.0 };
            let memory = self.memory();
            let message = format!("mean loss {mean_loss:.4}  lr {rate:.2e}  {speed:.1} images/s{memory}");
            self.progress.status(step, &message, self.remaining_time(step));
        }
        if is_logged {
            let (speed, notes, memory) = (self.window.speed(), self.window.notes(), self.memory());
            let line = format!(
                "step {step}  mean loss {mean_loss:.4}  lr {rate:.2e}  gradient {norm:.3}  {speed:.1} images/s{memory}{notes}"
            );
            self.progress.step_line(&line);
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
    fn remaining_time(&self, step: u64) -> Option<Duration> {
        let (started, first_step) = self.started?;
        let (done, remaining) = (step.saturating_sub(first_step), self.options.steps.saturating_sub(step));
        let seconds = started.elapsed().as_secs_f64() * remaining as f64 / done.max(1) as f64;
        Some(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn end(&mut self, status: Status) {
        if std::mem::replace(&mut self.is_finished, true) {
            return;
        }
        self.progress.end();
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

    /// Records lines.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<String>>>);

    impl Progress for Lines {
        fn line(&mut self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
    }

    #[test]
    fn every_event_is_reported_once_and_trackers_get_the_same_values() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("20261123-224501-dit-7f3a");
        fs::create_dir(&folder).unwrap();
        let (calls, lines) = (RecordingTracker::default(), Lines::default());
        let trackers: Vec<Box<dyn Tracker>> = vec![Box::new(calls.clone())];
        let options = ReportOptions { steps: 200, log_interval: 100, trackers, device: Some(Device::Cpu) };
        let mut reporter = Reporter::new(options, lines.clone());
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
        reporter.finish(Status::Stopped);
        let text = lines.0.lock().unwrap().join("\n");
        for line in [
            "a note before the folder is known",
            "5 parameters, steps 0 to 200",
            "step 100  mean loss 1.5000  lr 1.00e-3  gradient 1.000  16.0 images/s",
            "20 % waiting for data  1 skipped",
            "step 200  validation_accuracy 0.5000, the best so far",
        ] {
            assert_eq!(text.matches(line).count(), 1, "{line} in\n{text}");
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
    }

    #[test]
    fn a_reporter_uses_constant_memory_and_does_not_wait_for_plots() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = fs::File::create(dir.path().join("metrics.jsonl")).unwrap();
        let options = ReportOptions { steps: 1 << 40, log_interval: 1 << 39, ..ReportOptions::default() };
        let mut reporter = Reporter::new(options, ());
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

//! The display of a training: a progress bar on a terminal, or lines, and the log in the run's folder.

use std::{io::IsTerminal, path::Path, time::Duration};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};

use crate::{cli::logging, recipes::LogFormat, report::Progress, train::folder::LOG};

/// Maximum lines that are buffered until the log of the run exists.
const MAX_EARLY_LINES: usize = 100;

/// Shows the report of a run on the terminal, and logs it.
pub struct Terminal {
    bar: ProgressBar,
    /// True if the progress bar is on a terminal.
    is_terminal: bool,
    /// The format of the log in the run's folder.
    log_format: LogFormat,
    /// Lines that were printed before the log of the run exists; `None` afterwards.
    early_lines: Option<Vec<String>>,
}

impl Terminal {
    /// Makes the display of a run of `steps` steps.
    ///
    /// # Errors
    /// Those of the progress bar.
    pub fn new(steps: u64, log_format: LogFormat) -> anyhow::Result<Self> {
        let style = "{bar:30} {pos}/{len}  {msg}  {elapsed} elapsed{prefix}";
        let bar = ProgressBar::new(steps).with_style(ProgressStyle::with_template(style)?);
        let is_terminal = std::io::stderr().is_terminal();
        if is_terminal {
            bar.enable_steady_tick(Duration::from_millis(500));
        }
        logging::set_progress_bar(&bar);
        Ok(Self { bar, is_terminal, log_format, early_lines: Some(Vec::new()) })
    }

    fn buffer_early_line(&mut self, line: &str) {
        if let Some(early_lines) =
            self.early_lines.as_mut().filter(|early_lines| early_lines.len() < MAX_EARLY_LINES)
        {
            early_lines.push(line.to_owned());
        }
    }
}

impl Progress for Terminal {
    fn begin(&mut self, folder: &Path, name: &str, step: u64, steps: u64) {
        logging::add_run_file(&folder.join(LOG), self.log_format);
        let action = if step == 0 { "starting run" } else { "resuming run" };
        self.early_lines.take().into_iter().flatten().for_each(|line| logging::log_to_run(&line));
        logging::log(&format!("{action} {name} with tiny-cats {}", env!("CARGO_PKG_VERSION")));
        self.bar.set_length(steps);
        self.bar.set_position(step);
    }

    fn line(&mut self, line: &str) {
        logging::print_and_log(line);
        self.buffer_early_line(line);
    }

    fn step_line(&mut self, line: &str) {
        if self.is_terminal {
            logging::log(line);
        } else {
            self.line(line);
        }
    }

    fn note(&mut self, line: &str) {
        logging::eprint_and_log(line);
        self.buffer_early_line(line);
    }

    fn is_live(&self) -> bool {
        self.is_terminal
    }

    fn status(&mut self, step: u64, message: &str, remaining: Option<Duration>) {
        self.bar.set_position(step);
        self.bar.set_prefix(
            remaining.map_or_else(String::new, |time| format!(", {:#} left", HumanDuration(time))),
        );
        self.bar.set_message(message.to_owned());
    }

    fn end(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Logging is global to the process, so a single test covers it.
    #[test]
    fn every_line_is_in_each_log_once() {
        logging::init();
        let dir = tempfile::tempdir().unwrap();
        let log_file = dir.path().join("own.log");
        logging::add_file(&log_file, LogFormat::Json).unwrap();
        let mut terminal = Terminal::new(200, LogFormat::Text).unwrap();
        terminal.note("a note before the folder is known");
        terminal.begin(dir.path(), "the-run", 0, 200);
        terminal.line("a line");
        terminal.step_line("a line of steps");
        tracing::warn!("a warning");
        terminal.end();
        let expected_lines =
            ["a note before the folder is known", "starting run the-run", "a line of steps", "a warning"];
        let (text, json) =
            (fs::read_to_string(dir.path().join(LOG)).unwrap(), fs::read_to_string(log_file).unwrap());
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
        #[cfg(target_os = "linux")]
        {
            // A full disk does not stop the run.
            logging::add_file(Path::new("/dev/full"), LogFormat::Text).unwrap();
            (0..3).for_each(|_| logging::print_and_log("to a full disk"));
            let text = fs::read_to_string(dir.path().join(LOG)).unwrap();
            assert_eq!(text.matches("to a full disk").count(), 3);
        }
    }
}

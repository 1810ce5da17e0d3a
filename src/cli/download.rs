//! `tiny-cats data download`: downloads photographs to train on.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::download::{Archive, Event, OXFORD_PETS, OXFORD_PETS_URL, RetryPolicy, download};

/// The arguments of `tiny-cats data download`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Folder for the archives and for the folders images and annotations
    #[arg(default_value = "data/oxford-pets")]
    dir: PathBuf,
    /// Base URL of images.tar.gz and annotations.tar.gz, such as a mirror
    #[arg(long, value_name = "URL", default_value = OXFORD_PETS_URL)]
    from: String,
}

/// The attribution and the license of the data set.
const NOTICE: &str = "\
The Oxford-IIIT Pet Dataset, https://www.robots.ox.ac.uk/~vgg/data/pets
by O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar (Cats and Dogs, CVPR 2012)
License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0. Its owners keep the copyright of the photographs.";

/// Downloads and unpacks the data set.
///
/// # Errors
/// If the files cannot be downloaded, differ from the pinned checksums, or cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    eprintln!("{NOTICE}");
    let mut report = Report::new()?;
    download(&OXFORD_PETS, &args.from, &args.dir, &RetryPolicy::default(), &mut |archive, event| {
        report.on_event(archive, &event);
    })?;
    let dir = args.dir.display();
    println!("{dir} is complete; its .tar.gz files are no longer needed");
    println!("next: tiny-cats data prepare {dir} data/cat-heads --crop head --size 128");
    Ok(())
}

/// The interval between progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Reports progress as a bar on a terminal, or as lines at intervals.
struct Report {
    bar: ProgressBar,
    bounded_style: ProgressStyle,
    unbounded_style: ProgressStyle,
    /// The subject of the bar: an archive, and true if it is being unpacked.
    current: Option<(&'static str, bool)>,
    next_line: Instant,
}

impl Report {
    fn new() -> anyhow::Result<Self> {
        let bounded_style =
            "{msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        let unbounded_style = "{msg} {spinner} {decimal_bytes}, {decimal_bytes_per_sec}";
        Ok(Self {
            bar: ProgressBar::no_length(),
            bounded_style: ProgressStyle::with_template(bounded_style)?,
            unbounded_style: ProgressStyle::with_template(unbounded_style)?,
            current: None,
            next_line: Instant::now(),
        })
    }

    fn on_event(&mut self, archive: &Archive, event: &Event) {
        let name = archive.name;
        match event {
            Event::Fetching(done, total) => self.set_position(name, false, *done, *total),
            Event::Unpacking(done, total) => self.set_position(name, true, *done, Some(*total)),
            Event::Retry(reason, wait) => {
                self.print_line(&format!("{name}.tar.gz: {reason}; retrying in {:.0} s", wait.as_secs_f64()));
            }
            Event::Ready { files, bytes, was_complete } => {
                let status = if *was_complete { "already unpacked" } else { "unpacked" };
                self.print_line(&format!("{name}: {status}, {files} files of {:.1} MB", *bytes as f64 / 1e6));
            }
        }
    }

    fn set_position(&mut self, name: &'static str, unpacking: bool, done: u64, total: Option<u64>) {
        let action = if unpacking { "unpacking" } else { "fetching" };
        if self.current.replace((name, unpacking)) != Some((name, unpacking)) {
            let (bar, style) = match total {
                Some(total) => (ProgressBar::new(total), &self.bounded_style),
                None => (ProgressBar::no_length(), &self.unbounded_style),
            };
            let message = format!("{action} {name}.tar.gz");
            self.bar = bar.with_style(style.clone()).with_message(message).with_position(done);
            // Bytes of earlier downloads do not count toward the speed.
            self.bar.reset_eta();
            self.next_line = Instant::now();
        }
        self.bar.set_position(done);
        if self.bar.is_hidden() && Instant::now() >= self.next_line {
            self.next_line = Instant::now() + LINE_INTERVAL;
            let total_text = total.map_or(String::new(), |total| format!(" of {:.1}", total as f64 / 1e6));
            eprintln!("{action} {name}.tar.gz: {:.1}{total_text} MB", done as f64 / 1e6);
        }
    }

    /// Prints a line instead of the bar; the next position starts a new bar.
    fn print_line(&mut self, line: &str) {
        self.current = None;
        self.bar.finish_and_clear();
        eprintln!("{line}");
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

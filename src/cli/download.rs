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
    /// Folder for the archives, and for the folders images and annotations
    #[arg(default_value = "data/oxford-pets")]
    dir: PathBuf,
    /// Mirror: a URL that has images.tar.gz and annotations.tar.gz below it
    #[arg(long, value_name = "URL", default_value = OXFORD_PETS_URL)]
    from: String,
}

const NOTICE: &str = "\
The Oxford-IIIT Pet Dataset, https://www.robots.ox.ac.uk/~vgg/data/pets
by O. M. Parkhi, A. Vedaldi, A. Zisserman and C. V. Jawahar (Cats and Dogs, CVPR 2012)
Licence: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0. Its owners keep the copyright of the photographs.";

/// Downloads and unpacks the data set.
///
/// # Errors
/// If the files cannot be downloaded, differ from the pinned checksums, or cannot be written.
pub fn run(args: &Args) -> anyhow::Result<()> {
    eprintln!("{NOTICE}");
    let mut report = Report::new()?;
    download(&OXFORD_PETS, &args.from, &args.dir, &RetryPolicy::default(), &mut |archive, event| {
        report.tell(archive, &event);
    })?;
    let dir = args.dir.display();
    println!("{dir} is whole; its .tar.gz files are no longer needed");
    println!("next: tiny-cats data prepare {dir} data/cat-heads --crop head --size 128");
    Ok(())
}

/// The interval between progress lines if there is no terminal for a bar.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// Reports progress: a bar on a terminal, and a line at intervals elsewhere.
struct Report {
    bar: ProgressBar,
    known: ProgressStyle,
    unknown: ProgressStyle,
    /// The subject of the bar: an archive, and true if it is being unpacked.
    current: Option<(&'static str, bool)>,
    next_line: Instant,
}

impl Report {
    fn new() -> anyhow::Result<Self> {
        let known =
            "{msg} {bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left";
        let unknown = "{msg} {spinner} {decimal_bytes}, {decimal_bytes_per_sec}";
        Ok(Self {
            bar: ProgressBar::no_length(),
            known: ProgressStyle::with_template(known)?,
            unknown: ProgressStyle::with_template(unknown)?,
            current: None,
            next_line: Instant::now(),
        })
    }

    fn tell(&mut self, archive: &Archive, event: &Event) {
        let name = archive.name;
        match event {
            Event::Fetching(done, total) => self.position(name, false, *done, *total),
            Event::Unpacking(done, total) => self.position(name, true, *done, Some(*total)),
            Event::Retry(reason, wait) => {
                self.line(&format!("{name}.tar.gz: {reason}; again in {:.0} s", wait.as_secs_f64()));
            }
            Event::Ready { files, bytes, before } => {
                let how = if *before { "there already" } else { "unpacked" };
                self.line(&format!("{name}: {how}, {files} files of {:.1} MB", *bytes as f64 / 1e6));
            }
        }
    }

    fn position(&mut self, name: &'static str, unpacking: bool, done: u64, total: Option<u64>) {
        let action = if unpacking { "unpacking" } else { "fetching" };
        if self.current.replace((name, unpacking)) != Some((name, unpacking)) {
            let (bar, style) = match total {
                Some(total) => (ProgressBar::new(total), &self.known),
                None => (ProgressBar::no_length(), &self.unknown),
            };
            let message = format!("{action} {name}.tar.gz");
            self.bar = bar.with_style(style.clone()).with_message(message).with_position(done);
            // Bytes that were downloaded before do not count toward the speed.
            self.bar.reset_eta();
            self.next_line = Instant::now();
        }
        self.bar.set_position(done);
        if self.bar.is_hidden() && Instant::now() >= self.next_line {
            self.next_line = Instant::now() + BETWEEN_LINES;
            let of = total.map_or(String::new(), |total| format!(" of {:.1}", total as f64 / 1e6));
            eprintln!("{action} {name}.tar.gz: {:.1}{of} MB", done as f64 / 1e6);
        }
    }

    /// Prints a line instead of the bar; the next position starts a new bar.
    fn line(&mut self, line: &str) {
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

//! `tiny-cats data`: makes training data.

use std::{path::PathBuf, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::synth::{self, Manifest};

/// What `tiny-cats data` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Draws synthetic cats of 12 breeds, and things that are not cats, into class folders.
    Synth(Synth),
    /// Fetches the photographs and annotations of the Oxford-IIIT Pet Dataset.
    #[cfg(feature = "download")]
    Download(super::download::Args),
}

#[derive(clap::Args, Debug)]
struct Synth {
    /// The folder to write: new, empty, or one of synthetic pictures, which are replaced
    dir: PathBuf,
    /// Pictures in each of the 13 classes
    #[arg(long, default_value_t = 40, value_name = "N")]
    per_class: u32,
    /// Width and height of each picture in pixels
    #[arg(long, default_value_t = 64)]
    size: u32,
    /// The same seed gives the same pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Runs it.
///
/// # Errors
/// When an argument is out of range or the folder can't be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Synth(args) => synth(args),
        #[cfg(feature = "download")]
        Command::Download(args) => super::download::run(&args),
    }
}

fn synth(args: Synth) -> anyhow::Result<()> {
    let manifest = Manifest::new(args.per_class, args.size, args.seed)?;
    let bar = ProgressBar::new(manifest.total())
        .with_style(ProgressStyle::with_template("{bar:40} {pos}/{len} pictures, {eta} left")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    synth::write(&args.dir, &manifest, |drawn| bar.inc(drawn))?;
    bar.finish_and_clear();
    println!(
        "{}: {} pictures in 13 classes, {size} x {size}",
        args.dir.display(),
        manifest.total(),
        size = args.size
    );
    Ok(())
}

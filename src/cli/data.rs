//! `tiny-cats data`: prepares and inspects training data.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_export::escape;

use super::common::{warn_duplicates, warn_skipped};
use crate::data::{
    Cache, ClassCount, Crop, Dataset, Encoding, INDEX, Prepare, Shares, Stats, cache,
    synth::{self, SynthManifest},
};
use crate::plural::pluralize;

/// The arguments of `tiny-cats data`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Decodes all images of class folders, splits them into train, val and test, and writes the index that training uses.
    Index(IndexArgs),
    /// Prints statistics of the images in class folders.
    Stats(StatsArgs),
    /// Creates class folders of images of one size from class folders or from the archives of the Oxford-IIIT Pet data set.
    Prepare(PrepareArgs),
    /// Generates class folders of synthetic cats of 12 breeds, and of objects that are not cats.
    Synth(SynthArgs),
    /// Lists or deletes the cached files of decoded images.
    Cache(CacheArgs),
    /// Downloads the photographs and annotations of the Oxford-IIIT Pet Dataset.
    #[cfg(feature = "download")]
    Download(super::download::Args),
}

#[derive(clap::Args, Debug)]
struct IndexArgs {
    /// Folder of class folders of images, or of folders train, val and test of class folders
    dir: PathBuf,
    /// File to write the index to [default: index.json in the folder, where training finds it]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Shares of train, val and test [default: 80,10,10, or those of the folders train, val and test]. Series of numbered files are split
    /// into contiguous ranges, so that neighbors stay together
    #[arg(long, value_name = "SHARES")]
    split: Option<Shares>,
    /// Hold out exactly the images that this index of a smaller folder holds out, even under other names
    #[arg(long, value_name = "INDEX", conflicts_with = "split")]
    held_out: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
struct StatsArgs {
    /// Folder of class folders of images, or an index of one
    data: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Write a contact sheet with images of each class
    #[arg(long, value_name = "PNG")]
    sheet: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
struct PrepareArgs {
    /// Folder of class folders, or of the unpacked archives of the Oxford-IIIT Pet data set
    source: PathBuf,
    /// Folder to write to, new or empty
    output: PathBuf,
    /// Part of each photograph to keep
    #[arg(long, value_enum)]
    crop: Crop,
    /// Width and height of the squares in pixels, or the short side if nothing is cropped
    #[arg(long, value_name = "PIXELS")]
    size: u32,
    /// Boxes around heads: a CSV file with columns file, xmin, ymin, xmax and ymax, or a folder of PASCAL VOC XML files [default:
    /// heads.csv or annotations/xmls in the source]
    #[arg(long, value_name = "FILE|DIR")]
    boxes: Option<PathBuf>,
    /// Add the dogs of the Oxford-IIIT Pet data set as the class `other` instead of skipping them
    #[arg(long)]
    other: bool,
    /// Format of the written images
    #[arg(long, value_enum, default_value_t = Encoding::Jpeg)]
    encoding: Encoding,
}

#[derive(clap::Args, Debug)]
struct SynthArgs {
    /// Folder to write to: new, empty, or with synthetic images, which are replaced
    dir: PathBuf,
    /// Images in each of the 13 classes
    #[arg(long, default_value_t = 40, value_name = "N")]
    per_class: u32,
    /// Width and height of each image in pixels
    #[arg(long, default_value_t = 64)]
    size: u32,
    /// Random seed; the same seed gives the same images
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(clap::Args, Debug)]
struct CacheArgs {
    /// Folder of the cache [default: TINY_CATS_CACHE, or tiny-cats in the user's cache folder]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Delete the files; the next training decodes the images again
    #[arg(long)]
    clear: bool,
}

/// Runs the subcommand.
///
/// # Errors
/// If an argument is out of range, no image can be used, or a file cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Index(args) => index(&args),
        Command::Stats(args) => stats(&args),
        Command::Prepare(args) => prepare(args),
        Command::Synth(args) => synth(&args),
        Command::Cache(args) => cache(args),
        #[cfg(feature = "download")]
        Command::Download(args) => super::download::run(&args),
    }
}

fn index(args: &IndexArgs) -> anyhow::Result<()> {
    let file = args.output.clone().unwrap_or_else(|| args.dir.join(INDEX));
    if args.split.is_some() && Dataset::is_split_by_folders(&args.dir)? {
        bail!("--split: {} is split by its folders train, val and test", args.dir.display());
    }
    let bar = progress_bar()?;
    let shares = args.split.unwrap_or_default();
    let data = Dataset::index(&args.dir, &file, shares, args.held_out.as_deref(), advance(&bar))?;
    bar.finish_and_clear();
    let counts = data.counts();
    print_counts(&counts);
    warn_skipped(&data.skipped);
    warn_duplicates(&data);
    for count in counts {
        match count {
            ClassCount { name, train: 1, val: 0, test: 0 } => {
                eprintln!("{name} has only one image, for training, so its accuracy cannot be measured");
            }
            ClassCount { name, train: 0, .. } => eprintln!("{name} has no training images"),
            ClassCount { name, test: 0, .. } => {
                eprintln!("{name} has no test images, so its accuracy cannot be measured");
            }
            _ => {}
        }
    }
    println!("{}: {}", file.display(), summary(data.files.len(), data.classes.len(), data.skipped.len()));
    Ok(())
}

fn stats(args: &StatsArgs) -> anyhow::Result<()> {
    let data = Dataset::open(&args.data)?;
    if let Some(path) = &args.sheet {
        tiny_cats_export::write_png(path, &data.sheet(128)).with_context(|| path.display().to_string())?;
    }
    warn_duplicates(&data);
    let bar = progress_bar()?;
    let split = match &data.index {
        Some(path) => format!("by {}", path.display()),
        None if Dataset::is_split_by_folders(&data.root)? => "by folders".to_owned(),
        None => format!("80,10,10; no {INDEX} found"),
    };
    let stats = data.stats(advance(&bar))?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&stats)?);
    } else {
        print_stats(&stats, &split);
    }
    if let Some(path) = args.sheet.as_ref().filter(|_| !args.json) {
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn print_stats(stats: &Stats, split: &str) {
    print_counts(&stats.classes);
    let three_decimals = |values: [f64; 3]| values.map(|value| format!("{value:.3}")).join(" ");
    println!();
    println!("split         {split}");
    println!("bytes         {}", stats.bytes);
    let side = stats.short_side;
    println!("short side    {} to {} px, median {}", side.min, side.max, side.median);
    let aspect = stats.aspect;
    println!("aspect        {:.2} to {:.2}, median {:.2}", aspect.min, aspect.max, aspect.median);
    println!("mean          {} (red, green, blue; black is 0, white 1)", three_decimals(stats.mean));
    println!("deviation     {}", three_decimals(stats.std));
    println!("skipped       {}", stats.skipped.len());
    println!("duplicates    {}", stats.duplicates.len());
    for (path, reason) in &stats.skipped {
        eprintln!("skipped {}: {reason}", escape(path, usize::MAX));
    }
}

fn prepare(args: PrepareArgs) -> anyhow::Result<()> {
    let bar = progress_bar()?;
    let PrepareArgs { source, output, crop, size, boxes, other, encoding } = args;
    let prepared = Prepare { crop, size, boxes, other, encoding }.run(&source, &output, advance(&bar))?;
    bar.finish_and_clear();
    warn_skipped(&prepared.skipped);
    let width = prepared.classes.keys().map(|name| name.chars().count()).max().unwrap_or(0);
    for (name, count) in &prepared.classes {
        println!("{name:width$}  {count:5}");
    }
    if let Some(index) = &prepared.index {
        println!("used only the images in {}", index.display());
    }
    if prepared.dogs > 0 {
        let verb = if prepared.dogs == 1 { "was" } else { "were" };
        println!("{} of dogs {verb} skipped; --other adds them", pluralize(prepared.dogs, "photograph"));
    }
    let images = prepared.classes.values().sum();
    println!("{}: {}", output.display(), summary(images, prepared.classes.len(), prepared.skipped.len()));
    Ok(())
}

fn synth(args: &SynthArgs) -> anyhow::Result<()> {
    let manifest = SynthManifest::new(args.per_class, args.size, args.seed)?;
    let bar = progress_bar()?;
    bar.set_length(manifest.total());
    synth::write(&args.dir, &manifest, |count| bar.inc(count))?;
    bar.finish_and_clear();
    println!(
        "{}: {} images in 13 classes, {size} x {size}",
        args.dir.display(),
        manifest.total(),
        size = args.size
    );
    Ok(())
}

fn cache(args: CacheArgs) -> anyhow::Result<()> {
    let folder = args.cache.map_or(Cache::Default, Cache::Folder).folder();
    let folder = folder.context("no cache folder found; set one with --cache")?;
    let files = if args.clear { cache::clear(&folder)? } else { cache::list(&folder)? };
    for file in &files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy();
        let suffix = if file.finished { "" } else { "  unfinished" };
        println!("{:>9}  {name}{suffix}", megabytes(file.bytes));
    }
    let total = megabytes(files.iter().map(|file| file.bytes).sum());
    let deleted = if args.clear { " deleted" } else { "" };
    println!("{}: {} of decoded images{deleted}, {total}", folder.display(), pluralize(files.len(), "file"));
    Ok(())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn progress_bar() -> anyhow::Result<ProgressBar> {
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} images, {eta} left")?;
    let bar = ProgressBar::no_length().with_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    Ok(bar)
}

fn summary(images: usize, classes: usize, skipped: usize) -> String {
    format!("{} in {}, {skipped} skipped", pluralize(images, "image"), pluralize(classes, "class"))
}

/// A callback that advances `bar` by an image; its argument is the total number of images.
fn advance(bar: &ProgressBar) -> impl Fn(u64) + Sync {
    |total| {
        bar.set_length(total);
        bar.inc(1);
    }
}

/// Prints a table of the number of images by class and split.
fn print_counts(counts: &[ClassCount]) {
    let width = counts.iter().map(|count| count.name.chars().count()).max().unwrap_or(0).max(5);
    let line = |name: &str, columns: [String; 4]| {
        println!("{name:width$}{}", columns.map(|column| format!("  {column:>6}")).concat());
    };
    line("class", ["train", "val", "test", "all"].map(String::from));
    let mut sums = [0; 4];
    for ClassCount { name, train, val, test } in counts {
        let row = [*train, *val, *test, train + val + test];
        sums.iter_mut().zip(row).for_each(|(sum, count)| *sum += count);
        line(name, row.map(|count| count.to_string()));
    }
    line("all", sums.map(|sum| sum.to_string()));
}

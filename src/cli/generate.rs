//! `tiny-cats generate`: draws cats.

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_export::{Breed, Generator, Model, Options, Picture, Sampler, sheet, write_png};
use tiny_cats_models::pretrained;

use super::common::Runtime;

/// What `tiny-cats generate` is called with.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model, .onnx or .safetensors [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// A breed by name, or all in turn
    #[arg(long, default_value = "all", value_name = "NAME")]
    breed: String,
    /// How many pictures
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N")]
    count: usize,
    /// Steps from noise to picture [default: what the model advises, 20]
    #[arg(long)]
    steps: Option<usize>,
    /// How a step is taken: heun, euler or midpoint [default: what the model advises, heun]
    #[arg(long)]
    sampler: Option<Sampler>,
    /// Weight of classifier-free guidance; 1 is none [default: what the model advises, 2.0]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// The same seed gives the same pictures
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// What computes them [default: native; tract for another program's file]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Pictures drawn at once; changes memory, not pictures
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// A PNG for the labelled grid, or a folder for one PNG each
    #[arg(short, long, default_value = "cats.png", value_name = "PATH")]
    output: PathBuf,
}

/// Runs it.
///
/// # Errors
/// When an argument makes no sense, the model cannot be used, or the picture cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    let folder = is_folder(&args.output);
    if !folder && args.output.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
        bail!("--output {}: expected a name that ends in .png, or a folder", args.output.display());
    }
    let options = Options { runtime: args.runtime.map(Into::into), batch: args.batch };
    let model = match &args.model {
        Some(path) => Model::open(path)?,
        None => Model::from_bytes(pretrained::TINYDIT.to_vec(), "the pretrained TinyDiT")?,
    };
    let mut generator = Generator::from_model(&model, &options)?;
    let mut request = generator.request();
    request.breed = Breed::from(args.breed.as_str());
    request.count = args.count;
    request.seed = args.seed;
    request.steps = args.steps.unwrap_or(request.steps);
    request.sampler = args.sampler.unwrap_or(request.sampler);
    request.guidance = args.cfg.unwrap_or(request.guidance);
    let bar = ProgressBar::hidden();
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} step {pos}/{len}, {eta} left")?);
    }
    let pictures = generator.generate_with(&request, |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    write(&pictures, &args.output, folder)?;
    println!(
        "{}: {} of {} px by {}, {} {} steps, seed {}, {:.2} s",
        args.output.display(),
        if pictures.len() == 1 { "1 cat".to_owned() } else { format!("{} cats", pictures.len()) },
        generator.meta().image_size,
        generator.runtime(),
        request.steps,
        request.sampler,
        request.seed,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.to_string_lossy().ends_with(std::path::MAIN_SEPARATOR)
}

fn write(pictures: &[Picture], output: &Path, folder: bool) -> anyhow::Result<()> {
    if folder {
        std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
        for picture in pictures {
            let path =
                output.join(format!("{}_seed{}_{:04}.png", picture.class, picture.seed, picture.index));
            write_png(&path, &picture.image).with_context(|| path.display().to_string())?;
        }
        return Ok(());
    }
    write_png(output, &sheet(pictures)).with_context(|| output.display().to_string())
}

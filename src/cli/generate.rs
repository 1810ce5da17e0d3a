//! `tiny-cats generate`: generates images of cats.

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::{MAIN_SEPARATOR, Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_export::{
    Breed, Error, GeneratedImage, Generator, LoadOptions, Model, Request, Sampler, contact_sheet, grid,
    sample::Progress, write_png,
};
use tiny_cats_models::pretrained;

use super::{
    common::{ModelContext, Runtime, open_model},
    writable::{check_writable, check_writable_folder, has_extension},
};
use crate::recipes::parse_interval;

/// The arguments of `tiny-cats generate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model: .onnx, .safetensors or .pt [default: the bundled one]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Name of a breed, or all in turn
    #[arg(long, default_value = "all", value_name = "NAME")]
    breed: String,
    /// Number of images
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N")]
    count: usize,
    /// Steps from noise to image [default: recommended by the model]
    #[arg(long)]
    steps: Option<usize>,
    /// Sampler: heun, euler or midpoint [default: recommended by the model]
    #[arg(long)]
    sampler: Option<Sampler>,
    /// Weight of classifier-free guidance; 1 disables it [default: recommended by the model]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// Interval of times with guidance, from 0 (noise) to 1 (image) [default: recommended by the model]
    #[arg(long, value_name = "FROM,TO", value_parser = parse_interval)]
    cfg_interval: Option<[f64; 2]>,
    /// Random seed; the same seed gives the same images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Runtime of the model [default: native; tract for the file of another program]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images per batch; affects memory, not images
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Show the steps from noise to each image, as a row of N frames
    #[arg(long, value_name = "N")]
    frames: Option<usize>,
    /// PNG file for the labeled grid, or a folder for one PNG per image
    #[arg(short, long, default_value = "cats.png", value_name = "PATH")]
    output: PathBuf,
}

/// Generates the images and writes them.
///
/// # Errors
/// If an argument is invalid, the model cannot be used, or an image cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    let start = Instant::now();
    check_output(&args.output)?;
    let options = LoadOptions { runtime: args.runtime.map(Into::into), batch: args.batch };
    let model = match &args.model {
        Some(path) => open_model(path)?,
        None => Model::from_bytes(pretrained::TINYDIT.to_vec(), "the pretrained TinyDiT")?,
    };
    let mut generator = Generator::from_model(&model, &options).model_context(args.model.as_deref())?;
    let request = Request {
        breed: Breed::from(args.breed.as_str()),
        count: args.count,
        seed: args.seed,
        steps: args.steps,
        sampler: args.sampler,
        guidance: args.cfg,
        guidance_interval: args.cfg_interval.map(|times| times.map(|time| time as f32)),
    };
    let settings = generator.settings(&request);
    let bar = ProgressBar::hidden();
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} step {pos}/{len}, {eta} left")?);
    }
    generate(&mut generator, &request, &args, |progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    })?;
    bar.finish_and_clear();
    println!(
        "{}: {} of {} px by {}, {} {} steps, seed {}, {:.2} s",
        args.output.display(),
        if request.count == 1 { "1 cat".to_owned() } else { format!("{} cats", request.count) },
        generator.meta().image_size,
        generator.runtime(),
        settings.steps,
        settings.sampler,
        settings.seed,
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Checks that the output is a PNG file or a folder, and can be written.
fn check_output(output: &Path) -> anyhow::Result<()> {
    if is_folder(output) {
        return check_writable_folder("--output", output);
    }
    if !has_extension(output, "png") {
        let output = output.display();
        bail!("--output {output}: expected a name that ends in .png, or a folder: {output}{MAIN_SEPARATOR}");
    }
    check_writable("--output", output, "png")
}

/// Generates the images, and writes them as a grid or as one file each.
fn generate(
    generator: &mut Generator,
    request: &Request,
    args: &Args,
    on_progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> anyhow::Result<()> {
    let (output, model) = (&args.output, args.model.as_deref());
    let sheet = match args.frames {
        Some(_) if is_folder(output) => bail!("--frames: expected --output to end in .png"),
        Some(frames) => {
            let images = generator.generate_frames(request, frames, on_progress);
            grid(&images.map_err(with_frames_flag).model_context(model)?, frames, None)
        }
        None if is_folder(output) => {
            std::fs::create_dir_all(output).with_context(|| output.display().to_string())?;
            let labels = generator.labels(request).model_context(model)?;
            let sink = |image: GeneratedImage| write_image(output, &image);
            return generator.generate_each(&labels, 0, request, on_progress, sink).model_context(model);
        }
        None => contact_sheet(&generator.generate_with(request, on_progress).model_context(model)?),
    };
    write_png(output, &sheet).with_context(|| output.display().to_string())
}

/// Replaces the field of the number of frames in an error by its flag.
fn with_frames_flag(error: Error) -> anyhow::Error {
    match error {
        Error::Request { field: "frames", message } => anyhow!("--frames: {message}"),
        error => error.into(),
    }
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.to_string_lossy().ends_with(MAIN_SEPARATOR)
}

/// Writes one image to its own file.
fn write_image(directory: &Path, image: &GeneratedImage) -> anyhow::Result<()> {
    let name = format!("{}_seed{}_{:04}.png", image.class, image.seed, image.index);
    let path = directory.join(name);
    write_png(&path, &image.image).with_context(|| path.display().to_string())
}

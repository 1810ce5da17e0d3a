//! `tiny-cats generate`: generates images of cats.

use std::{
    io::IsTerminal,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, bail};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use tiny_cats_export::{
    Breed, GeneratedImage, Generator, LoadOptions, Model, Request, Sampler, contact_sheet, grid,
    sample::Progress, write_png,
};
use tiny_cats_models::pretrained;

use super::{
    common::{ModelContext, Runtime, interval, open_model},
    writable::{check_writable, check_writable_folder},
};

/// The arguments of `tiny-cats generate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model: .onnx, .safetensors or .pt [default: the one that comes with this program]
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// Breed by name, or all in turn
    #[arg(long, default_value = "all", value_name = "NAME")]
    breed: String,
    /// Number of images
    #[arg(short = 'n', long = "count", default_value_t = 16, value_name = "N")]
    count: usize,
    /// Steps from noise to image [default: what the model advises, 20]
    #[arg(long)]
    steps: Option<usize>,
    /// Sampler: heun, euler or midpoint [default: what the model advises, heun]
    #[arg(long)]
    sampler: Option<Sampler>,
    /// Weight of classifier-free guidance; 1 disables it [default: what the model advises, 2.0]
    #[arg(long, value_name = "WEIGHT", allow_negative_numbers = true)]
    cfg: Option<f32>,
    /// Times at which guidance applies, from 0 (noise) to 1 (image) [default: what the model advises]
    #[arg(long, value_name = "FROM,TO", value_parser = interval)]
    cfg_interval: Option<[f32; 2]>,
    /// Random seed; the same seed gives the same images
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Runtime that computes the model [default: native; tract for another program's file]
    #[arg(long, value_enum)]
    runtime: Option<Runtime>,
    /// Images generated at once; changes memory, not images
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Show each image emerging from noise, in a row of N frames
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
    let folder = is_folder(&args.output);
    if folder {
        check_writable_folder("--output", &args.output)?;
    } else {
        check_writable("--output", &args.output, "png")?;
    }
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
        guidance_interval: args.cfg_interval,
    };
    let settings = generator.settings(&request);
    let bar = ProgressBar::hidden();
    if std::io::stderr().is_terminal() {
        bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{bar:30} step {pos}/{len}, {eta} left")?);
    }
    let tell = |progress: Progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        ControlFlow::Continue(())
    };
    if let Some(frames) = args.frames {
        if folder {
            bail!("--frames: expected --output to be a name that ends in .png");
        }
        let shown =
            denoising_frames(&mut generator, &request, frames, tell).model_context(args.model.as_deref())?;
        write_png(&args.output, &grid(&shown, frames, None))
            .with_context(|| args.output.display().to_string())?;
    } else if folder {
        std::fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
        let labels = generator.labels(&request).model_context(args.model.as_deref())?;
        let sink = |picture: GeneratedImage| write_to(&args.output, &picture);
        generator.generate_each(&labels, 0, &request, tell, sink).model_context(args.model.as_deref())?;
    } else {
        let pictures = generator.generate_with(&request, tell).model_context(args.model.as_deref())?;
        write_png(&args.output, &contact_sheet(&pictures))
            .with_context(|| args.output.display().to_string())?;
    }
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

/// Each image of a request at `frames` moments, from noise to the finished image.
fn denoising_frames(
    generator: &mut Generator,
    request: &Request,
    frames: usize,
    mut tell: impl FnMut(Progress) -> ControlFlow<()>,
) -> anyhow::Result<Vec<RgbImage>> {
    let steps = generator.settings(request).steps;
    let most = steps + 1;
    if !(2..=most).contains(&frames) {
        bail!("--frames: expected 2 to {most}, one more than there are steps, found {frames}");
    }
    let mut shown = Vec::with_capacity(request.count * frames);
    for (index, label) in generator.labels(request)?.into_iter().enumerate() {
        let mut trajectory = generator.start_trajectory(label, index as u64, request)?;
        for frame in 0..frames {
            while trajectory.done() < frame * steps / (frames - 1) {
                generator.advance([&mut trajectory])?;
            }
            shown.push(generator.current_image(&trajectory));
            let (done, total) = (index * steps + trajectory.done(), request.count * steps);
            let _ = tell(Progress { done, total });
        }
    }
    Ok(shown)
}

fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.to_string_lossy().ends_with(std::path::MAIN_SEPARATOR)
}

/// Writes one image to its own file.
fn write_to(folder: &Path, picture: &GeneratedImage) -> anyhow::Result<()> {
    let name = format!("{}_seed{}_{:04}.png", picture.class, picture.seed, picture.index);
    let path = folder.join(name);
    write_png(&path, &picture.image).with_context(|| path.display().to_string())
}

//! The generator API: opens a model file and generates images.

use std::{ops::ControlFlow, path::Path};

use image::RgbImage;
use tiny_cats_models::Array;

use crate::{
    Breed, Error, GeneratorMeta, LoadOptions, Model, ModelMeta, Request, Result, excerpt, grid,
    runtime::RuntimeKind,
    sample::{Denoiser, Progress, SampleSpec, SamplingSettings, Trajectory, advance, sample},
    to_rgb,
};

const MAX_COUNT: usize = 1 << 20;

/// A generated image.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedImage {
    /// Label of its class.
    pub label: usize,
    /// Name of its class.
    pub class: String,
    /// Seed of the request.
    pub seed: u64,
    /// Number of the image in the request; with the seed it determines the noise.
    pub index: u64,
    /// The pixels.
    pub image: RgbImage,
    /// The sampled values, `[3, size, size]`, before they are clamped and rounded to 8 bits.
    pub values: Array,
}

/// Returns a labeled [`grid`] of generated images, with about as many rows as columns; images of one class are adjacent.
pub fn contact_sheet(generated: &[GeneratedImage]) -> RgbImage {
    let mut order: Vec<&GeneratedImage> = generated.iter().collect();
    order.sort_by_key(|image| (image.label, image.index));
    let labels: Vec<String> = order.iter().map(|image| image.class.replace('_', " ")).collect();
    let images: Vec<_> = order.iter().map(|generated| generated.image.clone()).collect();
    let columns = (images.len() as f64).sqrt().ceil() as usize;
    grid(&images, columns, Some(&labels))
}

/// A model that generates images.
///
/// ```no_run
/// use tiny_cats_export::{Generator, Request};
///
/// let mut cats = Generator::open("tinydit.onnx")?;
/// for generated in cats.generate(&Request { breed: "Siamese".into(), count: 4, ..Request::default() })? {
///     generated.image.save(format!("cat-{}.png", generated.index))?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Generator {
    meta: ModelMeta,
    task: GeneratorMeta,
    runtime: RuntimeKind,
    network: Box<dyn Denoiser + Send>,
    batch: usize,
}

impl std::fmt::Debug for Generator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generator")
            .field("meta", &self.meta)
            .field("runtime", &self.runtime)
            .finish_non_exhaustive()
    }
}

impl Generator {
    /// Opens a model file, `.onnx` or `.safetensors`, with the default runtime.
    ///
    /// # Errors
    /// If the file cannot be read, is damaged, or holds no generator.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(path, &LoadOptions::default())
    }

    /// Opens a model file with `options`.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if the runtime is not available.
    pub fn open_with(path: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        Self::from_model(&Model::open(path.as_ref())?, options)
    }

    /// Opens a model file in memory.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_bytes(bytes: Vec<u8>, options: &LoadOptions) -> Result<Self> {
        Self::from_model(&Model::from_bytes(bytes, "model")?, options)
    }

    /// Loads a model that is in memory.
    ///
    /// # Errors
    /// As [`open_with`](Self::open_with).
    pub fn from_model(model: &Model, options: &LoadOptions) -> Result<Self> {
        let runtime = options.runtime(model);
        let (task, network) = (model.generator()?.clone(), model.load_generator(runtime)?);
        if task.guided {
            let name = excerpt(model.name());
            tracing::warn!(
                "{name}: the graph applies guidance itself; sampling with guidance 1, other values are ignored"
            );
        }
        Ok(Self { meta: model.meta().clone(), task, runtime, network, batch: options.batch })
    }

    /// Returns the metadata of the model.
    pub fn meta(&self) -> &ModelMeta {
        &self.meta
    }

    /// Returns the runtime that runs the network.
    pub fn runtime(&self) -> RuntimeKind {
        self.runtime
    }

    /// True if the network applies classifier-free guidance itself, so that [`Request::guidance`] has no effect.
    pub fn is_guided(&self) -> bool {
        self.task.guided
    }

    /// Returns the settings for `request`. Options that the request leaves out come from the model's metadata.
    pub fn settings(&self, request: &Request) -> SamplingSettings {
        SamplingSettings { batch: self.batch, ..SamplingSettings::new(&self.task, request) }
    }

    /// Generates images. Image `i` depends on the request's seed and on `i`, not on the number of images.
    ///
    /// # Errors
    /// [`Error::Request`] with the invalid field, and errors of the runtime.
    pub fn generate(&mut self, request: &Request) -> Result<Vec<GeneratedImage>> {
        self.generate_with(request, |_| ControlFlow::Continue(()))
    }

    /// Generates images as [`generate`](Self::generate) does, and calls `progress` after every step. `progress` can cancel.
    ///
    /// # Errors
    /// As [`generate`](Self::generate), and [`Error::Canceled`].
    pub fn generate_with(
        &mut self,
        request: &Request,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedImage>> {
        self.generate_labels(&self.labels(request)?, 0, request, progress)
    }

    /// Returns the label of each image of `request`.
    ///
    /// # Errors
    /// [`Error::Request`] for a count of 0, one that is too large, or a breed that this generator does not have.
    pub fn labels(&self, request: &Request) -> Result<Vec<usize>> {
        if !(1..=MAX_COUNT).contains(&request.count) {
            return Err(Error::request(
                "count",
                format!("expected 1 to {MAX_COUNT}, found {}", request.count),
            ));
        }
        let classes = self.meta.classes.len();
        let label = match &request.breed {
            Breed::All => None,
            Breed::Named(name) => Some(self.meta.label(name)?),
        };
        Ok((0..request.count).map(|i| label.unwrap_or(i % classes)).collect())
    }

    /// Generates one image for each of `labels`, numbered from `first`, as [`generate_with`](Self::generate_with) does. The breed
    /// and the count of `request` have no effect.
    ///
    /// # Errors
    /// As [`generate_with`](Self::generate_with), and [`Error::Request`] for a label without a class.
    pub fn generate_labels(
        &mut self,
        labels: &[usize],
        first: u64,
        request: &Request,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<GeneratedImage>> {
        self.check_labels(labels)?;
        let index = |i: usize| first.wrapping_add(i as u64);
        let specs: Vec<SampleSpec> = labels
            .iter()
            .enumerate()
            .map(|(i, &label)| SampleSpec { index: index(i), label: label as i64 })
            .collect();
        let (settings, dims) = (self.settings(request), self.dims());
        let samples = sample(&mut *self.network, &settings, dims, &specs, &mut progress)?;
        let to_image =
            |(i, values): (usize, Array)| self.generated_image(labels[i], request.seed, index(i), values);
        Ok(samples.into_iter().enumerate().map(to_image).collect())
    }

    /// Generates images as [`generate_labels`](Self::generate_labels) does, and passes each to `sink` as soon as its batch is done,
    /// so that they need not all be in memory.
    ///
    /// # Errors
    /// As [`generate_labels`](Self::generate_labels), and errors of `sink`, which end the generation.
    pub fn generate_each<E: From<Error>>(
        &mut self,
        labels: &[usize],
        first: u64,
        request: &Request,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
        mut sink: impl FnMut(GeneratedImage) -> Result<(), E>,
    ) -> Result<(), E> {
        let (batch, steps) = (self.batch.max(1), self.settings(request).steps);
        let total = labels.len().div_ceil(batch) * steps;
        for (i, part) in labels.chunks(batch).enumerate() {
            let report = |p: Progress| progress(Progress { done: i * steps + p.done, total });
            let number = first.wrapping_add((i * batch) as u64);
            self.generate_labels(part, number, request, report)?.into_iter().try_for_each(&mut sink)?;
        }
        Ok(())
    }

    /// Generates intermediate images of a request: `frames` for each image, from noise to the finished image, evenly spaced in steps. Calls
    /// `progress` after every frame. `progress` can cancel.
    ///
    /// # Errors
    /// [`Error::Request`] with the invalid field, such as fewer than two `frames` or more than the number of steps plus 1, errors of the
    /// runtime, and [`Error::Canceled`].
    pub fn generate_frames(
        &mut self,
        request: &Request,
        frames: usize,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<RgbImage>> {
        let steps = self.settings(request).steps;
        let max = steps + 1;
        if !(2..=max).contains(&frames) {
            let message = format!("expected 2 to {max}, the number of steps plus 1, found {frames}");
            return Err(Error::request("frames", message));
        }
        let mut images = Vec::with_capacity(request.count * frames);
        for (index, label) in self.labels(request)?.into_iter().enumerate() {
            let mut trajectory = self.start_trajectory(label, index as u64, request)?;
            for frame in 0..frames {
                while trajectory.done() < frame * steps / (frames - 1) {
                    self.advance([&mut trajectory])?;
                }
                images.push(self.current_image(&trajectory));
                let (done, total) = (index * steps + trajectory.done(), request.count * steps);
                if progress(Progress { done, total }).is_break() {
                    return Err(Error::Canceled);
                }
            }
        }
        Ok(images)
    }

    /// Starts the trajectory of the image of class `label` that has the number `index` in `request`. The breed and the count of
    /// `request` have no effect. [`advance`](Self::advance) continues it, together with those of other requests.
    ///
    /// # Errors
    /// [`Error::Request`] with the invalid field.
    pub fn start_trajectory(&self, label: usize, index: u64, request: &Request) -> Result<Trajectory> {
        self.check_labels(&[label])?;
        Trajectory::new(&self.settings(request), self.dims(), SampleSpec { index, label: label as i64 })
    }

    /// Evaluates the network once for all of `trajectories`, which may belong to different requests.
    ///
    /// # Errors
    /// Errors of the runtime.
    pub fn advance<'a>(&mut self, trajectories: impl IntoIterator<Item = &'a mut Trajectory>) -> Result<()> {
        advance(&mut *self.network, trajectories)
    }

    /// Returns the image of a trajectory.
    ///
    /// # Errors
    /// None for a trajectory of this generator.
    pub fn finish_trajectory(&self, trajectory: Trajectory) -> Result<GeneratedImage> {
        let (label, seed, index) =
            (trajectory.label() as usize, trajectory.settings().seed, trajectory.index());
        Ok(self.generated_image(label, seed, index, trajectory.into_array()?))
    }

    /// Returns the clean image as predicted by the last evaluation of this trajectory.
    pub fn preview(&self, trajectory: &Trajectory) -> RgbImage {
        self.image(trajectory.preview())
    }

    /// Returns the current image of a trajectory: noise at first.
    pub fn current_image(&self, trajectory: &Trajectory) -> RgbImage {
        self.image(trajectory.values())
    }

    fn generated_image(&self, label: usize, seed: u64, index: u64, values: Array) -> GeneratedImage {
        let class = self.meta.classes.get(label).cloned().unwrap_or_default();
        GeneratedImage { label, class, seed, index, image: self.image(values.data()), values }
    }

    fn image(&self, values: &[f32]) -> RgbImage {
        to_rgb(&to_unit(values, self.task.value_range), self.meta.image_size as u32)
    }

    fn dims(&self) -> [usize; 3] {
        [3, self.meta.image_size, self.meta.image_size]
    }

    fn check_labels(&self, labels: &[usize]) -> Result<()> {
        let classes = self.meta.classes.len();
        match labels.iter().find(|&&label| label >= classes) {
            Some(label) => {
                Err(Error::request("label", format!("expected less than {classes}, found {label}")))
            }
            None => Ok(()),
        }
    }
}

/// Maps values from the range of `black` to `white` to [−1, 1].
fn to_unit(values: &[f32], [black, white]: [f32; 2]) -> Vec<f32> {
    values.iter().map(|v| 2.0 * (v - black) / (white - black) - 1.0).collect()
}

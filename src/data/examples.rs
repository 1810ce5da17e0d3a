//! Examples: the labelled items that a task trains and evaluates on.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tiny_cats_export::Preprocessing;

use super::{AugmentLevel, Error, Images, Photos, Result, View, hex};

/// The draw of an augmented example. It determines all random choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Seed of the augmentation.
    pub seed: u64,
    /// The number of examples that the training drew before this one.
    pub position: u64,
}

/// Labelled examples, such as images or vectors, of one size.
///
/// [`Classification`](crate::train::Classification) and [`FlowMatching`](crate::train::FlowMatching) train on any of them. A value depends
/// only on the index, and for augmented examples on the [`Draw`], never on the thread or on earlier calls: resumed runs rely on it.
pub trait Examples: Send + Sync + 'static {
    /// The number of examples; at least one.
    fn count(&self) -> usize;

    /// The names of the classes, in the order of their labels.
    fn classes(&self) -> &[String];

    /// The label of example `index`: less than the number of classes.
    fn label(&self, index: usize) -> u32;

    /// The sizes of an example in evaluations, and in use: those of the network's first input without the batch.
    fn dims(&self) -> Vec<usize>;

    /// The sizes of an example in training. They may be others if the network has free axes.
    fn training_dims(&self) -> Vec<usize> {
        self.dims()
    }

    /// Writes example `index` as it is evaluated into `out`, which has the length of [`dims`](Self::dims).
    ///
    /// # Errors
    /// If the example cannot be read.
    fn fill(&self, index: usize, out: &mut [f32]) -> Result<()>;

    /// Writes example `index` with the augmentation of `draw` into `out`, which has the length of
    /// [`training_dims`](Self::training_dims). By default there is no augmentation.
    ///
    /// # Errors
    /// If the example cannot be read.
    fn fill_augmented(&self, index: usize, _draw: Draw, out: &mut [f32]) -> Result<()> {
        self.fill(index, out)
    }

    /// A hash of the data. A run is resumed only with data of the same fingerprint.
    fn fingerprint(&self) -> &str;

    /// The settings that determine the values, such as the augmentation. A run is resumed only with the same ones.
    fn settings(&self) -> Map<String, Value> {
        Map::new()
    }

    /// The preprocessing that makes a photograph an example, for the released files. Without it, a network that takes RGB images is
    /// released with [`Preprocessing::imagenet`].
    fn preprocessing(&self) -> Option<Preprocessing> {
        None
    }

    /// The file of example `index`, for messages; `None` if it has none.
    fn path(&self, _index: usize) -> Option<&Path> {
        None
    }
}

/// Square images `[3, size, size]` with values from −1 (black) to 1, augmented for generators.
pub struct ImageExamples {
    images: Images,
    augmentation: AugmentLevel,
}

impl ImageExamples {
    /// Returns `images` as examples.
    pub fn new(images: Images, augmentation: AugmentLevel) -> Self {
        Self { images, augmentation }
    }
}

impl Examples for ImageExamples {
    fn count(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> &[String] {
        &self.images.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.images.label(index)
    }

    fn dims(&self) -> Vec<usize> {
        let side = self.images.size() as usize;
        vec![3, side, side]
    }

    fn fill(&self, index: usize, out: &mut [f32]) -> Result<()> {
        let side = self.images.size();
        self.images.fill(index, &View::center(self.images.dimensions(index), side), side as usize, out)
    }

    fn fill_augmented(&self, index: usize, draw: Draw, out: &mut [f32]) -> Result<()> {
        let side = self.images.size();
        let view = View::for_generator(self.augmentation, draw.seed, draw.position, side);
        self.images.fill(index, &view, side as usize, out)
    }

    fn fingerprint(&self) -> &str {
        &self.images.fingerprint
    }

    fn settings(&self) -> Map<String, Value> {
        Map::from_iter([("augmentation".to_owned(), setting(self.augmentation))])
    }

    fn path(&self, index: usize) -> Option<&Path> {
        Some(self.images.path(index))
    }
}

/// The sizes and the augmentation of photographs for a classifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhotoOptions {
    /// Side of the images that the network is used on, in pixels.
    pub image_size: usize,
    /// Side of the images that it is trained on, in pixels.
    ///
    /// Somewhat smaller ones are faster. Training enlarges parts of images, so objects then appear as large as in use (arXiv 1906.06423).
    pub crop_size: usize,
    /// The augmentation of training images.
    pub augmentation: AugmentLevel,
}

impl PhotoOptions {
    /// The shorter side in pixels that photographs are decoded with: see [`Photos::load`].
    pub fn short_side(&self) -> u32 {
        Preprocessing::imagenet(self.image_size).resize as u32
    }
}

/// Photographs as squares `[3, size, size]`, normalized by ImageNet's mean and standard deviation and augmented for classifiers.
pub struct PhotoExamples {
    photos: Photos,
    options: PhotoOptions,
    preprocessing: Preprocessing,
}

impl PhotoExamples {
    /// Returns `photos` as examples. They must have been decoded with [`PhotoOptions::short_side`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`] if `crop_size` is 0 or larger than `image_size`.
    pub fn new(photos: Photos, options: PhotoOptions) -> Result<Self> {
        let [value, high] = [options.crop_size, options.image_size].map(|size| size as u64);
        if !(1..=high).contains(&value) {
            return Err(Error::OutOfRange { name: "crop size", value, low: 1, high });
        }
        let preprocessing = Preprocessing::imagenet(options.image_size);
        Ok(Self { photos, options, preprocessing })
    }
}

impl Examples for PhotoExamples {
    fn count(&self) -> usize {
        self.photos.len()
    }

    fn classes(&self) -> &[String] {
        &self.photos.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.photos.label(index)
    }

    fn dims(&self) -> Vec<usize> {
        vec![3, self.options.image_size, self.options.image_size]
    }

    fn training_dims(&self) -> Vec<usize> {
        vec![3, self.options.crop_size, self.options.crop_size]
    }

    fn fill(&self, index: usize, out: &mut [f32]) -> Result<()> {
        let size = self.options.image_size;
        self.photos.fill(index, &View::center(self.photos.dimensions(index), size as u32), size, out)?;
        self.preprocessing.normalize(out);
        Ok(())
    }

    fn fill_augmented(&self, index: usize, Draw { seed, position }: Draw, out: &mut [f32]) -> Result<()> {
        let PhotoOptions { image_size, crop_size, augmentation } = self.options;
        let shape = self.photos.dimensions(index);
        let view = View::for_classifier(augmentation, seed, position, shape, image_size as u32);
        self.photos.fill(index, &view, crop_size, out)?;
        self.preprocessing.normalize(out);
        Ok(())
    }

    fn fingerprint(&self) -> &str {
        &self.photos.fingerprint
    }

    fn settings(&self) -> Map<String, Value> {
        let PhotoOptions { image_size, crop_size, augmentation } = self.options;
        Map::from_iter([
            ("image_size".to_owned(), image_size.into()),
            ("crop_size".to_owned(), crop_size.into()),
            ("augmentation".to_owned(), setting(augmentation)),
        ])
    }

    fn preprocessing(&self) -> Option<Preprocessing> {
        Some(self.preprocessing.clone())
    }

    fn path(&self, index: usize) -> Option<&Path> {
        Some(self.photos.path(index))
    }
}

/// The name of a level, as in files.
fn setting(level: AugmentLevel) -> Value {
    // A unit variant cannot fail to serialize.
    serde_json::to_value(level).unwrap_or_default()
}

/// Examples in memory: vectors, or arrays of any rank, all of the same size.
#[derive(Clone, Debug, PartialEq)]
pub struct ArrayExamples {
    dims: Vec<usize>,
    values: Vec<f32>,
    labels: Vec<u32>,
    classes: Vec<String>,
    fingerprint: String,
}

impl ArrayExamples {
    /// Returns examples of the sizes `dims`. `values` holds one after the other, each in row-major order.
    ///
    /// # Errors
    /// [`Error::Example`] if there are no examples, the number of values is not that of `labels` times `dims`, a value is not finite, or a
    /// label is not less than the number of classes.
    pub fn new(
        dims: impl Into<Vec<usize>>,
        values: Vec<f32>,
        labels: Vec<u32>,
        classes: Vec<String>,
    ) -> Result<Self> {
        let (dims, count) = (dims.into(), labels.len());
        let invalid = |message: String| Err(Error::Example(message));
        let len = dims.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
        let expected = len.and_then(|len| len.checked_mul(count));
        if count == 0 || expected != Some(values.len()) || values.is_empty() {
            let found = values.len();
            return invalid(format!("expected values of {count} examples of sizes {dims:?}, found {found}"));
        }
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let index = at / (values.len() / count);
            return invalid(format!("example {index}: expected finite values, found {}", values[at]));
        }
        if let Some(index) = labels.iter().position(|&label| label as usize >= classes.len()) {
            let (label, classes) = (labels[index], classes.len());
            return invalid(format!("example {index}: expected a label below {classes}, found {label}"));
        }
        let mut hash = Sha256::new();
        // The number of sizes and the lengths of names separate the parts.
        hash.update((dims.len() as u64).to_le_bytes());
        dims.iter().for_each(|&size| hash.update((size as u64).to_le_bytes()));
        for name in &classes {
            hash.update((name.len() as u64).to_le_bytes());
            hash.update(name);
        }
        labels.iter().for_each(|label| hash.update(label.to_le_bytes()));
        values.iter().for_each(|value| hash.update(value.to_le_bytes()));
        let fingerprint = hex(&hash.finalize());
        Ok(Self { dims, values, labels, classes, fingerprint })
    }
}

impl Examples for ArrayExamples {
    fn count(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn dims(&self) -> Vec<usize> {
        self.dims.clone()
    }

    fn fill(&self, index: usize, out: &mut [f32]) -> Result<()> {
        let len = self.values.len() / self.labels.len();
        out.copy_from_slice(&self.values[index * len..(index + 1) * len]);
        Ok(())
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes() -> Vec<String> {
        ["a", "b"].map(String::from).to_vec()
    }

    #[test]
    fn arrays_are_examples_with_a_fingerprint_of_all_their_parts() {
        let values: Vec<f32> = (0..12u8).map(f32::from).collect();
        let new = |dims: &[usize], values: &[f32], labels: &[u32], classes: Vec<String>| {
            ArrayExamples::new(dims, values.to_vec(), labels.to_vec(), classes)
        };
        let examples = new(&[2, 3], &values, &[1, 0], classes()).unwrap();
        let mut out = vec![0.0; 6];
        examples.fill(1, &mut out).unwrap();
        assert_eq!((out, examples.label(1)), (values[6..].to_vec(), 0));
        assert_eq!(examples, new(&[2, 3], &values, &[1, 0], classes()).unwrap());
        let mut changed = values.clone();
        changed[7] = 7.5;
        for other in [
            new(&[3, 2], &values, &[1, 0], classes()),
            new(&[2, 3], &changed, &[1, 0], classes()),
            new(&[2, 3], &values, &[0, 0], classes()),
            new(&[2, 3], &values, &[1, 0], vec!["a".into(), "c".into()]),
            new(&[2, 3], &values, &[1, 0], vec!["ab".into(), "".into()]),
        ] {
            assert_ne!(other.unwrap().fingerprint(), examples.fingerprint());
        }
    }

    #[test]
    fn invalid_arrays_are_refused_with_one_line() {
        for (dims, values, labels, expected) in [
            (vec![2], vec![0.0; 3], vec![0, 1], "expected values of 2 examples of sizes [2], found 3"),
            (vec![2], vec![], vec![], "expected values of 0 examples"),
            (vec![0], vec![], vec![0], "expected values of 1 examples"),
            (vec![usize::MAX, 2], vec![0.0], vec![0], "found 1"),
            (vec![1], vec![0.0, f32::NAN], vec![0, 1], "example 1: expected finite values, found NaN"),
            (vec![1], vec![0.0, 1.0], vec![0, 2], "example 1: expected a label below 2, found 2"),
        ] {
            let error = ArrayExamples::new(dims, values, labels, classes()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}

//! Requests to a generator.

use crate::Sampler;

/// The classes to generate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Breed {
    /// All classes in turn: image `i` is of class `i` modulo their number.
    #[default]
    All,
    /// The class of this name; case, spaces, `_` and `-` do not matter.
    Named(String),
}

impl From<&str> for Breed {
    fn from(name: &str) -> Self {
        if name.eq_ignore_ascii_case("all") { Self::All } else { Self::Named(name.into()) }
    }
}

/// A description of the images to generate. A field that is `None` takes its value from the model's metadata: see
/// [`SamplingSettings::new`](crate::sample::SamplingSettings::new).
///
/// ```
/// use tiny_cats_export::Request;
///
/// let request = Request { breed: "Siamese".into(), count: 4, steps: Some(8), ..Request::default() };
/// assert_eq!(request.guidance, None);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Classes of the images.
    pub breed: Breed,
    /// Number of images.
    pub count: usize,
    /// Seed of the noise: equal seeds give equal images.
    pub seed: u64,
    /// Number of steps from noise to image.
    pub steps: Option<usize>,
    /// Method of each step.
    pub sampler: Option<Sampler>,
    /// Weight of classifier-free guidance; 1 means none. A network that [applies guidance itself](crate::Generator::is_guided) is
    /// sampled with 1.
    pub guidance: Option<f32>,
    /// Interval of times with guidance, from 0 (noise) to 1 (image), inclusive.
    pub guidance_interval: Option<[f32; 2]>,
}

impl Default for Request {
    /// Returns a request for one image with seed 0 and the model's own settings.
    fn default() -> Self {
        Self {
            breed: Breed::All,
            count: 1,
            seed: 0,
            steps: None,
            sampler: None,
            guidance: None,
            guidance_interval: None,
        }
    }
}

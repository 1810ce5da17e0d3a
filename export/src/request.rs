//! What to draw.

use crate::Sampler;

/// Which classes to draw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Breed {
    /// All in turn: picture `i` is of class `i` modulo their number.
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

/// What to draw. What is `None` is as the model file advises: see [`Settings::new`](crate::sample::Settings::new).
///
/// ```
/// use tiny_cats_export::Request;
///
/// let request = Request { breed: "Siamese".into(), count: 4, steps: Some(8), ..Request::default() };
/// assert_eq!(request.guidance, None);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which classes.
    pub breed: Breed,
    /// How many pictures.
    pub count: usize,
    /// The noise: equal seeds give equal pictures.
    pub seed: u64,
    /// Steps from noise to picture.
    pub steps: Option<usize>,
    /// How a step is taken.
    pub sampler: Option<Sampler>,
    /// Weight of classifier-free guidance; 1 is none. A network that [guides itself](crate::Generator::is_guided) is drawn from with 1.
    pub guidance: Option<f32>,
    /// Times from 0 (noise) to 1 (picture) that guidance holds for, ends included.
    pub guidance_interval: Option<[f32; 2]>,
}

impl Default for Request {
    /// One picture, seed 0, as the model file advises.
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

//! Features of images.

use nalgebra::DMatrix;

use super::{Error, Result};

/// The largest number of features of one image. This check precedes any allocation that grows with its square.
pub const MAX_FEATURES: usize = 1 << 16;

/// Features of images, `[images, dims]`: a row of finite numbers for each image.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    dims: usize,
    data: Vec<f32>,
}

impl Features {
    /// Creates the features of `data.len() / dims` images, one row after the other.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is not an integral number of rows, at least one, of 1 to [`MAX_FEATURES`] numbers; [`Error::NotFinite`].
    pub fn new(dims: usize, data: Vec<f32>) -> Result<Self> {
        if !(1..=MAX_FEATURES).contains(&dims) {
            return Err(Error::shape(format!("1 to {MAX_FEATURES} numbers for each image"), dims));
        }
        if data.is_empty() || !data.len().is_multiple_of(dims) {
            let expected = format!("{dims} numbers for each image, at least one image");
            return Err(Error::shape(expected, format!("{} numbers", data.len())));
        }
        match data.iter().position(|value| !value.is_finite()) {
            Some(position) => Err(Error::NotFinite { row: position / dims }),
            None => Ok(Self { dims, data }),
        }
    }

    /// The number of images; at least one.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.data.len() / self.dims
    }

    /// The number of features of each image.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// The features of image `index`.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.dims..(index + 1) * self.dims]
    }

    /// The features of some of the images, in this order.
    ///
    /// # Errors
    /// [`Error::Shape`] if `indices` is empty.
    ///
    /// # Panics
    /// If there is no such image.
    pub fn select(&self, indices: &[usize]) -> Result<Self> {
        Self::new(self.dims, indices.iter().flat_map(|&index| self.row(index)).copied().collect())
    }

    /// The features of images `from` to `to`, one column each, in f64.
    pub(super) fn columns(&self, from: usize, to: usize) -> DMatrix<f64> {
        let values = self.data[from * self.dims..to * self.dims].iter().map(|&value| f64::from(value));
        DMatrix::from_iterator(self.dims, to - from, values)
    }
}

/// Checks that `measure` can compare two sets: features of the same kind, and at least `min` images in each.
pub(super) fn check_comparable(a: &Features, b: &Features, measure: &'static str, min: usize) -> Result<()> {
    if a.dims() != b.dims() {
        return Err(Error::shape(format!("{} numbers for each image", a.dims()), b.dims()));
    }
    match a.len().min(b.len()) {
        found if found < min => Err(Error::TooFew { measure, expected: min, found }),
        _ => Ok(()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use tiny_cats_models::random::{Purpose, Stream};

    /// Normal random numbers, with `shift` added to each.
    pub fn normal(stream: u64, rows: usize, dims: usize, shift: f32) -> Features {
        let numbers = Stream::new(9, Purpose::Evaluation, stream).normals(rows * dims);
        Features::new(dims, numbers.into_iter().map(|v| v + shift).collect()).unwrap()
    }

    #[test]
    fn invalid_features_give_specific_errors() {
        let error = |dims, data| Features::new(dims, data).unwrap_err().to_string();
        assert!(error(0, vec![1.0]).contains("expected 1 to 65536"), "{}", error(0, vec![1.0]));
        assert!(error(usize::MAX, vec![1.0]).contains("expected 1 to 65536"));
        assert!(error(2, vec![1.0; 3]).contains("found 3 numbers"));
        assert!(error(2, vec![]).contains("at least one image"));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(error(2, vec![0.0, 0.0, 1.0, bad]).contains("in image 1"));
        }
    }
}

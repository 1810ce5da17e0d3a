use crate::{Array, Init, Result, Scope, Tensor};

/// A table of vectors, one for each whole number, with the parameter `weight` `[rows, width]`. Initial values are normal with standard
/// deviation 0.02, and weight decay does not act on them.
#[derive(Clone)]
pub struct Embedding<T: Tensor> {
    weight: T::Param,
    path: String,
}

impl<T: Tensor> Embedding<T> {
    /// Builds the table.
    ///
    /// # Errors
    /// The errors of the parameters' source.
    pub fn new(mut scope: Scope<T>, rows: usize, width: usize) -> Result<Self> {
        let weight = scope.param("weight", [rows, width], Init::Normal(0.02))?;
        Ok(Self { weight, path: scope.path().to_owned() })
    }

    /// Selects rows: `[]`, a whole number → `[width]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) for another shape.
    pub fn forward(&self, label: &T) -> Result<T> {
        label.scoped(&self.path).embedding(&self.weight)
    }
}

/// Computes the fixed sine-cosine embedding of a square grid, `[side², width]`. Half of the width is for the row, half for the column (MAE,
/// arXiv 2111.06377). `width` must be a multiple of 4.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) for another width.
pub fn sincos_positions_2d(side: usize, width: usize) -> Result<Array> {
    let quarter = width / 4;
    let mut data = Vec::with_capacity(side * side * width);
    for position in 0..side * side {
        for coordinate in [position / side, position % side] {
            let angle = |i: usize| coordinate as f64 / 10_000f64.powf(i as f64 / quarter as f64);
            data.extend((0..quarter).map(|i| angle(i).sin() as f32));
            data.extend((0..quarter).map(|i| angle(i).cos() as f32));
        }
    }
    Array::new([side * side, width], data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_differ_from_each_other() {
        let positions = sincos_positions_2d(8, 192).unwrap();
        let rows: Vec<&[f32]> = positions.data().chunks(192).collect();
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[..i] {
                assert!(a.iter().zip(*b).map(|(x, y)| (x - y).powi(2)).sum::<f32>() > 0.1);
            }
        }
        assert!(sincos_positions_2d(8, 190).is_err());
    }
}

//! Dropout during training, with masks from specified random streams.

use candle_core::{Device, Tensor as CandleTensor};
use rayon::prelude::*;

use super::{Tape, Var};
use crate::{
    Error, Result,
    candle::{
        CandleValue,
        elementwise::mask_scale,
        precision::{convert, wide},
    },
    random::{Purpose, Stream},
    shape,
};

/// Bits of the stream number for the index of the dropout operation in the forward pass.
const INDEX_BITS: u32 = 12;
/// Bits of the stream number for the item of the optimizer step.
const ITEM_BITS: u32 = 20;
/// Bits of the stream number for the optimizer step.
const STEP_BITS: u32 = 64 - INDEX_BITS - ITEM_BITS;

/// The key of the dropout masks of one forward pass: see [`Tape::with_dropout`]. [`random`](crate::random) specifies the masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutKey {
    /// Seed of the run.
    pub seed: u64,
    /// Number of optimizer steps before this one, below 2³².
    pub step: u64,
    /// Index of the first item of this micro-batch among all items of the optimizer step, over all micro-batches and processes. The
    /// following items have the following indices, below 2²⁰.
    pub first_item: u64,
}

impl DropoutKey {
    /// Returns the stream of an item's mask.
    fn stream(self, item: usize, index: usize) -> Result<Stream> {
        let (item, index) = (self.first_item.saturating_add(item as u64), index as u64);
        for (name, value, bits) in [
            ("a step", self.step, STEP_BITS),
            ("an item index", item, ITEM_BITS),
            ("a dropout index", index, INDEX_BITS),
        ] {
            if value >> bits != 0 {
                let expected = format!("{name} below {}", 1u64 << bits);
                return Err(Error::shape("dropout", expected, value));
            }
        }
        let number = (self.step << (ITEM_BITS + INDEX_BITS)) | (item << INDEX_BITS) | index;
        Ok(Stream::new(self.seed, Purpose::Dropout, number))
    }

    /// Returns the mask of the dropout operation `index` for values of these sizes: 1 where a value is kept. The first size is the batch.
    fn mask(self, index: usize, p: f64, dims: &[usize], device: &Device) -> Result<CandleTensor> {
        let len = dims[1..].iter().product::<usize>();
        let streams = (0..dims[0]).map(|item| self.stream(item, index)).collect::<Result<Vec<_>>>()?;
        let mut mask = vec![0; dims[0] * len];
        mask.par_chunks_mut(len.max(1)).zip(streams).for_each(|(mask, mut stream)| {
            mask.iter_mut().for_each(|keep| *keep = u8::from(stream.uniform() > p));
        });
        Ok(CandleTensor::from_vec(mask, dims, device)?)
    }
}

impl Tape {
    /// Enables dropout, which is the identity without a key.
    ///
    /// The caller passes the seed of the run, the number of optimizer steps before this one, and the index of the micro-batch's first
    /// item in the step: for micro-batch `m` of process `r`, the number of items of the step that precede it in the order of the
    /// data. Then masks depend neither on how the step is split into micro-batches and processes, nor on whether the run was resumed,
    /// nor on gradient checkpointing. Call this before the forward pass, with another key for each micro-batch.
    #[must_use]
    pub fn with_dropout(self, key: DropoutKey) -> Self {
        self.0.dropout.set(Some(key));
        self
    }

    /// Returns the key and the index of the next dropout operation; `None` if there is no key.
    fn next_dropout(&self) -> Option<(DropoutKey, usize)> {
        let key = self.0.dropout.get()?;
        let mut record = self.0.record.borrow_mut();
        record.dropouts += 1;
        Some((key, record.dropouts - 1))
    }
}

impl Var {
    pub(super) fn apply_dropout(&self, p: f64) -> Result<Var> {
        shape::check_dropout(p)?;
        let Some((key, index)) = self.tape.next_dropout() else { return Ok(self.clone()) };
        let mask = key.mask(index, p, self.value.dims(), self.value.device())?;
        let scale = 1.0 / (1.0 - p);
        let y = convert(&mask_scale(&wide(&self.value)?, &mask, scale)?, self.value.dtype())?;
        self.unary_op(CandleValue::new(y), move |grad| mask_scale(grad, &mask, scale))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;
    use crate::{
        Precision, TapeOptions, Tensor,
        random::noise,
        tape::{Gradients, Param},
    };

    const KEY: DropoutKey = DropoutKey { seed: 5, step: 7, first_item: 0 };

    fn tensor(stream: u64, dims: &[usize]) -> CandleTensor {
        let values = noise(1, stream, dims.iter().product());
        CandleTensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap()
    }

    fn values(x: &CandleTensor) -> Vec<f64> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    fn dropout_of_ones(key: DropoutKey, p: f64, dims: &[usize]) -> Vec<f64> {
        let x = CandleTensor::ones(dims, DType::F64, &Device::Cpu).unwrap();
        values(Tape::new().with_dropout(key).constant(x).dropout(p).unwrap().value())
    }

    /// Computes the value and the gradients of a network with dropout inside and outside of nested checkpointed blocks.
    fn compute_network(
        x: &CandleTensor,
        w: &CandleTensor,
        key: Option<DropoutKey>,
        checkpoint: bool,
    ) -> (Vec<f64>, Gradients) {
        let tape = Tape::with_options(TapeOptions { checkpoint, ..TapeOptions::default() });
        let tape = key.map_or_else(|| tape.clone(), |key| tape.clone().with_dropout(key));
        let (x, w) = (tape.leaf("x", x.clone()), tape.leaf("w", w.clone()));
        let weight = Param::from(w);
        let block = |x: &Var, weight: &Param| {
            let weight = weight.clone();
            Var::checkpoint([x], move |[x]| {
                let weight = weight.clone();
                let y = x.dropout(0.3)?.linear(&weight, None)?;
                let inner = Var::checkpoint([&y], move |[y]| y.dropout(0.5)?.linear(&weight, None)?.tanh())?;
                inner.dropout(0.2)?.add(x)
            })
        };
        let y = block(&x.dropout(0.1).unwrap(), &weight).unwrap();
        let y = block(&y, &weight).unwrap().dropout(0.4).unwrap();
        let y = y.mul(&y).unwrap();
        (values(y.value()), y.backward(1.0).unwrap())
    }

    #[test]
    fn a_mask_depends_on_every_part_of_the_key_and_nothing_else() {
        let dims = [3, 50];
        let mask = dropout_of_ones(KEY, 0.5, &dims);
        assert_eq!(mask, dropout_of_ones(KEY, 0.5, &dims));
        for other in [
            DropoutKey { seed: 6, ..KEY },
            DropoutKey { step: 8, ..KEY },
            DropoutKey { first_item: 3, ..KEY },
        ] {
            assert_ne!(mask, dropout_of_ones(other, 0.5, &dims));
        }
        let tape = Tape::new().with_dropout(KEY);
        let x = tape.constant(CandleTensor::ones(&dims, DType::F64, &Device::Cpu).unwrap());
        assert_eq!(values(x.dropout(0.5).unwrap().value()), mask);
        assert_ne!(
            values(x.dropout(0.5).unwrap().value()),
            mask,
            "the second dropout of a pass has its own mask"
        );
        assert_ne!(mask[..50], mask[50..100], "each item has its own mask");
    }

    #[test]
    fn a_mask_does_not_depend_on_the_micro_batch() {
        let full_batch = dropout_of_ones(KEY, 0.3, &[5, 4, 3]);
        let first = dropout_of_ones(KEY, 0.3, &[2, 4, 3]);
        let rest = dropout_of_ones(DropoutKey { first_item: 2, ..KEY }, 0.3, &[3, 4, 3]);
        assert_eq!(full_batch, [first, rest].concat());
    }

    #[test]
    fn masks_follow_the_specification() {
        let mut stream = Stream::new(5, Purpose::Dropout, (7 << 32) + (2 << 12) + 1);
        let tape = Tape::new().with_dropout(DropoutKey { first_item: 1, ..KEY });
        let x = tape.constant(CandleTensor::ones((2, 9), DType::F64, &Device::Cpu).unwrap());
        x.dropout(0.25).unwrap();
        let second = values(x.dropout(0.25).unwrap().value());
        let expected: Vec<f64> =
            (0..9).map(|_| if stream.uniform() > 0.25 { 1.0 / 0.75 } else { 0.0 }).collect();
        assert_eq!(second[9..], expected);
    }

    #[test]
    fn dropout_preserves_the_expectation() {
        for p in [0.1, 0.5, 0.9] {
            let y = dropout_of_ones(KEY, p, &[10, 4000]);
            let mean = y.iter().sum::<f64>() / y.len() as f64;
            // Five standard deviations.
            let bound = 5.0 * (p / (1.0 - p) / y.len() as f64).sqrt();
            assert!((mean - 1.0).abs() < bound, "p {p}: mean {mean}");
            assert!(y.iter().all(|&y| y == 0.0 || y == 1.0 / (1.0 - p)), "p {p}");
        }
    }

    #[test]
    fn without_a_key_or_with_probability_0_dropout_is_the_identity() {
        let x = tensor(0, &[2, 8]);
        assert_eq!(values(Tape::new().constant(x.clone()).dropout(0.5).unwrap().value()), values(&x));
        assert_eq!(
            values(Tape::new().with_dropout(KEY).constant(x.clone()).dropout(0.0).unwrap().value()),
            values(&x)
        );
        assert_ne!(
            values(Tape::new().with_dropout(KEY).constant(x.clone()).dropout(0.5).unwrap().value()),
            values(&x)
        );
    }

    #[test]
    fn gradient_checkpointing_gives_the_same_bits() {
        let (x, w) = (tensor(0, &[3, 6]), tensor(1, &[6, 6]));
        let (expected, expected_gradients) = compute_network(&x, &w, Some(KEY), false);
        let (found, gradients) = compute_network(&x, &w, Some(KEY), true);
        assert_eq!(expected, found);
        for name in ["x", "w"] {
            assert_eq!(values(&expected_gradients[name]), values(&gradients[name]), "{name}");
        }
        assert_ne!(expected, compute_network(&x, &w, None, false).0);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let (x, w) = (tensor(0, &[2, 4]), tensor(1, &[4, 4]));
        let gradients = compute_network(&x, &w, Some(KEY), true).1;
        let sum =
            |x: &CandleTensor, w: &CandleTensor| compute_network(x, w, Some(KEY), true).0.iter().sum::<f64>();
        let perturbed = |t: &CandleTensor, i: usize, step: f64| {
            let mut values = values(t);
            values[i] += step;
            CandleTensor::from_vec(values, t.shape(), &Device::Cpu).unwrap()
        };
        for (i, gradient) in values(&gradients["x"]).into_iter().enumerate() {
            let slope = (sum(&perturbed(&x, i, 1e-6), &w) - sum(&perturbed(&x, i, -1e-6), &w)) / 2e-6;
            assert!(
                (gradient - slope).abs() < 1e-6 * (1.0 + slope.abs()),
                "x {i}: {gradient}, slope {slope}"
            );
        }
        for (i, gradient) in values(&gradients["w"]).into_iter().enumerate() {
            let slope = (sum(&x, &perturbed(&w, i, 1e-6)) - sum(&x, &perturbed(&w, i, -1e-6))) / 2e-6;
            assert!(
                (gradient - slope).abs() < 1e-6 * (1.0 + slope.abs()),
                "w {i}: {gradient}, slope {slope}"
            );
        }
    }

    #[test]
    fn kernels_and_compositions_give_the_same_values() {
        let run = |precision| {
            let tape =
                Tape::with_options(TapeOptions { precision, ..TapeOptions::default() }).with_dropout(KEY);
            let y = tape.leaf("x", tensor(0, &[3, 40]).to_dtype(DType::F32).unwrap()).dropout(0.25).unwrap();
            let value = y.value().to_dtype(DType::F64).unwrap();
            (values(&value), values(&y.backward(1.0).unwrap()["x"].to_dtype(DType::F64).unwrap()))
        };
        let expected = run(Precision::F32);
        assert_eq!(expected, crate::candle::with_candle_ops(|| run(Precision::F32)));
        assert_eq!(expected, run(Precision::Bf16));
    }

    #[test]
    fn invalid_probabilities_and_keys_are_errors() {
        let tape = Tape::new().with_dropout(DropoutKey { first_item: (1 << ITEM_BITS) - 1, ..KEY });
        let x = tape.constant(tensor(0, &[2, 3]));
        for p in [-0.1, 1.0, f64::NAN] {
            assert!(x.dropout(p).is_err(), "{p}");
        }
        let error = x.dropout(0.5).err().map(|e| e.to_string());
        assert_eq!(error.as_deref(), Some("dropout: expected an item index below 1048576, found 1048576"));
        let tape = Tape::new().with_dropout(DropoutKey { step: 1 << STEP_BITS, ..KEY });
        assert!(tape.constant(tensor(0, &[2, 3])).dropout(0.5).is_err());
    }
}

//! Forward kernels of candle-nn for GPUs: one launch each, where a composition of candle's operations takes four to twelve.
//!
//! They have no backward, except that of sigmoid. The tape does not need it: each of its operations computes its backward from values.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops;

use super::precision::{convert, is_half, wide};
use crate::{Error, Result, kernels::norm::NormKind};

/// True if the feature `cuda` is built in, without which candle-nn has no kernels for GPUs, and `device` is an NVIDIA GPU.
pub(super) fn has_fused_kernels(device: &Device) -> bool {
    cfg!(feature = "cuda") && device.is_cuda()
}

/// True if the kernels accept `inputs`, of which the first is the value and the others are its parameters.
pub(super) fn accepts(inputs: &[&Tensor]) -> bool {
    let first = inputs[0];
    let fits = |x: &&Tensor| {
        // A candle gradient would stop at a kernel without backward, and raise no error.
        x.dtype() == first.dtype() && !x.track_op()
    };
    // In f64 the norms compute in f32. Positions are 32-bit integers.
    (first.dtype() == DType::F32 || is_half(first.dtype()))
        && i32::try_from(first.elem_count()).is_ok()
        && inputs.iter().all(fits)
}

/// Computes layer or RMS normalization over the last axis.
pub(super) fn norm(
    kind: NormKind,
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    in_f32(x, |x| {
        let width = x.dim(D::Minus1)?;
        let weight = match weight {
            Some(weight) => wide(weight)?.contiguous()?,
            None => Tensor::ones(width, x.dtype(), x.device())?,
        };
        let bias = bias.map(|bias| Ok::<_, Error>(wide(bias)?.contiguous()?)).transpose()?;
        let eps = eps as f32;
        Ok(match (kind, bias) {
            (NormKind::Rms, None) => ops::rms_norm(x, &weight, eps)?,
            (NormKind::Rms, Some(bias)) => ops::rms_norm(x, &weight, eps)?.broadcast_add(&bias)?,
            (NormKind::Layer, bias) => {
                let bias = bias.map_or_else(|| weight.zeros_like(), Ok)?;
                // The kernel's variance, E[x²] − E[x]², has no digits left if the mean is large, and may be negative.
                let centered = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
                ops::layer_norm(&centered, &weight, &bias, eps)?
            }
        })
    })
}

/// Computes softmax over the last axis.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| Ok(ops::softmax_last_dim(x)?))
}

pub(super) fn sigmoid(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| Ok(ops::sigmoid(x)?))
}

/// Computes `f` of `x` in f32, and rounds its result once. In half precision the kernels of softmax and sigmoid round every exponential.
fn in_f32(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    // The kernels divide by the length of a row, and a GPU starts no empty grid.
    if x.elem_count() == 0 {
        return Ok(x.clone());
    }
    convert(&f(&wide(x)?.contiguous()?)?, x.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::{
        candle::{
            ops::{norm, sigmoid, softmax},
            with_candle_ops, with_fused_ops,
        },
        random::noise,
    };

    const EPS: f64 = 1e-6;

    /// An operation on a value and two parameters as long as its last axis, which it may ignore.
    type Operation = fn(&Tensor, &Tensor, &Tensor) -> Result<Tensor>;

    const OPERATIONS: [(&str, Operation); 7] = [
        ("rms_norm", |x, w, _| norm(NormKind::Rms, x, Some(w), None, EPS)),
        ("rms_norm with bias", |x, w, b| norm(NormKind::Rms, x, Some(w), Some(b), EPS)),
        ("rms_norm without weight", |x, _, _| norm(NormKind::Rms, x, None, None, EPS)),
        ("layer_norm", |x, w, b| norm(NormKind::Layer, x, Some(w), Some(b), EPS)),
        ("layer_norm without weight", |x, _, _| norm(NormKind::Layer, x, None, None, EPS)),
        ("softmax", |x, _, _| softmax(x)),
        ("sigmoid", |x, _, _| sigmoid(x)),
    ];

    /// The types of values, the bound of one rounding, and that of the roundings of a composition.
    const TYPES: [(DType, f64, f64); 3] = [
        (DType::F32, 4e-6, 4e-6),
        (DType::F16, 1.01 / 2048.0, 32.0 / 2048.0),
        (DType::BF16, 1.01 / 256.0, 32.0 / 256.0),
    ];

    fn random(stream: u64, dims: &[usize], dtype: DType) -> Tensor {
        let values = noise(3, stream, dims.iter().product());
        Tensor::from_vec(values, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
    }

    fn values(x: &Tensor) -> Vec<f64> {
        x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn assert_close(case: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
        assert_eq!(found.dims(), expected.dims(), "{case}");
        for (a, b) in values(found).into_iter().zip(values(expected)) {
            // Small results of softmax in f16 are subnormal.
            assert!((a - b).abs() <= tolerance * b.abs() + 4e-6, "{case}: {a}, expected {b}");
        }
    }

    /// Compares an operation with its composition in the same type, and with that in f64.
    fn check(case: &str, operation: Operation, [x, w, b]: [&Tensor; 3], [tolerance, composed]: [f64; 2]) {
        let case = format!("{case} of {:?} in {:?}", x.dims(), x.dtype());
        assert!(accepts(&[x, w, b]), "{case}");
        let found = with_fused_ops(|| operation(x, w, b)).unwrap();
        assert_eq!(found.dtype(), x.dtype(), "{case}");
        let exact = [x, w, b].map(|t| t.to_dtype(DType::F64).unwrap());
        let exact = with_candle_ops(|| operation(&exact[0], &exact[1], &exact[2])).unwrap();
        assert_close(&case, &found, &exact, tolerance);
        let reference = with_candle_ops(|| operation(x, w, b)).unwrap();
        let largest = values(&exact).into_iter().fold(1.0, |a: f64, b| a.max(b.abs()));
        for (a, b) in values(&found).into_iter().zip(values(&reference)) {
            assert!((a - b).abs() <= composed * largest, "{case}: {a}, composed {b}");
        }
    }

    #[test]
    fn fused_kernels_match_compositions() {
        for (dtype, tolerance, composed) in TYPES {
            for dims in [&[1, 1][..], &[7], &[3, 5], &[2, 3, 32], &[2, 4, 6, 64], &[40, 1030]] {
                let width = *dims.last().unwrap();
                let (x, w, b) =
                    (random(0, dims, dtype), random(1, &[width], dtype), random(2, &[width], dtype));
                for (name, operation) in OPERATIONS {
                    check(name, operation, [&x, &w, &b], [tolerance, composed]);
                }
            }
        }
    }

    #[test]
    fn fused_kernels_take_views() {
        for (dtype, tolerance, composed) in TYPES {
            let transposed = random(0, &[5, 4, 6], dtype).transpose(0, 2).unwrap();
            let part = random(1, &[3, 4, 12], dtype).narrow(2, 4, 5).unwrap();
            let rows = random(2, &[9, 5], dtype).narrow(0, 3, 4).unwrap();
            let column = |stream| random(stream, &[5, 2], dtype).narrow(1, 1, 1).unwrap().squeeze(1).unwrap();
            let (w, b) = (column(3), column(4));
            assert!(!transposed.is_contiguous() && !part.is_contiguous() && !w.is_contiguous());
            for (name, operation) in OPERATIONS {
                for x in [&transposed, &part, &rows] {
                    check(name, operation, [x, &w, &b], [tolerance, composed]);
                }
            }
        }
    }

    #[test]
    fn large_and_equal_values_do_not_cancel() {
        let (w, b) = (random(1, &[64], DType::F32), random(2, &[64], DType::F32));
        // With E[x²] − E[x]² the first variance, 1e-4, would be lost in the rounding of 1e6.
        let x = ((random(0, &[8, 64], DType::F32) * 0.01).unwrap() + 1000.0).unwrap();
        check("layer_norm", OPERATIONS[3].1, [&x, &w, &b], [2e-2, 2e-2]);
        let equal = Tensor::full(1000.1f32, (8, 64), &Device::Cpu).unwrap();
        let y = with_fused_ops(|| norm(NormKind::Layer, &equal, Some(&w), Some(&b), 1e-5)).unwrap();
        assert!(values(&y).iter().all(|v| v.is_finite()));
        for dtype in [DType::F16, DType::F32] {
            let logits = Tensor::new(&[[6e4f32, -6e4, 6e4], [-50.0, 50.0, 0.0]], &Device::Cpu).unwrap();
            let logits = logits.to_dtype(dtype).unwrap();
            let found = with_fused_ops(|| softmax(&logits)).unwrap();
            assert_close("softmax", &found, &with_candle_ops(|| softmax(&logits)).unwrap(), 1e-3);
            let found = with_fused_ops(|| sigmoid(&logits)).unwrap();
            assert_close("sigmoid", &found, &with_candle_ops(|| sigmoid(&logits)).unwrap(), 1e-3);
        }
    }

    #[test]
    fn compositions_compute_what_the_kernels_do_not_accept() {
        let (w, b) = (random(1, &[4], DType::F32), random(2, &[4], DType::F32));
        // In f64, which the norms do not have on the CPU, the result is that of the composition to the last bit.
        let double = [&random(0, &[3, 4], DType::F32), &w, &b].map(|t| t.to_dtype(DType::F64).unwrap());
        assert!(!accepts(&[&double[0]]));
        for (name, operation) in OPERATIONS {
            let run = || values(&operation(&double[0], &double[1], &double[2]).unwrap());
            assert_eq!(with_fused_ops(run), with_candle_ops(run), "{name}");
        }
        // Different types are an error, as without the kernels.
        let half = random(0, &[3, 4], DType::F16);
        assert!(!accepts(&[&half, &w]));
        assert!(with_fused_ops(|| norm(NormKind::Rms, &half, Some(&w), None, EPS)).is_err());
    }

    #[test]
    fn empty_values_give_empty_results() {
        for dims in [[0, 4], [3, 0]] {
            for (dtype, ..) in TYPES {
                let x = Tensor::zeros(&dims, dtype, &Device::Cpu).unwrap();
                let w = Tensor::zeros(dims[1], dtype, &Device::Cpu).unwrap();
                for (name, operation) in OPERATIONS {
                    let y = with_fused_ops(|| operation(&x, &w, &w)).unwrap();
                    assert_eq!((y.dims(), y.dtype()), (&dims[..], dtype), "{name}");
                }
            }
        }
    }

    #[test]
    fn gradients_of_candle_are_not_lost() {
        let [x, w, b] = [&[3, 4][..], &[4], &[4]].map(|dims| random(5, dims, DType::F32));
        let gradient = |operation: Operation| {
            let [x, w, b] = [&x, &w, &b].map(|t| Var::from_tensor(t).unwrap());
            assert!(!accepts(&[&x]) && !accepts(&[&x.detach(), &w]));
            let y = operation(&x, &w, &b).unwrap();
            let gradients = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            values(gradients.get(&x).expect("the gradient of x"))
        };
        for (name, operation) in OPERATIONS {
            let expected = with_candle_ops(|| gradient(operation));
            assert_eq!(with_fused_ops(|| gradient(operation)), expected, "{name}");
        }
    }

    #[test]
    fn the_choice_ends_with_its_call() {
        use super::super::{has_kernels, ops::uses_fused};
        let x = random(0, &[2, 3], DType::F32);
        let choice = || (has_kernels(&Device::Cpu), uses_fused(&[&x]));
        assert_eq!(choice(), (true, false));
        with_fused_ops(|| {
            assert_eq!(choice(), (false, true));
            assert_eq!(with_candle_ops(choice), (false, false));
            assert_eq!(choice(), (false, true));
        });
        assert_eq!(choice(), (true, false));
    }
}

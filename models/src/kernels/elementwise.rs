//! Elementwise functions of one and of two values.

use super::{Real, VALUES_PER_TASK, memory::build_in_chunks, sigmoid, simd::vectorized};

/// A function of one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum UnaryFunction {
    Exp,
    Log,
    Sqrt,
    Sigmoid,
    Tanh,
    Softplus,
    Clamp { min: f64, max: f64 },
}

impl UnaryFunction {
    /// True if the slope is computed from the result, which backward then needs in place of the input.
    pub(crate) fn is_slope_from_result(self) -> bool {
        matches!(self, Self::Exp | Self::Sqrt | Self::Sigmoid | Self::Tanh)
    }

    /// True if the result is in f32 for an input in half precision, as in PyTorch's autocast.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Self::Exp | Self::Log | Self::Softplus)
    }
}

/// Computes eˣ without the bounds of [`Real::exp`]: the result may be infinite or zero.
#[inline(always)]
fn exp<F: Real>(x: F) -> F {
    let root = (x * F::from_f64(0.5)).exp();
    if x >= F::from_f64(-87.0) && x <= F::from_f64(87.0) { x.exp() } else { root * root }
}

/// Computes `ln(1 + eˣ)`. The exponential is of a number that is not positive, so it cannot overflow.
#[inline(always)]
fn softplus<F: Real>(x: F) -> F {
    let zero = F::from_f64(0.0);
    let (positive, negative) = if x > zero { (x, -x) } else { (zero, x) };
    positive + exp(negative).ln_1p()
}

#[inline(always)]
fn clamp<F: Real>(x: F, min: F, max: F) -> F {
    // NaN stays NaN.
    let x = if x < min { min } else { x };
    if x > max { max } else { x }
}

#[inline(always)]
fn map<F: Real>(x: &[F], y: &mut [F], f: impl Fn(F) -> F) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = f(x));
}

#[inline(always)]
fn map_gradient<F: Real>(saved: &[F], grad: &[F], out: &mut [F], f: impl Fn(F, F) -> F) {
    out.iter_mut().zip(saved.iter().zip(grad)).for_each(|(out, (&saved, &grad))| *out = f(saved, grad));
}

vectorized! {
    fn apply<F: Real>(function: UnaryFunction, x: &[F], y: &mut [F]) {
        // One loop per function, so that the compiler vectorizes each.
        match function {
            UnaryFunction::Exp => map(x, y, exp),
            UnaryFunction::Log => map(x, y, F::ln),
            UnaryFunction::Sqrt => map(x, y, F::sqrt),
            UnaryFunction::Sigmoid => map(x, y, sigmoid),
            UnaryFunction::Tanh => map(x, y, F::tanh),
            UnaryFunction::Softplus => map(x, y, softplus),
            UnaryFunction::Clamp { min, max } => {
                let (min, max) = (F::from_f64(min), F::from_f64(max));
                map(x, y, |x| clamp(x, min, max));
            }
        }
    }
}

vectorized! {
    fn apply_backward<F: Real>(function: UnaryFunction, saved: &[F], grad: &[F], out: &mut [F]) {
        let one = F::from_f64(1.0);
        match function {
            UnaryFunction::Exp => map_gradient(saved, grad, out, |y, g| g * y),
            UnaryFunction::Log => map_gradient(saved, grad, out, |x, g| g / x),
            UnaryFunction::Sqrt => map_gradient(saved, grad, out, |y, g| g / (y + y)),
            UnaryFunction::Sigmoid => map_gradient(saved, grad, out, |y, g| g * y * (one - y)),
            UnaryFunction::Tanh => map_gradient(saved, grad, out, |y, g| g * (one - y * y)),
            UnaryFunction::Softplus => map_gradient(saved, grad, out, |x, g| g * sigmoid(x)),
            UnaryFunction::Clamp { min, max } => {
                let (min, max) = (F::from_f64(min), F::from_f64(max));
                map_gradient(saved, grad, out, |x, g| if x < min || x > max { F::from_f64(0.0) } else { g });
            }
        }
    }
}

vectorized! {
    fn subtract_values<F: Real>(a: &[F], b: &[F], difference: &mut [F]) {
        difference.iter_mut().zip(a.iter().zip(b)).for_each(|(difference, (&a, &b))| *difference = a - b);
    }
}

vectorized! {
    fn divide_values<F: Real>(a: &[F], b: &[F], quotient: &mut [F]) {
        quotient.iter_mut().zip(a.iter().zip(b)).for_each(|(quotient, (&a, &b))| *quotient = a / b);
    }
}

/// Computes `function` of each value.
pub(crate) fn unary<F: Real>(function: UnaryFunction, x: &[F]) -> Vec<F> {
    build_in_chunks(x.len(), VALUES_PER_TASK, |at, y| apply(function, &x[at..], y))
}

/// Returns the gradient of the input of [`unary`]. `saved` is the result if [`UnaryFunction::is_slope_from_result`], else the input.
pub(crate) fn unary_backward<F: Real>(function: UnaryFunction, saved: &[F], grad: &[F]) -> Vec<F> {
    build_in_chunks(saved.len(), VALUES_PER_TASK, |at, out| {
        apply_backward(function, &saved[at..], &grad[at..], out);
    })
}

vectorized! {
    fn apply_mask<F: Real>(x: &[F], mask: &[u8], scale: F, y: &mut [F]) {
        for (y, (&x, &mask)) in y.iter_mut().zip(x.iter().zip(mask)) {
            *y = if mask == 0 { F::from_f64(0.0) } else { x * scale };
        }
    }
}

/// Computes `x·scale` where the mask is not 0; other values are 0.
pub(crate) fn mask_scale<F: Real>(x: &[F], mask: &[u8], scale: f64) -> Vec<F> {
    build_in_chunks(x.len(), VALUES_PER_TASK, |at, y| {
        apply_mask(&x[at..], &mask[at..], F::from_f64(scale), y);
    })
}

/// Computes `a − b`.
pub(crate) fn sub<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "both have the same number of values");
    build_in_chunks(a.len(), VALUES_PER_TASK, |at, y| subtract_values(&a[at..], &b[at..], y))
}

/// Computes `a / b`.
pub(crate) fn div<F: Real>(a: &[F], b: &[F]) -> Vec<F> {
    assert_eq!(a.len(), b.len(), "both have the same number of values");
    build_in_chunks(a.len(), VALUES_PER_TASK, |at, y| divide_values(&a[at..], &b[at..], y))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FUNCTIONS: [UnaryFunction; 6] = [
        UnaryFunction::Exp,
        UnaryFunction::Log,
        UnaryFunction::Sqrt,
        UnaryFunction::Sigmoid,
        UnaryFunction::Tanh,
        UnaryFunction::Softplus,
    ];

    fn exact(function: UnaryFunction, x: f64) -> f64 {
        match function {
            UnaryFunction::Exp => x.exp(),
            UnaryFunction::Log => x.ln(),
            UnaryFunction::Sqrt => x.sqrt(),
            UnaryFunction::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            UnaryFunction::Tanh => x.tanh(),
            UnaryFunction::Softplus => x.max(0.0) + (-x.abs()).exp().ln_1p(),
            UnaryFunction::Clamp { min, max } => x.clamp(min, max),
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and slow")]
    fn f32_results_are_close_to_exact_values() {
        for function in FUNCTIONS {
            let positive = matches!(function, UnaryFunction::Log | UnaryFunction::Sqrt);
            let first = if positive { 1 } else { -20_000 };
            let x: Vec<f32> = (first..20_000).map(|i| i as f32 * 1e-3 + 3e-4).collect();
            for (&x, y) in x.iter().zip(unary(function, &x)) {
                let exact = exact(function, x.into());
                let error = (f64::from(y) - exact).abs() / exact.abs().max(1e-6);
                assert!(error < 1e-6, "{function:?} of {x}: {y}, exact {exact}");
            }
        }
    }

    #[test]
    fn extreme_values_give_limits_and_nan_stays_nan() {
        let (infinity, zero) = (f32::INFINITY, 0.0);
        let x = [-infinity, -1e4, 1e4, infinity, f32::NAN];
        let expected: [(UnaryFunction, [f32; 4]); 5] = [
            (UnaryFunction::Exp, [zero, zero, infinity, infinity]),
            (UnaryFunction::Sigmoid, [zero, zero, 1.0, 1.0]),
            (UnaryFunction::Tanh, [-1.0, -1.0, 1.0, 1.0]),
            (UnaryFunction::Softplus, [zero, zero, 1e4, infinity]),
            (UnaryFunction::Clamp { min: -2.0, max: 3.0 }, [-2.0, -2.0, 3.0, 3.0]),
        ];
        for (function, expected) in expected {
            let y = unary(function, &x);
            // The vectorized exponential ends at e^-87.
            assert!(
                y.iter().zip(expected).all(|(y, e)| *y == e || (y - e).abs() < 1e-37),
                "{function:?}: {y:?}"
            );
            assert!(y[4].is_nan(), "{function:?}: {y:?}");
        }
        assert_eq!(unary(UnaryFunction::Log, &[0.0f32, infinity]), [-infinity, infinity]);
        assert!(unary(UnaryFunction::Log, &[-1.0f32])[0].is_nan());
        let clamp = UnaryFunction::Clamp { min: -2.0, max: 3.0 };
        assert_eq!(unary_backward(clamp, &[-2.5f32, -2.0, 3.0, 3.5], &[1.0; 4]), [0.0, 1.0, 1.0, 0.0]);
    }
}

//! The floating-point types of the kernels.

use std::{
    iter::Sum,
    ops::{Add, AddAssign, Div, Mul, MulAssign, Neg, Sub},
};

use super::memory::thread_scratch;

/// `f32`, in which models run and are trained, or `f64`, in which tests check gradients.
pub(crate) trait Real:
    Copy
    + Default
    + Send
    + Sync
    + 'static
    + PartialOrd
    + Into<f64>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
{
    fn from_f64(x: f64) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn ln(self) -> Self;
    /// Computes `ln(1 + x)` for `x` from 0 to 1.
    fn ln_1p(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    /// Calls `f` with `len` values of this thread's scratch memory, which holds arbitrary numbers.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

impl Real for f64 {
    fn from_f64(x: f64) -> Self {
        x
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn ln(self) -> Self {
        libm::log(self)
    }
    fn ln_1p(self) -> Self {
        libm::log1p(self)
    }
    fn tanh(self) -> Self {
        libm::tanh(self)
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
    thread_scratch!(with_scratch, f64);
}

impl Real for f32 {
    fn from_f64(x: f64) -> Self {
        x as f32
    }

    /// Computes eˣ within 2 ulp; `x` is clamped to −87..88. There is no branch and no call, so that the compiler vectorizes loops over it:
    /// a polynomial gives the fraction, and bit operations give the power of two.
    #[inline(always)]
    fn exp(self) -> Self {
        /// Adding it rounds to an integer in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let integer = shifted - ROUND;
        // ln 2 in two parts, so that the remainder is exact.
        let r = x - integer * 0.693_359_4 - integer * -2.121_944_4e-4;
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p * r + c;
        }
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
        p * power
    }

    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    fn ln(self) -> Self {
        libm::logf(self)
    }

    /// Computes `ln(1 + x)` for `x` from 0 to 1 without a branch, by the series of `2·artanh(x/(2 + x))`.
    #[inline(always)]
    fn ln_1p(self) -> Self {
        let z = self / (2.0 + self);
        let square = z * z;
        let mut p = 2.0 / 17.0;
        for c in [2.0 / 15.0, 2.0 / 13.0, 2.0 / 11.0, 2.0 / 9.0, 2.0 / 7.0, 2.0 / 5.0, 2.0 / 3.0, 2.0] {
            p = p * square + c;
        }
        p * z
    }

    /// Computes the hyperbolic tangent without a branch: near 0 the polynomial of Cephes, else `1 − 2/(e²ˣ + 1)`.
    #[inline(always)]
    fn tanh(self) -> Self {
        let x = self.abs();
        let square = x * x;
        let mut p = -5.704_988_7e-3;
        for c in [2.063_908_8e-2, -5.373_971_6e-2, 0.133_314_42, -0.333_332_8] {
            p = p * square + c;
        }
        let small = p * square * x + x;
        let large = 1.0 - 2.0 / (Real::exp(2.0 * x) + 1.0);
        (if x < 0.625 { small } else { large }).copysign(self)
    }

    /// Computes the error function within 4e-7, without a branch: the form of Abramowitz and Stegun, 7.1.26, with newly fitted coefficients.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = self.abs();
        let t = 1.0 / (1.0 + 0.5 * x);
        let mut p = 0.058_800_66;
        for c in [-0.218_233_47, 0.122_170_03, 0.307_688_56, 0.130_839_47, 0.321_699_86, 0.277_034_9] {
            p = p * t + c;
        }
        (1.0 - p * t * Real::exp(-x * x)).copysign(self)
    }

    thread_scratch!(with_scratch, f32);
}

/// Computes the logistic function `σ(x)`.
#[inline(always)]
pub(crate) fn sigmoid<F: Real>(x: F) -> F {
    F::from_f64(1.0) / (F::from_f64(1.0) + (-x).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and slow")]
    fn exp_is_within_two_ulp_of_exact() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 3e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(Real::exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): relative error {error}");
        }
        assert!(Real::exp(-1e30f32) < 1e-37 && Real::exp(1e30f32).is_finite());
    }

    #[test]
    #[cfg_attr(miri, ignore = "no unsafe code, and slow")]
    fn erf_is_close_to_the_exact_value() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4;
            let error = (f64::from(Real::erf(x)) - libm::erf(x.into())).abs();
            assert!(error < 4e-7, "erf({x}): {error}");
        }
        assert_eq!([f32::NEG_INFINITY, f32::INFINITY].map(Real::erf), [-1.0, 1.0]);
        assert!(Real::erf(f32::NAN).is_nan());
    }
}

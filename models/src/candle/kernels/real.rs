//! Floating-point numbers that kernels are written for, and candle tensors seen as slices.

use std::{
    cell::Cell,
    iter::Sum,
    ops::{Add, AddAssign, Deref, Div, Mul, MulAssign, Neg, Range, Sub},
};

use candle_core::{Storage, Tensor, WithDType};

use crate::Result;

/// `f32`, what training runs in, or `f64`, what gradients are checked in.
pub(crate) trait Real:
    WithDType
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + MulAssign
    + Sum
    + Send
    + Sync
{
    fn of(x: f64) -> Self;
    fn exp(self) -> Self;
    fn sqrt(self) -> Self;
    fn erf(self) -> Self;
    /// Lends `len` values of this thread's memory, which is kept for the next time; what they are is left over from the last.
    fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R;
}

/// Taken while in use, so that another kernel that this thread is given while it waits gets memory of its own.
macro_rules! scratch {
    ($type:ty) => {
        fn with_scratch<R>(len: usize, f: impl FnOnce(&mut [Self]) -> R) -> R {
            thread_local! {
                static SCRATCH: Cell<Vec<$type>> = const { Cell::new(Vec::new()) };
            }
            let mut values = SCRATCH.take();
            if values.len() < len {
                values.resize(len, 0.0);
            }
            let result = f(&mut values[..len]);
            SCRATCH.set(values);
            result
        }
    };
}

impl Real for f64 {
    fn of(x: f64) -> Self {
        x
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
    scratch!(f64);
}

impl Real for f32 {
    fn of(x: f64) -> Self {
        x as f32
    }

    /// Without a branch or a call, so that loops over it become vector code: the fraction by a polynomial, the power of two by its
    /// bits. Within 2 ulp of the exact value; below −87 it returns that end's value (1.6e-38), above 88 that end's.
    #[inline(always)]
    fn exp(self) -> Self {
        /// Adding it rounds to a whole number in the low bits of the mantissa.
        const ROUND: f32 = 12_582_912.0;
        let x = self.clamp(-87.0, 88.0);
        let shifted = x * std::f32::consts::LOG2_E + ROUND;
        let whole = shifted - ROUND;
        // ln 2 in two parts, so that the remainder is exact.
        let r = x - whole * 0.693_359_4 - whole * -2.121_944_4e-4;
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

    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(f64::from(self)) as f32
    }

    scratch!(f32);
}

/// `σ(x)`.
#[inline(always)]
pub(crate) fn sigmoid<F: Real>(x: F) -> F {
    F::of(1.0) / (F::of(1.0) + (-x).exp())
}

/// The values of a contiguous CPU tensor, locked while they are looked at.
pub(crate) struct View<G, F> {
    guard: G,
    range: Range<usize>,
    kind: std::marker::PhantomData<F>,
}

impl<G: Deref<Target = Storage>, F: WithDType> Deref for View<G, F> {
    type Target = [F];

    fn deref(&self) -> &[F] {
        match &*self.guard {
            Storage::Cpu(cpu) => {
                &F::cpu_storage_as_slice(cpu).expect("checked when made")[self.range.clone()]
            }
            _ => unreachable!("checked when made"),
        }
    }
}

/// Looks into a contiguous CPU tensor of type `F`.
///
/// # Errors
/// When it is on another device, of another type or not contiguous.
pub(crate) fn view<F: WithDType>(x: &Tensor) -> Result<View<impl Deref<Target = Storage> + '_, F>> {
    let fail = |what: &str| candle_core::Error::Msg(what.to_owned());
    let (guard, layout) = x.storage_and_layout();
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| fail("a kernel needs a contiguous tensor"))?;
    match &*guard {
        Storage::Cpu(cpu) => F::cpu_storage_as_slice(cpu).map(|_| ())?,
        _ => return Err(fail("a CPU kernel needs a CPU tensor").into()),
    }
    Ok(View { guard, range: start..end, kind: std::marker::PhantomData })
}

/// Calls `$function::<f32 or f64>($args)` by the type of `$x`.
macro_rules! by_type {
    ($x:expr, $function:ident ( $($args:expr),* $(,)? )) => {
        match $x.dtype() {
            candle_core::DType::F32 => $function::<f32>($($args),*),
            candle_core::DType::F64 => $function::<f64>($($args),*),
            other => Err(candle_core::Error::Msg(format!("expected f32 or f64, found {other:?}")).into()),
        }
    };
}
pub(crate) use by_type;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp_of_exact() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 3e-4;
            let exact = f64::from(x).exp();
            let error = (f64::from(Real::exp(x)) - exact).abs() / exact;
            assert!(error < 2.5e-7, "exp({x}): relative error {error}");
        }
        assert!(Real::exp(-1e30f32) < 1e-37 && Real::exp(1e30f32).is_finite());
    }
}

//! Access to candle tensors as slices, for the kernels.

use std::ops::{Deref, Range};

use candle_core::{Device, Shape, Storage, Tensor, WithDType};

use crate::{Result, kernels::product::PlainFactor};

/// A number type of both the kernels and candle: f32 or f64.
pub(crate) trait Element: PlainFactor + WithDType {}

impl Element for f32 {}
impl Element for f64 {}

/// Creates a tensor on the CPU.
pub(super) fn cpu_tensor<F: WithDType>(data: Vec<F>, shape: impl Into<Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape.into(), &Device::Cpu)?)
}

/// The values of a contiguous CPU tensor, which stays locked while the view exists.
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
                &F::cpu_storage_as_slice(cpu).expect("checked by `view`")[self.range.clone()]
            }
            _ => unreachable!("checked by `view`"),
        }
    }
}

/// Borrows the values of a contiguous CPU tensor of type `F`.
///
/// # Errors
/// If the tensor is on another device, of another type or not contiguous.
pub(crate) fn view<F: WithDType>(x: &Tensor) -> Result<View<impl Deref<Target = Storage> + '_, F>> {
    let error = |message: &str| candle_core::Error::Msg(message.to_owned());
    let (guard, layout) = x.storage_and_layout();
    let (start, end) =
        layout.contiguous_offsets().ok_or_else(|| error("a kernel needs a contiguous tensor"))?;
    match &*guard {
        Storage::Cpu(cpu) => F::cpu_storage_as_slice(cpu).map(|_| ())?,
        _ => return Err(error("a CPU kernel needs a CPU tensor").into()),
    }
    Ok(View { guard, range: start..end, kind: std::marker::PhantomData })
}

/// Calls `$function::<f32 or f64>($args)`, depending on the type of `$x`.
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

//! The candle backend: [`CandleValue`] for inference, and the operations that it shares with the [tape](crate::tape).

mod convolution;
mod element;
pub(crate) mod elementwise;
mod fused;
pub(crate) mod ops;
pub(crate) mod precision;
pub(crate) mod spatial;
mod value;
pub(crate) mod windows;

pub use ops::{has_kernels, with_candle_ops, with_fused_ops};
pub use value::{CandleValue, Params};

use candle_core::{DType, Device, Tensor};

use crate::{Array, Network, Result, Scope, Weights, main_output};

/// Returns the first NVIDIA GPU if the feature `cuda` is built in and the GPU is usable; the CPU otherwise.
pub fn best_device() -> Device {
    // candle's own choice fails if it was built for CUDA and there is no GPU.
    if cfg!(feature = "cuda") { Device::new_cuda(0).unwrap_or(Device::Cpu) } else { Device::Cpu }
}

/// Copies `array` to `device`, and converts it to `dtype`.
///
/// # Errors
/// Errors of candle: out of memory, a device that is gone.
pub fn to_device(array: &Array, dtype: DType, device: &Device) -> Result<Tensor> {
    Ok(Tensor::from_slice(array.data(), array.dims(), device)?.to_dtype(dtype)?)
}

/// Copies `tensor` to plain memory, in f32.
///
/// # Errors
/// Errors of candle.
pub fn to_host(tensor: &Tensor) -> Result<Array> {
    let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    Array::new(tensor.dims(), values)
}

/// Computes the main output of `network` on the device of `inputs`, which are in the order of the definition. Labels are `u32`. `device` is
/// that of the inputs.
///
/// # Errors
/// Errors of the parameters and of the network.
pub fn forward<N: Network>(
    network: &N,
    weights: &Weights,
    inputs: &[Tensor],
    device: &Device,
) -> Result<Tensor> {
    let mut params = Params::new(weights, DType::F32, device)?;
    let built = network.build(&mut Scope::root(&mut params))?;
    let inputs: Vec<CandleValue> = inputs.iter().map(|input| CandleValue::new(input.clone())).collect();
    Ok(main_output(N::forward(&built, &inputs)?)?.into_inner())
}

//! The devices that a program computes on.

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::doctor::CUDA_INSTALL_COMMAND;

/// The device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// The first NVIDIA GPU if this program was built with CUDA and finds one, or the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// Opens the device. If [`Auto`](Self::Auto) finds no usable GPU, `note` gets the reason.
    ///
    /// # Errors
    /// The reason, in one line, if the device is not available.
    pub fn open(self, note: &mut dyn FnMut(&str)) -> Result<Device, String> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
            Self::Auto => Ok(gpu(0).unwrap_or_else(|reason| {
                note(&format!("no usable GPU ({reason}); computing on the CPU"));
                Device::Cpu
            })),
            Self::Cuda if !cfg!(feature = "cuda") => Err(format!(
                "this program was built without CUDA; install NVIDIA's CUDA toolkit, \
                 then run {CUDA_INSTALL_COMMAND} (tiny-cats doctor lists what is missing)"
            )),
            Self::Cuda => gpu(0).map_err(|reason| format!("no usable GPU: {reason}")),
        }
    }

    /// Opens the device of process `rank` of `count`, two or more: a separate GPU, or the CPU if that is requested.
    ///
    /// # Errors
    /// The reason, in one line, if there are fewer GPUs than processes.
    pub fn open_for_rank(self, rank: usize, count: usize) -> Result<Device, String> {
        if self == Self::Cpu || (self == Self::Cuda && !cfg!(feature = "cuda")) {
            return self.open(&mut |_| {});
        }
        let available = gpus();
        if available < count {
            return Err(format!(
                "expected {count} usable GPUs, found {available}; the device cpu tests on the CPU"
            ));
        }
        gpu(rank).map_err(|reason| format!("GPU {rank} cannot be used: {reason}"))
    }
}

/// The number of NVIDIA GPUs.
#[cfg(feature = "cuda")]
fn gpus() -> usize {
    use candle_core::cuda_backend::cudarc::driver::CudaContext;
    CudaContext::device_count().map_or(0, |count| usize::try_from(count).unwrap_or(0))
}

/// Always 0, since this program was built without CUDA.
#[cfg(not(feature = "cuda"))]
fn gpus() -> usize {
    0
}

/// Opens an NVIDIA GPU; the error is one line.
fn gpu(index: usize) -> Result<Device, String> {
    // With RUST_BACKTRACE, candle's errors have a backtrace after the first line.
    Device::new_cuda(index).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

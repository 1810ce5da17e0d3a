//! Arguments that several commands take.

use anyhow::bail;
use candle_core::Device;
use tiny_cats_export::runtime::RuntimeKind;
use tiny_cats_models::Precision;

use crate::{checkpoint::WhichWeights, doctor::GET_CUDA};

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceKind {
    /// The first NVIDIA GPU where this program was built for it and finds one, else the processor.
    Auto,
    /// The processor.
    Cpu,
    /// The first NVIDIA GPU.
    Cuda,
}

impl DeviceKind {
    /// The device.
    ///
    /// # Errors
    /// When it is not there.
    pub fn device(self) -> anyhow::Result<Device> {
        match self {
            DeviceKind::Cpu => Ok(Device::Cpu),
            DeviceKind::Auto if !cfg!(feature = "cuda") => Ok(Device::Cpu),
            DeviceKind::Auto => Ok(gpu().unwrap_or_else(|reason| {
                eprintln!("no GPU can be used ({reason}); computing on the processor");
                Device::Cpu
            })),
            DeviceKind::Cuda if !cfg!(feature = "cuda") => {
                bail!(
                    "--device cuda: this program was built without CUDA; with NVIDIA's CUDA toolkit installed, \
                     {GET_CUDA} brings it (tiny-cats doctor says what is there)"
                )
            }
            DeviceKind::Cuda => match gpu() {
                Ok(device) => Ok(device),
                Err(reason) => bail!("--device cuda: no GPU can be used: {reason}"),
            },
        }
    }
}

/// The first NVIDIA GPU, or in one line why it cannot be used.
fn gpu() -> Result<Device, String> {
    // With RUST_BACKTRACE, candle's errors have where they came from in their further lines.
    Device::new_cuda(0).map_err(|e| e.to_string().lines().next().unwrap_or_default().to_owned())
}

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PrecisionKind {
    /// 32 bits.
    F32,
    /// 16 bits with the range of 32.
    Bf16,
    /// 16 bits with a small range, for which the loss is scaled.
    F16,
}

impl From<PrecisionKind> for Precision {
    fn from(kind: PrecisionKind) -> Self {
        match kind {
            PrecisionKind::F32 => Self::F32,
            PrecisionKind::Bf16 => Self::Bf16,
            PrecisionKind::F16 => Self::F16,
        }
    }
}

/// Which of a checkpoint's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightsKind {
    /// Those that the optimizer stepped.
    Raw,
    /// Their moving average.
    Ema,
}

/// What `--weights` asks for.
pub fn which(weights: Option<WeightsKind>) -> WhichWeights {
    match weights {
        None => WhichWeights::Default,
        Some(WeightsKind::Raw) => WhichWeights::Raw,
        Some(WeightsKind::Ema) => WhichWeights::Ema,
    }
}

/// The runtimes that `--runtime` takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Embedded, pure Rust.
    Tract,
    /// ONNX Runtime, found when used.
    Ort,
    /// The definition itself, with the file's weights.
    Candle,
}

impl From<Runtime> for RuntimeKind {
    fn from(runtime: Runtime) -> Self {
        match runtime {
            Runtime::Tract => Self::Tract,
            Runtime::Ort => Self::Ort,
            Runtime::Candle => Self::Candle,
        }
    }
}

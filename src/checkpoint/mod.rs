//! Checkpoints: files that hold the weights of a model.
//!
//! Three kinds are written: the [state of a training run](TrainingState), and a released model as [safetensors](write_safetensors) and for
//! [PyTorch](write_torch). [`open`] reads these and the files of the Python project that this one succeeds. No file is trusted: sizes,
//! counts, nesting and offsets are checked before memory is allocated.

mod compare;
mod compat;
mod contents;
mod describe;
mod dictionary;
mod error;
mod init;
mod model;
mod network;
mod open;
mod released;
mod safetensors;
mod state;
mod tensor_data;
pub mod torch;
pub mod verify;

pub use compare::WeightsComparison;
pub use contents::{Checkpoint, Format, Unsupported, WeightsSelection};
pub use describe::{Assumption, ModelDescription, ModelOverrides};
pub use dictionary::WeightsLocation;
pub use error::{Error, ErrorKind, Result};
pub use init::{InitFile, InitialWeights};
pub use model::{OpenError, is_checkpoint, open_model};
pub use open::open;
pub use released::{write_safetensors, write_torch};
pub use state::TrainingState;
pub use tensor_data::{Dtype, TensorData};

//! All-reduce on GPUs with NVIDIA's NCCL.

use std::time::Duration;

use candle_core::{
    CpuStorage, CudaStorage, Device, InplaceOp1, Layout, Tensor,
    cuda_backend::cudarc::nccl::{Comm, Id, ReduceOp, result::NcclError},
};

use crate::train::{Error, Result};

/// Bytes of the NCCL communicator's id.
const ID: usize = 128;

/// A GPU's membership in the NCCL communicator.
pub(super) struct Nccl {
    /// `None` once a process was lost: the pending operation then never completes.
    comm: Option<Comm>,
}

/// Creates the id of the NCCL communicator.
pub(super) fn id() -> Result<Vec<u8>> {
    let id = Id::new().map_err(|NcclError(error)| failed(error))?;
    Ok(id.internal().iter().map(|&byte| byte as u8).collect())
}

impl Nccl {
    /// Joins the communicator; returns when all `size` processes have.
    pub(super) fn join(device: &Device, rank: usize, size: usize, id: &[u8]) -> Result<Self> {
        let id: [u8; ID] = id.try_into().map_err(|_| failed("expected an id of 128 bytes"))?;
        let stream = device.as_cuda_device()?.cuda_stream();
        // NCCL takes the GPU that is current for this thread.
        let current = stream.context().bind_to_thread();
        current.map_err(failed)?;
        let comm = Comm::from_rank(stream, rank, size, Id::uninit(id.map(|byte| byte as _)));
        Ok(Self { comm: Some(comm.map_err(|NcclError(error)| failed(error))?) })
    }

    /// Replaces `flat` by the sum of all processes' rows.
    ///
    /// Waits until the sum is complete, or `check_alive` returns an error because a process has ended.
    pub(super) fn sum(&mut self, flat: &Tensor, mut check_alive: impl FnMut() -> Result<()>) -> Result<()> {
        let Some(comm) = &self.comm else {
            return Err(failed("a process was lost"));
        };
        flat.inplace_op1(&AllReduce(comm))?;
        let done = comm.stream().record_event(None).map_err(failed)?;
        // Synchronizing the stream would block forever once a process has ended.
        while !done.try_is_complete().map_err(failed)? {
            if let Err(error) = check_alive() {
                // Dropping the communicator aborts the operation; the stream is then free to save the completed work.
                self.comm = None;
                return Err(error);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }
}

struct AllReduce<'a>(&'a Comm);

impl InplaceOp1 for AllReduce<'_> {
    fn name(&self) -> &'static str {
        "all-reduce"
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> candle_core::Result<()> {
        candle_core::bail!("NCCL requires GPUs")
    }

    fn cuda_fwd(&self, storage: &mut CudaStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("expected contiguous gradients")
        };
        let slice = storage.as_cuda_slice_mut::<f32>()?;
        let summed = self.0.all_reduce_in_place(&mut slice.slice_mut(start..end), &ReduceOp::Sum);
        summed.map(|_| ()).map_err(|NcclError(error)| candle_core::Error::Msg(format!("NCCL: {error:?}")))
    }
}

/// A transient error of NCCL: a link that failed may work for another process.
fn failed(error: impl std::fmt::Debug) -> Error {
    Error::process(0, format!("NCCL: {error:?}"))
}

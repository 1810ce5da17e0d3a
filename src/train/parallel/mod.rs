//! Training in several processes, one for each GPU.
//!
//! A step's micro-batches are divided among the processes: of every `size` consecutive ones, process `rank` takes the one at index `rank`.
//! Their gradients are summed in the order of the ranks, and all take the same step with the same bits. So `n` processes compute the same
//! as one process with `n` times as many micro-batches of `1/n` the size.
//!
//! Process 0 is the run: it holds the run's folder, evaluates, saves and reports. It starts the others as children and sends them the run's
//! position over pipes; they [`follow()`] it. They write no file and end with it. NCCL sums gradients on GPUs if the program was built with
//! it. Otherwise the gradients also go over the pipes, and process 0 sums them.

mod connection;
mod flat;
mod follow;
pub(super) mod gradients;
#[cfg(feature = "nccl")]
mod nccl;
mod peer;
#[cfg(test)]
mod tests;

use std::{io, process::Command};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::{
    connection::{Connection, MAX_MESSAGE_BYTES, Message},
    flat::FlatGradients,
    peer::Peer,
};
use super::{Error, Result, StepGradients, run::RunProgress};

pub use follow::{failed, follow};

/// The processes that train one run together, seen from one of them.
pub struct ProcessGroup {
    rank: usize,
    size: usize,
    role: Role,
    #[cfg(feature = "nccl")]
    nccl: Option<nccl::Nccl>,
}

enum Role {
    Alone,
    /// Process 0: starts the others, and holds them in the order of their ranks once they are started.
    First {
        command: Box<dyn FnMut(usize) -> Command>,
        peers: Vec<Peer>,
    },
    /// Another process, with its connection to process 0.
    Follower(Connection),
}

/// The message that the other processes need before the first step.
#[derive(Serialize, Deserialize)]
pub(super) struct Start {
    /// The task's settings, which show that all processes see the same data.
    pub(super) settings: Value,
    /// True if the run resumes from the training state of its step.
    pub(super) saved: bool,
    pub(super) progress: RunProgress,
    /// Items in a micro-batch of one process.
    pub(super) micro_batch: usize,
}

impl ProcessGroup {
    /// A group of one process, which trains alone.
    pub fn single() -> Self {
        Self::new(0, 1, Role::Alone)
    }

    /// The group as seen by process 0 of `size`.
    ///
    /// `command` returns the command that starts the process of a given rank, which must call [`follow()`].
    pub fn leader(size: usize, command: impl FnMut(usize) -> Command + 'static) -> Self {
        Self::new(0, size, Role::First { command: Box::new(command), peers: Vec::new() })
    }

    /// The group as seen by this process, which was started as `rank` of `size`.
    fn follower(rank: usize, size: usize) -> Self {
        Self::new(rank, size, Role::Follower(Connection::current_process()))
    }

    fn new(rank: usize, size: usize, role: Role) -> Self {
        Self {
            rank,
            size,
            role,
            #[cfg(feature = "nccl")]
            nccl: None,
        }
    }

    /// The rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Describes how the processes share the work on `device`; `None` for a single process.
    pub(super) fn describe(&self, device: &Device) -> Option<String> {
        let description = if device.is_cpu() {
            "share one CPU: a functional test without speedup"
        } else if cfg!(feature = "nccl") {
            "have one GPU each and sum gradients with NCCL"
        } else {
            "have one GPU each and sum gradients on the CPU: a build with the feature nccl is faster"
        };
        (self.size > 1).then(|| format!("{} processes {description}", self.size))
    }

    /// Starts the other processes and waits until they are ready for the first step.
    pub(super) fn begin(&mut self, start: &Start, device: &Device) -> Result<()> {
        let Role::First { command, peers } = &mut self.role else { return Ok(()) };
        let text = serde_json::to_vec(start).map_err(|error| Error::process(0, error.to_string()))?;
        let start = Message::Start(text);
        for rank in peers.len() + 1..self.size {
            peers.push(Peer::start(rank, command(rank))?);
        }
        peers.iter_mut().try_for_each(|other| other.send(&start))?;
        for other in &mut *peers {
            other.ready()?;
        }
        #[cfg(feature = "nccl")]
        if device.is_cuda() {
            let id = nccl::id()?;
            peers.iter_mut().try_for_each(|other| other.send(&Message::Id(id.clone())))?;
            self.nccl = Some(nccl::Nccl::join(device, 0, self.size, &id)?);
        }
        let _ = device;
        Ok(())
    }

    /// Sums the loss and the gradients of a step over all processes.
    ///
    /// `local` is the share of this process. All processes call this in each step.
    ///
    /// # Errors
    /// Returns an out-of-memory error in all processes, with nothing changed, if memory was too small in any. Returns an error if a process
    /// failed or ended.
    pub(super) fn all_reduce(&mut self, local: Result<(f64, StepGradients)>) -> Result<(f64, StepGradients)> {
        if matches!(self.role, Role::Alone) {
            return local;
        }
        // All allocations come before the processes compare whether they ran out of memory.
        let local =
            match local.and_then(|(loss, gradients)| Ok((loss, FlatGradients::new(gradients, self.size)?))) {
                Err(error) if !error.is_out_of_memory() => return Err(error),
                local => local,
            };
        let loss = self.all_reduce_loss(local.as_ref().ok().map(|(loss, _)| *loss))?;
        match (loss, local) {
            (Some(loss), Ok((_, mut packed))) => {
                // Later errors are of this process only; the other processes may not have them.
                let rank = self.rank;
                let gradients = self.all_reduce_sum(&mut packed.flat).and_then(|()| packed.unflatten());
                Ok((loss, gradients.map_err(|error| error.in_process(rank))?))
            }
            (_, Err(error)) => Err(error),
            (None, Ok(_)) => Err(Error::Candle(candle_core::Error::Msg(
                "out of memory in another process of the run".into(),
            ))),
        }
    }

    /// Sums the losses; `None` if a process ran out of memory.
    fn all_reduce_loss(&mut self, local: Option<f64>) -> Result<Option<f64>> {
        let message = |loss: Option<f64>| loss.map_or(Message::OutOfMemory, Message::Loss);
        match &mut self.role {
            Role::Alone => Ok(local),
            Role::First { peers, .. } => {
                let mut sum = local;
                for other in &mut *peers {
                    let loss = other.loss()?;
                    sum = sum.zip(loss).map(|(sum, loss)| sum + loss);
                }
                peers.iter_mut().try_for_each(|other| other.send(&message(sum)))?;
                Ok(sum)
            }
            Role::Follower(first) => {
                first.send(&message(local)).map_err(leader_lost)?;
                match first.receive(MAX_MESSAGE_BYTES).map_err(leader_lost)? {
                    Message::Loss(loss) => Ok(Some(loss)),
                    Message::OutOfMemory => Ok(None),
                    _ => Err(unexpected(0)),
                }
            }
        }
    }

    /// Replaces `flat` by the sum of all processes' rows, the same bits in each.
    fn all_reduce_sum(&mut self, flat: &mut Tensor) -> Result<()> {
        #[cfg(feature = "nccl")]
        if let Some(nccl) = &mut self.nccl {
            let role = &mut self.role;
            return nccl.sum(flat, || match role {
                Role::First { peers, .. } => peers.iter_mut().try_for_each(Peer::check_alive),
                _ => Ok(()),
            });
        }
        let (n, device) = (flat.elem_count(), flat.device().clone());
        let mut values = flat.to_vec1::<f32>()?;
        match &mut self.role {
            Role::Alone => return Ok(()),
            Role::First { peers, .. } => {
                for other in &mut *peers {
                    let share = other.values(n)?;
                    values.iter_mut().zip(&share).for_each(|(sum, value)| *sum += value);
                }
                peers.iter_mut().try_for_each(|other| other.send_values(&values))?;
            }
            Role::Follower(first) => {
                first.send_values(&values).map_err(leader_lost)?;
                values = match first.receive(4 * n).map_err(leader_lost)? {
                    Message::Values(sum) => sum,
                    _ => return Err(unexpected(0)),
                };
            }
        }
        *flat = Tensor::from_vec(values, n, &device)?;
        Ok(())
    }
}

/// The error of losing process 0, the parent, which can no longer receive it.
fn leader_lost(error: io::Error) -> Error {
    Error::process(0, format!("exited unexpectedly ({error})"))
}

fn unexpected(rank: usize) -> Error {
    Error::process(rank, "sent an unexpected message")
}

//! Training in a process that follows process 0.

use candle_core::Device;

use super::{
    ProcessGroup, Role, Start,
    connection::{Connection, MAX_MESSAGE_BYTES, Message},
    gradients::{forward_backward_all, loader},
    leader_lost, unexpected,
};
use crate::{
    checkpoint::TrainingState,
    train::{
        Error, Optimizer, Result, Task, TrainOptions, difference::difference, gradients::halve_micro_batch,
        run::state_path,
    },
};

/// Trains `task` as process `rank` of `size`, which process 0 started.
///
/// The processes exchange messages over this one's standard input and output, so nothing else may be written there. It starts at the
/// position of process 0, takes the same steps, and writes no file.
///
/// # Errors
/// Returns the error that ended the run, which the caller reports to process 0 with [`failed`]; an error if process 0 has ended.
pub fn follow(task: &mut dyn Task, options: &TrainOptions, rank: usize, size: usize) -> Result<()> {
    follow_loop(task, options, &mut ProcessGroup::follower(rank, size))
}

pub(super) fn follow_loop(
    task: &mut dyn Task,
    options: &TrainOptions,
    group: &mut ProcessGroup,
) -> Result<()> {
    let Start { settings, saved, mut progress, mut micro_batch } = group.start()?;
    if let Some(field) = difference("settings", &settings, &task.settings()) {
        return Err(Error::setting("data", format!("differs from that of process 0: {field}")));
    }
    let specs = task.cost()?.params;
    let settings = options.optimizer.clone();
    let mut optimizer = if saved {
        let state = TrainingState::load(&state_path(&options.folder, task.kind(), progress.step))?;
        Optimizer::restore(settings, &specs, &state, &options.device)?
    } else {
        Optimizer::new(settings, &specs, &task.initial_weights(options.seed)?, &options.device)?
    };
    let mut loader = self::loader(task, options, micro_batch, group)?;
    group.ready(&options.device)?;
    while progress.step < options.schedule.steps {
        let scale = progress.scale(options);
        let params = optimizer.params()?;
        match forward_backward_all(task, options, params, &mut loader, group, progress.step, scale) {
            Ok((loss, gradients)) => {
                progress.apply_step(
                    &mut optimizer,
                    loss,
                    &gradients,
                    options.schedule.rate(progress.step),
                )?;
            }
            Err(error) if error.is_out_of_memory() => {
                micro_batch = halve_micro_batch(micro_batch, task.smallest_batch()).ok_or(error)?;
                loader = self::loader(task, options, micro_batch, group)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Sends process 0 the error that ended this process.
pub fn failed(message: &str, transient: bool) {
    let last = Message::Failed { transient, message: message.to_owned() };
    // The write fails if process 0 has ended, which is harmless.
    let _ = Connection::current_process().send(&last);
}

impl ProcessGroup {
    /// Receives the run's position and settings.
    fn start(&mut self) -> Result<Start> {
        let Role::Follower(first) = &mut self.role else { return Err(unexpected(self.rank)) };
        let Message::Start(text) = first.receive(MAX_MESSAGE_BYTES).map_err(leader_lost)? else {
            return Err(unexpected(0));
        };
        serde_json::from_slice(&text).map_err(|_| unexpected(0))
    }

    /// Reports that it is ready and, with NCCL, waits until all are.
    fn ready(&mut self, device: &Device) -> Result<()> {
        let Role::Follower(first) = &mut self.role else { return Err(unexpected(self.rank)) };
        first.send(&Message::Ready).map_err(leader_lost)?;
        #[cfg(feature = "nccl")]
        if device.is_cuda() {
            let Message::Id(id) = first.receive(MAX_MESSAGE_BYTES).map_err(leader_lost)? else {
                return Err(unexpected(0));
            };
            self.nccl = Some(super::nccl::Nccl::join(device, self.rank, self.size, &id)?);
        }
        let _ = device;
        Ok(())
    }
}

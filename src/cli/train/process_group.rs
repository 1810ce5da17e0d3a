//! Training on several GPUs: starts the other processes, and configures and reports for this process if it is one of them.

use std::{path::Path, process::ExitCode, sync::Arc};

use super::{TrainArgs, args::WorkerCommand, is_transient};
use crate::{
    cli::{logging, one_line},
    recipes::Recipe,
    signals,
    train::{Error, ProcessGroup, parallel, supervise::Worker},
};

/// Starts the other processes of the process group; this process has rank 0. They get the same settings and their rank.
///
/// # Errors
/// If a setting cannot be a flag, or the path of this program cannot be found.
pub fn create<R: Recipe>(args: &TrainArgs<R>, settings: &R, folder: &Path) -> anyhow::Result<ProcessGroup> {
    let processes = settings.run().gpus;
    if processes == 1 {
        return Ok(ProcessGroup::single());
    }
    let command = WorkerCommand::new(settings, args.process.initial_state().as_deref())?;
    let (halvings, folder) = (args.process.halvings, folder.to_owned());
    Ok(ProcessGroup::leader(processes, move |rank| {
        let mut command = command.command(&Worker { folder: &folder, halvings, deadline: None }, rank);
        // A follower has nothing to save.
        #[cfg(unix)]
        signals::signal_on_parent_exit(&mut command, libc::SIGKILL);
        command
    }))
}

/// Makes this process a follower: it prints nothing and ignores signals, which the process of rank 0 handles.
pub fn become_follower() {
    logging::set_quiet();
    for signal in signals::stop_signals() {
        // If a signal cannot be caught, it ends this process, which the process of rank 0 detects.
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
}

/// Reports the result of this process to the process of rank 0.
pub fn report_exit(result: anyhow::Result<()>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    let message = match error.downcast_ref() {
        // The process of rank 0 adds the rank.
        Some(Error::Process { message, .. }) => message.clone(),
        _ => one_line(&error),
    };
    parallel::failed(&message, is_transient(&error));
    ExitCode::FAILURE
}

//! Training on several GPUs: starts the other processes, and configures and reports for this process if it is one of them.

use std::{
    path::Path,
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::Context;

use super::{TrainArgs, args::worker_command, is_transient};
use crate::{
    cli::{logging, one_line},
    recipes::Recipe,
    signals,
    train::{Error, ProcessGroup, parallel, supervise::Worker},
};

/// Starts the other processes of the process group; this process has rank 0. They get the same settings and their rank.
///
/// # Errors
/// If the path of this program cannot be found.
pub fn create<R: Recipe>(args: &TrainArgs<R>, settings: &R, folder: &Path) -> anyhow::Result<ProcessGroup> {
    let processes = settings.run().gpus;
    if processes == 1 {
        return Ok(ProcessGroup::single());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let (initial_state, halvings) = (args.process.initial_state(), args.process.halvings);
    let (settings, folder) = (settings.clone(), folder.to_owned());
    Ok(ProcessGroup::leader(processes, move |rank| {
        let worker = Worker { folder: &folder, halvings, deadline: None };
        // This process was started in the same way, so this cannot fail.
        let mut command = worker_command(&program, &settings, initial_state.as_deref(), &worker, rank)
            .unwrap_or_else(|_| Command::new(&program));
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

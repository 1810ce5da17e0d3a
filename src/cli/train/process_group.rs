//! Training on several GPUs: starts the other processes, and configures and reports for this process if it is one of them.

use std::{
    ffi::OsString,
    process::{Command, ExitCode},
    sync::Arc,
};

use anyhow::Context;

use super::{common::CommonArgs, is_transient};
use crate::{
    cli::{logging, one_line},
    signals,
    train::{Error, ProcessGroup, parallel},
};

/// The environment variable for the number of threads of a process.
const NUM_THREADS_VARIABLE: &str = "RAYON_NUM_THREADS";

/// Starts the other processes of the process group; this process has rank 0. They get the same arguments and their rank.
///
/// # Errors
/// If the path of this program cannot be found.
pub fn create(common: &CommonArgs) -> anyhow::Result<ProcessGroup> {
    if common.gpus == 1 {
        return Ok(ProcessGroup::single());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let is_worker_flag = |argument: &OsString| argument.to_string_lossy().starts_with("--worker=");
    let position = arguments.iter().position(is_worker_flag).unwrap_or(arguments.len());
    Ok(ProcessGroup::leader(common.gpus, move |rank| {
        let mut command = Command::new(&program);
        command.args(&arguments[..position]).arg(format!("--rank={rank}")).args(&arguments[position..]);
        // A follower has nothing to save.
        #[cfg(unix)]
        signals::signal_on_parent_exit(&mut command, libc::SIGKILL);
        command
    }))
}

/// The environment variable and value that divide the cores among the processes; `None` with one process, or if the user has set it.
pub fn num_threads_variable(common: &CommonArgs) -> Option<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let is_unset = common.gpus > 1 && std::env::var_os(NUM_THREADS_VARIABLE).is_none();
    is_unset.then(|| (NUM_THREADS_VARIABLE, (cores / common.gpus).max(1).to_string()))
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

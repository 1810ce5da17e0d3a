//! Training on several GPUs: starts the other processes, and handles being one of them.

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

/// The environment variable that sets the number of threads of a computation.
const THREADS: &str = "RAYON_NUM_THREADS";

/// Starts the processes that train together with this one, which has rank 0. The others get the same arguments and their rank.
///
/// # Errors
/// If this program's file cannot be found.
pub fn create(common: &CommonArgs) -> anyhow::Result<ProcessGroup> {
    if common.gpus == 1 {
        return Ok(ProcessGroup::single());
    }
    let program = std::env::current_exe().context("finding this program")?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let own = |argument: &OsString| argument.to_string_lossy().starts_with("--worker=");
    let place = arguments.iter().position(own).unwrap_or(arguments.len());
    Ok(ProcessGroup::leader(common.gpus, move |rank| {
        let mut command = Command::new(&program);
        command.args(&arguments[..place]).arg(format!("--rank={rank}")).args(&arguments[place..]);
        // It has nothing to save.
        #[cfg(unix)]
        signals::signal_on_parent_exit(&mut command, libc::SIGKILL);
        command
    }))
}

/// The environment variable for the number of threads of each process: they share the cores, unless the user has set it.
pub fn threads(common: &CommonArgs) -> Option<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let unsaid = common.gpus > 1 && std::env::var_os(THREADS).is_none();
    unsaid.then(|| (THREADS, (cores / common.gpus).max(1).to_string()))
}

/// Makes this process a follower: the first process prints and handles signals for it.
pub fn become_follower() {
    logging::set_quiet();
    for signal in signals::stop_signals() {
        // If a signal cannot be caught, it ends this process, and the first one notices.
        let _ = signal_hook::flag::register(signal, Arc::default());
    }
}

/// Reports to the first process how this one ended.
pub fn report_exit(ended: anyhow::Result<()>) -> ExitCode {
    let Err(error) = ended else { return ExitCode::SUCCESS };
    let message = match error.downcast_ref() {
        // The first process adds the rank itself.
        Some(Error::Process { message, .. }) => message.clone(),
        _ => one_line(&error),
    };
    parallel::failed(&message, is_transient(&error));
    ExitCode::FAILURE
}
